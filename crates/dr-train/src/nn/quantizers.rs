//! [`Quantizers`]: the scales of one layer, for all its widths.

use super::{MixedNorm, Pass, fit_activation};
use burn::module::{Module, Param, ParamId};
use burn::tensor::{Device, Tensor, TensorData};
use dr_kernels::layout::ScaleLayout;
use dr_kernels::{
    ActivationQuantizer, ConvQuantizer, ScaleGradient, WeightQuantizer, fake_quantize_activation,
    fake_quantize_weight, search_scales,
};
use dr_precision::{BitWidth, Precision, PrecisionPlan, PrecisionSet};
use dr_runtime::file::LayerFormat;
use dr_runtime::graph::Graph;
use std::num::NonZeroUsize;

/// How a network is quantized.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuantConfig {
    /// The precisions it runs at.
    pub precisions: PrecisionSet,
    /// What the first and the last layer use in every precision.
    pub edge: Precision,
    /// They do not: they switch like all others.
    pub switch_edge: bool,
    /// Gradient mode of the weights' scales.
    pub gradient: ScaleGradient,
    /// One BatchNorm for all precisions instead of one for each.
    pub share_norm: bool,
    /// Which BatchNorm mixed passes use, if the network is trained for them.
    pub mixed: Option<MixedNorm>,
    /// A precision for each layer, which it then has in every pass, with one BatchNorm after it.
    pub plan: Option<PrecisionPlan>,
    /// So many inputs of an output of a linear layer share a scale; `None`: all of them, as in convolutions.
    pub group_size: Option<NonZeroUsize>,
}

impl QuantConfig {
    /// For `precisions`, with the first and the last layer at the highest widths.
    #[must_use]
    pub fn new(precisions: PrecisionSet) -> Self {
        let edge = Precision::new(precisions.stored(), precisions.widest_activations());
        Self {
            precisions,
            edge,
            switch_edge: false,
            gradient: ScaleGradient::default(),
            share_norm: false,
            mixed: None,
            plan: None,
            group_size: None,
        }
    }
}

/// How one layer is quantized.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerSpec {
    /// Its widths, and which weights share a scale.
    pub format: LayerFormat,
    /// The input comes out of a ReLU: zero points are 0 and stay so.
    pub after_relu: bool,
    /// Gradient mode of the weights' scales.
    pub gradient: ScaleGradient,
}

impl LayerSpec {
    /// The specification of a layer of a network quantized as `config` says, by its number in the graph.
    ///
    /// # Panics
    /// If there is no such layer.
    #[must_use]
    pub fn new(config: &QuantConfig, graph: &Graph, layer: usize) -> Self {
        let edge = (!config.switch_edge).then_some(config.edge);
        let QuantConfig { precisions, plan, group_size, gradient, .. } = config;
        Self {
            format: LayerFormat::new(graph, layer, precisions, edge, plan.as_ref(), *group_size),
            after_relu: graph.after_relu(layer),
            gradient: *gradient,
        }
    }

    /// Whether the layer was prepared for the widths of a precision.
    #[must_use]
    pub fn has(&self, precision: Precision) -> bool {
        self.format.has(precision)
    }

    /// The scales that a weight of this shape has for each width; `usize::MAX` for a shape that no memory has.
    #[must_use]
    pub fn scale_count(&self, weight_shape: &[usize]) -> usize {
        ScaleLayout::weights(weight_shape, self.format.granularity)
            .map_or(usize::MAX, |layout| layout.scales())
    }

    /// The precision that the layer has in every pass, if it is pinned.
    #[must_use]
    pub fn only(&self) -> Option<Precision> {
        self.format.pinned.then(|| Precision::new(self.format.weights[0], self.format.activations[0]))
    }
}

/// The scales of one layer's weights and inputs, a parameter for each width. A float layer has none.
#[derive(Module, Debug, Default)]
pub struct Quantizers {
    /// `[channels out]`, or `[channels out * groups]`, for each width of the weights.
    pub(super) weight_scales: Vec<Param<Tensor<1>>>,
    /// `[1]` for each width of the inputs.
    pub(super) activation_scales: Vec<Param<Tensor<1>>>,
    /// `[1]` for each width of the inputs.
    pub(super) zero_points: Vec<Param<Tensor<1>>>,
    #[module(skip)]
    pub(super) spec: Option<LayerSpec>,
}

impl Quantizers {
    /// Quantizers of the right shapes for a weight of this shape, with scales of one: to be loaded into.
    #[must_use]
    pub fn placeholder(spec: LayerSpec, weight_shape: &[usize], device: &Device) -> Self {
        let params = |count: usize, length: usize, value: f32| {
            let one = |_| Param::from_tensor(Tensor::full([length], value, device));
            (0..count).map(one).collect::<Vec<_>>()
        };
        Self {
            weight_scales: params(spec.format.weights.len(), spec.scale_count(weight_shape), 1.0),
            activation_scales: params(spec.format.activations.len(), 1, 1.0),
            zero_points: params(spec.format.activations.len(), 1, 0.0),
            spec: Some(spec),
        }
    }

    /// Quantizers with scales fitted to a trained `weight` and to recorded inputs: training-free quantization, and
    /// where joint training starts.
    ///
    /// # Panics
    /// If `weight` is not f32.
    #[must_use]
    pub fn fitted<const D: usize>(spec: LayerSpec, weight: Tensor<D>, inputs: &[f32]) -> Self {
        let device = weight.device();
        let weight_scales = search_scales(weight, &spec.format.weights, spec.format.granularity)
            .expect("widths come sorted out of a `LayerSpec`")
            .into_iter()
            // Tracked if the device tracks gradients.
            .map(|scale| Param::from_tensor(Tensor::from_data(scale.into_data(), &device)))
            .collect();
        let fits = spec.format.activations.iter().map(|&bits| fit_activation(inputs, bits, spec.after_relu));
        let param = |value: f32| Param::from_tensor(Tensor::from_data(TensorData::from([value]), &device));
        let (activation_scales, zero_points) = fits.map(|(scale, zero)| (param(scale), param(zero))).unzip();
        Self { weight_scales, activation_scales, zero_points, spec: Some(spec) }
    }

