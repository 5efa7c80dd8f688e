//! `candlewick compare` on runs that were made, not written.

use crate::lab::{Lab, TEST};

/// The cells of the row that begins with a number.
fn row(text: &str, number: usize) -> Vec<String> {
    let begin = format!("| {number} ");
    let row = text.lines().find(|line| line.starts_with(&begin));
    let row = row.unwrap_or_else(|| panic!("no row {number} in: {text}"));
    let cells = row.trim_matches('|').split(" | ");
    cells.map(|cell| cell.trim().to_owned()).collect()
}

fn shown(lab: &Lab, line: &str) -> String {
    let said = lab.say(line);
    assert_eq!(said.code, Some(0), "{line}: {}", said.err);
    said.out
}

#[test]
fn runs_are_compared_and_tested_or_marked() {
    let lab = Lab::new();
    lab.run("linear", "one", "");
    lab.run("simplecil", "two", "--set seed=2");
    lab.run("simplecil", "crop", "--set preprocess.crop=56");
    lab.run("simplecil", "order", "--set stream.order=natural");
    lab.run("simplecil", "tasks", "--set stream.increment=3");
    lab.run("simplecil", "blocks", "--set backbone.depth=1");

    let text = shown(&lab, "compare one two --figure figures/d.svg");
    assert!(
        text.contains("\nComparable: ") && !text.contains("NOT ALL"),
        "{text}"
    );
    for (number, run) in [(1, "one"), (2, "two")] {
        let report = lab.json(&format!("{run}/report.json"));
        let cells = row(&text, number);
        let value = report["metrics"]["average_incremental_accuracy"]
            .as_f64()
            .unwrap();
        assert_eq!(cells[2], format!("{value:.2}"));
    }
    // By hand from the predictions.
    let hits = |run: &str| {
        lab.predictions(run)
            .into_iter()
            .map(|row| (row[0].clone(), row[1] == row[2]))
    };
    let two: std::collections::BTreeMap<_, _> = hits("two").collect();
    let alone = |first: bool| {
        hits("one")
            .filter(|(image, hit)| *hit == first && two[image] != first)
            .count()
    };
    let n = 6 * TEST;
    assert!(text.contains(&format!("McNemar, n = {n} ")), "{text}");
    assert!(
        text.contains(&format!("b = {}, c = {}", alone(true), alone(false))),
        "{text}"
    );
    assert!(lab.text("figures/d.svg").starts_with("<svg"));

    for (other, fields) in [
        ("crop", &["preprocess"][..]),
        ("order", &["class_order"]),
        ("tasks", &["class_order"]),
        ("blocks", &["depth"]),
    ] {
        let text = shown(&lab, &format!("compare two {other}"));
        assert!(
            text.contains("NOT ALL COMPARABLE") && !text.contains("McNemar"),
            "{text}"
        );
        assert_eq!(text.matches("\n- `").count(), 2 * fields.len(), "{text}");
        for field in fields {
            assert!(text.contains(&format!("- `a` {field}: ")), "{text}");
        }
        assert!(
            row(&text, 1)[2].ends_with("[a]") && row(&text, 2)[2].ends_with("[b]"),
            "{text}"
        );
    }
    let said = lab.say("compare two crop --figure no.svg");
    said.failed(&["no run may be compared with the first"]);
    assert!(!lab.path("no.svg").exists());
}

#[test]
fn other_numerics_and_a_report_from_before_them() {
    let lab = Lab::new();
    lab.run("simplecil", "now", "");
    let mut report = lab.json("now/report.json");
    assert_eq!(
        report["fingerprint"]["numerics"],
        candlewick_core::report::NUMERICS
    );
    report["fingerprint"]["numerics"] = 99.into();
    lab.write("later/report.json", report.to_string());
    report["fingerprint"]
        .as_object_mut()
        .unwrap()
        .remove("numerics");
    lab.write("before/report.json", report.to_string());
    let text = shown(&lab, "compare now later before");
    for line in [
        "- `a` numerics: 2 (row 1)",
        "- `b` numerics: 99 (row 2)",
        "` numerics: not known of ",
    ] {
        assert!(text.contains(line), "no {line} in: {text}");
    }
    let text = shown(&lab, "report now later");
    assert!(
        text.contains("NOT COMPARABLE") && text.contains("  numerics: 2 | 99"),
        "{text}"
    );
}

