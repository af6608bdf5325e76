//! The matmul family: every member's every variant on one product of awkward sizes.

use limbeck::kernels::matmul::family;
use limbeck::reference::linalg::{column_sums, matmul};
use limbeck::reference::{Activation, Bounded, Matrix, Rounded};

use crate::SUBGROUP;
use crate::common::Variant;
use crate::dispatch::{Dispatch, Expected, Random, constant, poisoned, rows};

const M: usize = 37;
const N: usize = 29;
const K: usize = 43;
const REPLICAS: usize = 2;

/// The dispatch of a variant; none where it wants another subgroup size.
pub(crate) fn dispatch(variant: &Variant) -> Option<Dispatch<'_>> {
    let number = |name| constant(variant, name).map(|v| v.parse::<usize>().expect("a number"));
    let flag = |name| constant(variant, name) == Some("true");
    if number("LANES").is_some_and(|lanes| lanes != SUBGROUP) {
        return None;
    }
    let splits = number("SPLITS").unwrap_or(1);
    let reduce = variant.kernel == "matmul_reduce";
    // The kernel's own splits; matmul_reduce takes them in and gives one product out.
    let parts = if reduce { 1 } else { splits };

    let (transpose_a, transpose_b) = (flag("TRANSPOSE_A"), flag("TRANSPOSE_B"));
    // The operands of a product, or the splits' products and row sums. B is one for both replicas, as
    // a teacher's weights are.
    let [a_sets, a_rows, a_cols] = match reduce {
        true => [splits * REPLICAS, M, N],
        false if transpose_a => [REPLICAS, K, M],
        false => [REPLICAS, M, K],
    };
    let [b_sets, b_rows, b_cols] = match reduce {
        true => [splits * REPLICAS, 1, M],
        false if transpose_b => [1, N, K],
        false => [1, K, N],
    };
    let stride = |cols: usize| cols.next_multiple_of(4);
    let (c_stride, m_stride) = (stride(N), stride(M));

    let mut random = Random(7);
    let a = random.values(a_sets * a_rows * a_cols, 1.0);
    let b = random.values(b_sets * b_rows * b_cols, 1.0);
    let (before, bias) = (random.values(REPLICAS * M * N, 1.0), random.values(REPLICAS * N, 1.0));
    let saved = random.values(REPLICAS * M * N, 1.0);
    let sums_before = random.values(REPLICAS * M, 1.0);
    let k_chunk = K.div_ceil(parts).next_multiple_of(4);

    let grid = match reduce {
        true => [(M * c_stride / 4).div_ceil(64), 1, REPLICAS],
        false => {
            let [rows, cols] = tile(variant);
            [c_stride.div_ceil(cols), M.div_ceil(rows), REPLICAS * parts]
        }
    };
    let mut out = Dispatch {
        variant,
        grid: grid.map(|n| n as u32),
        params: vec![
            ("m", M),
            ("n", N),
            ("k", K),
            ("a_stride", stride(a_cols)),
            ("b_stride", stride(b_cols)),
            ("c_stride", c_stride),
            ("a_replica", a_rows * stride(a_cols)),
            ("b_replica", if b_sets == 1 { 0 } else { b_rows * stride(b_cols) }),
            ("c_replica", M * c_stride),
            ("bias_replica", c_stride),
            ("extra_replica", if flag("KEEP") { M * c_stride } else { m_stride }),
            ("saved_replica", M * c_stride),
            ("row_start", 0),
            ("col_start", 0),
            ("k_chunk", k_chunk),
            ("replicas", REPLICAS),
        ]
        .into_iter()
        .map(|(name, value)| (name, value as u32))
        .collect(),
        buffers: vec![
            ("a", rows(&a, a_cols, stride(a_cols))),
            ("b", rows(&b, b_cols, stride(b_cols))),
            ("bias", rows(&bias, N, c_stride)),
            ("saved", rows(&saved, N, c_stride)),
            (
                "c",
                match flag("ACCUMULATE") {
                    true => rows(&before, N, c_stride),
                    false => poisoned(parts * REPLICAS * M * c_stride),
                },
            ),
            (
                "extra",
                match flag("ACCUMULATE") && flag("ROW_SUMS") {
                    true => rows(&sums_before, M, m_stride),
                    false => poisoned(parts * REPLICAS * M * c_stride),
                },
            ),
        ],
        expected: Vec::new(),
    };

    let part = |all: &[f32], i: usize, rows: usize, cols: usize| {
        Matrix::from_f32(rows, cols, &all[i * rows * cols..][..rows * cols])
    };
    for (s, r) in (0..parts).flat_map(|s| (0..REPLICAS).map(move |r| (s, r))) {
        let (mut z, mut n, mut sums, mut sums_n);
        if reduce {
            // Row s of it: what split s made, all of it in a row.
            let stacked = |all: &[f32], len: usize| {
                let split = |s: usize| all[(s * REPLICAS + r) * len..][..len].iter().map(|x| f64::from(*x));
                Matrix::new(splits, len, (0..splits).flat_map(split).collect())
            };
            z = reshaped(column_sums(&stacked(&a, M * N)), M, N);
            (n, sums, sums_n) = (splits, column_sums(&stacked(&b, M)), splits);
        } else {
            let k = s * k_chunk..K.min((s + 1) * k_chunk);
            let (a, b) = (part(&a, r, a_rows, a_cols), part(&b, 0, b_rows, b_cols));
            // [k, m] and [k, n]: the rows that this split sees.
            let a = (if transpose_a { a } else { a.transposed() }).gather(&k.clone().collect::<Vec<_>>());
            let b = (if transpose_b { b.transposed() } else { b }).gather(&k.clone().collect::<Vec<_>>());
            z = matmul(&a, &b, true, false);
            (n, sums, sums_n) = (k.len(), column_sums(&a), k.len());
        }
        if flag("ACCUMULATE") {
            (z, n) = (z.plus(&part(&before, r, M, N)), n + 1);
            (sums, sums_n) = (sums.plus(&part(&sums_before, r, 1, M)), sums_n + 1);
        }
        if flag("BIAS") {
            (z, n) = (z.plus_bias(&part(&bias, r, 1, N).data), n + 1);
        }
        let at = s * REPLICAS + r;
        if flag("KEEP") {
            let (offset, value) = (at * M * c_stride, z.clone());
            out.expected.push(Expected { binding: "extra", offset, stride: c_stride, value, n });
        }
        if flag("ROW_SUMS") {
            let (offset, stride) = (at * m_stride, m_stride);
            out.expected.push(Expected { binding: "extra", offset, stride, value: sums, n: sums_n });
        }
        let code = |name| activation(constant(variant, name));
        let (c, n) = match (code("ACTIVATION"), code("MASK")) {
            (Activation::Identity, Activation::Identity) => (z, n),
            (activation, Activation::Identity) => (activation.forward_bounded(&z, n), 1),
            (_, mask) => (masked(&z, n, mask, &part(&saved, r, M, N)), 1),
        };
        let offset = at * M * c_stride;
        out.expected.push(Expected {
            binding: "c",
            offset,
            stride: c_stride,
            value: widened(c, c_stride),
            n,
        });
    }
    Some(out)
}

