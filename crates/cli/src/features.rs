//! `candlewick features`, and what `run` and `sweep` do of it by themselves: look at each image of a data set once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, bail};
use candlewick_core::{Backbone, Split as _, View};
use candlewick_data::Source;
use candlewick_store::{Dtype, Identity, Key, Store, Writer, merge};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::kept::{self, ClearArgs, ListArgs};
use crate::machine;
use crate::prepare::{Loaded, Plan};
use crate::print;
use crate::recipe::Recipe;
use crate::stored::Stored;
use crate::watch::{self, Download, Looking};

/// The recipe's `features`: the numbers in which features of plain images are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    /// As they are computed.
    #[default]
    F32,
    /// Rounded, in half the space; the report says so.
    F16,
    /// Not at all.
    Off,
}

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct FeaturesArgs {
    #[command(subcommand)]
    action: Option<Action>,
    /// Recipe; its data, backbone, preprocessing and precision count
    #[arg(required = true)]
    recipe: Option<PathBuf>,
    /// Change a key of the recipe, for example --set features=f16
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Only part I of N, from 0, into a file of its own; see `candlewick features merge`
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
    /// Threads at work at once [default: all cores]
    #[arg(long)]
    threads: Option<usize>,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Put shards together; what is there already stays
    Merge {
        /// Files that --shard made
        #[arg(required = true, value_name = "FILE")]
        shards: Vec<PathBuf>,
        /// The file [default: the shards' name without `.shard-I-of-N`]
        #[arg(long, value_name = "FILE")]
        into: Option<PathBuf>,
    },
    /// Check every byte, and say what the features are of
    Check {
        /// Stores or shards
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// What is kept, of what, and since when
    List(ListArgs),
    /// Remove files; what another process writes stays
    Clear(ClearArgs),
}

/// One of `of` parts, counted from 0 as job arrays do.
#[derive(Debug, Clone, Copy)]
struct Shard {
    index: usize,
    of: usize,
}

impl std::str::FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let parsed = text.split_once('/').and_then(|(index, of)| {
            let (index, of) = (index.parse().ok()?, of.parse().ok()?);
            (index < of).then_some(Self { index, of })
        });
        parsed.ok_or_else(|| "expected I/N with I from 0 to N - 1, for example 0/4".into())
    }
}

impl Shard {
    fn mark(self) -> String {
        format!(".shard-{}-of-{}", self.index, self.of)
    }
}

pub fn features(args: &FeaturesArgs) -> Result<()> {
    match &args.action {
        Some(Action::Merge { shards, into }) => return merge_shards(shards, into.as_deref()),
        Some(Action::Check { files }) => return check(files),
        Some(Action::List(args)) => return kept::list(args),
        Some(Action::Clear(args)) => return kept::clear(args),
        None => {}
    }
    let Some(recipe) = &args.recipe else {
        bail!("features: give a recipe");
    };
    let mut sets = args.set.clone();
    sets.extend(args.threads.map(|n| format!("threads={n}")));
    let bar = Download::new();
    let origin = recipe.display().to_string();
    let (plan, _) = Plan::new(Recipe::load(recipe, &sets)?, &origin, Some(&bar))?;
    if plan.recipe.features == Keep::Off {
        bail!("{origin}: features = \"off\" keeps none; set \"f32\" or \"f16\"");
    }
    machine::use_threads(plan.threads)?;
    let stop = watch::interrupted()?;
    let loaded = plan.load(&bar)?;
    let images = Images::of(&plan)?;
    let path = images.fill(&plan, &loaded, args.shard, &stop)?;
    let store = Store::open(&path)?;
    print(&format!(
        "{} features of {} {} in {}\n",
        store.map_or(0, |s| s.len()),
        loaded.vit.spec().dim,
        match plan.recipe.features {
            Keep::F16 => "f16",
            _ => "f32",
        },
        path.display()
    ))
}

/// The backbone with all features of the plan's images at hand; those that are missing are computed first.
pub fn prepare(plan: &Plan, loaded: &Loaded, stop: &AtomicBool) -> Result<Arc<Stored>> {
    let images = Images::of(plan)?;
    let path = images.fill(plan, loaded, None, stop)?;
    let store = Store::open_as(&path, &identity(plan, loaded))?
        .with_context(|| format!("{}: was removed meanwhile", path.display()))?;
    // A picture that cannot be decoded has none, nor has its double under another name.
    for (id, key) in images.keys.iter().enumerate() {
        if !store.contains(key) {
            plan.loader.leave_out(&images.source.name(id));
        }
    }
    Ok(Arc::new(Stored {
        backbone: loaded.vit.clone(),
        store,
        keys: images.keys,
    }))
}

