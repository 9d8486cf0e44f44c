//! [`Network`]: a saved network on slices of this computer's memory.

use crate::RuntimeError;
use crate::file::{Artifact, Values, elements};
use crate::float::FloatLayer;
use crate::graph::{Activation, Attention, Graph, LayerKind, Norm, Op, Value, window_positions};
use crate::layers::{Affine, Codes, Quantization, Table};
use crate::program::{Product, Program, Step, checked_sizes};
use dr_kernels::host::language::{AttentionCache, attention, rms_norm, rotate, swiglu};
use dr_kernels::host::{self, Job, Results, StoredWeight, WeightOnly, code_len, run_together};
use dr_kernels::integer::CodeQuantizer;
use dr_kernels::{Conv2dOptions, KernelError, integer};
use dr_precision::Precision;
use rayon::prelude::*;
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, Instant};

/// What layers compute in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arithmetic {
    /// Codes of inputs times codes of weights.
    #[default]
    Integer,
    /// Inputs in floats times packed weights: for linear layers whose inputs do not bear few bits.
    WeightOnly,
}

/// What a network takes.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// Images.
    Images {
        /// `[batch, channels, rows, columns]`, normalised.
        values: &'a [f32],
        /// These four sizes.
        shape: [usize; 4],
    },
    /// Texts of one length.
    Tokens {
        /// `[batch, positions]`
        ids: &'a [u32],
        /// How many texts.
        batch: usize,
    },
}

/// What a network makes of an input.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// The values, row by row.
    pub values: Vec<f32>,
    /// `[n, features]`, or `[batch, rows, columns, channels]` of a network whose result is images.
    pub shape: Vec<usize>,
}

/// What a language model keeps of the earlier positions of a text.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    attentions: Vec<AttentionCache>,
    positions: usize,
}

impl Cache {
    /// One for a new text.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Positions that it has.
    #[must_use]
    pub const fn positions(&self) -> usize {
        self.positions
    }
}

/// A saved network, on slices of this computer's memory: in integers at one of its precisions, which can be switched, or in floats if
/// that is what the file holds. Clones share what they do not change.
#[derive(Clone, Debug)]
pub struct Network {
    shared: Arc<Shared>,
    /// Of each use of a layer.
    kernels: Vec<Arc<Kernel>>,
    precision: Option<Precision>,
    workspace: Arc<Mutex<Workspace>>,
}

/// What does not depend on the precision.
#[derive(Debug)]
struct Shared {
    artifact: Artifact,
    graph: Graph,
    program: Program,
    layers: Vec<Stored>,
    /// The gains of RMSNorms.
    gains: Vec<Values<f32>>,
    tables: Vec<Table>,
    arithmetic: Arithmetic,
}

/// A layer as it is stored.
#[derive(Debug)]
enum Stored {
    Float,
    Quantized(StoredWeight, Quantization),
}

/// A layer with what follows it, ready to run.
#[derive(Debug)]
enum Kernel {
    Integer(host::Product),
    WeightOnly(WeightOnly),
    Float(FloatLayer),
}

/// A layer at its precision, for other runtimes.
#[derive(Clone, Debug)]
pub struct LayerParts {
    /// `[outputs, inputs / groups * taps]`.
    pub codes: Vec<i32>,
    /// `[outputs, groups]`, of the weight and of the BatchNorm after it.
    pub scale: Vec<f32>,
    /// `[outputs]`, what is added.
    pub shift: Vec<f32>,
    /// The width of the codes.
    pub bits: dr_precision::BitWidth,
    /// How the input is quantized.
    pub input: CodeQuantizer,
}

impl Network {
    /// The network of a file, in integers at `precision`.
    ///
    /// # Errors
    /// A file without a graph, a float network, a precision that it does not have, tensors that are missing or of another shape.
    pub fn load(artifact: &Artifact, precision: Precision) -> Result<Self, RuntimeError> {
        Self::load_with(artifact, Some(precision), Arithmetic::Integer)
    }

    /// The network of a file with float weights.
    ///
    /// # Errors
    /// A file without a graph, a quantized network, tensors that are missing or of another shape.
    pub fn load_float(artifact: &Artifact) -> Result<Self, RuntimeError> {
        Self::load_with(artifact, None, Arithmetic::Integer)
    }

