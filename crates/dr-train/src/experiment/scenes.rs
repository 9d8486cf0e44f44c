//! [`SceneTask`]: something is said about every part of an image.

use super::error::RunError;
use super::images::MOST_PIXELS;
use super::registry::Registry;
use super::said::{LAST_EPOCH, PURPOSES, UNDEFINED_TABLE, tell_parts, warn};
use super::source::Source;
use super::task::{Answer, Evaluation, Part, Task};
use crate::artifact::{Artifact, Described, Description};
use crate::config::task::{DETECT, SEGMENT};
use crate::config::{Engine, TrainConfig};
use crate::data::{
    Boxes, DataError, Labelled, Normalization, Noted, PixelTargets, SceneError, SceneLoader, SceneSet,
    SceneTarget,
};
use crate::detection::{BoxTargets, DecodeOptions, Found, Positions, decode};
use crate::evaluation::{EvaluationError, check_batch, check_scenes, measured, networks, nowhere, positions};
use crate::metrics::{Confusion, Detection, Rect, Truth, mean_ap};
use crate::models::{ModelKind, Sizes};
use crate::nn::Model;
use crate::note::note;
use crate::report::{Measured, NumberFormat, Report};
use crate::training::score;
use crate::weights::Backbone;
use burn::data::dataloader::DataLoader;
use burn::data::dataset::DatasetError;
use burn::tensor::{Device, Tensor, TensorData};
use dr_runtime::graph::Graph;
use std::cell::{Cell, RefCell};
use std::sync::Arc;

/// Images that the scales of activations are fitted to, and how many at once.
const CALIBRATION: [usize; 2] = [256, 32];

/// What can be learned from scenes.
pub trait SceneGoal: SceneTarget {
    /// What a network that learns it does.
    const TASK: &'static str;

    /// Whether lower precisions can learn from the outputs of higher ones.
    const DISTILLS: bool;

