//! [`Assignment`]: a precision for every layer of one network.

use super::{Model, NamedLayer};
use burn::module::ParamId;
use dr_precision::{Precision, PrecisionPlan};
use dr_runtime::file::ArtifactError;
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
    /// A layer that the network does not have.
    #[error("the plan names the layer `{layer}`: expected one of {expected}")]
    Unknown {
        /// As the plan says.
        layer: String,
        /// The network's.
        expected: String,
    },
    /// A layer of the network that is not in the plan.
    #[error(
        "the plan has no precision for the layer `{layer}`: expected one for each of the {layers} layers"
    )]
    Missing {
        /// The layer.
        layer: String,
        /// How many there are.
        layers: usize,
    },
    /// A precision that the layer does not have.
    #[error("the plan wants `{layer}` at {precision}: expected {expected}, which it was trained for")]
    Precision {
        /// The layer.
        layer: String,
        /// As the plan says.
        precision: Precision,
        /// What it has.
        expected: String,
    },
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
        if let Some((layer, _)) = plan.iter().find(|(name, _)| layers.iter().all(|layer| layer.name != *name))
        {
            let names: Vec<&str> = layers.iter().map(|layer| layer.name.as_str()).collect();
            return Err(AssignmentError::Unknown { layer: layer.to_owned(), expected: names.join(", ") });
        }
        let count = layers.len();
        let of = |NamedLayer { name, layer, .. }: NamedLayer<'_>| {
            let missing = || AssignmentError::Missing { layer: name.clone(), layers: count };
            let precision = plan.get(&name).ok_or_else(missing)?;
            let spec = layer.quantizers().spec().ok_or(AssignmentError::Float)?;
            match spec.has(precision) {
                true => Ok((layer.weight_id(), precision)),
                false => Err(AssignmentError::Precision { layer: name, precision, expected: spec.widths() }),
            }
        };
        Ok(Self { layers: layers.into_iter().map(of).collect::<Result<_, _>>()? })
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
