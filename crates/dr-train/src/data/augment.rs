//! [`Augmentation`]: random changes to training images that leave their class as it is, and mixtures of them.

use super::images::ImageShape;
use super::operations::Operation;
use crate::config::Changes;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, RngExt};

/// Random changes to training images, and what is learned of them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Augmentation {
    /// The furthest shift in pixels, in each direction, of images in memory that are cropped, with black coming in. The same as
    /// padding by so much and cropping at random.
    pub max_shift: u8,
    /// What is changed.
    pub changes: Changes,
    /// Mixtures of two images (mixup, arXiv:1710.09412): their parts are drawn from a beta distribution with both
    /// parameters of this value; 0 is no mixtures.
    pub mixup: f64,
    /// The part of the probability that is spread over all classes.
    pub label_smoothing: f64,
}

impl Augmentation {
    /// Shifts by so many pixels, and perhaps reflections.
    #[must_use]
    pub fn new(max_shift: u8, flip: bool) -> Self {
        let changes = Changes { crop: max_shift > 0, flip, ..Changes::default() };
        Self { max_shift, changes, ..Self::default() }
    }

    /// What pictures in files are usually changed by: another part, perhaps reflected.
    #[must_use]
    pub fn of_files() -> Self {
        Self { changes: Changes { crop: true, flip: true, ..Changes::default() }, ..Self::default() }
    }

    /// The same with other changes to images of a size: an eighth of the shorter side is the furthest shift where there was none.
    #[must_use]
    pub fn with_changes(self, changes: Changes, shape: ImageShape) -> Self {
        let usual = (shape.height.min(shape.width) / 8).clamp(1, u8::MAX.into()) as u8;
        Self { max_shift: if self.max_shift == 0 { usual } else { self.max_shift }, changes, ..self }
    }

    /// Writes a changed `image` to `out`, both `[c, h, w]`. The random numbers decide alone.
    ///
    /// # Panics
    /// If either has not the size that `shape` says.
    pub fn apply(&self, image: &[u8], shape: ImageShape, rng: &mut impl Rng, out: &mut [u8]) {
        assert!(image.len() == shape.bytes() && out.len() == shape.bytes(), "an image of another size");
        let shift = if self.changes.crop { i32::from(self.max_shift) } else { 0 };
        let down = rng.random_range(-shift..=shift) as isize;
        let right = rng.random_range(-shift..=shift) as isize;
        let flip = self.changes.flip && rng.random_bool(0.5);
        let rows = out.chunks_exact_mut(shape.width).enumerate();
        for (row, out_row) in rows {
            let (channel, y) = (row / shape.height, row % shape.height);
            let source_row = y.checked_add_signed(-down).filter(|&y| y < shape.height).map(|y| {
                let start = (channel * shape.height + y) * shape.width;
                &image[start..start + shape.width]
            });
            for (x, pixel) in out_row.iter_mut().enumerate() {
                let x = if flip { shape.width - 1 - x } else { x };
                let source = x.checked_add_signed(-right);
                *pixel = source.and_then(|x| source_row?.get(x).copied()).unwrap_or(0);
            }
        }
        self.recolour(out, shape, rng);
    }

    /// Changes an image, `[c, h, w]`, as far as that has nothing to do with the part of a picture that it is: its colours, and the
    /// operations of RandAugment.
    pub(super) fn recolour(&self, image: &mut [u8], shape: ImageShape, rng: &mut impl Rng) {
        if self.changes.colour {
            let mut operations = [Operation::Brightness, Operation::Contrast, Operation::Colour];
            operations.shuffle(rng);
            for operation in operations {
                let factor = rng.random_range(1.0 - JITTER..=1.0 + JITTER);
                operation.blend(factor as f32, image, shape);
            }
        }
        if let Some(magnitude) = self.changes.rand {
            let strength = f64::from(magnitude) / f64::from(Changes::LARGEST);
            for _ in 0..OPERATIONS {
                let operation = Operation::ALL.choose(rng).unwrap_or(&Operation::Identity);
                let sign = if rng.random_bool(0.5) { 1.0 } else { -1.0 };
                operation.apply(sign * strength, image, shape);
            }
        }
    }
}

/// Brightness, contrast and saturation change by at most so much.
const JITTER: f64 = 0.4;

/// Operations of RandAugment on an image.
const OPERATIONS: usize = 2;
