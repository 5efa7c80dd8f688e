//! The rows of a sweep: recipes without a seed, made of `[base]` and a `[[method]]`, or read from the file of a `[[recipe]]`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use serde::Deserialize;
use toml::{Table, Value};

/// A row before seeds, backbones and streams are filled in.
#[derive(Debug)]
pub struct Row {
    /// The files it comes from, for messages.
    pub origin: String,
    /// What it is called, where it is not the method's name.
    pub name: Option<String>,
    pub recipe: Table,
    /// Every choice of the grid, as `key=value`.
    pub choices: Vec<Vec<String>>,
}

/// `[[recipe]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FromFile {
    /// The recipe, relative to the sweep's file.
    file: PathBuf,
    #[serde(default)]
    label: Option<Value>,
    #[serde(default)]
    grid: Option<Value>,
}

impl Row {
    /// `method` is a recipe's `[method]`, besides with `train`, `grid` and `label`.
    pub fn of_method(base: &Table, method: &Table, origin: &str) -> Result<Self> {
        let mut recipe = base.clone();
        let mut method = method.clone();
        let named = name(method.remove("label").as_ref(), "method");
        let choices = combinations(method.remove("grid").as_ref(), "method");
        if let Some(train) = method.remove("train") {
            recipe.insert("train".into(), train);
        }
        recipe.insert("method".into(), Value::Table(method));
        Ok(Self {
            origin: origin.to_owned(),
            name: named.with_context(|| origin.to_owned())?,
            recipe,
            choices: choices.with_context(|| origin.to_owned())?,
        })
    }

    /// A recipe's file, where keys and whole tables of `base` take the place of its own.
    pub fn of_file(base: &Table, row: &FromFile, sweep: &Path, origin: &str) -> Result<Self> {
        let path = sweep.parent().unwrap_or(Path::new("")).join(&row.file);
        let key = || format!("{origin}: recipe.file");
        let text = std::fs::read_to_string(&path)
            .map_err(|e| anyhow!("{}: {}: {e}", key(), path.display()))?;
        let mut recipe: Table = text.parse().map_err(|e: toml::de::Error| {
            let problem = e.to_string();
            anyhow!("{}: {}: {}", key(), path.display(), problem.trim_end())
        })?;
        recipe.extend(base.clone());
        Ok(Self {
            origin: format!("{origin}: {}", path.display()),
            name: name(row.label.as_ref(), "recipe").with_context(|| origin.to_owned())?,
            recipe,
            choices: combinations(row.grid.as_ref(), "recipe")
                .with_context(|| origin.to_owned())?,
        })
    }
}

/// Puts the values of `with` in the place of those that rows state, of the same kind; what a row does not state it does not
/// get.
///
/// # Errors
/// A key that no row states with a value of that kind.
pub fn replace(rows: &mut [Row], with: &Table) -> Result<()> {
    let mut used = BTreeSet::new();
    for row in rows {
        lay(&mut row.recipe, with, "", &mut used);
    }
    let mut all = Vec::new();
    leaves(with, "", &mut all);
    match all.into_iter().find(|(key, _)| !used.contains(key)) {
        Some((key, value)) => bail!(
            "replace.{key}: no row has this key with a value of that kind, {}",
            value.type_str()
        ),
        None => Ok(()),
    }
}

fn lay(recipe: &mut Table, with: &Table, above: &str, used: &mut BTreeSet<String>) {
    let number = |v: &Value| v.is_integer() || v.is_float();
    for (key, new) in with {
        let full = below(above, key);
        match (recipe.get_mut(key), new) {
            (Some(Value::Table(old)), Value::Table(new)) => lay(old, new, &full, used),
            (Some(old), new) if old.same_type(new) || (number(old) && number(new)) => {
                *old = new.clone();
                used.insert(full);
            }
            _ => {}
        }
    }
}

fn leaves<'a>(table: &'a Table, above: &str, found: &mut Vec<(String, &'a Value)>) {
    for (key, value) in table {
        let full = below(above, key);
        match value {
            Value::Table(table) => leaves(table, &full, found),
            value => found.push((full, value)),
        }
    }
}

fn below(above: &str, key: &str) -> String {
    match above.is_empty() {
        true => key.to_owned(),
        false => format!("{above}.{key}"),
    }
}

/// What a row is called, where it is not the method's name.
fn name(label: Option<&Value>, table: &str) -> Result<Option<String>> {
    match label {
        None => Ok(None),
        Some(Value::String(label)) if !label.trim().is_empty() => Ok(Some(label.clone())),
        Some(other) => bail!("{table}.label: expected the name of a row, found {other}"),
    }
}

/// Every choice of one value for each key of `grid`, as `key=value`.
fn combinations(grid: Option<&Value>, table: &str) -> Result<Vec<Vec<String>>> {
    let grid: BTreeMap<String, Vec<Value>> = match grid {
        Some(grid) => grid.clone().try_into().map_err(|_| {
            anyhow!("{table}.grid: expected lists, as in \"train.lr\" = [0.01, 0.1]")
        })?,
        None => BTreeMap::new(),
    };
    let mut all = vec![Vec::new()];
    for (key, values) in grid {
        if values.is_empty() {
            bail!("{table}.grid: `{key}` has no value");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_is_every_combination() {
        let grid: Table = "b = [1, 2]\na = [\"x\", \"y\", \"z\"]".parse().unwrap();
        let all = combinations(Some(&grid.into()), "method").unwrap();
        assert_eq!(all.len(), 6);
        assert_eq!(all[0], ["a=\"x\"", "b=1"]);
        assert_eq!(all[5], ["a=\"z\"", "b=2"]);
        assert_eq!(
            combinations(None, "method").unwrap(),
            [Vec::<String>::new()]
        );
    }

    fn row(recipe: &str) -> Row {
        Row {
            origin: "s.toml".into(),
            name: None,
            recipe: recipe.parse().unwrap(),
            choices: vec![vec![]],
        }
    }

    #[test]
    fn only_what_is_stated_is_replaced_and_by_its_kind() {
        let mut rows = [
            row("[method]\nblocks = 11\n[train]\nlr = 0.1\nepochs = 9"),
            row("[method]\nblocks = [0, 1]\ninner = { epochs = 5 }"),
        ];
        let with: Table =
            "train.epochs = 1\ntrain.lr = 1\nmethod.blocks = 2\nmethod.inner.epochs = 3"
                .parse()
                .unwrap();
        replace(&mut rows, &with).unwrap();
        let whole = "[method]\nblocks = 2\n[train]\nlr = 1\nepochs = 1";
        assert_eq!(rows[0].recipe, whole.parse().unwrap());
        let listed = "[method]\nblocks = [0, 1]\ninner = { epochs = 3 }";
        assert_eq!(rows[1].recipe, listed.parse().unwrap());
        for (with, part) in [
            ("train.epoch = 1", "replace.train.epoch: no row"),
            ("method.blocks = \"all\"", "replace.method.blocks: no row"),
            ("method = 1", "replace.method: no row"),
        ] {
            let error = replace(&mut rows, &with.parse().unwrap()).unwrap_err();
            assert!(error.to_string().starts_with(part), "{error}");
        }
    }
}
