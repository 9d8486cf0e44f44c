//! From an image file to pixels of the network's size.

use super::images::ImageShape;
use super::normalization::{Normalization, Pixels};
use crate::config::Changes;
use crate::metrics::Rect;
use dr_runtime::file::Resize;
use dr_runtime::read_file;
use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeError, ResizeOptions, Resizer};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, RgbImage};
use rand::{Rng, RngExt};
use std::io::Cursor;
use std::path::Path;

/// Why a file gives no pixels.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DecodeError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Resize(#[from] ResizeError),
    #[error("the file is cut off: expected a JPEG image up to its end")]
    Cut,
    #[error("is {} x {} pixels, as it is to be seen: expected {} x {}, as the annotations say", found[1], found[0], expected[1], expected[0])]
    Size { found: [usize; 2], expected: [usize; 2] },
    #[error("{0} x {1} pixels: expected at least one")]
    Empty(u32, u32),
    #[error("an image made {0} x {1} pixels: expected fewer")]
    Large(usize, usize),
    #[error(
        "an image, for {0} channels: expected a network of 1 or 3 (ONNX files with the channels last: --layout nhwc)"
    )]
    Channels(usize),
}

/// What is cut out of an image: left, top, width and height, in pixels. It may go on beyond the right and the lower end.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cut([f64; 4]);

/// The part of a picture that became an image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Frame {
    /// Rows and columns of the picture.
    pub picture: [usize; 2],
    /// Rows and columns of the image.
    pub image: [usize; 2],
    part: Cut,
}

impl Frame {
    /// That of an image which is the picture.
    #[must_use]
    pub const fn whole(size: [usize; 2]) -> Self {
        let [rows, columns] = size;
        Self { picture: size, image: size, part: Cut([0.0, 0.0, columns as f64, rows as f64]) }
    }

    /// What `resize` says of a picture of these rows and columns that becomes an image of these.
    #[must_use]
    pub(super) fn new(picture: [usize; 2], image: [usize; 2], resize: Resize) -> Self {
        Self { picture, image, part: Cut::new(picture, image, resize) }
    }

    /// Rows and columns of the image, from the first ones on, that show the picture.
    #[must_use]
    pub fn shown(&self) -> [usize; 2] {
        let Cut([left, top, width, height]) = self.part;
        let [rows, columns] = self.image;
        let shown = |from: f64, len: f64, picture: usize, image: usize| {
            (((picture as f64 - from) * image as f64 / len).round() as usize).min(image)
        };
        [shown(top, height, self.picture[0], rows), shown(left, width, self.picture[1], columns)]
    }

    /// A box of the picture, left, top, right and bottom, in the image.
    #[must_use]
    pub fn rect_in_image(&self, rect: Rect) -> Rect {
        let Cut([left, top, width, height]) = self.part;
        let [rows, columns] = self.image;
        let x = |x: f32| (x - left as f32) * (columns as f32 / width as f32);
        let y = |y: f32| (y - top as f32) * (rows as f32 / height as f32);
        [x(rect[0]), y(rect[1]), x(rect[2]), y(rect[3])]
    }

    /// A box of the image, left, top, right and bottom, in the picture.
    #[must_use]
    pub fn rect(&self, rect: Rect) -> Rect {
        let (Cut([left, top, width, height]), [rows, columns]) =
            (self.part, self.image.map(|size| size as f64));
        let x = |x: f32| (left + f64::from(x) * width / columns) as f32;
        let y = |y: f32| (top + f64::from(y) * height / rows) as f32;
        [x(rect[0]), y(rect[1]), x(rect[2]), y(rect[3])]
    }

