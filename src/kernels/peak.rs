//! What the device can do at best, by kernels of our own: the yardsticks of `limbeck bench`.

use crate::error::Result;
use crate::gpu::pipeline::{Constant, Constants};
use crate::gpu::program::Work;
use crate::gpu::{Call, Kernel, Plan, Tensor};

params! {
    /// `struct Params` of `shaders/peak_fma.wgsl`.
    struct FmaParams { rounds: u32, addend: f32 }
}
params! {
    /// `struct Params` of `shaders/peak_copy.wgsl`.
    struct CopyParams { groups: u32 }
}

/// Invocations in a workgroup of the FMA kernel: a narrow one suits software drivers.
pub const WORKGROUPS: [u32; 3] = [8, 16, 64];
/// Vec4 of an invocation, and fused multiply-adds of each in a round.
const VECS: u32 = 8;
const ROUND: u32 = 16;

/// `shaders/peak_fma.wgsl`.
pub static FMA: Kernel = Kernel {
    name: "peak_fma",
    source: shader!("peak_fma"),
    params: FmaParams::FIELDS,
    variants: || WORKGROUPS.map(constants).to_vec(),
};
/// `shaders/peak_copy.wgsl`.
pub static COPY: Kernel = Kernel {
    name: "peak_copy",
    source: shader!("peak_copy"),
    params: CopyParams::FIELDS,
    variants: || vec![vec![]],
};
/// This module's part of the list of kernels.
pub const KERNELS: &[&Kernel] = &[&FMA, &COPY];

fn constants(workgroup: u32) -> Constants {
    vec![("WORKGROUP", Constant::U32(workgroup))]
}

/// Records 16 `rounds` fused multiply-adds of eight vec4 in one invocation per element of `result`
/// `[1, 1, n]` and returns the number of floating-point operations.
///
/// # Errors
/// As [`Plan::dispatch`].
pub fn record_fma(plan: &mut Plan<'_>, workgroup: u32, rounds: u32, result: &Tensor) -> Result<f64> {
    let n = result.shape[2] as u32;
    let flops = f64::from(n) * 2.0 * 4.0 * f64::from(VECS * ROUND) * f64::from(rounds);
    plan.dispatch(Call {
        kernel: &FMA,
        constants: constants(workgroup),
        label: "peak.fma",
        params: FmaParams { rounds, addend: 0.1875 },
        tensors: &[("result", result)],
        grid: [n.div_ceil(workgroup), 1, 1],
        work: Work { flops, bytes: 0.0 },
    })?;
    Ok(flops)
}

