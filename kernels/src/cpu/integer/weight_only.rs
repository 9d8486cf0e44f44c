//! Packed weights times activations in floating point, for language models.
//!
//! Few rows: each thread takes panels, unpacks a block of 512 codes in the first-level cache, and multiplies it with the
//! rows. The 16 lanes are output channels, so nothing is summed across lanes, and a group's scale is applied to the sum of
//! the group. That the codes of a lane are the lanes' neighbours, four by four, costs a shift for each vector.

use super::super::isa::{Isa, run_on};
use super::super::sample::Sample;
use super::super::team;
use super::panels::unpack_into;
use crate::integer::{PANEL, STEP, WeightLayout};
use crate::layout::BLOCK;

/// Rows that are computed together.
const ROWS: usize = 4;

/// Blocks that are unpacked together: 16 KiB.
const CHUNK: usize = 32;

/// [`crate::reference::weight_only`] in f32, with weights in panels, on `isa` into `out`.
///
/// # Panics
/// If a slice has not the length of the layout, the weight is that of a convolution, or the machine has no `isa`.
pub fn weight_only<T: Sample>(
    isa: Isa, x: &[T], weights: &[u32], scale: &[f32], rows: usize, layout: &WeightLayout, out: &mut [f32],
) {
    let (outputs, inputs) = (layout.outputs(), layout.inputs());
    assert_eq!((layout.taps(), layout.groups()), (1, 1), "the weight of a linear layer");
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
    let panel_words = layout.blocks() * PANEL * layout.bits().bits() as usize;
    let groups = layout.group_blocks();
    // `[panels, rows, 16]`
    let mut panels = vec![[0.0f32; PANEL]; layout.group_panels() * rows];
    team::for_each_chunk(&mut panels, rows, |panel, out| {
        let words = &weights[panel * panel_words..][..panel_words];
        run_on!(isa, |isa| panel_rows(isa, &ordered, words, scale, layout, &groups, panel, out));
    });
    for (row, out) in out.chunks_exact_mut(outputs).enumerate() {
        for (panel, out) in out.chunks_mut(PANEL).enumerate() {
            out.copy_from_slice(&panels[panel * rows + row][..out.len()]);
        }
    }
}

/// All rows of one panel.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "two matrices, one of them packed, and a result")]
fn panel_rows(
    isa: Isa, ordered: &[f32], words: &[u32], scale: &[f32], layout: &WeightLayout, groups: &[usize],
    panel: usize, out: &mut [[f32; PANEL]],
) {
    let rows = out.len();
    let row_len = layout.blocks() * BLOCK;
    let block_words = PANEL * layout.bits().bits() as usize;
    let mut codes = [0i8; CHUNK * PANEL * BLOCK];
    out.fill([0.0; PANEL]);
    let mut block = 0;
    for (group, &blocks) in groups.iter().enumerate() {
        let first = group * layout.outputs() + panel * PANEL;
        let count = PANEL.min(layout.outputs() - panel * PANEL);
        let mut scales = [0.0; PANEL];
        scales[..count].copy_from_slice(&scale[first..][..count]);
        let end = block + blocks;
        while block < end {
            let chunk = CHUNK.min(end - block);
            let codes = &mut codes[..chunk * PANEL * BLOCK];
            unpack_into(&words[block * block_words..][..chunk * block_words], layout.bits(), codes);
            let x = |row: usize| &ordered[row * row_len + block * BLOCK..][..chunk * BLOCK];
            let mut row = 0;
            while row < rows {
                if row + ROWS <= rows {
                    let x = [x(row), x(row + 1), x(row + 2), x(row + 3)];
                    add(&mut out[row..row + ROWS], &products(isa, x, codes), &scales);
                    row += ROWS;
                } else {
                    add(&mut out[row..=row], &products(isa, [x(row)], codes), &scales);
                    row += 1;
                }
            }
            block += chunk;
        }
    }
}

/// Adds a group's sums, times its scales.
#[inline(always)]
fn add(out: &mut [[f32; PANEL]], sums: &[[f32; PANEL]], scales: &[f32; PANEL]) {
    for (out, sums) in out.iter_mut().zip(sums) {
        for ((out, sum), scale) in out.iter_mut().zip(sums).zip(scales) {
            *out += scale * sum;
        }
    }
}

/// The sums of products of rows with blocks of codes.
#[inline(always)]
fn products<const ROWS: usize>(isa: Isa, x: [&[f32]; ROWS], codes: &[i8]) -> [[f32; PANEL]; ROWS] {
    match isa {
        Isa::Portable => products_of::<ROWS, false>(x, codes),
        _ => products_of::<ROWS, true>(x, codes),
    }
}

/// `FUSED`: multiplies and adds in one rounding.
#[inline(always)]
fn products_of<const ROWS: usize, const FUSED: bool>(
    x: [&[f32]; ROWS], codes: &[i8],
) -> [[f32; PANEL]; ROWS] {
    // Two sets of sums: the additions of one would wait for each other.
    let mut sums = [[[0.0f32; PANEL]; ROWS]; 2];
    for (step, codes) in codes.as_chunks::<{ PANEL * STEP }>().0.iter().enumerate() {
        // Four codes of each lane.
        let lanes: [i32; PANEL] = bytemuck::cast(*codes);
        for j in 0..STEP {
            // The j-th of them, to the top and, with its sign, back to the bottom.
            let mut code = [0.0f32; PANEL];
            for (code, lane) in code.iter_mut().zip(lanes) {
                *code = (lane << (24 - 8 * j) >> 24) as f32;
            }
            for (sums, x) in sums[j % 2].iter_mut().zip(x) {
                let x = x[step * STEP + j];
                for (sum, code) in sums.iter_mut().zip(code) {
                    *sum = if FUSED { x.mul_add(code, *sum) } else { x * code + *sum };
                }
            }
        }
    }
    let [mut even, odd] = sums;
    for (even, odd) in even.as_flattened_mut().iter_mut().zip(odd.as_flattened()) {
        *even += odd;
    }
    even
}
