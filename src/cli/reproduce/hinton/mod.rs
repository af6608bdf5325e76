//! Section 3 of Hinton, Vinyals and Dean (2015), "Distilling the Knowledge in a Neural Network": MNIST.
//!
//! The paper fixes shapes, dropout, max-norm, jitter and T. Epochs, learning rates and the norm are ours,
//! chosen on held-back training rows: docs/results.md.

mod rows;

use crate::cli::reproduce::Schedule;
use crate::cli::reproduce::report::Findings;
use crate::cli::reproduce::stage::{Group, Stage, recipe};
use crate::data::split::drop_classes;
use crate::distill::regularize::Regularize;
use crate::distill::step::{Loss, Optimizer, Teacher};
use crate::error::Result;
use crate::kernels::adam::Adam;
use crate::mlp::Mlp;
use crate::mlp::weights::Weights;
use crate::train::schedule::{Schedule as Course, Schedules, Shape};
use crate::train::{Recipe, Replica, Rows};

pub const SOURCE: &str =
    "Hinton, Vinyals, Dean 2015: Distilling the Knowledge in a Neural Network, section 3 (MNIST)";

const BATCH: usize = 128;
/// T of all students but those of the last rows.
const TEMPERATURE: f64 = 20.0;
/// Of all but the student on 7s and 8s. Learning rates fall along half a cosine to 0.
const ADAM: Optimizer =
    Optimizer::Adam(Adam { beta_1: 0.9, beta_2: 0.999, epsilon: 1e-8, weight_decay: 0.0, decoupled: false });
const SGD: Optimizer = Optimizer::Sgd { momentum: 0.9, nesterov: true, weight_decay: 0.0 };
/// Of the teacher; the paper names all but the norm.
const REGULARIZE: Regularize =
    Regularize { dropout: 0.5, input_dropout: 0.2, max_norm: Some(3.87), jitter: 2 };
const SOFT: Loss = Loss { temperature: TEMPERATURE, hard_weight: 0.0, soft_weight: 1.0, ..Loss::HARD };
const LR_HARD: f64 = 0.001;
const LR_SOFT: f64 = 0.003;
const LR_PAIR: f64 = 0.02;

