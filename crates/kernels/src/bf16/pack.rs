//! Second operands of products, laid out as the tile unit reads them.

use memmap2::{Advice, MmapMut};
use rayon::prelude::*;

use super::tile::{COLS, ROWS, Tile};
use super::{WORKSPACE, enter, lanes, padded};

/// Rows that a thread rounds at a time.
const PIECE: usize = 64;

/// Memory from the system, a whole number of tiles.
#[derive(Debug)]
pub struct Pages(MmapMut);

impl Pages {
    /// `bytes` zeros.
    fn new(bytes: usize) -> std::io::Result<Self> {
        let pages = MmapMut::map_anon(bytes.max(size_of::<Tile>()))?;
        // Huge pages spare the processor's address cache; without them all works the same.
        let _ = pages.advise(Advice::HugePage);
        Ok(Self(pages))
    }
}

/// A frozen matrix `W: (out, in)` for `x Wᵀ`: for each 32 outputs a panel of `2·steps` tiles. Sizes are padded with zeros.
#[derive(Debug)]
pub struct Packed {
    pages: Pages,
    /// Columns of the product.
    pub outputs: usize,
    /// Tiles of 32 inputs.
    pub steps: usize,
}

impl Packed {
    /// `weight(out, in)`.
    pub fn new(
        outputs: usize,
        inputs: usize,
        weight: impl Fn(usize, usize) -> f32 + Sync,
    ) -> std::io::Result<Self> {
        Self::filled(outputs, inputs, None, |panel, tiles| {
            for (i, tile) in tiles.iter_mut().enumerate() {
                let (step, half) = (i / 2, i % 2);
                for (at, value) in tile.0.iter_mut().enumerate() {
                    let row = panel * 2 * ROWS + half * ROWS + at % COLS / 2;
                    let column = step * COLS + at / COLS * 2 + at % 2;
                    if row < outputs && column < inputs {
                        *value = lanes::round(weight(row, column));
                    }
                }
            }
        })
    }

    /// `W` with rows of `inputs` values, of which `x Wᵀ` is to be made. Quicker than [`new`](Self::new), and in the memory of `spare` where
    /// that is enough.
    pub fn of_rows(weight: &[f32], inputs: usize, spare: Option<Pages>) -> std::io::Result<Self> {
        let (outputs, width) = (weight.len() / inputs, padded(inputs));
        Self::filled(outputs, inputs, spare, |panel, tiles| {
            let first = panel * 2 * ROWS;
            let n = (outputs - first).min(2 * ROWS);
            WORKSPACE.with_borrow_mut(|space| {
                let rows = space.input.get::<u16>(n * width);
                enter::to_rows(&weight[first * inputs..][..n * inputs], inputs, rows, width);
                enter::transposed(rows, width, tiles);
            });
        })
    }

    /// `R` with rows of `width` values, of which `x R` is to be made: what is an input of [`new`](Self::new) is a row here.
    pub fn of_columns(values: &[f32], width: usize, spare: Option<Pages>) -> std::io::Result<Self> {
        let (n, stride) = (values.len() / width, padded(width));
        let mut rows = vec![0u16; n * stride];
        rows.par_chunks_mut(PIECE * stride)
            .zip(values.par_chunks(PIECE * width))
            .for_each(|(to, from)| enter::to_rows(from, width, to, stride));
        Self::filled(width, n, spare, |panel, tiles| {
            enter::straight(&rows, stride, panel * 2 * ROWS, tiles);
        })
    }

    /// Panels filled by `fill(panel, tiles)`, from zeros or, in spare memory, from whatever is there.
    fn filled(
        outputs: usize,
        inputs: usize,
        spare: Option<Pages>,
        fill: impl Fn(usize, &mut [Tile]) + Sync,
    ) -> std::io::Result<Self> {
        let steps = inputs.div_ceil(COLS);
        let panels = outputs.div_ceil(2 * ROWS);
        let bytes = panels * 2 * steps * size_of::<Tile>();
        let mut pages = match spare {
            Some(pages) if pages.0.len() >= bytes => pages,
            _ => Pages::new(bytes)?,
        };
        let tiles: &mut [Tile] = bytemuck::cast_slice_mut(&mut pages.0[..bytes]);
        tiles
            .par_chunks_mut((2 * steps).max(1))
            .enumerate()
            .for_each(|(panel, tiles)| fill(panel, tiles));
        Ok(Self {
            pages,
            outputs,
            steps,
        })
    }

    /// The memory, for another matrix.
    pub fn into_pages(self) -> Pages {
        self.pages
    }

