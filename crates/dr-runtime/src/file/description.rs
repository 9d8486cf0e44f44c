//! [`Description`]: what an artifact says about itself.

use super::{ArtifactError, FIRST_VERSION, FORMAT_VERSION, STORED};
use crate::graph::{Graph, GraphError, Layer, LayerKind, Op};
use dr_precision::{BitWidth, Granularity, Precision, PrecisionPlan, PrecisionSet, QuantSpec};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;

crate::named! {
    /// Whether precisions share their BatchNorm.
    BatchNormKind, "BatchNorm kind" {
        /// Statistics and affine terms for each precision.
        PerPrecision = "per-precision",
        /// One set for all.
        Shared = "shared",
    }

    /// Which BatchNorm a layer has in mixed passes.
    #[derive(Default)]
    MixedNorm, "BatchNorm of mixed passes" {
        /// The one of the layer's own precision, that the passes at one precision have, too.
        Uniform = "uniform",
        /// One for each width of the layer's weights, for mixed passes only.
        #[default]
        Width = "width",
        /// One, for mixed passes only.
        One = "one",
    }

    /// The colours of the channels of images, in the order in which a network takes them. A single channel is grey.
    #[derive(Default)]
    ChannelOrder, "order of channels" {
        /// Red, green, blue.
        #[default]
        Rgb = "rgb",
        /// Blue, green, red.
        Bgr = "bgr",
    }
}

/// What of a picture becomes the image that a network takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resize {
    /// Its middle, seven eighths of the largest part with the sides' ratio of the image.
    #[default]
    Middle,
    /// Its middle, once the shorter side has so many pixels: at least 1; a part that is larger than the picture is made as large as fits.
    Shorter(u32),
    /// All of it, stretched.
    Stretch,
    /// All of it with its own ratio of sides, as large as fits, at the top left of grey pixels.
    Pad,
}

impl fmt::Display for Resize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Middle => f.pad("middle"),
            Self::Shorter(side) => write!(f, "{side}"),
            Self::Stretch => f.pad("stretch"),
            Self::Pad => f.pad("pad"),
        }
    }
}

impl FromStr for Resize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("middle", _) => Ok(Self::Middle),
            ("stretch", _) => Ok(Self::Stretch),
            ("pad", _) => Ok(Self::Pad),
            (_, Ok(side)) if (1..=MAX_SIDE).contains(&side) => Ok(Self::Shorter(side)),
            _ => Err(format!(
                "`{text}`: expected `middle`, `stretch`, `pad` or a whole number from 1 to {MAX_SIDE}"
            )),
        }
    }
}

/// What is subtracted from pixels, and then divides them: per channel, of `pixel / 255`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalization {
    /// `[c]`, in 0 to 1.
    pub mean: Vec<f32>,
    /// `[c]`, above 0.
    pub std: Vec<f32>,
    /// Which colours the channels are.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub order: ChannelOrder,
}

impl Normalization {
    /// Pixels from 0 to 1, as they are.
    #[must_use]
    pub fn none(channels: usize) -> Self {
        Self { mean: vec![0.0; channels], std: vec![1.0; channels], order: ChannelOrder::Rgb }
    }

    /// That of ImageNet's training images, as trained networks for photographs expect it.
    #[must_use]
    pub fn imagenet() -> Self {
        Self { mean: vec![0.485, 0.456, 0.406], std: vec![0.229, 0.224, 0.225], order: ChannelOrder::Rgb }
    }

    /// Whether images of so many channels can be normalised by it: one finite mean and one positive deviation a channel, and three
    /// channels for another order than the usual one.
    #[must_use]
    pub fn fits(&self, channels: usize) -> bool {
        self.mean.len() == channels
            && self.std.len() == channels
            && self.mean.iter().all(|mean| mean.is_finite())
            && self.std.iter().all(|&std| std.is_finite() && std > 0.0)
            && (channels == 3 || is_usual(&self.order))
    }
}

