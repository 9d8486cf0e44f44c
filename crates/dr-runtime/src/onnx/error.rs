//! [`OnnxReadError`].

use super::file::NodeInfo;
use super::operators::Refusal;
use super::{IR_VERSIONS, OPSETS};
use crate::graph::GraphError;
use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// Why an ONNX file cannot be read. Every message is one line.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OnnxReadError {
    /// Any of the others, and the file it is about.
    #[error("`{}`: {error}", path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: Box<OnnxReadError>,
    },
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Read(io::Error),
    /// A folder, or something stranger.
    #[error("not a file: expected an .onnx file")]
    NotAFile,
    /// Not the messages that the format has, or too deeply nested ones.
    #[error("not an ONNX file, or damaged: {0}")]
    Decode(prost::DecodeError),
    /// No graph.
    #[error("not an ONNX file, or damaged: expected a graph in it")]
    NoGraph,
    /// Of another version of the format.
    #[error("IR version {0}: expected {first} to {last}", first = IR_VERSIONS.start(), last = IR_VERSIONS.end())]
    IrVersion(i64),
    /// Nothing says which version of the operators is meant.
    #[error("no version of the default operators (`ai.onnx`): expected {first} to {last}", first = OPSETS.start(), last = OPSETS.end())]
    NoOpset,
    /// Operators of another version.
    #[error("opset {0}: expected {first} to {last}", first = OPSETS.start(), last = OPSETS.end())]
    Opset(i64),
    /// Operators that the file itself defines.
    #[error("functions of the file's own: {}: expected operators of the standard only", list(.0))]
    Functions(
        /// Nodes and what they call.
        Vec<(String, String)>,
    ),
    /// Sparse weights.
    #[error("sparse initializer {}: expected dense ones", shown(.0))]
    Sparse(String),
    /// An input, an output or an initializer without a name.
    #[error("{0} without a name")]
    Unnamed(&'static str),
    /// Two values of one name.
    #[error("value {} is defined twice, the second time by {by}", shown(name))]
    DuplicateValue {
        /// The value.
        name: String,
        /// What defines it again.
        by: Definer,
    },
    /// An input or output of the network that is not an array, or of elements that no array has.
    #[error("value {} is {found}: expected an array of numbers or booleans", shown(name))]
    ValueType {
        /// The value.
        name: String,
        /// What it is.
        found: String,
    },
    /// A node that takes a value which is not there.
    #[error("node {} takes {}, which nothing makes", shown(node), shown(value))]
    MissingValue {
        /// The node.
        node: String,
        /// The value.
        value: String,
    },
    /// An output of the network which is not there.
    #[error("output {} is made by nothing", shown(.0))]
    MissingOutput(String),
    /// Nodes that wait for each other.
    #[error("node {} depends on itself", shown(.0))]
    Cycle(String),
    /// An attribute given twice.
    #[error("node {} has two attributes {}", shown(node), shown(attribute))]
    DuplicateAttribute {
        /// The node.
        node: String,
        /// The attribute.
        attribute: String,
    },
    /// An attribute whose type is unknown, or whose value is not there.
    #[error("node {} has an attribute {} of no known type", shown(node), shown(attribute))]
    Attribute {
        /// The node.
        node: String,
        /// The attribute.
        attribute: String,
    },
    /// Elements that no array has.
    #[error(
        "tensor {} is of type {found}: expected floats of 16 to 64 bits, integers of 2 to 64 or booleans",
        shown(tensor)
    )]
    Element {
        /// The tensor.
        tensor: String,
        /// Its type.
        found: String,
    },
    /// Sizes that no array has.
    #[error(
        "tensor {} of shape {}: expected sizes of 0 and more whose product fits in memory",
        shown(tensor),
        dims(shape)
    )]
    Shape {
        /// The tensor.
        tensor: String,
        /// Its sizes.
        shape: Vec<i64>,
    },
    /// More or fewer elements than the shape says.
    #[error("tensor {} has {found} {unit}: expected {expected}", shown(tensor))]
    Length {
        /// The tensor.
        tensor: String,
        /// What is there.
        found: u64,
        /// What its shape says.
        expected: u64,
        /// What is counted.
        unit: &'static str,
    },
    /// A number that is not of the tensor's type, or not of the integers that arrays have.
    #[error("tensor {} has the value {value}: expected one of type {expected}", shown(tensor))]
    Range {
        /// The tensor.
        tensor: String,
        /// The number.
        value: i128,
        /// The type.
        expected: &'static str,
    },
    /// A part of a tensor.
    #[error("tensor {} is in segments: expected a whole one", shown(.0))]
    Segment(String),
    /// A location that is not plainly inside the folder of the model.
    #[error("tensor {} is in {}: expected a file in the folder of the model", shown(tensor), shown(location))]
    Location {
        /// The tensor.
        tensor: String,
        /// Where it is said to be.
        location: String,
    },
    /// A description of where data are that is not readable.
    #[error("tensor {} has {key} {}: expected a number", shown(tensor), shown(value))]
    External {
        /// The tensor.
        tensor: String,
        /// What is given.
        key: &'static str,
        /// As what.
        value: String,
    },
    /// Data in another file, for a model that is in none.
    #[error(
        "tensor {} is in {}: expected a model without data in other files",
        shown(tensor),
        shown(location)
    )]
    NoFolder {
        /// The tensor.
        tensor: String,
        /// The file.
        location: String,
    },
    /// Another file that cannot be read.
    #[error("tensor {} is in `{}`, which cannot be read: {error}", shown(tensor), path.display())]
    ExternalRead {
        /// The tensor.
        tensor: String,
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A folder, or something stranger, where data should be.
    #[error("tensor {} is in `{}`, which is not a file", shown(tensor), path.display())]
    ExternalNotAFile {
        /// The tensor.
        tensor: String,
        /// What is there.
        path: PathBuf,
    },
    /// Another file that ends before the data do.
    #[error("tensor {} is in `{}`, which has {found} bytes: expected {expected} and more", shown(tensor), path.display())]
    ExternalShort {
        /// The tensor.
        tensor: String,
        /// The file.
        path: PathBuf,
        /// Its bytes.
        found: u64,
        /// How many it takes.
        expected: u64,
    },
}

