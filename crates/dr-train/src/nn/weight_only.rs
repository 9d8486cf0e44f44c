//! [`WeightOnlyLinear`]: packed weights, inputs in floats.

use super::integer::LayerScales;
use super::quantizers::host;
use super::{IntegerError, LayerSpec};
use burn::tensor::{Device, Tensor, TensorData};
use dr_kernels::{IntWeight, WeightOnlyProduct};
use dr_precision::Precision;

/// A linear layer whose weights are packed codes and whose inputs stay floats, whatever bits a precision has for them: for
/// networks whose activations do not bear few bits. Its time goes into turning codes into floats, not into reading them.
#[derive(Clone, Debug)]
pub struct WeightOnlyLinear {
    stored: IntWeight,
    scales: LayerScales,
    /// `[features out]`
    bias: Option<Vec<f32>>,
    device: Device,
    active: WeightOnlyProduct,
}

impl WeightOnlyLinear {
    pub(super) fn new(
        stored: IntWeight, scales: LayerScales, bias: Option<Tensor<1>>, precision: Precision, device: Device,
    ) -> Result<Self, IntegerError> {
        let bias = bias.as_ref().map(host);
        let active = WeightOnlyProduct::new(&stored, bias.as_deref())?;
        let mut layer = Self { active, stored, scales, bias, device };
        layer.switch(precision)?;
        Ok(layer)
    }

    /// Whether the layer can be switched to `precision`.
    ///
    /// # Errors
    /// [`IntegerError::Precision`] if not.
    pub fn check(&self, precision: Precision) -> Result<(), IntegerError> {
        self.position(precision).map(|_| ())
    }

    /// Switches to another precision, by shifts of the stored codes. A layer whose bits are pinned keeps them.
    ///
    /// # Errors
    /// [`IntegerError::Precision`] if the layer has no such precision; it then stays as it is.
    pub fn switch(&mut self, precision: Precision) -> Result<(), IntegerError> {
        let at = self.position(precision)?;
        let LayerScales { spec, weights, .. } = &self.scales;
        let scale = Tensor::from_data(TensorData::from(weights[at].as_slice()), &self.device);
        let weight = self.stored.at(spec.weights[at], scale)?;
        self.active = WeightOnlyProduct::new(&weight, self.bias.as_deref())?;
        Ok(())
    }

    /// Bytes that a pass at this precision reads: the prepared codes with their padding, and the scales.
    #[must_use]
    pub fn model_bytes(&self) -> usize {
        self.active.bytes()
    }

    /// `[batch, features in]` to `[batch, features out]`.
    ///
    /// # Errors
    /// Another number of features or another device.
    pub fn forward(&self, x: Tensor<2>) -> Result<Tensor<2>, IntegerError> {
        Ok(self.active.run(x)?)
    }

    /// The position of the precision's width among those of the weight.
    fn position(&self, precision: Precision) -> Result<usize, IntegerError> {
        let spec: &LayerSpec = &self.scales.spec;
        spec.positions(precision).map(|(weights, _)| weights).ok_or_else(|| {
            let widths: Vec<String> = spec.weights.iter().map(ToString::to_string).collect();
            let expected = format!("weights of {} bits", widths.join(","));
            IntegerError::Precision { precision, expected }
        })
    }
}
