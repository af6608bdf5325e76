//! The ensemble of teachers against [`crate::reference::softmax`].

use crate::error::Result;
use crate::gpu::device::Gpu;
use crate::kernels::ensemble::{self, Rule};
use crate::kernels::head::Teacher;
use crate::kernels::step::{self, Step};
use crate::reference::softmax::{log_add_exp, log_softmax};
use crate::reference::{Bounded, Rounded};
use crate::verify::inputs::{Data, Inputs};
use crate::verify::zone::{Padding, Zone};
use crate::verify::{Judge, Verdict, run};

/// A batch of several teachers' logits.
#[derive(Clone, Debug)]
pub struct Case {
    /// Rows of the batch.
    pub batch: usize,
    /// Rows that the step fills; the others become zero.
    pub rows: usize,
    /// Classes.
    pub k: usize,
    /// Replicas, each with its own order and temperature.
    pub replicas: usize,
    /// Teachers.
    pub members: usize,
    /// How they become one.
    pub rule: Rule,
    /// Logits by row number instead of by batch row.
    pub cached: bool,
    /// T of the first replica.
    pub temperature: f32,
    /// Of all logits.
    pub padding: Padding,
    /// Kind of the logits.
    pub data: Data,
    /// Of the inputs.
    pub seed: u64,
}

impl Case {
    pub(super) fn variant(&self) -> String {
        let rule = match self.rule {
            Rule::Arithmetic => "arithmetic",
            Rule::Geometric => "geometric",
        };
        format!("{rule} {}", if self.cached { "cached" } else { "live" })
    }
}

/// See [`super::Case::check`].
///
/// # Errors
/// As [`super::Case::check`].
pub fn check(gpu: &Gpu, case: &Case) -> Result<Verdict> {
    let Case { batch, rows, k, replicas, members, rule, cached, padding, data, .. } = *case;
    let mut inputs = Inputs::new(case.seed);
    let items = batch + 5;
    // Cached logits are one set for all replicas; of live ones each replica has its own.
    let (height, sets) = if cached { (items, 1) } else { (batch, replicas) };
    let logits: Vec<Vec<Vec<f32>>> =
        (0..members).map(|_| (0..sets).map(|_| inputs.logits(data, height, k)).collect()).collect();
    let zones = logits
        .iter()
        .map(|u| Zone::filled(gpu, "u", [sets, height, k], padding, &u.concat()))
        .collect::<Result<Vec<_>>>()?;
    let teachers: Vec<Teacher> = zones
        .iter()
        .map(|z| if cached { Teacher::Cached(z.tensor.clone()) } else { Teacher::Live(z.tensor.clone()) })
        .collect();
    let order = inputs.indices(replicas * items, items);
    let order_zone = Zone::filled(gpu, "order", [replicas, 1, items], padding, &order)?;
    let v = Zone::output(gpu, "v", [replicas, batch, k], padding)?;
    let ring = step::ring(gpu, replicas)?;
    let now = |r: usize| Step {
        row_start: (r % 3) as u32,
        rows: rows as u32,
        temperature: case.temperature * (1.0 + 0.25 * r as f32),
        ..Step::default()
    };
    step::write(gpu, &ring, &(0..replicas).map(now).collect::<Vec<_>>())?;
    run(gpu, 1, |plan| {
        ensemble::record(plan, "check.ensemble", rule, &ring, &order_zone.tensor, &teachers, &v.tensor)
    })?;

    let mut judge = Judge::new();
    let v = v.read(gpu)?;
    let share = 1.0 / members as f64;
    for r in 0..replicas {
        let now = now(r);
        let t = Rounded::exact(f64::from(now.temperature));
        let mut expected = Vec::new();
        for i in 0..batch {
            if i >= rows {
                expected.extend(vec![Rounded::exact(0.0); k]);
                continue;
            }
            let item = if cached { order[r * items + now.row_start as usize + i] as usize } else { i };
            let set = if cached { 0 } else { r };
            let row = |m: usize| -> Vec<Rounded> {
                let u = &logits[m][set][item * k..(item + 1) * k];
                u.iter().map(|x| Rounded::exact(f64::from(*x))).collect()
            };
            let mut sum: Option<Vec<Rounded>> = None;
            for m in 0..members {
                let member: Vec<Rounded> = match rule {
                    Rule::Geometric => row(m).into_iter().map(|u| u * Rounded::parameter(share)).collect(),
                    Rule::Arithmetic => {
                        let log_p = log_softmax(&row(m), t);
                        log_p.into_iter().map(|p| p + Rounded::parameter(share.ln())).collect()
                    }
                };
                sum = Some(match (sum, rule) {
                    (None, _) => member,
                    (Some(s), Rule::Geometric) => s.into_iter().zip(member).map(|(a, b)| a + b).collect(),
                    (Some(s), Rule::Arithmetic) => {
                        s.into_iter().zip(member).map(|(a, b)| log_add_exp(a, b)).collect()
                    }
                });
            }
            let scale = if rule == Rule::Arithmetic { t } else { Rounded::exact(1.0) };
            expected.extend(sum.unwrap_or_default().into_iter().map(|x| x * scale));
        }
        judge.hold("v", r, &v.replica(r), &Bounded::from_rounded(batch, k, &expected), 1);
    }
    judge.guard(&v, |_| true);
    Ok(judge.verdict("ensemble", case.variant(), case))
}
