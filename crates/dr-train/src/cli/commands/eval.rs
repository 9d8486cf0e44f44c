//! `dr-train eval`.

use super::taught::Source;
use super::{load_model, print, with_plan};
use crate::artifact::{Artifact, Described};
use crate::cli::{CommandError, EvalArgs};
use crate::config::TaskKind;
use crate::data::{self, SceneSet};
use crate::device;
use crate::evaluation::{
    EvaluationError, answer, formats, measure, measure_boxes, measure_pixels, measure_text,
};
use crate::experiment::{Registry, RunError};
use crate::generation::ChoiceScore;
use crate::report::{Measured, NumberFormat, PrecisionResult, Report, aligned};
use crate::text::{self, Tokenizer, load_choices};
use burn::tensor::Device;
use std::sync::Arc;
use std::time::Instant;

/// Measures a saved model on the test images, or on a text.
///
/// # Errors
/// If the model or the data cannot be read, or do not fit together.
pub fn eval(registry: &Registry, args: &EvalArgs) -> Result<(), CommandError> {
    let started = Instant::now();
    let mut artifact = load_model(&args.model)?;
    let task = artifact.description.task()?;
    if args.text.is_some() || args.questions.is_some() {
        artifact.description.check_task(TaskKind::Language).map_err(|error| error.in_file(&args.model))?;
    }
    let (device, device_kind) = device::open(args.device)?;
    if let Some(plan) = &args.plan {
        let (of, from) = (&args.dataset, &args.data_dir);
        artifact = with_plan(&Source::new(registry, &artifact, &args.model, of, from, &device), plan)?;
    }
    let formats = args.precision.map_or_else(|| formats(&artifact), |precision| vec![precision.into()]);
    let of = Asked { registry, args, artifact: &artifact, formats: &formats, device: &device };
    let (measured, [items, skipped]) = match task {
        TaskKind::Classify => of.images()?,
        TaskKind::Segment | TaskKind::Detect => of.scenes()?,
        TaskKind::Language => of.text()?,
    };
    let description = &artifact.description;
    let mut report = Report {
        task,
        dataset: args.dataset.as_ref().unwrap_or(&description.dataset).clone(),
        model: description.model.clone(),
        seed: description.seed,
        device: device_kind.to_string(),
        seconds: started.elapsed().as_secs_f64(),
        test_images: items,
        skipped_images: skipped,
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
    print(&if args.json { report.to_json()? } else { report.table() })?;
    if args.questions.is_some() { of.questions() } else { Ok(()) }
}

/// What is to be measured.
struct Asked<'a> {
    registry: &'a Registry,
    args: &'a EvalArgs,
    artifact: &'a Artifact,
    formats: &'a [NumberFormat],
    device: &'a Device,
}

/// In each format; and of how many items, and how many that could not be read.
type Answer = (Vec<Measured>, [usize; 2]);

impl Asked<'_> {
    fn about(&self, error: &EvaluationError) -> CommandError {
        CommandError::new(format!("`{}`: {error}", self.args.model.display()))
    }

    fn images(&self) -> Result<Answer, CommandError> {
        let Self { registry, args, artifact, formats, device } = *self;
        let source = Source::new(registry, artifact, &args.model, &args.dataset, &args.data_dir, device);
        let test = data::load_test(&source.data()?)?;
        let measured = measure(artifact, formats, &test, args.engine, device);
        Ok((measured.map_err(|error| self.about(&error))?, [test.len(), test.skipped().len()]))
    }

    fn scenes(&self) -> Result<Answer, CommandError> {
        let Self { args, artifact, formats, device, .. } = *self;
        let dir = args.data_dir.as_deref().ok_or(RunError::NoScenes)?;
        let input = artifact.description.input;
        let [.., test] = SceneSet::load(dir, [input.height, input.width])?;
        let test = Arc::new(test);
        let measured = match artifact.description.task()? {
            TaskKind::Detect => measure_boxes(artifact, formats, &test, args.engine, device),
            _ => measure_pixels(artifact, formats, &test, args.engine, device),
        };
        Ok((measured.map_err(|error| self.about(&error))?, [test.len(), 0]))
    }

    fn tokenizer(&self) -> Result<Tokenizer, CommandError> {
        let json = self.artifact.tokenizer().map_err(|error| error.in_file(&self.args.model))?;
        Ok(Tokenizer::from_json(json)?)
    }

    fn text(&self) -> Result<Answer, CommandError> {
        let Self { args, artifact, formats, device, .. } = *self;
        let text = match &args.text {
            Some(path) => text::read(Some(path))?,
            None => text::split(&text::read(args.data_dir.as_deref())?, None).test,
        };
        let tokens: Arc<[u32]> = self.tokenizer()?.encode(&text, false)?.into();
        let context = artifact.description.input.width;
        let measured = measure_text(artifact, formats, &tokens, context, args.engine, device);
        Ok((measured.map_err(|error| self.about(&error))?, [tokens.len().saturating_sub(1), 0]))
    }

    fn questions(&self) -> Result<(), CommandError> {
        let Self { args, artifact, formats, device, .. } = *self;
        let Some(path) = &args.questions else { return Ok(()) };
        let (questions, tokenizer) = (load_choices(path)?, self.tokenizer()?);
        let scores = answer(artifact, formats, &questions, &tokenizer, args.engine, device);
        let scores = scores.map_err(|error| self.about(&error))?;
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
}
