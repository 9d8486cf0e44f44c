//! [`Nest`]: the search for what the codes of a group of weights stand for, at every width.

use dr_precision::{BitWidth, semantics};
use dr_runtime::file::{Affine, NarrowGrid, STORED, StoredGrid};

/// So many stored codes there are.
const CODES: usize = 256;

/// The widths that stored codes serve, and which narrower code follows from each stored one.
#[derive(Clone, Debug, PartialEq)]
pub struct Nest {
    widths: Vec<BitWidth>,
    /// Of each width, how much its errors count.
    weights: Vec<f32>,
    /// Of each width, the code that each stored one is switched to, from the lowest.
    levels: Vec<[f32; CODES]>,
}

impl Nest {
    /// For these widths and the stored one, of language models: errors of a width count half as much for each bit that it has less.
    #[must_use]
    pub fn new(widths: impl IntoIterator<Item = BitWidth>) -> Self {
        Self::weighted(widths, |bits| 0.5f32.powi(below(bits)))
    }

    /// For these widths, of networks for images: errors of a width count a third for each bit that it has less than the widest of them, and
    /// those of the stored width, if it is none of them, nothing.
    #[must_use]
    pub fn of_outputs(widths: impl IntoIterator<Item = BitWidth>) -> Self {
        let widths: Vec<BitWidth> = widths.into_iter().collect();
        let widest = widths.iter().copied().max().unwrap_or(STORED);
        Self::weighted(widths.iter().copied(), |bits| match bits == STORED && widest < STORED {
            true => 0.0,
            false => (1.0f32 / 3.0).powi(below(bits) - below(widest)),
        })
    }

    fn weighted(widths: impl IntoIterator<Item = BitWidth>, weight: impl Fn(BitWidth) -> f32) -> Self {
        let mut widths: Vec<BitWidth> = widths.into_iter().chain([STORED]).collect();
        widths.sort_unstable_by(|a, b| b.cmp(a));
        widths.dedup();
        let level = |bits: BitWidth, at: usize| {
            let code = at as i32 + STORED.signed_min();
            semantics::switch(code, STORED, bits) as f32
        };
        let levels = widths.iter().map(|&bits| std::array::from_fn(|at| level(bits, at))).collect();
        Self { weights: widths.iter().map(|&bits| weight(bits)).collect(), widths, levels }
    }

    /// The widths, the stored one first, then falling.
    #[must_use]
    pub fn widths(&self) -> &[BitWidth] {
        &self.widths
    }

    /// The narrower ones.
    #[must_use]
    pub fn narrower(&self) -> &[BitWidth] {
        &self.widths[1..]
    }

    /// How much errors of a width count, by its number.
    pub(super) fn weight(&self, width: usize) -> f32 {
        self.weights[width]
    }

    /// The code of each width that follows from a stored one, by the number of the width.
    pub(super) fn level(&self, width: usize, code: i8) -> f32 {
        self.levels[width][usize::from(code.cast_unsigned() ^ 0x80)]
    }

    /// The grids of a group of weights with the least weighted error at all widths together: `sum over b of weight(b) *
    /// sum of importance * (w - w^_b)^2` where `w^_b` is what the nearest stored code stands for at `b` bits. `narrow` gets
    /// those of the narrower widths.
    ///
    /// The search goes over scales of the stored codes around `r = (max - min) / 255` and over shifts of the codes: the range of a
    /// narrower width has one code more below zero than above, so that each width would have the codes lie lower by half of
    /// its step. The grid of a narrower width is then a weighted least-squares fit. Everything is computed with the values that
    /// are stored.
    pub(super) fn fit(
        &self, weights: &[f32], importance: &[f32], narrow: &mut [NarrowGrid], scratch: &mut Scratch,
    ) -> StoredGrid {
        let [middle, range] = middle_and_range(weights);
        scratch.load(weights, importance);
        let candidates = pairs(FACTORS).map(|[factor, shift]| {
            let scale = StoredGrid::new(range * factor, 0.0).affine().scale;
            StoredGrid::new(range * factor, middle + shift * scale)
        });
        let best = self.best(candidates, StoredGrid::affine, scratch);
        let best = best.unwrap_or_else(|| StoredGrid::new(range, middle));
        scratch.round(best.affine());
        for (grid, &bits) in narrow.iter_mut().zip(self.narrower()) {
            *grid = scratch.moments(bits).grid();
        }
        best
    }

