//! [`Source`]: a saved network as both engines start from it, and what the tensors of its file say about layers.

use crate::RuntimeError;
use crate::file::{
    Artifact, ArtifactError, ArtifactKind, CalibratedLayer, CalibratedPass, Description, LayerFormat,
    NestedWeight, PlanFitError, Values,
};
use crate::graph::{Graph, Layer, LayerKind, Norm};
use crate::program::{Program, Use};
use dr_kernels::Conv2dOptions;
use dr_kernels::host::{GroupedWeight, StoredWeight};
use dr_kernels::integer::CodeQuantizer;
use dr_kernels::layout::{ScaleLayout, packed_words};
use dr_precision::{BitWidth, Precision, PrecisionPlan};
use std::collections::BTreeMap;
use std::fmt::Display;

/// What layers compute in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arithmetic {
    /// Codes of inputs times codes of weights.
    #[default]
    Integer,
    /// Inputs in floats times packed weights: for linear layers whose inputs do not bear few bits.
    WeightOnly,
}

/// What does not depend on the precision, nor on where a network computes.
#[derive(Debug)]
pub(crate) struct Source {
    pub artifact: Artifact,
    pub graph: Graph,
    pub program: Program,
    /// Of each layer; `None` in floats, and of nested weights or calibrated layers.
    pub layers: Vec<Option<Quantization>>,
    /// Calibrated layers, in the order of the graph, and `None` for those in floats; none in other files.
    pub calibrated: Vec<Option<CalibratedLayer>>,
    /// Nested weights, by the names of their layers and tables.
    pub nested: BTreeMap<String, NestedWeight>,
    pub arithmetic: Arithmetic,
}

impl Source {
    /// The network of a file, which is to compute at `precision`, or in floats without one.
    pub fn new(
        artifact: &Artifact, precision: Option<Precision>, arithmetic: Arithmetic,
    ) -> Result<Self, RuntimeError> {
        artifact.description.check()?;
        let graph = artifact.graph()?.clone();
        match (precision, artifact.description.precisions()) {
            (None, None) => {}
            (None, Some(set)) => {
                let (precision, expected) = (set.highest(), "a float network".to_owned());
                return Err(RuntimeError::Precision { precision, expected });
            }
            (Some(_), None) => return Err(RuntimeError::Float),
            (Some(precision), Some(set)) if set.position(precision).is_none() => {
                return Err(RuntimeError::Precision { precision, expected: format!("one of {set}") });
            }
            (Some(_), Some(_)) => {}
        }
        let nested = match (artifact.description.kind, arithmetic) {
            (ArtifactKind::Nested, Arithmetic::WeightOnly) => return Err(RuntimeError::Nested),
            (ArtifactKind::Nested, Arithmetic::Integer) => artifact.nested()?,
            _ => BTreeMap::new(),
        };
        let calibrated = match (artifact.description.kind, arithmetic) {
            (ArtifactKind::Calibrated, Arithmetic::WeightOnly) => return Err(RuntimeError::Calibrated),
            (ArtifactKind::Calibrated, Arithmetic::Integer) => artifact.calibrated()?,
            _ => vec![],
        };
        // Only what is quantized with scales that are known before takes codes of others.
        let codes = precision.is_some() && arithmetic == Arithmetic::Integer && nested.is_empty();
        let in_floats = |layer: usize| calibrated.get(layer).is_some_and(Option::is_none);
        let program = Program::new(&graph, |layer| codes && !in_floats(layer));
        let quantization = |layer| match nested.is_empty() && calibrated.is_empty() {
            true => Quantization::read(artifact, &graph, layer),
            false => Ok(None),
        };
        let layers = (0..graph.layers().len()).map(quantization).collect::<Result<_, _>>()?;
        Ok(Self { artifact: artifact.clone(), graph, program, layers, calibrated, nested, arithmetic })
    }

    /// The precision of each layer with a plan.
    pub fn plan(&self, plan: &PrecisionPlan) -> Result<Vec<Precision>, RuntimeError> {
        let Description { kind, mixed, .. } = self.artifact.description;
        let one_by_one = match kind {
            ArtifactKind::Nested => self.artifact.description.plan.is_none(),
            // The statistics of a BatchNorm are of the plan as a whole.
            ArtifactKind::MultiPrecision => mixed.is_some() && self.graph.batch_norms().is_empty(),
            _ => false,
        };
        if !one_by_one {
            return Err(PlanFitError::Fixed.into());
        }
        Ok(self.artifact.description.layers_of_plan(&self.graph, plan)?)
    }

