//! A whole training run: data, float network, joint training, results.

mod images;
mod scenes;
mod task;
mod text;

pub use images::ImageTask;
pub use scenes::{SceneGoal, SceneTask, calibration_scenes};
pub use task::{Evaluation, Part, Task};
pub use text::{TextTask, calibration_tokens};

use crate::artifact::{Artifact, ArtifactError, ArtifactKind, Description};
use crate::config::{
    Baseline, BatchNormKind, Batches, ComputeKind, DatasetKind, DeviceKind, Devices, Distill, ForwardKind,
    MixedNorm, ModelKind, TaskKind, TrainConfig,
};
use crate::data::{DataError, ImageLoader, ImageSet, Normalization, SceneError};
use crate::detection::BoxTargets;
use crate::device::{self, DeviceError};
use crate::evaluation::{EVAL_BATCH, EvaluationError, formats};
use crate::files::{remove_leftovers, write_atomically};
use crate::mixed::{DrawLog, Hasb, HessianError, HessianOptions, Traces, traces};
use crate::nn::{Model, Pass, QuantConfig, TraceError, finish};
use crate::report::{
    EpochRecord, Measured, NumberFormat, PrecisionResult, Report, ReportError, SingleResult, TrainPhase,
};
use crate::text::TextError;
use crate::training::{
    Distillation, History, Objective, Phase, PhaseError, PhaseOutcome, Score, evaluate, run_phase,
};
use crate::weights::WeightsError;
use burn::data::dataset::DatasetError;
use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use burn::train::Interrupter;
use dr_precision::{Precision, PrecisionSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use thiserror::Error;

/// Images and directions that Hessian traces are taken from before mixed training, which only asks which layers are
/// above their mean.
const TRACE_BATCH: usize = 32;
const TRACE_SAMPLES: usize = 48;

/// Training images that the activations' scales are fitted to.
const CALIBRATION_IMAGES: usize = 1024;

/// Why a run did not end well.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RunError {
    /// The data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The data, in the middle of an epoch.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// The text or the tokenizer.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The training.
    #[error(transparent)]
    Phase(#[from] PhaseError),
    /// The weights to start from.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A model file.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The Hessian traces that mixed training draws by.
    #[error(transparent)]
    Hessian(#[from] HessianError),
    /// The network that resulted cannot be measured.
    #[error(transparent)]
    Evaluation(#[from] EvaluationError),
    /// A network that is none.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The float network of the run that is resumed is another one.
    #[error("`{}`: a {found} model: expected {expected}, as the run's settings say", path.display())]
    OtherModel {
        /// The file.
        path: PathBuf,
        /// What it holds.
        found: String,
        /// What the settings say.
        expected: String,
    },
    /// The report.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// A file or folder of the run.
    #[error("`{}`: {source}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        source: std::io::Error,
    },
    /// Settings that do not go together.
    #[error("--task {task} with --dataset {dataset} and --model {model}: expected {expected}")]
    Task {
        /// The task.
        task: TaskKind,
        /// The data.
        dataset: DatasetKind,
        /// The network.
        model: ModelKind,
        /// What goes with the task.
        expected: &'static str,
    },
    /// Settings that a task has no use for.
    #[error("--task {task}: {setting}: expected without it")]
    Setting {
        /// The task.
        task: TaskKind,
        /// The setting.
        setting: &'static str,
    },
    /// No folder.
    #[error(
        "dataset coco: expected --data-dir, a folder with images and annotations as `dr-train scenes` makes one"
    )]
    NoScenes,
    /// The scenes.
    #[error(transparent)]
    Scenes(#[from] SceneError),
    /// A type that a device does not have.
    #[error("--compute {compute}: device `{device}` does not compute in it: expected f32")]
    Compute {
        /// The device.
        device: DeviceKind,
        /// The type.
        compute: ComputeKind,
    },
    /// Batches too small to be divided.
    #[error("--batch-size {batch} on {devices} devices: expected at least {}, two images on each", 2 * devices)]
    Devices {
        /// Images in a batch.
        batch: usize,
        /// How many devices.
        devices: usize,
    },
    /// Ctrl-C.
    #[error("stopped; the run in `{}` can be resumed after its last complete epoch", .0.display())]
    Interrupted(PathBuf),
}

/// How a run goes about it; nothing of this changes its results.
#[derive(Clone, Default)]
pub struct RunOptions {
    /// Go on with the run in the folder.
    pub resume: bool,
    /// Show Burn's dashboard if the standard output is a terminal, instead of a line for each epoch.
    pub dashboard: bool,
    /// Stops the run.
    pub interrupter: Interrupter,
}

/// Trains as `config` says, and writes the model, the report and the checkpoints into the folder `out`. `ready` is called once the
/// settings and data are found to be sound, before anything is written.
///
/// # Errors
/// Anything that stops the run. What was complete before is kept, and can be resumed.
pub fn run<E: From<RunError>>(
    config: TrainConfig, out: &Path, options: RunOptions, ready: impl FnOnce() -> Result<(), E>,
) -> Result<Report, E> {
    fn of<T: Task, E: From<RunError>>(
        config: TrainConfig, out: &Path, options: RunOptions, ready: impl FnOnce() -> Result<(), E>,
    ) -> Result<Report, E> {
        let experiment = Experiment::<T>::new(config, out, options)?;
        ready()?;
        Ok(experiment.run()?)
    }
    match config.task {
        TaskKind::Language => of::<TextTask, E>(config, out, options, ready),
        TaskKind::Segment => of::<SceneTask<Tensor<1, Int>>, E>(config, out, options, ready),
        TaskKind::Detect => of::<SceneTask<BoxTargets>, E>(config, out, options, ready),
        TaskKind::Classify => of::<ImageTask, E>(config, out, options, ready),
    }
}

/// A run: settings, data, device and folder.
pub struct Experiment<T> {
    config: TrainConfig,
    out: PathBuf,
    options: RunOptions,
    /// Those that train together.
    devices: Vec<Device>,
    /// The first of them.
    device: Device,
    device_kind: DeviceKind,
    task: T,
    /// What the float training starts from, if not from random weights.
    imported: Option<Artifact>,
}

/// A trained network and how it got there.
struct Trained {
    model: Model,
    history: Vec<EpochRecord>,
    /// Time spent on it before this run was resumed.
    earlier_seconds: f64,
}

impl<T: Task> Experiment<T> {
    /// Loads the data and opens the device. Nothing is written yet.
    ///
    /// # Errors
    /// Data or a device that is not there; a run to go on with that is of another network.
    pub fn new(config: TrainConfig, out: &Path, options: RunOptions) -> Result<Self, RunError> {
        check_task(&config)?;
        let first = Devices::Numbers(vec![0]);
        let (devices, device_kind) =
            device::open_several(config.device, config.devices.as_ref().unwrap_or(&first))?;
        // There is at least one: `Devices` are not empty.
        let device = devices[0].clone();
        if let Some(dtype) = config.compute.half()
            && !devices.iter().all(|device| device.supports_dtype(dtype))
        {
            return Err(RunError::Compute { device: device_kind, compute: config.compute });
        }
        if config.batch_size / devices.len() < 2 {
            let (batch, devices) = (config.batch_size, devices.len());
            return Err(RunError::Devices { batch, devices });
        }
        let (task, out) = (T::load(&config)?, out.to_path_buf());
        let mut run = Self { config, out, options, devices, device, device_kind, task, imported: None };
        if run.saved_float(FLOAT)?.is_none() {
            run.imported = run.task.imported(&run.config)?;
        }
        Ok(run)
    }

    /// Trains, and writes the model, the report and the checkpoints into the folder.
    ///
    /// # Errors
    /// Anything that stops the run. What was complete before is kept, and can be resumed.
    pub fn run(&self) -> Result<Report, RunError> {
        let started = Instant::now();
        self.open_folder()?;
        let config = &self.config;

        let float = self.float(config.float_epochs, FLOAT)?;
        let joint = self.joint(&float.model, &config.precisions, config.mixed, "joint")?;
        let float_artifact = self.artifact(&float.model, ArtifactKind::Float)?;
        let artifact = self.artifact(&joint.model, ArtifactKind::MultiPrecision)?;
        artifact.save(&self.out.join("model.safetensors"))?;

        let mut seconds = float.earlier_seconds + joint.earlier_seconds;
        let measured = self.measure(&artifact)?;
        let result =
            |(precision, measured): (Precision, _)| PrecisionResult { precision: precision.into(), measured };
        let mut report = Report {
            task: config.task,
            dataset: config.dataset,
            model: config.model.to_string(),
            seed: config.seed,
            device: self.device_kind.to_string(),
            seconds: seconds + started.elapsed().as_secs_f64(),
            test_images: self.task.test_items(),
            skipped_images: self.task.skipped(),
            float: self.measure(&float_artifact)?.first().copied(),
            precisions: config.precisions.iter().zip(measured).map(result).collect(),
            single: vec![],
            float_epoch_seconds: median_seconds(&float.history),
            joint_epoch_seconds: median_seconds(&joint.history),
            history: [float.history, joint.history].concat(),
            config: Some(config.clone()),
        };
        if config.baseline == Baseline::Single {
            (report.single, seconds) = self.single(&float.model, seconds)?;
            report.seconds = seconds + started.elapsed().as_secs_f64();
        }
        // Its presence says that the run is complete.
        report.save(&self.out)?;
        Ok(report)
    }

    /// Makes the folder, clears what a killed run left half-written, and saves the settings.
    fn open_folder(&self) -> Result<(), RunError> {
        let path = self.out.join(CONFIG);
        let json = serde_json::to_vec_pretty(&self.config).map_err(std::io::Error::other);
        json.and_then(|json| {
            std::fs::create_dir_all(&self.out)?;
            remove_leftovers(&self.out)?;
            write_atomically(&path, &json)
        })
        .map_err(|source| RunError::File { path, source })
    }

    /// Trains a float network for `epochs`, or takes the one that is there.
    fn float(&self, epochs: usize, name: &str) -> Result<Trained, RunError> {
        let mut phase = self.phase(name, TrainPhase::Float, epochs, self.config.lr);
        if name == FLOAT && !self.config.anneal_float {
            phase.anneal_epochs += self.config.epochs;
        }
        if let Some(saved) = self.saved_float(name)? {
            let model = saved.network(&self.device)?;
            let history = History::load(&phase.history_file()).epochs;
            let earlier_seconds = total_seconds(&history);
            return Ok(Trained { model, history, earlier_seconds });
        }
        let device = self.device.clone().autodiff();
        let model = match &self.imported {
            Some(imported) => imported.network(&self.device)?.fork(&device).train(),
            None => self.task.init(&self.config, &device)?,
        };
        let mut objective = Objective::new(vec![NumberFormat::Float]);
        objective.compute = self.config.compute;
        let trained = self.train(&phase, model, objective)?;
        // Written last: it says that the float training is complete.
        let artifact = self.artifact(&trained.model, ArtifactKind::Float)?;
        artifact.save(&self.float_file(name))?;
        Ok(trained)
    }

    fn float_file(&self, name: &str) -> PathBuf {
        self.out.join(format!("{name}.safetensors"))
    }

    /// The float network that the resumed run has finished, if it has.
    fn saved_float(&self, name: &str) -> Result<Option<Artifact>, RunError> {
        let path = self.float_file(name);
        if !self.options.resume || !path.is_file() {
            return Ok(None);
        }
        let artifact = Artifact::load(&path)?;
        self.task.check(&artifact)?;
        let Description { kind, model, .. } = &artifact.description;
        let (found, expected) =
            (format!("{kind} {model}"), format!("{} {}", ArtifactKind::Float, self.config.model));
        match found == expected {
            true => Ok(Some(artifact)),
            false => Err(RunError::OtherModel { path, found, expected }),
        }
    }

    /// Quantizes a float network and trains it jointly at all of `precisions`.
    fn joint(
        &self, float: &Model, precisions: &PrecisionSet, mixed: bool, name: &str,
    ) -> Result<Trained, RunError> {
        let config = &self.config;
        let quantization = QuantConfig {
            edge: self.edge(),
            gradient: config.scale_gradient,
            share_norm: config.batch_norm == BatchNormKind::Shared,
            mixed: mixed.then_some(config.mixed_norm),
            group_size: config.group_size,
            switch_edge: config.switch_edge,
            ..QuantConfig::new(precisions.clone())
        };
        let calibration = self.task.calibration(&self.device)?;
        let mut model = float.clone().quantize(&quantization, calibration.clone());
        let passes: Vec<NumberFormat> = match quantization.mixed {
            None => precisions.iter().map(NumberFormat::from).collect(),
            Some(_) => {
                let ends = [precisions.highest().into(), precisions.lowest().into()];
                ends.into_iter().chain(std::iter::repeat_n(NumberFormat::Mixed, config.draws)).collect()
            }
        };
        let mut objective = Objective::new(passes);
        if quantization.mixed.is_some() {
            let traces = self.traces(float)?;
            let Self { config, out, .. } = self;
            let (widths, sampling, seed) = (config.widths, config.sampling, config.seed);
            let hasb = Hasb::new(&mut model, &traces.layers, precisions, widths, sampling, seed);
            let path = out.join(DRAWS);
            objective.draws = Some(DrawLog::new(hasb, &path, config.draws));
        }
        objective.scale_rate = config.scale_lr / config.joint_lr;
        objective.alrs = config.alrs;
        objective.compute = config.compute;
        objective.integers = config.forward == ForwardKind::Integer;
        objective.separate_batches = config.batches == Batches::Separate;
        objective.distill = match config.distill {
            Distill::Off => Distillation::Off,
            Distill::Highest => Distillation::Highest,
            Distill::Float => {
                let teacher = float.clone();
                Distillation::Teacher(Arc::new(move |input| teacher.forward(input, &Pass::float())))
            }
        };
        // Whether mixed passes share BatchNorms with those that are validated.
        let shared_mixed = quantization.mixed == Some(MixedNorm::Uniform);
        let independent = !quantization.share_norm && config.distill != Distill::Highest && !shared_mixed;
        if self.device_kind == DeviceKind::Flex && independent {
            objective = objective.side_by_side();
        }
        let model = model.fork(&self.device.clone().autodiff()).train();
        let mut phase = self.phase(name, TrainPhase::Joint, config.epochs, config.joint_lr);
        phase.epochs_before = config.float_epochs;
        let mut trained = self.train(&phase, model, objective)?;
        if quantization.mixed.is_some() {
            trained.model = finish(trained.model, precisions, shared_mixed, &calibration);
        }
        Ok(trained)
    }

    /// The Hessian traces of the float network, over training images: those that the resumed run has found, if it has.
    fn traces(&self, float: &Model) -> Result<Traces, RunError> {
        let path = self.out.join(TRACES);
        let saved = std::fs::read(&path).ok().filter(|_| self.options.resume);
        if let Some(traces) = saved.and_then(|json| serde_json::from_slice(&json).ok()) {
            return Ok(traces);
        }
        let data = self.task.evaluation(Part::Train, TRACE_BATCH, &self.device)?;
        let options = HessianOptions { tolerance: 0.1, max_samples: TRACE_SAMPLES, seed: self.config.seed };
        let traces = traces(float, &*data, &options, |_, _| {})?;
        let json = serde_json::to_vec_pretty(&traces).map_err(std::io::Error::other);
        json.and_then(|json| write_atomically(&path, &json))
            .map_err(|source| RunError::File { path, source })?;
        Ok(traces)
    }

    /// One separate network for each precision and a float one, each with as many epochs in all as the joint one; and
    /// `seconds` with the time spent on them before this run was resumed.
    fn single(&self, float: &Model, mut seconds: f64) -> Result<(Vec<SingleResult>, f64), RunError> {
        let config = &self.config;
        let mut results = vec![];
        let mut add = |trained: Trained, precision: NumberFormat, pass: Pass| -> Result<(), RunError> {
            let test = self.task.evaluation(Part::Test, EVAL_BATCH, &self.device)?;
            let scores = evaluate(&trained.model, &*test, &[pass])?;
            for &Score { top1, .. } in &scores {
                eprintln!("separate {precision} network: top-1 {top1:.2} %");
                results.push(SingleResult { precision, top1 });
            }
            seconds += trained.earlier_seconds;
            Ok(())
        };
        let long = self.float(config.float_epochs + config.epochs, "single/float")?;
        add(long, NumberFormat::Float, Pass::float())?;
        // The lowest precision first: it is the one that the comparison is about.
        for &precision in config.precisions.as_slice().iter().rev() {
            let trained =
                self.joint(float, &PrecisionSet::of(precision), false, &format!("single/{precision}"))?;
            add(trained, precision.into(), Pass::at(precision))?;
        }
        results.sort_by_key(|result| result.precision);
        Ok((results, seconds))
    }

    fn train(
        &self, phase: &Phase, model: Model, objective: Objective<T::Input>,
    ) -> Result<Trained, RunError> {
        let config = &self.config;
        let stopped = || RunError::Interrupted(self.out.clone());
        if self.options.interrupter.should_stop() {
            return Err(stopped());
        }
        let batch_size = config.batch_size.div_ceil(self.devices.len());
        let train = self.task.training(config, batch_size, &self.device.clone().autodiff())?;
        let valid = self.task.evaluation(Part::Valid, EVAL_BATCH, &self.device)?;
        let outcome = run_phase(phase, model, objective, train, valid, &self.options.interrupter)?;
        let PhaseOutcome { model, history, resumed_after, interrupted } = outcome;
        if interrupted {
            return Err(stopped());
        }
        let history = history.epochs;
        let earlier = history.iter().take_while(|record| record.epoch <= resumed_after);
        let earlier_seconds = total_seconds(earlier);
        Ok(Trained { model, history, earlier_seconds })
    }

    fn phase(&self, name: &str, kind: TrainPhase, epochs: usize, lr: f64) -> Phase {
        let config = &self.config;
        Phase {
            items: T::ITEMS,
            by_loss: self.config.task != TaskKind::Classify,
            accumulate: config.accumulate,
            devices: self.devices.iter().map(|device| device.clone().autodiff()).collect(),
            optimizer: config.optimizer,
            weight_decay: config.weight_decay,
            clip_norm: config.clip_norm,
            warmup_epochs: config.warmup_epochs,
            resume: self.options.resume,
            dashboard: self.options.dashboard,
            ..Phase::new(name, kind, self.out.join(name), epochs, lr)
        }
    }

    /// What the first and the last layer compute in: the highest widths, in separate networks too.
    fn edge(&self) -> Precision {
        QuantConfig::new(self.config.precisions.clone()).edge
    }

    fn description(&self, kind: ArtifactKind) -> Description {
        let config = &self.config;
        Description {
            kind,
            batch_norm: config.batch_norm,
            mixed: (config.mixed && kind == ArtifactKind::MultiPrecision).then_some(config.mixed_norm),
            seed: config.seed,
            group_size: config.group_size.filter(|_| kind == ArtifactKind::MultiPrecision),
            switch_edge: config.switch_edge && kind == ArtifactKind::MultiPrecision,
            ..self.task.description(config)
        }
    }

    /// The artifact of a network of this run.
    fn artifact(&self, model: &Model, kind: ArtifactKind) -> Result<Artifact, ArtifactError> {
        let mut artifact = Artifact::of(model, self.description(kind))?;
        artifact.tensors.extend(self.task.attachments());
        Ok(artifact)
    }

    /// Measures an artifact in all its formats on the test split. What is reported is what the file holds.
    fn measure(&self, artifact: &Artifact) -> Result<Vec<Measured>, RunError> {
        Ok(self.task.measure(artifact, &formats(artifact), &self.device)?)
    }
}

/// Whether task, data and network go together.
fn check_task(config: &TrainConfig) -> Result<(), RunError> {
    let TrainConfig { task, dataset, model, .. } = *config;
    let pyramid = !matches!(model, ModelKind::Llama | ModelKind::MobilenetV2);
    let (fits, expected) = match task {
        TaskKind::Classify => (
            !matches!(dataset, DatasetKind::Text | DatasetKind::Coco) && model != ModelKind::Llama,
            "images with a class each and a network for images",
        ),
        TaskKind::Language => {
            (dataset == DatasetKind::Text && model == ModelKind::Llama, "--dataset text and --model llama")
        }
        TaskKind::Segment | TaskKind::Detect => {
            (dataset == DatasetKind::Coco && pyramid, "--dataset coco and a residual network")
        }
    };
    if !fits {
        return Err(RunError::Task { task, dataset, model, expected });
    }
    if task == TaskKind::Detect && config.distill != Distill::Off {
        return Err(RunError::Setting { task, setting: "--distill" });
    }
    Ok(())
}

/// The name of the settings in the folder of a run: where it is, there is a run.
pub const CONFIG: &str = "config.json";

/// The Hessian traces of the float network, as mixed training uses them.
const TRACES: &str = "traces.json";

/// The mixtures of each step of mixed training.
const DRAWS: &str = "draws.csv";

/// The name of the float network that joint training starts from.
const FLOAT: &str = "float";

/// The first training images, without augmentation, to fit the activations' scales to.
///
/// # Errors
/// What the loader says.
pub fn calibration_batches(
    train: &ImageSet, normalization: &Normalization, device: &Device,
) -> Result<Vec<Tensor<4>>, DatasetError> {
    use burn::data::dataloader::DataLoader;
    let loader = ImageLoader::evaluation(train.clone(), normalization.clone(), EVAL_BATCH, device.clone());
    loader.iter().take(CALIBRATION_IMAGES / EVAL_BATCH).map(|batch| Ok(batch?.input)).collect()
}

fn total_seconds<'a>(history: impl IntoIterator<Item = &'a EpochRecord>) -> f64 {
    history.into_iter().map(|record| record.seconds).sum()
}

fn median_seconds(history: &[EpochRecord]) -> Option<f64> {
    let mut seconds: Vec<f64> = history.iter().map(|record| record.seconds).collect();
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied()
}
