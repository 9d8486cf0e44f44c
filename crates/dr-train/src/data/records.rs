//! Files of equal records, each a label and an image: CIFAR's and the embedded digits.

use super::{
    error::FormatError,
    images::{ImageShape, Images},
};
use std::io::Read;

/// The largest content of a file that is read, in bytes.
pub(super) const LARGEST: u64 = 1 << 30;

/// What a record is made of.
#[derive(Clone, Copy, Debug)]
pub struct RecordFormat {
    /// Bytes before the pixels, at least 1; the last of them is the label.
    pub label_bytes: usize,
    /// The size of the images.
    pub shape: ImageShape,
    /// Number of classes.
    pub classes: usize,
}

/// Reads records up to the end.
///
/// # Errors
/// If reading fails, there is no record, the last is not complete, or a label is no class.
///
/// # Panics
/// If `format` has no label bytes.
pub fn parse(input: impl Read, format: RecordFormat) -> Result<Images, FormatError> {
    let mut content = Vec::new();
    input.take(LARGEST + 1).read_to_end(&mut content)?;
    if content.len() as u64 > LARGEST {
        return Err(FormatError::TooLarge { found: "more".into(), limit: LARGEST });
    }
    let record = format.label_bytes + format.shape.bytes();
    if content.is_empty() {
        return Err(FormatError::Empty);
    }
    if content.len() % record != 0 {
        return Err(FormatError::PartialRecord { found: content.len(), record });
    }
    let records = content.chunks_exact(record);
    let labels = records.clone().map(|record| record[format.label_bytes - 1]).collect();
    let pixels = records.flat_map(|record| &record[format.label_bytes..]).copied().collect();
    Images::new(pixels, labels, format.shape, format.classes)
}
