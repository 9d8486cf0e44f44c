//! Operations on arrays, an arm for each: the other side of `dr_runtime::onnx`, which gives each operator of ONNX one of them.

use super::graph::{float, int, ints, sizes, text};
use super::nodes::Writer;
use dr_runtime::arrays::Array;
use dr_runtime::graph::{
    Binary, Constant, Coordinates, ElementType, Interpolation, Kind, Nearest, PadMode, Padding, Pool,
    Reduction, Resize, ResizeBy, TensorOp, Unary, Value, Window,
};
use dr_runtime::onnx::proto::AttributeProto;

type Attributes = Vec<AttributeProto>;

impl Writer<'_> {
    /// The value of a node that is an operation on arrays with the values `x`.
    pub fn array(&mut self, at: usize, op: &TensorOp, inputs: &[Value], x: &[&str]) -> String {
        let name = |what: &str| format!("node{at}/{what}");
        let (operator, attributes) = match op {
            TensorOp::Input(input) => return self.input(input),
            TensorOp::Constant(constant) => return self.constant(at, constant),
            // Rows are images of one pixel.
            TensorOp::Array => match self.graph.kind(inputs[0]) {
                Kind::Rows(_) => ("Flatten", vec![int("axis", 1)]),
                _ => return x[0].to_owned(),
            },
            TensorOp::Images { .. } => return x[0].to_owned(),
            TensorOp::Rows { .. } => return self.reshape(&name("rows"), x[0], &[0, 0, 1, 1]),
            TensorOp::Cast(to) => return self.through(&name("cast"), x[0], self.elements[inputs[0]], *to),
            TensorOp::Unary(Unary::Silu) => return self.silu(&name("silu"), x[0]),
            TensorOp::Unary(function) => unary(*function),
            TensorOp::Binary(function) => binary(*function),
            TensorOp::Where => ("Where", vec![]),
            TensorOp::MatMul => ("MatMul", vec![]),
            TensorOp::Reduce { reduction, keep, empty_is_none } => {
                let flags = [("keepdims", *keep), ("noop_with_empty_axes", *empty_is_none)];
                (reduce(*reduction), flags.map(|(flag, is)| int(flag, is.into())).to_vec())
            }
            TensorOp::GlobalPool(Reduction::Max) => ("GlobalMaxPool", vec![]),
            TensorOp::GlobalPool(_) => ("GlobalAveragePool", vec![]),
            TensorOp::ArgMax { axis, keep, last, smallest } => {
                let flags = [("keepdims", *keep), ("select_last_index", *last)];
                let flags = flags.map(|(flag, is)| int(flag, is.into()));
                (if *smallest { "ArgMin" } else { "ArgMax" }, [vec![along(*axis)], flags.to_vec()].concat())
            }
            TensorOp::Softmax { axis, log } => {
                (if *log { "LogSoftmax" } else { "Softmax" }, vec![along(*axis)])
            }
            TensorOp::Normalize { axis, epsilon } => {
                return self.normalized(&name("normalize"), x[0], *axis, *epsilon);
            }
            TensorOp::ChannelAffine => return self.channel_affine(&name("affine"), x),
            TensorOp::Lrn { alpha, beta, bias, size } => {
                let numbers = [float("alpha", *alpha), float("beta", *beta), float("bias", *bias)];
                ("LRN", [numbers.to_vec(), vec![int("size", *size as i64)]].concat())
            }
            TensorOp::Transpose(perm) => ("Transpose", given("perm", perm)),
            TensorOp::Reshape { allow_zero } => ("Reshape", vec![int("allowzero", (*allow_zero).into())]),
            TensorOp::Flatten { axis } => ("Flatten", vec![along(*axis)]),
            TensorOp::Squeeze => ("Squeeze", vec![]),
            TensorOp::Unsqueeze => ("Unsqueeze", vec![]),
            TensorOp::Expand => ("Expand", vec![]),
            TensorOp::Concat { axis } => ("Concat", vec![along(*axis)]),
            TensorOp::Slice => ("Slice", vec![]),
            TensorOp::Part { axis, index, of } => {
                return self.part(&name("split"), inputs, x, *axis, *of).swap_remove(*index);
            }
            TensorOp::Gather { axis } => ("Gather", vec![along(*axis)]),
            TensorOp::Pad(mode) => return self.pad(&name("pad"), inputs, x, *mode),
            TensorOp::Tile => ("Tile", vec![]),
            TensorOp::Shape { start, end } => {
                let end = end.map(|end| int("end", end as i64));
                ("Shape", [int("start", *start as i64)].into_iter().chain(end).collect())
            }
            TensorOp::Range => ("Range", vec![]),
            TensorOp::DepthToSpace { block, channels_first } => {
                let mode = text("mode", if *channels_first { "CRD" } else { "DCR" });
                ("DepthToSpace", vec![int("blocksize", *block as i64), mode])
            }
            TensorOp::Conv(of) => ("Conv", [window(of), vec![groups(of)]].concat()),
            TensorOp::ConvTranspose { window: of, output_padding, output_shape } => {
                let more = [given("output_padding", output_padding), given("output_shape", output_shape)];
                ("ConvTranspose", [window(of), vec![groups(of)], more.concat()].concat())
            }
            TensorOp::Pool { kind, window: of, ceil } => {
                let ceil = vec![int("ceil_mode", (*ceil).into())];
                match kind {
                    // Of integers of 64 bits there are no maxima, but of floats.
                    Pool::Max if self.elements[inputs[0]] == ElementType::I64 => {
                        let x = self.cast(&name("floats"), x[0], ElementType::F64);
                        let y = self.onnx.node(&name("pool"), "MaxPool", &[&x], [window(of), ceil].concat());
                        return self.cast(&name("integers"), &y, ElementType::I64);
                    }
                    Pool::Max => ("MaxPool", [window(of), ceil].concat()),
                    Pool::Average { count_padding } => {
                        let count = vec![int("count_include_pad", (*count_padding).into())];
                        ("AveragePool", [window(of), ceil, count].concat())
                    }
                }
            }
            TensorOp::Resize(of) => {
                let region = x.get(2).copied().unwrap_or_default();
                let x = match of.by {
                    ResizeBy::Scales => vec![x[0], region, x[1]],
                    ResizeBy::Sizes | ResizeBy::NotLarger | ResizeBy::NotSmaller => {
                        vec![x[0], region, "", x[1]]
                    }
                };
                return self.onnx.node(&name("resize"), "Resize", &x, resize(of));
            }
        };
        self.onnx.node(&name(operator), operator, x, attributes)
    }

    fn constant(&mut self, at: usize, Constant { name, .. }: &Constant) -> String {
        let array = self.network.constant(at).expect("the array of a constant").clone().contiguous();
        let bytes = match &array {
            Array::F32(x) => x.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Array::I64(x) => x.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Array::Bool(x) => x.iter().map(|&value| u8::from(value)).collect(),
        };
        self.onnx.constant(name, array.dims(), array.element().data_type(), bytes)
    }

    /// Elements of a type that stand in memory as its wider one.
    fn through(&mut self, name: &str, x: &str, from: ElementType, to: ElementType) -> String {
        use ElementType::{F32, F64, I64};
        let part = |part: &str| format!("{name}/{part}");
        let mut x = x.to_owned();
        // Integers are wrapped, which those that come from floats need not be.
        if from == F32 && to.in_memory() == I64 {
            x = self.cast(&part("whole"), &x, I64);
        }
        match to {
            F64 => self.cast(name, &x, F32),
            _ if to == to.in_memory() => self.cast(name, &x, to),
            _ => {
                let narrow = self.cast(&part("narrow"), &x, to);
                self.cast(name, &narrow, to.in_memory())
            }
        }
    }

    /// `(x - mean) / sqrt(variance + epsilon)` over all axes from one on: those of a matrix if it is not known how many there are.
    fn normalized(&mut self, name: &str, x: &str, axis: isize, epsilon: f32) -> String {
        let part = |part: &str| format!("{name}/{part}");
        let matrix = axis >= 0;
        let (flat, axes) = match matrix {
            true => (self.onnx.node(&part("flat"), "Flatten", &[x], vec![along(axis)]), vec![1]),
            false => (x.to_owned(), (axis as i64..0).collect()),
        };
        let axes = self.onnx.list(&part("axes"), &axes);
        let mean = self.onnx.node(&part("mean"), "ReduceMean", &[&flat, &axes], vec![]);
        let centred = self.onnx.node(&part("centred"), "Sub", &[&flat, &mean], vec![]);
        let two = self.onnx.floats(&part("two"), &[], &[2.0]);
        let squares = self.onnx.node(&part("squares"), "Pow", &[&centred, &two], vec![]);
        let variance = self.onnx.node(&part("variance"), "ReduceMean", &[&squares, &axes], vec![]);
        let epsilon = self.onnx.floats(&part("epsilon"), &[], &[epsilon]);
        let sum = self.onnx.node(&part("sum"), "Add", &[&variance, &epsilon], vec![]);
        let root = self.onnx.node(&part("root"), "Sqrt", &[&sum], vec![]);
        let y = self.onnx.node(&part("scaled"), "Div", &[&centred, &root], vec![]);
        if !matrix {
            return y;
        }
        let shape = self.onnx.node(&part("shape"), "Shape", &[x], vec![]);
        self.onnx.node(name, "Reshape", &[&y, &shape], vec![])
    }

    /// `gain[c] * x + shift[c]`: a BatchNorm of mean 0 and variance 1.
    fn channel_affine(&mut self, name: &str, x: &[&str]) -> String {
        let part = |part: &str| format!("{name}/{part}");
        let [zero, one] =
            [("zero", 0.0), ("one", 1.0)].map(|(of, value)| self.onnx.floats(&part(of), &[], &[value]));
        let mean = self.onnx.node(&part("mean"), "Mul", &[x[1], &zero], vec![]);
        let variance = self.onnx.node(&part("variance"), "Add", &[&mean, &one], vec![]);
        let inputs = [x[0], x[1], x[2], &mean, &variance];
        self.onnx.node(name, "BatchNormalization", &inputs, vec![float("epsilon", 0.0)])
    }

    /// All parts of a value, which are made once.
    fn part(&mut self, name: &str, inputs: &[Value], x: &[&str], axis: isize, of: usize) -> Vec<String> {
        let key = (inputs.to_vec(), axis, of);
        if let Some(parts) = self.parts.get(&key) {
            return parts.clone();
        }
        let count = (x.len() == 1).then(|| int("num_outputs", of as i64));
        let attributes = [along(axis)].into_iter().chain(count).collect();
        let parts = self.onnx.node_of(name, "Split", x, attributes, of);
        self.parts.insert(key, parts.clone());
        parts
    }

    /// More elements around a value, of its type.
    fn pad(&mut self, name: &str, inputs: &[Value], x: &[&str], mode: PadMode) -> String {
        let mode = match mode {
            PadMode::Constant => "constant",
            PadMode::Reflect => "reflect",
            PadMode::Edge => "edge",
            PadMode::Wrap => "wrap",
        };
        let [element, found] = [0, 2].map(|at| self.elements[inputs[at]]);
        let value = match element == found {
            true => x[2].to_owned(),
            false => self.cast(&format!("{name}/value"), x[2], element),
        };
        let x: Vec<&str> = [x[0], x[1], &value].into_iter().chain(x.get(3).copied()).collect();
        self.onnx.node(name, "Pad", &x, vec![text("mode", mode)])
    }
}