    /// What codes of an output stand for at each width, likewise, in 32 bits.
    pub(super) fn fit_lines(
        &self, weights: &[f32], importance: &[f32], scratch: &mut Scratch,
    ) -> Vec<Affine> {
        let [middle, range] = middle_and_range(weights);
        // Where all weights are the same, that of what rounding leaves.
        let least = (middle.abs() / (1 << 23) as f32).max(LEAST_SCALE);
        scratch.load(weights, importance);
        let candidates = pairs(OUTPUT_FACTORS).map(|[factor, shift]| {
            let scale = (range * factor).max(least);
            Affine { scale, offset: middle + shift * scale }
        });
        let stored = self.best(candidates, |line| line, scratch);
        let stored = stored.unwrap_or(Affine { scale: range.max(least), offset: middle });
        scratch.round(stored);
        let narrow = self.narrower().iter().map(|&bits| {
            let moments = scratch.moments(bits);
            let ([slope, offset], step) = (moments.line(), stored.scale * moments.step);
            Affine { scale: step * slope, offset: stored.offset + step * offset }
        });
        std::iter::once(stored).chain(narrow).collect()
    }

    /// The one of some grids with the least error.
    fn best<G: Copy>(
        &self, candidates: impl Iterator<Item = G>, line: impl Fn(G) -> Affine, scratch: &mut Scratch,
    ) -> Option<G> {
        let (mut best, mut least) = (None, f32::INFINITY);
        for grid in candidates {
            let error = scratch.error(self, line(grid));
            if error < least {
                (best, least) = (Some(grid), error);
            }
        }
        best
    }
}

/// The middle of the range of some weights, and the range in steps of the stored codes.
fn middle_and_range(weights: &[f32]) -> [f32; 2] {
    let low = weights.iter().copied().fold(f32::INFINITY, f32::min);
    let high = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    [(low + high) / 2.0, (high - low) / (CODES - 1) as f32]
}

/// Each factor with each shift.
fn pairs<const N: usize>(factors: [f32; N]) -> impl Iterator<Item = [f32; 2]> {
    factors.into_iter().flat_map(|factor| SHIFTS.map(|shift| [factor, shift]))
}

/// Steps of a narrower scale.
const STEPS: f32 = NarrowGrid::STEPS;

/// Bits that a width has less than the stored one.
fn below(bits: BitWidth) -> i32 {
    (STORED.bits() - bits.bits()) as i32
}

/// Scales of the stored codes that are tried, in units of the range over the number of steps.
const FACTORS: [f32; 9] = [0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3];

/// The same for outputs of networks for images.
const OUTPUT_FACTORS: [f32; 11] = [0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4];

/// The least scale of an output: far below what counts, far above numbers that processors are slow with.
const LEAST_SCALE: f32 = 1e-20;

/// Offsets that are tried, in scales above the middle of the range.
const SHIFTS: [f32; 4] = [-32.0, -16.0, 0.0, 16.0];

/// A group of weights while its grids are searched, padded to whole lanes.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    weights: Vec<f32>,
    /// Zero in the padding.
    importance: Vec<f32>,
    /// Weights in units of the stored scale above the offset.
    units: Vec<f32>,
    /// Their codes.
    codes: Vec<f32>,
    /// The sum of the importance.
    total: f32,
    /// The weighted mean of the units.
    unit: f32,
    unit_variance: f32,
    /// The weighted mean of the squared errors of the codes.
    error: f32,
}

/// Values that are computed together.
const LANES: usize = 8;

impl Scratch {
    fn load(&mut self, weights: &[f32], importance: &[f32]) {
        let padded = weights.len().next_multiple_of(LANES);
        for (to, from) in [(&mut self.weights, weights), (&mut self.importance, importance)] {
            to.clear();
            to.extend_from_slice(from);
            to.resize(padded, 0.0);
        }
        self.units.resize(padded, 0.0);
        self.codes.resize(padded, 0.0);
        self.total = importance.iter().sum::<f32>().max(f32::MIN_POSITIVE);
    }

