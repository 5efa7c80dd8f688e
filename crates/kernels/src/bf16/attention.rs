//! Multi-head attention of one group, head by head, 32 queries at a time: a strip of the attention matrix never leaves the
//! first level cache, and the whole matrix is never stored by the forward.

use std::ops::Range;

use super::Group;
use super::lanes::{self, LANES, Pairs};
use super::pack::{straight, tiles_of, transposed};
use super::soon::Soon;
use super::tile::{ROWS, Scratch, Tile};
use super::unit::Unit;

use crate::buffer::Buffer;

/// Queries of a strip.
const STRIP: usize = 2 * ROWS;

/// Queries, keys and values of all heads, row by row.
pub struct Heads<'a> {
    pub heads: usize,
    pub dim: usize,
    /// `[q; k; v]` of each token, and rows behind the last that tiles may read.
    pub qkv: &'a [u16],
    /// Values from one row to the next.
    pub stride: usize,
}

impl<'a> Heads<'a> {
    fn head(&self) -> usize {
        self.dim / self.heads
    }

    /// From this head's value of a row on, to the end of all rows. `part`: 0 queries, 1 keys, 2 values.
    fn from(&self, row: usize, part: usize, head: usize) -> &'a [u16] {
        &self.qkv[row * self.stride + part * self.dim + head * self.head()..]
    }

    fn row(&self, row: usize, part: usize, head: usize) -> &'a [u16] {
        &self.from(row, part, head)[..self.head()]
    }

    /// `2ˣ = e^{s/√d}` for `x` this times `s`.
    fn factor(&self) -> f32 {
        std::f32::consts::LOG2_E / (self.head() as f32).sqrt()
    }
}

/// Memory for one head.
#[derive(Debug, Default)]
pub struct Space {
    prefix_keys: Buffer,
    prefix_values: Buffer,
    /// `Kᵀ` and `V` as second operands.
    keys: Buffer,
    values: Buffer,
    scores: Buffer,
    weights: Buffer,
    // For the backward alone: `K`, `Q`, `∂O` and `Vᵀ` as second operands; gradients of a strip; `Pᵀ` and `∂Sᵀ`.
    key_rows: Buffer,
    query_rows: Buffer,
    out_rows: Buffer,
    value_columns: Buffer,
    slopes: Buffer,
    weights_t: Buffer,
    slopes_t: Buffer,
}

/// The prefix of one image's head as bf16 rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn prefix_rows<'a>(
    buffer: &'a mut Buffer,
    values: Option<&[f32]>,
    length: usize,
    at: usize,
    width: usize,
) -> &'a [u16] {
    let out = buffer.get::<u16>(length * width);
    if let Some(values) = values {
        let values = &values[at * length * width..][..length * width];
        for (to, from) in out.chunks_mut(LANES).zip(values.chunks(LANES)) {
            lanes::store_bf16(to, lanes::load(from));
        }
    }
    out
}

