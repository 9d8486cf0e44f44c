//! Quantizing to packed codes, switching and dequantizing them.

use super::blocks::{
    LINE, PIECE, Pieces, TASK, Writer, as_uninit, collect, fill, input, streams, with_capacity,
};
use super::codes::Quantizer;
use super::isa::{Isa, Kernel};
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
#[must_use]
pub fn quantize_pack<T: Sample>(
    x: &[T], scale: &[f32], zero_point: Option<&[f32]>, layout: &ScaleLayout, bits: BitWidth,
) -> Vec<u32> {
    assert_eq!(x.len(), layout.elements());
    let codes = QuantizeCodes { x, scale, zero_point, layout, bits };
    collect_packed(Isa::detect(), &codes, x.len(), bits)
}

/// [`quantize_pack`] on `isa` into `out`.
///
/// # Panics
/// If `out` has not [`packed_words`] words, or the machine has no `isa`.
pub fn quantize_pack_into<T: Sample>(
    isa: Isa, x: &[T], scale: &[f32], zero_point: Option<&[f32]>, layout: &ScaleLayout, bits: BitWidth,
    out: &mut [u32],
) {
    assert_eq!(x.len(), layout.elements());
    let codes = QuantizeCodes { x, scale, zero_point, layout, bits };
    fill_packed(isa, &codes, x.len(), bits, as_uninit(out));
}

/// [`crate::reference::switch_packed`].
#[must_use]
pub fn switch_packed(words: &[u32], elements: usize, stored: BitWidth, active: BitWidth) -> Vec<u32> {
    collect_packed(Isa::detect(), &SwitchCodes { words, stored, active }, elements, active)
}

/// [`switch_packed`] on `isa` into `out`.
///
/// # Panics
/// If `out` has not [`packed_words`] words, or the machine has no `isa`.
pub fn switch_packed_into(
    isa: Isa, words: &[u32], elements: usize, stored: BitWidth, active: BitWidth, out: &mut [u32],
) {
    fill_packed(isa, &SwitchCodes { words, stored, active }, elements, active, as_uninit(out));
}

/// [`crate::reference::dequantize_packed`].
#[must_use]
pub fn dequantize_packed(
    words: &[u32], scale: &[f32], zero_point: Option<&[f32]>, layout: &ScaleLayout, bits: BitWidth,
) -> Vec<f32> {
    let dequantize = Dequantize { words, scale, zero_point, layout, bits };
    collect(Isa::detect(), layout.elements(), &dequantize).0
}

/// [`dequantize_packed`] on `isa` into `out`.
///
/// # Panics
/// If `out` has not as many elements as `layout`, or the machine has no `isa`.
pub fn dequantize_packed_into(
    isa: Isa, words: &[u32], scale: &[f32], zero_point: Option<&[f32]>, layout: &ScaleLayout, bits: BitWidth,
    out: &mut [f32],
) {
    assert_eq!(out.len(), layout.elements());
    fill(isa, out, &Dequantize { words, scale, zero_point, layout, bits });
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

fn collect_packed(isa: Isa, codes: &impl Codes, elements: usize, bits: BitWidth) -> Vec<u32> {
    let len = packed_words(elements, bits);
    let mut words = with_capacity(len);
    fill_packed(isa, codes, elements, bits, &mut words.spare_capacity_mut()[..len]);
    // SAFETY: `fill_packed` has initialised the first `len` words, which is within the capacity.
    unsafe { words.set_len(len) };
    words
}

/// Writes all of `out`.
fn fill_packed(
    isa: Isa, codes: &impl Codes, elements: usize, bits: BitWidth, mut out: &mut [MaybeUninit<u32>],
) {
    assert_eq!(out.len(), packed_words(elements, bits));
    let streams = streams(size_of_val(out));
    let padded = elements.next_multiple_of(WORD_BLOCK);
    let mut whole = Planes::default();
    for (plane, of_width) in whole.iter_mut().zip(planes_of(bits)) {
        *plane = out.split_off_mut(..padded / WORD_BLOCK * of_width.bits as usize).expect("counted above");
    }
    let run = |(index, planes): (usize, Planes)| {
        let start = index * TASK;
        let len = TASK.min(elements - start);
        isa.run(PackTask { codes, bits, start, len, planes, streams });
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

/// Computes and packs the codes of one task.
struct PackTask<'a, C> {
    codes: &'a C,
    bits: BitWidth,
    start: usize,
    len: usize,
    planes: Planes<'a>,
    streams: bool,
}

impl<C: Codes> Kernel for PackTask<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run(self, isa: Isa) {
        let Self { codes, bits, start, len, planes, streams } = self;
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
        let out = &mut bytemuck::cast_slice_mut(out)[..len];
        for (index, out) in out.chunks_mut(PIECE).enumerate() {
            let x = input(x, start + index * PIECE, out.len());
            match zero_point {
                None => map_runs(&SignedByte { scale, bits, sample: PhantomData }, runs, x, out),
                Some(zero_point) => {
                    map_runs(&UnsignedByte { scale, zero_point, bits, sample: PhantomData }, runs, x, out);
                }
            }
        }
    }
}

/// To signed codes.
struct SignedByte<'a, T> {
    scale: &'a [f32],
    bits: BitWidth,
    sample: PhantomData<T>,
}

