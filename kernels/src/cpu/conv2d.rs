//! Float 2D convolution and its two gradients, for training on a CPU. Images are channels last, `[batch, rows, cols,
//! channels]`; weights are as Burn has them, `[channels out, channels in, kernel, kernel]`.
//!
//! A few images, or a band of rows of a large one, are copied with zeros around them to a buffer that stays in the
//! second-level cache. What a row of the kernel meets for one output is then a run of neighbouring floats, all columns and
//! channels, and the convolution is a sum over runs: floats of the run, one by one, times vectors of output channels. Tiles of
//! outputs by channels are added up in registers.
//!
//! The gradient of the input is of the same form: for each residue of row and column modulo the stride, it correlates the
//! output's gradient with the turned kernel's taps of that residue. That of the weight adds up, for tiles of the run by output
//! channels, over all outputs. Kernels of 3 x 3 in steps of one have [fewer products](super::winograd), and depthwise
//! convolutions, the same with a kernel for each channel, [loops](super::depthwise) of their own.

use super::fake_quantize::FakeQuantizer;
use super::isa::{Isa, run_on};
use super::vector::{Avx2, Avx512, Portable, Vector};
use super::{depthwise, winograd};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Sizes of a convolution with square kernels, without dilation, in one group or depthwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dShape {
    /// Images.
    pub batch: usize,
    /// Channels in and out.
    pub channels: [usize; 2],
    /// Rows and columns of an input.
    pub input: [usize; 2],
    /// Side of the kernel.
    pub kernel: usize,
    /// Step along both axes; at least 1.
    pub stride: usize,
    /// Zeros around the input.
    pub padding: usize,
    /// Whether each channel, as many in as out, is convolved for itself.
    pub depthwise: bool,
}

impl Conv2dShape {
    /// Rows and columns of an output: `(size + 2 padding - kernel) / stride + 1`; 0 if the kernel does not fit.
    #[must_use]
    pub const fn output(&self) -> [usize; 2] {
        [self.output_size(self.input[0]), self.output_size(self.input[1])]
    }

    const fn output_size(&self, input: usize) -> usize {
        match (input + 2 * self.padding).checked_sub(self.kernel) {
            Some(room) => room / self.stride + 1,
            None => 0,
        }
    }

    const fn taps(&self) -> usize {
        self.kernel * self.kernel
    }

    /// Weights of an output channel.
    const fn windows(&self) -> usize {
        if self.depthwise { self.taps() } else { self.channels[0] * self.taps() }
    }

    /// Floats of all inputs, of all outputs and of the weight.
    fn lengths(&self) -> [usize; 3] {
        let [inputs, outputs] = [self.input, self.output()].map(|[rows, cols]| self.batch * rows * cols);
        let [channels_in, channels_out] = self.channels;
        [inputs * channels_in, outputs * channels_out, channels_out * self.windows()]
    }
}

/// Outputs that are computed together: about so many. What is added up together does not depend on the number of threads,
/// and so results do not.
const POSITIONS: usize = 256;
/// As many positions as an image counts for at least.
const IMAGE: usize = 16;
/// Parts of whole images are a multiple of so many, of nearly equal size, so that threads have as much to do.
const EVENLY: usize = 4;
/// Vectors of channels in a tile.
const VECTORS: usize = 2;
/// Most channels of a [`Block`].
pub(super) const BLOCK: usize = VECTORS * 16;
/// What tiles may read past the end of a run.
pub(super) const SLACK: usize = 16;

/// How a tensor `[batch, rows, cols, channels]` is cut into parts: whole images, or bands of rows of one image.
#[derive(Clone, Copy)]
pub(super) struct Parts {
    batch: usize,
    rows: usize,
    /// Images of a part; 1 if it has not all rows.
    images: usize,
    /// Rows of a part.
    pub band: usize,
}

/// One of [`Parts`].
#[derive(Clone, Copy)]
pub(super) struct Part {
    first_image: usize,
    pub images: usize,
    pub first_row: usize,
    pub rows: usize,
}

impl Parts {
    /// Of about so many positions, and a multiple of `step` rows.
    pub fn new(batch: usize, [rows, cols]: [usize; 2], step: usize, positions: usize) -> Self {
        let band = (2 * positions / cols.max(1)).max(1).next_multiple_of(step);
        let images = (positions / (rows * cols).max(1)).clamp(1, positions / IMAGE);
        let parts = batch.div_ceil(images).next_multiple_of(EVENLY);
        let (images, band) = if band < rows { (1, band) } else { (batch.div_ceil(parts).max(1), rows) };
        Self { batch, rows, images, band }
    }

    /// With the floats of each, in rows of `row` floats.
    pub fn of_rows(self, row: usize) -> impl Iterator<Item = (Part, usize)> {
        self.iter().map(move |part| (part, part.images * part.rows * row))
    }

    pub fn iter(self) -> impl Iterator<Item = Part> {
        (0..self.batch).step_by(self.images).flat_map(move |first_image| {
            let images = self.images.min(self.batch - first_image);
            (0..self.rows).step_by(self.band).map(move |first_row| {
                let rows = self.band.min(self.rows - first_row);
                Part { first_image, images, first_row, rows }
            })
        })
    }
}

/// Cuts `values` into pieces, with what they are for and how long they are.
pub(super) fn cut<P, T>(
    mut values: &mut [T], pieces: impl Iterator<Item = (P, usize)>,
) -> Vec<(P, &mut [T])> {
    let piece = |(of, len): (P, usize)| (of, values.split_off_mut(..len).expect("pieces of the whole"));
    pieces.map(piece).collect()
}

