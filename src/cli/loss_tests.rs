//! Presets and options of the loss.

use clap::Parser;

use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    loss: LossArgs,
}

fn loss(line: &str) -> Result<Loss> {
    let words = std::iter::once("x").chain(line.split_whitespace());
    Line::try_parse_from(words).expect(line).loss.loss(10, true)
}

fn text(line: &str) -> String {
    loss(line).expect(line).to_string()
}

#[test]
fn presets_are_canonical_options() {
    let table = [
        ("", "--loss forward-kl --temperature 4 --hard-weight 0.1 --soft-weight 0.9"),
        (
            "--preset keras",
            "--loss forward-kl --clip 1e-7 --temperature 10 --hard-weight 0.1 --soft-weight 0.9",
        ),
        (
            "--preset keras-2020",
            "--loss forward-kl --clip 1e-7 --temperature 10 --hard-weight 0.1 --soft-weight 0.009000000000000001",
        ),
        ("--preset hinton", "--loss forward-kl --temperature 20 --hard-weight 0.5 --soft-weight 1"),
        (
            "--preset torchdistill --temperature 4",
            "--loss forward-kl --temperature 4 --hard-weight 0.5 --soft-weight 0.5",
        ),
        (
            "--preset torchdistill --temperature 4 --hard-weight 0",
            "--loss forward-kl --temperature 4 --hard-weight 0 --soft-weight 0.0625",
        ),
        (
            "--preset torchdistill --temperature 4 --alpha 0",
            "--loss forward-kl --temperature 4 --hard-weight 0 --soft-weight 0.0625",
        ),
        (
            "--preset mdistiller-dkd",
            "--loss dkd --dkd-alpha 1 --dkd-beta 8 --temperature 4 --hard-weight 1 --soft-weight 1",
        ),
        ("--preset torchtune", "--loss forward-kl --temperature 1 --hard-weight 0.5 --soft-weight 0.5"),
        (
            "--preset trl --temperature 2",
            "--loss jsd --loss-beta 0.5 --temperature 2 --hard-weight 0 --soft-weight 0.25",
        ),
        ("--preset deit", "--loss forward-kl --temperature 1 --hard-weight 0.5 --soft-weight 0.05"),
    ];
    for (line, canonical) in table {
        assert_eq!(text(line), canonical, "{line}");
        // What is printed asks for the same loss.
        assert_eq!(loss(canonical).expect(canonical), loss(line).expect(line), "{line}");
    }
}

#[test]
fn options_override_their_preset() {
    assert!(text("--preset keras --clip 0").starts_with("--loss forward-kl --temperature"));
    assert!(text("--preset keras --loss reverse-kl").starts_with("--loss reverse-kl"));
    assert!(text("--preset trl --loss-beta 0.1").starts_with("--loss jsd --loss-beta 0.1 "));
    assert!(
        text("--preset keras-2020 --temperature 2 --alpha 0.2")
            .ends_with("--hard-weight 0.2 --soft-weight 0.2")
    );
    assert!(text("--preset deit --soft-weight 3").ends_with("--hard-weight 0.5 --soft-weight 3"));
    assert!(text("--preset hinton --standardise-logits").contains("--standardise-logits"));
}

#[test]
fn what_does_not_fit_is_refused() {
    for (line, word) in [
        ("--hard-weight 1", "both or neither"),
        ("--alpha 2", "from 0 to 1"),
        ("--loss mse --loss-beta 0.5", "--loss-beta"),
        ("--loss dkd --clip 1e-7", "--clip"),
        ("--loss jsd --loss-beta 1", "beta of JSD"),
        ("--loss sigmoid --standardise-logits", "compares softmaxes"),
        ("--preset trl --temperature-schedule linear:1", "does not depend on T"),
    ] {
        let error = loss(line).expect_err(line).to_string();
        assert!(error.contains(word), "{line}: {error}");
    }
}
