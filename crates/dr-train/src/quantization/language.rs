//! [`quantize_language`]: a language model with stored codes that serve all widths.

use super::factor::Factor;
use super::gradients::gradient_sizes;
use super::grid::Nest;
use super::model::NestedModel;
use super::weight::{compensated, nearest, quadratic_losses};
use crate::nn::quantizers::host;
use crate::nn::{Executor, Model, Pass, PrecisionNorm, QuantConv2d, QuantLinear, Table, Tensors, Value};
use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::nn::RmsNorm;
use burn::tensor::{Device, Int, Tensor, TensorData};
use dr_precision::BitWidth;
use dr_runtime::arrays::Array;
use dr_runtime::file::NestedWeight;
use dr_runtime::graph::{Graph, Op};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::num::NonZeroUsize;
use thiserror::Error;

/// What [`quantize_language`] looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CalibrationOptions {
    /// So many inputs of an output share a grid.
    pub group: NonZeroUsize,
    /// Windows of the text.
    pub windows: usize,
    /// Tokens of a window.
    pub length: usize,
    /// Of how many windows the gradient of the loss is taken, too. With none, sequences of [one token](Self::single_tokens) say
    /// instead how much the first position counts.
    pub gradient_windows: usize,
    /// Sequences of one token, where no gradients are taken.
    pub single_tokens: usize,
}

impl Default for CalibrationOptions {
    fn default() -> Self {
        let group = NonZeroUsize::new(32).expect("not zero");
        Self { group, windows: 64, length: 512, gradient_windows: 12, single_tokens: 1024 }
    }
}

/// How far [`quantize_language`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress<'a> {
    /// The gradients of a window are known.
    Gradients {
        /// Windows so far.
        done: usize,
        /// Windows in all.
        of: usize,
    },
    /// A layer is quantized.
    Layer {
        /// Its name.
        name: &'a str,
        /// Layers so far.
        done: usize,
        /// Layers in all.
        of: usize,
    },
}

/// Why a model cannot be quantized.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum QuantizationError {
    /// Not enough text.
    #[error(
        "the text has {found} tokens: expected at least {expected}, those of a window and the one that follows"
    )]
    Short {
        /// Tokens of the text.
        found: usize,
        /// Those of a window, and one.
        expected: usize,
    },
    /// A network for something else.
    #[error("the network does not take tokens: expected a language model")]
    Network,
    /// Weights that are no numbers.
    #[error("layer `{0}` has weights that are not finite")]
    Weights(String),
}

