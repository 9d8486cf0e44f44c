//! [`nearest`] and [`compensated`]: the stored codes of a layer's weight, chosen for all widths at once.

use super::factor::Factor;
use super::grid::{Nest, Scratch};
use dr_precision::BitWidth;
use dr_runtime::file::{Affine, NarrowGrid, NestedWeight, StoredGrid};
use nalgebra::{DMatrix, DMatrixView};
use rayon::prelude::*;
use std::num::NonZeroUsize;

/// Outputs that one task computes.
const OUTPUTS: usize = 32;

/// Each weight of `[outputs, inputs]` gets the code that is best for it alone, the nearest at the stored width if there is no other: for tables and
/// layers that stay at the stored width.
///
/// # Panics
/// If there are not `outputs * inputs` weights.
#[must_use]
pub fn nearest(weights: &[f32], shape: [usize; 2], group: NonZeroUsize, nest: &Nest) -> NestedWeight {
    let grids = Grids::fit(weights, shape, group, nest, &vec![1.0; shape[1]]);
    let (inputs, group) = (shape[1].max(1), group.get());
    let mut codes = vec![0; weights.len()];
    let rows = codes.par_chunks_mut(inputs).zip(weights.par_chunks(inputs)).enumerate();
    rows.for_each(|(output, (codes, weights))| {
        let mut row = vec![0.0; nest.widths().len()];
        for (at, (codes, weights)) in codes.chunks_mut(group).zip(weights.chunks(group)).enumerate() {
            let lines = grids.lines(output, at);
            for (code, &weight) in codes.iter_mut().zip(weights) {
                row.fill(weight);
                *code = best_code(&row, &lines, nest);
            }
        }
    });
    grids.with(codes)
}

/// Input by input, each weight gets the code that is best for all widths together, and at each width the weights of the inputs
/// that follow make up for the error, as far as inputs are correlated: the manner of GPTQ (arXiv:2210.17323), with a copy of
/// the weights for each width.
///
/// # Panics
/// If there are not `outputs * inputs` weights, or the factor is of another number of inputs.
#[must_use]
pub fn compensated(
    weights: &[f32], shape: [usize; 2], group: NonZeroUsize, nest: &Nest, factor: &Factor,
) -> NestedWeight {
    let grids = Grids::fit(weights, shape, group, nest, factor.importance());
    let some = OUTPUTS * shape[1];
    let mut codes = vec![0; weights.len()];
    let tasks = codes.par_chunks_mut(some).zip(weights.par_chunks(some)).enumerate();
    tasks.for_each(|(task, (codes, weights))| {
        grids.compensate(task * OUTPUTS, weights, factor.upper(), codes);
    });
    grids.with(codes)
}

/// `sum over outputs o of e_o H e_o^T / 2` at each width of a nested weight, `e` being its errors there: by how much a loss with the Hessian `H`,
/// `[inputs, inputs]`, for the weights of each output is above its minimum at the weights `[outputs, inputs]`.
///
/// # Panics
/// If there are not as many weights or products of inputs as the shape calls for.
#[must_use]
pub fn quadratic_losses(weights: &[f32], of: &NestedWeight, hessian: &[f32]) -> Vec<f64> {
    let [outputs, inputs] = of.shape();
    assert_eq!(weights.len(), outputs * inputs, "weights of a shape {:?}", of.shape());
    let hessian = DMatrixView::from_slice(hessian, inputs, inputs);
    let some = (OUTPUTS * inputs).max(1);
    let loss = |&bits: &BitWidth| -> f64 {
        let values = of.dequantized(bits).unwrap_or_default();
        let tasks = values.par_chunks(some).zip(weights.par_chunks(some));
        let of_task = |(values, weights): (&[f32], &[f32])| {
            let errors = values.iter().zip(weights).map(|(value, weight)| value - weight);
            let errors = DMatrix::from_iterator(inputs, values.len() / inputs, errors);
            f64::from((hessian * &errors).dot(&errors)) / 2.0
        };
        // In a fixed order, so that the same is the same again.
        tasks.map(of_task).collect::<Vec<_>>().into_iter().sum()
    };
    of.widths().iter().map(loss).collect()
}

/// What codes of a weight stand for, before there are any.
struct Grids<'a> {
    shape: [usize; 2],
    group: NonZeroUsize,
    nest: &'a Nest,
    /// `[outputs, groups]`
    stored: Vec<StoredGrid>,
    /// Of each narrower width, `[outputs, groups]`.
    narrow: Vec<Vec<NarrowGrid>>,
    /// Of each width, `[outputs, groups]`, as kernels hold them.
    lines: Vec<Vec<Affine>>,
}

