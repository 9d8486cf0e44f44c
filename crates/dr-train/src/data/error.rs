//! What can be wrong with a dataset; every message is one line.

#[cfg(feature = "program")]
use super::folder::FolderError;
use std::{io, path::PathBuf};

/// What is wrong with the content of one file.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// Reading or decompressing failed.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It ends too early.
    #[error("ends after {found} bytes of {part}, expected {expected}")]
    Truncated {
        /// Header, pixels or labels.
        part: &'static str,
        /// Bytes there are.
        found: u64,
        /// Bytes there should be.
        expected: u64,
    },
    /// It goes on after its end.
    #[error("goes on after the {expected} bytes of content that its header announces")]
    TooLong {
        /// Bytes there should be after the header.
        expected: u64,
    },
    /// It does not start as IDX files do.
    #[error("starts with {found:#010x}, expected {expected:#010x} (IDX, unsigned bytes, {rank} dimensions)")]
    Magic {
        /// The first four bytes, big endian.
        found: u32,
        /// What they should be.
        expected: u32,
        /// Number of dimensions expected.
        rank: usize,
    },
    /// More than any dataset read here has.
    #[error("has {found}, expected at most {limit} bytes of content")]
    TooLarge {
        /// What was found, in words.
        found: String,
        /// The largest content in bytes.
        limit: u64,
    },
    /// Images of another size.
    #[error("has images of {}x{} pixels, expected {}x{}", found[0], found[1], expected[0], expected[1])]
    ImageSize {
        /// Rows and columns found.
        found: [usize; 2],
        /// Rows and columns expected.
        expected: [usize; 2],
    },
    /// A class that does not exist.
    #[error("has label {found} for image {index}, expected less than {classes}")]
    Label {
        /// Which image, from 0.
        index: usize,
        /// Its label.
        found: u8,
        /// Number of classes.
        classes: usize,
    },
    /// Pixels and labels that do not fit together.
    #[error("has {pixels} bytes of pixels for {labels} labels, expected {expected}")]
    PixelCount {
        /// Bytes of pixels found.
        pixels: usize,
        /// Labels found.
        labels: usize,
        /// Bytes of pixels expected.
        expected: usize,
    },
    /// A last record that is cut off.
    #[error("has {found} bytes, expected a multiple of {record} (one image and its label)")]
    PartialRecord {
        /// Bytes in the file.
        found: usize,
        /// Bytes in a record.
        record: usize,
    },
    /// Nothing in it.
    #[error("has no images, expected at least one")]
    Empty,
}

/// A class that is called something else, or in another place, than expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("class {number} is {}: expected {}", shown(found), shown(expected))]
pub struct ClassError {
    /// Which class, from 0.
    pub number: usize,
    /// What it is called, if it is there.
    pub found: Option<String>,
    /// What it should be called, if it should be there.
    pub expected: Option<String>,
}

fn shown(name: &Option<String>) -> String {
    name.as_ref().map_or_else(|| "none".into(), |name| format!("`{name}`"))
}

impl ClassError {
    /// Whether classes are called as expected, in the same order.
    ///
    /// # Errors
    /// The first class that is not.
    pub fn check(found: &[String], expected: &[String]) -> Result<(), Self> {
        let mut numbers = 0..found.len().max(expected.len());
        match numbers.find(|&number| found.get(number) != expected.get(number)) {
            Some(number) => {
                let [found, expected] = [found, expected].map(|names| names.get(number).cloned());
                Err(Self { number, found, expected })
            }
            None => Ok(()),
        }
    }
}

/// Why a dataset cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// Images in colour, or in files.
    #[error("dataset {0}: expected one of grey images: digits, mnist or fashion-mnist")]
    NotGrey(&'static str),
    /// No images.
    #[error("dataset {0}: expected one of images with a class each")]
    NoImages(&'static str),
    /// Nobody said where it is.
    #[error("{dataset}: no directory given, expected --data-dir to name one with {file}; {hint}")]
    NoDirectory {
        /// The dataset.
        dataset: &'static str,
        /// A file it needs.
        file: String,
        /// Where to get it.
        hint: &'static str,
    },
    /// A file is not there.
    #[error("{dataset}: found no {file} in {searched}; {hint}")]
    Missing {
        /// The dataset.
        dataset: &'static str,
        /// The file, with its usual names.
        file: String,
        /// The directories it was expected in.
        searched: String,
        /// Where to get it.
        hint: &'static str,
    },
    /// A file's content is wrong.
    #[error("{}: {reason}", .file.display())]
    Format {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: FormatError,
    },
    /// Two files that do not belong together.
    #[error(
        "{}: has {labels} labels, expected {images} as in {}", .label_file.display(), .image_file.display()
    )]
    Counts {
        /// The file with the images.
        image_file: PathBuf,
        /// How many it has.
        images: usize,
        /// The file with the labels.
        label_file: PathBuf,
        /// How many it has.
        labels: usize,
    },
    /// Too few to have both training and validation images.
    #[error("{dataset}: has {found} training images, expected at least 2 (one is kept for validation)")]
    TooFew {
        /// The dataset.
        dataset: &'static str,
        /// Images found.
        found: usize,
    },
    /// A limit that cannot be met.
    #[error("{dataset}: a limit of {limit} training images, expected 1 to {available}")]
    Limit {
        /// The dataset.
        dataset: &'static str,
        /// The limit asked for.
        limit: usize,
        /// Training images without it.
        available: usize,
    },
    /// A folder that is no dataset.
    #[error(transparent)]
    #[cfg(feature = "program")]
    Folder(#[from] FolderError),
    /// The downloader failed.
    #[cfg(feature = "download")]
    #[error("{dataset}: download failed: {reason}")]
    Download {
        /// The dataset.
        dataset: &'static str,
        /// What the downloader said.
        reason: String,
    },
}

impl FormatError {
    /// Says which file it is about.
    #[cfg(feature = "program")]
    pub(super) fn in_file(self, file: impl Into<PathBuf>) -> DataError {
        DataError::Format { file: file.into(), reason: self }
    }
}
