//! [`Writer`]: images and layers, node by node.

use super::graph::{GraphBuilder, bits_of, int, ints, sizes, text};
use super::{INPUT, OUTPUT, Opset};
use crate::artifact::{Described, Description};
use crate::config::task::CLASSIFY;
use dr_kernels::integer::CodeQuantizer;
use dr_runtime::graph::{
    Activation, ElementType, Graph, Kind, LayerKind, NamedResult, Node, Op, TensorInput, Value,
};
use dr_runtime::onnx::Dim;
use dr_runtime::onnx::proto::GraphProto;
use dr_runtime::{LayerParts, Network};
use std::collections::HashMap;

/// Writes a graph node by node. Images are `[batch, channels, rows, columns]`, rows of features are images of one pixel.
pub(super) struct Writer<'a> {
    pub onnx: GraphBuilder,
    pub network: &'a Network,
    pub graph: &'a Graph,
    description: &'a Description,
    opset: Opset,
    /// Rows and columns of each node's value.
    sizes: Vec<[usize; 2]>,
    /// The name of each node's value.
    pub values: Vec<String>,
    /// What its elements are.
    pub elements: Vec<ElementType>,
    /// Weights that are written, each for images or for arrays.
    weights: HashMap<(usize, bool), Weight>,
    /// The parts of values that are split.
    pub parts: HashMap<(Vec<Value>, isize, usize), Vec<String>>,
}

/// A layer's weight and bias.
#[derive(Clone)]
struct Weight {
    weight: String,
    bias: String,
    /// Whether the bias is the third input of a convolution.
    inside: bool,
}

impl<'a> Writer<'a> {
    pub fn new(network: &'a Network, description: &'a Description, opset: Opset) -> Self {
        let graph = network.graph();
        let sizes = graph.sizes([description.input.height, description.input.width]);
        Self {
            onnx: GraphBuilder::default(),
            network,
            graph,
            description,
            opset,
            sizes,
            values: vec![],
            elements: elements(graph),
            weights: HashMap::new(),
            parts: HashMap::new(),
        }
    }

    pub fn write(mut self, name: &str) -> GraphProto {
        let results = match self.graph.named_results() {
            [] => {
                let of = |value| NamedResult { name: OUTPUT.to_owned(), value, element: None, dims: None };
                self.graph.results().into_iter().map(of).collect()
            }
            named => named.to_vec(),
        };
        for result in &results {
            let (element, dims) = (self.result_element(result), self.result_dims(result));
            self.onnx.output(&result.name, element.data_type(), dims.as_deref());
        }
        for (at, node) in self.graph.nodes().iter().enumerate() {
            let value = self.node(at, node);
            self.values.push(value);
        }
        for result in &results {
            self.result(result);
        }
        self.onnx.finish(name)
    }

    /// Gives a value out under its name.
    fn result(&mut self, of: &NamedResult) {
        let (mut x, element) = (self.values[of.value].clone(), self.result_element(of));
        // An input can be a result as it is.
        if x == of.name {
            return;
        }
        if element != self.elements[of.value] {
            x = self.cast(&format!("{}/narrow", of.name), &x, element);
        }
        let rows = matches!(self.graph.kind(of.value), Kind::Rows(_));
        self.onnx.last(&of.name, if rows { "Flatten" } else { "Identity" }, &x);
    }

    /// The type of a result's elements: what the file says that the network comes from, if that is what they are.
    fn result_element(&self, of: &NamedResult) -> ElementType {
        let found = self.elements[of.value];
        of.element.filter(|element| element.in_memory() == found).unwrap_or(found)
    }

    /// The sizes of a result, as far as they are known.
    fn result_dims(&self, NamedResult { name, value, dims, .. }: &NamedResult) -> Option<Vec<Dim>> {
        let dims = match (dims, self.graph.kind(*value)) {
            (Some(dims), _) => dims.clone(),
            (None, Kind::Images(channels)) => vec![None, Some(channels), None, None],
            (None, Kind::Rows(features)) => vec![None, features],
            (None, Kind::Tokens | Kind::Array) => return None,
        };
        let each = self.description.check_task(CLASSIFY).is_ok();
        Some(dims_of(name, if each { BATCH } else { "positions" }, &dims))
    }

