//! What becomes of sums: scales, addends, residual, activation, quantization; sixteen output channels at a time.

use super::super::codes::Quantizer;
use super::dot::{PANELS, ROWS};
use crate::integer::{Activation, CodeQuantizer, IntConv2dShape, PANEL, padded_channels};

/// What becomes of the sums: `sum over scale groups of multiplier * sum`, plus `offset` times the sum of the codes that they are of, plus
/// `addend`, plus `residual`, and an activation.
#[derive(Clone, Copy, Debug)]
pub struct Epilogue<'a> {
    /// `[scale groups, outputs]`: products of the scales of input and weight, and of BatchNorm's.
    pub multiplier: &'a [f32],
    /// `[outputs]`: products of the scale of the input, the weight of code 0, and the scale of BatchNorm; `None` if code 0 is 0. With it, there is
    /// one scale group.
    pub offset: Option<&'a [f32]>,
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
        let (outputs, addends) = (shape.weight().outputs(), self.addend.len());
        assert_eq!(
            self.multiplier.len(),
            shape.weight().scale_groups() * outputs,
            "a multiplier for each scale"
        );
        let fits = |offset: &[f32]| offset.len() == outputs && shape.weight().scale_groups() == 1;
        assert!(self.offset.is_none_or(fits), "an offset for each output, and one scale group");
        assert!([outputs, outputs * shape.positions()].contains(&addends), "an addend for each output");
        assert!(self.residual.is_none_or(|r| r.len() == shape.results()), "a residual like the output");
    }
}

/// Where results go, as one or the other or both. All tasks write to it, each to positions and channels of its own.
#[derive(Clone, Copy, Default)]
pub(super) struct Output {
    /// `[positions, outputs]`, positions counted through all images.
    pub values: Option<*mut f32>,
    /// `[positions, padded outputs]`.
    pub codes: Option<(*mut u8, CodeQuantizer)>,
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
        if let Some(out) = self.values {
            use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
            // SAFETY: A prefetch reads nothing and faults nowhere.
            unsafe {
                _mm_prefetch::<_MM_HINT_ET0>(out.wrapping_add(position * outputs + channels.first).cast())
            };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (position, channels, outputs);
    }
}

