//! Operations one by one, as candle custom ops with the backward that candle's own fused forms lack. They serve blocks
//! that something is tuned or trained in; untouched blocks run whole, see [`crate::frozen`].

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail,
};
use candlewick_kernels::{Activation, rows};
use rayon::prelude::*;

use crate::linear::values;

/// Values a thread takes at a time; smaller tensors are not worth a second thread.
const GRAIN: usize = 8192;

/// True where these operations run.
pub(crate) fn supported(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == candle_core::DType::F32
}

/// The values of contiguous storage.
pub(crate) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage.as_slice::<f32>()?, layout.contiguous_offsets()) {
        (values, Some((start, end))) => Ok(&values[start..end]),
        (_, None) => bail!("a frozen operation needs contiguous values"),
    }
}

fn width(layout: &Layout) -> usize {
    layout.dims().last().copied().unwrap_or(1).max(1)
}

/// A new vector, filled by `fill(first, part)` in groups of whole rows of `width`.
fn filled(n: usize, width: usize, fill: impl Fn(usize, &mut [f32]) + Sync + Send) -> CpuStorage {
    let mut out = vec![0f32; n];
    let group = width * (GRAIN / width).max(1);
    let parts = out.par_chunks_mut(group).enumerate();
    parts.for_each(|(i, part)| fill(i * group, part));
    CpuStorage::F32(out)
}

/// The activation of an MLP.
pub(crate) struct Activate(pub Activation);

impl CustomOp1 for Activate {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice(x, lx)?;
        let out = filled(x.len(), 1, |at, out| {
            self.0.apply(&x[at..][..out.len()], out)
        });
        Ok((out, lx.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(x.apply_op2_no_bwd(
            &grad.contiguous()?,
            &ActivateGrad(self.0),
        )?))
    }
}

/// The gradient times the slope.
struct ActivateGrad(Activation);

impl CustomOp2 for ActivateGrad {
    fn name(&self) -> &'static str {
        "activation-grad"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        g: &CpuStorage,
        lg: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, g) = (slice(x, lx)?, slice(g, lg)?);
        let out = filled(x.len(), 1, |at, out| {
            out.copy_from_slice(&g[at..at + out.len()]);
            self.0.apply_grad(&x[at..][..out.len()], out);
        });
        Ok((out, lx.shape().clone()))
    }
}

/// Softmax over the last dimension.
pub(crate) struct Softmax;

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, n) = (slice(x, lx)?, width(lx));
        let out = filled(x.len(), n, |at, out| {
            out.copy_from_slice(&x[at..at + out.len()]);
            rows::softmax(out, n, 1.0);
        });
        Ok((out, lx.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(y.apply_op2_no_bwd(&grad.contiguous()?, &SoftmaxGrad)?))
    }
}

/// `y · (g − Σ g y)`.
struct SoftmaxGrad;

impl CustomOp2 for SoftmaxGrad {
    fn name(&self) -> &'static str {
        "softmax-grad"
    }

    fn cpu_fwd(
        &self,
        y: &CpuStorage,
        ly: &Layout,
        g: &CpuStorage,
        lg: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (y, g, n) = (slice(y, ly)?, slice(g, lg)?, width(ly));
        let out = filled(y.len(), n, |at, out| {
            out.copy_from_slice(&g[at..at + out.len()]);
            rows::softmax_grad(&y[at..], out, n, 1.0);
        });
        Ok((out, ly.shape().clone()))
    }
}

/// Layer norm over the last dimension.
pub(crate) struct Norm {
    pub eps: f64,
    /// Whether weight or bias have a gradient to receive.
    pub trained: bool,
}

impl CustomOp3 for Norm {
    fn name(&self) -> &'static str {
        "layer-norm"
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
        let (x, w, b, n) = (slice(x, lx)?, slice(w, lw)?, slice(b, lb)?, width(lx));
        let eps = self.eps as f32;
        let out = filled(x.len(), n, |at, out| rows::norm(&x[at..], w, b, eps, out));
        Ok((out, lx.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (weight, bias) = match self.trained {
            true => {
                let (weight, bias) = norm_weight_grad(x, &grad, self.eps as f32)?;
                let of = |t: &Tensor, values| match t.track_op() {
                    true => Tensor::from_vec(values, t.dims(), t.device()).map(Some),
                    false => Ok(None),
                };
                (of(w, weight)?, of(b, bias)?)
            }
            false => (None, None),
        };
        let slope = match x.track_op() {
            true => {
                let op = NormGrad { eps: self.eps };
                Some(x.apply_op3_no_bwd(w, &grad, &op)?)
            }
            false => None,
        };
        Ok((slope, weight, bias))
    }
}

/// Gradients of weight and bias: sums over pieces of so many rows, added in their order, whatever the number of threads.
fn norm_weight_grad(x: &Tensor, grad: &Tensor, eps: f32) -> Result<(Vec<f32>, Vec<f32>)> {
    const ROWS: usize = 64;
    let n = width(x.layout());
    let (x, grad) = (values(x), values(grad));
    let (x, grad) = (x.get()?, grad.get()?);
    let pieces = x.par_chunks(ROWS * n).zip(grad.par_chunks(ROWS * n));
    let sums: Vec<_> = pieces
        .map(|(x, grad)| {
            let (mut weight, mut bias) = (vec![0f32; n], vec![0f32; n]);
            rows::norm_weight_grad(x, eps, grad, &mut weight, &mut bias);
            (weight, bias)
        })
        .collect();
    let mut all = (vec![0f32; n], vec![0f32; n]);
    for (weight, bias) in sums {
        for (sums, more) in [(&mut all.0, weight), (&mut all.1, bias)] {
            sums.iter_mut().zip(more).for_each(|(sum, x)| *sum += x);
        }
    }
    Ok(all)
}

struct NormGrad {
    eps: f64,
}

impl CustomOp3 for NormGrad {
    fn name(&self) -> &'static str {
        "layer-norm-grad"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        g: &CpuStorage,
        lg: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, w, g, n) = (slice(x, lx)?, slice(w, lw)?, slice(g, lg)?, width(lx));
        let eps = self.eps as f32;
        let out = filled(x.len(), n, |at, out| {
            rows::norm_grad(&x[at..], w, eps, &g[at..], out);
        });
        Ok((out, lx.shape().clone()))
    }
}
