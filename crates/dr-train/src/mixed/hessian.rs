//! Average Hessian traces of layers: how much the loss bends along their weights.

use serde::{Deserialize, Serialize};

/// The average Hessian trace of one layer, `tr(H_l) / n_l` (HAWQ-V2, arXiv:1911.03852).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerTrace {
    /// The layer's path in the network.
    pub layer: String,
    /// `n_l`: weights of the layer.
    pub parameters: usize,
    /// `t_l`: the trace of the loss's Hessian over the layer's weights, divided by their number.
    pub average_trace: f64,
    /// The standard error of that mean.
    pub standard_error: f64,
}

/// The traces of a network's layers, from input to output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Traces {
    /// One for each quantized layer.
    pub layers: Vec<LayerTrace>,
}
