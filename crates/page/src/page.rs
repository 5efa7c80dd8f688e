//! The page: its parts in order, and everything it needs inside it.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::conditions::{self, Difference};
use crate::live::Now;
use crate::number::{count, of};
use crate::record::Run;
use crate::{accuracy, confusion, cost, forgetting, pools, summary, worst};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
/// A candle, so that a browser asks nobody for an icon.
const ICON: &str = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Cpath d='M8 1c2 3 2.5 4.5 0 6-2.5-1.5-2-3 0-6z' fill='%23d9822b'/%3E%3Cpath d='M5.5 8h5v7h-5z' fill='%238a94a3'/%3E%3C/svg%3E";

/// What a page is made of.
#[derive(Debug, Default)]
pub struct Page<'a> {
    /// The title of several runs; one run is its own.
    pub title: &'a str,
    /// At least one.
    pub runs: &'a [&'a Run],
    /// In what several runs differ; `None` where that was not looked at, and nothing is said of it.
    pub differences: Option<&'a [Difference]>,
    /// HTML that stands as it is behind the table of several runs.
    pub comparison: Option<String>,
    /// Where a run is that goes on; the page then asks for more.
    pub now: Option<Now>,
}

impl Page<'_> {
    /// The whole file.
    pub fn html(&self) -> String {
        let live = self.now.as_ref().map(|now| now.revision);
        // Nothing may be fetched; a page that watches a run asks the server it came from.
        let policy = format!(
            "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'{}",
            if live.is_some() {
                "; connect-src 'self'"
            } else {
                ""
            }
        );
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta http-equiv="Content-Security-Policy" content=(policy);
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    link rel="icon" href=(PreEscaped(ICON));
                    title { (self.heading()) " · candlewick" }
                    style { (PreEscaped(STYLE)) }
                }
                body data-live=[live] {
                    a class="skip" href="#main" { "To the numbers" }
                    @if let Some(now) = &self.now {
                        div id="now" { (now.markup()) }
                    }
                    main id="main" { (self.inside()) }
                    (self.data())
                    script { (PreEscaped(SCRIPT)) }
                }
            }
        }
        .into_string()
    }

    /// What is inside `main`.
    pub fn main(&self) -> String {
        self.inside().into_string()
    }

    fn heading(&self) -> String {
        match self.runs {
            [run] => format!("{} on {}", run.report.method, run.fact("backbone")),
            _ => self.title.to_owned(),
        }
    }

    fn inside(&self) -> Markup {
        html! {
            header {
                p class="mark" { "candlewick" }
                h1 { (self.heading()) }
                @match self.runs {
                    [run] => { p class="lead" { (described(run)) } }
                    runs => { p class="lead" { (of(runs.len(), "run")) ": " (runs.iter().map(|r| r.name.as_str()).collect::<Vec<_>>().join(", ")) } }
                }
            }
            @match self.runs {
                [] => { p { "There is nothing to show yet." } }
                [run] => { (one(run)) }
                runs => { (self.several(runs)) }
            }
            footer {
                p {
                    "Accuracies are in percent. Everything here is also in the files of the run"
                    @if self.runs.len() != 1 { "s" } "."
                    span class="saves" {
                        @for (n, run) in self.runs.iter().enumerate() {
                            " " button type="button" data-save=(n) hidden { "Save report.json" @if self.runs.len() > 1 { " of " (run.name) } }
                        }
                    }
                }
            }
        }
    }

    fn several(&self, runs: &[&Run]) -> Markup {
        let bars: Vec<String> = self
            .differences
            .unwrap_or_default()
            .iter()
            .filter(|d| d.incomparable)
            .map(|d| d.field.replace('_', " "))
            .collect();
        html! {
            (contents(&["Metrics", "Curves", "Conditions", "Runs"]))
            section id="metrics" {
                h2 { "Metrics" }
                @if !bars.is_empty() {
                    p class="verdict bad" { strong { "Not comparable." } " These runs differ in " (bars.join(", ")) "." }
                } @else if self.differences.is_some() {
                    p class="verdict good" { "Comparable: same weights, preprocessing, split and class order." }
                }
                (summary::table(runs, self.differences))
                @if let Some(fragment) = &self.comparison {
                    details {
                        summary { "Which differences are more than chance" }
                        div class="scroll" tabindex="0" role="region" aria-label="The comparison" { (PreEscaped(fragment)) }
                    }
                }
            }
            section id="curves" {
                h2 { "Curves" }
                p class="note" { "Accuracy on all classes seen, each image counting once." }
                (accuracy::curve(runs, "curve"))
            }
            section id="conditions" {
                h2 { "Conditions" }
                (conditions::several(runs, self.differences.unwrap_or_default()))
            }
            section id="runs" {
                h2 { "Runs" }
                @for (n, run) in runs.iter().enumerate() {
                    details class="run" id=(format!("run-{n}")) {
                        summary { (run.name) }
                        p class="lead" { (run.report.method) ", " (described(run)) }
                        (summary::figures(run))
                        @for (_, title, part) in parts(run, &format!("curve-{n}")) {
                            section { h3 { (title) } (part) }
                        }
                    }
                }
            }
        }
    }

    /// The reports as they are, for programs and for the buttons that save them.
    fn data(&self) -> Markup {
        let mut text = String::from("[");
        for (n, run) in self.runs.iter().enumerate() {
            let comma = if n > 0 { "," } else { "" };
            let name = serde_json::Value::from(run.name.as_str());
            text += &format!("{comma}{{\"name\":{name},\"report\":{}}}", run.text.trim());
        }
        text.push(']');
        // The only sign that could end the element; outside strings JSON has none of it.
        let text = text.replace('<', "\\u003c");
        html! { script type="application/json" id="reports" { (PreEscaped(text)) } }
    }
}

