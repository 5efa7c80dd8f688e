//! Data sets by name and from archives and tables: the same images give the same run.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::lab::{FEW, Lab, Said};
use crate::pack;
use crate::server::{Files, Server};

/// What does not name the source.
const SAME: [&str; 4] = [
    "report.json",
    "predictions.csv",
    "accuracy.csv",
    "params.safetensors",
];

/// The images of the committed shards, from which they were made.
fn pictures() -> Vec<(String, Vec<u8>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/emoji-r-mini");
    let mut pictures = Vec::new();
    for (part, count) in [("train", 4), ("test", 2)] {
        for class in ["bicycle", "cat", "goat", "star"] {
            let folder = fs::read_dir(root.join(part).join(class)).unwrap();
            let mut files: Vec<_> = folder.map(|entry| entry.unwrap().path()).collect();
            files.sort();
            for file in files.into_iter().take(count) {
                let name = file.file_name().unwrap().to_str().unwrap();
                pictures.push((format!("{part}/{class}/{name}"), fs::read(&file).unwrap()));
            }
        }
    }
    pictures
}

/// The shards, by their names in a repository.
fn shards() -> BTreeMap<String, Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sets/tests/fixtures/hub/data");
    let shard = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        (format!("data/{name}"), fs::read(&path).unwrap())
    };
    fs::read_dir(root).unwrap().map(shard).collect()
}

/// A lab with the pictures as a folder and in archives; features are computed anew from each.
fn lab() -> Lab {
    let lab = Lab::new();
    let files = pictures();
    pack::folder(&lab.path("pictures"), &files);
    let tar = pack::tar(&files);
    lab.write("a.tar", &tar);
    lab.write("a.tar.gz", pack::gzip(&tar));
    lab.write("a.zip", pack::zip(&files));
    for (name, bytes) in shards() {
        lab.write(&format!("shards/{name}"), bytes);
    }
    lab
}

#[test]
fn every_source_gives_the_same_run() {
    let lab = lab();
    for method in FEW {
        let run = |path: &str, out: &str| {
            let set = format!("--set data.path={path} --set features=off");
            lab.run(method, out, &set);
        };
        run("pictures", "folder");
        for path in ["a.tar", "a.tar.gz", "a.zip", "shards"] {
            run(path, "other");
            for file in SAME {
                let [a, b] = ["folder", "other"].map(|out| lab.read(&format!("{out}/{file}")));
                assert!(a == b, "{method} from {path}: {file}");
            }
            fs::remove_dir_all(lab.path("other")).unwrap();
        }
        fs::remove_dir_all(lab.path("folder")).unwrap();
    }
}

#[test]
fn features_of_a_named_set_serve_from_wherever_it_is_read() {
    let lab = lab();
    let text = lab.text("simplecil.toml");
    let name = "name = \"stanford-cars\"\nexpected_images = [16, 8]\npath = \"images\"";
    lab.write("named.toml", text.replace("path = \"images\"", name));
    lab.run("named", "shards", "--set data.path=shards");
    let kept = lab.names("features");
    assert_eq!(kept.len(), 1, "{kept:?}");
    lab.run("named", "tar", "--set data.path=a.tar");
    assert_eq!(lab.names("features"), kept);
    assert!(lab.read("shards/report.json") == lab.read("tar/report.json"));
}

/// With the Hub within reach.
fn online(lab: &Lab, server: &Server, line: &str) -> Said {
    let mut command = lab.command();
    command.env("HF_ENDPOINT", &server.url);
    command.env_remove("HF_HUB_OFFLINE");
    Said::of(command.args(line.split_whitespace()).output().unwrap())
}

