//! A saved language model as GGUF: its codes, where blocks of 32 can hold them.

use super::BlockType;
use super::container::{Content, write};
use super::model::{FACTORS, Metadata, floats, gguf_name, metadata, row_order};
use super::tokenizer;
use crate::artifact::{Artifact, ArtifactError, ArtifactKind, Described};
use crate::config::task::LANGUAGE;
use dr_kernels::layout;
use dr_precision::{BitWidth, Granularity, Precision, PrecisionSet, semantics};
use dr_runtime::file::{Affine, NestedWeight, STORED};
use dr_runtime::graph::{Embedding, Graph};
use half::f16;
use std::collections::BTreeMap;
use std::fmt;
use thiserror::Error;

/// Why a model is not written as GGUF.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The model.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// No precision of several.
    #[error("no precision: expected one of {0}")]
    Precision(PrecisionSet),
    /// A network that GGUF has no name for, with what none of the names stands for.
    #[error("its network has {0}: expected what GGUF has")]
    Network(&'static str),
    /// The tokenizer.
    #[error(
        "its tokenizer is none that GGUF has: expected byte pairs with a known pre-tokenizer, or bytes of unknown characters"
    )]
    Tokenizer,
}

/// A model in GGUF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// The content of the file.
    pub bytes: Vec<u8>,
    /// How many tensors are of which type.
    pub types: BTreeMap<BlockType, usize>,
    /// The tensors among them whose codes no block of a type holds: those of more than 4 bits with an offset. They are rounded to Q8_0 again.
    pub rounded: usize,
}

impl fmt::Display for Exported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let types: Vec<_> =
            self.types.iter().map(|(kind, count)| format!("{count} {}", kind.name())).collect();
        write!(f, "tensors: {}", types.join(", "))?;
        match self.rounded {
            0 => Ok(()),
            count => write!(f, "; {count} of more than 4 bits with offsets rounded to Q8_0"),
        }
    }
}

/// The type whose blocks hold codes of a width: offsets need one of at most 4 bits.
///
/// ```text
/// Q4_0   d * (q - 8)   at most 4 bits       Q4_1   d * q + m   at most 4 bits, with offsets
/// Q8_0   d * q         more                 F16    inputs, or groups of them, that are no multiple of 32
/// ```
///
/// Scales and offsets are rounded to 16 bits; embeddings that are no codes become F16, norms and biases F32. A model in floats is F16 as a whole.
/// Of a model with several precisions `precision` is kept, or those of its plan; one with a single one needs none.
///
/// # Errors
/// Another network than a language model of [`LlamaConfig`](crate::models::LlamaConfig), or one that GGUF has no name for, a precision that it does not have, a tokenizer that GGUF does not have.
pub fn export(artifact: &Artifact, precision: Option<Precision>) -> Result<Exported, ExportError> {
    let description = &artifact.description;
    description.check_task(LANGUAGE)?;
    let (config, graph) = (description.llama()?, artifact.graph()?);
    let found = description.kind;
    let precision = match (description.precisions(), precision) {
        (Some(set), None) if set.len() == 1 || description.plan.is_some() => Some(set.highest()),
        (Some(set), None) => return Err(ExportError::Precision(set)),
        (Some(set), Some(precision)) if set.position(precision).is_none() => {
            return Err(ArtifactError::Precision { precision, expected: set }.into());
        }
        (None, Some(_)) => return Err(ArtifactError::Kind { found, expected: "one with precisions" }.into()),
        (_, precision) => precision,
    };
    let nested = match found {
        ArtifactKind::Nested => artifact.nested()?,
        _ => BTreeMap::new(),
    };
    let json = serde_json::from_slice(artifact.tokenizer()?).map_err(|_| ExportError::Tokenizer)?;
    let tokens = tokenizer::metadata(&json, config.vocabulary, &config.end_tokens);
    let Metadata { mut entries, factors } = metadata(&config).map_err(ExportError::Network)?;
    entries.extend(tokens.ok_or(ExportError::Tokenizer)?);
    let mut tensors: Vec<(String, Content)> = vec![];
    let mut rounded = 0;
    for table in graph.embeddings() {
        let Embedding::Own { name, vocabulary, features } = table else { continue };
        let matrix = match nested.get(name) {
            Some(weight) => Matrix::nested(weight, STORED),
            None => Matrix::floats(artifact, name, [*vocabulary, *features])?,
        };
        tensors.push((gguf_name(&format!("{name}.weight")), matrix.content(None, &mut rounded)));
    }
    for (at, layer) in graph.layers().iter().enumerate() {
        let name = gguf_name(&format!("{}.weight", layer.name));
        let outputs = layer.kind.outputs();
        let order = row_order(&name, outputs, &config);
        let matrix = matrix(artifact, graph, at, precision, &nested)?;
        let content = matrix.content(order.as_deref(), &mut rounded);
        let is_embedding = |table: &Embedding| matches!(table, Embedding::Layer(layer) if *layer == at);
        match graph.embeddings().iter().any(is_embedding) {
            true => tensors.push((gguf_name("embed_tokens.weight"), content)),
            false => tensors.push((name, content)),
        }
        if layer.bias {
            let name = format!("{}.bias", layer.name);
            let bias = artifact.f32(&name, &[outputs])?;
            let bias: Vec<f32> =
                (0..outputs).map(|row| bias[order.as_ref().map_or(row, |order| order[row])]).collect();
            tensors.push((gguf_name(&name), floats(vec![outputs], &bias)));
        }
    }
    for norm in graph.rms_norms() {
        let (name, shape) = (format!("{}.gamma", norm.name), vec![norm.features]);
        let gain = artifact.f32(&name, &shape)?;
        tensors.push((gguf_name(&name), floats(shape, gain)));
    }
    tensors.extend(factors.map(|factors| (FACTORS.to_owned(), floats(vec![factors.len()], &factors))));
    let mut types = BTreeMap::new();
    tensors.iter().for_each(|(_, content)| *types.entry(content.kind).or_default() += 1);
    Ok(Exported { bytes: write(&entries, &tensors), types, rounded })
}

