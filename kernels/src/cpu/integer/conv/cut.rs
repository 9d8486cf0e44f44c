//! How a product is cut into tasks: so many lines of output by so many panels of weights.

use super::super::dot::MicroKernel;
use crate::integer::{IntConv2dShape, PANEL};
use crate::layout::BLOCK;
use dr_precision::BitWidth;

/// Bytes of codes that a task works on: they stay in the second-level cache while panels pass by.
const TASK_BYTES: usize = 512 << 10;

/// Tasks for each thread, at most: so many that none waits long for another.
const TASKS_PER_THREAD: usize = 6;

/// What unpacking a byte costs, in bytes that are read.
const UNPACK_COST: usize = 4;

/// What a word of weights from memory costs, in products.
const WORD_COST: usize = 48;

/// Products in a task, at least: it pays for another thread's attention, if that is awake.
const TASK_PRODUCTS: usize = 1 << 19;

/// In thousandths of all time, what threads may need together if some of them wait a little in the end.
const LITTLE_WAIT: usize = 1100;

/// Lines of output (all images' lines in one count), panels of weights, and how many of each a task has.
pub(super) struct Cut {
    pub(super) lines: usize,
    pub(super) panels: usize,
    pub(super) chunk_lines: usize,
    pub(super) chunk_panels: usize,
}

impl Cut {
    /// The cut of a product whose rows have so many `blocks`.
    pub(super) fn new(kernel: &dyn MicroKernel, shape: &IntConv2dShape, blocks: usize) -> Self {
        let layout = shape.weight();
        let [out_rows, out_cols] = shape.output();
        let panels = if layout.is_depthwise() { 1 } else { layout.groups() * layout.group_panels() };
        if shape.results() == 0 {
            return Self { lines: 0, panels, chunk_lines: 1, chunk_panels: 1 };
        }
        let lines = shape.batch() * out_rows;
        let line_bytes = (out_cols * blocks * BLOCK).max(1);
        let line_products = line_bytes * layout.outputs() / layout.groups();
        let threads = rayon::current_num_threads().max(1);
        let all = line_products.saturating_mul(lines).saturating_mul(layout.groups());
        let work = all.saturating_add(layout.words().saturating_mul(WORD_COST));
        let wanted = match work / TASK_PRODUCTS {
            _ if threads == 1 => 1,
            0 | 1 => 1,
            tasks => tasks.next_multiple_of(threads).min(threads * TASKS_PER_THREAD),
        };
        // Channels by themselves have no tiles.
        let [tile_rows, tile_panels] = if layout.is_depthwise() { [1, 1] } else { kernel.tile() };
        // Every task of lines reads (and unpacks) its panels, every task of panels its lines: whichever costs less is cut.
        let panel_cost = if layout.bits() == BitWidth::B8 { 1 } else { UNPACK_COST };
        let cost = |line_tasks: usize, panel_tasks: usize| {
            line_tasks * panels * blocks * PANEL * BLOCK * panel_cost + panel_tasks * lines * line_bytes
        };
        let cut = |line_tasks: usize| {
            let chunk_lines = lines.div_ceil(line_tasks).next_multiple_of(tile_rows.div_ceil(out_cols));
            let line_tasks = lines.div_ceil(chunk_lines);
            let panel_tasks = wanted.div_ceil(line_tasks).min(panels.div_ceil(tile_panels));
            let chunk_panels = panels.div_ceil(panel_tasks).next_multiple_of(tile_panels);
            let panel_tasks = panels.div_ceil(chunk_panels);
            // First of all there must be work for all threads: how long they take together, the last one's wait included, in thousandths of what there is.
            let rounds = (line_tasks * panel_tasks).div_ceil(threads.min(wanted)) * threads.min(wanted);
            let time = rounds * chunk_lines * chunk_panels * 1000 / (lines * panels).max(1);
            (chunk_lines, chunk_panels, (time.max(LITTLE_WAIT), cost(line_tasks, panel_tasks)))
        };
        let fewest = lines.div_ceil((TASK_BYTES / line_bytes).max(1));
        let cuts = (0..)
            .map(|doublings| fewest << doublings)
            .take_while(|&count| count == fewest || count <= lines.min(wanted));
        let best = cuts.map(cut).min_by_key(|cut| cut.2);
        let (chunk_lines, chunk_panels) = best.map_or((1, 1), |(lines, panels, _)| (lines, panels));
        Self { lines, panels, chunk_lines, chunk_panels }
    }

    pub(super) fn panel_tasks(&self) -> usize {
        self.panels.div_ceil(self.chunk_panels)
    }

    pub(super) fn tasks(&self) -> usize {
        self.lines.div_ceil(self.chunk_lines) * self.panel_tasks()
    }
}
