//! From a file to a graph: convolutions and matrix products with constant weights become layers, with the normalizations after them
//! folded in; pools, additions and the like of images stay operations on images; all else is computed on arrays.

use super::attributes::Attributes;
use super::error::{OnnxImportError, RefusedNode};
use super::file::{Dim, Model, NodeInfo, ValueInfo};
use super::operators::{self, Refusal, compute, ints};
use super::values::{Extent, Val, Values, refused};
use crate::arrays::Array;
use crate::file::{
    Artifact, ArtifactKind, BatchNormKind, Description, FORMAT_VERSION, InputShape, Normalization, Resize,
    TensorEntry,
};
use crate::graph::{
    ElementType, Graph, Kind, Layer, LayerKind, NamedResult, Op, TensorInput, TensorOp, Value,
};
use dr_precision::PrecisionSet;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};

crate::named! {
    /// The order of the axes of images, as a file's network takes them.
    #[derive(Default)]
    Layout, "layout" {
        /// Channels before rows and columns.
        #[default]
        Nchw = "nchw",
        /// Channels last.
        Nhwc = "nhwc",
    }
}

/// A network of a file.
#[derive(Clone, Debug)]
pub struct Imported {
    /// What it computes.
    pub graph: Graph,
    /// Weights, biases and constants, by the names that the graph has for them.
    pub tensors: BTreeMap<String, TensorEntry>,
    /// What it takes, in the order of the graph.
    pub inputs: Vec<ValueInfo>,
    /// What else the file says, by key.
    pub metadata: BTreeMap<String, String>,
}

impl Imported {
    /// The network as a float model. One that takes images and gives a row for each is a classifier; the sizes of images that the file
    /// leaves open are those of `image`.
    #[must_use]
    pub fn into_artifact(self, name: &str, image: [usize; 2]) -> Artifact {
        let Self { graph, tensors, inputs, .. } = self;
        let size = |axis: usize| match inputs.first()?.dims.as_ref()?.get(axis)? {
            Dim::Known(size) if *size > 0 => Some(*size),
            _ => None,
        };
        let input = match graph.input() {
            Some(&Op::Images { channels }) => {
                let [height, width] = [size(2).unwrap_or(image[0]), size(3).unwrap_or(image[1])];
                InputShape { channels, height, width }
            }
            _ => InputShape { channels: 1, height: 1, width: 1 },
        };
        let classes = match (graph.input(), graph.named_results(), graph.outputs()) {
            (Some(Op::Images { .. }), [_], Some(classes))
                if matches!(graph.result_kind(), Some(Kind::Rows(_))) =>
            {
                Some(classes)
            }
            _ => None,
        };
        let precisions = PrecisionSet::default();
        let description = Description {
            format_version: FORMAT_VERSION,
            kind: ArtifactKind::Float,
            task: if classes.is_some() { "classify" } else { "arrays" }.to_owned(),
            model: name.to_owned(),
            width: 1,
            input,
            classes: classes.unwrap_or(1),
            class_names: vec![],
            dataset: "folder".to_owned(),
            normalization: Normalization::none(input.channels),
            resize: Resize::default(),
            edge: precisions.highest(),
            precisions,
            switch_edge: false,
            switch_depthwise: false,
            in_floats: Default::default(),
            batch_norm: BatchNormKind::Shared,
            group_size: None,
            mixed: None,
            language: None,
            plan: None,
            shapes: BTreeMap::new(),
            seed: 0,
            checksum: String::new(),
            graph: Some(graph),
        };
        Artifact { description, tensors }
    }
}

/// Turns a file into a graph, which takes images `[batch, channels, rows, columns]` whatever their layout in the file is.
///
/// # Errors
/// [`OnnxImportError::Refused`] with all nodes that cannot be run, nodes whose constants make no sense, and an input that cannot have the
/// layout.
pub fn lower(model: &Model, layout: Layout) -> Result<Imported, OnnxImportError> {
    let mut lowering = Lowering::new(model, layout)?;
    for at in lowering.live() {
        lowering.node(at);
    }
    lowering.finish()
}

struct Lowering<'a> {
    model: &'a Model,
    /// What the graph takes.
    inputs: Vec<ValueInfo>,
    values: Values,
    /// What is known of the values of the file.
    vals: HashMap<&'a str, Val>,
    /// The nodes that read each value; beyond all nodes, the network's own outputs.
    readers: HashMap<&'a str, Vec<usize>>,
    /// Nodes that others have been folded into.
    folded: HashSet<usize>,
    refused: Vec<RefusedNode>,
}

