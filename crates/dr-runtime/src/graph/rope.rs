//! [`Rope`]: angles of positions.

use serde::{Deserialize, Serialize};
use std::f64::consts::TAU;
use thiserror::Error;

/// Rotary position embedding (arXiv:2104.09864): the angle of the pair `i` of a head's features at position `p` is `p *
/// theta^(-2 i / head_dim)`, changed by the scaling.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rope {
    /// The base of the frequencies.
    pub theta: f64,
    /// How frequencies are changed for contexts longer than the model was first trained for.
    pub scaling: RopeScaling,
}

/// How the frequencies of [`Rope`] are changed.
///
/// Two of them depend on the length of a text: that of all its positions when they are computed. What a cache has of earlier
/// positions keeps the angles that it was stored with, as in transformers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All divided by `factor` (position interpolation, arXiv:2306.15595).
    Linear {
        /// The factor.
        factor: f64,
    },
    /// In a text of more than `original_context` positions, a larger theta: the lowest frequency is divided by `1 + factor * (length /
    /// original_context - 1)` (NTK-aware scaling by the length).
    Dynamic {
        /// The factor.
        factor: f64,
        /// The context that the model was trained for.
        original_context: usize,
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
    /// YaRN (arXiv:2309.00071): frequencies that turn at least `fast` times in the original context stay, those that turn at most
    /// `slow` times are divided by `factor`, and in between there is a mixture, linear in the number of the pair.
    Yarn {
        /// The factor of low frequencies.
        factor: f64,
        /// What rotated queries and keys are multiplied by.
        attention: f64,
        /// Turns of frequencies that stay.
        fast: f64,
        /// Turns of those that are only divided.
        slow: f64,
        /// Whether the mixture begins and ends at whole pairs.
        truncate: bool,
        /// The context that the model was first trained for.
        original_context: usize,
    },
    /// LongRoPE (arXiv:2402.13753): each frequency is divided by a factor of its own.
    #[serde(rename = "longrope")]
    LongRope {
        /// The factors in a text of at most `original_context` positions, one for each pair of a head's features.
        short: Vec<f64>,
        /// Those in a longer text.
        long: Vec<f64>,
        /// What rotated queries and keys are multiplied by.
        attention: f64,
        /// The context that the model was first trained for.
        original_context: usize,
    },
}

/// A number of a [`Rope`] that makes no sense.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{key} is {found}: expected {expected}")]
pub struct RopeError {
    /// What Hugging Face calls it.
    pub key: &'static str,
    /// What is there.
    pub found: String,
    /// What can be.
    pub expected: String,
}

impl Rope {
    /// Whether it gives angles for heads of so many features.
    ///
    /// # Errors
    /// The first number that makes no sense.
    pub fn check(&self, head_dim: usize) -> Result<(), RopeError> {
        let wrong = |key, found: String, expected: String| Err(RopeError { key, found, expected });
        let mut numbers = vec![("rope_theta", self.theta)];
        let mut context = 1;
        match &self.scaling {
            RopeScaling::None => {}
            RopeScaling::Linear { factor } => numbers.push(("factor", *factor)),
            RopeScaling::Dynamic { factor, original_context } => {
                numbers.push(("factor", *factor));
                context = *original_context;
            }
            RopeScaling::Llama3 { low, high, .. } if low >= high => {
                return wrong("low_freq_factor", low.to_string(), "less than high_freq_factor".into());
            }
            RopeScaling::Llama3 { factor, low, high, original_context } => {
                numbers.extend([("factor", *factor), ("low_freq_factor", *low), ("high_freq_factor", *high)]);
                context = *original_context;
            }
            RopeScaling::Yarn { factor, attention, fast, slow, original_context, .. } => {
                numbers.extend([("factor", *factor), ("attention_factor", *attention)]);
                numbers.extend([("beta_fast", *fast), ("beta_slow", *slow)]);
                context = *original_context;
            }
            RopeScaling::LongRope { short, long, attention, original_context } => {
                numbers.push(("attention_factor", *attention));
                for (key, factors) in [("short_factor", short), ("long_factor", long)] {
                    if factors.len() != head_dim / 2 {
                        let expected = format!("{}, one for each pair of a head's features", head_dim / 2);
                        return wrong(key, format!("a list of {}", factors.len()), expected);
                    }
                    numbers.extend(factors.iter().map(|&factor| (key, factor)));
                }
                context = *original_context;
            }
        }
        match numbers.into_iter().find(|(_, number)| !(*number > 0.0 && number.is_finite())) {
            Some((key, number)) => wrong(key, number.to_string(), "a number above 0".into()),
            None if context == 0 => {
                wrong("original_max_position_embeddings", "0".into(), "a whole number above 0".into())
            }
            None => Ok(()),
        }
    }

    /// Cosines and sines of the positions from `start` on, the last ones of a text, `[positions, head dim / 2]`; times the factor
    /// of attention.
    #[must_use]
    pub fn tables(&self, head_dim: usize, start: usize, positions: usize) -> [Vec<f32>; 2] {
        let frequencies = self.frequencies(head_dim / 2, start.saturating_add(positions));
        let attention = match self.scaling {
            RopeScaling::Yarn { attention, .. } | RopeScaling::LongRope { attention, .. } => attention,
            _ => 1.0,
        };
        [f64::cos, f64::sin].map(|of| {
            let row = |position: usize| {
                let position = start as f64 + position as f64;
                frequencies.iter().map(move |frequency| (attention * of(position * frequency)) as f32)
            };
            (0..positions).flat_map(row).collect()
        })
    }

    /// Radians from one position to the next, for each pair of features, in a text of `length` positions.
    #[must_use]
    pub fn frequencies(&self, pairs: usize, length: usize) -> Vec<f64> {
        let count = pairs as f64;
        let theta = match self.scaling {
            RopeScaling::Dynamic { factor, original_context } => {
                let longer = length.max(original_context) as f64 / original_context as f64;
                self.theta * (1.0 + factor * (longer - 1.0)).powf(count / (count - 1.0))
            }
            _ => self.theta,
        };
        let frequency = |pair: usize| {
            let (number, frequency) = (pair as f64, theta.powf(-(pair as f64) / count));
            match &self.scaling {
                RopeScaling::None | RopeScaling::Dynamic { .. } => frequency,
                RopeScaling::Linear { factor } => frequency / factor,
                RopeScaling::Llama3 { factor, low, high, original_context } => {
                    let waves = *original_context as f64 * frequency / TAU;
                    let kept = ((waves - low) / (high - low)).clamp(0.0, 1.0);
                    frequency / factor * (1.0 - kept) + frequency * kept
                }
                RopeScaling::Yarn { factor, fast, slow, truncate, original_context, .. } => {
                    // The pair, counted in fractions, that turns so many times.
                    let turning = |turns: f64| count * (*original_context as f64 / (turns * TAU)).log(theta);
                    let (first, last) = (turning(*fast), turning(*slow));
                    let (first, last) = if *truncate { (first.floor(), last.ceil()) } else { (first, last) };
                    let (first, last) = (first.max(0.0), last.min(2.0 * count - 1.0));
                    let width = if first == last { 0.001 } else { last - first };
                    let divided = ((number - first) / width).clamp(0.0, 1.0);
                    frequency / factor * divided + frequency * (1.0 - divided)
                }
                RopeScaling::LongRope { short, long, original_context, .. } => {
                    let factors = if length > *original_context { long } else { short };
                    frequency / factors.get(pair).unwrap_or(&1.0)
                }
            }
        };
        (0..pairs).map(frequency).collect()
    }
}
