//! Tables of images as the Hub serves them: shards of parquet with a column of encoded images, `struct{bytes, path}`, and one of
//! class labels, whose names are in the schema's `huggingface` metadata (`huggingface/datasets:src/datasets/features`).

mod schema;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{iter, panic, thread};

use candlewick_data::{Bytes, Result};
use parquet::basic::Type;
use parquet::column::reader::ColumnReaderImpl;
use parquet::data_type::{ByteArrayType, DataType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use parquet::file::serialized_reader::SerializedPageReader;

use self::schema::{Columns, check_chunks, class_names, columns, features};
use super::{Part, Reader, Reading, Row, Table, numbered, part_of};
use crate::tree::{MAX_IMAGE_BYTES, broken, name_of, read_error};

/// Values read at a time while lengths are noted.
const BATCH: usize = 64;

/// The shards of a data set.
pub(crate) struct Parquet {
    root: PathBuf,
    shards: Vec<Shard>,
    /// Names of the classes, where the table has them.
    names: Option<Vec<String>>,
}

struct Shard {
    path: PathBuf,
    part: Part,
    meta: Arc<ParquetMetaData>,
    columns: Columns,
}

impl Parquet {
    /// Opens shards; `root` names them in messages.
    ///
    /// # Errors
    /// What is no parquet, a column that is missing or cannot be told, a codec that is not read, and shards of different tables.
    pub(crate) fn open(root: &Path, paths: &[PathBuf], reading: &Reading) -> Result<Self> {
        let parts: Vec<Option<Part>> = paths
            .iter()
            .map(|path| part_of(&path.file_name().unwrap_or_default().to_string_lossy()))
            .collect();
        let divided = parts.iter().any(Option::is_some);
        let mut shards = Vec::new();
        let mut names: Option<Option<Vec<String>>> = None;
        for (path, part) in paths.iter().zip(parts) {
            let part = match (divided, part) {
                (false, _) => Part::Whole,
                (true, Some(part)) => part,
                // A further split of the Hub's, such as SVHN's `extra`.
                (true, None) => continue,
            };
            let file = File::open(path).map_err(read_error(path))?;
            let meta = ParquetMetaDataReader::new()
                .parse_and_finish(&file)
                .map_err(|e| damaged(path, &e))?;
            let features = features(path, &meta)?;
            let columns = columns(path, &meta, features.as_ref(), reading)?;
            let found = class_names(&meta, features.as_ref(), columns.label);
            if *names.get_or_insert_with(|| found.clone()) != found {
                let problem = "its classes are not those of the shards beside it; put each table into a folder of its own";
                return Err(broken(path, problem));
            }
            check_chunks(path, &meta, columns)?;
            shards.push(Shard {
                path: path.clone(),
                part,
                meta: Arc::new(meta),
                columns,
            });
        }
        Ok(Self {
            root: root.into(),
            shards,
            names: names.flatten(),
        })
    }
}

fn damaged(path: &Path, e: &ParquetError) -> candlewick_data::Error {
    broken(
        path,
        format!("the parquet file is damaged or cut off ({e}); fetch it again"),
    )
}

impl Shard {
    fn column<T: DataType>(
        &self,
        group: usize,
        column: usize,
    ) -> std::result::Result<ColumnReaderImpl<T>, ParquetError> {
        let file = File::open(&self.path)?;
        let group = self.meta.row_group(group);
        let rows = usize::try_from(group.num_rows()).unwrap_or_default();
        let pages = SerializedPageReader::new(Arc::new(file), group.column(column), rows, None)?;
        let column = self.meta.file_metadata().schema_descr().column(column);
        Ok(ColumnReaderImpl::new(column, Box::new(pages)))
    }

    /// What `each` makes of every value; `None` for a null.
    fn every<T: DataType, U>(
        &self,
        group: usize,
        column: usize,
        each: impl Fn(&T::T) -> U,
    ) -> Result<Vec<Option<U>>> {
        let failed = |e: ParquetError| damaged(&self.path, &e);
        let mut reader = self.column::<T>(group, column).map_err(failed)?;
        let present = self
            .meta
            .file_metadata()
            .schema_descr()
            .column(column)
            .max_def_level();
        let mut found = Vec::new();
        let (mut values, mut levels) = (Vec::new(), Vec::new());
        loop {
            values.clear();
            levels.clear();
            let (records, ..) = reader
                .read_records(BATCH, Some(&mut levels), None, &mut values)
                .map_err(failed)?;
            if records == 0 {
                break;
            }
            let mut values = values.iter();
            // A column without nulls may have no levels.
            let level = |i: usize| levels.get(i).copied().unwrap_or(present);
            for i in 0..records {
                found.push(match level(i) == present {
                    true => values.next().map(&each),
                    false => None,
                });
            }
        }
        let stated = self.meta.row_group(group).num_rows();
        if found.len() as i64 != stated {
            let problem = format!(
                "row group {group} has {} rows, but {stated} are stated; the file is damaged",
                found.len()
            );
            return Err(broken(&self.path, problem));
        }
        Ok(found)
    }

    fn groups(&self) -> Result<Vec<Group>> {
        in_threads(self.meta.num_row_groups(), |group| self.group(group))
    }

    /// Everything about the rows of a group but their pixels.
    fn group(&self, group: usize) -> Result<Group> {
        let text = |value: &parquet::data_type::ByteArray| value.data().to_vec();
        let Columns { bytes, path, label } = self.columns;
        let schema = self.meta.file_metadata().schema_descr();
        let labels = match schema.column(label).physical_type() {
            Type::INT32 => numbers(self.every::<Int32Type, i64>(group, label, |v| i64::from(*v))?),
            Type::INT64 => numbers(self.every::<Int64Type, i64>(group, label, |v| *v)?),
            _ => self
                .every::<ByteArrayType, _>(group, label, text)?
                .into_iter()
                .map(|name| name.map(Label::Name))
                .collect(),
        };
        let lens = self.every::<ByteArrayType, _>(group, bytes, |v| v.len() as u64)?;
        let paths = match path {
            Some(path) => self.every::<ByteArrayType, _>(group, path, text)?,
            None => vec![None; lens.len()],
        };
        Ok(Group {
            labels,
            lens,
            paths,
        })
    }
}

/// Calls `each` for the numbers below `count`, in as many threads as the machine has. Not in rayon's, which belong to whoever
/// opens the data set.
fn in_threads<T: Send>(count: usize, each: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let work = || {
        let numbers = iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed));
        let mine = numbers.take_while(|number| *number < count);
        mine.map(|number| (number, each(number))).collect()
    };
    let mut done: Vec<(usize, Result<T>)> = thread::scope(|scope| {
        let workers: Vec<_> = (1..threads.min(count)).map(|_| scope.spawn(work)).collect();
        let mut done: Vec<_> = work();
        for worker in workers {
            match worker.join() {
                Ok(more) => done.extend(more),
                Err(panic) => panic::resume_unwind(panic),
            }
        }
        done
    });
    done.sort_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, result)| result).collect()
}