/// Images `[batch, rows, cols, channels]` that a convolution reads.
#[derive(Clone, Copy, Debug)]
pub struct Images<'a> {
    /// Their values.
    pub values: &'a [f32],
    /// What fake-quantizes the values as they are read.
    pub quantizer: Option<FakeQuantizer>,
}

impl<'a> Images<'a> {
    /// Images whose values are what is convolved.
    #[must_use]
    pub const fn floats(values: &'a [f32]) -> Self {
        Self { values, quantizer: None }
    }
}

/// Rows of images with zeros around them, in floats.
#[derive(Clone, Copy)]
pub(super) struct Padded {
    /// Rows of an image in the buffer.
    pub rows: usize,
    /// Floats of a row in the buffer, and of the zeros before a row of the image.
    pub row: usize,
    pub before: usize,
}

impl Padded {
    /// Copies rows of the images of a part, `[rows, width]` each: row 0 of the buffer is row `first` of the image, which may
    /// be before or behind it.
    pub fn copy(
        self, isa: Isa, images: Images<'_>, part: Part, [rows, width]: [usize; 2], first: isize,
        buffer: &mut Vec<f32>,
    ) {
        buffer.resize(part.images * self.rows * self.row + SLACK, 0.0);
        for (image, to) in
            buffer.chunks_exact_mut((self.rows * self.row).max(1)).take(part.images).enumerate()
        {
            let image = &images.values[(part.first_image + image) * rows * width..][..rows * width];
            for (row, to) in to.chunks_exact_mut(self.row.max(1)).enumerate() {
                match usize::try_from(first + row as isize) {
                    Ok(row) if row < rows => {
                        to[..self.before].fill(0.0);
                        let (from, to_row) =
                            (&image[row * width..][..width], &mut to[self.before..][..width]);
                        match images.quantizer {
                            Some(quantizer) => run_on!(isa, |_| quantizer.forward(from, to_row)),
                            None => to_row.copy_from_slice(from),
                        }
                        to[self.before + width..].fill(0.0);
                    }
                    _ => to.fill(0.0),
                }
            }
        }
    }
}

/// Which floats a correlation meets: `rows` runs of `run` floats, `pitch` apart.
#[derive(Clone, Copy)]
pub(super) struct Window {
    pub rows: usize,
    pub pitch: usize,
    pub run: usize,
}

/// Positions as offsets: where its window begins in the buffer, and where its channels are in the output.
pub(super) type Positions = Vec<[usize; 2]>;

/// Positions of `images` times `rows` times `cols`, by their steps in the buffer and in the output, from two offsets on.
fn positions(counts: [usize; 3], steps: [[usize; 3]; 2], from: [usize; 2]) -> Positions {
    let [images, rows, cols] = counts;
    let mut positions = Vec::with_capacity(images * rows * cols);
    for image in 0..images {
        for row in 0..rows {
            for col in 0..cols {
                let offset = |i: usize| from[i] + image * steps[i][0] + row * steps[i][1] + col * steps[i][2];
                positions.push([offset(0), offset(1)]);
            }
        }
    }
    positions
}

/// Weights as vectors of output channels: for each block of them, `[rows, run, block]`, zeros at the end.
struct Weights {
    packed: Vec<f32>,
    window: Window,
    channels: usize,
    isa: Isa,
}

/// Channels that are computed together: the first one, and how many vectors.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub first: usize,
    pub vectors: usize,
}

impl Block {
    /// Channels, with those that fill the last vector.
    pub const fn size(self, lanes: usize) -> usize {
        self.vectors * lanes
    }
}

/// Blocks of channels on vectors of so many lanes.
pub(super) fn blocks(channels: usize, lanes: usize) -> impl Iterator<Item = Block> {
    let block = move |first: usize| {
        let vectors = (channels - first).min(lanes * VECTORS).div_ceil(lanes);
        Block { first, vectors }
    };
    (0..channels).step_by(lanes * VECTORS).map(block)
}

/// The instructions for so many channels: no longer vectors than they fill.
const fn narrow(isa: Isa, channels: usize) -> Isa {
    match isa {
        Isa::Avx512 if channels <= Avx2::LANES => Isa::Avx2,
        isa => isa,
    }
}

pub(super) const fn lanes(isa: Isa) -> usize {
    match isa {
        Isa::Portable => Portable::LANES,
        Isa::Avx2 => Avx2::LANES,
        Isa::Avx512 => Avx512::LANES,
    }
}

impl Weights {
    /// `weight(row, place in the run, channel)`.
    fn pack(
        window: Window, channels: usize, isa: Isa, weight: impl Fn(usize, usize, usize) -> f32 + Sync,
    ) -> Self {
        let isa = narrow(isa, channels);
        let lanes = lanes(isa);
        let steps = window.rows * window.run;
        let mut packed = vec![0.0; steps * channels.next_multiple_of(lanes)];
        let pieces = blocks(channels, lanes).map(|block| (block, steps * block.size(lanes)));
        cut(&mut packed, pieces).into_par_iter().for_each(|(block, packed)| {
            for (step, packed) in packed.chunks_exact_mut(block.size(lanes)).enumerate() {
                let (row, place) = (step / window.run, step % window.run);
                for (packed, channel) in packed.iter_mut().zip(block.first..channels) {
                    *packed = weight(row, place, channel);
                }
            }
        });
        Self { packed, window, channels, isa }
    }

