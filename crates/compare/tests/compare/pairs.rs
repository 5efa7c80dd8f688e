//! Each way in which two numbers are not of the same thing.

use candlewick_compare::{Comparison, Fact, Published, differences, format};
use candlewick_core::Report;

use crate::lab::{changed, entry, pair, report};

/// Barred in every column because of `fields` alone, in a table that says so, and by the rule that `candlewick report` shares.
fn barred(other: Report, fields: &[&str]) {
    let first = report(50.0);
    let found: Vec<_> = differences(&[&first, &other])
        .into_iter()
        .filter(|d| d.incomparable)
        .map(|d| d.field)
        .collect();
    assert_eq!(found, fields);

    let comparison = pair(first, other);
    let found: Vec<_> = comparison.bars(0, 1).into_iter().map(|b| b.field).collect();
    assert_eq!(found, fields);
    assert!(!comparison.is_plain());
    for metric in &comparison.metrics {
        let (a, b) = (comparison.marks(0, metric), comparison.marks(1, metric));
        assert!(!a.is_empty() && a != b, "{metric}: {a:?} {b:?}");
    }
    let text = format::markdown(&comparison);
    assert!(text.contains("NOT ALL COMPARABLE"), "{text}");
    let row = text
        .lines()
        .find(|line| line.contains(" b: simplecil "))
        .unwrap();
    let marks = comparison.marks(1, "last_accuracy_micro").join(" ");
    let marked = row.matches(&format!("50.00 [{marks}]")).count();
    assert_eq!(marked, 3, "three accuracies are 50: {row}");
    for field in fields {
        assert!(text.contains(&format!("` {field}: ")), "{text}");
    }
}

#[test]
fn a_pair_that_is_equal_in_all_bears_no_mark() {
    // What forbids nothing: another seed, device, method, cost, and a version with the same numerics.
    let other = changed(|r| {
        r.method = "linear".into();
        r.fingerprint.seed = 2;
        r.fingerprint.device = "cuda".into();
        r.fingerprint.code = "0.2.0+ba9876543210".into();
        r.cost.trainable_parameters = 7;
    });
    assert!(
        differences(&[&report(50.0), &other])
            .iter()
            .all(|d| !d.incomparable)
    );
    let comparison = pair(report(50.0), other);
    assert!(comparison.is_plain() && comparison.bars(0, 1).is_empty());
    assert!(
        comparison
            .metrics
            .iter()
            .all(|m| comparison.marks(0, m).is_empty())
    );
    let text = format::markdown(&comparison);
    assert!(text.contains("\nComparable: "), "{text}");
    assert!(
        text.contains("differ in seed, no bar to comparison: 1 (1), 2 (2)"),
        "{text}"
    );
    assert!(!text.contains('[') && !text.contains('`'), "{text}");
}

#[test]
fn other_weights() {
    barred(
        changed(|r| r.fingerprint.weights = "ab".repeat(32)),
        &["weights"],
    );
    barred(changed(|r| r.fingerprint.depth = 5), &["depth"]);
}

#[test]
fn other_pixels() {
    barred(
        changed(|r| r.fingerprint.preprocess = "ab".repeat(32)),
        &["preprocess"],
    );
}

#[test]
fn other_split() {
    barred(
        changed(|r| r.fingerprint.split = "ab".repeat(32)),
        &["split"],
    );
    barred(changed(|r| r.cost.images_skipped = 1), &["skipped images"]);
}

#[test]
fn other_class_order() {
    barred(
        changed(|r| r.fingerprint.class_order = "ab".repeat(32)),
        &["class_order"],
    );
}

#[test]
fn compat_switch_on() {
    let switch = "l2p.batch_vote=always";
    barred(
        changed(|r| r.fingerprint.compat.push(switch.into())),
        &["compat"],
    );
}

#[test]
fn other_precision() {
    barred(changed(|r| r.fingerprint.dtype = "bf16".into()), &["dtype"]);
}

#[test]
fn other_code_with_changed_numerics() {
    let other = changed(|r| {
        r.fingerprint.code = "0.2.0+ba9876543210".into();
        r.fingerprint.numerics = Some(99);
    });
    barred(other, &["numerics"]);
}

