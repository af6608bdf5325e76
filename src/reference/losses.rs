//! Every loss of one row, with its gradient by the student's logits.
//!
//! z student logits, v teacher logits (constant), c label, K classes, T temperature;
//! q = softmax(z/T), p = softmax(v/T), lq and lp their logarithms, kept from log-softmax: never log(q).
//! All stay finite for logit gaps to 1e4, T from 0.5 to 100 and K from 2 to 152,000.
//! Soft losses carry T^2 (Hinton, Vinyals, Dean 2015), so their gradients do not fade as T grows.

use super::Rounded;
use super::rounding::{dot, exact_row};
use super::softmax::{exp_all, log_add_exp, log_softmax, log_sum_exp, softmax};

/// The loss of a row and its gradient by the student's logits.
#[derive(Debug, Clone)]
pub struct RowLoss {
    /// L.
    pub loss: Rounded,
    /// d_z `[K]`: dL/dz.
    pub d_z: Vec<Rounded>,
}

/// What pulls the student towards its teacher.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SoftLoss {
    /// T^2 KL(p, q): the loss of Hinton et al.
    ForwardKl,
    /// T^2 KL(q, p).
    ReverseKl,
    /// The mean of forward and reverse KL: half of Jeffreys' divergence.
    Symmetric,
    /// Generalised Jensen-Shannon divergence, 0 < beta < 1; JSD / beta -> KL(p, q) as beta -> 0.
    Jsd {
        /// The teacher's weight in the mixture.
        beta: f64,
    },
    /// Decoupled KD (Zhao et al. 2022); needs labels and K >= 3.
    Dkd {
        /// Weight of the target-class part.
        alpha: f64,
        /// Weight of the non-target part.
        beta: f64,
    },
    /// Mean squared error of the logits; knows no temperature.
    Mse,
    /// One binary KL per class (multi-label).
    Sigmoid,
    /// Forward KL with p and q raised to at least `clip`, as Keras's KLDivergence does it.
    ClippedKl {
        /// Keras's is 1e-7.
        clip: f64,
    },
    /// Teacher-free KD (Tf-KD_reg, Yuan et al. 2020): forward KL to a teacher made from the label.
    VirtualTeacher {
        /// The probability that it gives the correct class at T = 1, in (0, 1).
        confidence: f64,
    },
}

impl SoftLoss {
    /// What it is called on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::ForwardKl => "forward-kl",
            Self::ReverseKl => "reverse-kl",
            Self::Symmetric => "symmetric-kl",
            Self::Jsd { .. } => "jsd",
            Self::Dkd { .. } => "dkd",
            Self::Mse => "mse",
            Self::Sigmoid => "sigmoid",
            Self::ClippedKl { .. } => "clipped-kl",
            Self::VirtualTeacher { .. } => "virtual-teacher",
        }
    }

    /// Whether a row without a label has no such loss.
    pub fn needs_labels(self) -> bool {
        matches!(self, Self::Dkd { .. } | Self::VirtualTeacher { .. })
    }

    /// Whether a teacher's logits are compared with; the virtual teacher's come from the label.
    pub fn needs_teacher(self) -> bool {
        !matches!(self, Self::VirtualTeacher { .. })
    }

    /// Whether it compares softmaxes, so that [`standardised`] logits make sense.
    pub fn is_softmax_based(self) -> bool {
        !matches!(self, Self::Mse | Self::Sigmoid)
    }

    /// The loss of one row. `standardise` puts both logit rows through [`standardised`] first.
    pub fn evaluate(
        self,
        z: &[f64],
        v: &[f64],
        label: Option<usize>,
        temperature: f64,
        standardise: bool,
    ) -> RowLoss {
        let (z, v) = (exact_row(z), exact_row(v));
        let v = match self {
            Self::VirtualTeacher { confidence } => {
                let label = label.expect("a virtual teacher needs labels");
                virtual_teacher(z.len(), label, confidence)
            }
            _ => v,
        };
        if !standardise {
            return self.evaluate_logits(&z, &v, label, temperature);
        }
        let (zs, vs) = (standardised(&z), standardised(&v));
        let inner = self.evaluate_logits(&zs.logits, &vs.logits, label, temperature);
        RowLoss { loss: inner.loss, d_z: zs.backward(&inner.d_z) }
    }

    fn evaluate_logits(
        self,
        z: &[Rounded],
        v: &[Rounded],
        label: Option<usize>,
        temperature: f64,
    ) -> RowLoss {
        assert_eq!(z.len(), v.len(), "classes of student and teacher");
        let t = Rounded::parameter(temperature);
        match self {
            Self::ForwardKl | Self::VirtualTeacher { .. } => forward_kl(z, v, t),
            Self::ReverseKl => reverse_kl(z, v, t),
            Self::Symmetric => symmetric(z, v, t),
            Self::Jsd { beta } => jsd(z, v, t, beta),
            Self::Dkd { alpha, beta } => dkd(z, v, label.expect("DKD needs labels"), t, alpha, beta),
            Self::Mse => mse(z, v),
            Self::ClippedKl { clip } => clipped_kl(z, v, t, clip),
            Self::Sigmoid => sigmoid(z, v, t),
        }
    }
}

