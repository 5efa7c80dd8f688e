//! The arithmetic of a frozen transformer block on the CPU: forward, and backward to its tokens and prefixes alone.
//!
//! ```text
//! h = LN₁ x;  o = softmax(q [Pk; k]ᵀ / √d) [Pv; v]        q, k, v = W_qkv h + b, per head
//! x = x + γ₁ (W_proj o + b)
//! x = x + γ₂ (W₂ GELU(W₁ LN₂ x + b₁) + b₂)                or another activation
//! ```
//!
//! Two ways of computing it, chosen at run time: [`plain`] in f32 on any processor (products of our own with AVX-512, else by the
//! `gemm` crate), and `bf16` on
//! processors with AMX or AVX-512 BF16 (Zen 4), where products are of bf16 values and everything else (sums, residual stream, layer norm,
//! softmax) stays f32. Of a block whose first token or two alone are read, `plain` computes no keys and values at
//! all. Weights are never differentiated. Slices in, slices out: this crate knows no tensors.
//!
//! `unsafe` is confined to `bf16::amx`, `bf16::vectors`, `bf16::lanes`, `bf16::enter`, `plain::product`, `plain::wide` and `buffer`. The tests also
//! run under the address sanitizer: `RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address cargo test -p candlewick-kernels --lib
//! --tests --target x86_64-unknown-linux-gnu`.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub mod bf16;
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
#[path = "absent.rs"]
pub mod bf16;
mod block;
mod buffer;
#[cfg(test)]
mod noise;
pub mod plain;
mod precision;
pub mod rows;

pub use block::{Activation, BlockWeights, Gradients, Linear, Norm, Prefix, Shape, Wanted};
pub use precision::Precision;
