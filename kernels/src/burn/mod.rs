//! The operations over Burn tensors, on any backend, differentiable where that makes sense.

mod autodiff;
mod batch_norm;
mod compilation;
mod conv2d;
mod flex;
mod max_pool;
pub(crate) mod ops;
mod optimizer;
mod packed;
mod product;
#[cfg(feature = "remote")]
pub mod remote;
mod states;
mod weight;
mod weight_only;

use crate::error::product;
use crate::{ActivationQuantizer, KernelError, WeightQuantizer, layout::ScaleLayout};
pub use batch_norm::{batch_norm_channels_last, batch_norm_channels_last_inference};
use burn::backend::Dispatch;
use burn::tensor::{DType, Device, Element, Int, Tensor, TensorData};
pub use compilation::{LaunchCounter, keep_compiled_kernels};
pub use conv2d::{ConvQuantizer, conv2d, conv2d_channels_last, conv2d_quantized, takes_channels_last};
use dr_precision::{BitWidth, Granularity};
pub use max_pool::max_pool2d_channels_last;
use ops::{ActivationFormat, FakeQuantizeOps, SearchOps, WeightFormat};
pub use optimizer::{adam_step, sgd_step};
pub use packed::{PackedTensor, dequantize, quantize_pack, switch};
pub use product::{Codes, IntProduct, Results, Wanted};
pub use states::{CodeState, Narrowed, Stored};
pub use weight::IntWeight;
pub use weight_only::WeightOnlyProduct;

/// The most elements that a kernel of CubeCL can be given. It counts them in 32 bits, and the units that are launched beyond
/// the last one as well.
const LARGEST: usize = 1 << 31;

/// The product of `sizes`, if `device` can address so many elements.
fn addressable(what: &'static str, sizes: &[usize], device: &Device) -> Result<usize, KernelError> {
    let elements = product(what, sizes)?;
    if elements > LARGEST && device.clone().inner() != Device::flex() {
        return Err(KernelError::TooLarge { what, sizes: sizes.to_vec() });
    }
    Ok(elements)
}

/// Whether `values` belong to a tensor of `shape` on `device`: as many as there are scales, in f32.
fn check_scales(
    what: &'static str, values: &Tensor<1>, expected: usize, shape: &[usize], granularity: Granularity,
    device: &Device,
) -> Result<(), KernelError> {
    let [found] = values.dims();
    if found != expected {
        let (shape, granularity) = (shape.to_vec(), granularity.to_string());
        return Err(KernelError::ScaleCount { what, found, expected, shape, granularity });
    }
    same_device(what, &values.device(), device)?;
    require_f32(what, values.dtype())
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
    match dtype {
        DType::F32 => Ok(()),
        _ => Err(KernelError::DataType { what, found: format!("{dtype:?}"), expected: "F32" }),
    }
}

fn require_float(what: &'static str, dtype: DType) -> Result<(), KernelError> {
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => Ok(()),
        _ => Err(KernelError::DataType { what, found: format!("{dtype:?}"), expected: "F32, F16 or BF16" }),
    }
}

fn floats(values: &[f32], device: &Device) -> Tensor<1> {
    Tensor::from_data(TensorData::from(values), (device, DType::F32))
}

/// The elements of a tensor, copied from its device.
fn read<E: Element>(what: &'static str, tensor: Tensor<1, Int>) -> Result<Vec<E>, KernelError> {
    let read = |reason: String| KernelError::Read { what, reason };
    tensor
        .try_into_data()
        .map_err(|error| read(error.to_string()))?
        .try_into_vec()
        .map_err(|error| read(error.to_string()))
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
/// A number of scales that does not fit, different devices, a data type other than f32, or more elements than the device can
/// address.
pub fn fake_quantize_weight<const D: usize>(
    weight: Tensor<D>, stored_scale: Tensor<1>, scale: Tensor<1>, quantizer: &WeightQuantizer,
) -> Result<Tensor<D>, KernelError> {
    let (shape, device) = (weight.dims(), weight.device());
    let WeightQuantizer { stored, active, granularity, gradient } = *quantizer;
    require_f32("weight", weight.dtype())?;
    addressable("weight", &shape, &device)?;
    let layout = ScaleLayout::weights(&shape, granularity)?;
    for (what, values) in [("stored scale", &stored_scale), ("scale", &scale)] {
        check_scales(what, values, layout.scales(), &shape, granularity, &device)?;
    }
    let format = WeightFormat { stored, active, layout, gradient };
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
/// A number of scales or zero points that does not fit, different devices, a data type other than f32, or more elements than
/// the device can address.
pub fn fake_quantize_activation<const D: usize>(
    x: Tensor<D>, scale: Tensor<1>, zero_point: Tensor<1>, quantizer: &ActivationQuantizer,
) -> Result<Tensor<D>, KernelError> {
    let (shape, device, granularity) = (x.dims(), x.device(), quantizer.granularity);
    require_f32("activation", x.dtype())?;
    addressable("activation", &shape, &device)?;
    let layout = ScaleLayout::activations(&shape, granularity)?;
    for (what, values) in [("scale", &scale), ("zero point", &zero_point)] {
        check_scales(what, values, layout.scales(), &shape, granularity, &device)?;
    }
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
/// The stored scale of each group is chosen to serve all widths, the others follow in closed form.
///
/// # Errors
/// Widths that are not highest first, each once; a data type other than f32; more elements than the device can address.
pub fn search_scales<const D: usize>(
    weight: Tensor<D>, widths: &[BitWidth], granularity: Granularity,
) -> Result<Vec<Tensor<1>>, KernelError> {
    require_f32("weight", weight.dtype())?;
    if widths.is_empty() || widths.windows(2).any(|pair| pair[0] <= pair[1]) {
        return Err(KernelError::Widths(widths.iter().map(|width| width.bits()).collect()));
    }
    let (shape, device) = (weight.dims(), weight.device());
    addressable("weight", &shape, &device)?;
    let layout = ScaleLayout::weights(&shape, granularity)?;
    addressable("scales", &[widths.len(), layout.scales()], &device)?;
    let found = Dispatch::search_scales(weight.inner().into_dispatch(), layout, widths.to_vec());
    let (scales, n) = (Tensor::<1>::from_dispatch(found), layout.scales());
    // Not by a reshape to `[widths, n]`: Burn takes a 0 there for "as before".
    Ok((0..widths.len()).map(|b| scales.clone().slice(b * n..(b + 1) * n)).collect())
}
