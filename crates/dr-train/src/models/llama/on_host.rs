//! [`Decoder::read`] on a CPU, on slices: a token of a small text is some hundred products of one row, and tensors between them
//! cost as much as a third of them do.

use super::LlamaConfig;
use super::decoder::{Decoder, Linear};
use super::rope::tables;
use crate::nn::IntegerError;
use dr_kernels::host::language::{AttentionCache, attention, rms_norm, rotate, swiglu};

impl<L: Linear> Decoder<L> {
    /// From the features `[positions, hidden]` of the tokens from position `start` on, the logits `[vocabulary]` of what
    /// comes after them.
    pub(super) fn read_on_host(
        &self, features: Vec<f32>, start: usize, cache: &mut [AttentionCache],
    ) -> Result<Vec<f32>, IntegerError> {
        let LlamaConfig { hidden, heads, head_dim, .. } = self.config;
        let epsilon = self.config.norm_eps as f32;
        let mut x = features;
        let positions = x.len() / hidden;
        let [cos, sin] = tables(&self.config, start, positions);
        let mut normed = vec![0.0; x.len()];
        let mut attended = vec![0.0; positions * heads * head_dim];
        for (block, cache) in self.blocks.iter().zip(cache) {
            rms_norm(&x, &block.input_norm.gain, epsilon, &mut normed)?;
            let layers = [&block.query, &block.key, &block.value];
            let [mut q, mut k, v] = L::apply_slices(layers, &normed, positions)?;
            rotate(&mut q, &cos, &sin, head_dim)?;
            rotate(&mut k, &cos, &sin, head_dim)?;
            cache.truncate(start); // what a pass left that failed
            cache.extend(&k, &v)?;
            attention(&q, cache, heads, &mut attended)?;
            let [output] = L::apply_slices([&block.output], &attended, positions)?;
            add(&mut x, &output);
            rms_norm(&x, &block.middle_norm.gain, epsilon, &mut normed)?;
            let [mut gate, up] = L::apply_slices([&block.gate, &block.up], &normed, positions)?;
            swiglu(&mut gate, &up)?;
            let [down] = L::apply_slices([&block.down], &gate, positions)?;
            add(&mut x, &down);
        }
        let last = &x[(positions - 1) * hidden..];
        let normed = &mut normed[..hidden];
        rms_norm(last, &self.norm.gain, epsilon, normed)?;
        let [logits] = L::apply_slices([&self.head], normed, 1)?;
        Ok(logits)
    }
}

fn add(x: &mut [f32], other: &[f32]) {
    x.iter_mut().zip(other).for_each(|(x, other)| *x += other);
}
