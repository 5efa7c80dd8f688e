//! RanPAC against its authors' code.

use candlewick_methods::ranpac::{RanPacCompat, RidgeHead};
use candlewick_methods::{Classifier, MethodConfig, RanPac};
use candlewick_stats::Ridge;

use crate::given::{Tasks, dense, near, predicted};
use crate::lab::conforms;

pub fn ranpac(projection: usize) -> RanPac {
    RanPac {
        projection,
        ridge: None,
        compat: None,
        tuning: None,
    }
}

fn head(tasks: &Tasks, config: &RanPac) -> RidgeHead {
    RidgeHead::new(config, 32, tasks.get("in.W_rand"), None).unwrap()
}

fn transposed(values: &[f32], columns: usize) -> Vec<f32> {
    let rows = values.len() / columns;
    (0..values.len())
        .map(|i| values[i % rows * columns + i / rows])
        .collect()
}

#[test]
fn ranpac_matches_its_authors_code() {
    let tasks = Tasks::new();
    for (name, width) in [("rp", 200), ("norp", 32)] {
        // Whether images or sums are kept.
        for folded in [false, true] {
            let mut head = head(&tasks, &ranpac(if name == "rp" { width } else { 0 }));
            if folded {
                head.statistics_mut().fold();
            }
            for t in 0..3 {
                let task = tasks.task(t, false);
                let want = |part: &str| tasks.get(&format!("{name}.task{t}.{part}"));
                let what = |part: &str| format!("{name} {t} {part} {folded}");
                head.grow(&task.info).unwrap();
                // The error is over all ten columns there, over the task's here; the others are 0 on both sides.
                let errors: Vec<f32> = head
                    .validation(task.seen())
                    .iter()
                    .map(|e| (e / 10.0) as f32)
                    .collect();
                near(&what("val_mse"), &errors[5..], &want("val_mse")[5..], 1e-4);
                head.learn(task.seen()).unwrap();
                assert_eq!(head.ridge().log10().round() as f32, want("ridge_log10")[0]);
                let gram = head.statistics().gram();
                let rows = match (name, t) {
                    ("rp", 0 | 1) => "G_rows0_20",
                    _ => "G",
                };
                let rows = want(rows);
                near(&what("G"), &dense(&gram, rows.len() / width), &rows, 1e-5);
                if (name, t) == ("rp", 0) {
                    let trace: f32 = (0..width).map(|i| gram.get(i, i)).sum();
                    near(&what("trace"), &[trace], &want("G_trace"), 1e-5);
                }
                let c = task.info.classes.end;
                near(
                    &what("W_o"),
                    head.head(),
                    &transposed(&want("W_o"), width),
                    1e-3,
                );
                let scores = head.scores(&tasks.test()).unwrap();
                near(&what("logits"), &scores, &want("logits"), 1e-3);
                assert_eq!(predicted(&scores, c), want("pred"));
            }
            head.statistics_mut().fold();
            let candlewick_stats::Kept::Sums(_, sums) = head.statistics().kept() else {
                panic!("folded");
            };
            let q = tasks.get(&format!("{name}.task2.Q"));
            near("Q", &transposed(&sums.concat(), width), &q, 1e-5);
        }
    }
}

#[test]
fn the_cosine_head_is_pilots() {
    let tasks = Tasks::new();
    let config = RanPac {
        compat: Some(RanPacCompat::Pilot),
        ..ranpac(200)
    };
    let mut head = head(&tasks, &config);
    let mut differ = false;
    for t in 0..3 {
        let task = tasks.task(t, false);
        head.grow(&task.info).unwrap();
        head.learn(task.seen()).unwrap();
        let got = predicted(&head.scores(&tasks.test()).unwrap(), task.info.classes.end);
        assert_eq!(got, tasks.get(&format!("rp.task{t}.pilot_cosine_pred")));
        differ |= got != tasks.get(&format!("rp.task{t}.pred"));
    }
    assert!(differ, "the switch changes something");
}

/// For a fixed ridge the last head is one of all images, whatever their order.
#[test]
fn ranpac_does_not_depend_on_the_order_of_tasks() {
    let tasks = Tasks::new();
    let config = RanPac {
        ridge: Some(10.0),
        ..ranpac(200)
    };
    let learned = |order: [usize; 3], folded: bool| {
        let mut head = head(&tasks, &config);
        if folded {
            head.statistics_mut().fold();
        }
        for t in order {
            let task = tasks.task(t, false);
            head.grow(&task.info).unwrap();
            head.learn(task.seen()).unwrap();
        }
        (
            head.head().to_vec(),
            predicted(&head.scores(&tasks.test()).unwrap(), 10),
        )
    };
    let (want, labels) = learned([0, 1, 2], false);
    for order in [[2, 1, 0], [1, 2, 0], [0, 1, 2]] {
        for folded in [false, true] {
            let (got, found) = learned(order, folded);
            near("head", &got, &want, 1e-3);
            assert_eq!(found, labels);
        }
    }
}

/// Statistics of 1, 2 and 5 shards of every task predict alike.
#[test]
fn shards_predict_alike() {
    let tasks = Tasks::new();
    let config = ranpac(200);
    for folded in [false, true] {
        for shards in [1, 2, 5] {
            let mut whole = head(&tasks, &config);
            for t in 0..3 {
                let task = tasks.task(t, false);
                whole.grow(&task.info).unwrap();
                let size = task.labels.len().div_ceil(shards);
                for (rows, labels) in task.rows.chunks(size * 32).zip(task.labels.chunks(size)) {
                    let mut part = head(&tasks, &config);
                    let part: &mut Ridge = part.statistics_mut();
                    if folded {
                        part.fold();
                    }
                    part.add(rows, labels).unwrap();
                    whole.statistics_mut().merge(part).unwrap();
                }
                let log = tasks.get(&format!("rp.task{t}.ridge_log10"))[0];
                whole.solve(10f64.powi(log as i32)).unwrap();
                let scores = whole.scores(&tasks.test()).unwrap();
                let want = tasks.get(&format!("rp.task{t}.pred"));
                assert_eq!(
                    predicted(&scores, task.info.classes.end),
                    want,
                    "{shards} {folded}"
                );
            }
        }
    }
}

/// Few images keep features, many sums; the last head changes from one to the other on the way.
#[test]
fn ranpac_keeps_the_laws_in_both_forms() {
    for projection in [0, 300, 1000] {
        conforms(MethodConfig::RanPac(ranpac(projection)), false).unwrap();
    }
}
