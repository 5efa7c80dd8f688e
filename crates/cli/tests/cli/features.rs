//! Features on disk: the same results as from images, whatever happens to the process or the file.

use std::fs;
use std::path::PathBuf;

use candlewick_store::{Store, Writer, key};

use crate::lab::{CLASSES, Lab, TEST, TRAIN};

const IMAGES: usize = CLASSES.len() * (TRAIN + TEST);
const RESULT: [&str; 4] = [
    "report.json",
    "predictions.csv",
    "accuracy.csv",
    "params.safetensors",
];

/// The only store in the lab.
fn store(lab: &Lab) -> PathBuf {
    let names = lab.names("features");
    assert_eq!(names.len(), 1, "{names:?}");
    lab.path("features").join(names.first().unwrap())
}

fn same(lab: &Lab, one: &str, two: &str) {
    for file in RESULT {
        let (a, b) = (format!("{one}/{file}"), format!("{two}/{file}"));
        assert!(lab.read(&a) == lab.read(&b), "{a} and {b}");
    }
}

/// The demo's recipe, and its simplecil from images under `plain`.
fn demo(lab: &Lab) {
    lab.write("demo.toml", include_str!("../../demo/simplecil.toml"));
}

#[test]
fn a_run_from_the_store_equals_one_from_images_bit_for_bit() {
    let lab = Lab::new();
    for method in ["simplecil", "linear"] {
        let none = "--set features=off --set data.eval_batch";
        lab.run(method, &format!("{method}-5"), &format!("{none}=5"));
        lab.run(method, &format!("{method}-images"), &format!("{none}=7"));
        same(&lab, &format!("{method}-5"), &format!("{method}-images"));
    }
    assert!(lab.names("features").is_empty());
    let line = format!("{IMAGES} images to look at, 0 in features");
    let first = lab.run("simplecil", "filling", "");
    assert!(first.err.contains(&line), "{}", first.err);
    same(&lab, "simplecil-images", "filling");
    let bytes = fs::read(store(&lab)).unwrap();
    for (method, more) in [
        ("simplecil", "--set data.eval_batch=1"),
        ("simplecil", "--set data.eval_batch=50"),
        ("linear", ""),
    ] {
        let again = lab.run(method, "again", &format!("--overwrite {more}"));
        assert!(!again.err.contains("to look at"), "{}", again.err);
        same(&lab, &format!("{method}-images"), "again");
    }
    assert!(fs::read(store(&lab)).unwrap() == bytes);
}

#[test]
fn every_method_of_features_alone_is_the_same_from_the_store() {
    let lab = Lab::new();
    for (name, settings) in [
        ("nearest-mean", "distance=\"mahalanobis\""),
        ("ranpac", "projection=50"),
        ("fecam", "shrinkage=[10.0,10.0]"),
        ("knn", "k=3,distance=\"cosine\",weights=\"uniform\""),
        ("joint-ridge", "ridge=1.0"),
    ] {
        let method = format!("--set method={{name=\"{name}\",{settings}}}");
        let images = format!("{name}-images");
        let none = format!("{method} --set features=off --set data.eval_batch=5");
        lab.run("simplecil", &images, &none);
        let more = format!("{method} --set data.eval_batch=64");
        let stored = lab.run("simplecil", &format!("{name}-stored"), &more);
        let first = name == "nearest-mean";
        assert_eq!(stored.err.contains("to look at"), first, "{}", stored.err);
        same(&lab, &images, &format!("{name}-stored"));
    }
}

#[test]
fn a_method_that_needs_pixels_takes_the_queries_that_are_there() {
    let lab = Lab::new();
    let augmented = "--set preprocess.flip=true";
    lab.run("l2p", "l2p", "");
    lab.run("linear", "linear", augmented);
    // The whole backbone trains; what is kept is of the one it starts from.
    let (head, rest) = lab
        .text("l2p.toml")
        .split_once("[method]")
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .unwrap();
    let train = rest.split_once("[train]").unwrap().1;
    lab.write(
        "finetune.toml",
        format!("{head}[method]\nname = \"finetune\"\n[train]{train}"),
    );
    lab.run("finetune", "finetune", "");
    assert!(lab.names("features").is_empty(), "it makes none");
    lab.say("features simplecil.toml --threads 1");
    lab.run("l2p", "l2p-stored", "");
    same(&lab, "l2p", "l2p-stored");
    lab.run("linear", "linear-stored", augmented);
    same(&lab, "linear", "linear-stored");
    lab.run("finetune", "finetune-stored", "");
    same(&lab, "finetune", "finetune-stored");
    // They are read: other rows under the same keys give other queries.
    let path = store(&lab);
    let there = Store::open(&path).unwrap().unwrap();
    fs::remove_file(&path).unwrap();
    let mut writer = Writer::open(&path, there.identity(), || ()).unwrap();
    for (i, key) in there.keys().iter().enumerate() {
        writer
            .push(*key, (0..128).map(|d| ((i * d) % 7) as f32).collect())
            .unwrap();
    }
    writer.finish().unwrap();
    lab.run("l2p", "l2p-other", "");
    assert!(lab.read("l2p/params.safetensors") != lab.read("l2p-other/params.safetensors"));
}

