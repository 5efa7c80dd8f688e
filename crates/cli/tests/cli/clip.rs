//! A CLIP from the command: zero-shot, and the methods that read class names.

use crate::lab::Lab;

const SENTENCE: [&str; 2] = ["--templates", "a photo of a {}"];

/// The table's row behind its head: backbone, images, classes, top 1, top 5, mean over classes, chance.
fn row(out: &str) -> Vec<f64> {
    let line = out.lines().find(|line| line.starts_with("| clip-micro"));
    let cells = line.unwrap_or_else(|| panic!("{out}")).split('|');
    cells.filter_map(|cell| cell.trim().parse().ok()).collect()
}

#[test]
fn zeroshot_finds_classes_it_was_not_trained_on() {
    let lab = Lab::new();
    let flags = [
        "zeroshot",
        "--backbone",
        "clip-micro",
        "--data",
        "emoji-r-mini",
        "--out",
        "z.csv",
    ];
    let said = lab.say_args(&[&flags[..], &SENTENCE].concat());
    let found = row(&said.out);
    assert_eq!((found[0], found[1], found[5]), (100.0, 50.0, 2.0));
    assert!(found[2] >= 8.0 && found[3] > found[2], "{}", said.out);
    let lines = lab.text("z.csv");
    assert_eq!(lines.lines().count(), 101);
    let right = lines.lines().skip(1).filter(|line| {
        let cells: Vec<&str> = line.split(',').collect();
        cells[1] == cells[2]
    });
    assert_eq!(right.count() as f64, found[2]);
    // Again, from the texts that were kept.
    let again = lab.say_args(&[&flags[..], &SENTENCE].concat());
    assert_eq!(row(&again.out), found);
    assert!(
        lab.names("features")
            .iter()
            .any(|name| name.starts_with("texts-"))
    );
}

#[test]
fn what_zeroshot_lacks_is_said() {
    let lab = Lab::new();
    for (line, says) in [
        (
            "zeroshot --backbone vit-micro --data emoji-r-mini",
            "no text tower",
        ),
        ("zeroshot --backbone clip-micro", "--data"),
        ("zeroshot --data emoji-r-mini", "--backbone"),
        (
            "zeroshot --backbone clip-micro --data emoji-r-mini --templates imagnet",
            "imagenet-r",
        ),
        (
            "zeroshot --backbone clip-micro --data nowhere",
            "no such folder",
        ),
    ] {
        lab.say(line).failed(&[says]);
    }
    lab.write("names.csv", "cat,a cat\n");
    lab.say("zeroshot --backbone clip-micro --data images --set data.class_names=names.csv")
        .failed(&["names.csv", "no line for class"]);
}

/// Each on the pictures inside the program, for an epoch; the last accuracy of the floor is zero-shot's.
#[test]
fn methods_of_class_names_run_to_their_end() {
    let lab = Lab::new();
    let base = "seed = 1\n[data]\nname = \"emoji-r-mini\"\n[stream]\nincrement = 25\n[backbone]\nname = \"clip-micro\"\n";
    let train = "[train]\nepochs = 1\nbatch = 16\noptimizer = \"adam\"\nlr = 1e-4\n";
    lab.write("sentences.txt", "a photo of a house\na photo of the sea\n");
    for (name, keys, trains, more) in [
        (
            "continual-clip",
            "templates = [\"a photo of a {}\"]",
            false,
            "",
        ),
        ("coop", "length = 2", true, ""),
        (
            "proof",
            "contexts = 3\nmemory = { per_class = 1, choice = \"herding\" }",
            true,
            "",
        ),
        (
            "promptfusion",
            "length = 2\nimage_prompts = 2\nbooster_prompts = 2\nmemory = { per_class = 1, choice = \"herding\" }",
            true,
            "[booster]\nname = \"vit-micro\"\ndepth = 2\n",
        ),
        (
            "zscl",
            "average_every = 2\ndistillation = { images = 1.0, texts = 1.0, temperature = 2.0, batch = 8 }",
            true,
            "[reference]\ndata = { path = \"images\" }\nsentences = \"sentences.txt\"\n",
        ),
    ] {
        let train = if trains { train } else { "" };
        let text = format!("{base}[method]\nname = \"{name}\"\n{keys}\n{train}{more}");
        lab.write(&format!("{name}.toml"), text);
        let dry = lab.say(&format!("run {name}.toml --dry-run"));
        lab.run(name, name, "");
        let report = lab.json(&format!("{name}/report.json"));
        let trainable = report["cost"]["trainable_parameters"].as_u64().unwrap();
        let line = format!("trainable {trainable} parameters");
        assert!(dry.out.contains(&line), "{name}: {line}: {}", dry.out);
        assert!(report["fingerprint"]["text"].is_string(), "{name}");
        let kept = report["exemplars"]["images"][1].as_u64();
        let keeps = ["proof", "promptfusion"].contains(&name);
        assert_eq!(kept, keeps.then_some(50), "{name}");
        let booster = report["fingerprint"]["booster"].as_str();
        assert_eq!(
            booster.is_some_and(|b| b.ends_with(", 2 blocks")),
            name == "promptfusion"
        );
        let of = report["fingerprint"]["backbone"].as_str().unwrap();
        assert_eq!(of == "clip-micro with vit-micro", booster.is_some(), "{of}");
        if name == "continual-clip" {
            let rows: Vec<Vec<f64>> =
                serde_json::from_value(report["accuracy_matrix"].clone()).unwrap();
            let last = rows[1].iter().sum::<f64>() / 2.0;
            let flags = [
                "zeroshot",
                "--backbone",
                "clip-micro",
                "--data",
                "emoji-r-mini",
            ];
            let said = lab.say_args(&[&flags[..], &SENTENCE].concat());
            assert!(
                (row(&said.out)[2] - last).abs() < 0.01,
                "{last} {}",
                said.out
            );
        }
    }
    lab.write(
        "held.toml",
        lab.text("zscl.toml").split("[reference]").next().unwrap(),
    );
    lab.refused("held.toml", &["[reference]"]);
}

/// In a sweep, methods with and without texts share one backbone's name but not one load.
#[test]
fn a_sweep_has_methods_with_texts_and_without() {
    let lab = Lab::new();
    lab.write(
        "sweep.toml",
        "seeds = [1]\n[base.data]\nname = \"emoji-r-mini\"\n[base.stream]\nincrement = 25\n[base.backbone]\nname = \"clip-micro\"\n\
         [[method]]\nname = \"simplecil\"\n[[method]]\nname = \"continual-clip\"\n",
    );
    let said = lab.say("sweep sweep.toml --out s");
    assert_eq!(said.code, Some(0), "{}", said.err);
    for name in ["simplecil", "continual-clip"] {
        assert!(said.out.contains(name), "{}", said.out);
    }
}
