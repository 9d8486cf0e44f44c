//! `dr-train search`.

use super::hessian::estimate;
use super::inputs::inputs;
use super::{load_model, print, write};
use crate::artifact::{ArtifactError, ArtifactKind};
use crate::cli::values::{at_least_one, one_of, or_default, pin, seed};
use crate::cli::{CommandError, resolve};
use crate::config::{DeviceKind, LossTerms, Widths};
use crate::device;
use crate::experiment::{Registry, Source};
use crate::latency::LatencyOptions;
use crate::mixed::{
    Budget, BudgetKind, Candidates, Front, HessianOptions, LayerTimes, SearchPlanError, SearchReport, Traces,
    measure_plan,
};
use crate::nn::Value;
use crate::progress::Progress;
use clap::Args;
use dr_precision::Precision;
use std::path::{Path, PathBuf};

/// `dr-train search`.
#[derive(Debug, Args)]
#[command(after_help = "\
The model is one that was trained for mixtures (dr-train train --mixed), a language model that
dr-train quantize --calibration made, or a network for images that dr-train quantize made. Of all
plans within the budget, the one is found that is predicted to cost the least loss: an exact
optimum. Budgets:

  avg-bits=4      bits of a weight, on average over all layers but the first and the last, which
                  stay at the highest width
  size=250KB      bytes of the exported model, all of it (B, KB, KiB, MB, MiB or GB)
  bitops=1.2G     multiply-accumulates of an image, each times the bits of weight and activation
                  (K, M, G, T)
  latency=1.5ms   time of a pass in integers on this machine, from layers that are measured first
                  (ns, us, ms, s)

Predicted is, for each layer, its average Hessian trace times the squared error of its weights; with
--objective both also the error of its inputs, as the error of the weights that would weigh as much.
A language model of dr-train quantize --calibration has its prediction in the file, in nats a token:
neither traces nor data are needed. Of a network for images that dr-train quantize made it is
measured: the divergence, in nats, from the network at its highest precision while that layer alone
is at the other one.

Examples:
  dr-train search --model model.safetensors --budget avg-bits=4 --out plan.toml
  dr-train search --model model.safetensors --budget size=60KB --widths separate
  dr-train search --model model.safetensors --budget latency=1.5ms --batch 1 --threads 1
  dr-train search --model model.safetensors --budget avg-bits=4 --pin stages.0.0.conv1=w8a8
  dr-train search --model model.safetensors --budget avg-bits=4 --pareto front.svg
  dr-train search --model calibrated.safetensors --budget size=2MB --inputs photos --out plan.toml")]
