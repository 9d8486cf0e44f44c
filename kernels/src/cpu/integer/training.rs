//! The convolution of values that were fake-quantized, from their codes: integers are exact and much faster than floats.

use super::{Epilogue, int_conv2d, prepare_panels, quantize_codes};
use crate::cpu::Conv2dShape;
use crate::integer::{Activation, CodeQuantizer, IntConv2dShape, WeightLayout};
use crate::reference::zero_point_addends;
use dr_precision::{BitWidth, Granularity};
use rayon::prelude::*;

/// [`crate::cpu::conv2d`] of fake-quantized `x` and `w`, up to rounding. `scales` has the scale and the zero point of `x`, then
/// the scale of each output channel of `w`; `widths` are those of weights and activations.
///
/// # Panics
/// If a slice has not the length of the shape.
#[must_use]
pub fn conv2d_of_codes(
    x: &[f32], w: &[f32], scales: &[f32], shape: &Conv2dShape, widths: [BitWidth; 2],
) -> Vec<f32> {
    let ([channels_in, channels_out], [rows, cols]) = (shape.channels, shape.input);
    let [activation, zero_point, weight_scale @ ..] = scales else { panic!("scales of input and weight") };
    assert_eq!(weight_scale.len(), channels_out, "a scale for each output channel");
    let weight = WeightLayout {
        outputs: channels_out,
        inputs: channels_in,
        kernel: [shape.kernel; 2],
        groups: 1,
        bits: widths[0],
        granularity: Granularity::Channel,
    };
    let (stride, padding) = ([shape.stride; 2], [shape.padding; 2]);
    let int =
        IntConv2dShape { batch: shape.batch, input: [rows, cols], stride, padding, dilation: [1, 1], weight };
    let mut out = vec![0.0; int.results()];
    if out.is_empty() || weight.cols() == 0 {
        return out;
    }
    let to = CodeQuantizer { bits: widths[1], scale: *activation, zero_point: *zero_point };
    let codes = quantize_codes(x, [channels_in, rows * cols], false, to);
    let of_row =
        |(w, scale): (&[f32], &f32)| w.iter().map(|w| (w / scale).round() as i32).collect::<Vec<_>>();
    let weights: Vec<i32> = w.chunks_exact(weight.cols()).zip(weight_scale).flat_map(of_row).collect();
    let multiplier: Vec<f32> = weight_scale.iter().map(|scale| scale * activation).collect();
    let addend = match *zero_point == 0.0 {
        true => vec![0.0; channels_out],
        false => zero_point_addends(&weights, weight_scale, *zero_point, &int),
    };
    let epilogue =
        Epilogue { multiplier: &multiplier, addend: &addend, residual: None, activation: Activation::None };
    let last = int_conv2d(&codes, &prepare_panels(&weights, &weight), &int, &epilogue);
    // From channels last to channels first.
    let positions = int.positions();
    let images = out
        .par_chunks_exact_mut(channels_out * positions)
        .zip(last.par_chunks_exact(channels_out * positions));
    images.for_each(|(out, last)| {
        for (first, tile) in last.chunks(16 * channels_out).enumerate() {
            for (channel, out) in out.chunks_exact_mut(positions).enumerate() {
                let values = tile.iter().skip(channel).step_by(channels_out);
                out[first * 16..].iter_mut().zip(values).for_each(|(out, value)| *out = *value);
            }
        }
    });
    out
}
