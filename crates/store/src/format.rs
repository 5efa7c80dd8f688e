//! The bytes of a store: what the crate's page describes, and nothing about files.

use std::path::Path;

use half::f16;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// SHA-256 of an image's encoded bytes.
pub type Key = [u8; 32];

/// The key of an image file of this content.
pub fn key(bytes: &[u8]) -> Key {
    Sha256::digest(bytes).into()
}

/// The numbers of a stored row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// As they were computed.
    #[default]
    F32,
    /// Rounded to 11 bits; half the size.
    F16,
}

impl Dtype {
    pub(crate) fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

/// All that a feature depends on, besides the image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// What is kept of an image; `cls`: the CLS token behind the final norm.
    pub feature: String,
    /// SHA-256 of the weight file.
    pub weights: String,
    /// Blocks used.
    pub depth: usize,
    /// Attention heads.
    pub heads: usize,
    /// Epsilon of the layer norms.
    pub eps: f64,
    /// The plain view's preprocessing, as canonical JSON.
    pub preprocess: String,
    /// The numbers that frozen weights were multiplied in.
    pub precision: String,
    /// The kind of device.
    pub device: String,
    /// Version of the program, because another may round otherwise.
    pub code: String,
    /// The numbers of a row.
    pub dtype: Dtype,
    /// How many.
    pub dim: usize,
}

