//! What follows from a graph: sizes, who reads what, what a layer's place in the network means.

use super::node::window_positions;
use super::{
    Activation, Embedding, Graph, GraphError, LayerKind, NamedResult, Node, Op, Parts, TensorOp, Unary, Value,
};

impl Graph {
    /// Rows and columns of each node's value for images of this size; 1 of what is no image.
    #[must_use]
    pub fn sizes(&self, [rows, columns]: [usize; 2]) -> Vec<[usize; 2]> {
        self.dims([1, rows, columns, 1], false)
            .into_iter()
            .map(|[_, rows, columns, _]| [rows, columns])
            .collect()
    }

    /// Sizes of each node's value, `[batch, rows, columns, channels]`, for an input of `[batch, rows, columns, channels]` images or
    /// `[batch, positions, 1, 1]` tokens; rows of features are images of one pixel. If only the `end` of texts is wanted, what
    /// comes after the last attention is there for the last position only.
    pub(crate) fn dims(&self, input: [usize; 4], end: bool) -> Vec<[usize; 4]> {
        let is_attention = |node: &Node| matches!(node.op, Op::Attention(_));
        let last = self.nodes().iter().rposition(is_attention).filter(|_| end);
        let mut dims: Vec<[usize; 4]> = Vec::with_capacity(self.nodes().len());
        for (at, Node { op, inputs }) in self.nodes().iter().enumerate() {
            let from: Vec<[usize; 4]> = inputs.iter().map(|&value| dims[value]).collect();
            dims.push(match op {
                // Of texts of which only the end is left, the end.
                Op::Attention(_) if last == Some(at) => [input[0], 1, 1, from[0][3]],
                _ => self.dims_of(op, &from, input),
            });
        }
        dims
    }

    /// Sizes of what an operation makes of values of these sizes, or of the input; those of arrays are as they come out of the operation.
    pub(crate) fn dims_of(&self, op: &Op, from: &[[usize; 4]], input: [usize; 4]) -> [usize; 4] {
        let first = from.first().copied().unwrap_or(input);
        let [batch, rows, columns, channels] = first;
        let images = |[rows, columns]: [usize; 2], channels| [batch, rows, columns, channels];
        let pixels = |[_, rows, columns, _]: &[usize; 4]| rows.saturating_mul(*columns);
        match *op {
            Op::Images { .. } => input,
            Op::Tokens => [batch.saturating_mul(rows), 1, 1, 1],
            Op::Layer(layer) => {
                let kind = &self.layers()[layer].kind;
                images(kind.output_size([rows, columns]), kind.outputs())
            }
            Op::Embedding(table) => [batch, 1, 1, self.embedding_size(&self.embeddings()[table])[1]],
            Op::MaxPool { kernel, stride, padding } => {
                images(window_positions([rows, columns], kernel, stride, padding), channels)
            }
            Op::Mean => [batch, 1, 1, channels],
            Op::Enlarge => [batch, from[1][1], from[1][2], channels],
            // Of texts of which only the end is left, the end.
            Op::Add | Op::Multiply if from[1][0] < batch => from[1],
            Op::Concat => images([rows, columns], from.iter().map(|dims| dims[3]).sum()),
            Op::Rows => [batch.saturating_mul(from.iter().map(pixels).sum()), 1, 1, channels],
            Op::Flatten => [batch, 1, 1, pixels(&first).saturating_mul(channels)],
            Op::Add
            | Op::Multiply
            | Op::BatchNorm(_)
            | Op::RmsNorm(_)
            | Op::Activation(_)
            | Op::Attention(_) => first,
            Op::Array(_) => first,
        }
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

    /// The part of the graph that these results, each under its name, depend on, with all inputs; and the names of the tensors that it has.
    ///
    /// # Errors
    /// [`GraphError`] for values that are not there.
    pub fn of_results(&self, results: &[NamedResult]) -> Result<(Self, Vec<String>), GraphError> {
        let mut wanted = vec![false; self.nodes().len()];
        for &NamedResult { value, .. } in results {
            let wrong = GraphError::Value { node: wanted.len(), value };
            *wanted.get_mut(value).ok_or(wrong)? = true;
        }
        for (at, Node { op, inputs }) in self.nodes().iter().enumerate().rev() {
            wanted[at] |= matches!(op, Op::Images { .. } | Op::Tokens | Op::Array(TensorOp::Input(_)));
            if wanted[at] {
                inputs.iter().for_each(|&input| wanted[input] = true);
            }
        }
        let mut part =
            Self { parts: Parts { nodes: vec![], layers: vec![], ..self.parts.clone() }, ..Self::default() };
        part.parts.results.clear();
        let (mut numbers, mut layers) = (vec![usize::MAX; wanted.len()], vec![None; self.layers().len()]);
        let mut tensors = vec![];
        for (at, Node { op, inputs }) in self.nodes().iter().enumerate().filter(|(at, _)| wanted[*at]) {
            let op = match op {
                Op::Layer(layer) => {
                    let number = match layers[*layer] {
                        Some(number) => number,
                        None => {
                            let of = self.layers()[*layer].clone();
                            tensors.extend(["weight", "bias"].map(|part| format!("{}.{part}", of.name)));
                            part.add_layer(of)?
                        }
                    };
                    layers[*layer] = Some(number);
                    Op::Layer(number)
                }
                Op::Array(TensorOp::Constant(constant)) => {
                    tensors.push(constant.name.clone());
                    op.clone()
                }
                op => op.clone(),
            };
            let inputs: Vec<Value> = inputs.iter().map(|&input| numbers[input]).collect();
            numbers[at] = part.push(op, &inputs)?;
        }
        for result in results {
            part.add_result(NamedResult { value: numbers[result.value], ..result.clone() })?;
        }
        Ok((part, tensors))
    }

    /// Whether gradients go from floats back to all layers that have a part in them: none has one in sizes, places and conditions, nor in convolutions
    /// over more than three axes.
    ///
    /// # Errors
    /// [`GraphError::Gradient`] for an operation that they would end at.
    pub fn check_gradients(&self) -> Result<(), GraphError> {
        let mut made: Vec<bool> = Vec::with_capacity(self.nodes().len());
        for (node, Node { op, inputs }) in self.nodes().iter().enumerate() {
            let from = inputs.iter().any(|&input| made[input]);
            made.push(match op {
                Op::Layer(_) | Op::RmsNorm(_) | Op::Embedding(_) => true,
                Op::Array(op) if from && op.gives_floats() => {
                    let is_large = |value: Value| match &self.nodes()[value].op {
                        Op::Array(TensorOp::Constant(weight)) => weight.dims.len() > 5,
                        _ => false,
                    };
                    let ends = |(at, &input): (usize, &Value)| made[input] && op.constants().contains(&at);
                    let beyond = matches!(op, TensorOp::Conv(_) | TensorOp::ConvTranspose { .. })
                        && inputs.iter().any(|&input| is_large(input));
                    if beyond || inputs.iter().enumerate().any(ends) {
                        return Err(GraphError::Gradient { node, op: format!("{op:?}") });
                    }
                    true
                }
                Op::Array(_) => false,
                _ => from,
            });
        }
        Ok(())
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
                Op::Array(TensorOp::Array | TensorOp::Images { .. } | TensorOp::Rows { .. }) => {
                    known[inputs[0]]
                }
                Op::Array(TensorOp::Unary(Unary::Relu | Unary::Sigmoid | Unary::HardSigmoid { .. })) => true,
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
