//! Any bytes are a network in ONNX or an error, and so is every array in it; a network is a graph, or it is refused; and a graph runs on
//! small arrays, or says why not.
//!
//! Bytes that are a file are changed as one: its operators, attributes, constants, sizes and the values that nodes read.
#![no_main]

use dr_runtime::arrays::Array;
use dr_runtime::graph::{ElementType, Graph, Op};
use dr_runtime::onnx::proto::{AttributeProto, DimensionProto, GraphProto, ModelProto, NodeProto, TensorProto};
use dr_runtime::onnx::{Attribute, Imported, Layout, Model, lower};
use dr_runtime::{Arithmetic, Artifact, Network};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use prost::Message;

fuzz_target!(|bytes: &[u8]| {
    let Ok(model) = Model::from_bytes(bytes.to_vec(), None) else { return };
    for initializer in model.initializers.values() {
        let _ = initializer.to_array();
    }
    for attribute in model.nodes.iter().flat_map(|node| node.attributes.values()) {
        if let Attribute::Tensor(tensor) = attribute {
            let _ = tensor.to_array();
        }
    }
    for &layout in Layout::ALL {
        if let Ok(imported) = lower(&model, layout) {
            run(imported);
        }
    }
});

/// What a file is, stored and computed.
fn run(imported: Imported) {
    let artifact = imported.into_artifact("fuzz", [OPEN; 2]);
    if let Ok(bytes) = artifact.to_bytes() {
        Artifact::from_bytes(&bytes).expect("what was written can be read");
    }
    let Ok(network) = Network::load_with(&artifact, None, Arithmetic::Integer) else { return };
    // The second pass finds the memory of the first.
    for size in [OPEN, OPEN + 1] {
        if let Some(inputs) = inputs(network.graph(), size) {
            let _ = network.forward_arrays(&inputs);
        }
    }
}

/// What sizes are that a network leaves open.
const OPEN: usize = 4;

/// The most elements of an input.
const MOST: usize = 1 << 12;

/// Small arrays that a network takes, if there are such.
fn inputs(graph: &Graph, size: usize) -> Option<Vec<Array>> {
    let array = |element: ElementType, dims: &[usize]| {
        let len = dims.iter().try_fold(1usize, |len, &size| len.checked_mul(size));
        let len = len.filter(|&len| len <= MOST)?;
        let values = (0..len).map(|at| (at % 7) as f32 - 2.0).collect();
        Array::from_f32(values, dims).ok()?.cast(element).ok()
    };
    match graph.input() {
        Some(&Op::Images { channels }) => Some(vec![array(ElementType::F32, &[1, channels, size, size])?]),
        _ => {
            let sizes = graph.array_inputs().map(|(_, input)| {
                let dims: Vec<usize> = input.dims.iter().map(|known| known.unwrap_or(size)).collect();
                array(input.element, &dims)
            });
            sizes.collect()
        }
    }
}

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let mut draws = Draws(u64::from(seed) | 1 << 40);
    if draws.below(8) > 0
        && let Ok(mut model) = ModelProto::decode(&data[..size])
    {
        for _ in 0..=draws.below(3) {
            change(&mut model, &mut draws);
        }
        let bytes = model.encode_to_vec();
        if bytes.len() <= max_size {
            data[..bytes.len()].copy_from_slice(&bytes);
            return bytes.len();
        }
    }
    fuzzer_mutate(data, size, max_size)
});

/// Random numbers (xorshift64*).
struct Draws(u64);

impl Draws {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound.max(1)
    }

    fn one_of<T: Clone>(&mut self, of: &[T]) -> Option<T> {
        of.get(self.below(of.len())).cloned()
    }

    fn place<'a, T>(&mut self, of: &'a mut [T]) -> Option<&'a mut T> {
        let at = self.below(of.len());
        of.get_mut(at)
    }

    /// A size, an axis, or a number at the end of a range.
    fn number(&mut self) -> i64 {
        match self.below(4) {
            0 => self.one_of(&ENDS).unwrap_or_default(),
            _ => self.below(9) as i64 - 3,
        }
    }

    fn numbers(&mut self, of: &mut Vec<i64>) {
        let new = self.number();
        match self.below(4) {
            0 => of.push(new),
            1 => drop(of.pop()),
            _ => self.place(of).into_iter().for_each(|number| *number = new),
        }
    }
}

const ENDS: [i64; 12] =
    [i64::MIN, i64::MIN + 1, i64::MAX, i32::MIN as i64, i32::MAX as i64, 1 << 32, 1 << 22, 65_536, 1000, 64, 17, -9];

const FLOATS: [f32; 8] = [0.0, -0.0, 1.0, -1.5, 1e-30, 1e30, f32::INFINITY, f32::NAN];

