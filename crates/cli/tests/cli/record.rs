//! What a run leaves behind.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::lab::{CLASSES, Lab, METHODS, POOLS, RECORD, TEST, TRAIN};

const TASKS: usize = 3;

fn floats(value: &Value) -> Vec<f64> {
    let list = value.as_array().unwrap();
    list.iter().map(|v| v.as_f64().unwrap()).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn close(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-9, "{a} is not {b}");
}

fn hex64(value: &Value) {
    let text = value.as_str().unwrap();
    assert!(
        text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()),
        "{text}"
    );
}

#[test]
fn a_run_leaves_a_whole_record_and_can_be_repeated_from_it() {
    let lab = Lab::new();
    for method in METHODS {
        let said = lab.run(method, method, "");
        assert!(
            said.out.contains("average_incremental_accuracy"),
            "{}",
            said.out
        );
        assert!(
            said.out.contains(&format!("The record is in {method}")),
            "{}",
            said.out
        );
        let mut expected: BTreeSet<String> = RECORD.iter().map(|s| (*s).to_owned()).collect();
        if pools_of(method).is_some() {
            expected.insert("pools.svg".into());
        }
        assert_eq!(lab.names(method), expected, "{method}");

        let report = lab.json(&format!("{method}/report.json"));
        assert_eq!(report["method"], method);
        check_numbers(&report);
        check_facts(&report, method);
        check_pools(&lab, method, &report);
        check_predictions(&lab, method, &report);
        check_tables_and_pictures(&lab, method, &report);

        // From the recipe that was written, with everything filled in.
        let again = format!("{method}-again");
        let said = lab.say(&format!("run {method}/config.toml --out {again}"));
        assert_eq!(said.code, Some(0), "{}", said.err);
        for file in [
            "report.json",
            "predictions.csv",
            "params.safetensors",
            "config.toml",
        ] {
            assert!(
                lab.read(&format!("{method}/{file}")) == lab.read(&format!("{again}/{file}")),
                "{method}: {file} differs when run again from config.toml"
            );
        }
    }
}

fn check_numbers(report: &Value) {
    let matrix: Vec<Vec<f64>> = report["accuracy_matrix"]
        .as_array()
        .unwrap()
        .iter()
        .map(floats)
        .collect();
    let lengths: Vec<usize> = matrix.iter().map(Vec::len).collect();
    assert_eq!(lengths, [1, 2, 3]);
    let all = matrix.iter().flatten();
    assert!(all.clone().all(|a| (0.0..=100.0).contains(a)));

    let micro = floats(&report["session_accuracy"]["micro"]);
    let macro_ = floats(&report["session_accuracy"]["macro"]);
    assert_eq!((micro.len(), macro_.len()), (TASKS, TASKS));
    for (t, row) in matrix.iter().enumerate() {
        // All tasks have the same number of test images.
        close(micro[t], mean(row));
        close(macro_[t], mean(row));
    }
    let metrics = report["metrics"].as_object().unwrap();
    let keys: Vec<&str> = metrics.keys().map(String::as_str).collect();
    let mut expected = [
        "average_incremental_accuracy",
        "last_accuracy_micro",
        "last_accuracy_macro",
        "forgetting",
        "backward_transfer",
    ];
    expected.sort_unstable();
    let mut sorted = keys.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, expected);
    let metric = |name: &str| metrics[name].as_f64().unwrap();
    close(metric("average_incremental_accuracy"), mean(&micro));
    close(metric("last_accuracy_micro"), micro[2]);
    close(metric("last_accuracy_macro"), macro_[2]);
    let old = [0, 1];
    let best = |i: usize| matrix[i..].iter().map(|row| row[i]).fold(0.0, f64::max);
    close(
        metric("forgetting"),
        mean(&old.map(|i| best(i) - matrix[2][i])),
    );
    close(
        metric("backward_transfer"),
        mean(&old.map(|i| matrix[2][i] - matrix[i][i])),
    );
    for name in expected {
        assert!(!report["definitions"][name].as_str().unwrap().is_empty());
    }
}