#[test]
fn what_was_changed_is_looked_at_anew() {
    let lab = Lab::new();
    lab.run("simplecil", "before", "");
    let star = lab.path("images/train/star");
    let mut files: Vec<_> = fs::read_dir(&star)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    files.sort();
    // One becomes a copy of another, which is there already; one is a picture never seen.
    fs::copy(&files[0], &files[1]).unwrap();
    let mut png = fs::read(&files[2]).unwrap();
    let end = png.len() - 12;
    // A chunk of its own before IEND: other bytes, the same pixels.
    png.splice(end..end, *b"\0\0\0\0caNd\x65\xe7\xe1\x2c");
    fs::write(&files[2], png).unwrap();
    let said = lab.run("simplecil", "after", "");
    let line = format!("features: 1 images to look at, {IMAGES} in features");
    assert!(said.err.contains(&line), "{}", said.err);
    lab.run("simplecil", "images", "--set features=off");
    same(&lab, "after", "images");
    // Another depth, another size, another filter: other features, in files of their own.
    for (n, set) in [
        "backbone.depth=1",
        "preprocess.crop=56",
        "preprocess.interpolation=bilinear",
    ]
    .iter()
    .enumerate()
    {
        let said = lab.run("simplecil", &format!("other-{n}"), &format!("--set {set}"));
        assert!(said.err.contains(", 0 in features"), "{}", said.err);
        assert_eq!(lab.names("features").len(), n + 2);
    }
}

#[test]
fn a_flipped_byte_is_named_and_nothing_is_reported() {
    let lab = Lab::new();
    lab.say("features simplecil.toml --threads 1");
    let path = store(&lab);
    let good = fs::read(&path).unwrap();
    for at in [40, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 4;
        fs::write(&path, bad).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        lab.refused(
            "simplecil.toml",
            &[name, "damaged", "bytes ", "remove the file"],
        );
        lab.say("features simplecil.toml")
            .failed(&[name, "damaged"]);
    }
    fs::write(&path, b"something else").unwrap();
    lab.refused("simplecil.toml", &["not a feature store"]);
}

#[test]
fn damaged_pictures_are_left_out_as_they_are_from_images() {
    let lab = Lab::new();
    let name = lab.names("images/train/cat").pop_first().unwrap();
    lab.write(&format!("images/train/cat/{name}"), "no picture");
    lab.write("images/test/goat/other.png", "no picture");
    lab.refused("simplecil.toml", &["not an image"]);
    let log = lab.text("refused/log.txt");
    assert!(log.contains("task 1 of 3, at its features: "), "{log}");
    let skip = "--set data.on_corrupt=skip";
    lab.run("simplecil", "images", &format!("{skip} --set features=off"));
    for out in ["filling", "again"] {
        lab.run("simplecil", out, skip);
        same(&lab, "images", out);
    }
    assert_eq!(lab.json("again/report.json")["cost"]["images_skipped"], 2);
}

