//! Section 3 of Hinton, Vinyals and Dean (2015), "Distilling the Knowledge in a Neural Network": MNIST.
//!
//! The paper fixes shapes, dropout, max-norm, jitter and T. Epochs, learning rates and the norm are ours,
//! chosen on held-back training rows (`--judge validation`), never on the test rows.

use crate::cli::reproduce::Schedule;
use crate::cli::reproduce::report::{Findings, Row, Table};
use crate::cli::reproduce::stage::{Group, Stage, recipe};
use crate::data::split::drop_classes;
use crate::distill::infer::Inference;
use crate::distill::regularize::Regularize;
use crate::distill::step::{Loss, Optimizer, Teacher};
use crate::error::Result;
use crate::mlp::Mlp;
use crate::mlp::repair::Repair;
use crate::mlp::weights::Weights;
use crate::reference::{Matrix, argmax};
use crate::report::quality::Quality;
use crate::report::stats::{Estimate, mcnemar};
use crate::train::schedule::{Schedule as Course, Schedules, Shape};
use crate::train::{Recipe, Replica, Rows};

pub const SOURCE: &str =
    "Hinton, Vinyals, Dean 2015: Distilling the Knowledge in a Neural Network, section 3 (MNIST)";

const BATCH: usize = 128;
/// T of all students but those of the last rows.
const TEMPERATURE: f64 = 20.0;
/// Nesterov's momentum; the learning rate falls along half a cosine to 0.
const SGD: Optimizer = Optimizer::Sgd { momentum: 0.9, nesterov: true, weight_decay: 0.0 };
/// Of the teacher; the paper names all but the norm.
const REGULARIZE: Regularize =
    Regularize { dropout: 0.5, input_dropout: 0.2, max_norm: Some(3.87), jitter: 2 };
const SOFT: Loss = Loss { temperature: TEMPERATURE, hard_weight: 0.0, soft_weight: 1.0, ..Loss::HARD };
const LR_HARD: f64 = 0.05;
const LR_SOFT: f64 = 0.02;
/// Evaluated this many rows at a time for the cache.
const CACHE_BATCH: usize = 1000;

/// How long, how wide, and what is asked.
struct Plan {
    teacher: [usize; 2],
    teacher_epochs: u64,
    student: [usize; 2],
    student_epochs: u64,
    /// Passes over the 7s and 8s, a fifth of the rows.
    pair_epochs: u64,
    widths: Vec<Width>,
    bars: Bars,
}

/// Students of one width under several temperatures.
struct Width {
    units: usize,
    temperatures: &'static [f64],
    seeds: u64,
    epochs: u64,
}

fn width(units: usize, temperatures: &'static [f64], seeds: u64, epochs: u64) -> Width {
    Width { units, temperatures, seeds, epochs }
}

/// From this width on a student is wide.
const WIDE: usize = 300;

struct Bars {
    teacher: usize,
    hard: [usize; 2],
    soft: usize,
    /// Share of the gap between hard and teacher that soft targets close.
    gap: f64,
    /// Whether the temperatures are judged.
    widths: bool,
}

const QUICK: Bars = Bars { teacher: 120, hard: [120, 185], soft: 135, gap: 0.5, widths: false };

const ALL_T: &[f64] = &[1.0, 2.5, 4.0, 8.0, 12.0, 20.0, 40.0];
const FEW_T: &[f64] = &[1.0, 8.0, 20.0, 40.0];

impl Plan {
    fn of(schedule: Schedule) -> Self {
        match schedule {
            Schedule::Full => Self {
                teacher: [1200, 1200],
                teacher_epochs: 200,
                student: [800, 800],
                student_epochs: 60,
                pair_epochs: 60,
                widths: vec![width(800, ALL_T, 2, 40), width(300, ALL_T, 3, 40), width(30, ALL_T, 10, 40)],
                bars: Bars { teacher: 85, hard: [120, 175], soft: 100, gap: 0.6, widths: true },
            },
            Schedule::Quick => Self {
                teacher: [1200, 1200],
                teacher_epochs: 30,
                student: [800, 800],
                student_epochs: 20,
                pair_epochs: 20,
                widths: vec![width(800, FEW_T, 1, 2), width(300, FEW_T, 1, 4), width(30, ALL_T, 5, 4)],
                bars: QUICK,
            },
            Schedule::Smoke => Self {
                teacher: [24, 24],
                teacher_epochs: 3,
                student: [16, 16],
                student_epochs: 3,
                pair_epochs: 3,
                widths: vec![width(12, ALL_T, 1, 1), width(6, ALL_T, 2, 1)],
                bars: QUICK,
            },
        }
    }
}

