//! [`TensorOp`]: operations on arrays of any rank, in floats, integers and booleans.
//!
//! They are those of ONNX (opset 21 and its neighbours) after everything that has several spellings has one: what an operator of ONNX
//! takes as attribute in one opset and as input in another is an input here, and optional inputs in the middle are filled in. Axes may be
//! negative: they then count from the last one. Arrays are row-major.

use serde::{Deserialize, Serialize};
use std::ops::{Range, RangeInclusive};

/// Types of elements, as ONNX files name them. In memory there are three: 32-bit floats for all floats, 64-bit integers, booleans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ElementType {
    /// Floats of 16 bits.
    F16,
    /// Floats of 16 bits with the range of 32.
    Bf16,
    /// Floats of 32 bits.
    F32,
    /// Floats of 64 bits.
    F64,
    /// Signed, 8 bits.
    I8,
    /// Signed, 16 bits.
    I16,
    /// Signed, 32 bits.
    I32,
    /// Signed, 64 bits.
    I64,
    /// Unsigned, 8 bits.
    U8,
    /// Unsigned, 16 bits.
    U16,
    /// Unsigned, 32 bits.
    U32,
    /// Unsigned, 64 bits.
    U64,
    /// Booleans.
    Bool,
}

impl ElementType {
    /// What its elements are in memory: `F32`, `I64` or `Bool`.
    #[must_use]
    pub const fn in_memory(self) -> Self {
        match self {
            Self::F16 | Self::Bf16 | Self::F32 | Self::F64 => Self::F32,
            Self::Bool => Self::Bool,
            _ => Self::I64,
        }
    }
}

/// An input of a network that is an array.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorInput {
    /// Its name.
    pub name: String,
    /// Its elements.
    pub element: ElementType,
    /// Its sizes; `None` where any will do. Two open sizes need not be the same.
    pub dims: Vec<Option<usize>>,
}

/// An array that does not depend on the input: a tensor of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constant {
    /// The name of the tensor.
    pub name: String,
    /// Its elements: `F32`, `I64` or `Bool`.
    pub element: ElementType,
    /// Its sizes.
    pub dims: Vec<usize>,
}

