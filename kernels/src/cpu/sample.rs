//! [`Sample`].

use half::{bf16, f16};

/// A floating-point type that can be quantized: `f32`, `f16` or `bf16`.
pub trait Sample: Copy + Send + Sync + 'static {
    /// The value, exactly.
    #[must_use]
    fn widen(self) -> f32;
}

impl Sample for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Sample for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

impl Sample for f16 {
    /// Without a branch or a call, so that loops over it vectorise.
    #[inline(always)]
    fn widen(self) -> f32 {
        let bits = u32::from(self.to_bits());
        // With the exponent's bias wrong by 112; a product with a power of two is exact, also for subnormals.
        let magnitude = f32::from_bits((bits & 0x7FFF) << 13) * f32::from_bits((127 + 112) << 23);
        let special = if bits & 0x7C00 == 0x7C00 { 0x7F80_0000 } else { 0 };
        f32::from_bits(magnitude.to_bits() | special | (bits & 0x8000) << 16)
    }
}