    /// What of a precision makes a difference to a use of a layer: the widths of its weight and of its input, and its BatchNorm.
    pub fn variant(&self, of: &Use, precision: Precision) -> Option<(BitWidth, BitWidth, Option<usize>)> {
        let description = &self.artifact.description;
        if description.kind == ArtifactKind::Calibrated {
            // Each precision has scales, offsets and biases of its own; layers in floats are the same at all.
            let in_floats = description.in_floats.contains(&self.layer(of).name);
            return in_floats.then_some((description.edge.weights, description.edge.activations, None));
        }
        let format = description.layer_format(&self.graph, of.layer)?;
        let (weights, inputs) = format.positions(precision)?;
        let norm = of.norm.and_then(|_| description.batch_norm(precision));
        Some((format.weights[weights], format.activations[inputs], norm))
    }

    /// What a calibrated layer computes with at a precision; `None` if it is none, or in floats.
    pub fn calibrated(
        &self, layer: usize, precision: Precision,
    ) -> Result<Option<&CalibratedPass>, RuntimeError> {
        let Some(Some(layer)) = self.calibrated.get(layer) else { return Ok(None) };
        match layer.pass(precision) {
            Some(pass) => Ok(Some(pass)),
            None => Err(self.no_precision(precision)),
        }
    }

    fn no_precision(&self, precision: Precision) -> RuntimeError {
        let expected = format!("one of {}", self.artifact.description.precisions);
        RuntimeError::Precision { precision, expected }
    }

    /// Whether all layers have a precision.
    pub fn check(&self, precision: Precision) -> Result<(), RuntimeError> {
        if self.calibrated.iter().flatten().any(|layer| layer.pass(precision).is_none()) {
            return Err(self.no_precision(precision));
        }
        self.layers.iter().flatten().try_for_each(|layer| layer.positions(precision).map(|_| ()))
    }

    /// The layer that is used.
    pub fn layer(&self, of: &Use) -> &Layer {
        &self.graph.layers()[of.layer]
    }

    /// The nested weight of a layer at a precision; `None` if it has none.
    pub fn grouped(&self, layer: usize, precision: Precision) -> Result<Option<GroupedWeight>, RuntimeError> {
        let Some(weight) = self.nested.get(&self.graph.layers()[layer].name) else { return Ok(None) };
        let format = self.artifact.description.layer_format(&self.graph, layer);
        let width = format.and_then(|format| Some(format.weights[format.positions(precision)?.0]));
        match width.and_then(|bits| weight.prepared(bits)) {
            Some(prepared) => Ok(Some(prepared?)),
            None => {
                let expected = format!("weights of {} bits", list(weight.widths()));
                Err(RuntimeError::Precision { precision, expected })
            }
        }
    }

    /// Whether a layer takes floats and has packed weights.
    pub fn is_weight_only(&self, layer: &Layer) -> Result<bool, RuntimeError> {
        match (self.arithmetic, layer.kind) {
            (Arithmetic::WeightOnly, LayerKind::Conv2d { .. }) => {
                Err(RuntimeError::WeightOnly(layer.name.clone()))
            }
            (arithmetic, _) => Ok(arithmetic == Arithmetic::WeightOnly),
        }
    }

    /// The gain of an RMSNorm.
    pub fn gain(&self, norm: &Norm) -> Result<Values<f32>, RuntimeError> {
        Ok(self.artifact.values(&format!("{}.gamma", norm.name), &[norm.features])?)
    }

