//! What language models compute between their linear layers, in `f32`, one row of features for each position of a text.
//!
//! Products of one row with packed weights take some microseconds: so do tensors between them. These are for networks that
//! run on slices. They are in this crate, although nothing in them is quantized, because they share with the products the team
//! of threads, which a token wakes once, and the choice of the instruction set.

use super::halves::{self, LANES};
use super::isa::{Isa, run_on};
use super::sample::Sample;
use super::team;
use crate::KernelError;
use crate::error::size;
use crate::integer;
use half::f16;
use std::borrow::Cow;
use std::cell::RefCell;
use std::num::NonZeroUsize;
use std::ops::Range;
use wide::f32x8;

/// Elements that a task works on, so many that it pays for another thread's attention.
const TASK: usize = 1 << 11;

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
    let isa = Isa::detect();
    team::for_each_chunk(gate, TASK, |task, gate| {
        let up = &up[task * TASK..][..gate.len()];
        run_on!(isa, |_| gated(gate, up));
    });
    Ok(())
}

#[inline(always)]
fn gated(gate: &mut [f32], up: &[f32]) {
    let ((gates, gate), (ups, up)) = (gate.as_chunks_mut(), up.as_chunks());
    for (gate, up) in gates.iter_mut().zip(ups) {
        *gate = gated_lanes(gate, up);
    }
    let (mut last, mut factors) = ([0.0; LANES], [0.0; LANES]);
    last[..gate.len()].copy_from_slice(gate);
    factors[..up.len()].copy_from_slice(up);
    gate.copy_from_slice(&gated_lanes(&last, &factors)[..gate.len()]);
}

#[inline(always)]
fn gated_lanes(gate: &Lanes, up: &Lanes) -> Lanes {
    let (mut negative, mut out) = (*gate, *up);
    negative.iter_mut().for_each(|x| *x = -*x);
    let powers = exp(&negative);
    for lane in 0..LANES {
        out[lane] *= gate[lane] / (1.0 + powers[lane]);
    }
    out
}

/// How well logits predict: of each row of `logits`, `[rows, classes]`, the cross entropy with its target, `ln(sum exp(x)) - x[target]`, in
/// nats, and whether the target is the most likely one (the first of several).
///
/// # Errors
/// [`KernelError::Size`] if there are no classes for each target, or a target is none of them.
pub fn cross_entropy(logits: &[f32], targets: &[u32]) -> Result<Vec<(f64, bool)>, KernelError> {
    let classes = logits.len() / targets.len().max(1);
    size("logits of the targets", &[logits.len()], &[classes * targets.len()])?;
    if let Some(&target) = targets.iter().find(|&&target| target as usize >= classes) {
        size("classes of a target", &[classes], &[target as usize + 1])?;
    }
    let isa = Isa::detect();
    let mut out = vec![(0.0, false); targets.len()];
    team::for_each_chunk(&mut out, (TASK / classes.max(1)).max(1), |task, out| {
        let first = task * (TASK / classes).max(1);
        let rows = logits[first * classes..].chunks_exact(classes);
        for ((out, row), &target) in out.iter_mut().zip(rows).zip(&targets[first..]) {
            *out = run_on!(isa, |_| prediction(row, target as usize));
        }
    });
    Ok(out)
}

#[inline(always)]
fn prediction(row: &[f32], target: usize) -> (f64, bool) {
    let (found, most) = (row[target], largest(row));
    let (blocks, rest) = row.as_chunks::<LANES>();
    let mut sum = 0.0;
    // (Sums of so many that they keep their digits.)
    for blocks in blocks.chunks(64) {
        let mut sums = [0.0; LANES];
        for block in blocks {
            let mut block = *block;
            block.iter_mut().for_each(|x| *x -= most);
            sums = added(sums, 1.0, &exp(&block));
        }
        sum += f64::from(sums.iter().sum::<f32>());
    }
    sum += rest.iter().map(|x| f64::from(x - most).exp()).sum::<f64>();
    let is_first = found == most && !row[..target].contains(&most);
    (sum.ln() + f64::from(most) - f64::from(found), is_first)
}

