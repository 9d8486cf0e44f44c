//! Layers as they are stored, and as they run at a precision.

use super::float::FloatLayer;
use crate::RuntimeError;
use crate::file::{Artifact, Values};
use crate::graph::Layer;
use crate::program::Use;
use crate::source::{Arithmetic, Quantization, Source};
use crate::table::Table;
use dr_kernels::host::{DynamicProduct, Product, StoredWeight, WeightOnly};
use dr_precision::Precision;
use rayon::prelude::*;
use std::sync::Arc;

/// What does not depend on the precision.
#[derive(Debug)]
pub(super) struct Shared {
    pub source: Source,
    /// Of each layer; `None` in floats.
    weights: Vec<Option<StoredWeight>>,
    /// The gains of RMSNorms.
    pub gains: Vec<Values<f32>>,
    pub tables: Vec<Table>,
}

/// A layer with what follows it, ready to run.
#[derive(Debug)]
pub(super) enum Kernel {
    Integer(Product),
    Dynamic(DynamicProduct),
    WeightOnly(WeightOnly),
    Float(FloatLayer),
}

impl Kernel {
    /// What a pass reads.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Integer(product) => product.bytes(),
            Self::Dynamic(product) => product.bytes(),
            Self::WeightOnly(product) => product.bytes(),
            Self::Float(layer) => layer.bytes(),
        }
    }
}

impl Shared {
    pub fn load(
        artifact: &Artifact, precision: Option<Precision>, arithmetic: Arithmetic,
    ) -> Result<Self, RuntimeError> {
        let source = Source::new(artifact, precision, arithmetic)?;
        let graph = &source.graph;
        let stored = |(quantization, of): (&Option<Quantization>, &Layer)| {
            quantization.as_ref().map(|quantization| quantization.stored(artifact, of)).transpose()
        };
        let weights = source.layers.iter().zip(graph.layers()).map(stored).collect::<Result<_, _>>()?;
        let gains = graph.rms_norms().iter().map(|norm| source.gain(norm)).collect::<Result<_, _>>()?;
        let tables =
            graph.embeddings().iter().map(|of| Table::read(&source, of)).collect::<Result<_, _>>()?;
        Ok(Self { source, weights, gains, tables })
    }

    /// All uses of layers at a precision.
    pub fn kernels(&self, precision: Option<Precision>) -> Result<Vec<Arc<Kernel>>, RuntimeError> {
        // Whether it exists is found out before anything is switched.
        precision.map_or(Ok(()), |precision| self.source.check(precision))?;
        let uses = self.source.program.uses.par_iter();
        uses.map(|of| self.kernel(of, precision).map(Arc::new)).collect()
    }

    fn kernel(&self, of: &Use, precision: Option<Precision>) -> Result<Kernel, RuntimeError> {
        let Self { source, weights, .. } = self;
        let (layer, affine) = (source.layer(of), source.affine(of, precision)?);
        let bias = layer.bias.then_some(&affine.shift[..]);
        let grouped = precision.map(|precision| source.grouped(of.layer, precision)).transpose()?;
        if let Some(weight) = grouped.flatten() {
            weight.settle();
            return Ok(Kernel::Dynamic(DynamicProduct::new(weight, bias)?));
        }
        let quantized = weights[of.layer].as_ref().zip(source.layers[of.layer].as_ref()).zip(precision);
        let Some(((stored, quantization), precision)) = quantized else {
            let weight =
                source.artifact.values(&format!("{}.weight", layer.name), &layer.kind.weight_shape())?;
            return Ok(Kernel::Float(FloatLayer::new(layer.kind, weight, affine, of.activation())));
        };
        let (bits, scales, input) = quantization.at(precision)?;
        let weight = stored.at(bits, scales)?;
        weight.settle();
        Ok(if source.is_weight_only(layer)? {
            Kernel::WeightOnly(WeightOnly::new(weight, bias)?)
        } else {
            let (gain, shift, options) = (&affine.gain, &affine.shift, layer.kind.options());
            Kernel::Integer(Product::new(weight, options, input, gain, shift, of.activation())?)
        })
    }
}
