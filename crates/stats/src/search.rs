//! The ridge that predicts best what was held back.

use std::ops::Range;

use rayon::prelude::*;

use crate::cholesky::Cholesky;
use crate::lift::{Lift, by_columns, lifted, lifted_columns, one_hot, product_by_rows, wide};
use crate::product::{DEPTH, Real as _, View};
use crate::symmetric::Symmetric;

/// The 17 values of `RanPAC/RanPAC:RanPAC.py`.
pub const RIDGES: [f64; 17] = [
    1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8,
];

/// Above this many columns one matrix at a time is factored, with the threads inside.
const LARGE: usize = 4096;

/// Bytes at most in use by [`validation_errors`] of `images` rows lifted to `width` values, on so many threads.
pub fn search_memory(images: usize, width: usize, classes: usize, threads: usize) -> usize {
    let fit = images * 4 / 5;
    let held = images - fit;
    let n = fit.min(width);
    let at_once = match n > LARGE {
        true => 1,
        false => threads.min(RIDGES.len()),
    };
    let square = 4 * n * (n + f64::STRIP);
    let made = match fit <= width {
        true => 4 * images * images + 24 * images * 1024,
        false => (12 * DEPTH + 8 * held) * width,
    };
    made + 8 * held * n + (1 + at_once) * (square + 8 * n * classes + 8 * held * classes)
}

/// For each ridge the squared error of a regression on the first `fit` rows over the others, divided by their number: the mean
/// over `classes` is that over their number. Infinite where the matrix is singular in f64.
///
/// Solved on the smaller side: `(fit, fit)` by images or `(m, m)` by sums, factored once a ridge. An eigendecomposition
/// would serve all ridges; that of `faer` took as long as 15 of its factors (n = 2000, one core), and gave other bits on two.
pub fn validation_errors(
    lift: &dyn Lift,
    rows: &[f32],
    labels: &[u32],
    fit: usize,
    classes: &Range<usize>,
    ridges: &[f64],
) -> Vec<f64> {
    let d = lift.dim().max(1);
    let (train, held) = rows.split_at(fit * d);
    let targets = one_hot(&labels[fit..], classes);
    let (count, c) = (labels.len() - fit, classes.len());
    let y = one_hot(&labels[..fit], classes);
    let (matrix, right, left) = match fit <= lift.width() {
        true => {
            // K of all rows: those held back stand below.
            let n = labels.len();
            let mut all = Symmetric::<f64>::zeros(n);
            by_columns(lift, rows, |columns, lifted| {
                all.add_columns(lifted, columns.len());
            });
            let matrix = Symmetric::from_fn(fit, |i, j| all.get(i, j));
            let cross = (fit..n).flat_map(|i| (0..fit).map(move |j| (i, j)));
            (matrix, y, cross.map(|(i, j)| all.get(i, j)).collect())
        }
        false => {
            let width = lift.width();
            let mut matrix = Symmetric::<f64>::zeros(width);
            let mut right = vec![0f64; width * c];
            let mut turned = Vec::new();
            for (rows, y) in train.chunks(DEPTH * d).zip(y.chunks(DEPTH * c)) {
                lifted_columns(lift, rows, &mut turned);
                let (lifted, k) = (wide(&turned), rows.len() / d);
                matrix.add_columns(&lifted, k);
                product_by_rows((width, k, c), &lifted, View::rows(y, c), &mut right);
            }
            (matrix, right, wide(&lifted(lift, held, 0..width)))
        }
    };
    let n = matrix.n();
    let error = |ridge: &f64| -> f64 {
        let Ok(factor) = Cholesky::new(matrix.clone(), *ridge) else {
            return f64::INFINITY;
        };
        let mut x = right.clone();
        if factor.solve(&mut x, c).is_err() {
            return f64::INFINITY;
        }
        let mut predicted = vec![0f64; count * c];
        product_by_rows((count, n, c), &left, View::rows(&x, c), &mut predicted);
        let squares = predicted
            .iter()
            .zip(&targets)
            .map(|(p, t)| (p - t) * (p - t));
        squares.sum::<f64>() / count as f64
    };
    // Large ones share the threads instead, so that one copy is held.
    match n > LARGE {
        true => ridges.iter().map(error).collect(),
        false => ridges.par_iter().map(error).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ridge;
    use crate::lift::tests::{features, projection};

    /// Both sides of the search agree with heads solved one by one.
    #[test]
    fn the_search_gives_the_errors_of_the_heads() {
        let d = 6;
        let (rows, labels) = features(100, d);
        for m in [40, 300] {
            let fit = 80;
            let lift = projection(d, m);
            let ridges = [1e-2, 1.0, 100.0];
            let errors = validation_errors(lift.as_ref(), &rows, &labels, fit, &(0..5), &ridges);
            for (ridge, error) in ridges.into_iter().zip(errors) {
                let mut head = Ridge::new(projection(d, m));
                head.add(&rows[..fit * d], &labels[..fit]).unwrap();
                let head = head.solve(ridge).unwrap();
                let held = crate::lifted(lift.as_ref(), &rows[fit * d..], 0..m);
                let scores = crate::scores(&held, m, View::rows(&head.weights, 5), 5);
                let mut want = 0.0;
                for (row, &label) in scores.chunks_exact(5).zip(&labels[fit..]) {
                    for (c, score) in row.iter().enumerate() {
                        let target = f64::from(u8::from(c == label as usize));
                        want += (f64::from(*score) - target).powi(2) / 20.0;
                    }
                }
                assert!(
                    (error - want).abs() < 1e-3 * want,
                    "{m} {ridge}: {error} {want}"
                );
            }
        }
    }
}