/// A weight `[outputs, inputs]`.
enum Matrix {
    /// In floats.
    Floats([usize; 2], Vec<f32>),
    /// As codes of a width, and lines to weights for each group of inputs.
    Codes { shape: [usize; 2], bits: BitWidth, codes: Vec<i8>, group: usize, lines: Vec<Affine> },
}

/// The weight of a layer at a precision.
fn matrix(
    artifact: &Artifact, graph: &Graph, at: usize, precision: Option<Precision>,
    nested: &BTreeMap<String, NestedWeight>,
) -> Result<Matrix, ArtifactError> {
    let layer = &graph.layers()[at];
    let (name, description) = (&layer.name, &artifact.description);
    let &[outputs, inputs] = &layer.kind.weight_shape()[..] else {
        return Err(ArtifactError::network(format!("layer `{name}`: expected linear layers")));
    };
    let shape = [outputs, inputs];
    let Some((format, precision)) = description.layer_format(graph, at).zip(precision) else {
        return Matrix::floats(artifact, name, shape);
    };
    let (position, _) = format.positions(precision).unwrap_or_default();
    let (stored, bits) = (format.weights[0], format.weights[position]);
    if let Some(weight) = nested.get(name) {
        return Ok(Matrix::nested(weight, bits));
    }
    let group = match format.granularity {
        Granularity::Group(size) => size.get(),
        _ => inputs,
    };
    let tensor = format!("{name}.weight");
    let codes = match description.is_packed() {
        true => {
            let words = artifact.values::<u32>(&tensor, &[layout::packed_words(outputs * inputs, stored)])?;
            layout::unpack(&words, outputs * inputs, stored).map_err(ArtifactError::network)?
        }
        false => artifact.values::<i8>(&tensor, &shape)?.to_vec(),
    };
    let codes = codes.iter().map(|&code| semantics::switch(code.into(), stored, bits) as i8).collect();
    let scales = format!("{name}.quantizers.weight_scales.{position}");
    let scales = artifact.f32(&scales, &[outputs * inputs.div_ceil(group)])?;
    let lines = scales.iter().map(|&scale| Affine { scale, offset: 0.0 }).collect();
    Ok(Matrix::Codes { shape, bits, codes, group, lines })
}

/// Weights of a block.
const BLOCK: usize = 32;

impl Matrix {
    fn floats(artifact: &Artifact, name: &str, shape: [usize; 2]) -> Result<Self, ArtifactError> {
        Ok(Self::Floats(shape, artifact.f32(&format!("{name}.weight"), &shape)?.to_vec()))
    }

