//! The operations for Burn's `flex`: slices out of tensors, and [`crate::cpu`] over the slices.

use super::ops::{
    ActivationFormat, CodesFormat, FakeQuantizeGradOps, FakeQuantizeOps, IntConvFormat, IntOps, PackFormat,
    PackOps, SearchOps, WeightFormat, WeightOnlyFormat,
};
use crate::cpu::integer::{self, Addends, DotKernel, Epilogue, Results};
use crate::cpu::{Isa, Operation};
use crate::integer::WeightLayout;
use crate::{cpu, layout::ScaleLayout};
use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::{Bytes, DType, Element, Shape};
use dr_precision::BitWidth;

/// A dense tensor of these values.
pub(super) fn tensor<E: Element + bytemuck::Pod + Send + Sync>(
    values: Vec<E>, shape: impl Into<Shape>,
) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape.into()), E::dtype())
}

/// A tensor of one axis.
fn row<E: Element + bytemuck::Pod + Send + Sync>(values: Vec<E>) -> FlexTensor {
    let length = values.len();
    tensor(values, [length])
}

/// A tensor whose elements are in order: usually the tensor itself.
pub(super) fn dense(tensor: FlexTensor) -> FlexTensor {
    match tensor.layout().contiguous_offsets() {
        Some(_) => tensor,
        None => tensor.to_contiguous(),
    }
}

/// The elements of a dense tensor. The public functions have checked the data type.
pub(super) fn slice<E: Element + bytemuck::Pod>(tensor: &FlexTensor) -> &[E] {
    tensor.as_slice::<E>().expect("contiguous, and of the data type that was checked")
}

/// Names the elements of a dense tensor of f32, f16 or bf16 in an expression.
macro_rules! with_samples {
    ($tensor:expr, |$samples:ident| $call:expr) => {
        match $tensor.dtype() {
            DType::F16 => {
                let $samples = slice::<half::f16>(&$tensor);
                $call
            }
            DType::BF16 => {
                let $samples = slice::<half::bf16>(&$tensor);
                $call
            }
            _ => {
                let $samples = slice::<f32>(&$tensor);
                $call
            }
        }
    };
}

impl FakeQuantizeOps for Flex {
    fn fake_quantize_weight(
        w: FlexTensor, stored_scale: FlexTensor, scale: FlexTensor, format: WeightFormat,
    ) -> FlexTensor {
        let (shape, inputs) = (w.shape(), [w, stored_scale, scale].map(dense));
        let [w, stored_scale, scale] = inputs.each_ref().map(slice);
        let WeightFormat { stored, active, layout, .. } = format;
        tensor(cpu::fake_quantize_weight(w, stored_scale, scale, &layout, stored, active).collect().0, shape)
    }

    fn fake_quantize_activation(
        x: FlexTensor, scale: FlexTensor, zero_point: FlexTensor, format: ActivationFormat,
    ) -> FlexTensor {
        let (shape, inputs) = (x.shape(), [x, scale, zero_point].map(dense));
        let [x, scale, zero] = inputs.each_ref().map(slice);
        let ActivationFormat { bits, layout } = format;
        tensor(cpu::fake_quantize_activation(x, scale, zero, &layout, bits).collect().0, shape)
    }
}

impl FakeQuantizeGradOps for Flex {
    fn fake_quantize_weight_backward(
        w: FlexTensor, stored_scale: FlexTensor, scale: FlexTensor, grad: FlexTensor, format: WeightFormat,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let (shape, inputs) = (w.shape(), [w, stored_scale, scale, grad].map(dense));
        let [w, stored_scale, scale, grad] = inputs.each_ref().map(slice);
        let WeightFormat { stored, active, layout, gradient } = format;
        #[rustfmt::skip]
        let gradients =
            cpu::fake_quantize_weight_backward(w, stored_scale, scale, grad, &layout, stored, active, gradient);
        with_gradients(gradients, shape)
    }

    fn fake_quantize_activation_backward(
        x: FlexTensor, scale: FlexTensor, zero_point: FlexTensor, grad: FlexTensor, format: ActivationFormat,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let (shape, inputs) = (x.shape(), [x, scale, zero_point, grad].map(dense));
        let [x, scale, zero, grad] = inputs.each_ref().map(slice);
        let ActivationFormat { bits, layout } = format;
        with_gradients(cpu::fake_quantize_activation_backward(x, scale, zero, grad, &layout, bits), shape)
    }
}

/// Gradients of a tensor of `shape` and of two vectors.
fn with_gradients(
    gradients: impl Operation<f32, Rest = (Vec<f32>, Vec<f32>)>, shape: Shape,
) -> (FlexTensor, FlexTensor, FlexTensor) {
    let (dx, (first, second)) = gradients.collect();
    (tensor(dx, shape), row(first), row(second))
}

