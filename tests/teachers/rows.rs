//! Which rows and labels a student sees, and by which way they come.

use std::fs;

use crate::bench::{Bench, binary, fails, hash, json};

/// Rows that pass through a small window teach the same bits as rows that stay.
#[test]
fn streamed_rows_give_the_bits_of_resident_ones() {
    let bench = Bench::new();
    let teacher = bench.teacher("teacher", &[]);
    let resident = hash(&bench.distil("student", &["--teacher", &teacher]));
    // Two batches of 16 rows of 8 floats are 1024 bytes; 150 rows are 4800.
    bench.logits(&teacher, "l", &[]);
    let logits = bench.text("l");
    for memory in ["1024", "2KiB", "4799"] {
        // 150 rows of 4 floats are 2400 bytes: the logits are streamed beside the rows, or stay.
        let cached = bench.distil("student", &["--teacher-logits", &logits, "--device-memory", memory]);
        assert_eq!(resident, hash(&cached), "{memory}");
        let both = ["--teacher", &teacher, "--teacher-logits", &logits, "--device-memory", memory];
        assert_eq!(
            hash(&bench.distil("student", &both)),
            hash(&bench.distil("student", &both[..4])),
            "{memory}"
        );
        assert_eq!(
            resident,
            hash(&bench.distil("student", &["--teacher", &teacher, "--device-memory", memory])),
            "{memory}"
        );
    }
    let (data, out) = (bench.text("data"), bench.text("gone"));
    let args = [
        "train",
        "--data",
        &data,
        "--layers",
        "7,3",
        "--device-memory",
        "1023",
        "--batch-size",
        "16",
        "--out",
        &out,
    ];
    fails(&args, 2, &["--device-memory", "1024 bytes"]);
}