/// A network's outputs on the rows to judge on.
type Judged = (Matrix, Quality);

/// Trains everything, then judges.
pub fn run(stage: &mut Stage<'_>, schedule: Schedule, seed: u64) -> Result<Findings> {
    let plan = Plan::of(schedule);
    let of = 4 + plan.widths.len();
    let title = |i: usize, what: &str| format!("{}/{of} {what}", i + 1);
    let replica = |loss: Loss, lr: f64, seed: u64, student: Weights| {
        let shape = Shape::Cosine { end: 0.0, steps: None };
        let schedules = Schedules { lr: Course { warmup: 0, shape }, ..Schedules::default() };
        Replica { seed, lr, loss, schedules, student }
    };
    let names = |all: &[&str]| all.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();

    let teacher = stage.train(Group {
        what: title(0, "teacher"),
        names: names(&["teacher"]),
        rows: Rows::default(),
        teacher: &Teacher::None,
        recipe: Recipe { regularize: REGULARIZE, ..recipe(BATCH, plan.teacher_epochs, SGD) },
        replicas: vec![replica(Loss::HARD, LR_HARD, seed, stage.start(&plan.teacher, seed)?)],
    })?;
    // The students see the rows as they are, so the teacher answers once for all of them.
    let targets = Inference::record(stage.gpu, &teacher, stage.train, CACHE_BATCH)?.cache(stage.gpu)?;
    let targets = Teacher::Cached(targets);

    let labels = stage.train.labels.clone().unwrap_or_default();
    let without = |dropped: &[u32]| Rows { walked: vec![drop_classes(&labels, dropped)], ..Rows::default() };
    let others: Vec<u32> = (0..stage.train.classes as u32).filter(|c| ![7, 8].contains(c)).collect();
    let control = Loss { hard_weight: 0.5, soft_weight: 0.5, ..SOFT };
    let [on_all, on_some, on_two] = [
        vec![("hard", Loss::HARD, LR_HARD), ("soft", SOFT, LR_SOFT)],
        vec![("without-3", SOFT, LR_SOFT), ("without-3-control", control, LR_SOFT)],
        vec![("only-7-8", SOFT, LR_SOFT)],
    ];
    let groups = [
        ("students on all rows", Rows::default(), plan.student_epochs, on_all),
        ("students without 3s", without(&[3]), plan.student_epochs, on_some),
        ("student on 7s and 8s", without(&others), plan.pair_epochs, on_two),
    ];
    let mut students = Vec::new();
    for (i, (what, rows, epochs, members)) in groups.into_iter().enumerate() {
        let start = stage.start(&plan.student, seed)?;
        students.push(stage.train(Group {
            what: title(i + 1, what),
            names: members.iter().map(|(name, ..)| (*name).to_owned()).collect(),
            rows,
            teacher: &targets,
            recipe: recipe(BATCH, epochs, SGD),
            replicas: members.iter().map(|(_, loss, lr)| replica(*loss, *lr, seed, start.clone())).collect(),
        })?);
    }
    let mut by_width = Vec::new();
    for (i, width) in plan.widths.iter().enumerate() {
        let hidden = [width.units; 2];
        let points = width.temperatures.iter().flat_map(|t| (seed..seed + width.seeds).map(move |s| (*t, s)));
        let points: Vec<(f64, u64)> = points.collect();
        by_width.push(
            stage.train(Group {
                what: title(4 + i, &format!("{} units by temperature", width.units)),
                names: points.iter().map(|(t, s)| format!("width-{}-t{t}-seed{s}", width.units)).collect(),
                rows: Rows::default(),
                teacher: &targets,
                recipe: recipe(BATCH, width.epochs, SGD),
                replicas: points
                    .iter()
                    .map(|(t, s)| {
                        let loss = Loss { temperature: *t, ..SOFT };
                        Ok(replica(loss, LR_SOFT, *s, stage.start(&hidden, *s)?))
                    })
                    .collect::<Result<_>>()?,
            })?,
        );
    }

    // Everything is trained, nothing is chosen any more: now the rows to judge on.
    let judged = stage.judge(&teacher)?.swap_remove(0).1.errors;
    let [all, without_3, only_7_8]: [Mlp; 3] = match students.try_into() {
        Ok(students) => students,
        Err(_) => unreachable!("three groups"),
    };
    let all = stage.judge(&all)?;
    let (hard, soft) = (all[0].1.errors, all[1].1.errors);
    let mut rows = full_set(&plan.bars, judged, hard, soft);
    let (repaired, own) = Repaired::of(stage, &without_3, 0, &[3], &[3.5])?;
    rows.extend(without_threes(&repaired, soft));
    rows.push(control_row(stage, &own, &stage.judge(&without_3)?[1]));
    let (repaired, _) = Repaired::of(stage, &only_7_8, 0, &[7, 8], &[-7.6, -7.6])?;
    rows.extend(sevens_and_eights(&repaired, stage.test.rows()));
    let mut by_temperature =
        vec![["hidden units", "T", "seeds", "epochs", "errors"].map(str::to_owned).to_vec()];
    for (width, students) in plan.widths.iter().zip(&by_width) {
        let errors: Vec<f64> = stage.judge(students)?.iter().map(|(_, q)| q.errors as f64).collect();
        let cells = width.cells(&errors);
        rows.push(temperatures(width, &cells, &plan.bars));
        by_temperature.extend(width.table(&cells));
    }
    let notes = vec![
        "The paper raised and lowered biases by what was best on the test set; ours are matched to the class shares \
         of the training rows, and the paper's constants are shown beside them."
            .to_owned(),
        format!(
            "One seed but for the widths. SGD with Nesterov momentum 0.9, batch {BATCH}, learning rate {LR_HARD} on \
             labels and {LR_SOFT} on soft targets, along half a cosine to 0; max-norm {}.",
            REGULARIZE.max_norm.unwrap_or_default()
        ),
    ];
    let tables = vec![Table { title: "Errors by width and temperature", cells: by_temperature }];
    Ok(Findings { source: SOURCE, rows, tables, notes })
}

