//! Many runs in one: the same numbers as one by one, kept whatever happens.

use std::fs;

use serde_json::Value;

use crate::lab::{Lab, Said};

const SWEEP: &str = r#"
seeds = [3, 1, 2]
[base]
[base.data]
path = "images"
[base.stream]
increment = 2
order = "seed"
[base.backbone]
name = "vit-micro"
depth = 2
[[stream]]
increment = 2
[[stream]]
increment = 3
[[method]]
name = "simplecil"
[[method]]
name = "linear"
train = { epochs = 2, batch = 4, optimizer = "adam", lr = 1.0 }
grid = { "train.lr" = [0.01, 0.1] }
"#;

const CELLS: usize = 3 * 2 * 3;

/// What does not tell the time.
const RESULT: [&str; 3] = ["sweep.json", "table.txt", "sweep.svg"];

fn lab() -> Lab {
    let lab = Lab::new();
    lab.write("s.toml", SWEEP);
    lab
}

fn sweep(lab: &Lab, line: &str) -> Said {
    let said = lab.say(&format!("sweep s.toml {line}"));
    assert_eq!(said.code, Some(0), "{}", said.err);
    said
}

fn same(lab: &Lab, one: &str, two: &str) {
    for file in RESULT {
        let (a, b) = (format!("{one}/{file}"), format!("{two}/{file}"));
        assert!(lab.read(&a) == lab.read(&b), "{a} and {b}");
    }
}

#[test]
fn a_cell_is_the_run_of_its_recipe() {
    let lab = lab();
    let said = sweep(&lab, "--out s");
    assert!(
        said.err
            .contains(&format!("{CELLS} cells to run, 0 are kept")),
        "{}",
        said.err
    );
    assert!(said.out.contains("linear train.lr=0.01"), "{}", said.out);
    assert!(
        said.out
            .contains("linear train.lr=0.01 − linear train.lr=0.1"),
        "{}",
        said.out
    );
    let json = lab.json("s/sweep.json");
    assert_eq!(json["rows"].as_array().unwrap().len(), 6);
    // Pairs within a stream, for each of five metrics.
    assert_eq!(json["pairs"].as_array().unwrap().len(), 2 * 3 * 5);
    let more = "--seeds 3,1,2 --set stream.increment=3 --set stream.order=seed --set train.epochs=2 --set train.lr=0.1";
    lab.run("linear", "runs", more);
    let row = json["rows"].as_array().unwrap().iter().find(|row| {
        row["method"] == "linear"
            && row["stream"] == "increment=3"
            && row["settings"] == "train.lr=0.1"
    });
    let summary = lab.json("runs/summary.json");
    for metric in row.unwrap()["metrics"].as_array().unwrap() {
        let name = metric["name"].as_str().unwrap();
        for key in ["mean", "std", "values"] {
            let (a, b) = (&metric[key], &summary["metrics"][name][key]);
            assert!(near(a, b), "{name} {key}: {a} {b}");
        }
    }
    let csv = lab.text("s/sweep.csv");
    assert_eq!(csv.lines().count(), 1 + CELLS);
    assert!(
        csv.starts_with("backbone,stream,label,method,settings,seed,average_incremental_accuracy,")
    );
    assert!(lab.text("s/sweep.svg").starts_with("<svg"));
}

/// JSON may be read one bit off.
fn near(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| near(a, b))
        }
        _ => (a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 1e-9,
    }
}

/// Two settings of one method are two rows, by the names they are given.
#[test]
fn variants_of_a_method_have_rows_of_their_own() {
    let lab = lab();
    let near = |label: &str, distance: &str| {
        format!("{{name=\"nearest-mean\",distance=\"{distance}\"{label}}}")
    };
    let sweep = |line: String| lab.say_args(&["sweep", "s.toml", "--out", "rows", "--set", &line]);
    let twice = format!("method=[{},{}]", near("", "cosine"), near("", "euclidean"));
    sweep(twice).failed(&["two rows are `nearest-mean`", "`label`"]);
    let empty = format!("method=[{}]", near(",label=\" \"", "cosine"));
    sweep(empty).failed(&["s.toml", "method.label"]);
    let named = format!(
        "method=[{},{},{{name=\"simplecil\"}}]",
        near(",label=\"whitened\"", "mahalanobis"),
        near(",label=\"by the angle\"", "cosine"),
    );
    let said = sweep(named);
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert!(said.out.contains("whitened − by the angle"), "{}", said.out);
    let json = lab.json("rows/sweep.json");
    let rows = json["rows"].as_array().unwrap();
    let labels: Vec<&str> = rows.iter().map(|r| r["label"].as_str().unwrap()).collect();
    let once = ["whitened", "by the angle", "simplecil"];
    assert_eq!(labels, [once, once].concat());
    assert!(rows[..2].iter().all(|row| row["method"] == "nearest-mean"));
    // Each is its own setting: one is SimpleCIL, the other is not.
    assert_eq!(rows[1]["metrics"], rows[2]["metrics"]);
    assert_ne!(rows[0]["metrics"], rows[2]["metrics"]);
    let csv = lab.text("rows/sweep.csv");
    assert!(csv.contains(",by the angle,nearest-mean,,"), "{csv}");
}

