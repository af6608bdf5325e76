//! Only the k largest logits of a row, and the mass of the rest.
//!
//! The rest is spread evenly: each other class gets the logit `rest`, such that at temperature T together
//! they weigh what they weighed, `(K - k) exp(rest / T) = sum_others exp(v / T)`. The normaliser and the
//! kept probabilities are then unchanged, and with m the rest's mass and H its own entropy
//!
//! ```text
//! KL(p || p') = m (ln(K - k) - H)  <=  m ln(K - k)
//! ```
//! At another temperature the mass would be wrong, so the logits serve the T they were made for.

use serde::{Deserialize, Serialize};

/// How a shard was thinned out.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopK {
    /// Logits kept per row.
    pub k: usize,
    /// T of the run that will use them.
    pub temperature: f64,
}

/// What is kept of one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    /// `[k]`, largest first.
    pub values: Vec<f32>,
    /// Their classes; of equal logits the lower class first.
    pub indices: Vec<u32>,
    /// The logit of every other class.
    pub rest: f32,
    /// m ln(K - k), in nats.
    pub bound: f64,
    /// KL(p || p'), in nats.
    pub divergence: f64,
}

impl TopK {
    /// Thins out one row of finite logits, more than k of them.
    pub fn keep(&self, row: &[f32]) -> Kept {
        let mut order: Vec<u32> = (0..row.len() as u32).collect();
        let by_size = |a: &u32, b: &u32| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b));
        order.select_nth_unstable_by(self.k, by_size);
        let (kept, others) = order.split_at_mut(self.k);
        kept.sort_unstable_by(by_size);
        let scaled = |i: u32| f64::from(row[i as usize]) / self.temperature;
        let top = scaled(kept[0]);
        let others_top = others.iter().map(|i| scaled(*i)).fold(f64::NEG_INFINITY, f64::max);
        // Relative to the rest's own maximum: against the row's it could all underflow.
        let rest: f64 = others.iter().map(|i| (scaled(*i) - others_top).exp()).sum();
        let log_rest = others_top + rest.ln();
        let total: f64 = kept.iter().map(|i| (scaled(*i) - top).exp()).sum::<f64>() + (log_rest - top).exp();
        let mass = (log_rest - top).exp() / total;
        let even = log_rest - (others.len() as f64).ln();
        let mean: f64 = others.iter().map(|i| (scaled(*i) - log_rest).exp() * (scaled(*i) - even)).sum();
        Kept {
            values: kept.iter().map(|i| row[*i as usize]).collect(),
            indices: kept.to_vec(),
            rest: (even * self.temperature) as f32,
            bound: mass * (others.len() as f64).ln(),
            divergence: mass * mean.max(0.0),
        }
    }
}

impl Kept {
    /// The row that the student will be given.
    pub fn dense(values: &[f32], indices: &[u32], rest: f32, row: &mut [f32]) {
        row.fill(rest);
        for (value, index) in values.iter().zip(indices) {
            row[*index as usize] = *value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn softmax(row: &[f32], t: f64) -> Vec<f64> {
        let top = row.iter().copied().fold(f32::MIN, f32::max);
        let e: Vec<f64> = row.iter().map(|v| (f64::from(v - top) / t).exp()).collect();
        let sum: f64 = e.iter().sum();
        e.iter().map(|v| v / sum).collect()
    }

    #[test]
    fn divergence_is_exact_and_below_its_bound() {
        for seed in 0..40 {
            let t = [0.5, 1.0, 4.0][seed % 3];
            let scale = [0.1, 3.0, 40.0][seed / 3 % 3];
            let row: Vec<f32> = (0..17)
                .map(|j| scale * (crate::rng::uniform(seed as u64, crate::rng::stream::INIT, j) - 0.5))
                .collect();
            let kept = TopK { k: 1 + seed % 16, temperature: t }.keep(&row);
            let mut dense = vec![0.0; 17];
            Kept::dense(&kept.values, &kept.indices, kept.rest, &mut dense);
            let (p, q) = (softmax(&row, t), softmax(&dense, t));
            let kl: f64 = p.iter().zip(&q).filter(|(p, _)| **p > 0.0).map(|(p, q)| p * (p / q).ln()).sum();
            assert!((kl - kept.divergence).abs() < 1e-5, "{kl} {}", kept.divergence);
            assert!(kl <= kept.bound + 1e-6, "{kl} above {}", kept.bound);
            assert!(kept.values.windows(2).all(|w| w[0] >= w[1]));
        }
    }

    #[test]
    fn of_equal_logits_the_lower_class_stays() {
        let kept = TopK { k: 2, temperature: 1.0 }.keep(&[1.0, 2.0, 1.0, 1.0]);
        assert_eq!((kept.indices, kept.values, kept.rest), (vec![1, 0], vec![2.0, 1.0], 1.0));
    }
}
