//! What the settings of a run say about its networks.

use super::error::RunError;
use super::registry::Registry;
use crate::config::{BatchNormKind, Distill, TrainConfig};
use crate::nn::QuantConfig;
use crate::report::NumberFormat;
use dr_precision::PrecisionSet;

/// Whether task, data and network go together.
pub(super) fn check_task(registry: &Registry, config: &TrainConfig) -> Result<(), RunError> {
    let TrainConfig { task, dataset, model, .. } = config;
    let task = registry.tasks.get(task)?;
    let (name, expected) = (task.name, task.goes_with);
    let does = [registry.datasets.get(dataset)?.tasks(), registry.models.get(model)?.tasks()];
    if !does.iter().all(|tasks| tasks.contains(&name)) {
        return Err(RunError::Task { task: name, dataset: dataset.clone(), model: model.clone(), expected });
    }
    if !task.distills && config.distill != Distill::Off {
        return Err(RunError::Setting { task: name, setting: "--distill" });
    }
    Ok(())
}

/// How a network is quantized that runs at `precisions`, of a run's own or one of them alone, perhaps mixed. The first and
/// the last layer compute at the run's highest widths, in separate networks, too.
pub(super) fn quantization(config: &TrainConfig, precisions: &PrecisionSet, mixed: bool) -> QuantConfig {
    QuantConfig {
        edge: QuantConfig::new(config.precisions.clone()).edge,
        gradient: config.scale_gradient,
        share_norm: config.batch_norm == BatchNormKind::Shared,
        mixed: mixed.then_some(config.mixed_norm),
        group_size: config.group_size,
        switch_edge: config.switch_edge,
        ..QuantConfig::new(precisions.clone())
    }
}

/// The passes of a step of joint training: all precisions; of a supernet the highest, the lowest and mixtures.
pub(super) fn passes(config: &TrainConfig, precisions: &PrecisionSet, mixed: bool) -> Vec<NumberFormat> {
    if !mixed {
        return precisions.iter().map(NumberFormat::from).collect();
    }
    let ends = [precisions.highest().into(), precisions.lowest().into()];
    ends.into_iter().chain(std::iter::repeat_n(NumberFormat::Mixed, config.draws)).collect()
}
