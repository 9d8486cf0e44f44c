use super::proto::*;
use super::*;
use crate::arrays::Array;
use crate::graph::ElementType;
use bytes::Bytes;
use ndarray::{ArcArray, IxDyn};
use proptest::prelude::*;
use prost::Message;
use std::fs;
use std::path::Path;

fn value(name: &str, elem_type: DataType, dims: Vec<DimensionProto>) -> ValueInfoProto {
    let tensor_type =
        TensorTypeProto { elem_type: elem_type as i32, shape: Some(TensorShapeProto { dim: dims }) };
    let r#type = Some(TypeProto { tensor_type: Some(tensor_type), ..Default::default() });
    ValueInfoProto { name: name.to_owned(), r#type }
}

fn size(size: i64) -> DimensionProto {
    DimensionProto { dim_value: Some(size), dim_param: None }
}

fn param(name: &str) -> DimensionProto {
    DimensionProto { dim_value: None, dim_param: Some(name.to_owned()) }
}

fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto {
        op_type: op.to_owned(),
        input: inputs.iter().map(|name| (*name).to_owned()).collect(),
        output: outputs.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    }
}

fn raw(name: &str, data_type: DataType, dims: &[i64], bytes: &[u8]) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        data_type: data_type as i32,
        dims: dims.to_vec(),
        raw_data: Bytes::copy_from_slice(bytes),
        ..Default::default()
    }
}

fn entry(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto { key: key.to_owned(), value: value.to_owned() }
}

fn external(location: &str, offset: &str, dims: &[i64]) -> TensorProto {
    TensorProto {
        name: "w".to_owned(),
        data_type: DataType::Uint8 as i32,
        dims: dims.to_vec(),
        data_location: EXTERNAL,
        external_data: vec![entry("location", location), entry("offset", offset), entry("checksum", "?")],
        ..Default::default()
    }
}

fn model(graph: GraphProto) -> ModelProto {
    ModelProto {
        ir_version: 8,
        graph: Some(graph),
        opset_import: vec![
            OperatorSetIdProto { domain: "com.microsoft".to_owned(), version: 1 },
            OperatorSetIdProto { domain: String::new(), version: 17 },
        ],
        metadata_props: vec![entry("character", "a\nb")],
        ..Default::default()
    }
}

fn read(graph: GraphProto) -> Result<Model, OnnxReadError> {
    Model::from_bytes(model(graph).encode_to_vec(), None)
}

fn error(graph: GraphProto) -> String {
    read(graph).expect_err("expected an error").to_string()
}

