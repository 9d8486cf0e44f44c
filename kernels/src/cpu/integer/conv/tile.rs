//! The tiles of a task.

use super::super::dot::{Form, Operands, PANELS, ROWS, Windows, correction};
use super::super::epilogue::{Channels, InputSums, RowSums, added, scaled};
use super::super::panels::unpack_panels;
use super::plan::Problem;
use super::window::Segment;
use super::workspace::{PanelWorkspace, Tile, Vector};
use crate::integer::{BLOCK_STEPS, PANEL, STEP};
use crate::layout::BLOCK;
use dr_precision::BitWidth;
use std::ops::Range;

/// Bytes of weights, and of what is read and written with them, that stay in the first-level cache while they take turns.
const CHUNK_BYTES: usize = 16 << 10;

#[inline(always)]
fn sum_of(codes: &[u8]) -> i32 {
    let (blocks, rest) = codes.as_chunks::<PANEL>();
    let mut lanes = [0; PANEL];
    for block in blocks {
        for lane in 0..PANEL {
            lanes[lane] += i32::from(block[lane]);
        }
    }
    let mut sum = 0;
    for lane in lanes {
        sum += lane;
    }
    for &code in rest {
        sum += i32::from(code);
    }
    sum
}

/// The left side of a tile.
pub(super) struct Rows<'a> {
    /// Bytes, or words.
    pub(super) codes: *const u8,
    pub(super) bases: &'a [usize],
    pub(super) offsets: &'a [u32],
    /// `[rows, scale groups]`, and as many more as a tile has rows; or nothing.
    pub(super) corrections: &'a [i32],
    /// The sum of each row's codes, and as many more; or nothing.
    pub(super) inputs: &'a [f32],
}

/// Some panels: their bytes (and those of panels between them), and what these are.
pub(super) struct Weights<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) form: Form,
    pub(super) bits: BitWidth,
    pub(super) panels: usize,
    /// As in [`Together`](super::stream::Together).
    pub(super) apart: usize,
    pub(super) panel_bytes: usize,
}

