//! Training: a float network first, then all precisions jointly, on Burn's own `Learner`.

mod alrs;
mod checkpoint;
mod draws;
mod evaluate;
mod history;
mod metric;
mod optimizer;
mod phase;
mod run;
mod step;

pub use alrs::{eta, lambda};
pub use draws::Draws;
pub use evaluate::{Score, evaluate, score};
pub use history::History;
pub(crate) use optimizer::Adam;
pub use phase::Phase;
pub use run::{PhaseError, PhaseOutcome, run_phase};
pub use step::{Distillation, Objective, Trainee};
