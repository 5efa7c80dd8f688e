//! Where images come from: the trait, images in memory, and what every source shares.

use std::borrow::Cow;
use std::sync::Arc;

use image::RgbImage;
use sha2::{Digest, Sha256};

use crate::decode::decode_rgb;
use crate::error::{Error, Result};

/// A labelled set of images that can be read in any order, from several threads at once.
pub trait Source: Send + Sync {
    /// The names of the classes in natural order, the same for the training and the test part of a data set.
    fn classes(&self) -> &[String];

    /// Number of images.
    fn len(&self) -> usize;

    /// True when there is no image in it.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The class of an image, as a position in [`Source::classes`].
    fn label(&self, index: usize) -> usize;

    /// The name of an image, different from all others of the data set: a path below its root.
    fn name(&self, index: usize) -> String;

    /// The decoded image.
    ///
    /// # Errors
    /// When the image cannot be read or decoded; the message names it.
    fn rgb(&self, index: usize) -> Result<RgbImage>;

    /// SHA-256 of what the image is made from: another digest for another picture. By default that of the decoded
    /// pixels; sources of files take the file's bytes, which is faster.
    ///
    /// # Errors
    /// When the image cannot be read; by default also when it cannot be decoded.
    fn content(&self, index: usize) -> Result<[u8; 32]> {
        let image = self.rgb(index)?;
        let mut hash = Sha256::new();
        hash.update(image.width().to_le_bytes());
        hash.update(image.height().to_le_bytes());
        hash.update(image.as_raw());
        Ok(hash.finalize().into())
    }

    /// A digest in hexadecimal of what is in the source; equal digests mean equal images, as far as the source
    /// documents it.
    fn fingerprint(&self) -> String;
}

/// The training and the test part of a data set, with the same classes.
#[derive(Clone)]
pub struct Parts {
    /// What is learnt from.
    pub train: Arc<dyn Source>,
    /// What is tested on.
    pub test: Arc<dyn Source>,
}

impl Parts {
    /// All images as one source: first those of `train`, then those of `test`. The index of an image is its id in a stream.
    pub fn joined(&self) -> Arc<dyn Source> {
        Arc::new(Joined(self.clone()))
    }

    /// Checks the numbers of training and test images against what a recipe states; `data` says in the message
    /// where the data are.
    ///
    /// # Errors
    /// [`Error::WrongCount`] for the first part whose number differs.
    pub fn expect_images(&self, [train, test]: [usize; 2], data: &str) -> Result<()> {
        for (part, expected, found) in [
            ("train", train, self.train.len()),
            ("test", test, self.test.len()),
        ] {
            if expected != found {
                return Err(Error::WrongCount {
                    part,
                    data: data.into(),
                    expected,
                    found,
                });
            }
        }
        Ok(())
    }
}

struct Joined(Parts);

impl Joined {
    fn at(&self, index: usize) -> (&dyn Source, usize) {
        match index.checked_sub(self.0.train.len()) {
            None => (&*self.0.train, index),
            Some(index) => (&*self.0.test, index),
        }
    }
}

impl Source for Joined {
    fn classes(&self) -> &[String] {
        self.0.train.classes()
    }

    fn len(&self) -> usize {
        self.0.train.len() + self.0.test.len()
    }

    fn label(&self, index: usize) -> usize {
        let (source, index) = self.at(index);
        source.label(index)
    }

    fn name(&self, index: usize) -> String {
        let (source, index) = self.at(index);
        source.name(index)
    }

    fn rgb(&self, index: usize) -> Result<RgbImage> {
        let (source, index) = self.at(index);
        source.rgb(index)
    }

    fn content(&self, index: usize) -> Result<[u8; 32]> {
        let (source, index) = self.at(index);
        source.content(index)
    }

    fn fingerprint(&self) -> String {
        self.0.train.fingerprint() + &self.0.test.fingerprint()
    }
}

/// An encoded image in memory.
#[derive(Debug, Clone)]
pub struct MemoryImage {
    /// Its name, for messages and the record.
    pub name: String,
    /// Its class, as a position in the list of classes.
    pub label: usize,
    /// The content of an image file.
    pub bytes: Cow<'static, [u8]>,
}

