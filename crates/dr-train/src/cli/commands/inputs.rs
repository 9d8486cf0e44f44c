//! Inputs without labels in a folder, as a network takes them.

use super::arrays_in;
use crate::agreement::read_array;
use crate::artifact::{Artifact, Described, Description};
use crate::cli::CommandError;
use crate::data::{DataError, Frame, ImageFiles, ImageLoader, ImageSet, Input, image_file};
use crate::experiment::{RunError, Source, tell_ignored, tell_noted};
use crate::nn::Value;
use burn::data::dataloader::DataLoader;
use burn::data::dataset::DatasetError;
use burn::tensor::{Device, Tensor, TensorData};
use dr_runtime::arrays::Array;
use dr_runtime::graph::Op;
use dr_runtime::{Arithmetic, Network};
use std::fmt::Display;
use std::path::Path;

/// Pixels of the images that a network for images is calibrated with, at most.
const CALIBRATION_PIXELS: usize = 128 * 224 * 224;

/// Images that it is calibrated with, at most, if they are small.
const CALIBRATION_IMAGES: usize = 1024;

/// Images that are computed together.
const BATCH: usize = 16;

/// Whether it is said which files of a folder are left out, or will be when more of them are read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    Here,
    Later,
}

/// How many images a network is calibrated with if nothing else is asked for.
pub(super) fn calibration_images(artifact: &Artifact) -> usize {
    let input = &artifact.description.input;
    let few = CALIBRATION_PIXELS / (input.height * input.width).max(1);
    CALIBRATION_IMAGES.min(few).max(1)
}

/// Inputs that show what a network is for: those [of a folder](inputs_below), or training images of its dataset.
pub(super) fn inputs(
    source: &mut Source, folder: Option<&Path>, images: usize, arrays: Option<usize>,
) -> Result<Vec<Value>, CommandError> {
    if let Some(folder) = folder {
        return inputs_below(source.artifact, folder, images, arrays, Told::Here, source.device);
    }
    source.calibration = images;
    let batches = (source.task()?.calibration)(source)?;
    Ok(batches.into_iter().flat_map(|batch| batch.split(BATCH)).collect())
}

/// Inputs of a folder: its .npy files, all of them or `arrays`; or, if it has none, at most `images` of its images. Both evenly spread, in batches.
pub(super) fn inputs_below(
    artifact: &Artifact, folder: &Path, images: usize, arrays: Option<usize>, told: Told, device: &Device,
) -> Result<Vec<Value>, CommandError> {
    if let Some(files) = arrays_in(folder)? {
        let few = files.len().min(arrays.unwrap_or(usize::MAX)).max(1);
        let highest = artifact.description.precisions().map(|set| set.highest());
        let network = Network::load_with(artifact, highest, Arithmetic::Integer)?;
        let mut sizes: Vec<Vec<usize>> = vec![];
        let input = |at: usize| {
            let path = &files[at * files.len() / few];
            let wrong = |error: &dyn Display| CommandError::about(path, error);
            let array = read_array(path)?;
            // What does not fit shows in the first pass of its size.
            if !sizes.iter().any(|known| known == array.dims()) {
                network.forward_arrays(std::slice::from_ref(&array)).map_err(|error| wrong(&error))?;
                sizes.push(array.dims().to_vec());
            }
            array_input(artifact, array).map_err(|error| wrong(&error))
        };
        let arrays = (0..few).map(input).collect::<Result<Vec<Value>, CommandError>>()?;
        return Ok(arrays.into_iter().flat_map(|array| array.split(BATCH)).collect());
    }
    let Description { input, normalization, .. } = &artifact.description;
    let resize = artifact.description.pictures();
    if !matches!(artifact.graph()?.input(), Some(Op::Images { .. })) {
        let found = format!("`{}`: has no .npy files", folder.display());
        return Err(CommandError::new(format!("{found}: expected arrays, as the network takes")));
    }
    let files = ImageFiles::below(folder, (*input).into(), resize).map_err(DataError::from)?.spread(images);
    if told == Told::Here {
        tell_ignored([&files]);
    }
    let images = ImageSet::from(files);
    let loader = ImageLoader::evaluation(images.clone(), normalization.clone(), BATCH, device.clone());
    let batches = loader.iter().map(|batch| Ok(batch?.input.into()));
    let batches = batches.collect::<Result<_, DatasetError>>().map_err(RunError::from)?;
    if told == Told::Here {
        tell_noted(&[images.noted()]);
    }
    Ok(batches)
}

/// The image of a picture, `[1, channels, rows, columns]`, and which part of it that is.
pub(super) fn picture(path: &Path, description: &Description) -> Result<(Array, Frame), CommandError> {
    let Description { input, normalization, .. } = description;
    let wrong = |error: &dyn Display| CommandError::about(path, error);
    let read = image_file(path, (*input).into(), description.pictures(), normalization);
    let (values, frame) = read.map_err(|error| wrong(&error))?;
    let array = Array::from_f32(values, &[1, input.channels, input.height, input.width]);
    Ok((array.map_err(|error| wrong(&error))?, frame))
}

/// An array as the network takes it.
fn array_input(artifact: &Artifact, array: Array) -> Result<Value, CommandError> {
    let graph = artifact.graph()?;
    if let Some((_, input)) = graph.array_inputs().next() {
        input.check(&array)?;
        return Ok(array.into());
    }
    let values = array.floats()?.into_owned();
    match (array.dims(), graph.input()) {
        (&[batch, channels, rows, columns], Some(&Op::Images { channels: expected }))
            if channels == expected =>
        {
            let data = TensorData::new(values, [batch, channels, rows, columns]);
            Ok(Tensor::<4>::from_data(data, &Device::flex()).into())
        }
        (found, expected) => Err(CommandError::new(format!("an array {found:?}: expected {expected:?}"))),
    }
}