/// `softmax(q [Pk; k]ᵀ / √d) [Pv; v]` of the rows `rows` of the group, all heads side by side, to `out`. Where not all tokens are
/// read, rows are counted among those that are.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub fn forward(
    unit: &Unit,
    heads: &Heads<'_>,
    group: &Group<'_>,
    rows: Range<usize>,
    space: &mut Space,
    out: &mut [u16],
    width: usize,
) {
    let head = heads.head();
    let length = group.prefix.map_or(0, |p| p.length);
    let keys = length + group.tokens;
    let (wide, tall) = (keys.next_multiple_of(32), head.next_multiple_of(32));
    let factor = heads.factor();
    let mut c = Scratch::new();
    // Columns that pad a row are read as zeros later.
    if width > heads.dim {
        for row in out.chunks_exact_mut(width) {
            row[heads.dim..].fill(0);
        }
    }
    for image in 0..group.images {
        let first = image * group.tokens;
        let start = image * group.read;
        let wanted = rows.start.max(start)..rows.end.min(start + group.read);
        if wanted.is_empty() {
            continue;
        }
        // From rows that are read to rows that there are.
        let queries = wanted.start - start + first..wanted.end - start + first;
        let to_row = wanted.start - rows.start;
        for h in 0..heads.heads {
            let at = image * heads.heads + h;
            let k0 = prefix_rows(
                &mut space.prefix_keys,
                group.prefix.map(|p| p.keys),
                length,
                at,
                head,
            );
            let v0 = prefix_rows(
                &mut space.prefix_values,
                group.prefix.map(|p| p.values),
                length,
                at,
                head,
            );
            let key = |j: usize| match j < length {
                true => &k0[j * head..(j + 1) * head],
                false => heads.row(first + j - length, 1, h),
            };
            let value = |j: usize| match j < length {
                true => &v0[j * head..(j + 1) * head],
                false => heads.row(first + j - length, 2, h),
            };
            let kt = space.keys.get::<Tile>(tiles_of(keys, head));
            transposed(keys, head, key, kt);
            let v = space.values.get::<Tile>(tiles_of(keys, head));
            straight(keys, head, value, v);
            let scores = space.scores.get::<f32>(STRIP * wide);
            let weights = space.weights.get::<u16>(STRIP * wide);
            for row in queries.clone().step_by(STRIP) {
                let n = (queries.end - row).min(STRIP);
                strip(
                    unit,
                    heads.from(row, 0, h),
                    heads.stride,
                    n,
                    kt,
                    scores,
                    wide,
                );
                let mut scale = [0f32; STRIP];
                for (r, scale) in scale[..n].iter_mut().enumerate() {
                    let (s, p) = (
                        &mut scores[r * wide..][..wide],
                        &mut weights[r * wide..][..wide],
                    );
                    *scale = softmax(s, keys, factor, p);
                }
                for (panel, v) in v.chunks_exact(wide / 32 * 2).take(tall / 32).enumerate() {
                    unit.multiply(n, weights, wide, v, &mut c.0, 32, &Soon::NOTHING, |_| ());
                    let from = panel * 32;
                    let valid = (head - from).min(32);
                    for (r, scale) in scale[..n].iter().enumerate() {
                        let to = &mut out
                            [(row - queries.start + to_row + r) * width + h * head + from..]
                            [..valid];
                        let scale = lanes::all(*scale);
                        for (half, to) in to.chunks_mut(LANES).enumerate() {
                            lanes::store_bf16(
                                to,
                                lanes::mul(lanes::load16(c.half(r, half)), scale),
                            );
                        }
                    }
                }
            }
        }
    }
}

/// Rows times all panels of `b`, side by side in `out`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn strip(
    unit: &Unit,
    a: &[u16],
    stride: usize,
    rows: usize,
    b: &[Tile],
    out: &mut [f32],
    wide: usize,
) {
    let panels = wide / 32;
    let tiles = b.len() / panels;
    for (panel, b) in b.chunks_exact(tiles).enumerate() {
        unit.multiply(
            rows,
            a,
            stride,
            b,
            &mut out[panel * 32..],
            wide,
            &Soon::NOTHING,
            |_| (),
        );
    }
}

/// `2^{f (s − max s)}` of the first `n` scores to `p`, zeros behind; gives one over their sum.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn softmax(s: &mut [f32], n: usize, factor: f32, p: &mut [u16]) -> f32 {
    // Padding must not win the maximum, and weighs nothing.
    s[n..].fill(f32::NEG_INFINITY);
    let (chunks, _) = s.as_chunks::<32>();
    let mut most = [lanes::load16(&[f32::NEG_INFINITY; 16]); 2];
    for chunk in chunks {
        let (halves, _) = chunk.as_chunks::<16>();
        most[0] = lanes::max(most[0], lanes::load16(&halves[0]));
        most[1] = lanes::max(most[1], lanes::load16(&halves[1]));
    }
    let most = lanes::largest(lanes::max(most[0], most[1]));
    let (factor, offset) = (lanes::all(factor), lanes::all(-most * factor));
    let mut sum = [lanes::all(0.0); 2];
    let (to, _) = p.as_chunks_mut::<32>();
    for (chunk, to) in chunks.iter().zip(to) {
        let (halves, _) = chunk.as_chunks::<16>();
        let low = lanes::exp2(lanes::fma(lanes::load16(&halves[0]), factor, offset));
        let high = lanes::exp2(lanes::fma(lanes::load16(&halves[1]), factor, offset));
        sum = [lanes::add(sum[0], low), lanes::add(sum[1], high)];
        lanes::store_pair(to, low, high);
    }
    1.0 / lanes::sum(lanes::add(sum[0], sum[1]))
}

/// Where the gradients of a prefix go, `(H, P, d)` for each image.
pub type PrefixGrad<'a> = (&'a mut [f32], &'a mut [f32]);

