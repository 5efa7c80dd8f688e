//! What a finished run says of other images, and classes that are added to it.

use std::fs;

use serde_json::Value;

use crate::lab::{CLASSES, Lab};

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn predictions_are_those_of_the_run() {
    let lab = Lab::new();
    for method in ["simplecil", "l2p", "vpt"] {
        lab.run(method, method, "");
        let said = lab.say(&format!("predict {method} images/test --json --top 9"));
        assert_eq!(said.code, Some(0), "{}", said.err);
        let (rows, of) = (lines(&said.out), lab.predictions(method));
        assert_eq!(rows.len(), of.len());
        for row in rows {
            let name = row["image"].as_str().unwrap();
            let wanted = of.iter().find(|[image, ..]| name.ends_with(image));
            let [_, _, class, score] = wanted.unwrap();
            let guesses = row["predictions"].as_array().unwrap();
            assert_eq!(guesses.len(), CLASSES.len(), "no more than there are");
            assert_eq!(guesses[0]["class"], class.as_str());
            let found = guesses[0]["score"].as_f64().unwrap();
            assert!((found - score.parse::<f64>().unwrap()).abs() < 1e-4);
            let scores: Vec<f64> = guesses
                .iter()
                .map(|g| g["score"].as_f64().unwrap())
                .collect();
            assert!(scores.is_sorted_by(|a, b| a >= b));
        }
    }
    let said = lab.say("predict simplecil images/test/cat --top 2");
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert!(said.out.contains("class 2") && said.out.contains("images/test/cat/"));
}

/// A class that is added is the same as one that came with a task of its own.
#[test]
fn a_class_is_added_without_touching_the_rest() {
    let lab = Lab::new();
    let of = |classes: &[&str], name: &str| {
        for class in classes {
            for part in ["train", "test"] {
                let from = lab.path(&format!("images/{part}/{class}"));
                for entry in fs::read_dir(from).unwrap() {
                    let entry = entry.unwrap();
                    let file = entry.file_name().into_string().unwrap();
                    lab.write(
                        &format!("{name}/{part}/{class}/{file}"),
                        fs::read(entry.path()).unwrap(),
                    );
                }
            }
        }
    };
    of(&CLASSES[..5], "five");
    of(&CLASSES, "six");
    for (name, settings) in [
        ("simplecil", ""),
        (
            "nearest-mean",
            "distance = \"mahalanobis\"\nshrinkage = 0.1",
        ),
        ("knn", "k = 3\ndistance = \"cosine\"\nweights = \"softmax\""),
        ("joint-ridge", ""),
        ("ranpac", "projection = 64"),
        ("fecam", "shrinkage = [10.0, 10.0]"),
    ] {
        let recipe = |data: &str, tasks: &str| {
            format!(
                "seed = 1\n[data]\npath = \"{data}\"\n[stream]\nsizes = {tasks}\norder = \"natural\"\n\
                 [backbone]\nname = \"vit-micro\"\ndepth = 2\n[method]\nname = \"{name}\"\n{settings}\n"
            )
        };
        lab.write("five.toml", recipe("five", "[2, 3]"));
        lab.write("six.toml", recipe("six", "[2, 3, 1]"));
        let (five, six) = (format!("{name}-5"), format!("{name}-6"));
        lab.run("five", &five, "");
        lab.run("six", &six, "");
        let before = [
            lab.read(&format!("{five}/report.json")),
            lab.read(&format!("{five}/params.safetensors")),
        ];
        let said = lab.say(&format!("learn {five} --class star six/train/star"));
        assert_eq!(said.code, Some(0), "{name}: {}", said.err);
        assert!(said.out.contains("6 classes"), "{}", said.out);
        let after = [
            lab.read(&format!("{five}/report.json")),
            lab.read(&format!("{five}/params.safetensors")),
        ];
        assert!(before == after, "{name}");
        let predict = |run: &str| {
            let said = lab.say(&format!("predict {run} six/test --json --top 6"));
            assert_eq!(said.code, Some(0), "{name}: {}", said.err);
            lines(&said.out)
        };
        assert_eq!(predict(&five), predict(&six), "{name}");
        let again = lab.say(&format!("learn {five} --class star six/train/star"));
        again.failed(&["--class", "star", "another name"]);
    }
}

#[test]
fn what_cannot_be_done_is_said() {
    let lab = Lab::new();
    lab.run("l2p", "l2p", "");
    lab.run("simplecil", "simplecil", "");
    let failed = |line: &str, parts: &[&str]| lab.say(line).failed(parts);
    failed("predict nowhere images/test", &["nowhere", "no such run"]);
    failed("predict simplecil nothing.png", &["nothing.png"]);
    lab.write("empty/readme.txt", "no image");
    failed("predict simplecil empty", &["empty", "without images"]);
    failed(
        "learn l2p --class new images/train/cat",
        &["trains on a new class", "simplecil"],
    );
    failed(
        "learn simplecil --class cat images/train/cat",
        &["knows a class `cat`"],
    );

    // One image that is none: the others are named, nothing is learned.
    lab.write("mixed/bad.png", "this is no image");
    let good = fs::read_dir(lab.path("images/test/cat")).unwrap();
    let good = good.map(|e| e.unwrap().path()).min().unwrap();
    lab.write("mixed/good.png", fs::read(good).unwrap());
    let said = lab.say("predict simplecil mixed --json");
    said.failed(&["mixed/bad.png", "1 of 2 images"]);
    assert_eq!(lines(&said.out).len(), 1);
    failed(
        "learn simplecil --class new mixed",
        &["mixed/bad.png", "1 of 2 images"],
    );
    assert!(!lab.path("simplecil/learned.safetensors").exists());

    // Parameters of another run, and half a file.
    let own = lab.read("simplecil/params.safetensors");
    fs::copy(
        lab.path("l2p/params.safetensors"),
        lab.path("simplecil/params.safetensors"),
    )
    .unwrap();
    failed(
        "predict simplecil images/test",
        &["not the parameters of this run"],
    );
    lab.write("simplecil/params.safetensors", &own[..own.len() / 2]);
    failed(
        "predict simplecil images/test",
        &["params.safetensors", "not a whole safetensors file"],
    );
}
