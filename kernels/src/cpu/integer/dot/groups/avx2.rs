//! AVX2 and AVX-VNNI: 16 outputs in two vectors.

use super::super::avx2::{Avx2, AvxVnni};
use super::{GroupForm, GroupKernel, GroupOperands, RowGroup, Unpacked, Values, Vectors, packed, tile};
use crate::integer::STEP;
use std::arch::x86_64::*;
use std::marker::PhantomData;

impl GroupKernel for Avx2 {
    fn group_tile(&self, _: GroupForm) -> [usize; 2] {
        TILE
    }

    unsafe fn add_groups(&self, operands: &GroupOperands, values: &mut Values) {
        // SAFETY: As promised by the caller.
        unsafe { avx2(operands, values) }
    }
}

impl GroupKernel for AvxVnni {
    fn group_tile(&self, _: GroupForm) -> [usize; 2] {
        TILE
    }

    unsafe fn add_groups(&self, operands: &GroupOperands, values: &mut Values) {
        // SAFETY: As promised by the caller.
        unsafe { avx_vnni(operands, values) }
    }
}

/// Rows and panels.
const TILE: [usize; 2] = [4, 1];

/// # Safety
/// The machine has AVX2, FMA and F16C, and all that `operands` says can be read.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2(operands: &GroupOperands, values: &mut Values) {
    // SAFETY: As promised by the caller.
    unsafe {
        match (operands.form, operands.row_count, operands.bits.bits()) {
            (GroupForm::Packed, 1, _) => packed::<Halves<Pairs>, 1, 1>(operands, values),
            (GroupForm::Packed, _, _) => packed::<Halves<Pairs>, 4, 1>(operands, values),
            (GroupForm::Bytes, _, ..=4) => tile::<Halves<Pairs>, Unpacked<4>, 4, 1>(operands, values),
            (GroupForm::Bytes, _, 5) => tile::<Halves<Pairs>, Unpacked<5>, 4, 1>(operands, values),
            (GroupForm::Bytes, _, 6) => tile::<Halves<Pairs>, Unpacked<6>, 4, 1>(operands, values),
            (GroupForm::Bytes, _, 7) => tile::<Halves<Pairs>, Unpacked<7>, 4, 1>(operands, values),
            (GroupForm::Bytes, _, _) => tile::<Halves<Pairs>, Unpacked<8>, 4, 1>(operands, values),
        }
    }
}

/// # Safety
/// The machine has AVX2, FMA, F16C and AVX-VNNI, and all that `operands` says can be read.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
unsafe fn avx_vnni(operands: &GroupOperands, values: &mut Values) {
    // SAFETY: As promised by the caller.
    unsafe {
        match (operands.form, operands.row_count) {
            (GroupForm::Packed, 1) => packed::<Halves<Vnni>, 1, 1>(operands, values),
            (GroupForm::Packed, _) => packed::<Halves<Vnni>, 4, 1>(operands, values),
            (GroupForm::Bytes, _) => tile::<Halves<Vnni>, Unpacked<8>, 4, 1>(operands, values),
        }
    }
}

/// How products of bytes are summed.
pub(super) trait Products {
    /// A sum for each of eight outputs, under way.
    type Sum: Copy;

    unsafe fn zero() -> Self::Sum;

    /// Adds the products of the codes `x` with the unsigned weights `w`, of at most `bits` bits.
    unsafe fn add<const STEP: usize>(bits: u32, sum: Self::Sum, x: __m256i, w: __m256i) -> Self::Sum;

    /// The sums, after all steps.
    unsafe fn all(sum: Self::Sum) -> __m256i;
}

/// `vpdpbusd`.
struct Vnni;

impl Products for Vnni {
    type Sum = __m256i;

    #[inline(always)]
    unsafe fn zero() -> __m256i {
        // SAFETY: The caller enables AVX2.
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    unsafe fn add<const STEP: usize>(_: u32, sum: __m256i, x: __m256i, w: __m256i) -> __m256i {
        // SAFETY: The caller enables AVX-VNNI.
        unsafe { _mm256_dpbusd_avx_epi32(sum, w, x) }
    }

    #[inline(always)]
    unsafe fn all(sum: __m256i) -> __m256i {
        sum
    }
}

/// `vpmaddubsw` in as many steps as fit into 16 bits: the products of two codes with weights of `b` bits are at most `2 * 127 *
/// (2^b - 1)`. Those of 8 bits do not fit; they are multiplied in 16 bits by `vpmaddwd`, the even and the odd ones.
struct Pairs;

impl Products for Pairs {
    /// Sums of 32 bits, and those of pairs.
    type Sum = [__m256i; 2];

    #[inline(always)]
    unsafe fn zero() -> [__m256i; 2] {
        // SAFETY: The caller enables AVX2.
        unsafe { [_mm256_setzero_si256(); 2] }
    }

