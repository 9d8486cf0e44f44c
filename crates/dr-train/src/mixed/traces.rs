//! What is known of a network's Hessian: an average trace for each layer, and how it was found.

use burn::data::dataset::DatasetError;
use serde::{Deserialize, Serialize};
use thiserror::Error;

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
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Traces {
    /// One for each quantized layer.
    pub layers: Vec<LayerTrace>,
    /// Random directions that were averaged over, in the layer that took most.
    #[serde(default)]
    pub samples: usize,
    /// Whether all standard errors got as small as was asked for; if not, the samples ran out.
    #[serde(default)]
    pub converged: bool,
    /// Step of the central differences, in units of the root mean square of the layer's weights.
    #[serde(default)]
    pub relative_step: f64,
    /// The steps that were tried, largest first: what the choice of `relative_step` rests on.
    #[serde(default)]
    pub steps: Vec<StepTrial>,
}

/// What one step gave, on the first batch along the first direction of each layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepTrial {
    /// The step in units of the root mean square of the layer's weights.
    pub relative_step: f64,
    /// `v . H v / n_l` of each layer, as in [`Traces::layers`].
    pub estimates: Vec<f64>,
    /// By how much the two neighbouring steps differ from it, whichever differs more: the mean over layers of
    /// `|a - b| / max(|a|, |b|)`. The first and the last step have one neighbour only and are not compared.
    pub disagreement: Option<f64>,
}

/// When to stop, and which directions to take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HessianOptions {
    /// Stop once every layer's standard error is at most this part of its trace; see [`Traces::uncertainty`].
    pub tolerance: f64,
    /// Stop after so many directions in any case.
    pub max_samples: usize,
    /// Decides the directions.
    pub seed: u64,
}

impl Default for HessianOptions {
    fn default() -> Self {
        Self { tolerance: 0.1, max_samples: 200, seed: 1 }
    }
}

impl HessianOptions {
    /// The fewest directions: a standard error from fewer says little, and a stop by it would favour low ones.
    pub const MIN_SAMPLES: usize = 8;

    /// Whether the values are in range.
    ///
    /// # Errors
    /// A tolerance outside (0, 1], or fewer samples than [`Self::MIN_SAMPLES`].
    pub fn check(&self) -> Result<(), HessianError> {
        if !(self.tolerance > 0.0 && self.tolerance <= 1.0) {
            return Err(HessianError::Tolerance(self.tolerance));
        }
        if self.max_samples < Self::MIN_SAMPLES {
            return Err(HessianError::MaxSamples(self.max_samples));
        }
        Ok(())
    }
}

/// Why there are no traces.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HessianError {
    /// The tolerance is out of range.
    #[error("tolerance {0}: expected a number above 0 and at most 1")]
    Tolerance(f64),
    /// The limit of samples is out of range.
    #[error("max-samples {0}: expected at least {min}", min = HessianOptions::MIN_SAMPLES)]
    MaxSamples(usize),
    /// There are no batches.
    #[error("no images: expected at least one batch")]
    NoImages,
    /// The network or the loss is not finite near its weights.
    #[error("layer `{0}`: the change of its gradient is not finite: expected a trained network")]
    NotFinite(String),
    /// The images could not be prepared.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
}

/// A trace counts as near zero below this part of the mean of all layers' |traces|.
const NEAR_ZERO: f64 = 0.01;

impl Traces {
    /// Each layer's standard error in parts of its |trace|. A trace near zero cannot be known to a part of itself: below
    /// a hundredth of the mean |trace| over layers, it is that hundredth which counts.
    #[must_use]
    pub fn uncertainties(&self) -> Vec<f64> {
        let size = |layer: &LayerTrace| layer.average_trace.abs();
        let mean = self.layers.iter().map(size).sum::<f64>() / self.layers.len().max(1) as f64;
        let relative = |layer: &LayerTrace| match layer.standard_error {
            0.0 => 0.0,
            error => error / size(layer).max(NEAR_ZERO * mean),
        };
        self.layers.iter().map(relative).collect()
    }

    /// The largest of the [`uncertainties`](Self::uncertainties).
    #[must_use]
    pub fn uncertainty(&self) -> f64 {
        self.uncertainties().into_iter().fold(0.0, f64::max)
    }

    /// By how much the estimates with the next larger and smaller steps differ from those with the chosen one, along one direction.
    #[must_use]
    pub fn disagreement(&self) -> Option<f64> {
        self.steps.iter().find(|trial| trial.relative_step == self.relative_step)?.disagreement
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traces(layers: &[(f64, f64)]) -> Traces {
        let layer = |&(average_trace, standard_error)| LayerTrace {
            layer: "a".to_owned(),
            parameters: 1,
            average_trace,
            standard_error,
        };
        Traces { layers: layers.iter().map(layer).collect(), ..Traces::default() }
    }

    #[test]
    fn uncertainty_is_of_the_worst_layer() {
        assert_eq!(traces(&[]).uncertainty(), 0.0);
        assert_eq!(traces(&[(2.0, 0.5), (-1.0, 0.5)]).uncertainty(), 0.5);
        // Near zero: 0.01 * (100 + 0) / 2.
        assert_eq!(traces(&[(100.0, 1.0), (0.0, 0.25)]).uncertainty(), 0.5);
        assert_eq!(traces(&[(0.0, 0.0)]).uncertainty(), 0.0);
    }

    #[test]
    fn options_out_of_range_are_named() {
        let check = |tolerance, max_samples| {
            let options = HessianOptions { tolerance, max_samples, seed: 1 };
            options.check().map_err(|error| error.to_string())
        };
        assert_eq!(check(0.05, 8), Ok(()));
        for tolerance in [0.0, -0.1, f64::NAN, f64::INFINITY, 1.5] {
            let message = check(tolerance, 100).unwrap_err();
            assert!(message.starts_with(&format!("tolerance {tolerance}: expected")), "{message}");
        }
        assert_eq!(check(0.05, 7).unwrap_err(), "max-samples 7: expected at least 8");
    }
}
