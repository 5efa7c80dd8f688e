//! Lines over an axis, as SVG: once for wide screens and once for narrow ones, of which the style sheet shows one, so that
//! letters are never scaled down with the drawing.

use maud::{Markup, PreEscaped, html};

use crate::number::fixed;

/// One point of a line.
pub struct Point {
    pub x: f64,
    pub y: f64,
    /// What a person is told of it.
    pub said: String,
}

/// One line; points of the same position along several lines belong together.
pub struct Line {
    pub name: String,
    pub points: Vec<Point>,
}

/// A drawing with its axes.
pub struct Chart<'a> {
    /// Unique on the page.
    pub id: &'a str,
    pub title: &'a str,
    pub x_label: &'a str,
    pub y_label: &'a str,
    pub x_end: f64,
    /// Lowest and highest value; both are on the axis.
    pub y: (f64, f64),
    pub lines: Vec<Line>,
    /// Whether points are drawn and can be walked through; a dense line has none.
    pub points: bool,
}

/// Colours that the style sheet has; lines beyond take them again with dashes.
const COLOURS: usize = 8;

/// Of a drawing: its size and the space that labels take.
struct Frame {
    class: &'static str,
    width: f64,
    height: f64,
    ticks: usize,
}

const LEFT: f64 = 44.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 28.0;
const BOTTOM: f64 = 44.0;

const FRAMES: [Frame; 2] = [
    Frame {
        class: "wide",
        width: 944.0,
        height: 380.0,
        ticks: 10,
    },
    Frame {
        class: "narrow",
        width: 343.0,
        height: 270.0,
        ticks: 5,
    },
];

impl Chart<'_> {
    pub fn html(&self) -> Markup {
        html! {
            div class="chart" id=(self.id) {
                @if self.lines.len() > 1 { (self.legend()) }
                @for frame in &FRAMES { (self.draw(frame)) }
                div class="tip" aria-hidden="true" hidden {}
            }
        }
    }

    fn legend(&self) -> Markup {
        html! {
            ul class="legend" {
                @for (n, line) in self.lines.iter().enumerate() {
                    li {
                        svg class=(class_of(n)) viewBox="0 0 28 12" width="28" height="12" aria-hidden="true" {
                            path class="line" d="M1 6H27" {}
                            @if self.points { (mark(n, 14.0, 6.0)) }
                        }
                        (line.name)
                    }
                }
            }
        }
    }

    fn draw(&self, frame: &Frame) -> Markup {
        let (right, bottom) = (frame.width - RIGHT, frame.height - BOTTOM);
        let x = |value: f64| LEFT + (right - LEFT) * value / self.x_end.max(1e-12);
        let (low, high) = self.y;
        let y = |value: f64| bottom - (bottom - TOP) * (value - low) / (high - low).max(1e-12);
        let across = ticks(0.0, self.x_end, frame.ticks);
        let up = ticks(low, high, 6);
        html! {
            svg class=(frame.class) viewBox=(format!("0 0 {} {}", frame.width, frame.height)) role="group"
                aria-label=(self.title) {
                g class="grid" aria-hidden="true" {
                    @for value in &up {
                        path d=(format!("M{LEFT} {:.1}H{right}", y(*value))) {}
                    }
                    path class="axis" d=(format!("M{LEFT} {bottom}H{right}")) {}
                    @for value in &across {
                        path class="axis" d=(format!("M{:.1} {bottom}v5", x(*value))) {}
                    }
                }
                g class="ticks" aria-hidden="true" {
                    @for value in &up {
                        text class="up" x=(LEFT - 8.0) y=(format!("{:.1}", y(*value) + 4.0)) { (tidy(*value, high - low)) }
                    }
                    @for value in &across {
                        text class="across" x=(format!("{:.1}", x(*value))) y=(bottom + 19.0) { (tidy(*value, self.x_end)) }
                    }
                    text class="across" x=(format!("{:.1}", (LEFT + right) / 2.0)) y=(bottom + 38.0) { (self.x_label) }
                    text class="name" x="0" y="12" { (self.y_label) }
                }
                path class="cursor" d=(format!("M0 {TOP}V{bottom}")) aria-hidden="true" {}
                @for (n, line) in self.lines.iter().enumerate() {
                    g class=(class_of(n)) {
                        path class="line" aria-hidden="true" d=(path(line, x, y)) {}
                        @if self.points {
                            @for (i, point) in line.points.iter().enumerate() {
                                (self.point(frame, (n, i), point, (x(point.x), y(point.y))))
                            }
                        }
                    }
                }
            }
        }
    }

    fn point(
        &self,
        frame: &Frame,
        (n, i): (usize, usize),
        point: &Point,
        (x, y): (f64, f64),
    ) -> Markup {
        let line = &self.lines[n];
        let head = format!("{} {}", self.x_label, tidy(point.x, self.x_end));
        html! {
            g class="point" id=(format!("{}-{}-{n}-{i}", self.id, frame.class)) tabindex="0" role="img"
                aria-label=(format!("{}: {}", line.name, point.said)) data-line=(n) data-at=(i) data-x=(format!("{x:.1}"))
                data-y=(format!("{y:.1}")) data-head=(head) data-name=(line.name) data-value=(fixed(point.y, 2)) {
                circle class="halo" cx=(format!("{x:.1}")) cy=(format!("{y:.1}")) r="11" {}
                (mark(n, x, y))
            }
        }
    }
}

