//! [`Description`]: what an artifact says about itself.

use super::{ArtifactError, FORMAT_VERSION};
use crate::config::{BatchNormKind, DatasetKind, MixedNorm, ModelKind, TaskKind};
use crate::data::{DataSource, ImageShape, Normalization};
use crate::models::{BOX_OUTPUTS, LlamaConfig};
use crate::nn::QuantConfig;
use dr_precision::{Precision, PrecisionPlan, PrecisionSet};
use dr_runtime::graph::{Graph, Kind, Op};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::path::Path;

/// What the tensors of an artifact are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ArtifactKind {
    /// 32-bit float weights; the precisions are not used.
    Float,
    /// Master codes of the highest precision, one byte each, and scales for every precision.
    MultiPrecision,
    /// Exported at one precision: packed codes.
    Packed(Precision),
    /// Exported with a precision for each layer: packed codes.
    PackedPlan,
}

impl fmt::Display for ArtifactKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Float => f.pad("float"),
            Self::MultiPrecision => f.pad("multi-precision"),
            Self::Packed(precision) => f.pad(&format!("packed {precision}")),
            Self::PackedPlan => f.pad("packed plan"),
        }
    }
}

/// The shape of one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputShape {
    /// Colours.
    pub channels: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl From<ImageShape> for InputShape {
    fn from(shape: ImageShape) -> Self {
        Self { channels: shape.channels, height: shape.height, width: shape.width }
    }
}

impl fmt::Display for InputShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}x{}", self.channels, self.height, self.width)
    }
}

/// What an artifact says about itself. JSON in the metadata of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// [`FORMAT_VERSION`], or an earlier one.
    pub format_version: u32,
    /// What the tensors are.
    pub kind: ArtifactKind,
    /// What it does.
    #[serde(default, skip_serializing_if = "is_classification")]
    pub task: TaskKind,
    /// The name of the network; of segmentations and detections, of what its pyramid of features stands on.
    pub model: String,
    /// Channels of the network's first stage.
    pub width: usize,
    /// The shape of an image.
    pub input: InputShape,
    /// How many classes the network tells apart; of a segmentation with the background, which is the first.
    pub classes: usize,
    /// What it was trained on.
    pub dataset: DatasetKind,
    /// What is done to pixels.
    pub normalization: Normalization,
    /// The precisions it was trained for.
    pub precisions: PrecisionSet,
    /// What the first and the last layer compute in at every precision.
    pub edge: Precision,
    /// They do not: they switch like all others.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub switch_edge: bool,
    /// Whether precisions share their BatchNorm.
    pub batch_norm: BatchNormKind,
    /// How many inputs of an output of a linear layer share a scale, if not all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_size: Option<NonZeroUsize>,
    /// Which BatchNorm mixed passes use, if the network was trained for them (a supernet).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mixed: Option<MixedNorm>,
    /// The sizes of a language model; the `width` is then the number of features of a position, `input` has as many columns as
    /// the context has positions, and `classes` are tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<LlamaConfig>,
    /// The precision of each layer of a packed plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<PrecisionPlan>,
    /// The shapes of packed weights by name, for readers that do not know the network.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub shapes: BTreeMap<String, Vec<usize>>,
    /// What the network computes. Files of version 1 have none: theirs are the networks of this crate, by name and sizes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub graph: Option<Graph>,
    /// The seed of its training.
    pub seed: u64,
    /// Lower-case hexadecimal SHA-256 of the file, as the [module](super) says. Filled in when the file is written;
    /// leave it empty until then.
    pub checksum: String,
}

impl Description {
    /// A float network of the usual width, with pixels left as they are, a BatchNorm for each precision and the seed 0.
    #[must_use]
    pub fn new(
        dataset: DatasetKind, model: ModelKind, input: InputShape, classes: usize, precisions: PrecisionSet,
    ) -> Self {
        let channels = input.channels;
        Self {
            format_version: FORMAT_VERSION,
            kind: ArtifactKind::Float,
            task: TaskKind::Classify,
            model: model.to_string(),
            width: model.usual_width(),
            input,
            classes,
            dataset,
            normalization: Normalization { mean: vec![0.0; channels], std: vec![1.0; channels] },
            edge: QuantConfig::new(precisions.clone()).edge,
            switch_edge: false,
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

    /// A float language model of these sizes, with the seed 0.
    #[must_use]
    pub fn language(config: LlamaConfig, precisions: PrecisionSet) -> Self {
        let input = InputShape { channels: 1, height: 1, width: config.context };
        Self {
            width: config.hidden,
            task: TaskKind::Language,
            language: Some(config.clone()),
            ..Self::new(DatasetKind::Text, ModelKind::Llama, input, config.vocabulary, precisions)
        }
    }

    /// The images of a dataset, as the model takes them.
    #[must_use]
    pub const fn images<'a>(&self, dataset: DatasetKind, data_dir: Option<&'a Path>) -> DataSource<'a> {
        DataSource { image_size: self.input.height, ..DataSource::new(dataset, data_dir, self.seed) }
    }

