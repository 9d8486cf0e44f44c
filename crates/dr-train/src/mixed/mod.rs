//! Mixed precision: how sensitive layers are, training for all mixtures at once, and the best mixture for a budget.

mod draws;
mod hasb;
mod hessian;
mod hessian_report;
mod hutchinson;
mod plan_file;
mod subnet;
mod traces;

pub use draws::DrawLog;
pub use hasb::{Hasb, choices};
pub use hessian::traces;
pub use hessian_report::HessianReport;
pub use plan_file::{PlanError, PlanFile};
pub use subnet::{finish, subnet};
pub use traces::{HessianError, HessianOptions, LayerTrace, StepTrial, Traces};
