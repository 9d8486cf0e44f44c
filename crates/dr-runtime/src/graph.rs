//! [`Graph`]: what a network computes, as data.
//!
//! A graph is a list of nodes, each an operation on the values of earlier nodes; the last node is the result. What has parameters
//! (layers, normalizations, embeddings) stands in tables, under the names that the parameters have in files: one layer may be
//! used by several nodes. Sizes that depend on the input (batch, rows, columns, positions) stay open.
//!
//! Every graph that exists is valid: [`Graph::push`] checks each node, and reading one from JSON goes through it.

use serde::{Deserialize, Serialize};
use std::f64::consts::TAU;
use thiserror::Error;

/// The number of a node, and of the value that it makes.
pub type Value = usize;

/// A network as data.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Parts", into = "Parts")]
pub struct Graph {
    parts: Parts,
    /// Of each node's value.
    kinds: Vec<Kind>,
    /// Of each node's value.
    readers: Vec<Readers>,
}

/// Who reads a value.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Readers {
    Nobody,
    /// A BatchNorm, and so nobody else: the value is never made.
    BatchNorm,
    Others,
}

/// What a graph is made of, unchecked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Parts {
    layers: Vec<Layer>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    batch_norms: Vec<Norm>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    rms_norms: Vec<Norm>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    embeddings: Vec<Embedding>,
    nodes: Vec<Node>,
}

/// A layer whose weight is quantized.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// The path of its parameters, `stages.0.0.conv1` for example.
    pub name: String,
    /// What it computes.
    pub kind: LayerKind,
    /// Whether it has a bias.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bias: bool,
}

/// The two kinds of layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum LayerKind {
    /// A 2D convolution.
    Conv2d {
        /// Channels in and out.
        channels: [usize; 2],
        /// Rows and columns of the kernel.
        kernel: [usize; 2],
        /// Steps along rows and columns.
        stride: [usize; 2],
        /// Rows and columns of zeros on each side.
        padding: [usize; 2],
        /// Parts of the channels that are convolved each for itself.
        groups: usize,
    },
    /// A matrix product.
    Linear {
        /// Features in and out.
        features: [usize; 2],
    },
}

impl LayerKind {
    /// The shape of the weight: `[outputs, inputs / groups, rows, columns]` or `[outputs, inputs]`.
    #[must_use]
    pub fn weight_shape(&self) -> Vec<usize> {
        match *self {
            Self::Conv2d { channels: [input, output], kernel: [rows, columns], groups, .. } => {
                vec![output, input.checked_div(groups).unwrap_or(0), rows, columns]
            }
            Self::Linear { features: [input, output] } => vec![output, input],
        }
    }

    /// Channels or features of the result.
    #[must_use]
    pub const fn outputs(&self) -> usize {
        match self {
            Self::Conv2d { channels: [_, output], .. } | Self::Linear { features: [_, output] } => *output,
        }
    }

    /// Parts of the channels that are convolved each for itself.
    #[must_use]
    pub const fn groups(&self) -> usize {
        match self {
            Self::Conv2d { groups, .. } => *groups,
            Self::Linear { .. } => 1,
        }
    }

    /// Steps along rows and columns.
    #[must_use]
    pub const fn stride(&self) -> [usize; 2] {
        match self {
            Self::Conv2d { stride, .. } => *stride,
            Self::Linear { .. } => [1; 2],
        }
    }

    /// Rows and columns of the result for an input of so many.
    #[must_use]
    pub fn output_size(&self, input: [usize; 2]) -> [usize; 2] {
        match self {
            Self::Conv2d { kernel, stride, padding, .. } => {
                window_positions(input, *kernel, *stride, *padding)
            }
            Self::Linear { .. } => input,
        }
    }
}

