//! The arithmetic of codes, in `f32`: exact, without branches or calls, so that loops over it vectorise.

use crate::integer::CodeQuantizer;
use dr_precision::BitWidth;

/// `1.5 * 2^23`. A sum of it and a small number is rounded to an integer, half to even.
const MAGIC: f32 = 12_582_912.0;

/// `round(x)`, half to even, for `|x| < 2^22`. Never -0.
#[inline(always)]
fn round(x: f32) -> f32 {
    (x + MAGIC) - MAGIC
}

/// `clip(x, low, high)`, and anything between the two for a NaN.
#[inline(always)]
fn clip(x: f32, low: f32, high: f32) -> f32 {
    let x = if x > low { x } else { low };
    if x < high { x } else { high }
}

/// Quantizes with one scale: signed codes, or unsigned ones with a zero point.
#[derive(Clone, Copy)]
pub(super) struct Quantizer {
    pub scale: f32,
    pub low: f32,
    pub high: f32,
}

impl Quantizer {
    #[inline(always)]
    pub fn signed(scale: f32, bits: BitWidth) -> Self {
        Self { scale, low: bits.signed_min() as f32, high: bits.signed_max() as f32 }
    }

    #[inline(always)]
    pub fn unsigned(scale: f32, bits: BitWidth) -> Self {
        Self { scale, low: 0.0, high: bits.unsigned_max() as f32 }
    }

    /// `x / s`. Only a division gives the same codes everywhere; a product with `1 / s` does not.
    #[inline(always)]
    pub fn quotient(self, x: f32) -> f32 {
        x / self.scale
    }

    /// The code of a number with that quotient; 0 for a NaN.
    #[inline(always)]
    pub fn code(self, quotient: f32) -> f32 {
        let code = round(clip(quotient, self.low, self.high));
        if quotient.is_nan() { 0.0 } else { code }
    }

    /// The lowest 8 bits of that code, two's complement.
    #[inline(always)]
    pub fn byte(self, quotient: f32) -> u8 {
        let code = clip(quotient, self.low, self.high) + MAGIC;
        (if quotient.is_nan() { 0.0 } else { code }).to_bits() as u8
    }
}

/// Quantizes to unsigned codes, a byte each, as [`Quantizer::unsigned`] does it.
#[derive(Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only AVX-512 reads all of it"))]
pub(super) struct ByteQuantizer {
    pub zero_point: f32,
    pub scale: f32,
    /// The highest code.
    pub high: f32,
    /// What that stands for, from the zero point on.
    pub top: f32,
    /// The [inverse] of the scale, if products with it take less time than a division.
    pub inverse: Option<[f32; 2]>,
}

/// `1 / scale`, if that and all products with it that matter are normal numbers, and what it lacks.
#[inline(always)]
pub(super) fn inverse(scale: f32) -> Option<[f32; 2]> {
    let ordinary = 1e-18..1e18;
    ordinary.contains(&scale).then(|| {
        let inverse = 1.0 / scale;
        // The difference is exact in 64 bits.
        let lacks = (1.0 - f64::from(inverse) * f64::from(scale)) as f32;
        [inverse, inverse * lacks]
    })
}

impl ByteQuantizer {
    #[inline(always)]
    pub fn new(CodeQuantizer { bits, scale, zero_point }: CodeQuantizer) -> Self {
        let (high, divides) = (bits.unsigned_max() as f32, super::isa::divides_fast());
        let inverse = if divides { None } else { inverse(scale) };
        Self { zero_point, scale, high, top: high * scale, inverse }
    }

    /// Codes; 0 for a NaN.
    #[inline(always)]
    pub fn codes<const N: usize>(self, values: &[f32; N]) -> [u8; N] {
        let mut codes = [0; N];
        for (code, value) in codes.iter_mut().zip(values) {
            let quotient = (value - self.zero_point) / self.scale;
            *code = (clip(quotient, 0.0, self.high) + MAGIC).to_bits() as u8;
        }
        codes
    }
}

/// The second rounding.
#[derive(Clone, Copy)]
pub(super) struct Switch {
    /// `2^-d`.
    pub step: f32,
    /// The highest code.
    pub high: f32,
}

impl Switch {
    #[inline(always)]
    pub fn new(stored: BitWidth, active: BitWidth) -> Self {
        let step = 1.0 / (1u32 << (stored.bits() - active.bits())) as f32;
        Self { step, high: active.signed_max() as f32 }
    }

    /// `code` is a stored one. A product with a power of two is exact.
    #[inline(always)]
    pub fn code(self, code: f32) -> f32 {
        let code = round(code * self.step);
        if code < self.high { code } else { self.high }
    }
}
