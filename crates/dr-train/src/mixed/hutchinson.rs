//! Hutchinson's estimator for the trace of a matrix that is only known by its products with vectors.
//!
//! `v` is a vector of random signs, all independent (Rademacher). Then `E[v . H v] = tr(H)`, as `E[v_i v_j]` is 1 for
//! `i = j` and else 0 (Hutchinson, 1989). `H` is one group's block of the Hessian of a function with gradient `g`, and
//! nothing but `g` is asked for:
//!
//! ```text
//! H v = (g(w + e v) - g(w - e v)) / 2e + O(e^2)
//! ```
//!
//! where only that group's parameters move. Moving all groups at once would give every block from the same two
//! gradients, but also the products with all other groups' signs. They vanish in the mean; until then a small block is
//! buried under them, and each kink (a ReLU that switches) that any group causes is noise in all.
//!
//! A function that is a mean over data is seen in parts, which take turns. What parts differ by is then no matter of
//! chance once all have had as many turns; see [`Estimates::variance`].
//!
//! A large step `e` is wrong by the third-order terms; a small one by the rounding of `g`, and by how few kinks
//! lie within it, both divided by `2e`. In between the result depends little on `e`: [`ladder`] looks for that.

use super::traces::{HessianError, HessianOptions, LayerTrace, StepTrial, Traces};
use chacha20::ChaCha8Rng;
use rand::{Rng, SeedableRng};

/// Parameters whose Hessian block is asked for.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) name: String,
    pub(super) parameters: usize,
    /// The root mean square of the parameters.
    pub(super) size: f64,
}

/// A function of grouped parameters, at a point `w`, that knows its gradient `g` nearby. It may be the mean of parts, which
/// samples take in turn.
pub(super) trait Differentiable {
    /// The groups.
    fn groups(&self) -> &[Group];

    /// The number of parts, once samples have started over with the first.
    fn parts(&self) -> Option<usize>;

    /// `v . (g(w + e v) - g(w - e v))`, where `v` is zero but for `signs` in one group, and `e` is `step`. `sample` decides
    /// the part; it is that of the last call or the one after it.
    fn difference(
        &mut self, sample: usize, group: usize, signs: &[f32], step: f64,
    ) -> Result<f64, HessianError>;
}

/// Estimates the average traces. A group that is known well enough is left alone from then on. `progress` gets the number
/// of samples and the [`Traces::uncertainty`] after each sample but the first.
pub(super) fn estimate(
    function: &mut impl Differentiable, options: &HessianOptions, mut progress: impl FnMut(usize, f64),
) -> Result<Traces, HessianError> {
    options.check()?;
    let groups = function.groups().to_vec();
    let mut traces = Traces { steps: ladder(function, options.seed)?, ..Traces::default() };
    traces.relative_step = best(&traces.steps).unwrap_or(1.0);
    let mut estimates = vec![Estimates::default(); groups.len()];
    let mut open: Vec<usize> = (0..groups.len()).collect();
    while traces.samples < options.max_samples && !open.is_empty() {
        for &group in &open {
            let estimate = along(function, traces.samples, group, options.seed, traces.relative_step)?;
            if !estimate.is_finite() {
                return Err(HessianError::NotFinite(groups[group].name.clone()));
            }
            estimates[group].add(estimate, function.parts());
        }
        traces.samples += 1;
        traces.layers = groups.iter().zip(&estimates).map(|(group, of)| of.trace(group)).collect();
        if traces.samples > 1 {
            progress(traces.samples, traces.uncertainty());
        }
        if traces.samples >= HessianOptions::MIN_SAMPLES {
            let uncertainties = traces.uncertainties();
            open.retain(|&group| uncertainties[group] > options.tolerance);
        }
    }
    traces.converged = open.is_empty();
    Ok(traces)
}

/// An estimate of one group's average trace along one direction: `v . H v / n`.
fn along(
    function: &mut impl Differentiable, sample: usize, group: usize, seed: u64, relative_step: f64,
) -> Result<f64, HessianError> {
    let Group { parameters, size, .. } = function.groups()[group];
    let step = relative_step * if size == 0.0 { 1.0 } else { size };
    let difference = function.difference(sample, group, &signs(seed, sample, group, parameters), step)?;
    Ok(difference / (2.0 * step * parameters as f64))
}

