//! [`OnDevice`]: the steps of a program on tensors, with the channels last.

use super::ops::{TensorCache, Text, enlarge};
use super::{Value, wrong};
use crate::RuntimeError;
use crate::file::Artifact;
use crate::graph::{Embedding, Graph, Layer, Norm, Op};
use crate::program::{Product, Step, Use, checked_sizes};
use crate::source::{Arithmetic, Codes as StoredCodes, Quantization, Source};
use crate::table::Table;
use burn::tensor::activation::{relu, sigmoid, silu};
use burn::tensor::module::max_pool2d;
use burn::tensor::ops::MaxPoolOptions;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use dr_kernels::integer::Activation;
use dr_kernels::{Codes, IntProduct, IntWeight, PackedTensor, Wanted, WeightOnlyProduct, layout};
use dr_precision::{Precision, PrecisionPlan};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A saved network on tensors.
#[derive(Clone, Debug)]
pub(super) struct OnDevice {
    shared: Arc<Shared>,
    /// Of each use of a layer.
    kernels: Vec<Kernel>,
    precision: Precision,
}

#[derive(Debug)]
struct Shared {
    source: Source,
    weights: Vec<IntWeight>,
    /// Gains and epsilons of RMSNorms.
    norms: Vec<(Tensor<1>, f64)>,
    /// `[vocabulary, features]`
    tables: Vec<Tensor<2>>,
    device: Device,
}

#[derive(Clone, Debug)]
enum Kernel {
    Integer(Box<IntProduct>),
    WeightOnly(Box<WeightOnlyProduct>),
}

impl OnDevice {
    pub fn load(
        artifact: &Artifact, precision: Precision, arithmetic: Arithmetic, device: &Device,
    ) -> Result<Self, RuntimeError> {
        let source = Source::new(artifact, Some(precision), arithmetic)?;
        if !source.nested.is_empty() {
            return Err(RuntimeError::Nested);
        }
        if source.graph.has_arrays() {
            return Err(RuntimeError::Arrays);
        }
        if !source.calibrated.is_empty() {
            return Err(RuntimeError::Calibrated);
        }
        let graph = &source.graph;
        let stored = |(quantization, of): (&Option<Quantization>, &Layer)| {
            let quantization = quantization.as_ref().ok_or(RuntimeError::Float)?;
            let (shape, bits) = (of.kind.weight_shape(), quantization.format.weights[0]);
            let words = match quantization.codes(artifact, of)? {
                StoredCodes::Words(words) => words.to_vec(),
                StoredCodes::Bytes(codes) => layout::pack(&codes, bits)?,
            };
            let words = Tensor::<1, Int>::from_data(TensorData::from(&words[..]), (device, DType::U32));
            let spec = quantization.format.spec(bits);
            let packed =
                PackedTensor::new(words, floats(&quantization.scales[0], device), None, &shape, spec)?;
            Ok::<_, RuntimeError>(IntWeight::new(&packed, of.kind.groups())?)
        };
        let weights = source.layers.iter().zip(graph.layers()).map(stored).collect::<Result<_, _>>()?;
        let norm = |norm: &Norm| Ok::<_, RuntimeError>((floats(&source.gain(norm)?, device), norm.epsilon));
        let norms = graph.rms_norms().iter().map(norm).collect::<Result<_, _>>()?;
        let table = |embedding: &Embedding| {
            let all = Table::read(&source, embedding)?.all();
            Ok::<_, RuntimeError>(floats(&all, device).reshape(graph.embedding_size(embedding)))
        };
        let tables = graph.embeddings().iter().map(table).collect::<Result<_, _>>()?;
        let shared = Shared { source, weights, norms, tables, device: device.clone() };
        let kernels = shared.kernels(precision)?;
        Ok(Self { shared: Arc::new(shared), kernels, precision })
    }

    pub fn switch(&mut self, precision: Precision) -> Result<(), RuntimeError> {
        self.kernels = self.shared.kernels(precision)?;
        self.precision = precision;
        Ok(())
    }

    pub fn switch_plan(&mut self, plan: &PrecisionPlan) -> Result<(), RuntimeError> {
        let Shared { source, .. } = &*self.shared;
        let (precisions, edge) = (source.plan(plan)?, source.artifact.description.edge);
        let uses = source.program.uses.iter();
        self.kernels =
            uses.map(|of| self.shared.kernel(of, precisions[of.layer])).collect::<Result<_, _>>()?;
        self.precision = edge;
        Ok(())
    }

    pub const fn precision(&self) -> Precision {
        self.precision
    }

    pub fn graph(&self) -> &Graph {
        &self.shared.source.graph
    }

    pub fn model_bytes(&self) -> usize {
        let bytes = |kernel: &Kernel| match kernel {
            Kernel::Integer(product) => product.bytes(),
            Kernel::WeightOnly(product) => product.bytes(),
        };
        self.kernels.iter().map(bytes).sum()
    }

    pub fn forward(&self, input: Value, timed: bool) -> Result<(Tensor<2>, Vec<Duration>), RuntimeError> {
        let mut times = vec![Duration::ZERO; if timed { self.graph().layers().len() } else { 0 }];
        let result = self.run(input, None, &mut times)?;
        Ok((rows(result), times))
    }

