//! [`calibrate`]: a trained network for images in stored codes that serve all precisions, without training.

use super::alone::{Alone, Squares, in_floats};
use super::factor::{Factor, divided};
use super::fold::{FACTORS, folded};
use super::grid::{Nest, Scratch};
use super::language::Progress;
use super::moments::{Line, Moments};
use super::patches::{Products, positions, products};
use super::planes::Planes;
use super::store::{Held, Store};
use super::weight::codes_of_outputs;
use crate::artifact::{
    Artifact, ArtifactError, ArtifactKind, Description, FORMAT_VERSION, SavedModel, TensorEntry,
};
use crate::data::Input;
use crate::nn::{
    Executor, Model, Pass, PrecisionNorm, QuantConv2d, QuantLinear, Table, Tensors, Value, fit_activation,
};
use burn::nn::RmsNorm;
use burn::tensor::Device;
use dr_kernels::KernelError;
use dr_kernels::host::{Product, Results, StoredWeight, code_len};
use dr_kernels::integer::{Activation, CodeQuantizer, Conv2dOptions};
use dr_precision::{Granularity, Precision, PrecisionSet};
use dr_runtime::arrays::Array;
use dr_runtime::file::{Affine, BatchNormKind, CalibratedError, CalibratedLayer, CalibratedPass, STORED};
use dr_runtime::graph::{Graph, Layer, LayerKind, Op};
use nalgebra::DMatrix;
use rayon::prelude::*;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// What [`calibrate`] makes.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkOptions {
    /// The precisions that the result has.
    pub precisions: PrecisionSet,
    /// The first and the last layer switch like all others; else they stay at 8 bits.
    pub switch_edge: bool,
    /// The weights of depthwise convolutions switch like all others; else they stay at 8 bits.
    pub switch_depthwise: bool,
    /// Layers with at most this share of all multiply-adds stay in floats: those whose quantization alone would change the outputs of the network by more than a
    /// hundredth, the worst for their multiply-adds first.
    pub float_share: f64,
    /// Values between layers take at most so many bytes of memory; the others wait in a file. The result does not depend on it.
    pub memory: u64,
    /// The folder of this file, which has no name and is gone in the end.
    pub folder: PathBuf,
}

/// What quantization leaves of a layer's outputs.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerNoise {
    /// The layer.
    pub name: String,
    /// At each precision of the set, the variance of the outputs in floats over the mean squared error, in dB: with all layers before it quantized, too.
    pub signal_to_noise: Vec<f64>,
    /// The relative error of the network's outputs at the highest precision if this layer alone is quantized, for some of the inputs.
    pub alone: f64,
    /// Whether it stays in floats for that.
    pub in_floats: bool,
}

/// Why a network cannot be quantized.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CalibrationError {
    /// No input to look at.
    #[error("no inputs to calibrate with: expected at least one")]
    NoInputs,
    /// A network for something else.
    #[error("the network takes tokens: expected one for images")]
    Tokens,
    /// Weights that are no numbers.
    #[error("layer `{0}` has weights that are not finite")]
    Weights(String),
    /// Values that are no numbers.
    #[error("layer `{0}` is given values that are not finite")]
    Inputs(String),
    /// The file of values that are not in memory.
    #[error("the file of values between layers: {0}: expected room for them, or more memory")]
    Values(#[source] io::Error),
    /// The network.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// Layers that cannot be computed in integers.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Layers that cannot be stored.
    #[error("layer `{name}` has {error}")]
    Layer {
        /// The layer.
        name: String,
        /// Why.
        error: CalibratedError,
    },
}

