//! Optimizer and learning rate schedule of a phase.

use crate::config::OptimizerKind;
use burn::grad_clipping::GradientClippingConfig;
use burn::module::ParamGroup;
use burn::optim::decay::WeightDecayConfig;
use burn::optim::lr_scheduler::cosine::CosineAnnealingLrSchedulerConfig;
use burn::optim::lr_scheduler::linear::LinearLrSchedulerConfig;
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::optim::lr_scheduler::sequential::SequentialLrSchedulerConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{AdamConfig, AdamWConfig, ModuleOptimizer, SgdConfig};

/// The optimizer. Scales, zero points, BatchNorm and biases are not decayed; gradients are clipped to the L2 norm
/// `clip_norm`, each parameter's on its own, unless that is 0.
pub(super) fn optimizer(kind: OptimizerKind, weight_decay: f64, clip_norm: f64) -> ModuleOptimizer {
    let undecayed = ParamGroup::from_any_predicates(vec!["quantizers", "norm", "bias"]);
    let clipping = (clip_norm > 0.0).then(|| GradientClippingConfig::Norm(clip_norm as f32).init());
    let decay = WeightDecayConfig::new(weight_decay as f32);
    let optimizer = match kind {
        OptimizerKind::Sgd => {
            let momentum = MomentumConfig::new().with_momentum(0.9).with_dampening(0.0).with_nesterov(true);
            let sgd = SgdConfig::new().with_momentum(Some(momentum));
            let decayed = sgd.clone().with_weight_decay(Some(decay));
            ModuleOptimizer::from(decayed.build()).with_group(undecayed, sgd.build(), clipping.clone())
        }
        OptimizerKind::Adam => {
            let adam = AdamConfig::new();
            let decayed = adam.clone().with_weight_decay(Some(decay));
            ModuleOptimizer::from(decayed.build()).with_group(undecayed, adam.build(), clipping.clone())
        }
        OptimizerKind::AdamW => {
            let plain = AdamWConfig::new().with_weight_decay(0.0);
            let decayed = plain.clone().with_weight_decay(weight_decay as f32);
            ModuleOptimizer::from(decayed.build()).with_group(undecayed, plain.build(), clipping.clone())
        }
    };
    match clipping {
        Some(clipping) => optimizer.with_grad_clipping(clipping),
        None => optimizer,
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
