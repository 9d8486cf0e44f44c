//! Convolution with 3 x 3 kernels in steps of one by minimal filtering, F(2 x 2, 3 x 3) of Winograd (Lavin and Gray,
//! arXiv:1509.09308, section 4): a tile of 2 x 2 outputs comes from 4 x 4 inputs by 16 products for each pair of channels
//! instead of 36, `Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A`.
//!
//! The tiles of a part are transformed to their 16 points, `[16, tiles, channels]`; for each point the channels are multiplied
//! with the transformed kernels in registers; and the sums are transformed to outputs. The gradient of the input is the
//! convolution of the output's gradient with turned kernels. That of the weight is `Gᵀ [Σ (A dY Aᵀ) ⊙ (Bᵀ d B)] G`, over all tiles.

use super::conv2d::{
    BLOCK, Block, Conv2dShape, Done, Finish, Images, Outputs, Padded, Part, Parts, SLACK, Window, blocks,
    cut, finished, lanes, sums_of_products,
};
use super::isa::{Isa, run_on};
use super::vector::{Avx2, Avx512, Portable, Vector};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Points of a tile.
const POINTS: usize = 16;
/// Floats between two points of all tiles: room for what is read past the end, and the points of a tile are not in the same
/// lines of a cache.
const GAP: usize = SLACK;
/// Tiles past the end that may be computed and are not written.
const BEYOND: usize = 12;
/// Fewest tiles of a part, and floats of the points of one.
const TILES: usize = 64;
const FLOATS: usize = 1 << 16;

/// Whether it takes less time than the sum over taps.
pub(super) fn fits(shape: &Conv2dShape) -> bool {
    let [rows, cols] = shape.output();
    let products = rows.div_ceil(2) * cols.div_ceil(2) * POINTS;
    shape.kernel == 3
        && shape.stride == 1
        && shape.padding <= 2
        && !shape.depthwise
        && shape.channels.into_iter().all(|channels| channels >= 8)
        && products < rows * cols * 8
}

/// A line of a tile to the four points of a line, and along both axes of a tile.
trait Transform<const SIDE: usize> {
    /// # Safety
    /// As for the methods of [`Vector`].
    unsafe fn line<V: Vector>(line: [V; SIDE]) -> [V; 4];
}

/// `Bᵀ d`
struct OfInput;
impl Transform<4> for OfInput {
    #[inline(always)]
    unsafe fn line<V: Vector>([a, b, c, d]: [V; 4]) -> [V; 4] {
        // SAFETY: The caller's.
        unsafe { [a.minus(c), b.plus(c), c.minus(b), b.minus(d)] }
    }
}

/// `A dy`
struct OfGradient;
impl Transform<2> for OfGradient {
    #[inline(always)]
    unsafe fn line<V: Vector>([a, b]: [V; 2]) -> [V; 4] {
        // SAFETY: The caller's.
        unsafe { [a, a.plus(b), a.minus(b), V::splat(0.0).minus(b)] }
    }
}

/// `Aᵀ m`
#[inline(always)]
unsafe fn output_line<V: Vector>([a, b, c, d]: [V; 4]) -> [V; 2] {
    // SAFETY: The caller's, as for the methods of [`Vector`].
    unsafe { [a.plus(b).plus(c), b.minus(c).minus(d)] }
}

/// `G g Gᵀ` of kernels side by side.
#[inline(always)]
fn kernel_points(kernels: &[[f32; BLOCK]; 9], points: &mut [[f32; BLOCK]; POINTS]) {
    for lane in 0..BLOCK {
        let mut rows = [[0.0; 4]; 3];
        for (row, points) in rows.iter_mut().enumerate() {
            let (a, b, c) = (kernels[3 * row][lane], kernels[3 * row + 1][lane], kernels[3 * row + 2][lane]);
            *points = [a, 0.5 * (a + c) + 0.5 * b, 0.5 * (a + c) - 0.5 * b, c];
        }
        for col in 0..4 {
            let (a, b, c) = (rows[0][col], rows[1][col], rows[2][col]);
            points[col][lane] = a;
            points[4 + col][lane] = 0.5 * (a + c) + 0.5 * b;
            points[8 + col][lane] = 0.5 * (a + c) - 0.5 * b;
            points[12 + col][lane] = c;
        }
    }
}