    /// An input; its elements are then as they are in memory.
    pub fn input(&mut self, input: &TensorInput) -> String {
        let TensorInput { name, element, dims } = input;
        let dims = dims_of(name, BATCH, dims);
        let x = self.onnx.input(name, element.data_type(), &dims);
        match element.in_memory() {
            same if same == *element => x,
            other => self.cast(&format!("{name}/wide"), &x, other),
        }
    }

    /// The images that the network takes.
    fn images(&mut self, channels: usize) -> String {
        if let Some(images) = self.graph.named_images() {
            return self.input(images);
        }
        // Networks of ours are trained for images of one size.
        let of_file = !self.graph.named_results().is_empty();
        let [rows, columns] = self.sizes[0].map(|size| (!of_file).then_some(size));
        let dims = vec![None, Some(channels), rows, columns];
        self.input(&TensorInput { name: INPUT.to_owned(), element: ElementType::F32, dims })
    }

    /// The value of a node.
    fn node(&mut self, at: usize, Node { op, inputs }: &Node) -> String {
        let x: Vec<String> = inputs.iter().map(|&input| self.values[input].clone()).collect();
        let x: Vec<&str> = x.iter().map(String::as_str).collect();
        let name = |what: &str| format!("node{at}/{what}");
        match *op {
            Op::Images { channels } => self.images(channels),
            Op::Layer(layer) => self.layer(at, layer, x[0]),
            // Part of the layer before it.
            Op::BatchNorm(_) => x[0].to_owned(),
            Op::Activation(activation) => self.activation(&name("activation"), x[0], activation),
            Op::Add => self.onnx.node(&name("add"), "Add", &x, vec![]),
            Op::Multiply => self.onnx.node(&name("multiply"), "Mul", &x, vec![]),
            Op::MaxPool { kernel, stride, padding: [rows, columns] } => {
                let attributes = vec![
                    sizes("kernel_shape", &kernel),
                    sizes("strides", &stride),
                    sizes("pads", &[rows, columns, rows, columns]),
                ];
                self.onnx.node(&name("pool"), "MaxPool", &x, attributes)
            }
            Op::Mean => self.onnx.node(&name("mean"), "GlobalAveragePool", &x, vec![]),
            Op::Enlarge => self.enlarge(&name("enlarge"), x[0], self.sizes[inputs[0]], self.sizes[at]),
            Op::Concat => self.onnx.node(&name("concat"), "Concat", &x, vec![int("axis", 1)]),
            Op::Rows => self.rows(&name("rows"), &x, self.graph.kind(at)),
            Op::Flatten => self.reshape(&name("flat"), x[0], &[0, -1, 1, 1]),
            Op::Array(ref of) => self.array(at, of, inputs, &x),
            Op::Tokens | Op::RmsNorm(_) | Op::Embedding(_) | Op::Attention(_) => {
                unreachable!("{op:?}: was looked for before")
            }
        }
    }

    pub fn reshape(&mut self, name: &str, x: &str, shape: &[i64]) -> String {
        let shape = self.onnx.list(&format!("{name}/shape"), shape);
        self.onnx.node(name, "Reshape", &[x, &shape], vec![])
    }

    pub fn cast(&mut self, name: &str, x: &str, to: ElementType) -> String {
        self.onnx.node(name, "Cast", &[x], vec![int("to", to.data_type() as i64)])
    }

    fn activation(&mut self, name: &str, x: &str, activation: Activation) -> String {
        match activation {
            Activation::Relu => self.onnx.node(name, "Relu", &[x], vec![]),
            Activation::Relu6 => {
                let y = self.onnx.node(&format!("{name}/relu"), "Relu", &[x], vec![]);
                self.at_most(name, &y, 6.0)
            }
            Activation::Silu => self.silu(name, x),
        }
    }

    pub fn silu(&mut self, name: &str, x: &str) -> String {
        let gate = self.onnx.node(&format!("{name}/sigmoid"), "Sigmoid", &[x], vec![]);
        self.onnx.node(name, "Mul", &[x, &gate], vec![])
    }

