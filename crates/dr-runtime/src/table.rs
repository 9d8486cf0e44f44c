//! [`Table`]: the rows of features that tokens have.

use crate::RuntimeError;
use crate::file::{NestedWeight, STORED, Values};
use crate::graph::Embedding;
use crate::source::{Codes, Source};
use dr_precision::Granularity;

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
    /// With codes of the stored width.
    Nested(NestedWeight),
}

impl Table {
    pub fn read(source: &Source, embedding: &Embedding) -> Result<Self, RuntimeError> {
        let Source { artifact, graph, layers, nested, .. } = source;
        let [vocabulary, features] = graph.embedding_size(embedding);
        let floats = |name: &str| artifact.values(&format!("{name}.weight"), &[vocabulary, features]);
        let name = match embedding {
            Embedding::Own { name, .. } => name,
            Embedding::Layer(layer) => &graph.layers()[*layer].name,
        };
        let rows = match embedding {
            _ if nested.contains_key(name) => match &nested[name] {
                weight if weight.widest() == STORED => Rows::Nested(weight.clone()),
                weight => Rows::Floats(weight.dequantized(weight.widest()).unwrap_or_default().into()),
            },
            Embedding::Own { name, .. } => Rows::Floats(floats(name)?),
            Embedding::Layer(layer) => match (&graph.layers()[*layer], &layers[*layer]) {
                (of, None) => Rows::Floats(floats(&of.name)?),
                (of, Some(quantization)) => {
                    let (granularity, bits) =
                        (quantization.format.granularity, quantization.format.weights[0]);
                    let scales = &quantization.scales[0];
                    let codes = match quantization.codes(artifact, of)? {
                        Codes::Bytes(codes) => codes,
                        Codes::Words(_) => {
                            let codes = quantization.stored(artifact, of)?.at(bits, scales)?.codes();
                            codes.into_iter().map(|code| code as i8).collect::<Vec<_>>().into() // at most 8 bits
                        }
                    };
                    let run = match granularity {
                        Granularity::Group(size) => size.get().min(features),
                        _ => features.div_ceil((scales.len() / vocabulary).max(1)),
                    };
                    Rows::Codes { codes, scales: scales.clone(), run: run.max(1) }
                }
            },
        };
        Ok(Self { vocabulary, features, rows })
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
                Rows::Nested(weight) => weight.write_row(at, out),
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
