//! The loops around tiles.

use super::super::blocks::with_capacity;
use super::super::isa::{Isa, Kernel};
use super::super::team;
use super::depthwise;
use super::dot::{DotKernel, Form, Operands, PANELS, ROWS, Sums, correction, pair_steps};
use super::epilogue::{Channels, Epilogue, Lanes, Output, PanelSums, added, scaled};
use super::panels::unpack_panels;
use crate::integer::{BLOCK_STEPS, CodeQuantizer, IntConv2dShape, PANEL, STEP, padded_channels};
use crate::layout::BLOCK;
use dr_precision::BitWidth;
use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::ops::Range;

/// [`crate::reference::int_conv2d`] and [`crate::reference::epilogue`], with weights in panels.
///
/// # Panics
/// If a slice has not the length of the shape.
#[must_use]
pub fn int_conv2d(codes: &[u8], weights: &[u32], shape: &IntConv2dShape, epilogue: &Epilogue) -> Vec<f32> {
    fresh(codes, weights, shape, epilogue, None)
}

/// [`int_conv2d`], and its results as codes in `out_codes`, in one pass: what a residual block hands on.
///
/// # Panics
/// If a slice has not the length of the shape.
#[must_use]
pub fn int_conv2d_with_codes(
    codes: &[u8], weights: &[u32], shape: &IntConv2dShape, epilogue: &Epilogue, to: CodeQuantizer,
    out_codes: &mut [u8],
) -> Vec<f32> {
    fresh(codes, weights, shape, epilogue, Some((code_pointer(out_codes, shape), to)))
}

/// Values in new memory.
fn fresh(
    codes: &[u8], weights: &[u32], shape: &IntConv2dShape, epilogue: &Epilogue,
    to: Option<(*mut u8, CodeQuantizer)>,
) -> Vec<f32> {
    let len = shape.results();
    let mut out = with_capacity(len);
    let output = Output { values: Some(out.as_mut_ptr()), codes: to };
    run(DotKernel::detect(), [Product { codes, weights, shape, epilogue, output }]);
    // SAFETY: `run` has written all results, and there is room for them.
    unsafe { out.set_len(len) };
    out
}

/// Where [`int_conv2d_results`] puts its results: as values, as codes, or as both.
#[derive(Debug)]
pub struct Results<'a> {
    /// `[batch, positions, outputs]`.
    pub values: Option<&'a mut [f32]>,
    /// `[batch, positions, padded outputs]`, where only the codes of padding are left as they are, and the quantizer.
    pub codes: Option<(&'a mut [u8], CodeQuantizer)>,
}

/// One of the convolutions of [`int_conv2d_together`].
#[derive(Debug)]
pub struct Job<'a> {
    /// Of the input.
    pub codes: &'a [u8],
    /// In panels.
    pub weights: &'a [u32],
    /// What is computed.
    pub shape: &'a IntConv2dShape,
    /// What becomes of the sums.
    pub epilogue: &'a Epilogue<'a>,
    /// Where they go.
    pub results: Results<'a>,
}

/// Several convolutions with `kernel`, in one loop of all threads: those of one input (the queries, keys and values of a
/// language model) need not wait for each other.
///
/// # Panics
/// If a slice has not the length of its shape, or the machine has no `kernel`.
pub fn int_conv2d_together<const N: usize>(kernel: DotKernel, jobs: [Job; N]) {
    run(
        kernel,
        jobs.map(|Job { codes, weights, shape, epilogue, results }| {
            let values = results.values.map(|out| {
                assert_eq!(out.len(), shape.results(), "an output of another size");
                out.as_mut_ptr()
            });
            let to = results.codes.map(|(out, to)| (code_pointer(out, shape), to));
            Product { codes, weights, shape, epilogue, output: Output { values, codes: to } }
        }),
    );
}

