//! Seconds of CLIP's towers: `clip FOLDER PRECISION TOWER INPUTS STEPS THREADS`, where FOLDER has `model.safetensors` and `tokenizer.json`,
//! INPUTS is a safetensors file of `pixels` or a text file. See `clip.py`.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use candle_core::{Device, Tensor};
use candlewick_bench::machine;
use candlewick_core::{Backbone as _, Language as _};
use candlewick_vit::{Clip, Options, Precision, TextOptions, Tokenizer, Vit, Weights};
use serde_json::json;

fn main() -> Result<()> {
    machine::keep_freed_blocks();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [folder, precision, tower, inputs, steps, threads] = args.as_slice() else {
        bail!("expected FOLDER PRECISION TOWER INPUTS STEPS THREADS");
    };
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.parse()?)
        .use_current_thread()
        .build_global()?;
    let precision = match precision.as_str() {
        "f32" => Precision::F32,
        "bf16" => Precision::Bf16,
        other => bail!("expected f32 or bf16, found {other}"),
    };
    let folder = Path::new(folder);
    let weights = Weights::open(&folder.join("model.safetensors"))?;
    let device = Device::Cpu;
    let options = TextOptions {
        precision,
        ..TextOptions::default()
    };
    let tokenizer = Tokenizer::open(&folder.join("tokenizer.json"))?;
    let clip = Clip::load(&weights, tokenizer, &options, &device)?;
    let run: Box<dyn Fn() -> Result<Tensor>> = match tower.as_str() {
        "text" => {
            let text = std::fs::read_to_string(inputs).context(inputs.clone())?;
            let texts: Vec<String> = text.lines().map(str::to_owned).collect();
            Box::new(move || Ok(clip.encode(&texts)?))
        }
        "image" => {
            let options = Options {
                precision,
                ..Options::default()
            };
            let vit = Vit::load(&weights, &options, &device)?;
            let mut all = candle_core::safetensors::load(inputs, &device)?;
            let pixels = all.remove("pixels").context("no `pixels`")?;
            Box::new(move || Ok(clip.images(&vit.query(&pixels)?)?))
        }
        other => bail!("expected image or text, found {other}"),
    };
    // The first packs the weights.
    let features: Vec<f32> = run()?.flatten_all()?.to_vec1()?;
    let mut seconds = Vec::new();
    for _ in 0..steps.parse::<usize>().context("STEPS")? {
        let started = Instant::now();
        run()?;
        seconds.push(started.elapsed().as_secs_f64());
    }
    println!("{}", json!({"features": features, "seconds": seconds}));
    Ok(())
}
