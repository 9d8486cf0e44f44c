//! [`PackedTensor`]: codes in their own number of bits, with scales.

use super::ops::{PackFormat, PackOps};
use super::states::{CodeState, Narrowed, Stored};
use super::{addressable, check_scales, require_float};
use crate::{
    KernelError,
    layout::{ScaleLayout, packed_words},
};
use burn::backend::Dispatch;
use burn::tensor::{DType, Device, Int, Tensor};
use dr_precision::{BitWidth, QuantSpec, Signedness};
use std::marker::PhantomData;

/// A quantized tensor: packed codes (see [`crate::layout`]), their scales and, for unsigned codes, zero points.
///
/// Codes of the stored width (`PackedTensor<Stored>`, or `PackedTensor` for short) can be [switched](switch), those of a
/// switch (`PackedTensor<Narrowed>`) cannot.
#[derive(Clone, Debug)]
pub struct PackedTensor<C = Stored> {
    words: Tensor<1, Int>,
    scale: Tensor<1>,
    zero_point: Option<Tensor<1>>,
    shape: Vec<usize>,
    spec: QuantSpec,
    layout: ScaleLayout,
    state: PhantomData<C>,
}

impl PackedTensor {
    /// A packed tensor from its parts: `words` as `u32`, f32 scales and, for unsigned codes, f32 zero points.
    ///
    /// # Errors
    /// Numbers of words, scales or zero points that do not fit the shape and the format, other data types, different devices,
    /// more codes than the device can address.
    pub fn new(
        words: Tensor<1, Int>, scale: Tensor<1>, zero_point: Option<Tensor<1>>, shape: &[usize],
        spec: QuantSpec,
    ) -> Result<Self, KernelError> {
        let (words, scale, zero_point) = (words.inner(), scale.inner(), zero_point.map(Tensor::inner));
        let device = words.device();
        let elements = addressable("packed tensor", shape, &device)?;
        let ([found], expected) = (words.dims(), packed_words(elements, spec.bits));
        if found != expected {
            return Err(KernelError::WordCount { found, expected, elements, bits: spec.bits.bits() });
        }
        if words.dtype() != DType::U32 {
            let found = format!("{:?}", words.dtype());
            return Err(KernelError::DataType { what: "packed words", found, expected: "U32" });
        }
        let layout = checked_layout(&spec, &scale, zero_point.as_ref(), shape, &device)?;
        Ok(Self { words, scale, zero_point, shape: shape.to_vec(), spec, layout, state: PhantomData })
    }
}

impl<C> PackedTensor<C> {
    /// The packed words, `u32`.
    #[must_use]
    pub fn words(&self) -> &Tensor<1, Int> {
        &self.words
    }

    /// The scales.
    #[must_use]
    pub fn scale(&self) -> &Tensor<1> {
        &self.scale
    }

    /// The shape of the tensor that was packed.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The format.
    #[must_use]
    pub fn spec(&self) -> &QuantSpec {
        &self.spec
    }

    fn format(&self) -> PackFormat {
        PackFormat {
            bits: self.spec.bits,
            layout: self.layout,
            unsigned: self.spec.signedness == Signedness::Unsigned,
        }
    }
}

/// The layout of a tensor of this shape, if the scales and zero points are those of one: weights lie as weights, activations as
/// activations.
fn checked_layout(
    spec: &QuantSpec, scale: &Tensor<1>, zero_point: Option<&Tensor<1>>, shape: &[usize], device: &Device,
) -> Result<ScaleLayout, KernelError> {
    match (spec.signedness, zero_point) {
        (Signedness::Signed, Some(_)) => {
            return Err(KernelError::ZeroPoint("given, but signed codes have none"));
        }
        (Signedness::Unsigned, None) => {
            return Err(KernelError::ZeroPoint("missing: unsigned codes need them"));
        }
        _ => {}
    }
    let layout = match spec.signedness {
        Signedness::Signed => ScaleLayout::weights(shape, spec.granularity)?,
        Signedness::Unsigned => ScaleLayout::activations(shape, spec.granularity)?,
    };
    for (what, values) in [("scale", Some(scale)), ("zero point", zero_point)] {
        if let Some(values) = values {
            check_scales(what, values, layout.scales(), shape, spec.granularity, device)?;
        }
    }
    Ok(layout)
}

