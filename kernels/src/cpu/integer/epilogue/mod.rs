//! What becomes of sums: scales, addends, residual, activation, factors, quantization; sixteen output channels at a time.

#[cfg(target_arch = "x86_64")]
mod avx512;

#[cfg(target_arch = "x86_64")]
pub(super) use avx512::write as write_avx512;

use super::super::codes::ByteQuantizer;
use super::dot::{LaneSums, MicroKernel, ROWS};
use super::zero_point::Addends;
use crate::integer::{Activation, IntConv2dShape, PANEL, padded_channels};

/// What becomes of the sums: `sum over scale groups of multiplier * sum`, plus `offset` times the sum of the codes that they are of, plus
/// `addend`, plus `residual`, an activation, and a factor and an addend for each output.
#[derive(Clone, Copy, Debug)]
pub struct Epilogue<'a> {
    /// `[scale groups, outputs]`: products of the scales of input and weight, and of BatchNorm's.
    pub multiplier: &'a [f32],
    /// `[outputs]`: products of the scale of the input, the weight of code 0, and the scale of BatchNorm; `None` if code 0 is 0. With it, there is
    /// one scale group.
    pub offset: Option<&'a [f32]>,
    /// The bias, and what makes up for the zero point of the input.
    pub addend: &'a Addends,
    /// Like the result.
    pub residual: Option<&'a [f32]>,
    /// What is done then.
    pub activation: Activation,
    /// `[outputs]` each, what results are multiplied by last, and what is added; `None` for nothing.
    pub last: Option<[&'a [f32]; 2]>,
}

impl Epilogue<'_> {
    /// # Panics
    /// If a slice has not the length of the shape.
    pub(super) fn check(&self, shape: &IntConv2dShape) {
        let outputs = shape.weight().outputs();
        assert_eq!(
            self.multiplier.len(),
            shape.weight().scale_groups() * outputs,
            "a multiplier for each scale"
        );
        let fits = |offset: &[f32]| offset.len() == outputs && shape.weight().scale_groups() == 1;
        assert!(self.offset.is_none_or(fits), "an offset for each output, and one scale group");
        self.addend.check(shape);
        assert!(
            self.last.is_none_or(|last| last.iter().all(|of| of.len() == outputs)),
            "a factor for each output"
        );
        assert!(self.residual.is_none_or(|r| r.len() == shape.results()), "a residual like the output");
    }
}

/// Where results go, as one or the other or both. All tasks write to it, each to positions and channels of its own.
#[derive(Clone, Copy, Default)]
pub(super) struct Output {
    /// `[positions, outputs]`, positions counted through all images.
    pub values: Option<*mut f32>,
    /// `[positions, padded outputs]`.
    pub codes: Option<(*mut u8, ByteQuantizer)>,
}

// SAFETY: Tasks write to different elements.
unsafe impl Send for Output {}
// SAFETY: As above.
unsafe impl Sync for Output {}

/// Values of consecutive output channels at one position.
pub(super) type Lanes = [f32; PANEL];

/// 16 elements from `start` on; zeros after the end.
#[inline(always)]
fn lanes(slice: &[f32], start: usize) -> Lanes {
    let slice = &slice[start..];
    match slice.first_chunk() {
        Some(lanes) => *lanes,
        None => {
            let mut lanes = [0.0; PANEL];
            lanes[..slice.len()].copy_from_slice(slice);
            lanes
        }
    }
}

/// Consecutive output channels, in panels of 16.
#[derive(Clone, Copy)]
pub(super) struct Channels {
    pub first: usize,
    /// From there to the last one: the last panel may have fewer than 16.
    pub count: usize,
    /// How many panels there are, of which each is the `apart`th after the one before.
    pub panels: usize,
    pub apart: usize,
}

impl Channels {
    /// Those of one panel.
    #[inline(always)]
    pub(super) fn panel(self, panel: usize) -> Self {
        let first = panel * self.apart * PANEL;
        Self { first: self.first + first, count: PANEL.min(self.count - first), panels: 1, apart: 1 }
    }
}