fn check_facts(report: &Value, method: &str) {
    let print = &report["fingerprint"];
    for field in ["weights", "preprocess", "split", "class_order"] {
        hex64(&print[field]);
    }
    assert_eq!(print["backbone"], "vit-micro");
    assert_eq!(print["depth"], 2);
    assert_eq!(print["device"], "cpu");
    assert_eq!(print["dtype"], "f32");
    assert_eq!(print["seed"], 1);
    assert_eq!(print["compat"], Value::Array(vec![]));
    let version = env!("CARGO_PKG_VERSION");
    assert!(print["code"].as_str().unwrap().starts_with(version));

    let classes = CLASSES.len();
    let head = 129 * classes;
    let trainable = match method {
        "simplecil" => 0,
        "linear" | "random-prompt" => head,
        "vpt" => head + 2 * 2 * 128,
        // The cosine head of the first task, two classes and a scale.
        "aper" => 2 * 2 * 128 + 2 * 128 + 1,
        "l2p" => head + (4 * 2 + 4) * 128,
        // Per task a key and an embedding of 4; per block what makes tokens of the 65 there are, steers and norms.
        "dap" => head + TASKS * (128 + 4) + 2 * (2 * 66 + 5 * 256 + 256),
        "dualprompt" => head + 2 * 2 * 128 + TASKS * (2 * 2 * 128 + 128),
        "coda" => head + TASKS * 2 * 2 * (2 + 2) * 128,
        other => panic!("reckon the parameters of {other}"),
    };
    // Two classes of five images a task, in batches of four.
    let tasks_trained = match method {
        "simplecil" => 0,
        "aper" => 1,
        _ => TASKS,
    };
    let (steps, trained) = (tasks_trained * 3, tasks_trained * 2 * TRAIN);
    let cost = &report["cost"];
    assert_eq!(cost["optimizer_steps"], steps);
    assert_eq!(cost["images_trained"], trained);
    assert_eq!(cost["trainable_parameters"], trainable);
    // Two classes after the first task, four after the second, six after the third.
    assert_eq!(cost["images_evaluated"], (2 + 4 + 6) * TEST);
    assert_eq!(cost["images_skipped"], 0);
    let backbone = cost["backbone_parameters"].as_u64().unwrap();
    assert!(
        (1..1_223_040).contains(&backbone),
        "two blocks of six: {backbone}"
    );

    let tasks = report["tasks"].as_array().unwrap();
    assert_eq!(tasks.len(), TASKS);
    let mut seen = BTreeSet::new();
    for task in tasks {
        assert_eq!(task["train_images"], 2 * TRAIN);
        assert_eq!(task["test_images"], 2 * TEST);
        let classes = task["classes"].as_array().unwrap();
        assert_eq!(classes.len(), 2);
        seen.extend(classes.iter().map(|c| c.as_str().unwrap().to_owned()));
    }
    assert_eq!(seen, CLASSES.iter().map(|c| (*c).to_owned()).collect());
}

fn pools_of(method: &str) -> Option<&'static [(&'static str, usize)]> {
    let found = POOLS.iter().find(|(name, _)| *name == method);
    found.map(|(_, pools)| *pools)
}

