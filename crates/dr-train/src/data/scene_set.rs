//! [`SceneSet`]: pictures with objects in them, in files, each read when it is wanted.

use super::ahead::read_all;
use super::coco::{Coco, CocoError, Object, Outline, Picture};
use super::decode::{DecodeError, Decoded, Frame, decode};
use super::folder::FolderError;
use super::normalization::{Moments, normalization};
use super::noted::Noted;
use super::{ClassError, ImageShape, Normalization};
use crate::config::Fit;
use crate::metrics::Rect;
use crate::note::note;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a folder has no scenes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SceneError {
    /// The annotations.
    #[error(transparent)]
    Coco(#[from] CocoError),
    /// A part without annotations.
    #[error(
        "`{}`: has no annotations of the {part} part in COCO's format: expected {}, or the same with {}",
        path.display(),
        annotation_files(names[0]).join(", "),
        names[1..].join(" or ")
    )]
    Missing {
        /// The folder of the dataset.
        path: PathBuf,
        /// What the images are for.
        part: &'static str,
        /// What the part may be called.
        names: &'static [&'static str],
    },
    /// Images that are nowhere.
    #[error("`{}`: the image `{image}` is neither in {}", path.display(), folders.join(" nor in "))]
    NoImages {
        /// The annotations.
        path: PathBuf,
        /// The first image.
        image: String,
        /// Where it was looked for.
        folders: Vec<String>,
    },
    /// An image that cannot be read, or of another size than the annotations say.
    #[error("`{}`: {reason}", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Images none of which can be read.
    #[error(transparent)]
    Unreadable(#[from] FolderError),
    /// More classes than there can be.
    #[error("`{}`: has {found} categories: expected at most {MOST_CLASSES}", path.display())]
    Categories {
        /// The file.
        path: PathBuf,
        /// How many.
        found: usize,
    },
    /// Classes of two parts that are not the same.
    #[error("`{}`: {error}, as in `{}` (in the order of their ids)", path.display(), other.display())]
    Classes {
        /// A part.
        path: PathBuf,
        /// The part to learn from.
        other: PathBuf,
        /// What differs.
        error: ClassError,
    },
    /// A part without images.
    #[error("`{}`: has no images: expected some", .0.display())]
    Empty(PathBuf),
    /// A part that cannot be divided.
    #[error("`{}`: has one image: expected at least two, one of them to choose the epoch by", .0.display())]
    Single(PathBuf),
    /// A part without objects.
    #[error("`{}`: has no objects in {images} images (crowds do not count): expected some", path.display())]
    NoObjects {
        /// The annotations.
        path: PathBuf,
        /// How many images.
        images: usize,
    },
}

/// A box and its class.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Labelled {
    /// Left, top, right, bottom, in pixels.
    pub rect: Rect,
    /// The class.
    pub class: usize,
}

/// The boxes of an image.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Boxes {
    /// Around the objects.
    pub objects: Vec<Labelled>,
    /// Around crowds: groups of objects that were not told apart, which need not be found and may be.
    pub crowds: Vec<Labelled>,
    /// Rows and columns of the image, from the first ones on, that show the picture.
    pub shown: [usize; 2],
}

impl Boxes {
    /// Those of the image with left and right of what it shows exchanged.
    #[must_use]
    pub fn reflected(self) -> Self {
        let width = self.shown[1] as f32;
        let reflected = |labelled: Labelled| {
            let [left, top, right, bottom] = labelled.rect;
            Labelled { rect: [width - right, top, width - left, bottom], ..labelled }
        };
        let all = |boxes: Vec<Labelled>| boxes.into_iter().map(reflected).collect();
        Self { objects: all(self.objects), crowds: all(self.crowds), ..self }
    }
}

/// Pictures with objects in them, and the images that they become. Clones share what is noted of their files.
#[derive(Clone, Debug)]
pub struct SceneSet {
    /// Rows and columns of every image; it has three channels.
    pub size: [usize; 2],
    /// How pictures become images.
    pub fit: Fit,
    /// The names of the classes.
    pub names: Vec<String>,
    /// The file with the annotations.
    pub path: PathBuf,
    /// What is noted of the files that are read.
    pub noted: Noted,
    /// Where the pictures are.
    folder: PathBuf,
    pictures: Vec<Arc<Picture>>,
}

