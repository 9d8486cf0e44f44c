//! Products of rows and weights that have scales of their own for every 32 inputs.
//!
//! | file | what |
//! |---|---|
//! | `rows` | from floats to codes |
//! | `weight` | blocks with their scales and offsets |
//!
//! Of few rows each task streams its panels, packed as they are. Of more, it unpacks some blocks at a time, to the first-level
//! cache, for all of its rows.

mod rows;
mod weight;

pub(crate) use rows::quantize_rows;
pub(crate) use weight::{group_codes, group_scales, group_words, grouped_words};

use super::super::isa::{Isa, run_on};
use super::super::team;
use super::conv::{Together, Vector, together};
use super::dot::{
    DotKernel, GROUP_PANELS, GROUP_ROWS, GroupForm, GroupOperands, MicroKernel, PackedPanel, RowGroup,
    UnpackedPanel, Values,
};
use crate::integer::{PANEL, WeightLayout};
use std::cell::RefCell;
use std::ops::Range;
use weight::{packed_panel, unpack_blocks};

/// Blocks that are unpacked together, at most: with those of all panels of a tile, they stay in the first-level cache.
const CHUNK: usize = 24;

/// Rows of a task, at most: a chunk of their codes stays in the second-level cache.
const TASK_ROWS: usize = 512;

/// Tasks for each thread, at most: so many that none waits long for another.
const TASKS_PER_THREAD: usize = 6;

/// What a word of weights from memory costs, in products.
const WORD_COST: usize = 48;

/// Products in a task, at least: it pays for another thread's attention, if that is awake.
const TASK_PRODUCTS: usize = 1 << 19;

thread_local! {
    /// Unpacked blocks.
    static UNPACKED: RefCell<Vec<Vector>> = const { RefCell::new(Vec::new()) };
}

/// One of the products of [`grouped_products`].
#[derive(Debug)]
pub(crate) struct GroupedJob<'a> {
    /// [`group_words`].
    pub words: &'a [u32],
    pub layout: &'a WeightLayout,
    /// What is added to each output.
    pub bias: Option<&'a [f32]>,
    /// `[rows, outputs]`.
    pub out: &'a mut [f32],
}

/// [`crate::reference::dynamic_product`] of `rows`, `[count, groups]`, with several weights, in one loop of all threads.
///
/// # Panics
/// If a slice has not the length of its layout, or the machine has no `kernel`.
pub(crate) fn grouped_products<'a>(
    kernel: DotKernel, rows: &'a [RowGroup], count: usize, jobs: impl Iterator<Item = GroupedJob<'a>>,
) {
    let kernel = kernel.micro().expect("a kernel that this machine has");
    let plans: Vec<Plan> = jobs.map(|job| Plan::new(kernel, rows, count, job)).collect();
    let tasks = plans.iter().map(Plan::tasks).sum();
    team::for_each(tasks, |index| {
        let mut index = index;
        for plan in &plans {
            if index < plan.tasks() {
                return plan.run(index);
            }
            index -= plan.tasks();
        }
    });
}

/// A product, and how it is cut into tasks.
struct Plan<'a> {
    kernel: &'static dyn MicroKernel,
    rows: &'a [RowGroup],
    count: usize,
    weights: &'a [u8],
    layout: &'a WeightLayout,
    of_panel: PackedPanel,
    bias: Option<&'a [f32]>,
    out: *mut f32,
    form: GroupForm,
    chunk_rows: usize,
    chunk_panels: usize,
}

// SAFETY: Tasks write to parts of the output that do not overlap.
unsafe impl Sync for Plan<'_> {}

