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
    let told = report["definitions"]["last_accuracy_micro"]
        .as_str()
        .unwrap();
    assert!(told.contains("domains seen"), "{told}");
    // The classes are the same ones in every session.
    let csv = lab.text("domains/accuracy.csv");
    let seen = csv
        .lines()
        .skip(1)
        .map(|line| line.split(',').nth(1).unwrap());
    assert_eq!(seen.collect::<Vec<_>>(), ["6"; 9]);
    // No image was looked at once its feature was there, so nothing is said of a speed.
    let log = lab.text("domains/log.txt");
    assert!(
        log.contains("stored features") && !log.contains("/s)"),
        "{log}"
    );
    assert!(log.contains("9 domains seen | per domain"), "{log}");
    assert!(lab.text("images/log.txt").contains("/s)"));
    for (run, stored) in [("domains", true), ("images", false)] {
        assert_eq!(
            lab.json(&format!("{run}/timing.json"))["stored_features"],
            stored
        );
    }
    let dry = lab.say("run domains.toml --dry-run");
    assert!(
        dry.out.contains("noto-v1") && dry.out.contains("domain"),
        "{}",
        dry.out
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
    // A metric that one of two runs does not have is left out of its column alone.
    for line in ["report domains at-once", "report at-once domains"] {
        let said = lab.say(line);
        assert_eq!(said.code, Some(0), "{}", said.err);
        assert!(said.out.contains("forward_transfer"), "{}", said.out);
    }
    let sweep = r#"
seeds = [1, 2]
base = { data = { path = "all" }, backbone = { name = "vit-micro", depth = 2 }, stream = { order = "seed" } }
stream = [{ increment = 2 }, { kind = "task-incremental", increment = 2 }, { kind = "domain-incremental", domain = "file" }]
method = [{ name = "simplecil" }, { name = "nearest-mean", distance = "euclidean" }]
"#;
    lab.write("kinds.toml", sweep);
    let said = lab.say("sweep kinds.toml --out kinds --threads 1");
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert_eq!(
        said.out.matches("forward_transfer").count(),
        1,
        "{}",
        said.out
    );
    let mut csv = csv::Reader::from_path(lab.path("kinds/sweep.csv")).unwrap();
    let at = csv
        .headers()
        .unwrap()
        .iter()
        .position(|h| h == "forward_transfer")
        .unwrap();
    let filled = csv
        .records()
        .filter(|row| !row.as_ref().unwrap()[at].is_empty());
    assert_eq!(filled.count(), 4);
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
    let train = "--set train={epochs=2,batch=4,optimizer=\"adam\",lr=0.01}";
    for (method, more) in [
        ("nearest-mean\",distance=\"euclidean\"", ""),
        ("nearest-mean\",distance=\"mahalanobis\"", ""),
        ("ranpac\",projection=50,ridge=1.0", ""),
        ("fecam\",shrinkage=[1.0,0.0]", ""),
        ("knn\",k=3,distance=\"cosine\",weights=\"uniform\"", ""),
        ("joint-ridge\",ridge=1.0", ""),
        ("joint-linear\"", train),
        ("linear\"", train),
        ("aper\",tuning={kind=\"ssf\"}", train),
    ] {
        let method = format!("--overwrite --set method={{name=\"{method}}} {more}");
        lab.run("two", "other", &method);
        assert_eq!(matrix(&lab, "other")[0], [50.0, 50.0], "{method}");
        assert_eq!(matrix(&lab, "other").len(), 2);
    }
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
    let recipe = lab
        .text("l2p.toml")
        .replace("increment = 2", "kind = \"domain-incremental\"");
    lab.write("l2p-domains.toml", &recipe);
    // Whose images lie in the folders of their classes; and two of the domains are never tested.
    lab.refused(
        "l2p-domains.toml --set stream.domain=folder",
        &["stream.domain", "images", "\"file\""],
    );
    lab.refused(
        "l2p-domains.toml --set stream.domain=file",
        &["stream.domain", "has no", "leave it out"],
    );
    for (part, class) in CLASSES.iter().flat_map(|c| [("train", c), ("test", c)]) {
        for (domain, name) in ["a", "b"]
            .iter()
            .zip(lab.names(&format!("images/{part}/{class}")))
        {
            let bytes = lab.read(&format!("images/{part}/{class}/{name}"));
            lab.write(&format!("sorted/{part}/{class}/{domain}/{name}"), &bytes);
        }
    }
    let sorted = "--set stream.domain=folder --set data.path=sorted";
    lab.refused(
        &format!("l2p-domains.toml {sorted} --set stream.order=natural"),
        &["stream.kind", "l2p", "simplecil"],
    );
    lab.refused(
        &format!("l2p-domains.toml {sorted} --set stream.order=[\"a\",\"c\"]"),
        &["stream.order", "domain `c`", "2 domains"],
    );
}
