//! A device that has no room for the rows or the logits: they are streamed instead, with the same bits.

use super::*;
use crate::data::Elements;
use crate::distill::Member;
use crate::distill::step::{Guard, Loss};
use crate::gpu::AdapterChoice;
use crate::kernels::ensemble::Rule;
use crate::kernels::matmul::Activation;
use crate::mlp::weights::Initializer;
use crate::train::schedule::Schedules;

/// Trains on 4000 rows of 8 floats, 128,000 bytes, and logits of half of that, on a device whose largest
/// buffer has so many bytes, and says whether the rows and the logits were streamed.
fn train(largest: Option<u64>) -> Result<([bool; 2], String)> {
    let mut gpu = Gpu::open(&AdapterChoice::default())?;
    gpu.limits.max_buffer_size = largest.unwrap_or(gpu.limits.max_buffer_size);
    let values = (0..4000 * 8_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 20) as f32 / 4096.0).collect();
    let labels = (0..4000).map(|i| i % 3).collect();
    let data = Dataset::new("rows", Elements::F32(values), vec![8], Some(labels), None)?;
    let recipe = Recipe {
        batch: 16,
        accumulate: 1,
        length: Length::Epochs(1),
        optimizer: Optimizer::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 },
        shuffle: true,
        log_every: 100,
        guard: Guard::default(),
        features: Vec::new(),
        regularize: Default::default(),
    };
    let student = Weights::init(&[8, 3], Activation::Relu, Initializer::He, 1)?;
    let loss = Loss { temperature: 2.0, hard_weight: 0.5, soft_weight: 0.5, ..Loss::HARD };
    let replica = Replica { seed: 1, lr: 0.1, loss, schedules: Schedules::default(), student };
    let logits = (0..4000 * 3).map(|i| (i * 13 % 29) as f32 / 7.0).collect();
    let logits = Member::cached(&gpu, 3, logits, None)?;
    let apart = matches!(logits, Member::Rows(..));
    let teacher = Teacher::Ensemble(vec![logits], Rule::Arithmetic);
    let mut run = Run::new(&gpu, &data, Rows::default(), &teacher, recipe, vec![replica])?;
    let streamed = run.feed.is_streamed();
    Ok(([streamed, apart], run.train(|_| Ok(()))?[0].sha256()))
}

#[test]
fn what_the_device_refuses_is_streamed_to_the_same_bits() {
    let (streamed, resident) = train(None).expect("trained");
    assert_eq!(streamed, [false, false]);
    // Labels and slots take 16,000 bytes each, the largest window 65,536: the second device has room for
    // that, the third for a smaller one only.
    for (largest, streamed) in [(100_000, [true, false]), (70_000, [true, false]), (40_000, [true, true])] {
        assert_eq!(train(Some(largest)).expect("trained"), (streamed, resident.clone()), "{largest} bytes");
    }
    let error = train(Some(10_000)).expect_err("no room for the labels");
    assert_eq!(error.exit_code(), 5, "{error}");
}
