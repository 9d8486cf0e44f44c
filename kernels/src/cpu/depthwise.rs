//! Depthwise convolution of channels-last images and its gradients: each channel with a kernel of its own, channels side by side in
//! vectors. Parts, buffers and residues are those of [`super::conv2d`].

use super::conv2d::{Positions, Window};
use super::isa::{Isa, run_on};
use super::vector::{Avx2, Avx512, Portable, Vector};
use std::mem::MaybeUninit;

/// Outputs that share the loads of weights.
const OUTPUTS: usize = 4;
/// Vectors of channels that are added up side by side.
const VECTORS: usize = 4;

/// Calls a method for the vectors of an instruction set, or for single floats where there are fewer channels than lanes.
macro_rules! for_lanes {
    ($isa:expr, $channels:expr, $self:ident.$method:ident($($argument:expr),*)) => {
        // SAFETY: The method's requirements are the caller's; the instructions are those that `run_on` makes sure of.
        run_on!($isa, |isa| unsafe {
            match isa {
                Isa::Avx512 if $channels >= Avx512::LANES => $self.$method::<Avx512>($($argument),*),
                Isa::Avx512 | Isa::Avx2 if $channels >= Avx2::LANES => $self.$method::<Avx2>($($argument),*),
                _ if $channels >= Portable::LANES => $self.$method::<Portable>($($argument),*),
                _ => $self.$method::<f32>($($argument),*),
            }
        })
    };
}

/// Weights `[rows, columns, channels]` of a window.
pub(super) struct Weights {
    packed: Vec<f32>,
    rows: usize,
    cols: usize,
    pitch: usize,
    channels: usize,
    isa: Isa,
}

impl Weights {
    /// `weight(row, column, channel)`.
    pub fn pack(
        window: Window, channels: usize, isa: Isa, weight: impl Fn(usize, usize, usize) -> f32,
    ) -> Self {
        let (rows, cols) = (window.rows, window.run / channels);
        let taps = (0..rows).flat_map(|row| (0..cols).map(move |col| (row, col)));
        let packed = taps.flat_map(|(row, col)| (0..channels).map(move |c| (row, col, c)));
        let packed = packed.map(|(row, col, channel)| weight(row, col, channel)).collect();
        Self { packed, rows, cols, pitch: window.pitch, channels, isa }
    }

    /// Writes the channels of all positions.
    pub fn correlate(&self, buffer: &[f32], positions: &[[usize; 2]], out: &mut [MaybeUninit<f32>]) {
        if positions.is_empty() {
            return;
        }
        let ends = |i: usize| positions.iter().map(|position| position[i]).max().unwrap_or(0);
        let reach = self.rows.saturating_sub(1) * self.pitch + self.cols * self.channels;
        assert!(ends(0) + reach <= buffer.len(), "windows end inside the buffer");
        assert!(ends(1) + self.channels <= out.len(), "positions are inside the output");
        for_lanes!(self.isa, self.channels, self.tiles(buffer, positions, out));
    }

    /// # Safety
    /// Windows and outputs are inside the slices, and there are as many channels as lanes or more.
    #[inline(always)]
    unsafe fn tiles<V: Vector>(
        &self, buffer: &[f32], positions: &[[usize; 2]], out: &mut [MaybeUninit<f32>],
    ) {
        let last = positions.len() - 1;
        for start in (0..positions.len()).step_by(OUTPUTS) {
            // Past the end the last position is computed again, and the last channels are where these are not whole vectors.
            let mut from = [0; OUTPUTS];
            let mut to = [0; OUTPUTS];
            for p in 0..OUTPUTS {
                [from[p], to[p]] = positions[(start + p).min(last)];
            }
            for channel in (0..self.channels).step_by(V::LANES) {
                let channel = channel.min(self.channels - V::LANES);
                // SAFETY: The caller's.
                unsafe {
                    let mut sums = [V::splat(0.0); OUTPUTS];
                    let mut weights = self.packed.as_ptr().wrapping_add(channel);
                    for row in 0..self.rows {
                        let mut at = row * self.pitch + channel;
                        for _ in 0..self.cols {
                            let w = V::load(weights);
                            for (sum, from) in sums.iter_mut().zip(from) {
                                *sum = V::load(buffer.as_ptr().add(from + at)).multiply_add(w, *sum);
                            }
                            weights = weights.wrapping_add(self.channels);
                            at += self.channels;
                        }
                    }
                    for (sum, to) in sums.into_iter().zip(to) {
                        sum.store(out.as_mut_ptr().add(to + channel).cast());
                    }
                }
            }
        }
    }
}

