//! The table of a comparison as text.

mod csv;
mod html;
mod latex;
mod markdown;

pub use self::csv::csv;
pub use self::html::html;
pub use self::latex::latex;
pub use self::markdown::markdown;

use crate::comparison::Comparison;
use crate::entry::Origin;
use crate::rule::Aspect;
use crate::significance::{Kind, Test};

/// Which one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// For a terminal and for READMEs.
    #[default]
    Markdown,
    /// A row per result, with everything its numbers depend on.
    Csv,
    /// For a paper; needs the package `booktabs`.
    Latex,
    /// A fragment to put into a page.
    Html,
}

impl Format {
    /// The comparison in it.
    ///
    /// # Errors
    /// [`crate::Error::Make`], of CSV alone.
    pub fn write(self, comparison: &Comparison) -> crate::Result<String> {
        Ok(match self {
            Self::Markdown => markdown(comparison),
            Self::Csv => csv(comparison)?,
            Self::Latex => latex(comparison),
            Self::Html => html(comparison),
        })
    }
}

/// What all of them say, in plain words that each escapes in its own way.
struct Sheet {
    metrics: Vec<String>,
    lines: Vec<Line>,
    verdict: &'static str,
    /// Mark and meaning.
    legend: Vec<(String, String)>,
    tests: Vec<[String; 5]>,
    /// What is to be known besides.
    notes: Vec<String>,
}

struct Line {
    number: String,
    name: String,
    /// Number and marks; `None` where the row lacks the metric.
    cells: Vec<Option<(String, String)>>,
    seeds: String,
    source: String,
}

/// The head of the table of tests.
const TESTS: [&str; 5] = ["rows", "test", "a − b", "p", "p, Holm"];

/// What is said above it.
const ABOUT_TESTS: &str = "Two-sided tests between rows that may be compared. McNemar: b and c are the images that the first and \
    the second row alone got right. Permutation: over seeds, accuracies in points. Holm's correction is over all tests of a \
    kind.";

impl Sheet {
    fn new(comparison: &Comparison) -> Self {
        let metrics = comparison.metrics.clone();
        let lines = comparison.entries.iter().enumerate().map(|(i, entry)| {
            let cell = |metric: &String| {
                let cell = entry.cell(metric)?;
                let number = match cell.std {
                    Some(std) => format!("{:.2} ± {std:.2}", cell.mean),
                    None => format!("{:.2}", cell.mean),
                };
                Some((number, comparison.marks(i, metric).join(" ")))
            };
            Line {
                number: (i + 1).to_string(),
                name: match entry.name.contains(&entry.method) {
                    true => entry.name.clone(),
                    false => format!("{}: {}", entry.name, entry.method),
                },
                cells: metrics.iter().map(cell).collect(),
                seeds: entry.seeds.map_or("?".into(), |n| n.to_string()),
                source: match &entry.origin {
                    Origin::Runs => "run".into(),
                    Origin::Published { sure, .. } => sure.clone(),
                },
            }
        });
        let legend = comparison.legend();
        let legend = legend.iter().map(|mark| {
            let group = mark.group;
            let rows = numbers(&group.rows);
            let shown = &group.shown;
            (
                match group.mark.is_empty() {
                    true => "unmarked".into(),
                    false => group.mark.clone(),
                },
                format!("{}: {shown} (row {rows})", mark.field),
            )
        });
        Self {
            lines: lines.collect(),
            verdict: match (comparison.entries.len(), comparison.is_plain()) {
                (0 | 1, _) => "",
                (_, true) => {
                    "Comparable: same weights, preprocessing, split, class order, metrics, rules, precision and numerics."
                }
                (_, false) => {
                    "NOT ALL COMPARABLE. Two numbers may be compared only if they bear the same marks or none, and no mark that ends in `?`:"
                }
            },
            legend: legend.collect(),
            tests: comparison.tests.iter().map(test).collect(),
            notes: notes(comparison),
            metrics,
        }
    }

    fn head(&self) -> Vec<&str> {
        let metrics = self.metrics.iter().map(String::as_str);
        let head = ["#", "result, %"].into_iter().chain(metrics);
        head.chain(["seeds", "source"]).collect()
    }
}

/// Rows counted from 1, three and more in a row as a span.
fn numbers(rows: &[usize]) -> String {
    let spans = rows.chunk_by(|a, b| a + 1 == *b).map(|span| match span {
        [first, _, .., last] => format!("{}–{}", first + 1, last + 1),
        few => {
            let few: Vec<String> = few.iter().map(|row| (row + 1).to_string()).collect();
            few.join(", ")
        }
    });
    spans.collect::<Vec<_>>().join(", ")
}

fn test(test: &Test) -> [String; 5] {
    let (what, difference) = match &test.kind {
        Kind::McNemar { seed, counts } => {
            let seed = seed.map_or(String::new(), |seed| format!(", seed {seed}"));
            let what = format!("McNemar, n = {}{seed}", counts.n);
            (what, format!("b = {}, c = {}", counts.b, counts.c))
        }
        Kind::Permutation {
            metric,
            seeds,
            difference,
            std,
        } => {
            let what = format!("permutation, {metric}, {seeds} seeds");
            (what, format!("{difference:+.2} ± {std:.2}"))
        }
    };
    let p = |p: f64| match p < 0.00005 {
        true => format!("{p:.0e}"),
        false => format!("{p:.4}"),
    };
    let rows = format!("{}, {}", test.a + 1, test.b + 1);
    [rows, what, difference, p(test.p), p(test.holm)]
}

fn notes(comparison: &Comparison) -> Vec<String> {
    let mut notes = Vec::new();
    for (aspect, values) in comparison.notes() {
        let values = values
            .iter()
            .map(|(row, value)| format!("{} ({})", value, row + 1));
        let values: Vec<String> = values.collect();
        notes.push(format!(
            "{}, no bar to comparison: {}",
            said(aspect),
            values.join(", ")
        ));
    }
    for line in &comparison.untested {
        notes.push(format!("not tested, rows {line}"));
    }
    for (i, entry) in comparison.entries.iter().enumerate() {
        if let Origin::Published {
            id, source, note, ..
        } = &entry.origin
        {
            let note = note
                .as_ref()
                .map_or(String::new(), |note| format!(". {note}"));
            notes.push(format!("row {}, {id}: {source}{note}", i + 1));
        }
    }
    notes
}

fn said(aspect: Aspect) -> String {
    format!("differ in {}", aspect.name())
}
