//! [`decode`]: from a detector's output to boxes.

use super::Positions;
use crate::metrics::{Rect, nms};
use crate::values::values;
use burn::tensor::Tensor;

/// An object that was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// Left, top, right, bottom, in pixels of the image.
    pub rect: Rect,
    /// Its class.
    pub class: usize,
    /// How sure that is, 0 to 1.
    pub score: f32,
}

impl Found {
    /// What of its box is inside of so many rows and columns, if there is something.
    #[must_use]
    pub fn within(self, size: [usize; 2]) -> Option<Self> {
        let ([left, top, right, bottom], [rows, columns]) = (self.rect, size.map(|side| side as f32));
        let rect = [left.max(0.0), top.max(0.0), right.min(columns), bottom.min(rows)];
        (rect[0] < rect[2] && rect[1] < rect[3]).then_some(Self { rect, ..self })
    }
}

/// Which boxes are given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DecodeOptions {
    /// The least score.
    pub score: f32,
    /// The largest IoU with a better box of the same class.
    pub overlap: f32,
    /// The most boxes of an image.
    pub most: usize,
}

impl Default for DecodeOptions {
    fn default() -> Self {
        Self { score: 0.05, overlap: 0.6, most: 100 }
    }
}

/// The least score of a box that is shown.
pub const SHOWN: f32 = 0.4;

/// Candidates of an image before boxes are compared.
const CANDIDATES: usize = 1000;

/// The boxes of each image, best first, from `[images * positions, classes + 5]`. Scores are the roots of class and centerness. Boxes are cut
/// to the image; what is not finite is left out.
#[must_use]
pub fn decode(output: Tensor<2>, positions: &Positions, options: &DecodeOptions) -> Vec<Vec<Found>> {
    let columns = output.dims()[1];
    decode_rows(&values::<f32>(output.into_data()), columns, positions, options)
}

/// The same from the values of so many columns.
///
/// # Panics
/// If there are less than five.
#[must_use]
pub fn decode_rows(
    rows: &[f32], columns: usize, positions: &Positions, options: &DecodeOptions,
) -> Vec<Vec<Found>> {
    let count = positions.each().count().max(1);
    rows.chunks(count * columns).map(|image| of_image(image, columns, positions, options)).collect()
}

fn of_image(image: &[f32], columns: usize, positions: &Positions, options: &DecodeOptions) -> Vec<Found> {
    let classes = columns - 5;
    let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
    let [height, width] = positions.image.map(|size| size as f32);
    let mut candidates = vec![];
    for ((stride, [x, y]), row) in positions.each().zip(image.chunks_exact(columns)) {
        let center = sigmoid(row[classes + 4]);
        for class in 0..classes {
            let score = (sigmoid(row[class]) * center).sqrt();
            // Not a number is less than nothing.
            if score >= options.score {
                let [l, t, r, b] = [0, 1, 2, 3].map(|i| row[classes + i].min(6.0).exp() * stride as f32);
                let rect = [(x - l).max(0.0), (y - t).max(0.0), (x + r).min(width), (y + b).min(height)];
                candidates.push(Found { rect, class, score });
            }
        }
    }
    candidates.retain(|found| found.rect.iter().all(|side| side.is_finite()));
    candidates.sort_by(|a, b| b.score.total_cmp(&a.score));
    candidates.truncate(CANDIDATES);
    let rects: Vec<Rect> = candidates.iter().map(|found| found.rect).collect();
    let scores: Vec<f32> = candidates.iter().map(|found| found.score).collect();
    let of: Vec<usize> = candidates.iter().map(|found| found.class).collect();
    let kept = nms(&rects, &scores, &of, options.overlap);
    kept.into_iter().take(options.most).map(|i| candidates[i]).collect()
}
