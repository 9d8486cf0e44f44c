//! Quantizing to packed codes, switching and dequantizing them.

use super::blocks::{LINE, Operation, PIECE, Pieces, TASK, Writer, fill, input, streams};
use super::codes::Quantizer;
use super::isa::{Isa, run_on};
use super::planes::{pack, switch, unpack};
use super::runs::{Map, Runs, map_runs};
use super::sample::Sample;
use crate::layout::{BLOCK as WORD_BLOCK, ScaleLayout, packed_words, planes as planes_of};
use dr_precision::BitWidth;
use rayon::prelude::*;
use std::{marker::PhantomData, mem::MaybeUninit};

/// Codes that are packed together: so many that most of what is written is whole cache lines.
const BATCH: usize = 1024;

/// [`crate::reference::quantize_pack`], for f32, f16 and bf16.
///
/// # Panics
/// If `x` has not as many elements as `layout`.
pub fn quantize_pack<'a, T: Sample>(
    x: &'a [T], scale: &'a [f32], zero_point: Option<&'a [f32]>, layout: &'a ScaleLayout, bits: BitWidth,
) -> impl Operation<u32, Rest = ()> + 'a {
    assert_eq!(x.len(), layout.elements());
    Pack { codes: QuantizeCodes { x, scale, zero_point, layout, bits }, elements: x.len(), bits }
}

/// [`crate::reference::switch_packed`].
pub fn switch_packed(
    words: &[u32], elements: usize, stored: BitWidth, active: BitWidth,
) -> impl Operation<u32, Rest = ()> {
    Pack { codes: SwitchCodes { words, stored, active }, elements, bits: active }
}

/// [`crate::reference::dequantize_packed`].
pub fn dequantize_packed<'a>(
    words: &'a [u32], scale: &'a [f32], zero_point: Option<&'a [f32]>, layout: &'a ScaleLayout,
    bits: BitWidth,
) -> impl Operation<f32, Rest = ()> + 'a {
    Dequantize { words, scale, zero_point, layout, bits }
}

/// Where codes to pack come from.
trait Codes: Sync {
    /// What goes from one call to the next.
    type State;
    /// Before the first of the codes from number `start` on.
    fn begin(&self, start: usize) -> Self::State;
    /// Computes `len` codes, those from number `start` on. There may be room for up to 31 more, with any contents.
    /// Must be `#[inline(always)]`.
    fn codes(&self, state: &mut Self::State, start: usize, len: usize, out: &mut [u64]);
}

/// The planes of some codes, those that a width has not being empty.
type Planes<'a> = [&'a mut [MaybeUninit<u32>]; 3];

/// Codes to be packed in `bits` bits each.
struct Pack<C> {
    codes: C,
    elements: usize,
    bits: BitWidth,
}

// SAFETY: The writers of all tasks are finished: they have written all words of every plane, and there is nothing else.
unsafe impl<C: Codes> Operation<u32> for Pack<C> {
    type Rest = ();

    fn elements(&self) -> usize {
        packed_words(self.elements, self.bits)
    }

    fn compute(&self, isa: Isa, mut out: &mut [MaybeUninit<u32>]) {
        let Self { ref codes, elements, bits } = *self;
        let streams = streams(size_of_val(out));
        let padded = elements.next_multiple_of(WORD_BLOCK);
        let mut whole = Planes::default();
        for (plane, of_width) in whole.iter_mut().zip(planes_of(bits)) {
            *plane =
                out.split_off_mut(..padded / WORD_BLOCK * of_width.bits as usize).expect("counted above");
        }
        let run = |(index, planes): (usize, Planes)| {
            let start = index * TASK;
            let len = TASK.min(elements - start);
            run_on!(isa, |isa| pack_task(isa, codes, bits, start, len, planes, streams));
        };
        if padded <= TASK {
            return run((0, whole));
        }
        let task = || {
            let mut part = Planes::default();
            for ((part, left), plane) in part.iter_mut().zip(&mut whole).zip(planes_of(bits)) {
                let words = left.len().min(TASK / WORD_BLOCK * plane.bits as usize);
                *part = left.split_off_mut(..words)?;
            }
            (!part[0].is_empty()).then_some(part)
        };
        let tasks: Vec<Planes> = std::iter::from_fn(task).collect();
        tasks.into_par_iter().enumerate().for_each(run);
    }
}

/// Computes and packs the `len` codes of one task, those from number `start` on.
#[inline(always)]
fn pack_task(
    isa: Isa, codes: &impl Codes, bits: BitWidth, start: usize, len: usize, planes: Planes, streams: bool,
) {
    let mut buffer = [0u64; BATCH / 8];
    let mut writers = planes.map(|plane| Writer::<u32, { BATCH / 4 + LINE }>::new(plane, streams, isa));
    let mut state = codes.begin(start);
    for first in (0..len).step_by(BATCH) {
        let len = BATCH.min(len - first);
        let buffer = &mut buffer[..len.next_multiple_of(WORD_BLOCK) / 8];
        codes.codes(&mut state, start + first, len, buffer);
        bytemuck::cast_slice_mut::<u64, u8>(buffer)[len..].fill(0);
        for (writer, plane) in writers.iter_mut().zip(planes_of(bits)) {
            let words = buffer.len() * plane.bits as usize / 4;
            pack(buffer, plane, writer.room(words));
            writer.write(words);
        }
    }
    for writer in writers {
        writer.finish();
    }
}

