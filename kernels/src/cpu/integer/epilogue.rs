//! What becomes of sums: scales, addends, residual, ReLU, quantization; sixteen output channels at a time.

use super::super::codes::Quantizer;
use crate::integer::{CodeQuantizer, IntConv2dShape, PANEL, padded_channels};

/// What becomes of the sums: `sum over scale groups of multiplier * sum`, plus `addend`, plus `residual`, and above zero.
#[derive(Clone, Copy, Debug)]
pub struct Epilogue<'a> {
    /// `[scale groups, outputs]`: products of the scales of input and weight, and of BatchNorm's.
    pub multiplier: &'a [f32],
    /// `[1 or positions, outputs]`: the bias, and what makes up for the zero point of the input.
    pub addend: &'a [f32],
    /// Like the result.
    pub residual: Option<&'a [f32]>,
    /// Whether values below zero become zero.
    pub relu: bool,
}

impl Epilogue<'_> {
    /// # Panics
    /// If a slice has not the length of the shape.
    pub(super) fn check(&self, shape: &IntConv2dShape) {
        let (outputs, addends) = (shape.weight.outputs, self.addend.len());
        assert_eq!(
            self.multiplier.len(),
            shape.weight.scale_groups() * outputs,
            "a multiplier for each scale"
        );
        assert!([outputs, outputs * shape.positions()].contains(&addends), "an addend for each output");
        assert!(self.residual.is_none_or(|r| r.len() == shape.results()), "a residual like the output");
    }
}

/// Where results go. All tasks write to it, each to positions and channels of its own.
#[derive(Clone, Copy)]
pub(super) enum Output {
    /// `[positions, outputs]`, positions counted through all images.
    Values(*mut f32),
    /// `[positions, padded outputs]`.
    Codes(*mut u8, CodeQuantizer),
}

// SAFETY: Tasks write to different elements.
unsafe impl Send for Output {}
// SAFETY: As above.
unsafe impl Sync for Output {}

/// Values of consecutive output channels at one position.
pub(super) type Lanes = [f32; PANEL];

/// Up to 16 elements from `start` on.
#[inline(always)]
fn lanes(slice: &[f32], start: usize, count: usize) -> Lanes {
    match slice[start..].first_chunk() {
        Some(lanes) if count == PANEL => *lanes,
        _ => {
            let mut lanes = [0.0; PANEL];
            lanes[..count].copy_from_slice(&slice[start..][..count]);
            lanes
        }
    }
}

/// Up to 16 consecutive output channels.
#[derive(Clone, Copy)]
pub(super) struct Channels {
    pub first: usize,
    pub count: usize,
}

impl Output {
    /// Fetches what will be written, so that it is there when it is.
    #[inline(always)]
    pub(super) fn prefetch(self, position: usize, channels: Channels, outputs: usize) {
        #[cfg(target_arch = "x86_64")]
        if let Self::Values(out) = self {
            use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
            // SAFETY: A prefetch reads nothing and faults nowhere.
            unsafe {
                _mm_prefetch::<_MM_HINT_ET0>(out.wrapping_add(position * outputs + channels.first).cast())
            };
        }
    }
}

impl Epilogue<'_> {
    /// `multiplier * (sum - correction)` of a scale group: it is what `values` are, or is added to them.
    #[inline(always)]
    pub(super) fn scale<'a>(
        &self, sums: impl Iterator<Item = (&'a [i32; PANEL], i32)>, group: usize, channels: Channels,
        outputs: usize, values: impl Iterator<Item = &'a mut Lanes>,
    ) {
        let multiplier = lanes(self.multiplier, group * outputs + channels.first, channels.count);
        for ((sums, correction), values) in sums.zip(values) {
            let mut scaled = [0.0; PANEL];
            for ((scaled, sum), multiplier) in scaled.iter_mut().zip(sums).zip(multiplier) {
                *scaled = multiplier * sum.wrapping_sub(correction) as f32;
            }
            if group == 0 {
                *values = scaled;
            } else {
                values.iter_mut().zip(scaled).for_each(|(value, scaled)| *value += scaled);
            }
        }
    }

    /// Adds what is to be added to the values of positions from `position` on, and writes them.
    ///
    /// # Safety
    /// `output` is as large as the result of `shape`, and nobody else writes to these channels of the positions.
    #[inline(always)]
    pub(super) unsafe fn write<'a>(
        &self, values: impl Iterator<Item = &'a Lanes>, position: usize, channels: Channels,
        shape: &IntConv2dShape, output: Output,
    ) {
        let (outputs, Channels { first, count }) = (shape.weight.outputs, channels);
        let by_position = self.addend.len() != outputs;
        let mut addend = if by_position { [0.0; PANEL] } else { lanes(self.addend, first, count) };
        for (position, values) in (position..).zip(values) {
            let mut values = *values;
            if by_position {
                addend = lanes(self.addend, position % shape.positions() * outputs + first, count);
            }
            values.iter_mut().zip(addend).for_each(|(value, addend)| *value += addend);
            let at = position * outputs + first;
            if let Some(residual) = self.residual {
                let residual = lanes(residual, at, count);
                values.iter_mut().zip(residual).for_each(|(value, residual)| *value += residual);
            }
            if self.relu {
                values.iter_mut().for_each(|value| *value = if *value > 0.0 { *value } else { 0.0 });
            }
            match output {
                Output::Values(out) => {
                    // SAFETY: As promised by the caller.
                    let out = unsafe { std::slice::from_raw_parts_mut(out.add(at), count) };
                    copy(&values, out);
                }
                Output::Codes(out, to) => {
                    let quantizer = Quantizer::unsigned(to.scale, to.bits);
                    let mut codes = [0; PANEL];
                    for (code, value) in codes.iter_mut().zip(values) {
                        *code = quantizer.byte(quantizer.quotient(value - to.zero_point));
                    }
                    let at = position * padded_channels(outputs) + first;
                    // SAFETY: As promised by the caller.
                    let out = unsafe { std::slice::from_raw_parts_mut(out.add(at), count) };
                    copy(&codes, out);
                }
            }
        }
    }
}

/// Copies the first elements; usually all of them.
#[inline(always)]
fn copy<T: Copy>(from: &[T; PANEL], to: &mut [T]) {
    match <&mut [T; PANEL]>::try_from(&mut *to) {
        Ok(to) => *to = *from,
        Err(_) => to.copy_from_slice(&from[..to.len()]),
    }
}