/// What was chosen adds up to the test images, and the single numbers follow from the counts.
fn check_pools(lab: &Lab, method: &str, report: &Value) {
    let Some(expected) = pools_of(method) else {
        assert_eq!(report.get("pools"), None, "{method}");
        return;
    };
    let pools = report["pools"].as_array().unwrap();
    assert_eq!(pools.len(), expected.len(), "{method}");
    let svg = lab.text(&format!("{method}/pools.svg"));
    for (pool, (name, entries)) in pools.iter().zip(expected) {
        assert_eq!(pool["pool"], *name);
        assert!(svg.contains(&format!("{name}: ")), "{method}: {name}");
        let taken_by_one = if method == "l2p" { 2.0 } else { 1.0 };
        let rows: Vec<Vec<f64>> = pool["chosen"]
            .as_array()
            .unwrap()
            .iter()
            .map(floats)
            .collect();
        assert_eq!(rows.len(), TASKS);
        let mut sum = vec![0.0; *entries];
        for row in &rows {
            assert_eq!(row.len(), *entries, "{method}");
            let all: f64 = row.iter().sum();
            assert!(
                (all - taken_by_one * (2 * TEST) as f64).abs() < 1e-4,
                "{method}: {all}"
            );
            sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
        let all: f64 = sum.iter().sum();
        let parts = sum.iter().map(|x| x / all).filter(|p| *p > 0.0);
        let by_hand = parts.map(|p| -p * p.ln()).sum::<f64>().exp();
        let effective = floats(&pool["effective"]);
        assert_eq!(effective.len(), TASKS);
        close(effective[TASKS - 1], by_hand);
        let similarity = floats(&pool["similarity"]);
        assert_eq!(similarity.len(), TASKS);
        assert!(similarity.iter().all(|s| (-1.0..=1.0).contains(s)));
        let room = *entries as f64 - taken_by_one;
        let collapsed = by_hand < taken_by_one + 0.1 * room;
        assert_eq!(pool["collapsed"], collapsed, "{method}");
        let log = lab.text(&format!("{method}/log.txt"));
        let warned = log.contains(&format!("warning: pool `{name}` has collapsed"));
        assert_eq!(warned, collapsed, "{method}: {log}");
    }
}

fn check_predictions(lab: &Lab, method: &str, report: &Value) {
    let rows = lab.predictions(method);
    let images: BTreeSet<&String> = rows.iter().map(|[image, ..]| image).collect();
    assert_eq!((rows.len(), images.len()), (6 * TEST, 6 * TEST));
    let mut hits = BTreeMap::new();
    for [image, class, predicted, score] in &rows {
        assert!(
            image.starts_with(&format!("test/{class}/")),
            "{image}: {class}"
        );
        assert!(lab.path("images").join(image).is_file(), "{image}");
        assert!(CLASSES.contains(&predicted.as_str()), "{predicted}");
        assert!(score.parse::<f32>().unwrap().is_finite());
        *hits.entry(class.clone()).or_insert(0) += usize::from(class == predicted);
    }
    let all: usize = hits.values().sum();
    let micro = report["metrics"]["last_accuracy_micro"].as_f64().unwrap();
    close(micro, 100.0 * all as f64 / rows.len() as f64);
    let last = floats(&report["accuracy_matrix"][TASKS - 1]);
    for (task, accuracy) in report["tasks"].as_array().unwrap().iter().zip(last) {
        let classes = task["classes"].as_array().unwrap().iter();
        let right: usize = classes.map(|c| hits[c.as_str().unwrap()]).sum();
        close(accuracy, 100.0 * right as f64 / (2 * TEST) as f64);
    }
}

fn check_tables_and_pictures(lab: &Lab, method: &str, report: &Value) {
    let file = |name: &str| lab.text(&format!("{method}/{name}"));
    let mut csv = csv::Reader::from_path(lab.path(method).join("accuracy.csv")).unwrap();
    let header: Vec<String> = csv.headers().unwrap().iter().map(Into::into).collect();
    assert_eq!(
        header.join(","),
        "session,classes_seen,micro,macro,task_1,task_2,task_3"
    );
    let micro = floats(&report["session_accuracy"]["micro"]);
    for (t, row) in csv.records().enumerate() {
        let row = row.unwrap();
        assert_eq!(row[0], (t + 1).to_string());
        assert_eq!(row[1], (2 * (t + 1)).to_string());
        close(row[2].parse().unwrap(), micro[t]);
        let matrix = floats(&report["accuracy_matrix"][t]);
        for i in 0..TASKS {
            match matrix.get(i) {
                Some(accuracy) => close(row[4 + i].parse().unwrap(), *accuracy),
                None => assert_eq!(&row[4 + i], ""),
            }
        }
        assert!(t < TASKS);
    }
    let pools = pools_of(method).map(|_| "pools.svg");
    for picture in ["curve.svg", "matrix.svg"].into_iter().chain(pools) {
        let svg = file(picture);
        assert!(
            svg.contains("<svg") && svg.trim_end().ends_with("</svg>"),
            "{picture}"
        );
    }
    let log = file("log.txt");
    for task in 1..=TASKS {
        assert!(log.contains(&format!("task {task}/{TASKS}: ")), "{log}");
    }
    let timing = lab.json(&format!("{method}/timing.json"));
    assert_eq!(timing["threads"], 1);
    assert_eq!(timing["tasks"].as_array().unwrap().len(), TASKS);
    let params = lab.read(&format!("{method}/params.safetensors"));
    let params = safetensors::SafeTensors::deserialize(&params).unwrap();
    let rows = |name: &str| params.tensor(name).unwrap().shape()[0];
    let classes: usize = match method {
        "simplecil" | "aper" => rows("prototypes"),
        _ => (0..TASKS)
            .map(|task| rows(&format!("head.{task}.weight")))
            .sum(),
    };
    assert_eq!(classes, 6);
}

#[test]
fn several_seeds_leave_a_directory_each_and_a_summary() {
    let lab = Lab::new();
    let said = lab.run("l2p", "many", "--seeds 1,2,5");
    let expected = ["report.html", "seed-1", "seed-2", "seed-5", "summary.json"];
    assert_eq!(lab.names("many").into_iter().collect::<Vec<_>>(), expected);
    for part in [
        "mean",
        "std",
        "seed 1",
        "seed 2",
        "seed 5",
        "The records are in many",
    ] {
        assert!(said.out.contains(part), "{}", said.out);
    }
    let summary = lab.json("many/summary.json");
    assert_eq!(summary["method"], "l2p");
    assert_eq!(summary["seeds"], serde_json::json!([1, 2, 5]));
    let metrics = summary["metrics"].as_object().unwrap();
    assert_eq!(metrics.len(), 5);
    for (name, spread) in metrics {
        let values = floats(&spread["values"]);
        for (seed, value) in [1, 2, 5].into_iter().zip(&values) {
            let report = lab.json(&format!("many/seed-{seed}/report.json"));
            assert_eq!(report["fingerprint"]["seed"], seed);
            close(*value, report["metrics"][name].as_f64().unwrap());
        }
        let centre = mean(&values);
        close(spread["mean"].as_f64().unwrap(), centre);
        let squares: f64 = values.iter().map(|v| (v - centre).powi(2)).sum();
        close(spread["std"].as_f64().unwrap(), (squares / 2.0).sqrt());
    }
    // One seed among several is the same run as that seed alone.
    lab.run("l2p", "alone", "--set seed=2");
    for file in ["report.json", "predictions.csv", "params.safetensors"] {
        let alone = lab.read(&format!("alone/{file}"));
        assert!(alone == lab.read(&format!("many/seed-2/{file}")), "{file}");
    }
}

#[test]
fn a_seed_given_twice_is_refused() {
    let lab = Lab::new();
    let said = lab.refused("linear.toml --seeds 1,2,1", &["--seeds", "twice"]);
    assert_eq!(said.out, "");
    assert!(!lab.path("refused").exists());
}

#[test]
fn seeds_are_refused_before_any_work_where_one_of_them_is_done() {
    let lab = Lab::new();
    lab.run("simplecil", "many/seed-1", "");
    let said = lab.say("run simplecil.toml --out many --seeds 3,1");
    said.failed(&["many/seed-1", "finished run", "--overwrite"]);
    assert!(
        lab.names("many/seed-3").is_empty(),
        "seed 3 was run in vain"
    );
}

#[test]
fn a_summary_is_not_written_over_unasked() {
    let lab = Lab::new();
    lab.run("simplecil", "many", "--seeds 1,2");
    let before = lab.read("many/summary.json");
    let said = lab.say("run simplecil.toml --out many --seeds 3");
    said.failed(&["many", "several seeds", "--out", "--overwrite"]);
    assert!(lab.read("many/summary.json") == before);
    lab.run("simplecil", "many", "--seeds 3 --overwrite");
    assert_eq!(
        lab.json("many/summary.json")["seeds"],
        serde_json::json!([3])
    );
}

#[test]
fn without_out_a_run_goes_where_no_finished_run_is() {
    let lab = Lab::new();
    for _ in 0..2 {
        let said = lab.say("run simplecil.toml --threads 1");
        assert_eq!(said.code, Some(0), "{}", said.err);
    }
    let names: Vec<String> = lab.names("runs").into_iter().collect();
    assert_eq!(names, ["simplecil", "simplecil-2"]);
    for name in names {
        assert!(lab.path(&format!("runs/{name}/report.json")).is_file());
    }
}

#[test]
fn a_folder_in_one_piece_is_divided_by_the_recipe() {
    let lab = Lab::new();
    let split = "--set data.split.test_fraction=0.4 --set data.split.seed=3";
    let line = format!("run simplecil.toml --dry-run --set data.path=images/train {split}");
    let said = lab.say(&line);
    assert_eq!(said.code, Some(0), "{}", said.err);
    let all = "6 classes, 18 training and 12 test images in all";
    assert!(said.out.contains(all), "{}", said.out);
}

/// Any division, written out and read back as lists, is the same one.
#[test]
fn a_division_is_written_out_for_others() {
    let lab = Lab::new();
    for class in CLASSES {
        for part in ["train", "test"] {
            for name in lab.names(&format!("images/{part}/{class}")) {
                let bytes = lab.read(&format!("images/{part}/{class}/{name}"));
                lab.write(&format!("one/{class}/{name}"), bytes);
            }
        }
    }
    let data = "--set data.path=one";
    for kind in ["stratified", "random --set data.split.seed=1", "l2p"] {
        let split =
            format!("{data} --set data.split.kind={kind} --set data.split.test_fraction=0.4");
        let said = lab.say(&format!("data split simplecil.toml {split} --out lists"));
        assert_eq!(said.code, Some(0), "{kind}: {}", said.err);
        let lines = ["train", "test"].map(|part| lab.text(&format!("lists/{part}.txt")));
        let [train, test] = lines.map(|text| text.lines().count());
        assert_eq!(train + test, 54);
        assert!(
            said.out.contains(&format!("test: {test} images")),
            "{}",
            said.out
        );
        let lists = "--set data.split.kind=lists --set data.split.train=lists/train.txt \
                     --set data.split.test=lists/test.txt";
        let hash = |split: &str| {
            let line = format!("run simplecil.toml --out hash --overwrite {split}");
            assert_eq!(lab.say(&line).code, Some(0), "{line}");
            lab.json("hash/report.json")["fingerprint"]["split"].clone()
        };
        assert_eq!(hash(&split), hash(&format!("{data} {lists}")), "{kind}");
    }
    let said = lab.say("data split simplecil.toml --set data.split.kind=lists --out lists");
    said.failed(&["data.split.train", "missing"]);
}

#[test]
fn a_preset_is_one_word_and_on_record() {
    let lab = Lab::new();
    let small = "--set preprocess.crop=32 --set preprocess.resize=32";
    lab.run(
        "simplecil",
        "pilot",
        &format!("--set preprocess.preset=pilot {small}"),
    );
    lab.run(
        "simplecil",
        "lae",
        &format!("--set preprocess.preset=lae {small}"),
    );
    let of = |run: &str| lab.json(&format!("{run}/report.json"))["fingerprint"].clone();
    assert_eq!(of("pilot")["preset"], "pilot, changed");
    assert_ne!(of("pilot")["preprocess"], of("lae")["preprocess"]);
    let again = lab.say("run pilot/config.toml --out again --threads 1");
    assert_eq!(again.code, Some(0), "{}", again.err);
    assert_eq!(of("pilot"), of("again"));
    // Laid over nothing it keeps its name.
    let said = lab
        .say("run simplecil.toml --out whole --set preprocess.preset=timm --set backbone.depth=1");
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert_eq!(of("whole")["preset"], "timm");
    lab.run("simplecil", "card", "");
    assert!(of("card").get("preset").is_none());
    lab.refused(
        "simplecil.toml --set preprocess.preset=polit",
        &["preprocess.preset", "polit", "pilot, ranpac"],
    );
}
