//! Rotary position embedding.

use super::config::{LlamaConfig, RopeScaling};
use burn::tensor::{Device, Tensor, TensorData};
use std::f64::consts::TAU;

/// The cosines and sines of all positions.
#[derive(Clone, Debug)]
pub(super) struct Angles {
    /// `[positions, head dim]`; the second half of a row repeats the first.
    cos: Tensor<2>,
    sin: Tensor<2>,
}

impl Angles {
    /// Those of the positions from `start` on.
    pub(super) fn new(config: &LlamaConfig, start: usize, positions: usize, device: &Device) -> Self {
        let frequencies = frequencies(config);
        let table = |of: fn(f64) -> f64| {
            let row = |position: usize| {
                let half = frequencies.iter().map(move |frequency| of(position as f64 * frequency) as f32);
                half.clone().chain(half)
            };
            let values: Vec<f32> = (start..start + positions).flat_map(row).collect();
            Tensor::from_data(TensorData::new(values, [positions, config.head_dim]), device)
        };
        Self { cos: table(f64::cos), sin: table(f64::sin) }
    }

    /// Turns `[batch, heads, positions, head dim]`: feature `i` and feature `i + head dim / 2` are a pair.
    pub(super) fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        let [.., dim] = x.dims();
        let halves = x.clone().split(dim / 2, 3);
        let turned = Tensor::cat(vec![halves[1].clone().neg(), halves[0].clone()], 3);
        x * self.cos.clone().unsqueeze() + turned * self.sin.clone().unsqueeze()
    }
}

/// Radians from one position to the next, for each pair of features.
fn frequencies(config: &LlamaConfig) -> Vec<f64> {
    let pairs = config.head_dim / 2;
    let plain = (0..pairs).map(|pair| config.rope.theta.powf(-(pair as f64) / pairs as f64));
    let scale = |frequency: f64| match config.rope.scaling {
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
