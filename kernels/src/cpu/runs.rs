//! Loops over the runs of elements that share a scale.

use super::isa::Kernel;
use crate::layout::ScaleLayout;

/// Consecutive elements with one scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// How many.
    pub len: usize,
    /// The index of their scale.
    pub scale: usize,
}

/// The runs that a stretch of elements is made of.
#[derive(Clone)]
pub(super) struct Runs {
    layout: ScaleLayout,
    left: usize,
    left_in_row: usize,
    left_in_run: usize,
    scale: usize,
}

impl Runs {
    /// Of `len` elements from `start` on.
    #[inline(always)]
    pub fn new(layout: &ScaleLayout, start: usize, len: usize) -> Self {
        let layout = *layout;
        let cols = layout.cols.max(1);
        let (row, col) = (start / cols % layout.rows.max(1), start % cols);
        let left_in_row = cols - col;
        Self {
            layout,
            left: len,
            left_in_row,
            left_in_run: left_in_row.min(layout.group - col % layout.group),
            scale: row * layout.runs() + col / layout.group,
        }
    }
}

impl Iterator for Runs {
    type Item = Run;

    #[inline(always)]
    fn next(&mut self) -> Option<Run> {
        if self.left == 0 {
            return None;
        }
        let run = Run { len: self.left.min(self.left_in_run), scale: self.scale };
        self.left -= run.len;
        self.left_in_row -= run.len;
        self.scale += 1;
        if self.left_in_row == 0 {
            self.left_in_row = self.layout.cols;
            if self.scale == self.layout.scales() {
                self.scale = 0;
            }
        }
        self.left_in_run = self.left_in_row.min(self.layout.group);
        Some(run)
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

/// Applies `map` to the elements from `start` on.
pub(super) struct MapRuns<'a, M: Map> {
    pub map: &'a M,
    pub layout: &'a ScaleLayout,
    pub start: usize,
    pub x: &'a [M::In],
    pub out: &'a mut [M::Out],
}

impl<M: Map> Kernel for MapRuns<'_, M> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { map, layout, start, mut x, mut out } = self;
        for run in Runs::new(layout, start, x.len()) {
            let constants = map.constants(run.scale);
            let (run_x, rest_x) = x.split_at(run.len);
            let (run_out, rest_out) = out.split_at_mut(run.len);
            for (out, &x) in run_out.iter_mut().zip(run_x) {
                *out = M::apply(constants, x);
            }
            (x, out) = (rest_x, rest_out);
        }
    }
}

/// The gradient of an elementwise operation, with constants for each scale and up to two sums over the elements that
/// share it.
pub(super) trait Gradient: Sync {
    type Constants: Copy;
    /// Whether there is a second sum.
    const SECOND: bool;
    fn constants(&self, scale: usize) -> Self::Constants;
    /// The gradient of `x` and the two terms, `g` being the incoming gradient. Must be `#[inline(always)]`.
    fn apply(constants: Self::Constants, x: f32, g: f32) -> (f32, f64, f64);
}

/// The sums of a run within one block.
#[derive(Clone, Copy)]
pub(super) struct RunSums {
    pub scale: usize,
    pub first: f64,
    pub second: f64,
}

/// Computes `gradient` of the elements from `start` on.
pub(super) struct GradientRuns<'a, G: Gradient> {
    pub gradient: &'a G,
    pub layout: &'a ScaleLayout,
    pub start: usize,
    pub x: &'a [f32],
    pub grad: &'a [f32],
    pub dx: &'a mut [f32],
}

/// Elements whose terms are held in a buffer before they are added up.
const TERMS: usize = 256;

impl<G: Gradient> Kernel for GradientRuns<'_, G> {
    type Output = Vec<RunSums>;

    #[inline(always)]
    fn run(self) -> Vec<RunSums> {
        let Self { gradient, layout, start, mut x, mut grad, mut dx } = self;
        let runs = Runs::new(layout, start, x.len());
        let mut sums = Vec::with_capacity(x.len() / layout.group.min(layout.cols.max(1)) + 2);
        let (mut first, mut second) = ([0.0; TERMS], [0.0; TERMS]);
        for run in runs {
            let constants = gradient.constants(run.scale);
            let mut sum = RunSums { scale: run.scale, first: 0.0, second: 0.0 };
            let mut left = run.len;
            while left > 0 {
                let n = left.min(TERMS);
                let (x_now, x_rest) = x.split_at(n);
                let (grad_now, grad_rest) = grad.split_at(n);
                let (dx_now, dx_rest) = dx.split_at_mut(n);
                let terms = first.iter_mut().zip(&mut second);
                for (((&x, &g), dx), (first, second)) in x_now.iter().zip(grad_now).zip(dx_now).zip(terms) {
                    let of_second;
                    (*dx, *first, of_second) = G::apply(constants, x, g);
                    if G::SECOND {
                        *second = of_second;
                    }
                }
                sum.first += add_up(&mut first, n);
                if G::SECOND {
                    sum.second += add_up(&mut second, n);
                }
                (x, grad, dx, left) = (x_rest, grad_rest, dx_rest, left - n);
            }
            sums.push(sum);
        }
        sums
    }
}

/// The sum of the first `n` terms, in an order that depends on `n` only.
#[inline(always)]
fn add_up(terms: &mut [f64; TERMS], n: usize) -> f64 {
    const LANES: usize = 16;
    let padded = n.next_multiple_of(LANES);
    terms[n..padded].fill(0.0);
    let mut lanes = [0.0; LANES];
    for chunk in terms[..padded].as_chunks::<LANES>().0 {
        for (lane, term) in lanes.iter_mut().zip(chunk) {
            *lane += term;
        }
    }
    lanes.iter().sum()
}
