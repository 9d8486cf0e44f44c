//! CIFAR-10 and CIFAR-100 in their binary form.

use super::{
    Augmentation, DataSource, DatasetKind, ImageSet,
    dataset::{DATA_DIR, hold_out},
};
use super::{
    error::DataError,
    files::{self, Places},
    images::{ImageShape, Images},
    records::{self, RecordFormat},
};
use crate::config::TrainConfig;

const SHAPE: ImageShape = ImageShape { channels: 3, height: 32, width: 32 };

/// A dataset in CIFAR's binary form.
#[derive(Clone, Copy, Debug)]
pub struct CifarKind {
    /// The name in flags, files and messages.
    pub name: &'static str,
    /// What a record of its files is.
    pub format: RecordFormat,
    folder: &'static str,
    class_names: Option<&'static [&'static str]>,
    train: &'static [&'static str],
    test: &'static str,
}

/// CIFAR-10 (32x32, colour). Its records are the label and the image.
pub const CIFAR10: CifarKind = CifarKind {
    name: "cifar10",
    format: RecordFormat { label_bytes: 1, shape: SHAPE, classes: 10 },
    folder: "cifar-10-batches-bin",
    class_names: Some(&[
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ]),
    train: &[
        "data_batch_1.bin",
        "data_batch_2.bin",
        "data_batch_3.bin",
        "data_batch_4.bin",
        "data_batch_5.bin",
    ],
    test: "test_batch.bin",
};
/// CIFAR-100 (32x32, colour, fine labels). Its records are the coarse label, the fine label, and the image.
pub const CIFAR100: CifarKind = CifarKind {
    name: "cifar100",
    format: RecordFormat { label_bytes: 2, shape: SHAPE, classes: 100 },
    folder: "cifar-100-binary",
    class_names: None,
    train: &["train.bin"],
    test: "test.bin",
};

impl CifarKind {
    fn read(&self, source: &DataSource, names: &[&str]) -> Result<Images, DataError> {
        let Self { name: dataset, format, folder, .. } = *self;
        let directories = source.data_dir.map(|dir| vec![dir.into(), dir.join(folder)]).unwrap_or_default();
        let hint = "the binary version at https://www.cs.toronto.edu/~kriz/cifar.html has them";
        let places = Places { dataset, directories, hint };
        let mut all =
            Images { pixels: Vec::new(), labels: Vec::new(), shape: SHAPE, classes: format.classes };
        for &name in names {
            let images = files::parse(&places.find(&[name.into()])?, |file| records::parse(file, format))?;
            all.pixels.extend(images.pixels);
            all.labels.extend(images.labels);
        }
        Ok(all)
    }
}

impl DatasetKind for CifarKind {
    fn name(&self) -> &'static str {
        self.name
    }

    fn flags(&self) -> &'static [&'static str] {
        &[DATA_DIR]
    }

    fn settings(&self) -> TrainConfig {
        let model = "resnet20".to_owned();
        TrainConfig { model, epochs: 60, float_epochs: 60, ..TrainConfig::new(self.name) }
    }

    fn augmentation(&self) -> Augmentation {
        Augmentation::new(4, true)
    }

    fn class_names(&self) -> Option<&'static [&'static str]> {
        self.class_names
    }

    fn load(&self, source: &DataSource) -> Result<[ImageSet; 3], DataError> {
        let [train, valid] = hold_out(self.name, self.read(source, self.train)?, 10)?;
        Ok([train, valid, self.test(source)?])
    }

    fn test(&self, source: &DataSource) -> Result<ImageSet, DataError> {
        Ok(self.read(source, &[self.test])?.into())
    }
}
