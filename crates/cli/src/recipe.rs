//! A recipe: everything a run depends on, as TOML.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use candlewick_core::Train;
use candlewick_data::{PRESETS, Preprocess, Preset};
use candlewick_methods::{METHODS, MethodConfig, replaced};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::features::Keep;
use crate::precision::Precision;
use crate::sets::DataTable;
use crate::stream::StreamTable;

/// The tables and keys of a recipe. Hyper-parameters have no defaults; what belongs to the machine
/// has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    pub seed: u64,
    #[serde(default)]
    pub precision: Precision,
    #[serde(default = "cpu")]
    pub device: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// In which numbers features of plain images are kept on disk.
    #[serde(default)]
    pub features: Keep,
    /// Blocks of a backbone that trains are run again in the backward pass.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub checkpoint_activations: bool,
    pub data: DataTable,
    pub stream: StreamTable,
    pub backbone: BackboneTable,
    /// A second backbone, for methods that have two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub booster: Option<BackboneTable>,
    /// Images and sentences of no task, for methods that hold on to them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<ReferenceTable>,
    /// Laid over the preprocessing of the backbone's card.
    #[serde(default)]
    pub preprocess: Table,
    /// `name` and the method's own keys.
    pub method: Table,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train: Option<Train>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReferenceTable {
    /// A data set; its training images are taken.
    pub data: DataTable,
    /// A text file with a sentence a line.
    pub sentences: PathBuf,
}

fn cpu() -> String {
    "cpu".into()
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackboneTable {
    /// A card's name or a Hub id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Or a folder or file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// The card whose facts hold for `path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub card: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Blocks to keep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<usize>,
    /// Attention heads, where neither card nor config tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
}

impl BackboneTable {
    /// What names it in messages and reports.
    pub fn label(&self) -> String {
        match (&self.name, &self.path) {
            (Some(name), _) => name.clone(),
            (None, Some(path)) => path.display().to_string(),
            (None, None) => String::new(),
        }
    }
}

impl Recipe {
    /// Reads a recipe file and lays `--set` over it.
    pub fn load(path: &Path, sets: &[String]) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            anyhow!(
                "{}: {e}; give the path of a recipe, such as those in examples/recipes",
                path.display()
            )
        })?;
        Self::parse(&text, &path.display().to_string(), sets)
    }

    /// `origin` names the recipe in messages.
    pub fn parse(text: &str, origin: &str, sets: &[String]) -> Result<Self> {
        let mut table: Table = text
            .parse()
            .map_err(|e: toml::de::Error| anyhow!("{origin}: {}", e.to_string().trim_end()))?;
        for set in sets {
            overlay(&mut table, set)?;
        }
        Self::from_table(table, origin)
    }

    /// The same from TOML that was read already.
    pub fn from_table(mut table: Table, origin: &str) -> Result<Self> {
        order_by_seed(&mut table);
        let recipe: Self = typed(table, "", origin)?;
        recipe.method(origin)?;
        recipe.check().with_context(|| origin.to_owned())?;
        Ok(recipe)
    }

    /// What `[method]` calls it.
    pub fn method_name(&self) -> &str {
        let name = self.method.get("name").and_then(Value::as_str);
        name.unwrap_or_default()
    }

    /// What names its backbone in reports, with the second one of a method that has two.
    pub fn backbones(&self) -> String {
        let wanted = || self.method("").is_ok_and(|m| m.wants_booster());
        match &self.booster {
            Some(booster) if wanted() => {
                format!("{} with {}", self.backbone.label(), booster.label())
            }
            _ => self.backbone.label(),
        }
    }

    /// Whether its method reads class names.
    pub fn reads_texts(&self) -> bool {
        self.method("").is_ok_and(|method| method.reads_texts())
    }

    /// The method and its settings.
    pub fn method(&self, origin: &str) -> Result<MethodConfig> {
        let mut settings = self.method.clone();
        let names: Vec<&str> = METHODS.iter().map(|m| m.name).collect();
        let name = match settings.remove("name") {
            Some(Value::String(name)) => name,
            _ => bail!("{origin}: [method] needs `name`, one of {}", quoted(&names)),
        };
        let mut track = serde_path_to_error::Track::new();
        let tracked = serde_path_to_error::Deserializer::new(Value::Table(settings), &mut track);
        match MethodConfig::read(&name, tracked) {
            Ok(Some(method)) => Ok(method),
            Ok(None) => match replaced(&name) {
                Some(instead) => {
                    bail!("{origin}: there is no method `{name}` any more; write {instead}")
                }
                None => bail!(
                    "{origin}: there is no method `{name}`{}; there are {}",
                    nearest(&name, &names),
                    quoted(&names)
                ),
            },
            Err(e) => Err(explain(
                e.message(),
                &track.path().to_string(),
                "method",
                origin,
            )),
        }
    }

    fn check(&self) -> Result<()> {
        self.data.check()?;
        let tables = [
            ("backbone", Some(&self.backbone)),
            ("booster", self.booster.as_ref()),
        ];
        for (called, table) in tables {
            if table.is_some_and(|table| table.name.is_some() == table.path.is_some()) {
                bail!(
                    "[{called}] needs either `name` (a card or a Hub id) or `path` (a folder or file)"
                )
            }
        }
        if self.threads == Some(0) {
            bail!("threads: must be greater than 0, found 0; leave it out for all cores");
        }
        Ok(())
    }

    /// What `preprocess.preset` names.
    pub fn preset(&self, origin: &str) -> Result<Option<Preset>> {
        let Some(name) = self.preprocess.get(PRESET) else {
            return Ok(None);
        };
        match name.as_str().and_then(Preset::find) {
            Some(preset) => Ok(Some(preset)),
            None => {
                let names = PRESETS.map(|preset| preset.name).join(", ");
                bail!("{origin}: preprocess.preset: found {name}, expected one of {names}")
            }
        }
    }

    /// The preset's preprocessing, or the card's, with the recipe's keys laid over it.
    pub fn preprocess(
        &self,
        card: Option<&candlewick_models::Preprocess>,
        origin: &str,
    ) -> Result<Preprocess> {
        let mut table = match (self.preset(origin)?, card) {
            (Some(preset), _) => preset.keys().parse()?,
            (None, Some(card)) => Table::try_from(card)?,
            (None, None) => Table::new(),
        };
        table.extend(self.preprocess.clone());
        table.remove(PRESET);
        if card.is_none() && !table.contains_key("mean") {
            bail!(
                "[preprocess]: nothing beside `{}` says how its images are prepared; set preset, or resize, crop, interpolation, mean and std",
                self.backbone.label()
            );
        }
        typed(table, "preprocess", origin)
    }
}

