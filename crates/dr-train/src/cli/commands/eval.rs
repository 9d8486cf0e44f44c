//! `dr-train eval`.

use super::inputs::picture;
use super::{ModelArg, arrays_in, load_with, print, with_plan};
use crate::agreement::{compare_arrays, read_array};
use crate::artifact::{Artifact, ArtifactError, Described};
use crate::cli::values::{at_least_one, one_of};
use crate::cli::{CommandError, PictureArgs};
use crate::config::task::{CLASSIFY, LANGUAGE};
use crate::config::{DeviceKind, Engine};
use crate::data::ImageFiles;
use crate::device;
use crate::evaluation::{answer, formats};
use crate::experiment::{Registry, Source};
use crate::generation::ChoiceScore;
use crate::report::{Agreement, NumberFormat, PrecisionResult, Report, aligned, number};
use crate::text::load_choices;
use crate::weights::is_onnx;
use clap::Args;
use dr_precision::Precision;
use dr_runtime::arrays::Array;
use dr_runtime::graph::Op;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// `dr-train eval`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dr-train eval --model model.safetensors                    at every precision of the model
  dr-train eval runs/digits-resnet8                          the model of a run
  dr-train eval --model model.safetensors --precision w4a4
  dr-train eval --model model.safetensors --engine integer   in integer arithmetic
  dr-train eval --model model.safetensors --plan plan.toml   a precision for each layer
  dr-train eval --model lm.safetensors --text test.txt --compare float.safetensors
  dr-train eval --model model.safetensors --engine integer --inputs photos --compare float.safetensors
  dr-train eval --model model.safetensors --all --json")]
pub struct EvalArgs {
    /// The model
    #[command(flatten)]
    pub model: ModelArg,
    /// Only at this precision
    #[arg(long, conflicts_with = "all")]
    pub precision: Option<Precision>,
    /// With the precisions that a plan has for the layers, as `dr-train search` writes it; BatchNorm statistics, if
    /// there are any, are taken from training images
    #[arg(long, value_name = "FILE.toml", conflicts_with_all = ["precision", "all"])]
    pub plan: Option<PathBuf>,
    /// At every precision of the model; this is also the default
    #[arg(long)]
    pub all: bool,
    /// Other images than those of the dataset the model was trained on
    #[arg(long)]
    pub dataset: Option<String>,
    /// Where the dataset's files are, if not in the usual places; the file of a text
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// The text that a language model is measured on [default: the end of the text it was trained on]
    #[arg(long, value_name = "FILE", conflicts_with_all = ["dataset", "data_dir"])]
    pub text: Option<PathBuf>,
    /// Measure a text in pieces of so many tokens, each without those before it [default: 512, or the model's
    /// context if that is less]
    #[arg(long, value_name = "N", value_parser = at_least_one(1 << 20), allow_negative_numbers = true)]
    pub window: Option<usize>,
    /// Measure the first so many tokens of a text [default: all of them]
    #[arg(long, value_name = "N", value_parser = at_least_one(1 << 30), allow_negative_numbers = true)]
    pub tokens: Option<usize>,
    /// What a model for images or arrays is compared on: all JPEG and PNG files below the folder, whatever they show, or all
    /// .npy files, if there are some, in integers; the right class is the one that the other model gives
    #[arg(long, value_name = "DIR", requires = "compare", conflicts_with_all = ["dataset", "data_dir", "text"])]
    pub inputs: Option<PathBuf>,
    /// Compare the predictions of a language model, or of one for classes of images, with those of this one: of a model in floats,
    /// or of one with the same precisions in fake quantization
    #[arg(long, value_name = "FILE")]
    pub compare: Option<PathBuf>,
    /// Also ask a language model these questions: JSON lines with `context`, `choices` and the number of the right `answer`
    #[arg(long, value_name = "FILE.jsonl")]
    pub questions: Option<PathBuf>,
    /// Compute in floats as in training (fake quantization), in integers, or with packed weights and float
    /// activations (language models)
    #[arg(long, value_parser = one_of(Engine::ALL), default_value_t = Engine::Fake)]
    pub engine: Engine,
    /// Where to compute
    #[arg(long, value_parser = one_of(DeviceKind::ALL), default_value_t = DeviceKind::Auto)]
    pub device: DeviceKind,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// How pictures become images, of --model and of --compare; those of --model where nothing is said
    #[command(flatten)]
    pub pictures: PictureArgs,
}