/// Fetches what will be read.
#[inline(always)]
fn prefetch(values: &[f32], at: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: A prefetch reads nothing and faults nowhere.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(values.as_ptr().wrapping_add(at).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (values, at);
}

/// What is the same at all positions, for up to 16 channels.
pub(super) struct Constants {
    channels: Channels,
    /// Of the first scale group.
    multiplier: Lanes,
    offset: Option<Lanes>,
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

impl Constants {
    /// Adds to scaled sums what is of the offset: `inputs` are the sums of codes that each is of.
    #[inline(always)]
    fn with_offset(&self, values: Lanes, inputs: &[i32; PANEL]) -> Lanes {
        match &self.offset {
            Some(offset) => added(values, &scaled(inputs, 0, offset)),
            None => values,
        }
    }
}

impl Epilogue<'_> {
    /// The multipliers of a scale group.
    #[inline(always)]
    pub(super) fn multiplier(&self, group: usize, channels: Channels, outputs: usize) -> Lanes {
        lanes(self.multiplier, group * outputs + channels.first, channels.count)
    }

    /// Fetches what [`Epilogue::constants`] reads: products with few rows read it once, from
    /// memory.
    #[inline(always)]
    pub(super) fn prefetch(&self, channels: Channels) {
        for values in [self.multiplier, self.addend].into_iter().chain(self.offset) {
            prefetch(values, channels.first);
        }
    }

    /// What [`Epilogue::write`] needs.
    #[inline(always)]
    pub(super) fn constants(&self, channels: Channels, outputs: usize) -> Constants {
        let by_position = self.addend.len() != outputs;
        Constants {
            channels,
            multiplier: self.multiplier(0, channels, outputs),
            offset: self.offset.map(|offset| lanes(offset, channels.first, channels.count)),
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
        let (outputs, Channels { first, count }) = (shape.weight().outputs(), constants.channels);
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
        if let Some(out) = output.values {
            // SAFETY: As promised by the caller.
            let out = unsafe { std::slice::from_raw_parts_mut(out.add(position * outputs + first), count) };
            copy(&values, out);
        }
        if let Some((out, to)) = output.codes {
            let codes = codes_of(&values, &Quantizer::unsigned(to.scale, to.bits), to.zero_point);
            let at = position * padded_channels(outputs) + first;
            // SAFETY: As promised by the caller.
            let out = unsafe { std::slice::from_raw_parts_mut(out.add(at), count) };
            copy(&codes, out);
        }
    }

    /// [`Epilogue::write`] for sums of one scale group; `inputs` are the sums of the codes that they are of.
    ///
    /// # Safety
    /// That of [`Epilogue::write`].
    #[inline(always)]
    pub(super) unsafe fn write_sums(
        &self, [sums, inputs]: &[[i32; PANEL]; 2], position: usize, constants: &Constants,
        shape: &IntConv2dShape, output: Output,
    ) {
        let values = constants.with_offset(scaled(sums, 0, &constants.multiplier), inputs);
        // SAFETY: As promised by the caller.
        unsafe { self.write(values, position, constants, shape, output) };
    }

    /// [`Epilogue::write`] for the sums of a panel of a tile, of one scale group, whose rows are positions from `position` on.
    ///
    /// # Safety
    /// That of [`Epilogue::write`], at all these positions.
    #[inline(always)]
    pub(super) unsafe fn write_panel(
        &self, of: &PanelSums, position: usize, constants: &Constants, shape: &IntConv2dShape, output: Output,
    ) {
        let PanelSums { sums, panel, corrections, inputs } = *of;
        let outputs = shape.weight().outputs();
        let Channels { first, count } = constants.channels;
        let (Some(addend), PANEL) = (constants.addend, count) else {
            for (row, sums) in sums.iter().enumerate() {
                let [correction, input] = [corrections, inputs].map(|of| of.get(row).copied().unwrap_or(0));
                let values = scaled(&sums[panel], correction, &constants.multiplier);
                let values = constants.with_offset(values, &[input; PANEL]);
                // SAFETY: As promised by the caller.
                unsafe { self.write(values, position + row, constants, shape, output) };
            }
            return;
        };
        let [corrections, inputs] = [corrections, inputs].map(|of| {
            let mut all = [0; ROWS];
            if !of.is_empty() {
                all[..sums.len()].copy_from_slice(&of[..sums.len()]);
            }
            all
        });
        let Constants { multiplier, offset, .. } = *constants;
        let whole = Whole { sums, panel, corrections, inputs, multiplier, offset, addend };
        let residual = self.residual.map(|residual| &residual[position * outputs + first..]);
        let place = Place {
            residual: residual.unwrap_or_default(),
            outputs,
            // SAFETY: As promised by the caller.
            values: output.values.map(|out| unsafe { out.add(position * outputs + first) }),
            codes: output.codes.map(|(out, to)| {
                // SAFETY: As promised by the caller.
                (unsafe { out.add(position * padded_channels(outputs) + first) }, to)
            }),
        };
        // What is the same for all lanes is decided here, so that a row is a few instructions without branches.
        // SAFETY: As promised by the caller.
        unsafe {
            match (self.activation, residual.is_some()) {
                (Activation::None, false) => whole.write::<0, false>(&place),
                (Activation::Relu, false) => whole.write::<1, false>(&place),
                (Activation::Relu6, false) => whole.write::<2, false>(&place),
                (Activation::None, true) => whole.write::<0, true>(&place),
                (Activation::Relu, true) => whole.write::<1, true>(&place),
                (Activation::Relu6, true) => whole.write::<2, true>(&place),
            }
        }
    }
}

/// The sums of a panel: of `[rows, panels, 16]` the ones at `panel`.
pub(super) struct PanelSums<'a> {
    pub sums: &'a [[[i32; PANEL]; PANELS]],
    pub panel: usize,
    /// For each row what its sums are too large by; nothing if they are not.
    pub corrections: &'a [i32],
    /// For each row the sum of its codes; nothing without offsets.
    pub inputs: &'a [i32],
}

/// Sums of a panel that is whole, of one scale group, with an addend for each channel: of most panels.
struct Whole<'a> {
    sums: &'a [[[i32; PANEL]; PANELS]],
    panel: usize,
    corrections: [i32; ROWS],
    inputs: [i32; ROWS],
    multiplier: Lanes,
    offset: Option<Lanes>,
    addend: Lanes,
}

