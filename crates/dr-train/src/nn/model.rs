//! [`Model`]: a graph with its parameters, on Burn tensors.

use super::executor::{Embedding, Executor, Network, Table};
use super::tensors::{Tensors, Value, rows};
use super::tracer::{TraceError, Tracer};
use super::{
    Layer, LayerSpec, Observer, Pass, PrecisionNorm, PrecisionNormConfig, QuantConfig, QuantConv2d,
    QuantLinear,
};
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::nn::{RmsNorm, RmsNormConfig};
use burn::tensor::{Device, Tensor};
use dr_runtime::arrays::Array;
use dr_runtime::graph::{self, Activation, Graph, LayerKind, Node, Op, TensorOp};
use std::collections::HashMap;
use std::sync::Arc;

/// A network that runs in floats and at every precision it was quantized for: a [`Graph`] and its parameters. It is traced from a
/// [`Network`], or made of a graph that was saved, and is what is quantized, trained, searched and saved.
#[derive(Module, Debug)]
pub struct Model {
    convs: Vec<QuantConv2d>,
    linears: Vec<QuantLinear>,
    norms: Vec<PrecisionNorm>,
    rms_norms: Vec<RmsNorm>,
    embeddings: Vec<Embedding>,
    #[module(skip)]
    graph: Arc<Graph>,
    #[module(skip)]
    places: Arc<Places>,
    /// Of the nodes that are one.
    #[module(skip)]
    constants: Arc<HashMap<graph::Value, Array>>,
}

/// Where in a [`Model`] the entries of its graph's tables are.
#[derive(Debug)]
struct Places {
    /// Of each layer, among those of its kind.
    layers: Vec<usize>,
    /// Of each embedding of its own, among those.
    embeddings: Vec<usize>,
}

impl Places {
    fn of(graph: &Graph) -> Self {
        let mut counts = [0; 3];
        let mut next = |kind: usize| {
            counts[kind] += 1;
            counts[kind] - 1
        };
        let layer = |layer: &graph::Layer| next(usize::from(matches!(layer.kind, LayerKind::Linear { .. })));
        let layers = graph.layers().iter().map(layer).collect();
        let embedding = |embedding: &graph::Embedding| match embedding {
            graph::Embedding::Own { .. } => next(2),
            graph::Embedding::Layer(_) => usize::MAX,
        };
        Self { layers, embeddings: graph.embeddings().iter().map(embedding).collect() }
    }
}

/// One quantized layer of a [`Model`].
#[derive(Debug)]
pub struct NamedLayer<'a> {
    /// Its path in the network, `stages.0.0.conv1` for example.
    pub name: String,
    /// The layer.
    pub layer: Layer<'a>,
    /// Whether it is at an [edge](Graph::is_edge) of the network, where layers stay at the highest width.
    pub pinned: bool,
    /// Whether its input comes out of a ReLU.
    pub after_relu: bool,
}

impl Model {
    /// The graph of a network, with the network's own parameters.
    ///
    /// # Errors
    /// Operations that do not fit together, and layers that are no part of the network's module.
    pub fn trace<N: Network>(network: &N) -> Result<Self, TraceError> {
        let Tracer { graph, convs, linears, norms, rms_norms, embeddings, .. } = Tracer::trace(network)?;
        let places = Arc::new(Places::of(&graph));
        let constants = Arc::default();
        Ok(Self { convs, linears, norms, rms_norms, embeddings, graph: Arc::new(graph), places, constants })
    }

    /// A float model with weights of zero, to be loaded into.
    #[must_use]
    pub fn zeros(graph: Graph, device: &Device) -> Self {
        let (mut convs, mut linears) = (vec![], vec![]);
        for layer in graph.layers() {
            match layer.kind {
                LayerKind::Conv2d { .. } => convs.push(QuantConv2d::zeros(layer, device)),
                LayerKind::Linear { .. } => linears.push(QuantLinear::zeros(layer, device)),
            }
        }
        let batch_norm = |norm: &graph::Norm| {
            PrecisionNormConfig::new(norm.features).with_epsilon(norm.epsilon).init(device)
        };
        let rms_norm =
            |norm: &graph::Norm| RmsNormConfig::new(norm.features).with_epsilon(norm.epsilon).init(device);
        let embedding = |embedding: &graph::Embedding| match embedding {
            graph::Embedding::Own { vocabulary, features, .. } => {
                let weight = Tensor::zeros([*vocabulary, *features], device);
                Some(Embedding { weight: Param::from_tensor(weight) })
            }
            graph::Embedding::Layer(_) => None,
        };
        Self {
            convs,
            linears,
            norms: graph.batch_norms().iter().map(batch_norm).collect(),
            rms_norms: graph.rms_norms().iter().map(rms_norm).collect(),
            embeddings: graph.embeddings().iter().filter_map(embedding).collect(),
            places: Arc::new(Places::of(&graph)),
            graph: Arc::new(graph),
            constants: Arc::default(),
        }
    }