    /// The codes of a grid.
    fn round(&mut self, grid: Affine) {
        let (low, high) = (STORED.signed_min() as f32, STORED.signed_max() as f32);
        let inverse = grid.scale.recip();
        let (units, codes) = (self.units.as_chunks_mut::<LANES>().0, self.codes.as_chunks_mut::<LANES>().0);
        let mut sums = [[0.0f32; LANES]; 3];
        for ((w, h), (u, q)) in
            chunked(&self.weights).zip(chunked(&self.importance)).zip(units.iter_mut().zip(codes))
        {
            for lane in 0..LANES {
                let unit = ((w[lane] - grid.offset) * inverse).clamp(-FAR, FAR);
                let code = round_even(unit).clamp(low, high);
                (u[lane], q[lane]) = (unit, code);
                let weighted = h[lane] * unit;
                sums[0][lane] += weighted;
                sums[1][lane] += weighted * unit;
                sums[2][lane] += h[lane] * (unit - code) * (unit - code);
            }
        }
        let [unit, squared, error] = sums.map(|lanes| lanes.iter().sum::<f32>() / self.total);
        (self.unit, self.unit_variance, self.error) = (unit, squared - unit * unit, error);
    }

    /// The weighted errors of a grid and of the narrower ones that are fitted to it.
    fn error(&mut self, nest: &Nest, grid: Affine) -> f32 {
        self.round(grid);
        let narrower = nest.narrower().iter().zip(&nest.weights[1..]);
        let narrower = narrower.map(|(&bits, weight)| weight * self.moments(bits).error());
        (nest.weights[0] * self.total * self.error + narrower.sum::<f32>()) * grid.scale * grid.scale
    }

    /// What codes of a width have to do with the weights.
    fn moments(&self, bits: BitWidth) -> Moments {
        let step = f32::from(1u16 << below(bits));
        let (down, high) = (step.recip(), bits.signed_max() as f32);
        let mut sums = [[0.0f32; LANES]; 3];
        for ((h, u), q) in chunked(&self.importance).zip(chunked(&self.units)).zip(chunked(&self.codes)) {
            for lane in 0..LANES {
                let code = round_even(q[lane] * down).min(high);
                let weighted = h[lane] * code;
                sums[0][lane] += weighted;
                sums[1][lane] += weighted * code;
                sums[2][lane] += weighted * u[lane];
            }
        }
        let [code, squared, products] = sums.map(|lanes| lanes.iter().sum::<f32>() / self.total);
        let unit = self.unit * down;
        Moments {
            step,
            total: self.total,
            unit,
            code,
            unit_variance: self.unit_variance * down * down,
            code_variance: squared - code * code,
            covariance: products * down - code * unit,
        }
    }
}

/// Units that are far beyond all codes, but few enough for [`round_even`].
const FAR: f32 = 1024.0;

fn chunked(values: &[f32]) -> std::slice::Iter<'_, [f32; LANES]> {
    values.as_chunks().0.iter()
}

/// The nearest whole number, half to even, of a number of less than 22 bits: what is added leaves no digits after the point.
fn round_even(x: f32) -> f32 {
    const SHIFT: f32 = 1.5 * (1 << 23) as f32;
    (x + SHIFT) - SHIFT
}

/// Weighted moments of weights and of codes of one width, both in steps of the width.
#[derive(Clone, Copy, Debug)]
struct Moments {
    /// Stored scales in a step.
    step: f32,
    total: f32,
    unit: f32,
    code: f32,
    unit_variance: f32,
    code_variance: f32,
    covariance: f32,
}

impl Moments {
    /// The line from codes to weights with the least error of those that can be stored, nearly: slope and offset, in steps.
    fn line(&self) -> [f32; 2] {
        let [low, high] = [i8::MIN, i8::MAX].map(|byte| f32::from(byte) / STEPS);
        let slope = |products: f32, squares: f32| match squares > 1e-6 {
            true => (products / squares).clamp(1.0 + low, 1.0 + high),
            false => 1.0,
        };
        let free = slope(self.covariance, self.code_variance);
        let offset = self.unit - free * self.code;
        let nearest = offset.clamp(low, high);
        if nearest == offset {
            return [free, offset];
        }
        // With the offset at an end, the slope makes up for what it cannot do.
        let (products, squares) = (self.unit - nearest, self.code_variance + self.code * self.code);
        [slope(self.covariance + self.code * products, squares), nearest]
    }

