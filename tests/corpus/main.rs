//! Every reader against files that nobody meant to write: an answer or an error that names the place, never
//! a panic, never memory that only a forged header asks for.
//!
//! Each format has a folder here with valid files, written by NumPy, safetensors and limbeck itself. Their
//! damaged kin are made anew in every run, thousands of them, and those that once took a way of their own
//! through a reader are kept in `FORMAT.txt`: what became of the file, and its bytes in hex.

mod formats;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

use formats::{FORMATS, Format};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

/// A format's valid files in a folder of their own, one of which is replaced again and again.
struct Place {
    format: &'static Format,
    dir: tempfile::TempDir,
    original: Vec<u8>,
}

impl Place {
    fn new(format: &'static Format) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        for entry in fs::read_dir(folder().join(format.name)).expect("valid files") {
            let path = entry.expect("an entry").path();
            fs::copy(&path, dir.path().join(path.file_name().expect("a name"))).expect("copied");
        }
        let original = fs::read(dir.path().join(format.target)).expect("the valid file");
        Self { format, dir, original }
    }

    /// What becomes of `bytes` in the place of the valid file.
    fn outcome(&self, bytes: &[u8]) -> String {
        let target = self.dir.path().join(self.format.target);
        // A new file each time: truncating an old one makes ext4 wait for the disk.
        let _ = fs::remove_file(&target);
        fs::write(&target, bytes).expect("written");
        match (self.format.read)(&self.dir.path().join(self.format.path), bytes, &self.original) {
            Ok(seen) => format!("read {seen}"),
            Err(error) => {
                assert_eq!(error.exit_code(), 4, "{error}");
                assert!(error.to_string().len() < 4000, "{error}");
                match error {
                    limbeck::Error::Data { at, .. } => format!("refused: {}", at.replace('\n', " ")),
                    other => format!("refused: {}", other.to_string().split('/').next().unwrap_or_default()),
                }
            }
        }
    }
}

/// One damage: (kind, place, value), places as fractions of the length.
type Damage = (u8, f64, u8);

fn damage(bytes: &mut Vec<u8>, (kind, place, value): Damage) {
    let at = (place * bytes.len() as f64) as usize;
    match kind {
        _ if bytes.is_empty() => bytes.push(value),
        0 => bytes[at] = value,
        1 => bytes[at] ^= 1 << (value % 8),
        2 => bytes.truncate(at),
        3 => bytes.insert(at, value),
        4 => {
            bytes.remove(at);
        }
        // Sizes are little- or big-endian words of 2, 4 or 8 bytes: a run of extremes hits them.
        5 => bytes[at..].iter_mut().take(8).for_each(|b| *b = 0xff),
        6 => bytes[at..].iter_mut().take(4).for_each(|b| *b = 0),
        7 => {
            let copy = bytes[at..].iter().take(usize::from(value)).copied().collect::<Vec<_>>();
            bytes.splice(at..at, copy);
        }
        // A digit for a digit: sizes in a text header that are plausible and wrong.
        8 | 9 => {
            if let Some(digit) = bytes[at..].iter_mut().find(|b| b.is_ascii_digit()) {
                *digit = b'0' + value % 10;
            }
        }
        _ => bytes.extend(std::iter::repeat_n(value, usize::from(value))),
    }
}

fn damages() -> impl Strategy<Value = Vec<Damage>> {
    // Half of the places lie in the first tenth, where headers are.
    let place = prop_oneof![0.0..0.1, 0.0..1.0];
    proptest::collection::vec((0_u8..11, place, any::<u8>()), 1..4)
}

/// Peak size of the process's address space, in bytes: also what is asked for and never touched.
#[cfg(target_os = "linux")]
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:")).expect("VmPeak");
    line.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).expect("kB") << 10
}

#[cfg(not(target_os = "linux"))]
fn peak() -> u64 {
    0
}

/// Every format in 2000 damaged forms.
#[test]
fn damaged_files_are_survived() {
    let before = peak();
    std::thread::scope(|scope| {
        for half in [0, 1] {
            scope.spawn(move || {
                for format in FORMATS.iter().skip(half).step_by(2) {
                    survives(format);
                }
            });
        }
    });
    // Two threads' arenas and stacks, files of a few hundred bytes; a forged size asks for far more.
    assert!(peak() - before < 1 << 30, "{} MiB for files of a few hundred bytes", (peak() - before) >> 20);
}

fn survives(format: &'static Format) {
    let place = Place::new(format);
    let config = ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() };
    let outcome = TestRunner::new(config).run(&damages(), |damages| {
        let mut bytes = place.original.clone();
        damages.into_iter().for_each(|d| damage(&mut bytes, d));
        place.outcome(&bytes);
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{}: {error}", format.name);
    }
}

#[test]
fn the_corpus_is_read_as_before() {
    for format in FORMATS {
        let place = Place::new(format);
        assert!(place.outcome(&place.original).starts_with("read "), "{}: the valid file", format.name);
        let text = fs::read_to_string(folder().join(format.name).with_extension("txt")).expect("a corpus");
        let mut cases = 0;
        for (number, line) in text.lines().enumerate() {
            let (wanted, hex) = line.split_once('\t').expect("outcome, tab, hex");
            assert_eq!(place.outcome(&unhex(hex)), wanted, "{}.txt, line {}", format.name, number + 1);
            cases += 1;
        }
        assert!(cases >= 5, "{}: {cases} saved files are too few", format.name);
    }
}

fn unhex(text: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("two hex digits");
    (0..text.len()).step_by(2).map(byte).collect()
}

/// Looks for more files worth keeping. Those that are kept stay, with what becomes of them now.
#[test]
#[ignore = "rewrites tests/corpus: cargo test --test corpus -- --ignored"]
fn grow() {
    const MOST: usize = 24;
    formats::write_logits(&folder());
    for format in FORMATS {
        let place = Place::new(format);
        let file = folder().join(format.name).with_extension("txt");
        let kept = fs::read_to_string(&file).unwrap_or_default();
        let kept = kept.lines().filter_map(|line| Some(unhex(line.split_once('\t')?.1)));
        // Two numbers apart is the same way through a reader.
        let way = |outcome: &str| outcome.replace(|c: char| c.is_ascii_digit(), "");
        let mut found: BTreeMap<Vec<u8>, String> =
            kept.chain((format.by_hand)()).map(|b| (b, String::new())).collect();
        found.iter_mut().for_each(|(bytes, outcome)| *outcome = place.outcome(bytes));
        let mut ways: Vec<String> = found.values().map(|outcome| way(outcome)).collect();
        let mut runner = TestRunner::deterministic();
        for _ in 0..20_000 {
            let mut bytes = place.original.clone();
            let tree = damages().new_tree(&mut runner).expect("damages");
            tree.current().into_iter().for_each(|d| damage(&mut bytes, d));
            let outcome = place.outcome(&bytes);
            if ways.len() < MOST && !ways.contains(&way(&outcome)) && bytes.len() < 4096 {
                ways.push(way(&outcome));
                found.insert(bytes, outcome);
            }
        }
        let mut lines: Vec<String> = found
            .into_iter()
            .map(|(bytes, outcome)| {
                let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
                format!("{outcome}\t{hex}\n")
            })
            .collect();
        lines.sort();
        fs::write(file, lines.concat()).expect("written");
    }
}
