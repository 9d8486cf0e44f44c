//! Tiles in AVX-512 VNNI: 24 vectors of sums in up to three panels, with weights of any width unpacked in registers.

use super::super::decode::{self, for_width};
use super::super::epilogue::{Place, RowSums, write_avx512};
use super::{AHEAD, Form, LaneSums, MicroKernel, Operands, Sums, Taps, Windows, portable};
use crate::integer::{BLOCK_STEPS, PANEL, STEP};
use dr_precision::BitWidth;
use std::arch::{asm, x86_64::*};

pub(super) struct Avx512Vnni;

impl MicroKernel for Avx512Vnni {
    fn is_available(&self) -> bool {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
    }

    fn tile(&self) -> [usize; 2] {
        [8, 3]
    }

    /// Of one or two panels, the sums of more rows fit into registers. (Of one, those of even more would, but not the rows'
    /// addresses.)
    fn rows(&self, panels: usize, form: Form) -> usize {
        if form == Form::Bytes && panels <= 2 { 12 } else { 8 }
    }

    /// Few rows: memory is the limit. For many, weights are better unpacked once.
    fn form(&self, bits: BitWidth, _: usize, rows: usize) -> Form {
        if bits.bits() < 8 && rows <= 16 { Form::Packed } else { Form::Bytes }
    }

    fn writer(&self) -> Option<unsafe fn(&Place, &RowSums)> {
        Some(write_avx512)
    }

    fn summer(&self) -> Option<unsafe fn(&Windows, &mut [f32])> {
        Some(sum_windows)
    }

    unsafe fn run(&self, operands: &Operands, sums: &mut Sums) {
        // SAFETY: As promised by the caller.
        unsafe { avx512_vnni(operands, sums) }
    }

    unsafe fn depthwise(&self, taps: &Taps, sums: &mut LaneSums, inputs: Option<&mut LaneSums>) {
        // SAFETY: As promised by the caller.
        unsafe {
            match taps.offsets.len().div_ceil(STEP) {
                _ if taps.kernel == [3, 3] => depthwise_3x3(taps, sums, inputs),
                1 => depthwise::<1>(taps, sums, inputs),
                2 => depthwise::<2>(taps, sums, inputs),
                3 => depthwise::<3>(taps, sums, inputs),
                7 => depthwise::<7>(taps, sums, inputs),
                13 => depthwise::<13>(taps, sums, inputs),
                _ => depthwise_of_any(taps, sums, inputs),
            }
        }
    }
}

/// [`MicroKernel::summer`]
///
/// # Safety
/// That of the method.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn sum_windows(of: &Windows, sums: &mut [f32]) {
    let ones = _mm512_set1_epi8(1);
    for (bases, sums) in of.bases.chunks(4).zip(sums.chunks_mut(4)) {
        let mut lanes = [_mm512_setzero_si512(); 4];
        // Rows that are missing repeat the first.
        let bases: [usize; 4] = std::array::from_fn(|row| *bases.get(row).unwrap_or(&bases[0]));
        for tap in of.taps() {
            for at in (0..of.run).step_by(64) {
                let mask = u64::MAX >> 64usize.saturating_sub(of.run - at);
                for (lanes, base) in lanes.iter_mut().zip(bases) {
                    // SAFETY: The caller promises that windows end inside the codes; others are masked.
                    let codes = unsafe {
                        _mm512_maskz_loadu_epi8(mask, of.codes.as_ptr().wrapping_add(base + tap + at).cast())
                    };
                    *lanes = _mm512_dpbusd_epi32(*lanes, codes, ones);
                }
            }
        }
        let pairs = |a: __m512i, b: __m512i| {
            _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b))
        };
        let [a, b, c, d] = lanes;
        let (ab, cd) = (pairs(a, b), pairs(c, d));
        // In each quarter, a sum of each row.
        let rows = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
        let halves = _mm256_add_epi32(_mm512_castsi512_si256(rows), _mm512_extracti64x4_epi64::<1>(rows));
        let all = _mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves));
        let mask = u8::MAX >> (8 - sums.len());
        // SAFETY: There are as many.
        unsafe { _mm_mask_storeu_ps(sums.as_mut_ptr(), mask, _mm_cvtepi32_ps(all)) };
    }
}

