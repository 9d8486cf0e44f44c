//! The operations as backend extensions. `Flex` and `CubeBackend` implement them; the macro writes `Dispatch` and
//! `Fusion`; `autodiff.rs` has the gradients; `remote.rs` sends what training needs to other machines.

use crate::integer::{Activation, CodeQuantizer, GpuKernel, IntConv2dShape, WeightLayout, padded_channels};
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
#[backend_extension(Flex, Cube: cfg(feature = "cube"), Fusion: cfg(feature = "cube"), Remote: cfg(feature = "remote"), Autodiff)]
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
#[backend_extension(Flex, Cube: cfg(feature = "cube"), Fusion: cfg(feature = "cube"), Remote: cfg(feature = "remote"))]
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

/// Where scales start from.
#[backend_extension(Flex, Cube: cfg(feature = "cube"), Fusion: cfg(feature = "cube"), Remote: cfg(feature = "remote"))]
pub trait SearchOps: Backend {
    /// Scales `[widths.len() * layout.scales()]` for weights in f32, as [`crate::reference::search_scales`].
    #[fusion(dtype = burn::tensor::DType::F32, shape = burn::tensor::Shape::new([widths.len() * layout.scales()]))]
    fn search_scales(w: FloatTensor<Self>, layout: ScaleLayout, widths: Vec<BitWidth>) -> FloatTensor<Self>;
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
}

/// Activations to be turned into codes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CodesFormat {
    pub images: usize,
    pub channels: usize,
    /// Rows times columns.
    pub positions: usize,
    /// `[images, positions, channels]` instead of `[images, channels, positions]`.
    pub channels_last: bool,
    pub to: CodeQuantizer,
}

impl CodesFormat {
    /// Words of codes.
    pub fn words(&self) -> usize {
        self.images * self.positions * padded_channels(self.channels) / 4
    }
}

/// An integer convolution with its epilogue.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct IntConvFormat {
    pub shape: IntConv2dShape,
    /// The addend is `[positions, outputs]` instead of `[outputs]`.
    pub addend_by_position: bool,
    /// If false, the `residual` argument is not read.
    pub residual: bool,
    pub activation: Activation,
    /// The kernel, on a GPU; if not the one that is chosen.
    pub kernel: Option<GpuKernel>,
    /// Whether values are wanted.
    pub values: bool,
    /// The codes that are wanted, if any.
    pub codes: Option<CodeQuantizer>,
}

impl IntConvFormat {
    /// The results as activations to be turned into codes.
    pub fn as_codes(&self, to: CodeQuantizer) -> CodesFormat {
        let (images, channels) = (self.shape.batch(), self.shape.weight().outputs());
        CodesFormat { images, channels, positions: self.shape.positions(), channels_last: true, to }
    }

    /// Values of the result, if any are wanted.
    pub fn value_len(&self) -> usize {
        if self.values { self.shape.results() } else { 0 }
    }

    /// Words of the result as codes, if any are wanted.
    pub fn code_words(&self) -> usize {
        self.codes.map_or(0, |to| self.as_codes(to).words())
    }
}

/// A product of float activations `[rows, inputs]` with packed weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WeightOnlyFormat {
    pub rows: usize,
    pub weight: WeightLayout,
}

/// Integer arithmetic. Codes and prepared weights are `u32` words, see [`crate::integer`]. All tensors but `x` have one axis.
#[backend_extension(Flex, Cube: cfg(feature = "cube"), Fusion: cfg(feature = "cube"))]
pub trait IntOps: Backend {
    /// `x` of f32, f16 or bf16.
    #[fusion(dtype = burn::tensor::DType::U32, shape = burn::tensor::Shape::new([format.words()]))]
    fn quantize_codes(x: FloatTensor<Self>, format: CodesFormat) -> IntTensor<Self>;

    /// Packed words of `layout`'s weight, in the layout of [`crate::layout`], to prepared ones.
    #[fusion(dtype = burn::tensor::DType::U32, shape = burn::tensor::Shape::new([layout.words()]))]
    fn prepare_weight(words: IntTensor<Self>, layout: WeightLayout) -> IntTensor<Self>;

    /// Prepared weights of `layout` to `active` bits.
    #[fusion(dtype = burn::tensor::DType::U32, shape = burn::tensor::Shape::new([layout.words_at(*active)]))]
    fn switch_weight(words: IntTensor<Self>, layout: WeightLayout, active: BitWidth) -> IntTensor<Self>;

    /// The codes of prepared weights, `[outputs * cols]`, as `i32`.
    #[fusion(dtype = burn::tensor::DType::I32, shape = burn::tensor::Shape::new([layout.outputs() * layout.cols()]))]
    fn weight_codes(words: IntTensor<Self>, layout: WeightLayout) -> IntTensor<Self>;

    /// For each tap the sum of an output's weights, `[taps * outputs]`, in the order of their channels; `scale` is `[scale
    /// groups * outputs]`.
    #[fusion(dtype = burn::tensor::DType::F32, shape = burn::tensor::Shape::new([layout.taps() * layout.outputs()]))]
    fn tap_sums(words: IntTensor<Self>, scale: FloatTensor<Self>, layout: WeightLayout) -> FloatTensor<Self>;

    /// Values `[batch * positions * outputs]`, the output channels last, and the same as codes; of what is not wanted,
    /// nothing.
    #[fusion(meta = |_codes, _weight, _multiplier, _addend, _residual, format| (
        burn::backend::fusion::custom::TensorSpec::new(burn::tensor::Shape::new([format.value_len()]), burn::tensor::DType::F32),
        burn::backend::fusion::custom::TensorSpec::new(burn::tensor::Shape::new([format.code_words()]), burn::tensor::DType::U32),
    ))]
    fn int_conv2d(
        codes: IntTensor<Self>, weight: IntTensor<Self>, multiplier: FloatTensor<Self>,
        addend: FloatTensor<Self>, residual: FloatTensor<Self>, format: IntConvFormat,
    ) -> (FloatTensor<Self>, IntTensor<Self>);

    /// `[rows * outputs]`; `x` `[rows, inputs]` of f32, f16 or bf16, `scale` `[scale groups * outputs]`.
    #[fusion(dtype = burn::tensor::DType::F32, shape = burn::tensor::Shape::new([format.rows * format.weight.outputs()]))]
    fn weight_only(
        x: FloatTensor<Self>, weight: IntTensor<Self>, scale: FloatTensor<Self>, format: WeightOnlyFormat,
    ) -> FloatTensor<Self>;
}
