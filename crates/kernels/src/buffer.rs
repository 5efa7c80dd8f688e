//! Memory that is aligned to cache lines and used again: in a steady state a whole block asks the system for its results
//! alone.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

/// A cache line.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u64; 8]);

/// A buffer that starts on a cache line and only grows.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    lines: Vec<Line>,
}

impl Buffer {
    /// `n` values, with whatever was in them before; new ones are zero.
    pub(crate) fn get<T: bytemuck::Pod>(&mut self, n: usize) -> &mut [T] {
        let lines = (n * size_of::<T>()).div_ceil(size_of::<Line>());
        if self.lines.len() < lines {
            self.lines.resize(lines, Line([0; 8]));
        }
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..n]
    }

    /// The first `n` values.
    pub(crate) fn read<T: bytemuck::Pod>(&self, n: usize) -> &[T] {
        &bytemuck::cast_slice(&self.lines)[..n]
    }
}

/// Things to be used again.
#[derive(Debug)]
pub(crate) struct Pool<T>(Arc<Mutex<Vec<T>>>);

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: Default> Pool<T> {
    /// One from the pool, or a new one; it goes back when dropped.
    pub(crate) fn take(&self) -> Pooled<T> {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Pooled {
            item: free.pop().unwrap_or_default(),
            pool: self.0.clone(),
        }
    }
}

/// Something borrowed from a [`Pool`].
#[derive(Debug)]
pub(crate) struct Pooled<T: Default> {
    pub(crate) item: T,
    pool: Arc<Mutex<Vec<T>>>,
}

impl<T: Default> Drop for Pooled<T> {
    fn drop(&mut self) {
        let item = std::mem::take(&mut self.item);
        let mut free = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(item);
    }
}

/// A copy of `from` of which each chunk is changed by `f(i, chunk)`, all chunks in parallel. Copying is part of the
/// chunk's own work, where its values are needed next.
pub(crate) fn changed<T: Send>(
    from: &[f32],
    chunk: usize,
    state: Vec<T>,
    f: impl Fn(usize, &mut [f32], T) + Sync + Send,
) -> Vec<f32> {
    // One state a chunk: a chunk without one would be skipped below and never written.
    assert!(chunk > 0 && state.len() == from.len().div_ceil(chunk));
    let mut out = Vec::with_capacity(from.len());
    let spare: &mut [MaybeUninit<f32>] = &mut out.spare_capacity_mut()[..from.len()];
    spare
        .par_chunks_mut(chunk)
        .zip(from.par_chunks(chunk))
        .zip(state)
        .enumerate()
        .for_each(|(i, ((to, from), state))| {
            for (to, from) in to.iter_mut().zip(from) {
                to.write(*from);
            }
            // SAFETY: both chunks have the same length, so every value has just been written.
            let to = unsafe { &mut *(std::ptr::from_mut(to) as *mut [f32]) };
            f(i, to, state);
        });
    // SAFETY: the chunks cover all of the values, and each was written, since there was a state for each.
    unsafe { out.set_len(from.len()) };
    out
}
