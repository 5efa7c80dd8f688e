//! From a decoded picture to the numbers a backbone takes: resize, crop, augmentation, normalisation.

use image::RgbImage;
use rand_chacha::rand_core::RngCore;
use serde::{Deserialize, Serialize};

use crate::draw;
use crate::error::{Error, Result};
use crate::resize::{Interpolation, Rect, resize_window};

/// The longest side that a setting may ask for.
const MAX_SIDE: u32 = 4096;

/// The size an image is resized to before the crop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected the length of the short side, or [height, width]"
)]
pub enum Resize {
    /// The short side becomes this long, the long side ⌊side · long / short⌋
    /// (`pytorch/vision:torchvision/transforms/functional.py`).
    Short(u32),
    /// Height and width, whatever the proportions were.
    Exact([u32; 2]),
}

/// Where a central crop starts when a margin is odd.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CropOffset {
    /// At half the margin, rounded half to even: torchvision.
    #[default]
    Round,
    /// At half the margin, rounded down: CLIP's image processor.
    Floor,
}

/// How a training view of an image is cut out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Train {
    /// As for testing.
    #[default]
    Plain,
    /// torchvision's `RandomResizedCrop` with `scale` and `ratio`.
    RandomResizedCrop,
}

/// The preprocessing of a backbone and the augmentation of a recipe, as they are written in TOML.
///
/// ```
/// let preprocess: candlewick_data::Preprocess = toml::from_str(
///     r#"
///     resize = 256
///     crop = 224
///     interpolation = "bicubic"
///     mean = [0.485, 0.456, 0.406]
///     std = [0.229, 0.224, 0.225]
///     train = "random-resized-crop"
///     scale = [0.05, 1.0]
///     ratio = [0.75, 1.3333333333333333]
///     flip = true
///     "#,
/// )?;
/// assert_eq!(preprocess.check().map(|t| t.size()).ok(), Some((224, 224)));
/// # Ok::<(), toml::de::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocess {
    /// Size before the crop; omitted, images are not resized (the training crop still is).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resize: Option<Resize>,
    /// Side of the central square crop; a smaller image is padded with black. May be omitted when `resize`
    /// is exact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crop: Option<u32>,
    /// Where the crop starts when a margin is odd.
    #[serde(default)]
    pub crop_offset: CropOffset,
    /// Filter of the resize.
    pub interpolation: Interpolation,
    /// Mean of each channel, of values in [0, 1].
    pub mean: [f64; 3],
    /// Standard deviation of each channel.
    pub std: [f64; 3],
    /// How a training view is cut out.
    #[serde(default)]
    pub train: Train,
    /// Range of the part of the area that a random crop takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<[f64; 2]>,
    /// Range of width / height of a random crop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<[f64; 2]>,
    /// Mirror a training view left to right with probability 1/2.
    #[serde(default)]
    pub flip: bool,
    /// Multiply a training view by a number uniform in `[max(0, 1 − b), 1 + b]`: torchvision's `ColorJitter(brightness = b)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub brightness: Option<f64>,
    /// Filter of the random crop's resize; omitted, that of `interpolation`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_interpolation: Option<Interpolation>,
}

impl Preprocess {
    /// Checks every field and turns the settings into something that can be applied.
    ///
    /// # Errors
    /// [`Error::Setting`] with the key of the first field that does not hold.
    pub fn check(&self) -> Result<Transform> {
        let side = |key: &str, side: u32| match side {
            1..=MAX_SIDE => Ok(()),
            _ => Err(Error::setting(
                key,
                format!("expected 1 to {MAX_SIDE} pixels, found {side}"),
            )),
        };
        match self.resize {
            Some(Resize::Short(short)) => side("resize", short)?,
            Some(Resize::Exact([height, width])) => {
                side("resize", height).and(side("resize", width))?
            }
            None => {}
        }
        let size = match (self.crop, self.resize) {
            (Some(crop), _) => side("crop", crop).map(|()| (crop, crop))?,
            (None, Some(Resize::Exact([height, width]))) => (height, width),
            (None, _) => {
                let problem = "missing: without it images keep different sizes; give the side of the \
                               crop, or an exact `resize = [height, width]`";
                return Err(Error::setting("crop", problem));
            }
        };
        for (channel, mean) in self.mean.iter().enumerate() {
            if !mean.is_finite() {
                return Err(Error::setting(
                    "mean",
                    format!("channel {channel} is {mean}, not a number"),
                ));
            }
        }
        for (channel, std) in self.std.iter().enumerate() {
            if !(std.is_finite() && *std > 0.0) {
                let problem =
                    format!("expected numbers above 0, found {std} for channel {channel}");
                return Err(Error::setting("std", problem));
            }
        }
        if let Some(brightness) = self.brightness
            && !(brightness.is_finite() && brightness > 0.0)
        {
            let problem = format!("expected a number above 0, found {brightness}");
            return Err(Error::setting("brightness", problem));
        }
        let random = match self.train {
            Train::RandomResizedCrop => Some(self.random_crop()?),
            Train::Plain => {
                for (key, given) in [
                    ("scale", self.scale.is_some()),
                    ("ratio", self.ratio.is_some()),
                    ("train_interpolation", self.train_interpolation.is_some()),
                ] {
                    if given {
                        let problem = "has no effect with train = \"plain\"; remove it, or set \
                                       train = \"random-resized-crop\"";
                        return Err(Error::setting(key, problem));
                    }
                }
                None
            }
        };
        Ok(Transform {
            tables: [0, 1, 2].map(|c| table(self.mean[c], self.std[c])),
            size,
            random,
            settings: self.clone(),
        })
    }

