//! BatchNorm for training and inference, on `flex` by the loops of [`crate::cpu`], on other backends by Burn's own.

use super::autodiff::register;
use super::flex::{dense, slice, tensor};
use crate::cpu::{self, BatchNormShape};
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::autodiff::{Autodiff, NodeId, grads::Gradients};
use burn::backend::flex::FlexTensor;
use burn::backend::{Backend, Dispatch, Flex, TensorMetadata, backend_extension, tensor::FloatTensor};
use burn::tensor::{Device, Tensor, module};

/// The operation as a backend extension. Only `flex` has it: see [`batch_norm_channels_last`].
#[backend_extension(Flex, Autodiff)]
pub trait BatchNormOps: Backend {
    /// `(y, mean, variance)`; only `y` is differentiable. `residual` is read where `adds` says so.
    fn channels_last_batch_norm(
        x: FloatTensor<Self>, gamma: FloatTensor<Self>, beta: FloatTensor<Self>, residual: FloatTensor<Self>,
        adds: bool, shape: BatchNormShape,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

/// With running statistics. Only `flex` has it, without gradients: see [`batch_norm_channels_last_inference`].
#[backend_extension(Flex)]
pub trait BatchNormInferenceOps: Backend {
    /// `terms` `[4, channels]` are gamma, beta, mean and variance. `residual` is read where `adds` says so.
    fn channels_last_batch_norm_inference(
        x: FloatTensor<Self>, terms: FloatTensor<Self>, residual: FloatTensor<Self>, adds: bool,
        shape: BatchNormShape,
    ) -> FloatTensor<Self>;
}

/// What the gradients come from: the input, gamma, mean, variance and result.
type Known<B> = [FloatTensor<B>; 5];

/// Its gradients.
pub trait BatchNormGradOps: Backend {
    /// `([dx, dgamma, dbeta], dresidual)`, the last where it is wanted.
    fn channels_last_batch_norm_backward(
        known: Known<Self>, dy: FloatTensor<Self>, residual: bool, shape: BatchNormShape,
    ) -> ([FloatTensor<Self>; 3], Option<FloatTensor<Self>>);
}

/// BatchNorm with the statistics of the batch, differentiable, of images with their channels last: `x` `[batch, rows, columns, channels]`,
/// `gamma` and `beta` `[channels]`; then the sum with `residual`, of the shape of `x`, and a clip to `0..=clip`, where there are: to infinity for a ReLU, to 6 for a ReLU6. In each direction two
/// passes over memory.
///
/// # Panics
/// Tensors that are not on `flex` and f32, shapes that do not match, and no values.
pub fn batch_norm_channels_last(
    x: Tensor<4>, gamma: Tensor<1>, beta: Tensor<1>, residual: Option<Tensor<4>>, clip: Option<f32>,
    epsilon: f64,
) -> module::BatchNormTrainOutput<4> {
    let shape = shape(&x, residual.as_ref(), clip, epsilon);
    let adds = residual.is_some();
    let residual = residual.unwrap_or_else(|| x.clone().detach()).into_dispatch();
    let [gamma, beta] = [gamma, beta].map(Tensor::into_dispatch);
    let (y, mean, variance) =
        Dispatch::channels_last_batch_norm(x.into_dispatch(), gamma, beta, residual, adds, shape);
    module::BatchNormTrainOutput {
        output: Tensor::from_dispatch(y),
        mean: Tensor::from_dispatch(mean),
        variance: Tensor::from_dispatch(variance),
    }
}

/// BatchNorm with running statistics `[mean, variance]`, each `[channels]`, and otherwise as [`batch_norm_channels_last`]. Not differentiable. One pass over memory.
///
/// # Panics
/// Tensors that are not on `flex` without autodiff and f32, and shapes that do not match.
pub fn batch_norm_channels_last_inference(
    x: Tensor<4>, gamma: Tensor<1>, beta: Tensor<1>, statistics: [Tensor<1>; 2], residual: Option<Tensor<4>>,
    clip: Option<f32>, epsilon: f64,
) -> Tensor<4> {
    assert!(!x.device().is_autodiff(), "expected a tensor without autodiff");
    let shape = shape(&x, residual.as_ref(), clip, epsilon);
    let adds = residual.is_some();
    let residual = residual.unwrap_or_else(|| x.clone()).into_dispatch();
    let [mean, variance] = statistics;
    let terms = Tensor::stack::<2>(vec![gamma, beta, mean, variance], 0).into_dispatch();
    let x = x.into_dispatch();
    Tensor::from_dispatch(Dispatch::channels_last_batch_norm_inference(x, terms, residual, adds, shape))
}

/// # Panics
/// Tensors that are not on `flex`, and a residual of another shape.
fn shape(x: &Tensor<4>, residual: Option<&Tensor<4>>, clip: Option<f32>, epsilon: f64) -> BatchNormShape {
    let [batch, rows, cols, channels] = x.dims();
    assert!(x.device().inner() == Device::flex(), "expected a tensor on `flex`");
    assert!(residual.is_none_or(|residual| residual.dims() == x.dims()), "a residual of another shape");
    BatchNormShape { positions: batch * rows * cols, channels, epsilon, clip }
}

impl BatchNormInferenceOps for Flex {
    fn channels_last_batch_norm_inference(
        x: FlexTensor, terms: FlexTensor, residual: FlexTensor, adds: bool, shape: BatchNormShape,
    ) -> FlexTensor {
        let [x, terms, residual] = [x, terms, residual].map(dense);
        let [gamma, beta, mean, variance] =
            [0, 1, 2, 3].map(|term| &slice(&terms)[term * shape.channels..][..shape.channels]);
        let added = adds.then(|| slice(&residual));
        tensor(cpu::batch_norm_inference(slice(&x), gamma, beta, [mean, variance], added, &shape), x.shape())
    }
}

impl BatchNormOps for Flex {
    fn channels_last_batch_norm(
        x: FlexTensor, gamma: FlexTensor, beta: FlexTensor, residual: FlexTensor, adds: bool,
        shape: BatchNormShape,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let [x, gamma, beta, residual] = [x, gamma, beta, residual].map(dense);
        let added = adds.then(|| slice(&residual));
        let (y, mean, variance) = cpu::batch_norm(slice(&x), slice(&gamma), slice(&beta), added, &shape);
        let channels = [shape.channels];
        (tensor(y, x.shape()), tensor(mean, channels), tensor(variance, channels))
    }
}

impl BatchNormGradOps for Flex {
    fn channels_last_batch_norm_backward(
        known: Known<Self>, dy: FlexTensor, residual: bool, shape: BatchNormShape,
    ) -> ([FlexTensor; 3], Option<FlexTensor>) {
        let (known, dy) = (known.map(dense), dense(dy));
        let [x, gamma, mean, variance, y] = known.each_ref().map(slice);
        let found = cpu::batch_norm_backward(x, gamma, [mean, variance], y, slice(&dy), residual, &shape);
        let channels = [shape.channels];
        let gradients =
            [tensor(found.x, dy.shape()), tensor(found.gamma, channels), tensor(found.beta, channels)];
        // Without a clip it is that of the result.
        let of_residual = found.residual.map(|values| tensor(values, dy.shape()));
        (gradients, residual.then(|| of_residual.unwrap_or(dy)))
    }
}

#[derive(Debug)]
struct BatchNormBackward;

impl<B: BatchNormOps + BatchNormGradOps> Backward<B, 4> for BatchNormBackward {
    /// Input and gamma; mean, variance and the result, which the clip's gradient depends on.
    type State = ([NodeId; 2], [FloatTensor<B>; 3], BatchNormShape);

    fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let (inputs, [mean, variance, y], shape) = ops.state;
        let dy = grads.consume::<B>(&ops.node);
        let [x, gamma] = inputs.map(|node| -> FloatTensor<B> { checkpointer.retrieve_node_output(node) });
        let [x_node, gamma_node, beta_node, residual] = ops.parents.map(|node| node.map(|node| node.id));
        let known = [x, gamma, mean, variance, y];
        let (gradients, of_residual) =
            B::channels_last_batch_norm_backward(known, dy, residual.is_some(), shape);
        register::<B, 3>([x_node, gamma_node, beta_node], gradients, grads);
        if let (Some(node), Some(gradient)) = (residual, of_residual) {
            grads.register::<B>(node, gradient);
        }
    }
}

impl<B: BatchNormOps + BatchNormGradOps, C: CheckpointStrategy> BatchNormOps for Autodiff<B, C> {
    fn channels_last_batch_norm(
        x: FloatTensor<Self>, gamma: FloatTensor<Self>, beta: FloatTensor<Self>, residual: FloatTensor<Self>,
        adds: bool, shape: BatchNormShape,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let [value_x, value_gamma, value_beta, value_residual] =
            [&x, &gamma, &beta, &residual].map(|t| t.primitive().clone());
        let (y, mean, variance) =
            B::channels_last_batch_norm(value_x, value_gamma, value_beta, value_residual, adds, shape);
        let guards = [x.node(), gamma.node(), beta.node(), residual.node()];
        let y = match BatchNormBackward.prepare::<C>(guards).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let inputs = [prep.checkpoint(&x), prep.checkpoint(&gamma)];
                let known = [mean.clone(), variance.clone(), y.clone()];
                prep.finish((inputs, known, shape), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(y),
        };
        (y, FloatTensor::<Self>::new(mean), FloatTensor::<Self>::new(variance))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::TensorData;

    /// Output, statistics and gradients of a loss that tells positions apart.
    fn results(ours: bool, adds: bool, clip: Option<f32>) -> Vec<Vec<f32>> {
        let device = Device::flex().autodiff();
        let ramp = |n: usize, step: f32| {
            // None is zero, where a clip has two gradients.
            let values: Vec<f32> = (1..=n).map(|i| (i as f32 * step).sin()).collect();
            Tensor::<1>::from_data(TensorData::from(&values[..]), &device)
        };
        let dims = [3, 4, 7, 5];
        let images = |step: f32| ramp(3 * 4 * 7 * 5, step).reshape(dims);
        let (x, residual) = (images(0.37).require_grad(), images(0.53).require_grad());
        let (gamma, beta) = (ramp(5, 1.3).require_grad(), ramp(5, 0.7).require_grad());
        let (x_in, gamma_in, beta_in) = (x.clone(), gamma.clone(), beta.clone());
        let out = if ours {
            let residual = adds.then(|| residual.clone());
            batch_norm_channels_last(x_in, gamma_in, beta_in, residual, clip, 1e-5)
        } else {
            let out = module::batch_norm_train(x_in.permute([0, 3, 1, 2]), gamma_in, beta_in, 1e-5);
            let y = out.output.permute([0, 2, 3, 1]);
            let y = if adds { y + residual.clone() } else { y };
            module::BatchNormTrainOutput { output: clip.map_or(y.clone(), |high| y.clamp(0.0, high)), ..out }
        };
        let gradients = (out.output.clone() * images(0.11)).sum().backward();
        let flat = |values: TensorData| values.try_to_vec::<f32>().expect("f32");
        let mut results = vec![
            flat(out.output.into_data()),
            flat(out.mean.into_data()),
            flat(out.variance.into_data()),
            flat(x.grad(&gradients).expect("a gradient").into_data()),
            flat(gamma.grad(&gradients).expect("a gradient").into_data()),
            flat(beta.grad(&gradients).expect("a gradient").into_data()),
        ];
        let of_residual = residual.grad(&gradients);
        assert_eq!(of_residual.is_some(), adds);
        results.extend(of_residual.map(|gradient| flat(gradient.into_data())));
        results
    }

    /// BatchNorm's output with given statistics, with a residual and a clip or without.
    fn inference(ours: bool, with: bool) -> Vec<f32> {
        let device = Device::flex();
        let ramp = |n: usize, step: f32| {
            let values: Vec<f32> = (1..=n).map(|i| (i as f32 * step).sin() + 1.2).collect();
            Tensor::<1>::from_data(TensorData::from(&values[..]), &device)
        };
        let images = |step: f32| ramp(2 * 3 * 5 * 19, step).reshape([2, 3, 5, 19]);
        let [gamma, beta, mean, variance] = [1.3, 0.7, 0.3, 0.9].map(|step| ramp(19, step));
        let residual = with.then(|| images(0.53));
        let y = if ours {
            let clip = with.then_some(1.5);
            batch_norm_channels_last_inference(
                images(0.37),
                gamma,
                beta,
                [mean, variance],
                residual,
                clip,
                0.1,
            )
        } else {
            let [gamma, beta, mean, variance] =
                [gamma, beta, mean, variance].map(|term| term.reshape([1, 1, 1, -1]));
            let y = (images(0.37) - mean) / (variance + 0.1).sqrt() * gamma + beta;
            residual.map_or(y.clone(), |residual| (y + residual).clamp(0.0, 1.5))
        };
        y.into_data().try_to_vec().expect("f32")
    }

    #[test]
    fn inference_agrees_with_burn() {
        for with in [false, true] {
            for (got, want) in inference(true, with).iter().zip(inference(false, with)) {
                assert!((got - want).abs() <= 1e-5 * want.abs().max(1.0), "{got} {want}");
            }
        }
    }

    #[test]
    fn agrees_with_burn() {
        for (adds, clip) in [(false, None), (false, Some(0.7)), (true, None), (true, Some(f32::INFINITY))] {
            for (got, want) in results(true, adds, clip).iter().zip(results(false, adds, clip)) {
                assert_eq!(got.len(), want.len());
                let largest = want.iter().fold(1.0f32, |largest, want| largest.max(want.abs()));
                assert!(got.iter().zip(want).all(|(got, want)| (got - want).abs() <= 1e-5 * largest));
            }
        }
    }
}
