//! The recipe's `precision`.

use anyhow::Result;
use candle_core::Device;
use serde::{Deserialize, Serialize};

/// The numbers that the frozen backbone multiplies, as [`candlewick_vit::Precision`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    #[default]
    Auto,
    F32,
    Bf16,
}

impl Precision {
    /// What it is on this processor and device; `auto` no more.
    pub fn resolve(self, device: &Device) -> Result<Self> {
        Ok(match self.for_vit().resolve(device)?.name() {
            "bf16" => Self::Bf16,
            _ => Self::F32,
        })
    }

    pub fn for_vit(self) -> candlewick_vit::Precision {
        match self {
            Self::Auto => candlewick_vit::Precision::Auto,
            Self::F32 => candlewick_vit::Precision::F32,
            Self::Bf16 => candlewick_vit::Precision::Bf16,
        }
    }

    /// As recipes and reports write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

// candle's stand-in for a GPU can only be made where candle is built without one.
#[cfg(all(test, not(any(feature = "cuda", feature = "metal"))))]
mod tests {
    use candle_core::CudaDevice;

    use super::*;

    /// A processor without bf16 cannot be had at will; another device is refused in the same place.
    #[test]
    fn bf16_where_it_cannot_be_names_the_key() {
        let elsewhere = Device::Cuda(CudaDevice);
        let text = format!("{:#}", Precision::Bf16.resolve(&elsewhere).unwrap_err());
        for part in [
            "precision: ",
            "bf16",
            "AMX",
            "AVX-512 BF16",
            "found a GPU as the device",
            "set \"f32\"",
        ] {
            assert!(text.contains(part), "no {part:?} in: {text}");
        }
        for other in [Precision::Auto, Precision::F32] {
            assert_eq!(other.resolve(&elsewhere).unwrap(), Precision::F32);
        }
    }
}