/// What defines a value.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Definer {
    /// An input of the network.
    Input,
    /// An initializer.
    Initializer,
    /// A node.
    Node(String),
}

impl Display for Definer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Input => f.write_str("an input"),
            Self::Initializer => f.write_str("an initializer"),
            Self::Node(name) => write!(f, "node {}", shown(name)),
        }
    }
}

/// At most so many characters of a name are shown, nodes of a list, and sizes of a shape.
const SHOWN: (usize, usize, usize) = (120, 20, 12);

/// A name in a message: on one line, and not longer than one.
fn shown(name: &str) -> String {
    let mut text = String::new();
    for c in name.chars().take(SHOWN.0) {
        if c.is_control() { text.extend(c.escape_default()) } else { text.push(c) }
    }
    let end = if name.chars().nth(SHOWN.0).is_some() { "…" } else { "" };
    format!("`{text}{end}`")
}

fn list(nodes: &[(String, String)]) -> String {
    let mut text: Vec<_> = nodes
        .iter()
        .take(SHOWN.1)
        .map(|(node, op)| format!("{} (node {})", shown(op), shown(node)))
        .collect();
    if nodes.len() > SHOWN.1 {
        text.push(format!("{} more", nodes.len() - SHOWN.1));
    }
    text.join(", ")
}

fn dims(shape: &[i64]) -> String {
    let mut text: Vec<_> = shape.iter().take(SHOWN.2).map(i64::to_string).collect();
    if shape.len() > SHOWN.2 {
        text.push("…".to_owned());
    }
    format!("[{}]", text.join(", "))
}

/// Why a file is no network that can be run. Every message is one line.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OnnxImportError {
    /// The file.
    #[error(transparent)]
    Read(#[from] OnnxReadError),
    /// Nodes that cannot be run.
    #[error("{}", refused(.0))]
    Refused(
        /// All of them.
        Vec<RefusedNode>,
    ),
    /// An input or output of the network.
    #[error("{what} {}: {why}", shown(name))]
    Value {
        /// Which of the two.
        what: &'static str,
        /// Its name.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// Values that do not fit together.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

impl OnnxImportError {
    pub(super) fn input(name: &str, why: &Refusal) -> Self {
        Self::Value { what: "input", name: name.to_owned(), why: why.to_string() }
    }

    pub(super) fn output(name: &str, why: &Refusal) -> Self {
        Self::Value { what: "output", name: name.to_owned(), why: why.to_string() }
    }
}

/// A node that cannot be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedNode {
    /// Its operator, with its domain if that is not the standard's.
    pub op: String,
    /// Its name.
    pub node: String,
    pub(super) why: Refusal,
}

impl RefusedNode {
    pub(super) fn of(node: &NodeInfo, why: Refusal) -> Self {
        let op = match node.domain.is_empty() {
            true => node.op.clone(),
            false => format!("{}.{}", node.domain, node.op),
        };
        Self { op, node: node.name.clone(), why }
    }
}

/// All nodes, those of one operator together.
fn refused(nodes: &[RefusedNode]) -> String {
    let mut parts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for RefusedNode { op, node, why } in nodes {
        let what = match why {
            Refusal::Unknown(with) if with.is_empty() => format!("cannot run {}", shown(op)),
            Refusal::Unknown(with) => format!("cannot run {} {with}", shown(op)),
            Refusal::Wrong(why) => format!("{}: {why}", shown(op)),
        };
        parts.entry(what).or_default().push(shown(node).to_string());
    }
    let part = |(what, nodes): (String, Vec<String>)| format!("{what} (node {})", nodes.join(", "));
    parts.into_iter().map(part).collect::<Vec<_>>().join("; ")
}