    /// The same with the arrays of the nodes that are constants.
    #[must_use]
    pub(crate) fn with_constants(self, constants: HashMap<graph::Value, Array>) -> Self {
        Self { constants: Arc::new(constants), ..self }
    }

    /// What it computes.
    #[must_use]
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The result for an input: images `[batch, channels, rows, columns]` or tokens `[batch, positions]`, in the numbers of `pass`.
    ///
    /// # Panics
    /// Inputs of another kind or size, a precision that it was not quantized for, and results that are no rows.
    pub fn forward(&self, input: impl Into<Value>, pass: &Pass) -> Tensor<2> {
        rows(self.run(&mut Tensors::new(pass), input.into()))
    }

    /// The value of the last node that an executor gives.
    ///
    /// # Panics
    /// Where the executor does.
    pub fn run<E: Executor>(&self, on: &mut E, input: E::Value) -> E::Value {
        let last = self.graph.nodes().len().saturating_sub(1);
        self.values(on, input, &[last]).pop().expect("as many as were asked for")
    }

    /// All results that an executor gives, in the order of [`Graph::results`].
    ///
    /// # Panics
    /// Where the executor does.
    pub fn results<E: Executor>(&self, on: &mut E, input: E::Value) -> Vec<E::Value> {
        self.values(on, input, &self.graph.results())
    }

    /// The values of nodes that an executor gives.
    fn values<E: Executor>(&self, on: &mut E, input: E::Value, wanted: &[graph::Value]) -> Vec<E::Value> {
        let steps = self.steps(wanted);
        let mut left = vec![0; steps.len()];
        wanted.iter().for_each(|&value| left[value] += 1);
        steps.iter().flatten().for_each(|step| step.inputs.iter().for_each(|&value| left[value] += 1));
        let mut values: Vec<Option<E::Value>> = vec![None; steps.len()];
        let mut input = Some(input);
        for (at, step) in steps.into_iter().enumerate() {
            let Some(Step { op, norm, activation, inputs }) = step else { continue };
            let mut taken = inputs.iter().map(|&value| {
                left[value] -= 1;
                let of = &mut values[value];
                let value = if left[value] == 0 { of.take() } else { of.clone() };
                value.expect("graphs are in order, and a value stays until its last reader")
            });
            let mut first = || taken.next().expect("as many as the graph has checked");
            let value = match op {
                Op::Images { .. } | Op::Tokens | Op::Array(TensorOp::Input(_)) => {
                    input.take().expect("a graph has one input")
                }
                Op::Array(TensorOp::Constant(_)) => on.constant(&self.constants[&at]),
                Op::Layer(layer) => match self.layer(*layer) {
                    LayerRef::Conv2d(layer) => match norm {
                        Some(norm) => on.conv2d_then(first(), layer, norm, taken.next(), activation),
                        None => on.conv2d(first(), layer, None),
                    },
                    LayerRef::Linear(layer) => on.linear(first(), layer),
                },
                Op::RmsNorm(norm) => on.rms_norm(first(), &self.rms_norms[*norm]),
                Op::Embedding(table) => on.embedding(first(), self.table(*table)),
                op => {
                    let inputs = taken.collect();
                    on.op(op.clone(), inputs)
                }
            };
            values[at] = Some(value);
        }
        let value =
            |&value: &graph::Value| values[value].clone().expect("results stay, and all are computed");
        wanted.iter().map(value).collect()
    }