/// The key of `[preprocess]` that names what the other keys are laid over.
pub const PRESET: &str = "preset";

/// The data set inside the program.
pub const DEMO: &str = "emoji-r-mini";

/// `key.path=value`; a value that is no TOML is taken as a string.
pub fn overlay(table: &mut Table, set: &str) -> Result<()> {
    let Some((key, text)) = set.split_once('=') else {
        bail!("--set {set}: expected KEY=VALUE, for example --set train.lr=0.01");
    };
    let (key, text) = (key.trim(), text.trim());
    let parsed: std::result::Result<Table, _> = format!("x = {text}").parse();
    let value = match parsed.ok().and_then(|mut t| t.remove("x")) {
        Some(value) => value,
        None => Value::String(text.to_owned()),
    };
    let mut parts: Vec<&str> = key.split('.').collect();
    let last = parts.pop().unwrap_or_default();
    let mut at = table;
    for part in parts {
        let next = at.entry(part).or_insert_with(|| Value::Table(Table::new()));
        at = match next {
            Value::Table(next) => next,
            _ => bail!("--set {set}: `{part}` is a value, not a table"),
        };
    }
    at.insert(last.to_owned(), value);
    Ok(())
}

/// `order = "seed"` shuffles the classes with the run's own seed, as numpy does.
fn order_by_seed(table: &mut Table) {
    let seed = table.get("seed").cloned();
    if let Some(Value::Table(stream)) = table.get_mut("stream")
        && stream.get("order").and_then(Value::as_str) == Some("seed")
        && let Some(seed) = seed
    {
        let numpy = Table::from_iter([("numpy".to_owned(), seed)]);
        stream.insert("order".into(), Value::Table(numpy));
    }
}

/// Turns a table into `T`; an error names the full key, and for an unknown one the nearest known.
pub fn typed<T: DeserializeOwned>(table: Table, scope: &str, origin: &str) -> Result<T> {
    serde_path_to_error::deserialize(Value::Table(table)).map_err(|e| {
        let path = e.path().to_string();
        explain(e.inner().message(), &path, scope, origin)
    })
}

fn explain(message: &str, path: &str, scope: &str, origin: &str) -> anyhow::Error {
    let message = message.trim();
    let path = if path == "." { "" } else { path };
    let full = |path: &str| {
        let parts = [scope, path];
        let parts: Vec<&str> = parts.into_iter().filter(|p| !p.is_empty()).collect();
        parts.join(".")
    };
    // serde names the unknown key first and then the known ones, all between backticks.
    let ticked: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    if message.starts_with("unknown field")
        && let Some((unknown, known)) = ticked.split_first()
    {
        let table = match path.strip_suffix(unknown) {
            Some(table) => full(table.trim_end_matches('.')),
            None => full(path),
        };
        let key = match table.is_empty() {
            true => (*unknown).to_owned(),
            false => format!("{table}.{unknown}"),
        };
        let valid = match known.is_empty() {
            true => "this table has no keys".to_owned(),
            false => format!("valid keys are {}", quoted(known)),
        };
        return anyhow!(
            "{origin}: unknown key `{key}`{}; {valid}",
            nearest(unknown, known)
        );
    }
    match full(path) {
        key if key.is_empty() => anyhow!("{origin}: {message}"),
        key => anyhow!("{origin}: `{key}`: {message}"),
    }
}

