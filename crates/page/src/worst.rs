//! The test images that were predicted wrong with the largest scores, as thumbnails.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use image::codecs::jpeg::JpegEncoder;
use image::{RgbImage, imageops};
use maud::{Markup, html};

use crate::error::{Error, Result};
use crate::number::fixed;
use crate::record::{Prediction, Run};

/// Images that are shown.
pub const WORST: usize = 24;
/// The longer side of a thumbnail in pixels.
const SIDE: u32 = 112;
/// Of JPEG.
const QUALITY: u8 = 80;
/// Base64 in all; images beyond are named only.
const BYTES: usize = 256 << 10;

impl Run {
    /// The names of the most confidently wrong test images, the worst first.
    pub fn worst(&self) -> Vec<String> {
        let worst = worst(&self.predictions);
        worst.into_iter().map(|p| p.image.clone()).collect()
    }

    /// Adds a thumbnail, unless those that are there take the room already.
    ///
    /// # Errors
    /// [`Error::Picture`] when it cannot be encoded.
    pub fn picture(&mut self, name: &str, image: &RgbImage) -> Result<()> {
        let (width, height) = image.dimensions();
        let longer = width.max(height).max(1);
        let part = |n: u32| f64::from(n) / f64::from(longer);
        let side = |n: u32| ((part(n) * f64::from(SIDE)).round() as u32).max(1);
        let small = match longer > SIDE {
            true => imageops::thumbnail(image, side(width), side(height)),
            false => image.clone(),
        };
        let mut bytes = Vec::new();
        let encoder = JpegEncoder::new_with_quality(&mut bytes, QUALITY);
        small
            .write_with_encoder(encoder)
            .map_err(|source| Error::Picture {
                name: name.to_owned(),
                source,
            })?;
        let text = format!("data:image/jpeg;base64,{}", BASE64_STANDARD.encode(bytes));
        let taken: usize = self.pictures.values().map(String::len).sum();
        if taken + text.len() <= BYTES {
            self.pictures.insert(name.to_owned(), text);
        }
        Ok(())
    }
}

fn worst(predictions: &[Prediction]) -> Vec<&Prediction> {
    let mut wrong: Vec<&Prediction> = predictions
        .iter()
        .filter(|p| p.class != p.predicted)
        .collect();
    wrong.sort_by(|a, b| b.score.total_cmp(&a.score));
    wrong.truncate(WORST);
    wrong
}

/// `None` where nothing was predicted wrong, or nothing is on record.
pub fn images(run: &Run) -> Option<Markup> {
    let worst = worst(&run.predictions);
    if worst.is_empty() {
        return None;
    }
    let shown = worst
        .iter()
        .any(|p| run.pictures.contains_key(p.image.as_str()));
    Some(html! {
        @if !shown {
            p class="note" { "The images were not at hand when this page was made, so they are named only." }
        }
        ul class=(if shown { "worst" } else { "worst names" }) {
            @for p in &worst {
                li {
                    @if let Some(picture) = run.pictures.get(p.image.as_str()) {
                        img src=(picture) alt=(format!("{} taken for {}", p.class, p.predicted)) width="112" height="112" title=(p.image);
                    } @else if shown {
                        div class="missing" title=(p.image) { "no picture" }
                    }
                    p {
                        span class="is" { (p.class) }
                        span class="said" { "taken for " b { (p.predicted) } }
                        span class="score" { "score " (fixed(p.score, 3)) }
                        @if !shown { span class="path" { (p.image) } }
                    }
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::confusion::tests::run;

    #[test]
    fn the_most_confident_mistakes_come_first_and_thumbnails_are_small() {
        let mut run = run();
        assert_eq!(run.worst(), ["6", "2", "8"]);
        let html = images(&run).unwrap().into_string();
        assert!(html.contains("named only"), "{html}");
        run.picture("6", &RgbImage::new(400, 100)).unwrap();
        let html = images(&run).unwrap().into_string();
        assert!(html.contains("data:image/jpeg;base64,/9j/"), "{html}");
        let bytes = run.pictures["6"].split(',').nth(1).unwrap();
        let bytes = BASE64_STANDARD.decode(bytes).unwrap();
        let small = image::load_from_memory(&bytes).unwrap();
        assert_eq!((small.width(), small.height()), (112, 28));
        assert!(html.contains("no picture"), "the others keep their place");
    }

    #[test]
    fn thumbnails_beyond_the_room_are_left_out() {
        let mut run = run();
        let noise = RgbImage::from_fn(112, 112, |x, y| {
            let n = (x * 7919 + y * 104_729 + x * y * 31) as u8;
            image::Rgb([n, n.wrapping_mul(91), n.wrapping_mul(173)])
        });
        for i in 0..200 {
            run.picture(&i.to_string(), &noise).unwrap();
        }
        let bytes: usize = run.pictures.values().map(String::len).sum();
        assert!(bytes <= BYTES && run.pictures.len() < 200, "{bytes}");
        assert!(run.pictures.contains_key("0"));
    }
}
