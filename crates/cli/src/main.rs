//! The `candlewick` command.

mod backbone;
mod blueprint;
mod checkpoint;
mod compare;
mod data;
mod demo;
mod features;
mod kept;
mod learned;
mod live;
mod machine;
mod merge;
mod names;
mod outlook;
mod page;
mod plot;
mod precision;
mod predict;
mod prepare;
mod recipe;
mod record;
mod run;
mod sets;
mod stored;
mod stream;
mod sweep;
mod table;
mod tensorboard;
mod texts;
mod watch;
mod zeroshot;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use candlewick_methods::{COMPAT, METHODS};
use candlewick_models::{HubConfig, Options};
use clap::{Parser, Subcommand};

/// Continual learning with frozen pretrained vision models.
#[derive(Parser)]
#[command(name = "candlewick", version = env!("CANDLEWICK_VERSION"))]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a recipe: learn its tasks one by one and report accuracy on everything seen
    Run(run::RunArgs),
    /// Look at every image of a recipe once and keep its feature on disk
    Features(features::FeaturesArgs),
    /// Run methods, class orders and settings over the same features, on all cores, into one table
    Sweep(sweep::SweepArgs),
    /// Name the classes of images with what a finished run has learned
    Predict(predict::PredictArgs),
    /// Name the test images of a data set by its class names, with a CLIP and no training
    #[command(name = "zeroshot")]
    ZeroShot(zeroshot::ZeroShotArgs),
    /// Add a class to a finished run from a folder of images
    Learn(predict::LearnArgs),
    /// Data sets: list, show, fetch and check them, and divide one
    #[command(subcommand)]
    Data(data::Data),
    /// Run three methods on the images and the backbone inside this program
    Demo(demo::DemoArgs),
    /// List, show and fetch pretrained backbones
    #[command(subcommand)]
    Backbones(Backbones),
    /// List the methods
    Methods {
        /// List instead the switches that ask for a published quirk
        #[arg(long)]
        compat: bool,
    },
    /// Make one model of several with the same parameters
    Merge(merge::MergeArgs),
    /// Put any runs and published results into one table, and mark what may not be compared
    Compare(compare::CompareArgs),
    /// Make the page of a run anew, or one page of several runs
    Page(page::PageArgs),
    /// Show one run, or put several side by side and say whether they may be compared
    Report {
        /// Run directories
        #[arg(required = true, value_name = "DIR")]
        dirs: Vec<PathBuf>,
    },
}

#[derive(Subcommand)]
enum Backbones {
    /// All cards
    List,
    /// One card
    Show {
        /// Name of a card, or its Hub id
        name: String,
    },
    /// Fetch the weights into the Hub cache
    Pull {
        /// Name of a card, or a Hub id
        name: String,
        /// Branch, tag or commit instead of the card's
        #[arg(long)]
        revision: Option<String>,
        /// File of the repository instead of the card's
        #[arg(long)]
        file: Option<String>,
    },
}

fn main() -> ExitCode {
    machine::keep_freed_blocks();
    let result = match Args::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Features(args) => features::features(&args),
        Command::Sweep(args) => sweep::sweep(&args),
        Command::Predict(args) => predict::predict(&args),
        Command::Learn(args) => predict::learn(&args),
        Command::ZeroShot(args) => zeroshot::zeroshot(&args),
        Command::Data(command) => data::data(&command),
        Command::Demo(args) => demo::demo(&args),
        Command::Backbones(command) => backbones(command),
        Command::Methods { compat: false } => methods(),
        Command::Methods { compat: true } => switches(),
        Command::Merge(args) => merge::merge(&args),
        Command::Compare(args) => compare::compare(&args),
        Command::Page(args) => page::page(&args),
        Command::Report { dirs } => report(&dirs),
    };
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    let _ = writeln!(std::io::stderr(), "error: {}", explain(&error));
    match error.downcast_ref::<candlewick_core::Error>() {
        Some(candlewick_core::Error::Interrupted) => ExitCode::from(130),
        _ => ExitCode::FAILURE,
    }
}

/// The error and its causes; a cause that its wrapper spells out already is not said again.
fn explain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.contains(&cause) {
            if !text.is_empty() {
                text += ": ";
            }
            text += &cause;
        }
    }
    text
}

/// Text on standard output; a reader that went away is no error.
fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(()),
    }
}

fn methods() -> Result<()> {
    let rows = METHODS.iter().map(|m| {
        let trains = if m.trains { "yes" } else { "no" };
        let (features, images) = (m.features_kept(), m.images_kept());
        vec![
            m.name.into(),
            m.what.into(),
            trains.into(),
            features.into(),
            images.into(),
            m.paper.into(),
        ]
    });
    let head = [
        "method",
        "what",
        "[train]",
        "features kept",
        "images kept",
        "paper",
    ];
    print(&table::list(&head, rows))
}

fn switches() -> Result<()> {
    let rows = COMPAT.iter().map(|c| {
        vec![
            c.method.into(),
            c.switch.into(),
            c.what.into(),
            c.source.into(),
        ]
    });
    print(&table::list(&["method", "switch", "what", "source"], rows))
}

fn backbones(command: Backbones) -> Result<()> {
    match command {
        Backbones::List => {
            let rows = candlewick_models::list().iter().map(|card| {
                let millions = card
                    .parameters
                    .map_or("?".into(), |p| format!("{:.1} M", p as f64 / 1e6));
                let licence = card.licence.clone().unwrap_or_else(|| "?".into());
                vec![card.name.clone(), millions, licence, card.about.clone()]
            });
            print(&table::list(&["backbone", "size", "licence", "what"], rows))
        }
        Backbones::Show { name } => match candlewick_models::find(&name) {
            Some(card) => print(&format!("{card}\n")),
            None => bail!("there is no card `{name}`; `candlewick backbones list` names them all"),
        },
        Backbones::Pull {
            name,
            revision,
            file,
        } => {
            let bar = watch::Download::new();
            let mut options = Options::new(HubConfig::from_env()?);
            options.revision = revision;
            options.file = file;
            options.progress = Some(&bar);
            let located = candlewick_models::resolve(&name, &options)?;
            print(&format!(
                "{} is here ({})\nsha256 {}\n",
                located.card.name, located.origin, located.sha256
            ))
        }
    }
}

fn report(dirs: &[PathBuf]) -> Result<()> {
    let reports: Vec<_> = dirs
        .iter()
        .map(|dir| record::read_report(dir))
        .collect::<Result<_>>()?;
    if let [report] = reports.as_slice() {
        return print(&format!("{}\n{}", report.method, table::single(report)));
    }
    let names: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    print(&table::side_by_side(
        &names,
        &reports.iter().collect::<Vec<_>>(),
    ))
}
