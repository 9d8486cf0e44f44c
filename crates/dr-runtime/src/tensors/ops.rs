//! What networks compute on Burn tensors besides products.

use crate::graph::{Attention, Rope};
use burn::tensor::activation::softmax;
use burn::tensor::{Bool, Device, Tensor, TensorData};
use std::num::NonZeroUsize;

/// Keys and values of a text so far, as tensors: `[1, kv heads, capacity, head dim]` of each attention.
#[derive(Clone, Debug, Default)]
pub struct TensorCache {
    slots: Vec<[Tensor<4>; 2]>,
    positions: usize,
}

impl TensorCache {
    /// Positions that it has.
    #[must_use]
    pub const fn positions(&self) -> usize {
        self.positions
    }
}

/// Where in texts the tokens of a pass are, and what attention derives from that, the same in all blocks.
#[derive(Debug)]
pub struct Text {
    batch: usize,
    positions: usize,
    /// Of the first token.
    start: usize,
    /// Attentions so far in this pass.
    attentions: usize,
    /// Of attentions that differ.
    derived: Vec<(Attention, Derived)>,
}

/// What attentions that do not differ have in common in a pass.
#[derive(Clone, Debug)]
struct Derived {
    angles: Option<Angles>,
    /// `[1, 1, queries, keys]`, where a query must not look; `None` if it may everywhere.
    mask: Option<Tensor<4, Bool>>,
}

impl Text {
    /// Texts of so many tokens, the first of which is at position `start`.
    #[must_use]
    pub const fn new(batch: usize, positions: usize, start: usize) -> Self {
        Self { batch, positions, start, attentions: 0, derived: vec![] }
    }

    /// Causal softmax attention of rows of queries `[batch * positions, heads * head dim]` to keys and values, and those of `cache`, which
    /// these are added to.
    pub fn attention(
        &mut self, [q, k, v]: [Tensor<2>; 3], of: &Attention, cache: Option<&mut TensorCache>,
    ) -> Tensor<2> {
        let Self { batch, positions, start, .. } = *self;
        let Attention { heads, kv_heads, head_dim, .. } = *of;
        let at = self.derived.iter().position(|(known, _)| known == of).unwrap_or(self.derived.len());
        if at == self.derived.len() {
            self.derived.push((of.clone(), Derived::new(of, start, positions, &q.device())));
        }
        let Derived { angles, mask } = &self.derived[at].1;
        let rotate = |x| angles.iter().fold(x, |x, angles| angles.rotate(x));
        let by_head =
            |x: Tensor<2>, heads: usize| x.reshape([batch, positions, heads, head_dim]).swap_dims(1, 2);
        let q = rotate(by_head(q, heads));
        let (mut k, mut v) = (rotate(by_head(k, kv_heads)), by_head(v, kv_heads));
        if let Some(cache) = cache {
            if cache.slots.len() == self.attentions {
                let empty = || Tensor::zeros([1, kv_heads, FIRST, head_dim], &q.device());
                cache.slots.push([empty(), empty()]);
            }
            let [keys, values] = &mut cache.slots[self.attentions];
            (k, v) = (extend(keys, start, k), extend(values, start, v));
            // After the last attention of a pass, all have these positions.
            cache.positions = start + positions;
        }
        self.attentions += 1;
        let attended = attention(q, k, v, mask.as_ref());
        attended.swap_dims(1, 2).reshape([batch * positions, heads * head_dim])
    }
}

/// Positions that a cache has room for at first.
const FIRST: usize = 64;

/// Puts new keys or values `[1, kv heads, new, head dim]` at their positions and gives all so far back.
fn extend(slot: &mut Tensor<4>, start: usize, new: Tensor<4>) -> Tensor<4> {
    let [_, heads, count, dim] = new.dims();
    let [_, _, capacity, _] = slot.dims();
    let end = start + count;
    // Taken out, so that nobody else has it and it is written to in place.
    let mut whole = std::mem::replace(slot, Tensor::empty([1, 1, 1, 1], &new.device()));
    if end > capacity {
        let more = end.next_power_of_two().max(FIRST) - capacity;
        whole = Tensor::cat(vec![whole, Tensor::zeros([1, heads, more, dim], &new.device())], 2);
    }
    whole = whole.slice_assign([0..1, 0..heads, start..end, 0..dim], new);
    *slot = whole.clone();
    whole.slice([0..1, 0..heads, 0..end, 0..dim])
}

