//! The precisions of this machine, and how near bf16 must come.

use candle_core::{Device, Tensor};
use candlewick_vit::Precision;

/// What a tensor may be off in bf16: L2 norm of the error over that of what is expected.
///
/// Rounding a factor to 8 bits of mantissa moves it by up to 2⁻⁹, 0.2 %, and a gradient has been through some twenty
/// products by the end: 0.5 to 2.2 % in the fixtures of the backbone, up to 4.3 % in those of methods. This is about twice
/// that; a product that is wrong is off by far more.
pub const BF16: f64 = 0.08;

/// f32, and bf16 where the processor has it. What is left out is said, so that a test of one is not taken for a test of two.
pub fn precisions() -> Vec<Precision> {
    match Precision::Bf16.resolve(&Device::Cpu) {
        Ok(_) => vec![Precision::F32, Precision::Bf16],
        Err(why) => {
            println!("f32 alone, bf16 is left out: {why}");
            vec![Precision::F32]
        }
    }
}

/// L2 norm.
fn norm(x: &Tensor) -> f64 {
    let x: Vec<f32> = x.flatten_all().unwrap().to_vec1().unwrap();
    x.iter().map(|x| f64::from(x * x)).sum::<f64>().sqrt()
}

fn relative(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.dims(), want.dims());
    norm(&(got - want).unwrap()) / norm(want)
}

/// Within [`BF16`]. What is expected must not vanish: nothing is near to zeros.
pub fn assert_near(what: &str, got: &Tensor, want: &Tensor) {
    assert_within(BF16, what, got, want);
}

pub fn assert_within(bound: f64, what: &str, got: &Tensor, want: &Tensor) {
    let off = relative(got, want);
    println!("bf16 {what}: off by {off:.4}");
    assert!(off <= bound, "bf16 {what}: off by {off}, allowed {bound}");
}
