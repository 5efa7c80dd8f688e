//! Learn 50 classes in five tasks with class means on a frozen backbone, and print what is remembered.
//!
//! `cargo run --release -p candlewick-examples --example quickstart`

use std::error::Error;

use candlewick_core::{RunOptions, run::run};
use candlewick_examples::{tasks, vit_micro};
use candlewick_methods::SimpleCil;

fn main() -> Result<(), Box<dyn Error>> {
    let (backbone, preprocess) = vit_micro()?;
    let stream = tasks(&candlewick_data::demo()?, 10, &preprocess)?;
    let mut method = SimpleCil {}.build(backbone, 32);
    let options = RunOptions {
        seed: 1,
        eval_batch: 32,
    };
    let outcome = run(&mut method, &stream, options, &mut ())?;
    for (t, accuracy) in outcome.accuracy.micro_curve().iter().enumerate() {
        println!("after task {}: {accuracy:.2} % on all classes seen", t + 1);
    }
    println!("forgetting: {:.2} points", outcome.accuracy.forgetting());
    Ok(())
}