    /// The network of a file at `precision`, which float networks do not have.
    ///
    /// # Errors
    /// Those of [`Network::load`] and [`Network::load_float`]; convolutions with [`Arithmetic::WeightOnly`].
    pub fn load_with(
        artifact: &Artifact, precision: Option<Precision>, arithmetic: Arithmetic,
    ) -> Result<Self, RuntimeError> {
        artifact.description.check()?;
        let graph = artifact.graph()?.clone();
        let set = artifact.description.precisions();
        match (precision, &set) {
            (None, None) => {}
            (None, Some(set)) => {
                let (precision, expected) = (set.highest(), "a float network".to_owned());
                return Err(RuntimeError::Precision { precision, expected });
            }
            (Some(_), None) => return Err(RuntimeError::Float),
            (Some(precision), Some(set)) if set.position(precision).is_none() => {
                let expected = format!("one of {set}");
                return Err(RuntimeError::Precision { precision, expected });
            }
            (Some(_), Some(_)) => {}
        }
        let integer = vec![precision.is_some() && arithmetic == Arithmetic::Integer; graph.layers().len()];
        let program = Program::new(&graph, &integer);
        let stored = |layer: usize| match Quantization::read(artifact, &graph, layer)? {
            None => Ok(Stored::Float),
            Some(quantization) => {
                let of = &graph.layers()[layer];
                let (shape, groups) = (of.kind.weight_shape(), of.kind.groups());
                let (bits, granularity) = (quantization.format.weights[0], quantization.format.granularity);
                let weight = match quantization.codes(artifact, of)? {
                    Codes::Bytes(codes) => {
                        StoredWeight::from_codes(codes, &shape, groups, bits, granularity)?
                    }
                    Codes::Words(words) => {
                        StoredWeight::from_packed(words, &shape, groups, bits, granularity)?
                    }
                };
                Ok::<_, RuntimeError>(Stored::Quantized(weight, quantization))
            }
        };
        let layers = (0..graph.layers().len()).map(stored).collect::<Result<_, _>>()?;
        let gain = |norm: &Norm| artifact.values(&format!("{}.gamma", norm.name), &[norm.features]);
        let gains = graph.rms_norms().iter().map(gain).collect::<Result<_, _>>()?;
        let table = |embedding| Table::read(artifact, &graph, embedding);
        let tables = graph.embeddings().iter().map(table).collect::<Result<_, _>>()?;
        let shared = Shared { artifact: artifact.clone(), graph, program, layers, gains, tables, arithmetic };
        let kernels = shared.kernels(precision)?;
        Ok(Self { shared: Arc::new(shared), kernels, precision, workspace: Arc::default() })
    }

    /// Switches all layers to another precision, by shifts of the stored codes; those at the edges keep their bits.
    ///
    /// # Errors
    /// [`RuntimeError::Precision`] if the network has no such precision; it then stays as it is.
    pub fn switch(&mut self, precision: Precision) -> Result<(), RuntimeError> {
        if self.precision.is_none() {
            return Err(RuntimeError::Float);
        }
        self.kernels = self.shared.kernels(Some(precision))?;
        self.precision = Some(precision);
        Ok(())
    }

    /// The precision it computes at; `None` in floats.
    #[must_use]
    pub const fn precision(&self) -> Option<Precision> {
        self.precision
    }

    /// What it computes.
    #[must_use]
    pub fn graph(&self) -> &Graph {
        &self.shared.graph
    }

    /// Bytes of the layers that a pass at this precision reads: prepared codes with their padding, multipliers and addends, scales
    /// and zero points of the inputs.
    #[must_use]
    pub fn model_bytes(&self) -> usize {
        let bytes = |kernel: &Arc<Kernel>| match &**kernel {
            Kernel::Integer(product) => product.bytes(),
            Kernel::WeightOnly(product) => product.bytes(),
            Kernel::Float(layer) => layer.bytes(),
        };
        self.kernels.iter().map(bytes).sum()
    }

    /// A layer at its precision; `None` in floats, or if nothing uses it.
    #[must_use]
    pub fn layer(&self, layer: usize) -> Option<LayerParts> {
        let at = self.shared.program.uses.iter().position(|of| of.layer == layer)?;
        let Kernel::Integer(product) = &*self.kernels[at] else { return None };
        let (weight, gain) = (product.weight(), product.gain());
        let scales = weight.scales();
        let groups = scales.len() / gain.len().max(1);
        let scale = scales.iter().enumerate().map(|(i, scale)| scale * gain[i / groups]).collect();
        Some(LayerParts {
            codes: weight.codes(),
            scale,
            shift: product.shift().to_vec(),
            bits: weight.bits(),
            input: product.input(),
        })
    }