#[test]
fn code_whose_numerics_are_not_known() {
    let old = |code: &str| {
        changed(|r| {
            r.fingerprint.numerics = None;
            r.fingerprint.code = code.into();
        })
    };
    barred(old("0.0.9+0123456789ab"), &["numerics"]);
    // Of the same commit as the other, but not said to be of the same numerics.
    barred(old("0.1.0+0123456789ab"), &["numerics"]);
    let both = |a: &str, b: &str| pair(old(a), old(b)).bars(0, 1).len();
    assert_eq!(
        both("0.0.9+0123456789ab", "0.0.9+0123456789ab"),
        0,
        "one commit is one program"
    );
    assert_eq!(both("0.0.9+0123456789ab", "0.0.9+ba9876543210"), 1);
    assert_eq!(
        both("0.0.9+0123456789ab-dirty", "0.0.9+0123456789ab-dirty"),
        1
    );
    assert_eq!(
        both("0.0.9", "0.0.9"),
        1,
        "a version without its commit may be any"
    );
}

#[test]
fn other_metric() {
    let name = "average_incremental_accuracy";
    let other = changed(|r| {
        r.definitions.insert(
            name.into(),
            "mean over sessions t of macro accuracy(t)".into(),
        );
    });
    let found = differences(&[&report(50.0), &other]);
    assert_eq!(found.len(), 1);
    assert!(found[0].incomparable && found[0].field == format!("definition of {name}"));

    let comparison = pair(report(50.0), other);
    assert!(
        comparison.bars(0, 1).is_empty(),
        "the other columns are what they were"
    );
    let bars = comparison.bars_in(name, 0, 1);
    assert_eq!(bars.len(), 1);
    assert!(
        bars[0].a.contains("micro") && bars[0].b.contains("macro"),
        "{bars:?}"
    );
    assert!(comparison.bars_in("last_accuracy_micro", 0, 1).is_empty());
    let text = format::markdown(&comparison);
    assert!(
        text.contains("50.00 [a]") && text.contains("50.00 [b]"),
        "{text}"
    );
    assert!(
        text.contains(&format!(
            "`b` definition of {name}: mean over sessions t of macro"
        )),
        "{text}"
    );
}

#[test]
fn other_scenario() {
    let other = changed(|r| {
        r.scenario = Some("task-incremental".into());
        for text in r.definitions.values_mut() {
            *text += "; an image is predicted among the classes of its own task";
        }
    });
    let bars = pair(report(50.0), other).bars_in("forgetting", 0, 1);
    let fields: Vec<&str> = bars.iter().map(|bar| bar.field.as_str()).collect();
    assert_eq!(fields, ["scenario", "definition of forgetting"]);
}

/// A row of its own for each seed's class order is what `stream.order = "seed"` gives; other orders on the other side bar.
#[test]
fn the_orders_of_several_seeds_are_compared_as_one() {
    let seeds = |orders: &[&str]| {
        let run = |(i, order): (usize, &&str)| candlewick_compare::Run {
            report: changed(|r| {
                r.fingerprint.seed = i as u64;
                r.fingerprint.class_order = order.repeat(32);
            }),
            predictions: None,
        };
        let runs = orders.iter().enumerate().map(run).collect();
        candlewick_compare::Entry::of_runs("seeds".into(), runs)
    };
    let bars = |a: &[&str], b: &[&str]| {
        let comparison = Comparison::new(vec![seeds(a), seeds(b)]).unwrap();
        comparison.bars(0, 1).len()
    };
    assert_eq!(bars(&["aa", "bb"], &["aa", "bb"]), 0);
    assert_eq!(bars(&["aa", "bb"], &["aa", "cc"]), 1);
    assert_eq!(bars(&["aa", "bb"], &["aa"]), 1);
}

#[test]
fn runs_of_one_row_that_differ_in_what_should_be_one_compare_with_nothing() {
    let run = |weights: &str| candlewick_compare::Run {
        report: changed(|r| r.fingerprint.weights = weights.repeat(32)),
        predictions: None,
    };
    let mixed = || candlewick_compare::Entry::of_runs("mixed".into(), vec![run("aa"), run("bb")]);
    let comparison = Comparison::new(vec![mixed(), mixed()]).unwrap();
    assert_eq!(comparison.bars(0, 1).len(), 1);
    let text = format::markdown(&comparison);
    assert!(
        text.contains("`a?` weights: differs among its own runs"),
        "{text}"
    );
    let alone = format::markdown(&Comparison::new(vec![mixed()]).unwrap());
    assert!(alone.contains("differs among its own runs"), "{alone}");
}

