//! Layers as they are stored, and as they run at a precision.

use super::float::FloatLayer;
use super::ops::Finish;
use crate::RuntimeError;
use crate::arrays::Array;
use crate::file::{Artifact, Values};
use crate::graph::{Binary, GraphError, Layer, Node, Op, TensorOp, Value};
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
    Dynamic(DynamicProduct, Finish),
    WeightOnly(WeightOnly, Finish),
    Float(FloatLayer),
}

impl Kernel {
    /// What a pass reads.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Integer(product) => product.bytes(),
            Self::Dynamic(product, _) => product.bytes(),
            Self::WeightOnly(product, _) => product.bytes(),
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
        let (layer, outputs) = (source.layer(of), source.layer(of).kind.outputs());
        let finish = Finish { slope: of.slope, activation: of.activation, last: self.last(of, outputs)? };
        // In integers, what is done before the activation is part of the scales.
        let integer = |weight, input, gain: &[f32], shift: &[f32]| {
            let [factor, addend] = finish.slope;
            let gain: Vec<f32> = gain.iter().map(|gain| factor * gain).collect();
            let shift: Vec<f32> = shift.iter().map(|shift| factor * shift + addend).collect();
            let product =
                Product::new(weight, layer.kind.options(), input, &gain, &shift, finish.activation)?;
            Ok::<_, RuntimeError>(Kernel::Integer(match finish.last.clone() {
                Some([gain, shift]) => product.with_last(gain, shift)?,
                None => product,
            }))
        };
        let calibrated = precision.map(|precision| source.calibrated(of.layer, precision)).transpose()?;
        if let (Some(pass), Some(stored)) = (calibrated.flatten(), &weights[of.layer]) {
            let weight = pass.weight(stored)?;
            weight.settle();
            return integer(weight, pass.quantizer(), &vec![1.0; outputs], &pass.bias);
        }
        let affine = source.affine(of, precision)?;
        let bias = layer.bias.then_some(&affine.shift[..]);
        let grouped = precision.map(|precision| source.grouped(of.layer, precision)).transpose()?;
        if let Some(weight) = grouped.flatten() {
            weight.settle();
            return Ok(Kernel::Dynamic(DynamicProduct::new(weight, bias)?, finish));
        }
        let quantized = weights[of.layer].as_ref().zip(source.layers[of.layer].as_ref()).zip(precision);
        let Some(((stored, quantization), precision)) = quantized else {
            let weight =
                source.artifact.values(&format!("{}.weight", layer.name), &layer.kind.weight_shape())?;
            return Ok(Kernel::Float(FloatLayer::new(layer.kind, weight, affine, finish)));
        };
        let (bits, scales, input) = quantization.at(precision)?;
        let weight = stored.at(bits, scales)?;
        weight.settle();
        match source.is_weight_only(layer)? {
            true => Ok(Kernel::WeightOnly(WeightOnly::new(weight, bias)?, finish)),
            false => integer(weight, input, &affine.gain, &affine.shift),
        }
    }

    /// The factors and addends that are folded into a layer, after its activation, as one of each for each output.
    fn last(&self, of: &Use, outputs: usize) -> Result<Option<[Vec<f32>; 2]>, RuntimeError> {
        if of.last.is_empty() {
            return Ok(None);
        }
        let graph = &self.source.graph;
        let values = |node: Value| {
            let constant = self.constants[node].as_ref().ok_or(GraphError::Value { node, value: node })?;
            Ok::<_, RuntimeError>(constant.clone().contiguous().floats()?.into_owned())
        };
        let (mut gain, mut shift) = (vec![1.0f64; outputs], vec![0.0f64; outputs]);
        for Node { op, inputs } in of.last.iter().map(|&node| &graph.nodes()[node]) {
            let (factors, addends) = match (op, &inputs[..]) {
                (Op::Array(TensorOp::Binary(function)), &[a, b]) => {
                    let first = self.constants[b].is_some();
                    let number =
                        f64::from(values(if first { b } else { a })?.first().copied().unwrap_or(f32::NAN));
                    let [factor, addend] = match (function, first) {
                        (Binary::Add, _) => [1.0, number],
                        (Binary::Sub, true) => [1.0, -number],
                        (Binary::Sub, false) => [-1.0, number],
                        (Binary::Div, _) => [1.0 / number, 0.0],
                        _ => [number, 0.0],
                    };
                    (vec![factor; outputs], vec![addend; outputs])
                }
                (_, &[_, gain, shift]) => {
                    let [factors, addends] = [values(gain)?, values(shift)?];
                    for found in [factors.len(), addends.len()] {
                        if found != outputs {
                            let (found, expected) =
                                (format!("factors of {found} channels"), format!("{outputs}"));
                            return Err(RuntimeError::Input { found, expected });
                        }
                    }
                    let wide = |of: Vec<f32>| of.into_iter().map(f64::from).collect::<Vec<f64>>();
                    (wide(factors), wide(addends))
                }
                _ => continue,
            };
            for output in 0..outputs {
                gain[output] *= factors[output];
                shift[output] = shift[output] * factors[output] + addends[output];
            }
        }
        let narrow = |of: Vec<f64>| of.into_iter().map(|of| of as f32).collect();
        Ok(Some([narrow(gain), narrow(shift)]))
    }
}
