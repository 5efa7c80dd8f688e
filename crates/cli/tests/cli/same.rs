//! What must not change a result, and what must.

use std::collections::BTreeMap;
use std::fs;

use crate::lab::{CLASSES, Lab, METHODS};

/// For l2p, whose images all pass through the backbone anew each epoch.
fn augmented(method: &str) -> &'static str {
    match method {
        "l2p" => {
            "--set preprocess.train=random-resized-crop --set preprocess.scale=[0.3,1.0] \
             --set preprocess.ratio=[0.75,1.3333] --set preprocess.flip=true"
        }
        _ => "",
    }
}

#[test]
fn the_number_of_threads_changes_no_byte() {
    let lab = Lab::new();
    for method in METHODS {
        for threads in [1, 2] {
            let more = augmented(method);
            let line =
                format!("run {method}.toml --out {method}-{threads} --threads {threads} {more}");
            let said = lab.say(&line);
            assert_eq!(said.code, Some(0), "{line}: {}", said.err);
            let timing = lab.json(&format!("{method}-{threads}/timing.json"));
            assert_eq!(timing["threads"], threads);
        }
        for file in [
            "report.json",
            "predictions.csv",
            "accuracy.csv",
            "params.safetensors",
        ] {
            let one = lab.read(&format!("{method}-1/{file}"));
            assert!(
                one == lab.read(&format!("{method}-2/{file}")),
                "{method}: {file}"
            );
        }
    }
}

#[test]
fn another_seed_trains_other_parameters() {
    let lab = Lab::new();
    for method in ["linear", "l2p"] {
        lab.run(method, "one", "--overwrite");
        lab.run(method, "two", "--overwrite --set seed=2");
        let file = "params.safetensors";
        let (one, two) = (
            lab.read(&format!("one/{file}")),
            lab.read(&format!("two/{file}")),
        );
        assert_eq!(one.len(), two.len());
        assert!(one != two, "{method}: the seed changes nothing");
    }
}

#[test]
fn the_batch_at_test_changes_no_prediction() {
    let lab = Lab::new();
    for method in METHODS {
        let predicted: Vec<Vec<String>> = [1, 7, 64]
            .into_iter()
            .map(|batch| {
                let out = format!("{method}-{batch}");
                lab.run(method, &out, &format!("--set data.eval_batch={batch}"));
                let rows = lab.predictions(&out).into_iter();
                rows.map(|[_, _, predicted, _]| predicted).collect()
            })
            .collect();
        let kinds: std::collections::BTreeSet<&String> = predicted[0].iter().collect();
        assert!(
            kinds.len() > 1,
            "{method} always says {kinds:?}, which proves nothing"
        );
        assert_eq!(predicted[0], predicted[1], "{method}");
        assert_eq!(predicted[0], predicted[2], "{method}");
    }
}

#[test]
fn the_order_of_the_test_images_changes_no_prediction() {
    let lab = Lab::new();
    // The same images under names that sort the other way round.
    let mut old_names = BTreeMap::new();
    for class in CLASSES {
        let names = lab.names(&format!("images/test/{class}"));
        for (k, name) in names.iter().rev().enumerate() {
            let (old, new) = (
                format!("test/{class}/{name}"),
                format!("test/{class}/{k}.png"),
            );
            fs::create_dir_all(lab.path(&format!("turned/test/{class}"))).unwrap();
            let to = lab.path(&format!("turned/{new}"));
            fs::copy(lab.path(&format!("images/{old}")), to).unwrap();
            old_names.insert(new, old);
        }
        let train = format!("train/{class}");
        fs::create_dir_all(lab.path(&format!("turned/{train}"))).unwrap();
        for name in lab.names(&format!("images/{train}")) {
            let file = format!("{train}/{name}");
            let to = lab.path(&format!("turned/{file}"));
            fs::copy(lab.path(&format!("images/{file}")), to).unwrap();
        }
    }
    for method in METHODS {
        // Three to a batch, so that each image meets others than before.
        lab.run(method, "before", "--overwrite --set data.eval_batch=3");
        let turned = "--overwrite --set data.eval_batch=3 --set data.path=turned";
        lab.run(method, "after", turned);
        let rows = |run: &str| lab.predictions(run).into_iter();
        let before: BTreeMap<String, String> = rows("before")
            .map(|[image, _, predicted, _]| (image, predicted))
            .collect();
        let after: BTreeMap<String, String> = rows("after")
            .map(|[image, _, predicted, _]| (old_names[&image].clone(), predicted))
            .collect();
        assert_eq!(before, after, "{method}");
        assert!(
            lab.predictions("before")[0][0] != old_names[&lab.predictions("after")[0][0]],
            "the order is the same"
        );
    }
}