/// How far predictions are from those of a reference: of each row of both, `[rows, classes]` logits, the Kullback-Leibler divergence of its
/// softmax `q` from the reference's `p`, `sum p (ln p - ln q)`, in nats, and whether the same class is the most likely one (the first of
/// several).
///
/// # Errors
/// [`KernelError::Size`] if there are no whole rows, or not as many logits of both.
pub fn divergence(
    reference: &[f32], logits: &[f32], classes: usize,
) -> Result<Vec<(f64, bool)>, KernelError> {
    let rows = reference.len() / classes.max(1);
    size("logits of the reference", &[reference.len()], &[rows * classes])?;
    size("logits", &[logits.len()], &[reference.len()])?;
    let isa = Isa::detect();
    let mut out = vec![(0.0, true); rows];
    let rows_of_task = (TASK / classes.max(1)).max(1);
    team::for_each_chunk(&mut out, rows_of_task, |task, out| {
        let first = task * rows_of_task * classes;
        let rows = reference[first..].chunks_exact(classes).zip(logits[first..].chunks_exact(classes));
        for (out, (reference, row)) in out.iter_mut().zip(rows) {
            *out = run_on!(isa, |_| divergence_of_row(reference, row));
        }
    });
    Ok(out)
}

#[inline(always)]
fn divergence_of_row(reference: &[f32], row: &[f32]) -> (f64, bool) {
    let [most_p, most_q] = [largest(reference), largest(row)];
    let ((p_blocks, p_rest), (q_blocks, q_rest)) = (reference.as_chunks::<LANES>(), row.as_chunks::<LANES>());
    // Of exp(p), of exp(q), and of exp(p) (p - q).
    let mut totals = [0.0; 3];
    // (Sums of so many that they keep their digits.)
    for (p_blocks, q_blocks) in p_blocks.chunks(64).zip(q_blocks.chunks(64)) {
        let mut sums = [[0.0f32; LANES]; 3];
        for (p, q) in p_blocks.iter().zip(q_blocks) {
            let (mut p, mut q) = (*p, *q);
            p.iter_mut().for_each(|p| *p -= most_p);
            q.iter_mut().for_each(|q| *q -= most_q);
            let (exp_p, exp_q) = (exp(&p), exp(&q));
            for lane in 0..LANES {
                sums[0][lane] += exp_p[lane];
                sums[1][lane] += exp_q[lane];
                sums[2][lane] += exp_p[lane] * (p[lane] - q[lane]);
            }
        }
        for (total, sums) in totals.iter_mut().zip(sums) {
            *total += f64::from(sums.iter().sum::<f32>());
        }
    }
    for (p, q) in p_rest.iter().zip(q_rest) {
        let (p, q) = (f64::from(p - most_p), f64::from(q - most_q));
        totals[0] += p.exp();
        totals[1] += q.exp();
        totals[2] += p.exp() * (p - q);
    }
    let [p, q, difference] = totals;
    let first = |row: &[f32], most: f32| row.iter().position(|x| *x == most);
    ((difference / p - p.ln() + q.ln()).max(0.0), first(reference, most_p) == first(row, most_q))
}

/// The largest element, NaN aside.
#[inline(always)]
fn largest(x: &[f32]) -> f32 {
    let (blocks, rest) = x.as_chunks::<LANES>();
    let mut most = [f32::NEG_INFINITY; LANES];
    for block in blocks {
        for (most, x) in most.iter_mut().zip(block) {
            *most = if *x > *most { *x } else { *most };
        }
    }
    most.iter().chain(rest).fold(f32::NEG_INFINITY, |most, x| most.max(*x))
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
    store: Store,
}

/// The numbers of a cache.
#[derive(Clone, Debug)]
enum Store {
    Floats(Kept<f32>),
    Halves(Kept<f16>),
}

#[derive(Clone, Debug)]
struct Kept<T> {
    /// `[positions / 16, kv heads, head dim, 16]`: products with the keys of 16 positions are sums in 16 lanes.
    keys: Vec<[T; LANES]>,
    /// `[positions, kv heads * head dim]`
    values: Vec<T>,
}

// Sums have as many lanes on every machine, so that they are rounded alike.
type Lanes = [f32; LANES];

macro_rules! with_kept {
    ($store:expr, |$kept:ident| $result:expr) => {
        match $store {
            Store::Floats($kept) => $result,
            Store::Halves($kept) => $result,
        }
    };
}