/// Quantizes a float language model without training: the weights of its linear layers get stored codes of 8 bits that serve these
/// widths, too; layers at an edge of the network and tables of embeddings stay at 8 bits.
///
/// `tokens` are of a text like those that the model is for. The model computes windows of them in floats, layer by layer for all
/// windows together, and each layer is quantized when its inputs are there: what is in memory at a time are the values of all
/// windows between two layers, and one Hessian for the layers that share an input.
///
/// # Errors
/// A network that takes no tokens, a text that is shorter than a window, and weights that are not finite.
///
/// # Panics
/// If a token is none of the model's.
pub fn quantize_language(
    model: &Model, tokens: &[u32], widths: &[BitWidth], options: &CalibrationOptions,
    mut progress: impl FnMut(Progress<'_>),
) -> Result<NestedModel, QuantizationError> {
    if model.graph().nodes().first().is_none_or(|node| node.op != Op::Tokens) {
        return Err(QuantizationError::Network);
    }
    let length = options.length.max(1);
    if tokens.len() <= length {
        return Err(QuantizationError::Short { found: tokens.len(), expected: length + 1 });
    }
    let model = model.valid();
    let names = Names::of(&model)?;
    let pass = Pass::float();
    let starts = window_starts(tokens.len(), length, options.windows);
    let of = options.gradient_windows.min(starts.len());
    let mut windows: Vec<Window<'_>> = starts
        .iter()
        .map(|&start| Window::new(&pass, Tokens::Text, row(&tokens[start..start + length], &names.device)))
        .collect();
    for done in 0..of {
        let at = done * starts.len() / of;
        let next = &tokens[starts[at] + 1..][..length];
        let labels = row(next, &names.device).reshape([length]);
        windows[at].gradients = gradient_sizes(&model, windows[at].tokens.clone(), labels, &names.switching);
        progress(Progress::Gradients { done: done + 1, of });
    }
    if of == 0 && options.single_tokens > 0 {
        let count = options.single_tokens.min(tokens.len());
        let singles: Vec<u32> = (0..count).map(|at| tokens[at * tokens.len() / count]).collect();
        let column = row(&singles, &names.device).reshape([count, 1]);
        windows.push(Window::new(&pass, Tokens::Single, column));
    }
    let input = windows.iter().map(|window| Value::from(window.tokens.clone())).collect();
    let mut sweep = Sweep {
        windows,
        group: options.group,
        nests: [Nest::new([]), Nest::new(widths.iter().copied())],
        names,
        values: 0,
        shared: None,
        weights: BTreeMap::new(),
        progress: &mut progress,
    };
    let input = sweep.value(input, false);
    model.run(&mut sweep, input);
    Ok(NestedModel { weights: sweep.weights })
}

/// Where windows begin: evenly over the text, without a token in two of them.
fn window_starts(tokens: usize, length: usize, windows: usize) -> Vec<usize> {
    let count = windows.clamp(1, (tokens - 1) / length);
    (0..count).map(|at| at * ((tokens - 1) / count)).collect()
}

/// Tokens `[1, count]`.
pub(super) fn row(tokens: &[u32], device: &Device) -> Tensor<2, Int> {
    let tokens: Vec<i64> = tokens.iter().map(|&token| i64::from(token)).collect();
    let count = tokens.len();
    Tensor::from_data(TensorData::new(tokens, [1, count]), device)
}

/// What is to be known of a model's parameters.
struct Names {
    device: Device,
    /// The path of each layer and table, by its weight.
    paths: HashMap<ParamId, String>,
    /// The weights of the layers that are quantized at all widths.
    switching: HashSet<ParamId>,
    /// The weight of the layer that gives the result.
    last: Option<ParamId>,
    /// How many layers and tables there are.
    count: usize,
}

impl Names {
    fn of(model: &Model) -> Result<Self, QuantizationError> {
        let mut weights = Weights::default();
        model.visit_named(&mut weights);
        if let Some(name) = weights.broken {
            return Err(QuantizationError::Weights(name));
        }
        let graph = model.graph();
        let id = |layer: usize| weights.ids.get(&graph.layers()[layer].name).copied();
        let last = graph.nodes().last().and_then(|node| match node.op {
            Op::Layer(layer) => id(layer),
            _ => None,
        });
        let switching = (0..graph.layers().len()).filter(|&layer| !graph.is_edge(layer)).filter_map(id);
        let switching = switching.collect();
        let device = weights.device.unwrap_or_else(Device::flex);
        let paths = weights.ids.into_iter().map(|(name, id)| (id, name)).collect();
        Ok(Self { device, paths, switching, last, count: graph.layers().len() + own_tables(graph) })
    }
}

fn own_tables(graph: &Graph) -> usize {
    let is_own =
        |table: &&dr_runtime::graph::Embedding| matches!(table, dr_runtime::graph::Embedding::Own { .. });
    graph.embeddings().iter().filter(is_own).count()
}

/// Parameters that are called `weight`, by the path of what they are of.
#[derive(Default)]
struct Weights {
    path: Vec<String>,
    ids: HashMap<String, ParamId>,
    /// The first that has numbers that are not finite.
    broken: Option<String>,
    device: Option<Device>,
}

impl ModuleVisitor for Weights {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.device.get_or_insert_with(|| param.val().device());
        if let [path @ .., last] = &self.path[..]
            && last == "weight"
        {
            let name = path.join(".");
            if !host(&param.val()).iter().all(|value| value.is_finite()) {
                self.broken.get_or_insert_with(|| name.clone());
            }
            self.ids.insert(name, param.id);
        }
    }
}

/// Tokens that are computed together.
struct Window<'a> {
    tensors: Tensors<'a>,
    kind: Tokens,
    tokens: Tensor<2, Int>,
    /// Of each layer's output, the squared length of the gradient at each position, if it was taken.
    gradients: HashMap<ParamId, Tensor<2>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tokens {
    /// A part of the text, `[1, positions]`.
    Text,
    /// Texts of one token, `[texts, 1]`.
    Single,
}

impl<'a> Window<'a> {
    fn new(pass: &'a Pass<'a>, kind: Tokens, tokens: Tensor<2, Int>) -> Self {
        Self { tensors: Tensors::new(pass), kind, tokens, gradients: HashMap::new() }
    }
}

