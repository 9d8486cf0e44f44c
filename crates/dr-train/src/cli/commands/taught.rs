//! [`Taught`]: the data that a saved network learned from, for commands that look at them again.

use super::CommandError;
use crate::artifact::{Artifact, Saved};
use crate::config::{DatasetKind, TaskKind};
use crate::data::{self, ImageLoader, ImageSet, SceneLoader, SceneSet, SceneTarget};
use crate::evaluation::{check_batch, check_images, check_scenes, text_batch};
use crate::experiment::{
    RunError, SceneNetwork, calibration_batches, calibration_scenes, calibration_tokens,
};
use crate::models::{BatchOf, ConvNet, Detector, Llama, Segmenter};
use crate::text::{self, TextLoader, Tokenizer};
use burn::data::dataloader::DataLoader;
use burn::tensor::{Device, Int, Tensor};
use std::path::Path;
use std::sync::Arc;

/// Which training data are asked for.
pub(super) struct Source<'a> {
    /// The model.
    pub(super) artifact: &'a Artifact,
    /// Where it is.
    pub(super) model: &'a Path,
    /// Another dataset than that of the model.
    pub(super) dataset: Option<DatasetKind>,
    /// Where its files are.
    pub(super) data_dir: Option<&'a Path>,
    /// Only the first so many images, or characters.
    pub(super) limit: Option<usize>,
    /// Where it is computed.
    pub(super) device: &'a Device,
}

/// Batches, and how many items they have.
pub(super) type Counted<M> = (Box<dyn DataLoader<BatchOf<M>>>, usize);

/// A network whose training data can be read again.
pub(super) trait Taught: Saved {
    /// Batches in order, all of the same size, so that each item counts the same.
    fn batches(source: &Source, batch_size: usize) -> Result<Counted<Self>, CommandError>;

    /// What scales of activations and statistics of BatchNorm are taken from.
    fn calibration(source: &Source) -> Result<Vec<Self::Input>, CommandError>;
}

/// Pixels of a batch: the gradients of a ResNet-20 keep 16 channels of them some 60 times, which are 4 GiB.
const MOST_PIXELS: usize = 1 << 20;

impl Source<'_> {
    fn wrong(&self, error: &dyn std::error::Error) -> CommandError {
        CommandError::new(format!("`{}`: {error}", self.model.display()))
    }

    fn images(&self) -> Result<ImageSet, CommandError> {
        let description = &self.artifact.description;
        let dataset = self.dataset.unwrap_or(description.dataset);
        let images = data::load(&description.images(dataset, self.data_dir), self.limit)?.train;
        check_images(self.artifact, &images).map_err(|error| self.wrong(&error))?;
        Ok(images)
    }

    fn scenes(&self, task: TaskKind) -> Result<SceneSet, CommandError> {
        let dir = self.data_dir.ok_or(RunError::NoScenes)?;
        let input = self.artifact.description.input;
        let [train, ..] = SceneSet::load(dir, [input.height, input.width])?;
        check_scenes(self.artifact, task, &train).map_err(|error| self.wrong(&error))?;
        Ok(self.limit.map_or_else(|| train.clone(), |limit| train.first(limit)))
    }

    fn tokens(&self) -> Result<Vec<u32>, CommandError> {
        let json = self.artifact.tokenizer().map_err(|error| error.in_file(self.model))?;
        let text = text::split(&text::read(self.data_dir)?, self.limit).train;
        Ok(Tokenizer::from_json(json)?.encode(&text, false)?)
    }

    fn scene_batches<T: SceneTarget>(
        &self, task: TaskKind, around: T::Around, batch_size: usize,
    ) -> Result<(SceneLoader<T>, usize), CommandError> {
        check_batch(self.artifact, batch_size, MOST_PIXELS)?;
        let scenes = self.scenes(task)?;
        let batch_size = batch_size.min(scenes.len());
        let count = scenes.len() - scenes.len() % batch_size;
        let (scenes, normalization) =
            (Arc::new(scenes.first(count)), &self.artifact.description.normalization);
        Ok((SceneLoader::new(scenes, normalization, around, batch_size, None, self.device.clone()), count))
    }
}

impl Taught for ConvNet {
    fn batches(source: &Source, batch_size: usize) -> Result<Counted<Self>, CommandError> {
        let train = source.images()?;
        check_batch(source.artifact, batch_size, MOST_PIXELS)?;
        let batch_size = batch_size.min(train.len());
        let images = train.range(0..train.len() - train.len() % batch_size);
        let (count, normalization) = (images.len(), source.artifact.description.normalization.clone());
        let loader = ImageLoader::evaluation(images, normalization, batch_size, source.device.clone());
        Ok((Box::new(loader), count))
    }

    fn calibration(source: &Source) -> Result<Vec<Tensor<4>>, CommandError> {
        let normalization = &source.artifact.description.normalization;
        Ok(calibration_batches(&source.images()?, normalization, source.device)?)
    }
}

impl Taught for Segmenter {
    fn batches(source: &Source, batch_size: usize) -> Result<Counted<Self>, CommandError> {
        let (loader, count) = source.scene_batches(TaskKind::Segment, (), batch_size)?;
        Ok((Box::new(loader), count))
    }

    fn calibration(source: &Source) -> Result<Vec<Tensor<4>>, CommandError> {
        let normalization = &source.artifact.description.normalization;
        Ok(calibration_scenes(&source.scenes(TaskKind::Segment)?, normalization, source.device))
    }
}

impl Taught for Detector {
    fn batches(source: &Source, batch_size: usize) -> Result<Counted<Self>, CommandError> {
        let network: Self =
            source.artifact.network(&Device::flex()).map_err(|error| error.in_file(source.model))?;
        let input = source.artifact.description.input;
        let around = network.around([input.height, input.width]);
        let (loader, count) = source.scene_batches(TaskKind::Detect, around, batch_size)?;
        Ok((Box::new(loader), count))
    }

    fn calibration(source: &Source) -> Result<Vec<Tensor<4>>, CommandError> {
        let normalization = &source.artifact.description.normalization;
        Ok(calibration_scenes(&source.scenes(TaskKind::Detect)?, normalization, source.device))
    }
}

impl Taught for Llama {
    fn batches(source: &Source, batch_size: usize) -> Result<Counted<Self>, CommandError> {
        let config = source.artifact.description.llama().map_err(|error| error.in_file(source.model))?;
        let mut tokens = source.tokens()?;
        let length = config.context.min(tokens.len().saturating_sub(1)).max(1);
        let pieces = tokens.len().saturating_sub(1) / length;
        let batch_size = batch_size.min(text_batch(config, length)).min(pieces.max(1));
        let pieces = pieces - pieces % batch_size;
        tokens.truncate(pieces * length + 1);
        let loader = TextLoader::evaluation(tokens, length, batch_size, source.device.clone())?;
        Ok((Box::new(loader), pieces))
    }

    fn calibration(source: &Source) -> Result<Vec<Tensor<2, Int>>, CommandError> {
        let config = source.artifact.description.llama().map_err(|error| error.in_file(source.model))?;
        Ok(calibration_tokens(&source.tokens()?, config.context, source.device)?)
    }
}
