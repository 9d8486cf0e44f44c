//! Networks that say something about every part of an image: [`Segmenter`] and [`Detector`], both on a pyramid of features.

mod detector;
mod pyramid;
mod segmenter;

pub use detector::{BOX_OUTPUTS, Detector};
pub use segmenter::Segmenter;

use super::architecture::Architecture;
use crate::config::ModelKind;

/// Configuration of [`Segmenter`] and [`Detector`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DenseConfig {
    /// The residual network that the pyramid stands on.
    pub kind: ModelKind,
    /// Channels that its first convolution makes; all others are in proportion.
    pub width: usize,
    /// Channels of an image.
    pub channels: usize,
    /// Classes; of a segmentation with the background.
    pub classes: usize,
}

impl DenseConfig {
    /// Elements of the network's largest weight, or less.
    ///
    /// # Panics
    /// If the network is no residual network for images.
    #[must_use]
    pub fn largest_weight(&self) -> usize {
        Architecture::new(self.kind, self.width).largest_weight(self.channels, 1)
    }
}

/// Channels of each level of a pyramid, for so many of the first convolution.
const fn features(width: usize) -> usize {
    2 * width
}