    /// Tokens that end a text.
    #[must_use]
    pub fn end_tokens(&self) -> &[u32] {
        self.language.as_ref().map_or(&[], |language| &language.end_tokens)
    }

    /// Whether the parts fit together.
    pub(crate) fn check(&self) -> Result<(), ArtifactError> {
        if !(1..=FORMAT_VERSION).contains(&self.format_version) {
            return Err(ArtifactError::Version(self.format_version));
        }
        let wrong = |what: String| Err(ArtifactError::Description(what));
        let sizes = [
            ("width", self.width),
            ("input.channels", self.input.channels),
            ("input.height", self.input.height),
            ("input.width", self.input.width),
            ("classes", self.classes),
        ];
        for (name, size) in sizes {
            if !(1..=MAX_SIZE).contains(&size) {
                return wrong(format!("{name} is {size}: expected 1 to {MAX_SIZE}"));
            }
        }
        let is_llama = self.model == ModelKind::Llama.to_string();
        if self.graph.is_none() && (self.task == TaskKind::Language) != self.language.is_some() {
            return wrong(format!(
                "task {}: expected the sizes of a language model with lm, and only there",
                self.task
            ));
        }
        match &self.language {
            Some(config) => {
                config.check().map_err(|error| ArtifactError::Description(error.to_string()))?;
                let sizes = (self.width, self.input.width, self.classes);
                if !is_llama || sizes != (config.hidden, config.context, config.vocabulary) {
                    return wrong(format!("a {} of other sizes than its language model", self.model));
                }
            }
            None if is_llama && self.graph.is_none() => {
                return wrong(format!("a {}: expected the sizes of a language model", self.model));
            }
            None => {}
        }
        if let Some(graph) = &self.graph {
            let rows = self.classes + if self.task == TaskKind::Detect { BOX_OUTPUTS } else { 0 };
            let input = match self.task {
                TaskKind::Language => Op::Tokens,
                _ => Op::Images { channels: self.input.channels },
            };
            let (found, made) = (graph.input(), graph.result_kind());
            if found != Some(input) || made != Some(Kind::Rows(Some(rows))) {
                return wrong(format!(
                    "a graph from {found:?} to {made:?}: expected {input:?} to rows of {rows}"
                ));
            }
        }
        let Normalization { mean, std } = &self.normalization;
        for (name, values) in [("mean", mean), ("std", std)] {
            if values.len() != self.input.channels {
                return wrong(format!(
                    "normalization.{name} has {} values: expected {}, one for each input channel",
                    values.len(),
                    self.input.channels
                ));
            }
        }
        if let Some(value) = mean.iter().find(|value| !value.is_finite()) {
            return wrong(format!("normalization.mean holds {value}: expected finite numbers"));
        }
        if let Some(value) = std.iter().find(|value| !value.is_finite() || **value <= 0.0) {
            return wrong(format!("normalization.std holds {value}: expected finite numbers above 0"));
        }
        if let ArtifactKind::Packed(precision) = self.kind
            && self.precisions.position(precision).is_none()
        {
            return wrong(format!(
                "it is packed at {precision}: expected one of its precisions {}",
                self.precisions
            ));
        }
        if (self.kind == ArtifactKind::PackedPlan) != self.plan.is_some() {
            return wrong(format!("a {} model: expected a plan in packed plans, and only there", self.kind));
        }
        Ok(())
    }
}

/// Whether it is the task of files that do not say it.
fn is_classification(task: &TaskKind) -> bool {
    *task == TaskKind::Classify
}

/// Above every size that makes sense; keeps products of sizes far from overflow.
const MAX_SIZE: usize = 1 << 22;