    /// What is computed for each node. A convolution, a BatchNorm, a sum and an activation, each read by the next one only, are computed together,
    /// in the place of the last.
    fn steps(&self, wanted: &[graph::Value]) -> Vec<Option<Step<'_>>> {
        let (nodes, readers) = (self.graph.nodes(), self.graph.readers());
        let joins = |node: usize| readers[node].len() == 1 && !wanted.contains(&node);
        let is_norm = |node: &usize| matches!(nodes[*node].op, Op::BatchNorm(_));
        let is_joined_norm = |node: usize| is_norm(&node) && joins(node);
        // The BatchNorm that a sum is computed with, and the other value.
        let norm_and_residual = |node: usize| match (&nodes[node].op, &nodes[node].inputs[..]) {
            (Op::Add, &[a, b]) if is_joined_norm(a) => Some((a, b)),
            (Op::Add, &[a, b]) if is_joined_norm(b) => Some((b, a)),
            _ => None,
        };
        let mut joined = vec![false; nodes.len()];
        let mut steps: Vec<Option<Step<'_>>> = nodes.iter().map(|_| None).collect();
        for at in (0..nodes.len()).rev() {
            if joined[at] {
                continue;
            }
            let Node { op, inputs } = &nodes[at];
            let (sum, activation) = match op {
                Op::Activation(activation) if joins(inputs[0]) => (inputs[0], Some(*activation)),
                _ => (at, None),
            };
            let (norm, residual) = match norm_and_residual(sum) {
                Some((norm, residual)) => (norm, Some(residual)),
                None => (sum, None),
            };
            steps[at] = match nodes[norm].op {
                Op::BatchNorm(of) => {
                    [sum, norm].into_iter().filter(|&node| node != at).for_each(|node| joined[node] = true);
                    let Node { op, inputs } = &nodes[nodes[norm].inputs[0]];
                    let inputs = inputs.iter().copied().chain(residual).collect();
                    Some(Step { op, norm: Some(&self.norms[of]), activation, inputs })
                }
                Op::Layer(_) if norm == at && !readers[at].is_empty() && readers[at].iter().all(is_norm) => {
                    None
                }
                _ => Some(Step { op, norm: None, activation: None, inputs: inputs.clone() }),
            };
        }
        steps
    }

    fn layer(&self, layer: usize) -> LayerRef<'_> {
        let place = self.places.layers[layer];
        match self.graph.layers()[layer].kind {
            LayerKind::Conv2d { .. } => LayerRef::Conv2d(&self.convs[place]),
            LayerKind::Linear { .. } => LayerRef::Linear(&self.linears[place]),
        }
    }

    fn table(&self, embedding: usize) -> Table<'_> {
        match self.graph.embeddings()[embedding] {
            graph::Embedding::Own { .. } => Table::Own(&self.embeddings[self.places.embeddings[embedding]]),
            graph::Embedding::Layer(layer) => Table::Layer(&self.linears[self.places.layers[layer]]),
        }
    }

    /// The quantized layers, in the order of the graph.
    pub fn layers(&mut self) -> Vec<NamedLayer<'_>> {
        let (mut convs, mut linears) = (self.convs.iter_mut(), self.linears.iter_mut());
        let graph = &self.graph;
        let named = |(at, of): (usize, &graph::Layer)| NamedLayer {
            name: of.name.clone(),
            layer: match of.kind {
                LayerKind::Conv2d { .. } => Layer::Conv2d(convs.next().expect("as many as in the graph")),
                LayerKind::Linear { .. } => Layer::Linear(linears.next().expect("as many as in the graph")),
            },
            pinned: graph.is_edge(at),
            after_relu: graph.after_relu(at),
        };
        graph.layers().iter().enumerate().map(named).collect()
    }

    /// All BatchNorms, each with the weight of the layer before it.
    pub fn norms_after(&mut self) -> Vec<(ParamId, &mut PrecisionNorm)> {
        let mut before = HashMap::new();
        for node in self.graph.nodes() {
            if let (Op::BatchNorm(norm), Some(&conv)) = (&node.op, node.inputs.first())
                && let Op::Layer(layer) = self.graph.nodes()[conv].op
                && let LayerRef::Conv2d(conv) = self.layer(layer)
            {
                before.insert(*norm, conv.weight_id());
            }
        }
        let norms = self.norms.iter_mut().enumerate();
        norms.filter_map(|(at, norm)| Some((*before.get(&at)?, norm))).collect()
    }

    /// All BatchNorms.
    pub fn norms(&mut self) -> Vec<&mut PrecisionNorm> {
        self.norms.iter_mut().collect()
    }

    /// Turns a trained float network into a quantized one: fits scales to the weights and to the activations that
    /// `batches` cause, and gives each precision a BatchNorm unless they share one.
    ///
    /// This is training-free quantization, and what joint training starts from.
    #[must_use]
    pub fn quantize<I: Into<Value>>(mut self, config: &QuantConfig, batches: Vec<I>) -> Self {
        let observer = Observer::default();
        let eval = self.valid();
        for input in batches {
            eval.forward(input, &Pass::observing(&observer));
        }
        let graph = self.graph.clone();
        for (at, mut layer) in self.layers().into_iter().enumerate() {
            let spec = LayerSpec::new(config, &graph, at);
            layer.layer.fit(spec, &observer);
        }
        self.split_norms(config);
        self
    }

    /// Gives the network quantizers and BatchNorms with placeholder values, to load a trained one into.
    #[must_use]
    pub fn prepare(mut self, config: &QuantConfig) -> Self {
        let graph = self.graph.clone();
        for (at, mut layer) in self.layers().into_iter().enumerate() {
            let spec = LayerSpec::new(config, &graph, at);
            layer.layer.prepare(spec);
        }
        self.split_norms(config);
        self
    }

    /// One BatchNorm for each precision, unless they share one.
    fn split_norms(&mut self, config: &QuantConfig) {
        if !config.share_norm && config.plan.is_none() {
            self.norms.iter_mut().for_each(|norm| norm.split(&config.precisions, config.mixed));
        }
    }

    /// Visits all parameters under the paths that they have in the traced network, and in files.
    pub fn visit_named<V: ModuleVisitor>(&self, visitor: &mut V) {
        fn part<V: ModuleVisitor>(visitor: &mut V, name: &str, part: &impl Module) {
            visitor.enter_module(name, "");
            part.visit(visitor);
            visitor.exit_module(name, "");
        }
        let graph = &self.graph;
        for (at, of) in graph.layers().iter().enumerate() {
            match self.layer(at) {
                LayerRef::Conv2d(layer) => part(visitor, &of.name, layer),
                LayerRef::Linear(layer) => part(visitor, &of.name, layer),
            }
        }
        graph.batch_norms().iter().zip(&self.norms).for_each(|(of, norm)| part(visitor, &of.name, norm));
        graph.rms_norms().iter().zip(&self.rms_norms).for_each(|(of, norm)| part(visitor, &of.name, norm));
        own_names(graph).zip(&self.embeddings).for_each(|(name, table)| part(visitor, name, table));
    }

    /// Maps all parameters, likewise.
    #[must_use]
    pub fn map_named<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        fn part<M: ModuleMapper, P: Module>(mapper: &mut M, name: &str, part: P) -> P {
            mapper.enter_module(name, "");
            let part = part.map(mapper);
            mapper.exit_module(name, "");
            part
        }
        let Self { convs, linears, norms, rms_norms, embeddings, graph, places, constants } = self;
        let of_kind = |linear: bool| {
            let wanted =
                move |layer: &&graph::Layer| matches!(layer.kind, LayerKind::Linear { .. }) == linear;
            graph.layers().iter().filter(wanted)
        };
        let convs = of_kind(false).zip(convs).map(|(of, layer)| part(mapper, &of.name, layer)).collect();
        let linears = of_kind(true).zip(linears).map(|(of, layer)| part(mapper, &of.name, layer)).collect();
        let norms = graph.batch_norms().iter().zip(norms);
        let norms = norms.map(|(of, norm)| part(mapper, &of.name, norm)).collect();
        let rms_norms = graph.rms_norms().iter().zip(rms_norms);
        let rms_norms = rms_norms.map(|(of, norm)| part(mapper, &of.name, norm)).collect();
        let embeddings = own_names(&graph).zip(embeddings);
        let embeddings = embeddings.map(|(name, table)| part(mapper, name, table)).collect();
        Self { convs, linears, norms, rms_norms, embeddings, graph, places, constants }
    }
}

/// The names of the embeddings that have a table of their own.
fn own_names(graph: &Graph) -> impl Iterator<Item = &str> {
    graph.embeddings().iter().filter_map(|embedding| match embedding {
        graph::Embedding::Own { name, .. } => Some(name.as_str()),
        graph::Embedding::Layer(_) => None,
    })
}

/// An operation with its parts of the model.
struct Step<'a> {
    op: &'a Op,
    /// What follows a convolution. A second input is added to what it gives.
    norm: Option<&'a PrecisionNorm>,
    /// What comes then.
    activation: Option<Activation>,
    inputs: Vec<graph::Value>,
}

enum LayerRef<'a> {
    Conv2d(&'a QuantConv2d),
    Linear(&'a QuantLinear),
}
