//! The pictures of a run directory.

use anyhow::{Result, anyhow};
use candlewick_compare::style::{FRAME, GRID, INK, LINES, centred, text};
use candlewick_core::report::Spread;
use candlewick_core::{PoolUse, Report};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

const MICRO: RGBColor = LINES[0];
const MACRO: RGBColor = LINES[1];

/// Accuracy on all classes seen, after each task.
pub fn curve(report: &Report) -> Result<String> {
    let mut svg = String::new();
    draw_curve(report, &mut svg).map_err(|e| anyhow!("curve.svg: {e}"))?;
    Ok(svg)
}

/// Accuracy on each task after each task, as a triangle of coloured cells.
pub fn matrix(report: &Report) -> Result<String> {
    let mut svg = String::new();
    draw_matrix(report, &mut svg).map_err(|e| anyhow!("matrix.svg: {e}"))?;
    Ok(svg)
}

/// Mean, deviation and single values of something in percent, one line each.
pub fn spreads(title: &str, rows: &[(String, Spread)]) -> Result<String> {
    let mut svg = String::new();
    draw_spreads(title, rows, &mut svg).map_err(|e| anyhow!("sweep.svg: {e}"))?;
    Ok(svg)
}

/// What the test images of each task took from each pool after the last task, as one table of coloured cells per pool.
pub fn pools(report: &Report) -> Result<String> {
    let mut svg = String::new();
    draw_pools(report, &mut svg).map_err(|e| anyhow!("pools.svg: {e}"))?;
    Ok(svg)
}

type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