/// Quantizes a float network for images without training, as `inputs` show that it is used, batches of images `[batch, channels, rows, columns]`.
///
/// First, each layer is quantized alone, for a few inputs, which says what layers stay in floats. Then, one pass over the layers in their order: all inputs are computed in floats, and at each precision with the layers before already quantized, by the kernels that
/// will compute them. What is kept at a time are the inputs, and the values of all of them between layers that are still to be read, in floats, once and for each
/// precision: in memory as far as `options` have it, and in a file.
/// The report has the layers in that order.
///
/// # Errors
/// A network that is not in floats or not for images, no inputs, weights or values that are not finite.
pub fn calibrate(
    float: &Artifact, inputs: Vec<Value>, options: &NetworkOptions, mut progress: impl FnMut(Progress<'_>),
) -> Result<(Artifact, Vec<LayerNoise>), CalibrationError> {
    let folded = folded(float)?;
    let graph = folded.graph()?;
    if graph.input() == Some(&Op::Tokens) || !graph.embeddings().is_empty() {
        return Err(CalibrationError::Tokens);
    }
    if inputs.is_empty() {
        return Err(CalibrationError::NoInputs);
    }
    let NetworkOptions { precisions, switch_edge, switch_depthwise, float_share, memory, folder } =
        options.clone();
    let store = Store::new(memory, folder);
    let description = Description {
        format_version: FORMAT_VERSION,
        kind: ArtifactKind::Calibrated,
        precisions,
        edge: Precision::uniform(STORED),
        switch_edge,
        switch_depthwise,
        batch_norm: BatchNormKind::Shared,
        ..folded.description.clone()
    };
    let model = folded.network(&Device::flex())?;
    // Their streams take no more than twice the memory of those that follow.
    let items: usize = inputs.iter().map(Input::items).sum();
    let most = 2 * items * (1 + description.precisions.len()) / graph.layers().len().max(1);
    let some = inputs.iter().step_by(inputs.len().div_ceil(most.clamp(1, ALONE_INPUTS)));
    let some = some.filter_map(|batch| batch.clone().split(1).into_iter().next()).collect();
    let mut sweep = Sweep::new(&folded, &description, Streams::Layers, store.clone(), &mut progress);
    let results = sweep.run(&model, some)?;
    let of_layer = |(stream, operations)| {
        let mut squares = Squares::default();
        for (found, expected) in results.iter().flat_map(|of| of.stream(stream).iter().zip(of.stream(0))) {
            squares.add(&found.value(), &expected.value());
        }
        Alone { error: squares.error(), operations }
    };
    let alone: Vec<Alone> = (1..).zip(sweep.operations).map(of_layer).collect();
    let floats = in_floats(&alone, float_share);
    let names = floats.iter().map(|&at| graph.layers()[at].name.clone());
    let description = Description { in_floats: names.collect(), ..description };
    drop(results);
    let mut sweep = Sweep::new(&folded, &description, Streams::Precisions, store, &mut progress);
    sweep.run(&model, inputs)?;
    let Sweep { layers, mut noise, tensors, .. } = sweep;
    noise.iter_mut().zip(&alone).for_each(|(noise, alone)| noise.alone = alone.error);
    let mut all = folded.tensors.clone();
    for (Layer { name, .. }, layer) in graph.layers().iter().zip(&layers) {
        if let Some(layer) = layer {
            ["weight", "bias"].iter().for_each(|part| drop(all.remove(&format!("{name}.{part}"))));
            all.extend(layer.tensors(name));
        }
    }
    all.extend(tensors);
    Ok((Artifact { description, tensors: all }, noise))
}

/// Inputs at which layers are quantized alone, at most.
const ALONE_INPUTS: usize = 4;

/// A value in all streams, in floats first: of each batch of inputs. A stream that is not there, or empty, is as in floats.
#[derive(Clone)]
struct Values(Vec<Vec<Held>>);

impl Values {
    fn stream(&self, at: usize) -> &[Held] {
        self.0.get(at).filter(|stream| !stream.is_empty()).unwrap_or(&self.0[0])
    }
}

/// What streams there are after the one in floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Streams {
    /// One for each precision, in which all layers are quantized.
    Precisions,
    /// One for each layer, in which that alone is quantized, at the highest precision.
    Layers,
}

/// Computes all streams, operation by operation, and quantizes each layer before it is computed.
struct Sweep<'a, P> {
    /// The float network.
    folded: &'a Artifact,
    /// What is made of it.
    description: &'a Description,
    streams: Streams,
    store: Store,
    /// Batches of inputs.
    batches: usize,
    /// Those that are done; `None` in floats.
    layers: Vec<Option<CalibratedLayer>>,
    /// What is in the place of tensors of the float network: factors of channels, and layers in floats whose outputs have some.
    tensors: BTreeMap<String, TensorEntry>,
    noise: Vec<LayerNoise>,
    /// Multiply-adds of each layer.
    operations: Vec<f64>,
    error: Option<CalibrationError>,
    progress: &'a mut P,
}