impl AttentionCache {
    /// One without positions, for numbers in 32 bits.
    #[must_use]
    pub const fn new(kv_heads: usize, head_dim: usize) -> Self {
        let store = Store::Floats(Kept { keys: vec![], values: vec![] });
        Self { kv_heads, head_dim, positions: 0, store }
    }

    /// One without positions, for numbers in 16 bits (`f16`), which take half the memory. They are rounded to 11 bits of precision; those
    /// beyond [`f16::MAX`], 65504, which no trained model's come near, become that.
    #[must_use]
    pub const fn in_halves(kv_heads: usize, head_dim: usize) -> Self {
        let store = Store::Halves(Kept { keys: vec![], values: vec![] });
        Self { kv_heads, head_dim, positions: 0, store }
    }

    /// Positions that it has.
    #[must_use]
    pub const fn positions(&self) -> usize {
        self.positions
    }

    /// Bytes of the keys and values that it has, with those of padding.
    #[must_use]
    pub fn bytes(&self) -> usize {
        with_kept!(&self.store, |kept| size_of_val(&kept.keys[..]) + size_of_val(&kept.values[..]))
    }

    /// Forgets all positions but the first ones.
    pub fn truncate(&mut self, positions: usize) {
        self.positions = positions.min(self.positions);
        let (positions, features) = (self.positions, self.features());
        with_kept!(&mut self.store, |kept| {
            kept.values.truncate(positions * features);
            kept.keys.truncate(positions.div_ceil(LANES) * features);
        });
    }

    /// Adds positions: keys and values `[positions, kv heads * head dim]`.
    ///
    /// # Errors
    /// [`KernelError::Size`] if they are not of one length, or not of whole positions.
    pub fn extend(&mut self, keys: &[f32], values: &[f32]) -> Result<(), KernelError> {
        size("values of a cache", &[values.len()], &[keys.len()])?;
        let features = self.features().max(1);
        size("keys of a cache", &[keys.len()], &[keys.len() / features * self.features()])?;
        with_kept!(&mut self.store, |kept| kept.extend(self.positions, features, keys, values));
        self.positions += keys.len() / features;
        Ok(())
    }

    const fn features(&self) -> usize {
        self.kv_heads.saturating_mul(self.head_dim)
    }
}

impl<T: Number> Kept<T> {
    /// Adds positions to those that there are.
    fn extend(&mut self, positions: usize, features: usize, keys: &[f32], values: &[f32]) {
        self.values.extend_from_slice(&T::nearest(values));
        for (position, keys) in (positions..).zip(T::nearest(keys).chunks_exact(features)) {
            let (block, lane) = (position / LANES, position % LANES);
            if lane == 0 {
                self.keys.resize(self.keys.len() + features, [T::default(); LANES]);
            }
            for (lanes, key) in self.keys[block * features..].iter_mut().zip(keys) {
                lanes[lane] = *key;
            }
        }
    }
}

/// A type of the numbers in a cache.
trait Number: Sample + Default {
    /// The nearest ones of the type.
    fn nearest(x: &[f32]) -> Cow<'_, [Self]>;

    /// Keys as floats: as they are, or in the first ones of `room`, which is as long.
    ///
    /// # Safety
    /// The machine has `isa`, for which this is compiled.
    unsafe fn lanes<'a>(isa: Isa, keys: &'a [[Self; LANES]], room: &'a mut [Lanes]) -> &'a [Lanes];

    /// The first `len` numbers of `count` rows, which are so far apart, as floats, and how far they are apart then: as they are, or in
    /// `room`.
    ///
    /// # Safety
    /// As above.
    unsafe fn rows<'a>(
        isa: Isa, rows: &'a [Self], apart: usize, size: [usize; 2], room: &'a mut Vec<f32>,
    ) -> (&'a [f32], usize);
}

impl Number for f32 {
    fn nearest(x: &[f32]) -> Cow<'_, [f32]> {
        x.into()
    }

    #[inline(always)]
    unsafe fn lanes<'a>(_: Isa, keys: &'a [Lanes], _: &'a mut [Lanes]) -> &'a [Lanes] {
        keys
    }

    #[inline(always)]
    unsafe fn rows<'a>(
        _: Isa, rows: &'a [f32], apart: usize, _: [usize; 2], _: &'a mut Vec<f32>,
    ) -> (&'a [f32], usize) {
        (rows, apart)
    }
}