/// Four runs of 16 codes, each in a quarter, as 16 runs of four: one of each.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn interleaved(x: __m512i) -> __m512i {
    // First so that each quarter has its channels, four codes of each run.
    let quarters = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    let fours = _mm_set_epi8(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    _mm512_shuffle_epi8(_mm512_permutexvar_epi32(quarters, x), _mm512_broadcast_i32x4(fours))
}

/// Sums of windows of three rows and columns. A step is a column, which the windows beside it have, too.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn depthwise_3x3(taps: &Taps, sums: &mut LaneSums, mut inputs: Option<&mut LaneSums>) {
    let [top, middle, bottom] = [0, 3, 6].map(|tap| taps.offsets[tap] as usize);
    let right = taps.offsets[1] as usize - top;
    assert!(taps.weights.len() >= 3 * PANEL * STEP && taps.bases.len() <= sums.len());
    // SAFETY: The caller promises that all can be read; there are as many weights.
    unsafe {
        let column = |base: usize| {
            let run = |offset: usize| taps.codes.add(base + offset).cast::<__m128i>().read_unaligned();
            let x = _mm512_zextsi128_si512(run(top));
            let x = _mm512_mask_broadcast_i32x4(x, 0x00f0, run(middle));
            interleaved(_mm512_mask_broadcast_i32x4(x, 0x0f00, run(bottom)))
        };
        // From rows of taps, four in a step, to columns.
        let [a, b, c] =
            [0, 1, 2].map(|step| _mm512_loadu_si512(taps.weights.as_ptr().add(step * PANEL * STEP).cast()));
        let pick = |x: __m512i, from: [i8; STEP]| {
            let word = i32::from_le_bytes(from.map(i8::cast_unsigned));
            let lanes = _mm_set_epi32(0x0c0c_0c0c, 0x0808_0808, 0x0404_0404, 0);
            // What is below zero picks nothing.
            let index = _mm_add_epi8(_mm_set1_epi32(word), lanes);
            _mm512_shuffle_epi8(x, _mm512_broadcast_i32x4(index))
        };
        const NO: i8 = i8::MIN;
        let weights = [
            _mm512_or_si512(pick(a, [0, 3, NO, NO]), pick(b, [NO, NO, 2, NO])),
            _mm512_or_si512(pick(a, [1, NO, NO, NO]), pick(b, [NO, 0, 3, NO])),
            _mm512_or_si512(
                pick(a, [2, NO, NO, NO]),
                _mm512_or_si512(pick(b, [NO, 1, NO, NO]), pick(c, [NO, NO, 0, NO])),
            ),
        ];
        let ones = _mm512_set1_epi8(1);
        let mut columns = [_mm512_setzero_si512(); 3];
        let mut last = None;
        for (row, &base) in taps.bases.iter().enumerate() {
            columns = match last.map(|last: usize| base.wrapping_sub(last)) {
                Some(moved) if moved == right => [columns[1], columns[2], column(base + 2 * right)],
                Some(moved) if moved == 2 * right => {
                    [columns[2], column(base + right), column(base + 2 * right)]
                }
                _ => [column(base), column(base + right), column(base + 2 * right)],
            };
            last = Some(base);
            let mut sum = _mm512_setzero_si512();
            for (column, weights) in columns.iter().zip(weights) {
                sum = _mm512_dpbusd_epi32(sum, *column, weights);
            }
            sums.as_mut_ptr().cast::<__m512i>().add(row).write_unaligned(sum);
            if let Some(inputs) = &mut inputs {
                let mut input = _mm512_setzero_si512();
                for column in columns {
                    input = _mm512_dpbusd_epi32(input, column, ones);
                }
                inputs.as_mut_ptr().cast::<__m512i>().add(row).write_unaligned(input);
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn depthwise_of_any(taps: &Taps, sums: &mut LaneSums, inputs: Option<&mut LaneSums>) {
    // SAFETY: As promised by the caller.
    unsafe { portable::depthwise(taps, sums, inputs) }
}

/// Sums of windows of up to `STEPS` times four taps.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn depthwise<const STEPS: usize>(taps: &Taps, sums: &mut LaneSums, inputs: Option<&mut LaneSums>) {
    // Taps that are missing repeat the first one: their weights are zero, and so are their ones.
    let offset =
        |step: usize, tap: usize| *taps.offsets.get(step * STEP + tap).unwrap_or(&taps.offsets[0]) as usize;
    let offsets: [[usize; STEP]; STEPS] =
        std::array::from_fn(|step| std::array::from_fn(|tap| offset(step, tap)));
    let left = taps.offsets.len() - (STEPS - 1) * STEP;
    let last = _mm512_set1_epi32((0x0101_0101u32 >> (8 * (STEP - left))) as i32);
    // SAFETY: The caller promises that all can be read; there are as many weights.
    unsafe {
        assert!(taps.weights.len() >= STEPS * PANEL * STEP && taps.bases.len() <= sums.len());
        let weights: [__m512i; STEPS] = std::array::from_fn(|step| {
            _mm512_loadu_si512(taps.weights.as_ptr().add(step * PANEL * STEP).cast())
        });
        let codes = |base: usize, [a, b, c, d]: [usize; STEP]| {
            let run = |offset: usize| taps.codes.add(base + offset).cast::<__m128i>().read_unaligned();
            let x = _mm512_castsi128_si512(run(a));
            let x = _mm512_mask_broadcast_i32x4(x, 0x00f0, run(b));
            let x = _mm512_mask_broadcast_i32x4(x, 0x0f00, run(c));
            let x = _mm512_mask_broadcast_i32x4(x, 0xf000, run(d));
            interleaved(x)
        };
        let out = sums.as_mut_ptr().cast::<__m512i>();
        let Some(inputs) = inputs else {
            for (row, &base) in taps.bases.iter().enumerate() {
                let mut sum = _mm512_setzero_si512();
                for (offsets, weights) in offsets.iter().zip(&weights) {
                    sum = _mm512_dpbusd_epi32(sum, codes(base, *offsets), *weights);
                }
                out.add(row).write_unaligned(sum);
            }
            return;
        };
        let (all, of_inputs) = (_mm512_set1_epi8(1), inputs.as_mut_ptr().cast::<__m512i>());
        for (row, &base) in taps.bases.iter().enumerate() {
            let [mut sum, mut input] = [_mm512_setzero_si512(); 2];
            for step in 0..STEPS {
                let x = codes(base, offsets[step]);
                sum = _mm512_dpbusd_epi32(sum, x, weights[step]);
                input = _mm512_dpbusd_epi32(input, x, if step + 1 == STEPS { last } else { all });
            }
            out.add(row).write_unaligned(sum);
            of_inputs.add(row).write_unaligned(input);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn avx512_vnni(operands: &Operands, sums: &mut Sums) {
    // SAFETY: As promised by the caller.
    unsafe { for_width!(operands.bits, BITS, tile_512_rows::<BITS>(operands, sums)) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn tile_512_rows<const BITS: u32>(operands: &Operands, sums: &mut Sums) {
    // SAFETY: As promised by the caller.
    unsafe {
        match (operands.bases.len(), operands.panels) {
            (1, 3) => tile_512::<BITS, 1, 3>(operands, sums),
            (1, 2) => tile_512::<BITS, 1, 2>(operands, sums),
            (1, _) => tile_512::<BITS, 1, 1>(operands, sums),
            (2..=4, 3) => tile_512::<BITS, 4, 3>(operands, sums),
            (2..=4, 2) => tile_512::<BITS, 4, 2>(operands, sums),
            (2..=4, _) => tile_512::<BITS, 4, 1>(operands, sums),
            (_, 3) => tile_512::<BITS, 8, 3>(operands, sums),
            (9.., 2) if BITS == 8 => tile_512::<8, 12, 2>(operands, sums),
            (9.., 1) if BITS == 8 => tile_512::<8, 12, 1>(operands, sums),
            (_, 2) => tile_512::<BITS, 8, 2>(operands, sums),
            (_, _) => tile_512::<BITS, 8, 1>(operands, sums),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn tile_512<const BITS: u32, const ROWS: usize, const PANELS: usize>(
    operands: &Operands, sums: &mut Sums,
) {
    // SAFETY: The caller promises that the operands can be read.
    unsafe {
        // Rows that are missing repeat the first.
        let rows: [*const u8; ROWS] = std::array::from_fn(|row| {
            operands.codes.add(*operands.bases.get(row).unwrap_or(&operands.bases[0]))
        });
        let panels: [*const u8; PANELS] =
            std::array::from_fn(|panel| operands.weights.add(panel * operands.panel_bytes));
        // One row has so few sums that additions would wait for each other: its steps take turns with two sets of sums.
        let mut tiles = [[[_mm512_setzero_si512(); PANELS]; ROWS]; 2];
        let blocks = operands.offsets.len() / BLOCK_STEPS;
        let block_bytes = BITS as usize * 64;
        for block in 0..blocks {
            let offsets =
                operands.offsets.as_ptr().add(block * BLOCK_STEPS).cast::<[u32; BLOCK_STEPS]>().read();
            let weights = panels.map(|panel| panel.add(block * block_bytes).cast::<__m512i>());
            if ROWS == 1 {
                // Weights that are read once come from memory. After the end of a panel the next tile's will be read.
                let inside = (block * block_bytes + AHEAD) < blocks * block_bytes;
                let ahead = AHEAD + if inside { 0 } else { operands.next_bytes };
                for block in weights {
                    for vector in 0..BITS as usize {
                        _mm_prefetch::<_MM_HINT_T0>(
                            block.wrapping_add(vector).wrapping_byte_add(ahead).cast(),
                        );
                    }
                }
            }
            macro_rules! step {
                ($($step:literal)*) => {$({
                    let w = weights.map(|block| decode::step::<__m512i, BITS>(block.cast(), $step));
                    let tile = &mut tiles[if ROWS == 1 { $step % 2 } else { 0 }];
                    for (row, codes) in tile.iter_mut().zip(rows) {
                        add_products(row, codes, offsets[$step] as usize, w);
                    }
                })*};
            }
            step!(0 1 2 3 4 5 6 7);
        }
        let [mut tile, odd] = tiles;
        if ROWS == 1 {
            for (sum, odd) in tile[0].iter_mut().zip(odd[0]) {
                *sum = _mm512_add_epi32(*sum, odd);
            }
        }
        for (sums, row) in sums.iter_mut().zip(tile).take(operands.bases.len()) {
            sums.as_mut_ptr().cast::<[__m512i; PANELS]>().write_unaligned(row);
        }
    }
}

/// Adds the products of the four codes at `offset` with the weights of a step.
///
/// With one or two panels in assembly: the compiler would read the codes of all rows some steps ahead, and then have no registers
/// to keep them in.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn add_products<const PANELS: usize>(
    sums: &mut [__m512i; PANELS], codes: *const u8, offset: usize, weights: [__m512i; PANELS],
) {
    // SAFETY: The caller promises that the codes can be read.
    unsafe {
        match (&mut sums[..], &weights[..]) {
            ([sum], [w]) => asm!(
                "vpbroadcastd {x}, dword ptr [{codes} + {offset}]",
                "vpdpbusd {sum}, {x}, {w}",
                x = out(zmm_reg) _, codes = in(reg) codes, offset = in(reg) offset,
                sum = inout(zmm_reg) *sum, w = in(zmm_reg) *w,
                options(pure, readonly, nostack, preserves_flags)
            ),
            ([sum0, sum1], [w0, w1]) => asm!(
                "vpbroadcastd {x}, dword ptr [{codes} + {offset}]",
                "vpdpbusd {sum0}, {x}, {w0}",
                "vpdpbusd {sum1}, {x}, {w1}",
                x = out(zmm_reg) _, codes = in(reg) codes, offset = in(reg) offset,
                sum0 = inout(zmm_reg) *sum0, w0 = in(zmm_reg) *w0,
                sum1 = inout(zmm_reg) *sum1, w1 = in(zmm_reg) *w1,
                options(pure, readonly, nostack, preserves_flags)
            ),
            (sums, weights) => {
                let x = _mm512_set1_epi32(codes.add(offset).cast::<i32>().read_unaligned());
                for (sum, w) in sums.iter_mut().zip(weights) {
                    *sum = _mm512_dpbusd_epi32(*sum, x, *w);
                }
            }
        }
    }
}
