//! What a sweep says: means of each cell, the best by validation, and the files.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::cli::common::FormArgs;
use crate::cli::grid::{Axis, Grid, Value, layers_text, number_text};
use crate::cli::job::Evaluation;
use crate::cli::sweep::together::Cell;
use crate::cli::sweep::{FILES, Student};
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::mlp::weights::{Model, write_atomically};
use crate::report::stats::Estimate;
use crate::report::table::render;

/// The widest bar.
const BAR: f64 = 12.0;

/// `1 run`, `2 runs`
fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// The students of a cell on one part of the data.
#[derive(Serialize)]
struct Arm {
    errors: Estimate,
    nll: Estimate,
    /// With the teacher, where it can be run on these rows.
    agreement: Option<Estimate>,
}

impl Arm {
    fn of(seen: &[&Evaluation]) -> Option<Self> {
        let estimate =
            |of: &dyn Fn(&Evaluation) -> f64| Estimate::of(&seen.iter().map(|e| of(e)).collect::<Vec<_>>());
        let agreed: Option<Vec<f64>> = seen.iter().map(|e| e.agreement).collect();
        (!seen.is_empty()).then(|| Self {
            errors: estimate(&|e| e.errors as f64),
            nll: estimate(&|e| e.nll),
            agreement: agreed.map(|a| Estimate::of(&a)),
        })
    }
}

/// A point of the grid: its settings and what its students come to.
#[derive(Serialize)]
struct Line {
    settings: serde_json::Map<String, serde_json::Value>,
    layers: Vec<usize>,
    parameters: usize,
    lr: f64,
    /// The options that ask for its loss.
    loss: String,
    /// Students whose numbers did not stay finite; means are of the others.
    diverged: usize,
    validation: Option<Arm>,
    test: Option<Arm>,
}

#[derive(Serialize)]
struct StudentLine {
    /// Its place in `cells`.
    cell: usize,
    seed: u64,
    steps: u64,
    diverged_at: Option<u64>,
    validation: Option<Evaluation>,
    test: Option<Evaluation>,
    weights_sha256: String,
}

#[derive(Serialize)]
struct Best {
    cell: usize,
    seed: u64,
    /// The options of `limbeck distill` that differ from cell to cell, and the rest of the loss.
    options: String,
    model: PathBuf,
}

#[derive(Serialize)]
pub struct Report {
    schema_version: u32,
    adapter: String,
    keys: Vec<&'static str>,
    seeds: Vec<u64>,
    runs: usize,
    steps: u64,
    seconds: f64,
    validation_rows: Option<usize>,
    test_rows: Option<usize>,
    chosen_by: &'static str,
    best: Option<Best>,
    cells: Vec<Line>,
    students: Vec<StudentLine>,
}

/// The best student of the best cell by validation; none without validation rows, or where every cell has
/// a student that diverged.
///
/// A cell's students make as many errors as all of them together, then their mean NLL counts: with as many
/// students in each, the fewest errors on the mean.
pub fn choose(cells: &[Cell<'_>], students: &[Student]) -> Option<usize> {
    let score = |cell: usize| {
        let own = students.iter().filter(|student| student.place.0 == cell);
        let seen: Option<Vec<&Evaluation>> = own.map(|student| student.validation.as_ref()).collect();
        let seen = seen.filter(|seen| !seen.is_empty())?;
        let nll = seen.iter().map(|e| e.nll).sum::<f64>() / seen.len() as f64;
        Some((seen.iter().map(|e| e.errors).sum::<usize>(), nll))
    };
    let better = |a: &(usize, f64), b: &(usize, f64)| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1));
    let scored = (0..cells.len()).filter_map(|cell| Some((cell, score(cell)?)));
    let (cell, _) = scored.min_by(|a, b| better(&a.1, &b.1))?;
    let own = (0..students.len()).filter(|i| students[*i].place.0 == cell);
    let scored = own.filter_map(|i| students[i].validation.as_ref().map(|e| (i, (e.errors, e.nll))));
    scored.min_by(|a, b| better(&a.1, &b.1)).map(|(i, _)| i)
}

/// Writes a student as `distill` does.
pub fn save(path: &Path, student: &Student, train: &Dataset, form: &FormArgs) -> Result<()> {
    Model::trained_on(train, student.weights.clone()).save(path, form.options())
}

