//! A linear layer, `y = x Wᵀ + b`, frozen or trained.
//!
//! candle's matmul computes and keeps a gradient for frozen weights too; this gives gradients to what is trained alone.

use std::sync::{Arc, OnceLock};

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Layout, MetalStorage, Result, Shape,
    Tensor, bail,
};
use candlewick_kernels::bf16::{PackedLinear, trained};
use candlewick_kernels::{Precision, plain};

use crate::ops;

/// `y = x Wᵀ + b` with `W: (out, in)`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Tensor,
    bias: Tensor,
    precision: Precision,
    /// The weights in bf16, from the first use on.
    packed: Arc<OnceLock<Arc<PackedLinear>>>,
}

impl Linear {
    /// Weights as they are in checkpoints. `precision` is that of products on the CPU; what trains is kept in f32.
    pub fn new(weight: Tensor, bias: Tensor, precision: Precision) -> Self {
        Self {
            weight,
            bias,
            precision,
            packed: Arc::default(),
        }
    }

    /// True while neither weight nor bias is trained.
    pub fn frozen(&self) -> bool {
        !self.weight.track_op() && !self.bias.track_op()
    }

    pub(crate) fn tensors(&self) -> [&Tensor; 2] {
        [&self.weight, &self.bias]
    }

    /// `(…, in)` to `(…, out)`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (out, input) = self.weight.dims2()?;
        let rows = x.elem_count() / input;
        let flat = x.contiguous()?.reshape((rows, input))?;
        let y = match (ops::supported(x), self.frozen()) {
            (true, true) if self.precision == Precision::Bf16 => {
                flat.apply_op1(Packed(self.packed()?))?
            }
            (true, _) => {
                let wanted = [&flat, &self.weight, &self.bias].map(Tensor::track_op);
                let bf16 = self.precision == Precision::Bf16;
                let op = LinearOp { wanted, bf16 };
                flat.apply_op3(&self.weight, &self.bias, op)?
            }
            (false, true) => {
                let y = flat.apply_op2(&self.weight, FrozenMatmul)?;
                y.broadcast_add(&self.bias)?
            }
            (false, false) => flat.matmul(&self.weight.t()?)?.broadcast_add(&self.bias)?,
        };
        let mut shape = x.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = out;
        }
        y.reshape(shape)
    }

    /// The weights packed for bf16, made at the first call.
    pub(crate) fn packed(&self) -> Result<Arc<PackedLinear>> {
        if let Some(packed) = self.packed.get() {
            return Ok(packed.clone());
        }
        let (weight, bias) = (values(&self.weight), values(&self.bias));
        let packed = PackedLinear::new(&candlewick_kernels::Linear {
            weight: weight.get()?,
            bias: bias.get()?,
        })?;
        Ok(self.packed.get_or_init(|| Arc::new(packed)).clone())
    }
}

/// A tensor's storage, held while its values are read.
pub(crate) struct Values<'a>(candle_core::StorageRef<'a>, &'a Layout);

/// Holds the storage of a tensor.
pub(crate) fn values(tensor: &Tensor) -> Values<'_> {
    let (storage, layout) = tensor.storage_and_layout();
    Values(storage, layout)
}

impl Values<'_> {
    /// The values, if contiguous, f32 and on the CPU.
    pub(crate) fn get(&self) -> Result<&[f32]> {
        match &*self.0 {
            candle_core::Storage::Cpu(storage) => ops::slice(storage, self.1),
            _ => bail!("a frozen operation on the CPU was given a tensor of another device"),
        }
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
struct LinearOp {
    /// Which of `x`, `W` and `b` have a gradient to receive.
    wanted: [bool; 3],
    /// Whether products are of bf16 values; sums, and everything that is kept, are in f32.
    bf16: bool,
}

impl CustomOp3 for LinearOp {
    fn name(&self) -> &'static str {
        "linear"
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
        let (m, k) = lx.shape().dims2()?;
        let (n, k_w) = lw.shape().dims2()?;
        if k != k_w {
            bail!("a linear layer for {k_w} features was given {k}");
        }
        let layer = candlewick_kernels::Linear {
            weight: ops::slice(w, lw)?,
            bias: ops::slice(b, lb)?,
        };
        let x = ops::slice(x, lx)?;
        let y = match self.bf16 {
            true => trained::linear(x, &layer)?,
            false => plain::linear(x, &layer),
        };
        Ok((CpuStorage::F32(y), Shape::from((m, n))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (weight, bias, grad) = (values(w), values(b), values(&grad));
        let (slopes, inputs) = (grad.get()?, w.dim(1)?);
        let layer = candlewick_kernels::Linear {
            weight: weight.get()?,
            bias: bias.get()?,
        };
        let of = |i: usize, of: &Tensor, values: &dyn Fn() -> Result<Vec<f32>>| {
            let tensor = || Tensor::from_vec(values()?, of.dims(), of.device());
            self.wanted[i].then(tensor).transpose()
        };
        Ok((
            of(0, x, &|| {
                Ok(match self.bf16 {
                    true => trained::linear_grad(slopes, &layer)?,
                    false => plain::linear_grad(slopes, &layer),
                })
            })?,
            of(1, w, &|| {
                let x = values(x);
                Ok(match self.bf16 {
                    true => trained::weight_grad(x.get()?, slopes, inputs)?,
                    false => plain::weight_grad(x.get()?, slopes, inputs),
                })
            })?,
            of(2, b, &|| Ok(plain::bias_grad(slopes, layer.bias.len())))?,
        ))
    }
}

/// The same in bf16.
struct Packed(Arc<PackedLinear>);

impl CustomOp1 for Packed {
    fn name(&self) -> &'static str {
        "frozen-linear-bf16"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> Result<(CpuStorage, Shape)> {
        let (m, k) = lx.shape().dims2()?;
        let (out, input) = self.0.sizes();
        if k != input {
            bail!("a linear layer for {input} features was given {k}");
        }
        let y = self.0.forward(ops::slice(x, lx)?);
        Ok((CpuStorage::F32(y), Shape::from((m, out))))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let (m, _) = grad.dims2()?;
        let slope = self.0.backward(values(&grad).get()?)?;
        Ok(Some(Tensor::from_vec(
            slope,
            (m, self.0.sizes().1),
            grad.device(),
        )?))
    }
}
