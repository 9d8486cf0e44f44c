//! Packed weights times floats.

use super::Weight;
use crate::KernelError;
use crate::cpu::{Isa, integer};
use crate::error::{product, size};

/// The product of rows in floating point with a packed weight, for language models: `x * (scale * codes)^T + bias`.
#[derive(Clone, Debug)]
pub struct WeightOnly {
    weight: Weight,
    bias: Option<Vec<f32>>,
}

impl WeightOnly {
    /// A product with the weight of a linear layer; `bias` is `[outputs]`.
    ///
    /// # Errors
    /// [`KernelError::Size`] for the weight of a convolution, one with offsets, or another number of biases.
    pub fn new(weight: Weight, bias: Option<&[f32]>) -> Result<Self, KernelError> {
        let layout = weight.layout();
        size("taps of the weight and its groups", &[layout.taps(), layout.groups()], &[1, 1])?;
        size("offsets of a weight", &[weight.offsets().map_or(0, <[f32]>::len)], &[0])?;
        if let Some(bias) = bias {
            size("bias", &[bias.len()], &[layout.outputs()])?;
        }
        Ok(Self { weight, bias: bias.map(<[f32]>::to_vec) })
    }

    /// Bytes that a pass reads: the codes with their padding, the scales and the bias.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let floats = self.weight.scales_by_group().len() + self.bias.as_ref().map_or(0, Vec::len);
        self.weight.bytes() + floats * size_of::<f32>()
    }

    /// From `x`, `[rows, inputs]`, to `out`, `[rows, outputs]`.
    ///
    /// # Errors
    /// [`KernelError::Size`] for matrices of other sizes.
    pub fn run(&self, x: &[f32], rows: usize, out: &mut [f32]) -> Result<(), KernelError> {
        let layout = self.weight.layout();
        size("input of a product", &[x.len()], &[product("input of a product", &[rows, layout.inputs()])?])?;
        size(
            "output of a product",
            &[out.len()],
            &[product("output of a product", &[rows, layout.outputs()])?],
        )?;
        let (words, scales) = (self.weight.words(), self.weight.scales_by_group());
        integer::weight_only(Isa::detect(), x, words, scales, rows, layout, out);
        if let Some(bias) = &self.bias {
            for out in out.chunks_exact_mut(bias.len().max(1)) {
                out.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
            }
        }
        Ok(())
    }
}
