//! From a model to an artifact and back.

use super::{
    ATTACHMENTS, Artifact, ArtifactError, ArtifactKind, Described, Description, TensorEntry, TensorValues,
};
use crate::config::task::{CLASSIFY, DETECT, LANGUAGE, SEGMENT};
use crate::data::Input;
use crate::files::write_atomically;
use crate::models::BOX_OUTPUTS;
use crate::nn::{Assignment, EachParameter, LayerSpec, Model, Pass, QuantConfig, Value, subnet};
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use dr_kernels::{CodeState, PackedTensor, dequantize, layout, quantize_pack, switch};
use dr_precision::{Precision, PrecisionPlan, PrecisionSet};
use dr_runtime::arrays::Array;
use dr_runtime::file::{CalibratedLayer, NestedWeight, PlanFitError};
use dr_runtime::graph::{self, Embedding, Graph, Kind, Layer};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A saved model as a [`Model`], and the other way round.
pub trait SavedModel: Sized {
    /// The artifact of a model that runs as `description` says: with float weights, or master codes and the scales
    /// of all precisions. `description.kind` must not be packed; see [`Artifact::export`].
    ///
    /// # Errors
    /// [`ArtifactError::Network`] if the model is not quantized as the description says.
    fn of(model: &Model, description: Description) -> Result<Self, ArtifactError>;

    /// Training-free quantization of a float model as `config` says, which must not have a plan, nor be for mixed passes; the
    /// activations' scales are fitted to what `batches` cause.
    ///
    /// # Errors
    /// If this is not a float artifact.
    fn quantize<I: Into<Value>>(
        &self, config: &QuantConfig, batches: Vec<I>, device: &Device,
    ) -> Result<Self, ArtifactError>;

    /// The same network at one precision, its weights packed: the codes switched to their width, one scale vector for
    /// each layer, one BatchNorm; of nested weights and calibrated layers what is of that width, and those at an edge as they are.
    ///
    /// # Errors
    /// If this is neither a multi-precision artifact nor one with nested weights or calibrated layers, or was not made for `precision`.
    fn export(&self, precision: Precision) -> Result<Self, ArtifactError>;

    /// The same network with each layer at the precision that `plan` has for it, its weights packed: one scale vector and
    /// one BatchNorm for each layer, with the mean statistics of the passes of `batches` through it. Nested weights stay as they are, with all
    /// widths, of which the network then uses those of the plan. Calibrated layers are what they are at a precision at which they have the widths
    /// of the plan, which names all but those in floats.
    ///
    /// # Errors
    /// If this is neither a multi-precision artifact trained for mixed precision nor one with nested weights or calibrated layers, or the plan does
    /// not fit it.
    fn export_plan<I: Input + Into<Value>>(
        &self, plan: &PrecisionPlan, batches: &[I], device: &Device,
    ) -> Result<Self, ArtifactError>;

    /// The model, on `device`, in evaluation mode. It computes what the saved one did; one with nested weights in floats, at the widest of their codes,
    /// and one with calibrated layers in floats, with what they are at its first precision.
    ///
    /// # Errors
    /// If a tensor is missing, superfluous or of another type or shape than the description calls for.
    fn network(&self, device: &Device) -> Result<Model, ArtifactError>;

    /// What the network computes. The tensors must be large enough for it, so that no memory is taken for a network that cannot be in
    /// the file, and its rows must be what the task makes of the classes.
    ///
    /// # Errors
    /// A file without a graph, or one that does not fit it.
    fn checked_graph(&self) -> Result<&Graph, ArtifactError>;

    /// Whether the network can be computed at `precision`.
    fn check_precision(&self, precision: Precision) -> Result<(), ArtifactError>;

    /// Reads a file of any version; one of version 1 gets the graph of the network that it names.
    ///
    /// # Errors
    /// Those of [`Artifact::load`], and a network that is not of this crate in a file of version 1.
    fn open(path: &Path) -> Result<Self, ArtifactError>;

    /// The same with a graph, if the network that it names is of this crate.
    ///
    /// # Errors
    /// A network that is not of this crate.
    fn with_graph(self) -> Result<Self, ArtifactError>;

    /// Writes the file in one step, over an older one of that name.
    ///
    /// # Errors
    /// Those of [`Artifact::to_bytes`] and of the file system.
    fn save(&self, path: &Path) -> Result<(), ArtifactError>;
}

