//! What the numbers depend on.

use maud::{Markup, html};
use serde_json::Value;

use crate::record::{Run, plain};

/// Fields of the fingerprint as people call them, in the order of reading; others follow under their own names.
const FIELDS: [(&str, &str); 12] = [
    ("backbone", "backbone"),
    ("weights", "weights, SHA-256"),
    ("depth", "blocks used"),
    ("preset", "preprocessing preset"),
    ("preprocess", "preprocessing, SHA-256"),
    ("split", "split, SHA-256"),
    ("class_order", "class order, SHA-256"),
    ("dtype", "number format"),
    ("device", "device"),
    ("seed", "seed"),
    ("compat", "departures from the default rules"),
    ("code", "candlewick"),
];

/// A field in which runs differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// As in the fingerprint.
    pub field: String,
    /// Whether the numbers may not be compared because of it.
    pub incomparable: bool,
}

struct Fact {
    field: String,
    name: String,
    /// One per run.
    values: Vec<String>,
}

/// All facts that a run of `runs` has.
fn facts(runs: &[&Run]) -> Vec<Fact> {
    let own = |name: &str, f: fn(&Run) -> String| Fact {
        field: name.to_owned(),
        name: name.to_owned(),
        values: runs.iter().map(|run| f(run)).collect(),
    };
    let mut facts = vec![
        own("method", |run| run.report.method.clone()),
        own("scenario", |run| run.scenario().to_owned()),
    ];
    let mut fields: Vec<(String, String)> = Vec::new();
    for (field, name) in FIELDS {
        fields.push((field.into(), name.into()));
    }
    for field in runs.iter().flat_map(|run| run.report.fingerprint.keys()) {
        if !fields.iter().any(|(known, _)| known == field) {
            fields.push((field.clone(), field.replace('_', " ")));
        }
    }
    for (field, name) in fields {
        let values: Vec<Option<&Value>> = runs
            .iter()
            .map(|run| run.report.fingerprint.get(&field))
            .collect();
        if values.iter().any(Option::is_some) {
            let said = |value: Option<&Value>| value.map_or_else(|| "none".into(), plain);
            facts.push(Fact {
                field,
                name,
                values: values.into_iter().map(said).collect(),
            });
        }
    }
    if runs.iter().any(|run| run.report.exemplars.is_some()) {
        facts.push(own("past images kept", |run| {
            let kept = run.report.exemplars.as_ref();
            kept.map_or("none".into(), |kept| {
                let last = kept.images.last().copied().unwrap_or(0);
                format!("{last} ({})", kept.rule)
            })
        }));
    }
    facts.push(own("skipped images", |run| {
        run.count("images_skipped").unwrap_or(0).to_string()
    }));
    facts.push(own("schema", |run| run.report.schema.to_string()));
    facts
}

/// Of one run: each fact in full.
pub fn one(run: &Run) -> Markup {
    html! {
        dl class="facts" {
            @for fact in facts(&[run]) {
                @for value in &fact.values {
                    div { dt { (fact.name) } dd { @if is_hash(value) { code { (value) } } @else { (value) } } }
                }
            }
        }
    }
}

/// Of several: side by side, those that differ marked.
pub fn several(runs: &[&Run], differences: &[Difference]) -> Markup {
    html! {
        div class="scroll" tabindex="0" role="region" aria-label="Conditions side by side" {
            table class="conditions" {
                thead { tr {
                    th scope="col" { "condition" }
                    @for run in runs { th scope="col" { (run.name) } }
                } }
                tbody {
                    @for fact in facts(runs) {
                        @let same = fact.values.windows(2).all(|pair| pair[0] == pair[1]);
                        @let bars = differences.iter().any(|d| d.incomparable && d.field == fact.field);
                        tr class=[(!same).then_some(if bars { "differs bars" } else { "differs" })] {
                            th scope="row" {
                                (fact.name)
                                @if bars && !same { " " span class="flag" { "not comparable" } }
                                @else if !same { " " span class="flag mild" { "differs" } }
                            }
                            @for value in &fact.values {
                                td { @if is_hash(value) { code title=(value) { (value[..12]) } } @else { (value) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn is_hash(value: &str) -> bool {
    value.len() == 64 && value.bytes().all(|b| b.is_ascii_hexdigit())
}