/// How many positions a window has along rows and columns; none if it does not fit or does not move.
pub(crate) fn window_positions(
    input: [usize; 2], kernel: [usize; 2], stride: [usize; 2], padding: [usize; 2],
) -> [usize; 2] {
    std::array::from_fn(|axis| {
        let size = input[axis].saturating_add(padding[axis].saturating_mul(2));
        let steps = size.checked_sub(kernel[axis]).and_then(|room| room.checked_div(stride[axis]));
        steps.map_or(0, |steps| steps.saturating_add(1))
    })
}

/// A normalization: BatchNorm of channels, or RMSNorm (arXiv:1910.07467) of runs of features.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Norm {
    /// The path of its parameters.
    pub name: String,
    /// Channels, or the features that are normalized together.
    pub features: usize,
    /// What keeps it from dividing by zero.
    pub epsilon: f64,
}

/// A row of features for each token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Embedding {
    /// A table of its own.
    Own {
        /// The path of its parameter.
        name: String,
        /// Tokens.
        vocabulary: usize,
        /// Features of each.
        features: usize,
    },
    /// The weight of a linear layer (the head, where both are tied).
    Layer(usize),
}

/// An operation and the values that it takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// What is computed.
    pub op: Op,
    /// From which values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<Value>,
}

impl Node {
    /// The inputs whose values it reads.
    pub(crate) fn read(&self) -> &[Value] {
        read(self.op, &self.inputs)
    }
}

/// The inputs whose values an operation reads: of what something is enlarged to, only the size.
fn read(op: Op, inputs: &[Value]) -> &[Value] {
    match op {
        Op::Enlarge => inputs.get(..1).unwrap_or_default(),
        _ => inputs,
    }
}

/// What a node computes. Numbers are positions in the graph's tables.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Op {
    /// The input: images `[batch, channels, rows, columns]`.
    Images {
        /// Channels.
        channels: usize,
    },
    /// The input: tokens `[batch, positions]`.
    Tokens,
    /// A convolution of images, or the product of a linear layer with rows.
    Layer(usize),
    /// The BatchNorm of a convolution's result, which nothing else reads.
    BatchNorm(usize),
    /// RMSNorm of runs of features.
    RmsNorm(usize),
    /// Tokens to rows of features.
    Embedding(usize),
    /// A function of each element.
    Activation(Activation),
    /// The sum of two values of one shape.
    Add,
    /// The product, element by element.
    Multiply,
    /// The maximum of a window of pixels. The padding does not count.
    MaxPool {
        /// Rows and columns of the window.
        kernel: [usize; 2],
        /// Its steps.
        stride: [usize; 2],
        /// Rows and columns around the image that it may reach into.
        padding: [usize; 2],
    },
    /// The mean of all pixels: images to rows, one for each image.
    Mean,
    /// The first images with rows and columns repeated to at least the size of the second, of which the first ones are taken: the
    /// nearest of a map of half as many, rounded up.
    Enlarge,
    /// Causal softmax attention of queries, keys and values with rotary positions; it keeps what it needs of earlier positions.
    Attention(Attention),
    /// The channels of several images.
    Concat,
    /// A row of channels for each pixel: of one or several images in turn, all pixels of an item follow each other.
    Rows,
    /// A row of all elements of each image: `[batch, channels * rows * columns]`.
    Flatten,
}

/// Functions of one element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// Values below zero become zero.
    Relu,
    /// The same, and values above 6 become 6.
    Relu6,
    /// `x / (1 + exp(-x))`.
    Silu,
}

/// Heads of an attention.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attention {
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values, a divisor of `heads` (arXiv:2305.13245).
    pub kv_heads: usize,
    /// Features of a head; even.
    pub head_dim: usize,
    /// How positions become angles.
    pub rope: Rope,
}

/// Rotary position embedding (arXiv:2104.09864): the angle of the pair `i` of a head's features at position `p` is `p *
/// theta^(-2 i / head_dim)`, changed by the scaling.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rope {
    /// The base of the frequencies.
    pub theta: f64,
    /// How frequencies are changed for contexts longer than the model was first trained for.
    pub scaling: RopeScaling,
}

