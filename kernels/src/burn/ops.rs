//! The operations as backend extensions. `Flex` and `CubeBackend` implement them; the macro writes `Dispatch` and
//! `Fusion`; `autodiff.rs` has the gradients.

use crate::{ScaleGradient, layout::ScaleLayout};
use burn::backend::{
    Backend, backend_extension,
    tensor::{FloatTensor, IntTensor},
};
use dr_precision::BitWidth;

/// A [`WeightQuantizer`](crate::WeightQuantizer) together with the layout of one tensor's scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WeightFormat {
    pub stored: BitWidth,
    pub active: BitWidth,
    pub layout: ScaleLayout,
    pub gradient: ScaleGradient,
}

/// An [`ActivationQuantizer`](crate::ActivationQuantizer) together with the layout of one tensor's scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ActivationFormat {
    pub bits: BitWidth,
    pub layout: ScaleLayout,
}

/// Packed codes: signed ones are around zero, unsigned ones have zero points.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PackFormat {
    pub bits: BitWidth,
    pub layout: ScaleLayout,
    /// Unsigned codes with zero points. If false, the `zero_point` argument is not read.
    pub unsigned: bool,
}

/// The differentiable operations, with `w` and `x` of any shape, scales and zero points as `[layout.scales()]`.
#[backend_extension(Flex, Cube: cfg(feature = "cube"), Fusion: cfg(feature = "cube"), Autodiff)]
pub trait FakeQuantizeOps: Backend {
    #[fusion(dtype = w, shape = w)]
    fn fake_quantize_weight(
        w: FloatTensor<Self>, stored_scale: FloatTensor<Self>, scale: FloatTensor<Self>, format: WeightFormat,
    ) -> FloatTensor<Self>;

    #[fusion(dtype = x, shape = x)]
    fn fake_quantize_activation(
        x: FloatTensor<Self>, scale: FloatTensor<Self>, zero_point: FloatTensor<Self>,
        format: ActivationFormat,
    ) -> FloatTensor<Self>;
}

/// Their gradients, each one pass over memory: `(dw, dstored_scale, dscale)` and `(dx, dscale, dzero_point)`.
#[backend_extension(Flex, Cube: cfg(feature = "cube"), Fusion: cfg(feature = "cube"))]
pub trait FakeQuantizeGradOps: Backend {
    #[fusion(meta = |w, stored_scale, scale, _grad, _format| (w.clone(), stored_scale.clone(), scale.clone()))]
    fn fake_quantize_weight_backward(
        w: FloatTensor<Self>, stored_scale: FloatTensor<Self>, scale: FloatTensor<Self>,
        grad: FloatTensor<Self>, format: WeightFormat,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    #[fusion(meta = |x, scale, zero_point, _grad, _format| (x.clone(), scale.clone(), zero_point.clone()))]
    fn fake_quantize_activation_backward(
        x: FloatTensor<Self>, scale: FloatTensor<Self>, zero_point: FloatTensor<Self>,
        grad: FloatTensor<Self>, format: ActivationFormat,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

/// What has no gradient. Packed words are `u32`, in the layout of [`crate::layout`].
#[backend_extension(Flex, Cube: cfg(feature = "cube"), Fusion: cfg(feature = "cube"))]
pub trait PackOps: Backend {
    /// `x` of any shape and of f32, f16 or bf16; scales in f32.
    #[fusion(dtype = burn::tensor::DType::U32, shape = burn::tensor::Shape::new([crate::layout::packed_words(format.layout.elements(), format.bits)]))]
    fn quantize_pack(
        x: FloatTensor<Self>, scale: FloatTensor<Self>, zero_point: FloatTensor<Self>, format: PackFormat,
    ) -> IntTensor<Self>;

    /// Signed codes of `stored` bits to `active` ones.
    #[fusion(dtype = burn::tensor::DType::U32, shape = burn::tensor::Shape::new([crate::layout::packed_words(*elements, *active)]))]
    fn switch_packed(
        words: IntTensor<Self>, elements: usize, stored: BitWidth, active: BitWidth,
    ) -> IntTensor<Self>;

    /// To f32, `[layout.elements()]`.
    #[fusion(dtype = burn::tensor::DType::F32, shape = burn::tensor::Shape::new([format.layout.elements()]))]
    fn dequantize_packed(
        words: IntTensor<Self>, scale: FloatTensor<Self>, zero_point: FloatTensor<Self>, format: PackFormat,
    ) -> FloatTensor<Self>;

    /// Scales `[widths.len() * layout.scales()]` for weights in f32, as [`crate::reference::search_scales`].
    #[fusion(dtype = burn::tensor::DType::F32, shape = burn::tensor::Shape::new([widths.len() * layout.scales()]))]
    fn search_scales(w: FloatTensor<Self>, layout: ScaleLayout, widths: Vec<BitWidth>) -> FloatTensor<Self>;
}
