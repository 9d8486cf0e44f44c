//! What the tensors of a file say about layers and normalizations.

use crate::RuntimeError;
use crate::file::{Artifact, ArtifactError, LayerFormat, TensorValues, Values};
use crate::graph::{Embedding, Graph, Layer, Norm};
use dr_kernels::host::StoredWeight;
use dr_kernels::integer::CodeQuantizer;
use dr_kernels::layout::{ScaleLayout, packed_words};
use dr_precision::{BitWidth, Precision};
use std::fmt::Display;

/// A quantized layer's codes, as they are stored.
pub(crate) enum Codes<'a> {
    /// One byte each.
    Bytes(&'a [i8]),
    /// Packed in words.
    Words(&'a [u32]),
}

/// How a layer is quantized at all its widths.
#[derive(Clone, Debug)]
pub(crate) struct Quantization {
    pub format: LayerFormat,
    /// `[outputs, groups]` for each width of the weights.
    pub scales: Vec<Values<f32>>,
    /// For each width of the inputs.
    pub inputs: Vec<CodeQuantizer>,
}

impl Quantization {
    /// The scales of a layer; `None` in floats.
    pub fn read(artifact: &Artifact, graph: &Graph, layer: usize) -> Result<Option<Self>, RuntimeError> {
        let Some(format) = artifact.description.layer_format(graph, layer) else { return Ok(None) };
        let Layer { name, kind, .. } = &graph.layers()[layer];
        let part = |part: &str, i: usize| format!("{name}.quantizers.{part}.{i}");
        let count = ScaleLayout::weights(&kind.weight_shape(), format.granularity)?.scales();
        let scales = (0..format.weights.len())
            .map(|i| artifact.values(&part("weight_scales", i), &[count]))
            .collect::<Result<_, _>>()?;
        let input = |(i, &bits): (usize, &BitWidth)| {
            let scale = artifact.f32(&part("activation_scales", i), &[1])?[0];
            let zero_point = artifact.f32(&part("zero_points", i), &[1])?[0];
            Ok::<_, ArtifactError>(CodeQuantizer { bits, scale, zero_point })
        };
        let inputs = format.activations.iter().enumerate().map(input).collect::<Result<_, _>>()?;
        Ok(Some(Self { format, scales, inputs }))
    }

    /// The codes of a layer.
    pub fn codes<'a>(&self, artifact: &'a Artifact, of: &Layer) -> Result<Codes<'a>, RuntimeError> {
        let (name, shape) = (format!("{}.weight", of.name), of.kind.weight_shape());
        Ok(match artifact.description.is_packed() {
            true => {
                let elements = ScaleLayout::weights(&shape, self.format.granularity)?.elements();
                let words = packed_words(elements, self.format.weights[0]);
                Codes::Words(artifact.u32(&name, &[words])?)
            }
            false => Codes::Bytes(artifact.i8(&name, &shape)?),
        })
    }

    /// Positions of a precision's widths among those of weights and inputs.
    pub fn positions(&self, precision: Precision) -> Result<(usize, usize), RuntimeError> {
        self.format.positions(precision).ok_or_else(|| {
            let (weights, inputs) = (list(&self.format.weights), list(&self.format.activations));
            let expected = format!("weights of {weights} bits and activations of {inputs} bits");
            RuntimeError::Precision { precision, expected }
        })
    }
}

pub(crate) fn list<T: Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// What is done to each output of a layer: `gain * y + shift`.
#[derive(Clone, Debug)]
pub(crate) struct Affine {
    pub gain: Vec<f32>,
    pub shift: Vec<f32>,
}

impl Affine {
    /// A layer's bias, and the BatchNorm after it, which is the one of `precision`.
    pub fn read(
        artifact: &Artifact, layer: &Layer, norm: Option<&Norm>, precision: Option<Precision>,
    ) -> Result<Self, RuntimeError> {
        let outputs = layer.kind.outputs();
        let bias = match layer.bias {
            true => artifact.f32(&format!("{}.bias", layer.name), &[outputs])?.to_vec(),
            false => vec![0.0; outputs],
        };
        let Some(norm) = norm else { return Ok(Self { gain: vec![1.0; outputs], shift: bias }) };
        let number = match precision {
            None => 0,
            Some(precision) => artifact.description.batch_norm(precision).ok_or_else(|| {
                let expected = format!("one of {}", artifact.description.precisions);
                RuntimeError::Precision { precision, expected }
            })?,
        };
        let read = |part: &str| artifact.f32(&format!("{}.norms.{number}.{part}", norm.name), &[outputs]);
        let [gamma, beta] = [read("gamma")?, read("beta")?];
        let [mean, variance] = [read("running_mean")?, read("running_var")?];
        // In f64, and rounded once.
        let gain = |i: usize| f64::from(gamma[i]) / (f64::from(variance[i]) + norm.epsilon).sqrt();
        let shift = |i: usize| f64::from(beta[i]) + gain(i) * (f64::from(bias[i]) - f64::from(mean[i]));
        Ok(Self {
            gain: (0..outputs).map(|i| gain(i) as f32).collect(),
            shift: (0..outputs).map(|i| shift(i) as f32).collect(),
        })
    }
}

