//! Convolution for training, on `flex` by the loops of [`crate::cpu`], on other backends by Burn's own.

use super::flex::{dense, slice, tensor};
use crate::cpu::{self, Conv2dShape};
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::autodiff::{Autodiff, NodeId, grads::Gradients};
use burn::backend::flex::FlexTensor;
use burn::backend::{Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::{DType, Device, Tensor, module, ops::ConvOptions};
use dr_precision::BitWidth;

/// The convolution of channels-last images as a backend extension. Only `flex` has it: see [`conv2d_channels_last`].
#[backend_extension(Flex, Autodiff)]
pub trait Conv2dOps: Backend {
    fn channels_last_conv2d(
        x: FloatTensor<Self>, w: FloatTensor<Self>, shape: Conv2dShape,
    ) -> FloatTensor<Self>;

    /// The same of values that are quantized, by their codes. `scales` is `[2 + channels out]`.
    fn coded_conv2d(
        x: FloatTensor<Self>, w: FloatTensor<Self>, scales: FloatTensor<Self>, shape: Conv2dShape,
        widths: [BitWidth; 2],
    ) -> FloatTensor<Self>;
}

/// Its gradients.
pub trait Conv2dGradOps: Backend {
    fn input_gradient(dy: FloatTensor<Self>, w: FloatTensor<Self>, shape: Conv2dShape) -> FloatTensor<Self>;
    fn weight_gradient(x: FloatTensor<Self>, dy: FloatTensor<Self>, shape: Conv2dShape) -> FloatTensor<Self>;
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

/// [`conv2d_channels_last`] of fake-quantized activations and weights, computed from their codes in integers: the values are those
/// of the float convolution up to rounding, and the gradients are its gradients.
///
/// - `x`: values of an [`ActivationQuantizer`](crate::ActivationQuantizer) of `widths[1]` bits with one scale, `w`: of a
///   [`WeightQuantizer`](crate::WeightQuantizer) of `widths[0]` bits with one for each output channel.
/// - `activation`: `[2]`, the scale and the zero point of `x`; `weight_scale`: `[channels out]`.
///
/// # Panics
/// As [`conv2d_channels_last`].
pub fn conv2d_of_codes(
    x: Tensor<4>, w: Tensor<4>, activation: Tensor<1>, weight_scale: Tensor<1>, widths: [BitWidth; 2],
    stride: usize, padding: usize,
) -> Tensor<4> {
    let shape = channels_last_shape(&x, &w, stride, padding);
    let [inputs, outputs] = shape.channels;
    if inputs < INTEGERS_FROM
        || shape.depthwise
        || weight_scale.dims() != [outputs]
        || activation.dims() != [2]
    {
        return conv2d_channels_last(x, w, stride, padding);
    }
    let scales = Tensor::cat(vec![activation.inner(), weight_scale.inner()], 0);
    let scales = if x.device().is_autodiff() { Tensor::from_inner(scales) } else { scales };
    let [x, w] = [x, w].map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::coded_conv2d(x, w, scales.into_dispatch(), shape, widths))
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

impl Conv2dOps for Flex {
    fn channels_last_conv2d(x: FlexTensor, w: FlexTensor, shape: Conv2dShape) -> FlexTensor {
        let [x, w] = [x, w].map(dense);
        tensor(cpu::conv2d(slice(&x), slice(&w), &shape), output(&shape))
    }

    fn coded_conv2d(
        x: FlexTensor, w: FlexTensor, scales: FlexTensor, shape: Conv2dShape, widths: [BitWidth; 2],
    ) -> FlexTensor {
        let [x, w, scales] = [x, w, scales].map(dense);
        let (x, w, scales) = (slice(&x), slice(&w), slice(&scales));
        // What integers cannot hold is computed in floats.
        let values = cpu::integer::conv2d_of_codes(x, w, scales, &shape, widths);
        tensor(values.unwrap_or_else(|_| cpu::conv2d(x, w, &shape)), output(&shape))
    }
}

impl Conv2dGradOps for Flex {
    fn input_gradient(dy: FlexTensor, w: FlexTensor, shape: Conv2dShape) -> FlexTensor {
        let [dy, w] = [dy, w].map(dense);
        let (channels, [rows, cols]) = (shape.channels[0], shape.input);
        let dx = cpu::conv2d_input_gradient(slice(&dy), slice(&w), &shape);
        tensor(dx, [shape.batch, rows, cols, channels])
    }

    fn weight_gradient(x: FlexTensor, dy: FlexTensor, shape: Conv2dShape) -> FlexTensor {
        let [x, dy] = [x, dy].map(dense);
        let [channels_in, channels_out] = shape.channels;
        let dw = cpu::conv2d_weight_gradient(slice(&x), slice(&dy), &shape);
        let inputs = if shape.depthwise { 1 } else { channels_in };
        tensor(dw, [channels_out, inputs, shape.kernel, shape.kernel])
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

impl<B: Conv2dOps + Conv2dGradOps, C: CheckpointStrategy> Conv2dOps for Autodiff<B, C> {
    fn channels_last_conv2d(
        x: FloatTensor<Self>, w: FloatTensor<Self>, shape: Conv2dShape,
    ) -> FloatTensor<Self> {
        let out = B::channels_last_conv2d(x.primitive().clone(), w.primitive().clone(), shape);
        register::<B, C>(x, w, out, shape)
    }

    fn coded_conv2d(
        x: FloatTensor<Self>, w: FloatTensor<Self>, scales: FloatTensor<Self>, shape: Conv2dShape,
        widths: [BitWidth; 2],
    ) -> FloatTensor<Self> {
        let [value_x, value_w] = [&x, &w].map(|t| t.primitive().clone());
        let out = B::coded_conv2d(value_x, value_w, scales.primitive().clone(), shape, widths);
        register::<B, C>(x, w, out, shape)
    }
}

/// Makes `out` a convolution of `x` and `w`, however it was computed.
fn register<B: Conv2dOps + Conv2dGradOps, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>, w: FloatTensor<Autodiff<B, C>>, out: FloatTensor<B>, shape: Conv2dShape,
) -> FloatTensor<Autodiff<B, C>> {
    match Conv2dBackward.prepare::<C>([x.node(), w.node()]).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let state = (prep.checkpoint(&x), prep.checkpoint(&w), shape);
            prep.finish(state, out)
        }
        OpsKind::UnTracked(prep) => prep.finish(out),
    }
}