    fn random_crop(&self) -> Result<RandomCrop> {
        let range = |key: &str, range: Option<[f64; 2]>, limit: f64, example: &str| match range {
            Some([low, high]) if 0.0 < low && low <= high && high <= limit => Ok([low, high]),
            found => {
                let found =
                    found.map_or("nothing".into(), |[low, high]| format!("[{low}, {high}]"));
                let problem = format!(
                    "train = \"random-resized-crop\" needs [low, high] with 0 < low <= high <= {limit}, \
                     for example {example}; found {found}"
                );
                Err(Error::setting(key, problem))
            }
        };
        Ok(RandomCrop {
            scale: range("scale", self.scale, 1.0, "[0.08, 1.0]")?,
            ratio: range("ratio", self.ratio, 100.0, "[0.75, 1.3333]")?,
            filter: self.train_interpolation.unwrap_or(self.interpolation),
        })
    }

    /// The settings as bytes that are the same exactly if every view of every image is.
    pub fn canonical(&self) -> Vec<u8> {
        canonical(self)
    }

    /// The same for the plain view only: what a cache of plain features depends on.
    pub fn canonical_plain(&self) -> Vec<u8> {
        canonical(&Self {
            train: Train::Plain,
            scale: None,
            ratio: None,
            flip: false,
            brightness: None,
            train_interpolation: None,
            ..self.clone()
        })
    }
}

/// JSON with the fields in order of declaration. Numbers are written so that they read back the same.
fn canonical(settings: &Preprocess) -> Vec<u8> {
    // Serialising a struct of numbers and names into memory has no way to fail.
    serde_json::to_vec(settings).unwrap_or_default()
}

/// `table[v]` is the network's value for the byte `v`, in f32 as torch computes it: `((v/255) - mean) / std`.
fn table(mean: f64, std: f64) -> [f32; 256] {
    std::array::from_fn(|value| (value as f32 / 255.0 - mean as f32) / std as f32)
}

#[derive(Debug, Clone, Copy)]
struct RandomCrop {
    scale: [f64; 2],
    ratio: [f64; 2],
    filter: Interpolation,
}

/// Checked settings, ready to be applied. Made by [`Preprocess::check`].
#[derive(Debug, Clone)]
pub struct Transform {
    settings: Preprocess,
    size: (u32, u32),
    tables: [[f32; 256]; 3],
    random: Option<RandomCrop>,
}

impl Transform {
    /// The settings it was made from.
    pub fn settings(&self) -> &Preprocess {
        &self.settings
    }

    /// Height and width of what comes out.
    pub fn size(&self) -> (usize, usize) {
        (self.size.0 as usize, self.size.1 as usize)
    }

    /// True when training sees the same pixels as testing.
    pub fn trains_on_plain(&self) -> bool {
        self.random.is_none() && !self.settings.flip && self.settings.brightness.is_none()
    }

    /// The test view, `(3, H, W)` in row-major order, normalised.
    pub fn plain(&self, image: &RgbImage) -> Vec<f32> {
        self.normalised(&self.plain_pixels(image))
    }

    /// The test view before normalisation.
    pub fn plain_pixels(&self, image: &RgbImage) -> RgbImage {
        let (height, width) = (image.height(), image.width());
        if height == 0 || width == 0 {
            return RgbImage::new(self.size.1, self.size.0);
        }
        let resized = match self.settings.resize {
            None => (height, width),
            Some(Resize::Exact([height, width])) => (height, width),
            Some(Resize::Short(short)) => {
                let long = |long: u32, side: u32| {
                    let long = u64::from(short) * u64::from(long) / u64::from(side);
                    u32::try_from(long).unwrap_or(u32::MAX)
                };
                if width <= height {
                    (long(height, width), short)
                } else {
                    (short, long(width, height))
                }
            }
        };
        let (top, above) = self.offset(resized.0, self.size.0);
        let (left, before) = self.offset(resized.1, self.size.1);
        let window = Rect {
            top,
            left,
            height: self.size.0,
            width: self.size.1,
        };
        let all = Rect::whole(height, width);
        let part = resize_window(image, all, resized, window, self.settings.interpolation);
        if (part.height(), part.width()) == self.size {
            return part;
        }
        let mut padded = RgbImage::new(self.size.1, self.size.0);
        image::imageops::replace(&mut padded, &part, i64::from(before), i64::from(above));
        padded
    }

