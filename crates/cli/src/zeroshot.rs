//! `candlewick zeroshot`: a CLIP names the test images of a data set by their class names, all classes at once.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use candlewick_core::{Batch, Error, TaskInfo, View};
use clap::Args;
use toml::{Table, Value};

use crate::prepare::Plan;
use crate::recipe::{Recipe, overlay};
use crate::watch::{self, Download};
use crate::{features, machine, print, record, table};

#[derive(Args)]
pub struct ZeroShotArgs {
    /// Recipe whose data, backbone and preprocessing are taken; or name them below
    recipe: Option<PathBuf>,
    /// Card, Hub id or path of a CLIP
    #[arg(long)]
    backbone: Option<String>,
    /// Name or path of a data set
    #[arg(long)]
    data: Option<String>,
    /// Sentences: cifar, imagenet, imagenet-r, or one of your own with {} for the class
    #[arg(long)]
    templates: Option<String>,
    /// Change a value of the recipe, for example data.class_names=names.csv
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Threads; all cores where left out
    #[arg(long)]
    threads: Option<usize>,
    /// Write a CSV file with a line for each test image
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Of one class.
#[derive(Default, Clone)]
struct Hits {
    images: usize,
    first: usize,
    five: usize,
}

pub fn zeroshot(args: &ZeroShotArgs) -> Result<()> {
    let (recipe, origin) = recipe(args)?;
    let bar = Download::new();
    let (plan, _) = Plan::new(recipe, &origin, Some(&bar))?;
    machine::use_threads(plan.threads)?;
    let stop = watch::interrupted()?;
    let loaded = plan.load(&bar)?;
    let mut method = plan.build(features::at_hand(&plan, &loaded)?, None)?;
    let classes = &plan.stream.class_names;
    let tasks = &plan.stream.tasks;
    let info = TaskInfo {
        index: 0,
        classes: 0..classes.len(),
        names: tasks.iter().flat_map(|t| t.info.names.clone()).collect(),
        train_len: 0,
        test_len: tasks.iter().map(|t| t.info.test_len).sum(),
    };
    let started = Instant::now();
    method.begin_task(&info)?;
    let texts = started.elapsed();
    let started = Instant::now();
    let progress = watch::images_bar("zeroshot", info.test_len);
    let mut hits = vec![Hits::default(); classes.len()];
    let mut lines = csv::Writer::from_writer(Vec::new());
    lines.write_record(["image", "label", "predicted", "score"])?;
    for task in tasks {
        for batch in task.test.batches(View::Plain, plan.recipe.data.eval_batch) {
            if stop.load(std::sync::atomic::Ordering::Relaxed) {
                return Err(Error::Interrupted.into());
            }
            let batch: Batch = batch?;
            let scores: Vec<Vec<f32>> = method.predict(&batch)?.to_vec2()?;
            for (i, row) in scores.iter().enumerate() {
                let own = batch.labels[i] as usize;
                let (rank, best) = rank(row, own);
                let hit = &mut hits[own];
                hit.images += 1;
                hit.first += usize::from(rank == 0);
                hit.five += usize::from(rank < 5);
                lines.write_record([
                    &task.test.image_name(batch.ids[i]),
                    &classes[own],
                    &classes[best],
                    &row[best].to_string(),
                ])?;
            }
            progress.inc(batch.len() as u64);
        }
    }
    progress.finish_and_clear();
    let images: usize = hits.iter().map(|h| h.images).sum();
    if images == 0 {
        bail!("{origin}: there is no test image that can be read");
    }
    let seconds = started.elapsed().as_secs_f64();
    let percent = |n: usize| format!("{:.2}", 100.0 * n as f64 / images as f64);
    let shares = hits.iter().filter(|h| h.images > 0);
    let shares: Vec<f64> = shares.map(|h| h.first as f64 / h.images as f64).collect();
    let mean = 100.0 * shares.iter().sum::<f64>() / shares.len() as f64;
    let rows = vec![vec![
        loaded.located.card.name.clone(),
        images.to_string(),
        classes.len().to_string(),
        percent(hits.iter().map(|h| h.first).sum()),
        percent(hits.iter().map(|h| h.five).sum()),
        format!("{mean:.2}"),
        format!("{:.2}", 100.0 / classes.len() as f64),
    ]];
    let head = [
        "backbone",
        "images",
        "classes",
        "top 1",
        "top 5",
        "class mean",
        "chance",
    ];
    print(&table::list(&head, rows))?;
    print(&format!(
        "texts in {}, images in {seconds:.1} s ({:.0}/s)\n",
        watch::seconds(texts),
        images as f64 / seconds.max(1e-9)
    ))?;
    if let Some(out) = &args.out {
        let folder = match out.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => std::path::Path::new("."),
        };
        let bytes = lines.into_inner().context("--out")?;
        record::write_whole(folder, out, &bytes)
            .with_context(|| format!("--out: {}", out.display()))?;
    }
    Ok(())
}