/// How the frequencies of [`Rope`] are changed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All divided by `factor` (position interpolation, arXiv:2306.15595).
    Linear {
        /// The factor.
        factor: f64,
    },
    /// As in Llama 3.1: wave lengths above `original_context / low` are divided by `factor`, those below `original_context /
    /// high` stay, and in between there is a mixture of both.
    Llama3 {
        /// The factor of long waves.
        factor: f64,
        /// The longest waves that are not only divided go so many times into the original context.
        low: f64,
        /// Waves that go at least so many times into the original context stay as they are.
        high: f64,
        /// The context that the model was first trained for.
        original_context: usize,
    },
}

impl Rope {
    /// Cosines and sines of the positions from `start` on, `[positions, head dim / 2]`.
    #[must_use]
    pub fn tables(&self, head_dim: usize, start: usize, positions: usize) -> [Vec<f32>; 2] {
        let frequencies = self.frequencies(head_dim / 2);
        [f64::cos, f64::sin].map(|of| {
            let row = |position: usize| {
                let position = start as f64 + position as f64;
                frequencies.iter().map(move |frequency| of(position * frequency) as f32)
            };
            (0..positions).flat_map(row).collect()
        })
    }

    /// Radians from one position to the next, for each pair of features.
    fn frequencies(&self, pairs: usize) -> Vec<f64> {
        let plain = (0..pairs).map(|pair| self.theta.powf(-(pair as f64) / pairs as f64));
        let scale = |frequency: f64| match self.scaling {
            RopeScaling::None => frequency,
            RopeScaling::Linear { factor } => frequency / factor,
            RopeScaling::Llama3 { factor, low, high, original_context } => {
                let waves = original_context as f64 * frequency / TAU;
                let kept = ((waves - low) / (high - low)).clamp(0.0, 1.0);
                frequency / factor * (1.0 - kept) + frequency * kept
            }
        };
        plain.map(scale).collect()
    }
}

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Images of so many channels.
    Images(usize),
    /// Rows of so many features, if that does not depend on the size of images.
    Rows(Option<usize>),
    /// Tokens.
    Tokens,
}

/// Why something is no graph.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum GraphError {
    /// A node that reads what is not there yet.
    #[error("node {node}: reads value {value}: expected one of the {node} before it")]
    Value {
        /// The node.
        node: Value,
        /// What it reads.
        value: Value,
    },
    /// A node that names a layer or the like that is not there.
    #[error("node {node}: {what} {found}: expected one of {count}")]
    Table {
        /// The node.
        node: Value,
        /// What it names.
        what: &'static str,
        /// Which.
        found: usize,
        /// How many there are.
        count: usize,
    },
    /// Inputs that an operation does not take.
    #[error("node {node}, {op}: of {found}: expected {expected}")]
    Inputs {
        /// The node.
        node: Value,
        /// The operation.
        op: String,
        /// Its inputs.
        found: String,
        /// What it takes.
        expected: String,
    },
    /// A layer or normalization of sizes that make no sense.
    #[error("{name}: {found}: expected {expected}")]
    Sizes {
        /// Its name.
        name: String,
        /// What is there.
        found: String,
        /// What can be.
        expected: &'static str,
    },
    /// Two parameters of one name.
    #[error("the name `{0}` stands for two parts: expected names that differ")]
    Name(String),
    /// No node.
    #[error("a graph without a result: expected at least an input and a layer")]
    Empty,
}

/// Above every size that makes sense; keeps products of two from overflow.
const LARGEST: usize = 1 << 22;

impl Graph {
    /// The layers.
    #[must_use]
    pub fn layers(&self) -> &[Layer] {
        &self.parts.layers
    }

    /// The BatchNorms.
    #[must_use]
    pub fn batch_norms(&self) -> &[Norm] {
        &self.parts.batch_norms
    }

