use super::*;
use crate::draw::{Purpose, generator};

fn settings() -> Preprocess {
    Preprocess {
        resize: Some(Resize::Short(8)),
        crop: Some(6),
        crop_offset: CropOffset::Round,
        interpolation: Interpolation::Bicubic,
        mean: [0.5, 0.25, 0.0],
        std: [0.5, 0.25, 1.0],
        train: Train::Plain,
        scale: None,
        ratio: None,
        flip: false,
        brightness: None,
        train_interpolation: None,
    }
}

fn random() -> Preprocess {
    Preprocess {
        train: Train::RandomResizedCrop,
        scale: Some([0.08, 1.0]),
        ratio: Some([0.75, 4.0 / 3.0]),
        flip: true,
        ..settings()
    }
}

fn ramp(height: u32, width: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        image::Rgb([x as u8, y as u8, (x * 7 + y * 13) as u8])
    })
}

#[test]
fn values_are_normalised_by_channel_and_planar() {
    let transform = Preprocess {
        resize: None,
        crop: Some(1),
        ..settings()
    }
    .check()
    .unwrap();
    let image = RgbImage::from_pixel(1, 1, image::Rgb([255, 51, 102]));
    let expected = [1.0, (0.2f32 - 0.25) / 0.25, 0.4];
    assert_eq!(transform.plain(&image), expected);
    let two = RgbImage::from_raw(2, 1, vec![0, 1, 2, 3, 4, 5]).unwrap();
    let by_byte = |channel: usize, v: u8| {
        (f32::from(v) / 255.0 - [0.5, 0.25, 0.0][channel]) / [0.5, 0.25, 1.0][channel]
    };
    let expected = [(0, 0), (0, 3), (1, 1), (1, 4), (2, 2), (2, 5)].map(|(c, v)| by_byte(c, v));
    assert_eq!(transform.normalised(&two), expected);
}

#[test]
fn an_odd_margin_starts_the_crop_at_the_even_side_or_below() {
    let at = |crop_offset, size: u32| {
        let transform = Preprocess {
            resize: None,
            crop: Some(4),
            crop_offset,
            ..settings()
        }
        .check()
        .unwrap();
        u32::from(transform.plain_pixels(&ramp(4, size)).get_pixel(0, 0)[0])
    };
    // Margins 1 to 7; Python's round(0.5) is 0, round(1.5) is 2, round(2.5) is 2, round(3.5) is 4.
    assert_eq!(
        [5, 6, 7, 8, 9, 10, 11].map(|n| at(CropOffset::Round, n)),
        [0, 1, 2, 2, 2, 3, 4]
    );
    assert_eq!(
        [5, 6, 7, 8, 9, 10, 11].map(|n| at(CropOffset::Floor, n)),
        [0, 1, 1, 2, 2, 3, 3]
    );
}

#[test]
fn a_small_image_is_padded_with_black_as_by_torchvision() {
    // Height 3 into 6: one row above (3 / 2) and two below; width 9 into 6: columns 2 to 7 (round(1.5) = 2).
    let transform = Preprocess {
        resize: None,
        ..settings()
    }
    .check()
    .unwrap();
    let image = RgbImage::from_fn(9, 3, |x, y| image::Rgb([10 + x as u8, 20 + y as u8, 1]));
    let out = transform.plain_pixels(&image);
    assert_eq!(out.dimensions(), (6, 6));
    for (x, y, pixel) in out.enumerate_pixels() {
        let expected = match y {
            1..=3 => [12 + x as u8, 19 + y as u8, 1],
            _ => [0; 3],
        };
        assert_eq!(pixel.0, expected, "at {x}, {y}");
    }
}

#[test]
fn an_extreme_picture_is_resized_without_its_full_length() {
    // Short side 1 to 4096 makes the long side 4096 * 60000 pixels, of which a crop of 8 is computed.
    let transform = Preprocess {
        resize: Some(Resize::Short(4096)),
        crop: Some(8),
        ..settings()
    }
    .check()
    .unwrap();
    let image = RgbImage::from_pixel(60_000, 1, image::Rgb([7, 8, 9]));
    assert!(
        transform
            .plain_pixels(&image)
            .pixels()
            .all(|p| p.0 == [7, 8, 9])
    );
}

