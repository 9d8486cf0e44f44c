//! Why a dataset cannot be read or written.

use super::SIDE;
use super::masks::RunLengthError;
use crate::files::FileError;
use std::path::PathBuf;

/// Why a dataset cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CocoError {
    /// A file that cannot be read or written.
    #[error(transparent)]
    Io(#[from] FileError),
    /// A picture that cannot be written.
    #[error("`{}`: cannot be written: {source}", path.display())]
    Picture {
        /// The file.
        path: PathBuf,
        /// Why.
        source: image::ImageError,
    },
    /// Not JSON, or of other keys and types.
    #[error("`{}`: {source}: expected JSON with the images, annotations and categories of COCO", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Why, and in which line.
        source: serde_json::Error,
    },
    /// Content that does not fit together.
    #[error("`{}`: {problem}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: Problem,
    },
}

/// What is wrong with a dataset.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// Nothing that an object could be.
    #[error("has no categories: expected at least one")]
    NoCategories,
    /// Two of the same id.
    #[error("{what} {id}: is there more than once: expected an id of its own for each")]
    Duplicate {
        /// `image`, `category` or `annotation`.
        what: &'static str,
        /// Its id.
        id: u64,
    },
    /// The name of a file that might be outside the folder.
    #[error("image {id}: file name `{found}`: expected a path in the folder of the images, without `..`")]
    FileName {
        /// The image's id.
        id: u64,
        /// The name.
        found: String,
    },
    /// An image without pixels, or too large.
    #[error("image {id}: {width}x{height} pixels: expected sides of 1 to {SIDE}")]
    ImageSize {
        /// The image's id.
        id: u64,
        /// Columns.
        width: usize,
        /// Rows.
        height: usize,
    },
    /// Something of an annotation.
    #[error("annotation {id}: {fault}")]
    Annotation {
        /// The annotation's id; its place in the file, from 1 on, if it has none.
        id: u64,
        /// What is wrong.
        fault: Fault,
    },
}

/// What is wrong with an annotation.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// Of no image in the file.
    #[error("image {0}: expected the id of one of the images")]
    Image(u64),
    /// Of no category in the file.
    #[error("category {0}: expected the id of one of the categories")]
    Category(u64),
    /// An object to be written that has no category.
    #[error("category at position {found}: expected less than {categories}")]
    Position {
        /// The position.
        found: usize,
        /// How many categories there are.
        categories: usize,
    },
    /// A box with numbers that are none; or one to be written that has no pixels of its image.
    #[error("box {0:?}: expected left, top, width and height, finite, with pixels of the image")]
    Box([f32; 4]),
    /// Neither polygons nor run lengths.
    #[error("unknown kind of segmentation: expected a list of polygons, or `counts` and `size`")]
    Segmentation,
    /// A polygon of too few numbers, or of an odd number of them.
    #[error("polygon {index} of {found} numbers: expected x and y of each corner, at least 6 numbers")]
    Polygon {
        /// Which of the polygons.
        index: usize,
        /// How many numbers it has.
        found: usize,
    },
    /// A mask of another size than its image.
    #[error("mask of {}x{} pixels: expected {}x{} as the image has", found.0, found.1, expected.0, expected.1)]
    MaskSize {
        /// Columns and rows.
        found: (usize, usize),
        /// Those of the image.
        expected: (usize, usize),
    },
    /// Run lengths that are no mask.
    #[error(transparent)]
    RunLengths(#[from] RunLengthError),
}
