//! What classes are called in words.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, anyhow, bail};
use candlewick_core::Stream;
use candlewick_core::task::words;

use crate::recipe::{DEMO, Recipe};
use crate::sets;

/// The stream with its classes called by `data.class_names`, else as the card of the data set has them, else by their own
/// names with spaces.
pub fn named(recipe: &Recipe, stream: Stream) -> Result<Stream> {
    let names = called(recipe, &stream.class_names)?;
    Ok(match names {
        Some(names) => stream.named(&names),
        None => stream,
    })
}

/// The same of a list of classes; `None` where their own names are taken.
pub fn called(recipe: &Recipe, classes: &[String]) -> Result<Option<Vec<String>>> {
    let data = &recipe.data;
    if let Some(path) = &data.class_names {
        let origin = path.display().to_string();
        let text =
            std::fs::read_to_string(path).with_context(|| format!("data.class_names: {origin}"))?;
        let table = read(&text, &origin)?;
        let names = classes.iter().map(|class| {
            table.get(class).cloned().ok_or_else(|| {
                anyhow!(
                    "data.class_names: {origin} has no line for class `{class}`; it needs one for each of the {} classes",
                    classes.len()
                )
            })
        });
        return Ok(Some(names.collect::<Result<_>>()?));
    }
    // The data set of a class, and what it is called there.
    let sets: BTreeMap<String, &str> = data
        .sets
        .iter()
        .filter_map(|set| Some((set.called(), set.name.as_deref()?)))
        .collect();
    let mut tables = BTreeMap::new();
    let mut names = Vec::with_capacity(classes.len());
    for class in classes {
        let (set, own) = match class.split_once('/') {
            Some((set, own)) if !data.sets.is_empty() => (sets.get(set).copied(), own),
            _ => (data.name.as_deref(), class.as_str()),
        };
        let table = match set.filter(|name| *name != DEMO) {
            Some(name) if !tables.contains_key(name) => {
                let text = sets::card(name)?.words().unwrap_or_default();
                tables.insert(name, read(text, name)?);
                tables.get(name)
            }
            Some(name) => tables.get(name),
            None => None,
        };
        // Of a card's data set others may have copies with names of their own.
        let called = table.and_then(|table| table.get(own)).cloned();
        names.push(called.unwrap_or_else(|| words(own)));
    }
    Ok(Some(names))
}

/// Lines of class and words.
fn read(text: &str, origin: &str) -> Result<BTreeMap<String, String>> {
    let mut table = BTreeMap::new();
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .trim(csv::Trim::All)
        .from_reader(text.as_bytes());
    for (i, line) in reader.deserialize().enumerate() {
        let (class, words): (String, String) = line.with_context(|| {
            format!(
                "data.class_names: {origin}: line {}: expected CLASS,WORDS",
                i + 1
            )
        })?;
        if words.is_empty() {
            bail!("data.class_names: {origin}: class `{class}` has no words");
        }
        if table.insert(class.clone(), words).is_some() {
            bail!("data.class_names: {origin}: class `{class}` has two lines; leave one");
        }
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_class_and_words() {
        let table = read("n1,goldfish\nn2, great white shark\nn3,\"a, b\"\n", "f").unwrap();
        assert_eq!(table["n2"], "great white shark");
        assert_eq!(table["n3"], "a, b");
        for (text, says) in [
            ("n1", "CLASS,WORDS"),
            ("n1,a\nn1,b", "two lines"),
            ("n1,", "no words"),
        ] {
            let error = format!("{:#}", read(text, "f").unwrap_err());
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn cards_know_the_words_of_their_numbers() {
        for name in ["imagenet-r", "imagenet-a"] {
            let table = read(sets::card(name).unwrap().words().unwrap(), name).unwrap();
            assert_eq!(table.len(), 200);
            assert_eq!(table["n01531178"], "goldfinch");
        }
    }
}
