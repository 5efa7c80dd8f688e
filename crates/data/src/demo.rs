//! A small data set inside the program: 50 concepts, drawn in eight or nine styles.

use std::borrow::Cow;
use std::sync::Arc;

use include_dir::{Dir, include_dir};

use crate::error::Result;
use crate::source::{MemoryImage, MemorySource, Parts};

static FILES: Dir = include_dir!("$CARGO_MANIFEST_DIR/emoji-r-mini");

/// What the embedded images are, who drew them and under which licences they may be passed on.
pub const DEMO_ATTRIBUTION: &str = include_str!("../emoji-r-mini/ATTRIBUTION.md");

/// The embedded data set: 50 classes, 332 training and 100 test images of 112 x 112 pixels. It is meant for trying
/// things out: few images, strong changes of style. See [`DEMO_ATTRIBUTION`].
///
/// # Errors
/// None that can happen with the files as they are embedded.
pub fn demo() -> Result<Parts> {
    Ok(Parts {
        train: Arc::new(part("train")?),
        test: Arc::new(part("test")?),
    })
}

fn part(name: &str) -> Result<MemorySource> {
    let mut folders: Vec<&Dir> = FILES
        .get_dir(name)
        .into_iter()
        .flat_map(Dir::dirs)
        .collect();
    folders.sort_by_key(|folder| folder.path());
    let (mut classes, mut images) = (Vec::new(), Vec::new());
    for folder in folders {
        let mut files: Vec<_> = folder.files().collect();
        files.sort_by_key(|file| file.path());
        images.extend(files.into_iter().map(|file| MemoryImage {
            name: file.path().to_string_lossy().replace('\\', "/"),
            label: classes.len(),
            bytes: Cow::Borrowed(file.contents()),
        }));
        classes.push(
            folder
                .path()
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default(),
        );
    }
    MemorySource::new(classes, images)
}
