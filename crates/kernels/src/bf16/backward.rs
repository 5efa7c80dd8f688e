//! A block's backward over one group of images.

use super::forward::{add_to, four, moments, to_bf16};
use super::lanes::{self, LANES};
use super::pack::Packed;
use super::product::{SLACK, product};
use super::soon::Place;
use super::unit::Unit;
use crate::block::{Activation, rows_first};

use super::{CHUNK, Group, Kept, OwnNorm, PackedBlock, Workspace, apart, attention};

/// The transposed weights.
pub struct Turned<'a> {
    pub block: &'a PackedBlock,
    qkv: &'a Packed,
    proj: &'a Packed,
    fc1: &'a Packed,
    fc2: &'a Packed,
}

impl<'a> Turned<'a> {
    /// Packs them where this is the first backward.
    pub fn new(block: &'a PackedBlock) -> std::io::Result<Self> {
        Ok(Self {
            block,
            qkv: block.qkv.turned()?,
            proj: block.proj.turned()?,
            fc1: block.fc1.turned()?,
            fc2: block.fc2.turned()?,
        })
    }

    /// `grad` is changed from the gradient of the output to that of the input `x`, if `tokens`. Where not all tokens were read, that
    /// of the input goes to `out`.
    #[allow(clippy::too_many_arguments)]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub fn group(
        &self,
        unit: &Unit,
        x: &[f32],
        grad: &mut [f32],
        out: Option<&mut [f32]>,
        group: &Group<'_>,
        kept: &Kept,
        space: &mut Workspace,
        tokens: bool,
        prefix: Option<attention::PrefixGrad<'_>>,
    ) {
        let block = self.block;
        let (dim, width) = (block.dim, apart(block.dim));
        let (all_rows, rows) = (group.rows(), group.images * group.read);
        let full = apart(block.mlp);
        let none: [f32; 0] = [];
        let input = space.input.get::<u16>((rows + SLACK) * width);
        let sum = space.grad.get::<f32>(all_rows * dim);

        // The MLP.
        scaled_rows(grad, &block.scale2, input, width);
        sum[..rows * dim].fill(0.0);
        let before = kept.hidden.read::<u16>((rows + SLACK) * full);
        let panels = self.fc2.panels();
        for first in (0..panels).step_by(CHUNK) {
            let chunk = first..(first + CHUNK).min(panels);
            let wide = apart(chunk.len() * 32);
            let hidden = space.hidden.get::<u16>((rows + SLACK) * wide);
            let a = (&*input, width, rows);
            let steps = 0..self.fc2.steps;
            let places = [
                Place::new(before, full, 0),
                Place::new(hidden, wide, first * 32),
            ];
            product(
                unit,
                a,
                self.fc2,
                chunk.clone(),
                steps,
                &places,
                |piece, c| {
                    for row in 0..piece.rows {
                        let at = (piece.row + row) * full + piece.column;
                        let (x, _) = before[at..at + 32].as_chunks::<16>();
                        let slope = |half: usize| {
                            let x = lanes::load_bf16(&x[half]);
                            let slope = match block.activation {
                                Activation::Gelu => lanes::gelu_grad(x),
                                Activation::QuickGelu => lanes::quick_gelu_grad(x),
                            };
                            lanes::mul(lanes::load16(c.half(row, half)), slope)
                        };
                        let at = (piece.row + row) * wide + piece.column - first * 32;
                        let (to, _) = hidden[at..at + 32].as_chunks_mut::<32>();
                        lanes::store_pair(&mut to[0], slope(0), slope(1));
                    }
                },
            );
            let outputs = 0..self.fc1.panels();
            product(
                unit,
                (hidden, wide, rows),
                self.fc1,
                outputs,
                chunk,
                &[Place::new(sum, dim, 0)],
                |piece, c| {
                    add_to(piece, c, None, None, sum, dim);
                },
            );
        }
        let normed = kept.normed.read::<u16>((rows + SLACK) * width);
        let scales = kept.scale.read::<f32>(rows);
        for row in 0..rows {
            let range = row * dim..(row + 1) * dim;
            let hat =
                |at: usize| lanes::load_bf16(&normed[row * width + at..][..LANES.min(dim - at)]);
            norm_row(
                &block.norm2,
                &sum[range.clone()],
                hat,
                scales[row],
                &mut grad[range],
            );
        }

        // Attention.
        scaled_rows(grad, &block.scale1, input, width);
        let mixed = space.hidden.get::<u16>((rows + SLACK) * width);
        let all = (0..self.proj.panels(), 0..self.proj.steps);
        product(
            unit,
            (input, width, rows),
            self.proj,
            all.0,
            all.1,
            &[Place::new(mixed, width, 0)],
            |piece, c| {
                to_bf16(piece, c, &none, mixed, width, 0, |v| v);
            },
        );
        let stride = apart(3 * dim);
        let heads = attention::Heads {
            heads: block.heads,
            dim,
            qkv: kept.qkv.read::<u16>((all_rows + SLACK) * stride),
            stride,
        };
        let qkv = space.qkv_grad.get::<u16>((all_rows + SLACK) * stride);
        if stride > 3 * dim {
            for row in qkv.chunks_exact_mut(stride) {
                row[3 * dim..].fill(0);
            }
        }
        let space = &mut space.attention;
        attention::backward(
            unit,
            &heads,
            group,
            space,
            (mixed, width),
            qkv,
            tokens,
            prefix,
        );
        if !tokens {
            return;
        }
        let grad = match out {
            Some(out) => {
                rows_first(grad, group.tokens, group.read, dim, out);
                out
            }
            None => grad,
        };
        sum.fill(0.0);
        let all = (0..self.qkv.panels(), 0..self.qkv.steps);
        product(
            unit,
            (qkv, stride, all_rows),
            self.qkv,
            all.0,
            all.1,
            &[Place::new(sum, dim, 0)],
            |piece, c| {
                add_to(piece, c, None, None, sum, dim);
            },
        );
        for row in 0..all_rows {
            let range = row * dim..(row + 1) * dim;
            let x = &x[range.clone()];
            let (mean, scale) = moments(x, block.norm1.eps);
            let (mean, factor) = (lanes::all(mean), lanes::all(scale));
            let hat = |at: usize| {
                let x = lanes::load(&x[at..(at + LANES).min(dim)]);
                lanes::mul(lanes::sub(x, mean), factor)
            };
            norm_row(
                &block.norm1,
                &sum[range.clone()],
                hat,
                scale,
                &mut grad[range],
            );
        }
    }
}

