//! Images to learn from: datasets, how they are split and augmented, and the loader that makes batches of them.

mod augment;
pub mod cifar;
pub mod digits;
#[cfg(feature = "download")]
mod download;
mod error;
mod files;
pub mod idx;
mod images;
mod loader;
mod normalization;
mod random;
pub mod records;

pub use augment::Augmentation;
pub use error::{DataError, FormatError};
pub use images::{ImageShape, Images};
pub use loader::{ImageBatch, ImageLoader};
pub use normalization::Normalization;

use crate::config::DatasetKind;
use files::Part;
use std::path::Path;

/// A dataset, split.
#[derive(Clone, Debug)]
pub struct Splits {
    /// To learn from.
    pub train: Images,
    /// To choose by; never test images.
    pub valid: Images,
    /// To measure the result once.
    pub test: Images,
    /// That of `train`.
    pub normalization: Normalization,
}

/// Reads and splits a dataset.
///
/// `data_dir` is where its files are, if not where they usually are; the digits need none. Of the digits, `seed`
/// decides which are for validation; of the others, the last images of the training files are (a twelfth of MNIST and
/// Fashion-MNIST, a tenth of CIFAR; 5,000 each). `limit_train` takes the first images of those left for training.
///
/// # Errors
/// If a file is missing or wrong, or there are not as many training images as `limit_train` says.
pub fn load(
    dataset: DatasetKind, data_dir: Option<&Path>, limit_train: Option<usize>, seed: u64,
) -> Result<Splits, DataError> {
    let (train, valid) = match dataset {
        DatasetKind::Digits => digits::training(seed)?,
        DatasetKind::Mnist | DatasetKind::FashionMnist => {
            hold_out(dataset, idx::load(dataset, data_dir, Part::Train)?, 12)?
        }
        DatasetKind::Cifar10 | DatasetKind::Cifar100 => {
            hold_out(dataset, cifar::load(dataset, data_dir, Part::Train)?, 10)?
        }
    };
    let train = limited(dataset, train, limit_train)?;
    let test = load_test(dataset, data_dir)?;
    Ok(Splits { normalization: Normalization::of(&train), train, valid, test })
}

/// Reads only the test images of a dataset, as [`load`] gives them.
///
/// # Errors
/// If a file is missing or wrong.
pub fn load_test(dataset: DatasetKind, data_dir: Option<&Path>) -> Result<Images, DataError> {
    match dataset {
        DatasetKind::Digits => digits::test(),
        DatasetKind::Mnist | DatasetKind::FashionMnist => idx::load(dataset, data_dir, Part::Test),
        DatasetKind::Cifar10 | DatasetKind::Cifar100 => cifar::load(dataset, data_dir, Part::Test),
    }
}

/// Splits off the last of every `one_in` images, at least one, for validation.
fn hold_out(dataset: DatasetKind, images: Images, one_in: usize) -> Result<(Images, Images), DataError> {
    let count = images.len();
    if count < 2 {
        return Err(DataError::TooFew { dataset, found: count });
    }
    let train = count - (count / one_in).max(1);
    Ok((images.range(0..train), images.range(train..count)))
}

fn limited(dataset: DatasetKind, images: Images, limit: Option<usize>) -> Result<Images, DataError> {
    let available = images.len();
    match limit {
        None => Ok(images),
        Some(limit) if (1..=available).contains(&limit) => Ok(images.range(0..limit)),
        Some(limit) => Err(DataError::Limit { dataset, limit, available }),
    }
}
