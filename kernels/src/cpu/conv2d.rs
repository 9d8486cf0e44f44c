//! Float 2D convolution with few channels and its two gradients, for training on a CPU. Burn's `flex` spends most of
//! such a convolution on making an `im2col` matrix; here that matrix is never made.
//!
//! Images are copied, padded, into *planes*: one for each residue of row and column modulo the stride, so that the
//! inputs of neighbouring outputs are neighbours for every stride. All planes have the same row pitch, so output
//! position `o` (row times pitch plus column) and kernel tap `t` of channel `c` meet at `base(c, t) + o`: row
//! `(c, t)` of the `im2col` matrix is just a window of the planes. What falls on padding columns is computed and
//! not used.
//!
//! Both gradients are of the same form: that of the input correlates the output's gradient with the turned kernel,
//! once for each residue; that of the weight is a dot product of two windows.

use super::isa::{Isa, run_on};
use rayon::prelude::*;

/// Sizes of a convolution with square kernels, without dilation and groups.
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

    /// Images that are computed together.
    fn chunk(&self) -> usize {
        let [height, width] = self.output();
        (CHUNK_POSITIONS / (height * width).max(1)).clamp(CHUNK[0], CHUNK[1])
    }

    const fn is_empty(&self) -> bool {
        let [height, width] = self.output();
        self.batch * self.channels[0] * self.channels[1] * self.taps() * height * width == 0
    }
}

/// Images that are computed together: at least so many, and more where they are small. They do not depend on the number
/// of threads, and so results do not.
const CHUNK: [usize; 2] = [4, 16];
/// Positions of images that are computed together, where that takes no more than [`CHUNK`] images.
const CHUNK_POSITIONS: usize = 2048;
/// Lanes of the vectors that loops are written for.
const LANES: usize = 16;
/// Output channels and vectors of the largest tile of a correlation: 16 accumulators of AVX-512. Smaller tiles divide it.
const TILE: [usize; 2] = [8, 2];
/// What loops may read past the last position.
const SLACK: usize = LANES * TILE[1];

type Lanes = [f32; LANES];

/// How a chunk of images lies in planes.
#[derive(Clone, Copy)]
struct Planes {
    images: usize,
    rows: usize,
    pitch: usize,
}

impl Planes {
    /// Positions of one plane, in whole vectors.
    const fn positions(&self) -> usize {
        (self.images * self.rows * self.pitch).next_multiple_of(LANES)
    }
}

/// `[batch, channels out, ..]` from `x` `[batch, channels in, ..]` and `w` `[channels out, channels in, kernel, kernel]`.
///
/// # Panics
/// If the slices have not the lengths of the shape.
#[must_use]
pub fn conv2d(x: &[f32], w: &[f32], shape: &Conv2dShape) -> Vec<f32> {
    let [channels_in, channels_out] = shape.channels;
    let [height, width] = shape.output();
    let out_len = channels_out * height * width;
    let mut out = vec![0.0; shape.batch * out_len];
    if shape.is_empty() {
        return out;
    }
    let weights =
        Weights::pack(channels_out, channels_in * shape.taps(), |o, r| w[o * channels_in * shape.taps() + r]);
    let in_len = channels_in * shape.input[0] * shape.input[1];
    assert_eq!(x.len(), shape.batch * in_len, "an input of another size");
    let chunks = out.par_chunks_mut(shape.chunk() * out_len).zip(x.par_chunks(shape.chunk() * in_len));
    chunks.for_each(|(out, x)| {
        let (planes, buffer) = split_input(x, shape);
        let bases = bases(shape, &planes);
        let mut result = vec![0.0; channels_out.next_multiple_of(TILE[0]) * padded(planes.positions())];
        weights.correlate(&buffer, &bases, planes.positions(), &mut result);
        gather(&result, &planes, [channels_out, height, width], out);
    });
    out
}