/// Teacher, hard and soft student.
fn full_set(bars: &Bars, teacher: usize, hard: usize, soft: usize) -> Vec<Row> {
    let gap = match hard > teacher {
        true => (hard as f64 - soft as f64) / (hard - teacher) as f64,
        false => 0.0,
    };
    let errors = |n: usize| format!("{n} errors");
    let [least, most] = bars.hard;
    vec![
        Row::new("teacher with dropout, max-norm, jitter", "67 errors", errors(teacher))
            .asked(format!("<= {}", bars.teacher), teacher <= bars.teacher)
            .values([("errors", teacher as f64)]),
        Row::new("student, hard labels", "146 errors", errors(hard))
            .asked(format!("{least} to {most}"), (least..=most).contains(&hard))
            .values([("errors", hard as f64)]),
        Row::new(
            "student, soft targets at T = 20",
            "74 errors",
            format!("{} ({:.0} % of the gap)", errors(soft), 100.0 * gap),
        )
        .asked(
            format!("<= {}, >= {:.0} % of the gap", bars.soft, 100.0 * bars.gap),
            soft <= bars.soft && gap >= bars.gap,
        )
        .values([("errors", soft as f64), ("gap_closed", gap)]),
    ]
}

/// A student whose transfer set lacked classes, as it came and with its biases repaired.
struct Repaired {
    before: Quality,
    after: Quality,
    /// With the constants of the paper.
    constant: Quality,
    constants: String,
    offsets: Vec<f64>,
}