fn along(axis: isize) -> AttributeProto {
    int("axis", axis as i64)
}

/// A list, if there is one.
fn given(name: &str, list: &[usize]) -> Attributes {
    if list.is_empty() { vec![] } else { vec![sizes(name, list)] }
}

fn unary(function: Unary) -> (&'static str, Attributes) {
    let plain = match function {
        Unary::Abs => "Abs",
        Unary::Neg => "Neg",
        Unary::Sign => "Sign",
        Unary::Not => "Not",
        Unary::Floor => "Floor",
        Unary::Ceil => "Ceil",
        Unary::Round => "Round",
        Unary::Exp => "Exp",
        Unary::Log => "Log",
        Unary::Sqrt => "Sqrt",
        Unary::Reciprocal => "Reciprocal",
        Unary::Sin => "Sin",
        Unary::Cos => "Cos",
        Unary::Erf => "Erf",
        Unary::Tanh => "Tanh",
        Unary::Sigmoid => "Sigmoid",
        Unary::Relu => "Relu",
        Unary::Silu => unreachable!("two operators"),
        Unary::Softplus => "Softplus",
        Unary::HardSwish => "HardSwish",
        Unary::Gelu => return ("Gelu", vec![text("approximate", "none")]),
        Unary::GeluTanh => return ("Gelu", vec![text("approximate", "tanh")]),
        Unary::HardSigmoid { alpha, beta } => {
            return ("HardSigmoid", vec![float("alpha", alpha), float("beta", beta)]);
        }
        Unary::LeakyRelu { alpha } => return ("LeakyRelu", vec![float("alpha", alpha)]),
        Unary::Elu { alpha } => return ("Elu", vec![float("alpha", alpha)]),
    };
    (plain, vec![])
}

