//! [`FloatLayer`]: a layer whose weights are floats.

use super::ops::Finish;
use crate::RuntimeError;
use crate::file::Values;
use crate::graph::LayerKind;
use crate::source::Affine;
use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2};
use rayon::prelude::*;

/// A layer in floats with what follows it: a matrix product, of patches for convolutions.
#[derive(Debug)]
pub(crate) struct FloatLayer {
    kind: LayerKind,
    /// `[outputs, inputs / groups * taps]`, of patches whose taps have their channels together: `[outputs, taps, inputs / groups]`,
    /// and `[taps, outputs]` of one channel for each output.
    weight: Values<f32>,
    affine: Affine,
    finish: Finish,
}

/// Values of patches that one thread makes before it multiplies them: they stay in its cache.
const PATCHES: usize = 1 << 16;

/// Results that a thread finishes at once.
const FINISHED: usize = 1 << 13;

impl FloatLayer {
    /// `weight` is `[outputs, inputs / groups, taps]`.
    pub fn new(kind: LayerKind, weight: Values<f32>, affine: Affine, finish: Finish) -> Self {
        let weight = match kind {
            LayerKind::Conv2d { channels: [inputs, outputs], kernel: [rows, columns], groups, .. }
                if rows * columns > 1 =>
            {
                let depthwise = groups == inputs && groups == outputs;
                taps_first(&weight, [outputs, inputs / groups, rows * columns], depthwise).into()
            }
            _ => weight,
        };
        Self { kind, weight, affine, finish }
    }

    /// What is done to each output.
    pub const fn affine(&self) -> &Affine {
        &self.affine
    }

    pub fn bytes(&self) -> usize {
        (self.weight.len() + 2 * self.affine.gain.len()) * size_of::<f32>()
    }

    /// `x` is `[batch, rows, columns, channels]`, as `dims` says.
    pub fn run(
        &self, x: &[f32], dims: [usize; 4], residual: Option<&[f32]>, out: &mut [f32],
    ) -> Result<(), RuntimeError> {
        let [_, rows, columns, channels] = dims;
        let ([out_rows, out_columns], outputs) =
            (self.kind.output_size([rows, columns]), self.kind.outputs());
        let (expected, kernel, stride, padding, groups) = match self.kind {
            LayerKind::Conv2d { channels: [inputs, _], kernel, stride, padding, groups } => {
                (inputs, kernel, stride, padding, groups)
            }
            LayerKind::Linear { features: [inputs, _] } => (inputs, [1, 1], [1, 1], [0, 0], 1),
        };
        if channels != expected {
            let (found, expected) = (format!("{channels} channels"), format!("{expected}"));
            return Err(RuntimeError::Input { found, expected });
        }
        let (inputs, group_outputs) = (channels / groups, outputs / groups);
        let length = inputs * kernel[0] * kernel[1];
        let pixels = [kernel, stride] == [[1, 1], [1, 1]] && padding == [0, 0];
        let windows = Windows { x, dims, kernel, stride, padding, output: [out_rows, out_columns] };
        let each = (out.len() / outputs).div_ceil(2 * rayon::current_num_threads()).max(1);
        let together = (PATCHES / length.max(1)).clamp(1, each);
        let block = |(block, out): (usize, &mut [f32])| {
            let (first, count) = (block * together, out.len() / outputs);
            if inputs == 1 && group_outputs == 1 {
                out.fill(0.0);
                let add = |at: usize, tap: usize, pixel: Option<&[f32]>| {
                    let Some(pixel) = pixel else { return };
                    let terms = pixel.iter().zip(&self.weight[tap * outputs..][..outputs]);
                    let out = out[at * outputs..][..outputs].iter_mut();
                    out.zip(terms).for_each(|(out, (x, weight))| *out += x * weight);
                };
                windows.each(first, count, add);
            } else {
                let mut patches = vec![0.0f32; if pixels && groups == 1 { 0 } else { count * length }];
                for group in 0..groups {
                    let from = match patches.is_empty() {
                        true => &x[first * channels..][..count * channels],
                        false => {
                            let copy = |at: usize, tap: usize, pixel: Option<&[f32]>| {
                                let to = &mut patches[at * length + tap * inputs..][..inputs];
                                match pixel {
                                    Some(pixel) => to.copy_from_slice(&pixel[group * inputs..][..inputs]),
                                    None => to.fill(0.0),
                                }
                            };
                            windows.each(first, count, copy);
                            &patches
                        }
                    };
                    let weight = &self.weight[group * group_outputs * length..][..group_outputs * length];
                    product(
                        from,
                        weight,
                        [count, length, group_outputs],
                        &mut out[group * group_outputs..],
                        outputs,
                    );
                }
            }
        };
        out.par_chunks_mut((together * outputs).max(1)).enumerate().for_each(block);
        let Affine { gain, shift } = &self.affine;
        let some = (FINISHED / outputs.max(1)).max(1) * outputs;
        let finish = |(at, out): (usize, &mut [f32])| {
            for out in out.chunks_exact_mut(outputs) {
                let terms = out.iter_mut().zip(gain.iter().zip(shift));
                terms.for_each(|(out, (gain, shift))| *out = gain * *out + shift);
            }
            self.finish.run(out, residual.map(|residual| &residual[at * some..][..out.len()]));
        };
        out.par_chunks_mut(some.max(1)).enumerate().for_each(finish);
        Ok(())
    }
}