/// [`int_conv2d`] with `kernel` into slices; codes are [`quantize_codes`](super::quantize_codes) of the values.
///
/// # Panics
/// If a slice has not the length of the shape, or the machine has no `kernel`.
pub fn int_conv2d_results(
    kernel: DotKernel, codes: &[u8], weights: &[u32], shape: &IntConv2dShape, epilogue: &Epilogue,
    results: Results,
) {
    int_conv2d_together(kernel, [Job { codes, weights, shape, epilogue, results }]);
}

/// [`int_conv2d`] with `kernel` into `out`.
///
/// # Panics
/// If a slice has not the length of the shape, or the machine has no `kernel`.
pub fn int_conv2d_into(
    kernel: DotKernel, codes: &[u8], weights: &[u32], shape: &IntConv2dShape, epilogue: &Epilogue,
    out: &mut [f32],
) {
    int_conv2d_results(kernel, codes, weights, shape, epilogue, Results { values: Some(out), codes: None });
}

/// Codes of the results.
fn code_len(shape: &IntConv2dShape) -> usize {
    shape.batch() * shape.positions() * padded_channels(shape.weight().outputs())
}

fn code_pointer(out: &mut [u8], shape: &IntConv2dShape) -> *mut u8 {
    assert_eq!(out.len(), code_len(shape), "an output of another size");
    out.as_mut_ptr()
}

/// What a thread keeps from one task to the next.
#[derive(Default)]
struct Workspace {
    /// Padded codes.
    codes: Vec<u8>,
    /// Where the window of each row starts in the codes.
    bases: Vec<usize>,
    panels: PanelWorkspace,
}

/// What a vector instruction reads, without crossing cache lines.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Vector([u8; 64]);

impl Vector {
    /// `len` elements in `vectors`.
    fn room<T: bytemuck::Pod>(vectors: &mut Vec<Self>, len: usize) -> &mut [T] {
        vectors.resize((len * size_of::<T>()).div_ceil(64), Self([0; 64]));
        &mut bytemuck::cast_slice_mut(vectors)[..len]
    }
}

/// What the panels of a segment need.
#[derive(Default)]
struct PanelWorkspace {
    /// Unpacked panels, in bytes and in words.
    unpacked: Vec<Vector>,
    words: Vec<Vector>,
    /// Codes in words.
    wide_codes: Vec<i16>,
    /// What sums are too large by, because narrow codes have offsets: `[rows, scale groups]`.
    corrections: Vec<i32>,
    /// Of the tile under way.
    tile: Tile,
    /// Of one row's tiles, before their results are written.
    sums: Vec<[[i32; PANEL]; PANELS]>,
}

/// Sums and values of a tile: `[rows, panels, 16]`.
struct Tile {
    sums: Sums,
    values: [[Lanes; PANELS]; ROWS],
}

impl Default for Tile {
    fn default() -> Self {
        Self { sums: [[[0; PANEL]; PANELS]; ROWS], values: [[[0.0; PANEL]; PANELS]; ROWS] }
    }
}

thread_local! {
    static WORKSPACE: RefCell<Workspace> = RefCell::default();
    /// Where the four codes of each step are in a window, for the products that this thread has others take part in.
    static OFFSETS: Cell<Vec<Vec<u32>>> = const { Cell::new(Vec::new()) };
}

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

/// What [`run`] is to compute.
#[derive(Clone, Copy)]
struct Product<'a> {
    codes: &'a [u8],
    weights: &'a [u32],
    shape: &'a IntConv2dShape,
    epilogue: &'a Epilogue<'a>,
    output: Output,
}

/// Computes products in one loop.
fn run<const N: usize>(kernel: DotKernel, products: [Product; N]) {
    assert!(kernel.is_available(), "this machine has no {kernel}");
    let mut spare = OFFSETS.take();
    let mut offsets: [Vec<u32>; N] = std::array::from_fn(|_| spare.pop().unwrap_or_default());
    let plans: [Plan; N] = {
        let mut offsets = offsets.iter_mut();
        products.map(|product| match offsets.next() {
            Some(offsets) => Plan::new(kernel, product, offsets),
            None => unreachable!("as many as products"),
        })
    };
    let task = |index: usize| {
        let mut index = index;
        for plan in &plans {
            if index < plan.tasks() {
                return plan.run(index);
            }
            index -= plan.tasks();
        }
    };
    team::for_each(plans.iter().map(Plan::tasks).sum(), task);
    spare.extend(offsets);
    OFFSETS.set(spare);
}

