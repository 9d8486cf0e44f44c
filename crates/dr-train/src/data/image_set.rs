//! [`ImageSet`]: labelled images, in memory or in files.

use super::error::DataError;
use super::folder::{FolderError, ImageFiles};
use super::images::{ImageShape, Images};
use super::noted::Noted;
use dr_runtime::file::Resize;
use std::ops::Range;
use std::sync::Arc;

/// Labelled images of one size. Clones share them.
#[derive(Clone, Debug)]
pub enum ImageSet {
    /// In memory, as bytes.
    Memory(Arc<Images>),
    /// In files, each read when it is wanted.
    Files(Arc<ImageFiles>),
}

impl ImageSet {
    /// The same images; those in files of this shape, and this part of each.
    ///
    /// # Errors
    /// Channels that images in files do not have.
    pub fn framed(&self, shape: ImageShape, resize: Resize) -> Result<Self, FolderError> {
        match self {
            Self::Memory(images) => Ok(images.clone().into()),
            Self::Files(files) => Ok(files.range(0..files.len()).framed(shape, resize)?.into()),
        }
    }

    /// What of a picture in a file becomes such an image: all of it where images are in memory, which are taken as they are.
    #[must_use]
    pub fn resize(&self) -> Resize {
        match self {
            Self::Memory(_) => Resize::Stretch,
            Self::Files(files) => files.resize,
        }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Memory(images) => images.len(),
            Self::Files(files) => files.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The size of each.
    #[must_use]
    pub fn shape(&self) -> ImageShape {
        match self {
            Self::Memory(images) => images.shape,
            Self::Files(files) => files.shape,
        }
    }

    /// Number of classes.
    #[must_use]
    pub fn classes(&self) -> usize {
        match self {
            Self::Memory(images) => images.classes,
            Self::Files(files) => files.classes.len(),
        }
    }

    /// The class of image `index`.
    ///
    /// # Panics
    /// If there is no such image.
    #[must_use]
    pub fn label(&self, index: usize) -> usize {
        match self {
            Self::Memory(images) => images.labels[index].into(),
            Self::Files(files) => files.files[index].1,
        }
    }

    /// Whether an image can be read.
    ///
    /// # Errors
    /// Files none of which can be read.
    pub fn check(&self) -> Result<(), DataError> {
        match self {
            Self::Memory(_) => Ok(()),
            Self::Files(files) => Ok(files.check()?),
        }
    }

    /// What is noted of files that are read.
    #[must_use]
    pub fn noted(&self) -> Noted {
        match self {
            Self::Memory(_) => Noted::default(),
            Self::Files(files) => files.noted.clone(),
        }
    }

    /// The images of a range.
    ///
    /// # Panics
    /// If there are no such images.
    #[must_use]
    pub fn range(&self, range: Range<usize>) -> Self {
        match self {
            Self::Memory(images) => images.range(range).into(),
            Self::Files(files) => files.range(range).into(),
        }
    }
}

impl From<Images> for ImageSet {
    fn from(images: Images) -> Self {
        Self::Memory(Arc::new(images))
    }
}

impl From<Arc<Images>> for ImageSet {
    fn from(images: Arc<Images>) -> Self {
        Self::Memory(images)
    }
}

impl From<ImageFiles> for ImageSet {
    fn from(files: ImageFiles) -> Self {
        Self::Files(Arc::new(files))
    }
}
