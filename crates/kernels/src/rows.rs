//! Element-wise operations on rows of f32, compiled for each vector unit and chosen at run time. Multiplications and additions are
//! fused, which all processors since 2013 do in one instruction. A row's result depends on
//! no other row, and sums have a fixed order.

use pulp::Arch;

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
    let k = x.mul_add(std::f32::consts::LOG2_E, 12_582_912.0) - 12_582_912.0;
    // ln 2 in two parts, so that r is exact.
    let r = k.mul_add(2.121_944_4e-4, k.mul_add(-0.693_359_4, x));
    let mut p = 1.987_569_1e-4f32;
    p = p.mul_add(r, 1.398_199_9e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 1.666_666_5e-1);
    p = p.mul_add(r, 0.5);
    let e = p.mul_add(r * r, r) + 1.0;
    e * f32::from_bits(((k as i32 + 127) << 23) as u32)
}

/// The normal distribution function Φ(x) and density φ(x). Φ from `erfc(z) ≈ t·P(t)·e^{−z²}`, `t = 1/(1 + 0.3275911 z)`
/// (Abramowitz and Stegun 7.1.26, 1.5e-7).
#[inline(always)]
fn normal(x: f32) -> (f32, f32) {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let e = exp(-z * z);
    let t = 1.0 / z.mul_add(0.327_591_1, 1.0);
    let mut p = 1.061_405_4f32;
    p = p.mul_add(t, -1.453_152);
    p = p.mul_add(t, 1.421_413_8);
    p = p.mul_add(t, -0.284_496_74);
    p = p.mul_add(t, 0.254_829_6);
    let half = 0.5 * t * p * e;
    let cdf = if x >= 0.0 { 1.0 - half } else { half };
    (cdf, 0.398_942_3 * e)
}

/// In quick GELU.
const QUICK: f32 = 1.702;

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Mean and `1 / sqrt(var + eps)` of a row.
#[inline(always)]
fn moments(x: &[f32], eps: f32) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = sum(x.len(), |i| x[i]) / n;
    let var = sum(x.len(), |i| (x[i] - mean) * (x[i] - mean)) / n;
    (mean, 1.0 / (var + eps).sqrt())
}

/// What is compiled for each vector unit.
trait Loop {
    /// To be inlined, else it is compiled for the smallest unit alone.
    fn run(self);
}

struct Vectorised<L>(L);

impl<L: Loop> pulp::WithSimd for Vectorised<L> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        self.0.run();
    }
}