impl<'a> Lowering<'a> {
    fn new(model: &'a Model, layout: Layout) -> Result<Self, OnnxImportError> {
        let mut readers: HashMap<&str, Vec<usize>> = HashMap::new();
        for (at, node) in model.nodes.iter().enumerate() {
            node.inputs.iter().flatten().for_each(|name| readers.entry(name).or_default().push(at));
        }
        for output in &model.outputs {
            readers.entry(&output.name).or_default().push(model.nodes.len());
        }
        let mut lowering = Self {
            model,
            inputs: model.inputs.clone(),
            values: Values::default(),
            vals: HashMap::new(),
            readers,
            folded: HashSet::new(),
            refused: vec![],
        };
        match &model.inputs[..] {
            inputs if layout == Layout::Nhwc => lowering.channels_last(inputs)?,
            [input] if image_channels(input).is_some() => {
                let channels = image_channels(input).unwrap_or_default();
                lowering.input(input, Op::Images { channels })?;
                let named = lowering.values.graph.name_images(array_input(input)?);
                named.map_err(|why| OnnxImportError::input(&input.name, &refused(why)))?;
            }
            inputs => {
                for input in inputs {
                    let of = array_input(input)?;
                    lowering.input(input, Op::Array(TensorOp::Input(of)))?;
                }
            }
        }
        Ok(lowering)
    }

    /// The only input as images whose channels the network of the file wants last.
    fn channels_last(&mut self, inputs: &'a [ValueInfo]) -> Result<(), OnnxImportError> {
        let wrong = |name: &str, found: &str| {
            let expected =
                "expected one input of floats [batch, rows, columns, channels], with the number of channels";
            OnnxImportError::input(name, &Refusal::Wrong(format!("{found} with the layout nhwc: {expected}")))
        };
        let [input] = inputs else {
            let first = inputs.first().map_or("", |input| &input.name);
            return Err(wrong(first, &format!("one of {}", inputs.len())));
        };
        let first = match input.dims.as_deref() {
            Some([batch, rows, columns, channels]) => [batch, channels, rows, columns].map(Clone::clone),
            Some(dims) => return Err(wrong(&input.name, &format!("{} axes", dims.len()))),
            None => return Err(wrong(&input.name, "no sizes")),
        };
        let images = ValueInfo { dims: Some(first.to_vec()), ..input.clone() };
        let channels =
            image_channels(&images).ok_or_else(|| wrong(&input.name, "open channels or other elements"))?;
        let mut turned = || {
            let images = self.values.push(Op::Images { channels }, &[])?;
            self.values.emit(TensorOp::Transpose(vec![0, 2, 3, 1]), &[Val::Node(images)])
        };
        let turned = turned().map_err(|why| OnnxImportError::input(&input.name, &why))?;
        self.vals.insert(&input.name, turned);
        self.inputs = vec![images];
        Ok(())
    }

    fn input(&mut self, input: &'a ValueInfo, op: Op) -> Result<(), OnnxImportError> {
        let value = self.values.push(op, &[]).map_err(|why| OnnxImportError::input(&input.name, &why))?;
        self.vals.insert(&input.name, Val::Node(value));
        Ok(())
    }

    /// The nodes that outputs depend on, in order.
    fn live(&self) -> Vec<usize> {
        let nodes = &self.model.nodes;
        let mut wanted: HashSet<&str> =
            self.model.outputs.iter().map(|output| output.name.as_str()).collect();
        let mut live = vec![];
        for (at, node) in nodes.iter().enumerate().rev() {
            if node.outputs.iter().flatten().any(|output| wanted.contains(output.as_str())) {
                wanted.extend(node.inputs.iter().flatten().map(String::as_str));
                live.push(at);
            }
        }
        live.reverse();
        live
    }

    fn node(&mut self, at: usize) {
        let model = self.model;
        let node = &model.nodes[at];
        if self.folded.contains(&at) {
            return;
        }
        if !node.domain.is_empty() || !operators::is_known(&node.op) {
            return self.refused.push(RefusedNode::of(node, Refusal::Unknown(String::new())));
        }
        let mut inputs = vec![];
        for name in &node.inputs {
            inputs.push(match name {
                None => None,
                Some(name) => match self.val(name) {
                    Some(Ok(val)) => Some(val),
                    Some(Err(why)) => {
                        return self.refused.push(RefusedNode::of(node, Refusal::Wrong(why)));
                    }
                    // Of a node that has been refused.
                    None => return,
                },
            });
        }
        let special = match inputs.iter().flatten().all(|val| val.known().is_some()) {
            true => Ok(None),
            false => self.special(at, node, &inputs),
        };
        let made = match special {
            Ok(Some(val)) => Ok(vec![val]),
            Ok(None) => compute(&mut self.values, node, &inputs, model),
            Err(refusal) => Err(refusal),
        };
        match made {
            Ok(made) => {
                for (name, val) in node.outputs.iter().zip(made) {
                    if let Some(name) = name {
                        self.vals.insert(name, val);
                    }
                }
            }
            Err(refusal) => self.refused.push(RefusedNode::of(node, refusal)),
        }
    }