/// The gradient of the input from that of the output, `dy`.
///
/// # Panics
/// If the slices have not the lengths of the shape.
#[must_use]
pub fn conv2d_input_gradient(dy: &[f32], w: &[f32], shape: &Conv2dShape) -> Vec<f32> {
    let [channels_in, channels_out] = shape.channels;
    let ([in_rows, in_cols], [height, width]) = (shape.input, shape.output());
    let in_len = channels_in * in_rows * in_cols;
    let mut dx = vec![0.0; shape.batch * in_len];
    if shape.is_empty() {
        return dx;
    }
    let (k, stride) = (shape.kernel, shape.stride);
    // Position `a` of a residue's plane takes `dy[a - tap / stride]`: zeros before and after make that a window.
    let margin = (k - 1) / stride;
    let residue_rows = (in_rows + 2 * shape.padding).div_ceil(stride);
    let residue_cols = (in_cols + 2 * shape.padding).div_ceil(stride);
    let pitch = residue_cols.max(width) + margin;
    let rows = residue_rows.max(height) + margin;
    // For each residue: its taps, and the weights from output channels to input channels.
    let residues: Vec<_> = (0..stride * stride)
        .map(|residue| {
            let [ry, rx] = [residue / stride, residue % stride];
            let taps: Vec<[usize; 2]> = (0..shape.taps())
                .map(|t| [t / k, t % k])
                .filter(|[ky, kx]| ky % stride == ry && kx % stride == rx)
                .collect();
            let weight = |i: usize, r: usize| {
                let (o, [ky, kx]) = (r / taps.len(), taps[r % taps.len()]);
                w[((o * channels_in + i) * k + ky) * k + kx]
            };
            let weights = Weights::pack(channels_in, channels_out * taps.len(), weight);
            ([ry, rx], taps, weights)
        })
        .filter(|(_, taps, _)| !taps.is_empty()) // inputs that no tap meets
        .collect();
    let out_len = channels_out * height * width;
    assert_eq!(dy.len(), shape.batch * out_len, "a gradient of another size");
    let chunks = dx.par_chunks_mut(shape.chunk() * in_len).zip(dy.par_chunks(shape.chunk() * out_len));
    chunks.for_each(|(dx, dy)| {
        let planes = Planes { images: dy.len() / out_len, rows, pitch };
        let buffer = scatter(dy, &planes, [channels_out, height, width], margin);
        let positions = planes.positions();
        let mut result = vec![0.0; channels_in.next_multiple_of(TILE[0]) * padded(positions)];
        for ([ry, rx], taps, weights) in &residues {
            let bases: Vec<usize> = (0..channels_out)
                .flat_map(|o| {
                    let back = |[ky, kx]: &[usize; 2]| (margin - ky / stride) * pitch + margin - kx / stride;
                    taps.iter().map(move |tap| o * positions + back(tap))
                })
                .collect();
            weights.correlate(&buffer, &bases, positions, &mut result);
            // Row `a` of the residue is row `a * stride + ry - padding` of the input.
            for (image, dx) in dx.chunks_exact_mut(in_len).enumerate() {
                for channel in 0..channels_in {
                    let plane = &result[channel * padded(positions) + image * rows * pitch..];
                    for a in 0..residue_rows {
                        let Some(y) = (a * stride + ry).checked_sub(shape.padding).filter(|&y| y < in_rows)
                        else {
                            continue;
                        };
                        let row = &mut dx[(channel * in_rows + y) * in_cols..][..in_cols];
                        let from = &plane[a * pitch..][..residue_cols];
                        let first = shape.padding.saturating_sub(*rx).div_ceil(stride);
                        let start = first * stride + rx - shape.padding;
                        for (to, from) in row.iter_mut().skip(start).step_by(stride).zip(&from[first..]) {
                            *to = *from;
                        }
                    }
                }
            }
        }
    });
    dx
}

