//! GitHub's Markdown, aligned so that it can be read as it is.

use comfy_table::{CellAlignment, Table, presets};

use super::{ABOUT_TESTS, Sheet, TESTS};
use crate::comparison::Comparison;

/// The comparison as Markdown; marks stand in brackets behind the numbers.
pub fn markdown(comparison: &Comparison) -> String {
    let sheet = Sheet::new(comparison);
    let rows = sheet.lines.iter().map(|line| {
        let cell = |cell: &Option<(String, String)>| match cell {
            None => String::new(),
            Some((number, marks)) if marks.is_empty() => number.clone(),
            Some((number, marks)) => format!("{number} [{marks}]"),
        };
        let mut row = vec![line.number.clone(), escape(&line.name)];
        row.extend(line.cells.iter().map(cell));
        row.extend([line.seeds.clone(), escape(&line.source)]);
        row
    });
    let mut text = table(&sheet.head(), rows, 2..2 + sheet.metrics.len());
    if !sheet.verdict.is_empty() {
        text += &format!("\n{}\n", sheet.verdict);
    }
    if !sheet.legend.is_empty() {
        text += "\n";
    }
    for (mark, meaning) in &sheet.legend {
        text += &format!("- `{mark}` {}\n", escape(meaning));
    }
    if !sheet.tests.is_empty() {
        let rows = sheet
            .tests
            .iter()
            .map(|row| row.iter().map(|t| escape(t)).collect());
        text += &format!("\n{ABOUT_TESTS}\n\n{}", table(&TESTS, rows, 2..5));
    }
    if !sheet.notes.is_empty() {
        text += "\n";
    }
    for note in &sheet.notes {
        text += &format!("- {}\n", escape(note));
    }
    text
}

fn table(
    head: &[&str],
    rows: impl Iterator<Item = Vec<String>>,
    right: std::ops::Range<usize>,
) -> String {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN);
    table.set_header(head.iter().map(|text| escape(text)));
    for row in rows {
        table.add_row(row);
    }
    for column in right {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    format!("{table}\n")
}

/// What would end a cell, begin a tag or be taken for emphasis. Underscores inside words are none.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '|' | '\\' | '*' | '`' | '[' | ']' => out.extend(['\\', c]),
            '<' => out.push_str("&lt;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}
