//! What language models compute between their linear layers, in `f32`, one row of features for each position of a text.
//!
//! Products of one row with packed weights take some microseconds: so do tensors between them. These are for networks that
//! run on slices. They are in this crate, although nothing in them is quantized, because they share with the products the team
//! of threads, which a token wakes once, and the choice of the instruction set.

use super::isa::{Isa, run_on};
use super::team;
use crate::KernelError;
use crate::error::size;
use std::cell::RefCell;
use std::num::NonZeroUsize;
use std::ops::Range;
use wide::f32x8;

/// Elements that a task works on, so many that it pays for another thread's attention.
const TASK: usize = 1 << 11;

/// Lanes of sums, on every machine, so that they are rounded alike; positions whose keys lie together.
const LANES: usize = 16;

/// RMSNorm (arXiv:1910.07467): each row of `x` over the root of its mean square (and `epsilon`), times `gain`.
///
/// # Errors
/// [`KernelError::Size`] if `out` has not the length of `x`, or rows are not as long as `gain`.
pub fn rms_norm(x: &[f32], gain: &[f32], epsilon: f32, out: &mut [f32]) -> Result<(), KernelError> {
    size("output of RMSNorm", &[out.len()], &[x.len()])?;
    let features = gain.len().max(1);
    size("input of RMSNorm", &[x.len()], &[x.len() / features * gain.len()])?;
    let rows = (TASK / features).max(1);
    let isa = Isa::detect();
    team::for_each_chunk(out, rows * features, |task, out| {
        let x = &x[task * rows * features..][..out.len()];
        run_on!(isa, |_| norm(x, gain, epsilon, out));
    });
    Ok(())
}

#[inline(always)]
fn norm(x: &[f32], gain: &[f32], epsilon: f32, out: &mut [f32]) {
    let features = gain.len().max(1);
    for (x, out) in x.chunks_exact(features).zip(out.chunks_exact_mut(features)) {
        let root = (squares(x) / features as f32 + epsilon).sqrt();
        for ((out, x), gain) in out.iter_mut().zip(x).zip(gain) {
            *out = x / root * gain;
        }
    }
}