enum Label {
    Number(i64),
    Name(Vec<u8>),
}

fn numbers(values: Vec<Option<i64>>) -> Vec<Option<Label>> {
    let label = |value: Option<i64>| value.map(Label::Number);
    values.into_iter().map(label).collect()
}

struct Group {
    labels: Vec<Option<Label>>,
    lens: Vec<Option<u64>>,
    paths: Vec<Option<Vec<u8>>>,
}

impl Reader for Parquet {
    /// Reads all columns once, to know the length of every image.
    fn table(&self) -> Result<Table> {
        let mut classes = self.names.clone().unwrap_or_default();
        let mut rows = Vec::new();
        let mut places = Vec::new();
        let mut names: Vec<Vec<u8>> = Vec::new();
        let mut counted = [0; 4];
        for (number, shard) in self.shards.iter().enumerate() {
            let groups = shard.groups()?;
            for (g, group) in groups.into_iter().enumerate() {
                for (r, ((label, len), path)) in group
                    .labels
                    .into_iter()
                    .zip(group.lens)
                    .zip(group.paths)
                    .enumerate()
                {
                    let problem = |what: String| {
                        broken(&shard.path, format!("row {r} of row group {g} {what}"))
                    };
                    let class = match label {
                        None => return Err(problem("has no label".into())),
                        Some(Label::Number(n)) => {
                            let class = usize::try_from(n).ok();
                            let known = |n: &usize| *n < classes.len() || self.names.is_none();
                            // So many classes are a column of something else.
                            let Some(class) = class.filter(known).filter(|n| *n < 1 << 20) else {
                                let problem = problem(format!(
                                    "has label {n}; there are {} classes, counted from 0",
                                    classes.len()
                                ));
                                return Err(problem);
                            };
                            while classes.len() <= class {
                                classes.push(classes.len().to_string());
                            }
                            class
                        }
                        Some(Label::Name(name)) => match names.iter().position(|n| *n == name) {
                            Some(class) => class,
                            None => {
                                let text = name_of(&shard.path, &name)?;
                                names.push(name);
                                classes.push(text);
                                names.len() - 1
                            }
                        },
                    };
                    let Some(size) = len.filter(|size| *size > 0) else {
                        return Err(problem("has no image".into()));
                    };
                    if size > MAX_IMAGE_BYTES {
                        return Err(problem(format!(
                            "has an image of {size} bytes; {MAX_IMAGE_BYTES} are allowed at most"
                        )));
                    }
                    let count = &mut counted[shard.part as usize];
                    let rest = match path {
                        Some(path) if !path.is_empty() => {
                            below(&name_of(&shard.path, &path)?, &classes[class])
                        }
                        _ => numbered(*count),
                    };
                    *count += 1;
                    rows.push(Row {
                        part: shard.part,
                        class,
                        rest,
                        size,
                        at: places.len(),
                    });
                    places.push((number, g, r));
                }
            }
        }
        if self.names.is_none() && !names.is_empty() {
            sort_classes(&mut classes, &mut rows);
        }
        let shards = self.shards.iter().map(|shard| Shard {
            path: shard.path.clone(),
            part: shard.part,
            meta: shard.meta.clone(),
            columns: shard.columns,
        });
        Ok(Table {
            root: self.root.clone(),
            classes,
            rows,
            bytes: Arc::new(Cells {
                shards: shards.collect(),
                places,
            }),
        })
    }
}

