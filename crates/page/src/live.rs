//! What is shown of a run that goes on.

use maud::{Markup, html};
use serde::Serialize;

use crate::chart::{Chart, Line, Point};
use crate::number::{count, fixed, of, seconds};

/// Where a run is.
#[derive(Debug, Clone, Default)]
pub struct Now {
    /// Grows with what the page shows besides this.
    pub revision: u64,
    /// What the run is called.
    pub label: String,
    /// The task at hand, from 1, and how many there are.
    pub task: (usize, usize),
    /// What is done with it: `looking`, `epoch 2/5`, `testing`.
    pub doing: String,
    /// Images of that which are behind, and all of them.
    pub images: (u64, u64),
    /// Since the begin.
    pub seconds: f64,
    /// Losses as they were read back, with the number of their step.
    pub losses: Vec<(u64, f32)>,
    /// Whether it has ended.
    pub ended: bool,
}

/// What a page that watches a run asks for, again and again.
#[derive(Debug, Serialize)]
pub struct Update {
    /// That of [`Now`].
    pub revision: u64,
    /// Whether nothing more will come.
    pub ended: bool,
    /// In place of what is in `#now`.
    pub now: String,
    /// In place of what is in `main`; left out where the asker has this revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub main: Option<String>,
}

impl Now {
    /// The markup inside `#now`.
    pub fn html(&self) -> String {
        self.markup().into_string()
    }

    pub(crate) fn markup(&self) -> Markup {
        let (done, all) = self.images;
        let (task, tasks) = self.task;
        html! {
            @if self.ended {
                p class="status" { strong { (self.label) } " has ended, after " (seconds(self.seconds)) "." }
            } @else {
                p class="status" {
                    strong { (self.label) }
                    @if tasks > 0 { " · task " (task) " of " (tasks) }
                    " · " (self.doing)
                    @if all > 0 { " · " (count(done)) " of " (of(all as usize, "image")) }
                    " · " (seconds(self.seconds))
                }
                progress max=(all.max(1)) value=(done) aria-label=(format!("{} of task {task}", self.doing)) {}
            }
            @if self.losses.len() > 1 { (self.loss()) }
        }
    }

    fn loss(&self) -> Markup {
        let shown = thin(&self.losses);
        let most = shown.iter().fold(0f32, |most, (_, loss)| most.max(*loss));
        let last = self.losses.last().map_or(0.0, |(_, loss)| f64::from(*loss));
        let end = shown.last().map_or(1, |(step, _)| *step) as f64;
        let point = |(step, loss): &(u64, f32)| Point {
            x: *step as f64,
            y: f64::from(*loss),
            said: String::new(),
        };
        html! {
            details id="loss-details" open {
                summary { "Training loss, now " (fixed(last, 3)) }
                (Chart {
                    id: "loss",
                    title: "Training loss by step",
                    x_label: "step",
                    y_label: "loss",
                    x_end: end,
                    y: (0.0, f64::from(most).max(1e-6) * 1.05),
                    lines: vec![Line { name: "loss".into(), points: shown.iter().map(point).collect() }],
                    points: false,
                }.html())
            }
        }
    }
}

/// Points of a drawing are not more than its pixels: of long runs each stands for the mean of several.
fn thin(losses: &[(u64, f32)]) -> Vec<(u64, f32)> {
    const MOST: usize = 400;
    let together = losses.len().div_ceil(MOST).max(1);
    let mean = |chunk: &[(u64, f32)]| {
        let step = chunk.last().map_or(0, |(step, _)| *step);
        let sum: f32 = chunk.iter().map(|(_, loss)| loss).sum();
        (step, sum / chunk.len() as f32)
    };
    losses.chunks(together).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_run_is_thinned_to_means() {
        let losses: Vec<(u64, f32)> = (0..1000).map(|i| (i, (i % 2) as f32)).collect();
        let thin = thin(&losses);
        assert_eq!(thin.len(), 334);
        assert_eq!(thin.last().unwrap().0, 999);
        assert_eq!(super::thin(&[(3, 1.0)]), [(3, 1.0)]);
    }
}
