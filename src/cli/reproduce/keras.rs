//! The Keras example "Knowledge Distillation" (Borup 2020, in its Keras 3 form) on multi-layer perceptrons:
//! its data, batch, optimiser, epochs, T, alpha and loss; its convolutional networks are MLPs here.

use std::time::Instant;

use crate::cli::reproduce::Schedule;
use crate::cli::reproduce::report::{Findings, Row};
use crate::cli::reproduce::stage::{Group, Stage, Trained, recipe};
use crate::distill::step::{Loss, Optimizer, Teacher};
use crate::error::Result;
use crate::kernels::adam::Adam;
use crate::kernels::head::Soft;
use crate::mlp::Mlp;
use crate::mlp::weights::Weights;
use crate::reference::SoftLoss;
use crate::report::progress::Progress;
use crate::report::stats::Estimate;
use crate::train::schedule::Schedules;
use crate::train::{Replica, Rows, along};

pub const SOURCE: &str =
    "Keras code example \"Knowledge Distillation\", keras.io/examples/vision/knowledge_distillation";

/// Of `model.fit`, which the example leaves as it is.
const BATCH: usize = 32;
const LEARNING_RATE: f64 = 1e-3;
const ADAM: Optimizer = Optimizer::KerasAdam(Adam {
    beta_1: 0.9,
    beta_2: 0.999,
    epsilon: 1e-7,
    weight_decay: 0.0,
    decoupled: false,
});
const TEMPERATURE: f64 = 10.0;
const ALPHA: f64 = 0.1;
/// How far from the page's text an accuracy may lie, in points: the networks are of another kind.
const TOLERANCE: f64 = 1.5;

struct Plan {
    teacher: &'static [usize],
    student: &'static [usize],
    seeds: u64,
    teacher_epochs: u64,
    student_epochs: u64,
}

impl Plan {
    fn of(schedule: Schedule) -> Self {
        let page =
            Self { teacher: &[256, 256], student: &[64, 64], seeds: 5, teacher_epochs: 5, student_epochs: 3 };
        match schedule {
            Schedule::Full => Self { seeds: 10, ..page },
            Schedule::Quick => page,
            Schedule::Smoke => {
                Self { teacher: &[24], student: &[12], seeds: 2, teacher_epochs: 1, student_epochs: 1 }
            }
        }
    }
}

/// The page's distillation loss; `squared` is the factor T^2, which its first version lacked.
fn distillation(squared: bool) -> Loss {
    let soft = Soft { loss: SoftLoss::ClippedKl { clip: 1e-7 }, standardise: false };
    Loss { soft, temperature: TEMPERATURE, hard_weight: ALPHA, soft_weight: share(squared), ..Loss::HARD }
}

fn share(squared: bool) -> f64 {
    // Our soft losses have the factor in them.
    (1.0 - ALPHA) / if squared { 1.0 } else { TEMPERATURE * TEMPERATURE }
}

