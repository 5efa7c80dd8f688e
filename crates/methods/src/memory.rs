//! The memory that a method asks for, so that whoever runs several at once knows how many there is room for.

use candlewick_stats::{Ridge, search_memory};

use crate::{FeCam, JointRidge, MethodConfig, NearestMean, RanPac, nearest_mean::Distance};

/// What a method's memory depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Values of a feature.
    pub dim: usize,
    /// Classes of all tasks.
    pub classes: usize,
    /// Training images of all tasks.
    pub images: usize,
    /// Those of the largest task.
    pub task: usize,
    /// Threads at work.
    pub threads: usize,
}

const F32: usize = 4;
const F64: usize = 8;

impl MethodConfig {
    /// Bytes that it has in use at its height, of what it keeps of features and computes from them: neither the backbone, nor
    /// what is trained through it.
    pub fn memory(&self, extent: &Extent) -> u64 {
        let Extent {
            dim,
            classes,
            images,
            task,
            ..
        } = *extent;
        // Features of all images seen, and once more while they are put together.
        let all = 2 * images * dim * F32;
        let own = match self {
            Self::RanPac(config) => config.memory(extent),
            Self::JointRidge(config) => all + config.memory(extent),
            Self::FeCam(config) => config.memory(extent),
            Self::NearestMean(config) => config.memory(extent),
            Self::Knn(_) => all / 2 + images * extent.threads * 16,
            Self::JointLinear(_) => all + 4 * dim * classes * F32,
            _ => 2 * dim * classes * F64,
        };
        // The task's features, as they come and in order.
        (own + 2 * task * dim * F32) as u64
    }
}

impl RanPac {
    fn memory(&self, extent: &Extent) -> usize {
        let (dim, projection) = (extent.dim, self.projection);
        let width = match projection {
            0 => dim,
            width => width,
        };
        // W as drawn, and turned.
        let weights = 2 * dim * projection * F32;
        let search = match self.ridge {
            Some(_) => 0,
            None => search_memory(extent.task, width, extent.classes, extent.threads),
        };
        weights + search.max(Ridge::memory(dim, width, extent.classes, extent.images))
    }
}

impl JointRidge {
    fn memory(&self, extent: &Extent) -> usize {
        let (dim, classes) = (extent.dim, extent.classes);
        let search = match self.ridge {
            Some(_) => 0,
            None => search_memory(extent.images, dim, classes, extent.threads),
        };
        // Kept as sums from the start.
        search.max(Ridge::memory(dim, dim, classes, usize::MAX / 4))
    }
}

impl FeCam {
    /// A covariance and a factor for each class, in f32 and f64.
    fn memory(&self, extent: &Extent) -> usize {
        extent.classes * extent.dim * extent.dim / 2 * (F32 + F64)
    }
}

impl NearestMean {
    fn memory(&self, extent: &Extent) -> usize {
        let square = extent.dim * extent.dim / 2;
        let shared = match self.distance {
            Distance::Mahalanobis => square * (F32 + 3 * F64),
            Distance::Euclidean | Distance::Cosine => 0,
        };
        shared + 2 * extent.classes * extent.dim * F64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranpac(projection: usize) -> MethodConfig {
        MethodConfig::RanPac(RanPac {
            projection,
            ridge: None,
            compat: None,
            tuning: None,
        })
    }

    const EXTENT: Extent = Extent {
        dim: 768,
        classes: 200,
        images: 24_000,
        task: 2_400,
        threads: 2,
    };

    #[test]
    fn ten_thousand_columns_fit_in_two_gigabytes() {
        let gib = 1u64 << 30;
        let bytes = ranpac(10_000).memory(&EXTENT);
        // G in f32 and its factor in f64.
        assert!(bytes > 600_000_000 && bytes < 2 * gib, "{bytes}");
    }

    #[test]
    fn memory_grows_with_what_is_kept() {
        assert!(ranpac(20_000).memory(&EXTENT) > 3 * ranpac(10_000).memory(&EXTENT));
        let simple = MethodConfig::SimpleCil(crate::SimpleCil {}).memory(&EXTENT);
        assert!(30 * simple < ranpac(10_000).memory(&EXTENT));
        let twice = Extent {
            images: 2 * EXTENT.images,
            ..EXTENT
        };
        let all = MethodConfig::JointLinear(crate::JointLinear {});
        let more = all.memory(&twice) - all.memory(&EXTENT);
        assert_eq!(more, (2 * 24_000 * 768 * 4) as u64);
    }
}
