//! CSV from the command line: which column is the label, whether there is a header, and what classes are
//! called from the table to the predictions.

use std::fs;

use crate::bench::{Bench, binary, fails, json};

const NAMES: [&str; 3] = ["ant", "bee, the", "cat"];

/// A table of 60 rows in three easy classes: two numbers, the label in the given column.
fn table(header: Option<&str>, label_at: usize, label: impl Fn(usize) -> String, delimiter: char) -> String {
    let mut text = header.map(|h| format!("{h}\n")).unwrap_or_default();
    for i in 0..60 {
        let noise = (i * 7 % 10) as f64 / 20.0;
        let x = [[0.0, 2.0], [2.0, 0.0], [-2.0, -2.0]][i % 3].map(|v| format!("{}", v + noise));
        let mut cells = x.to_vec();
        cells.insert(label_at, label(i % 3));
        text += &cells.join(&delimiter.to_string());
        text.push('\n');
    }
    text
}

fn quoted(class: usize) -> String {
    format!("\"{}\"", NAMES[class])
}

fn train(bench: &Bench, data: &str, more: &[&str]) -> serde_json::Value {
    let (data, out) = (bench.text(data), bench.text("out"));
    let mut args = vec!["train", "--data", &data, "--layers", "2,3", "--epochs", "40", "--batch-size", "10"];
    args.extend(["--lr", "0.05", "--force", "--json", "--out", &out]);
    args.extend(more);
    json(&args)
}

fn eval(bench: &Bench, data: &str, more: &[&str]) -> serde_json::Value {
    let (data, model) = (bench.text(data), bench.text("out/model.safetensors"));
    let mut args = vec!["eval", "--data", &data, "--model", &model, "--split", "train", "--json"];
    args.extend(more);
    json(&args)["evaluation"].take()
}

#[test]
fn the_label_column_is_found_or_named() {
    let bench = Bench::new();
    let number = |class: usize| class.to_string();
    for (text, options) in [
        (table(Some("a,b,label"), 2, number, ','), &[] as &[&str]),
        (table(Some("Class;a;b"), 0, number, ';'), &[]),
        (table(Some("a,kind,b"), 1, number, ','), &["--label-column", "kind"]),
        (table(None, 1, number, '\t'), &["--label-column", "1"]),
        (table(None, 1, number, ','), &["--label-column", "-2"]),
        (table(None, 2, number, ','), &["--header", "no"]),
        // A header of numbers has to be told.
        (table(Some("0,1,2"), 2, number, ','), &["--header", "yes"]),
    ] {
        fs::write(bench.path("a.csv"), &text).expect("written");
        train(&bench, "a.csv", options);
        let seen = eval(&bench, "a.csv", options);
        assert_eq!((seen["rows"].as_u64(), seen["errors"].as_u64()), (Some(60), Some(0)), "{options:?}");
    }
    let (data, out) = (bench.text("a.csv"), bench.text("gone"));
    let refused = |more: &[&str], words: &[&str]| {
        let mut args = vec!["train", "--data", &data, "--layers", "2,3", "--out", &out];
        args.extend(more);
        fails(&args, 4, words);
        assert!(!bench.path("gone").exists(), "nothing half-written");
    };
    refused(&["--label-column", "kind"], &["header", "a column `kind`"]);
    refused(&["--label-column", "3"], &["label column", "one of 3 columns"]);
    fs::write(bench.path("a.csv"), table(Some("a,b,label"), 2, quoted, ',')).expect("written");
    refused(&["--header", "no"], &["line 1, column 0", "`a`"]);
    refused(&["--label-column", "a"], &["line 2, column 2 (`label`)", "`ant`"]);
}

#[test]
fn classes_keep_their_names() {
    let bench = Bench::new();
    fs::write(bench.path("a.csv"), table(Some("a,b,label"), 2, quoted, ',')).expect("written");
    train(&bench, "a.csv", &[]);
    let file = fs::read(bench.path("out/model.safetensors")).expect("the model");
    let (_, header) = safetensors::SafeTensors::read_metadata(&file).expect("safetensors");
    let names = header.metadata().as_ref().and_then(|m| m.get("class_names")).expect("names");
    assert_eq!(serde_json::from_str::<Vec<String>>(names).expect("JSON"), NAMES);

    // Predictions of rows without labels are called by the model's names.
    fs::write(bench.path("new.csv"), "0,2,x\n2,0,x\n-2,-2,y\n").expect("written");
    let (model, out) = (bench.text("out/model.safetensors"), bench.text("p.csv"));
    let args = ["predict", "--data", &bench.text("new.csv"), "--model", &model, "--out", &out];
    let done = binary().args(args).output().expect("it runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let text = fs::read_to_string(&out).expect("probabilities");
    let starts: Vec<String> = text.lines().map(|l| l.chars().take(20).collect()).collect();
    assert_eq!(text.lines().next(), Some("prediction,ant,\"bee, the\",cat"));
    assert!(starts[1].starts_with("ant,0.9") && starts[2].starts_with("\"bee, the\",0.0"), "{text}");
    assert!(starts[3].starts_with("cat,0.0"), "{text}");

    // A table that has only some of the classes numbers them otherwise: they are told apart by name.
    let some = |wanted: &[usize]| -> String {
        let text = table(None, 2, quoted, ',');
        let kept = text.lines().enumerate().filter(|(i, _)| wanted.contains(&(i % 3)));
        kept.map(|(_, line)| format!("{line}\n")).collect()
    };
    fs::write(bench.path("some.csv"), some(&[1, 2])).expect("written");
    let seen = eval(&bench, "some.csv", &[]);
    assert_eq!((seen["rows"].as_u64(), seen["errors"].as_u64()), (Some(40), Some(0)));
    let data = bench.text("some.csv");
    fs::write(bench.path("some.csv"), some(&[1, 2]).replace("cat", "dog")).expect("written");
    fails(
        &["eval", "--data", &data, "--model", &model, "--split", "train"],
        4,
        &["a class that the network knows, such as `ant`", "`dog`"],
    );
    // As a teacher it would teach other classes.
    let gone = bench.text("gone");
    let distill = ["distill", "--data", &data, "--teacher", &model, "--layers", "2,3", "--out", &gone];
    fails(&distill, 4, &["class names", "bee, the, dog"]);
    let logits = ["logits", "--data", &data, "--teacher", &model, "--out", &gone];
    fails(&logits, 4, &["class names", "bee, the, dog"]);
    assert!(!bench.path("gone").exists(), "nothing half-written");
}
