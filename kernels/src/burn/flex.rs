//! The operations for Burn's `flex`: slices out of tensors, and [`crate::cpu`] over the slices.

use super::ops::{
    ActivationFormat, CodesFormat, FakeQuantizeGradOps, FakeQuantizeOps, IntConvFormat, IntOps, PackFormat,
    PackOps, WeightFormat, WeightOnlyFormat,
};
use crate::cpu::integer::{self, Epilogue};
use crate::integer::{CodeQuantizer, WeightLayout};
use crate::{cpu, layout::ScaleLayout};
use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::{Bytes, DType, Shape};
use dr_precision::BitWidth;

fn tensor<E: bytemuck::Pod + Send + Sync>(
    values: Vec<E>, shape: impl Into<Shape>, dtype: DType,
) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape.into()), dtype)
}

/// A tensor whose elements are in order: usually the tensor itself.
fn dense(tensor: FlexTensor) -> FlexTensor {
    match tensor.layout().contiguous_offsets() {
        Some(_) => tensor,
        None => tensor.to_contiguous(),
    }
}

/// The elements of a dense tensor. The public functions have checked the data type.
fn slice<E: burn::tensor::Element + bytemuck::Pod>(tensor: &FlexTensor) -> &[E] {
    tensor.as_slice::<E>().expect("contiguous, and of the data type that was checked")
}

impl FakeQuantizeOps for Flex {
    fn fake_quantize_weight(
        w: FlexTensor, stored_scale: FlexTensor, scale: FlexTensor, format: WeightFormat,
    ) -> FlexTensor {
        let shape = w.shape();
        let [w, stored_scale, scale] = [w, stored_scale, scale].map(dense);
        let WeightFormat { stored, active, layout, .. } = format;
        let out = cpu::fake_quantize_weight(
            slice(&w),
            slice(&stored_scale),
            slice(&scale),
            &layout,
            stored,
            active,
        );
        tensor(out, shape, DType::F32)
    }

    fn fake_quantize_activation(
        x: FlexTensor, scale: FlexTensor, zero_point: FlexTensor, format: ActivationFormat,
    ) -> FlexTensor {
        let shape = x.shape();
        let [x, scale, zero] = [x, scale, zero_point].map(dense);
        let out = cpu::fake_quantize_activation(
            slice(&x),
            slice(&scale),
            slice(&zero),
            &format.layout,
            format.bits,
        );
        tensor(out, shape, DType::F32)
    }
}

impl FakeQuantizeGradOps for Flex {
    fn fake_quantize_weight_backward(
        w: FlexTensor, stored_scale: FlexTensor, scale: FlexTensor, grad: FlexTensor, format: WeightFormat,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let (shape, scales) = (w.shape(), scale.shape());
        let [w, stored_scale, scale, grad] = [w, stored_scale, scale, grad].map(dense);
        let WeightFormat { stored, active, layout, gradient } = format;
        let (dw, dstored, dscale) = cpu::fake_quantize_weight_backward(
            slice(&w),
            slice(&stored_scale),
            slice(&scale),
            slice(&grad),
            &layout,
            stored,
            active,
            gradient,
        );
        (
            tensor(dw, shape, DType::F32),
            tensor(dstored, scales.clone(), DType::F32),
            tensor(dscale, scales, DType::F32),
        )
    }

    fn fake_quantize_activation_backward(
        x: FlexTensor, scale: FlexTensor, zero_point: FlexTensor, grad: FlexTensor, format: ActivationFormat,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let (shape, scales) = (x.shape(), scale.shape());
        let [x, scale, zero, grad] = [x, scale, zero_point, grad].map(dense);
        let (dx, dscale, dzero) = cpu::fake_quantize_activation_backward(
            slice(&x),
            slice(&scale),
            slice(&zero),
            slice(&grad),
            &format.layout,
            format.bits,
        );
        (
            tensor(dx, shape, DType::F32),
            tensor(dscale, scales.clone(), DType::F32),
            tensor(dzero, scales, DType::F32),
        )
    }
}

