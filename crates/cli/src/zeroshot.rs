//! `candlewick zeroshot`: a CLIP names the test images of a data set by their class names, all classes of a set at once.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use candlewick_core::{Batch, Error, Scenario, Stream, Task, TaskInfo, View};
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

/// Images whose classes are asked for together: those of one data set.
struct Set<'a> {
    name: String,
    info: TaskInfo,
    tasks: &'a [Task],
}

impl<'a> Set<'a> {
    /// All of a stream, or each data set of a multi-domain one.
    fn all(stream: &'a Stream, backbone: &str) -> Vec<Self> {
        if let Scenario::MultiDomain(names) = &stream.scenario {
            let sets = names.iter().zip(stream.tasks.chunks(1));
            return sets
                .map(|(name, tasks)| Self {
                    name: name.clone(),
                    info: tasks[0].info.clone(),
                    tasks,
                })
                .collect();
        }
        let infos = || stream.tasks.iter().map(|task| &task.info);
        vec![Self {
            name: backbone.to_owned(),
            info: TaskInfo {
                index: 0,
                classes: 0..stream.class_names.len(),
                names: infos().flat_map(|info| info.names.clone()).collect(),
                train_len: 0,
                test_len: infos().map(|info| info.test_len).sum(),
            },
            tasks: &stream.tasks,
        }]
    }
}

/// In percent, and the images it is of.
struct Found {
    images: usize,
    classes: usize,
    first: f64,
    five: f64,
    class_mean: f64,
}

impl Found {
    fn of(hits: &[Hits]) -> Option<Self> {
        let seen = || hits.iter().filter(|h| h.images > 0);
        let images: usize = seen().map(|h| h.images).sum();
        let part = |n: usize, of: usize| 100.0 * n as f64 / of as f64;
        let shares = seen().map(|h| part(h.first, h.images));
        (images > 0).then(|| Self {
            images,
            classes: hits.len(),
            first: part(seen().map(|h| h.first).sum(), images),
            five: part(seen().map(|h| h.five).sum(), images),
            class_mean: shares.sum::<f64>() / seen().count() as f64,
        })
    }

    fn row(&self, name: &str) -> Vec<String> {
        let percent = |x: f64| format!("{x:.2}");
        vec![
            name.to_owned(),
            self.images.to_string(),
            self.classes.to_string(),
            percent(self.first),
            percent(self.five),
            percent(self.class_mean),
            percent(100.0 / self.classes as f64),
        ]
    }
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
    let sets = Set::all(&plan.stream, &loaded.located.card.name);
    let started = Instant::now();
    for set in &sets {
        method.begin_task(&set.info)?;
    }
    let texts = started.elapsed();
    let started = Instant::now();
    let images = sets.iter().map(|set| set.info.test_len).sum();
    let progress = watch::images_bar("zeroshot", images);
    let mut lines = csv::Writer::from_writer(Vec::new());
    lines.write_record(["image", "label", "predicted", "score"])?;
    let mut found = Vec::new();
    for set in &sets {
        let first = set.info.classes.start;
        let mut hits = vec![Hits::default(); set.info.classes.len()];
        for task in set.tasks {
            for batch in task.test.batches(View::Plain, plan.recipe.data.eval_batch) {
                if stop.load(std::sync::atomic::Ordering::Relaxed) {
                    return Err(Error::Interrupted.into());
                }
                let batch: Batch = batch?;
                let scores = method.predict_task(&batch, &set.info)?;
                let scores: Vec<Vec<f32>> = scores.context("class names")?.to_vec2()?;
                for (i, row) in scores.iter().enumerate() {
                    let own = batch.labels[i] as usize - first;
                    let (rank, best) = rank(row, own);
                    let hit = &mut hits[own];
                    hit.images += 1;
                    hit.first += usize::from(rank == 0);
                    hit.five += usize::from(rank < 5);
                    lines.write_record([
                        &task.test.image_name(batch.ids[i]),
                        &classes[first + own],
                        &classes[first + best],
                        &row[best].to_string(),
                    ])?;
                }
                progress.inc(batch.len() as u64);
            }
        }
        match Found::of(&hits) {
            Some(of) => found.push(of),
            None if sets.len() > 1 => {
                bail!(
                    "{origin}: `{}` has no test image that can be read",
                    set.name
                )
            }
            None => bail!("{origin}: there is no test image that can be read"),
        }
    }
    progress.finish_and_clear();
    let seconds = started.elapsed().as_secs_f64();
    let mut rows: Vec<Vec<String>> = sets
        .iter()
        .zip(&found)
        .map(|(set, found)| found.row(&set.name))
        .collect();
    let images: usize = found.iter().map(|f| f.images).sum();
    if found.len() > 1 {
        let mean = |of: fn(&Found) -> f64| {
            let sum: f64 = found.iter().map(of).sum();
            format!("{:.2}", sum / found.len() as f64)
        };
        rows.push(vec![
            "mean of the sets".into(),
            images.to_string(),
            String::new(),
            mean(|f| f.first),
            mean(|f| f.five),
            mean(|f| f.class_mean),
            mean(|f| 100.0 / f.classes as f64),
        ]);
    }
    let head = [
        if found.len() > 1 {
            "data set"
        } else {
            "backbone"
        },
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

/// The recipe of the flags: nothing trains, and each class is a task, which does not matter here, or each of several data sets.
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
    let several = |data: &Value| data.get("sets").is_some();
    let stream = match args.data.is_none() && table.get("data").is_some_and(several) {
        true => "kind = \"multi-domain\"",
        false => "increment = 1",
    };
    let mut own = |key: &str, text: &str| -> Result<()> {
        table.insert(key.into(), Value::Table(text.parse()?));
        Ok(())
    };
    own("stream", stream)?;
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
