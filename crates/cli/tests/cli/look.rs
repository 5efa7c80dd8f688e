//! The commands that only show something.

use crate::lab::{Lab, METHODS};

fn shown(lab: &Lab, line: &str, parts: &[&str]) -> String {
    let said = lab.say(line);
    assert_eq!(said.code, Some(0), "{line}: {}", said.err);
    for part in parts {
        assert!(
            said.out.contains(part),
            "{line}: no {part:?} in: {}",
            said.out
        );
    }
    assert_eq!(said.err, "", "{line}");
    said.out
}

#[test]
fn methods_and_backbones_are_listed() {
    let lab = Lab::new();
    let text = shown(
        &lab,
        "methods",
        &["paper", "Wang et al. 2022", "Zhou et al. 2023"],
    );
    for method in METHODS {
        let row = text
            .lines()
            .find(|l| l.starts_with(&format!("| {method} ")));
        let trains = if method == "simplecil" {
            "| no "
        } else {
            "| yes "
        };
        assert!(row.unwrap().contains(trains), "{text}");
    }
    let parts = [
        "vit-micro",
        "1.2 M",
        "vit_base_patch16_224.augreg_in21k",
        "85.8 M",
    ];
    shown(&lab, "backbones list", &parts);
}

#[test]
fn switches_of_published_quirks_are_listed() {
    let lab = Lab::new();
    let parts = ["switch", "source", "predictions depend on the batch"];
    let text = shown(&lab, "methods --compat", &parts);
    for switch in candlewick_methods::COMPAT {
        let row = format!("| {} ", switch.method);
        let line = text
            .lines()
            .find(|l| l.starts_with(&row) && l.contains(&format!("| {} ", switch.switch)));
        assert!(line.unwrap().contains(switch.source), "{text}");
    }
}

#[test]
fn a_backbone_is_shown_as_its_card() {
    let lab = Lab::new();
    let text = shown(
        &lab,
        "backbones show vit-micro",
        &["crop = 64", "eps = 1e-6"],
    );
    let card: toml::Table = text.parse().unwrap();
    assert_eq!(card["name"].as_str(), Some("vit-micro"));
    assert_eq!(card["parameters"].as_integer(), Some(1_223_040));
    assert_eq!(card["preprocess"]["resize"].as_integer(), Some(73));
    // By its id on the Hub, too.
    shown(
        &lab,
        "backbones show facebook/dinov2-small",
        &["name = \"dinov2-small\""],
    );
    let said = lab.say("backbones show nonsense");
    said.failed(&["no card `nonsense`", "candlewick backbones list"]);
    assert_eq!(said.out, "");
}

#[test]
fn the_backbone_inside_the_program_needs_no_fetching() {
    let lab = Lab::new();
    let text = shown(
        &lab,
        "backbones pull vit-micro",
        &["vit-micro is here (embedded)"],
    );
    lab.run("simplecil", "run", "");
    let report = lab.json("run/report.json");
    let hash = report["fingerprint"]["weights"].as_str().unwrap();
    assert!(text.contains(&format!("sha256 {hash}")), "{text}");
}

#[test]
fn one_report_comes_with_definitions_and_fingerprint() {
    let lab = Lab::new();
    lab.run("linear", "run", "");
    let report = lab.json("run/report.json");
    let text = shown(
        &lab,
        "report run",
        &["linear", "definition", "fingerprint", "seed 1"],
    );
    for (name, definition) in report["definitions"].as_object().unwrap() {
        let row = text.lines().find(|l| l.starts_with(&format!("| {name} ")));
        let row = row.unwrap_or_else(|| panic!("no {name} in: {text}"));
        assert!(row.contains(definition.as_str().unwrap()), "{row}");
        let value = report["metrics"][name].as_f64().unwrap();
        assert!(row.contains(&format!(" {value:.2} ")), "{row}");
    }
    for field in ["weights", "preprocess", "split", "class_order"] {
        let hash = report["fingerprint"][field].as_str().unwrap();
        assert!(text.contains(&hash[..12]), "no {field} in: {text}");
    }
    // The file itself will do.
    assert_eq!(lab.say("report run/report.json").out, text);
}

