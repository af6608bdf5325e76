//! `limbeck repair-bias`

use std::path::PathBuf;

use clap::ValueEnum;

use crate::cli::common::{DeviceArgs, FormArgs, refuse_existing};
use crate::cli::data::DataArgs;
use crate::cli::eval::{check_fit, outputs};
use crate::cli::logits::Part;
use crate::cli::teachers::ForeignArgs;
use crate::data::{Dataset, UNLABELLED};
use crate::error::{Error, Result};
use crate::mlp::repair::Repair;
use crate::reference::Matrix;
use crate::report::quality::{ClassQuality, Quality};
use crate::report::table::render;

/// Repairs the output biases of a network that learned without some classes, or with too few of them:
/// so that the mean probability of each class is its share of the rows (which is also the least
/// cross-entropy), or by given amounts.
///
/// Hinton, Vinyals and Dean (2015) raised the bias of a student that had never seen a 3.
///
/// Example: limbeck repair-bias --model student/student.safetensors --data mnist --repair 3 --out repaired.safetensors
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    foreign: ForeignArgs,
    /// The network, a safetensors file.
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    /// The repaired network, a safetensors file.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Whose biases to change, by number or name [default: all].
    #[arg(long, value_delimiter = ',', value_name = "CLASS,...")]
    repair: Vec<String>,
    /// What the mean probabilities are to become.
    #[arg(long, value_enum, default_value = "labels")]
    prior: Prior,
    /// Add this to the bias of a class, instead of matching a prior. Repeatable.
    #[arg(long, value_name = "CLASS:AMOUNT", conflicts_with_all = ["repair", "prior"], allow_negative_numbers = true)]
    add: Vec<String>,
    /// The rows to match on: the training rows, or a validation set. On test rows their errors say no more.
    #[arg(long, value_enum, default_value = "train")]
    split: Part,
    #[command(flatten)]
    form: FormArgs,
    /// Overwrite --out.
    #[arg(long)]
    force: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Prior {
    /// Each class's share of the rows' labels.
    Labels,
    /// The same for every class.
    Uniform,
}

pub fn run(args: &Args) -> Result<()> {
    refuse_existing("--out", &args.out, args.force)?;
    let mut model = args.foreign.load(&args.model)?;
    let rows = args.split.of(args.data.load(false)?)?;
    let rows = match &model.class_names {
        Some(names) if rows.labels.is_some() => rows.with_class_names(names)?,
        _ => rows,
    };
    let k = check_fit(&args.model, &model, &rows)?;
    let names = model.class_names.clone().or_else(|| rows.class_names.clone());
    let name = |c: usize| names.as_ref().and_then(|n| n.get(c).cloned()).unwrap_or_else(|| c.to_string());
    let class = |option: &str, text: &str| -> Result<usize> {
        let named = (0..k).find(|c| name(*c) == text.trim());
        let numbered = || text.trim().parse().ok().filter(|c| *c < k);
        let expected = || format!("a class, by name or number from 0 to {}", k - 1);
        named.or_else(numbered).ok_or_else(|| Error::usage(option, expected(), format!("`{text}`")))
    };
    let chosen = match args.repair.is_empty() {
        true => (0..k).collect(),
        false => args.repair.iter().map(|c| class("--repair", c)).collect::<Result<Vec<_>>>()?,
    };
    let mut added = vec![0.0; k];
    for text in &args.add {
        let wrong = || Error::usage("--add", "CLASS:AMOUNT, such as 3:3.5", format!("`{text}`"));
        let (which, amount) = text.rsplit_once(':').ok_or_else(wrong)?;
        let amount: f64 = amount.parse().ok().filter(|a: &f64| a.is_finite()).ok_or_else(wrong)?;
        added[class("--add", which)?] += amount;
    }

    let gpu = args.device.open(args.json)?;
    let z = outputs(&gpu, &args.data, &args.model, &model, &rows)?;
    let before = seen(&z, &rows)?;
    let repair = match (args.add.is_empty(), args.prior) {
        (false, _) => Repair::by(&z, added),
        (true, Prior::Labels) => {
            let known = before.as_ref().ok_or_else(|| {
                Error::usage("--prior labels", "rows with labels", "none").with_hint("try --prior uniform")
            })?;
            let share = |c: &ClassQuality| c.rows as f64 / known.rows as f64;
            Repair::to_prior(&z, &chosen, &known.classes.iter().map(share).collect::<Vec<_>>())?
        }
        (true, Prior::Uniform) => Repair::to_prior(&z, &chosen, &vec![1.0 / k as f64; k])?,
    };
    let seen = [before, seen(&repair.apply(&z), &rows)?];
    if let Some(last) = model.weights.layers.last_mut() {
        last.bias.iter_mut().zip(&repair.offsets).for_each(|(b, add)| *b = (f64::from(*b) + add) as f32);
    }
    model.save(&args.out, args.form.options())?;
    if args.json {
        println!(
            "{}",
            serde_json::json!({
                "schema_version": 1,
                "model": args.out,
                "rows": args.split.name(),
                "repair": repair,
                "before": seen[0],
                "after": seen[1],
            })
        );
        return Ok(());
    }
    print(args, &repair, &seen, name);
    Ok(())
}

fn print(args: &Args, repair: &Repair, seen: &[Option<Quality>; 2], name: impl Fn(usize) -> String) {
    let percent = |x: f64| format!("{:.2} %", 100.0 * x);
    let recall =
        |seen: &Option<Quality>, c: usize| seen.as_ref().and_then(|s| s.classes[c].recall).map(percent);
    let changed = (0..repair.offsets.len()).filter(|c| repair.offsets[*c].abs() > 0.0);
    let line = |c: usize| {
        vec![
            name(c),
            format!("{:+.3}", repair.offsets[c]),
            percent(repair.before[c]),
            percent(repair.after[c]),
            recall(&seen[0], c).unwrap_or_default(),
            recall(&seen[1], c).unwrap_or_default(),
        ]
    };
    let titles =
        ["class", "bias", "mean before", "after", "recall before", "after"].map(str::to_owned).to_vec();
    let table: Vec<Vec<String>> = [titles].into_iter().chain(changed.map(line)).collect();
    print!("{}", render(&table));
    if let [Some(before), Some(after)] = seen {
        let rows = before.rows;
        println!(
            "{} errors before, {} after, of {rows} {} rows",
            before.errors,
            after.errors,
            args.split.name()
        );
    }
    println!("{}", args.out.display());
}

/// What the labels say of the logits, where there are labels.
fn seen(z: &Matrix, rows: &Dataset) -> Result<Option<Quality>> {
    let labels = rows.labels.as_ref().filter(|labels| labels.iter().any(|l| *l != UNLABELLED));
    labels.map(|labels| Quality::of(z, labels, rows.class_names.as_deref())).transpose()
}
