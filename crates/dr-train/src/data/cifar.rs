//! CIFAR-10 and CIFAR-100 in their binary form.

use super::{
    error::DataError,
    files::{self, Part, Places},
    images::{ImageShape, Images},
    records::{self, RecordFormat},
};
use crate::config::DatasetKind;
use std::path::Path;

const SHAPE: ImageShape = ImageShape { channels: 3, height: 32, width: 32 };
/// Records of CIFAR-10: the label, and the image.
pub const CIFAR10: RecordFormat = RecordFormat { label_bytes: 1, shape: SHAPE, classes: 10 };
/// Records of CIFAR-100: the coarse label, the fine label, and the image.
pub const CIFAR100: RecordFormat = RecordFormat { label_bytes: 2, shape: SHAPE, classes: 100 };

/// Reads training or test images.
pub(super) fn load(dataset: DatasetKind, data_dir: Option<&Path>, part: Part) -> Result<Images, DataError> {
    let (format, folder, names): (_, _, &[&str]) = match (dataset, part) {
        (DatasetKind::Cifar100, Part::Train) => (CIFAR100, "cifar-100-binary", &["train.bin"]),
        (DatasetKind::Cifar100, Part::Test) => (CIFAR100, "cifar-100-binary", &["test.bin"]),
        (_, Part::Train) => (
            CIFAR10,
            "cifar-10-batches-bin",
            &[
                "data_batch_1.bin",
                "data_batch_2.bin",
                "data_batch_3.bin",
                "data_batch_4.bin",
                "data_batch_5.bin",
            ],
        ),
        (_, Part::Test) => (CIFAR10, "cifar-10-batches-bin", &["test_batch.bin"]),
    };
    let directories = data_dir.map(|dir| vec![dir.into(), dir.join(folder)]).unwrap_or_default();
    let hint = "the binary version at https://www.cs.toronto.edu/~kriz/cifar.html has them";
    let places = Places { dataset, directories, hint };
    let mut all = Images { pixels: Vec::new(), labels: Vec::new(), shape: SHAPE, classes: format.classes };
    for &name in names {
        let images = files::parse(&places.find(&[name.into()])?, |file| records::parse(file, format))?;
        all.pixels.extend(images.pixels);
        all.labels.extend(images.labels);
    }
    Ok(all)
}
