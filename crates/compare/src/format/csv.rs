//! Comma-separated values: for spreadsheets and programs.

use crate::comparison::Comparison;
use crate::entry::Origin;
use crate::error::{Error, Result};
use crate::rule::Aspect;

/// A row per result. Of each metric the number in percent, its deviation over seeds and its marks; of each aspect its value, hashes
/// in full.
///
/// # Errors
/// [`Error::Make`]; writing into memory has no reason to fail.
pub fn csv(comparison: &Comparison) -> Result<String> {
    let make = |problem: String| Error::Make {
        what: "table",
        problem,
    };
    let mut out = csv::Writer::from_writer(Vec::new());
    let mut head: Vec<String> = [
        "row", "result", "method", "id", "sure", "source", "note", "seeds",
    ]
    .map(String::from)
    .into();
    for metric in &comparison.metrics {
        head.extend(["", "_std", "_marks"].map(|end| format!("{metric}{end}")));
    }
    let aspects = Aspect::ALL.into_iter();
    head.extend(
        aspects
            .clone()
            .map(|aspect| aspect.name().replace(' ', "_")),
    );
    out.write_record(&head).map_err(|e| make(e.to_string()))?;
    for (i, entry) in comparison.entries.iter().enumerate() {
        let [id, sure, source, note] = match &entry.origin {
            Origin::Runs => [const { String::new() }; 4],
            Origin::Published {
                id,
                sure,
                source,
                note,
            } => [
                id.clone(),
                sure.clone(),
                source.clone(),
                note.clone().unwrap_or_default(),
            ],
        };
        let mut row = vec![
            (i + 1).to_string(),
            entry.name.clone(),
            entry.method.clone(),
            id,
            sure,
            source,
            note,
            entry.seeds.map_or(String::new(), |n| n.to_string()),
        ];
        for metric in &comparison.metrics {
            let cell = entry.cell(metric);
            row.push(cell.map_or(String::new(), |cell| cell.mean.to_string()));
            let std = cell.and_then(|cell| cell.std);
            row.push(std.map_or(String::new(), |std| std.to_string()));
            row.push(match cell {
                Some(_) => comparison.marks(i, metric).join(" "),
                None => String::new(),
            });
        }
        row.extend(aspects.clone().map(|aspect| {
            let Some(fact) = entry.facts.get(&aspect) else {
                return String::new();
            };
            match fact.exact.is_empty() {
                true => fact.shown.clone(),
                false => fact.exact.iter().cloned().collect::<Vec<_>>().join(" "),
            }
        }));
        out.write_record(&row).map_err(|e| make(e.to_string()))?;
    }
    let bytes = out.into_inner().map_err(|e| make(e.to_string()))?;
    String::from_utf8(bytes).map_err(|e| make(e.to_string()))
}
