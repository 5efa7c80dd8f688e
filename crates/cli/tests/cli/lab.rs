//! A folder of its own for each test: images, recipes, run directories and an empty Hub cache.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use candle_core::Device;
use candlewick_vit::Precision;
use serde_json::Value;
use tempfile::TempDir;

/// All methods: their settings, each with two blocks to fill and three tasks to grow for.
const SETTINGS: [(&str, &str); 9] = [
    ("linear", ""),
    ("simplecil", ""),
    (
        "l2p",
        "prompts = 4\nlength = 2\ntop_k = 2\npull = 0.1\n\
         prompt_init = [-1.0, 1.0]\nkey_init = [-1.0, 1.0]\n",
    ),
    ("vpt", "depth = \"deep\"\nlength = 2\n"),
    ("aper", "tuning = { kind = \"vpt-deep\", length = 2 }\n"),
    ("random-prompt", "length = 2\n"),
    ("dap", "length = 2\nembedding = 4\npull = 0.1\n"),
    (
        "dualprompt",
        "g_blocks = [0]\ng_length = 2\ne_blocks = [1]\ne_length = 2\npull = 0.1\n\
         prompt_init = [-1.0, 1.0]\nkey_init = [-1.0, 1.0]\n",
    ),
    ("coda", "blocks = [0, 1]\ncomponents = 2\nlength = 2\n"),
];

pub const METHODS: [&str; 9] = [
    SETTINGS[0].0,
    SETTINGS[1].0,
    SETTINGS[2].0,
    SETTINGS[3].0,
    SETTINGS[4].0,
    SETTINGS[5].0,
    SETTINGS[6].0,
    SETTINGS[7].0,
    SETTINGS[8].0,
];

/// One that trains a head alone, one that trains nothing, one with prompts: where what is tested is not the method.
pub const FEW: [&str; 3] = ["linear", "simplecil", "l2p"];

/// Those whose images choose from a pool, and its entries after three tasks.
pub const POOLS: [(&str, &[(&str, usize)]); 4] = [
    ("l2p", &[("prompts", 4)]),
    ("dap", &[("tasks", 3)]),
    ("dualprompt", &[("tasks", 3)]),
    ("coda", &[("block 0", 6), ("block 1", 6)]),
];

/// Six classes of nine images each.
pub const CLASSES: [&str; 6] = ["bicycle", "bread", "cat", "cloud", "goat", "star"];
pub const TRAIN: usize = 5;
pub const TEST: usize = 4;

/// Those that this machine computes in. What is left out is said, so that a test of one precision is not taken for two.
pub fn precisions() -> Vec<&'static str> {
    match Precision::Bf16.resolve(&Device::Cpu) {
        Ok(_) => vec!["f32", "bf16"],
        Err(why) => {
            println!("f32 alone, bf16 is left out: {why}");
            vec!["f32"]
        }
    }
}

/// The files of a finished run; `pools.svg` comes to them for the methods of [`POOLS`].
pub const RECORD: [&str; 11] = [
    "accuracy.csv",
    "classes.csv",
    "config.toml",
    "curve.svg",
    "log.txt",
    "matrix.svg",
    "params.safetensors",
    "predictions.csv",
    "report.html",
    "report.json",
    "timing.json",
];

const HEAD: &str = r#"
seed = 1
[data]
path = "images"
[stream]
increment = 2
order = { numpy = 1993 }
[backbone]
name = "vit-micro"
depth = 2
"#;

const TRAIN_TABLE: &str = r#"
[train]
epochs = 1
batch = 4
optimizer = "adam"
lr = 0.01
"#;

pub struct Lab {
    dir: TempDir,
}