    /// What the columns of [`Measured::quality`] and [`Measured::top1`] are called.
    const COLUMNS: [&'static str; 2];

    /// How many classes it tells apart, of so many of objects.
    fn classes(objects: usize) -> usize;

    /// What the targets depend on, of a network for images of this size; `None` if it is none for this.
    fn around(network: &Graph, image: [usize; 2]) -> Option<Self::Around>;

    /// Measures a saved one in each of `formats`; what its quality is, and of what `top1`, the columns say.
    ///
    /// # Errors
    /// A model that is not for these scenes, or not sound.
    fn measure(
        artifact: &Artifact, formats: &[NumberFormat], scenes: &Arc<SceneSet>, engine: Engine,
        device: &Device,
    ) -> Result<Vec<Measured>, EvaluationError>;
}

/// A class for each pixel.
impl SceneGoal for PixelTargets {
    const TASK: &'static str = SEGMENT;
    const DISTILLS: bool = true;
    const COLUMNS: [&'static str; 2] = ["mIoU (%)", "pixels (%)"];

    fn classes(objects: usize) -> usize {
        objects + 1
    }

    fn around(_: &Graph, _: [usize; 2]) -> Option<()> {
        Some(())
    }

    fn measure(
        artifact: &Artifact, formats: &[NumberFormat], scenes: &Arc<SceneSet>, engine: Engine,
        device: &Device,
    ) -> Result<Vec<Measured>, EvaluationError> {
        check_scenes(artifact, SEGMENT, scenes)?;
        let networks = networks(artifact, formats, engine, device)?;
        let loader = scene_loader::<Self>(artifact, scenes, (), device);
        measured(artifact, formats, || {
            let confusions = RefCell::new(vec![Confusion::new(artifact.description.classes); networks.len()]);
            let truth = RefCell::new(vec![]);
            let numbers: Vec<usize> = (0..networks.len()).collect();
            let mut scores = score(&loader, &numbers, |&number, images: Tensor<4>, labels: &Self| {
                let numbers = |of: TensorData| of.convert::<u32>().try_into_vec::<u32>().unwrap_or_default();
                if number == 0 {
                    *truth.borrow_mut() = numbers(labels.classes.to_data());
                }
                let output = networks[number](images.into())?;
                let guesses = numbers(output.clone().argmax(1).into_data());
                confusions.borrow_mut()[number].add(&guesses, &truth.borrow());
                Ok::<_, EvaluationError>(output)
            })?;
            for (score, confusion) in scores.iter_mut().zip(confusions.into_inner()) {
                // Without objects there is only the background to be right about.
                score.quality = scenes.check().is_ok().then(|| 100.0 * confusion.mean_iou());
            }
            Ok(scores)
        })
    }
}

/// Boxes around objects.
impl SceneGoal for BoxTargets {
    const TASK: &'static str = DETECT;
    const DISTILLS: bool = false;
    const COLUMNS: [&'static str; 2] = ["mAP (%)", "classes (%)"];

    fn classes(objects: usize) -> usize {
        objects
    }

    fn around(network: &Graph, image: [usize; 2]) -> Option<Positions> {
        Positions::of(network, image)
    }

    fn measure(
        artifact: &Artifact, formats: &[NumberFormat], scenes: &Arc<SceneSet>, engine: Engine,
        device: &Device,
    ) -> Result<Vec<Measured>, EvaluationError> {
        check_scenes(artifact, DETECT, scenes)?;
        let (networks, positions) = (networks(artifact, formats, engine, device)?, positions(artifact)?);
        let loader = scene_loader::<Self>(artifact, scenes, positions.clone(), device);
        measured(artifact, formats, || {
            // How many images there were before a batch, and what is in all of them.
            let (images, truth) = (Cell::new([0; 2]), RefCell::new(vec![]));
            let found = RefCell::new(vec![vec![]; networks.len()]);
            let numbers: Vec<usize> = (0..networks.len()).collect();
            let mut scores = score(&loader, &numbers, |&number, input: Tensor<4>, labels: &Self| {
                if number == 0 {
                    let [_, first] = images.get();
                    images.set([first, first + labels.boxes().count()]);
                    truth.borrow_mut().extend((first..).zip(labels.boxes()).flat_map(truths));
                }
                let output = networks[number](input.into())?;
                let boxes = decode(output.clone(), &positions, &DecodeOptions::default());
                let [first, _] = images.get();
                let shown = labels.boxes().map(|boxes| boxes.shown);
                let detections =
                    (first..).zip(boxes.into_iter().zip(shown)).flat_map(|(image, (found, shown))| {
                        let found = found.into_iter().filter_map(move |found| found.within(shown));
                        found.map(move |found| detection(image, &found))
                    });
                found.borrow_mut()[number].extend(detections);
                Ok::<_, EvaluationError>(output)
            })?;
            let (truth, [_, images]) = (truth.into_inner(), images.get());
            for (score, detections) in scores.iter_mut().zip(found.into_inner()) {
                let precision = mean_ap(&truth, &detections, images, artifact.description.classes);
                score.quality = precision.ap.map(|ap| 100.0 * ap);
            }
            Ok(scores)
        })
    }
}

/// Scenes in a batch of evaluation.
const SCENE_BATCH: usize = 32;

fn scene_loader<T: SceneTarget>(
    artifact: &Artifact, scenes: &Arc<SceneSet>, around: T::Around, device: &Device,
) -> SceneLoader<T> {
    let normalization = &artifact.description.normalization;
    SceneLoader::new(scenes.clone(), normalization, around, SCENE_BATCH, None, device.clone())
}

/// What is to be found in an image.
fn truths((image, Boxes { objects, crowds, .. }): (usize, &Boxes)) -> impl Iterator<Item = Truth> {
    let truth = move |&Labelled { rect, class }: &Labelled, crowd| {
        let bbox = corner_and_size(rect);
        Truth { image, class, bbox, area: bbox[2] * bbox[3], crowd }
    };
    let objects = objects.iter().map(move |object| truth(object, false));
    objects.chain(crowds.iter().map(move |crowd| truth(crowd, true)))
}

fn detection(image: usize, found: &Found) -> Detection {
    let Found { rect, class, score } = *found;
    Detection { image, class, bbox: corner_and_size(rect), score: score.into() }
}

/// Left, top, width and height.
fn corner_and_size(rect: Rect) -> [f64; 4] {
    let [left, top, right, bottom] = rect.map(f64::from);
    [left, top, right - left, bottom - top]
}

/// Scenes, and what is learned from them.
#[derive(Clone)]
pub struct SceneTask<T: SceneTarget> {
    /// By [`Part`].
    parts: [Arc<SceneSet>; 3],
    /// That of the first, or of what training starts from.
    normalization: Normalization,
    model: &'static dyn ModelKind,
    sizes: Sizes<'static>,
    around: T::Around,
    /// What training starts from, if not from random weights.
    backbone: Option<Backbone>,
}

impl<T: SceneGoal> SceneTask<T> {
    fn loader(&self, part: Part, batch_size: usize, seed: Option<u64>, device: &Device) -> SceneLoader<T> {
        let (scenes, around) = (self.parts[part as usize].clone(), self.around.clone());
        SceneLoader::new(scenes, &self.normalization, around, batch_size, seed, device.clone())
    }
}

impl<T: SceneGoal> Task for SceneTask<T> {
    type Input = Tensor<4>;
    type Target = T;
    type Loader = SceneLoader<T>;

