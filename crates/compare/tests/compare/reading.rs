//! Directories that are whole, and those that are not.

use candlewick_core::report::hex;
use sha2::{Digest as _, Sha256};

use crate::lab::{Lab, report};

#[test]
fn a_report_that_is_missing_or_corrupt_is_named() {
    let lab = Lab::new();
    let text = lab.refused("nowhere");
    assert!(
        text.contains("nowhere: there is no such run directory"),
        "{text}"
    );
    std::fs::create_dir(lab.path("empty")).unwrap();
    let text = lab.refused("empty");
    assert!(
        text.contains("empty: no report.json") && text.contains("did not end"),
        "{text}"
    );
    lab.write("bad/report.json", "{\"schema\": 1, \"method\":");
    let text = lab.refused("bad");
    assert!(
        text.contains("bad/report.json: not a report of this version") && text.contains("line 1"),
        "{text}"
    );
    lab.write("bad/report.json", "{\"schema\": 7}");
    let text = lab.refused("bad");
    assert!(
        text.contains("bad/report.json: a report of schema 7, expected 1"),
        "{text}"
    );
    lab.write("bad/report.json", b"\xff\xfe");
    assert!(lab.refused("bad").contains("bad/report.json"));
}

#[test]
fn a_report_is_taken_by_its_name_too() {
    let lab = Lab::new();
    lab.run("a", &report(40.0), "++--");
    let [entry] = lab.read("a/report.json").try_into().unwrap();
    assert_eq!(entry.cell("last_accuracy_macro").unwrap().mean, 40.0);
    assert!(entry.runs[0].predictions.is_some());
}

#[test]
fn of_several_seeds_all_must_have_ended() {
    let lab = Lab::new();
    lab.run("many/seed-1", &report(40.0), "");
    lab.run("many/seed-7", &report(90.0), "");
    lab.write(
        "many/summary.json",
        "{\"method\": \"m\", \"seeds\": [1], \"metrics\": {}}",
    );
    // What lies beside those of the summary is of another time.
    let [entry] = lab.read("many").try_into().unwrap();
    assert_eq!(
        (entry.seeds, entry.cell("forgetting").unwrap().std),
        (Some(1), None)
    );
    lab.write(
        "many/summary.json",
        "{\"method\": \"m\", \"seeds\": [1, 2], \"metrics\": {}}",
    );
    let text = lab.refused("many");
    assert!(text.contains("seed-2"), "{text}");
    lab.write("many/summary.json", "{\"seeds\": []}");
    assert!(lab.refused("many").contains("summary.json: names no seed"));
    lab.write("many/summary.json", "nonsense");
    assert!(
        lab.refused("many")
            .contains("summary.json: not the summary")
    );
}

/// A sweep with two rows of one cell each.
fn sweep(lab: &Lab, sha256: Option<&str>) {
    for (digest, value) in [("d1", 40.0), ("d2", 45.0)] {
        let text = serde_json::to_string(&report(value)).unwrap();
        let sha256 = sha256.map_or_else(|| hex(&Sha256::digest(&text)), Into::into);
        let kept = serde_json::json!({"sha256": sha256, "seconds": 1.0, "report": text});
        lab.write(&format!("s/cells/{digest}.json"), kept.to_string());
    }
    let row = |label: &str, digest: &str| serde_json::json!({"backbone": "vit-micro", "stream": "increment=2", "label": label, "cells": [digest]});
    let json = serde_json::json!({"schema": 1, "rows": [row("one", "d1"), row("two", "d2")]});
    lab.write("s/sweep.json", json.to_string());
}

#[test]
fn a_sweep_is_a_row_for_each_of_its_own() {
    let lab = Lab::new();
    sweep(&lab, None);
    let [one, two] = lab.read("s").try_into().unwrap();
    assert!(
        one.name.ends_with("s: one (vit-micro increment=2)"),
        "{}",
        one.name
    );
    assert_eq!(two.cell("last_accuracy_micro").unwrap().mean, 45.0);

    sweep(&lab, Some("00"));
    let text = lab.refused("s");
    assert!(
        text.contains("cells/d1.json: changed since it was written"),
        "{text}"
    );
    sweep(&lab, None);
    std::fs::remove_file(lab.path("s/cells/d2.json")).unwrap();
    let text = lab.refused("s");
    assert!(
        text.contains("cells/d2.json") && text.contains("run the sweep again"),
        "{text}"
    );
    lab.write(
        "s/sweep.json",
        "{\"schema\": 1, \"rows\": [{\"backbone\": \"b\", \"stream\": \"\", \"label\": \"l\"}]}",
    );
    let text = lab.refused("s");
    assert!(
        text.contains("sweep.json: does not name its cells"),
        "{text}"
    );
    lab.write("s/sweep.json", "{");
    assert!(
        lab.refused("s")
            .contains("sweep.json: not the result of a sweep")
    );
}