/// The rows of features that tokens have.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    vocabulary: usize,
    features: usize,
    rows: Rows,
}

#[derive(Clone, Debug)]
enum Rows {
    Floats(Values<f32>),
    /// The stored codes of a layer, and the scales of their groups, `[vocabulary, groups]`.
    Codes {
        codes: Values<i8>,
        scales: Values<f32>,
        run: usize,
    },
}

impl Table {
    pub fn read(artifact: &Artifact, graph: &Graph, embedding: &Embedding) -> Result<Self, RuntimeError> {
        let [vocabulary, features] = graph.embedding_size(embedding);
        let shape = [vocabulary, features];
        let layer = match embedding {
            Embedding::Own { name, .. } => {
                let rows = Rows::Floats(artifact.values(&format!("{name}.weight"), &shape)?);
                return Ok(Self { vocabulary, features, rows });
            }
            Embedding::Layer(layer) => *layer,
        };
        let of = &graph.layers()[layer];
        let name = format!("{}.weight", of.name);
        let rows = match Quantization::read(artifact, graph, layer)? {
            None => Rows::Floats(artifact.values(&name, &shape)?),
            Some(quantization) => {
                let groups =
                    ScaleLayout::weights(&shape, quantization.format.granularity)?.scales() / vocabulary;
                let codes = match quantization.codes(artifact, of)? {
                    Codes::Bytes(_) => match &artifact.tensors[&name].data {
                        TensorValues::I8(codes) => codes.clone(),
                        other => return Err(ArtifactError::wrong_type(&name, "I8", other).into()),
                    },
                    Codes::Words(words) => {
                        let bits = quantization.format.weights[0];
                        let (granularity, scales) =
                            (quantization.format.granularity, &quantization.scales[0]);
                        let stored = StoredWeight::from_packed(words, &shape, 1, bits, granularity)?;
                        let codes = stored.at(bits, scales)?.codes();
                        codes.into_iter().map(|code| code as i8).collect::<Vec<_>>().into() // at most 8 bits
                    }
                };
                let run = match quantization.format.granularity {
                    dr_precision::Granularity::Group(size) => size.get().min(features),
                    _ => features.div_ceil(groups.max(1)),
                };
                Rows::Codes { codes, scales: quantization.scales[0].clone(), run: run.max(1) }
            }
        };
        Ok(Self { vocabulary, features, rows })
    }

    pub const fn features(&self) -> usize {
        self.features
    }

    /// Writes the features of tokens into rows.
    pub fn write(&self, tokens: &[u32], out: &mut [f32]) -> Result<(), RuntimeError> {
        for (&token, out) in tokens.iter().zip(out.chunks_exact_mut(self.features)) {
            let at = token as usize;
            if at >= self.vocabulary {
                return Err(RuntimeError::Token { found: token, vocabulary: self.vocabulary });
            }
            let row = at * self.features..(at + 1) * self.features;
            match &self.rows {
                Rows::Floats(values) => out.copy_from_slice(&values[row]),
                Rows::Codes { codes, scales, run } => {
                    let groups = self.features.div_ceil(*run);
                    let scales = &scales[at * groups..][..groups];
                    let codes = codes[row].chunks(*run);
                    for ((out, codes), scale) in out.chunks_mut(*run).zip(codes).zip(scales) {
                        out.iter_mut().zip(codes).for_each(|(out, &code)| *out = scale * f32::from(code));
                    }
                }
            }
        }
        Ok(())
    }

    /// The whole table.
    #[cfg(feature = "burn")]
    pub fn all(&self) -> Vec<f32> {
        let mut all = vec![0.0; self.vocabulary * self.features];
        let tokens: Vec<u32> = (0..self.vocabulary as u32).collect();
        self.write(&tokens, &mut all).expect("all of them are in it");
        all
    }
}
