//! [`predictions`]: what the outputs of a network say of images.

use crate::agreement::probabilities;
use crate::artifact::Artifact;
use crate::config::task::{DETECT, SEGMENT};
use crate::data::Frame;
use crate::detection::{DecodeOptions, Found, Positions, decode_rows};
use crate::models::BOX_OUTPUTS;
use dr_runtime::arrays::Array;

/// What a network says of an image.
#[derive(Clone, Debug, PartialEq)]
pub enum Prediction {
    /// How likely each class is, of all of it.
    Classes(Vec<f64>),
    /// Objects, best first, in pixels of the picture.
    Boxes(Vec<Found>),
    /// A class for each pixel of the picture.
    Pixels {
        /// `[rows, columns]`: 0, the background, where the network sees nothing of the picture.
        classes: Vec<usize>,
        /// Rows and columns.
        size: [usize; 2],
    },
}

/// What the outputs of a network say of each image of its inputs, which are of the part `frame` of pictures, or all there is. `None` if they say nothing
/// that is known: neither what the task promises nor `[images, classes]`, of at least two, for `[images, channels, rows, columns]`. Classes are
/// probabilities if the output is some, else logits.
#[must_use]
pub fn predictions(
    artifact: &Artifact, inputs: &[Array], outputs: &[Array], frame: Option<Frame>, options: &DecodeOptions,
) -> Option<Vec<Prediction>> {
    let ([input], [output]) = (inputs, outputs) else { return None };
    let (&[images, _, rows, columns], &[found, features]) = (input.dims(), output.dims()) else {
        return None;
    };
    let frame = frame.unwrap_or_else(|| Frame::whole([rows, columns]));
    let values = output.floats().ok()?;
    let pixels = rows * columns;
    match artifact.description.task.as_str() {
        DETECT => {
            let positions = Positions::of(artifact.graph().ok()?, [rows, columns])?;
            if features <= BOX_OUTPUTS || found != images * positions.each().count() {
                return None;
            }
            let found = decode_rows(&values, features, &positions, options).into_iter();
            let in_picture =
                |found: Found| Found { rect: frame.rect(found.rect), ..found }.within(frame.picture);
            let boxes = |found: Vec<Found>| found.into_iter().filter_map(in_picture).collect();
            Some(found.map(|found| Prediction::Boxes(boxes(found))).collect())
        }
        SEGMENT if found == images * pixels && features == artifact.description.classes => {
            let classes: Vec<usize> = values.chunks(features.max(1)).map(largest).collect();
            let of_image = |classes: &[usize]| Prediction::Pixels {
                classes: frame.pixels(classes, 0),
                size: frame.picture,
            };
            Some(classes.chunks(pixels.max(1)).map(of_image).collect())
        }
        SEGMENT => None,
        _ if found == images && features > 1 => {
            Some(values.chunks(features).map(|row| Prediction::Classes(probabilities(row))).collect())
        }
        _ => None,
    }
}

/// The place of the first of the largest numbers.
fn largest(row: &[f32]) -> usize {
    let larger = |a: usize, b: usize| if row[b] > row[a] { b } else { a };
    (0..row.len()).reduce(larger).unwrap_or_default()
}