/// Rotary position embedding (arXiv:2104.09864), in place: feature `i` and feature `i + head dim / 2` of each head are a pair, which is turned
/// by the angle whose cosine and sine are at `i` in the row of the position. `x` is `[positions, heads * head dim]`, the tables are
/// `[positions, head dim / 2]`.
///
/// # Errors
/// [`KernelError::Size`] if the tables are not of one size, `x` has not some heads for each of their rows, or `head_dim` is odd;
/// [`KernelError::Zero`] if it is 0.
pub fn rotate(x: &mut [f32], cos: &[f32], sin: &[f32], head_dim: usize) -> Result<(), KernelError> {
    if head_dim == 0 {
        return Err(KernelError::Zero("head dimension"));
    }
    size("head dimension, which is even", &[head_dim], &[head_dim / 2 * 2])?;
    size("sines of a rotation", &[sin.len()], &[cos.len()])?;
    let half = head_dim / 2;
    let positions = cos.len() / half;
    size("cosines of a rotation", &[cos.len()], &[positions * half])?;
    let row = positions.max(1).saturating_mul(head_dim);
    let heads = if positions == 0 { 0 } else { x.len() / row };
    size("heads of each position in a rotation", &[x.len()], &[heads * row])?;
    let features = heads * head_dim;
    for ((row, cos), sin) in
        x.chunks_exact_mut(features.max(1)).zip(cos.chunks_exact(half)).zip(sin.chunks_exact(half))
    {
        for head in row.chunks_exact_mut(2 * half) {
            let (first, second) = head.split_at_mut(half);
            for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
    Ok(())
}

/// SwiGLU (arXiv:2002.05202), in place: `gate / (1 + exp(-gate)) * up`.
///
/// # Errors
/// [`KernelError::Size`] if the slices are not of one length.
pub fn swiglu(gate: &mut [f32], up: &[f32]) -> Result<(), KernelError> {
    size("second factor of SwiGLU", &[up.len()], &[gate.len()])?;
    team::for_each_chunk(gate, TASK, |task, gate| {
        let mut up = up[task * TASK..][..gate.len()].chunks(8);
        for gate in gate.chunks_mut(8) {
            let x = load(gate);
            let y = x / (f32x8::ONE + (-x).exp()) * load(up.next().unwrap_or_default());
            gate.copy_from_slice(&y.to_array()[..gate.len()]);
        }
    });
    Ok(())
}

/// Up to eight elements, and zeros.
fn load(x: &[f32]) -> f32x8 {
    f32x8::new(x.first_chunk().copied().unwrap_or_else(|| std::array::from_fn(|i| *x.get(i).unwrap_or(&0.0))))
}

/// Keys and values of the positions of a text so far.
#[derive(Clone, Debug)]
pub struct AttentionCache {
    kv_heads: usize,
    head_dim: usize,
    positions: usize,
    /// `[positions / 16, kv heads, head dim, 16]`: products with the keys of 16 positions are sums in 16 lanes.
    keys: Vec<Lanes>,
    /// `[positions, kv heads * head dim]`
    values: Vec<f32>,
}

type Lanes = [f32; LANES];

impl AttentionCache {
    /// One without positions.
    #[must_use]
    pub const fn new(kv_heads: usize, head_dim: usize) -> Self {
        Self { kv_heads, head_dim, positions: 0, keys: vec![], values: vec![] }
    }

    /// Positions that it has.
    #[must_use]
    pub const fn positions(&self) -> usize {
        self.positions
    }

    /// Forgets all positions but the first ones.
    pub fn truncate(&mut self, positions: usize) {
        self.positions = positions.min(self.positions);
        self.values.truncate(self.positions * self.features());
        self.keys.truncate(self.positions.div_ceil(LANES) * self.features());
    }

    /// Adds positions: keys and values `[positions, kv heads * head dim]`.
    ///
    /// # Errors
    /// [`KernelError::Size`] if they are not of one length, or not of whole positions.
    pub fn extend(&mut self, keys: &[f32], values: &[f32]) -> Result<(), KernelError> {
        size("values of a cache", &[values.len()], &[keys.len()])?;
        let features = self.features().max(1);
        size("keys of a cache", &[keys.len()], &[keys.len() / features * self.features()])?;
        self.values.extend_from_slice(values);
        for keys in keys.chunks_exact(features) {
            let (block, lane) = (self.positions / LANES, self.positions % LANES);
            if lane == 0 {
                self.keys.resize(self.keys.len() + features, [0.0; LANES]);
            }
            for (lanes, key) in self.keys[block * features..].iter_mut().zip(keys) {
                lanes[lane] = *key;
            }
            self.positions += 1;
        }
        Ok(())
    }

    const fn features(&self) -> usize {
        self.kv_heads.saturating_mul(self.head_dim)
    }
}

/// Causal softmax attention of the last positions of a text, whose keys and values are in `cache`: each looks at its own and all earlier
/// ones, or at as many as a `window` has with its own. `queries` and `out` are `[positions, heads * head dim]`; each head of keys and
/// values is for as many heads of queries, which follow each other.
///
/// # Errors
/// [`KernelError::Size`] if there are queries of more positions than the cache has, or not as many heads for each of its heads;
/// [`KernelError::Zero`] if it has no heads, or heads of no features.
pub fn attention(
    queries: &[f32], cache: &AttentionCache, heads: usize, window: Option<NonZeroUsize>, out: &mut [f32],
) -> Result<(), KernelError> {
    let AttentionCache { kv_heads, head_dim, .. } = *cache;
    if cache.features() == 0 {
        return Err(KernelError::Zero("heads of keys or their dimension"));
    }
    size("heads of queries", &[heads], &[heads / kv_heads * kv_heads])?;
    size("output of attention", &[out.len()], &[queries.len()])?;
    let features = heads.saturating_mul(head_dim).max(1);
    let positions = (queries.len() / features).min(cache.positions);
    size("queries of the positions in the cache", &[queries.len()], &[positions.saturating_mul(features)])?;
    let before = cache.positions - positions;
    let isa = Isa::detect();
    // A task: one position's queries that share their keys.
    let sharing = (heads / kv_heads).saturating_mul(head_dim);
    team::for_each_chunk(out, sharing.max(1), |task, out| {
        let (position, head) = (task / kv_heads, task % kv_heads);
        let (queries, end) = (&queries[task * sharing..][..sharing], before + position + 1);
        let keys = window.map_or(0, |window| end.saturating_sub(window.get()))..end;
        WEIGHTS.with_borrow_mut(|weights| {
            weights.clear();
            weights.resize(sharing / head_dim * blocks(&keys).len() * LANES, 0.0);
            run_on!(isa, |_| attend(queries, cache, head, keys, weights, out));
        });
    });
    Ok(())
}

thread_local! {
    /// `[queries, keys]`, the latter in whole blocks.
    static WEIGHTS: RefCell<Vec<f32>> = RefCell::default();
}

/// The blocks that positions are in.
const fn blocks(positions: &Range<usize>) -> Range<usize> {
    positions.start / LANES..positions.end.div_ceil(LANES)
}

/// Attention of the queries of one position that share a head of keys, of which they look at some positions.
#[inline(always)]
fn attend(
    queries: &[f32], cache: &AttentionCache, head: usize, positions: Range<usize>, weights: &mut [f32],
    out: &mut [f32],
) {
    let (dim, features) = (cache.head_dim, cache.features());
    let blocks = blocks(&positions);
    let (from, room) = (blocks.start * LANES, blocks.len() * LANES);
    let root = (dim as f32).sqrt();
    for block in blocks {
        let keys = &cache.keys[block * features + head * dim..][..dim];
        for (query, weights) in queries.chunks_exact(dim).zip(weights.chunks_exact_mut(room)) {
            let scores = products(query, keys);
            for (weight, score) in weights[block * LANES - from..][..LANES].iter_mut().zip(scores) {
                *weight = score / root;
            }
        }
    }
    for scores in weights.chunks_exact_mut(room) {
        softmax(&mut scores[positions.start - from..positions.end - from]);
    }
    let values = &cache.values[head * dim..];
    out.fill(0.0);
    for first in positions.clone().step_by(ROWS) {
        let end = positions.end.min(first + ROWS);
        for (out, weights) in out.chunks_exact_mut(dim).zip(weights.chunks_exact(room)) {
            mix(&weights[first - from..end - from], &values[first * features..], features, out);
        }
    }
}

/// Rows of values that stay in the first-level cache while all queries add them.
const ROWS: usize = 64;

/// Adds rows, which are `pitch` apart, times weights.
#[inline(always)]
fn mix(weights: &[f32], rows: &[f32], pitch: usize, out: &mut [f32]) {
    let (quads, rest) = out.as_chunks_mut::<{ 4 * LANES }>();
    let mut first = 0;
    for out in quads {
        // (By name, as in `products`.)
        let [mut a, mut b, mut c, mut d] = bytemuck::cast::<_, [Lanes; 4]>(*out);
        for (row, &weight) in rows[first..].chunks(pitch).zip(weights) {
            if let [w, x, y, z, ..] = row.as_chunks::<LANES>().0 {
                (a, b, c, d) =
                    (added(a, weight, w), added(b, weight, x), added(c, weight, y), added(d, weight, z));
            }
        }
        *out = bytemuck::cast([a, b, c, d]);
        first += 4 * LANES;
    }
    for out in rest.chunks_mut(LANES) {
        for (row, &weight) in rows[first..].chunks(pitch).zip(weights) {
            for (out, value) in out.iter_mut().zip(row) {
                *out += weight * value;
            }
        }
        first += out.len();
    }
}

/// The products of a query with the keys of 16 positions.
#[inline(always)]
fn products(query: &[f32], keys: &[Lanes]) -> Lanes {
    // Four sets of sums: the additions of one would wait for each other. (By name: of an array the compiler makes memory.)
    let [mut a, mut b, mut c, mut d] = [[0.0f32; LANES]; 4];
    let ((quads, rest), (key_quads, key_rest)) = (query.as_chunks::<4>(), keys.as_chunks::<4>());
    for (query, keys) in quads.iter().zip(key_quads) {
        a = added(a, query[0], &keys[0]);
        b = added(b, query[1], &keys[1]);
        c = added(c, query[2], &keys[2]);
        d = added(d, query[3], &keys[3]);
    }
    for (query, keys) in rest.iter().zip(key_rest) {
        a = added(a, *query, keys);
    }
    added(added(a, 1.0, &b), 1.0, &added(c, 1.0, &d))
}

#[inline(always)]
fn added(mut sums: Lanes, factor: f32, lanes: &Lanes) -> Lanes {
    for lane in 0..LANES {
        sums[lane] += factor * lanes[lane];
    }
    sums
}

/// In place.
#[inline(always)]
fn softmax(scores: &mut [f32]) {
    let largest = scores.iter().fold(f32::NEG_INFINITY, |max, &score| max.max(score));
    let mut sum = f32x8::ZERO;
    for scores in scores.chunks_mut(8) {
        let weights = (load(scores) - f32x8::splat(largest)).exp();
        scores.copy_from_slice(&weights.to_array()[..scores.len()]);
        sum += load(scores);
    }
    let sum = sum.reduce_add();
    scores.iter_mut().for_each(|weight| *weight /= sum);
}

/// The sum of squares.
#[inline(always)]
fn squares(x: &[f32]) -> f32 {
    let mut sums = [f32x8::ZERO; 2];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        let (a, b) = (load(chunk), load(&chunk[8..]));
        sums[0] += a * a;
        sums[1] += b * b;
    }
    let rest: f32 = rest.iter().map(|x| x * x).sum();
    (sums[0] + sums[1]).reduce_add() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn random(len: usize, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 22) as f32 - 2.0
        };
        (0..len).map(|_| next()).collect()
    }

    /// Whether results are right for terms of which the largest is `term`, or as large as the largest result.
    fn close(found: &[f32], expected: &[f64], term: f64) -> Result<(), TestCaseError> {
        let largest = expected.iter().fold(term, |max: f64, x| max.max(x.abs()));
        for (found, expected) in found.iter().zip(expected) {
            prop_assert!((f64::from(*found) - expected).abs() <= 2e-6 * largest, "{found} {expected}");
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn norms_and_gates_are_their_formulas(rows in 0usize..9, features in 1usize..1500, seed: u64) {
            let (x, up, gain) = (random(rows * features, seed), random(rows * features, !seed), random(features, seed ^ 5));
            let mut out = vec![0.0; x.len()];
            rms_norm(&x, &gain, 1e-5, &mut out).unwrap();
            let norm = |row: &[f32]| {
                let mean = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / features as f64;
                let scaled = |(&x, &gain): (&f32, &f32)| f64::from(x) / (mean + 1e-5).sqrt() * f64::from(gain);
                row.iter().zip(&gain).map(scaled).collect::<Vec<_>>()
            };
            close(&out, &x.chunks(features).flat_map(norm).collect::<Vec<_>>(), 1e-3)?;
            // Where exponentials are huge and where there are none, too.
            let wide: Vec<f32> = x.iter().map(|x| x * x * x * 20.0).collect();
            let mut gate = wide.clone();
            swiglu(&mut gate, &up).unwrap();
            let expected: Vec<f64> = wide.iter().zip(&up).map(|(&x, &up)| {
                f64::from(x) / (1.0 + f64::from(-x).exp()) * f64::from(up)
            }).collect();
            close(&gate, &expected, 1e-3)?;
        }

        #[test]
        fn heads_are_turned(positions in 0usize..5, heads in 0usize..5, half in 1usize..40, seed: u64) {
            let x = random(positions * heads * 2 * half, seed);
            let angles = random(positions * half, !seed);
            let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
            let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
            let mut turned = x.clone();
            rotate(&mut turned, &cos, &sin, 2 * half).unwrap();
            let features = heads * 2 * half;
            let expected: Vec<f64> = (0..x.len()).map(|at| {
                let (position, i) = (at / features, at % (2 * half));
                let angle = f64::from(angles[position * half + i % half]);
                let (x, other) = (f64::from(x[at]), f64::from(x[if i < half { at + half } else { at - half }]));
                x * angle.cos() + other * angle.sin() * if i < half { -1.0 } else { 1.0 }
            }).collect();
            close(&turned, &expected, 1e-3)?;
        }

        #[test]
        fn queries_look_back(
            positions in 0usize..6, before in 0usize..80, sharing in 1usize..4, kv_heads in 1usize..4, head_dim in 1usize..70, window in 0usize..90, seed: u64,
        ) {
            let heads = sharing * kv_heads;
            let (q_len, kv_len) = (heads * head_dim, kv_heads * head_dim);
            let q = random(positions * q_len, seed);
            let [k, v] = [seed ^ 1, seed ^ 2].map(|seed| random((before + positions) * kv_len, seed));
            let mut cache = AttentionCache::new(kv_heads, head_dim);
            // Some that are forgotten again, the text before, and the new positions.
            cache.extend(&k[..before / 2 * kv_len], &v[..before / 2 * kv_len]).unwrap();
            cache.extend(&v[..before / 2 * kv_len], &k[..before / 2 * kv_len]).unwrap();
            cache.truncate(before / 2);
            cache.extend(&k[before / 2 * kv_len..], &v[before / 2 * kv_len..]).unwrap();
            prop_assert_eq!(cache.positions(), before + positions);
            let mut out = vec![f32::NAN; q.len()];
            let window = NonZeroUsize::new(window);
            attention(&q, &cache, heads, window, &mut out).unwrap();
            let mut expected = vec![];
            for position in 0..positions {
                for head in 0..heads {
                    let q = &q[position * q_len + head * head_dim..][..head_dim];
                    let of = |rows: &[f32], key: usize, i: usize| {
                        f64::from(rows[key * kv_len + head / sharing * head_dim + i])
                    };
                    let score = |key: usize| {
                        let dot: f64 = (0..head_dim).map(|i| f64::from(q[i]) * of(&k, key, i)).sum();
                        (dot / (head_dim as f64).sqrt()).exp()
                    };
                    let end = before + position + 1;
                    let first = window.map_or(0, |window| end.saturating_sub(window.get()));
                    let weights: Vec<f64> = (first..end).map(score).collect();
                    let total: f64 = weights.iter().sum();
                    expected.extend((0..head_dim).map(|i| {
                        weights.iter().enumerate().map(|(key, weight)| weight * of(&v, first + key, i)).sum::<f64>() / total
                    }));
                }
            }
            close(&out, &expected, v.iter().fold(1e-3, |max, v| max.max(v.abs().into())))?;
        }
    }
}
