//! Several data sets, each a task.

use serde_json::Value;

use crate::lab::Lab;

/// Two sets of three classes of the lab's images.
fn lab() -> Lab {
    let lab = Lab::new();
    for (set, classes) in [
        ("one", ["bicycle", "bread", "cat"]),
        ("two", ["cloud", "goat", "star"]),
    ] {
        for class in classes {
            for part in ["train", "test"] {
                for name in lab.names(&format!("images/{part}/{class}")) {
                    let bytes = lab.read(&format!("images/{part}/{class}/{name}"));
                    lab.write(&format!("sets/{set}/{part}/{class}/{name}"), &bytes);
                }
            }
        }
    }
    for method in ["simplecil", "linear"] {
        let recipe = lab.text(&format!("{method}.toml"));
        let recipe = recipe
            .replace(
                "[data]\npath = \"images\"",
                "[[data.sets]]\npath = \"sets/two\"\n[[data.sets]]\npath = \"sets/one\"\nlabel = \"first\"",
            )
            .replace("increment = 2", "kind = \"multi-domain\"")
            .replace("order = { numpy = 1993 }", "");
        lab.write(&format!("{method}.toml"), recipe);
    }
    lab
}

fn matrix(report: &Value) -> Vec<Vec<f64>> {
    serde_json::from_value(report["accuracy_matrix"].clone()).unwrap()
}

#[test]
fn sets_are_learned_one_by_one_and_what_is_not_known_is_said() {
    let lab = lab();
    let dry = lab.say("run simplecil.toml --dry-run");
    for part in ["data set", "| first", "first/bicycle"] {
        assert!(dry.out.contains(part), "{}", dry.out);
    }
    let said = lab.run("simplecil", "sets", "");
    assert!(
        said.out.contains("not defined  mtil_transfer: the method"),
        "{}",
        said.out
    );
    assert!(said.out.contains("mtil_last"), "{}", said.out);
    let report = lab.json("sets/report.json");
    assert_eq!(report["scenario"], "multi-domain");
    assert_eq!(report["tasks"][0]["set"], "two");
    assert_eq!(report["tasks"][1]["set"], "first");
    assert_eq!(report["tasks"][1]["classes"][2], "first/cat");
    let rows = matrix(&report);
    assert_eq!(rows.iter().map(Vec::len).collect::<Vec<_>>(), [1, 2]);
    let metrics = &report["metrics"];
    assert_eq!(metrics.get("mtil_transfer"), None);
    let last = (rows[1][0] + rows[1][1]) / 2.0;
    assert_eq!(metrics["mtil_last"].as_f64().unwrap(), last);
    assert_eq!(report["undefined"].as_object().unwrap().len(), 2);
    // Among the classes of the own set, as a run on that set alone.
    let alone = lab.text("simplecil.toml");
    let alone = alone.replace("[[data.sets]]\npath = \"sets/one\"\nlabel = \"first\"", "");
    lab.write("alone.toml", alone);
    lab.run("alone", "alone", "");
    let one = lab.json("alone/report.json");
    assert_eq!(matrix(&one), [[rows[0][0]]]);
    assert_eq!(rows[1][0], rows[0][0], "means do not move");
    for [image, class, predicted, _] in lab.predictions("sets") {
        let set = image.split('/').next().unwrap();
        assert!(
            class.starts_with(set) && predicted.starts_with(set),
            "{image} {predicted}"
        );
    }
    let csv = lab.text("sets/accuracy.csv");
    let sessions: Vec<&str> = csv.lines().collect();
    assert!(
        sessions[1].starts_with("1,3,") && sessions[1].ends_with(','),
        "{csv}"
    );
    assert!(sessions[2].starts_with("2,6,"), "{csv}");
    let page = lab.text("sets/report.html");
    for part in ["not defined", "transfer, MTIL", "after learning a data set"] {
        assert!(page.contains(part), "{part}");
    }
    // Without stored features, and a finished run at work.
    lab.run("simplecil", "images", "--set features=off");
    assert!(lab.read("sets/report.json") == lab.read("images/report.json"));
    let said = lab.say("predict sets images/test/goat");
    assert!(said.out.contains("two/"), "{}", said.out);
    lab.run("linear", "linear", "");
    assert_eq!(matrix(&lab.json("linear/report.json"))[1].len(), 2);
}

#[test]
fn sets_and_streams_that_do_not_fit_are_refused() {
    let lab = lab();
    for (set, parts) in [
        (
            "stream.kind=class-incremental",
            &["stream.kind", "\"multi-domain\""][..],
        ),
        (
            "stream.increment=2",
            &["stream.kind", "remove first, increment"],
        ),
        ("data.path=images", &["[[data.sets]]", "move name, path"]),
        (
            "data.sets=[{path=\"sets/one\"},{path=\"sets/one\"}]",
            &["data.sets", "two are called `one`"],
        ),
        ("data.sets=[{label=\"x\"}]", &["[data.sets] needs either"]),
        ("data.sets=[{path=\"nowhere\"}]", &["`nowhere`"]),
        (
            "stream.order=[\"two\"]",
            &["stream.order", "must hold each of the 2 data sets once"],
        ),
    ] {
        lab.refused(&format!("simplecil.toml --set {set}"), parts);
    }
    let one = lab
        .text("l2p.toml")
        .replace("increment = 2", "kind = \"multi-domain\"");
    lab.write("l2p.toml", one);
    lab.refused("l2p.toml", &["stream.kind", "[[data.sets]]"]);
}

/// Each set among its own classes.
#[test]
fn zeroshot_names_each_set_by_itself() {
    let lab = lab();
    let said = lab.say("zeroshot simplecil.toml --backbone clip-micro --out z.csv");
    for part in ["| data set", "| two ", "| first ", "| mean of the sets"] {
        assert!(said.out.contains(part), "{}", said.out);
    }
    let lines = lab.text("z.csv");
    let mut images = 0;
    for line in lines.lines().skip(1) {
        let cells: Vec<&str> = line.split(',').collect();
        let of = |class: &str| class.split('/').next().map(str::to_owned);
        assert_eq!(of(cells[1]), of(cells[2]), "{line}");
        images += 1;
    }
    let row = |name: &str| -> Vec<String> {
        let mut rows = said.out.lines().filter(|line| line.contains(name));
        let cells = rows.next().unwrap().split('|').map(str::trim);
        cells.map(str::to_owned).collect()
    };
    let number = |name: &str, i: usize| row(name)[i].parse::<f64>().unwrap();
    let both = [number("| two ", 2), number("| first ", 2)];
    assert!(both.iter().all(|n| *n > 0.0));
    assert_eq!(both.iter().sum::<f64>(), f64::from(images));
    let mean = (number("| two ", 4) + number("| first ", 4)) / 2.0;
    assert!((number("| mean", 4) - mean).abs() < 0.006);
    assert_eq!(number("| two ", 7), 33.33);
}