/// The gradient of the weight from that of the output, `dy`, and the input.
///
/// # Panics
/// If the slices have not the lengths of the shape.
#[must_use]
pub fn conv2d_weight_gradient(x: &[f32], dy: &[f32], shape: &Conv2dShape) -> Vec<f32> {
    let [channels_in, channels_out] = shape.channels;
    let [height, width] = shape.output();
    let windows = channels_in * shape.taps();
    let mut dw = vec![0.0; channels_out * windows];
    if shape.is_empty() {
        return dw;
    }
    let in_len = channels_in * shape.input[0] * shape.input[1];
    let out_len = channels_out * height * width;
    assert_eq!((x.len(), dy.len()), (shape.batch * in_len, shape.batch * out_len), "tensors of other sizes");
    let chunks = x.par_chunks(shape.chunk() * in_len).zip(dy.par_chunks(shape.chunk() * out_len));
    let parts: Vec<Vec<f32>> = chunks
        .map(|(x, dy)| {
            let (planes, buffer) = split_input(x, shape);
            let bases = bases(shape, &planes);
            let gradient = scatter(dy, &planes, [channels_out, height, width], 0);
            let (positions, windows) = (planes.positions(), Windows { buffer: &buffer, bases: &bases });
            run_on!(Isa::detect(), |isa| match isa {
                Isa::Portable => windows.dots::<false, 8, 4, 3>(&gradient, positions, channels_out),
                Isa::Avx2 => windows.dots::<true, 8, 4, 3>(&gradient, positions, channels_out),
                Isa::Avx512 => windows.dots::<true, 16, 4, 6>(&gradient, positions, channels_out),
            })
        })
        .collect();
    for part in parts {
        dw.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
    }
    dw
}

/// Positions rounded up to whole tiles.
const fn padded(positions: usize) -> usize {
    positions.next_multiple_of(SLACK)
}

/// Copies images `[n, channels, rows, cols]` into planes: `[channels, residues, images, rows, pitch]`.
fn split_input(x: &[f32], shape: &Conv2dShape) -> (Planes, Vec<f32>) {
    let ([channels, _], [in_rows, in_cols], stride) = (shape.channels, shape.input, shape.stride);
    let planes = Planes {
        images: x.len() / (channels * in_rows * in_cols),
        rows: (in_rows + 2 * shape.padding).div_ceil(stride),
        pitch: (in_cols + 2 * shape.padding).div_ceil(stride),
    };
    let (positions, residues) = (planes.positions(), stride * stride);
    let mut buffer = vec![0.0; channels * residues * positions + window_slack(shape, &planes)];
    for (index, row) in x.chunks_exact(in_cols).enumerate() {
        let (y, channel, image) =
            (index % in_rows + shape.padding, index / in_rows % channels, index / (in_rows * channels));
        let plane = channel * residues + y % stride * stride;
        let start = plane * positions + (image * planes.rows + y / stride) * planes.pitch;
        if stride == 1 {
            buffer[start + shape.padding..][..in_cols].copy_from_slice(row);
            continue;
        }
        for residue in 0..stride {
            // The first column at or after the padding that has this residue.
            let first = shape.padding.saturating_sub(residue).div_ceil(stride);
            let values = row.iter().skip(first * stride + residue - shape.padding).step_by(stride);
            let to = &mut buffer[start + residue * positions + first..];
            to.iter_mut().zip(values).for_each(|(to, &value)| *to = value);
        }
    }
    (planes, buffer)
}

/// How far windows and whole tiles reach past the last plane.
const fn window_slack(shape: &Conv2dShape, planes: &Planes) -> usize {
    (shape.kernel / shape.stride + 1) * (planes.pitch + 1) + SLACK
}

/// Where the window of each input channel and tap starts.
fn bases(shape: &Conv2dShape, planes: &Planes) -> Vec<usize> {
    let (k, stride, positions) = (shape.kernel, shape.stride, planes.positions());
    let base = |index: usize| {
        let (channel, ky, kx) = (index / shape.taps(), index / k % k, index % k);
        let plane = channel * stride * stride + ky % stride * stride + kx % stride;
        plane * positions + ky / stride * planes.pitch + kx / stride
    };
    (0..shape.channels[0] * shape.taps()).map(base).collect()
}