    /// The error in units of the stored scale.
    fn error(&self) -> f32 {
        self.error_of(self.line()) * self.total * self.step * self.step
    }

    /// The weighted mean of the squared errors of a line, in squared steps.
    fn error_of(&self, [slope, offset]: [f32; 2]) -> f32 {
        let mean = self.unit - slope * self.code - offset;
        let around = self.unit_variance + slope * (slope * self.code_variance - 2.0 * self.covariance);
        around.max(0.0) + mean * mean
    }

    /// The grid with the least error, nearly: of the two scales beside the best one that with the lower error, each with the byte for its offset that is
    /// nearest to the best one.
    fn grid(&self) -> NarrowGrid {
        let best = (self.line()[0] - 1.0) * STEPS;
        let [(below, grid), (above, other)] = [best.floor(), best.ceil()].map(|scale| {
            let scale = scale as i8;
            let slope = 1.0 + f32::from(scale) / STEPS;
            let offset = ((self.unit - slope * self.code) * STEPS).round_ties_even() as i8;
            (self.error_of([slope, f32::from(offset) / STEPS]), NarrowGrid { scale, offset })
        });
        if above < below { other } else { grid }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nest() -> Nest {
        Nest::new([BitWidth::B2, BitWidth::B7, BitWidth::B4, BitWidth::B6, BitWidth::B4, BitWidth::B3])
    }

    fn fit(weights: &[f32], importance: &[f32]) -> (StoredGrid, Vec<NarrowGrid>) {
        let nest = nest();
        let mut narrow = vec![NarrowGrid::default(); nest.narrower().len()];
        let stored = nest.fit(weights, importance, &mut narrow, &mut Scratch::default());
        (stored, narrow)
    }

    /// The weighted error of each width, and the least that any grid could have: of a narrower width, of all pairs of bytes.
    fn errors(weights: &[f32], importance: &[f32]) -> Vec<[f64; 2]> {
        let (nest, (stored, narrow)) = (nest(), fit(weights, importance));
        let line = stored.affine();
        let of_width = |(at, &bits): (usize, &BitWidth)| {
            let line = at.checked_sub(1).map_or(line, |at| narrow[at].affine(line, bits));
            let mut sums = [0.0f64; 6];
            let mut error = 0.0;
            for (&w, &h) in weights.iter().zip(importance) {
                let grid = stored.affine();
                let code = semantics::quantize(w - grid.offset, grid.scale, STORED) as i8;
                let level = nest.level(at, code);
                error += f64::from(h) * f64::from(w - line.value(level)).powi(2);
                let [h, w, q] = [h, w, level].map(f64::from);
                [h, h * w, h * q, h * w * w, h * q * q, h * w * q]
                    .iter()
                    .zip(&mut sums)
                    .for_each(|(x, sum)| *sum += x);
            }
            let [total, w, q, ww, qq, wq] = sums;
            let (w, q) = (w / total, q / total);
            let [ww, qq, wq] = [ww / total - w * w, qq / total - q * q, wq / total - w * q];
            let of_grid = |scale, offset| {
                let line = NarrowGrid { scale, offset }.affine(stored.affine(), bits);
                let [slope, offset] = [line.scale, line.offset].map(f64::from);
                let around = ww + slope * (slope * qq - 2.0 * wq);
                (around + (w - slope * q - offset).powi(2)).max(0.0) * total
            };
            let grids = (i8::MIN..=i8::MAX).flat_map(|a| (i8::MIN..=i8::MAX).map(move |b| (a, b)));
            let least = match at {
                0 => error,
                _ => grids.map(|(scale, offset)| of_grid(scale, offset)).fold(f64::INFINITY, f64::min),
            };
            [error, least]
        };
        nest.widths().iter().enumerate().map(of_width).collect()
    }

    #[test]
    fn widths_that_are_not_asked_for_count_nothing() {
        let nest = Nest::of_outputs([BitWidth::B4, BitWidth::B6]);
        assert_eq!(nest.widths(), [BitWidth::B8, BitWidth::B6, BitWidth::B4]);
        assert_eq!((nest.weight(0), nest.weight(1)), (0.0, 1.0));
        assert!((nest.weight(2) - 1.0 / 9.0).abs() < 1e-6);
        let nest = Nest::of_outputs([BitWidth::B8, BitWidth::B6]);
        assert_eq!(nest.weight(0), 1.0);
        let language = Nest::new([BitWidth::B4]);
        assert_eq!((language.weight(0), language.weight(1)), (1.0, 1.0 / 16.0));
    }

    #[test]
    fn outputs_of_one_value_are_exact() {
        for value in [0.0, 1.0, -3.7e-12, 1e20] {
            let nest = Nest::of_outputs([BitWidth::B8, BitWidth::B2]);
            let lines = nest.fit_lines(&[value; 5], &[1.0; 5], &mut Scratch::default());
            for (line, bits) in lines.into_iter().zip(nest.widths()) {
                assert!(line.scale > 0.0 && line.scale.is_finite(), "{line:?}");
                let codes = bits.signed_min()..=bits.signed_max();
                let least = codes.map(|code| (line.value(code as f32) - value).abs());
                assert!(
                    least.fold(f32::INFINITY, f32::min) <= 1e-5 * value.abs() + LEAST_SCALE,
                    "{line:?} for {value}"
                );
            }
        }
    }

    #[test]
    fn widths_fall_and_are_there_once() {
        let nest = nest();
        assert_eq!(nest.widths().iter().map(|bits| bits.bits()).collect::<Vec<_>>(), [8, 7, 6, 4, 3, 2]);
        for (at, &bits) in nest.widths().iter().enumerate() {
            for code in i8::MIN..=i8::MAX {
                assert_eq!(nest.level(at, code), semantics::switch(code.into(), STORED, bits) as f32);
            }
        }
    }

    #[test]
    fn nearest_even_numbers() {
        for quarter in -2048i16..=2048 {
            let x = f32::from(quarter) / 4.0;
            assert_eq!(round_even(x), x.round_ties_even());
        }
    }

    proptest! {
        /// No other pair of bytes is better.
        #[test]
        fn bytes_are_the_best_ones(
            weights in prop::collection::vec(-1.0f32..1.0, 16..70), power in 1i32..4, size in -6i32..4, shift in -3.0f32..3.0,
            seed in any::<u64>(),
        ) {
            let size = 2.0f32.powi(size);
            let weights: Vec<f32> = weights.iter().map(|w| (w.powi(power) + shift) * size).collect();
            let importance: Vec<f32> = (0..weights.len()).map(|i| 0.1 + (seed.rotate_left(i as u32) % 17) as f32).collect();
            for (width, [error, least]) in errors(&weights, &importance).into_iter().enumerate().skip(1) {
                let total: f32 = importance.iter().sum();
                // Of numbers in f32, this much is lost.
                let lost = f64::from(total * (size * 1e-5).powi(2));
                prop_assert!(error <= 1.001 * least + lost, "width {width}: {error} of {least}");
            }
        }

        #[test]
        fn any_group_has_a_grid(
            weights in prop::collection::vec(prop_oneof![Just(0.0f32), Just(1e-30), Just(-3e38), -1e5f32..1e5], 1..40),
        ) {
            let (stored, _) = fit(&weights, &vec![1.0; weights.len()]);
            prop_assert!(stored.scale.is_finite() && stored.scale.to_f32() > 0.0 && stored.offset.is_finite());
        }
    }

    #[test]
    fn groups_of_one_value_are_nearly_exact() {
        for value in [0.0f32, 1.0, -0.37, 123.4, 1e-3] {
            let weights = [value; 32];
            for (width, [error, _]) in errors(&weights, &[1.0; 32]).into_iter().enumerate() {
                let error = (error / 32.0).sqrt() as f32;
                let most = (value.abs() * 1e-3).max(half::f16::MIN_POSITIVE_SUBNORMAL.to_f32());
                assert!(error <= most, "width {width}: {error} of {value}");
            }
        }
    }
}