fn binary(function: Binary) -> (&'static str, Attributes) {
    let plain = match function {
        Binary::Add => "Add",
        Binary::Sub => "Sub",
        Binary::Mul => "Mul",
        Binary::Div => "Div",
        Binary::Pow => "Pow",
        Binary::Min => "Min",
        Binary::Max => "Max",
        Binary::Mod => "Mod",
        Binary::Fmod => return ("Mod", vec![int("fmod", 1)]),
        Binary::Equal => "Equal",
        Binary::Less => "Less",
        Binary::LessOrEqual => "LessOrEqual",
        Binary::Greater => "Greater",
        Binary::GreaterOrEqual => "GreaterOrEqual",
        Binary::And => "And",
        Binary::Or => "Or",
        Binary::Xor => "Xor",
        Binary::Prelu => "PRelu",
    };
    (plain, vec![])
}

const fn reduce(reduction: Reduction) -> &'static str {
    match reduction {
        Reduction::Sum => "ReduceSum",
        Reduction::Mean => "ReduceMean",
        Reduction::Max => "ReduceMax",
        Reduction::Min => "ReduceMin",
        Reduction::Prod => "ReduceProd",
        Reduction::L1 => "ReduceL1",
        Reduction::L2 => "ReduceL2",
        Reduction::SumSquare => "ReduceSumSquare",
        Reduction::LogSum => "ReduceLogSum",
        Reduction::LogSumExp => "ReduceLogSumExp",
    }
}