    const NAME: &'static str = T::TASK;
    const GOES_WITH: &'static str = "--dataset coco and a residual network";
    const ITEMS: &'static str = "images";
    const DISTILLS: bool = T::DISTILLS;
    const FLAGS: Option<&'static [&'static str]> = Some(&["batch-norm"]);

    fn load(registry: &Registry, config: &TrainConfig) -> Result<Self, RunError> {
        let model = registry.models.get(&config.model)?;
        let dir = config.data_dir.as_deref().ok_or(RunError::NoScenes)?;
        let [train, valid, test] = SceneSet::load(dir, config.image_size.into(), config.fit)?;
        let train = to_learn_from(train, config.limit_train)?;
        let sizes = Sizes {
            task: T::TASK,
            input: train.shape().into(),
            classes: T::classes(train.names.len()),
            width: model.usual_width(),
            layers: 0,
        };
        let backbone = config.weights.as_deref();
        let backbone = backbone.map(|path| Backbone::load(path, model, sizes.input.channels)).transpose()?;
        let normalization = match &backbone {
            Some(backbone) => backbone.normalization.clone(),
            None => train.normalization(),
        };
        // Only to ask it what its targets depend on.
        let network = model.init(&sizes, 0, &Device::flex())?;
        let around = T::around(network.graph(), train.size);
        let around = around.ok_or_else(nowhere)?;
        Ok(Self { parts: [train, valid, test].map(Arc::new), normalization, model, sizes, around, backbone })
    }

    fn tell(&self) {
        let [train, valid, test] = &self.parts;
        let parts = PURPOSES.into_iter().zip(&self.parts);
        tell_parts(parts.map(|(purpose, part)| (purpose, part.len(), &*part.path)), &train.names);
        tell_empty(valid, |error| match error {
            SceneError::NoObjects { .. } => "the epoch is not chosen by objects",
            _ => LAST_EPOCH,
        });
        tell_empty(test, |_| UNDEFINED_TABLE);
    }

    fn imported(&self, config: &TrainConfig) -> Result<Option<Artifact>, RunError> {
        let (Some(backbone), Some(weights)) = (&self.backbone, &config.weights) else { return Ok(None) };
        let started = backbone.start(self.description(config))?;
        note(format_args!("{}: {started}", weights.display()));
        Ok(Some(started.artifact))
    }

    fn init(&self, config: &TrainConfig, device: &Device) -> Result<Model, RunError> {
        Ok(self.model.init(&self.sizes, config.seed, device)?)
    }

    fn description(&self, config: &TrainConfig) -> Description {
        let Sizes { input, classes, .. } = self.sizes;
        Description {
            task: T::TASK.to_string(),
            normalization: self.normalization.clone(),
            resize: self.parts[0].fit.into(),
            class_names: self.parts[0].names.clone(),
            ..Description::new(&config.dataset, self.model, input, classes, config.precisions.clone())
        }
    }

    fn check(&self, artifact: &Artifact) -> Result<(), EvaluationError> {
        check_scenes(artifact, T::TASK, &self.parts[0])
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
        calibration_scenes(&self.parts[0], &self.normalization, device)
    }

    fn measure(
        &self, artifact: &Artifact, formats: &[NumberFormat], device: &Device,
    ) -> Result<Vec<Measured>, EvaluationError> {
        T::measure(artifact, formats, &self.parts[2], Engine::Fake, device)
    }

    fn test_items(&self) -> usize {
        self.parts[2].len()
    }

    fn noted(&self) -> Vec<Noted> {
        self.parts.iter().map(|part| part.noted.clone()).collect()
    }

    fn measure_saved(source: &Source, formats: &[NumberFormat], engine: Engine) -> Result<Answer, RunError> {
        let [.., test] = load(source)?;
        let test = Arc::new(test);
        let measured = T::measure(source.artifact, formats, &test, engine, source.device);
        let measured = measured.map_err(|error| source.wrong(error))?;
        tell_parts([(PURPOSES[2], test.len(), &*test.path)], &test.names);
        tell_empty(&test, |_| UNDEFINED_TABLE);
        source.reads(test.noted.clone());
        Ok((measured, [test.len(), test.noted.skipped().len()]))
    }