    /// What pixels of the image have, `[rows, columns]`, for those of the picture, each of which has what the pixel of the image has that it is
    /// in; `outside` for pixels that are in none.
    ///
    /// # Panics
    /// If there is not one value for each pixel of the image.
    #[must_use]
    pub fn pixels<T: Copy>(&self, image: &[T], outside: T) -> Vec<T> {
        let (Cut([left, top, width, height]), [rows, columns]) = (self.part, self.image);
        let inside = |at: usize, from: f64, len: f64, count: usize| {
            let place = (at as f64 + 0.5 - from) * count as f64 / len;
            (0.0..count as f64).contains(&place).then_some(place as usize)
        };
        let [height_of_picture, width_of_picture] = self.picture;
        let across: Vec<_> = (0..width_of_picture).map(|x| inside(x, left, width, columns)).collect();
        let row = |y: usize| {
            let row = inside(y, top, height, rows);
            across.iter().map(move |column| {
                row.zip(*column).map_or(outside, |(row, column)| image[row * columns + column])
            })
        };
        (0..height_of_picture).flat_map(row).collect()
    }
}

/// What was made of a picture.
pub(super) struct Decoded {
    pub frame: Frame,
    /// Whether it was turned first, as its EXIF says.
    pub is_turned: bool,
}

/// Larger images are not read: a file of some kilobytes can ask for gigabytes.
const LARGEST_SIDE: u32 = 1 << 15;
const LARGEST_BYTES: u64 = 1 << 29;

/// Reads an image and makes it `shape`, `[c, h, w]` written to the end of `out`, grey if that has one channel: what `resize` says, or if the changes are to crop
/// a random part of random shape (Szegedy et al., arXiv:1409.4842, section 6); and reflected every second time if they are to flip. The
/// result says which part that is.
pub(super) fn decode(
    path: &Path, shape: ImageShape, resize: Resize, random: Option<(Changes, &mut dyn Rng)>,
    out: &mut Vec<u8>,
) -> Result<Decoded, DecodeError> {
    if !matches!(shape.channels, 1 | 3) {
        return Err(DecodeError::Channels(shape.channels));
    }
    let (image, is_turned) = read(path)?;
    let (width, height) = image.dimensions();
    let picture = [height as usize, width as usize];
    let whole = || Cut::new(picture, [shape.height, shape.width], resize);
    let (cut, flip) = match random {
        Some((changes, rng)) => {
            let cut = if changes.crop { Cut::random(width, height, shape, rng) } else { whole() };
            (cut, changes.flip && rng.random_bool(0.5))
        }
        None => (whole(), false),
    };
    let frame = Frame { picture, image: [shape.height, shape.width], part: cut };
    let pixels = resized(&image, &frame)?;
    let mut plane = |value: &dyn Fn(&[u8]) -> u8| {
        for row in pixels.chunks_exact(3 * shape.width) {
            let values = row.chunks_exact(3).map(value);
            if flip { out.extend(values.rev()) } else { out.extend(values) }
        }
    };
    match shape.channels {
        1 => plane(&|pixel| (pixel.iter().map(|&colour| u16::from(colour)).sum::<u16>() / 3) as u8),
        _ => (0..3).for_each(|channel| plane(&|pixel| pixel[channel])),
    }
    Ok(Decoded { frame, is_turned })
}

/// Reads an image as a network takes it: `[channels, rows, columns]`, what `resize` says of the image, normalised; of one channel, the
/// mean of the three colours. And which part of it that is.
///
/// # Errors
/// A file that is no image, channels that images do not have.
pub(crate) fn image_file(
    path: &Path, shape: ImageShape, resize: Resize, normalization: &Normalization,
) -> Result<(Vec<f32>, Frame), DecodeError> {
    let ImageShape { height, width, .. } = shape;
    if height.saturating_mul(width) > LARGEST_BYTES as usize / 4 {
        return Err(DecodeError::Large(width, height));
    }
    let (mut pixels, mut values) = (vec![], vec![]);
    let Decoded { frame, .. } = decode(path, shape, resize, None, &mut pixels)?;
    Pixels::new(normalization).extend(&mut values, &pixels);
    Ok((values, frame))
}

