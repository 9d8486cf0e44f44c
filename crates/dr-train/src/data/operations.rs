//! [`Operation`]: changes to images of 8 bits, with the values that the Python Imaging Library gives.

use super::images::ImageShape;
use dr_runtime::named;

named! {
    /// What RandAugment (Cubuk et al., arXiv:1909.13719) draws from. Each has a strength from -1 to 1, and with the strength 0 those
    /// with one leave an image as it is.
    Operation, "operation" {
        /// Nothing.
        Identity = "identity",
        /// The values of each channel stretched to all from 0 to 255.
        AutoContrast = "autocontrast",
        /// Each channel's values as evenly used as possible.
        Equalize = "equalize",
        /// Turned by up to 30 degrees around the middle.
        Rotate = "rotate",
        /// The brightest values turned over: at strength 1 all of them.
        Solarize = "solarize",
        /// Up to 4 of the 8 bits set to 0.
        Posterize = "posterize",
        /// Saturation, by up to 90 %.
        Colour = "colour",
        /// Contrast, by up to 90 %.
        Contrast = "contrast",
        /// Brightness, by up to 90 %.
        Brightness = "brightness",
        /// Sharpness, by up to 90 %.
        Sharpness = "sharpness",
        /// Rows moved against each other, each by up to 0.3 pixels more than the one above.
        ShearX = "shear-x",
        /// Columns likewise.
        ShearY = "shear-y",
        /// Moved by up to 45 % of the width.
        TranslateX = "translate-x",
        /// Moved by up to 45 % of the height.
        TranslateY = "translate-y",
    }
}

impl Operation {
    /// Changes an image, `[c, h, w]`, by a strength from -1 to 1. Black comes in at edges.
    pub fn apply(self, strength: f64, image: &mut [u8], shape: ImageShape) {
        let (height, width) = (shape.height as f64, shape.width as f64);
        match self {
            Self::Identity => {}
            Self::AutoContrast => each_channel(image, shape, stretched),
            Self::Equalize => each_channel(image, shape, equalized),
            Self::Rotate => rotate(image, shape, strength * 30f64.to_radians()),
            Self::Solarize => {
                let first = 256 - (256.0 * strength.abs()).round() as u16;
                image
                    .iter_mut()
                    .filter(|pixel| u16::from(**pixel) >= first)
                    .for_each(|pixel| *pixel = !*pixel);
            }
            Self::Posterize => {
                let mask = 0xffu8 << (4.0 * strength.abs()).round() as u32;
                image.iter_mut().for_each(|pixel| *pixel &= mask);
            }
            Self::Colour | Self::Contrast | Self::Brightness | Self::Sharpness => {
                self.blend((1.0 + 0.9 * strength) as f32, image, shape);
            }
            Self::ShearX => affine(image, shape, [[1.0, 0.3 * strength, 0.0], [0.0, 1.0, 0.0]]),
            Self::ShearY => affine(image, shape, [[1.0, 0.0, 0.0], [0.3 * strength, 1.0, 0.0]]),
            Self::TranslateX => {
                affine(image, shape, [[1.0, 0.0, (0.45 * strength * width).round()], [0.0, 1.0, 0.0]]);
            }
            Self::TranslateY => {
                affine(image, shape, [[1.0, 0.0, 0.0], [0.0, 1.0, (0.45 * strength * height).round()]]);
            }
        }
    }

    /// Goes from what an image has nothing left of, its saturation for example, at the factor 0 to the image at 1, and on. Of
    /// operations that are not of this kind nothing changes.
    pub(super) fn blend(self, factor: f32, image: &mut [u8], shape: ImageShape) {
        match self {
            Self::Brightness => mix(image, &[0], factor),
            Self::Contrast => {
                let grey = grey(image, shape);
                let sum: u64 = grey.iter().map(|&value| u64::from(value)).sum();
                let mean = (sum as f64 / grey.len().max(1) as f64 + 0.5) as u8;
                mix(image, &[mean], factor);
            }
            Self::Colour => {
                let grey = grey(image, shape);
                image.chunks_mut(plane(shape)).for_each(|channel| mix(channel, &grey, factor));
            }
            Self::Sharpness => {
                let smooth = smooth(image, shape);
                mix(image, &smooth, factor);
            }
            _ => {}
        }
    }
}

