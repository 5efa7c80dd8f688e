//! What a sweep leaves: cells one by one as they end, then the table, its figure and both as data.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use candlewick_compare::paired::p_value;
use candlewick_core::metrics::{mean, std_dev};
use candlewick_core::report::{Spread, hex};
use candlewick_core::{Report, report};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::conditions::{self, Told};
use super::file::Variant;
use crate::record::write_whole;
use crate::{plot, table};

/// Raised when a field of `sweep.json` changes its meaning or goes away.
const SCHEMA: u32 = 1;

/// A finished cell.
pub struct Done {
    pub variant: Variant,
    pub seed: u64,
    pub told: Told,
    /// The name of its file among the cells.
    pub digest: String,
    pub report: Report,
    pub seconds: f64,
}

/// `cells/DIGEST.json`.
#[derive(Serialize, Deserialize)]
struct Kept {
    /// Of the report's text.
    sha256: String,
    seconds: f64,
    /// JSON.
    report: String,
}

/// Where finished cells are kept.
pub struct Cells(PathBuf);

impl Cells {
    pub fn new(out: &Path) -> Result<Self> {
        let path = out.join("cells");
        let hint = || format!("{}: cannot be written; give another --out", path.display());
        std::fs::create_dir_all(&path).with_context(hint)?;
        tempfile::tempfile_in(&path).with_context(hint)?;
        Ok(Self(path))
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.0.join(format!("{digest}.json"))
    }

    /// The report of a cell and its seconds, if it is there whole and unchanged.
    pub fn read(&self, digest: &str) -> Option<(Report, f64)> {
        let text = std::fs::read(self.path(digest)).ok()?;
        let kept: Kept = serde_json::from_slice(&text).ok()?;
        let sound = kept.sha256 == hex(&Sha256::digest(&kept.report));
        let report: Report = sound.then(|| serde_json::from_str(&kept.report).ok())??;
        (report.schema == report::SCHEMA).then_some((report, kept.seconds))
    }

    /// Keeps a report, and gives it as it will be read: a number may be read one bit off.
    pub fn write(&self, digest: &str, report: &Report, seconds: f64) -> Result<Report> {
        let text = serde_json::to_string(report)?;
        let kept = Kept {
            sha256: hex(&Sha256::digest(&text)),
            seconds,
            report: text,
        };
        let path = self.path(digest);
        write_whole(&self.0, &path, &serde_json::to_vec(&kept)?)
            .with_context(|| format!("{}: not written", path.display()))?;
        Ok(serde_json::from_str(&kept.report)?)
    }
}

/// `sweep.json`.
#[derive(Serialize)]
pub struct Summary {
    schema: u32,
    seeds: Vec<u64>,
    pub rows: Vec<Row>,
    pub pairs: Vec<Pair>,
}

/// A variant over all seeds; accuracies in percent.
#[derive(Serialize)]
pub struct Row {
    /// Heading of its table. Rows of different tables may not be compared.
    pub group: String,
    pub backbone: String,
    pub stream: String,
    /// As in the table.
    pub label: String,
    pub method: String,
    pub settings: String,
    /// In the order of tables.
    pub metrics: Vec<Metric>,
    pub trainable_parameters: u64,
    /// The files of `cells/`, in the order of the seeds.
    cells: Vec<String>,
    /// Which table it stands in.
    #[serde(skip)]
    table: usize,
}

#[derive(Serialize)]
pub struct Metric {
    pub name: String,
    #[serde(flatten)]
    pub spread: Spread,
}

/// Two rows of one table, seed by seed.
#[derive(Serialize)]
pub struct Pair {
    group: String,
    metric: String,
    a: String,
    b: String,
    /// Mean of a − b, in points.
    difference: f64,
    /// Sample deviation of a − b.
    std: f64,
    /// Two-sided, of the paired permutation test; not corrected for the number of pairs.
    p: f64,
}

impl Summary {
    pub fn new(seeds: &[u64], done: &[Done]) -> Self {
        let runs: Vec<&[Done]> = done.chunks(seeds.len()).collect();
        let tables = conditions::tables(&runs);
        let count = tables.iter().max().map_or(0, |last| last + 1);
        let first = |table| runs[tables.iter().position(|t| *t == table).unwrap_or(0)];
        let heads = conditions::headings(&(0..count).map(first).collect::<Vec<_>>());
        let row = |(runs, &table): (&&[Done], &usize)| Row::new(runs, table, &heads[table]);
        let mut rows: Vec<Row> = runs.iter().zip(&tables).map(row).collect();
        // Tables in order of appearance, each in one piece.
        rows.sort_by_key(|row| row.table);
        let mut pairs = Vec::new();
        for (i, a) in rows.iter().enumerate() {
            for b in &rows[i + 1..] {
                if a.table == b.table {
                    pairs.extend(a.metrics.iter().zip(&b.metrics).map(|(x, y)| {
                        let values = x.spread.values.iter().zip(&y.spread.values);
                        let differences: Vec<f64> = values.map(|(x, y)| x - y).collect();
                        Pair {
                            group: a.group.clone(),
                            metric: x.name.clone(),
                            a: a.label.clone(),
                            b: b.label.clone(),
                            difference: mean(differences.iter().copied()),
                            std: std_dev(&differences),
                            p: p_value(&differences),
                        }
                    }));
                }
            }
        }
        Self {
            schema: SCHEMA,
            seeds: seeds.to_vec(),
            rows,
            pairs,
        }
    }

