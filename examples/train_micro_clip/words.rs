//! What is said of a concept, and the tokenizer that is trained on it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::BpeTrainer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

use crate::Result;

/// What names are put into; a class is asked for by any of them.
pub const TEMPLATES: [&str; 3] = ["{}", "a photo of a {}", "an emoji of {}"];

/// Names and keywords of every concept; phrases that concepts share have one number.
pub struct Words {
    phrases: Vec<String>,
    /// By concept: first its name, then its keywords.
    of: Vec<Vec<usize>>,
    sets: Vec<BTreeSet<usize>>,
}

/// A text for one concept, and the phrases that are in it.
pub struct Said {
    pub text: String,
    phrases: Vec<usize>,
}

impl Words {
    /// Reads `{"CONCEPT": ["name", "keyword", …]}` for `concepts` in their order.
    pub fn open(path: &Path, concepts: &[String]) -> Result<Self> {
        let name = path.display();
        let text = std::fs::read_to_string(path).map_err(|e| format!("{name}: {e}"))?;
        let all: BTreeMap<String, Vec<String>> =
            serde_json::from_str(&text).map_err(|e| format!("{name}: {e}"))?;
        let (mut phrases, mut numbers) = (Vec::new(), BTreeMap::new());
        let mut of = Vec::new();
        for concept in concepts {
            let texts = all.get(concept).filter(|texts| !texts.is_empty());
            let texts = texts.ok_or_else(|| {
                format!("{name}: nothing is said of `{concept}`; give a list with its name first")
            })?;
            let number = |text: &String| {
                *numbers.entry(text.clone()).or_insert_with(|| {
                    phrases.push(text.clone());
                    phrases.len() - 1
                })
            };
            of.push(texts.iter().map(number).collect::<Vec<usize>>());
        }
        let sets = of.iter().map(|of| of.iter().copied().collect()).collect();
        Ok(Self { phrases, of, sets })
    }

    pub fn name(&self, concept: usize) -> &str {
        &self.phrases[self.of[concept][0]]
    }

    /// Everything that is said of some concepts, once for each.
    pub fn all(&self, concepts: &[usize]) -> Vec<&str> {
        let of = concepts.iter().flat_map(|c| &self.of[*c]);
        of.map(|phrase| self.phrases[*phrase].as_str()).collect()
    }

    /// The name (one in two), a keyword (one in four) or several phrases in any order; `drop` is the chance of a word of a longer
    /// name to be left out.
    pub fn say(&self, concept: usize, drop: f64, rng: &mut ChaCha8Rng) -> Said {
        let of = &self.of[concept];
        let phrases: Vec<usize> = match rng.random_range(0..4) {
            0 | 1 => vec![of[0]],
            2 => of.choose(rng).copied().into_iter().collect(),
            _ => of.choose_multiple(rng, 3).copied().collect(),
        };
        let texts: Vec<String> = phrases
            .iter()
            .map(|phrase| shortened(&self.phrases[*phrase], drop, rng))
            .collect();
        let template = TEMPLATES[match rng.random_range(0..4) {
            2 => 1,
            3 => 2,
            _ => 0,
        }];
        Said {
            text: template.replace("{}", &texts.join(" ")),
            phrases,
        }
    }

    /// Whether a text may as well have been said of another concept.
    pub fn holds(&self, said: &Said, concept: usize) -> bool {
        said.phrases.iter().all(|p| self.sets[concept].contains(p))
    }
}

fn shortened(phrase: &str, drop: f64, rng: &mut ChaCha8Rng) -> String {
    let words: Vec<&str> = phrase.split(' ').collect();
    let kept: Vec<&str> = words
        .iter()
        .copied()
        .filter(|_| words.len() == 1 || !rng.random_bool(drop))
        .collect();
    match kept.is_empty() {
        true => phrase.to_owned(),
        false => kept.join(" "),
    }
}

/// Byte-level BPE of lower-case text; hyphens and underscores are blanks, so that names of folders are words.
pub fn train_tokenizer(texts: &[&str], size: usize) -> Result<String> {
    let (start, end) = ("<s>", "</s>");
    let of_text = serde_json::json!([
        {"SpecialToken": {"id": start, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": end, "type_id": 0}}
    ]);
    let untrained = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"},
            {"type": "Lowercase"},
            {"type": "Replace", "pattern": {"Regex": "[-_\\s]+"}, "content": " "},
            {"type": "Strip", "strip_left": true, "strip_right": true}
        ]},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "post_processor": {
            "type": "TemplateProcessing", "single": of_text, "pair": of_text,
            "special_tokens": {
                (start): {"id": start, "ids": [0], "tokens": [start]},
                (end): {"id": end, "ids": [1], "tokens": [end]}
            }
        },
        "model": {"type": "BPE", "vocab": {}, "merges": []}
    });
    let mut tokenizer = Tokenizer::from_bytes(untrained.to_string())?;
    let special = [start, end].map(|token| AddedToken::from(token, true));
    let mut trainer: TrainerWrapper = BpeTrainer::builder()
        .vocab_size(size)
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(special.to_vec())
        .build()
        .into();
    tokenizer.train(&mut trainer, texts.iter().copied())?;
    tokenizer.to_string(false)
}
