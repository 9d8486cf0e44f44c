//! Weights in panels: preparing, unpacking and switching them. The layout is in [`crate::integer`].

use super::super::isa::{Isa, Kernel};
use crate::integer::{BLOCK_STEPS, PANEL, STEP, WeightLayout, offset};
use crate::layout::{BLOCK, planes};
use dr_precision::{BitWidth, semantics};
use rayon::prelude::*;

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
    let mut words = vec![0; layout.words()];
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
    if stored == active {
        return words.to_vec();
    }
    let [from_words, to_words] = [stored, active].map(|bits| PANEL * bits.bits() as usize);
    let mut out = vec![0; words.len() / from_words * to_words];
    let tasks = out.par_chunks_mut(to_words * BLOCK).zip(words.par_chunks(from_words * BLOCK));
    tasks.for_each(|(out, words)| {
        let (words, out) = (bytemuck::cast_slice(words), bytemuck::cast_slice_mut(out));
        Isa::detect().run(Switch { words, out, stored, active });
    });
    out
}

struct Unpack<'a> {
    words: &'a [u8],
    bits: BitWidth,
    out: &'a mut [u8],
}

impl Kernel for Unpack<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: Isa) {
        let low = offset(self.bits) as u8;
        let blocks = self.words.chunks_exact(VECTOR * self.bits.bits() as usize);
        for (words, out) in blocks.zip(self.out.chunks_exact_mut(CODES)) {
            unpack_block(words, self.bits, out);
            out.iter_mut().for_each(|code| *code = code.wrapping_sub(low));
        }
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
        let mut block = [0u8; CODES];
        let blocks = words.chunks_exact(VECTOR * stored.bits() as usize);
        for (words, out) in blocks.zip(out.chunks_exact_mut(VECTOR * active.bits() as usize)) {
            unpack_block(words, stored, &mut block);
            // Codes of 8 bits are without offset.
            let (from, to) = (offset(stored), offset(active));
            for code in &mut block {
                let signed =
                    if stored == BitWidth::B8 { i32::from(*code as i8) } else { i32::from(*code) - from };
                *code = (semantics::switch(signed, stored, active) + to) as u8;
            }
            pack_block(&block, active, out);
        }
    }
}

/// Fields of a block to bytes; offsets stay.
#[inline(always)]
fn unpack_block(words: &[u8], bits: BitWidth, out: &mut [u8]) {
    for plane in planes(bits) {
        let in_vector = 8 / plane.bits as usize;
        let mask = ((1u32 << plane.bits) - 1) as u8;
        for (step, out) in out.chunks_exact_mut(VECTOR).enumerate() {
            let vector = &words[(plane.offset as usize + step / in_vector) * VECTOR..][..VECTOR];
            let from = step % in_vector * plane.bits as usize;
            if plane.offset == 0 {
                out.iter_mut()
                    .zip(vector)
                    .for_each(|(out, byte)| *out = (byte >> from & mask) << plane.shift);
            } else {
                out.iter_mut()
                    .zip(vector)
                    .for_each(|(out, byte)| *out |= (byte >> from & mask) << plane.shift);
            }
        }
    }
}

/// Bytes, with offsets, to fields of a block.
#[inline(always)]
fn pack_block(block: &Block, bits: BitWidth, words: &mut [u8]) {
    words.fill(0);
    for plane in planes(bits) {
        let in_vector = 8 / plane.bits as usize;
        let mask = ((1u32 << plane.bits) - 1) as u8;
        for step in 0..BLOCK_STEPS {
            let codes = &block[step * VECTOR..][..VECTOR];
            let vector = &mut words[(plane.offset as usize + step / in_vector) * VECTOR..][..VECTOR];
            let to = step % in_vector * plane.bits as usize;
            vector.iter_mut().zip(codes).for_each(|(word, code)| *word |= (code >> plane.shift & mask) << to);
        }
    }
}
