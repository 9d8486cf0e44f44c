//! Mean and standard deviation of images, and what becomes of pixels.

use super::images::Images;
pub use dr_runtime::file::Normalization;

impl Images {
    /// Mean and deviation of these images. A channel of only one value has the standard deviation 1.
    #[must_use]
    pub fn normalization(&self) -> Normalization {
        let plane = self.shape.height * self.shape.width;
        let channels = 0..self.shape.channels;
        let (mean, std) = channels.map(|channel| moments(self, channel * plane, plane)).unzip();
        Normalization { mean, std }
    }
}

/// For each channel, what each of the 256 values of a pixel becomes.
#[cfg(feature = "program")]
pub(super) fn tables(normalization: &Normalization) -> Vec<[f32; 256]> {
    let table = |(&mean, &std): (&f32, &f32)| {
        std::array::from_fn(|value| ((value as f64 / 255.0 - f64::from(mean)) / f64::from(std)) as f32)
    };
    normalization.mean.iter().zip(&normalization.std).map(table).collect()
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
