//! What a run took.

use maud::{Markup, html};

use crate::number::{count, megabytes, seconds};
use crate::record::{Run, TaskTime, Timing};

/// Counts of the report, in its order, as people call them.
pub const COUNTS: [(&str, &str); 6] = [
    ("trainable_parameters", "trainable parameters"),
    ("backbone_parameters", "frozen parameters of the backbone"),
    ("optimizer_steps", "steps of the optimiser"),
    ("images_trained", "images in those steps"),
    ("images_evaluated", "images predicted, over all sessions"),
    ("images_skipped", "unreadable images left out"),
];

/// Counts, then seconds where they are at hand.
pub fn cost(run: &Run) -> Markup {
    html! {
        dl class="facts" {
            @for (field, name) in COUNTS {
                @if let Some(value) = run.count(field) {
                    div { dt { (name) } dd { data value=(value) { (count(value)) } } }
                }
            }
            @if let Some(timing) = &run.timing { (whole(timing)) }
        }
        @if let Some(timing) = &run.timing { (tasks(run, timing)) }
    }
}

fn whole(timing: &Timing) -> Markup {
    html! {
        div { dt { "in all" } dd { (seconds(timing.seconds)) } }
        div { dt { "of it until the backbone was there" } dd { (seconds(timing.load_seconds)) } }
        div { dt { "threads" } dd { (timing.threads) } }
        @if let Some(bytes) = timing.peak_memory_bytes {
            div { dt { "peak memory" } dd { (megabytes(bytes)) } }
        }
        @if timing.stored_features {
            div { dt { "features" } dd { "from the store: no image was looked at" } }
        }
    }
}

fn tasks(run: &Run, timing: &Timing) -> Markup {
    let rate = |images: u64, time: f64| match timing.stored_features {
        true => String::new(),
        false => format!("{:.0}", images as f64 / time.max(1e-9)),
    };
    let cells = |time: &TaskTime| {
        html! {
            td { (count(time.train_images)) } td { (seconds(time.train_seconds)) }
            td { (rate(time.train_images, time.train_seconds)) }
            td { (count(time.eval_images)) } td { (seconds(time.eval_seconds)) }
            td { (rate(time.eval_images, time.eval_seconds)) }
        }
    };
    html! {
        div class="scroll" tabindex="0" role="region" aria-label="Time task by task" {
            table class="numbers" {
                thead { tr {
                    th scope="col" { "task" }
                    th scope="col" { "learned, images" } th scope="col" { "time" } th scope="col" { "per s" }
                    th scope="col" { "tested, images" } th scope="col" { "time" } th scope="col" { "per s" }
                } }
                tbody {
                    @for (t, time) in timing.tasks.iter().enumerate() {
                        tr { th scope="row" { (run.task_name(t)) } (cells(time)) }
                    }
                }
            }
        }
    }
}