#[test]
fn a_set_by_its_name_is_fetched_checked_and_learned() {
    let lab = lab();
    let server = Server::start(Files {
        repos: BTreeMap::from([("tanganke/stanford_cars".to_owned(), shards())]),
        ..Files::default()
    });
    let text = lab.text("simplecil.toml");
    let named = text.replace("path = \"images\"", "name = \"stanford-cars\"");
    lab.write("named.toml", &named);
    let parts = [
        "data/stanford-cars",
        "is not there",
        "candlewick data fetch stanford-cars",
    ];
    lab.refused("named.toml", &parts);

    let said = lab.say("data fetch stanford-cars");
    said.failed(&["HF_HUB_OFFLINE"]);
    let said = online(&lab, &server, "data fetch stanford-cars");
    assert_eq!(said.code, Some(0), "{}", said.err);
    for part in [
        "from `hub`",
        "data/train-00001-of-00002.parquet",
        "sha256",
        "data/stanford-cars",
    ] {
        assert!(said.out.contains(part), "{}", said.out);
    }

    // The server has four classes, the card says 196.
    let said = lab.say("data check stanford-cars");
    said.failed(&["8144 training images, found 16", "--source hub"]);
    assert!(
        said.out
            .contains("16 images to train on and 8 to test, of 4 classes"),
        "{}",
        said.out
    );
    lab.refused(
        "named.toml",
        &["8144 training images, found 16", "data check stanford-cars"],
    );

    let counted = "--set data.expected_images=[16,8]";
    lab.run("named", "named", counted);
    lab.run("simplecil", "folder", "--set data.path=pictures");
    for file in SAME {
        assert!(
            lab.read(&format!("named/{file}")) == lab.read(&format!("folder/{file}")),
            "{file}"
        );
    }
    // A path says where the set lies instead.
    fs::rename(lab.path("data/stanford-cars"), lab.path("elsewhere")).unwrap();
    lab.run(
        "named",
        "moved",
        &format!("{counted} --set data.path=elsewhere"),
    );
    assert!(lab.read("named/report.json") == lab.read("moved/report.json"));
    let mut command = lab.command();
    fs::create_dir_all(lab.path("sets")).unwrap();
    fs::rename(lab.path("elsewhere"), lab.path("sets/stanford-cars")).unwrap();
    command.env("CANDLEWICK_DATA", lab.path("sets"));
    let said = Said::of(
        command
            .args(["data", "check", "stanford-cars"])
            .output()
            .unwrap(),
    );
    said.failed(&["found 16"]);
}

#[test]
fn a_set_in_one_piece_is_divided_by_name_too() {
    let lab = lab();
    let whole: Vec<_> = pictures()
        .into_iter()
        .map(|(name, bytes)| (name.split_once('/').unwrap().1.to_owned(), bytes))
        .collect();
    lab.write("r/imagenet-r.tar", pack::tar(&whole));
    pack::folder(&lab.path("folder"), &whole);
    let text = lab.text("simplecil.toml");
    lab.write(
        "named.toml",
        text.replace("path = \"images\"", "name = \"imagenet-r\"\npath = \"r\""),
    );
    lab.refused("named.toml", &["imagenet-r has 30000 images, found 24"]);
    // Stratified, 80/20, is what a name means where nothing is said.
    let count = "--set data.expected_images=[20,4]";
    lab.run("named", "named", count);
    lab.run(
        "simplecil",
        "split",
        "--set data.path=folder --set data.split.kind=stratified",
    );
    assert!(lab.read("named/report.json") == lab.read("split/report.json"));
    for (recipe, out) in [
        ("named.toml", "a"),
        ("simplecil.toml --set data.path=folder", "b"),
    ] {
        let set = "--set data.split.kind=l2p --set data.split.test_fraction=0.4";
        let said = lab.say(&format!(
            "data split {recipe} {set} --set data.expected_images=[14,10] --out {out}"
        ));
        assert_eq!(said.code, Some(0), "{}", said.err);
    }
    for file in ["train.txt", "test.txt"] {
        assert_eq!(
            lab.text(&format!("a/{file}")),
            lab.text(&format!("b/{file}"))
        );
    }
}

#[test]
fn cards_are_listed_shown_and_misspelled() {
    let lab = Lab::new();
    let said = lab.say("data list");
    assert_eq!(said.code, Some(0), "{}", said.err);
    for name in [
        "imagenet-r",
        "cifar10",
        "cifar100",
        "imagenet-a",
        "cub200",
        "omnibenchmark",
        "vtab",
        "objectnet",
        "stanford-cars",
        "domainnet",
        "core50",
        "5-datasets",
        "fashion-mnist",
        "emoji-r",
    ] {
        assert!(said.out.contains(name), "{name}: {}", said.out);
    }
    let said = lab.say("data show imagenet-r");
    for part in ["imagenet-r.tar", "18c6bf493b39", "licence = ", "[[source]]"] {
        assert!(said.out.contains(part), "{}", said.out);
    }
    lab.say("data show imagenet-e")
        .failed(&["'imagenet-e'", "did you mean 'imagenet-"]);
    lab.refused(
        "linear.toml --set data.name=imagenetr",
        &["data.name", "'imagenetr'", "did you mean 'imagenet-r'"],
    );
    let parts = [
        "omnibenchmark cannot be fetched by a program",
        "RevisitingCIL",
        "into here/it",
    ];
    lab.say("data fetch omnibenchmark --to here/it")
        .failed(&parts);
    assert!(!lab.path("here").exists());
}
