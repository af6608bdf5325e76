//! Matrices, and matrices with the scale of their admissible error.

use super::{Rounded, gamma, rounding::U};
use std::ops::{Index, IndexMut};

/// A dense matrix [rows, cols], row-major and without padding.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// Element (r, c) is `data[r * cols + c]`.
    pub data: Vec<f64>,
}

impl Matrix {
    /// The matrix of `data`, row by row.
    pub fn new(rows: usize, cols: usize, data: Vec<f64>) -> Self {
        assert_eq!(data.len(), rows * cols, "a matrix of {rows} x {cols}");
        Self { rows, cols, data }
    }

    /// All zeros.
    pub fn zeros(rows: usize, cols: usize) -> Self {
        Self::new(rows, cols, vec![0.0; rows * cols])
    }

    /// What a device holds, widened; exact.
    pub fn from_f32(rows: usize, cols: usize, data: &[f32]) -> Self {
        Self::new(rows, cols, data.iter().map(|x| f64::from(*x)).collect())
    }

    /// What a device would be given: every element rounded to f32.
    pub fn to_f32(&self) -> Vec<f32> {
        self.data.iter().map(|x| *x as f32).collect()
    }

    /// Row r.
    pub fn row(&self, r: usize) -> &[f64] {
        &self.data[r * self.cols..(r + 1) * self.cols]
    }

    /// Row r, to write.
    pub fn row_mut(&mut self, r: usize) -> &mut [f64] {
        &mut self.data[r * self.cols..(r + 1) * self.cols]
    }

    /// Element by element through `f`.
    pub fn map(&self, f: impl Fn(f64) -> f64) -> Self {
        Self::new(self.rows, self.cols, self.data.iter().map(|x| f(*x)).collect())
    }

    /// Rows and columns exchanged.
    pub fn transposed(&self) -> Self {
        let mut out = Self::zeros(self.cols, self.rows);
        for r in 0..self.rows {
            for c in 0..self.cols {
                out[(c, r)] = self[(r, c)];
            }
        }
        out
    }

    /// The rows at `indices`, in that order: the gather of a batch.
    pub fn gather(&self, indices: &[usize]) -> Self {
        let data = indices.iter().flat_map(|r| self.row(*r).iter().copied()).collect();
        Self::new(indices.len(), self.cols, data)
    }
}

impl Index<(usize, usize)> for Matrix {
    type Output = f64;

    fn index(&self, (r, c): (usize, usize)) -> &f64 {
        // Checked here because a wrong column would silently land in another row.
        assert!(c < self.cols, "column {c} of {}", self.cols);
        &self.data[r * self.cols + c]
    }
}

impl IndexMut<(usize, usize)> for Matrix {
    fn index_mut(&mut self, (r, c): (usize, usize)) -> &mut f64 {
        assert!(c < self.cols, "column {c} of {}", self.cols);
        &mut self.data[r * self.cols + c]
    }
}

/// A value and the scale of its admissible error, which is `gamma(n) * scale` (see `tolerance`).
///
/// For a dot product of length K the scale is the sum of |a*b| and n is K. What came through
/// [`Rounded`] has its roundings counted in the scale already, so there n is 1.
#[derive(Debug, Clone)]
pub struct Bounded {
    /// The exact result.
    pub value: Matrix,
    /// The same shape, never negative.
    pub scale: Matrix,
}

impl Bounded {
    /// A value without error: an input as the device received it.
    pub fn exact(value: Matrix) -> Self {
        let scale = Matrix::zeros(value.rows, value.cols);
        Self { value, scale }
    }

    /// Elements [rows, cols] with their counted roundings, to be checked with n = 1.
    pub fn from_rounded(rows: usize, cols: usize, elements: &[Rounded]) -> Self {
        let value = elements.iter().map(|x| x.value).collect();
        let scale = elements.iter().map(|x| x.error).collect();
        Self { value: Matrix::new(rows, cols, value), scale: Matrix::new(rows, cols, scale) }
    }

    /// The elements for further computation, where `n` is what this value would be checked with.
    pub fn to_rounded(&self, n: usize) -> Vec<Rounded> {
        let unit = gamma(n) / U;
        let pairs = self.value.data.iter().zip(&self.scale.data);
        pairs.map(|(value, scale)| Rounded { value: *value, error: scale * unit }).collect()
    }

    /// Adds `c` element by element (an accumulated output): n grows by 1.
    pub fn plus(mut self, c: &Matrix) -> Self {
        assert_eq!((self.value.rows, self.value.cols), (c.rows, c.cols));
        for (i, x) in c.data.iter().enumerate() {
            self.value.data[i] += x;
            self.scale.data[i] += x.abs();
        }
        self
    }

    /// Adds `bias` `[cols]` to every row: n grows by 1.
    pub fn plus_bias(mut self, bias: &[f64]) -> Self {
        assert_eq!(self.value.cols, bias.len(), "one bias per column");
        for r in 0..self.value.rows {
            for (c, b) in bias.iter().enumerate() {
                self.value[(r, c)] += b;
                self.scale[(r, c)] += b.abs();
            }
        }
        self
    }
}
