//! Tiles in vectors of 32 bytes, AVX2 and AVX-VNNI: up to four rows and a panel, in two halves of eight channels.
//!
//! AVX2 has no sum of four products of bytes. `vpmaddubsw` adds two of them in 16 bits: how often that can be done before a
//! sum must be widened depends on how large codes can be, so fewer bits make a faster product. Only 8 bits times 8 bits do
//! not fit at all; they are multiplied as words of 16 bits by `vpmaddwd`, half as many in an instruction.

use super::super::decode::{self, for_width};
use super::{AHEAD, Form, LaneSums, MicroKernel, Operands, Sums, Taps, portable};
use crate::integer::{BLOCK_STEPS, PANEL, STEP};
use dr_precision::BitWidth;
use std::arch::{asm, x86_64::*};
use std::sync::atomic::{Ordering, compiler_fence};

pub(super) struct Avx2;

impl MicroKernel for Avx2 {
    fn is_available(&self) -> bool {
        is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
    }

    fn tile(&self) -> [usize; 2] {
        TILE
    }

    fn form(&self, bits: BitWidth, pair_steps: usize, rows: usize) -> Form {
        match AvxVnni.form(bits, pair_steps, rows) {
            Form::Bytes if pair_steps == 0 && rows > TILE[0] => Form::Words,
            form => form,
        }
    }

    fn adds_pairs(&self) -> bool {
        true
    }

    fn widen_weights(&self, bytes: &[i8], words: &mut [i16]) {
        assert!(self.is_available() && words.len() >= bytes.len());
        // SAFETY: The machine has AVX2, and there is a word for each byte.
        unsafe { widen_weights(bytes, words) }
    }

    unsafe fn run(&self, operands: &Operands, sums: &mut Sums) {
        // SAFETY: As promised by the caller.
        unsafe { avx2(operands, sums) }
    }

    unsafe fn depthwise(&self, taps: &Taps, sums: &mut LaneSums, inputs: Option<&mut LaneSums>) {
        // SAFETY: As promised by the caller.
        unsafe { depthwise(taps, sums, inputs) }
    }
}

pub(super) struct AvxVnni;

impl MicroKernel for AvxVnni {
    fn is_available(&self) -> bool {
        Avx2.is_available() && is_x86_feature_detected!("avxvnni")
    }

    fn tile(&self) -> [usize; 2] {
        TILE
    }

    /// One row: memory is the limit. For more, weights are better unpacked once.
    fn form(&self, bits: BitWidth, _: usize, rows: usize) -> Form {
        if bits.bits() < 8 && rows == 1 { Form::Packed } else { Form::Bytes }
    }

    unsafe fn run(&self, operands: &Operands, sums: &mut Sums) {
        // SAFETY: As promised by the caller.
        unsafe { avx_vnni(operands, sums) }
    }

    unsafe fn depthwise(&self, taps: &Taps, sums: &mut LaneSums, inputs: Option<&mut LaneSums>) {
        // SAFETY: As promised by the caller.
        unsafe { depthwise(taps, sums, inputs) }
    }
}

#[target_feature(enable = "avx2")]
unsafe fn depthwise(taps: &Taps, sums: &mut LaneSums, inputs: Option<&mut LaneSums>) {
    // SAFETY: As promised by the caller.
    unsafe { portable::depthwise(taps, sums, inputs) }
}

/// Rows and panels.
const TILE: [usize; 2] = [4, 1];

/// How products are summed. The instructions are enabled by the functions that all of this is compiled into.
trait Sum {
    /// Steps whose products are added in lanes of 16 bits before these are widened; divides [`BLOCK_STEPS`]. 0: lanes have
    /// 32 bits.
    const STEPS: usize;
    /// Adds the products of four codes of a row with those of eight channels to `lanes`.
    unsafe fn add(lanes: __m256i, x: __m256i, w: __m256i) -> __m256i;
}

