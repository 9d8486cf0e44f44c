//! [`Model`]: the content of a file.

use super::proto::{self, AttributeProto, GraphProto, ModelProto, NodeProto, TypeProto, ValueInfoProto};
use super::tensor::type_name;
use super::{Definer, IR_VERSIONS, Initializer, OPSETS, OnnxReadError, order};
use crate::graph::ElementType;
use crate::refuse_lfs_pointer;
use bytes::Bytes;
use prost::Message;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

/// A network as its file describes it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Model {
    /// The version of the default operators, one of [`OPSETS`].
    pub opset: i64,
    /// The graph's name.
    pub name: String,
    /// What else the file says, by key.
    pub metadata: BTreeMap<String, String>,
    /// What it takes, without what is also an initializer.
    pub inputs: Vec<ValueInfo>,
    /// What it gives.
    pub outputs: Vec<ValueInfo>,
    /// Constants, by name.
    pub initializers: BTreeMap<String, Initializer>,
    /// Operators, each after those that it needs, and otherwise as in the file.
    pub nodes: Vec<NodeInfo>,
}

/// An input or an output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueInfo {
    /// Its name.
    pub name: String,
    /// The type of its elements, if the file tells.
    pub element: Option<ElementType>,
    /// Its sizes, if the file tells how many there are.
    pub dims: Option<Vec<Dim>>,
}

/// A size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dim {
    /// This one.
    Known(usize),
    /// Any; the same wherever this name is.
    Named(String),
    /// Any.
    Open,
}

/// An operator.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeInfo {
    /// Its name; for a node without one, its operator and place in the file, as `Conv#12`.
    pub name: String,
    /// What it does.
    pub op: String,
    /// Whose operator it is: the standard's if empty.
    pub domain: String,
    /// Values that it takes; those in the middle may be left out.
    pub inputs: Vec<Option<String>>,
    /// Values that it gives; those in the middle may be left out.
    pub outputs: Vec<Option<String>>,
    /// What else says what it does, by name.
    pub attributes: BTreeMap<String, Attribute>,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    /// A number.
    Float(f32),
    /// An integer.
    Int(i64),
    /// A text.
    String(String),
    /// An array.
    Tensor(Box<Initializer>),
    /// Numbers.
    Floats(Vec<f32>),
    /// Integers.
    Ints(Vec<i64>),
    /// Texts.
    Strings(Vec<String>),
    /// A graph, which is not read: no operator that has one is run.
    Graph,
    /// What no operator has that is run, by the name of its kind.
    Other(&'static str),
}

