//! What was forgotten of each class.

use maud::{Markup, html};

use crate::number::percent;
use crate::record::{Class, Run};

/// Classes that are shown at once; the others unfold.
const SHOWN: usize = 12;

/// Accuracy on one class: when it was learned, at its best, and at the end.
struct Fate<'a> {
    class: &'a Class,
    learned: f64,
    best: f64,
    last: f64,
}

impl Fate<'_> {
    fn forgotten(&self) -> f64 {
        self.best - self.last
    }
}

/// `None` where accuracies of classes are not on record.
pub fn classes(run: &Run) -> Option<Markup> {
    let mut fates: Vec<Fate> = run.classes.iter().filter_map(fate).collect();
    if fates.is_empty() {
        return None;
    }
    // The sort is stable: equal ones stay in order of arrival.
    fates.sort_by(|a, b| {
        b.forgotten()
            .total_cmp(&a.forgotten())
            .then(a.last.total_cmp(&b.last))
    });
    let (first, rest) = fates.split_at(fates.len().min(SHOWN));
    Some(html! {
        (table(first, "Classes by what was forgotten of them"))
        @if !rest.is_empty() {
            details {
                summary { "The other " (rest.len()) " classes" }
                (table(rest, "The other classes"))
            }
        }
    })
}

fn fate(class: &Class) -> Option<Fate<'_>> {
    let known = || class.after.iter().flatten().copied();
    Some(Fate {
        class,
        learned: known().next()?,
        best: known().fold(f64::NEG_INFINITY, f64::max),
        last: known().last()?,
    })
}

fn table(fates: &[Fate], caption: &str) -> Markup {
    html! {
        div class="scroll" tabindex="0" role="region" aria-label=(caption) {
            table class="numbers classes" {
                thead { tr {
                    th scope="col" { "class" }
                    th scope="col" { "task" }
                    th scope="col" class="more" { "test images" }
                    th scope="col" { "learned, %" }
                    th scope="col" class="more" { "best, %" }
                    th scope="col" { "last, %" }
                    th scope="col" { "forgotten" }
                    th scope="col" class="bars more" { "last, and what was lost" }
                } }
                tbody { @for fate in fates { (row(fate)) } }
            }
        }
    }
}

fn row(fate: &Fate) -> Markup {
    html! {
        tr {
            th scope="row" { (fate.class.class) }
            td { (fate.class.task) }
            td class="more" { (fate.class.test_images) }
            td { (percent(fate.learned)) }
            td class="more" { (percent(fate.best)) }
            td { (percent(fate.last)) }
            td { (percent(fate.forgotten())) }
            td class="bars more" aria-hidden="true" {
                span class="bar" style=(format!("--last:{:.1}%;--best:{:.1}%", fate.last, fate.best)) {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::confusion::tests::run;

    #[test]
    fn classes_come_by_what_was_lost() {
        let mut run = run();
        assert!(classes(&run).is_none(), "nothing is on record");
        run.classes(b"class,task,test_images,after_1,after_2\na,1,2,100,50\nb,1,2,50,100\nc,2,2,,50\nd,2,2,,50\n")
            .unwrap();
        let fates: Vec<f64> = run
            .classes
            .iter()
            .filter_map(fate)
            .map(|f| f.forgotten())
            .collect();
        assert_eq!(fates, [50.0, 0.0, 0.0, 0.0]);
        let html = classes(&run).unwrap().into_string();
        let order: Vec<usize> = ["a", "c", "d", "b"]
            .iter()
            .filter_map(|c| html.find(&format!(r#"<th scope="row">{c}</th>"#)))
            .collect();
        assert!(order.len() == 4 && order.is_sorted(), "{html}");
    }
}