impl<'a, P: FnMut(Progress<'_>)> Sweep<'a, P> {
    fn new(
        folded: &'a Artifact, description: &'a Description, streams: Streams, store: Store,
        progress: &'a mut P,
    ) -> Self {
        Self {
            folded,
            description,
            streams,
            store,
            batches: 0,
            layers: vec![],
            tensors: BTreeMap::new(),
            noise: vec![],
            operations: vec![],
            error: None,
            progress,
        }
    }

    /// The results for some batches of inputs.
    fn run(&mut self, model: &Model, inputs: Vec<Value>) -> Result<Vec<Values>, CalibrationError> {
        self.batches = inputs.len();
        let inputs = inputs.into_iter().map(|input| self.store.hold(input)).collect();
        let results = model.results(self, Values(vec![inputs]));
        let of_file = self.store.error().map(CalibrationError::Values);
        of_file.or(self.error.take()).map_or(Ok(results), Err)
    }

    /// Quantizes the next layer of the graph, and computes it; `compute` does so in floats.
    fn layer(&mut self, x: Values, mut compute: impl FnMut(Value) -> Value) -> Values {
        let Values(mut streams) = x;
        let store = self.store.clone();
        let mut in_floats =
            |stream: &[Held]| stream.iter().map(|x| store.hold(compute(x.value()))).collect::<Vec<_>>();
        let y = in_floats(&streams[0]);
        if self.error.is_none()
            && let Err(error) = self.step(&mut streams, &y, in_floats)
        {
            self.error = Some(error);
        }
        if self.error.is_some() {
            // Of no use, but of the sizes that what follows expects.
            streams.clear();
        }
        streams.resize(streams.len().max(1), vec![]);
        streams[0] = y;
        Values(streams)
    }

    /// Replaces the inputs of the next layer in all streams but the first by its outputs, which are `y` in floats.
    fn step(
        &mut self, streams: &mut Vec<Vec<Held>>, y: &[Held], mut in_floats: impl FnMut(&[Held]) -> Vec<Held>,
    ) -> Result<(), CalibrationError> {
        let at = self.layers.len();
        let Layer { name, kind, .. } = &self.folded.graph()?.layers()[at];
        let outputs: usize = y.iter().map(|y| y.dims().iter().product::<usize>()).sum();
        let inputs: usize = kind.weight_shape()[1..].iter().product();
        self.operations.push(outputs as f64 * inputs as f64);
        let x = streams[0].clone();
        let mut others = |streams: &mut [Vec<Held>]| {
            streams.iter_mut().skip(1).for_each(|stream| *stream = in_floats(stream));
        };
        match self.streams {
            Streams::Layers => {
                others(streams);
                let mut alone = vec![x.clone()];
                self.quantized(&x, y, &mut alone)?;
                streams.resize(at + 1, vec![]);
                streams.append(&mut alone);
            }
            Streams::Precisions => {
                streams.resize(1 + self.description.precisions.len(), vec![]);
                streams
                    .iter_mut()
                    .filter(|stream| stream.is_empty())
                    .for_each(|stream| stream.clone_from(&x));
                match self.description.in_floats.contains(name) {
                    true => {
                        others(streams);
                        self.left_in_floats(name, y, &streams[1..]);
                    }
                    false => self.quantized(&x, y, &mut streams[1..])?,
                }
            }
        }
        (self.progress)(Progress::Layer { name, done: at + 1, of: self.folded.graph()?.layers().len() });
        Ok(())
    }

    /// The next layer stays in floats; its outputs are `y` with those before in floats, too, and in `streams` with those quantized.
    fn left_in_floats(&mut self, name: &str, y: &[Held], streams: &[Vec<Held>]) {
        let noise = streams.iter().map(|stream| {
            let moments = moments_of(y, stream);
            Moments::signal_to_noise(&moments, &vec![Line { slope: 1.0, offset: 0.0 }; moments.len()])
        });
        let (name, signal_to_noise) = (name.to_owned(), noise.collect());
        self.noise.push(LayerNoise { name, signal_to_noise, alone: 0.0, in_floats: true });
        self.layers.push(None);
    }

    /// Quantizes the next layer, whose inputs and outputs in floats are `x` and `y`, and replaces the inputs of each precision by its outputs.
    fn quantized(
        &mut self, x: &[Held], y: &[Held], streams: &mut [Vec<Held>],
    ) -> Result<(), CalibrationError> {
        let (graph, at) = (self.folded.graph()?, self.layers.len());
        let Layer { name, kind, .. } = &graph.layers()[at];
        let (shape, outputs) = (kind.weight_shape(), kind.outputs());
        let mut weight = Cow::Borrowed(self.folded.f32(&format!("{name}.weight"), &shape)?);
        let bias = self.folded.f32(&format!("{name}.bias"), &[outputs])?;
        if !weight.iter().chain(bias).all(|value| value.is_finite()) {
            return Err(CalibrationError::Weights(name.clone()));
        }
        let mut scaled = Cow::Borrowed(x);
        let factors = format!("{name}.{FACTORS}");
        let before = depthwise_after(graph, at);
        if before.is_some() || self.folded.tensors.contains_key(&factors) {
            let sizes = channel_sizes(kind, &weight, x);
            let lines: Vec<Line> = sizes.iter().map(|size| Line { slope: 1.0 / size, offset: 0.0 }).collect();
            scaled = x.iter().map(|x| self.mapped(x, &lines)).collect();
            for stream in &mut *streams {
                *stream = std::mem::take(stream).into_iter().map(|x| self.mapped(&x, &lines)).collect();
            }
            let (weight, taps) = (weight.to_mut(), kind.weight_shape()[2..].iter().product::<usize>());
            let (group_inputs, group_outputs) = (shape[1], outputs / kind.groups());
            for (at, weight) in weight.chunks_mut(taps.max(1)).enumerate() {
                let (output, input) = (at / group_inputs, at % group_inputs);
                let size = sizes[output / group_outputs * group_inputs + input];
                weight.iter_mut().for_each(|weight| *weight *= size);
            }
            let gains: Vec<f32> = lines.iter().map(|line| line.slope).collect();
            match before {
                Some(before) => self.scale_outputs(before, &gains)?,
                None => drop(self.tensors.insert(factors, TensorEntry::f32([gains.len()], gains))),
            }
        }
        let (x, weight) = (&scaled[..], &weight[..]);
        let widths = self.description.precisions.iter().take(streams.len());
        let widths = widths.map(|of| self.description.calibrated_widths(graph, at, of)).collect::<Vec<_>>();
        let inputs = quantizers(x, &widths, graph.after_relu(at));
        let inputs = inputs.ok_or_else(|| CalibrationError::Inputs(name.clone()))?;
        let nest = Nest::of_outputs(widths.iter().map(|widths| widths.weights));
        let Choice { codes, lines } = choose(kind, weight, &nest, &widths, x, streams, &inputs);
        let options = match *kind {
            LayerKind::Conv2d { stride, padding, .. } => {
                Conv2dOptions { stride, padding, ..Default::default() }
            }
            LayerKind::Linear { .. } => Conv2dOptions::default(),
        };
        let stored = StoredWeight::from_codes(&codes, &shape, kind.groups(), STORED, Granularity::Channel)?;
        let (mut passes, mut noise) = (vec![], vec![]);
        let precisions = self.description.precisions.iter().zip(&widths).zip(inputs).zip(streams);
        for (((precision, &widths), input), stream) in precisions {
            let width = nest.widths().iter().position(|&bits| bits == widths.weights).unwrap_or_default();
            let part =
                |of: fn(Affine) -> f32| lines.iter().map(|lines| of(lines[width])).collect::<Vec<f32>>();
            let (mut scale, mut offset) = (part(|line| line.scale), part(|line| line.offset));
            let codes = stored.at(widths.weights, &scale)?.with_offsets(&offset)?;
            let gain = vec![1.0; outputs];
            let product = Product::new(codes, options, input, &gain, bias, Activation::None)?;
            let outputs = std::mem::take(stream).into_iter().map(|x| {
                let x = x.value();
                Ok(self.store.hold(computed(&product, &Planes::of(&x))?.like(&x)))
            });
            *stream = outputs.collect::<Result<_, KernelError>>()?;
            let moments = moments_of(y, stream);
            let lines: Vec<Line> = moments.iter().map(Moments::line).collect();
            let mut shift = bias.to_vec();
            for (at, Line { slope, offset: added }) in lines.iter().enumerate() {
                scale[at] *= slope;
                offset[at] *= slope;
                shift[at] = slope * bias[at] + added;
            }
            *stream = std::mem::take(stream).into_iter().map(|x| self.mapped(&x, &lines)).collect();
            noise.push(Moments::signal_to_noise(&moments, &lines));
            passes.push(CalibratedPass {
                precision,
                widths,
                scale: scale.into(),
                offset: offset.into(),
                bias: shift.into(),
                input: vec![input.scale, input.zero_point].into(),
            });
        }
        let layer = CalibratedLayer::new(&shape, codes, passes);
        let layer = layer.map_err(|error| CalibrationError::Layer { name: name.clone(), error })?;
        self.layers.push(Some(layer));
        let name = name.clone();
        self.noise.push(LayerNoise { name, signal_to_noise: noise, alone: 0.0, in_floats: false });
        Ok(())
    }

    /// A value with a line for each channel.
    fn mapped(&self, x: &Held, lines: &[Line]) -> Held {
        let x = x.value();
        let mut planes = Planes::of(&x);
        planes.map_channels(lines);
        self.store.hold(planes.like(&x))
    }

    /// Multiplies the outputs of an earlier layer by factors.
    fn scale_outputs(&mut self, layer: usize, factors: &[f32]) -> Result<(), CalibrationError> {
        let Layer { name, kind, .. } = &self.folded.graph()?.layers()[layer];
        if let Some(of) = &mut self.layers[layer] {
            let scaled = of.clone().times(factors);
            *of = scaled.map_err(|error| CalibrationError::Layer { name: name.clone(), error })?;
            return Ok(());
        }
        for (part, shape) in [("weight", kind.weight_shape()), ("bias", vec![kind.outputs()])] {
            let name = format!("{name}.{part}");
            let values = self.folded.f32(&name, &shape)?;
            let rows = values.chunks((values.len() / factors.len().max(1)).max(1)).zip(factors);
            let values = rows.flat_map(|(row, factor)| row.iter().map(move |value| value * factor)).collect();
            self.tensors.insert(name, TensorEntry::f32(shape, values));
        }
        Ok(())
    }
}

