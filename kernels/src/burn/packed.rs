//! [`PackedTensor`]: codes in their own number of bits, with scales.

use super::ops::{PackFormat, PackOps};
use super::{Expected, require_f32, same_device};
use crate::{
    KernelError,
    layout::{ScaleLayout, packed_words},
};
use burn::backend::Dispatch;
use burn::tensor::{DType, Int, Tensor};
use dr_precision::{BitWidth, QuantSpec, Signedness};

/// A quantized tensor: packed codes (see [`crate::layout`]), their scales and, for unsigned codes, zero points.
#[derive(Clone, Debug)]
pub struct PackedTensor {
    words: Tensor<1, Int>,
    scale: Tensor<1>,
    zero_point: Option<Tensor<1>>,
    shape: Vec<usize>,
    spec: QuantSpec,
}

impl PackedTensor {
    /// A packed tensor from its parts: `words` as `u32`, f32 scales and, for unsigned codes, f32 zero points.
    ///
    /// # Errors
    /// Numbers of words, scales or zero points that do not fit the shape and the format.
    pub fn new(
        words: Tensor<1, Int>, scale: Tensor<1>, zero_point: Option<Tensor<1>>, shape: &[usize],
        spec: QuantSpec,
    ) -> Result<Self, KernelError> {
        let layout = layout(shape, &spec);
        let (elements, [found]) = (layout.elements(), words.dims());
        let expected = packed_words(elements, spec.bits);
        if found != expected {
            return Err(KernelError::WordCount { found, expected, elements, bits: spec.bits.bits() });
        }
        if words.dtype() != DType::U32 {
            let found = format!("{:?}", words.dtype());
            return Err(KernelError::DataType { what: "packed words", found, expected: "U32" });
        }
        for (what, values) in [("scale", Some(&scale)), ("zero point", zero_point.as_ref())] {
            let Some(values) = values else { continue };
            let [found] = values.dims();
            if found != layout.scales() {
                let (expected, shape) = (layout.scales(), shape.to_vec());
                let granularity = spec.granularity.to_string();
                return Err(KernelError::ScaleCount { what, found, expected, shape, granularity });
            }
            same_device(what, &values.device(), &words.device())?;
            require_f32(what, values.dtype())?;
        }
        check_zero_point(&spec, zero_point.is_some())?;
        Ok(Self { words, scale, zero_point, shape: shape.to_vec(), spec })
    }

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

    /// The zero points, if the codes are unsigned.
    #[must_use]
    pub fn zero_point(&self) -> Option<&Tensor<1>> {
        self.zero_point.as_ref()
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
            layout: layout(&self.shape, &self.spec),
            unsigned: self.spec.signedness == Signedness::Unsigned,
        }
    }
}

/// Weights lie as weights, activations as activations.
fn layout(shape: &[usize], spec: &QuantSpec) -> ScaleLayout {
    match spec.signedness {
        Signedness::Signed => ScaleLayout::weights(shape, spec.granularity),
        Signedness::Unsigned => ScaleLayout::activations(shape, spec.granularity),
    }
}

fn check_zero_point(spec: &QuantSpec, given: bool) -> Result<(), KernelError> {
    match (spec.signedness, given) {
        (Signedness::Signed, true) => Err(KernelError::ZeroPoint("given, but signed codes have none")),
        (Signedness::Unsigned, false) => Err(KernelError::ZeroPoint("missing: unsigned codes need them")),
        _ => Ok(()),
    }
}

/// Quantizes and packs in one pass: the code of each element, in `spec.bits` bits of memory.
///
/// - `x`: f32, f16 or bf16, of any shape; not differentiable.
/// - `scale`, `zero_point`: f32, a value for each scale of the granularity; zero points for unsigned codes only.
///
/// # Errors
/// Numbers of scales that do not fit, missing or superfluous zero points, different devices, other data types.
pub fn quantize_pack<const D: usize>(
    x: Tensor<D>, scale: Tensor<1>, zero_point: Option<Tensor<1>>, spec: QuantSpec,
) -> Result<PackedTensor, KernelError> {
    let x = x.inner();
    let layout = layout(&x.dims(), &spec);
    if !matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16) {
        let found = format!("{:?}", x.dtype());
        return Err(KernelError::DataType { what: "tensor", found, expected: "F32, F16 or BF16" });
    }
    check_zero_point(&spec, zero_point.is_some())?;
    let (scale, zero_point) = (scale.inner(), zero_point.map(Tensor::inner));
    let expected = Expected { tensor: &x, granularity: spec.granularity, layout };
    expected.check("scale", &scale)?;
    if let Some(zero) = &zero_point {
        expected.check("zero point", zero)?;
    }
    let shape = x.dims().to_vec();
    let format = PackFormat { bits: spec.bits, layout, unsigned: zero_point.is_some() };
    let zero = zero_point.clone().unwrap_or_else(|| scale.clone());
    let words = Dispatch::quantize_pack(
        x.into_dispatch(),
        scale.clone().into_dispatch(),
        zero.into_dispatch(),
        format,
    );
    Ok(PackedTensor { words: Tensor::from_dispatch(words), scale, zero_point, shape, spec })
}

/// Switches packed weights to `bits` bits by shifts: the second rounding, from packed codes to packed codes.
///
/// `scale` is the scale `s_l` of the new width. Switch from the stored codes: switching twice is another rounding.
///
/// # Errors
/// A width above that of the codes, unsigned codes, or a number of scales that does not fit.
pub fn switch(packed: &PackedTensor, bits: BitWidth, scale: Tensor<1>) -> Result<PackedTensor, KernelError> {
    if packed.spec.signedness == Signedness::Unsigned {
        return Err(KernelError::SwitchUnsigned);
    }
    let spec = packed.spec.switched(bits)?;
    let words = match bits == packed.spec.bits {
        true => packed.words.clone(),
        false => {
            let elements = packed.format().layout.elements();
            let words = packed.words.clone().into_dispatch();
            Tensor::from_dispatch(Dispatch::switch_packed(words, elements, packed.spec.bits, bits))
        }
    };
    PackedTensor::new(words, scale.inner(), None, &packed.shape, spec)
}

/// The values of packed codes: `s * q`, or `s * q + z` for unsigned ones, in f32.
///
/// # Errors
/// [`KernelError::Rank`] if `D` is not the rank of the tensor that was packed.
pub fn dequantize<const D: usize>(packed: &PackedTensor) -> Result<Tensor<D>, KernelError> {
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
