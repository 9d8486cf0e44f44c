//! [`Candidates`]: what each layer of a supernet can be, and what that costs.

use super::{LayerTimes, SearchPlanError, Traces, choices};
use crate::agreement::agreement;
use crate::artifact::{Artifact, ArtifactError, ArtifactKind, Description, InputShape, SavedModel};
use crate::config::{LossTerms, Widths};
use crate::evaluation::{EvaluationError, check_batch};
use crate::latency::MOST_PIXELS;
use crate::nn::{LayerSpec, Model, NamedLayer, Observer, Pass, Tensors, Value};
use burn::tensor::{Device, Int, Tensor};
use dr_kernels::layout::packed_words;
use dr_precision::{BitWidth, Precision, PrecisionPlan};
use dr_runtime::arrays::Array;
#[cfg(doc)]
use dr_runtime::file::NestedWeight;
use dr_runtime::file::{CalibratedLayer, LayerFormat, STORED};
use dr_runtime::graph::{Layer, Op};
use dr_runtime::{Arithmetic, Network};
use std::collections::HashMap;

/// What each layer of a network can be, from input to output, and what that costs.
#[derive(Clone, Debug)]
pub struct Candidates {
    /// The layers.
    pub layers: Vec<LayerCandidates>,
    /// Bytes of the exported model that are the same in every plan: scales, BatchNorm terms, biases.
    pub other_bytes: u64,
    /// Nanoseconds of a pass outside its layers, if they were measured.
    pub other_nanoseconds: Option<u64>,
}

/// What one layer can be.
#[derive(Clone, Debug)]
pub struct LayerCandidates {
    /// Its path in the network.
    pub name: String,
    /// The first and the last layer: there is nothing to choose.
    pub edge: bool,
    /// How many weights it has.
    pub weights: u64,
    /// Multiply-accumulates for one image, or one token.
    pub macs: u64,
    /// `t_l`, the average Hessian trace, once losses are known from it.
    pub average_trace: Option<f64>,
    /// The precisions to choose from.
    pub choices: Vec<Candidate>,
}

/// A layer at one precision.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// The precision.
    pub precision: Precision,
    /// The loss that it is predicted to cost; 0 until losses are known. Of nested weights in nats a token.
    pub loss: f64,
    /// Bytes of its packed codes.
    pub bytes: u64,
    /// Multiply-accumulates for one image, each times the bits of weight and activation.
    pub bit_ops: u64,
    /// How long it takes, if that was measured.
    pub nanoseconds: Option<u64>,
}

