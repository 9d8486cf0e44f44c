//! [`Described`]: what files say about the networks of this crate.

use super::{ArtifactError, ArtifactKind, Description, FORMAT_VERSION, InputShape};
use crate::config::task::{CLASSIFY, DETECT, LANGUAGE, SEGMENT};
use crate::config::{BatchNormKind, Fit};
use crate::data::{ImageShape, Normalization};
use crate::models::{LlamaConfig, LlamaKind, ModelKind, Sizes, models};
use crate::nn::{Model, QuantConfig};
use burn::tensor::Device;
use dr_precision::PrecisionSet;
use dr_runtime::file::Resize;
use dr_runtime::graph::Graph;
use std::collections::BTreeMap;

impl From<ImageShape> for InputShape {
    fn from(shape: ImageShape) -> Self {
        Self { channels: shape.channels, height: shape.height, width: shape.width }
    }
}

impl From<InputShape> for ImageShape {
    fn from(shape: InputShape) -> Self {
        Self { channels: shape.channels, height: shape.height, width: shape.width }
    }
}

/// What a [`Description`] says, in the words of this crate.
pub trait Described: Sized {
    /// A float network of the usual width, with pixels left as they are, a BatchNorm for each precision and the seed 0.
    #[must_use]
    fn new(
        dataset: &str, model: &dyn ModelKind, input: InputShape, classes: usize, precisions: PrecisionSet,
    ) -> Self;

    /// A float language model of these sizes, with the seed 0.
    #[must_use]
    fn of_language(config: &LlamaConfig, precisions: PrecisionSet) -> Self;

    /// How the network inside is quantized; `None` for a float one, and one with nested weights or calibrated layers.
    fn quantization(&self) -> Option<QuantConfig>;

    /// Whether the network does what is asked for.
    ///
    /// # Errors
    /// If it does something else.
    fn check_task(&self, expected: &str) -> Result<(), ArtifactError>;

    /// What its network is made for.
    fn sizes(&self) -> Sizes<'_>;

    /// What of a picture becomes an image. Files of detectors and segmentations from before there was a choice say nothing of it: theirs were stretched.
    fn pictures(&self) -> Resize;

    /// The sizes of a Llama.
    ///
    /// # Errors
    /// Another network, or sizes that do not fit together.
    fn llama(&self) -> Result<LlamaConfig, ArtifactError>;

    /// The graph of the network of this crate that it names, for files that do not have it: those of version 1.
    ///
    /// # Errors
    /// A network that is not of this crate, or one that cannot be in `bytes` of tensors.
    fn traced(&self, bytes: usize) -> Result<Graph, ArtifactError>;

    /// The same of a network with this graph, as files of this version have it.
    #[must_use]
    fn of_graph(self, graph: Graph) -> Self;
}

impl Described for Description {
    fn new(
        dataset: &str, model: &dyn ModelKind, input: InputShape, classes: usize, precisions: PrecisionSet,
    ) -> Self {
        Self {
            format_version: FORMAT_VERSION,
            kind: ArtifactKind::Float,
            task: CLASSIFY.to_owned(),
            model: model.name().to_owned(),
            width: model.usual_width(),
            input,
            classes,
            class_names: vec![],
            dataset: dataset.to_string(),
            normalization: Normalization::none(input.channels),
            resize: Resize::default(),
            edge: QuantConfig::new(precisions.clone()).edge,
            switch_edge: false,
            switch_depthwise: false,
            in_floats: Default::default(),
            precisions,
            batch_norm: BatchNormKind::PerPrecision,
            group_size: None,
            mixed: None,
            language: None,
            plan: None,
            shapes: BTreeMap::new(),
            graph: None,
            seed: 0,
            checksum: String::new(),
        }
    }

    fn of_language(config: &LlamaConfig, precisions: PrecisionSet) -> Self {
        let input = InputShape { channels: 1, height: 1, width: config.context };
        let network = Self::new("text", &LlamaKind, input, config.vocabulary, precisions);
        let (task, width) = (LANGUAGE.to_owned(), config.hidden);
        Self { width, task, language: Some(config.to_json()), ..network }
    }

    fn quantization(&self) -> Option<QuantConfig> {
        if matches!(self.kind, ArtifactKind::Nested | ArtifactKind::Calibrated) {
            return None;
        }
        Some(QuantConfig {
            edge: self.edge,
            switch_edge: self.switch_edge,
            share_norm: self.batch_norm == BatchNormKind::Shared,
            mixed: self.mixed.filter(|_| self.kind == ArtifactKind::MultiPrecision),
            plan: self.plan.clone(),
            group_size: self.group_size,
            ..QuantConfig::new(self.precisions()?)
        })
    }

    fn check_task(&self, expected: &str) -> Result<(), ArtifactError> {
        let (found, expected) = (self.task.clone(), expected.to_string());
        if found == expected { Ok(()) } else { Err(ArtifactError::Task { found, expected }) }
    }

    fn sizes(&self) -> Sizes<'_> {
        let Self { input, classes, width, .. } = *self;
        Sizes { task: &self.task, input, classes, width, layers: 0 }
    }

    fn pictures(&self) -> Resize {
        match self.task.as_str() {
            SEGMENT | DETECT => Fit::from(self.resize).into(),
            _ => self.resize,
        }
    }

    fn llama(&self) -> Result<LlamaConfig, ArtifactError> {
        let language =
            self.language.as_ref().ok_or_else(|| ArtifactError::UnknownModel(self.model.clone()))?;
        let wrong = |error: &dyn std::fmt::Display| ArtifactError::Description(error.to_string());
        let config: LlamaConfig = serde_json::from_value(language.clone()).map_err(|error| wrong(&error))?;
        config.check().map_err(|error| wrong(&error))?;
        if (self.width, self.input.width, self.classes) != (config.hidden, config.context, config.vocabulary)
        {
            return Err(wrong(&format_args!("a {} of other sizes than its language model", self.model)));
        }
        Ok(config)
    }

    fn traced(&self, bytes: usize) -> Result<Graph, ArtifactError> {
        let (device, sizes, models) = (Device::flex(), self.sizes(), models());
        let check_size = |elements: usize| super::network::check_size(bytes, elements / 4);
        // No memory is taken for a network that cannot be in the file.
        let traced = if sizes.task == LANGUAGE {
            let config = self.llama()?;
            check_size(config.elements())?;
            Model::trace(&config.zeros(&device))
        } else {
            let unknown = |_| ArtifactError::UnknownModel(self.model.clone());
            let kind = models.get(&self.model).map_err(unknown)?;
            check_size(kind.largest_weight(&sizes))?;
            kind.init(&sizes, self.seed, &device)
        };
        Ok(traced.map_err(ArtifactError::network)?.graph().clone())
    }

    fn of_graph(self, graph: Graph) -> Self {
        Self { format_version: FORMAT_VERSION, graph: Some(graph), ..self }
    }
}
