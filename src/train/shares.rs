//! The students of a run on several devices at once, each in a thread of its own.
//!
//! Where a driver computes in the thread that calls it, as lavapipe does for small steps, this is how a run gets
//! all cores. No replica reads what another writes, so the bits are those of one device.

use std::ops::Range;
use std::sync::OnceLock;
use std::time::Instant;

use super::{Recipe, Replica, Row, Rows, Run};
use crate::data::Dataset;
use crate::distill::step::Teacher;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::mlp::Mlp;
use crate::mlp::weights::Weights;

/// What [`Run::new`] takes, for a run to the end of its recipe.
pub struct Whole<'a> {
    /// Where the teacher is and the first share trains; the others have devices beside it.
    pub gpu: &'a Gpu,
    /// The training rows.
    pub data: &'a Dataset,
    /// Which of them; their `device_memory` is that of each device.
    pub rows: Rows,
    /// Whom the students learn from.
    pub teacher: &'a Teacher,
    /// What all replicas have in common.
    pub recipe: Recipe,
    /// One to a student.
    pub replicas: Vec<Replica>,
    /// As [`Run::let_fall`].
    pub let_fall: bool,
}

/// Students at the end of their run.
pub struct Trained {
    /// In the order of the replicas.
    pub students: Vec<Weights>,
    /// Optimiser steps of each.
    pub steps: u64,
    /// As [`Run::fallen`].
    pub fallen: Vec<Option<u64>>,
    /// Until the last of them was there, the start of its device and the compiler included.
    pub seconds: f64,
}

impl Trained {
    /// The students on a device, to be asked.
    ///
    /// # Errors
    /// As [`Mlp::upload`].
    pub fn upload(&self, gpu: &Gpu) -> Result<Mlp> {
        Mlp::upload(gpu, "students", &self.students)
    }
}

impl Whole<'_> {
    /// Optimiser steps to the end.
    pub fn steps(&self) -> u64 {
        self.recipe.steps(self.rows.walked.first().map_or(self.data.rows(), Vec::len))
    }

    /// Trains at most `share` replicas on a device; `each` is handed the first share's rows of metrics.
    ///
    /// # Errors
    /// As [`Run::new`], [`Run::advance`] and [`Gpu::beside`]: the first error of any share ends all of them.
    pub fn train(&self, share: usize, each: impl FnMut(&Row) -> Result<()>) -> Result<Trained> {
        let began = Instant::now();
        let all = self.replicas.len();
        if share >= all {
            return self.part(self.gpu, self.teacher, 0..all, began, each);
        }
        let failed = OnceLock::new();
        let (whole, failed_so_far) = (self, &failed);
        let part = move |gpu: &Gpu, of: Range<usize>, each: &mut dyn FnMut(&Row) -> Result<()>| {
            let teacher = whole.teacher.copied(whole.gpu, gpu, of.clone())?;
            let before = teacher.hashes_blocking(gpu)?;
            let trained = whole.part(gpu, &teacher, of, began, |row| match failed_so_far.get() {
                None => each(row),
                Some(_) => Err(Error::Run("another share has failed".to_owned())),
            })?;
            // Frozen by construction, and shown all the same.
            match teacher.hashes_blocking(gpu)? == before {
                true => Ok(trained),
                false => Err(Error::Run("a device's copy of the teacher changed".to_owned())),
            }
        };
        let note = move |result: Result<Trained>| result.map_err(|error| drop(failed_so_far.set(error))).ok();
        let parts: Vec<Option<Trained>> = std::thread::scope(|scope| {
            let ranges = (0..all).step_by(share).map(|start| start..all.min(start + share));
            let others: Vec<_> = ranges
                .skip(1)
                .map(|of| {
                    scope.spawn(move || {
                        note(self.gpu.beside().and_then(|gpu| part(&gpu, of, &mut |_| Ok(()))))
                    })
                })
                .collect();
            let mut each = each;
            let first = note(part(self.gpu, 0..share, &mut each));
            let others =
                others.into_iter().map(|h| h.join().unwrap_or_else(|p| std::panic::resume_unwind(p)));
            std::iter::once(first).chain(others).collect()
        });
        if let Some(error) = failed.into_inner() {
            return Err(error);
        }
        let whole = parts.into_iter().flatten().reduce(|mut all, part| {
            all.students.extend(part.students);
            all.fallen.extend(part.fallen);
            all.seconds = all.seconds.max(part.seconds);
            all
        });
        whole.ok_or_else(|| Error::usage("replicas", "at least one", "none"))
    }

    /// The replicas `of`, on one device.
    fn part(
        &self,
        gpu: &Gpu,
        teacher: &Teacher,
        of: Range<usize>,
        began: Instant,
        each: impl FnMut(&Row) -> Result<()>,
    ) -> Result<Trained> {
        let (rows, replicas) = (self.rows.of(of.clone()), self.replicas[of.clone()].to_vec());
        let mut run = Run::new(gpu, self.data, rows, teacher, self.recipe.clone(), replicas)?;
        run.first = of.start;
        if self.let_fall {
            run.let_fall();
        }
        run.advance(run.steps, each)?;
        let students = run.students().read_blocking(gpu)?;
        let seconds = began.elapsed().as_secs_f64();
        Ok(Trained { students, steps: run.steps, fallen: run.fallen().to_vec(), seconds })
    }
}

impl Rows {
    /// Those of the replicas `of`.
    fn of(&self, of: Range<usize>) -> Self {
        let part =
            |lists: &[Vec<u32>]| if lists.len() > 1 { lists[of.clone()].to_vec() } else { lists.to_vec() };
        Self { walked: part(&self.walked), labels: part(&self.labels), device_memory: self.device_memory }
    }
}
