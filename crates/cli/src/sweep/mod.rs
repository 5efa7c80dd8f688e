//! `candlewick sweep`: many runs from the same features, on all cores, one table.

mod conditions;
mod file;
mod lanes;
mod result;
mod rows;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use candlewick_core::report::hex;
use candlewick_core::{Backbone, Event, Observer, Report, RunOptions, run as core_run};
use sha2::{Digest as _, Sha256};

use crate::features::{self, code};
use crate::prepare::{Loaded, Plan};
use crate::run::report;
use crate::watch::{self, Counting, Download};
use crate::{machine, print};
use conditions::Told;
use file::{Cell, Sweep};
use lanes::Lanes;
use result::{Cells, Done, Summary};

#[derive(clap::Args)]
pub struct SweepArgs {
    /// Sweep, a TOML file; see examples/sweeps
    sweep: PathBuf,
    /// Change a key of the sweep, for example --set base.precision=f32
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Where cells and results go; cells that are there are kept [default: runs/sweep-NAME]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Threads at work at once [default: all cores]
    #[arg(long)]
    threads: Option<usize>,
    /// Memory in MiB that cells may take together; one at least is run [default: what the machine has left]
    #[arg(long, value_name = "MIB")]
    memory: Option<u64>,
}

/// A cell that is ready to go.
struct Job {
    cell: Cell,
    plan: Plan,
    loaded: Arc<Loaded>,
    /// What its result depends on.
    digest: String,
}

pub fn sweep(args: &SweepArgs) -> Result<()> {
    let sweep = Sweep::load(&args.sweep, &args.set)?;
    let mut cells = sweep.cells()?;
    let out = match &args.out {
        Some(out) => out.clone(),
        None => {
            let stem = args.sweep.file_stem().unwrap_or_default();
            Path::new("runs").join(format!("sweep-{}", stem.to_string_lossy()))
        }
    };
    let kept = Cells::new(&out)?;
    for cell in &mut cells {
        cell.recipe.threads = args.threads.or(cell.recipe.threads);
    }
    let started = Instant::now();
    let bar = Download::new();
    let first = Plan::new(cells[0].recipe.clone(), &cells[0].origin, Some(&bar))?.0;
    machine::use_threads(first.threads)?;
    let stop = watch::interrupted()?;

    let mut backbones = BTreeMap::new();
    let mut jobs = Vec::new();
    for cell in cells {
        let (plan, _) = Plan::new(cell.recipe.clone(), &cell.origin, Some(&bar))
            .with_context(|| format!("{} on {}", cell.variant.label(), cell.variant.place()))?;
        let loaded = match backbones.get(&plan.backbone_key()?) {
            Some(loaded) => Arc::clone(loaded),
            None => {
                let loaded = Arc::new(plan.load(&bar)?);
                backbones.insert(plan.backbone_key()?, loaded.clone());
                loaded
            }
        };
        let digest = digest(&plan, &loaded)?;
        jobs.push(Job {
            cell,
            plan,
            loaded,
            digest,
        });
    }
    let memory = args.memory.map(|mib| mib << 20);
    let done = work(&jobs, &kept, memory, &stop)?;
    let summary = Summary::new(&sweep.seeds, &done);
    summary.write(&out, &done)?;
    let cpu: f64 = done.iter().map(|d| d.seconds).sum();
    print(&format!(
        "{}\n\n{} cells in {}, {cpu:.1} s of them one by one; table, CSV, JSON and figure are in {}\n",
        summary.text().trim_end(),
        done.len(),
        watch::seconds(started.elapsed()),
        out.display()
    ))
}

/// SHA-256 over everything that a cell's report depends on.
fn digest(plan: &Plan, loaded: &Loaded) -> Result<String> {
    let mut hash = Sha256::new();
    let recipe = &plan.recipe;
    let parts = [
        serde_json::to_string(&plan.fingerprint(loaded))?,
        toml::to_string(&recipe.method)?,
        serde_json::to_string(&recipe.train)?,
        serde_json::to_string(&recipe.stream)?,
        serde_json::to_string(&(recipe.features, recipe.data.on_corrupt, recipe.seed))?,
        code(),
    ];
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    Ok(hex(&hash.finalize()))
}