/// Images in memory. Its fingerprint covers class names, image names, labels and contents.
#[derive(Debug, Clone)]
pub struct MemorySource {
    classes: Vec<String>,
    images: Vec<MemoryImage>,
}

impl MemorySource {
    /// A source of these images in this order.
    ///
    /// # Errors
    /// [`Error::Label`] for an image whose label has no class.
    pub fn new(classes: Vec<String>, images: Vec<MemoryImage>) -> Result<Self> {
        match images.iter().find(|image| image.label >= classes.len()) {
            Some(image) => Err(Error::Label {
                name: image.name.clone(),
                label: image.label,
                classes: classes.len(),
            }),
            None => Ok(Self { classes, images }),
        }
    }
}

impl Source for MemorySource {
    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn len(&self) -> usize {
        self.images.len()
    }

    fn label(&self, index: usize) -> usize {
        self.images[index].label
    }

    fn name(&self, index: usize) -> String {
        self.images[index].name.clone()
    }

    fn rgb(&self, index: usize) -> Result<RgbImage> {
        let image = &self.images[index];
        decode_rgb(&image.bytes, &image.name)
    }

    fn content(&self, index: usize) -> Result<[u8; 32]> {
        Ok(Sha256::digest(&self.images[index].bytes).into())
    }

    fn fingerprint(&self) -> String {
        let images = self.images.iter().map(|image| {
            let content: Vec<u8> = Sha256::digest(&image.bytes).to_vec();
            (image.name.as_str(), image.label, content)
        });
        fingerprint(&self.classes, images)
    }
}

/// SHA-256 over class names and, for each image, name, label and something that stands for its content.
/// Each piece goes in behind its length, so that no two lists run together.
pub(crate) fn fingerprint<'a>(
    classes: &[String],
    images: impl Iterator<Item = (&'a str, usize, Vec<u8>)>,
) -> String {
    let mut hash = Sha256::new();
    let mut put = |piece: &[u8]| {
        hash.update((piece.len() as u64).to_le_bytes());
        hash.update(piece);
    };
    put(&(classes.len() as u64).to_le_bytes());
    for class in classes {
        put(class.as_bytes());
    }
    for (name, label, content) in images {
        put(name.as_bytes());
        put(&(label as u64).to_le_bytes());
        put(&content);
    }
    hash.finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: &str, label: usize, bytes: &'static [u8]) -> MemoryImage {
        MemoryImage {
            name: name.into(),
            label,
            bytes: Cow::Borrowed(bytes),
        }
    }

    fn two() -> Vec<String> {
        vec!["a".into(), "b".into()]
    }

    #[test]
    fn a_label_without_a_class_is_refused() {
        let error = MemorySource::new(two(), vec![image("x.png", 2, b"")]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "image `x.png` has label 2, but there are only 2 classes (labels count from 0)"
        );
    }

    #[test]
    fn the_fingerprint_sees_names_labels_contents_and_classes() {
        let digest = |classes: Vec<String>, images| {
            MemorySource::new(classes, images).unwrap().fingerprint()
        };
        let base = digest(two(), vec![image("x", 0, b"1"), image("y", 1, b"2")]);
        assert_eq!(base.len(), 64);
        for other in [
            digest(two(), vec![image("x", 0, b"1"), image("z", 1, b"2")]),
            digest(two(), vec![image("x", 0, b"1"), image("y", 0, b"2")]),
            digest(two(), vec![image("x", 0, b"1"), image("y", 1, b"3")]),
            digest(two(), vec![image("x", 0, b"1")]),
            digest(
                vec!["a".into(), "c".into()],
                vec![image("x", 0, b"1"), image("y", 1, b"2")],
            ),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn a_stated_number_of_images_is_held_against_what_is_there() {
        let part: Arc<dyn Source> =
            Arc::new(MemorySource::new(two(), vec![image("x", 0, b"")]).unwrap());
        let parts = Parts {
            train: part.clone(),
            test: part,
        };
        assert!(parts.expect_images([1, 1], "here").is_ok());
        assert_eq!(
            parts
                .expect_images([1, 6000], "/d/imagenet-r")
                .unwrap_err()
                .to_string(),
            "wrong image count in the test part of /d/imagenet-r: the recipe states 6000, found 1; \
             is the data set complete, and is it the right version?"
        );
    }
}