    /// A layer's bias, and the BatchNorm after it, which is the one of `precision`.
    pub fn affine(&self, of: &Use, precision: Option<Precision>) -> Result<Affine, RuntimeError> {
        let (layer, artifact) = (self.layer(of), &self.artifact);
        let outputs = layer.kind.outputs();
        let bias = match layer.bias {
            true => artifact.f32(&format!("{}.bias", layer.name), &[outputs])?.to_vec(),
            false => vec![0.0; outputs],
        };
        let Some(norm) = of.norm.map(|norm| &self.graph.batch_norms()[norm]) else {
            return Ok(Affine { gain: vec![1.0; outputs], shift: bias });
        };
        let number = match precision {
            None => 0,
            Some(precision) => {
                artifact.description.batch_norm(precision).ok_or_else(|| self.no_precision(precision))?
            }
        };
        let read = |part: &str| artifact.f32(&format!("{}.norms.{number}.{part}", norm.name), &[outputs]);
        let [gamma, beta] = [read("gamma")?, read("beta")?];
        let [mean, variance] = [read("running_mean")?, read("running_var")?];
        // In f64, and rounded once.
        let gain = |i: usize| f64::from(gamma[i]) / (f64::from(variance[i]) + norm.epsilon).sqrt();
        let shift = |i: usize| f64::from(beta[i]) + gain(i) * (f64::from(bias[i]) - f64::from(mean[i]));
        Ok(Affine {
            gain: (0..outputs).map(|i| gain(i) as f32).collect(),
            shift: (0..outputs).map(|i| shift(i) as f32).collect(),
        })
    }
}

impl LayerKind {
    /// How its kernel moves.
    pub(crate) fn options(&self) -> Conv2dOptions {
        match *self {
            Self::Conv2d { stride, padding, .. } => {
                Conv2dOptions { stride, padding, ..Conv2dOptions::default() }
            }
            Self::Linear { .. } => Conv2dOptions::default(),
        }
    }
}

/// What is done to each output of a layer: `gain * y + shift`.
#[derive(Clone, Debug)]
pub(crate) struct Affine {
    pub gain: Vec<f32>,
    pub shift: Vec<f32>,
}

/// A quantized layer's codes, as they are stored.
pub(crate) enum Codes {
    /// One byte each.
    Bytes(Values<i8>),
    /// Packed in words.
    Words(Values<u32>),
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
    fn read(artifact: &Artifact, graph: &Graph, layer: usize) -> Result<Option<Self>, RuntimeError> {
        let Some(format) = artifact.description.layer_format(graph, layer) else { return Ok(None) };
        let Layer { name, kind, .. } = &graph.layers()[layer];
        let part = |part: &str, i: usize| format!("{name}.quantizers.{part}.{i}");
        let count = ScaleLayout::weights(&kind.weight_shape(), format.granularity)?.scales();
        let scales = (0..format.weights.len())
            .map(|i| artifact.values::<f32>(&part("weight_scales", i), &[count]))
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
    pub fn codes(&self, artifact: &Artifact, of: &Layer) -> Result<Codes, RuntimeError> {
        let (name, shape) = (format!("{}.weight", of.name), of.kind.weight_shape());
        Ok(match artifact.description.is_packed() {
            true => {
                let elements = ScaleLayout::weights(&shape, self.format.granularity)?.elements();
                let words = packed_words(elements, self.format.weights[0]);
                Codes::Words(artifact.values(&name, &[words])?)
            }
            false => Codes::Bytes(artifact.values(&name, &shape)?),
        })
    }

    /// The weight of a layer. What was read of the file for it need not stay in memory.
    pub fn stored(&self, artifact: &Artifact, of: &Layer) -> Result<StoredWeight, RuntimeError> {
        let (shape, groups) = (of.kind.weight_shape(), of.kind.groups());
        let (bits, granularity) = (self.format.weights[0], self.format.granularity);
        Ok(match self.codes(artifact, of)? {
            Codes::Bytes(codes) => StoredWeight::from_codes(&codes, &shape, groups, bits, granularity)
                .inspect(|_| codes.release())?,
            Codes::Words(words) => StoredWeight::from_packed(&words, &shape, groups, bits, granularity)
                .inspect(|_| words.release())?,
        })
    }

    /// The width and scales of the weights at a precision, and how inputs are quantized.
    pub fn at(&self, precision: Precision) -> Result<(BitWidth, &[f32], CodeQuantizer), RuntimeError> {
        let (weights, inputs) = self.positions(precision)?;
        Ok((self.format.weights[weights], &self.scales[weights], self.inputs[inputs]))
    }

    /// Positions of a precision's widths among those of weights and inputs.
    fn positions(&self, precision: Precision) -> Result<(usize, usize), RuntimeError> {
        self.format.positions(precision).ok_or_else(|| {
            let (weights, inputs) = (list(&self.format.weights), list(&self.format.activations));
            let expected = format!("weights of {weights} bits and activations of {inputs} bits");
            RuntimeError::Precision { precision, expected }
        })
    }
}

fn list<T: Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