fn draw_curve(report: &Report, svg: &mut String) -> Drawn {
    let root = SVGBackend::with_string(svg, (720, 440)).into_drawing_area();
    root.fill(&WHITE)?;
    let seen: Vec<f64> = report
        .tasks
        .iter()
        .scan(0, |sum, task| {
            *sum += task.classes.len();
            Some(*sum as f64)
        })
        .collect();
    let most = seen.last().copied().unwrap_or(1.0);
    let title = format!("{} on {}", report.method, report.fingerprint.backbone);
    let mut chart = ChartBuilder::on(&root)
        .caption(title, text(18))
        .margin(14)
        .x_label_area_size(42)
        .y_label_area_size(52)
        .build_cartesian_2d(0.0..most * 1.02, 0.0..100.0)?;
    chart
        .configure_mesh()
        .x_desc("classes seen")
        .y_desc("accuracy on them, %")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.0}"))
        .axis_desc_style(text(14))
        .label_style(text(12))
        .light_line_style(WHITE)
        .bold_line_style(GRID)
        .draw()?;
    let accuracy = &report.session_accuracy;
    let same = accuracy
        .micro
        .iter()
        .zip(&accuracy.macro_)
        .all(|(a, b)| (a - b).abs() < 0.05);
    let mut lines = vec![("micro (per image)", MICRO, &accuracy.micro)];
    match same {
        true => lines[0].0 = "micro = macro",
        false => lines.push(("macro (per task)", MACRO, &accuracy.macro_)),
    }
    for (label, colour, values) in lines {
        let points: Vec<(f64, f64)> = seen.iter().copied().zip(values.iter().copied()).collect();
        chart
            .draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))?
            .label(label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        chart.draw_series(points.iter().map(|&p| Circle::new(p, 4, colour.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(FRAME)
        .label_font(text(13))
        .draw()?;
    root.present()?;
    Ok(())
}

fn draw_spreads(title: &str, rows: &[(String, Spread)], svg: &mut String) -> Drawn {
    const LINE: u32 = 26;
    let size = (820, 90 + LINE * rows.len() as u32);
    let root = SVGBackend::with_string(svg, size).into_drawing_area();
    root.fill(&WHITE)?;
    let values = rows.iter().flat_map(|(_, s)| s.values.iter().copied());
    let low = values.clone().fold(100.0, f64::min);
    let high = values.fold(0.0, f64::max);
    let margin = (0.06 * (high - low)).max(0.5);
    let last = rows.len() as f64;
    // The first row on top.
    let place = |i: usize| last - 1.0 - i as f64;
    let mut chart = ChartBuilder::on(&root)
        .caption(format!("{title}, %"), text(16))
        .margin(14)
        .x_label_area_size(30)
        .y_label_area_size(320)
        .build_cartesian_2d(low - margin..high + margin, -0.5..last - 0.5)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .y_labels(0)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .label_style(text(12))
        .light_line_style(WHITE)
        .bold_line_style(GRID)
        .draw()?;
    for (i, (_, spread)) in rows.iter().enumerate() {
        let y = place(i);
        let ends = [(spread.mean - spread.std, y), (spread.mean + spread.std, y)];
        chart.draw_series(LineSeries::new(ends, MICRO.stroke_width(2)))?;
        let small = spread
            .values
            .iter()
            .map(|&v| Circle::new((v, y), 2, MICRO.mix(0.4).filled()));
        chart.draw_series(small)?;
        chart.draw_series([Circle::new((spread.mean, y), 4, MICRO.filled())])?;
    }
    let right = Pos::new(HPos::Right, VPos::Center);
    let style = text(12).pos(right);
    for (i, (label, spread)) in rows.iter().enumerate() {
        let (_, y) = chart.backend_coord(&(spread.mean, place(i)));
        root.draw(&Text::new(label.clone(), (322, y), style.clone()))?;
    }
    root.present()?;
    Ok(())
}

fn draw_matrix(report: &Report, svg: &mut String) -> Drawn {
    let tasks = report.tasks.len() as i32;
    let cell = (560 / tasks.max(1)).clamp(22, 64);
    let (left, top) = (70, 64);
    let size = (left + cell * tasks + 20, top + cell * tasks + 20);
    let size = (size.0.max(360) as u32, size.1 as u32);
    let root = SVGBackend::with_string(svg, size).into_drawing_area();
    root.fill(&WHITE)?;
    let heading = text(15);
    let title = format!(
        "{}: accuracy in % on task (column) after task (row)",
        report.method
    );
    root.draw(&Text::new(title, (12, 12), heading))?;
    let label = (cell / 3).clamp(9, 14);
    for t in 0..tasks {
        let middle = t * cell + cell / 2;
        let number = (t + 1).to_string();
        root.draw(&Text::new(
            number.clone(),
            (left + middle, top - 12),
            centred(label, &INK),
        ))?;
        root.draw(&Text::new(
            number,
            (left - 16, top + middle),
            centred(label, &INK),
        ))?;
    }
    for (t, row) in report.accuracy_matrix.iter().enumerate() {
        for (i, accuracy) in row.iter().enumerate() {
            let (x, y) = (left + i as i32 * cell, top + t as i32 * cell);
            let corners = [(x + 1, y + 1), (x + cell - 1, y + cell - 1)];
            root.draw(&Rectangle::new(corners, shade(*accuracy).filled()))?;
            let ink = if *accuracy > 40.0 { WHITE } else { INK };
            let at = (x + cell / 2, y + cell / 2);
            let number = match cell > 40 {
                true => format!("{accuracy:.1}"),
                false => format!("{accuracy:.0}"),
            };
            root.draw(&Text::new(number, at, centred(label, &ink)))?;
        }
    }
    root.present()?;
    Ok(())
}

fn draw_pools(report: &Report, svg: &mut String) -> Drawn {
    let tasks = report.tasks.len() as i32;
    let entries = |pool: &PoolUse| pool.chosen.first().map_or(0, Vec::len) as i32;
    let most = report.pools.iter().map(entries).max().unwrap_or(0);
    let width = (640 / most.max(1)).clamp(4, 40);
    let height = (200 / tasks.max(1)).clamp(8, 22);
    let (left, top, head) = (70, 40, 46);
    let panel = head + height * tasks + 14;
    let size = (
        (left + width * most + 20).max(620) as u32,
        (top + panel * report.pools.len() as i32) as u32,
    );
    let root = SVGBackend::with_string(svg, size).into_drawing_area();
    root.fill(&WHITE)?;
    let title = format!(
        "{}: what test images of a task (row) take of a pool's entries (column)",
        report.method
    );
    let heading = text(15);
    root.draw(&Text::new(title, (12, 12), heading))?;
    let centred = centred(height.min(12), &INK);
    for (n, pool) in report.pools.iter().enumerate() {
        let y0 = top + panel * n as i32;
        let last = |values: &[f64]| values.last().copied().unwrap_or(0.0);
        let line = format!(
            "{}: {:.1} of {} in use{}, similarity of query and key {:.2}",
            pool.pool,
            last(&pool.effective),
            entries(pool),
            if pool.collapsed { ", collapsed" } else { "" },
            last(&pool.similarity),
        );
        let line_style = text(13);
        root.draw(&Text::new(line, (12, y0 + 6), line_style))?;
        for m in (0..entries(pool)).filter(|m| width >= 16 || (m + 1) % 10 == 0) {
            let at = (left + m * width + width / 2, y0 + head - 8);
            root.draw(&Text::new((m + 1).to_string(), at, centred.clone()))?;
        }
        // The darkest cell of a pool is its most taken entry: weights of a hundred components are all small.
        let most = pool
            .chosen
            .iter()
            .zip(&report.tasks)
            .flat_map(|(row, task)| {
                let images = task.test_images.max(1) as f64;
                row.iter().map(move |taken| taken / images)
            });
        let most = most.fold(0.0, f64::max);
        for (t, (row, task)) in pool.chosen.iter().zip(&report.tasks).enumerate() {
            let y = y0 + head + t as i32 * height;
            let number = Text::new(
                (t + 1).to_string(),
                (left - 16, y + height / 2),
                centred.clone(),
            );
            root.draw(&number)?;
            for (m, taken) in row.iter().enumerate() {
                let x = left + m as i32 * width;
                let part = taken / task.test_images.max(1) as f64 / most.max(1e-12);
                let corners = [(x, y), (x + width - 1, y + height - 1)];
                root.draw(&Rectangle::new(corners, shade(100.0 * part).filled()))?;
            }
        }
    }
    root.present()?;
    Ok(())
}

/// From white (0 %) to deep blue (100 %).
fn shade(percent: f64) -> RGBColor {
    let mix = |from: f64, to: f64| (from + (to - from) * percent / 100.0).clamp(0.0, 255.0) as u8;
    RGBColor(mix(245.0, 8.0), mix(248.0, 64.0), mix(252.0, 129.0))
}