impl PackOps for Flex {
    fn quantize_pack(
        x: FlexTensor, scale: FlexTensor, zero_point: FlexTensor, format: PackFormat,
    ) -> FlexTensor {
        let dtype = x.dtype();
        let [x, scale, zero] = [x, scale, zero_point].map(dense);
        let (scale, zero) = (slice(&scale), format.unsigned.then(|| slice(&zero)));
        let words = match dtype {
            DType::F16 => {
                cpu::quantize_pack::<half::f16>(slice(&x), scale, zero, &format.layout, format.bits)
            }
            DType::BF16 => {
                cpu::quantize_pack::<half::bf16>(slice(&x), scale, zero, &format.layout, format.bits)
            }
            _ => cpu::quantize_pack::<f32>(slice(&x), scale, zero, &format.layout, format.bits),
        };
        let length = words.len();
        tensor(words, [length], DType::U32)
    }

    fn switch_packed(words: FlexTensor, elements: usize, stored: BitWidth, active: BitWidth) -> FlexTensor {
        let words = dense(words);
        let switched = cpu::switch_packed(slice(&words), elements, stored, active);
        let length = switched.len();
        tensor(switched, [length], DType::U32)
    }

    fn dequantize_packed(
        words: FlexTensor, scale: FlexTensor, zero_point: FlexTensor, format: PackFormat,
    ) -> FlexTensor {
        let [words, scale, zero] = [words, scale, zero_point].map(dense);
        let zero = format.unsigned.then(|| slice(&zero));
        let values = cpu::dequantize_packed(slice(&words), slice(&scale), zero, &format.layout, format.bits);
        let length = values.len();
        tensor(values, [length], DType::F32)
    }

    fn search_scales(w: FlexTensor, layout: ScaleLayout, widths: Vec<BitWidth>) -> FlexTensor {
        let w = dense(w);
        let scales = cpu::search_scales(slice(&w), &layout, &widths);
        let length = scales.len();
        tensor(scales, [length], DType::F32)
    }
}

fn quantizer(values: &[f32], bits: BitWidth) -> CodeQuantizer {
    CodeQuantizer { bits, scale: values[0], zero_point: values[1] }
}

impl IntOps for Flex {
    fn quantize_codes(x: FlexTensor, to: FlexTensor, format: CodesFormat) -> FlexTensor {
        let dtype = x.dtype();
        let [x, to] = [x, to].map(dense);
        let CodesFormat { channels, positions, channels_last, bits, .. } = format;
        let (sizes, to) = ([channels, positions], quantizer(slice(&to), bits));
        let mut words = vec![0u32; format.words()];
        let out = bytemuck::cast_slice_mut(&mut words);
        match dtype {
            DType::F16 => integer::quantize_codes_into::<half::f16>(slice(&x), sizes, channels_last, to, out),
            DType::BF16 => {
                integer::quantize_codes_into::<half::bf16>(slice(&x), sizes, channels_last, to, out)
            }
            _ => integer::quantize_codes_into::<f32>(slice(&x), sizes, channels_last, to, out),
        }
        let length = words.len();
        tensor(words, [length], DType::U32)
    }

    fn switch_weight(words: FlexTensor, layout: WeightLayout, active: BitWidth) -> FlexTensor {
        let words = dense(words);
        let switched = integer::switch_panels(slice(&words), layout.bits(), active);
        let length = switched.len();
        tensor(switched, [length], DType::U32)
    }

