//! One row of a comparison.

use std::collections::BTreeMap;
use std::path::PathBuf;

use candlewick_core::Report;
use candlewick_core::metrics::{mean, std_dev};

use crate::rule::{Aspect, Fact, fact};

/// A finished run.
#[derive(Debug, Clone)]
pub struct Run {
    /// Its report.
    pub report: Report,
    /// Its `predictions.csv`, if it is there.
    pub predictions: Option<PathBuf>,
}

/// Where a row comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum Origin {
    /// Runs of candlewick.
    Runs,
    /// Printed, or left in a log, by somebody else.
    Published {
        /// Its id in the file of published results.
        id: String,
        /// Where the numbers stand.
        source: String,
        /// How sure they are, in words.
        sure: String,
        /// What else must be known of them.
        note: Option<String>,
    },
}

/// A number in percent.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// Over the seeds.
    pub mean: f64,
    /// Over the seeds; `None` of one, or where it is not told.
    pub std: Option<f64>,
    /// What the metric means here.
    pub definition: Fact,
}

/// A result: of one run, of the same recipe with several seeds, or of a paper.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What its row is called.
    pub name: String,
    /// Of the method.
    pub method: String,
    /// Where it comes from.
    pub origin: Origin,
    /// What its numbers depend on. An aspect that says nothing of it is not there.
    pub facts: BTreeMap<Aspect, Fact>,
    /// Metric and number, in the order of tables.
    pub cells: Vec<(String, Cell)>,
    /// Runs behind the numbers; `None` where it is not told.
    pub seeds: Option<usize>,
    /// Those that are at hand.
    pub runs: Vec<Run>,
}

impl Entry {
    /// The row of one run, or of several that differ in their seed alone. There must be one.
    pub fn of_runs(name: String, runs: Vec<Run>) -> Self {
        let reports: Vec<&Report> = runs.iter().map(|run| &run.report).collect();
        let facts = Aspect::ALL.map(|aspect| (aspect, fact(aspect, &reports)));
        Self {
            name,
            method: reports.first().map_or(String::new(), |r| r.method.clone()),
            origin: Origin::Runs,
            facts: facts.into(),
            cells: cells(&reports),
            seeds: Some(reports.len()),
            runs,
        }
    }

    /// Its number in a column.
    pub fn cell(&self, metric: &str) -> Option<&Cell> {
        let found = self.cells.iter().find(|(name, _)| name == metric);
        found.map(|(_, cell)| cell)
    }

    /// Whether it is of runs at hand.
    pub fn is_run(&self) -> bool {
        self.origin == Origin::Runs
    }
}

/// The metrics that all reports have.
fn cells(reports: &[&Report]) -> Vec<(String, Cell)> {
    let Some(first) = reports.first() else {
        return Vec::new();
    };
    let rows: Vec<_> = reports.iter().map(|r| r.metrics.rows()).collect();
    let mut cells = Vec::new();
    for (name, _, text) in first.metrics.rows() {
        let values = rows
            .iter()
            .map(|rows| rows.iter().find(|row| row.0 == name));
        let Some(values) = values
            .map(|row| row.map(|row| row.1))
            .collect::<Option<Vec<f64>>>()
        else {
            continue;
        };
        let told = |r: &&Report| {
            let told = r.definitions.get(name);
            told.cloned().unwrap_or_else(|| text.to_owned())
        };
        let exact: std::collections::BTreeSet<String> = reports.iter().map(told).collect();
        cells.push((
            name.to_owned(),
            Cell {
                mean: mean(values.iter().copied()),
                std: (values.len() > 1).then(|| std_dev(&values)),
                definition: Fact {
                    shown: exact.iter().cloned().collect::<Vec<_>>().join("; or "),
                    mixed: exact.len() > 1,
                    exact,
                    ..Fact::default()
                },
            },
        ));
    }
    cells
}