/// A product, cut into tasks: so many lines of output by so many panels of weights.
struct Plan<'a> {
    problem: Problem<'a>,
    lines: usize,
    panels: usize,
    chunk_lines: usize,
    chunk_panels: usize,
}

impl<'a> Plan<'a> {
    fn new(kernel: DotKernel, product: Product<'a>, offsets: &'a mut Vec<u32>) -> Self {
        let Product { codes, weights, shape, epilogue, output } = product;
        let layout = shape.weight();
        assert_eq!(codes.len(), shape.code_bytes(), "codes of another size");
        assert_eq!(weights.len(), layout.words(), "weights of another size");
        epilogue.check(shape);
        let [out_rows, out_cols] = shape.output();
        let lines = if shape.results() == 0 { 0 } else { shape.batch() * out_rows };
        // Lines of output and panels of weights, cut into tasks.
        let groups = layout.group_blocks();
        let blocks = groups.iter().sum::<usize>();
        let line_bytes = (out_cols * blocks * BLOCK).max(1);
        let line_products = line_bytes * layout.outputs() / layout.groups();
        let panels = if layout.is_depthwise() { 1 } else { layout.groups() * layout.group_panels() };
        let threads = rayon::current_num_threads();
        let all = line_products.saturating_mul(lines).saturating_mul(layout.groups());
        let work = all.saturating_add(weights.len().saturating_mul(WORD_COST));
        let wanted =
            if threads == 1 { 1 } else { (work / TASK_PRODUCTS).clamp(1, threads * TASKS_PER_THREAD) };
        let [tile_rows, tile_panels] = kernel.tile();
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
            // First of all there must be work for all threads.
            let tasks = (line_tasks * panel_tasks).min((wanted * 3).div_ceil(4));
            (chunk_lines, chunk_panels, (Reverse(tasks), cost(line_tasks, panel_tasks)))
        };
        let fewest = lines.div_ceil((TASK_BYTES / line_bytes).max(1));
        let cuts = (0..)
            .map(|doublings| fewest << doublings)
            .take_while(|&count| count == fewest || count <= lines.min(wanted));
        let best = if lines == 0 { None } else { cuts.map(cut).min_by_key(|cut| cut.2) };
        let (chunk_lines, chunk_panels) = best.map_or((1, 1), |(lines, panels, _)| (lines, panels));
        let largest =
            if kernel.adds_pairs() { codes.iter().fold(0, |bits, code| bits | code) } else { u8::MAX };
        let pair_steps = pair_steps(layout.bits(), largest);
        let copied = copies_codes(shape);
        window_offsets(shape, shape.input()[1] + if copied { 2 * shape.padding()[1] } else { 0 }, offsets);
        let reach = offsets.iter().max().map_or(0, |&offset| offset as usize + STEP);
        let mut problem = Problem {
            kernel,
            codes,
            weights,
            shape,
            epilogue,
            output,
            copied,
            offsets,
            reach,
            groups,
            blocks,
            pair_steps,
            of_one_row: vec![],
        };
        let one_row = lines * out_cols == 1 && !copied;
        if one_row && kernel.form(layout.bits(), pair_steps, 1) == Form::Packed {
            let mut corrections = vec![];
            Isa::detect().run(Corrections {
                problem: &problem,
                bases: &[0],
                codes,
                corrections: &mut corrections,
            });
            problem.of_one_row = corrections;
        }
        Self { problem, lines, panels, chunk_lines, chunk_panels }
    }

    fn panel_tasks(&self) -> usize {
        self.panels.div_ceil(self.chunk_panels)
    }

    fn tasks(&self) -> usize {
        self.lines.div_ceil(self.chunk_lines) * self.panel_tasks()
    }

    fn run(&self, index: usize) {
        let line = index / self.panel_tasks() * self.chunk_lines;
        let panel = index % self.panel_tasks() * self.chunk_panels;
        let lines = line..self.lines.min(line + self.chunk_lines);
        let panels = panel..self.panels.min(panel + self.chunk_panels);
        let task = |workspace: &mut Workspace| {
            Isa::detect().run(Task { problem: &self.problem, lines, panels, workspace });
        };
        WORKSPACE.with_borrow_mut(task);
    }
}