impl Problem<'_> {
    /// What the sums of rows, whose windows start at `bases` in `codes`, are too large by.
    #[inline(always)]
    pub(super) fn correct(&self, codes: &[u8], bases: &[usize], corrections: &mut Vec<i32>) {
        corrections.clear();
        for &base in bases {
            let mut offsets = self.offsets;
            for &blocks in self.groups {
                let (group, rest) = offsets.split_at(blocks * BLOCK_STEPS);
                corrections.push(correction(&codes[base..], group, self.shape.weight().bits()));
                offsets = rest;
            }
        }
        corrections.resize(corrections.len() + ROWS, 0);
    }

    /// The sums of the codes of rows, whose windows start at `bases` in `codes`, if the weights have an offset.
    #[inline(always)]
    fn sum_inputs(&self, codes: &[u8], bases: &[usize], inputs: &mut Vec<f32>) {
        inputs.clear();
        if self.epilogue.offset.is_none() {
            return;
        }
        let layout = self.shape.weight();
        inputs.resize(bases.len() + ROWS, 0.0);
        // The steps of a tap follow each other, and so do its channels: what stands after the last one is another group's, or padding.
        let steps = layout.inputs().div_ceil(STEP).max(1);
        let windows =
            Windows { codes, bases, offsets: self.offsets, steps, taps: layout.taps(), run: layout.inputs() };
        match self.kernel.summer() {
            // SAFETY: The machine has the instructions: `Plan::new` has asserted it. Windows end inside the codes: the caller has asserted it.
            Some(sum) => unsafe { sum(&windows, inputs) },
            None => {
                for (input, &base) in inputs.iter_mut().zip(windows.bases) {
                    let sum: i32 = windows.runs(base).map(sum_of).sum();
                    *input = sum as f32;
                }
            }
        }
    }

    /// Computes `panels` of a segment.
    #[inline(always)]
    pub(super) fn segment(&self, segment: &Segment, panels: Range<usize>, workspace: &mut PanelWorkspace) {
        if self.shape.weight().is_depthwise() {
            return self.depthwise(segment, workspace);
        }
        let PanelWorkspace { unpacked, words, wide_codes, corrections, inputs, tile: buffer, sums, .. } =
            workspace;
        let (layout, kernel) = (self.shape.weight(), self.kernel);
        // Without steps nothing is read.
        let farthest =
            segment.bases.iter().max().filter(|_| self.reach > 0).map_or(0, |base| base + self.reach);
        let [tile_rows, tile_panels] = kernel.tile();
        let group_panels = layout.group_panels();
        let block_codes = PANEL * BLOCK;
        let panel_words = self.blocks * PANEL * layout.bits().bits() as usize;
        let form = kernel.form(layout.bits(), self.pair_steps, segment.bases.len());
        // Panels that stay in the first-level cache together take turns with as many rows as do that.
        let chunk_panels = CHUNK_BYTES / (self.blocks * block_codes).max(1) / tile_panels * tile_panels;
        let (chunk_panels, block_rows) = match chunk_panels.min(panels.len()) {
            chunk if chunk > tile_panels => {
                let row_bytes = self.blocks * BLOCK + chunk * PANEL * self.output.bytes();
                (chunk, (CHUNK_BYTES / row_bytes).max(1).next_multiple_of(ROWS.max(tile_rows) * 2))
            }
            _ => (tile_panels, segment.bases.len().max(1)),
        };
        let nearest = segment.bases.iter().min().copied().unwrap_or_default();
        if form == Form::Words {
            wide_codes.clear();
            let end = farthest + (layout.groups() - 1) * layout.inputs();
            let codes = &segment.codes[nearest..end.min(segment.codes.len())];
            wide_codes.extend(codes.iter().map(|&code| i16::from(code)));
        }
        let mut panel = panels.start;
        while panel < panels.end {
            // Panels of one group.
            let group = panel / group_panels;
            let end = panels.end.min((group + 1) * group_panels);
            let first_channel = (group * layout.inputs()).min(segment.codes.len());
            let codes = &segment.codes[first_channel..];
            assert!(farthest <= codes.len(), "windows end inside the codes");
            corrections.clear();
            if form == Form::Packed && self.of_one_row.is_empty() {
                self.correct(codes, segment.bases, corrections);
            }
            let corrections = if self.of_one_row.is_empty() { &*corrections } else { &self.of_one_row };
            self.sum_inputs(codes, segment.bases, inputs);
            let inputs = &inputs[..];
            let codes = match form {
                // The codes before `nearest` are not there, and not read.
                Form::Words => wide_codes.as_ptr().wrapping_add(first_channel).wrapping_sub(nearest).cast(),
                _ => codes.as_ptr(),
            };
            let as_they_are = form == Form::Packed || (form == Form::Bytes && layout.bits() == BitWidth::B8);
            if as_they_are && segment.bases.len() == 1 {
                let rows = Rows { codes, bases: segment.bases, offsets: self.offsets, corrections, inputs };
                self.stream(&rows, segment.start, panel..end, form, (buffer, sums));
                panel = end;
            }
            while panel < end {
                let count = chunk_panels.min(end - panel);
                let packed = &self.weights[panel * panel_words..][..count * panel_words];
                let bytes: &[i8] = match (form, layout.bits()) {
                    (Form::Packed, _) | (_, BitWidth::B8) => bytemuck::cast_slice(packed),
                    _ => {
                        let bytes = Vector::room(unpacked, count * self.blocks * block_codes);
                        unpack_panels(packed, layout.bits(), bytes);
                        bytes
                    }
                };
                let (bits, bytes): (_, &[u8]) = match form {
                    Form::Packed => (layout.bits(), bytemuck::cast_slice(bytes)),
                    Form::Bytes => (BitWidth::B8, bytemuck::cast_slice(bytes)),
                    Form::Words => {
                        let words = Vector::room::<i16>(words, bytes.len());
                        kernel.widen_weights(bytes, words);
                        (BitWidth::B8, bytemuck::cast_slice(words))
                    }
                };
                let panel_bytes = bytes.len() / count;
                for (block, bases) in segment.bases.chunks(block_rows).enumerate() {
                    for first_panel in (0..count).step_by(tile_panels) {
                        let panels = tile_panels.min(count - first_panel);
                        let bytes = &bytes[first_panel * panel_bytes..][..panels * panel_bytes];
                        let weights = Weights { bytes, form, bits, panels, apart: 1, panel_bytes };
                        let channels = self.channels(panel + first_panel, panels, 1);
                        let tile_rows = kernel.rows(panels, form);
                        for (tile, bases) in bases.chunks(tile_rows).enumerate() {
                            let first = block * block_rows + tile * tile_rows;
                            let corrections =
                                corrections.get(first * self.groups.len()..).unwrap_or_default();
                            let inputs = inputs.get(first..).unwrap_or_default();
                            let rows = Rows { codes, bases, offsets: self.offsets, corrections, inputs };
                            let position = segment.start + first;
                            self.prefetch(&rows, position, channels, first == 0);
                            self.sum(&rows, &weights, channels, buffer);
                            self.finish(&rows, position, channels, buffer);
                        }
                    }
                }
                panel += count;
            }
        }
    }

    /// The channels of panels, of which this is the first one.
    #[inline(always)]
    pub(super) fn channels(&self, panel: usize, panels: usize, apart: usize) -> Channels {
        let layout = self.shape.weight();
        let (group, in_group) = (panel / layout.group_panels(), panel % layout.group_panels() * PANEL);
        let outputs = layout.outputs() / layout.groups();
        Channels { first: group * outputs + in_group, count: outputs - in_group, panels, apart }
    }

    /// Fetches what [`Problem::finish`] will read, for the first tile, and write.
    #[inline(always)]
    fn prefetch(&self, rows: &Rows, position: usize, channels: Channels, first: bool) {
        for panel in 0..channels.panels {
            let channels = channels.panel(panel);
            if first {
                self.epilogue.prefetch(channels);
            }
            // Codes are small: their lines are there from panels before.
            let rows = if self.output.values.is_some() { rows.bases.len() } else { 0 };
            for row in 0..rows {
                self.output.prefetch(position + row, channels, self.shape.weight().outputs());
            }
        }
    }

    /// Computes the sums of one tile; of more scale groups than one, its values before the epilogue.
    #[inline(always)]
    pub(super) fn sum(&self, rows: &Rows, weights: &Weights, channels: Channels, tile: &mut Tile) {
        let layout = self.shape.weight();
        let panel_bytes = weights.panel_bytes;
        let words = if weights.form == Form::Words { 2 } else { 1 };
        let block_bytes = PANEL * STEP * weights.bits.bits() as usize * words;
        let mut block = 0;
        for (group, &blocks) in self.groups.iter().enumerate() {
            let operands = Operands {
                form: weights.form,
                codes: rows.codes,
                bases: rows.bases,
                offsets: &rows.offsets[block * BLOCK_STEPS..(block + blocks) * BLOCK_STEPS],
                weights: weights.bytes[block * block_bytes..].as_ptr(),
                panel_bytes: panel_bytes * weights.apart,
                next_bytes: if weights.apart == 1 && group + 1 == self.groups.len() {
                    (weights.panels - 1) * panel_bytes
                } else {
                    0
                },
                panels: weights.panels,
                bits: weights.bits,
                pair_steps: self.pair_steps,
            };
            // SAFETY: The machine has the instructions: `Plan::new` has asserted it. Windows end inside the codes: `segment` has
            // asserted it. A panel has all its blocks, and tiles are not larger than the kernel's.
            unsafe { self.kernel.run(&operands, &mut tile.sums) };
            block += blocks;
            if self.groups.len() == 1 {
                break; // its sums need not be kept
            }
            for panel in 0..weights.panels {
                let multiplier = self.epilogue.multiplier(group, channels.panel(panel), layout.outputs());
                for row in 0..rows.bases.len() {
                    let correction = rows.corrections.get(row * self.groups.len() + group).copied();
                    let scaled = scaled(&tile.sums[row][panel], correction.unwrap_or(0), &multiplier);
                    let values = &mut tile.values[row][panel];
                    *values = if group == 0 { scaled } else { added(*values, &scaled) };
                }
            }
        }
    }

    /// Writes the results of a tile.
    #[inline(always)]
    pub(super) fn finish(&self, rows: &Rows, position: usize, channels: Channels, tile: &Tile) {
        let count = rows.bases.len();
        // SAFETY: The output's size was asserted where its pointer was taken; tasks have different positions and channels.
        unsafe {
            let to = self.epilogue.place(count, position, channels, self.shape, self.output);
            if self.groups.len() > 1 {
                for panel in 0..channels.panels {
                    let to = to.panel(panel);
                    (0..count).for_each(
                        #[inline(always)]
                        |row| to.write(row, tile.values[row][panel]),
                    );
                }
                return;
            }
            let inputs = InputSums::Positions(rows.inputs.first_chunk().unwrap_or(&[0.0; ROWS]));
            let (sums, corrections) = (tile.sums.as_flattened(), rows.corrections.first_chunk());
            to.write_sums(&RowSums { sums, stride: PANELS, corrections, inputs }, self.kernel);
        }
    }
}
