//! Sources that are damaged, hostile or wrong: what is said, and that nothing is written.

use std::fs;
use std::path::Path;

use candlewick_data::TestSplit;
use candlewick_sets::open_path;
use tempfile::TempDir;

use crate::{fixture, pack, pictures};

/// The message of a file with this content, which leaves nothing behind.
fn said(name: &str, bytes: &[u8]) -> String {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("data").join(name);
    pack::write(&path, bytes);
    let said = message(&path);
    let left = |folder: &Path| -> Vec<_> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect()
    };
    assert_eq!(left(dir.path()), ["data"]);
    assert_eq!(left(&dir.path().join("data")), [name]);
    assert!(said.contains(name), "{said}");
    said
}

fn message(path: &Path) -> String {
    open_path(path, None).err().expect("an error").to_string()
}

/// In every kind of archive.
fn in_archives(files: &[(String, Vec<u8>)], part: &str) {
    let tar = pack::tar(files);
    for said in [
        said("a.tar", &tar),
        said("a.tar.gz", &pack::gzip(&tar)),
        said("a.zip", &pack::zip(files)),
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn archives_that_are_cut_off() {
    let tar = pack::tar(&pictures());
    let gz = pack::gzip(&tar);
    let zip = pack::zip(&pictures());
    for keep in [0, 100, 512, 5000, tar.len() / 2, tar.len() - 1024] {
        let said = said("a.tar", &tar[..keep]);
        assert!(
            said.contains("cut off") || said.contains("end mark"),
            "{keep}: {said}"
        );
    }
    for keep in [0, 5, 100, gz.len() / 2, gz.len() - 1] {
        let said = said("a.tar.gz", &gz[..keep]);
        let told = ["cut off", "empty", "not a data set"]
            .iter()
            .any(|part| said.contains(part));
        assert!(told, "{keep}: {said}");
    }
    for keep in [0, 100, zip.len() / 2, zip.len() - 1] {
        let said = said("a.zip", &zip[..keep]);
        assert!(said.contains("damaged or cut off"), "{keep}: {said}");
    }
    let parquet = fs::read(fixture("hub/data/test-00000-of-00001.parquet")).unwrap();
    for keep in [0, 3, 100, parquet.len() / 2, parquet.len() - 1] {
        let said = said("test.parquet", &parquet[..keep]);
        assert!(said.contains("damaged or cut off"), "{keep}: {said}");
    }
}

#[test]
fn archives_with_damage_inside() {
    // A tar's header has a checksum; of what lies in its files nothing is known.
    let mut tar = pack::tar(&pictures());
    tar[3] ^= 1;
    let text = said("a.tar", &tar);
    assert!(
        text.contains("damaged or cut off after `nothing`"),
        "{text}"
    );

    let mut gz = pack::gzip(&pack::tar(&pictures()));
    let middle = gz.len() / 2;
    gz[middle] ^= 0x55;
    let text = said("a.tar.gz", &gz);
    assert!(
        text.contains("damaged") || text.contains("cut off"),
        "{text}"
    );

    // The bytes of a file in a zip have a checksum that is looked at when they are read.
    let dir = TempDir::new().unwrap();
    let mut zip = pack::zip(&pictures());
    zip[200] ^= 1;
    let path = dir.path().join("a.zip");
    pack::write(&path, &zip);
    let parts = open_path(&path, None).unwrap().joined();
    let damaged: Vec<String> = (0..parts.len())
        .filter_map(|i| parts.content(i).err())
        .map(|e| e.to_string())
        .collect();
    assert_eq!(damaged.len(), 1, "{damaged:?}");
    assert!(damaged[0].contains("is damaged"), "{damaged:?}");

    let mut parquet = fs::read(fixture("hub/data/test-00000-of-00001.parquet")).unwrap();
    parquet[30..200].fill(0xff);
    let text = said("test.parquet", &parquet);
    assert!(text.contains("damaged"), "{text}");
}

#[test]
fn names_that_lead_out_of_the_archive() {
    for name in ["../../evil.png", "train/cat/../../../evil.png"] {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(4);
        // `append_data` would refuse it, so the name is written as it is.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        builder.append(&header, &b"evil"[..]).unwrap();
        let tar = builder.into_inner().unwrap();
        for said in [said("a.tar", &tar), said("a.tgz", &pack::gzip(&tar))] {
            assert!(
                said.contains("lies outside the archive; nothing was written"),
                "{said}"
            );
        }
        let zip = pack::zip(&[(format!("../{name}"), b"evil".to_vec())]);
        let said = said("a.zip", &zip);
        assert!(said.contains("lies outside the archive"), "{said}");
    }
}

#[test]
fn links_and_names_that_are_no_text() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder
        .append_link(&mut header, "train/cat/1.png", "/etc/passwd")
        .unwrap();
    let text = said("a.tar", &builder.into_inner().unwrap());
    assert!(text.contains("`train/cat/1.png` is a link"), "{text}");
    assert!(text.contains("--dereference"), "{text}");

    let mut link = pack::Packed::new("train/cat/1.png", b"/etc/passwd", false);
    link.mode = 0o120_777;
    let text = said("a.zip", &pack::zip_of(&[link]));
    assert!(text.contains("`train/cat/1.png` is a link"), "{text}");

    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(4);
    header.as_old_mut().name[..15].copy_from_slice(b"train/caf\xe9/.png");
    header.set_cksum();
    builder.append(&header, &b"1234"[..]).unwrap();
    let text = said("a.tar", &builder.into_inner().unwrap());
    assert!(
        text.contains("`train/caf\\xe9/.png` is not UTF-8"),
        "{text}"
    );
    let mut file = pack::Packed::new("", b"1234", false);
    file.name = b"train/caf\xe9/1.png".to_vec();
    let text = said("a.zip", &pack::zip_of(&[file]));
    assert!(
        text.contains("`train/caf\\xe9/1.png` is not UTF-8"),
        "{text}"
    );
}

#[cfg(unix)]
#[test]
fn a_folder_with_a_name_that_is_no_text() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let dir = TempDir::new().unwrap();
    pack::folder(dir.path(), &pictures());
    let file = dir
        .path()
        .join("train/cat")
        .join(OsStr::from_bytes(b"caf\xe9.png"));
    if fs::write(&file, b"x").is_err() {
        // Some file systems allow none.
        return;
    }
    let said = message(dir.path());
    assert!(
        said.contains("`caf\\xe9.png` is not UTF-8; rename it"),
        "{said}"
    );
}