/// Of scenes without a part to choose the epoch by, one of so many of those to learn from.
const VALIDATION: usize = 20;

/// What [`SceneSet::classes`] has for pixels that are neither right nor wrong.
pub const IGNORED: u8 = u8::MAX;

/// Of so many images one is to be there, which says where all are.
const SOUGHT: usize = 16;

/// A pixel has one of 254 classes, nothing, or is [`IGNORED`].
const MOST_CLASSES: usize = 254;

/// The names of the parts of a dataset in those of files and folders.
const PARTS: [(&str, &[&str]); 3] = [
    ("training", &["train", "train2017"]),
    ("validation", &["val", "val2017", "valid", "validation"]),
    ("test", &["test"]),
];

/// Where the annotations of a part can be, in the folder of the dataset: as COCO has them, beside the folders of images, or in them
/// (Roboflow, FiftyOne).
fn annotation_files(name: &str) -> [String; 7] {
    [
        format!("annotations/{name}.json"),
        format!("annotations/instances_{name}.json"),
        format!("{name}.json"),
        format!("instances_{name}.json"),
        format!("{name}/_annotations.coco.json"),
        format!("{name}/annotations.json"),
        format!("{name}/labels.json"),
    ]
}

/// Where the images of a part can be, in the folder of the dataset.
fn image_folders(name: &str) -> [String; 6] {
    [
        name.to_owned(),
        format!("images/{name}"),
        format!("{name}/images"),
        format!("{name}/data"),
        "images".to_owned(),
        String::new(),
    ]
}

impl SceneSet {
    /// Reads the parts of a dataset in COCO's format: `train`, `val` and `test`; where there is only one of the latter it is for the test, and a twentieth of
    /// `train`, evenly spread, for validation. Pictures become images of `size`, objects with them. Crowds are nothing to learn. No picture is read.
    ///
    /// # Errors
    /// Files that are missing, damaged or contradict each other.
    pub fn load(dir: &Path, size: [usize; 2], fit: Fit) -> Result<[Self; 3], SceneError> {
        let part = |(_, names): (&str, &[&str])| -> Result<Option<Self>, SceneError> {
            let files =
                names.iter().flat_map(|name| annotation_files(name).map(|file| (*name, dir.join(file))));
            let found = files.into_iter().find(|(_, file)| file.is_file());
            found.map(|(name, file)| Self::part(&file, dir, name, size, fit)).transpose()
        };
        let missing = |(part, names): (&'static str, &'static [&'static str])| SceneError::Missing {
            path: dir.into(),
            part,
            names,
        };
        let [train, valid, test] = PARTS;
        let train = part(train)?.ok_or_else(|| missing(train))?;
        let others = [part(valid)?, part(test)?];
        for other in others.iter().flatten() {
            ClassError::check(&other.names, &train.names).map_err(|error| SceneError::Classes {
                path: other.path.clone(),
                other: train.path.clone(),
                error,
            })?;
        }
        match others {
            [Some(valid), Some(test)] => Ok([train, valid, test]),
            [Some(test), None] | [None, Some(test)] => {
                let [train, valid] = train.hold_out(VALIDATION)?;
                Ok([train, valid, test])
            }
            [None, None] => Err(missing(valid)),
        }
    }

    /// The images less one of every `one_in`, at least one; and those.
    fn hold_out(self, one_in: usize) -> Result<[Self; 2], SceneError> {
        if self.is_empty() {
            return Err(SceneError::Empty(self.path));
        }
        let held = self.len().div_ceil(one_in);
        if held == self.len() {
            return Err(SceneError::Single(self.path));
        }
        let is_held = |index: &usize| (index + 1) * held / self.len() > index * held / self.len();
        let (these, others): (Vec<_>, Vec<_>) = (0..self.len()).partition(is_held);
        Ok([self.subset(&others), self.subset(&these)])
    }

    /// Whether there are objects in the pictures, and one of these can be read.
    ///
    /// # Errors
    /// There are no pictures, no objects in them, or none can.
    pub fn check(&self) -> Result<(), SceneError> {
        let mut objects = self.pictures.iter().flat_map(|picture| &picture.objects);
        if !self.is_empty() && objects.all(|object| object.crowd) {
            return Err(SceneError::NoObjects { path: self.path.clone(), images: self.len() });
        }
        self.check_readable()
    }

    /// Whether one of the pictures can be read.
    ///
    /// # Errors
    /// There are no pictures, or none can.
    pub fn check_readable(&self) -> Result<(), SceneError> {
        if self.is_empty() {
            return Err(SceneError::Empty(self.path.clone()));
        }
        let read = |index: usize| (self.file(index), self.decoded(index).map(drop));
        Ok(self.noted.check(|| self.folder.clone(), (0..self.len()).map(read))?)
    }

    /// The part with these annotations, whose images are in a folder of this name, or where [others](image_folders) have them.
    fn part(file: &Path, dir: &Path, name: &str, size: [usize; 2], fit: Fit) -> Result<Self, SceneError> {
        let coco = Coco::load(file)?;
        if let [first, ..] = coco.without_pixels[..] {
            let (left, all) =
                (coco.without_pixels.len(), coco.images.iter().map(|image| image.objects.len()));
            note(format_args!(
                "{}: left out {left} of {} boxes, which have no pixels of their images, such as annotation {first}",
                file.display(),
                left + all.sum::<usize>(),
            ));
        }
        let folders = image_folders(name).map(|folder| dir.join(folder));
        let images: &Path = match coco.images.first() {
            Some(first) => {
                let mut few = coco.images.iter().take(SOUGHT);
                let found = few
                    .find_map(|image| folders.iter().find(|folder| folder.join(&image.file_name).is_file()));
                found.ok_or_else(|| SceneError::NoImages {
                    path: file.into(),
                    image: first.file_name.clone(),
                    folders: folders.iter().map(|folder| format!("`{}`", folder.display())).collect(),
                })?
            }
            // Nothing is looked for there.
            None => dir,
        };
        if coco.categories.len() > MOST_CLASSES {
            return Err(SceneError::Categories { path: file.into(), found: coco.categories.len() });
        }
        let names = coco.categories.iter().map(|category| category.name.clone()).collect();
        let pictures = coco.images.into_iter().map(Arc::new).collect();
        let (path, folder, noted) = (file.to_owned(), images.to_owned(), Noted::default());
        Ok(Self { size, fit, names, path, noted, folder, pictures })
    }

    /// How many images there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pictures.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pictures.is_empty()
    }