/// Outputs of a part with the windows that they come from.
pub(super) struct Outputs<'a> {
    pub buffer: &'a [f32],
    /// Of the windows in the buffer and of `dy`.
    pub positions: &'a Positions,
    /// `[positions, channels]`
    pub dy: &'a [f32],
    pub channels: usize,
}

impl Outputs<'_> {
    /// Adds to `sums`, `[rows, columns, channels]`, the products of all floats of the window with those of the output.
    pub fn add_products(&self, isa: Isa, window: Window, sums: &mut [f32]) {
        let outputs = self.dy.len() / self.channels;
        let positions = &self.positions[..outputs];
        let ends = |i: usize| positions.iter().map(|position| position[i]).max().unwrap_or(0);
        let reach = (window.rows - 1) * window.pitch + window.run;
        assert!(ends(0) + reach <= self.buffer.len(), "windows end inside the buffer");
        assert!(ends(1) + self.channels <= self.dy.len(), "a gradient for each output");
        assert_eq!(sums.len(), window.rows * window.run, "a sum for each weight");
        for_lanes!(isa, self.channels, self.tiles(window, positions, sums));
    }

    /// # Safety
    /// As [`Weights::tiles`].
    #[inline(always)]
    unsafe fn tiles<V: Vector>(&self, window: Window, positions: &[[usize; 2]], sums: &mut [f32]) {
        for row in 0..window.rows {
            for col in 0..window.run / self.channels {
                let at = row * window.pitch + col * self.channels;
                let sums = &mut sums[row * window.run + col * self.channels..][..self.channels];
                let mut channel = 0;
                // SAFETY: The caller's.
                unsafe {
                    while channel + VECTORS * V::LANES <= self.channels {
                        self.tile::<V, VECTORS>(at, channel, 0, positions, sums);
                        channel += VECTORS * V::LANES;
                    }
                    while channel < self.channels {
                        let first = channel.min(self.channels - V::LANES);
                        self.tile::<V, 1>(at, first, channel - first, positions, sums);
                        channel = first + V::LANES;
                    }
                }
            }
        }
    }

    /// Some vectors of channels but for the first `skip` ones, for one tap.
    #[inline(always)]
    unsafe fn tile<V: Vector, const N: usize>(
        &self, at: usize, channel: usize, skip: usize, positions: &[[usize; 2]], sums: &mut [f32],
    ) {
        let mut all = [0.0; VECTORS * 16];
        // SAFETY: The caller's.
        unsafe {
            let mut tile = [V::splat(0.0); N];
            for &[from, output] in positions {
                let x = self.buffer.as_ptr().add(from + at + channel);
                let dy = self.dy.as_ptr().add(output + channel);
                for (n, tile) in tile.iter_mut().enumerate() {
                    *tile = V::load(x.add(n * V::LANES)).multiply_add(V::load(dy.add(n * V::LANES)), *tile);
                }
            }
            for (n, tile) in tile.into_iter().enumerate() {
                tile.store(all.as_mut_ptr().add(n * V::LANES));
            }
        }
        for (sum, product) in sums[channel..].iter_mut().zip(&all[..N * V::LANES]).skip(skip) {
            *sum += product;
        }
    }
}
