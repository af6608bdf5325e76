//! `limbeck tune`: which variant is fastest for each product of a configuration, on this device.

use crate::bench::matmul::Operands;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::gpu::profile::Profile;
use crate::kernels::matmul::{Choice, Form, Question};

/// The products of a configuration: forward of the teacher and the student, gradients of the
/// student, for each number of students side by side.
pub fn questions(teacher: &[usize], student: &[usize], batch: usize, replicas: &[usize]) -> Vec<Question> {
    let mut all = Vec::new();
    let mut ask = |form, replicas, m, n, k| {
        let question = Question { form, replicas, m, n, k };
        if !all.contains(&question) {
            all.push(question);
        }
    };
    for s in teacher.windows(2) {
        ask(Form::Forward, 1, batch, s[1], s[0]);
    }
    for &replicas in replicas {
        for (i, s) in student.windows(2).enumerate() {
            ask(Form::Forward, replicas, batch, s[1], s[0]);
            ask(Form::WeightGradient, replicas, s[1], s[0], batch);
            if i > 0 {
                ask(Form::InputGradient, replicas, batch, s[0], s[1]);
            }
        }
    }
    all
}

/// A run so many times as long as the fastest variant's is not repeated.
const FAR: f64 = 3.0;
/// Seconds that a single run may take on top, for clocks that rise and a submission of its own.
const SLACK: f64 = 1e-3;

/// Measures every variant for every question and keeps the fastest; `each` hears of each result:
/// question, chosen, its milliseconds, and those of the built-in choice.
///
/// # Errors
/// [`crate::Error::Run`] where a variant gives a wrong product: a device that `limbeck doctor`
/// should look at.
pub fn run(
    gpu: &Gpu,
    questions: &[Question],
    mut each: impl FnMut(&Question, &str, f64, f64),
) -> Result<Profile> {
    let mut profile = Profile::empty(&gpu.report);
    for question in questions {
        let operands = Operands::new(gpu, *question)?;
        let built_in = question.answer(gpu);
        let mut standard = operands.time(gpu, built_in)?.min;
        let mut best = (built_in.text(), standard);
        for choice in Choice::all(gpu).into_iter().filter(|c| c.variant.name != "plain") {
            let seconds = operands.time_within(gpu, choice, FAR * best.1 + SLACK)?.min;
            if choice.text() == built_in.text() {
                standard = standard.min(seconds);
            }
            if seconds < best.1 {
                best = (choice.text(), seconds);
            }
        }
        each(question, &best.0, best.1 * 1e3, standard * 1e3);
        profile.answers.insert(question.key(), best.0);
    }
    Ok(profile)
}
