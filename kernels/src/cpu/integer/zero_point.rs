//! What makes up for the zero point of an input: with code 0 standing for the value `z`, every sum lacks `z` times the sum of
//! its weights, over the taps that are inside the image.

use super::super::isa::{Isa, run_on};
use super::super::team;
use super::panels::{Steps, unpack_into};
use crate::integer::{BLOCK_STEPS, IntConv2dShape, PANEL, STEP, WeightLayout};
use crate::layout::BLOCK;
use std::sync::Arc;

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

/// What is added to the sums of each output. Positions whose windows reach into the padding alike have it in common.
#[derive(Clone, Debug)]
pub struct Addends {
    /// `[kinds of positions, outputs]`
    values: Arc<[f32]>,
    /// Where those of each position begin; nothing if all positions are alike.
    of: Arc<[u32]>,
}

impl From<Arc<[f32]>> for Addends {
    /// The same at all positions.
    fn from(values: Arc<[f32]>) -> Self {
        Self { values, of: Arc::default() }
    }
}

impl Addends {
    /// `shift` and what makes up for `zero_point`. `sums` are those of [`tap_sums`], of weights with the scales of what follows, but not of the input.
    pub(crate) fn new(sums: &[f32], zero_point: f32, shift: &[f32], shape: &IntConv2dShape) -> Self {
        let (outputs, [kernel_rows, kernel_cols]) = (shape.weight().outputs(), shape.weight().kernel());
        let [rows, columns] =
            [(0, kernel_rows), (1, kernel_cols)].map(|(axis, taps)| inside(shape, axis, taps));
        let everywhere = shape.options().padding == [0, 0];
        let (rows, columns) = match everywhere {
            true => (vec![(0, vec![true; kernel_rows])], vec![(0, vec![true; kernel_cols])]),
            false => (rows, columns),
        };
        let kinds = |of: &[(usize, Vec<bool>)]| of.iter().map(|(kind, _)| kind + 1).max().unwrap_or_default();
        let first = |of: &[(usize, Vec<bool>)], kind| {
            of.iter().find(|(other, _)| *other == kind).map(|(_, taps)| taps.clone()).unwrap_or_default()
        };
        let (row_kinds, column_kinds) = (kinds(&rows), kinds(&columns));
        let mut values = vec![0.0; row_kinds * column_kinds * outputs];
        for (kind, addends) in values.chunks_exact_mut(outputs.max(1)).enumerate() {
            let (row, column) = (first(&rows, kind / column_kinds), first(&columns, kind % column_kinds));
            // What sums of floats begin with.
            addends.fill(-0.0);
            for (tap, sums) in sums.chunks_exact(outputs.max(1)).enumerate() {
                if row[tap / kernel_cols] && column[tap % kernel_cols] {
                    addends.iter_mut().zip(sums).for_each(|(addend, sum)| *addend += sum);
                }
            }
            addends.iter_mut().zip(shift).for_each(|(addend, shift)| *addend = zero_point * *addend + shift);
        }
        let of_row = |row: usize| {
            columns.iter().map(move |(column, _)| ((row * column_kinds + column) * outputs) as u32)
        };
        let of =
            if everywhere { Arc::default() } else { rows.iter().flat_map(|(row, _)| of_row(*row)).collect() };
        Self { values: values.into(), of }
    }

    /// `[1 or positions, outputs]`, as they are.
    #[must_use]
    pub fn by_position(values: &[f32], shape: &IntConv2dShape) -> Self {
        let outputs = shape.weight().outputs();
        let positions = if values.len() == outputs { 0 } else { shape.positions() };
        Self {
            values: values.into(),
            of: (0..positions).map(|position| (position * outputs) as u32).collect(),
        }
    }

    /// Whether all positions have the same.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only AVX-512 asks"))]
    pub(super) fn is_everywhere(&self) -> bool {
        self.of.is_empty()
    }

    /// All of them.
    pub(super) fn values(&self) -> &[f32] {
        &self.values
    }

    /// The addends of a position of an image, all outputs of it and what follows them.
    ///
    /// # Safety
    /// [`Addends::check`] has found that there are some for this position.
    #[inline(always)]
    pub(super) unsafe fn at(&self, position: usize) -> &[f32] {
        debug_assert!(self.of.is_empty() || position < self.of.len());
        // SAFETY: As promised by the caller.
        unsafe {
            let first = if self.of.is_empty() { 0 } else { *self.of.get_unchecked(position) };
            self.values.get_unchecked(first as usize..)
        }
    }

    /// # Panics
    /// If there are not as many as a shape needs.
    pub(super) fn check(&self, shape: &IntConv2dShape) {
        if shape.results() == 0 {
            return;
        }
        let outputs = shape.weight().outputs();
        assert!(self.of.is_empty() || self.of.len() == shape.positions(), "an addend for each position");
        let last = self.of.iter().max().map_or(0, |&last| last as usize);
        assert!(last + outputs <= self.values.len(), "an addend for each output");
    }
}

/// Which taps of the kernel along an axis are inside the image, for each output along it, and the number of that kind.
fn inside(shape: &IntConv2dShape, axis: usize, taps: usize) -> Vec<(usize, Vec<bool>)> {
    let mut kinds: Vec<Vec<bool>> = vec![];
    let of_output = |output| {
        let taps: Vec<bool> = (0..taps).map(|tap| shape.tapped_along(axis, output, tap).is_some()).collect();
        let kind = kinds.iter().position(|kind| *kind == taps).unwrap_or(kinds.len());
        if kind == kinds.len() {
            kinds.push(taps.clone());
        }
        (kind, taps)
    };
    (0..shape.output()[axis]).map(of_output).collect()
}
