//! The integer operations, one product at a time.

use crate::integer::{
    Activation, BLOCK_STEPS, CodeQuantizer, IntConv2dShape, PANEL, STEP, WeightLayout, offset,
    padded_channels,
};
use crate::layout::{BLOCK, planes};
use dr_precision::semantics;

/// Codes `[images, rows * columns, padded channels]` of `x`: `[images, channels, positions]`, or with the channels last.
pub fn quantize_codes(
    x: &[f32], [channels, positions]: [usize; 2], channels_last: bool, to: CodeQuantizer,
) -> Vec<u8> {
    let (len, padded) = (channels * positions, padded_channels(channels));
    let mut codes = vec![0; x.len() / len.max(1) * positions * padded];
    for (i, &value) in x.iter().enumerate() {
        let (image, rest) = (i / len, i % len);
        let (channel, position) = match channels_last {
            true => (rest % channels, rest / channels),
            false => (rest / positions, rest % positions),
        };
        let code = semantics::quantize_activation(value, to.scale, to.zero_point, to.bits);
        codes[(image * positions + position) * padded + channel] = code as u8; // at most 255
    }
    codes
}

/// Weights `[outputs, cols]` in the order of prepared rows, padding with zeros.
fn ordered(codes: &[i32], layout: &WeightLayout) -> Vec<i32> {
    let (cols, columns) = (layout.cols(), layout.columns());
    let code = |row: usize, column: &Option<usize>| match (layout.output_of(row), column) {
        (Some(output), Some(column)) => codes[output * cols + column],
        _ => 0,
    };
    (0..layout.rows()).flat_map(|row| columns.iter().map(move |column| code(row, column))).collect()
}

/// Weights `[outputs, cols]` as prepared for CPUs.
pub fn prepare_panels(codes: &[i32], layout: &WeightLayout) -> Vec<u32> {
    let (ordered, blocks) = (ordered(codes, layout), layout.blocks());
    let mut words = vec![0; layout.words()];
    let block_words = PANEL * layout.bits().bits() as usize;
    for (i, code) in ordered.into_iter().enumerate() {
        let code = code + offset(layout.bits());
        let (row, at) = (i / (blocks * BLOCK), i % (blocks * BLOCK));
        let (block, step, lane) = (row / PANEL * blocks + at / BLOCK, at / STEP % BLOCK_STEPS, row % PANEL);
        for plane in planes(layout.bits()) {
            let field = code as u32 >> plane.shift & ((1 << plane.bits) - 1);
            let in_vector = 8 / plane.bits as usize;
            let vector = plane.offset as usize + step / in_vector;
            let shift = 8 * (at % STEP) + step % in_vector * plane.bits as usize;
            words[block * block_words + vector * PANEL + lane] |= field << shift;
        }
    }
    words
}

/// The sums of products of an integer convolution: `[batch, rows, columns, outputs, scale groups]`, from codes and weights
/// `[outputs, cols]`.
pub fn int_conv2d(codes: &[u8], weights: &[i32], shape: &IntConv2dShape) -> Vec<i32> {
    let layout = shape.weight();
    let (cols, taps, groups) = (layout.cols(), layout.taps(), layout.scale_groups());
    let [_, out_cols] = shape.output();
    let pitch = padded_channels(shape.channels());
    let mut sums = vec![0; shape.results() * groups];
    for (i, sums) in sums.chunks_exact_mut(groups).enumerate() {
        let (output, position) = (i % layout.outputs(), i / layout.outputs() % shape.positions());
        let image = i / layout.outputs() / shape.positions();
        let first_channel = output / (layout.outputs() / layout.groups()) * layout.inputs();
        for col in 0..cols {
            let (channel, tap) = (first_channel + col / taps, col % taps);
            if let Some([row, column]) = shape.tapped([position / out_cols, position % out_cols], tap) {
                let at = (image * shape.input()[0] + row) * shape.input()[1] + column;
                sums[col / layout.run()] +=
                    i32::from(codes[at * pitch + channel]) * weights[output * cols + col];
            }
        }
    }
    sums
}

/// What becomes of the sums: `sum over groups of multiplier * sum`, plus `addend`, plus `residual`, and an activation.
///
/// `multiplier` is `[scale groups, outputs]`, `addend` `[1 or positions, outputs]`, `residual` as the result.
pub fn epilogue(
    sums: &[i32], shape: &IntConv2dShape, multiplier: &[f32], addend: &[f32], residual: Option<&[f32]>,
    activation: Activation,
) -> Vec<f32> {
    let (outputs, groups) = (shape.weight().outputs(), shape.weight().scale_groups());
    let value = |(i, sums): (usize, &[i32])| {
        let output = i % outputs;
        let scaled = |(group, &sum): (usize, &i32)| multiplier[group * outputs + output] * sum as f32;
        let added = addend[i % addend.len()];
        let value = sums.iter().enumerate().map(scaled).sum::<f32>() + added;
        let value = value + residual.map_or(0.0, |residual| residual[i]);
        activation.apply(value)
    };
    sums.chunks_exact(groups).enumerate().map(value).collect()
}

/// The addends that make up for the zero point of the input: `zero_point * sum of scale * weight` over the taps that are
/// inside the image, `[positions, outputs]`; or `[1, outputs]` where every tap always is. `scale` is `[outputs, scale groups]`.
pub fn zero_point_addends(
    weights: &[i32], scale: &[f32], zero_point: f32, shape: &IntConv2dShape,
) -> Vec<f32> {
    let layout = shape.weight();
    let (cols, taps, run, groups) = (layout.cols(), layout.taps(), layout.run(), layout.scale_groups());
    // `[outputs, taps]`
    let mut sums = vec![0.0; layout.outputs() * taps];
    for (i, &code) in weights.iter().enumerate() {
        let (output, col) = (i / cols, i % cols);
        sums[output * taps + col % taps] += scale[output * groups + col / run] * code as f32;
    }
    let [_, out_cols] = shape.output();
    let everywhere = shape.options().padding == [0, 0] || zero_point == 0.0;
    let positions = if everywhere { 1 } else { shape.positions() };
    let addend = |i: usize| {
        let (position, output) = (i / layout.outputs(), i % layout.outputs());
        let inside = |tap: &usize| {
            everywhere || shape.tapped([position / out_cols, position % out_cols], *tap).is_some()
        };
        zero_point * (0..taps).filter(inside).map(|tap| sums[output * taps + tap]).sum::<f32>()
    };
    (0..positions * layout.outputs()).map(addend).collect()
}

/// The product of `x` `[rows, inputs]` with weights `[outputs, inputs]`, in f64 and rounded once: `[rows, outputs]`. `scale` is `[scale
/// groups, outputs]`.
pub fn weight_only(
    x: &[f32], weights: &[i32], scale: &[f32], rows: usize, layout: &WeightLayout,
) -> Vec<f32> {
    let (outputs, cols, run) = (layout.outputs(), layout.cols(), layout.run());
    let value = |i: usize| {
        let (row, output) = (i / outputs, i % outputs);
        let product = |k: usize| {
            let weight = f64::from(scale[k / run * outputs + output]) * f64::from(weights[output * cols + k]);
            f64::from(x[row * cols + k]) * weight
        };
        (0..cols).map(product).sum::<f64>() as f32
    };
    (0..rows * outputs).map(value).collect()
}
