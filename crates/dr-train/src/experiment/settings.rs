//! What the settings of a run say about its networks.

use super::error::RunError;
use super::registry::Registry;
use crate::config::{BatchNormKind, Distill, TrainConfig};
use crate::data::{DATA_FLAGS, DatasetKind};
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

/// Flags of a language model that is trained from scratch: what a file of weights says otherwise.
const WEIGHTS_SAY: [&str; 3] = ["vocabulary", "hidden", "layers"];

/// Flags of mixed training.
const MIXED_FLAGS: [&str; 4] = ["draws", "sampling", "widths", "mixed-norm"];

/// Whether each of the flags that are given says something about a training.
///
/// # Errors
/// The first flag that says nothing, with what would have a use for it; and names that are not in the registry.
pub(crate) fn check_flags(
    registry: &Registry, config: &TrainConfig, given: &[String],
) -> Result<(), RunError> {
    check_data_flags(registry, registry.datasets.get(&config.dataset)?, None, given)?;
    let task = registry.tasks.get(&config.task)?;
    for flag in given.iter().map(String::as_str) {
        let unused = |by: String, expected: String| Err(RunError::Unused { flag: flag.into(), by, expected });
        let is_of_some = registry.tasks.iter().any(|task| task.flags.is_some_and(|of| of.contains(&flag)));
        if is_of_some && !task.takes(flag) {
            let users = registry.tasks.iter().filter(|task| task.takes(flag));
            let users: Vec<_> =
                users.map(|task| format!("--task {} ({})", task.name, task.goes_with)).collect();
            return unused(format!("the task {}", task.name), format!("it with {}", users.join(" or ")));
        }
        if WEIGHTS_SAY.contains(&flag) && config.weights.is_some() {
            return unused("a network from --weights".into(), "it without them".into());
        }
        if MIXED_FLAGS.contains(&flag) && !config.mixed {
            return unused("a training without --mixed".into(), "it with --mixed".into());
        }
    }
    Ok(())
}

/// Whether each of the flags that are given says something about a dataset, if it is about data; those with a use for it are looked for among all datasets,
/// or those of a task.
pub(crate) fn check_data_flags(
    registry: &Registry, dataset: &dyn DatasetKind, task: Option<&str>, given: &[impl AsRef<str>],
) -> Result<(), RunError> {
    let unused = |flag: &&str| DATA_FLAGS.contains(flag) && !dataset.flags().contains(flag);
    let Some(flag) = given.iter().map(AsRef::as_ref).find(unused) else { return Ok(()) };
    let has_use = |other: &&dyn DatasetKind| {
        other.flags().contains(&flag) && task.is_none_or(|task| other.tasks().contains(&task))
    };
    let users: Vec<_> = registry.datasets.iter().filter(has_use).map(DatasetKind::name).collect();
    let expected = match users.split_last() {
        Some((last, [])) => format!("it with --dataset {last}"),
        Some((last, others)) => format!("it with --dataset {} or {last}", others.join(", ")),
        None => "none".into(),
    };
    Err(RunError::Unused { flag: flag.into(), by: format!("the dataset {}", dataset.name()), expected })
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