    /// All pixels repeated, of which the first ones are taken.
    fn enlarge(&mut self, name: &str, x: &str, from: [usize; 2], to: [usize; 2]) -> String {
        let part = |part: &str| format!("{name}/{part}");
        let [rows, columns] = [0, 1].map(|axis| to[axis].div_ceil(from[axis].max(1)));
        let mut x = x.to_owned();
        if [rows, columns] != [1, 1] {
            let scales = self.onnx.floats(&part("scales"), &[4], &[1.0, 1.0, rows as f32, columns as f32]);
            let attributes = vec![
                text("mode", "nearest"),
                text("coordinate_transformation_mode", "asymmetric"),
                text("nearest_mode", "floor"),
            ];
            x = self.onnx.node(&part("repeated"), "Resize", &[&x, "", &scales], attributes);
        }
        if [from[0] * rows, from[1] * columns] != to {
            let starts = self.onnx.list(&part("starts"), &[0, 0]);
            let ends = self.onnx.list(&part("ends"), &to.map(|size| size as i64));
            let axes = self.onnx.list(&part("axes"), &[2, 3]);
            x = self.onnx.node(&part("first"), "Slice", &[&x, &starts, &ends, &axes], vec![]);
        }
        x
    }

    /// The pixels of one or several images in turn.
    fn rows(&mut self, name: &str, images: &[&str], kind: Kind) -> String {
        let Kind::Rows(Some(channels)) = kind else { unreachable!("rows of pixels have their channels") };
        let channels = channels as i64;
        let mut parts = vec![];
        for (i, image) in images.iter().enumerate() {
            let last = vec![ints("perm", &[0, 2, 3, 1])];
            let x = self.onnx.node(&format!("{name}/{i}/last"), "Transpose", &[image], last);
            parts.push(self.reshape(&format!("{name}/{i}"), &x, &[0, -1, channels]));
        }
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let all = vec![int("axis", 1)];
        let x = self.onnx.node(&format!("{name}/all"), "Concat", &parts, all);
        self.reshape(name, &x, &[-1, channels, 1, 1])
    }

    /// A layer of `x`, which is the node's input: a convolution of images and rows, a matrix product of arrays.
    fn layer(&mut self, node: usize, layer: usize, x: &str) -> String {
        let of = &self.graph.layers()[layer];
        let on_array = self.graph.kind(self.graph.nodes()[node].inputs[0]) == Kind::Array;
        let parts = self.network.layer(layer).expect("a layer on slices, which is used");
        let mut x = x.to_owned();
        if let LayerParts::Integer { input, .. } = parts {
            x = self.fake_quantized(&of.name, input, &x);
        }
        // A layer that is used several times has its weight once.
        let Weight { weight, bias, inside } = match self.weights.get(&(layer, on_array)) {
            Some(weight) => weight.clone(),
            None => {
                let weight = self.weight(&of.name, of.kind, parts, on_array);
                self.weights.insert((layer, on_array), weight.clone());
                weight
            }
        };
        let part = |part: &str| format!("{}/{part}", of.name);
        if on_array {
            let y = self.onnx.node(&part("product"), "MatMul", &[&x, &weight], vec![]);
            return self.onnx.node(&part("biased"), "Add", &[&y, &bias], vec![]);
        }
        let (kernel, stride, [rows, columns]) = match of.kind {
            LayerKind::Conv2d { kernel, stride, padding, .. } => (kernel, stride, padding),
            LayerKind::Linear { .. } => ([1; 2], [1; 2], [0; 2]),
        };
        let attributes = vec![
            sizes("kernel_shape", &kernel),
            sizes("strides", &stride),
            ints("dilations", &[1; 2]),
            sizes("pads", &[rows, columns, rows, columns]),
            int("group", of.kind.groups() as i64),
        ];
        match inside {
            true => self.onnx.node(&part("conv"), "Conv", &[&x, &weight, &bias], attributes),
            false => {
                let y = self.onnx.node(&part("conv"), "Conv", &[&x, &weight], attributes);
                self.onnx.node(&part("biased"), "Add", &[&y, &bias], vec![])
            }
        }
    }

