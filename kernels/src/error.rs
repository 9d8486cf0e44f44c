//! What can be wrong with an operation's arguments. All of it is found before anything is launched.

use dr_precision::PrecisionError;
use thiserror::Error;

/// Arguments that do not fit together.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum KernelError {
    /// A vector of scales or zero points of the wrong length.
    #[error("{what}: {found} values for a tensor of shape {shape:?}, expected {expected} ({granularity})")]
    ScaleCount {
        /// `scale`, `stored scale` or `zero point`.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there must be.
        expected: usize,
        /// The shape of the tensor they belong to.
        shape: Vec<usize>,
        /// The granularity, as text.
        granularity: String,
    },
    /// Packed words that do not hold what they should.
    #[error("packed codes: {found} words, expected {expected} for {elements} codes of {bits} bits")]
    WordCount {
        /// How many there are.
        found: usize,
        /// How many there must be.
        expected: usize,
        /// The number of codes.
        elements: usize,
        /// The width of a code.
        bits: u32,
    },
    /// A tensor of a data type that the operation does not take.
    #[error("{what}: data type {found}, expected {expected}")]
    DataType {
        /// The argument.
        what: &'static str,
        /// Its data type.
        found: String,
        /// What the operation takes.
        expected: &'static str,
    },
    /// Tensors on different devices.
    #[error("{what} is on {found}, but the tensor is on {expected}")]
    Device {
        /// The argument.
        what: &'static str,
        /// Its device.
        found: String,
        /// The tensor's device.
        expected: String,
    },
    /// A switch of unsigned codes: activations are quantized anew at every precision.
    #[error("only signed codes (weights) can be switched; these are unsigned")]
    SwitchUnsigned,
    /// Unsigned codes without zero points, or signed ones with them.
    #[error("zero points: {0}")]
    ZeroPoint(&'static str),
    /// A list of widths that is not highest first without repetition.
    #[error("widths {0:?}: expected at least one, highest first, each once")]
    Widths(Vec<u32>),
    /// A tensor of another rank than it was packed from.
    #[error("packed tensor of shape {shape:?}: cannot become a tensor of rank {rank}")]
    Rank {
        /// The shape it has.
        shape: Vec<usize>,
        /// The rank that was asked for.
        rank: usize,
    },
    /// A weight that no linear layer or convolution has.
    #[error(
        "weight of shape {shape:?} in {groups} groups: expected [outputs, inputs] or [outputs, inputs, rows, columns], the outputs a multiple of the groups"
    )]
    WeightShape {
        /// The shape it has.
        shape: Vec<usize>,
        /// The number of groups.
        groups: usize,
    },
    /// A depthwise convolution, whose kernels have one scale each, with scales of shorter runs.
    #[error(
        "a depthwise convolution of {taps} taps with a scale for {run} of them: expected one for each channel"
    )]
    DepthwiseGroups {
        /// Codes that share a scale.
        run: usize,
        /// Codes of a channel.
        taps: usize,
    },
    /// More products in a sum than 32 bits can always hold.
    #[error(
        "a sum of {found} products with {bits}-bit weights may overflow 32 bits: expected at most {largest}; groups of weights with their own scales make the sums shorter"
    )]
    SumOverflow {
        /// How many there are.
        found: usize,
        /// How many there can be.
        largest: usize,
        /// The width of the weights.
        bits: u32,
    },
    /// A size that does not fit the others.
    #[error("{what}: {found:?}, expected {expected:?}")]
    Size {
        /// The argument.
        what: &'static str,
        /// What it is.
        found: Vec<usize>,
        /// What it must be.
        expected: Vec<usize>,
    },
    /// A granularity without the groups that products in groups are made for.
    #[error("granularity {found}: expected groups of {unit} inputs or a multiple of them")]
    GroupSize {
        /// The granularity.
        found: String,
        /// What group sizes are multiples of.
        unit: usize,
    },
    /// A scale or offset of a group that is no number, infinite, or a negative scale.
    #[error("{what} {found} of a group: expected a finite number, scales of at least 0")]
    GroupScale {
        /// `scale` or `offset`.
        what: &'static str,
        /// The number, as text.
        found: String,
    },
    /// A code that its width does not have.
    #[error("weight code {found}: expected {low} to {high} at {bits} bits")]
    CodeRange {
        /// The code.
        found: i32,
        /// The lowest code of the width.
        low: i32,
        /// The highest code of the width.
        high: i32,
        /// The width.
        bits: u32,
    },
    /// Sizes whose product no memory has.
    #[error("{what} of {sizes:?}: more than can be addressed")]
    TooLarge {
        /// What has these sizes.
        what: &'static str,
        /// The sizes.
        sizes: Vec<usize>,
    },
    /// A step, dilation or kernel of 0.
    #[error("{0} is 0: expected at least 1")]
    Zero(&'static str),
    /// Packed unsigned codes for a weight.
    #[error("weights have signed codes; these are unsigned")]
    Unsigned,
    /// Codes that were quantized in another way than a product takes.
    #[error("codes of {found}: expected {expected}")]
    Quantizer {
        /// How they were.
        found: String,
        /// What the product takes.
        expected: String,
    },
    /// A tensor that its device does not give.
    #[error("{what} could not be read: {reason}")]
    Read {
        /// The tensor.
        what: &'static str,
        /// What the device says.
        reason: String,
    },
    /// A name that no [`ScaleGradient`](crate::ScaleGradient) has.
    #[error("scale gradient `{0}`: expected `chained`, `exact` or `lsq`")]
    ScaleGradient(String),
    /// A width or pair of widths that does not exist.
    #[error(transparent)]
    Precision(#[from] PrecisionError),
}

/// Whether sizes are what they must be.
pub(crate) fn size(what: &'static str, found: &[usize], expected: &[usize]) -> Result<(), KernelError> {
    if found == expected {
        return Ok(());
    }
    Err(KernelError::Size { what, found: found.to_vec(), expected: expected.to_vec() })
}

/// The product of sizes. Those of a tensor without elements must not overflow either: the product of some of its sizes may be
/// asked for as well.
pub(crate) fn product(what: &'static str, sizes: &[usize]) -> Result<usize, KernelError> {
    let product = sizes.iter().try_fold(1usize, |product, &size| product.checked_mul(size.max(1)));
    let product = product.ok_or_else(|| KernelError::TooLarge { what, sizes: sizes.to_vec() })?;
    Ok(if sizes.contains(&0) { 0 } else { product })
}
