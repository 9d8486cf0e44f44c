//! Tiles in AVX-512 VNNI: 24 vectors of sums in up to three panels, with weights of any width unpacked in registers.

use super::super::decode::{self, for_width};
use super::{AHEAD, Form, MicroKernel, Operands, Sums};
use crate::integer::BLOCK_STEPS;
use dr_precision::BitWidth;
use std::arch::{asm, x86_64::*};

pub(super) struct Avx512Vnni;

impl MicroKernel for Avx512Vnni {
    fn is_available(&self) -> bool {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
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

    unsafe fn run(&self, operands: &Operands, sums: &mut Sums) {
        // SAFETY: As promised by the caller.
        unsafe { avx512_vnni(operands, sums) }
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