/// Cross-entropy with label smoothing e: L = lse(z) - <y, z>, y = (1-e) onehot(c) + e/K;
/// d_z = softmax(z) - y. Written as -<y, log softmax(z)>, which costs no digits where z is large.
pub fn cross_entropy(z: &[f64], label: usize, smoothing: f64) -> RowLoss {
    let z = exact_row(z);
    assert!(label < z.len(), "label {label} of {} classes", z.len());
    let share = smoothing / z.len() as f64;
    let target = |i| match i == label {
        true => Rounded::parameter(1.0 - smoothing + share),
        false => Rounded::parameter(share),
    };
    let y: Vec<Rounded> = (0..z.len()).map(target).collect();
    let lq = log_softmax(&z, Rounded::exact(1.0));
    let d_z = exp_all(&lq).iter().zip(&y).map(|(q, y)| *q - *y).collect();
    let loss = -dot(&y, &lq);
    RowLoss { loss, d_z }
}

/// L = T^2 sum p (lp - lq); d_z = T (q - p).
pub fn forward_kl(z: &[Rounded], v: &[Rounded], t: Rounded) -> RowLoss {
    let (lq, lp) = (log_softmax(z, t), log_softmax(v, t));
    let (q, p) = (exp_all(&lq), exp_all(&lp));
    let loss = t * t * kl(&p, &lp, &lq);
    let d_z = (0..z.len()).map(|i| t * (q[i] - p[i])).collect();
    RowLoss { loss, d_z }
}

/// With p' = max(p, clip), q' = max(q, clip): L = T^2 sum p' (log p' - log q'). Where q is clipped its
/// slope is 0, so with w = p' where q >= clip, else 0: d_z = T (q sum w - w).
pub fn clipped_kl(z: &[Rounded], v: &[Rounded], t: Rounded, clip: f64) -> RowLoss {
    assert!(clip > 0.0 && clip < 1.0, "a clip in (0, 1), got {clip}");
    let (least, log_least) = (Rounded::parameter(clip), Rounded::parameter(clip.ln()));
    let (lq, lp) = (log_softmax(z, t), log_softmax(v, t));
    let q = exp_all(&lq);
    let clipped = |log: &[Rounded]| log.iter().map(|l| l.max(log_least)).collect::<Vec<_>>();
    let raised: Vec<Rounded> = exp_all(&lp).iter().map(|p| p.max(least)).collect();
    let loss = t * t * kl(&raised, &clipped(&lp), &clipped(&lq));
    let w = (0..z.len()).map(|i| if lq[i].value >= clip.ln() { raised[i] } else { Rounded::exact(0.0) });
    let w: Vec<Rounded> = w.collect();
    let all: Rounded = w.iter().copied().sum();
    let d_z = (0..z.len()).map(|i| t * (q[i] * all - w[i])).collect();
    RowLoss { loss, d_z }
}

/// L = T^2 R, R = sum q (lq - lp); d_z = T q ((lq - lp) - R).
pub fn reverse_kl(z: &[Rounded], v: &[Rounded], t: Rounded) -> RowLoss {
    let (lq, lp) = (log_softmax(z, t), log_softmax(v, t));
    let q = exp_all(&lq);
    let r = kl(&q, &lq, &lp);
    let d_z = (0..z.len()).map(|i| t * q[i] * ((lq[i] - lp[i]) - r));
    let d_z = d_z.collect();
    RowLoss { loss: t * t * r, d_z }
}

/// The mean of [`forward_kl`] and [`reverse_kl`].
pub fn symmetric(z: &[Rounded], v: &[Rounded], t: Rounded) -> RowLoss {
    let half = Rounded::exact(0.5);
    let (f, r) = (forward_kl(z, v, t), reverse_kl(z, v, t));
    let d_z = f.d_z.iter().zip(&r.d_z).map(|(f, r)| half * (*f + *r));
    RowLoss { loss: half * (f.loss + r.loss), d_z: d_z.collect() }
}