/// Softmax attention of queries `[batch, heads, positions, head dim]` to keys and values of `[batch, kv heads, all positions, head
/// dim]`, each of which serves `heads / kv heads` heads of queries.
fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, mask: Option<&Tensor<4, Bool>>) -> Tensor<4> {
    let ([batch, heads, positions, head_dim], [_, kv_heads, keys, _]) = (q.dims(), k.dims());
    let sharing = heads / kv_heads;
    // The queries that share keys follow each other in one matrix.
    let q = q.reshape([batch, kv_heads, sharing * positions, head_dim]);
    let scores = q.matmul(k.transpose()) / (head_dim as f64).sqrt();
    let scores = match mask {
        Some(mask) => {
            let scores = scores.reshape([batch, heads, positions, keys]);
            let mask = mask.clone().expand([batch, heads, positions, keys]);
            let masked = scores.mask_fill(mask, f32::NEG_INFINITY);
            masked.reshape([batch, kv_heads, sharing * positions, keys])
        }
        None => scores,
    };
    softmax(scores, 3).matmul(v).reshape([batch, heads, positions, head_dim])
}

impl Derived {
    fn new(of: &Attention, start: usize, positions: usize, device: &Device) -> Self {
        let (shape, offset) = ([positions, start + positions], start as i64);
        let later = (positions > 1).then(|| Tensor::<2, Bool>::tril_mask(shape, offset, device));
        let window = of.window.map_or(shape[1], NonZeroUsize::get);
        let earlier = (window < shape[1])
            .then(|| Tensor::<2, Bool>::triu_mask(shape, offset + 1 - window as i64, device));
        let mask = match (later, earlier) {
            (Some(later), Some(earlier)) => Some(later.bool_or(earlier)),
            (later, earlier) => later.or(earlier),
        };
        let angles = of.rope.as_ref().map(|rope| Angles::new(rope, of.head_dim, start, positions, device));
        Self { angles, mask: mask.map(Tensor::unsqueeze) }
    }
}

/// The cosines and sines of positions.
#[derive(Clone, Debug)]
struct Angles {
    /// `[positions, head dim]`; the second half of a row repeats the first.
    cos: Tensor<2>,
    sin: Tensor<2>,
}

impl Angles {
    fn new(rope: &Rope, head_dim: usize, start: usize, positions: usize, device: &Device) -> Self {
        let [cos, sin] = rope.tables(head_dim, start, positions).map(|table| {
            let half = Tensor::<2>::from_data(TensorData::new(table, [positions, head_dim / 2]), device);
            Tensor::cat(vec![half.clone(), half], 1)
        });
        Self { cos, sin }
    }

    /// Turns `[batch, heads, positions, head dim]`: feature `i` and feature `i + head dim / 2` are a pair.
    fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        let [.., dim] = x.dims();
        let halves = x.clone().split(dim / 2, 3);
        let turned = Tensor::cat(vec![halves[1].clone().neg(), halves[0].clone()], 3);
        x * self.cos.clone().unsqueeze() + turned * self.sin.clone().unsqueeze()
    }
}

/// [`Op::Enlarge`](crate::graph::Op::Enlarge) of rows and columns, which are the axes `first` and `first + 1`.
#[must_use]
pub fn enlarge(mut x: Tensor<4>, size: [usize; 2], first: usize) -> Tensor<4> {
    for (axis, size) in [(first, size[0]), (first + 1, size[1])] {
        let dims = x.dims();
        let times = size.div_ceil(dims[axis]);
        if times > 1 {
            let mut whole = dims;
            whole[axis] = dims[axis] * times;
            let before: usize = dims[..=axis].iter().product();
            let after: usize = dims[axis + 1..].iter().product();
            x = x.reshape([before, 1, after]).expand([before, times, after]).reshape(whole);
        }
        x = x.narrow(axis, 0, size);
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enlarged_maps_repeat_their_rows_and_columns() {
        let values = |x: Tensor<4>| x.into_data().try_into_vec::<f32>().expect("floats");
        let x = TensorData::new(vec![1.0f32, 2.0, 3.0, 4.0], [1, 1, 2, 2]);
        let x = Tensor::<4>::from_data(x, &Device::flex());
        let larger = values(enlarge(x.clone(), [4, 3], 2));
        assert_eq!(larger, [1.0, 1.0, 2.0, 1.0, 1.0, 2.0, 3.0, 3.0, 4.0, 3.0, 3.0, 4.0]);
        assert_eq!(values(enlarge(x.permute([0, 2, 3, 1]), [4, 3], 1)), larger);
    }
}