/// Dense `[n, channels, height, width]` into planes with `margin` zeros before rows and columns: `[channels, images,
/// rows, pitch]`, and zeros after them.
fn scatter(dense: &[f32], planes: &Planes, [channels, height, width]: [usize; 3], margin: usize) -> Vec<f32> {
    let slack = (margin + 1) * (planes.pitch + 1) + SLACK;
    let mut buffer = vec![0.0; channels * planes.positions() + slack];
    for (index, row) in dense.chunks_exact(width).enumerate() {
        let (y, channel, image) = (index % height, index / height % channels, index / (height * channels));
        let row_index = image * planes.rows + y + margin;
        let start = channel * planes.positions() + row_index * planes.pitch + margin;
        buffer[start..][..width].copy_from_slice(row);
    }
    buffer
}

/// The used positions of `[channels, padded positions]` to dense `[n, channels, height, width]`.
fn gather(result: &[f32], planes: &Planes, [channels, height, width]: [usize; 3], out: &mut [f32]) {
    let stride = padded(planes.positions());
    for (index, row) in out.chunks_exact_mut(width).enumerate() {
        let (y, channel, image) = (index % height, index / height % channels, index / (height * channels));
        row.copy_from_slice(&result[channel * stride + (image * planes.rows + y) * planes.pitch..][..width]);
    }
}

/// Weights `[out, rows]`, packed `[out / TILE, rows, TILE]`, zeros at the end.
struct Weights {
    packed: Vec<[f32; TILE[0]]>,
    rows: usize,
}

impl Weights {
    fn pack(outputs: usize, rows: usize, weight: impl Fn(usize, usize) -> f32) -> Self {
        let tile = |index: usize| {
            let (first, row) = (index / rows * TILE[0], index % rows);
            std::array::from_fn(|c| if first + c < outputs { weight(first + c, row) } else { 0.0 })
        };
        Self { packed: (0..outputs.div_ceil(TILE[0]) * rows).map(tile).collect(), rows }
    }

    /// `out[o][p] = sum over rows r of weight[o][r] * buffer[bases[r] + p]`, with `out` `[out, padded(positions)]`.
    fn correlate(&self, buffer: &[f32], bases: &[usize], positions: usize, out: &mut [f32]) {
        assert_eq!(bases.len(), self.rows, "a window for each row");
        let farthest = bases.iter().max().map_or(0, |base| base + padded(positions));
        assert!(farthest <= buffer.len(), "windows end inside the buffer");
        run_on!(Isa::detect(), |isa| match isa {
            Isa::Portable => self.tiles::<false, 4, 1>(buffer, bases, positions, out),
            Isa::Avx2 => self.tiles::<true, 4, 1>(buffer, bases, positions, out),
            Isa::Avx512 => self.tiles::<true, 8, 2>(buffer, bases, positions, out),
        });
    }

    /// [`Weights::correlate`] in tiles of `CHANNELS` output channels and `VECTORS` vectors.
    #[inline(always)]
    fn tiles<const FUSED: bool, const CHANNELS: usize, const VECTORS: usize>(
        &self, buffer: &[f32], bases: &[usize], positions: usize, out: &mut [f32],
    ) {
        let length = padded(positions);
        let tiles = self.packed.chunks_exact(self.rows);
        for start in (0..length).step_by(LANES * VECTORS) {
            for (tile, out) in tiles.clone().zip(out.chunks_exact_mut(TILE[0] * length)) {
                for first in (0..TILE[0]).step_by(CHANNELS) {
                    let mut sums = [[[0f32; LANES]; VECTORS]; CHANNELS];
                    for (weights, &base) in tile.iter().zip(bases) {
                        let window = &buffer[base + start..base + start + LANES * VECTORS];
                        let weights = &weights[first..first + CHANNELS];
                        for v in 0..VECTORS {
                            let x: Lanes = std::array::from_fn(|lane| window[v * LANES + lane]);
                            for (sums, &w) in sums.iter_mut().zip(weights) {
                                for lane in 0..LANES {
                                    sums[v][lane] = fma::<FUSED>(w, x[lane], sums[v][lane]);
                                }
                            }
                        }
                    }
                    for (channel, sums) in (first..).zip(&sums) {
                        let sums = sums.as_flattened();
                        out[channel * length + start..][..sums.len()].copy_from_slice(sums);
                    }
                }
            }
        }
    }
}

