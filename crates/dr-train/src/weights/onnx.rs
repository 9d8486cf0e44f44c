//! Networks of others in ONNX files.

use super::{WeightsError, check_numbers};
use crate::artifact::{Artifact, Described, InputShape};
use crate::config::task::CLASSIFY;
use dr_runtime::arrays::Array;
use dr_runtime::onnx::{Layout, Model, OnnxImportError, OnnxReadError, lower};
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

/// Whether the parameters and statistics of BatchNorms have numbers that can be, before they are folded into the weights of layers.
fn check_batch_norms(model: &Model, path: &Path) -> Result<(), WeightsError> {
    let in_file = |error| {
        let error = OnnxReadError::InFile { path: path.to_owned(), error: Box::new(error) };
        WeightsError::from(Box::new(error))
    };
    let mut problems = vec![];
    for node in model.nodes.iter().filter(|node| node.op == "BatchNormalization") {
        for (at, name) in node.inputs.iter().enumerate().skip(1) {
            let Some(tensor) = name.as_ref().and_then(|name| model.initializers.get(name)) else { continue };
            let Array::F32(numbers) = tensor.to_array().map_err(in_file)? else { continue };
            let numbers: Vec<f32> = numbers.iter().copied().collect();
            problems.extend(check_numbers(tensor.name(), &numbers, at == BATCH_NORM_VARIANCE).err());
        }
    }
    match problems.is_empty() {
        true => Ok(()),
        false => Err(WeightsError::Mismatch { path: path.into(), model: model.name.clone(), problems }),
    }
}

/// Which input of a BatchNorm the variance is.
const BATCH_NORM_VARIANCE: usize = 4;

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
    check_batch_norms(&model, path)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use dr_runtime::onnx::proto::{
        DataType, DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
        TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
    };
    use prost::Message;

    /// A convolution of one pixel and a BatchNorm of one channel, with this scale and variance.
    fn file(scale: f32, variance: f32) -> Vec<u8> {
        let node = |op: &str, inputs: &[&str], output: &str| NodeProto {
            op_type: op.into(),
            input: inputs.iter().map(|&name| name.into()).collect(),
            output: vec![output.into()],
            ..NodeProto::default()
        };
        let floats = |name: &str, dims: &[i64], value| TensorProto {
            name: name.into(),
            dims: dims.to_vec(),
            data_type: DataType::Float as i32,
            float_data: vec![value],
            ..TensorProto::default()
        };
        let dimension = |dim_value| DimensionProto { dim_value, ..DimensionProto::default() };
        let dim = [None, Some(1), Some(2), Some(2)].map(dimension).to_vec();
        let value = |name: &str, shape| ValueInfoProto {
            name: name.into(),
            r#type: Some(TypeProto {
                tensor_type: Some(TensorTypeProto { elem_type: DataType::Float as i32, shape }),
                ..TypeProto::default()
            }),
        };
        let graph = GraphProto {
            node: vec![
                node("Conv", &["x", "w"], "c"),
                node("BatchNormalization", &["c", "bn.scale", "shift", "mean", "bn.variance"], "y"),
            ],
            initializer: vec![
                floats("w", &[1, 1, 1, 1], 1.0),
                floats("bn.scale", &[1], scale),
                floats("shift", &[1], 0.0),
                floats("mean", &[1], 0.0),
                floats("bn.variance", &[1], variance),
            ],
            input: vec![value("x", Some(TensorShapeProto { dim }))],
            output: vec![value("y", None)],
            ..GraphProto::default()
        };
        let opset_import = vec![OperatorSetIdProto { version: 13, ..OperatorSetIdProto::default() }];
        ModelProto { ir_version: 8, graph: Some(graph), opset_import, ..ModelProto::default() }
            .encode_to_vec()
    }

    #[test]
    fn numbers_that_cannot_be_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("net.onnx");
        let load = |scale, variance| {
            std::fs::write(&path, file(scale, variance)).unwrap();
            load_onnx(&path, Some([2; 2]), Layout::Nchw).map_err(|error| error.to_string())
        };
        assert!(load(2.0, 0.0).is_ok());
        for (scale, variance, says) in [
            (2.0, -1.0, "`bn.variance` has -1 at position 0: expected finite numbers, none below 0"),
            (f32::NAN, 1.0, "`bn.scale` has NaN at position 0: expected finite numbers"),
            (
                2.0,
                f32::INFINITY,
                "`bn.variance` has inf at position 0: expected finite numbers, none below 0",
            ),
        ] {
            let error = load(scale, variance).unwrap_err();
            assert!(error.ends_with(says), "{error}");
        }
    }
}
