//! Disks that are full, folders that cannot be written, checkpoints that are damaged, devices that
//! are lost: a clear error, and the last good state stays.

use std::cell::Cell;
use std::fs;
#[cfg(unix)]
use std::{io::Write as _, os::unix::process::ExitStatusExt as _};

use limbeck::data::Dataset;
use limbeck::distill::{Guard, Loss, Optimizer, Teacher};
use limbeck::error::{Error, Result};
use limbeck::gpu::{AdapterChoice, Gpu};
use limbeck::kernels::matmul::Activation;
use limbeck::mlp::weights::{Initializer, Weights};
use limbeck::report::metrics_file::Line;
use limbeck::train::run_dir::{Begin, Record, RunDir};
use limbeck::train::session::{Session, Settings, Watcher, retrying};
use limbeck::train::stop::{Every, Score};
use limbeck::train::{Length, Recipe, Replica, Row, Rows, Run};

use crate::bench::{Bench, fails, succeeds};

const FIXED: [&str; 4] = ["--steps", "100", "--lr", "0.01"];

#[test]
fn a_damaged_checkpoint_is_passed_over_and_named() {
    let bench = Bench::new();
    succeeds(&mut bench.train("whole", &FIXED));
    let every = ["--checkpoint-every", "20", "--keep", "5"];
    for damage in 0..4 {
        let out = format!("run{damage}");
        succeeds(bench.train(&out, &FIXED).args(every).args(["--max-steps", "80"]));
        let path = |step: u64, name: &str| bench.path(&format!("{out}/checkpoints/step-{step}/{name}"));
        let edit = |step: u64, name: &str, how: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = fs::read(path(step, name)).expect("a file");
            how(&mut bytes);
            fs::write(path(step, name), bytes).expect("written");
        };
        let words = match damage {
            0 => {
                // The newest has a flipped bit, the one before it is cut.
                edit(80, "state.safetensors", &|b| {
                    let at = b.len() - 1000;
                    b[at] ^= 4;
                });
                edit(60, "state.safetensors", &|b| b.truncate(b.len() - 1));
                ["step-80: state.safetensors: its sha256", "step-60: state.safetensors", "after step 40"]
            }
            1 => {
                edit(80, "state.json", &|b| b[30] ^= 1);
                edit(60, "manifest.json", &|b| b.truncate(40));
                ["step-80: state.json", "step-60: manifest.json", "after step 40"]
            }
            2 => {
                fs::remove_file(path(80, "state.safetensors")).expect("removed");
                edit(60, "manifest.json", &|b| b.clear());
                ["step-80: state.safetensors", "step-60: manifest.json", "after step 40"]
            }
            _ => {
                for step in [20, 40, 60, 80] {
                    edit(step, "manifest.json", &|b| b.clear());
                }
                ["step-80: manifest.json", "step-20: manifest.json", "beginning again"]
            }
        };
        let said = succeeds(bench.train(&out, &FIXED).args(every).arg("--resume"));
        for word in words {
            assert!(said.contains(word), "`{word}` is not in: {said}");
        }
        bench.same("whole", &out);
        assert_eq!(bench.checkpoints(&out).last(), Some(&100));
    }
}

/// A limit on the size of files is a disk that is full for the state, and not for small files.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_last_good_checkpoint() {
    let bench = Bench::new();
    // A checkpoint of 700 KiB, and a limit that drivers which keep their code in files live with.
    const WIDE: [&str; 6] = ["--layers", "64,800,10", "--steps", "100", "--lr", "0.01"];
    succeeds(&mut bench.train("whole", &WIDE));
    let every = ["--checkpoint-every", "20"];
    succeeds(bench.train("run", &WIDE).args(every).args(["--max-steps", "40"]));
    let before = bench.checkpoints("run");
    // 512-byte blocks; without the trap the signal would end the process.
    let limited = |run: &std::process::Command| {
        let mut limited = std::process::Command::new("sh");
        limited.args(["-c", "trap '' XFSZ; ulimit -f 256; exec \"$0\" \"$@\""]);
        limited.arg(run.get_program()).args(run.get_args());
        limited
    };
    // Some drivers' memory is a file as well (lavapipe 25): where it cannot grow, they touch what lies behind its end.
    const SIGBUS: i32 = if cfg!(target_os = "linux") { 7 } else { 10 };
    let little = limited(&bench.train("little", &["--layers", "64,8,10", "--steps", "1"])).output();
    if little.expect("it runs").status.signal() == Some(SIGBUS) {
        // Past the test harness, which keeps what a test that passes prints.
        let said = writeln!(
            std::io::stderr(),
            "a full disk: left out, this driver cannot live with a limit on files"
        );
        return said.expect("stderr");
    }
    let mut run = bench.train("run", &WIDE);
    run.args(every).arg("--resume");
    let said = fails(&mut limited(&run), 4);
    assert!(
        said.contains("cannot write") && said.contains("step-60") && said.contains("untouched"),
        "{said}"
    );
    assert_eq!(bench.checkpoints("run"), before);
    let record = bench.json("run/run.json");
    assert_eq!((&record["status"], &record["exit_code"]), (&"failed".into(), &4.into()));
    succeeds(bench.train("run", &WIDE).args(every).arg("--resume"));
    bench.same("whole", "run");
}

