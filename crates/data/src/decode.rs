//! From the bytes of an image file to 8-bit RGB, as `PIL.Image.open(file).convert("RGB")` gives it.
//!
//! What Pillow does and this repeats: gray is replicated; alpha is dropped, never composited; a palette
//! is looked up and its transparency ignored; 16-bit colour keeps its high byte; 16-bit gray (mode
//! `I;16`) is clipped to 255, not scaled; an Adobe CMYK JPEG is inverted; of an animation the first frame
//! is taken; the EXIF orientation is **not** applied.
//!
//! Measured against Pillow 13.0.0 on one file per format and mode (`tests/fixtures/make_decode.py`):
//!
//! | format | difference, in levels of 255 |
//! |---|---|
//! | PNG, WebP (lossy as well), GIF, BMP, gray and RGB(A) TIFF | 0 |
//! | CMYK TIFF | at most 1 |
//! | JPEG 4:4:4 and gray | at most 3, mean 0.02 |
//! | JPEG 4:2:2 | at most 3, mean 0.17 |
//! | JPEG 4:2:0 | at most 5, mean 0.33 |
//! | JPEG CMYK | at most 1, mean 0.01 |
//!
//! A JPEG decoder may round its inverse cosine transform, its chroma upsampling and its colour conversion
//! as it likes; `zune-jpeg` (inside `image`) does so otherwise than libjpeg-turbo. The crate
//! `jpeg-decoder` was measured too: mean 0.10 for 4:2:0 and 0.05 for 4:4:4, maximum 4;
//! `zune-jpeg` was kept because it comes with `image` and converts CMYK itself. After resize and crop of a 4:2:0 photograph the difference is at most 3 levels, mean 0.25.
//!
//! Not as in Pillow: around the first frame of a GIF that is smaller than its canvas there is black, not the
//! colour of the transparent index. Not supported, and an error: TIFF with a palette, with gray and alpha, or with
//! floats.

use std::io::Cursor;

use image::{DynamicImage, ImageFormat, ImageReader, Limits, RgbImage};

use crate::error::{Error, Result};

/// The most memory that decoding one image may take, in bytes: about 178 million RGB pixels, where
/// Pillow refuses an image as well (`DecompressionBombError`).
pub const MAX_DECODED_BYTES: u64 = 512 << 20;

/// Decodes an image to RGB; the format is told by content, and `name` is for the error message.
///
/// # Errors
/// [`Error::Format`] when the bytes are no image, [`Error::Decode`] when it is damaged or would need more
/// than [`MAX_DECODED_BYTES`], [`Error::Pixels`] when its pixels have no RGB form.
pub fn decode_rgb(bytes: &[u8], name: &str) -> Result<RgbImage> {
    let format = format_of(bytes).map_err(|found| Error::Format {
        name: name.into(),
        found,
    })?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_DECODED_BYTES);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits);
    let decoded = reader.decode().map_err(|source| Error::Decode {
        name: name.into(),
        source,
    })?;
    let (width, height) = (decoded.width(), decoded.height());
    let pixels: Vec<u8> = match &decoded {
        DynamicImage::ImageRgb8(_) => return Ok(decoded.into_rgb8()),
        DynamicImage::ImageRgba8(image) => {
            image.pixels().flat_map(|p| [p[0], p[1], p[2]]).collect()
        }
        DynamicImage::ImageLuma8(image) => image.pixels().flat_map(|p| [p[0]; 3]).collect(),
        DynamicImage::ImageLumaA8(image) => image.pixels().flat_map(|p| [p[0]; 3]).collect(),
        DynamicImage::ImageRgb16(image) => image
            .pixels()
            .flat_map(|p| [p[0], p[1], p[2]].map(high))
            .collect(),
        DynamicImage::ImageRgba16(image) => image
            .pixels()
            .flat_map(|p| [p[0], p[1], p[2]].map(high))
            .collect(),
        DynamicImage::ImageLumaA16(image) => image.pixels().flat_map(|p| [high(p[0]); 3]).collect(),
        DynamicImage::ImageLuma16(image) => {
            image.pixels().flat_map(|p| [clipped(p[0]); 3]).collect()
        }
        other => {
            return Err(Error::Pixels {
                name: name.into(),
                found: format!("{:?}", other.color()),
            });
        }
    };
    RgbImage::from_raw(width, height, pixels).ok_or_else(|| Error::Pixels {
        name: name.into(),
        found: format!("{:?} with {width} x {height} pixels", decoded.color()),
    })
}

fn high(value: u16) -> u8 {
    value.to_be_bytes()[0]
}

fn clipped(value: u16) -> u8 {
    u8::try_from(value).unwrap_or(u8::MAX)
}

/// The format, or in words what the content is instead.
fn format_of(bytes: &[u8]) -> std::result::Result<ImageFormat, String> {
    use ImageFormat::{Bmp, Gif, Jpeg, Png, Tiff, WebP};
    match image::guess_format(bytes) {
        Ok(format @ (Bmp | Gif | Jpeg | Png | Tiff | WebP)) => Ok(format),
        Ok(other) => Err(format!("it looks like {other:?}")),
        Err(_) if bytes.is_empty() => Err("the file is empty".into()),
        Err(_) => {
            let start = &bytes[..bytes.len().min(12)];
            Err(format!("it begins with `{}`", start.escape_ascii()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_and_empty_content_is_told_from_damage() {
        let message = |bytes: &[u8]| decode_rgb(bytes, "a/b.png").unwrap_err().to_string();
        assert!(
            message(b"")
                .starts_with("a/b.png: not an image: the file is empty; expected JPEG, PNG")
        );
        assert!(message(b"<html>\n<body>").contains("it begins with `<html>\\n<body`"));
        assert!(message(b"\0\0\0\x1cftypavif\0\0\0\0").contains("it looks like Avif"));
        let damaged = decode_rgb(b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR", "a/b.png").unwrap_err();
        assert!(matches!(damaged, Error::Decode { .. }), "{damaged}");
        assert!(
            damaged
                .to_string()
                .starts_with("a/b.png: cannot be decoded: ")
        );
    }

    #[test]
    fn a_small_file_cannot_ask_for_a_huge_picture() {
        // A well-formed header (its CRC is right) of a 60000 x 60000 RGB PNG: 10.8 GB of pixels.
        let header = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\xea\x60\0\0\xea\x60\x08\x02\0\0\0\x0f\xb0\xe2\x15";
        let mut bytes = header.to_vec();
        bytes.extend(b"\0\0\0\0IDAT\x35\xaf\x06\x1e\0\0\0\0IEND\xae\x42\x60\x82");
        let error = decode_rgb(&bytes, "bomb.png").unwrap_err();
        let Error::Decode { source, .. } = &error else {
            panic!("{error}")
        };
        assert!(matches!(source, image::ImageError::Limits(_)), "{source:?}");
    }
}
