//! What is known about a data set: one TOML file each, embedded into the binary.

use std::fmt;
use std::sync::LazyLock;

use include_dir::{Dir, include_dir};
use serde::{Deserialize, Serialize};

use crate::read::Reading;

static CARDS: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/cards");
static NAMES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/names");

/// A number of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Images {
    /// For training and for testing.
    Divided([usize; 2]),
    /// In one piece.
    Whole(usize),
}

impl Images {
    /// All together.
    pub fn total(self) -> usize {
        match self {
            Self::Divided([train, test]) => train + test,
            Self::Whole(all) => all,
        }
    }
}

impl fmt::Display for Images {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Divided([train, test]) => write!(f, "{train} + {test}"),
            Self::Whole(all) => write!(f, "{all}"),
        }
    }
}

/// A data set: what it is, who divides it how, and where it can be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// The name a recipe uses, and that of the card's file.
    pub name: String,
    /// One line for a list.
    pub about: String,
    /// Number of classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<usize>,
    /// Number of images; a source that has others says so itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<Images>,
    /// Licence or terms, as their publishers state them.
    pub licence: String,
    /// The paper.
    pub paper: String,
    /// The page of its publishers.
    pub page: String,
    /// How it is divided, and by whom.
    pub divided: String,
    /// Where the names of the classes come from.
    pub class_names: String,
    /// The names of the classes in natural order, for sources that do not carry them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// A file in `names/` of class and words, for classes that are called by numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub words: Option<String>,
    /// Where it can be had, the one that is taken by default first.
    #[serde(rename = "source")]
    pub sources: Vec<Source>,
}

impl Card {
    /// Lines of class and words, where it has them.
    pub fn words(&self) -> Option<&'static str> {
        NAMES.get_file(self.words.as_deref()?)?.contents_utf8()
    }
}

/// One place to have a data set from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// For `--source`.
    pub name: String,
    /// What it is, and where its figures are published.
    pub about: String,
    /// What to do, where a program cannot fetch it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_hand: Option<String>,
    /// Number of images, where it differs from the card's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<Images>,
    /// A dataset repository on the Hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<HubFiles>,
    /// Files from plain addresses, or by hand.
    #[serde(default, rename = "file", skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<File>,
    /// How its files are read, where they do not tell.
    #[serde(default, skip_serializing_if = "is_default")]
    pub reading: Reading,
}

fn is_default(reading: &Reading) -> bool {
    *reading == Reading::default()
}

/// Files of a dataset repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HubFiles {
    /// `organisation/name`.
    pub repo: String,
    /// Commit, tag or branch; a branch is pinned to its commit at first use.
    pub revision: String,
    /// Which files: names, with `*` for any part of one.
    pub files: Vec<String>,
}

impl HubFiles {
    /// Whether a file of the repository is one of them.
    pub fn wants(&self, file: &str) -> bool {
        self.files.iter().any(|pattern| matches(pattern, file))
    }
}

/// A file to fetch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// As it is kept.
    pub name: String,
    /// Where it is; absent where it is fetched by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Length in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// MD5, as the publishers state it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub md5: Option<String>,
    /// SHA-256, as somebody who read it states it. With neither digest, it is recorded at first use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// `*` stands for any part of a name, also one with slashes.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, tail)) => name.strip_prefix(head).is_some_and(|rest| {
            let mut starts = (0..=rest.len()).filter(|i| rest.is_char_boundary(*i));
            starts.any(|i| matches(tail, &rest[i..]))
        }),
    }
}

/// A card shows itself as the TOML it was read from.
impl fmt::Display for Card {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = toml::to_string(self).map_err(|_| fmt::Error)?;
        f.write_str(text.trim_end())
    }
}

/// All cards by name. A card that cannot be read is left out; a test holds that there is none.
pub fn list() -> &'static [Card] {
    static LIST: LazyLock<Vec<Card>> = LazyLock::new(|| {
        let texts = CARDS.files().filter_map(include_dir::File::contents_utf8);
        let mut cards: Vec<Card> = texts.filter_map(|text| toml::from_str(text).ok()).collect();
        cards.sort_by(|a, b| a.name.cmp(&b.name));
        cards
    });
    &LIST
}

/// The card of that name.
pub fn find(name: &str) -> Option<&'static Card> {
    list().iter().find(|card| card.name == name)
}

/// The card spelled most alike, if one is.
pub fn nearest(name: &str) -> Option<&'static str> {
    let distance = |card: &&Card| strsim::damerau_levenshtein(&card.name, name);
    let best = list().iter().min_by_key(distance)?;
    (distance(&best) <= 1 + name.len() / 3).then_some(best.name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_card_is_complete() {
        let files: Vec<_> = CARDS.files().collect();
        for file in &files {
            let text = file.contents_utf8().unwrap();
            let card: Card =
                toml::from_str(text).unwrap_or_else(|e| panic!("{}: {e}", file.path().display()));
            assert_eq!(
                file.path().file_stem().unwrap().to_str(),
                Some(card.name.as_str())
            );
        }
        assert_eq!(files.len(), list().len());
        for card in list() {
            let name = &card.name;
            assert!(!card.sources.is_empty(), "{name}");
            if let (Some(classes), false) = (card.classes, card.names.is_empty()) {
                assert_eq!(card.names.len(), classes, "{name}");
            }
            let mut names: Vec<&str> = card.sources.iter().map(|s| s.name.as_str()).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), card.sources.len(), "{name}");
            for source in &card.sources {
                let name = format!("{name}/{}", source.name);
                let fetched = source.hub.is_some() || source.files.iter().any(|f| f.url.is_some());
                assert_eq!(
                    fetched,
                    source.by_hand.is_none(),
                    "{name}: either a place or what to do by hand"
                );
                for file in &source.files {
                    assert_eq!(file.url.is_some(), source.by_hand.is_none(), "{name}");
                    let hex = |text: &Option<String>, len: usize| {
                        text.as_ref().is_none_or(|text| {
                            let lower = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
                            text.len() == len && text.bytes().all(lower)
                        })
                    };
                    assert!(hex(&file.md5, 32) && hex(&file.sha256, 64), "{name}");
                    assert!(!file.name.contains("..") && !file.name.starts_with('/'));
                }
            }
        }
    }

    #[test]
    fn a_card_shows_itself_as_the_toml_it_is_read_from() {
        for card in list() {
            let text = card.to_string();
            assert_eq!(&toml::from_str::<Card>(&text).unwrap(), card, "{text}");
        }
    }

    #[test]
    fn a_star_stands_for_any_part() {
        for (pattern, name, fits) in [
            ("data/*.parquet", "data/train-0.parquet", true),
            ("data/*.parquet", "data/train-0.txt", false),
            ("data/train-*.parquet", "data/test-0.parquet", false),
            ("a*b*c", "a1b2b3c", true),
            ("x", "x", true),
            ("x", "xy", false),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn misspellings_find_the_nearest() {
        assert_eq!(nearest("imagenetr"), Some("imagenet-r"));
        assert_eq!(nearest("cifar-100"), Some("cifar100"));
        assert_eq!(nearest("!!"), None);
    }
}
