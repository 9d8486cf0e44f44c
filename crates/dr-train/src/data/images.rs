//! [`Images`]: labelled images in memory, as bytes.

use super::error::FormatError;
use std::ops::Range;

/// The size of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ImageShape {
    /// 1 for grey, 3 for red, green and blue.
    pub channels: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl ImageShape {
    /// Bytes of one image.
    #[must_use]
    pub const fn bytes(self) -> usize {
        self.channels * self.height * self.width
    }
}

/// Labelled images of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    /// `[n, c, h, w]`, 0 to 255.
    pub pixels: Vec<u8>,
    /// `[n]`, each less than `classes`.
    pub labels: Vec<u8>,
    /// The size of each.
    pub shape: ImageShape,
    /// Number of classes.
    pub classes: usize,
}

impl Images {
    /// Checks that pixels, labels, shape and classes fit together.
    ///
    /// # Errors
    /// If there are none, if the number of pixels is another than labels and shape say, or if a label is no class.
    pub fn new(
        pixels: Vec<u8>, labels: Vec<u8>, shape: ImageShape, classes: usize,
    ) -> Result<Self, FormatError> {
        if labels.is_empty() || shape.bytes() == 0 {
            return Err(FormatError::Empty);
        }
        let expected = labels.len().saturating_mul(shape.bytes());
        if pixels.len() != expected {
            return Err(FormatError::PixelCount { pixels: pixels.len(), labels: labels.len(), expected });
        }
        if let Some(index) = labels.iter().position(|&label| usize::from(label) >= classes) {
            return Err(FormatError::Label { index, found: labels[index], classes });
        }
        Ok(Self { pixels, labels, shape, classes })
    }

    /// Number of images.
    #[must_use]
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The pixels of image `index`, `[c, h, w]`.
    ///
    /// # Panics
    /// If there is no such image.
    #[must_use]
    pub fn image(&self, index: usize) -> &[u8] {
        let bytes = self.shape.bytes();
        &self.pixels[index * bytes..(index + 1) * bytes]
    }

    /// The images of these indices, in their order.
    ///
    /// # Panics
    /// If there is no such image.
    #[must_use]
    pub fn subset(&self, indices: &[usize]) -> Self {
        Self {
            pixels: indices.iter().flat_map(|&index| self.image(index)).copied().collect(),
            labels: indices.iter().map(|&index| self.labels[index]).collect(),
            ..*self
        }
    }

    /// The images of a range.
    ///
    /// # Panics
    /// If there are no such images.
    #[must_use]
    pub fn range(&self, range: Range<usize>) -> Self {
        let bytes = self.shape.bytes();
        Self {
            pixels: self.pixels[range.start * bytes..range.end * bytes].to_vec(),
            labels: self.labels[range].to_vec(),
            ..*self
        }
    }
}
