//! What a folder of stores holds, and removing one.

use std::fs::{self, File, TryLockError};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::time::SystemTime;

use crate::error::{Error, Result};
use crate::format::{self, Identity};
use crate::write::same_file;

/// A store by its header and the size of its file.
#[derive(Debug, Clone, PartialEq)]
pub struct Glance {
    /// What its features depend on.
    pub identity: Identity,
    /// Images by the heads of its chunks; [`Store::open`](crate::Store::open) looks at their content too.
    pub images: u64,
    /// Size of the file.
    pub bytes: u64,
    /// When it was written to last.
    pub modified: Option<SystemTime>,
    /// Whether a process holds it to write, now.
    pub busy: bool,
}

/// Looks at the heads in a file and at none of its features, however many there are.
///
/// # Errors
/// [`Error::Foreign`] for what is not a store, [`Error::Damaged`] for a header that is not as it was written,
/// [`Error::Identity`] for one of another version.
pub fn glance(path: &Path) -> Result<Glance> {
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let about = file.metadata().map_err(Error::io("look at", path))?;
    let mut start = Vec::new();
    let read = file
        .by_ref()
        .take(format::MAX_HEADER)
        .read_to_end(&mut start);
    read.map_err(Error::io("read", path))?;
    let header = format::read_header(&start, path)?;
    let (mut images, mut place) = (0, header.end as u64);
    while let Some((rows, end)) = head(&mut file, place)
        .map_err(Error::io("read", path))?
        .and_then(|bytes| format::extent(&bytes, &header, place))
        .filter(|(_, end)| *end <= about.len())
    {
        images += rows;
        place = end;
    }
    Ok(Glance {
        images,
        identity: header.identity,
        bytes: about.len(),
        modified: about.modified().ok(),
        // Shared, so that two who look do not take each other for a writer.
        busy: matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)),
    })
}

/// The bytes of the head at `place`, if the file has as many.
fn head(file: &mut File, place: u64) -> std::io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(place))?;
    file.take(format::HEAD as u64).read_to_end(&mut bytes)?;
    Ok((bytes.len() == format::HEAD).then_some(bytes))
}

/// Removes a store, damaged or not; false where another process writes it, which leaves it there.
///
/// Whoever reads it keeps what it opened. A writer that waits for it makes a new one.
///
/// # Errors
/// [`Error::Foreign`] for what is not a store; it is left alone.
pub fn remove(path: &Path) -> Result<bool> {
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let mut start = Vec::new();
    let read = file
        .by_ref()
        .take(format::MAX_HEADER)
        .read_to_end(&mut start);
    read.map_err(Error::io("read", path))?;
    if let Err(error @ Error::Foreign { .. }) = format::read_header(&start, path) {
        return Err(error);
    }
    match file.try_lock() {
        Ok(()) if same_file(&file, path) => {}
        // A merge has put another file there just now.
        Ok(()) | Err(TryLockError::WouldBlock) => return Ok(false),
        Err(TryLockError::Error(e)) => return Err(Error::io("lock", path)(e)),
    }
    fs::remove_file(path).map_err(Error::io("remove", path))?;
    Ok(true)
}