#[test]
fn bombs() {
    // An image that says it is larger than any image, without being there.
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_path("train/cat/1.png").unwrap();
    header.set_size(1 << 40);
    header.set_cksum();
    builder.append(&header, &b""[..]).unwrap();
    let text = said("a.tar", &builder.into_inner().unwrap());
    assert!(
        text.contains("1099511627776 bytes") && text.contains("a bomb"),
        "{text}"
    );

    // Zeros, packed a thousand to one.
    let zeros = vec![0; 300 << 20];
    let text = said("a.tar.gz", &pack::gzip(&zeros));
    assert!(text.contains("a bomb"), "{text}");
    let text = said(
        "a.zip",
        &pack::zip_of(&[pack::Packed::new("cat/1.png", &zeros, true)]),
    );
    assert!(text.contains("a bomb"), "{text}");

    // A zip whose directory says less than there is.
    let dir = TempDir::new().unwrap();
    let names = [
        "train/a/1.png",
        "train/a/2.png",
        "test/a/1.png",
        "test/a/2.png",
    ];
    let files = names.map(|name| pack::Packed {
        size: 500,
        ..pack::Packed::new(name, &[0; 100_000], true)
    });
    let path = dir.path().join("a.zip");
    pack::write(&path, &pack::zip_of(&files));
    let parts = open_path(&path, None).unwrap().joined();
    for i in 0..parts.len() {
        let said = parts.content(i).unwrap_err().to_string();
        assert!(
            said.contains("not the 500 bytes that the directory states"),
            "{said}"
        );
    }
}

