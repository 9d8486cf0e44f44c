//! [`SceneSet`]: images with objects in them, and the loader that makes batches of them.

use super::coco::{Coco, CocoError, Object};
use super::decode::stretched;
use super::normalization::Pixels;
use super::{Batch, ClassError, Epochs, ImageShape, Images, Items, Loader, Normalization, Target};
use crate::metrics::Rect;
use crate::note::note;
use burn::tensor::{Device, Int, Tensor, TensorData};
use chacha20::ChaCha8Rng;
use rand::{RngExt, seq::SliceRandom};
use std::fmt::Debug;
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
    #[error("`{}`: has no images", .0.display())]
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

/// Images of one size with the objects in them, in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct SceneSet {
    /// Rows and columns of every image; it has three channels.
    pub size: [usize; 2],
    /// `[n, 3, rows, columns]`
    pub pixels: Vec<u8>,
    /// `[n, rows, columns]`: 0 where there is nothing, [`IN_CROWD`] where there is a crowd and nothing else, else one more than the class.
    pub classes: Vec<u8>,
    /// The objects of each image, in its pixels, without crowds.
    pub boxes: Vec<Vec<Labelled>>,
    /// Crowds of each image: groups of objects that were not told apart, which need not be found and may be.
    pub crowds: Vec<Vec<Labelled>>,
    /// The names of the classes.
    pub names: Vec<String>,
    /// The file with the annotations.
    pub path: PathBuf,
}

/// Of scenes without a part to choose the epoch by, one of so many of those to learn from.
const VALIDATION: usize = 20;

/// The pixels of [`SceneSet::classes`] that are neither right nor wrong.
pub const IN_CROWD: u8 = u8::MAX;

