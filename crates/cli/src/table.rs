//! Tables on the terminal.

use candlewick_compare::differences;
use candlewick_core::report::short;
use candlewick_core::{Report, Summary};
use comfy_table::{CellAlignment, Table, presets};

fn table() -> Table {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN);
    table
}

/// Turns all columns but the first to the right.
fn numbers_right(table: &mut Table) {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

/// All names of several lists, each once, in order of appearance: not every scenario has every metric.
pub fn every_name<'a, L: Iterator<Item = &'a str>>(lists: impl Iterator<Item = L>) -> Vec<&'a str> {
    let mut names = Vec::new();
    for name in lists.flatten() {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// Runs side by side: one column each, then what makes them incomparable.
pub fn side_by_side(names: &[String], reports: &[&Report]) -> String {
    let mut out = table();
    out.set_header(std::iter::once("%").chain(names.iter().map(String::as_str)));
    let rows: Vec<_> = reports.iter().map(|r| r.metrics.rows()).collect();
    for metric in every_name(rows.iter().map(|rows| rows.iter().map(|row| row.0))) {
        let value = |rows: &Vec<(&str, f64, &str)>| {
            let found = rows.iter().find(|row| row.0 == metric);
            found.map_or(String::new(), |row| format!("{:.2}", row.1))
        };
        out.add_row(std::iter::once(metric.to_owned()).chain(rows.iter().map(value)));
    }
    let count = |f: fn(&Report) -> u64| reports.iter().map(move |r| f(r).to_string());
    let name = |n: &str| std::iter::once(n.to_owned());
    out.add_row(name("trainable parameters").chain(count(|r| r.cost.trainable_parameters)));
    out.add_row(name("images trained on").chain(count(|r| r.cost.images_trained)));
    numbers_right(&mut out);
    let mut text = format!("{out}\n");

    let found = differences(reports);
    let forbidding: Vec<_> = found.iter().filter(|d| d.incomparable).collect();
    if reports.len() > 1 {
        text += match forbidding.is_empty() {
            true => "\nComparable: same weights, preprocessing, split and class order.\n",
            false => "\nNOT COMPARABLE. These runs differ in:\n",
        };
    }
    for difference in &forbidding {
        text += &format!(
            "  {}: {}\n",
            difference.field,
            difference.values.join(" | ")
        );
    }
    let others: Vec<_> = found.iter().filter(|d| !d.incomparable).collect();
    if !others.is_empty() {
        text += "They also differ in (no bar to comparison):\n";
    }
    for difference in others {
        text += &format!(
            "  {}: {}\n",
            difference.field,
            difference.values.join(" | ")
        );
    }
    text
}

/// One run: metrics with their definitions, then the fingerprint.
pub fn single(report: &Report) -> String {
    let mut out = table();
    out.set_header(["metric", "%", "definition"]);
    for (name, value, definition) in report.metrics.rows() {
        // As the scenario has it.
        let told = report.definitions.get(name).cloned();
        out.add_row([
            name.to_owned(),
            format!("{value:.2}"),
            told.unwrap_or_else(|| definition.to_owned()),
        ]);
    }
    if let Some(column) = out.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let curve = |values: &[f64]| {
        let values: Vec<String> = values.iter().map(|a| format!("{a:.2}")).collect();
        values.join(" ")
    };
    let f = &report.fingerprint;
    let mut text = format!("{out}\n\n");
    text += &format!(
        "per-session accuracy, micro  {}\n",
        curve(&report.session_accuracy.micro)
    );
    text += &format!(
        "per-session accuracy, macro  {}\n",
        curve(&report.session_accuracy.macro_)
    );
    text += &format!(
        "fingerprint  weights {} ({}, {} blocks)  preprocess {}  split {}  class order {}\n",
        short(&f.weights),
        f.backbone,
        f.depth,
        short(&f.preprocess),
        short(&f.split),
        short(&f.class_order)
    );
    text += &format!(
        "             candlewick {}  numerics {}  {} {}  seed {}\n",
        f.code,
        f.numerics.map_or("not known".into(), |n| n.to_string()),
        f.device,
        f.dtype,
        f.seed
    );
    for pool in &report.pools {
        let last = |values: &[f64]| values.last().copied().unwrap_or(0.0);
        text += &format!(
            "pool {:22}  {:.1} of {} entries in use, similarity of query and key {:.3}{}\n",
            pool.pool,
            last(&pool.effective),
            pool.chosen.first().map_or(0, Vec::len),
            last(&pool.similarity),
            if pool.collapsed { ", collapsed" } else { "" }
        );
    }
    for (metric, why) in &report.undefined {
        text += &format!("not defined  {metric}: {why}\n");
    }
    if let Some(kept) = &report.exemplars {
        text += &format!(
            "exemplars    {} past images kept ({})\n",
            kept.images.last().copied().unwrap_or(0),
            kept.rule
        );
    }
    for switch in &f.compat {
        text += &format!("             with {switch}: not the default rule\n");
    }
    if report.cost.images_skipped > 0 {
        text += &format!(
            "             {} unreadable images left out\n",
            report.cost.images_skipped
        );
    }
    text
}

/// Mean and deviation over seeds.
pub fn summary(summary: &Summary) -> String {
    let mut out = table();
    let mut head = vec!["%".to_owned(), "mean".into(), "std".into()];
    head.extend(summary.seeds.iter().map(|seed| format!("seed {seed}")));
    out.set_header(head);
    for (name, spread) in &summary.metrics {
        let mut row = vec![
            name.clone(),
            format!("{:.2}", spread.mean),
            format!("{:.2}", spread.std),
        ];
        row.extend(spread.values.iter().map(|v| format!("{v:.2}")));
        out.add_row(row);
    }
    numbers_right(&mut out);
    format!("{out}\n")
}

/// A list whose columns but the first hold numbers.
pub fn numbers(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut out = table();
    out.set_header(head.iter().copied());
    for row in rows {
        out.add_row(row);
    }
    numbers_right(&mut out);
    format!("{out}\n")
}

/// Any list.
pub fn list(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut out = table();
    out.set_header(head.iter().copied());
    for row in rows {
        out.add_row(row);
    }
    format!("{out}\n")
}
