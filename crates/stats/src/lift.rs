//! What is made of features before they are regressed on, and products of that, a group of columns at a time.

use std::cell::Cell;
use std::ops::Range;

use rayon::prelude::*;

use crate::product::{Real, View, block, product, rectified, share};
use crate::{Misfit, fits};

/// What is made of a feature before it is regressed on.
pub trait Lift: Send + Sync {
    /// Values of a feature, `d`.
    fn dim(&self) -> usize;

    /// Values of what is made of it, `m`.
    fn width(&self) -> usize;

    /// Some of them, `(rows, columns.len())`, for rows of `d` values, on this thread. A row depends on its own feature alone,
    /// bit for bit, and a value not on the columns that are asked for together.
    fn lift(&self, rows: &[f32], columns: Range<usize>, out: &mut [f32]);

    /// Some of them the other way round, `(columns.len(), rows)`.
    fn lift_turned(&self, rows: &[f32], columns: Range<usize>, out: &mut [f32]);
}

/// Some of what is made of features, `(rows, columns.len())`, on all threads.
pub fn lifted(lift: &dyn Lift, rows: &[f32], columns: Range<usize>) -> Vec<f32> {
    let (d, n) = (lift.dim().max(1), columns.len());
    let mut out = vec![0f32; rows.len() / d * n];
    if n > 0 {
        let group = share(rows.len() / d);
        let parts = out.par_chunks_mut(group * n);
        let parts = parts.zip(rows.par_chunks(group * d)).with_max_len(1);
        parts.for_each(|(out, rows)| lift.lift(rows, columns.clone(), out));
    }
    out
}

/// All of what is made of features the other way round, `(m, rows)`, on all threads, to memory that is used again.
pub(crate) fn lifted_columns(lift: &dyn Lift, rows: &[f32], out: &mut Vec<f32>) {
    let (n, m) = (rows.len() / lift.dim().max(1), lift.width());
    out.resize(m * n, 0.0);
    if n > 0 {
        let group = block(m);
        let parts = out.par_chunks_mut(group * n).enumerate();
        parts.with_max_len(1).for_each(|(i, out)| {
            let columns = i * group..m.min((i + 1) * group);
            lift.lift_turned(rows, columns, out);
        });
    }
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

    fn lift(&self, rows: &[f32], columns: Range<usize>, out: &mut [f32]) {
        let rows = rows.chunks_exact(self.0.max(1));
        for (out, row) in out.chunks_exact_mut(columns.len()).zip(rows) {
            out.copy_from_slice(&row[columns.clone()]);
        }
    }

    fn lift_turned(&self, rows: &[f32], columns: Range<usize>, out: &mut [f32]) {
        let n = rows.len() / self.0.max(1);
        for (i, row) in rows.chunks_exact(self.0.max(1)).enumerate() {
            let values = out.chunks_exact_mut(n).zip(&row[columns.clone()]);
            values.for_each(|(out, value)| out[i] = *value);
        }
    }
}

/// `ReLU(f W)`.
pub struct Projection {
    dim: usize,
    width: usize,
    /// `Wᵀ`, so that what belongs to a column of W lies together.
    weights: Vec<f32>,
}

