//! The run directory: written file by file to temporary names, synced and renamed, `report.json` last. A directory
//! without it is a run that did not end.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
pub use candlewick_compare::REPORT;
pub use candlewick_compare::SUMMARY;
use candlewick_core::{Outcome, Report, State, Stream, Summary, Task};
use candlewick_data::Source;
use candlewick_page::Run;
use safetensors::tensor::TensorView;
use serde::Serialize;
use tempfile::{NamedTempFile, TempDir};

use crate::checkpoint::CHECKPOINT;
use crate::page::{self, PAGE};
use crate::plot;
use crate::tensorboard::Board;
use crate::watch::TaskTime;

/// What the method has learned.
pub const PARAMS: &str = "params.safetensors";

/// Before the names of files that are being written.
const UNFINISHED: &str = ".candlewick-";

/// What a run writes besides, but for `config.toml`, which may be the recipe that is run.
const FILES: [&str; 11] = [
    "log.txt",
    "accuracy.csv",
    "predictions.csv",
    "classes.csv",
    "curve.svg",
    "matrix.svg",
    "pools.svg",
    PARAMS,
    crate::learned::ADDED,
    "timing.json",
    PAGE,
];

/// Figures that depend on the machine, kept apart from the report.
#[derive(Debug, Serialize)]
pub struct Timing {
    pub seconds: f64,
    pub load_seconds: f64,
    pub threads: usize,
    /// Whether features came from the store, so that no image was looked at in these seconds.
    pub stored_features: bool,
    /// `None` where the system does not tell.
    pub peak_memory_bytes: Option<u64>,
    pub tasks: Vec<TaskTime>,
}

/// A directory that is this run's own.
pub struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// Makes the directory and tries that it can be written, before any work is done. Of an earlier run nothing is
    /// left that could be taken for this one's.
    pub fn create(path: &Path, overwrite: bool) -> Result<Self> {
        let report = path.join(REPORT);
        if report.exists() {
            if !overwrite {
                bail!(
                    "{}: holds a finished run; give another --out, or --overwrite",
                    path.display()
                );
            }
            remove(&report)?;
        }
        let hint = || format!("{}: cannot be written; give another --out", path.display());
        fs::create_dir_all(path).with_context(hint)?;
        clear_unfinished(path)?;
        unfinished(path).with_context(hint)?;
        let kept = path.join(CHECKPOINT);
        if kept.exists() && !overwrite {
            bail!(
                "{}: holds the checkpoint of a run that did not end; go on with --resume, or start anew with --overwrite",
                path.display()
            );
        }
        remove(&kept)?;
        for name in FILES {
            remove(&path.join(name))?;
        }
        Board::clear(path)?;
        Ok(Self {
            path: path.to_owned(),
        })
    }

    /// The directory as a run has left it, or a new one.
    pub fn resume(path: &Path) -> Result<Self> {
        if !path.join(REPORT).exists() && !path.join(CHECKPOINT).exists() {
            return Self::create(path, false);
        }
        clear_unfinished(path)?;
        // A process that was killed between the two had finished.
        if path.join(REPORT).exists() {
            remove(&path.join(CHECKPOINT))?;
        }
        Ok(Self {
            path: path.to_owned(),
        })
    }

    /// The report, if the run has ended.
    pub fn finished(&self) -> Result<Option<Report>> {
        match self.path.join(REPORT).exists() {
            true => read_report(&self.path).map(Some),
            false => Ok(None),
        }
    }

    /// The first of `base`, `base-2`, `base-3` … that holds no finished run.
    pub fn vacant(base: &Path) -> PathBuf {
        let ended = |path: &PathBuf| path.join(REPORT).exists() || path.join(SUMMARY).exists();
        let mut places = (1..).map(|n| numbered(base, n));
        places.find(|path| !ended(path)).unwrap_or_default()
    }

    /// The last of them that is there, else the first.
    pub fn latest(base: &Path) -> PathBuf {
        let places = (1..).map(|n| numbered(base, n));
        let there = places.take_while(|path| path.exists()).last();
        there.unwrap_or_else(|| base.to_owned())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// One file, whole or not at all.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path.join(name);
        write_whole(&self.path, &path, bytes)
            .with_context(|| format!("{}: not written", path.display()))
    }

    /// Everything a finished run leaves; `images` are its test images. Gives what its page is made of.
    pub fn finish(
        &self,
        report: &Report,
        outcome: &Outcome,
        stream: &Stream,
        images: &dyn Source,
        state: &State,
        timing: &Timing,
    ) -> Result<Run> {
        let predictions = predictions_csv(outcome, stream)?;
        let classes = classes_csv(outcome, stream)?;
        self.write("accuracy.csv", &accuracy_csv(report)?)?;
        self.write("predictions.csv", &predictions)?;
        self.write("classes.csv", &classes)?;
        self.write("curve.svg", plot::curve(report)?.as_bytes())?;
        self.write("matrix.svg", plot::matrix(report)?.as_bytes())?;
        if !report.pools.is_empty() {
            self.write("pools.svg", plot::pools(report)?.as_bytes())?;
        }
        self.write(PARAMS, &safetensors(state, None)?)?;
        let (text, times) = (json(report)?, json(timing)?);
        self.write("timing.json", &times)?;
        let name = self.path.display().to_string();
        let mut run = Run::new(&name, &String::from_utf8_lossy(&text))?;
        run.predictions(&predictions)?;
        run.classes(&classes)?;
        run.timing(&String::from_utf8_lossy(&times))?;
        page::pictures(&mut run, images);
        let html = page::html("", &[&run], &[report], None);
        self.write(PAGE, html.as_bytes())?;
        self.write(REPORT, &text)?;
        remove(&self.path.join(CHECKPOINT))?;
        Ok(run)
    }
}