/// What the tensors of an artifact are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ArtifactKind {
    /// 32-bit float weights; the precisions are not used.
    Float,
    /// Master codes of the highest precision, one byte each, and scales for every precision.
    MultiPrecision,
    /// Nested weights ([`NestedWeight`](super::NestedWeight)) of a network of linear layers, whose inputs are quantized as they come: of several
    /// precisions with the stored width, or exported at one.
    Nested,
    /// [Calibrated layers](super::CalibratedLayer) without BatchNorm: stored codes that serve several precisions, or exported at one, with a scale, an offset
    /// and a bias for each output and precision.
    Calibrated,
    /// Exported at one precision: packed codes.
    Packed(Precision),
    /// Exported with a precision for each layer: packed codes.
    PackedPlan,
}

impl fmt::Display for ArtifactKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Float => f.pad("float"),
            Self::MultiPrecision => f.pad("multi-precision"),
            Self::Nested => f.pad("nested"),
            Self::Calibrated => f.pad("calibrated"),
            Self::Packed(precision) => f.pad(&format!("packed {precision}")),
            Self::PackedPlan => f.pad("packed plan"),
        }
    }
}

/// The shape of one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputShape {
    /// Colours.
    pub channels: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl fmt::Display for InputShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}x{}", self.channels, self.height, self.width)
    }
}

/// What a file says about itself. JSON in its metadata.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// [`FORMAT_VERSION`], or that of an older file.
    pub format_version: u32,
    /// What the tensors are.
    pub kind: ArtifactKind,
    /// The name of the task: `classify`, `segment`, `detect`, `lm`, or one of a program's own.
    #[serde(default = "classify", skip_serializing_if = "is_classification")]
    pub task: String,
    /// The name of the network, which says nothing about what it computes: that is the graph.
    pub model: String,
    /// Channels of the network's first stage, or features of a position.
    pub width: usize,
    /// The shape of an image; of a text, as many columns as the context has positions.
    pub input: InputShape,
    /// How many classes the network tells apart; of a segmentation with the background, which is the first; of a language model the
    /// tokens that there are.
    pub classes: usize,
    /// What the classes are called, in their order, if that is known; of a segmentation without the background.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub class_names: Vec<String>,
    /// The name of the data that it was trained on.
    pub dataset: String,
    /// What is done to pixels.
    pub normalization: Normalization,
    /// What of pictures in files becomes its images.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub resize: Resize,
    /// The precisions it was trained for.
    pub precisions: PrecisionSet,
    /// What the layers at the edges compute in at every precision.
    pub edge: Precision,
    /// They do not: they switch like all others.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub switch_edge: bool,
    /// Whether the weights of depthwise convolutions switch in a calibrated model, too; else they stay at the stored width.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub switch_depthwise: bool,
    /// The names of the layers of a calibrated model that are in floats at every precision.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub in_floats: BTreeSet<String>,
    /// Whether precisions share their BatchNorm.
    pub batch_norm: BatchNormKind,
    /// How many inputs of an output of a linear layer share a scale, if not all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_size: Option<NonZeroUsize>,
    /// Which BatchNorm mixed passes use, if the network was trained for them (a supernet).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mixed: Option<MixedNorm>,
    /// The sizes of a language model, as its constructor takes them, and the tokens that end a text (`end_tokens`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<Value>,
    /// The precision of each layer of a packed plan, and of a calibrated one, whose layers have what they are at that under the precision
    /// of edges; or the one that each layer of a nested model has in every pass, though the file has its other widths, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<PrecisionPlan>,
    /// The shapes of packed weights by name, in files without a graph.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub shapes: BTreeMap<String, Vec<usize>>,
    /// The seed of its training.
    pub seed: u64,
    /// Lower-case hexadecimal SHA-256 of the file, as the [module](super) says. Filled in when the file is written;
    /// leave it empty until then.
    pub checksum: String,
    /// What the network computes; files of version 1 do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub graph: Option<Graph>,
}

