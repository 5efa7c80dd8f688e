//! Tasks that are known at test, and the same classes in new domains.

use candle_core::{Device, Tensor};
use serde_json::Value;

use crate::lab::{CLASSES, Lab};

fn matrix(lab: &Lab, run: &str) -> Vec<Vec<f64>> {
    let report = lab.json(&format!("{run}/report.json"));
    serde_json::from_value(report["accuracy_matrix"].clone()).unwrap()
}

#[test]
fn a_known_task_leaves_only_its_classes_to_choose_from() {
    let lab = Lab::new();
    for method in ["simplecil", "linear", "l2p"] {
        let (open, known) = (format!("{method}-open"), format!("{method}-known"));
        lab.run(method, &open, "");
        lab.run(method, &known, "--set stream.kind=task-incremental");
        // The same method on the same images, so the same parameters.
        let params = "params.safetensors";
        assert!(lab.read(&format!("{open}/{params}")) == lab.read(&format!("{known}/{params}")));
        let report = lab.json(&format!("{known}/report.json"));
        assert_eq!(report["scenario"], "task-incremental");
        let tasks: Vec<Vec<String>> = report["tasks"]
            .as_array()
            .unwrap()
            .iter()
            .map(|task| serde_json::from_value(task["classes"].clone()).unwrap())
            .collect();
        let mut elsewhere = 0;
        for ([image, class, known, _], [same, _, open, _]) in lab
            .predictions(&known)
            .into_iter()
            .zip(lab.predictions(&open))
        {
            assert_eq!(image, same);
            let task = tasks.iter().find(|task| task.contains(&class)).unwrap();
            assert!(task.contains(&known), "{class} is taken for {known}");
            match task.contains(&open) {
                true => assert_eq!(open, known, "the best of all is the best of the task"),
                false => elsewhere += 1,
            }
        }
        assert!(elsewhere > 0, "{method}: the mask has nothing to do");
        let (open_matrix, known_matrix) = (matrix(&lab, &open), matrix(&lab, &known));
        for (a, b) in open_matrix
            .iter()
            .flatten()
            .zip(known_matrix.iter().flatten())
        {
            assert!(a <= b);
        }
    }
    lab.say("report simplecil-open simplecil-known");
    let said = lab.say("report simplecil-open simplecil-known");
    assert!(
        said.out.contains("NOT COMPARABLE") && said.out.contains("class_order"),
        "{}",
        said.out
    );
}