/// A network with a bit of everything, its nodes in the wrong order.
fn sample() -> GraphProto {
    let attribute =
        |name: &str, r#type| AttributeProto { name: name.to_owned(), r#type, ..Default::default() };
    let mut clip = node("Clip", &["y", "", "six"], &["z"]);
    clip.name = "/act/Clip;1:0".to_owned();
    let mut conv = node("Conv", &["x", "w"], &["y", ""]);
    conv.domain = "ai.onnx".to_owned();
    conv.attribute = vec![
        AttributeProto { i: 2, ..attribute("group", INT) },
        AttributeProto { ints: vec![1, 1], ..attribute("strides", INTS) },
        AttributeProto { s: b"SAME_UPPER".to_vec(), ..attribute("auto_pad", STRING) },
        AttributeProto { s: b"\xff".to_vec(), ..attribute("blob", STRING) },
        AttributeProto { f: 0.5, ..attribute("alpha", FLOAT) },
        AttributeProto { floats: vec![0.5, 1.0], ..attribute("scales", FLOATS) },
        AttributeProto { strings: vec![b"a".to_vec()], ..attribute("names", STRINGS) },
        AttributeProto { g: Some(Box::default()), ..attribute("body", GRAPH) },
        AttributeProto { tensors: vec![TensorProto::default()], ..attribute("many", TENSORS) },
    ];
    let mut constant = node("Constant", &[], &["six"]);
    let six = raw("", DataType::Float, &[], &6f32.to_le_bytes());
    constant.attribute = vec![AttributeProto { t: Some(Box::new(six)), ..attribute("value", TENSOR) }];
    let float_data = TensorProto {
        name: "w".to_owned(),
        data_type: DataType::Float as i32,
        dims: vec![1, 2],
        float_data: vec![1.0, -2.0],
        ..Default::default()
    };
    GraphProto {
        name: "sample".to_owned(),
        node: vec![clip, conv, constant],
        initializer: vec![float_data],
        input: vec![
            value(
                "x",
                DataType::Float,
                vec![param("batch"), size(3), size(0), size(-1), param("?"), param("")],
            ),
            value("w", DataType::Float, vec![size(1), size(2)]),
        ],
        output: vec![ValueInfoProto { name: "z".to_owned(), r#type: None }],
        ..Default::default()
    }
}

fn initializer(tensor: TensorProto) -> Result<Array, OnnxReadError> {
    read(GraphProto { initializer: vec![tensor], ..Default::default() })?.initializers["w"].to_array()
}

fn integers(shape: &[usize], numbers: &[i64]) -> Array {
    Array::I64(ArcArray::from_shape_vec(IxDyn(shape), numbers.to_vec()).unwrap())
}

fn floats(shape: &[usize], numbers: &[f32]) -> Array {
    Array::F32(ArcArray::from_shape_vec(IxDyn(shape), numbers.to_vec()).unwrap())
}

#[test]
fn a_file_is_read_as_it_is_written() {
    let model = read(sample()).unwrap();
    assert_eq!((model.opset, model.name.as_str()), (17, "sample"));
    assert_eq!(model.metadata["character"], "a\nb");
    let dims = [Dim::Named("batch".to_owned()), Dim::Known(3), Dim::Open, Dim::Open, Dim::Open, Dim::Open];
    let x = ValueInfo { name: "x".to_owned(), element: Some(ElementType::F32), dims: Some(dims.to_vec()) };
    assert_eq!(model.inputs, [x], "`w` is an initializer");
    assert_eq!(model.outputs, [ValueInfo { name: "z".to_owned(), element: None, dims: None }]);
    let names: Vec<_> = model.nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["Conv#1", "Constant#2", "/act/Clip;1:0"]);
    let (conv, constant, clip) = (&model.nodes[0], &model.nodes[1], &model.nodes[2]);
    assert_eq!((conv.domain.as_str(), conv.op.as_str()), ("", "Conv"));
    assert_eq!(conv.outputs, [Some("y".to_owned()), None]);
    assert_eq!(clip.inputs, [Some("y".to_owned()), None, Some("six".to_owned())]);
    assert_eq!(conv.attributes["group"], Attribute::Int(2));
    assert_eq!(conv.attributes["strides"], Attribute::Ints(vec![1, 1]));
    assert_eq!(conv.attributes["auto_pad"], Attribute::String("SAME_UPPER".to_owned()));
    assert_eq!(conv.attributes["blob"], Attribute::Other("bytes"));
    assert_eq!(conv.attributes["alpha"], Attribute::Float(0.5));
    assert_eq!(conv.attributes["scales"], Attribute::Floats(vec![0.5, 1.0]));
    assert_eq!(conv.attributes["names"], Attribute::Strings(vec!["a".to_owned()]));
    assert_eq!(conv.attributes["body"], Attribute::Graph);
    assert_eq!(conv.attributes["many"], Attribute::Other("arrays"));
    assert_eq!(model.initializers["w"].to_array().unwrap(), floats(&[1, 2], &[1.0, -2.0]));
    let Attribute::Tensor(six) = &constant.attributes["value"] else { panic!("an array") };
    assert_eq!(six.name(), "Constant#2.value");
    assert_eq!(six.to_array().unwrap(), floats(&[], &[6.0]));
}

#[test]
fn weights_are_parts_of_the_file() {
    let tensor = raw("w", DataType::Uint8, &[4], &[7; 4]);
    let bytes =
        Bytes::from(model(GraphProto { initializer: vec![tensor], ..Default::default() }).encode_to_vec());
    let decoded = ModelProto::decode(bytes.clone()).unwrap();
    let weights = decoded.graph.unwrap().initializer[0].raw_data.clone();
    assert!(bytes.as_ptr_range().contains(&weights.as_ptr()));
}

#[test]
fn arrays_of_every_type() {
    use DataType::*;
    let tensor =
        |data_type, dims: &[i64]| TensorProto { raw_data: Bytes::new(), ..raw("w", data_type, dims, &[]) };
    let cases = [
        (raw("w", Float, &[1], &1.5f32.to_le_bytes()), floats(&[1], &[1.5])),
        (raw("w", Double, &[1], &1.5f64.to_le_bytes()), floats(&[1], &[1.5])),
        (raw("w", Float16, &[2], &[0, 0x3c, 0, 0xc0]), floats(&[2], &[1.0, -2.0])),
        (raw("w", Bfloat16, &[1], &[0xc0, 0x3f]), floats(&[1], &[1.5])),
        (raw("w", Int8, &[2], &[0xff, 1]), integers(&[2], &[-1, 1])),
        (raw("w", Int16, &[1], &[0xfe, 0xff]), integers(&[1], &[-2])),
        (raw("w", Int32, &[1], &(-3i32).to_le_bytes()), integers(&[1], &[-3])),
        (raw("w", Int64, &[1], &i64::MIN.to_le_bytes()), integers(&[1], &[i64::MIN])),
        (raw("w", Uint8, &[1], &[0xff]), integers(&[1], &[255])),
        (raw("w", Uint16, &[1], &[0xff, 0xff]), integers(&[1], &[65535])),
        (raw("w", Uint32, &[1], &[0xff; 4]), integers(&[1], &[u32::MAX.into()])),
        (raw("w", Uint64, &[1], &5u64.to_le_bytes()), integers(&[1], &[5])),
        (TensorProto { float_data: vec![1.5], ..tensor(Float, &[]) }, floats(&[], &[1.5])),
        (TensorProto { double_data: vec![1.5], ..tensor(Double, &[1]) }, floats(&[1], &[1.5])),
        (TensorProto { int32_data: vec![0x3c00], ..tensor(Float16, &[1]) }, floats(&[1], &[1.0])),
        (TensorProto { int32_data: vec![0xbfc0], ..tensor(Bfloat16, &[1]) }, floats(&[1], &[-1.5])),
        (TensorProto { int32_data: vec![-128], ..tensor(Int8, &[1]) }, integers(&[1], &[-128])),
        (TensorProto { int32_data: vec![-300], ..tensor(Int16, &[1]) }, integers(&[1], &[-300])),
        (
            TensorProto { int32_data: vec![i32::MIN], ..tensor(Int32, &[1]) },
            integers(&[1], &[i32::MIN.into()]),
        ),
        (TensorProto { int32_data: vec![255, 0], ..tensor(Uint8, &[2]) }, integers(&[2], &[255, 0])),
        (TensorProto { int32_data: vec![65535], ..tensor(Uint16, &[1]) }, integers(&[1], &[65535])),
        (TensorProto { int64_data: vec![1, -2], ..tensor(Int64, &[2, 1]) }, integers(&[2, 1], &[1, -2])),
        (TensorProto { uint64_data: vec![7], ..tensor(Uint32, &[1]) }, integers(&[1], &[7])),
        (TensorProto { uint64_data: vec![7], ..tensor(Uint64, &[1]) }, integers(&[1], &[7])),
        (tensor(Float, &[0, 3]), floats(&[0, 3], &[])),
        (raw("w", Int4, &[3], &[0x7f, 0x08]), integers(&[3], &[-1, 7, -8])),
        (raw("w", Uint4, &[2], &[0x7f]), integers(&[2], &[15, 7])),
        (raw("w", Int2, &[5], &[0b1110_0100, 0b10]), integers(&[5], &[0, 1, -2, -1, -2])),
        (raw("w", Uint2, &[4], &[0b1110_0100]), integers(&[4], &[0, 1, 2, 3])),
    ];
    for (tensor, expected) in cases {
        assert_eq!(initializer(tensor.clone()).unwrap(), expected, "{tensor:?}");
    }
    let booleans = Array::Bool(ArcArray::from_shape_vec(IxDyn(&[2]), vec![true, false]).unwrap());
    assert_eq!(initializer(raw("w", Bool, &[2], &[1, 0])).unwrap(), booleans);
    assert_eq!(initializer(TensorProto { int32_data: vec![1, 0], ..tensor(Bool, &[2]) }).unwrap(), booleans);
}

#[test]
fn tensors_that_are_none() {
    use DataType::*;
    let error = |tensor| initializer(tensor).expect_err("expected an error").to_string();
    let bytes = |dims: &[i64], count| error(raw("w", Float, dims, &vec![0; count]));
    assert_eq!(bytes(&[2], 7), "tensor `w` has 7 bytes: expected 8");
    assert_eq!(bytes(&[2, 3], 8), "tensor `w` has 8 bytes: expected 24");
    assert_eq!(bytes(&[], 0), "tensor `w` has 0 elements: expected 1");
    assert_eq!(bytes(&[1 << 40], 4), "tensor `w` has 4 bytes: expected 4398046511104");
    for shape in [[-1, 2], [1 << 40, 1 << 40], [i64::MAX, 0], [i64::MAX, 1]] {
        let expected = "expected sizes of 0 and more whose product fits in memory";
        assert_eq!(bytes(&shape, 4), format!("tensor `w` of shape {shape:?}: {expected}"));
    }
    let expected = "expected floats of 16 to 64 bits, integers of 2 to 64 or booleans";
    for (data_type, name) in
        [(String, "string"), (Complex64, "complex64"), (Float8e5m2, "float8e5m2"), (Float4e2m1, "float4e2m1")]
    {
        assert_eq!(
            error(raw("w", data_type, &[1], &[0])),
            format!("tensor `w` is of type {name}: {expected}")
        );
    }
    assert_eq!(error(raw("w", Int4, &[3], &[0])), "tensor `w` has 1 bytes: expected 2");
    let unknown = TensorProto { data_type: 99, ..raw("w", Float, &[1], &[0]) };
    assert_eq!(error(unknown), format!("tensor `w` is of type number 99: {expected}"));
    let wide = TensorProto { int32_data: vec![256], ..raw("w", Uint8, &[1], &[]) };
    assert_eq!(error(wide), "tensor `w` has the value 256: expected one of type uint8");
    let wide = raw("w", Uint64, &[1], &[0xff; 8]);
    assert_eq!(error(wide), "tensor `w` has the value 18446744073709551615: expected one of type int64");
    let segment =
        TensorProto { segment: Some(SegmentProto { begin: 0, end: 1 }), ..raw("w", Float, &[1], &[0; 4]) };
    assert_eq!(error(segment), "tensor `w` is in segments: expected a whole one");
    let location = TensorProto { data_location: 2, ..raw("w", Float, &[1], &[0; 4]) };
    assert_eq!(error(location), "tensor `w` has data_location `2`: expected a number");
}

/// The model of one external tensor, in a folder.
fn in_folder(folder: &Path, tensor: TensorProto) -> Result<Array, OnnxReadError> {
    let path = folder.join("model.onnx");
    fs::write(&path, model(GraphProto { initializer: vec![tensor], ..Default::default() }).encode_to_vec())
        .unwrap();
    Model::read(path)?.initializers["w"].to_array()
}

#[test]
fn data_in_other_files() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("inside");
    fs::create_dir_all(inside.join("sub")).unwrap();
    fs::write(inside.join("sub/w.data"), [1, 2, 3, 4]).unwrap();
    fs::write(folder.path().join("secret"), [0; 4]).unwrap();
    let read = |tensor| in_folder(&inside, tensor);
    assert_eq!(read(external("./sub/w.data", "1", &[2])).unwrap(), integers(&[2], &[2, 3]));
    let error = |tensor| read(tensor).expect_err("expected an error").to_string();
    for location in
        ["/etc/passwd", "../secret", "sub/../../secret", "..", "", "C:\\secret", "..\\secret", "\\secret"]
    {
        let expected = format!("tensor `w` is in `{location}`: expected a file in the folder of the model");
        assert!(error(external(location, "0", &[4])).ends_with(&expected), "{location}");
    }
    assert!(error(external("sub", "0", &[4])).ends_with("sub`, which is not a file"));
    assert!(error(external("none", "0", &[4])).contains("none`, which cannot be read: "));
    assert!(error(external("a\0b", "0", &[4])).contains("which cannot be read: "));
    let short = "w.data`, which has 4 bytes: expected 6 and more";
    assert!(error(external("sub/w.data", "2", &[4])).ends_with(short));
    let far = u64::MAX.to_string();
    assert!(
        error(external("sub/w.data", &far, &[4]))
            .contains("which has 4 bytes: expected 18446744073709551615")
    );
    assert!(
        error(external("sub/w.data", "-1", &[4])).ends_with("tensor `w` has offset `-1`: expected a number")
    );
    assert!(error(external("sub/w.data", "0", &[1 << 50])).contains("which has 4 bytes"));
    let mut length = external("sub/w.data", "0", &[2]);
    length.external_data.push(entry("length", "3"));
    assert!(error(length).ends_with("tensor `w` has 3 bytes: expected 2"));
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("../secret", inside.join("link")).unwrap();
        assert!(
            error(external("link", "0", &[4]))
                .ends_with("`link`: expected a file in the folder of the model")
        );
    }
    let nowhere = initializer(external("w.data", "0", &[4])).unwrap_err().to_string();
    assert_eq!(nowhere, "tensor `w` is in `w.data`: expected a model without data in other files");
}

