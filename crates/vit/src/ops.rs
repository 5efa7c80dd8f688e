//! Element-wise operations as candle custom ops: one pass over the data, all rows in parallel, with the backward
//! that candle's own fused forms lack. A row's result depends on neither its neighbours nor the number of threads.

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail,
};
use rayon::prelude::*;

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

/// Rows of `width` in groups worth a thread.
fn group(width: usize) -> usize {
    width * (GRAIN / width).max(1)
}

/// A loop over values that is compiled once for each vector unit and chosen at run time.
trait Kernel: Sync {
    /// Fills `out`, whose first value is number `at` of the whole. To be `#[inline(always)]`, else it is compiled
    /// for the smallest unit alone.
    fn fill(&self, at: usize, out: &mut [f32]);
}

/// A kernel at work on one group.
struct Group<'a, K> {
    kernel: &'a K,
    at: usize,
    out: &'a mut [f32],
}

impl<K: Kernel> pulp::WithSimd for Group<'_, K> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        self.kernel.fill(self.at, self.out);
    }
}

/// A new vector, filled group by group.
fn filled(n: usize, group: usize, kernel: impl Kernel) -> Vec<f32> {
    let mut out = vec![0f32; n];
    let arch = pulp::Arch::new();
    let groups = out.par_chunks_mut(group).enumerate();
    groups.for_each(|(i, out)| {
        arch.dispatch(Group {
            kernel: &kernel,
            at: i * group,
            out,
        });
    });
    out
}

/// `Σ f(i)`, in sixteen partial sums so that it vectorises; the order of additions is fixed.
#[inline(always)]
fn sum(n: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0f32; 16];
    let whole = n - n % 16;
    for at in (0..whole).step_by(16) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += f(at + lane);
        }
    }
    let rest: f32 = (whole..n).map(&f).sum();
    lanes.iter().sum::<f32>() + rest
}

/// The largest value, in sixteen lanes as [`sum`].
#[inline(always)]
fn largest(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (chunks, rest) = x.as_chunks::<16>();
    for chunk in chunks {
        for (most, &x) in lanes.iter_mut().zip(chunk) {
            *most = if x > *most { x } else { *most };
        }
    }
    lanes
        .iter()
        .chain(rest)
        .fold(f32::NEG_INFINITY, |m, &v| m.max(v))
}

/// `eˣ` to about 1e-7 relative: `2^k · e^r` with `|r| ≤ ln 2 / 2` and a polynomial for `e^r`. Written without branches
/// so that it vectorises.
#[inline(always)]
fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    let k = (x * std::f32::consts::LOG2_E + 12_582_912.0) - 12_582_912.0;
    // ln 2 in two parts, so that r is exact.
    let r = (x - k * 0.693_359_4) + k * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let e = p * r * r + r + 1.0;
    e * f32::from_bits(((k as i32 + 127) << 23) as u32)
}

/// The normal distribution function Φ(x) and density φ(x). Φ from `erfc(z) ≈ t·P(t)·e^{−z²}`, `t = 1/(1 + 0.3275911 z)`
/// (Abramowitz and Stegun 7.1.26, 1.5e-7).
#[inline(always)]
fn normal(x: f32) -> (f32, f32) {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let e = exp(-z * z);
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let mut p = 1.061_405_4;
    p = p * t - 1.453_152;
    p = p * t + 1.421_413_8;
    p = p * t - 0.284_496_74;
    p = p * t + 0.254_829_6;
    let half = 0.5 * t * p * e;
    let cdf = if x >= 0.0 { 1.0 - half } else { half };
    (cdf, 0.398_942_3 * e)
}

/// Exact GELU, `x·Φ(x)`.
pub(crate) struct Gelu;

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice(x, lx)?;
        let kernel = GeluKernel { x };
        let out = filled(x.len(), GRAIN, kernel);
        Ok((CpuStorage::F32(out), lx.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(x.apply_op2_no_bwd(&grad.contiguous()?, &GeluGrad)?))
    }
}

struct GeluKernel<'a> {
    x: &'a [f32],
}

impl Kernel for GeluKernel<'_> {
    #[inline(always)]
    fn fill(&self, at: usize, out: &mut [f32]) {
        let Self { x } = *self;
        for (y, &x) in out.iter_mut().zip(&x[at..]) {
            *y = x * normal(x).0;
        }
    }
}

/// `g · (Φ(x) + x φ(x))`.
struct GeluGrad;

impl CustomOp2 for GeluGrad {
    fn name(&self) -> &'static str {
        "gelu-grad"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        g: &CpuStorage,
        lg: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, g) = (slice(x, lx)?, slice(g, lg)?);
        let kernel = GeluGradKernel { x, g };
        let out = filled(x.len(), GRAIN, kernel);
        Ok((CpuStorage::F32(out), lx.shape().clone()))
    }
}

struct GeluGradKernel<'a> {
    x: &'a [f32],
    g: &'a [f32],
}

impl Kernel for GeluGradKernel<'_> {
    #[inline(always)]
    fn fill(&self, at: usize, out: &mut [f32]) {
        let Self { x, g } = *self;
        for ((y, &x), &g) in out.iter_mut().zip(&x[at..]).zip(&g[at..]) {
            let (cdf, density) = normal(x);
            *y = g * (cdf + x * density);
        }
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
        let kernel = SoftmaxKernel { x, n };
        let out = filled(x.len(), group(n), kernel);
        Ok((CpuStorage::F32(out), lx.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(y.apply_op2_no_bwd(&grad.contiguous()?, &SoftmaxGrad)?))
    }
}

