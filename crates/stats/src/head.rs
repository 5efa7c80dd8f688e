//! `(G + λI) W = Q` in f32, held against f64.
//!
//! ```text
//! L Lᵀ = G + λI,  W = L⁻ᵀ L⁻¹ Q                                 f32
//! e = |L⁻ᵀ L⁻¹ r| / |W v|,  r = Q v − (G + λI) W v               v of random signs, r in f64: how far W v is off, in its largest value
//! W ← W + L⁻ᵀ L⁻¹ (Q − (G + λI) W)                              where e is above 1e-4, the residual in f64
//! ```
//!
//! Where that does not bring `e` down, λ being small beside what f32 leaves of G, all is done in f64.

use rayon::prelude::*;

use crate::cholesky::{Cholesky, NotPositive};
use crate::product::{Real, View, product};
use crate::ridge::factor;
use crate::symmetric::{Symmetric, side};

/// Columns of a strip.
const STRIP: usize = f32::STRIP;
/// How far a random combination of the columns of `W` may be off, beside its largest value.
const BOUND: f64 = 1e-4;
/// Above this a correction is as wrong as what it corrects.
const HOPELESS: f64 = 0.1;

/// `W (m, classes)` row by row, and the ridge it was solved with: see [`factor`].
pub(crate) fn head(
    gram: &Symmetric<f32>,
    sums: &[Vec<f32>],
    ridge: f64,
) -> Result<(Vec<f32>, f64), NotPositive> {
    if let Some(weights) = in_f32(gram, sums, ridge) {
        return Ok((weights, ridge));
    }
    let (factor, ridge) = factor(|| gram.map(f64::from), ridge)?;
    let mut x: Vec<f64> = by_rows(sums, gram.n());
    // The sizes are those of the factor.
    let _ = factor.solve(&mut x, sums.len());
    Ok((x.into_iter().map(|v| v as f32).collect(), ridge))
}

/// `None` where f32 is not enough.
fn in_f32(gram: &Symmetric<f32>, sums: &[Vec<f32>], ridge: f64) -> Option<Vec<f32>> {
    let (n, c) = (gram.n(), sums.len());
    let factor = Cholesky::new(gram.clone(), ridge).ok()?;
    let mut x: Vec<f32> = by_rows(sums, n);
    factor.solve(&mut x, c).ok()?;
    for last in [false, true] {
        let off = off(gram, ridge, &factor, &x, sums)?;
        if off <= BOUND {
            return Some(x);
        }
        if last || off.is_nan() || off > HOPELESS {
            break;
        }
        let mut correction = residual(gram, ridge, &x, sums);
        factor.solve(&mut correction, c).ok()?;
        x.iter_mut().zip(correction).for_each(|(x, d)| *x += d);
    }
    None
}

/// `Q (n, classes)` row by row.
fn by_rows<T: Real>(sums: &[Vec<f32>], n: usize) -> Vec<T> {
    let mut rows = vec![T::ZERO; n * sums.len()];
    for (i, row) in rows.chunks_exact_mut(sums.len().max(1)).enumerate() {
        let values = row.iter_mut().zip(sums);
        values.for_each(|(x, sum)| *x = T::from_f32(sum[i]));
    }
    rows
}

