//! From a network to an artifact and back.

use super::{Artifact, ArtifactError, ArtifactKind, Description, TOKENIZER, TensorEntry, TensorValues};
use crate::config::{BatchNormKind, TaskKind};
use crate::mixed::subnet;
use crate::models::{
    ConvNet, ConvNetConfig, DenseConfig, Detector, IntConvNet, IntLlama, Llama, LlamaConfig, NamedLayer,
    Network, Segmenter, WeightOnlyLlama,
};
use crate::nn::{Assignment, LayerSpec, Pass, QuantConfig};
use burn::module::{ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use dr_kernels::{PackedTensor, dequantize, quantize_pack, reference, switch};
use dr_precision::{Precision, PrecisionPlan, PrecisionSet, Signedness};
use std::collections::{BTreeMap, BTreeSet};

impl Description {
    /// How the network inside is quantized; `None` for a float one.
    #[must_use]
    pub fn quantization(&self) -> Option<QuantConfig> {
        let precisions = match self.kind {
            ArtifactKind::Float => return None,
            ArtifactKind::MultiPrecision => self.precisions.clone(),
            ArtifactKind::Packed(precision) => PrecisionSet::of(precision),
            // The layers have those of the plan.
            ArtifactKind::PackedPlan => PrecisionSet::of(self.edge),
        };
        let share_norm = self.batch_norm == BatchNormKind::Shared;
        let mixed = self.mixed.filter(|_| self.kind == ArtifactKind::MultiPrecision);
        Some(QuantConfig {
            edge: self.edge,
            switch_edge: self.switch_edge,
            share_norm,
            mixed,
            plan: self.plan.clone(),
            group_size: self.group_size,
            ..QuantConfig::new(precisions)
        })
    }
}

impl Artifact {
    /// The artifact of a network that runs as `description` says: with float weights, or master codes and the scales
    /// of all precisions. `description.kind` must not be packed; see [`Artifact::export`].
    ///
    /// # Errors
    /// [`ArtifactError::Network`] if the network is not quantized as the description says.
    pub fn of<M: Network>(mut model: M, description: Description) -> Result<Self, ArtifactError> {
        let mut tensors = collect(&model);
        if let Some(config) = description.quantization() {
            for Quantized { name, spec, shape } in quantized_layers(&mut model, &config) {
                let words = words(&stored_codes(&tensors, &name, &spec)?);
                let elements = shape.iter().product();
                let codes = reference::unpack(&words, elements, spec.weights[0], Signedness::Signed);
                let codes = codes.into_iter().map(|code| code as i8).collect(); // at most 8 bits
                tensors.insert(weight_name(&name), TensorEntry::i8(shape, codes));
            }
        }
        Ok(Self { description, tensors })
    }

    /// Training-free quantization of a float network, with its activations' scales fitted to what `batches` cause.
    ///
    /// # Errors
    /// If this is not a float artifact.
    pub fn quantize<M: Saved>(
        &self, precisions: PrecisionSet, batches: Vec<M::Input>, device: &Device,
    ) -> Result<Self, ArtifactError> {
        self.quantize_with::<M>(&QuantConfig::new(precisions), batches, device)
    }

    /// [`Artifact::quantize`] in groups, or with compensation, as `config` says; it must not have a plan, nor be for mixed passes.
    ///
    /// # Errors
    /// If this is not a float artifact.
    pub fn quantize_with<M: Saved>(
        &self, config: &QuantConfig, batches: Vec<M::Input>, device: &Device,
    ) -> Result<Self, ArtifactError> {
        let found = self.description.kind;
        let kind = ArtifactKind::MultiPrecision;
        let QuantConfig { precisions, edge, switch_edge, group_size, compensate, .. } = config.clone();
        let description =
            Description { kind, precisions, edge, switch_edge, group_size, ..self.description.clone() };
        match (found, description.quantization()) {
            (ArtifactKind::Float, Some(config)) => {
                let config = QuantConfig { compensate, ..config };
                let mut quantized =
                    Self::of(self.network::<M>(device)?.quantize(&config, batches), description)?;
                quantized.tensors.extend(
                    self.tensors.get_key_value(TOKENIZER).map(|(name, json)| (name.clone(), json.clone())),
                );
                Ok(quantized)
            }
            _ => Err(ArtifactError::Kind { found, expected: "float" }),
        }
    }

    /// The same network at one precision, its weights packed: the codes switched to their width, one scale vector for
    /// each layer, one BatchNorm.
    ///
    /// # Errors
    /// If this is not a multi-precision artifact, or was not trained for `precision`.
    pub fn export(&self, precision: Precision) -> Result<Self, ArtifactError> {
        let description = &self.description;
        let position = description.precisions.position(precision).ok_or_else(|| {
            ArtifactError::Precision { precision, expected: description.precisions.clone() }
        })?;
        let (ArtifactKind::MultiPrecision, Some(config)) = (description.kind, description.quantization())
        else {
            return Err(ArtifactError::Kind { found: description.kind, expected: "multi-precision" });
        };
        let mut tensors = self.packed(&config, |_| precision)?;
        if !config.share_norm {
            let norms: BTreeSet<String> = tensors
                .keys()
                .filter_map(|name| name.split_once(NORMS).map(|(norm, _)| format!("{norm}{NORMS}")))
                .collect();
            norms.iter().for_each(|prefix| keep_only(&mut tensors, prefix, position));
        }
        let mut description = description.clone();
        description.kind = ArtifactKind::Packed(precision);
        description.shapes = self.weight_shapes(&config)?;
        Ok(Self { description, tensors })
    }

    /// The same network with each layer at the precision that `plan` has for it, its weights packed: one scale vector and
    /// one BatchNorm for each layer, with the mean statistics of the passes of `batches` through it.
    ///
    /// # Errors
    /// If this is not a multi-precision artifact trained for mixed precision, or the plan does not fit it.
    pub fn export_plan<M: Saved>(
        &self, plan: &PrecisionPlan, batches: &[M::Input], device: &Device,
    ) -> Result<Self, ArtifactError> {
        let mut description = self.description.clone();
        let (ArtifactKind::MultiPrecision, Some(config)) = (description.kind, description.quantization())
        else {
            return Err(ArtifactError::Kind { found: description.kind, expected: "multi-precision" });
        };
        if description.mixed.is_none() {
            return Err(ArtifactError::NotMixed);
        }
        let mut network = self.network::<M>(device)?;
        let assignment = Assignment::new(&mut network, plan)?;
        let in_order = network.layers().into_iter().filter_map(|layer| {
            let precision = plan.get(&layer.name)?;
            Some((layer.name, precision))
        });
        let in_order = PrecisionPlan::new(in_order).map_err(ArtifactError::network)?;
        let mut tensors = self.packed(&config, |layer| in_order.get(layer).unwrap_or(config.edge))?;
        let is_norm = |name: &String| name.contains(NORMS);
        tensors.retain(|name, _| !is_norm(name));
        let subnet = subnet(network, &Pass::mixed(&assignment), batches);
        tensors.extend(collect(&subnet).into_iter().filter(|(name, _)| is_norm(name)));
        description.kind = ArtifactKind::PackedPlan;
        description.shapes = self.weight_shapes(&config)?;
        description.plan = Some(in_order);
        Ok(Self { description, tensors })
    }

    fn weight_shapes(&self, config: &QuantConfig) -> Result<BTreeMap<String, Vec<usize>>, ArtifactError> {
        let layers = self.quantized_layers(config)?;
        Ok(layers.into_iter().map(|layer| (weight_name(&layer.name), layer.shape)).collect())
    }

    /// The quantized layers of the network, whichever it is.
    fn quantized_layers(&self, config: &QuantConfig) -> Result<Vec<Quantized>, ArtifactError> {
        let device = Device::flex();
        Ok(match self.description.task {
            TaskKind::Classify => quantized_layers(&mut self.skeleton::<ConvNet>(&device)?, config),
            TaskKind::Segment => quantized_layers(&mut self.skeleton::<Segmenter>(&device)?, config),
            TaskKind::Detect => quantized_layers(&mut self.skeleton::<Detector>(&device)?, config),
            TaskKind::Language => quantized_layers(&mut self.skeleton::<Llama>(&device)?, config),
        })
    }

    /// The tensors with the codes of each layer switched to its precision of `precision` and packed, and with no other
    /// scales.
    fn packed(
        &self, config: &QuantConfig, precision: impl Fn(&str) -> Precision,
    ) -> Result<BTreeMap<String, TensorEntry>, ArtifactError> {
        let mut tensors = self.tensors.clone();
        for layer in self.quantized_layers(config)? {
            let stored = self.stored(&layer)?;
            let Quantized { name, spec, shape } = layer;
            let (wi, ai) = spec.positions(precision(&name)).unwrap_or((0, 0));
            let scale = self.scales(&name, wi, spec.scale_count(&shape))?;
            let packed = switch(&stored, spec.weights[wi], scale).map_err(ArtifactError::network)?;
            let words = words(&packed);
            tensors.insert(weight_name(&name), TensorEntry::u32([words.len()], words));
            for (part, kept) in [("weight_scales", wi), ("activation_scales", ai), ("zero_points", ai)] {
                keep_only(&mut tensors, &format!("{name}.quantizers.{part}."), kept);
            }
        }
        Ok(tensors)
    }

    /// The network, on `device`, in evaluation mode. It computes what the saved one did.
    ///
    /// # Errors
    /// If a tensor is missing, superfluous or of another type or shape than the description calls for.
    pub fn network<M: Saved>(&self, device: &Device) -> Result<M, ArtifactError> {
        let mut network = self.skeleton::<M>(device)?;
        let mut weights = BTreeMap::new();
        if let Some(config) = self.description.quantization() {
            if let Some(plan) = &config.plan {
                // The network is prepared as the plan says: whether it names the layers is all there is to find out.
                Assignment::new(&mut network, plan)?;
            }
            for layer in quantized_layers(&mut network, &config) {
                weights.insert(weight_name(&layer.name), layer);
            }
        }
        let mut loader = Loader { path: vec![], artifact: self, weights, used: BTreeSet::new(), error: None };
        let network = network.map(&mut loader);
        if let Some(error) = loader.error {
            return Err(error);
        }
        let is_left = |name: &&String| !loader.used.contains(*name) && *name != TOKENIZER;
        match self.tensors.keys().find(is_left) {
            Some(name) => Err(ArtifactError::Superfluous { name: name.clone() }),
            None => Ok(network.valid()),
        }
    }

    /// The network in integer arithmetic, on `device`, at `precision`; it can be switched to the others of the artifact.
    ///
    /// # Errors
    /// A float artifact, a precision that it does not have, and those of [`Artifact::network`].
    pub fn integer(&self, precision: Precision, device: &Device) -> Result<IntConvNet, ArtifactError> {
        self.check_precision(precision)?;
        Ok(self.network::<ConvNet>(device)?.to_integer(precision)?)
    }

    /// The same of a language model.
    ///
    /// # Errors
    /// Those of [`Artifact::integer`].
    pub fn integer_llama(&self, precision: Precision, device: &Device) -> Result<IntLlama, ArtifactError> {
        self.check_precision(precision)?;
        Ok(self.network::<Llama>(device)?.to_integer(precision)?)
    }

    /// A language model with packed weights that computes in floats, on `device`, at `precision`.
    ///
    /// # Errors
    /// Those of [`Artifact::integer`].
    pub fn weight_only_llama(
        &self, precision: Precision, device: &Device,
    ) -> Result<WeightOnlyLlama, ArtifactError> {
        self.check_precision(precision)?;
        Ok(self.network::<Llama>(device)?.to_weight_only(precision)?)
    }

    /// Whether the network can be computed at `precision`.
    pub(crate) fn check_precision(&self, precision: Precision) -> Result<(), ArtifactError> {
        let found = self.description.kind;
        let config = self.description.quantization();
        let config = config.ok_or(ArtifactError::Kind { found, expected: "multi-precision or packed" })?;
        if config.precisions.position(precision).is_none() {
            return Err(ArtifactError::Precision { precision, expected: config.precisions });
        }
        Ok(())
    }

    /// A network of the right architecture with other values. The file must be large enough for the widest layer that its
    /// description calls for: no memory is taken for a network that cannot be in it.
    fn skeleton<M: Saved>(&self, device: &Device) -> Result<M, ArtifactError> {
        let (expected, found) = (M::least_elements(&self.description)? / 4, self.payload_bytes());
        if found < expected {
            return Err(ArtifactError::network(format!(
                "its tensors have {found} bytes: expected at least {expected}, for the sizes that it describes"
            )));
        }
        let network = M::described(&self.description, device)?;
        Ok(match self.description.quantization() {
            Some(config) => network.prepare(&config),
            None => network,
        })
    }

    /// A layer's scales of one width.
    fn scales(&self, layer: &str, position: usize, count: usize) -> Result<Tensor<1>, ArtifactError> {
        let scales = self.f32(&format!("{layer}.quantizers.weight_scales.{position}"), &[count])?;
        Ok(Tensor::from_data(TensorData::from(scales), &Device::flex()))
    }

    /// A layer's stored codes, packed, with their scales. Of a packed artifact: the only codes there are.
    fn stored(&self, layer: &Quantized) -> Result<PackedTensor, ArtifactError> {
        let Quantized { name: layer, spec, shape } = layer;
        let (name, bits) = (weight_name(layer), spec.weights[0]);
        if let Some(found) = self.description.shapes.get(&name).filter(|found| *found != shape) {
            return Err(ArtifactError::Shape { name, found: found.clone(), expected: shape.clone() });
        }
        let words = match self.description.kind {
            ArtifactKind::Packed(_) | ArtifactKind::PackedPlan => {
                let elements = shape.iter().product();
                self.u32(&name, &[dr_kernels::layout::packed_words(elements, bits)])?.to_vec()
            }
            _ => {
                let codes: Vec<i32> = self.i8(&name, shape)?.iter().map(|&code| i32::from(code)).collect();
                let range = bits.signed_min()..=bits.signed_max();
                if let Some(code) = codes.iter().find(|code| !range.contains(code)) {
                    let expected = format!("{bits}-bit codes in {range:?}");
                    return Err(ArtifactError::Code { name, code: *code, expected });
                }
                reference::pack(&codes, bits)
            }
        };
        let device = Device::flex();
        let words = Tensor::<1, Int>::from_data(TensorData::from(words.as_slice()), (&device, DType::U32));
        let scale = self.scales(layer, 0, spec.scale_count(shape))?;
        PackedTensor::new(words, scale, None, shape, spec.format(bits)).map_err(ArtifactError::network)
    }
}

/// A network that artifacts can hold.
pub trait Saved: Network {
    /// The float network that a description calls for, with any values.
    ///
    /// # Errors
    /// A description of another kind of network.
    fn described(description: &Description, device: &Device) -> Result<Self, ArtifactError>;

    /// Elements that its weights have at least.
    ///
    /// # Errors
    /// A description of another kind of network.
    fn least_elements(description: &Description) -> Result<usize, ArtifactError>;
}

impl Description {
    fn conv_net(&self) -> Result<ConvNetConfig, ArtifactError> {
        self.check_task(TaskKind::Classify)?;
        Ok(ConvNetConfig {
            width: self.width,
            ..ConvNetConfig::new(self.model, self.input.channels, self.classes)
        })
    }

    fn dense(&self, task: TaskKind) -> Result<DenseConfig, ArtifactError> {
        self.check_task(task)?;
        let (kind, width, channels, classes) = (self.model, self.width, self.input.channels, self.classes);
        Ok(DenseConfig { kind, width, channels, classes })
    }

    /// Whether the network does what is asked for.
    ///
    /// # Errors
    /// If it does something else.
    pub fn check_task(&self, expected: TaskKind) -> Result<(), ArtifactError> {
        let found = self.task;
        if found == expected { Ok(()) } else { Err(ArtifactError::Task { found, expected }) }
    }

    /// The sizes of a language model.
    ///
    /// # Errors
    /// A network for images.
    pub fn llama(&self) -> Result<&LlamaConfig, ArtifactError> {
        let other = ArtifactError::Task { found: self.task, expected: TaskKind::Language };
        self.language.as_ref().ok_or(other)
    }
}

impl Saved for ConvNet {
    fn described(description: &Description, device: &Device) -> Result<Self, ArtifactError> {
        Ok(description.conv_net()?.init(description.seed, device))
    }

    fn least_elements(description: &Description) -> Result<usize, ArtifactError> {
        Ok(description.conv_net()?.largest_weight())
    }
}

impl Saved for Segmenter {
    fn described(description: &Description, device: &Device) -> Result<Self, ArtifactError> {
        Ok(description.dense(TaskKind::Segment)?.init_segmenter(description.seed, device))
    }

    fn least_elements(description: &Description) -> Result<usize, ArtifactError> {
        Ok(description.dense(TaskKind::Segment)?.largest_weight())
    }
}

impl Saved for Detector {
    fn described(description: &Description, device: &Device) -> Result<Self, ArtifactError> {
        Ok(description.dense(TaskKind::Detect)?.init_detector(description.seed, device))
    }

    fn least_elements(description: &Description) -> Result<usize, ArtifactError> {
        Ok(description.dense(TaskKind::Detect)?.largest_weight())
    }
}

impl Saved for Llama {
    fn described(description: &Description, device: &Device) -> Result<Self, ArtifactError> {
        Ok(description.llama()?.zeros(device))
    }

    fn least_elements(description: &Description) -> Result<usize, ArtifactError> {
        Ok(description.llama()?.elements())
    }
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

fn quantized_layers<M: Network>(model: &mut M, config: &QuantConfig) -> Vec<Quantized> {
    let describe = |layer: NamedLayer<'_>| Quantized {
        spec: LayerSpec::new(config, &layer),
        shape: layer.layer.weight_shape(),
        name: layer.name,
    };
    model.layers().into_iter().map(describe).collect()
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
    let weight = Tensor::<1>::from_data(TensorData::from(weight.as_slice()), &device);
    let weight = weight.reshape([rows as i32, -1]);
    let scale = Tensor::from_data(TensorData::from(scale.as_slice()), &device);
    let packed = quantize_pack::<2>(weight, scale.clone(), None, spec.format(spec.weights[0]))
        .map_err(ArtifactError::network)?;
    PackedTensor::new(packed.words().clone(), scale, None, &shape, *packed.spec())
        .map_err(ArtifactError::network)
}

fn words(packed: &PackedTensor) -> Vec<u32> {
    packed.words().clone().into_data().try_into_vec().unwrap_or_default()
}

/// All float parameters and statistics by path.
fn collect<M: Network>(model: &M) -> BTreeMap<String, TensorEntry> {
    let mut collector = Collector::default();
    model.visit(&mut collector);
    collector.tensors
}

/// The names of all float parameters and statistics, and their shapes.
pub(crate) fn parameter_shapes<M: Network>(model: &M) -> Vec<(String, Vec<usize>)> {
    let mut shapes = Shapes::default();
    model.visit(&mut shapes);
    shapes.found
}

#[derive(Default)]
struct Shapes {
    path: Vec<String>,
    found: Vec<(String, Vec<usize>)>,
}

impl ModuleVisitor for Shapes {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.found.push((self.path.join("."), param.lazy_shape().to_vec()));
    }
}

#[derive(Default)]
struct Collector {
    path: Vec<String>,
    tensors: BTreeMap<String, TensorEntry>,
}

impl ModuleVisitor for Collector {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = param.val();
        let values = value.clone().into_data().convert::<f32>().try_into_vec().unwrap_or_default();
        self.tensors.insert(self.path.join("."), TensorEntry::f32(value.dims(), values));
    }
}

/// Replaces every parameter by what the artifact has under its path.
struct Loader<'a> {
    path: Vec<String>,
    artifact: &'a Artifact,
    weights: BTreeMap<String, Quantized>,
    used: BTreeSet<String>,
    error: Option<ArtifactError>,
}

impl Loader<'_> {
    fn value<const D: usize>(
        &mut self, shape: [usize; D], device: &Device,
    ) -> Result<Tensor<D>, ArtifactError> {
        let name = self.path.join(".");
        let data = match self.weights.get(&name) {
            Some(layer) => {
                let stored = self.artifact.stored(layer)?;
                dequantize::<D>(&stored).map_err(ArtifactError::network)?.into_data()
            }
            None => TensorData::new(self.artifact.f32(&name, &shape)?.to_vec(), shape),
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
