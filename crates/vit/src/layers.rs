//! Layers that are safe to train through, whether their own weights train or stand still.
//!
//! candle's fused layer norm and softmax have no backward and say nothing about it; ours have one. Off the CPU, candle's plain
//! operations take over.

use candle_core::{D, Result, Tensor};
use candlewick_kernels::Activation;

use crate::ops;

pub use crate::linear::Linear;

/// `y = (x − mean) / sqrt(var + eps) · w + b` over the last dimension.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// `weight` and `bias` of width `D`.
    pub fn new(weight: Tensor, bias: Tensor, eps: f64) -> Self {
        Self { weight, bias, eps }
    }

    /// True while neither weight nor bias is trained.
    pub fn frozen(&self) -> bool {
        !self.weight.track_op() && !self.bias.track_op()
    }

    pub(crate) fn tensors(&self) -> [&Tensor; 2] {
        [&self.weight, &self.bias]
    }

    pub(crate) fn eps(&self) -> f64 {
        self.eps
    }

    /// Any shape that ends in `D`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if ops::supported(x) {
            let op = ops::Norm {
                eps: self.eps,
                trained: !self.frozen(),
            };
            return x.contiguous()?.apply_op3(&self.weight, &self.bias, op);
        }
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let var = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let normed = centred.broadcast_div(&(var + self.eps)?.sqrt()?)?;
        normed
            .broadcast_mul(&self.weight)?
            .broadcast_add(&self.bias)
    }
}

/// Softmax over the last dimension.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    match ops::supported(x) {
        true => x.contiguous()?.apply_op1(ops::Softmax),
        false => candle_nn::ops::softmax(x, D::Minus1),
    }
}

/// Exact GELU, `x·Φ(x)`.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    activate(x, Activation::Gelu)
}

