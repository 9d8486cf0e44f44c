//! Networks with operations on arrays, of ONNX files, on tensors: the values of the engine on slices, and gradients.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Gradients, Tensor, TensorData};
use dr_runtime::arrays::Array;
use dr_runtime::graph::Op;
use dr_runtime::onnx::Layout;
use dr_runtime::{Arithmetic, Network, npy};
use dr_train::artifact::{Artifact, SavedModel};
use dr_train::data::Input;
use dr_train::nn::{Pass, Tensors, Value};
use dr_train::weights::load_onnx;
use std::path::{Path, PathBuf};

pub const FIXTURES: [&str; 5] =
    ["squeeze-old-13", "squeeze-new-18", "grouped-old-17", "encoder-old-17", "residual-new-18"];

pub fn fixture(name: &str, file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../dr-runtime/tests/onnx").join(name).join(file)
}

pub fn array(path: &Path) -> Array {
    npy::read(path).unwrap().remove(0).1
}

/// An array as what the network takes.
pub fn input(artifact: &Artifact, array: &Array) -> Value {
    match artifact.graph().unwrap().input() {
        Some(Op::Images { .. }) => {
            let dims: [usize; 4] = array.dims().try_into().unwrap();
            let values = TensorData::new(array.floats().unwrap().into_owned(), dims);
            Tensor::<4>::from_data(values, &Device::flex()).into()
        }
        _ => array.clone().into(),
    }
}

/// The largest difference, as a part of the largest value.
pub fn difference(found: &Array, expected: &Array) -> f32 {
    let (found, expected) = (found.floats().unwrap(), expected.floats().unwrap());
    assert_eq!(found.len(), expected.len());
    let largest = |values: &mut dyn Iterator<Item = f32>| values.fold(0f32, |most, x| most.max(x.abs()));
    largest(&mut found.iter().zip(&*expected).map(|(a, b)| a - b)) / largest(&mut expected.iter().copied())
}

/// The largest gradient of each layer's weight, in the order of their names.
struct Largest<'a> {
    gradients: &'a Gradients,
    path: Vec<String>,
    found: Vec<(String, f32)>,
}

impl ModuleVisitor for Largest<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = param.val().grad(self.gradients) {
            self.found.push((self.path.join("."), gradient.abs().max().into_scalar()));
        }
    }
}

/// Compares the network on tensors, with and without gradients, to that on slices; and gives the gradients of the sum of squares of what
/// comes out.
fn check(artifact: &Artifact, array: &Array) -> Vec<(String, f32)> {
    let expected = Network::load_with(artifact, None, Arithmetic::Integer).unwrap();
    let expected = expected.forward_arrays(std::slice::from_ref(array)).unwrap().remove(0);
    let pass = Pass::float();
    let model = artifact.network(&Device::flex()).unwrap();
    let found = model.run(&mut Tensors::new(&pass), input(artifact, array)).to_array().unwrap();
    assert!(difference(&found, &expected) < 1e-4, "{}", difference(&found, &expected));
    let trained = model.fork(&Device::flex().autodiff()).train();
    let tracked = trained.run(&mut Tensors::new(&pass), input(artifact, array).autodiff());
    assert!(difference(&tracked.to_array().unwrap(), &expected) < 1e-4);
    let squares = match tracked {
        Value::Images(x) => x.channels_first().square().sum(),
        Value::Rows(x) => x.square().sum(),
        Value::Floats(x) => x.into_values().square().sum(),
        other => panic!("{}", other.name()),
    };
    let gradients = squares.backward();
    let mut largest = Largest { gradients: &gradients, path: vec![], found: vec![] };
    trained.visit_named(&mut largest);
    largest.found
}

#[test]
fn networks_with_arrays_are_trained() {
    for name in FIXTURES {
        let artifact = load_onnx(&fixture(name, "model.onnx"), Some([8; 2]), Layout::Nchw).unwrap();
        let gradients = check(&artifact, &array(&fixture(name, "input_0.npy")));
        assert!(gradients.len() >= artifact.graph().unwrap().layers().len(), "{name}: {gradients:?}");
        assert!(gradients.iter().all(|(_, of)| of.is_finite() && *of > 0.0), "{name}: {gradients:?}");
    }
}
