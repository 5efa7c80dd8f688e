//! Sentences around class names, in which CLIP knows them better than alone.

use candlewick_core::{Error, Result};
use serde::{Deserialize, Serialize};

/// The `templates` of a method that reads class names: the name of a published list, or sentences of one's own, each with `{}` where the
/// name of a class goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected \"cifar\", \"imagenet\", \"imagenet-r\" or a list of sentences with {} for the class"
)]
pub enum Templates {
    /// A published list.
    Published(Published),
    /// Sentences of one's own.
    Own(Vec<String>),
}

/// Lists that were published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Published {
    /// The 18 of [`CIFAR`].
    Cifar,
    /// The 80 of [`IMAGENET`].
    Imagenet,
    /// The 7 of [`IMAGENET_R`].
    ImagenetR,
}

impl Default for Templates {
    /// "a photo of a {}."
    fn default() -> Self {
        Self::Own(vec!["a photo of a {}.".to_owned()])
    }
}

impl Templates {
    /// The sentences.
    pub fn all(&self) -> Vec<&str> {
        match self {
            Self::Published(Published::Cifar) => CIFAR.to_vec(),
            Self::Published(Published::Imagenet) => IMAGENET.to_vec(),
            Self::Published(Published::ImagenetR) => IMAGENET_R.to_vec(),
            Self::Own(own) => own.iter().map(String::as_str).collect(),
        }
    }

    /// That there is one, and a place for the name in each.
    pub fn check(&self) -> Result<()> {
        let all = self.all();
        let problem = match all.iter().find(|t| t.matches("{}").count() != 1) {
            Some(bad) => format!("`{bad}` needs one `{{}}`, where the name of a class goes"),
            None if all.is_empty() => {
                "expected at least one sentence such as \"a photo of a {}.\", found none".into()
            }
            None => return Ok(()),
        };
        Err(Error::setting("method.templates", problem))
    }

    /// The sentences about a class.
    pub fn about(&self, name: &str) -> Vec<String> {
        self.all().iter().map(|t| t.replace("{}", name)).collect()
    }
}

/// Of CIFAR-10 and CIFAR-100 (`openai/CLIP:data/prompts.md`).
pub const CIFAR: [&str; 18] = [
    "a photo of a {}.",
    "a blurry photo of a {}.",
    "a black and white photo of a {}.",
    "a low contrast photo of a {}.",
    "a high contrast photo of a {}.",
    "a bad photo of a {}.",
    "a good photo of a {}.",
    "a photo of a small {}.",
    "a photo of a big {}.",
    "a photo of the {}.",
    "a blurry photo of the {}.",
    "a black and white photo of the {}.",
    "a low contrast photo of the {}.",
    "a high contrast photo of the {}.",
    "a bad photo of the {}.",
    "a good photo of the {}.",
    "a photo of the small {}.",
    "a photo of the big {}.",
];

/// The seven that stand for the eighty, which PROOF takes for ImageNet-R (`openai/CLIP:notebooks/Prompt_Engineering_for_ImageNet.ipynb`,
/// `LAMDA-CL/PROOF:utils/templates.json`).
pub const IMAGENET_R: [&str; 7] = [
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
];

/// Of ImageNet (`openai/CLIP:notebooks/Prompt_Engineering_for_ImageNet.ipynb`).
pub const IMAGENET: [&str; 80] = [
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "a photo of a {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a plushie {}.",
    "a photo of the nice {}.",
    "a photo of the small {}.",
    "a photo of the weird {}.",
    "the cartoon {}.",
    "art of the {}.",
    "a drawing of the {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "the plushie {}.",
    "a dark photo of a {}.",
    "itap of a {}.",
    "graffiti of the {}.",
    "a toy {}.",
    "itap of my {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "a tattoo of the {}.",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Table {
        templates: Templates,
    }

    fn read(text: &str) -> Templates {
        toml::from_str::<Table>(text).unwrap().templates
    }

    #[test]
    fn lists_have_their_published_lengths_and_a_place_for_the_name() {
        for (name, n) in [("cifar", 18), ("imagenet", 80), ("imagenet-r", 7)] {
            let list = read(&format!("templates = \"{name}\""));
            list.check().unwrap();
            let mut all = list.all();
            assert_eq!(all.len(), n);
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), n, "{name} says one twice");
        }
        assert!(IMAGENET_R.iter().all(|t| IMAGENET.contains(t)));
        assert_eq!(
            read("templates = \"cifar\"").about("cat")[1],
            "a blurry photo of a cat."
        );
    }

    #[test]
    fn sentences_without_a_place_are_refused() {
        assert_eq!(
            Templates::default().about("red fox"),
            ["a photo of a red fox."]
        );
        for (text, says) in [
            ("templates = [\"a photo\"]", "`a photo` needs one `{}`"),
            ("templates = [\"{} and {}\"]", "needs one `{}`"),
            ("templates = []", "found none"),
        ] {
            let error = read(text).check().unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        assert!(toml::from_str::<Table>("templates = \"imagnet\"").is_err());
    }
}
