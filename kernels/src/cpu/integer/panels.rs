//! Weights in panels: preparing, unpacking and switching them. The layout is in [`crate::integer`].

use super::super::blocks::with_capacity;
use super::super::isa::{Isa, run_on};
use super::super::pages::{self, Fill, Huge, Words};
use super::super::planes;
use super::decode::{self, Bytes, for_width};
use crate::KernelError;
use crate::error::size;
use crate::integer::{BLOCK_STEPS, PANEL, STEP, WeightLayout, offset};
use crate::layout::{BLOCK, packed_words, planes as planes_of};
use dr_precision::BitWidth;
use std::ops::Range;
use std::sync::atomic::{AtomicU8, Ordering};

/// Codes of a block, and bytes of each of its vectors.
const CODES: usize = PANEL * BLOCK;
const VECTOR: usize = PANEL * STEP;

/// A block of codes in the order of its steps, a byte each.
type Block = [u8; CODES];

/// Where the codes of a weight come from: `[outputs, cols]`.
#[derive(Clone, Copy, Debug)]
pub enum Codes<'a> {
    /// A byte each.
    Bytes(&'a [i8]),
    /// Words in the order of [`crate::layout`].
    Packed(&'a [u32]),
}

/// A weight's codes in panels, as elements of a tensor: [`crate::reference::prepare_panels`].
///
/// # Errors
/// [`KernelError::Size`] or [`KernelError::WordCount`] for another number of codes, [`KernelError::CodeRange`] for codes that the width does
/// not have.
pub fn prepare(codes: Codes, layout: &WeightLayout) -> Result<Vec<u32>, KernelError> {
    prepared(codes, layout, |part, fill| vec_of(layout.words(), part, fill))
}

/// [`prepare`], to memory of this crate's own.
///
/// # Errors
/// Those of [`prepared`].
pub(crate) fn prepare_words(codes: Codes, layout: &WeightLayout) -> Result<Words, KernelError> {
    prepared(codes, layout, |part, fill| Words::filled(layout.words(), part, fill))
}

/// A weight's codes in panels. `make` makes their memory, of parts of as many words as it is told.
///
/// # Errors
/// [`KernelError::Size`], [`KernelError::WordCount`] for another number of codes than the weight has,
/// [`KernelError::CodeRange`] for a code that its width does not have.
pub(super) fn prepared<M>(
    codes: Codes, layout: &WeightLayout, make: impl FnOnce(usize, Fill) -> M,
) -> Result<M, KernelError> {
    let (cols, bits) = (layout.cols(), layout.bits());
    let elements = layout.outputs() * cols;
    match codes {
        Codes::Bytes(codes) => size("codes of a weight", &[codes.len()], &[elements])?,
        Codes::Packed(words) => {
            let (found, expected) = (words.len(), packed_words(elements, bits));
            if found != expected {
                return Err(KernelError::WordCount { found, expected, elements, bits: bits.bits() });
            }
        }
    }
    let (steps, isa) = (Steps::of(layout), Isa::detect());
    let seen = AtomicU8::new(0);
    let panels = make(layout.blocks() * PANEL * bits.bits() as usize, &|panel, out| {
        let first = layout.output_of(panel * PANEL).unwrap_or_default();
        let rows = (panel * PANEL..(panel + 1) * PANEL).filter_map(|row| layout.output_of(row)).count();
        let range = first * cols..(first + rows) * cols;
        let out = bytemuck::cast_slice_mut(out);
        let bits_of = run_on!(isa, |_| fill_panel(codes, range, cols, &steps, bits, out));
        seen.fetch_or(bits_of, Ordering::Relaxed);
    });
    match codes {
        Codes::Bytes(codes) if bits != BitWidth::B8 && seen.into_inner() >> bits.bits() != 0 => {
            let (low, high) = (bits.signed_min(), bits.signed_max());
            let found = codes.iter().map(|&code| i32::from(code)).find(|code| !(low..=high).contains(code));
            Err(KernelError::CodeRange { found: found.unwrap_or_default(), low, high, bits: bits.bits() })
        }
        _ => Ok(panels),
    }
}

/// Codes of a range, from words in the order of [`crate::layout`].
#[inline(always)]
fn unpack_range<'a>(words: &[u32], bits: BitWidth, range: Range<usize>, room: &'a mut Vec<u64>) -> &'a [i8] {
    if range.is_empty() {
        return &[];
    }
    let start = range.start / BLOCK * BLOCK;
    room.resize((range.end.next_multiple_of(BLOCK) - start) / 8, 0);
    let above = 8 - bits.bits();
    planes::unpack(words, bits, start, above, room);
    let codes = bytemuck::cast_slice_mut::<u64, i8>(room);
    codes.iter_mut().for_each(|code| *code >>= above);
    &codes[range.start - start..range.end - start]
}

