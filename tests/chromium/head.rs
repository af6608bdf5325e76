//! The loss head: every variant on the second step of a submission, whose batch is short.

use limbeck::kernels::head::{Soft, UNLABELLED};
use limbeck::kernels::step::Step;
use limbeck::reference::{Bounded, Head, Matrix, Rounded};

use crate::common::Variant;
use crate::dispatch::{Dispatch, Expected, Random, constant, poisoned, rows};

const BATCH: usize = 67;
const LIVE: usize = 66;
/// Few enough for every form that holds a whole row, and no multiple of anything.
const K: usize = 29;
const STRIDE: usize = 32;
const ITEMS: usize = 3 * BATCH;
const REPLICAS: usize = 2;
const SLOT: usize = 1;
/// Numbers per row of `stats`; the last two, the gradients' norms, are left to the tests on the device.
const WIDTH: usize = 8;
const JUDGED: usize = 6;

pub(crate) fn dispatch(variant: &Variant) -> Dispatch<'_> {
    let flag = |name| constant(variant, name) == Some("true");
    let number = |name| constant(variant, name).and_then(|v| v.parse::<u32>().ok()).expect("a number");
    let lanes = number("LANES") as usize;
    let (code, standardise) = (number("LOSS"), flag("STANDARDISE"));
    let term = Soft::kinds().into_iter().find(|s| s.code() == code && s.standardise == standardise);
    let term = term.expect("a kind of soft term");
    let soft = flag("SOFT");
    let taught = soft && term.loss.needs_teacher();
    let [loss_a, loss_b, loss_c, loss_d] = term.scalars(K);
    // Each way of finding the teacher's row in some of the forms.
    let by_index = lanes == 64;
    let mut random = Random(8);
    let z = random.values(REPLICAS * BATCH * K, 6.0);
    // One teacher for both replicas.
    let v_rows = if by_index { ITEMS } else { BATCH };
    let v = random.values(v_rows * K, 6.0);
    let order = random.below(REPLICAS * ITEMS, ITEMS);
    let mut labels = random.below(ITEMS, K);
    labels.iter_mut().step_by(5).for_each(|label| *label = UNLABELLED);
    let step = |slot: usize, replica: usize| Step {
        row_start: (slot * BATCH + replica) as u32,
        rows: LIVE as u32,
        temperature: 4.0 + replica as f32,
        hard_weight: 0.25,
        soft_weight: 0.75,
        smoothing: 0.1,
        loss_a,
        loss_b,
        loss_c,
        loss_d,
        ..Step::default()
    };
    let steps: Vec<Step> = (0..=SLOT).flat_map(|s| (0..REPLICAS).map(move |r| step(s, r))).collect();
    let stats_replica = (SLOT + 1) * BATCH * WIDTH;

    let mut expected = Vec::new();
    for r in 0..REPLICAS {
        let now = step(SLOT, r);
        let indices: Vec<usize> =
            order[r * ITEMS + now.row_start as usize..][..LIVE].iter().map(|index| *index as usize).collect();
        let z = Matrix::from_f32(LIVE, K, &z[r * BATCH * K..][..LIVE * K]);
        let v = Matrix::from_f32(v_rows, K, &v);
        let v = v.gather(&if by_index { indices.clone() } else { (0..LIVE).collect() });
        let labels: Vec<Option<usize>> =
            indices.iter().map(|i| (labels[*i] != UNLABELLED).then_some(labels[*i] as usize)).collect();
        let head = Head {
            hard_weight: f64::from(now.hard_weight),
            soft_weight: f64::from(now.soft_weight),
            temperature: f64::from(now.temperature),
            label_smoothing: f64::from(now.smoothing),
            soft_loss: term.loss,
            standardise: term.standardise,
        };
        let out = head.evaluate(&z, taught.then_some(&v), &labels);
        let (hard_loss, soft_loss) = (out.hard_loss.to_rounded(1), out.soft_loss.to_rounded(1));
        let flag = |b: bool| Rounded::exact(f64::from(u8::from(b)));
        // hard, soft, correct, agreement, non-finite, labelled; rows past the short batch are zeros.
        let mut stats: Vec<Rounded> = (0..LIVE)
            .flat_map(|i| {
                let (correct, agrees) = (flag(out.correct[i]), flag(out.agrees[i]));
                [hard_loss[i], soft_loss[i], correct, agrees, flag(false), flag(labels[i].is_some())]
            })
            .collect();
        stats.resize(BATCH * JUDGED, Rounded::exact(0.0));
        let mut d_z = out.d_z.to_rounded(1);
        d_z.resize(BATCH * K, Rounded::exact(0.0));
        let stats_at = r * stats_replica + SLOT * BATCH * WIDTH;
        for (binding, offset, stride, cols, elements) in
            [("stats", stats_at, WIDTH, JUDGED, &stats), ("d_z", r * BATCH * STRIDE, STRIDE, K, &d_z)]
        {
            let value = Bounded::from_rounded(BATCH, cols, elements);
            expected.push(Expected { binding, offset, stride, value, n: 1 });
        }
    }
    Dispatch {
        variant,
        grid: [BATCH.div_ceil(64 / lanes) as u32, 1, REPLICAS as u32],
        params: vec![
            ("batch", BATCH as u32),
            ("k", K as u32),
            ("z_stride", STRIDE as u32),
            ("v_stride", STRIDE as u32),
            ("z_replica", (BATCH * STRIDE) as u32),
            ("v_replica", 0),
            ("stats_replica", stats_replica as u32),
            ("order_replica", ITEMS as u32),
            ("labels_replica", 0),
            ("replicas", REPLICAS as u32),
            ("by_index", by_index.into()),
            ("group_start", 0),
        ],
        buffers: vec![
            ("slot", vec![SLOT as u32, 0, 0, 0]),
            ("steps", bytemuck::cast_slice(&steps).to_vec()),
            ("order", order),
            ("labels", labels),
            ("z", rows(&z, K, STRIDE)),
            ("v", rows(&v, K, STRIDE)),
            ("d_z", poisoned(REPLICAS * BATCH * STRIDE)),
            ("stats", poisoned(REPLICAS * stats_replica)),
        ],
        expected,
    }
}
