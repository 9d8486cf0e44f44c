//! Networks of others in ONNX files.

use super::WeightsError;
use crate::artifact::{Artifact, Described, InputShape};
use crate::config::task::CLASSIFY;
use dr_runtime::onnx::{Layout, Model, OnnxImportError, lower};
use dr_runtime::{Arithmetic, Input, Network, RuntimeError};
use std::path::Path;

/// Rows and columns of images that a file leaves open, where nothing else is said.
pub const USUAL_IMAGE: usize = 224;

/// No image has more.
const MOST_VALUES: usize = 1 << 28;

/// The product of sizes, if no more than an image has.
fn elements(sizes: &[usize]) -> Option<usize> {
    let product = sizes.iter().try_fold(1usize, |product, &size| product.checked_mul(size))?;
    Some(product).filter(|&product| product <= MOST_VALUES)
}

/// Whether a path is that of an ONNX file, by its name.
#[must_use]
pub fn is_onnx(path: &Path) -> bool {
    path.extension().is_some_and(|end| end.eq_ignore_ascii_case("onnx"))
}

/// The network of an ONNX file as a float model; sizes of images that it leaves open are `image` rows and columns, [`USUAL_IMAGE`] of each
/// without them.
///
/// # Errors
/// A file that cannot be read, one with nodes that cannot be run: all of them are named; a classifier that does not take images of that
/// size, and an input that has no such layout.
pub fn load_onnx(path: &Path, image: Option<[usize; 2]>, layout: Layout) -> Result<Artifact, WeightsError> {
    let wrong = |error: OnnxImportError| WeightsError::Onnx { path: path.to_owned(), error: Box::new(error) };
    let model = Model::read(path).map_err(Box::new)?;
    let image = image.unwrap_or([USUAL_IMAGE; 2]);
    let name = path.file_stem().map_or_else(|| "onnx".to_owned(), |name| name.to_string_lossy().into_owned());
    let artifact = lower(&model, layout).map_err(wrong)?.into_artifact(&name, image);
    if artifact.description.check_task(CLASSIFY).is_ok() {
        // Layers that need images of one size show when they get some.
        let InputShape { channels, height, width } = artifact.description.input;
        let run = |count: usize| {
            let zeros = vec![0.0; count];
            let input = Input::Images { values: &zeros, shape: [1, channels, height, width] };
            Network::load_with(&artifact, None, Arithmetic::Integer)?.forward(input)
        };
        let result = match elements(&[channels, height, width]) {
            Some(count) => run(count),
            None => Err(RuntimeError::Input {
                found: format!("{channels} channels"),
                expected: format!("at most {MOST_VALUES} values in an image"),
            }),
        };
        let wrong = |error| WeightsError::Run {
            path: path.to_owned(),
            size: [height, width],
            error: Box::new(error),
        };
        result.map_err(wrong)?;
    }
    Ok(artifact)
}
