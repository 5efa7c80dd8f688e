//! Memory that a product needs soon, asked for while it still multiplies: weights of the next panel, which lie in the third level
//! cache or behind it, and rows of the result, which are too far apart for the processor to foresee. Asked for all at once, they would hold
//! up each other and the product.

use super::lanes;
use super::product::Piece;
use super::tile::{ROWS, Tile};

/// Bytes of a cache line.
const LINE: usize = 64;

/// Rows that are read or written when a piece is done.
#[derive(Clone, Copy)]
pub struct Place {
    /// Of the first row and column.
    start: *const u8,
    /// Bytes from a row to the next.
    stride: usize,
    /// Bytes of a value.
    size: usize,
}

impl Place {
    /// Rows of `stride` values, in which column `from` of the product is column 0.
    pub fn new<T>(values: &[T], stride: usize, from: usize) -> Self {
        let size = size_of::<T>();
        Self {
            start: values.as_ptr().cast::<u8>().wrapping_sub(from * size),
            stride: stride * size,
            size,
        }
    }

    #[inline(always)]
    fn ask(&self, row: usize, column: usize) {
        let start = row * self.stride + column * self.size;
        let start = self.start.wrapping_add(start);
        // Rows need not start on a cache line.
        let before = start.addr() % LINE;
        for at in (0..before + 2 * ROWS * self.size).step_by(LINE) {
            lanes::ask_near(start.wrapping_sub(before).wrapping_add(at));
        }
    }
}

/// What is wanted soon.
pub struct Soon<'a> {
    weights: &'a [Tile],
    places: &'a [Place],
    piece: Piece,
}

impl<'a> Soon<'a> {
    pub const NOTHING: Soon<'static> = Soon {
        weights: &[],
        places: &[],
        piece: Piece {
            row: 0,
            rows: 0,
            column: 0,
        },
    };

    /// Some weights, and the places of a piece.
    pub fn new(weights: &'a [Tile], places: &'a [Place], piece: Piece) -> Self {
        Self {
            weights,
            places,
            piece,
        }
    }

    /// What to ask for in part `i` of `n` parts of so many steps.
    pub fn part(&self, i: usize, n: usize, steps: usize) -> Share<'a> {
        let lines = size_of_val(self.weights) / LINE;
        let (lines, rows) = (
            lines.div_ceil(n * steps),
            self.piece.rows.div_ceil(n * steps),
        );
        let first = i * steps;
        let (row, end) = (self.piece.row, self.piece.row + self.piece.rows);
        Share {
            weights: self
                .weights
                .as_ptr()
                .cast::<u8>()
                .wrapping_add(first * lines * LINE),
            lines,
            places: self.places,
            next: row + first * rows,
            rows,
            end,
            column: self.piece.column,
        }
    }
}

/// A part's share of it.
#[derive(Clone, Copy)]
pub struct Share<'a> {
    weights: *const u8,
    /// Lines of weights in a step.
    lines: usize,
    places: &'a [Place],
    /// The first row, how many in a step, and where they end.
    next: usize,
    rows: usize,
    end: usize,
    column: usize,
}

impl Share<'_> {
    /// Asks for what falls on a step.
    #[inline(always)]
    pub fn ask(&self, step: usize) {
        for line in step * self.lines..(step + 1) * self.lines {
            lanes::ask(self.weights.wrapping_add(line * LINE));
        }
        let first = self.next + step * self.rows;
        for row in first..(first + self.rows).min(self.end) {
            for place in self.places {
                place.ask(row, self.column);
            }
        }
    }
}
