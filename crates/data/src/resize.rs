//! Resizing as Pillow does it, bit for bit: `Image.resize` of an RGB image with an antialiased filter.
//!
//! Along an axis of `n` pixels that becomes `m`, with `scale = n/m` and `f = max(scale, 1)`, output `i` is
//! centred at `c = (i + 1/2)·scale` and reads the inputs from `max(0, ⌊c − s·f + 1/2⌋)` up to, without,
//! `min(n, ⌊c + s·f + 1/2⌋)`, `s` being the filter's support. Input `x` has weight
//! `filter((x − c + 1/2)/f)`; the weights of an output are divided by their sum in double precision and
//! rounded to multiples of 2⁻²². The horizontal pass comes first, and its result, rounded and clipped to
//! 8 bits, feeds the vertical pass. (`python-pillow/Pillow:src/libImaging/Resample.c`)
//!
//! An axis that keeps its length needs no case of its own: all its weights but one come out as 0.

use image::RgbImage;
use serde::{Deserialize, Serialize};

/// Bits behind the point of a weight: 32 less 8 of the pixel and 2 to spare, as in Pillow.
const PRECISION: u32 = 32 - 8 - 2;
const HALF: i32 = 1 << (PRECISION - 1);

/// The filter of a resize; both grow with the factor of reduction, as Pillow's do (antialiasing).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// Triangle filter, support 1.
    Bilinear,
    /// Cubic convolution with a = -1/2, support 2.
    Bicubic,
}

impl Interpolation {
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    fn filter(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Self::Bilinear if x < 1.0 => 1.0 - x,
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            _ => 0.0,
        }
    }
}

/// A rectangle of pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rect {
    /// First row.
    pub top: u32,
    /// First column.
    pub left: u32,
    /// Number of rows.
    pub height: u32,
    /// Number of columns.
    pub width: u32,
}

impl Rect {
    /// All of an image of this size.
    pub fn whole(height: u32, width: u32) -> Self {
        Self {
            top: 0,
            left: 0,
            height,
            width,
        }
    }

    /// The part that lies within `height` x `width` pixels.
    fn within(self, height: u32, width: u32) -> Self {
        let (top, left) = (self.top.min(height), self.left.min(width));
        Self {
            top,
            left,
            height: self.height.min(height - top),
            width: self.width.min(width - left),
        }
    }
}

/// Resizes a whole image to `height` x `width`.
pub fn resize(image: &RgbImage, height: u32, width: u32, filter: Interpolation) -> RgbImage {
    let all = Rect::whole(image.height(), image.width());
    resize_window(
        image,
        all,
        (height, width),
        Rect::whole(height, width),
        filter,
    )
}

/// The part `window` of what `image.crop(source).resize(size)` would give, without computing the rest;
/// `size` is (height, width). Pixels outside `source` have no influence, as after a crop. Rectangles are
/// cut down to what exists; nothing at all gives an image without pixels.
pub fn resize_window(
    image: &RgbImage,
    source: Rect,
    size: (u32, u32),
    window: Rect,
    filter: Interpolation,
) -> RgbImage {
    let source = source.within(image.height(), image.width());
    let window = window.within(size.0, size.1);
    if source.width == 0 || source.height == 0 {
        return RgbImage::new(0, 0);
    }
    let columns = Taps::new(source.width, size.1, window.left, window.width, filter);
    let rows = Taps::new(source.height, size.0, window.top, window.height, filter);
    let mut pixels = vec![0; 3 * window.width as usize * window.height as usize];
    pulp::Arch::new().dispatch(Passes {
        image,
        source,
        columns: &columns,
        rows: &rows,
        out: &mut pixels,
    });
    RgbImage::from_raw(window.width, window.height, pixels).unwrap_or_default()
}

/// The inputs and weights of each output along one axis.
struct Taps {
    /// First input of each output.
    starts: Vec<usize>,
    /// `stride` weights for each output, in units of 2^-22; those behind the last input are missing.
    weights: Vec<Vec<i32>>,
}

impl Taps {
    fn new(from: u32, to: u32, first: u32, count: u32, filter: Interpolation) -> Self {
        let scale = f64::from(from) / f64::from(to);
        let stretch = scale.max(1.0);
        let support = filter.support() * stretch;
        let unit = f64::from(1u32 << PRECISION);
        let mut weights = Vec::with_capacity(count as usize);
        let mut starts = Vec::with_capacity(count as usize);
        for i in first..first + count {
            let centre = (f64::from(i) + 0.5) * scale;
            // `as` truncates and saturates: a negative start becomes 0.
            let start = (centre - support + 0.5) as u32;
            let end = ((centre + support + 0.5) as u32).min(from);
            let exact: Vec<f64> = (start..end)
                .map(|x| filter.filter((f64::from(x) - centre + 0.5) * (1.0 / stretch)))
                .collect();
            let sum: f64 = exact.iter().sum();
            starts.push(start as usize);
            // `round` goes half away from zero.
            weights.push(
                exact
                    .iter()
                    .map(|w| (w / sum * unit).round() as i32)
                    .collect(),
            );
        }
        Self { starts, weights }
    }

    /// The inputs that any output reads.
    fn reach(&self) -> std::ops::Range<usize> {
        let ends = self
            .starts
            .iter()
            .zip(&self.weights)
            .map(|(start, w)| start + w.len());
        let start = self.starts.first().copied().unwrap_or(0);
        start..ends.max().unwrap_or(start)
    }
}

