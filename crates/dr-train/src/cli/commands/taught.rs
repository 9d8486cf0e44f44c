//! [`Source`]: the data that a saved network learned from, for commands that look at them again.

use super::CommandError;
use crate::artifact::{Artifact, Described, Description};
use crate::config::TaskKind;
use crate::data::{self, DataSource, ImageLoader, ImageSet, SceneLoader, SceneSet, SceneTarget};
use crate::detection::BoxTargets;
use crate::evaluation::{check_batch, check_images, check_scenes, check_size, positions, text_batch};
use crate::experiment::{Registry, RunError, calibration_batches, calibration_scenes, calibration_tokens};
use crate::nn::Value;
use crate::text::{self, TextLoader, Tokenizer};
use burn::tensor::{Device, Int, Tensor};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Which training data are asked for.
pub(super) struct Source<'a> {
    /// Where datasets are known.
    pub(super) registry: &'a Registry,
    /// The model.
    pub(super) artifact: &'a Artifact,
    /// Where it is.
    pub(super) model: &'a Path,
    /// Another dataset than that of the model.
    pub(super) dataset: Option<&'a str>,
    /// Where its files are.
    pub(super) data_dir: Option<&'a Path>,
    /// Only the first so many images, or characters.
    pub(super) limit: Option<usize>,
    /// Where it is computed.
    pub(super) device: &'a Device,
}

/// Batches in order, all of the same size, so that each item counts the same.
pub(super) enum Batches {
    /// Images with a class each.
    Images(ImageLoader),
    /// Scenes with a class for each pixel.
    Pixels(SceneLoader<Tensor<1, Int>>),
    /// Scenes with boxes.
    Boxes(SceneLoader<BoxTargets>),
    /// A text.
    Text(TextLoader),
}

/// Pixels of a batch: the gradients of a ResNet-20 keep 16 channels of them some 60 times, which are 4 GiB.
const MOST_PIXELS: usize = 1 << 20;

impl<'a> Source<'a> {
    /// The data of the model, or those that the arguments ask for.
    pub(super) fn new(
        registry: &'a Registry, artifact: &'a Artifact, model: &'a Path, dataset: &'a Option<String>,
        data_dir: &'a Option<PathBuf>, device: &'a Device,
    ) -> Self {
        let (dataset, data_dir) = (dataset.as_deref(), data_dir.as_deref());
        Self { registry, artifact, model, dataset, data_dir, limit: None, device }
    }

    /// Its images, as the model takes them.
    pub(super) fn data(&self) -> Result<DataSource<'a>, CommandError> {
        let Description { dataset, input, seed, .. } = &self.artifact.description;
        let dataset = self.registry.datasets.get(self.dataset.unwrap_or(dataset))?;
        Ok(DataSource { image_size: input.height, ..DataSource::new(dataset, self.data_dir, *seed) })
    }

    fn wrong(&self, error: &dyn std::error::Error) -> CommandError {
        CommandError::new(format!("`{}`: {error}", self.model.display()))
    }

    fn images(&self) -> Result<ImageSet, CommandError> {
        let images = data::load(&self.data()?, self.limit)?.train;
        check_size(self.artifact, &images).map_err(|error| self.wrong(&error))?;
        Ok(images)
    }

    fn scenes(&self) -> Result<SceneSet, CommandError> {
        let dir = self.data_dir.ok_or(RunError::NoScenes)?;
        let input = self.artifact.description.input;
        let [train, ..] = SceneSet::load(dir, [input.height, input.width])?;
        check_scenes(self.artifact, self.artifact.description.task()?, &train)
            .map_err(|error| self.wrong(&error))?;
        Ok(self.limit.map_or_else(|| train.clone(), |limit| train.first(limit)))
    }

    fn tokens(&self) -> Result<Vec<u32>, CommandError> {
        let json = self.artifact.tokenizer().map_err(|error| error.in_file(self.model))?;
        let text = text::split(&text::read(self.data_dir)?, self.limit).train;
        Ok(Tokenizer::from_json(json)?.encode(&text, false)?)
    }

    fn scene_batches<T: SceneTarget>(
        &self, around: T::Around, batch_size: usize,
    ) -> Result<(SceneLoader<T>, usize), CommandError> {
        check_batch(self.artifact, batch_size, MOST_PIXELS)?;
        let scenes = self.scenes()?;
        let batch_size = batch_size.min(scenes.len());
        let count = scenes.len() - scenes.len() % batch_size;
        let (scenes, normalization) =
            (Arc::new(scenes.first(count)), &self.artifact.description.normalization);
        Ok((SceneLoader::new(scenes, normalization, around, batch_size, None, self.device.clone()), count))
    }

    /// Batches of at most `batch_size` items, and how many items they have.
    pub(super) fn batches(&self, batch_size: usize) -> Result<(Batches, usize), CommandError> {
        let (artifact, device) = (self.artifact, self.device.clone());
        let Description { input, classes, normalization, .. } = &artifact.description;
        Ok(match artifact.description.task()? {
            TaskKind::Classify => {
                let train = self.images()?;
                check_images(artifact, &train).map_err(|error| self.wrong(&error))?;
                check_batch(artifact, batch_size, MOST_PIXELS)?;
                let batch_size = batch_size.min(train.len());
                let images = train.range(0..train.len() - train.len() % batch_size);
                let count = images.len();
                let loader = ImageLoader::evaluation(images, normalization.clone(), batch_size, device);
                (Batches::Images(loader), count)
            }
            TaskKind::Segment => {
                let (loader, count) = self.scene_batches((), batch_size)?;
                (Batches::Pixels(loader), count)
            }
            TaskKind::Detect => {
                let around = positions(artifact).map_err(|error| error.in_file(self.model))?;
                let (loader, count) = self.scene_batches(around, batch_size)?;
                (Batches::Boxes(loader), count)
            }
            TaskKind::Language => {
                let mut tokens = self.tokens()?;
                let length = input.width.min(tokens.len().saturating_sub(1)).max(1);
                let pieces = tokens.len().saturating_sub(1) / length;
                let batch_size = batch_size.min(text_batch(*classes, length)).min(pieces.max(1));
                let pieces = pieces - pieces % batch_size;
                tokens.truncate(pieces * length + 1);
                (Batches::Text(TextLoader::evaluation(tokens, length, batch_size, device)?), pieces)
            }
        })
    }

    /// What scales of activations and statistics of BatchNorm are taken from.
    pub(super) fn calibration(&self) -> Result<Vec<Value>, CommandError> {
        fn values<T: Into<Value>>(batches: Vec<T>) -> Vec<Value> {
            batches.into_iter().map(Into::into).collect()
        }
        let Description { input, normalization, .. } = &self.artifact.description;
        Ok(match self.artifact.description.task()? {
            TaskKind::Classify => values(calibration_batches(&self.images()?, normalization, self.device)?),
            TaskKind::Segment | TaskKind::Detect => {
                values(calibration_scenes(&self.scenes()?, normalization, self.device))
            }
            TaskKind::Language => values(calibration_tokens(&self.tokens()?, input.width, self.device)?),
        })
    }
}