const PAPER: &str = r#"
data = "Six"
classes = 6
[protocol.p]
source = "somewhere"
sure = "log"
weights = "vit-micro"
weights_sha256 = "1111111111111111111111111111111111111111111111111111111111111111"
depth = 6
split = "theirs"
split_sha256 = "3333333333333333333333333333333333333333333333333333333333333333"
order = "natural"
class_order_sha256 = "4444444444444444444444444444444444444444444444444444444444444444"
increment = 2
compat = []
precision = "f32"
weighting = "micro"
"#;

fn published(rows: &str) -> Vec<candlewick_compare::Entry> {
    let file = Published::parse(&format!("{PAPER}{rows}"), "paper.toml").unwrap();
    file.rows.into_iter().map(|(_, entry)| entry).collect()
}

fn with_paper(rows: &str, run: Report) -> Comparison {
    let mut entries = published(rows);
    entries.push(entry("ours", run));
    Comparison::new(entries).unwrap()
}

fn fields(comparison: &Comparison, metric: &str, a: usize, b: usize) -> Vec<String> {
    let bars = comparison.bars_in(metric, a, b);
    bars.into_iter().map(|bar| bar.field).collect()
}

const ROW: &str = "[[result]]\nid = \"a\"\nmethod = \"simplecil\"\nprotocol = \"p\"\nlast = 40.0\n";

#[test]
fn a_published_row_is_compared_by_what_is_known_of_it() {
    let last = "last_accuracy_micro";
    // The pixels are not told.
    let comparison = with_paper(ROW, report(50.0));
    assert_eq!(fields(&comparison, last, 0, 1), ["preprocess"]);
    assert!(comparison.marks(0, last)[0].ends_with('?'));
    assert!(!comparison.marks(1, last)[0].ends_with('?'));
    // A preset by name is what a run with it has.
    let pilot = format!("{ROW}pixels = \"pilot\"\n");
    let hash = with_paper(&pilot, report(50.0)).entries[0].facts
        [&candlewick_compare::Aspect::Pixels]
        .exact
        .clone();
    let hash = hash.into_iter().next().unwrap();
    let same = changed(|r| r.fingerprint.preprocess = hash);
    let comparison = with_paper(&pilot, same.clone());
    assert!(fields(&comparison, last, 0, 1).is_empty() && comparison.is_plain());
    let text = format::markdown(&comparison);
    assert!(
        text.contains("Comparable: ") && text.contains("row 1, a: somewhere"),
        "{text}"
    );
    assert!(text.contains("authors' log"), "{text}");
    // Two presets of one meaning are one.
    let ranpac = with_paper(&format!("{ROW}pixels = \"ranpac\"\n"), same.clone());
    assert!(ranpac.is_plain());
    let clip = with_paper(&format!("{ROW}pixels = \"clip\"\n"), same);
    assert_eq!(fields(&clip, last, 0, 1), ["preprocess"]);
}

#[test]
fn what_a_published_row_leaves_out_is_flagged() {
    let bare = "[[result]]\nid = \"a\"\nmethod = \"m\"\nsource = \"s\"\nsure = \"second-hand\"\nlast = 1.0\naverage = 2.0\n\
                [[result]]\nid = \"b\"\nmethod = \"m\"\nsource = \"s\"\nsure = \"second-hand\"\nlast = 3.0\n";
    let comparison = with_paper(bare, report(50.0));
    let all = [
        "weights",
        "depth",
        "preprocess",
        "split",
        "class_order",
        "compat",
        "dtype",
        "definition of last_accuracy_micro",
    ];
    assert_eq!(fields(&comparison, "last_accuracy_micro", 0, 2), all);
    // Two of which nothing is known are not said to be alike.
    assert_eq!(fields(&comparison, "last_accuracy_micro", 0, 1), all);
    let text = format::markdown(&comparison);
    assert!(
        text.contains("second hand") && text.contains("weights: not known (row 1, 2)"),
        "{text}"
    );
    assert!(text.contains("Six, split not known"), "{text}");
}

