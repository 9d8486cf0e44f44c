//! [`Graph`]: what a network computes, as data.
//!
//! A graph is a list of nodes, each an operation on the values of earlier nodes; the last node is the result. What has parameters
//! (layers, normalizations, embeddings) stands in tables, under the names that the parameters have in files: one layer may be
//! used by several nodes. Sizes that depend on the input (batch, rows, columns, positions) stay open.
//!
//! Images, rows and tokens are what products with quantized weights work on; everything else that networks compute is an operation on
//! [arrays](TensorOp). A network has one input, the first node, and one result, the last node, unless its inputs are arrays and its
//! results have [names](Graph::results).
//!
//! Every graph that exists is valid: [`Graph::push`] checks each node, and reading one from JSON goes through it.

mod check;
mod derived;
mod node;
mod rope;
mod tensor_op;

pub use check::GraphError;
pub use node::{Activation, Attention, Embedding, Layer, LayerKind, Node, Norm, Op};
pub use rope::{Rope, RopeError, RopeScaling};
pub use tensor_op::{
    Binary, Constant, Coordinates, ElementType, Interpolation, Nearest, PadMode, Padding, Pool, Reduction,
    Resize, ResizeBy, TensorInput, TensorOp, Unary, Window,
};

use check::LARGEST;
use node::read;
use serde::{Deserialize, Serialize};

/// The number of a node, and of the value that it makes.
pub type Value = usize;

/// A network as data.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Parts", into = "Parts")]
pub struct Graph {
    parts: Parts,
    /// Of each node's value.
    kinds: Vec<Kind>,
    /// Of each node's value.
    readers: Vec<Readers>,
}

/// Who reads a value.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Readers {
    Nobody,
    /// A BatchNorm, and so nobody else: the value is never made.
    BatchNorm,
    Others,
}

/// What a graph is made of, unchecked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Parts {
    layers: Vec<Layer>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    batch_norms: Vec<Norm>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    rms_norms: Vec<Norm>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    embeddings: Vec<Embedding>,
    nodes: Vec<Node>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    images: Option<TensorInput>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    results: Vec<NamedResult>,
}

/// A value that a network gives, under a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedResult {
    /// Its name.
    pub name: String,
    /// The value.
    pub value: Value,
    /// The type of its elements, if the file says it that the network comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub element: Option<ElementType>,
    /// Its sizes, as far as that file says them; `None` where any will do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dims: Option<Vec<Option<usize>>>,
}

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Images of so many channels.
    Images(usize),
    /// Rows of so many features, if that does not depend on the size of images.
    Rows(Option<usize>),
    /// Tokens.
    Tokens,
    /// An array, whose sizes depend on the input.
    Array,
}

impl Graph {
    /// The layers.
    #[must_use]
    pub fn layers(&self) -> &[Layer] {
        &self.parts.layers
    }

    /// The BatchNorms.
    #[must_use]
    pub fn batch_norms(&self) -> &[Norm] {
        &self.parts.batch_norms
    }

    /// The RMSNorms.
    #[must_use]
    pub fn rms_norms(&self) -> &[Norm] {
        &self.parts.rms_norms
    }

    /// The embeddings.
    #[must_use]
    pub fn embeddings(&self) -> &[Embedding] {
        &self.parts.embeddings
    }