impl Output {
    /// Bytes of a result.
    #[inline(always)]
    pub(super) fn bytes(self) -> usize {
        self.values.map_or(0, |_| size_of::<f32>()) + self.codes.map_or(0, |_| 1)
    }

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

/// Sums of panels at some positions.
pub(super) struct RowSums<'a> {
    /// Of the panels of each position, and of what is not meant between these.
    pub sums: &'a [[i32; PANEL]],
    /// From a position to the next one.
    pub stride: usize,
    /// What the sums of each position are too large by; `None` for nothing.
    pub corrections: Option<&'a [i32; ROWS]>,
    /// The sums of the codes that they are of; read if weights have offsets.
    pub inputs: InputSums<'a>,
}

/// Sums of codes.
pub(super) enum InputSums<'a> {
    /// The same for all channels of a position.
    Positions(&'a [f32; ROWS]),
    /// One for each channel.
    Channels(&'a LaneSums),
}

/// Rows of panels in what epilogues read and write.
pub(super) struct Place<'a> {
    epilogue: &'a Epilogue<'a>,
    channels: Channels,
    rows: usize,
    /// Channels of a position.
    outputs: usize,
    /// The first position, of its image.
    position: usize,
    /// Those of an image.
    positions: usize,
    /// From the first value on.
    residual: Option<&'a [f32]>,
    values: Option<*mut f32>,
    codes: Option<(*mut u8, ByteQuantizer)>,
}

impl Epilogue<'_> {
    /// The multipliers of a scale group.
    #[inline(always)]
    pub(super) fn multiplier(&self, group: usize, channels: Channels, outputs: usize) -> Lanes {
        lanes(self.multiplier, group * outputs + channels.first)
    }

    /// Fetches what is read for each of the channels: products with few rows read it once, from memory.
    #[inline(always)]
    pub(super) fn prefetch(&self, channels: Channels) {
        for values in [self.multiplier, self.addend.values()].into_iter().chain(self.offset) {
            prefetch(values, channels.first);
        }
    }

    /// `rows` positions from `position` on.
    ///
    /// # Safety
    /// `output` is as large as the result of `shape`, and has these positions and channels.
    #[inline(always)]
    pub(super) unsafe fn place(
        &self, rows: usize, position: usize, channels: Channels, shape: &IntConv2dShape, output: Output,
    ) -> Place<'_> {
        let (outputs, positions) = (shape.weight().outputs(), shape.positions());
        let first = position * outputs + channels.first;
        Place {
            epilogue: self,
            channels,
            rows,
            outputs,
            // A division takes as long as a row.
            position: if position < positions { position } else { position % positions },
            positions,
            residual: self.residual.map(|residual| &residual[first..]),
            // SAFETY: As promised by the caller.
            values: output.values.map(|out| unsafe { out.add(first) }),
            // SAFETY: As promised by the caller.
            codes: output.codes.map(|(out, to)| unsafe {
                (out.add(position * padded_channels(outputs) + channels.first), to)
            }),
        }
    }
}

