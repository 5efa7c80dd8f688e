//! Which rows may stand in one table, and what tells the tables apart, in words.

use std::collections::BTreeSet;

use candlewick_compare::differences;
use candlewick_core::Report;
use candlewick_core::report::short;
use candlewick_data::Order;
use toml::Table;

use super::result::Done;
use crate::recipe::Recipe;

/// What a report has as a hash, in the words of the recipe.
#[derive(Debug, Clone)]
pub struct Told {
    pixels: String,
    split: String,
    order: String,
}

impl Told {
    /// `recipe` is as it was written, before anything was filled in.
    pub fn of(recipe: &Recipe, report: &Report) -> Self {
        let fingerprint = &report.fingerprint;
        let pixels = match &fingerprint.preset {
            Some(preset) => format!("pixels as {preset}"),
            None if recipe.preprocess.is_empty() => "pixels of its card".into(),
            None => format!("pixels {}", short(&fingerprint.preprocess)),
        };
        let data = &recipe.data;
        let place = data.label();
        let split = match data.split.as_ref().map(Table::try_from) {
            Some(Ok(split)) => {
                let words = ["kind", "seed"].map(|key| split.get(key).map(value));
                format!(
                    "{place} {}",
                    words.into_iter().flatten().collect::<Vec<_>>().join(" ")
                )
            }
            _ => format!("{place} as divided"),
        };
        let order = match recipe.stream.order {
            Order::Natural => "natural order".into(),
            Order::Numpy(seed) => format!("numpy's order {seed}"),
            Order::Python(seed) => format!("Python's order {seed}"),
            Order::Positions(_) | Order::Names(_) => "an order of its own".into(),
        };
        Self {
            pixels,
            split,
            order,
        }
    }
}

fn value(value: &toml::Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

/// For each row its table: rows whose reports may be compared seed by seed, in order of appearance.
pub fn tables(rows: &[&[Done]]) -> Vec<usize> {
    let mut firsts: Vec<&[Done]> = Vec::new();
    let mut places = Vec::new();
    for row in rows {
        let place = firsts.iter().position(|first| comparable(first, row));
        places.push(place.unwrap_or(firsts.len()));
        if place.is_none() {
            firsts.push(row);
        }
    }
    places
}

fn comparable(a: &[Done], b: &[Done]) -> bool {
    let apart = |(a, b): (&Done, &Done)| {
        let found = differences(&[&a.report, &b.report]);
        found.iter().any(|d| d.incomparable)
    };
    !a.iter().zip(b).any(apart)
}

/// A heading for each table, of which a row is given: backbone and stream, and where tables differ, in what.
pub fn headings(tables: &[&[Done]]) -> Vec<String> {
    type Words = fn(&[Done]) -> String;
    let words: [Words; 7] = [
        |row| format!("{} blocks", row[0].report.fingerprint.depth),
        |row| row[0].told.pixels.clone(),
        |row| row[0].told.split.clone(),
        order,
        |row| row[0].report.fingerprint.dtype.clone(),
        |row| row[0].report.fingerprint.compat.join(" "),
        |row| match row[0].report.cost.images_skipped {
            0 => String::new(),
            n => format!("{n} images skipped"),
        },
    ];
    let mut heads: Vec<String> = tables.iter().map(|row| row[0].variant.place()).collect();
    for word in words {
        let all: Vec<String> = tables.iter().map(|row| word(row)).collect();
        if all.windows(2).any(|pair| pair[0] != pair[1]) {
            for (head, word) in heads.iter_mut().zip(all).filter(|(_, w)| !w.is_empty()) {
                *head = format!("{head}, {word}");
            }
        }
    }
    // What words do not tell, such as two files of one name.
    for told in BTreeSet::from_iter(heads.clone()) {
        let same: Vec<usize> = (0..heads.len()).filter(|&i| heads[i] == told).collect();
        let reports: Vec<&Report> = same.iter().map(|&i| &tables[i][0].report).collect();
        for difference in differences(&reports).iter().filter(|d| d.incomparable) {
            for (&i, value) in same.iter().zip(&difference.values) {
                heads[i] = format!("{}, {} {value}", heads[i], difference.field);
            }
        }
    }
    heads
}

/// Of tasks and classes; nothing where the sweep goes over streams, which the row then names.
fn order(row: &[Done]) -> String {
    let (first, tasks) = (&row[0], row[0].report.tasks.len());
    let one = row.iter().all(|run| run.told.order == first.told.order);
    match (first.variant.stream.is_empty(), one) {
        (false, _) => String::new(),
        (true, true) => format!("{tasks} tasks, {}", first.told.order),
        (true, false) => format!("{tasks} tasks, an order for each seed"),
    }
}
