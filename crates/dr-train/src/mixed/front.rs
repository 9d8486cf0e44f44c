//! [`Front`]: the best plans for all budgets, beside the precisions of the model.

use super::budget::time;
use super::{BudgetKind, Candidates, Found, SearchPlanError, Totals};
use crate::report::{Mark, draw_front, thousands};
use dr_precision::{Precision, PrecisionSet};
use serde::Serialize;

/// Budgets for which a front has plans.
const BUDGETS: usize = 24;

/// The best plans for budgets of one kind.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Front {
    /// What is limited.
    pub budget: BudgetKind,
    /// The plans, by what they take of it.
    pub plans: Vec<Found>,
    /// The whole network at one precision.
    pub uniform: Vec<Uniform>,
}

/// The network with all layers that can at one precision.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Uniform {
    /// The precision.
    pub precision: Precision,
    /// What it takes.
    #[serde(flatten)]
    pub totals: Totals,
}

impl Front {
    /// The best plans for 24 budgets from the smallest possible to what the best plan of all takes, and the precisions of
    /// `set`.
    ///
    /// # Errors
    /// Those of [`Candidates::best`].
    pub fn new(
        candidates: &Candidates, kind: BudgetKind, set: &PrecisionSet,
    ) -> Result<Self, SearchPlanError> {
        let uniform = |precision| {
            let totals = candidates.found(&candidates.uniform(precision)?).totals;
            Some(Uniform { precision, totals })
        };
        let plans = candidates.front(kind, BUDGETS)?;
        Ok(Self { budget: kind, plans, uniform: set.iter().filter_map(uniform).collect() })
    }

    /// The predicted loss over the budget, as SVG.
    ///
    /// # Errors
    /// A message, if it cannot be drawn.
    pub fn svg(&self, title: &str) -> Result<String, String> {
        let (axis, unit) = match self.budget {
            BudgetKind::AverageBits => ("Average bits of a weight", 1.0),
            BudgetKind::Size => ("Size (KB)", 1e3),
            BudgetKind::BitOps => ("Bit operations of an image (M)", 1e6),
            BudgetKind::Latency => ("Predicted latency (ms)", 1e6),
        };
        let at = |totals: &Totals| {
            let taken = totals.as_budget(self.budget).map_or(f64::NAN, |budget| budget.value() / unit);
            (taken, totals.predicted_loss)
        };
        let line: Vec<_> = self.plans.iter().map(|found| at(&found.totals)).collect();
        let mark = |uniform: &Uniform| Mark { name: uniform.precision.to_string(), at: at(&uniform.totals) };
        draw_front(title, axis, &line, &self.uniform.iter().map(mark).collect::<Vec<_>>())
    }

    /// The rows of a table: header, plans, precisions of the model.
    #[must_use]
    pub fn rows(&self) -> Vec<Vec<String>> {
        let header = ["plan", "average bits", "bytes", "bit operations", "predicted loss"];
        let mut rows = vec![header.map(str::to_owned).to_vec()];
        let row = |name: String, totals: &Totals| {
            let mut row = vec![
                name,
                format!("{:.3}", totals.average_bits),
                thousands(totals.bytes as usize),
                thousands(totals.bit_ops as usize),
                format!("{:.4e}", totals.predicted_loss),
            ];
            row.extend(totals.predicted_nanoseconds.map(time));
            row
        };
        rows.extend(self.uniform.iter().map(|uniform| row(uniform.precision.to_string(), &uniform.totals)));
        rows.extend(
            self.plans.iter().enumerate().map(|(i, found)| row(format!("best {}", i + 1), &found.totals)),
        );
        if rows.iter().any(|row| row.len() > header.len()) {
            rows[0].push("predicted latency".to_owned());
        }
        rows
    }
}
