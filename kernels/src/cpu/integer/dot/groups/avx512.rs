//! AVX-512 VNNI: 16 outputs in a vector.

use super::super::avx512::Avx512Vnni;
use super::{GroupForm, GroupKernel, GroupOperands, RowGroup, Unpacked, Values, Vectors, packed, tile};
use crate::integer::STEP;
use std::arch::{asm, x86_64::*};

impl GroupKernel for Avx512Vnni {
    fn group_tile(&self, form: GroupForm) -> [usize; 2] {
        match form {
            GroupForm::Packed => [4, 3],
            GroupForm::Bytes => [6, 2],
        }
    }

    unsafe fn add_groups(&self, operands: &GroupOperands, values: &mut Values) {
        // SAFETY: As promised by the caller.
        unsafe { add_groups(operands, values) }
    }
}

/// # Safety
/// The machine has AVX-512 VNNI, and all that `operands` says can be read.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn add_groups(operands: &GroupOperands, values: &mut Values) {
    type Bytes = Unpacked<8>;
    // SAFETY: As promised by the caller.
    unsafe {
        match (operands.form, operands.row_count, operands.panel_count) {
            (GroupForm::Packed, 1, 1) => packed::<Lanes, 1, 1>(operands, values),
            (GroupForm::Packed, 1, _) => packed::<Lanes, 1, 3>(operands, values),
            (GroupForm::Packed, _, 1) => packed::<Lanes, 4, 1>(operands, values),
            (GroupForm::Packed, _, _) => packed::<Lanes, 4, 3>(operands, values),
            (GroupForm::Bytes, ..=3, 1) => tile::<Lanes, Bytes, 3, 1>(operands, values),
            (GroupForm::Bytes, ..=3, _) => tile::<Lanes, Bytes, 3, 2>(operands, values),
            (GroupForm::Bytes, _, 1) => tile::<Lanes, Bytes, 6, 1>(operands, values),
            (GroupForm::Bytes, _, _) => tile::<Lanes, Bytes, 6, 2>(operands, values),
        }
    }
}

struct Lanes;

impl Vectors for Lanes {
    type Codes = __m512i;
    type Sums = __m512i;
    type Values = __m512;

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: Nothing is read.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }

    #[inline(always)]
    unsafe fn zero() -> __m512i {
        // SAFETY: The caller enables AVX-512.
        unsafe { _mm512_setzero_si512() }
    }

    /// In assembly: the compiler would read the codes of all rows some steps ahead, and then have no registers to keep them in.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    unsafe fn add<const STEP_OF: usize, const PANELS: usize>(
        _: u32, sums: &mut [__m512i; PANELS], codes: *const i8, weights: [__m512i; PANELS],
    ) {
        // SAFETY: The caller promises that the codes can be read.
        unsafe {
            match (&mut sums[..], &weights[..]) {
                ([sum], [w]) => asm!(
                    "vpdpbusd {sum}, {w}, dword ptr [{codes} + {at}]{{1to16}}",
                    codes = in(reg) codes, at = const STEP_OF * STEP,
                    sum = inout(zmm_reg) *sum, w = in(zmm_reg) *w,
                    options(pure, readonly, nostack, preserves_flags)
                ),
                ([sum0, sum1], [w0, w1]) => asm!(
                    "vpbroadcastd {x}, dword ptr [{codes} + {at}]",
                    "vpdpbusd {sum0}, {w0}, {x}",
                    "vpdpbusd {sum1}, {w1}, {x}",
                    x = out(zmm_reg) _, codes = in(reg) codes, at = const STEP_OF * STEP,
                    sum0 = inout(zmm_reg) *sum0, w0 = in(zmm_reg) *w0,
                    sum1 = inout(zmm_reg) *sum1, w1 = in(zmm_reg) *w1,
                    options(pure, readonly, nostack, preserves_flags)
                ),
                (sums, weights) => {
                    let x = _mm512_set1_epi32(codes.add(STEP_OF * STEP).cast::<i32>().read_unaligned());
                    for (sum, w) in sums.iter_mut().zip(weights) {
                        *sum = _mm512_dpbusd_epi32(*sum, *w, x);
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> __m512 {
        // SAFETY: The caller promises the values.
        unsafe { _mm512_loadu_ps(at) }
    }

    #[inline(always)]
    unsafe fn store(values: __m512, at: *mut f32) {
        // SAFETY: The caller promises room.
        unsafe { _mm512_storeu_ps(at, values) }
    }

    #[inline(always)]
    unsafe fn widen(at: *const u16) -> __m512 {
        // SAFETY: The caller promises the halves.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
    }

    #[inline(always)]
    unsafe fn unsigned(at: *const u8) -> __m512 {
        // SAFETY: The caller promises the bytes.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast()))) }
    }

    #[inline(always)]
    unsafe fn signed(at: *const u8) -> __m512 {
        // SAFETY: The caller promises the bytes.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at.cast()))) }
    }

    #[inline(always)]
    unsafe fn product(values: __m512, other: __m512) -> __m512 {
        // SAFETY: The caller enables AVX-512.
        unsafe { _mm512_mul_ps(values, other) }
    }

    #[inline(always)]
    unsafe fn multiply_add(values: __m512, factor: f32, other: __m512) -> __m512 {
        // SAFETY: The caller enables AVX-512.
        unsafe { _mm512_fmadd_ps(_mm512_set1_ps(factor), other, values) }
    }

    #[inline(always)]
    unsafe fn scaled(
        values: __m512, sums: __m512i, scale: __m512, offset: __m512, row: *const RowGroup,
    ) -> __m512 {
        // SAFETY: The caller promises the row, and enables AVX-512.
        unsafe {
            let of_offset = _mm512_mul_ps(offset, _mm512_set1_ps((*row).sum));
            let group = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), scale, of_offset);
            _mm512_fmadd_ps(group, _mm512_set1_ps((*row).scale), values)
        }
    }
}
