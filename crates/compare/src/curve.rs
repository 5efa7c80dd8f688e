//! The difference curves: how far each run is above the first one after each task.

use candlewick_core::metrics::{mean, std_dev};
use plotters::prelude::*;

use crate::comparison::Comparison;
use crate::error::{Error, Result};
use crate::significance::pairs;
use crate::style::{FRAME, GRID, LINES, text, veil};

/// Accuracy on all classes seen minus that of another row, in points.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// The row it is of.
    pub row: usize,
    /// After each task: mean over the seeds that both have.
    pub mean: Vec<f64>,
    /// Sample deviation over them; zeros of one seed.
    pub std: Vec<f64>,
    /// Pairs of runs.
    pub seeds: usize,
}

/// Of every run that may be compared with the first one; the index of that one, and the curves. `None` without two such runs.
pub fn curves(comparison: &Comparison) -> Option<(usize, Vec<Curve>)> {
    let entries = &comparison.entries;
    let base = entries.iter().position(|entry| entry.is_run())?;
    let mut curves = Vec::new();
    for (row, entry) in entries.iter().enumerate().skip(base + 1) {
        if !entry.is_run() || !comparison.bars(base, row).is_empty() {
            continue;
        }
        let seeds: Vec<Vec<f64>> = pairs(entry, &entries[base])
            .iter()
            .map(|(a, b)| {
                let curve = |run: &crate::Run| run.report.session_accuracy.micro.clone();
                let (a, b) = (curve(a), curve(b));
                a.iter().zip(&b).map(|(a, b)| a - b).collect()
            })
            .collect();
        let tasks = seeds.iter().map(Vec::len).min().unwrap_or(0);
        if tasks == 0 {
            continue;
        }
        let at = |t: usize| seeds.iter().map(move |curve| curve[t]);
        let std = |t: usize| std_dev(&at(t).collect::<Vec<_>>());
        curves.push(Curve {
            row,
            mean: (0..tasks).map(|t| mean(at(t))).collect(),
            std: (0..tasks).map(std).collect(),
            seeds: seeds.len(),
        });
    }
    (!curves.is_empty()).then_some((base, curves))
}

/// The curves as SVG: a line per run, and a band of one sample deviation over the seeds.
///
/// # Errors
/// [`Error::Make`] where no two runs may be compared.
pub fn svg(comparison: &Comparison) -> Result<String> {
    let make = |problem: String| Error::Make {
        what: "figure",
        problem,
    };
    let Some((base, curves)) = curves(comparison) else {
        let problem =
            "no run may be compared with the first one, so there is no difference to draw";
        return Err(make(problem.into()));
    };
    let mut svg = String::new();
    draw(comparison, base, &curves, &mut svg).map_err(|e| make(e.to_string()))?;
    Ok(svg)
}

fn draw(
    comparison: &Comparison,
    base: usize,
    curves: &[Curve],
    svg: &mut String,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, (720, 440)).into_drawing_area();
    root.fill(&WHITE)?;
    let tasks = curves.iter().map(|c| c.mean.len()).max().unwrap_or(1);
    let ends = |c: &Curve| {
        let ends = c.mean.iter().zip(&c.std);
        ends.flat_map(|(m, s)| [m - s, m + s]).collect::<Vec<_>>()
    };
    let all: Vec<f64> = curves.iter().flat_map(ends).collect();
    let low = all.iter().copied().fold(0.0, f64::min);
    let high = all.iter().copied().fold(0.0, f64::max);
    let margin = (0.06 * (high - low)).max(0.5);
    let right = (tasks as f64 + 0.1).max(1.5);
    let title = format!(
        "accuracy on the classes seen, minus that of {}",
        comparison.entries[base].name
    );
    let mut chart = ChartBuilder::on(&root)
        .caption(title, text(16))
        .margin(14)
        .x_label_area_size(42)
        .y_label_area_size(52)
        .build_cartesian_2d(0.9..right, low - margin..high + margin)?;
    chart
        .configure_mesh()
        .x_desc("tasks learned")
        .y_desc("difference, points")
        .x_labels(tasks.min(12))
        .x_label_formatter(&|x| match x.fract() == 0.0 {
            true => format!("{x:.0}"),
            false => String::new(),
        })
        .y_label_formatter(&|y| format!("{y:.1}"))
        .axis_desc_style(text(14))
        .label_style(text(12))
        .light_line_style(WHITE)
        .bold_line_style(GRID)
        .draw()?;
    let zero = [(0.9, 0.0), (right, 0.0)];
    chart.draw_series(LineSeries::new(zero, BLACK.mix(0.5).stroke_width(1)))?;
    // Bands first, so that no line is under one.
    let x = |t: usize| t as f64 + 1.0;
    let coloured = || curves.iter().zip(LINES.iter().cycle());
    for (curve, colour) in coloured().filter(|(curve, _)| curve.seeds > 1) {
        let edge = |sign: f64| {
            let both = curve.mean.iter().zip(&curve.std).enumerate();
            both.map(move |(t, (m, s))| (x(t), m + sign * s))
        };
        let below: Vec<(f64, f64)> = edge(-1.0).collect();
        let band: Vec<(f64, f64)> = edge(1.0).chain(below.into_iter().rev()).collect();
        chart.draw_series([Polygon::new(band, veil(*colour))])?;
    }
    for (curve, colour) in coloured() {
        let points = curve.mean.iter().enumerate();
        let points: Vec<(f64, f64)> = points.map(|(t, m)| (x(t), *m)).collect();
        let entry = &comparison.entries[curve.row];
        let label = match curve.seeds {
            1 => entry.name.clone(),
            n => format!("{}, {n} seeds", entry.name),
        };
        chart
            .draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))?
            .label(label)
            .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        chart.draw_series(points.iter().map(|&p| Circle::new(p, 3, colour.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(FRAME)
        .label_font(text(13))
        .draw()?;
    root.present()?;
    Ok(())
}
