//! The operations over Burn tensors, on any backend, differentiable where that makes sense.

mod autodiff;
mod batch_norm;
mod conv2d;
mod flex;
mod integer;
pub(crate) mod ops;
mod packed;

use crate::{ActivationQuantizer, KernelError, WeightQuantizer, layout::ScaleLayout};
pub use batch_norm::batch_norm_train;
use burn::backend::Dispatch;
use burn::tensor::{DType, Device, Tensor};
pub use conv2d::{conv2d, conv2d_of_codes};
use dr_precision::{BitWidth, Granularity};
pub use integer::{
    Codes, HostWords, IntConv2dOptions, IntEpilogue, IntWeight, int_conv2d, int_conv2d_codes,
    int_conv2d_with_codes, quantize_codes, weight_only_linear,
};
use ops::{ActivationFormat, FakeQuantizeOps, PackOps, WeightFormat};
pub use packed::{PackedTensor, dequantize, quantize_pack, switch};

/// What is checked of every tensor that belongs to another: its device and its number of values.
struct Expected<'a, const D: usize> {
    tensor: &'a Tensor<D>,
    granularity: Granularity,
    layout: ScaleLayout,
}

impl<const D: usize> Expected<'_, D> {
    fn check(&self, what: &'static str, values: &Tensor<1>) -> Result<(), KernelError> {
        let [found] = values.dims();
        if found != self.layout.scales() {
            return Err(KernelError::ScaleCount {
                what,
                found,
                expected: self.layout.scales(),
                shape: self.tensor.dims().to_vec(),
                granularity: self.granularity.to_string(),
            });
        }
        same_device(what, &values.device(), &self.tensor.device())?;
        require_f32(what, values.dtype())
    }
}

/// One device for both. Tracked and untracked tensors may be mixed.
fn same_device(what: &'static str, found: &Device, expected: &Device) -> Result<(), KernelError> {
    let (found, expected) = (found.clone().inner(), expected.clone().inner());
    if found == expected {
        return Ok(());
    }
    Err(KernelError::Device { what, found: format!("{found:?}"), expected: format!("{expected:?}") })
}

fn require_f32(what: &'static str, dtype: DType) -> Result<(), KernelError> {
    if dtype == DType::F32 {
        return Ok(());
    }
    Err(KernelError::DataType { what, found: format!("{dtype:?}"), expected: "F32" })
}

/// Fake-quantizes weights by Double Rounding, in one pass: `w^ = s_l * q_l` with
/// `q_l = clip(round(clip(round(w / s_h)) / 2^d))` (arXiv:2502.01199).
///
/// - `weight`: `[channels out, ..]`, f32.
/// - `stored_scale` and `scale`: `s_h` and `s_l`, a value for each scale of the granularity (see
///   [`ScaleLayout::weights`]). At `l = h` the result is `s_h * q_h`; `scale` is not read and gets no gradient.
///
/// The result has the shape of `weight`. Its gradients are those of [`ScaleGradient`](crate::ScaleGradient), computed in
/// one pass too.
///
/// # Errors
/// A number of scales that does not fit, different devices, or a data type other than f32.
pub fn fake_quantize_weight<const D: usize>(
    weight: Tensor<D>, stored_scale: Tensor<1>, scale: Tensor<1>, quantizer: &WeightQuantizer,
) -> Result<Tensor<D>, KernelError> {
    let layout = ScaleLayout::weights(&weight.dims(), quantizer.granularity);
    require_f32("weight", weight.dtype())?;
    let expected = Expected { tensor: &weight, granularity: quantizer.granularity, layout };
    expected.check("stored scale", &stored_scale)?;
    expected.check("scale", &scale)?;
    let format = WeightFormat {
        stored: quantizer.stored,
        active: quantizer.active,
        layout,
        gradient: quantizer.gradient,
    };
    Ok(Tensor::from_dispatch(Dispatch::fake_quantize_weight(
        weight.into_dispatch(),
        stored_scale.into_dispatch(),
        scale.into_dispatch(),
        format,
    )))
}

/// Fake-quantizes activations, in one pass: `x^ = s * clip(round((x - z) / s), 0, 2^b - 1) + z` (LSQ+).
///
/// - `x`: `[batch, channels, ..]`, f32.
/// - `scale`, `zero_point`: a value for each scale of the granularity (see [`ScaleLayout::activations`]). After a
///   ReLU, use a zero point of 0 that is not trained.
///
/// The result has the shape of `x`; the gradients are LSQ+'s, computed in one pass too.
///
/// # Errors
/// A number of scales or zero points that does not fit, different devices, or a data type other than f32.
pub fn fake_quantize_activation<const D: usize>(
    x: Tensor<D>, scale: Tensor<1>, zero_point: Tensor<1>, quantizer: &ActivationQuantizer,
) -> Result<Tensor<D>, KernelError> {
    let layout = ScaleLayout::activations(&x.dims(), quantizer.granularity);
    require_f32("activation", x.dtype())?;
    let expected = Expected { tensor: &x, granularity: quantizer.granularity, layout };
    expected.check("scale", &scale)?;
    expected.check("zero point", &zero_point)?;
    let format = ActivationFormat { bits: quantizer.bits, layout };
    Ok(Tensor::from_dispatch(Dispatch::fake_quantize_activation(
        x.into_dispatch(),
        scale.into_dispatch(),
        zero_point.into_dispatch(),
        format,
    )))
}

/// The scales that weights start from, for each of `widths` (the stored one first): training-free quantization.
///
/// The stored scale of each group is chosen to serve all widths, the others follow in closed form; see
/// [`reference::search_scales`](crate::reference::search_scales).
///
/// # Errors
/// Widths that are not highest first, each once; a data type other than f32.
pub fn search_scales<const D: usize>(
    weight: Tensor<D>, widths: &[BitWidth], granularity: Granularity,
) -> Result<Vec<Tensor<1>>, KernelError> {
    require_f32("weight", weight.dtype())?;
    if widths.is_empty() || widths.windows(2).any(|pair| pair[0] <= pair[1]) {
        return Err(KernelError::Widths(widths.iter().map(|width| width.bits()).collect()));
    }
    let layout = ScaleLayout::weights(&weight.dims(), granularity);
    let found = Dispatch::search_scales(weight.inner().into_dispatch(), layout, widths.to_vec());
    let (scales, n) = (Tensor::<1>::from_dispatch(found), layout.scales());
    // Not by a reshape to `[widths, n]`: Burn takes a 0 there for "as before".
    Ok((0..widths.len()).map(|b| scales.clone().slice(b * n..(b + 1) * n)).collect())
}
