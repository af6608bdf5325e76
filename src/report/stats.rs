//! Means with intervals over seeds, and what differences between two networks are worth.

/// Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom.
const T95: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];

/// A mean with the half-width of its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Estimate {
    /// The arithmetic mean.
    pub mean: f64,
    /// Half the width of the 95 % t-interval; `None` for a single value.
    pub half_width: Option<f64>,
}

impl Estimate {
    /// Of values that are independent draws, such as test errors over seeds.
    pub fn of(values: &[f64]) -> Self {
        let n = values.len();
        let mean = values.iter().sum::<f64>() / n as f64;
        if n < 2 {
            return Self { mean, half_width: None };
        }
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1) as f64;
        let t = T95.get(n - 2).copied().unwrap_or(1.96);
        Self { mean, half_width: Some(t * (variance / n as f64).sqrt()) }
    }

    /// `12.4 ± 1.3`
    pub fn text(&self, digits: usize) -> String {
        match self.half_width {
            Some(h) => format!("{:.digits$} ± {h:.digits$}", self.mean),
            None => format!("{:.digits$}", self.mean),
        }
    }
}

/// The mean of paired differences, and how surprising it is if there is none.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Paired {
    /// Mean of a - b with its 95 % interval.
    pub difference: Estimate,
    /// Student's t of the paired differences; `None` for fewer than two pairs or without any spread.
    pub t: Option<f64>,
    /// Two-sided p-value.
    pub p: Option<f64>,
}

impl Paired {
    /// Of pairs that share what makes them vary, such as a seed: Student's paired t-test.
    pub fn of(a: &[f64], b: &[f64]) -> Self {
        let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
        let n = differences.len() as f64;
        let difference = Estimate::of(&differences);
        let squares: f64 = differences.iter().map(|d| (d - difference.mean).powi(2)).sum();
        let error = (squares / (n - 1.0) / n).sqrt();
        let t = (n > 1.0 && error > 0.0).then(|| difference.mean / error);
        Self { difference, t, p: t.map(|t| student_two_sided(t, n - 1.0)) }
    }
}

/// P(|T| >= |t|) of Student's t with `df` degrees of freedom: the regularised incomplete beta function
/// I_x(df/2, 1/2) at x = df / (df + t^2).
fn student_two_sided(t: f64, df: f64) -> f64 {
    let x = df / (df + t * t);
    let (a, b) = (df / 2.0, 0.5);
    let front = (ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * x.ln() + b * (1.0 - x).ln()).exp();
    // The continued fraction converges fast on one side of the mean of the distribution.
    match x < (a + 1.0) / (a + b + 2.0) {
        true => front * beta_fraction(x, a, b) / a,
        false => 1.0 - front * beta_fraction(1.0 - x, b, a) / b,
    }
}

/// The continued fraction of the incomplete beta function (Lentz's method; DLMF 8.17.22).
fn beta_fraction(x: f64, a: f64, b: f64) -> f64 {
    const TINY: f64 = 1e-300;
    let away = |v: f64| if v.abs() < TINY { TINY } else { v };
    let (mut c, mut d) = (1.0, 1.0 / away(1.0 - (a + b) * x / (a + 1.0)));
    let mut value = d;
    for m in 1..300 {
        let m = f64::from(m);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let mut step = 1.0;
        for term in [even, odd] {
            d = 1.0 / away(1.0 + term * d);
            c = away(1.0 + term / c);
            step = c * d;
            value *= step;
        }
        if (step - 1.0).abs() < 1e-15 {
            break;
        }
    }
    value
}

/// ln Gamma(x) for x > 0: Stirling's series from 10 upwards, and the recurrence below.
fn ln_gamma(x: f64) -> f64 {
    if x < 10.0 {
        return ln_gamma(x + 1.0) - x.ln();
    }
    let r = 1.0 / (x * x);
    let series = (1.0 / 12.0 - r * (1.0 / 360.0 - r * (1.0 / 1260.0 - r * (1.0 / 1680.0 - r / 1188.0)))) / x;
    (x - 0.5) * x.ln() - x + 0.5 * (2.0 * std::f64::consts::PI).ln() + series
}