impl Number for f16 {
    fn nearest(x: &[f32]) -> Cow<'_, [f16]> {
        halves::nearest(x).into()
    }

    #[inline(always)]
    unsafe fn lanes<'a>(isa: Isa, keys: &'a [[f16; LANES]], room: &'a mut [Lanes]) -> &'a [Lanes] {
        for (keys, room) in keys.iter().zip(&mut *room) {
            // SAFETY: As promised by the caller.
            *room = unsafe { halves::widen(isa, keys) };
        }
        room
    }

    #[inline(always)]
    unsafe fn rows<'a>(
        isa: Isa, rows: &'a [f16], apart: usize, [count, len]: [usize; 2], room: &'a mut Vec<f32>,
    ) -> (&'a [f32], usize) {
        room.resize(count * len, 0.0);
        for (row, room) in rows.chunks(apart).zip(room.chunks_exact_mut(len)) {
            let ((blocks, rest), (out, out_rest)) = (row[..len].as_chunks(), room.as_chunks_mut());
            for (block, out) in blocks.iter().zip(out) {
                // SAFETY: As promised by the caller.
                *out = unsafe { halves::widen(isa, block) };
            }
            rest.iter().zip(out_rest).for_each(|(half, out)| *out = half.widen());
        }
        (room, len)
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
    let features = heads.saturating_mul(head_dim);
    let positions = (queries.len() / features.max(1)).min(cache.positions);
    size("queries of the positions in the cache", &[queries.len()], &[positions.saturating_mul(features)])?;
    let isa = Isa::detect();
    let sharing = (heads / kv_heads).saturating_mul(head_dim);
    let window = window.map_or(usize::MAX, NonZeroUsize::get);
    // A task: some positions, or, of one position, one head of keys.
    let len = if positions == 1 { sharing } else { features.saturating_mul(POSITIONS) };
    let pitch = len.min(features);
    team::for_each_chunk(out, len.max(1), |task, out| {
        let start = task * len;
        let queries = &queries[start..][..out.len()];
        let count = cache.positions - positions + start / features + 1;
        let head = start % features / sharing;
        TILE.with_borrow_mut(|tile| {
            for (at, head) in (head..kv_heads).take(out.len() / sharing).enumerate() {
                let columns = at * sharing..(at + 1) * sharing;
                let part =
                    Part { columns, pitch, head, count, window, dim: head_dim, features: cache.features() };
                with_kept!(&cache.store, |kept| run_on!(isa, |isa| {
                    // SAFETY: The machine has it, and this is compiled for it.
                    unsafe { tile.attend(isa, queries, kept, &part, out) }
                }));
            }
        });
    });
    Ok(())
}

/// Positions whose queries are multiplied with the same keys, at most.
const POSITIONS: usize = 16;

thread_local! {
    static TILE: RefCell<Tile> = RefCell::default();
}

/// The queries of some positions that share a head of keys, as rows: a multiple of four, the last ones zeros.
#[derive(Default)]
struct Tile {
    /// `[rows, head dim]`, over the root of the dimension.
    queries: Vec<f32>,
    /// `[rows, keys]`, the latter in whole blocks; scores at first.
    weights: Vec<f32>,
    /// `[rows, head dim]`
    mixed: Vec<f32>,
    /// Keys of two blocks, as floats.
    keys: Vec<Lanes>,
    /// `[values, head dim]`, as floats.
    values: Vec<f32>,
}

/// Queries of some positions that look at a head of keys.
struct Part {
    /// Where they are in the row of a position.
    columns: Range<usize>,
    /// From one row to the next.
    pitch: usize,
    /// The head of keys and values.
    head: usize,
    /// How many keys there are for those of the first position; others have one more each.
    count: usize,
    /// At how many of them, the last ones, they look.
    window: usize,
    /// Features of a head, and of all heads of keys.
    dim: usize,
    features: usize,
}