impl<T: Sample> Map for SignedByte<'_, T> {
    type In = T;
    type Out = u8;
    type Constants = Quantizer;

    #[inline(always)]
    fn constants(&self, j: usize) -> Quantizer {
        Quantizer::signed(self.scale[j], self.bits)
    }

    #[inline(always)]
    fn apply(quantizer: Quantizer, x: T) -> u8 {
        quantizer.byte(quantizer.quotient(x.widen()))
    }
}

/// To unsigned codes.
struct UnsignedByte<'a, T> {
    scale: &'a [f32],
    zero_point: &'a [f32],
    bits: BitWidth,
    sample: PhantomData<T>,
}

impl<T: Sample> Map for UnsignedByte<'_, T> {
    type In = T;
    type Out = u8;
    type Constants = (Quantizer, f32);

    #[inline(always)]
    fn constants(&self, j: usize) -> (Quantizer, f32) {
        (Quantizer::unsigned(self.scale[j], self.bits), self.zero_point[j])
    }

    #[inline(always)]
    fn apply((quantizer, zero): (Quantizer, f32), x: T) -> u8 {
        quantizer.byte(quantizer.quotient(x.widen() - zero))
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
            None => map_runs(&SignedValue { scale, bits }, runs, codes, out),
            Some(zero_point) => map_runs(&UnsignedValue { scale, zero_point }, runs, codes, out),
        }
    }
}

/// From signed codes without their sign's extension.
struct SignedValue<'a> {
    scale: &'a [f32],
    bits: BitWidth,
}

impl Map for SignedValue<'_> {
    type In = u8;
    type Out = f32;
    /// The scale, and the bit that is the sign.
    type Constants = (f32, u8);

    #[inline(always)]
    fn constants(&self, j: usize) -> (f32, u8) {
        (self.scale[j], 1 << (self.bits.bits() - 1))
    }

    #[inline(always)]
    fn apply((scale, sign): (f32, u8), code: u8) -> f32 {
        scale * (i32::from(code ^ sign) - i32::from(sign)) as f32
    }
}

/// From unsigned codes.
struct UnsignedValue<'a> {
    scale: &'a [f32],
    zero_point: &'a [f32],
}

impl Map for UnsignedValue<'_> {
    type In = u8;
    type Out = f32;
    /// The scale and the zero point.
    type Constants = (f32, f32);

    #[inline(always)]
    fn constants(&self, j: usize) -> (f32, f32) {
        (self.scale[j], self.zero_point[j])
    }

    #[inline(always)]
    fn apply((scale, zero): (f32, f32), code: u8) -> f32 {
        scale * f32::from(code) + zero
    }
}
