//! From a network to its graph.

use super::executor::{Embedding, Executor, Network, Table};
use super::{PrecisionNorm, QuantConv2d, QuantLinear};
use burn::module::{ModuleVisitor, Param, ParamId};
use burn::nn::RmsNorm;
use burn::tensor::{Tensor, TensorData};
use dr_runtime::arrays::Array;
use dr_runtime::graph::{self, Graph, GraphError, LayerKind, Norm, Op};
use std::collections::HashMap;
use thiserror::Error;

/// Why a network has no graph.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TraceError {
    /// Operations that do not fit together.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// A layer that is no part of the network's module.
    #[error("a {0} that is no part of the network: expected the layers that its module has")]
    Foreign(&'static str),
}

/// A graph and the modules that its tables stand for, each in the table's order.
#[derive(Default)]
pub(super) struct Tracer {
    pub graph: Graph,
    pub convs: Vec<QuantConv2d>,
    pub linears: Vec<QuantLinear>,
    pub norms: Vec<PrecisionNorm>,
    pub rms_norms: Vec<RmsNorm>,
    pub embeddings: Vec<Embedding>,
    /// The paths of parameters.
    names: HashMap<ParamId, String>,
    /// What is in the tables already, by a parameter of it.
    known: HashMap<ParamId, usize>,
    error: Option<TraceError>,
}

impl Tracer {
    pub(super) fn trace<N: Network>(network: &N) -> Result<Self, TraceError> {
        let mut tracer = Self::default();
        network.visit(&mut EachParameter::new(|path, id, _, _| _ = tracer.names.insert(id, path)));
        let input = tracer.graph.push(network.input(), &[])?;
        network.forward(&mut tracer, input);
        match tracer.error.take() {
            Some(error) => Err(error),
            None => Ok(tracer.in_order()),
        }
    }

    /// The same with the layers in the order in which they are computed first.
    fn in_order(self) -> Self {
        let is_linear = |layer: &graph::Layer| matches!(layer.kind, LayerKind::Linear { .. });
        let numbers = (0..self.graph.layers().len()).filter(|&at| is_linear(&self.graph.layers()[at]));
        let mut linears: HashMap<usize, QuantLinear> = numbers.zip(self.linears).collect();
        let (graph, order) = self.graph.in_order();
        Self { linears: order.iter().filter_map(|old| linears.remove(old)).collect(), graph, ..self }
    }

    /// The number in a table of what has this parameter; `add` puts it there under its name.
    fn entry(
        &mut self, id: ParamId, parameter: &str, what: &'static str,
        add: impl FnOnce(&mut Self, String) -> Result<usize, GraphError>,
    ) -> Result<usize, TraceError> {
        if let Some(&found) = self.known.get(&id) {
            return Ok(found);
        }
        let path = self.names.get(&id).ok_or(TraceError::Foreign(what))?;
        let name = path.strip_suffix(parameter).unwrap_or(path).trim_end_matches('.').to_owned();
        let at = add(self, name)?;
        self.known.insert(id, at);
        Ok(at)
    }

    /// The value of a node that has an entry of a table and one input.
    fn push(
        &mut self, entry: Result<usize, TraceError>, op: fn(usize) -> Op, x: graph::Value,
    ) -> graph::Value {
        let node = entry.and_then(|at| Ok(self.graph.push(op(at), &[x])?));
        self.checked(node)
    }

    /// The value of a node, or of any other after an error.
    fn checked(&mut self, node: Result<graph::Value, TraceError>) -> graph::Value {
        node.unwrap_or_else(|error| {
            self.error.get_or_insert(error);
            0
        })
    }

    fn linear_entry(&mut self, layer: &QuantLinear) -> Result<usize, TraceError> {
        self.entry(layer.weight_id(), "weight", "linear layer", |this, name| {
            let (kind, bias) = (LayerKind::Linear { features: layer.features() }, layer.has_bias());
            this.linears.push(layer.clone());
            this.graph.add_layer(graph::Layer { name, kind, bias })
        })
    }
}

impl Executor for Tracer {
    type Value = graph::Value;

    fn conv2d(&mut self, x: Self::Value, layer: &QuantConv2d, norm: Option<&PrecisionNorm>) -> Self::Value {
        let found = self.entry(layer.weight_id(), "weight", "convolution", |this, name| {
            this.convs.push(layer.clone());
            this.graph.add_layer(graph::Layer { name, kind: layer.kind(), bias: layer.has_bias() })
        });
        let y = self.push(found, Op::Layer, x);
        let Some(norm) = norm else { return y };
        let found = self.entry(norm.id(), "norms.0.gamma", "BatchNorm", |this, name| {
            let (features, epsilon) = (norm.channels(), norm.epsilon());
            this.norms.push(norm.clone());
            this.graph.add_batch_norm(Norm { name, features, epsilon })
        });
        self.push(found, Op::BatchNorm, y)
    }

    fn linear(&mut self, x: Self::Value, layer: &QuantLinear) -> Self::Value {
        let found = self.linear_entry(layer);
        self.push(found, Op::Layer, x)
    }

    fn rms_norm(&mut self, x: Self::Value, norm: &RmsNorm) -> Self::Value {
        let found = self.entry(norm.gamma.id, "gamma", "RMSNorm", |this, name| {
            let [features] = norm.gamma.lazy_shape().dims();
            this.rms_norms.push(norm.clone());
            this.graph.add_rms_norm(Norm { name, features, epsilon: norm.epsilon })
        });
        self.push(found, Op::RmsNorm, x)
    }

    fn embedding(&mut self, tokens: Self::Value, table: Table<'_>) -> Self::Value {
        let found = match table {
            Table::Own(own) => self.entry(own.weight.id, "weight", "embedding", |this, name| {
                let [vocabulary, features] = own.weight.lazy_shape().dims();
                this.embeddings.push(own.clone());
                this.graph.add_embedding(graph::Embedding::Own { name, vocabulary, features })
            }),
            Table::Layer(layer) => self
                .linear_entry(layer)
                .and_then(|at| Ok(self.graph.add_embedding(graph::Embedding::Layer(at))?)),
        };
        self.push(found, Op::Embedding, tokens)
    }

    fn constant(&mut self, _: &Array) -> Self::Value {
        // Those of graphs that were read, which are not traced.
        self.checked(Err(TraceError::Foreign("constant")))
    }

    fn op(&mut self, op: Op, inputs: Vec<Self::Value>) -> Self::Value {
        let node = self.graph.push(op, &inputs).map_err(TraceError::from);
        self.checked(node)
    }
}

/// Calls a function for each parameter and statistic of floats, with its path, what tells it from others, its shape, and what gives
/// its values.
pub(crate) struct EachParameter<F> {
    path: Vec<String>,
    each: F,
}

impl<F: FnMut(String, ParamId, Vec<usize>, &dyn Fn() -> TensorData)> EachParameter<F> {
    pub(crate) fn new(each: F) -> Self {
        Self { path: vec![], each }
    }
}

impl<F: FnMut(String, ParamId, Vec<usize>, &dyn Fn() -> TensorData)> ModuleVisitor for EachParameter<F> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let values = || param.val().into_data();
        (self.each)(self.path.join("."), param.id, param.lazy_shape().to_vec(), &values);
    }
}