/// The activation of an MLP.
pub fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    match (ops::supported(x), activation) {
        (true, _) => x.contiguous()?.apply_op1(ops::Activate(activation)),
        (false, Activation::Gelu) => x.gelu_erf(),
        (false, Activation::QuickGelu) => x * candle_nn::ops::sigmoid(&(x * 1.702)?)?,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};
    use candlewick_kernels::Precision;

    fn ramp(shape: &[usize], scale: f32) -> Tensor {
        let n: usize = shape.iter().product();
        let values: Vec<f32> = (0..n)
            .map(|i| ((i * 37 % 101) as f32 / 50.0 - 1.0) * scale)
            .collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    #[test]
    fn frozen_linear_has_the_gradient_of_a_plain_one_and_none_for_its_weight() {
        let x = Var::from_tensor(&ramp(&[2, 3, 8], 1.0)).unwrap();
        let weight = ramp(&[5, 8], 0.3);
        let bias = ramp(&[5], 0.1);
        let layer = Linear::new(weight.clone(), bias.clone(), Precision::F32);
        let y = layer.forward(x.as_tensor()).unwrap();
        let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        assert!(grads.get(&weight).is_none());
        let plain = x
            .as_tensor()
            .broadcast_matmul(&weight.t().unwrap())
            .unwrap()
            .broadcast_add(&bias)
            .unwrap();
        let expected = plain.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        let difference = (grads.get(&x).unwrap() - expected.get(&x).unwrap()).unwrap();
        let worst = difference.abs().unwrap().max_all().unwrap();
        assert!(worst.to_scalar::<f32>().unwrap() < 1e-5);
        let trained = Var::from_tensor(&weight).unwrap();
        let layer = Linear::new(trained.as_tensor().clone(), bias, Precision::F32);
        let y = layer.forward(&ramp(&[2, 8], 1.0)).unwrap();
        let grads = y.sum_all().unwrap().backward().unwrap();
        assert!(
            grads.get(&trained).is_some(),
            "a trainable weight must train"
        );
    }

    fn plain_norm(x: &Tensor, w: &Tensor, b: &Tensor) -> Result<Tensor> {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let var = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let normed = centred.broadcast_div(&(var + 1e-6)?.sqrt()?)?;
        normed.broadcast_mul(w)?.broadcast_add(b)
    }

    /// Weights and biases of norm and linear layer, each trained or not, against candle's plain operations.
    #[test]
    fn trained_layers_have_the_gradients_of_plain_ones() {
        // More rows than are summed at a time.
        let x = Var::from_tensor(&ramp(&[2, 600, 40], 3.0)).unwrap();
        let pull = |y: &Tensor| (y * ramp(y.dims(), 1.7)).unwrap().sum_all().unwrap();
        for mask in 0..8 {
            let of = |i: usize, shape: &[usize], scale| {
                let value = ramp(shape, scale);
                match mask >> i & 1 {
                    1 => Var::from_tensor(&value).unwrap().into_inner(),
                    _ => value,
                }
            };
            let x = if mask & 1 == 1 {
                x.as_tensor().clone()
            } else {
                x.as_detached_tensor()
            };
            let (w, b) = (of(1, &[24, 40], 0.5), of(2, &[24], 0.2));
            let linear = Linear::new(w.clone(), b.clone(), Precision::F32);
            let plain = x.broadcast_matmul(&w.t().unwrap()).unwrap();
            let plain = plain.broadcast_add(&b).unwrap();
            let mut cases = vec![(linear.forward(&x).unwrap(), plain, [w, b])];
            let (w, b) = (of(1, &[40], 0.5), of(2, &[40], 0.2));
            let norm = LayerNorm::new(w.clone(), b.clone(), 1e-6);
            let plain = plain_norm(&x, &w, &b).unwrap();
            cases.push((norm.forward(&x).unwrap(), plain, [w, b]));
            for (ours, plain, [w, b]) in cases {
                if mask == 0 {
                    assert!(!ours.track_op());
                    continue;
                }
                let (ours, plain) = (pull(&ours).backward(), pull(&plain).backward());
                let (ours, plain) = (ours.unwrap(), plain.unwrap());
                for (i, tensor) in [&x, &w, &b].into_iter().enumerate() {
                    let found = ours.get(tensor);
                    assert_eq!(found.is_some(), mask >> i & 1 == 1, "{mask} {i}");
                    let Some(found) = found else { continue };
                    let want = plain.get(tensor).unwrap();
                    let worst = |t: &Tensor| -> f32 {
                        t.abs().unwrap().max_all().unwrap().to_scalar().unwrap()
                    };
                    let off = worst(&(found - want).unwrap()) / worst(want);
                    assert!(off < 2e-5, "{mask} {i}: {off}");
                }
            }
        }
    }

    /// The custom ops against candle's plain operations, values and gradients.
    #[test]
    fn norm_softmax_and_gelu_are_the_plain_ones_with_their_gradients() {
        let x = Var::from_tensor(&ramp(&[2, 5, 8], 3.0)).unwrap();
        let (w, b) = (ramp(&[8], 1.0), ramp(&[8], 0.5));
        let norm = LayerNorm::new(w.clone(), b.clone(), 1e-6);
        let t = x.as_tensor();
        let pairs = [
            (norm.forward(t), plain_norm(t, &w, &b)),
            (softmax(t), candle_nn::ops::softmax(t, D::Minus1)),
            (gelu(t), t.gelu_erf()),
            (
                activate(t, Activation::QuickGelu),
                t * (t * 1.702)
                    .and_then(|x| candle_nn::ops::sigmoid(&x))
                    .unwrap(),
            ),
        ];
        let weights = ramp(&[2, 5, 8], 1.7);
        for (ours, plain) in pairs {
            let (ours, plain) = (ours.unwrap(), plain.unwrap());
            let far = |a: &Tensor, b: &Tensor| -> f32 {
                let worst = (a - b).unwrap().abs().unwrap().max_all();
                worst.unwrap().to_scalar().unwrap()
            };
            assert!(far(&ours, &plain) < 2e-6);
            let grad = |y: &Tensor| {
                let loss = (y * &weights).unwrap().sum_all().unwrap();
                loss.backward().unwrap().get(&x).unwrap().clone()
            };
            let (ours, plain) = (grad(&ours), grad(&plain));
            assert!(far(&ours, &plain) < 1e-5);
            assert!(far(&plain, &plain.zeros_like().unwrap()) > 1e-3);
        }
    }
}
