//! Images in a folder for each class.

use super::decode::check;
use super::error::DataError;
use super::images::ImageShape;
use super::{Augmentation, DataSource, DatasetKind, ImageSet, Noted, random};
use crate::config::{ImageSize, TrainConfig};
use dr_runtime::file::Resize;
use rand::seq::SliceRandom;
use rayon::prelude::*;
use std::ffi::OsStr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A file and its class.
pub type LabelledFile = (PathBuf, usize);

/// Files of images with their classes.
#[derive(Debug)]
pub struct ImageFiles {
    /// Each with its class.
    pub files: Vec<LabelledFile>,
    /// What they are made into: 3 channels, or a grey one.
    pub shape: ImageShape,
    /// What of each that is, but in training.
    pub resize: Resize,
    /// Where they were looked for.
    pub source: Arc<Folders>,
    /// The names of the classes' folders, sorted.
    pub classes: Vec<String>,
    /// What is noted of those that are read.
    pub noted: Noted,
}

/// A folder where images were looked for.
#[derive(Debug, PartialEq, Eq)]
pub struct Folders {
    /// It has the folders of the classes.
    pub path: PathBuf,
    /// Files and folders that are no images by their names, nor what images are looked for in.
    pub ignored: Vec<PathBuf>,
}

impl ImageFiles {
    fn new(files: Vec<LabelledFile>, shape: ImageShape, source: Arc<Folders>, classes: Vec<String>) -> Self {
        Self { files, shape, resize: Resize::default(), source, classes, noted: Noted::default() }
    }

