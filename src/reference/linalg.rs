//! Matrix products and sums.

use super::rounding::{FLUSH, U, flushed};
use super::{Bounded, Matrix};

/// C = op(A) op(B), [M, K] x [K, N] -> [M, N], where op transposes if asked.
///
/// Scale: sum over k of |a*b|, to be checked with n = K, and what a device may flush: a subnormal
/// operand, and each product and each partial sum below the normal range. The three cases of a training step:
/// forward X W' `(x, w, false, true)`, weight gradient d_Y' X `(d_y, x, true, false)`,
/// input gradient d_Y W `(d_y, w, false, false)`.
pub fn matmul(a: &Matrix, b: &Matrix, transpose_a: bool, transpose_b: bool) -> Bounded {
    let transposed_a = transpose_a.then(|| a.transposed());
    let transposed_b = transpose_b.then(|| b.transposed());
    let (a, b) = (transposed_a.as_ref().unwrap_or(a), transposed_b.as_ref().unwrap_or(b));
    assert_eq!(a.cols, b.rows, "inner dimensions of a matmul");
    // gamma(K) is at least K u, so one flush in each of the K products costs FLUSH of scale in all.
    let of_operand = 1.0 / (a.cols as f64 * U);
    let mut value = Matrix::zeros(a.rows, b.cols);
    let mut scale = Matrix::new(a.rows, b.cols, vec![2.0 * FLUSH; a.rows * b.cols]);
    for i in 0..a.rows {
        let (value_row, scale_row) = (value.row_mut(i), scale.row_mut(i));
        for (k, a_ik) in a.row(i).iter().enumerate() {
            for (j, b_kj) in b.row(k).iter().enumerate() {
                let product = a_ik * b_kj;
                value_row[j] += product;
                let lost = flushed(*a_ik) * b_kj.abs() + a_ik.abs() * flushed(*b_kj);
                scale_row[j] += product.abs() + lost * of_operand;
            }
        }
    }
    Bounded { value, scale }
}

/// The sum of each column, [B, N] -> [1, N]: the bias gradient. Scale: sum |a| and, as in [`matmul`],
/// what a device may flush; n = B.
pub fn column_sums(a: &Matrix) -> Bounded {
    let mut value = Matrix::zeros(1, a.cols);
    let mut scale = Matrix::new(1, a.cols, vec![2.0 * FLUSH; a.cols]);
    for r in 0..a.rows {
        for (c, x) in a.row(r).iter().enumerate() {
            value[(0, c)] += x;
            scale[(0, c)] += x.abs();
        }
    }
    Bounded { value, scale }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Random;
    use super::*;

    #[test]
    fn a_product_by_hand() {
        let a = Matrix::new(2, 3, vec![1.0, -2.0, 3.0, 4.0, 5.0, -6.0]);
        let b = Matrix::new(3, 1, vec![1.0, 2.0, 3.0]);
        let c = matmul(&a, &b, false, false);
        assert_eq!(c.value.data, [6.0, -4.0]);
        assert_eq!(c.scale.data, [14.0, 32.0]);
        let c = c.plus_bias(&[-1.0]);
        assert_eq!(c.value.data, [5.0, -5.0]);
        assert_eq!(c.scale.data, [15.0, 33.0]);
    }

    #[test]
    fn transposed_cases_agree_with_transposed_operands() {
        let mut random = Random(5);
        let (a, b) = (random.matrix(3, 5, 1.0), random.matrix(5, 4, 1.0));
        let plain = matmul(&a, &b, false, false).value;
        assert_eq!(matmul(&a.transposed(), &b, true, false).value, plain);
        assert_eq!(matmul(&a, &b.transposed(), false, true).value, plain);
        assert_eq!(matmul(&b, &a, true, true).value, plain.transposed(), "(A B)' = B' A'");
    }

    #[test]
    fn column_sums_by_hand() {
        let sums = column_sums(&Matrix::new(2, 2, vec![1.0, -2.0, 3.0, -5.0]));
        assert_eq!(sums.value.data, [4.0, -7.0]);
        assert_eq!(sums.scale.data, [4.0, 7.0]);
    }
}