/// Which columns the steps of a row are.
pub(super) struct Steps {
    /// The first column of each step, and how many codes it has: none of those of padding.
    pub steps: Vec<(usize, usize)>,
    /// From the column of a code to that of the next one in the step.
    pub apart: usize,
}

impl Steps {
    pub(super) fn of(layout: &WeightLayout) -> Self {
        let columns = layout.columns();
        let step = |columns: &[Option<usize>; STEP]| {
            (columns[0].unwrap_or_default(), columns.iter().flatten().count())
        };
        let apart = if layout.is_depthwise() { 1 } else { layout.taps() };
        Self { steps: columns.as_chunks().0.iter().map(step).collect(), apart }
    }
}

/// Puts up to 16 rows of codes into a panel, and says which bits their codes have, with offsets.
#[inline(always)]
fn fill_panel(
    codes: Codes, range: Range<usize>, cols: usize, steps: &Steps, bits: BitWidth, out: &mut [u8],
) -> u8 {
    let mut unpacked = vec![];
    let codes = match codes {
        Codes::Bytes(codes) => &codes[range],
        Codes::Packed(words) => unpack_range(words, bits, range, &mut unpacked),
    };
    let low = offset(bits) as u8;
    let mut seen = 0;
    let blocks = steps.steps.as_chunks::<BLOCK_STEPS>().0;
    for (steps_of, out) in blocks.iter().zip(out.chunks_exact_mut(VECTOR * bits.bits() as usize)) {
        let mut block = [0u8; CODES];
        let first = steps_of[0].0;
        let in_a_row = steps.apart == 1
            && steps_of.iter().enumerate().all(|(at, step)| *step == (first + at * STEP, STEP));
        for (lane, row) in codes.chunks_exact(cols.max(1)).enumerate() {
            if in_a_row {
                let row: &[[i8; STEP]; BLOCK_STEPS] =
                    bytemuck::from_bytes(bytemuck::cast_slice(&row[first..][..BLOCK]));
                for (step, codes) in row.iter().enumerate() {
                    block[step * VECTOR + lane * STEP..][..STEP].copy_from_slice(bytemuck::cast_slice(codes));
                }
                continue;
            }
            for (step, &(first, count)) in steps_of.iter().enumerate() {
                for code in 0..count {
                    block[step * VECTOR + lane * STEP + code] = row[first + code * steps.apart] as u8;
                }
            }
        }
        for code in &mut block {
            *code = code.wrapping_add(low);
            seen |= *code;
        }
        pack_block(&block, bits, out);
    }
    seen
}

/// `len` words, filled in parts.
fn vec_of(len: usize, part: usize, fill: Fill) -> Vec<u32> {
    let mut out: Vec<u32> = with_capacity(len);
    Huge::Fresh.ask(out.as_ptr(), len);
    pages::fill(&mut out.spare_capacity_mut()[..len], part, fill);
    // SAFETY: `fill` has written the first `len` words, which is within the capacity.
    unsafe { out.set_len(len) };
    out
}

/// The codes of panels, without offsets, in the order of their steps: 512 bytes for each block.
///
/// # Panics
/// If there are not whole blocks, or `out` has another size.
pub fn unpack_panels(words: &[u32], bits: BitWidth, out: &mut [i8]) {
    let blocks = words.len() / (PANEL * bits.bits() as usize);
    assert_eq!(out.len(), blocks * CODES, "512 codes for each block");
    #[cfg(target_arch = "x86_64")]
    if Isa::detect() == Isa::Avx512 && bits != BitWidth::B8 {
        // SAFETY: The machine has the instructions; there are as many blocks as codes of them.
        return unsafe { unpack_avx512(bytemuck::cast_slice(words), bits, out) };
    }
    run_on!(Isa::detect(), |_| unpack_into(words, bits, out));
}