fn line(grid: &Grid, number: usize, cell: &Cell<'_>, students: &[Student]) -> Line {
    let own = || students.iter().filter(move |student| student.place.0 == number);
    let arm =
        |part: fn(&Student) -> Option<&Evaluation>| Arm::of(&own().filter_map(part).collect::<Vec<_>>());
    let setting = |(axis, value): (&Axis, &&Value)| (axis.key.to_owned(), serde_json::json!(value));
    Line {
        settings: grid.axes.iter().zip(&cell.values).map(setting).collect(),
        layers: cell.layers.clone(),
        parameters: cell.parameters(),
        lr: cell.lr,
        loss: cell.loss.to_string(),
        diverged: own().filter(|student| student.diverged.is_some()).count(),
        validation: arm(|student| student.validation.as_ref()),
        test: arm(|student| student.test.as_ref()),
    }
}

impl Report {
    /// Of the students in the order of the grid, the one numbered `chosen` being the best.
    pub fn of(
        gpu: &Gpu,
        grid: &Grid,
        cells: &[Cell<'_>],
        students: &[Student],
        runs: usize,
        seconds: f64,
        chosen: Option<usize>,
    ) -> Self {
        let best = chosen.map(|i| {
            let (cell, seed) = students[i].place;
            let layers = cells[cell].layers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
            let Cell { lr, loss, .. } = &cells[cell];
            let options = format!("--layers {layers} {loss} --lr {} --seed {seed}", number_text(*lr));
            Best { cell, seed, options, model: PathBuf::from(FILES[2]) }
        });
        let rows = |part: fn(&Student) -> Option<&Evaluation>| students.iter().find_map(part).map(|e| e.rows);
        let student = |student: &Student| StudentLine {
            cell: student.place.0,
            seed: student.place.1,
            steps: student.steps,
            diverged_at: student.diverged,
            validation: student.validation.clone(),
            test: student.test.clone(),
            weights_sha256: student.weights.sha256(),
        };
        Self {
            schema_version: 1,
            adapter: gpu.report.line(),
            keys: grid.axes.iter().map(|axis| axis.key).collect(),
            seeds: grid.seeds.clone(),
            runs,
            steps: students.first().map_or(0, |student| student.steps),
            seconds,
            validation_rows: rows(|student| student.validation.as_ref()),
            test_rows: rows(|student| student.test.as_ref()),
            chosen_by: match best {
                Some(_) => {
                    "the validation rows: fewest errors, then the smallest NLL, mean over the seeds; the test \
                     rows were seen once, after that"
                }
                None => "nothing",
            },
            best,
            cells: cells.iter().enumerate().map(|(i, cell)| line(grid, i, cell, students)).collect(),
            students: students.iter().map(student).collect(),
        }
    }

    pub fn json(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|e| Error::Run(e.to_string()))
    }

