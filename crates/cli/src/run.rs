//! `candlewick run`: recipe → plan → backbone → method → run → record.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use candlewick_core::{
    Backbone, Error, Method, Outcome, Phase, Report, RunOptions, Standing, Stream, Summary,
    run as core_run,
};

use crate::checkpoint::{self, CHECKPOINT, Checkpoints, Every, Keeper, Resumed};
use crate::features;
use crate::live::{Live, LiveArgs};
use crate::machine;
use crate::outlook;
use crate::page;
use crate::prepare::{Loaded, Plan};
use crate::print;
use crate::recipe::Recipe;
use crate::record::{self, RunDir, Timing};
use crate::table;
use crate::tensorboard::Board;
use crate::watch::{self, Download, Watch};

#[derive(clap::Args)]
pub struct RunArgs {
    /// Recipe, a TOML file; see examples/recipes
    recipe: PathBuf,
    /// Change a key of the recipe, for example --set train.lr=0.01
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Run directory [default: runs/RECIPE]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Run once per seed and report mean and standard deviation
    #[arg(long, value_delimiter = ',', value_name = "A,B,C")]
    seeds: Vec<u64>,
    /// Check data, backbone and method, say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Threads at work at once [default: all cores]
    #[arg(long)]
    threads: Option<usize>,
    /// Run blocks that train again in the backward pass: the same numbers in less memory and more time
    #[arg(long)]
    checkpoint_activations: bool,
    /// Replace a finished run in --out
    #[arg(long)]
    overwrite: bool,
    /// Write a checkpoint into the run directory every N steps, after a time (90s, 5m, 2h) or with `task`, and in any case
    /// at the borders of tasks and at Ctrl-C
    #[arg(long, value_name = "N|TIME|task")]
    checkpoint_every: Option<Every>,
    /// Go on from the checkpoint in --out, to the same result bit for bit
    #[arg(long, conflicts_with = "overwrite")]
    resume: bool,
    #[command(flatten)]
    live: LiveArgs,
    /// Write losses and accuracies as they come into tensorboard/ of the run directory, for TensorBoard
    #[arg(long)]
    tensorboard: bool,
}

/// What goes on beside a run.
#[derive(Clone, Copy, Default)]
pub struct Beside<'a> {
    pub checkpoints: Checkpoints,
    pub live: Option<&'a Live>,
    pub tensorboard: bool,
}

pub fn run(args: &RunArgs) -> Result<()> {
    let mut sets = args.set.clone();
    sets.extend(args.threads.map(|n| format!("threads={n}")));
    if args.checkpoint_activations {
        sets.push("checkpoint_activations=true".into());
    }
    let origin = args.recipe.display().to_string();
    let load = |seed: Option<u64>| {
        let seed = seed.map(|seed| format!("seed={seed}"));
        let sets: Vec<String> = sets.iter().cloned().chain(seed).collect();
        Recipe::load(&args.recipe, &sets)
    };
    if args.dry_run {
        let (plan, outlook) = Plan::new(load(args.seeds.first().copied())?, &origin, None)?;
        machine::use_threads(plan.threads)?;
        return print(&outlook::text(&plan, &outlook)?);
    }
    let bar = Download::new();
    let stem = args
        .recipe
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy();
    let named = Path::new("runs").join(stem.as_ref());
    let out = args.out.clone().unwrap_or_else(|| match args.resume {
        true => RunDir::latest(&named),
        false => RunDir::vacant(&named),
    });
    let checkpoints = Checkpoints {
        every: args.checkpoint_every,
        resume: args.resume,
    };
    let place = |path: &Path| match args.resume {
        true => RunDir::resume(path),
        false => RunDir::create(path, args.overwrite),
    };
    if args.seeds.is_empty() {
        let (plan, _) = Plan::new(load(None)?, &origin, Some(&bar))?;
        let dir = place(&out)?;
        machine::use_threads(plan.threads)?;
        let stop = watch::interrupted()?;
        let live = Live::start(&args.live)?;
        let beside = Beside {
            checkpoints,
            live: live.as_ref(),
            tensorboard: args.tensorboard,
        };
        let started = Instant::now();
        let loaded = plan.load(&bar)?;
        let label = plan.method.about().name;
        let report = execute(&plan, &loaded, &dir, label, started, &stop, beside)?;
        live.into_iter().for_each(Live::end);
        return print(&format!(
            "\n{}\nThe record is in {}\n",
            table::single(&report),
            dir.path().display()
        ));
    }

    let mut sorted = args.seeds.clone();
    sorted.sort_unstable();
    sorted.dedup();
    if sorted.len() != args.seeds.len() {
        bail!("--seeds: a seed is given twice; each is one run");
    }
    let plans = args
        .seeds
        .iter()
        .map(|&seed| Ok(Plan::new(load(Some(seed))?, &origin, Some(&bar))?.0))
        .collect::<Result<Vec<Plan>>>()?;
    // Before any work: that all seeds have a place to go to.
    record::clear_summary(&out, args.overwrite || args.resume)?;
    let dirs = plans
        .iter()
        .map(|plan| {
            let seed = format!("seed-{}", plan.recipe.seed);
            place(&out.join(seed))
        })
        .collect::<Result<Vec<RunDir>>>()?;
    machine::use_threads(plans[0].threads)?;
    let stop = watch::interrupted()?;
    let live = Live::start(&args.live)?;
    let beside = Beside {
        checkpoints,
        live: live.as_ref(),
        tensorboard: args.tensorboard,
    };
    let mut started = Instant::now();
    let loaded = plans[0].load(&bar)?;
    let mut reports = Vec::new();
    for (plan, dir) in plans.iter().zip(&dirs) {
        let label = format!("{} seed {}", plan.method.about().name, plan.recipe.seed);
        reports.push(execute(plan, &loaded, dir, &label, started, &stop, beside)?);
        started = Instant::now();
    }
    live.into_iter().for_each(Live::end);
    let summary = Summary::new(&reports);
    let dirs: Vec<PathBuf> = dirs.iter().map(|dir| dir.path().to_owned()).collect();
    page::several(&[], &dirs, &out.join(page::PAGE))?;
    record::write_summary(&out, &summary)?;
    print(&format!(
        "\n{}\nThe records are in {}\n",
        table::summary(&summary),
        out.display()
    ))
}