impl Candidates {
    /// For a supernet: a multi-precision model that was trained for mixtures; for nested weights with
    /// [sensitivities](NestedWeight::sensitivity), which are the losses; or for calibrated layers, without those in floats. Layers
    /// choose from the precisions of the model, those of a supernet as `widths` says; those of `pins` keep the precision that it has for them.
    ///
    /// # Errors
    /// Another kind of model, or pins that do not fit it.
    pub fn new(
        artifact: &Artifact, widths: Widths, pins: &[(String, Precision)],
    ) -> Result<Self, SearchPlanError> {
        let description = &artifact.description;
        if description.kind == ArtifactKind::Nested {
            return Self::nested(artifact, pins);
        }
        if description.kind == ArtifactKind::Calibrated {
            return Self::calibrated(artifact, pins);
        }
        if description.kind != ArtifactKind::MultiPrecision {
            let (found, expected) = (description.kind, "multi-precision, nested or calibrated");
            return Err(ArtifactError::Kind { found, expected }.into());
        }
        if description.mixed.is_none() {
            return Err(ArtifactError::NotMixed.into());
        }
        let offered = choices(&description.precisions, widths);
        let (device, input) = (Device::flex(), description.input);
        let mut network = artifact.network(&device)?;
        let layers = network.layers();
        let formats = layers.iter().filter_map(|NamedLayer { name, layer, .. }| {
            Some((name.as_str(), layer.quantizers().spec()?.format.clone()))
        });
        check_pins(&formats.collect::<Vec<_>>(), pins)?;
        let macs = multiply_accumulates(&mut network, input);
        let candidates = |NamedLayer { name, layer, .. }: NamedLayer<'_>| {
            let pin = pins.iter().find(|(pinned, _)| *pinned == name).map(|(_, precision)| *precision);
            let only = layer.quantizers().spec().and_then(LayerSpec::only);
            let weights = layer.weight_shape().iter().product::<usize>();
            let macs = macs.get(&name).copied().unwrap_or_default();
            let candidate = |precision: Precision| Candidate {
                precision,
                loss: 0.0,
                bytes: (packed_words(weights, precision.weights) * size_of::<u32>()) as u64,
                bit_ops: macs * u64::from(precision.weights.bits() * precision.activations.bits()),
                nanoseconds: None,
            };
            let precisions = pin.or(only).map_or_else(|| offered.clone(), |only| vec![only]);
            LayerCandidates {
                name,
                edge: only.is_some(),
                weights: weights as u64,
                macs,
                average_trace: None,
                choices: precisions.into_iter().map(candidate).collect(),
            }
        };
        let layers: Vec<LayerCandidates> = network.layers().into_iter().map(candidates).collect();
        let mut candidates = Self { layers, other_bytes: 0, other_nanoseconds: None };
        let first = vec![0; candidates.layers.len()];
        let exported =
            artifact.export_plan::<Value>(&candidates.plan(&first), &[], &device)?.payload_bytes() as u64;
        let codes: u64 = candidates.layers.iter().map(|layer| layer.choices[0].bytes).sum();
        candidates.other_bytes = exported - codes;
        Ok(candidates)
    }

    /// For nested weights.
    fn nested(artifact: &Artifact, pins: &[(String, Precision)]) -> Result<Self, SearchPlanError> {
        // With all widths, whether the file has a plan or not.
        let description = Description { plan: None, ..artifact.description.clone() };
        let (graph, mut nested) = (artifact.graph()?, artifact.nested()?);
        let parts = nested.iter().flat_map(|(name, weight)| weight.tensors(name));
        let parts: usize = parts.map(|(_, entry)| entry.byte_len()).sum();
        let mut other_bytes = (artifact.payload_bytes() - parts) as u64;
        let format = |at: usize| description.layer_format(graph, at);
        let formats: Vec<LayerFormat> = (0..graph.layers().len()).filter_map(format).collect();
        let names = graph.layers().iter().map(|layer| layer.name.as_str());
        check_pins(&names.zip(formats.iter().cloned()).collect::<Vec<_>>(), pins)?;
        let candidates = |(layer, format): (&Layer, &LayerFormat)| {
            let name = &layer.name;
            let weight = nested.remove(name).ok_or_else(|| ArtifactError::MissingTensor(name.clone()))?;
            let [outputs, inputs] = weight.shape();
            let macs = (outputs * inputs) as u64;
            let pin = pins.iter().find(|(pinned, _)| pinned == name).map(|(_, precision)| precision.weights);
            let candidate = |bits: BitWidth| {
                let loss = match (format.pinned, weight.sensitivity(bits)) {
                    (true, _) => 0.0,
                    (false, Some(loss)) => f64::from(loss),
                    (false, None) => return Err(SearchPlanError::NoSensitivity(name.clone())),
                };
                let precision = Precision::new(bits, STORED);
                let bit_ops = macs * u64::from(precision.weights.bits() * precision.activations.bits());
                let bytes = weight.bytes(bits) as u64;
                Ok(Candidate { precision, loss, bytes, bit_ops, nanoseconds: None })
            };
            let widths = format.weights.iter().copied().filter(|&bits| pin.is_none_or(|pin| pin == bits));
            Ok::<_, SearchPlanError>(LayerCandidates {
                name: name.clone(),
                edge: format.pinned,
                weights: macs,
                macs,
                average_trace: None,
                choices: widths.map(candidate).collect::<Result<_, _>>()?,
            })
        };
        let layers: Vec<_> = graph.layers().iter().zip(&formats).map(candidates).collect::<Result<_, _>>()?;
        // Those of tables, which are no layers.
        other_bytes += nested.values().map(|table| table.bytes(STORED) as u64).sum::<u64>();
        Ok(Self { layers, other_bytes, other_nanoseconds: None })
    }

    /// For calibrated layers.
    fn calibrated(artifact: &Artifact, pins: &[(String, Precision)]) -> Result<Self, SearchPlanError> {
        let (graph, description) = (artifact.graph()?, &artifact.description);
        if !matches!(graph.input(), Some(Op::Images { .. })) {
            return Err(SearchPlanError::Arrays);
        }
        check_batch(artifact, 1, MOST_PIXELS)?;
        let InputShape { channels, height, width } = description.input;
        // Sizes that the network does not take show here, with a reason; on tensors they would be a panic.
        let zeros = Tensor::<4>::zeros([1, channels, height, width], &Device::flex());
        let zeros = Value::from(zeros).to_array().map_err(EvaluationError::from)?;
        let network =
            Network::load_with(artifact, Some(description.precisions.highest()), Arithmetic::Integer);
        let run = network.and_then(|network| network.forward_arrays(&[zeros]));
        run.map_err(EvaluationError::from)?;
        let macs = multiply_accumulates(&mut artifact.network(&Device::flex())?, description.input);
        let named = graph.layers().iter().enumerate().zip(artifact.calibrated()?);
        let named: Vec<_> =
            named.filter_map(|((at, layer), of)| Some((at, layer.name.as_str(), of?))).collect();
        for (at, (name, precision)) in pins.iter().enumerate() {
            let Some((.., layer)) = named.iter().find(|(_, layer, _)| layer == name) else {
                let names: Vec<&str> = named.iter().map(|(_, name, _)| *name).collect();
                return Err(SearchPlanError::UnknownPin { layer: name.clone(), expected: names.join(", ") });
            };
            if pins[..at].iter().any(|(earlier, _)| earlier == name) {
                return Err(SearchPlanError::RepeatedPin(name.clone()));
            }
            if layer.passes().iter().all(|pass| pass.widths != *precision) {
                let widths: Vec<String> = layer.passes().iter().map(|pass| pass.widths.to_string()).collect();
                let (layer, expected) = (name.clone(), widths.join(" or "));
                return Err(SearchPlanError::Pin { layer, precision: *precision, expected });
            }
        }
        let candidates = |(at, name, layer): &(usize, &str, CalibratedLayer)| {
            let macs = macs.get(*name).copied().unwrap_or_default();
            let pin = pins.iter().find(|(pinned, _)| pinned == name).map(|(_, precision)| *precision);
            let mut widths: Vec<Precision> = vec![];
            for of in layer.passes().iter().map(|pass| pass.widths) {
                if pin.is_none_or(|pin| pin == of) && !widths.contains(&of) {
                    widths.push(of);
                }
            }
            let candidate = |precision: Precision| {
                let planned = layer.planned(precision, description.edge).map(|layer| layer.tensors(name));
                Candidate {
                    precision,
                    loss: 0.0,
                    bytes: planned.iter().flatten().map(|(_, entry)| entry.byte_len() as u64).sum(),
                    bit_ops: macs * u64::from(precision.weights.bits() * precision.activations.bits()),
                    nanoseconds: None,
                }
            };
            LayerCandidates {
                name: (*name).to_owned(),
                edge: !description.switch_edge && graph.is_edge(*at),
                weights: layer.shape().iter().product::<usize>() as u64,
                macs,
                average_trace: None,
                choices: widths.into_iter().map(candidate).collect(),
            }
        };
        let layers = named.iter().map(candidates).collect();
        let stored = named.iter().flat_map(|(_, name, layer)| layer.tensors(name));
        let stored: usize = stored.map(|(_, entry)| entry.byte_len()).sum();
        let other_bytes = (artifact.payload_bytes() - stored) as u64;
        Ok(Self { layers, other_bytes, other_nanoseconds: None })
    }

    /// Measures what every choice of calibrated layers costs: with all other layers at their first choices, the divergence of the
    /// network's first result from what it is with this layer at its first choice, too, for some inputs, in integers. `progress` is told
    /// how many of how many choices are done.
    ///
    /// # Errors
    /// Inputs that the network does not take.
    pub fn measure_losses(
        &mut self, artifact: &Artifact, inputs: &[Array], mut progress: impl FnMut(usize, usize),
    ) -> Result<(), SearchPlanError> {
        let mut picks = vec![0; self.layers.len()];
        let outputs = |picks: &[usize]| {
            let planned = artifact.export_plan::<Value>(&self.plan(picks), &[], &Device::flex())?;
            let network = Network::load_with(&planned, Some(planned.description.edge), Arithmetic::Integer);
            let network = network.map_err(EvaluationError::from)?;
            let run = |input: &Array| network.forward_arrays(std::slice::from_ref(input));
            inputs
                .iter()
                .map(run)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| EvaluationError::from(error).into())
        };
        let expected = outputs(&picks)?;
        let of = self.layers.iter().map(|layer| layer.choices.len() - 1).sum();
        let (mut losses, mut done) = (vec![], 0);
        for layer in 0..self.layers.len() {
            for choice in 1..self.layers[layer].choices.len() {
                picks[layer] = choice;
                let found: Result<_, SearchPlanError> = outputs(&picks);
                losses.push((layer, choice, agreement(&expected, &found?)?.divergence));
                done += 1;
                progress(done, of);
            }
            picks[layer] = 0;
        }
        for (layer, choice, loss) in losses {
            self.layers[layer].choices[choice].loss = loss;
        }
        Ok(())
    }

    /// Predicts the loss of every choice from the layers' average Hessian traces `t_l`:
    ///
    /// ```text
    /// t_l (||Q_b(w) - w||^2  +  ||w||^2 E||Q_a(x) - x||^2 / E||x||^2)
    /// ```
    ///
    /// with `w` the dequantized stored codes and `x` the layer's inputs when the network in floats sees `batches`. The
    /// second term is left out with [`LossTerms::Weights`]. It says which error of the weights would disturb the output
    /// as much as that of the inputs does: with errors `dw` and `dx` that have nothing to do with each other, the output
    /// changes by `dw x + w dx`, whose mean square is proportional to `||dw||^2 E||x||^2 + ||w||^2 E||dx||^2`.
    ///
    /// It is the second term of the loss's Taylor series around the float network up to the factor 1/2, which no plan
    /// depends on. A negative trace, which can only be an error of its estimate or a loss that is not at its minimum,
    /// counts as 0.
    ///
    /// # Errors
    /// Traces that are not of this network.
    pub fn predict_losses<I: Into<Value>>(
        &mut self, artifact: &Artifact, traces: &Traces, terms: LossTerms, batches: Vec<I>, device: &Device,
    ) -> Result<(), SearchPlanError> {
        self.check_traces(traces)?;
        let mut network = artifact.network(device)?;
        let observer = Observer::default();
        if terms == LossTerms::Both {
            for input in batches {
                network.forward(input, &Pass::observing(&observer));
            }
        }
        for (NamedLayer { layer, .. }, (candidates, trace)) in
            network.layers().into_iter().zip(self.layers.iter_mut().zip(&traces.layers))
        {
            let trace = trace.average_trace;
            candidates.average_trace = Some(trace);
            let sample = observer.take(layer.weight_id()).sample;
            let Some(errors) = layer.errors(&sample) else { continue };
            let find = |errors: &[(BitWidth, f64)], bits| {
                errors.iter().find(|(width, _)| *width == bits).map_or(0.0, |(_, error)| *error)
            };
            for Candidate { precision, loss, .. } in &mut candidates.choices {
                let weights = find(&errors.weights, precision.weights);
                let inputs = errors.weight * find(&errors.inputs, precision.activations);
                *loss = trace.max(0.0) * (weights + inputs);
            }
        }
        Ok(())
    }

    /// Whether the traces are those of this network, in its order.
    ///
    /// # Errors
    /// The first layer that does not fit.
    pub fn check_traces(&self, traces: &Traces) -> Result<(), SearchPlanError> {
        for (i, LayerCandidates { name, weights: expected, .. }) in self.layers.iter().enumerate() {
            let layer = name.clone();
            let Some(trace) = traces.layers.get(i) else { return Err(SearchPlanError::NoTrace(layer)) };
            let found = trace.parameters as u64;
            if trace.layer != layer {
                return Err(SearchPlanError::TraceLayer { found: trace.layer.clone(), expected: layer });
            } else if found != *expected {
                return Err(SearchPlanError::TraceSize { layer, found, expected: *expected });
            } else if !trace.average_trace.is_finite() {
                return Err(SearchPlanError::TraceValue(layer));
            }
        }
        match traces.layers.get(self.layers.len()) {
            Some(trace) => Err(SearchPlanError::UnknownTrace(trace.layer.clone())),
            None => Ok(()),
        }
    }

    /// Sets the time of every choice.
    pub fn set_times(&mut self, times: &LayerTimes) {
        for (l, layer) in self.layers.iter_mut().enumerate() {
            for choice in &mut layer.choices {
                choice.nanoseconds = times.of(l, choice.precision);
            }
        }
        self.other_nanoseconds = Some(times.other);
    }

    /// The plan that takes each layer's choice at this position.
    ///
    /// # Panics
    /// If there is no such choice.
    #[must_use]
    pub fn plan(&self, picks: &[usize]) -> PrecisionPlan {
        let of =
            |(layer, &pick): (&LayerCandidates, &usize)| (layer.name.clone(), layer.choices[pick].precision);
        PrecisionPlan::new(self.layers.iter().zip(picks).map(of)).expect("layers have different names")
    }

    /// The positions of the choices with which every layer that has one takes `precision`, and the others their only one;
    /// `None` if some layer could, but has another choice only.
    #[must_use]
    pub fn uniform(&self, precision: Precision) -> Option<Vec<usize>> {
        let of = |layer: &LayerCandidates| match &layer.choices[..] {
            [_] => Some(0),
            choices => choices.iter().position(|choice| choice.precision == precision),
        };
        self.layers.iter().map(of).collect()
    }
}