impl Identity {
    /// JSON with the fields in order of declaration.
    fn json(&self) -> Vec<u8> {
        // Serialising a struct of numbers and names into memory has no way to fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// SHA-256 of the identity in hexadecimal: for the file's name.
    pub fn digest(&self) -> String {
        hex(&key(&self.json()))
    }

    /// Refuses a file whose identity is not this one.
    pub(crate) fn expect(&self, found: &Self, path: &Path) -> Result<()> {
        if self == found {
            return Ok(());
        }
        let value = |identity: &Self| serde_json::to_value(identity).unwrap_or_default();
        let (expected, found) = (value(self), value(found));
        let fields = expected.as_object().into_iter().flatten();
        let (field, expected) = fields
            .map(|(field, value)| (field.clone(), value.clone()))
            .find(|(field, value)| found.get(field) != Some(value))
            .unwrap_or_default();
        Err(Error::Identity {
            path: path.into(),
            found: found.get(&field).cloned().unwrap_or_default().to_string(),
            expected: expected.to_string(),
            field,
        })
    }

    fn row_bytes(&self) -> usize {
        32 + self.dim * self.dtype.size()
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

const MAGIC: &[u8; 16] = b"candlewick/feat\n";
const CHUNK_MAGIC: &[u8; 8] = b"chunk\0\0\n";
pub(crate) const HEAD: usize = 8 + 8 + 32;
const SEAL: usize = 32;
/// An identity is some hundred bytes; a length beyond this is damage.
const MAX_IDENTITY: u64 = 1 << 20;
/// The longest header there can be.
pub(crate) const MAX_HEADER: u64 = MAGIC.len() as u64 + 8 + MAX_IDENTITY + SEAL as u64;

/// A header that was read.
#[derive(Debug, Clone)]
pub(crate) struct Header {
    pub identity: Identity,
    /// Where the first chunk begins.
    pub end: usize,
    digest: Key,
}

/// Rows of the chunk whose head this is, and where the chunk ends; nothing of its content is looked at.
pub(crate) fn extent(bytes: &[u8], header: &Header, place: u64) -> Option<(u64, u64)> {
    let rows = number(bytes, 8)?;
    let place_here = usize::try_from(place).ok()?;
    let whole = bytes.get(..HEAD)? == head(header, place_here, usize::try_from(rows).ok()?);
    let body = rows.checked_mul(header.identity.row_bytes() as u64)?;
    let end = place.checked_add(body)?.checked_add((HEAD + SEAL) as u64)?;
    whole.then_some((rows, end))
}

/// What the bytes at a place turned out to be.
#[derive(Debug, PartialEq)]
pub(crate) enum Found {
    /// Of this many rows, up to this place.
    Chunk { rows: usize, end: usize },
    /// Nothing more, or what a writer that died left: from here on it may be cut off.
    End,
}

pub(crate) fn header(identity: &Identity) -> Vec<u8> {
    let json = identity.json();
    let mut bytes = MAGIC.to_vec();
    bytes.extend((json.len() as u64).to_le_bytes());
    bytes.extend(json);
    let digest = key(&bytes);
    bytes.extend(digest);
    bytes
}

/// The header. A file gets its name with its header whole, so a part of one is damage too.
pub(crate) fn read_header(bytes: &[u8], path: &Path) -> Result<Header> {
    let begins = &bytes[..bytes.len().min(MAGIC.len())];
    if begins != MAGIC {
        return Err(Error::Foreign {
            path: path.into(),
            found: begins.escape_ascii().to_string(),
        });
    }
    let start = MAGIC.len() + 8;
    let damaged = |to: usize| Error::Damaged {
        path: path.into(),
        part: "the header".into(),
        from: 0,
        to: to as u64,
    };
    let sealed = match number(bytes, MAGIC.len()) {
        Some(length) if length <= MAX_IDENTITY => start + length as usize,
        _ => return Err(damaged(start)),
    };
    let end = sealed + SEAL;
    if bytes.len() < end || key(&bytes[..sealed]) != bytes[sealed..end] {
        return Err(damaged(end));
    }
    let digest = key(&bytes[..sealed]);
    match serde_json::from_slice(&bytes[start..sealed]) {
        Ok(identity) => Ok(Header {
            identity,
            end,
            digest,
        }),
        // Whole, but of a version with other fields.
        Err(e) => Err(Error::Identity {
            path: path.into(),
            field: "the header".into(),
            found: format!("of another version ({e})"),
            expected: "one of this version".into(),
        }),
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at + 8)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

/// What a chunk begins with.
fn head(header: &Header, place: usize, rows: usize) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..8].copy_from_slice(CHUNK_MAGIC);
    head[8..16].copy_from_slice(&(rows as u64).to_le_bytes());
    let mut hash = Sha256::new();
    hash.update(header.digest);
    hash.update((place as u64).to_le_bytes());
    hash.update(&head[..16]);
    head[16..].copy_from_slice(&hash.finalize());
    head
}

/// A chunk at `place`: all but its seal, and the seal.
pub(crate) fn chunk(
    header: &Header,
    place: usize,
    rows: &[(Key, Vec<f32>)],
    path: &Path,
) -> Result<(Vec<u8>, Key)> {
    let identity = &header.identity;
    let mut body = head(header, place, rows.len()).to_vec();
    body.reserve(rows.len() * identity.row_bytes());
    for (key, _) in rows {
        body.extend(key);
    }
    for (key, row) in rows {
        let refuse = |problem: String| Error::Row {
            path: path.into(),
            problem,
        };
        if row.len() != identity.dim {
            let (found, dim) = (row.len(), identity.dim);
            return Err(refuse(format!("expected {dim} numbers, found {found}")));
        }
        for &value in row {
            let kept = match identity.dtype {
                Dtype::F32 => value,
                Dtype::F16 => f16::from_f32(value).to_f32(),
            };
            if !kept.is_finite() {
                let image = hex(key);
                return Err(refuse(format!(
                    "the image with SHA-256 {image} has the value {value}, which {:?} cannot hold",
                    identity.dtype
                )));
            }
            match identity.dtype {
                Dtype::F32 => body.extend(value.to_le_bytes()),
                Dtype::F16 => body.extend(f16::from_f32(value).to_le_bytes()),
            }
        }
    }
    let seal = key(&body);
    Ok((body, seal))
}

/// Looks at the chunk that begins at `place`.
pub(crate) fn look(bytes: &[u8], header: &Header, place: usize, path: &Path) -> Result<Found> {
    let rest = &bytes[place..];
    if rest.len() < HEAD {
        return Ok(Found::End);
    }
    let damaged = |part: &str, length: usize| Error::Damaged {
        path: path.into(),
        part: part.into(),
        from: place as u64,
        to: (place + length) as u64,
    };
    let rows = number(rest, 8).and_then(|rows| usize::try_from(rows).ok());
    let whole = rows.filter(|&rows| rest[..HEAD] == head(header, place, rows));
    let Some(rows) = whole else {
        // After a loss of power the file may have grown before its content came.
        return match rest.iter().all(|byte| *byte == 0) {
            true => Ok(Found::End),
            false => Err(damaged("the head of a chunk", HEAD)),
        };
    };
    let body = rows
        .checked_mul(header.identity.row_bytes())
        .and_then(|size| size.checked_add(HEAD));
    let length = body.and_then(|body| body.checked_add(SEAL));
    let (Some(body), Some(length)) = (body, length) else {
        return Err(damaged("the head of a chunk", HEAD));
    };
    if rest.len() < length {
        return Ok(Found::End);
    }
    let seal = &rest[body..length];
    if key(&rest[..body]) == seal {
        return Ok(Found::Chunk {
            rows,
            end: place + length,
        });
    }
    match rest.len() == length && seal.iter().all(|byte| *byte == 0) {
        true => Ok(Found::End),
        false => Err(damaged(&format!("a chunk of {rows} features"), length)),
    }
}

/// Key of row `i` of the sealed chunk at `place`.
pub(crate) fn key_at(bytes: &[u8], place: usize, i: usize) -> Key {
    let from = place + HEAD + 32 * i;
    let mut key = [0; 32];
    key.copy_from_slice(&bytes[from..from + 32]);
    key
}

/// Where the values of row `i` begin in the sealed chunk of `rows` at `place`.
pub(crate) fn values_at(identity: &Identity, place: usize, rows: usize, i: usize) -> usize {
    place + HEAD + 32 * rows + i * identity.dim * identity.dtype.size()
}

/// Appends the values that begin at `from`.
pub(crate) fn decode(bytes: &[u8], identity: &Identity, from: usize, out: &mut Vec<f32>) {
    let size = identity.dtype.size();
    let values = bytes[from..from + identity.dim * size].chunks_exact(size);
    match identity.dtype {
        Dtype::F32 => out.extend(values.map(|v| f32::from_le_bytes([v[0], v[1], v[2], v[3]]))),
        Dtype::F16 => out.extend(values.map(|v| f16::from_le_bytes([v[0], v[1]]).to_f32())),
    }
}
