//! One block of real width on a batch of 16: `cargo bench -p candlewick-kernels`.

use std::hint::black_box;

use candlewick_kernels::{Activation, BlockWeights, Linear, Norm, Shape, Wanted, plain};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn noise(n: usize, spread: f32) -> Vec<f32> {
    let mut state = 0x2545_f491_4f6c_dd1du64 ^ n as u64;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * spread
        })
        .collect()
}

fn blocks(c: &mut Criterion) {
    for (name, tokens, dim, heads) in [
        ("vit-b16", 197, 768, 12),
        ("vit-s14", 257, 384, 6),
        ("vit-micro", 65, 128, 4),
    ] {
        let mlp = 4 * dim;
        let ones = vec![1f32; dim];
        let bias = noise(4 * dim, 0.1);
        let weight = |n: usize, k: usize| noise(n * k, (3.0 / k as f32).sqrt());
        let parts = [
            weight(3 * dim, dim),
            weight(dim, dim),
            weight(mlp, dim),
            weight(dim, mlp),
        ];
        let linear = |i: usize, n: usize| Linear {
            weight: &parts[i],
            bias: &bias[..n],
        };
        let norm = Norm {
            weight: &ones,
            bias: &bias[..dim],
            eps: 1e-6,
        };
        let weights = BlockWeights {
            heads,
            causal: false,
            activation: Activation::Gelu,
            norm1: norm,
            qkv: linear(0, 3 * dim),
            proj: linear(1, dim),
            scale1: None,
            norm2: norm,
            fc1: linear(2, mlp),
            fc2: linear(3, dim),
            scale2: None,
        };
        let shape = Shape::whole(16, tokens);
        let x = noise(16 * tokens * dim, 2.0);
        let grad = noise(16 * tokens * dim, 1.0);
        let wanted = Wanted {
            tokens: true,
            prefix: false,
        };
        let products = 2 * tokens * (12 * dim * dim + 2 * tokens * dim);
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Elements((16 * products) as u64));
        group.sample_size(10);
        let memory = plain::Memory::default();
        group.bench_function("f32 forward", |b| {
            b.iter(|| black_box(plain::forward(&weights, &memory, &x, shape, None, false)));
        });
        group.bench_function("f32 forward and backward", |b| {
            b.iter(|| {
                let (y, saved) = plain::forward(&weights, &memory, &x, shape, None, true);
                let saved = saved?;
                black_box(y);
                Some(plain::backward(
                    &weights, &x, shape, None, saved, &grad, wanted,
                ))
            });
        });
        // Only where the processor has it.
        if let Ok(block) = candlewick_kernels::bf16::PackedBlock::new(&weights) {
            group.bench_function("bf16 forward", |b| {
                b.iter(|| black_box(block.forward(&x, shape, None, false)));
            });
            group.bench_function("bf16 forward and backward", |b| {
                b.iter(|| {
                    let (y, saved) = block.forward(&x, shape, None, true);
                    let saved = saved.as_ref()?;
                    black_box(y);
                    Some(block.backward(&x, shape, None, saved, &grad, wanted))
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, blocks);
criterion_main!(benches);
