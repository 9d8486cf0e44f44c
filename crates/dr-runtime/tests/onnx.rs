//! Networks of ONNX files: those that torch exported (`onnx/torch_exports.py`) give torch's outputs, and spellings become one operation.

use bytes::Bytes;
use dr_runtime::arrays::Array;
use dr_runtime::file::TensorEntry;
use dr_runtime::graph::{Activation, Graph, Kind, LayerKind, Op, TensorOp, Unary};
use dr_runtime::onnx::proto::{
    AttributeProto, DataType, DimensionProto, FLOAT, GraphProto, INT, INTS, ModelProto, NodeProto,
    OperatorSetIdProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use dr_runtime::onnx::{Imported, Layout, Model, OnnxImportError, lower};
use dr_runtime::{Arithmetic, Network, npy};
use prost::Message;
use std::path::{Path, PathBuf};

fn fixture(name: &str, file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/onnx").join(name).join(file)
}

fn array(name: &str, file: &str) -> Array {
    npy::read(&fixture(name, file)).unwrap().remove(0).1
}

fn run(imported: Imported, inputs: &[Array]) -> Vec<Array> {
    let artifact = imported.into_artifact("onnx", [8, 8]);
    let network = Network::load_with(&artifact, None, Arithmetic::Integer).unwrap();
    network.forward_arrays(inputs).unwrap()
}

#[track_caller]
fn assert_close(found: &Array, expected: &Array) {
    assert_eq!(found.dims(), expected.dims());
    for (found, expected) in found.floats().unwrap().iter().zip(expected.floats().unwrap().iter()) {
        assert!((found - expected).abs() <= 1e-4 * expected.abs().max(1.0), "{found} {expected}");
    }
}

#[test]
fn exports_of_torch_give_its_outputs() {
    for name in ["squeeze-old-13", "squeeze-new-18", "grouped-old-17", "encoder-old-17", "residual-new-18"] {
        let imported = lower(&Model::read(fixture(name, "model.onnx")).unwrap(), Layout::Nchw).unwrap();
        assert_close(&run(imported, &[array(name, "input_0.npy")])[0], &array(name, "output_0.npy"));
    }
}

/// Operations on arrays, apart from changes between arrays and images.
fn on_arrays(graph: &Graph) -> Vec<&TensorOp> {
    fn of(op: &Op) -> Option<&TensorOp> {
        match op {
            Op::Array(TensorOp::Array | TensorOp::Images { .. } | TensorOp::Constant(_)) => None,
            Op::Array(op) => Some(op),
            _ => None,
        }
    }
    graph.nodes().iter().filter_map(|node| of(&node.op)).collect()
}

#[test]
fn networks_for_images_become_layers() {
    for (name, layers) in [("residual-new-18", 7), ("squeeze-old-13", 8), ("squeeze-new-18", 8)] {
        let model = Model::read(fixture(name, "model.onnx")).unwrap();
        let Imported { graph, .. } = lower(&model, Layout::Nchw).unwrap();
        assert_eq!(graph.layers().len(), layers, "{name}");
        assert!(
            on_arrays(&graph).iter().all(|op| matches!(op, TensorOp::Unary(_))),
            "{name}: {:?}",
            on_arrays(&graph)
        );
        assert!(graph.batch_norms().is_empty());
        assert!(matches!(graph.result_kind(), Some(Kind::Rows(Some(_)))), "{name}");
    }
}

fn node(op: &str, inputs: &[&str], output: &str, attribute: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        op_type: op.into(),
        input: inputs.iter().map(|&name| name.into()).collect(),
        output: vec![output.into()],
        attribute,
        ..NodeProto::default()
    }
}

fn floats(name: &str, dims: &[i64], values: Vec<f32>) -> TensorProto {
    let (name, dims, data_type) = (name.into(), dims.to_vec(), DataType::Float as i32);
    TensorProto { name, dims, data_type, float_data: values, ..TensorProto::default() }
}

/// A network of images of two channels, any number of rows and columns.
fn images(
    nodes: Vec<NodeProto>, initializer: Vec<TensorProto>, output: &str,
) -> Result<Imported, OnnxImportError> {
    lowered([None, Some(2), None, None], Layout::Nchw, nodes, initializer, output)
}