/// Whether tasks work on copies of their codes: with padding, or because steps that do not begin at a word may hang over
/// the end of the codes.
fn copies_codes(shape: &IntConv2dShape) -> bool {
    let layout = shape.weight();
    let cut = layout.scale_groups() > 1 && (layout.taps() > 1 || !layout.run().is_multiple_of(STEP));
    shape.padding() != [0, 0] || layout.groups() > 1 || cut
}

/// Where the codes of each step are in a window of rows of `cols` pixels: tap and channels, in the order of prepared weights.
fn window_offsets(shape: &IntConv2dShape, cols: usize, offsets: &mut Vec<u32>) {
    let (layout, dilation) = (shape.weight(), shape.dilation());
    let (taps, kernel_cols) = (layout.taps(), layout.kernel()[1]);
    let pixel_bytes = padded_channels(shape.channels());
    let row_bytes = cols * pixel_bytes;
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
            let first_step = tap_offset(tap) + first;
            offsets.extend((0..(last - first).div_ceil(STEP)).map(|step| (first_step + step * STEP) as u32));
        }
        // Padding has weights of zero: any codes will do.
        offsets.resize(offsets.len().next_multiple_of(BLOCK_STEPS), 0);
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
    /// Whether tasks copy their codes.
    copied: bool,
    /// Where the four codes of each step are in a window, and where the last one ends.
    offsets: &'a [u32],
    reach: usize,
    /// Blocks of each scale group, and of all.
    groups: Vec<usize>,
    blocks: usize,
    /// As in [`Operands`].
    pair_steps: usize,
    /// The corrections, if there is one row; else each task makes them for its rows.
    of_one_row: Vec<i32>,
}

/// Lines of output, all images' lines in one count, and panels of weights.
struct Task<'a> {
    problem: &'a Problem<'a>,
    lines: Range<usize>,
    panels: Range<usize>,
    workspace: &'a mut Workspace,
}

impl Kernel for Task<'_> {
    type Output = ();

    // Epilogues are compiled for the machine; tiles are by themselves.
    #[inline(always)]
    fn run(self, _: Isa) {
        self.problem.task(self.lines, self.panels, self.workspace);
    }
}

/// What the sums of some rows are too large by.
struct Corrections<'a> {
    problem: &'a Problem<'a>,
    bases: &'a [usize],
    codes: &'a [u8],
    corrections: &'a mut Vec<i32>,
}

impl Kernel for Corrections<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: Isa) {
        let Self { problem, bases, codes, corrections } = self;
        corrections.clear();
        for &base in bases {
            let mut offsets = problem.offsets;
            for &blocks in &problem.groups {
                let (group, rest) = offsets.split_at(blocks * BLOCK_STEPS);
                corrections.push(correction(&codes[base..], group, problem.shape.weight().bits()));
                offsets = rest;
            }
        }
    }
}

/// Consecutive output positions, counted through all images, and the codes that they read.
struct Segment<'a> {
    /// The first position.
    start: usize,
    codes: &'a [u8],
    /// Where the windows start.
    bases: &'a [usize],
}