    /// The same files as images of another shape, or of another part of each.
    ///
    /// # Errors
    /// Channels that images in files do not have.
    pub fn framed(self, shape: ImageShape, resize: Resize) -> Result<Self, FolderError> {
        match shape.channels {
            1 | 3 => Ok(Self { shape, resize, ..self }),
            found => Err(FolderError::Channels(found)),
        }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// All images below a folder, in the order of their paths; none has a class that is known, so all have the same.
    ///
    /// # Errors
    /// A folder that cannot be listed, or has no images; channels that images in files do not have.
    pub fn below(dir: &Path, shape: ImageShape, resize: Resize) -> Result<Self, FolderError> {
        let (mut files, mut ignored, mut folders) = (vec![], vec![], vec![dir.to_owned()]);
        while let Some(folder) = folders.pop() {
            for path in list(&folder)? {
                // Links to folders may go in circles.
                if path.is_dir() && !path.is_symlink() {
                    folders.push(path);
                } else if is_image(&path) {
                    files.push((path, 0));
                } else {
                    ignored.push(path);
                }
            }
        }
        if files.is_empty() {
            return Err(FolderError::Empty(dir.into()));
        }
        files.sort_unstable();
        let source = Arc::new(Folders { path: dir.into(), ignored });
        Self::new(files, shape, source, vec!["any".to_owned()]).framed(shape, resize)
    }

    /// At most `count` of them, evenly spread.
    #[must_use]
    pub fn spread(&self, count: usize) -> Self {
        let (all, count) = (self.files.len(), count.min(self.files.len()));
        let files = (0..count).map(|at| self.files[at * all / count].clone()).collect();
        self.with(files, self.classes.clone())
    }

    /// Others of such files.
    fn with(&self, files: Vec<LabelledFile>, classes: Vec<String>) -> Self {
        Self { resize: self.resize, ..Self::new(files, self.shape, self.source.clone(), classes) }
    }

    /// The same files with other classes, of `count` that there are.
    ///
    /// # Panics
    /// If there is not one for each file.
    #[must_use]
    pub fn with_classes(&self, classes: &[usize], count: usize) -> Self {
        assert_eq!(classes.len(), self.files.len(), "a class for each file");
        let files = self.files.iter().zip(classes).map(|((path, _), &class)| (path.clone(), class));
        self.with(files.collect(), (0..count).map(|class| class.to_string()).collect())
    }

    /// The files of a range.
    pub(super) fn range(&self, range: Range<usize>) -> Self {
        self.with(self.files[range].to_vec(), self.classes.clone())
    }

    /// Whether there is something to learn of each class: a file that can be read. With `every`, classes without files are wrong, too.
    ///
    /// # Errors
    /// The first class of which there is nothing.
    pub fn check_classes(&self, every: bool) -> Result<(), FolderError> {
        let check = |class: usize| {
            let files = || (0..self.len()).filter(move |&index| self.files[index].1 == class);
            let folder = || self.source.path.join(&self.classes[class]);
            match files().next() {
                None if every => Err(FolderError::NothingToLearn(folder())),
                None => Ok(()),
                Some(_) => self.check_readable(files(), folder),
            }
        };
        (0..self.classes.len()).into_par_iter().try_for_each(check)
    }

    /// The classes of which there is no file that can be read; those that cannot are noted.
    #[must_use]
    pub fn missing_classes(&self) -> Vec<usize> {
        let is_missing = |&class: &usize| {
            let files = (0..self.len()).filter(|&index| self.files[index].1 == class);
            self.check_readable(files, PathBuf::new).is_err()
        };
        (0..self.classes.len()).into_par_iter().filter(is_missing).collect()
    }

    /// Whether one of some files can be read; those before it cannot, and are noted.
    fn check_readable(
        &self, files: impl Iterator<Item = usize>, folder: impl Fn() -> PathBuf,
    ) -> Result<(), FolderError> {
        let read = |index: usize| (self.files[index].0.clone(), check(&self.files[index].0));
        self.noted.check(folder, files.map(read))
    }

    /// Whether one of the files can be read.
    ///
    /// # Errors
    /// None can.
    pub fn check(&self) -> Result<(), FolderError> {
        self.check_readable(0..self.len(), || self.source.path.clone())
    }
}

/// Why a folder is no dataset.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// It cannot be listed.
    #[error("`{}`: cannot be listed: {source}", path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No folders in it.
    #[error("`{}`: has {found} folders: expected one for each class, at least two", path.display())]
    Classes {
        /// The folder.
        path: PathBuf,
        /// How many it has.
        found: usize,
    },
    /// A class without images to learn from.
    #[error("`{}`: has no images to learn from: expected .jpg, .jpeg or .png files of the class", .0.display())]
    NothingToLearn(PathBuf),
    /// Images none of which can be read.
    #[error(
        "`{}`: none of {files} images can be read, such as `{}`: {reason}: expected one at least",
        folder.display(), path.display()
    )]
    Unreadable {
        /// Where they are.
        folder: PathBuf,
        /// How many there are.
        files: usize,
        /// One of them.
        path: PathBuf,
        /// Why it cannot be read.
        reason: String,
    },
    /// A folder without images, at any depth.
    #[error("`{}`: has no images: expected .jpg, .jpeg or .png files", .0.display())]
    Empty(PathBuf),
    /// Channels of a network.
    #[error(
        "images, for {0} channels: expected a network of 1 or 3 (ONNX files with the channels last: --layout nhwc)"
    )]
    Channels(usize),
    /// A class that only one of two folders has.
    #[error("`{}`: has no class `{class}`: expected the classes of `{}`", without.display(), with.display())]
    MissingClass {
        /// The class.
        class: String,
        /// The folder that has it.
        with: PathBuf,
        /// The folder that does not.
        without: PathBuf,
    },
    /// Training images without test images.
    #[error("`{}`: has `train` but neither `val` nor `test`: expected one of them", .0.display())]
    NoTest(PathBuf),
}

/// One of so many training images is for validation, and of a folder without parts one of so many for testing.
const VALIDATION: usize = 20;
const TEST: usize = 5;

/// JPEG and PNG files in a folder for each class.
#[derive(Clone, Copy, Debug)]
pub struct Folder;

impl DatasetKind for Folder {
    fn name(&self) -> &'static str {
        "folder"
    }

    fn settings(&self) -> TrainConfig {
        let model = "resnet18".to_owned();
        TrainConfig { model, epochs: 30, float_epochs: 30, ..TrainConfig::new(self.name()) }
    }

    fn augmentation(&self) -> Augmentation {
        Augmentation::of_files()
    }

    fn load(&self, source: &DataSource) -> Result<[ImageSet; 3], DataError> {
        let DataSource { data_dir, image_size, seed, .. } = *source;
        let hint = "it has a folder for each class, or `train`, `val` and `test` with those";
        let missing = || DataError::NoDirectory { dataset: self.name(), file: "images".into(), hint };
        Ok(parts(data_dir.ok_or_else(missing)?, image_size, seed)?.map(Into::into))
    }
}

