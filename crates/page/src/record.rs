//! What a run leaves on disk, as far as the page shows it. Numbers are taken as they are; nothing is reckoned anew that
//! the report already has.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// `report.json`. Fields that are not known here are left to the text that the page carries along.
#[derive(Debug, Clone, Deserialize)]
pub struct Report {
    /// Version of the format.
    pub schema: u32,
    /// Name of the method.
    pub method: String,
    /// Left out where it is class-incremental.
    pub scenario: Option<String>,
    /// Accuracy on everything seen, in percent.
    pub session_accuracy: SessionAccuracy,
    /// Single numbers, in percent; `None` where they are not defined yet.
    pub metrics: BTreeMap<String, Option<f64>>,
    /// What each metric means.
    #[serde(default)]
    pub definitions: BTreeMap<String, String>,
    /// `accuracy_matrix[t][i]`: accuracy in percent on task `i` after task `t`.
    pub accuracy_matrix: Vec<Vec<f64>>,
    /// The stream.
    pub tasks: Vec<Task>,
    /// What the numbers depend on.
    pub fingerprint: Map<String, Value>,
    /// What they took, in counts.
    pub cost: Map<String, Value>,
    /// Use of pools of prompts.
    #[serde(default)]
    pub pools: Vec<Pool>,
    /// Why a metric has no value.
    #[serde(default)]
    pub undefined: BTreeMap<String, String>,
    /// Past images that the method kept.
    pub exemplars: Option<Exemplars>,
}

/// Accuracy on everything seen, session by session, in percent.
#[derive(Debug, Clone, Deserialize)]
pub struct SessionAccuracy {
    /// Each image counting once.
    pub micro: Vec<f64>,
    /// Each task counting once.
    #[serde(rename = "macro")]
    pub macro_: Vec<f64>,
}

/// Past training images that a method kept.
#[derive(Debug, Clone, Deserialize)]
pub struct Exemplars {
    /// Which and how many, in words.
    pub rule: String,
    /// After each task.
    pub images: Vec<u64>,
}

/// One task of the stream.
#[derive(Debug, Clone, Deserialize)]
pub struct Task {
    /// Names in order of arrival.
    pub classes: Vec<String>,
    /// Training images.
    pub train_images: u64,
    /// Test images.
    pub test_images: u64,
    /// In domain-incremental streams.
    pub domain: Option<String>,
    /// In multi-domain streams.
    pub set: Option<String>,
}

/// One pool of prompts.
#[derive(Debug, Clone, Deserialize)]
pub struct Pool {
    /// Its name.
    pub pool: String,
    /// `chosen[i][m]`: how often test images of task `i` took entry `m`.
    pub chosen: Vec<Vec<f64>>,
    /// After each task: mean cosine of queries and keys.
    pub similarity: Vec<f64>,
    /// After each task: entries in use.
    pub effective: Vec<f64>,
    /// Whether nearly all images take the same.
    pub collapsed: bool,
}

/// `timing.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Timing {
    /// From begin to end.
    pub seconds: f64,
    /// Of them until the backbone was there.
    pub load_seconds: f64,
    /// Threads at work.
    pub threads: u64,
    /// Whether features came from the store.
    #[serde(default)]
    pub stored_features: bool,
    /// Where the system tells.
    pub peak_memory_bytes: Option<u64>,
    /// Task by task.
    pub tasks: Vec<TaskTime>,
}

/// Seconds and images of one task.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct TaskTime {
    /// Learning it.
    pub train_seconds: f64,
    /// Images learned from, each pass counting.
    pub train_images: u64,
    /// Testing after it.
    pub eval_seconds: f64,
    /// Images tested.
    pub eval_images: u64,
}

/// A row of `predictions.csv`.
#[derive(Debug, Clone, Deserialize)]
pub struct Prediction {
    /// Its name below the data root.
    pub image: String,
    /// The class it is of.
    pub class: String,
    /// The class of the largest score.
    pub predicted: String,
    /// That score, on the method's own scale.
    pub score: f64,
}

/// A row of `classes.csv`.
#[derive(Debug, Clone)]
pub struct Class {
    /// Its name.
    pub class: String,
    /// The task that brings it, from 1.
    pub task: usize,
    /// Test images after the last session.
    pub test_images: u64,
    /// Accuracy in percent after each session; `None` before it has a test image.
    pub after: Vec<Option<f64>>,
}

