//! The best plan for a budget, and the best plans for all budgets.

use super::search::{self, Choice, LayerChoices, Optimum, SearchError};
use super::{Budget, BudgetKind, Candidate, Candidates};
use crate::agreement::ArraysError;
use crate::artifact::ArtifactError;
use crate::evaluation::EvaluationError;
use dr_precision::{Precision, PrecisionPlan};
use serde::Serialize;
use thiserror::Error;

/// Why no plan could be searched for or found. Every message is one line.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SearchPlanError {
    /// The model.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// Its latency cannot be measured.
    #[error(transparent)]
    Evaluation(#[from] EvaluationError),
    /// A network whose inputs have sizes of which nothing is known.
    #[error("a network that takes arrays: expected one for images or texts")]
    Arrays,
    /// Outputs that cannot be compared.
    #[error(transparent)]
    Outputs(#[from] ArraysError),
    /// Nested weights of which nobody knows what their widths cost.
    #[error(
        "the layer `{0}` has no sensitivities: expected a model whose gradients were taken when it was quantized"
    )]
    NoSensitivity(String),
    /// Traces without one of the layers.
    #[error("the traces have none for the layer `{0}`: expected one for each layer of the model")]
    NoTrace(String),
    /// Traces of other layers.
    #[error("the traces have the layer `{found}`: expected `{expected}`, as the model has there")]
    TraceLayer {
        /// In the traces.
        found: String,
        /// In the model.
        expected: String,
    },
    /// A trace more than there are layers.
    #[error("the traces have the layer `{0}`: expected only those of the model, which has none of that name")]
    UnknownTrace(String),
    /// A trace of a layer of another size.
    #[error("the traces' layer `{layer}` has {found} weights: expected {expected}, as the model's has")]
    TraceSize {
        /// The layer.
        layer: String,
        /// In the traces.
        found: u64,
        /// In the model.
        expected: u64,
    },
    /// A trace that is not a number.
    #[error("the trace of the layer `{0}` is not finite: expected a number")]
    TraceValue(String),
    /// A pin for a layer that there is not.
    #[error("pin `{layer}`: not a layer of the model; expected one of {expected}")]
    UnknownPin {
        /// As it was given.
        layer: String,
        /// The model's layers.
        expected: String,
    },
    /// Two pins for one layer.
    #[error("pin `{0}`: the layer is pinned twice; expected one precision for it")]
    RepeatedPin(String),
    /// A pin at a precision that the layer does not have.
    #[error("pin `{layer}={precision}`: expected {expected}, which the layer has")]
    Pin {
        /// The layer.
        layer: String,
        /// As it was given.
        precision: Precision,
        /// What it has.
        expected: String,
    },
    /// A budget of time, without any times.
    #[error("budget `{0}`: the layers' times were not measured")]
    NotTimed(Budget),
    /// A budget that no plan keeps to.
    #[error("budget `{budget}` is too small: the smallest possible is `{smallest}`")]
    Impossible {
        /// What was asked for.
        budget: Budget,
        /// What the cheapest plan takes.
        smallest: Budget,
    },
    /// Losses that cannot be compared.
    #[error(transparent)]
    Search(#[from] SearchError),
}

/// A plan and what it takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Found {
    /// The plan.
    pub plan: PrecisionPlan,
    /// What it takes.
    #[serde(flatten)]
    pub totals: Totals,
}

/// What a plan takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Totals {
    /// The loss that it is predicted to cost.
    pub predicted_loss: f64,
    /// As in [`BudgetKind::AverageBits`].
    pub average_bits: f64,
    /// As in [`BudgetKind::Size`].
    pub bytes: u64,
    /// As in [`BudgetKind::BitOps`].
    pub bit_ops: u64,
    /// As in [`BudgetKind::Latency`], if it was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predicted_nanoseconds: Option<u64>,
}

impl Totals {
    /// What of it a budget of this kind limits, as such a budget.
    #[must_use]
    pub fn as_budget(&self, kind: BudgetKind) -> Option<Budget> {
        let value = match kind {
            BudgetKind::AverageBits => self.average_bits,
            BudgetKind::Size => self.bytes as f64,
            BudgetKind::BitOps => self.bit_ops as f64,
            BudgetKind::Latency => self.predicted_nanoseconds? as f64,
        };
        Some(Budget::new(kind, value))
    }
}

impl Candidates {
    /// The plan with the least predicted loss within the budget: an exact optimum.
    ///
    /// # Errors
    /// [`SearchPlanError::Impossible`] if there is none, which names the smallest possible budget.
    pub fn best(&self, budget: &Budget) -> Result<Found, SearchPlanError> {
        let layers = self.problem(budget)?;
        self.check_budget(budget)?;
        let limit = (self.limit(budget) - self.constant(budget.kind()) as f64).max(0.0) as u64;
        let Optimum { picks, .. } = search::minimize(&layers, limit)?;
        Ok(self.found(&picks))
    }

