//! A run written down on the way, and taken up again to the same end.
//!
//! `checkpoint.safetensors` holds the tensors of the method, `state/NAME` and `session/NAME`, and in its metadata a TOML
//! record: how far the run is, what it depends on, its log. It is one file, written under another name, synced and
//! renamed, so there is the old one or the new one. A digest over record and tensors finds what a disk has done to it.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use candle_core::{Device, Tensor};
use candlewick_core::report::hex;
use candlewick_core::{Fingerprint, Method, Phase, Session, Standing, State};
use candlewick_data::Loader;
use safetensors::tensor::{SafeTensors, View};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use toml::{Table, Value};

use crate::features::code;
use crate::prepare::{Loaded, Plan};
use crate::recipe::Recipe;
use crate::record::unfinished_folder;
use crate::watch::TaskTime;

pub const CHECKPOINT: &str = "checkpoint.safetensors";
/// Raised when an older one can no longer be read.
const FORMAT: u32 = 2;
/// Keys of the file's metadata.
const RECORD: &str = "candlewick";
const DIGEST: &str = "sha256";

/// How often one is written, besides at the borders of tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Every {
    Steps(u64),
    Time(Duration),
    /// At the borders alone.
    Task,
}

impl FromStr for Every {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let number = |digits: &str| digits.parse::<u64>().ok().filter(|n| *n > 0);
        let time = |digits: &str, unit: u64| {
            let seconds = number(digits)?.checked_mul(unit)?;
            Some(Self::Time(Duration::from_secs(seconds)))
        };
        let parsed = match text.as_bytes().last() {
            _ if text == "task" => Some(Self::Task),
            Some(b's') => time(&text[..text.len() - 1], 1),
            Some(b'm') => time(&text[..text.len() - 1], 60),
            Some(b'h') => time(&text[..text.len() - 1], 3600),
            _ => number(text).map(Self::Steps),
        };
        parsed.ok_or_else(|| {
            "expected a number of steps, a time as 90s, 5m or 2h, or `task`".to_owned()
        })
    }
}

impl std::fmt::Display for Every {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Steps(steps) => write!(f, "{steps}"),
            Self::Time(time) => write!(f, "{}s", time.as_secs()),
            Self::Task => write!(f, "task"),
        }
    }
}

/// What a call asks of checkpoints.
#[derive(Debug, Clone, Copy, Default)]
pub struct Checkpoints {
    /// `None`: as in the checkpoint that is resumed from, if any.
    pub every: Option<Every>,
    pub resume: bool,
}

/// What stands beside the tensors.
#[derive(Serialize, Deserialize)]
struct Record {
    format: u32,
    every: String,
    seconds: f64,
    log: String,
    skipped: Vec<String>,
    depends: BTreeMap<String, String>,
    recipe: Table,
    times: Vec<TaskTime>,
    standing: Standing,
}

/// A run that is taken up.
pub struct Resumed {
    pub every: Every,
    pub seconds: f64,
    pub log: String,
    pub times: Vec<TaskTime>,
    pub skipped: Vec<String>,
    pub standing: Standing,
    pub state: State,
    pub session: Session,
}

/// Writes the checkpoints of one run.
pub struct Keeper {
    dir: PathBuf,
    every: Every,
    depends: BTreeMap<String, String>,
    recipe: Table,
    loader: Loader,
    /// Of the processes before this one.
    before: f64,
    started: Instant,
    /// Steps since the last one, and when it was.
    steps: u64,
    last: Instant,
}

impl Keeper {
    pub fn new(
        dir: &Path,
        every: Every,
        plan: &Plan,
        loaded: &Loaded,
        before: f64,
    ) -> Result<Self> {
        Ok(Self {
            dir: dir.to_owned(),
            every,
            depends: depends(&plan.fingerprint(loaded))?,
            recipe: table(&plan.recipe)?,
            loader: plan.loader.clone(),
            before,
            started: Instant::now(),
            steps: 0,
            last: Instant::now(),
        })
    }

    /// Whether one is to be written here. At the borders of training, learning and evaluation always: nothing in between
    /// the last two can be taken up.
    pub fn due(&mut self, at: &Standing) -> bool {
        match at.phase {
            Phase::Training { batches, .. } if batches > 0 => {
                self.steps += 1;
                match self.every {
                    Every::Steps(steps) => self.steps >= steps,
                    Every::Time(time) => self.last.elapsed() >= time,
                    Every::Task => false,
                }
            }
            _ => true,
        }
    }

