//! Plain loops: what the compiler makes of them.

use super::super::portable::Portable;
use super::{GroupForm, GroupKernel, GroupOperands, RowGroup, Unpacked, Values, Vectors, packed, tile};
use crate::cpu::Sample;
use crate::integer::{PANEL, STEP};
use half::f16;

impl GroupKernel for Portable {
    fn group_tile(&self, _: GroupForm) -> [usize; 2] {
        [1, 1]
    }

    unsafe fn add_groups(&self, operands: &GroupOperands, values: &mut Values) {
        // SAFETY: As promised by the caller.
        unsafe {
            match operands.form {
                GroupForm::Packed => packed::<Lanes, 1, 1>(operands, values),
                GroupForm::Bytes => tile::<Lanes, Unpacked<8>, 1, 1>(operands, values),
            }
        }
    }
}

struct Lanes;

impl Vectors for Lanes {
    type Codes = [u64; PANEL * STEP / 8];
    type Sums = [i32; PANEL];
    type Values = [f32; PANEL];

    #[inline(always)]
    unsafe fn zero() -> [i32; PANEL] {
        [0; PANEL]
    }

    #[inline(always)]
    unsafe fn add<const STEP_OF: usize, const PANELS: usize>(
        _: u32, sums: &mut [[i32; PANEL]; PANELS], codes: *const i8, weights: [Self::Codes; PANELS],
    ) {
        // SAFETY: The caller promises that the codes can be read.
        let x = unsafe { codes.add(STEP_OF * STEP).cast::<[i8; STEP]>().read() };
        for (sums, weights) in sums.iter_mut().zip(weights) {
            let weights: [[u8; STEP]; PANEL] = bytemuck::cast(weights);
            for (sum, w) in sums.iter_mut().zip(weights) {
                for (x, w) in x.into_iter().zip(w) {
                    *sum += i32::from(x) * i32::from(w);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> [f32; PANEL] {
        // SAFETY: The caller promises the values.
        unsafe { at.cast::<[f32; PANEL]>().read() }
    }

    #[inline(always)]
    unsafe fn store(values: [f32; PANEL], at: *mut f32) {
        // SAFETY: The caller promises room.
        unsafe { at.cast::<[f32; PANEL]>().write(values) }
    }

    #[inline(always)]
    unsafe fn widen(at: *const u16) -> [f32; PANEL] {
        // SAFETY: The caller promises the halves.
        let halves = unsafe { at.cast::<[u16; PANEL]>().read() };
        halves.map(|half| f16::from_bits(half).widen())
    }

    #[inline(always)]
    unsafe fn unsigned(at: *const u8) -> [f32; PANEL] {
        // SAFETY: The caller promises the bytes.
        unsafe { at.cast::<[u8; PANEL]>().read() }.map(f32::from)
    }

    #[inline(always)]
    unsafe fn signed(at: *const u8) -> [f32; PANEL] {
        // SAFETY: The caller promises the bytes.
        unsafe { at.cast::<[i8; PANEL]>().read() }.map(f32::from)
    }

    #[inline(always)]
    unsafe fn product(mut values: [f32; PANEL], other: [f32; PANEL]) -> [f32; PANEL] {
        for (value, other) in values.iter_mut().zip(other) {
            *value *= other;
        }
        values
    }

    #[inline(always)]
    unsafe fn multiply_add(mut values: [f32; PANEL], factor: f32, other: [f32; PANEL]) -> [f32; PANEL] {
        for (value, other) in values.iter_mut().zip(other) {
            *value += factor * other;
        }
        values
    }

    #[inline(always)]
    unsafe fn scaled(
        mut values: [f32; PANEL], sums: [i32; PANEL], scale: [f32; PANEL], offset: [f32; PANEL],
        row: *const RowGroup,
    ) -> [f32; PANEL] {
        // SAFETY: The caller promises the row.
        let RowGroup { scale: of_row, sum, .. } = unsafe { *row };
        for lane in 0..PANEL {
            values[lane] += of_row * (scale[lane] * sums[lane] as f32 + offset[lane] * sum);
        }
        values
    }
}