/// What a convolution's windows look at.
struct Windows<'a> {
    /// `[batch, rows, columns, channels]`, as `dims` says.
    x: &'a [f32],
    dims: [usize; 4],
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
    /// Rows and columns of the output.
    output: [usize; 2],
}

impl Windows<'_> {
    /// Gives the pixel that each tap of `count` windows looks at, `None` in the padding, with the window's number, which begins at 0, and the tap's. The first window is that of the
    /// output position `first`, counted through all images.
    fn each(&self, first: usize, count: usize, mut of_tap: impl FnMut(usize, usize, Option<&[f32]>)) {
        let Self { x, dims: [_, rows, columns, channels], kernel, stride, padding, output } = *self;
        let (line, mut column) = (first / output[1], first % output[1]);
        let (mut image, mut row) = (line / output[0], line % output[0]);
        for window in 0..count {
            let mut tap = 0;
            for y in row * stride[0]..row * stride[0] + kernel[0] {
                let line = y.checked_sub(padding[0]).filter(|&y| y < rows);
                let line = line.map(|y| &x[(image * rows + y) * columns * channels..][..columns * channels]);
                for z in column * stride[1]..column * stride[1] + kernel[1] {
                    let column = z.checked_sub(padding[1]).filter(|&z| z < columns);
                    of_tap(window, tap, line.zip(column).map(|(line, z)| &line[z * channels..][..channels]));
                    tap += 1;
                }
            }
            column += 1;
            if column == output[1] {
                (column, row) = (0, row + 1);
            }
            if row == output[0] {
                (row, image) = (0, image + 1);
            }
        }
    }
}

/// `[outputs, inputs, taps]` to `[outputs, taps, inputs]`, and of one input for each output to `[taps, outputs]`.
fn taps_first(weight: &[f32], [outputs, inputs, taps]: [usize; 3], depthwise: bool) -> Vec<f32> {
    let at = |output: usize, input: usize, tap: usize| weight[(output * inputs + input) * taps + tap];
    if depthwise {
        return (0..taps).flat_map(|tap| (0..outputs).map(move |output| at(output, 0, tap))).collect();
    }
    let output =
        |output: usize| (0..taps).flat_map(move |tap| (0..inputs).map(move |input| at(output, input, tap)));
    (0..outputs).flat_map(output).collect()
}

/// `[n, length]` times `[outputs, length]`, to the first columns of rows that are `wide`.
fn product(x: &[f32], weight: &[f32], [n, length, outputs]: [usize; 3], out: &mut [f32], wide: usize) {
    let out = ArrayViewMut2::from_shape(ndarray::ShapeBuilder::strides((n, outputs), (wide, 1)), out);
    let (x, weight) =
        (ArrayView2::from_shape((n, length), x), ArrayView2::from_shape((outputs, length), weight));
    if let (Ok(x), Ok(weight), Ok(mut out)) = (x, weight, out) {
        general_mat_mul(1.0, &x, &weight.t(), 0.0, &mut out);
    }
}