#[command(mut_arg("limit", |argument| or_default(argument, LIMIT)))]
#[command(mut_arg("batch", |argument| or_default(argument, PASS)))]
#[command(mut_arg("samples", |argument| or_default(argument, SAMPLES)))]
#[command(mut_arg("seed", |argument| or_default(argument, HessianOptions::default().seed)))]
pub struct SearchArgs {
    /// The model; one that was trained for mixtures, or that `dr-train quantize` made with --calibration or of a network for images
    #[arg(long, value_name = "FILE")]
    pub model: PathBuf,
    /// What the plan may take: avg-bits=N, size=N, bitops=N or latency=N, with units as below
    #[arg(long, value_name = "SPEC")]
    pub budget: Budget,
    /// Average Hessian traces, as `dr-train hessian --out` writes them [default: they are estimated first]
    #[arg(long, value_name = "FILE.json")]
    pub traces: Option<PathBuf>,
    /// What layers of a model that was trained for mixtures choose from: the precisions of the model, or every width of weights with
    /// every width of activations [default: together]
    #[arg(long, value_name = "HOW", value_parser = one_of(Widths::ALL))]
    pub widths: Option<Widths>,
    /// Whose quantization costs loss in such a model: that of the weights, or of both weights and activations [default: both]
    #[arg(long, value_name = "OF", value_parser = one_of(LossTerms::ALL))]
    pub objective: Option<LossTerms>,
    /// Keep a layer at a precision; may be given for several layers
    #[arg(long, value_name = "LAYER=PRECISION", value_parser = pin)]
    pub pin: Vec<(String, Precision)>,
    /// Other images than the training images of the dataset the model was trained on
    #[arg(long)]
    pub dataset: Option<String>,
    /// Where the dataset's files are, if not in the usual places
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Of a calibrated model: images, or .npy files, like those that it is for. What a layer costs at a precision is measured:
    /// the divergence from the model at its highest precision [default: training images of its dataset]
    #[arg(long, value_name = "DIR", conflicts_with_all = ["dataset", "data_dir"])]
    pub inputs: Option<PathBuf>,
    /// So many of these inputs, at most
    #[arg(long, value_name = "N", value_parser = at_least_one(1 << 16), allow_negative_numbers = true)]
    pub limit: Option<usize>,
    /// Images in a pass whose latency is measured
    #[arg(long, value_name = "N", value_parser = at_least_one(1 << 16), allow_negative_numbers = true)]
    pub batch: Option<usize>,
    /// Passes of which medians are taken, for each precision
    #[arg(long, value_name = "N", value_parser = at_least_one(1 << 20), allow_negative_numbers = true)]
    pub samples: Option<usize>,
    /// Threads of the processor [default: one for each core]
    #[arg(long, value_name = "N", value_parser = at_least_one(1 << 10), allow_negative_numbers = true)]
    pub threads: Option<usize>,
    /// Decides the directions along which traces are estimated
    #[arg(long, value_name = "N", value_parser = seed, allow_negative_numbers = true)]
    pub seed: Option<u64>,
    /// Where to compute
    #[arg(long, value_parser = one_of(DeviceKind::ALL), default_value_t = DeviceKind::Auto)]
    pub device: DeviceKind,
    /// Write the plan
    #[arg(long, value_name = "PLAN.toml")]
    pub out: Option<PathBuf>,
    /// Also find the best plans for 24 budgets of this kind, and draw them
    #[arg(long, value_name = "FILE.svg")]
    pub pareto: Option<PathBuf>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Items for each direction of a trace's estimate.
const BATCH: usize = 64;

/// Inputs, images in a pass and passes where nothing else is asked for.
const LIMIT: usize = 32;
const PASS: usize = 1;
const SAMPLES: usize = 100;

/// Finds the plan that is predicted to cost the least loss within a budget.
///
/// # Errors
/// If the model was not trained for mixtures and has no sensitivities, the traces or pins do not fit it, no plan keeps to the budget, or something
/// cannot be read or written.
pub fn search(registry: &Registry, args: &SearchArgs) -> Result<(), CommandError> {
    let files =
        [("out", args.out.as_deref(), &["toml"][..]), ("pareto", args.pareto.as_deref(), &["svg"][..])];
    resolve::check_output_files(files, &args.model)?;
    let artifact = &load_model(&args.model)?;
    let kind = args.budget.kind();
    let failed = |error: SearchPlanError| in_model(error, &args.model);
    if let Some(threads) = args.threads {
        // Before anything computes: the pool cannot be changed later.
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    }
    let description = &artifact.description;
    let widths = args.widths.unwrap_or(Widths::Together);
    // Whatever can be found to be wrong without images and measurements comes first: these take their time.
    let mut candidates = Candidates::new(artifact, widths, &args.pin).map_err(failed)?;
    if let (ArtifactKind::Nested, Some(path)) = (description.kind, &args.traces) {
        let found = format!("--traces {}: a model with nested weights", path.display());
        return Err(CommandError::new(format!("{found}: expected none, its file says what its widths cost")));
    }
    let calibrated = description.kind == ArtifactKind::Calibrated;
    if let (false, Some(folder)) = (calibrated, &args.inputs) {
        let found = format!("--inputs {}: a {} model", folder.display(), description.kind);
        return Err(CommandError::new(format!("{found}: expected it with calibrated models only")));
    }
    if let (true, Some(path)) = (calibrated, &args.traces) {
        let found = format!("--traces {}: a calibrated model", path.display());
        return Err(CommandError::new(format!(
            "{found}: expected --inputs, with which its widths are measured"
        )));
    }
    check_flags(args, description.kind)?;
    let known = args.traces.as_deref().map(|path| read_traces(path, &candidates)).transpose()?;
    let (device, _) = device::open(args.device)?;
    let options =
        LatencyOptions { batch: args.batch.unwrap_or(PASS), samples: args.samples.unwrap_or(SAMPLES) };
    if kind == BudgetKind::Latency {
        let times = LayerTimes::measure(artifact, &candidates, options, &device).map_err(failed)?;
        candidates.set_times(&times);
    }
    candidates.check_budget(&args.budget)?;

    let nested = description.kind == ArtifactKind::Nested;
    // What nested weights cost is in the file; what inputs of 8 bits cost is the same in all plans.
    let objective = if nested { LossTerms::Weights } else { args.objective.unwrap_or(LossTerms::Both) };
    if calibrated {
        let mut source = Source::new(registry, artifact, &args.model, &args.dataset, &args.data_dir, &device);
        let limit = args.limit.unwrap_or(LIMIT);
        let inputs = inputs(&mut source, args.inputs.as_deref(), limit, Some(limit))?;
        let inputs = inputs.iter().map(Value::to_array).collect::<Result<Vec<_>, _>>()?;
        let line = Progress::new("layers alone:");
        candidates.measure_losses(artifact, &inputs, |done, of| line.show(done, of, "")).map_err(failed)?;
    } else if !nested {
        let source = Source::new(registry, artifact, &args.model, &args.dataset, &args.data_dir, &device);
        let traces = match known {
            Some(traces) => traces,
            None => {
                let usual = HessianOptions::default();
                let options = HessianOptions { seed: args.seed.unwrap_or(usual.seed), ..usual };
                estimate(&source, BATCH, &options)?.0
            }
        };
        let batches = match objective {
            LossTerms::Both => (source.task()?.calibration)(&source)?,
            LossTerms::Weights => vec![],
        };
        let _line = Progress::unknown("predicting losses");
        let predicted = candidates.predict_losses(artifact, &traces, objective, batches, &device);
        predicted.map_err(failed)?;
    }
    let line = Progress::unknown("searching");
    let found = candidates.best(&args.budget)?;
    let front = args.pareto.as_ref().map(|_| Front::new(&candidates, kind, &description.precisions));
    let front = front.transpose()?;
    drop(line);

    let name = args.model.display().to_string();
    let mut report = SearchReport::new(name, &args.budget, widths, objective, &candidates, found, front);
    if kind == BudgetKind::Latency {
        let _line = Progress::unknown("timing the plan");
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
        let svg = front.svg(&title).map_err(CommandError::failure)?;
        write(path, svg.as_bytes(), &mut wrote)?;
    }
    if args.json {
        return print(&(serde_json::to_string_pretty(&report)? + "\n"));
    }
    let wrote = if wrote.is_empty() { String::new() } else { format!("\nwrote {}\n", wrote.join(" and ")) };
    print(&(report.table() + &wrote))
}

/// Whether each flag says something about a search in a model of this kind.
fn check_flags(args: &SearchArgs, kind: ArtifactKind) -> Result<(), CommandError> {
    let supernet = !matches!(kind, ArtifactKind::Nested | ArtifactKind::Calibrated);
    let (model, traces) = (format!("a {kind} model"), "a search with --traces".to_owned());
    let estimates = supernet && args.traces.is_none();
    let objective = args.objective.unwrap_or(LossTerms::Both);
    let data = kind == ArtifactKind::Calibrated || estimates || (supernet && objective == LossTerms::Both);
    let dataless = match supernet {
        true => format!("a search with --traces and --objective {objective}"),
        false => model.clone(),
    };
    let latency = args.budget.kind() == BudgetKind::Latency;
    let budget = format!("a search with --budget {}", args.budget);
    let trained = "a model that was trained for mixtures";
    let estimate = "a search without --traces in a model that was trained for mixtures";
    let flags = [
        ("widths", args.widths.is_some(), supernet, &model, trained),
        ("objective", args.objective.is_some(), supernet, &model, trained),
        ("dataset", args.dataset.is_some(), data, &dataless, "a search that looks at data"),
        ("data-dir", args.data_dir.is_some(), data, &dataless, "a search that looks at data"),
        ("limit", args.limit.is_some(), kind == ArtifactKind::Calibrated, &model, "a calibrated model"),
        ("seed", args.seed.is_some(), estimates, if supernet { &traces } else { &model }, estimate),
        ("batch", args.batch.is_some(), latency, &budget, "a budget of latency"),
        ("samples", args.samples.is_some(), latency, &budget, "a budget of latency"),
    ];
    match flags.into_iter().find(|(_, given, used, ..)| *given && !used) {
        Some((flag, .., by, expected)) => {
            Err(CommandError::new(format!("--{flag}: {by} has no use for it: expected {expected}")))
        }
        None => Ok(()),
    }
}

/// The error with the model's name where it is about the model, and where to get another one from.
fn in_model(error: SearchPlanError, model: &Path) -> CommandError {
    match error {
        SearchPlanError::Artifact(error) => {
            let other_model = matches!(error, ArtifactError::Kind { .. } | ArtifactError::NotMixed);
            let error = CommandError::from(error.in_file(model));
            match other_model {
                true => error.with_hint(
                    "`dr-train train --mixed` trains one, `dr-train quantize` makes one of a float model",
                ),
                false => error,
            }
        }
        error @ SearchPlanError::NoSensitivity(_) => {
            let hint = "quantize it again with `dr-train quantize --calibration`";
            CommandError::about(model, error).with_hint(hint)
        }
        error @ (SearchPlanError::Evaluation(_) | SearchPlanError::Arrays | SearchPlanError::Outputs(_)) => {
            CommandError::about(model, error)
        }
        other => other.into(),
    }
}

/// The traces in a file, if they are those of the model.
fn read_traces(path: &Path, candidates: &Candidates) -> Result<Traces, CommandError> {
    let in_file = |what: String| CommandError::about(path, what);
    let json = std::fs::read(path).map_err(|error| in_file(format!("cannot be read: {error}")))?;
    let traces: Traces = serde_json::from_slice(&json).map_err(|error| {
        in_file(format!("not traces: {error}"))
            .with_hint("expected a file that `dr-train hessian --out` or `dr-train train --mixed` wrote")
    })?;
    candidates.check_traces(&traces).map_err(|error| in_file(error.to_string()))?;
    Ok(traces)
}