#[test]
fn an_exact_resize_needs_no_crop() {
    let transform = Preprocess {
        resize: Some(Resize::Exact([5, 9])),
        crop: None,
        ..settings()
    }
    .check()
    .unwrap();
    assert_eq!(transform.size(), (5, 9));
    assert_eq!(transform.plain(&ramp(20, 10)).len(), 3 * 5 * 9);
}

#[test]
fn random_rectangles_follow_scale_and_ratio() {
    let (scale, ratio) = ([0.2, 0.5], [0.5, 2.0]);
    let (mut areas, mut wider) = (Vec::new(), 0);
    for i in 0..2000 {
        let r = random_rect(
            600,
            600,
            scale,
            ratio,
            &mut generator(Purpose::Augment, [0, 0, i]),
        );
        assert!(r.top + r.height <= 600 && r.left + r.width <= 600, "{r:?}");
        areas.push(f64::from(r.height * r.width) / 360_000.0);
        wider += usize::from(r.width > r.height);
    }
    assert!(areas.iter().all(|a| (0.195..0.505).contains(a)));
    // Every draw fits a square, so nothing is refused: areas are uniform, and half the ratios above 1.
    let mean = areas.iter().sum::<f64>() / 2000.0;
    assert!((mean - 0.35).abs() < 0.01, "{mean}");
    assert!((900..1100).contains(&wider), "{wider}");
}

#[test]
fn the_fallback_is_the_largest_central_rectangle() {
    let mut rng = generator(Purpose::Augment, [0; 3]);
    let mut at = |h, w, ratio| random_rect(h, w, [1.0, 1.0], ratio, &mut rng);
    let rect = |top, left, height, width| Rect {
        top,
        left,
        height,
        width,
    };
    assert_eq!(at(10, 100, [0.75, 1.5]), rect(0, 42, 10, 15));
    assert_eq!(at(100, 10, [0.8, 1.5]), rect(44, 0, 12, 10));
    assert_eq!(at(1, 1000, [0.01, 0.2]), rect(0, 499, 1, 1));
}

#[test]
fn augmentation_repeats_with_the_generator_and_flips_half() {
    let transform = random().check().unwrap();
    let image = ramp(40, 50);
    let view = |id| transform.augmented(&image, &mut generator(Purpose::Augment, [1, 2, id]));
    assert_eq!(view(3), view(3));
    assert_ne!(view(3), view(4));
    let flip = Preprocess {
        flip: true,
        ..settings()
    }
    .check()
    .unwrap();
    let (plain, mut flipped) = (flip.plain_pixels(&image), 0);
    for id in 0..400 {
        let pixels = flip.augmented_pixels(&image, &mut generator(Purpose::Augment, [0, 0, id]));
        if pixels != plain {
            assert_eq!(image::imageops::flip_horizontal(&pixels), plain);
            flipped += 1;
        }
    }
    assert!((160..240).contains(&flipped), "{flipped}");
}

#[test]
fn every_field_is_checked_under_its_key() {
    let refused = |settings: Preprocess| match settings.check() {
        Err(Error::Setting { key, .. }) => key,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        refused(Preprocess {
            resize: Some(Resize::Short(0)),
            ..settings()
        }),
        "resize"
    );
    assert_eq!(
        refused(Preprocess {
            resize: Some(Resize::Exact([224, 5000])),
            ..settings()
        }),
        "resize"
    );
    assert_eq!(
        refused(Preprocess {
            crop: Some(0),
            ..settings()
        }),
        "crop"
    );
    assert_eq!(
        refused(Preprocess {
            crop: None,
            ..settings()
        }),
        "crop"
    );
    assert_eq!(
        refused(Preprocess {
            mean: [0.0, f64::NAN, 0.0],
            ..settings()
        }),
        "mean"
    );
    assert_eq!(
        refused(Preprocess {
            std: [1.0, 0.0, 1.0],
            ..settings()
        }),
        "std"
    );
    assert_eq!(
        refused(Preprocess {
            scale: None,
            ..random()
        }),
        "scale"
    );
    assert_eq!(
        refused(Preprocess {
            scale: Some([0.5, 1.5]),
            ..random()
        }),
        "scale"
    );
    assert_eq!(
        refused(Preprocess {
            ratio: Some([2.0, 1.0]),
            ..random()
        }),
        "ratio"
    );
    assert_eq!(
        refused(Preprocess {
            scale: Some([0.5, 1.0]),
            ..settings()
        }),
        "scale"
    );
    let message = Preprocess {
        scale: None,
        ..random()
    }
    .check()
    .unwrap_err()
    .within("data.transform")
    .to_string();
    assert_eq!(
        message,
        "setting `data.transform.scale`: train = \"random-resized-crop\" needs [low, high] with \
         0 < low <= high <= 1, for example [0.08, 1.0]; found nothing"
    );
}

