//! Which numbers are multiplied.

/// The numbers that a frozen backbone multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Precision {
    /// f32 throughout, on any processor.
    F32,
    /// Products of bf16 values (8 bits of mantissa) summed in f32, on AMX or AVX-512 BF16.
    Bf16,
}

impl Precision {
    /// Whether this processor computes in it.
    pub fn available(self) -> bool {
        match self {
            Self::F32 => true,
            Self::Bf16 => crate::bf16::available(),
        }
    }

    /// The name used in recipes and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}
