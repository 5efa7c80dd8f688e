//! What all figures have in common.

use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color as _, IntoFont as _, RGBColor, TextStyle};

/// Of text.
pub const INK: RGBColor = RGBColor(60, 60, 60);
/// Of the lines behind a curve.
pub const GRID: RGBColor = RGBColor(225, 225, 225);
/// Of the frame of a legend.
pub const FRAME: RGBColor = RGBColor(200, 200, 200);

/// Of lines, told apart by those who see few colours too.
pub const LINES: [RGBColor; 8] = [
    RGBColor(31, 119, 180),
    RGBColor(255, 127, 14),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(213, 94, 0),
    RGBColor(148, 103, 189),
    RGBColor(120, 120, 120),
];

/// Text of a size in pixels.
pub fn text(size: i32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&INK)
}

/// The same in another colour, around its middle.
pub fn centred(size: i32, colour: &RGBColor) -> TextStyle<'static> {
    let middle = Pos::new(HPos::Center, VPos::Center);
    ("sans-serif", size).into_font().color(colour).pos(middle)
}

/// A translucent fill.
pub(crate) fn veil(colour: RGBColor) -> plotters::style::ShapeStyle {
    colour.mix(0.15).filled()
}
