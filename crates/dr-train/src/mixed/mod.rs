//! Mixed precision: how sensitive layers are, training for all mixtures at once, and the best mixture for a budget.

#[cfg(feature = "program")]
mod best;
#[cfg(feature = "program")]
mod budget;
#[cfg(feature = "program")]
mod candidates;
mod draws;
#[cfg(feature = "program")]
mod front;
mod hasb;
mod hessian;
#[cfg(feature = "program")]
mod hessian_report;
mod hutchinson;
#[cfg(feature = "program")]
mod plan_file;
#[cfg(feature = "program")]
pub mod search;
#[cfg(feature = "program")]
mod search_report;
#[cfg(feature = "program")]
mod times;
mod traces;

pub use draws::DrawLog;
pub use hasb::{Hasb, choices};
pub use hessian::traces;
pub use traces::{HessianError, HessianOptions, LayerTrace, StepTrial, Traces};
#[cfg(feature = "program")]
pub use {
    best::{Found, SearchPlanError, Totals},
    budget::{Budget, BudgetError, BudgetKind},
    candidates::{Candidate, Candidates, LayerCandidates},
    front::{Front, Uniform},
    hessian_report::HessianReport,
    plan_file::{PlanError, PlanFile},
    search_report::{LayerChoice, SearchReport},
    times::{LayerTimes, measure_plan},
};