/// Changes one thing.
fn change(model: &mut ModelProto, draws: &mut Draws) {
    if draws.below(24) == 0 {
        let version = 7 + draws.below(18) as i64;
        return model.opset_import.iter_mut().for_each(|opset| opset.version = version);
    }
    let Some(graph) = &mut model.graph else { return };
    match draws.below(12) {
        0..4 => {
            let at = draws.below(graph.node.len());
            if let Some(node) = graph.node.get_mut(at) {
                attributes(node, draws);
            }
        }
        4 => {
            let operators: Vec<&str> = OPERATORS.split_whitespace().collect();
            let operator = draws.one_of(&operators).unwrap_or_default().to_owned();
            draws.place(&mut graph.node).into_iter().for_each(|node| node.op_type.clone_from(&operator));
        }
        5 | 6 => reads(graph, draws),
        7 => match draws.below(2) {
            0 => {
                let at = draws.below(graph.node.len());
                if at < graph.node.len() {
                    graph.node.remove(at);
                }
            }
            _ => {
                if let Some(mut node) = draws.one_of(&graph.node) {
                    let name = format!("new{}", graph.node.len());
                    node.name.clone_from(&name);
                    node.output = vec![name];
                    graph.node.push(node);
                }
            }
        },
        8 | 9 => {
            draws.place(&mut graph.initializer).map(|of| *of = tensor(of.clone(), draws));
        }
        10 => {
            let number = draws.number();
            let input = draws.place(&mut graph.input).and_then(|input| input.r#type.as_mut());
            let shape = input.and_then(|of| of.tensor_type.as_mut()).and_then(|of| of.shape.as_mut());
            if let Some(shape) = shape {
                match draws.below(4) {
                    0 => drop(shape.dim.pop()),
                    1 => shape.dim.extend(shape.dim.first().cloned()),
                    _ => draws.place(&mut shape.dim).into_iter().for_each(|dim| {
                        *dim = DimensionProto { dim_value: Some(number), dim_param: None };
                    }),
                }
            }
        }
        _ => {
            let value = draws.one_of(&values(graph)).unwrap_or_default();
            draws.place(&mut graph.output).into_iter().for_each(|output| output.name.clone_from(&value));
        }
    }
}

/// The names of all values.
fn values(graph: &GraphProto) -> Vec<String> {
    let made = graph.node.iter().flat_map(|node| node.output.clone());
    let constants = graph.initializer.iter().map(|tensor| tensor.name.clone());
    graph.input.iter().map(|input| input.name.clone()).chain(constants).chain(made).collect()
}

/// Lets a node read other values, or more or fewer.
fn reads(graph: &mut GraphProto, draws: &mut Draws) {
    let value = draws.one_of(&values(graph)).unwrap_or_default();
    let action = draws.below(4);
    if let Some(node) = draws.place(&mut graph.node) {
        match action {
            0 => node.input.push(value),
            1 => drop(node.input.pop()),
            _ => draws.place(&mut node.input).into_iter().for_each(|input| input.clone_from(&value)),
        }
    }
}

fn attributes(node: &mut NodeProto, draws: &mut Draws) {
    let known: Vec<&str> = ATTRIBUTES.split_whitespace().collect();
    if draws.below(6) == 0 {
        let name = draws.one_of(&known).unwrap_or_default().to_owned();
        // The type of the attribute that has the name in the standard, mostly.
        let kind = 2 + 5 * draws.below(2) as i32;
        let number = draws.number();
        node.attribute.push(AttributeProto {
            name,
            r#type: kind,
            i: number,
            ints: vec![number, number],
            ..Default::default()
        });
        return;
    }
    let Some(attribute) = draws.place(&mut node.attribute) else { return };
    match draws.below(8) {
        0 => attribute.name = draws.one_of(&known).unwrap_or_default().to_owned(),
        1 => attribute.f = draws.one_of(&FLOATS).unwrap_or_default(),
        2 => attribute.s = draws.one_of(&TEXTS).unwrap_or_default().into(),
        3 | 4 => attribute.i = draws.number(),
        _ if attribute.t.is_some() => {
            attribute.t = attribute.t.take().map(|of| Box::new(tensor(*of, draws)));
        }
        _ => draws.numbers(&mut attribute.ints),
    }
}

/// Sizes and integers of constants are what other operations read.
fn tensor(mut of: TensorProto, draws: &mut Draws) -> TensorProto {
    match draws.below(6) {
        0 => draws.numbers(&mut of.dims),
        1 => of.data_type = 1 + draws.below(26) as i32,
        2 => draws.place(&mut of.float_data).into_iter().for_each(|value| *value = f32::MAX),
        3 => draws.numbers(&mut of.int64_data),
        _ => {
            let mut bytes = of.raw_data.to_vec();
            let number = draws.number();
            let value = draws.one_of(&FLOATS).unwrap_or_default();
            match of.data_type {
                7 => draws.place(bytes.as_chunks_mut::<8>().0).into_iter().for_each(|to| *to = number.to_le_bytes()),
                1 => draws.place(bytes.as_chunks_mut::<4>().0).into_iter().for_each(|to| *to = value.to_le_bytes()),
                _ => draws.place(&mut bytes).into_iter().for_each(|byte| *byte = number as u8),
            }
            of.raw_data = bytes.into();
        }
    }
    of
}

const OPERATORS: &str = "Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast Ceil Clip Concat Constant ConstantOfShape
    Conv ConvTranspose Cos DepthToSpace Div Dropout Elu Equal Erf Exp Expand Flatten Floor Gather Gelu Gemm GlobalAveragePool
    GlobalMaxPool Greater GreaterOrEqual GroupNormalization HardSigmoid HardSwish Identity InstanceNormalization LRN
    LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization MatMul Max MaxPool Mean Min Mod Mul Neg Not Or
    PRelu Pad Pow Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSum ReduceSumSquare Relu Reshape Resize Round Shape Sigmoid Sign Sin Size Slice Softmax Softplus Split Sqrt Squeeze
    Sub Sum Tanh Tile Transpose Unsqueeze Upsample Where Xor";

const ATTRIBUTES: &str = "allowzero alpha antialias approximate auto_pad axes axis axis_w beta bias blocksize broadcast ceil_mode
    coordinate_transformation_mode count_include_pad dilations end ends epsilon exclude_outside fmod gamma group height_scale
    k_value keepdims kernel_shape mode nearest_mode noop_with_empty_axes num_groups num_outputs output_padding output_shape p
    pads perm scales select_last_index shape size split start starts steps storage_order strides to transA transB value
    value_float value_int value_ints";

const TEXTS: [&str; 14] = [
    "SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET", "reflect", "edge", "wrap", "constant", "linear", "cubic", "nearest",
    "align_corners", "tf_crop_and_resize", "CRD",
];
