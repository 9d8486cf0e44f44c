//! Mixed precision: how sensitive layers are, training for all mixtures at once, and the best mixture for a budget.

mod best;
mod budget;
mod candidates;
mod draws;
mod front;
mod hasb;
mod hessian;
mod hessian_report;
mod hutchinson;
mod plan_file;
pub mod search;
mod search_report;
mod times;
mod traces;

pub use best::{Found, SearchPlanError, Totals};
pub use budget::{Budget, BudgetError, BudgetKind};
pub use candidates::{Candidate, Candidates, LayerCandidates};
pub use draws::DrawLog;
pub use front::{Front, Uniform};
pub use hasb::{Hasb, choices};
pub use hessian::traces;
pub use hessian_report::HessianReport;
pub use plan_file::{PlanError, PlanFile};
pub use search_report::{LayerChoice, SearchReport};
pub use times::{LayerTimes, measure_plan};
pub use traces::{HessianError, HessianOptions, LayerTrace, StepTrial, Traces};
