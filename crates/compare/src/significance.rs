//! Which differences are more than chance.

use std::collections::BTreeMap;
use std::path::Path;

use candlewick_core::metrics::{mean, std_dev};
use statrs::distribution::{Binomial, DiscreteCDF as _};

use crate::comparison::Comparison;
use crate::entry::{Entry, Run};
use crate::error::Result;
use crate::paired;
use crate::predictions::{self, Counts, Hits};

const MICRO: &str = "last_accuracy_micro";
const MACRO: &str = "last_accuracy_macro";

/// What was tested.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// Exact McNemar: on the same test images, does the one get right what the other gets wrong more often than the other way
    /// round?
    McNemar {
        /// Of both runs, where each row has several.
        seed: Option<u64>,
        /// Images.
        counts: Counts,
    },
    /// Paired permutation over seeds: [`paired::p_value`].
    Permutation {
        /// What is averaged.
        metric: String,
        /// Pairs.
        seeds: usize,
        /// Mean of a − b, in points.
        difference: f64,
        /// Sample deviation of a − b.
        std: f64,
    },
}

/// A test of one pair of rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Test {
    /// Row.
    pub a: usize,
    /// Row.
    pub b: usize,
    /// Which, and what it rests on.
    pub kind: Kind,
    /// Two-sided.
    pub p: f64,
    /// The same, corrected by [`holm`] for the number of tests of its kind: all of McNemar together, and all of one metric.
    pub holm: f64,
}

/// Two-sided p of the exact McNemar test: if neither were better, each of the `b + c` images that one alone got right
/// would be the first's with probability one half. Twice the smaller tail of that binomial, at most 1.
/// (McNemar 1947; exact form as in R's `exact2x2` and `statsmodels.stats.contingency_tables.mcnemar`)
pub fn mcnemar(b: u64, c: u64) -> f64 {
    match Binomial::new(0.5, b + c) {
        Ok(binomial) => (2.0 * binomial.cdf(b.min(c))).min(1.0),
        // One half is a probability.
        Err(_) => 1.0,
    }
}

/// Holm's step-down correction (1979): the k-th smallest of m p-values times m − k + 1, never below one before it and at most
/// 1. In the order given.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&i, &j| p[i].total_cmp(&p[j]));
    let mut corrected = vec![1.0; p.len()];
    let mut least = 0.0f64;
    for (k, &i) in order.iter().enumerate() {
        least = least.max((p[i] * (p.len() - k) as f64).min(1.0));
        corrected[i] = least;
    }
    corrected
}

/// All tests between rows of our own that may be compared, and what was left out.
pub(crate) fn tests(comparison: &Comparison) -> Result<(Vec<Test>, Vec<String>)> {
    let entries = &comparison.entries;
    let (mut found, mut left_out) = (Vec::new(), Vec::new());
    let mut read: BTreeMap<&Path, Hits> = BTreeMap::new();
    for (a, first) in entries.iter().enumerate() {
        for (b, second) in entries.iter().enumerate().skip(a + 1) {
            if !first.is_run() || !second.is_run() {
                continue;
            }
            let bars = comparison.bars(a, b);
            if !bars.is_empty() {
                let fields: Vec<&str> = bars.iter().map(|bar| bar.field.as_str()).collect();
                let fields = fields.join(", ");
                left_out.push(format!(
                    "{} and {}: {fields} differ or are not known",
                    a + 1,
                    b + 1
                ));
                continue;
            }
            let pairs = pairs(first, second);
            if pairs.is_empty() {
                left_out.push(format!("{} and {}: no seed in common", a + 1, b + 1));
            }
            for (x, y) in &pairs {
                let (Some(x_file), Some(y_file)) = (&x.predictions, &y.predictions) else {
                    continue;
                };
                for file in [x_file, y_file] {
                    if !read.contains_key(file.as_path()) {
                        read.insert(file, predictions::read(file)?);
                    }
                }
                let files = [x_file.as_path(), y_file.as_path()];
                let counts = predictions::counts(&read[files[0]], &read[files[1]], files)?;
                found.push(Test {
                    a,
                    b,
                    kind: Kind::McNemar {
                        seed: (pairs.len() > 1).then_some(x.report.fingerprint.seed),
                        counts,
                    },
                    p: mcnemar(counts.b, counts.c),
                    holm: 1.0,
                });
            }
            if pairs
                .iter()
                .any(|(x, y)| x.predictions.is_none() || y.predictions.is_none())
            {
                let what = "no predictions.csv of each run, so no McNemar test";
                left_out.push(format!("{} and {}: {what}", a + 1, b + 1));
            }
            if pairs.len() > 1 {
                for metric in ["average_incremental_accuracy", MICRO, MACRO] {
                    let twice = metric == MACRO && alike(first) && alike(second);
                    if !twice && comparison.bars_in(metric, a, b).is_empty() {
                        found.extend(over_seeds(metric, (a, b), &pairs));
                    }
                }
            }
        }
    }
    correct(&mut found);
    Ok((found, left_out))
}

/// Runs with the same seed. Two single runs are a pair whatever their seeds: what these drew was found to be no bar.
pub(crate) fn pairs<'a>(a: &'a Entry, b: &'a Entry) -> Vec<(&'a Run, &'a Run)> {
    if let ([x], [y]) = (a.runs.as_slice(), b.runs.as_slice()) {
        return vec![(x, y)];
    }
    let seed = |run: &Run| run.report.fingerprint.seed;
    let of_b = |x: &'a Run| b.runs.iter().find(|y| seed(y) == seed(x));
    let pairs = a.runs.iter().filter_map(|x| Some((x, of_b(x)?)));
    pairs.collect()
}

/// Whether micro and macro are one, as where all tasks have as many test images.
fn alike(entry: &Entry) -> bool {
    let same = |run: &Run| {
        let metrics = &run.report.metrics;
        (metrics.last_accuracy_micro - metrics.last_accuracy_macro).abs() < 1e-9
    };
    entry.runs.iter().all(same)
}

fn over_seeds(metric: &str, (a, b): (usize, usize), pairs: &[(&Run, &Run)]) -> Option<Test> {
    let value = |run: &Run| {
        let rows = run.report.metrics.rows();
        rows.iter().find(|row| row.0 == metric).map(|row| row.1)
    };
    let differences = pairs.iter().map(|(x, y)| Some(value(x)? - value(y)?));
    let differences: Vec<f64> = differences.collect::<Option<_>>()?;
    Some(Test {
        a,
        b,
        kind: Kind::Permutation {
            metric: metric.to_owned(),
            seeds: differences.len(),
            difference: mean(differences.iter().copied()),
            std: std_dev(&differences),
        },
        p: paired::p_value(&differences),
        holm: 1.0,
    })
}

/// Within each kind of test.
fn correct(tests: &mut [Test]) {
    let mut families: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (i, test) in tests.iter().enumerate() {
        let family = match &test.kind {
            Kind::McNemar { .. } => String::new(),
            Kind::Permutation { metric, .. } => metric.clone(),
        };
        families.entry(family).or_default().push(i);
    }
    for family in families.values() {
        let p: Vec<f64> = family.iter().map(|&i| tests[i].p).collect();
        for (&i, corrected) in family.iter().zip(holm(&p)) {
            tests[i].holm = corrected;
        }
    }
}