/// The layer whose result a depthwise convolution, and nothing else, reads as it is: factors of its channels can be that layer's.
fn depthwise_after(graph: &Graph, layer: usize) -> Option<usize> {
    let (nodes, readers) = (graph.nodes(), graph.readers());
    let node = nodes.iter().find(|node| node.op == Op::Layer(layer))?;
    let input = *node.inputs.first()?;
    match nodes[input].op {
        Op::Layer(before) if graph.layers()[layer].kind.is_depthwise() => {
            (readers[input].len() == 1 && !graph.results().contains(&input)).then_some(before)
        }
        _ => None,
    }
}

/// How large the values of each channel of a layer's input are, which are divided by that: of a depthwise convolution what is largest; of others, whose weights have one
/// range for all channels, what shares the differences between inputs and weights, `sqrt(max |x_c| / max |w_c|)`.
fn channel_sizes(kind: &LayerKind, weight: &[f32], x: &[Held]) -> Vec<f32> {
    let shape = kind.weight_shape();
    let (outputs, group_inputs) = (shape[0], shape[1]);
    let taps = (weight.len() / (outputs * group_inputs).max(1)).max(1);
    let mut largest = vec![0.0f32; group_inputs * kind.groups()];
    for planes in x.iter().map(Held::planes) {
        for (channel, largest) in largest.iter_mut().enumerate() {
            let values = planes.channel(channel).flatten();
            *largest = values.fold(*largest, |largest, value| largest.max(value.abs()));
        }
    }
    if group_inputs == 1 {
        return largest.into_iter().map(|size| if size > 0.0 { size } else { 1.0 }).collect();
    }
    let mut weights = vec![0.0f32; largest.len()];
    for (at, weight) in weight.chunks(taps).enumerate() {
        let (output, input) = (at / group_inputs, at % group_inputs);
        let channel = output / (outputs / kind.groups()) * group_inputs + input;
        weights[channel] = weight.iter().fold(weights[channel], |largest, weight| largest.max(weight.abs()));
    }
    let size = |(x, w): (f32, f32)| if x > 0.0 && w > 0.0 { (x / w).sqrt() } else { 1.0 };
    largest.into_iter().zip(weights).map(size).collect()
}