    /// The nodes, each after those that it reads.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.parts.nodes
    }

    /// What the value of a node is.
    ///
    /// # Panics
    /// If there is no such node.
    #[must_use]
    pub fn kind(&self, value: Value) -> Kind {
        self.kinds[value]
    }

    /// What the network takes: the first node.
    #[must_use]
    pub fn input(&self) -> Option<&Op> {
        self.nodes().first().map(|node| &node.op)
    }

    /// The name and the sizes, `[batch, channels, rows, columns]`, of the images that the network takes, if it says more of them than how many
    /// channels they have.
    #[must_use]
    pub fn named_images(&self) -> Option<&TensorInput> {
        self.parts.images.as_ref()
    }

    /// Says how the images that the network takes are called, and which of their sizes are open.
    ///
    /// # Errors
    /// A network that does not take images, or takes others.
    pub fn name_images(&mut self, images: TensorInput) -> Result<(), GraphError> {
        match (self.input(), &images.dims[..]) {
            (Some(&Op::Images { channels }), &[_, found, _, _]) if found == Some(channels) => {
                self.parts.images = Some(images);
                Ok(())
            }
            (input, _) => {
                let found = format!("sizes {:?} for {input:?}", images.dims);
                let expected = "images with their channels";
                Err(GraphError::Sizes { name: images.name, found, expected })
            }
        }
    }

    /// The arrays that the network takes, if it takes some, with the nodes that they are.
    pub fn array_inputs(&self) -> impl Iterator<Item = (Value, &TensorInput)> {
        self.nodes().iter().enumerate().filter_map(|(at, node)| match &node.op {
            Op::Array(TensorOp::Input(input)) => Some((at, input)),
            _ => None,
        })
    }

    /// The constants that operations on arrays take, with the nodes that they are.
    pub fn constants(&self) -> impl Iterator<Item = (Value, &Constant)> {
        self.nodes().iter().enumerate().filter_map(|(at, node)| match &node.op {
            Op::Array(TensorOp::Constant(constant)) => Some((at, constant)),
            _ => None,
        })
    }

    /// Whether the graph has operations on arrays, whose sizes are known when they have been computed.
    #[must_use]
    pub fn has_arrays(&self) -> bool {
        self.nodes().iter().any(|node| matches!(node.op, Op::Array(_)))
    }

    /// The results that have names; none if the last node is the only one.
    #[must_use]
    pub fn named_results(&self) -> &[NamedResult] {
        &self.parts.results
    }

    /// Whether it computes nothing: it has no result with a name, and no node after the input.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts.results.is_empty() && self.nodes().len() < 2
    }

    /// The values of all results.
    #[must_use]
    pub fn results(&self) -> Vec<Value> {
        match self.parts.results.is_empty() {
            true => self.nodes().len().checked_sub(1).into_iter().collect(),
            false => self.parts.results.iter().map(|result| result.value).collect(),
        }
    }

    /// Gives a value out under a name.
    ///
    /// # Errors
    /// A value that is not there or that is never made, or a name that is taken.
    pub fn add_result(&mut self, result: NamedResult) -> Result<(), GraphError> {
        let (node, value) = (self.nodes().len(), result.value);
        if value >= node || self.readers[value] == Readers::BatchNorm {
            return Err(GraphError::Value { node, value });
        }
        if self.parts.results.iter().any(|other| other.name == result.name) {
            return Err(GraphError::Name(result.name));
        }
        self.parts.results.push(result);
        Ok(())
    }

    /// What the network makes: the value of the last node, or the first of the results that have names.
    #[must_use]
    pub fn result_kind(&self) -> Option<Kind> {
        self.results().first().map(|&value| self.kinds[value])
    }

    /// Channels or features of the result.
    #[must_use]
    pub fn outputs(&self) -> Option<usize> {
        match self.result_kind()? {
            Kind::Images(channels) => Some(channels),
            Kind::Rows(features) => features,
            Kind::Tokens | Kind::Array => None,
        }
    }

    /// Adds a layer to the table.
    ///
    /// # Errors
    /// Sizes that do not fit together, or a name that is taken.
    pub fn add_layer(&mut self, layer: Layer) -> Result<usize, GraphError> {
        let sizes = match layer.kind {
            LayerKind::Conv2d { channels, kernel, stride, groups, padding } => {
                let [input, output] = channels;
                let fits = groups > 0 && input % groups == 0 && output % groups == 0;
                let small = padding.iter().all(|&size| size < LARGEST);
                [&channels[..], &kernel, &stride, &[groups, usize::from(fits && small)]].concat()
            }
            LayerKind::Linear { features } => features.to_vec(),
        };
        if !sizes.iter().all(|size| (1..=LARGEST).contains(size)) {
            let (name, found) = (layer.name, format!("{:?}", layer.kind));
            let expected = "sizes of at least 1, groups that divide the channels";
            return Err(GraphError::Sizes { name, found, expected });
        }
        self.check_name(&layer.name)?;
        self.parts.layers.push(layer);
        Ok(self.parts.layers.len() - 1)
    }

    /// Adds a BatchNorm to the table.
    ///
    /// # Errors
    /// Sizes that make no sense, or a name that is taken.
    pub fn add_batch_norm(&mut self, norm: Norm) -> Result<usize, GraphError> {
        self.check_norm(&norm)?;
        self.parts.batch_norms.push(norm);
        Ok(self.parts.batch_norms.len() - 1)
    }

    /// Adds an RMSNorm to the table.
    ///
    /// # Errors
    /// Sizes that make no sense, or a name that is taken.
    pub fn add_rms_norm(&mut self, norm: Norm) -> Result<usize, GraphError> {
        self.check_norm(&norm)?;
        self.parts.rms_norms.push(norm);
        Ok(self.parts.rms_norms.len() - 1)
    }

    /// Adds an embedding to the table.
    ///
    /// # Errors
    /// Sizes that make no sense, a name that is taken, or a layer that is not there or not linear.
    pub fn add_embedding(&mut self, embedding: Embedding) -> Result<usize, GraphError> {
        match &embedding {
            Embedding::Own { name, vocabulary, features } => {
                if ![vocabulary, features].iter().all(|size| (1..=LARGEST).contains(*size)) {
                    let (name, found) = (name.clone(), format!("{vocabulary} x {features}"));
                    return Err(GraphError::Sizes { name, found, expected: "sizes of at least 1" });
                }
                self.check_name(name)?;
            }
            Embedding::Layer(layer) => {
                let (found, count) = (*layer, self.parts.layers.len());
                let node = self.nodes().len();
                match self.parts.layers.get(found) {
                    Some(Layer { kind: LayerKind::Linear { .. }, .. }) => {}
                    _ => return Err(GraphError::Table { node, what: "linear layer", found, count }),
                }
            }
        }
        self.parts.embeddings.push(embedding);
        Ok(self.parts.embeddings.len() - 1)
    }

    /// Adds a node.
    ///
    /// # Errors
    /// Inputs that are not there or that the operation does not take.
    pub fn push(&mut self, op: Op, inputs: &[Value]) -> Result<Value, GraphError> {
        let node = self.nodes().len();
        if let Some(&value) = inputs.iter().find(|&&value| value >= node) {
            return Err(GraphError::Value { node, value });
        }
        let kinds: Vec<Kind> = inputs.iter().map(|&value| self.kinds[value]).collect();
        let kind = self.result(node, &op, inputs, &kinds)?;
        self.kinds.push(kind);
        self.readers.push(Readers::Nobody);
        let reader = if matches!(op, Op::BatchNorm(_)) { Readers::BatchNorm } else { Readers::Others };
        read(&op, inputs).iter().for_each(|&value| self.readers[value] = reader);
        self.parts.nodes.push(Node { op, inputs: inputs.to_vec() });
        Ok(node)
    }
}

impl TryFrom<Parts> for Graph {
    type Error = GraphError;

    fn try_from(parts: Parts) -> Result<Self, GraphError> {
        let mut graph = Self::default();
        parts.layers.into_iter().try_for_each(|layer| graph.add_layer(layer).map(|_| ()))?;
        parts.batch_norms.into_iter().try_for_each(|norm| graph.add_batch_norm(norm).map(|_| ()))?;
        parts.rms_norms.into_iter().try_for_each(|norm| graph.add_rms_norm(norm).map(|_| ()))?;
        parts.embeddings.into_iter().try_for_each(|table| graph.add_embedding(table).map(|_| ()))?;
        parts.nodes.into_iter().try_for_each(|node| graph.push(node.op, &node.inputs).map(|_| ()))?;
        parts.images.into_iter().try_for_each(|images| graph.name_images(images))?;
        parts.results.into_iter().try_for_each(|result| graph.add_result(result))?;
        if graph.is_empty() { Err(GraphError::Empty) } else { Ok(graph) }
    }
}

impl From<Graph> for Parts {
    fn from(graph: Graph) -> Self {
        graph.parts
    }
}
