//! The record of a run: numbers, what they mean, and what they depend on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::exemplars::ExemplarUse;
use crate::metrics::{AccuracyMatrix, Metrics, mean, std_dev};
use crate::run::Outcome;
use crate::task::{Scenario, Stream};
use crate::usage::PoolUse;

/// Raised when a field changes its meaning or goes away.
pub const SCHEMA: u32 = 1;

/// What the numbers of this version are of. Raised by hand, in the commit that does it, whenever the same recipe and seed come to
/// give other accuracies than before: by other rounding, another order of draws, or a mistake put right. Versions that share
/// it may be compared.
pub const NUMERICS: u32 = 2;

/// One test image after the last task.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// Its name below the data root.
    pub image: String,
    /// True label.
    pub label: u32,
    /// Label of the largest score.
    pub predicted: u32,
    /// The largest score, on the method's own scale (logit, or cosine for prototypes).
    pub score: f32,
}

/// What a run took, in counts that are the same on every machine. Seconds and bytes depend on the
/// machine and are kept in `timing.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cost {
    /// Trainable values after the last task.
    pub trainable_parameters: u64,
    /// Frozen values of the backbone.
    pub backbone_parameters: u64,
    /// Steps of the optimiser.
    pub optimizer_steps: u64,
    /// Images in those steps.
    pub images_trained: u64,
    /// Images predicted, over all sessions.
    pub images_evaluated: u64,
    /// Unreadable images left out, training and test.
    pub images_skipped: u64,
}

/// Everything two runs must share for their numbers to be compared.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Name or path of the backbone, as the recipe has it; of a method that has two, of both.
    pub backbone: String,
    /// SHA-256 of the weight file.
    pub weights: String,
    /// SHA-256 of the hashes of text tower and tokenizer, of methods that read class names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// SHA-256 of the weight file of a second backbone, of methods that have one, and its blocks used where not all are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub booster: Option<String>,
    /// Blocks used.
    pub depth: usize,
    /// SHA-256 of the resolved preprocessing.
    pub preprocess: String,
    /// Its name, where the recipe gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
    /// SHA-256 of the file lists of training and test set.
    pub split: String,
    /// SHA-256 of the class names in order of arrival and the task sizes.
    pub class_order: String,
    /// Version of candlewick.
    pub code: String,
    /// [`NUMERICS`] of that version; `None` in reports that are older than the number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numerics: Option<u32>,
    /// Where tensors lived.
    pub device: String,
    /// The numbers that the frozen backbone multiplied: `f32` or `bf16`, what `auto` was resolved to.
    pub dtype: String,
    /// The run's seed.
    pub seed: u64,
    /// Named departures from the default rules, such as a batch vote.
    pub compat: Vec<String>,
}

/// One task of the stream, for the reader of a report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// Class names in order of arrival.
    pub classes: Vec<String>,
    /// Training images.
    pub train_images: usize,
    /// Test images.
    pub test_images: usize,
    /// Its domain, in a domain-incremental stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Its data set, in a multi-domain stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<String>,
}

/// Accuracy on all classes seen, session by session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SessionAccuracy {
    /// Each image counting once.
    pub micro: Vec<f64>,
    /// Each task counting once.
    #[serde(rename = "macro")]
    pub macro_: Vec<f64>,
}

/// `report.json`. All accuracies are in percent. The same recipe and seed give the same bytes, for
/// any number of threads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Name of the method.
    pub method: String,
    /// Name of the scenario; left out where it is class-incremental.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scenario: Option<String>,
    /// Curves.
    pub session_accuracy: SessionAccuracy,
    /// Single numbers.
    pub metrics: Metrics,
    /// What each metric means.
    pub definitions: BTreeMap<String, String>,
    /// Why a metric of the scenario has no value; left out where all have one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub undefined: BTreeMap<String, String>,
    /// `accuracy_matrix[t][i]`: accuracy on task `i` after task `t`, for `i <= t`, and for later tasks that were looked at.
    pub accuracy_matrix: Vec<Vec<f64>>,
    /// The stream.
    pub tasks: Vec<TaskRecord>,
    /// What the numbers depend on.
    pub fingerprint: Fingerprint,
    /// What they took.
    pub cost: Cost,
    /// What test images took from the pools of the method; left out where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<PoolUse>,
    /// The past training images that the method kept; left out where it keeps none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exemplars: Option<ExemplarUse>,
}