impl Repaired {
    /// Of one of `students`; repairs the biases of `classes` to their shares of the training labels.
    fn of(
        stage: &Stage<'_>,
        students: &Mlp,
        index: usize,
        classes: &[usize],
        constants: &[f64],
    ) -> Result<(Self, Judged)> {
        let trained = Inference::record(stage.gpu, students, stage.train, CACHE_BATCH)?;
        let trained = trained.logits_blocking(stage.gpu)?.swap_remove(index);
        let trained = Matrix::from_f32(stage.train.rows(), stage.train.classes, &trained);
        let labels = stage.train.labels.as_deref().unwrap_or_default();
        let mut prior = vec![0.0; stage.train.classes];
        labels.iter().for_each(|l| prior[*l as usize] += 1.0 / labels.len() as f64);
        let repair = Repair::to_prior(&trained, classes, &prior)?;
        let (z, before) = stage.judge(students)?.swap_remove(index);
        let mut fixed = vec![0.0; stage.train.classes];
        classes.iter().zip(constants).for_each(|(c, add)| fixed[*c] = *add);
        let repaired = Self {
            after: stage.quality(&repair.apply(&z))?,
            constant: stage.quality(&Repair::by(&z, fixed).apply(&z))?,
            constants: constants.iter().map(|c| format!("{c:+}")).collect::<Vec<_>>().join(", "),
            offsets: classes.iter().map(|c| repair.offsets[*c]).collect(),
            before: before.clone(),
        };
        Ok((repaired, (z, before)))
    }

    fn offsets(&self) -> String {
        self.offsets.iter().map(|o| format!("{o:+.2}")).collect::<Vec<_>>().join(", ")
    }
}

fn threes(q: &Quality) -> (usize, f64) {
    (q.classes[3].errors, q.classes[3].recall.unwrap_or(0.0))
}

fn without_threes(r: &Repaired, full: usize) -> Vec<Row> {
    let text = |q: &Quality| {
        let (wrong, right) = threes(q);
        format!("{} errors, {wrong} on 3s ({:.1} % right)", q.errors, 100.0 * right)
    };
    let (before, after) = (threes(&r.before).1, threes(&r.after).1);
    let most = 1.4 * full as f64;
    vec![
        Row::new("no 3 in the transfer set", "206 errors, 133 on 3s (86.8 % right)", text(&r.before))
            .asked("60 to 99 % of 3s right", (0.6..=0.99).contains(&before))
            .values([("errors", r.before.errors as f64), ("recall_3", before)]),
        Row::new(
            "the same, bias of 3 repaired",
            "109 errors, 14 on 3s (98.6 % right)",
            format!("{}, bias {}", text(&r.after), r.offsets()),
        )
        .asked(
            format!(">= 97 % of 3s right, errors <= {most:.0}"),
            after >= 0.97 && r.after.errors as f64 <= most,
        )
        .values([("errors", r.after.errors as f64), ("recall_3", after), ("bias", r.offsets[0])]),
        Row::new(
            &format!("the same by the paper's constant, {}", r.constants),
            "109 errors, 14 on 3s",
            text(&r.constant),
        )
        .values([("errors", r.constant.errors as f64), ("recall_3", threes(&r.constant).1)]),
    ]
}

/// With hard labels too the student is told that nothing is a 3.
fn control_row(stage: &Stage<'_>, soft: &Judged, control: &Judged) -> Row {
    let labels = stage.test.labels.as_deref().unwrap_or_default();
    let (mut only_soft, mut only_control) = (0, 0);
    for (row, _) in labels.iter().enumerate().filter(|(_, label)| **label == 3) {
        match (argmax(soft.0.row(row)) == 3, argmax(control.0.row(row)) == 3) {
            (true, false) => only_soft += 1,
            (false, true) => only_control += 1,
            _ => {}
        }
    }
    let p = mcnemar(only_soft, only_control);
    let right = 100.0 * threes(&control.1).1;
    let ours = format!("{} errors, {:.1} % of 3s right (p = {p:.1e})", control.1.errors, right);
    Row::new("control: no 3, hard labels at weight 0.5", "-", ours)
        .asked("fewer 3s right than soft alone, p < 0.01", only_soft > only_control && p < 0.01)
        .values([("errors", control.1.errors as f64), ("recall_3", right / 100.0), ("p", p)])
}