#[inline(always)]
fn rounded(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// Both passes. They are plain loops, which `dispatch` compiles for AVX2 and AVX-512 as well and chooses at run
/// time; a closure would do in its place, were it sure to be inlined there. Sums stay far below 2^31; they wrap in
/// the code so that the check for overflow in a debug build does not keep the loops from becoming SIMD.
struct Passes<'a> {
    image: &'a RgbImage,
    source: Rect,
    columns: &'a Taps,
    rows: &'a Taps,
    out: &'a mut [u8],
}

impl pulp::WithSimd for Passes<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        passes(self.image, self.source, self.columns, self.rows, self.out);
    }
}

#[inline(always)]
fn passes(image: &RgbImage, source: Rect, columns: &Taps, rows: &Taps, out: &mut [u8]) {
    let needed = rows.reach();
    let length = 3 * columns.starts.len();
    if length == 0 {
        return;
    }
    let mut between = vec![0; length * needed.len()];
    horizontal(image, source, columns, needed.start, &mut between);

    let mut sums = vec![HALF; length];
    for ((out, start), weights) in out
        .chunks_exact_mut(length)
        .zip(&rows.starts)
        .zip(&rows.weights)
    {
        sums.fill(HALF);
        let lines = between[(start - needed.start) * length..].chunks_exact(length);
        for (line, weight) in lines.zip(weights) {
            for (sum, pixel) in sums.iter_mut().zip(line) {
                *sum = sum.wrapping_add(i32::from(*pixel).wrapping_mul(*weight));
            }
        }
        for (out, sum) in out.iter_mut().zip(&sums) {
            *out = rounded(*sum);
        }
    }
}

/// Lines are taken in pairs, widened once to 8 lanes per column (three used of each four), so that the
/// inner loop is one multiplication and one addition of whole vectors.
#[inline(always)]
fn horizontal(
    image: &RgbImage,
    source: Rect,
    columns: &Taps,
    first_row: usize,
    between: &mut [u8],
) {
    let length = 3 * columns.starts.len();
    let reach = columns.reach();
    let mut wide = vec![[0i32; 8]; reach.len()];
    let stride = 3 * image.width() as usize;
    let pixels = image.as_raw();
    for (pair, out) in between.chunks_mut(2 * length).enumerate() {
        let lines = out.len() / length;
        for lane in 0..lines {
            let row = source.top as usize + first_row + 2 * pair + lane;
            let start = row * stride + 3 * (source.left as usize + reach.start);
            let line = &pixels[start..start + 3 * reach.len()];
            for (wide, pixel) in wide.iter_mut().zip(line.chunks_exact(3)) {
                for channel in 0..3 {
                    wide[4 * lane + channel] = i32::from(pixel[channel]);
                }
            }
        }
        for (column, (start, weights)) in columns.starts.iter().zip(&columns.weights).enumerate() {
            let mut sums = [HALF; 8];
            for (wide, weight) in wide[start - reach.start..].iter().zip(weights) {
                for (sum, value) in sums.iter_mut().zip(wide) {
                    *sum = sum.wrapping_add(value.wrapping_mul(*weight));
                }
            }
            for lane in 0..lines {
                for channel in 0..3 {
                    out[lane * length + 3 * column + channel] = rounded(sums[4 * lane + channel]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(height: u32, width: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| {
            let v = x
                .wrapping_mul(2_654_435_761)
                .wrapping_add(y.wrapping_mul(40_503))
                .wrapping_mul(x ^ y | 1);
            image::Rgb([(v >> 8) as u8, (v >> 16) as u8, (v >> 24) as u8])
        })
    }

    #[test]
    fn an_unchanged_size_changes_no_pixel() {
        let image = picture(7, 11);
        for filter in [Interpolation::Bilinear, Interpolation::Bicubic] {
            assert_eq!(resize(&image, 7, 11, filter), image);
        }
    }

    #[test]
    fn a_window_is_a_crop_of_the_whole() {
        let image = picture(37, 53);
        let window = Rect {
            top: 3,
            left: 5,
            height: 9,
            width: 11,
        };
        for filter in [Interpolation::Bilinear, Interpolation::Bicubic] {
            for size in [(20, 31), (60, 90), (37, 20)] {
                let whole = resize(&image, size.0, size.1, filter);
                let part = resize_window(&image, Rect::whole(37, 53), size, window, filter);
                let cut = image::imageops::crop_imm(&whole, 5, 3, 11, 9).to_image();
                assert_eq!(part, cut, "{filter:?} to {size:?}");
            }
        }
    }

    #[test]
    fn a_source_rectangle_is_a_crop_before_the_resize() {
        let image = picture(37, 53);
        let cut = image::imageops::crop_imm(&image, 7, 2, 19, 23).to_image();
        let source = Rect {
            top: 2,
            left: 7,
            height: 23,
            width: 19,
        };
        let all = Rect::whole(16, 40);
        let part = resize_window(&image, source, (16, 40), all, Interpolation::Bicubic);
        assert_eq!(part, resize(&cut, 16, 40, Interpolation::Bicubic));
    }

    #[test]
    fn rectangles_outside_and_empty_images_give_less_and_never_panic() {
        let image = picture(4, 6);
        let far = Rect {
            top: 9,
            left: 9,
            height: 5,
            width: 5,
        };
        let whole = Rect::whole(4, 6);
        let filter = Interpolation::Bilinear;
        assert_eq!(
            resize_window(&image, far, (8, 8), Rect::whole(8, 8), filter).dimensions(),
            (0, 0)
        );
        assert_eq!(
            resize_window(&image, whole, (8, 8), far, filter).dimensions(),
            (0, 0)
        );
        assert_eq!(
            resize(&RgbImage::new(0, 0), 3, 3, filter).dimensions(),
            (0, 0)
        );
        assert_eq!(resize(&image, 0, 3, filter).dimensions(), (3, 0));
    }
}
