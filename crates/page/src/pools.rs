//! What test images take from pools of prompts.

use maud::{Markup, html};

use crate::number::{fixed, of};
use crate::record::{Pool, Run};

/// More entries than this have cells without numbers.
const NUMBERED: usize = 16;

/// `None` for methods without pools.
pub fn pools(run: &Run) -> Option<Markup> {
    let pools = &run.report.pools;
    if pools.is_empty() {
        return None;
    }
    Some(html! { @for pool in pools { (one(run, pool)) } })
}

fn one(run: &Run, pool: &Pool) -> Markup {
    let entries = pool.chosen.first().map_or(0, Vec::len);
    let last = |values: &[f64]| values.last().copied().unwrap_or(f64::NAN);
    html! {
        div class="pool" {
            h4 { "Pool " q { (pool.pool) } @if pool.collapsed { " " strong class="flag" { "collapsed" } } }
            p {
                (fixed(last(&pool.effective), 1)) " of " (of(entries, "entry"))
                " in use after the last task, mean similarity of query and key " (fixed(last(&pool.similarity), 3)) "."
                @if pool.collapsed { " Nearly all test images take the same entries." }
            }
            (taken(run, pool, entries))
            (history(run, pool))
        }
    }
}

fn taken(run: &Run, pool: &Pool, entries: usize) -> Markup {
    let images = |t: usize| {
        let task = run.report.tasks.get(t);
        task.map_or(1, |task| task.test_images).max(1) as f64
    };
    let share = |t: usize, taken: f64| 100.0 * taken / images(t);
    let rows = || pool.chosen.iter().enumerate();
    // The darkest cell of a pool is its most taken entry: weights of a hundred components are all small.
    let most = rows()
        .flat_map(|(t, row)| row.iter().map(move |taken| share(t, *taken)))
        .fold(1e-12, f64::max);
    let caption = format!(
        "What the test images of a task (row) take of the entries (column), in percent of the images; full shade is {} %",
        fixed(most, 0)
    );
    html! {
        p class="note" { (caption) "." }
        div class="scroll" tabindex="0" role="region" aria-label=(format!("Use of pool {}", pool.pool)) {
            table class=(if entries > NUMBERED { "heat dense" } else { "heat" }) {
                thead { tr {
                    th scope="col" class="corner" { "task" }
                    @for m in 0..entries {
                        th scope="col" { @if entries <= NUMBERED || (m + 1) % 5 == 0 { (m + 1) } }
                    }
                } }
                tbody {
                    @for (t, row) in rows() {
                        tr {
                            th scope="row" { (run.task_name(t)) }
                            @for (m, taken) in row.iter().enumerate() {
                                td class="shade" style=(format!("--v:{:.1}%", 100.0 * share(t, *taken) / most))
                                    title=(format!("task {}, entry {}: {} %", run.task_name(t), m + 1, fixed(share(t, *taken), 1))) {
                                    @if entries <= NUMBERED { (fixed(share(t, *taken), 0)) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn history(run: &Run, pool: &Pool) -> Markup {
    let row = |name: &str, values: &[f64], digits: usize| {
        html! {
            tr {
                th scope="row" { (name) }
                @for value in values { td { data value=(value) { (fixed(*value, digits)) } } }
            }
        }
    };
    html! {
        details {
            summary { "Task by task" }
            div class="scroll" tabindex="0" role="region" aria-label=(format!("Pool {} task by task", pool.pool)) {
                table class="numbers" {
                    thead { tr {
                        th scope="col" { "after task" }
                        @for t in 0..pool.effective.len() { th scope="col" { (run.task_name(t)) } }
                    } }
                    tbody {
                        (row("entries in use", &pool.effective, 2))
                        (row("similarity", &pool.similarity, 3))
                    }
                }
            }
        }
    }
}
