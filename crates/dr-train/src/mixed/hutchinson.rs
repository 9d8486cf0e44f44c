//! Hutchinson's estimator for the trace of a matrix that is only known by its products with vectors.
//!
//! `v` is a vector of random signs, all independent (Rademacher). Then `E[v . H v] = tr(H)`, as `E[v_i v_j]` is 1 for
//! `i = j` and else 0 (Hutchinson, 1989). With the parameters in groups, `E[v_l . (H v)_l]` is the trace of group `l`'s
//! block: products with other groups' signs vanish in the mean like those within the group, so one `v` serves all groups.
//!
//! `H` is the Hessian of a function with gradient `g`. Nothing but `g` is asked for:
//!
//! ```text
//! H v = (g(w + e v) - g(w - e v)) / 2e + O(e^2)
//! ```
//!
//! A large step `e` is wrong by the third-order terms, a small one by the rounding of `g`, divided by `2e`. In between the
//! result does not depend on `e`: [`ladder`] looks for that plateau.

use super::traces::{HessianError, HessianOptions, LayerTrace, StepTrial, Traces};
use chacha20::ChaCha8Rng;
use rand::{Rng, SeedableRng};

/// Parameters whose Hessian block is asked for.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) name: String,
    pub(super) parameters: usize,
}

/// A function of grouped parameters, at a point `w`, that knows its gradient `g` nearby. It may be a mean over data, of
/// which every sample sees a part.
pub(super) trait Differentiable {
    /// The groups.
    fn groups(&self) -> &[Group];

    /// The root mean square of all parameters.
    fn root_mean_square(&self) -> f64;

    /// `v_l . (g_l(w + e v) - g_l(w - e v))` for each group `l`, where `v` are `signs` and `e` is `step`.
    /// `sample` decides the part of the data; it is that of the last call or the one after it.
    fn difference(&mut self, sample: usize, signs: &[Vec<f32>], step: f64) -> Result<Vec<f64>, HessianError>;
}

/// Estimates the average traces. `progress` gets the number of samples and the [`Traces::uncertainty`] after each sample
/// but the first.
pub(super) fn estimate(
    function: &mut impl Differentiable, options: &HessianOptions, mut progress: impl FnMut(usize, f64),
) -> Result<Traces, HessianError> {
    options.check()?;
    let groups = function.groups().to_vec();
    let unit = match function.root_mean_square() {
        0.0 => 1.0,
        unit => unit,
    };
    let mut traces = Traces { steps: ladder(function, options.seed, unit)?, ..Traces::default() };
    traces.step = unit * traces.chosen_step().map_or(1.0, |(relative, _)| relative);
    let mut moments = vec![Moments::default(); groups.len()];
    while traces.samples < options.max_samples && !traces.converged {
        let signs = signs(options.seed, traces.samples as u64, &groups);
        let estimates = along(function, traces.samples, &signs, traces.step)?;
        if let Some(wrong) = estimates.iter().position(|estimate| !estimate.is_finite()) {
            return Err(HessianError::NotFinite { layer: groups[wrong].name.clone() });
        }
        traces.samples += 1;
        moments.iter_mut().zip(estimates).for_each(|(moments, estimate)| moments.add(estimate));
        traces.layers = groups.iter().zip(&moments).map(|(group, moments)| moments.of(group)).collect();
        if traces.samples > 1 {
            let uncertainty = traces.uncertainty();
            progress(traces.samples, uncertainty);
            traces.converged =
                traces.samples >= HessianOptions::MIN_SAMPLES && uncertainty <= options.tolerance;
        }
    }
    Ok(traces)
}

/// Estimates of the average traces along one direction: `v_l . (H v)_l / n_l` for each group.
fn along(
    function: &mut impl Differentiable, sample: usize, signs: &[Vec<f32>], step: f64,
) -> Result<Vec<f64>, HessianError> {
    let differences = function.difference(sample, signs, step)?;
    let scale = |(difference, signs): (f64, &Vec<f32>)| difference / (2.0 * step * signs.len() as f64);
    Ok(differences.into_iter().zip(signs).map(scale).collect())
}

/// Random signs for every parameter. Samples have their own streams of random numbers.
fn signs(seed: u64, sample: u64, groups: &[Group]) -> Vec<Vec<f32>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(sample);
    let mut of = |count: usize| {
        let bits = (0..count.div_ceil(64)).flat_map(|_| {
            let word = rng.next_u64();
            (0..64).map(move |bit| word >> bit & 1)
        });
        bits.take(count).map(|bit| if bit == 0 { 1.0 } else { -1.0 }).collect()
    };
    groups.iter().map(|group| of(group.parameters)).collect()
}

/// Relative steps that are tried: `2^-2` to `2^-12`.
const LADDER: std::ops::RangeInclusive<i32> = 2..=12;