impl Model {
    /// Reads a file. Data in other files are expected in its folder, and are read when they are asked for. The file must stay as it is
    /// as long as the model and its initializers are used.
    ///
    /// # Errors
    ///
    /// If it cannot be read or is none of a model, naming the file.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, OnnxReadError> {
        let path = path.as_ref();
        let folder =
            path.parent().map(|folder| if folder.as_os_str().is_empty() { Path::new(".") } else { folder });
        content(path)
            .and_then(|bytes| Self::from_bytes(bytes, folder))
            .map_err(|error| OnnxReadError::InFile { path: path.to_owned(), error: Box::new(error) })
    }

    /// Reads the content of a file. Data in other files are expected in the folder; without one there can be none.
    ///
    /// # Errors
    ///
    /// If it is none of a model.
    pub fn from_bytes(bytes: impl Into<Bytes>, folder: Option<&Path>) -> Result<Self, OnnxReadError> {
        let model = ModelProto::decode(bytes.into()).map_err(OnnxReadError::Decode)?;
        let folder = folder.map(Arc::from);
        let opset = check_versions(&model)?;
        let graph = model.graph.ok_or(OnnxReadError::NoGraph)?;
        let functions: HashSet<_> = model
            .functions
            .iter()
            .map(|function| (domain(&function.domain), function.name.as_str()))
            .collect();
        let called = graph
            .node
            .iter()
            .enumerate()
            .filter(|(_, node)| functions.contains(&(domain(&node.domain), node.op_type.as_str())));
        let called: Vec<_> =
            called.map(|(index, node)| (node_name(node, index), node.op_type.clone())).collect();
        if !called.is_empty() {
            return Err(OnnxReadError::Functions(called));
        }
        let metadata = model.metadata_props.into_iter().map(|entry| (entry.key, entry.value)).collect();
        Self::from_graph(graph, opset, metadata, folder.as_ref())
    }

    fn from_graph(
        graph: GraphProto, opset: i64, metadata: BTreeMap<String, String>, folder: Option<&Arc<Path>>,
    ) -> Result<Self, OnnxReadError> {
        if let Some(sparse) = graph.sparse_initializer.into_iter().next() {
            return Err(OnnxReadError::Sparse(sparse.values.map(|values| values.name).unwrap_or_default()));
        }
        let mut initializers = BTreeMap::new();
        for tensor in graph.initializer {
            let name = named(tensor.name.clone(), "an initializer")?;
            match initializers.entry(name.clone()) {
                Entry::Vacant(entry) => entry.insert(Initializer::new(name, tensor, folder)?),
                Entry::Occupied(_) => {
                    return Err(OnnxReadError::DuplicateValue { name, by: Definer::Initializer });
                }
            };
        }
        let inputs = graph.input.into_iter().filter(|input| !initializers.contains_key(&input.name));
        let inputs = inputs.map(|input| value(input, "an input")).collect::<Result<Vec<_>, _>>()?;
        let outputs = graph.output.into_iter().map(|output| value(output, "an output"));
        let outputs = outputs.collect::<Result<Vec<_>, _>>()?;
        let nodes = graph.node.into_iter().enumerate().map(|(index, proto)| node(proto, index, folder));
        let nodes = order::sort(nodes.collect::<Result<_, _>>()?, &inputs, &initializers, &outputs)?;
        Ok(Self { opset, name: graph.name, metadata, inputs, outputs, initializers, nodes })
    }
}

/// The bytes of a file, mapped where that can be.
fn content(path: &Path) -> Result<Bytes, OnnxReadError> {
    // A pipe would wait for a writer when opened.
    if !std::fs::metadata(path).map_err(OnnxReadError::Read)?.is_file() {
        return Err(OnnxReadError::NotAFile);
    }
    refuse_lfs_pointer(path).map_err(OnnxReadError::Read)?;
    let mut file = File::open(path).map_err(OnnxReadError::Read)?;
    // SAFETY: The file is only read. Who changes it meanwhile breaks the promise that `read` asks for.
    if let Ok(map) = unsafe { memmap2::Mmap::map(&file) } {
        return Ok(Bytes::from_owner(map));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(OnnxReadError::Read)?;
    Ok(bytes.into())
}

/// The version of the default operators.
fn check_versions(model: &ModelProto) -> Result<i64, OnnxReadError> {
    if model.graph.is_none() {
        return Err(OnnxReadError::NoGraph);
    }
    if !IR_VERSIONS.contains(&model.ir_version) {
        return Err(OnnxReadError::IrVersion(model.ir_version));
    }
    let opset = model.opset_import.iter().find(|opset| domain(&opset.domain).is_empty());
    let opset = opset.ok_or(OnnxReadError::NoOpset)?.version;
    if OPSETS.contains(&opset) { Ok(opset) } else { Err(OnnxReadError::Opset(opset)) }
}

/// A domain, of whose names the standard has two.
fn domain(name: &str) -> &str {
    if name == "ai.onnx" { "" } else { name }
}

fn named(name: String, what: &'static str) -> Result<String, OnnxReadError> {
    if name.is_empty() { Err(OnnxReadError::Unnamed(what)) } else { Ok(name) }
}

fn value(proto: ValueInfoProto, what: &'static str) -> Result<ValueInfo, OnnxReadError> {
    let name = named(proto.name, what)?;
    let tensor = match proto.r#type {
        None => None,
        Some(TypeProto { tensor_type: Some(tensor), .. }) => Some(tensor),
        Some(other) => {
            let found = if other.sequence_type.is_some() {
                "a sequence"
            } else if other.map_type.is_some() {
                "a map"
            } else if other.sparse_tensor_type.is_some() {
                "a sparse array"
            } else if other.optional_type.is_some() {
                "an optional value"
            } else {
                return Ok(ValueInfo { name, element: None, dims: None });
            };
            return Err(OnnxReadError::ValueType { name, found: found.to_owned() });
        }
    };
    let Some(tensor) = tensor else {
        return Ok(ValueInfo { name, element: None, dims: None });
    };
    let element = ElementType::from_code(tensor.elem_type.into());
    if element.is_none() && tensor.elem_type != proto::DataType::Undefined as i32 {
        let found = format!("an array of type {}", type_name(tensor.elem_type));
        return Err(OnnxReadError::ValueType { name, found });
    }
    let dims = tensor.shape.map(|shape| {
        let dims = shape.dim.into_iter().map(|dim| match (dim.dim_value, dim.dim_param) {
            (Some(size @ 1..), _) => usize::try_from(size).map_or(Dim::Open, Dim::Known),
            (None, Some(name)) if !name.is_empty() && name != "?" => Dim::Named(name),
            _ => Dim::Open,
        });
        dims.collect()
    });
    Ok(ValueInfo { name, element, dims })
}

