//! Layers that are safe to train through while their own weights stand still.
//!
//! candle's fused layer norm and softmax have no backward and say nothing about it; ours have one.
//! candle's matmul computes and keeps a gradient for frozen weights too; [`Linear`] does not. Where a
//! layer's own weights train, or off the CPU, candle's plain operations take over.

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, CustomOp3, D, Layout, MetalStorage, Result, Shape, Tensor,
    bail,
};

use crate::ops;

/// `y = x Wᵀ + b` with `W: (out, in)`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    /// Weights as they are in checkpoints.
    pub fn new(weight: Tensor, bias: Tensor) -> Self {
        Self { weight, bias }
    }

    /// `(…, in)` to `(…, out)`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (out, input) = self.weight.dims2()?;
        let rows = x.elem_count() / input;
        let flat = x.contiguous()?.reshape((rows, input))?;
        let y = if self.weight.track_op() || self.bias.track_op() {
            flat.matmul(&self.weight.t()?)?.broadcast_add(&self.bias)?
        } else if ops::supported(x) {
            flat.apply_op3(&self.weight, &self.bias, FrozenLinear)?
        } else {
            let y = flat.apply_op2(&self.weight, FrozenMatmul)?;
            y.broadcast_add(&self.bias)?
        };
        let mut shape = x.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = out;
        }
        y.reshape(shape)
    }
}

fn product<S: BackendStorage>(x: &S, lx: &Layout, w: &S, lw: &Layout) -> Result<(S, Shape)> {
    let (m, k) = lx.shape().dims2()?;
    let (n, k_w) = lw.shape().dims2()?;
    if k != k_w {
        bail!("a linear layer for {k_w} features was given {k}");
    }
    let y = x.matmul(w, (1, m, n, k), lx, &lw.transpose(0, 1)?)?;
    Ok((y, Shape::from((m, n))))
}

/// `x Wᵀ` of `(M, K)` and `(N, K)` on any device. Its backward gives `grad W` to `x` and nothing to `W`.
struct FrozenMatmul;

impl CustomOp2 for FrozenMatmul {
    fn name(&self) -> &'static str {
        "frozen-matmul"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        product(x, lx, w, lw)
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        lx: &Layout,
        w: &CudaStorage,
        lw: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        product(x, lx, w, lw)
    }

    fn metal_fwd(
        &self,
        x: &MetalStorage,
        lx: &Layout,
        w: &MetalStorage,
        lw: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        product(x, lx, w, lw)
    }

    fn bwd(
        &self,
        _x: &Tensor,
        w: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(grad.contiguous()?.matmul(w)?), None))
    }
}

/// The same with the bias, in one pass, on the CPU.
struct FrozenLinear;

impl CustomOp3 for FrozenLinear {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (mut y, shape) = product(x, lx, w, lw)?;
        if let CpuStorage::F32(y) = &mut y {
            ops::add_rows(y, ops::slice(b, lb)?);
        }
        Ok((y, shape))
    }

    fn bwd(
        &self,
        _x: &Tensor,
        w: &Tensor,
        _b: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        Ok((Some(grad.contiguous()?.matmul(w)?), None, None))
    }
}

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

    /// Any shape that ends in `D`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let trained = self.weight.track_op() || self.bias.track_op();
        if !trained && ops::supported(x) {
            let op = ops::Norm { eps: self.eps };
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
    match ops::supported(x) {
        true => x.contiguous()?.apply_op1(ops::Gelu),
        false => x.gelu_erf(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

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
        let layer = Linear::new(weight.clone(), bias.clone());
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
        let layer = Linear::new(trained.as_tensor().clone(), bias);
        let y = layer.forward(&ramp(&[2, 8], 1.0)).unwrap();
        let grads = y.sum_all().unwrap().backward().unwrap();
        assert!(
            grads.get(&trained).is_some(),
            "a trainable weight must train"
        );
    }

    /// The custom ops against candle's plain operations, values and gradients.
    #[test]
    fn norm_softmax_and_gelu_are_the_plain_ones_with_their_gradients() {
        let x = Var::from_tensor(&ramp(&[2, 5, 8], 3.0)).unwrap();
        let (w, b) = (ramp(&[8], 1.0), ramp(&[8], 0.5));
        let trained = Var::from_tensor(&w).unwrap();
        let norm = LayerNorm::new(w, b.clone(), 1e-6);
        // A trainable weight takes the plain way.
        let plain_norm = LayerNorm::new(trained.as_tensor().clone(), b, 1e-6);
        let t = x.as_tensor();
        let pairs = [
            (norm.forward(t), plain_norm.forward(t)),
            (softmax(t), candle_nn::ops::softmax(t, D::Minus1)),
            (gelu(t), t.gelu_erf()),
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