/// Tries steps from a quarter of `unit` down, with the directions and the data of the first sample, and compares neighbours.
/// Steps that run into something that is not finite are left out.
fn ladder(function: &mut impl Differentiable, seed: u64, unit: f64) -> Result<Vec<StepTrial>, HessianError> {
    let signs = signs(seed, 0, function.groups());
    let mut trials = vec![];
    let mut wrong = None;
    for exponent in LADDER {
        let relative_step = 0.5f64.powi(exponent);
        let estimates = along(function, 0, &signs, relative_step * unit)?;
        match estimates.iter().position(|estimate| !estimate.is_finite()) {
            Some(group) => wrong = Some(group),
            None => trials.push(StepTrial { relative_step, estimates, disagreement: None }),
        }
    }
    if let (Some(wrong), true) = (wrong, trials.len() < 3) {
        return Err(HessianError::NotFinite { layer: function.groups()[wrong].name.clone() });
    }
    for middle in 1..trials.len().saturating_sub(1) {
        let to = |other: usize| disagreement(&trials[middle].estimates, &trials[other].estimates);
        trials[middle].disagreement = Some(to(middle - 1).max(to(middle + 1)));
    }
    Ok(trials)
}

/// The mean of `|a - b| / max(|a|, |b|)`, 0 where both are 0. Every group counts the same, however small its trace.
fn disagreement(a: &[f64], b: &[f64]) -> f64 {
    let relative = |(&a, &b): (&f64, &f64)| match a == b {
        true => 0.0,
        false => (a - b).abs() / a.abs().max(b.abs()),
    };
    a.iter().zip(b).map(relative).sum::<f64>() / a.len().max(1) as f64
}

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

    fn of(&self, group: &Group) -> LayerTrace {
        let variance = self.squares / (self.count - 1.0).max(1.0);
        LayerTrace {
            layer: group.name.clone(),
            parameters: group.parameters,
            average_trace: self.mean,
            standard_error: (variance / self.count).sqrt(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `w . H w / 2 + c sum w^4 / 12` in f64, at a point. Its second derivative is `H + c diag(w^2)`.
    struct Quartic {
        hessian: Vec<Vec<f64>>,
        quartic: f64,
        point: Vec<f64>,
        groups: Vec<Group>,
        samples: Vec<usize>,
    }

    impl Quartic {
        fn new(hessian: Vec<Vec<f64>>, sizes: &[usize]) -> Self {
            let point = (0..hessian.len()).map(|i| 0.3 + 0.1 * i as f64).collect();
            let name = |(i, &parameters): (usize, &usize)| Group { name: format!("g{i}"), parameters };
            let groups = sizes.iter().enumerate().map(name).collect();
            Self { hessian, quartic: 0.0, point, groups, samples: vec![] }
        }

        fn gradient(&self, w: &[f64]) -> Vec<f64> {
            let row = |(row, x): (&Vec<f64>, &f64)| {
                row.iter().zip(w).map(|(h, w)| h * w).sum::<f64>() + self.quartic * x.powi(3) / 3.0
            };
            self.hessian.iter().zip(w).map(row).collect()
        }

        /// The average trace of each group.
        fn exact(&self) -> Vec<f64> {
            let mut start = 0;
            let mut of = |group: &Group| {
                let range = start..start + group.parameters;
                start = range.end;
                let entry = |i: usize| self.hessian[i][i] + self.quartic * self.point[i].powi(2);
                range.map(entry).sum::<f64>() / group.parameters as f64
            };
            self.groups.iter().map(&mut of).collect()
        }
    }

    impl Differentiable for Quartic {
        fn groups(&self) -> &[Group] {
            &self.groups
        }

        fn root_mean_square(&self) -> f64 {
            (self.point.iter().map(|x| x * x).sum::<f64>() / self.point.len() as f64).sqrt()
        }

        fn difference(
            &mut self, sample: usize, signs: &[Vec<f32>], step: f64,
        ) -> Result<Vec<f64>, HessianError> {
            self.samples.push(sample);
            let v: Vec<f64> = signs.iter().flatten().map(|&sign| f64::from(sign)).collect();
            let at = |step: f64| {
                self.gradient(&self.point.iter().zip(&v).map(|(w, v)| w + step * v).collect::<Vec<_>>())
            };
            let mut products = at(step)
                .into_iter()
                .zip(at(-step))
                .zip(&v)
                .map(|((a, b), v)| v * (a - b))
                .collect::<Vec<_>>()
                .into_iter();
            Ok(signs.iter().map(|signs| products.by_ref().take(signs.len()).sum()).collect())
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

    fn means(traces: &Traces) -> Vec<f64> {
        traces.layers.iter().map(|layer| layer.average_trace).collect()
    }

    #[test]
    fn one_direction_is_exact_on_a_diagonal() {
        let mut function = Quartic::new(diagonal(&[1.0, 2.0, -4.0, 0.5, 8.0]), &[2, 3]);
        let signs = [vec![1.0, -1.0], vec![-1.0, -1.0, 1.0]];
        let found = along(&mut function, 0, &signs, 1e-2).unwrap();
        assert_close(&found, &[1.5, 1.5], 1e-12);
        assert_close(&found, &function.exact(), 1e-12);
    }

    #[test]
    fn all_directions_together_are_exact() {
        let mut function = Quartic::new(full(8), &[1, 4, 3]);
        let mut sums = [0.0; 3];
        for bits in 0..1u32 << 8 {
            let sign = |i: usize| if bits >> i & 1 == 0 { 1.0f32 } else { -1.0 };
            let signs = [vec![sign(0)], (1..5).map(sign).collect(), (5..8).map(sign).collect()];
            let found = along(&mut function, 0, &signs, 1e-2).unwrap();
            sums.iter_mut().zip(found).for_each(|(sum, found)| *sum += found / 256.0);
        }
        assert_close(&sums, &function.exact(), 1e-11);
    }

    #[test]
    fn estimates_are_within_their_standard_errors() {
        for seed in 1..=20 {
            let mut function = Quartic::new(full(60), &[10, 50]);
            let options = HessianOptions { tolerance: 0.05, max_samples: 10_000, seed };
            let traces = estimate(&mut function, &options, |_, _| ()).unwrap();
            assert!(traces.converged && traces.samples >= 8 && traces.uncertainty() <= 0.05, "{traces:?}");
            for (layer, exact) in traces.layers.iter().zip(function.exact()) {
                let error = (layer.average_trace - exact).abs();
                assert!(error < 4.0 * layer.standard_error, "seed {seed}, {exact}: {layer:?}");
            }
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_result() {
        let of = |seed| {
            let options = HessianOptions { tolerance: 0.1, max_samples: 1000, seed };
            estimate(&mut Quartic::new(full(30), &[10, 20]), &options, |_, _| ()).unwrap()
        };
        assert_eq!(of(3), of(3));
        assert_ne!(means(&of(3)), means(&of(4)));
    }

    #[test]
    fn signs_are_balanced_and_independent() {
        let groups = [Group { name: String::new(), parameters: 10_000 }];
        let (a, b) = (signs(1, 0, &groups).remove(0), signs(1, 1, &groups).remove(0));
        let mean = |values: Vec<f32>| values.iter().sum::<f32>() / values.len() as f32;
        assert!(a.iter().all(|sign| sign.abs() == 1.0));
        assert!(mean(a.clone()).abs() < 0.04);
        assert!(mean(a.iter().zip(&b).map(|(a, b)| a * b).collect()).abs() < 0.04);
        assert!(mean(a.windows(2).map(|pair| pair[0] * pair[1]).collect()).abs() < 0.04);
    }

    #[test]
    fn samples_stop_at_the_limit_or_the_tolerance() {
        let run = |function: &mut Quartic, tolerance, max_samples| {
            let mut reports = vec![];
            let options = HessianOptions { tolerance, max_samples, seed: 1 };
            let traces = estimate(function, &options, |samples, worst| reports.push((samples, worst)));
            (traces.unwrap(), reports)
        };
        // On a diagonal every sample is the same: the fewest are enough.
        let mut function = Quartic::new(diagonal(&[1.0, 2.0, 3.0]), &[1, 2]);
        let (traces, reports) = run(&mut function, 1e-6, 100);
        assert!(traces.converged);
        assert_eq!((traces.samples, reports.len()), (8, 7));
        // The trials of steps see the first part of the data, then every sample the next.
        let trials = LADDER.count();
        assert_eq!(function.samples[..trials + 3], [vec![0; trials], vec![0, 1, 2]].concat());

        let (traces, _) = run(&mut Quartic::new(full(60), &[60]), 1e-6, 12);
        assert!(!traces.converged);
        assert_eq!(traces.samples, 12);
    }

    #[test]
    fn the_step_is_where_neighbours_agree() {
        // Without third derivatives a large step is as right as a small one; otherwise the error falls with its square,
        // until rounding, which is far below in f64.
        let of = |quartic| {
            let mut function = Quartic { quartic, ..Quartic::new(diagonal(&[1.0; 6]), &[6]) };
            let options = HessianOptions::default();
            let traces = estimate(&mut function, &options, |_, _| ()).unwrap();
            assert_close(&means(&traces), &function.exact(), 1e-6);
            traces
        };
        for quartic in [0.0, 1.0] {
            let traces = of(quartic);
            assert_eq!(traces.steps.len(), 11);
            assert!(traces.steps[0].disagreement.is_none() && traces.steps[10].disagreement.is_none());
            let (relative, disagreement) = traces.chosen_step().unwrap();
            assert!(disagreement < 1e-6, "{traces:?}");
            assert!(quartic == 0.0 || relative <= 1.0 / 512.0, "{traces:?}");
        }
    }

    #[test]
    fn what_is_not_finite_is_an_error() {
        let mut function = Quartic::new(diagonal(&[1.0, f64::NAN]), &[1, 1]);
        let error = estimate(&mut function, &HessianOptions::default(), |_, _| ()).unwrap_err();
        // A row of the product has NaN in it wherever the column has.
        assert!(error.to_string().starts_with("layer `g"), "{error}");
    }
}
