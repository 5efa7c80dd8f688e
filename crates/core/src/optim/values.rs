//! The values of tensors on the processor, changed where they are.

use std::cell::Cell;
use std::marker::PhantomData;

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Result, Storage, Tensor, WithDType};
use half::bf16;

/// What moments are kept in. Sums are f32 in any case.
pub(super) trait Number: WithDType {
    fn of(storage: &mut CpuStorage) -> Option<&mut Vec<Self>>;

    fn wide(self) -> f32;

    /// `noise` is uniform over 16 bits, for those that have fewer than f32: rounding at random, up with the probability of
    /// what is cut off, keeps the mean of many small steps, which rounding to the nearest would drop.
    fn narrow(value: f32, noise: u32) -> Self;
}

impl Number for f32 {
    fn of(storage: &mut CpuStorage) -> Option<&mut Vec<Self>> {
        match storage {
            CpuStorage::F32(values) => Some(values),
            _ => None,
        }
    }

    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }

    #[inline(always)]
    fn narrow(value: f32, _: u32) -> Self {
        value
    }
}

impl Number for bf16 {
    fn of(storage: &mut CpuStorage) -> Option<&mut Vec<Self>> {
        match storage {
            CpuStorage::BF16(values) => Some(values),
            _ => None,
        }
    }

    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn narrow(value: f32, noise: u32) -> Self {
        let noise = if value.is_finite() { noise & 0xffff } else { 0 };
        Self::from_bits((value.to_bits().wrapping_add(noise) >> 16) as u16)
    }
}

/// 32 random bits for value `i` under `seed`, two draws of 16.
#[inline(always)]
pub(super) fn noise(i: u32, seed: u32) -> u32 {
    let mut x = i.wrapping_mul(0x9e37_79b9) ^ seed;
    x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
    x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

/// Whether [`change`] can reach the values.
pub(super) fn at_hand(tensor: &Tensor) -> bool {
    tensor.device().is_cpu() && tensor.dtype() == DType::F32 && tensor.is_contiguous()
}

/// Gives `work` the values of a contiguous tensor, to be changed.
pub(super) fn change<T: Number>(
    tensor: &Tensor,
    work: impl FnOnce(&mut [T]) -> Result<()>,
) -> Result<()> {
    tensor.inplace_op1(&Change(Cell::new(Some(work)), PhantomData))
}

struct Change<F, T>(Cell<Option<F>>, PhantomData<T>);

impl<T: Number, F: FnOnce(&mut [T]) -> Result<()>> InplaceOp1 for Change<F, T> {
    fn name(&self) -> &'static str {
        "optimizer-step"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        match (self.0.take(), layout.contiguous_offsets(), T::of(storage)) {
            (Some(work), Some((start, end)), Some(values)) => work(&mut values[start..end]),
            _ => candle_core::bail!("expected contiguous {:?} on the processor", T::DTYPE),
        }
    }
}

/// Gives `work` the values of a gradient.
pub(super) fn read(grad: &Tensor, work: impl FnOnce(&[f32]) -> Result<()>) -> Result<()> {
    let grad = grad.contiguous()?;
    let (storage, layout) = grad.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => work(&values[start..end]),
        _ => candle_core::bail!(
            "expected a gradient in f32 on the processor, found {:?}",
            grad.dtype()
        ),
    }
}

/// `grad`, or a copy where it is one with `var`: its values are read while those of `var` are changed.
pub(super) fn apart(grad: &Tensor, var: &Tensor) -> Result<Tensor> {
    let same = {
        let ((grad, _), (var, _)) = (grad.storage_and_layout(), var.storage_and_layout());
        std::ptr::eq(&*grad, &*var)
    };
    match same {
        true => grad.copy(),
        false => Ok(grad.clone()),
    }
}