#[test]
fn few_labels_transfer_sets_and_stored_statistics() {
    let bench = Bench::new();
    let teacher = bench.teacher("teacher", &["--standardise"]);
    bench.rows("more.npy", 60, 77);
    let more = bench.text("more.npy");
    let plain = hash(&bench.distil("student", &["--teacher", &teacher]));
    let with =
        bench.distil("student", &["--teacher", &teacher, "--transfer", &more, "--label-fraction", "0.1"]);
    assert_ne!(plain, hash(&with));

    // Statistics go with the model: in other units, and other statistics, the same answers.
    let data = bench.text("data");
    let eval = |more: &[&str]| {
        let mut args = vec!["eval", "--data", &data, "--model", &teacher, "--json"];
        args.extend(more);
        json(&args)["evaluation"]["nll"].as_f64().expect("nll")
    };
    let nll = eval(&[]);
    assert!(nll < 0.9, "{nll}");
    assert!((eval(&["--scale", "3"]) - nll).abs() > 1e-3, "--scale wins over the model");

    let (npy, csv) = (bench.text("z.npy"), bench.text("p.csv"));
    for out in [&npy, &csv] {
        let args = ["predict", "--data", &data, "--model", &teacher, "--out", out];
        let done = binary().args(args).output().expect("it runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        fails(&args, 2, &["--out", "--force"]);
    }
    let bytes = fs::read(&npy).expect("logits");
    assert_eq!(bytes.len(), 128 + 40 * 3 * 4);
    let logits: Vec<f32> =
        bytes[128..].chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let of_row = |row: &[f32], label: usize| {
        let sum: f64 = row.iter().map(|v| f64::from(*v).exp()).sum();
        sum.ln() - f64::from(row[label])
    };
    let mean = logits.chunks_exact(3).enumerate().map(|(i, row)| of_row(row, i % 3)).sum::<f64>() / 40.0;
    assert!((mean - nll).abs() < 1e-5, "predict and eval disagree: {mean} {nll}");
    let text = fs::read_to_string(&csv).expect("probabilities");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!((lines.len(), lines[0]), (41, "prediction,0,1,2"));
    let cells: Vec<f64> = lines[1].split(',').map(|c| c.parse().expect("a number")).collect();
    assert!((cells[1..].iter().sum::<f64>() - 1.0).abs() < 1e-6);
    let best = (1..4).max_by(|a, b| cells[*a].total_cmp(&cells[*b])).expect("a class") - 1;
    assert!((cells[0] - best as f64).abs() < 1e-9);
}

/// 12 GiB of rows that take no disk train in a small fraction of it: rows pass through a window, on the
/// host as on the device.
#[cfg(target_os = "linux")]
#[test]
fn twelve_gib_train_with_a_bounded_resident_set() {
    const FEATURES: usize = 1024;
    const ROWS: usize = 3 << 20;
    let bench = Bench::new();
    fs::create_dir(bench.path("big")).expect("created");
    bench.npy("big/x_train.npy", "<f4", &format!("({ROWS}, {FEATURES})"), &[]);
    let file = fs::OpenOptions::new().write(true).open(bench.path("big/x_train.npy")).expect("opened");
    let header = file.metadata().expect("a file").len();
    file.set_len(header + (ROWS * FEATURES * 4) as u64).expect("a sparse file");
    let labels: Vec<u8> = (0..ROWS).map(|i| (i % 3) as u8).collect();
    bench.npy("big/y_train.npy", "|u1", &format!("({ROWS},)"), &labels);
    drop(labels);

    let (data, out) = (bench.text("big"), bench.text("out"));
    let args = ["train", "--data", &data, "--layers", "1024,16,3", "--steps", "60", "--batch-size", "64"];
    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin!("limbeck"))
        .args(args)
        .args(["--device-memory", "64MiB", "--json", "--out", &out])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("it runs");
    // The high-water mark only grows: the last look before the end is the one that counts.
    let mut peak = 0;
    while child.try_wait().expect("a child").is_none() {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        peak = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(peak);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let done = child.wait_with_output().expect("its output");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    println!("peak resident set {} MiB", peak >> 10);
    // Order, slots and labels take 12 MiB each, on the host and on a software device; the driver takes some.
    assert!(peak > 50 << 10 && peak < 600 << 10, "{} MiB", peak >> 10);
}

/// Three students side by side, each with an order of its own, rows and logits through windows.
#[test]
fn replicas_with_orders_of_their_own_are_streamed_alike() {
    use limbeck::data::{Dataset, Elements};
    use limbeck::distill::step::{Guard, Loss, Optimizer};
    use limbeck::distill::{Member, Teacher};
    use limbeck::gpu::{AdapterChoice, Gpu};
    use limbeck::kernels::ensemble::Rule;
    use limbeck::kernels::matmul::Activation;
    use limbeck::mlp::weights::{Initializer, Weights};
    use limbeck::train::{Length, Recipe, Replica, Rows, Run};

    let gpu = Gpu::open(&AdapterChoice::default()).expect("an adapter");
    let pixels: Vec<u8> = (0..101 * 7_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let labels = (0..101).map(|i| i % 4).collect();
    let data =
        Dataset::new("pixels", Elements::U8(pixels), vec![7], Some(labels), Some(4)).expect("a data set");
    let logits: Vec<f32> = (0..101 * 4).map(|i| (i * 13 % 29) as f32 / 7.0).collect();
    let run = |memory: Option<u64>, seeds: [u64; 3]| {
        let student =
            |seed| Weights::init(&[7, 5, 4], Activation::Tanh, Initializer::Glorot, seed).expect("weights");
        let loss = Loss { temperature: 2.0, hard_weight: 0.5, soft_weight: 0.5, ..Loss::HARD };
        let replica =
            |seed| Replica { seed, lr: 0.05, loss, schedules: Default::default(), student: student(seed) };
        let teacher = Member::cached(&gpu, 4, logits.clone(), memory).expect("logits");
        assert_eq!(matches!(teacher, Member::Rows(..)), memory.is_some());
        let recipe = Recipe {
            batch: 16,
            accumulate: 1,
            length: Length::Epochs(3),
            optimizer: Optimizer::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 },
            shuffle: true,
            log_every: 5,
            guard: Guard::default(),
            features: Vec::new(),
            regularize: Default::default(),
        };
        let rows = Rows { device_memory: memory, ..Rows::default() };
        let teacher = Teacher::Ensemble(vec![teacher], Rule::Arithmetic);
        let replicas = seeds.map(replica).to_vec();
        let mut run = Run::new(&gpu, &data, rows, &teacher, recipe, replicas).expect("a run");
        let students = run.train(|_| Ok(())).expect("trained");
        students.iter().map(Weights::sha256).collect::<Vec<_>>()
    };
    // 3 orders x 2 batches of 16 rows of 4 floats are 1536 bytes: the least. 101 such rows are 1616.
    let resident = run(None, [1, 2, 3]);
    assert_eq!(resident, run(Some(1536), [1, 2, 3]));
    // One order for all three: a submission of several steps gathers the right rows of each.
    assert_eq!(run(None, [4, 4, 4]), run(Some(1600), [4, 4, 4]));
    assert_ne!(resident, run(None, [1, 2, 4]));
}