/// Nine images of a class, each in a rendition of its own, five of them to learn from.
#[test]
fn domains_come_one_by_one_and_end_where_all_at_once_does() {
    let lab = Lab::new();
    // All renditions on both sides, or there would be domains without test images.
    for class in CLASSES {
        for (from, to) in [("train", "test"), ("test", "train")] {
            for name in lab.names(&format!("images/{from}/{class}")) {
                let bytes = lab.read(&format!("images/{from}/{class}/{name}"));
                lab.write(&format!("all/{to}/{class}/{name}"), &bytes);
                lab.write(&format!("all/{from}/{class}/{name}"), &bytes);
            }
        }
    }
    let recipe = lab.text("simplecil.toml").replace(
        "increment = 2",
        "kind = \"domain-incremental\"\ndomain = \"file\"",
    );
    lab.write(
        "domains.toml",
        recipe.replace("path = \"images\"", "path = \"all\""),
    );
    for (out, more) in [("domains", ""), ("images", "--set features=off")] {
        lab.run("domains", out, more);
    }
    assert!(lab.read("domains/report.json") == lab.read("images/report.json"));
    let report = lab.json("domains/report.json");
    assert_eq!(report["scenario"], "domain-incremental");
    let tasks = report["tasks"].as_array().unwrap();
    let names: Vec<&str> = tasks
        .iter()
        .map(|task| task["domain"].as_str().unwrap())
        .collect();
    assert_eq!(names.len(), 9);
    assert!(names.contains(&"noto-v1"), "{names:?}");
    let rows = matrix(&lab, "domains");
    let lengths: Vec<usize> = rows.iter().map(Vec::len).collect();
    assert_eq!(lengths, [2, 3, 4, 5, 6, 7, 8, 9, 9]);
    let before: Vec<f64> = (1..9).map(|i| rows[i - 1][i]).collect();
    let forward = before.iter().sum::<f64>() / 8.0 - 100.0 / CLASSES.len() as f64;
    let found = report["metrics"]["forward_transfer"].as_f64().unwrap();
    assert!((found - forward).abs() < 1e-9, "{found} {forward}");
    assert!(
        report["definitions"]["forward_transfer"]
            .as_str()
            .unwrap()
            .contains("just before")
    );
    for (file, part) in [("log.txt", "task 9/9"), ("matrix.svg", "<svg")] {
        assert!(
            lab.text(&format!("domains/{file}")).contains(part),
            "{file}"
        );
    }

    lab.run(
        "simplecil",
        "at-once",
        "--set data.path=all --set stream.increment=6 --set stream.order=natural",
    );
    let means = |run: &str| -> Tensor {
        let path = lab.path(run).join("params.safetensors");
        candle_core::safetensors::load(path, &Device::Cpu).unwrap()["prototypes"].clone()
    };
    let apart = (means("domains") - means("at-once"))
        .unwrap()
        .abs()
        .unwrap()
        .max_all()
        .unwrap();
    assert!(apart.to_scalar::<f32>().unwrap() < 1e-6);
    assert_eq!(
        lab.json("at-once/report.json")["metrics"]["forward_transfer"],
        Value::Null
    );
}

/// A class without images in the first domain is not predicted until it has some.
#[test]
fn a_class_that_comes_later_is_not_predicted_before() {
    let lab = Lab::new();
    let renditions = lab.names("images/train/cat");
    let mut renditions = renditions.iter();
    let (first, second) = (renditions.next().unwrap(), renditions.next().unwrap());
    for (class, name, domain) in [
        ("cat", first, "a"),
        ("cat", second, "b"),
        ("goat", first, "b"),
    ] {
        let bytes = lab.read(&format!("images/train/{class}/{name}"));
        lab.write(&format!("two/train/{class}/{domain}/x.png"), &bytes);
    }
    for (class, domain) in [("cat", "a"), ("cat", "b"), ("goat", "a"), ("goat", "b")] {
        let bytes = lab.read(&format!("images/train/{class}/{first}"));
        lab.write(&format!("two/test/{class}/{domain}/x.png"), &bytes);
    }
    let recipe = lab.text("simplecil.toml").replace(
        "increment = 2",
        "kind = \"domain-incremental\"\ndomain = \"folder\"",
    );
    let recipe = recipe.replace("order = { numpy = 1993 }", "order = \"natural\"");
    lab.write(
        "two.toml",
        recipe.replace("path = \"images\"", "path = \"two\""),
    );
    lab.run("two", "two", "");
    let rows = matrix(&lab, "two");
    // After the first domain all is taken for a cat; after the second, a goat's very picture is known.
    assert_eq!(rows[0], [50.0, 50.0]);
    assert_eq!(rows[1], [100.0, 100.0]);
}

#[test]
fn what_a_scenario_does_not_have_is_said() {
    let lab = Lab::new();
    let domains = "--set stream.kind=domain-incremental";
    lab.refused(
        &format!("simplecil.toml {domains}"),
        &["stream.kind", "remove first, increment"],
    );
    let recipe = lab
        .text("linear.toml")
        .replace("increment = 2", "kind = \"domain-incremental\"");
    lab.write("linear-domains.toml", &recipe);
    lab.refused("linear-domains.toml", &["stream.domain", "\"file\""]);
    lab.refused(
        "simplecil.toml --set stream.domain=file",
        &["stream.domain", "domain-incremental"],
    );
    lab.refused(
        "linear-domains.toml --set stream.domain=folder",
        &["stream.kind", "linear"],
    );
}