/// What a stream has to do with the one in floats.
fn moments_of(y: &[Held], stream: &[Held]) -> Vec<Moments> {
    Moments::of(y.len().min(stream.len()), |batch| [&y[batch], &stream[batch]].map(Held::planes))
}

/// How inputs of a layer become codes at each precision, by what they are in floats: at 8 bits over their whole range, with 0; at fewer with the
/// least squared error. `None` if some are not finite.
fn quantizers(x: &[Held], widths: &[Precision], after_relu: bool) -> Option<Vec<CodeQuantizer>> {
    let (mut low, mut high, mut sample) = (0.0f32, 0.0f32, vec![]);
    for x in x {
        let Planes { values, .. } = x.planes();
        if !values.iter().all(|value| value.is_finite()) {
            return None;
        }
        low = values.iter().copied().fold(low, f32::min);
        high = values.iter().copied().fold(high, f32::max);
        // An odd step visits all columns of the usual, even, image sizes.
        sample.extend(values.iter().step_by((values.len() / SAMPLE) | 1));
    }
    let of = |&Precision { activations: bits, .. }: &Precision| {
        let levels = bits.unsigned_max() as f32;
        let (scale, zero_point) = match bits == STORED {
            true if high > low => ((high - low) / levels, low),
            true => (1.0 / levels, 0.0),
            false => fit_activation(&sample, bits, after_relu),
        };
        CodeQuantizer { bits, scale, zero_point }
    };
    Some(widths.iter().map(of).collect())
}