/// All cells, from what is kept or computed. Those that need pixels go one after another, as each takes all threads.
fn work(jobs: &[Job], kept: &Cells, memory: Option<u64>, stop: &AtomicBool) -> Result<Vec<Done>> {
    let mut found: Vec<Option<Done>> = jobs.iter().map(|job| job.kept(kept)).collect();
    let missing: Vec<usize> = (0..jobs.len()).filter(|&i| found[i].is_none()).collect();
    let count = Counting::new("sweep", missing.len(), jobs.len() - missing.len());
    let mut stores = BTreeMap::new();
    for &i in &missing {
        let Job { plan, loaded, .. } = &jobs[i];
        if plan.reads_features() && !stores.contains_key(&plan.store_key()?) {
            let stored: Arc<dyn Backbone> = features::prepare(plan, loaded, stop)?;
            stores.insert(plan.store_key()?, stored);
        }
    }
    let one = |i: usize| -> Result<(usize, Done)> {
        let job = &jobs[i];
        let backbone = match stores.get(&job.plan.store_key()?) {
            Some(stored) if job.plan.reads_features() => stored.clone(),
            _ => features::at_hand(&job.plan, &job.loaded)?,
        };
        let started = Instant::now();
        let report = job.run(backbone, stop).map_err(|error| {
            let cell = &job.cell;
            error.context(format!("{}, seed {}", cell.variant.label(), cell.seed))
        })?;
        let seconds = started.elapsed().as_secs_f64();
        let report = kept.write(&job.digest, &report, seconds)?;
        count.one();
        Ok((i, job.done(report, seconds)))
    };
    let (light, heavy): (Vec<usize>, Vec<usize>) = missing
        .iter()
        .partition(|&&i| jobs[i].plan.reads_features());
    let cells: Vec<lanes::Cell> = light.iter().map(|&i| jobs[i].lane(i)).collect();
    let lanes = Lanes::new(&cells, memory.or_else(machine::available));
    lanes.limits().iter().for_each(|line| watch::say(line));
    let mut results = lanes.run(one);
    results.extend(heavy.into_iter().map(one));
    count.end();
    for result in results {
        match result {
            Ok((i, done)) => found[i] = Some(done),
            Err(error) if stop.load(Ordering::SeqCst) => {
                return Err(error
                    .context("interrupted; what is finished is kept, so run it again to go on"));
            }
            Err(error) => return Err(error),
        }
    }
    match found.into_iter().collect() {
        Some(done) => Ok(done),
        None => bail!("a cell has no result"),
    }
}

impl Job {
    fn lane(&self, index: usize) -> lanes::Cell {
        let dim = self.loaded.vit.spec().dim;
        lanes::Cell {
            index,
            label: self.cell.variant.label(),
            bytes: self.plan.memory(dim),
        }
    }

    fn done(&self, report: Report, seconds: f64) -> Done {
        Done {
            variant: self.cell.variant.clone(),
            seed: self.cell.seed,
            told: Told::of(&self.cell.recipe, &report),
            digest: self.digest.clone(),
            report,
            seconds,
        }
    }

    fn kept(&self, kept: &Cells) -> Option<Done> {
        let (report, seconds) = kept.read(&self.digest)?;
        Some(self.done(report, seconds))
    }

    fn run(&self, backbone: Arc<dyn Backbone>, stop: &AtomicBool) -> Result<Report> {
        let plan = &self.plan;
        let stream = match plan.reads_features() {
            true => plan.stream_of_features()?,
            false => plan.stream.clone(),
        };
        let booster = self.loaded.booster.as_ref().map(|b| b.booster.clone());
        let mut method = plan.build(backbone, booster)?;
        let options = RunOptions {
            seed: plan.recipe.seed,
            eval_batch: plan.recipe.data.eval_batch,
        };
        let mut outcome = core_run::run(method.as_mut(), &stream, options, &mut Until(stop))?;
        Ok(report(plan, &self.loaded, &stream, &mut outcome))
    }
}

/// Only watches whether it is to stop.
struct Until<'a>(&'a AtomicBool);

impl Observer for Until<'_> {
    fn on(&mut self, _: Event<'_>) -> candlewick_core::Result<()> {
        match self.0.load(Ordering::SeqCst) {
            true => Err(candlewick_core::Error::Interrupted),
            false => Ok(()),
        }
    }
}