    /// What the network makes of an input.
    ///
    /// # Errors
    /// An input of another kind or size.
    pub fn forward(&self, input: Input) -> Result<Output, RuntimeError> {
        self.run(input, None, None)
    }

    /// The same, and how long each layer of the graph took, with the quantization of its input. Layers that are computed together share
    /// their time evenly.
    ///
    /// # Errors
    /// Those of [`Network::forward`].
    pub fn forward_timed(&self, input: Input) -> Result<(Output, Vec<Duration>), RuntimeError> {
        let mut times = vec![Duration::ZERO; self.graph().layers().len()];
        let output = self.run(input, None, Some(&mut times))?;
        Ok((output, times))
    }

    /// Reads the tokens that follow those of `cache` in one text, and gives the logits of what comes next.
    ///
    /// # Errors
    /// No token, more positions than the context has, a token that is not in the vocabulary, a cache of another network: the cache then
    /// stays as it is.
    pub fn read(&self, tokens: &[u32], cache: &mut Cache) -> Result<Vec<f32>, RuntimeError> {
        Ok(self.run(Input::Tokens { ids: tokens, batch: 1 }, Some(cache), None)?.values)
    }

    fn run(
        &self, input: Input, cache: Option<&mut Cache>, times: Option<&mut Vec<Duration>>,
    ) -> Result<Output, RuntimeError> {
        let mut spare;
        let mut guard;
        let workspace = match self.workspace.try_lock() {
            Ok(workspace) => {
                guard = workspace;
                &mut *guard
            }
            Err(TryLockError::Poisoned(workspace)) => {
                guard = workspace.into_inner();
                &mut *guard
            }
            // Two passes at once have memory of their own.
            Err(TryLockError::WouldBlock) => {
                spare = Workspace::default();
                &mut spare
            }
        };
        Pass { network: self, workspace, text: Text::default(), cache, times }.run(input)
    }
}

impl Shared {
    /// All layers at a precision.
    fn kernels(&self, precision: Option<Precision>) -> Result<Vec<Arc<Kernel>>, RuntimeError> {
        // Whether it exists is found out before anything is switched.
        if let Some(precision) = precision {
            for layer in &self.layers {
                if let Stored::Quantized(_, quantization) = layer {
                    quantization.positions(precision)?;
                }
            }
        }
        let uses = self.program.uses.par_iter();
        uses.map(|of| self.kernel(of, precision).map(Arc::new)).collect()
    }

    fn kernel(&self, of: &crate::program::Use, precision: Option<Precision>) -> Result<Kernel, RuntimeError> {
        let layer = &self.graph.layers()[of.layer];
        let norm = of.norm.map(|norm| &self.graph.batch_norms()[norm]);
        let affine = Affine::read(&self.artifact, layer, norm, precision)?;
        let activation = match of.activation {
            Some(Activation::Relu) => integer::Activation::Relu,
            Some(Activation::Relu6) => integer::Activation::Relu6,
            Some(Activation::Silu) | None => integer::Activation::None,
        };
        let (Stored::Quantized(stored, quantization), Some(precision)) = (&self.layers[of.layer], precision)
        else {
            let weight =
                self.artifact.values(&format!("{}.weight", layer.name), &layer.kind.weight_shape())?;
            return Ok(Kernel::Float(FloatLayer::new(layer.kind, weight, affine, activation)));
        };
        let (weights, inputs) = quantization.positions(precision)?;
        let weight = stored.at(quantization.format.weights[weights], &quantization.scales[weights])?;
        weight.settle();
        Ok(match (self.arithmetic, layer.kind) {
            (Arithmetic::Integer, kind) => {
                let options = match kind {
                    LayerKind::Conv2d { stride, padding, .. } => {
                        Conv2dOptions { stride, padding, ..Conv2dOptions::default() }
                    }
                    LayerKind::Linear { .. } => Conv2dOptions::default(),
                };
                let (gain, shift) = (&affine.gain, &affine.shift);
                let input = quantization.inputs[inputs];
                Kernel::Integer(host::Product::new(weight, options, input, gain, shift, activation)?)
            }
            (Arithmetic::WeightOnly, LayerKind::Linear { .. }) => {
                let bias = layer.bias.then_some(&affine.shift[..]);
                Kernel::WeightOnly(WeightOnly::new(weight, bias)?)
            }
            (Arithmetic::WeightOnly, LayerKind::Conv2d { .. }) => {
                return Err(RuntimeError::WeightOnly(layer.name.clone()));
            }
        })
    }
}

