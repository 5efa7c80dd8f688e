//! `SWEEP.toml`: which recipes a sweep is made of.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail};
use serde::Deserialize;
use toml::{Table, Value};

use super::rows::{self, FromFile, Row};
use crate::recipe::{Recipe, overlay, typed};

/// The tables of the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// Class orders (with `stream.order = "seed"`) and draws of the methods.
    seeds: Vec<u64>,
    /// A recipe without `seed`, `[method]` and `[train]`.
    #[serde(default)]
    base: Table,
    /// Each laid over the base's `[stream]`.
    #[serde(default)]
    stream: Vec<Table>,
    /// Each laid over the base's `[backbone]`.
    #[serde(default)]
    backbone: Vec<Table>,
    /// A recipe's `[method]`, besides with `train`, `grid` and `label`.
    #[serde(default)]
    method: Vec<Table>,
    /// Recipes in files of their own.
    #[serde(default)]
    recipe: Vec<FromFile>,
    /// Values in the place of those that rows state.
    #[serde(default)]
    replace: Table,
}

/// Every row with every stream, backbone, setting and seed.
#[derive(Debug)]
pub struct Sweep {
    pub seeds: Vec<u64>,
    stream: Vec<Table>,
    backbone: Vec<Table>,
    rows: Vec<Row>,
}

/// One row of the table: all that it has besides the seed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Variant {
    pub backbone: String,
    /// What of the stream tells it from others; empty where there is one stream.
    pub stream: String,
    pub method: String,
    /// What its row is called instead of `method`.
    pub name: Option<String>,
    /// Of the grid, as `key=value`.
    pub settings: String,
}

impl Variant {
    /// In a table with other methods.
    pub fn label(&self) -> String {
        let name = self.name.as_ref().unwrap_or(&self.method);
        match self.settings.is_empty() {
            true => name.clone(),
            false => format!("{name} {}", self.settings),
        }
    }

    /// Backbone and stream.
    pub fn place(&self) -> String {
        let parts = [&self.backbone, &self.stream];
        let parts: Vec<&str> = parts.into_iter().map(String::as_str).collect();
        parts.join(" ").trim_end().to_owned()
    }
}

/// A variant with a seed.
pub struct Cell {
    pub variant: Variant,
    pub seed: u64,
    pub recipe: Recipe,
    /// The files it comes from, for messages.
    pub origin: String,
}

impl Sweep {
    pub fn load(path: &Path, sets: &[String]) -> Result<Self> {
        let origin = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|e| {
            anyhow!("{origin}: {e}; give the path of a sweep, such as those in examples/sweeps")
        })?;
        let error = |e: toml::de::Error| anyhow!("{origin}: {}", e.to_string().trim_end());
        let mut table: Table = text.parse().map_err(error)?;
        for set in sets {
            overlay(&mut table, set)?;
        }
        let file: File = typed(table, "", &origin)?;
        file.check().with_context(|| origin.clone())?;
        let of_method = |method: &Table| Row::of_method(&file.base, method, &origin);
        let of_file = |row: &FromFile| Row::of_file(&file.base, row, path, &origin);
        let methods = file.method.iter().map(of_method);
        let mut rows: Vec<Row> = methods
            .chain(file.recipe.iter().map(of_file))
            .collect::<Result<_>>()?;
        rows::replace(&mut rows, &file.replace).with_context(|| origin.clone())?;
        Ok(Self {
            seeds: file.seeds,
            stream: file.stream,
            backbone: file.backbone,
            rows,
        })
    }

    /// All cells, variants together, seeds in their order.
    pub fn cells(&self) -> Result<Vec<Cell>> {
        let one = [Table::new()];
        let or_one = |list: &[Table]| match list.is_empty() {
            true => one.to_vec(),
            false => list.to_vec(),
        };
        let mut cells: Vec<Cell> = Vec::new();
        for backbone in or_one(&self.backbone) {
            for stream in or_one(&self.stream) {
                for row in &self.rows {
                    for sets in &row.choices {
                        for &seed in &self.seeds {
                            let table = recipe(row, seed, &backbone, &stream, sets)
                                .with_context(|| row.origin.clone())?;
                            let recipe = Recipe::from_table(table, &row.origin)?;
                            let variant = Variant {
                                backbone: recipe.backbones(),
                                stream: words(&stream),
                                method: recipe.method_name().to_owned(),
                                name: row.name.clone(),
                                settings: sets.join(" "),
                            };
                            let row_of = |v: &Variant| (v.place(), v.label());
                            let twice =
                                |c: &Cell| c.seed == seed && row_of(&c.variant) == row_of(&variant);
                            if cells.iter().any(twice) {
                                bail!(
                                    "{}: two rows are `{}`; give one a `label` of its own",
                                    row.origin,
                                    variant.label()
                                );
                            }
                            cells.push(Cell {
                                variant,
                                seed,
                                recipe,
                                origin: row.origin.clone(),
                            });
                        }
                    }
                }
            }
        }
        Ok(cells)
    }
}