#[test]
fn reports_side_by_side_say_whether_they_may_be_compared() {
    let lab = Lab::new();
    lab.run("linear", "one", "");
    lab.run("simplecil", "two", "--set seed=2");
    lab.run("simplecil", "crop", "--set preprocess.crop=56");
    lab.run("simplecil", "order", "--set stream.order=natural");

    let text = shown(&lab, "report one two", &["one", "two", "\nComparable: "]);
    assert!(!text.contains("NOT COMPARABLE"), "{text}");
    assert!(
        text.contains("no bar to comparison") && text.contains("seed: 1 | 2"),
        "{text}"
    );
    let value = |run: &str| {
        let report = lab.json(&format!("{run}/report.json"));
        let value = report["metrics"]["last_accuracy_micro"].as_f64().unwrap();
        format!("{value:.2}")
    };
    let row = text
        .lines()
        .find(|l| l.contains("last_accuracy_micro"))
        .unwrap();
    let cells: Vec<&str> = row.split('|').map(str::trim).collect();
    assert_eq!(cells[2..4], [value("one"), value("two")]);

    for (other, field) in [("crop", "preprocess"), ("order", "class_order")] {
        let text = shown(&lab, &format!("report two {other}"), &["NOT COMPARABLE"]);
        let prints = ["two", other].map(|run| {
            let report = lab.json(&format!("{run}/report.json"));
            report["fingerprint"][field].as_str().unwrap()[..12].to_owned()
        });
        let line = format!("  {field}: {}", prints.join(" | "));
        assert!(text.lines().any(|l| l == line), "no {line:?} in: {text}");
        assert!(!text.contains("\nComparable"), "{text}");
        for same in ["weights: ", "split: "] {
            assert!(!text.contains(same), "{text}");
        }
    }
}

#[test]
fn a_report_that_cannot_be_read() {
    let lab = Lab::new();
    std::fs::create_dir(lab.path("empty")).unwrap();
    lab.say("report empty")
        .failed(&["empty", "no report.json", "did not end"]);
    lab.say("report nowhere")
        .failed(&["nowhere", "no such run directory"]);
    lab.write("bad/report.json", "{\"schema\": 1, \"method\":");
    lab.say("report bad")
        .failed(&["bad/report.json", "not a report", "line 1"]);
    lab.run("simplecil", "many", "--seeds 1");
    lab.say("report many")
        .failed(&["many", "several seeds", "directories inside"]);
    // A file of another program, and one of another version of this one.
    lab.write("bad/report.json", "[1, 2, 3]");
    lab.say("report bad")
        .failed(&["bad/report.json", "not a report"]);
    let mut report = lab.json("many/seed-1/report.json");
    report["schema"] = 99.into();
    lab.write("bad/report.json", report.to_string());
    let said = lab.say("report bad many/seed-1");
    said.failed(&["bad/report.json", "99", "schema"]);
    report["schema"] = 1.into();
    report.as_object_mut().unwrap().remove("metrics");
    lab.write("bad/report.json", report.to_string());
    lab.say("report bad")
        .failed(&["bad/report.json", "not a report", "metrics"]);
}

#[test]
fn the_command_line_explains_itself() {
    let lab = Lab::new();
    let parts = ["run", "demo", "backbones", "methods", "report"];
    shown(&lab, "--help", &parts);
    shown(
        &lab,
        "run --help",
        &["--set", "--out", "--seeds", "--dry-run", "--overwrite"],
    );
    shown(&lab, "--version", &[env!("CARGO_PKG_VERSION")]);
    let said = lab.say("rnu l2p.toml");
    assert_eq!(said.code, Some(2), "{}", said.err);
    assert!(said.err.contains("'rnu'"), "{}", said.err);
}