fn classify() -> String {
    "classify".to_owned()
}

/// How one layer is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerFormat {
    /// Widths of the weights, highest (the stored one) first.
    pub weights: Vec<BitWidth>,
    /// Widths of the inputs, highest first.
    pub activations: Vec<BitWidth>,
    /// At the first of its widths in every pass: a layer at an edge, and every layer of a plan.
    pub pinned: bool,
    /// Which weights share a scale.
    pub granularity: Granularity,
}

impl LayerFormat {
    /// That of a layer of `graph` in a network of these precisions: a layer of a plan at its precision, one at an edge at that of
    /// edges, if they have one.
    ///
    /// # Panics
    /// If there is no such layer.
    #[must_use]
    pub fn new(
        graph: &Graph, layer: usize, precisions: &PrecisionSet, edge: Option<Precision>,
        plan: Option<&PrecisionPlan>, group_size: Option<NonZeroUsize>,
    ) -> Self {
        let of = &graph.layers()[layer];
        let planned = plan.and_then(|plan| plan.get(&of.name));
        let only = planned.or(edge.filter(|_| graph.is_edge(layer)));
        let set = only.map_or_else(|| precisions.clone(), PrecisionSet::of);
        let granularity = match (of.kind, group_size) {
            (LayerKind::Linear { .. }, Some(size)) => Granularity::Group(size),
            _ => Granularity::Channel,
        };
        let (weights, activations) = (set.weights(), set.activations());
        Self { weights, activations, pinned: only.is_some(), granularity }
    }

    /// Whether the layer has the widths of a precision.
    #[must_use]
    pub fn has(&self, precision: Precision) -> bool {
        self.weights.contains(&precision.weights) && self.activations.contains(&precision.activations)
    }

    /// What widths it has, as messages say it.
    #[must_use]
    pub fn widths(&self) -> String {
        let list = |bits: &[BitWidth]| bits.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        format!("weights of {} and activations of {} bits", list(&self.weights), list(&self.activations))
    }

    /// The format of weights of `bits` bits.
    #[must_use]
    pub fn spec(&self, bits: BitWidth) -> QuantSpec {
        QuantSpec { granularity: self.granularity, ..QuantSpec::weights(bits) }
    }

    /// Positions of a precision's widths among the layer's: `(weights, activations)`. `None` if it does not have them.
    #[must_use]
    pub fn positions(&self, precision: Precision) -> Option<(usize, usize)> {
        if self.pinned {
            return Some((0, 0));
        }
        let find = |widths: &[BitWidth], bits| widths.iter().position(|&width| width == bits);
        Some((find(&self.weights, precision.weights)?, find(&self.activations, precision.activations)?))
    }
}

impl Description {
    /// The precisions that the network in the file has; `None` in floats.
    #[must_use]
    pub fn precisions(&self) -> Option<PrecisionSet> {
        match self.kind {
            ArtifactKind::Float => None,
            // The layers have those of the plan.
            _ if self.plan.is_some() => Some(PrecisionSet::of(self.edge)),
            ArtifactKind::PackedPlan => Some(PrecisionSet::of(self.edge)),
            ArtifactKind::MultiPrecision | ArtifactKind::Nested | ArtifactKind::Calibrated => {
                Some(self.precisions.clone())
            }
            ArtifactKind::Packed(precision) => Some(PrecisionSet::of(precision)),
        }
    }

    /// How a layer of `graph` is stored; `None` in floats.
    #[must_use]
    pub fn layer_format(&self, graph: &Graph, layer: usize) -> Option<LayerFormat> {
        if self.in_floats.contains(&graph.layers()[layer].name) {
            return None;
        }
        let edge = (!self.switch_edge).then_some(self.edge);
        let (precisions, plan) = (self.precisions()?, self.plan.as_ref());
        Some(LayerFormat::new(graph, layer, &precisions, edge, plan, self.group_size))
    }

