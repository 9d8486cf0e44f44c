//! What becomes of sums: scales, addends, residual, activation, quantization; sixteen output channels at a time.

use super::super::codes::Quantizer;
use crate::integer::{Activation, CodeQuantizer, IntConv2dShape, PANEL, padded_channels};

/// What becomes of the sums: `sum over scale groups of multiplier * sum`, plus `addend`, plus `residual`, and an activation.
#[derive(Clone, Copy, Debug)]
pub struct Epilogue<'a> {
    /// `[scale groups, outputs]`: products of the scales of input and weight, and of BatchNorm's.
    pub multiplier: &'a [f32],
    /// `[1 or positions, outputs]`: the bias, and what makes up for the zero point of the input.
    pub addend: &'a [f32],
    /// Like the result.
    pub residual: Option<&'a [f32]>,
    /// What is done last.
    pub activation: Activation,
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

/// What is the same at all positions, for up to 16 channels.
pub(super) struct Constants {
    channels: Channels,
    /// Of the first scale group.
    multiplier: Lanes,
    /// If it is not one for each position.
    addend: Option<Lanes>,
}

/// `multiplier * (sum - correction)`.
#[inline(always)]
pub(super) fn scaled(sums: &[i32; PANEL], correction: i32, multiplier: &Lanes) -> Lanes {
    let mut values = [0.0; PANEL];
    for lane in 0..PANEL {
        values[lane] = multiplier[lane] * sums[lane].wrapping_sub(correction) as f32;
    }
    values
}

/// Adds to `values`, and says what they are now.
#[inline(always)]
pub(super) fn added(mut values: Lanes, other: &Lanes) -> Lanes {
    for lane in 0..PANEL {
        values[lane] += other[lane];
    }
    values
}

impl Epilogue<'_> {
    /// The multipliers of a scale group.
    #[inline(always)]
    pub(super) fn multiplier(&self, group: usize, channels: Channels, outputs: usize) -> Lanes {
        lanes(self.multiplier, group * outputs + channels.first, channels.count)
    }

    /// What [`Epilogue::write`] needs.
    #[inline(always)]
    pub(super) fn constants(&self, channels: Channels, outputs: usize) -> Constants {
        let by_position = self.addend.len() != outputs;
        Constants {
            channels,
            multiplier: self.multiplier(0, channels, outputs),
            addend: if by_position { None } else { Some(lanes(self.addend, channels.first, channels.count)) },
        }
    }

    /// Adds what is to be added to the scaled sums of `position`, and writes them.
    ///
    /// # Safety
    /// `output` is as large as the result of `shape`, and nobody else writes to these channels of the position.
    #[inline(always)]
    pub(super) unsafe fn write(
        &self, values: Lanes, position: usize, constants: &Constants, shape: &IntConv2dShape, output: Output,
    ) {
        let (outputs, Channels { first, count }) = (shape.weight.outputs, constants.channels);
        let mut values = match &constants.addend {
            Some(addend) => added(values, addend),
            None => {
                let start = position % shape.positions() * outputs + first;
                added(values, &lanes(self.addend, start, count))
            }
        };
        if let Some(residual) = self.residual {
            values = added(values, &lanes(residual, position * outputs + first, count));
        }
        if self.activation != Activation::None {
            for value in &mut values {
                *value = Activation::Relu.apply(*value);
            }
        }
        if self.activation == Activation::Relu6 {
            for value in &mut values {
                *value = Activation::Relu6.apply(*value);
            }
        }
        match output {
            Output::Values(out) => {
                // SAFETY: As promised by the caller.
                let out =
                    unsafe { std::slice::from_raw_parts_mut(out.add(position * outputs + first), count) };
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

    /// The same for one scale group, from its sums.
    ///
    /// # Safety
    /// That of [`Epilogue::write`].
    #[inline(always)]
    pub(super) unsafe fn write_sums(
        &self, sums: &[i32; PANEL], correction: i32, position: usize, constants: &Constants,
        shape: &IntConv2dShape, output: Output,
    ) {
        let values = scaled(sums, correction, &constants.multiplier);
        // SAFETY: As promised by the caller.
        unsafe { self.write(values, position, constants, shape, output) };
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
