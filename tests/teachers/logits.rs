//! Logits on disk: the same bits as live, shards, job arrays, top-k, and matrices of other programs.

use std::fs;

use crate::bench::{Bench, ROWS, binary, fails, hash};

/// The heart of it: what is on disk teaches exactly what the live teacher teaches, whatever the sharding,
/// the shuffling and the rows held back.
#[test]
fn cached_logits_give_the_bits_of_the_live_teacher() {
    let bench = Bench::new();
    let teacher = bench.teacher("teacher", &["--standardise"]);
    bench.logits(&teacher, "one", &[]);
    let report = bench.logits(&teacher, "many", &["--shards", "7"]);
    assert_eq!((report["written"].as_u64(), bench.files("many").len()), (Some(7), 7));
    for more in [vec![], vec!["--validation", "0.2"], vec!["--drop-classes", "1", "--labels-per-class", "5"]]
    {
        let run = |source: [&str; 2]| {
            let mut args = source.to_vec();
            args.extend(&more);
            bench.distil("student", &args)
        };
        let live = run(["--teacher", &teacher]);
        for folder in ["one", "many"] {
            let cached = run(["--teacher-logits", &bench.text(folder)]);
            assert_eq!(hash(&live), hash(&cached), "{folder} {more:?}");
            let agreement = |r: &serde_json::Value| r["validation"]["agreement"].as_f64();
            assert_eq!(agreement(&live), agreement(&cached));
        }
    }
    // With logits of the test rows the agreement on them is known too.
    bench.logits(&teacher, "test", &["--split", "test", "--shards", "2"]);
    let (train, test) = (bench.text("one"), bench.text("test"));
    let live = bench.distil("student", &["--teacher", &teacher]);
    let cached = bench.distil("student", &["--teacher-logits", &train, "--test-logits", &test]);
    assert_eq!(live["test"], cached["test"]);
    assert!(live["test"]["agreement"].is_number());
    let (data, out) = (bench.text("data"), bench.text("gone"));
    let refused = |more: &[&str], code, words: &[&str]| {
        let fixed = ["distill", "--data", &data, "--layers", "7,5,3", "--out", &out, "--test-logits"];
        fails(&[&fixed, more].concat(), code, words);
    };
    refused(&[&train, "--teacher-logits", &train], 4, &["of the test rows", "of train rows"]);
    refused(
        &[&test, "--teacher-logits", &train, "--teacher-logits", &train],
        2,
        &["--test-logits", "2 of them"],
    );
    refused(&[&test, "--teacher", &teacher], 2, &["--teacher-logits"]);
    // The comparison can fail: other logits, another student.
    let other = bench.teacher("other", &["--seed", "9"]);
    assert_ne!(
        hash(&bench.distil("student", &["--teacher", &teacher])),
        hash(&bench.distil("student", &["--teacher", &other]))
    );
}

#[test]
fn ensembles_are_the_same_live_and_cached_and_differ_by_rule() {
    let bench = Bench::new();
    let (a, b) = (bench.teacher("a", &["--standardise"]), bench.teacher("b", &["--seed", "3"]));
    bench.logits(&a, "la", &[]);
    bench.logits(&b, "lb", &["--shards", "2"]);
    let mut seen = vec![hash(&bench.distil("s", &["--teacher", &a]))];
    for rule in ["arithmetic", "geometric"] {
        let long = ["--ensemble", rule, "--steps", "150", "--lr", "0.01"];
        let live = bench.distil("s", &[&["--teacher", &a, "--teacher", &b], &long[..]].concat());
        let (la, lb) = (bench.text("la"), bench.text("lb"));
        let cached =
            bench.distil("s", &[&["--teacher-logits", &la, "--teacher-logits", &lb], &long[..]].concat());
        // One of each: networks come first, so the order of summation stays.
        let mixed = bench.distil("s", &[&["--teacher", &a, "--teacher-logits", &lb], &long[..]].concat());
        assert_eq!(hash(&live), hash(&cached), "{rule}");
        assert_eq!(hash(&live), hash(&mixed), "{rule}");
        let agreement = live["test"]["agreement"].as_f64().expect("an agreement");
        assert!(agreement > 0.8, "{rule}: the student follows the ensemble: {agreement}");
        assert!(cached["test"]["agreement"].is_null(), "no logits of test rows");
        seen.push(hash(&live));
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 3, "one teacher, and two rules of two");
}

