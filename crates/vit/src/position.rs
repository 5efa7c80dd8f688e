//! Position embeddings at another image size.

use candle_core::{D, Device, Tensor};

use crate::error::{Error, Result};

/// How a grid of position embeddings is brought to another size. Both are separable cubic filters
/// with pixel centres at half integers (`align_corners = false`), in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resample {
    /// Four taps with a = −0.75, indices clamped at the edge: `torch.nn.functional.interpolate(mode
    /// = "bicubic")` as in `transformers:models/dinov2/modeling_dinov2.py`.
    Cubic,
    /// a = −0.5, the support widened when shrinking: the same with `antialias = True`, as in
    /// `timm:layers/pos_embed.py`.
    Antialiased,
}

impl Resample {
    /// The `(to, from)` matrix that resamples one axis.
    fn matrix(self, from: usize, to: usize) -> Vec<f32> {
        let scale = from as f64 / to as f64;
        let mut matrix = vec![0f64; from * to];
        for (i, row) in matrix.chunks_exact_mut(from).enumerate() {
            let centre = (i as f64 + 0.5) * scale;
            match self {
                Self::Cubic => {
                    let x = centre - 0.5;
                    for tap in -1..=2i64 {
                        let index = x.floor() as i64 + tap;
                        let weight = cubic(index as f64 - x, -0.75);
                        row[index.clamp(0, from as i64 - 1) as usize] += weight;
                    }
                }
                Self::Antialiased => {
                    let width = scale.max(1.0);
                    let first = (centre - 2.0 * width + 0.5).max(0.0) as usize;
                    let last = ((centre + 2.0 * width + 0.5) as usize).min(from);
                    for (index, w) in row.iter_mut().enumerate().take(last).skip(first) {
                        *w = cubic((index as f64 - centre + 0.5) / width, -0.5);
                    }
                    let sum: f64 = row.iter().sum();
                    row.iter_mut().for_each(|w| *w /= sum);
                }
            }
        }
        matrix.into_iter().map(|w| w as f32).collect()
    }
}

/// Keys' cubic convolution kernel.
fn cubic(x: f64, a: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * a
    } else {
        0.0
    }
}

/// A `(g·g, D)` table of patch positions resampled to `(h·w, D)`.
pub(crate) fn resample(table: &Tensor, h: usize, w: usize, how: Resample) -> Result<Tensor> {
    let (n, dim) = table.dims2()?;
    let side = side(n)?;
    if (h, w) == (side, side) {
        return Ok(table.clone());
    }
    let device: &Device = table.device();
    let rows = Tensor::from_vec(how.matrix(side, h), (h, side), device)?;
    let columns = Tensor::from_vec(how.matrix(side, w), (w, side), device)?;
    // (g, g, D): rows first as one product, then columns for each new row.
    let by_row = rows.matmul(&table.reshape((side, side * dim))?)?;
    let by_row = by_row.reshape((h, side, dim))?;
    let both = columns.broadcast_left(h)?.matmul(&by_row)?;
    Ok(both.reshape(((), dim))?.contiguous()?)
}

/// The side of a square grid of `n` patches.
pub(crate) fn side(n: usize) -> Result<usize> {
    let side = n.isqrt();
    match side * side == n {
        true => Ok(side),
        false => Err(Error::Option {
            key: "preprocess.crop",
            problem: format!("the position embedding has {n} patch rows, expected a square number"),
        }),
    }
}

/// Splits a `(1, N, D)` table into the CLS row, where there is one, and the patch rows. Tables of a
/// square number of rows have none (timm's `no_embed_class`).
pub(crate) fn split(table: &Tensor) -> Result<(Option<Tensor>, Tensor)> {
    let table = table.squeeze(0)?;
    let n = table.dim(D::Minus2)?;
    if n.isqrt().pow(2) == n {
        return Ok((None, table));
    }
    let cls = table.narrow(0, 0, 1)?.contiguous()?;
    let patches = table.narrow(0, 1, n - 1)?.contiguous()?;
    Ok((Some(cls), patches))
}
