//! Optimizer and learning rate schedule of a phase.

use crate::config::OptimizerKind;
use burn::module::ParamGroup;
use burn::optim::lr_scheduler::cosine::CosineAnnealingLrSchedulerConfig;
use burn::optim::lr_scheduler::linear::LinearLrSchedulerConfig;
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::optim::lr_scheduler::sequential::SequentialLrSchedulerConfig;
use burn::optim::{AdamState, AdaptiveMomentumState, ModuleOptimizer, Optimizer};
use burn::optim::{RecordState, StateSink, StateSource};
use burn::tensor::{Device, Tensor};
use dr_kernels::{AdamStep, OptimizerStep, SgdStep};

/// The optimizer. Scales, zero points, BatchNorm and biases are not decayed; gradients are clipped to the L2 norm
/// `clip_norm`, each parameter's on its own, unless that is 0.
pub(super) fn optimizer(kind: OptimizerKind, weight_decay: f64, clip_norm: f64) -> ModuleOptimizer {
    let undecayed = ParamGroup::from_any_predicates(vec!["quantizers", "norm", "bias"]);
    let clip_norm = (clip_norm > 0.0).then_some(clip_norm as f32);
    let decay = weight_decay as f32;
    match kind {
        OptimizerKind::Sgd => {
            let sgd = |decay| Sgd { clip_norm, decay, momentum: 0.9 };
            ModuleOptimizer::from(sgd(decay)).with_group(undecayed, sgd(0.0), None)
        }
        OptimizerKind::Adam => {
            let adam = |decay| Adam { clip_norm, decay, ..Adam::default() };
            ModuleOptimizer::from(adam(decay)).with_group(undecayed, adam(0.0), None)
        }
        OptimizerKind::AdamW => {
            let adamw = |decoupled_decay| Adam { clip_norm, decoupled_decay, ..Adam::default() };
            ModuleOptimizer::from(adamw(decay)).with_group(undecayed, adamw(0.0), None)
        }
    }
}

/// Stochastic gradient descent as [`SgdStep`] has it.
#[derive(Clone)]
struct Sgd {
    clip_norm: Option<f32>,
    decay: f32,
    momentum: f32,
}

/// What [`Sgd`] keeps of a parameter.
#[derive(Clone)]
struct SgdState<const D: usize> {
    velocity: Tensor<D>,
}

/// Its name in a checkpoint: that of Burn's.
const VELOCITY: &str = "momentum.velocity";

impl<const D: usize> RecordState for SgdState<D> {
    fn state_flatten(&self, prefix: &str, out: &mut StateSink) {
        out.push_tensor(prefix, VELOCITY, self.velocity.to_data());
    }

    fn state_unflatten(prefix: &str, src: &mut StateSource, device: &Device) -> Option<Self> {
        let velocity = src.take_tensor(prefix, VELOCITY)?;
        Some(Self { velocity: Tensor::from_data(velocity, device) })
    }
}

impl Optimizer for Sgd {
    type State<const D: usize> = SgdState<D>;

    fn step<const D: usize>(
        &self, rate: f64, w: Tensor<D>, gradient: Tensor<D>, state: Option<SgdState<D>>,
    ) -> (Tensor<D>, Option<SgdState<D>>) {
        let common = OptimizerStep { rate, clip_norm: self.clip_norm, decay: self.decay };
        let step = SgdStep { common, momentum: self.momentum };
        let velocity = state.map(|state| state.velocity);
        let (w, velocity) = dr_kernels::sgd_step(w, gradient, velocity, step);
        (w, Some(SgdState { velocity }))
    }

    fn to_device<const D: usize>(state: SgdState<D>, device: &Device) -> SgdState<D> {
        SgdState { velocity: state.velocity.to_device(device) }
    }
}

/// Adam and AdamW as [`AdamStep`] has them.
#[derive(Clone)]
pub(crate) struct Adam {
    pub clip_norm: Option<f32>,
    pub decay: f32,
    pub betas: [f32; 2],
    pub epsilon: f32,
    pub decoupled_decay: f32,
}

impl Default for Adam {
    fn default() -> Self {
        Self { clip_norm: None, decay: 0.0, betas: [0.9, 0.999], epsilon: 1e-5, decoupled_decay: 0.0 }
    }
}

impl Optimizer for Adam {
    type State<const D: usize> = AdamState<D>;