/// Recipes of their own, the last two on other pixels and on another split.
const RECIPES: &str = r#"
seeds = [3, 1]
[[recipe]]
file = "../simplecil.toml"
[[recipe]]
file = "../linear.toml"
grid = { "train.lr" = [0.01, 0.1] }
[[recipe]]
file = "../coarse.toml"
label = "coarse"
[[recipe]]
file = "../divided.toml"
label = "divided"
"#;

fn recipes() -> Lab {
    let lab = Lab::new();
    lab.write("sweeps/s.toml", RECIPES);
    let simplecil = lab.text("simplecil.toml");
    let coarse = format!("{simplecil}[preprocess]\ncrop = 56\n");
    lab.write("coarse.toml", coarse);
    let split = "path = \"images/train\"\nsplit = { kind = \"stratified\", seed = 3 }";
    let divided = simplecil.replace("path = \"images\"", split);
    assert_ne!(divided, simplecil);
    lab.write("divided.toml", divided);
    lab
}

/// What is not under the same conditions has a table of its own, which says how it differs.
#[test]
fn recipes_are_rows_and_only_like_is_put_beside_like() {
    let lab = recipes();
    let said = lab.say("sweep sweeps/s.toml --out s");
    assert_eq!(said.code, Some(0), "{}", said.err);
    let json = lab.json("s/sweep.json");
    let rows = json["rows"].as_array().unwrap();
    let of = |key: &str| -> Vec<&str> { rows.iter().map(|r| r[key].as_str().unwrap()).collect() };
    let linear = ["linear train.lr=0.01", "linear train.lr=0.1"];
    assert_eq!(
        of("label"),
        ["simplecil", linear[0], linear[1], "coarse", "divided"]
    );
    let groups = of("group");
    assert_eq!(
        groups[..3],
        ["vit-micro, pixels of its card, images as divided"; 3]
    );
    assert!(groups[3].starts_with("vit-micro, pixels "), "{groups:?}");
    assert!(groups[3].ends_with(", images as divided"), "{groups:?}");
    assert_eq!(
        groups[4],
        "vit-micro, pixels of its card, images/train stratified 3"
    );
    let pairs = json["pairs"].as_array().unwrap();
    assert_eq!(pairs.len(), 3 * 5);
    assert!(pairs.iter().all(|pair| pair["group"] == groups[0]));
    for group in groups {
        assert!(said.out.contains(group), "{group}: {}", said.out);
    }
    // The seeds of the sweep, not those of the files.
    let more = "--seeds 3,1 --set train.lr=0.1";
    lab.run("linear", "runs", more);
    let summary = lab.json("runs/summary.json");
    for metric in rows[2]["metrics"].as_array().unwrap() {
        let one = &summary["metrics"][metric["name"].as_str().unwrap()];
        assert!(near(&metric["values"], &one["values"]), "{metric} {one}");
    }
}

