//! What graphs are made of: layers, normalizations, embeddings, operations.

use super::{Rope, TensorOp, Value};
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;

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

    /// Whether it is a convolution in which each channel is a group, and has one output.
    #[must_use]
    pub const fn is_depthwise(&self) -> bool {
        matches!(*self, Self::Conv2d { channels: [input, output], groups, .. } if groups > 1 && groups == input && groups == output)
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
pub(super) fn window_positions(
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
        read(&self.op, &self.inputs)
    }
}

/// The inputs whose values an operation reads: of what something is enlarged to, only the size.
pub(super) fn read<'a>(op: &Op, inputs: &'a [Value]) -> &'a [Value] {
    match op {
        Op::Enlarge => inputs.get(..1).unwrap_or_default(),
        _ => inputs,
    }
}

/// What a node computes. Numbers are positions in the graph's tables.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// The product, element by element; of images and rows, each pixel of an image times its row of as many features.
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
    /// Causal softmax attention of queries, keys and values; it keeps what it needs of earlier positions.
    Attention(Attention),
    /// The channels of several images.
    Concat,
    /// A row of channels for each pixel: of one or several images in turn, all pixels of an item follow each other.
    Rows,
    /// A row of all elements of each image: `[batch, channels * rows * columns]`.
    Flatten,
    /// An operation on arrays. Functions of each element take images and rows as well, which they stay.
    Array(TensorOp),
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

impl From<Activation> for dr_kernels::integer::Activation {
    fn from(activation: Activation) -> Self {
        match activation {
            Activation::Relu => Self::Relu,
            Activation::Relu6 => Self::Relu6,
            Activation::Silu => Self::Silu,
        }
    }
}

/// Heads of an attention, and what they look at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attention {
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values, a divisor of `heads` (arXiv:2305.13245).
    pub kv_heads: usize,
    /// Features of a head; even.
    pub head_dim: usize,
    /// How positions become angles; `None` if queries and keys are not rotated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope: Option<Rope>,
    /// How many positions a query looks at, its own and those before it; `None` for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<NonZeroUsize>,
}