impl File {
    fn check(&self) -> Result<()> {
        let mut sorted = self.seeds.clone();
        sorted.sort_unstable();
        sorted.dedup();
        match () {
            () if self.seeds.is_empty() => bail!("seeds: none is given; each makes a column"),
            () if sorted.len() != self.seeds.len() => bail!("seeds: one is given twice"),
            () if self.method.is_empty() && self.recipe.is_empty() => {
                bail!("[[method]], [[recipe]]: none is given; each makes a row")
            }
            () if !self.method.is_empty() && self.base.is_empty() => {
                bail!("[base]: missing; [[method]] needs its data, stream and backbone")
            }
            () => {}
        }
        match ["seed", "method", "train"]
            .iter()
            .find(|key| self.base.contains_key(**key))
        {
            Some(key) => {
                bail!(
                    "[base]: `{key}` is what a sweep goes over; see `seeds`, [[method]] and [replace]"
                )
            }
            None => Ok(()),
        }
    }
}

fn recipe(
    row: &Row,
    seed: u64,
    backbone: &Table,
    stream: &Table,
    sets: &[String],
) -> Result<Table> {
    let mut recipe = row.recipe.clone();
    let seed = i64::try_from(seed).context("seeds: too large")?;
    recipe.insert("seed".into(), Value::Integer(seed));
    for (key, over) in [("backbone", backbone), ("stream", stream)] {
        let table = recipe.entry(key).or_insert_with(|| Table::new().into());
        match table {
            Value::Table(table) => table.extend(over.clone()),
            _ => bail!("{key}: expected a table"),
        }
    }
    for set in sets {
        overlay(&mut recipe, set)?;
    }
    Ok(recipe)
}

fn words(table: &Table) -> String {
    let words: Vec<String> = table.iter().map(|(k, v)| format!("{k}={v}")).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn examples(folder: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../examples")
            .join(folder)
    }

    #[test]
    fn every_sweep_of_the_examples_is_valid() {
        let mut seen = 0;
        for file in std::fs::read_dir(examples("sweeps")).unwrap() {
            let sweep = Sweep::load(&file.unwrap().path(), &[]).unwrap();
            for cell in sweep.cells().unwrap() {
                let method = cell.recipe.method(&cell.origin).unwrap();
                method.check(cell.recipe.train.as_ref()).unwrap();
            }
            seen += 1;
        }
        assert!(seen > 1);
    }

    /// The published settings are in both tables, and in the fair one nothing but the method tells rows apart.
    #[test]
    fn the_tables_hold_every_recipe_of_their_set() {
        for set in ["imagenet-r", "cifar100"] {
            let mut recipes = 0;
            for folder in std::fs::read_dir(examples("recipes")).unwrap() {
                let files = std::fs::read_dir(folder.unwrap().path()).unwrap();
                let files = files.map(|file| file.unwrap().path()).filter(|path| {
                    let name = path.file_name().unwrap_or_default().to_string_lossy();
                    // Those that read class names run on a CLIP, not on the tables' backbone.
                    name.starts_with(set) && !Recipe::load(path, &[]).unwrap().reads_texts()
                });
                recipes += files.count();
            }
            for flavour in ["paper", "fair"] {
                let path = examples("sweeps").join(format!("{flavour}-{set}.toml"));
                let sweep = Sweep::load(&path, &[]).unwrap();
                let files: BTreeSet<&str> = sweep.rows.iter().map(|r| r.origin.as_str()).collect();
                assert_eq!(
                    (files.len(), sweep.rows.len()),
                    (recipes, recipes),
                    "{flavour} {set}"
                );
                let cells = sweep.cells().unwrap();
                let mut terms = BTreeSet::new();
                for cell in &cells {
                    let (recipe, origin) = (&cell.recipe, &cell.origin);
                    let compat = recipe.method(origin).unwrap().compat();
                    assert!(compat.is_empty(), "{origin}: {compat:?}");
                    let preset = recipe.preset(origin).unwrap().map(|preset| preset.name);
                    let data = (&recipe.data, &recipe.backbone, &recipe.preprocess);
                    terms.insert(format!(
                        "{} {:?} {preset:?} {data:?}",
                        cell.seed, recipe.stream
                    ));
                }
                match flavour {
                    "fair" => assert_eq!(terms.len(), sweep.seeds.len(), "{terms:?}"),
                    _ => assert!(terms.len() > 1),
                }
            }
        }
    }
}
