//! Tiles in NEON with the dot-product instructions: up to four rows and a panel, in four quarters of four channels.
//!
//! `udot` multiplies unsigned bytes with unsigned ones, `sdot` signed with signed ones. Packed weights have their offset, so
//! both sides are unsigned. Weights of 8 bits are signed: codes are made signed too by taking 128 from each, and one more
//! row, of nothing but -128, gives what that takes from the sums.

use super::super::decode::{self, Bytes, for_width};
use super::{Form, LaneSums, MicroKernel, Operands, Sums, Taps, portable};
use crate::integer::BLOCK_STEPS;
use dr_precision::BitWidth;
use std::arch::{aarch64::*, asm};

pub(super) struct NeonDot;

impl MicroKernel for NeonDot {
    fn is_available(&self) -> bool {
        std::arch::is_aarch64_feature_detected!("dotprod")
    }

    fn tile(&self) -> [usize; 2] {
        [4, 1]
    }

    /// Packed weights need no change of signs, and those of one tile are unpacked only once anyway.
    fn form(&self, bits: BitWidth, _: usize, rows: usize) -> Form {
        if bits.bits() < 8 && rows <= 4 { Form::Packed } else { Form::Bytes }
    }

    unsafe fn run(&self, operands: &Operands, sums: &mut Sums) {
        // SAFETY: As promised by the caller.
        unsafe { neon_dot(operands, sums) }
    }

    unsafe fn depthwise(&self, taps: &Taps, sums: &mut LaneSums, inputs: Option<&mut LaneSums>) {
        // SAFETY: As promised by the caller.
        unsafe { portable::depthwise(taps, sums, inputs) }
    }
}

/// # Safety
/// The machine has the dot-product instructions, and all that `operands` says can be read.
#[target_feature(enable = "neon,dotprod")]
unsafe fn neon_dot(operands: &Operands, sums: &mut Sums) {
    // SAFETY: As promised by the caller.
    unsafe { for_width!(operands.bits, BITS, tile_of_rows::<BITS>(operands, sums)) }
}

/// [`tile`] with as many rows as there are.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn tile_of_rows<const BITS: u32>(operands: &Operands, sums: &mut Sums) {
    // SAFETY: As promised by the caller.
    unsafe {
        match operands.bases.len() {
            1 => tile::<BITS, 1>(operands, sums),
            2 => tile::<BITS, 2>(operands, sums),
            _ => tile::<BITS, 4>(operands, sums),
        }
    }
}

/// A tile of so many rows; rows that are missing repeat the first.
#[target_feature(enable = "neon,dotprod")]
unsafe fn tile<const BITS: u32, const ROWS: usize>(operands: &Operands, sums: &mut Sums) {
    // SAFETY: The caller promises that the operands can be read.
    unsafe {
        let mut rows = [operands.codes; ROWS];
        for (row, codes) in rows.iter_mut().enumerate() {
            *codes = codes.add(*operands.bases.get(row).unwrap_or(&operands.bases[0]));
        }
        let mut tile = [[vdupq_n_s32(0); 4]; ROWS];
        // The row of -128, if codes are made signed.
        let mut taken = [vdupq_n_s32(0); 4];
        let mut block = operands.weights;
        for offsets in operands.offsets.as_chunks::<BLOCK_STEPS>().0 {
            macro_rules! steps {
                ($($step:literal)*) => {$({
                    let w = operand::<BITS, $step>(block);
                    if BITS == 8 {
                        add_products::<BITS>(&mut taken, 0x8080_8080, w);
                    }
                    for (sums, codes) in tile.iter_mut().zip(rows) {
                        let x = codes.add(offsets[$step] as usize).cast::<u32>().read_unaligned();
                        add_products::<BITS>(sums, if BITS == 8 { x ^ 0x8080_8080 } else { x }, w);
                    }
                })*};
            }
            steps!(0 1 2 3 4 5 6 7);
            block = block.add(BITS as usize * 64);
        }
        for (sums, row) in sums.iter_mut().zip(tile).take(operands.bases.len()) {
            let quarters = sums.as_mut_ptr().cast::<int32x4_t>();
            for (quarter, (sum, taken)) in row.into_iter().zip(taken).enumerate() {
                quarters.add(quarter).write_unaligned(vsubq_s32(sum, taken));
            }
        }
    }
}

/// Adds the products of four codes with the weights of a step: signed ones of 8 bits, or unsigned ones of fewer.
///
/// In assembly: the intrinsics are not stable.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn add_products<const BITS: u32>(sums: &mut [int32x4_t; 4], codes: u32, weights: [uint8x16_t; 4]) {
    let x = vdupq_n_u32(codes);
    for (sum, w) in sums.iter_mut().zip(weights) {
        // SAFETY: Reads and writes registers only.
        unsafe {
            if BITS == 8 {
                asm!(
                    "sdot {sum:v}.4s, {w:v}.16b, {x:v}.16b",
                    sum = inout(vreg) *sum, w = in(vreg) w, x = in(vreg) x,
                    options(pure, nomem, nostack, preserves_flags)
                );
            } else {
                asm!(
                    "udot {sum:v}.4s, {w:v}.16b, {x:v}.16b",
                    sum = inout(vreg) *sum, w = in(vreg) w, x = in(vreg) x,
                    options(pure, nomem, nostack, preserves_flags)
                );
            }
        }
    }
}

/// The codes of one step, in quarters, from a block of `BITS` vectors of 64 bytes.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn operand<const BITS: u32, const STEP: u32>(block: *const u8) -> [uint8x16_t; 4] {
    // SAFETY: The caller promises `BITS` vectors.
    std::array::from_fn(|quarter| unsafe { decode::step::<uint8x16_t, BITS>(block.add(quarter * 16), STEP) })
}

impl Bytes for uint8x16_t {
    #[inline(always)]
    unsafe fn or(self, other: Self) -> Self {
        // SAFETY: The caller enables NEON.
        unsafe { vorrq_u8(self, other) }
    }

    #[inline(always)]
    unsafe fn field(self, up: i32, mask: u8) -> Self {
        // SAFETY: The caller enables NEON.
        unsafe { vandq_u8(vshlq_u8(self, vdupq_n_s8(up as i8)), vdupq_n_u8(mask)) }
    }
}