    /// `sweep.csv` and `sweep.json`.
    pub fn write(&self, folder: &Path, grid: &Grid, cells: &[Cell<'_>]) -> Result<()> {
        write_atomically(&folder.join(FILES[0]), &self.csv(grid, cells)?)?;
        write_atomically(&folder.join(FILES[1]), self.json()?.as_bytes())
    }

    /// A line per student.
    fn csv(&self, grid: &Grid, cells: &[Cell<'_>]) -> Result<Vec<u8>> {
        let mut file = csv::Writer::from_writer(Vec::new());
        let failed = |e: csv::Error| Error::Run(e.to_string());
        let always = ["layers", "temperature", "hard_weight", "soft_weight", "label_smoothing", "lr"];
        // What a loss has of its own, and alpha.
        let others: Vec<usize> =
            (0..grid.axes.len()).filter(|i| !always.contains(&grid.axes[*i].key)).collect();
        let results = [
            "seed",
            "parameters",
            "steps",
            "diverged_at",
            "validation_errors",
            "validation_nll",
            "validation_agreement",
            "test_errors",
            "test_nll",
            "test_agreement",
            "weights_sha256",
        ];
        let keys = always.into_iter().chain(others.iter().map(|i| grid.axes[*i].key)).chain(results);
        file.write_record(keys).map_err(failed)?;
        for student in &self.students {
            let cell = &cells[student.cell];
            let loss = &cell.loss;
            let numbers = [loss.temperature, loss.hard_weight, loss.soft_weight, loss.smoothing, cell.lr];
            let mut fields = vec![layers_text(&cell.layers)];
            fields.extend(numbers.map(number_text));
            fields.extend(others.iter().map(|i| cell.values[*i].to_string()));
            fields.extend([
                student.seed.to_string(),
                cell.parameters().to_string(),
                student.steps.to_string(),
            ]);
            fields.push(student.diverged_at.map_or(String::new(), |step| step.to_string()));
            for seen in [&student.validation, &student.test] {
                let text =
                    |of: fn(&Evaluation) -> Option<String>| seen.as_ref().and_then(of).unwrap_or_default();
                fields.push(text(|e| Some(e.errors.to_string())));
                fields.push(text(|e| Some(e.nll.to_string())));
                fields.push(text(|e| e.agreement.map(|a| a.to_string())));
            }
            fields.push(student.weights_sha256.clone());
            file.write_record(&fields).map_err(failed)?;
        }
        file.into_inner().map_err(|e| Error::Run(e.to_string()))
    }

    fn table(&self, cells: &[Cell<'_>]) -> String {
        let (validated, tested) = (self.validation_rows.is_some(), self.test_rows.is_some());
        let diverged = self.cells.iter().any(|line| line.diverged > 0);
        // What the bars show: what was chosen by, if anything was.
        let judged = |line: &Line| {
            let arm = if validated { &line.validation } else { &line.test };
            arm.as_ref().map(|arm| arm.errors.mean)
        };
        let worst = self.cells.iter().filter_map(judged).fold(1.0, f64::max);
        let mut heading: Vec<String> = self.keys.iter().map(|key| key.replace('_', " ")).collect();
        heading.push("parameters".to_owned());
        // One NLL is enough to read: that of the rows that are chosen by.
        let columns = [
            ("validation errors", validated),
            ("NLL", validated),
            ("test errors", tested),
            ("NLL", tested && !validated),
        ];
        let there = columns.into_iter().filter(|(_, there)| *there);
        heading.extend(there.map(|(name, _)| name.to_owned()));
        heading.push("agreement".to_owned());
        if diverged {
            heading.push("diverged".to_owned());
        }
        heading.push(String::new());
        let mut lines = vec![heading];
        for (i, (line, cell)) in self.cells.iter().zip(cells).enumerate() {
            let mut fields: Vec<String> = cell.values.iter().map(ToString::to_string).collect();
            fields.push(line.parameters.to_string());
            let text =
                |arm: &Option<Arm>, of: &dyn Fn(&Arm) -> String| arm.as_ref().map_or("-".to_owned(), of);
            let errors = |arm| text(arm, &|arm| arm.errors.text(1));
            let nll = |arm| text(arm, &|arm| arm.nll.text(4));
            let columns = [
                validated.then(|| errors(&line.validation)),
                validated.then(|| nll(&line.validation)),
                tested.then(|| errors(&line.test)),
                (tested && !validated).then(|| nll(&line.test)),
            ];
            fields.extend(columns.into_iter().flatten());
            let last = if tested { &line.test } else { &line.validation };
            let percent = |e: Estimate| {
                let whole = Estimate { mean: 100.0 * e.mean, half_width: e.half_width.map(|h| 100.0 * h) };
                format!("{} %", whole.text(1))
            };
            fields.push(last.as_ref().and_then(|arm| arm.agreement).map_or("-".to_owned(), percent));
            if diverged {
                fields.push(format!("{} of {}", line.diverged, self.seeds.len()));
            }
            let bar = judged(line).map_or(0.0, |errors| BAR * errors / worst).round() as usize;
            let mark = if self.best.as_ref().is_some_and(|best| best.cell == i) { " best" } else { "" };
            let text = format!("{}{mark}", "█".repeat(bar));
            fields.push(format!("{text:<width$}", width = BAR as usize + 5));
            lines.push(fields);
        }
        render(&lines)
    }

    pub fn print(&self, folder: &Path, cells: &[Cell<'_>]) {
        println!("{}", self.table(cells));
        let rows = [(self.validation_rows, "validation"), (self.test_rows, "test")];
        let rows: Vec<String> =
            rows.iter().filter_map(|(n, part)| n.map(|n| format!("{n} {part}"))).collect();
        println!(
            "Errors of {} rows, mean ± 95 % interval over {}, after {}:\n{} in {}, {:.1} s in all.",
            rows.join(" and "),
            count(self.seeds.len(), "seed"),
            count(self.steps as usize, "step"),
            count(self.students.len(), "student"),
            count(self.runs, "run"),
            self.seconds
        );
        match &self.best {
            Some(best) => {
                println!(
                    "Best by validation (fewest errors, then the smallest NLL, mean over the seeds), and its \
                     best seed:"
                );
                println!("  {}", best.options);
                println!("The test rows were seen once, after that.");
                println!("model    {}", folder.join(&best.model).display());
            }
            None if self.validation_rows.is_some() => {
                println!("No best: every cell has a student whose numbers did not stay finite.");
            }
            None => println!("No best without validation rows: --validation 0.1 holds some back."),
        }
        println!("results  {}", folder.display());
    }
}