#[test]
fn what_is_kept_is_listed_and_removed() {
    let lab = Lab::new();
    let empty = lab.say("features list");
    assert!(empty.out.contains("no features are kept"), "{}", empty.out);
    lab.run("simplecil", "run", "");
    let first = store(&lab);
    lab.run("simplecil", "half", "--set features=f16");
    let said = lab.say("features list simplecil.toml --set features=f16");
    assert_eq!(said.code, Some(0), "{}", said.err);
    let line = |name: &str| said.out.lines().find(|line| line.contains(name)).unwrap();
    let name = first.file_name().unwrap().to_str().unwrap();
    for part in [
        &IMAGES.to_string(),
        "f32",
        "s ago",
        "128",
        "no: other dtype",
    ] {
        assert!(line(name).contains(part), "{part}: {}", said.out);
    }
    assert!(line("f16").contains("reads it"), "{}", said.out);
    assert!(said.out.contains("in 2 files in features"), "{}", said.out);
    lab.say("features list none.toml").failed(&["none.toml"]);

    lab.write("features/letter.features", "dear sir");
    assert!(lab.say("features list").out.contains("not a feature store"));
    // Nobody is there to be asked.
    lab.say("features clear").failed(&["--older-than", "--all"]);
    lab.say("features clear features/letter.features")
        .failed(&["letter.features", "not a feature store"]);
    lab.say(&format!(
        "features clear features/{name} features/none.features"
    ))
    .failed(&["none.features"]);
    assert_eq!(
        lab.names("features").len(),
        3,
        "nothing is removed by halves"
    );
    let said = lab.say("features clear --older-than 1");
    assert!(said.out.contains("nothing to remove"), "{}", said.out);
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(3 * 86_400);
    fs::File::options()
        .append(true)
        .open(&first)
        .and_then(|file| file.set_modified(old))
        .unwrap();
    assert!(lab.say("features list").out.contains("3 days ago"));
    let said = lab.say("features clear --older-than 2.5");
    assert!(said.out.contains("removed 1 of 1 files"), "{}", said.out);
    assert!(!first.exists());

    let left = lab.names("features").into_iter();
    let left = left.map(|name| lab.path("features").join(name));
    let left = left.filter(|path| !path.ends_with("letter.features"));
    let left: Vec<_> = left.collect();
    let identity = Store::open(&left[0]).unwrap().unwrap().identity().clone();
    let writer = Writer::open(&left[0], &identity, || ()).unwrap();
    assert!(
        lab.say("features list")
            .out
            .contains("now, by another process")
    );
    let said = lab.say("features clear --all");
    assert_eq!(said.code, Some(0), "{}", said.err);
    for part in ["another process writes it", "not a feature store"] {
        assert!(said.err.contains(part), "{}", said.err);
    }
    assert!(left[0].exists());
    drop(writer);
    let said = lab.say("features clear --all");
    assert!(said.out.contains("removed 1 of 2 files"), "{}", said.out);
    assert_eq!(lab.names("features").len(), 1);
    assert_eq!(lab.text("features/letter.features"), "dear sir");
}

#[test]
fn f16_is_half_the_size_and_on_record() {
    let lab = Lab::new();
    lab.run("simplecil", "full", "");
    let full = fs::metadata(store(&lab)).unwrap().len();
    fs::remove_file(store(&lab)).unwrap();
    lab.run("simplecil", "half", "--set features=f16");
    let half = fs::metadata(store(&lab)).unwrap().len();
    assert!(half * 10 < full * 7, "{half} of {full} bytes");
    let compat = &lab.json("half/report.json")["fingerprint"]["compat"];
    assert_eq!(compat, &serde_json::json!(["features=f16"]));
    let said = lab.say("report full half");
    assert!(said.out.contains("NOT COMPARABLE"), "{}", said.out);
}

#[test]
fn shards_merge_to_the_file_of_one_machine() {
    let lab = Lab::new();
    let said = lab.say("features simplecil.toml --threads 1");
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert!(
        said.out
            .starts_with(&format!("{IMAGES} features of 128 f32")),
        "{}",
        said.out
    );
    let path = store(&lab);
    let one = fs::read(&path).unwrap();
    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
    for n in [1, 2, 5] {
        fs::remove_file(&path).unwrap();
        let mut line = "features merge".to_owned();
        for i in 0..n {
            let said = lab.say(&format!(
                "features simplecil.toml --shard {i}/{n} --threads 1"
            ));
            assert_eq!(said.code, Some(0), "{}", said.err);
            line += &format!(
                " features/{}.shard-{i}-of-{n}.features",
                name.trim_end_matches(".features")
            );
        }
        let said = lab.say(&line);
        assert_eq!(said.code, Some(0), "{}", said.err);
        assert_eq!(said.out, format!("{IMAGES} features in features/{name}\n"));
        assert!(fs::read(&path).unwrap() == one, "{n} shards");
    }
    let said = lab.say(&format!("features check features/{name}"));
    assert!(said.out.contains("54 features, every byte"), "{}", said.out);
    assert!(said.out.contains("\"precision\": \"f32\""), "{}", said.out);

    lab.say(&format!("features merge features/{name}"))
        .failed(&["--into FILE"]);
    lab.say("features merge none --into x")
        .failed(&["none", "no such file"]);
    lab.say("features simplecil.toml --set features=off")
        .failed(&["features", "\"f32\""]);
    let said = lab.say("features simplecil.toml --shard 5/5");
    assert!(said.err.contains("from 0 to N - 1"), "{}", said.err);
}

