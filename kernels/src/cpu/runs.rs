//! Loops over the runs of elements that share a scale.

use super::blocks::{Operation, Pieces, fill, input};
use super::isa::Isa;
use crate::layout::ScaleLayout;
use bytemuck::Pod;
use std::mem::MaybeUninit;

/// Consecutive elements with one scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// How many.
    pub len: usize,
    /// The index of their scale.
    pub scale: usize,
}

/// The runs from some element on.
#[derive(Clone)]
pub(super) struct Runs {
    layout: ScaleLayout,
    left_in_row: usize,
    left_in_run: usize,
    scale: usize,
}

impl Runs {
    /// From element `start` on.
    pub fn new(layout: &ScaleLayout, start: usize) -> Self {
        let layout = *layout;
        let cols = layout.cols.max(1);
        let (row, col) = (start / cols % layout.rows.max(1), start % cols);
        let left_in_row = cols - col;
        Self {
            layout,
            left_in_row,
            left_in_run: left_in_row.min(layout.group - col % layout.group),
            scale: row * layout.runs() + col / layout.group,
        }
    }

    /// The next run, or the first `most` elements of it.
    #[inline(always)]
    pub fn next(&mut self, most: usize) -> Run {
        let run = Run { len: most.min(self.left_in_run), scale: self.scale };
        self.left_in_row -= run.len;
        self.left_in_run -= run.len;
        if self.left_in_run == 0 {
            self.scale += 1;
            if self.left_in_row == 0 {
                self.left_in_row = self.layout.cols;
                if self.scale == self.layout.scales() {
                    self.scale = 0;
                }
            }
            self.left_in_run = self.left_in_row.min(self.layout.group);
        }
        run
    }
}

/// An elementwise operation with constants for each scale.
pub(super) trait Map: Sync {
    type In: Copy + Sync;
    type Out: Copy;
    type Constants: Copy;
    fn constants(&self, scale: usize) -> Self::Constants;
    /// Must be `#[inline(always)]`.
    fn apply(constants: Self::Constants, x: Self::In) -> Self::Out;
}

/// Applies `map` to elements whose runs are the next ones.
#[inline(always)]
pub(super) fn map_runs<M: Map>(map: &M, runs: &mut Runs, mut x: &[M::In], mut out: &mut [M::Out]) {
    while !out.is_empty() {
        let run = runs.next(out.len());
        let constants = map.constants(run.scale);
        let (run_x, rest_x) = x.split_at(run.len);
        let (run_out, rest_out) = out.split_at_mut(run.len);
        for (out, &x) in run_out.iter_mut().zip(run_x) {
            *out = M::apply(constants, x);
        }
        (x, out) = (rest_x, rest_out);
    }
}

/// [`map_runs`] over a whole tensor.
pub(super) struct MapPieces<'a, M: Map> {
    pub map: M,
    pub layout: &'a ScaleLayout,
    pub x: &'a [M::In],
}

impl<M: Map> Pieces<M::Out> for MapPieces<'_, M> {
    type State = Runs;

    fn begin(&self, start: usize, _len: usize) -> Runs {
        Runs::new(self.layout, start)
    }

    #[inline(always)]
    fn piece(&self, runs: &mut Runs, start: usize, out: &mut [M::Out]) {
        map_runs(&self.map, runs, input(self.x, start, out.len()), out);
    }
}

// SAFETY: `fill` writes all.
unsafe impl<M: Map<Out: Pod + Send>> Operation<M::Out> for MapPieces<'_, M> {
    type Rest = ();

    fn elements(&self) -> usize {
        self.x.len()
    }

    fn compute(&self, isa: Isa, out: &mut [MaybeUninit<M::Out>]) {
        fill(isa, out, self);
    }
}

/// The gradient of an elementwise operation, with constants for each scale and two sums over the elements that
/// share it.
pub(super) trait Gradient: Sync {
    type Constants: Copy;
    fn constants(&self, scale: usize) -> Self::Constants;
    /// The gradient of `x` and the terms of the sums, `g` being the incoming gradient. Must be `#[inline(always)]`.
    fn apply(constants: Self::Constants, x: f32, g: f32) -> (f32, f64, f64);
    /// The gradients of the two vectors of scales, or of scales and zero points, for scale `scale` with these sums.
    fn of_scale(&self, scale: usize, sums: [f64; 2], layout: &ScaleLayout) -> (f32, f32);
}

