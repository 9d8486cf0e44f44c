//! Rows in groups: signed codes with a scale for every 32 inputs.

use super::super::super::codes::Quantizer;
use super::super::super::isa::{Isa, run_on};
use super::super::super::team;
use super::super::dot::RowGroup;
use crate::layout::BLOCK;

/// Groups that a task quantizes: so many that it pays for another thread's attention.
const TASK: usize = 128;

/// Lanes of a maximum.
const LANES: usize = 16;

/// [`crate::reference::quantize_rows`] of `x`, `[rows, inputs]`: `[rows, groups]`.
///
/// # Panics
/// If `out` is not as long.
pub(crate) fn quantize_rows(x: &[f32], inputs: usize, out: &mut [RowGroup]) {
    let (inputs, groups) = (inputs.max(1), inputs.div_ceil(BLOCK).max(1));
    assert_eq!(out.len(), x.len() / inputs * groups, "a group for every 32 inputs of each row");
    team::for_each_chunk(out, TASK, |task, out| {
        run_on!(Isa::detect(), |_| quantize_groups(x, inputs, groups, task * TASK, out));
    });
}

#[inline(always)]
fn quantize_groups(x: &[f32], inputs: usize, groups: usize, first: usize, out: &mut [RowGroup]) {
    for (at, out) in (first..).zip(out) {
        let (row, start) = (at / groups, at % groups * BLOCK);
        let row = &x[row * inputs..][..inputs];
        *out = match row[start..].first_chunk() {
            Some(x) => quantized(x),
            None => {
                let mut padded = [0.0; BLOCK];
                padded[..inputs - start].copy_from_slice(&row[start..]);
                quantized(&padded)
            }
        };
    }
}

#[inline(always)]
fn quantized(x: &[f32; BLOCK]) -> RowGroup {
    let mut largest = [0.0f32; LANES];
    for x in x.as_chunks::<LANES>().0 {
        for (largest, x) in largest.iter_mut().zip(x) {
            let x = x.abs();
            *largest = if x > *largest { x } else { *largest };
        }
    }
    let mut lanes = LANES / 2;
    while lanes > 0 {
        for lane in 0..lanes {
            let other = largest[lane + lanes];
            largest[lane] = if other > largest[lane] { other } else { largest[lane] };
        }
        lanes /= 2;
    }
    let scale = largest[0] / 127.0;
    // Of numbers so small that their scale is 0, all codes are.
    let divisor = if scale > 0.0 { scale } else { 1.0 };
    let quantizer = Quantizer { scale: divisor, low: -127.0, high: 127.0 };
    let mut codes = [0i8; BLOCK];
    let mut sum = 0;
    for (code, x) in codes.iter_mut().zip(x) {
        *code = quantizer.byte(quantizer.quotient(*x)) as i8;
        sum += i32::from(*code);
    }
    RowGroup { codes, scale, sum: sum as f32 }
}