/// [`unpack_panels`] for less than 8 bits, with vectors that hold the codes of a step.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn unpack_avx512(words: &[u8], bits: BitWidth, out: &mut [i8]) {
    use std::arch::x86_64::{__m512i, _mm512_set1_epi8, _mm512_sub_epi8};
    let low = _mm512_set1_epi8(offset(bits) as i8);
    let blocks = words.chunks_exact(VECTOR * bits.bits() as usize).zip(out.chunks_exact_mut(CODES));
    for_width!(bits, BITS, {
        for (words, out) in blocks {
            let out = out.as_mut_ptr().cast::<__m512i>();
            macro_rules! steps {
                ($($step:literal)*) => {$({
                    // SAFETY: A block has as many vectors, and as many codes.
                    unsafe {
                        let codes = decode::step::<__m512i, BITS>(words.as_ptr(), $step);
                        out.add($step).write_unaligned(_mm512_sub_epi8(codes, low));
                    }
                })*};
            }
            const { assert!(BLOCK_STEPS == 8) };
            steps!(0 1 2 3 4 5 6 7);
        }
    });
}

/// Panels of `stored`-bit codes to panels of `active`-bit ones: the second rounding.
#[must_use]
pub fn switch_panels(words: &[u32], stored: BitWidth, active: BitWidth) -> Vec<u32> {
    switched(words, stored, active, vec_of)
}

/// [`switch_panels`], to memory of this crate's own.
pub(crate) fn switch_words(words: &[u32], stored: BitWidth, active: BitWidth) -> Words {
    switched(words, stored, active, Words::filled)
}

fn switched<M>(
    words: &[u32], stored: BitWidth, active: BitWidth, make: impl FnOnce(usize, usize, Fill) -> M,
) -> M {
    let [from_words, to_words] = [stored, active].map(|bits| PANEL * bits.bits() as usize);
    make(words.len() / from_words * to_words, to_words * BLOCK, &|index, out| {
        let from = &words[index * from_words * BLOCK..][..out.len() / to_words * from_words];
        switch_blocks(from, stored, active, out);
    })
}

/// [`switch_panels`] of some blocks.
pub(super) fn switch_blocks(words: &[u32], stored: BitWidth, active: BitWidth, out: &mut [u32]) {
    if stored == active {
        return out.copy_from_slice(words);
    }
    let (words, out) = (bytemuck::cast_slice(words), bytemuck::cast_slice_mut(out));
    run_on!(Isa::detect(), |_| switch_into(words, stored, active, out));
}

/// The codes of panels, `[outputs, cols]`.
pub(crate) fn codes_of(words: &[u32], layout: &WeightLayout) -> Vec<i32> {
    let (cols, steps) = (layout.cols(), Steps::of(layout));
    let panel_words = layout.blocks() * PANEL * layout.bits().bits() as usize;
    let mut codes = vec![0; layout.outputs() * cols];
    let mut bytes = vec![0i8; layout.blocks() * CODES];
    for (panel, words) in words.chunks_exact(panel_words.max(1)).enumerate() {
        unpack_panels(words, layout.bits(), &mut bytes);
        for lane in 0..PANEL {
            let Some(output) = layout.output_of(panel * PANEL + lane) else { continue };
            let row = &mut codes[output * cols..][..cols];
            for (&(first, count), bytes) in steps.steps.iter().zip(bytes.chunks_exact(VECTOR)) {
                for code in 0..count {
                    row[first + code * steps.apart] = i32::from(bytes[lane * STEP + code]);
                }
            }
        }
    }
    codes
}

/// [`unpack_panels`], compiled into whatever calls it.
#[inline(always)]
pub(super) fn unpack_into(words: &[u32], bits: BitWidth, out: &mut [i8]) {
    let (words, out): (&[u8], &mut [u8]) = (bytemuck::cast_slice(words), bytemuck::cast_slice_mut(out));
    let low = offset(bits) as u8;
    let blocks = words.chunks_exact(VECTOR * bits.bits() as usize);
    for (words, out) in blocks.zip(out.chunks_exact_mut(CODES)) {
        unpack_block(words, bits, low, out);
    }
}