/// Functions whose bodies are compiled for each vector unit; the processor's own is chosen when they are called.
macro_rules! vectorised {
    ($($(#[$doc:meta])* $vis:vis fn $name:ident<$a:lifetime>($($arg:ident: $type:ty),* $(,)?) $body:block)*) => {$(
        $(#[$doc])*
        $vis fn $name<$a>($($arg: $type),*) {
            struct Arguments<$a> { $($arg: $type),* }
            impl<$a> Loop for Arguments<$a> {
                #[inline(always)]
                fn run(self) {
                    let Self { $($arg),* } = self;
                    $body
                }
            }
            Arch::new().dispatch(Vectorised(Arguments { $($arg),* }));
        }
    )*};
}

vectorised! {
    /// Exact GELU, `x·Φ(x)`, to `out`.
    pub fn gelu<'a>(x: &'a [f32], out: &'a mut [f32]) {
        for (y, &x) in out.iter_mut().zip(x) {
            *y = x * normal(x).0;
        }
    }

    /// Multiplies the gradient of GELU's output by `Φ(x) + x φ(x)`.
    pub fn gelu_grad<'a>(x: &'a [f32], grad: &'a mut [f32]) {
        for (g, &x) in grad.iter_mut().zip(x) {
            let (cdf, density) = normal(x);
            *g *= cdf + x * density;
        }
    }

    /// Quick GELU, `x·σ(1.702 x)`, to `out`.
    pub fn quick_gelu<'a>(x: &'a [f32], out: &'a mut [f32]) {
        for (y, &x) in out.iter_mut().zip(x) {
            *y = x * sigmoid(QUICK * x);
        }
    }

    /// Multiplies the gradient of quick GELU's output by `σ + 1.702 x σ (1 − σ)`, `σ = σ(1.702 x)`.
    pub fn quick_gelu_grad<'a>(x: &'a [f32], grad: &'a mut [f32]) {
        for (g, &x) in grad.iter_mut().zip(x) {
            let s = sigmoid(QUICK * x);
            *g *= s + QUICK * x * s * (1.0 - s);
        }
    }

    /// Softmax of `factor · x`, row by row of `n`, in place.
    pub fn softmax<'a>(x: &'a mut [f32], n: usize, factor: f32) {
        for row in x.chunks_exact_mut(n) {
            let most = largest(row);
            for x in row.iter_mut() {
                *x = exp((*x - most) * factor);
            }
            let scale = 1.0 / sum(n, |i| row[i]);
            row.iter_mut().for_each(|x| *x *= scale);
        }
    }

    /// From the gradient of the softmax `y` of `factor · x` to that of `x`: `factor · y · (g − Σ g y)`, in place.
    pub fn softmax_grad<'a>(y: &'a [f32], grad: &'a mut [f32], n: usize, factor: f32) {
        for (y, grad) in y.chunks_exact(n).zip(grad.chunks_exact_mut(n)) {
            let dot = sum(n, |i| y[i] * grad[i]);
            for (g, &y) in grad.iter_mut().zip(y) {
                *g = factor * y * (*g - dot);
            }
        }
    }

    /// `(x − mean) / sqrt(var + eps) · w + b`, row by row.
    pub fn norm<'a>(x: &'a [f32], weight: &'a [f32], bias: &'a [f32], eps: f32, out: &'a mut [f32]) {
        let n = weight.len().max(1);
        for (y, x) in out.chunks_exact_mut(n).zip(x.chunks_exact(n)) {
            let (mean, scale) = moments(x, eps);
            for (((y, &x), &w), &b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
                *y = (x - mean) * scale * w + b;
            }
        }
    }

    /// Adds to `out` the gradient of [`norm`]'s input: with `x̂ = (x − mean)·s` and `h = g·w`,
    /// `s · (h − mean(h) − x̂ · mean(h x̂))`.
    pub fn norm_grad<'a>(x: &'a [f32], weight: &'a [f32], eps: f32, grad: &'a [f32], out: &'a mut [f32]) {
        let n = weight.len().max(1);
        let rows = x.chunks_exact(n).zip(grad.chunks_exact(n));
        for (out, (x, g)) in out.chunks_exact_mut(n).zip(rows) {
            let (mean, scale) = moments(x, eps);
            let (w, g, x) = (&weight[..n], &g[..n], &x[..n]);
            let mean_h = sum(n, |i| g[i] * w[i]) / n as f32;
            let dot = sum(n, |i| g[i] * w[i] * (x[i] - mean)) * scale / n as f32;
            for (((out, &x), &g), &w) in out.iter_mut().zip(x).zip(g).zip(w) {
                *out += scale * (g * w - mean_h - (x - mean) * scale * dot);
            }
        }
    }

    /// Adds to the gradients of [`norm`]'s weight and bias what rows give: `Σ g x̂` and `Σ g`.
    pub fn norm_weight_grad<'a>(x: &'a [f32], eps: f32, grad: &'a [f32], weight: &'a mut [f32], bias: &'a mut [f32]) {
        let n = weight.len().max(1);
        for (x, g) in x.chunks_exact(n).zip(grad.chunks_exact(n)) {
            let (mean, scale) = moments(x, eps);
            for (((w, b), &x), &g) in weight.iter_mut().zip(bias.iter_mut()).zip(x).zip(g) {
                *w += g * (x - mean) * scale;
                *b += g;
            }
        }
    }

    /// `x + γ (y + b)`, row by row; γ is 1 where there is none.
    pub(crate) fn add_branch<'a>(x: &'a mut [f32], y: &'a [f32], bias: &'a [f32], scale: Option<&'a [f32]>) {
        let n = bias.len().max(1);
        for (x, y) in x.chunks_exact_mut(n).zip(y.chunks_exact(n)) {
            match scale {
                Some(scale) => {
                    for (((x, &y), &b), &s) in x.iter_mut().zip(y).zip(bias).zip(scale) {
                        *x += s * (y + b);
                    }
                }
                None => {
                    for ((x, &y), &b) in x.iter_mut().zip(y).zip(bias) {
                        *x += y + b;
                    }
                }
            }
        }
    }

    /// `γ x`, row by row; a copy where there is no γ.
    pub(crate) fn scaled<'a>(x: &'a [f32], scale: Option<&'a [f32]>, out: &'a mut [f32]) {
        let Some(scale) = scale else {
            return out.copy_from_slice(x);
        };
        let n = scale.len().max(1);
        for (y, x) in out.chunks_exact_mut(n).zip(x.chunks_exact(n)) {
            for ((y, &x), &s) in y.iter_mut().zip(x).zip(scale) {
                *y = x * s;
            }
        }
    }
}

impl crate::Activation {
    /// To `out`.
    pub fn apply(self, x: &[f32], out: &mut [f32]) {
        match self {
            Self::Gelu => gelu(x, out),
            Self::QuickGelu => quick_gelu(x, out),
        }
    }

    /// Multiplies the gradient of the output by the slope at `x`.
    pub fn apply_grad(self, x: &[f32], grad: &mut [f32]) {
        match self {
            Self::Gelu => gelu_grad(x, grad),
            Self::QuickGelu => quick_gelu_grad(x, grad),
        }
    }
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
        close(sigmoid(1.702), 0.845_795_7);
        close(sigmoid(-100.0), 0.0);
        close(sigmoid(100.0), 1.0);
    }
}
