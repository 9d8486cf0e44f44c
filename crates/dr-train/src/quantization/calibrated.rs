//! [`CalibratedModel`]: a network of calibrated layers at one precision, in fake quantization.

use super::model::Replace;
use crate::artifact::{Artifact, ArtifactError, SavedModel};
use crate::nn::{Executor, Model, Pass, PrecisionNorm, QuantConv2d, QuantLinear, Tensors, Value, tensors_do};
use burn::module::ParamId;
use burn::tensor::{Device, Tensor, TensorData};
use dr_kernels::{ActivationQuantizer, fake_quantize_activation};
use dr_precision::{BitWidth, Precision};
use dr_runtime::file::CalibratedLayer;
use dr_runtime::tensors::Floats;
use std::collections::{BTreeMap, HashMap};

/// A network of calibrated layers at one precision, on Burn tensors: floats that hold the values of codes.
#[derive(Clone, Debug)]
pub struct CalibratedModel {
    model: Model,
    inputs: HashMap<ParamId, InputQuantizer>,
}

/// How the input of a layer is quantized.
#[derive(Clone, Debug)]
struct InputQuantizer {
    scale: Tensor<1>,
    zero_point: Tensor<1>,
    quantizer: ActivationQuantizer,
}

impl InputQuantizer {
    fn apply<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let (scale, zero_point) = (self.scale.clone(), self.zero_point.clone());
        let x = if scale.is_autodiff() { x.autodiff() } else { x };
        fake_quantize_activation(x, scale, zero_point, &self.quantizer)
            .expect("one scale and zero point for the tensor")
    }
}

/// What a layer computes with at one precision.
#[derive(Clone, Debug)]
pub(super) struct LayerTensors {
    /// `[outputs * inputs]`
    pub weight: Tensor<1>,
    /// `[outputs]`
    pub bias: Tensor<1>,
    /// `[1]`: what a step of the codes of inputs adds.
    pub scale: Tensor<1>,
    /// `[1]`: what their code 0 stands for.
    pub zero_point: Tensor<1>,
    /// Of inputs.
    pub bits: BitWidth,
}

impl CalibratedModel {
    /// The network of a file.
    ///
    /// # Errors
    /// Another kind of file, a precision that it does not have, tensors that are missing or of another shape.
    pub fn new(artifact: &Artifact, precision: Precision, device: &Device) -> Result<Self, ArtifactError> {
        artifact.check_precision(precision)?;
        let row = |values: &[f32]| Tensor::from_data(TensorData::from(values), device);
        let tensors = |layer: &CalibratedLayer| {
            let pass = layer.pass(precision)?;
            let input = pass.quantizer();
            Some(LayerTensors {
                weight: row(&layer.dequantized(precision)?),
                bias: row(&pass.bias),
                scale: row(&[input.scale]),
                zero_point: row(&[input.zero_point]),
                bits: input.bits,
            })
        };
        let names = artifact.graph()?.layers().iter().map(|layer| layer.name.clone());
        let layers = names.zip(artifact.calibrated()?);
        let layers = layers.filter_map(|(name, layer)| Some((name, tensors(&layer?)?))).collect();
        Ok(Self::of(artifact.network(device)?, &layers))
    }

    /// A network with these tensors in its layers, by name.
    pub(super) fn of(model: Model, layers: &BTreeMap<String, LayerTensors>) -> Self {
        let mut model = model.map_named(&mut Replace::new(|name: &str, part: &str, _: &Device| {
            let layer = layers.get(name)?;
            match part {
                "weight" => Some(layer.weight.clone()),
                "bias" => Some(layer.bias.clone()),
                _ => None,
            }
        }));
        let input = |name: &String| {
            let LayerTensors { scale, zero_point, bits, .. } = layers.get(name)?.clone();
            Some(InputQuantizer { scale, zero_point, quantizer: ActivationQuantizer::new(bits) })
        };
        let named = model.layers().into_iter();
        let inputs = named.filter_map(|of| Some((of.layer.weight_id(), input(&of.name)?))).collect();
        Self { model, inputs }
    }

    /// What it makes of an input, images `[batch, channels, rows, columns]`.
    ///
    /// # Panics
    /// Inputs of another kind or size.
    #[must_use]
    pub fn run(&self, input: Value) -> Value {
        let pass = Pass::float();
        self.model.run(&mut Static { tensors: Tensors::new(&pass), inputs: &self.inputs }, input)
    }

    /// All results, in the order of [`Graph::results`](dr_runtime::graph::Graph::results).
    ///
    /// # Panics
    /// Inputs of another kind or size.
    #[must_use]
    pub fn results(&self, input: Value) -> Vec<Value> {
        let pass = Pass::float();
        self.model.results(&mut Static { tensors: Tensors::new(&pass), inputs: &self.inputs }, input)
    }
}

/// Quantizes the input of each layer.
struct Static<'a> {
    tensors: Tensors<'a>,
    inputs: &'a HashMap<ParamId, InputQuantizer>,
}

impl Static<'_> {
    fn quantized(&self, x: Value, layer: ParamId) -> Value {
        match (x, self.inputs.get(&layer)) {
            (Value::Images(x), Some(quantizer)) => x.map(|x| quantizer.apply(x)).into(),
            (Value::Rows(x), Some(quantizer)) => Value::Rows(quantizer.apply(x)),
            (Value::Floats(x), Some(quantizer)) => x.map(|x| quantizer.apply(x)).into(),
            (Value::Array(x), Some(quantizer)) => match Floats::new(&x, &quantizer.scale.device()) {
                Ok(x) => x.map(|x| quantizer.apply(x)).into(),
                Err(error) => panic!("{error}"),
            },
            (x, _) => x,
        }
    }
}

impl Executor for Static<'_> {
    type Value = Value;

    tensors_do!(tensors: rms_norm, embedding, constant, op);

    fn conv2d(&mut self, x: Value, layer: &QuantConv2d, norm: Option<&PrecisionNorm>) -> Value {
        let x = self.quantized(x, layer.weight_id());
        self.tensors.conv2d(x, layer, norm)
    }

    fn linear(&mut self, x: Value, layer: &QuantLinear) -> Value {
        let x = self.quantized(x, layer.weight_id());
        self.tensors.linear(x, layer)
    }
}
