//! Whether a plan fits the layers of a network.

use super::{ArtifactError, Description, LayerFormat};
use crate::graph::Graph;
use dr_precision::{Precision, PrecisionPlan};
use thiserror::Error;

/// A plan that does not fit a network.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlanFitError {
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
    #[error("the plan wants `{layer}` at {precision}: expected {expected}, which the model has for it")]
    Precision {
        /// The layer.
        layer: String,
        /// As the plan says.
        precision: Precision,
        /// What it has.
        expected: String,
    },
    /// A network whose layers cannot be switched one by one.
    #[error(
        "layers that cannot be switched one by one: expected nested weights, or a network without BatchNorm that was trained for mixtures"
    )]
    Fixed,
}

impl PlanFitError {
    /// The precision that a plan has for each of these layers, in their order.
    ///
    /// # Errors
    /// A plan that does not name exactly these layers, each at widths that it has.
    pub fn check(plan: &PrecisionPlan, layers: &[(&str, &LayerFormat)]) -> Result<Vec<Precision>, Self> {
        if let Some((layer, _)) = plan.iter().find(|(name, _)| layers.iter().all(|(layer, _)| layer != name))
        {
            let names: Vec<&str> = layers.iter().map(|(name, _)| *name).collect();
            return Err(Self::Unknown { layer: layer.to_owned(), expected: names.join(", ") });
        }
        let of = |&(name, format): &(&str, &LayerFormat)| {
            let layer = name.to_owned();
            match plan.get(name) {
                None => Err(Self::Missing { layer, layers: layers.len() }),
                Some(precision) if format.has(precision) => Ok(precision),
                Some(precision) => Err(Self::Precision { layer, precision, expected: format.widths() }),
            }
        };
        layers.iter().map(of).collect()
    }
}

impl From<PlanFitError> for ArtifactError {
    fn from(error: PlanFitError) -> Self {
        Self::Plan(error.to_string())
    }
}

impl Description {
    /// The precision that a plan has for each layer of `graph`, in its order, if the network can take it.
    ///
    /// # Errors
    /// A plan that does not name exactly the layers of the network, each at widths that it has.
    pub fn layers_of_plan(
        &self, graph: &Graph, plan: &PrecisionPlan,
    ) -> Result<Vec<Precision>, PlanFitError> {
        let edge = (!self.switch_edge).then_some(self.edge);
        let format = |at| LayerFormat::new(graph, at, &self.precisions, edge, None, self.group_size);
        let formats: Vec<LayerFormat> = (0..graph.layers().len()).map(format).collect();
        let layers: Vec<_> = graph
            .layers()
            .iter()
            .zip(&formats)
            .map(|(layer, format)| (layer.name.as_str(), format))
            .collect();
        PlanFitError::check(plan, &layers)
    }
}