    /// What is known of a value: nothing if its node has been refused.
    fn val(&mut self, name: &'a str) -> Option<Result<Val, String>> {
        if let Some(val) = self.vals.get(name) {
            return Some(Ok(val.clone()));
        }
        let initializer = self.model.initializers.get(name)?;
        Some(initializer.to_array().map_err(|error| error.to_string()).map(|array| {
            let val = Val::Known(array);
            self.vals.insert(name, val.clone());
            val
        }))
    }

    /// A constant input.
    fn constant(&mut self, name: Option<&'a String>) -> Option<Array> {
        match self.val(name?)? {
            Ok(Val::Known(array)) => Some(array),
            _ => None,
        }
    }

    /// What a node is as a layer or an operation on images; none if it is neither.
    fn special(
        &mut self, at: usize, node: &'a NodeInfo, inputs: &[Option<Val>],
    ) -> Result<Option<Val>, Refusal> {
        let Some(Some(x)) = inputs.first() else { return Ok(None) };
        let known = |at: usize| inputs.get(at).and_then(|val| val.as_ref()?.known());
        let attributes = Attributes::of(node);
        let axes = || {
            let given = attributes.ints("axes").map(<[i64]>::to_vec);
            given.or_else(|| known(1)?.to_integers().ok().map(Cow::into_owned))
        };
        match node.op.as_str() {
            "Conv" => self.convolution(at, node, x, inputs),
            "Gemm" => self.gemm(at, node, x, inputs),
            "MatMul" => match known(1) {
                Some(weight) if weight.dims().len() == 2 && !matches!(x, Val::Pixels(_)) => {
                    let Ok(values) = weight.floats() else { return Ok(None) };
                    let [inputs, outputs] = [weight.dims()[0], weight.dims()[1]];
                    let weight = transposed(&values, inputs, outputs);
                    let name = node.inputs[1].as_deref().unwrap_or_default();
                    self.linear(at, name, x, weight, [inputs, outputs], vec![0.0; outputs]).map(Some)
                }
                _ => Ok(None),
            },
            "Add" | "Mul" | "Sum" if inputs.len() == 2 => match &inputs[1] {
                Some(y) => self.pair(node.op != "Mul", x, y),
                None => Ok(None),
            },
            "MaxPool" => self.max_pool(node, x),
            "GlobalAveragePool" => self.mean(x),
            "ReduceMean" => {
                let axes = axes();
                let mut axes = axes.unwrap_or_default();
                axes.iter_mut().for_each(|axis| *axis = if *axis < 0 { *axis + 4 } else { *axis });
                axes.sort_unstable();
                if axes != [2, 3] {
                    return Ok(None);
                }
                let mean = self.mean(x)?;
                Ok(mean.map(|mean| match (mean, attributes.int("keepdims", 1)) {
                    (Val::Pixels(value), 0) => Val::Node(value),
                    (mean, _) => mean,
                }))
            }
            "Flatten" if attributes.axis("axis", 1) == 1 => match x {
                Val::Pixels(value) => Ok(Some(Val::Node(*value))),
                Val::Node(value) => match self.values.graph.kind(*value) {
                    Kind::Images(_) => self.values.push(Op::Flatten, &[*value]).map(Val::Node).map(Some),
                    Kind::Rows(_) => Ok(Some(x.clone())),
                    _ => Ok(None),
                },
                Val::Known(_) => Ok(None),
            },
            "Squeeze" => {
                let axes = axes();
                match (x, axes.as_deref()) {
                    (Val::Pixels(value), Some([2 | -2, 3 | -1])) => Ok(Some(Val::Node(*value))),
                    _ => Ok(None),
                }
            }
            "Reshape" => match (x, known(1).and_then(|shape| shape.to_integers().ok()).as_deref()) {
                (Val::Pixels(value), Some(&[rows, features])) if rows != 1 || features == -1 => {
                    let fits = match self.values.graph.kind(*value) {
                        Kind::Rows(Some(found)) => features == -1 || usize::try_from(features) == Ok(found),
                        _ => false,
                    };
                    Ok((fits && (rows <= 0)).then_some(Val::Node(*value)))
                }
                (Val::Node(value), Some([0, -1])) => match self.values.graph.kind(*value) {
                    Kind::Images(_) => self.values.push(Op::Flatten, &[*value]).map(Val::Node).map(Some),
                    _ => Ok(None),
                },
                _ => Ok(None),
            },
            "Concat" if attributes.axis("axis", 1) == 1 => self.concat(inputs),
            _ => Ok(None),
        }
    }