/// A network of an input `x` of these sizes.
fn lowered<const AXES: usize>(
    dims: [Option<i64>; AXES], layout: Layout, nodes: Vec<NodeProto>, initializer: Vec<TensorProto>,
    output: &str,
) -> Result<Imported, OnnxImportError> {
    let dimension = |dim_value| DimensionProto { dim_value, ..DimensionProto::default() };
    let dim = dims.map(dimension).to_vec();
    let value = |name: &str, shape| ValueInfoProto {
        name: name.into(),
        r#type: Some(TypeProto {
            tensor_type: Some(TensorTypeProto { elem_type: DataType::Float as i32, shape }),
            ..TypeProto::default()
        }),
    };
    let graph = GraphProto {
        node: nodes,
        initializer,
        input: vec![value("x", Some(TensorShapeProto { dim }))],
        output: vec![value(output, None)],
        ..GraphProto::default()
    };
    let opset = OperatorSetIdProto { version: 13, ..OperatorSetIdProto::default() };
    let model =
        ModelProto { ir_version: 8, graph: Some(graph), opset_import: vec![opset], ..ModelProto::default() };
    lower(&Model::from_bytes(model.encode_to_vec(), None).unwrap(), layout)
}

fn scalar(name: &str, value: f32) -> TensorProto {
    floats(name, &[], vec![value])
}