#[test]
fn tables_that_are_not_read() {
    for (file, parts) in [
        (
            "zstd.parquet",
            &["compressed with ZSTD", "compression=\"snappy\""][..],
        ),
        ("null.parquet", &["row 0 of row group 0 has no image"]),
        (
            "unlabelled.parquet",
            &["row 0 of row group 0 has label -1; there are 4 classes"],
        ),
    ] {
        let said = message(&fixture(file));
        for part in parts {
            assert!(said.contains(part), "{said}");
        }
    }
    // One shard twice: no image has a name of its own any more.
    let dir = TempDir::new().unwrap();
    let shard = fixture("hub/data/test-00000-of-00001.parquet");
    for name in ["train-0", "test-0", "test-1"] {
        fs::copy(&shard, dir.path().join(format!("{name}.parquet"))).unwrap();
    }
    let said = message(dir.path());
    assert!(said.contains("is in it twice"), "{said}");
}

#[test]
fn images_that_are_there_twice() {
    let mut files = pictures();
    let again = files[3].clone();
    files.push(again.clone());
    let tar = pack::tar(&files);
    for said in [said("a.tar", &tar), said("a.tgz", &pack::gzip(&tar))] {
        assert!(said.contains("is in it twice"), "{said}");
        assert!(said.contains(&format!("set/{}", again.0)), "{said}");
    }
    let text = said("a.zip", &pack::zip(&files));
    assert!(
        text.contains("25 entries of 24 names, so a file is in it twice"),
        "{text}"
    );
}

#[test]
fn classes_that_are_in_one_part_only_or_empty() {
    let mut files = pictures();
    let picture = files[0].1.clone();
    files.push(("test/zebra/1.png".into(), picture.clone()));
    let dir = TempDir::new().unwrap();
    let tar = pack::tar(&files);
    for (name, bytes) in [
        ("a.tar.gz", pack::gzip(&tar)),
        ("a.tar", tar),
        ("a.zip", pack::zip(&files)),
    ] {
        let path = dir.path().join(name);
        pack::write(&path, &bytes);
        let said = message(&path);
        assert!(
            said.contains("class `zebra` is in `test` but not in `train`"),
            "{said}"
        );
    }

    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in pictures() {
        pack::entry(&mut builder, &name, &bytes);
    }
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_size(0);
    builder
        .append_data(&mut header, "train/zebra/", &b""[..])
        .unwrap();
    let text = said("a.tar", &builder.into_inner().unwrap());
    assert!(
        text.contains("train/zebra: class folder without images"),
        "{text}"
    );
}

#[test]
fn divisions_that_are_missing_or_too_many() {
    let undivided: Vec<_> = pictures()
        .into_iter()
        .map(|(name, bytes)| (name.split_once('/').unwrap().1.to_owned(), bytes))
        .collect();
    in_archives(&undivided, "set `data.split`");
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.tar");
    pack::write(&path, &pack::tar(&pictures()));
    let split = TestSplit::default();
    let said = open_path(&path, Some(&split)).err().unwrap().to_string();
    assert!(
        said.contains("`split`") && said.contains("is divided already"),
        "{said}"
    );
    // One part alone is a set in one piece.
    let mut train = pictures();
    train.retain(|(name, _)| name.starts_with("train"));
    in_archives(&train, "set `data.split`");
}

#[test]
fn what_is_no_data_set_at_all() {
    let text = said("a.dat", b"just text");
    assert!(
        text.contains("not a data set: expected a folder, a tar"),
        "{text}"
    );
    let text = said(
        "a.tar",
        &pack::tar(&[("a/readme.md".into(), b"x".to_vec())]),
    );
    assert!(text.contains("there are no images in it"), "{text}");
    let text = said("a.tar", &pack::tar(&[("1.png".into(), b"x".to_vec())]));
    assert!(
        text.contains("its images lie in no folders") || text.contains("data.split"),
        "{text}"
    );
    let missing = message(Path::new("/nowhere/at-all"));
    assert!(
        missing.contains("/nowhere/at-all: no such folder"),
        "{missing}"
    );
}