fn nearest(word: &str, known: &[&str]) -> String {
    let distance = |k: &&&str| strsim::damerau_levenshtein(word, k);
    match known.iter().min_by_key(distance) {
        Some(best) if distance(&best) <= 1 + word.len() / 3 => format!(", did you mean `{best}`?"),
        _ => String::new(),
    }
}

fn quoted(words: &[&str]) -> String {
    let words: Vec<String> = words.iter().map(|w| format!("`{w}`")).collect();
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        seed = 1
        [data]
        name = "emoji-r-mini"
        [stream]
        increment = 10
        order = "seed"
        [backbone]
        name = "vit-micro"
        [method]
        name = "linear"
        [train]
        epochs = 1
        batch = 8
        optimizer = "adam"
        lr = 0.01
    "#;

    fn error(sets: &[&str]) -> String {
        let sets: Vec<String> = sets.iter().map(|s| (*s).to_owned()).collect();
        let result = Recipe::parse(GOOD, "r.toml", &sets);
        format!("{:#}", result.err().unwrap_or_else(|| anyhow!("no error")))
    }

    #[test]
    fn a_recipe_survives_being_written_out() {
        let recipe = Recipe::parse(GOOD, "r.toml", &["seed=7".into()]).unwrap();
        assert_eq!(recipe.stream.order, candlewick_data::Order::Numpy(7));
        let text = toml::to_string(&recipe).unwrap();
        assert_eq!(Recipe::parse(&text, "again", &[]).unwrap(), recipe);
    }

    #[test]
    fn every_recipe_of_the_examples_is_valid() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/recipes");
        let mut seen = Vec::new();
        for folder in std::fs::read_dir(root).unwrap() {
            let folder = folder.unwrap().path();
            for file in std::fs::read_dir(&folder).unwrap() {
                let path = file.unwrap().path();
                let origin = path.display().to_string();
                let recipe = Recipe::load(&path, &[]).unwrap();
                let method = recipe.method(&origin).unwrap();
                method.check(recipe.train.as_ref()).unwrap();
                let name = recipe.backbone.name.as_deref().unwrap_or_default();
                let card = candlewick_models::find(name).unwrap();
                recipe
                    .preprocess(card.preprocess.as_ref(), &origin)
                    .unwrap();
                assert_eq!(folder.file_name().unwrap(), method.about().name);
                seen.push(method.about().name);
            }
        }
        for method in METHODS {
            assert!(seen.contains(&method.name), "{} has no recipe", method.name);
        }
    }

    #[test]
    fn unknown_keys_name_the_nearest_valid_one() {
        for (set, parts) in [
            ("train.lrr=1", ["`train.lrr`", "did you mean `lr`"]),
            ("sed=1", ["`sed`", "did you mean `seed`"]),
            (
                "stream.incremnt=1",
                ["`stream.incremnt`", "did you mean `increment`"],
            ),
            (
                "method.top_k=3",
                ["`method.top_k`", "this table has no keys"],
            ),
            ("method.name=l2q", ["no method `l2q`", "did you mean `l2p`"]),
            (
                "method.name=aper-vpt",
                ["no method `aper-vpt` any more", "kind = \"vpt-deep\""],
            ),
            (
                "data.split.fraction=1",
                ["`data.split.fraction`", "`test_fraction`"],
            ),
        ] {
            let text = error(&[set]);
            for part in parts {
                assert!(text.contains(part), "{set}: {text}");
            }
            assert!(text.contains("r.toml"), "{text}");
        }
    }

    #[test]
    fn wrong_values_name_their_key() {
        for (set, part) in [
            ("train.epochs=\"many\"", "`train.epochs`"),
            ("device=1", "`device`"),
            ("precision=f64", "`precision`"),
            ("data.eval_batch=0", "data.eval_batch"),
            ("data.path=x", "either `name`"),
            ("threads=0", "threads"),
            ("backbone.path=x", "either `name`"),
            ("data.name=cifar", "'cifar'"),
            ("seed", "expected KEY=VALUE"),
            ("seed.x=1", "is a value, not a table"),
        ] {
            assert!(error(&[set]).contains(part), "{set}: {}", error(&[set]));
        }
    }
}
