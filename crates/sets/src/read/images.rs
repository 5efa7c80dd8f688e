//! Image files in archives, by the folders they lie in.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use candlewick_data::folder::is_image;
use candlewick_data::{Bytes, Error, Result};

use super::{Layout, Part, Reader, Reading, Row, Table};
use crate::tree::{Tree, broken, read_error};

/// The images of a tree.
pub(crate) struct Images {
    pub tree: Arc<dyn Tree>,
    pub reading: Reading,
}

/// A path from the folder of the classes on.
struct Found<'a> {
    part: Part,
    class: &'a str,
    rest: String,
    entry: usize,
}

impl Reader for Images {
    fn table(&self) -> Result<Table> {
        let entries = self.tree.entries();
        let paths = paths(self.tree.as_ref());
        let refuse = |problem: &str| Err(broken(self.tree.path(), problem));
        if paths.is_empty() {
            return refuse(
                "there are no images in it: expected CLASS/IMAGE, maybe below train and test",
            );
        }
        let depth = depth(self.reading.layout);
        let root = root(&paths, depth);
        let below: Vec<(usize, &[String])> =
            paths.iter().map(|(i, path)| (*i, &path[root..])).collect();
        let parted = below
            .iter()
            .filter(|(_, path)| path.len() >= depth)
            .all(|(_, path)| path.len() > depth && Part::named(&path[0]).is_some());
        let mut lists = self.lists()?;
        let mut found = Vec::with_capacity(below.len());
        for (entry, path) in below {
            let (part, path) = match path {
                [part, path @ ..] if parted => (Part::named(part).unwrap_or(Part::Whole), path),
                path => (Part::Whole, path),
            };
            let part = match &mut lists {
                None => part,
                Some(lists) => match lists.take(&entries[entry].name) {
                    Some(part) => part,
                    None => continue,
                },
            };
            found.extend(self.place(entry, part, path));
        }
        if let Some(lists) = lists {
            lists.all_taken(&self.tree)?;
        }
        if found.is_empty() {
            return refuse("its images lie in no folders: expected CLASS/IMAGE");
        }
        let classes: BTreeSet<&str> = found.iter().map(|image| image.class).collect();
        let classes: Vec<&str> = classes.into_iter().collect();
        if self.reading.layout == Layout::Class {
            self.no_empty_class(&paths, root, parted, &classes)?;
        }
        let rows = found.iter().map(|image| Row {
            part: image.part,
            class: classes.binary_search(&image.class).unwrap_or_default(),
            rest: image.rest.clone(),
            size: entries[image.entry].size,
            at: image.entry,
        });
        Ok(Table {
            root: self.tree.path().into(),
            rows: rows.collect(),
            classes: classes.iter().map(|class| (*class).to_owned()).collect(),
            bytes: Arc::new(Files(self.tree.clone())),
        })
    }
}

impl Images {
    /// The lists of the source, if it has some.
    fn lists(&self) -> Result<Option<Lists>> {
        let (train, test) = (&self.reading.train_lists, &self.reading.test_lists);
        if train.is_empty() && test.is_empty() {
            return Ok(None);
        }
        let beside = match self.tree.path() {
            path if path.is_dir() => path,
            path => path.parent().unwrap_or(path),
        };
        let mut found = HashMap::new();
        for (lists, part) in [(train, Part::Train), (test, Part::Test)] {
            for list in lists {
                let path = beside.join(list);
                let text = fs::read_to_string(&path).map_err(read_error(&path))?;
                for name in text
                    .lines()
                    .filter_map(|line| line.split_whitespace().next())
                {
                    if found
                        .insert(name.to_owned(), (part, path.clone(), false))
                        .is_some()
                    {
                        let problem = format!("`{name}` is listed twice; each image has one place");
                        return Err(Error::List { path, problem });
                    }
                }
            }
        }
        Ok(Some(Lists(found)))
    }

