//! Seconds of one optimiser step over the weights of ViT-B/16, gradients given: `optim RULE STATE STEPS THREADS`. See `optim.py`.

use std::time::Instant;

use anyhow::{Context as _, Result};
use candle_core::{DType, Device, Tensor, Var};
use candlewick_bench::machine;
use candlewick_core::{Optimizer, Train};
use serde_json::json;

fn shapes() -> Vec<Vec<usize>> {
    let dim = 768;
    let mut shapes = vec![
        vec![1, 1, dim],
        vec![1, 197, dim],
        vec![dim, 3, 16, 16],
        vec![dim],
    ];
    for _ in 0..12 {
        for (out, inner) in [(3 * dim, dim), (dim, dim), (4 * dim, dim), (dim, 4 * dim)] {
            shapes.extend([vec![out, inner], vec![out]]);
        }
        shapes.extend([vec![dim], vec![dim], vec![dim], vec![dim]]);
    }
    shapes.extend([vec![dim], vec![dim]]);
    shapes
}

fn main() -> Result<()> {
    machine::keep_freed_blocks();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [rule, state, steps, threads] = args.as_slice() else {
        anyhow::bail!("expected RULE STATE STEPS THREADS, for example adamw f32 10 2");
    };
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.parse()?)
        .use_current_thread()
        .build_global()?;
    let mut table = json!({"epochs": 1, "batch": 1, "optimizer": rule, "lr": 1e-4, "weight_decay": 0.05, "state": state});
    if rule == "sgd" {
        table["momentum"] = json!(0.9);
    }
    let train: Train = serde_json::from_value(table)?;
    train.check()?;
    let device = Device::Cpu;
    let mut grads = Tensor::zeros((), DType::F32, &device)?.backward()?;
    let mut vars = Vec::new();
    for (i, shape) in shapes().into_iter().enumerate() {
        let var = Var::randn(0f32, 0.02, shape.as_slice(), &device)?;
        let grad = (var.as_tensor().detach() * 0.05)?;
        grads.insert(&var, grad);
        vars.push((format!("w{i}"), var));
    }
    let values: usize = vars.iter().map(|(_, var)| var.elem_count()).sum();
    let mut optimizer = Optimizer::new(vars, &train)?;
    // The first makes the moments.
    optimizer.apply(&grads)?;
    let mut seconds = Vec::new();
    for _ in 0..steps.parse::<usize>().context("STEPS")? {
        let started = Instant::now();
        optimizer.apply(&grads)?;
        seconds.push(started.elapsed().as_secs_f64());
    }
    println!("{}", json!({"values": values, "seconds": seconds}));
    Ok(())
}