    pub fn read(&self, tokens: &[u32], cache: &mut TensorCache) -> Result<Vec<f32>, RuntimeError> {
        let ids: Vec<i32> = tokens.iter().map(|&token| token.cast_signed()).collect();
        let vocabulary = self.shared.source.artifact.description.classes;
        if let Some(&found) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
            return Err(RuntimeError::Token { found, vocabulary });
        }
        let tokens = Tensor::<1, Int>::from_data(&ids[..], &self.shared.device).unsqueeze();
        let all = rows(self.run(Value::Tokens(tokens), Some(cache), &mut [])?);
        let [n, features] = all.dims();
        let last = all.slice([n - 1..n, 0..features]).into_data().convert::<f32>();
        last.try_into_vec().map_err(|error| wrong(&format!("{error:?}"), "logits that can be read"))
    }

    fn run(
        &self, input: Value, mut cache: Option<&mut TensorCache>, times: &mut [Duration],
    ) -> Result<Tensor<4>, RuntimeError> {
        let Shared { source, device, norms, tables, .. } = &*self.shared;
        let Source { graph, program, artifact, .. } = source;
        let nodes = graph.nodes().len();
        let mut values: Vec<Option<Tensor<4>>> = vec![None; nodes];
        let mut codes: Vec<Option<Codes>> = vec![None; program.uses.len()];
        let (mut images, mut tokens, mut text) = (None, None, None);
        match (input, graph.input()) {
            (Value::Images(x), Some(&Op::Images { channels })) if x.dims()[1] == channels => {
                values[0] = (!program.input_as_it_comes).then(|| x.clone().channels_last().inner());
                images = Some(x.channels_first().inner());
            }
            (Value::Tokens(ids), Some(Op::Tokens)) => {
                let [batch, positions] = ids.dims();
                let start = cache.as_ref().map_or(0, |cache| cache.positions());
                let (found, expected) = (start + positions, artifact.description.context());
                if positions == 0 || found > expected {
                    return Err(RuntimeError::Context { found, expected });
                }
                text = Some(Text::new(batch, positions, start));
                tokens = Some(ids.reshape([batch * positions]));
            }
            (found, _) => return Err(wrong(found.name(), &format!("{:?}", graph.input()))),
        }
        // Rows and columns that values are enlarged to, whether they are there or not.
        let sizes = images.as_ref().map_or_else(
            || Ok(vec![]),
            |images: &Tensor<4>| {
                let [_, _, rows, columns] = images.dims();
                checked_sizes(graph, [rows, columns])
            },
        )?;
        for (at, step) in program.steps.iter().enumerate() {
            let started = Instant::now();
            match step {
                Step::Products(products) => {
                    for product in products {
                        self.product(product, images.as_ref(), &mut values, &mut codes)?;
                    }
                    if !times.is_empty() {
                        // What goes wrong on the device shows when the result is read.
                        let _ = device.sync();
                        let each = started.elapsed() / products.len() as u32;
                        products.iter().for_each(|product| times[program.uses[product.of].layer] += each);
                    }
                }
                Step::Gate { gate, up, output } => {
                    values[*output] = Some(silu(value(&values, *gate)) * value(&values, *up));
                }
                Step::Op { op, inputs, output } => {
                    let of = |at: usize| value(&values, inputs[at]);
                    let result = match *op {
                        Op::Embedding(table) => {
                            let ids = tokens.clone().ok_or_else(|| wrong("images", "tokens"))?;
                            as_images(tables[table].clone().select(0, ids))
                        }
                        Op::RmsNorm(norm) => rms_norm(of(0), &norms[norm]),
                        Op::Activation(activation) => activate(of(0), activation.into()),
                        Op::Add => of(0) + of(1),
                        Op::Multiply => of(0) * of(1),
                        Op::MaxPool { kernel, stride, padding } => {
                            let options =
                                MaxPoolOptions::new(kernel).with_stride(stride).with_padding(padding);
                            max_pool2d(of(0).permute([0, 3, 1, 2]), options).permute([0, 2, 3, 1])
                        }
                        Op::Mean => of(0).mean_dims(&[1, 2]),
                        Op::Enlarge => enlarge(of(0), sizes[inputs[1]], 1),
                        Op::Attention(ref attention) => {
                            let text = text.as_mut().ok_or_else(|| wrong("images", "tokens"))?;
                            let inputs = [of(0), of(1), of(2)].map(rows);
                            as_images(text.attention(inputs, attention, cache.as_deref_mut()))
                        }
                        Op::Concat => Tensor::cat((0..inputs.len()).map(of).collect(), 3),
                        Op::Rows => {
                            let flat = |at: usize| {
                                let x = of(at);
                                let [batch, rows, columns, channels] = x.dims();
                                x.reshape([batch, rows * columns, channels])
                            };
                            let all: Tensor<3> = Tensor::cat((0..inputs.len()).map(flat).collect(), 1);
                            let [batch, positions, channels] = all.dims();
                            all.reshape([batch * positions, 1, 1, channels])
                        }
                        Op::Flatten => {
                            let x = match (inputs[0], &images) {
                                (0, Some(images)) => images.clone(),
                                _ => of(0).permute([0, 3, 1, 2]),
                            };
                            as_images(x.flatten(1, 3))
                        }
                        Op::Images { .. } | Op::Tokens | Op::Layer(_) | Op::BatchNorm(_) | Op::Array(_) => {
                            unreachable!("{op:?} is no step of its own")
                        }
                    };
                    values[*output] = Some(result);
                }
            }
            for (value, _) in values.iter_mut().zip(&program.until).filter(|(_, until)| **until == at) {
                *value = None;
            }
        }
        Ok(value(&values, nodes - 1))
    }

    fn product(
        &self, product: &Product, images: Option<&Tensor<4>>, values: &mut [Option<Tensor<4>>],
        codes: &mut [Option<Codes>],
    ) -> Result<(), RuntimeError> {
        let program = &self.shared.source.program;
        let residual = product.residual.map(|residual| value(values, residual));
        let result = match &self.kernels[product.of] {
            Kernel::Integer(kernel) => {
                let input = match (codes[product.of].take(), images) {
                    (Some(codes), _) => codes,
                    (None, Some(images)) if product.input == 0 && program.input_as_it_comes => {
                        kernel.quantize(images.clone(), false)?
                    }
                    (None, _) => kernel.quantize(value(values, product.input), true)?,
                };
                let next = product.codes_for.map(|next| &self.kernels[next]);
                let wanted = match (product.values, next) {
                    (true, Some(Kernel::Integer(next))) => Wanted::Both(next.input()),
                    (false, Some(Kernel::Integer(next))) => Wanted::Codes(next.input()),
                    _ => Wanted::Values,
                };
                let results = kernel.run(&input, residual, wanted)?;
                if let (Some(next), Some(made)) = (product.codes_for, results.codes) {
                    codes[next] = Some(made);
                }
                results.values
            }
            Kernel::WeightOnly(kernel) => {
                let y = as_images(kernel.run(rows(value(values, product.input)))?);
                let y = residual.map_or(y.clone(), |residual| y + residual);
                Some(activate(y, program.uses[product.of].activation))
            }
        };
        if result.is_some() {
            values[product.output] = result;
        }
        Ok(())
    }
}