    /// Writes the channels of all positions.
    fn correlate(&self, buffer: &[f32], positions: &[[usize; 2]], out: &mut [MaybeUninit<f32>]) {
        if positions.is_empty() || self.channels == 0 {
            return;
        }
        let ends = |i: usize| positions.iter().map(|position| position[i]).max().unwrap_or(0);
        let reach = self.window.rows.saturating_sub(1) * self.window.pitch + self.window.run;
        assert!(ends(0) + reach <= buffer.len(), "windows end inside the buffer");
        assert!(ends(1) + self.channels <= out.len(), "positions are inside the output");
        // SAFETY: Windows and outputs are inside the slices: asserted above. The instructions are those that `run_on` makes
        // sure of.
        run_on!(self.isa, |isa| unsafe {
            match isa {
                Isa::Portable => self.blocks::<Portable, 12, 6>(buffer, positions, out),
                Isa::Avx2 => self.blocks::<Avx2, 12, 6>(buffer, positions, out),
                Isa::Avx512 => self.blocks::<Avx512, 12, 12>(buffer, positions, out),
            }
        });
    }

    /// In tiles of `ONE` positions with one vector of channels, or of `TWO` with two.
    #[inline(always)]
    unsafe fn blocks<V: Vector, const ONE: usize, const TWO: usize>(
        &self, buffer: &[f32], positions: &[[usize; 2]], out: &mut [MaybeUninit<f32>],
    ) {
        let steps = self.window.rows * self.window.run;
        for block in blocks(self.channels, V::LANES) {
            let (first, size) = (block.first, block.size(V::LANES));
            let weights = &self.packed[steps * first..][..steps * size];
            let channels = (self.channels - first).min(size);
            // SAFETY: The caller's.
            unsafe {
                match block.vectors {
                    1 => self.tiles::<V, ONE, 1>(buffer, positions, weights, [first, channels], out),
                    _ => self.tiles::<V, TWO, 2>(buffer, positions, weights, [first, channels], out),
                }
            }
        }
    }

    /// A block of channels, in tiles of `P` positions.
    #[inline(always)]
    unsafe fn tiles<V: Vector, const P: usize, const N: usize>(
        &self, buffer: &[f32], positions: &[[usize; 2]], weights: &[f32], [first, channels]: [usize; 2],
        out: &mut [MaybeUninit<f32>],
    ) {
        let last = positions.len() - 1;
        let Window { rows, pitch, run } = self.window;
        for start in (0..positions.len()).step_by(P) {
            // Past the end the last position is computed again.
            let mut from = [buffer.as_ptr(); P];
            for (p, from) in from.iter_mut().enumerate() {
                *from = from.wrapping_add(positions[(start + p).min(last)][0]);
            }
            // SAFETY: The caller's; the weights have a vector for each step.
            unsafe {
                let mut sums = [[V::splat(0.0); N]; P];
                let mut weights = weights.as_ptr();
                for row in 0..rows {
                    let at = row * pitch;
                    for place in at..at + run {
                        let mut w = [V::splat(0.0); N];
                        for (n, w) in w.iter_mut().enumerate() {
                            *w = V::load(weights.add(n * V::LANES));
                        }
                        weights = weights.add(N * V::LANES);
                        for p in 0..P {
                            let x = V::splat(*from[p].add(place));
                            for n in 0..N {
                                sums[p][n] = x.multiply_add(w[n], sums[p][n]);
                            }
                        }
                    }
                }
                // By way of memory: sums whose address is taken are not in registers.
                let sums = sums;
                let from = (&raw const sums).cast::<f32>();
                for p in 0..P {
                    let to = positions[(start + p).min(last)][1] + first;
                    let (from, to) = (from.add(p * N * V::LANES), out.as_mut_ptr().add(to).cast::<f32>());
                    if channels == N * V::LANES {
                        for n in 0..N {
                            V::load(from.add(n * V::LANES)).store(to.add(n * V::LANES));
                        }
                    } else {
                        to.copy_from_nonoverlapping(from, channels);
                    }
                }
            }
        }
    }
}

/// Packed weights of either kind.
enum Kernel {
    Dense(Weights),
    Depthwise(depthwise::Weights),
}

impl Kernel {
    /// `weight(row, place in the run, channel)`.
    fn dense(
        window: Window, channels: usize, isa: Isa, weight: impl Fn(usize, usize, usize) -> f32 + Sync,
    ) -> Self {
        Self::Dense(Weights::pack(window, channels, isa, weight))
    }

    /// `weight(row, column, channel)`.
    fn depthwise(
        window: Window, channels: usize, isa: Isa, weight: impl Fn(usize, usize, usize) -> f32,
    ) -> Self {
        Self::Depthwise(depthwise::Weights::pack(window, channels, isa, weight))
    }

    /// Writes the channels of all positions.
    fn correlate(&self, buffer: &[f32], positions: &[[usize; 2]], out: &mut [MaybeUninit<f32>]) {
        match self {
            Self::Dense(weights) => weights.correlate(buffer, positions, out),
            Self::Depthwise(weights) => weights.correlate(buffer, positions, out),
        }
    }
}

/// Positions of a part's outputs: their windows in the buffer, and the outputs.
fn output_positions(shape: &Conv2dShape, parts: Parts, padded: Padded) -> Positions {
    let ([channels_in, channels_out], [_, cols]) = (shape.channels, shape.output());
    let steps = [
        [padded.rows * padded.row, shape.stride * padded.row, shape.stride * channels_in],
        [parts.band * cols * channels_out, cols * channels_out, channels_out],
    ];
    positions([parts.images, parts.band, cols], steps, [0, 0])
}