    /// Along one axis: where the crop starts in the image, and where the image starts in the crop.
    fn offset(&self, from: u32, crop: u32) -> (u32, u32) {
        let Some(margin) = from.checked_sub(crop) else {
            return (0, (crop - from) / 2);
        };
        let half = margin / 2;
        match self.settings.crop_offset {
            CropOffset::Round if margin % 2 == 1 => (half + half % 2, 0),
            _ => (half, 0),
        }
    }

    /// A training view, `(3, H, W)`, normalised; everything random comes from `rng`.
    pub fn augmented(&self, image: &RgbImage, rng: &mut impl RngCore) -> Vec<f32> {
        self.normalised(&self.augmented_pixels(image, rng))
    }

    /// A training view before normalisation.
    pub fn augmented_pixels(&self, image: &RgbImage, rng: &mut impl RngCore) -> RgbImage {
        let mut pixels = match self.random {
            Some(random) if image.width() > 0 && image.height() > 0 => {
                let source = random_rect(
                    image.height(),
                    image.width(),
                    random.scale,
                    random.ratio,
                    rng,
                );
                let whole = Rect::whole(self.size.0, self.size.1);
                resize_window(image, source, self.size, whole, random.filter)
            }
            _ => self.plain_pixels(image),
        };
        if self.settings.flip && draw::unit(rng) < 0.5 {
            image::imageops::flip_horizontal_in_place(&mut pixels);
        }
        if let Some(brightness) = self.settings.brightness {
            let range = [(1.0 - brightness).max(0.0), 1.0 + brightness];
            brighten(&mut pixels, draw::between(rng, range) as f32);
        }
        pixels
    }

    /// `(3, H, W)` of `(v/255 - mean) / std`.
    pub fn normalised(&self, pixels: &RgbImage) -> Vec<f32> {
        let raw = pixels.as_raw();
        let mut values = Vec::with_capacity(raw.len());
        for (channel, table) in self.tables.iter().enumerate() {
            values.extend(
                raw.iter()
                    .skip(channel)
                    .step_by(3)
                    .map(|v| table[usize::from(*v)]),
            );
        }
        values
    }
}

/// Values times `factor`, cut to bytes: Pillow's `ImageEnhance.Brightness` (`python-pillow/Pillow:src/libImaging/Blend.c`).
pub fn brighten(pixels: &mut RgbImage, factor: f32) {
    let table: [u8; 256] = std::array::from_fn(|value| (value as f32 * factor) as u8);
    for value in pixels.iter_mut() {
        *value = table[usize::from(*value)];
    }
}

/// The rectangle of torchvision's `RandomResizedCrop`: up to ten draws of an area uniform in `scale` (part of
/// the image's) and a ratio width / height log-uniform in `ratio`; the first that fits is placed uniformly.
/// If none fits, the largest central rectangle with a ratio in the range.
/// (`pytorch/vision:torchvision/transforms/transforms.py`, `get_params`)
pub fn random_rect(
    height: u32,
    width: u32,
    scale: [f64; 2],
    ratio: [f64; 2],
    rng: &mut impl RngCore,
) -> Rect {
    let area = f64::from(height) * f64::from(width);
    for _ in 0..10 {
        let area = area * draw::between(rng, scale);
        let ratio = draw::between(rng, ratio.map(f64::ln)).exp();
        let w = (area * ratio).sqrt().round_ties_even() as u32;
        let h = (area / ratio).sqrt().round_ties_even() as u32;
        if (1..=width).contains(&w) && (1..=height).contains(&h) {
            return Rect {
                top: draw::up_to(rng, u64::from(height - h)) as u32,
                left: draw::up_to(rng, u64::from(width - w)) as u32,
                height: h,
                width: w,
            };
        }
    }
    let whole = f64::from(width) / f64::from(height);
    let (h, w) = if whole < ratio[0] {
        (
            ((f64::from(width) / ratio[0]).round_ties_even() as u32),
            width,
        )
    } else if whole > ratio[1] {
        (
            height,
            ((f64::from(height) * ratio[1]).round_ties_even() as u32),
        )
    } else {
        (height, width)
    };
    // torchvision may come to 0 pixels here for a picture one pixel wide; one is the least that can be resized.
    let (h, w) = (h.clamp(1, height.max(1)), w.clamp(1, width.max(1)));
    Rect {
        top: height.saturating_sub(h) / 2,
        left: width.saturating_sub(w) / 2,
        height: h,
        width: w,
    }
}

#[cfg(test)]
#[path = "transform_tests.rs"]
mod tests;
