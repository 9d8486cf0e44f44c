//! Images in a folder for each class.

use super::error::DataError;
use super::images::ImageShape;
use super::{DataSource, DatasetKind, ImageSet, random};
use crate::config::TrainConfig;
use crate::note::note;
use rand::seq::SliceRandom;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// A file and its class.
pub type LabelledFile = (PathBuf, usize);

/// Files of images with their classes.
#[derive(Debug)]
pub struct ImageFiles {
    /// Each with its class.
    pub files: Vec<LabelledFile>,
    /// What they are made into: 3 channels.
    pub shape: ImageShape,
    /// The names of the classes' folders, sorted.
    pub classes: Vec<String>,
    /// The files that could not be read, and why.
    skipped: Mutex<BTreeMap<PathBuf, String>>,
}

impl ImageFiles {
    fn new(files: Vec<LabelledFile>, shape: ImageShape, classes: Vec<String>) -> Self {
        Self { files, shape, classes, skipped: Mutex::default() }
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
    /// A folder that cannot be listed, or has no images.
    pub fn below(dir: &Path, side: usize) -> Result<Self, FolderError> {
        let (mut files, mut folders) = (vec![], vec![dir.to_owned()]);
        while let Some(folder) = folders.pop() {
            for path in list(&folder)? {
                // Links to folders may go in circles.
                if path.is_dir() && !path.is_symlink() {
                    folders.push(path);
                } else if is_image(&path) {
                    files.push((path, 0));
                }
            }
        }
        if files.is_empty() {
            return Err(FolderError::Empty(dir.into()));
        }
        files.sort_unstable();
        let shape = ImageShape { channels: 3, height: side, width: side };
        Ok(Self::new(files, shape, vec!["any".to_owned()]))
    }

    /// At most `count` of them, evenly spread.
    #[must_use]
    pub fn spread(&self, count: usize) -> Self {
        let (all, count) = (self.files.len(), count.min(self.files.len()));
        let files = (0..count).map(|at| self.files[at * all / count].clone()).collect();
        Self::new(files, self.shape, self.classes.clone())
    }

    /// The same files with other classes, of `count` that there are.
    ///
    /// # Panics
    /// If there is not one for each file.
    #[must_use]
    pub fn with_classes(&self, classes: &[usize], count: usize) -> Self {
        assert_eq!(classes.len(), self.files.len(), "a class for each file");
        let files = self.files.iter().zip(classes).map(|((path, _), &class)| (path.clone(), class));
        Self::new(files.collect(), self.shape, (0..count).map(|class| class.to_string()).collect())
    }

    /// The files of a range.
    pub(super) fn range(&self, range: Range<usize>) -> Self {
        Self::new(self.files[range].to_vec(), self.shape, self.classes.clone())
    }

    /// Notes a file that cannot be read, and says so the first time.
    pub(super) fn skip(&self, index: usize, reason: impl fmt::Display) {
        let path = &self.files[index].0;
        let mut skipped = self.skipped.lock().unwrap_or_else(PoisonError::into_inner);
        skipped.entry(path.clone()).or_insert_with(|| {
            let reason = reason.to_string();
            note(format_args!("skipped `{}`: {reason}", path.display()));
            reason
        });
    }

    /// The files that could not be read so far, and why.
    #[must_use]
    pub fn skipped(&self) -> BTreeMap<PathBuf, String> {
        self.skipped.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
    /// A class without images.
    #[error("`{}`: has no images: expected .jpg, .jpeg or .png files of the class", .0.display())]
    EmptyClass(PathBuf),
    /// A folder without images, at any depth.
    #[error("`{}`: has no images: expected .jpg, .jpeg or .png files", .0.display())]
    Empty(PathBuf),
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

    fn load(&self, source: &DataSource) -> Result<[ImageSet; 3], DataError> {
        let DataSource { data_dir, image_size, seed, .. } = *source;
        let hint = "it has a folder for each class, or `train` and `val` with those";
        let missing = || DataError::NoDirectory { dataset: self.name(), file: "images".into(), hint };
        Ok(parts(data_dir.ok_or_else(missing)?, image_size, seed)?.map(Into::into))
    }
}

/// Finds the images of a folder: with `train` and `val` (or `test`) inside, each of which has a folder for every class; or
/// with those at once, and then the seed decides which images are for testing. Nothing is read but names.
fn parts(dir: &Path, side: usize, seed: u64) -> Result<[ImageFiles; 3], DataError> {
    let shape = ImageShape { channels: 3, height: side, width: side };
    let rng = &mut random::of_split(seed);
    let train_dir = dir.join("train");
    let (classes, mut train, test) = if train_dir.is_dir() {
        let names = ["val", "test"].map(|name| dir.join(name));
        let test_dir = names.into_iter().find(|path| path.is_dir());
        let test_dir = test_dir.ok_or_else(|| FolderError::NoTest(dir.into()))?;
        let (classes, mut train) = class_folders(&train_dir)?;
        let (test_classes, test) = class_folders(&test_dir)?;
        same_classes((&train_dir, &classes), (&test_dir, &test_classes))?;
        train.shuffle(rng);
        (classes, train, test)
    } else {
        let (classes, mut train) = class_folders(dir)?;
        train.shuffle(rng);
        let test = train.split_off(train.len() - train.len().div_ceil(TEST));
        (classes, train, test)
    };
    let valid = train.split_off(train.len() - train.len().div_ceil(VALIDATION));
    Ok([train, valid, test].map(|files| ImageFiles::new(files, shape, classes.clone())))
}

fn same_classes(
    (a, a_classes): (&Path, &[String]), (b, b_classes): (&Path, &[String]),
) -> Result<(), FolderError> {
    let missing = |with: &Path, classes: &[String], without: &Path, others: &[String]| {
        let class = classes.iter().find(|class| others.binary_search(class).is_err())?.clone();
        Some(FolderError::MissingClass { class, with: with.into(), without: without.into() })
    };
    match missing(a, a_classes, b, b_classes).or_else(|| missing(b, b_classes, a, a_classes)) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// The classes' names, and all their images in the order of their names.
fn class_folders(dir: &Path) -> Result<(Vec<String>, Vec<LabelledFile>), FolderError> {
    let folders: Vec<PathBuf> = list(dir)?.into_iter().filter(|path| path.is_dir()).collect();
    if folders.len() < 2 {
        return Err(FolderError::Classes { path: dir.into(), found: folders.len() });
    }
    let (mut classes, mut files) = (vec![], vec![]);
    for (class, folder) in folders.into_iter().enumerate() {
        let before = files.len();
        files.extend(list(&folder)?.into_iter().filter(|path| is_image(path)).map(|path| (path, class)));
        if files.len() == before {
            return Err(FolderError::EmptyClass(folder));
        }
        classes.push(folder.file_name().unwrap_or_default().to_string_lossy().into_owned());
    }
    Ok((classes, files))
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
