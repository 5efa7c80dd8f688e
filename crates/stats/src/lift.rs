//! What is made of features before they are regressed on, and products of that, a group of columns at a time.

use std::ops::Range;

use rayon::prelude::*;

use crate::product::{View, product, scores};
use crate::{Misfit, fits};

/// What is made of a feature before it is regressed on.
pub trait Lift: Send + Sync {
    /// Values of a feature, `d`.
    fn dim(&self) -> usize;

    /// Values of what is made of it, `m`.
    fn width(&self) -> usize;

    /// Some of them, `(rows, columns.len())`, for rows of `d` values.
    fn lift(&self, rows: &[f32], columns: Range<usize>) -> Vec<f32>;
}

/// The feature itself.
pub struct Identity(pub usize);

impl Lift for Identity {
    fn dim(&self) -> usize {
        self.0
    }

    fn width(&self) -> usize {
        self.0
    }

    fn lift(&self, rows: &[f32], columns: Range<usize>) -> Vec<f32> {
        let rows = rows.chunks_exact(self.0.max(1));
        rows.flat_map(|row| &row[columns.clone()])
            .copied()
            .collect()
    }
}

/// `ReLU(f W)`.
pub struct Projection {
    dim: usize,
    width: usize,
    weights: Vec<f32>,
}

impl Projection {
    /// With `W (dim, width)` row by row.
    pub fn new(dim: usize, width: usize, weights: Vec<f32>) -> Result<Self, Misfit> {
        fits("values of a projection", dim * width, weights.len())?;
        Ok(Self {
            dim,
            width,
            weights,
        })
    }
}

impl Lift for Projection {
    fn dim(&self) -> usize {
        self.dim
    }

    fn width(&self) -> usize {
        self.width
    }

    /// A row depends on its own feature alone, bit for bit, however many are lifted together.
    fn lift(&self, rows: &[f32], columns: Range<usize>) -> Vec<f32> {
        let (d, n) = (self.dim.max(1), columns.len());
        let weights = View::rows(&self.weights, self.width).from_column(columns.start);
        let mut out = scores(rows, d, weights, n);
        out.par_chunks_mut(1 << 14)
            .for_each(|out| out.iter_mut().for_each(|v| *v = v.max(0.0)));
        out
    }
}

/// Columns that are lifted together.
const COLUMNS: usize = 1024;

/// The columns of a lifted feature, in groups.
pub(crate) fn blocks(width: usize) -> impl Iterator<Item = Range<usize>> {
    (0..width)
        .step_by(COLUMNS)
        .map(move |c| c..(c + COLUMNS).min(width))
}

/// In f64.
pub(crate) fn wide(values: Vec<f32>) -> Vec<f64> {
    values.into_iter().map(f64::from).collect()
}

/// `C += A B` by groups of rows of `C`, on all threads.
pub(crate) fn product_by_rows(
    (m, k, n): (usize, usize, usize),
    a: &[f64],
    b: View<'_, f64>,
    c: &mut [f64],
) {
    const ROWS: usize = 64;
    if m * n * k == 0 {
        return;
    }
    let parts = c.par_chunks_mut(ROWS * n).zip(a.par_chunks(ROWS * k));
    parts.for_each(|(c, a)| product((a.len() / k, k, n), 1.0, View::rows(a, k), b, c));
}

/// `H_a H_bᵀ`, in f64.
pub(crate) fn kernel(lift: &dyn Lift, a: &[f32], b: &[f32]) -> Vec<f64> {
    let d = lift.dim().max(1);
    let (m, n) = (a.len() / d, b.len() / d);
    let mut out = vec![0f64; m * n];
    for columns in blocks(lift.width()) {
        let k = columns.len();
        let left = wide(lift.lift(a, columns.clone()));
        let right = wide(lift.lift(b, columns));
        product_by_rows((m, k, n), &left, View::rows(&right, k).t(), &mut out);
    }
    out
}

/// One-hot rows, `(labels, classes.len())`.
pub(crate) fn one_hot(labels: &[u32], classes: &Range<usize>) -> Vec<f64> {
    let n = classes.len();
    let mut out = vec![0f64; labels.len() * n];
    for (row, &label) in out.chunks_exact_mut(n.max(1)).zip(labels) {
        if let Some(value) = (label as usize)
            .checked_sub(classes.start)
            .and_then(|c| row.get_mut(c))
        {
            *value = 1.0;
        }
    }
    out
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn features(n: usize, d: usize) -> (Vec<f32>, Vec<u32>) {
        let labels: Vec<u32> = (0..n as u32).map(|i| i * 7 % 5).collect();
        let rows = (0..n * d).map(|i| {
            let class = labels[i / d] as usize;
            ((i * i * 13 + i * 29) % 211) as f32 / 211.0
                + (class + i % d).is_multiple_of(5) as u32 as f32
        });
        (rows.collect(), labels)
    }

    pub(crate) fn projection(d: usize, m: usize) -> Box<dyn Lift> {
        let weights = (0..d * m).map(|i| ((i * i * 7 + i * 3) % 199) as f32 / 99.0 - 1.0);
        Box::new(Projection::new(d, m, weights.collect()).unwrap())
    }

    /// By its definition, and whatever columns are asked for together.
    #[test]
    fn a_projection_lifts() {
        let (d, m) = (6, 1100);
        let (rows, _) = features(50, d);
        let lift = projection(d, m);
        let all = lift.lift(&rows, 0..m);
        let mut grouped = vec![0f32; 50 * m];
        for columns in blocks(m) {
            let part = lift.lift(&rows, columns.clone());
            for (row, part) in grouped.chunks_mut(m).zip(part.chunks(columns.len())) {
                row[columns.clone()].copy_from_slice(part);
            }
        }
        for at in [0, 7, m - 1, 20 * m + 1030, 50 * m - 1] {
            let weight = |i: usize| ((i * i * 7 + i * 3) % 199) as f32 / 99.0 - 1.0;
            let sum: f32 = (0..d)
                .map(|k| rows[at / m * d + k] * weight(k * m + at % m))
                .sum();
            assert!((all[at] - sum.max(0.0)).abs() < 1e-5);
            assert!((grouped[at] - sum.max(0.0)).abs() < 1e-5);
        }
    }
}