impl SavedModel for Artifact {
    fn of(model: &Model, description: Description) -> Result<Self, ArtifactError> {
        let mut tensors = collect(model);
        if let Some(config) = description.quantization() {
            for Quantized { name, spec, shape } in quantized_layers(model.graph(), &config) {
                let words = words(&stored_codes(&tensors, &name, &spec)?)?;
                let elements = shape.iter().product();
                let codes = layout::unpack(&words, elements, spec.format.weights[0])
                    .map_err(ArtifactError::network)?;
                tensors.insert(weight_name(&name), TensorEntry::i8(shape, codes));
            }
        }
        Ok(Self { description: description.of_graph(model.graph().clone()), tensors })
    }

    fn quantize<I: Into<Value>>(
        &self, config: &QuantConfig, batches: Vec<I>, device: &Device,
    ) -> Result<Self, ArtifactError> {
        let found = self.description.kind;
        let kind = ArtifactKind::MultiPrecision;
        let QuantConfig { precisions, edge, switch_edge, group_size, .. } = config.clone();
        let description =
            Description { kind, precisions, edge, switch_edge, group_size, ..self.description.clone() };
        match (found, description.quantization()) {
            (ArtifactKind::Float, Some(config)) => {
                let mut quantized = Self::of(&self.network(device)?.quantize(&config, batches), description)?;
                quantized.tensors.extend(self.attachments());
                Ok(quantized)
            }
            _ => Err(ArtifactError::Kind { found, expected: "float" }),
        }
    }

    fn export(&self, precision: Precision) -> Result<Self, ArtifactError> {
        let description = &self.description;
        if description.kind == ArtifactKind::Float {
            return Err(ArtifactError::Kind { found: description.kind, expected: "quantized" });
        }
        let position = description.precisions.position(precision).ok_or_else(|| {
            ArtifactError::Precision { precision, expected: description.precisions.clone() }
        })?;
        match description.kind {
            ArtifactKind::Nested => return nested_at(self, precision),
            ArtifactKind::Calibrated => return calibrated_at(self, precision),
            _ => {}
        }
        let config = several_precisions(description)?;
        let graph = self.graph()?.clone();
        let mut tensors = packed(self, &graph, &config, |_| precision)?;
        if !config.share_norm {
            let norms: BTreeSet<String> = tensors
                .keys()
                .filter_map(|name| name.split_once(NORMS).map(|(norm, _)| format!("{norm}{NORMS}")))
                .collect();
            norms.iter().for_each(|prefix| keep_only(&mut tensors, prefix, position));
        }
        let (kind, shapes) = (ArtifactKind::Packed(precision), weight_shapes(&graph));
        let description = Description { kind, shapes, ..description.clone() }.of_graph(graph);
        Ok(Self { description, tensors })
    }

    fn export_plan<I: Input + Into<Value>>(
        &self, plan: &PrecisionPlan, batches: &[I], device: &Device,
    ) -> Result<Self, ArtifactError> {
        let description = &self.description;
        if description.kind == ArtifactKind::Nested {
            let graph = self.graph()?;
            let precisions = description.layers_of_plan(graph, plan)?;
            let in_order = graph.layers().iter().map(|layer| layer.name.clone()).zip(precisions);
            let plan = Some(PrecisionPlan::new(in_order).map_err(ArtifactError::network)?);
            let description = Description { plan, ..description.clone() };
            return Ok(Self { description, tensors: self.tensors.clone() });
        }
        if description.kind == ArtifactKind::Calibrated {
            return calibrated_with(self, plan);
        }
        let config = several_precisions(description)?;
        if description.mixed.is_none() {
            return Err(ArtifactError::NotMixed);
        }
        let mut network = self.network(device)?;
        let assignment = Assignment::new(&mut network, plan)?;
        let graph = network.graph().clone();
        let in_order = graph.layers().iter().filter_map(|layer| {
            let precision = plan.get(&layer.name)?;
            Some((layer.name.clone(), precision))
        });
        let in_order = PrecisionPlan::new(in_order).map_err(ArtifactError::network)?;
        let precision = |layer: &str| in_order.get(layer).unwrap_or(config.edge);
        let mut tensors = packed(self, &graph, &config, precision)?;
        let is_norm = |name: &String| name.contains(NORMS);
        tensors.retain(|name, _| !is_norm(name));
        let subnet = subnet(network, &Pass::mixed(&assignment), batches);
        tensors.extend(collect(&subnet).into_iter().filter(|(name, _)| is_norm(name)));
        let (kind, shapes, plan) = (ArtifactKind::PackedPlan, weight_shapes(&graph), Some(in_order));
        let description = Description { kind, shapes, plan, ..description.clone() }.of_graph(graph);
        Ok(Self { description, tensors })
    }