/// An operation on arrays and the number of its inputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum TensorOp {
    /// An input of the network. `[]`
    Input(TensorInput),
    /// A constant. `[]`
    Constant(Constant),
    /// Images as an array `[batch, channels, rows, columns]`, rows as one of `[n, features]`. `[x]`
    Array,
    /// An array `[batch, channels, rows, columns]` as images. `[x]`
    Images {
        /// Channels, which the array must have.
        channels: usize,
    },
    /// An array `[n, features]` as rows. `[x]`
    Rows {
        /// Features, which the array must have; `None` if that depends on the input.
        features: Option<usize>,
    },
    /// Another type of elements; floats to integers are truncated, to narrower integers wrapped. `[x]`
    Cast(ElementType),
    /// A function of each element. `[x]`
    Unary(Unary),
    /// A function of two elements, arrays broadcast against each other. `[a, b]`
    Binary(Binary),
    /// Of two arrays, each element of the first one where a condition holds; all three broadcast. `[condition, a, b]`
    Where,
    /// Matrix products of the last two axes, the others broadcast; of a vector, as numpy has it. `[a, b]`
    MatMul,
    /// One value for all elements along axes; all axes if there is no list of them, or an empty one. `[x]` or `[x, axes]`
    Reduce {
        /// Which value.
        reduction: Reduction,
        /// Whether the axes stay, of size 1.
        keep: bool,
        /// Without axes nothing is reduced: the function of each element alone.
        empty_is_none: bool,
    },
    /// The same of all axes from the third on, which stay with size 1. `[x]`
    GlobalPool(Reduction),
    /// The position of the largest, or smallest, element along an axis. `[x]`
    ArgMax {
        /// The axis.
        axis: isize,
        /// Whether it stays, of size 1.
        keep: bool,
        /// Of equal elements the last one instead of the first.
        last: bool,
        /// The smallest instead.
        smallest: bool,
    },
    /// `exp(x) / sum exp(x)` along an axis, or its logarithm. `[x]`
    Softmax {
        /// The axis.
        axis: isize,
        /// Whether the logarithm is wanted.
        log: bool,
    },
    /// `(x - mean) / sqrt(variance + epsilon)` over all axes from one on. `[x]`
    Normalize {
        /// The first axis.
        axis: isize,
        /// What keeps it from dividing by zero.
        epsilon: f32,
    },
    /// `gain[c] * x + shift[c]`, of each element of axis 1; of images with constants, each channel. `[x, gain, shift]`
    ChannelAffine,
    /// Local response normalization across channels (axis 1): `x / (bias + alpha / size * sum x^2)^beta`. `[x]`
    Lrn {
        /// Factor of the sum.
        alpha: f32,
        /// Power.
        beta: f32,
        /// What is added.
        bias: f32,
        /// Channels that are summed.
        size: usize,
    },
    /// Axes in another order: axis `i` of the result is `perm[i]` of the input; none for the reversed order. `[x]`
    Transpose(Vec<usize>),
    /// Other sizes for as many elements; -1 once for what is left. `[x, shape]`
    Reshape {
        /// 0 is a size of 0; otherwise that of the input's axis.
        allow_zero: bool,
    },
    /// Two axes: the product of those before an axis, and of the others. `[x]`
    Flatten {
        /// The axis.
        axis: isize,
    },
    /// Without axes of size 1: those of a list, or all. `[x]` or `[x, axes]`
    Squeeze,
    /// With new axes of size 1 at these places of the result. `[x, axes]`
    Unsqueeze,
    /// Broadcast to what a shape and the input's sizes have in common. `[x, shape]`
    Expand,
    /// Arrays one after the other along an axis. `[a, b, ...]`
    Concat {
        /// The axis.
        axis: isize,
    },
    /// A part of the elements along axes; starts and ends beyond the input are cut, as ONNX has it, steps may be negative.
    /// `[x, starts, ends, axes, steps]`
    Slice,
    /// One of several parts along an axis: of given sizes, or of sizes as even as possible, the last one smaller. `[x]` or `[x, sizes]`
    Part {
        /// The axis.
        axis: isize,
        /// Which.
        index: usize,
        /// How many there are.
        of: usize,
    },
    /// Elements of an axis by their numbers; negative ones count from the end. `[x, indices]`
    Gather {
        /// The axis.
        axis: isize,
    },
    /// More elements around the array, or fewer where a number is negative: `pads` are begins, then ends, of all axes or of a list.
    /// `[x, pads, value]` or `[x, pads, value, axes]`
    Pad(PadMode),
    /// The input repeated along each axis. `[x, repeats]`
    Tile,
    /// The sizes of the axes from `start` to before `end`, as integers. `[x]`
    Shape {
        /// The first axis.
        start: isize,
        /// The one after the last one; all if there is none.
        end: Option<isize>,
    },
    /// Numbers from a start to before a limit. `[start, limit, delta]`
    Range,
    /// Channels to blocks of pixels, `[n, c * b * b, h, w]` to `[n, c, h * b, w * b]`. `[x]`
    DepthToSpace {
        /// Rows and columns of a block.
        block: usize,
        /// The channels of a block's pixels follow each other (`CRD`); otherwise those of a pixel do (`DCR`).
        channels_first: bool,
    },
    /// Convolution of any number of axes, `[n, c, ...]` with `[outputs, c / groups, ...]`. `[x, weight]` or `[x, weight, bias]`
    Conv(Window),
    /// What a convolution's gradient with respect to its input is, `[n, c, ...]` with `[c, outputs / groups, ...]`.
    /// `[x, weight]` or `[x, weight, bias]`
    ConvTranspose {
        /// Its kernel is that of the weight.
        window: Window,
        /// Added to the sizes of the result, at the ends.
        output_padding: Vec<usize>,
        /// The sizes of the result, which then say how it is padded; none if padding says how large it is.
        output_shape: Vec<usize>,
    },
    /// One value for each window. `[x]`
    Pool {
        /// Which.
        kind: Pool,
        /// The windows; the kernel has a size for each axis from the third on.
        window: Window,
        /// Sizes that a part of a window is left over at are rounded up.
        ceil: bool,
    },
    /// Other sizes by interpolation. `[x, scales]` or `[x, sizes]`, and `[.., .., region]` with [`Coordinates::Crop`]
    Resize(Resize),
}

impl TensorOp {
    /// Whether its numbers are finite: files have no others.
    pub(super) fn is_finite(&self) -> bool {
        let numbers = match *self {
            Self::Normalize { epsilon, .. } => vec![epsilon],
            Self::Lrn { alpha, beta, bias, .. } => vec![alpha, beta, bias],
            Self::Unary(Unary::HardSigmoid { alpha, beta }) => vec![alpha, beta],
            Self::Unary(Unary::LeakyRelu { alpha } | Unary::Elu { alpha }) => vec![alpha],
            Self::Resize(Resize { mode, coordinates, .. }) => {
                let mode = if let Interpolation::Cubic { a } = mode { a } else { 0.0 };
                let outside = if let Coordinates::Crop { outside } = coordinates { outside } else { 0.0 };
                vec![mode, outside]
            }
            _ => vec![],
        };
        numbers.iter().all(|number| number.is_finite())
    }