/// Memory of earlier passes: one asks for the same sizes as the one before, and each thread finds in its cache what it wrote then.
#[derive(Debug, Default)]
struct Workspace {
    /// Of the images of the last pass.
    images: [usize; 4],
    /// Rows and columns of each node's value for such images.
    sizes: Vec<[usize; 2]>,
    values: Vec<Vec<f32>>,
    codes: Vec<Vec<u8>>,
    /// `[batch, rows, columns, channels]` of the values of all nodes; rows of features are images of one pixel.
    dims: Vec<[usize; 4]>,
}

/// Room for values of these sizes, of which the first ones may have been written before.
fn room<'a, T: Default + Clone>(
    memory: &'a mut Vec<T>, sizes: &[usize],
) -> Result<&'a mut [T], RuntimeError> {
    let len = count(sizes)?;
    if memory.len() < len {
        memory.try_reserve(len - memory.len()).map_err(|_| too_large(sizes))?;
        memory.resize(len, T::default());
    }
    Ok(&mut memory[..len])
}

/// How many values of these sizes there are.
fn count(sizes: &[usize]) -> Result<usize, RuntimeError> {
    elements(sizes).ok_or_else(|| too_large(sizes))
}

fn too_large(sizes: &[usize]) -> RuntimeError {
    KernelError::TooLarge { what: "values of a network", sizes: sizes.to_vec() }.into()
}

/// Where in texts the tokens are.
#[derive(Default)]
struct Text {
    batch: usize,
    positions: usize,
    /// Of the first token.
    start: usize,
    /// Attentions so far.
    attentions: usize,
    /// Of the last attention: cosines and sines.
    tables: Option<(Attention, [Vec<f32>; 2])>,
}

/// A pass under way.
struct Pass<'a> {
    network: &'a Network,
    workspace: &'a mut Workspace,
    text: Text,
    cache: Option<&'a mut Cache>,
    times: Option<&'a mut Vec<Duration>>,
}