impl Place<'_> {
    /// One of the panels.
    ///
    /// # Safety
    /// There are so many.
    #[inline(always)]
    pub(super) unsafe fn panel(&self, panel: usize) -> Self {
        let first = panel * self.channels.apart * PANEL;
        Self {
            channels: self.channels.panel(panel),
            residual: self.residual.map(|residual| &residual[first..]),
            // SAFETY: As promised by the caller.
            values: self.values.map(|out| unsafe { out.add(first) }),
            // SAFETY: As promised by the caller.
            codes: self.codes.map(|(out, to)| (unsafe { out.add(first) }, to)),
            ..*self
        }
    }

    /// Scales sums of one scale group, adds what is to be added, and writes the results.
    ///
    /// # Safety
    /// Nobody else writes to these channels of these positions. The machine has the instructions of the kernel.
    #[inline(always)]
    pub(super) unsafe fn write_sums(&self, of: &RowSums, kernel: &dyn MicroKernel) {
        if let Some(write) = kernel.writer() {
            // SAFETY: As promised by the caller.
            return unsafe { write(self, of) };
        }
        for panel in 0..self.channels.panels {
            // SAFETY: There are so many; the rest as promised by the caller.
            unsafe { self.panel(panel).write_panel(&of.sums[panel..], of) };
        }
    }

    /// [`Place::write_sums`] of one panel, whose sums are these.
    ///
    /// # Safety
    /// Nobody else writes to these channels of these positions.
    #[inline(always)]
    unsafe fn write_panel(&self, sums: &[[i32; PANEL]], of: &RowSums) {
        let (epilogue, first) = (self.epilogue, self.channels.first);
        let (multiplier, offset) =
            (lanes(epilogue.multiplier, first), epilogue.offset.map(|of| lanes(of, first)));
        for row in 0..self.rows {
            let correction = of.corrections.map_or(0, |corrections| corrections[row]);
            let mut values = scaled(&sums[row * of.stride], correction, &multiplier);
            if let Some(offset) = &offset {
                let inputs = match &of.inputs {
                    InputSums::Positions(inputs) => offset.map(|offset| offset * inputs[row]),
                    InputSums::Channels(inputs) => scaled(&inputs[row], 0, offset),
                };
                values = added(values, &inputs);
            }
            // SAFETY: As promised by the caller.
            unsafe { self.write(row, values) };
        }
    }

    /// The first of the addends of a row, and all that follow them.
    ///
    /// # Safety
    /// [`Epilogue::check`] has been called.
    #[inline(always)]
    unsafe fn addends(&self, row: usize) -> &[f32] {
        let position = self.position + row;
        // Tiles are small: they reach into the next image, and rarely farther.
        let position = if position < self.positions { position } else { position % self.positions };
        // SAFETY: As promised by the caller.
        unsafe { self.epilogue.addend.at(position).get_unchecked(self.channels.first..) }
    }

    /// Adds to scaled sums of a row of one panel what is to be added, and writes the results.
    ///
    /// # Safety
    /// That of [`Place::write_sums`].
    #[inline(always)]
    pub(super) unsafe fn write(&self, row: usize, scaled: Lanes) {
        let (epilogue, Channels { first, count, .. }) = (self.epilogue, self.channels);
        // SAFETY: As promised by the caller.
        let mut values = added(scaled, &lanes(unsafe { self.addends(row) }, 0));
        if let Some(residual) = self.residual {
            values = added(values, &lanes(residual, row * self.outputs));
        }
        values = activated(epilogue.activation, values);
        if let Some([gain, shift]) = epilogue.last.map(|last| last.map(|of| lanes(of, first))) {
            for lane in 0..PANEL {
                values[lane] = gain[lane] * values[lane] + shift[lane];
            }
        }
        // SAFETY: As promised by the caller.
        unsafe {
            if let Some(out) = self.values {
                copy(values, out.add(row * self.outputs), count);
            }
            if let Some((out, to)) = &self.codes {
                copy(to.codes(&values), out.add(row * padded_channels(self.outputs)), count);
            }
        }
    }
}

/// The activation of each value: decided once.
#[inline(always)]
fn activated(activation: Activation, values: Lanes) -> Lanes {
    match activation {
        Activation::None => values,
        Activation::Relu => each(values, Activation::Relu),
        Activation::Relu6 => each(values, Activation::Relu6),
        Activation::Unit => each(values, Activation::Unit),
        Activation::HardSwish => each(values, Activation::HardSwish),
        Activation::Sigmoid => each(values, Activation::Sigmoid),
        Activation::Silu => each(values, Activation::Silu),
    }
}