    /// The weight of a layer, `[outputs, inputs / groups, rows, columns]`, or `[inputs, outputs]` for arrays; and its bias.
    fn weight(&mut self, name: &str, kind: LayerKind, parts: LayerParts, on_array: bool) -> Weight {
        let part = |part: &str| format!("{name}/{part}");
        let outputs = kind.outputs();
        let mut dims = kind.weight_shape();
        match on_array {
            true => dims.reverse(),
            false => dims.resize(4, 1),
        }
        // What is said of each output, to be broadcast to a weight.
        let each = if on_array { vec![outputs] } else { vec![outputs, 1, 1, 1] };
        match parts {
            LayerParts::Float { weight, shift } => {
                let weight = if on_array { transposed(&weight, outputs) } else { weight };
                let weight = self.onnx.floats(&part("weight"), &dims, &weight);
                Weight { weight, bias: self.onnx.floats(&part("bias"), &[outputs], &shift), inside: true }
            }
            LayerParts::Integer { bits, codes, scale, offset, shift, input } => {
                let (data_type, _) = self.opset.types(bits);
                let (_, input_type) = self.opset.types(input.bits);
                let inside = [data_type, input_type].iter().all(|of| bits_of(*of) == 8);
                let codes = if on_array { transposed(&codes, outputs) } else { codes };
                let codes = self.onnx.codes(&part("weight_codes"), &dims, data_type, &codes);
                let scale = self.onnx.floats(&part("weight_scale"), &[outputs], &scale);
                let axis = vec![int("axis", on_array.into())];
                let mut weight = self.onnx.node(&part("weight"), "DequantizeLinear", &[&codes, &scale], axis);
                if let Some(offset) = offset {
                    let offset = self.onnx.floats(&part("weight_offset"), &each, &offset);
                    weight = self.onnx.node(&part("weight_moved"), "Add", &[&weight, &offset], vec![]);
                }
                let dims = if inside || on_array { vec![outputs] } else { vec![outputs, 1, 1] };
                Weight { weight, bias: self.onnx.floats(&part("bias"), &dims, &shift), inside }
            }
        }
    }

    /// The input of a layer, quantized and dequantized.
    fn fake_quantized(&mut self, name: &str, input: CodeQuantizer, x: &str) -> String {
        let part = |part: &str| format!("{name}/{part}");
        let (_, data_type) = self.opset.types(input.bits);
        let zero_point = (input.zero_point != 0.0)
            .then(|| self.onnx.floats(&part("zero_point"), &[], &[input.zero_point]));
        let mut x = x.to_string();
        if let Some(zero) = &zero_point {
            x = self.onnx.node(&part("from_zero_point"), "Sub", &[&x, zero], vec![]);
        }
        if bits_of(data_type) != input.bits.bits() {
            // Negative values become zero anyway.
            let largest = input.scale * input.bits.unsigned_max() as f32;
            x = self.at_most(&part("range"), &x, largest);
        }
        let scale = self.onnx.floats(&part("scale"), &[], &[input.scale]);
        let zero = self.onnx.codes(&part("zero"), &[], data_type, &[0]);
        let codes = self.onnx.node(&part("codes"), "QuantizeLinear", &[&x, &scale, &zero], vec![]);
        x = self.onnx.node(&part("values"), "DequantizeLinear", &[&codes, &scale, &zero], vec![]);
        match zero_point {
            Some(zero) => self.onnx.node(&part("to_zero_point"), "Add", &[&x, &zero], vec![]),
            None => x,
        }
    }

    /// Values up to `largest`.
    fn at_most(&mut self, name: &str, x: &str, largest: f32) -> String {
        let high = self.onnx.floats(&format!("{name}/largest"), &[], &[largest]);
        self.onnx.node(name, "Min", &[x, &high], vec![])
    }
}

/// The first size of images.
const BATCH: &str = "batch";

/// Sizes, of which those that are open have a name: of what a network of ours takes or gives, `first` is that of the first one.
fn dims_of(name: &str, first: &str, dims: &[Option<usize>]) -> Vec<Dim> {
    let open = |axis: usize| match axis {
        0 if [INPUT, OUTPUT].contains(&name) => first.to_owned(),
        _ => format!("{name}.{axis}"),
    };
    let dim = |(axis, size): (usize, &Option<usize>)| size.map_or_else(|| Dim::Named(open(axis)), Dim::Known);
    dims.iter().enumerate().map(dim).collect()
}

/// What the elements of each node's value are.
fn elements(graph: &Graph) -> Vec<ElementType> {
    let mut elements: Vec<ElementType> = Vec::with_capacity(graph.nodes().len());
    for Node { op, inputs } in graph.nodes() {
        let from: Vec<ElementType> = inputs.iter().map(|&input| elements[input]).collect();
        elements.push(match op {
            Op::Array(op) => op.element(&from),
            _ => ElementType::F32,
        });
    }
    elements
}

/// `[inputs, outputs]` of a matrix of rows for so many outputs.
fn transposed<T: Copy>(rows: &[T], outputs: usize) -> Vec<T> {
    let inputs = rows.len() / outputs.max(1);
    (0..inputs).flat_map(|input| (0..outputs).map(move |output| rows[output * inputs + input])).collect()
}