#[test]
fn files_that_are_none() {
    let folder = tempfile::tempdir().unwrap();
    assert!(
        matches!(Model::read(folder.path()), Err(OnnxReadError::InFile { error, .. }) if matches!(*error, OnnxReadError::NotAFile))
    );
    assert!(matches!(Model::read(folder.path().join("none")), Err(OnnxReadError::InFile { .. })));
    let empty = folder.path().join("empty");
    fs::write(&empty, []).unwrap();
    let message = Model::read(&empty).unwrap_err().to_string();
    assert_eq!(
        message,
        format!("`{}`: not an ONNX file, or damaged: expected a graph in it", empty.display())
    );
    assert!(matches!(
        Model::from_bytes(&b"\x80\x00\x00\x00\x00\x00\x00\x00{}"[..], None),
        Err(OnnxReadError::Decode(_))
    ));
}

#[test]
fn versions() {
    let with = |ir_version, domain: &str, version| {
        let opset_import = vec![OperatorSetIdProto { domain: domain.to_owned(), version }];
        let model = ModelProto { ir_version, opset_import, ..model(GraphProto::default()) };
        Model::from_bytes(model.encode_to_vec(), None).map(|model| model.opset)
    };
    assert_eq!(with(3, "ai.onnx", 7).unwrap(), 7);
    assert_eq!(with(13, "", 24).unwrap(), 24);
    assert_eq!(with(8, "", 6).unwrap_err().to_string(), "opset 6: expected 7 to 24");
    assert_eq!(with(8, "", 25).unwrap_err().to_string(), "opset 25: expected 7 to 24");
    assert_eq!(with(2, "", 9).unwrap_err().to_string(), "IR version 2: expected 3 to 13");
    let missing = "no version of the default operators (`ai.onnx`): expected 7 to 24";
    assert_eq!(with(8, "ai.onnx.ml", 1).unwrap_err().to_string(), missing);
}