/// `examples/cluster/slurm.sh` as Slurm would call it.
#[cfg(unix)]
#[test]
fn the_example_for_slurm_fills_the_store() {
    let lab = Lab::new();
    lab.say("features simplecil.toml --threads 1");
    let path = store(&lab);
    let one = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../examples/cluster/slurm.sh"
    );
    let bin = PathBuf::from(env!("CARGO_BIN_EXE_candlewick"));
    let bin = bin.parent().unwrap().display().to_string();
    let job = |args: &[&str], index: &str| {
        let output = lab
            .process("bash")
            .arg(script)
            .args(args)
            .env("PATH", format!("{bin}:{}", std::env::var("PATH").unwrap()))
            .env("SLURM_ARRAY_TASK_ID", index)
            .env("SLURM_ARRAY_TASK_COUNT", "3")
            .env("SLURM_CPUS_PER_TASK", "1")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    for index in ["0", "1", "2"] {
        job(&["simplecil.toml"], index);
    }
    assert_eq!(lab.names("features").len(), 3);
    let said = job(&["simplecil.toml", "merge"], "");
    assert!(said.contains(&format!("{IMAGES} features")), "{said}");
    assert!(fs::read(&path).unwrap() == one);
}

/// SIGKILL at random moments, until it was sent 24 times.
#[cfg(unix)]
#[test]
fn killing_an_extraction_loses_nothing_finished_and_leaves_nothing_wrong() {
    use std::process::Stdio;
    use std::thread::sleep;
    use std::time::{Duration, Instant};

    use rand_like::Numbers;

    let lab = Lab::new();
    demo(&lab);
    let line = "features demo.toml --threads 1 --set backbone.depth=1";
    let line: Vec<&str> = line.split(' ').collect();
    let started = Instant::now();
    assert_eq!(lab.say_args(&line).code, Some(0));
    let whole = started.elapsed();
    let path = store(&lab);
    let bytes = fs::read(&path).unwrap();
    let truth = Store::open(&path).unwrap().unwrap();
    assert_eq!(truth.len(), 432);
    // From here on every file is another one; `truth` keeps the first mapped.
    fs::remove_file(&path).unwrap();

    let length = |path: &PathBuf| fs::metadata(path).map_or(0, |about| about.len());
    let chunk = bytes.len() as u64 / 7;
    let mut numbers = Numbers(1);
    let (mut kills, mut before, mut grown) = (0, 0, 0);
    while kills < 24 {
        let mut child = lab
            .process(env!("CARGO_BIN_EXE_candlewick"))
            .args(&line)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Up to three more chunks, then somewhere in the next; or before there is any.
        let more = (numbers.unit() * 4.0) as u64 * chunk;
        let wait = length(&path) + more;
        while more > 0 && length(&path) < wait && child.try_wait().unwrap().is_none() {
            sleep(Duration::from_millis(2));
        }
        sleep(whole.mul_f64(numbers.unit() / 8.0));
        let ended = child.try_wait().unwrap().is_some();
        child.kill().unwrap();
        child.wait().unwrap();
        kills += usize::from(!ended);
        let Some(found) = Store::open(&path).unwrap() else {
            assert_eq!(before, 0, "what was finished is gone");
            continue;
        };
        assert!(
            found.len() >= before,
            "{} of {before} are left",
            found.len()
        );
        grown += usize::from(found.len() > before);
        before = found.len();
        for key in found.keys() {
            let (mut a, mut b) = (Vec::new(), Vec::new());
            assert!(found.read(key, &mut a) && truth.read(key, &mut b));
            assert!(
                a.iter()
                    .map(|v| v.to_bits())
                    .eq(b.iter().map(|v| v.to_bits()))
            );
        }
        if ended {
            assert!(fs::read(&path).unwrap() == bytes);
            fs::remove_file(&path).unwrap();
            before = 0;
        }
    }
    assert!(grown > 3, "it was never at work when it was killed");
    assert_eq!(lab.say_args(&line).code, Some(0));
    assert!(
        fs::read(&path).unwrap() == bytes,
        "taken up to another file"
    );
    // Nothing lies about but what a kill between making a file and naming it may leave.
    let litter = lab
        .names("features")
        .into_iter()
        .filter(|n| !n.starts_with(".candlewick-"));
    assert_eq!(litter.count(), 1);
    let picture = fs::read(
        lab.path("images/train/cat")
            .join(lab.names("images/train/cat").first().unwrap()),
    );
    assert!(
        truth.contains(&key(&picture.unwrap())),
        "keys are of other bytes"
    );
}

/// Enough chance for a test, the same each time.
mod rand_like {
    pub struct Numbers(pub u64);

    impl Numbers {
        pub fn unit(&mut self) -> f64 {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 11) as f64 / (1u64 << 53) as f64
        }
    }
}