    fn network(&self, device: &Device) -> Result<Model, ArtifactError> {
        let graph = self.checked_graph()?;
        if graph.array_inputs().count() > 1 {
            return Err(ArtifactError::network("a network with several inputs: expected one"));
        }
        let mut network = Model::zeros(graph.clone(), device);
        let constant = |(at, of): (usize, &graph::Constant)| {
            let array = Array::constant(self, of).map_err(ArtifactError::network)?;
            Ok::<_, ArtifactError>((at, array))
        };
        network = network.with_constants(graph.constants().map(constant).collect::<Result<_, _>>()?);
        let mut weights = BTreeMap::new();
        if let Some(config) = self.description.quantization() {
            network = network.prepare(&config);
            if let Some(plan) = &config.plan {
                // The network is prepared as the plan says: whether it names the layers is all there is to find out.
                Assignment::new(&mut network, plan)?;
            }
            for layer in quantized_layers(network.graph(), &config) {
                weights.insert(weight_name(&layer.name), layer);
            }
        }
        let nested = match self.description.kind {
            ArtifactKind::Nested => self.nested()?,
            _ => BTreeMap::new(),
        };
        let calibrated = match self.description.kind {
            ArtifactKind::Calibrated => {
                let names = network.graph().layers().iter().map(|layer| layer.name.clone());
                names.zip(self.calibrated()?).filter_map(|(name, layer)| Some((name, layer?))).collect()
            }
            _ => BTreeMap::new(),
        };
        let (path, used, error) = (vec![], BTreeSet::new(), None);
        let mut loader = Loader { path, artifact: self, weights, nested, calibrated, used, error };
        let network = network.map_named(&mut loader);
        if let Some(error) = loader.error {
            return Err(error);
        }
        loader.used.extend(self.graph()?.constants().map(|(_, constant)| constant.name.clone()));
        let is_left = |name: &&String| !loader.used.contains(*name) && !ATTACHMENTS.contains(&name.as_str());
        match self.tensors.keys().find(is_left) {
            Some(name) => Err(ArtifactError::Superfluous(name.clone())),
            None => Ok(network.valid()),
        }
    }

    fn checked_graph(&self) -> Result<&Graph, ArtifactError> {
        let graph = self.graph()?;
        check_size(self.payload_bytes(), least_bytes(graph))?;
        let expected = match self.description.task.as_str() {
            DETECT => self.description.classes + BOX_OUTPUTS,
            CLASSIFY | SEGMENT | LANGUAGE => self.description.classes,
            // Of other programs.
            _ => return Ok(graph),
        };
        match graph.result_kind() {
            Some(Kind::Rows(Some(found))) if found == expected => Ok(graph),
            found => {
                Err(ArtifactError::network(format!("a result of {found:?}: expected rows of {expected}")))
            }
        }
    }

    fn check_precision(&self, precision: Precision) -> Result<(), ArtifactError> {
        let found = self.description.kind;
        let expected = self.description.precisions().filter(|_| found != ArtifactKind::Nested);
        let expected =
            expected.ok_or(ArtifactError::Kind { found, expected: "multi-precision or packed" })?;
        match expected.position(precision) {
            Some(_) => Ok(()),
            None => Err(ArtifactError::Precision { precision, expected }),
        }
    }

    fn open(path: &Path) -> Result<Self, ArtifactError> {
        Self::load(path)?.with_graph().map_err(|error| error.in_file(path))
    }

    fn with_graph(mut self) -> Result<Self, ArtifactError> {
        if self.description.graph.is_none() {
            let graph = self.description.traced(self.payload_bytes())?;
            self.description.graph = Some(graph);
        }
        self.checked_graph()?;
        Ok(self)
    }

    fn save(&self, path: &Path) -> Result<(), ArtifactError> {
        let bytes = self.to_bytes().map_err(|error| error.in_file(path))?;
        write_atomically(path, &bytes).map_err(|error| ArtifactError::Write(error).in_file(path))
    }
}

/// How a model with several precisions was quantized.
fn several_precisions(description: &Description) -> Result<QuantConfig, ArtifactError> {
    let found = description.kind;
    let config = description.quantization().filter(|_| found == ArtifactKind::MultiPrecision);
    config.ok_or(ArtifactError::Kind { found, expected: "multi-precision" })
}