/// One run by itself.
fn one(run: &Run) -> Markup {
    let parts = parts(run, "curve");
    let titles: Vec<&str> = parts.iter().map(|(id, ..)| *id).collect();
    html! {
        (contents(&titles))
        section id="summary" {
            h2 class="unseen" { "Summary" }
            (summary::figures(run))
        }
        @for (id, title, part) in &parts {
            section id=(anchor(id)) { h2 { (title) } (part) }
        }
    }
}

/// The sections of a run that it has something for: short name, title, content.
fn parts(run: &Run, curve: &str) -> Vec<(&'static str, &'static str, Markup)> {
    let mut parts = vec![(
        "Accuracy",
        "Accuracy as tasks arrive",
        html! { (accuracy::curve(&[run], curve)) (accuracy::sessions(run)) },
    )];
    parts.push(("Matrix", "Accuracy task by task", accuracy::matrix(run)));
    if let Some(part) = forgetting::classes(run) {
        parts.push(("Classes", "What was forgotten, class by class", part));
    }
    let (tasks, pairs) = (confusion::tasks(run), confusion::pairs(run));
    if tasks.is_some() || pairs.is_some() {
        let part = html! {
            @if let Some(tasks) = tasks { (tasks) }
            @if let Some(pairs) = pairs { (pairs) }
        };
        parts.push(("Confusion", "What is taken for what", part));
    }
    if let Some(part) = worst::images(run) {
        parts.push(("Images", "Most confidently wrong", part));
    }
    if let Some(part) = pools::pools(run) {
        parts.push(("Prompts", "Use of the prompts", part));
    }
    parts.push(("Cost", "Cost and time", cost::cost(run)));
    parts.push(("Conditions", "Conditions", conditions::one(run)));
    parts
}

fn anchor(name: &str) -> String {
    name.to_lowercase()
}

fn contents(names: &[&str]) -> Markup {
    html! {
        nav aria-label="On this page" {
            ul { @for name in names { li { a href=(format!("#{}", anchor(name))) { (name) } } } }
        }
    }
}

/// What was learned, in a line.
fn described(run: &Run) -> String {
    let report = &run.report;
    let classes = run.classes_seen().last().copied().unwrap_or(0);
    let tests: u64 = report.tasks.iter().map(|t| t.test_images).sum();
    let blocks = run.fact("depth").parse().unwrap_or(0);
    format!(
        "{}, {} in {}, {} test images; {}, {}, {}; seed {}",
        run.scenario(),
        of(classes, "class"),
        of(report.tasks.len(), "task"),
        count(tests),
        run.fact("backbone"),
        of(blocks, "block"),
        run.fact("dtype"),
        run.fact("seed"),
    )
}