#[test]
fn seeds_and_sweeps_are_rows_with_paired_tests() {
    let lab = Lab::new();
    let order = "--seeds 1,2,3 --set stream.order=seed";
    lab.run("simplecil", "a", order);
    lab.run("linear", "b", order);
    lab.write(
        "s.toml",
        "seeds = [1, 2, 3]\n[base.data]\npath = \"images\"\n[base.stream]\nincrement = 2\norder = \"seed\"\n\
         [base.backbone]\nname = \"vit-micro\"\ndepth = 2\n[[method]]\nname = \"simplecil\"\n[[method]]\nname = \"nearest-mean\"\ndistance = \"euclidean\"\n",
    );
    let said = lab.say("sweep s.toml --out s");
    assert_eq!(said.code, Some(0), "{}", said.err);
    let text = shown(&lab, "compare a b s");
    assert!(text.contains("\nComparable: "), "{text}");
    let spread = &lab.json("a/summary.json")["metrics"]["last_accuracy_micro"];
    let (mean, std) = (
        spread["mean"].as_f64().unwrap(),
        spread["std"].as_f64().unwrap(),
    );
    let expected = format!("{mean:.2} ± {std:.2}");
    // A cell of a sweep is the run of its recipe.
    assert_eq!(row(&text, 1)[3], expected, "{text}");
    assert_eq!(row(&text, 3)[2..], row(&text, 1)[2..], "{text}");
    assert!(
        row(&text, 3)[1].contains("s: simplecil (vit-micro"),
        "{text}"
    );
    assert!(
        text.contains("permutation, average_incremental_accuracy, 3 seeds"),
        "{text}"
    );
    assert!(text.contains("McNemar, n = 24, seed 3"), "{text}");
    assert!(
        text.contains("not tested, rows 1 and 3: no predictions.csv"),
        "{text}"
    );
    // The sweep's own table has the same p.
    let sweep = shown(&lab, "compare s");
    let pairs = lab.json("s/sweep.json");
    let p = pairs["pairs"][0]["p"].as_f64().unwrap();
    let line = sweep
        .lines()
        .find(|l| l.contains("permutation, average_incremental_accuracy"))
        .unwrap();
    assert!(line.contains(&format!(" {p:.4} ")), "{line} {p}");
}

#[test]
fn published_results_stand_beside_a_run_and_say_where_they_are_from() {
    let lab = Lab::new();
    lab.run("simplecil", "runs/mine", "--set preprocess.preset=pilot");
    // A name below runs/, and two rows by their ids.
    let ids = "aper-simplecil-imagenet-r pilot-simplecil-imagenet-r";
    let text = shown(&lab, &format!("compare mine {ids}"));
    assert!(
        row(&text, 2)[2].starts_with("62.57 [") && row(&text, 3)[2].starts_with("67.06 ["),
        "{text}"
    );
    assert_eq!(row(&text, 3)[8], "a user's run");
    assert!(
        text.contains("row 3, pilot-simplecil-imagenet-r: LAMDA-CL/LAMDA-PILOT issue 9"),
        "{text}"
    );
    for field in ["weights", "depth", "split", "class_order"] {
        assert!(text.contains(&format!("` {field}: ")), "{field}: {text}");
    }
    // The run has the preset's own hash, and so do they.
    assert!(!text.contains("` preprocess: "), "{text}");
    let all = shown(&lab, "compare mine --published imagenet-r --format csv");
    assert!(all.lines().count() > 40, "{all}");
    lab.write("own.toml", "data = \"x\"\n[[result]]\nid = \"a\"\nmethod = \"m\"\nsource = \"s\"\nsure = \"paper\"\nlast = 12.5\n");
    let text = shown(&lab, "compare mine --published own.toml");
    assert!(
        row(&text, 2)[3].starts_with("12.50 [") && text.contains("weights: not known"),
        "{text}"
    );

    lab.say("compare mine nobody-simplecil-imagenet-r")
        .failed(&[
            "nobody-simplecil-imagenet-r",
            "no runs/nobody",
            "nearest id is `",
        ]);
    lab.say("compare mine --published nowhere")
        .failed(&["nowhere", "imagenet-r"]);
    lab.write("own.toml", "data = 1");
    lab.say("compare mine --published own.toml")
        .failed(&["own.toml"]);
    lab.say("compare").failed(&["nothing to compare"]);
    lab.write("runs/bad/report.json", "{");
    lab.say("compare mine bad")
        .failed(&["runs/bad/report.json", "not a report"]);
}

#[test]
fn the_ending_of_the_file_says_the_format() {
    let lab = Lab::new();
    lab.run("simplecil", "a", "");
    for (file, begin) in [
        ("t/t.md", "| # "),
        ("t/t.csv", "row,result,"),
        ("t/t.tex", "% Needs"),
        ("t/t.html", "<div class=\"cw-compare\">"),
    ] {
        assert_eq!(shown(&lab, &format!("compare a --out {file}")), "");
        assert!(lab.text(file).starts_with(begin), "{}", lab.text(file));
    }
    assert_eq!(lab.names("t").len(), 4, "no temporary file is left");
    shown(&lab, "compare a --out t/t.txt --format latex");
    assert_eq!(lab.text("t/t.txt"), lab.text("t/t.tex"));
    lab.say("compare a --out t/t.xls")
        .failed(&["t/t.xls", ".tex"]);
}
