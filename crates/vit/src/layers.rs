//! Layers that are safe to train through while their own weights stand still.
//!
//! candle's fused layer norm and softmax have no backward and say nothing about it; here the fused
//! form runs only where no gradient is asked for. candle's matmul computes and keeps a gradient for
//! frozen weights too; [`linear`](Linear) does not.

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, D, Layout, MetalStorage, Result, Shape, Tensor, bail,
};

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
        let y = if self.weight.track_op() {
            flat.matmul(&self.weight.t()?)?
        } else {
            flat.apply_op2(&self.weight, FrozenMatmul)?
        };
        let y = y.broadcast_add(&self.bias)?;
        let mut shape = x.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = out;
        }
        y.reshape(shape)
    }
}

/// `x Wᵀ` of `(M, K)` and `(N, K)`. Its backward gives `grad W` to `x` and nothing to `W`.
struct FrozenMatmul;

impl FrozenMatmul {
    fn run<S: BackendStorage>(x: &S, lx: &Layout, w: &S, lw: &Layout) -> Result<(S, Shape)> {
        let (m, k) = lx.shape().dims2()?;
        let (n, k_w) = lw.shape().dims2()?;
        if k != k_w {
            bail!("a linear layer for {k_w} features was given {k}");
        }
        let y = x.matmul(w, (1, m, n, k), lx, &lw.transpose(0, 1)?)?;
        Ok((y, Shape::from((m, n))))
    }
}

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
        Self::run(x, lx, w, lw)
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        lx: &Layout,
        w: &CudaStorage,
        lw: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        Self::run(x, lx, w, lw)
    }

    fn metal_fwd(
        &self,
        x: &MetalStorage,
        lx: &Layout,
        w: &MetalStorage,
        lw: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        Self::run(x, lx, w, lw)
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
        let tracked = x.track_op() || self.weight.track_op();
        if !tracked {
            // The one place where the fused form is right: nobody asks for a gradient.
            #[allow(clippy::disallowed_methods)]
            return candle_nn::ops::layer_norm(
                &x.contiguous()?,
                &self.weight,
                &self.bias,
                self.eps as f32,
            );
        }
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let var = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let normed = centred.broadcast_div(&(var + self.eps)?.sqrt()?)?;
        normed
            .broadcast_mul(&self.weight)?
            .broadcast_add(&self.bias)
    }
}

/// Softmax over the last dimension, with a gradient where one is asked for.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    if x.track_op() {
        return candle_nn::ops::softmax(x, D::Minus1);
    }
    // No gradient is asked for.
    #[allow(clippy::disallowed_methods)]
    candle_nn::ops::softmax_last_dim(&x.contiguous()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Var};

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

    #[test]
    fn both_forms_of_norm_and_softmax_agree_and_the_tracked_ones_have_gradients() {
        let x = ramp(&[2, 5, 8], 3.0);
        let var = Var::from_tensor(&x).unwrap();
        let norm = LayerNorm::new(ramp(&[8], 1.0), ramp(&[8], 0.5), 1e-6);
        let pairs = [
            (norm.forward(&x), norm.forward(var.as_tensor())),
            (softmax(&x), softmax(var.as_tensor())),
        ];
        for (fused, tracked) in pairs {
            let (fused, tracked) = (fused.unwrap(), tracked.unwrap());
            let worst = (&fused - &tracked).unwrap().abs().unwrap().max_all();
            assert!(worst.unwrap().to_scalar::<f32>().unwrap() < 1e-5);
            let grads = tracked
                .sqr()
                .unwrap()
                .sum_all()
                .unwrap()
                .backward()
                .unwrap();
            let grad = grads.get(&var).unwrap().abs().unwrap().max_all().unwrap();
            assert!(
                grad.to_dtype(DType::F32)
                    .unwrap()
                    .to_scalar::<f32>()
                    .unwrap()
                    > 0.0
            );
        }
    }
}
