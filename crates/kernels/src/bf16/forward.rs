//! A block's forward over one group of images.

use std::ops::Range;

use super::lanes::{self, LANES, Lanes};
use super::product::{Piece, SLACK, product};
use super::soon::Place;
use super::tile::Rows;
use super::unit::Unit;
use crate::block::{Activation, first_rows};

use super::{CHUNK, Group, Kept, OwnNorm, PackedBlock, Workspace, apart, attention, enter};

/// All of a group; `x` is changed from the block's input to its output. Where not all tokens are read, the input is `whole` and `x` only
/// receives the output.
pub fn group(
    block: &PackedBlock,
    whole: Option<&[f32]>,
    x: &mut [f32],
    group: &Group<'_>,
    space: &mut Workspace,
    mut kept: Option<&mut Kept>,
) {
    let rows = group.rows();
    let size = (rows + SLACK) * apart(3 * block.dim);
    let mut own = std::mem::take(&mut space.qkv);
    let buffer = match kept.as_deref_mut() {
        Some(kept) => &mut kept.qkv,
        None => &mut own,
    };
    match whole {
        Some(whole) => {
            enter::queries(block, whole, space, buffer.get(size));
            first_rows(whole, group.tokens, group.read, block.dim, x);
        }
        None => enter::queries(block, x, space, buffer.get(size)),
    }
    let read = 0..x.len() / block.dim;
    let mut qkv = std::mem::take(buffer);
    enter::rest(
        block,
        x,
        qkv.get(size),
        group,
        read,
        space,
        kept.as_deref_mut(),
    );
    match kept {
        Some(kept) => kept.qkv = qkv,
        None => own = qkv,
    }
    space.qkv = own;
}

/// `W_qkv LN₁ x` of some rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub fn queries(
    unit: &Unit,
    block: &PackedBlock,
    x: &[f32],
    space: &mut Workspace,
    qkv: &mut [u16],
) {
    let (dim, width) = (block.dim, apart(block.dim));
    let rows = x.len() / dim;
    let input = space.input.get::<u16>((rows + SLACK) * width);
    norm(&block.norm1, x, input, width, None);
    let layer = &block.qkv;
    let stride = apart(3 * dim);
    let panels = 0..layer.forward.panels();
    let steps = 0..layer.forward.steps;
    product(
        unit,
        (input, width, rows),
        &layer.forward,
        panels,
        steps,
        &[Place::new(qkv, stride, 0)],
        |piece, c| {
            to_bf16(piece, c, &layer.bias, qkv, stride, 0, |v| v);
        },
    );
}

/// Attention, projection and MLP of the rows `rows` of a group, whose keys and values are all there. `x` holds these rows.
#[allow(clippy::too_many_arguments)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub fn rest(
    unit: &Unit,
    block: &PackedBlock,
    x: &mut [f32],
    qkv: &[u16],
    group: &Group<'_>,
    range: Range<usize>,
    space: &mut Workspace,
    mut kept: Option<&mut Kept>,
) {
    let (dim, width) = (block.dim, apart(block.dim));
    let rows = range.len();
    let input = space.input.get::<u16>((rows + SLACK) * width);
    let heads = attention::Heads {
        heads: block.heads,
        dim,
        qkv,
        stride: apart(3 * dim),
    };
    attention::forward(
        unit,
        &heads,
        group,
        range,
        &mut space.attention,
        input,
        width,
    );
    let layer = &block.proj;
    let all = (0..layer.forward.panels(), 0..layer.forward.steps);
    product(
        unit,
        (input, width, rows),
        &layer.forward,
        all.0,
        all.1,
        &[Place::new(x, dim, 0)],
        |piece, c| {
            add_to(piece, c, Some(&layer.bias), Some(&block.scale1), x, dim);
        },
    );

    let stats = kept.as_deref_mut().map(|kept| {
        (
            kept.normed.get::<u16>((rows + SLACK) * width),
            kept.scale.get::<f32>(rows),
        )
    });
    norm(&block.norm2, x, input, width, stats);
    let (fc1, fc2) = (&block.fc1, &block.fc2);
    let full = apart(block.mlp);
    let mut before = kept.map(|kept| kept.hidden.get::<u16>((rows + SLACK) * full));
    let panels = fc1.forward.panels();
    for first in (0..panels).step_by(CHUNK) {
        let chunk = first..(first + CHUNK).min(panels);
        let wide = apart(chunk.len() * 32);
        let hidden = space.hidden.get::<u16>((rows + SLACK) * wide);
        let a = (&*input, width, rows);
        let steps = 0..fc1.forward.steps;
        let own = Place::new(hidden, wide, first * 32);
        let other = before.as_deref().map(|before| Place::new(before, full, 0));
        let places = &[own, other.unwrap_or(own)][..1 + usize::from(other.is_some())];
        product(
            unit,
            a,
            &fc1.forward,
            chunk.clone(),
            steps,
            places,
            |piece, c| {
                if let Some(before) = &mut before {
                    to_bf16(piece, c, &fc1.bias, before, full, 0, |v| v);
                }
                to_bf16(
                    piece,
                    c,
                    &fc1.bias,
                    hidden,
                    wide,
                    first * 32,
                    |v| match block.activation {
                        Activation::Gelu => lanes::gelu(v),
                        Activation::QuickGelu => lanes::quick_gelu(v),
                    },
                );
            },
        );
        let bias = (first == 0).then_some(&fc2.bias[..]);
        let outputs = 0..fc2.forward.panels();
        product(
            unit,
            (hidden, wide, rows),
            &fc2.forward,
            outputs,
            chunk,
            &[Place::new(x, dim, 0)],
            |piece, c| {
                add_to(piece, c, bias, Some(&block.scale2), x, dim);
            },
        );
    }
}