/// The buffer and the window of an output: the input with zeros around it.
fn input_window(shape: &Conv2dShape, rows: usize) -> (Padded, Window) {
    let channels = shape.channels[0];
    let row = (shape.input[1] + 2 * shape.padding) * channels;
    let rows = (rows.max(1) - 1) * shape.stride + shape.kernel;
    let window = Window { rows: shape.kernel, pitch: row, run: shape.kernel * channels };
    (Padded { rows, row, before: shape.padding * channels }, window)
}

/// A new vector of `len` floats, all of which `write` must write, and what it gives besides.
pub(super) fn written<R>(len: usize, write: impl FnOnce(&mut [MaybeUninit<f32>]) -> R) -> (Vec<f32>, R) {
    let mut values = super::blocks::with_capacity(len);
    let result = write(&mut values.spare_capacity_mut()[..len]);
    // SAFETY: `write` has written them: its duty, within this crate.
    unsafe { values.set_len(len) };
    (values, result)
}

/// What is done with the gradient of a part of an input once it is computed.
pub(super) trait Finish: Sync {
    /// With the floats from number `start` on.
    fn part(&self, isa: Isa, start: usize, dx: &mut [f32]) -> [f64; 2];
}

/// Nothing: the gradient is that of floats.
pub(super) struct Done;

impl Finish for Done {
    fn part(&self, _: Isa, _: usize, _: &mut [f32]) -> [f64; 2] {
        [0.0; 2]
    }
}

/// Makes it the gradient of values that were fake-quantized when they were read, and gives the sums for scale and zero point.
struct OfQuantized<'a> {
    x: &'a [f32],
    quantizer: FakeQuantizer,
}

impl Finish for OfQuantized<'_> {
    fn part(&self, isa: Isa, start: usize, dx: &mut [f32]) -> [f64; 2] {
        let x = &self.x[start..][..dx.len()];
        run_on!(isa, |_| self.quantizer.backward(x, dx))
    }
}

/// `[batch, rows out, cols out, channels out]` from `x` `[batch, rows, cols, channels in]` and `w` `[channels out, channels in,
/// kernel, kernel]`.
///
/// # Panics
/// If the slices have not the lengths of the shape.
#[must_use]
pub fn conv2d(x: Images<'_>, w: &[f32], shape: &Conv2dShape) -> Vec<f32> {
    conv2d_on(Isa::detect(), x, w, shape)
}

fn conv2d_on(isa: Isa, x: Images<'_>, w: &[f32], shape: &Conv2dShape) -> Vec<f32> {
    let [inputs, outputs, weights] = shape.lengths();
    assert_eq!((x.values.len(), w.len()), (inputs, weights), "an input and a weight of other sizes");
    let ([channels_in, channels_out], [rows, cols], k) = (shape.channels, shape.output(), shape.kernel);
    if [inputs, outputs, weights].contains(&0) {
        return vec![0.0; outputs];
    }
    if winograd::fits(shape) {
        return winograd::conv2d(isa, x, w, shape);
    }
    let parts = Parts::new(shape.batch, [rows, cols], 1, POSITIONS);
    let (padded, window) = input_window(shape, parts.band);
    let weights = if shape.depthwise {
        Kernel::depthwise(window, channels_in, isa, |row, col, channel| w[(channel * k + row) * k + col])
    } else {
        Kernel::dense(window, channels_out, isa, |row, place, channel| {
            w[((channel * channels_in + place % channels_in) * k + row) * k + place / channels_in]
        })
    };
    let positions = output_positions(shape, parts, padded);
    let width = shape.input[1] * channels_in;
    let write = |out: &mut [MaybeUninit<f32>]| {
        cut(out, parts.of_rows(cols * channels_out)).into_par_iter().for_each_init(
            Vec::new,
            |buffer, (part, out)| {
                let first = (part.first_row * shape.stride) as isize - shape.padding as isize;
                padded.copy(isa, x, part, [shape.input[0], width], first, buffer);
                weights.correlate(buffer, &positions[..part.images * part.rows * cols], out);
            },
        );
    };
    written(outputs, write).0
}

/// The taps of a residue modulo the stride, along one axis.
#[derive(Clone, Copy)]
struct Residue {
    /// The first input of the residue.
    first: usize,
    /// The first tap, and how many there are.
    tap: usize,
    taps: usize,
    /// Where the window of the first input begins in the padded gradient.
    from: usize,
}

impl Residue {
    /// Of inputs `i` with `(i + padding) % stride == tap`.
    fn new(tap: usize, shape: &Conv2dShape) -> Self {
        let Conv2dShape { kernel, stride, padding, .. } = *shape;
        let first = (tap + stride - padding % stride) % stride;
        let taps = if tap < kernel { (kernel - 1 - tap) / stride + 1 } else { 0 };
        // Output `o` meets tap `tap + j stride` at input `o stride + tap + j stride - padding`.
        let last = (first + padding - tap) / stride;
        Self { first, tap, taps, from: last + margin(shape) + 1 - taps.max(1) }
    }
}

/// Zeros before and behind the gradient of the output.
const fn margin(shape: &Conv2dShape) -> usize {
    (shape.kernel - 1) / shape.stride
}

/// The gradient of the input from that of the output, `dy` `[batch, rows out, cols out, channels out]`.
///
/// # Panics
/// If the slices have not the lengths of the shape.
#[must_use]
pub fn conv2d_input_gradient(dy: &[f32], w: &[f32], shape: &Conv2dShape) -> Vec<f32> {
    conv2d_input_gradient_on(Isa::detect(), dy, w, shape, &Done).0
}

