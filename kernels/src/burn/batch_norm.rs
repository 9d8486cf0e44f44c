//! BatchNorm for training, on `flex` by the loops of [`crate::cpu`], on other backends by Burn's own.

use super::autodiff::register;
use super::flex::{dense, slice, tensor};
use crate::cpu::{self, BatchNormShape};
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::autodiff::{Autodiff, NodeId, grads::Gradients};
use burn::backend::flex::FlexTensor;
use burn::backend::{Backend, Dispatch, Flex, TensorMetadata, backend_extension, tensor::FloatTensor};
use burn::tensor::{DType, Device, Tensor, module};

/// The operation as a backend extension. Only `flex` has it: see [`batch_norm_train`].
#[backend_extension(Flex, Autodiff)]
pub trait BatchNormOps: Backend {
    /// `(y, mean, variance)`; only `y` is differentiable.
    fn planar_batch_norm(
        x: FloatTensor<Self>, gamma: FloatTensor<Self>, beta: FloatTensor<Self>, shape: BatchNormShape,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

/// Its gradients.
pub trait BatchNormGradOps: Backend {
    /// `(dx, dgamma, dbeta)`; `moments` are the mean and the variance.
    fn planar_batch_norm_backward(
        x: FloatTensor<Self>, gamma: FloatTensor<Self>, moments: [FloatTensor<Self>; 2],
        dy: FloatTensor<Self>, shape: BatchNormShape,
    ) -> [FloatTensor<Self>; 3];
}

/// BatchNorm with the statistics of the batch, differentiable: `x` `[batch, channels, ..]`, `gamma` and `beta` `[channels]`.
/// [`batch_norm_train`](module::batch_norm_train) of Burn, which computes it on all devices but `flex`; there, in f32, it is
/// two passes over memory in each direction instead of one for each operation.
///
/// # Panics
/// As Burn's: if the shapes do not match.
pub fn batch_norm_train<const D: usize>(
    x: Tensor<D>, gamma: Tensor<1>, beta: Tensor<1>, epsilon: f64,
) -> module::BatchNormTrainOutput<D> {
    let dims = x.dims();
    let flex = x.device().inner() == Device::flex()
        && [x.dtype(), gamma.dtype(), beta.dtype()] == [DType::F32; 3]
        && D >= 2
        && x.shape().num_elements() > 0
        && (gamma.dims(), beta.dims()) == ([dims[1]], [dims[1]]);
    if !flex {
        return module::batch_norm_train(x, gamma, beta, epsilon);
    }
    let (images, channels, positions) = (dims[0], dims[1], dims[2..].iter().product());
    let shape = BatchNormShape { images, channels, positions, epsilon };
    let [gamma, beta] = [gamma, beta].map(Tensor::into_dispatch);
    let (y, mean, variance) = Dispatch::planar_batch_norm(x.into_dispatch(), gamma, beta, shape);
    module::BatchNormTrainOutput {
        output: Tensor::from_dispatch(y),
        mean: Tensor::from_dispatch(mean),
        variance: Tensor::from_dispatch(variance),
    }
}

impl BatchNormOps for Flex {
    fn planar_batch_norm(
        x: FlexTensor, gamma: FlexTensor, beta: FlexTensor, shape: BatchNormShape,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let [x, gamma, beta] = [x, gamma, beta].map(dense);
        let (y, mean, variance) = cpu::batch_norm(slice(&x), slice(&gamma), slice(&beta), &shape);
        let channels = [shape.channels];
        (tensor(y, x.shape()), tensor(mean, channels), tensor(variance, channels))
    }
}

impl BatchNormGradOps for Flex {
    fn planar_batch_norm_backward(
        x: FlexTensor, gamma: FlexTensor, moments: [FlexTensor; 2], dy: FlexTensor, shape: BatchNormShape,
    ) -> [FlexTensor; 3] {
        let [x, gamma, dy] = [x, gamma, dy].map(dense);
        let [x_values, gamma, mean, variance, dy] = [&x, &gamma, &moments[0], &moments[1], &dy].map(slice);
        let (dx, dgamma, dbeta) = cpu::batch_norm_backward(x_values, gamma, mean, variance, dy, &shape);
        let channels = [shape.channels];
        [tensor(dx, x.shape()), tensor(dgamma, channels), tensor(dbeta, channels)]
    }
}

#[derive(Debug)]
struct BatchNormBackward;

impl<B: BatchNormOps + BatchNormGradOps> Backward<B, 3> for BatchNormBackward {
    type State = ([NodeId; 2], [FloatTensor<B>; 2], BatchNormShape);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let (inputs, moments, shape) = ops.state;
        let dy = grads.consume::<B>(&ops.node);
        let [x, gamma] = inputs.map(|node| -> FloatTensor<B> { checkpointer.retrieve_node_output(node) });
        let nodes = ops.parents.map(|node| node.map(|node| node.id));
        register::<B, 3>(nodes, B::planar_batch_norm_backward(x, gamma, moments, dy, shape), grads);
    }
}

impl<B: BatchNormOps + BatchNormGradOps, C: CheckpointStrategy> BatchNormOps for Autodiff<B, C> {
    fn planar_batch_norm(
        x: FloatTensor<Self>, gamma: FloatTensor<Self>, beta: FloatTensor<Self>, shape: BatchNormShape,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let [value_x, value_gamma, value_beta] = [&x, &gamma, &beta].map(|t| t.primitive().clone());
        let (y, mean, variance) = B::planar_batch_norm(value_x, value_gamma, value_beta, shape);
        let guards = [x.node(), gamma.node(), beta.node()];
        let y = match BatchNormBackward.prepare::<C>(guards).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let inputs = [prep.checkpoint(&x), prep.checkpoint(&gamma)];
                prep.finish((inputs, [mean.clone(), variance.clone()], shape), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(y),
        };
        (y, FloatTensor::<Self>::new(mean), FloatTensor::<Self>::new(variance))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Train = fn(Tensor<4>, Tensor<1>, Tensor<1>, f64) -> module::BatchNormTrainOutput<4>;

    /// Output, statistics and gradients of a loss that tells positions apart.
    fn results(train: Train, transposed: bool) -> Vec<Vec<f32>> {
        let device = Device::flex().autodiff();
        let ramp = |n: usize, step: f32| {
            Tensor::<1>::from_data(
                burn::tensor::TensorData::from(
                    &(0..n).map(|i| (i as f32 * step).sin()).collect::<Vec<_>>()[..],
                ),
                &device,
            )
        };
        let x = ramp(3 * 5 * 4 * 7, 0.37).reshape([3, 5, 4, 7]).require_grad();
        let (gamma, beta) = (ramp(5, 1.3).require_grad(), ramp(5, 0.7).require_grad());
        let input = if transposed { x.clone().swap_dims(2, 3) } else { x.clone() };
        let out = train(input, gamma.clone(), beta.clone(), 1e-5);
        let loss = (out.output.clone() * ramp(3 * 5 * 4 * 7, 0.11).reshape(out.output.dims())).sum();
        let gradients = loss.backward();
        let flat = |values: burn::tensor::TensorData| values.try_to_vec::<f32>().expect("f32");
        vec![
            flat(out.output.into_data()),
            flat(out.mean.into_data()),
            flat(out.variance.into_data()),
            flat(x.grad(&gradients).expect("a gradient").into_data()),
            flat(gamma.grad(&gradients).expect("a gradient").into_data()),
            flat(beta.grad(&gradients).expect("a gradient").into_data()),
        ]
    }

    #[test]
    fn agrees_with_burn() {
        for transposed in [false, true] {
            let ours = results(batch_norm_train, transposed);
            for (got, want) in ours.iter().zip(results(module::batch_norm_train, transposed)) {
                assert_eq!(got.len(), want.len());
                let largest = want.iter().fold(1.0f32, |largest, want| largest.max(want.abs()));
                assert!(got.iter().zip(want).all(|(got, want)| (got - want).abs() <= 1e-5 * largest));
            }
        }
    }
}
