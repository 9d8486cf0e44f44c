//! [`Rope`]: angles of positions.

use serde::{Deserialize, Serialize};
use std::f64::consts::TAU;

/// Rotary position embedding (arXiv:2104.09864): the angle of the pair `i` of a head's features at position `p` is `p *
/// theta^(-2 i / head_dim)`, changed by the scaling.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rope {
    /// The base of the frequencies.
    pub theta: f64,
    /// How frequencies are changed for contexts longer than the model was first trained for.
    pub scaling: RopeScaling,
}

/// How the frequencies of [`Rope`] are changed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All divided by `factor` (position interpolation, arXiv:2306.15595).
    Linear {
        /// The factor.
        factor: f64,
    },
    /// As in Llama 3.1: wave lengths above `original_context / low` are divided by `factor`, those below `original_context /
    /// high` stay, and in between there is a mixture of both.
    Llama3 {
        /// The factor of long waves.
        factor: f64,
        /// The longest waves that are not only divided go so many times into the original context.
        low: f64,
        /// Waves that go at least so many times into the original context stay as they are.
        high: f64,
        /// The context that the model was first trained for.
        original_context: usize,
    },
}

impl Rope {
    /// Cosines and sines of the positions from `start` on, `[positions, head dim / 2]`.
    #[must_use]
    pub fn tables(&self, head_dim: usize, start: usize, positions: usize) -> [Vec<f32>; 2] {
        let frequencies = self.frequencies(head_dim / 2);
        [f64::cos, f64::sin].map(|of| {
            let row = |position: usize| {
                let position = start as f64 + position as f64;
                frequencies.iter().map(move |frequency| of(position * frequency) as f32)
            };
            (0..positions).flat_map(row).collect()
        })
    }

    /// Radians from one position to the next, for each pair of features.
    #[must_use]
    pub fn frequencies(&self, pairs: usize) -> Vec<f64> {
        let plain = (0..pairs).map(|pair| self.theta.powf(-(pair as f64) / pairs as f64));
        let scale = |frequency: f64| match self.scaling {
            RopeScaling::None => frequency,
            RopeScaling::Linear { factor } => frequency / factor,
            RopeScaling::Llama3 { factor, low, high, original_context } => {
                let waves = original_context as f64 * frequency / TAU;
                let kept = ((waves - low) / (high - low)).clamp(0.0, 1.0);
                frequency / factor * (1.0 - kept) + frequency * kept
            }
        };
        plain.map(scale).collect()
    }
}