/// How many score better than `own`, of equals those of a smaller label; and the best.
fn rank(row: &[f32], own: usize) -> (usize, usize) {
    let better = |c: usize| row[c] > row[own] || (row[c] == row[own] && c < own);
    let rank = (0..row.len()).filter(|&c| better(c)).count();
    let best = (0..row.len()).fold(0, |best, c| if row[c] > row[best] { c } else { best });
    (rank, best)
}

/// The recipe of the flags: nothing trains, and each class is a task, which does not matter here.
fn recipe(args: &ZeroShotArgs) -> Result<(Recipe, String)> {
    let (mut table, origin) = match &args.recipe {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("{}: give the path of a recipe", path.display()))?;
            let origin = path.display().to_string();
            let table: Table = text
                .parse()
                .map_err(|e: toml::de::Error| anyhow::anyhow!("{origin}: {e}"))?;
            (table, origin)
        }
        None => (Table::new(), "the flags".to_owned()),
    };
    let mut own = |key: &str, text: &str| -> Result<()> {
        table.insert(key.into(), Value::Table(text.parse()?));
        Ok(())
    };
    own("stream", "increment = 1")?;
    own("method", "name = \"continual-clip\"")?;
    table.remove("train");
    table.entry("seed").or_insert(Value::Integer(0));
    if let Some(name) = &args.backbone {
        let key = if is_path(name) { "path" } else { "name" };
        table.insert(
            "backbone".into(),
            Value::Table(Table::from_iter([(
                key.into(),
                Value::String(name.clone()),
            )])),
        );
    }
    if let Some(name) = &args.data {
        let known = name == crate::recipe::DEMO || candlewick_sets::find(name).is_some();
        let key = if known { "name" } else { "path" };
        table.insert(
            "data".into(),
            Value::Table(Table::from_iter([(
                key.into(),
                Value::String(name.clone()),
            )])),
        );
    }
    for (key, flag) in [("backbone", "--backbone"), ("data", "--data")] {
        if !table.contains_key(key) {
            bail!("zeroshot: give a recipe, or {flag}");
        }
    }
    if let Some(templates) = &args.templates {
        let value = match templates.contains("{}") {
            true => Value::Array(vec![Value::String(templates.clone())]),
            false => Value::String(templates.clone()),
        };
        if let Some(Value::Table(method)) = table.get_mut("method") {
            method.insert("templates".into(), value);
        }
    }
    for set in &args.set {
        overlay(&mut table, set)?;
    }
    if let Some(threads) = args.threads {
        overlay(&mut table, &format!("threads={threads}"))?;
    }
    Ok((Recipe::from_table(table, &origin)?, origin))
}

/// As [`candlewick_models::resolve`] tells a path from a name.
fn is_path(name: &str) -> bool {
    candlewick_models::find(name).is_none() && std::path::Path::new(name).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_count_what_is_better_and_what_is_equal_before() {
        assert_eq!(rank(&[1.0, 3.0, 2.0], 1), (0, 1));
        assert_eq!(rank(&[1.0, 3.0, 2.0], 0), (2, 1));
        assert_eq!(rank(&[3.0, 3.0, 2.0], 1), (1, 0));
        assert_eq!(rank(&[3.0, 3.0, 2.0], 0), (0, 0));
    }
}