/// `f(c + bias)` in bf16; column `from` of the product is column 0 of `out`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub fn to_bf16(
    piece: Piece,
    c: Rows<'_>,
    bias: &[f32],
    out: &mut [u16],
    stride: usize,
    from: usize,
    f: impl Fn(Lanes) -> Lanes,
) {
    let at = |half: usize| &bias[(piece.column + half * LANES).min(bias.len())..];
    let (low, high) = (lanes::load(at(0)), lanes::load(at(1)));
    let start = piece.row * stride + piece.column - from;
    for row in 0..piece.rows {
        let to = &mut out[start + row * stride..][..2 * LANES];
        let (to, _) = to.as_chunks_mut::<32>();
        let low = f(lanes::add(lanes::load16(c.half(row, 0)), low));
        let high = f(lanes::add(lanes::load16(c.half(row, 1)), high));
        lanes::store_pair(&mut to[0], low, high);
    }
}

/// `out + γ (c + bias)`, in f32; rows of `out` are `width` values and no more.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub fn add_to(
    piece: Piece,
    c: Rows<'_>,
    bias: Option<&[f32]>,
    scale: Option<&[f32]>,
    out: &mut [f32],
    width: usize,
) {
    let columns = piece.column..(piece.column + 2 * LANES).min(width);
    let halves = |v: &[f32]| {
        let (low, high) = v.split_at(v.len().min(LANES));
        (lanes::load(low), lanes::load(high))
    };
    let part = |v: Option<&[f32]>, other: f32| match v {
        Some(v) => halves(&v[columns.clone()]),
        None => (lanes::all(other), lanes::all(other)),
    };
    let (bias, scale) = (part(bias, 0.0), part(scale, 1.0));
    for row in 0..piece.rows {
        let to = &mut out[(piece.row + row) * width..][columns.clone()];
        let (low, high) = to.split_at_mut(to.len().min(LANES));
        let branch = lanes::add(lanes::load16(c.half(row, 0)), bias.0);
        lanes::store(low, lanes::fma(branch, scale.0, lanes::load(low)));
        let branch = lanes::add(lanes::load16(c.half(row, 1)), bias.1);
        lanes::store(high, lanes::fma(branch, scale.1, lanes::load(high)));
    }
}

/// Layer norm of rows to bf16, padded with zeros. `stats` receives `x̂` and `1 / sqrt(var + eps)`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn norm(
    norm: &OwnNorm,
    x: &[f32],
    out: &mut [u16],
    width: usize,
    mut stats: Option<(&mut [u16], &mut [f32])>,
) {
    let dim = norm.weight.len();
    for (row, (x, out)) in x
        .chunks_exact(dim)
        .zip(out.chunks_exact_mut(width))
        .enumerate()
    {
        let (mean, scale) = moments(x, norm.eps);
        let (mean, factor) = (lanes::all(mean), lanes::all(scale));
        if let Some((_, scales)) = &mut stats {
            scales[row] = scale;
        }
        for at in (0..width).step_by(2 * LANES) {
            let mut normed = [lanes::all(0.0); 2];
            let mut values = normed;
            for half in 0..2 {
                let at = (at + half * LANES).min(dim);
                let end = (at + LANES).min(dim);
                let hat = lanes::mul(lanes::sub(lanes::load(&x[at..end]), mean), factor);
                let (w, b) = (&norm.weight[at..end], &norm.bias[at..end]);
                values[half] = lanes::fma(hat, lanes::load(w), lanes::load(b));
                normed[half] = lanes::first(end - at, hat, 0.0);
            }
            let (to, _) = out[at..at + 2 * LANES].as_chunks_mut::<32>();
            lanes::store_pair(&mut to[0], values[0], values[1]);
            if let Some((hats, _)) = &mut stats {
                let (to, _) = hats[row * width + at..][..2 * LANES].as_chunks_mut::<32>();
                lanes::store_pair(&mut to[0], normed[0], normed[1]);
            }
        }
    }
}

/// Mean and `1 / sqrt(var + eps)` of a row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub fn moments(x: &[f32], eps: f32) -> (f32, f32) {
    let n = x.len() as f32;
    let mut total = [lanes::all(0.0); 4];
    for (i, x) in x.chunks(LANES).enumerate() {
        total[i % 4] = lanes::add(total[i % 4], lanes::load(x));
    }
    let mean = lanes::sum(four(total)) / n;
    let mut total = [lanes::all(0.0); 4];
    for (i, x) in x.chunks(LANES).enumerate() {
        let d = lanes::sub(lanes::load(x), lanes::all(mean));
        let d = lanes::first(x.len(), d, 0.0);
        total[i % 4] = lanes::fma(d, d, total[i % 4]);
    }
    let var = lanes::sum(four(total)) / n;
    (mean, 1.0 / (var + eps).sqrt())
}

/// The sum of four vectors.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub fn four(v: [Lanes; 4]) -> Lanes {
    lanes::add(lanes::add(v[0], v[1]), lanes::add(v[2], v[3]))
}