#[cfg(target_os = "linux")]
#[test]
fn a_folder_that_cannot_be_written_is_an_error_before_any_step() {
    let bench = Bench::new();
    // Not even root can make a folder there.
    let data = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("data/optdigits");
    let mut command = crate::bench::limbeck();
    command.arg("train").arg("--data").arg(data).args(["--layers", "64,16,10", "--out", "/proc/run"]);
    let said = fails(&mut command, 4);
    assert!(said.contains("cannot create /proc/run"), "{said}");
    // A checkpoint folder that is no folder.
    fs::create_dir(bench.path("run")).expect("a folder");
    fs::write(bench.path("run/checkpoints"), "").expect("a file");
    let said = fails(&mut bench.train("run", &FIXED), 4);
    assert!(said.contains("checkpoints"), "{said}");
}

/// A run of the library in a folder, on a device that is lost once at the row of step `lost`.
struct Watch<'a> {
    gpu: &'a Gpu,
    lost: &'a Cell<Option<u64>>,
}

impl Watcher for Watch<'_> {
    fn line(&mut self, row: &Row) -> Line {
        if self.lost.get().is_some_and(|step| row.step >= step) {
            self.lost.set(None);
            self.gpu.lose();
        }
        Line { split: "train", step: row.step, epoch: row.epoch, loss: Some(row.loss), ..Line::default() }
    }

    fn validates(&self) -> bool {
        false
    }

    fn evaluate(&mut self, _: &Run<'_>) -> Result<(Line, Score)> {
        Err(Error::usage("validation rows", "some", "none"))
    }

    fn interrupted(&self) -> bool {
        false
    }
}

fn attempt(
    gpu: &Gpu,
    data: &Dataset,
    dir: &std::path::Path,
    again: bool,
    lost: &Cell<Option<u64>>,
) -> Result<Weights> {
    let recipe = Recipe {
        batch: 64,
        accumulate: 1,
        length: Length::Steps(200),
        optimizer: Optimizer::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 },
        shuffle: true,
        log_every: 10,
        guard: Guard::default(),
        features: Vec::new(),
        regularize: Default::default(),
    };
    let student = Weights::init(&[64, 16, 10], Activation::Relu, Initializer::He, 1)?;
    let replica = Replica { seed: 1, lr: 0.05, loss: Loss::HARD, schedules: Default::default(), student };
    let mut run = Run::new(gpu, data, Rows::default(), &Teacher::None, recipe, vec![replica])?;
    let begin = if again { Begin::Resume } else { Begin::New };
    let record = Record::new("train", gpu, 1, Default::default(), vec![]);
    let (mut dir, from) = RunDir::open(dir, "model.safetensors", begin, "", record, &mut |_| {})?;
    let settings =
        Settings { every: Every::Steps(30), keep: 2, patience: None, max_steps: None, max_time: None };
    let ended = Session::new(&mut run, &mut dir, settings, from)?.drive(&mut Watch { gpu, lost });
    dir.close(ended.as_ref().err())?;
    ended?;
    Ok(run.students().read_blocking(gpu)?.swap_remove(0))
}

#[test]
fn a_lost_device_is_opened_again_and_the_bits_are_the_same() {
    let bench = Bench::new();
    let data = limbeck::data::optdigits().expect("embedded").train;
    let open = || Gpu::open(&AdapterChoice::default());
    let run = |out: &str, retries: u32, lost: Option<u64>| {
        let lost = Cell::new(lost);
        let said = Cell::new(0);
        let dir = bench.path(out);
        let trained = retrying(
            retries,
            open,
            |gpu, again| attempt(gpu, &data, &dir, again, &lost),
            |_| said.set(said.get() + 1),
        );
        (trained, said.get())
    };
    let (whole, _) = run("whole", 0, None);
    let whole = whole.expect("a run");

    let (lost, said) = run("lost", 0, Some(100));
    let error = lost.expect_err("a lost device");
    assert_eq!((error.exit_code(), said), (5, 0), "{error}");
    assert_eq!(bench.json("lost/run.json")["exit_code"], 5);
    assert!(bench.checkpoints("lost").last().is_some_and(|s| *s >= 60), "the checkpoints stay");

    // Before the first checkpoint, and after some.
    for (out, step) in [("early", 10), ("late", 130)] {
        let (again, said) = run(out, 2, Some(step));
        assert_eq!(said, 1);
        assert_eq!(again.expect("a run").sha256(), whole.sha256(), "{out}");
        for name in ["metrics.jsonl", "metrics.csv"] {
            assert_eq!(bench.text(&format!("{out}/{name}")), bench.text(&format!("whole/{name}")), "{out}");
        }
    }
}
