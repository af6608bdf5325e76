//! No dispatch so long that a watchdog takes the device for hung (2 s on Windows, some seconds
//! elsewhere): a long product is made in pieces, whole rows of tiles of C one after the other.
//!
//! Sums are never cut, and an element is made the same way wherever its tile lies, so that the bits
//! stay, and the length of a piece may go by a measured rate.

use super::family::Variant;
use super::product::Product;
use super::{Choice, Epilogue, Params};
use crate::error::Result;
use crate::gpu::{Call, Plan, Tensor};

/// Operations of a product that no device is measured for: half a second at 8 GFLOP/s.
const SHORT: f64 = 4e9;
/// What a piece may take at the measured rate, in seconds: far below any watchdog, for a device that
/// draws a screen meanwhile is slower.
const LONGEST: f64 = 0.25;
/// Rows of tiles that are measured.
const PROBE: usize = 8;

impl Product<'_> {
    /// How many rows of tiles go into one dispatch.
    pub(super) fn tiles_at_once(
        &self,
        plan: &Plan<'_>,
        choice: Choice,
        epilogue: &Epilogue<'_>,
    ) -> Result<usize> {
        let tiles = self.m.div_ceil(choice.variant.tile[0] as usize).max(1);
        let flops = self.work().flops;
        if flops < SHORT || tiles == 1 {
            return Ok(tiles);
        }
        let key = format!("{} {}", choice.text(), self.flags.form.name());
        let rate = plan.gpu.rate(&key, || self.measure_blocking(plan, choice, epilogue))?;
        Ok(((LONGEST * rate / (flops / tiles as f64)) as usize).clamp(1, tiles))
    }

    /// Operations per second over the first rows of C, into memory of its own.
    fn measure_blocking(&self, plan: &Plan<'_>, choice: Choice, epilogue: &Epilogue<'_>) -> Result<f64> {
        let gpu = plan.gpu;
        let m = self.m.min(PROBE * choice.variant.tile[0] as usize);
        let scratch = |rows, cols| Tensor::zeros(gpu, "probe", [self.replicas, rows, cols]);
        let mut c = scratch(m, self.c.row_stride)?;
        c.shape[2] = self.n;
        let mut keep = scratch(m, self.c.row_stride)?;
        keep.shape[2] = self.n;
        let row_sums = scratch(1, m)?;
        let ends = Epilogue {
            keep: epilogue.keep.map(|_| &keep),
            row_sums: epilogue.row_sums.map(|_| &row_sums),
            ..*epilogue
        };
        let probe = Product { label: "probe", c: &c, m, ..*self };
        let mut measured = Plan::new(gpu);
        probe.record(&mut measured, choice, usize::MAX, &ends)?;
        let program = measured.finish()?;
        // The first run compiles.
        program.time_blocking(gpu, 1)?;
        Ok(probe.work().flops / program.time_blocking(gpu, 1)?.max(1e-9))
    }

    /// Records the product, `tiles` rows of tiles to a dispatch.
    pub(super) fn record(
        &self,
        plan: &mut Plan<'_>,
        choice: Choice,
        tiles: usize,
        epilogue: &Epilogue<'_>,
    ) -> Result<()> {
        let product = if choice.variant.turned { Self { a: self.b, b: self.a, ..*self } } else { *self };
        // A split may be asked for that K is too short for: then fewer parts have work.
        match choice.splits {
            1 => product.whole(plan, choice.variant, tiles, epilogue),
            splits => product.split(plan, choice.variant, splits, tiles, epilogue),
        }
    }
}