/// One run from a loaded backbone to its record.
pub fn execute(
    plan: &Plan,
    loaded: &Loaded,
    dir: &RunDir,
    label: &str,
    started: Instant,
    stop: &AtomicBool,
    beside: Beside<'_>,
) -> Result<Report> {
    let checkpoints = beside.checkpoints;
    let resumed = match checkpoints.resume {
        true => match dir.finished()? {
            Some(report) => {
                let config = dir.path().join("config.toml");
                checkpoint::is_of(&config, &report.fingerprint, plan, loaded)?;
                watch::say(&format!("{label} has ended, in {}", dir.path().display()));
                return Ok(report);
            }
            None => checkpoint::read(dir.path(), plan, loaded)?,
        },
        false => None,
    };
    dir.write("config.toml", toml::to_string(&plan.recipe)?.as_bytes())?;
    let load_seconds = started.elapsed().as_secs_f64();
    let (backbone, stream): (Arc<dyn Backbone>, _) = match plan.reads_features() {
        true => {
            let stored = features::prepare(plan, loaded, stop)
                .map_err(|error| no_features(plan, dir, error))?;
            (stored, plan.stream_of_features()?)
        }
        false => (features::at_hand(plan, loaded)?, plan.stream.clone()),
    };
    let booster = loaded.booster.as_ref().map(|b| b.booster.clone());
    let mut method = plan.build(backbone, booster)?;
    let options = RunOptions {
        seed: plan.recipe.seed,
        eval_batch: plan.recipe.data.eval_batch,
    };
    let mut watch = Watch::new(label, &stream, stop, plan.reads_features());
    let before = resumed.as_ref().map_or(0.0, |r| r.seconds);
    let every = checkpoints.every.or(resumed.as_ref().map(|r| r.every));
    if let Some(every) = every {
        watch.keeper = Some(Keeper::new(dir.path(), every, plan, loaded, before)?);
    }
    let standing = match resumed {
        Some(resumed) => take_up(plan, &stream, method.as_mut(), &mut watch, resumed)
            .with_context(|| dir.path().join(CHECKPOINT).display().to_string())?,
        None => {
            if checkpoints.resume {
                let dir = dir.path().display();
                watch.say(&format!("no checkpoint in {dir}: from the beginning"));
            }
            Standing::default()
        }
    };
    if let Some(live) = beside.live {
        let (name, fingerprint) = (plan.method.about().name, plan.fingerprint(loaded));
        let watched = live.watch(label, name, &stream, fingerprint, &standing.accuracy);
        watch.others.push(Box::new(watched));
    }
    if beside.tensorboard {
        let board = Board::new(dir.path(), &standing)?;
        watch.others.push(Box::new(board));
    }
    let result = core_run::go_on(method.as_mut(), &stream, options, standing, &mut watch);
    let mut outcome = match result {
        Ok(outcome) => outcome,
        Err(error) => {
            let (done, of) = (watch.done, plan.stream.tasks.len());
            let line = format!("stopped in task {} of {of}: {error}", done + 1);
            watch.log += &format!("{line}\n");
            dir.write("log.txt", watch.log.as_bytes())?;
            let text = match error {
                Error::Interrupted => format!(
                    "interrupted after {done} of {of} tasks; no report was written, {} holds the log{}",
                    dir.path().display(),
                    match dir.path().join(CHECKPOINT).exists() {
                        true => " and a checkpoint, from which --resume goes on",
                        false => "",
                    }
                ),
                _ => line,
            };
            return Err(anyhow::Error::new(error).context(text));
        }
    };
    for name in &plan.loader.skipped() {
        watch.say(&format!("left out, cannot be decoded: {name}"));
    }
    let report = report(plan, loaded, &stream, &mut outcome);
    for pool in report.pools.iter().filter(|pool| pool.collapsed) {
        watch.say(&format!(
            "warning: pool `{}` has collapsed, {:.1} of {} entries are in use: nearly all test images take the same",
            pool.pool,
            pool.effective.last().copied().unwrap_or(0.0),
            pool.chosen.first().map_or(0, Vec::len),
        ));
    }
    let timing = Timing {
        seconds: before + started.elapsed().as_secs_f64(),
        load_seconds,
        threads: plan.threads,
        stored_features: plan.reads_features(),
        peak_memory_bytes: machine::peak(),
        tasks: watch.times.clone(),
    };
    let peak = timing.peak_memory_bytes.map_or(String::new(), |b| {
        format!(", peak memory {}", watch::megabytes(b))
    });
    watch.say(&format!(
        "{label} done in {}{peak}",
        watch::seconds(started.elapsed())
    ));
    dir.write("log.txt", watch.log.as_bytes())?;
    let images = plan.images();
    let run = dir.finish(
        &report,
        &outcome,
        &plan.stream,
        images.as_ref(),
        &method.state()?,
        &timing,
    )?;
    if let Some(live) = beside.live {
        live.done(run.called(label));
    }
    Ok(report)
}