/// How many values of a batch ranges of few bits are fitted to.
const SAMPLE: usize = 1 << 12;

/// Stored codes, and what they stand for at each width of the nest, by output.
struct Choice {
    codes: Vec<i8>,
    lines: Vec<Vec<Affine>>,
}

/// By how much the products of inputs are damped for targets, as a part of their mean.
const TARGET_DAMPING: f32 = 0.1;

/// Added to the importance of inputs, so that none has none.
const LEAST_IMPORTANCE: f32 = 1e-3;

/// Chooses the codes of a layer's weight for all widths of a nest.
///
/// A layer that reads all of its inputs, at more positions than an output has weights, has targets that know the quantized inputs `x_b`: the weights `W C_b H_b^-1`
/// with `H_b = sum x_b x_b^T` and `C_b = sum x x_b^T`, damped; and weights of later inputs make up for errors. In others, each weight has the code that is best for
/// it alone.
fn choose(
    kind: &LayerKind, weight: &[f32], nest: &Nest, widths: &[Precision], x: &[Held], streams: &[Vec<Held>],
    quantizers: &[CodeQuantizer],
) -> Choice {
    let outputs = kind.outputs();
    let inputs = weight.len() / outputs;
    // For each width, the first precision that has it.
    let of_width = |bits| widths.iter().position(|of| of.weights == bits).unwrap_or_default();
    let at: Vec<usize> = nest.widths().iter().map(|&bits| of_width(bits)).collect();
    let known = (kind.groups() == 1 && positions(kind, x) > inputs).then(|| {
        let streams: Vec<_> = at.iter().map(|&at| (&streams[at][..], quantizers[at])).collect();
        products(kind, x, &streams)
    });
    let mean = known.as_ref().map(|known| mean_hessian(known));
    let importance = match &mean {
        Some(hessian) => {
            let mean = (hessian.trace() / inputs as f32).max(f32::MIN_POSITIVE);
            hessian.diagonal().iter().map(|h| h / mean + LEAST_IMPORTANCE).collect()
        }
        None => vec![1.0; inputs],
    };
    let fit = |scratch: &mut Scratch, row| nest.fit_lines(row, &importance, scratch);
    let lines: Vec<Vec<Affine>> = weight.par_chunks(inputs).map_init(Scratch::default, fit).collect();
    let (Some(known), Some(hessian)) = (known, mean) else {
        let targets = vec![weight.to_vec(); at.len()];
        return Choice { codes: codes_of_outputs(&targets, &lines, nest, None), lines };
    };
    let rows = DMatrix::from_row_slice(outputs, inputs, weight);
    let targets = known.par_iter().map(|of| target(&rows, of)).collect::<Vec<_>>();
    let mut order: Vec<usize> = (0..inputs).collect();
    order.sort_by(|&a, &b| hessian[(b, b)].total_cmp(&hessian[(a, a)]));
    let ordered = DMatrix::from_fn(inputs, inputs, |i, j| hessian[(order[i], order[j])]);
    let factor = Factor::new(ordered.as_slice(), inputs);
    let in_order = |of: &DMatrix<f32>| {
        (0..outputs).flat_map(|row| order.iter().map(move |&input| of[(row, input)])).collect::<Vec<f32>>()
    };
    let targets: Vec<Vec<f32>> = targets.iter().map(in_order).collect();
    let chosen = codes_of_outputs(&targets, &lines, nest, factor.as_ref());
    let mut codes = vec![0; chosen.len()];
    for (codes, chosen) in codes.chunks_mut(inputs).zip(chosen.chunks(inputs)) {
        order.iter().zip(chosen).for_each(|(&input, &code)| codes[input] = code);
    }
    Choice { codes, lines }
}