    /// The images that a value is.
    fn of_images(&self, val: &Val) -> Option<Value> {
        match val {
            Val::Node(value) if matches!(self.values.graph.kind(*value), Kind::Images(_)) => Some(*value),
            _ => None,
        }
    }

    fn mean(&mut self, x: &Val) -> Result<Option<Val>, Refusal> {
        match (x, self.of_images(x)) {
            (_, Some(value)) => self.values.push(Op::Mean, &[value]).map(Val::Pixels).map(Some),
            (Val::Pixels(_), _) => Ok(Some(x.clone())),
            _ => Ok(None),
        }
    }

    fn max_pool(&mut self, node: &NodeInfo, x: &Val) -> Result<Option<Val>, Refusal> {
        let Some(value) = self.of_images(x) else { return Ok(None) };
        let Some(Window2d { kernel: Some(kernel), stride, padding, around: [0, 0, 0, 0] }) = window(node)?
        else {
            return Ok(None);
        };
        let attributes = Attributes::of(node);
        let positions = node.outputs.get(1).is_some_and(Option::is_some);
        let said = matches!(attributes.text("auto_pad", "NOTSET"), "NOTSET" | "VALID");
        if positions
            || !said
            || attributes.int("ceil_mode", 0) != 0
            || (0..2).any(|axis| padding[axis] >= kernel[axis])
        {
            return Ok(None);
        }
        let pooled = self.values.push(Op::MaxPool { kernel, stride, padding }, &[value])?;
        self.extend(value, pooled, kernel, stride, padding);
        Ok(Some(Val::Node(pooled)))
    }

    /// Remembers how large the result of a window is.
    fn extend(
        &mut self, from: Value, to: Value, kernel: [usize; 2], stride: [usize; 2], padding: [usize; 2],
    ) {
        let (root, mut windows): Extent = self.values.extents.get(&from).cloned().unwrap_or((from, vec![]));
        let covered = [0, 1].map(|axis| kernel[axis].cast_signed() - 2 * padding[axis].cast_signed());
        if covered != [1, 1] || stride != [1, 1] {
            windows.push((covered, stride));
        }
        self.values.extents.insert(to, (root, windows));
    }

    fn same_extent(&self, a: Value, b: Value) -> bool {
        let of = |value| self.values.extents.get(&value);
        of(a).is_some() && of(a) == of(b)
    }