/// The gradient of values `x` that the convolution [fake-quantizes](Images::quantizer), and the gradients of scale and zero
/// point but for [their factor](crate::layout::ScaleLayout::gradient_factor).
///
/// # Panics
/// If the slices have not the lengths of the shape.
#[must_use]
pub fn conv2d_quantized_input_gradient(
    dy: &[f32], w: &[f32], x: &[f32], quantizer: FakeQuantizer, shape: &Conv2dShape,
) -> (Vec<f32>, [f64; 2]) {
    quantized_input_gradient_on(Isa::detect(), dy, w, x, quantizer, shape)
}

fn quantized_input_gradient_on(
    isa: Isa, dy: &[f32], w: &[f32], x: &[f32], quantizer: FakeQuantizer, shape: &Conv2dShape,
) -> (Vec<f32>, [f64; 2]) {
    assert_eq!(x.len(), shape.lengths()[0], "an input of another size");
    conv2d_input_gradient_on(isa, dy, w, shape, &OfQuantized { x, quantizer })
}

fn conv2d_input_gradient_on(
    isa: Isa, dy: &[f32], w: &[f32], shape: &Conv2dShape, finish: &impl Finish,
) -> (Vec<f32>, [f64; 2]) {
    let [inputs, outputs, weights] = shape.lengths();
    assert_eq!((dy.len(), w.len()), (outputs, weights), "a gradient and a weight of other sizes");
    let ([channels_in, channels_out], k, stride) = (shape.channels, shape.kernel, shape.stride);
    let ([rows, cols], [height, width]) = (shape.input, shape.output());
    if [inputs, outputs, weights].contains(&0) {
        let mut dx = vec![0.0; inputs];
        let sums = finish.part(isa, 0, &mut dx);
        return (dx, sums);
    }
    if winograd::fits(shape) {
        return winograd::conv2d_input_gradient(isa, dy, w, shape, finish);
    }
    let parts = Parts::new(shape.batch, [rows, cols], stride, POSITIONS);
    // The farthest windows end here, for the last row of a band and for the last column.
    let reach = |size: usize| (size - 1 + shape.padding) / stride + 1 + margin(shape);
    let row = reach(cols).max(width + margin(shape)) * channels_out;
    let padded = Padded { rows: reach(parts.band), row, before: margin(shape) * channels_out };
    let of_band = |part: Part, residue: Residue| (part.rows + stride - 1 - residue.first) / stride;
    let residues: Vec<_> = (0..stride * stride)
        .map(|residue| [residue / stride, residue % stride].map(|tap| Residue::new(tap, shape)))
        .filter(|residues| residues[0].first < parts.band && residues[1].first < cols)
        .map(|[y, x]| {
            let window = Window { rows: y.taps, pitch: row, run: x.taps * channels_out };
            let tap = |row: usize, col: usize| {
                (y.tap + (y.taps - 1 - row) * stride) * k + x.tap + (x.taps - 1 - col) * stride
            };
            let weights = if shape.depthwise {
                Kernel::depthwise(window, channels_in, isa, |row, col, channel| {
                    w[channel * k * k + tap(row, col)]
                })
            } else {
                Kernel::dense(window, channels_in, isa, |row, place, channel| {
                    let kernel = place % channels_out * channels_in + channel;
                    w[kernel * k * k + tap(row, place / channels_out)]
                })
            };
            let steps = [
                [padded.rows * row, row, channels_out],
                [parts.band * cols * channels_in, stride * cols * channels_in, stride * channels_in],
            ];
            let from = [y.from * row + x.from * channels_out, (y.first * cols + x.first) * channels_in];
            let cols = (cols + stride - 1 - x.first) / stride;
            let counts = [parts.images, (parts.band + stride - 1 - y.first) / stride, cols];
            (y, cols, weights, positions(counts, steps, from))
        })
        .collect();
    let dy = Images::floats(dy);
    finished(inputs, parts, cols * channels_in, isa, finish, |buffer: &mut Vec<f32>, part, dx| {
        let first = (part.first_row / stride) as isize - margin(shape) as isize;
        padded.copy(isa, dy, part, [height, width * channels_out], first, buffer);
        for (y, cols, weights, positions) in &residues {
            // Inputs that no tap meets have no window, and so a gradient of zero.
            weights.correlate(buffer, &positions[..part.images * of_band(part, *y) * cols], dx);
        }
    })
}

/// A tensor of `len` floats in rows of `row`, the parts of which are written by `write` and then finished. The sums are added up in
/// the order of the parts.
pub(super) fn finished<S: Default>(
    len: usize, parts: Parts, row: usize, isa: Isa, finish: &impl Finish,
    write: impl Fn(&mut S, Part, &mut [MaybeUninit<f32>]) + Sync,
) -> (Vec<f32>, [f64; 2]) {
    let (values, sums) = written(len, |values| {
        let starts = parts.of_rows(row).scan(0, |start, (part, len)| {
            *start += len;
            Some(((part, *start - len), len))
        });
        let one = |state: &mut S, ((part, start), values): ((Part, usize), &mut [MaybeUninit<f32>])| {
            write(state, part, values);
            // SAFETY: `write` has written all of them.
            finish.part(isa, start, unsafe { values.assume_init_mut() })
        };
        cut(values, starts).into_par_iter().map_init(S::default, one).collect::<Vec<_>>()
    });
    (values, sums.into_iter().fold([0.0; 2], |[a, b], [c, d]| [a + c, b + d]))
}

/// Most tasks of a gradient of weights.
const TASKS: usize = 16;
/// Floats of the gradient of a weight that are worth a task of their own.
const OWN: usize = 1 << 15;