impl Whole<'_> {
    /// The values of a row. `ACTIVATION` is the position among these, `offset` the one that there is.
    #[inline(always)]
    fn row<const ACTIVATION: usize, const RESIDUAL: bool>(
        &self, row: usize, offset: Option<&Lanes>, place: &Place,
    ) -> Lanes {
        const ACTIVATIONS: [Activation; 3] = [Activation::None, Activation::Relu, Activation::Relu6];
        let (sums, correction) = (&self.sums[row][self.panel], self.corrections[row]);
        let input = self.inputs[row] as f32;
        let residual =
            if RESIDUAL { lanes(place.residual, row * place.outputs, PANEL) } else { [0.0; PANEL] };
        let mut values = [0.0; PANEL];
        for lane in 0..PANEL {
            let mut value = self.multiplier[lane] * sums[lane].wrapping_sub(correction) as f32;
            if let Some(offset) = offset {
                value += offset[lane] * input;
            }
            value += self.addend[lane];
            if RESIDUAL {
                value += residual[lane];
            }
            values[lane] = ACTIVATIONS[ACTIVATION].apply(value);
        }
        values
    }

    /// # Safety
    /// The rows of `place` can be written to.
    #[inline(always)]
    unsafe fn write<const ACTIVATION: usize, const RESIDUAL: bool>(&self, place: &Place) {
        // SAFETY: As promised by the caller.
        unsafe {
            match &self.offset {
                None => self.write_rows(place, |row| self.row::<ACTIVATION, RESIDUAL>(row, None, place)),
                Some(offset) => {
                    self.write_rows(place, |row| self.row::<ACTIVATION, RESIDUAL>(row, Some(offset), place));
                }
            }
        }
    }

    /// # Safety
    /// That of [`Whole::write`].
    #[inline(always)]
    unsafe fn write_rows(&self, place: &Place, row: impl Fn(usize) -> Lanes) {
        let rows = 0..self.sums.len().min(ROWS);
        let Some((codes, to)) = place.codes else {
            let Some(out) = place.values else { return };
            for at in rows {
                // SAFETY: As promised by the caller.
                unsafe { out.add(at * place.outputs).cast::<Lanes>().write_unaligned(row(at)) };
            }
            return;
        };
        let (quantizer, pitch) = (Quantizer::unsigned(to.scale, to.bits), padded_channels(place.outputs));
        for at in rows {
            let values = row(at);
            // SAFETY: As promised by the caller.
            unsafe {
                if let Some(out) = place.values {
                    out.add(at * place.outputs).cast::<Lanes>().write_unaligned(values);
                }
                let out = codes.add(at * pitch).cast::<[u8; PANEL]>();
                out.write_unaligned(codes_of(&values, &quantizer, to.zero_point));
            }
        }
    }
}

/// Where a [`Whole`] begins in the residual and in the results.
struct Place<'a> {
    residual: &'a [f32],
    /// Channels of a position.
    outputs: usize,
    values: Option<*mut f32>,
    codes: Option<(*mut u8, CodeQuantizer)>,
}

#[inline(always)]
fn codes_of(values: &Lanes, quantizer: &Quantizer, zero_point: f32) -> [u8; PANEL] {
    let mut codes = [0; PANEL];
    for (code, value) in codes.iter_mut().zip(values) {
        *code = quantizer.byte(quantizer.quotient(value - zero_point));
    }
    codes
}

/// Copies the first elements; usually all of them.
#[inline(always)]
fn copy<T: Copy>(from: &[T; PANEL], to: &mut [T]) {
    match <&mut [T; PANEL]>::try_from(&mut *to) {
        Ok(to) => *to = *from,
        Err(_) => to.copy_from_slice(&from[..to.len()]),
    }
}
