//! [`CalibratedModel`]: a network of calibrated layers at one precision, in fake quantization.

use super::model::Replace;
use crate::artifact::{Artifact, ArtifactError, SavedModel};
use crate::nn::{Executor, Model, Pass, PrecisionNorm, QuantConv2d, QuantLinear, Tensors, Value, tensors_do};
use burn::module::ParamId;
use burn::tensor::{Device, Tensor, TensorData};
use dr_kernels::{ActivationQuantizer, fake_quantize_activation};
use dr_precision::Precision;
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
        fake_quantize_activation(x, scale, zero_point, &self.quantizer)
            .expect("one scale and zero point for the tensor")
    }
}

impl CalibratedModel {
    /// The network of a file.
    ///
    /// # Errors
    /// Another kind of file, a precision that it does not have, tensors that are missing or of another shape.
    pub fn new(artifact: &Artifact, precision: Precision, device: &Device) -> Result<Self, ArtifactError> {
        artifact.check_precision(precision)?;
        let names = artifact.graph()?.layers().iter().map(|layer| layer.name.clone());
        let layers = names.zip(artifact.calibrated()?);
        let layers: BTreeMap<String, CalibratedLayer> =
            layers.filter_map(|(name, layer)| Some((name, layer?))).collect();
        let model = artifact.network(device)?.map_named(&mut Replace::new(|name: &str, part: &str| {
            let layer = layers.get(name)?;
            match part {
                "weight" => layer.dequantized(precision),
                "bias" => Some(layer.pass(precision)?.bias.to_vec()),
                _ => None,
            }
        }));
        let mut model = model;
        let one = |value: f32| Tensor::from_data(TensorData::from([value]), device);
        let input = |name: &String| {
            let input = layers.get(name)?.pass(precision)?.quantizer();
            let (scale, zero_point) = (one(input.scale), one(input.zero_point));
            Some(InputQuantizer { scale, zero_point, quantizer: ActivationQuantizer::new(input.bits) })
        };
        let named = model.layers().into_iter();
        let inputs = named.filter_map(|of| Some((of.layer.weight_id(), input(&of.name)?))).collect();
        Ok(Self { model, inputs })
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
}

/// Quantizes the input of each layer.
struct Static<'a> {
    tensors: Tensors<'a>,
    inputs: &'a HashMap<ParamId, InputQuantizer>,
}

impl Static<'_> {
    fn quantized(&self, x: Value, layer: ParamId) -> Value {
        match (x, self.inputs.get(&layer)) {
            (Value::Images(x), Some(quantizer)) => Value::Images(quantizer.apply(x)),
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
