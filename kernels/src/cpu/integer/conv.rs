//! The loops around tiles.

use super::super::codes::Quantizer;
use super::depthwise;
use super::dot::{DotKernel, Operands, PANELS, ROWS, Sums, correction};
use super::panels::unpack_panels;
use crate::integer::{BLOCK_STEPS, CodeQuantizer, IntConv2dShape, PANEL, STEP, padded_channels};
use crate::layout::BLOCK;
use dr_precision::BitWidth;
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;

/// What becomes of the sums: `sum over scale groups of multiplier * sum`, plus `addend`, plus `residual`, and above zero.
#[derive(Clone, Copy, Debug)]
pub struct Epilogue<'a> {
    /// `[scale groups, outputs]`: products of the scales of input and weight, and of BatchNorm's.
    pub multiplier: &'a [f32],
    /// `[1 or positions, outputs]`: the bias, and what makes up for the zero point of the input.
    pub addend: &'a [f32],
    /// Like the result.
    pub residual: Option<&'a [f32]>,
    /// Whether values below zero become zero.
    pub relu: bool,
}

/// [`crate::reference::int_conv2d`] and [`crate::reference::epilogue`], with weights in panels.
///
/// # Panics
/// If a slice has not the length of the shape.
#[must_use]
pub fn int_conv2d(codes: &[u8], weights: &[u32], shape: &IntConv2dShape, epilogue: &Epilogue) -> Vec<f32> {
    let mut out = vec![0.0; shape.results()];
    int_conv2d_into(DotKernel::detect(), codes, weights, shape, epilogue, &mut out);
    out
}

/// [`int_conv2d`] with `kernel` into `out`.
///
/// # Panics
/// If a slice has not the length of the shape, or the machine has no `kernel`.
pub fn int_conv2d_into(
    kernel: DotKernel, codes: &[u8], weights: &[u32], shape: &IntConv2dShape, epilogue: &Epilogue,
    out: &mut [f32],
) {
    assert_eq!(out.len(), shape.results(), "an output of another size");
    run(kernel, codes, weights, shape, epilogue, Output::Values(out.as_mut_ptr()));
}

/// [`int_conv2d`], and then [`quantize_codes`](super::quantize_codes) of the result: the input of a next layer.
///
/// # Panics
/// If a slice has not the length of the shape.
#[must_use]
pub fn int_conv2d_codes(
    codes: &[u8], weights: &[u32], shape: &IntConv2dShape, epilogue: &Epilogue, to: CodeQuantizer,
) -> Vec<u8> {
    let mut out = vec![0; shape.batch * shape.positions() * padded_channels(shape.weight.outputs)];
    int_conv2d_codes_into(DotKernel::detect(), codes, weights, shape, epilogue, to, &mut out);
    out
}

/// [`int_conv2d_codes`] with `kernel` into `out`, where only the codes of padding are left as they are.
///
/// # Panics
/// If a slice has not the length of the shape, or the machine has no `kernel`.
pub fn int_conv2d_codes_into(
    kernel: DotKernel, codes: &[u8], weights: &[u32], shape: &IntConv2dShape, epilogue: &Epilogue,
    to: CodeQuantizer, out: &mut [u8],
) {
    let padded = padded_channels(shape.weight.outputs);
    assert_eq!(out.len(), shape.batch * shape.positions() * padded, "an output of another size");
    run(kernel, codes, weights, shape, epilogue, Output::Codes(out.as_mut_ptr(), to));
}

/// Where results go. All tasks write to it, each to rows and channels of its own.
#[derive(Clone, Copy)]
enum Output {
    Values(*mut f32),
    Codes(*mut u8, CodeQuantizer),
}

// SAFETY: Tasks write to different elements.
unsafe impl Send for Output {}
// SAFETY: As above.
unsafe impl Sync for Output {}