impl Pass<'_> {
    fn run(mut self, input: Input) -> Result<Output, RuntimeError> {
        let Shared { graph, program, artifact, .. } = &*self.network.shared;
        let wrong = |found: String| {
            let expected = match graph.input() {
                Some(Op::Images { channels }) => format!("images of {channels} channels"),
                _ => "tokens".to_owned(),
            };
            Err(RuntimeError::Input { found, expected })
        };
        let workspace = &mut *self.workspace;
        workspace.dims.resize(graph.nodes().len(), [0; 4]);
        let (mut images, mut ids): (&[f32], &[u32]) = (&[], &[]);
        match (input, graph.input()) {
            (Input::Images { values, shape }, Some(Op::Images { channels })) => {
                let [batch, found, rows, columns] = shape;
                if found != channels || elements(&shape) != Some(values.len()) {
                    return wrong(format!("{} values for images {shape:?}", values.len()));
                }
                if workspace.images != shape {
                    workspace.sizes = checked_sizes(graph, [rows, columns])?;
                    workspace.images = shape;
                    workspace.values.clear();
                    workspace.codes.clear();
                }
                workspace.dims[0] = [batch, rows, columns, channels];
                images = values;
            }
            (Input::Tokens { ids: tokens, batch }, Some(Op::Tokens)) => {
                let positions = tokens.len() / batch.max(1);
                let start = self.cache.as_ref().map_or(0, |cache| cache.positions);
                let (found, expected) = (start + positions, artifact.description.context());
                if positions == 0 || found > expected {
                    let found = if positions == 0 { 0 } else { found };
                    return Err(RuntimeError::Context { found, expected });
                }
                if tokens.len() != batch * positions {
                    return wrong(format!("{} tokens for {batch} texts of one length", tokens.len()));
                }
                self.text = Text { batch, positions, start, ..Text::default() };
                ids = tokens;
            }
            (Input::Images { .. }, _) => return wrong("images".to_owned()),
            (Input::Tokens { .. }, _) => return wrong("tokens".to_owned()),
        }
        let [values, codes] = program.slots;
        workspace.values.resize(values.max(workspace.values.len()), vec![]);
        workspace.codes.resize(codes.max(workspace.codes.len()), vec![]);
        if !program.input_as_it_comes {
            let dims = workspace.dims[0];
            let mut out = self.take(0);
            channels_last(images, dims, room(&mut out, &dims)?);
            self.put(0, out, dims);
        }
        for step in &program.steps {
            match step {
                Step::Products(products) => self.products(products, images)?,
                Step::Gate { gate, up, output } => {
                    let (mut out, dims) = (self.take(*gate), self.workspace.dims[*gate]);
                    let len = dims.iter().product();
                    swiglu(&mut out[..len], self.value(*up))?;
                    // The gate's memory is the result's from now on.
                    let left = self.take(*output);
                    self.workspace.values[program.values[*gate]] = left;
                    self.put(*output, out, dims);
                }
                Step::Op { op, inputs, output } => self.op(*op, inputs, *output, images, ids)?,
            }
        }
        if let Some(cache) = &mut self.cache {
            cache.positions = self.text.start + self.text.positions;
        }
        let last = graph.nodes().len() - 1;
        let [n, rows, columns, features] = self.workspace.dims[last];
        let shape = match graph.kind(last) {
            crate::graph::Kind::Images(_) => vec![n, rows, columns, features],
            _ => vec![n, features],
        };
        Ok(Output { values: self.value(last).to_vec(), shape })
    }

    /// The values of a node.
    fn value(&self, value: Value) -> &[f32] {
        let slot = self.network.shared.program.values[value];
        &self.workspace.values[slot][..self.workspace.dims[value].iter().product()]
    }

    /// The values of a node that are combined with `len` others: of a text of which only the end is computed, the end.
    fn beside(&self, value: Value, len: usize) -> Result<&[f32], RuntimeError> {
        let values = self.value(value);
        if values.len() < len || (values.len() > len && self.text.positions == 0) {
            let found = format!("images from which {} values come beside {len}", values.len());
            return Err(RuntimeError::Input { found, expected: "as many on both sides".to_owned() });
        }
        Ok(tail(values, len))
    }

    /// The memory of a node's values, to be written to.
    fn take(&mut self, value: Value) -> Vec<f32> {
        std::mem::take(&mut self.workspace.values[self.network.shared.program.values[value]])
    }

    fn put(&mut self, value: Value, memory: Vec<f32>, dims: [usize; 4]) {
        self.workspace.values[self.network.shared.program.values[value]] = memory;
        self.workspace.dims[value] = dims;
    }

    fn products(&mut self, products: &[Product], images: &[f32]) -> Result<(), RuntimeError> {
        let started = self.times.is_some().then(Instant::now);
        let Shared { program, .. } = &*self.network.shared;
        // What each writes is taken out, so that the rest can be read.
        let mut outs: [(Vec<f32>, Vec<u8>); crate::program::TOGETHER] = Default::default();
        let mut dims = [[0; 4]; crate::program::TOGETHER];
        for (at, product) in products.iter().enumerate() {
            let input = self.workspace.dims[product.input];
            let kernel = &*self.network.kernels[product.of];
            if let (Kernel::Integer(kernel), false) = (kernel, product.has_codes) {
                let mut codes = std::mem::take(&mut self.workspace.codes[program.codes[product.of]]);
                let as_it_comes = product.input == 0 && program.input_as_it_comes;
                let x = if as_it_comes { images } else { self.value(product.input) };
                kernel.quantize(x, input, !as_it_comes, room(&mut codes, &[code_len(input)])?)?;
                self.workspace.codes[program.codes[product.of]] = codes;
            }
            dims[at] = match kernel {
                Kernel::Integer(kernel) => kernel.output(input)?,
                Kernel::WeightOnly(kernel) => [input[0], 1, 1, kernel.weight().layout().outputs()],
                Kernel::Float(layer) => layer.output(input)?,
            };
            if product.values {
                outs[at].0 = self.take(product.output);
            }
            if let Some(next) = product.codes_for {
                outs[at].1 = std::mem::take(&mut self.workspace.codes[program.codes[next]]);
            }
        }
        let result = self.compute(products, &mut outs, &dims, images);
        for ((product, (values, codes)), dims) in products.iter().zip(outs).zip(dims) {
            if product.values {
                self.workspace.values[program.values[product.output]] = values;
            }
            self.workspace.dims[product.output] = dims;
            if let Some(next) = product.codes_for {
                self.workspace.codes[program.codes[next]] = codes;
            }
        }
        if let (Some(times), Some(started)) = (&mut self.times, started) {
            let each = started.elapsed() / products.len() as u32;
            products.iter().for_each(|product| times[program.uses[product.of].layer] += each);
        }
        result
    }

    /// Computes products into memory that was taken out.
    fn compute(
        &self, products: &[Product], outs: &mut [(Vec<f32>, Vec<u8>)], dims: &[[usize; 4]], images: &[f32],
    ) -> Result<(), RuntimeError> {
        let Shared { program, .. } = &*self.network.shared;
        let mut jobs: Vec<Job> = Vec::with_capacity(products.len());
        for ((product, (values, codes)), &dims) in products.iter().zip(outs).zip(dims) {
            let (input, len) = (self.workspace.dims[product.input], count(&dims)?);
            let residual = product.residual.map(|residual| self.beside(residual, len)).transpose()?;
            match &*self.network.kernels[product.of] {
                Kernel::Integer(kernel) => {
                    let next = product.codes_for.map(|next| &*self.network.kernels[next]);
                    let to = match next {
                        Some(Kernel::Integer(next)) => Some((room(codes, &[code_len(dims)])?, next.input())),
                        _ => None,
                    };
                    let values = if product.values { Some(room(values, &dims)?) } else { None };
                    let results = Results { values, codes: to };
                    let codes = &self.workspace.codes[program.codes[product.of]][..code_len(input)];
                    jobs.push(Job { product: kernel, codes, dims: input, residual, results });
                }
                Kernel::WeightOnly(kernel) => {
                    let out = room(values, &dims)?;
                    kernel.run(self.value(product.input), input[0], out)?;
                    finish(out, residual, program.uses[product.of].activation);
                }
                Kernel::Float(layer) => {
                    let as_it_comes = product.input == 0 && program.input_as_it_comes;
                    let mut turned = vec![];
                    let x = if as_it_comes {
                        channels_last(images, input, room(&mut turned, &input)?);
                        &turned
                    } else {
                        self.value(product.input)
                    };
                    layer.run(x, input, residual, room(values, &dims)?)?;
                }
            }
        }
        if !jobs.is_empty() {
            run_together(&mut jobs)?;
        }
        Ok(())
    }

    fn op(
        &mut self, op: Op, inputs: &[Value], output: Value, images: &[f32], ids: &[u32],
    ) -> Result<(), RuntimeError> {
        let mut out = self.take(output);
        let from = inputs.first().map_or([0; 4], |&input| self.workspace.dims[input]);
        let [batch, rows, columns, channels] = from;
        let dims = match op {
            Op::Embedding(table) => {
                let table = &self.network.shared.tables[table];
                table.write(ids, room(&mut out, &[ids.len(), table.features()])?)?;
                [ids.len(), 1, 1, table.features()]
            }
            Op::RmsNorm(norm) => {
                let Shared { gains, graph, .. } = &*self.network.shared;
                let x = self.value(inputs[0]);
                let epsilon = graph.rms_norms()[norm].epsilon as f32;
                rms_norm(x, &gains[norm], epsilon, room(&mut out, &from)?)?;
                from
            }
            Op::Activation(activation) => {
                let x = self.value(inputs[0]);
                let out = room(&mut out, &from)?;
                out.copy_from_slice(x);
                finish(out, None, Some(activation));
                from
            }
            Op::Add | Op::Multiply => {
                let [a, b] = [0, 1].map(|at| self.value(inputs[at]).len());
                let (len, dims) = match a <= b {
                    true => (a, from),
                    false => (b, self.workspace.dims[inputs[1]]),
                };
                let pairs = self.beside(inputs[0], len)?.iter().zip(self.beside(inputs[1], len)?);
                let out = room(&mut out, &dims)?.iter_mut().zip(pairs);
                match op {
                    Op::Add => out.for_each(|(out, (a, b))| *out = a + b),
                    _ => out.for_each(|(out, (a, b))| *out = a * b),
                }
                dims
            }
            Op::MaxPool { kernel, stride, padding } => {
                let x = self.value(inputs[0]);
                let [to_rows, to_columns] = window_positions([rows, columns], kernel, stride, padding);
                let dims = [batch, to_rows, to_columns, channels];
                let out = room(&mut out, &dims)?;
                max_pool(x, from, dims, [kernel, stride, padding], out);
                dims
            }
            Op::Mean => {
                let x = self.value(inputs[0]);
                let out = room(&mut out, &[batch, channels])?;
                out.fill(f32::NAN); // of no pixels
                let image = (rows * columns * channels).max(1);
                for (out, image) in out.chunks_exact_mut(channels.max(1)).zip(x.chunks_exact(image)) {
                    out.fill(0.0);
                    for pixel in image.chunks_exact(channels) {
                        out.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += value);
                    }
                    out.iter_mut().for_each(|sum| *sum /= (rows * columns) as f32);
                }
                [batch, 1, 1, channels]
            }
            Op::Enlarge => {
                let [to_rows, to_columns] = self.workspace.sizes[inputs[1]];
                let x = self.value(inputs[0]);
                let dims = [batch, to_rows, to_columns, channels];
                let out = room(&mut out, &dims)?;
                let times = [to_rows.div_ceil(rows.max(1)), to_columns.div_ceil(columns.max(1))];
                for (at, out) in out.chunks_exact_mut(channels.max(1)).enumerate() {
                    let (image, row, column) =
                        (at / (to_rows * to_columns), at / to_columns % to_rows, at % to_columns);
                    let from = (image * rows + row / times[0]) * columns + column / times[1];
                    out.copy_from_slice(&x[from * channels..][..channels]);
                }
                dims
            }
            Op::Attention(of) => {
                self.workspace.values[self.network.shared.program.values[output]] = out;
                return self.attend(of, inputs, output);
            }
            Op::Concat => {
                let all: usize = inputs.iter().map(|&input| self.workspace.dims[input][3]).sum();
                let out = room(&mut out, &[batch, rows, columns, all])?;
                let mut first = 0;
                for &input in inputs {
                    let channels = self.workspace.dims[input][3];
                    let pixels = self.value(input).chunks_exact(channels);
                    for (out, pixel) in out.chunks_exact_mut(all).zip(pixels) {
                        out[first..first + channels].copy_from_slice(pixel);
                    }
                    first += channels;
                }
                [batch, rows, columns, all]
            }
            Op::Rows => {
                let item = |&input: &Value| self.workspace.dims[input][1..].iter().product::<usize>();
                let all = inputs.iter().map(item).fold(0, usize::saturating_add);
                let out = room(&mut out, &[batch, all])?;
                let mut first = 0;
                for input in inputs {
                    let len = item(input);
                    let items = self.value(*input).chunks_exact(len.max(1));
                    for (out, pixels) in out.chunks_exact_mut(all.max(1)).zip(items) {
                        out[first..first + len].copy_from_slice(pixels);
                    }
                    first += len;
                }
                [batch * all / channels.max(1), 1, 1, channels]
            }
            Op::Flatten => {
                let len = rows * columns * channels;
                let out = room(&mut out, &[batch, len])?;
                if inputs[0] == 0 && self.network.shared.program.input_as_it_comes {
                    out.copy_from_slice(images);
                } else {
                    channels_first(self.value(inputs[0]), from, out);
                }
                [batch, 1, 1, len]
            }
            Op::Images { .. } | Op::Tokens | Op::Layer(_) | Op::BatchNorm(_) => {
                unreachable!("{op:?} is no step of its own")
            }
        };
        self.put(output, out, dims);
        Ok(())
    }

    fn attend(&mut self, of: Attention, inputs: &[Value], output: Value) -> Result<(), RuntimeError> {
        let Attention { heads, kv_heads, head_dim, .. } = of;
        let Text { batch, positions, start, attentions, .. } = self.text;
        if self.text.tables.as_ref().is_none_or(|(known, _)| *known != of) {
            self.text.tables = Some((of, of.rope.tables(head_dim, start, positions)));
        }
        let Some((_, [cos, sin])) = self.text.tables.take() else { unreachable!("made above") };
        for &input in &inputs[..2] {
            let (mut x, dims) = (self.take(input), self.workspace.dims[input]);
            let each = positions * dims[3];
            let mut rows = x[..batch * each].chunks_exact_mut(each.max(1));
            let turned = rows.try_for_each(|x| rotate(x, &cos, &sin, head_dim));
            self.put(input, x, dims);
            turned?;
        }
        self.text.tables = Some((of, [cos, sin]));
        self.text.attentions += 1;
        let mut out = self.take(output);
        // What comes after the last attention is wanted for the last position only, if the text is read.
        let last = self.text.attentions == self.network.shared.program.attentions && self.cache.is_some();
        let (features, keys) = (heads * head_dim, kv_heads * head_dim);
        let rows = if last { 1 } else { positions };
        let mut cache = self.cache.take();
        let [q, k, v] = [0, 1, 2].map(|i| self.value(inputs[i]));
        let texts = room(&mut out, &[batch, rows, features])?.chunks_exact_mut((rows * features).max(1));
        let of =
            |text: usize, features: usize| text * positions * features..(text + 1) * positions * features;
        let attend = |(text, out): (usize, &mut [f32])| {
            let mut fresh;
            let slot = match &mut cache {
                Some(cache) => {
                    if cache.attentions.len() == attentions {
                        cache.attentions.push(AttentionCache::new(kv_heads, head_dim));
                    }
                    cache.attentions.get_mut(attentions).ok_or(RuntimeError::Cache)?
                }
                None => {
                    fresh = AttentionCache::new(kv_heads, head_dim);
                    &mut fresh
                }
            };
            slot.truncate(start); // what a pass left that failed
            slot.extend(&k[of(text, keys)], &v[of(text, keys)])?;
            Ok(attention(tail(&q[of(text, features)], rows * features), slot, heads, out)?)
        };
        let result = texts.enumerate().try_for_each(attend);
        self.cache = cache;
        self.put(output, out, [batch * rows, 1, 1, features]);
        result
    }
}

