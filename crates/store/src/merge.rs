//! Several stores into one.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::{Error, Result};
use crate::format::{Key, hex};
use crate::read::Store;
use crate::write::{Writer, folder, sync_folder};

/// Puts the features of `parts` into `into`, in the order of their keys, and gives their number. What `into` had stays.
///
/// A data set is extracted in the order of the keys, so the merged shards of a data set and the file of a single machine
/// are equal byte for byte. The file is written under another name and renamed.
///
/// # Errors
/// When parts differ in their identity, or in the feature of an image; then `into` is left as it was.
pub fn merge(parts: &[Store], into: &Path) -> Result<usize> {
    let Some(first) = parts.first() else {
        return Ok(0);
    };
    let identity = first.identity();
    // Nobody else may append to it meanwhile.
    let held = match into.exists() {
        true => Some(Writer::open(into, identity, || ())?),
        false => None,
    };
    let before = Store::open_as(into, identity)?;
    let mut rows: BTreeMap<Key, &Store> = BTreeMap::new();
    for part in before.iter().chain(parts) {
        identity.expect(part.identity(), part.path())?;
        for key in part.keys() {
            match rows.insert(*key, part) {
                Some(other) if row(other, key) != row(part, key) => {
                    return Err(Error::Disagree {
                        path: part.path().into(),
                        other: other.path().into(),
                        image: hex(key),
                    });
                }
                _ => {}
            }
        }
    }
    let folder = folder(into);
    std::fs::create_dir_all(folder).map_err(Error::io("make the folder of", into))?;
    let temporary = tempfile::Builder::new()
        .prefix(".candlewick-")
        .tempdir_in(folder)
        .map_err(Error::io("write beside", into))?;
    let path = temporary.path().join("merged");
    let mut writer = Writer::open(&path, identity, || ())?;
    for (key, part) in &rows {
        writer.push(*key, row(part, key))?;
    }
    writer.finish()?;
    std::fs::rename(&path, into).map_err(Error::io("put in place", into))?;
    sync_folder(into)?;
    drop(held);
    Ok(rows.len())
}

fn row(store: &Store, key: &Key) -> Vec<f32> {
    let mut row = Vec::with_capacity(store.identity().dim);
    store.read(key, &mut row);
    row
}
