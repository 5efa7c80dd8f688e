//! `candlewick data`: data sets and their divisions.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use candlewick_core::report::short;
use candlewick_data::{PRESETS, Parts, Source};
use clap::Subcommand;

use crate::recipe::Recipe;
use crate::{prepare, print, record, sets, table};

#[derive(Subcommand)]
pub enum Data {
    /// Write the images of a recipe's training and test part to two lists that other programs can read
    Split {
        /// Recipe, a TOML file
        recipe: PathBuf,
        /// Change a key of the recipe, for example --set data.split.kind=random
        #[arg(long, value_name = "KEY=VALUE")]
        set: Vec<String>,
        /// Where train.txt and test.txt go
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// List the preprocessings that have a name, for `preprocess.preset`
    Presets,
    /// List the data sets that have a card
    List,
    /// Show the card of a data set: sources, sizes, licence, and who divides it how
    Show {
        /// Name of a card
        name: String,
    },
    /// Fetch a data set, or say what to download where
    Fetch {
        /// Name of a card
        name: String,
        /// One of the card's sources [default: the first that a program can fetch]
        #[arg(long)]
        source: Option<String>,
        /// Folder for its files [default: NAME in CANDLEWICK_DATA, or in ./data]
        #[arg(long, value_name = "DIR")]
        to: Option<PathBuf>,
    },
    /// Hold a data set against its card: files, checksums, numbers of images, and images that are there twice
    Check {
        /// Name of a card
        name: String,
        /// Where it lies [default: NAME in CANDLEWICK_DATA, or in ./data]
        #[arg(long, value_name = "PATH")]
        path: Option<PathBuf>,
    },
}

pub fn data(command: &Data) -> Result<()> {
    match command {
        Data::Split { recipe, set, out } => {
            let recipe = Recipe::load(recipe, set)?;
            let parts = sets::images(&recipe)?.parts;
            std::fs::create_dir_all(out).with_context(|| out.display().to_string())?;
            for (name, part) in [("train.txt", &parts.train), ("test.txt", &parts.test)] {
                let path = out.join(name);
                record::write_whole(out, &path, list(part.as_ref()).as_bytes())
                    .with_context(|| format!("{}: not written", path.display()))?;
            }
            print(&about(&parts, out))
        }
        Data::List => sets::list(),
        Data::Show { name } => sets::show(name),
        Data::Fetch { name, source, to } => sets::fetch(name, source.as_deref(), to.clone()),
        Data::Check { name, path } => sets::check(name, path.clone()),
        Data::Presets => {
            let rows = PRESETS.map(|preset| vec![preset.name.to_owned(), preset.what.to_owned()]);
            print(&table::list(&["preset", "who feeds it to what"], rows))
        }
    }
}

/// A path a line.
fn list(part: &dyn Source) -> String {
    let lines = (0..part.len()).map(|i| part.name(i) + "\n");
    lines.collect()
}

fn about(parts: &Parts, out: &std::path::Path) -> String {
    let of_class = |part: &dyn Source| {
        let mut counts = vec![0usize; part.classes().len()];
        (0..part.len()).for_each(|i| counts[part.label(i)] += 1);
        let least = counts.iter().min().copied().unwrap_or(0);
        let most = counts.iter().max().copied().unwrap_or(0);
        format!("{} images, {least} to {most} of a class", part.len())
    };
    format!(
        "{} classes\ntrain: {}\ntest: {}\nsplit: {}\nThe lists are in {}\n",
        parts.train.classes().len(),
        of_class(parts.train.as_ref()),
        of_class(parts.test.as_ref()),
        short(&prepare::split_hash(parts)),
        out.display()
    )
}