impl Shared {
    fn kernels(&self, precision: Precision) -> Result<Vec<Kernel>, RuntimeError> {
        self.source.check(precision)?;
        self.source.program.uses.iter().map(|of| self.kernel(of, precision)).collect()
    }

    fn kernel(&self, of: &Use, precision: Precision) -> Result<Kernel, RuntimeError> {
        let source = &self.source;
        let (layer, affine) = (source.layer(of), source.affine(of, Some(precision))?);
        let quantization = source.layers[of.layer].as_ref().ok_or(RuntimeError::Float)?;
        let (bits, scales, input) = quantization.at(precision)?;
        let weight = self.weights[of.layer].at(bits, floats(scales, &self.device))?;
        Ok(if source.is_weight_only(layer)? {
            let bias = layer.bias.then_some(&affine.shift[..]);
            Kernel::WeightOnly(Box::new(WeightOnlyProduct::new(&weight, bias)?))
        } else {
            let (gain, shift, options) = (&affine.gain, &affine.shift, layer.kind.options());
            Kernel::Integer(Box::new(IntProduct::new(&weight, options, input, gain, shift, of.activation)?))
        })
    }
}

fn value(values: &[Option<Tensor<4>>], of: usize) -> Tensor<4> {
    values[of].clone().expect("steps are in order")
}

fn floats(values: &[f32], device: &Device) -> Tensor<1> {
    Tensor::from_data(TensorData::from(values), device)
}

/// `[n, features]` as images of one pixel.
fn as_images(x: Tensor<2>) -> Tensor<4> {
    let [n, features] = x.dims();
    x.reshape([n, 1, 1, features])
}

fn rows(x: Tensor<4>) -> Tensor<2> {
    let [n, rows, columns, features] = x.dims();
    x.reshape([n * rows * columns, features])
}

fn activate(x: Tensor<4>, activation: Activation) -> Tensor<4> {
    match activation {
        Activation::None => x,
        Activation::Relu => relu(x),
        Activation::Relu6 => x.clamp(0.0, 6.0),
        Activation::Unit => x.clamp(0.0, 1.0),
        Activation::HardSwish => x.clone() * (x / 6.0 + 0.5).clamp(0.0, 1.0),
        Activation::Sigmoid => sigmoid(x),
        Activation::Silu => silu(x),
    }
}

/// RMSNorm of runs of as many features as there are gains.
fn rms_norm(x: Tensor<4>, (gain, epsilon): &(Tensor<1>, f64)) -> Tensor<4> {
    let (dims, [features]) = (x.dims(), gain.dims());
    let count: usize = dims.iter().product();
    let x = x.reshape([count / features, features]);
    let root = (x.clone().square().mean_dim(1) + *epsilon).sqrt();
    ((x / root) * gain.clone().unsqueeze()).reshape(dims)
}
