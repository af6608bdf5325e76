//! One counter-based generator for everything random: Philox4x32-10 (Salmon et al., "Parallel Random
//! Numbers: As Easy as 1, 2, 3", SC 2011), held to Random123's published vectors.
//!
//! There is no state but the seed and the counter, so any number can be had alone, in any order, on the
//! host or in a shader, and a run can be resumed anywhere. The layout is the same everywhere:
//!
//! | word | key | counter |
//! |---|---|---|
//! | 0 | seed, low 32 bits | index, low 32 bits |
//! | 1 | seed, high 32 bits | index, high 32 bits |
//! | 2 | | stream: what the number is for, see [`stream`] |
//! | 3 | | sub-stream, 0 unless the stream says otherwise |
//!
//! One block of four words is spent per number: [`uniform`] takes word 0, [`normal`] all four, an
//! order's key words 0 and 1. Only the shaders' own streams, drawn anew in every step, use all four.

/// What a number is drawn for: word 2 of the counter. Two streams never share a block.
pub mod stream {
    /// Initial parameters; index = tensor << 32 | element, row-major without padding.
    pub const INIT: u32 = 1;
    /// The order of the rows in an epoch; index = (epoch, low 32 bits) << 32 | row, sub-stream = epoch, high 32 bits.
    pub const ORDER: u32 = 2;
    /// Which rows are held out for validation; index = row.
    pub const SPLIT: u32 = 3;
    /// Which rows keep their label in a few-label run; index = row.
    pub const LABELS: u32 = 4;
    /// Dropout masks; index = step << 32 | vec4 of the batch, row by row, a word for each of its four
    /// elements; sub-stream = layer, key = [`key32`](super::key32) of the seed.
    pub const DROPOUT: u32 = 5;
    /// How far images move; index = step << 32 | row of the batch, words 0 and 1 for x and y, key =
    /// [`key32`](super::key32) of the seed.
    pub const JITTER: u32 = 6;
    /// Inputs of the kernel checks; index = tensor << 32 | element.
    pub const CHECK: u32 = 64;
}

const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Philox4x32-10: ten rounds over `counter` under `key`; a bijection of the counter for each key.
pub fn philox(mut key: [u32; 2], mut counter: [u32; 4]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(MULTIPLIER[0]) * u64::from(counter[0]);
        let b = u64::from(MULTIPLIER[1]) * u64::from(counter[2]);
        counter = [high(b) ^ counter[1] ^ key[0], low(b), high(a) ^ counter[3] ^ key[1], low(a)];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// The block of `seed` at `index` of `stream`, sub-stream 0.
pub fn block(seed: u64, stream: u32, index: u64) -> [u32; 4] {
    philox([low(seed), high(seed)], [low(index), high(index), stream, 0])
}

/// Uniform in [0, 1): the top 24 bits of word 0, so every value is exact in f32.
pub fn uniform(seed: u64, stream: u32, index: u64) -> f32 {
    const UNIT: f32 = 1.0 / (1 << 24) as f32;
    (block(seed, stream, index)[0] >> 8) as f32 * UNIT
}

/// Standard normal by Box-Muller in f64, rounded to f32 once: words 0 and 1 give the radius, 2 and 3 the angle.
///
/// `ln` and `cos` are the platform's; their last bit may differ between platforms, which the rounding to
/// f32 almost always hides.
pub fn normal(seed: u64, stream: u32, index: u64) -> f32 {
    let [a, b, c, d] = block(seed, stream, index);
    // (0, 1]: ln never meets zero.
    let radius = (-2.0 * (1.0 - unit53(a, b)).ln()).sqrt();
    (radius * (std::f64::consts::TAU * unit53(c, d)).cos()) as f32
}

/// A seed in the 32 bits that a step's scalars have for it: seeds below 2^32 are themselves.
pub fn key32(seed: u64) -> u32 {
    low(seed) ^ high(seed)
}

/// A 64-bit sort key for row `index` of `stream`: words 0 and 1.
pub fn key64(seed: u64, stream: u32, index: u64) -> u64 {
    let [lo, hi, ..] = block(seed, stream, index);
    join(lo, hi)
}

/// The order of `n` rows in `epoch`: rows sorted by their 64-bit key, ties by row. A pure function of its arguments.
pub fn permutation(seed: u64, epoch: u64, n: u32) -> Vec<u32> {
    let key = [low(seed), high(seed)];
    let mut rows: Vec<(u64, u32)> = (0..n)
        .map(|row| {
            let [lo, hi, ..] = philox(key, [row, low(epoch), stream::ORDER, high(epoch)]);
            (join(lo, hi), row)
        })
        .collect();
    rows.sort_unstable();
    rows.into_iter().map(|(_, row)| row).collect()
}

fn low(x: u64) -> u32 {
    x as u32
}

fn high(x: u64) -> u32 {
    (x >> 32) as u32
}

fn join(lo: u32, hi: u32) -> u64 {
    u64::from(hi) << 32 | u64::from(lo)
}

/// Uniform in [0, 1) with 53 bits.
fn unit53(lo: u32, hi: u32) -> f64 {
    const UNIT: f64 = 1.0 / (1u64 << 53) as f64;
    (join(lo, hi) >> 11) as f64 * UNIT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_matches_the_published_vectors() {
        // Random123, tests/kat_vectors, "philox4x32 10".
        assert_eq!(philox([0; 2], [0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 2], [u32::MAX; 4]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox([0xa409_3822, 0x299f_31d0], [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn uniform_fills_the_unit_interval() {
        let n = 100_000;
        let draws = |stream| (0..n).map(move |i| f64::from(uniform(7, stream, i)));
        let mean = draws(stream::INIT).sum::<f64>() / n as f64;
        assert!(draws(stream::INIT).all(|u| (0.0..1.0).contains(&u)));
        // Five standard errors of the mean of n uniforms.
        assert!((mean - 0.5).abs() < 5.0 * (1.0 / 12.0 / n as f64).sqrt(), "{mean}");
        #[allow(clippy::float_cmp, reason = "chance, not rounding, makes them equal")]
        let same = draws(stream::INIT).zip(draws(stream::JITTER)).filter(|(a, b)| a == b).count();
        assert!(same < 5, "two streams share {same} numbers");
    }

    #[test]
    fn normal_has_the_moments_of_a_normal() {
        let n = 100_000_u64;
        let moment =
            |k| (0..n).map(|i| f64::from(normal(3, stream::INIT, i)).powi(k)).sum::<f64>() / n as f64;
        // Five standard errors; the variances of x, x^2, x^3, x^4 are 1, 2, 15, 96.
        for (k, want, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)] {
            let got = moment(k);
            assert!((got - want).abs() < 5.0 * f64::sqrt(variance / n as f64), "moment {k}: {got}");
        }
    }

    #[test]
    fn permutation_is_one_and_depends_on_seed_and_epoch_alone() {
        let a = permutation(1, 0, 1000);
        assert_eq!(a, permutation(1, 0, 1000));
        for other in [permutation(2, 0, 1000), permutation(1, 1, 1000), permutation(1, 1 << 32, 1000)] {
            assert_ne!(a, other);
        }
        let mut sorted = a;
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..1000));
        assert!(permutation(1, 0, 0).is_empty());
        assert_eq!(permutation(1, 0, 1), [0]);
    }

    #[test]
    fn the_high_half_of_seed_and_index_matters() {
        assert_ne!(block(1, 1, 5), block(1 | 1 << 32, 1, 5));
        assert_ne!(block(1, 1, 5), block(1, 1, 5 | 1 << 32));
    }
}
