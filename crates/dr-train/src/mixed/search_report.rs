//! What `dr-train search` says.

use super::budget::time;
use super::{Budget, Candidates, Found, Front, PlanFile};
use crate::config::{LossTerms, Widths};
use crate::report::{aligned, thousands};
use dr_precision::Precision;
use serde::Serialize;

/// The best plan for a budget, layer by layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SearchReport {
    /// The file, as the user named it.
    pub model: String,
    /// The budget.
    pub budget: String,
    /// What layers chose from.
    pub widths: Widths,
    /// Whose quantization costs loss.
    pub objective: LossTerms,
    /// The layers, from input to output.
    pub layers: Vec<LayerChoice>,
    /// The plan and what it takes.
    #[serde(flatten)]
    pub found: Found,
    /// How long a pass takes with the plan, if that was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured_nanoseconds: Option<u64>,
    /// Plans for other budgets, if they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub front: Option<Front>,
}

/// What was chosen for a layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerChoice {
    /// The layer.
    pub layer: String,
    /// How many weights it has.
    pub weights: u64,
    /// Multiply-accumulates for one image.
    pub macs: u64,
    /// Its average Hessian trace, if the loss is predicted from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub average_trace: Option<f64>,
    /// What was chosen.
    pub precision: Precision,
    /// The loss that this is predicted to cost.
    pub predicted_loss: f64,
}

impl SearchReport {
    /// The report on a plan that was found among candidates whose losses are known.
    #[must_use]
    pub fn new(
        model: String, budget: &Budget, widths: Widths, objective: LossTerms, candidates: &Candidates,
        found: Found, front: Option<Front>,
    ) -> Self {
        let layer = |layer: &super::LayerCandidates| {
            let precision = found.plan.get(&layer.name)?;
            let choice = layer.choices.iter().find(|choice| choice.precision == precision)?;
            Some(LayerChoice {
                layer: layer.name.clone(),
                weights: layer.weights,
                macs: layer.macs,
                average_trace: layer.average_trace,
                precision,
                predicted_loss: choice.loss,
            })
        };
        let layers = candidates.layers.iter().filter_map(layer).collect();
        Self {
            model,
            budget: budget.to_string(),
            widths,
            objective,
            layers,
            found,
            measured_nanoseconds: None,
            front,
        }
    }

    /// The plan as a file for a network of this kind.
    #[must_use]
    pub fn plan_file(&self, model: &str) -> PlanFile {
        let totals = &self.found.totals;
        PlanFile {
            model: Some(model.to_owned()),
            budget: Some(self.budget.clone()),
            average_bits: Some((totals.average_bits * 1e4).round() / 1e4),
            predicted_loss_increase: Some(totals.predicted_loss),
            plan: self.found.plan.clone(),
        }
    }

    /// As aligned text: a row for each layer, and the totals.
    #[must_use]
    pub fn table(&self) -> String {
        let traced = self.layers.iter().any(|layer| layer.average_trace.is_some());
        let trace = |text: String| traced.then_some(text);
        let row =
            |[layer, weights, macs]: [String; 3], trace: Option<String>, [precision, loss]: [String; 2]| {
                [layer, weights, macs].into_iter().chain(trace).chain([precision, loss]).collect::<Vec<_>>()
            };
        let header = ["layer", "weights", "MACs"].map(str::to_owned);
        let last = ["precision", "predicted loss"].map(str::to_owned);
        let mut rows = vec![row(header, trace("average trace".to_owned()), last)];
        rows.extend(self.layers.iter().map(|layer| {
            let [weights, macs] = [layer.weights, layer.macs].map(|count| thousands(count as usize));
            let average_trace = layer.average_trace.map(|trace| format!("{trace:.3e}")).unwrap_or_default();
            let loss = format!("{:.3e}", layer.predicted_loss);
            row(
                [layer.layer.clone(), weights, macs],
                trace(average_trace),
                [layer.precision.to_string(), loss],
            )
        }));
        let totals = &self.found.totals;
        let mut lines = vec![
            ("budget", self.budget.clone()),
            ("average bits", format!("{:.3}, of all layers but the first and the last", totals.average_bits)),
            ("size", format!("{} bytes", thousands(totals.bytes as usize))),
            ("bit operations", thousands(totals.bit_ops as usize)),
            ("predicted loss", format!("{:.4e}", totals.predicted_loss)),
        ];
        if let Some(predicted) = totals.predicted_nanoseconds {
            lines.push(("predicted latency", time(predicted)));
            lines.extend(self.measured_nanoseconds.map(|measured| {
                let above = 100.0 * (measured as f64 / predicted as f64 - 1.0);
                ("measured latency", format!("{}, {above:+.1} % from the predicted", time(measured)))
            }));
        }
        let lines = lines.iter().map(|(name, value)| format!("{name:<19}{value}\n")).collect::<String>();
        let front =
            self.front.iter().map(|front| format!("\n{}", aligned(&front.rows()))).collect::<String>();
        format!("{}\n{lines}{front}", aligned(&rows))
    }
}