struct SoftmaxKernel<'a> {
    x: &'a [f32],
    n: usize,
}

impl Kernel for SoftmaxKernel<'_> {
    #[inline(always)]
    fn fill(&self, at: usize, out: &mut [f32]) {
        let Self { x, n } = *self;
        for (y, x) in out.chunks_exact_mut(n).zip(x[at..].chunks_exact(n)) {
            let most = largest(x);
            for (y, &x) in y.iter_mut().zip(x) {
                *y = exp(x - most);
            }
            let scale = 1.0 / sum(n, |i| y[i]);
            y.iter_mut().for_each(|y| *y *= scale);
        }
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
        let kernel = SoftmaxGradKernel { y, g, n };
        let out = filled(y.len(), group(n), kernel);
        Ok((CpuStorage::F32(out), ly.shape().clone()))
    }
}

struct SoftmaxGradKernel<'a> {
    y: &'a [f32],
    g: &'a [f32],
    n: usize,
}

impl Kernel for SoftmaxGradKernel<'_> {
    #[inline(always)]
    fn fill(&self, at: usize, out: &mut [f32]) {
        let Self { y, g, n } = *self;
        let rows = y[at..].chunks_exact(n).zip(g[at..].chunks_exact(n));
        for (out, (y, g)) in out.chunks_exact_mut(n).zip(rows) {
            let dot = sum(n, |i| y[i] * g[i]);
            for ((out, &y), &g) in out.iter_mut().zip(y).zip(g) {
                *out = y * (g - dot);
            }
        }
    }
}

/// Layer norm over the last dimension with frozen weight and bias.
pub(crate) struct Norm {
    pub eps: f64,
}

/// Mean and `1 / sqrt(var + eps)` of a row.
#[inline(always)]
fn moments(x: &[f32], eps: f64) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = sum(x.len(), |i| x[i]) / n;
    let var = sum(x.len(), |i| (x[i] - mean) * (x[i] - mean)) / n;
    (mean, 1.0 / (var + eps as f32).sqrt())
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
        let kernel = NormKernel {
            x,
            w,
            b,
            n,
            eps: self.eps,
        };
        let out = filled(x.len(), group(n), kernel);
        Ok((CpuStorage::F32(out), lx.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let op = NormGrad { eps: self.eps };
        let grad = x.apply_op3_no_bwd(w, &grad.contiguous()?, &op)?;
        Ok((Some(grad), None, None))
    }
}

struct NormKernel<'a> {
    x: &'a [f32],
    w: &'a [f32],
    b: &'a [f32],
    n: usize,
    eps: f64,
}

impl Kernel for NormKernel<'_> {
    #[inline(always)]
    fn fill(&self, at: usize, out: &mut [f32]) {
        let Self { x, w, b, n, eps } = *self;
        for (y, x) in out.chunks_exact_mut(n).zip(x[at..].chunks_exact(n)) {
            let (mean, scale) = moments(x, eps);
            for (((y, &x), &w), &b) in y.iter_mut().zip(x).zip(w).zip(b) {
                *y = (x - mean) * scale * w + b;
            }
        }
    }
}

/// With `x̂ = (x − mean)·s` and `h = g·w`: `s · (h − mean(h) − x̂ · mean(h x̂))`.
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
        let kernel = NormGradKernel {
            x,
            g,
            w,
            n,
            eps: self.eps,
        };
        let out = filled(x.len(), group(n), kernel);
        Ok((CpuStorage::F32(out), lx.shape().clone()))
    }
}

struct NormGradKernel<'a> {
    x: &'a [f32],
    g: &'a [f32],
    w: &'a [f32],
    n: usize,
    eps: f64,
}

impl Kernel for NormGradKernel<'_> {
    #[inline(always)]
    fn fill(&self, at: usize, out: &mut [f32]) {
        let Self { x, g, w, n, eps } = *self;
        let rows = x[at..].chunks_exact(n).zip(g[at..].chunks_exact(n));
        for (out, (x, g)) in out.chunks_exact_mut(n).zip(rows) {
            let (mean, scale) = moments(x, eps);
            let (w, g, x) = (&w[..n], &g[..n], &x[..n]);
            let mean_h = sum(n, |i| g[i] * w[i]) / n as f32;
            let dot = sum(n, |i| g[i] * w[i] * (x[i] - mean)) * scale / n as f32;
            for (((out, &x), &g), &w) in out.iter_mut().zip(x).zip(g).zip(w) {
                *out = scale * (g * w - mean_h - (x - mean) * scale * dot);
            }
        }
    }
}

/// Adds `bias` to every row of `out`.
pub(crate) fn add_rows(out: &mut [f32], bias: &[f32]) {
    let n = bias.len().max(1);
    out.par_chunks_mut(group(n)).for_each(|rows| {
        for row in rows.chunks_exact_mut(n) {
            row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_and_normal_are_close_to_exact() {
        for i in -8000..8000 {
            let x = i as f32 * 0.01;
            let want = f64::from(x).exp();
            assert!((f64::from(exp(x)) - want).abs() <= 3e-7 * want, "exp({x})");
        }
        // Φ(1), φ(1), Φ(−3), Φ(0).
        let close = |a: f32, b: f64| assert!((f64::from(a) - b).abs() < 3e-7, "{a} {b}");
        close(normal(1.0).0, 0.841_344_746_068_543);
        close(normal(1.0).1, 0.241_970_724_519_143);
        close(normal(-3.0).0, 0.001_349_898_031_630);
        close(normal(0.0).0, 0.5);
        assert_eq!(normal(30.0).0, 1.0);
        assert!(normal(-30.0).0 < 1e-30);
    }
}