/// Random signs. Every group in every sample has its own stream of random numbers.
fn signs(seed: u64, sample: usize, group: usize, count: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream((group as u64) << 32 | sample as u64);
    let bits = (0..count.div_ceil(64)).flat_map(|_| {
        let word = rng.next_u64();
        (0..64).map(move |bit| word >> bit & 1)
    });
    bits.take(count).map(|bit| if bit == 0 { 1.0 } else { -1.0 }).collect()
}

/// Relative steps that are tried, as powers of a half.
const LADDER: [i32; 6] = [2, 4, 6, 8, 10, 12];

/// Tries steps, from a quarter of each group's size down, with the directions and the data of the first sample, and compares
/// neighbours. Steps that run into something that is not finite are left out.
fn ladder(function: &mut impl Differentiable, seed: u64) -> Result<Vec<StepTrial>, HessianError> {
    let groups = 0..function.groups().len();
    let mut trials = vec![];
    let mut wrong = None;
    for exponent in LADDER {
        let relative_step = 0.5f64.powi(exponent);
        let estimates = groups.clone().map(|group| along(function, 0, group, seed, relative_step));
        let estimates = estimates.collect::<Result<Vec<_>, _>>()?;
        match estimates.iter().position(|estimate| !estimate.is_finite()) {
            Some(group) => wrong = Some(group),
            None => trials.push(StepTrial { relative_step, estimates, disagreement: None }),
        }
    }
    if let (Some(wrong), true) = (wrong, trials.len() < 3) {
        return Err(HessianError::NotFinite(function.groups()[wrong].name.clone()));
    }
    for middle in 1..trials.len().saturating_sub(1) {
        let to = |other: usize| disagreement(&trials[middle].estimates, &trials[other].estimates);
        trials[middle].disagreement = Some(to(middle - 1).max(to(middle + 1)));
    }
    Ok(trials)
}

/// The step that agrees best with its neighbours; of equally good ones the largest, where rounding matters least.
fn best(trials: &[StepTrial]) -> Option<f64> {
    let compared = trials.iter().filter_map(|trial| Some((trial.relative_step, trial.disagreement?)));
    compared.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(step, _)| step)
}

/// The mean of `|a - b| / max(|a|, |b|)`, 0 where both are 0. Every group counts the same, however small its trace.
fn disagreement(a: &[f64], b: &[f64]) -> f64 {
    let relative = |(&a, &b): (&f64, &f64)| match a == b {
        true => 0.0,
        false => (a - b).abs() / a.abs().max(b.abs()),
    };
    a.iter().zip(b).map(relative).sum::<f64>() / a.len().max(1) as f64
}

/// What the samples of one group say.
#[derive(Clone, Debug, Default)]
struct Estimates {
    all: Moments,
    /// Those of each part of the data.
    by_part: Vec<Moments>,
}

impl Estimates {
    /// Adds the next sample, of a function that has `parts` or is still in its first turn.
    fn add(&mut self, estimate: f64, parts: Option<usize>) {
        let sample = self.all.count as usize;
        let part = parts.map_or(sample, |parts| sample % parts);
        if part == self.by_part.len() {
            self.by_part.push(Moments::default());
        }
        self.by_part[part].add(estimate);
        self.all.add(estimate);
    }

    /// The variance of the mean.
    ///
    /// In the first turn that is `s^2 / k` for `k` samples of variance `s^2`, as if there were parts without end. Once
    /// parts have been seen again, the variance within them, `s_w^2`, is known, and the rest is between them. Only the `r`
    /// samples of the unfinished turn, an `r / k` of the mean, do not see all `P` parts alike:
    ///
    /// ```text
    /// s_w^2 / k + (r / k)^2 * (s^2 - s_w^2) / r * (1 - r / P)
    /// ```
    fn variance(&self) -> f64 {
        let (count, parts) = (self.all.count, self.by_part.len() as f64);
        let again = count - parts;
        if again < AGAIN {
            return self.all.variance() / count;
        }
        let within = self.by_part.iter().map(|part| part.squares).sum::<f64>() / again;
        let between = (self.all.variance() - within).max(0.0);
        let unfinished = count % parts;
        within / count + between * unfinished * (1.0 - unfinished / parts) / count.powi(2)
    }

