//! [`Normalization`]: mean and standard deviation of the training images.

use super::images::{ImageShape, Images};
use serde::{Deserialize, Serialize};

/// What is subtracted from pixels, and then divides them: per channel, of `pixel / 255`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalization {
    /// `[c]`, in 0 to 1.
    pub mean: Vec<f32>,
    /// `[c]`, above 0.
    pub std: Vec<f32>,
}

impl Normalization {
    /// That of these images. A channel of only one value has the standard deviation 1.
    #[must_use]
    pub fn of(images: &Images) -> Self {
        let plane = images.shape.height * images.shape.width;
        let (mean, std) =
            (0..images.shape.channels).map(|channel| moments(images, channel * plane, plane)).unzip();
        Self { mean, std }
    }

    /// That of ImageNet's training images, as trained networks for photographs expect it.
    #[must_use]
    pub fn imagenet() -> Self {
        Self { mean: vec![0.485, 0.456, 0.406], std: vec![0.229, 0.224, 0.225] }
    }

    /// Whether images of this shape can be normalised by it: one finite mean and one positive deviation a channel.
    #[must_use]
    pub fn fits(&self, shape: ImageShape) -> bool {
        self.mean.len() == shape.channels
            && self.std.len() == shape.channels
            && self.mean.iter().all(|mean| mean.is_finite())
            && self.std.iter().all(|&std| std.is_finite() && std > 0.0)
    }

    /// For each channel, what each of the 256 values of a pixel becomes.
    pub(super) fn tables(&self) -> Vec<[f32; 256]> {
        let table = |(&mean, &std): (&f32, &f32)| {
            std::array::from_fn(|value| ((value as f64 / 255.0 - f64::from(mean)) / f64::from(std)) as f32)
        };
        self.mean.iter().zip(&self.std).map(table).collect()
    }
}

/// Mean and standard deviation over `plane` bytes from `start` of every image, from exact sums.
fn moments(images: &Images, start: usize, plane: usize) -> (f32, f32) {
    let (mut sum, mut squares) = (0u64, 0u64);
    for image in images.pixels.chunks_exact(images.shape.bytes()) {
        for &pixel in &image[start..start + plane] {
            sum += u64::from(pixel);
            squares += u64::from(pixel) * u64::from(pixel);
        }
    }
    let count = (images.len() * plane).max(1) as u64;
    let spread = u128::from(count) * u128::from(squares) - u128::from(sum) * u128::from(sum);
    let std = if spread == 0 { 1.0 } else { (spread as f64).sqrt() / count as f64 / 255.0 };
    ((sum as f64 / count as f64 / 255.0) as f32, std as f32)
}
