//! Drawing boxes and classes of pixels on pictures, to look at.

use crate::files::{FileError, at, write_atomically};
use image::error::{ParameterError, ParameterErrorKind};
use image::imageops::replace;
use image::{ImageError, ImageFormat, Rgb, RgbImage};
use std::io::{self, Cursor};
use std::ops::Range;
use std::path::Path;

/// Bytes of a pixel.
const CHANNELS: usize = 3;
/// White pixels between tiles.
const GAP: usize = 2;
/// How much of a box's colour is seen at a score of 0.
const FAINTEST: f32 = 0.3;

/// Red, green and blue; neighbours differ most.
const PALETTE: [u32; 16] = [
    0xe6194b, 0x3cb44b, 0xffe119, 0x0082c8, 0xf58230, 0x911eb4, 0x46f0f0, 0xf032e6, 0xd2f53c, 0x008080,
    0xfabed4, 0xaa6e28, 0x800000, 0xaaffc3, 0x808000, 0x0000a0,
];

/// The colour of a class. Sixteen are distinct, then they come again.
#[must_use]
pub fn colour(class: usize) -> [u8; 3] {
    let [_, colour @ ..] = PALETTE[class % PALETTE.len()].to_be_bytes();
    colour
}

/// Draws boxes on `pixels`, `[height, width, 3]`: lines of one pixel along the inner side of the border, in the colour of the
/// class; the lower the score, from 1 to 0, the fainter. A box is its left, top, width and height in pixels, its class, and
/// perhaps its score. What is outside the picture is cut off; boxes with numbers that are none are left out.
pub fn draw_boxes(pixels: &mut [u8], width: usize, height: usize, boxes: &[([f32; 4], usize, Option<f32>)]) {
    for &([left, top, box_width, box_height], class, score) in boxes {
        let (columns, rows) = (pixels_of(left, box_width, width), pixels_of(top, box_height, height));
        let opacity = score.map_or(1.0, |score| FAINTEST + (1.0 - FAINTEST) * score.clamp(0.0, 1.0));
        for y in rows.clone() {
            let is_end = y == rows.start || y + 1 == rows.end;
            for x in columns.clone().filter(|&x| is_end || x == columns.start || x + 1 == columns.end) {
                blend(pixels, y * width + x, colour(class), opacity);
            }
        }
    }
}

/// The pixels that a span touches.
fn pixels_of(start: f32, len: f32, end: usize) -> Range<usize> {
    let last = start + len;
    if !start.is_finite() || !last.is_finite() || last <= start {
        return 0..0;
    }
    // Negative numbers become 0.
    (start.floor() as usize).min(end)..(last.ceil() as usize).min(end)
}

/// Lays the colours of classes half transparently over `pixels`, `[height, width, 3]`. `classes` is `[height, width]`: 0 for
/// the background, which stays, and `class + 1` for the class whose [`colour`] is seen.
pub fn overlay(pixels: &mut [u8], width: usize, height: usize, classes: &[u8]) {
    for (index, &class) in classes.iter().take(width * height).enumerate() {
        if let Some(class) = class.checked_sub(1) {
            blend(pixels, index, colour(class.into()), 0.5);
        }
    }
}

fn blend(pixels: &mut [u8], index: usize, colour: [u8; 3], opacity: f32) {
    if let Some(pixel) = pixels.as_chunks_mut::<CHANNELS>().0.get_mut(index) {
        for (value, colour) in pixel.iter_mut().zip(colour) {
            *value = (f32::from(*value) + opacity * (f32::from(colour) - f32::from(*value))).round() as u8;
        }
    }
}

/// A picture in which each pixel of `pixels`, `[height, width, 3]`, is a square of `factor` pixels a side:
/// `[height * factor, width * factor, 3]`.
///
/// # Panics
/// If `pixels` has fewer pixels than the size says.
#[must_use]
pub fn enlarge(pixels: &[u8], width: usize, height: usize, factor: usize) -> Vec<u8> {
    let pixels = pixels.as_chunks::<CHANNELS>().0;
    let rows = (0..height * factor).map(|y| &pixels[y / factor * width..][..width]);
    rows.flat_map(|row| row.iter().flat_map(|pixel| pixel.repeat(factor))).collect()
}