    /// How the layer is quantized; `None` in a float network.
    #[must_use]
    pub fn spec(&self) -> Option<&LayerSpec> {
        self.spec.as_ref()
    }

    /// What a pass quantizes with, and the positions of its widths of weights and activations; `None` in floats.
    ///
    /// # Panics
    /// If the pass asks for a precision that the layer was not prepared for.
    fn widths(&self, weight: ParamId, pass: &Pass) -> Option<(&LayerSpec, [usize; 2])> {
        let precision = pass.precision(weight)?;
        let spec = self.spec.as_ref().expect("a float network has no quantized pass");
        let (wi, ai) = spec
            .format
            .positions(precision)
            .unwrap_or_else(|| panic!("precision {precision}: the layer was not prepared for it: {spec:?}"));
        Some((spec, [wi, ai]))
    }

    /// The weight as the pass wants it: fake-quantized, or as it is.
    ///
    /// # Panics
    /// If the pass asks for a precision that the layer was not prepared for.
    pub(super) fn weight<const D: usize>(&self, weight: &Param<Tensor<D>>, pass: &Pass) -> Tensor<D> {
        let w = weight.val();
        let Some((spec, [wi, _])) = self.widths(weight.id, pass) else { return w };
        let quantizer = WeightQuantizer::new(spec.format.weights[0], spec.format.weights[wi])
            .expect("the stored width is the highest")
            .with_granularity(spec.format.granularity)
            .with_gradient(spec.gradient);
        let (stored, scale) = (self.weight_scales[0].val(), self.weight_scales[wi].val());
        fake_quantize_weight(w, stored, scale, &quantizer).expect("scales were made for this weight")
    }

    /// Scale, zero point and width of the input in a quantized pass.
    fn activation(&self, spec: &LayerSpec, ai: usize) -> (Tensor<1>, Tensor<1>, BitWidth) {
        let zero = self.zero_points[ai].val();
        let zero = if spec.after_relu { zero.detach() } else { zero };
        (self.activation_scales[ai].val(), zero, spec.format.activations[ai])
    }

    /// What a convolution quantizes its input with in a quantized pass.
    ///
    /// # Panics
    /// If the pass asks for a precision that the layer was not prepared for.
    pub(super) fn of_convolution(&self, weight: ParamId, pass: &Pass) -> Option<ConvQuantizer> {
        let (spec, [wi, ai]) = self.widths(weight, pass)?;
        let (scale, zero_point, bits) = self.activation(spec, ai);
        let codes = pass.integers.then(|| (self.weight_scales[wi].val(), spec.format.weights[wi]));
        Some(ConvQuantizer { scale, zero_point, bits, codes })
    }

    /// The input and the weight as the pass wants them: fake-quantized, or as they are.
    ///
    /// # Panics
    /// If the pass asks for a precision that the layer was not prepared for.
    pub(super) fn forward<const A: usize, const W: usize>(
        &self, x: Tensor<A>, weight: &Param<Tensor<W>>, pass: &Pass,
    ) -> (Tensor<A>, Tensor<W>) {
        let w = self.weight(weight, pass);
        let Some((spec, [_, ai])) = self.widths(weight.id, pass) else { return (x, w) };
        let (scale, zero_point, bits) = self.activation(spec, ai);
        let x = fake_quantize_activation(x, scale, zero_point, &ActivationQuantizer::new(bits))
            .expect("one scale and zero point for the tensor");
        (x, w)
    }

    /// The values of all scales.
    pub(crate) fn scales_by_id(&self) -> Vec<(ParamId, Tensor<1>)> {
        let scales = self.weight_scales.iter().chain(&self.activation_scales);
        scales.map(|scale| (scale.id, scale.val().inner())).collect()
    }

    /// All learned scales and zero points.
    pub(crate) fn parameters(&self) -> Vec<Learned> {
        let Some(spec) = &self.spec else { return vec![] };
        let list = |of, kind, widths: &[BitWidth], params: &[Param<Tensor<1>>]| {
            let one = |(bits, param): (&BitWidth, &Param<_>)| {
                let below = widths[0].bits() - bits.bits();
                Learned { of, kind, below, id: param.id }
            };
            widths.iter().zip(params).map(one).collect::<Vec<_>>()
        };
        let (weights, activations) = (&spec.format.weights, &spec.format.activations);
        [
            list(Operand::Weights, Kind::Scale, weights, &self.weight_scales),
            list(Operand::Activations, Kind::Scale, activations, &self.activation_scales),
            list(Operand::Activations, Kind::ZeroPoint, activations, &self.zero_points),
        ]
        .concat()
    }
}

/// A learned scale or zero point of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Learned {
    /// What it quantizes.
    pub of: Operand,
    pub kind: Kind,
    /// How many bits its width has less than the highest one of that operand: the stored one of weights, the widest of
    /// activations.
    pub below: u32,
    pub id: ParamId,
}

/// What a layer multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Operand {
    Weights,
    Activations,
}

/// What a learned parameter of a quantizer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Scale,
    ZeroPoint,
}

/// The values of a tensor.
pub(crate) fn host<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    crate::values::values(tensor.clone().into_data())
}
