//! A finished run at work: what it learned, and classes that were added to it since.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail};
use candle_core::{Device, Tensor};
use candlewick_core::task::words;
use candlewick_core::{Method, Report, State, TaskInfo};
use candlewick_data::{Loader, OnCorrupt};
use candlewick_methods::Beside;
use candlewick_models::HubConfig;
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};

use crate::backbone::{self, Second};
use crate::machine;
use crate::names;
use crate::prepare;
use crate::recipe::Recipe;
use crate::record::{self, PARAMS};
use crate::watch::Download;

/// What the run left with the classes that were added, whose names are in its header.
pub const ADDED: &str = "learned.safetensors";
const HEADER: &str = "candlewick.added";

/// A class that was added to a finished run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Added {
    pub class: String,
    pub images: usize,
}

/// A run that can predict.
pub struct Learned {
    pub dir: PathBuf,
    pub method: Box<dyn Method>,
    /// All classes by label.
    pub classes: Vec<String>,
    pub tasks: Vec<TaskInfo>,
    pub added: Vec<Added>,
    /// Images as the run saw them in its tests.
    pub loader: Loader,
    /// Images that are looked at together.
    pub batch: usize,
    /// Held as long as another process must not add a class.
    _lock: File,
}

impl Learned {
    /// Takes up the run in `dir`. While one process learns, others wait.
    pub fn open(dir: &Path, threads: Option<usize>, to_learn: bool) -> Result<Self> {
        let report = record::read_report(dir)?;
        let config = dir.join("config.toml");
        let recipe = Recipe::load(&config, &[])?;
        let origin = config.display().to_string();
        let lock = File::open(&config).with_context(|| origin.clone())?;
        match to_learn {
            true => lock.lock(),
            false => lock.lock_shared(),
        }
        .with_context(|| format!("{origin}: cannot be locked"))?;
        let (state, added) = read(dir)?;

        let threads = match threads {
            Some(0) => bail!("--threads: expected at least 1, found 0"),
            Some(threads) => threads,
            None => std::thread::available_parallelism()?.get(),
        };
        machine::use_threads(threads)?;
        let bar = Download::new();
        let (table, texts) = (&recipe.backbone, recipe.reads_texts());
        let located = backbone::locate(table, texts, HubConfig::from_env()?, Some(&bar))?;
        if located.sha256 != report.fingerprint.weights {
            bail!(
                "{}: was run with weights of SHA-256 {}, but `{}` has {}; give it the same weights",
                dir.display(),
                report.fingerprint.weights,
                recipe.backbone.label(),
                located.sha256
            );
        }
        let preprocess = recipe.preprocess(located.card.preprocess.as_ref(), &origin)?;
        let loader = Loader::new(&preprocess, threads, OnCorrupt::Skip)?;
        let size = prepare::square(&loader)?;
        let device = prepare::device(&recipe.device)?;
        let vit = backbone::load(&recipe, table, &located, size, &device)?;
        let method = recipe.method(&origin)?;
        let booster = match method.wants_booster() {
            true => Some(Second::load(&recipe, &preprocess, size, &bar)?),
            false => None,
        };
        if let Some(booster) = &booster {
            same(&report, dir, &booster.fingerprint())?;
        }
        let mut method = method.build_beside(
            Arc::new(vit),
            recipe.train.as_ref(),
            recipe.data.eval_batch,
            recipe.seed,
            Beside {
                booster: booster.map(|booster| booster.booster),
                ..Beside::default()
            },
        )?;
        let (mut tasks, mut classes) = tasks(&report);
        if let Some(names) = names::called(&recipe, &classes)? {
            for task in &mut tasks {
                task.names = names[task.classes.clone()].to_vec();
            }
        }
        for added in &added {
            tasks.push(next(&tasks, &added.class, added.images));
            classes.push(added.class.clone());
        }
        let not_its = || format!("{}: not the parameters of this run", dir.display());
        method.restore(&tasks, &state).with_context(not_its)?;
        Ok(Self {
            dir: dir.to_owned(),
            method,
            classes,
            tasks,
            added,
            loader,
            batch: recipe.data.eval_batch,
            _lock: lock,
        })
    }

    /// Keeps what was learned since, in one file beside the run's own.
    pub fn save(&self) -> Result<()> {
        let header = serde_json::to_string(&self.added)?;
        let header = HashMap::from([(HEADER.to_owned(), header)]);
        let bytes = record::safetensors(&self.method.state()?, Some(header))?;
        let path = self.dir.join(ADDED);
        record::write_whole(&self.dir, &path, &bytes)
            .with_context(|| format!("{}: not written", path.display()))
    }
}

/// That the second backbone is the one that the run had.
fn same(report: &Report, dir: &Path, found: &str) -> Result<()> {
    match report.fingerprint.booster.as_deref() {
        Some(had) if had == found => Ok(()),
        had => bail!(
            "{}: was run with a booster of SHA-256 {}, but that of its recipe has {found}; give it the same weights",
            dir.display(),
            had.unwrap_or("unknown")
        ),
    }
}

/// The task of one class that comes behind `tasks`.
pub fn next(tasks: &[TaskInfo], class: &str, images: usize) -> TaskInfo {
    let first = tasks.iter().map(|task| task.classes.end).max().unwrap_or(0);
    TaskInfo {
        index: tasks.len(),
        classes: first..first + 1,
        names: vec![words(class)],
        train_len: images,
        test_len: 0,
    }
}

/// The tasks of a report, and their classes by label.
fn tasks(report: &Report) -> (Vec<TaskInfo>, Vec<String>) {
    let mut names: Vec<String> = Vec::new();
    let mut tasks = Vec::new();
    for (index, task) in report.tasks.iter().enumerate() {
        // The classes of a domain come again with the next one.
        let first = match task.domain {
            Some(_) => 0,
            None => names.len(),
        };
        // Without its data set, where it has one.
        let own = |class: &String| match &task.set {
            Some(set) => words(class.strip_prefix(&format!("{set}/")).unwrap_or(class)),
            None => words(class),
        };
        names.truncate(first);
        names.extend(task.classes.iter().cloned());
        tasks.push(TaskInfo {
            index,
            classes: first..names.len(),
            names: task.classes.iter().map(own).collect(),
            train_len: task.train_images,
            test_len: task.test_images,
        });
    }
    (tasks, names)
}

/// The newest parameters of a run, and the classes that were added.
fn read(dir: &Path) -> Result<(State, Vec<Added>)> {
    let added = dir.join(ADDED);
    let path = match added.exists() {
        true => added,
        false => dir.join(PARAMS),
    };
    let broken = |e: safetensors::SafeTensorError| {
        anyhow!(
            "{}: not a whole safetensors file ({e}); run the recipe again",
            path.display()
        )
    };
    let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(broken)?;
    let added = header.metadata().as_ref().and_then(|m| m.get(HEADER));
    let added = match added {
        Some(text) => serde_json::from_str(text).with_context(|| path.display().to_string())?,
        None => Vec::new(),
    };
    let tensors = SafeTensors::deserialize(&bytes).map_err(broken)?;
    let mut state: BTreeMap<String, Tensor> = BTreeMap::new();
    for (name, view) in tensors.tensors() {
        let tensor = candle_core::safetensors::Load::load(&view, &Device::Cpu)?;
        state.insert(name, tensor);
    }
    Ok((state, added))
}