/// Reads an image whole, as it is to be seen, and says whether it was turned for that, as its EXIF says.
fn read(path: &Path) -> Result<(RgbImage, bool), DecodeError> {
    let content = read_file(path)?;
    let mut reader = ImageReader::new(Cursor::new(&content)).with_guessed_format()?;
    // The decoder fills with grey what is missing of a JPEG file.
    if reader.format() == Some(ImageFormat::Jpeg) && !has_end(&content) {
        return Err(DecodeError::Cut);
    }
    let mut limits = Limits::default();
    limits.max_image_width = Some(LARGEST_SIDE);
    limits.max_image_height = Some(LARGEST_SIDE);
    limits.max_alloc = Some(LARGEST_BYTES);
    reader.limits(limits.clone());
    let mut decoder = reader.into_decoder()?;
    limits.reserve(decoder.total_bytes())?;
    let orientation = decoder.orientation()?;
    let mut image = DynamicImage::from_decoder(decoder)?;
    image.apply_orientation(orientation);
    let image = image.into_rgb8();
    match image.dimensions() {
        (0, height) => Err(DecodeError::Empty(0, height)),
        (width, 0) => Err(DecodeError::Empty(width, 0)),
        _ => Ok((image, orientation != Orientation::NoTransforms)),
    }
}

/// Whether an image can be read.
pub(super) fn check(path: &Path) -> Result<(), DecodeError> {
    read(path).map(drop)
}

/// Whether a JPEG file goes on to the marker of its end (ISO/IEC 10918-1, annex B): what is before is segments of a length that they say, and codes, in which
/// no marker can be.
fn has_end(content: &[u8]) -> bool {
    let mut rest = content;
    loop {
        rest = match rest {
            [0xff, 0xd9, ..] => return true,
            // Filling.
            [0xff, 0xff, ..] => &rest[1..],
            // A byte of the codes, or a marker without a segment.
            [0xff, 0x00 | 0x01 | 0xd0..=0xd8, after @ ..] => after,
            [0xff, _, high, low, ..] => {
                let end = 2 + usize::from(u16::from_be_bytes([*high, *low]));
                rest.get(end..).unwrap_or_default()
            }
            [_, after @ ..] => after,
            [] => return false,
        }
    }
}

/// What is where an image does not show its picture: the mean of the pixels of photographs (ImageNet's).
const GREY: u8 = 114;

/// `[h, w, 3]`, bilinear, with as wide a filter as shrinking needs.
fn resized(image: &RgbImage, frame: &Frame) -> Result<Vec<u8>, DecodeError> {
    let (width, height) = image.dimensions();
    let source = ImageRef::new(width, height, image.as_raw(), PixelType::U8x3);
    let Ok(source) = source else { return Err(DecodeError::Empty(width, height)) };
    let ([shown_rows, shown_columns], [rows, columns]) = (frame.shown(), frame.image);
    let mut result = Image::new(shown_columns as u32, shown_rows as u32, PixelType::U8x3);
    let Cut([left, top, cut_width, cut_height]) = frame.part;
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear)).crop(
        left,
        top,
        cut_width.min(f64::from(width) - left),
        cut_height.min(f64::from(height) - top),
    );
    Resizer::new().resize(&source, &mut result, &options)?;
    let shown = result.into_vec();
    if [shown_rows, shown_columns] == [rows, columns] {
        return Ok(shown);
    }
    let mut pixels = vec![GREY; 3 * rows * columns];
    let lines = pixels.chunks_exact_mut(3 * columns).zip(shown.chunks_exact(3 * shown_columns));
    lines.for_each(|(line, shown)| line[..shown.len()].copy_from_slice(shown));
    Ok(pixels)
}

impl Cut {
    /// What `resize` says of a picture that is to become an image, both by their rows and columns: usually, for a square, the middle with seven eighths of the shorter side, of
    /// 256 pixels 224.
    fn new(picture: [usize; 2], image: [usize; 2], resize: Resize) -> Self {
        let ([height, width], [rows, columns]) =
            (picture.map(|side| side as f64), image.map(|side| side as f64));
        let ratio = rows / columns.max(1.0);
        let largest = width.min(height / ratio);
        let side = match resize {
            Resize::Middle => largest * 0.875,
            Resize::Shorter(side) => largest.min(columns * width.min(height) / f64::from(side.max(1))),
            Resize::Stretch => return Self([0.0, 0.0, width, height]),
            Resize::Pad => {
                let scale = (columns / width).min(rows / height);
                // In whole pixels, so that all of them are of the picture or of the grey.
                let shown = |side: f64, most: f64| (side * scale).round().clamp(1.0, most.max(1.0));
                return Self([
                    0.0,
                    0.0,
                    width * columns / shown(width, columns),
                    height * rows / shown(height, rows),
                ]);
            }
        };
        Self([(width - side) / 2.0, (height - side * ratio) / 2.0, side, side * ratio])
    }