/// A mask's pixel says one of 254 classes, nothing, or [`IN_CROWD`].
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
    /// `train`, evenly spread, for validation. Images become `size`, objects with them. Crowds are nothing to learn.
    ///
    /// # Errors
    /// Files that are missing, damaged or contradict each other.
    pub fn load(dir: &Path, size: [usize; 2]) -> Result<[Self; 3], SceneError> {
        let part = |(_, names): (&str, &[&str])| -> Result<Option<Self>, SceneError> {
            let files =
                names.iter().flat_map(|name| annotation_files(name).map(|file| (*name, dir.join(file))));
            let found = files.into_iter().find(|(_, file)| file.is_file());
            found.map(|(name, file)| Self::read(&file, dir, name, size)).transpose()
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
        let held = self.len().div_ceil(one_in);
        if held == self.len() {
            return Err(SceneError::Single(self.path));
        }
        let is_held = |index: &usize| (index + 1) * held / self.len() > index * held / self.len();
        let (these, others): (Vec<_>, Vec<_>) = (0..self.len()).partition(is_held);
        Ok([self.subset(&others), self.subset(&these)])
    }

    /// Whether there are objects in the images.
    ///
    /// # Errors
    /// There are none.
    pub fn check(&self) -> Result<(), SceneError> {
        match self.boxes.iter().all(Vec::is_empty) {
            true => Err(SceneError::NoObjects { path: self.path.clone(), images: self.len() }),
            false => Ok(()),
        }
    }

    /// The part with these annotations, whose images are in a folder of this name, or where [others](image_folders) have them.
    fn read(file: &Path, dir: &Path, name: &str, size: [usize; 2]) -> Result<Self, SceneError> {
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
        let images = match coco.images.first() {
            Some(first) => {
                let found = folders.iter().find(|folder| folder.join(&first.file_name).is_file());
                found.ok_or_else(|| SceneError::NoImages {
                    path: file.into(),
                    image: first.file_name.clone(),
                    folders: folders.iter().map(|folder| format!("`{}`", folder.display())).collect(),
                })?
            }
            None => return Err(SceneError::Empty(file.into())),
        };
        if coco.categories.len() > MOST_CLASSES {
            return Err(SceneError::Categories { path: file.into(), found: coco.categories.len() });
        }
        let names = coco.categories.iter().map(|category| category.name.clone()).collect();
        let [rows, columns] = size;
        let path = file.to_owned();
        let mut set =
            Self { size, pixels: vec![], classes: vec![], boxes: vec![], crowds: vec![], names, path };
        for picture in &coco.images {
            let path = images.join(&picture.file_name);
            let shape = ImageShape { channels: 3, height: rows, width: columns };
            let found = stretched(&path, shape, &mut set.pixels)
                .map_err(|reason| SceneError::Image { path: path.clone(), reason: reason.to_string() })?;
            if found != [picture.height, picture.width] {
                let reason = format!(
                    "is {} x {} pixels, as it is to be seen: expected {} x {}, as the annotations say",
                    found[1], found[0], picture.width, picture.height
                );
                return Err(SceneError::Image { path, reason });
            }
            let scale = [columns as f32 / picture.width as f32, rows as f32 / picture.height as f32];
            let mut classes = vec![0u8; rows * columns];
            let (crowds, objects): (Vec<_>, Vec<_>) = picture.objects.iter().partition(|object| object.crowd);
            // Objects over crowds.
            for object in crowds.iter().chain(&objects) {
                paint(object, [picture.height, picture.width], size, &mut classes);
            }
            set.classes.extend(classes);
            let [boxes, crowds] =
                [objects, crowds].map(|of| of.into_iter().map(|object| labelled(object, scale)).collect());
            set.boxes.push(boxes);
            set.crowds.push(crowds);
        }
        Ok(set)
    }

    /// How many images there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.boxes.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.boxes.is_empty()
    }

    /// The first so many images.
    #[must_use]
    pub fn first(&self, count: usize) -> Self {
        self.subset(&(0..count.min(self.len())).collect::<Vec<_>>())
    }

    /// The images of these indices, in their order.
    fn subset(&self, indices: &[usize]) -> Self {
        let area = self.size[0] * self.size[1];
        let of = |values: &[u8], each: usize| -> Vec<u8> {
            indices.iter().flat_map(|&index| &values[index * each..][..each]).copied().collect()
        };
        Self {
            size: self.size,
            pixels: of(&self.pixels, 3 * area),
            classes: of(&self.classes, area),
            boxes: indices.iter().map(|&index| self.boxes[index].clone()).collect(),
            crowds: indices.iter().map(|&index| self.crowds[index].clone()).collect(),
            names: self.names.clone(),
            path: self.path.clone(),
        }
    }

    /// The size of an image.
    #[must_use]
    pub const fn shape(&self) -> ImageShape {
        ImageShape { channels: 3, height: self.size[0], width: self.size[1] }
    }

    /// The mean and the deviation of its pixels.
    #[must_use]
    pub fn normalization(&self) -> Normalization {
        let labels = vec![0; self.len()];
        Images { pixels: self.pixels.clone(), labels, shape: self.shape(), classes: 1 }.normalization()
    }

    /// The pixels of an image, `[rows, columns, 3]`.
    #[must_use]
    pub fn picture(&self, index: usize) -> Vec<u8> {
        let area = self.size[0] * self.size[1];
        let planes = &self.pixels[index * 3 * area..][..3 * area];
        (0..area).flat_map(|i| [planes[i], planes[area + i], planes[2 * area + i]]).collect()
    }
}

/// An object's box in an image that is `scale` times as large.
fn labelled(object: &Object, scale: [f32; 2]) -> Labelled {
    let [left, top, width, height] = object.bbox;
    let [x, y] = scale;
    Labelled { rect: [left * x, top * y, (left + width) * x, (top + height) * y], class: object.category }
}

/// Gives the pixels of an object its class, or [`IN_CROWD`]: those of its mask, or of its box if it has none.
fn paint(object: &Object, from: [usize; 2], to: [usize; 2], classes: &mut [u8]) {
    let class = if object.crowd { IN_CROWD } else { (object.category + 1) as u8 };
    let [left, top, width, height] = object.bbox;
    for row in 0..to[0] {
        for column in 0..to[1] {
            let [y, x] =
                [(row, 0), (column, 1)].map(|(at, axis)| (at * from[axis] + from[axis] / 2) / to[axis]);
            let inside = match &object.mask {
                Some(mask) => mask.pixels.get(y * mask.width + x).copied().unwrap_or(false),
                None => {
                    let (x, y) = (x as f32 + 0.5, y as f32 + 0.5);
                    x >= left && x < left + width && y >= top && y < top + height
                }
            };
            if inside {
                classes[row * to[1] + column] = class;
            }
        }
    }
}

