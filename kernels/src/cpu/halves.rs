//! From and to halves, as fast as the machine can.

use super::isa::Isa;
use half::f16;
use half::slice::HalfFloatSliceExt;

/// Halves that are widened together.
pub(super) const LANES: usize = 16;

/// The nearest halves; what is beyond the largest one becomes the largest one. NaN stays NaN.
pub(super) fn nearest(x: &[f32]) -> Vec<f16> {
    let (least, most) = (f16::MIN.to_f32_const(), f16::MAX.to_f32_const());
    let within: Vec<f32> = x.iter().map(|x| x.clamp(least, most)).collect();
    let mut halves = vec![f16::ZERO; x.len()];
    halves.convert_from_f32_slice(&within);
    halves
}

/// The same numbers.
///
/// # Safety
/// The machine has `isa`, for which this is compiled (`run_on`).
#[inline(always)]
pub(super) unsafe fn widen(isa: Isa, halves: &[f16; LANES]) -> [f32; LANES] {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: The caller promises AVX-512, which can do this, too; there are 16 halves, and room for 16 floats.
        Isa::Avx512 => unsafe {
            use std::arch::x86_64::{_mm256_loadu_si256, _mm512_cvtph_ps, _mm512_storeu_ps};
            let mut out = [0.0; LANES];
            _mm512_storeu_ps(out.as_mut_ptr(), _mm512_cvtph_ps(_mm256_loadu_si256(halves.as_ptr().cast())));
            out
        },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: The caller promises AVX2, of which F16C is a part here; there are 16 halves, and room for 16 floats.
        Isa::Avx2 => unsafe {
            use std::arch::x86_64::{_mm_loadu_si128, _mm256_cvtph_ps, _mm256_storeu_ps};
            let mut out = [0.0; LANES];
            for half in [0, LANES / 2] {
                let eight = _mm_loadu_si128(halves.as_ptr().add(half).cast());
                _mm256_storeu_ps(out.as_mut_ptr().add(half), _mm256_cvtph_ps(eight));
            }
            out
        },
        _ => plain(halves),
    }
}

/// In assembly: the intrinsics are not stable.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
fn plain(halves: &[f16; LANES]) -> [f32; LANES] {
    use std::arch::{aarch64::*, asm};
    let mut out = [0.0; LANES];
    for (halves, out) in halves.as_chunks::<4>().0.iter().zip(out.as_chunks_mut::<4>().0) {
        // SAFETY: NEON is always there; four halves are read, and four floats written.
        unsafe {
            let values: float32x4_t;
            asm!(
                "fcvtl {values:v}.4s, {halves:v}.4h",
                values = lateout(vreg) values, halves = in(vreg) vld1_u16(halves.as_ptr().cast()),
                options(pure, nomem, nostack, preserves_flags)
            );
            vst1q_f32(out.as_mut_ptr(), values);
        }
    }
    out
}

#[cfg(not(target_arch = "aarch64"))]
#[inline(always)]
fn plain(halves: &[f16; LANES]) -> [f32; LANES] {
    halves.map(super::sample::Sample::widen)
}

#[cfg(test)]
mod tests {
    use super::super::isa::run_on;
    use super::*;

    #[test]
    fn all_halves_are_widened() {
        let all: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            for halves in all.as_chunks().0 {
                // SAFETY: The machine has it.
                let found = run_on!(isa, |isa| unsafe { widen(isa, halves) });
                for (half, found) in halves.iter().zip(found) {
                    let same = half.to_f32().to_bits() == found.to_bits();
                    assert!(same || (half.is_nan() && found.is_nan()), "{isa}: {half} is {found}");
                }
            }
        }
    }

    #[test]
    fn halves_are_the_nearest_ones_and_finite() {
        let numbers = [0.0, -0.0, 1.0, 1.0 / 3.0, -1e-7, 65504.0, 65519.0, 65520.0, -1e9];
        let infinite = [f32::INFINITY, f32::NEG_INFINITY];
        let found = nearest(&[&numbers[..], &infinite].concat());
        for (x, found) in numbers.iter().zip(&found) {
            assert_eq!(*found, f16::from_f32(x.clamp(-65504.0, 65504.0)), "{x}");
        }
        assert_eq!(found[numbers.len()..], [f16::MAX, f16::MIN]);
        assert!(nearest(&[f32::NAN])[0].is_nan());
    }
}
