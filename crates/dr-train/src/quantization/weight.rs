//! [`NestedWeight`]: the weight of a linear layer as stored codes that serve all widths.

use super::factor::Factor;
use super::grid::{Affine, NarrowGrid, Nest, Scratch, StoredGrid, weight_of};
use dr_precision::BitWidth;
use nalgebra::DMatrix;
use rayon::prelude::*;

/// The weight of a linear layer at all widths: one stored code for each weight, and for each group of inputs of an output and each
/// width what the codes stand for.
#[derive(Clone, Debug, PartialEq)]
pub struct NestedWeight {
    shape: [usize; 2],
    group: usize,
    nest: Nest,
    codes: Vec<i8>,
    /// `[outputs, groups]`
    stored: Vec<StoredGrid>,
    /// `[outputs, groups, narrower widths]`
    narrow: Vec<NarrowGrid>,
}

/// Outputs that one task computes.
const OUTPUTS: usize = 32;

impl NestedWeight {
    /// Each weight gets the code that is best for it alone, the nearest at the stored width if there is no other: for tables and layers that stay
    /// at the stored width.
    ///
    /// # Panics
    /// If there are not `outputs * inputs` weights, or groups are empty.
    #[must_use]
    pub fn nearest(weights: &[f32], shape: [usize; 2], group: usize, nest: &Nest) -> Self {
        let mut new = Self::fitted(weights, shape, group, nest, &vec![1.0; shape[1]]);
        let inputs = shape[1];
        let mut codes = vec![0; weights.len()];
        let rows = codes.par_chunks_mut(inputs.max(1)).zip(weights.par_chunks(inputs.max(1))).enumerate();
        rows.for_each(|(output, (codes, weights))| {
            let mut row = vec![0.0; nest.widths().len()];
            for (at, (codes, weights)) in codes.chunks_mut(group).zip(weights.chunks(group)).enumerate() {
                let lines = new.lines(output, at);
                for (code, &weight) in codes.iter_mut().zip(weights) {
                    row.fill(weight);
                    *code = best_code(&row, &lines, nest);
                }
            }
        });
        new.codes = codes;
        new
    }

    /// Input by input, each weight gets the code that is best for all widths together, and at each width the weights of the inputs
    /// that follow make up for the error, as far as inputs are correlated: the manner of GPTQ (arXiv:2210.17323), with a copy of
    /// the weights for each width.
    ///
    /// # Panics
    /// If there are not `outputs * inputs` weights, groups are empty, or the factor is of another number of inputs.
    #[must_use]
    pub fn compensated(
        weights: &[f32], shape: [usize; 2], group: usize, nest: &Nest, factor: &Factor,
    ) -> Self {
        let mut new = Self::fitted(weights, shape, group, nest, factor.importance());
        let inputs = shape[1];
        let mut codes = vec![0; weights.len()];
        let tasks = codes.par_chunks_mut(OUTPUTS * inputs).zip(weights.par_chunks(OUTPUTS * inputs));
        tasks.enumerate().for_each(|(task, (codes, weights))| {
            new.compensate(task * OUTPUTS, weights, factor.upper(), codes);
        });
        new.codes = codes;
        new
    }

    /// The grids of all groups, without codes.
    fn fitted(weights: &[f32], shape: [usize; 2], group: usize, nest: &Nest, importance: &[f32]) -> Self {
        let [outputs, inputs] = shape;
        assert_eq!(weights.len(), outputs * inputs, "weights of a shape {shape:?}");
        assert_eq!(importance.len(), inputs, "one for each input");
        assert!(group > 0, "groups have inputs");
        let (groups, narrower) = (inputs.div_ceil(group), nest.narrower().len());
        let fit = |scratch: &mut Scratch, weights: &[f32]| {
            let mut narrow = vec![NarrowGrid::default(); groups * narrower];
            let stored = (0..groups).map(|at| {
                let range = at * group..inputs.min((at + 1) * group);
                let narrow = &mut narrow[at * narrower..][..narrower];
                nest.fit(&weights[range.clone()], &importance[range], narrow, scratch)
            });
            (stored.collect::<Vec<_>>(), narrow)
        };
        let rows = weights.par_chunks_exact(inputs.max(1)).map_init(Scratch::default, fit);
        let (stored, narrow): (Vec<_>, Vec<_>) = rows.collect();
        let (stored, narrow) = (stored.concat(), narrow.concat());
        Self { shape, group, nest: nest.clone(), codes: vec![], stored, narrow }
    }