impl Tile {
    /// Attention of the queries of `part`.
    ///
    /// # Safety
    /// The machine has `isa`, for which this is compiled.
    #[inline(always)]
    unsafe fn attend<T: Number>(
        &mut self, isa: Isa, queries: &[f32], kept: &Kept<T>, part: &Part, out: &mut [f32],
    ) {
        let Part { ref columns, pitch, head, count, window, dim, features } = *part;
        let (positions, sharing) = (out.len() / pitch, columns.len() / dim);
        let (rows, most) = ((positions * sharing).next_multiple_of(FOUR), count + positions - 1);
        // Whole blocks of keys, from that of the first one that the first position looks at.
        let from = count.saturating_sub(window) / LANES * LANES;
        let room = (most - from).next_multiple_of(LANES);
        let root = (dim as f32).sqrt();
        self.queries.clear();
        for queries in queries.chunks_exact(pitch) {
            self.queries.extend(queries[columns.clone()].iter().map(|x| x / root));
        }
        self.queries.resize(rows * dim, 0.0);
        self.weights.resize(rows * room, 0.0);
        self.keys.resize(2 * dim, [0.0; LANES]);
        let (room0, room1) = self.keys.split_at_mut(dim);
        for first in (0..room).step_by(2 * LANES) {
            // The last block may be alone: it is computed twice.
            let second = (first + LANES).min(room - LANES);
            let keys = &kept.keys[from / LANES * features + head * dim..];
            let keys = [&keys[first / LANES * features..][..dim], &keys[second / LANES * features..][..dim]];
            // SAFETY: As promised by the caller.
            let keys = unsafe { [T::lanes(isa, keys[0], room0), T::lanes(isa, keys[1], room1)] };
            let fours = self.queries.chunks_exact(FOUR * dim);
            for (queries, weights) in fours.zip(self.weights.chunks_exact_mut(FOUR * room)) {
                let scores = products(queries, keys);
                for (weights, scores) in weights.chunks_exact_mut(room).zip(scores) {
                    weights[first..][..LANES].copy_from_slice(&scores[0]);
                    weights[second..][..LANES].copy_from_slice(&scores[1]);
                }
            }
        }
        for (row, weights) in self.weights.chunks_exact_mut(room).enumerate() {
            let end = most.min(count + row / sharing);
            let (weights, later) = weights.split_at_mut(end - from);
            let (earlier, weights) = weights.split_at_mut(end.saturating_sub(window.saturating_add(from)));
            earlier.fill(0.0);
            softmax(weights);
            later.fill(0.0);
        }
        self.mixed.clear();
        self.mixed.resize(rows * dim, 0.0);
        for first in (from..most).step_by(ROWS) {
            let values = &kept.values[first * features + head * dim..];
            let shown = first - from..most.min(first + ROWS) - from;
            // SAFETY: As promised by the caller.
            let (values, apart) =
                unsafe { T::rows(isa, values, features, [shown.len(), dim], &mut self.values) };
            let pairs = self.mixed.chunks_exact_mut(2 * dim).zip(self.weights.chunks_exact(2 * room));
            for (out, weights) in pairs.take((positions * sharing).div_ceil(2)) {
                let (weights, others) = weights.split_at(room);
                mix([&weights[shown.clone()], &others[shown.clone()]], values, apart, out);
            }
        }
        for (out, mixed) in out.chunks_exact_mut(pitch).zip(self.mixed.chunks_exact(columns.len())) {
            out[columns.clone()].copy_from_slice(mixed);
        }
    }
}

/// Queries that are multiplied together.
const FOUR: usize = 4;

/// The products of four queries with the keys of two times 16 positions, `[queries, 2]`.
#[inline(always)]
fn products(queries: &[f32], keys: [&[Lanes]; 2]) -> [[Lanes; 2]; FOUR] {
    let (ab, cd) = queries.split_at(queries.len() / 2);
    let ((a, b), (c, d)) = (ab.split_at(ab.len() / 2), cd.split_at(cd.len() / 2));
    // (By name: of an array the compiler makes memory.)
    let [mut a0, mut b0, mut c0, mut d0] = [[0.0; LANES]; FOUR];
    let [mut a1, mut b1, mut c1, mut d1] = [[0.0; LANES]; FOUR];
    for (((((key0, key1), a), b), c), d) in keys[0].iter().zip(keys[1]).zip(a).zip(b).zip(c).zip(d) {
        (a0, b0, c0, d0) =
            (added(a0, *a, key0), added(b0, *b, key0), added(c0, *c, key0), added(d0, *d, key0));
        (a1, b1, c1, d1) =
            (added(a1, *a, key1), added(b1, *b, key1), added(c1, *c, key1), added(d1, *d, key1));
    }
    [[a0, a1], [b0, b1], [c0, c1], [d0, d1]]
}