/// The last elements.
fn tail(values: &[f32], len: usize) -> &[f32] {
    &values[values.len().saturating_sub(len)..]
}

/// Adds a residual and applies an activation.
fn finish(out: &mut [f32], residual: Option<&[f32]>, activation: Option<Activation>) {
    if let Some(residual) = residual {
        out.iter_mut().zip(residual).for_each(|(out, residual)| *out += residual);
    }
    match activation {
        None => {}
        Some(Activation::Relu) => out.iter_mut().for_each(|x| *x = x.max(0.0)),
        Some(Activation::Relu6) => out.iter_mut().for_each(|x| *x = x.clamp(0.0, 6.0)),
        Some(Activation::Silu) => out.iter_mut().for_each(|x| *x /= 1.0 + (-*x).exp()),
    }
}

/// `[batch, channels, rows, columns]` to `dims`, with the channels last.
fn channels_last(x: &[f32], [batch, rows, columns, channels]: [usize; 4], out: &mut [f32]) {
    let positions = rows * columns;
    for image in 0..batch {
        for channel in 0..channels {
            let from = &x[(image * channels + channel) * positions..][..positions];
            let to = &mut out[image * positions * channels..][..positions * channels];
            to.iter_mut().skip(channel).step_by(channels).zip(from).for_each(|(to, from)| *to = *from);
        }
    }
}

