//! [`PrecisionPlan`].

use crate::{Precision, PrecisionError};
use alloc::{string::String, vec::Vec};
use serde::{Deserialize, Serialize};

/// A precision for every layer, in the order of the network.
///
/// Serialized as `{"layers": [{"layer": "stage1.0.conv1", "precision": "w4a4"}, ..]}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Layers", into = "Layers")]
pub struct PrecisionPlan {
    layers: Vec<(String, Precision)>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Layers {
    layers: Vec<Layer>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Layer {
    layer: String,
    precision: Precision,
}

impl PrecisionPlan {
    /// A plan from names and precisions.
    ///
    /// # Errors
    /// [`PrecisionError::RepeatedLayer`] if a name is listed twice.
    pub fn new(layers: impl IntoIterator<Item = (String, Precision)>) -> Result<Self, PrecisionError> {
        let layers: Vec<(String, Precision)> = layers.into_iter().collect();
        for (i, (name, _)) in layers.iter().enumerate() {
            if layers[..i].iter().any(|(earlier, _)| earlier == name) {
                return Err(PrecisionError::RepeatedLayer(name.clone()));
            }
        }
        Ok(Self { layers })
    }

    /// The precision of a layer, if the plan has one for it.
    #[must_use]
    pub fn get(&self, layer: &str) -> Option<Precision> {
        self.layers.iter().find(|(name, _)| name == layer).map(|(_, precision)| *precision)
    }

    /// Layers and their precisions in the order of the network.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, Precision)> {
        self.layers.iter().map(|(name, precision)| (name.as_str(), *precision))
    }
}

impl TryFrom<Layers> for PrecisionPlan {
    type Error = PrecisionError;

    fn try_from(layers: Layers) -> Result<Self, PrecisionError> {
        Self::new(layers.layers.into_iter().map(|l| (l.layer, l.precision)))
    }
}

impl From<PrecisionPlan> for Layers {
    fn from(plan: PrecisionPlan) -> Layers {
        let layers = plan.layers.into_iter().map(|(layer, precision)| Layer { layer, precision });
        Layers { layers: layers.collect() }
    }
}
