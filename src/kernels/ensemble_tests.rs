//! The mean of several teachers, held to a plain loop in f64.

use super::*;
use crate::gpu::{AdapterChoice, Gpu};
use crate::kernels::step;
use crate::reference::Rounded;
use crate::reference::softmax::{exp_all, log_softmax};
use crate::rng;

const POISON: u32 = 0x7fc0_1234;

struct Case {
    replicas: usize,
    members: usize,
    batch: usize,
    rows: usize,
    k: usize,
    rule: Rule,
    cached: bool,
    temperature: f64,
    spread: f32,
}

/// Worst error over tolerance, and whether dead rows and padding are zero.
fn run(gpu: &Gpu, case: &Case) -> f64 {
    let &Case { replicas, members, batch, rows, k, rule, cached, temperature, spread } = case;
    let n = 2 * batch + 3;
    let logit = |m: usize, r: usize, i: usize, j: usize| {
        let at = (((m * 7 + r) * 1000 + i) * 2000 + j) as u64;
        spread * (rng::uniform(11, rng::stream::INIT, at) - 0.5)
    };
    let ring = step::ring(gpu, replicas).expect("a ring");
    let temperatures: Vec<f64> = (0..replicas).map(|r| temperature * (1.0 + r as f64)).collect();
    let scalars: Vec<_> = temperatures
        .iter()
        .map(|t| step::Step { row_start: 2, rows: rows as u32, temperature: *t as f32, ..Default::default() })
        .collect();
    step::write(gpu, &ring, &scalars).expect("written");
    let orders: Vec<u32> = (0..replicas).flat_map(|r| rng::permutation(r as u64, 3, n as u32)).collect();
    let order = Tensor::upload(gpu, "order", [replicas, 1, n], &orders).expect("an order");
    let sources: Vec<_> = (0..members)
        .map(|m| {
            // Cached logits are shared; live ones are shared by even members and own to odd ones.
            let own = if cached || m.is_multiple_of(2) { 1 } else { replicas };
            let height = if cached { n } else { batch };
            let data: Vec<f32> = (0..own)
                .flat_map(|r| (0..height).flat_map(move |i| (0..k).map(move |j| logit(m, r, i, j))))
                .collect();
            let u = Tensor::upload(gpu, "u", [own, height, k], &data).expect("logits");
            if cached { Teacher::Cached(u) } else { Teacher::Live(u) }
        })
        .collect();
    let v = Tensor::zeros(gpu, "v", [replicas, batch, k]).expect("v");
    v.fill_bits(gpu, POISON);
    let mut plan = Plan::new(gpu);
    record(&mut plan, "ensemble", rule, &ring, &order, &sources, &v).expect("recorded");
    plan.finish().expect("a program").submit(gpu, 1).expect("submitted");
    let got = v.read_padded_blocking::<f32>(gpu).expect("read");

    let mut worst = 0.0_f64;
    for r in 0..replicas {
        for i in 0..batch {
            let at = r * v.replica_stride + i * v.row_stride;
            let row = &got[at..at + v.row_stride];
            assert!(row[if i < rows { k } else { 0 }..].iter().all(|x| x.to_bits() == 0), "row {i}: dead ends");
            if i >= rows {
                continue;
            }
            let item = if cached { orders[r * n + 2 + i] as usize } else { i };
            let of = |m: usize, j: usize| logit(m, if cached || m.is_multiple_of(2) { 0 } else { r }, item, j);
            let t = temperatures[r];
            let p: Vec<Vec<f64>> = (0..members)
                .map(|m| {
                    let u: Vec<_> = (0..k).map(|j| Rounded::exact(f64::from(of(m, j)))).collect();
                    exp_all(&log_softmax(&u, Rounded::exact(t))).iter().map(|x| x.value).collect()
                })
                .collect();
            for (j, got) in row[..k].iter().enumerate() {
                let (want, scale) = match rule {
                    Rule::Geometric => {
                        let sum: f64 = (0..members).map(|m| f64::from(of(m, j))).sum();
                        let scale: f64 = (0..members).map(|m| f64::from(of(m, j).abs())).sum();
                        (sum / members as f64, scale / members as f64)
                    }
                    Rule::Arithmetic => {
                        let mean = (0..members).map(|m| p[m][j]).sum::<f64>() / members as f64;
                        // Logits lose to their maximum, the sum over k terms to its roundings; times T.
                        (t * mean.ln(), f64::from(spread) * 4.0 + t * (8.0 + (k as f64).ln()))
                    }
                };
                let allowed = crate::reference::tolerance::gamma(4 * members + 12) * scale + 1e-37;
                let ratio = (f64::from(*got) - want).abs() / allowed;
                assert!(ratio <= 1.0, "r {r} row {i} class {j}: {got} for {want}, allowed {allowed}");
                worst = worst.max(ratio);
            }
        }
    }
    worst
}

#[test]
fn every_rule_source_and_edge() {
    let gpu = Gpu::open(&AdapterChoice::default()).expect("an adapter");
    let mut worst = 0.0_f64;
    for rule in Rule::ALL {
        for cached in [false, true] {
            for (members, batch, rows, k) in [(2, 3, 2, 2), (3, 5, 5, 10), (2, 1, 1, 65), (4, 7, 6, 257), (2, 3, 3, 1000)] {
                for (replicas, temperature, spread) in [(1, 4.0, 20.0), (3, 0.5, 3.0), (1, 20.0, 400.0)] {
                    let case = Case { replicas, members, batch, rows, k, rule, cached, temperature, spread };
                    worst = worst.max(run(&gpu, &case));
                }
            }
        }
    }
    println!("worst ratio {worst:.3}");
}

/// A teacher's NaN or infinity must reach the loss head, which reports it.
#[test]
fn what_is_not_finite_is_not_hidden() {
    let gpu = Gpu::open(&AdapterChoice::default()).expect("an adapter");
    for rule in Rule::ALL {
        for (bad, member) in [(f32::NAN, 0), (f32::NAN, 1), (f32::INFINITY, 0), (f32::INFINITY, 1)] {
            let ring = step::ring(&gpu, 1).expect("a ring");
            let scalars = step::Step { rows: 1, temperature: 2.0, ..Default::default() };
            step::write(&gpu, &ring, &[scalars]).expect("written");
            let order = Tensor::zeros(&gpu, "order", [1, 1, 1]).expect("an order");
            let sources: Vec<_> = (0..2)
                .map(|m| {
                    let data = [1.0, if m == member { bad } else { 0.5 }, 2.0];
                    Teacher::Live(Tensor::upload(&gpu, "u", [1, 1, 3], &data).expect("logits"))
                })
                .collect();
            let v = Tensor::zeros(&gpu, "v", [1, 1, 3]).expect("v");
            let mut plan = Plan::new(&gpu);
            record(&mut plan, "ensemble", rule, &ring, &order, &sources, &v).expect("recorded");
            plan.finish().expect("a program").submit(&gpu, 1).expect("submitted");
            let got = v.read_blocking::<f32>(&gpu).expect("read");
            assert!(got.iter().any(|x| !x.is_finite()), "{rule:?} {bad} in member {member}: {got:?}");
        }
    }
}