/// How sums for so many weights over so many parts, for so many blocks of channels, are cut into tasks: groups of parts and
/// splits of the blocks. Few weights: of some parts each. Many: of some channels each.
fn tasks(weights: usize, parts: usize, blocks: usize) -> [usize; 2] {
    let groups = (TASKS * OWN / weights.max(1)).clamp(1, TASKS).min(parts);
    // Splits do not change what is added up, and so their number may depend on that of the threads.
    [groups, (2 * rayon::current_num_threads()).div_ceil(groups).min(blocks)]
}

/// The gradient of the weight from that of the output, `dy`, and the input `x`, both channels last.
///
/// # Panics
/// If the slices have not the lengths of the shape.
#[must_use]
pub fn conv2d_weight_gradient(x: Images<'_>, dy: &[f32], shape: &Conv2dShape) -> Vec<f32> {
    conv2d_weight_gradient_on(Isa::detect(), x, dy, shape)
}

fn conv2d_weight_gradient_on(isa: Isa, x: Images<'_>, dy: &[f32], shape: &Conv2dShape) -> Vec<f32> {
    let [inputs, outputs, weights] = shape.lengths();
    assert_eq!((x.values.len(), dy.len()), (inputs, outputs), "tensors of other sizes");
    if [inputs, outputs, weights].contains(&0) {
        return vec![0.0; weights];
    }
    if winograd::fits(shape) {
        return winograd::conv2d_weight_gradient(isa, x, dy, shape);
    }
    let ([channels_in, channels_out], k) = (shape.channels, shape.kernel);
    let [rows, cols] = shape.output();
    let parts = Parts::new(shape.batch, [rows, cols], 1, POSITIONS);
    let (padded, window) = input_window(shape, parts.band);
    let width = shape.input[1] * channels_in;
    let dy_of = |part: &Part| {
        let first = (part.first_image * rows + part.first_row) * cols * channels_out;
        &dy[first..][..part.images * part.rows * cols * channels_out]
    };
    let copy = |part: Part, buffer: &mut Vec<f32>| {
        let first = (part.first_row * shape.stride) as isize - shape.padding as isize;
        padded.copy(isa, x, part, [shape.input[0], width], first, buffer);
    };
    let steps = window.rows * window.run;
    if shape.depthwise {
        let positions = output_positions(shape, parts, padded);
        let all: Vec<Part> = parts.iter().collect();
        let sums = |parts: &[Part]| {
            let (mut sums, mut buffer) = (vec![0.0; weights], vec![]);
            for part in parts {
                copy(*part, &mut buffer);
                let (buffer, positions, dy) = (&buffer[..], &positions, dy_of(part));
                let outputs = depthwise::Outputs { buffer, positions, dy, channels: channels_in };
                outputs.add_products(isa, window, &mut sums);
            }
            sums
        };
        let [groups, _] = tasks(weights, all.len(), 1);
        let sums = all.par_chunks(all.len().div_ceil(groups)).map(sums).collect::<Vec<_>>().into_iter();
        let sums = total(sums).unwrap_or_default();
        return (0..weights).map(|i| sums[i % shape.taps() * channels_in + i / shape.taps()]).collect();
    }
    let add = |buffer: &mut Vec<f32>, part: Part, blocks: &[Block], sums: &mut [f32]| {
        copy(part, buffer);
        let outputs = Outputs {
            counts: [part.images, part.rows, cols],
            buffer,
            steps: [padded.rows * padded.row, shape.stride * padded.row, shape.stride * channels_in],
            dy: dy_of(&part),
            channels: channels_out,
            step: channels_out,
        };
        outputs.add_products(isa, window, blocks, sums);
    };
    let taps = shape.taps();
    sums_of_products(isa, channels_out, steps, channels_in * taps, parts, add, |sums, size, dw| {
        let mut kernels = vec![[0.0; BLOCK]; taps];
        for channel in 0..channels_in {
            for (tap, values) in kernels.iter_mut().enumerate() {
                let step = tap / k * window.run + tap % k * channels_in + channel;
                values[..size].copy_from_slice(&sums[step * size..][..size]);
            }
            for (lane, dw) in dw.chunks_exact_mut(channels_in * taps).enumerate() {
                for (dw, values) in dw[channel * taps..].iter_mut().zip(&kernels) {
                    *dw = values[lane];
                }
            }
        }
    })
}