impl<'a> Grids<'a> {
    fn fit(
        weights: &[f32], shape: [usize; 2], group: NonZeroUsize, nest: &'a Nest, importance: &[f32],
    ) -> Self {
        let [outputs, inputs] = shape;
        assert_eq!(weights.len(), outputs * inputs, "weights of a shape {shape:?}");
        assert_eq!(importance.len(), inputs, "one for each input");
        let narrower = nest.narrower().len();
        let groups = inputs.div_ceil(group.get());
        let fit = |scratch: &mut Scratch, weights: &[f32]| {
            let mut narrow = vec![NarrowGrid::default(); groups * narrower];
            let of_groups = weights.chunks(group.get()).zip(importance.chunks(group.get())).enumerate();
            let stored = of_groups.map(|(at, (weights, importance))| {
                nest.fit(weights, importance, &mut narrow[at * narrower..][..narrower], scratch)
            });
            (stored.collect::<Vec<_>>(), narrow)
        };
        let rows = weights.par_chunks(inputs.max(1)).map_init(Scratch::default, fit);
        let (stored, narrow): (Vec<_>, Vec<_>) = rows.collect();
        let (stored, narrow) = (stored.concat(), narrow.concat());
        let of_width = |width: usize| narrow.iter().skip(width).step_by(narrower).copied().collect();
        let narrow = (0..narrower).map(of_width).collect();
        let grids = Self { shape, group, nest, stored, narrow, lines: vec![] };
        let weight = grids.with(vec![0; outputs * inputs]);
        let lines = nest.widths().iter().map(|&bits| weight.affine(bits).unwrap_or_default()).collect();
        Self { lines, ..grids }
    }

    fn with(&self, codes: Vec<i8>) -> NestedWeight {
        NestedWeight::new(self.shape, self.group, self.nest.widths(), codes, &self.stored, &self.narrow)
            .expect("as many codes and grids as there are weights and groups")
    }

    /// The codes of the weights of some outputs, of which `first` is the first.
    fn compensate(&self, first: usize, weights: &[f32], upper: &DMatrix<f32>, codes: &mut [i8]) {
        let (inputs, widths) = (self.shape[1], self.nest.widths().len());
        let outputs = weights.len() / inputs;
        let rows =
            DMatrix::from_fn(outputs * widths, inputs, |row, input| weights[row / widths * inputs + input]);
        let lines = |output, group| self.lines(first + output, group);
        compensate(rows, self.nest, self.group.get(), lines, upper, codes);
    }

    /// What codes of a group of an output stand for, at each width.
    fn lines(&self, output: usize, group: usize) -> Vec<Affine> {
        let at = output * self.shape[1].div_ceil(self.group.get()) + group;
        self.lines.iter().map(|lines| lines[at]).collect()
    }
}

/// The codes of outputs whose weights of an input are to be what `rows` has, `[outputs * widths, inputs]`; `lines` says what codes stand for, for an
/// output and a group of inputs.
fn compensate(
    mut rows: DMatrix<f32>, nest: &Nest, group: usize, lines: impl Fn(usize, usize) -> Vec<Affine>,
    upper: &DMatrix<f32>, codes: &mut [i8],
) {
    let (inputs, widths) = (rows.ncols(), nest.widths().len());
    let outputs = rows.nrows() / widths;
    for (at, start) in (0..inputs).step_by(group).enumerate() {
        let end = inputs.min(start + group);
        let lines: Vec<Vec<Affine>> = (0..outputs).map(|output| lines(output, at)).collect();
        let mut errors = DMatrix::<f32>::zeros(outputs * widths, end - start);
        for input in start..end {
            let (column, mut error) = (rows.column(input), errors.column_mut(input - start));
            let unit = upper[(input, input)];
            let of_outputs =
                column.as_slice().chunks_exact(widths).zip(error.as_mut_slice().chunks_exact_mut(widths));
            for (output, (row, error)) in of_outputs.enumerate() {
                let code = best_code(row, &lines[output], nest);
                codes[output * inputs + input] = code;
                for (width, error) in error.iter_mut().enumerate() {
                    let value = lines[output][width].value(nest.level(width, code));
                    *error = (row[width] - value) / unit;
                }
            }
            for later in input + 1..end {
                rows.column_mut(later).axpy(-upper[(input, later)], &error, 1.0);
            }
        }
        let later = upper.view((start, end), (end - start, inputs - end));
        rows.columns_mut(end, inputs - end).gemm(-1.0, &errors, &later, 1.0);
    }
}

