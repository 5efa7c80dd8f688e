//! Domain-incremental streams: the same classes again and again, each time in another domain.

use std::collections::BTreeSet;
use std::sync::Arc;

use candlewick_core::task::words;
use candlewick_core::{Scenario, Split as _, Stream, Task, TaskInfo};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::loader::Loader;
use crate::order::Order;
use crate::source::{Parts, Source};
use crate::stream::unpaired;

/// Where the name of an image says its domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Domain {
    /// The file's name without its ending: `train/cat/noto.png` is `noto`.
    File,
    /// The folder it is in, below that of the class: `train/cat/sketch/1.png` is `sketch`.
    Folder,
}

impl Domain {
    /// The domain of an image by its name, a path with `/`.
    pub fn of(self, name: &str) -> &str {
        let mut parts = name.rsplit('/');
        let file = parts.next().unwrap_or_default();
        match self {
            Self::File => file.rsplit_once('.').map_or(file, |(stem, _)| stem),
            Self::Folder => parts.next().unwrap_or_default(),
        }
    }
}

/// That images lie in folders below those of their classes, which would be taken for domains otherwise.
fn has_folders(source: &dyn Source) -> Result<()> {
    let bare = |i: &usize| {
        let name = source.name(*i);
        let class = source.classes().get(source.label(*i)).cloned();
        let mut folders = name.rsplit('/').skip(1).map(str::to_owned);
        let (inner, outer) = (folders.next(), folders.next());
        inner == class && outer != class
    };
    match (0..source.len()).find(bare) {
        None => Ok(()),
        Some(i) => {
            let problem = format!(
                "\"folder\" is the one below the class, but `{}` lies in that of its class; move images into folders of their domains, or set \"file\"",
                source.name(i)
            );
            Err(Error::setting("domain", problem))
        }
    }
}

/// Puts a data set into a domain-incremental stream: a task for each domain, in `order` of their sorted names.
///
/// Labels are the natural order of the classes. A class need not have images in every domain; before its first one it
/// cannot be predicted. Within a split, images are as the source lists them; ids are those of
/// [`class_incremental`](crate::class_incremental).
///
/// # Errors
/// [`Error::UnpairedClass`] when the parts do not have the same classes, [`Error::Setting`] for `order`, or for `domain` when
/// one has no training or no test images.
pub fn domain_incremental(
    parts: &Parts,
    domain: Domain,
    order: &Order,
    loader: &Loader,
) -> Result<Stream> {
    let classes = parts.train.classes();
    if classes != parts.test.classes() {
        return Err(unpaired(classes, parts.test.classes()));
    }
    let mut names = BTreeSet::new();
    for source in [&parts.train, &parts.test] {
        names.extend((0..source.len()).map(|i| domain.of(&source.name(i)).to_owned()));
    }
    if domain == Domain::Folder {
        for source in [&parts.train, &parts.test] {
            has_folders(source.as_ref())?;
        }
    }
    let names: Vec<String> = names.into_iter().collect();
    let domains: Vec<String> = order
        .resolve_of(&names, ["domain", "domains"])?
        .into_iter()
        .map(|i| names[i].clone())
        .collect();
    let mut tasks = Vec::with_capacity(domains.len());
    for (index, name) in domains.iter().enumerate() {
        let split = |what: &str, source: &Arc<dyn Source>, first_id: u64| {
            let members: Vec<usize> = (0..source.len())
                .filter(|&i| domain.of(&source.name(i)) == name)
                .collect();
            if members.is_empty() {
                let problem = format!(
                    "`{name}` has no {what} images; a domain is learned and tested, so give it some or leave it out"
                );
                return Err(Error::setting("domain", problem));
            }
            let labels = members.iter().map(|&i| source.label(i) as u32).collect();
            loader.split(Arc::clone(source), members, labels, first_id, index as u64)
        };
        let train = Arc::new(split("training", &parts.train, 0)?);
        let test = Arc::new(split("test", &parts.test, parts.train.len() as u64)?);
        let info = TaskInfo {
            index,
            classes: 0..classes.len(),
            names: classes.iter().map(|class| words(class)).collect(),
            train_len: train.len(),
            test_len: test.len(),
        };
        tasks.push(Task { info, train, test });
    }
    Ok(Stream {
        scenario: Scenario::DomainIncremental(domains),
        tasks,
        class_names: classes.to_vec(),
    })
}