impl Problem<'_> {
    #[inline(always)]
    fn task(&self, lines: Range<usize>, panels: Range<usize>, workspace: &mut Workspace) {
        let shape = self.shape;
        let [out_rows, out_cols] = shape.output();
        let Workspace { codes: padded, bases, panels: workspace } = workspace;
        let pitch = padded_channels(shape.channels());
        if !self.copied {
            let [rows, cols] = shape.input();
            bases.clear();
            for line in lines.clone() {
                let first = (line / out_rows * rows + line % out_rows * shape.stride()[0]) * cols * pitch;
                bases.extend((0..out_cols).map(|col| first + col * shape.stride()[1] * pitch));
            }
            let segment = Segment { start: lines.start * out_cols, codes: self.codes, bases };
            return self.segment(&segment, panels, workspace);
        }
        // All images' lines are one segment: small images fill tiles together, and weights are unpacked once for them.
        let cols = shape.input()[1] + 2 * shape.padding()[1];
        padded.clear();
        bases.clear();
        let mut line = lines.start;
        while line < lines.end {
            let (image, row) = (line / out_rows, line % out_rows);
            let count = (out_rows - row).min(lines.end - line);
            let start = padded.len();
            self.pad(image, row, count, cols, padded);
            for line in 0..count {
                let first = start + line * shape.stride()[0] * cols * pitch;
                bases.extend((0..out_cols).map(|col| first + col * shape.stride()[1] * pitch));
            }
            line += count;
        }
        // Whatever is read after the last window is multiplied by zero.
        padded.resize(padded.len() + 64, 0);
        let segment = Segment { start: lines.start * out_cols, codes: padded, bases };
        self.segment(&segment, panels, workspace);
    }

    /// Appends what `count` lines of output from `row` on read, with zeros around: rows of `cols` pixels.
    fn pad(&self, image: usize, row: usize, count: usize, cols: usize, padded: &mut Vec<u8>) {
        let shape = self.shape;
        let pitch = padded_channels(shape.channels());
        let ([in_rows, in_cols], [pad_rows, pad_cols]) = (shape.input(), shape.padding());
        let reach = (shape.weight().kernel()[0] - 1) * shape.dilation()[0];
        let rows = (count - 1) * shape.stride()[0] + reach + 1;
        let first = row * shape.stride()[0];
        let image = &self.codes[image * in_rows * in_cols * pitch..][..in_rows * in_cols * pitch];
        let (row_bytes, left) = (in_cols * pitch, pad_cols * pitch);
        padded.reserve(rows * cols * pitch);
        for at in 0..rows {
            let end = padded.len() + cols * pitch;
            if let Some(from) = (first + at).checked_sub(pad_rows).filter(|&from| from < in_rows) {
                padded.resize(padded.len() + left, 0);
                padded.extend_from_slice(&image[from * row_bytes..][..row_bytes]);
            }
            padded.resize(end, 0);
        }
    }

    /// Computes `panels` of a segment.
    #[inline(always)]
    fn segment(&self, segment: &Segment, panels: Range<usize>, workspace: &mut PanelWorkspace) {
        let PanelWorkspace { unpacked, words, wide_codes, corrections, tile: buffer, sums } = workspace;
        let (layout, kernel) = (self.shape.weight(), self.kernel);
        // Without steps nothing is read.
        let farthest =
            segment.bases.iter().max().filter(|_| self.reach > 0).map_or(0, |base| base + self.reach);
        if layout.is_depthwise() {
            return self.depthwise(segment, unpacked);
        }
        let [_, tile_panels] = kernel.tile();
        let group_panels = layout.group_panels();
        let block_codes = PANEL * BLOCK;
        let panel_words = self.blocks * PANEL * layout.bits().bits() as usize;
        let form = kernel.form(layout.bits(), self.pair_steps, segment.bases.len());
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
                let bases = segment.bases;
                Corrections { problem: self, bases, codes, corrections }.run(Isa::Portable);
            }
            let corrections = if self.of_one_row.is_empty() { &*corrections } else { &self.of_one_row };
            let codes = match form {
                // The codes before `nearest` are not there, and not read.
                Form::Words => wide_codes.as_ptr().wrapping_add(first_channel).wrapping_sub(nearest).cast(),
                _ => codes.as_ptr(),
            };
            let as_they_are = form == Form::Packed || (form == Form::Bytes && layout.bits() == BitWidth::B8);
            if as_they_are && segment.bases.len() == 1 {
                let rows = Rows { codes, bases: segment.bases, offsets: self.offsets, corrections };
                self.stream(&rows, segment.start, panel..end, form, (buffer, sums));
                panel = end;
            }
            while panel < end {
                let count = tile_panels.min(end - panel);
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
                let weights =
                    Weights { bytes, form, bits, panels: count, apart: 1, panel_bytes: bytes.len() / count };
                let tile_rows = kernel.rows(count, form);
                for (tile, bases) in segment.bases.chunks(tile_rows).enumerate() {
                    let first = tile * tile_rows;
                    let corrections = corrections.get(first * self.groups.len()..).unwrap_or_default();
                    let rows = Rows { codes, bases, offsets: self.offsets, corrections };
                    let place = self.place(segment.start + first, panel);
                    self.prefetch(&rows, &weights, place);
                    self.sum(&rows, &weights, place, buffer);
                    self.finish(&rows, &weights, place, buffer);
                }
                panel += count;
            }
        }
    }

    /// Panels of one group for one row: their weights are read from memory, as they are.
    ///
    /// All else that is read and written, little as it is, keeps the processor from fetching them ahead: it is fetched before them, and used after them.
    #[inline(always)]
    fn stream(
        &self, rows: &Rows, position: usize, panels: Range<usize>, form: Form,
        (buffer, sums): (&mut Tile, &mut Vec<[[i32; PANEL]; PANELS]>),
    ) {
        let bits = self.shape.weight().bits();
        let panel_bytes = self.blocks * PANEL * bits.bits() as usize * size_of::<u32>();
        let [_, most] = self.kernel.tile();
        let weights = |together: Together| {
            let Together { first, count, apart } = together;
            let bytes: &[u8] = bytemuck::cast_slice(self.weights);
            let bytes = &bytes[first * panel_bytes..][..((count - 1) * apart + 1) * panel_bytes];
            Weights { bytes, form, bits, panels: count, apart, panel_bytes }
        };
        for panel in panels.clone() {
            let channels = self.place(position, panel).channels(0);
            self.epilogue.prefetch(channels);
            self.output.prefetch(position, channels, self.shape.weight().outputs());
        }
        sums.clear();
        for tile in together(panels.clone(), most) {
            let (weights, place) = (weights(tile), self.place(position, tile.first));
            self.sum(rows, &weights, place, buffer);
            match self.groups.len() {
                1 => sums.push(buffer.sums[0]),
                _ => self.finish(rows, &weights, place, buffer),
            }
        }
        for (tile, sums) in together(panels, most).zip(sums) {
            buffer.sums[0] = *sums;
            self.finish(rows, &weights(tile), self.place(position, tile.first), buffer);
        }
    }

    /// Where results of a tile belong whose first panel is this one.
    #[inline(always)]
    fn place(&self, position: usize, panel: usize) -> Place {
        let layout = self.shape.weight();
        let (group, in_group) = (panel / layout.group_panels(), panel % layout.group_panels() * PANEL);
        let outputs = layout.outputs() / layout.groups();
        Place { position, first_output: group * outputs + in_group, outputs: outputs - in_group }
    }

    /// Fetches what [`Problem::finish`] will read and write.
    #[inline(always)]
    fn prefetch(&self, rows: &Rows, weights: &Weights, place: Place) {
        for panel in 0..weights.panels {
            let channels = place.channels(panel * weights.apart);
            self.epilogue.prefetch(channels);
            for row in 0..rows.bases.len() {
                self.output.prefetch(place.position + row, channels, self.shape.weight().outputs());
            }
        }
    }

    /// Computes the sums of one tile; of more scale groups than one, its values before the epilogue.
    #[inline(always)]
    fn sum(&self, rows: &Rows, weights: &Weights, place: Place, tile: &mut Tile) {
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
            // SAFETY: The machine has the instructions: `run` has asserted it. Windows end inside the codes: `segment` has
            // asserted it. A panel has all its blocks, and tiles are not larger than the kernel's.
            unsafe { self.kernel.run(&operands, &mut tile.sums) };
            block += blocks;
            if self.groups.len() == 1 {
                break; // its sums need not be kept
            }
            for panel in 0..weights.panels {
                let channels = place.channels(panel * weights.apart);
                let multiplier = self.epilogue.multiplier(group, channels, layout.outputs());
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
    fn finish(&self, rows: &Rows, weights: &Weights, place: Place, tile: &Tile) {
        let (epilogue, shape, output) = (self.epilogue, self.shape, self.output);
        for panel in 0..weights.panels {
            let constants =
                epilogue.constants(place.channels(panel * weights.apart), shape.weight().outputs());
            // SAFETY: The output's size was asserted where its pointer was taken; tasks have different positions and
            // channels.
            unsafe {
                if self.groups.len() == 1 {
                    let sums = &tile.sums[..rows.bases.len()];
                    let of = PanelSums { sums, panel, corrections: rows.corrections };
                    epilogue.write_panel(&of, place.position, &constants, shape, output);
                    continue;
                }
                for (row, values) in tile.values[..rows.bases.len()].iter().enumerate() {
                    epilogue.write(values[panel], place.position + row, &constants, shape, output);
                }
            }
        }
    }

    #[inline(always)]
    fn depthwise(&self, segment: &Segment, unpacked: &mut Vec<Vector>) {
        let layout = self.shape.weight();
        let unpacked = Vector::room(unpacked, layout.elements());
        unpack_panels(self.weights, layout.bits(), unpacked);
        for (row, base) in segment.bases.iter().enumerate() {
            let panels = unpacked.chunks_exact(self.blocks * PANEL * BLOCK);
            for (first, weights) in (0..layout.outputs()).step_by(PANEL).zip(panels) {
                let sums = depthwise::sums(&segment.codes[base + first..], self.offsets, weights);
                let channels = Channels { first, count: PANEL.min(layout.outputs() - first) };
                let constants = self.epilogue.constants(channels, layout.outputs());
                let position = segment.start + row;
                // SAFETY: As in `tile`.
                unsafe {
                    self.epilogue.write_sums(&sums, 0, position, &constants, self.shape, self.output);
                }
            }
        }
    }
}

/// The left side of a tile.
struct Rows<'a> {
    /// Bytes, or words.
    codes: *const u8,
    bases: &'a [usize],
    offsets: &'a [u32],
    /// `[rows, scale groups]`, or nothing.
    corrections: &'a [i32],
}

