//! Memory of large matrices, in large pages where the system has them: a fresh page of 4 KiB takes longer to get than to fill.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use memmap2::{Advice, MmapMut};

use crate::Real;

/// Fewer bytes are not worth a mapping of their own.
const LARGE: usize = 4 << 20;

/// As many values as it was made with.
pub enum Values<T> {
    /// On the heap.
    Few(Vec<T>),
    /// In pages of their own.
    Many(MmapMut, usize, PhantomData<T>),
}

impl<T: Real> Values<T> {
    /// All zeros.
    pub fn zeros(n: usize) -> Self {
        let pages = match n * size_of::<T>() {
            bytes if bytes >= LARGE => MmapMut::map_anon(bytes).ok(),
            _ => None,
        };
        match pages {
            Some(pages) => {
                // Without them it works as well.
                #[cfg(target_os = "linux")]
                let _ = pages.advise(Advice::HugePage);
                Self::Many(pages, n, PhantomData)
            }
            None => Self::Few(vec![T::ZERO; n]),
        }
    }
}

impl<T: Real> Deref for Values<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::Few(values) => values,
            Self::Many(pages, n, _) => bytemuck::cast_slice(&pages[..n * size_of::<T>()]),
        }
    }
}

impl<T: Real> DerefMut for Values<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match self {
            Self::Few(values) => values,
            Self::Many(pages, n, _) => bytemuck::cast_slice_mut(&mut pages[..*n * size_of::<T>()]),
        }
    }
}

impl<T: Real> Clone for Values<T> {
    fn clone(&self) -> Self {
        let mut new = Self::zeros(self.len());
        new.copy_from_slice(self);
        new
    }
}

impl<T: Real> PartialEq for Values<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Real> std::fmt::Debug for Values<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_and_small_behave_alike() {
        for n in [0, 3, (LARGE + 4096) / 4 + 1] {
            let mut values = Values::<f32>::zeros(n);
            assert_eq!(matches!(values, Values::Many(..)), n > 3);
            assert!(values.len() == n && values.iter().all(|v| *v == 0.0));
            if let Some(last) = values.last_mut() {
                *last = 2.0;
                let other = values.clone();
                assert_eq!(other, values);
                assert_ne!(other, Values::zeros(n));
            }
        }
    }
}
