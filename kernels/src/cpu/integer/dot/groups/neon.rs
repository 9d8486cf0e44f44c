//! NEON with the dot-product instructions: 16 outputs in four vectors.
//!
//! `sdot` multiplies signed bytes: weights of fewer than 8 bits are as good signed as unsigned, those of 8 bits are made the
//! codes that they are, so that nothing is to be taken from them.

use super::super::neon::NeonDot;
use super::{GroupForm, GroupKernel, GroupOperands, RowGroup, Unpacked, Values, Vectors, packed, tile};
use crate::integer::STEP;
use dr_precision::BitWidth;
use std::arch::{aarch64::*, asm};

impl GroupKernel for NeonDot {
    fn group_tile(&self, _: GroupForm) -> [usize; 2] {
        [4, 1]
    }

    fn group_offset(&self, bits: BitWidth) -> i32 {
        Lanes::offset(bits.bits()) as i32
    }

    unsafe fn add_groups(&self, operands: &GroupOperands, values: &mut Values) {
        // SAFETY: As promised by the caller.
        unsafe { neon_dot(operands, values) }
    }
}

/// # Safety
/// The machine has the dot-product instructions, and all that `operands` says can be read.
#[target_feature(enable = "neon,dotprod")]
unsafe fn neon_dot(operands: &GroupOperands, values: &mut Values) {
    // SAFETY: As promised by the caller.
    unsafe {
        match (operands.form, operands.row_count, operands.bits) {
            (GroupForm::Packed, 1, _) => packed::<Lanes, 1, 1>(operands, values),
            (GroupForm::Packed, _, _) => packed::<Lanes, 4, 1>(operands, values),
            (GroupForm::Bytes, _, BitWidth::B8) => tile::<Lanes, Unpacked<8>, 4, 1>(operands, values),
            (GroupForm::Bytes, _, _) => tile::<Lanes, Unpacked<7>, 4, 1>(operands, values),
        }
    }
}

struct Lanes;

impl Vectors for Lanes {
    type Codes = [uint8x16_t; 4];
    type Sums = [int32x4_t; 4];
    type Values = [float32x4_t; 4];

    #[inline(always)]
    fn offset(bits: u32) -> f32 {
        if bits == 8 { 0.0 } else { (1u32 << (bits - 1)) as f32 }
    }

    #[inline(always)]
    unsafe fn zero() -> [int32x4_t; 4] {
        // SAFETY: The caller enables NEON.
        unsafe { [vdupq_n_s32(0); 4] }
    }

    /// In assembly: the intrinsics are not stable.
    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    unsafe fn add<const STEP_OF: usize, const PANELS: usize>(
        bits: u32, sums: &mut [[int32x4_t; 4]; PANELS], codes: *const i8, weights: [[uint8x16_t; 4]; PANELS],
    ) {
        // SAFETY: The caller promises that the codes can be read, and enables the instructions.
        unsafe {
            let x = vdupq_n_u32(codes.add(STEP_OF * STEP).cast::<u32>().read_unaligned());
            for (sums, weights) in sums.iter_mut().zip(weights) {
                for (sum, w) in sums.iter_mut().zip(weights) {
                    let w = if bits == 8 { veorq_u8(w, vdupq_n_u8(0x80)) } else { w };
                    asm!(
                        "sdot {sum:v}.4s, {w:v}.16b, {x:v}.16b",
                        sum = inout(vreg) *sum, w = in(vreg) w, x = in(vreg) x,
                        options(pure, nomem, nostack, preserves_flags)
                    );
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> [float32x4_t; 4] {
        // SAFETY: The caller promises the values.
        unsafe { [vld1q_f32(at), vld1q_f32(at.add(4)), vld1q_f32(at.add(8)), vld1q_f32(at.add(12))] }
    }

    #[inline(always)]
    unsafe fn store(values: [float32x4_t; 4], at: *mut f32) {
        for (quarter, values) in values.into_iter().enumerate() {
            // SAFETY: The caller promises room.
            unsafe { vst1q_f32(at.add(quarter * 4), values) };
        }
    }

    /// In assembly: the intrinsics are not stable.
    #[inline(always)]
    unsafe fn widen(at: *const u16) -> [float32x4_t; 4] {
        // SAFETY: The caller promises the halves.
        unsafe {
            let mut values = [vdupq_n_f32(0.0); 4];
            for (quarter, values) in values.iter_mut().enumerate() {
                asm!(
                    "fcvtl {values:v}.4s, {halves:v}.4h",
                    values = lateout(vreg) *values, halves = in(vreg) vld1_u16(at.add(quarter * 4)),
                    options(pure, nomem, nostack, preserves_flags)
                );
            }
            values
        }
    }

    #[inline(always)]
    unsafe fn unsigned(at: *const u8) -> [float32x4_t; 4] {
        // SAFETY: The caller promises the bytes.
        unsafe {
            let bytes = vld1q_u8(at);
            let halves = [vmovl_u8(vget_low_u8(bytes)), vmovl_u8(vget_high_u8(bytes))];
            let low = |half: uint16x8_t| vcvtq_f32_u32(vmovl_u16(vget_low_u16(half)));
            let high = |half: uint16x8_t| vcvtq_f32_u32(vmovl_u16(vget_high_u16(half)));
            [low(halves[0]), high(halves[0]), low(halves[1]), high(halves[1])]
        }
    }

    #[inline(always)]
    unsafe fn signed(at: *const u8) -> [float32x4_t; 4] {
        // SAFETY: The caller promises the bytes.
        unsafe {
            let bytes = vld1q_s8(at.cast());
            let halves = [vmovl_s8(vget_low_s8(bytes)), vmovl_s8(vget_high_s8(bytes))];
            let low = |half: int16x8_t| vcvtq_f32_s32(vmovl_s16(vget_low_s16(half)));
            let high = |half: int16x8_t| vcvtq_f32_s32(vmovl_s16(vget_high_s16(half)));
            [low(halves[0]), high(halves[0]), low(halves[1]), high(halves[1])]
        }
    }

    #[inline(always)]
    unsafe fn product(mut values: [float32x4_t; 4], other: [float32x4_t; 4]) -> [float32x4_t; 4] {
        for (value, other) in values.iter_mut().zip(other) {
            // SAFETY: The caller enables NEON.
            *value = unsafe { vmulq_f32(*value, other) };
        }
        values
    }

    #[inline(always)]
    unsafe fn multiply_add(
        values: [float32x4_t; 4], factor: f32, other: [float32x4_t; 4],
    ) -> [float32x4_t; 4] {
        let mut sums = values;
        for (sum, other) in sums.iter_mut().zip(other) {
            // SAFETY: The caller enables NEON.
            *sum = unsafe { vfmaq_n_f32(*sum, other, factor) };
        }
        sums
    }

    #[inline(always)]
    unsafe fn scaled(
        values: [float32x4_t; 4], sums: [int32x4_t; 4], scale: [float32x4_t; 4], offset: [float32x4_t; 4],
        row: *const RowGroup,
    ) -> [float32x4_t; 4] {
        let mut results = values;
        for (quarter, value) in results.iter_mut().enumerate() {
            // SAFETY: The caller promises the row, and enables NEON.
            unsafe {
                let of_offset = vmulq_n_f32(offset[quarter], (*row).sum);
                let group = vfmaq_f32(of_offset, vcvtq_f32_s32(sums[quarter]), scale[quarter]);
                *value = vfmaq_n_f32(*value, group, (*row).scale);
            }
        }
        results
    }
}
