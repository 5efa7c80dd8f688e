//! The same files as a folder and as archives.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder};

type Files = [(String, Vec<u8>)];

pub fn folder(root: &Path, files: &Files) {
    for (name, bytes) in files {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// In reverse order, since archives have none, below a folder of their own.
pub fn tar(files: &Files) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in files.iter().rev() {
        entry(&mut builder, &format!("./set/{name}"), bytes);
    }
    entry(&mut builder, "./set/README.txt", b"not an image");
    builder.into_inner().unwrap()
}

pub fn entry(builder: &mut tar::Builder<Vec<u8>>, name: &str, bytes: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, name, bytes).unwrap();
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// What a zip says of one of its files, right or wrong.
#[derive(Clone)]
pub struct Packed {
    pub name: Vec<u8>,
    pub bytes: Vec<u8>,
    pub deflated: bool,
    /// As the directory states it.
    pub size: u32,
    /// Unix mode; that of a regular file otherwise.
    pub mode: u32,
}

impl Packed {
    pub fn new(name: &str, bytes: &[u8], deflated: bool) -> Self {
        Self {
            name: name.as_bytes().to_vec(),
            bytes: bytes.to_vec(),
            deflated,
            size: bytes.len() as u32,
            mode: 0o100_644,
        }
    }
}

/// A zip by hand (PKWARE's APPNOTE 4.3), since what tests need most is one that no library would write.
pub fn zip_of(files: &[Packed]) -> Vec<u8> {
    let (mut zip, mut directory) = (Vec::new(), Vec::new());
    for file in files {
        let data = match file.deflated {
            true => {
                let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
                encoder.write_all(&file.bytes).unwrap();
                encoder.finish().unwrap()
            }
            false => file.bytes.clone(),
        };
        // From the version needed to the lengths of name and extra field; UTF-8 names, 1980.
        let mut common = Vec::new();
        for short in [20u16, 0x800, if file.deflated { 8 } else { 0 }, 0, 0x21] {
            common.extend(short.to_le_bytes());
        }
        for long in [crc32fast::hash(&file.bytes), data.len() as u32, file.size] {
            common.extend(long.to_le_bytes());
        }
        common.extend((file.name.len() as u16).to_le_bytes());
        common.extend([0, 0]);
        directory.extend(b"PK\x01\x02");
        // Made on Unix, so that the mode counts.
        directory.extend([20, 3]);
        directory.extend(&common);
        directory.extend([0; 6]);
        directory.extend((file.mode << 16).to_le_bytes());
        directory.extend((zip.len() as u32).to_le_bytes());
        directory.extend(&file.name);
        zip.extend(b"PK\x03\x04");
        zip.extend(&common);
        zip.extend(&file.name);
        zip.extend(data);
    }
    let start = zip.len() as u32;
    zip.extend(&directory);
    zip.extend(b"PK\x05\x06\0\0\0\0");
    let count = (files.len() as u16).to_le_bytes();
    zip.extend([count, count].concat());
    zip.extend((directory.len() as u32).to_le_bytes());
    zip.extend(start.to_le_bytes());
    zip.extend([0, 0]);
    zip
}

/// Stored and deflated files in turn.
pub fn zip(files: &Files) -> Vec<u8> {
    let packed = |(i, (name, bytes)): (usize, &(String, Vec<u8>))| {
        Packed::new(&format!("set/{name}"), bytes, i % 2 == 1)
    };
    let files: Vec<Packed> = files.iter().rev().enumerate().map(packed).collect();
    zip_of(&files)
}

pub fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    File::create(path).unwrap().write_all(bytes).unwrap();
}
