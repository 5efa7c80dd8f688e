//! The way from ordinary code into functions that are compiled for AVX-512.
#![allow(unsafe_code)]

use std::ops::Range;

use super::attention::PrefixGrad;
use super::backward::{self, Turned};
use super::forward::{self, add_to};
use super::pack::{self, Packed};
use super::product::product;
use super::soon::Place;
use super::tile::{COLS, Tile};
use super::unit::{Unit, available};
use super::{Group, Kept, PackedBlock, Workspace, apart};

// Every block below is safe for one reason: `available` found all features that the called function is compiled for, and a
// `Unit` exists only then.

/// See [`Unit::busy`].
pub fn busy(rounds: usize) -> Option<u64> {
    let unit = Unit::new()?;
    // SAFETY: see above.
    Some(unsafe { unit.busy(rounds) })
}

/// `W_qkv LN₁ x` of some rows.
pub fn queries(block: &PackedBlock, x: &[f32], space: &mut Workspace, qkv: &mut [u16]) {
    if let Some(unit) = Unit::new() {
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
    if let Some(unit) = Unit::new() {
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
    if let Some(unit) = Unit::new() {
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
    let width = apart(inputs);
    if let Some(unit) = Unit::new() {
        // SAFETY: see above.
        unsafe {
            backward::to_rows(x, inputs, rows, width);
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

/// `y + a B` for `a` in rows of bf16 values that are `width` apart, behind which there are [`SLACK`](super::product::SLACK) more.
pub fn add(w: &Packed, a: &[u16], width: usize, y: &mut [f32], outputs: usize) {
    let rows = y.len() / outputs;
    let (panels, steps) = (0..w.panels(), 0..w.steps);
    if let Some(unit) = Unit::new() {
        // SAFETY: see above.
        unsafe { add_product(&unit, (a, width, rows), w, panels, steps, y, outputs) }
    }
}

/// See [`to_rows`](super::backward::to_rows). Nothing is written where bf16 cannot be.
pub fn to_rows(from: &[f32], dim: usize, to: &mut [u16], width: usize) {
    if available() {
        // SAFETY: see above.
        unsafe { backward::to_rows(from, dim, to, width) }
    }
}

/// See [`pack::transposed`], of all rows.
pub fn transposed(rows: &[u16], width: usize, tiles: &mut [Tile]) {
    if available() {
        let row = |i: usize| &rows[i * width..(i + 1) * width];
        // SAFETY: see above.
        unsafe { pack::transposed(rows.len() / width, width, row, tiles) }
    }
}

/// See [`pack::straight`], of the 32 columns from `first` on.
pub fn straight(rows: &[u16], width: usize, first: usize, tiles: &mut [Tile]) {
    if available() {
        let row = |i: usize| &rows[i * width + first..][..COLS];
        // SAFETY: see above.
        unsafe { pack::straight(rows.len() / width, COLS, row, tiles) }
    }
}

/// See [`pack::turned`].
pub fn turned(from: &[f32], sizes: (usize, usize), first: usize, to: &mut [u16], width: usize) {
    if available() {
        // SAFETY: see above.
        unsafe { pack::turned(from, sizes, first, to, width) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn add_product(
    unit: &Unit,
    a: (&[u16], usize, usize),
    w: &Packed,
    panels: Range<usize>,
    steps: Range<usize>,
    y: &mut [f32],
    outputs: usize,
) {
    let places = [Place::new(y, outputs, 0)];
    product(unit, a, w, panels, steps, &places, |piece, c| {
        add_to(piece, c, None, None, y, outputs);
    });
}
