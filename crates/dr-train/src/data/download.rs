//! MNIST through Burn's downloader, which keeps the files in the user's cache directory.

use super::{
    error::DataError,
    files::Part,
    idx::{CLASSES, SHAPE},
    images::Images,
};
use burn::data::dataset::{Dataset, DatasetError, vision::MnistDataset};
use std::panic::catch_unwind;

/// Downloads training or test images, or takes them from the cache.
pub(super) fn mnist(part: Part) -> Result<Images, DataError> {
    let failed = |reason: String| DataError::Download { dataset: super::MNIST.name, reason };
    // Burn's downloader panics where it cannot go on, for example without a network.
    let (pixels, labels) = catch_unwind(|| read(part))
        .map_err(|_| failed("Burn's downloader gave up, expected it to reach its server".into()))?
        .map_err(|error| failed(error.to_string()))?;
    Images::new(pixels, labels, SHAPE, CLASSES).map_err(|error| error.in_file("Burn's copy of MNIST"))
}

fn read(part: Part) -> Result<(Vec<u8>, Vec<u8>), DatasetError> {
    let dataset = if part == Part::Train { MnistDataset::train() } else { MnistDataset::test() };
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for index in 0..dataset.len() {
        let item = dataset.get(index)?;
        pixels.extend(item.image.as_flattened().iter().map(|&pixel| pixel as u8));
        labels.push(item.label);
    }
    Ok((pixels, labels))
}