/// Records a copy of `source` into `copy`, tensors of the same shape, and returns the bytes moved,
/// read and written.
///
/// # Errors
/// As [`Plan::dispatch`].
pub fn record_copy(plan: &mut Plan<'_>, source: &Tensor, copy: &Tensor) -> Result<f64> {
    let groups = copy.span() / 4;
    assert_eq!(source.span(), copy.span());
    plan.dispatch(Call {
        kernel: &COPY,
        constants: vec![],
        label: "peak.copy",
        params: CopyParams { groups: groups as u32 },
        tensors: &[("source", source), ("copy", copy)],
        grid: [groups.div_ceil(64 * 16) as u32, 1, 1],
        work: Work::new(0, 8 * groups),
    })?;
    Ok(32.0 * groups as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::program::Part;
    use crate::gpu::readback::Flights;
    use crate::gpu::{AdapterChoice, Gpu, Program};

    /// Bits of all kinds: NaNs with a payload and subnormals are among them.
    fn bits(seed: u32, n: u32) -> Vec<u32> {
        (0..n).map(|i| i.wrapping_mul(0x9e37_79b9) ^ seed).collect()
    }

    /// For both ways of encoding: past wgpu, and by it as with checked shaders and without Vulkan.
    fn both() -> [Gpu; 2] {
        [false, true].map(|checked| {
            Gpu::open(&AdapterChoice { checked, ..AdapterChoice::default() }).expect("an adapter")
        })
    }

    #[test]
    fn sums_end_at_the_fixed_point_and_copies_are_equal() {
        both().iter().for_each(sums_and_copies);
    }

    fn sums_and_copies(gpu: &Gpu) {
        let result = Tensor::zeros(gpu, "result", [1, 1, 100]).expect("memory");
        let source = bits(0, 5000);
        let from = Tensor::upload(gpu, "source", [1, 1, 5000], &source).expect("memory");
        let to = Tensor::zeros(gpu, "copy", [1, 1, 5000]).expect("memory");
        let mut plan = Plan::new(gpu);
        for workgroup in WORKGROUPS {
            result.fill_bits(gpu, 0x7fc0_0000);
            assert!((record_fma(&mut plan, workgroup, 100, &result).expect("recorded") - 10_240_000.0).abs() < 0.5);
        }
        record_copy(&mut plan, &from, &to).expect("recorded");
        let program = plan.finish().expect("finished");
        program.submit(gpu, 1).expect("submitted");
        // 32 values of 1/4. Roundings of a step, half of which the next one takes over, are below 2^-25: 2^-24 a
        // value. 31 additions of up to 8 are each within 2^-22.
        let sums = result.read_blocking::<f32>(gpu).expect("read");
        assert!(sums.iter().all(|s| (s - 8.0).abs() <= 32.0 * 2f32.powi(-24) + 31.0 * 2f32.powi(-22)), "{sums:?}");
        assert_eq!(to.read_blocking::<u32>(gpu).expect("read"), source);

        // More runs than there are slots, and each dispatch by itself.
        assert!(program.time_blocking(gpu, 130).expect("timed") > 0.0);
        if let Some(times) = program.profile_blocking(gpu).expect("timed") {
            assert_eq!(times.len(), program.len());
            assert!(times.iter().sum::<f64>() > 0.0, "{times:?}");
        }
    }

    fn copying(gpu: &Gpu, from: &Tensor, to: &Tensor) -> Program {
        let mut plan = Plan::new(gpu);
        record_copy(&mut plan, from, to).expect("recorded");
        plan.finish().expect("finished")
    }

    #[test]
    fn what_some_device_cannot_bind_is_refused_on_all() {
        let gpu = Gpu::open(&AdapterChoice::default()).expect("a device");
        let [from, to] = ["from", "to"].map(|name| Tensor::zeros(&gpu, name, [1, 2, 4]).expect("memory"));
        let refused = record_copy(&mut Plan::new(&gpu), &from.rows(1..2), &to.rows(0..1));
        assert!(refused.expect_err("no 256 bytes").to_string().contains("`from`, which begins at element 4"));
    }

    #[test]
    #[ignore = "wrong by intention: scripts/test-barriers.sh sees to it that the validation layer says so"]
    fn planted_a_copy_does_not_wait_for_what_it_copies() {
        let gpu = Gpu::open(&AdapterChoice::default()).expect("a device");
        let [a, b, c] = ["a", "b", "c"].map(|name| Tensor::zeros(&gpu, name, [1, 1, 64]).expect("memory"));
        let mut plan = Plan::new(&gpu);
        record_copy(&mut plan, &a, &b).expect("recorded");
        record_copy(&mut plan, &b, &c).expect("recorded");
        let mut program = plan.finish().expect("finished");
        program.forget_barriers();
        program.submit(&gpu, 1).expect("submitted");
        gpu.wait_blocking().expect("done");
    }

    // On lavapipe the kernel reads by way of an image over the buffer's memory.
    #[test]
    fn a_kernel_sees_every_bit_of_its_tensor_whoever_changed_it() {
        both().iter().for_each(sees_every_bit);
    }

    fn sees_every_bit(gpu: &Gpu) {
        assert!(!cfg!(target_os = "linux") || gpu.takes_twins() == gpu.is_lavapipe(), "lavapipe can do that");
        // A part of a buffer, at a multiple of 256 bytes; shorter than a row of texels, whole rows, and with a rest.
        for (rows, cols) in [(1, 4), (3, 48), (2, 8192), (5, 5000)] {
            let n = (rows * cols) as u32;
            let whole = Tensor::zeros(gpu, "whole", [1, rows + 17, cols]).expect("memory");
            let from = whole.rows(16..rows + 16);
            let to = Tensor::zeros(gpu, "to", [1, rows, cols]).expect("memory");
            let other = Tensor::upload(gpu, "other", [1, rows, cols], &bits(3, n)).expect("memory");
            let look = copying(gpu, &from, &to);
            let fill = copying(gpu, &other, &from);
            let seen = || {
                look.submit(gpu, 1).expect("submitted");
                to.read_blocking::<u32>(gpu).expect("read")
            };
            assert_eq!(seen(), vec![0; n as usize], "{rows} x {cols}: as it was made");
            from.write(gpu, &bits(1, n)).expect("written");
            assert_eq!(seen(), bits(1, n), "{rows} x {cols}");
            from.write(gpu, &bits(2, n)).expect("written");
            assert_eq!(seen(), bits(2, n), "after a write");
            let parts = [Part::run(&fill, 0..1), Part::run(&look, 0..1)];
            Flights::<()>::default().submit(gpu, &parts, None).expect("submitted");
            assert_eq!(to.read_blocking::<u32>(gpu).expect("read"), bits(3, n), "after a kernel");
            whole.fill_bits(gpu, 7);
            assert_eq!(seen(), vec![7; n as usize], "after a write to the whole buffer");
            other.copy_to(gpu, &from);
            assert_eq!(seen(), bits(3, n), "after a copy");
            let parts = [Part::clear(&from), Part::run(&look, 0..1)];
            Flights::<()>::default().submit(gpu, &parts, None).expect("submitted");
            assert_eq!(to.read_blocking::<u32>(gpu).expect("read"), vec![0; n as usize], "after zeros");
        }
    }

    #[test]
    fn what_a_program_binds_outlives_its_tensors() {
        both().iter().for_each(outlives);
    }

    fn outlives(gpu: &Gpu) {
        let to = Tensor::zeros(gpu, "to", [1, 1, 5000]).expect("memory");
        let from = Tensor::upload(gpu, "from", [1, 1, 5000], &bits(1, 5000)).expect("memory");
        let look = copying(gpu, &from, &to);
        drop(from);
        look.submit(gpu, 1).expect("submitted");
        drop(look);
        assert_eq!(to.read_blocking::<u32>(gpu).expect("read"), bits(1, 5000));
    }
}