/// For methods that need pixels too: the backbone with the query features that are kept already. None are computed, as
/// the images must be decoded in any case.
pub fn at_hand(plan: &Plan, loaded: &Loaded) -> Result<Arc<dyn Backbone>> {
    let identity = identity(plan, loaded);
    let store = match plan.recipe.features {
        Keep::F32 => Store::open_as(&place(plan, &identity, ""), &identity)?,
        // Rounded ones would be another method's.
        Keep::F16 | Keep::Off => None,
    };
    Ok(match store {
        Some(store) => Arc::new(Stored {
            backbone: loaded.vit.clone(),
            store,
            keys: Images::of(plan)?.keys,
        }),
        None => loaded.vit.clone(),
    })
}

/// All images of a plan and what is in them, by id.
struct Images {
    source: Arc<dyn Source>,
    keys: Vec<Key>,
}

impl Images {
    /// Reads every file, but decodes none.
    fn of(plan: &Plan) -> Result<Self> {
        let source = plan.images();
        let keys = (0..source.len())
            .into_par_iter()
            .map(|id| source.content(id))
            .collect::<std::result::Result<_, _>>()?;
        Ok(Self { source, keys })
    }

    /// Looks at the images that have no feature yet; gives the file. Images go in the order of their keys, so that the file
    /// is the same whatever interrupts it, and shards merge to it.
    fn fill(
        &self,
        plan: &Plan,
        loaded: &Loaded,
        shard: Option<Shard>,
        stop: &AtomicBool,
    ) -> Result<PathBuf> {
        let identity = identity(plan, loaded);
        let main = place(plan, &identity, "");
        let there = Store::open_as(&main, &identity)?;
        // One id for each different picture.
        let unique: BTreeMap<&Key, usize> = self.keys.iter().zip(0..).collect();
        let (index, of) = shard.map_or((0, 1), |s| (s.index, s.of));
        let wanted: Vec<usize> = unique
            .into_iter()
            .skip(index)
            .step_by(of)
            .filter(|(key, _)| !there.as_ref().is_some_and(|s| s.contains(key)))
            .map(|(_, id)| id)
            .collect();
        if wanted.is_empty() && shard.is_none() {
            return Ok(main);
        }
        drop(there);
        let path = match shard {
            Some(shard) => place(plan, &identity, &shard.mark()),
            None => main,
        };
        let wait = || {
            watch::say(&format!(
                "{}: another process writes it; waiting",
                path.display()
            ));
        };
        let mut writer = Writer::open(&path, &identity, wait)?;
        let before = writer.len();
        let missing: Vec<usize> = wanted
            .into_iter()
            .filter(|&id| !writer.contains(&self.keys[id]))
            .collect();
        if missing.is_empty() {
            return Ok(path);
        }
        let started = Instant::now();
        let bar = Looking::new("features", missing.len(), before, &path);
        self.look(plan, loaded, missing, &mut writer, &bar, stop)?;
        writer.finish()?;
        bar.done(started);
        Ok(path)
    }

    fn look(
        &self,
        plan: &Plan,
        loaded: &Loaded,
        ids: Vec<usize>,
        writer: &mut Writer,
        bar: &Looking,
        stop: &AtomicBool,
    ) -> Result<()> {
        let labels = vec![0; ids.len()];
        let split = plan.loader.split(self.source.clone(), ids, labels, 0, 0)?;
        for batch in split.batches(View::Plain, plan.recipe.data.eval_batch) {
            if stop.load(Ordering::SeqCst) {
                return Err(candlewick_core::Error::Interrupted.into());
            }
            let batch = batch?;
            let rows: Vec<Vec<f32>> = loaded.vit.query_batch(&batch)?.to_vec2()?;
            for (&id, row) in batch.ids.iter().zip(rows) {
                let id = id as usize;
                // It was read once for its key and once for its pixels.
                if self.source.content(id)? != self.keys[id] {
                    bail!("{}: changed while it was looked at", self.source.name(id));
                }
                writer.push(self.keys[id], row)?;
            }
            bar.looked(batch.len());
        }
        Ok(())
    }
}