    /// How many inputs it takes.
    #[must_use]
    pub const fn takes(&self) -> RangeInclusive<usize> {
        match self {
            Self::Input(_) | Self::Constant(_) => 0..=0,
            Self::Array
            | Self::Images { .. }
            | Self::Rows { .. }
            | Self::Cast(_)
            | Self::Unary(_)
            | Self::GlobalPool(_)
            | Self::ArgMax { .. }
            | Self::Softmax { .. }
            | Self::Normalize { .. }
            | Self::Lrn { .. }
            | Self::Transpose(_)
            | Self::Flatten { .. }
            | Self::Shape { .. }
            | Self::DepthToSpace { .. }
            | Self::Pool { .. } => 1..=1,
            Self::Reduce { .. } | Self::Squeeze | Self::Part { .. } => 1..=2,
            Self::Binary(_)
            | Self::MatMul
            | Self::Reshape { .. }
            | Self::Unsqueeze
            | Self::Expand
            | Self::Gather { .. }
            | Self::Tile => 2..=2,
            Self::Conv(_) | Self::ConvTranspose { .. } | Self::Resize(_) => 2..=3,
            Self::Where | Self::ChannelAffine | Self::Range => 3..=3,
            Self::Pad(_) => 3..=4,
            Self::Slice => 5..=5,
            Self::Concat { .. } => 1..=usize::MAX,
        }
    }
    /// The inputs that it has no gradient with respect to: sizes, places, conditions.
    #[must_use]
    pub const fn constants(&self) -> Range<usize> {
        match self {
            Self::Where => 0..1,
            Self::Range => 0..usize::MAX,
            Self::Reduce { .. }
            | Self::Reshape { .. }
            | Self::Squeeze
            | Self::Unsqueeze
            | Self::Expand
            | Self::Slice
            | Self::Part { .. }
            | Self::Gather { .. }
            | Self::Pad(_)
            | Self::Tile
            | Self::Resize(_) => 1..usize::MAX,
            _ => 0..0,
        }
    }

    /// What the elements of its result are in memory, for inputs with such elements.
    #[must_use]
    pub fn element(&self, inputs: &[ElementType]) -> ElementType {
        let of = |at: usize| inputs.get(at).copied().unwrap_or(ElementType::F32);
        match self {
            Self::Input(input) => input.element.in_memory(),
            Self::Constant(constant) => constant.element.in_memory(),
            Self::Cast(to) => to.in_memory(),
            Self::Unary(Unary::Not) => ElementType::Bool,
            Self::Binary(
                Binary::Equal
                | Binary::Less
                | Binary::LessOrEqual
                | Binary::Greater
                | Binary::GreaterOrEqual
                | Binary::And
                | Binary::Or
                | Binary::Xor,
            ) => ElementType::Bool,
            Self::ArgMax { .. } | Self::Shape { .. } => ElementType::I64,
            Self::Where => of(1),
            _ => of(0),
        }
    }

    /// Whether it makes floats of floats; integers and booleans have no gradient.
    #[must_use]
    pub fn gives_floats(&self) -> bool {
        self.element(&[]) == ElementType::F32
    }
}