/// The gradient of a weight from sums of products over all parts, `[steps, block]` for each block of output channels: `add` adds
/// those of a part for some blocks, and `write` makes rows of `row` floats of those of a block, one for each of its channels.
pub(super) fn sums_of_products<S: Default>(
    isa: Isa, channels: usize, steps: usize, row: usize, parts: Parts,
    add: impl Fn(&mut S, Part, &[Block], &mut [f32]) + Sync,
    write: impl Fn(&[f32], usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    let lanes = lanes(isa);
    let all: Vec<Part> = parts.iter().collect();
    let blocks: Vec<Block> = blocks(channels, lanes).collect();
    let [groups, splits] = tasks(steps * channels, all.len(), blocks.len());
    let (per_group, per_split) = (all.len().div_ceil(groups), blocks.len().div_ceil(splits));
    let sizes = |blocks: &[Block]| blocks.iter().map(|block| block.size(lanes)).sum::<usize>();
    let tasks: Vec<_> = blocks
        .chunks(per_split)
        .flat_map(|blocks| all.chunks(per_group).map(move |parts| (blocks, parts)))
        .collect();
    let sums = |(blocks, parts): (&[Block], &[Part])| {
        let (mut sums, mut state) = (vec![0.0; steps * sizes(blocks)], S::default());
        parts.iter().for_each(|part| add(&mut state, *part, blocks, &mut sums));
        sums
    };
    let mut sums = tasks.into_par_iter().map(sums).collect::<Vec<_>>().into_iter();
    let groups = all.len().div_ceil(per_group);
    let of_split = |_| total(sums.by_ref().take(groups)).expect("a task for each split and group");
    let totals: Vec<Vec<f32>> = blocks.chunks(per_split).map(of_split).collect();
    let mut gradient = vec![0.0; channels * row];
    let rows =
        |(index, block): (usize, &Block)| (index, (channels - block.first).min(block.size(lanes)) * row);
    cut(&mut gradient, blocks.iter().enumerate().map(rows)).into_par_iter().for_each(|(index, gradient)| {
        let (first, size) = (index / per_split * per_split, blocks[index].size(lanes));
        let before = steps * sizes(&blocks[first..index]);
        write(&totals[index / per_split][before..][..steps * size], size, gradient);
    });
    gradient
}

/// The sum of all, in their order.
fn total(mut all: impl Iterator<Item = Vec<f32>>) -> Option<Vec<f32>> {
    let mut total = all.next()?;
    let rest: Vec<_> = all.collect();
    total.par_chunks_mut(OWN / 16).enumerate().for_each(|(index, total)| {
        for sums in &rest {
            let sums = &sums[index * (OWN / 16)..];
            total.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
        }
    });
    Some(total)
}

/// Outputs of a part with the windows that they come from.
pub(super) struct Outputs<'a> {
    /// Images, rows and columns.
    pub counts: [usize; 3],
    pub buffer: &'a [f32],
    /// Of the windows in the buffer, for an image, a row and a column.
    pub steps: [usize; 3],
    /// `[images, rows, cols, channels]`
    pub dy: &'a [f32],
    pub channels: usize,
    /// Floats from the channels of an output to those of the next.
    pub step: usize,
}