    /// The RMSNorms.
    #[must_use]
    pub fn rms_norms(&self) -> &[Norm] {
        &self.parts.rms_norms
    }

    /// The embeddings.
    #[must_use]
    pub fn embeddings(&self) -> &[Embedding] {
        &self.parts.embeddings
    }

    /// The nodes, each after those that it reads.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.parts.nodes
    }

    /// What the value of a node is.
    ///
    /// # Panics
    /// If there is no such node.
    #[must_use]
    pub fn kind(&self, value: Value) -> Kind {
        self.kinds[value]
    }

    /// What the network takes: the first node.
    #[must_use]
    pub fn input(&self) -> Option<Op> {
        self.nodes().first().map(|node| node.op)
    }

    /// What the network makes: the value of the last node.
    #[must_use]
    pub fn result_kind(&self) -> Option<Kind> {
        self.kinds.last().copied()
    }

    /// Channels or features of the result.
    #[must_use]
    pub fn outputs(&self) -> Option<usize> {
        match self.result_kind()? {
            Kind::Images(channels) => Some(channels),
            Kind::Rows(features) => features,
            Kind::Tokens => None,
        }
    }

    /// Rows and columns of each node's value for images of this size; 1 of what is no image.
    #[must_use]
    pub fn sizes(&self, image: [usize; 2]) -> Vec<[usize; 2]> {
        let mut sizes: Vec<[usize; 2]> = Vec::with_capacity(self.nodes().len());
        for Node { op, inputs } in self.nodes() {
            let first = inputs.first().map_or([1; 2], |&input| sizes[input]);
            sizes.push(match *op {
                Op::Images { .. } => image,
                Op::Layer(layer) => self.layers()[layer].kind.output_size(first),
                Op::MaxPool { kernel, stride, padding } => window_positions(first, kernel, stride, padding),
                Op::Enlarge => sizes[inputs[1]],
                Op::Tokens | Op::Mean | Op::Rows | Op::Flatten => [1; 2],
                _ => first,
            });
        }
        sizes
    }

    /// By how many rows and columns of the input a node's values are apart: the product of the steps of convolutions and maxima
    /// on the way.
    ///
    /// # Panics
    /// If there is no such node.
    #[must_use]
    pub fn strides(&self, value: Value) -> [usize; 2] {
        let mut strides: Vec<[usize; 2]> = Vec::with_capacity(value + 1);
        for Node { op, inputs } in &self.nodes()[..=value] {
            let from = if *op == Op::Enlarge { inputs.get(1) } else { inputs.first() };
            let before = from.map_or([1; 2], |&input| strides[input]);
            let step = match *op {
                Op::Layer(layer) => self.layers()[layer].kind.stride(),
                Op::MaxPool { stride, .. } => stride,
                _ => [1; 2],
            };
            strides.push(std::array::from_fn(|axis| before[axis].saturating_mul(step[axis])));
        }
        strides[value]
    }

    /// Adds a layer to the table.
    ///
    /// # Errors
    /// Sizes that do not fit together, or a name that is taken.
    pub fn add_layer(&mut self, layer: Layer) -> Result<usize, GraphError> {
        let sizes = match layer.kind {
            LayerKind::Conv2d { channels, kernel, stride, groups, padding } => {
                let [input, output] = channels;
                let fits = groups > 0 && input % groups == 0 && output % groups == 0;
                let small = padding.iter().all(|&size| size < LARGEST);
                [&channels[..], &kernel, &stride, &[groups, usize::from(fits && small)]].concat()
            }
            LayerKind::Linear { features } => features.to_vec(),
        };
        if !sizes.iter().all(|size| (1..=LARGEST).contains(size)) {
            let (name, found) = (layer.name, format!("{:?}", layer.kind));
            let expected = "sizes of at least 1, groups that divide the channels";
            return Err(GraphError::Sizes { name, found, expected });
        }
        self.check_name(&layer.name)?;
        self.parts.layers.push(layer);
        Ok(self.parts.layers.len() - 1)
    }

    /// Adds a BatchNorm to the table.
    ///
    /// # Errors
    /// Sizes that make no sense, or a name that is taken.
    pub fn add_batch_norm(&mut self, norm: Norm) -> Result<usize, GraphError> {
        self.check_norm(&norm)?;
        self.parts.batch_norms.push(norm);
        Ok(self.parts.batch_norms.len() - 1)
    }

    /// Adds an RMSNorm to the table.
    ///
    /// # Errors
    /// Sizes that make no sense, or a name that is taken.
    pub fn add_rms_norm(&mut self, norm: Norm) -> Result<usize, GraphError> {
        self.check_norm(&norm)?;
        self.parts.rms_norms.push(norm);
        Ok(self.parts.rms_norms.len() - 1)
    }

    /// Adds an embedding to the table.
    ///
    /// # Errors
    /// Sizes that make no sense, a name that is taken, or a layer that is not there or not linear.
    pub fn add_embedding(&mut self, embedding: Embedding) -> Result<usize, GraphError> {
        match &embedding {
            Embedding::Own { name, vocabulary, features } => {
                if ![vocabulary, features].iter().all(|size| (1..=LARGEST).contains(*size)) {
                    let (name, found) = (name.clone(), format!("{vocabulary} x {features}"));
                    return Err(GraphError::Sizes { name, found, expected: "sizes of at least 1" });
                }
                self.check_name(name)?;
            }
            Embedding::Layer(layer) => {
                let (found, count) = (*layer, self.parts.layers.len());
                let node = self.nodes().len();
                match self.parts.layers.get(found) {
                    Some(Layer { kind: LayerKind::Linear { .. }, .. }) => {}
                    _ => return Err(GraphError::Table { node, what: "linear layer", found, count }),
                }
            }
        }
        self.parts.embeddings.push(embedding);
        Ok(self.parts.embeddings.len() - 1)
    }

    /// Adds a node.
    ///
    /// # Errors
    /// Inputs that are not there or that the operation does not take.
    pub fn push(&mut self, op: Op, inputs: &[Value]) -> Result<Value, GraphError> {
        let node = self.nodes().len();
        if let Some(&value) = inputs.iter().find(|&&value| value >= node) {
            return Err(GraphError::Value { node, value });
        }
        let kinds: Vec<Kind> = inputs.iter().map(|&value| self.kinds[value]).collect();
        let kind = self.result(node, op, inputs, &kinds)?;
        self.parts.nodes.push(Node { op, inputs: inputs.to_vec() });
        self.kinds.push(kind);
        self.readers.push(Readers::Nobody);
        let reader = if matches!(op, Op::BatchNorm(_)) { Readers::BatchNorm } else { Readers::Others };
        read(op, inputs).iter().for_each(|&value| self.readers[value] = reader);
        Ok(node)
    }

    /// The kind of a node's value.
    fn result(&self, node: Value, op: Op, inputs: &[Value], kinds: &[Kind]) -> Result<Kind, GraphError> {
        let wrong = |expected: String| {
            let (op, found) = (format!("{op:?}"), format!("{kinds:?}"));
            Err(GraphError::Inputs { node, op, found, expected })
        };
        let missing = |what, found, count| Err(GraphError::Table { node, what, found, count });
        if read(op, inputs).iter().any(|&value| self.readers[value] == Readers::BatchNorm) {
            return wrong("values that no BatchNorm reads".into());
        }
        let fits = |found: Option<usize>, wanted: usize| found.is_none_or(|found| found == wanted);
        match (op, kinds) {
            (Op::Images { channels }, []) if node == 0 && (1..=LARGEST).contains(&channels) => {
                Ok(Kind::Images(channels))
            }
            (Op::Tokens, []) if node == 0 => Ok(Kind::Tokens),
            (Op::Images { .. } | Op::Tokens, _) => wrong("an input as the first node".into()),
            (Op::Layer(layer), _) => {
                let Some(of) = self.parts.layers.get(layer) else {
                    return missing("layer", layer, self.parts.layers.len());
                };
                match (of.kind, kinds) {
                    (LayerKind::Conv2d { channels: [input, output], .. }, [Kind::Images(found)])
                        if *found == input =>
                    {
                        Ok(Kind::Images(output))
                    }
                    (LayerKind::Linear { features: [input, output] }, [Kind::Rows(found)])
                        if fits(*found, input) =>
                    {
                        Ok(Kind::Rows(Some(output)))
                    }
                    _ => wrong(format!("the input of `{}`, {:?}", of.name, of.kind)),
                }
            }
            (Op::BatchNorm(norm), _) => {
                let Some(of) = self.parts.batch_norms.get(norm) else {
                    return missing("BatchNorm", norm, self.parts.batch_norms.len());
                };
                let after = |value: &Value| {
                    matches!(self.nodes()[*value].op, Op::Layer(_)) && self.readers[*value] == Readers::Nobody
                };
                match kinds {
                    [Kind::Images(found)] if *found == of.features && inputs.iter().all(after) => {
                        Ok(kinds[0])
                    }
                    _ => wrong(format!(
                        "the result of a convolution with {} channels, that nothing else reads",
                        of.features
                    )),
                }
            }
            (Op::RmsNorm(norm), _) => {
                let Some(of) = self.parts.rms_norms.get(norm) else {
                    return missing("RMSNorm", norm, self.parts.rms_norms.len());
                };
                match kinds {
                    [Kind::Rows(Some(found))] if found.is_multiple_of(of.features) => Ok(kinds[0]),
                    _ => wrong(format!("rows of runs of {} features", of.features)),
                }
            }
            (Op::Embedding(embedding), _) => {
                let Some(of) = self.parts.embeddings.get(embedding) else {
                    return missing("embedding", embedding, self.parts.embeddings.len());
                };
                match kinds {
                    [Kind::Tokens] => Ok(Kind::Rows(Some(self.embedding_size(of)[1]))),
                    _ => wrong("tokens".into()),
                }
            }
            (Op::Activation(_), [kind @ (Kind::Images(_) | Kind::Rows(_))]) => Ok(*kind),
            (Op::Activation(_), _) => wrong("images or rows".into()),
            (Op::Add | Op::Multiply, [a, b]) if a == b && *a != Kind::Tokens => Ok(*a),
            (Op::Add | Op::Multiply, _) => wrong("two values of one kind".into()),
            (Op::MaxPool { kernel, stride, padding }, [Kind::Images(_)])
                if kernel.iter().chain(&stride).all(|size| (1..=LARGEST).contains(size))
                    && padding.iter().zip(kernel).all(|(&padding, kernel)| padding < kernel) =>
            {
                Ok(kinds[0])
            }
            (Op::MaxPool { .. }, _) => wrong("images, and a window that is larger than its padding".into()),
            (Op::Mean, [Kind::Images(channels)]) => Ok(Kind::Rows(Some(*channels))),
            (Op::Enlarge, [kind @ Kind::Images(_), Kind::Images(_)]) => Ok(*kind),
            (Op::Mean, _) => wrong("images".into()),
            (Op::Enlarge, _) => wrong("images, and others of the size that is wanted".into()),
            (Op::Attention(Attention { heads, kv_heads, head_dim, rope }), _) => {
                let sound = [heads, kv_heads, head_dim].iter().all(|size| (1..=LARGEST).contains(size))
                    && heads.is_multiple_of(kv_heads)
                    && head_dim.is_multiple_of(2)
                    && rope.theta > 0.0
                    && rope.theta.is_finite()
                    && self.input() == Some(Op::Tokens);
                let (queries, keys) = (heads.saturating_mul(head_dim), kv_heads.saturating_mul(head_dim));
                match kinds {
                    [Kind::Rows(Some(q)), Kind::Rows(Some(k)), Kind::Rows(Some(v))]
                        if sound && [*q, *k, *v] == [queries, keys, keys] =>
                    {
                        Ok(kinds[0])
                    }
                    _ => {
                        wrong(format!("rows of {queries}, {keys} and {keys} features of tokens, even heads"))
                    }
                }
            }
            (Op::Concat, [Kind::Images(_), ..]) => {
                let channels = kinds.iter().map(|kind| match kind {
                    Kind::Images(channels) => Some(*channels),
                    _ => None,
                });
                let sum = channels.fold(Some(0usize), |sum, channels| sum?.checked_add(channels?));
                match sum.filter(|channels| *channels <= LARGEST) {
                    Some(channels) => Ok(Kind::Images(channels)),
                    None => wrong(format!("images, of at most {LARGEST} channels in all")),
                }
            }
            (Op::Rows, [Kind::Images(channels), rest @ ..]) if rest.iter().all(|kind| *kind == kinds[0]) => {
                Ok(Kind::Rows(Some(*channels)))
            }
            (Op::Concat | Op::Rows, _) => wrong("images, for rows of the same number of channels".into()),
            (Op::Flatten, [Kind::Images(_)]) => Ok(Kind::Rows(None)),
            (Op::Flatten, _) => wrong("images".into()),
        }
    }

    /// Tokens and features of an embedding of this graph.
    #[must_use]
    pub fn embedding_size(&self, embedding: &Embedding) -> [usize; 2] {
        match embedding {
            Embedding::Own { vocabulary, features, .. } => [*vocabulary, *features],
            Embedding::Layer(layer) => match self.parts.layers[*layer].kind {
                LayerKind::Linear { features: [input, output] } => [output, input],
                LayerKind::Conv2d { channels: [input, output], .. } => [output, input],
            },
        }
    }

    fn check_norm(&self, norm: &Norm) -> Result<(), GraphError> {
        let Norm { name, features, epsilon } = norm;
        if !((1..=LARGEST).contains(features) && *epsilon >= 0.0 && *epsilon < 1.0) {
            let (name, found) = (name.clone(), format!("{features} features, epsilon {epsilon}"));
            return Err(GraphError::Sizes { name, found, expected: "at least 1, and a number from 0 to 1" });
        }
        self.check_name(name)
    }

    fn check_name(&self, name: &str) -> Result<(), GraphError> {
        let Parts { layers, batch_norms, rms_norms, embeddings, .. } = &self.parts;
        let own = embeddings.iter().filter_map(|embedding| match embedding {
            Embedding::Own { name, .. } => Some(name),
            Embedding::Layer(_) => None,
        });
        let norms = batch_norms.iter().chain(rms_norms).map(|norm| &norm.name);
        let mut names = layers.iter().map(|layer| &layer.name).chain(norms).chain(own);
        match names.any(|taken| taken == name) {
            true => Err(GraphError::Name(name.to_owned())),
            false => Ok(()),
        }
    }

    /// The same with the layers numbered in the order in which they are computed first, and the number that each had: an embedding
    /// may name one before.
    #[must_use]
    pub fn in_order(mut self) -> (Self, Vec<usize>) {
        let Parts { layers, embeddings, nodes, .. } = &mut self.parts;
        let mut order: Vec<usize> = vec![];
        let computed = nodes.iter().filter_map(|node| match node.op {
            Op::Layer(layer) => Some(layer),
            _ => None,
        });
        for layer in computed.chain(0..layers.len()) {
            if !order.contains(&layer) {
                order.push(layer);
            }
        }
        let mut numbers = vec![0; order.len()];
        order.iter().enumerate().for_each(|(new, &old)| numbers[old] = new);
        *layers = order.iter().map(|&old| layers[old].clone()).collect();
        let named = embeddings.iter_mut().filter_map(|embedding| match embedding {
            Embedding::Layer(layer) => Some(layer),
            Embedding::Own { .. } => None,
        });
        let used = nodes.iter_mut().filter_map(|node| match &mut node.op {
            Op::Layer(layer) => Some(layer),
            _ => None,
        });
        named.chain(used).for_each(|layer| *layer = numbers[*layer]);
        (self, order)
    }

    /// The nodes that read the value of each node.
    #[must_use]
    pub fn readers(&self) -> Vec<Vec<Value>> {
        let mut readers = vec![vec![]; self.nodes().len()];
        for (node, Node { inputs, .. }) in self.nodes().iter().enumerate() {
            inputs.iter().for_each(|&value| readers[value].push(node));
        }
        readers
    }

    /// The nodes that are a layer.
    fn uses(&self, layer: usize) -> impl Iterator<Item = &Node> {
        self.nodes().iter().filter(move |node| node.op == Op::Layer(layer))
    }

    /// Whether no value of a layer's input is below zero, because all come out of a ReLU.
    #[must_use]
    pub fn after_relu(&self, layer: usize) -> bool {
        let positive = self.not_negative();
        self.uses(layer).all(|node| positive[node.inputs[0]])
    }

    /// Which values are known not to be below zero.
    fn not_negative(&self) -> Vec<bool> {
        let mut known = Vec::with_capacity(self.nodes().len());
        for Node { op, inputs } in self.nodes() {
            known.push(match op {
                Op::Activation(Activation::Relu | Activation::Relu6) => true,
                Op::MaxPool { .. } | Op::Mean | Op::Flatten | Op::Enlarge => known[inputs[0]],
                Op::Add | Op::Multiply | Op::Concat | Op::Rows => inputs.iter().all(|&input| known[input]),
                _ => false,
            });
        }
        known
    }

    /// Whether a layer is at an edge of the network: it reads its images, or no other layer reads what comes out of it.
    #[must_use]
    pub fn is_edge(&self, layer: usize) -> bool {
        let (mut made, mut read) = (vec![false; self.nodes().len()], vec![false; self.nodes().len()]);
        // Values that some layer, or attention, had a part in; and values that one reads in the end.
        for (at, Node { op, inputs }) in self.nodes().iter().enumerate() {
            made[at] = matches!(op, Op::Layer(_) | Op::Embedding(_)) || inputs.iter().any(|&i| made[i]);
        }
        for (at, Node { op, inputs }) in self.nodes().iter().enumerate().rev() {
            let reads = matches!(op, Op::Layer(_)) || read[at];
            inputs.iter().for_each(|&input| read[input] |= reads);
        }
        let nodes = self.nodes().iter().enumerate().filter(|(_, node)| node.op == Op::Layer(layer));
        nodes.into_iter().any(|(at, node)| !made[node.inputs[0]] || !read[at])
    }
}

impl TryFrom<Parts> for Graph {
    type Error = GraphError;

    fn try_from(parts: Parts) -> Result<Self, GraphError> {
        let mut graph = Self::default();
        parts.layers.into_iter().try_for_each(|layer| graph.add_layer(layer).map(|_| ()))?;
        parts.batch_norms.into_iter().try_for_each(|norm| graph.add_batch_norm(norm).map(|_| ()))?;
        parts.rms_norms.into_iter().try_for_each(|norm| graph.add_rms_norm(norm).map(|_| ()))?;
        parts.embeddings.into_iter().try_for_each(|table| graph.add_embedding(table).map(|_| ()))?;
        parts.nodes.into_iter().try_for_each(|node| graph.push(node.op, &node.inputs).map(|_| ()))?;
        if graph.nodes().len() < 2 { Err(GraphError::Empty) } else { Ok(graph) }
    }
}

impl From<Graph> for Parts {
    fn from(graph: Graph) -> Self {
        graph.parts
    }
}