#[test]
fn values_that_do_not_fit_together() {
    let x = || value("x", DataType::Float, Vec::new());
    let graph = |node: Vec<NodeProto>| GraphProto { node, input: vec![x()], ..Default::default() };
    let missing = graph(vec![node("Relu", &["x"], &["y"]), node("Add", &["y", "no\nne"], &["z"])]);
    assert_eq!(error(missing), r"node `Add#1` takes `no\nne`, which nothing makes");
    let cycle = graph(vec![
        node("Relu", &["c"], &["d"]),
        node("Add", &["x", "c"], &["b"]),
        node("Relu", &["b"], &["c"]),
        node("Relu", &["d"], &["e"]),
    ]);
    assert_eq!(error(cycle), "node `Relu#2` depends on itself");
    assert_eq!(error(graph(vec![node("Relu", &["y"], &["y"])])), "node `Relu#0` depends on itself");
    let twice = graph(vec![node("Relu", &["x"], &["y"]), node("Relu", &["x"], &["y"])]);
    assert_eq!(error(twice), "value `y` is defined twice, the second time by node `Relu#1`");
    let again = graph(vec![node("Relu", &["x"], &["x"])]);
    assert_eq!(error(again), "value `x` is defined twice, the second time by node `Relu#0`");
    let inputs = GraphProto { input: vec![x(), x()], ..Default::default() };
    assert_eq!(error(inputs), "value `x` is defined twice, the second time by an input");
    let w = || raw("w", DataType::Uint8, &[1], &[0]);
    let initializers = GraphProto { initializer: vec![w(), w()], ..Default::default() };
    assert_eq!(error(initializers), "value `w` is defined twice, the second time by an initializer");
    let unnamed = GraphProto { initializer: vec![TensorProto::default()], ..Default::default() };
    assert_eq!(error(unnamed), "an initializer without a name");
    assert_eq!(
        error(GraphProto { output: vec![x()], ..Default::default() }),
        "output `x` is made by nothing"
    );
    let through = GraphProto { output: vec![x()], ..graph(Vec::new()) };
    assert_eq!(read(through).unwrap().outputs[0].name, "x");
}