pub fn identity(plan: &Plan, loaded: &Loaded) -> Identity {
    let spec = loaded.vit.spec();
    Identity {
        feature: "cls".into(),
        weights: loaded.located.sha256.clone(),
        depth: spec.depth,
        heads: spec.heads,
        eps: loaded.located.card.eps,
        preprocess: String::from_utf8_lossy(&plan.preprocess.canonical_plain()).into_owned(),
        precision: loaded.vit.precision().name().into(),
        // Not which one of several.
        device: plan
            .recipe
            .device
            .split(':')
            .next()
            .unwrap_or_default()
            .into(),
        code: code(),
        dtype: match plan.recipe.features {
            Keep::F16 => Dtype::F16,
            Keep::F32 | Keep::Off => Dtype::F32,
        },
        dim: spec.dim,
    }
}

/// The version of this program; one from changed files is known by its date and size as well.
pub fn code() -> String {
    let version = env!("CANDLEWICK_VERSION").to_owned();
    if !version.ends_with("-dirty") {
        return version;
    }
    let about = std::env::current_exe().and_then(std::fs::metadata).ok();
    let when = about.and_then(|about| {
        let since = about.modified().ok()?.duration_since(std::time::UNIX_EPOCH);
        Some(format!("{}-{}", since.ok()?.as_nanos(), about.len()))
    });
    format!("{version}-{}", when.unwrap_or_default())
}

/// `$CANDLEWICK_FEATURES`, or `features` in the working directory.
pub fn folder() -> PathBuf {
    match std::env::var_os("CANDLEWICK_FEATURES") {
        Some(path) if !path.is_empty() => path.into(),
        _ => "features".into(),
    }
}

/// `BACKBONE-DATA-IDENTITY.features`, for a person to tell files apart; candlewick goes by the identity.
fn place(plan: &Plan, identity: &Identity, mark: &str) -> PathBuf {
    let recipe = &plan.recipe;
    let data = match &recipe.data.name {
        Some(name) => name.clone(),
        None => last_part(&recipe.data.label()),
    };
    let backbone = last_part(&recipe.backbone.label());
    let digest = identity.digest();
    folder().join(format!(
        "{}-{}-{}{mark}{ENDING}",
        plain(&backbone),
        plain(&data),
        &digest[..16]
    ))
}

/// Of a store's name.
pub const ENDING: &str = ".features";

fn last_part(path: &str) -> String {
    let mut parts = path.split(['/', '\\']).filter(|part| !part.is_empty());
    parts.next_back().unwrap_or_default().to_owned()
}

/// What any file system takes.
fn plain(name: &str) -> String {
    let keep = |c: char| match c.is_ascii_alphanumeric() || "._-".contains(c) {
        true => c,
        false => '_',
    };
    name.trim_start_matches('.').chars().map(keep).collect()
}

fn open(path: &Path) -> Result<Store> {
    Store::open(path)?.ok_or_else(|| anyhow!("{}: there is no such file", path.display()))
}

fn merge_shards(shards: &[PathBuf], into: Option<&Path>) -> Result<()> {
    let into = match into {
        Some(into) => into.to_owned(),
        None => {
            let names: Vec<_> = shards.iter().map(|shard| unmarked(shard)).collect();
            match names.first() {
                Some(Some(name)) if names.iter().all(|other| other.as_ref() == Some(name)) => {
                    name.clone()
                }
                _ => bail!("merge: these are not the shards of one file; say --into FILE"),
            }
        }
    };
    let stores = shards
        .iter()
        .map(|path| open(path))
        .collect::<Result<Vec<_>>>()?;
    let images = merge(&stores, &into)?;
    print(&format!("{images} features in {}\n", into.display()))
}

/// The file that a shard is a part of.
fn unmarked(shard: &Path) -> Option<PathBuf> {
    let name = shard.file_name()?.to_str()?;
    let (stem, mark) = name.rsplit_once(".shard-")?;
    let (index, of) = mark.strip_suffix(ENDING)?.split_once("-of-")?;
    (index.parse::<usize>().is_ok() && of.parse::<usize>().is_ok())
        .then(|| shard.with_file_name(format!("{stem}{ENDING}")))
}

fn check(files: &[PathBuf]) -> Result<()> {
    for path in files {
        let store = open(path)?;
        print(&format!(
            "{}: {} features, every byte as it was written\n{}\n",
            path.display(),
            store.len(),
            serde_json::to_string_pretty(store.identity())?
        ))?;
    }
    Ok(())
}
