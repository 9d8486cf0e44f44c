//! Export to ONNX: a network in floats, or a quantized one at one precision, or with one for each layer.
//!
//! Quantized layers are ordinary convolutions and matrix products between `QuantizeLinear` and `DequantizeLinear` (QDQ), which runtimes
//! turn into integer arithmetic. The codes of weights and activations are those of the integer network. BatchNorm is part of the
//! weights' scales and of the bias. A width that ONNX has no type for takes the next wider type, and codes of activations are kept in
//! their range by a `Min` before they are made. ONNX has integers for zero points only. A zero point of activations is subtracted
//! before quantization and added after it, and an offset of weights is added to each output's dequantized codes: both are exact.
//! Layers that a calibrated network has in floats are ordinary convolutions and matrix products.
//!
//! Images and layers (`nodes`) and operations on arrays (`arrays`) are written in one place each. Constants have the names of their
//! tensors; inputs and results have the names that the file had that the network comes from.
//!
//! Two things are as they are for onnxruntime (1.32). It rounds the bias of a convolution to a multiple of the product of
//! both scales, which at few bits changes results: only convolutions in 8-bit types, which it can turn into integers, have
//! their bias inside, others have an `Add` after them. And it does not load a graph in which a `Clip` is before a
//! `QuantizeLinear` of less than 8 bits: there is none.

mod arrays;
mod graph;
mod nodes;

use crate::artifact::{Artifact, ArtifactKind};
use dr_precision::{BitWidth, Granularity};
use dr_runtime::graph::{Embedding, Graph, Op, Reduction, TensorOp};
use dr_runtime::onnx::proto::{DataType, ModelProto, OperatorSetIdProto, StringStringEntryProto};
use dr_runtime::{Arithmetic, Network, RuntimeError};
use nodes::Writer;
use prost::Message;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// The version of ONNX's operators that a file asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opset(u8);

impl Default for Opset {
    /// The first with types of 4 bits.
    fn default() -> Self {
        Self(21)
    }
}

impl fmt::Display for Opset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Opset {
    type Err = OnnxError;

    fn from_str(text: &str) -> Result<Self, OnnxError> {
        match text.parse() {
            Ok(version @ 21..=TWO_BITS) => Ok(Self(version)),
            _ => Err(OnnxError::Opset(text.to_owned())),
        }
    }
}

/// The first version with types of 2 bits.
const TWO_BITS: u8 = 25;

impl Opset {
    /// The version of the file format that goes with it.
    const fn ir_version(self) -> i64 {
        match self.0 {
            ..=22 => 10,
            23 => 11,
            24 => 12,
            _ => 13,
        }
    }

    /// The narrowest types of weights and of activations that hold codes of so many bits.
    fn types(self, bits: BitWidth) -> (DataType, DataType) {
        match bits.bits() {
            ..=2 if self.0 >= TWO_BITS => (DataType::Int2, DataType::Uint2),
            ..=4 => (DataType::Int4, DataType::Uint4),
            _ => (DataType::Int8, DataType::Uint8),
        }
    }
}

/// The name of the images that a network of ours takes: `[batch, channels, rows, columns]`, normalised.
pub const INPUT: &str = "images";
/// The name of its result: `[n, classes]`, a row for each image, or for each of its positions.
pub const OUTPUT: &str = "logits";

/// Bytes of the largest message that its format allows.
const MOST_BYTES: usize = i32::MAX as usize;

/// The most axes of an array, or parts of one, that are written.
const MOST: usize = 1 << 12;