/// What a network learns of scenes.
pub trait SceneTarget: Target {
    /// What there is to know besides the scenes.
    type Around: Clone + Debug + Send + Sync + 'static;

    /// Of these images, of which some are reflected.
    fn of(set: &SceneSet, items: &[(usize, bool)], around: &Self::Around, device: &Device) -> Self;
}

/// The classes of all pixels, `[n * rows * columns]`; crowds are nothing.
impl SceneTarget for Tensor<1, Int> {
    type Around = ();

    fn of(set: &SceneSet, items: &[(usize, bool)], (): &(), device: &Device) -> Self {
        let [rows, columns] = set.size;
        let mut classes: Vec<i32> = Vec::with_capacity(items.len() * rows * columns);
        for &(index, flip) in items {
            for row in set.classes[index * rows * columns..][..rows * columns].chunks_exact(columns) {
                let row = row.iter().map(|&class| if class == IN_CROWD { 0 } else { class.into() });
                if flip { classes.extend(row.rev()) } else { classes.extend(row) }
            }
        }
        Tensor::from_data(classes.as_slice(), device)
    }
}

/// Makes batches of scenes: shuffled and reflected at random for training, or in their order for evaluation.
pub type SceneLoader<T> = Loader<Scenes<T>>;

/// The images of a set, and whether they are reflected.
#[derive(Debug)]
pub struct Scenes<T: SceneTarget> {
    set: Arc<SceneSet>,
    pixels: Pixels,
    around: T::Around,
}

impl<T: SceneTarget> SceneLoader<T> {
    /// For training with a seed, or without one for evaluation.
    ///
    /// # Panics
    /// If `normalization` does not [fit](Normalization::fits) the images.
    #[must_use]
    pub fn new(
        set: Arc<SceneSet>, normalization: &Normalization, around: T::Around, batch_size: usize,
        seed: Option<u64>, device: Device,
    ) -> Self {
        assert!(normalization.fits(set.shape().channels), "{normalization:?} is not for {:?}", set.shape());
        let epochs = Epochs::new(set.len(), batch_size, seed).in_pairs();
        Self::of(Scenes { set, pixels: Pixels::new(normalization), around }, epochs, device)
    }
}

impl<T: SceneTarget> Items for Scenes<T> {
    type Input = Tensor<4>;
    type Target = T;
    type Item = (usize, bool);

    fn order(&self, random: Option<ChaCha8Rng>) -> Vec<(usize, bool)> {
        let mut items: Vec<(usize, bool)> = (0..self.set.len()).map(|index| (index, false)).collect();
        if let Some(mut random) = random {
            items.shuffle(&mut random);
            items.iter_mut().for_each(|(_, flip)| *flip = random.random_bool(0.5));
        }
        items
    }

    fn batch(&self, items: &[(usize, bool)], device: &Device) -> Batch<Tensor<4>, T> {
        let Self { set, pixels: of, around } = self;
        let [rows, columns] = set.size;
        let mut pixels: Vec<f32> = Vec::with_capacity(items.len() * 3 * rows * columns);
        for &(index, flip) in items {
            let image = &set.pixels[index * 3 * rows * columns..][..3 * rows * columns];
            for (plane, table) in of.channels(image) {
                for row in plane.chunks_exact(columns) {
                    let row = row.iter().map(|&pixel| table[usize::from(pixel)]);
                    if flip { pixels.extend(row.rev()) } else { pixels.extend(row) }
                }
            }
        }
        let input = Tensor::from_data(TensorData::new(pixels, [items.len(), 3, rows, columns]), device);
        Batch { input, labels: T::of(set, items, around, device) }
    }
}