    #[inline(always)]
    unsafe fn add<const STEP: usize>(
        bits: u32, [sum, pairs]: [__m256i; 2], x: __m256i, w: __m256i,
    ) -> [__m256i; 2] {
        // SAFETY: The caller enables AVX2.
        unsafe {
            if bits == 8 {
                let even = _mm256_madd_epi16(
                    _mm256_and_si256(w, _mm256_set1_epi16(255)),
                    _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x)),
                );
                let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(w), _mm256_srai_epi16::<8>(x));
                return [_mm256_add_epi32(sum, _mm256_add_epi32(even, odd)), pairs];
            }
            let steps = match bits {
                7 => 1,
                6 => 2,
                5 => 4,
                _ => 8,
            };
            let products = _mm256_maddubs_epi16(w, x);
            let pairs = if STEP.is_multiple_of(steps) { products } else { _mm256_add_epi16(pairs, products) };
            if !(STEP + 1).is_multiple_of(steps) {
                return [sum, pairs];
            }
            [_mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))), pairs]
        }
    }

    #[inline(always)]
    unsafe fn all([sum, _]: [__m256i; 2]) -> __m256i {
        sum
    }
}

/// Two vectors of eight outputs each.
pub(super) struct Halves<P>(PhantomData<P>);

impl<P: Products> Vectors for Halves<P> {
    type Codes = [__m256i; 2];
    type Sums = [P::Sum; 2];
    type Values = [__m256; 2];

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: Nothing is read.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }

    #[inline(always)]
    unsafe fn zero() -> [P::Sum; 2] {
        // SAFETY: As promised by the caller.
        unsafe { [P::zero(); 2] }
    }

    #[inline(always)]
    unsafe fn add<const STEP_OF: usize, const PANELS: usize>(
        bits: u32, sums: &mut [[P::Sum; 2]; PANELS], codes: *const i8, weights: [[__m256i; 2]; PANELS],
    ) {
        // SAFETY: The caller promises that the codes can be read, and enables the instructions.
        unsafe {
            let x = _mm256_set1_epi32(codes.add(STEP_OF * STEP).cast::<i32>().read_unaligned());
            for (sums, weights) in sums.iter_mut().zip(weights) {
                for (sum, w) in sums.iter_mut().zip(weights) {
                    *sum = P::add::<STEP_OF>(bits, *sum, x, w);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> [__m256; 2] {
        // SAFETY: The caller promises the values.
        unsafe { [_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))] }
    }

    #[inline(always)]
    unsafe fn store([low, high]: [__m256; 2], at: *mut f32) {
        // SAFETY: The caller promises room.
        unsafe {
            _mm256_storeu_ps(at, low);
            _mm256_storeu_ps(at.add(8), high);
        }
    }

    #[inline(always)]
    unsafe fn widen(at: *const u16) -> [__m256; 2] {
        // SAFETY: The caller promises the halves.
        unsafe {
            [_mm256_cvtph_ps(_mm_loadu_si128(at.cast())), _mm256_cvtph_ps(_mm_loadu_si128(at.add(8).cast()))]
        }
    }

    #[inline(always)]
    unsafe fn unsigned(at: *const u8) -> [__m256; 2] {
        // SAFETY: The caller promises the bytes.
        unsafe {
            let bytes = _mm_loadu_si128(at.cast());
            let high = _mm_srli_si128::<8>(bytes);
            let [low, high] = [_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(high)];
            [_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)]
        }
    }

    #[inline(always)]
    unsafe fn signed(at: *const u8) -> [__m256; 2] {
        // SAFETY: The caller promises the bytes.
        unsafe {
            let bytes = _mm_loadu_si128(at.cast());
            let high = _mm_srli_si128::<8>(bytes);
            let [low, high] = [_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(high)];
            [_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)]
        }
    }

    #[inline(always)]
    unsafe fn product([low, high]: [__m256; 2], other: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: The caller enables AVX.
        unsafe { [_mm256_mul_ps(low, other[0]), _mm256_mul_ps(high, other[1])] }
    }

    #[inline(always)]
    unsafe fn multiply_add(values: [__m256; 2], factor: f32, other: [__m256; 2]) -> [__m256; 2] {
        let mut sums = values;
        for (sum, other) in sums.iter_mut().zip(other) {
            // SAFETY: The caller enables FMA.
            *sum = unsafe { _mm256_fmadd_ps(_mm256_set1_ps(factor), other, *sum) };
        }
        sums
    }

    #[inline(always)]
    unsafe fn scaled(
        values: [__m256; 2], sums: [P::Sum; 2], scale: [__m256; 2], offset: [__m256; 2], row: *const RowGroup,
    ) -> [__m256; 2] {
        let mut results = values;
        for (half, value) in results.iter_mut().enumerate() {
            // SAFETY: The caller promises the row, and enables the instructions.
            unsafe {
                let of_offset = _mm256_mul_ps(offset[half], _mm256_set1_ps((*row).sum));
                let sums = _mm256_cvtepi32_ps(P::all(sums[half]));
                let group = _mm256_fmadd_ps(sums, scale[half], of_offset);
                *value = _mm256_fmadd_ps(group, _mm256_set1_ps((*row).scale), *value);
            }
        }
        results
    }
}