/// Rows and columns of C that a workgroup makes, from the family's own table.
fn tile(variant: &Variant) -> [usize; 2] {
    let same = |(name, value): &(&str, u32)| constant(variant, name) == Some(value.to_string().as_str());
    let turned = constant(variant, "TURNED") == Some("true");
    let is = |v: &&family::Variant| {
        v.kernel.name == variant.kernel && v.turned == turned && v.constants.iter().all(same)
    };
    let found = family::VARIANTS.iter().find(is);
    found
        .unwrap_or_else(|| panic!("{} is not in the family's table", variant.name()))
        .tile
        .map(|n| n as usize)
}

fn activation(code: Option<&str>) -> Activation {
    match code {
        Some("0") => Activation::Identity,
        Some("1") => Activation::Relu,
        Some("2") => Activation::Tanh,
        Some("3") => Activation::Gelu,
        other => panic!("no activation has the code {other:?}"),
    }
}

/// `d_y` times the derivative, from what the forward pass saved: GELU's input, the others' output.
fn masked(d_y: &Bounded, n: usize, mask: Activation, saved: &Matrix) -> Bounded {
    let one = Rounded::exact(1.0);
    let derivative = |s: &f64| match (mask, Rounded::exact(*s)) {
        (Activation::Tanh, y) => one - y * y,
        (other, s) => other.derivative_rounded(s),
    };
    let products = d_y.to_rounded(n).into_iter().zip(&saved.data).map(|(d, s)| d * derivative(s));
    Bounded::from_rounded(saved.rows, saved.cols, &products.collect::<Vec<_>>())
}

fn reshaped(x: Bounded, rows: usize, cols: usize) -> Bounded {
    let of = |m: Matrix| Matrix::new(rows, cols, m.data);
    Bounded { value: of(x.value), scale: of(x.scale) }
}

/// With the padding columns, which must come out as zeros.
fn widened(x: Bounded, cols: usize) -> Bounded {
    let of = |m: Matrix| {
        let mut wide = Matrix::zeros(m.rows, cols);
        (0..m.rows).for_each(|r| wide.row_mut(r)[..m.cols].copy_from_slice(m.row(r)));
        wide
    };
    Bounded { value: of(x.value), scale: of(x.scale) }
}
