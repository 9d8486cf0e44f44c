//! Export to ONNX: a quantized network at one precision, or with one for each layer, as a graph of `QuantizeLinear` and
//! `DequantizeLinear` around ordinary convolutions (QDQ), which runtimes turn into integer arithmetic.
//!
//! The codes of weights and activations are those of the integer network. BatchNorm is part of the weights' scales and of
//! the bias. A width that ONNX has no type for takes the next wider type, and codes of activations are kept in their
//! range by a `Min` before they are made. A zero point that is not zero is subtracted before and added after, as it is
//! no multiple of the scale. Layers that a calibrated network has in floats are ordinary convolutions.
//!
//! Two things are as they are for onnxruntime (1.32). It rounds the bias of a convolution to a multiple of the product of
//! both scales, which at few bits changes results: only convolutions in 8-bit types, which it can turn into integers, have
//! their bias inside, others have an `Add` after them. And it does not load a graph in which a `Clip` is before a
//! `QuantizeLinear` of less than 8 bits: there is none.

mod graph;

use crate::artifact::{Described, Description};
use crate::config::task::CLASSIFY;
use dr_kernels::integer::CodeQuantizer;
use dr_precision::BitWidth;
use dr_runtime::LayerParts;
use dr_runtime::graph::{Activation, Graph, Kind, LayerKind, Node, Op};
use dr_runtime::onnx::proto::{DataType, ModelProto, OperatorSetIdProto, StringStringEntryProto};
use dr_runtime::tensors::Network;
use graph::GraphBuilder;
use graph::{bits_of, int, ints, text};
use prost::Message;
use std::collections::BTreeSet;
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

/// The name of the graph's input: `[batch, channels, rows, columns]`, normalised.
pub const INPUT: &str = "images";
/// The name of its output: `[n, classes]`, a row for each image, or for each of its positions.
pub const OUTPUT: &str = "logits";

/// Why a network has no ONNX file.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnnxError {
    /// Operations that are not written.
    #[error("operations without a counterpart in ONNX files: {0}: expected those of networks for images")]
    Operations(String),
    /// A version of ONNX's operators that is not known.
    #[error("`{0}`: expected a whole number from 21 to {TWO_BITS}")]
    Opset(String),
    /// A layer that is neither in integers nor in floats on this computer's processor.
    #[error(
        "layer `{0}` is not on the processor, or takes rows of floats: expected a network loaded so, in integers"
    )]
    Layer(String),
    /// Scales for groups of inputs.
    #[error("layer `{0}` has scales for groups of inputs: expected one for each output in ONNX")]
    Groups(String),
}

/// The network at its precision as an ONNX file, for images of the size that the description has.
///
/// # Errors
/// Operations of language models, and linear layers with scales for groups of inputs.
pub fn export(network: &Network, description: &Description, opset: Opset) -> Result<Vec<u8>, OnnxError> {
    let (graph, input) = (network.graph(), description.input);
    check(graph)?;
    let sizes = graph.sizes([input.height, input.width]);
    let mut writer = Writer { onnx: GraphBuilder::default(), opset, network, graph, sizes, weights: vec![] };
    writer.network()?;
    let name = format!("{} {}", description.model, network.precision());
    let rows = if description.check_task(CLASSIFY).is_ok() { "batch" } else { "positions" };
    let images = (INPUT, "batch", &[input.channels, input.height, input.width][..]);
    let logits = (OUTPUT, rows, &[graph.outputs().unwrap_or(description.classes)][..]);
    let graph = writer.onnx.finish(&name, images, logits);
    let entry = |key: &str, value: String| StringStringEntryProto { key: key.into(), value };
    let list = |values: &[f32]| values.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let model = ModelProto {
        ir_version: opset.ir_version(),
        producer_name: env!("CARGO_PKG_NAME").into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        graph: Some(graph),
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: opset.0.into() }],
        metadata_props: vec![
            entry("dataset", description.dataset.to_string()),
            entry("mean", list(&description.normalization.mean)),
            entry("std", list(&description.normalization.std)),
        ],
        ..ModelProto::default()
    };
    Ok(model.encode_to_vec())
}

