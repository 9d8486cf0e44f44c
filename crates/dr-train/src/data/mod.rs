//! Images to learn from: datasets, how they are split and augmented, and the loader that makes batches of them.

#[cfg(feature = "program")]
mod augment;
mod batch;
#[cfg(feature = "program")]
pub mod cifar;
#[cfg(feature = "program")]
pub mod coco;
#[cfg(feature = "program")]
mod decode;
#[cfg(feature = "program")]
pub mod digits;
#[cfg(feature = "download")]
mod download;
#[cfg(feature = "program")]
mod epochs;
mod error;
#[cfg(feature = "program")]
mod files;
#[cfg(feature = "program")]
mod folder;
#[cfg(feature = "program")]
pub mod idx;
#[cfg(feature = "program")]
mod image_set;
mod images;
#[cfg(feature = "program")]
mod loader;
mod normalization;
#[cfg(feature = "program")]
pub(crate) mod random;
#[cfg(feature = "program")]
pub mod records;
#[cfg(feature = "program")]
mod scene_set;
#[cfg(feature = "program")]
pub mod scenes;

#[cfg(feature = "program")]
pub use augment::Augmentation;
pub use batch::{Batch, ImageBatch, Input, Target, TextBatch, TrainingLoader};
#[cfg(feature = "program")]
pub(crate) use epochs::Epochs;
#[cfg(feature = "program")]
pub use epochs::{Items, Loader};
pub use error::{DataError, FormatError};
#[cfg(feature = "program")]
pub use folder::{FolderError, ImageFiles, LabelledFile};
#[cfg(feature = "program")]
pub use image_set::ImageSet;
pub use images::{ImageShape, Images};
#[cfg(feature = "program")]
pub use loader::ImageLoader;
pub use normalization::Normalization;
#[cfg(feature = "program")]
pub use scene_set::{Labelled, SceneError, SceneLoader, SceneSet, SceneTarget, Scenes};

use crate::config::{DatasetKind, IMAGE_SIZE};
#[cfg(feature = "program")]
use files::Part;
use std::path::Path;

/// A dataset, split.
#[cfg(feature = "program")]
#[derive(Clone, Debug)]
pub struct Splits {
    /// To learn from.
    pub train: ImageSet,
    /// To choose by; never test images.
    pub valid: ImageSet,
    /// To measure the result once.
    pub test: ImageSet,
    /// That of `train`.
    pub normalization: Normalization,
}

/// Which images to read.
#[derive(Clone, Copy, Debug)]
pub struct DataSource<'a> {
    /// The dataset.
    pub dataset: DatasetKind,
    /// Where its files are, if not where they usually are; the digits need none.
    pub data_dir: Option<&'a Path>,
    /// Rows and columns that the images of a [`DatasetKind::Folder`] are made into.
    pub image_size: usize,
    /// Decides which images are for validation, of digits and folders.
    pub seed: u64,
}

impl<'a> DataSource<'a> {
    /// The usual images of a dataset.
    #[must_use]
    pub const fn new(dataset: DatasetKind, data_dir: Option<&'a Path>, seed: u64) -> Self {
        Self { dataset, data_dir, image_size: IMAGE_SIZE, seed }
    }

    #[cfg(feature = "program")]
    fn folder(&self) -> Result<folder::Parts, DataError> {
        let hint = "it has a folder for each class, or `train` and `val` with those";
        let dir = self.data_dir.ok_or_else(|| DataError::NoDirectory {
            dataset: self.dataset,
            file: "images".into(),
            hint,
        })?;
        folder::parts(dir, self.image_size, self.seed)
    }
}

/// Reads and splits a dataset.
///
/// Of the digits and of a folder's images, the seed decides which are for validation; of the others, the last images of the
/// training files are (a twelfth of MNIST and Fashion-MNIST, a tenth of CIFAR; 5,000 each). `limit_train` takes the first
/// images of those left for training.
///
/// # Errors
/// If a file is missing or wrong, or there are not as many training images as `limit_train` says.
#[cfg(feature = "program")]
pub fn load(source: &DataSource, limit_train: Option<usize>) -> Result<Splits, DataError> {
    let DataSource { dataset, data_dir, seed, .. } = *source;
    let ((train, valid), test): ((ImageSet, ImageSet), _) = match dataset {
        DatasetKind::Text | DatasetKind::Coco => return Err(DataError::NoImages(dataset)),
        DatasetKind::Folder => {
            let folder::Parts { train, valid, test } = source.folder()?;
            ((train.into(), valid.into()), test.into())
        }
        DatasetKind::Digits => {
            let (train, valid) = digits::training(seed)?;
            ((train.into(), valid.into()), load_test(source)?)
        }
        DatasetKind::Mnist | DatasetKind::FashionMnist => {
            (hold_out(dataset, idx::load(dataset, data_dir, Part::Train)?, 12)?, load_test(source)?)
        }
        DatasetKind::Cifar10 | DatasetKind::Cifar100 => {
            (hold_out(dataset, cifar::load(dataset, data_dir, Part::Train)?, 10)?, load_test(source)?)
        }
    };
    let train = limited(dataset, train, limit_train)?;
    let normalization = match &train {
        ImageSet::Memory(images) => images.normalization(),
        ImageSet::Files(_) => Normalization::imagenet(),
    };
    Ok(Splits { normalization, train, valid, test })
}

/// Reads only the test images of a dataset, as [`load`] gives them.
///
/// # Errors
/// If a file is missing or wrong.
#[cfg(feature = "program")]
pub fn load_test(source: &DataSource) -> Result<ImageSet, DataError> {
    let DataSource { dataset, data_dir, .. } = *source;
    Ok(match dataset {
        DatasetKind::Text | DatasetKind::Coco => return Err(DataError::NoImages(dataset)),
        DatasetKind::Folder => source.folder()?.test.into(),
        DatasetKind::Digits => digits::test()?.into(),
        DatasetKind::Mnist | DatasetKind::FashionMnist => idx::load(dataset, data_dir, Part::Test)?.into(),
        DatasetKind::Cifar10 | DatasetKind::Cifar100 => cifar::load(dataset, data_dir, Part::Test)?.into(),
    })
}

/// Splits off the last of every `one_in` images, at least one, for validation.
#[cfg(feature = "program")]
fn hold_out(dataset: DatasetKind, images: Images, one_in: usize) -> Result<(ImageSet, ImageSet), DataError> {
    let count = images.len();
    if count < 2 {
        return Err(DataError::TooFew { dataset, found: count });
    }
    let train = count - (count / one_in).max(1);
    Ok((images.range(0..train).into(), images.range(train..count).into()))
}

#[cfg(feature = "program")]
fn limited(dataset: DatasetKind, images: ImageSet, limit: Option<usize>) -> Result<ImageSet, DataError> {
    let available = images.len();
    match limit {
        None => Ok(images),
        Some(limit) if (1..=available).contains(&limit) => Ok(images.range(0..limit)),
        Some(limit) => Err(DataError::Limit { dataset, limit, available }),
    }
}