/// The codes of outputs with a grid each: what codes stand for at each width is in `lines`, and what weights are to be there in `targets`, `[outputs,
/// inputs]` for each width. With a factor, weights of inputs that follow make up for errors.
pub(super) fn codes_of_outputs(
    targets: &[Vec<f32>], lines: &[Vec<Affine>], nest: &Nest, factor: Option<&Factor>,
) -> Vec<i8> {
    let (outputs, widths) = (lines.len(), nest.widths().len());
    let inputs = targets[0].len() / outputs.max(1);
    let mut codes = vec![0; outputs * inputs];
    let some = (OUTPUTS * inputs).max(1);
    codes.par_chunks_mut(some).enumerate().for_each(|(task, codes)| {
        let (first, count) = (task * OUTPUTS, codes.len() / inputs);
        let target =
            |row: usize, input: usize| targets[row % widths][(first + row / widths) * inputs + input];
        match factor {
            Some(factor) => {
                let rows = DMatrix::from_fn(count * widths, inputs, target);
                compensate(
                    rows,
                    nest,
                    OUTPUTS,
                    |output, _| lines[first + output].clone(),
                    factor.upper(),
                    codes,
                );
            }
            None => {
                for (at, code) in codes.iter_mut().enumerate() {
                    let (output, input) = (at / inputs, at % inputs);
                    let row: Vec<f32> =
                        (0..widths).map(|width| target(output * widths + width, input)).collect();
                    *code = best_code(&row, &lines[first + output], nest);
                }
            }
        }
    });
    codes
}

