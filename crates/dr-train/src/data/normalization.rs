//! Mean and standard deviation of images, and what becomes of pixels.

use super::images::Images;
pub use dr_runtime::file::{ChannelOrder, Normalization};
use std::ops::Add;

impl Images {
    /// Mean and deviation of these images. A channel of only one value has the standard deviation 1.
    #[must_use]
    pub fn normalization(&self) -> Normalization {
        let mut moments = vec![Moments::default(); self.shape.channels];
        for image in self.pixels.chunks_exact(self.shape.bytes()) {
            let planes = image.chunks_exact(self.shape.height * self.shape.width);
            moments.iter_mut().zip(planes).for_each(|(moments, plane)| moments.include(plane));
        }
        normalization(moments)
    }
}

/// For each channel that a network takes, what each of the 256 values of a pixel becomes.
#[cfg(feature = "program")]
#[derive(Debug)]
pub(super) struct Pixels {
    tables: Vec<[f32; 256]>,
    order: ChannelOrder,
}

#[cfg(feature = "program")]
impl Pixels {
    pub fn new(normalization: &Normalization) -> Self {
        let table = |(&mean, &std): (&f32, &f32)| {
            std::array::from_fn(|value| ((value as f64 / 255.0 - f64::from(mean)) / f64::from(std)) as f32)
        };
        let tables = normalization.mean.iter().zip(&normalization.std).map(table).collect();
        Self { tables, order: normalization.order }
    }

    /// The channels of an image, `[c, h, w]` with the colours in the usual order, as the network takes them: each with its table.
    pub fn channels<'a>(&'a self, image: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a [f32; 256])> {
        let (count, plane) = (self.tables.len(), image.len() / self.tables.len().max(1));
        self.tables.iter().enumerate().map(move |(channel, table)| {
            let colour = match self.order {
                ChannelOrder::Rgb => channel,
                ChannelOrder::Bgr => count - 1 - channel,
            };
            (&image[colour * plane..][..plane], table)
        })
    }

    /// Adds an image to values, as [`channels`](Self::channels) has it.
    pub fn extend(&self, values: &mut Vec<f32>, image: &[u8]) {
        for (channel, table) in self.channels(image) {
            values.extend(channel.iter().map(|&pixel| table[usize::from(pixel)]));
        }
    }
}

/// Exact sums over the pixels of a channel.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moments {
    count: u64,
    sum: u64,
    squares: u64,
}

impl Moments {
    /// Adds some pixels.
    pub fn include(&mut self, pixels: &[u8]) {
        self.count += pixels.len() as u64;
        for &pixel in pixels {
            self.sum += u64::from(pixel);
            self.squares += u64::from(pixel) * u64::from(pixel);
        }
    }

    /// Mean and standard deviation; the latter is 1 if all pixels have the same value.
    fn spread(self) -> (f32, f32) {
        let Self { count, sum, squares } = self;
        let count = count.max(1);
        let spread = u128::from(count) * u128::from(squares) - u128::from(sum) * u128::from(sum);
        let std = if spread == 0 { 1.0 } else { (spread as f64).sqrt() / count as f64 / 255.0 };
        ((sum as f64 / count as f64 / 255.0) as f32, std as f32)
    }
}

impl Add for Moments {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let (count, sum, squares) =
            (self.count + other.count, self.sum + other.sum, self.squares + other.squares);
        Self { count, sum, squares }
    }
}

/// What makes the mean 0 and the deviation 1, of each channel.
pub(super) fn normalization(moments: impl IntoIterator<Item = Moments>) -> Normalization {
    let (mean, std) = moments.into_iter().map(Moments::spread).unzip();
    Normalization { mean, std, order: ChannelOrder::Rgb }
}
