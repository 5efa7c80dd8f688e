//! The single numbers: of one run as figures, of several side by side.

use maud::{Markup, html};

use crate::conditions::Difference;
use crate::number::{count, percent};
use crate::record::Run;

/// Metrics in the order of tables, as people call them, and whether more is better.
const METRICS: [(&str, &str, bool); 9] = [
    (
        "average_incremental_accuracy",
        "average incremental accuracy",
        true,
    ),
    ("last_accuracy_micro", "last accuracy, micro", true),
    ("last_accuracy_macro", "last accuracy, macro", true),
    ("forgetting", "forgetting", false),
    ("backward_transfer", "backward transfer", true),
    ("forward_transfer", "forward transfer", true),
    ("mtil_transfer", "transfer, MTIL", true),
    ("mtil_average", "average, MTIL", true),
    ("mtil_last", "last, MTIL", true),
];

/// One metric of one or several runs.
struct Metric {
    field: String,
    name: String,
    more_is_better: Option<bool>,
    values: Vec<Option<f64>>,
}

fn metrics(runs: &[&Run]) -> Vec<Metric> {
    let mut fields: Vec<(String, String, Option<bool>)> = METRICS
        .iter()
        .map(|(field, name, more)| ((*field).into(), (*name).into(), Some(*more)))
        .collect();
    for field in runs.iter().flat_map(|run| run.report.metrics.keys()) {
        if !fields.iter().any(|(known, ..)| known == field) {
            fields.push((field.clone(), field.replace('_', " "), None));
        }
    }
    let metrics = fields
        .into_iter()
        .map(|(field, name, more_is_better)| Metric {
            values: runs
                .iter()
                .map(|run| run.report.metrics.get(&field).copied().flatten())
                .collect(),
            field,
            name,
            more_is_better,
        });
    metrics
        .filter(|m| m.values.iter().any(Option::is_some))
        .collect()
}

/// Of one run.
pub fn figures(run: &Run) -> Markup {
    html! {
        dl class="figures" {
            @for metric in metrics(&[run]) {
                @for value in metric.values.iter().flatten() {
                    div data-metric=(metric.field) {
                        dt { (metric.name) }
                        dd class="figure" { (percent(*value)) span class="unit" { "%" } }
                        @if let Some(text) = run.report.definitions.get(&metric.field) {
                            dd class="what" { (text) }
                        }
                    }
                }
            }
            @for (field, why) in &run.report.undefined {
                div data-metric=(field) {
                    dt { (called(field)) }
                    dd class="figure" { "not defined" }
                    dd class="what" { (why) }
                }
            }
        }
    }
}

/// As people call a metric.
fn called(field: &str) -> String {
    let known = METRICS.iter().find(|(known, ..)| *known == field);
    known.map_or_else(|| field.replace('_', " "), |(_, name, _)| (*name).into())
}

/// Of several: a row each; the best is marked where they may be compared.
pub fn table(runs: &[&Run], differences: Option<&[Difference]>) -> Markup {
    let metrics = metrics(runs);
    let comparable = differences.is_some_and(|all| !all.iter().any(|d| d.incomparable));
    html! {
        div class="scroll" tabindex="0" role="region" aria-label="Metrics side by side" {
            table class="numbers metrics" {
                thead { tr {
                    th scope="col" { "run" }
                    @for metric in &metrics { th scope="col" { (metric.name) ", %" } }
                    th scope="col" { "trainable parameters" }
                    th scope="col" { "images trained on" }
                } }
                tbody {
                    @for (n, run) in runs.iter().enumerate() {
                        tr {
                            th scope="row" { a href=(format!("#run-{n}")) { (run.name) } }
                            @for metric in &metrics {
                                @let best = comparable && is_best(metric, n);
                                td data-metric=(metric.field) class=[best.then_some("best")] {
                                    @if let Some(value) = metric.values[n] { (percent(value)) }
                                }
                            }
                            td { (run.count("trainable_parameters").map_or(String::new(), count)) }
                            td { (run.count("images_trained").map_or(String::new(), count)) }
                        }
                    }
                }
            }
        }
    }
}

fn is_best(metric: &Metric, run: usize) -> bool {
    let (Some(value), Some(more)) = (metric.values[run], metric.more_is_better) else {
        return false;
    };
    let known = || metric.values.iter().flatten();
    let best = match more {
        true => known().all(|other| *other <= value),
        false => known().all(|other| *other >= value),
    };
    // Where all are alike none stands out.
    best && known().any(|other| *other != value)
}
