//! Weights in groups: panels with scales and offsets, [`PackedPanel`]. Codes are unsigned, those of 8 bits, too.

use super::super::super::pages::Words;
use super::super::super::sample::Sample;
use super::super::dot::{PackedPanel, UnpackedPanel};
use super::super::panels::{codes_of, switch_blocks, unpack_block};
use crate::integer::{PANEL, WeightLayout};
use crate::layout::BLOCK;
use dr_precision::BitWidth;
use half::f16;
use std::ops::Range;

/// Of each output of a panel.
type Lanes = [f32; PANEL];

/// The largest signed byte, and the square of the largest unsigned one.
const LARGEST_OFFSET: f32 = 127.0;
const LARGEST_SCALE: f32 = 255.0 * 255.0;

/// What makes 8-bit codes unsigned, in every byte.
const fn signs(bits: BitWidth) -> u32 {
    if bits.bits() == 8 { 0x8080_8080 } else { 0 }
}

/// The panels of a weight.
pub(crate) fn packed_panel(layout: &WeightLayout) -> PackedPanel {
    PackedPanel { bits: layout.bits(), blocks: layout.blocks() }
}

/// Words of a weight in groups.
pub(crate) fn grouped_words(layout: &WeightLayout) -> usize {
    layout.group_panels() * packed_panel(layout).bytes() / size_of::<u32>()
}

/// The codes of panels of `stored` bits at the width of `layout`, with their scales and offsets, `[outputs, scale groups]`.
pub(crate) fn group_words(
    words: &[u32], stored: BitWidth, layout: &WeightLayout, scales: [&[f32]; 2],
) -> Words {
    let (bits, of_panel, groups) = (layout.bits(), packed_panel(layout), layout.scale_groups());
    let from_words = of_panel.blocks * PANEL * stored.bits() as usize;
    Words::filled(grouped_words(layout), of_panel.bytes() / size_of::<u32>(), &|panel, out| {
        let (head, codes) = out.split_at_mut(of_panel.codes_at() / size_of::<u32>());
        switch_blocks(&words[panel * from_words..][..from_words], stored, bits, codes);
        codes.iter_mut().for_each(|word| *word ^= signs(bits));
        let (factors, parts) = bytemuck::cast_slice_mut(head).split_at_mut(PackedPanel::FACTOR_BYTES);
        let factors: &mut [f32] = bytemuck::cast_slice_mut(factors);
        let outputs = layout.outputs().saturating_sub(panel * PANEL).min(PANEL);
        for lane in 0..outputs {
            let row = |values: &'_ [f32]| (panel * PANEL + lane) * groups..values.len();
            let [scales, offsets] = scales.map(|values| &values[row(values)][..groups]);
            let [of_scale, of_offset] = factors_of(bits, scales, offsets);
            (factors[lane], factors[PANEL + lane]) = (of_scale, of_offset);
            let blocks = parts.chunks_exact_mut(PackedPanel::scale_bytes(bits.bits()));
            for (block, part) in blocks.enumerate().take(of_panel.blocks) {
                let group = block * BLOCK / layout.run();
                put_part(bits, part, lane, [scales[group], offsets[group]], [of_scale, of_offset]);
            }
        }
    })
}

/// What the scales and the offsets of an output are parts of.
fn factors_of(bits: BitWidth, scales: &[f32], offsets: &[f32]) -> [f32; 2] {
    let [scale, offset] =
        [scales, offsets].map(|values| values.iter().fold(0.0f32, |most, x| most.max(x.abs())));
    match bits.bits() <= PackedPanel::SMALL {
        true => [scale / LARGEST_SCALE, offset / LARGEST_OFFSET],
        false => [scale, offset],
    }
}

/// Puts a scale and an offset, as parts of the factors, into those of a block.
fn put_part(bits: BitWidth, out: &mut [u8], lane: usize, values: [f32; 2], factors: [f32; 2]) {
    let mut parts = [0.0; 2];
    for (part, (value, factor)) in parts.iter_mut().zip(values.into_iter().zip(factors)) {
        *part = if factor > 0.0 { value / factor } else { 0.0 };
    }
    let [scale, offset] = parts;
    if bits.bits() <= PackedPanel::SMALL {
        // Parts are rounded, to bytes by the casts at most.
        (out[lane], out[PANEL + lane]) = (scale.sqrt().round() as u8, offset.round() as i8 as u8);
    } else {
        let halves: &mut [u16] = bytemuck::cast_slice_mut(out);
        [halves[lane], halves[PANEL + lane]] = parts.map(|part| f16::from_f32(part).to_bits());
    }
}