/// `Gᵀ s G` of sums side by side.
#[inline(always)]
fn kernel_gradients(sums: &[[f32; BLOCK]; POINTS], gradients: &mut [[f32; BLOCK]; 9]) {
    for lane in 0..BLOCK {
        let mut rows = [[0.0; 3]; 4];
        for (row, taps) in rows.iter_mut().enumerate() {
            let (a, b) = (sums[4 * row][lane], sums[4 * row + 1][lane]);
            let (c, d) = (sums[4 * row + 2][lane], sums[4 * row + 3][lane]);
            *taps = [a + 0.5 * (b + c), 0.5 * (b - c), 0.5 * (b + c) + d];
        }
        for col in 0..3 {
            let (a, b, c, d) = (rows[0][col], rows[1][col], rows[2][col], rows[3][col]);
            gradients[col][lane] = a + 0.5 * (b + c);
            gradients[3 + col][lane] = 0.5 * (b - c);
            gradients[6 + col][lane] = 0.5 * (b + c) + d;
        }
    }
}

/// Tiles of 2 x 2 in `images` of `rows` x `cols`, whose windows are in a buffer.
#[derive(Clone, Copy)]
struct Tiles {
    images: usize,
    rows: usize,
    cols: usize,
    padded: Padded,
}

impl Tiles {
    fn count(self) -> usize {
        self.images * self.rows.div_ceil(2) * self.cols.div_ceil(2)
    }

    /// Floats from a point of all tiles to the next, with `channels` of each.
    fn pitch(self, channels: usize, lanes: usize) -> usize {
        (self.count() + BEYOND) * channels.next_multiple_of(lanes) + GAP
    }

    /// Image, row and column of the first output of a tile.
    fn place(self, tile: usize) -> [usize; 3] {
        let (rows, cols) = (self.rows.div_ceil(2), self.cols.div_ceil(2));
        [tile / (rows * cols), tile / cols % rows * 2, tile % cols * 2]
    }

    /// Writes the points of all tiles, with windows of `SIDE` x `SIDE`.
    fn transform<T: Transform<SIDE>, const SIDE: usize>(
        self, isa: Isa, buffer: &[f32], channels: usize, points: &mut Vec<f32>,
    ) {
        let pitch = self.pitch(channels, lanes(isa));
        points.resize(POINTS * pitch, 0.0);
        let Padded { rows, row, .. } = self.padded;
        assert!(self.rows.next_multiple_of(2) + SIDE - 2 <= rows, "windows end inside the rows");
        assert!(
            (self.cols.next_multiple_of(2) + SIDE - 2) * channels <= row,
            "windows end inside the columns"
        );
        assert!(buffer.len() >= self.images * rows * row + SLACK, "vectors end inside the buffer");
        // SAFETY: Windows are inside the buffer, with room behind them for a whole vector, and points have one. The
        // instructions are those that `run_on` makes sure of.
        run_on!(isa, |isa| unsafe {
            match isa {
                Isa::Portable => self.transform_on::<Portable, T, SIDE>(buffer, channels, pitch, points),
                Isa::Avx2 => self.transform_on::<Avx2, T, SIDE>(buffer, channels, pitch, points),
                Isa::Avx512 => self.transform_on::<Avx512, T, SIDE>(buffer, channels, pitch, points),
            }
        });
    }

    #[inline(always)]
    unsafe fn transform_on<V: Vector, T: Transform<SIDE>, const SIDE: usize>(
        self, buffer: &[f32], channels: usize, pitch: usize, points: &mut [f32],
    ) {
        let width = channels.next_multiple_of(V::LANES);
        for tile in 0..self.count() {
            let [image, row, col] = self.place(tile);
            let from = (image * self.padded.rows + row) * self.padded.row + col * channels;
            for channel in (0..channels).step_by(V::LANES) {
                // SAFETY: The caller's.
                unsafe {
                    let from = buffer.as_ptr().add(from + channel);
                    let to = points.as_mut_ptr().add(tile * width + channel);
                    let mut lines = [[V::splat(0.0); 4]; SIDE];
                    for (row, points) in lines.iter_mut().enumerate() {
                        let mut line = [V::splat(0.0); SIDE];
                        for (col, x) in line.iter_mut().enumerate() {
                            *x = V::load(from.add(row * self.padded.row + col * channels));
                        }
                        *points = T::line(line);
                    }
                    for col in 0..4 {
                        let mut line = [V::splat(0.0); SIDE];
                        for (x, points) in line.iter_mut().zip(&lines) {
                            *x = points[col];
                        }
                        for (row, point) in T::line(line).into_iter().enumerate() {
                            point.store(to.add((4 * row + col) * pitch));
                        }
                    }
                }
            }
        }
    }
}