/// The sums of a run within one task.
#[derive(Clone, Copy)]
pub(super) struct RunSums {
    scale: usize,
    first: f64,
    second: f64,
}

/// The gradient of a whole tensor.
pub(super) struct GradientPieces<'a, G: Gradient> {
    pub gradient: G,
    pub layout: &'a ScaleLayout,
    pub x: &'a [f32],
    pub grad: &'a [f32],
}

impl<G: Gradient> Pieces<f32> for GradientPieces<'_, G> {
    type State = (Runs, Vec<RunSums>);

    fn begin(&self, start: usize, len: usize) -> Self::State {
        let most = len / self.layout.group.min(self.layout.cols) + 2;
        (Runs::new(self.layout, start), Vec::with_capacity(most))
    }

    #[inline(always)]
    fn piece(&self, (runs, sums): &mut Self::State, start: usize, mut dx: &mut [f32]) {
        let (mut x, mut grad) = (input(self.x, start, dx.len()), input(self.grad, start, dx.len()));
        while !dx.is_empty() {
            let run = runs.next(dx.len());
            let constants = self.gradient.constants(run.scale);
            let (run_x, rest_x) = x.split_at(run.len);
            let (run_grad, rest_grad) = grad.split_at(run.len);
            let (run_dx, rest_dx) = dx.split_at_mut(run.len);
            let (first, second) = gradient_of_run::<G>(constants, run_x, run_grad, run_dx);
            match sums.last_mut() {
                Some(last) if last.scale == run.scale => {
                    last.first += first;
                    last.second += second;
                }
                _ => sums.push(RunSums { scale: run.scale, first, second }),
            }
            (x, grad, dx) = (rest_x, rest_grad, rest_dx);
        }
    }
}

// SAFETY: `fill` writes all.
unsafe impl<G: Gradient> Operation<f32> for GradientPieces<'_, G> {
    /// The gradients of the two vectors of scales, or of scales and zero points.
    type Rest = (Vec<f32>, Vec<f32>);

    fn elements(&self) -> usize {
        self.x.len()
    }

    fn compute(&self, isa: Isa, out: &mut [MaybeUninit<f32>]) -> Self::Rest {
        // Those of the runs, added up in their order.
        let mut total = vec![[0.0; 2]; self.layout.scales()];
        for run in fill(isa, out, self).iter().flat_map(|(_, runs)| runs) {
            total[run.scale][0] += run.first;
            total[run.scale][1] += run.second;
        }
        let of_scale = |(j, sums)| self.gradient.of_scale(j, sums, self.layout);
        total.into_iter().enumerate().map(of_scale).unzip()
    }
}

/// Lanes of the sums.
const LANES: usize = 16;

/// The gradient of a run, and the sums.
#[inline(always)]
pub(super) fn gradient_of_run<G: Gradient>(
    constants: G::Constants, x: &[f32], grad: &[f32], dx: &mut [f32],
) -> (f64, f64) {
    let (mut first, mut second) = ([0.0; LANES], [0.0; LANES]);
    let (x, x_rest) = x.as_chunks::<LANES>();
    let (grad, grad_rest) = grad.as_chunks::<LANES>();
    let (dx, dx_rest) = dx.as_chunks_mut::<LANES>();
    for ((x, grad), dx) in x.iter().zip(grad).zip(dx) {
        for i in 0..LANES {
            let (to_x, to_first, to_second) = G::apply(constants, x[i], grad[i]);
            dx[i] = to_x;
            first[i] += to_first;
            second[i] += to_second;
        }
    }
    for (i, dx) in dx_rest.iter_mut().enumerate() {
        let (to_x, to_first, to_second) = G::apply(constants, x_rest[i], grad_rest[i]);
        *dx = to_x;
        first[i] += to_first;
        second[i] += to_second;
    }
    (sum(first), sum(second))
}

/// The sum of the lanes, by halves.
#[inline(always)]
fn sum(mut lanes: [f64; LANES]) -> f64 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}
