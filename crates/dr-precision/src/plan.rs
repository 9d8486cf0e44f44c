//! [`PrecisionPlan`].

use crate::{Precision, PrecisionError};
use alloc::{collections::BTreeSet, string::String, vec::Vec};
use core::fmt;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A precision for every layer, in the order of the network.
///
/// Serialized as a map from names to precisions, `{"stem": "w8a8", "stages.0.0.conv1": "w4a4", ..}`, in that order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrecisionPlan {
    layers: Vec<(String, Precision)>,
}

impl PrecisionPlan {
    /// A plan from names and precisions.
    ///
    /// # Errors
    /// [`PrecisionError::RepeatedLayer`] if a name is listed twice.
    pub fn new(layers: impl IntoIterator<Item = (String, Precision)>) -> Result<Self, PrecisionError> {
        let layers: Vec<(String, Precision)> = layers.into_iter().collect();
        let mut seen = BTreeSet::new();
        match layers.iter().find(|(name, _)| !seen.insert(name.as_str())) {
            Some((name, _)) => Err(PrecisionError::RepeatedLayer(name.clone())),
            None => Ok(Self { layers }),
        }
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

impl Serialize for PrecisionPlan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de> Deserialize<'de> for PrecisionPlan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Layers)
    }
}

/// Reads the layers in the order in which the format lists them.
struct Layers;

impl<'de> Visitor<'de> for Layers {
    type Value = PrecisionPlan;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a precision for each layer, by name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<PrecisionPlan, A::Error> {
        let mut layers = Vec::new();
        while let Some(layer) = map.next_entry()? {
            layers.push(layer);
        }
        PrecisionPlan::new(layers).map_err(A::Error::custom)
    }
}