/// Records `call`, a product of `variant`, `tiles` rows of tiles to a dispatch.
pub(super) fn dispatch(
    plan: &mut Plan<'_>,
    variant: &Variant,
    tiles: usize,
    call: &Call<'_, Params>,
) -> Result<()> {
    let [x, all, z] = call.grid;
    let tiles = u32::try_from(tiles).unwrap_or(u32::MAX).clamp(1, all.max(1));
    for first in (0..all).step_by(tiles as usize) {
        let count = tiles.min(all - first);
        let share = f64::from(count) / f64::from(all);
        let mut work = call.work;
        work.flops *= share;
        work.bytes *= share;
        let piece = Call {
            kernel: call.kernel,
            constants: call.constants.clone(),
            label: call.label,
            params: Params { row_start: first * variant.tile[0], ..call.params },
            tensors: call.tensors,
            grid: [x, count, z],
            work,
        };
        plan.dispatch(piece)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Activation, Flags, Form, record};
    use super::*;
    use crate::gpu::{AdapterChoice, Gpu};
    use crate::rng;

    fn open() -> Gpu {
        Gpu::open(&AdapterChoice::default()).expect("a device")
    }

    fn drawn(gpu: &Gpu, shape: [usize; 3], seed: u64) -> Tensor {
        let n = shape.iter().product::<usize>() as u64;
        let values: Vec<f32> = (0..n).map(|i| rng::uniform(seed, rng::stream::CHECK, i) - 0.5).collect();
        Tensor::upload(gpu, "operand", shape, &values).expect("memory")
    }

    /// C and what lies beside it, for `tiles` rows of tiles to a dispatch, and the number of dispatches.
    fn product(gpu: &Gpu, choice: Choice, form: Form, tiles: usize) -> (Vec<Vec<u32>>, usize) {
        let [m, n, k] = [203, 70, 37];
        let (a, b) = match form {
            Form::Forward => ([2, m, k], [2, n, k]),
            Form::InputGradient => ([2, m, k], [2, k, n]),
            Form::WeightGradient => ([2, k, m], [2, k, n]),
        };
        let (a, b) = (drawn(gpu, a, 1), drawn(gpu, b, 2));
        let (bias, saved) = (drawn(gpu, [2, 1, n], 3), drawn(gpu, [2, m, n], 4));
        let [c, keep] = [5, 6].map(|seed| drawn(gpu, [2, m, n], seed));
        let row_sums = drawn(gpu, [2, 1, m], 7);
        let ends = match form {
            Form::Forward => Epilogue {
                bias: Some(&bias),
                keep: Some(&keep),
                activation: Activation::Gelu,
                ..Epilogue::default()
            },
            Form::InputGradient => {
                Epilogue { mask: Some((Activation::Relu, &saved)), ..Epilogue::default() }
            }
            Form::WeightGradient => {
                Epilogue { row_sums: Some(&row_sums), accumulate: true, ..Epilogue::default() }
            }
        };
        let flags = Flags::new(form, &ends);
        let whole = Product { label: "c", flags, a: &a, b: &b, c: &c, m, n, k, replicas: 2 };
        let mut plan = Plan::new(gpu);
        whole.record(&mut plan, choice, tiles, &ends).expect("dispatches");
        let program = plan.finish().expect("a plan");
        program.submit(gpu, 1).expect("a submission");
        let read = |t: &Tensor| t.read_padded_blocking::<u32>(gpu).expect("an output");
        ([&c, &keep, &row_sums].map(read).to_vec(), program.len())
    }

    #[test]
    fn pieces_give_the_bits_of_the_whole() {
        let gpu = open();
        for choice in Choice::all(&gpu) {
            // The tiles that drivers compile soonest, one of each member.
            if !["plain", "vec4-32x32", "tile4-16x16", "subgroup8-16x64", "subgroup8-32x16"].contains(&choice.variant.name) {
                continue;
            }
            let tiles = 203_usize.div_ceil(choice.variant.tile[0] as usize);
            let own = usize::from(choice.splits > 1);
            for form in Form::ALL {
                let (whole, count) = product(&gpu, choice, form, usize::MAX);
                assert_eq!(count, 1 + own);
                for at_once in [1, 3] {
                    let (pieces, count) = product(&gpu, choice, form, at_once);
                    assert_eq!(count, tiles.div_ceil(at_once) + own, "{} {form:?}", choice.text());
                    assert_eq!(pieces, whole, "{} {form:?} by {at_once}", choice.text());
                }
            }
        }
    }

    #[test]
    fn no_dispatch_of_a_large_layer_runs_into_a_watchdog() {
        let gpu = open();
        let [m, n, k] = [2048, 2048, 4096];
        let (x, w) = (drawn(&gpu, [1, m, k], 1), drawn(&gpu, [1, n, k], 2));
        let y = Tensor::zeros(&gpu, "y", [1, m, n]).expect("memory");
        let mut plan = Plan::new(&gpu);
        record(&mut plan, "large", Form::Forward, &x, &w, &y, &Epilogue::default()).expect("dispatches");
        let program = plan.finish().expect("a plan");
        program.submit(&gpu, 1).expect("a submission");
        let Some(times) = program.profile_blocking(&gpu).expect("times") else { return };
        let longest = times.iter().fold(0.0_f64, |a, b| a.max(*b)) * 1e-9;
        println!("{} pieces, the longest {longest:.3} s", times.len());
        // Of 34 GFLOP: a device that makes them in less than the limit needs no pieces.
        let total = times.iter().sum::<f64>() * 1e-9;
        assert!(times.len() > 1 || total < 2.0 * LONGEST, "one dispatch of {total} s");
        assert!(longest < 2.0, "{longest} s");
    }
}
