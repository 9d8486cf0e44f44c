//! Weights in groups: panels with scales and offsets, [`PackedPanel`]. Codes are unsigned, those of 8 bits, too.

use super::super::super::pages::Words;
use super::super::super::sample::Sample;
use super::super::dot::{PackedPanel, UnpackedPanel};
use super::super::panels::{Codes, codes_of, prepared, switch_blocks, unpack_block};
use crate::KernelError;
use crate::integer::{ByteFactors, PANEL, WeightLayout};
use crate::layout::BLOCK;
use dr_precision::BitWidth;
use half::f16;
use std::ops::Range;

/// Of each output of a panel.
type Lanes = [f32; PANEL];

/// What the largest part is or nearly twice of, where parts are halves.
const LARGEST_HALF: f32 = 16384.0;

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

/// Codes of the layout `stored`, at the width of `layout`, with their scales and offsets, `[outputs, scale groups]`.
///
/// # Errors
/// Those of [`prepared`].
pub(crate) fn group_words(
    codes: Codes, stored: &WeightLayout, layout: &WeightLayout, scales: [&[f32]; 2],
) -> Result<Words, KernelError> {
    let (bits, of_panel, groups) = (layout.bits(), packed_panel(layout), layout.scale_groups());
    let fill_panel = |panel: usize, stored_words: &[u32], out: &mut [u32]| {
        let (head, codes) = out.split_at_mut(of_panel.codes_at() / size_of::<u32>());
        switch_blocks(stored_words, stored.bits(), bits, codes);
        codes.iter_mut().for_each(|word| *word ^= signs(bits));
        let (factors, parts) = bytemuck::cast_slice_mut(head).split_at_mut(PackedPanel::FACTOR_BYTES);
        let factors: &mut [f32] = bytemuck::cast_slice_mut(factors);
        let outputs = layout.outputs().saturating_sub(panel * PANEL).min(PANEL);
        for lane in 0..outputs {
            let row = |values: &'_ [f32]| (panel * PANEL + lane) * groups..values.len();
            let [scales, offsets] = scales.map(|values| &values[row(values)][..groups]);
            let of_output = factors_of(bits, scales, offsets);
            (factors[lane], factors[PANEL + lane]) = (of_output.scale, of_output.offset);
            let blocks = parts.chunks_exact_mut(PackedPanel::scale_bytes(bits.bits()));
            for (block, part) in blocks.enumerate().take(of_panel.blocks) {
                let group = block * BLOCK / layout.run();
                put_part(bits, part, lane, [scales[group], offsets[group]], of_output);
            }
        }
    };
    prepared(codes, stored, |part, prepare| {
        Words::filled(grouped_words(layout), of_panel.bytes() / size_of::<u32>(), &|panel, out| {
            let mut words = vec![0; part];
            prepare(panel, &mut words);
            fill_panel(panel, &words, out);
        })
    })
}

/// What the scales and the offsets of an output are parts of: of more than 4 bits powers of two, so that halves that are far from the largest
/// and smallest ones stay as they are.
fn factors_of(bits: BitWidth, scales: &[f32], offsets: &[f32]) -> ByteFactors {
    if bits <= ByteFactors::WIDEST {
        return ByteFactors::of(scales.iter().zip(offsets).map(|(&scale, &offset)| [scale, offset]));
    }
    let [scale, offset] = [scales, offsets].map(|values| {
        let largest = values.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        f32::from_bits(largest.to_bits() & f32::INFINITY.to_bits()) / LARGEST_HALF
    });
    ByteFactors { scale, offset }
}

/// Puts a scale and an offset, as parts of the factors, into those of a block.
fn put_part(bits: BitWidth, out: &mut [u8], lane: usize, values: [f32; 2], factors: ByteFactors) {
    if bits <= ByteFactors::WIDEST {
        [out[lane], out[PANEL + lane]] = factors.bytes(values);
    } else {
        let halves: &mut [u16] = bytemuck::cast_slice_mut(out);
        let part = |value: f32, factor: f32| if factor > 0.0 { value / factor } else { 0.0 };
        let parts = [part(values[0], factors.scale), part(values[1], factors.offset)];
        [halves[lane], halves[PANEL + lane]] = parts.map(|part| f16::from_f32(part).to_bits());
    }
}

/// The scales and the offsets of a block, from what lies in memory.
#[inline(always)]
fn scales_of(bits: BitWidth, parts: &[u8], factors: &[Lanes; 2]) -> [Lanes; 2] {
    // Arrays, so that this becomes vector code.
    let [of_scale, of_offset] = factors;
    if bits <= ByteFactors::WIDEST {
        let parts: &[[u8; PANEL]; 2] = bytemuck::from_bytes(parts);
        let mut values = [[0.0; PANEL]; 2];
        for lane in 0..PANEL {
            let factors = ByteFactors { scale: of_scale[lane], offset: of_offset[lane] };
            [values[0][lane], values[1][lane]] = factors.values([parts[0][lane], parts[1][lane]]);
        }
        return values;
    }
    let parts: &[[[u8; 2]; PANEL]; 2] = bytemuck::from_bytes(parts);
    let half = |bytes| f16::from_le_bytes(bytes).widen();
    [
        std::array::from_fn(|lane| half(parts[0][lane]) * of_scale[lane]),
        std::array::from_fn(|lane| half(parts[1][lane]) * of_offset[lane]),
    ]
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
