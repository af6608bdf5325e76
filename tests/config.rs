//! Options from files: what wins over what, what is refused, and that a run's own file makes it again.

use std::fs;
use std::path::Path;
use std::process::Output;

use assert_cmd::Command;

fn limbeck(args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::cargo_bin("limbeck").expect("the binary is built");
    command.env_remove("WGPU_ADAPTER_NAME").env_remove("WGPU_BACKEND");
    let out = command.args(args).envs(env.iter().copied()).output().expect("it runs");
    assert!(!String::from_utf8_lossy(&out.stderr).contains("panicked"), "{args:?}: {out:?}");
    out
}

/// What a good call prints.
fn said(args: &[&str], env: &[(&str, &str)]) -> String {
    let out = limbeck(args, env);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("UTF-8")
}

fn refused(args: &[&str], code: i32, words: &[&str]) {
    let out = limbeck(args, &[]);
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(code), "{args:?}: {stderr}");
    for word in words {
        assert!(stderr.contains(word), "{args:?}: `{word}` is not in: {stderr}");
    }
}

fn file(dir: &Path, text: &str) -> String {
    let path = dir.join("run.toml");
    fs::write(&path, text).expect("written");
    path.to_str().expect("UTF-8").to_owned()
}

fn shown(args: &[&str], env: &[(&str, &str)]) -> toml::Table {
    let all: Vec<&str> = ["config", "show"].iter().chain(args).copied().collect();
    said(&all, env).parse().expect("TOML")
}

fn is(table: &toml::Table, key: &str, value: &str) {
    assert_eq!(table.get(key).map(ToString::to_string).as_deref(), Some(value), "{key} of {table}");
}

#[test]
fn without_a_file_the_defaults_are_shown() {
    let table = shown(&[], &[]);
    is(&table, "command", "\"distill\"");
    is(&table, "batch_size", "128");
    is(&table, "lr", "0.001");
    is(&table, "nesterov", "false");
    for absent in ["layers", "alpha", "force", "json", "config", "help"] {
        assert!(!table.contains_key(absent), "{absent}");
    }
    is(&shown(&["--for", "train"], &[]), "command", "\"train\"");
}

#[test]
fn command_line_wins_over_environment_over_file_over_default() {
    let dir = tempfile::tempdir().expect("a folder");
    let path =
        file(dir.path(), "lr = 0.5\nbatch-size = 32\nadapter = 7\nepsilon = 1e-7\nlayers = [4, 5, 3]\n");
    let table = shown(&[&path, "--", "--lr", "0.25"], &[("WGPU_ADAPTER_NAME", "card")]);
    is(&table, "lr", "0.25");
    is(&table, "batch_size", "32");
    is(&table, "adapter", "\"card\"");
    is(&table, "weight_decay", "0.0");
    is(&table, "layers", "[4, 5, 3]");
    assert_eq!(table["epsilon"].as_float().map(f64::to_bits), Some(1e-7_f64.to_bits()));
    is(&shown(&[&path], &[]), "adapter", "\"7\"");
}

#[test]
fn an_option_of_the_command_line_drives_out_what_contradicts_it_in_the_file() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = file(dir.path(), "epochs = 3\nhard_weight = 1.0\nsoft_weight = 2.0\nnesterov = true\n");
    let table = shown(&[&path, "--", "--steps", "9", "--alpha", "0.5"], &[]);
    is(&table, "steps", "9");
    is(&table, "alpha", "0.5");
    is(&table, "nesterov", "true");
    assert!(!["epochs", "hard_weight", "soft_weight"].iter().any(|k| table.contains_key(*k)), "{table}");
    let path = file(dir.path(), "epochs = 3\nalpha = 0.5\n");
    let table = shown(&[&path, "--", "--hard-weight", "1", "--soft-weight", "2"], &[]);
    assert!(table.contains_key("epochs") && !table.contains_key("alpha"), "{table}");
}

#[test]
fn a_bad_file_is_refused_with_the_place() {
    let dir = tempfile::tempdir().expect("a folder");
    let check = |text: &str, words: &[&str]| {
        let path = file(dir.path(), text);
        refused(&["config", "check", &path], 2, words);
        refused(&["distill", "--config", &path], 2, words);
    };
    check("temprature = 4\n", &["run.toml", "`temprature`", "did you mean `temperature`?"]);
    check("xyzzy = 4\n", &["`xyzzy`", "config show"]);
    check("force = true\n", &["`force`", "command line"]);
    check("lr = true\n", &["`lr`", "text or a number", "true"]);
    check("nesterov = 1\n", &["`nesterov`", "true or false"]);
    check("[training]\nlr = 1\n", &["`training`"]);
    check("lr = 0.1\nlr = = 2\n", &["line 2", "TOML"]);
    let path = file(dir.path(), "command = \"train\"\n");
    refused(&["distill", "--config", &path], 2, &["key `command`", "distill", "train"]);
    refused(&["config", "check", dir.path().join("none").to_str().expect("UTF-8")], 4, &["cannot read"]);
    // What clap and the command refuse.
    for (text, words) in [
        ("lr = \"fast\"\n", ["lr", "fast"]),
        ("epochs = 1\nsteps = 1\n", ["--epochs", "--steps"]),
        (
            "layers = [4, 3]\ndata = \"d\"\nteacher = [\"t\"]\nout = \"o\"\ntemperature = 0\n",
            ["temperature", "above 0"],
        ),
    ] {
        refused(&["config", "check", &file(dir.path(), text)], 2, &words);
    }
}

#[test]
fn a_good_file_says_what_it_leaves_open() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = file(dir.path(), "command = \"train\"\nlr = 0.1\n");
    let text = said(&["config", "check", &path], &[]);
    assert!(text.contains("limbeck train") && text.contains("--layers") && text.contains("--out"), "{text}");
}

#[test]
fn the_file_of_a_run_makes_the_run_again() {
    let dir = tempfile::tempdir().expect("a folder");
    let csv: String = (0..60).map(|i| format!("{},{},{}\n", i % 7, i % 3, i % 2)).collect();
    fs::write(dir.path().join("d.csv"), csv).expect("written");
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    let text = |p: &Path| p.to_str().expect("UTF-8").to_owned();
    let hash = |args: &[&str]| {
        let json: serde_json::Value = serde_json::from_str(&said(args, &[])).expect("JSON");
        json["weights_sha256"].as_str().expect("a hash").to_owned()
    };
    let data = text(&dir.path().join("d.csv"));
    let first = hash(&[
        "train",
        "--data",
        &data,
        "--layers",
        "2,5,2",
        "--steps",
        "7",
        "--lr",
        "0.031",
        "--seed",
        "11",
        "--optimizer",
        "sgd",
        "--nesterov",
        "--batch-size",
        "16",
        "--json",
        "--out",
        &text(&a),
    ]);
    let config = text(&a.join("config.toml"));
    let again = hash(&["train", "--config", &config, "--json", "--out", &text(&b)]);
    assert_eq!(first, again);
    let other =
        hash(&["train", "--config", &config, "--json", "--force", "--seed", "12", "--out", &text(&b)]);
    assert_ne!(first, other);
    let (one, two) = (shown(&[&config], &[]), shown(&[&text(&b.join("config.toml"))], &[]));
    let differing: Vec<&String> = one.keys().filter(|k| one.get(*k) != two.get(*k)).collect();
    assert_eq!(differing, ["out", "seed"]);
}