/// `vpdpbusd`.
struct Vnni;

impl Sum for Vnni {
    const STEPS: usize = 0;

    #[inline]
    #[target_feature(enable = "avx2,avxvnni")]
    unsafe fn add(lanes: __m256i, x: __m256i, w: __m256i) -> __m256i {
        _mm256_dpbusd_avx_epi32(lanes, x, w)
    }
}

/// Multiplies and adds by two instructions that stay together, so that no more than one product is alive: compiled from
/// intrinsics, the sums of a tile are reordered until they do not fit the registers.
macro_rules! multiply_add {
    ($multiply:literal, $add:literal, $lanes:ident, $x:expr, $w:expr) => {{
        let mut lanes = $lanes;
        // SAFETY: Reads and writes registers only.
        unsafe {
            asm!(
                concat!($multiply, " {product}, {x}, {w}"),
                concat!($add, " {lanes}, {lanes}, {product}"),
                lanes = inout(ymm_reg) lanes,
                product = lateout(ymm_reg) _,
                x = in(ymm_reg) $x,
                w = in(ymm_reg) $w,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        lanes
    }};
}

/// `vpmaddubsw`, for codes so small that the products of `STEPS` steps fit into 16 bits.
struct Pairs<const STEPS: usize>;

impl<const STEPS: usize> Sum for Pairs<STEPS> {
    const STEPS: usize = STEPS;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn add(lanes: __m256i, x: __m256i, w: __m256i) -> __m256i {
        multiply_add!("vpmaddubsw", "vpaddw", lanes, x, w)
    }
}

/// Bytes that are widened to 16 bits in registers, the even and the odd ones.
struct Widened;

impl Sum for Widened {
    const STEPS: usize = 0;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn add(lanes: __m256i, x: __m256i, w: __m256i) -> __m256i {
        let even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(w));
        let lanes =
            multiply_add!("vpmaddwd", "vpaddd", lanes, _mm256_and_si256(x, _mm256_set1_epi16(255)), even);
        multiply_add!("vpmaddwd", "vpaddd", lanes, _mm256_srli_epi16::<8>(x), _mm256_srai_epi16::<8>(w))
    }
}

/// Codes that have 16 bits already.
struct Wide;

impl Sum for Wide {
    const STEPS: usize = 0;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn add(lanes: __m256i, x: __m256i, w: __m256i) -> __m256i {
        multiply_add!("vpmaddwd", "vpaddd", lanes, x, w)
    }
}

/// How the operands lie in memory. A *unit* is what 32 bits of a row are multiplied with: four bytes, or two words.
trait Source {
    /// Units of a step.
    const UNITS: usize;
    /// Vectors of 64 bytes in a block.
    const VECTORS: usize;
    /// A half of a unit's weights in a block.
    unsafe fn weights<const UNIT: u32>(block: *const u8, half: usize) -> __m256i;
}

/// Codes in `UNITS` bytes each: [`Form::Bytes`] or [`Form::Words`].
struct Plain<const UNITS: usize>;

impl<const UNITS: usize> Source for Plain<UNITS> {
    const UNITS: usize = UNITS;
    const VECTORS: usize = UNITS * BLOCK_STEPS;

    #[inline(always)]
    unsafe fn weights<const UNIT: u32>(block: *const u8, half: usize) -> __m256i {
        // SAFETY: The caller promises the block.
        unsafe { block.add(UNIT as usize * 64 + half * 32).cast::<__m256i>().read_unaligned() }
    }
}

/// [`Form::Packed`].
struct Packed<const BITS: u32>;

impl<const BITS: u32> Source for Packed<BITS> {
    const UNITS: usize = 1;
    const VECTORS: usize = BITS as usize;

    #[inline(always)]
    unsafe fn weights<const STEP: u32>(block: *const u8, half: usize) -> __m256i {
        // SAFETY: The caller promises the block, and enables AVX2.
        unsafe { decode::step::<__m256i, BITS>(block.add(half * 32), STEP) }
    }
}

/// A tile of so many rows; rows that are missing repeat the first.
#[inline(always)]
unsafe fn tile<S: Source, A: Sum, const ROWS: usize>(operands: &Operands, sums: &mut Sums) {
    // SAFETY: The caller promises that the operands can be read, and enables the instructions.
    unsafe {
        let mut rows = [operands.codes; ROWS];
        for (row, codes) in rows.iter_mut().enumerate() {
            // What is before the first row may not be there. A code has as many bytes as a step has units.
            let base = operands.bases.get(row).unwrap_or(&operands.bases[0]);
            *codes = codes.wrapping_add(base * S::UNITS);
        }
        let mut tile = [[_mm256_setzero_si256(); 2]; ROWS];
        let mut block = operands.weights;
        for offsets in operands.offsets.as_chunks::<BLOCK_STEPS>().0 {
            if ROWS == 1 {
                // Weights that are read once come from memory.
                for vector in 0..S::VECTORS {
                    _mm_prefetch::<_MM_HINT_T0>(block.wrapping_add(vector * 64 + AHEAD).cast());
                }
            }
            let offset = |unit: usize| offsets[unit / S::UNITS] as usize * S::UNITS + unit % S::UNITS * 4;
            let mut pairs = [[_mm256_setzero_si256(); 2]; ROWS];
            // Two units at once: their weights and the sums of four rows are what the registers hold.
            macro_rules! units {
                ($($first:literal $second:literal,)*) => {$(
                    // Nothing is loaded before there is a register for it.
                    compiler_fence(Ordering::SeqCst);
                    let w = [
                        [S::weights::<$first>(block, 0), S::weights::<$second>(block, 0)],
                        [S::weights::<$first>(block, 1), S::weights::<$second>(block, 1)],
                    ];
                    for ((sums, pairs), codes) in tile.iter_mut().zip(&mut pairs).zip(rows) {
                        let x = [
                            _mm256_set1_epi32(codes.add(offset($first)).cast::<i32>().read_unaligned()),
                            _mm256_set1_epi32(codes.add(offset($second)).cast::<i32>().read_unaligned()),
                        ];
                        for ((sums, pairs), w) in sums.iter_mut().zip(pairs).zip(w) {
                            for (unit, (x, w)) in [$first, $second].into_iter().zip(x.into_iter().zip(w)) {
                                if A::STEPS == 0 {
                                    *sums = A::add(*sums, x, w);
                                    continue;
                                }
                                *pairs = match unit % A::STEPS {
                                    0 => _mm256_maddubs_epi16(x, w),
                                    _ => A::add(*pairs, x, w),
                                };
                                if (unit + 1) % A::STEPS == 0 {
                                    *sums = Wide::add(*sums, *pairs, _mm256_set1_epi16(1));
                                }
                            }
                        }
                    }
                )*};
            }
            units!(0 1, 2 3, 4 5, 6 7,);
            if S::UNITS == 2 {
                units!(8 9, 10 11, 12 13, 14 15,);
            }
            block = block.add(S::VECTORS * 64);
        }
        for (sums, row) in sums.iter_mut().zip(tile).take(operands.bases.len()) {
            sums.as_mut_ptr().cast::<[__m256i; 2]>().write_unaligned(row);
        }
    }
}

/// [`tile`] with as many rows as there are.
#[inline(always)]
unsafe fn tile_of_rows<S: Source, A: Sum>(operands: &Operands, sums: &mut Sums) {
    // SAFETY: As promised by the caller.
    unsafe {
        match operands.bases.len() {
            1 => tile::<S, A, 1>(operands, sums),
            2 => tile::<S, A, 2>(operands, sums),
            _ => tile::<S, A, 4>(operands, sums),
        }
    }
}

/// # Safety
/// The machine has AVX2, and all that `operands` says can be read.
#[target_feature(enable = "avx2")]
unsafe fn avx2(operands: &Operands, sums: &mut Sums) {
    // SAFETY: As promised by the caller.
    unsafe {
        match (operands.form, operands.bits) {
            (Form::Words, _) => tile_of_rows::<Plain<2>, Wide>(operands, sums),
            (Form::Bytes, _) => match operands.pair_steps {
                0 => tile_of_rows::<Plain<1>, Widened>(operands, sums),
                1 => tile_of_rows::<Plain<1>, Pairs<1>>(operands, sums),
                2..4 => tile_of_rows::<Plain<1>, Pairs<2>>(operands, sums),
                4..8 => tile_of_rows::<Plain<1>, Pairs<4>>(operands, sums),
                _ => tile_of_rows::<Plain<1>, Pairs<8>>(operands, sums),
            },
            // With the codes' offset: `255 * (2^b - 1)` is the largest product.
            (Form::Packed, BitWidth::B2) => tile::<Packed<2>, Pairs<8>, 1>(operands, sums),
            (Form::Packed, BitWidth::B3) => tile::<Packed<3>, Pairs<8>, 1>(operands, sums),
            (Form::Packed, BitWidth::B4) => tile::<Packed<4>, Pairs<4>, 1>(operands, sums),
            (Form::Packed, BitWidth::B5) => tile::<Packed<5>, Pairs<2>, 1>(operands, sums),
            (Form::Packed, BitWidth::B6) => tile::<Packed<6>, Pairs<1>, 1>(operands, sums),
            (Form::Packed, BitWidth::B7) => tile::<Packed<7>, Widened, 1>(operands, sums),
            (Form::Packed, BitWidth::B8) => tile::<Plain<1>, Widened, 1>(operands, sums),
        }
    }
}

/// # Safety
/// The machine has AVX2 and AVX-VNNI, and all that `operands` says can be read.
#[target_feature(enable = "avx2,avxvnni")]
unsafe fn avx_vnni(operands: &Operands, sums: &mut Sums) {
    // SAFETY: As promised by the caller.
    unsafe {
        match operands.form {
            Form::Packed => for_width!(operands.bits, BITS, tile::<Packed<BITS>, Vnni, 1>(operands, sums)),
            _ => tile_of_rows::<Plain<1>, Vnni>(operands, sums),
        }
    }
}

/// The weights of [`Form::Words`] from those of [`Form::Bytes`]: in each step the first two codes of all channels, then the
/// other two.
///
/// # Safety
/// The machine has AVX2, and there is a word for each byte.
#[target_feature(enable = "avx2")]
unsafe fn widen_weights(bytes: &[i8], words: &mut [i16]) {
    let steps = words.as_chunks_mut::<{ PANEL * STEP }>().0;
    for (bytes, words) in bytes.as_chunks::<{ PANEL * STEP }>().0.iter().zip(steps) {
        for half in 0..2 {
            // SAFETY: Half of the 64 bytes, and of each half of the 64 words.
            unsafe {
                let bytes = bytes.as_ptr().add(half * 32).cast::<__m128i>();
                let low = _mm256_cvtepi8_epi16(bytes.read_unaligned());
                let high = _mm256_cvtepi8_epi16(bytes.add(1).read_unaligned());
                let [low, high] = [low, high].map(|words| _mm256_castsi256_ps(words));
                // In both lanes two channels of `low` and two of `high`; then all in order.
                let pairs = [
                    _mm256_shuffle_ps::<0b10_00_10_00>(low, high),
                    _mm256_shuffle_ps::<0b11_01_11_01>(low, high),
                ];
                for (part, pairs) in pairs.into_iter().enumerate() {
                    let pairs = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_castps_si256(pairs));
                    words.as_mut_ptr().add(part * 32 + half * 16).cast::<__m256i>().write_unaligned(pairs);
                }
            }
        }
    }
}