fn sevens_and_eights(r: &Repaired, rows: usize) -> Vec<Row> {
    let share = |q: &Quality| q.errors as f64 / rows as f64;
    let percent = |q: &Quality| format!("{:.1} % error", 100.0 * share(q));
    vec![
        Row::new("only 7s and 8s in the transfer set", "47.3 % error", percent(&r.before))
            .asked("30 to 65 %", (0.3..=0.65).contains(&share(&r.before)))
            .values([("error", share(&r.before))]),
        Row::new(
            "the same, biases of 7 and 8 repaired",
            "13.2 % error",
            format!("{}, biases {}", percent(&r.after), r.offsets()),
        )
        .asked("<= 22 %", share(&r.after) <= 0.22)
        .values([("error", share(&r.after)), ("bias_7", r.offsets[0]), ("bias_8", r.offsets[1])]),
        Row::new(
            &format!("the same by the paper's constants, {}", r.constants),
            "13.2 % error",
            percent(&r.constant),
        )
        .values([("error", share(&r.constant))]),
    ]
}

impl Width {
    /// Errors over the seeds, temperature by temperature.
    fn cells(&self, errors: &[f64]) -> Vec<(f64, Estimate)> {
        let seeds = errors.chunks(self.seeds as usize);
        self.temperatures.iter().zip(seeds).map(|(t, errors)| (*t, Estimate::of(errors))).collect()
    }

    fn table(&self, cells: &[(f64, Estimate)]) -> Vec<Vec<String>> {
        let digits = usize::from(self.seeds > 1);
        let row = |(t, errors): &(f64, Estimate)| {
            let numbers =
                [t.to_string(), self.seeds.to_string(), self.epochs.to_string(), errors.text(digits)];
            std::iter::once(format!("{0}-{0}", self.units)).chain(numbers).collect()
        };
        cells.iter().map(row).collect()
    }
}

/// What the temperature does to students of one width.
fn temperatures(width: &Width, cells: &[(f64, Estimate)], bars: &Bars) -> Row {
    let means = |from: f64, to: f64| -> Vec<f64> {
        cells.iter().filter(|(t, _)| (from..=to).contains(t)).map(|(_, e)| e.mean).collect()
    };
    let mean = |from: f64, to: f64| Estimate::of(&means(from, to)).mean;
    let names: Vec<String> = cells.iter().map(|(t, _)| format!("errors_t{t}")).collect();
    let values = names.iter().map(String::as_str).zip(cells.iter().map(|(_, e)| e.mean));
    let name = format!("{0}-{0} hidden units, by temperature", width.units);
    if width.units >= WIDE {
        let high = means(8.0, 40.0);
        let spread =
            high.iter().fold(f64::MIN, |a, b| a.max(*b)) - high.iter().fold(f64::MAX, |a, b| a.min(*b));
        let most = 2.0 * mean(8.0, 40.0).sqrt();
        let ours = format!("T 8 to 40: {:.0}, spread {spread:.0}", mean(8.0, 40.0));
        let row = Row::new(&name, "the same for all T above 8", ours).values(values);
        return match bars.widths {
            true => row.asked(format!("spread <= {most:.0}"), spread <= most),
            false => row,
        };
    }
    let [low, middle, high] = [mean(1.0, 1.0), mean(2.5, 4.0), mean(12.0, f64::INFINITY)];
    let ours = format!("T 2.5 to 4: {middle:.0}, T 1: {low:.0}, T >= 12: {high:.0}");
    let row = Row::new(&name, "T 2.5 to 4 best", ours).values(values);
    match bars.widths {
        true => row.asked("T 2.5 to 4 has the fewest", middle < low && middle < high),
        false => row,
    }
}