/// The multiply-accumulates of each layer for an image of this size, or for one token.
fn multiply_accumulates(network: &mut Model, input: InputShape) -> HashMap<String, u64> {
    let (observer, device) = (Observer::default(), Device::flex());
    let example: Value = match network.graph().input() {
        Some(Op::Tokens) => Tensor::<2, Int>::zeros([1, 1], &device).into(),
        _ => Tensor::<4>::zeros([1, input.channels, input.height, input.width], &device).into(),
    };
    network.results(&mut Tensors::new(&Pass::observing(&observer)), example);
    let layers = network.layers().into_iter();
    layers.map(|of| (of.name, of.layer.macs(&observer.take(of.layer.weight_id()).shape))).collect()
}

fn check_pins(layers: &[(&str, LayerFormat)], pins: &[(String, Precision)]) -> Result<(), SearchPlanError> {
    for (i, (name, precision)) in pins.iter().enumerate() {
        let Some((_, format)) = layers.iter().find(|(layer, _)| layer == name) else {
            let names: Vec<&str> = layers.iter().map(|(layer, _)| *layer).collect();
            return Err(SearchPlanError::UnknownPin { layer: name.clone(), expected: names.join(", ") });
        };
        if pins[..i].iter().any(|(earlier, _)| earlier == name) {
            return Err(SearchPlanError::RepeatedPin(name.clone()));
        }
        if !format.has(*precision) {
            let (layer, precision, expected) = (name.clone(), *precision, format.widths());
            return Err(SearchPlanError::Pin { layer, precision, expected });
        }
    }
    Ok(())
}