/// Goes from `without`, a value for each pixel or one for all, at the factor 0 to the image at 1, and on.
fn mix(image: &mut [u8], without: &[u8], factor: f32) {
    let mix = |pixel: &mut u8, without: u8| {
        let without = f32::from(without);
        // A cast leaves out what is after the point, and stays within 0 to 255.
        *pixel = (without + factor * (f32::from(*pixel) - without)) as u8;
    };
    match without {
        &[without] => image.iter_mut().for_each(|pixel| mix(pixel, without)),
        each => image.iter_mut().zip(each).for_each(|(pixel, &without)| mix(pixel, without)),
    }
}

fn plane(shape: ImageShape) -> usize {
    (shape.height * shape.width).max(1)
}

/// Replaces the values of each channel as its histogram says.
fn each_channel(image: &mut [u8], shape: ImageShape, table: fn(&[usize; 256]) -> Option<[u8; 256]>) {
    for channel in image.chunks_exact_mut(plane(shape)) {
        let mut counts = [0; 256];
        channel.iter().for_each(|&pixel| counts[usize::from(pixel)] += 1);
        if let Some(table) = table(&counts) {
            channel.iter_mut().for_each(|pixel| *pixel = table[usize::from(*pixel)]);
        }
    }
}

/// From the least value to the largest, evenly.
fn stretched(counts: &[usize; 256]) -> Option<[u8; 256]> {
    let low = counts.iter().position(|&count| count > 0)?;
    let high = counts.iter().rposition(|&count| count > 0).filter(|&high| high > low)?;
    let scale = 255.0 / (high - low) as f64;
    let offset = -(low as f64) * scale;
    Some(std::array::from_fn(|value| (value as f64 * scale + offset) as u8))
}

/// By how many pixels are below a value; nothing for too few pixels.
fn equalized(counts: &[usize; 256]) -> Option<[u8; 256]> {
    let last = counts.iter().rev().find(|count| **count > 0)?;
    let all: usize = counts.iter().sum();
    let step = (all - last) / 255;
    let mut below = step / 2;
    (step > 0).then(|| {
        counts.map(|count| {
            let value = (below / step).min(255) as u8;
            below += count;
            value
        })
    })
}

/// Luma of ITU-R BT.601 of three channels; of others the mean.
fn grey(image: &[u8], shape: ImageShape) -> Vec<u8> {
    let plane = plane(shape);
    let channel = |channel: usize, at: usize| u32::from(image[channel * plane + at]);
    let value = |at: usize| match shape.channels {
        3 => (channel(0, at) * 19595 + channel(1, at) * 38470 + channel(2, at) * 7471 + 0x8000) >> 16,
        count => (0..count).map(|c| channel(c, at)).sum::<u32>() / count.max(1) as u32,
    };
    (0..image.len() / shape.channels.max(1)).map(|at| value(at) as u8).collect()
}

/// Means over 3 x 3 pixels in which the middle one counts five times; those at edges stay.
fn smooth(image: &[u8], shape: ImageShape) -> Vec<u8> {
    let (height, width) = (shape.height, shape.width);
    let mut smooth = image.to_vec();
    for (source, out) in image.chunks_exact(plane(shape)).zip(smooth.chunks_exact_mut(plane(shape))) {
        for y in 1..height.saturating_sub(1) {
            for x in 1..width.saturating_sub(1) {
                let rows = (y - 1..=y + 1).flat_map(|y| &source[y * width + x - 1..=y * width + x + 1]);
                let sum =
                    rows.map(|&pixel| u32::from(pixel)).sum::<u32>() + 4 * u32::from(source[y * width + x]);
                out[y * width + x] = ((sum + 6) / 13) as u8;
            }
        }
    }
    smooth
}

/// Turned counterclockwise, by radians.
fn rotate(image: &mut [u8], shape: ImageShape, angle: f64) {
    let (sin, cos) = angle.sin_cos();
    let (x, y) = (shape.width as f64 / 2.0, shape.height as f64 / 2.0);
    affine(image, shape, [[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y]]);
}

/// Each pixel becomes the one that the middle of it is in at `matrix` times its place `[x, y, 1]`.
fn affine(image: &mut [u8], shape: ImageShape, matrix: [[f64; 3]; 2]) {
    let (height, width) = (shape.height, shape.width);
    let inside = |at: f64, size: usize| (0.0..size as f64).contains(&at).then_some(at as usize);
    for channel in image.chunks_exact_mut(plane(shape)) {
        let source = channel.to_vec();
        for (at, pixel) in channel.iter_mut().enumerate() {
            let (x, y) = ((at % width) as f64 + 0.5, (at / width) as f64 + 0.5);
            let [x, y] = matrix.map(|[a, b, c]| a * x + b * y + c);
            let place = inside(x, width).zip(inside(y, height));
            *pixel = place.map_or(0, |(x, y)| source[y * width + x]);
        }
    }
}