/// Brings a fresh method and its watch to where a checkpoint was written.
fn take_up(
    plan: &Plan,
    stream: &Stream,
    method: &mut dyn Method,
    watch: &mut Watch<'_>,
    resumed: Resumed,
) -> Result<Standing> {
    for name in &resumed.skipped {
        plan.loader.leave_out(name);
    }
    watch.resume(&resumed);
    let at = resumed.standing;
    if at != Standing::default() {
        method.resume(&at.begun(stream), &resumed.state, resumed.session)?;
    }
    let place = match at.phase {
        Phase::Ahead => "at its begin".to_owned(),
        Phase::Training { epoch, batches } => {
            format!("behind step {batches} of epoch {}", epoch + 1)
        }
        Phase::Learned => "at its evaluation".to_owned(),
    };
    watch.say(&format!(
        "resumed in task {} of {}, {place}",
        at.task() + 1,
        stream.tasks.len()
    ));
    Ok(at)
}

/// The report of an outcome, whose cost is completed.
pub fn report(plan: &Plan, loaded: &Loaded, stream: &Stream, outcome: &mut Outcome) -> Report {
    outcome.cost.images_skipped = plan.loader.skipped().len() as u64;
    let booster = loaded.booster.as_ref().map_or(0, |b| b.parameters);
    outcome.cost.backbone_parameters = (loaded.vit.spec().parameters + booster) as u64;
    let name = plan.method.about().name;
    Report::new(name, stream, outcome, plan.fingerprint(loaded))
}

/// A run that ended before it had its features: says so in the log and in the error.
fn no_features(plan: &Plan, dir: &RunDir, error: anyhow::Error) -> anyhow::Error {
    let of = plan.stream.tasks.len();
    let line = format!("stopped in task 1 of {of}, at its features");
    // What ended it is said in any case.
    let _ = dir.write("log.txt", format!("{line}: {error:#}\n").as_bytes());
    match error.downcast_ref() {
        Some(Error::Interrupted) => error.context(format!(
            "interrupted at the features, of which the finished ones are kept; no report was written, {} holds the log",
            dir.path().display()
        )),
        _ => error.context(line),
    }
}
