//! Packed weights times activations in floating point, for language models.
//!
//! Few rows: each thread takes panels, unpacks a block of 512 codes in the first-level cache, and multiplies it with the
//! rows. The 16 lanes are output channels, so nothing is summed across lanes, and a group's scale is applied to the sum of
//! the group. That the codes of a lane are the lanes' neighbours, four by four, costs a shift for each vector.

use super::super::isa::{Isa, Kernel};
use super::super::sample::Sample;
use super::panels::unpack_panels;
use crate::integer::{PANEL, STEP, WeightLayout};
use crate::layout::BLOCK;
use rayon::prelude::*;

/// Rows that are computed together.
const ROWS: usize = 4;

/// Blocks that are unpacked together: 16 KiB.
const CHUNK: usize = 32;

/// [`crate::reference::weight_only`], in f32, with weights in panels.
#[must_use]
pub fn weight_only<T: Sample>(
    x: &[T], weights: &[u32], scale: &[f32], rows: usize, layout: &WeightLayout,
) -> Vec<f32> {
    let mut out = vec![0.0; rows * layout.outputs];
    weight_only_into(Isa::detect(), x, weights, scale, rows, layout, &mut out);
    out
}

/// [`weight_only`] on `isa` into `out`.
///
/// # Panics
/// If a slice has not the length of the layout, the weight is that of a convolution, or the machine has no `isa`.
pub fn weight_only_into<T: Sample>(
    isa: Isa, x: &[T], weights: &[u32], scale: &[f32], rows: usize, layout: &WeightLayout, out: &mut [f32],
) {
    let (outputs, inputs) = (layout.outputs, layout.inputs);
    assert_eq!((layout.taps(), layout.groups), (1, 1), "the weight of a linear layer");
    assert_eq!((x.len(), out.len()), (rows * inputs, rows * outputs), "matrices of the sizes of the layout");
    assert_eq!(weights.len(), layout.words(), "weights of another size");
    assert_eq!(scale.len(), layout.scale_groups() * outputs, "a scale for each group of each output");
    if out.is_empty() {
        return;
    }
    // The rows in f32, in the order of the steps, zeros where there is no weight.
    let columns = layout.columns();
    let mut ordered = vec![0.0f32; rows * columns.len()];
    for (ordered, x) in ordered.chunks_exact_mut(columns.len().max(1)).zip(x.chunks_exact(inputs.max(1))) {
        for (value, column) in ordered.iter_mut().zip(&columns) {
            *value = column.map_or(0.0, |column| x[column].widen());
        }
    }
    let panel_words = layout.blocks() * PANEL * layout.bits.bits() as usize;
    let groups = layout.group_blocks();
    // `[panels, rows, 16]`
    let mut panels = vec![[0.0f32; PANEL]; layout.group_panels() * rows];
    panels.par_chunks_exact_mut(rows).enumerate().for_each(|(panel, out)| {
        let words = &weights[panel * panel_words..][..panel_words];
        isa.run(Panel { ordered: &ordered, words, scale, layout, groups: &groups, panel, out });
    });
    for (row, out) in out.chunks_exact_mut(outputs).enumerate() {
        for (panel, out) in out.chunks_mut(PANEL).enumerate() {
            out.copy_from_slice(&panels[panel * rows + row][..out.len()]);
        }
    }
}

/// All rows of one panel.
struct Panel<'a> {
    ordered: &'a [f32],
    words: &'a [u32],
    scale: &'a [f32],
    layout: &'a WeightLayout,
    groups: &'a [usize],
    panel: usize,
    out: &'a mut [[f32; PANEL]],
}

impl Kernel for Panel<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: Isa) {
        let Self { ordered, words, scale, layout, groups, panel, out } = self;
        let rows = out.len();
        let row_len = layout.blocks() * BLOCK;
        let block_words = PANEL * layout.bits.bits() as usize;
        let mut codes = [0i8; CHUNK * PANEL * BLOCK];
        out.fill([0.0; PANEL]);
        let mut block = 0;
        for (group, &blocks) in groups.iter().enumerate() {
            let first = group * layout.outputs + panel * PANEL;
            let count = PANEL.min(layout.outputs - panel * PANEL);
            let mut scales = [0.0; PANEL];
            scales[..count].copy_from_slice(&scale[first..][..count]);
            let end = block + blocks;
            while block < end {
                let chunk = CHUNK.min(end - block);
                let codes = &mut codes[..chunk * PANEL * BLOCK];
                unpack_panels(&words[block * block_words..][..chunk * block_words], layout.bits, codes);
                for first in (0..rows).step_by(ROWS) {
                    let x = |row: usize| {
                        let row = (first + row).min(rows - 1);
                        &ordered[row * row_len + block * BLOCK..][..chunk * BLOCK]
                    };
                    let sums = products([x(0), x(1), x(2), x(3)], codes);
                    for (out, sums) in out[first..].iter_mut().zip(sums) {
                        for ((out, sum), scale) in out.iter_mut().zip(sums).zip(scales) {
                            *out += scale * sum;
                        }
                    }
                }
                block += chunk;
            }
        }
    }
}

/// The sums of products of four rows with blocks of codes.
#[inline(always)]
fn products(x: [&[f32]; ROWS], codes: &[i8]) -> [[f32; PANEL]; ROWS] {
    let mut sums = [[0.0f32; PANEL]; ROWS];
    for (step, codes) in codes.as_chunks::<{ PANEL * STEP }>().0.iter().enumerate() {
        for j in 0..STEP {
            let mut lane = [0.0f32; PANEL];
            for (lane, codes) in lane.iter_mut().zip(codes.as_chunks::<STEP>().0) {
                *lane = f32::from(codes[j]);
            }
            for (sums, x) in sums.iter_mut().zip(x) {
                let x = x[step * STEP + j];
                for (sum, lane) in sums.iter_mut().zip(lane) {
                    *sum += x * lane;
                }
            }
        }
    }
    sums
}