impl Outputs<'_> {
    /// Adds to `sums`, `[rows, run, block]` for each block, the products of all floats of the window with all channels.
    pub fn add_products(&self, isa: Isa, window: Window, blocks: &[Block], sums: &mut [f32]) {
        let [images, rows, cols] = self.counts;
        let behind = (images * rows * cols - 1) * self.step + self.channels;
        assert!(behind <= self.dy.len(), "a gradient for each output");
        let last = (images - 1) * self.steps[0] + (rows - 1) * self.steps[1] + (cols - 1) * self.steps[2];
        let reach = (window.rows - 1) * window.pitch + window.run;
        assert!(last + reach + SLACK <= self.buffer.len(), "windows end inside the buffer");
        // SAFETY: Windows are inside the buffer, with room behind them for whole tiles, and gradients in their slice. The
        // instructions are those that `run_on` makes sure of.
        run_on!(isa, |isa| unsafe {
            match isa {
                Isa::Portable => self.blocks::<Portable, 8, 4>(window, blocks, sums),
                Isa::Avx2 => self.blocks::<Avx2, 8, 4>(window, blocks, sums),
                Isa::Avx512 => self.blocks::<Avx512, 16, 8>(window, blocks, sums),
            }
        });
    }

    /// Tiles of `ONE` floats and one vector, or of `TWO` floats and two.
    #[inline(always)]
    unsafe fn blocks<V: Vector, const ONE: usize, const TWO: usize>(
        &self, window: Window, blocks: &[Block], mut sums: &mut [f32],
    ) {
        for block in blocks {
            let (of_block, rest) = sums.split_at_mut(window.rows * window.run * block.size(V::LANES));
            sums = rest;
            // SAFETY: The caller's.
            unsafe {
                match block.vectors {
                    1 => self.tiles::<V, ONE, 1>(window, block.first, of_block),
                    _ => self.tiles::<V, TWO, 2>(window, block.first, of_block),
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn tiles<V: Vector, const R: usize, const N: usize>(
        &self, window: Window, first: usize, sums: &mut [f32],
    ) {
        let [images, rows, cols] = self.counts;
        let whole = self.channels - first >= N * V::LANES;
        // Channels that are not a whole vector are copied to one that has zeros at its end.
        let mut ends = vec![];
        if !whole {
            ends.resize(images * rows * cols * N * V::LANES, 0.0f32);
            for (end, dy) in ends.chunks_exact_mut(N * V::LANES).zip(self.dy.chunks(self.step)) {
                end[..self.channels - first].copy_from_slice(&dy[first..self.channels]);
            }
        }
        let (dy, step) = match whole {
            true => (self.dy[first..].as_ptr(), self.step),
            false => (ends.as_ptr(), N * V::LANES),
        };
        for row in 0..window.rows {
            for place in (0..window.run).step_by(R) {
                // SAFETY: The caller's.
                unsafe {
                    let mut tile = [[V::splat(0.0); N]; R];
                    let mut dy = dy;
                    for image in 0..images {
                        for y in 0..rows {
                            let from = image * self.steps[0] + y * self.steps[1] + row * window.pitch + place;
                            let mut x = self.buffer.as_ptr().add(from);
                            for _ in 0..cols {
                                let mut g = [V::splat(0.0); N];
                                for (n, g) in g.iter_mut().enumerate() {
                                    *g = V::load(dy.add(n * V::LANES));
                                }
                                for (r, tile) in tile.iter_mut().enumerate() {
                                    let x = V::splat(*x.add(r));
                                    for n in 0..N {
                                        tile[n] = x.multiply_add(g[n], tile[n]);
                                    }
                                }
                                dy = dy.wrapping_add(step);
                                x = x.wrapping_add(self.steps[2]);
                            }
                        }
                    }
                    let count = R.min(window.run - place);
                    let to = &mut sums[(row * window.run + place) * N * V::LANES..][..count * N * V::LANES];
                    for (to, tile) in to.chunks_exact_mut(N * V::LANES).zip(tile) {
                        for (n, tile) in tile.into_iter().enumerate() {
                            let to = to.as_mut_ptr().add(n * V::LANES);
                            tile.multiply_add(V::splat(1.0), V::load(to)).store(to);
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Operation, fake_quantize_activation, fake_quantize_activation_backward};
    use crate::layout::ScaleLayout;
    use crate::reference;
    use dr_precision::{BitWidth, Granularity};
    use proptest::prelude::*;

    fn values(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1000.0 - 1.0).collect()
    }

    fn close(got: &[f32], want: &[f64]) {
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            assert!((f64::from(*got) - want).abs() <= 1e-4 * want.abs().max(1.0), "{got} {want}");
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_reference(
            batch in 0usize..40, channels in [1usize..40, 1usize..40], input in [1usize..12, 1usize..12],
            kernel in 1usize..4, stride in 1usize..4, padding in 0usize..3, depthwise: bool,
        ) {
            let channels = if depthwise { [channels[0]; 2] } else { channels };
            let shape = Conv2dShape { batch, channels, input, kernel, stride, padding, depthwise };
            let [inputs, outputs, weights] = shape.lengths();
            let (x, w, dy) = (values(inputs, 1), values(weights, 2), values(outputs, 3));
            let y = reference::conv2d(&x, &w, &shape);
            let dx = reference::conv2d_input_gradient(&dy, &w, &shape);
            let dw = reference::conv2d_weight_gradient(&x, &dy, &shape);
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                close(&conv2d_on(isa, Images::floats(&x), &w, &shape), &y);
                close(&conv2d_input_gradient_on(isa, &dy, &w, &shape, &Done).0, &dx);
                close(&conv2d_weight_gradient_on(isa, Images::floats(&x), &dy, &shape), &dw);
            }
        }

        #[test]
        fn activations_are_quantized_as_they_are_read(
            batch in 0usize..20, channels in [1usize..24, 1usize..24], input in [1usize..10, 1usize..10],
            kernel in 1usize..4, stride in 1usize..3, padding in 0usize..3, depthwise: bool,
            bits in 2u32..=8, zero in -0.5f32..0.5,
        ) {
            let bits = BitWidth::try_from(bits).expect("a width");
            let channels = if depthwise { [channels[0]; 2] } else { channels };
            let shape = Conv2dShape { batch, channels, input, kernel, stride, padding, depthwise };
            let [inputs, outputs, weights] = shape.lengths();
            let (x, w, dy) = (values(inputs, 1), values(weights, 2), values(outputs, 3));
            let scale = 1.3 / bits.unsigned_max() as f32;
            let quantizer = FakeQuantizer::new(scale, zero, bits);
            let layout = ScaleLayout::activations(&[inputs], Granularity::Tensor).expect("one scale");
            let (scales, zeros) = ([scale], [zero]);
            let quantized = fake_quantize_activation(&x, &scales, &zeros, &layout, bits).collect().0;
            let images = Images { values: &x, quantizer: Some(quantizer) };
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                // The same products of the same values: equal to the last digit.
                let floats = Images::floats(&quantized);
                prop_assert_eq!(conv2d_on(isa, images, &w, &shape), conv2d_on(isa, floats, &w, &shape));
                let of_images = conv2d_weight_gradient_on(isa, images, &dy, &shape);
                prop_assert_eq!(of_images, conv2d_weight_gradient_on(isa, floats, &dy, &shape));
                let (of_quantized, _) = conv2d_input_gradient_on(isa, &dy, &w, &shape, &Done);
                let gradients =
                    fake_quantize_activation_backward(&x, &scales, &zeros, &of_quantized, &layout, bits);
                let (dx, (of_scale, of_zero)) = gradients.collect();
                let (got, sums) = quantized_input_gradient_on(isa, &dy, &w, &x, quantizer, &shape);
                prop_assert_eq!(got, dx);
                let [got_scale, got_zero] = quantizer.of_scale(sums, &layout);
                for (got, want) in [(got_scale, of_scale[0]), (got_zero, of_zero[0])] {
                    prop_assert!((got - want).abs() <= 1e-5 * want.abs().max(1e-3), "{got} {want}");
                }
            }
        }
    }

    #[test]
    fn bands_of_large_images_are_parts() {
        for (stride, depthwise) in [(1, false), (2, false), (3, false), (2, true)] {
            let shape = Conv2dShape {
                batch: 2,
                channels: [3, 3],
                input: [67, 61],
                kernel: 3,
                stride,
                padding: 1,
                depthwise,
            };
            assert!(Parts::new(2, shape.output(), 1, POSITIONS).band < shape.output()[0] || stride > 1);
            let [inputs, outputs, weights] = shape.lengths();
            let (x, w, dy) = (values(inputs, 1), values(weights, 2), values(outputs, 3));
            close(&conv2d(Images::floats(&x), &w, &shape), &reference::conv2d(&x, &w, &shape));
            close(
                &conv2d_input_gradient(&dy, &w, &shape),
                &reference::conv2d_input_gradient(&dy, &w, &shape),
            );
            close(
                &conv2d_weight_gradient(Images::floats(&x), &dy, &shape),
                &reference::conv2d_weight_gradient(&x, &dy, &shape),
            );
        }
    }
}