/// An activation, usually one that the compiler knows, of each value.
#[inline(always)]
fn each(mut values: Lanes, activation: Activation) -> Lanes {
    for value in &mut values {
        *value = activation.apply(*value);
    }
    values
}

/// Copies the first elements; usually all of them.
///
/// # Safety
/// `to` can be written to.
#[inline(always)]
unsafe fn copy<T: Copy>(from: [T; PANEL], to: *mut T, count: usize) {
    // SAFETY: As promised by the caller.
    unsafe {
        match count {
            PANEL => to.cast::<[T; PANEL]>().write_unaligned(from),
            _ => to.copy_from_nonoverlapping(from.as_ptr(), count.min(PANEL)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::codes;
    use super::super::dot::DotKernel;
    use super::*;
    use crate::integer::{CodeQuantizer, Conv2dOptions, WeightLayout};
    use dr_precision::{BitWidth, Granularity};
    use proptest::prelude::*;
    use std::sync::Arc;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// Around all places where a code ends, at the ends of floats, and anywhere: what each kernel writes is the code of the value's quotient.
        #[test]
        fn codes_are_those_of_divisions(
            mantissa in 1.0f32..2.0, exponent in -70i32..70, zero_point in prop_oneof![Just(0.0f32), -2.0f32..2.0],
            bits in prop::sample::select(BitWidth::ALL.to_vec()), seed: u32,
        ) {
            let scale = mantissa * 2f32.powi(exponent);
            let mut values = vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, f32::MIN_POSITIVE, f32::MAX, f32::MIN];
            for half in 0..=2 * bits.unsigned_max() + 2 {
                let edge = half as f32 * 0.5 * scale + zero_point;
                values.extend((0..8).map(|step| f32::from_bits(edge.to_bits().wrapping_add(step).wrapping_sub(4))));
            }
            let mut state = seed | 1;
            for _ in 0..256 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                values.push((state as f32 / u32::MAX as f32 * 300.0 - 20.0) * scale);
            }
            values.resize(values.len().next_multiple_of(PANEL), 1.0);
            let to = ByteQuantizer::new(CodeQuantizer { bits, scale, zero_point });
            let layout = WeightLayout::new(&[PANEL, 1], 1, BitWidth::B8, Granularity::Channel).unwrap();
            let rows = values.len() / PANEL;
            let shape = IntConv2dShape::new(rows, [1, 1], Conv2dOptions::default(), layout).unwrap();
            let addend = Addends::from(Arc::from(vec![0.0; PANEL]));
            let multiplier = vec![1.0; PANEL];
            // Sums of zero, and the values as a residual.
            let epilogue = Epilogue {
                multiplier: &multiplier, offset: None, addend: &addend, residual: Some(&values), activation: Activation::None, last: None,
            };
            let expected: Vec<u8> =
                values.as_chunks().0.iter().flat_map(|values: &Lanes| to.codes(&values.map(|value| 0.0 + value))).collect();
            let (sums, none) = ([[0; PANEL]; ROWS], [0.0; ROWS]);
            let kernels = DotKernel::ALL.into_iter().filter_map(DotKernel::micro);
            for (kernel, inverse) in kernels.flat_map(|kernel| [(kernel, None), (kernel, codes::inverse(scale))]) {
                let to = ByteQuantizer { inverse, ..to };
                let mut codes = vec![0u8; values.len()];
                for position in (0..rows).step_by(ROWS) {
                    let output = Output { values: None, codes: Some((codes.as_mut_ptr(), to)) };
                    let channels = Channels { first: 0, count: PANEL, panels: 1, apart: 1 };
                    let of = RowSums { sums: &sums, stride: 1, corrections: None, inputs: InputSums::Positions(&none) };
                    // SAFETY: There are as many rows, of which each is written once.
                    unsafe { epilogue.place(ROWS.min(rows - position), position, channels, &shape, output).write_sums(&of, kernel) };
                }
                prop_assert_eq!(&codes, &expected);
            }
        }
    }
}
