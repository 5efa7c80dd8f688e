//! `SWEEP.toml`: which recipes a sweep is made of.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail};
use serde::Deserialize;
use toml::{Table, Value};

use crate::recipe::{Recipe, overlay, typed};

/// Every method with every stream, backbone, setting and seed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sweep {
    /// Class orders (with `stream.order = "seed"`) and draws of the methods.
    pub seeds: Vec<u64>,
    /// A recipe without `seed`, `[method]` and `[train]`.
    base: Table,
    /// Each laid over the base's `[stream]`.
    #[serde(default)]
    stream: Vec<Table>,
    /// Each laid over the base's `[backbone]`.
    #[serde(default)]
    backbone: Vec<Table>,
    /// A recipe's `[method]`, besides with `train`, `grid` and `label`.
    method: Vec<Table>,
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

    /// What its numbers may be compared within.
    pub fn group(&self) -> String {
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
        let sweep: Self = typed(table, "", &origin)?;
        sweep.check().with_context(|| origin)?;
        Ok(sweep)
    }

    fn check(&self) -> Result<()> {
        let mut sorted = self.seeds.clone();
        sorted.sort_unstable();
        sorted.dedup();
        match () {
            () if self.seeds.is_empty() => bail!("seeds: none is given; each makes a column"),
            () if sorted.len() != self.seeds.len() => bail!("seeds: one is given twice"),
            () if self.method.is_empty() => bail!("[[method]]: none is given"),
            () => {}
        }
        match ["seed", "method", "train"]
            .iter()
            .find(|key| self.base.contains_key(**key))
        {
            Some(key) => {
                bail!("[base]: `{key}` is what a sweep goes over; see `seeds` and [[method]]")
            }
            None => Ok(()),
        }
    }

    /// All cells, variants together, seeds in their order.
    pub fn cells(&self, origin: &str) -> Result<Vec<Cell>> {
        let one = [Table::new()];
        let or_one = |list: &[Table]| match list.is_empty() {
            true => one.to_vec(),
            false => list.to_vec(),
        };
        let mut cells: Vec<Cell> = Vec::new();
        for backbone in or_one(&self.backbone) {
            for stream in or_one(&self.stream) {
                for method in &self.method {
                    let name = label(method).with_context(|| origin.to_owned())?;
                    for sets in combinations(method)? {
                        let variant = |recipe: &Recipe| Variant {
                            backbone: recipe.backbone.label(),
                            stream: words(&stream),
                            method: recipe.method_name().to_owned(),
                            name: name.clone(),
                            settings: sets.join(" "),
                        };
                        for &seed in &self.seeds {
                            let table = self.recipe(seed, &backbone, &stream, method, &sets)?;
                            let recipe = Recipe::from_table(table, origin)?;
                            let variant = variant(&recipe);
                            let row = |v: &Variant| (v.group(), v.label());
                            let twice =
                                |c: &Cell| c.seed == seed && row(&c.variant) == row(&variant);
                            if cells.iter().any(twice) {
                                bail!(
                                    "{origin}: two of [[method]] are `{}`; give one a `label` of its own",
                                    variant.label()
                                );
                            }
                            cells.push(Cell {
                                variant,
                                seed,
                                recipe,
                            });
                        }
                    }
                }
            }
        }
        Ok(cells)
    }

    fn recipe(
        &self,
        seed: u64,
        backbone: &Table,
        stream: &Table,
        method: &Table,
        sets: &[String],
    ) -> Result<Table> {
        let mut recipe = self.base.clone();
        let seed = i64::try_from(seed).context("seeds: too large")?;
        recipe.insert("seed".into(), Value::Integer(seed));
        for (key, over) in [("backbone", backbone), ("stream", stream)] {
            let table = recipe.entry(key).or_insert_with(|| Table::new().into());
            match table {
                Value::Table(table) => table.extend(over.clone()),
                _ => bail!("base.{key}: expected a table"),
            }
        }
        let mut method = method.clone();
        method.remove("grid");
        method.remove("label");
        if let Some(train) = method.remove("train") {
            recipe.insert("train".into(), train);
        }
        recipe.insert("method".into(), Value::Table(method));
        for set in sets {
            overlay(&mut recipe, set)?;
        }
        Ok(recipe)
    }
}

/// What a method's row is called, where it is not the method's name.
fn label(method: &Table) -> Result<Option<String>> {
    match method.get("label") {
        None => Ok(None),
        Some(Value::String(label)) if !label.trim().is_empty() => Ok(Some(label.clone())),
        Some(other) => bail!("method.label: expected the name of a row, found {other}"),
    }
}

/// Every choice of one value for each key of `grid`, as `key=value`.
fn combinations(method: &Table) -> Result<Vec<Vec<String>>> {
    let grid: BTreeMap<String, Vec<Value>> = match method.get("grid") {
        Some(grid) => grid.clone().try_into().map_err(|_| {
            anyhow!("method.grid: expected lists, as in \"train.lr\" = [0.01, 0.1]")
        })?,
        None => BTreeMap::new(),
    };
    let mut all = vec![Vec::new()];
    for (key, values) in grid {
        if values.is_empty() {
            bail!("method.grid: `{key}` has no value");
        }
        all = all
            .into_iter()
            .flat_map(|sets: Vec<String>| {
                let key = &key;
                values.iter().map(move |value| {
                    let mut sets = sets.clone();
                    sets.push(format!("{key}={value}"));
                    sets
                })
            })
            .collect();
    }
    Ok(all)
}

fn words(table: &Table) -> String {
    let words: Vec<String> = table.iter().map(|(k, v)| format!("{k}={v}")).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_is_every_combination() {
        let method: Table = "grid = { b = [1, 2], a = [\"x\", \"y\", \"z\"] }"
            .parse()
            .unwrap();
        let all = combinations(&method).unwrap();
        assert_eq!(all.len(), 6);
        assert_eq!(all[0], ["a=\"x\"", "b=1"]);
        assert_eq!(all[5], ["a=\"z\"", "b=2"]);
        assert_eq!(combinations(&Table::new()).unwrap(), [Vec::<String>::new()]);
    }

    #[test]
    fn every_sweep_of_the_examples_is_valid() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/sweeps");
        let mut seen = 0;
        for file in std::fs::read_dir(root).unwrap() {
            let path = file.unwrap().path();
            let origin = path.display().to_string();
            let sweep = Sweep::load(&path, &[]).unwrap();
            for cell in sweep.cells(&origin).unwrap() {
                let method = cell.recipe.method(&origin).unwrap();
                method.check(cell.recipe.train.as_ref()).unwrap();
            }
            seen += 1;
        }
        assert!(seen > 1);
    }
}
