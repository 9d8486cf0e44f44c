//! The UCI optical digits, embedded in the program (see `data/README.md` for where they are from).

use super::{
    Augmentation, DataSource, DatasetKind, ImageSet,
    dataset::DIGITS,
    error::{DataError, FormatError},
    images::{ImageShape, Images},
    random,
    records::{self, RecordFormat},
};
use crate::config::TrainConfig;
use chacha20::ChaCha8Rng;
use flate2::read::GzDecoder;
use rand::seq::SliceRandom;

const CONTENT: &[u8] = include_bytes!("../../data/digits.bin.gz");
const FORMAT: RecordFormat =
    RecordFormat { label_bytes: 1, shape: ImageShape { channels: 1, height: 8, width: 8 }, classes: 10 };
/// The largest value of a pixel in the file.
const WHITE: u16 = 16;
/// Test images of each class; 360 in all.
const TEST_PER_CLASS: usize = 36;
/// Validation images of each class; 180 in all.
const VALID_PER_CLASS: usize = 18;
/// Decides which the test images are, whatever the seed of a run.
const TEST_SEED: u64 = 0xd161_7505;

/// All 1,797 images, in the order of the file.
///
/// # Errors
/// If the embedded file is damaged.
pub fn all() -> Result<Images, DataError> {
    let mut images = records::parse(GzDecoder::new(CONTENT), FORMAT).map_err(embedded)?;
    for pixel in &mut images.pixels {
        *pixel = ((u16::from(*pixel).min(WHITE) * 255 + WHITE / 2) / WHITE) as u8;
    }
    Ok(images)
}

/// The UCI optical digits (8x8), embedded in the program.
#[derive(Clone, Copy, Debug)]
pub struct Digits;

impl DatasetKind for Digits {
    fn name(&self) -> &'static str {
        "digits"
    }

    fn flags(&self) -> &'static [&'static str] {
        &[]
    }

    fn settings(&self) -> TrainConfig {
        TrainConfig { epochs: 40, float_epochs: 20, batch_size: 32, ..TrainConfig::new(self.name()) }
    }

    fn augmentation(&self) -> Augmentation {
        Augmentation::new(1, false)
    }

    fn class_names(&self) -> Option<&'static [&'static str]> {
        Some(&DIGITS)
    }

    fn load(&self, source: &DataSource) -> Result<[ImageSet; 3], DataError> {
        let images = all()?;
        let indices: Vec<usize> = (0..images.len()).collect();
        // The test images are the same for every seed.
        let (test, rest) = take_per_class(&images, &indices, TEST_PER_CLASS, random::of_split(TEST_SEED));
        let (valid, train) = take_per_class(&images, &rest, VALID_PER_CLASS, random::of_split(source.seed));
        Ok([train, valid, test].map(|part| images.subset(&part).into()))
    }
}

/// `count` random indices of each class, and the others; both ascending.
fn take_per_class(
    images: &Images, indices: &[usize], count: usize, mut rng: ChaCha8Rng,
) -> (Vec<usize>, Vec<usize>) {
    let mut shuffled = indices.to_vec();
    shuffled.shuffle(&mut rng);
    let mut taken = vec![0; images.classes];
    let (mut these, mut others): (Vec<usize>, Vec<usize>) = shuffled.into_iter().partition(|&index| {
        let taken = &mut taken[usize::from(images.labels[index])];
        *taken += 1;
        *taken <= count
    });
    these.sort_unstable();
    others.sort_unstable();
    (these, others)
}

fn embedded(reason: FormatError) -> DataError {
    reason.in_file("digits.bin.gz (embedded)")
}
