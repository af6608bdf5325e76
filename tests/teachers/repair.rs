//! Losses on hidden layers, and the repair of biases, from the command line.

use crate::bench::{Bench, fails, hash, json};

#[test]
fn hints_and_similarity_change_the_student_and_are_not_part_of_it() {
    let bench = Bench::new();
    let teacher = bench.teacher("teacher", &[]);
    let plain = bench.distil("plain", &["--teacher", &teacher]);
    let mut hashes = vec![hash(&plain)];
    for options in [["--hint", "1:1"], ["--hint", "1:1:0.25"], ["--similarity", "1:1:300"]] {
        let words = [&["--teacher", &teacher], options.as_slice()].concat();
        let student = bench.distil("student", &words);
        assert_eq!(student["parameters"], plain["parameters"], "no regressor in the export");
        let text = std::fs::read_to_string(bench.path("student/metrics.jsonl")).expect("metrics");
        let line: serde_json::Value =
            serde_json::from_str(text.lines().next().expect("a line")).expect("an object");
        assert!(line["feature_loss"].as_f64().is_some_and(|l| l > 0.0), "{line}");
        hashes.push(hash(&student));
    }
    hashes.sort();
    hashes.dedup();
    assert_eq!(hashes.len(), 4, "each has its effect");
    for (layers, words) in
        [("1", "STUDENT:TEACHER"), ("0:1", "STUDENT:TEACHER"), ("1:1:-1", "STUDENT:TEACHER")]
    {
        let (data, out) = (bench.text("data"), bench.text("none"));
        let hint = ["--teacher", &teacher, "--hint", layers, "--out", &out];
        fails(&[&["distill", "--data", &data, "--layers", "7,5,3"], hint.as_slice()].concat(), 2, &[words]);
    }
    let (data, out) = (bench.text("data"), bench.text("none"));
    let hint = ["--teacher", &teacher, "--hint", "1:4", "--out", &out];
    fails(
        &[&["distill", "--data", &data, "--layers", "7,5,3"], hint.as_slice()].concat(),
        2,
        &["teacher's hidden layer"],
    );
}

#[test]
fn a_student_that_never_saw_a_class_is_repaired() {
    let bench = Bench::new();
    let teacher = bench.teacher("teacher", &[]);
    let alone = ["--teacher", &teacher, "--drop-classes", "1", "--hard-weight", "0", "--soft-weight", "1"];
    bench.distil("student", &alone);
    let (data, model, out) =
        (bench.text("data"), bench.text("student/student.safetensors"), bench.text("r.safetensors"));
    let repair = |more: &[&str]| {
        let all = ["repair-bias", "--data", &data, "--model", &model, "--out", &out, "--force", "--json"];
        json(&[&all, more].concat())
    };
    let own = repair(&["--repair", "1"]);
    let number = |v: &serde_json::Value| v.as_f64().expect("a number");
    assert!((number(&own["repair"]["after"][1]) - 1.0 / 3.0).abs() < 1e-5, "{own}");
    assert!(
        number(&own["repair"]["before"][1]) < 1.0 / 3.0 && number(&own["repair"]["offsets"][1]) > 0.0,
        "{own}"
    );
    assert!(
        number(&own["after"]["classes"][1]["recall"]) >= number(&own["before"]["classes"][1]["recall"]),
        "{own}"
    );
    assert_eq!(own["repair"]["offsets"][0], 0.0);
    // The file is the network that the report is of: its own mean is the prior already.
    let again = ["repair-bias", "--data", &data, "--model", &out, "--repair", "1", "--json"];
    let other = bench.text("again.safetensors");
    let again = json(&[&again, ["--out", &other].as_slice()].concat());
    assert!(number(&again["repair"]["offsets"][1]).abs() < 1e-4, "{again}");
    assert_eq!(again["before"]["errors"], own["after"]["errors"]);

    let given = repair(&["--add", "1:2.5", "--add", "0:-1"]);
    assert_eq!(given["repair"]["offsets"], serde_json::json!([-1.0, 2.5, 0.0]));
    let uniform = repair(&["--prior", "uniform", "--split", "test"]);
    assert!((number(&uniform["repair"]["after"][2]) - 1.0 / 3.0).abs() < 1e-5, "{uniform}");

    let base = ["repair-bias", "--data", &data, "--model", &model, "--out", &other];
    fails(&base, 2, &["--force"]);
    for (more, words) in
        [(["--repair", "7"], "a class"), (["--add", "1"], "CLASS:AMOUNT"), (["--add", "9:1"], "a class")]
    {
        fails(&[base.as_slice(), &["--force"], &more].concat(), 2, &[words]);
    }
}