/// How long, how wide, and what is asked.
struct Plan {
    teacher: [usize; 2],
    teacher_epochs: u64,
    student: [usize; 2],
    hard_epochs: u64,
    soft_epochs: u64,
    /// Passes over the rows that are no 3s.
    without_epochs: u64,
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

const ALL_T: &[f64] = &[1.0, 2.5, 4.0, 8.0, 12.0, 20.0, 40.0];
const FEW_T: &[f64] = &[1.0, 8.0, 20.0, 40.0];

impl Plan {
    fn of(schedule: Schedule) -> Self {
        let quick = Self {
            teacher: [1200, 1200],
            teacher_epochs: 38,
            student: [800, 800],
            hard_epochs: 8,
            soft_epochs: 24,
            without_epochs: 11,
            pair_epochs: 20,
            widths: vec![width(800, FEW_T, 1, 1), width(300, FEW_T, 1, 3), width(30, ALL_T, 3, 4)],
            bars: Bars { teacher: 120, hard: [120, 185], soft: 135, gap: 0.5, widths: false },
        };
        match schedule {
            Schedule::Quick => quick,
            Schedule::Full => Self {
                teacher_epochs: 200,
                hard_epochs: 60,
                soft_epochs: 100,
                without_epochs: 60,
                pair_epochs: 60,
                widths: vec![width(800, ALL_T, 2, 40), width(300, ALL_T, 3, 40), width(30, ALL_T, 10, 40)],
                bars: Bars { teacher: 85, hard: [120, 175], soft: 100, gap: 0.6, widths: true },
                ..quick
            },
            Schedule::Smoke => Self {
                teacher: [24, 24],
                teacher_epochs: 3,
                student: [16, 16],
                hard_epochs: 3,
                soft_epochs: 3,
                without_epochs: 3,
                pair_epochs: 3,
                widths: vec![width(12, ALL_T, 1, 1), width(6, ALL_T, 2, 1)],
                ..quick
            },
        }
    }
}

/// All that the rows need.
struct Networks {
    teacher: Mlp,
    hard: Mlp,
    soft: Mlp,
    /// Soft, and with hard labels.
    without_3: Mlp,
    only_7_8: Mlp,
    /// Width by width and seed by seed, a replica to a temperature.
    by_width: Vec<Vec<Mlp>>,
}

/// Trains everything, then judges.
pub fn run(stage: &mut Stage<'_>, schedule: Schedule, seed: u64) -> Result<Findings> {
    let plan = Plan::of(schedule);
    let networks = train(stage, &plan, seed)?;
    // Nothing is chosen any more: now the rows to judge on.
    rows::judge(stage, &plan, &networks)
}

fn train(stage: &mut Stage<'_>, plan: &Plan, seed: u64) -> Result<Networks> {
    let replica = |loss: Loss, lr: f64, seed: u64, student: Weights| {
        let shape = Shape::Cosine { end: 0.0, steps: None };
        let schedules = Schedules { lr: Course { warmup: 0, shape }, ..Schedules::default() };
        Replica { seed, lr, loss, schedules, student }
    };
    let of = 5 + plan.widths.iter().map(|w| w.seeds).sum::<u64>();
    let labels = stage.train.labels.clone().unwrap_or_default();
    let start = stage.start(&plan.student, seed)?;
    let starts_of =
        |w: &Width| (seed..seed + w.seeds).map(|s| stage.start(&[w.units; 2], s)).collect::<Result<Vec<_>>>();
    let starts = plan.widths.iter().map(starts_of).collect::<Result<Vec<_>>>()?;
    let teacher = stage.train(Group {
        what: format!("1/{of} teacher"),
        names: vec!["teacher".to_owned()],
        rows: Rows::default(),
        teacher: &Teacher::None,
        recipe: Recipe { regularize: REGULARIZE, ..recipe(BATCH, plan.teacher_epochs, ADAM) },
        replicas: vec![replica(Loss::HARD, LR_HARD, seed, stage.start(&plan.teacher, seed)?)],
    })?;
    let targets = stage.targets(&teacher)?;

    let mut number = 1;
    let mut train = |what: &str, walked: Vec<Vec<u32>>, recipe: Recipe, members: Vec<(String, Replica)>| {
        number += 1;
        let (names, replicas) = members.into_iter().unzip();
        let rows = Rows { walked, ..Rows::default() };
        let what = format!("{number}/{of} {what}");
        stage.train(Group { what, names, rows, teacher: &targets, recipe, replicas })
    };
    let member = |name: &str, loss: Loss, lr: f64| (name.to_owned(), replica(loss, lr, seed, start.clone()));
    let adam = |epochs: u64| recipe(BATCH, epochs, ADAM);
    let without = |dropped: &[u32]| vec![drop_classes(&labels, dropped)];
    let control = Loss { hard_weight: 0.5, soft_weight: 0.5, ..SOFT };
    let one = vec![member("hard", Loss::HARD, LR_HARD)];
    let hard = train("student, hard labels", Vec::new(), adam(plan.hard_epochs), one)?;
    let one = vec![member("soft", SOFT, LR_SOFT)];
    let soft = train("student, soft targets", Vec::new(), adam(plan.soft_epochs), one)?;
    let two = vec![member("without-3", SOFT, LR_SOFT), member("without-3-control", control, LR_SOFT)];
    let without_3 = train("students without 3s", without(&[3]), adam(plan.without_epochs), two)?;
    let one = vec![member("only-7-8", SOFT, LR_PAIR)];
    let rest = [0, 1, 2, 3, 4, 5, 6, 9];
    let only_7_8 = train("student on 7s and 8s", without(&rest), recipe(BATCH, plan.pair_epochs, SGD), one)?;
    let mut by_width = Vec::new();
    for (width, starts) in plan.widths.iter().zip(starts) {
        // Those of one seed share their rows.
        let mut of_seeds = Vec::new();
        for (s, start) in (seed..).zip(starts) {
            let of_t = |t: &f64| {
                let loss = Loss { temperature: *t, ..SOFT };
                (format!("width-{}-t{t}-seed{s}", width.units), replica(loss, LR_SOFT, s, start.clone()))
            };
            let what = format!("{} units by temperature, seed {s}", width.units);
            let members = width.temperatures.iter().map(of_t).collect();
            of_seeds.push(train(&what, Vec::new(), adam(width.epochs), members)?);
        }
        by_width.push(of_seeds);
    }
    Ok(Networks { teacher, hard, soft, without_3, only_7_8, by_width })
}
