//! [`NestedModel`]: the nested weights of a model, and its file.

use crate::artifact::{Artifact, ArtifactError, ArtifactKind, FORMAT_VERSION};
use crate::nn::Model;
use burn::module::{ModuleMapper, Param};
use burn::tensor::{Device, Tensor, TensorData};
use dr_precision::{BitWidth, Precision, PrecisionSet};
use dr_runtime::file::{Description, NestedWeight, STORED};
use std::collections::BTreeMap;

/// The nested weights of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct NestedModel {
    /// Of linear layers, `[features out, features in]`, and of tables of embeddings, `[vocabulary, features]`, by their paths in the network.
    pub weights: BTreeMap<String, NestedWeight>,
}

impl NestedModel {
    /// The float model with the weights that the codes stand for, each at the width that is asked for by its name; those that do not have it
    /// are as they are stored.
    #[must_use]
    pub fn dequantized(&self, model: Model, width: impl Fn(&str) -> BitWidth) -> Model {
        model.map_named(&mut Replace::new(|name: &str, part: &str, device: &Device| {
            let weight = self.weights.get(name).filter(|_| part == "weight")?;
            let values = weight.dequantized(width(name)).or_else(|| weight.dequantized(weight.widest()))?;
            Some(Tensor::from_data(TensorData::from(&values[..]), device))
        }))
    }

    /// The float model's file with these weights instead of its own; [`Artifact::nested`] reads them.
    ///
    /// # Errors
    /// If this is not a float artifact.
    pub fn artifact(&self, float: &Artifact) -> Result<Artifact, ArtifactError> {
        let Artifact { description, mut tensors } = float.clone();
        if description.kind != ArtifactKind::Float {
            return Err(ArtifactError::Kind { found: description.kind, expected: "float" });
        }
        let widths = self.weights.values().map(NestedWeight::widths).max_by_key(|widths| widths.len());
        let precisions = widths.unwrap_or_default().iter().map(|&bits| Precision::new(bits, STORED));
        let description = Description {
            format_version: FORMAT_VERSION,
            kind: ArtifactKind::Nested,
            precisions: PrecisionSet::new(precisions).map_err(ArtifactError::network)?,
            edge: Precision::uniform(STORED),
            group_size: self.weights.values().next().map(NestedWeight::group),
            ..description
        };
        tensors.extend(self.weights.iter().flat_map(|(name, weight)| weight.tensors(name)));
        Ok(Artifact { description, tensors })
    }
}

/// Puts other values in place of parameters: of the part of the layer with these names, in one row, if there are any. They may be results of others, with gradients.
pub(super) struct Replace<F> {
    path: Vec<String>,
    values: F,
}

impl<F: Fn(&str, &str, &Device) -> Option<Tensor<1>>> Replace<F> {
    pub(super) const fn new(values: F) -> Self {
        Self { path: vec![], values }
    }
}

impl<F: Fn(&str, &str, &Device) -> Option<Tensor<1>>> ModuleMapper for Replace<F> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let [path @ .., last] = &self.path[..] else { return param };
        match (self.values)(&path.join("."), last, &param.lazy_device()) {
            Some(values) => param.map(|old| values.reshape(old.dims())),
            None => param,
        }
    }
}
