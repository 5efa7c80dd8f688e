//! A zip archive: its directory is read once, its files where they lie.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candlewick_data::Result;
use candlewick_data::folder::is_image;
use flate2::read::DeflateDecoder;
use zip::{CompressionMethod, ZipArchive};

use super::disk::range;
use super::{Entry, Tree, bounded, broken, distinct, name_of, read_error};

pub(super) struct Zip {
    path: PathBuf,
    entries: Vec<Entry>,
    folders: Vec<String>,
    places: Vec<Place>,
}

struct Place {
    start: u64,
    /// Compressed length.
    len: u64,
    deflated: bool,
    crc: u32,
}

impl Zip {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let damaged = |e: zip::result::ZipError| {
            broken(
                path,
                format!("the zip archive is damaged or cut off ({e}); fetch it again"),
            )
        };
        let file = File::open(path).map_err(read_error(path))?;
        let len = file.metadata().map_err(read_error(path))?.len();
        let mut archive = ZipArchive::new(BufReader::new(file)).map_err(damaged)?;
        let mut zip = Self {
            path: path.into(),
            entries: Vec::new(),
            folders: Vec::new(),
            places: Vec::new(),
        };
        // The crate keeps one of each name.
        let stated = stated(path, len)?;
        if stated.is_some_and(|stated| stated != archive.len()) {
            let problem = format!(
                "its directory has {} entries of {} names, so a file is in it twice; pack it anew",
                stated.unwrap_or_default(),
                archive.len()
            );
            return Err(broken(path, problem));
        }
        for number in 0..archive.len() {
            let file = archive.by_index_raw(number).map_err(damaged)?;
            let name = name_of(path, file.name_raw())?;
            if file.is_dir() {
                zip.folders.push(name);
                continue;
            }
            let unusable = match file.compression() {
                _ if file.is_symlink() => Some("a link; pack the files themselves"),
                _ if file.encrypted() => Some("encrypted"),
                method
                    if [CompressionMethod::Stored, CompressionMethod::DEFLATE]
                        .contains(&method) =>
                {
                    None
                }
                _ => Some("compressed otherwise than by deflate"),
            };
            match unusable {
                Some(what) if is_image(&name) => {
                    let problem = format!("`{name}` is {what}; such files are not read");
                    return Err(broken(path, problem));
                }
                Some(_) => continue,
                None => {}
            }
            let size = file.size();
            bounded(path, &name, size)?;
            let place = Place {
                start: file.data_start().unwrap_or(u64::MAX),
                len: file.compressed_size(),
                deflated: file.compression() == CompressionMethod::DEFLATE,
                crc: file.crc32(),
            };
            let inside = place
                .start
                .checked_add(place.len)
                .is_some_and(|end| end <= len);
            if !inside || (!place.deflated && place.len != size) {
                let problem = format!(
                    "`{name}` has no place in the file; the zip archive is damaged, fetch it again"
                );
                return Err(broken(path, problem));
            }
            zip.entries.push(Entry { name, size });
            zip.places.push(place);
        }
        distinct(path, &zip.entries)?;
        Ok(zip)
    }
}

/// The number of entries that the end of the directory states; `None` where that is too large for its two bytes.
fn stated(path: &Path, len: u64) -> Result<Option<usize>> {
    // It ends the file, but for a comment of at most 64 kB.
    let tail = len.min(22 + 0xffff);
    let bytes = range(path, len - tail, tail as usize)?;
    let found = bytes
        .windows(22)
        .rposition(|end| end.starts_with(b"PK\x05\x06"))
        .map(|at| usize::from(u16::from_le_bytes([bytes[at + 10], bytes[at + 11]])));
    Ok(found.filter(|n| *n != 0xffff))
}

impl Tree for Zip {
    fn path(&self) -> &Path {
        &self.path
    }

    fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn folders(&self) -> &[String] {
        &self.folders
    }

    /// A deflated file is decompressed from its start, whatever piece is wanted; a whole one is held against its CRC-32.
    fn read(&self, entry: usize, from: u64, len: usize) -> Result<Vec<u8>> {
        let (place, size) = (&self.places[entry], self.entries[entry].size);
        let failed = read_error(&self.path);
        let mut file = File::open(&self.path).map_err(&failed)?;
        let mut bytes = Vec::with_capacity(len);
        let mut fill = |reader: &mut dyn Read| reader.take(len as u64).read_to_end(&mut bytes);
        let mut more = false;
        match place.deflated {
            false => {
                file.seek(SeekFrom::Start(place.start + from))
                    .map_err(&failed)?;
                fill(&mut file).map_err(&failed)?;
            }
            true => {
                file.seek(SeekFrom::Start(place.start)).map_err(&failed)?;
                let mut reader = DeflateDecoder::new(file.take(place.len));
                let damaged = |e: std::io::Error| {
                    let problem = format!("{} is damaged: {e}", self.place(entry));
                    broken(&self.path, problem)
                };
                std::io::copy(&mut (&mut reader).take(from), &mut std::io::sink())
                    .map_err(damaged)?;
                fill(&mut reader).map_err(damaged)?;
                // A bomb goes on where its directory says it ends.
                more = from + len as u64 == size && reader.read(&mut [0]).is_ok_and(|n| n > 0);
            }
        }
        let whole = from == 0 && len as u64 == size;
        if bytes.len() != len || more || (whole && crc32fast::hash(&bytes) != place.crc) {
            let problem = format!(
                "{} is damaged: it is not the {size} bytes that the directory states",
                self.place(entry)
            );
            return Err(broken(&self.path, problem));
        }
        Ok(bytes)
    }
}