    fn batches(source: &Source, batch_size: usize) -> Result<(Evaluation<Self>, usize), RunError> {
        let (artifact, input) = (source.artifact, source.artifact.description.input);
        let graph = artifact.graph().map_err(|error| error.in_file(source.model))?;
        let around = T::around(graph, [input.height, input.width]);
        let around = around.ok_or_else(|| nowhere().in_file(source.model))?;
        check_batch(artifact, batch_size, MOST_PIXELS)?;
        let scenes = training_scenes::<T>(source)?;
        let batch_size = batch_size.min(scenes.len());
        let count = scenes.len() - scenes.len() % batch_size;
        let (scenes, normalization) = (Arc::new(scenes.first(count)), &artifact.description.normalization);
        let loader =
            SceneLoader::<T>::new(scenes, normalization, around, batch_size, None, source.device.clone());
        Ok((Arc::new(loader), count))
    }

    fn calibration_saved(source: &Source) -> Result<Vec<Tensor<4>>, RunError> {
        let normalization = &source.artifact.description.normalization;
        let scenes = training_scenes::<T>(source)?.first(source.calibration);
        Ok(calibration_scenes(&scenes, normalization, source.device)?)
    }

    fn table(report: &Report) -> String {
        report.qualities(T::COLUMNS)
    }
}

/// Says of a part that there are no images or no objects in it, and what comes of that.
fn tell_empty(part: &SceneSet, result: impl Fn(&SceneError) -> &'static str) {
    if let Err(error) = part.check() {
        warn(format_args!("{error}; {}", result(&error)));
    }
}

/// All parts, in the size that the network takes.
fn load(source: &Source) -> Result<[SceneSet; 3], RunError> {
    let (dir, description) = (source.data_dir.ok_or(RunError::NoScenes)?, &source.artifact.description);
    let input = description.input;
    Ok(SceneSet::load(dir, [input.height, input.width], description.resize.into())?)
}

fn training_scenes<T: SceneGoal>(source: &Source) -> Result<SceneSet, RunError> {
    let [train, ..] = load(source)?;
    check_scenes(source.artifact, T::TASK, &train).map_err(|error| source.wrong(error))?;
    source.reads(train.noted.clone());
    to_learn_from(train, source.limit)
}

/// The first so many images, if that is asked for; there are objects in them.
fn to_learn_from(train: SceneSet, limit: Option<usize>) -> Result<SceneSet, RunError> {
    let available = train.len();
    let train = match limit {
        Some(limit) if (1..=available).contains(&limit) => train.first(limit),
        Some(limit) if available > 0 => {
            return Err(DataError::Limit { dataset: "coco", limit, available }.into());
        }
        // Of no images at all, the limit is not what is wrong.
        _ => train,
    };
    train.check()?;
    Ok(train)
}

/// The first training images, to fit the activations' scales to.
///
/// # Panics
/// If `normalization` does not fit the images.
///
/// # Errors
/// What the loader says.
pub fn calibration_scenes(
    scenes: &SceneSet, normalization: &Normalization, device: &Device,
) -> Result<Vec<Tensor<4>>, DatasetError> {
    let [images, batch] = CALIBRATION;
    let scenes = Arc::new(scenes.first(images));
    let loader = SceneLoader::<PixelTargets>::new(scenes, normalization, (), batch, None, device.clone());
    loader.iter().map(|batch| Ok(batch?.input)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As pycocotools has it: a find in a crowd is neither right nor wrong, and a crowd need not be found.
    #[test]
    fn finds_in_crowds_do_not_count() {
        let labelled = |rect: Rect| vec![Labelled { rect, class: 0 }];
        let (object, crowd) = ([2.0, 2.0, 8.0, 8.0], [16.0, 0.0, 32.0, 16.0]);
        let find = |rect: Rect, score| detection(0, &Found { rect, class: 0, score });
        let finds = [find([18.0, 2.0, 22.0, 6.0], 0.9), find(object, 0.8), find([25.0, 4.0, 31.0, 9.0], 0.7)];
        let ap = |crowds: Vec<Labelled>, objects: Vec<Labelled>| {
            let truths: Vec<Truth> = truths((0, &Boxes { objects, crowds, ..Boxes::default() })).collect();
            mean_ap(&truths, &finds, 1, 1).ap
        };
        assert_eq!(ap(labelled(crowd), labelled(object)), Some(1.0));
        let without = ap(vec![], labelled(object)).unwrap();
        assert!((without - 0.5).abs() < 1e-9, "{without}");
        assert_eq!(ap(labelled(crowd), vec![]), None);
    }
}
