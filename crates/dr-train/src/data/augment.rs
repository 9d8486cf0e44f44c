//! [`Augmentation`]: random changes to training images that leave their class as it is.

use super::images::ImageShape;
use rand::{Rng, RngExt};

/// A random shift, with black coming in, and perhaps a reflection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Augmentation {
    /// The furthest shift in pixels, in each direction. The same as padding by so much and cropping at random.
    pub max_shift: u8,
    /// Whether every second image, on average, has left and right exchanged.
    pub flip: bool,
}

impl Augmentation {
    /// Writes a changed `image` to `out`, both `[c, h, w]`. The random numbers decide alone.
    ///
    /// # Panics
    /// If either has not the size that `shape` says.
    pub fn apply(self, image: &[u8], shape: ImageShape, rng: &mut impl Rng, out: &mut [u8]) {
        assert!(image.len() == shape.bytes() && out.len() == shape.bytes(), "an image of another size");
        let shift = i32::from(self.max_shift);
        let down = rng.random_range(-shift..=shift) as isize;
        let right = rng.random_range(-shift..=shift) as isize;
        let flip = self.flip && rng.random_bool(0.5);
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
    }
}