/// The stored code with the least `sum over b of weight(b) * (w_b - w^_b)^2`, where `row` has what the weight is to be at each width
/// and `lines` what codes stand for there. Codes are tried from the nearest at the stored width outwards, until that width alone costs more
/// than the best.
fn best_code(row: &[f32], lines: &[Affine], nest: &Nest) -> i8 {
    let Affine { scale, offset } = lines[0];
    let nearest = ((row[0] - offset) / scale).round_ties_even() as i8;
    let cost = |code: i8| -> f32 {
        let of_width = |width: usize| {
            nest.weight(width) * (row[width] - lines[width].value(nest.level(width, code))).powi(2)
        };
        (0..row.len()).map(of_width).sum()
    };
    let (mut best, mut least) = (nearest, cost(nearest));
    for distance in 1..=u8::MAX {
        let [below, above] = [nearest.checked_sub_unsigned(distance), nearest.checked_add_unsigned(distance)];
        // So far from the nearest the error of the stored width is at least this, and more if the weight is outside of all codes.
        let alone = nest.weight(0) * ((f32::from(distance) - 0.5) * scale).powi(2);
        if alone > least || (below, above) == (None, None) {
            break;
        }
        for code in [below, above].into_iter().flatten() {
            let cost = cost(code);
            if cost < least {
                (best, least) = (code, cost);
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use dr_precision::semantics;
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    const GROUP: NonZeroUsize = NonZeroUsize::new(32).unwrap();

    fn nest() -> Nest {
        Nest::new([BitWidth::B6, BitWidth::B4, BitWidth::B3, BitWidth::B2])
    }

    fn random(count: usize, seed: u64) -> Vec<f32> {
        let mut rng = StdRng::seed_from_u64(seed);
        (0..count).map(|_| rng.random_range(-1.0f32..1.0) * rng.random_range(0.0f32..1.0)).collect()
    }

    /// A Hessian of inputs that have much in common.
    fn hessian(inputs: usize, seed: u64) -> Vec<f32> {
        let common = random(200, seed);
        let noise = random(200 * inputs, seed + 1);
        let x = |row: usize, input: usize| common[row] + 0.5 * noise[row * inputs + input];
        let product = |at: usize| (0..200).map(|row| x(row, at / inputs) * x(row, at % inputs)).sum();
        (0..inputs * inputs).map(product).collect()
    }

    #[test]
    fn quadratic_losses_are_those_of_the_formula() {
        for [outputs, inputs] in [[7, 32], [70, 50], [1, 1]] {
            let (weights, hessian) = (random(outputs * inputs, 3), hessian(inputs, 9));
            let of = nearest(&weights, [outputs, inputs], GROUP, &nest());
            let found = quadratic_losses(&weights, &of, &hessian);
            for (&bits, found) in of.widths().iter().zip(found) {
                let values = of.dequantized(bits).expect("one of its widths");
                let error = |o: usize, i: usize| f64::from(values[o * inputs + i] - weights[o * inputs + i]);
                let pairs = (0..inputs).flat_map(|i| (0..inputs).map(move |j| (i, j)));
                let of_output = |o: usize| -> f64 {
                    let term = |(i, j): (usize, usize)| {
                        error(o, i) * f64::from(hessian[i * inputs + j]) * error(o, j)
                    };
                    pairs.clone().map(term).sum()
                };
                let expected = (0..outputs).map(of_output).sum::<f64>() / 2.0;
                assert!((found - expected).abs() <= 1e-3 * expected, "{bits}: {found} instead of {expected}");
            }
        }
    }

    #[test]
    fn outputs_are_nearer_to_the_floats_at_every_width() {
        for (outputs, inputs, group) in [(40, 96, 32), (33, 40, 16), (8, 50, 32)] {
            let group = NonZeroUsize::new(group).expect("not zero");
            let (weights, hessian) = (random(outputs * inputs, 5), hessian(inputs, 7));
            let factor = Factor::new(&hessian, inputs).expect("a factor");
            let shape = [outputs, inputs];
            let plain = nearest(&weights, shape, group, &nest());
            let better = compensated(&weights, shape, group, &nest(), &factor);
            let [plain, better] = [plain, better].map(|of| quadratic_losses(&weights, &of, &hessian));
            for (width, (better, plain)) in better.iter().zip(&plain).enumerate() {
                let most = if width < 3 { 0.9 } else { 1.0 };
                assert!(better < &(most * plain), "{shape:?}, width {width}: {better} of {plain}");
            }
        }
    }

    /// The same straight from the formulas, in 64 bits, trying all codes.
    #[test]
    fn codes_are_those_of_the_formulas() {
        for (outputs, inputs) in [(7, 32), (35, 50), (4, 1), (3, 97)] {
            let (weights, hessian) = (random(outputs * inputs, 11), hessian(inputs, 13));
            let (shape, nest) = ([outputs, inputs], nest());
            let found =
                compensated(&weights, shape, GROUP, &nest, &Factor::new(&hessian, inputs).expect("a factor"));
            let mut damped = DMatrix::from_iterator(inputs, inputs, hessian.iter().map(|&h| f64::from(h)));
            let mean = damped.trace() / inputs as f64;
            (0..inputs).for_each(|i| damped[(i, i)] += 0.01 * mean);
            let inverse = damped.try_inverse().expect("a positive matrix");
            let upper = inverse.cholesky().expect("a positive matrix").l().transpose();
            let lines: Vec<Vec<Affine>> =
                nest.widths().iter().map(|&bits| found.affine(bits).unwrap()).collect();
            let codes = found.codes(BitWidth::B8).unwrap();
            let mut same = 0;
            for output in 0..outputs {
                let row = weights[output * inputs..][..inputs].iter().map(|&w| f64::from(w)).collect();
                let mut rows: Vec<Vec<f64>> = vec![row; nest.widths().len()];
                for input in 0..inputs {
                    let value = |width: usize, code: i8| {
                        let line = lines[width][output * found.groups() + input / GROUP];
                        let level = semantics::switch(code.into(), BitWidth::B8, nest.widths()[width]);
                        f64::from(line.scale) * f64::from(level) + f64::from(line.offset)
                    };
                    let cost = |code: i8| -> f64 {
                        let of_width = |width: usize| {
                            f64::from(nest.weight(width)) * (rows[width][input] - value(width, code)).powi(2)
                        };
                        (0..rows.len()).map(of_width).sum()
                    };
                    let best = (i8::MIN..=i8::MAX).min_by(|&a, &b| cost(a).total_cmp(&cost(b))).unwrap();
                    // What is near a tie may fall to either side: the reference goes on with what was found.
                    let code = codes[output * inputs + input];
                    assert!(cost(code) <= 1.01 * cost(best) + 1e-6, "{shape:?}: {code} instead of {best}");
                    same += usize::from(code == best);
                    for (width, row) in rows.iter_mut().enumerate() {
                        let error = (row[input] - value(width, code)) / upper[(input, input)];
                        (input + 1..inputs).for_each(|later| row[later] -= error * upper[(input, later)]);
                    }
                }
            }
            assert!(same * 100 >= outputs * inputs * 98, "{same} of {shape:?}");
        }
    }

    #[test]
    fn independent_inputs_have_nothing_to_make_up_for() {
        let (outputs, inputs) = (5, 70);
        let weights = random(outputs * inputs, 1);
        let mut identity = vec![0.0; inputs * inputs];
        (0..inputs).for_each(|i| identity[i * inputs + i] = 3.0);
        let factor = Factor::new(&identity, inputs).expect("a factor");
        let shape = [outputs, inputs];
        let compensated = compensated(&weights, shape, GROUP, &nest(), &factor);
        let nearest = nearest(&weights, shape, GROUP, &nest());
        assert_eq!(compensated.codes(BitWidth::B8), nearest.codes(BitWidth::B8));
    }

    #[test]
    fn each_width_is_a_line_of_its_switched_codes() {
        let shape = [3, 75];
        let weight = nearest(&random(3 * 75, 2), shape, GROUP, &nest());
        assert_eq!(weight.groups(), 3);
        for &bits in weight.widths() {
            let (values, lines) = (weight.dequantized(bits).unwrap(), weight.affine(bits).unwrap());
            let stored = weight.codes(BitWidth::B8).unwrap();
            for (at, (value, &code)) in values.iter().zip(&*stored).enumerate() {
                let line = lines[at / 75 * 3 + at % 75 / 32];
                let level = semantics::switch(code.into(), BitWidth::B8, bits);
                assert_eq!(*value, line.value(level as f32));
            }
            let only = weight.only(bits).unwrap();
            assert_eq!((only.widths(), only.widest()), (&[bits][..], bits));
            assert_eq!(only.codes(bits), weight.codes(bits));
            assert_eq!(only.affine(bits).unwrap(), lines);
            assert_eq!(only.dequantized(bits).unwrap(), values);
            assert_eq!(only.only(bits).unwrap(), only);
        }
        assert!(weight.dequantized(BitWidth::B5).is_none() && weight.affine(BitWidth::B5).is_none());
        assert!(weight.codes(BitWidth::B5).is_none() && weight.only(BitWidth::B5).is_none());
        assert!(weight.only(BitWidth::B4).unwrap().only(BitWidth::B8).is_none());
    }

    #[test]
    fn at_the_stored_width_alone_codes_are_the_nearest() {
        let (weights, shape) = (random(64 * 4, 9), [4, 64]);
        let weight = nearest(&weights, shape, GROUP, &Nest::new([]));
        let lines = weight.affine(BitWidth::B8).unwrap();
        for (at, (&w, &code)) in weights.iter().zip(&*weight.codes(BitWidth::B8).unwrap()).enumerate() {
            let line = lines[at / 64 * 2 + at % 64 / 32];
            assert_eq!(i32::from(code), semantics::quantize(w - line.offset, line.scale, BitWidth::B8));
        }
        assert_eq!(weight.widths(), [BitWidth::B8]);
    }

    #[test]
    fn nothing_to_quantize() {
        for shape in [[0, 4], [3, 0], [0, 0]] {
            let weight = nearest(&[], shape, GROUP, &nest());
            assert_eq!(weight.dequantized(BitWidth::B4), Some(vec![]));
        }
    }

    proptest! {
        /// The search stops early, but never before the best.
        #[test]
        fn the_best_of_all_codes(
            row in prop::array::uniform5(-2.0f32..2.0), by in prop::array::uniform4(any::<(i8, i8)>()), scale in 1e-3f32..0.02,
        ) {
            let nest = nest();
            let stored = Affine { scale, offset: 0.1 };
            let narrow = by.iter().zip(nest.narrower()).map(|(&(scale, offset), &bits)| {
                NarrowGrid { scale, offset }.affine(stored, bits)
            });
            let lines: Vec<Affine> = std::iter::once(stored).chain(narrow).collect();
            let cost = |code: i8| -> f32 {
                let of_width =
                    |at: usize| nest.weight(at) * (row[at] - lines[at].value(nest.level(at, code))).powi(2);
                (0..row.len()).map(of_width).sum()
            };
            let least = (i8::MIN..=i8::MAX).map(cost).fold(f32::INFINITY, f32::min);
            prop_assert_eq!(cost(best_code(&row, &lines, &nest)), least);
        }
    }
}
