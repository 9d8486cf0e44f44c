//! [`SceneTask`]: something is said about every part of an image.

use super::error::RunError;
use super::task::{Evaluation, Part, Task};
use crate::artifact::{Artifact, Description, Saved};
use crate::config::{Engine, TaskKind, TrainConfig};
use crate::data::{Normalization, SceneLoader, SceneSet, SceneTarget};
use crate::detection::Positions;
use crate::evaluation::{EvaluationError, check_scenes, measure_boxes, measure_pixels};
use crate::models::{DenseConfig, Detector, Segmenter};
use crate::report::{Measured, NumberFormat};
use burn::data::dataloader::DataLoader;
use burn::data::dataset::DatasetError;
use burn::tensor::{Device, Int, Tensor};
use std::marker::PhantomData;
use std::sync::Arc;

/// Images that the scales of activations are fitted to, and how many at once.
const CALIBRATION: [usize; 2] = [256, 32];

/// A network that learns scenes.
pub trait SceneNetwork: Saved<Input = Tensor<4>, Target: SceneTarget> {
    /// What it does.
    const TASK: TaskKind;

    /// A float network.
    fn new(config: &DenseConfig, seed: u64, device: &Device) -> Self;

    /// How many classes it tells apart, of so many of objects.
    fn classes(objects: usize) -> usize;

    /// What its targets depend on.
    fn around(&self, image: [usize; 2]) -> <Self::Target as SceneTarget>::Around;

    /// Measures a saved one.
    ///
    /// # Errors
    /// A model that is not for these scenes, or not sound.
    fn measure(
        artifact: &Artifact, formats: &[NumberFormat], scenes: &Arc<SceneSet>, engine: Engine,
        device: &Device,
    ) -> Result<Vec<Measured>, EvaluationError>;
}

impl SceneNetwork for Segmenter {
    const TASK: TaskKind = TaskKind::Segment;

    fn new(config: &DenseConfig, seed: u64, device: &Device) -> Self {
        config.init_segmenter(seed, device)
    }

    fn classes(objects: usize) -> usize {
        objects + 1
    }

    fn around(&self, _: [usize; 2]) {}

    fn measure(
        artifact: &Artifact, formats: &[NumberFormat], scenes: &Arc<SceneSet>, engine: Engine,
        device: &Device,
    ) -> Result<Vec<Measured>, EvaluationError> {
        measure_pixels(artifact, formats, scenes, engine, device)
    }
}

impl SceneNetwork for Detector {
    const TASK: TaskKind = TaskKind::Detect;

    fn new(config: &DenseConfig, seed: u64, device: &Device) -> Self {
        config.init_detector(seed, device)
    }

    fn classes(objects: usize) -> usize {
        objects
    }

    fn around(&self, image: [usize; 2]) -> Positions {
        self.positions(image)
    }

    fn measure(
        artifact: &Artifact, formats: &[NumberFormat], scenes: &Arc<SceneSet>, engine: Engine,
        device: &Device,
    ) -> Result<Vec<Measured>, EvaluationError> {
        measure_boxes(artifact, formats, scenes, engine, device)
    }
}

/// Scenes, which a [`Segmenter`] or a [`Detector`] learns.
#[derive(Clone, Debug)]
pub struct SceneTask<M> {
    /// Those to learn from, to choose by, and to measure the result on.
    parts: [Arc<SceneSet>; 3],
    /// That of the first.
    normalization: Normalization,
    network: DenseConfig,
    of: PhantomData<fn() -> M>,
}

impl<M: SceneNetwork> SceneTask<M> {
    fn loader(
        &self, part: Part, batch_size: usize, seed: Option<u64>, device: &Device,
    ) -> SceneLoader<M::Target> {
        let scenes = match part {
            Part::Train => &self.parts[0],
            Part::Valid => &self.parts[1],
            Part::Test => &self.parts[2],
        };
        // Only to ask it what its targets depend on.
        let around = M::new(&self.network, 0, &Device::flex()).around(scenes.size);
        SceneLoader::new(scenes.clone(), &self.normalization, around, batch_size, seed, device.clone())
    }
}

impl<M: SceneNetwork> Task for SceneTask<M> {
    type Network = M;
    type Loader = SceneLoader<M::Target>;

    const ITEMS: &'static str = "images";

    fn load(config: &TrainConfig) -> Result<Self, RunError> {
        let dir = config.data_dir.as_deref().ok_or(RunError::NoScenes)?;
        let [train, valid, test] = SceneSet::load(dir, [config.image_size; 2])?;
        let train = config.limit_train.map_or_else(|| train.clone(), |limit| train.first(limit));
        let network = DenseConfig {
            kind: config.model,
            width: config.model.usual_width(),
            channels: 3,
            classes: M::classes(train.names.len()),
        };
        let normalization = train.normalization();
        Ok(Self { parts: [train, valid, test].map(Arc::new), normalization, network, of: PhantomData })
    }

    fn imported(&self, config: &TrainConfig) -> Result<Option<Artifact>, RunError> {
        match config.weights {
            None => Ok(None),
            Some(_) => Err(RunError::Setting { task: config.task, setting: "--weights" }),
        }
    }

    fn init(&self, config: &TrainConfig, device: &Device) -> M {
        M::new(&self.network, config.seed, device)
    }

    fn description(&self, config: &TrainConfig) -> Description {
        let (input, classes) = (self.parts[0].shape().into(), self.network.classes);
        Description {
            task: M::TASK,
            normalization: self.normalization.clone(),
            ..Description::new(config.dataset, config.model, input, classes, config.precisions.clone())
        }
    }

    fn check(&self, artifact: &Artifact) -> Result<(), EvaluationError> {
        check_scenes(artifact, M::TASK, &self.parts[0])
    }

    fn training(
        &self, config: &TrainConfig, batch_size: usize, device: &Device,
    ) -> Result<Self::Loader, RunError> {
        Ok(self.loader(Part::Train, batch_size, Some(config.seed), device))
    }

    fn evaluation(
        &self, part: Part, batch_size: usize, device: &Device,
    ) -> Result<Evaluation<Self>, RunError> {
        Ok(Arc::new(self.loader(part, batch_size.min(CALIBRATION[1]), None, device)))
    }

    fn calibration(&self, device: &Device) -> Result<Vec<Tensor<4>>, DatasetError> {
        Ok(calibration_scenes(&self.parts[0], &self.normalization, device))
    }

    fn measure(
        &self, artifact: &Artifact, formats: &[NumberFormat], device: &Device,
    ) -> Result<Vec<Measured>, EvaluationError> {
        M::measure(artifact, formats, &self.parts[2], Engine::Fake, device)
    }

    fn test_items(&self) -> usize {
        self.parts[2].len()
    }
}

/// The first training images, to fit the activations' scales to.
///
/// # Panics
/// If `normalization` does not fit the images.
#[must_use]
pub fn calibration_scenes(
    scenes: &SceneSet, normalization: &Normalization, device: &Device,
) -> Vec<Tensor<4>> {
    let [images, batch] = CALIBRATION;
    let scenes = Arc::new(scenes.first(images));
    let loader = SceneLoader::<Tensor<1, Int>>::new(scenes, normalization, (), batch, None, device.clone());
    loader.iter().filter_map(|batch| Some(batch.ok()?.input)).collect()
}
