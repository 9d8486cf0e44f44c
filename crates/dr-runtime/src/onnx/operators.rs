//! What each operator of ONNX is in operations on arrays: one spelling for what opsets spell differently.

use super::attributes::Attributes;
use super::file::{Model, NodeInfo};
use super::proto::DataType;
use super::tensor::CodeType;
use super::values::{Val, Values};
use crate::arrays::Array;
use crate::graph::{
    Binary, Coordinates, ElementType, Interpolation, Nearest, PadMode, Padding, Pool, Reduction, Resize,
    ResizeBy, TensorOp, Unary, Window,
};

use std::fmt::{self, Display, Formatter};

/// Why an operator cannot be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Nobody has written it, or not with these attributes or outputs.
    Unknown(String),
    /// It cannot be computed with its constants.
    Wrong(String),
}

impl Display for Refusal {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (Self::Unknown(why) | Self::Wrong(why)) = self;
        f.write_str(why)
    }
}

impl Refusal {
    fn unknown(what: impl Into<String>) -> Self {
        Self::Unknown(what.into())
    }
}

/// The outputs of a node, of which the first ones may be all that are made.
type Outputs = Result<Vec<Val>, Refusal>;

/// The operators that there are.
pub(super) fn is_known(op: &str) -> bool {
    KNOWN.contains(&op)
}

const KNOWN: &[&str] = &[
    "Abs",
    "Neg",
    "Sign",
    "Not",
    "Floor",
    "Ceil",
    "Round",
    "Exp",
    "Log",
    "Sqrt",
    "Reciprocal",
    "Sin",
    "Cos",
    "Erf",
    "Tanh",
    "Sigmoid",
    "Relu",
    "Softplus",
    "HardSwish",
    "Gelu",
    "HardSigmoid",
    "LeakyRelu",
    "Elu",
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Pow",
    "Mod",
    "Equal",
    "Less",
    "LessOrEqual",
    "Greater",
    "GreaterOrEqual",
    "And",
    "Or",
    "Xor",
    "PRelu",
    "ReduceSum",
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "Identity",
    "Dropout",
    "Constant",
    "ConstantOfShape",
    "Cast",
    "Sum",
    "Min",
    "Max",
    "Mean",
    "Clip",
    "Where",
    "Softmax",
    "LogSoftmax",
    "MatMul",
    "Gemm",
    "ArgMax",
    "ArgMin",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "MaxPool",
    "AveragePool",
    "Conv",
    "ConvTranspose",
    "BatchNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "GroupNormalization",
    "LpNormalization",
    "LRN",
    "Transpose",
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Expand",
    "Tile",
    "Concat",
    "Slice",
    "Split",
    "Gather",
    "Pad",
    "Shape",
    "Size",
    "Range",
    "DepthToSpace",
    "Resize",
    "Upsample",
    "QuantizeLinear",
    "DequantizeLinear",
];

/// The most axes that are written one by one.
const MOST_AXES: isize = 64;

/// Computes a node of the default domain on arrays.
pub(super) fn compute(
    values: &mut Values, node: &NodeInfo, inputs: &[Option<Val>], model: &Model,
) -> Outputs {
    let of = Operator { node, attributes: Attributes::of(node), inputs, model, opset: model.opset };
    of.compute(values)
}

/// One node.
struct Operator<'a> {
    node: &'a NodeInfo,
    attributes: Attributes<'a>,
    inputs: &'a [Option<Val>],
    model: &'a Model,
    opset: i64,
}

