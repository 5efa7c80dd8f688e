//! Several archives as one, for data sets that come in pieces.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candlewick_data::Result;

use super::{Entry, Tree};

pub(crate) struct Many {
    path: PathBuf,
    trees: Vec<Arc<dyn Tree>>,
    entries: Vec<Entry>,
    folders: Vec<String>,
    /// The tree of each entry, and its number there.
    at: Vec<(usize, usize)>,
}

impl Many {
    /// `path` names all of them in messages. Each tree loses so many folders above its files, and stands in one, if that is
    /// named.
    pub(crate) fn new(
        path: &Path,
        trees: Vec<(Option<String>, usize, Arc<dyn Tree>)>,
    ) -> Result<Self> {
        let mut many = Self {
            path: path.into(),
            trees: Vec::new(),
            entries: Vec::new(),
            folders: Vec::new(),
            at: Vec::new(),
        };
        for (number, (folder, root, tree)) in trees.into_iter().enumerate() {
            let named = |name: &str| {
                let below = name.splitn(root + 1, '/').nth(root)?;
                Some(match &folder {
                    Some(folder) => format!("{folder}/{below}"),
                    None => below.to_owned(),
                })
            };
            for (inner, entry) in tree.entries().iter().enumerate() {
                let Some(name) = named(&entry.name) else {
                    continue;
                };
                let size = entry.size;
                many.entries.push(Entry { name, size });
                many.at.push((number, inner));
            }
            let folders = tree.folders().iter();
            many.folders.extend(folders.filter_map(|name| named(name)));
            many.trees.push(tree);
        }
        super::distinct(path, &many.entries)?;
        Ok(many)
    }
}

impl Tree for Many {
    fn path(&self) -> &Path {
        &self.path
    }

    fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn folders(&self) -> &[String] {
        &self.folders
    }

    fn read(&self, entry: usize, from: u64, len: usize) -> Result<Vec<u8>> {
        let (tree, inner) = self.at[entry];
        self.trees[tree].read(inner, from, len)
    }

    fn place(&self, entry: usize) -> String {
        let (tree, inner) = self.at[entry];
        self.trees[tree].place(inner)
    }
}
