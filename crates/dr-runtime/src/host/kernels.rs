//! Layers as they are stored, and as they run at a precision.

use super::float::FloatLayer;
use crate::RuntimeError;
use crate::arrays::Array;
use crate::file::{Artifact, Values};
use crate::graph::Layer;
use crate::program::Use;
use crate::source::{Arithmetic, Source};
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
    /// The constants of the nodes that are one.
    pub constants: Vec<Option<Array>>,
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
        let stored = |(at, of): (usize, &Layer)| {
            if let Some(Some(layer)) = source.calibrated.get(at) {
                return Ok(Some(layer.stored(of.kind.groups())?));
            }
            source.layers[at].as_ref().map(|quantization| quantization.stored(artifact, of)).transpose()
        };
        let weights = graph.layers().iter().enumerate().map(stored).collect::<Result<_, _>>()?;
        let gains = graph.rms_norms().iter().map(|norm| source.gain(norm)).collect::<Result<_, _>>()?;
        let tables =
            graph.embeddings().iter().map(|of| Table::read(&source, of)).collect::<Result<_, _>>()?;
        let mut constants = vec![None; graph.nodes().len()];
        for (at, constant) in graph.constants() {
            constants[at] = Some(Array::constant(artifact, constant)?);
        }
        Ok(Self { source, weights, gains, tables, constants })
    }

    /// All uses of layers, each layer at its precision, or in floats without any. Those that are the same in `before`, whose layers have
    /// these precisions, stay as they are.
    pub fn kernels(
        &self, precisions: Option<&[Precision]>, before: Option<(&[Precision], &[Arc<Kernel>])>,
    ) -> Result<Vec<Arc<Kernel>>, RuntimeError> {
        let uses = self.source.program.uses.par_iter().enumerate();
        uses.map(|(at, of)| {
            let precision = precisions.map(|precisions| precisions[of.layer]);
            let variant = |precision| self.source.variant(of, precision);
            let earlier = before.zip(precision).filter(|((earlier, _), precision)| {
                variant(*precision).is_some_and(|now| variant(earlier[of.layer]) == Some(now))
            });
            match earlier {
                Some(((_, kernels), _)) => Ok(kernels[at].clone()),
                None => self.kernel(of, precision).map(Arc::new),
            }
        })
        .collect()
    }

    fn kernel(&self, of: &Use, precision: Option<Precision>) -> Result<Kernel, RuntimeError> {
        let Self { source, weights, .. } = self;
        let calibrated = precision.map(|precision| source.calibrated(of.layer, precision)).transpose()?;
        if let (Some(pass), Some(stored)) = (calibrated.flatten(), &weights[of.layer]) {
            let (weight, options) = (pass.weight(stored)?, source.layer(of).kind.options());
            weight.settle();
            let gain = vec![1.0; pass.bias.len()];
            let product =
                Product::new(weight, options, pass.quantizer(), &gain, &pass.bias, of.activation())?;
            return Ok(Kernel::Integer(product));
        }
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