fn class_of(line: usize) -> String {
    let dashed = if line >= COLOURS { " dashed" } else { "" };
    format!("series c{}{dashed}", line % COLOURS)
}

fn path(line: &Line, x: impl Fn(f64) -> f64, y: impl Fn(f64) -> f64) -> String {
    let mut path = String::new();
    for (i, point) in line.points.iter().enumerate() {
        let letter = if i == 0 { 'M' } else { 'L' };
        path += &format!("{letter}{:.1} {:.1}", x(point.x), y(point.y));
    }
    path
}

/// A shape for each line, so that colour is not all that tells them apart.
fn mark(line: usize, x: f64, y: f64) -> Markup {
    let shape = match line % 4 {
        0 => format!("M{:.1} {y:.1}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z", x - 4.0),
        1 => format!("M{:.1} {:.1}h7v7h-7z", x - 3.5, y - 3.5),
        2 => format!("M{x:.1} {:.1}l4.6 8h-9.2z", y - 5.0),
        _ => format!("M{x:.1} {:.1}l5 5l-5 5l-5 -5z", y - 5.0),
    };
    html! { path class="mark" d=(PreEscaped(shape)) {} }
}

/// Round numbers from `low` to `high`, at most so many steps of 1, 2 or 5 times a power of ten.
fn ticks(low: f64, high: f64, most: usize) -> Vec<f64> {
    let span = high - low;
    if !(span.is_finite() && span > 0.0) {
        return vec![low];
    }
    let rough = span / most as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|m| m * power)
        .find(|step| *step >= rough * 0.999_999)
        .unwrap_or(10.0 * power);
    let first = (low / step - 1e-9).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    (first..=last).map(|n| n as f64 * step).collect()
}

/// With as many digits as an axis of this span needs.
fn tidy(value: f64, span: f64) -> String {
    let digits = match span {
        s if s >= 5.0 && value.fract() == 0.0 => 0,
        s if s >= 0.5 => 1,
        s => (1.0 - s.max(1e-9).log10()).ceil() as usize,
    };
    fixed(value, digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_stay_inside() {
        assert_eq!(ticks(0.0, 100.0, 6), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(ticks(0.0, 50.0, 5), [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]);
        assert_eq!(ticks(0.0, 3.0, 5), [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(ticks(0.0, 200.0, 5), [0.0, 50.0, 100.0, 150.0, 200.0]);
        assert_eq!(ticks(2.0, 2.0, 5), [2.0]);
    }

    #[test]
    fn a_point_is_where_its_value_is() {
        let point = |x, y| Point {
            x,
            y,
            said: format!("{y} at {x}"),
        };
        let chart = Chart {
            id: "c",
            title: "t",
            x_label: "classes seen",
            y_label: "accuracy, %",
            x_end: 10.0,
            y: (0.0, 100.0),
            lines: vec![Line {
                name: "a<b".into(),
                points: vec![point(0.0, 0.0), point(10.0, 100.0)],
            }],
            points: true,
        };
        let html = chart.html().into_string();
        assert!(html.contains(r#"d="M44.0 336.0L930.0 28.0""#), "{html}");
        assert!(html.contains(r#"aria-label="a&lt;b: 100 at 10""#), "{html}");
        assert_eq!(html.matches(r#"tabindex="0""#).count(), 4);
    }
}