    /// The first so many images.
    #[must_use]
    pub fn first(&self, count: usize) -> Self {
        self.subset(&(0..count.min(self.len())).collect::<Vec<_>>())
    }

    /// The images of these indices, in their order.
    fn subset(&self, indices: &[usize]) -> Self {
        Self { pictures: indices.iter().map(|&index| self.pictures[index].clone()).collect(), ..self.clone() }
    }

    /// The size of an image.
    #[must_use]
    pub const fn shape(&self) -> ImageShape {
        ImageShape { channels: 3, height: self.size[0], width: self.size[1] }
    }

    /// The mean and the deviation of the pictures' pixels, of at most 8,192 images, evenly spread.
    #[must_use]
    pub fn normalization(&self) -> Normalization {
        let (all, count) = (self.len(), self.len().min(MEASURED));
        let moments = |at: usize| {
            let index = at * all / count;
            let (pixels, [rows, columns]) = (self.read(index)?, self.frame(index).shown());
            let planes = pixels.chunks_exact(self.size[0] * self.size[1]);
            let mut moments = [Moments::default(); 3];
            for (moments, plane) in moments.iter_mut().zip(planes) {
                let lines = plane.chunks_exact(self.size[1]).take(rows);
                lines.for_each(|line| moments.include(&line[..columns]));
            }
            Some(moments)
        };
        let all = read_all(0..count, moments).into_iter();
        normalization(
            all.fold([Moments::default(); 3], |[r, g, b], [red, green, blue]| [r + red, g + green, b + blue]),
        )
    }

    /// The file of a picture.
    fn file(&self, index: usize) -> PathBuf {
        self.folder.join(&self.pictures[index].file_name)
    }

    /// The part of a picture that becomes an image.
    ///
    /// # Panics
    /// If there is no such image, as with all that is asked of one.
    #[must_use]
    pub fn frame(&self, index: usize) -> Frame {
        let &Picture { width, height, .. } = &*self.pictures[index];
        Frame::new([height, width], self.size, self.fit.into())
    }

