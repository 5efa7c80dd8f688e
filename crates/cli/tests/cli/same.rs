//! What must not change a result, and what must.

use std::collections::BTreeMap;
use std::fs;

use crate::lab::{CLASSES, FEW, Lab, METHODS, precisions};

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
    for precision in precisions() {
        for method in METHODS {
            let out = format!("{method}-{precision}");
            for threads in [1, 2] {
                let more = augmented(method);
                let line = format!(
                    "run {method}.toml --out {out}-{threads} --threads {threads} --set precision={precision} {more}"
                );
                let said = lab.say(&line);
                assert_eq!(said.code, Some(0), "{line}: {}", said.err);
                let timing = lab.json(&format!("{out}-{threads}/timing.json"));
                assert_eq!(timing["threads"], threads);
            }
            for file in [
                "report.json",
                "predictions.csv",
                "accuracy.csv",
                "classes.csv",
                "params.safetensors",
            ] {
                let one = lab.read(&format!("{out}-1/{file}"));
                let two = lab.read(&format!("{out}-2/{file}"));
                assert!(one == two, "{out}: {file}");
            }
        }
    }
}

/// If precision did not reach the backbone, the two would be byte for byte alike.
#[test]
fn the_precision_reaches_the_numbers_and_the_report() {
    let lab = Lab::new();
    if !precisions().contains(&"bf16") {
        return;
    }
    for method in FEW {
        for precision in ["auto", "f32", "bf16"] {
            let out = format!("{method}-{precision}");
            lab.run(method, &out, &format!("--set precision={precision}"));
            let resolved = match precision {
                "auto" => "f32",
                other => other,
            };
            let report = lab.json(&format!("{out}/report.json"));
            assert_eq!(report["fingerprint"]["dtype"], resolved);
            let config: toml::Table = lab.text(&format!("{out}/config.toml")).parse().unwrap();
            assert_eq!(config["precision"].as_str(), Some(resolved));
        }
        let params = |precision| lab.read(&format!("{method}-{precision}/params.safetensors"));
        assert!(params("auto") == params("f32"), "{method}");
        assert!(
            params("f32") != params("bf16"),
            "{method}: bf16 changes nothing"
        );
    }
    let said = lab.say("report simplecil-f32 simplecil-bf16");
    assert!(said.out.contains("NOT COMPARABLE"), "{}", said.out);
    assert!(said.out.contains("  dtype: f32 | bf16\n"), "{}", said.out);
}

/// On all 50 classes inside the program: another rounding moves few images, a wrong product most of them.
#[test]
fn bf16_predicts_nearly_what_f32_does() {
    let lab = Lab::new();
    if !precisions().contains(&"bf16") {
        return;
    }
    lab.write("demo.toml", include_str!("../../demo/simplecil.toml"));
    let rows = |precision: &str| {
        lab.run("demo", precision, &format!("--set precision={precision}"));
        lab.predictions(precision)
    };
    let (full, half) = (rows("f32"), rows("bf16"));
    let same = full.iter().zip(&half).filter(|(a, b)| a[..3] == b[..3]);
    let same = same.count();
    assert_eq!(full.len(), 100);
    assert!(same >= 95, "only {same} of 100 predictions are alike");
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
    for method in FEW {
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