#[test]
fn what_is_not_read() {
    let sparse =
        SparseTensorProto { values: Some(raw("s", DataType::Uint8, &[1], &[0])), ..Default::default() };
    let graph = GraphProto { sparse_initializer: vec![sparse], ..Default::default() };
    assert_eq!(error(graph), "sparse initializer `s`: expected dense ones");
    let sequence = TypeProto { sequence_type: Some(OtherTypeProto {}), ..Default::default() };
    let input = ValueInfoProto { name: "x".to_owned(), r#type: Some(sequence) };
    let message = error(GraphProto { input: vec![input], ..Default::default() });
    assert_eq!(message, "value `x` is a sequence: expected an array of numbers or booleans");
    let message =
        error(GraphProto { input: vec![value("x", DataType::String, Vec::new())], ..Default::default() });
    assert_eq!(message, "value `x` is an array of type string: expected an array of numbers or booleans");
    let call = NodeProto { domain: "local".to_owned(), ..node("F", &[], &["y"]) };
    let functions = vec![FunctionProto { name: "F".to_owned(), domain: "local".to_owned() }];
    let graph = GraphProto { node: vec![call], ..Default::default() };
    let calls = ModelProto { functions: functions.clone(), ..model(graph) };
    let message = Model::from_bytes(calls.encode_to_vec(), None).unwrap_err().to_string();
    let expected = "functions of the file's own: `F` (node `F#0`): expected operators of the standard only";
    assert_eq!(message, expected);
    let unused = ModelProto { functions, ..model(GraphProto::default()) };
    assert!(Model::from_bytes(unused.encode_to_vec(), None).is_ok());
    let mut twice = node("Relu", &[], &["y"]);
    twice.attribute = vec![AttributeProto { name: "a".to_owned(), r#type: INT, ..Default::default() }; 2];
    let message = error(GraphProto { node: vec![twice.clone()], ..Default::default() });
    assert_eq!(message, "node `Relu#0` has two attributes `a`");
    twice.attribute = vec![AttributeProto { name: "a".to_owned(), r#type: TENSOR, ..Default::default() }];
    let message = error(GraphProto { node: vec![twice], ..Default::default() });
    assert_eq!(message, "node `Relu#0` has an attribute `a` of no known type");
}

/// A field that holds a message.
fn field(tag: u8, message: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag << 3 | 2];
    prost::encoding::encode_varint(message.len() as u64, &mut bytes);
    bytes.extend(message);
    bytes
}

#[test]
fn deep_nests_are_refused() {
    let mut graph = Vec::new();
    for _ in 0..5000 {
        graph = field(1, &field(5, &field(6, &graph)));
    }
    let bytes = field(7, &graph);
    assert!(matches!(Model::from_bytes(bytes, None), Err(OnnxReadError::Decode(_))));
}

/// Reads bytes, and every array in them.
fn read_all(bytes: Vec<u8>) {
    let Ok(model) = Model::from_bytes(bytes, None) else { return };
    let attributes = model.nodes.iter().flat_map(|node| node.attributes.values());
    let constants = attributes
        .filter_map(|value| if let Attribute::Tensor(tensor) = value { Some(&**tensor) } else { None });
    for tensor in model.initializers.values().chain(constants) {
        let _ = tensor.to_array();
    }
}

proptest! {
    #[test]
    fn damaged_files_do_not_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3), 1..8), cut in any::<bool>(),
    ) {
        let mut bytes = model(sample()).encode_to_vec();
        for (index, byte, change) in changes {
            let at = index.index(bytes.len());
            match change {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => bytes[at] ^= 1 << (byte % 8),
            }
            if cut && change == 0 {
                bytes.truncate(at + 1);
            }
        }
        read_all(bytes);
    }

    #[test]
    fn any_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        read_all(bytes);
    }

    #[test]
    fn any_shape_and_length_do_not_panic(dims in prop::collection::vec(any::<i64>(), 0..4), length in 0usize..20, data_type in 0..30) {
        let _ = initializer(TensorProto { data_type, ..raw("w", DataType::Undefined, &dims, &vec![1; length]) });
    }
}