#[test]
fn spellings_of_hard_swish() {
    let three =
        || vec![scalar("three", 3.0), scalar("six", 6.0), scalar("zero", 0.0), scalar("sixth", 1.0 / 6.0)];
    let gate =
        || vec![node("Add", &["x", "three"], "s", vec![]), node("Clip", &["s", "zero", "six"], "c", vec![])];
    let of = |rest: Vec<NodeProto>| images([gate(), rest].concat(), three(), "y").unwrap().graph;
    let alpha =
        AttributeProto { name: "alpha".into(), f: 1.0 / 6.0, r#type: FLOAT, ..AttributeProto::default() };
    let spellings = [
        of(vec![node("Mul", &["x", "c"], "m", vec![]), node("Div", &["m", "six"], "y", vec![])]),
        of(vec![node("Div", &["c", "six"], "d", vec![]), node("Mul", &["x", "d"], "y", vec![])]),
        of(vec![node("Mul", &["c", "sixth"], "d", vec![]), node("Mul", &["d", "x"], "y", vec![])]),
        of(vec![node("HardSigmoid", &["x"], "d", vec![alpha]), node("Mul", &["x", "d"], "y", vec![])]),
    ];
    for graph in spellings {
        let ops = on_arrays(&graph);
        assert_eq!(ops, [&TensorOp::Unary(Unary::HardSwish)], "{graph:?}");
        assert_eq!(graph.kind(graph.results()[0]), Kind::Images(2));
    }
}

#[test]
fn what_follows_a_layer_is_folded_in() {
    let kernel = AttributeProto {
        name: "kernel_shape".into(),
        ints: vec![1, 1],
        r#type: INTS,
        ..AttributeProto::default()
    };
    let nodes = vec![
        node("Conv", &["x", "w"], "c", vec![kernel]),
        node("BatchNormalization", &["c", "scale", "shift", "mean", "variance"], "b", vec![]),
        node("Mul", &["b", "gain"], "m", vec![]),
        node("Add", &["bias", "m"], "a", vec![]),
        node("Relu", &["a"], "y", vec![]),
    ];
    let constants = vec![
        floats("w", &[1, 2, 1, 1], vec![1.0, -1.0]),
        floats("scale", &[1], vec![2.0]),
        floats("shift", &[1], vec![0.5]),
        floats("mean", &[1], vec![1.0]),
        floats("variance", &[1], vec![4.0 - 1e-5]),
        floats("gain", &[1, 1, 1], vec![3.0]),
        floats("bias", &[1, 1, 1, 1], vec![0.25]),
    ];
    let imported = images(nodes, constants, "y").unwrap();
    let graph = &imported.graph;
    let [layer] = graph.layers() else { panic!("{graph:?}") };
    assert!(matches!(layer.kind, LayerKind::Conv2d { channels: [2, 1], .. }));
    let ops: Vec<&Op> = graph.nodes().iter().map(|node| &node.op).collect();
    assert_eq!(ops, [&Op::Images { channels: 2 }, &Op::Layer(0), &Op::Activation(Activation::Relu)]);
    // ((x0 - x1 - 1) + 0.5) * 3 + 0.25
    let x = Array::from_f32(vec![2.0, 0.0, 0.5, 0.0], &[1, 2, 1, 2]).unwrap();
    let expected = Array::from_f32(vec![3.25, 0.0], &[1, 1, 1, 2]).unwrap();
    assert_close(&run(imported, &[x])[0], &expected);
}

#[test]
fn all_that_cannot_be_run_is_named_at_once() {
    let strange = NodeProto {
        domain: "com.microsoft".into(),
        name: "/a;b".into(),
        ..node("FusedConv", &["x"], "f", vec![])
    };
    let nodes = vec![node("LSTM", &["x"], "l", vec![]), strange, node("Add", &["l", "f"], "y", vec![])];
    let error = images(nodes, vec![], "y").unwrap_err().to_string();
    assert_eq!(
        error,
        "cannot run `LSTM` (node `LSTM#0`); cannot run `com.microsoft.FusedConv` (node `/a;b`)"
    );
}

#[test]
fn weights_that_are_not_finite_are_named() {
    let constants = vec![floats("layer.weight", &[1, 2, 1, 1], vec![1.0, f32::NAN])];
    let error = images(vec![node("Conv", &["x", "layer.weight"], "y", vec![])], constants, "y").unwrap_err();
    assert!(error.to_string().contains("layer.weight"), "{error}");
}

fn attribute(name: &str, of: AttributeProto) -> AttributeProto {
    AttributeProto { name: name.into(), ..of }
}

/// Numbers that no file of ours holds.
#[test]
fn numbers_that_are_not_finite_are_refused() {
    for (op, name) in [("LeakyRelu", "alpha"), ("Elu", "alpha"), ("HardSigmoid", "beta"), ("LRN", "bias")] {
        for f in [f32::NAN, f32::INFINITY] {
            let size = attribute("size", AttributeProto { i: 1, r#type: INT, ..Default::default() });
            let number = attribute(name, AttributeProto { f, r#type: FLOAT, ..Default::default() });
            let nodes = vec![node(op, &["x"], "y", vec![size, number])];
            let error = images(nodes, vec![], "y").unwrap_err().to_string();
            assert!(error.contains(op) && error.contains("finite numbers"), "{error}");
        }
    }
}

/// The means of a normalization are of all axes from one on, which an axis far before the first does not make many.
#[test]
fn axes_far_before_the_first_are_refused() {
    let axis = attribute("axis", AttributeProto { i: i64::MIN + 1, r#type: INT, ..Default::default() });
    let mut of = node("LayerNormalization", &["x", "scale"], "y", vec![axis]);
    of.output.push("mean".into());
    let error = images(vec![of], vec![scalar("scale", 1.0)], "mean").unwrap_err().to_string();
    assert!(error.contains("axis -9223372036854775807"), "{error}");
}

/// What is said about each channel of images would be larger than the file by far.
#[test]
fn arrays_of_many_channels_are_no_images() {
    let of = |channels: i64| {
        let nodes = vec![node("Abs", &["x"], "y", vec![])];
        lowered([Some(1), Some(channels), Some(4), Some(1)], Layout::Nchw, nodes, vec![], "y").unwrap().graph
    };
    assert_eq!(of(3).input(), Some(&Op::Images { channels: 3 }));
    assert!(matches!(of(1 << 22).input(), Some(Op::Array(TensorOp::Input(_)))));
}

/// Codes of less than a byte are two in one, the first in the lower bits; scales and zero points are those of outputs.
#[test]
fn codes_of_weights_and_inputs_are_read_in_floats() {
    let int = |name: &str, i| attribute(name, AttributeProto { i, r#type: INT, ..Default::default() });
    let codes = |name: &str, dims: &[i64], data_type: DataType, raw_data: &'static [u8]| TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type: data_type as i32,
        raw_data: Bytes::from_static(raw_data),
        ..TensorProto::default()
    };
    let nodes = vec![
        node("QuantizeLinear", &["x", "step", "middle"], "codes", vec![]),
        node("DequantizeLinear", &["codes", "step", "middle"], "values", vec![]),
        node("DequantizeLinear", &["w", "scale", "zero"], "weight", vec![int("axis", 0)]),
        node("Conv", &["values", "weight"], "y", vec![]),
    ];
    let constants = vec![
        scalar("step", 0.5),
        codes("middle", &[], DataType::Uint4, &[3]),
        codes("w", &[3, 2, 1, 1], DataType::Int4, &[0x7f, 0x18, 0xe2]),
        floats("scale", &[3], vec![1.0, 10.0, 100.0]),
        codes("zero", &[3], DataType::Int4, &[0x10, 0x00]),
    ];
    let imported = images(nodes, constants, "y").unwrap();
    let [layer] = imported.graph.layers() else { panic!("{:?}", imported.graph) };
    // [-1, 7], [-8 - 1, 1 - 1], [2, -2]
    let expected = TensorEntry::f32([3, 2, 1, 1], vec![-1.0, 7.0, -90.0, 0.0, 200.0, -200.0]);
    assert_eq!(imported.tensors[&format!("{}.weight", layer.name)], expected);
    // Codes of 0 to 15 less 3, in steps of a half: -1.5 for -9, 6 for 9; halves of steps go to the even one.
    let x = Array::from_f32(vec![-9.0, 0.75, 9.0, 0.25, 1.0, -1.0], &[1, 2, 1, 3]).unwrap();
    let values = [[-1.5, 1.0, 6.0], [0.0, 1.0, -1.0]];
    let row = |a: f32, b: f32| (0..3).map(move |at| a * values[0][at] + b * values[1][at]);
    let expected = [row(-1.0, 7.0), row(-90.0, 0.0), row(200.0, -200.0)].into_iter().flatten().collect();
    assert_close(&run(imported, &[x])[0], &Array::from_f32(expected, &[1, 3, 1, 3]).unwrap());

    let nodes = vec![node("QuantizeLinear", &["x", "step"], "y", vec![int("output_dtype", 17)])];
    let error = images(nodes, vec![scalar("step", 0.5)], "y").unwrap_err().to_string();
    assert!(error.contains("cannot run `QuantizeLinear`"), "{error}");
}

fn transpose(input: &str, output: &str, axes: [i64; 4]) -> NodeProto {
    let perm =
        AttributeProto { name: "perm".into(), ints: axes.to_vec(), r#type: INTS, ..Default::default() };
    node("Transpose", &[input], output, vec![perm])
}

/// Images are given channels first; what the file computes has them last.
#[test]
fn channels_last() {
    let sizes = [None, Some(1), Some(2), Some(3)];
    // Two pixels of three channels: (1, 2, 3) and (4, 5, 6).
    let x = Array::from_f32(vec![1.0, 4.0, 2.0, 5.0, 3.0, 6.0], &[1, 3, 1, 2]).unwrap();
    let gain = floats("gain", &[3], vec![1.0, 10.0, 100.0]);
    let gained =
        lowered(sizes, Layout::Nhwc, vec![node("Mul", &["x", "gain"], "y", vec![])], vec![gain], "y");
    let expected = Array::from_f32(vec![1.0, 20.0, 300.0, 4.0, 50.0, 600.0], &[1, 1, 2, 3]).unwrap();
    assert_close(&run(gained.unwrap(), std::slice::from_ref(&x))[0], &expected);

    // Convolutions of ONNX have them first, so files turn them: what is turned twice stays.
    let nodes = vec![
        transpose("x", "t", [0, 3, 1, 2]),
        node("Conv", &["t", "w"], "c", vec![]),
        node("Relu", &["c"], "y", vec![]),
    ];
    let weight = floats("w", &[1, 3, 1, 1], vec![1.0, 0.0, -0.5]);
    let imported = lowered(sizes, Layout::Nhwc, nodes, vec![weight], "y").unwrap();
    let ops: Vec<&Op> = imported.graph.nodes().iter().map(|node| &node.op).collect();
    assert_eq!(ops, [&Op::Images { channels: 3 }, &Op::Layer(0), &Op::Activation(Activation::Relu)]);
    let artifact = imported.clone().into_artifact("onnx", [8, 8]);
    assert_eq!(artifact.description.input.to_string(), "3x1x2");
    let expected = Array::from_f32(vec![0.0, 1.0], &[1, 1, 1, 2]).unwrap();
    assert_close(&run(imported, &[x])[0], &expected);
}

#[test]
fn inputs_that_have_no_layout_are_refused() {
    let error = |of: Result<Imported, OnnxImportError>| of.unwrap_err().to_string();
    let abs = || vec![node("Abs", &["x"], "y", vec![])];
    let open = error(lowered([Some(1), Some(4), Some(4), None], Layout::Nhwc, abs(), vec![], "y"));
    let rows = error(lowered([Some(1), Some(4)], Layout::Nhwc, abs(), vec![], "y"));
    let expected =
        "expected one input of floats [batch, rows, columns, channels], with the number of channels";
    assert_eq!(open, format!("input `x`: open channels or other elements with the layout nhwc: {expected}"));
    assert_eq!(rows, format!("input `x`: 2 axes with the layout nhwc: {expected}"));
}