/// Removes what a process that was killed was writing.
fn clear_unfinished(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            match entry.file_type()?.is_dir() {
                true => fs::remove_dir_all(&path).with_context(|| path.display().to_string())?,
                false => remove(&path)?,
            }
        }
    }
    Ok(())
}

/// `base`, `base-2`, `base-3` …
fn numbered(base: &Path, n: usize) -> PathBuf {
    let name = base.file_name().unwrap_or_default().to_string_lossy();
    match n {
        0 | 1 => base.to_owned(),
        _ => base.with_file_name(format!("{name}-{n}")),
    }
}

/// Removes a file, if it is there.
fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if path.exists() => Err(e).with_context(|| path.display().to_string()),
        _ => Ok(()),
    }
}

/// Makes room for the summary of several seeds.
pub fn clear_summary(dir: &Path, overwrite: bool) -> Result<()> {
    let path = dir.join(SUMMARY);
    if path.exists() && !overwrite {
        bail!(
            "{}: holds the finished runs of several seeds; give another --out, or --overwrite",
            dir.display()
        );
    }
    remove(&path)
}

/// Several seeds of one recipe.
pub fn write_summary(dir: &Path, summary: &Summary) -> Result<()> {
    let path = dir.join(SUMMARY);
    write_whole(dir, &path, &json(summary)?)
        .with_context(|| format!("{}: not written", path.display()))
}

/// Reads the report of a run directory, or the file itself.
pub fn read_report(path: &Path) -> Result<Report> {
    Ok(candlewick_compare::read_report(path)?)
}

/// A folder for what is written by others, to be renamed.
pub fn unfinished_folder(dir: &Path) -> std::io::Result<TempDir> {
    tempfile::Builder::new().prefix(UNFINISHED).tempdir_in(dir)
}

/// A file under another name, to be renamed.
fn unfinished(dir: &Path) -> std::io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(UNFINISHED);
    // Readable by whoever the user's umask allows, like any file; temporary ones are private otherwise.
    #[cfg(unix)]
    let builder = builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(dir)
}

/// Written under another name, synced and renamed.
pub fn write_whole(dir: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = unfinished(dir)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    // The name is on disk once the directory is.
    File::open(dir)?.sync_all()
}

fn json<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    Ok(text)
}

