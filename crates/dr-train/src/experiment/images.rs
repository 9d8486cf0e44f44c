//! [`ImageTask`]: images are classified.

use super::error::RunError;
use super::registry::Registry;
use super::said::{LAST_EPOCH, PURPOSES, UNDEFINED_TABLE, tell_ignored, tell_images, tell_missing};
use super::source::Source;
use super::task::{Answer, Evaluation, Part, Task};
use crate::artifact::{Artifact, Described, Description};
use crate::config::task::CLASSIFY;
use crate::config::{Engine, TrainConfig};
use crate::data::{
    self, Augmentation, Classes, DataError, DataSource, DatasetKind, ImageFiles, ImageLoader, ImageSet,
    Normalization, Noted, Splits, class_names,
};
use crate::evaluation::{
    EVAL_BATCH, EvaluationError, check_batch, check_images, check_names, check_size, labelled, measure,
};
use crate::models::ModelKind;
use crate::nn::Model;
use crate::note::{detail, note};
use crate::report::{Measured, NumberFormat, Report};
use crate::weights::{StateDict, WeightsError, ends, import};
use burn::data::dataloader::DataLoader;
use burn::data::dataset::DatasetError;
use burn::tensor::{Device, Tensor};
use std::sync::Arc;

/// A dataset of images, whose classes a network learns.
#[derive(Clone)]
pub struct ImageTask {
    dataset: &'static dyn DatasetKind,
    model: &'static dyn ModelKind,
    /// By [`Part`].
    parts: [ImageSet; 3],
    normalization: Normalization,
}

impl Task for ImageTask {
    type Input = Tensor<4>;
    type Target = Classes;
    type Loader = ImageLoader;

    const NAME: &'static str = CLASSIFY;
    const GOES_WITH: &'static str = "images with a class each and a network for images";
    const ITEMS: &'static str = "images";
    const BY_LOSS: bool = false;
    const FLAGS: Option<&'static [&'static str]> =
        Some(&["batch-norm", "augment", "mixup", "label-smoothing"]);

    fn load(registry: &Registry, config: &TrainConfig) -> Result<Self, RunError> {
        let (dataset, model) = (registry.datasets.get(&config.dataset)?, registry.models.get(&config.model)?);
        let source = DataSource {
            image_size: config.image_size,
            ..DataSource::new(dataset, config.data_dir.as_deref(), config.seed)
        };
        let Splits { train, valid, test, normalization } = data::load(&source, config.limit_train)?;
        if let ImageSet::Files(train) = &train {
            // Of the first few of all there need not be some of each class.
            train.check_classes(config.limit_train.is_none()).map_err(DataError::from)?;
        }
        Ok(Self { dataset, model, parts: [train, valid, test], normalization })
    }

    fn tell(&self) {
        tell_images(PURPOSES.into_iter().zip(&self.parts));
        let [train, valid, test] = &self.parts;
        // What is held out of the images to learn from need not have all classes.
        let is_held_out =
            matches!((train, valid), (ImageSet::Files(a), ImageSet::Files(b)) if a.source == b.source);
        if !is_held_out || valid.check().is_err() {
            tell_missing(valid, PURPOSES[1], LAST_EPOCH);
        }
        tell_missing(test, PURPOSES[2], UNDEFINED_TABLE);
    }

    fn imported(&self, config: &TrainConfig) -> Result<Option<Artifact>, RunError> {
        let Some(weights) = &config.weights else { return Ok(None) };
        let dict = StateDict::load(weights, &ends(self.model)).map_err(WeightsError::from)?;
        dict.remark().into_iter().for_each(note);
        let imported = import(dict, self.model, self.description(config))?;
        for problem in &imported.new_head {
            note(format_args!("{}: {problem}, so that layer starts anew", weights.display()));
        }
        Ok(Some(imported.artifact))
    }

    fn init(&self, config: &TrainConfig, device: &Device) -> Result<Model, RunError> {
        Ok(self.model.init(&self.description(config).sizes(), config.seed, device)?)
    }

    fn description(&self, config: &TrainConfig) -> Description {
        let (input, classes) = (self.parts[0].shape().into(), self.parts[0].classes());
        Description {
            normalization: self.normalization.clone(),
            resize: self.parts[0].resize(),
            class_names: class_names(self.dataset, &self.parts[0]),
            ..Description::new(self.dataset.name(), self.model, input, classes, config.precisions.clone())
        }
    }

    fn check(&self, artifact: &Artifact) -> Result<(), EvaluationError> {
        check_names(artifact, &class_names(self.dataset, &self.parts[0]))?;
        check_images(artifact, &self.parts[0])
    }

    fn training(
        &self, config: &TrainConfig, batch_size: usize, device: &Device,
    ) -> Result<ImageLoader, RunError> {
        let images = self.parts[0].clone();
        let usual = self.dataset.augmentation();
        let chosen = config.augment.map_or(usual, |changes| usual.with_changes(changes, images.shape()));
        let TrainConfig { mixup, label_smoothing, .. } = *config;
        let augmentation = Augmentation { mixup, label_smoothing, ..chosen };
        detail(format_args!(
            "changes to images: {}, mixup {mixup}, label smoothing {label_smoothing}",
            augmentation.changes
        ));
        let (normalization, device) = (self.normalization.clone(), device.clone());
        Ok(ImageLoader::training(images, normalization, batch_size, config.seed, augmentation, device))
    }

    fn evaluation(
        &self, part: Part, batch_size: usize, device: &Device,
    ) -> Result<Evaluation<Self>, RunError> {
        let (images, normalization) = (self.parts[part as usize].clone(), self.normalization.clone());
        Ok(Arc::new(ImageLoader::evaluation(images, normalization, batch_size, device.clone())))
    }

    fn calibration(&self, device: &Device) -> Result<Vec<Tensor<4>>, DatasetError> {
        calibration_batches(&self.parts[0], &self.normalization, device)
    }

    fn measure(
        &self, artifact: &Artifact, formats: &[NumberFormat], device: &Device,
    ) -> Result<Vec<Measured>, EvaluationError> {
        measure(artifact, formats, &self.parts[2], Engine::Fake, None, device)
    }

    fn test_items(&self) -> usize {
        self.parts[2].len()
    }

    fn noted(&self) -> Vec<Noted> {
        self.parts.iter().map(ImageSet::noted).collect()
    }

    fn measure_saved(source: &Source, formats: &[NumberFormat], engine: Engine) -> Result<Answer, RunError> {
        let Source { artifact, reference, device, .. } = *source;
        let test = match (source.images, reference) {
            (Some(folder), Some(reference)) => {
                let Description { input, resize, .. } = artifact.description;
                let images = ImageFiles::below(folder, input.into(), resize).map_err(DataError::from)?;
                labelled(reference, &images, device).map_err(|error| source.wrong(error))?.into()
            }
            _ => test_images(source)?,
        };
        let measured = measure(artifact, formats, &test, engine, reference, device);
        let measured = measured.map_err(|error| source.wrong(error))?;
        match (source.images, &test) {
            (Some(_), ImageSet::Files(files)) => tell_ignored([&**files]),
            _ => {
                tell_images([(PURPOSES[2], &test)]);
                tell_missing(&test, PURPOSES[2], UNDEFINED_TABLE);
            }
        }
        source.reads(test.noted());
        Ok((measured, [test.len(), test.noted().skipped().len()]))
    }

    fn batches(source: &Source, batch_size: usize) -> Result<(Evaluation<Self>, usize), RunError> {
        let (train, artifact) = (training_images(source)?, source.artifact);
        let names = class_names(source.data()?.dataset, &train);
        check_names(artifact, &names).map_err(|error| source.wrong(error))?;
        check_images(artifact, &train).map_err(|error| source.wrong(error))?;
        check_batch(artifact, batch_size, MOST_PIXELS)?;
        let batch_size = batch_size.min(train.len());
        let images = train.range(0..train.len() - train.len() % batch_size);
        source.reads(images.noted());
        let (count, normalization) = (images.len(), artifact.description.normalization.clone());
        let loader = ImageLoader::evaluation(images, normalization, batch_size, source.device.clone());
        Ok((Arc::new(loader), count))
    }

    fn calibration_saved(source: &Source) -> Result<Vec<Tensor<4>>, RunError> {
        let normalization = &source.artifact.description.normalization;
        let images = training_images(source)?;
        let images = images.range(0..source.calibration.min(images.len()));
        source.reads(images.noted());
        Ok(calibration_batches(&images, normalization, source.device)?)
    }

    fn table(report: &Report) -> String {
        report.table()
    }
}