/// Some panels: their bytes (and those of panels between them), and what these are.
struct Weights<'a> {
    bytes: &'a [u8],
    form: Form,
    bits: BitWidth,
    panels: usize,
    /// As in [`Together`].
    apart: usize,
    panel_bytes: usize,
}

/// The panels of a tile: `count`, of which each is the `apart`th after the one before.
#[derive(Clone, Copy)]
struct Together {
    first: usize,
    count: usize,
    apart: usize,
}

/// Cuts panels into tiles of up to `most`, in streams: the first panels of all tiles follow each other in memory, and so do
/// the second ones: the processor goes on fetching them where tiles end. (At 2 bits and 2048 inputs a tenth to a fifth faster.)
fn together(panels: Range<usize>, most: usize) -> impl Iterator<Item = Together> {
    let stream = panels.len() / most;
    let rest = panels.start + stream * most;
    let in_streams =
        (0..stream).map(move |at| Together { first: panels.start + at, count: most, apart: stream });
    let others = (rest < panels.end).then(|| Together { first: rest, count: panels.end - rest, apart: 1 });
    in_streams.chain(others)
}

/// Where a tile's results belong.
#[derive(Clone, Copy)]
struct Place {
    position: usize,
    first_output: usize,
    /// From there to the last one of its group.
    outputs: usize,
}

impl Place {
    /// Those of a panel, counted from the first one.
    #[inline(always)]
    fn channels(self, panel: usize) -> Channels {
        let first = panel * PANEL;
        Channels { first: self.first_output + first, count: PANEL.min(self.outputs - first) }
    }
}
