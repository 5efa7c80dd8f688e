//! The way from ordinary code into functions that are compiled for AVX-512.
#![allow(unsafe_code)]

use std::ops::Range;

use super::attention::PrefixGrad;
use super::backward::{Turned, to_rows};
use super::forward::{self, add_to};
use super::pack::Packed;
use super::product::product;
use super::tile::Tiles;
use super::{Group, Kept, PackedBlock, Workspace, padded};

// Every block below is safe for one reason: a `Tiles` exists only where `available` found all features that the called
// function is compiled for.

/// `W_qkv LN₁ x` of some rows.
pub fn queries(block: &PackedBlock, x: &[f32], space: &mut Workspace, qkv: &mut [u16]) {
    if let Some(unit) = Tiles::new() {
        // SAFETY: see above.
        unsafe { forward::queries(&unit, block, x, space, qkv) }
    }
}

/// Attention, projection and MLP of the rows `rows` of a group, whose keys and values are all there. `x` holds these rows.
pub fn rest(
    block: &PackedBlock,
    x: &mut [f32],
    qkv: &[u16],
    group: &Group<'_>,
    rows: Range<usize>,
    space: &mut Workspace,
    kept: Option<&mut Kept>,
) {
    if let Some(unit) = Tiles::new() {
        // SAFETY: see above.
        unsafe { forward::rest(&unit, block, x, qkv, group, rows, space, kept) }
    }
}

/// `grad` is changed from the gradient of a group's output to that of its input `x`, if `tokens`; see [`Turned::group`].
#[allow(clippy::too_many_arguments)]
pub fn backward(
    turned: &Turned<'_>,
    x: &[f32],
    grad: &mut [f32],
    out: Option<&mut [f32]>,
    group: &Group<'_>,
    kept: &Kept,
    space: &mut Workspace,
    tokens: bool,
    prefix: Option<PrefixGrad<'_>>,
) {
    if let Some(unit) = Tiles::new() {
        // SAFETY: see above.
        unsafe { turned.group(&unit, x, grad, out, group, kept, space, tokens, prefix) }
    }
}

/// `y + x Wᵀ`; `rows` is memory for `x` in bf16.
pub fn linear(
    w: &Packed,
    x: &[f32],
    inputs: usize,
    rows: &mut [u16],
    y: &mut [f32],
    outputs: usize,
) {
    let width = padded(inputs);
    if let Some(unit) = Tiles::new() {
        // SAFETY: see above.
        unsafe {
            to_rows(x, inputs, rows, width);
            let (panels, steps) = (0..w.panels(), 0..w.steps);
            add_product(
                &unit,
                (rows, width, x.len() / inputs),
                w,
                panels,
                steps,
                y,
                outputs,
            );
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn add_product(
    unit: &Tiles,
    a: (&[u16], usize, usize),
    w: &Packed,
    panels: Range<usize>,
    steps: Range<usize>,
    y: &mut [f32],
    outputs: usize,
) {
    product(unit, a, w, panels, steps, |piece, c| {
        add_to(piece, c, None, None, y, outputs);
    });
}
