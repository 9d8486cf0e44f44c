//! The convolution of activations and weights that are fake-quantized, from their codes: integers are exact and much faster
//! than floats.

use super::{Addends, Codes, DotKernel, Epilogue, Results, int_conv2d, prepare, quantize_codes, tap_sums};
use crate::KernelError;
use crate::cpu::Conv2dShape;
use crate::error::size;
use crate::integer::{Activation, CodeQuantizer, Conv2dOptions, IntConv2dShape, WeightLayout};
use dr_precision::{BitWidth, Granularity};

/// The convolution of `x`, channels last, as `to` quantizes it, with `w`, which is fake-quantized to `bits` bits with a scale for each
/// output channel. Up to rounding.
///
/// # Errors
/// Slices of other lengths, sums that 32 bits may not hold, weights that are not values of their width.
pub fn conv2d_of_codes(
    x: &[f32], to: CodeQuantizer, w: &[f32], weight_scale: &[f32], bits: BitWidth, shape: &Conv2dShape,
) -> Result<Vec<f32>, KernelError> {
    let ([channels_in, channels_out], [rows, cols]) = (shape.channels, shape.input);
    size("scales", &[weight_scale.len()], &[channels_out])?;
    let kernel = [channels_out, channels_in, shape.kernel, shape.kernel];
    let weight = WeightLayout::new(&kernel, 1, bits, Granularity::Channel)?;
    let options =
        Conv2dOptions { stride: [shape.stride; 2], padding: [shape.padding; 2], ..Conv2dOptions::default() };
    let int = IntConv2dShape::new(shape.batch, [rows, cols], options, weight)?;
    size("input", &[x.len()], &[shape.batch * channels_in * rows * cols])?;
    let mut out = vec![0.0; int.results()];
    if out.is_empty() || weight.cols() == 0 {
        return Ok(out);
    }
    let codes = quantize_codes(x, [channels_in, rows * cols], true, to);
    let of_row = |(w, scale): (&[f32], &f32)| w.iter().map(|w| (w / scale).round() as i8).collect::<Vec<_>>();
    let weights: Vec<i8> = w.chunks_exact(weight.cols()).zip(weight_scale).flat_map(of_row).collect();
    let panels: Vec<u32> = prepare(Codes::Bytes(&weights), &weight)?;
    let multiplier: Vec<f32> = weight_scale.iter().map(|scale| scale * to.scale).collect();
    let shift = vec![0.0; channels_out];
    let addend = match to.zero_point == 0.0 {
        true => Addends::by_position(&shift, &int),
        false => Addends::new(&tap_sums(&panels, weight_scale, &weight), to.zero_point, &shift, &int),
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
