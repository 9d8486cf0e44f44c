//! [`Assignment`]: a precision for every layer of one network.

use super::{Model, NamedLayer};
use burn::module::ParamId;
use dr_precision::{Precision, PrecisionPlan};
use dr_runtime::file::{ArtifactError, LayerFormat, PlanFitError};
use std::collections::HashMap;
use thiserror::Error;

/// A precision for every layer of a network, by the identity of the layer's weight.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    layers: HashMap<ParamId, Precision>,
}

/// A plan that a network cannot run.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum AssignmentError {
    /// Other layers, or precisions that they do not have.
    #[error(transparent)]
    Plan(#[from] PlanFitError),
    /// Nothing in the network is quantized.
    #[error("a plan for a float network: expected a quantized one")]
    Float,
}

impl Assignment {
    /// `plan` for `network`.
    ///
    /// # Errors
    /// A plan that does not name exactly the layers of the network, each at widths that it was prepared for.
    pub fn new(network: &mut Model, plan: &PrecisionPlan) -> Result<Self, AssignmentError> {
        let layers = network.layers();
        let format = |of: &NamedLayer<'_>| of.layer.quantizers().spec().map(|spec| spec.format.clone());
        let formats: Option<Vec<LayerFormat>> = layers.iter().map(format).collect();
        let formats = formats.ok_or(AssignmentError::Float)?;
        let named: Vec<_> =
            layers.iter().zip(&formats).map(|(layer, format)| (layer.name.as_str(), format)).collect();
        let precisions = PlanFitError::check(plan, &named)?;
        Ok(layers.iter().map(|layer| layer.layer.weight_id()).zip(precisions).collect())
    }

    /// # Panics
    /// If there is none for the layer with this weight.
    pub(super) fn of(&self, weight: ParamId) -> Precision {
        let found = self.layers.get(&weight);
        *found.unwrap_or_else(|| panic!("no precision for the layer with the weight {weight}"))
    }
}

impl FromIterator<(ParamId, Precision)> for Assignment {
    fn from_iter<T: IntoIterator<Item = (ParamId, Precision)>>(layers: T) -> Self {
        Self { layers: layers.into_iter().collect() }
    }
}

impl From<AssignmentError> for ArtifactError {
    fn from(error: AssignmentError) -> Self {
        Self::Plan(error.to_string())
    }
}