/// A model with nested weights at one of its precisions.
fn nested_at(artifact: &Artifact, precision: Precision) -> Result<Artifact, ArtifactError> {
    let mut tensors = artifact.tensors.clone();
    for (name, weight) in artifact.nested()? {
        weight.tensors(&name).iter().for_each(|(name, _)| drop(tensors.remove(name)));
        let only = weight.only(precision.weights).or_else(|| weight.only(weight.widest()));
        tensors.extend(only.iter().flat_map(|only| only.tensors(&name)));
    }
    let precisions = PrecisionSet::of(precision);
    Ok(Artifact { description: Description { precisions, ..artifact.description.clone() }, tensors })
}

/// A model with calibrated layers at one of its precisions.
fn calibrated_at(artifact: &Artifact, precision: Precision) -> Result<Artifact, ArtifactError> {
    let mut tensors = artifact.tensors.clone();
    let description = Description { precisions: PrecisionSet::of(precision), ..artifact.description.clone() };
    for (Layer { name, .. }, layer) in artifact.graph()?.layers().iter().zip(artifact.calibrated()?) {
        let Some(layer) = layer else { continue };
        layer.tensors(name).iter().for_each(|(name, _)| drop(tensors.remove(name)));
        tensors.extend(layer.only(precision).iter().flat_map(|only| only.tensors(name)));
    }
    Ok(Artifact { description, tensors })
}

/// The same with each layer at the widths of a plan.
fn calibrated_with(artifact: &Artifact, plan: &PrecisionPlan) -> Result<Artifact, ArtifactError> {
    let (mut tensors, edge) = (artifact.tensors.clone(), artifact.description.edge);
    let names = artifact.graph()?.layers().iter().map(|layer| layer.name.as_str());
    let layers: Vec<_> =
        names.zip(artifact.calibrated()?).filter_map(|(name, layer)| Some((name, layer?))).collect();
    if let Some((name, _)) = plan.iter().find(|(name, _)| layers.iter().all(|(layer, _)| layer != name)) {
        let names: Vec<&str> = layers.iter().map(|(name, _)| *name).collect();
        return Err(PlanFitError::Unknown { layer: name.to_owned(), expected: names.join(", ") }.into());
    }
    for (name, layer) in &layers {
        let missing = || PlanFitError::Missing { layer: (*name).to_owned(), layers: layers.len() };
        let widths = plan.get(name).ok_or_else(missing)?;
        let planned = layer.planned(widths, edge).ok_or_else(|| {
            let expected = layer.passes().iter().map(|pass| pass.widths.to_string()).collect::<BTreeSet<_>>();
            let expected = expected.into_iter().collect::<Vec<_>>().join(" or ");
            PlanFitError::Precision { layer: (*name).to_owned(), precision: widths, expected }
        })?;
        layer.tensors(name).iter().for_each(|(name, _)| drop(tensors.remove(name)));
        tensors.extend(planned.tensors(name));
    }
    let precisions = PrecisionSet::of(edge);
    let description = Description { precisions, plan: Some(plan.clone()), ..artifact.description.clone() };
    Ok(Artifact { description, tensors })
}

/// The tensors with the codes of each layer switched to its precision of `precision` and packed, and with no other
/// scales.
fn packed(
    artifact: &Artifact, graph: &Graph, config: &QuantConfig, precision: impl Fn(&str) -> Precision,
) -> Result<BTreeMap<String, TensorEntry>, ArtifactError> {
    let mut tensors = artifact.tensors.clone();
    for layer in quantized_layers(graph, config) {
        let stored = stored(artifact, &layer)?;
        let Quantized { name, spec, shape } = layer;
        let (wi, ai) = spec.format.positions(precision(&name)).unwrap_or((0, 0));
        let scale = scales(artifact, &name, wi, spec.scale_count(&shape))?;
        let packed = switch(&stored, spec.format.weights[wi], scale).map_err(ArtifactError::network)?;
        let words = words(&packed)?;
        tensors.insert(weight_name(&name), TensorEntry::u32([words.len()], words));
        for (part, kept) in [("weight_scales", wi), ("activation_scales", ai), ("zero_points", ai)] {
            keep_only(&mut tensors, &format!("{name}.quantizers.{part}."), kept);
        }
    }
    Ok(tensors)
}

/// A layer's scales of one width.
fn scales(
    artifact: &Artifact, layer: &str, position: usize, count: usize,
) -> Result<Tensor<1>, ArtifactError> {
    let scales = artifact.f32(&format!("{layer}.quantizers.weight_scales.{position}"), &[count])?;
    Ok(Tensor::from_data(TensorData::from(scales), &Device::flex()))
}