struct QuantizeCodes<'a, T> {
    x: &'a [T],
    scale: &'a [f32],
    zero_point: Option<&'a [f32]>,
    layout: &'a ScaleLayout,
    bits: BitWidth,
}

impl<T: Sample> Codes for QuantizeCodes<'_, T> {
    type State = Runs;

    fn begin(&self, start: usize) -> Runs {
        Runs::new(self.layout, start)
    }

    #[inline(always)]
    fn codes(&self, runs: &mut Runs, start: usize, len: usize, out: &mut [u64]) {
        let Self { x, scale, zero_point, bits, .. } = *self;
        let sample = PhantomData;
        let out = &mut bytemuck::cast_slice_mut(out)[..len];
        for (index, out) in out.chunks_mut(PIECE).enumerate() {
            let x = input(x, start + index * PIECE, out.len());
            match zero_point {
                None => map_runs(&ToByte::<T, false> { scale, zero_point: &[], bits, sample }, runs, x, out),
                Some(zero_point) => {
                    map_runs(&ToByte::<T, true> { scale, zero_point, bits, sample }, runs, x, out);
                }
            }
        }
    }
}

/// To signed codes, or to unsigned ones with zero points.
struct ToByte<'a, T, const UNSIGNED: bool> {
    scale: &'a [f32],
    zero_point: &'a [f32],
    bits: BitWidth,
    sample: PhantomData<T>,
}

impl<T: Sample, const UNSIGNED: bool> Map for ToByte<'_, T, UNSIGNED> {
    type In = T;
    type Out = u8;
    /// With the zero point.
    type Constants = (Quantizer, f32);

    #[inline(always)]
    fn constants(&self, j: usize) -> (Quantizer, f32) {
        match UNSIGNED {
            false => (Quantizer::signed(self.scale[j], self.bits), 0.0),
            true => (Quantizer::unsigned(self.scale[j], self.bits), self.zero_point[j]),
        }
    }

    #[inline(always)]
    fn apply((quantizer, zero): (Quantizer, f32), x: T) -> u8 {
        let x = if UNSIGNED { x.widen() - zero } else { x.widen() };
        quantizer.byte(quantizer.quotient(x))
    }
}

struct SwitchCodes<'a> {
    words: &'a [u32],
    stored: BitWidth,
    active: BitWidth,
}

impl Codes for SwitchCodes<'_> {
    type State = ();

    fn begin(&self, _start: usize) {}

    #[inline(always)]
    fn codes(&self, (): &mut (), start: usize, _len: usize, out: &mut [u64]) {
        let Self { words, stored, active } = *self;
        if stored == active {
            return unpack(words, stored, start, 0, out);
        }
        if stored == BitWidth::B8 {
            let bytes = bytemuck::cast_slice(input(words, start / 4, out.len() * 2));
            return switch(bytes, stored, active, out);
        }
        let mut buffer = [0u64; BATCH / 8];
        let codes = &mut buffer[..out.len()];
        unpack(words, stored, start, 8 - stored.bits(), codes);
        switch(bytemuck::cast_slice(codes), stored, active, out);
    }
}

/// The arguments of [`dequantize_packed`].
struct Dequantize<'a> {
    words: &'a [u32],
    scale: &'a [f32],
    zero_point: Option<&'a [f32]>,
    layout: &'a ScaleLayout,
    bits: BitWidth,
}

impl Pieces<f32> for Dequantize<'_> {
    type State = Runs;

    fn begin(&self, start: usize, _len: usize) -> Runs {
        Runs::new(self.layout, start)
    }

    #[inline(always)]
    fn piece(&self, runs: &mut Runs, start: usize, out: &mut [f32]) {
        let Self { words, scale, zero_point, bits, .. } = *self;
        let mut buffer = [0u64; PIECE / 8];
        let codes = &mut buffer[..out.len().next_multiple_of(WORD_BLOCK) / 8];
        unpack(words, bits, start, 0, codes);
        let codes = &bytemuck::cast_slice(codes)[..out.len()];
        match zero_point {
            None => map_runs(&ToValue::<false> { scale, zero_point: &[], bits }, runs, codes, out),
            Some(zero_point) => map_runs(&ToValue::<true> { scale, zero_point, bits }, runs, codes, out),
        }
    }
}

// SAFETY: `fill` writes all.
unsafe impl Operation<f32> for Dequantize<'_> {
    type Rest = ();

    fn elements(&self) -> usize {
        self.layout.elements()
    }

    fn compute(&self, isa: Isa, out: &mut [MaybeUninit<f32>]) {
        fill(isa, out, self);
    }
}

/// From signed codes without their sign's extension, or from unsigned ones with zero points.
struct ToValue<'a, const UNSIGNED: bool> {
    scale: &'a [f32],
    zero_point: &'a [f32],
    bits: BitWidth,
}

impl<const UNSIGNED: bool> Map for ToValue<'_, UNSIGNED> {
    type In = u8;
    type Out = f32;
    /// The scale, the zero point, and the bit that is the sign.
    type Constants = (f32, f32, u8);

    #[inline(always)]
    fn constants(&self, j: usize) -> Self::Constants {
        let zero = if UNSIGNED { self.zero_point[j] } else { 0.0 };
        (self.scale[j], zero, 1 << (self.bits.bits() - 1))
    }

    #[inline(always)]
    fn apply((scale, zero, sign): Self::Constants, code: u8) -> f32 {
        match UNSIGNED {
            false => scale * (i32::from(code ^ sign) - i32::from(sign)) as f32,
            true => scale * f32::from(code) + zero,
        }
    }
}