#[test]
fn shards_are_skipped_replaced_and_refused() {
    let bench = Bench::new();
    let teacher = bench.teacher("teacher", &[]);
    let shard = |i: usize| bench.path(&format!("l/logits-{i:05}-of-00003.safetensors"));
    for i in [2, 0, 1] {
        let part = format!("{i}/3");
        bench.logits(&teacher, "l", &["--shard", &part]);
    }
    let original = fs::read(shard(1)).expect("a shard");
    let again = bench.logits(&teacher, "l", &["--shards", "3"]);
    assert_eq!((again["written"].as_u64(), again["skipped"].as_u64()), (Some(0), Some(3)));

    // Cut short, bits flipped, missing: refused as a teacher, written again by the same command.
    let (data, l, out) = (bench.text("data"), bench.text("l"), bench.text("student"));
    let distil = ["distill", "--data", &data, "--layers", "7,5,3", "--teacher-logits", &l, "--out", &out];
    let mut flipped = original.clone();
    *flipped.last_mut().expect("bytes") ^= 1;
    for (bytes, words) in [
        (Some(original[..original.len() - 5].to_vec()), ["00001-of-00003", "whole safetensors"]),
        (Some(flipped), ["payload_sha256", "damaged"]),
        (None, ["gap between shards", "begins at row 50"]),
    ] {
        match bytes {
            Some(bytes) => fs::write(shard(1), bytes).expect("written"),
            None => fs::remove_file(shard(1)).expect("removed"),
        }
        fails(&distil, 4, &words);
        assert!(!bench.path("student").exists(), "nothing half-written");
        let again = bench.logits(&teacher, "l", &["--shards", "3"]);
        assert_eq!((again["written"].as_u64(), again["skipped"].as_u64()), (Some(1), Some(2)));
        assert_eq!(fs::read(shard(1)).expect("a shard"), original, "the same bytes");
    }
    fs::remove_file(shard(2)).expect("removed");
    fails(&distil, 4, &["rows 0..150", "missing"]);
    bench.logits(&teacher, "l", &["--shards", "3"]);
    bench.logits(&teacher, "l", &["--shards", "2"]);
    fails(&distil, 4, &["shards that overlap"]);
    for i in 0..2 {
        fs::remove_file(bench.path(&format!("l/logits-{i:05}-of-00002.safetensors"))).expect("removed");
    }

    // Another teacher into the same folder; other data; another student.
    let other = bench.teacher("other", &["--seed", "9"]);
    let logits =
        ["logits", "--data", &data, "--batch-size", "16", "--out", &l, "--shards", "3", "--teacher", &other];
    fails(&logits, 4, &["teacher_sha256", "--force"]);
    let wide = ["distill", "--data", &data, "--layers", "7,5,4", "--teacher-logits", &l, "--out", &out];
    fails(&wide, 4, &["150 rows of 4 logits", "150 rows of 3 logits"]);
    let mut x = fs::read(bench.path("data/x_train.npy")).expect("rows");
    *x.last_mut().expect("bytes") ^= 1;
    fs::write(bench.path("data/x_train.npy"), x).expect("written");
    fails(&distil, 4, &["data_sha256", "logits of other data"]);
    assert!(!bench.path("student").exists(), "nothing half-written");
}