fn node_name(node: &NodeProto, index: usize) -> String {
    if node.name.is_empty() { format!("{}#{index}", node.op_type) } else { node.name.clone() }
}

fn node(proto: NodeProto, index: usize, folder: Option<&Arc<Path>>) -> Result<NodeInfo, OnnxReadError> {
    let name = node_name(&proto, index);
    let values = |names: Vec<String>| {
        names.into_iter().map(|name| Some(name).filter(|name| !name.is_empty())).collect()
    };
    let mut attributes = BTreeMap::new();
    for attribute in proto.attribute {
        let key = attribute.name.clone();
        let value = self::attribute(attribute, &name, folder)?;
        if attributes.insert(key.clone(), value).is_some() {
            return Err(OnnxReadError::DuplicateAttribute { node: name, attribute: key });
        }
    }
    Ok(NodeInfo {
        name,
        op: proto.op_type,
        domain: domain(&proto.domain).to_owned(),
        inputs: values(proto.input),
        outputs: values(proto.output),
        attributes,
    })
}

fn attribute(
    proto: AttributeProto, node: &str, folder: Option<&Arc<Path>>,
) -> Result<Attribute, OnnxReadError> {
    let unknown = |attribute| OnnxReadError::Attribute { node: node.to_owned(), attribute };
    if !proto.ref_attr_name.is_empty() {
        return Ok(Attribute::Other("a reference to an attribute"));
    }
    Ok(match proto.r#type {
        proto::FLOAT => Attribute::Float(proto.f),
        proto::INT => Attribute::Int(proto.i),
        proto::STRING => String::from_utf8(proto.s).map_or(Attribute::Other("bytes"), Attribute::String),
        proto::TENSOR => {
            let tensor = *proto.t.ok_or_else(|| unknown(proto.name.clone()))?;
            let name = format!("{node}.{}", proto.name);
            Attribute::Tensor(Box::new(Initializer::new(name, tensor, folder)?))
        }
        proto::GRAPH => Attribute::Graph,
        proto::FLOATS => Attribute::Floats(proto.floats),
        proto::INTS => Attribute::Ints(proto.ints),
        proto::STRINGS => {
            let strings: Result<_, _> = proto.strings.into_iter().map(String::from_utf8).collect();
            strings.map_or(Attribute::Other("bytes"), Attribute::Strings)
        }
        proto::TENSORS => Attribute::Other("arrays"),
        proto::GRAPHS => Attribute::Other("graphs"),
        proto::SPARSE_TENSOR | proto::SPARSE_TENSORS => Attribute::Other("sparse arrays"),
        proto::TYPE_PROTO | proto::TYPE_PROTOS => Attribute::Other("types"),
        _ => return Err(unknown(proto.name)),
    })
}
