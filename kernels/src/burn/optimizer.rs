//! Steps of optimizers: on `flex` one pass of [`crate::cpu`] over all tensors, on other backends Burn's operations.

use super::flex::{dense, slice};
use crate::cpu::{AdamStep, OptimizerStep, SgdStep};
use burn::backend::flex::FlexTensor;
use burn::backend::{Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::{DType, Device, Tensor};

/// The operations as a backend extension. Only `flex` has them: see [`sgd_step`] and [`adam_step`].
#[backend_extension(Flex)]
pub trait OptimizerOps: Backend {
    /// The weight and the velocity after the step.
    fn sgd_step(
        w: FloatTensor<Self>, gradient: FloatTensor<Self>, velocity: FloatTensor<Self>, step: SgdStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// The weight and both moments after the step.
    fn adam_step(
        w: FloatTensor<Self>, gradient: FloatTensor<Self>, first: FloatTensor<Self>,
        second: FloatTensor<Self>, step: AdamStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

/// Whether [`crate::cpu`] takes the step.
fn in_one_pass<const D: usize>(tensors: &[&Tensor<D>]) -> bool {
    tensors.iter().all(|tensor| tensor.device() == Device::flex() && tensor.dtype() == DType::F32)
}

impl OptimizerStep {
    /// The gradient, clipped and with the penalty.
    fn of_tensors<const D: usize>(&self, w: &Tensor<D>, gradient: Tensor<D>) -> Tensor<D> {
        let gradient = match self.clip_norm {
            Some(most) => {
                let norm = gradient.clone().square().sum().sqrt().add_scalar(f32::MIN_POSITIVE);
                gradient * norm.recip().mul_scalar(most).clamp_max(1.0).unsqueeze()
            }
            None => gradient,
        };
        if self.decay == 0.0 { gradient } else { w.clone().mul_scalar(self.decay) + gradient }
    }
}

/// The weight and the velocity after a step of stochastic gradient descent, not differentiable. Without a velocity it is the
/// first step. Tensors that nothing else holds are written in place.
///
/// # Panics
/// Tensors of different shapes or devices.
pub fn sgd_step<const D: usize>(
    w: Tensor<D>, gradient: Tensor<D>, velocity: Option<Tensor<D>>, step: SgdStep,
) -> (Tensor<D>, Tensor<D>) {
    let velocity = velocity.unwrap_or_else(|| gradient.zeros_like());
    if in_one_pass(&[&w, &gradient, &velocity]) {
        let [w, gradient, velocity] = [w, gradient, velocity].map(Tensor::into_dispatch);
        let (w, velocity) = Dispatch::sgd_step(w, gradient, velocity, step);
        return (Tensor::from_dispatch(w), Tensor::from_dispatch(velocity));
    }
    let gradient = step.common.of_tensors(&w, gradient);
    let velocity = gradient.clone() + velocity.mul_scalar(step.momentum);
    let change = velocity.clone().mul_scalar(step.momentum) + gradient;
    (w - change.mul_scalar(step.common.rate), velocity)
}

/// The weight and both moments after a step of Adam or AdamW, not differentiable. Without moments it is the first step. Tensors
/// that nothing else holds are written in place.
///
/// # Panics
/// Tensors of different shapes or devices.
pub fn adam_step<const D: usize>(
    w: Tensor<D>, gradient: Tensor<D>, moments: Option<[Tensor<D>; 2]>, step: AdamStep,
) -> (Tensor<D>, [Tensor<D>; 2]) {
    let [first, second] = moments.unwrap_or_else(|| [gradient.zeros_like(), gradient.zeros_like()]);
    if in_one_pass(&[&w, &gradient, &first, &second]) {
        let [w, gradient, first, second] = [w, gradient, first, second].map(Tensor::into_dispatch);
        let (w, first, second) = Dispatch::adam_step(w, gradient, first, second, step);
        return (Tensor::from_dispatch(w), [first, second].map(Tensor::from_dispatch));
    }
    let gradient = step.common.of_tensors(&w, gradient);
    let ([beta_1, beta_2], [correction, epsilon]) = (step.betas, step.corrections());
    let first = first.mul_scalar(beta_1) + gradient.clone().mul_scalar(1.0 - beta_1);
    let second = second.mul_scalar(beta_2) + gradient.square().mul_scalar(1.0 - beta_2);
    let change = first.clone().mul_scalar(correction) / second.clone().sqrt().add_scalar(epsilon);
    let kept = 1.0 - step.common.rate * f64::from(step.decoupled_decay);
    (w.mul_scalar(kept) - change.mul_scalar(step.common.rate), [first, second])
}

/// The values of a dense tensor, its own ones.
fn values(tensor: &mut FlexTensor) -> &mut [f32] {
    let (start, end) = tensor.layout().contiguous_offsets().expect("a dense tensor");
    &mut tensor.storage_mut::<f32>()[start..end]
}

impl OptimizerOps for Flex {
    fn sgd_step(
        w: FlexTensor, gradient: FlexTensor, velocity: FlexTensor, step: SgdStep,
    ) -> (FlexTensor, FlexTensor) {
        let [mut w, gradient, mut velocity] = [w, gradient, velocity].map(dense);
        step.apply(values(&mut w), slice(&gradient), values(&mut velocity));
        (w, velocity)
    }

    fn adam_step(
        w: FlexTensor, gradient: FlexTensor, first: FlexTensor, second: FlexTensor, step: AdamStep,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let [mut w, gradient, mut first, mut second] = [w, gradient, first, second].map(dense);
        step.apply(values(&mut w), slice(&gradient), [values(&mut first), values(&mut second)]);
        (w, first, second)
    }
}