#[test]
fn a_job_array_shares_the_rows() {
    let bench = Bench::new();
    let teacher = bench.teacher("teacher", &[]);
    let (data, out) = (bench.text("data"), bench.text("l"));
    for id in ["1", "2"] {
        let mut task = binary();
        task.env("SLURM_ARRAY_TASK_ID", id)
            .env("SLURM_ARRAY_TASK_COUNT", "2")
            .env("SLURM_ARRAY_TASK_MIN", "1");
        let done = task
            .args(["logits", "--data", &data, "--teacher", &teacher, "--out", &out])
            .output()
            .expect("it runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
    assert_eq!(bench.files("l"), ["logits-00000-of-00002.safetensors", "logits-00001-of-00002.safetensors"]);
    bench.distil("student", &["--teacher-logits", &out]);
}

#[test]
fn top_k_and_half_precision() {
    let bench = Bench::new();
    let teacher = bench.teacher("teacher", &[]);
    let report = bench.logits(&teacher, "k", &["--top-k", "2", "--temperature", "4"]);
    let number = |name: &str| report[name].as_f64().expect("a number");
    // One class is left out: its whole mass is known, and its divergence is none.
    assert!(number("top_k_bound").abs() < 1e-9 && number("top_k_divergence").abs() < 1e-9);
    let report = bench.logits(&teacher, "k1", &["--top-k", "1", "--temperature", "4"]);
    let (bound, divergence) = (report["top_k_bound"].as_f64(), report["top_k_divergence"].as_f64());
    assert!(divergence > Some(0.0) && divergence <= bound, "{divergence:?} {bound:?}");
    bench.distil("student", &["--teacher-logits", &bench.text("k"), "--temperature", "4"]);
    let (data, k, out) = (bench.text("data"), bench.text("k"), bench.text("gone"));
    let args = [
        "distill",
        "--data",
        &data,
        "--layers",
        "7,5,3",
        "--teacher-logits",
        &k,
        "--temperature",
        "2",
        "--out",
        &out,
    ];
    fails(&args, 4, &["top_k.temperature", "right at one temperature only"]);

    bench.logits(&teacher, "half", &["--dtype", "f16"]);
    bench.logits(&teacher, "full", &[]);
    let size = |folder: &str| -> u64 {
        bench
            .files(folder)
            .iter()
            .map(|f| fs::metadata(bench.path(folder).join(f)).expect("a file").len())
            .sum()
    };
    // 450 numbers of two bytes less; the headers differ by padding.
    assert!((size("full") - size("half")).abs_diff(900) <= 8, "{} {}", size("full"), size("half"));
    let (half, full) = (bench.text("half"), bench.text("full"));
    let loss = |source: &str| bench.distil("student", &["--teacher-logits", source])["test"]["nll"].as_f64();
    let (a, b) = (loss(&half).expect("nll"), loss(&full).expect("nll"));
    assert!((a - b).abs() < 1e-2, "{a} {b}");
}

/// Any model may teach: a matrix in row order, whatever computed it.
#[test]
fn logits_of_someone_else() {
    let bench = Bench::new();
    let matrix = |rows: usize, value: f32| -> Vec<u8> {
        (0..rows * 3).flat_map(|i| if i % 3 == i / 3 % 3 { value } else { 0.0 }.to_le_bytes()).collect()
    };
    bench.npy("forest.npy", "<f4", &format!("({ROWS}, 3)"), &matrix(ROWS, 6.0));
    let forest = bench.text("forest.npy");
    let result = bench
        .distil("student", &["--teacher-logits", &forest, "--alpha", "0", "--steps", "200", "--lr", "0.01"]);
    assert_eq!(
        result["test"]["errors"].as_u64(),
        Some(0),
        "the classes are easy, and only logits teach: {result}"
    );

    let (data, out) = (bench.text("data"), bench.text("gone"));
    let refused = |code, words: &[&str]| {
        let args =
            ["distill", "--data", &data, "--layers", "7,5,3", "--teacher-logits", &forest, "--out", &out];
        fails(&args, code, words);
        assert!(!bench.path("gone").exists(), "nothing half-written");
    };
    bench.npy("forest.npy", "<f4", "(149, 3)", &matrix(149, 6.0));
    refused(4, &["150 rows of 3 logits", "149 rows"]);
    bench.npy("forest.npy", "<f4", "(150, 3)", &matrix(ROWS, f32::NAN));
    refused(4, &["row 0, feature 0", "NaN"]);
    bench.npy("forest.npy", "<f4", "(450,)", &matrix(ROWS, 1.0));
    refused(4, &["[rows, columns]", "[450]"]);
    fs::write(bench.path("forest.npy"), b"PK\x03\x04").expect("written");
    refused(4, &["forest.npy"]);
}

/// The transfer set lies behind the training rows in the logits, and in the rows, wherever these are kept.
#[test]
fn transfer_sets_have_logits_too() {
    let bench = Bench::new();
    let teacher = bench.teacher("teacher", &[]);
    bench.rows("more.npy", 61, 77);
    let more = bench.text("more.npy");
    bench.logits(&teacher, "joint", &["--transfer", &more, "--shards", "3"]);
    bench.logits(&teacher, "train", &[]);
    let (joint, train) = (bench.text("joint"), bench.text("train"));
    let run = |source: [&str; 2], with: &[&str]| {
        hash(&bench.distil("student", &[&source, ["--transfer", &more].as_slice(), with].concat()))
    };
    for with in
        [&[] as &[&str], &["--validation", "0.2", "--label-fraction", "0.3"], &["--drop-classes", "2"]]
    {
        let live = run(["--teacher", &teacher], with);
        assert_eq!(live, run(["--teacher-logits", &joint], with), "{with:?}");
        let streamed = [with, &["--device-memory", "1024"]].concat();
        assert_eq!(live, run(["--teacher-logits", &joint], &streamed), "{with:?}, streamed");
    }
    let (data, out) = (bench.text("data"), bench.text("gone"));
    let refused = |logits: &str, transfer: &[&str]| {
        let args =
            ["distill", "--data", &data, "--layers", "7,5,3", "--out", &out, "--teacher-logits", logits];
        fails(&[&args, transfer].concat(), 4, &["data_sha256", "with the same --data and --transfer"]);
    };
    refused(&train, &["--transfer", &more]);
    refused(&joint, &[]);
    let args = ["logits", "--data", &data, "--teacher", &teacher, "--out", &out, "--transfer", &more];
    fails(&[&args[..], &["--split", "test"]].concat(), 2, &["--transfer", "test"]);
}
