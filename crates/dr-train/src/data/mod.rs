//! Images to learn from: datasets, how they are split and augmented, and the loader that makes batches of them.

#[cfg(feature = "program")]
mod ahead;
#[cfg(feature = "program")]
mod augment;
mod batch;
#[cfg(feature = "program")]
pub mod cifar;
#[cfg(feature = "program")]
pub mod coco;
#[cfg(feature = "program")]
mod dataset;
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
mod noted;
#[cfg(feature = "program")]
mod operations;
#[cfg(feature = "program")]
mod pixel_targets;
#[cfg(feature = "program")]
pub(crate) mod random;
#[cfg(feature = "program")]
pub mod records;
#[cfg(feature = "program")]
mod scene_loader;
#[cfg(feature = "program")]
mod scene_set;
#[cfg(feature = "program")]
pub mod scenes;

pub use batch::{Batch, Classes, ImageBatch, Input, Target, TextBatch, TrainingLoader};
#[cfg(feature = "program")]
pub(crate) use decode::image_file;
pub use error::{ClassError, DataError, FormatError};
pub use images::{ImageShape, Images};
pub use normalization::{ChannelOrder, Normalization};
pub use noted::Noted;
#[cfg(feature = "program")]
pub use {
    augment::Augmentation,
    cifar::{CIFAR10, CIFAR100, CifarKind},
    dataset::{
        Coco, DATA_DIR, DATA_FLAGS, DataSource, DatasetKind, Splits, Text, class_names, datasets, load,
        load_test,
    },
    decode::Frame,
    digits::Digits,
    epochs::{Items, Loader},
    folder::{Folder, FolderError, Folders, ImageFiles, LabelledFile},
    idx::{FASHION_MNIST, IdxKind, MNIST},
    image_set::ImageSet,
    loader::ImageLoader,
    operations::Operation,
    pixel_targets::PixelTargets,
    scene_loader::{SceneLoader, SceneTarget, Scenes},
    scene_set::{Boxes, IGNORED, Labelled, SceneError, SceneSet},
};

#[cfg(feature = "program")]
pub(crate) use epochs::Epochs;