/// One row per session: its number, classes seen, micro, macro, then one column per task.
fn accuracy_csv(report: &Report) -> Result<Vec<u8>> {
    let mut out = csv::Writer::from_writer(Vec::new());
    let tasks = report.tasks.len();
    let mut head = vec![
        "session".into(),
        "classes_seen".into(),
        "micro".into(),
        "macro".into(),
    ];
    head.extend((1..=tasks).map(|t| format!("task_{t}")));
    out.write_record(&head)?;
    // The same ones again in every domain.
    let mut classes = BTreeSet::new();
    for (t, row) in report.accuracy_matrix.iter().enumerate() {
        classes.extend(&report.tasks[t].classes);
        let accuracy = &report.session_accuracy;
        let mut record = vec![(t + 1).to_string(), classes.len().to_string()];
        record.push(accuracy.micro[t].to_string());
        record.push(accuracy.macro_[t].to_string());
        record.extend(row.iter().map(f64::to_string));
        record.resize(head.len(), String::new());
        out.write_record(&record)?;
    }
    Ok(out.into_inner()?)
}

fn predictions_csv(outcome: &Outcome, stream: &Stream) -> Result<Vec<u8>> {
    let mut out = csv::Writer::from_writer(Vec::new());
    out.write_record(["image", "class", "predicted", "score"])?;
    let name = |label: u32| stream.class_names[label as usize].as_str();
    for p in &outcome.predictions {
        let score = p.score.to_string();
        out.write_record([&p.image, name(p.label), name(p.predicted), &score])?;
    }
    Ok(out.into_inner()?)
}

/// One row per class: its name, the task that brings it, its test images, then its accuracy after each session, empty
/// before it has any.
fn classes_csv(outcome: &Outcome, stream: &Stream) -> Result<Vec<u8>> {
    let mut out = csv::Writer::from_writer(Vec::new());
    let sessions = stream.tasks.len();
    let mut head = vec!["class".into(), "task".into(), "test_images".into()];
    head.extend((1..=sessions).map(|t| format!("after_{t}")));
    out.write_record(&head)?;
    let classes = &outcome.classes;
    for (label, name) in stream.class_names.iter().enumerate() {
        let brings = |task: &&Task| task.info.classes.contains(&label);
        let task = stream.tasks.iter().find(brings);
        let images = classes.images.last().and_then(|row| row.get(label));
        let mut record = vec![
            name.clone(),
            task.map_or(0, |task| task.info.index + 1).to_string(),
            images.copied().unwrap_or(0).to_string(),
        ];
        let percent = (0..sessions).map(|t| classes.percent(t, label));
        record.extend(percent.map(|p| p.map_or_else(String::new, |p| p.to_string())));
        out.write_record(record)?;
    }
    Ok(out.into_inner()?)
}

/// Tensors in f32, with a header of one's own.
pub fn safetensors(state: &State, header: Option<HashMap<String, String>>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for (name, tensor) in state {
        let values: Vec<f32> = tensor.flatten_all()?.to_vec1()?;
        let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        bytes.push((name, tensor.dims().to_vec(), raw));
    }
    let views: Vec<(&String, TensorView<'_>)> = bytes
        .iter()
        .map(|(name, shape, raw)| {
            let view = TensorView::new(safetensors::Dtype::F32, shape.clone(), raw)?;
            Ok((*name, view))
        })
        .collect::<Result<_>>()?;
    Ok(safetensors::serialize(views, header)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_fails_leaves_the_old_file_and_no_litter() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::create(dir.path(), false).unwrap();
        run.write("a.txt", b"old").unwrap();
        // A directory in the way makes the last step fail.
        fs::create_dir(dir.path().join("b.txt")).unwrap();
        fs::write(dir.path().join("b.txt/x"), b"").unwrap();
        let text = format!("{:#}", run.write("b.txt", b"new").unwrap_err());
        assert!(text.contains("b.txt: not written"), "{text}");
        let mut names: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["a.txt", "b.txt"]);
    }

    #[test]
    fn a_finished_run_is_not_overwritten_unasked() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::create(dir.path(), false).unwrap();
        run.write(REPORT, b"{}").unwrap();
        let text = RunDir::create(dir.path(), false).err().unwrap().to_string();
        assert!(text.contains("--overwrite"), "{text}");
        RunDir::create(dir.path(), true).unwrap();
        assert!(
            !dir.path().join(REPORT).exists(),
            "an old report must not outlive its run"
        );
    }
}
