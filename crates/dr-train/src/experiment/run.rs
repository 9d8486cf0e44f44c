//! [`Experiment`]: one run, from data to report.

use super::error::RunError;
use super::registry::Registry;
use super::said::tell_noted;
use super::settings::{check_task, passes, quantization};
use super::task::{Part, Task};
use crate::artifact::{Artifact, ArtifactError, ArtifactKind, Description, SavedModel};
use crate::config::{Baseline, Batches, Distill, ForwardKind, MixedNorm, TrainConfig};
use crate::device::{Opened, open_for};
use crate::evaluation::{EVAL_BATCH, formats};
use crate::files::{FolderLock, at, remove_leftovers, write_atomically};
use crate::mixed::{DrawLog, Hasb, HessianOptions, Traces, traces};
use crate::nn::{Model, Pass, finish};
use crate::note::note;
use crate::report::{
    EpochRecord, Measured, NumberFormat, PrecisionResult, Report, SingleResult, TrainPhase, number,
};
use crate::training::{Distillation, History, Objective, Phase, PhaseOutcome, Score, evaluate, run_phase};
use crate::workers::{on_workers, tell_operations};
use burn::module::Module;
use burn::tensor::Device;
use burn::train::Interrupter;
use dr_precision::{Precision, PrecisionSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// The name of the settings in the folder of a run: where it is, there is a run.
pub const CONFIG: &str = "config.json";

/// The network that training leaves, in the folder.
pub const MODEL_FILE: &str = "model.safetensors";

/// The Hessian traces of the float network, as mixed training uses them.
const TRACES: &str = "traces.json";

/// The mixtures of each step of mixed training.
const DRAWS: &str = "draws.csv";

/// The name of the float network that joint training starts from.
const FLOAT: &str = "float";

/// Images and directions that Hessian traces are taken from before mixed training, which only asks which layers are
/// above their mean.
const TRACE_BATCH: usize = 32;
const TRACE_SAMPLES: usize = 48;

/// How a run goes about it; nothing of this changes its results.
#[derive(Clone, Default)]
pub struct RunOptions {
    /// Go on with the run in the folder.
    pub resume: bool,
    /// Show Burn's dashboard if the standard output is a terminal, instead of a line for each epoch. Needs the feature `dashboard`.
    pub dashboard: bool,
    /// Stops the run.
    pub interrupter: Interrupter,
}

/// A run: settings, data, device and folder.
pub struct Experiment<T> {
    config: TrainConfig,
    out: PathBuf,
    options: RunOptions,
    /// Those that train together.
    opened: Opened,
    /// The first of them.
    device: Device,
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
    pub fn new(
        registry: &Registry, config: TrainConfig, out: &Path, options: RunOptions,
    ) -> Result<Self, RunError> {
        check_task(registry, &config)?;
        let opened = open_for(&config)?;
        let devices = &opened.devices;
        let device = devices[0].clone();
        if let Some(dtype) = config.compute.half()
            && !devices.iter().all(|device| device.supports_dtype(dtype))
        {
            return Err(RunError::Compute { device: opened.name, compute: config.compute });
        }
        if config.batch_size / devices.len() < 2 {
            let (batch, devices) = (config.batch_size, devices.len());
            return Err(RunError::Devices { batch, devices });
        }
        let (task, out) = (T::load(registry, &config)?, out.to_path_buf());
        let mut run = Self { config, out, options, opened, device, task, imported: None };
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
        on_workers(&self.opened.workers, || self.run_all())
    }

    fn run_all(&self) -> Result<Report, RunError> {
        let started = Instant::now();
        let _lock = self.open_folder()?;
        self.task.tell();
        let config = &self.config;

        let float = self.float(config.float_epochs, FLOAT)?;
        let joint = self.joint(&float.model, &config.precisions, config.mixed, "joint")?;
        let float_artifact = self.artifact(&float.model, ArtifactKind::Float)?;
        let artifact = self.artifact(&joint.model, ArtifactKind::MultiPrecision)?;
        artifact.save(&self.out.join(MODEL_FILE))?;

        let mut seconds = float.earlier_seconds + joint.earlier_seconds;
        let measured = self.measure(&artifact)?;
        let float_measured = self.measure(&float_artifact)?.first().copied();
        let skipped_images = tell_noted(&self.task.noted());
        let result =
            |(precision, measured): (Precision, _)| PrecisionResult { precision: precision.into(), measured };
        let mut report = Report {
            task: config.task.clone(),
            dataset: config.dataset.clone(),
            model: config.model.clone(),
            seed: config.seed,
            device: self.opened.name.clone(),
            seconds: seconds + started.elapsed().as_secs_f64(),
            test_images: self.task.test_items(),
            skipped_images,
            float: float_measured,
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
        if !self.opened.workers.is_empty() {
            tell_operations(&self.opened.devices);
        }
        // Its presence says that the run is complete.
        report.save(&self.out)?;
        Ok(report)
    }

    /// Makes the folder and takes it, clears what a killed run left half-written, and saves the settings.
    fn open_folder(&self) -> Result<FolderLock, RunError> {
        let path = self.out.join(CONFIG);
        std::fs::create_dir_all(&self.out).map_err(at(&self.out))?;
        let lock = FolderLock::take(&self.out)?;
        let json = serde_json::to_vec_pretty(&self.config).map_err(std::io::Error::other);
        let written = json.and_then(|json| {
            remove_leftovers(&self.out)?;
            write_atomically(&path, &json)
        });
        written.map_err(at(&path))?;
        Ok(lock)
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
        let artifact = Artifact::open(&path)?;
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
        let quantization = quantization(config, precisions, mixed);
        let calibration = self.task.calibration(&self.device)?;
        let mut model = float.clone().quantize(&quantization, calibration.clone());
        let mut objective = Objective::new(passes(config, precisions, mixed));
        if quantization.mixed.is_some() {
            let traces = self.traces(float)?;
            let Self { config, out, .. } = self;
            let (widths, sampling, seed) = (config.widths, config.sampling, config.seed);
            let hasb = Hasb::new(&mut model, &traces.layers, precisions, widths, sampling, seed);
            let path = out.join(DRAWS);
            objective.draws = Some(Box::new(DrawLog::new(hasb, &path, config.draws)));
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
        if self.device == Device::flex() && independent {
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
        json.and_then(|json| write_atomically(&path, &json)).map_err(at(&path))?;
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
                note(format_args!("separate {precision} network: top-1 {} %", number(top1, 2)));
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
        &self, phase: &Phase, model: Model, mut objective: Objective<T::Input>,
    ) -> Result<Trained, RunError> {
        let config = &self.config;
        let stopped = || RunError::Interrupted(self.out.clone());
        if self.options.interrupter.should_stop() {
            return Err(stopped());
        }
        objective.ema = config.ema;
        let batch_size = config.batch_size.div_ceil(self.opened.devices.len());
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
            by_loss: T::BY_LOSS,
            accumulate: config.accumulate,
            devices: self.opened.devices.iter().map(|device| device.clone().autodiff()).collect(),
            optimizer: config.optimizer,
            weight_decay: config.weight_decay,
            clip_norm: config.clip_norm,
            warmup_epochs: config.warmup_epochs,
            patience: config.patience,
            resume: self.options.resume,
            dashboard: self.options.dashboard,
            ..Phase::new(name, kind, self.out.join(name), epochs, lr)
        }
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

fn total_seconds<'a>(history: impl IntoIterator<Item = &'a EpochRecord>) -> f64 {
    history.into_iter().map(|record| record.seconds).sum()
}

fn median_seconds(history: &[EpochRecord]) -> Option<f64> {
    let mut seconds: Vec<f64> = history.iter().map(|record| record.seconds).collect();
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied()
}