/// Quantizes and packs in one pass: the code of each element, in `spec.bits` bits of memory.
///
/// - `x`: f32, f16 or bf16, of any shape; not differentiable.
/// - `scale`, `zero_point`: f32, a value for each scale of the granularity; zero points for unsigned codes only.
///
/// # Errors
/// Numbers of scales that do not fit, missing or superfluous zero points, different devices, other data types, more
/// elements than the device can address.
pub fn quantize_pack<const D: usize>(
    x: Tensor<D>, scale: Tensor<1>, zero_point: Option<Tensor<1>>, spec: QuantSpec,
) -> Result<PackedTensor, KernelError> {
    let (x, scale, zero_point) = (x.inner(), scale.inner(), zero_point.map(Tensor::inner));
    let (shape, device) = (x.dims().to_vec(), x.device());
    require_float("tensor", x.dtype())?;
    addressable("tensor", &shape, &device)?;
    let layout = checked_layout(&spec, &scale, zero_point.as_ref(), &shape, &device)?;
    let format = PackFormat { bits: spec.bits, layout, unsigned: zero_point.is_some() };
    let zero = zero_point.clone().unwrap_or_else(|| scale.clone());
    let words = Dispatch::quantize_pack(
        x.into_dispatch(),
        scale.clone().into_dispatch(),
        zero.into_dispatch(),
        format,
    );
    Ok(PackedTensor {
        words: Tensor::from_dispatch(words),
        scale,
        zero_point,
        shape,
        spec,
        layout,
        state: PhantomData,
    })
}

/// Switches packed weights to `bits` bits by shifts: the second rounding, from packed codes to packed codes.
///
/// `scale` is the scale `s_l` of the new width. Only stored codes are switched, since a second switch is another rounding:
///
/// ```compile_fail,E0308
/// use burn::tensor::{Device, Tensor};
/// use dr_kernels::{quantize_pack, switch};
/// use dr_precision::{BitWidth, QuantSpec};
///
/// let device = Device::flex();
/// let scale = Tensor::<1>::ones([2], &device);
/// let weight = Tensor::<2>::from_data([[0.0, 1.0], [2.0, 3.0]], &device);
/// let eight = quantize_pack(weight, scale.clone(), None, QuantSpec::weights(BitWidth::B8))?;
/// let four = switch(&eight, BitWidth::B4, scale.clone())?;
/// let two = switch(&four, BitWidth::B2, scale)?; // `PackedTensor<Narrowed>` instead of `PackedTensor<Stored>`
/// # Ok::<(), dr_kernels::KernelError>(())
/// ```
///
/// # Errors
/// A width above that of the codes, unsigned codes, or a number of scales that does not fit.
pub fn switch(
    packed: &PackedTensor, bits: BitWidth, scale: Tensor<1>,
) -> Result<PackedTensor<Narrowed>, KernelError> {
    if packed.spec.signedness == Signedness::Unsigned {
        return Err(KernelError::SwitchUnsigned);
    }
    let (spec, scale) = (packed.spec.switched(bits)?, scale.inner());
    let layout = checked_layout(&spec, &scale, None, &packed.shape, &packed.words.device())?;
    let words = match bits == packed.spec.bits {
        true => packed.words.clone(),
        false => {
            let elements = layout.elements();
            let words = packed.words.clone().into_dispatch();
            Tensor::from_dispatch(Dispatch::switch_packed(words, elements, packed.spec.bits, bits))
        }
    };
    let shape = packed.shape.clone();
    Ok(PackedTensor { words, scale, zero_point: None, shape, spec, layout, state: PhantomData })
}

/// The values of packed codes: `s * q`, or `s * q + z` for unsigned ones, in f32.
///
/// # Errors
/// [`KernelError::Rank`] if `D` is not the rank of the tensor that was packed.
pub fn dequantize<const D: usize>(packed: &PackedTensor<impl CodeState>) -> Result<Tensor<D>, KernelError> {
    let Ok(shape) = <[usize; D]>::try_from(packed.shape.as_slice()) else {
        return Err(KernelError::Rank { shape: packed.shape.clone(), rank: D });
    };
    if shape.contains(&0) {
        // Burn's reshape takes a 0 for "as before".
        return Ok(Tensor::zeros(shape, &packed.scale.device()));
    }
    let zero = packed.zero_point.clone().unwrap_or_else(|| packed.scale.clone());
    let values = Dispatch::dequantize_packed(
        packed.words.clone().into_dispatch(),
        packed.scale.clone().into_dispatch(),
        zero.into_dispatch(),
        packed.format(),
    );
    Ok(Tensor::<1>::from_dispatch(values).reshape(shape))
}