    fn trace(&self, group: &Group) -> LayerTrace {
        LayerTrace {
            layer: group.name.clone(),
            parameters: group.parameters,
            average_trace: self.all.mean,
            standard_error: self.variance().sqrt(),
        }
    }
}

/// Samples of parts that were seen before, from which on the variance within parts counts as known.
const AGAIN: f64 = 8.0;

/// Mean and spread of numbers as they come (Welford, 1962).
#[derive(Clone, Copy, Debug, Default)]
struct Moments {
    count: f64,
    mean: f64,
    /// The sum of squared distances from the mean.
    squares: f64,
}

impl Moments {
    fn add(&mut self, value: f64) {
        self.count += 1.0;
        let before = value - self.mean;
        self.mean += before / self.count;
        self.squares += before * (value - self.mean);
    }

    fn variance(&self) -> f64 {
        self.squares / (self.count - 1.0).max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ops::Range;

    /// `w . H w / 2 + c sum w^4 / 12` in f64, at a point. Its second derivative is `H + c diag(w^2)`.
    struct Quartic {
        hessian: Vec<Vec<f64>>,
        quartic: f64,
        point: Vec<f64>,
        groups: Vec<Group>,
        /// Factors of the function, which samples take in turn; 1 on average.
        parts: Vec<f64>,
        /// The sample and the group of every difference so far.
        asked: Vec<(usize, usize)>,
    }

    impl Quartic {
        fn new(hessian: Vec<Vec<f64>>, sizes: &[usize]) -> Self {
            let point = (0..hessian.len()).map(|i| 0.3 + 0.1 * i as f64).collect();
            let group =
                |(i, &parameters): (usize, &usize)| Group { name: format!("g{i}"), parameters, size: 0.5 };
            let groups = sizes.iter().enumerate().map(group).collect();
            Self { hessian, quartic: 0.0, point, groups, parts: vec![1.0], asked: vec![] }
        }

        fn gradient(&self, w: &[f64]) -> Vec<f64> {
            let row = |(row, x): (&Vec<f64>, &f64)| {
                row.iter().zip(w).map(|(h, w)| h * w).sum::<f64>() + self.quartic * x.powi(3) / 3.0
            };
            self.hessian.iter().zip(w).map(row).collect()
        }

        fn range(&self, group: usize) -> Range<usize> {
            let start = self.groups[..group].iter().map(|group| group.parameters).sum();
            start..start + self.groups[group].parameters
        }

        /// The average trace of each group.
        fn exact(&self) -> Vec<f64> {
            let entry = |i: usize| self.hessian[i][i] + self.quartic * self.point[i].powi(2);
            let mean = |range: Range<usize>| range.clone().map(entry).sum::<f64>() / range.len() as f64;
            (0..self.groups.len()).map(|group| mean(self.range(group))).collect()
        }
    }

    impl Differentiable for Quartic {
        fn groups(&self) -> &[Group] {
            &self.groups
        }

        fn parts(&self) -> Option<usize> {
            let seen = self.asked.last().map_or(0, |asked| asked.0);
            (seen >= self.parts.len()).then_some(self.parts.len())
        }

        fn difference(
            &mut self, sample: usize, group: usize, signs: &[f32], step: f64,
        ) -> Result<f64, HessianError> {
            self.asked.push((sample, group));
            let range = self.range(group);
            let at = |step: f64| {
                let mut w = self.point.clone();
                w[range.clone()].iter_mut().zip(signs).for_each(|(w, &sign)| *w += step * f64::from(sign));
                self.gradient(&w)[range.clone()].to_vec()
            };
            let products = at(step).into_iter().zip(at(-step)).zip(signs);
            let sum: f64 = products.map(|((plus, minus), &sign)| f64::from(sign) * (plus - minus)).sum();
            Ok(sum * self.parts[sample % self.parts.len()])
        }
    }

    fn diagonal(entries: &[f64]) -> Vec<Vec<f64>> {
        let row = |i: usize| (0..entries.len()).map(|j| if i == j { entries[i] } else { 0.0 }).collect();
        (0..entries.len()).map(row).collect()
    }

    /// A full symmetric matrix.
    fn full(size: usize) -> Vec<Vec<f64>> {
        let entry = |i: usize, j: usize| ((i * j + i + j) as f64).sin() + if i == j { 2.0 } else { 0.0 };
        (0..size).map(|i| (0..size).map(|j| entry(i, j)).collect()).collect()
    }

    #[track_caller]
    fn assert_close(found: &[f64], expected: &[f64], tolerance: f64) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() <= tolerance, "{found} is not {expected}");
        }
    }

    fn run(function: &mut Quartic, tolerance: f64, max_samples: usize, seed: u64) -> Traces {
        let options = HessianOptions { tolerance, max_samples, seed };
        estimate(function, &options, |_, _| ()).expect("traces")
    }

    fn means(traces: &Traces) -> Vec<f64> {
        traces.layers.iter().map(|layer| layer.average_trace).collect()
    }

    #[test]
    fn one_direction_is_exact_on_a_diagonal() {
        let mut function = Quartic::new(diagonal(&[1.0, 2.0, -4.0, 0.5, 8.0]), &[2, 3]);
        let exact = function.exact();
        assert_close(&exact, &[1.5, 1.5], 0.0);
        for seed in 0..8 {
            let found = [0, 1].map(|group| along(&mut function, 0, group, seed, 1e-2).unwrap());
            assert_close(&found, &exact, 1e-12);
        }
    }

    #[test]
    fn all_directions_together_are_exact() {
        let mut function = Quartic::new(full(9), &[1, 5, 3]);
        let exact = function.exact();
        for (group, parameters) in [1, 5, 3].into_iter().enumerate() {
            let step = 1e-2;
            let mut of = |bits: u32| {
                let sign = |i: usize| if bits >> i & 1 == 0 { 1.0 } else { -1.0 };
                let signs: Vec<f32> = (0..parameters).map(sign).collect();
                function.difference(0, group, &signs, step).unwrap() / (2.0 * step * parameters as f64)
            };
            let count = 1 << parameters;
            let mean = (0..count).map(&mut of).sum::<f64>() / f64::from(count);
            assert_close(&[mean], &[exact[group]], 1e-11);
        }
    }

    #[test]
    fn estimates_are_within_their_standard_errors() {
        let mut beyond = 0;
        for seed in 1..=50 {
            let mut function = Quartic::new(full(60), &[10, 50]);
            let traces = run(&mut function, 0.05, 10_000, seed);
            assert!(traces.converged && traces.samples >= 8 && traces.uncertainty() <= 0.05, "{traces:?}");
            for (layer, exact) in traces.layers.iter().zip(function.exact()) {
                let errors = (layer.average_trace - exact).abs() / layer.standard_error;
                assert!(errors < 4.5, "seed {seed}, {exact}: {layer:?}");
                beyond += usize::from(errors > 2.0);
            }
        }
        // About one in twenty of the hundred.
        assert!(beyond <= 15, "{beyond} of 100 are more than two standard errors off");
    }

    #[test]
    fn what_parts_differ_by_is_no_error_once_all_had_their_turn() {
        let parts = [0.1, 0.2, 4.0, 0.1, 0.6];
        let mut beyond = 0;
        for seed in 1..=100 {
            // On a diagonal parts are all that samples differ by.
            let mut function = Quartic { parts: parts.to_vec(), ..Quartic::new(diagonal(&[1.0, 2.0]), &[2]) };
            let traces = run(&mut function, 1e-6, 100, seed);
            assert!(traces.converged && traces.samples == 15, "{traces:?}");
            assert_close(&means(&traces), &[1.5], 1e-12);

            // Otherwise the errors are those of directions, and of the turn that is not finished.
            let mut function = Quartic { parts: parts.to_vec(), ..Quartic::new(full(60), &[60]) };
            let exact = function.exact()[0];
            let traces = run(&mut function, 1e-6, 23 + seed as usize % 5, seed);
            let errors = (traces.layers[0].average_trace - exact).abs() / traces.layers[0].standard_error;
            assert!(errors < 5.0, "seed {seed}, {exact}: {traces:?}");
            beyond += usize::from(errors > 2.0);
        }
        assert!(beyond <= 15, "{beyond} of 100 are more than two standard errors off");
    }

    #[test]
    fn the_same_seed_gives_the_same_result() {
        let of = |seed| run(&mut Quartic::new(full(30), &[10, 20]), 0.1, 1000, seed);
        assert_eq!(of(3), of(3));
        assert_ne!(means(&of(3)), means(&of(4)));
    }

    #[test]
    fn signs_are_balanced_and_independent() {
        let of = |seed, sample, group| signs(seed, sample, group, 10_000);
        let mean = |values: Vec<f32>| values.iter().sum::<f32>() / values.len() as f32;
        let first = of(1, 0, 0);
        assert!(first.iter().all(|sign| sign.abs() == 1.0));
        assert!(mean(first.clone()).abs() < 0.04);
        assert!(mean(first.windows(2).map(|pair| pair[0] * pair[1]).collect()).abs() < 0.04);
        for other in [of(2, 0, 0), of(1, 1, 0), of(1, 0, 1)] {
            assert!(mean(first.iter().zip(&other).map(|(a, b)| a * b).collect()).abs() < 0.04);
        }
    }

    #[test]
    fn samples_stop_at_the_limit_or_the_tolerance() {
        // On a diagonal every sample is the same: the fewest are enough.
        let mut function = Quartic::new(diagonal(&[1.0, 2.0, 3.0]), &[1, 2]);
        let mut told = vec![];
        let options = HessianOptions { tolerance: 1e-6, max_samples: 100, seed: 1 };
        let traces = estimate(&mut function, &options, |samples, worst| told.push((samples, worst))).unwrap();
        assert!(traces.converged);
        assert_eq!(told.iter().map(|told| told.0).collect::<Vec<_>>(), [2, 3, 4, 5, 6, 7, 8]);
        // The trials of steps see the first part of the data, then every sample the next.
        let trials = 2 * LADDER.len();
        assert!(function.asked[..trials].iter().all(|asked| asked.0 == 0));
        assert_eq!(function.asked[trials..trials + 4], [(0, 0), (0, 1), (1, 0), (1, 1)]);
        assert_eq!(function.asked.len(), trials + 2 * 8);

        // One group on a diagonal, one that is not: only that goes on.
        let mut mixed = full(60);
        mixed[0][1..].fill(0.0);
        mixed[1..].iter_mut().for_each(|row| row[0] = 0.0);
        let mut function = Quartic::new(mixed, &[1, 59]);
        let traces = run(&mut function, 1e-6, 12, 1);
        assert!(!traces.converged);
        assert_eq!(traces.samples, 12);
        assert_eq!(function.asked.len(), trials + 8 + 12);
    }

    #[test]
    fn the_step_is_where_neighbours_agree() {
        // Without third derivatives a large step is as right as a small one; otherwise the error falls with its square,
        // until rounding, which is far below in f64.
        for quartic in [0.0, 1.0] {
            let mut function = Quartic { quartic, ..Quartic::new(diagonal(&[1.0; 6]), &[6]) };
            let traces = run(&mut function, 0.05, 100, 1);
            assert_close(&means(&traces), &function.exact(), 1e-5);
            assert_eq!(traces.steps.len(), 6);
            assert!(traces.steps[0].disagreement.is_none() && traces.steps[5].disagreement.is_none());
            assert!(traces.disagreement() < Some(1e-5), "{traces:?}");
            assert!(quartic == 0.0 || traces.relative_step <= 1.0 / 256.0, "{traces:?}");
        }
    }

    #[test]
    fn what_is_not_finite_is_an_error() {
        let mut function = Quartic::new(diagonal(&[1.0, f64::NAN]), &[1, 1]);
        let error = estimate(&mut function, &HessianOptions::default(), |_, _| ()).unwrap_err();
        assert!(error.to_string().starts_with("layer `g"), "{error}");
    }
}