/// Whether all operations can be written.
fn check(graph: &Graph) -> Result<(), OnnxError> {
    let without = |node: &Node| match node.op {
        Op::Tokens => Some("tokens"),
        Op::RmsNorm(_) => Some("RMSNorm"),
        Op::Embedding(_) => Some("embedding"),
        Op::Attention(_) => Some("attention"),
        Op::Array(_) => Some("operations on arrays"),
        _ => None,
    };
    let names: BTreeSet<&str> = graph.nodes().iter().filter_map(without).collect();
    match names.is_empty() {
        true => Ok(()),
        false => Err(OnnxError::Operations(names.into_iter().collect::<Vec<_>>().join(", "))),
    }
}

/// Writes a graph node by node. Rows of features are images of one pixel.
struct Writer<'a> {
    onnx: GraphBuilder,
    opset: Opset,
    network: &'a Network,
    graph: &'a Graph,
    /// Rows and columns of each node's value.
    sizes: Vec<[usize; 2]>,
    /// The layers whose weights are written.
    weights: Vec<usize>,
}

impl Writer<'_> {
    fn network(&mut self) -> Result<(), OnnxError> {
        let mut values: Vec<String> = vec![];
        for (at, Node { op, inputs }) in self.graph.nodes().iter().enumerate() {
            let x: Vec<&str> = inputs.iter().map(|&input| values[input].as_str()).collect();
            let name = |what: &str| format!("node{at}/{what}");
            values.push(match *op {
                Op::Images { .. } => INPUT.to_owned(),
                Op::Layer(layer) => self.layer(at, layer, x[0])?,
                // Part of the layer before it.
                Op::BatchNorm(_) => x[0].to_owned(),
                Op::Activation(activation) => self.activation(&name("activation"), x[0], activation),
                Op::Add => self.onnx.node(&name("add"), "Add", &x, vec![]),
                Op::Multiply => self.onnx.node(&name("multiply"), "Mul", &x, vec![]),
                Op::MaxPool { kernel, stride, padding: [rows, columns] } => {
                    let attributes = vec![
                        ints("kernel_shape", &kernel),
                        ints("strides", &stride),
                        ints("pads", &[rows, columns, rows, columns]),
                    ];
                    self.onnx.node(&name("pool"), "MaxPool", &x, attributes)
                }
                Op::Mean => self.onnx.node(&name("mean"), "GlobalAveragePool", &x, vec![]),
                Op::Enlarge => self.enlarge(&name("enlarge"), x[0], self.sizes[inputs[0]], self.sizes[at]),
                Op::Concat => self.onnx.node(&name("concat"), "Concat", &x, vec![int("axis", 1)]),
                Op::Rows => self.rows(&name("rows"), &x, self.graph.kind(at)),
                Op::Flatten => self.reshape(&name("flat"), x[0], &[0, -1, 1, 1]),
                Op::Tokens | Op::RmsNorm(_) | Op::Embedding(_) | Op::Attention(_) | Op::Array(_) => {
                    unreachable!("{op:?}: was looked for before")
                }
            });
        }
        let last = values.last().map_or(INPUT, String::as_str).to_owned();
        self.onnx.node(OUTPUT, "Flatten", &[&last], vec![]);
        Ok(())
    }

    fn reshape(&mut self, name: &str, x: &str, shape: &[i64]) -> String {
        let shape = self.onnx.ints(&format!("{name}/shape"), shape);
        self.onnx.node(name, "Reshape", &[x, &shape], vec![])
    }

    fn activation(&mut self, name: &str, x: &str, activation: Activation) -> String {
        match activation {
            Activation::Relu => self.onnx.node(name, "Relu", &[x], vec![]),
            Activation::Relu6 => {
                let y = self.onnx.node(&format!("{name}/relu"), "Relu", &[x], vec![]);
                self.at_most(name, &y, 6.0)
            }
            Activation::Silu => {
                let gate = self.onnx.node(&format!("{name}/sigmoid"), "Sigmoid", &[x], vec![]);
                self.onnx.node(name, "Mul", &[x, &gate], vec![])
            }
        }
    }

    /// All pixels repeated, of which the first ones are taken.
    fn enlarge(&mut self, name: &str, x: &str, from: [usize; 2], to: [usize; 2]) -> String {
        let part = |part: &str| format!("{name}/{part}");
        let [rows, columns] = [0, 1].map(|axis| to[axis].div_ceil(from[axis].max(1)));
        let mut x = x.to_owned();
        if [rows, columns] != [1, 1] {
            let scales = self.onnx.floats(&part("scales"), &[4], &[1.0, 1.0, rows as f32, columns as f32]);
            let attributes = vec![
                text("mode", "nearest"),
                text("coordinate_transformation_mode", "asymmetric"),
                text("nearest_mode", "floor"),
            ];
            x = self.onnx.node(&part("repeated"), "Resize", &[&x, "", &scales], attributes);
        }
        if [from[0] * rows, from[1] * columns] != to {
            let starts = self.onnx.ints(&part("starts"), &[0, 0]);
            let ends = self.onnx.ints(&part("ends"), &to.map(|size| size as i64));
            let axes = self.onnx.ints(&part("axes"), &[2, 3]);
            x = self.onnx.node(&part("first"), "Slice", &[&x, &starts, &ends, &axes], vec![]);
        }
        x
    }

    /// The pixels of one or several images in turn.
    fn rows(&mut self, name: &str, images: &[&str], kind: Kind) -> String {
        let Kind::Rows(Some(channels)) = kind else { unreachable!("rows of pixels have their channels") };
        let channels = channels as i64;
        let mut parts = vec![];
        for (i, image) in images.iter().enumerate() {
            let last = vec![ints("perm", &[0, 2, 3, 1])];
            let x = self.onnx.node(&format!("{name}/{i}/last"), "Transpose", &[image], last);
            parts.push(self.reshape(&format!("{name}/{i}"), &x, &[0, -1, channels]));
        }
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let all = vec![int("axis", 1)];
        let x = self.onnx.node(&format!("{name}/all"), "Concat", &parts, all);
        self.reshape(name, &x, &[-1, channels, 1, 1])
    }

    /// A layer of `x`, which is the node's input; gives the name of its result.
    fn layer(&mut self, node: usize, layer: usize, x: &str) -> Result<String, OnnxError> {
        let of = &self.graph.layers()[layer];
        let parts = self.network.layer(layer).ok_or_else(|| OnnxError::Layer(of.name.clone()))?;
        let outputs = of.kind.outputs();
        let first = !self.weights.contains(&layer);
        // A layer that is used several times has its weights once.
        let name = if first { of.name.clone() } else { format!("{}/node{node}", of.name) };
        let (part, weight) =
            (|part: &str| format!("{name}/{part}"), |part: &str| format!("{}/{part}", of.name));
        let mut dims = of.kind.weight_shape();
        dims.resize(4, 1);
        if first {
            self.weights.push(layer);
        }
        // Whether the bias is inside.
        let (x, inside) = match parts {
            LayerParts::Float { weight: values, shift } => {
                if first {
                    self.onnx.floats(&weight("weight"), &dims, &values);
                    self.onnx.floats(&weight("bias"), &[outputs], &shift);
                }
                (x.to_owned(), true)
            }
            LayerParts::Integer { scale, .. } if scale.len() != outputs => {
                return Err(OnnxError::Groups(of.name.clone()));
            }
            LayerParts::Integer { bits, codes, scale, offset, shift, input } => {
                let x = self.fake_quantized(&name, input, x);
                let (weight_type, _) = self.opset.types(bits);
                let (_, input_type) = self.opset.types(input.bits);
                let inside = [weight_type, input_type].iter().all(|of| bits_of(*of) == 8);
                if first {
                    let w = self.onnx.codes(&weight("weight_codes"), &dims, weight_type, &codes);
                    let scale = self.onnx.floats(&weight("weight_scale"), &[outputs], &scale);
                    let axis = vec![int("axis", 0)];
                    let scaled = if offset.is_some() { "weight_scaled" } else { "weight" };
                    let w = self.onnx.node(&weight(scaled), "DequantizeLinear", &[&w, &scale], axis);
                    if let Some(offset) = offset {
                        let offset = self.onnx.floats(&weight("weight_offset"), &[outputs, 1, 1, 1], &offset);
                        self.onnx.node(&weight("weight"), "Add", &[&w, &offset], vec![]);
                    }
                    let shape = if inside { vec![outputs] } else { vec![outputs, 1, 1] };
                    self.onnx.floats(&weight("bias"), &shape, &shift);
                }
                (x, inside)
            }
        };
        let (stride, [rows, columns]) = match of.kind {
            LayerKind::Conv2d { stride, padding, .. } => (stride, padding),
            LayerKind::Linear { .. } => ([1; 2], [0; 2]),
        };
        let attributes = vec![
            ints("kernel_shape", &dims[2..]),
            ints("strides", &stride),
            ints("dilations", &[1; 2]),
            ints("pads", &[rows, columns, rows, columns]),
            int("group", of.kind.groups() as i64),
        ];
        let (w, bias) = (weight("weight"), weight("bias"));
        Ok(match inside {
            true => self.onnx.node(&part("conv"), "Conv", &[&x, &w, &bias], attributes),
            false => {
                let y = self.onnx.node(&part("conv"), "Conv", &[&x, &w], attributes);
                self.onnx.node(&part("biased"), "Add", &[&y, &bias], vec![])
            }
        })
    }

    /// The input of a layer, quantized and dequantized.
    fn fake_quantized(&mut self, name: &str, input: CodeQuantizer, x: &str) -> String {
        let part = |part: &str| format!("{name}/{part}");
        let (_, data_type) = self.opset.types(input.bits);
        let zero_point = (input.zero_point != 0.0)
            .then(|| self.onnx.floats(&part("zero_point"), &[], &[input.zero_point]));
        let mut x = x.to_string();
        if let Some(zero) = &zero_point {
            x = self.onnx.node(&part("from_zero_point"), "Sub", &[&x, zero], vec![]);
        }
        if bits_of(data_type) != input.bits.bits() {
            // Negative values become zero anyway.
            let largest = input.scale * input.bits.unsigned_max() as f32;
            x = self.at_most(&part("range"), &x, largest);
        }
        let scale = self.onnx.floats(&part("scale"), &[], &[input.scale]);
        let zero = self.onnx.codes(&part("zero"), &[], data_type, &[0]);
        let codes = self.onnx.node(&part("codes"), "QuantizeLinear", &[&x, &scale, &zero], vec![]);
        x = self.onnx.node(&part("values"), "DequantizeLinear", &[&codes, &scale, &zero], vec![]);
        match zero_point {
            Some(zero) => self.onnx.node(&part("to_zero_point"), "Add", &[&x, &zero], vec![]),
            None => x,
        }
    }

    /// Values up to `largest`.
    fn at_most(&mut self, name: &str, x: &str, largest: f32) -> String {
        let high = self.onnx.floats(&format!("{name}/largest"), &[], &[largest]);
        self.onnx.node(name, "Min", &[x, &high], vec![])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::InputShape;
    use crate::artifact::{Artifact, SavedModel};
    use crate::models::{ConvNetConfig, ConvNetKind, MOBILENET_V2, RESNET8, RESNET18, RESNET50};
    use crate::nn::{Model, QuantConfig};
    use burn::tensor::{Device, Distribution, Tensor};
    use dr_precision::PrecisionSet;
    use dr_runtime::Arithmetic;
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
        let network = Network::load(&artifact, set.highest(), Arithmetic::Integer, &device).unwrap();
        let bytes = export(&network, &artifact.description, Opset(opset)).unwrap();
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