fn mean_hessian(known: &[Products]) -> DMatrix<f32> {
    let mut mean = known[0].hessian.clone();
    known[1..].iter().for_each(|of| mean += &of.hessian);
    mean / known.len() as f32
}

/// What weights are to be where inputs are quantized.
fn target(weights: &DMatrix<f32>, Products { hessian, cross }: &Products) -> DMatrix<f32> {
    let inputs = hessian.nrows();
    let damping = TARGET_DAMPING * hessian.trace() / inputs as f32;
    let [mut hessian, mut cross] = [hessian.clone(), cross.clone()];
    for i in 0..inputs {
        hessian[(i, i)] += damping;
        cross[(i, i)] += damping;
    }
    divided(&(weights * cross), &hessian, 1e-6).unwrap_or_else(|| weights.clone())
}

/// What a product makes of values.
fn computed(product: &Product, x: &Planes) -> Result<Planes, KernelError> {
    let [batch, channels, rows, columns] = x.dims;
    let dims = [batch, rows, columns, channels];
    let mut codes = vec![0; code_len(dims)];
    product.quantize(&x.values, dims, false, &mut codes)?;
    let [_, rows, columns, channels] = product.output(dims)?;
    let mut values = vec![0.0; batch * rows * columns * channels];
    product.run(&codes, dims, None, Results { values: Some(&mut values), codes: None })?;
    Ok(Planes::from_channels_last(&values, [batch, channels, rows, columns]))
}

impl<P: FnMut(Progress<'_>)> Executor for Sweep<'_, P> {
    type Value = Values;

    fn conv2d(&mut self, x: Values, layer: &QuantConv2d, norm: Option<&PrecisionNorm>) -> Values {
        let pass = Pass::float();
        self.layer(x, |x| Tensors::new(&pass).conv2d(x, layer, norm))
    }

    fn linear(&mut self, x: Values, layer: &QuantLinear) -> Values {
        let pass = Pass::float();
        self.layer(x, |x| Tensors::new(&pass).linear(x, layer))
    }

    fn rms_norm(&mut self, Values(streams): Values, norm: &RmsNorm) -> Values {
        let pass = Pass::float();
        let of = |x: Held| self.store.hold(Tensors::new(&pass).rms_norm(x.value(), norm));
        Values(streams.into_iter().map(|stream| stream.into_iter().map(of).collect()).collect())
    }

    fn embedding(&mut self, tokens: Values, _: Table<'_>) -> Values {
        unreachable!("a network for images has no embeddings: {} streams", tokens.0.len())
    }

    fn constant(&mut self, array: &Array) -> Values {
        Values(vec![vec![self.store.hold(Value::Array(array.clone())); self.batches]])
    }

    fn op(&mut self, op: Op, inputs: Vec<Values>) -> Values {
        let (pass, mut inputs) = (Pass::float(), inputs);
        let streams = inputs.iter().map(|Values(streams)| streams.len()).max().unwrap_or(0);
        let stream = |at: usize| {
            let is_own = |Values(streams): &Values| streams.get(at).is_some_and(|stream| !stream.is_empty());
            if !inputs.iter().any(is_own) {
                return vec![];
            }
            let of = |values: &mut Values| match is_own(values) {
                true => std::mem::take(&mut values.0[at]).into_iter(),
                false => values.0[0].clone().into_iter(),
            };
            let mut inputs: Vec<_> = inputs.iter_mut().map(of).collect();
            let batch = |_| {
                let inputs = inputs.iter_mut().filter_map(|of| Some(of.next()?.value())).collect();
                self.store.hold(Tensors::new(&pass).op(op.clone(), inputs))
            };
            (0..self.batches).map(batch).collect()
        };
        // The one in floats, which others may read, is the last.
        let mut all: Vec<Vec<Held>> = (0..streams).rev().map(stream).collect();
        all.reverse();
        Values(all)
    }
}
