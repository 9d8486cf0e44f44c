//! Adaptive learning rate scaling, ALRS (arXiv:2502.01199): the learning rate of the scales of each precision.

use crate::nn::Model;
use crate::nn::quantizers::Kind;
use burn::module::{ParamGroup, ParamId};
use burn::optim::GradientsParams;
use burn::optim::lr_scheduler::constant::ConstantLr;
use burn::optim::lr_scheduler::module_lr_scheduler::{ModuleLearningRate, ModuleLrScheduler};
use burn::tensor::Tensor;
use dr_precision::BitWidth;
use std::collections::BTreeMap;

/// `eta_b` for scales that are `distance = h - b` bits below the highest ones: 1, 0.5, 0.1, 0.05, 0.01, 0.005, 0.001.
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

/// The learned scales and zero points of a network by their width.
pub(super) fn by_width(model: &mut Model) -> BTreeMap<BitWidth, Vec<(Kind, ParamId)>> {
    let mut groups = BTreeMap::<_, Vec<_>>::new();
    for layer in model.layers() {
        for (bits, kind, id) in layer.layer.quantizers().parameters() {
            groups.entry(bits).or_default().push((kind, id));
        }
    }
    groups
}

/// The step's learning rates: `weights` for weights, `scales` for scales and zero points, the latter times `lambda_b`
/// with `alrs`.
pub(super) fn learning_rates(
    model: &mut Model, grads: &GradientsParams, weights: f64, scales: f64, alrs: bool,
) -> ModuleLearningRate {
    let groups = by_width(model);
    let factors = if alrs { lambdas(&groups, grads) } else { BTreeMap::new() };
    let mut rates = ModuleLrScheduler::new(ConstantLr::new(weights));
    for (bits, params) in &groups {
        let ids = params.iter().map(|(_, id)| *id).collect::<Vec<_>>();
        let factor = factors.get(bits).copied().unwrap_or(1.0);
        rates = rates.with_group(ParamGroup::from_ids(ids), ConstantLr::new(scales * factor));
    }
    rates.step()
}

/// `lambda_b` of all widths, with one read from the device.
fn lambdas(
    groups: &BTreeMap<BitWidth, Vec<(Kind, ParamId)>>, grads: &GradientsParams,
) -> BTreeMap<BitWidth, f64> {
    let (mut tensors, mut widths) = (vec![], vec![]);
    for (&bits, params) in groups {
        let scales = params.iter().filter(|(kind, _)| *kind == Kind::Scale);
        for grad in scales.filter_map(|(_, id)| grads.get::<1>(*id)) {
            let norm = grad.clone().powi_scalar(2).sum().sqrt().clamp_min(1.0);
            tensors.push(grad.abs().max() / norm);
            widths.push(bits);
        }
    }
    let Some(highest) = groups.keys().next_back() else { return BTreeMap::new() };
    if tensors.is_empty() {
        return BTreeMap::new();
    }
    let largest: Vec<f32> = Tensor::cat(tensors, 0).into_data().try_into_vec().unwrap_or_default();
    let of = |bits: BitWidth| -> Vec<f32> {
        widths.iter().zip(&largest).filter(|(width, _)| **width == bits).map(|(_, g)| *g).collect()
    };
    groups.keys().map(|&bits| (bits, lambda(highest.bits() - bits.bits(), &of(bits)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
