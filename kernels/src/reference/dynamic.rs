//! Products of rows and weights with scales for every 32 inputs, one product at a time.

use crate::layout::BLOCK;

/// The codes of `x`, `[rows, inputs]`, and the scales of every 32 of them, `[rows, groups]`: the largest magnitude is 127. NaN counts as 0.
#[must_use]
pub fn quantize_rows(x: &[f32], inputs: usize) -> (Vec<i32>, Vec<f32>) {
    let (mut codes, mut scales) = (vec![], vec![]);
    for group in x.chunks(inputs.max(1)).flat_map(|row| row.chunks(BLOCK)) {
        let scale = group.iter().fold(0.0f32, |largest, x| largest.max(x.abs())) / 127.0;
        let code =
            |x: &f32| if scale == 0.0 { 0.0 } else { (x / scale).round_ties_even().clamp(-127.0, 127.0) };
        codes.extend(group.iter().map(|x| code(x) as i32)); // NaN to 0
        scales.push(scale);
    }
    (codes, scales)
}

/// Codes with their scales: `[rows, inputs]` and `[rows, groups]`.
#[derive(Clone, Copy, Debug)]
pub struct Grouped<'a> {
    /// The codes.
    pub codes: &'a [i32],
    /// The scales.
    pub scales: &'a [f32],
    /// Inputs that share a scale.
    pub group: usize,
}

/// The product of `x` with a weight, `[rows, outputs]`, in f64. `offsets` are `[outputs, groups]`, the bias is `[outputs]`.
#[must_use]
pub fn dynamic_product(
    x: Grouped, weight: Grouped, offsets: &[f32], bias: &[f32], [rows, inputs]: [usize; 2],
) -> Vec<f64> {
    let outputs = bias.len();
    let value = |row: usize, output: usize| {
        let product = |input: usize| {
            let group = |of: &Grouped, row: usize| row * inputs.div_ceil(of.group) + input / of.group;
            let (of_row, of_weight) = (group(&x, row), group(&weight, output));
            let value = f64::from(x.scales[of_row]) * f64::from(x.codes[row * inputs + input]);
            let code = f64::from(weight.codes[output * inputs + input]);
            value * (f64::from(weight.scales[of_weight]) * code + f64::from(offsets[of_weight]))
        };
        (0..inputs).map(product).sum::<f64>() + f64::from(bias[output])
    };
    (0..rows).flat_map(|row| (0..outputs).map(move |output| value(row, output))).collect()
}
