//! Trains steered tokens on the embedded data, evaluates after each task, saves, and loads again.
//!
//! `cargo run --release -p candlewick-new-prompt-module -- runs/steered.safetensors`

use std::collections::HashMap;
use std::error::Error;
use std::path::Path;

use candle_core::Device;
use candlewick_core::{Method, RunOptions, View, run::run};
use candlewick_new_prompt_module::{setup, steered};

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args()
        .nth(1)
        .ok_or("usage: candlewick-new-prompt-module FILE.safetensors")?;
    let (backbone, preprocess) = setup::backbone(6)?;
    let stream = setup::stream(&[5, 5, 5], &preprocess)?;
    let mut method = steered::method(backbone.clone(), setup::train(3)?, 1)?;
    let options = RunOptions {
        seed: 1,
        eval_batch: 32,
    };
    let outcome = run(&mut method, &stream, options, &mut ())?;
    let curve = outcome.accuracy.micro_curve();
    println!("accuracy after each task: {curve:.2?} %");
    println!("trained values: {}", outcome.cost.trainable_parameters);

    if let Some(folder) = Path::new(&path).parent() {
        std::fs::create_dir_all(folder)?;
    }
    let state: HashMap<_, _> = method.state()?.into_iter().collect();
    candle_core::safetensors::save(&state, &path)?;

    let saved = candle_core::safetensors::load(&path, &Device::Cpu)?;
    let mut again = steered::method(backbone, setup::train(3)?, 1)?;
    let seen: Vec<_> = stream.tasks.iter().map(|task| task.info.clone()).collect();
    again.restore(&seen, &saved.into_iter().collect())?;
    for batch in stream.tasks[0].test.batches(View::Plain, 32) {
        let batch = batch?;
        let (a, b) = (method.predict(&batch)?, again.predict(&batch)?);
        if a.to_vec2::<f32>()? != b.to_vec2::<f32>()? {
            return Err(format!("{path} predicts otherwise than what was saved").into());
        }
    }
    println!("saved to {path}; loaded again, it predicts the same");
    Ok(())
}
