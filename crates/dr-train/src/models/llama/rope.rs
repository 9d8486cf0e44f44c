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
        let [cos, sin] = tables(config, start, positions).map(|table| {
            let half =
                Tensor::<2>::from_data(TensorData::new(table, [positions, config.head_dim / 2]), device);
            Tensor::cat(vec![half.clone(), half], 1)
        });
        Self { cos, sin }
    }

    /// Turns `[batch, heads, positions, head dim]`: feature `i` and feature `i + head dim / 2` are a pair.
    pub(super) fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        let [.., dim] = x.dims();
        let halves = x.clone().split(dim / 2, 3);
        let turned = Tensor::cat(vec![halves[1].clone().neg(), halves[0].clone()], 3);
        x * self.cos.clone().unsqueeze() + turned * self.sin.clone().unsqueeze()
    }
}

/// Cosines and sines of the positions from `start` on, `[positions, head dim / 2]`.
pub(super) fn tables(config: &LlamaConfig, start: usize, positions: usize) -> [Vec<f32>; 2] {
    let frequencies = frequencies(config);
    [f64::cos, f64::sin].map(|of| {
        let row =
            |position: usize| frequencies.iter().map(move |frequency| of(position as f64 * frequency) as f32);
        (start..start + positions).flat_map(row).collect()
    })
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
