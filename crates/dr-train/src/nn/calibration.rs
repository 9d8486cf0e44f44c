//! Scales and zero points of activations, from a sample of them.

use super::quantizers::host;
use burn::module::ParamId;
use burn::tensor::Tensor;
use dr_precision::{BitWidth, semantics};
use std::collections::HashMap;
use std::sync::Mutex;

/// How many values of one layer's input are kept.
const SAMPLE: usize = 1 << 15;

/// Records the shape and a sample of every quantized layer's input.
#[derive(Debug, Default)]
pub struct Observer {
    inputs: Mutex<HashMap<ParamId, Inputs>>,
}

/// What was seen of one layer's inputs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inputs {
    /// Of the last batch.
    pub(crate) shape: Vec<usize>,
    /// Values of all batches.
    pub(crate) sample: Vec<f32>,
}

impl Observer {
    /// Adds values of `x`, evenly spread over it, until the sample is full.
    pub(super) fn record<const D: usize>(&self, layer: ParamId, x: &Tensor<D>) {
        let values = host(x);
        let mut inputs = self.inputs.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let Inputs { shape, sample } = inputs.entry(layer).or_default();
        *shape = x.dims().to_vec();
        let room = (SAMPLE / 4).min(SAMPLE - sample.len()).max(1);
        // An odd step visits all columns of the usual, even, image sizes.
        sample.extend(values.iter().step_by(values.len().div_ceil(room) | 1));
        sample.truncate(SAMPLE);
    }

    /// What was recorded of the layer with this weight, or nothing.
    pub(crate) fn take(&self, layer: ParamId) -> Inputs {
        let mut inputs = self.inputs.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        inputs.remove(&layer).unwrap_or_default()
    }
}

/// The scale and zero point at which `bits`-bit codes represent the values with the least squared error, found by
/// shrinking the values' range in 40 steps. `after_relu` keeps the zero point at 0.
///
/// Without any finite value that is not zero, the scale spreads the codes over 0..1.
#[must_use]
pub fn fit_activation(values: &[f32], bits: BitWidth, after_relu: bool) -> (f32, f32) {
    let finite = || values.iter().copied().filter(|x| x.is_finite());
    let low = if after_relu { 0.0 } else { finite().fold(f32::INFINITY, f32::min) };
    let high = finite().fold(f32::NEG_INFINITY, f32::max);
    let levels = bits.unsigned_max() as f32;
    if !(high > low && low.is_finite()) {
        return (1.0 / levels, 0.0);
    }
    let candidate = |k: i32| {
        let shrink = 0.93f32.powi(k);
        ((high - low) * shrink / levels, if after_relu { 0.0 } else { low * shrink })
    };
    let error = |(scale, zero): (f32, f32)| -> f64 {
        let squared = |x: f32| {
            let code = semantics::quantize_activation(x, scale, zero, bits);
            f64::from(x - semantics::dequantize_activation(code, scale, zero)).powi(2)
        };
        finite().map(squared).sum()
    };
    let best = (0..40).map(candidate).map(|c| (error(c), c)).min_by(|a, b| a.0.total_cmp(&b.0));
    best.map_or((1.0 / levels, 0.0), |(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_is_kept_at_8_bits_and_cut_at_2() {
        let values: Vec<f32> = (0..1000).map(|i| (i as f32 / 1000.0).powi(8) * 3.0).collect();
        let (s8, z8) = fit_activation(&values, BitWidth::B8, true);
        assert!((s8 * 255.0 - 2.97).abs() < 0.25 && z8 == 0.0, "{s8}");
        let (s2, _) = fit_activation(&values, BitWidth::B2, true);
        assert!(s2 * 3.0 < 2.9);
    }

    #[test]
    fn a_range_around_zero_has_a_zero_point() {
        let values: Vec<f32> = (0..100).map(|i| i as f32 / 50.0 - 1.0).collect();
        let (scale, zero) = fit_activation(&values, BitWidth::B8, false);
        assert!(zero < -0.8 && scale > 0.0);
    }

    #[test]
    fn nothing_to_see_gives_a_usable_scale() {
        for values in [&[][..], &[0.0, 0.0], &[f32::NAN], &[f32::INFINITY, 0.0]] {
            let (scale, zero) = fit_activation(values, BitWidth::B4, true);
            assert!(scale > 0.0 && scale.is_finite() && zero == 0.0);
        }
    }
}
