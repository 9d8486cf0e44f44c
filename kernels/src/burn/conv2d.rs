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

/// The convolution as a backend extension. Only `flex` has it: see [`conv2d`].
#[backend_extension(Flex, Autodiff)]
pub trait Conv2dOps: Backend {
    fn planar_conv2d(x: FloatTensor<Self>, w: FloatTensor<Self>, shape: Conv2dShape) -> FloatTensor<Self>;

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

/// 2D convolution without bias and dilation, differentiable: `x` `[batch, channels in, height, width]` with `w` `[channels
/// out, channels in / groups, k, k]`.
///
/// On `flex`, tensors in f32 and one group take the loops of this crate, which for few channels are several times faster than its
/// own; everything else is Burn's `conv2d`.
///
/// # Panics
/// As Burn's: if the channels do not match.
pub fn conv2d(x: Tensor<4>, w: Tensor<4>, stride: usize, padding: usize) -> Tensor<4> {
    match flex_shape(&x, &w, stride, padding) {
        None => {
            let groups = (x.dims()[1] / w.dims()[1].max(1)).max(1);
            module::conv2d(x, w, None, ConvOptions::new([stride; 2], [padding; 2], [1, 1], groups))
        }
        Some(shape) => {
            Tensor::from_dispatch(Dispatch::planar_conv2d(x.into_dispatch(), w.into_dispatch(), shape))
        }
    }
}

/// Input channels from which on integers are faster: fewer leave most of a step empty.
const INTEGERS_FROM: usize = 8;

/// [`conv2d`] of fake-quantized activations and weights, on `flex` computed from their codes in integers: the values are
/// those of the float convolution up to rounding, and the gradients are its gradients.
///
/// - `x`: values of an [`ActivationQuantizer`](crate::ActivationQuantizer) of `widths[1]` bits with one scale, `w`: of a
///   [`WeightQuantizer`](crate::WeightQuantizer) of `widths[0]` bits with one for each output channel.
/// - `activation`: `[2]`, the scale and the zero point of `x`; `weight_scale`: `[channels out]`.
///
/// # Panics
/// As Burn's: if the channels do not match.
pub fn conv2d_of_codes(
    x: Tensor<4>, w: Tensor<4>, activation: Tensor<1>, weight_scale: Tensor<1>, widths: [BitWidth; 2],
    stride: usize, padding: usize,
) -> Tensor<4> {
    match flex_shape(&x, &w, stride, padding) {
        Some(shape)
            if shape.channels[0] >= INTEGERS_FROM
                && weight_scale.dims() == [shape.channels[1]]
                && activation.dims() == [2] =>
        {
            let scales = Tensor::cat(vec![activation.inner(), weight_scale.inner()], 0);
            let scales = if x.device().is_autodiff() { Tensor::from_inner(scales) } else { scales };
            let [x, w] = [x, w].map(Tensor::into_dispatch);
            Tensor::from_dispatch(Dispatch::coded_conv2d(x, w, scales.into_dispatch(), shape, widths))
        }
        _ => conv2d(x, w, stride, padding),
    }
}

/// The shape, if the loops for `flex` take such tensors.
fn flex_shape(x: &Tensor<4>, w: &Tensor<4>, stride: usize, padding: usize) -> Option<Conv2dShape> {
    let ([batch, channels_in, rows, cols], [channels_out, w_in, k, k2]) = (x.dims(), w.dims());
    let flex = x.device().inner() == Device::flex() && x.dtype() == DType::F32 && w.dtype() == DType::F32;
    let (channels, input) = ([channels_in, channels_out], [rows, cols]);
    (flex && channels_in == w_in && k == k2 && stride > 0).then_some(Conv2dShape {
        batch,
        channels,
        input,
        kernel: k,
        stride,
        padding,
    })
}

/// Sizes of the output.
const fn output(shape: &Conv2dShape) -> [usize; 4] {
    let [height, width] = shape.output();
    [shape.batch, shape.channels[1], height, width]
}

impl Conv2dOps for Flex {
    fn planar_conv2d(x: FlexTensor, w: FlexTensor, shape: Conv2dShape) -> FlexTensor {
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
        tensor(dx, [shape.batch, channels, rows, cols])
    }

    fn weight_gradient(x: FlexTensor, dy: FlexTensor, shape: Conv2dShape) -> FlexTensor {
        let [x, dy] = [x, dy].map(dense);
        let [channels_in, channels_out] = shape.channels;
        let dw = cpu::conv2d_weight_gradient(slice(&x), slice(&dy), &shape);
        tensor(dw, [channels_out, channels_in, shape.kernel, shape.kernel])
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
    fn planar_conv2d(x: FloatTensor<Self>, w: FloatTensor<Self>, shape: Conv2dShape) -> FloatTensor<Self> {
        let out = B::planar_conv2d(x.primitive().clone(), w.primitive().clone(), shape);
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