    /// The codes of the weights of some outputs, of which `first` is the first.
    fn compensate(&self, first: usize, weights: &[f32], upper: &DMatrix<f32>, codes: &mut [i8]) {
        let (inputs, widths) = (self.shape[1], self.nest.widths().len());
        let outputs = weights.len() / inputs;
        // A row for each output and width.
        let mut rows =
            DMatrix::from_fn(outputs * widths, inputs, |row, input| weights[row / widths * inputs + input]);
        for group in 0..inputs.div_ceil(self.group) {
            let (start, end) = (group * self.group, inputs.min((group + 1) * self.group));
            let lines: Vec<Vec<Affine>> =
                (first..first + outputs).map(|output| self.lines(output, group)).collect();
            let mut errors = DMatrix::<f32>::zeros(outputs * widths, end - start);
            for input in start..end {
                let (column, mut error) = (rows.column(input), errors.column_mut(input - start));
                let unit = upper[(input, input)];
                let of_outputs =
                    column.as_slice().chunks_exact(widths).zip(error.as_mut_slice().chunks_exact_mut(widths));
                for (output, (row, error)) in of_outputs.enumerate() {
                    let code = best_code(row, &lines[output], &self.nest);
                    codes[output * inputs + input] = code;
                    for (width, error) in error.iter_mut().enumerate() {
                        let value = lines[output][width].value(self.nest.level(width, code));
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

    /// What codes of a group of an output stand for, at each width.
    fn lines(&self, output: usize, group: usize) -> Vec<Affine> {
        (0..self.nest.widths().len()).map(|width| self.line(output, group, width)).collect()
    }

    fn line(&self, output: usize, group: usize, width: usize) -> Affine {
        let at = output * self.groups() + group;
        let stored = self.stored[at].affine();
        let narrower = self.nest.narrower();
        match width.checked_sub(1) {
            None => stored,
            Some(width) => self.narrow[at * narrower.len() + width].affine(stored, narrower[width]),
        }
    }

    /// Outputs and inputs.
    #[must_use]
    pub const fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Inputs of a group; the last one may have less.
    #[must_use]
    pub const fn group(&self) -> usize {
        self.group
    }

    /// Groups of an output.
    #[must_use]
    pub const fn groups(&self) -> usize {
        self.shape[1].div_ceil(self.group)
    }

    /// The widths that it was made for, the stored one first.
    #[must_use]
    pub fn widths(&self) -> &[BitWidth] {
        self.nest.widths()
    }

    /// The stored codes, `[outputs, inputs]`.
    #[must_use]
    pub fn codes(&self) -> &[i8] {
        &self.codes
    }

    /// The grids of the stored codes, `[outputs, groups]`.
    #[must_use]
    pub fn stored(&self) -> &[StoredGrid] {
        &self.stored
    }

    /// Those of the narrower widths, `[outputs, groups, narrower widths]`.
    #[must_use]
    pub fn narrow(&self) -> &[NarrowGrid] {
        &self.narrow
    }

    /// Scales and offsets of a width, `[outputs, groups]`; `None` if it was not made for it.
    #[must_use]
    pub fn affine(&self, bits: BitWidth) -> Option<Vec<Affine>> {
        let width = self.widths().iter().position(|&width| width == bits)?;
        let (outputs, groups) = (self.shape[0], self.groups());
        let of_output = |output| (0..groups).map(move |group| (output, group));
        let all = (0..outputs).flat_map(of_output);
        Some(all.map(|(output, group)| self.line(output, group, width)).collect())
    }

    /// The weights at a width, `[outputs, inputs]`; `None` if it was not made for it.
    #[must_use]
    pub fn dequantized(&self, bits: BitWidth) -> Option<Vec<f32>> {
        let width = self.widths().iter().position(|&width| width == bits)?;
        let inputs = self.shape[1].max(1);
        let mut values = vec![0.0; self.codes.len()];
        let rows = values.par_chunks_mut(inputs).zip(self.codes.par_chunks(inputs)).enumerate();
        rows.for_each(|(output, (values, codes))| {
            let groups = values.chunks_mut(self.group).zip(codes.chunks(self.group)).enumerate();
            for (group, (values, codes)) in groups {
                let line = self.line(output, group, width);
                for (value, &code) in values.iter_mut().zip(codes) {
                    *value = line.value(self.nest.level(width, code));
                }
            }
        });
        Some(values)
    }
}

/// The stored code with the least `sum over b of 2^(b - 8) * (w_b - w^_b)^2`, where `row` has what the weight is to be at each width
/// and `lines` what codes stand for there. Codes are tried from the nearest at the stored width outwards, until that width alone costs more
/// than the best.
fn best_code(row: &[f32], lines: &[Affine], nest: &Nest) -> i8 {
    let Affine { scale, offset } = lines[0];
    let nearest = ((row[0] - offset) / scale).round_ties_even() as i8;
    let cost = |code: i8| -> f32 {
        let of_width = |(width, &bits): (usize, &BitWidth)| {
            weight_of(bits) * (row[width] - lines[width].value(nest.level(width, code))).powi(2)
        };
        nest.widths().iter().enumerate().map(of_width).sum()
    };
    let (mut best, mut least) = (nearest, cost(nearest));
    for distance in 1..=u8::MAX {
        let [below, above] = [nearest.checked_sub_unsigned(distance), nearest.checked_add_unsigned(distance)];
        // So far from the nearest the error of the stored width is at least this, and more if the weight is outside of all codes.
        let alone = ((f32::from(distance) - 0.5) * scale).powi(2);
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

    /// `sum over outputs of e H e^T` at each width.
    fn errors(weights: &[f32], of: &NestedWeight, hessian: &[f32]) -> Vec<f32> {
        let inputs = of.shape()[1];
        let error = |&bits: &BitWidth| -> f32 {
            let values = of.dequantized(bits).expect("one of its widths");
            let errors: Vec<f32> = values.iter().zip(weights).map(|(value, weight)| value - weight).collect();
            let of_output = |e: &[f32]| -> f32 {
                let row =
                    |(row, &e_i): (&[f32], &f32)| e_i * row.iter().zip(e).map(|(h, e)| h * e).sum::<f32>();
                hessian.chunks_exact(inputs).zip(e).map(row).sum()
            };
            errors.chunks_exact(inputs).map(of_output).sum()
        };
        of.widths().iter().map(error).collect()
    }

    #[test]
    fn outputs_are_nearer_to_the_floats_at_every_width() {
        for (outputs, inputs, group) in [(40, 96, 32), (33, 40, 16), (8, 50, 32)] {
            let (weights, hessian) = (random(outputs * inputs, 5), hessian(inputs, 7));
            let factor = Factor::new(&hessian, inputs).expect("a factor");
            let shape = [outputs, inputs];
            let plain = NestedWeight::nearest(&weights, shape, group, &nest());
            let better = NestedWeight::compensated(&weights, shape, group, &nest(), &factor);
            let [plain, better] = [plain, better].map(|of| errors(&weights, &of, &hessian));
            for (width, (better, plain)) in better.iter().zip(&plain).enumerate() {
                let most = if width < 3 { 0.7 } else { 0.95 };
                assert!(better < &(most * plain), "{shape:?}, width {width}: {better} of {plain}");
            }
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
        let compensated = NestedWeight::compensated(&weights, shape, 32, &nest(), &factor);
        assert_eq!(compensated.codes(), NestedWeight::nearest(&weights, shape, 32, &nest()).codes());
    }

    #[test]
    fn each_width_is_a_line_of_its_switched_codes() {
        let shape = [3, 75];
        let weight = NestedWeight::nearest(&random(3 * 75, 2), shape, 32, &nest());
        assert_eq!((weight.groups(), weight.stored().len(), weight.narrow().len()), (3, 9, 36));
        for &bits in weight.widths() {
            let (values, lines) = (weight.dequantized(bits).unwrap(), weight.affine(bits).unwrap());
            for (at, (value, &code)) in values.iter().zip(weight.codes()).enumerate() {
                let line = lines[at / 75 * 3 + at % 75 / 32];
                let level = semantics::switch(code.into(), BitWidth::B8, bits);
                assert_eq!(*value, line.value(level as f32));
            }
        }
        assert!(weight.dequantized(BitWidth::B5).is_none() && weight.affine(BitWidth::B5).is_none());
    }

    #[test]
    fn at_the_stored_width_alone_codes_are_the_nearest() {
        let (weights, shape) = (random(64 * 4, 9), [4, 64]);
        let weight = NestedWeight::nearest(&weights, shape, 32, &Nest::new([]));
        let lines = weight.affine(BitWidth::B8).unwrap();
        for (at, (&w, &code)) in weights.iter().zip(weight.codes()).enumerate() {
            let line = lines[at / 64 * 2 + at % 64 / 32];
            assert_eq!(i32::from(code), semantics::quantize(w - line.offset, line.scale, BitWidth::B8));
        }
        assert!(weight.narrow().is_empty());
    }

    #[test]
    fn nothing_to_quantize() {
        for shape in [[0, 4], [3, 0], [0, 0]] {
            let weight = NestedWeight::nearest(&[], shape, 32, &nest());
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
                let of_width = |(at, &bits): (usize, &BitWidth)| {
                    weight_of(bits) * (row[at] - lines[at].value(nest.level(at, code))).powi(2)
                };
                nest.widths().iter().enumerate().map(of_width).sum()
            };
            let least = (i8::MIN..=i8::MAX).map(cost).fold(f32::INFINITY, f32::min);
            prop_assert_eq!(cost(best_code(&row, &lines, &nest)), least);
        }
    }
}