#[test]
fn counts_and_tasks_tell_apart_what_has_no_hash() {
    let last = "last_accuracy_micro";
    let plain = PAPER.lines().filter(|line| !line.contains("sha256"));
    let plain = plain.collect::<Vec<_>>().join("\n");
    let rows = |more: &str| format!("{plain}\n{ROW}pixels = \"pilot\"\n{more}");
    let shown = |more: &str| {
        let file = Published::parse(&rows(more), "p").unwrap();
        let mut entries: Vec<_> = file.rows.into_iter().map(|(_, e)| e).collect();
        entries.push(entry("ours", report(50.0)));
        let comparison = Comparison::new(entries).unwrap();
        let text = format::markdown(&comparison);
        (fields(&comparison, last, 0, 1), text)
    };
    // Without hashes neither split nor order is known to be ours, whatever it is called.
    let (found, text) = shown("");
    assert_eq!(found, ["preprocess", "split", "class_order"]);
    assert!(text.contains("natural, tasks of 3 × 2 classes"), "{text}");
    let (_, text) = shown("images = [24000, 6000]\nincrement = 3\n");
    assert!(text.contains("natural, tasks of 2 × 3 classes"), "{text}");
}

#[test]
fn micro_and_macro_are_columns_of_their_own() {
    let rows = "[[result]]\nid = \"a\"\nmethod = \"m\"\nprotocol = \"p\"\nweighting = \"macro\"\nlast = 41.0\naverage = 42.0\n\
                [[result]]\nid = \"b\"\nmethod = \"m\"\nprotocol = \"p\"\nweighting = \"both\"\nlast = { mean = 43.0, std = 0.5 }\n";
    let comparison = with_paper(rows, report(50.0));
    assert_eq!(comparison.entries[0].cell("last_accuracy_micro"), None);
    assert_eq!(
        comparison.entries[0]
            .cell("last_accuracy_macro")
            .unwrap()
            .mean,
        41.0
    );
    let average = fields(&comparison, "average_incremental_accuracy", 0, 2);
    assert_eq!(
        average,
        ["preprocess", "definition of average_incremental_accuracy"]
    );
    for name in ["last_accuracy_micro", "last_accuracy_macro"] {
        let cell = comparison.entries[1].cell(name).unwrap();
        assert_eq!((cell.mean, cell.std), (43.0, Some(0.5)));
        assert!(
            cell.definition.same(&Fact::known(
                comparison.entries[2]
                    .cell(name)
                    .unwrap()
                    .definition
                    .shown
                    .clone()
            ))
        );
    }
}

/// Of what the program knows, no two rows with different weights, splits, orders or tasks stand side by side unmarked.
#[test]
fn published_results_are_flagged_against_each_other() {
    let rows = Published::open("imagenet-r").unwrap().rows;
    let at = |id: &str| rows.iter().position(|(known, _)| known == id).unwrap();
    let index = [
        "aper-simplecil-imagenet-r",
        "pilot-simplecil-imagenet-r",
        "ranpac-means-imagenet-r",
        "dualprompt-paper-imagenet-r",
        "dualprompt-torch-imagenet-r",
        "ranpac-full-imagenet-r",
    ]
    .map(at);
    let entries: Vec<_> = rows.iter().map(|(_, e)| e.clone()).collect();
    let comparison = Comparison::new(entries).unwrap();
    let bars = |a: usize, b: usize| {
        let bars = comparison.bars(index[a], index[b]);
        bars.into_iter().map(|bar| bar.field).collect::<Vec<_>>()
    };
    assert_eq!(bars(0, 1), ["weights", "class_order"]);
    // The same protocol by two names of one preset, but one is per image and the other per task.
    assert!(bars(1, 2).is_empty());
    assert_eq!(
        comparison.entries[index[2]].cell("last_accuracy_micro"),
        None
    );
    assert!(bars(3, 4).contains(&"split".to_owned()) && bars(3, 4).contains(&"compat".to_owned()));
    assert!(
        bars(2, 5).is_empty(),
        "one table of one paper: {:?}",
        bars(2, 5)
    );
}