/// Names have no order of their own, so theirs is that of folders.
fn sort_classes(classes: &mut [String], rows: &mut [Row]) {
    let mut order: Vec<usize> = (0..classes.len()).collect();
    order.sort_by(|a, b| classes[*a].cmp(&classes[*b]));
    let mut places = vec![0; order.len()];
    for (place, class) in order.iter().enumerate() {
        places[*class] = place;
    }
    classes.sort();
    for row in rows {
        row.class = places[row.class];
    }
}

/// The part of a path below its class; its last part where it does not name the class.
fn below(path: &str, class: &str) -> String {
    let parts: Vec<&str> = path.split('/').collect();
    let folders = parts.len().saturating_sub(1);
    match parts[..folders].iter().rposition(|part| *part == class) {
        Some(at) => parts[at + 1..].join("/"),
        None => parts.last().copied().unwrap_or_default().to_owned(),
    }
}

/// Cells of the column of images.
struct Cells {
    shards: Vec<Shard>,
    /// Shard, row group and row.
    places: Vec<(usize, usize, usize)>,
}

impl Bytes for Cells {
    /// Pages before that of the row are passed over by their headers.
    fn read(&self, at: usize) -> Result<Vec<u8>> {
        let (shard, group, row) = self.places[at];
        let shard = &self.shards[shard];
        let mut values = Vec::new();
        let mut read = || {
            let mut reader = shard.column::<ByteArrayType>(group, shard.columns.bytes)?;
            let skipped = reader.skip_records(row)?;
            let mut levels = Vec::new();
            reader.read_records(1, Some(&mut levels), None, &mut values)?;
            Ok(skipped)
        };
        let skipped = read().map_err(|e| damaged(&shard.path, &e))?;
        match values.pop() {
            Some(value) if skipped == row => Ok(value.data().to_vec()),
            _ => Err(broken(
                &shard.path,
                format!("{} is not there any more", self.place(at)),
            )),
        }
    }

    fn place(&self, at: usize) -> String {
        let (shard, group, row) = self.places[at];
        format!(
            "row {row} of row group {group} in {}",
            self.shards[shard].path.display()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_cut_behind_its_class() {
        for (path, rest) in [
            ("1.png", "1.png"),
            ("set/train/cat/1.png", "1.png"),
            ("set/train/cat/sketch/1.png", "sketch/1.png"),
            ("other/1.png", "1.png"),
            ("cat", "cat"),
            ("cat/cat", "cat"),
        ] {
            assert_eq!(below(path, "cat"), rest, "{path}");
        }
    }

    #[test]
    fn classes_without_numbers_are_sorted() {
        let row = |class| Row {
            part: Part::Whole,
            class,
            rest: String::new(),
            size: 1,
            at: 0,
        };
        let mut classes = vec!["c".to_owned(), "a".into(), "b".into()];
        let mut rows = [row(0), row(1), row(2)];
        sort_classes(&mut classes, &mut rows);
        assert_eq!(classes, ["a", "b", "c"]);
        assert_eq!(rows.map(|row| row.class), [2, 0, 1]);
    }
}