    /// The widths of a layer of a calibrated model with this graph at one of its precisions, or those that its plan has for it.
    ///
    /// # Panics
    /// If there is no such layer.
    #[must_use]
    pub fn calibrated_widths(&self, graph: &Graph, layer: usize, precision: Precision) -> Precision {
        let planned = self.plan.as_ref().and_then(|plan| plan.get(&graph.layers()[layer].name));
        if let Some(widths) = planned {
            widths
        } else if !self.switch_edge && graph.is_edge(layer) {
            self.edge
        } else if !self.switch_depthwise && graph.layers()[layer].kind.is_depthwise() {
            Precision { weights: STORED, ..precision }
        } else {
            precision
        }
    }

    /// The number of the BatchNorm that passes at a precision use.
    #[must_use]
    pub fn batch_norm(&self, precision: Precision) -> Option<usize> {
        match (self.kind, self.batch_norm) {
            (ArtifactKind::MultiPrecision, BatchNormKind::PerPrecision) => {
                self.precisions.position(precision)
            }
            _ => Some(0),
        }
    }

    /// Whether packed weights have words instead of bytes.
    #[must_use]
    pub const fn is_packed(&self) -> bool {
        matches!(self.kind, ArtifactKind::Packed(_) | ArtifactKind::PackedPlan)
    }

    /// The most positions of a text.
    #[must_use]
    pub const fn context(&self) -> usize {
        self.input.width
    }

    /// Tokens that end a text.
    #[must_use]
    pub fn end_tokens(&self) -> Vec<u32> {
        let tokens = self.language.as_ref().and_then(|language| language.get("end_tokens")?.as_array());
        let token = |value: &Value| u32::try_from(value.as_u64()?).ok();
        tokens.into_iter().flatten().filter_map(token).collect()
    }

    /// Whether the parts fit together.
    ///
    /// # Errors
    /// The first that does not.
    pub fn check(&self) -> Result<(), ArtifactError> {
        if !(FIRST_VERSION..=FORMAT_VERSION).contains(&self.format_version) {
            return Err(ArtifactError::Version(self.format_version));
        }
        let wrong = |what: String| Err(ArtifactError::Description(what));
        let sizes = [
            ("width", self.width),
            ("input.channels", self.input.channels),
            ("input.height", self.input.height),
            ("input.width", self.input.width),
            ("classes", self.classes),
        ];
        for (name, size) in sizes {
            if !(1..=MAX_SIZE).contains(&size) {
                return wrong(format!("{name} is {size}: expected 1 to {MAX_SIZE}"));
            }
        }
        if (self.task == "lm") != self.language.is_some() {
            return wrong(format!(
                "task {}: expected the sizes of a language model with lm, and only there",
                self.task
            ));
        }
        if let Some(graph) = &self.graph {
            match graph.input() {
                Some(Op::Images { channels }) if *channels != self.input.channels => {
                    return wrong(format!(
                        "a graph for {channels} channels: expected {}, as in its input",
                        self.input.channels
                    ));
                }
                Some(_) if !graph.is_empty() => {}
                _ => return wrong(GraphError::Empty.to_string()),
            }
        }
        let Normalization { mean, std, order } = &self.normalization;
        for (name, values) in [("mean", mean), ("std", std)] {
            if values.len() != self.input.channels {
                return wrong(format!(
                    "normalization.{name} has {} values: expected {}, one for each input channel",
                    values.len(),
                    self.input.channels
                ));
            }
        }
        if let Some(value) = mean.iter().find(|value| !value.is_finite()) {
            return wrong(format!("normalization.mean holds {value}: expected finite numbers"));
        }
        if let Some(value) = std.iter().find(|value| !value.is_finite() || **value <= 0.0) {
            return wrong(format!("normalization.std holds {value}: expected finite numbers above 0"));
        }
        if !is_usual(order) && self.input.channels != 3 {
            return wrong(format!("normalization.order is {order}: expected that of 3 input channels"));
        }
        if let Resize::Shorter(side) = self.resize
            && !(1..=MAX_SIDE).contains(&side)
        {
            return wrong(format!("resize is {side}: expected 1 to {MAX_SIDE}"));
        }
        if let ArtifactKind::Packed(precision) = self.kind
            && self.precisions.position(precision).is_none()
        {
            return wrong(format!(
                "it is packed at {precision}: expected one of its precisions {}",
                self.precisions
            ));
        }
        match self.kind {
            ArtifactKind::Nested => self.check_nested()?,
            ArtifactKind::Calibrated => self.check_calibrated()?,
            _ => {}
        }
        if let Some(name) = self.in_floats.first().filter(|_| self.kind != ArtifactKind::Calibrated) {
            let kind = self.kind;
            return wrong(format!(
                "a {kind} model with `{name}` in floats: expected that in calibrated ones"
            ));
        }
        let fits = match self.kind {
            ArtifactKind::PackedPlan => self.plan.is_some(),
            ArtifactKind::Nested => true,
            ArtifactKind::Calibrated => self.plan.is_none() || self.precisions == PrecisionSet::of(self.edge),
            _ => self.plan.is_none(),
        };
        if !fits {
            let expected = "expected a plan in packed plans, and only there, in nested models and in calibrated ones of one precision";
            return wrong(format!("a {} model: {expected}", self.kind));
        }
        Ok(())
    }