/// Multiplies and adds, in one rounding where that is one instruction.
#[inline(always)]
fn fma<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// The sum of all lanes, by halves.
#[inline(always)]
fn total<const N: usize>(mut lanes: [f32; N]) -> f32 {
    let mut count = N;
    while count > 1 {
        count /= 2;
        for lane in 0..count {
            lanes[lane] += lanes[lane + count];
        }
    }
    lanes[0]
}

/// Rows of an `im2col` matrix.
#[derive(Clone, Copy)]
struct Windows<'a> {
    buffer: &'a [f32],
    bases: &'a [usize],
}

impl Windows<'_> {
    /// `dw[o][r] = sum over positions p of gradient[o][p] * buffer[bases[r] + p]`, in tiles of `CHANNELS` output channels and
    /// `WINDOWS` windows, with `N` lanes.
    #[inline(always)]
    fn dots<const FUSED: bool, const N: usize, const CHANNELS: usize, const WINDOWS: usize>(
        self, gradient: &[f32], positions: usize, channels_out: usize,
    ) -> Vec<f32> {
        let rows = self.bases.len();
        let mut dw = vec![0.0; channels_out * rows];
        for row in (0..rows).step_by(WINDOWS) {
            for channel in (0..channels_out).step_by(CHANNELS) {
                // Past the ends the last one is computed again, and not used.
                let windows: [&[f32]; WINDOWS] =
                    std::array::from_fn(|r| &self.buffer[self.bases[(row + r).min(rows - 1)]..][..positions]);
                let gradients: [&[f32]; CHANNELS] = std::array::from_fn(|c| {
                    let channel = (channel + c).min(channels_out - 1);
                    &gradient[channel * positions..][..positions]
                });
                let mut sums = [[[0f32; N]; WINDOWS]; CHANNELS];
                for p in (0..positions).step_by(N) {
                    let x: [[f32; N]; WINDOWS] =
                        std::array::from_fn(|r| std::array::from_fn(|lane| windows[r][p..p + N][lane]));
                    for (sums, gradient) in sums.iter_mut().zip(&gradients) {
                        let g: [f32; N] = std::array::from_fn(|lane| gradient[p..p + N][lane]);
                        for (sums, x) in sums.iter_mut().zip(&x) {
                            for lane in 0..N {
                                sums[lane] = fma::<FUSED>(g[lane], x[lane], sums[lane]);
                            }
                        }
                    }
                }
                for c in 0..CHANNELS.min(channels_out - channel) {
                    for r in 0..WINDOWS.min(rows - row) {
                        dw[(channel + c) * rows + row + r] = total(sums[c][r]);
                    }
                }
            }
        }
        dw
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;
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
            batch in 0usize..40, channels in [1usize..20, 1usize..20], input in [1usize..12, 1usize..12],
            kernel in 1usize..4, stride in 1usize..4, padding in 0usize..3,
        ) {
            let shape = Conv2dShape { batch, channels, input, kernel, stride, padding };
            let [rows, cols] = shape.output();
            let x = values(batch * channels[0] * input[0] * input[1], 1);
            let w = values(channels[0] * channels[1] * kernel * kernel, 2);
            let dy = values(batch * channels[1] * rows * cols, 3);
            close(&conv2d(&x, &w, &shape), &reference::conv2d(&x, &w, &shape));
            close(&conv2d_input_gradient(&dy, &w, &shape), &reference::conv2d_input_gradient(&dy, &w, &shape));
            close(&conv2d_weight_gradient(&x, &dy, &shape), &reference::conv2d_weight_gradient(&x, &dy, &shape));
        }
    }
}
