//! A whole training run: data, float network, joint training, results.

use crate::artifact::{Artifact, ArtifactError, ArtifactKind, Description, InputShape};
use crate::config::{Baseline, BatchNormKind, DeviceKind, Distill, TrainConfig};
use crate::data::{self, Augmentation, DataError, ImageLoader, Images, Splits};
use crate::device::{self, DeviceError};
use crate::files::write_atomically;
use crate::models::{Network, ResNet, ResNetConfig};
use crate::nn::{Pass, QuantConfig};
use crate::report::{EpochRecord, Measured, NumberFormat, PrecisionResult, Report, ReportError, SingleResult};
use crate::training::{
    Distillation, Objective, Phase, PhaseError, PhaseOutcome, Score, evaluate, run_phase,
};
use burn::data::dataloader::DataLoader;
use burn::data::dataset::DatasetError;
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use burn::train::Interrupter;
use dr_precision::{Precision, PrecisionSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use thiserror::Error;

/// Images in a batch of evaluation.
const EVAL_BATCH: usize = 256;
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
    /// The device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The training.
    #[error(transparent)]
    Phase(#[from] PhaseError),
    /// A model file.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
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
    /// Ctrl-C.
    #[error("stopped; `--resume {}` goes on after the last complete epoch", .0.display())]
    Interrupted(PathBuf),
}

/// A run: settings, data, device and folder.
pub struct Experiment {
    config: TrainConfig,
    out: PathBuf,
    resume: bool,
    device: Device,
    device_kind: DeviceKind,
    train: Arc<Images>,
    valid: Arc<Images>,
    test: Arc<Images>,
    normalization: data::Normalization,
    interrupter: Interrupter,
}

/// A trained network and how it got there.
struct Trained {
    model: ResNet,
    history: Vec<EpochRecord>,
}

impl Experiment {
    /// Loads the data and opens the device. Nothing is written yet.
    ///
    /// # Errors
    /// Data or a device that is not there.
    pub fn new(
        config: TrainConfig, out: &Path, resume: bool, interrupter: Interrupter,
    ) -> Result<Self, RunError> {
        let (device, device_kind) = device::open(config.device)?;
        let Splits { train, valid, test, normalization } =
            data::load(config.dataset, config.data_dir.as_deref(), config.limit_train, config.seed)?;
        let [train, valid, test] = [train, valid, test].map(Arc::new);
        let out = out.to_path_buf();
        Ok(Self { config, out, resume, device, device_kind, train, valid, test, normalization, interrupter })
    }

    /// Trains, and writes the model, the report and the checkpoints into the folder.
    ///
    /// # Errors
    /// Anything that stops the run. What was complete before is kept, and can be resumed.
    pub fn run(&self) -> Result<Report, RunError> {
        let started = Instant::now();
        self.write("config.json", &serde_json::to_vec_pretty(&self.config).unwrap_or_default())?;
        let config = &self.config;

        let float = self.float(config.float_epochs, "float")?;
        let float_score = self.score(&float.model, &[Pass::float()])?[0];
        let float_artifact = Artifact::of(float.model.clone(), self.description(ArtifactKind::Float))?;
        let joint = self.joint(&float.model, &config.precisions, "joint")?;
        let artifact = Artifact::of(joint.model.clone(), self.description(ArtifactKind::MultiPrecision))?;

        let passes: Vec<Pass> = config.precisions.iter().map(Pass::at).collect();
        let scores = self.score(&joint.model, &passes)?;
        let mut precisions = vec![];
        for (precision, score) in config.precisions.iter().zip(scores) {
            let model_bytes = artifact.export(precision)?.payload_bytes();
            precisions.push(PrecisionResult { precision, measured: measured(score, model_bytes) });
        }
        let median = |history: &[EpochRecord]| {
            let mut seconds: Vec<f64> = history.iter().map(|epoch| epoch.seconds).collect();
            seconds.sort_by(f64::total_cmp);
            seconds.get(seconds.len() / 2).copied()
        };
        let mut report = Report {
            dataset: config.dataset,
            model: config.model,
            seed: config.seed,
            device: self.device_kind.to_string(),
            seconds: 0.0,
            test_images: self.test.len(),
            float: Some(measured(float_score, float_artifact.payload_bytes())),
            precisions,
            single: vec![],
            float_epoch_seconds: median(&float.history),
            joint_epoch_seconds: median(&joint.history),
            history: [float.history, joint.history].concat(),
            config: Some(config.clone()),
        };
        artifact.save(&self.out.join("model.safetensors"))?;
        report.seconds = started.elapsed().as_secs_f64();
        report.save(&self.out)?;
        if config.baseline == Baseline::Single {
            report.single = self.single(&float.model)?;
            report.seconds = started.elapsed().as_secs_f64();
            report.save(&self.out)?;
        }
        Ok(report)
    }

    /// Trains a float network for `epochs`, or takes the one that is there.
    fn float(&self, epochs: usize, name: &str) -> Result<Trained, RunError> {
        let file = self.out.join(format!("{name}.safetensors"));
        let phase = self.phase(name, epochs, self.config.lr);
        let tracked = self.device.clone().autodiff();
        if self.resume && file.is_file() {
            let model = Artifact::load(&file)?.network(&self.device)?;
            let history = crate::training::History::load(&phase.directory.join("history.json"));
            return Ok(Trained { model, history: history.epochs });
        }
        let shape = self.train.shape;
        let model =
            ResNetConfig::new(self.config.model, shape.channels, self.train.classes).init(self.config.seed, &tracked);
        let trained = self.train(&phase, model, Objective::new(vec![None]))?;
        // Written last: it says that the float training is complete.
        Artifact::of(trained.model.clone(), self.description(ArtifactKind::Float))?.save(&file)?;
        Ok(trained)
    }

    /// Quantizes a float network and trains it jointly at all of `precisions`.
    fn joint(&self, float: &ResNet, precisions: &PrecisionSet, name: &str) -> Result<Trained, RunError> {
        let config = &self.config;
        let quantization = QuantConfig {
            edge: self.edge(),
            gradient: config.scale_gradient,
            share_norm: config.batch_norm == BatchNormKind::Shared,
            ..QuantConfig::new(precisions.clone())
        };
        let model = float.clone().quantize(&quantization, self.calibration()?);
        let mut objective = Objective::new(precisions.iter().map(Some).collect());
        objective.scale_rate = config.scale_lr / config.joint_lr;
        objective.alrs = config.alrs;
        objective.distill = match config.distill {
            Distill::Off => Distillation::Off,
            Distill::Highest => Distillation::Highest,
            Distill::Float => {
                let teacher = float.clone();
                Distillation::Teacher(Arc::new(move |images| teacher.forward(images, &Pass::float())))
            }
        };
        let model = model.fork(&self.device.clone().autodiff()).train();
        self.train(&self.phase(name, config.epochs, config.joint_lr), model, objective)
    }

    /// One separate network for each precision and a float one, each with as many epochs in all as the joint one.
    fn single(&self, float: &ResNet) -> Result<Vec<SingleResult>, RunError> {
        let config = &self.config;
        let long = self.float(config.float_epochs + config.epochs, "single/float")?;
        let top1 = self.score(&long.model, &[Pass::float()])?[0].top1;
        let mut results = vec![SingleResult { precision: NumberFormat::Float, top1 }];
        for precision in config.precisions.iter() {
            let trained = self.joint(float, &only(precision), &format!("single/{precision}"))?;
            let top1 = self.score(&trained.model, &[Pass::at(precision)])?[0].top1;
            results.push(SingleResult { precision: precision.into(), top1 });
        }
        Ok(results)
    }

    fn train(&self, phase: &Phase, model: ResNet, objective: Objective) -> Result<Trained, RunError> {
        let config = &self.config;
        let train = ImageLoader::training(
            self.train.clone(),
            self.normalization.clone(),
            config.batch_size,
            config.seed,
            Augmentation::usual(config.dataset),
            self.device.clone().autodiff(),
        );
        let outcome = run_phase(phase, model, objective, train, self.loader(&self.valid), &self.interrupter)?;
        let PhaseOutcome { model, history, interrupted } = outcome;
        if interrupted {
            return Err(RunError::Interrupted(self.out.clone()));
        }
        Ok(Trained { model, history: history.epochs })
    }

    fn phase(&self, name: &str, epochs: usize, lr: f64) -> Phase {
        let config = &self.config;
        Phase {
            name: name.to_string(),
            directory: self.out.join(name),
            epochs,
            optimizer: config.optimizer,
            lr,
            weight_decay: config.weight_decay,
            clip_norm: config.clip_norm,
            warmup_epochs: config.warmup_epochs,
            resume: self.resume,
        }
    }

    /// What the first and the last layer compute in: the highest widths, in separate networks too.
    fn edge(&self) -> Precision {
        QuantConfig::new(self.config.precisions.clone()).edge
    }

    fn description(&self, kind: ArtifactKind) -> Description {
        let shape = self.train.shape;
        Description {
            kind,
            edge: self.edge(),
            batch_norm: self.config.batch_norm,
            seed: self.config.seed,
            normalization: self.normalization.clone(),
            ..Description::new(
                self.config.dataset,
                self.config.model,
                InputShape { channels: shape.channels, height: shape.height, width: shape.width },
                self.train.classes,
                self.config.precisions.clone(),
            )
        }
    }

    fn loader(&self, images: &Arc<Images>) -> ImageLoader {
        ImageLoader::evaluation(images.clone(), self.normalization.clone(), EVAL_BATCH, self.device.clone())
    }

    /// Scores on the test split.
    fn score(&self, model: &ResNet, passes: &[Pass]) -> Result<Vec<Score>, RunError> {
        Ok(evaluate(model, &self.loader(&self.test), passes)?)
    }

    /// Training images to fit the activations' scales to.
    fn calibration(&self) -> Result<Vec<Tensor<4>>, RunError> {
        Ok(calibration_batches(&self.train, &self.normalization, &self.device)?)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), RunError> {
        let path = self.out.join(name);
        let written = std::fs::create_dir_all(&self.out).and_then(|()| write_atomically(&path, bytes));
        written.map_err(|source| RunError::File { path, source })
    }
}

/// The first training images, without augmentation, to fit the activations' scales to.
///
/// # Errors
/// What the loader says.
pub fn calibration_batches(
    train: &Arc<Images>, normalization: &data::Normalization, device: &Device,
) -> Result<Vec<Tensor<4>>, DatasetError> {
    let loader =
        ImageLoader::evaluation(train.clone(), normalization.clone(), EVAL_BATCH, device.clone());
    loader.iter().take(CALIBRATION_IMAGES / EVAL_BATCH).map(|batch| Ok(batch?.images)).collect()
}

fn measured(score: Score, model_bytes: usize) -> Measured {
    Measured { top1: score.top1, loss: score.loss, model_bytes }
}

/// The set of one precision.
fn only(precision: Precision) -> PrecisionSet {
    PrecisionSet::new([precision]).expect("one precision is a set")
}