    /// The weight from input `column` to output `row`, as it was rounded.
    pub fn value(&self, row: usize, column: usize) -> f32 {
        let tile = &self.panel(row / 32)[column / COLS * 2 + row % 32 / ROWS];
        let at = column % COLS / 2 * COLS + row % ROWS * 2 + column % 2;
        f32::from_bits(u32::from(tile.0[at]) << 16)
    }

    /// Panels of 32 outputs.
    pub fn panels(&self) -> usize {
        self.outputs.div_ceil(2 * ROWS)
    }

    /// The tiles of one panel.
    #[inline]
    pub fn panel(&self, panel: usize) -> &[Tile] {
        let tiles: &[Tile] = bytemuck::cast_slice(&self.pages.0[..]);
        &tiles[panel * 2 * self.steps..(panel + 1) * 2 * self.steps]
    }
}

/// Packs `Rᵀ` of a matrix with `n` rows of `width` values as a second operand: its columns are the rows of `R`. Panels of 32
/// rows, `ceil(width / 32)` steps each.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub fn transposed<'a>(
    n: usize,
    width: usize,
    row: impl Fn(usize) -> &'a [u16],
    tiles: &mut [Tile],
) {
    let steps = width.div_ceil(COLS);
    for (i, tile) in tiles[..n.div_ceil(2 * ROWS) * 2 * steps]
        .iter_mut()
        .enumerate()
    {
        let (panel, step, half) = (i / (2 * steps), i % (2 * steps) / 2, i % 2);
        let first = panel * 2 * ROWS + half * ROWS;
        let mut rows = [lanes::no_pairs(); 16];
        for (r, pairs) in rows.iter_mut().enumerate() {
            if first + r < n {
                *pairs = lanes::load_pairs(&row(first + r)[step * COLS..width]);
            }
        }
        let columns = lanes::transpose(rows);
        let (lines, _) = tile.0.as_chunks_mut::<32>();
        for (line, pairs) in lines.iter_mut().zip(columns) {
            lanes::store_pairs(line, pairs);
        }
    }
}

/// Packs a matrix `R` with `n` rows of `width` values as a second operand. Panels of 32 columns, `ceil(n / 32)` steps each.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub fn straight<'a>(n: usize, width: usize, row: impl Fn(usize) -> &'a [u16], tiles: &mut [Tile]) {
    let steps = n.div_ceil(COLS);
    for (i, tile) in tiles[..width.div_ceil(2 * ROWS) * 2 * steps]
        .iter_mut()
        .enumerate()
    {
        let (panel, step, half) = (i / (2 * steps), i % (2 * steps) / 2, i % 2);
        let column = (panel * 2 * ROWS + half * ROWS).min(width);
        let at = |r: usize| match r < n {
            true => &row(r)[column..width],
            false => &[],
        };
        let (lines, _) = tile.0.as_chunks_mut::<32>();
        for (r, line) in lines.iter_mut().enumerate() {
            let (even, odd) = (at(step * COLS + 2 * r), at(step * COLS + 2 * r + 1));
            lanes::store_pairs(line, lanes::interleave_bf16(even, odd));
        }
    }
}

/// Columns of the `(m, n)` values in `from`, as many from `first` on as `to` has rows, as rows of bf16 values that are `width` apart and
/// padded with zeros.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub fn turned(from: &[f32], (m, n): (usize, usize), first: usize, to: &mut [u16], width: usize) {
    let columns = to.len() / width;
    let part = |row: usize, column: usize| match row < m {
        true => &from[row * n + first + column..][..(columns - column).min(ROWS)],
        false => &[],
    };
    for row in (0..width).step_by(COLS) {
        for column in (0..columns).step_by(ROWS) {
            let mut rows = [lanes::no_pairs(); ROWS];
            for (i, pairs) in rows.iter_mut().enumerate() {
                let even = lanes::load(part(row + 2 * i, column));
                let odd = lanes::load(part(row + 2 * i + 1, column));
                *pairs = lanes::interleave(even, odd);
            }
            let lines = lanes::transpose(rows).into_iter();
            for (c, pairs) in lines.enumerate().take(columns - column) {
                let (line, _) = to[(column + c) * width + row..].as_chunks_mut::<COLS>();
                lanes::store_pairs(&mut line[0], pairs);
            }
        }
    }
}

/// Tiles that [`transposed`] or [`straight`] fill for `rows` by `width`.
pub fn tiles_of(rows: usize, width: usize) -> usize {
    rows.div_ceil(32) * width.div_ceil(32) * 2
}
