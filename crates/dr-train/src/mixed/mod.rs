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

#[cfg(feature = "program")]
pub use best::{Found, SearchPlanError, Totals};
#[cfg(feature = "program")]
pub use budget::{Budget, BudgetError, BudgetKind};
#[cfg(feature = "program")]
pub use candidates::{Candidate, Candidates, LayerCandidates};
pub use draws::DrawLog;
#[cfg(feature = "program")]
pub use front::{Front, Uniform};
pub use hasb::{Hasb, choices};
pub use hessian::traces;
#[cfg(feature = "program")]
pub use hessian_report::HessianReport;
#[cfg(feature = "program")]
pub use plan_file::{PlanError, PlanFile};
#[cfg(feature = "program")]
pub use search_report::{LayerChoice, SearchReport};
#[cfg(feature = "program")]
pub use times::{LayerTimes, measure_plan};
pub use traces::{HessianError, HessianOptions, LayerTrace, StepTrial, Traces};
