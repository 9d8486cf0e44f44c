//! `dr-train eval`.

use super::{load_model, print, with_plan};
use crate::artifact::{Artifact, ArtifactError};
use crate::cli::{CommandError, EvalArgs};
use crate::evaluation::{EvaluationError, answer, formats, measure, measure_text};
use crate::config::TaskKind;
use crate::data::SceneSet;
use crate::experiment::{RunError, SceneNetwork, calibration_scenes};
use crate::generation::ChoiceScore;
use crate::mixed::PlanFile;
use crate::models::{Detector, Llama, Segmenter};
use crate::report::{Measured, NumberFormat, PrecisionResult, Report, aligned};
use crate::text::{self, Tokenizer, load_choices};
use crate::{data, device};
use std::sync::Arc;
use std::time::Instant;

/// Measures a saved model on the test images, or on a text.
///
/// # Errors
/// If the model or the images cannot be read, or do not fit together.
pub fn eval(args: &EvalArgs) -> Result<(), CommandError> {
    let started = Instant::now();
    let mut artifact = load_model(&args.model)?;
    match artifact.description.task {
        TaskKind::Classify => {}
        TaskKind::Language => return eval_text(args, &artifact),
        TaskKind::Segment => return eval_scenes::<Segmenter>(args, &artifact),
        TaskKind::Detect => return eval_scenes::<Detector>(args, &artifact),
    }
    if args.text.is_some() || args.questions.is_some() {
        artifact.description.llama().map_err(|error| error.in_file(&args.model))?;
    }
    let (device, device_kind) = device::open(args.device)?;
    if let Some(plan) = &args.plan {
        artifact = with_plan(&artifact, &args.model, plan, args.dataset, args.data_dir.as_deref(), &device)?;
    }
    let description = &artifact.description;
    let formats = args.precision.map_or_else(|| formats(&artifact), |precision| vec![precision.into()]);
    let dataset = args.dataset.unwrap_or(description.dataset);
    let test = data::load_test(&description.images(dataset, args.data_dir.as_deref()))?;
    let measured = measure(&artifact, &formats, &test, args.engine, &device)
        .map_err(|error| CommandError::new(format!("`{}`: {error}", args.model.display())))?;
    let skipped = test.skipped().len();
    print_report(args, &artifact, started, &device_kind.to_string(), &formats, measured, [test.len(), skipped])
}

/// Prints what was measured in each of `formats`, on so many `items`, and so many that could not be read.
fn print_report(
    args: &EvalArgs, artifact: &Artifact, started: Instant, device: &str, formats: &[NumberFormat],
    measured: Vec<Measured>, items: [usize; 2],
) -> Result<(), CommandError> {
    let description = &artifact.description;
    let mut report = Report {
        task: description.task,
        dataset: args.dataset.unwrap_or(description.dataset),
        model: description.model,
        seed: description.seed,
        device: device.to_owned(),
        seconds: started.elapsed().as_secs_f64(),
        test_images: items[0],
        skipped_images: items[1],
        float: None,
        precisions: vec![],
        single: vec![],
        float_epoch_seconds: None,
        joint_epoch_seconds: None,
        history: vec![],
        config: None,
    };
    for (&format, measured) in formats.iter().zip(measured) {
        match format {
            NumberFormat::Float => report.float = Some(measured),
            precision => report.precisions.push(PrecisionResult { precision, measured }),
        }
    }
    print(&if args.json { report.to_json()? } else { report.table() })
}

/// Measures a network that says something about every part of an image.
fn eval_scenes<M: SceneNetwork>(args: &EvalArgs, artifact: &Artifact) -> Result<(), CommandError> {
    let started = Instant::now();
    let (device, device_kind) = device::open(args.device)?;
    let dir = args.data_dir.as_deref().ok_or(RunError::NoScenes)?;
    let description = &artifact.description;
    let [train, _, test] = SceneSet::load(dir, [description.input.height, description.input.width])?;
    let batches = || calibration_scenes(&train, &description.normalization, &device);
    let planned = args.plan.as_deref().map(|plan| {
        let plan = PlanFile::load(plan)?.plan;
        artifact.export_plan::<M>(&plan, &batches(), &device).map_err(|error| error.in_file(&args.model).into())
    });
    let planned = planned.transpose().map_err(|error: CommandError| error)?;
    let artifact = planned.as_ref().unwrap_or(artifact);
    let formats = args.precision.map_or_else(|| formats(artifact), |precision| vec![precision.into()]);
    let test = Arc::new(test);
    let measured = M::measure(artifact, &formats, &test, args.engine, &device)
        .map_err(|error| CommandError::new(format!("`{}`: {error}", args.model.display())))?;
    print_report(args, artifact, started, &device_kind.to_string(), &formats, measured, [test.len(), 0])
}

/// Measures a language model on a text, and on questions.
fn eval_text(args: &EvalArgs, artifact: &Artifact) -> Result<(), CommandError> {
    let started = Instant::now();
    let (device, device_kind) = device::open(args.device)?;
    let in_model = |error: ArtifactError| error.in_file(&args.model);
    let plan = args.plan.as_deref().map(PlanFile::load).transpose()?;
    let planned = plan.map(|file| artifact.export_plan::<Llama>(&file.plan, &[], &device)).transpose();
    let planned = planned.map_err(in_model)?;
    let artifact = planned.as_ref().unwrap_or(artifact);
    let config = artifact.description.llama().map_err(in_model)?;
    let tokenizer = Tokenizer::from_json(artifact.tokenizer().map_err(in_model)?)?;
    let text = match &args.text {
        Some(path) => text::read(Some(path))?,
        None => text::split(&text::read(args.data_dir.as_deref())?, None).test,
    };
    let tokens: Arc<[u32]> = tokenizer.encode(&text, false)?.into();
    let formats = args.precision.map_or_else(|| formats(artifact), |precision| vec![precision.into()]);
    let about = |error: EvaluationError| CommandError::new(format!("`{}`: {error}", args.model.display()));
    let measured = measure_text(artifact, &formats, &tokens, config.context, args.engine, &device).map_err(about)?;
    let count = tokens.len().saturating_sub(1);
    print_report(args, artifact, started, &device_kind.to_string(), &formats, measured, [count, 0])?;
    let Some(path) = &args.questions else { return Ok(()) };
    let questions = load_choices(path)?;
    let scores = answer(artifact, &formats, &questions, &tokenizer, args.engine, &device).map_err(about)?;
    if args.json {
        return print(&format!("{}\n", serde_json::to_string_pretty(&scores)?));
    }
    let header = ["precision", "right (%)", "by byte (%)"].map(str::to_owned).to_vec();
    let row = |(format, ChoiceScore { accuracy, normalized }): (&NumberFormat, &ChoiceScore)| {
        vec![format.to_string(), format!("{accuracy:.2}"), format!("{normalized:.2}")]
    };
    let rows: Vec<_> = std::iter::once(header).chain(formats.iter().zip(&scores).map(row)).collect();
    print(&format!("\n{} questions\n{}", questions.len(), aligned(&rows)))
}
