//! Weights in groups: panels whose blocks have their scales and offsets with them.
//!
//! A block of `b` bits has the `b` vectors of 64 bytes that it has in other panels (codes of 8 bits with an offset, too, so that all are
//! unsigned), and one vector more: the scales and the offsets of its 16 outputs, in halves.

use super::super::super::pages::Words;
use super::super::super::sample::Sample;
use super::super::panels::{codes_of, switch_blocks, unpack_block};
use crate::integer::{PANEL, WeightLayout};
use crate::layout::BLOCK;
use dr_precision::BitWidth;
use half::f16;

/// Words of a block.
const fn block_words(bits: BitWidth) -> usize {
    (bits.bits() as usize + 1) * PANEL
}

/// What makes 8-bit codes unsigned, in every byte.
const fn signs(bits: BitWidth) -> u32 {
    if bits.bits() == 8 { 0x8080_8080 } else { 0 }
}

/// Words of a weight in groups.
pub(crate) fn grouped_words(layout: &WeightLayout) -> usize {
    layout.group_panels() * layout.blocks() * block_words(layout.bits())
}

/// The codes of panels of `stored` bits at the width of `layout`, with their scales and offsets, `[outputs, groups]`.
pub(crate) fn group_words(
    words: &[u32], stored: BitWidth, layout: &WeightLayout, [scales, offsets]: [&[f16]; 2],
) -> Words {
    let (bits, blocks) = (layout.bits(), layout.blocks());
    let [from_words, code_words] = [stored, bits].map(|bits| blocks * PANEL * bits.bits() as usize);
    Words::filled(grouped_words(layout), blocks * block_words(bits), &|panel, out| {
        let mut codes = vec![0u32; code_words];
        let from = &words[panel * from_words..][..from_words];
        switch_blocks(from, stored, bits, &mut codes);
        let codes = codes.chunks_exact(PANEL * bits.bits() as usize);
        for (block, (out, codes)) in out.chunks_exact_mut(block_words(bits)).zip(codes).enumerate() {
            let (out_codes, halves) = out.split_at_mut(codes.len());
            for (out, codes) in out_codes.iter_mut().zip(codes) {
                *out = codes ^ signs(bits);
            }
            let (out_scales, out_offsets) = bytemuck::cast_slice_mut::<u32, u16>(halves).split_at_mut(PANEL);
            for (out, values) in [(out_scales, scales), (out_offsets, offsets)] {
                let of_panel = values.chunks_exact(blocks).skip(panel * PANEL);
                for (out, values) in out.iter_mut().zip(of_panel) {
                    *out = values[block].to_bits();
                }
            }
        }
    })
}

/// The codes, `[outputs, inputs]`.
pub(crate) fn group_codes(words: &[u32], layout: &WeightLayout) -> Vec<i32> {
    let bits = layout.bits();
    let blocks = words.chunks_exact(block_words(bits));
    let codes = blocks.flat_map(|block| &block[..block.len() - PANEL]).map(|word| word ^ signs(bits));
    codes_of(&codes.collect::<Vec<_>>(), layout)
}

/// The scales and the offsets, `[outputs, groups]`.
pub(crate) fn group_scales(words: &[u32], layout: &WeightLayout) -> [Vec<f32>; 2] {
    let (bits, blocks) = (layout.bits(), layout.blocks());
    [0, PANEL].map(|first| {
        let value = |i: usize| {
            let (output, block) = (i / blocks, i % blocks);
            let block = &words[(output / PANEL * blocks + block) * block_words(bits)..][..block_words(bits)];
            let halves: &[u16] = bytemuck::cast_slice(&block[block.len() - PANEL..]);
            f16::from_bits(halves[first + output % PANEL]).widen()
        };
        (0..layout.outputs() * blocks).map(value).collect()
    })
}

/// Unpacks blocks: 512 bytes of codes, 16 scales, and 16 offsets less `low` times the scale.
#[inline(always)]
pub(super) fn unpack_blocks(words: &[u8], bits: BitWidth, low: f32, out: &mut [u8]) {
    let code_bytes = bits.bits() as usize * 64;
    for (words, out) in words.chunks_exact(code_bytes + 64).zip(out.chunks_exact_mut(10 * 64)) {
        let (codes, values) = out.split_at_mut(PANEL * BLOCK);
        unpack_block(&words[..code_bytes], bits, 0, codes);
        let halves: [[u16; PANEL]; 2] = bytemuck::pod_read_unaligned(&words[code_bytes..]);
        let values: &mut [f32] = bytemuck::cast_slice_mut(values);
        for lane in 0..PANEL {
            let scale = f16::from_bits(halves[0][lane]).widen();
            values[lane] = scale;
            values[PANEL + lane] = f16::from_bits(halves[1][lane]).widen() - low * scale;
        }
    }
}