/// Gradient of `[q; k; v]` to `grad`, given that of what [`forward`] gave, `out`. `tokens`: whether that of the tokens' own
/// is wanted.
#[allow(clippy::too_many_arguments)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub fn backward(
    unit: &Unit,
    heads: &Heads<'_>,
    group: &Group<'_>,
    space: &mut Space,
    (out, width): (&[u16], usize),
    grad: &mut [u16],
    tokens: bool,
    mut prefix: Option<PrefixGrad<'_>>,
) {
    let head = heads.head();
    let length = group.prefix.map_or(0, |p| p.length);
    let (n, keys) = (group.read, length + group.tokens);
    let (wide, tall) = (keys.next_multiple_of(32), n.next_multiple_of(32));
    // Every key that needs a gradient is below this.
    let count = if tokens { keys } else { length };
    let scale = 1.0 / (head as f32).sqrt();
    let mut c = Scratch::new();
    for image in 0..group.images {
        let first = image * group.tokens;
        if tokens && n < group.tokens {
            // Queries that nobody read have no gradient.
            for row in first + n..first + group.tokens {
                grad[row * heads.stride..][..heads.dim].fill(0);
            }
        }
        for h in 0..heads.heads {
            let at = image * heads.heads + h;
            let k0 = prefix_rows(
                &mut space.prefix_keys,
                group.prefix.map(|p| p.keys),
                length,
                at,
                head,
            );
            let v0 = prefix_rows(
                &mut space.prefix_values,
                group.prefix.map(|p| p.values),
                length,
                at,
                head,
            );
            let key = |j: usize| match j < length {
                true => &k0[j * head..(j + 1) * head],
                false => heads.row(first + j - length, 1, h),
            };
            let value = |j: usize| match j < length {
                true => &v0[j * head..(j + 1) * head],
                false => heads.row(first + j - length, 2, h),
            };
            let out_row = |i: usize| &out[(image * n + i) * width + h * head..][..head];
            let kt = space.keys.get::<Tile>(tiles_of(keys, head));
            transposed(keys, head, key, kt);
            let vt = space.value_columns.get::<Tile>(tiles_of(keys, head));
            transposed(keys, head, value, vt);
            let k = space.key_rows.get::<Tile>(tiles_of(keys, head));
            if tokens {
                straight(keys, head, key, k);
            }
            let q = space.query_rows.get::<Tile>(tiles_of(n, head));
            straight(n, head, |i| heads.row(first + i, 0, h), q);
            let o = space.out_rows.get::<Tile>(tiles_of(n, head));
            straight(n, head, out_row, o);
            let weights_t = space.weights_t.get::<u16>(wide * tall);
            let slopes_t = space.slopes_t.get::<u16>(wide * tall);
            let scores = space.scores.get::<f32>(STRIP * wide);
            let slopes = space.slopes.get::<f32>(STRIP * wide);
            let strip_grad = space.weights.get::<u16>(STRIP * wide);
            for row in (0..n).step_by(STRIP) {
                let rows = (n - row).min(STRIP);
                strip(
                    unit,
                    heads.from(first + row, 0, h),
                    heads.stride,
                    rows,
                    kt,
                    scores,
                    wide,
                );
                let from = &out[(image * n + row) * width + h * head..];
                strip(unit, from, width, rows, vt, slopes, wide);
                for r in 0..STRIP {
                    let s = &mut scores[r * wide..][..wide];
                    let d = &mut slopes[r * wide..][..wide];
                    if r >= rows {
                        s.fill(0.0);
                        d.fill(0.0);
                        continue;
                    }
                    let to = &mut strip_grad[r * wide..][..wide];
                    softmax_backward(s, d, keys, heads.factor(), scale, to);
                }
                if tokens {
                    for (panel, k) in k.chunks_exact(wide / 32 * 2).enumerate() {
                        unit.multiply(
                            rows,
                            strip_grad,
                            wide,
                            k,
                            &mut c.0,
                            32,
                            &Soon::NOTHING,
                            |_| (),
                        );
                        let at = heads_at(heads, 0, h) + panel * 32;
                        let valid = (head - panel * 32).min(32);
                        for r in 0..rows {
                            let to = &mut grad[(first + row + r) * heads.stride + at..][..valid];
                            for (half, to) in to.chunks_mut(LANES).enumerate() {
                                lanes::store_bf16(to, lanes::load16(c.half(r, half)));
                            }
                        }
                    }
                }
                turn(scores, wide, weights_t, tall, row, count);
                turn(slopes, wide, slopes_t, tall, row, count);
            }
            for (part, turned, b) in [(1, &*slopes_t, &*q), (2, &*weights_t, &*o)] {
                for row in (0..count).step_by(STRIP) {
                    let rows = (count - row).min(STRIP);
                    for (panel, b) in b.chunks_exact(tall / 32 * 2).enumerate() {
                        unit.multiply(
                            rows,
                            &turned[row * tall..],
                            tall,
                            b,
                            &mut c.0,
                            32,
                            &Soon::NOTHING,
                            |_| (),
                        );
                        let valid = (head - panel * 32).min(32);
                        for r in 0..rows {
                            let j = row + r;
                            if let Some(j) = j.checked_sub(length) {
                                let at = heads_at(heads, part, h) + panel * 32;
                                let to = &mut grad[(first + j) * heads.stride + at..][..valid];
                                for (half, to) in to.chunks_mut(LANES).enumerate() {
                                    lanes::store_bf16(to, lanes::load16(c.half(r, half)));
                                }
                            } else if let Some((keys, values)) = &mut prefix {
                                let to = if part == 1 { keys } else { values };
                                let at = (at * length + j) * head + panel * 32;
                                for (half, to) in to[at..at + valid].chunks_mut(LANES).enumerate() {
                                    lanes::store(to, lanes::load16(c.half(r, half)));
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Column of a part of a head in a row of `[q; k; v]`.
fn heads_at(heads: &Heads<'_>, part: usize, head: usize) -> usize {
    part * heads.dim + head * heads.head()
}

/// From scores and the gradient of their softmax: `P` in place of the scores, and `∂S = P (∂P − Σ P ∂P) / √d` in place of the
/// gradient and, in bf16, in `out`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn softmax_backward(
    s: &mut [f32],
    d: &mut [f32],
    n: usize,
    factor: f32,
    scale: f32,
    out: &mut [u16],
) {
    s[n..].fill(f32::NEG_INFINITY);
    d[n..].fill(0.0);
    let (s, _) = s.as_chunks_mut::<16>();
    let (d, _) = d.as_chunks_mut::<16>();
    let mut most = lanes::load16(&[f32::NEG_INFINITY; 16]);
    for s in s.iter() {
        most = lanes::max(most, lanes::load16(s));
    }
    let (factor, offset) = (
        lanes::all(factor),
        lanes::all(-lanes::largest(most) * factor),
    );
    let (mut sum, mut dot) = (lanes::all(0.0), lanes::all(0.0));
    for (s, d) in s.iter_mut().zip(d.iter()) {
        let p = lanes::exp2(lanes::fma(lanes::load16(s), factor, offset));
        sum = lanes::add(sum, p);
        dot = lanes::fma(p, lanes::load16(d), dot);
        lanes::store(s, p);
    }
    let one_over = 1.0 / lanes::sum(sum);
    let (norm, dot) = (lanes::all(one_over), lanes::all(lanes::sum(dot) * one_over));
    let scale = lanes::all(scale);
    let (out, _) = out.as_chunks_mut::<16>();
    for ((s, d), out) in s.iter_mut().zip(d).zip(out) {
        let p = lanes::mul(lanes::load16(s), norm);
        lanes::store(s, p);
        let grad = lanes::mul(lanes::mul(p, lanes::sub(lanes::load16(d), dot)), scale);
        lanes::store(d, grad);
        lanes::store_bf16(out, grad);
    }
}

/// Writes 32 rows of `from`, `wide` values each, as 32 columns of `to`, whose rows are `tall` values, in bf16, from column
/// `column` on; as many rows of `to` as hold `count`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn turn(from: &[f32], wide: usize, to: &mut [u16], tall: usize, column: usize, count: usize) {
    for first in (0..count).step_by(LANES) {
        let mut rows: [Pairs; LANES] = [lanes::no_pairs(); LANES];
        for (i, row) in rows.iter_mut().enumerate() {
            let even = lanes::load(&from[2 * i * wide + first..][..LANES]);
            let odd = lanes::load(&from[(2 * i + 1) * wide + first..][..LANES]);
            *row = lanes::interleave(even, odd);
        }
        for (i, pairs) in lanes::transpose(rows).into_iter().enumerate() {
            let (line, _) = to[(first + i) * tall + column..][..32].as_chunks_mut::<32>();
            lanes::store_pairs(&mut line[0], pairs);
        }
    }
}
