//! What quantization changes in a layer: squared errors of its weight and of its inputs.

use super::Quantizers;
use super::quantizers::host;
use burn::module::Param;
use burn::tensor::Tensor;
use dr_kernels::{WeightQuantizer, fake_quantize_weight};
use dr_precision::{BitWidth, semantics};

/// Squared errors of one layer, at each width that it has.
#[derive(Clone, Debug)]
pub(crate) struct QuantizationErrors {
    /// `||w||^2` of the weight as it is.
    pub(crate) weight: f64,
    /// `||Q_b(w) - w||^2`.
    pub(crate) weights: Vec<(BitWidth, f64)>,
    /// `E||Q_b(x) - x||^2 / E||x||^2` of the inputs.
    pub(crate) inputs: Vec<(BitWidth, f64)>,
}

impl Quantizers {
    pub(super) fn errors<const D: usize>(
        &self, weight: &Param<Tensor<D>>, sample: &[f32],
    ) -> Option<QuantizationErrors> {
        let spec = self.spec.as_ref()?;
        let weight = weight.val().inner();
        let original = host(&weight);
        let stored = self.weight_scales[0].val().inner();
        let of_weights = |(&bits, scale): (&BitWidth, &Param<Tensor<1>>)| {
            let quantizer =
                WeightQuantizer::new(spec.format.weights[0], bits).expect("the stored width is the highest");
            let quantizer = quantizer.with_granularity(spec.format.granularity);
            let quantized =
                fake_quantize_weight(weight.clone(), stored.clone(), scale.val().inner(), &quantizer)
                    .expect("scales were made for this weight");
            (bits, squares(original.iter().zip(host(&quantized)).map(|(w, q)| w - q)))
        };
        let total = squares(sample.iter().copied());
        let of_inputs = |((&bits, scale), zero): ((&BitWidth, &Param<Tensor<1>>), &Param<Tensor<1>>)| {
            let [scale, zero] = [scale, zero].map(|param| host(&param.val().inner())[0]);
            let error = |&x: &f32| {
                let code = semantics::quantize_activation(x, scale, zero, bits);
                semantics::dequantize_activation(code, scale, zero) - x
            };
            // Without any input, there is nothing to get wrong.
            (bits, if total > 0.0 { squares(sample.iter().map(error)) / total } else { 0.0 })
        };
        let inputs = spec.format.activations.iter().zip(&self.activation_scales).zip(&self.zero_points);
        Some(QuantizationErrors {
            weight: squares(original.iter().copied()),
            weights: spec.format.weights.iter().zip(&self.weight_scales).map(of_weights).collect(),
            inputs: inputs.map(of_inputs).collect(),
        })
    }
}

/// The sum of squares.
fn squares(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|value| f64::from(value).powi(2)).sum()
}
