//! A fragment of HTML.

use super::{ABOUT_TESTS, Sheet, TESTS};
use crate::comparison::Comparison;

/// The comparison as a `div` with the class `cw-compare`: a table, what its marks mean, the tests, and the sources. All text is
/// escaped. There is no script, style, id or link in it, so that it can stand in any page, more than once; all classes begin
/// with `cw-`.
pub fn html(comparison: &Comparison) -> String {
    let sheet = Sheet::new(comparison);
    let mut text = String::from("<div class=\"cw-compare\">\n<table class=\"cw-table\">\n");
    text += "<caption>Results in percent, side by side</caption>\n";
    text += &head(&sheet.head());
    text += "<tbody>\n";
    for line in &sheet.lines {
        text += &format!(
            "<tr><td class=\"cw-number\">{}</td><th scope=\"row\">{}</th>",
            line.number,
            escape(&line.name)
        );
        for cell in &line.cells {
            text += &match cell {
                None => "<td class=\"cw-none\"></td>".to_owned(),
                Some((number, marks)) if marks.is_empty() => {
                    format!("<td class=\"cw-number\">{}</td>", escape(number))
                }
                Some((number, marks)) => format!(
                    "<td class=\"cw-number cw-marked\">{}<sup class=\"cw-mark\">{}</sup></td>",
                    escape(number),
                    escape(marks)
                ),
            };
        }
        let (seeds, source) = (escape(&line.seeds), escape(&line.source));
        text += &format!("<td class=\"cw-number\">{seeds}</td><td>{source}</td></tr>\n");
    }
    text += "</tbody>\n</table>\n";
    if !sheet.verdict.is_empty() {
        text += &format!("<p class=\"cw-verdict\">{}</p>\n", escape(sheet.verdict));
    }
    if !sheet.legend.is_empty() {
        text += "<dl class=\"cw-marks\">\n";
        for (mark, meaning) in &sheet.legend {
            text += &format!("<dt>{}</dt><dd>{}</dd>\n", escape(mark), escape(meaning));
        }
        text += "</dl>\n";
    }
    if !sheet.tests.is_empty() {
        text += "<table class=\"cw-table cw-tests\">\n";
        text += &format!(
            "<caption>{}</caption>\n{}<tbody>\n",
            escape(ABOUT_TESTS),
            head(&TESTS)
        );
        for row in &sheet.tests {
            let (rows, others) = row.split_at(1);
            text += &format!("<tr><th scope=\"row\">{}</th>", escape(&rows[0]));
            for (i, cell) in others.iter().enumerate() {
                let class = if i == 0 { "cw-test" } else { "cw-number" };
                text += &format!("<td class=\"{class}\">{}</td>", escape(cell));
            }
            text += "</tr>\n";
        }
        text += "</tbody>\n</table>\n";
    }
    if !sheet.notes.is_empty() {
        text += "<ul class=\"cw-notes\">\n";
        for note in &sheet.notes {
            text += &format!("<li>{}</li>\n", escape(note));
        }
        text += "</ul>\n";
    }
    text + "</div>\n"
}

fn head(names: &[&str]) -> String {
    let cells: String = names
        .iter()
        .map(|name| format!("<th scope=\"col\">{}</th>", escape(name)))
        .collect();
    format!("<thead>\n<tr>{cells}</tr>\n</thead>\n")
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}
