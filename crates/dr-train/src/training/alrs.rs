//! Adaptive learning rate scaling, ALRS (arXiv:2502.01199): the learning rate of the scales of each precision.

use crate::nn::Model;
use crate::nn::quantizers::{Kind, Learned, Operand};
use crate::values::values;
use burn::module::{ParamGroup, ParamId};
use burn::optim::GradientsParams;
use burn::optim::lr_scheduler::constant::ConstantLr;
use burn::optim::lr_scheduler::module_lr_scheduler::{ModuleLearningRate, ModuleLrScheduler};
use burn::tensor::Tensor;
use std::collections::BTreeMap;

/// `eta_b` for scales that are `distance = h - b` bits below the highest ones of weights or of activations: 1, 0.5, 0.1, 0.05, 0.01, 0.005, 0.001.
///
/// ```
/// assert_eq!(dr_train::training::eta(0), 1.0);
/// assert_eq!(dr_train::training::eta(3), 0.05);
/// ```
#[must_use]
pub fn eta(distance: u32) -> f64 {
    match distance % 2 {
        0 => 10f64.powi(-((distance / 2) as i32)),
        _ => 5.0 * 10f64.powi(-(distance.div_ceil(2) as i32)),
    }
}

/// `lambda_b = eta_b * (1 - mean over layers of min(max|clip_norm(grad, 1)|, 1))`. `largest` holds, for each layer, the
/// largest absolute value of its scales' gradient after that was clipped to the norm 1.
#[must_use]
pub fn lambda(distance: u32, largest: &[f32]) -> f64 {
    let mean = largest.iter().map(|&g| f64::from(g.min(1.0))).sum::<f64>() / largest.len().max(1) as f64;
    eta(distance) * (1.0 - mean)
}

/// The learned scales and zero points of a network.
pub(super) fn learned(model: &mut Model) -> Vec<Learned> {
    model.layers().into_iter().flat_map(|layer| layer.layer.quantizers().parameters()).collect()
}

/// The step's learning rates: `weights` for weights, `scales` for scales and zero points, the latter times `lambda_b`
/// with `alrs`.
pub(super) fn learning_rates(
    learned: &[Learned], grads: &GradientsParams, weights: f64, scales: f64, alrs: bool,
) -> ModuleLearningRate {
    let mut ids = BTreeMap::<Group, Vec<ParamId>>::new();
    for parameter in learned {
        ids.entry(group(parameter)).or_default().push(parameter.id);
    }
    let factors = if alrs { lambdas(learned, grads) } else { BTreeMap::new() };
    let mut rates = ModuleLrScheduler::new(ConstantLr::new(weights));
    for (group, ids) in ids {
        let factor = factors.get(&group).copied().unwrap_or(1.0);
        rates = rates.with_group(ParamGroup::from_ids(ids), ConstantLr::new(scales * factor));
    }
    rates.step()
}

/// What shares a learning rate: the scales of weights, or the scales and zero points of activations, that are so many
/// bits below the highest ones.
type Group = (Operand, u32);

fn group(parameter: &Learned) -> Group {
    (parameter.of, parameter.below)
}

/// `lambda_b` of all groups, with one read from the device. The mean is over the layers that have such a scale; a layer
/// without a gradient, in whose place nothing is clipped, counts as 0.
fn lambdas(learned: &[Learned], grads: &GradientsParams) -> BTreeMap<Group, f64> {
    let largest = |scale: &Learned| {
        let grad = grads.get::<1>(scale.id)?;
        let norm = grad.clone().powi_scalar(2).sum().sqrt().clamp_min(1.0);
        Some(grad.abs().max() / norm)
    };
    let scales = learned.iter().filter(|parameter| parameter.kind == Kind::Scale);
    let scales: Vec<(Group, Option<Tensor<1>>)> =
        scales.map(|scale| (group(scale), largest(scale))).collect();
    let found: Vec<Tensor<1>> = scales.iter().filter_map(|(_, largest)| largest.clone()).collect();
    let mut found = match found.is_empty() {
        true => vec![],
        false => values::<f32>(Tensor::cat(found, 0).into_data()),
    }
    .into_iter();
    let mut layers = BTreeMap::<Group, Vec<f32>>::new();
    for (group, largest) in scales {
        layers.entry(group).or_default().extend(largest.map_or(Some(0.0), |_| found.next()));
    }
    layers.into_iter().map(|(group, largest)| (group, lambda(group.1, &largest))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::quantizers::Quantizers;
    use crate::nn::{LayerSpec, QuantConfig};
    use burn::tensor::Device;
    use dr_precision::{Granularity, PrecisionSet};
    use dr_runtime::file::LayerFormat;

    #[test]
    fn eta_has_the_values_of_the_paper() {
        let etas: Vec<f64> = (0..=6).map(eta).collect();
        for (got, want) in etas.iter().zip([1.0, 0.5, 0.1, 0.05, 0.01, 0.005, 0.001]) {
            assert!((got - want).abs() < 1e-12, "{got} {want}");
        }
    }

    #[test]
    fn large_gradients_stop_the_scales() {
        assert_eq!(lambda(0, &[1.0, 5.0]), 0.0);
        assert!((lambda(0, &[0.2, 0.4]) - 0.7).abs() < 1e-6);
        assert_eq!(lambda(2, &[]), 0.1);
    }

    #[test]
    fn weights_and_activations_have_their_own_highest_width_and_their_own_mean() {
        let config = QuantConfig::new("w4a8,w2a8".parse().expect("a set"));
        let device = Device::flex();
        let (mut learned, mut grads) = (vec![], GradientsParams::new());
        for (pinned, grad) in [(true, 0.0), (false, 0.1), (false, 0.3)] {
            let only = if pinned { PrecisionSet::of(config.edge) } else { config.precisions.clone() };
            let (weights, activations) = (only.weights(), only.activations());
            let format = LayerFormat { weights, activations, pinned, granularity: Granularity::Channel };
            let spec = LayerSpec { format, after_relu: false, gradient: config.gradient };
            let parameters = Quantizers::placeholder(spec, &[3, 2], &device).parameters();
            let scales = parameters.iter().filter(|parameter| parameter.kind == Kind::Scale);
            for scale in scales {
                let value = if scale.of == Operand::Weights { grad } else { 2.0 * grad };
                grads.register(scale.id, Tensor::<1>::from_data([0.0, -value, 0.0], &device));
            }
            learned.extend(parameters);
        }
        let close = |lambdas: &BTreeMap<Group, f64>, want: &[(Group, f64)]| {
            assert_eq!(
                lambdas.keys().collect::<Vec<_>>(),
                want.iter().map(|(group, _)| group).collect::<Vec<_>>()
            );
            for ((group, got), (_, want)) in lambdas.iter().zip(want) {
                assert!((got - want).abs() < 1e-6, "{group:?} {got} {want}");
            }
        };
        // The stored width is 4: its scales learn at the full rate, those of 2 bits at a tenth of it.
        let (stored, second, inputs) =
            ((Operand::Weights, 0), (Operand::Weights, 2), (Operand::Activations, 0));
        let want = [(stored, 1.0 - 0.4 / 3.0), (second, 0.1 * (1.0 - 0.2)), (inputs, 1.0 - 0.8 / 3.0)];
        close(&lambdas(&learned, &grads), &want);
        // Without gradients there is nothing to clip.
        close(&lambdas(&learned, &GradientsParams::new()), &[(stored, 1.0), (second, 0.1), (inputs, 1.0)]);
    }
}