    fn step<const D: usize>(
        &self, rate: f64, w: Tensor<D>, gradient: Tensor<D>, state: Option<AdamState<D>>,
    ) -> (Tensor<D>, Option<AdamState<D>>) {
        let common = OptimizerStep { rate, clip_norm: self.clip_norm, decay: self.decay };
        let time = state.as_ref().map_or(0, |state| state.momentum.time) + 1;
        let (betas, epsilon, decoupled_decay) = (self.betas, self.epsilon, self.decoupled_decay);
        let step = AdamStep { common, betas, epsilon, time, decoupled_decay };
        let moments = state.map(|state| [state.momentum.moment_1, state.momentum.moment_2]);
        let (w, [moment_1, moment_2]) = dr_kernels::adam_step(w, gradient, moments, step);
        (w, Some(AdamState::new(AdaptiveMomentumState::new(time, moment_1, moment_2))))
    }

    fn to_device<const D: usize>(state: AdamState<D>, device: &Device) -> AdamState<D> {
        AdamState::new(state.momentum.to_device(device))
    }
}

/// From near zero to `lr` over `warmup` steps, then along a cosine to zero over the rest of `steps`.
///
/// # Errors
/// What Burn says of a learning rate outside (0, 1].
pub(super) fn schedule(lr: f64, warmup: usize, steps: usize) -> Result<ModuleLrScheduler, String> {
    let cosine = |steps: usize| CosineAnnealingLrSchedulerConfig::new(lr, steps.max(1));
    if warmup == 0 || warmup >= steps {
        return cosine(steps).init();
    }
    let linear = LinearLrSchedulerConfig::new(lr / warmup as f64, lr, warmup);
    SequentialLrSchedulerConfig::new(vec![linear.into(), cosine(steps - warmup).into()], vec![warmup]).init()
}

#[cfg(test)]
mod tests {
    use super::{Adam, Device, Optimizer, Sgd, Tensor};
    use burn::grad_clipping::GradientClipping;
    use burn::optim::decay::WeightDecayConfig;
    use burn::optim::momentum::MomentumConfig;
    use burn::optim::{AdamConfig, AdamWConfig, SgdConfig};
    use burn::tensor::TensorData;

    /// More than one task has.
    const LENGTH: usize = 70_001;

    fn tensor(seed: usize) -> Tensor<1> {
        let value = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1000.0 - 1.0;
        let values: Vec<f32> = (0..LENGTH).map(value).collect();
        Tensor::from_data(TensorData::from(&values[..]), &Device::flex())
    }

    /// Weights after three steps.
    fn steps<O: Optimizer>(optimizer: &O, clip_norm: Option<f32>) -> Vec<f32> {
        let (mut w, mut state) = (tensor(0), None);
        for seed in 1..4 {
            let gradient = match clip_norm {
                Some(norm) => GradientClipping::Norm(norm).clip_gradient(tensor(seed)),
                None => tensor(seed),
            };
            (w, state) = optimizer.step(0.03, w, gradient, state);
        }
        w.into_data().try_to_vec().expect("f32")
    }

    fn assert_close(got: &[f32], want: &[f32]) {
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() <= 1e-5, "{got} {want}");
        }
    }

    #[test]
    fn steps_are_those_of_burn() {
        for (clip_norm, decay) in [(None, 0.0), (Some(3.0), 0.1), (Some(1e6), 0.1)] {
            let penalty = (decay > 0.0).then(|| WeightDecayConfig::new(decay));
            let momentum = MomentumConfig::new().with_momentum(0.9).with_dampening(0.0).with_nesterov(true);
            let sgd = SgdConfig::new().with_momentum(Some(momentum)).with_weight_decay(penalty.clone());
            let ours = Sgd { clip_norm, decay, momentum: 0.9 };
            assert_close(&steps(&ours, None), &steps(&sgd.build(), clip_norm));
            let adam = AdamConfig::new().with_weight_decay(penalty);
            let ours = Adam { clip_norm, decay, ..Adam::default() };
            assert_close(&steps(&ours, None), &steps(&adam.build(), clip_norm));
            let adamw = AdamWConfig::new().with_weight_decay(decay);
            let ours = Adam { clip_norm, decoupled_decay: decay, ..Adam::default() };
            assert_close(&steps(&ours, None), &steps(&adamw.build(), clip_norm));
        }
    }

    #[test]
    fn tensors_that_others_hold_stay_as_they_are() {
        let (w, before) = (tensor(0), tensor(0));
        let sgd = Sgd { clip_norm: None, decay: 0.1, momentum: 0.9 };
        let (stepped, _) = sgd.step(0.03, w.clone(), tensor(1), None);
        assert_eq!(w.into_data(), before.clone().into_data());
        assert_ne!(stepped.into_data(), before.into_data());
    }
}