/// Rows of f32 to padded rows of bf16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub fn to_rows(from: &[f32], dim: usize, to: &mut [u16], width: usize) {
    for (from, to) in from.chunks_exact(dim).zip(to.chunks_exact_mut(width)) {
        for (i, to) in to.chunks_mut(LANES).enumerate() {
            let at = (i * LANES).min(dim);
            lanes::store_bf16(to, lanes::load(&from[at..(at + LANES).min(dim)]));
        }
    }
}

/// The same, times a factor for each column.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn scaled_rows(from: &[f32], scale: &[f32], to: &mut [u16], width: usize) {
    let dim = scale.len();
    for (from, to) in from.chunks_exact(dim).zip(to.chunks_exact_mut(width)) {
        for (i, to) in to.chunks_mut(LANES).enumerate() {
            let at = (i * LANES).min(dim);
            let end = (at + LANES).min(dim);
            let scale = lanes::load(&scale[at..end]);
            lanes::store_bf16(to, lanes::mul(lanes::load(&from[at..end]), scale));
        }
    }
}

/// Adds the gradient of a layer norm's input: with `h = g·w`, `s · (h − mean h − x̂ · mean(h x̂))`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn norm_row(
    norm: &OwnNorm,
    grad: &[f32],
    hat: impl Fn(usize) -> lanes::Lanes,
    scale: f32,
    out: &mut [f32],
) {
    let dim = grad.len();
    let h = |at: usize| {
        let end = (at + LANES).min(dim);
        lanes::mul(
            lanes::load(&grad[at..end]),
            lanes::load(&norm.weight[at..end]),
        )
    };
    let (mut sum, mut dot) = ([lanes::all(0.0); 4], [lanes::all(0.0); 4]);
    for (i, at) in (0..dim).step_by(LANES).enumerate() {
        sum[i % 4] = lanes::add(sum[i % 4], h(at));
        // `h` is zero behind the row's end.
        dot[i % 4] = lanes::fma(h(at), hat(at), dot[i % 4]);
    }
    let n = dim as f32;
    let mean = lanes::all(lanes::sum(four(sum)) / n);
    let dot = lanes::all(lanes::sum(four(dot)) / n);
    let scale = lanes::all(scale);
    for at in (0..dim).step_by(LANES) {
        let to = &mut out[at..(at + LANES).min(dim)];
        let slope = lanes::fnma(hat(at), dot, lanes::sub(h(at), mean));
        lanes::store(to, lanes::fma(slope, scale, lanes::load(to)));
    }
}