impl Lab {
    /// With `images/` and one recipe per method.
    pub fn new() -> Self {
        let lab = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        for class in CLASSES {
            for (k, file) in emoji(class).iter().enumerate() {
                let part = if k < TRAIN { "train" } else { "test" };
                let to = lab.path(&format!("images/{part}/{class}"));
                fs::create_dir_all(&to).unwrap();
                fs::copy(file, to.join(file.file_name().unwrap())).unwrap();
            }
        }
        for (name, settings) in SETTINGS {
            let train = if name == "simplecil" { "" } else { TRAIN_TABLE };
            let method = format!("[method]\nname = \"{name}\"\n{settings}");
            lab.write(&format!("{name}.toml"), format!("{HEAD}{method}{train}"));
        }
        lab
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    pub fn text(&self, name: &str) -> String {
        String::from_utf8(self.read(name)).unwrap()
    }

    pub fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&self.read(name)).unwrap()
    }

    /// Names in a folder, hidden ones too; none if there is no such folder.
    pub fn names(&self, folder: &str) -> BTreeSet<String> {
        let entries = fs::read_dir(self.path(folder)).into_iter().flatten();
        entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    /// The rows of a run's `predictions.csv`, without its header.
    pub fn predictions(&self, run: &str) -> Vec<[String; 4]> {
        let mut csv = csv::Reader::from_path(self.path(run).join("predictions.csv")).unwrap();
        let header = csv.headers().unwrap();
        assert_eq!(header, vec!["image", "class", "predicted", "score"]);
        csv.deserialize().map(|row| row.unwrap()).collect()
    }

    /// The command, in this folder, with the Hub out of reach.
    pub fn command(&self) -> assert_cmd::Command {
        let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_candlewick"));
        command.current_dir(self.dir.path());
        for (key, value) in self.surroundings() {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        // A run that hangs should fail, not stay.
        command.timeout(Duration::from_secs(240));
        command
    }

    /// The same for tests that must hold the process while it runs.
    pub fn process(&self, program: &str) -> std::process::Command {
        let mut command = std::process::Command::new(program);
        command.current_dir(self.dir.path());
        for (key, value) in self.surroundings() {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        command
    }

    /// An empty cache, and nothing of the user's settings.
    fn surroundings(&self) -> Vec<(&'static str, Option<PathBuf>)> {
        let mut list = vec![
            ("HF_HOME", Some(self.path("hf"))),
            ("HF_HUB_OFFLINE", Some("1".into())),
            ("HF_ENDPOINT", Some("http://127.0.0.1:9".into())),
        ];
        let removed = [
            "HF_HUB_CACHE",
            "HUGGINGFACE_HUB_CACHE",
            "HF_TOKEN",
            "HUGGING_FACE_HUB_TOKEN",
            "HF_TOKEN_PATH",
            "ALL_PROXY",
            "all_proxy",
            "HTTP_PROXY",
            "http_proxy",
            "HTTPS_PROXY",
            "https_proxy",
        ];
        list.extend(removed.map(|name| (name, None)));
        list
    }

    /// Runs it; the arguments are what stands between the spaces of `line`.
    pub fn say(&self, line: &str) -> Said {
        self.say_args(&line.split_whitespace().collect::<Vec<_>>())
    }

    pub fn say_args(&self, args: &[&str]) -> Said {
        Said::of(self.command().args(args).output().unwrap())
    }

    /// A run that must succeed, into the folder `out`.
    pub fn run(&self, recipe: &str, out: &str, more: &str) -> Said {
        let line = format!("run {recipe}.toml --out {out} --threads 1 {more}");
        let said = self.say(&line);
        assert_eq!(said.code, Some(0), "{line}: {}", said.err);
        said
    }

    /// A run that must be refused, with all of `parts` in the message and no report.
    pub fn refused(&self, line: &str, parts: &[&str]) -> Said {
        let said = self.say(&format!("run {line} --out refused"));
        said.failed(parts);
        assert!(!self.path("refused/report.json").exists(), "{line}");
        said
    }
}

/// What came of a call.
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Said {
    pub fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Ended with exit code 1, one error with all of `parts`, nothing said twice and no panic.
    pub fn failed(&self, parts: &[&str]) {
        assert_eq!(self.code, Some(1), "{}", self.err);
        assert!(!self.err.contains("panicked"), "{}", self.err);
        assert_eq!(self.err.matches("error: ").count(), 1, "{}", self.err);
        for part in parts {
            assert!(self.err.contains(part), "no {part:?} in: {}", self.err);
        }
        // A cause that its wrapper spells out already must not follow once more.
        let pieces: Vec<&str> = self.err.trim().split(": ").collect();
        let long = pieces.iter().filter(|piece| piece.len() > 24);
        for piece in long {
            let times = pieces.iter().filter(|other| other == &piece).count();
            assert_eq!(times, 1, "{piece:?} is said twice: {}", self.err);
        }
    }
}

/// The images of a class of the data set inside the program, sorted by name.
fn emoji(class: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/emoji-r-mini");
    let mut files: Vec<PathBuf> = ["train", "test"]
        .iter()
        .flat_map(|part| fs::read_dir(root.join(part).join(class)).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort_by_key(|file| file.file_name().unwrap().to_owned());
    assert_eq!(files.len(), TRAIN + TEST, "{class}");
    files
}