/// Writes tiles, each `[height, width, 3]`, into one PNG file in one step: row by row, `columns` in each, with white gaps of
/// two pixels. Fewer tiles than columns make a narrower picture.
///
/// # Errors
/// No tiles, tiles of another size, and what the file system does not allow.
pub fn save_grid(
    path: &Path, tiles: &[Vec<u8>], width: usize, height: usize, columns: usize,
) -> Result<(), ImageError> {
    let wrong_size =
        || ImageError::Parameter(ParameterError::from_kind(ParameterErrorKind::DimensionMismatch));
    let columns = columns.clamp(1, tiles.len().max(1));
    let side = |count: usize, tile: usize| u32::try_from((count * (tile + GAP)).saturating_sub(GAP));
    let (Ok(total_width), Ok(total_height)) =
        (side(columns, width), side(tiles.len().div_ceil(columns), height))
    else {
        return Err(wrong_size());
    };
    let bytes = width * height * CHANNELS;
    if tiles.is_empty() || bytes == 0 || tiles.iter().any(|tile| tile.len() != bytes) {
        return Err(wrong_size());
    }
    let mut grid = RgbImage::from_pixel(total_width, total_height, Rgb([u8::MAX; CHANNELS]));
    for (index, tile) in tiles.iter().enumerate() {
        let tile = RgbImage::from_raw(width as u32, height as u32, tile.clone()).ok_or_else(wrong_size)?;
        let (column, row) = (index % columns, index / columns);
        replace(&mut grid, &tile, (column * (width + GAP)) as i64, (row * (height + GAP)) as i64);
    }
    let mut file = Cursor::new(vec![]);
    grid.write_to(&mut file, ImageFormat::Png)?;
    write_atomically(path, file.get_ref()).map_err(ImageError::IoError)
}

