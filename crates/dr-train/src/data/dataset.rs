//! [`DatasetKind`]: data by their name.

use super::cifar::{CIFAR10, CIFAR100};
use super::digits::Digits;
use super::error::DataError;
use super::folder::Folder;
use super::idx::{FASHION_MNIST, MNIST};
use super::images::Images;
use super::{Augmentation, ImageSet, Normalization};
use crate::config::task::{CLASSIFY, DETECT, LANGUAGE, SEGMENT};
use crate::config::{Batches, Fit, IMAGE_SIZE, ImageSize, OptimizerKind, TrainConfig};
use crate::names::Names;
use dr_precision::{BitWidth, Precision, PrecisionSet};
use std::path::Path;

/// Flags that say which data they are and how they are read: only some datasets have a use for them.
pub const DATA_FLAGS: [&str; 3] = [DATA_DIR, IMAGE_SIZE_FLAG, "fit"];

/// The flag for the place of a dataset's files.
pub const DATA_DIR: &str = "data-dir";

const IMAGE_SIZE_FLAG: &str = "image-size";

/// Data that are asked for by their name. A program adds its own to those of this crate
/// ([`Registry`](crate::experiment::Registry)). Scenes and texts are read from the files that are named, whatever the dataset.
pub trait DatasetKind: Sync {
    /// The name in flags, files and messages.
    fn name(&self) -> &'static str;

    /// What can be learned from them, the usual task first.
    fn tasks(&self) -> &'static [&'static str] {
        &[CLASSIFY]
    }

    /// Those of [`DATA_FLAGS`] that say something about them.
    fn flags(&self) -> &'static [&'static str] {
        &[DATA_DIR, IMAGE_SIZE_FLAG]
    }

    /// The settings of a training, where flags and files say nothing else.
    fn settings(&self) -> TrainConfig {
        TrainConfig::new(self.name())
    }

    /// How training images are changed where nothing else is asked for.
    fn augmentation(&self) -> Augmentation {
        Augmentation::default()
    }

    /// What the classes are called, if that is known and not said by folders.
    fn class_names(&self) -> Option<&'static [&'static str]> {
        None
    }

    /// Images to learn from, to choose by, and to measure the result once.
    ///
    /// # Errors
    /// Files that are missing or wrong, and data that are no images with a class each.
    fn load(&self, _: &DataSource) -> Result<[ImageSet; 3], DataError> {
        Err(DataError::NoImages(self.name()))
    }

    /// The last of them.
    ///
    /// # Errors
    /// As [`DatasetKind::load`].
    fn test(&self, source: &DataSource) -> Result<ImageSet, DataError> {
        self.load(source).map(|[.., test]| test)
    }
}

/// The datasets of this crate.
#[must_use]
pub fn datasets() -> Names<dyn DatasetKind> {
    let all: [&dyn DatasetKind; 8] =
        [&Digits, &MNIST, &FASHION_MNIST, &CIFAR10, &CIFAR100, &Folder, &Text, &Coco];
    Names::new("dataset", <dyn DatasetKind>::name, all)
}

/// A dataset, split.
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
#[derive(Clone, Copy)]
pub struct DataSource<'a> {
    /// The dataset.
    pub dataset: &'a dyn DatasetKind,
    /// Where its files are, if not where they usually are; the digits need none.
    pub data_dir: Option<&'a Path>,
    /// Rows and columns that the images of a [`Folder`] are made into.
    pub image_size: ImageSize,
    /// Decides which images are for validation, of digits and folders.
    pub seed: u64,
}

impl<'a> DataSource<'a> {
    /// The usual images of a dataset.
    #[must_use]
    pub const fn new(dataset: &'a dyn DatasetKind, data_dir: Option<&'a Path>, seed: u64) -> Self {
        Self { dataset, data_dir, image_size: IMAGE_SIZE, seed }
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
pub fn load(source: &DataSource, limit_train: Option<usize>) -> Result<Splits, DataError> {
    let [train, valid, test] = source.dataset.load(source)?;
    let train = limited(source.dataset.name(), train, limit_train)?;
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
pub fn load_test(source: &DataSource) -> Result<ImageSet, DataError> {
    source.dataset.test(source)
}

/// What the classes of images of a dataset are called; nothing if that is not known.
#[must_use]
pub fn class_names(dataset: &dyn DatasetKind, images: &ImageSet) -> Vec<String> {
    match images {
        ImageSet::Files(files) => files.classes.clone(),
        ImageSet::Memory(_) => {
            dataset.class_names().into_iter().flatten().map(|&name| name.to_owned()).collect()
        }
    }
}

/// The classes of handwritten digits.
pub(super) const DIGITS: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];

/// Splits off the last of every `one_in` images, at least one, for validation.
pub(super) fn hold_out(
    dataset: &'static str, images: Images, one_in: usize,
) -> Result<[ImageSet; 2], DataError> {
    let count = images.len();
    if count < 2 {
        return Err(DataError::TooFew { dataset, found: count });
    }
    let train = count - (count / one_in).max(1);
    Ok([images.range(0..train).into(), images.range(train..count).into()])
}

fn limited(dataset: &'static str, images: ImageSet, limit: Option<usize>) -> Result<ImageSet, DataError> {
    let available = images.len();
    match limit {
        None => Ok(images),
        Some(limit) if (1..=available).contains(&limit) => Ok(images.range(0..limit)),
        Some(limit) => Err(DataError::Limit { dataset, limit, available }),
    }
}

/// A text, for language models; without a file, the one that the program carries with it.
#[derive(Clone, Copy, Debug)]
pub struct Text;

impl DatasetKind for Text {
    fn name(&self) -> &'static str {
        "text"
    }

    fn tasks(&self) -> &'static [&'static str] {
        &[LANGUAGE]
    }

    fn flags(&self) -> &'static [&'static str] {
        &[DATA_DIR]
    }

    fn settings(&self) -> TrainConfig {
        let bits = [BitWidth::B8, BitWidth::B6, BitWidth::B4];
        let precisions = PrecisionSet::new(bits.map(|bits| Precision::new(bits, bits)));
        TrainConfig {
            task: LANGUAGE.to_owned(),
            model: "llama".to_owned(),
            precisions: precisions.expect("three of them, each once"),
            epochs: 5,
            float_epochs: 5,
            batch_size: 16,
            optimizer: OptimizerKind::AdamW,
            lr: 2e-3,
            joint_lr: 1e-3,
            scale_lr: 1e-5,
            weight_decay: 0.1,
            warmup_epochs: 0.1,
            clip_norm: 1.0,
            batches: Batches::Same,
            ..TrainConfig::new(self.name())
        }
    }
}

/// Images with objects in them, and annotations in COCO's format.
#[derive(Clone, Copy, Debug)]
pub struct Coco;

impl DatasetKind for Coco {
    fn name(&self) -> &'static str {
        "coco"
    }

    fn tasks(&self) -> &'static [&'static str] {
        &[DETECT, SEGMENT]
    }

    fn flags(&self) -> &'static [&'static str] {
        &DATA_FLAGS
    }

    fn settings(&self) -> TrainConfig {
        TrainConfig {
            task: DETECT.to_owned(),
            epochs: 20,
            float_epochs: 20,
            batch_size: 16,
            optimizer: OptimizerKind::AdamW,
            lr: 4e-3,
            joint_lr: 4e-3,
            scale_lr: 1e-5,
            image_size: ImageSize::square(64),
            fit: Fit::Pad,
            ..TrainConfig::new(self.name())
        }
    }
}
