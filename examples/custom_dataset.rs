//! A data set from elsewhere: anything that can hand out pictures is a `Source`. Here, four colours are the classes and
//! the pictures are drawn on the spot.
//!
//! `cargo run --release -p candlewick-examples --example custom_dataset`

use std::error::Error;
use std::sync::Arc;

use candlewick_core::{RunOptions, run::run};
use candlewick_data::{Parts, Result, RgbImage, Source};
use candlewick_examples::{tasks, vit_micro};
use candlewick_methods::SimpleCil;

struct Discs {
    classes: Vec<String>,
    /// Tells training and test pictures apart.
    shift: u32,
}

const COLOURS: [(&str, [u8; 3]); 4] = [
    ("red", [200, 30, 30]),
    ("green", [30, 160, 60]),
    ("blue", [40, 60, 200]),
    ("yellow", [230, 200, 30]),
];

impl Discs {
    fn new(shift: u32) -> Self {
        Self {
            classes: COLOURS.iter().map(|(name, _)| (*name).to_owned()).collect(),
            shift,
        }
    }
}

impl Source for Discs {
    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn len(&self) -> usize {
        5 * COLOURS.len()
    }

    fn label(&self, index: usize) -> usize {
        index % COLOURS.len()
    }

    fn name(&self, index: usize) -> String {
        format!(
            "{}/{}-{}",
            self.classes[self.label(index)],
            self.shift,
            index
        )
    }

    fn rgb(&self, index: usize) -> Result<RgbImage> {
        let (_, colour) = COLOURS[self.label(index)];
        let radius = 10 + 3 * (index as u32 / 4) + self.shift;
        Ok(RgbImage::from_fn(64, 64, |x, y| {
            let (dx, dy) = (x.abs_diff(32), y.abs_diff(32));
            match dx * dx + dy * dy < radius * radius {
                true => colour.into(),
                false => [255; 3].into(),
            }
        }))
    }

    fn fingerprint(&self) -> String {
        format!("discs {}", self.shift)
    }
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let (backbone, preprocess) = vit_micro()?;
    let parts = Parts {
        train: Arc::new(Discs::new(0)),
        test: Arc::new(Discs::new(1)),
    };
    let stream = tasks(&parts, 2, &preprocess)?;
    let mut method = SimpleCil {}.build(backbone, 8);
    let options = RunOptions {
        seed: 1,
        eval_batch: 8,
    };
    let outcome = run(&mut method, &stream, options, &mut ())?;
    println!(
        "accuracy after each task: {:.1?} %",
        outcome.accuracy.micro_curve()
    );
    Ok(())
}