impl<'a> Plan<'a> {
    fn new(
        kernel: &'static dyn MicroKernel, rows: &'a [RowGroup], count: usize, job: GroupedJob<'a>,
    ) -> Self {
        let GroupedJob { words, layout, bias, out } = job;
        let (of_panel, panels) = (packed_panel(layout), layout.group_panels());
        assert_eq!(rows.len(), count * of_panel.blocks, "rows of another size");
        assert_eq!(words.len(), grouped_words(layout), "weights of another size");
        assert_eq!(out.len(), count * layout.outputs(), "an output of another size");
        assert!(bias.is_none_or(|bias| bias.len() == layout.outputs()), "a bias for each output");
        let [packed_rows, packed_panels] = kernel.group_tile(GroupForm::Packed);
        let streamed = count <= packed_rows;
        let form = if streamed { GroupForm::Packed } else { GroupForm::Bytes };
        let tile_panels = if streamed { packed_panels } else { kernel.group_tile(form)[1] };
        let products = count.saturating_mul(layout.elements());
        let work = products.saturating_add(words.len().saturating_mul(WORD_COST));
        let threads = rayon::current_num_threads();
        let wanted =
            if threads == 1 { 1 } else { (work / TASK_PRODUCTS).clamp(1, threads * TASKS_PER_THREAD) };
        let row_tasks = count.div_ceil(TASK_ROWS).max(1);
        let [tile_rows, _] = kernel.group_tile(form);
        let chunk_rows = count.div_ceil(row_tasks).next_multiple_of(tile_rows).max(1);
        let panel_tasks = wanted.div_ceil(row_tasks).clamp(1, panels.div_ceil(tile_panels).max(1));
        let chunk_panels = panels.div_ceil(panel_tasks).next_multiple_of(tile_panels).max(1);
        Self {
            kernel,
            rows,
            count,
            weights: bytemuck::cast_slice(words),
            layout,
            of_panel,
            bias,
            out: out.as_mut_ptr(),
            form,
            chunk_rows,
            chunk_panels,
        }
    }

    fn panel_tasks(&self) -> usize {
        self.layout.group_panels().div_ceil(self.chunk_panels)
    }

    fn tasks(&self) -> usize {
        self.count.div_ceil(self.chunk_rows) * self.panel_tasks()
    }

    fn run(&self, index: usize) {
        let (row, panel) =
            (index / self.panel_tasks() * self.chunk_rows, index % self.panel_tasks() * self.chunk_panels);
        let rows = row..self.count.min(row + self.chunk_rows);
        let panels = panel..self.layout.group_panels().min(panel + self.chunk_panels);
        UNPACKED.with_borrow_mut(|unpacked| {
            // Unpacking is compiled for the machine; tiles are by themselves.
            run_on!(Isa::detect(), |_| match self.form {
                GroupForm::Packed => self.stream(panels),
                GroupForm::Bytes => self.tiles(rows, panels, unpacked),
            });
        });
    }

    /// Panels of few rows.
    #[inline(always)]
    fn stream(&self, panels: Range<usize>) {
        let [_, tile_panels] = self.kernel.group_tile(GroupForm::Packed);
        let panel_bytes = self.of_panel.bytes();
        let mut values = Values([[[0.0; PANEL]; GROUP_PANELS]; GROUP_ROWS]);
        for Together { first, count, apart } in together(panels, tile_panels) {
            let place = Place { rows: 0..self.count, first, count, apart };
            self.load_bias(&place, &mut values);
            let bytes = &self.weights[first * panel_bytes..][..((count - 1) * apart + 1) * panel_bytes];
            let operands = GroupOperands {
                rows: self.rows.as_ptr(),
                row_count: self.count,
                row_groups: self.of_panel.blocks,
                panels: bytes.as_ptr(),
                panel_count: count,
                panel_bytes: apart * panel_bytes,
                form: GroupForm::Packed,
                codes_at: self.of_panel.codes_at(),
                blocks: self.of_panel.blocks,
                bits: self.layout.bits(),
            };
            // SAFETY: The machine has the kernel; there are so many rows, and panels, of so many blocks.
            unsafe { self.kernel.add_groups(&operands, &mut values) };
            self.store(&place, &values);
        }
    }

