//! Reports of three tasks with two classes and four test images each, and folders that hold them.

use std::fs;
use std::path::PathBuf;

use candlewick_compare::{Comparison, Entry, Run, read};
use candlewick_core::metrics::AccuracyMatrix;
use candlewick_core::report::{Fingerprint, NUMERICS, SCHEMA, SessionAccuracy, TaskRecord};
use candlewick_core::{Cost, Report};
use tempfile::TempDir;

pub const CLASSES: [&str; 6] = ["bread", "cat", "cloud", "goat", "star", "tree"];

/// A report whose accuracies are all `percent`, of seed 1.
pub fn report(percent: f64) -> Report {
    let matrix = AccuracyMatrix {
        percent: (0..3).map(|t| vec![percent; t + 1]).collect(),
        test_images: vec![4; 3],
    };
    let metrics = matrix.metrics();
    let task = |classes: &[&str]| TaskRecord {
        classes: classes.iter().map(|c| (*c).to_owned()).collect(),
        train_images: 10,
        test_images: 4,
        domain: None,
        set: None,
    };
    Report {
        schema: SCHEMA,
        method: "simplecil".into(),
        scenario: None,
        session_accuracy: SessionAccuracy {
            micro: matrix.micro_curve(),
            macro_: matrix.macro_curve(),
        },
        definitions: metrics
            .rows()
            .into_iter()
            .map(|(name, _, text)| (name.to_owned(), text.to_owned()))
            .collect(),
        metrics,
        accuracy_matrix: matrix.percent,
        tasks: CLASSES.chunks(2).map(task).collect(),
        fingerprint: Fingerprint {
            backbone: "vit-micro".into(),
            weights: "11".repeat(32),
            text: None,
            booster: None,
            depth: 6,
            preprocess: "22".repeat(32),
            preset: None,
            split: "33".repeat(32),
            class_order: "44".repeat(32),
            code: "0.1.0+0123456789ab".into(),
            numerics: Some(NUMERICS),
            device: "cpu".into(),
            dtype: "f32".into(),
            seed: 1,
            compat: Vec::new(),
        },
        cost: Cost::default(),
        pools: Vec::new(),
        exemplars: None,
        undefined: Default::default(),
    }
}

/// A report with something changed.
pub fn changed(change: impl FnOnce(&mut Report)) -> Report {
    let mut report = report(50.0);
    change(&mut report);
    report
}

/// The row of one report that lies nowhere.
pub fn entry(name: &str, report: Report) -> Entry {
    let run = Run {
        report,
        predictions: None,
    };
    Entry::of_runs(name.to_owned(), vec![run])
}

/// Two reports side by side.
pub fn pair(a: Report, b: Report) -> Comparison {
    Comparison::new(vec![entry("a", a), entry("b", b)]).unwrap()
}

pub struct Lab(TempDir);

impl Lab {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A run directory, with a row of `predictions.csv` for each letter: `+` where it is right.
    pub fn run(&self, name: &str, report: &Report, hits: &str) {
        self.write(
            &format!("{name}/report.json"),
            serde_json::to_vec(report).unwrap(),
        );
        if !hits.is_empty() {
            let mut text = String::from("image,class,predicted,score\n");
            for (i, hit) in hits.chars().enumerate() {
                let predicted = if hit == '+' { "cat" } else { "goat" };
                text += &format!("test/cat/{i}.png,cat,{predicted},0.5\n");
            }
            self.write(&format!("{name}/predictions.csv"), text);
        }
    }

    pub fn read(&self, name: &str) -> Vec<Entry> {
        read(&self.path(name)).unwrap()
    }

    pub fn compare(&self, names: &[&str]) -> Comparison {
        let entries = names.iter().flat_map(|name| self.read(name));
        Comparison::new(entries.collect()).unwrap()
    }

    /// What is said of a path that cannot be read.
    pub fn refused(&self, name: &str) -> String {
        read(&self.path(name)).unwrap_err().to_string()
    }
}