/// Finds the images of a folder: with `train` and `val` and `test`, or one of these two, inside, each of which has a folder for every class; or
/// with those at once. What there is no part for is held out, as the seed decides. Nothing is read but names.
fn parts(dir: &Path, size: ImageSize, seed: u64) -> Result<[ImageFiles; 3], DataError> {
    let shape = ImageShape { channels: 3, height: size.rows, width: size.columns };
    let rng = &mut random::of_split(seed);
    let [train_dir, valid_dir, test_dir] = ["train", "val", "test"].map(|name| dir.join(name));
    let is_divided = train_dir.is_dir() && !is_class(&train_dir)?;
    let mut train = Classes::of(if is_divided { &train_dir } else { dir })?;
    train.files.shuffle(rng);
    let part = |dir: &Path| -> Result<Option<Classes>, FolderError> {
        if !is_divided || !dir.is_dir() {
            return Ok(None);
        }
        if list(dir)?.is_empty() {
            return Ok(Some(train.none_in(dir)));
        }
        let part = Classes::of(dir)?;
        same_classes(&train, &part)?;
        Ok(Some(part))
    };
    let [valid, test] = match [part(&valid_dir)?, part(&test_dir)?] {
        [None, None] if is_divided => return Err(FolderError::NoTest(dir.into()).into()),
        [None, None] => {
            let test = train.hold_out(TEST);
            [train.hold_out(VALIDATION), test]
        }
        [Some(valid), Some(test)] => [valid, test],
        [Some(test), None] | [None, Some(test)] => [train.hold_out(VALIDATION), test],
    };
    let images = |Classes { source, names, files }: Classes| ImageFiles::new(files, shape, source, names);
    Ok([train, valid, test].map(images))
}

/// Whether a folder has images and no folders.
fn is_class(dir: &Path) -> Result<bool, FolderError> {
    let paths = list(dir)?;
    Ok(paths.iter().any(|path| is_image(path)) && !paths.iter().any(|path| path.is_dir()))
}

/// The folders of classes.
struct Classes {
    source: Arc<Folders>,
    names: Vec<String>,
    files: Vec<LabelledFile>,
}

impl Classes {
    /// The folders in a folder, and all their images in the order of their names.
    fn of(dir: &Path) -> Result<Self, FolderError> {
        let (folders, mut ignored): (Vec<_>, Vec<_>) = list(dir)?.into_iter().partition(|path| path.is_dir());
        if folders.len() < 2 {
            return Err(FolderError::Classes { path: dir.into(), found: folders.len() });
        }
        let (mut names, mut files) = (vec![], vec![]);
        for (class, folder) in folders.into_iter().enumerate() {
            let (images, others): (Vec<_>, Vec<_>) =
                list(&folder)?.into_iter().partition(|path| is_image(path));
            files.extend(images.into_iter().map(|path| (path, class)));
            ignored.extend(others);
            names.push(folder.file_name().unwrap_or_default().to_string_lossy().into_owned());
        }
        Ok(Self { source: Arc::new(Folders { path: dir.into(), ignored }), names, files })
    }

    /// The same classes in an empty folder: no image.
    fn none_in(&self, dir: &Path) -> Self {
        let source = Arc::new(Folders { path: dir.into(), ignored: vec![] });
        Self { source, names: self.names.clone(), files: vec![] }
    }

    /// Splits off the last of every `one_in` images, at least one.
    fn hold_out(&mut self, one_in: usize) -> Self {
        let files = self.files.split_off(self.files.len() - self.files.len().div_ceil(one_in));
        Self { source: self.source.clone(), names: self.names.clone(), files }
    }
}

fn same_classes(a: &Classes, b: &Classes) -> Result<(), FolderError> {
    let missing = |with: &Classes, without: &Classes| {
        let class = with.names.iter().find(|class| without.names.binary_search(class).is_err())?.clone();
        let [with, without] = [with, without].map(|classes| classes.source.path.clone());
        Some(FolderError::MissingClass { class, with, without })
    };
    missing(a, b).or_else(|| missing(b, a)).map_or(Ok(()), Err)
}

/// What is in a folder, sorted by name, without hidden files.
fn list(dir: &Path) -> Result<Vec<PathBuf>, FolderError> {
    let entries = std::fs::read_dir(dir).and_then(|entries| entries.collect::<Result<Vec<_>, _>>());
    let entries = entries.map_err(|source| FolderError::Io { path: dir.into(), source })?;
    let visible = |path: &PathBuf| !path.file_name().unwrap_or_default().as_encoded_bytes().starts_with(b".");
    let mut paths: Vec<_> = entries.into_iter().map(|entry| entry.path()).filter(visible).collect();
    paths.sort_unstable();
    Ok(paths)
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().and_then(OsStr::to_str).unwrap_or_default();
    ["jpg", "jpeg", "png"].iter().any(|known| extension.eq_ignore_ascii_case(known)) && !path.is_dir()
}
