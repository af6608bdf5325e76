//! Students of one shape trained side by side, and what they say of rows: as `demo`, `distill --seeds`,
//! `sweep` and `reproduce` share it.

use crate::data::Dataset;
use crate::distill::infer::Inference;
use crate::distill::step::Teacher;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::mlp::Mlp;
use crate::reference::Matrix;
use crate::report::progress::Progress;
use crate::train::shares::{Trained, Whole};
use crate::train::{Recipe, Replica, Rows};

/// Rows per batch in evaluation: large enough to keep a device busy, small enough for any.
pub const EVAL_BATCH: usize = 1000;

/// Where students train, and who watches.
#[derive(Clone, Copy)]
pub struct Cohort<'a> {
    pub gpu: &'a Gpu,
    pub train: &'a Dataset,
    /// A student whose numbers are no longer finite falls out and the others go on; it ends the run if not.
    pub let_fall: bool,
    /// Print no progress.
    pub quiet: bool,
}

impl Cohort<'_> {
    /// Trains `replicas` to the end of `recipe` under one progress bar, which shows the first one's loss.
    pub fn train(
        &self,
        title: &str,
        rows: Rows,
        teacher: &Teacher,
        recipe: Recipe,
        replicas: Vec<Replica>,
    ) -> Result<Trained> {
        let share = self.gpu.share(replicas.len());
        let Self { gpu, train: data, let_fall, .. } = *self;
        let whole = Whole { gpu, data, rows, teacher, recipe, replicas, let_fall };
        let mut progress = Progress::new(title, whole.steps(), self.quiet);
        let mut shown = 0;
        let trained = whole.train(share, |row| {
            // The first student's rows come before those of the others, until it falls out.
            if row.step > shown {
                shown = row.step;
                progress.at(row.step, row.steps, row.left, &format!("loss {:.4}", row.loss));
            }
            Ok(())
        })?;
        progress.finish();
        Ok(trained)
    }
}

/// Logits [rows, classes] of each of `students` over `rows`.
pub fn logits_of_each(gpu: &Gpu, students: &Mlp, rows: &Dataset) -> Result<Vec<Matrix>> {
    let classes = students.sizes.last().copied().unwrap_or(0);
    let all = Inference::record(gpu, students, rows, EVAL_BATCH)?.logits_blocking(gpu)?;
    Ok(all.iter().map(|z| Matrix::from_f32(rows.rows(), classes, z)).collect())
}
