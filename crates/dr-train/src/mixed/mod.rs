//! Mixed precision: how sensitive layers are, training for all mixtures at once, and the best mixture for a budget.

mod hessian;

pub use hessian::{LayerTrace, Traces};
