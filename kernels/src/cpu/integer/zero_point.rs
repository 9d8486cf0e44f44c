//! What makes up for the zero point of an input: with code 0 standing for the value `z`, every sum lacks `z` times the sum of
//! its weights, over the taps that are inside the image.

use super::super::isa::{Isa, run_on};
use super::super::team;
use super::panels::{Steps, unpack_into};
use crate::integer::{BLOCK_STEPS, IntConv2dShape, PANEL, STEP, WeightLayout};
use crate::layout::BLOCK;

/// For each tap the sum of an output's weights: `[taps, outputs]`, of weights in panels with `scale`, `[scale groups, outputs]`.
pub(crate) fn tap_sums(words: &[u32], scale: &[f32], layout: &WeightLayout) -> Vec<f32> {
    let (taps, outputs) = (layout.taps(), layout.outputs());
    let (steps, groups, isa) = (Steps::of(layout), layout.group_blocks(), Isa::detect());
    let panels = layout.rows() / PANEL;
    let panel_words = layout.blocks() * PANEL * layout.bits().bits() as usize;
    // `[panels, taps, 16]`
    let mut sums = vec![[0.0f32; PANEL]; panels * taps];
    team::for_each_chunk(&mut sums, taps.max(1), |panel, sums| {
        let words = &words[panel * panel_words..][..panel_words];
        run_on!(isa, |_| panel_sums(words, scale, layout, &steps, &groups, panel, sums));
    });
    let mut by_tap = vec![0.0; taps * outputs];
    for row in 0..layout.rows() {
        let Some(output) = layout.output_of(row) else { continue };
        for tap in 0..taps {
            by_tap[tap * outputs + output] = sums[row / PANEL * taps + tap][row % PANEL];
        }
    }
    by_tap
}

/// The sums of a panel, in the order of its columns.
#[inline(always)]
fn panel_sums(
    words: &[u32], scale: &[f32], layout: &WeightLayout, steps: &Steps, groups: &[usize], panel: usize,
    sums: &mut [[f32; PANEL]],
) {
    let block_words = PANEL * layout.bits().bits() as usize;
    let mut blocks = words.chunks_exact(block_words).zip(steps.steps.as_chunks::<BLOCK_STEPS>().0);
    let mut codes = [0i8; PANEL * BLOCK];
    for (group, &count) in groups.iter().enumerate() {
        let mut scales = [0.0f32; PANEL];
        for (lane, lane_scale) in scales.iter_mut().enumerate() {
            if let Some(output) = layout.output_of(panel * PANEL + lane) {
                *lane_scale = scale[group * layout.outputs() + output];
            }
        }
        for _ in 0..count {
            let Some((words, steps_of)) = blocks.next() else { return };
            unpack_into(words, layout.bits(), &mut codes);
            for (codes, &(first, count)) in codes.as_chunks::<{ PANEL * STEP }>().0.iter().zip(steps_of) {
                let lanes: [i32; PANEL] = bytemuck::cast(*codes);
                for code in 0..count {
                    let sums = &mut sums[(first + code * steps.apart) % layout.taps()];
                    for lane in 0..PANEL {
                        sums[lane] += scales[lane] * (lanes[lane] << (24 - 8 * code) >> 24) as f32;
                    }
                }
            }
        }
    }
}

/// `shift` and what makes up for `zero_point`: `[positions, outputs]`, or `[outputs]` if without padding all positions are alike.
/// `sums` are those of [`tap_sums`], of weights with the scales of what follows, but not of the input.
pub(crate) fn addends(sums: &[f32], zero_point: f32, shift: &[f32], shape: &IntConv2dShape) -> Vec<f32> {
    let outputs = shape.weight().outputs();
    let [_, out_cols] = shape.output();
    let everywhere = shape.options().padding == [0, 0];
    let positions = if everywhere { 1 } else { shape.positions() };
    let mut addends = vec![0.0; positions * outputs];
    team::for_each_chunk(&mut addends, outputs.max(1), |position, addends| {
        // What sums of floats begin with.
        addends.fill(-0.0);
        for (tap, sums) in sums.chunks_exact(outputs).enumerate() {
            if everywhere || shape.tapped([position / out_cols, position % out_cols], tap).is_some() {
                addends.iter_mut().zip(sums).for_each(|(addend, sum)| *addend += sum);
            }
        }
        addends.iter_mut().zip(shift).for_each(|(addend, shift)| *addend = zero_point * *addend + shift);
    });
    addends
}
