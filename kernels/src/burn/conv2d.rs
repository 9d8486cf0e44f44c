//! Convolution for training, on `flex` by the loops of [`crate::cpu`], on other backends by Burn's own.

use super::autodiff::register as register_gradients;
use super::check_scales;
use super::flex::{dense, slice, tensor};
use super::ops::ActivationFormat;
use crate::KernelError;
use crate::cpu::{self, Conv2dShape, FakeQuantizer, Images};
use crate::integer::CodeQuantizer;
use crate::layout::ScaleLayout;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::autodiff::{Autodiff, NodeId, grads::Gradients};
use burn::backend::flex::FlexTensor;
use burn::backend::{Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::{DType, Device, Tensor, module, ops::ConvOptions};
use dr_precision::{BitWidth, Granularity};

/// The convolution of channels-last images as a backend extension. Only `flex` has it: see [`conv2d_channels_last`].
#[backend_extension(Flex, Autodiff)]
pub trait Conv2dOps: Backend {
    fn channels_last_conv2d(
        x: FloatTensor<Self>, w: FloatTensor<Self>, shape: Conv2dShape,
    ) -> FloatTensor<Self>;

    /// The same of activations that are fake-quantized as they are read, with a scale and a zero point. `weight_scale` is `[channels out]`
    /// if the format asks for a product of codes, and not read otherwise.
    fn quantized_conv2d(
        x: FloatTensor<Self>, scale: FloatTensor<Self>, zero_point: FloatTensor<Self>, w: FloatTensor<Self>,
        weight_scale: FloatTensor<Self>, format: QuantizedConv2dFormat,
    ) -> FloatTensor<Self>;
}

/// A convolution of activations that it quantizes.
#[derive(Clone, Copy, Debug)]
pub struct QuantizedConv2dFormat {
    pub shape: Conv2dShape,
    pub activation: ActivationFormat,
    /// The width of weights whose codes are multiplied; without, floats are.
    pub weight: Option<BitWidth>,
}

/// Its gradients.
pub trait Conv2dGradOps: Backend {
    fn input_gradient(dy: FloatTensor<Self>, w: FloatTensor<Self>, shape: Conv2dShape) -> FloatTensor<Self>;
    fn weight_gradient(x: FloatTensor<Self>, dy: FloatTensor<Self>, shape: Conv2dShape) -> FloatTensor<Self>;

    /// Of activations that were quantized as they were read: `(dx, dscale, dzero_point)`.
    fn quantized_input_gradient(
        dy: FloatTensor<Self>, w: FloatTensor<Self>, activations: [FloatTensor<Self>; 3],
        format: QuantizedConv2dFormat,
    ) -> [FloatTensor<Self>; 3];

    /// `activations` are `x`, scale and zero point.
    fn quantized_weight_gradient(
        activations: [FloatTensor<Self>; 3], dy: FloatTensor<Self>, format: QuantizedConv2dFormat,
    ) -> FloatTensor<Self>;
}

/// Whether the convolutions of this crate take images of `channels` channels on this device: on `flex`, in f32, in one group or depthwise. Between them,
/// channels-last images need no copies.
#[must_use]
pub fn takes_channels_last(x: &Tensor<4>, channels: usize, w: &Tensor<4>) -> bool {
    let [outputs, inputs, k, k2] = w.dims();
    let floats = [x.dtype(), w.dtype()] == [DType::F32; 2];
    x.device().inner() == Device::flex()
        && floats
        && (inputs == channels || (inputs, outputs) == (1, channels))
        && k == k2
}

/// 2D convolution without bias and dilation, differentiable: `x` `[batch, channels in, height, width]` with `w` `[channels
/// out, channels in / groups, k, k]`.
///
/// On `flex`, tensors in f32 in one group, or depthwise, take the loops of this crate, which are several times faster than its own, on a copy of
/// `x` with its channels last; the result is a view of such a tensor. Everything else is Burn's `conv2d`.
///
/// # Panics
/// As Burn's: if the channels do not match.
pub fn conv2d(x: Tensor<4>, w: Tensor<4>, stride: usize, padding: usize) -> Tensor<4> {
    if stride > 0 && takes_channels_last(&x, x.dims()[1], &w) {
        let y = conv2d_channels_last(x.permute([0, 2, 3, 1]), w, stride, padding);
        return y.permute([0, 3, 1, 2]);
    }
    let groups = (x.dims()[1] / w.dims()[1].max(1)).max(1);
    module::conv2d(x, w, None, ConvOptions::new([stride; 2], [padding; 2], [1, 1], groups))
}

/// [`conv2d`], in one group or depthwise, of images that [have their channels last](takes_channels_last): `[batch, height, width, channels in]` to `[batch, height,
/// width, channels out]`.
///
/// # Panics
/// If the kernels do not [take](takes_channels_last) such tensors, or the stride is 0.
pub fn conv2d_channels_last(x: Tensor<4>, w: Tensor<4>, stride: usize, padding: usize) -> Tensor<4> {
    let shape = channels_last_shape(&x, &w, stride, padding);
    Tensor::from_dispatch(Dispatch::channels_last_conv2d(x.into_dispatch(), w.into_dispatch(), shape))
}

/// Input channels from which on integers are faster: fewer leave most of a step empty.
const INTEGERS_FROM: usize = 8;

/// How a convolution quantizes its activations, and what it multiplies.
#[derive(Clone, Debug)]
pub struct ConvQuantizer {
    /// Scale of the activations, `[1]`.
    pub scale: Tensor<1>,
    /// Their zero point, `[1]`.
    pub zero_point: Tensor<1>,
    /// Their width.
    pub bits: BitWidth,
    /// Scales, `[channels out]`, and width of weights that a [`WeightQuantizer`](crate::WeightQuantizer) made, for a product of
    /// codes in integers instead of floats: the values are equal up to rounding, and so are the gradients.
    pub codes: Option<(Tensor<1>, BitWidth)>,
}

/// [`conv2d_channels_last`] of activations that are fake-quantized as they are read: the values and gradients are those of
/// [`fake_quantize_activation`](crate::fake_quantize_activation) before the convolution, which this spares the memory and the passes of. `w` is multiplied
/// as it is.
///
/// # Errors
/// A number of scales or zero points other than one, other devices or data types.
///
/// # Panics
/// As [`conv2d_channels_last`].
pub fn conv2d_quantized(
    x: Tensor<4>, w: Tensor<4>, quantizer: ConvQuantizer, stride: usize, padding: usize,
) -> Result<Tensor<4>, KernelError> {
    let shape = channels_last_shape(&x, &w, stride, padding);
    let ConvQuantizer { scale, zero_point, bits, codes } = quantizer;
    let layout = ScaleLayout::activations(&x.dims(), Granularity::Tensor)?;
    for (what, values) in [("scale", &scale), ("zero point", &zero_point)] {
        check_scales(what, values, layout.scales(), &x.dims(), Granularity::Tensor, &x.device())?;
    }
    let [inputs, outputs] = shape.channels;
    let codes = codes.filter(|(scale, _)| {
        inputs >= INTEGERS_FROM
            && !shape.depthwise
            && scale.dims() == [outputs]
            && scale.dtype() == DType::F32
    });
    let (weight_scale, weight) = match codes {
        Some((scale, bits)) => (scale.inner(), Some(bits)),
        None => (scale.clone().inner(), None),
    };
    let weight_scale = if x.device().is_autodiff() { Tensor::from_inner(weight_scale) } else { weight_scale };
    let format = QuantizedConv2dFormat { shape, activation: ActivationFormat { bits, layout }, weight };
    let [x, w] = [x, w].map(Tensor::into_dispatch);
    let [scale, zero, weight_scale] = [scale, zero_point, weight_scale].map(Tensor::into_dispatch);
    Ok(Tensor::from_dispatch(Dispatch::quantized_conv2d(x, scale, zero, w, weight_scale, format)))
}

fn channels_last_shape(x: &Tensor<4>, w: &Tensor<4>, stride: usize, padding: usize) -> Conv2dShape {
    let ([batch, rows, cols, channels_in], [channels_out, inputs, kernel, _]) = (x.dims(), w.dims());
    let takes = takes_channels_last(x, channels_in, w);
    assert!(takes && stride > 0, "a convolution that is not of `flex`: {:?} with {:?}", x.shape(), w.shape());
    let (channels, depthwise) = ([channels_in, channels_out], inputs != channels_in);
    Conv2dShape { batch, channels, input: [rows, cols], kernel, stride, padding, depthwise }
}

/// Sizes of the output.
const fn output(shape: &Conv2dShape) -> [usize; 4] {
    let [height, width] = shape.output();
    [shape.batch, height, width, shape.channels[1]]
}

/// What reads quantized activations.
fn quantizer(scale: &FlexTensor, zero_point: &FlexTensor, format: &ActivationFormat) -> FakeQuantizer {
    FakeQuantizer::new(slice(scale)[0], slice(zero_point)[0], format.bits)
}

/// The gradient of a weight as a tensor.
fn of_weight(dw: Vec<f32>, shape: &Conv2dShape) -> FlexTensor {
    let [channels_in, channels_out] = shape.channels;
    let inputs = if shape.depthwise { 1 } else { channels_in };
    tensor(dw, [channels_out, inputs, shape.kernel, shape.kernel])
}

/// The gradient of an input as a tensor.
fn of_input(dx: Vec<f32>, shape: &Conv2dShape) -> FlexTensor {
    let (channels, [rows, cols]) = (shape.channels[0], shape.input);
    tensor(dx, [shape.batch, rows, cols, channels])
}

impl Conv2dOps for Flex {
    fn channels_last_conv2d(x: FlexTensor, w: FlexTensor, shape: Conv2dShape) -> FlexTensor {
        let [x, w] = [x, w].map(dense);
        tensor(cpu::conv2d(Images::floats(slice(&x)), slice(&w), &shape), output(&shape))
    }

    fn quantized_conv2d(
        x: FlexTensor, scale: FlexTensor, zero_point: FlexTensor, w: FlexTensor, weight_scale: FlexTensor,
        format: QuantizedConv2dFormat,
    ) -> FlexTensor {
        let [x, scale, zero_point, w, weight_scale] = [x, scale, zero_point, w, weight_scale].map(dense);
        let QuantizedConv2dFormat { shape, activation, weight } = format;
        let (values, w) = (slice(&x), slice(&w));
        // What integers cannot hold is computed in floats.
        let of_codes = weight.and_then(|bits| {
            let (scale, zero_point) = (slice(&scale)[0], slice(&zero_point)[0]);
            let to = CodeQuantizer { bits: activation.bits, scale, zero_point };
            cpu::integer::conv2d_of_codes(values, to, w, slice(&weight_scale), bits, &shape).ok()
        });
        let images = Images { values, quantizer: Some(quantizer(&scale, &zero_point, &activation)) };
        tensor(of_codes.unwrap_or_else(|| cpu::conv2d(images, w, &shape)), output(&shape))
    }
}

impl Conv2dGradOps for Flex {
    fn input_gradient(dy: FlexTensor, w: FlexTensor, shape: Conv2dShape) -> FlexTensor {
        let [dy, w] = [dy, w].map(dense);
        of_input(cpu::conv2d_input_gradient(slice(&dy), slice(&w), &shape), &shape)
    }

    fn weight_gradient(x: FlexTensor, dy: FlexTensor, shape: Conv2dShape) -> FlexTensor {
        let [x, dy] = [x, dy].map(dense);
        of_weight(cpu::conv2d_weight_gradient(Images::floats(slice(&x)), slice(&dy), &shape), &shape)
    }

    fn quantized_input_gradient(
        dy: FlexTensor, w: FlexTensor, activations: [FlexTensor; 3], format: QuantizedConv2dFormat,
    ) -> [FlexTensor; 3] {
        let ([dy, w], [x, scale, zero_point]) = ([dy, w].map(dense), activations.map(dense));
        let QuantizedConv2dFormat { shape, activation, .. } = format;
        let quantizer = quantizer(&scale, &zero_point, &activation);
        let (dx, sums) =
            cpu::conv2d_quantized_input_gradient(slice(&dy), slice(&w), slice(&x), quantizer, &shape);
        let [of_scale, of_zero] =
            quantizer.of_scale(sums, &activation.layout).map(|one| tensor(vec![one], [1]));
        [of_input(dx, &shape), of_scale, of_zero]
    }

    fn quantized_weight_gradient(
        activations: [FlexTensor; 3], dy: FlexTensor, format: QuantizedConv2dFormat,
    ) -> FlexTensor {
        let ([x, scale, zero_point], dy) = (activations.map(dense), dense(dy));
        let QuantizedConv2dFormat { shape, activation, .. } = format;
        let quantizer = Some(quantizer(&scale, &zero_point, &activation));
        let images = Images { values: slice(&x), quantizer };
        of_weight(cpu::conv2d_weight_gradient(images, slice(&dy), &shape), &shape)
    }
}

#[derive(Debug)]
struct Conv2dBackward;

impl<B: Conv2dOps + Conv2dGradOps> Backward<B, 2> for Conv2dBackward {
    type State = (NodeId, NodeId, Conv2dShape);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let (x, w, shape) = ops.state;
        let dy = grads.consume::<B>(&ops.node);
        let x: FloatTensor<B> = checkpointer.retrieve_node_output(x);
        let w: FloatTensor<B> = checkpointer.retrieve_node_output(w);
        let [x_node, w_node] = ops.parents;
        if let Some(node) = x_node {
            grads.register::<B>(node.id, B::input_gradient(dy.clone(), w, shape));
        }
        if let Some(node) = w_node {
            grads.register::<B>(node.id, B::weight_gradient(x, dy, shape));
        }
    }
}