    fn nested(weight: &NestedWeight, bits: BitWidth) -> Self {
        let bits = if weight.widths().contains(&bits) { bits } else { weight.widest() };
        Self::Codes {
            shape: weight.shape(),
            bits,
            codes: weight.codes(bits).unwrap_or_default().into_owned(),
            group: weight.group().get(),
            lines: weight.affine(bits).unwrap_or_default(),
        }
    }

    /// The blocks, the rows in this order; counts what is rounded.
    fn content(&self, order: Option<&[usize]>, rounded: &mut usize) -> Content {
        let (Self::Floats(shape, _) | Self::Codes { shape, .. }) = self;
        let (kind, exact) = self.kind();
        *rounded += usize::from(!exact);
        let mut bytes = vec![];
        for row in 0..shape[0] {
            self.put_row(order.map_or(row, |order| order[row]), kind, exact, &mut bytes);
        }
        Content { shape: shape.to_vec(), kind, bytes }
    }

    /// The type of the blocks, and whether they hold the codes.
    fn kind(&self) -> (BlockType, bool) {
        let Self::Codes { shape: [_, inputs], bits, group, lines, .. } = self else {
            return (BlockType::F16, true);
        };
        if !inputs.is_multiple_of(BLOCK) || !(group.is_multiple_of(BLOCK) || group >= inputs) {
            return (BlockType::F16, true);
        }
        let symmetric = lines.iter().all(|line| line.offset == 0.0);
        match (*bits <= BitWidth::B4, symmetric) {
            (true, true) => (BlockType::Q4_0, true),
            (true, false) => (BlockType::Q4_1, true),
            (false, exact) => (BlockType::Q8_0, exact),
        }
    }

    fn put_row(&self, row: usize, kind: BlockType, exact: bool, out: &mut Vec<u8>) {
        let (shape, bits, codes, group, lines) = match self {
            Self::Floats([_, inputs], values) => {
                return values[row * inputs..][..*inputs].iter().for_each(|&value| put_half(value, out));
            }
            Self::Codes { shape, bits, codes, group, lines } => (shape, *bits, codes, *group, lines),
        };
        let inputs = shape[1];
        let (codes, lines) = (&codes[row * inputs..][..inputs], &lines[row * inputs.div_ceil(group)..]);
        let line = |at: usize| lines[at / group];
        if kind == BlockType::F16 {
            let value = |(at, &code): (usize, &i8)| put_half(line(at).value(code.into()), out);
            return codes.iter().enumerate().for_each(value);
        }
        for (block, codes) in codes.chunks_exact(BLOCK).enumerate() {
            let line = line(block * BLOCK);
            let nibbles = |out: &mut Vec<u8>, lowest: i8| {
                let (low, high) = codes.split_at(BLOCK / 2);
                out.extend(low.iter().zip(high).map(|(low, high)| {
                    (low + lowest).cast_unsigned() | (high + lowest).cast_unsigned() << 4
                }));
            };
            match (kind, exact) {
                (BlockType::Q4_0, _) => {
                    put_half(line.scale, out);
                    nibbles(out, 8);
                }
                (BlockType::Q4_1, _) => {
                    let lowest = 1i8 << (bits.bits() - 1);
                    put_half(line.scale, out);
                    put_half(line.value(-f32::from(lowest)), out);
                    nibbles(out, lowest);
                }
                (_, true) => {
                    put_half(line.scale, out);
                    out.extend(codes.iter().map(|code| code.cast_unsigned()));
                }
                (_, false) => {
                    let values = codes.iter().map(|&code| line.value(code.into()));
                    let largest = values.clone().fold(0f32, |largest, value| largest.max(value.abs()));
                    let step = f16::from_f32(largest / 127.0);
                    out.extend(step.to_le_bytes());
                    let step = step.to_f32().max(f32::MIN_POSITIVE);
                    out.extend(values.map(|value| ((value / step).round() as i8).max(-127).cast_unsigned()));
                }
            }
        }
    }
}

fn put_half(value: f32, out: &mut Vec<u8>) {
    out.extend(f16::from_f32(value).clamp(f16::MIN, f16::MAX).to_le_bytes());
}