/// Rows of values that stay in the first-level cache while all queries add them.
const ROWS: usize = 64;

/// Adds rows, which are `pitch` apart, times weights, to two results.
#[inline(always)]
fn mix(weights: [&[f32]; 2], rows: &[f32], pitch: usize, out: &mut [f32]) {
    const WIDTH: usize = 4 * LANES;
    let (out0, out1) = out.split_at_mut(out.len() / 2);
    let (quads0, rest0) = out0.as_chunks_mut::<WIDTH>();
    let (quads1, rest1) = out1.as_chunks_mut::<WIDTH>();
    let mut first = 0;
    for (out0, out1) in quads0.iter_mut().zip(quads1) {
        // (By name, as in `products`.)
        let [mut a0, mut b0, mut c0, mut d0] = bytemuck::cast::<_, [Lanes; 4]>(*out0);
        let [mut a1, mut b1, mut c1, mut d1] = bytemuck::cast::<_, [Lanes; 4]>(*out1);
        let mut at = first;
        for (&w0, &w1) in weights[0].iter().zip(weights[1]) {
            let Some(row) = rows[at..].first_chunk::<WIDTH>() else {
                unreachable!("rows are as long as results")
            };
            let [a, b, c, d] = bytemuck::cast_ref::<_, [Lanes; 4]>(row);
            (a0, b0, c0, d0) = (added(a0, w0, a), added(b0, w0, b), added(c0, w0, c), added(d0, w0, d));
            (a1, b1, c1, d1) = (added(a1, w1, a), added(b1, w1, b), added(c1, w1, c), added(d1, w1, d));
            at += pitch;
        }
        *out0 = bytemuck::cast([a0, b0, c0, d0]);
        *out1 = bytemuck::cast([a1, b1, c1, d1]);
        first += WIDTH;
    }
    if rest0.is_empty() {
        return;
    }
    for (out, weights) in [rest0, rest1].into_iter().zip(weights) {
        for (row, &weight) in rows[first..].chunks(pitch).zip(weights) {
            for (out, value) in out.iter_mut().zip(row) {
                *out += weight * value;
            }
        }
    }
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
    let largest = largest(scores);
    let (blocks, rest) = scores.as_chunks_mut::<LANES>();
    let mut sums = [0.0; LANES];
    for block in &mut *blocks {
        block.iter_mut().for_each(|score| *score -= largest);
        *block = exp(block);
        sums = added(sums, 1.0, block);
    }
    let mut last = [f32::NEG_INFINITY; LANES];
    last.iter_mut().zip(&*rest).for_each(|(last, score)| *last = score - largest);
    let last = exp(&last);
    rest.copy_from_slice(&last[..rest.len()]);
    let sum: f32 = added(sums, 1.0, &last).iter().sum();
    scores.iter_mut().for_each(|weight| *weight /= sum);
}

