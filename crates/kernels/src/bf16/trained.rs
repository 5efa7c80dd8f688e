//! A linear layer that trains: the products of its forward and backward are of bf16 values, its weights and all sums in f32.
//! Weights change with every step, so they are laid out as tiles each time, in memory that is used again: the system would clear new
//! memory for every layer.

use std::cell::Cell;

use rayon::prelude::*;

use super::linear::rows;
use super::pack::{Packed, Pages};
use super::product::SLACK;
use super::{WORKSPACE, apart, available, enter};
use crate::block::Linear;

/// Rows of a weight's gradient that a thread sums at a time.
const PIECE: usize = 128;

thread_local! {
    static PAGES: Cell<Option<Pages>> = const { Cell::new(None) };
}

/// `f` of what `make` lays out in this thread's memory.
fn laid_out<R>(
    make: impl FnOnce(Option<Pages>) -> std::io::Result<Packed>,
    f: impl FnOnce(&Packed) -> R,
) -> std::io::Result<R> {
    let packed = make(PAGES.take())?;
    let result = f(&packed);
    PAGES.set(Some(packed.into_pages()));
    Ok(result)
}

fn checked(width: usize, values: usize) -> std::io::Result<()> {
    match available() && width > 0 && values > 0 && values.is_multiple_of(width) {
        true => Ok(()),
        false => Err(std::io::Error::other(format!(
            "{values} values in rows of {width} are no matrix, or {}",
            super::NONE
        ))),
    }
}

/// `x Wᵀ + b`: `(M, in)` to `(M, out)`.
pub fn linear(x: &[f32], layer: &Linear<'_>) -> std::io::Result<Vec<f32>> {
    checked(layer.bias.len(), layer.weight.len())?;
    let inputs = layer.weight.len() / layer.bias.len();
    laid_out(
        |spare| Packed::of_rows(layer.weight, inputs, spare),
        |packed| rows(x, inputs, packed, layer.bias),
    )
}

/// The gradient of [`linear`]'s input, `g W`: `(M, out)` to `(M, in)`.
pub fn linear_grad(grad: &[f32], layer: &Linear<'_>) -> std::io::Result<Vec<f32>> {
    let outputs = layer.bias.len();
    checked(outputs, layer.weight.len())?;
    let inputs = layer.weight.len() / outputs;
    laid_out(
        |spare| Packed::of_columns(layer.weight, inputs, spare),
        |packed| rows(grad, outputs, packed, &vec![0f32; inputs]),
    )
}

/// The gradient of [`linear`]'s weight, `gᵀ x`: of `(M, out)` and `(M, in)` to `(out, in)`.
pub fn weight_grad(x: &[f32], grad: &[f32], inputs: usize) -> std::io::Result<Vec<f32>> {
    checked(inputs, x.len())?;
    let m = x.len() / inputs;
    checked(m, grad.len())?;
    let (outputs, width) = (grad.len() / m, apart(m));
    let sum = |packed: &Packed| {
        let mut out = vec![0f32; outputs * inputs];
        out.par_chunks_mut(PIECE * inputs)
            .enumerate()
            .for_each(|(i, out)| {
                let n = out.len() / inputs;
                WORKSPACE.with_borrow_mut(|space| {
                    let turned = space.input.get::<u16>((n + SLACK) * width);
                    let to = &mut turned[..n * width];
                    enter::turned(grad, (m, outputs), i * PIECE, to, width);
                    enter::add(packed, turned, width, out, inputs);
                });
            });
        out
    };
    laid_out(|spare| Packed::of_columns(x, inputs, spare), sum)
}

#[cfg(test)]
mod tests {
    use super::super::lanes;
    use super::*;
    use crate::noise::noise;
    use crate::plain;

    fn rounded(x: &[f32]) -> Vec<f32> {
        let kept = |x: &f32| f32::from_bits(u32::from(lanes::round(*x)) << 16);
        x.iter().map(kept).collect()
    }

    /// f32's products of the rounded values, whose sums differ in their order alone.
    fn near(what: &str, got: &[f32], want: &[f32], terms: usize) {
        assert_eq!(got.len(), want.len());
        for (i, (a, b)) in got.iter().zip(want).enumerate() {
            let bound = 1e-6 * (terms as f32 + 10.0);
            assert!((a - b).abs() < bound, "{what} {i}: {a} {b}");
        }
    }

    /// Over sizes around those of tiles and pieces.
    #[test]
    fn products_are_those_of_rounded_values() {
        if !available() {
            return println!("left out: no bf16 products");
        }
        for (m, k, n) in [
            (1, 1, 1),
            (3, 48, 144),
            (17, 31, 33),
            (16, 32, 64),
            (65, 130, 129),
            (197, 64, 257),
        ] {
            let (x, w, bias, g) = (
                noise(m * k, 1),
                noise(n * k, 2),
                noise(n, 3),
                noise(m * n, 4),
            );
            let layer = |weight| Linear {
                weight,
                bias: &bias,
            };
            let (rx, rw, rg) = (rounded(&x), rounded(&w), rounded(&g));
            let got = linear(&x, &layer(&w)).unwrap();
            near("forward", &got, &plain::linear(&rx, &layer(&rw)), k);
            let got = linear_grad(&g, &layer(&w)).unwrap();
            near("input", &got, &plain::linear_grad(&rg, &layer(&rw)), n);
            let got = weight_grad(&x, &g, k).unwrap();
            near("weight", &got, &plain::weight_grad(&rx, &rg, k), m);
        }
    }

    #[test]
    fn threads_do_not_matter() {
        if !available() {
            return println!("left out: no bf16 products");
        }
        let (m, k, n) = (197, 70, 300);
        let (x, w, bias, g) = (
            noise(m * k, 1),
            noise(n * k, 2),
            noise(n, 3),
            noise(m * n, 4),
        );
        let layer = Linear {
            weight: &w,
            bias: &bias,
        };
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.unwrap().install(|| {
                let all = (
                    linear(&x, &layer),
                    linear_grad(&g, &layer),
                    weight_grad(&x, &g, k),
                );
                (all.0.unwrap(), all.1.unwrap(), all.2.unwrap())
            })
        };
        assert_eq!(with(1), with(3));
    }

    #[test]
    fn what_is_no_matrix_is_refused() {
        assert!(weight_grad(&[0.0; 5], &[0.0; 4], 3).is_err());
        assert!(weight_grad(&[], &[], 3).is_err());
    }
}
