//! A linear layer alone.

use rayon::prelude::*;

use super::GROUP_ROWS;
use super::product::{Matrix, Start, product};
use crate::block::Linear;

/// Rows that the gradient of a weight sums at a time.
const ROWS: usize = 1024;
/// Values of a turned row; not a power of two, which would put the rows of a tile into one set of the cache.
const TURNED: usize = ROWS + 16;
/// Rows and columns that are turned at a time: a cache line of each.
const TILE: usize = 16;
/// Columns that a thread sums.
const COLUMNS: usize = 256;

/// `x Wᵀ + b`: `(M, in)` to `(M, out)`.
pub fn linear(x: &[f32], layer: &Linear<'_>) -> Vec<f32> {
    let n = layer.bias.len();
    let k = layer.weight.len() / n.max(1);
    let w = Matrix::rows(layer.weight, k).t();
    by_rows(x, w, (k, n), Start::Bias(layer.bias))
}

/// The gradient of [`linear`]'s input, `g W`: `(M, out)` to `(M, in)`.
pub fn linear_grad(grad: &[f32], layer: &Linear<'_>) -> Vec<f32> {
    let n = layer.bias.len();
    let k = layer.weight.len() / n.max(1);
    by_rows(grad, Matrix::rows(layer.weight, k), (n, k), Start::Zero)
}

/// The gradient of [`linear`]'s weight, `gᵀ x`: of `(M, out)` and `(M, in)` to `(out, in)`.
pub fn weight_grad(x: &[f32], grad: &[f32], inputs: usize) -> Vec<f32> {
    let k = inputs.max(1);
    let rows = x.len() / k;
    let n = grad.len() / rows.max(1);
    let mut out = vec![0f32; n * k];
    let threads = rayon::current_num_threads();
    // Some rows at a time: their part of `x` is packed, and stays near the core. Columns of `grad` are laid out as rows first: read
    // where they lie, each value of a column is on another page.
    let mut turned = vec![0f32; n * TURNED];
    let parts = grad.chunks(ROWS * n.max(1)).zip(x.chunks(ROWS * k));
    for (i, (grad, x)) in parts.enumerate() {
        let start = if i == 0 { Start::Zero } else { Start::Sum };
        turn(grad, n, &mut turned);
        let (a, b) = (Matrix::rows(&turned, TURNED), Matrix::rows(x, k));
        product((n, x.len() / k, k), a, b, &mut out, k, start, threads);
    }
    out
}

/// Column `j` of the `(M, n)` values in `from` to the beginning of row `j` of `to`, whose rows are [`TURNED`] long.
fn turn(from: &[f32], n: usize, to: &mut [f32]) {
    to.par_chunks_mut(TILE * TURNED)
        .enumerate()
        .for_each(|(i, to)| {
            let (first, columns) = (i * TILE, to.len() / TURNED);
            for (j, rows) in from.chunks(TILE * n).enumerate() {
                for (p, row) in rows.chunks_exact(n).enumerate() {
                    for (c, value) in row[first..first + columns].iter().enumerate() {
                        to[c * TURNED + j * TILE + p] = *value;
                    }
                }
            }
        });
}

/// The gradient of [`linear`]'s bias: the sums of the columns of `(M, outputs)`, in the order of rows.
pub fn bias_grad(grad: &[f32], outputs: usize) -> Vec<f32> {
    let n = outputs.max(1);
    let mut out = vec![0f32; outputs];
    out.par_chunks_mut(COLUMNS)
        .enumerate()
        .for_each(|(i, sums)| {
            for row in grad.chunks_exact(n) {
                for (sum, g) in sums.iter_mut().zip(&row[i * COLUMNS..]) {
                    *sum += g;
                }
            }
        });
    out
}

/// The product, rows in pieces as large as a group's in parallel; where these are fewer than the threads, threads share a piece.
fn by_rows(x: &[f32], w: Matrix<'_>, (k, n): (usize, usize), start: Start<'_>) -> Vec<f32> {
    let (k, n) = (k.max(1), n.max(1));
    let mut out = vec![0f32; x.len() / k * n];
    let threads = rayon::current_num_threads();
    let one = |x: &[f32], out: &mut [f32], threads: usize| {
        let sizes = (x.len() / k, k, n);
        product(sizes, Matrix::rows(x, k), w, out, n, start, threads);
    };
    let (from, to) = (GROUP_ROWS * k, GROUP_ROWS * n);
    if x.len().div_ceil(from) < threads {
        for (x, out) in x.chunks(from).zip(out.chunks_mut(to)) {
            one(x, out, threads);
        }
    } else {
        x.par_chunks(from)
            .zip(out.par_chunks_mut(to))
            .for_each(|(x, out)| one(x, out, 1));
    }
    out
}
