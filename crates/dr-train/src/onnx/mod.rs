//! Export to ONNX: a quantized network at one precision, or with one for each layer, as a graph of `QuantizeLinear` and
//! `DequantizeLinear` around ordinary convolutions (QDQ), which runtimes turn into integer arithmetic.
//!
//! The codes of weights and activations are those of the integer network. BatchNorm is part of the weights' scales and of
//! the bias. A width that ONNX has no type for takes the next wider type, and codes of activations are kept in their
//! range by a `Min` before they are made. A zero point that is not zero is subtracted before and added after, as it is
//! no multiple of the scale.
//!
//! Two things are as they are for onnxruntime (1.32). It rounds the bias of a convolution to a multiple of the product of
//! both scales, which at few bits changes results: only convolutions in 8-bit types, which it can turn into integers, have
//! their bias inside, others have an `Add` after them. And it does not load a graph in which a `Clip` is before a
//! `QuantizeLinear` of less than 8 bits: there is none.

mod graph;
mod proto;

use crate::artifact::Description;
use crate::models::IntConvNet;
use crate::nn::{IntConv2d, LayerParts};
use dr_kernels::integer::Activation;
use dr_precision::BitWidth;
use graph::{Attribute, GraphBuilder};
use prost::Message;
use proto::{DataType, ModelProto, OperatorSetIdProto, StringStringEntryProto};
use std::fmt;
use std::str::FromStr;

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
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(version @ 21..=TWO_BITS) => Ok(Self(version)),
            _ => Err(format!("`{text}`: expected a whole number from 21 to {TWO_BITS}")),
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
/// The name of its output: `[batch, classes]`.
pub const OUTPUT: &str = "logits";

/// The network at its precision as an ONNX file.
///
/// # Panics
/// If linear layers have scales for groups of inputs.
#[must_use]
pub fn export(network: &IntConvNet, description: &Description, opset: Opset) -> Vec<u8> {
    let mut writer = Writer { graph: GraphBuilder::default(), opset };
    writer.network(network);
    let input = description.input;
    let sizes = [input.channels, input.height, input.width];
    let name = format!("{} {}", description.model, network.precision());
    let graph = writer.graph.finish(&name, (INPUT, &sizes), (OUTPUT, &[description.classes]));
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
    };
    model.encode_to_vec()
}

struct Writer {
    graph: GraphBuilder,
    opset: Opset,
}

impl Writer {
    fn network(&mut self, network: &IntConvNet) {
        let mut x = self.conv("stem", &network.stem, INPUT, None);
        if network.max_pool {
            let attributes = vec![
                ("kernel_shape", Attribute::Ints(vec![3; 2])),
                ("strides", Attribute::Ints(vec![2; 2])),
                ("pads", Attribute::Ints(vec![1; 4])),
            ];
            x = self.graph.node("stem/pool", "MaxPool", &[&x], attributes);
        }
        for (b, block) in network.blocks.iter().enumerate() {
            let name = |part: &str| format!("block{b}/{part}");
            let mut y = self.conv(&name("conv1"), &block.first, &x, None);
            for (i, conv) in block.middle.iter().enumerate() {
                y = self.conv(&name(&format!("conv{}", i + 2)), conv, &y, None);
            }
            let residual = match &block.shortcut {
                Some(conv) => Some(self.conv(&name("shortcut"), conv, &x, None)),
                None => block.adds.then(|| x.clone()),
            };
            let last = name(&format!("conv{}", block.middle.len() + 2));
            x = self.conv(&last, &block.last, &y, residual.as_deref());
        }
        if let Some(conv) = &network.tail {
            x = self.conv("tail", conv, &x, None);
        }
        x = self.graph.node("pool", "GlobalAveragePool", &[&x], vec![]);
        let y = self.conv("head", network.head.as_conv2d(), &x, None);
        self.graph.node(OUTPUT, "Flatten", &[&y], vec![]);
    }

    /// A layer of `x`; gives the name of its result.
    fn conv(&mut self, name: &str, layer: &IntConv2d, x: &str, residual: Option<&str>) -> String {
        let parts = layer.parts();
        let part = |part: &str| format!("{name}/{part}");
        let x = self.fake_quantized(name, &parts, x);
        let LayerParts { weight, codes, scale, shift, input, options, activation } = parts;
        let (weight_type, _) = self.opset.types(weight.bits());
        let dims = [weight.outputs(), weight.inputs(), weight.kernel()[0], weight.kernel()[1]];
        let w = self.graph.codes(&part("weight_codes"), &dims, weight_type, &codes);
        assert_eq!(scale.len(), weight.outputs(), "a scale for each output");
        let w_scale = self.graph.floats(&part("weight_scale"), &[weight.outputs()], &scale);
        let axis = vec![("axis", Attribute::Int(0))];
        let w = self.graph.node(&part("weight"), "DequantizeLinear", &[&w, &w_scale], axis);
        let ints = |values: &[usize]| Attribute::Ints(values.iter().map(|&value| value as i64).collect());
        let [rows, columns] = options.padding;
        let attributes = vec![
            ("kernel_shape", ints(&weight.kernel())),
            ("strides", ints(&options.stride)),
            ("dilations", ints(&options.dilation)),
            ("pads", ints(&[rows, columns, rows, columns])),
            ("group", Attribute::Int(weight.groups() as i64)),
        ];
        let (_, input_type) = self.opset.types(input.bits);
        let mut y = if [weight_type, input_type].iter().all(|of| of.bits() == 8) {
            let bias = self.graph.floats(&part("bias"), &[weight.outputs()], &shift);
            self.graph.node(&part("conv"), "Conv", &[&x, &w, &bias], attributes)
        } else {
            let y = self.graph.node(&part("conv"), "Conv", &[&x, &w], attributes);
            let bias = self.graph.floats(&part("bias"), &[weight.outputs(), 1, 1], &shift);
            self.graph.node(&part("biased"), "Add", &[&y, &bias], vec![])
        };
        if let Some(residual) = residual {
            y = self.graph.node(&part("add"), "Add", &[&y, residual], vec![]);
        }
        match activation {
            Activation::None => y,
            Activation::Relu => self.graph.node(&part("relu"), "Relu", &[&y], vec![]),
            Activation::Relu6 => {
                let y = self.graph.node(&part("relu"), "Relu", &[&y], vec![]);
                self.at_most(&part("relu6"), &y, 6.0)
            }
        }
    }