    /// 8 to 100 % of the area, with the sides' ratio of `shape` changed by 3:4 to 4:3; the middle if ten tries give nothing that fits.
    fn random(width: u32, height: u32, shape: ImageShape, rng: &mut dyn Rng) -> Self {
        let (width, height) = (f64::from(width), f64::from(height));
        let usual = shape.width as f64 / shape.height.max(1) as f64;
        for _ in 0..10 {
            let area = width * height * rng.random_range(0.08..=1.0);
            let ratio = rng.random_range((3f64 / 4.0).ln()..=(4f64 / 3.0).ln()).exp() * usual;
            let (w, h) = ((area * ratio).sqrt().round(), (area / ratio).sqrt().round());
            if (1.0..=width).contains(&w) && (1.0..=height).contains(&h) {
                let left = rng.random_range(0.0..=width - w).floor();
                let top = rng.random_range(0.0..=height - h).floor();
                return Self([left, top, w, h]);
            }
        }
        let (w, h) = (width.min(height * 4.0 / 3.0 * usual), height.min(width * 4.0 / 3.0 / usual));
        Self([(width - w) / 2.0, (height - h) / 2.0, w, h])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn cuts_are_inside() {
        let rng = &mut chacha20::ChaCha8Rng::seed_from_u64(1);
        for (rows, columns) in [(32, 32), (48, 320)] {
            let shape = ImageShape { channels: 3, height: rows, width: columns };
            for (width, height) in [(1, 1), (1, 400), (500, 2), (640, 480), (3, 3)] {
                for _ in 0..200 {
                    let Cut([left, top, w, h]) = Cut::random(width, height, shape, rng);
                    assert!(left >= 0.0 && top >= 0.0 && w > 0.0 && h > 0.0);
                    assert!(left + w <= f64::from(width) && top + h <= f64::from(height));
                }
            }
            // Of a large picture, nearly the image's ratio of sides.
            let Cut([.., w, h]) = Cut::random(9000, 9000, shape, rng);
            let changed = w / h * rows as f64 / columns as f64;
            assert!((0.74..=1.34).contains(&changed), "{changed}");
        }
    }

    #[test]
    fn cuts_of_the_middle() {
        let of = |width, height, image, resize| Cut::new([height, width], image, resize);
        assert_eq!(of(256, 512, [224, 224], Resize::Middle), Cut([16.0, 144.0, 224.0, 224.0]));
        // 512 pixels become 256: of 224 there are 448.
        assert_eq!(of(512, 800, [224, 224], Resize::Shorter(256)), Cut([32.0, 176.0, 448.0, 448.0]));
        assert_eq!(of(300, 200, [50, 100], Resize::Shorter(100)), Cut([50.0, 50.0, 200.0, 100.0]));
        // Three times as wide as high, of a square: all of its columns.
        assert_eq!(of(90, 90, [20, 60], Resize::Shorter(30)), Cut([0.0, 30.0, 90.0, 30.0]));
        assert_eq!(of(300, 200, [48, 320], Resize::Stretch), Cut([0.0, 0.0, 300.0, 200.0]));
    }

    #[test]
    fn whole_pictures_with_grey() {
        let of = |width, height, image| {
            let frame = Frame::new([height, width], image, Resize::Pad);
            (frame.part.0, frame.shown())
        };
        // Twice as wide as high: the lower half is grey.
        assert_eq!(of(200, 100, [64, 64]), ([0.0, 0.0, 200.0, 200.0], [32, 64]));
        assert_eq!(of(100, 200, [64, 64]), ([0.0, 0.0, 200.0, 200.0], [64, 32]));
        assert_eq!(of(32, 32, [16, 24]), ([0.0, 0.0, 48.0, 32.0], [16, 16]));
        assert_eq!(of(32, 24, [12, 16]), ([0.0, 0.0, 32.0, 24.0], [12, 16]));
        // At least one row.
        assert_eq!(of(9000, 1, [8, 8]).1, [1, 8]);

        let picture = RgbImage::from_fn(4, 2, |x, y| image::Rgb([x as u8, y as u8, 9]));
        let frame = Frame::new([2, 4], [4, 4], Resize::Pad);
        let pixels = resized(&picture, &frame).unwrap();
        assert_eq!(pixels[..24], picture.as_raw()[..]);
        assert_eq!(pixels[24..], [GREY; 24]);
        let classes: Vec<usize> = (0..16).collect();
        assert_eq!(frame.pixels(&classes, 99), classes[..8]);
    }

    /// What is in a picture is in the same place of the image, and comes back to where it was.
    #[test]
    fn boxes_forth_and_back() {
        let rng = &mut chacha20::ChaCha8Rng::seed_from_u64(2);
        for resize in [Resize::Pad, Resize::Stretch, Resize::Middle] {
            for _ in 0..500 {
                let [picture, image] = [(); 2].map(|()| [(); 2].map(|()| rng.random_range(1..700)));
                let frame = Frame::new(picture, image, resize);
                let [height, width] = picture.map(|side| side as f32);
                let [left, top] = [width, height].map(|side| rng.random_range(0.0..side));
                let rect = [left, top, rng.random_range(left..=width), rng.random_range(top..=height)];
                let inside = frame.rect_in_image(rect);
                for (found, expected) in frame.rect(inside).into_iter().zip(rect) {
                    assert!((found - expected).abs() < 1e-3, "{found} {expected} {frame:?}");
                }
                if resize != Resize::Middle {
                    let [rows, columns] = frame.shown().map(|side| side as f32 + 1e-3);
                    assert!(inside[2] <= columns && inside[3] <= rows, "{inside:?} {frame:?}");
                }
                // Within the half pixel that the shorter side is rounded by, the ratio of sides is kept.
                if resize == Resize::Pad {
                    let [rows, columns] = frame.shown().map(|side| side as f32);
                    let scale = (image[1] as f32 / width).min(image[0] as f32 / height);
                    let off = (width * scale - columns).abs().max((height * scale - rows).abs());
                    assert!(off <= 0.51 || rows == 1.0 || columns == 1.0, "{frame:?}");
                    assert!(frame.shown().iter().zip(image).any(|(&shown, all)| shown == all), "{frame:?}");
                }
            }
        }
    }

    #[test]
    fn from_images_to_pictures() {
        let whole = Frame::whole([2, 3]);
        assert_eq!(whole.rect([0.5, 1.0, 3.0, 2.0]), [0.5, 1.0, 3.0, 2.0]);
        assert_eq!(whole.pixels(&[1, 2, 3, 4, 5, 6], 0), [1, 2, 3, 4, 5, 6]);
        // Of 6 x 4 pixels the middle, 4 x 2, made 2 x 2.
        let part = Cut([1.0, 1.0, 4.0, 2.0]);
        let middle = Frame { picture: [4, 6], image: [2, 2], part };
        assert_eq!(middle.rect([0.0, 0.0, 2.0, 1.0]), [1.0, 1.0, 5.0, 2.0]);
        assert_eq!(middle.rect_in_image([1.0, 1.0, 5.0, 2.0]), [0.0, 0.0, 2.0, 1.0]);
        let expected = [[0; 6], [0, 1, 1, 2, 2, 0], [0, 3, 3, 4, 4, 0], [0; 6]].concat();
        assert_eq!(middle.pixels(&[1, 2, 3, 4], 0), expected);
        // Made smaller: what has the middle of a pixel.
        let stretched = Frame { picture: [1, 2], image: [1, 6], part: Cut([0.0, 0.0, 2.0, 1.0]) };
        assert_eq!(stretched.pixels(&[1, 2, 3, 4, 5, 6], 0), [2, 5]);
    }
}