/// Writes classes of pixels, `[height, width]`, into a PNG file in one step, whose pixels are these numbers; programs that show pictures show 0, the
/// background, in black and `class + 1` in the [`colour`] of the class.
///
/// # Errors
/// Another number of pixels than the size says, or none, and what the file system does not allow.
pub fn save_mask(path: &Path, classes: &[u8], width: usize, height: usize) -> Result<(), FileError> {
    let background = [[0; CHANNELS]];
    let palette: Vec<u8> =
        background.into_iter().chain((0..u8::MAX).map(|class| colour(class.into()))).flatten().collect();
    let png = || {
        let side = |pixels: usize| u32::try_from(pixels).map_err(io::Error::other);
        let mut file = vec![];
        let mut encoder = png::Encoder::new(&mut file, side(width)?, side(height)?);
        encoder.set_color(png::ColorType::Indexed);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.set_palette(&palette);
        encoder.write_header()?.write_image_data(classes)?;
        write_atomically(path, &file)
    };
    png().map_err(at(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn masks_have_numbers_and_colours() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mask.png");
        save_mask(&path, &[0, 1, 2, 255, 0, 1], 3, 2).unwrap();
        let seen = image::open(&path).unwrap().into_rgb8();
        assert_eq!(seen.dimensions(), (3, 2));
        let pixels: Vec<[u8; 3]> = seen.pixels().map(|pixel| pixel.0).collect();
        assert_eq!(pixels, [[0; 3], colour(0), colour(1), colour(254), [0; 3], colour(0)]);
        let mut numbers = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(&path).unwrap()));
        numbers.set_transformations(png::Transformations::IDENTITY);
        let mut classes = vec![9; 6];
        numbers.read_info().unwrap().next_frame(&mut classes).unwrap();
        assert_eq!(classes, [0, 1, 2, 255, 0, 1]);
        assert!(save_mask(&path, &[0; 5], 3, 2).is_err() && save_mask(&path, &[], 0, 2).is_err());
    }

    /// Which pixels of a black picture have been changed, as `#`.
    fn drawn(width: usize, height: usize, boxes: &[([f32; 4], usize, Option<f32>)]) -> Vec<String> {
        let mut pixels = vec![0; width * height * 3];
        draw_boxes(&mut pixels, width, height, boxes);
        let is_drawn = |pixel: &[u8; 3]| if *pixel == [0; 3] { '.' } else { '#' };
        let rows = pixels.as_chunks::<3>().0.chunks(width);
        rows.map(|row| row.iter().map(is_drawn).collect()).collect()
    }

    #[test]
    fn classes_have_distinct_colours() {
        let colours: BTreeSet<_> = (0..16).map(colour).collect();
        assert_eq!(colours.len(), 16);
        assert_eq!(colour(17), colour(1));
    }

    #[test]
    fn boxes_are_lines_of_one_pixel() {
        let found = drawn(6, 5, &[([1.0, 1.0, 4.0, 3.0], 0, None)]);
        assert_eq!(found, ["......", ".####.", ".#..#.", ".####.", "......"]);
        assert_eq!(drawn(4, 3, &[([1.2, 0.9, 0.5, 1.3], 0, None)]), [".#..", ".#..", ".#.."]);
    }

    #[test]
    fn boxes_are_cut_off_and_strange_ones_left_out() {
        assert_eq!(drawn(4, 3, &[([-5.0, 1.0, 7.0, 99.0], 3, Some(0.0))]), ["....", "##..", "##.."]);
        let nothing = drawn(2, 1, &[([9.0, 0.0, 1.0, 1.0], 0, None), ([-3.0, 0.0, 2.0, 1.0], 0, None)]);
        assert_eq!(nothing, [".."]);
        for strange in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN] {
            for at in 0..4 {
                let mut bbox = [0.0, 0.0, 2.0, 1.0];
                bbox[at] = strange;
                drawn(2, 1, &[(bbox, usize::MAX, Some(strange))]);
            }
        }
        draw_boxes(&mut [0; 5], 2, 2, &[([0.0, 0.0, 2.0, 2.0], 0, None)]);
    }

    #[test]
    fn unsure_boxes_are_fainter() {
        let pixel = |score| {
            let mut pixel = [0; 3];
            draw_boxes(&mut pixel, 1, 1, &[([0.0, 0.0, 1.0, 1.0], 2, score)]);
            pixel
        };
        assert_eq!(pixel(None), colour(2));
        assert_eq!(pixel(Some(1.0)), colour(2));
        assert_eq!(pixel(Some(0.0))[0], 77);
        assert!(pixel(Some(0.5)) < colour(2));
    }

    #[test]
    fn overlays_are_half_transparent() {
        let mut pixels = [100; 9];
        overlay(&mut pixels, 3, 1, &[0, 1, 2]);
        assert_eq!(pixels, [100, 100, 100, 165, 63, 88, 80, 140, 88]);
    }

    #[test]
    fn enlarging_repeats_pixels() {
        let large = enlarge(&[1, 2, 3, 4, 5, 6], 2, 1, 2);
        let row = [1, 2, 3, 1, 2, 3, 4, 5, 6, 4, 5, 6];
        assert_eq!(large, [row, row].concat());
        assert!(enlarge(&[1, 2, 3], 1, 1, 0).is_empty());
    }

    #[test]
    fn grids_have_white_gaps() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("grid.png");
        let tiles = [1, 2, 3].map(|value| vec![value; 2 * 3 * 3]);
        save_grid(&path, &tiles, 2, 3, 2).unwrap();
        let grid = image::open(&path).unwrap().into_rgb8();
        assert_eq!(grid.dimensions(), (6, 8));
        let column = |x| (0..8).map(|y| grid.get_pixel(x, y).0[0]).collect::<Vec<_>>();
        assert_eq!(column(1), [1, 1, 1, 255, 255, 3, 3, 3]);
        assert_eq!(column(2), [255; 8]);
        assert_eq!(column(4), [2, 2, 2, 255, 255, 255, 255, 255]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        save_grid(&path, &tiles[..1], 2, 3, 9).unwrap();
        assert_eq!(image::image_dimensions(&path).unwrap(), (2, 3));
    }

    #[test]
    fn wrong_tiles_are_errors() {
        let path = Path::new("/nowhere/grid.png");
        let wrong = |tiles: &[Vec<u8>], width, height| {
            matches!(save_grid(path, tiles, width, height, 0), Err(ImageError::Parameter(_)))
        };
        assert!(
            wrong(&[], 1, 1)
                && wrong(&[vec![]], 0, 1)
                && wrong(&[vec![]], 1, 0)
                && wrong(&[vec![0; 5]], 1, 2)
        );
        assert!(matches!(save_grid(path, &[vec![0; 3]], 1, 1, 1), Err(ImageError::IoError(_))));
    }
}