    /// Panels of many rows.
    #[inline(always)]
    fn tiles(&self, rows: Range<usize>, panels: Range<usize>, unpacked: &mut Vec<Vector>) {
        let (bits, form) = (self.layout.bits(), GroupForm::Bytes);
        let [tile_rows, tile_panels] = self.kernel.group_tile(form);
        let (all_blocks, panel_bytes) = (self.of_panel.blocks, self.of_panel.bytes());
        // Without blocks there is the bias.
        let chunk = all_blocks.div_ceil(all_blocks.div_ceil(CHUNK).max(1)).max(1);
        let offset = self.kernel.group_offset(bits) as f32;
        let mut values = Values([[[0.0; PANEL]; GROUP_PANELS]; GROUP_ROWS]);
        for block in (0..all_blocks.max(1)).step_by(chunk) {
            let blocks = block..all_blocks.min(block + chunk);
            let out_bytes = blocks.len() * UnpackedPanel::BLOCK_BYTES;
            for first in panels.clone().step_by(tile_panels) {
                let count = tile_panels.min(panels.end - first);
                let unpacked: &mut [u8] = Vector::room(unpacked, count * out_bytes);
                for (panel, out) in (first..).zip(unpacked.chunks_exact_mut(out_bytes.max(1))) {
                    let packed = &self.weights[panel * panel_bytes..][..panel_bytes];
                    unpack_blocks(packed, self.of_panel, blocks.clone(), offset, out);
                }
                for row in rows.clone().step_by(tile_rows) {
                    let place = Place { rows: row..rows.end.min(row + tile_rows), first, count, apart: 1 };
                    match block {
                        0 => self.load_bias(&place, &mut values),
                        _ => self.load(&place, &mut values),
                    }
                    let operands = GroupOperands {
                        rows: self.rows[row * all_blocks + block..].as_ptr(),
                        row_count: place.rows.len(),
                        row_groups: all_blocks,
                        panels: unpacked.as_ptr(),
                        panel_count: count,
                        panel_bytes: out_bytes,
                        form,
                        codes_at: blocks.len() * UnpackedPanel::SCALE_BYTES,
                        blocks: blocks.len(),
                        bits,
                    };
                    // SAFETY: The machine has the kernel; there are so many rows, and panels, of so many blocks.
                    unsafe { self.kernel.add_groups(&operands, &mut values) };
                    self.store(&place, &values);
                }
            }
        }
    }

    /// Sets a tile to the bias.
    #[inline(always)]
    fn load_bias(&self, place: &Place, values: &mut Values) {
        for panel in 0..place.count {
            let outputs = place.outputs(panel, self.layout.outputs());
            let mut bias = [0.0; PANEL];
            if let Some(all) = self.bias {
                bias[..outputs.len()].copy_from_slice(&all[outputs]);
            }
            for values in values.0.iter_mut().take(place.rows.len()) {
                values[panel] = bias;
            }
        }
    }

    /// Sets a tile to what is there already.
    #[inline(always)]
    fn load(&self, place: &Place, values: &mut Values) {
        for (values, row) in values.0.iter_mut().zip(place.rows.clone()) {
            for (panel, values) in values.iter_mut().enumerate().take(place.count) {
                // SAFETY: These are the task's own, and a task before has written them.
                let out = unsafe { self.results(row, place.outputs(panel, self.layout.outputs())) };
                match <&[f32; PANEL]>::try_from(&*out) {
                    Ok(out) => *values = *out,
                    Err(_) => values[..out.len()].copy_from_slice(out),
                }
            }
        }
    }

    /// Writes a tile.
    #[inline(always)]
    fn store(&self, place: &Place, values: &Values) {
        for (values, row) in values.0.iter().zip(place.rows.clone()) {
            for (panel, values) in values.iter().enumerate().take(place.count) {
                // SAFETY: These are the task's own.
                let out = unsafe { self.results(row, place.outputs(panel, self.layout.outputs())) };
                match <&mut [f32; PANEL]>::try_from(&mut *out) {
                    Ok(out) => *out = *values,
                    Err(_) => out.copy_from_slice(&values[..out.len()]),
                }
            }
        }
    }

    /// # Safety
    /// Nobody else has them.
    #[expect(clippy::mut_from_ref, reason = "tasks have parts of the output that do not overlap")]
    #[inline(always)]
    unsafe fn results(&self, row: usize, outputs: Range<usize>) -> &mut [f32] {
        assert!(row < self.count && outputs.end <= self.layout.outputs());
        // SAFETY: These are inside the output, and the caller promises that nobody else has them.
        unsafe {
            let start = self.out.add(row * self.layout.outputs() + outputs.start);
            std::slice::from_raw_parts_mut(start, outputs.len())
        }
    }
}

/// Where a tile belongs: rows and panels.
struct Place {
    rows: Range<usize>,
    first: usize,
    count: usize,
    apart: usize,
}

impl Place {
    #[inline(always)]
    fn outputs(&self, panel: usize, outputs: usize) -> Range<usize> {
        let first = (self.first + panel * self.apart) * PANEL;
        first..outputs.min(first + PANEL)
    }
}