    fn place<'a>(&self, entry: usize, part: Part, path: &'a [String]) -> Option<Found<'a>> {
        match (self.reading.layout, path) {
            (Layout::Class, [class, rest @ ..]) if !rest.is_empty() => Some(Found {
                part,
                class,
                rest: rest.join("/"),
                entry,
            }),
            (Layout::DomainClass, [domain, class, rest @ ..]) if !rest.is_empty() => {
                let part = match &self.reading.test_domains {
                    none if none.is_empty() => part,
                    test if test.contains(domain) => Part::Test,
                    _ => Part::Train,
                };
                Some(Found {
                    part,
                    class,
                    rest: format!("{domain}/{}", rest.join("/")),
                    entry,
                })
            }
            // Images beside the folders of the classes are no part of the set.
            _ => None,
        }
    }

    /// A folder among those of the classes that has no images, as an image folder with it would be refused.
    fn no_empty_class(
        &self,
        paths: &[(usize, Vec<String>)],
        root: usize,
        parted: bool,
        classes: &[&str],
    ) -> Result<()> {
        let above = paths.first().map_or(&[][..], |(_, path)| &path[..root]);
        for folder in self.tree.folders() {
            let path: Vec<&str> = folder.split('/').collect();
            let is_below = path.len() > root && path.iter().zip(above).all(|(a, b)| a == b);
            let class = match (is_below, parted, path.get(root..)) {
                (true, false, Some([class])) => *class,
                (true, true, Some([part, class])) if Part::named(part).is_some() => *class,
                _ => continue,
            };
            if !class.starts_with('.') && classes.binary_search(&class).is_err() {
                return Err(Error::EmptyClass {
                    path: self.tree.path().join(folder),
                });
            }
        }
        Ok(())
    }
}

/// What the lists of a source say, and what of it was found.
struct Lists(HashMap<String, (Part, PathBuf, bool)>);

impl Lists {
    /// The part of an image by its path, below whatever folder the archive puts it in.
    fn take(&mut self, name: &str) -> Option<Part> {
        let mut rest = name;
        while !self.0.contains_key(rest) {
            rest = rest.split_once('/')?.1;
        }
        let (part, _, taken) = self.0.get_mut(rest)?;
        *taken = true;
        Some(*part)
    }

    fn all_taken(&self, tree: &Arc<dyn Tree>) -> Result<()> {
        let missing = self.0.iter().filter(|(_, (_, _, taken))| !taken);
        let missing: Vec<(&String, &PathBuf)> =
            missing.map(|(name, (_, at, _))| (name, at)).collect();
        match missing.iter().min() {
            None => Ok(()),
            Some((name, list)) => Err(Error::List {
                path: (*list).clone(),
                problem: format!(
                    "{} of {} images are not in {}, the first is `{name}`; is the data set complete, and the list of this one?",
                    missing.len(),
                    self.0.len(),
                    tree.path().display()
                ),
            }),
        }
    }
}

/// Parts of the paths from domain or class on.
fn depth(layout: Layout) -> usize {
    match layout {
        Layout::Class => 2,
        Layout::DomainClass => 3,
    }
}

/// The images of a tree, by their entries.
fn paths(tree: &dyn Tree) -> Vec<(usize, Vec<String>)> {
    let entries = tree.entries().iter().enumerate();
    let images = entries.filter(|(_, entry)| is_image(&entry.name) && !hidden(&entry.name));
    let split = |name: &str| name.split('/').map(str::to_owned).collect();
    images.map(|(i, entry)| (i, split(&entry.name))).collect()
}

/// How many folders all images of a tree share above those of the parts or classes.
pub(crate) fn root_of(tree: &dyn Tree, layout: Layout) -> usize {
    root(&paths(tree), depth(layout))
}

fn hidden(name: &str) -> bool {
    name.split('/').any(|part| part.starts_with('.'))
}

/// How many folders all images share above those of the parts or classes.
fn root(paths: &[(usize, Vec<String>)], depth: usize) -> usize {
    let mut root = 0;
    loop {
        let Some(first) = paths.first().and_then(|(_, path)| path.get(root)) else {
            return root;
        };
        let shared = paths
            .iter()
            .all(|(_, path)| path.len() > root + 1 && path[root] == *first);
        let room = paths.iter().any(|(_, path)| path.len() >= root + 1 + depth);
        if !shared || !room {
            return root;
        }
        root += 1;
    }
}

/// The part that the name of an archive or shard speaks of: `train.zip`, `test-00000-of-00001.parquet`.
pub(crate) fn part_of(name: &str) -> Option<Part> {
    let name = name.rsplit('/').next().unwrap_or(name);
    let word = name.split(['.', '-']).next().unwrap_or(name);
    Part::named(word)
}

/// Whole files of a tree.
struct Files(Arc<dyn Tree>);

impl Bytes for Files {
    fn read(&self, at: usize) -> Result<Vec<u8>> {
        let size = self.0.entries()[at].size;
        self.0.read(at, 0, size as usize)
    }

    fn place(&self, at: usize) -> String {
        self.0.place(at)
    }
}