    /// The input of a layer, quantized and dequantized.
    fn fake_quantized(&mut self, name: &str, parts: &LayerParts, x: &str) -> String {
        let part = |part: &str| format!("{name}/{part}");
        let input = parts.input;
        let (_, data_type) = self.opset.types(input.bits);
        let zero_point = (input.zero_point != 0.0)
            .then(|| self.graph.floats(&part("zero_point"), &[], &[input.zero_point]));
        let mut x = x.to_string();
        if let Some(zero) = &zero_point {
            x = self.graph.node(&part("from_zero_point"), "Sub", &[&x, zero], vec![]);
        }
        if data_type.bits() != input.bits.bits() {
            // Negative values become zero anyway.
            let largest = input.scale * input.bits.unsigned_max() as f32;
            x = self.at_most(&part("range"), &x, largest);
        }
        let scale = self.graph.floats(&part("scale"), &[], &[input.scale]);
        let zero = self.graph.codes(&part("zero"), &[], data_type, &[0]);
        let codes = self.graph.node(&part("codes"), "QuantizeLinear", &[&x, &scale, &zero], vec![]);
        x = self.graph.node(&part("values"), "DequantizeLinear", &[&codes, &scale, &zero], vec![]);
        match zero_point {
            Some(zero) => self.graph.node(&part("to_zero_point"), "Add", &[&x, &zero], vec![]),
            None => x,
        }
    }

    /// Values up to `largest`.
    fn at_most(&mut self, name: &str, x: &str, largest: f32) -> String {
        let high = self.graph.floats(&format!("{name}/largest"), &[], &[largest]);
        self.graph.node(name, "Min", &[x, &high], vec![])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::InputShape;
    use crate::config::{DatasetKind, ModelKind};
    use crate::models::{ConvNetConfig, Network};
    use crate::nn::QuantConfig;
    use burn::tensor::{Device, Distribution, Tensor};
    use dr_precision::PrecisionSet;
    use proto::GraphProto;
    use std::collections::HashSet;

    /// The graph of a small network, as read back from its file.
    fn graph(model: ModelKind, precision: &str, opset: u8) -> GraphProto {
        let (device, set) = (Device::flex(), PrecisionSet::of(precision.parse().unwrap()));
        let config = ConvNetConfig { width: 8, ..ConvNetConfig::new(model, 3, 5) };
        let images = Tensor::random([2, 3, 16, 16], Distribution::Normal(0.0, 1.0), &device);
        let network = config.init(1, &device).quantize(&QuantConfig::new(set.clone()), vec![images]);
        let input = InputShape { channels: 3, height: 16, width: 16 };
        let description = Description::new(DatasetKind::Folder, model, input, 5, set.clone());
        let bytes = export(&network.to_integer(set.highest()).unwrap(), &description, Opset(opset));
        let file = ModelProto::decode(bytes.as_slice()).unwrap();
        assert_eq!(file.opset_import[0].version, i64::from(opset));
        file.graph.unwrap()
    }

    fn count(graph: &GraphProto, op: &str) -> usize {
        graph.node.iter().filter(|node| node.op_type == op).count()
    }

    #[test]
    fn every_value_is_made_once_and_before_it_is_used() {
        for (model, convs) in [
            (ModelKind::Resnet8, 10),
            (ModelKind::Resnet18, 21),
            (ModelKind::Resnet50, 54),
            (ModelKind::MobilenetV2, 53),
        ] {
            let graph = graph(model, "w4a8", 21);
            let mut known: HashSet<&str> = HashSet::from([INPUT]);
            assert!(graph.initializer.iter().all(|constant| known.insert(&constant.name)));
            for node in &graph.node {
                assert!(node.input.iter().all(|input| known.contains(input.as_str())), "{node:?}");
                assert!(node.output.iter().all(|output| known.insert(output)), "{node:?}");
            }
            assert!(known.contains(OUTPUT));
            assert_eq!(count(&graph, "Conv"), convs, "{model}");
            assert_eq!(count(&graph, "QuantizeLinear"), convs);
            assert_eq!(count(&graph, "DequantizeLinear"), 2 * convs);
            assert_eq!(
                count(&graph, "MaxPool"),
                usize::from(model != ModelKind::Resnet8 && model != ModelKind::MobilenetV2)
            );
        }
    }

    #[test]
    fn the_narrowest_type_that_holds_the_codes() {
        let types = |precision, opset| {
            let graph = graph(ModelKind::Resnet8, precision, opset);
            let of = |name: &str| {
                graph.initializer.iter().find(|constant| constant.name == name).unwrap().data_type
            };
            let clips = count(&graph, "Min");
            (of("block0/conv1/weight_codes"), of("block0/conv1/zero"), of("stem/weight_codes"), clips)
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