/// Computes all windows, operation by operation, and quantizes each layer before it is computed.
struct Sweep<'a, P> {
    windows: Vec<Window<'a>>,
    group: NonZeroUsize,
    /// Of layers at the edge, and of others.
    nests: [Nest; 2],
    names: Names,
    /// Values so far.
    values: usize,
    /// The part of the Hessian that all layers with an input have in common, and which value that is.
    shared: Option<(usize, Vec<f32>)>,
    weights: BTreeMap<String, NestedWeight>,
    progress: &'a mut P,
}

/// A value of each window.
#[derive(Clone)]
struct Values {
    number: usize,
    /// Whether it comes out of a normalization.
    normalized: bool,
    of: Vec<Value>,
}

/// What the products of gradients or of single tokens count beside those of the text.
const OF_GRADIENTS: f32 = 0.5;
const OF_SINGLE_TOKENS: f32 = 0.2;

impl<P: FnMut(Progress<'_>)> Sweep<'_, P> {
    fn value(&mut self, of: Vec<Value>, normalized: bool) -> Values {
        self.values += 1;
        Values { number: self.values, normalized, of }
    }

    /// The same of each window.
    fn each(&mut self, x: Values, mut compute: impl FnMut(&mut Tensors<'_>, Value) -> Value) -> Values {
        let windows = self.windows.iter_mut().zip(x.of);
        let of = windows.map(|(window, x)| compute(&mut window.tensors, x)).collect();
        self.value(of, false)
    }

    /// Quantizes the weight of a layer or a table, unless that was done already; without inputs it stays at the stored width.
    fn quantize(&mut self, id: ParamId, weight: &Tensor<2>, x: Option<&Values>) {
        let Some(name) = self.names.paths.remove(&id) else { return };
        let (shape, values) = (weight.dims(), host(weight));
        let switches = self.names.switching.contains(&id);
        let of_gradients = x.filter(|_| switches).and_then(|x| self.of_gradients(x, id));
        let hessian = x.filter(|_| switches).map(|x| self.hessian(x, of_gradients.as_ref()));
        let factor = hessian.and_then(|hessian| Factor::new(&hessian, shape[1]));
        let nest = &self.nests[usize::from(switches)];
        let weight = match factor {
            Some(factor) => compensated(&values, shape, self.group, nest, &factor),
            None => nearest(&values, shape, self.group, nest),
        };
        let weight = match of_gradients {
            Some(fisher) => self.with_sensitivities(weight, &values, &fisher),
            None => weight,
        };
        let done = self.weights.len() + 1;
        (self.progress)(Progress::Layer { name: &name, done, of: self.names.count });
        self.weights.insert(name, weight);
    }

    /// The part of the Hessian that is of gradients, if these are taken.
    fn of_gradients(&self, x: &Values, id: ParamId) -> Option<Products> {
        self.sum(x, |window, x| Some(products(x, Some(window.gradients.get(&id)?.clone()))))
    }

    /// The Hessian of a layer's weights.
    fn hessian(&mut self, x: &Values, of_gradients: Option<&Products>) -> Vec<f32> {
        let shared = self.shared.take().filter(|(number, _)| *number == x.number);
        let (number, shared) = shared.unwrap_or_else(|| (x.number, self.of_inputs(x)));
        let hessian = mixed(shared.clone(), of_gradients, OF_GRADIENTS);
        self.shared = Some((number, shared));
        hessian
    }

    /// With what each width costs; see [`NestedWeight::sensitivity`].
    fn with_sensitivities(&self, weight: NestedWeight, values: &[f32], fisher: &Products) -> NestedWeight {
        let windows = self.windows.iter().filter(|window| !window.gradients.is_empty());
        let positions = windows.clone().map(|window| window.tokens.dims()[1]);
        let (tokens, [outputs, _]) = (positions.clone().sum::<usize>(), weight.shape());
        // The gradients are those of means over the positions of windows, which are of one length.
        let length = positions.max().unwrap_or(0) as f64;
        let scale = f64::from(fisher.mean) * length * length / (tokens * outputs) as f64;
        let losses = quadratic_losses(values, &weight, &fisher.values);
        let losses = losses.into_iter().map(|loss| (scale * loss).max(0.0) as f32).collect();
        weight.clone().with_sensitivities(losses).unwrap_or(weight)
    }

    /// The part that depends on inputs alone.
    fn of_inputs(&self, x: &Values) -> Vec<f32> {
        let of = |kind: Tokens| {
            self.sum(x, |window, rows| {
                let weights = || (!x.normalized).then(|| inverse_squares(rows, kind));
                (window.kind == kind).then(|| products(rows, weights()))
            })
        };
        let of_text = of(Tokens::Text).map(|products| products.values);
        mixed(of_text.unwrap_or_default(), of(Tokens::Single).as_ref(), OF_SINGLE_TOKENS)
    }

    /// The sum over all windows that have something; `None` if the mean of its diagonal is not above zero.
    fn sum(
        &self, x: &Values, part: impl Fn(&Window<'_>, &Tensor<2>) -> Option<Tensor<2>>,
    ) -> Option<Products> {
        let of_window = |(window, x): (_, &Value)| match x {
            Value::Rows(rows) => part(window, rows),
            _ => None,
        };
        let sum = self.windows.iter().zip(&x.of).filter_map(of_window).reduce(|a, b| a + b)?;
        let ([features, _], mut sum) = (sum.dims(), host(&sum));
        let trace: f64 = sum.iter().step_by(features + 1).map(|&x| f64::from(x)).sum();
        let mean = (trace / features as f64) as f32;
        sum.iter_mut().for_each(|x| *x /= mean);
        (mean > 0.0 && mean.is_finite()).then_some(Products { values: sum, mean })
    }
}

/// A sum of products of inputs, `[inputs, inputs]`.
struct Products {
    /// Divided by the mean of the diagonal.
    values: Vec<f32>,
    /// This mean.
    mean: f32,
}

/// `x^T diag(weights) x` of rows `x`, with weights `[rows, 1]`.
fn products(x: &Tensor<2>, weights: Option<Tensor<2>>) -> Tensor<2> {
    let weighted = weights.map_or_else(|| x.clone(), |weights| x.clone() * weights);
    x.clone().transpose().matmul(weighted)
}

/// One over the squared length of each row, and zero for the first position of a text.
fn inverse_squares(x: &Tensor<2>, kind: Tokens) -> Tensor<2> {
    let inverse = x.clone().square().sum_dim(1).clamp_min(f32::MIN_POSITIVE).recip();
    match kind {
        Tokens::Text => inverse.clone().slice_assign([0..1, 0..1], Tensor::zeros([1, 1], &inverse.device())),
        Tokens::Single => inverse,
    }
}

/// `(1 - part) * a + part * b`.
fn mixed(mut a: Vec<f32>, b: Option<&Products>, part: f32) -> Vec<f32> {
    if let Some(b) = b {
        a.iter_mut().zip(&b.values).for_each(|(a, b)| *a = (1.0 - part) * *a + part * b);
    }
    a
}

impl<P: FnMut(Progress<'_>)> Executor for Sweep<'_, P> {
    type Value = Values;

    fn conv2d(&mut self, x: Values, layer: &QuantConv2d, norm: Option<&PrecisionNorm>) -> Values {
        self.each(x, |tensors, x| tensors.conv2d(x, layer, norm))
    }

    fn linear(&mut self, x: Values, layer: &QuantLinear) -> Values {
        let id = layer.weight_id();
        self.quantize(id, &layer.weight(), Some(&x));
        match self.names.last == Some(id) {
            // Logits of all windows would be much, and nothing reads them.
            true => self.value(vec![], false),
            false => self.each(x, |tensors, x| tensors.linear(x, layer)),
        }
    }

    fn rms_norm(&mut self, x: Values, norm: &RmsNorm) -> Values {
        let y = self.each(x, |tensors, x| tensors.rms_norm(x, norm));
        Values { normalized: true, ..y }
    }

    fn embedding(&mut self, tokens: Values, table: Table<'_>) -> Values {
        if let Table::Own(own) = table {
            self.quantize(own.weight.id, &own.weight.val(), None);
        }
        self.each(tokens, |tensors, x| tensors.embedding(x, table))
    }

    fn constant(&mut self, array: &Array) -> Values {
        let of = self.windows.iter_mut().map(|window| window.tensors.constant(array)).collect();
        self.value(of, false)
    }

    fn op(&mut self, op: Op, inputs: Vec<Values>) -> Values {
        let mut inputs: Vec<_> = inputs.into_iter().map(|values| values.of.into_iter()).collect();
        let windows = self.windows.iter_mut();
        let of = windows.map(|window| {
            let inputs = inputs.iter_mut().filter_map(Iterator::next).collect();
            window.tensors.op(op.clone(), inputs)
        });
        let of = of.collect();
        self.value(of, false)
    }
}