/// Exponentials of lanes.
#[inline(always)]
fn exp(x: &Lanes) -> Lanes {
    let mut out = [0.0; LANES];
    for lane in 0..LANES {
        out[lane] = integer::exp(x[lane]);
    }
    out
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

    #[test]
    fn exponentials() {
        let steps = (-90 << 12)..(88 << 12);
        for first in steps.step_by(LANES) {
            let x: Lanes = std::array::from_fn(|lane| (first + lane as i32) as f32 / 4096.0);
            for (x, found) in x.into_iter().zip(exp(&x)) {
                let expected = if x < -64.0 { 0.0 } else { f64::from(x).exp() };
                assert!(
                    (f64::from(found) - expected).abs() <= 2.5e-7 * expected,
                    "{x}: {found}, not {expected}"
                );
            }
        }
        let found =
            exp(&std::array::from_fn(|lane| [f32::NAN, f32::NEG_INFINITY, f32::INFINITY, 0.0][lane % 4]));
        assert!(
            found[0].is_nan()
                && found[1] == 0.0
                && found[2] > 1e38
                && found[2].is_finite()
                && found[3] == 1.0
        );
    }

    #[test]
    fn what_is_too_large_for_halves_is_not_infinite() {
        let mut cache = AttentionCache::in_halves(1, 2);
        cache.extend(&[1e9, -1e9, 0.0, 0.0], &[1e9, f32::NEG_INFINITY, 1.0, 1.0]).unwrap();
        let mut out = [0.0; 2];
        attention(&[1.0, -1.0], &cache, 1, None, &mut out).unwrap();
        assert_eq!(out, [65504.0, -65504.0]);
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
        fn predictions(rows in 0usize..5, classes in 1usize..3000, wide: bool, seed: u64) {
            let by = if wide { 40.0 } else { 1.0 };
            // (Some are alike.)
            let logits: Vec<f32> = random(rows * classes, seed).iter().map(|x| (x * 64.0).round() / 64.0 * by).collect();
            let targets: Vec<u32> = random(rows, !seed).iter().map(|x| (x.abs() * 1e4) as u32 % classes as u32).collect();
            let found = cross_entropy(&logits, &targets).unwrap();
            prop_assert_eq!(found.len(), rows);
            for ((row, &target), (loss, is_first)) in logits.chunks(classes).zip(&targets).zip(found) {
                let target = target as usize;
                let of = |x: f32| f64::from(x - row[target]).exp();
                let expected = row.iter().map(|&x| of(x)).sum::<f64>().ln();
                prop_assert!((loss - expected).abs() < 1e-5 * expected.max(1.0), "{loss} {expected}");
                let first = (0..classes).rev().max_by(|&a, &b| row[a].total_cmp(&row[b]));
                prop_assert_eq!(is_first, first == Some(target));
            }
            if rows > 0 {
                prop_assert!(cross_entropy(&logits, &vec![classes as u32; rows]).is_err());
                prop_assert!(cross_entropy(&logits[1..], &targets).is_err() || rows == 1);
            }
        }

        #[test]
        fn predictions_diverge(rows in 0usize..5, classes in 1usize..300, far in 0.0f32..4.0, seed: u64) {
            let reference = random(rows * classes, seed);
            let noise = random(rows * classes, !seed);
            let logits: Vec<f32> = reference.iter().zip(&noise).map(|(x, noise)| x + far * noise).collect();
            let found = divergence(&reference, &logits, classes).unwrap();
            prop_assert_eq!(found.len(), rows);
            for (row, (kl, same)) in found.into_iter().enumerate() {
                let of = |all: &[f32]| {
                    let row = &all[row * classes..][..classes];
                    let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
                    let first = (0..classes).fold(0, |first, i| if row[i] > row[first] { i } else { first });
                    (row.iter().map(|&x| f64::from(x) - sum.ln()).collect::<Vec<_>>(), first)
                };
                let ((p, first), (q, second)) = (of(&reference), of(&logits));
                let expected: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
                prop_assert!((kl - expected).abs() <= 1e-6 + 1e-5 * expected, "{} of {}", kl, expected);
                prop_assert_eq!(same, first == second);
            }
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
            positions in 0usize..6, before in 0usize..80, sharing in 1usize..4, kv_heads in 1usize..4, head_dim in 1usize..70, window in 0usize..90,
            in_halves: bool, seed: u64,
        ) {
            let heads = sharing * kv_heads;
            let (q_len, kv_len) = (heads * head_dim, kv_heads * head_dim);
            let q = random(positions * q_len, seed);
            let [k, v] = [seed ^ 1, seed ^ 2].map(|seed| random((before + positions) * kv_len, seed));
            let cache = if in_halves { AttentionCache::in_halves } else { AttentionCache::new };
            let mut cache = cache(kv_heads, head_dim);
            // Some that are forgotten again, the text before, and the new positions.
            cache.extend(&k[..before / 2 * kv_len], &v[..before / 2 * kv_len]).unwrap();
            cache.extend(&v[..before / 2 * kv_len], &k[..before / 2 * kv_len]).unwrap();
            cache.truncate(before / 2);
            cache.extend(&k[before / 2 * kv_len..], &v[before / 2 * kv_len..]).unwrap();
            prop_assert_eq!(cache.positions(), before + positions);
            let blocks = (before + positions).div_ceil(LANES) * LANES;
            prop_assert_eq!(cache.bytes(), (blocks + before + positions) * kv_len * if in_halves { 2 } else { 4 });
            let kept = |x: f32| if in_halves { f16::from_f32(x).to_f32() } else { x };
            let [k, v] = [k, v].map(|x| x.into_iter().map(kept).collect::<Vec<_>>());
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
