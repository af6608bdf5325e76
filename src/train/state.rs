//! What changes from step to step, on the host: taken from a run, given back to one of the same form.
//!
//! Weights, moments, the step and the sums under way. Orders, splits and schedules are pure functions
//! of seed and step and need no state.

use std::time::Instant;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::error::{Error, Result};
use crate::train::Run;
use crate::train::left::Left;
use crate::train::log::Sums;

/// Numbers in one replica's sums.
const SUMS: usize = size_of::<Sums>() / size_of::<f64>();

/// A run's state after `step` steps.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Optimiser steps done.
    pub step: u64,
    /// Weights and moments by name, each `[replicas, len]`.
    pub arenas: Vec<(String, Vec<f32>)>,
    replicas: usize,
    interval: Vec<Sums>,
    epoch: Vec<Sums>,
}

impl Run<'_> {
    /// The state after the steps done; the device has to be idle.
    ///
    /// # Errors
    /// [`Error::Device`]; [`Error::Run`] where a weight or a moment is not a finite number.
    pub fn state_blocking(&mut self) -> Result<State> {
        let mut arenas = Vec::new();
        for (name, tensor) in self.step.arenas() {
            let values: Vec<f32> = tensor.read_blocking(self.gpu)?;
            if values.iter().any(|v| !v.is_finite()) {
                self.fault = Some(self.done + 1);
                return Err(Error::Run(format!(
                    "step {}: `{name}` holds numbers that are not finite",
                    self.done
                )));
            }
            arenas.push((name.to_owned(), values));
        }
        let (interval, epoch) = (self.log.interval.clone(), self.log.epoch.clone());
        Ok(State { step: self.done, arenas, replicas: self.replicas.len(), interval, epoch })
    }

    /// Goes on from `state`, which a run of the same form was in.
    ///
    /// # Errors
    /// [`Error::Usage`] where the forms differ; [`Error::Device`].
    pub fn restore(&mut self, state: &State) -> Result<()> {
        let own = self.step.arenas();
        let form = |arenas: &[(&str, usize)], replicas: usize| {
            let list: Vec<_> = arenas.iter().map(|(name, len)| format!("{name} of {len}")).collect();
            format!("{} for {replicas} replicas", list.join(", "))
        };
        let wanted: Vec<_> = own.iter().map(|(n, t)| (*n, t.shape[0] * t.shape[2])).collect();
        let found: Vec<_> = state.arenas.iter().map(|(n, v)| (n.as_str(), v.len())).collect();
        if wanted != found || self.replicas.len() != state.replicas {
            let (wanted, found) = (form(&wanted, self.replicas.len()), form(&found, state.replicas));
            return Err(Error::usage("checkpoint", wanted, found)
                .with_hint("resume with the layers and the optimiser that the run began with"));
        }
        for ((_, tensor), (_, values)) in own.iter().zip(&state.arenas) {
            tensor.write(self.gpu, values)?;
        }
        self.done = state.step;
        self.log.interval.clone_from(&state.interval);
        self.log.epoch.clone_from(&state.epoch);
        self.log.began = (Instant::now(), state.step);
        self.log.left = Left::default();
        Ok(())
    }

    /// Gives the students the weights of `state`; the rest of the run stays as it is.
    ///
    /// # Errors
    /// As [`Run::restore`].
    pub fn restore_students(&mut self, students: &[f32]) -> Result<()> {
        self.step.student.whole.write(self.gpu, students)
    }
}

impl State {
    /// The students' weights.
    pub fn students(&self) -> &[f32] {
        self.arenas.first().map_or(&[], |(_, values)| values)
    }