    pub fn write(
        &mut self,
        at: &Standing,
        method: &dyn Method,
        log: &str,
        times: &[TaskTime],
    ) -> Result<()> {
        let record = Record {
            format: FORMAT,
            every: self.every.to_string(),
            seconds: self.before + self.started.elapsed().as_secs_f64(),
            log: log.to_owned(),
            skipped: self.loader.skipped(),
            depends: self.depends.clone(),
            recipe: self.recipe.clone(),
            times: times.to_vec(),
            standing: at.clone(),
        };
        let path = self.dir.join(CHECKPOINT);
        let tensors = named(&method.state()?, &method.session()?);
        write(&self.dir, &path, &record, &tensors)
            .with_context(|| format!("{}: not written", path.display()))?;
        self.steps = 0;
        self.last = Instant::now();
        Ok(())
    }
}

const STATE: &str = "state/";
const SESSION: &str = "session/";

fn named(state: &State, session: &Session) -> BTreeMap<String, Tensor> {
    let mut all = BTreeMap::new();
    for (start, tensors) in [(STATE, state), (SESSION, session.tensors())] {
        for (name, tensor) in tensors {
            all.insert(format!("{start}{name}"), tensor.clone());
        }
    }
    all
}

fn write(
    dir: &Path,
    path: &Path,
    record: &Record,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<()> {
    let text = toml::to_string(record)?;
    let digest = digest(&text, tensors.iter());
    let about = HashMap::from([(RECORD.to_owned(), text), (DIGEST.to_owned(), digest)]);
    // In a folder, as safetensors writes under a name of its own first, which a kill would leave.
    let place = unfinished_folder(dir)?;
    let whole = place.path().join("whole");
    safetensors::serialize_to_file(tensors.iter(), Some(about), &whole)?;
    File::open(&whole)?.sync_all()?;
    fs::rename(&whole, path)?;
    Ok(File::open(dir)?.sync_all()?)
}

/// Over the record and all tensors in the order of their names.
fn digest<V: View>(record: &str, tensors: impl Iterator<Item = (impl AsRef<str>, V)>) -> String {
    let mut hash = Sha256::new();
    hash.update((record.len() as u64).to_le_bytes());
    hash.update(record);
    for (name, tensor) in tensors {
        let head = format!(
            "{} {:?} {:?}",
            name.as_ref(),
            tensor.dtype(),
            tensor.shape()
        );
        hash.update((head.len() as u64).to_le_bytes());
        hash.update(head);
        hash.update(tensor.data());
    }
    hex(&hash.finalize())
}

/// The checkpoint of this very run in `dir`; `None` where there is none.
pub fn read(dir: &Path, plan: &Plan, loaded: &Loaded) -> Result<Option<Resumed>> {
    let path = dir.join(CHECKPOINT);
    if !path.exists() {
        return Ok(None);
    }
    let name = || path.display().to_string();
    let (record, state, session) = open(&path).with_context(name)?;
    let mut differ = differences(&record.recipe, &table(&plan.recipe)?);
    let here = depends(&plan.fingerprint(loaded))?;
    for (what, value) in &here {
        let there = record.depends.get(what).map_or("nothing", String::as_str);
        if there != value {
            differ.push(format!("{what} is {there} there, {value} here"));
        }
    }
    refuse(&path, &differ)?;
    Ok(Some(Resumed {
        every: record
            .every
            .parse()
            .map_err(|e| anyhow!("{}: `every`: {e}", path.display()))?,
        seconds: record.seconds,
        log: record.log,
        times: record.times,
        skipped: record.skipped,
        standing: record.standing,
        state,
        session,
    }))
}

/// That a finished run in `dir` is of this recipe.
pub fn is_of(config: &Path, found: &Fingerprint, plan: &Plan, loaded: &Loaded) -> Result<()> {
    let name = || config.display().to_string();
    let text = fs::read_to_string(config).with_context(name)?;
    let mut differ = differences(
        &without_threads(text.parse().with_context(name)?),
        &table(&plan.recipe)?,
    );
    let here = plan.fingerprint(loaded);
    if *found != here {
        differ.push("its report is of other code, weights or data".into());
    }
    refuse(config, &differ)
}

fn refuse(path: &Path, differ: &[String]) -> Result<()> {
    match differ {
        [] => Ok(()),
        _ => bail!(
            "{}: of another run, {}; resume with what it was begun with, or start anew with --overwrite",
            path.display(),
            differ.join("; ")
        ),
    }
}

fn open(path: &Path) -> Result<(Record, State, Session)> {
    const DAMAGED: &str = "damaged, so nothing can be resumed; start anew with --overwrite";
    let bytes = fs::read(path)?;
    let (_, header) = SafeTensors::read_metadata(&bytes).context(DAMAGED)?;
    let about = header.metadata().clone().unwrap_or_default();
    let (Some(text), Some(sealed)) = (about.get(RECORD), about.get(DIGEST)) else {
        bail!("no checkpoint of candlewick; start anew with --overwrite");
    };
    let views = SafeTensors::deserialize(&bytes).context(DAMAGED)?;
    let views: BTreeMap<_, _> = views.tensors().into_iter().collect();
    if digest(text, views.iter()) != *sealed {
        bail!("{DAMAGED}: its bytes are not those that were written");
    }
    #[derive(Deserialize)]
    struct Head {
        format: u32,
    }
    let Head { format } = toml::from_str(text)?;
    if format != FORMAT {
        bail!(
            "a checkpoint of format {format}, expected {FORMAT}; go on with the candlewick that wrote it"
        );
    }
    let record = toml::from_str(text)?;
    let (mut state, mut session) = (State::new(), State::new());
    for (name, tensor) in candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)? {
        match (name.strip_prefix(STATE), name.strip_prefix(SESSION)) {
            (Some(name), _) => state.insert(name.to_owned(), tensor),
            (_, Some(name)) => session.insert(name.to_owned(), tensor),
            _ => bail!("{DAMAGED}: `{name}` is neither state nor session"),
        };
    }
    Ok((record, state, session.into()))
}