#[inline(always)]
fn switch_into(words: &[u8], stored: BitWidth, active: BitWidth, out: &mut [u8]) {
    let (mut block, mut rounded) = ([0u8; CODES], [0u64; CODES / 8]);
    let above = 8 - stored.bits();
    // Inverting the highest bit adds or takes away the offset; codes of 8 bits are stored without it.
    let signed = if stored == BitWidth::B8 { 0 } else { low_bits(1) << 7 };
    let offset = low_bits(1) << (active.bits() - 1);
    let blocks = words.chunks_exact(VECTOR * stored.bits() as usize);
    for (words, out) in blocks.zip(out.chunks_exact_mut(VECTOR * active.bits() as usize)) {
        unpack_block(words, stored, 0, &mut block);
        let mut top: [u64; CODES / 8] = bytemuck::cast(block);
        for codes in &mut top {
            *codes = (*codes << above) ^ signed;
        }
        planes::switch(bytemuck::cast_slice(&top), stored, active, &mut rounded);
        for codes in &mut rounded {
            *codes ^= offset;
        }
        pack_block(bytemuck::cast_ref(&rounded), active, out);
    }
}

/// Eight codes at once.
type Lanes = [u64; VECTOR / 8];

#[inline(always)]
fn lanes(bytes: &[u8]) -> Lanes {
    bytemuck::pod_read_unaligned(bytes)
}

/// In every byte the lowest `bits` bits.
const fn low_bits(bits: u32) -> u64 {
    0x0101_0101_0101_0101 * ((1 << bits) - 1)
}

/// Fields of a block to bytes, less `low`, compiled into whatever calls it.
#[inline(always)]
pub(super) fn unpack_block(words: &[u8], bits: BitWidth, low: u8, out: &mut [u8]) {
    match bits {
        BitWidth::B8 => out.copy_from_slice(words),
        _ => for_width!(bits, BITS, unpack_planes::<BITS>(words, low, out)),
    }
}

#[inline(always)]
fn unpack_planes<const BITS: u32>(words: &[u8], low: u8, out: &mut [u8]) {
    assert_eq!((words.len(), out.len()), (VECTOR * BITS as usize, CODES), "a block");
    // One by one, so that all shifts are constants: compilers leave some widths in a loop.
    macro_rules! steps {
        ($($step:literal)*) => {
            $(unpack_step::<BITS, $step>(words, low, &mut out[$step * VECTOR..][..VECTOR]);)*
        };
    }
    const { assert!(BLOCK_STEPS == 8) };
    steps!(0 1 2 3 4 5 6 7);
}

#[inline(always)]
fn unpack_step<const BITS: u32, const AT: u32>(words: &[u8], low: u8, out: &mut [u8]) {
    // SAFETY: The block has so many vectors, and plain integers need no instructions to be enabled.
    let mut codes: Lanes = unsafe { decode::step::<Lanes, BITS>(words.as_ptr(), AT) };
    // Byte by byte, in whole words: codes and `low` are below 128, so nothing is borrowed from the byte above.
    let (high, low) = (0x8080_8080_8080_8080, u64::from_ne_bytes([low; 8]));
    codes.iter_mut().for_each(|word| *word = ((*word | high) - low) ^ high);
    out.copy_from_slice(bytemuck::bytes_of(&codes));
}

impl Bytes for Lanes {
    #[inline(always)]
    unsafe fn or(mut self, other: Self) -> Self {
        self.iter_mut().zip(other).for_each(|(word, other)| *word |= other);
        self
    }

    #[inline(always)]
    unsafe fn field(mut self, up: i32, mask: u8) -> Self {
        let mask = u64::from_ne_bytes([mask; 8]);
        for word in &mut self {
            *word = (if up < 0 { *word >> -up } else { *word << up }) & mask;
        }
        self
    }
}

/// Bytes, with offsets, to fields of a block.
#[inline(always)]
fn pack_block(block: &Block, bits: BitWidth, words: &mut [u8]) {
    for plane in planes_of(bits) {
        let in_vector = 8 / plane.bits;
        for vector in 0..plane.bits {
            let mut fields: Lanes = [0; VECTOR / 8];
            for field in 0..in_vector {
                let step = (vector * in_vector + field) as usize;
                let codes = lanes(&block[step * VECTOR..][..VECTOR]);
                for (fields, code) in fields.iter_mut().zip(codes) {
                    *fields |= (code >> plane.shift & low_bits(plane.bits)) << (field * plane.bits);
                }
            }
            let words = &mut words[(plane.offset + vector) as usize * VECTOR..][..VECTOR];
            words.copy_from_slice(bytemuck::cast_slice(&fields));
        }
    }
}
