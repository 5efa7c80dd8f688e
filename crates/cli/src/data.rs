//! `candlewick data`: data sets and their divisions.

use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow};
use candlewick_core::report::short;
use candlewick_data::{PRESETS, Parts, Source, demo};
use clap::Subcommand;

use crate::recipe::Recipe;
use crate::{prepare, print, record, table};

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
}

pub fn data(command: &Data) -> Result<()> {
    match command {
        Data::Split { recipe, set, out } => {
            let recipe = Recipe::load(recipe, set)?;
            let parts = match recipe.folder() {
                Some(folder) => folder.open().map_err(|e| anyhow!(e.within("data")))?,
                None => demo()?,
            };
            std::fs::create_dir_all(out).with_context(|| out.display().to_string())?;
            for (name, part) in [("train.txt", &parts.train), ("test.txt", &parts.test)] {
                let path = out.join(name);
                record::write_whole(out, &path, list(part.as_ref()).as_bytes())
                    .with_context(|| format!("{}: not written", path.display()))?;
            }
            print(&about(&parts, out))
        }
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