/// One run and everything of it that is at hand.
#[derive(Debug, Clone)]
pub struct Run {
    /// As the page calls it.
    pub name: String,
    /// Its numbers.
    pub report: Report,
    /// `report.json` as it is.
    pub(crate) text: String,
    pub(crate) timing: Option<Timing>,
    pub(crate) predictions: Vec<Prediction>,
    pub(crate) classes: Vec<Class>,
    /// Thumbnails by the names of their images, as `data:` addresses.
    pub(crate) pictures: BTreeMap<String, String>,
}

impl Run {
    /// A run of which only `report.json` is known.
    ///
    /// # Errors
    /// [`Error::Json`] when the text is no report.
    pub fn new(name: &str, report: &str) -> Result<Self> {
        let json = |source| Error::Json {
            file: "report.json",
            source,
        };
        Ok(Self {
            name: name.to_owned(),
            report: serde_json::from_str(report).map_err(json)?,
            text: report.to_owned(),
            timing: None,
            predictions: Vec::new(),
            classes: Vec::new(),
            pictures: BTreeMap::new(),
        })
    }

    /// The same run under another name.
    pub fn called(self, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..self
        }
    }

    /// Adds `timing.json`.
    ///
    /// # Errors
    /// [`Error::Json`].
    pub fn timing(&mut self, text: &str) -> Result<()> {
        let json = |source| Error::Json {
            file: "timing.json",
            source,
        };
        self.timing = Some(serde_json::from_str(text).map_err(json)?);
        Ok(())
    }

    /// Adds `predictions.csv`.
    ///
    /// # Errors
    /// [`Error::Csv`].
    pub fn predictions(&mut self, text: &[u8]) -> Result<()> {
        let csv = Error::csv("predictions.csv");
        let rows = csv::Reader::from_reader(text).into_deserialize();
        self.predictions = rows.collect::<csv::Result<_>>().map_err(csv)?;
        Ok(())
    }

    /// Adds `classes.csv`.
    ///
    /// # Errors
    /// [`Error::Csv`].
    pub fn classes(&mut self, text: &[u8]) -> Result<()> {
        let csv = Error::csv("classes.csv");
        type Row = (String, usize, u64, Vec<Option<f64>>);
        let rows = csv::Reader::from_reader(text).into_deserialize();
        let rows: Vec<Row> = rows.collect::<csv::Result<_>>().map_err(csv)?;
        self.classes = rows
            .into_iter()
            .map(|(class, task, test_images, after)| Class {
                class,
                task,
                test_images,
                after,
            })
            .collect();
        Ok(())
    }

    /// The scenario, spelled out.
    pub(crate) fn scenario(&self) -> &str {
        self.report
            .scenario
            .as_deref()
            .unwrap_or("class-incremental")
    }

    /// Classes seen after each session.
    pub(crate) fn classes_seen(&self) -> Vec<usize> {
        let mut seen = std::collections::BTreeSet::new();
        let tasks = self.report.tasks.iter();
        tasks
            .map(|task| {
                seen.extend(&task.classes);
                seen.len()
            })
            .collect()
    }

    /// Whether each task brings classes that no other has, so that a class tells its task.
    pub(crate) fn classes_tell_tasks(&self) -> bool {
        self.scenario() != "domain-incremental"
    }

    /// What a task is called in the head of a row or a column.
    pub(crate) fn task_name(&self, index: usize) -> String {
        let task = self.report.tasks.get(index);
        let named = task.and_then(|t| t.domain.clone().or_else(|| t.set.clone()));
        named.unwrap_or_else(|| (index + 1).to_string())
    }

    /// A fact of the fingerprint as text.
    pub(crate) fn fact(&self, field: &str) -> String {
        self.report
            .fingerprint
            .get(field)
            .map_or_else(String::new, plain)
    }

    /// A count of the cost.
    pub(crate) fn count(&self, field: &str) -> Option<u64> {
        self.report.cost.get(field)?.as_u64()
    }
}

/// A JSON value as a person writes it.
pub(crate) fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(list) if list.is_empty() => "none".into(),
        Value::Array(list) => list.iter().map(plain).collect::<Vec<_>>().join(", "),
        Value::Null => "none".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use crate::confusion::tests::run;

    #[test]
    fn a_row_that_is_none_is_named_by_its_line() {
        let mut run = run();
        let error = run.classes(b"class,task,test_images,after_1\na,1,2,50\nb,x,2,50\n");
        assert_eq!(
            error.unwrap_err().to_string(),
            "classes.csv: line 3: field 1: invalid digit found in string; write it anew by running the recipe again"
        );
        let error = run.predictions(b"image,class\na,b\n").unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("predictions.csv: line 2: missing field"),
            "{error}"
        );
        let error = run.timing("{").unwrap_err().to_string();
        assert!(error.starts_with("timing.json: EOF"), "{error}");
    }
}
