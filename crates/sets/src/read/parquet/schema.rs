//! What a table's schema says: which columns are meant, what the classes are called, and whether it is read at all.

use std::path::Path;

use candlewick_data::Result;
use parquet::basic::{Compression, Type};
use parquet::file::metadata::ParquetMetaData;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::super::Reading;
use crate::tree::broken;

/// A column that grows by more than this, beyond the first 64 MiB, holds no images.
const GROWTH: i64 = 100;

/// Positions of leaves in the schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Columns {
    pub bytes: usize,
    pub path: Option<usize>,
    pub label: usize,
}

/// The `huggingface` metadata, as far as it matters.
#[derive(Deserialize)]
struct Huggingface {
    info: Info,
}

#[derive(Deserialize)]
struct Info {
    features: Map<String, Value>,
}

/// The columns' types as the Hub knows them, if it wrote the table.
pub(super) fn features(path: &Path, meta: &ParquetMetaData) -> Result<Option<Map<String, Value>>> {
    let pairs = meta.file_metadata().key_value_metadata();
    let text = pairs
        .into_iter()
        .flatten()
        .find(|pair| pair.key == "huggingface")
        .and_then(|pair| pair.value.as_deref());
    let Some(text) = text else { return Ok(None) };
    match serde_json::from_str::<Huggingface>(text) {
        Ok(found) => Ok(Some(found.info.features)),
        Err(e) => Err(broken(
            path,
            format!("its `huggingface` metadata are not what the Hub writes: {e}"),
        )),
    }
}

/// Which columns are meant.
pub(super) fn columns(
    path: &Path,
    meta: &ParquetMetaData,
    features: Option<&Map<String, Value>>,
    reading: &Reading,
) -> Result<Columns> {
    let schema = meta.file_metadata().schema_descr();
    let leaves: Vec<&[String]> = schema.columns().iter().map(|c| c.path().parts()).collect();
    let leaf = |parts: &[&str]| leaves.iter().position(|leaf| *leaf == parts);
    let of_type = |wanted: &str| -> Vec<&str> {
        let is = |value: &Value| value.get("_type").and_then(Value::as_str) == Some(wanted);
        let features = features.into_iter().flatten();
        let names = features.filter(|(_, value)| is(value));
        names.map(|(name, _)| name.as_str()).collect()
    };
    let structs = || -> Vec<&str> {
        let with_bytes = leaves
            .iter()
            .filter(|leaf| leaf.len() == 2 && leaf[1] == "bytes");
        with_bytes.map(|leaf| leaf[0].as_str()).collect()
    };
    let all: Vec<String> = leaves.iter().map(|leaf| leaf.join(".")).collect();
    let untold = |what: &str, found: &[&str]| {
        let found = match found {
            [] => "none".to_owned(),
            some => some.join(", "),
        };
        let problem = format!(
            "expected one column of {what}, found {found} among the columns {}; a card's source names the one that is meant",
            all.join(", ")
        );
        broken(path, problem)
    };
    let image = match &reading.image {
        Some(name) => name.as_str(),
        None => match (of_type("Image").as_slice(), structs().as_slice()) {
            ([one], _) | ([], [one]) => one,
            ([], found) | (found, _) => return Err(untold("images", found)),
        },
    };
    let (bytes, paths) = match leaf(&[image, "bytes"]) {
        Some(bytes) => (Some(bytes), leaf(&[image, "path"])),
        None => (leaf(&[image]), None),
    };
    let label = match &reading.label {
        Some(name) => name.as_str(),
        None => match of_type("ClassLabel").as_slice() {
            [one] => one,
            [] if leaf(&["label"]).is_some() => "label",
            found => return Err(untold("class labels", found)),
        },
    };
    let physical = |at: usize| schema.column(at).physical_type();
    let missing = |name: &str| {
        broken(
            path,
            format!(
                "there is no column `{name}` of the right type; there are {}",
                all.join(", ")
            ),
        )
    };
    let bytes = bytes
        .filter(|at| physical(*at) == Type::BYTE_ARRAY)
        .ok_or_else(|| missing(image))?;
    let label = leaf(&[label])
        .filter(|at| matches!(physical(*at), Type::INT32 | Type::INT64 | Type::BYTE_ARRAY))
        .ok_or_else(|| missing(label))?;
    Ok(Columns {
        bytes,
        path: paths.filter(|at| physical(*at) == Type::BYTE_ARRAY),
        label,
    })
}

/// The names behind the numbers of a class label.
pub(super) fn class_names(
    meta: &ParquetMetaData,
    features: Option<&Map<String, Value>>,
    label: usize,
) -> Option<Vec<String>> {
    let schema = meta.file_metadata().schema_descr();
    let name = schema.column(label).path().parts().join(".");
    let names = features?.get(&name)?.get("names")?.as_array()?;
    let names = names.iter().map(|name| name.as_str().map(str::to_owned));
    names.collect()
}

/// Codecs and sizes, before anything is decompressed.
pub(super) fn check_chunks(path: &Path, meta: &ParquetMetaData, columns: Columns) -> Result<()> {
    let wanted = [Some(columns.bytes), columns.path, Some(columns.label)];
    for group in meta.row_groups() {
        for chunk in wanted.into_iter().flatten().map(|at| group.column(at)) {
            match chunk.compression() {
                Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::GZIP(_) => {}
                other => {
                    let problem = format!(
                        "column `{}` is compressed with {other}; uncompressed, snappy and gzip are read: write the table \
                         anew, with pyarrow.parquet.write_table(table, file, compression=\"snappy\")",
                        chunk.column_path().string()
                    );
                    return Err(broken(path, problem));
                }
            }
            let (from, to) = (chunk.compressed_size(), chunk.uncompressed_size());
            if from < 0 || to > (64 << 20) + GROWTH.saturating_mul(from) {
                let problem = format!(
                    "{from} bytes of column `{}` decompress to {to}; images do not compress like that, so this is a bomb",
                    chunk.column_path().string()
                );
                return Err(broken(path, problem));
            }
        }
    }
    Ok(())
}