    fn int_conv2d(
        codes: FlexTensor, weight: FlexTensor, multiplier: FlexTensor, addend: FlexTensor,
        residual: FlexTensor, format: IntConvFormat,
    ) -> FlexTensor {
        let [codes, weight] = [codes, weight].map(dense);
        let [multiplier, addend, residual] = [multiplier, addend, residual].map(dense);
        let epilogue = epilogue(&multiplier, &addend, &residual, &format);
        let mut values = vec![0.0; format.shape.results()];
        integer::int_conv2d_into(
            integer::DotKernel::detect(),
            bytemuck::cast_slice::<u32, u8>(slice(&codes)),
            slice(&weight),
            &format.shape,
            &epilogue,
            &mut values,
        );
        let length = values.len();
        tensor(values, [length], DType::F32)
    }

    fn int_conv2d_codes(
        codes: FlexTensor, weight: FlexTensor, multiplier: FlexTensor, addend: FlexTensor,
        residual: FlexTensor, to: FlexTensor, format: IntConvFormat, bits: BitWidth,
    ) -> FlexTensor {
        let [codes, weight] = [codes, weight].map(dense);
        let [multiplier, addend, residual, to] = [multiplier, addend, residual, to].map(dense);
        let epilogue = epilogue(&multiplier, &addend, &residual, &format);
        let mut words = vec![0u32; format.code_words()];
        let out = bytemuck::cast_slice_mut(&mut words);
        integer::int_conv2d_results(
            integer::DotKernel::detect(),
            bytemuck::cast_slice::<u32, u8>(slice(&codes)),
            slice(&weight),
            &format.shape,
            &epilogue,
            integer::Results { values: None, codes: Some((out, quantizer(slice(&to), bits))) },
        );
        let length = words.len();
        tensor(words, [length], DType::U32)
    }

    fn int_conv2d_with_codes(
        codes: FlexTensor, weight: FlexTensor, multiplier: FlexTensor, addend: FlexTensor,
        residual: FlexTensor, to: FlexTensor, format: IntConvFormat, bits: BitWidth,
    ) -> (FlexTensor, FlexTensor) {
        let [codes, weight] = [codes, weight].map(dense);
        let [multiplier, addend, residual, to] = [multiplier, addend, residual, to].map(dense);
        let epilogue = epilogue(&multiplier, &addend, &residual, &format);
        let mut words = vec![0u32; format.code_words()];
        let mut values = vec![0.0; format.shape.results()];
        let out = bytemuck::cast_slice_mut(&mut words);
        integer::int_conv2d_results(
            integer::DotKernel::detect(),
            bytemuck::cast_slice::<u32, u8>(slice(&codes)),
            slice(&weight),
            &format.shape,
            &epilogue,
            integer::Results { values: Some(&mut values), codes: Some((out, quantizer(slice(&to), bits))) },
        );
        let lengths = [values.len(), words.len()];
        (tensor(values, [lengths[0]], DType::F32), tensor(words, [lengths[1]], DType::U32))
    }

    fn weight_only(
        x: FlexTensor, weight: FlexTensor, scale: FlexTensor, format: WeightOnlyFormat,
    ) -> FlexTensor {
        let dtype = x.dtype();
        let [x, weight, scale] = [x, weight, scale].map(dense);
        let (weight, scale, layout) = (slice(&weight), slice(&scale), &format.weight);
        let values = match dtype {
            DType::F16 => integer::weight_only::<half::f16>(slice(&x), weight, scale, format.rows, layout),
            DType::BF16 => integer::weight_only::<half::bf16>(slice(&x), weight, scale, format.rows, layout),
            _ => integer::weight_only::<f32>(slice(&x), weight, scale, format.rows, layout),
        };
        let length = values.len();
        tensor(values, [length], DType::F32)
    }
}

fn epilogue<'a>(
    multiplier: &'a FlexTensor, addend: &'a FlexTensor, residual: &'a FlexTensor, format: &IntConvFormat,
) -> Epilogue<'a> {
    Epilogue {
        multiplier: slice(multiplier),
        addend: slice(addend),
        residual: format.residual.then(|| slice(residual)),
        activation: format.activation,
    }
}
