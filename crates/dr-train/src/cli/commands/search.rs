//! `dr-train search`.

use super::hessian::estimate;
use super::print;
use crate::artifact::{Artifact, ArtifactError, SavedModel};
use crate::cli::{CommandError, SearchArgs};
use crate::config::LossTerms;
use crate::device;
use crate::experiment::{Registry, Source};
use crate::files::write_atomically;
use crate::latency::LatencyOptions;
use crate::mixed::{
    BudgetKind, Candidates, Front, HessianOptions, LayerTimes, SearchPlanError, SearchReport, Traces,
    measure_plan,
};
use std::path::Path;

/// Items for each direction of a trace's estimate.
const BATCH: usize = 64;

/// Finds the plan that is predicted to cost the least loss within a budget.
///
/// # Errors
/// If the model was not trained for mixtures, the traces or pins do not fit it, no plan keeps to the budget, or something
/// cannot be read or written.
pub fn search(registry: &Registry, args: &SearchArgs) -> Result<(), CommandError> {
    let artifact = &Artifact::open(&args.model)?;
    let kind = args.budget.kind();
    let failed = |error: SearchPlanError| in_model(error, &args.model);
    if let Some(threads) = args.threads {
        // Before anything computes: the pool cannot be changed later.
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    }
    let description = &artifact.description;
    // Whatever can be found to be wrong without images and measurements comes first: these take their time.
    let mut candidates = Candidates::new(artifact, args.widths, &args.pin).map_err(failed)?;
    let known = args.traces.as_deref().map(|path| read_traces(path, &candidates)).transpose()?;
    let (device, _) = device::open(args.device)?;
    let options = LatencyOptions { batch: args.batch, samples: args.samples };
    if kind == BudgetKind::Latency {
        let times = LayerTimes::measure(artifact, &candidates, options, &device).map_err(failed)?;
        candidates.set_times(&times);
    }
    candidates.check_budget(&args.budget)?;

    let source = Source::new(registry, artifact, &args.model, &args.dataset, &args.data_dir, &device);
    let traces = match known {
        Some(traces) => traces,
        None => {
            let options = HessianOptions { seed: args.seed, ..HessianOptions::default() };
            estimate(&source, BATCH, &options)?.0
        }
    };
    let batches = match args.objective {
        LossTerms::Both => source.task()?.calibration(&source)?,
        LossTerms::Weights => vec![],
    };
    let predicted = candidates.predict_losses(artifact, &traces, args.objective, batches, &device);
    predicted.map_err(failed)?;
    let found = candidates.best(&args.budget)?;
    let front = args.pareto.as_ref().map(|_| Front::new(&candidates, kind, &description.precisions));
    let front = front.transpose()?;

    let name = args.model.display().to_string();
    let mut report =
        SearchReport::new(name, &args.budget, args.widths, args.objective, &candidates, found, front);
    if kind == BudgetKind::Latency {
        let measured = measure_plan(artifact, &report.found.plan, options, &device).map_err(failed)?;
        report.measured_nanoseconds = Some(measured);
    }
    let mut wrote = vec![];
    if let Some(path) = &args.out {
        report.plan_file(&description.model).save(path)?;
        wrote.push(path.display().to_string());
    }
    if let (Some(path), Some(front)) = (&args.pareto, &report.front) {
        let title =
            format!("{} on {}, the best plans for all budgets", description.model, description.dataset);
        let svg = front.svg(&title).map_err(CommandError::new)?;
        write_atomically(path, svg.as_bytes())
            .map_err(|error| CommandError::new(format!("`{}`: {error}", path.display())))?;
        wrote.push(path.display().to_string());
    }
    if args.json {
        return print(&(serde_json::to_string_pretty(&report)? + "\n"));
    }
    let wrote = if wrote.is_empty() { String::new() } else { format!("\nwrote {}\n", wrote.join(" and ")) };
    print(&(report.table() + &wrote))
}

/// The error with the model's name where it is about the model, and where to get another one from.
fn in_model(error: SearchPlanError, model: &Path) -> CommandError {
    match error {
        SearchPlanError::Artifact(error) => {
            let other_model = matches!(error, ArtifactError::Kind { .. } | ArtifactError::NotMixed);
            let error = CommandError::from(error.in_file(model));
            if other_model { error.with_hint("train one with `dr-train train --mixed`") } else { error }
        }
        SearchPlanError::Evaluation(error) => CommandError::new(format!("`{}`: {error}", model.display())),
        other => other.into(),
    }
}

/// The traces in a file, if they are those of the model.
fn read_traces(path: &Path, candidates: &Candidates) -> Result<Traces, CommandError> {
    let in_file = |what: String| CommandError::new(format!("`{}`: {what}", path.display()));
    let json = std::fs::read(path).map_err(|error| in_file(format!("cannot be read: {error}")))?;
    let traces: Traces = serde_json::from_slice(&json).map_err(|error| {
        in_file(format!("not traces: {error}"))
            .with_hint("expected a file that `dr-train hessian --out` or `dr-train train --mixed` wrote")
    })?;
    candidates.check_traces(&traces).map_err(|error| in_file(error.to_string()))?;
    Ok(traces)
}