/// McNemar's test: the p-value of `only_a` against `only_b` rows that only one of two networks has right,
/// if each such row were as likely to be one's as the other's. Exact: two-sided binomial, whatever the counts.
pub fn mcnemar(only_a: u64, only_b: u64) -> f64 {
    let n = only_a + only_b;
    let few = only_a.min(only_b);
    // 2 P(X <= few) of X ~ Binomial(n, 1/2), each term from the one before, in logarithms.
    let mut term = -(n as f64) * std::f64::consts::LN_2;
    let mut sum = term.exp();
    for k in 0..few {
        term += ((n - k) as f64 / (k + 1) as f64).ln();
        sum += term.exp();
    }
    (2.0 * sum).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mcnemar_by_hand() {
        // 2 (C(10,0) + C(10,1) + C(10,2)) / 2^10 = 112 / 1024.
        assert!((mcnemar(2, 8) - 112.0 / 1024.0).abs() < 1e-15);
        assert!((mcnemar(8, 2) - mcnemar(2, 8)).abs() < 1e-15);
        assert!((mcnemar(0, 5) - 2.0 / 32.0).abs() < 1e-15);
        assert!((mcnemar(0, 0) - 1.0).abs() < 1e-15 && (mcnemar(7, 7) - 1.0).abs() < 1e-12);
        // Thousands of rows: 2 Phi((45000 + 0.5 - 50000) / sqrt(25000)) is 0 in f64 and must not be NaN;
        // 50,000 against 50,400 is 2 Phi(-399 / sqrt(100400)) = 0.2080.
        assert!(mcnemar(45_000, 55_000) < 1e-200);
        assert!((mcnemar(50_000, 50_400) - 0.2080).abs() < 2e-4, "{}", mcnemar(50_000, 50_400));
    }

    #[test]
    fn students_tails_are_those_of_the_tables() {
        for (df, t) in (1..).zip(T95) {
            let p = student_two_sided(t, f64::from(df));
            // The table's t are rounded to three decimals: 0.0005 times both tails' density, at most 0.06.
            assert!((p - 0.05).abs() < 6e-5, "{df} degrees of freedom: {p}");
        }
        // One degree is Cauchy's distribution, two has a closed form; the limit is the normal one.
        for t in [0.0, 0.3, 1.0, 5.0, 1e3_f64] {
            let cauchy = 1.0 - 2.0 / std::f64::consts::PI * t.atan();
            assert!((student_two_sided(t, 1.0) - cauchy).abs() < 1e-12, "{t}");
            let two = 1.0 - t / (2.0 + t * t).sqrt();
            assert!((student_two_sided(-t, 2.0) - two).abs() < 1e-12, "{t}");
        }
        assert!((student_two_sided(1.959_963_985, 1e7) - 0.05).abs() < 1e-6);
    }

    #[test]
    fn pairs_by_hand() {
        // Differences 1, 2, 3: mean 2, standard error 1 / sqrt(3), t = 3.4641; p of 2 degrees is closed.
        let p = Paired::of(&[5.0, 7.0, 9.0], &[4.0, 5.0, 6.0]);
        assert!((p.difference.mean - 2.0).abs() < 1e-12);
        let t = 2.0 * 3.0_f64.sqrt();
        assert!((p.t.expect("t") - t).abs() < 1e-12);
        assert!((p.p.expect("p") - (1.0 - t / (2.0 + t * t).sqrt())).abs() < 1e-12);
        assert_eq!(Paired::of(&[1.0], &[0.0]).p, None);
        assert_eq!(Paired::of(&[1.0, 2.0], &[0.0, 1.0]).p, None);
    }

    #[test]
    fn interval_of_five_values() {
        // Sample standard deviation sqrt(2.5), standard error sqrt(0.5), t = 2.776.
        let e = Estimate::of(&[1.0, 2.0, 3.0, 4.0, 5.0]);
        assert!((e.mean - 3.0).abs() < 1e-12);
        assert!((e.half_width.expect("five values") - 2.776 * 0.5f64.sqrt()).abs() < 1e-9);
    }

    #[test]
    fn one_value_has_no_interval() {
        assert_eq!(Estimate::of(&[7.0]).half_width, None);
    }
}
