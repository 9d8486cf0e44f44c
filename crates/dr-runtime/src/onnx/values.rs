//! [`Values`]: the graph while it is made, and what the values of the file are in it.

use super::operators::Refusal;
use crate::arrays::{self, Array};
use crate::file::TensorEntry;
use crate::graph::{
    Activation, Binary, Constant, ElementType, Graph, GraphError, Kind, Op, TensorOp, Unary, Value,
};
use std::collections::{BTreeMap, HashMap};

/// A value of the file.
#[derive(Clone, Debug)]
pub(super) enum Val {
    /// It does not depend on the input.
    Known(Array),
    /// The value of a node of the graph: images for `[n, c, h, w]`, rows for `[n, f]`, or an array.
    Node(Value),
    /// Rows of the graph that stand for `[n, c, 1, 1]`.
    Pixels(Value),
}

impl Val {
    pub fn known(&self) -> Option<&Array> {
        match self {
            Self::Known(array) => Some(array),
            Self::Node(_) | Self::Pixels(_) => None,
        }
    }
}

/// Rows and columns of images, as far as they are known to be equal: what they come from, and the windows since, each by the size
/// that it covers beyond its padding, and its step.
pub(super) type Extent = (Value, Vec<([isize; 2], [usize; 2])>);

/// A graph while it is made.
#[derive(Default)]
pub(super) struct Values {
    pub graph: Graph,
    pub tensors: BTreeMap<String, TensorEntry>,
    /// Of values that are images.
    pub extents: HashMap<Value, Extent>,
    /// Arrays that were made of images and rows: of pixels or not.
    arrays: HashMap<(Value, bool), Value>,
    /// Constants of few elements.
    small: HashMap<(Vec<usize>, String), Value>,
    ranks: HashMap<Value, usize>,
}

impl Values {
    /// Computes an operation on arrays: at once if nothing of it depends on the input, else as a node.
    pub fn emit(&mut self, op: TensorOp, inputs: &[Val]) -> Result<Val, Refusal> {
        let known: Option<Vec<Array>> = inputs.iter().map(|input| input.known().cloned()).collect();
        if let Some(known) = known {
            return arrays::evaluate(&op, known)
                .map(Val::Known)
                .map_err(|error| Refusal::Wrong(error.to_string()));
        }
        if let Some(val) = self.elementwise(&op, inputs)? {
            return Ok(val);
        }
        let inputs = inputs.iter().map(|input| self.array(input)).collect::<Result<Vec<_>, _>>()?;
        self.push(Op::Array(op), &inputs).map(Val::Node)
    }

    /// The sizes of a value, as an array.
    pub fn shape(&mut self, val: &Val) -> Result<Val, Refusal> {
        self.emit(TensorOp::Shape { start: 0, end: None }, std::slice::from_ref(val))
    }

    /// Functions of each element of images and rows leave them what they are.
    fn elementwise(&mut self, op: &TensorOp, inputs: &[Val]) -> Result<Option<Val>, Refusal> {
        let is_one = |val: &Val| val.known().is_some_and(|array| array.len() == 1);
        let layered = |values: &Self, val: &Val| match val {
            Val::Node(value) => matches!(values.graph.kind(*value), Kind::Images(_) | Kind::Rows(_)),
            Val::Pixels(_) => true,
            Val::Known(_) => false,
        };
        if let (TensorOp::ChannelAffine, [x @ Val::Node(value), Val::Known(gain), Val::Known(shift)]) =
            (op, inputs)
            && let Kind::Images(channels) = self.graph.kind(*value)
            && [gain, shift].iter().all(|array| array.dims() == [channels])
        {
            let constants = [self.constant(gain)?, self.constant(shift)?];
            let inputs = [self.images(x, channels)?, constants[0], constants[1]];
            return self.push(Op::Array(op.clone()), &inputs).map(|value| Some(Val::Node(value)));
        }
        let (node, given) = match (op, inputs) {
            (TensorOp::Unary(Unary::Relu), [x]) if layered(self, x) => {
                (Op::Activation(Activation::Relu), vec![x])
            }
            (TensorOp::Unary(_), [x]) if layered(self, x) => (Op::Array(op.clone()), vec![x]),
            (TensorOp::Binary(binary), [a, b])
                if !matches!(binary, Binary::Prelu)
                    && (layered(self, a) && is_one(b) || layered(self, b) && is_one(a)) =>
            {
                (Op::Array(op.clone()), vec![a, b])
            }
            _ => return Ok(None),
        };
        let mut values = vec![];
        let mut pixels = false;
        for val in given {
            values.push(match val {
                Val::Known(array) => {
                    let one = arrays::evaluate(
                        &TensorOp::Reshape { allow_zero: false },
                        vec![array.clone(), Array::integers(&[])],
                    );
                    self.constant(&one.map_err(|error| Refusal::Wrong(error.to_string()))?)?
                }
                Val::Node(value) => *value,
                Val::Pixels(value) => {
                    pixels = true;
                    *value
                }
            });
        }
        let value = self.push(node, &values)?;
        Ok(Some(if pixels { Val::Pixels(value) } else { Val::Node(value) }))
    }