#[derive(Debug)]
struct QuantizedConv2dBackward;

impl<B: Conv2dOps + Conv2dGradOps> Backward<B, 4> for QuantizedConv2dBackward {
    /// The activations, their scale and zero point, and the weight.
    type State = ([NodeId; 4], QuantizedConv2dFormat);

    fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let (inputs, format) = ops.state;
        let dy = grads.consume::<B>(&ops.node);
        let [x, scale, zero_point, w] =
            inputs.map(|node| -> FloatTensor<B> { checkpointer.retrieve_node_output(node) });
        let activations = [x, scale, zero_point];
        let [x_node, scale_node, zero_node, w_node] = ops.parents.map(|node| node.map(|node| node.id));
        let nodes = [x_node, scale_node, zero_node];
        if nodes.iter().any(Option::is_some) {
            let gradients = B::quantized_input_gradient(dy.clone(), w, activations.clone(), format);
            register_gradients::<B, 3>(nodes, gradients, grads);
        }
        if let Some(node) = w_node {
            grads.register::<B>(node, B::quantized_weight_gradient(activations, dy, format));
        }
    }
}

impl<B: Conv2dOps + Conv2dGradOps, C: CheckpointStrategy> Conv2dOps for Autodiff<B, C> {
    fn channels_last_conv2d(
        x: FloatTensor<Self>, w: FloatTensor<Self>, shape: Conv2dShape,
    ) -> FloatTensor<Self> {
        let out = B::channels_last_conv2d(x.primitive().clone(), w.primitive().clone(), shape);
        match Conv2dBackward.prepare::<C>([x.node(), w.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let state = (prep.checkpoint(&x), prep.checkpoint(&w), shape);
                prep.finish(state, out)
            }
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }

    fn quantized_conv2d(
        x: FloatTensor<Self>, scale: FloatTensor<Self>, zero_point: FloatTensor<Self>, w: FloatTensor<Self>,
        weight_scale: FloatTensor<Self>, format: QuantizedConv2dFormat,
    ) -> FloatTensor<Self> {
        let inputs = [&x, &scale, &zero_point, &w];
        let [values, s, z, weights] = inputs.map(|input| input.primitive().clone());
        let out = B::quantized_conv2d(values, s, z, weights, weight_scale.primitive().clone(), format);
        let nodes = inputs.map(|input| input.node());
        match QuantizedConv2dBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let state = (inputs.map(|input| prep.checkpoint(input)), format);
                prep.finish(state, out)
            }
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }
}