/// What a thread keeps from one task to the next.
#[derive(Default)]
struct Workspace {
    /// Padded codes.
    codes: Vec<u8>,
    /// Where the window of each row starts in the codes.
    bases: Vec<usize>,
    /// Where the four codes of each step are in a window.
    offsets: Vec<u32>,
    /// Unpacked panels.
    weights: Vec<i8>,
}

thread_local! {
    static WORKSPACE: RefCell<Workspace> = RefCell::default();
}

/// Bytes of codes that a task works on: they stay in the second-level cache while panels pass by.
const TASK_BYTES: usize = 256 << 10;

/// Products in a task, at least: it pays for another thread's attention.
const TASK_PRODUCTS: usize = 1 << 20;

/// From this number of rows on, narrow weights are unpacked to bytes once for all rows of a task.
const UNPACK_ROWS: usize = 2 * ROWS + 1;

fn run(
    kernel: DotKernel, codes: &[u8], weights: &[u32], shape: &IntConv2dShape, epilogue: &Epilogue,
    output: Output,
) {
    let layout = &shape.weight;
    assert!(kernel.is_available(), "this machine has no {kernel}");
    assert_eq!(codes.len(), shape.code_bytes(), "codes of another size");
    assert_eq!(weights.len(), layout.words(), "weights of another size");
    assert_eq!(
        epilogue.multiplier.len(),
        layout.scale_groups() * layout.outputs,
        "a multiplier for each scale"
    );
    let addends = epilogue.addend.len();
    assert!(
        addends == layout.outputs || addends == layout.outputs * shape.positions(),
        "an addend for each output"
    );
    assert!(epilogue.residual.is_none_or(|r| r.len() == shape.results()), "a residual like the output");
    if shape.results() == 0 {
        return;
    }
    let [out_rows, out_cols] = shape.output();
    let lines = shape.batch * out_rows;
    // Lines of output and panels of weights, cut into tasks.
    let line_bytes = (out_cols * layout.blocks() * BLOCK).max(1);
    let line_products = line_bytes * layout.outputs / layout.groups;
    let panels = if layout.is_depthwise() { 1 } else { layout.groups * layout.group_panels() };
    let threads = rayon::current_num_threads();
    let all = line_products.saturating_mul(lines).saturating_mul(layout.groups);
    let wanted = if threads == 1 { 1 } else { (all / TASK_PRODUCTS).clamp(1, threads * 8) };
    let most_lines = (TASK_BYTES / line_bytes).max(ROWS.div_ceil(out_cols));
    let chunk_lines = lines.div_ceil(wanted).min(most_lines).max(1).min(lines);
    let line_tasks = lines.div_ceil(chunk_lines);
    // Few lines: the panels are shared.
    let panel_tasks = wanted.div_ceil(line_tasks).min(panels.div_ceil(PANELS));
    let chunk_panels = panels.div_ceil(panel_tasks).next_multiple_of(kernel.tile()[1]);
    let panel_tasks = panels.div_ceil(chunk_panels);
    let problem = Problem { kernel, codes, weights, shape, epilogue, output };
    let task = |index: usize| {
        let (line, panel) = (index / panel_tasks * chunk_lines, index % panel_tasks * chunk_panels);
        let lines = line..lines.min(line + chunk_lines);
        let panels = panel..panels.min(panel + chunk_panels);
        WORKSPACE.with_borrow_mut(|workspace| problem.task(lines, panels, workspace));
    };
    match line_tasks * panel_tasks {
        1 => task(0),
        tasks => (0..tasks).into_par_iter().for_each(task),
    }
}

/// Everything that tasks share.
struct Problem<'a> {
    kernel: DotKernel,
    codes: &'a [u8],
    weights: &'a [u32],
    shape: &'a IntConv2dShape,
    epilogue: &'a Epilogue<'a>,
    output: Output,
}

/// Consecutive output positions, counted through all images, and the codes that they read.
struct Segment<'a> {
    /// The first position.
    start: usize,
    codes: &'a [u8],
    /// Where the windows start.
    bases: &'a [usize],
    offsets: &'a [u32],
}