impl SearchOps for Flex {
    fn search_scales(w: FlexTensor, layout: ScaleLayout, widths: Vec<BitWidth>) -> FlexTensor {
        let w = dense(w);
        row(cpu::search_scales(Isa::detect(), slice(&w), &layout, &widths))
    }
}

impl PackOps for Flex {
    fn quantize_pack(
        x: FlexTensor, scale: FlexTensor, zero_point: FlexTensor, format: PackFormat,
    ) -> FlexTensor {
        let [x, scale, zero] = [x, scale, zero_point].map(dense);
        let (scale, zero) = (slice(&scale), format.unsigned.then(|| slice(&zero)));
        row(with_samples!(x, |x| cpu::quantize_pack(x, scale, zero, &format.layout, format.bits).collect().0))
    }

    fn switch_packed(words: FlexTensor, elements: usize, stored: BitWidth, active: BitWidth) -> FlexTensor {
        let words = dense(words);
        row(cpu::switch_packed(slice(&words), elements, stored, active).collect().0)
    }

    fn dequantize_packed(
        words: FlexTensor, scale: FlexTensor, zero_point: FlexTensor, format: PackFormat,
    ) -> FlexTensor {
        let [words, scale, zero] = [words, scale, zero_point].map(dense);
        let zero = format.unsigned.then(|| slice(&zero));
        let PackFormat { layout, bits, .. } = format;
        row(cpu::dequantize_packed(slice(&words), slice(&scale), zero, &layout, bits).collect().0)
    }
}

impl IntOps for Flex {
    fn quantize_codes(x: FlexTensor, format: CodesFormat) -> FlexTensor {
        let x = dense(x);
        let CodesFormat { channels, positions, channels_last, to, .. } = format;
        let sizes = [channels, positions];
        let mut words = vec![0u32; format.words()];
        let out = bytemuck::cast_slice_mut(&mut words);
        with_samples!(x, |x| integer::quantize_codes_into(x, sizes, channels_last, to, out));
        row(words)
    }

    fn prepare_weight(words: FlexTensor, layout: WeightLayout) -> FlexTensor {
        let words = dense(words);
        let panels = integer::prepare(integer::Codes::Packed(slice(&words)), &layout);
        row(panels.expect("as many words as the packed tensor was checked to have"))
    }

    fn switch_weight(words: FlexTensor, layout: WeightLayout, active: BitWidth) -> FlexTensor {
        let words = dense(words);
        row(integer::switch_panels(slice(&words), layout.bits(), active))
    }

    fn weight_codes(words: FlexTensor, layout: WeightLayout) -> FlexTensor {
        let words = dense(words);
        row(integer::codes_of(slice(&words), &layout))
    }

    fn tap_sums(words: FlexTensor, scale: FlexTensor, layout: WeightLayout) -> FlexTensor {
        let [words, scale] = [words, scale].map(dense);
        row(integer::tap_sums(slice(&words), slice(&scale), &layout))
    }

    fn int_conv2d(
        codes: FlexTensor, weight: FlexTensor, multiplier: FlexTensor, addend: FlexTensor,
        residual: FlexTensor, format: IntConvFormat,
    ) -> (FlexTensor, FlexTensor) {
        let [codes, weight] = [codes, weight].map(dense);
        let [multiplier, addend, residual] = [multiplier, addend, residual].map(dense);
        let addend = Addends::by_position(slice(&addend), &format.shape);
        let epilogue = Epilogue {
            multiplier: slice(&multiplier),
            offset: None,
            addend: &addend,
            residual: format.residual.then(|| slice(&residual)),
            activation: format.activation,
            last: None,
        };
        let mut values = vec![0.0f32; format.value_len()];
        let mut words = vec![0u32; format.code_words()];
        let results = Results {
            values: format.values.then_some(&mut values[..]),
            codes: format.codes.map(|to| (bytemuck::cast_slice_mut(&mut words), to)),
        };
        integer::int_conv2d(
            DotKernel::detect(),
            bytemuck::cast_slice::<u32, u8>(slice(&codes)),
            slice(&weight),
            &format.shape,
            &epilogue,
            results,
        );
        (row(values), row(words))
    }

    fn weight_only(
        x: FlexTensor, weight: FlexTensor, scale: FlexTensor, format: WeightOnlyFormat,
    ) -> FlexTensor {
        let [x, weight, scale] = [x, weight, scale].map(dense);
        let (weight, scale, layout) = (slice(&weight), slice(&scale), &format.weight);
        let mut out = vec![0.0f32; format.rows * layout.outputs()];
        let isa = Isa::detect();
        with_samples!(x, |x| integer::weight_only(isa, x, weight, scale, format.rows, layout, &mut out));
        row(out)
    }
}