    /// Whether there is a plan within the budget; losses need not be known for that.
    ///
    /// # Errors
    /// [`SearchPlanError::Impossible`] if not.
    pub fn check_budget(&self, budget: &Budget) -> Result<(), SearchPlanError> {
        let smallest = search::smallest(&self.problem(budget)?) + self.constant(budget.kind());
        if smallest as f64 > self.limit(budget) {
            let smallest = self.budget(budget.kind(), smallest);
            return Err(SearchPlanError::Impossible { budget: *budget, smallest });
        }
        Ok(())
    }

    /// The best plans for budgets of a kind, evenly spread from the smallest possible to what the best plan of all takes.
    /// Plans that are best for several of them are listed once.
    ///
    /// # Errors
    /// Those of [`Candidates::best`].
    pub fn front(&self, kind: BudgetKind, budgets: usize) -> Result<Vec<Found>, SearchPlanError> {
        // Any budget of this kind.
        let any = self.budget(kind, 1);
        let layers = self.problem(&any)?;
        let smallest = search::smallest(&layers);
        let most = |layer: &LayerChoices| layer.choices.iter().map(|choice| choice.cost).max().unwrap_or(0);
        let Optimum { cost: largest, .. } = search::minimize(&layers, layers.iter().map(most).sum())?;
        let mut front: Vec<Found> = vec![];
        for step in 0..budgets {
            let part = step as f64 / (budgets - 1).max(1) as f64;
            let budget = smallest + ((largest - smallest) as f64 * part).round() as u64;
            let found = self.found(&search::minimize(&layers, budget)?.picks);
            if front.last().is_none_or(|last| last.plan != found.plan) {
                front.push(found);
            }
        }
        Ok(front)
    }

    /// The plan with the choices at these positions, and what it takes.
    ///
    /// # Panics
    /// If there are no such choices.
    #[must_use]
    pub fn found(&self, picks: &[usize]) -> Found {
        let chosen = || self.layers.iter().zip(picks).map(|(layer, &pick)| &layer.choices[pick]);
        let bits = self.layers.iter().zip(chosen()).map(|(layer, choice)| layer.bits(choice)).sum::<u64>();
        let times: Option<u64> = chosen().map(|choice| choice.nanoseconds).sum();
        Found {
            plan: self.plan(picks),
            totals: Totals {
                predicted_loss: chosen().map(|choice| choice.loss).sum(),
                average_bits: bits as f64 / self.free_weights(),
                bytes: self.other_bytes + chosen().map(|choice| choice.bytes).sum::<u64>(),
                bit_ops: chosen().map(|choice| choice.bit_ops).sum(),
                predicted_nanoseconds: self
                    .other_nanoseconds
                    .zip(times)
                    .map(|(other, layers)| other + layers),
            },
        }
    }

    /// The layers' choices with their costs: bits, bytes, bit operations or nanoseconds.
    fn problem(&self, budget: &Budget) -> Result<Vec<LayerChoices>, SearchPlanError> {
        let layer = |layer: &super::LayerCandidates| {
            let choice = |choice: &Candidate| {
                let cost = match budget.kind() {
                    BudgetKind::AverageBits => Some(layer.bits(choice)),
                    BudgetKind::Size => Some(choice.bytes),
                    BudgetKind::BitOps => Some(choice.bit_ops),
                    BudgetKind::Latency => choice.nanoseconds,
                };
                cost.map(|cost| Choice { loss: choice.loss, cost })
            };
            let choices = layer.choices.iter().map(choice).collect::<Option<_>>()?;
            Some(LayerChoices { name: layer.name.clone(), choices })
        };
        let layers: Option<Vec<LayerChoices>> = self.layers.iter().map(layer).collect();
        layers.ok_or(SearchPlanError::NotTimed(*budget))
    }

    /// What every plan costs, in the unit of the budget's costs.
    fn constant(&self, kind: BudgetKind) -> u64 {
        match kind {
            BudgetKind::Size => self.other_bytes,
            BudgetKind::Latency => self.other_nanoseconds.unwrap_or(0),
            BudgetKind::AverageBits | BudgetKind::BitOps => 0,
        }
    }

    /// What a plan may cost, in that unit.
    fn limit(&self, budget: &Budget) -> f64 {
        match budget.kind() {
            // Against the rounding of the product: 4.1 bits of 1000 weights are 4100.
            BudgetKind::AverageBits => (budget.value() * self.free_weights() * (1.0 + 1e-12)).floor(),
            _ => budget.value(),
        }
    }

    /// The budget that allows costs of `cost` in that unit.
    fn budget(&self, kind: BudgetKind, cost: u64) -> Budget {
        let weights = if kind == BudgetKind::AverageBits { self.free_weights() } else { 1.0 };
        Budget::new(kind, cost as f64 / weights)
    }

    /// Weights of all layers but the first and the last.
    fn free_weights(&self) -> f64 {
        self.layers.iter().filter(|layer| !layer.edge).map(|layer| layer.weights).sum::<u64>().max(1) as f64
    }
}

impl super::LayerCandidates {
    /// Bits of the layer's weights, if they count; see [`BudgetKind::AverageBits`].
    fn bits(&self, choice: &Candidate) -> u64 {
        if self.edge { 0 } else { self.weights * u64::from(choice.precision.weights.bits()) }
    }
}