impl Problem<'_> {
    /// Computes lines of output, all images' lines in one count.
    fn task(&self, lines: Range<usize>, panels: Range<usize>, workspace: &mut Workspace) {
        let shape = self.shape;
        let [out_rows, out_cols] = shape.output();
        let Workspace { codes: padded, bases, offsets, weights } = workspace;
        let pitch = padded_channels(shape.channels());
        // Steps that do not begin at a word may hang over the end of the codes: they need a copy too.
        let layout = &shape.weight;
        let cut = layout.scale_groups() > 1 && (layout.taps() > 1 || !layout.run().is_multiple_of(STEP));
        let overhang = layout.groups > 1 || cut;
        if shape.padding == [0, 0] && !overhang {
            let [rows, cols] = shape.input;
            self.offsets(cols * pitch, pitch, offsets);
            bases.clear();
            for line in lines.clone() {
                let first = (line / out_rows * rows + line % out_rows * shape.stride[0]) * cols * pitch;
                bases.extend((0..out_cols).map(|col| first + col * shape.stride[1] * pitch));
            }
            let segment = Segment { start: lines.start * out_cols, codes: self.codes, bases, offsets };
            return self.segment(&segment, panels, weights);
        }
        let mut line = lines.start;
        while line < lines.end {
            let (image, row) = (line / out_rows, line % out_rows);
            let count = (out_rows - row).min(lines.end - line);
            let (rows, cols) = self.pad(image, row, count, padded);
            debug_assert!(rows * cols * pitch <= padded.len());
            self.offsets(cols * pitch, pitch, offsets);
            bases.clear();
            for line in 0..count {
                let first = line * shape.stride[0] * cols * pitch;
                bases.extend((0..out_cols).map(|col| first + col * shape.stride[1] * pitch));
            }
            let segment = Segment { start: line * out_cols, codes: padded, bases, offsets };
            self.segment(&segment, panels.clone(), weights);
            line += count;
        }
    }

    /// Copies what `count` lines of output from `row` on read, with zeros around; gives the copy's rows and columns.
    fn pad(&self, image: usize, row: usize, count: usize, padded: &mut Vec<u8>) -> (usize, usize) {
        let shape = self.shape;
        let pitch = padded_channels(shape.channels());
        let ([in_rows, in_cols], [pad_rows, pad_cols]) = (shape.input, shape.padding);
        let reach = (shape.weight.kernel[0] - 1) * shape.dilation[0];
        let (rows, cols) = ((count - 1) * shape.stride[0] + reach + 1, in_cols + 2 * pad_cols);
        // Whatever is read after the last window is multiplied by zero.
        padded.clear();
        padded.resize(rows * cols * pitch + 64, 0);
        let first = row * shape.stride[0];
        let image = &self.codes[image * in_rows * in_cols * pitch..][..in_rows * in_cols * pitch];
        for (at, to) in padded.chunks_exact_mut(cols * pitch).take(rows).enumerate() {
            let Some(from) = (first + at).checked_sub(pad_rows).filter(|&from| from < in_rows) else {
                continue;
            };
            to[pad_cols * pitch..][..in_cols * pitch]
                .copy_from_slice(&image[from * in_cols * pitch..][..in_cols * pitch]);
        }
        (rows, cols)
    }

    /// Where the codes of each step are in a window: tap and channels, in the order of prepared weights.
    fn offsets(&self, row_bytes: usize, pixel_bytes: usize, offsets: &mut Vec<u32>) {
        let (layout, dilation) = (&self.shape.weight, self.shape.dilation);
        let (taps, kernel_cols) = (layout.taps(), layout.kernel[1]);
        let tap_offset = |tap: usize| {
            tap / kernel_cols * dilation[0] * row_bytes + tap % kernel_cols * dilation[1] * pixel_bytes
        };
        offsets.clear();
        if layout.is_depthwise() {
            offsets.extend((0..taps).map(|tap| tap_offset(tap) as u32));
            return;
        }
        let run = layout.run();
        for start in (0..layout.cols()).step_by(run) {
            let end = layout.cols().min(start + run);
            for tap in 0..taps {
                let first = start.saturating_sub(tap).div_ceil(taps);
                let last = end.saturating_sub(tap).div_ceil(taps);
                let step = |channel: usize| (tap_offset(tap) + channel) as u32;
                offsets.extend((first..last).step_by(STEP).map(step));
            }
            // Padding has weights of zero: any codes will do.
            offsets.resize(offsets.len().next_multiple_of(BLOCK_STEPS), 0);
        }
    }

    /// Computes `panels` of a segment.
    fn segment(&self, segment: &Segment, panels: Range<usize>, unpacked: &mut Vec<i8>) {
        let (layout, kernel) = (&self.shape.weight, self.kernel);
        // Without steps nothing is read.
        let farthest =
            segment.offsets.iter().max().map_or(0, |&offset| {
                segment.bases.iter().max().map_or(0, |base| base + offset as usize + STEP)
            });
        if layout.is_depthwise() {
            return self.depthwise(segment, unpacked);
        }
        let [tile_rows, tile_panels] = kernel.tile();
        let group_panels = layout.group_panels();
        let panel_words = layout.blocks() * PANEL * layout.bits.bits() as usize;
        let in_registers = kernel.reads_packed() && segment.bases.len() < UNPACK_ROWS;
        let mut panel = panels.start;
        while panel < panels.end {
            // Panels of one group.
            let in_group = group_panels - panel % group_panels;
            let count = tile_panels.min(in_group).min(panels.end - panel);
            let words = &self.weights[panel * panel_words..][..count * panel_words];
            let (bits, bytes): (_, &[u8]) = if in_registers || layout.bits == BitWidth::B8 {
                (layout.bits, bytemuck::cast_slice(words))
            } else {
                unpacked.resize(count * layout.blocks() * PANEL * BLOCK, 0);
                unpack_panels(words, layout.bits, unpacked);
                (BitWidth::B8, bytemuck::cast_slice(unpacked))
            };
            let group = panel / group_panels;
            let first_channel = group * layout.inputs;
            let fits = farthest == 0 || farthest + first_channel <= segment.codes.len();
            assert!(fits, "windows end inside the codes");
            let weights = Weights { bytes, bits, panels: count };
            let first_output = group * (layout.outputs / layout.groups) + panel % group_panels * PANEL;
            let outputs = (count * PANEL).min((group + 1) * (layout.outputs / layout.groups) - first_output);
            for (tile, bases) in segment.bases.chunks(tile_rows).enumerate() {
                let position = segment.start + tile * tile_rows;
                let place = Place { position, first_output, outputs };
                self.tile(segment, first_channel, bases, &weights, place);
            }
            panel += count;
        }
    }

    /// Computes one tile, all scale groups of it, and writes its results.
    fn tile(
        &self, segment: &Segment, first_channel: usize, bases: &[usize], weights: &Weights, place: Place,
    ) {
        let layout = &self.shape.weight;
        let mut values = [[0.0f32; PANELS * PANEL]; ROWS];
        let mut sums: Sums = [[0; PANELS * PANEL]; ROWS];
        let panel_bytes = weights.bytes.len() / weights.panels;
        let block_bytes = PANEL * STEP * weights.bits.bits() as usize;
        let mut block = 0;
        let whole = [layout.blocks()];
        let groups = if layout.scale_groups() == 1 { &whole[..] } else { &layout.group_blocks() };
        for (group, &blocks) in groups.iter().enumerate() {
            let operands = Operands {
                codes: segment.codes.as_ptr().wrapping_add(first_channel),
                bases,
                offsets: &segment.offsets[block * BLOCK_STEPS..(block + blocks) * BLOCK_STEPS],
                weights: weights.bytes[block * block_bytes..].as_ptr(),
                panel_bytes,
                panels: weights.panels,
                bits: weights.bits,
                narrow: layout.bits != BitWidth::B8,
            };
            // SAFETY: The machine has the instructions: `run` has asserted it. Windows end inside the codes: `segment` has
            // asserted it. A panel has all its blocks, and tiles are not larger than the kernel's.
            unsafe { self.kernel.run(&operands, &mut sums) };
            let multiplier =
                &self.epilogue.multiplier[group * layout.outputs + place.first_output..][..place.outputs];
            for (row, (values, sums)) in values.iter_mut().zip(&sums).enumerate().take(bases.len()) {
                let correction = if weights.bits == BitWidth::B8 { 0 } else { correction(&operands, row) };
                for ((value, sum), multiplier) in values.iter_mut().zip(sums).zip(multiplier) {
                    *value += multiplier * sum.wrapping_sub(correction) as f32;
                }
            }
            block += blocks;
        }
        for (row, values) in values.iter_mut().enumerate().take(bases.len()) {
            self.write(&mut values[..place.outputs], place.position + row, place.first_output);
        }
    }

    /// Adds what is to be added to the `values` of some channels of one position, and writes them.
    pub(super) fn write(&self, values: &mut [f32], position: usize, first_output: usize) {
        let Epilogue { addend, residual, relu, .. } = *self.epilogue;
        let outputs = self.shape.weight.outputs;
        let addend = &addend[(position * outputs + first_output) % addend.len()..][..values.len()];
        values.iter_mut().zip(addend).for_each(|(value, addend)| *value += addend);
        let at = position * outputs + first_output;
        if let Some(residual) = residual {
            values.iter_mut().zip(&residual[at..]).for_each(|(value, residual)| *value += residual);
        }
        if relu {
            values.iter_mut().for_each(|value| *value = value.max(0.0));
        }
        match self.output {
            Output::Values(out) => {
                // SAFETY: The output has room for all positions and channels (asserted where its pointer was taken), and no
                // other task writes to these.
                let out = unsafe { std::slice::from_raw_parts_mut(out.add(at), values.len()) };
                out.copy_from_slice(values);
            }
            Output::Codes(out, to) => {
                let at = position * padded_channels(outputs) + first_output;
                // SAFETY: As above.
                let out = unsafe { std::slice::from_raw_parts_mut(out.add(at), values.len()) };
                let quantizer = Quantizer::unsigned(to.scale, to.bits);
                for (code, value) in out.iter_mut().zip(values) {
                    *code = quantizer.byte(quantizer.quotient(*value - to.zero_point));
                }
            }
        }
    }

    fn depthwise(&self, segment: &Segment, unpacked: &mut Vec<i8>) {
        let layout = &self.shape.weight;
        unpacked.resize(layout.elements(), 0);
        unpack_panels(self.weights, layout.bits, unpacked);
        let blocks = layout.blocks();
        let mut sums = [0i32; PANEL];
        let mut values = [0.0f32; PANEL];
        for (row, base) in segment.bases.iter().enumerate() {
            for (panel, weights) in unpacked.chunks_exact(blocks * PANEL * BLOCK).enumerate() {
                let first = panel * PANEL;
                let outputs = PANEL.min(layout.outputs - first);
                depthwise::sums(&segment.codes[base + first..], segment.offsets, weights, &mut sums);
                let multiplier = &self.epilogue.multiplier[first..][..outputs];
                for ((value, sum), multiplier) in values.iter_mut().zip(sums).zip(multiplier) {
                    *value = multiplier * sum as f32;
                }
                self.write(&mut values[..outputs], segment.start + row, first);
            }
        }
    }
}

/// Some panels: their bytes, and the width that they are packed in.
struct Weights<'a> {
    bytes: &'a [u8],
    bits: BitWidth,
    panels: usize,
}

/// Where a tile's results belong.
#[derive(Clone, Copy)]
struct Place {
    position: usize,
    first_output: usize,
    outputs: usize,
}