    /// For the terminal: the table, then the pairs by the first metric.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for rows in self.rows.chunk_by(|a, b| a.table == b.table) {
            let mut head = vec!["%"];
            head.extend(rows[0].metrics.iter().map(|m| m.name.as_str()));
            let numbers = rows.iter().map(|row| {
                let mut cells = vec![row.label.clone()];
                let number = |m: &Metric| format!("{:.2} ± {:.2}", m.spread.mean, m.spread.std);
                cells.extend(row.metrics.iter().map(number));
                cells
            });
            let numbers = table::numbers(&head, numbers);
            text += &format!("{}\n{numbers}\n", rows[0].group);
        }
        let first = self.rows.first().and_then(|row| row.metrics.first());
        let metric = first.map_or("", |m| m.name.as_str());
        let pairs: Vec<&Pair> = self.pairs.iter().filter(|p| p.metric == metric).collect();
        // One seed tells nothing of a difference.
        if !pairs.is_empty() && self.seeds.len() > 1 {
            let rows = pairs.into_iter().map(|pair| {
                let difference = format!("{:+.2} ± {:.2}", pair.difference, pair.std);
                let what = format!("{} − {} | {}", pair.a, pair.b, pair.group);
                vec![what, difference, format!("{:.4}", pair.p)]
            });
            let rows = table::numbers(&[metric, "points", "p"], rows);
            text += &format!(
                "Seed by seed, two-sided p of the paired permutation test, not corrected for the number of pairs:\n{rows}"
            );
        }
        text
    }

    pub fn write(&self, out: &Path, done: &[Done]) -> Result<()> {
        let write = |name: &str, bytes: &[u8]| {
            let path = out.join(name);
            write_whole(out, &path, bytes)
                .with_context(|| format!("{}: not written", path.display()))
        };
        write("sweep.csv", &csv(done)?)?;
        let points = self.rows.iter().filter_map(|row| {
            let label = format!("{} | {}", row.label, row.group);
            Some((label, row.metrics.first()?.spread.clone()))
        });
        let metric = self.rows.first().and_then(|row| row.metrics.first());
        let title = metric.map_or("", |m| m.name.as_str());
        write(
            "sweep.svg",
            plot::spreads(title, &points.collect::<Vec<_>>())?.as_bytes(),
        )?;
        write("table.txt", self.text().as_bytes())?;
        let mut json = serde_json::to_vec_pretty(self)?;
        json.push(b'\n');
        write("sweep.json", &json)
    }
}

impl Row {
    fn new(done: &[Done], table: usize, group: &str) -> Self {
        let first = &done[0];
        let names = first.report.metrics.rows();
        let metrics = names.iter().enumerate().map(|(i, (name, _, _))| {
            let values = done.iter().map(|d| d.report.metrics.rows()[i].1);
            let values: Vec<f64> = values.collect();
            Metric {
                name: (*name).to_owned(),
                spread: Spread {
                    mean: mean(values.iter().copied()),
                    std: std_dev(&values),
                    values,
                },
            }
        });
        let variant = &first.variant;
        Self {
            group: group.to_owned(),
            table,
            backbone: variant.backbone.clone(),
            stream: variant.stream.clone(),
            label: variant.label(),
            method: variant.method.clone(),
            settings: variant.settings.clone(),
            metrics: metrics.collect(),
            trainable_parameters: first.report.cost.trainable_parameters,
            cells: done.iter().map(|d| d.digest.clone()).collect(),
        }
    }
}

/// One line per cell; a metric that its scenario does not have is left empty.
fn csv(done: &[Done]) -> Result<Vec<u8>> {
    let mut out = csv::Writer::from_writer(Vec::new());
    let metrics: Vec<_> = done.iter().map(|d| d.report.metrics.rows()).collect();
    let names = table::every_name(metrics.iter().map(|rows| rows.iter().map(|row| row.0)));
    let mut head = vec!["backbone", "stream", "label", "method", "settings", "seed"];
    head.extend(&names);
    head.push("seconds");
    out.write_record(head)?;
    for (cell, rows) in done.iter().zip(&metrics) {
        let v = &cell.variant;
        let mut record = [&v.backbone, &v.stream, &v.label(), &v.method, &v.settings]
            .map(String::clone)
            .to_vec();
        record.push(cell.seed.to_string());
        record.extend(names.iter().map(|name| {
            let found = rows.iter().find(|row| row.0 == *name);
            found.map_or(String::new(), |row| row.1.to_string())
        }));
        record.push(cell.seconds.to_string());
        out.write_record(record)?;
    }
    Ok(out.into_inner()?)
}
