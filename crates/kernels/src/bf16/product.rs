//! `x Wᵀ` with something done to each piece of the result while it is at hand.

use std::ops::Range;

use super::pack::Packed;
use super::soon::{Place, Soon};
use super::tile::{ROWS, Rows, Scratch};
use super::unit::Unit;

/// Rows that must lie behind a first operand's last row: tiles are read whole.
pub const SLACK: usize = 2 * ROWS;

/// A piece of a product: 32 columns of at most 32 rows.
#[derive(Clone, Copy)]
pub struct Piece {
    /// First row.
    pub row: usize,
    /// Rows that exist.
    pub rows: usize,
    /// First column.
    pub column: usize,
}

impl Piece {
    /// Those of its rows, counted from its first, that are in `rows`, if any.
    fn part(self, rows: Range<usize>) -> Option<Self> {
        let rows = rows.start..rows.end.min(self.rows);
        (!rows.is_empty()).then_some(Self {
            row: self.row + rows.start,
            rows: rows.len(),
            column: self.column,
        })
    }
}

/// Multiplies `rows` rows of `a`, `stride` values apart, with the panels `panels` and the steps `steps` of `w`, and calls `done`
/// with every piece, or part of one, which it wants at `places`.
#[allow(clippy::too_many_arguments)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub fn product(
    unit: &Unit,
    (a, stride, rows): (&[u16], usize, usize),
    w: &Packed,
    panels: Range<usize>,
    steps: Range<usize>,
    places: &[Place],
    mut done: impl FnMut(Piece, Rows<'_>),
) {
    // What is done to a piece is done in parts while the next is multiplied.
    let mut results = [const { Scratch::new() }; 2];
    let [mut now, mut before] = results.each_mut();
    let mut last: Option<Piece> = None;
    let part = |panel: usize| &w.panel(panel)[2 * steps.start..2 * steps.end];
    // The weights of a panel are used again and again from the second level cache; bringing the next panel's there, some with
    // every piece, keeps the first piece from waiting for each of its lines.
    let pieces = rows.div_ceil(2 * ROWS).max(1);
    let ahead = (2 * steps.len()).div_ceil(pieces).max(1);
    for panel in panels.clone() {
        let b = part(panel);
        let next = panels.contains(&(panel + 1)).then(|| part(panel + 1));
        let mut next = next.unwrap_or_default().chunks(ahead);
        for row in (0..rows).step_by(2 * ROWS) {
            let piece = Piece {
                row,
                rows: (rows - row).min(2 * ROWS),
                column: panel * 2 * ROWS,
            };
            let soon = Soon::new(next.next().unwrap_or_default(), places, piece);
            let (a, c) = (&a[row * stride..], &mut now.0);
            unit.multiply(piece.rows, a, stride, b, c, 2 * ROWS, &soon, |rows| {
                if let Some(last) = last.and_then(|last| last.part(rows.clone())) {
                    done(last, before.from(rows.start));
                }
            });
            last = Some(piece);
            std::mem::swap(&mut now, &mut before);
        }
    }
    if let Some(last) = last {
        done(last, before.from(0));
    }
}