/// Why a network has no ONNX file.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OnnxError {
    /// Parts that are not written: what they are, and their layers or nodes.
    #[error("without a counterpart in ONNX files: {}", listed(.0))]
    Refused(BTreeMap<&'static str, Vec<String>>),
    /// A version of ONNX's operators that is not known.
    #[error("`{0}`: expected a whole number from 21 to {TWO_BITS}")]
    Opset(String),
    /// A file that readers do not take.
    #[error("{0} bytes: expected at most {MOST_BYTES} in an ONNX file")]
    Bytes(usize),
    /// The network.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

fn listed(refused: &BTreeMap<&'static str, Vec<String>>) -> String {
    let of = |(what, names): (&&str, &Vec<String>)| format!("{what} ({})", names.join(", "));
    refused.iter().map(of).collect::<Vec<_>>().join("; ")
}

/// The network of a saved model as an ONNX file: in floats, or at the highest of its precisions.
///
/// # Errors
/// Parts of language models, linear layers with scales for groups of inputs: all of them are named; and a model that does not run.
pub fn export(artifact: &Artifact, opset: Opset) -> Result<Vec<u8>, OnnxError> {
    let description = &artifact.description;
    let precision = description.precisions().map(|precisions| precisions.highest());
    let refused = refused(artifact.graph().map_err(RuntimeError::from)?, artifact);
    if !refused.is_empty() {
        return Err(OnnxError::Refused(refused));
    }
    let network = Network::load_with(artifact, precision, Arithmetic::Integer)?;
    let numbers = precision.map_or_else(|| "float".to_owned(), |precision| precision.to_string());
    let graph = Writer::new(&network, description, opset).write(&format!("{} {numbers}", description.model));
    let entry = |key: &str, value: String| StringStringEntryProto { key: key.into(), value };
    let list = |values: &[f32]| values.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let images = matches!(network.graph().input(), Some(Op::Images { .. }));
    let model = ModelProto {
        ir_version: opset.ir_version(),
        producer_name: env!("CARGO_PKG_NAME").into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        graph: Some(graph),
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: opset.0.into() }],
        metadata_props: match images {
            true => vec![
                entry("dataset", description.dataset.clone()),
                entry("mean", list(&description.normalization.mean)),
                entry("std", list(&description.normalization.std)),
            ],
            false => vec![],
        },
        ..ModelProto::default()
    };
    match model.encoded_len() {
        bytes if bytes > MOST_BYTES => Err(OnnxError::Bytes(bytes)),
        _ => Ok(model.encode_to_vec()),
    }
}

