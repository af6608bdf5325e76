//! From stored values to a network's inputs: `(x * scale - mean) * inv_std`, per feature.

use serde::{Deserialize, Serialize};

use super::Dataset;
use crate::error::{Error, Result};

/// What is done to every row before the first layer; stored with a model, so that later inputs get the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalisation {
    /// Applied first.
    pub scale: f32,
    /// Subtracted after scaling, `[features]`; `None`: nothing is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean: Option<Vec<f32>>,
    /// Multiplied last, `[features]`, 1 / standard deviation; `None`: nothing is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inv_std: Option<Vec<f32>>,
}

impl Normalisation {
    /// Scaling alone.
    pub fn scaled(scale: f32) -> Self {
        Self { scale, mean: None, inv_std: None }
    }

    /// Mean 0 and standard deviation 1 per feature over the rows of `train`, which must be training rows
    /// only, after its scale. A feature that does not vary becomes 0 and keeps its unit (`inv_std` 1).
    ///
    /// Accumulated in f64 by Welford's update, row by row; rows in a file are read through once.
    pub fn standardised(train: &Dataset) -> Result<Self> {
        let features = train.features();
        let (mut mean, mut squares) = (vec![0.0_f64; features], vec![0.0_f64; features]);
        let chunk = (1_usize << 18).div_ceil(features);
        let mut values = vec![0.0; chunk * features];
        for first in (0..train.rows()).step_by(chunk) {
            let index: Vec<u32> = (first..train.rows().min(first + chunk)).map(|row| row as u32).collect();
            let values = &mut values[..index.len() * features];
            train.read_rows(&index, values)?;
            for (i, row) in values.chunks_exact(features).enumerate() {
                let n = (first + i + 1) as f64;
                for ((&x, mean), squares) in row.iter().zip(&mut mean).zip(&mut squares) {
                    let x = f64::from(x * train.normalisation.scale);
                    let delta = x - *mean;
                    *mean += delta / n;
                    *squares += delta * (x - *mean);
                }
            }
        }
        let inv_std = squares.iter().zip(&mean).map(|(&squares, &mean)| {
            let std = (squares / train.rows() as f64).sqrt();
            // What f32 cannot tell from the mean is rounding, not variation.
            if std <= mean.abs() * f64::from(f32::EPSILON) { 1.0 } else { (1.0 / std) as f32 }
        });
        Ok(Self {
            scale: train.normalisation.scale,
            inv_std: Some(inv_std.collect()),
            mean: Some(mean.iter().map(|&m| m as f32).collect()),
        })
    }

    /// Fails unless every number is finite and there is one per feature; for values that came from a file.
    pub fn check(&self, features: usize) -> Result<()> {
        let bad = |what: &str, found: String| {
            Err(Error::usage(format!("normalisation {what}"), format!("{features} finite numbers"), found))
        };
        if !self.scale.is_finite() {
            return Err(Error::usage("normalisation scale", "a finite number", self.scale.to_string()));
        }
        for (what, values) in [("mean", &self.mean), ("inv_std", &self.inv_std)] {
            let Some(values) = values else { continue };
            if values.len() != features {
                return bad(what, values.len().to_string());
            }
            if let Some(value) = values.iter().find(|v| !v.is_finite()) {
                return bad(what, value.to_string());
            }
        }
        Ok(())
    }

    /// The same as one multiplication and one addition per feature: `x * gain + shift`.
    pub fn gain_and_shift(&self, features: usize) -> [Vec<f32>; 2] {
        let at = |values: &Option<Vec<f32>>, j: usize, default| values.as_ref().map_or(default, |v| v[j]);
        // In f64: the mean of a feature that hardly varies times its inv_std is large.
        let pair = |j| (f64::from(at(&self.mean, j, 0.0)), f64::from(at(&self.inv_std, j, 1.0)));
        let gain = (0..features).map(|j| (f64::from(self.scale) * pair(j).1) as f32).collect();
        let shift = (0..features).map(|j| (0.0 - pair(j).0 * pair(j).1) as f32).collect();
        [gain, shift]
    }

    /// Turns one row of stored values into inputs, in place.
    pub fn apply(&self, row: &mut [f32]) {
        for v in row.iter_mut() {
            *v *= self.scale;
        }
        if let Some(mean) = &self.mean {
            row.iter_mut().zip(mean).for_each(|(v, m)| *v -= m);
        }
        if let Some(inv_std) = &self.inv_std {
            row.iter_mut().zip(inv_std).for_each(|(v, s)| *v *= s);
        }
    }
}