/// Functions of one element.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Unary {
    /// `|x|`
    Abs,
    /// `-x`
    Neg,
    /// -1, 0 or 1.
    Sign,
    /// Of booleans.
    Not,
    /// The integer below.
    Floor,
    /// The integer above.
    Ceil,
    /// To the nearest, of two the even one.
    Round,
    /// `exp(x)`
    Exp,
    /// `ln(x)`
    Log,
    /// `sqrt(x)`
    Sqrt,
    /// `1 / x`
    Reciprocal,
    /// `sin(x)`
    Sin,
    /// `cos(x)`
    Cos,
    /// The error function.
    Erf,
    /// `tanh(x)`
    Tanh,
    /// `1 / (1 + exp(-x))`
    Sigmoid,
    /// `max(x, 0)`
    Relu,
    /// `x * sigmoid(x)`
    Silu,
    /// `ln(1 + exp(x))`
    Softplus,
    /// `x * clamp(x / 6 + 1/2, 0, 1)`
    HardSwish,
    /// `x / 2 * (1 + erf(x / sqrt 2))`
    Gelu,
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`
    GeluTanh,
    /// `clamp(alpha * x + beta, 0, 1)`
    HardSigmoid {
        /// Slope.
        alpha: f32,
        /// Value at zero.
        beta: f32,
    },
    /// `x`, below zero `alpha * x`
    LeakyRelu {
        /// Slope.
        alpha: f32,
    },
    /// `x`, below zero `alpha * (exp(x) - 1)`
    Elu {
        /// Slope.
        alpha: f32,
    },
}

/// Functions of two elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Binary {
    /// `a + b`
    Add,
    /// `a - b`
    Sub,
    /// `a * b`
    Mul,
    /// Of integers, towards zero.
    Div,
    /// `a^b`
    Pow,
    /// The smaller one.
    Min,
    /// The larger one.
    Max,
    /// The remainder with the sign of the second.
    Mod,
    /// The remainder with the sign of the first.
    Fmod,
    /// `a = b`
    Equal,
    /// `a < b`
    Less,
    /// `a <= b`
    LessOrEqual,
    /// `a > b`
    Greater,
    /// `a >= b`
    GreaterOrEqual,
    /// Of booleans.
    And,
    /// Of booleans.
    Or,
    /// Of booleans.
    Xor,
    /// `a`, below zero `a * b`. Unlike the others, `b` is broadcast to `a` only.
    Prelu,
}

/// One value of many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reduction {
    /// The sum.
    Sum,
    /// The mean.
    Mean,
    /// The larger one.
    Max,
    /// The smaller one.
    Min,
    /// The product.
    Prod,
    /// The sum of absolute values.
    L1,
    /// The root of the sum of squares.
    L2,
    /// The sum of squares.
    SumSquare,
    /// The logarithm of the sum.
    LogSum,
    /// The logarithm of the sum of `exp(x)`.
    LogSumExp,
}

/// What stands around an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PadMode {
    /// A value.
    Constant,
    /// Mirrored, without the element at the edge.
    Reflect,
    /// The element at the edge.
    Edge,
    /// From the other end.
    Wrap,
}

/// How windows lie on the axes from the third on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Sizes; none if those of a weight.
    pub kernel: Vec<usize>,
    /// Steps; none for 1.
    pub stride: Vec<usize>,
    /// Distances of a kernel's elements; none for 1.
    pub dilation: Vec<usize>,
    /// What is added around.
    pub padding: Padding,
    /// Parts of the channels that are convolved each for itself; 1 for pools.
    pub groups: usize,
}

/// What is added around.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Padding {
    /// Begins of all axes, then ends; none for 0.
    Sizes(Vec<usize>),
    /// So much that there are `ceil(size / stride)` windows, the odd one at the end.
    SameUpper,
    /// The odd one at the beginning.
    SameLower,
}

/// Values of windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Pool {
    /// Padding does not count.
    Max,
    /// The mean.
    Average {
        /// Whether padding counts as zeros.
        count_padding: bool,
    },
}

/// How an array gets other sizes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resize {
    /// The axes that the second input (and the region) speaks of; none for all.
    pub axes: Vec<isize>,
    /// Whether the second input has sizes, or factors.
    pub by: ResizeBy,
    /// What is interpolated how.
    pub mode: Interpolation,
    /// Which place of the input belongs to one of the result.
    pub coordinates: Coordinates,
    /// Shrinking takes the mean of all elements (linear and cubic only).
    pub antialias: bool,
    /// Weights of elements outside are zero, and the others scaled up to a sum of 1.
    pub exclude_outside: bool,
}

/// What the second input of a [`Resize`] has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResizeBy {
    /// Factors.
    Scales,
    /// Sizes.
    Sizes,
    /// Sizes, of which the smallest factor is that of all axes.
    NotLarger,
    /// Sizes, of which the largest factor is that of all axes.
    NotSmaller,
}

/// Interpolations.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Interpolation {
    /// The nearest element.
    Nearest(Nearest),
    /// Of neighbours.
    Linear,
    /// Of two neighbours on each side, with this coefficient (-0.75 usually).
    Cubic {
        /// The coefficient.
        a: f32,
    },
}

/// Which element is nearest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Nearest {
    /// Rounded, a half down.
    RoundPreferFloor,
    /// Rounded, a half up.
    RoundPreferCeil,
    /// The integer below.
    Floor,
    /// The integer above.
    Ceil,
}

/// Which place of the input belongs to one of the result, as ONNX names them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Coordinates {
    /// `(x + 1/2) / scale - 1/2`
    HalfPixel,
    /// The same, with the centres of both in one place.
    HalfPixelSymmetric,
    /// The same as `HalfPixel`, and 0 for a size of 1.
    PytorchHalfPixel,
    /// `x (in - 1) / (out - 1)`
    AlignCorners,
    /// `x / scale`
    Asymmetric,
    /// `tf_crop_and_resize`
    Crop {
        /// The value outside the input.
        outside: f32,
    },
}