/// A layer's stored codes, packed, with their scales. Of a packed artifact: the only codes there are.
fn stored(artifact: &Artifact, layer: &Quantized) -> Result<PackedTensor, ArtifactError> {
    let Quantized { name: layer, spec, shape } = layer;
    let (name, bits) = (weight_name(layer), spec.format.weights[0]);
    if let Some(found) = artifact.description.shapes.get(&name).filter(|found| *found != shape) {
        return Err(ArtifactError::Shape { name, found: found.clone(), expected: shape.clone() });
    }
    let words = match artifact.description.kind {
        ArtifactKind::Packed(_) | ArtifactKind::PackedPlan => {
            let elements = shape.iter().product();
            artifact.values::<u32>(&name, &[dr_kernels::layout::packed_words(elements, bits)])?.to_vec()
        }
        _ => layout::pack(&artifact.values::<i8>(&name, shape)?, bits).map_err(ArtifactError::network)?,
    };
    let device = Device::flex();
    let words = Tensor::<1, Int>::from_data(TensorData::from(words.as_slice()), (&device, DType::U32));
    let scale = scales(artifact, layer, 0, spec.scale_count(shape))?;
    PackedTensor::new(words, scale, None, shape, spec.format.spec(bits)).map_err(ArtifactError::network)
}

/// Whether tensors of so many bytes can be those of a network that takes at least so many.
pub(super) fn check_size(found: usize, expected: usize) -> Result<(), ArtifactError> {
    match found < expected {
        true => Err(ArtifactError::network(format!(
            "its tensors have {found} bytes: expected at least {expected}, for the sizes that it describes"
        ))),
        false => Ok(()),
    }
}

/// A weight takes at least a byte divided by this: 2 bits.
const LARGEST_PART: usize = 4;

/// Bytes that the tensors of a network have at least.
fn least_bytes(graph: &Graph) -> usize {
    let product = |shape: &[usize]| shape.iter().fold(1usize, |product, &size| product.saturating_mul(size));
    let weights = graph.layers().iter().map(|layer| product(&layer.kind.weight_shape()) / LARGEST_PART);
    let floats = |count: usize| count.saturating_mul(size_of::<f32>());
    let biases = graph.layers().iter().filter(|layer| layer.bias).map(|layer| floats(layer.kind.outputs()));
    let batch_norms = graph.batch_norms().iter().map(|norm| floats(4 * norm.features));
    let rms_norms = graph.rms_norms().iter().map(|norm| floats(norm.features));
    let embeddings = graph.embeddings().iter().map(|embedding| match embedding {
        Embedding::Own { vocabulary, features, .. } => product(&[*vocabulary, *features]),
        Embedding::Layer(_) => 0,
    });
    let all = weights.chain(biases).chain(batch_norms).chain(rms_norms).chain(embeddings);
    all.fold(0, usize::saturating_add)
}

/// Of the tensors `prefix.0..`, `prefix.1..` and so on keeps one, as number 0.
fn keep_only(tensors: &mut BTreeMap<String, TensorEntry>, prefix: &str, kept: usize) {
    let names: Vec<String> = tensors.keys().filter(|name| name.starts_with(prefix)).cloned().collect();
    for name in names {
        let Some(entry) = tensors.remove(&name) else { continue };
        let rest = &name[prefix.len()..];
        let (index, tail) = rest.find('.').map_or((rest, ""), |dot| rest.split_at(dot));
        if index == kept.to_string() {
            tensors.insert(format!("{prefix}0{tail}"), entry);
        }
    }
}

/// In the names of the tensors of BatchNorms.
const NORMS: &str = ".norms.";

/// The shapes of all weights by name, for readers that do not know the graph.
fn weight_shapes(graph: &Graph) -> BTreeMap<String, Vec<usize>> {
    graph.layers().iter().map(|layer| (weight_name(&layer.name), layer.kind.weight_shape())).collect()
}

fn weight_name(layer: &str) -> String {
    format!("{layer}.weight")
}

/// What is to know of one quantized layer.
struct Quantized {
    name: String,
    spec: LayerSpec,
    /// Of the weight.
    shape: Vec<usize>,
}

fn quantized_layers(graph: &Graph, config: &QuantConfig) -> Vec<Quantized> {
    let describe = |(at, layer): (usize, &graph::Layer)| Quantized {
        spec: LayerSpec::new(config, graph, at),
        shape: layer.kind.weight_shape(),
        name: layer.name.clone(),
    };
    graph.layers().iter().enumerate().map(describe).collect()
}