/// What is not written, and where it is.
fn refused(graph: &Graph, artifact: &Artifact) -> BTreeMap<&'static str, Vec<String>> {
    let mut refused: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
    for (at, node) in graph.nodes().iter().enumerate() {
        let node_name = || format!("node {at}");
        let (what, name) = match node.op {
            Op::Tokens => ("tokens", node_name()),
            Op::RmsNorm(norm) => ("RMSNorm", graph.rms_norms()[norm].name.clone()),
            Op::Embedding(table) => match &graph.embeddings()[table] {
                Embedding::Own { name, .. } => ("embedding", name.clone()),
                Embedding::Layer(layer) => ("embedding", graph.layers()[*layer].name.clone()),
            },
            Op::Attention(_) => ("attention", node_name()),
            Op::Array(TensorOp::GlobalPool(of)) if !matches!(of, Reduction::Mean | Reduction::Max) => {
                ("global pools other than of means and maxima", node_name())
            }
            Op::Array(TensorOp::Part { index, of, .. }) if index >= of || of > MOST => {
                ("parts of more than there are", node_name())
            }
            Op::Array(TensorOp::Normalize { axis, .. }) if axis.unsigned_abs() > MOST => {
                ("normalizations over more axes than there are", node_name())
            }
            Op::Layer(layer) => match artifact.description.layer_format(graph, layer) {
                Some(format) if format.granularity != Granularity::Channel => {
                    ("layers with scales for groups of inputs", graph.layers()[layer].name.clone())
                }
                Some(_) if artifact.description.kind == ArtifactKind::Nested => {
                    ("layers with nested weights", graph.layers()[layer].name.clone())
                }
                _ => continue,
            },
            _ => continue,
        };
        let names = refused.entry(what).or_default();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    refused
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::{Described, Description, InputShape, SavedModel};
    use crate::models::{ConvNetConfig, ConvNetKind, MOBILENET_V2, RESNET8, RESNET18, RESNET50};
    use crate::nn::{Model, QuantConfig};
    use burn::tensor::{Device, Distribution, Tensor};
    use dr_precision::PrecisionSet;
    use dr_runtime::onnx::proto::GraphProto;
    use std::collections::HashSet;

    /// The graph of a small network, as read back from its file.
    fn graph(model: ConvNetKind, precision: &str, opset: u8) -> GraphProto {
        let (device, set) = (Device::flex(), PrecisionSet::of(precision.parse().unwrap()));
        let config = ConvNetConfig { width: 8, ..ConvNetConfig::new(model, 3, 5) };
        let images = Tensor::<4>::random([2, 3, 16, 16], Distribution::Normal(0.0, 1.0), &device);
        let input = InputShape { channels: 3, height: 16, width: 16 };
        let description = Description::new("folder", &model, input, 5, set.clone());
        let description = Description { width: 8, ..description };
        let float = Artifact::of(&Model::trace(&config.init(1, &device)).unwrap(), description).unwrap();
        let artifact = float.quantize(&QuantConfig::new(set.clone()), vec![images], &device).unwrap();
        let bytes = export(&artifact, Opset(opset)).unwrap();
        let file = ModelProto::decode(bytes.as_slice()).unwrap();
        assert_eq!(file.opset_import[0].version, i64::from(opset));
        file.graph.unwrap()
    }

    fn count(graph: &GraphProto, op: &str) -> usize {
        graph.node.iter().filter(|node| node.op_type == op).count()
    }

    #[test]
    fn every_value_is_made_once_and_before_it_is_used() {
        for (model, convs) in [(RESNET8, 10), (RESNET18, 21), (RESNET50, 54), (MOBILENET_V2, 53)] {
            let graph = graph(model, "w4a8", 21);
            let mut known: HashSet<&str> = HashSet::from([INPUT]);
            assert!(graph.initializer.iter().all(|constant| known.insert(&constant.name)));
            for node in &graph.node {
                assert!(node.input.iter().all(|input| known.contains(input.as_str())), "{node:?}");
                assert!(node.output.iter().all(|output| known.insert(output)), "{node:?}");
            }
            assert!(known.contains(OUTPUT));
            assert_eq!(count(&graph, "Conv"), convs, "{}", model.name);
            assert_eq!(count(&graph, "QuantizeLinear"), convs);
            assert_eq!(count(&graph, "DequantizeLinear"), 2 * convs);
            assert_eq!(
                count(&graph, "MaxPool"),
                usize::from(![RESNET8.name, MOBILENET_V2.name].contains(&model.name))
            );
        }
    }

    #[test]
    fn the_narrowest_type_that_holds_the_codes() {
        let types = |precision, opset| {
            let graph = graph(RESNET8, precision, opset);
            let of = |name: &str| {
                graph.initializer.iter().find(|constant| constant.name == name).unwrap().data_type
            };
            let clips = count(&graph, "Min");
            (of("stages.0.0.conv1/weight_codes"), of("stages.0.0.conv1/zero"), of("stem/weight_codes"), clips)
        };
        let [int8, uint8] = [DataType::Int8, DataType::Uint8].map(|t| t as i32);
        let [int4, uint4] = [DataType::Int4, DataType::Uint4].map(|t| t as i32);
        assert_eq!(types("w4a8", 21), (int4, uint8, int4, 0));
        assert_eq!(types("w6a6", 21), (int8, uint8, int8, 10));
        assert_eq!(types("w2a2", 21), (int4, uint4, int4, 10));
        assert_eq!(
            types("w2a2", 25),
            (DataType::Int2 as i32, DataType::Uint2 as i32, DataType::Int2 as i32, 0)
        );
    }
}
