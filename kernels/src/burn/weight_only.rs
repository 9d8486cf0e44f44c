//! Packed weights times floats.

use super::ops::{IntOps, WeightOnlyFormat};
use super::states::CodeState;
use super::weight::{IntWeight, Prepared};
use super::{addressable, floats, require_float, same_device};
use crate::KernelError;
use crate::error::size;
use crate::integer::padded_channels;
use burn::backend::Dispatch;
use burn::tensor::{DType, Tensor};

/// The product of activations in floating point with packed weights, for language models (`w4a16`):
/// `x * (scale * codes)^T + bias`.
#[derive(Clone, Debug)]
pub struct WeightOnlyProduct {
    weight: Prepared,
    /// `[scale groups * outputs]`.
    scales: Tensor<1>,
    /// `[outputs]`.
    bias: Option<Tensor<1>>,
}

impl WeightOnlyProduct {
    /// A product with the weight of a linear layer, on its device; `bias` is `[outputs]`.
    ///
    /// # Errors
    /// [`KernelError::Size`] for the weight of a convolution, or another number of biases.
    pub fn new<C: CodeState>(weight: &IntWeight<C>, bias: Option<&[f32]>) -> Result<Self, KernelError> {
        let layout = weight.layout();
        size("taps of the weight and its groups", &[layout.taps(), layout.groups()], &[1, 1])?;
        if let Some(bias) = bias {
            size("bias", &[bias.len()], &[layout.outputs()])?;
        }
        let prepared = weight.prepared().clone();
        let bias = bias.map(|bias| floats(bias, &prepared.device()));
        Ok(Self { weight: prepared, scales: weight.scales_by_group(None), bias })
    }

    /// Bytes that a pass reads: the codes with their padding, the scales and the bias.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let floats = self.scales.dims()[0] + self.bias.as_ref().map_or(0, |bias| bias.dims()[0]);
        self.weight.bytes() + floats * size_of::<f32>()
    }

    /// From `x`, `[rows, inputs]` of f32, f16 or bf16, to `[rows, outputs]` in f32.
    ///
    /// # Errors
    /// Another number of inputs, other data types or devices, more elements than the device can address.
    pub fn run(&self, x: Tensor<2>) -> Result<Tensor<2>, KernelError> {
        let (x, layout, device) = (x.inner(), self.weight.layout, self.weight.device());
        require_float("activation", x.dtype())?;
        same_device("activation", &x.device(), &device)?;
        let ([rows, inputs], outputs) = (x.dims(), layout.outputs());
        size("inputs", &[inputs], &[layout.inputs()])?;
        addressable("activation", &[rows, inputs], &device)?;
        addressable("result", &[rows, padded_channels(outputs)], &device)?;
        if rows == 0 || outputs == 0 {
            return Ok(Tensor::zeros([rows, outputs], (&device, DType::F32)));
        }
        let (words, scales) = (self.weight.words.clone(), self.scales.clone());
        let format = WeightOnlyFormat { rows, weight: layout };
        let values =
            Dispatch::weight_only(x.into_dispatch(), words.into_dispatch(), scales.into_dispatch(), format);
        let values = Tensor::<1>::from_dispatch(values).reshape([rows, outputs]);
        Ok(match &self.bias {
            Some(bias) => values + bias.clone().reshape([1, outputs]),
            None => values,
        })
    }
}
