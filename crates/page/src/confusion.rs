//! Which tasks and which classes are taken for which others, after the last task.

use std::collections::BTreeMap;

use maud::{Markup, html};

use crate::heat::{Heat, Row};
use crate::number::of;
use crate::record::Run;

/// Pairs of classes that are named.
const PAIRS: usize = 10;

/// `None` where a prediction tells no task: domains share their classes, and task-incremental images are predicted among
/// the classes of their own task.
pub fn tasks(run: &Run) -> Option<Markup> {
    let counts = counts(run)?;
    let rows = counts.into_iter().enumerate().map(|(t, row)| {
        let all: u64 = row.iter().sum();
        Row {
            name: run.task_name(t),
            cells: row
                .into_iter()
                .map(|n| (all > 0).then(|| 100.0 * n as f64 / all as f64))
                .collect(),
            about: None,
        }
    });
    let columns = run.report.tasks.iter().enumerate();
    Some(
        Heat {
            id: "confusion",
            caption: "Test images of a task (row) by the task of the class they are taken for (column), in percent of the row",
            corner: "task",
            columns: columns
                .map(|(t, task)| (run.task_name(t), task.classes.join(", ")))
                .collect(),
            rows: rows.collect(),
            full: 100.0,
        }
        .html(),
    )
}

/// `counts[i][j]`: test images of task `i` that are taken for a class of task `j`.
fn counts(run: &Run) -> Option<Vec<Vec<u64>>> {
    if run.scenario() != "class-incremental" || run.predictions.is_empty() {
        return None;
    }
    let tasks = &run.report.tasks;
    let mut task_of = BTreeMap::new();
    for (t, task) in tasks.iter().enumerate() {
        task_of.extend(task.classes.iter().map(|class| (class.as_str(), t)));
    }
    let mut counts = vec![vec![0; tasks.len()]; tasks.len()];
    for p in &run.predictions {
        let (from, to) = (
            task_of.get(p.class.as_str())?,
            task_of.get(p.predicted.as_str())?,
        );
        counts[*from][*to] += 1;
    }
    Some(counts)
}

/// The pairs that are mistaken most often, each in its direction.
pub fn pairs(run: &Run) -> Option<Markup> {
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for p in run.predictions.iter().filter(|p| p.class != p.predicted) {
        *counts.entry((&p.class, &p.predicted)).or_default() += 1;
    }
    let mut pairs: Vec<_> = counts.into_iter().collect();
    // Those of equal counts by name.
    pairs.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    let wrong: usize = pairs.iter().map(|(_, n)| n).sum();
    // One image is no pattern.
    pairs.retain(|(_, n)| *n > 1);
    if pairs.is_empty() {
        return None;
    }
    Some(html! {
        p class="note" { "Classes mistaken more than once, of " (of(wrong, "wrong prediction")) "." }
        div class="scroll" tabindex="0" role="region" aria-label="Classes mistaken more than once" {
            table class="numbers pairs" {
                thead { tr { th scope="col" { "is" } th scope="col" { "is taken for" } th scope="col" { "images" } } }
                tbody {
                    @for ((class, predicted), n) in pairs.iter().take(PAIRS) {
                        tr { th scope="row" { (class) } td class="name" { (predicted) } td { (n) } }
                    }
                }
            }
        }
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Two tasks of two classes.
    pub(crate) fn run() -> Run {
        let report = serde_json::json!({
            "schema": 1, "method": "m",
            "session_accuracy": { "micro": [100.0, 62.5], "macro": [100.0, 62.5] },
            "metrics": { "forgetting": 25.0 },
            "accuracy_matrix": [[100.0], [75.0, 50.0]],
            "tasks": [
                { "classes": ["a", "b"], "train_images": 4, "test_images": 4 },
                { "classes": ["c", "d"], "train_images": 4, "test_images": 4 },
            ],
            "fingerprint": { "seed": 1 }, "cost": {},
        });
        let mut run = Run::new("r", &report.to_string()).unwrap();
        run.predictions(
            b"image,class,predicted,score\n1,a,a,1\n2,a,c,0.5\n3,b,b,1\n4,b,b,1\n5,c,c,2\n6,c,a,3\n7,d,d,2\n8,d,a,-1\n",
        )
        .unwrap();
        run
    }

    #[test]
    fn images_are_counted_by_the_tasks_of_their_classes() {
        assert_eq!(counts(&self::run()), Some(vec![vec![3, 1], vec![2, 2]]));
        let mut run = self::run();
        assert!(pairs(&run).is_none(), "each mistake was made once");
        let again = run.predictions[1].clone();
        run.predictions.push(again);
        let text = pairs(&run).unwrap().into_string();
        assert!(text.contains("of 4 wrong predictions"), "{text}");
        assert!(
            text.contains("<td>2</td>") && !text.contains("<td>1</td>"),
            "{text}"
        );
        let mut other = run;
        other.report.scenario = Some("domain-incremental".into());
        assert_eq!(counts(&other), None);
    }
}
