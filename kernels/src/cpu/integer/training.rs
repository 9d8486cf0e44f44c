//! The convolution of values that were fake-quantized, from their codes: integers are exact and much faster than floats.

use super::{Addends, Codes, DotKernel, Epilogue, Results, int_conv2d, prepare, quantize_codes, tap_sums};
use crate::KernelError;
use crate::cpu::Conv2dShape;
use crate::error::size;
use crate::integer::{Activation, CodeQuantizer, Conv2dOptions, IntConv2dShape, WeightLayout};
use dr_precision::{BitWidth, Granularity};

/// The convolution of fake-quantized `x`, channels last, and `w`, up to rounding. `scales` has the scale and the zero point of `x`, then
/// the scale of each output channel of `w`; `widths` are those of weights and activations.
///
/// # Errors
/// Slices of other lengths, sums that 32 bits may not hold, weights that are not values of their width.
pub fn conv2d_of_codes(
    x: &[f32], w: &[f32], scales: &[f32], shape: &Conv2dShape, widths: [BitWidth; 2],
) -> Result<Vec<f32>, KernelError> {
    let ([channels_in, channels_out], [rows, cols]) = (shape.channels, shape.input);
    size("scales", &[scales.len()], &[2 + channels_out])?;
    let (activation, zero_point, weight_scale) = (scales[0], scales[1], &scales[2..]);
    let kernel = [channels_out, channels_in, shape.kernel, shape.kernel];
    let weight = WeightLayout::new(&kernel, 1, widths[0], Granularity::Channel)?;
    let options =
        Conv2dOptions { stride: [shape.stride; 2], padding: [shape.padding; 2], ..Conv2dOptions::default() };
    let int = IntConv2dShape::new(shape.batch, [rows, cols], options, weight)?;
    size("input", &[x.len()], &[shape.batch * channels_in * rows * cols])?;
    let mut out = vec![0.0; int.results()];
    if out.is_empty() || weight.cols() == 0 {
        return Ok(out);
    }
    let to = CodeQuantizer { bits: widths[1], scale: activation, zero_point };
    let codes = quantize_codes(x, [channels_in, rows * cols], true, to);
    let of_row = |(w, scale): (&[f32], &f32)| w.iter().map(|w| (w / scale).round() as i8).collect::<Vec<_>>();
    let weights: Vec<i8> = w.chunks_exact(weight.cols()).zip(weight_scale).flat_map(of_row).collect();
    let panels: Vec<u32> = prepare(Codes::Bytes(&weights), &weight)?;
    let multiplier: Vec<f32> = weight_scale.iter().map(|scale| scale * activation).collect();
    let shift = vec![0.0; channels_out];
    let addend = match zero_point == 0.0 {
        true => Addends::by_position(&shift, &int),
        false => Addends::new(&tap_sums(&panels, weight_scale, &weight), zero_point, &shift, &int),
    };
    let epilogue = Epilogue {
        multiplier: &multiplier,
        offset: None,
        addend: &addend,
        residual: None,
        activation: Activation::None,
        last: None,
    };
    let results = Results { values: Some(&mut out), codes: None };
    int_conv2d(DotKernel::detect(), &codes, &panels, &int, &epilogue, results);
    Ok(out)
}