/// The way back.
fn channels_first(x: &[f32], [batch, rows, columns, channels]: [usize; 4], out: &mut [f32]) {
    let positions = rows * columns;
    for image in 0..batch {
        for channel in 0..channels {
            let from = &x[image * positions * channels..][..positions * channels];
            let to = &mut out[(image * channels + channel) * positions..][..positions];
            to.iter_mut().zip(from.iter().skip(channel).step_by(channels)).for_each(|(to, from)| *to = *from);
        }
    }
}

/// The maximum of windows: `[kernel, stride, padding]`.
fn max_pool(
    x: &[f32], [_, rows, columns, channels]: [usize; 4], [_, to_rows, to_columns, _]: [usize; 4],
    [kernel, stride, padding]: [[usize; 2]; 3], out: &mut [f32],
) {
    let window = |at: usize, axis: usize, size: usize| {
        let first = at * stride[axis];
        first.saturating_sub(padding[axis])..size.min((first + kernel[axis]).saturating_sub(padding[axis]))
    };
    for (at, out) in out.chunks_exact_mut(channels.max(1)).enumerate() {
        let (image, row, column) = (at / (to_rows * to_columns), at / to_columns % to_rows, at % to_columns);
        out.fill(f32::NEG_INFINITY);
        for y in window(row, 0, rows) {
            for z in window(column, 1, columns) {
                let pixel = &x[((image * rows + y) * columns + z) * channels..][..channels];
                out.iter_mut().zip(pixel).for_each(|(max, &value)| *max = max.max(value));
            }
        }
    }
}
