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
    let (text, origin) = match (&data.class_names, &data.name) {
        (Some(path), _) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("data.class_names: {}", path.display()))?;
            (text, path.display().to_string())
        }
        (None, Some(name)) if name != DEMO => match sets::card(name)?.words() {
            Some(text) => (text.to_owned(), format!("the card {name}")),
            None => return Ok(None),
        },
        _ => return Ok(None),
    };
    let table = read(&text, &origin)?;
    let own = data.class_names.is_some();
    let names = classes.iter().map(|class| {
        match table.get(class) {
            Some(words) => Ok(words.clone()),
            // Of a card's data set others may have copies with names of their own.
            None if !own => Ok(words(class)),
            None => Err(anyhow!(
                "data.class_names: {origin} has no line for class `{class}`; it needs one for each of the {} classes",
                classes.len()
            )),
        }
    });
    Ok(Some(names.collect::<Result<_>>()?))
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