impl Projection {
    /// With `W (dim, width)` row by row.
    pub fn new(dim: usize, width: usize, weights: Vec<f32>) -> Result<Self, Misfit> {
        fits("values of a projection", dim * width, weights.len())?;
        Ok(Self {
            dim,
            width,
            weights: transposed(&weights, width),
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

    fn lift(&self, rows: &[f32], columns: Range<usize>, out: &mut [f32]) {
        let weights = View::rows(&self.weights, self.dim).from_row(columns.start);
        rectified(rows, self.dim, weights.t(), columns.len(), out);
    }

    fn lift_turned(&self, rows: &[f32], columns: Range<usize>, out: &mut [f32]) {
        let (d, features) = (self.dim, View::rows(rows, self.dim).t());
        let weights = &self.weights[columns.start * d..columns.end * d];
        rectified(weights, d, features, rows.len() / d.max(1), out);
    }
}

/// `(n, width)`, row by row, to `(width, n)`.
fn transposed(values: &[f32], width: usize) -> Vec<f32> {
    let n = values.len() / width.max(1);
    let mut out = vec![0f32; n * width];
    // A few columns at a time, so that each cache line of a row is read for all its values.
    let parts = out.par_chunks_mut(16 * n.max(1)).enumerate();
    parts.for_each(|(part, out)| {
        for (i, row) in values.chunks_exact(width).enumerate() {
            let row = &row[16 * part..];
            for (column, value) in out.chunks_exact_mut(n).zip(row) {
                column[i] = *value;
            }
        }
    });
    out
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
pub(crate) fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

/// `f(columns, H)` for groups of columns of lifted rows, `H (rows, columns.len())` in f64. The next group is lifted at the same time.
pub(crate) fn by_columns(
    lift: &dyn Lift,
    rows: &[f32],
    mut f: impl FnMut(Range<usize>, &[f64]) + Send,
) {
    let mut groups = blocks(lift.width());
    let (mut now, mut next) = (Vec::new(), Vec::new());
    let Some(mut columns) = groups.next() else {
        return;
    };
    lifted_wide(lift, rows, columns.clone(), &mut now);
    for following in groups {
        rayon::join(
            || f(columns, &now),
            || lifted_wide(lift, rows, following.clone(), &mut next),
        );
        columns = following;
        std::mem::swap(&mut now, &mut next);
    }
    f(columns, &now);
}

/// Some of what is made of features in f64, to memory that is used again.
fn lifted_wide(lift: &dyn Lift, rows: &[f32], columns: Range<usize>, out: &mut Vec<f64>) {
    let (d, n) = (lift.dim().max(1), columns.len());
    out.resize(rows.len() / d * n, 0.0);
    let group = share(rows.len() / d);
    let parts = out.par_chunks_mut((group * n).max(1));
    let parts = parts.zip(rows.par_chunks(group * d));
    parts.for_each_init(Vec::new, |lifted, (out, rows)| {
        lifted.resize(out.len(), 0.0);
        lift.lift(rows, columns.clone(), lifted);
        let pairs = out.iter_mut().zip(&*lifted);
        pairs.for_each(|(to, v)| *to = f64::from(*v));
    });
}

/// `C += A B` by groups of rows of `C`, on all threads.
pub(crate) fn product_by_rows<T: Real>(
    (m, k, n): (usize, usize, usize),
    a: &[T],
    b: View<'_, T>,
    c: &mut [T],
) {
    if m * n * k == 0 {
        return;
    }
    let rows = block(m);
    let parts = c.par_chunks_mut(rows * n).zip(a.par_chunks(rows * k));
    parts
        .with_max_len(1)
        .for_each(|(c, a)| product((a.len() / k, k, n), T::ONE, View::rows(a, k), b, c));
}

/// Rows from `first` on of `K = H Hᵀ`, in f64.
pub(crate) fn kernel(lift: &dyn Lift, rows: &[f32], first: usize) -> Vec<f64> {
    let n = rows.len() / lift.dim().max(1);
    let mut out = vec![0f64; (n - first) * n];
    by_columns(lift, rows, |columns, lifted| {
        let (k, right) = (columns.len(), View::rows(lifted, columns.len()).t());
        product_by_rows((n - first, k, n), &lifted[first * k..], right, &mut out);
    });
    out
}

/// `H W (rows, n)` for `W (m, n)` row by row. A row depends on its own feature alone, bit for bit.
///
/// The columns of H are cut into at most eight parts, which go over all rows by themselves and are added up in order: neither H nor
/// anything of its size is ever there.
pub fn lifted_scores(lift: &dyn Lift, rows: &[f32], w: &[f32], n: usize) -> Vec<f32> {
    const ROWS: usize = 1024;
    const COLUMNS: usize = 640;
    thread_local! {
        static LIFTED: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    }
    let (d, width) = (lift.dim().max(1), lift.width());
    let mut out = vec![0f32; rows.len() / d * n];
    let part = width.div_ceil(8).next_multiple_of(COLUMNS);
    let parts = width.div_ceil(part.max(1));
    for (out, rows) in out.chunks_mut((ROWS * n).max(1)).zip(rows.chunks(ROWS * d)) {
        let m = rows.len() / d;
        let partial = (0..parts).into_par_iter().with_max_len(1).map(|i| {
            let mut sums = vec![0f32; m * n];
            let mut lifted = LIFTED.take();
            let all = i * part..width.min((i + 1) * part);
            for first in all.clone().step_by(COLUMNS) {
                let columns = first..all.end.min(first + COLUMNS);
                let k = columns.len();
                lifted.resize(m * k, 0.0);
                lift.lift(rows, columns, &mut lifted);
                let (left, right) = (View::rows(&lifted, k), View::rows(w, n).from_row(first));
                product((m, k, n), 1.0, left, right, &mut sums);
            }
            LIFTED.set(lifted);
            sums
        });
        for sums in partial.collect::<Vec<_>>() {
            out.iter_mut().zip(sums).for_each(|(o, s)| *o += s);
        }
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
        let all = lifted(lift.as_ref(), &rows, 0..m);
        let mut grouped = vec![0f32; 50 * m];
        for columns in blocks(m) {
            let part = lifted(lift.as_ref(), &rows, columns.clone());
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