/// Measures a saved model on the test images, or on a text.
///
/// # Errors
/// If the model or the data cannot be read, or do not fit together.
pub fn eval(registry: &Registry, args: &EvalArgs) -> Result<(), CommandError> {
    let started = Instant::now();
    let model = args.model.path();
    let (mut artifact, reference) = models(args, &model)?;
    let in_model = |error: ArtifactError| error.in_file(&model);
    let of_text =
        [args.text.is_some(), args.questions.is_some(), args.window.is_some(), args.tokens.is_some()];
    if of_text.contains(&true) {
        artifact.description.check_task(LANGUAGE).map_err(in_model)?;
    }
    let (device, device_kind) = device::open(args.device)?;
    if let Some(plan) = &args.plan {
        let (of, from) = (&args.dataset, &args.data_dir);
        artifact = with_plan(&Source::new(registry, &artifact, &model, of, from, &device), plan)?;
    }
    let task = &artifact.description;
    if let (Some(folder), Some(reference)) = (&args.inputs, &reference) {
        if let Some(files) = arrays_in(folder)? {
            return arrays(&artifact, reference, &files, args, |path| Ok(read_array(path)?));
        }
        if task.check_task(CLASSIFY).is_err() && matches!(artifact.graph()?.input(), Some(Op::Images { .. }))
        {
            let files = ImageFiles::below(folder, task.input.into(), task.resize)?.files;
            let files: Vec<PathBuf> = files.into_iter().map(|(path, _)| path).collect();
            return arrays(&artifact, reference, &files, args, |path| Ok(picture(path, task)?.0));
        }
    }
    if args.inputs.is_some() || (args.compare.is_some() && task.check_task(LANGUAGE).is_err()) {
        task.check_task(CLASSIFY).map_err(in_model)?;
    }
    let formats = args.precision.map_or_else(|| formats(&artifact), |precision| vec![precision.into()]);
    let mut source = Source::new(registry, &artifact, &model, &args.dataset, &args.data_dir, &device);
    source.text = args.text.as_deref();
    source.window = args.window;
    source.tokens = args.tokens;
    source.images = args.inputs.as_deref();
    source.reference = reference.as_ref();
    let task = source.task()?;
    let (measured, [items, skipped]) = (task.measure)(&source, &formats, args.engine)?;
    let description = &artifact.description;
    let mut report = Report {
        task: description.task.clone(),
        dataset: args.dataset.as_ref().unwrap_or(&description.dataset).clone(),
        model: description.model.clone(),
        seed: description.seed,
        device: device_kind.to_string(),
        seconds: started.elapsed().as_secs_f64(),
        test_images: items,
        skipped_images: skipped,
        ..Report::default()
    };
    for (&format, measured) in formats.iter().zip(measured) {
        match format {
            NumberFormat::Float => report.float = Some(measured),
            precision => report.precisions.push(PrecisionResult { precision, measured }),
        }
    }
    let asked = || args.questions.as_deref().map(|path| questions(&source, path, &formats, args)).transpose();
    if args.json {
        let answer = Answer { report: &report, questions: asked()? };
        return print(&(serde_json::to_string_pretty(&answer)? + "\n"));
    }
    print(&(task.table)(&report))?;
    asked()?.map_or(Ok(()), |questions| print(&questions.table()))
}

/// What is printed as JSON.
#[derive(Serialize)]
struct Answer<'a> {
    #[serde(flatten)]
    report: &'a Report,
    #[serde(skip_serializing_if = "Option::is_none")]
    questions: Option<Questions>,
}

/// How many questions are answered right.
#[derive(Serialize)]
struct Questions {
    count: usize,
    precisions: Vec<Right>,
}

#[derive(Serialize)]
struct Right {
    precision: NumberFormat,
    #[serde(flatten)]
    score: ChoiceScore,
}

impl Questions {
    fn table(&self) -> String {
        let header = ["precision", "right (%)", "by byte (%)"].map(str::to_owned).to_vec();
        let row = |Right { precision, score: ChoiceScore { accuracy, normalized } }: &Right| {
            vec![precision.to_string(), number(*accuracy, 2), number(*normalized, 2)]
        };
        let rows: Vec<_> = std::iter::once(header).chain(self.precisions.iter().map(row)).collect();
        format!("\n{} questions\n{}", self.count, aligned(&rows))
    }
}

/// The network, and that to compare with.
fn models(args: &EvalArgs, model: &Path) -> Result<(Artifact, Option<Artifact>), CommandError> {
    let EvalArgs { compare, pictures, .. } = args;
    let Some(reference) = compare else { return Ok((load_with(model, pictures)?, None)) };
    // Of two files, what is said is of those that do not say it.
    let of = |path: &Path| if is_onnx(path) { pictures.clone() } else { PictureArgs::default() };
    let artifact = match is_onnx(reference) {
        true => load_with(model, &of(model))?,
        false => load_with(model, pictures)?,
    };
    let of_reference = match is_onnx(reference) {
        true => of(reference).or(PictureArgs::of(&artifact.description)),
        false => of(reference),
    };
    let reference = load_with(reference, &of_reference)?;
    Ok((artifact, Some(reference)))
}

/// How near the outputs of a network are to those of another one, in integers.
fn arrays(
    artifact: &Artifact, reference: &Artifact, files: &[PathBuf], args: &EvalArgs,
    read: impl Fn(&Path) -> Result<Array, CommandError>,
) -> Result<(), CommandError> {
    let formats = args.precision.map_or_else(|| formats(artifact), |precision| vec![precision.into()]);
    let found = compare_arrays(artifact, &formats, reference, files, read)?;
    if args.json {
        let object = |(format, agreement): (&NumberFormat, &Agreement)| {
            Ok((format.to_string(), serde_json::to_value(agreement)?))
        };
        let object: serde_json::Map<_, _> =
            formats.iter().zip(&found).map(object).collect::<Result<_, serde_json::Error>>()?;
        return print(&format!("{}\n", serde_json::to_string_pretty(&object)?));
    }
    let header = ["precision", "divergence", "same top-1 (%)", "where sure (%)", "relative error (%)"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for (format, of) in formats.iter().zip(&found) {
        rows.push(vec![
            format.to_string(),
            number(of.divergence, 5),
            number(of.same_top1, 2),
            number(of.same_top1_sure, 2),
            number(100.0 * of.relative_error, 2),
        ]);
    }
    print(&aligned(&rows))
}

/// How many questions the model answers right.
fn questions(
    source: &Source, path: &Path, formats: &[NumberFormat], args: &EvalArgs,
) -> Result<Questions, CommandError> {
    let (questions, tokenizer) = (load_choices(path)?, source.tokenizer()?);
    let scores = answer(source.artifact, formats, &questions, &tokenizer, args.engine, source.device);
    let scores = scores.map_err(|error| source.wrong(error))?;
    let right = formats.iter().zip(scores).map(|(&precision, score)| Right { precision, score });
    Ok(Questions { count: questions.len(), precisions: right.collect() })
}