impl Report {
    /// Puts an outcome on record.
    pub fn new(method: &str, stream: &Stream, outcome: &Outcome, fingerprint: Fingerprint) -> Self {
        let mut metrics = outcome.accuracy.metrics();
        let domains: &[String] = match &stream.scenario {
            Scenario::DomainIncremental(domains) => {
                let chance = 100.0 / stream.classes() as f64;
                metrics.forward_transfer = outcome.accuracy.forward_transfer(chance);
                domains
            }
            _ => &[],
        };
        let sets: &[String] = match &stream.scenario {
            Scenario::MultiDomain(sets) => sets,
            _ => &[],
        };
        let mut undefined = BTreeMap::new();
        if !sets.is_empty() {
            let (matrix, tasks) = (&outcome.accuracy, stream.tasks.len());
            metrics.mtil_transfer = matrix.mtil_transfer(tasks);
            metrics.mtil_average = matrix.mtil_average(tasks);
            metrics.mtil_last = matrix.mtil_last(tasks);
            undefined = not_defined(&metrics, matrix.sessions(), tasks);
        }
        let scenario = match stream.scenario {
            Scenario::ClassIncremental => None,
            _ => Some(stream.scenario.name().to_owned()),
        };
        let told = |text: &str| match stream.scenario {
            Scenario::ClassIncremental => text.to_owned(),
            Scenario::TaskIncremental => {
                format!("{text}; an image is predicted among the classes of its own task")
            }
            Scenario::MultiDomain(_) => {
                format!("{text}; an image is predicted among the classes of its own data set")
            }
            Scenario::DomainIncremental(_) => text
                .replace("classes seen", "domains seen")
                .replace("tasks", "domains")
                .replace("last task", "last domain"),
        };
        let definitions = metrics.rows().into_iter();
        let tasks = stream.tasks.iter().map(|task| TaskRecord {
            classes: stream.class_names[task.info.classes.clone()].to_vec(),
            train_images: task.info.train_len,
            test_images: task.info.test_len,
            domain: domains.get(task.info.index).cloned(),
            set: sets.get(task.info.index).cloned(),
        });
        Self {
            schema: SCHEMA,
            method: method.to_owned(),
            scenario,
            session_accuracy: SessionAccuracy {
                micro: outcome.accuracy.micro_curve(),
                macro_: outcome.accuracy.macro_curve(),
            },
            metrics,
            definitions: definitions
                .map(|(name, _, text)| (name.to_owned(), told(text)))
                .collect(),
            undefined,
            accuracy_matrix: outcome.accuracy.percent.clone(),
            tasks: tasks.collect(),
            fingerprint,
            cost: outcome.cost,
            pools: outcome.pools.clone(),
            exemplars: outcome.exemplars.clone(),
        }
    }

    /// The matrix with its test counts.
    pub fn accuracy(&self) -> AccuracyMatrix {
        AccuracyMatrix {
            percent: self.accuracy_matrix.clone(),
            test_images: self.tasks.iter().map(|t| t.test_images).collect(),
        }
    }
}

/// Why the metrics of a multi-domain stream that is over have no value, where they have none.
fn not_defined(metrics: &Metrics, sessions: usize, tasks: usize) -> BTreeMap<String, String> {
    let why = match tasks {
        _ if sessions < tasks => return BTreeMap::new(),
        1 => "there is one task, so none was looked at before its session",
        _ => {
            "the method scores no classes that it has not learned, so there is no accuracy on a task before its session"
        }
    };
    let values = [
        ("mtil_transfer", metrics.mtil_transfer),
        ("mtil_average", metrics.mtil_average),
    ];
    let missing = values.into_iter().filter(|(_, value)| value.is_none());
    missing
        .map(|(name, _)| (name.to_owned(), why.to_owned()))
        .collect()
}

/// The first twelve digits of a hash.
pub fn short(hash: &str) -> String {
    hash.chars().take(12).collect()
}

/// Mean and sample standard deviation of each metric over runs that differ in their seed alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Name of the method.
    pub method: String,
    /// The seeds, in the order given.
    pub seeds: Vec<u64>,
    /// Per metric: mean, deviation and the single values.
    pub metrics: BTreeMap<String, Spread>,
}

/// One metric over several runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Arithmetic mean.
    pub mean: f64,
    /// Sample standard deviation (n − 1).
    pub std: f64,
    /// One value per seed.
    pub values: Vec<f64>,
}

impl Summary {
    /// Gathers the metrics of `reports`.
    pub fn new(reports: &[Report]) -> Self {
        let mut values: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for report in reports {
            for (name, value, _) in report.metrics.rows() {
                values.entry(name.to_owned()).or_default().push(value);
            }
        }
        let spread = |(name, values): (String, Vec<f64>)| {
            let spread = Spread {
                mean: mean(values.iter().copied()),
                std: std_dev(&values),
                values,
            };
            (name, spread)
        };
        Self {
            method: reports.first().map_or(String::new(), |r| r.method.clone()),
            seeds: reports.iter().map(|r| r.fingerprint.seed).collect(),
            metrics: values.into_iter().map(spread).collect(),
        }
    }
}

/// SHA-256 of a stream's class names in order of arrival and its task sizes, and of its scenario and domains, if any.
pub fn class_order_hash(stream: &Stream) -> String {
    let mut hash = Sha256::new();
    if stream.scenario != Scenario::ClassIncremental {
        hash.update(format!("{:?}", stream.scenario));
    }
    for task in &stream.tasks {
        hash.update((task.info.classes.len() as u64).to_le_bytes());
    }
    for name in &stream.class_names {
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name.as_bytes());
    }
    hex(&hash.finalize())
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
