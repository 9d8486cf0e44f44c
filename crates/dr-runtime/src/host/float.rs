//! [`FloatLayer`]: a layer whose weights are floats.

use crate::RuntimeError;
use crate::file::Values;
use crate::graph::LayerKind;
use crate::source::Affine;
use dr_kernels::integer::Activation;
use rayon::prelude::*;

/// A layer in floats with what follows it: a matrix product, of patches for convolutions.
#[derive(Debug)]
pub(crate) struct FloatLayer {
    kind: LayerKind,
    /// `[outputs, inputs / groups * taps]`
    weight: Values<f32>,
    affine: Affine,
    activation: Activation,
}

impl FloatLayer {
    pub const fn new(kind: LayerKind, weight: Values<f32>, affine: Affine, activation: Activation) -> Self {
        Self { kind, weight, affine, activation }
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
        // Lines of output: each makes a matrix of patches.
        let line = |(line, out): (usize, &mut [f32])| {
            let (image, row) = (line / out_rows.max(1), line % out_rows.max(1));
            let mut patches = vec![0.0f32; out_columns * length];
            for group in 0..groups {
                for (column, patch) in patches.chunks_exact_mut(length).enumerate() {
                    for (at, value) in patch.iter_mut().enumerate() {
                        let (channel, tap) = (at / (kernel[0] * kernel[1]), at % (kernel[0] * kernel[1]));
                        let y = (row * stride[0] + tap / kernel[1]).checked_sub(padding[0]);
                        let z = (column * stride[1] + tap % kernel[1]).checked_sub(padding[1]);
                        *value = match (y.filter(|&y| y < rows), z.filter(|&z| z < columns)) {
                            (Some(y), Some(z)) => {
                                x[((image * rows + y) * columns + z) * channels + group * inputs + channel]
                            }
                            _ => 0.0,
                        };
                    }
                }
                let weight = &self.weight[group * group_outputs * length..][..group_outputs * length];
                for (out, patch) in out.chunks_exact_mut(outputs).zip(patches.chunks_exact(length)) {
                    let out = &mut out[group * group_outputs..][..group_outputs];
                    for (out, weight) in out.iter_mut().zip(weight.chunks_exact(length)) {
                        *out = dot(patch, weight);
                    }
                }
            }
        };
        out.par_chunks_mut((out_columns * outputs).max(1)).enumerate().for_each(line);
        let Affine { gain, shift } = &self.affine;
        for (at, out) in out.iter_mut().enumerate() {
            let y = gain[at % outputs] * *out + shift[at % outputs];
            *out = self.activation.apply(y + residual.map_or(0.0, |residual| residual[at]));
        }
        Ok(())
    }
}

/// The sum of products, in lanes.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let ((a_whole, a_rest), (b_whole, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    for (a, b) in a_whole.iter().zip(b_whole) {
        for lane in 0..16 {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    lanes.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}