/// Trains everything, then judges.
pub fn run(stage: &mut Stage<'_>, schedule: Schedule, seed: u64, train_teacher: bool) -> Result<Findings> {
    let plan = Plan::of(schedule);
    let of = if train_teacher { 6 } else { 4 };
    let title = |i: usize, what: &str| format!("{i}/{of} {what}");
    let seeds = || seed..seed + plan.seeds;
    let replicas = |loss: Loss, starts: &[Weights]| {
        let replica = |(seed, student): (u64, &Weights)| Replica {
            seed,
            lr: LEARNING_RATE,
            loss,
            schedules: Schedules::default(),
            student: student.clone(),
        };
        seeds().zip(starts).map(replica).collect::<Vec<_>>()
    };
    let names = |kind: &str| seeds().map(|s| format!("{kind}-seed{s}")).collect::<Vec<_>>();

    let teacher = stage.train(Group {
        what: title(1, "teacher"),
        names: vec!["teacher".to_owned()],
        rows: Rows::default(),
        teacher: &Teacher::None,
        recipe: recipe(BATCH, plan.teacher_epochs, ADAM),
        replicas: vec![Replica {
            seed,
            lr: LEARNING_RATE,
            loss: Loss::HARD,
            schedules: Schedules::default(),
            student: stage.start(plan.teacher, seed)?,
        }],
    })?;
    let starts = seeds().map(|s| stage.start(plan.student, s)).collect::<Result<Vec<_>>>()?;
    let frozen = stage.targets(&teacher)?;
    let students = recipe(BATCH, plan.student_epochs, ADAM);
    let ways = [
        ("scratch", "students from scratch", &Teacher::None, Loss::HARD),
        ("distilled", "distilled students", &frozen, distillation(true)),
        ("distilled-without-t2", "distilled students without T^2", &frozen, distillation(false)),
    ];
    let mut trained = Vec::new();
    for (i, (kind, what, teacher, loss)) in ways.into_iter().enumerate() {
        let (names, replicas) = (names(kind), replicas(loss, &starts));
        let (what, recipe) = (title(2 + i, what), students.clone());
        trained.push(stage.train(Group { what, names, rows: Rows::default(), teacher, recipe, replicas })?);
    }
    let mut along = Vec::new();
    if train_teacher {
        let weights = teacher.read_blocking(stage.gpu)?.swap_remove(0);
        let teachers = vec![weights; starts.len()];
        for (i, squared) in [true, false].into_iter().enumerate() {
            let t2 = if squared { "" } else { "-without-t2" };
            let names = ["along", "along-teacher"].map(|kind| names(&format!("{kind}{t2}")));
            let what = title(5 + i, if squared { "teacher along, T^2" } else { "teacher along, no T^2" });
            let pair = [replicas(distillation(squared), &starts), replicas(against(squared), &teachers)];
            along.push((squared, teacher_along(stage, what, names, plan.student_epochs, pair)?));
        }
    }

    let accuracy = |networks: &Mlp| -> Result<Estimate> {
        Ok(Estimate::of(&stage.judge(networks)?.iter().map(|(_, q)| 100.0 * q.accuracy).collect::<Vec<_>>()))
    };
    let row = |name: &str, published: &str, text: Option<f64>, networks: &Mlp| -> Result<Row> {
        let seen = accuracy(networks)?;
        let row = Row::new(name, published, format!("{} %", seen.text(2)))
            .values([("accuracy", seen.mean / 100.0)]);
        Ok(match text {
            Some(text) => {
                let asked = format!("{text} % within {TOLERANCE} points");
                row.asked(asked, (seen.mean - text).abs() <= TOLERANCE)
            }
            None => row,
        })
    };
    let mut rows = vec![
        row("teacher", "text 97.6 %, log 97.81 %", Some(97.6), &teacher)?,
        row("student from scratch", "text 97.6 %, log 97.78 %", Some(97.6), &trained[0])?,
        row("distilled, T^2, teacher frozen", "text 98.1 %, log 96.92 %", Some(98.1), &trained[1])?,
        row("distilled, no T^2, teacher frozen", "-", None, &trained[2])?,
    ];
    for (squared, [students, teachers]) in &along {
        let t2 = if *squared { "T^2" } else { "no T^2" };
        let log = if *squared { "log 96.92 %" } else { "-" };
        rows.push(row(&format!("distilled, {t2}, teacher along"), log, None, students)?);
        rows.push(row(&format!("its teacher afterwards, {t2}"), "-", None, teachers)?);
    }
    let notes = vec![
        format!(
            "Networks: teacher {:?} and student {:?} hidden units instead of the page's convolutions; students are \
             means over {} seeds.",
            plan.teacher, plan.student, plan.seeds
        ),
        "The page's text and its logged run differ; nothing in its code freezes the teacher, whose weights its \
         optimiser changes too (--train-teacher)."
            .to_owned(),
    ];
    Ok(Findings { source: SOURCE, rows, tables: Vec::new(), notes })
}

/// What the teacher descends where it learns along: the same T^2 KL(teacher || student), which with the roles
/// changed is reverse KL. The clip is left out.
fn against(squared: bool) -> Loss {
    let soft = Soft { loss: SoftLoss::ReverseKl, standardise: false };
    Loss { soft, temperature: TEMPERATURE, hard_weight: 0.0, soft_weight: share(squared), ..Loss::HARD }
}

/// Students and the teachers that learn along with them, kept under `names`.
fn teacher_along(
    stage: &mut Stage<'_>,
    what: String,
    names: [Vec<String>; 2],
    epochs: u64,
    [students, teachers]: [Vec<Replica>; 2],
) -> Result<[Mlp; 2]> {
    let began = Instant::now();
    let (networks, parameters) = (students.len(), students[0].student.parameters());
    let sizes = |replicas: &[Replica]| replicas[0].student.sizes();
    let [kept_students, kept_teachers] = [(&names[0], sizes(&students)), (&names[1], sizes(&teachers))]
        .map(|(n, sizes)| stage.kept(n, &sizes));
    if let (Some(students), Some(teachers)) = (kept_students?, kept_teachers?) {
        stage.runs.push(Trained { what, networks, parameters, epochs, seconds: None });
        return Ok([students, teachers]);
    }
    let recipe = recipe(BATCH, epochs, ADAM);
    let steps = epochs * stage.train.rows().div_ceil(BATCH) as u64;
    let mut progress = Progress::new(&what, steps, stage.quiet);
    let done = along(stage.gpu, stage.train, &recipe, students, teachers, |row| {
        if row.replica == 0 {
            progress.at(row.step, row.steps, row.left, &format!("loss {:.4}", row.loss));
        }
        Ok(())
    })?;
    progress.finish();
    for (networks, names) in done.iter().zip(&names) {
        stage.keep(&networks.read_blocking(stage.gpu)?, names)?;
    }
    let seconds = Some(began.elapsed().as_secs_f64());
    stage.runs.push(Trained { what, networks, parameters, epochs, seconds });
    Ok(done)
}