    fn concat(&mut self, inputs: &[Option<Val>]) -> Result<Option<Val>, Refusal> {
        let images: Option<Vec<Value>> = inputs.iter().map(|val| self.of_images(val.as_ref()?)).collect();
        match images {
            Some(images) if images.iter().all(|&other| self.same_extent(images[0], other)) => {
                self.values.push(Op::Concat, &images).map(Val::Node).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// A sum or product of two values that depend on the input.
    fn pair(&mut self, is_sum: bool, x: &Val, y: &Val) -> Result<Option<Val>, Refusal> {
        let op = if is_sum { Op::Add } else { Op::Multiply };
        let kind = |value: Value| self.values.graph.kind(value);
        let (inputs, pixels) = match (x, y) {
            (Val::Pixels(a), Val::Pixels(b)) if kind(*a) == kind(*b) => ([*a, *b], true),
            (Val::Node(a), Val::Node(b)) => match (kind(*a), kind(*b)) {
                (Kind::Images(m), Kind::Images(n)) if m == n && self.same_extent(*a, *b) => ([*a, *b], false),
                (Kind::Rows(Some(m)), Kind::Rows(Some(n))) if m == n => ([*a, *b], false),
                _ => return Ok(None),
            },
            // Each pixel with the row of its image.
            (Val::Node(images), Val::Pixels(rows)) | (Val::Pixels(rows), Val::Node(images)) if !is_sum => {
                match (kind(*images), kind(*rows)) {
                    (Kind::Images(m), Kind::Rows(Some(n))) if m == n => ([*images, *rows], false),
                    _ => return Ok(None),
                }
            }
            _ => return Ok(None),
        };
        let value = self.values.push(op, &inputs)?;
        Ok(Some(if pixels { Val::Pixels(value) } else { Val::Node(value) }))
    }

    fn convolution(
        &mut self, at: usize, node: &'a NodeInfo, x: &Val, inputs: &[Option<Val>],
    ) -> Result<Option<Val>, Refusal> {
        let constant = |at: usize| inputs.get(at).and_then(|val| val.as_ref()?.known()).cloned();
        let Some(weight) = constant(1) else { return Ok(None) };
        let bias = constant(2);
        if inputs.get(2).is_some_and(|val| val.is_some() && bias.is_none()) {
            return Ok(None);
        }
        let Ok(values) = weight.floats() else { return Ok(None) };
        let one_axis = weight.dims().len() == 3;
        let (outputs, group_inputs, kernel) = match *weight.dims() {
            [outputs, inputs, columns] => (outputs, inputs, [1, columns]),
            [outputs, inputs, rows, columns] => (outputs, inputs, [rows, columns]),
            _ => return Ok(None),
        };
        let Some(Window2d { kernel: said, stride, padding, around }) = window(node)? else { return Ok(None) };
        if said.is_some_and(|said| said != kernel) {
            return Err(Refusal::Wrong(format!(
                "a kernel_shape of {said:?}: expected {kernel:?}, as its weight has"
            )));
        }
        let Some((padding, around)) = padding_of(node, kernel, stride, padding, around) else {
            return Ok(None);
        };
        let groups = Attributes::of(node).int("group", 1);
        let wrong = || Refusal::Wrong(format!("{groups} groups for a weight of {:?}", weight.dims()));
        let groups = usize::try_from(groups).ok().filter(|&groups| groups > 0).ok_or_else(wrong)?;
        let channels = group_inputs.checked_mul(groups).ok_or_else(wrong)?;
        let bias = bias.map_or(Ok(vec![0.0; outputs]), |bias| floats(&bias, outputs))?;
        let name = node.inputs[1].as_deref().unwrap_or_default();
        if let (Val::Pixels(value), [1, 1], 1, [0, 0]) = (x, kernel, groups, padding)
            && around == [0; 4]
        {
            let y = self.linear(at, name, &Val::Node(*value), values.to_vec(), [channels, outputs], bias)?;
            return Ok(Some(match y {
                Val::Node(value) => Val::Pixels(value),
                other => other,
            }));
        }
        let mut x = x.clone();
        if one_axis {
            x = self.values.emit(TensorOp::Unsqueeze, &[x, ints(&[2])])?;
        }
        if around != [0; 4] {
            let [top, left, bottom, right] = around.map(|size| size as i64);
            let pads = ints(&[0, 0, top, left, 0, 0, bottom, right]);
            let mode = crate::graph::PadMode::Constant;
            x = self.values.emit(TensorOp::Pad(mode), &[x, pads, Val::Known(Array::scalar(0.0))])?;
        }
        let x = self.values.images(&x, channels)?;
        let (weight, bias, end) = self.fold(at, &values, bias, outputs, if one_axis { 2 } else { 3 });
        let kind = LayerKind::Conv2d { channels: [channels, outputs], kernel, stride, padding, groups };
        let y = self.layer(name, node, kind, weight, bias, x)?;
        self.extend(x, y, kernel, stride, padding);
        let mut y = Val::Node(y);
        if one_axis {
            y = self.values.emit(TensorOp::Squeeze, &[y, ints(&[2])])?;
        }
        self.end_at(end, y.clone());
        Ok(Some(y))
    }

    fn gemm(
        &mut self, at: usize, node: &'a NodeInfo, x: &Val, inputs: &[Option<Val>],
    ) -> Result<Option<Val>, Refusal> {
        let constant = |at: usize| inputs.get(at).and_then(|val| val.as_ref()?.known()).cloned();
        let attributes = Attributes::of(node);
        let (Some(weight), bias) = (constant(1), constant(2)) else { return Ok(None) };
        let others = inputs.get(2).is_some_and(|val| val.is_some() && bias.is_none());
        if others
            || attributes.int("transA", 0) != 0
            || weight.dims().len() != 2
            || matches!(x, Val::Pixels(_))
        {
            return Ok(None);
        }
        let Ok(values) = weight.floats() else { return Ok(None) };
        let [rows, columns] = [weight.dims()[0], weight.dims()[1]];
        let (sizes, mut weight) = match attributes.int("transB", 0) != 0 {
            true => ([columns, rows], values.to_vec()),
            false => ([rows, columns], transposed(&values, rows, columns)),
        };
        let bias = match bias {
            Some(bias) if bias.dims().iter().rev().skip(1).any(|&size| size != 1) => return Ok(None),
            Some(bias) => floats(&bias, sizes[1])?,
            None => vec![0.0; sizes[1]],
        };
        let (alpha, beta) = (attributes.float("alpha", 1.0), attributes.float("beta", 1.0));
        weight.iter_mut().for_each(|weight| *weight *= alpha);
        let bias = bias.into_iter().map(|bias| f64::from(beta) * bias).collect();
        let name = node.inputs[1].as_deref().unwrap_or_default();
        self.linear(at, name, x, weight, sizes, bias).map(Some)
    }

    /// A linear layer with a weight `[outputs, inputs]`.
    fn linear(
        &mut self, at: usize, name: &str, x: &Val, weight: Vec<f32>, features: [usize; 2], bias: Vec<f64>,
    ) -> Result<Val, Refusal> {
        let node = &self.model.nodes[at];
        let rows = match x {
            Val::Node(value) if matches!(self.values.graph.kind(*value), Kind::Rows(_)) => *value,
            other => self.values.array(other)?,
        };
        let pixels = node.op == "Conv";
        let (weight, bias, end) = self.fold(at, &weight, bias, features[1], if pixels { 3 } else { 1 });
        let y = Val::Node(self.layer(name, node, LayerKind::Linear { features }, weight, bias, rows)?);
        let made = match (&y, pixels) {
            (Val::Node(value), true) => Val::Pixels(*value),
            _ => y.clone(),
        };
        self.end_at(end, made);
        Ok(y)
    }

    /// The value of the node that a layer ends at.
    fn end_at(&mut self, end: Option<&'a str>, val: Val) {
        if let Some(name) = end {
            self.vals.insert(name, val);
        }
    }

    /// Adds a layer of `x` under the name of its weight.
    fn layer(
        &mut self, weight_name: &str, node: &NodeInfo, kind: LayerKind, weight: Vec<f32>, bias: Vec<f32>,
        x: Value,
    ) -> Result<Value, Refusal> {
        let finite = |values: &[f32]| values.iter().all(|value| value.is_finite());
        if !finite(&weight) || !finite(&bias) {
            return Err(Refusal::Wrong(format!("a weight `{weight_name}` that is not finite")));
        }
        let stem = weight_name.strip_suffix(".weight").unwrap_or(weight_name);
        let stem = if stem.is_empty() { node.name.as_str() } else { stem };
        let taken = |name: &str| self.values.tensors.contains_key(&format!("{name}.weight"));
        let name = match taken(stem) {
            false => stem.to_owned(),
            true => (2..).map(|n| format!("{stem}#{n}")).find(|name| !taken(name)).unwrap_or_default(),
        };
        let has_bias = bias.iter().any(|&bias| bias != 0.0);
        self.values.tensors.insert(format!("{name}.weight"), TensorEntry::f32(kind.weight_shape(), weight));
        if has_bias {
            self.values.tensors.insert(format!("{name}.bias"), TensorEntry::f32([bias.len()], bias));
        }
        let layer = self.values.graph.add_layer(Layer { name, kind, bias: has_bias }).map_err(refused)?;
        self.values.push(Op::Layer(layer), &[x])
    }

    /// Folds what follows a layer into its weight and bias: BatchNorm, and products and sums with a constant for each output, whose axis
    /// is so many from the end, the last one being 1. Gives the last value of the file that is folded in.
    fn fold(
        &mut self, at: usize, weight: &[f32], bias: Vec<f64>, outputs: usize, from_end: usize,
    ) -> (Vec<f32>, Vec<f32>, Option<&'a str>) {
        let model = self.model;
        let (mut gain, mut shift) = (vec![1.0f64; outputs], bias);
        let mut value = model.nodes[at].outputs.first().and_then(Option::as_deref);
        let mut end = None;
        while let Some(name) = value {
            let Some(&[reader]) = self.readers.get(name).map(Vec::as_slice) else { break };
            let Some(node) = model.nodes.get(reader).filter(|node| node.domain.is_empty()) else { break };
            let Some((times, plus)) = self.affine(node, name, outputs, from_end) else { break };
            for i in 0..outputs {
                gain[i] *= times[i];
                shift[i] = shift[i] * times[i] + plus[i];
            }
            self.folded.insert(reader);
            end = node.outputs.first().and_then(Option::as_deref);
            value = end;
        }
        let length = (weight.len() / outputs.max(1)).max(1);
        let weight = weight
            .chunks(length)
            .zip(&gain)
            .flat_map(|(row, gain)| row.iter().map(move |&weight| (f64::from(weight) * gain) as f32));
        (weight.collect(), shift.iter().map(|&shift| shift as f32).collect(), end)
    }

    /// Gain and shift of each output, if a node is that of `name`.
    fn affine(
        &mut self, node: &'a NodeInfo, name: &str, outputs: usize, from_end: usize,
    ) -> Option<(Vec<f64>, Vec<f64>)> {
        let is_first = node.inputs.first().is_some_and(|input| input.as_deref() == Some(name));
        match node.op.as_str() {
            "BatchNormalization" if is_first && from_end > 1 => {
                let attributes = Attributes::of(node);
                if attributes.int("training_mode", 0) != 0 || node.outputs.iter().skip(1).any(Option::is_some)
                {
                    return None;
                }
                let mut part = |at: usize| {
                    let array = self.constant(node.inputs.get(at)?.as_ref())?;
                    floats(&array, outputs).ok()
                };
                let [scale, shift, mean, variance] = [part(1)?, part(2)?, part(3)?, part(4)?];
                let epsilon = f64::from(attributes.float("epsilon", 1e-5));
                let gain: Vec<f64> =
                    scale.iter().zip(&variance).map(|(s, v)| s / (v + epsilon).sqrt()).collect();
                let plus = (0..outputs).map(|i| shift[i] - mean[i] * gain[i]).collect();
                Some((gain, plus))
            }
            "Add" | "Mul" | "Sub" | "Div" if node.inputs.len() == 2 => {
                if !is_first && matches!(node.op.as_str(), "Sub" | "Div") {
                    return None;
                }
                let other = &node.inputs[usize::from(is_first)];
                if other.as_deref() == Some(name) {
                    return None;
                }
                let array = self.constant(other.as_ref())?;
                let values = per_output(&array, outputs, from_end)?;
                let (ones, zeros) = (vec![1.0; outputs], vec![0.0; outputs]);
                Some(match node.op.as_str() {
                    "Add" => (ones, values),
                    "Sub" => (ones, values.iter().map(|value| -value).collect()),
                    "Mul" => (values, zeros),
                    _ => (values.iter().map(|value| 1.0 / value).collect(), zeros),
                })
            }
            _ => None,
        }
    }

    fn finish(mut self) -> Result<Imported, OnnxImportError> {
        if !self.refused.is_empty() {
            return Err(OnnxImportError::Refused(self.refused));
        }
        let mut results = vec![];
        for output in &self.model.outputs {
            let val = match self.val(&output.name) {
                Some(Ok(val)) => val,
                Some(Err(why)) => return Err(OnnxImportError::output(&output.name, &Refusal::Wrong(why))),
                None => {
                    return Err(OnnxImportError::output(
                        &output.name,
                        &Refusal::Wrong("nothing makes it".into()),
                    ));
                }
            };
            let value = match &val {
                Val::Node(value) => Ok(*value),
                other => self.values.array(other),
            };
            let value = value.map_err(|why| OnnxImportError::output(&output.name, &why))?;
            let dims = output.dims.as_ref().map(|dims| dims.iter().map(known).collect());
            results.push(NamedResult { name: output.name.clone(), value, element: output.element, dims });
        }
        let Self { values: Values { graph, tensors, .. }, model, inputs, .. } = self;
        let (graph, used) = graph.of_results(&results)?;
        let tensors = tensors.into_iter().filter(|(name, _)| used.contains(name)).collect();
        Ok(Imported { graph, tensors, inputs, metadata: model.metadata.clone() })
    }
}

/// No images have more channels.
const MOST_CHANNELS: usize = 1 << 16;

/// The channels of an input that can be images.
fn image_channels(input: &ValueInfo) -> Option<usize> {
    let floats = input.element.is_none_or(Values::is_float);
    match input.dims.as_deref() {
        Some(&[_, Dim::Known(channels), _, _]) if floats && (1..=MOST_CHANNELS).contains(&channels) => {
            Some(channels)
        }
        _ => None,
    }
}

fn array_input(input: &ValueInfo) -> Result<TensorInput, OnnxImportError> {
    let unknown = || {
        OnnxImportError::input(
            &input.name,
            &Refusal::Wrong("sizes or elements that the file does not say".into()),
        )
    };
    let dims = input.dims.as_ref().ok_or_else(unknown)?;
    let element = input.element.unwrap_or(ElementType::F32);
    Ok(TensorInput { name: input.name.clone(), element, dims: dims.iter().map(known).collect() })
}

/// A size, if it is not open.
fn known(dim: &Dim) -> Option<usize> {
    match dim {
        Dim::Known(size) => Some(*size),
        Dim::Named(_) | Dim::Open => None,
    }
}

/// How a window of two axes lies, with what is added on one side only.
struct Window2d {
    kernel: Option<[usize; 2]>,
    stride: [usize; 2],
    padding: [usize; 2],
    /// Begins, then ends.
    around: [usize; 4],
}

/// The window of a node with one or two axes; none if it has others or is dilated.
fn window(node: &NodeInfo) -> Result<Option<Window2d>, Refusal> {
    let attributes = Attributes::of(node);
    // One axis is that of columns.
    let pair = |name: &str, usual: usize, missing: usize| {
        Ok(match attributes.sizes(name)?[..] {
            [] => Some([usual; 2]),
            [columns] => Some([missing, columns]),
            [rows, columns] => Some([rows, columns]),
            _ => None,
        })
    };
    let kernel = match attributes.has("kernel_shape") {
        true => pair("kernel_shape", 1, 1)?.map(Some),
        false => Some(None),
    };
    let (Some(kernel), Some(stride), Some([1, 1])) =
        (kernel, pair("strides", 1, 1)?, pair("dilations", 1, 1)?)
    else {
        return Ok(None);
    };
    let pads = match attributes.sizes("pads")?[..] {
        [] => [0; 4],
        [left, right] => [0, left, 0, right],
        [top, left, bottom, right] => [top, left, bottom, right],
        _ => return Ok(None),
    };
    let padding = [pads[0].min(pads[2]), pads[1].min(pads[3])];
    let symmetric = pads[0] == pads[2] && pads[1] == pads[3];
    let (padding, around) = if symmetric { (padding, [0; 4]) } else { ([0, 0], pads) };
    Ok(Some(Window2d { kernel, stride, padding, around }))
}

/// The padding of a convolution that may leave it to be found out; none if that depends on the size of the input.
fn padding_of(
    node: &NodeInfo, kernel: [usize; 2], stride: [usize; 2], padding: [usize; 2], around: [usize; 4],
) -> Option<([usize; 2], [usize; 4])> {
    let upper = match Attributes::of(node).text("auto_pad", "NOTSET") {
        "NOTSET" => return Some((padding, around)),
        "VALID" => return Some(([0, 0], [0; 4])),
        other => other == "SAME_UPPER",
    };
    if stride != [1, 1] {
        return None;
    }
    let all = kernel.map(|size| size.saturating_sub(1));
    if all.iter().all(|size| size.is_multiple_of(2)) {
        return Some((all.map(|size| size / 2), [0; 4]));
    }
    let begin = all.map(|size| if upper { size / 2 } else { size.div_ceil(2) });
    Some(([0, 0], [begin[0], begin[1], all[0] - begin[0], all[1] - begin[1]]))
}

/// One number for each output.
fn floats(array: &Array, outputs: usize) -> Result<Vec<f64>, Refusal> {
    let values = array.floats().map_err(|error| Refusal::Wrong(error.to_string()))?;
    match values.len() {
        1 => Ok(vec![f64::from(values[0]); outputs]),
        found if found == outputs => Ok(values.iter().map(|&value| f64::from(value)).collect()),
        found => Err(Refusal::Wrong(format!("{found} numbers: expected {outputs}, one for each output"))),
    }
}

/// One number for each output, of an array that is broadcast so.
fn per_output(array: &Array, outputs: usize, from_end: usize) -> Option<Vec<f64>> {
    let dims = array.dims();
    let wide: Vec<usize> = (0..dims.len()).filter(|&axis| dims[axis] != 1).collect();
    let fits = match wide[..] {
        [] => dims.len() <= from_end + 1,
        [axis] => dims.len() - axis == from_end && dims[axis] == outputs && dims.len() <= from_end + 1,
        _ => false,
    };
    if fits { floats(array, outputs).ok() } else { None }
}

/// `[columns, rows]` of a matrix `[rows, columns]`.
fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column])).collect()
}
