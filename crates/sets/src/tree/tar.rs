//! A tar archive, plain or gzipped: its headers are read once, its files where they lie.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candlewick_data::Result;
use candlewick_data::folder::is_image;
use tar::{Archive, Entries, EntryType};

use super::disk::range;
use super::gzip::Gzip;
use super::{Entry, Tree, bounded, broken, distinct, name_of, read_error};

pub(super) struct Tar {
    path: PathBuf,
    gzip: Option<Gzip>,
    entries: Vec<Entry>,
    folders: Vec<String>,
    /// Where the data of each entry begin.
    starts: Vec<u64>,
}

/// What the headers say.
#[derive(Default)]
struct Headers {
    entries: Vec<Entry>,
    folders: Vec<String>,
    starts: Vec<u64>,
    /// Behind the padded data of the last one.
    end: u64,
}

impl Tar {
    pub(super) fn plain(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(read_error(path))?;
        let len = file.metadata().map_err(read_error(path))?.len();
        // Headers are 512 bytes; whole blocks of a large buffer would read the images too.
        let mut archive = Archive::new(BufReader::with_capacity(512, file));
        let entries = archive.entries_with_seek().map_err(read_error(path))?;
        let headers = list(path, entries)?;
        let mut file = archive.into_inner().into_inner();
        let mut mark = [1; 512];
        let marked = headers.end + 512 <= len
            && file.seek(SeekFrom::Start(headers.end)).is_ok()
            && file.read_exact(&mut mark).is_ok();
        if !marked || mark != [0; 512] {
            return Err(cut(path, &headers));
        }
        Ok(Self::new(path, None, headers))
    }

    /// Reads the whole file once.
    pub(super) fn gzipped(path: &Path) -> Result<Self> {
        let (gzip, headers) = Gzip::index(path, |stream| {
            list(
                path,
                Archive::new(stream).entries().map_err(read_error(path))?,
            )
        })?;
        let mark = match headers.end + 512 <= gzip.len() {
            true => gzip.read(headers.end, 512)?,
            false => Vec::new(),
        };
        if mark != [0; 512] {
            return Err(cut(path, &headers));
        }
        Ok(Self::new(path, Some(gzip), headers))
    }

    fn new(path: &Path, gzip: Option<Gzip>, headers: Headers) -> Self {
        Self {
            path: path.into(),
            gzip,
            entries: headers.entries,
            folders: headers.folders,
            starts: headers.starts,
        }
    }
}

fn cut(path: &Path, headers: &Headers) -> candlewick_data::Error {
    let problem = format!(
        "the tar archive is cut off: after {} files, at byte {}, its end mark is missing; fetch it again",
        headers.entries.len(),
        headers.end
    );
    broken(path, problem)
}

fn list<R: Read>(path: &Path, entries: Entries<'_, R>) -> Result<Headers> {
    let mut headers = Headers::default();
    for entry in entries {
        let damaged = |e: std::io::Error| {
            let after = headers.entries.last().map_or("nothing", |e| &e.name);
            let problem = format!(
                "the tar archive is damaged or cut off after `{after}` ({e}); fetch it again"
            );
            broken(path, problem)
        };
        let entry = entry.map_err(damaged)?;
        let kind = entry.header().entry_type();
        let name = name_of(path, &entry.path_bytes())?;
        let (start, size) = (entry.raw_file_position(), entry.size());
        let stored = match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => size,
            _ => 0,
        };
        let end = start
            .checked_add(stored)
            .and_then(|end| end.checked_next_multiple_of(512));
        let Some(end) = end else {
            let problem = format!("`{name}` is said to have {size} bytes; the archive is damaged");
            return Err(broken(path, problem));
        };
        headers.end = headers.end.max(end);
        match kind {
            EntryType::Directory => headers.folders.push(name),
            EntryType::Regular | EntryType::Continuous => {
                bounded(path, &name, size)?;
                headers.entries.push(Entry { name, size });
                headers.starts.push(start);
            }
            _ if is_image(&name) => {
                let problem = format!(
                    "`{name}` is a link or another special file; only what is in the archive is read, so pack it with the \
                     files themselves (tar --dereference)"
                );
                return Err(broken(path, problem));
            }
            _ => {}
        }
    }
    distinct(path, &headers.entries)?;
    Ok(headers)
}

impl Tree for Tar {
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
        let from = self.starts[entry] + from;
        match &self.gzip {
            Some(gzip) => gzip.read(from, len),
            None => range(&self.path, from, len),
        }
    }
}