/// Pixels of a batch: the gradients of a ResNet-20 keep 16 channels of them some 60 times, which are 4 GiB.
pub(super) const MOST_PIXELS: usize = 1 << 20;

/// The test images of a saved network, as it takes them, whose classes are called as its own.
///
/// # Errors
/// Images that are not there, or of other classes.
pub(crate) fn test_images(source: &Source) -> Result<ImageSet, RunError> {
    let data = source.data()?;
    let test = data::load_test(&data)?;
    let names = class_names(data.dataset, &test);
    check_names(source.artifact, &names).map_err(|error| source.wrong(error))?;
    framed(source, &test)
}

/// Images as a saved network takes them.
fn framed(source: &Source, images: &ImageSet) -> Result<ImageSet, RunError> {
    let Description { input, resize, .. } = source.artifact.description;
    Ok(images.framed(input.into(), resize).map_err(DataError::from)?)
}

fn training_images(source: &Source) -> Result<ImageSet, RunError> {
    let images = framed(source, &data::load(&source.data()?, source.limit)?.train)?;
    check_size(source.artifact, images.shape()).map_err(|error| source.wrong(error))?;
    images.check()?;
    Ok(images)
}

/// Training images that the activations' scales are fitted to.
const CALIBRATION_IMAGES: usize = 1024;

/// The first training images, without augmentation, to fit the activations' scales to.
///
/// # Errors
/// What the loader says.
pub fn calibration_batches(
    train: &ImageSet, normalization: &Normalization, device: &Device,
) -> Result<Vec<Tensor<4>>, DatasetError> {
    let loader = ImageLoader::evaluation(train.clone(), normalization.clone(), EVAL_BATCH, device.clone());
    loader.iter().take(CALIBRATION_IMAGES / EVAL_BATCH).map(|batch| Ok(batch?.input)).collect()
}