    /// A safetensors file's bytes, with `more` arenas beside its own.
    ///
    /// # Errors
    /// [`Error::Run`] where the library refuses: a bug of ours.
    pub fn to_bytes(&self, more: &[(&str, &[f32])]) -> Result<Vec<u8>> {
        let arenas = self.arenas.iter().map(|(name, values)| (name.as_str(), values.as_slice()));
        let mut views = Vec::new();
        let bug = |e: safetensors::SafeTensorError| Error::Run(format!("a checkpoint cannot be formed: {e}"));
        for (name, values) in arenas.chain(more.iter().copied()) {
            let shape = vec![self.replicas, values.len() / self.replicas];
            let view = TensorView::new(Dtype::F32, shape, bytemuck::cast_slice(values)).map_err(bug)?;
            views.push((name.to_owned(), view));
        }
        for (name, sums) in [("sums.interval", &self.interval), ("sums.epoch", &self.epoch)] {
            let view = TensorView::new(Dtype::F64, vec![self.replicas, SUMS], bytemuck::cast_slice(sums));
            views.push((name.to_owned(), view.map_err(bug)?));
        }
        safetensors::serialize(views, None).map_err(bug)
    }

    /// Reads the arenas named `names`, in that order, from bytes that [`State::to_bytes`] made, and the
    /// arena `more` where it is there. The text of an error says what is wrong with them.
    pub fn from_bytes(
        bytes: &[u8],
        step: u64,
        names: &[String],
        more: &str,
    ) -> std::result::Result<(Self, Option<Vec<f32>>), String> {
        let file = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
        let values = |name: &str, dtype: Dtype| {
            let view = file.tensor(name).map_err(|e| format!("{name}: {e}"))?;
            match (view.dtype() == dtype, view.shape()) {
                (true, &[replicas, _]) => Ok((replicas, view.data().to_vec())),
                _ => Err(format!("{name}: expected a matrix of {dtype:?}")),
            }
        };
        let arena = |name: &str| {
            let (replicas, bytes) = values(name, Dtype::F32)?;
            Ok::<_, String>((replicas, bytemuck::pod_collect_to_vec::<u8, f32>(&bytes)))
        };
        let mut state = Self { step, arenas: vec![], replicas: 0, interval: vec![], epoch: vec![] };
        for name in names {
            let (replicas, values) = arena(name)?;
            state.replicas = replicas;
            state.arenas.push((name.clone(), values));
        }
        for (name, to) in [("sums.interval", &mut state.interval), ("sums.epoch", &mut state.epoch)] {
            let (replicas, bytes) = values(name, Dtype::F64)?;
            if replicas != state.replicas || bytes.len() != replicas * size_of::<Sums>() {
                return Err(format!("{name}: {} bytes for {} replicas", bytes.len(), state.replicas));
            }
            *to = bytemuck::pod_collect_to_vec(&bytes);
        }
        let more = file.names().contains(&more).then(|| arena(more)).transpose()?;
        Ok((state, more.map(|(_, values)| values)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_survives_its_bytes() {
        let sums = |x: f64| vec![Sums { steps: x, hard: 1.0 / 3.0, ..Sums::default() }; 2];
        let state = State {
            step: 7,
            arenas: vec![("student".into(), vec![0.1; 8]), ("moment_1".into(), vec![-0.0; 8])],
            replicas: 2,
            interval: sums(3.0),
            epoch: sums(0.1 + 0.2),
        };
        let names: Vec<String> = state.arenas.iter().map(|(n, _)| n.clone()).collect();
        let bytes = state.to_bytes(&[("best", &[1.0; 8])]).expect("bytes");
        let (read, best) = State::from_bytes(&bytes, 7, &names, "best").expect("a state");
        assert_eq!(read, state);
        assert_eq!(best.as_deref(), Some([1.0_f32; 8].as_slice()));
        assert_eq!(read.arenas[1].1[0].to_bits(), (-0.0_f32).to_bits());
        let bytes = state.to_bytes(&[]).expect("bytes");
        assert_eq!(State::from_bytes(&bytes, 7, &names, "best").expect("a state").1, None);
        assert!(State::from_bytes(&bytes, 7, &["moment_2".into()], "best").is_err());
        assert!(State::from_bytes(&bytes[..bytes.len() - 8], 7, &names, "best").is_err());
    }
}