/// The scales and the offsets of a block, from what lies in memory.
#[inline(always)]
fn scales_of(bits: BitWidth, parts: &[u8], factors: &[Lanes; 2]) -> [Lanes; 2] {
    let mut values = [[0.0; PANEL]; 2];
    let [scales, offsets] = &mut values;
    for lane in 0..PANEL {
        let (scale, offset) = if bits.bits() <= PackedPanel::SMALL {
            let root = f32::from(parts[lane]);
            (root * root, f32::from(parts[PANEL + lane] as i8))
        } else {
            let half = |at: usize| f16::from_le_bytes([parts[2 * at], parts[2 * at + 1]]).widen();
            (half(lane), half(PANEL + lane))
        };
        (scales[lane], offsets[lane]) = (scale * factors[0][lane], offset * factors[1][lane]);
    }
    values
}

/// The factors of a panel, and what they are factors of, for each block.
#[inline(always)]
fn head(panel: &[u8], of_panel: PackedPanel) -> ([Lanes; 2], impl Iterator<Item = &[u8]>) {
    let (factors, parts) = panel.split_at(PackedPanel::FACTOR_BYTES);
    let parts = parts.chunks_exact(PackedPanel::scale_bytes(of_panel.bits.bits())).take(of_panel.blocks);
    (bytemuck::pod_read_unaligned(factors), parts)
}

/// The codes, `[outputs, inputs]`.
pub(crate) fn group_codes(words: &[u32], layout: &WeightLayout) -> Vec<i32> {
    let of_panel = packed_panel(layout);
    let [panel, head] = [of_panel.bytes(), of_panel.codes_at()].map(|bytes| bytes / size_of::<u32>());
    let codes = words.chunks_exact(panel).flat_map(|panel| &panel[head..]);
    codes_of(&codes.map(|word| word ^ signs(layout.bits())).collect::<Vec<_>>(), layout)
}

/// The scales and the offsets, `[outputs, scale groups]`.
pub(crate) fn group_scales(words: &[u32], layout: &WeightLayout) -> [Vec<f32>; 2] {
    let (of_panel, groups) = (packed_panel(layout), layout.scale_groups());
    let mut values = [(); 2].map(|()| vec![0.0; layout.outputs() * groups]);
    let panels = bytemuck::cast_slice::<u32, u8>(words).chunks_exact(of_panel.bytes());
    for (panel, bytes) in panels.enumerate() {
        let (factors, parts) = head(bytes, of_panel);
        for (block, parts) in parts.enumerate() {
            let of_block = scales_of(of_panel.bits, parts, &factors);
            for (values, of_block) in values.iter_mut().zip(of_block) {
                let rows = values.chunks_exact_mut(groups).skip(panel * PANEL);
                rows.zip(of_block).for_each(|(row, value)| row[block * BLOCK / layout.run()] = value);
            }
        }
    }
    values
}

/// Unpacks some blocks of a panel: [`UnpackedPanel`], with offsets less `low` times the scale.
#[inline(always)]
pub(super) fn unpack_blocks(
    panel: &[u8], of_panel: PackedPanel, blocks: Range<usize>, low: f32, out: &mut [u8],
) {
    let (scales, codes) = out.split_at_mut(blocks.len() * UnpackedPanel::SCALE_BYTES);
    let (factors, parts) = head(panel, of_panel);
    let scales = scales.chunks_exact_mut(UnpackedPanel::SCALE_BYTES);
    for (parts, out) in parts.skip(blocks.start).zip(scales) {
        let [scales, mut offsets] = scales_of(of_panel.bits, parts, &factors);
        offsets.iter_mut().zip(scales).for_each(|(offset, scale)| *offset -= low * scale);
        out.copy_from_slice(bytemuck::cast_slice(&[scales, offsets]));
    }
    let packed = panel[of_panel.codes_at()..].chunks_exact(of_panel.code_bytes()).skip(blocks.start);
    for (packed, out) in packed.zip(codes.chunks_exact_mut(UnpackedPanel::CODE_BYTES)) {
        unpack_block(packed, of_panel.bits, 0, out);
    }
}