/// `e` of the module's head.
fn off(
    gram: &Symmetric<f32>,
    ridge: f64,
    factor: &Cholesky<f32>,
    x: &[f32],
    sums: &[Vec<f32>],
) -> Option<f64> {
    // The high bit of a multiplicative hash.
    let sign = |c: usize| match (c as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 63 {
        0 => 1.0,
        _ => -1.0,
    };
    let rows = x.chunks_exact(sums.len().max(1));
    let combined: Vec<f64> = rows
        .map(|row| {
            let values = row.iter().enumerate();
            values.map(|(c, v)| sign(c) * f64::from(*v)).sum()
        })
        .collect();
    let product = times(gram, ridge, &combined);
    let mut correction: Vec<f32> = product
        .iter()
        .enumerate()
        .map(|(i, p)| {
            let values = sums.iter().enumerate();
            let want: f64 = values.map(|(c, s)| sign(c) * f64::from(s[i])).sum();
            (want - p) as f32
        })
        .collect();
    factor.solve(&mut correction, 1).ok()?;
    let largest = |values: &mut dyn Iterator<Item = f64>| values.fold(0f64, |m, v| m.max(v.abs()));
    let size = largest(&mut combined.iter().copied());
    let far = largest(&mut correction.iter().map(|v| f64::from(*v)));
    let finite = combined.iter().all(|v| v.is_finite()) && correction.iter().all(|v| v.is_finite());
    match (finite, far > 0.0) {
        (false, _) => None,
        (true, false) => Some(0.0),
        (true, true) => Some(far / size),
    }
}

/// `(G + λI) y`, in f64.
fn times(gram: &Symmetric<f32>, ridge: f64, y: &[f64]) -> Vec<f64> {
    let n = gram.n();
    // What a strip adds to the rows it has, and by its transpose to those it stands for.
    let parts: Vec<Vec<f64>> = gram
        .strips
        .par_iter()
        .enumerate()
        .map(|(j, strip)| {
            let (top, width) = (j * STRIP, side::<f32>(n, j));
            let mut out = vec![0f64; n - top];
            let mut across = vec![0f64; width];
            for (i, row) in strip.chunks_exact(width).enumerate() {
                let own = &y[top..top + width];
                out[i] = dot(row, own);
                if i >= width {
                    let value = y[top + i];
                    let pairs = across.iter_mut().zip(row);
                    pairs.for_each(|(a, v)| *a += f64::from(*v) * value);
                }
            }
            out.iter_mut().zip(across).for_each(|(o, a)| *o += a);
            out
        })
        .collect();
    let mut out: Vec<f64> = y.iter().map(|v| ridge * v).collect();
    for (j, part) in parts.into_iter().enumerate() {
        let rows = out[j * STRIP..].iter_mut().zip(part);
        rows.for_each(|(o, p)| *o += p);
    }
    out
}

/// In eight sums, so that it vectorises, always in the same order.
fn dot(row: &[f32], y: &[f64]) -> f64 {
    let (row8, row1) = row.as_chunks::<8>();
    let (y8, y1) = y.as_chunks::<8>();
    let mut sums = [0f64; 8];
    for (a, b) in row8.iter().zip(y8) {
        for i in 0..8 {
            sums[i] += f64::from(a[i]) * b[i];
        }
    }
    let rest: f64 = row1.iter().zip(y1).map(|(a, b)| f64::from(*a) * b).sum();
    sums.iter().sum::<f64>() + rest
}

/// `Q − (G + λI) X`, in f64 and then rounded, a strip's rows at a time.
fn residual(gram: &Symmetric<f32>, ridge: f64, x: &[f32], sums: &[Vec<f32>]) -> Vec<f32> {
    let (n, c) = (gram.n(), sums.len());
    let x: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
    let mut out: Vec<f32> = by_rows(sums, n);
    let parts = out.par_chunks_mut((STRIP * c).max(1)).enumerate();
    parts.with_max_len(1).for_each(|(i, out)| {
        let (top, rows) = (i * STRIP, side::<f32>(n, i));
        let mut exact: Vec<f64> = out
            .iter()
            .zip(&x[top * c..])
            .map(|(q, x)| f64::from(*q) - ridge * x)
            .collect();
        let mut tile = Vec::new();
        for j in 0..gram.strips.len() {
            let width = side::<f32>(n, j);
            // G_ij lies in the strip of the smaller of i and j.
            let (strip, from, height, across) = match j <= i {
                true => (j, top - j * STRIP, rows, width),
                false => (i, j * STRIP - top, width, rows),
            };
            tile.clear();
            let values = &gram.strips[strip][from * across..][..height * across];
            tile.extend(values.iter().map(|v| f64::from(*v)));
            let left = match j <= i {
                true => View::rows(&tile, across),
                false => View::rows(&tile, across).t(),
            };
            let right = View::rows(&x[j * STRIP * c..], c);
            product((rows, width, c), -1.0, left, right, &mut exact);
        }
        out.iter_mut().zip(exact).for_each(|(o, e)| *o = e as f32);
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lift::tests::{features, projection};
    use crate::{Kept, Ridge};

    /// `G` and `Q` of 700 columns and 900 images, their head in f64, and how far others are from it.
    fn case(ridge: f64) -> (Symmetric<f32>, Vec<Vec<f32>>, Vec<f64>) {
        let (rows, labels) = features(900, 20);
        let mut sums = Ridge::new(projection(20, 700));
        sums.add(&rows, &labels).unwrap();
        let Kept::Sums(gram, q) = sums.kept() else {
            panic!("900 images of width 700");
        };
        let mut want: Vec<f64> = by_rows(q, 700);
        let factor = Cholesky::new(gram.map(f64::from), ridge).unwrap();
        factor.solve(&mut want, q.len()).unwrap();
        (gram.clone(), q.to_vec(), want)
    }

    fn far(got: &[f32], want: &[f64]) -> f64 {
        let size = want.iter().fold(0f64, |m, v| m.max(v.abs()));
        let pairs = got.iter().zip(want);
        pairs.fold(0f64, |m, (g, w)| m.max((f64::from(*g) - w).abs())) / size
    }

    /// The largest eigenvalue of this G is 9e5: f32 leaves the smallest uncertain by about 0.1. A ridge of 1e4 is solved at once,
    /// the others after a correction.
    #[test]
    fn f32_keeps_its_bound_and_corrections_help() {
        for ridge in [1e4, 1e2, 10.0] {
            let (gram, sums, want) = case(ridge);
            let (weights, used) = head(&gram, &sums, ridge).unwrap();
            assert_eq!(used, ridge);
            assert!(
                far(&weights, &want) < 2.0 * BOUND,
                "{ridge}: {}",
                far(&weights, &want)
            );
            assert!(in_f32(&gram, &sums, ridge).is_some(), "{ridge}");
        }
        let ridge = 10.0;
        let (gram, sums, want) = case(ridge);
        let factor = Cholesky::new(gram.clone(), ridge).unwrap();
        let mut x: Vec<f32> = by_rows(&sums, 700);
        factor.solve(&mut x, sums.len()).unwrap();
        let before = off(&gram, ridge, &factor, &x, &sums).unwrap();
        let mut correction = residual(&gram, ridge, &x, &sums);
        factor.solve(&mut correction, sums.len()).unwrap();
        let mut better = x.clone();
        better.iter_mut().zip(correction).for_each(|(x, d)| *x += d);
        let after = off(&gram, ridge, &factor, &better, &sums).unwrap();
        assert!(far(&better, &want) < 0.1 * far(&x, &want));
        assert!(after < 0.1 * before);
        // What is stated of a random combination holds of the whole.
        assert!(far(&x, &want) < 10.0 * before && before < 10.0 * far(&x, &want));
    }

    /// 700 columns of rank 20: f32 has no factor for it, or one that is all rounding.
    #[test]
    fn what_f32_cannot_tell_is_done_in_f64() {
        let ridge = 1e-3;
        let (gram, sums, want) = case(ridge);
        assert!(in_f32(&gram, &sums, ridge).is_none());
        let (weights, used) = head(&gram, &sums, ridge).unwrap();
        assert_eq!(used, ridge);
        assert!(far(&weights, &want) < 1e-6);
    }
}