#[test]
fn toml_refuses_what_it_does_not_know() {
    let text =
        "resize = 256\ncrop = 224\ninterpolation = \"bicubic\"\nmean = [0,0,0]\nstd = [1,1,1]\n";
    let read = |text: String| toml::from_str::<Preprocess>(&text);
    assert!(read(text.into()).is_ok());
    let error = |text: String| read(text).unwrap_err().to_string();
    assert!(error(format!("{text}flips = true")).contains("unknown field `flips`"));
    assert!(error(text.replace("bicubic", "lanczos")).contains("lanczos"));
    let resize = error(text.replace("256", "\"big\""));
    assert!(
        resize.contains("expected the length of the short side, or [height, width]"),
        "{resize}"
    );
}

#[test]
fn the_plain_form_ignores_augmentation_and_nothing_else() {
    assert_eq!(random().canonical_plain(), settings().canonical_plain());
    assert_ne!(random().canonical(), settings().canonical());
    let others = [
        Preprocess {
            resize: Some(Resize::Short(9)),
            ..settings()
        },
        Preprocess {
            crop: Some(7),
            ..settings()
        },
        Preprocess {
            crop_offset: CropOffset::Floor,
            ..settings()
        },
        Preprocess {
            interpolation: Interpolation::Bilinear,
            ..settings()
        },
        Preprocess {
            mean: [0.5, 0.25, 1e-9],
            ..settings()
        },
        Preprocess {
            std: [0.5, 0.26, 1.0],
            ..settings()
        },
    ];
    for other in others {
        assert_ne!(
            other.canonical_plain(),
            settings().canonical_plain(),
            "{other:?}"
        );
    }
}

/// `ImageEnhance.Brightness(image).enhance(factor)` of Pillow on 0, 1, 100, 200 and 255.
#[test]
fn brightness_is_pillows() {
    for (factor, expected) in [
        (0.75, [0, 0, 75, 150, 191]),
        (1.0, [0, 1, 100, 200, 255]),
        (1.2470588, [0, 1, 124, 249, 255]),
        (0.0, [0; 5]),
    ] {
        let mut pixels = RgbImage::new(5, 1);
        for (x, value) in [0, 1, 100, 200, 255].into_iter().enumerate() {
            pixels.put_pixel(x as u32, 0, image::Rgb([value; 3]));
        }
        brighten(&mut pixels, factor);
        let found: Vec<u8> = pixels.pixels().map(|p| p[0]).collect();
        assert_eq!(found, expected, "{factor}");
    }
    let jitter = Preprocess {
        brightness: Some(0.5),
        ..settings()
    };
    let transform = jitter.check().unwrap();
    assert!(!transform.trains_on_plain());
    assert_eq!(jitter.canonical_plain(), settings().canonical_plain());
    let image = ramp(12, 12);
    let view = |seed| transform.augmented(&image, &mut generator(Purpose::Augment, [seed, 0, 0]));
    assert_ne!(view(1), view(2));
    assert_eq!(view(1), view(1));
    for bad in [0.0, -1.0, f64::NAN] {
        let settings = Preprocess {
            brightness: Some(bad),
            ..settings()
        };
        let text = settings.check().unwrap_err().to_string();
        assert!(text.contains("brightness"), "{text}");
    }
}