/// How images are cut for tiles of the given numbers of channels.
fn parts(batch: usize, size: [usize; 2], channels: [usize; 2]) -> Parts {
    let tiles = (FLOATS / (POINTS * channels[0].max(channels[1]))).max(TILES);
    Parts::new(batch, size, 2, 4 * tiles)
}

/// The buffer for windows of `side` x `side`: images of `cols` columns with `padding` zeros before them.
fn padded(parts: Parts, cols: usize, side: usize, padding: usize, channels: usize) -> Padded {
    let reach = |size: usize| size.next_multiple_of(2) + side - 2;
    Padded { rows: reach(parts.band), row: reach(cols) * channels, before: padding * channels }
}

/// The points of kernels: for each block of output channels, `[16, channels in, block]`.
struct Weights {
    packed: Vec<f32>,
    channels: [usize; 2],
    isa: Isa,
}

impl Weights {
    /// `kernel(channel in, channel out)`: nine taps.
    fn pack<'a>(
        channels: [usize; 2], isa: Isa, kernel: impl Fn(usize, usize) -> &'a [f32] + Sync, turned: bool,
    ) -> Self {
        let lanes = lanes(isa);
        let [channels_in, channels_out] = channels;
        let mut packed = vec![0.0; POINTS * channels_in * channels_out.next_multiple_of(lanes)];
        let pieces =
            blocks(channels_out, lanes).map(|block| (block, POINTS * channels_in * block.size(lanes)));
        cut(&mut packed, pieces).into_par_iter().for_each(|(block, packed)| {
            let size = block.size(lanes);
            let (mut kernels, mut points) = ([[0.0; BLOCK]; 9], [[0.0; BLOCK]; POINTS]);
            for channel in 0..channels_in {
                for (lane, out) in (block.first..channels_out).take(size).enumerate() {
                    for (tap, value) in kernel(channel, out).iter().enumerate() {
                        kernels[if turned { 8 - tap } else { tap }][lane] = *value;
                    }
                }
                run_on!(isa, |_| kernel_points(&kernels, &mut points));
                for (point, values) in points.iter().enumerate() {
                    packed[(point * channels_in + channel) * size..][..size].copy_from_slice(&values[..size]);
                }
            }
        });
        Self { packed, channels, isa }
    }

    /// The convolution of images `[batch, rows, cols, channels in]` with `padding` zeros around them.
    fn convolve(
        &self, x: Images<'_>, [batch, rows, cols]: [usize; 3], padding: usize, finish: &impl Finish,
    ) -> (Vec<f32>, [f64; 2]) {
        let [channels_in, channels_out] = self.channels;
        let size = [rows, cols].map(|size| size + 2 * padding - 2);
        let parts = parts(batch, size, self.channels);
        let padded = padded(parts, size[1], 4, padding, channels_in);
        let (len, row) = (batch * size[0] * size[1] * channels_out, size[1] * channels_out);
        finished(len, parts, row, self.isa, finish, |buffers: &mut [Vec<f32>; 3], part, out| {
            let [buffer, points, sums] = buffers;
            let first = part.first_row as isize - padding as isize;
            padded.copy(self.isa, x, part, [rows, cols * channels_in], first, buffer);
            let tiles = Tiles { images: part.images, rows: part.rows, cols: size[1], padded };
            tiles.transform::<OfInput, 4>(self.isa, buffer, channels_in, points);
            self.multiply(points, tiles, sums, out);
        })
    }

    /// Writes the outputs of all tiles.
    fn multiply(&self, points: &[f32], tiles: Tiles, sums: &mut Vec<f32>, out: &mut [MaybeUninit<f32>]) {
        let [channels_in, channels_out] = self.channels;
        let pitch = tiles.pitch(channels_in, lanes(self.isa));
        assert_eq!(points.len(), POINTS * pitch, "the points of all tiles");
        assert_eq!(out.len(), tiles.images * tiles.rows * tiles.cols * channels_out, "their outputs");
        // SAFETY: Points are inside the slice, and outputs: asserted above. The instructions are those that `run_on` makes
        // sure of.
        run_on!(self.isa, |isa| unsafe {
            match isa {
                Isa::Portable => self.blocks::<Portable, 6, 6>(points, tiles, sums, out),
                Isa::Avx2 => self.blocks::<Avx2, 8, 4>(points, tiles, sums, out),
                Isa::Avx512 => self.blocks::<Avx512, 12, 8>(points, tiles, sums, out),
            }
        });
    }

    /// In steps of `ONE` tiles with one vector of channels, or of `TWO` with two.
    #[inline(always)]
    unsafe fn blocks<V: Vector, const ONE: usize, const TWO: usize>(
        &self, points: &[f32], tiles: Tiles, sums: &mut Vec<f32>, out: &mut [MaybeUninit<f32>],
    ) {
        for block in blocks(self.channels[1], V::LANES) {
            // SAFETY: The caller's.
            unsafe {
                match block.vectors {
                    1 => self.block::<V, ONE, 1>(block, points, tiles, sums, out),
                    _ => self.block::<V, TWO, 2>(block, points, tiles, sums, out),
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn block<V: Vector, const P: usize, const N: usize>(
        &self, block: Block, points: &[f32], tiles: Tiles, sums: &mut Vec<f32>, out: &mut [MaybeUninit<f32>],
    ) {
        let [channels_in, channels_out] = self.channels;
        let (size, all) = (N * V::LANES, tiles.count());
        let weights = &self.packed[POINTS * channels_in * block.first..][..POINTS * channels_in * size];
        let (width, pitch) = (channels_in.next_multiple_of(V::LANES), tiles.pitch(channels_in, V::LANES));
        // Weights of many channels are read again only after so many tiles.
        let chunk = P * (channels_in / 64).clamp(1, 8);
        sums.resize(POINTS * chunk * size, 0.0);
        let channels = (channels_out - block.first).min(size);
        for first in (0..all).step_by(chunk) {
            let count = chunk.min(all - first);
            for point in 0..POINTS {
                for start in (0..count).step_by(P) {
                    let from = points[point * pitch + (first + start) * width..].as_ptr();
                    // SAFETY: The caller's; the weights have a vector for each channel.
                    unsafe {
                        let mut tile = [[V::splat(0.0); N]; P];
                        let mut weights = weights.as_ptr().add(point * channels_in * size);
                        for channel in 0..channels_in {
                            let mut w = [V::splat(0.0); N];
                            for (n, w) in w.iter_mut().enumerate() {
                                *w = V::load(weights.add(n * V::LANES));
                            }
                            weights = weights.add(size);
                            for (p, tile) in tile.iter_mut().enumerate() {
                                let x = V::splat(*from.add(p * width + channel));
                                for n in 0..N {
                                    tile[n] = x.multiply_add(w[n], tile[n]);
                                }
                            }
                        }
                        let to = sums[(point * chunk + start) * size..][..P * size].as_mut_ptr();
                        for (p, tile) in tile.into_iter().enumerate() {
                            for (n, sum) in tile.into_iter().enumerate() {
                                sum.store(to.add(p * size + n * V::LANES));
                            }
                        }
                    }
                }
            }
            for tile in 0..count {
                let [image, row, col] = tiles.place(first + tile);
                for n in 0..N {
                    // SAFETY: The caller's.
                    unsafe {
                        let mut lines = [[V::splat(0.0); 2]; 4];
                        for (row, outputs) in lines.iter_mut().enumerate() {
                            let mut line = [V::splat(0.0); 4];
                            for (col, sum) in line.iter_mut().enumerate() {
                                let at = ((4 * row + col) * chunk + tile) * size + n * V::LANES;
                                *sum = V::load(sums.as_ptr().add(at));
                            }
                            *outputs = output_line(line);
                        }
                        for x in 0..2 {
                            let [l0, l1, l2, l3] = lines;
                            for (y, value) in
                                output_line([l0[x], l1[x], l2[x], l3[x]]).into_iter().enumerate()
                            {
                                if row + y < tiles.rows && col + x < tiles.cols {
                                    let at = (image * tiles.rows + row + y) * tiles.cols + col + x;
                                    let to = &mut out[at * channels_out + block.first..][..channels];
                                    store(value, to, n * V::LANES);
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Writes those lanes of a vector that there is room for, from an offset on.
#[inline(always)]
unsafe fn store<V: Vector>(vector: V, to: &mut [MaybeUninit<f32>], offset: usize) {
    let room = to.len() - offset;
    // SAFETY: There is room for the lanes that are written; a vector is that many floats.
    unsafe {
        let to = to.as_mut_ptr().add(offset).cast::<f32>();
        if room >= V::LANES {
            vector.store(to);
        } else {
            to.copy_from_nonoverlapping((&raw const vector).cast(), room);
        }
    }
}

/// [`super::conv2d()`] of a shape that [fits].
pub(super) fn conv2d(isa: Isa, x: Images<'_>, w: &[f32], shape: &Conv2dShape) -> Vec<f32> {
    let channels_in = shape.channels[0];
    let weights = Weights::pack(
        shape.channels,
        isa,
        |channel, out| &w[(out * channels_in + channel) * 9..][..9],
        false,
    );
    weights.convolve(x, [shape.batch, shape.input[0], shape.input[1]], shape.padding, &Done).0
}

/// [`super::conv2d_input_gradient()`] of a shape that [fits].
pub(super) fn conv2d_input_gradient(
    isa: Isa, dy: &[f32], w: &[f32], shape: &Conv2dShape, finish: &impl Finish,
) -> (Vec<f32>, [f64; 2]) {
    let ([channels_in, channels_out], [rows, cols]) = (shape.channels, shape.output());
    let kernel = |channel: usize, out: usize| &w[(channel * channels_in + out) * 9..][..9];
    let weights = Weights::pack([channels_out, channels_in], isa, kernel, true);
    weights.convolve(Images::floats(dy), [shape.batch, rows, cols], 2 - shape.padding, finish)
}

/// [`super::conv2d_weight_gradient()`] of a shape that [fits].
pub(super) fn conv2d_weight_gradient(isa: Isa, x: Images<'_>, dy: &[f32], shape: &Conv2dShape) -> Vec<f32> {
    let ([channels_in, channels_out], [height, width]) = (shape.channels, shape.input);
    let [rows, cols] = shape.output();
    let parts = parts(shape.batch, [rows, cols], shape.channels);
    let of_x = padded(parts, cols, 4, shape.padding, channels_in);
    let of_dy = padded(parts, cols, 2, 0, channels_out);
    let window = Window { rows: 1, pitch: 0, run: channels_in };
    let lanes = lanes(isa);
    let widths = [channels_in, channels_out].map(|channels| channels.next_multiple_of(lanes));
    let add = |buffers: &mut [Vec<f32>; 3], part: Part, blocks: &[Block], mut sums: &mut [f32]| {
        let [buffer, points, of_outputs] = buffers;
        let tiles = |padded| Tiles { images: part.images, rows: part.rows, cols, padded };
        let first = part.first_row as isize - shape.padding as isize;
        of_x.copy(isa, x, part, [height, width * channels_in], first, buffer);
        tiles(of_x).transform::<OfInput, 4>(isa, buffer, channels_in, points);
        of_dy.copy(
            isa,
            Images::floats(dy),
            part,
            [rows, cols * channels_out],
            part.first_row as isize,
            buffer,
        );
        tiles(of_dy).transform::<OfGradient, 2>(isa, buffer, channels_out, of_outputs);
        let [pitch_x, pitch_dy] =
            [channels_in, channels_out].map(|channels| tiles(of_x).pitch(channels, lanes));
        for block in blocks {
            let of_block = sums.split_off_mut(..POINTS * channels_in * block.size(lanes));
            let of_points =
                of_block.expect("sums of all blocks").chunks_exact_mut(channels_in * block.size(lanes));
            for (point, sums) in of_points.enumerate() {
                let outputs = Outputs {
                    counts: [1, 1, tiles(of_x).count()],
                    buffer: &points[point * pitch_x..][..pitch_x],
                    steps: [0, 0, widths[0]],
                    dy: &of_outputs[point * pitch_dy..],
                    channels: widths[1],
                    step: widths[1],
                };
                outputs.add_products(isa, window, &[*block], sums);
            }
        }
    };
    let (steps, row) = (POINTS * channels_in, 9 * channels_in);
    sums_of_products(isa, channels_out, steps, row, parts, add, |sums, size, dw| {
        let (mut points, mut gradients) = ([[0.0; BLOCK]; POINTS], [[0.0; BLOCK]; 9]);
        for channel in 0..channels_in {
            for (point, values) in points.iter_mut().enumerate() {
                values[..size].copy_from_slice(&sums[(point * channels_in + channel) * size..][..size]);
            }
            run_on!(isa, |_| kernel_gradients(&points, &mut gradients));
            for (lane, dw) in dw.chunks_exact_mut(row).enumerate() {
                for (dw, values) in dw[channel * 9..].iter_mut().zip(&gradients) {
                    *dw = values[lane];
                }
            }
        }
    })
}
