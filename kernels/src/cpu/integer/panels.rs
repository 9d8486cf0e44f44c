//! Weights in panels: preparing, unpacking and switching them. The layout is in [`crate::integer`].

use super::super::blocks::{as_uninit, with_capacity};
use super::super::isa::{Isa, Kernel};
use super::super::pages::Huge;
use super::super::planes;
use crate::integer::{BLOCK_STEPS, PANEL, STEP, WeightLayout, offset};
use crate::layout::{BLOCK, planes as planes_of};
use dr_precision::BitWidth;
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Codes of a block, and bytes of each of its vectors.
const CODES: usize = PANEL * BLOCK;
const VECTOR: usize = PANEL * STEP;

/// A block of codes in the order of its steps, a byte each.
type Block = [u8; CODES];

/// [`crate::reference::prepare_panels`].
///
/// # Panics
/// If there are not as many codes as the weight has.
#[must_use]
pub fn prepare_panels(codes: &[i32], layout: &WeightLayout) -> Vec<u32> {
    assert_eq!(codes.len(), layout.outputs * layout.cols(), "a code for each weight");
    let (columns, blocks, bits) = (layout.columns(), layout.blocks(), layout.bits);
    let mut words = zeros(layout.words());
    let block_words = PANEL * bits.bits() as usize;
    words.par_chunks_exact_mut(block_words).enumerate().for_each(|(index, words)| {
        let (panel, columns) = (index / blocks, &columns[index % blocks * BLOCK..][..BLOCK]);
        let mut block = [0u8; CODES];
        for lane in 0..PANEL {
            let row = layout.output_of(panel * PANEL + lane).map(|output| &codes[output * layout.cols()..]);
            for (at, column) in columns.iter().enumerate() {
                let code = row.zip(*column).map_or(0, |(row, column)| row[column]);
                block[at / STEP * VECTOR + lane * STEP + at % STEP] = (code + offset(bits)) as u8;
            }
        }
        pack_block(&block, bits, bytemuck::cast_slice_mut(words));
    });
    words
}

/// The codes of panels, without offsets, in the order of their steps: 512 bytes for each block.
///
/// # Panics
/// If there are not whole blocks, or `out` has another size.
pub fn unpack_panels(words: &[u32], bits: BitWidth, out: &mut [i8]) {
    let blocks = words.len() / (PANEL * bits.bits() as usize);
    assert_eq!(out.len(), blocks * CODES, "512 codes for each block");
    Isa::detect().run(Unpack {
        words: bytemuck::cast_slice(words),
        bits,
        out: bytemuck::cast_slice_mut(out),
    });
}

/// Panels of `stored`-bit codes to panels of `active`-bit ones: the second rounding.
#[must_use]
pub fn switch_panels(words: &[u32], stored: BitWidth, active: BitWidth) -> Vec<u32> {
    let len = words.len() / stored.bits() as usize * active.bits() as usize;
    let mut out: Vec<u32> = with_capacity(len);
    Huge::Fresh.ask(out.as_ptr(), len);
    fill_switched(words, stored, active, &mut out.spare_capacity_mut()[..len]);
    // SAFETY: `fill_switched` has written the first `len` words, which is within the capacity.
    unsafe { out.set_len(len) };
    out
}

/// [`switch_panels`] into `out`.
///
/// # Panics
/// If `out` has another size.
pub fn switch_panels_into(words: &[u32], stored: BitWidth, active: BitWidth, out: &mut [u32]) {
    fill_switched(words, stored, active, as_uninit(out));
}

/// Writes all of `out`.
fn fill_switched(words: &[u32], stored: BitWidth, active: BitWidth, out: &mut [MaybeUninit<u32>]) {
    let [from_words, to_words] = [stored, active].map(|bits| PANEL * bits.bits() as usize);
    assert_eq!(out.len(), words.len() / from_words * to_words, "as many codes as there are");
    let tasks = out.par_chunks_mut(to_words * BLOCK).zip(words.par_chunks(from_words * BLOCK));
    tasks.for_each(|(out, words)| {
        out.iter_mut().for_each(|word| *word = MaybeUninit::new(0));
        // SAFETY: All of these words have just been written.
        let out = unsafe { &mut *(std::ptr::from_mut(out) as *mut [u32]) };
        if stored == active {
            return out.copy_from_slice(words);
        }
        let (words, out) = (bytemuck::cast_slice(words), bytemuck::cast_slice_mut(out));
        Isa::detect().run(Switch { words, out, stored, active });
    });
}

/// Zeros.
fn zeros(len: usize) -> Vec<u32> {
    let mut words: Vec<u32> = with_capacity(len);
    Huge::Fresh.ask(words.as_ptr(), len);
    words.resize(len, 0);
    words
}

struct Unpack<'a> {
    words: &'a [u32],
    bits: BitWidth,
    out: &'a mut [i8],
}

impl Kernel for Unpack<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: Isa) {
        unpack_into(self.words, self.bits, self.out);
    }
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

struct Switch<'a> {
    words: &'a [u8],
    out: &'a mut [u8],
    stored: BitWidth,
    active: BitWidth,
}

impl Kernel for Switch<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: Isa) {
        let Self { words, out, stored, active } = self;
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

/// Fields of a block to bytes, less `low`.
#[inline(always)]
fn unpack_block(words: &[u8], bits: BitWidth, low: u8, out: &mut [u8]) {
    match bits {
        BitWidth::B2 => unpack_planes::<2>(words, low, out),
        BitWidth::B3 => unpack_planes::<3>(words, low, out),
        BitWidth::B4 => unpack_planes::<4>(words, low, out),
        BitWidth::B5 => unpack_planes::<5>(words, low, out),
        BitWidth::B6 => unpack_planes::<6>(words, low, out),
        BitWidth::B7 => unpack_planes::<7>(words, low, out),
        BitWidth::B8 => out.copy_from_slice(words),
    }
}

#[inline(always)]
fn unpack_planes<const BITS: u32>(words: &[u8], low: u8, out: &mut [u8]) {
    for step in 0..BLOCK_STEPS as u32 {
        let mut codes: Lanes = [0; VECTOR / 8];
        // Planes as in `layout::planes`: written out, so that every shift is by a constant number of bits.
        if BITS & 4 != 0 {
            add_field::<4>(words, 0, step, BITS & 3, &mut codes);
        }
        if BITS & 2 != 0 {
            add_field::<2>(words, BITS & 4, step, BITS & 1, &mut codes);
        }
        if BITS & 1 != 0 {
            add_field::<1>(words, BITS & 6, step, 0, &mut codes);
        }
        let out = &mut out[step as usize * VECTOR..][..VECTOR];
        for (out, code) in out.iter_mut().zip(bytemuck::cast_slice::<u64, u8>(&codes)) {
            *out = code.wrapping_sub(low);
        }
    }
}

#[inline(always)]
fn add_field<const PLANE: u32>(words: &[u8], first: u32, step: u32, shift: u32, codes: &mut Lanes) {
    let in_vector = 8 / PLANE;
    let vector = lanes(&words[(first + step / in_vector) as usize * VECTOR..][..VECTOR]);
    let from = step % in_vector * PLANE;
    for (code, word) in codes.iter_mut().zip(vector) {
        *code |= (word >> from & low_bits(PLANE)) << shift;
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