/// Quantizes a layer's float weight with its stored scale.
fn stored_codes(
    tensors: &BTreeMap<String, TensorEntry>, layer: &str, spec: &LayerSpec,
) -> Result<PackedTensor, ArtifactError> {
    let find = |name: String| match tensors.get(&name) {
        Some(TensorEntry { shape, data: TensorValues::F32(values) }) => Ok((shape.clone(), values)),
        _ => Err(ArtifactError::network(format!("it has no `{name}`"))),
    };
    let (shape, weight) = find(weight_name(layer))?;
    let (_, scale) = find(format!("{layer}.quantizers.weight_scales.0"))?;
    let device = Device::flex();
    let rows = shape[0];
    let weight = Tensor::<1>::from_data(TensorData::from(&weight[..]), &device);
    let weight = weight.reshape([rows as i32, -1]);
    let scale = Tensor::from_data(TensorData::from(&scale[..]), &device);
    let packed = quantize_pack::<2>(weight, scale.clone(), None, spec.format.spec(spec.format.weights[0]))
        .map_err(ArtifactError::network)?;
    PackedTensor::new(packed.words().clone(), scale, None, &shape, *packed.spec())
        .map_err(ArtifactError::network)
}

fn words<C: CodeState>(packed: &PackedTensor<C>) -> Result<Vec<u32>, ArtifactError> {
    packed.words().clone().into_data().try_into_vec().map_err(ArtifactError::network)
}

/// All float parameters and statistics by path.
fn collect(model: &Model) -> BTreeMap<String, TensorEntry> {
    let mut tensors = BTreeMap::new();
    model.visit_named(&mut EachParameter::new(|path, _, shape, values| {
        let values = values().convert::<f32>().try_into_vec().unwrap_or_default();
        tensors.insert(path, TensorEntry::f32(shape, values));
    }));
    tensors
}

/// The names of all float parameters and statistics, and their shapes.
#[cfg(feature = "program")]
pub(crate) fn parameter_shapes(model: &Model) -> Vec<(String, Vec<usize>)> {
    let mut found = vec![];
    model.visit_named(&mut EachParameter::new(|path, _, shape, _| found.push((path, shape))));
    found
}

/// Replaces every parameter by what the artifact has under its path.
struct Loader<'a> {
    path: Vec<String>,
    artifact: &'a Artifact,
    weights: BTreeMap<String, Quantized>,
    nested: BTreeMap<String, NestedWeight>,
    calibrated: BTreeMap<String, CalibratedLayer>,
    used: BTreeSet<String>,
    error: Option<ArtifactError>,
}

impl Loader<'_> {
    fn value<const D: usize>(
        &mut self, shape: [usize; D], device: &Device,
    ) -> Result<Tensor<D>, ArtifactError> {
        let name = self.path.join(".");
        let calibrated = name.rsplit_once('.').and_then(|(layer, part)| {
            let (name, layer) = self.calibrated.get_key_value(layer)?;
            let pass = layer.passes().first()?;
            let values = match part {
                "weight" => layer.dequantized(pass.precision)?,
                _ => pass.bias.to_vec(),
            };
            Some((name, layer, values))
        });
        let nested = name.strip_suffix(".weight").and_then(|layer| self.nested.get_key_value(layer));
        let data = if let Some((layer, of, values)) = calibrated {
            self.used.extend(of.tensors(layer).into_iter().map(|(name, _)| name));
            TensorData::new(values, shape)
        } else if let Some((layer, weight)) = nested {
            self.used.extend(weight.tensors(layer).into_iter().map(|(name, _)| name));
            TensorData::new(weight.dequantized(weight.widest()).unwrap_or_default(), shape)
        } else if let Some(layer) = self.weights.get(&name) {
            let stored = stored(self.artifact, layer)?;
            dequantize::<D>(&stored).map_err(ArtifactError::network)?.into_data()
        } else {
            TensorData::new(self.artifact.f32(&name, &shape)?.to_vec(), shape)
        };
        self.used.insert(name);
        Ok(Tensor::from_data(data, device))
    }
}

impl ModuleMapper for Loader<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, old, mapper) = param.consume();
        let value = self.value(old.dims(), &old.device()).unwrap_or_else(|error| {
            self.error.get_or_insert(error);
            old
        });
        Param::from_mapped_value(id, value, mapper)
    }
}
