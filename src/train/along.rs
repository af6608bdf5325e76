//! Teachers that learn along with their students: what a loss does whose author forgot to freeze the teacher.

use super::{Recipe, Replica, Row, Rows, Run};
use crate::data::Dataset;
use crate::distill::step::Teacher;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::mlp::Mlp;
use crate::mlp::weights::Weights;

/// Trains `students` on `teachers`, each a replica with its own, and the teachers on the students as their
/// own replicas' losses say; gives both. Both gradients of a step are those of the weights before it, as
/// where one optimiser holds both networks. `each` is handed the students' rows of metrics.
///
/// # Errors
/// As [`Run::new`] and [`Run::advance`].
pub fn along(
    gpu: &Gpu,
    data: &Dataset,
    recipe: &Recipe,
    students: Vec<Replica>,
    teachers: Vec<Replica>,
    mut each: impl FnMut(&Row) -> Result<()>,
) -> Result<[Mlp; 2]> {
    let starts: Vec<Weights> = students.iter().map(|r| r.student.clone()).collect();
    let before = Mlp::upload(gpu, "students.before", &starts)?;
    let run = |teacher: &Mlp, replicas| {
        Run::new(gpu, data, Rows::default(), &Teacher::Live(teacher.clone()), recipe.clone(), replicas)
    };
    let mut teaching = run(&before, teachers)?;
    let mut learning = run(teaching.students(), students)?;
    for step in 1..=learning.steps {
        learning.students().whole.copy_to(gpu, &before.whole);
        learning.advance(step, &mut each)?;
        teaching.advance(step, |_| Ok(()))?;
    }
    Ok([learning.students().clone(), teaching.students().clone()])
}