/// What the numbers depend on besides the recipe.
fn depends(fingerprint: &Fingerprint) -> Result<BTreeMap<String, String>> {
    let value = serde_json::to_value(fingerprint)?;
    let fields = value.as_object().into_iter().flatten();
    let mut depends: BTreeMap<String, String> = fields
        .map(|(name, value)| {
            (
                name.clone(),
                value.as_str().map_or(value.to_string(), str::to_owned),
            )
        })
        .collect();
    depends.insert("code".into(), code());
    Ok(depends)
}

/// The recipe without what changes no number.
fn table(recipe: &Recipe) -> Result<Table> {
    Ok(without_threads(Table::try_from(recipe)?))
}

fn without_threads(mut table: Table) -> Table {
    table.remove("threads");
    table
}

/// Keys in which two recipes differ, and what each says.
fn differences(there: &Table, here: &Table) -> Vec<String> {
    let (there, here) = (leaves(there), leaves(here));
    let keys: std::collections::BTreeSet<&String> = there.keys().chain(here.keys()).collect();
    let said = |leaves: &BTreeMap<String, String>, key: &String| {
        leaves.get(key).map_or("left out".to_owned(), String::clone)
    };
    keys.into_iter()
        .filter(|key| there.get(*key) != here.get(*key))
        .map(|key| {
            format!(
                "{key} is {} there, {} here",
                said(&there, key),
                said(&here, key)
            )
        })
        .collect()
}

fn leaves(table: &Table) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for (key, value) in table {
        match value {
            Value::Table(inner) => {
                all.extend(
                    leaves(inner)
                        .into_iter()
                        .map(|(k, v)| (format!("{key}.{k}"), v)),
                );
            }
            value => {
                all.insert(key.clone(), value.to_string());
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_often_is_read_as_it_is_written() {
        for (text, every) in [
            ("100", Every::Steps(100)),
            ("90s", Every::Time(Duration::from_secs(90))),
            ("task", Every::Task),
        ] {
            assert_eq!(text.parse(), Ok(every));
            assert_eq!(every.to_string(), text);
        }
        assert_eq!("5m".parse(), Ok(Every::Time(Duration::from_secs(300))));
        assert_eq!("2h".parse(), Ok(Every::Time(Duration::from_secs(7200))));
        for bad in ["", "0", "0m", "m", "5 m", "-1", "1.5h", "1d", "é"] {
            assert!(bad.parse::<Every>().is_err(), "{bad}");
        }
    }

    #[test]
    fn recipes_that_differ_say_in_what() {
        let table = |text: &str| text.parse::<Table>().unwrap();
        let one = table("seed = 1\n[train]\nlr = 0.1\nclip = 1.0");
        let two = table("seed = 1\n[train]\nlr = 0.2\nepochs = 3");
        assert_eq!(
            differences(&one, &two),
            [
                "train.clip is 1.0 there, left out here",
                "train.epochs is left out there, 3 here",
                "train.lr is 0.1 there, 0.2 here",
            ]
        );
        assert!(differences(&one, &one).is_empty());
    }

    /// Floats of the record come back as they were, which JSON's do not in any case.
    #[test]
    fn a_standing_survives_being_written() {
        let mut at = Standing::default();
        let odd: Vec<f64> = (1..200).map(|i| 100.0 * f64::from(i) / 237.0).collect();
        at.accuracy.push(odd, vec![3; 199]);
        at.phase = Phase::Training {
            epoch: 2,
            batches: 7,
        };
        at.pools.push(candlewick_core::PoolUse {
            pool: "prompts".into(),
            chosen: vec![vec![0.1, 1e-300]],
            similarity: vec![1.0 / 3.0],
            effective: vec![f64::MAX],
            collapsed: false,
        });
        let text = toml::to_string(&at).unwrap();
        assert_eq!(toml::from_str::<Standing>(&text).unwrap(), at);
    }
}
