//! Sixteen f32 values at a time, and their conversion to and from bf16.
//!
//! Loads and stores take slices and touch no more than these hold: a slice of fewer than sixteen values is a partial
//! vector whose other lanes are zero. All functions need the features that [`super::tile::available`] checks.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

/// Sixteen f32 values.
pub type Lanes = __m512;

/// Values in a vector.
pub const LANES: usize = 16;

macro_rules! lanes {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),*) -> $out:ty $body:block)*) => {$(
        $(#[$doc])*
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
        pub fn $name($($arg: $type),*) -> $out $body
    )*};
}

#[inline(always)]
fn mask(n: usize) -> u16 {
    ((1u32 << n.min(LANES)) - 1) as u16
}

lanes! {
    /// All lanes the same.
    fn all(x: f32) -> Lanes { _mm512_set1_ps(x) }

    /// The first sixteen values, or as many as there are.
    fn load(x: &[f32]) -> Lanes {
        match x.first_chunk() {
            Some(x) => load16(x),
            // SAFETY: lanes beyond the slice are masked and not read.
            None => unsafe { _mm512_maskz_loadu_ps(mask(x.len()), x.as_ptr()) },
        }
    }

    /// Sixteen values.
    fn load16(x: &[f32; LANES]) -> Lanes {
        // SAFETY: the array has sixteen values.
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }

    /// The first sixteen bf16 values, or as many as there are.
    fn load_bf16(x: &[u16]) -> Lanes {
        let half = match x.len() >= LANES {
            // SAFETY: the slice holds sixteen values.
            true => unsafe { _mm256_loadu_si256(x.as_ptr().cast()) },
            // SAFETY: lanes beyond the slice are masked and not read.
            false => unsafe { _mm256_maskz_loadu_epi16(mask(x.len()), x.as_ptr().cast()) },
        };
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)))
    }

    /// Writes as many lanes as the slice holds.
    fn store(x: &mut [f32], v: Lanes) -> () {
        match x.len() >= LANES {
            // SAFETY: the slice holds sixteen values.
            true => unsafe { _mm512_storeu_ps(x.as_mut_ptr(), v) },
            // SAFETY: lanes beyond the slice are masked and not written.
            false => unsafe { _mm512_mask_storeu_ps(x.as_mut_ptr(), mask(x.len()), v) },
        }
    }

    /// Writes as many lanes as the slice holds, rounded to bf16 (to nearest, ties to even).
    fn store_bf16(x: &mut [u16], v: Lanes) -> () {
        // SAFETY: the two types are the same 256 bits; the slice holds sixteen values, or lanes beyond it are masked and not
        // written.
        unsafe {
            let half = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(v));
            match x.len() >= LANES {
                true => _mm256_storeu_si256(x.as_mut_ptr().cast(), half),
                false => _mm256_mask_storeu_epi16(x.as_mut_ptr().cast(), mask(x.len()), half),
            }
        }
    }

    /// Writes 32 values rounded to bf16.
    fn store_pair(x: &mut [u16; 2 * LANES], low: Lanes, high: Lanes) -> () {
        // SAFETY: the two types are the same 512 bits, and the array has as many.
        unsafe {
            let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(x.as_mut_ptr().cast(), both);
        }
    }

    /// `(even_i, odd_i)` rounded to bf16, as 16 pairs.
    fn interleave(even: Lanes, odd: Lanes) -> Pairs {
        // SAFETY: the types are the same 256 bits.
        let (even, odd) = unsafe {
            (
                std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(even)),
                std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(odd)),
            )
        };
        zip(even, odd)
    }

    /// `(even_i, odd_i)` of two rows of bf16 values, as 16 pairs, zero where a row ends.
    fn interleave_bf16(even: &[u16], odd: &[u16]) -> Pairs {
        // SAFETY: lanes beyond the slices are masked and not read.
        let (even, odd) = unsafe {
            (
                _mm256_maskz_loadu_epi16(mask(even.len()), even.as_ptr().cast()),
                _mm256_maskz_loadu_epi16(mask(odd.len()), odd.as_ptr().cast()),
            )
        };
        zip(even, odd)
    }

    /// Up to sixteen pairs of consecutive bf16 values, zero where the row ends (an odd last value is paired with zero).
    fn load_pairs(x: &[u16]) -> Pairs {
        let n = x.len().min(2 * LANES);
        let mask = ((1u64 << n) - 1) as u32;
        // SAFETY: lanes beyond the slice are masked and not read.
        unsafe { _mm512_maskz_loadu_epi16(mask, x.as_ptr().cast()) }
    }

    /// Writes sixteen pairs.
    fn store_pairs(x: &mut [u16; 2 * LANES], v: Pairs) -> () {
        // SAFETY: the array has 512 bits.
        unsafe { _mm512_storeu_si512(x.as_mut_ptr().cast(), v) }
    }

    /// Pair `j` of row `i` goes to pair `i` of row `j`.
    fn transpose(r: [Pairs; LANES]) -> [Pairs; LANES] {
        let mut t = r;
        let mut o = r;
        for i in 0..8 {
            t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
            t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
        }
        for i in 0..4 {
            o[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
            o[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
            o[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
            o[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
        }
        for i in 0..4 {
            t[i] = _mm512_shuffle_i32x4::<0x88>(o[i], o[i + 4]);
            t[i + 4] = _mm512_shuffle_i32x4::<0xdd>(o[i], o[i + 4]);
            t[i + 8] = _mm512_shuffle_i32x4::<0x88>(o[i + 8], o[i + 12]);
            t[i + 12] = _mm512_shuffle_i32x4::<0xdd>(o[i + 8], o[i + 12]);
        }
        for i in 0..8 {
            o[i] = _mm512_shuffle_i32x4::<0x88>(t[i], t[i + 8]);
            o[i + 8] = _mm512_shuffle_i32x4::<0xdd>(t[i], t[i + 8]);
        }
        o
    }

    /// `a + b`.
    fn add(a: Lanes, b: Lanes) -> Lanes { _mm512_add_ps(a, b) }
    /// `a − b`.
    fn sub(a: Lanes, b: Lanes) -> Lanes { _mm512_sub_ps(a, b) }
    /// `a · b`.
    fn mul(a: Lanes, b: Lanes) -> Lanes { _mm512_mul_ps(a, b) }
    /// `a · b + c`.
    fn fma(a: Lanes, b: Lanes, c: Lanes) -> Lanes { _mm512_fmadd_ps(a, b, c) }
    /// `c − a · b`.
    fn fnma(a: Lanes, b: Lanes, c: Lanes) -> Lanes { _mm512_fnmadd_ps(a, b, c) }
    /// The larger of each lane.
    fn max(a: Lanes, b: Lanes) -> Lanes { _mm512_max_ps(a, b) }
    /// Sum of all lanes.
    fn sum(v: Lanes) -> f32 { _mm512_reduce_add_ps(v) }
    /// Largest of all lanes.
    fn largest(v: Lanes) -> f32 { _mm512_reduce_max_ps(v) }
    /// The first `n` lanes of `v`, `other` behind them.
    fn first(n: usize, v: Lanes, other: f32) -> Lanes {
        _mm512_mask_mov_ps(_mm512_set1_ps(other), mask(n), v)
    }

    /// `2ˣ` to about 3e-6 relative: far below what bf16 keeps.
    fn exp2(x: Lanes) -> Lanes {
        let x = _mm512_max_ps(x, _mm512_set1_ps(-126.0));
        let whole = _mm512_roundscale_ps::<8>(x);
        let f = _mm512_sub_ps(x, whole);
        let mut p = _mm512_set1_ps(1.333_355_8e-3);
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.618_129e-3));
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.550_411e-2));
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.402_265e-1));
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.931_472e-1));
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0));
        _mm512_scalef_ps(p, whole)
    }

    /// The normal distribution function Φ(x) and `e^{−x²/2}`; Φ to 1.3e-5 (Abramowitz and Stegun 7.1.25).
    fn normal(x: Lanes) -> (Lanes, Lanes) {
        let e = exp2(_mm512_mul_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(-0.721_347_5)));
        let z = _mm512_abs_ps(x);
        // 0.47047 / √2.
        let d = _mm512_fmadd_ps(z, _mm512_set1_ps(0.332_672_53), _mm512_set1_ps(1.0));
        let t = _mm512_rcp14_ps(d);
        let mut p = _mm512_fmadd_ps(t, _mm512_set1_ps(0.373_927_8), _mm512_set1_ps(-0.047_939_9));
        p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.174_012_1));
        let upper = _mm512_mul_ps(_mm512_mul_ps(p, t), e);
        let negative = _mm512_movepi32_mask(_mm512_castps_si512(x));
        let cdf = _mm512_mask_mov_ps(_mm512_sub_ps(_mm512_set1_ps(1.0), upper), negative, upper);
        (cdf, e)
    }

    /// `x·Φ(x)`.
    fn gelu(x: Lanes) -> Lanes { _mm512_mul_ps(x, normal(x).0) }

    /// `Φ(x) + x·φ(x)`.
    fn gelu_grad(x: Lanes) -> Lanes {
        let (cdf, e) = normal(x);
        _mm512_fmadd_ps(_mm512_mul_ps(x, e), _mm512_set1_ps(0.398_942_3), cdf)
    }

    /// `σ(1.702 x)`.
    fn quick_sigmoid(x: Lanes) -> Lanes {
        // 2^(−1.702 x log₂ e), kept where its reciprocal is.
        let power = _mm512_mul_ps(x, _mm512_set1_ps(-2.455_467));
        let e = exp2(_mm512_min_ps(power, _mm512_set1_ps(126.0)));
        _mm512_div_ps(_mm512_set1_ps(1.0), _mm512_add_ps(_mm512_set1_ps(1.0), e))
    }

    /// `x·σ(1.702 x)`.
    fn quick_gelu(x: Lanes) -> Lanes { _mm512_mul_ps(x, quick_sigmoid(x)) }

    /// `σ + 1.702 x σ (1 − σ)`.
    fn quick_gelu_grad(x: Lanes) -> Lanes {
        let s = quick_sigmoid(x);
        let rest = _mm512_sub_ps(_mm512_set1_ps(1.0), s);
        let slope = _mm512_mul_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.702)), rest);
        _mm512_fmadd_ps(s, slope, s)
    }
}

/// Sixteen pairs of bf16 values.
pub type Pairs = __m512i;

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn zip(even: __m256i, odd: __m256i) -> Pairs {
    let odd = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(odd));
    _mm512_or_si512(_mm512_cvtepu16_epi32(even), odd)
}

/// Sixteen pairs of zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub fn no_pairs() -> Pairs {
    _mm512_setzero_si512()
}

/// Asks for the cache line of an address to be brought to the first level cache. Nothing need be there.
#[inline(always)]
pub fn ask_near(at: *const u8) {
    // SAFETY: a prefetch reads nothing that the program sees, and may be of any address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
}

/// The same to the second level cache.
#[inline(always)]
pub fn ask(at: *const u8) {
    // SAFETY: as above.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) };
}

/// `x` rounded to bf16, to nearest with ties to even.
pub fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return ((bits >> 16) | 0x40) as u16;
    }
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}
