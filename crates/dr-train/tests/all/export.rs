//! Networks of ONNX files as ONNX files again, read back by the importer.

use crate::arrays::{FIXTURES, array, difference, fixture, input};
use crate::llama::quantized;
use burn::tensor::Device;
use dr_runtime::arrays::Array;
use dr_runtime::onnx::{Dim, Imported, Layout, Model, lower};
use dr_runtime::{Arithmetic, Network};
use dr_train::artifact::{Artifact, SavedModel};
use dr_train::models::LlamaConfig;
use dr_train::onnx::{self, OnnxError, Opset};
use dr_train::quantization::{CalibratedModel, NetworkOptions, calibrate};
use dr_train::weights::load_onnx;

/// The network of an exported file.
fn again(artifact: &Artifact) -> (Model, Imported) {
    let bytes = onnx::export(artifact, Opset::default()).unwrap();
    let model = Model::from_bytes(bytes, None).unwrap();
    let imported = lower(&model, Layout::Nchw).unwrap();
    (model, imported)
}

fn run(artifact: &Artifact, x: &Array) -> Array {
    let precision = artifact.description.precisions().map(|precisions| precisions.highest());
    let network = Network::load_with(artifact, precision, Arithmetic::Integer).unwrap();
    network.forward_arrays(std::slice::from_ref(x)).unwrap().remove(0)
}

#[test]
fn networks_in_floats_come_back() {
    for name in FIXTURES {
        let path = fixture(name, "model.onnx");
        let (before, x) = (Model::read(&path).unwrap(), array(&fixture(name, "input_0.npy")));
        let artifact = load_onnx(&path, Some([8; 2]), Layout::Nchw).unwrap();
        let artifact = Artifact::from_bytes(&artifact.to_bytes().unwrap()).unwrap();
        let expected = run(&artifact, &x);
        let (model, imported) = again(&artifact);
        // Names, types, and sizes as far as they are fixed.
        assert_eq!(model.inputs.len(), before.inputs.len());
        for (found, expected) in model.inputs.iter().zip(&before.inputs) {
            assert_eq!((&found.name, found.element), (&expected.name, expected.element), "{name}");
            let (found, expected) = (found.dims.as_ref().unwrap(), expected.dims.as_ref().unwrap());
            for (found, expected) in found.iter().zip(expected) {
                match expected {
                    Dim::Known(_) => assert_eq!(found, expected, "{name}"),
                    Dim::Named(_) | Dim::Open => assert!(matches!(found, Dim::Named(_)), "{name}: {found:?}"),
                }
            }
        }
        let names =
            |model: &Model| model.outputs.iter().map(|output| output.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&model), names(&before));
        assert_eq!(imported.graph.layers().len(), artifact.graph().unwrap().layers().len(), "{name}");
        let found = run(&imported.into_artifact(name, [8; 2]), &x);
        assert_eq!(found.dims(), expected.dims());
        assert!(difference(&found, &expected) < 1e-5, "{name}: {}", difference(&found, &expected));
    }
}

#[test]
fn calibrated_networks_come_back_at_a_precision() {
    let precisions: dr_precision::PrecisionSet = "w8a8,w4a8,w4a4,w2a6".parse().unwrap();
    for name in FIXTURES {
        let x = array(&fixture(name, "input_0.npy"));
        let float = load_onnx(&fixture(name, "model.onnx"), Some([8; 2]), Layout::Nchw).unwrap();
        let options = NetworkOptions {
            precisions: precisions.clone(),
            switch_edge: true,
            switch_depthwise: true,
            float_share: 0.0,
            memory: u64::MAX,
            folder: std::env::temp_dir(),
        };
        let (artifact, _) = calibrate(&float, vec![input(&float, &x)], &options, |_| ()).unwrap();
        for precision in precisions.iter() {
            let only = artifact.export(precision).unwrap();
            let (model, imported) = again(&only);
            let count = |op: &str| model.nodes.iter().filter(|node| node.op == op).count();
            let layers = only.graph().unwrap().layers().len();
            assert_eq!([count("QuantizeLinear"), count("DequantizeLinear")], [layers, 2 * layers]);
            let found = run(&imported.into_artifact(name, [8; 2]), &x);
            let fake = CalibratedModel::new(&artifact, precision, &Device::flex()).unwrap();
            let fake = fake.run(input(&artifact, &x)).to_array().unwrap();
            for (what, expected) in [("integers", run(&only, &x)), ("floats", fake)] {
                assert_eq!(found.dims(), expected.dims());
                let difference = difference(&found, &expected);
                assert!(difference < 1e-4, "{name} {precision}, {what}: {difference}");
            }
        }
    }
}

#[test]
fn what_is_not_written_is_named_at_once() {
    let (_, artifact) = quantized(&LlamaConfig::small(61, 64, 2, 64), "w8a8");
    let error = onnx::export(&artifact, Opset::default()).unwrap_err();
    let OnnxError::Refused(refused) = &error else { panic!("{error}") };
    let kinds: Vec<(&str, usize)> = refused.iter().map(|(what, names)| (*what, names.len())).collect();
    assert_eq!(kinds, [("RMSNorm", 5), ("attention", 2), ("embedding", 1), ("tokens", 1)], "{error}");
    let text = error.to_string();
    assert!(
        text.starts_with("without a counterpart in ONNX files: RMSNorm (")
            && text.ends_with("tokens (node 0)"),
        "{text}"
    );
}