impl Operator<'_> {
    fn compute(&self, values: &mut Values) -> Outputs {
        let op = self.node.op.as_str();
        if let Some(unary) = self.unary()? {
            return Ok(vec![values.emit(TensorOp::Unary(unary), &[self.input(0)?])?]);
        }
        if let Some(binary) = self.binary()? {
            return Ok(vec![values.emit(TensorOp::Binary(binary), &[self.input(0)?, self.input(1)?])?]);
        }
        if let Some(reduction) = reduction(op) {
            return self.reduce(values, reduction);
        }
        let one = |val: Val| Ok(vec![val]);
        match op {
            "Identity" => one(self.input(0)?),
            "Dropout" => self.dropout(values),
            "Constant" => one(Val::Known(self.attributes.constant()?)),
            "ConstantOfShape" => {
                let value = match self.attributes.tensor("value")? {
                    Some(value) => value,
                    None => Array::scalar(0.0),
                };
                let value =
                    values.emit(TensorOp::Reshape { allow_zero: false }, &[Val::Known(value), ints(&[])])?;
                one(values.emit(TensorOp::Expand, &[value, self.input(0)?])?)
            }
            "Cast" => {
                let element = self.attributes.element("to")?;
                one(values.emit(TensorOp::Cast(element), &[self.input(0)?])?)
            }
            "Sum" | "Min" | "Max" | "Mean" => self.variadic(values),
            "Clip" => self.clip(values),
            "Where" => one(values.emit(TensorOp::Where, &[self.input(0)?, self.input(1)?, self.input(2)?])?),
            "Softmax" | "LogSoftmax" => self.softmax(values, op == "LogSoftmax"),
            "MatMul" => one(values.emit(TensorOp::MatMul, &[self.input(0)?, self.input(1)?])?),
            "Gemm" => self.gemm(values),
            "ArgMax" | "ArgMin" => {
                let op = TensorOp::ArgMax {
                    axis: self.attributes.axis("axis", 0),
                    keep: self.attributes.int("keepdims", 1) != 0,
                    last: self.attributes.int("select_last_index", 0) != 0,
                    smallest: op == "ArgMin",
                };
                one(values.emit(op, &[self.input(0)?])?)
            }
            "GlobalAveragePool" => {
                one(values.emit(TensorOp::GlobalPool(Reduction::Mean), &[self.input(0)?])?)
            }
            "GlobalMaxPool" => one(values.emit(TensorOp::GlobalPool(Reduction::Max), &[self.input(0)?])?),
            "MaxPool" | "AveragePool" => self.pool(values),
            "Conv" => one(values.emit(TensorOp::Conv(self.window()?), &self.given()?)?),
            "ConvTranspose" => {
                let op = TensorOp::ConvTranspose {
                    window: self.window()?,
                    output_padding: self.attributes.sizes("output_padding")?,
                    output_shape: self.attributes.sizes("output_shape")?,
                };
                one(values.emit(op, &self.given()?)?)
            }
            "BatchNormalization" => self.batch_norm(values),
            "InstanceNormalization" => {
                let epsilon = self.attributes.float("epsilon", 1e-5);
                let x = values.emit(TensorOp::Normalize { axis: 2, epsilon }, &[self.input(0)?])?;
                one(values.emit(TensorOp::ChannelAffine, &[x, self.input(1)?, self.input(2)?])?)
            }
            "LayerNormalization" => self.layer_norm(values),
            "GroupNormalization" => self.group_norm(values),
            "LpNormalization" => {
                let axis = self.attributes.int("axis", -1);
                let reduction = if self.attributes.int("p", 2) == 1 { Reduction::L1 } else { Reduction::L2 };
                let op = TensorOp::Reduce { reduction, keep: true, empty_is_none: false };
                let norm = values.emit(op, &[self.input(0)?, ints(&[axis])])?;
                one(values.emit(TensorOp::Binary(Binary::Div), &[self.input(0)?, norm])?)
            }
            "LRN" => {
                let size = self.attributes.required("size")?;
                let op = TensorOp::Lrn {
                    alpha: self.attributes.float("alpha", 1e-4),
                    beta: self.attributes.float("beta", 0.75),
                    bias: self.attributes.float("bias", 1.0),
                    size: usize::try_from(size).map_err(|_| Refusal::Wrong(format!("size {size}")))?,
                };
                one(values.emit(op, &[self.input(0)?])?)
            }
            "Transpose" => {
                one(values.emit(TensorOp::Transpose(self.attributes.sizes("perm")?), &[self.input(0)?])?)
            }
            "Reshape" => {
                let allow_zero = self.attributes.int("allowzero", 0) != 0;
                one(values.emit(TensorOp::Reshape { allow_zero }, &[self.input(0)?, self.input(1)?])?)
            }
            "Flatten" => {
                let axis = self.attributes.axis("axis", 1);
                one(values.emit(TensorOp::Flatten { axis }, &[self.input(0)?])?)
            }
            "Squeeze" => {
                let mut given = vec![self.input(0)?];
                given.extend(self.list("axes", 1));
                one(values.emit(TensorOp::Squeeze, &given)?)
            }
            "Unsqueeze" => {
                let axes = self.list("axes", 1).ok_or_else(|| Refusal::Wrong("no axes".into()))?;
                one(values.emit(TensorOp::Unsqueeze, &[self.input(0)?, axes])?)
            }
            "Expand" => one(values.emit(TensorOp::Expand, &[self.input(0)?, self.input(1)?])?),
            "Tile" => one(values.emit(TensorOp::Tile, &[self.input(0)?, self.input(1)?])?),
            "Concat" => {
                let axis = self.attributes.axis("axis", 1);
                one(values.emit(TensorOp::Concat { axis }, &self.given()?)?)
            }
            "Slice" => self.slice(values),
            "Split" => self.split(values),
            "Gather" => {
                let axis = self.attributes.axis("axis", 0);
                one(values.emit(TensorOp::Gather { axis }, &[self.input(0)?, self.input(1)?])?)
            }
            "Pad" => self.pad(values),
            "Shape" => {
                let start = self.attributes.axis("start", 0);
                let end = self.attributes.has("end").then(|| self.attributes.axis("end", 0));
                one(values.emit(TensorOp::Shape { start, end }, &[self.input(0)?])?)
            }
            "Size" => {
                let shape = values.emit(TensorOp::Shape { start: 0, end: None }, &[self.input(0)?])?;
                let op = TensorOp::Reduce { reduction: Reduction::Prod, keep: false, empty_is_none: false };
                one(values.emit(op, &[shape])?)
            }
            "Range" => one(values.emit(TensorOp::Range, &[self.input(0)?, self.input(1)?, self.input(2)?])?),
            "DepthToSpace" => {
                let block = self.attributes.required("blocksize")?;
                let op = TensorOp::DepthToSpace {
                    block: usize::try_from(block)
                        .map_err(|_| Refusal::Wrong(format!("blocksize {block}")))?,
                    channels_first: self.attributes.text("mode", "DCR") == "CRD",
                };
                one(values.emit(op, &[self.input(0)?])?)
            }
            "Resize" | "Upsample" => self.resize(values),
            "QuantizeLinear" => self.quantize(values),
            "DequantizeLinear" => self.dequantize(values),
            _ => Err(Refusal::unknown("")),
        }
    }

    /// An input that must be there.
    fn input(&self, at: usize) -> Result<Val, Refusal> {
        let wrong = || Refusal::Wrong(format!("no input {at}"));
        self.inputs.get(at).cloned().flatten().ok_or_else(wrong)
    }

    fn optional(&self, at: usize) -> Option<Val> {
        self.inputs.get(at).cloned().flatten()
    }

    /// All inputs, of which only the last ones may be left out.
    fn given(&self) -> Result<Vec<Val>, Refusal> {
        let count = self.inputs.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        (0..count).map(|at| self.input(at)).collect()
    }

    /// Integers that are an attribute in older opsets and an input in newer ones.
    fn list(&self, name: &str, at: usize) -> Option<Val> {
        self.attributes.ints(name).map(ints).or_else(|| self.optional(at))
    }

    /// Whether an output is wanted.
    fn wants(&self, output: usize) -> bool {
        self.node.outputs.get(output).is_some_and(Option::is_some)
    }

    fn unary(&self) -> Result<Option<Unary>, Refusal> {
        let float = |name, usual| self.attributes.float(name, usual);
        Ok(Some(match self.node.op.as_str() {
            "Abs" => Unary::Abs,
            "Neg" => Unary::Neg,
            "Sign" => Unary::Sign,
            "Not" => Unary::Not,
            "Floor" => Unary::Floor,
            "Ceil" => Unary::Ceil,
            "Round" => Unary::Round,
            "Exp" => Unary::Exp,
            "Log" => Unary::Log,
            "Sqrt" => Unary::Sqrt,
            "Reciprocal" => Unary::Reciprocal,
            "Sin" => Unary::Sin,
            "Cos" => Unary::Cos,
            "Erf" => Unary::Erf,
            "Tanh" => Unary::Tanh,
            "Sigmoid" => Unary::Sigmoid,
            "Relu" => Unary::Relu,
            "Softplus" => Unary::Softplus,
            "HardSwish" => Unary::HardSwish,
            "Gelu" => match self.attributes.text("approximate", "none") {
                "none" => Unary::Gelu,
                "tanh" => Unary::GeluTanh,
                other => return Err(Refusal::unknown(format!("approximate {other}"))),
            },
            "HardSigmoid" => Unary::HardSigmoid { alpha: float("alpha", 0.2), beta: float("beta", 0.5) },
            "LeakyRelu" => Unary::LeakyRelu { alpha: float("alpha", 0.01) },
            "Elu" => Unary::Elu { alpha: float("alpha", 1.0) },
            _ => return Ok(None),
        }))
    }

    fn binary(&self) -> Result<Option<Binary>, Refusal> {
        Ok(Some(match self.node.op.as_str() {
            "Add" => Binary::Add,
            "Sub" => Binary::Sub,
            "Mul" => Binary::Mul,
            "Div" => Binary::Div,
            "Pow" => Binary::Pow,
            "Mod" if self.attributes.int("fmod", 0) != 0 => Binary::Fmod,
            "Mod" => Binary::Mod,
            "Equal" => Binary::Equal,
            "Less" => Binary::Less,
            "LessOrEqual" => Binary::LessOrEqual,
            "Greater" => Binary::Greater,
            "GreaterOrEqual" => Binary::GreaterOrEqual,
            "And" => Binary::And,
            "Or" => Binary::Or,
            "Xor" => Binary::Xor,
            "PRelu" => Binary::Prelu,
            _ => return Ok(None),
        }))
    }

    fn dropout(&self, values: &mut Values) -> Outputs {
        let x = self.input(0)?;
        let is_zero = |at| self.optional(at).is_some_and(|val| val.known() == Some(&Array::scalar(0.0)));
        let trains = self.optional(2).is_some_and(|val| {
            val.known() != Some(&Array::Bool(ndarray::ArcArray::from_elem(ndarray::IxDyn(&[]), false)))
        });
        if trains && !is_zero(1) {
            return Err(Refusal::unknown("in training mode"));
        }
        let mut outputs = vec![x.clone()];
        if self.wants(1) {
            let shape = values.shape(&x)?;
            let one = values.emit(TensorOp::Cast(ElementType::Bool), &[Val::Known(Array::scalar(1.0))])?;
            outputs.push(values.emit(TensorOp::Expand, &[one, shape])?);
        }
        Ok(outputs)
    }

    fn variadic(&self, values: &mut Values) -> Outputs {
        let binary = match self.node.op.as_str() {
            "Min" => Binary::Min,
            "Max" => Binary::Max,
            _ => Binary::Add,
        };
        let given = self.given()?;
        let mut sum = self.input(0)?;
        for other in &given[1..] {
            sum = values.emit(TensorOp::Binary(binary), &[sum, other.clone()])?;
        }
        if self.node.op == "Mean" {
            let count = Val::Known(Array::scalar(given.len() as f32));
            sum = values.emit(TensorOp::Binary(Binary::Div), &[sum, count])?;
        }
        Ok(vec![sum])
    }

    fn clip(&self, values: &mut Values) -> Outputs {
        let bound = |name: &str, at| match self.attributes.has(name) {
            true => Some(Val::Known(Array::scalar(self.attributes.float(name, 0.0)))),
            false => self.optional(at),
        };
        let mut x = self.input(0)?;
        for (bound, binary) in [(bound("min", 1), Binary::Max), (bound("max", 2), Binary::Min)] {
            if let Some(bound) = bound {
                x = values.emit(TensorOp::Binary(binary), &[x, bound])?;
            }
        }
        Ok(vec![x])
    }

    fn softmax(&self, values: &mut Values, log: bool) -> Outputs {
        let x = self.input(0)?;
        let axis = self.attributes.axis("axis", if self.opset < 13 { 1 } else { -1 });
        let is_last = axis == -1 || values.rank(&x).is_some_and(|rank| axis + 1 == rank.cast_signed());
        if self.opset >= 13 || is_last {
            return Ok(vec![values.emit(TensorOp::Softmax { axis, log }, &[x])?]);
        }
        // Over all axes from this one on.
        let shape = values.shape(&x)?;
        let rows = values.emit(TensorOp::Flatten { axis }, &[x])?;
        let rows = values.emit(TensorOp::Softmax { axis: 1, log }, &[rows])?;
        Ok(vec![values.emit(TensorOp::Reshape { allow_zero: false }, &[rows, shape])?])
    }

    fn reduce(&self, values: &mut Values, reduction: Reduction) -> Outputs {
        let mut given = vec![self.input(0)?];
        given.extend(self.list("axes", 1));
        let op = TensorOp::Reduce {
            reduction,
            keep: self.attributes.int("keepdims", 1) != 0,
            empty_is_none: self.attributes.int("noop_with_empty_axes", 0) != 0,
        };
        Ok(vec![values.emit(op, &given)?])
    }

    fn gemm(&self, values: &mut Values) -> Outputs {
        let mut side = |at, name| {
            let x = self.input(at)?;
            match self.attributes.int(name, 0) != 0 {
                true => values.emit(TensorOp::Transpose(vec![1, 0]), &[x]),
                false => Ok(x),
            }
        };
        let (a, b) = (side(0, "transA")?, side(1, "transB")?);
        let mut y = values.emit(TensorOp::MatMul, &[a, b])?;
        let mut times = |x: Val, name| match self.attributes.float(name, 1.0) {
            1.0 => Ok(x),
            factor => values.emit(TensorOp::Binary(Binary::Mul), &[x, Val::Known(Array::scalar(factor))]),
        };
        y = times(y, "alpha")?;
        if let Some(c) = self.optional(2) {
            let c = times(c, "beta")?;
            y = values.emit(TensorOp::Binary(Binary::Add), &[y, c])?;
        }
        Ok(vec![y])
    }

    fn padding(&self) -> Result<Padding, Refusal> {
        match self.attributes.text("auto_pad", "NOTSET") {
            "NOTSET" => Ok(Padding::Sizes(self.attributes.sizes("pads")?)),
            "VALID" => Ok(Padding::Sizes(vec![])),
            "SAME_UPPER" => Ok(Padding::SameUpper),
            "SAME_LOWER" => Ok(Padding::SameLower),
            other => Err(Refusal::unknown(format!("auto_pad {other}"))),
        }
    }

    /// How a convolution's or a pool's windows lie.
    pub(super) fn window(&self) -> Result<Window, Refusal> {
        let groups = self.attributes.int("group", 1);
        Ok(Window {
            kernel: self.attributes.sizes("kernel_shape")?,
            stride: self.attributes.sizes("strides")?,
            dilation: self.attributes.sizes("dilations")?,
            padding: self.padding()?,
            groups: usize::try_from(groups).map_err(|_| Refusal::Wrong(format!("{groups} groups")))?,
        })
    }

    fn pool(&self, values: &mut Values) -> Outputs {
        if self.wants(1) {
            return Err(Refusal::unknown("with positions of the maxima"));
        }
        let kind = match self.node.op == "MaxPool" {
            true => Pool::Max,
            false => Pool::Average { count_padding: self.attributes.int("count_include_pad", 0) != 0 },
        };
        let op =
            TensorOp::Pool { kind, window: self.window()?, ceil: self.attributes.int("ceil_mode", 0) != 0 };
        Ok(vec![values.emit(op, &[self.input(0)?])?])
    }

    fn batch_norm(&self, values: &mut Values) -> Outputs {
        if self.attributes.int("training_mode", 0) != 0 || self.wants(1) {
            return Err(Refusal::unknown("in training mode"));
        }
        let [x, scale, shift, mean, variance] =
            [self.input(0)?, self.input(1)?, self.input(2)?, self.input(3)?, self.input(4)?];
        let [gain, shift] = batch_norm(values, [scale, shift, mean, variance], &self.attributes)?;
        Ok(vec![values.emit(TensorOp::ChannelAffine, &[x, gain, shift])?])
    }

    fn layer_norm(&self, values: &mut Values) -> Outputs {
        let (x, scale) = (self.input(0)?, self.input(1)?);
        let (axis, epsilon) = (self.attributes.axis("axis", -1), self.attributes.float("epsilon", 1e-5));
        let y = values.emit(TensorOp::Normalize { axis, epsilon }, std::slice::from_ref(&x))?;
        let mut y = values.emit(TensorOp::Binary(Binary::Mul), &[y, scale])?;
        if let Some(bias) = self.optional(2) {
            y = values.emit(TensorOp::Binary(Binary::Add), &[y, bias])?;
        }
        let mut outputs = vec![y];
        if self.wants(1) || self.wants(2) {
            let unknown = || Refusal::unknown("with its mean, of an array whose rank is not known");
            let last = if axis < 0 { 0 } else { values.rank(&x).ok_or_else(unknown)?.cast_signed() };
            if last.saturating_sub(axis) > MOST_AXES {
                return Err(Refusal::Wrong(format!("axis {axis}: expected one of at most {MOST_AXES}")));
            }
            let axes: Vec<i64> = (axis..last).map(|axis| axis as i64).collect();
            let mean = TensorOp::Reduce { reduction: Reduction::Mean, keep: true, empty_is_none: true };
            let means = values.emit(mean.clone(), &[x.clone(), ints(&axes)])?;
            let centred = values.emit(TensorOp::Binary(Binary::Sub), &[x, means.clone()])?;
            let square = values.emit(TensorOp::Binary(Binary::Mul), &[centred.clone(), centred])?;
            let variance = values.emit(mean, &[square, ints(&axes)])?;
            let root = root(values, variance, epsilon)?;
            outputs.push(means);
            outputs.push(values.emit(TensorOp::Unary(Unary::Reciprocal), &[root])?);
        }
        Ok(outputs)
    }

    fn group_norm(&self, values: &mut Values) -> Outputs {
        let groups = self.attributes.required("num_groups")?;
        let epsilon = self.attributes.float("epsilon", 1e-5);
        let [x, scale, bias] = [self.input(0)?, self.input(1)?, self.input(2)?];
        let shape = values.shape(&x)?;
        let reshape = TensorOp::Reshape { allow_zero: false };
        let x = values.emit(reshape.clone(), &[x, ints(&[0, groups, -1])])?;
        let mut x = values.emit(TensorOp::Normalize { axis: 2, epsilon }, &[x])?;
        // Before opset 21 scales are those of groups.
        if self.opset < 21 {
            x = values.emit(TensorOp::ChannelAffine, &[x, scale.clone(), bias.clone()])?;
        }
        let mut x = values.emit(reshape, &[x, shape])?;
        if self.opset >= 21 {
            x = values.emit(TensorOp::ChannelAffine, &[x, scale, bias])?;
        }
        Ok(vec![x])
    }

    fn slice(&self, values: &mut Values) -> Outputs {
        let missing = || Refusal::Wrong("no starts or ends".into());
        let starts = self.list("starts", 1).ok_or_else(missing)?;
        let ends = self.list("ends", 2).ok_or_else(missing)?;
        let count = values.shape(&starts)?;
        let axes = match self.list("axes", 3) {
            Some(axes) => axes,
            None => {
                let count = values.emit(TensorOp::Squeeze, std::slice::from_ref(&count))?;
                values.emit(TensorOp::Range, &[int(0), count, int(1)])?
            }
        };
        let steps = match self.optional(4) {
            Some(steps) => steps,
            None => values.emit(TensorOp::Expand, &[int(1), count])?,
        };
        Ok(vec![values.emit(TensorOp::Slice, &[self.input(0)?, starts, ends, axes, steps])?])
    }

    fn split(&self, values: &mut Values) -> Outputs {
        let axis = self.attributes.axis("axis", 0);
        let sizes = self.list("split", 1);
        let of = self.node.outputs.len();
        let part = |index| {
            let mut given = vec![self.input(0)?];
            given.extend(sizes.clone());
            values.emit(TensorOp::Part { axis, index, of }, &given)
        };
        (0..of).map(part).collect()
    }

    fn pad(&self, values: &mut Values) -> Outputs {
        let mode = match self.attributes.text("mode", "constant") {
            "constant" => PadMode::Constant,
            "reflect" => PadMode::Reflect,
            "edge" => PadMode::Edge,
            "wrap" => PadMode::Wrap,
            other => return Err(Refusal::unknown(format!("mode {other}"))),
        };
        let pads = self.list("pads", 1).ok_or_else(|| Refusal::Wrong("no pads".into()))?;
        let usual = || Val::Known(Array::scalar(self.attributes.float("value", 0.0)));
        let mut given = vec![self.input(0)?, pads, self.optional(2).unwrap_or_else(usual)];
        given.extend(self.optional(3));
        Ok(vec![values.emit(TensorOp::Pad(mode), &given)?])
    }

    fn resize(&self, values: &mut Values) -> Outputs {
        let old = self.node.op == "Upsample" || self.opset < 11;
        let text = |name, usual| self.attributes.text(name, usual);
        let coordinates =
            match text("coordinate_transformation_mode", if old { "asymmetric" } else { "half_pixel" }) {
                "half_pixel" => Coordinates::HalfPixel,
                "half_pixel_symmetric" => Coordinates::HalfPixelSymmetric,
                "pytorch_half_pixel" => Coordinates::PytorchHalfPixel,
                "align_corners" => Coordinates::AlignCorners,
                "asymmetric" => Coordinates::Asymmetric,
                "tf_crop_and_resize" => {
                    Coordinates::Crop { outside: self.attributes.float("extrapolation_value", 0.0) }
                }
                other => return Err(Refusal::unknown(format!("coordinate_transformation_mode {other}"))),
            };
        let nearest = match text("nearest_mode", if old { "floor" } else { "round_prefer_floor" }) {
            "round_prefer_floor" => Nearest::RoundPreferFloor,
            "round_prefer_ceil" => Nearest::RoundPreferCeil,
            "floor" => Nearest::Floor,
            "ceil" => Nearest::Ceil,
            other => return Err(Refusal::unknown(format!("nearest_mode {other}"))),
        };
        let mode = match text("mode", "nearest") {
            "nearest" => Interpolation::Nearest(nearest),
            "linear" | "bilinear" => Interpolation::Linear,
            "cubic" => Interpolation::Cubic { a: self.attributes.float("cubic_coeff_a", -0.75) },
            other => return Err(Refusal::unknown(format!("mode {other}"))),
        };
        let empty = |val: &Val| val.known().is_some_and(|array| array.dims().contains(&0));
        let given = |at| self.optional(at).filter(|val| !empty(val));
        let (scales, sizes) = match (self.attributes.has("scales"), old) {
            (true, _) => (Some(Val::Known(self.attributes.floats("scales")?)), None),
            (false, true) => (given(1), None),
            (false, false) => (given(2), given(3)),
        };
        let (by, second) = match (scales, sizes) {
            (_, Some(sizes)) => match text("keep_aspect_ratio_policy", "stretch") {
                "stretch" => (ResizeBy::Sizes, sizes),
                "not_larger" => (ResizeBy::NotLarger, sizes),
                "not_smaller" => (ResizeBy::NotSmaller, sizes),
                other => return Err(Refusal::unknown(format!("keep_aspect_ratio_policy {other}"))),
            },
            (Some(scales), None) => (ResizeBy::Scales, scales),
            (None, None) => return Err(Refusal::Wrong("no scales and no sizes".into())),
        };
        let axes = self.attributes.ints("axes").unwrap_or_default();
        let op = TensorOp::Resize(Resize {
            axes: axes.iter().map(|&axis| axis as isize).collect(),
            by,
            mode,
            coordinates,
            antialias: self.attributes.int("antialias", 0) != 0,
            exclude_outside: self.attributes.int("exclude_outside", 0) != 0,
        });
        let mut inputs = vec![self.input(0)?, second];
        if matches!(coordinates, Coordinates::Crop { .. }) {
            inputs.push(self.input(1)?);
        }
        Ok(vec![values.emit(op, &inputs)?])
    }

    /// Codes: `clip(round(x / scale) + zero point)`.
    fn quantize(&self, values: &mut Values) -> Outputs {
        let zero = self.node.inputs.get(2).and_then(Option::as_deref);
        let data_type = match (zero, self.attributes.int("output_dtype", 0)) {
            (Some(zero), _) => self.data_type(zero),
            (None, 0) => Some(DataType::Uint8 as i32),
            (None, said) => i32::try_from(said).ok(),
        };
        let unknown =
            || Refusal::unknown("to a type that is not known to be one of integers of at most 16 bits");
        let of = data_type.and_then(CodeType::of).ok_or_else(unknown)?;
        let (x, [scale, zero]) = self.quantized(values)?;
        let mut y = values.emit(TensorOp::Binary(Binary::Div), &[x, scale])?;
        y = values.emit(TensorOp::Unary(Unary::Round), &[y])?;
        y = values.emit(TensorOp::Binary(Binary::Add), &[y, zero])?;
        let [first, last] = of.range().map(|code| Val::Known(Array::scalar(code)));
        y = values.emit(TensorOp::Binary(Binary::Max), &[y, first])?;
        y = values.emit(TensorOp::Binary(Binary::Min), &[y, last])?;
        Ok(vec![values.emit(TensorOp::Cast(of.element()), &[y])?])
    }

    /// The number of the type that the file says of a constant or an input.
    fn data_type(&self, name: &str) -> Option<i32> {
        if let Some(constant) = self.model.initializers.get(name) {
            return Some(constant.data_type());
        }
        let input = self.model.inputs.iter().find(|input| input.name == name)?;
        input.element.map(|element| element.data_type() as i32)
    }

    /// What codes stand for: `(x - zero point) * scale`.
    fn dequantize(&self, values: &mut Values) -> Outputs {
        let (x, [scale, zero]) = self.quantized(values)?;
        let x = values.emit(TensorOp::Cast(ElementType::F32), &[x])?;
        let x = values.emit(TensorOp::Binary(Binary::Sub), &[x, zero])?;
        Ok(vec![values.emit(TensorOp::Binary(Binary::Mul), &[x, scale])?])
    }

    /// What is quantized or dequantized; scale and zero point in floats, along their axis.
    fn quantized(&self, values: &mut Values) -> Result<(Val, [Val; 2]), Refusal> {
        if self.attributes.int("block_size", 0) != 0 {
            return Err(Refusal::unknown("with scales for blocks"));
        }
        let x = self.input(0)?;
        let zero = self.optional(2).unwrap_or_else(|| Val::Known(Array::scalar(0.0)));
        let zero = values.emit(TensorOp::Cast(ElementType::F32), &[zero])?;
        let mut parts = [self.input(1)?, zero];
        for part in &mut parts {
            if values.rank(part) == Some(0) || part.known().is_some_and(|part| part.len() == 1) {
                continue;
            }
            let axis = self.attributes.axis("axis", 1);
            let after = match (axis, values.rank(&x)) {
                (..0, _) => Some(-1 - axis),
                (_, Some(rank)) => Some(rank.cast_signed() - 1 - axis),
                _ => None,
            };
            let wrong =
                || Refusal::Wrong(format!("axis {axis} of an array whose axes are not known to have it"));
            let after = after.filter(|after| (0..MOST_AXES).contains(after)).ok_or_else(wrong)?;
            let shape: Vec<i64> = [-1].into_iter().chain((0..after).map(|_| 1)).collect();
            *part = values.emit(TensorOp::Reshape { allow_zero: false }, &[part.clone(), ints(&shape)])?;
        }
        Ok((x, parts))
    }
}