    /// The image of a picture, `[3, rows, columns]`.
    fn decoded(&self, index: usize) -> Result<Vec<u8>, DecodeError> {
        let mut pixels = Vec::with_capacity(self.shape().bytes());
        let (file, expected) = (self.file(index), self.frame(index));
        let Decoded { frame, is_turned } = decode(&file, self.shape(), self.fit.into(), None, &mut pixels)?;
        if frame != expected {
            return Err(DecodeError::Size { found: frame.picture, expected: expected.picture });
        }
        if is_turned {
            self.noted.turn(&file);
        }
        Ok(pixels)
    }

    /// The image of a picture, `[3, rows, columns]`; `None` if it cannot be read, which is noted.
    pub(super) fn read(&self, index: usize) -> Option<Vec<u8>> {
        self.decoded(index).map_err(|error| self.noted.skip(&self.file(index), error)).ok()
    }

    /// The image of a picture, `[rows, columns, 3]`.
    ///
    /// # Errors
    /// A file that cannot be read, or whose picture has another size than the annotations say.
    pub fn picture(&self, index: usize) -> Result<Vec<u8>, SceneError> {
        let planes = self
            .decoded(index)
            .map_err(|error| SceneError::Image { path: self.file(index), reason: error.to_string() })?;
        let area = self.size[0] * self.size[1];
        Ok((0..area).flat_map(|i| [planes[i], planes[area + i], planes[2 * area + i]]).collect())
    }

    /// Exchanges left and right of what an image shows, in `[.., rows, columns]`.
    pub(super) fn reflect<T>(&self, index: usize, values: &mut [T]) {
        let [_, shown] = self.frame(index).shown();
        values.chunks_exact_mut(self.size[1]).for_each(|row| row[..shown].reverse());
    }

    /// The boxes of an image, in its pixels.
    #[must_use]
    pub fn boxes(&self, index: usize) -> Boxes {
        let frame = self.frame(index);
        let labelled = |object: &Object| {
            let [left, top, width, height] = object.bbox;
            let rect = frame.rect_in_image([left, top, left + width, top + height]);
            Labelled { rect, class: object.category }
        };
        let of = |crowd: bool| {
            let objects = self.pictures[index].objects.iter();
            objects.filter(|object| object.crowd == crowd).map(labelled).collect()
        };
        Boxes { objects: of(false), crowds: of(true), shown: frame.shown() }
    }

    /// The classes of an image's pixels, `[rows, columns]`: 0 where there is nothing, [`IGNORED`] where there is no picture, or a crowd and nothing else, else one more than the
    /// class of the object.
    #[must_use]
    pub fn classes(&self, index: usize) -> Vec<u8> {
        let picture = &self.pictures[index];
        let shown = self.frame(index).shown();
        let mut classes = vec![IGNORED; self.size[0] * self.size[1]];
        let lines = classes.chunks_exact_mut(self.size[1]).take(shown[0]);
        lines.for_each(|line| line[..shown[1]].fill(0));
        let (crowds, objects): (Vec<_>, Vec<_>) = picture.objects.iter().partition(|object| object.crowd);
        // Objects over crowds.
        for object in crowds.into_iter().chain(objects) {
            paint(object, [picture.height, picture.width], shown, &mut classes, self.size[1]);
        }
        classes
    }
}

/// Images that the mean and the deviation of pixels are of, at most.
const MEASURED: usize = 1 << 13;

/// Gives the pixels of an object its class, or [`IGNORED`]: those of its mask, or of its box if it has none. The picture is
/// `from` rows and columns, its image `to`, in lines of `line` pixels.
fn paint(object: &Object, from: [usize; 2], to: [usize; 2], classes: &mut [u8], line: usize) {
    let class = if object.crowd { IGNORED } else { (object.category + 1) as u8 };
    let [left, top, width, height] = object.bbox;
    let mask = object.outline.as_ref().map(Outline::mask);
    for row in 0..to[0] {
        for column in 0..to[1] {
            let [y, x] =
                [(row, 0), (column, 1)].map(|(at, axis)| (at * from[axis] + from[axis] / 2) / to[axis]);
            let inside = match &mask {
                Some(mask) => mask.pixels.get(y * mask.width + x).copied().unwrap_or(false),
                None => {
                    let (x, y) = (x as f32 + 0.5, y as f32 + 0.5);
                    x >= left && x < left + width && y >= top && y < top + height
                }
            };
            if inside {
                classes[row * line + column] = class;
            }
        }
    }
}
