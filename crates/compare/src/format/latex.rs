//! LaTeX with the rules of `booktabs`.

use super::{ABOUT_TESTS, Sheet, TESTS};
use crate::comparison::Comparison;

/// The comparison as `tabular`s with a list below; marks are superscripts. The preamble needs `\usepackage{booktabs}`.
pub fn latex(comparison: &Comparison) -> String {
    let sheet = Sheet::new(comparison);
    let rows = sheet.lines.iter().map(|line| {
        let cell = |cell: &Option<(String, String)>| match cell {
            None => String::new(),
            Some((number, marks)) if marks.is_empty() => escape(number),
            Some((number, marks)) => {
                format!("{}\\textsuperscript{{{}}}", escape(number), escape(marks))
            }
        };
        let mut row = vec![line.number.clone(), escape(&line.name)];
        row.extend(line.cells.iter().map(cell));
        row.extend([escape(&line.seeds), escape(&line.source)]);
        row
    });
    let columns = format!("rl{}rl", "r".repeat(sheet.metrics.len()));
    let mut text = String::from("% Needs \\usepackage{booktabs}.\n");
    text += &tabular(&columns, &sheet.head(), rows);
    if !sheet.verdict.is_empty() {
        text += &format!("\n\\par\\smallskip {}\n", escape(sheet.verdict));
    }
    let legend = sheet.legend.iter();
    text += &list(legend.map(|(mark, meaning)| (format!("[{}]", escape(mark)), escape(meaning))));
    if !sheet.tests.is_empty() {
        let rows = sheet
            .tests
            .iter()
            .map(|row| row.iter().map(|t| escape(t)).collect());
        text += &format!("\n\\par\\smallskip {}\n\n", escape(ABOUT_TESTS));
        text += &tabular("llrrr", &TESTS, rows);
    }
    text += &list(sheet.notes.iter().map(|note| (String::new(), escape(note))));
    text
}

fn tabular(columns: &str, head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let head: Vec<String> = head.iter().map(|text| escape(text)).collect();
    let mut text = format!("\\begin{{tabular}}{{{columns}}}\n\\toprule\n");
    text += &format!("{} \\\\\n\\midrule\n", head.join(" & "));
    for row in rows {
        text += &format!("{} \\\\\n", row.join(" & "));
    }
    text + "\\bottomrule\n\\end{tabular}\n"
}

/// Nothing of no items, which LaTeX refuses.
fn list(items: impl Iterator<Item = (String, String)>) -> String {
    let items: String = items
        .map(|(label, text)| format!("\\item{label} {text}\n"))
        .collect();
    match items.is_empty() {
        true => items,
        false => format!("\n\\begin{{itemize}}\n{items}\\end{{itemize}}\n"),
    }
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => out.extend(['\\', c]),
            '\\' => out.push_str("\\textbackslash{}"),
            '~' => out.push_str("\\textasciitilde{}"),
            '^' => out.push_str("\\textasciicircum{}"),
            '<' => out.push_str("\\textless{}"),
            '>' => out.push_str("\\textgreater{}"),
            '|' => out.push_str("\\textbar{}"),
            // A bracket at the begin of an item would be its label.
            '[' => out.push_str("{[}"),
            ']' => out.push_str("{]}"),
            '±' => out.push_str("$\\pm$"),
            '×' => out.push_str("$\\times$"),
            '−' => out.push_str("$-$"),
            '–' => out.push_str("--"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn what_latex_reads_otherwise_is_written_out() {
        assert_eq!(
            escape("a_b 50% & {c} #1 $x\\y ~^ <z> 1 ± 2 [k]\n"),
            "a\\_b 50\\% \\& \\{c\\} \\#1 \\$x\\textbackslash{}y \\textasciitilde{}\\textasciicircum{} \
             \\textless{}z\\textgreater{} 1 $\\pm$ 2 {[}k{]} "
        );
    }
}
