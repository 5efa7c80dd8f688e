//! What a weights file is by its first bytes, because a name proves nothing.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use crate::error::{Error, Result};

/// The two formats that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Safetensors,
    Npz,
}

const EXPECTED: &str = "safetensors or a NumPy archive (.npz)";
/// The limit of the safetensors crate; a longer "header" is some other format's first eight bytes.
const MAX_HEADER: u64 = 100_000_000;

/// Whether a name is one that pickles go by.
pub(crate) fn named_like_a_pickle(path: &Path) -> bool {
    path.extension().and_then(|e| e.to_str()).is_some_and(|e| {
        matches!(
            e.to_ascii_lowercase().as_str(),
            "bin" | "pt" | "pth" | "ckpt" | "pkl" | "pickle"
        )
    })
}

/// Looks into a file; pickles, pages, pointers and halves are errors.
pub(crate) fn sniff(path: &Path) -> Result<Format> {
    if named_like_a_pickle(path) {
        return Err(Error::Pickle { path: path.into() });
    }
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let size = file.metadata().map_err(Error::io("read", path))?.len();
    let mut head = Vec::with_capacity(512);
    (&mut file)
        .take(512)
        .read_to_end(&mut head)
        .map_err(Error::io("read", path))?;
    let wrong = |found: String| Error::Format {
        path: path.into(),
        expected: EXPECTED,
        found,
    };

    // A zip: NumPy's holds *.npy members, torch's holds a pickle under archive/.
    if head.starts_with(b"PK\x03\x04") {
        return match first_member(&head) {
            Some(name) if name.ends_with(".npy") => Ok(Format::Npz),
            Some(name) if name.ends_with("data.pkl") || holds_a_pickle(&mut file, size, path)? => {
                Err(Error::Pickle { path: path.into() })
            }
            Some(name) => Err(wrong(format!("a zip archive that starts with '{name}'"))),
            None => Err(wrong("a damaged zip archive".into())),
        };
    }
    // Protocol 2 and later open with PROTO and the version.
    if head.len() > 1 && head[0] == 0x80 && (2..=5).contains(&head[1]) {
        return Err(Error::Pickle { path: path.into() });
    }
    if head.starts_with(b"version https://git-lfs") {
        return Err(wrong(
            "a Git LFS pointer (run `git lfs pull` in that repository)".into(),
        ));
    }
    if head.trim_ascii_start().starts_with(b"<") {
        return Err(wrong("a web page, probably a proxy's or a login's".into()));
    }
    let length = head.first_chunk::<8>().map(|b| u64::from_le_bytes(*b));
    match length {
        Some(n) if n <= MAX_HEADER && head.get(8) == Some(&b'{') => {
            whole(&mut file, n, size, path).map(|()| Format::Safetensors)
        }
        _ => Err(wrong(format!("{size} bytes of neither"))),
    }
}

/// The name in a zip's first local header.
fn first_member(head: &[u8]) -> Option<&str> {
    let length = usize::from(u16::from_le_bytes([*head.get(26)?, *head.get(27)?]));
    std::str::from_utf8(head.get(30..30 + length)?).ok()
}

/// Whether the directory at a zip's end names a pickle (torch does not promise that it comes first).
fn holds_a_pickle(file: &mut File, size: u64, path: &Path) -> Result<bool> {
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(size.saturating_sub(1 << 20)))
        .map_err(Error::io("read", path))?;
    file.read_to_end(&mut tail)
        .map_err(Error::io("read", path))?;
    Ok(tail.windows(8).any(|w| w == b"data.pkl"))
}

/// A safetensors file ends where its header says; a shorter one is a broken download.
fn whole(file: &mut File, header: u64, size: u64, path: &Path) -> Result<()> {
    let wrong = |found: String| Error::Format {
        path: path.into(),
        expected: "a whole safetensors file",
        found,
    };
    if header + 8 > size {
        return Err(wrong(format!(
            "{size} bytes, fewer than its header of {header}"
        )));
    }
    file.seek(SeekFrom::Start(8))
        .map_err(Error::io("read", path))?;
    let mut json = Vec::new();
    file.take(header)
        .read_to_end(&mut json)
        .map_err(Error::io("read", path))?;
    let header_value: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&json)
        .map_err(|source| Error::Json {
            path: path.into(),
            source,
        })?;
    let end = header_value
        .values()
        .filter_map(|t| t.get("data_offsets")?.get(1)?.as_u64())
        .max()
        .unwrap_or(0);
    match header.saturating_add(8).saturating_add(end) {
        expected if expected == size => Ok(()),
        expected => Err(wrong(format!(
            "{size} bytes where the header speaks of {expected}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sniffed(name: &str, bytes: &[u8]) -> Result<Format> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        sniff(&path)
    }

    fn zip(member: &str) -> Vec<u8> {
        let mut bytes = b"PK\x03\x04".to_vec();
        bytes.extend([0; 22]);
        bytes.extend(u16::try_from(member.len()).unwrap().to_le_bytes());
        bytes.extend([0; 2]);
        bytes.extend(member.as_bytes());
        bytes
    }

    #[test]
    fn formats_are_told_by_their_bytes() {
        let micro = include_bytes!("../vit-micro/model.safetensors");
        assert_eq!(sniffed("x", micro).unwrap(), Format::Safetensors);
        assert_eq!(
            sniffed("x", &zip("Transformer/posembed_input/pos_embedding.npy")).unwrap(),
            Format::Npz
        );
    }

    #[test]
    fn pickles_are_refused_by_name_and_by_bytes_with_a_way_out() {
        let micro = include_bytes!("../vit-micro/model.safetensors");
        let mut late = zip("archive/version");
        late.extend(zip("archive/data.pkl"));
        let cases: [(&str, &[u8]); 5] = [
            ("pytorch_model.bin", micro),
            ("model.PTH", b""),
            ("model.safetensors", b"\x80\x02}q\x00."),
            ("model.safetensors", &zip("archive/data.pkl")),
            ("model.npz", &late),
        ];
        for (name, bytes) in cases {
            let error = sniffed(name, bytes).unwrap_err();
            assert!(matches!(error, Error::Pickle { .. }), "{name}: {error}");
            assert!(error.to_string().contains("save_file"), "{error}");
        }
    }

    #[test]
    fn halves_pages_and_pointers_are_named() {
        let micro = include_bytes!("../vit-micro/model.safetensors");
        for (bytes, says) in [
            (
                &micro[..micro.len() - 1],
                &*format!("header speaks of {}", micro.len()),
            ),
            (&micro[..100], "fewer than its header"),
            (b"<!DOCTYPE html>".as_slice(), "web page"),
            (
                b"version https://git-lfs.github.com/spec/v1",
                "git lfs pull",
            ),
            (b"", "0 bytes"),
            (b"hello there, reader", "19 bytes of neither"),
        ] {
            let error = sniffed("model.safetensors", bytes).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
