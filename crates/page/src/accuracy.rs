//! Accuracy as classes arrive: the curve, its numbers, and the matrix of tasks.

use maud::{Markup, html};

use crate::chart::{Chart, Line, Point};
use crate::heat::{Heat, Row};
use crate::number::{fixed, of, percent};
use crate::record::Run;

/// Runs in one drawing. One run has its micro and its macro accuracy where they differ.
pub fn curve(runs: &[&Run], id: &str) -> Markup {
    let mut lines = Vec::new();
    match runs {
        [run] => {
            let accuracy = &run.report.session_accuracy;
            let both = accuracy.micro.iter().zip(&accuracy.macro_);
            match both.clone().all(|(a, b)| (a - b).abs() < 0.005) {
                true => lines.push(line(run, "micro = macro", &accuracy.micro)),
                false => {
                    lines.push(line(run, "micro, per image", &accuracy.micro));
                    lines.push(line(run, "macro, per task", &accuracy.macro_));
                }
            }
        }
        _ => lines.extend(
            runs.iter()
                .map(|run| line(run, &run.name, &run.report.session_accuracy.micro)),
        ),
    }
    let domains = runs.iter().all(|run| !run.classes_tell_tasks());
    let x_end = runs
        .iter()
        .flat_map(|run| places(run, domains))
        .fold(1.0, f64::max);
    Chart {
        id,
        title: "Accuracy on everything seen, after each task",
        x_label: if domains {
            "domains seen"
        } else {
            "classes seen"
        },
        y_label: "accuracy, %",
        x_end,
        y: (0.0, 100.0),
        lines,
        points: true,
    }
    .html()
}

/// Where the sessions of a run are on the axis.
fn places(run: &Run, domains: bool) -> Vec<f64> {
    let seen = run.classes_seen();
    let place = |(t, classes): (usize, usize)| if domains { t + 1 } else { classes };
    seen.into_iter()
        .enumerate()
        .map(|at| place(at) as f64)
        .collect()
}

fn line(run: &Run, name: &str, values: &[f64]) -> Line {
    let domains = !run.classes_tell_tasks();
    let seen = run.classes_seen();
    let points = places(run, domains)
        .into_iter()
        .zip(values)
        .zip(seen)
        .enumerate();
    Line {
        name: name.to_owned(),
        points: points
            .map(|(t, ((x, y), classes))| Point {
                x,
                y: *y,
                said: format!(
                    "{} % after task {} of {}, on {}",
                    fixed(*y, 2),
                    t + 1,
                    run.report.tasks.len(),
                    of(classes, "class")
                ),
            })
            .collect(),
    }
}

/// The numbers of one run's curve.
pub fn sessions(run: &Run) -> Markup {
    let accuracy = &run.report.session_accuracy;
    let rows = accuracy.micro.iter().zip(&accuracy.macro_);
    html! {
        details {
            summary { "The numbers of the curve" }
            div class="scroll" tabindex="0" role="region" aria-label="The numbers of the curve" {
                table class="numbers sessions" {
                    thead { tr {
                        th scope="col" { "after task" }
                        th scope="col" { "classes seen" }
                        th scope="col" { "micro, %" }
                        th scope="col" { "macro, %" }
                    } }
                    tbody {
                        @for (t, ((micro, macro_), seen)) in rows.zip(run.classes_seen()).enumerate() {
                            tr {
                                th scope="row" { (run.task_name(t)) }
                                td { (seen) }
                                td { (percent(*micro)) }
                                td { (percent(*macro_)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Accuracy on each task after each task. Rows that are not there yet keep their place.
pub fn matrix(run: &Run) -> Markup {
    let report = &run.report;
    let tasks = report.tasks.len();
    let mut rows: Vec<Row> = (0..tasks)
        .map(|t| Row {
            name: run.task_name(t),
            cells: (0..tasks)
                .map(|i| report.accuracy_matrix.get(t)?.get(i).copied())
                .collect(),
            about: None,
        })
        .collect();
    if report.accuracy_matrix.len() == tasks && tasks > 1 {
        rows.push(Row {
            name: "forgotten".into(),
            cells: (0..tasks).map(|i| forgotten(run, i)).collect(),
            about: Some("best accuracy at or after its session, less the last"),
        });
    }
    let domains = !run.classes_tell_tasks();
    Heat {
        id: "matrix",
        caption: match domains {
            true => {
                "Accuracy in percent on the test images of a domain (column) after learning a domain (row); right of the diagonal before it was learned"
            }
            false if run.scenario() == "multi-domain" => {
                "Accuracy in percent on the test images of a data set (column) after learning a data set (row); right of the diagonal before it was learned"
            }
            false => {
                "Accuracy in percent on the test images of a task (column) after learning a task (row)"
            }
        },
        corner: "after",
        columns: (0..tasks)
            .map(|t| (run.task_name(t), report.tasks[t].classes.join(", ")))
            .collect(),
        rows,
        full: 100.0,
    }
    .html()
}

/// What was lost of a task: its best accuracy at or after its session less the last.
fn forgotten(run: &Run, task: usize) -> Option<f64> {
    let rows = &run.report.accuracy_matrix;
    let column = rows.get(task..)?.iter().filter_map(|row| row.get(task));
    let best = column.copied().fold(f64::NEG_INFINITY, f64::max);
    Some(best - rows.last()?.get(task)?)
}