    /// Whether layers can be calibrated.
    fn check_calibrated(&self) -> Result<(), ArtifactError> {
        let wrong = |what: String| Err(ArtifactError::Description(format!("a calibrated model {what}")));
        let Some(graph) = &self.graph else { return wrong("without a graph: expected one".to_owned()) };
        if let Some(norm) = graph.batch_norms().first() {
            return wrong(format!("with the BatchNorm `{}`: expected biases instead", norm.name));
        }
        if !graph.embeddings().is_empty() || graph.input() == Some(&Op::Tokens) {
            return wrong("for tokens: expected one for images".to_owned());
        }
        if let Some(layer) = graph.layers().iter().find(|layer| !layer.bias) {
            return wrong(format!("with the layer `{}` without a bias: expected one", layer.name));
        }
        let is_layer = |name: &&String| graph.layers().iter().any(|layer| layer.name == **name);
        match self.in_floats.iter().find(|name| !is_layer(name)) {
            Some(name) => wrong(format!("with `{name}` in floats: expected the name of a layer")),
            None => Ok(()),
        }
    }

    /// Whether weights can be nested.
    fn check_nested(&self) -> Result<(), ArtifactError> {
        let wrong = |what: String| Err(ArtifactError::Description(format!("a nested model {what}")));
        let full = Precision::uniform(STORED);
        let dynamic = self.precisions.iter().all(|precision| precision.activations == STORED);
        let has_codes = self.precisions.stored() == STORED || self.precisions.len() == 1;
        if !has_codes || self.edge != full || !dynamic {
            let (precisions, edge) = (&self.precisions, self.edge);
            return wrong(format!(
                "of {precisions}, at the edge {edge}: expected {full} there and among several, and activations of {STORED} bits"
            ));
        }
        if self.group_size.is_none() {
            return wrong("without groups: expected `group_size`".to_owned());
        }
        let convolution = |layer: &&Layer| matches!(layer.kind, LayerKind::Conv2d { .. });
        match self.graph.iter().flat_map(|graph| graph.layers()).find(convolution) {
            Some(layer) => wrong(format!("with the convolution `{}`: expected linear layers", layer.name)),
            None => Ok(()),
        }
    }
}

/// Whether it is the task of files that do not say it.
fn is_classification(task: &str) -> bool {
    task == "classify"
}

/// Whether it is that of files that do not say it.
fn is_usual<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Pixels of the shorter side of a picture, at most.
const MAX_SIDE: u32 = 1 << 15;

/// Above every size that makes sense; keeps products of sizes far from overflow.
const MAX_SIZE: usize = 1 << 22;