/// With m = b p + (1-b) q: L = T^2 (b KL(p, m) + (1-b) KL(q, m));
/// d_z = T (1-b) q (r - <q, r>), r = lq - log m.
pub fn jsd(z: &[Rounded], v: &[Rounded], t: Rounded, beta: f64) -> RowLoss {
    assert!(beta > 0.0 && beta < 1.0, "JSD needs 0 < beta < 1, got {beta}");
    let (b, rest) = (Rounded::parameter(beta), Rounded::parameter(1.0 - beta));
    let (log_b, log_rest) = (Rounded::parameter(beta.ln()), Rounded::parameter((1.0 - beta).ln()));
    let (lq, lp) = (log_softmax(z, t), log_softmax(v, t));
    let (q, p) = (exp_all(&lq), exp_all(&lp));
    let lm: Vec<Rounded> = (0..z.len()).map(|i| log_add_exp(lp[i] + log_b, lq[i] + log_rest)).collect();
    let kl_qm = kl(&q, &lq, &lm);
    let loss = t * t * (b * kl(&p, &lp, &lm) + rest * kl_qm);
    let d_z = (0..z.len()).map(|i| t * rest * q[i] * ((lq[i] - lm[i]) - kl_qm));
    let d_z = d_z.collect();
    RowLoss { loss, d_z }
}

/// L = T^2 (alpha TCKD + beta NCKD), where ph and qh are the softmax over j != c:
/// TCKD = p_c log(p_c/q_c) + (1-p_c) log((1-p_c)/(1-q_c)), NCKD = sum ph log(ph/qh);
/// d_z_c = T alpha (q_c - p_c), else T (alpha (p_c - q_c) qh + beta (qh - ph)).
///
/// log(1 - q_c) is lse over j != c minus lse over all: 1 - q_c itself is 0 in f32 from a gap of 20.
pub fn dkd(z: &[Rounded], v: &[Rounded], label: usize, t: Rounded, alpha: f64, beta: f64) -> RowLoss {
    assert!(z.len() >= 3, "DKD needs 3 classes: with 2 its NCKD is 0");
    let (alpha, beta) = (Rounded::parameter(alpha), Rounded::parameter(beta));
    let (student, teacher) = (decouple(z, label, t), decouple(v, label, t));
    let (q_c, p_c) = (student.log_target.exp(), teacher.log_target.exp());
    let (qh, ph) = (exp_all(&student.log_others), exp_all(&teacher.log_others));
    let tckd = p_c * (teacher.log_target - student.log_target)
        + teacher.log_rest.exp() * (teacher.log_rest - student.log_rest);
    let nckd = kl(&ph, &teacher.log_others, &student.log_others);
    let other = |j: usize| t * (alpha * (p_c - q_c) * qh[j] + beta * (qh[j] - ph[j]));
    let mut d_z: Vec<Rounded> = (0..qh.len()).map(other).collect();
    d_z.insert(label, t * alpha * (q_c - p_c));
    RowLoss { loss: t * t * (alpha * tckd + beta * nckd), d_z }
}

/// A softmax taken apart: log of the target's probability, log of the rest's, and the log-softmax
/// of the others among themselves `[K - 1]`.
struct Decoupled {
    log_target: Rounded,
    log_rest: Rounded,
    log_others: Vec<Rounded>,
}

fn decouple(z: &[Rounded], label: usize, t: Rounded) -> Decoupled {
    let log_all = log_softmax(z, t);
    let mut others = z.to_vec();
    others.remove(label);
    let mut rest = log_all.clone();
    rest.remove(label);
    Decoupled {
        log_target: log_all[label],
        log_rest: log_sum_exp(&rest),
        log_others: log_softmax(&others, t),
    }
}

/// L = 1/K sum (z - v)^2; d_z = 2 (z - v) / K.
pub fn mse(z: &[Rounded], v: &[Rounded]) -> RowLoss {
    let diff: Vec<Rounded> = z.iter().zip(v).map(|(z, v)| *z - *v).collect();
    let k = Rounded::exact(z.len() as f64);
    let two = Rounded::exact(2.0);
    RowLoss { loss: dot(&diff, &diff) / k, d_z: diff.iter().map(|d| two * *d / k).collect() }
}

/// L = T^2 sum over k of KL(Bernoulli(s(v/T)), Bernoulli(s(z/T))), s the logistic function;
/// d_z = T (s(z/T) - s(v/T)). A sum over classes, not a mean.
pub fn sigmoid(z: &[Rounded], v: &[Rounded], t: Rounded) -> RowLoss {
    let term = |(z, v): (&Rounded, &Rounded)| {
        let (x, y) = (*z / t, *v / t);
        log_sigmoid(y).exp() * (log_sigmoid(y) - log_sigmoid(x))
            + log_sigmoid(-y).exp() * (log_sigmoid(-y) - log_sigmoid(-x))
    };
    let slope = |(z, v): (&Rounded, &Rounded)| t * (log_sigmoid(*z / t).exp() - log_sigmoid(*v / t).exp());
    RowLoss {
        loss: t * t * z.iter().zip(v).map(term).sum::<Rounded>(),
        d_z: z.iter().zip(v).map(slope).collect(),
    }
}