    /// Adds a node, or one for the same in fewer steps.
    pub fn push(&mut self, op: Op, inputs: &[Value]) -> Result<Value, Refusal> {
        if let Some(same) = self.unchanged(&op, inputs).or_else(|| self.turned_back(&op, inputs)) {
            return Ok(same);
        }
        let (op, inputs) = match self.shorter(&op, inputs) {
            Some((op, input)) => (op, vec![input]),
            None => (op, inputs.to_vec()),
        };
        let rank = self.rank_of(&op, &inputs);
        let extent = match &op {
            Op::Activation(_) | Op::Add | Op::Multiply | Op::Concat | Op::Array(_) => {
                inputs.iter().find_map(|input| self.extents.get(input)).cloned()
            }
            _ => None,
        };
        let value = self.graph.push(op, &inputs).map_err(refused)?;
        rank.map(|rank| self.ranks.insert(value, rank));
        if let Kind::Images(_) = self.graph.kind(value) {
            self.extents.insert(value, extent.unwrap_or((value, vec![])));
        }
        Ok(value)
    }

    /// The constant that is one number.
    fn number(&self, value: Value) -> Option<f32> {
        match &self.graph.nodes()[value].op {
            Op::Array(TensorOp::Constant(constant)) if constant.dims.iter().all(|&size| size == 1) => {
                match &self.tensors[&constant.name].data {
                    crate::file::TensorValues::F32(values) => values.first().copied(),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// What an operation with a number leaves as it is.
    fn unchanged(&self, op: &Op, inputs: &[Value]) -> Option<Value> {
        let (&Op::Array(TensorOp::Binary(function)), &[a, b]) = (op, inputs) else { return None };
        let neutral = match function {
            Binary::Mul | Binary::Div => 1.0,
            Binary::Add | Binary::Sub => 0.0,
            _ => return None,
        };
        let commutes = matches!(function, Binary::Mul | Binary::Add);
        let sides = [(a, b), (b, a)];
        let (x, number) = sides
            .into_iter()
            .take(if commutes { 2 } else { 1 })
            .find(|&(_, number)| self.number(number) == Some(neutral))?;
        let Op::Array(TensorOp::Constant(Constant { dims, .. })) = &self.graph.nodes()[number].op else {
            return None;
        };
        // The number adds no axes.
        let fits = dims.is_empty() || self.rank_of_value(x).is_some_and(|rank| rank >= dims.len());
        (self.number(x).is_none() && fits).then_some(x)
    }

    /// What is turned, and turned back: a value from before.
    fn turned_back(&self, op: &Op, inputs: &[Value]) -> Option<Value> {
        let node = |value: Value| &self.graph.nodes()[value];
        let of_array = |value: Value| match (&node(value).op, &node(value).inputs[..]) {
            (Op::Array(TensorOp::Array), &[x]) => Some(x),
            _ => None,
        };
        match (op, inputs) {
            (Op::Array(TensorOp::Transpose(back)), &[turned]) => {
                match (&node(turned).op, &node(turned).inputs[..]) {
                    (Op::Array(TensorOp::Transpose(axes)), &[x]) if axes.len() == back.len() => {
                        let stays = back.iter().enumerate().all(|(at, &axis)| axes.get(axis) == Some(&at));
                        stays.then(|| of_array(x).unwrap_or(x))
                    }
                    _ => None,
                }
            }
            (&Op::Array(TensorOp::Images { channels }), &[array]) => {
                of_array(array).filter(|&x| self.graph.kind(x) == Kind::Images(channels))
            }
            _ => None,
        }
    }

    /// The one operation that several spell: `x * sigmoid(x)` and the like.
    fn shorter(&self, op: &Op, inputs: &[Value]) -> Option<(Op, Value)> {
        let node = |value: Value| &self.graph.nodes()[value];
        let near =
            |value: Value, wanted: f32| self.number(value).is_some_and(|found| (found - wanted).abs() < 1e-6);
        let binary = |value: Value, wanted: Binary| match &node(value).op {
            Op::Array(TensorOp::Binary(found)) if *found == wanted => {
                Some([node(value).inputs[0], node(value).inputs[1]])
            }
            Op::Add if wanted == Binary::Add => Some([node(value).inputs[0], node(value).inputs[1]]),
            Op::Multiply if wanted == Binary::Mul => Some([node(value).inputs[0], node(value).inputs[1]]),
            _ => None,
        };
        // The operand beside a number.
        let beside = |[a, b]: [Value; 2], wanted: f32| match (near(a, wanted), near(b, wanted)) {
            (true, _) => Some(b),
            (_, true) => Some(a),
            _ => None,
        };
        let unary = |value: Value| match &node(value).op {
            Op::Array(TensorOp::Unary(unary)) => Some((*unary, node(value).inputs[0])),
            Op::Activation(Activation::Relu) => Some((Unary::Relu, node(value).inputs[0])),
            _ => None,
        };
        // `min(max(x + 3, 0), 6)`
        let gate = |value: Value| {
            let sum = match node(value).op {
                Op::Activation(Activation::Relu6) => node(value).inputs[0],
                _ => {
                    let lower = beside(binary(value, Binary::Min)?, 6.0)?;
                    match unary(lower) {
                        Some((Unary::Relu, x)) => x,
                        _ => beside(binary(lower, Binary::Max)?, 0.0)?,
                    }
                }
            };
            beside(binary(sum, Binary::Add)?, 3.0)
        };
        let hard_sigmoid =
            |x| (Op::Array(TensorOp::Unary(Unary::HardSigmoid { alpha: 1.0 / 6.0, beta: 0.5 })), x);
        let hard_swish = |x| (Op::Array(TensorOp::Unary(Unary::HardSwish)), x);
        let layered = |value: Value| self.graph.kind(value) != Kind::Array;
        match (op, inputs) {
            // Relu6
            (Op::Array(TensorOp::Binary(Binary::Min)), &[a, b]) => {
                let lower = beside([a, b], 6.0)?;
                let x = match unary(lower) {
                    Some((Unary::Relu, x)) => x,
                    _ => beside(binary(lower, Binary::Max)?, 0.0)?,
                };
                layered(x).then_some((Op::Activation(Activation::Relu6), x))
            }
            (Op::Array(TensorOp::Binary(Binary::Mul)) | Op::Multiply, &[a, b]) => {
                for (x, other) in [(a, b), (b, a)] {
                    match unary(other) {
                        Some((Unary::Sigmoid, of)) if of == x && layered(x) => {
                            return Some((Op::Activation(Activation::Silu), x));
                        }
                        Some((Unary::Sigmoid, of)) if of == x => {
                            return Some((Op::Array(TensorOp::Unary(Unary::Silu)), x));
                        }
                        Some((Unary::HardSigmoid { alpha, beta }, of))
                            if of == x && (alpha - 1.0 / 6.0).abs() < 1e-6 && beta == 0.5 =>
                        {
                            return Some(hard_swish(x));
                        }
                        _ => {}
                    }
                }
                let of = beside([a, b], 1.0 / 6.0)?;
                gate(of).map(hard_sigmoid).or_else(|| {
                    let [a, b] = binary(of, Binary::Mul)?;
                    (gate(b) == Some(a))
                        .then_some(hard_swish(a))
                        .or_else(|| (gate(a) == Some(b)).then_some(hard_swish(b)))
                })
            }
            (Op::Array(TensorOp::Binary(Binary::Div)), &[of, number]) if near(number, 6.0) => {
                gate(of).map(hard_sigmoid).or_else(|| {
                    let [a, b] = binary(of, Binary::Mul)?;
                    (gate(b) == Some(a))
                        .then_some(hard_swish(a))
                        .or_else(|| (gate(a) == Some(b)).then_some(hard_swish(b)))
                })
            }
            _ => None,
        }
    }

    /// A value as an array of the graph.
    pub fn array(&mut self, val: &Val) -> Result<Value, Refusal> {
        let (value, pixels) = match val {
            Val::Known(array) => return self.constant(array),
            Val::Node(value) if self.graph.kind(*value) == Kind::Array => return Ok(*value),
            Val::Node(value) => (*value, false),
            Val::Pixels(value) => (*value, true),
        };
        if let Some(&array) = self.arrays.get(&(value, pixels)) {
            return Ok(array);
        }
        let mut array = self.push(Op::Array(TensorOp::Array), &[value])?;
        if pixels {
            let shape = self.constant(&Array::integers(&[0, 0, 1, 1]))?;
            array = self.push(Op::Array(TensorOp::Reshape { allow_zero: false }), &[array, shape])?;
        }
        self.arrays.insert((value, pixels), array);
        Ok(array)
    }

    /// A value as images of so many channels.
    pub fn images(&mut self, val: &Val, channels: usize) -> Result<Value, Refusal> {
        if let Val::Node(value) = val
            && let Kind::Images(found) = self.graph.kind(*value)
        {
            let wrong = || Refusal::Wrong(format!("{found} channels: expected {channels}"));
            return (found == channels).then_some(*value).ok_or_else(wrong);
        }
        let array = self.array(val)?;
        self.push(Op::Array(TensorOp::Images { channels }), &[array])
    }

    /// A node for a constant.
    pub fn constant(&mut self, array: &Array) -> Result<Value, Refusal> {
        let key = (array.len() <= 16).then(|| (array.dims().to_vec(), format!("{array:?}")));
        if let Some(&value) = key.as_ref().and_then(|key| self.small.get(key)) {
            return Ok(value);
        }
        let name = format!("constants.{}", self.tensors.len());
        let (entry, element) = array.stored();
        let dims = array.dims().to_vec();
        self.tensors.insert(name.clone(), entry);
        let value = self.push(Op::Array(TensorOp::Constant(Constant { name, element, dims })), &[])?;
        key.map(|key| self.small.insert(key, value));
        Ok(value)
    }

    /// How many axes a value has, if that is known.
    pub fn rank(&self, val: &Val) -> Option<usize> {
        match val {
            Val::Known(array) => Some(array.dims().len()),
            Val::Pixels(_) => Some(4),
            Val::Node(value) => self.rank_of_value(*value),
        }
    }

    fn rank_of_value(&self, value: Value) -> Option<usize> {
        match self.graph.kind(value) {
            Kind::Images(_) => Some(4),
            Kind::Rows(_) => Some(2),
            Kind::Tokens => None,
            Kind::Array => self.ranks.get(&value).copied(),
        }
    }

    fn rank_of(&self, op: &Op, inputs: &[Value]) -> Option<usize> {
        let of = |at: usize| self.rank_of_value(*inputs.get(at)?);
        match op {
            Op::Array(op) => match op {
                TensorOp::Input(input) => Some(input.dims.len()),
                TensorOp::Constant(constant) => Some(constant.dims.len()),
                TensorOp::Binary(_) => Some(of(0)?.max(of(1)?)),
                TensorOp::Where => Some(of(0)?.max(of(1)?).max(of(2)?)),
                TensorOp::Flatten { .. } => Some(2),
                TensorOp::Shape { .. } | TensorOp::Range => Some(1),
                TensorOp::Reshape { .. } => match &self.graph.nodes()[*inputs.get(1)?].op {
                    Op::Array(TensorOp::Constant(shape)) => shape.dims.first().copied(),
                    _ => None,
                },
                TensorOp::Reduce { keep: true, .. }
                | TensorOp::Array
                | TensorOp::Cast(_)
                | TensorOp::Unary(_)
                | TensorOp::GlobalPool(_)
                | TensorOp::Softmax { .. }
                | TensorOp::Normalize { .. }
                | TensorOp::ChannelAffine
                | TensorOp::Lrn { .. }
                | TensorOp::Transpose(_)
                | TensorOp::Concat { .. }
                | TensorOp::Slice
                | TensorOp::Part { .. }
                | TensorOp::Pad(_)
                | TensorOp::Tile
                | TensorOp::DepthToSpace { .. }
                | TensorOp::Conv(_)
                | TensorOp::ConvTranspose { .. }
                | TensorOp::Pool { .. }
                | TensorOp::Resize(_) => of(0),
                _ => None,
            },
            Op::Layer(_) => of(0),
            _ => None,
        }
    }
}

/// What a graph says to a node that it does not take.
pub(super) fn refused(error: GraphError) -> Refusal {
    Refusal::Wrong(error.to_string())
}

impl Values {
    /// The type of elements that an input of the file has in memory.
    pub fn is_float(element: ElementType) -> bool {
        matches!(element, ElementType::F16 | ElementType::Bf16 | ElementType::F32 | ElementType::F64)
    }
}