fn groups(of: &Window) -> AttributeProto {
    int("group", of.groups as i64)
}

fn window(of: &Window) -> Attributes {
    let Window { kernel, stride, dilation, padding, .. } = of;
    let lists = [given("kernel_shape", kernel), given("strides", stride), given("dilations", dilation)];
    let padding = match padding {
        Padding::Sizes(pads) => given("pads", pads),
        Padding::SameUpper => vec![text("auto_pad", "SAME_UPPER")],
        Padding::SameLower => vec![text("auto_pad", "SAME_LOWER")],
    };
    [lists.concat(), padding].concat()
}

fn resize(of: &Resize) -> Attributes {
    let Resize { axes, by, mode, coordinates, antialias, exclude_outside } = of;
    let mut attributes = match mode {
        Interpolation::Nearest(nearest) => {
            let nearest = match nearest {
                Nearest::RoundPreferFloor => "round_prefer_floor",
                Nearest::RoundPreferCeil => "round_prefer_ceil",
                Nearest::Floor => "floor",
                Nearest::Ceil => "ceil",
            };
            vec![text("mode", "nearest"), text("nearest_mode", nearest)]
        }
        Interpolation::Linear => vec![text("mode", "linear")],
        Interpolation::Cubic { a } => vec![text("mode", "cubic"), float("cubic_coeff_a", *a)],
    };
    let coordinates = match coordinates {
        Coordinates::HalfPixel => "half_pixel",
        Coordinates::HalfPixelSymmetric => "half_pixel_symmetric",
        Coordinates::PytorchHalfPixel => "pytorch_half_pixel",
        Coordinates::AlignCorners => "align_corners",
        Coordinates::Asymmetric => "asymmetric",
        Coordinates::Crop { outside } => {
            attributes.push(float("extrapolation_value", *outside));
            "tf_crop_and_resize"
        }
    };
    attributes.push(text("coordinate_transformation_mode", coordinates));
    match by {
        ResizeBy::Scales | ResizeBy::Sizes => {}
        ResizeBy::NotLarger => attributes.push(text("keep_aspect_ratio_policy", "not_larger")),
        ResizeBy::NotSmaller => attributes.push(text("keep_aspect_ratio_policy", "not_smaller")),
    }
    if !axes.is_empty() {
        attributes.push(ints("axes", &axes.iter().map(|&axis| axis as i64).collect::<Vec<_>>()));
    }
    let flags = [("antialias", *antialias), ("exclude_outside", *exclude_outside)];
    attributes.extend(flags.map(|(flag, is)| int(flag, is.into())));
    attributes
}
