//! Max pooling for training, on `flex` by the loops of [`crate::cpu`].

use super::flex::{dense, slice, tensor};
use crate::cpu::{self, MaxPoolShape};
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::autodiff::{Autodiff, NodeId, grads::Gradients};
use burn::backend::flex::FlexTensor;
use burn::backend::{Backend, Dispatch, Flex, TensorMetadata, backend_extension, tensor::FloatTensor};
use burn::tensor::{Device, Tensor};

/// The operation as a backend extension. Only `flex` has it: see [`max_pool2d_channels_last`].
#[backend_extension(Flex, Autodiff)]
pub trait MaxPoolOps: Backend {
    fn channels_last_max_pool(x: FloatTensor<Self>, shape: MaxPoolShape) -> FloatTensor<Self>;
}

/// Its gradient.
pub trait MaxPoolGradOps: Backend {
    /// From the input, the result and the gradient of the result.
    fn channels_last_max_pool_backward(
        x: FloatTensor<Self>, y: FloatTensor<Self>, dy: FloatTensor<Self>, shape: MaxPoolShape,
    ) -> FloatTensor<Self>;
}

/// Max pooling, differentiable, of images with their channels last: `[batch, rows, columns, channels]`. Kernel, stride and padding are of
/// rows and columns. Values and gradients are those of Burn's `max_pool2d`.
///
/// # Panics
/// A tensor that is not on `flex` and f32, a stride of 0, and padding of a whole window.
pub fn max_pool2d_channels_last(
    x: Tensor<4>, kernel: [usize; 2], stride: [usize; 2], padding: [usize; 2],
) -> Tensor<4> {
    let [batch, rows, cols, channels] = x.dims();
    assert!(x.device().inner() == Device::flex(), "expected a tensor on `flex`");
    assert!(stride.iter().all(|stride| *stride > 0), "expected a stride of at least 1");
    assert!(
        [0, 1].iter().all(|axis| padding[*axis] < kernel[*axis]),
        "expected a window larger than its padding"
    );
    let shape = MaxPoolShape { batch, channels, input: [rows, cols], kernel, stride, padding };
    Tensor::from_dispatch(Dispatch::channels_last_max_pool(x.into_dispatch(), shape))
}

impl MaxPoolOps for Flex {
    fn channels_last_max_pool(x: FlexTensor, shape: MaxPoolShape) -> FlexTensor {
        let (x, [rows, cols]) = (dense(x), shape.output());
        tensor(cpu::max_pool2d(slice(&x), &shape), [shape.batch, rows, cols, shape.channels])
    }
}

impl MaxPoolGradOps for Flex {
    fn channels_last_max_pool_backward(
        x: FlexTensor, y: FlexTensor, dy: FlexTensor, shape: MaxPoolShape,
    ) -> FlexTensor {
        let [x, y, dy] = [x, y, dy].map(dense);
        tensor(cpu::max_pool2d_backward(slice(&x), slice(&y), slice(&dy), &shape), x.shape())
    }
}

#[derive(Debug)]
struct MaxPoolBackward;

impl<B: MaxPoolOps + MaxPoolGradOps> Backward<B, 1> for MaxPoolBackward {
    /// Input and result.
    type State = (NodeId, FloatTensor<B>, MaxPoolShape);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let (x, y, shape) = ops.state;
        let dy = grads.consume::<B>(&ops.node);
        let x: FloatTensor<B> = checkpointer.retrieve_node_output(x);
        let [node] = ops.parents;
        if let Some(node) = node {
            grads.register::<B>(node.id, B::channels_last_max_pool_backward(x, y, dy, shape));
        }
    }
}

impl<B: MaxPoolOps + MaxPoolGradOps, C: CheckpointStrategy> MaxPoolOps for Autodiff<B, C> {
    fn channels_last_max_pool(x: FloatTensor<Self>, shape: MaxPoolShape) -> FloatTensor<Self> {
        let y = B::channels_last_max_pool(x.primitive().clone(), shape);
        match MaxPoolBackward.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let state = (prep.checkpoint(&x), y.clone(), shape);
                prep.finish(state, y)
            }
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::module::max_pool2d;
    use burn::tensor::ops::MaxPoolOptions;
    use burn::tensor::{TensorData, Tolerance};

    #[test]
    fn agrees_with_burn() {
        let device = Device::flex().autodiff();
        let values: Vec<f32> = (0..2 * 7 * 9 * 5).map(|i| (i * 37 % 19) as f32 - 9.0).collect();
        for (kernel, stride, padding) in
            [([3, 3], [2, 2], [1, 1]), ([2, 3], [2, 1], [0, 1]), ([2, 2], [2, 2], [0, 0])]
        {
            let run = |ours: bool| {
                let data = TensorData::new(values.clone(), [2, 7, 9, 5]);
                let x = Tensor::<4>::from_data(data, &device).require_grad();
                let y = match ours {
                    true => max_pool2d_channels_last(x.clone(), kernel, stride, padding),
                    false => {
                        let options = MaxPoolOptions::new(kernel).with_stride(stride).with_padding(padding);
                        max_pool2d(x.clone().permute([0, 3, 1, 2]), options).permute([0, 2, 3, 1])
                    }
                };
                let gradients = (y.clone() * y.clone()).sum().backward();
                [y.inner().into_data(), x.grad(&gradients).expect("a gradient").into_data()]
            };
            for (ours, burns) in run(true).iter().zip(run(false)) {
                ours.assert_approx_eq::<f32>(&burns, Tolerance::rel_abs(1e-6, 1e-6));
            }
        }
    }
}