/// Gain and shift of a BatchNorm with the statistics of training: `[scale, shift, mean, variance]`.
pub(super) fn batch_norm(
    values: &mut Values, [scale, shift, mean, variance]: [Val; 4], attributes: &Attributes,
) -> Result<[Val; 2], Refusal> {
    let root = root(values, variance, attributes.float("epsilon", 1e-5))?;
    let gain = values.emit(TensorOp::Binary(Binary::Div), &[scale, root])?;
    let moved = values.emit(TensorOp::Binary(Binary::Mul), &[mean, gain.clone()])?;
    let shift = values.emit(TensorOp::Binary(Binary::Sub), &[shift, moved])?;
    Ok([gain, shift])
}

/// `sqrt(variance + epsilon)`
fn root(values: &mut Values, variance: Val, epsilon: f32) -> Result<Val, Refusal> {
    let sum = values.emit(TensorOp::Binary(Binary::Add), &[variance, Val::Known(Array::scalar(epsilon))])?;
    values.emit(TensorOp::Unary(Unary::Sqrt), &[sum])
}

fn reduction(op: &str) -> Option<Reduction> {
    Some(match op {
        "ReduceSum" => Reduction::Sum,
        "ReduceMean" => Reduction::Mean,
        "ReduceMax" => Reduction::Max,
        "ReduceMin" => Reduction::Min,
        "ReduceProd" => Reduction::Prod,
        "ReduceL1" => Reduction::L1,
        "ReduceL2" => Reduction::L2,
        "ReduceSumSquare" => Reduction::SumSquare,
        "ReduceLogSum" => Reduction::LogSum,
        "ReduceLogSumExp" => Reduction::LogSumExp,
        _ => return None,
    })
}

/// An integer.
fn int(value: i64) -> Val {
    Val::Known(Array::integer(value))
}

/// A list of integers.
pub(super) fn ints(values: &[i64]) -> Val {
    Val::Known(Array::integers(values))
}