/// `[base]` takes the place of whole tables, `[replace]` of single values.
#[test]
fn recipes_are_brought_to_the_same_terms() {
    let lab = recipes();
    let sets = [
        "base.data.path=images",
        "base.preprocess.crop=48",
        "replace.stream.increment=3",
        "replace.train.epochs=3",
        "method=[{name=\"knn\",k=3,distance=\"cosine\",weights=\"uniform\"}]",
        "base.backbone={name=\"vit-micro\",depth=1}",
        "base.stream={increment=2,order=\"seed\"}",
    ];
    let mut args = vec!["sweep", "sweeps/s.toml", "--out", "s"];
    args.extend(sets.iter().flat_map(|set| ["--set", set]));
    let said = lab.say_args(&args);
    assert_eq!(said.code, Some(0), "{}", said.err);
    let json = lab.json("s/sweep.json");
    let rows = json["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 6);
    assert!(rows.iter().all(|row| row["group"] == "vit-micro"));
    assert_eq!(json["pairs"].as_array().unwrap().len(), 15 * 5);
    let more = "--seeds 3,1 --set train.lr=0.1 --set train.epochs=3 --set stream.increment=3 --set stream.order=seed \
                --set preprocess.crop=48 --set backbone.depth=1";
    lab.run("linear", "runs", more);
    let summary = lab.json("runs/summary.json");
    let row = rows.iter().find(|row| row["settings"] == "train.lr=0.1");
    let average = &row.unwrap()["metrics"][0];
    let name = average["name"].as_str().unwrap();
    let one = &summary["metrics"][name]["values"];
    assert!(near(&average["values"], one), "{average} {one}");
}

#[test]
fn what_a_recipe_of_a_sweep_lacks_is_named() {
    let lab = recipes();
    lab.write("broken.toml", "seed =");
    let recipe = |keys: &str| format!("recipe=[{{{keys}}}]");
    let file = "file=\"../linear.toml\"";
    for (set, parts) in [
        (
            recipe("file=\"../none.toml\""),
            vec!["s.toml: recipe.file", "none.toml"],
        ),
        (
            recipe("file=\"../broken.toml\""),
            vec!["s.toml: recipe.file", "broken.toml"],
        ),
        (recipe("fil=\"x\""), vec!["fil`", "did you mean `file`"]),
        (
            recipe(&format!("{file},label=\"\"")),
            vec!["s.toml", "recipe.label"],
        ),
        (
            recipe(&format!("{file},grid={{\"train.lrr\"=[1]}}")),
            vec!["s.toml", "linear.toml", "`train.lrr`"],
        ),
        (
            recipe(&format!("{file}}},{{{file}")),
            vec!["linear.toml", "two rows are `linear`"],
        ),
        ("recipe=[]".into(), vec!["[[recipe]]", "none is given"]),
        (
            "replace.train.epoch=1".into(),
            vec!["s.toml", "replace.train.epoch", "no row"],
        ),
        ("base.train.lr=1".into(), vec!["[base]", "`train`"]),
        ("method=[{name=\"knn\"}]".into(), vec!["[base]", "missing"]),
    ] {
        let said = lab.say_args(&["sweep", "sweeps/s.toml", "--out", "s", "--set", &set]);
        said.failed(&parts);
    }
}

#[test]
fn memory_holds_cells_back_and_changes_nothing() {
    let lab = lab();
    let ranpac = "[[method]]\nname = \"ranpac\"\nprojection = 600\n";
    lab.write("s.toml", format!("{SWEEP}{ranpac}"));
    let free = sweep(&lab, "--out free --threads 2");
    assert!(!free.err.contains("at once"), "{}", free.err);
    let held = sweep(&lab, "--out held --threads 2 --memory 1");
    let line = held.err.lines().find(|line| line.starts_with("ranpac: "));
    let line = line.unwrap_or_else(|| panic!("{}", held.err));
    assert!(
        line.contains("so 1 at once in 1 MiB; 2 threads could run more"),
        "{line}"
    );
    // Class means are little.
    assert!(!held.err.contains("simplecil: "), "{}", held.err);
    same(&lab, "free", "held");
}

#[test]
fn finished_cells_are_kept_and_spoilt_ones_are_not() {
    let lab = lab();
    sweep(&lab, "--out whole --threads 1");
    sweep(&lab, "--out again --threads 2");
    same(&lab, "whole", "again");
    let kept = |line: &str, missing: usize| {
        let said = sweep(&lab, line);
        let line = format!("{missing} cells to run, {} are kept", CELLS - missing);
        assert!(said.err.contains(&line), "{}", said.err);
        same(&lab, "whole", "again");
    };
    kept("--out again", 0);
    let mut cells = lab.names("again/cells").into_iter();
    let mut cell = || lab.path("again/cells").join(cells.next().unwrap());
    fs::remove_file(cell()).unwrap();
    let flipped = cell();
    let text = fs::read_to_string(&flipped).unwrap();
    let at = text.find("last_accuracy_micro").unwrap() + 24;
    let mut bytes = text.into_bytes();
    bytes[at..]
        .iter_mut()
        .find(|b| b.is_ascii_digit())
        .map(|b| *b ^= 1)
        .unwrap();
    fs::write(&flipped, bytes).unwrap();
    fs::write(cell(), "{").unwrap();
    kept("--out again", 3);
    // What is asked for otherwise is another cell.
    let said = sweep(&lab, "--out again --set seeds=[1,2,4]");
    assert!(
        said.err.contains("6 cells to run, 12 are kept"),
        "{}",
        said.err
    );
    let said = sweep(&lab, "--out again --set base.preprocess.crop=56");
    assert!(
        said.err.contains("18 cells to run, 0 are kept"),
        "{}",
        said.err
    );
}

#[test]
fn what_a_sweep_cannot_do_it_says_before_any_work() {
    let lab = lab();
    for (change, parts) in [
        ("--set seeds=[]", vec!["s.toml", "seeds"]),
        ("--set seeds=[1,1]", vec!["given twice"]),
        ("--set seds=[1]", vec!["`seds`", "did you mean `seeds`"]),
        ("--set base.seed=1", vec!["[base]", "`seed`"]),
        (
            "--set base.stream.incremnt=1",
            vec!["`stream.incremnt`", "did you mean `increment`"],
        ),
        ("--set base.data.path=nowhere", vec!["nowhere"]),
    ] {
        let said = lab.say(&format!("sweep s.toml --out s {change}"));
        said.failed(&parts);
        assert!(lab.names("s/cells").is_empty(), "{change}");
    }
    lab.say("sweep none.toml")
        .failed(&["none.toml", "examples/sweeps"]);
    lab.write("taken", "a file");
    lab.say("sweep s.toml --out taken/s")
        .failed(&["taken/s", "cannot be written"]);
}

/// SIGKILL at random moments, 20 times and more, also while the features are computed.
#[cfg(unix)]
#[test]
fn killing_a_sweep_loses_no_finished_cell() {
    use std::process::Stdio;
    use std::time::{Duration, Instant};

    let lab = lab();
    // Long enough to be met at work on a machine that does other things besides.
    lab.write("s.toml", SWEEP.replace("epochs = 2", "epochs = 200"));
    sweep(&lab, "--out whole --threads 1");
    // From the first finished cell to the last: features are slow beside cells, and only the first child computes them.
    let written = lab.names("whole/cells").into_iter();
    let mut written: Vec<_> = written
        .map(|name| fs::metadata(lab.path(&format!("whole/cells/{name}"))).unwrap())
        .map(|file| file.modified().unwrap())
        .collect();
    written.sort();
    assert_eq!(written.len(), CELLS);
    let cells = written[CELLS - 1].duration_since(written[0]).unwrap();
    fs::remove_dir_all(lab.path("features")).unwrap();
    // A kill in the middle of a file leaves one under another name.
    let finished = || {
        let names = lab.names("killed/cells").into_iter();
        names.filter(|name| name.ends_with(".json")).count()
    };
    let (mut kills, mut before, mut between) = (0, 0, 0);
    let mut random = 1u64;
    let mut tries = 0;
    // On a busy machine more are needed to meet it at work.
    while (kills < 20 || between <= 3) && tries < 200 {
        tries += 1;
        let mut child = lab
            .process(env!("CARGO_BIN_EXE_candlewick"))
            .args(["sweep", "s.toml", "--out", "killed", "--threads", "1"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let part = (random >> 33) as f64 / (1u64 << 31) as f64;
        // At work on a cell, after up to three others.
        let wait = (before + (4.0 * part) as usize).min(CELLS);
        let patience = Instant::now() + Duration::from_secs(60);
        while finished() < wait && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(cells.mul_f64(part / CELLS as f64));
        let ended = child.try_wait().unwrap().is_some();
        child.kill().unwrap();
        child.wait().unwrap();
        kills += usize::from(!ended);
        let found = finished();
        assert!(found >= before, "{found} of {before} are left");
        between += usize::from(found > before && found < CELLS);
        before = found;
        if ended || found == CELLS {
            // Nothing is left to be killed at but the tables.
            if !ended {
                sweep(&lab, "--out killed --threads 1");
            }
            same(&lab, "whole", "killed");
            fs::remove_dir_all(lab.path("killed")).unwrap();
            before = 0;
        }
    }
    assert!(
        kills >= 20 && between > 3,
        "{kills} kills, {between} at work"
    );
    let said = sweep(&lab, "--out killed");
    assert!(
        said.err.contains(&format!("{before} are kept")),
        "{}",
        said.err
    );
    same(&lab, "whole", "killed");
}