/// log s(x) = min(x, 0) - log(1 + e^-|x|).
fn log_sigmoid(x: Rounded) -> Rounded {
    let one = Rounded::exact(1.0);
    -((-x).max(Rounded::exact(0.0))) - (one + (-x.abs()).exp()).log()
}

/// sum a (la - lb).
fn kl(a: &[Rounded], la: &[Rounded], lb: &[Rounded]) -> Rounded {
    (0..a.len()).map(|i| a[i] * (la[i] - lb[i])).sum()
}

/// The logits log u of u_c = a, u_j = (1-a)/(K-1): at T = 1 this teacher says exactly u, and T
/// softens it as it would any teacher. (The authors' code softens softmax(u/T) instead, keeps the
/// student at T = 1 and divides by K.)
pub fn virtual_teacher(classes: usize, label: usize, confidence: f64) -> Vec<Rounded> {
    assert!(classes >= 2 && label < classes);
    assert!(confidence > 0.0 && confidence < 1.0, "a in (0, 1)");
    let other = (1.0 - confidence) / (classes - 1) as f64;
    let log_u = |i| if i == label { confidence } else { other };
    (0..classes).map(|i| Rounded::parameter(log_u(i).ln())).collect()
}

/// Logits standardised (LSKD, Sun et al. 2024), with what its backward pass needs.
pub struct Standardised {
    /// zs = (z - mean) / (s + 1e-7), s the sample standard deviation (ddof 1).
    pub logits: Vec<Rounded>,
    centred: Vec<Rounded>,
    deviation: Rounded,
    constant: bool,
}

/// A row whose deviation is within this fraction of its largest logit is constant as far as f32 can
/// tell: its standardised logits would be rounding noise blown up to size 1, and at s = 0 the
/// gradient is a division by zero. Such a row gives zeros, forward and backward.
pub const CONSTANT_ROW: f64 = 8.0 * super::rounding::U;

/// So is a row whose deviation is below this: its square is at the end of f32's range, where a device
/// may flush it to zero.
pub const LEAST_DEVIATION: f64 = 1e-18;

const EPSILON: f64 = 1e-7;

/// See [`Standardised`].
pub fn standardised(z: &[Rounded]) -> Standardised {
    let k = z.len();
    assert!(k >= 2, "a sample deviation needs two classes");
    let mean = z.iter().copied().sum::<Rounded>() / Rounded::exact(k as f64);
    let centred: Vec<Rounded> = z.iter().map(|z| *z - mean).collect();
    let deviation = (dot(&centred, &centred) / Rounded::exact((k - 1) as f64)).sqrt();
    let largest = z.iter().fold(f64::MIN, |m, z| m.max(z.value)).abs();
    let constant = deviation.value <= LEAST_DEVIATION.max(CONSTANT_ROW * largest);
    let divisor = deviation + Rounded::parameter(EPSILON);
    let logits = match constant {
        true => vec![Rounded::exact(0.0); k],
        false => centred.iter().map(|c| *c / divisor).collect(),
    };
    Standardised { logits, centred, deviation, constant }
}

impl Standardised {
    /// From g = dL/dzs to d_z: with e = 1e-7,
    /// d_z = (g - mean g) / (s + e) - <g, zs> (z - mean) / ((s + e) (K - 1) s).
    /// Mean g is 0 for a softmax-based loss, not for MSE or sigmoid.
    pub fn backward(&self, g: &[Rounded]) -> Vec<Rounded> {
        let k = g.len();
        if self.constant {
            return vec![Rounded::exact(0.0); k];
        }
        let s = self.deviation;
        let divisor = s + Rounded::parameter(EPSILON);
        let mean_g = g.iter().copied().sum::<Rounded>() / Rounded::exact(k as f64);
        let along = dot(g, &self.logits) / (divisor * Rounded::exact((k - 1) as f64) * s);
        let d_z = |(g, c): (&Rounded, &Rounded)| (*g - mean_g) / divisor - along * *c;
        g.iter().zip(&self.centred).map(d_z).collect()
    }
}

/// KL(softmax(a), softmax(b)) at T = 1 in plain f64, for metrics.
pub fn predictive_kl(a: &[f64], b: &[f64]) -> f64 {
    let one = Rounded::exact(1.0);
    let (la, lb) = (log_softmax(&exact_row(a), one), log_softmax(&exact_row(b), one));
    kl(&softmax(&exact_row(a), one), &la, &lb).value
}

#[cfg(test)]
#[path = "losses_tests.rs"]
mod tests;
