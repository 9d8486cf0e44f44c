//! Networks that say something about every part of an image: [`Segmenter`] and [`Detector`], both on a pyramid of features.

mod detector;
mod pyramid;
mod segmenter;

pub use detector::{BOX_OUTPUTS, Detector};
pub use segmenter::Segmenter;

/// Channels of each level of a pyramid, for so many of the first convolution.
const fn features(width: usize) -> usize {
    2 * width
}
