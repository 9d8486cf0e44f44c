//! [`tune`]: the scales and offsets of narrow widths, trained.

use super::language::row;
use super::model::NestedModel;
use crate::nn::quantizers::host;
use crate::nn::{Executor, Model, Pass, QuantLinear, Tensors, Value, tensors_do};
use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Tensor, TensorData};
use dr_kernels::host::language::divergence;
use dr_precision::BitWidth;
use dr_runtime::file::{Affine, NarrowGrid, NestedWeight, STORED};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rayon::prelude::*;
use std::collections::HashMap;
use std::f32::consts::PI;

/// How [`tune`] trains.
#[derive(Clone, Debug, PartialEq)]
pub struct TuningOptions {
    /// Steps for each width.
    pub steps: usize,
    /// Tokens of a step.
    pub length: usize,
    /// The widest width that is trained; wider ones have little to gain.
    pub widest: BitWidth,
    /// The largest step of Adam, in [`NarrowGrid::STEPS`] of a step of the width's codes.
    pub learning_rate: f32,
    /// Decides which tokens are taken.
    pub seed: u64,
}

impl Default for TuningOptions {
    fn default() -> Self {
        Self { steps: 40, length: 512, widest: BitWidth::B4, learning_rate: 0.5, seed: 0 }
    }
}

/// How far [`tune`] is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TuningProgress {
    /// The width that is trained.
    pub bits: BitWidth,
    /// Steps of this width so far.
    pub done: usize,
    /// Steps of each width.
    pub of: usize,
    /// The mean divergence of the last step's predictions from the float model's, in nats a token.
    pub divergence: f64,
}

/// Trains the scales and the offsets of narrow widths, so that the predictions at each come near those of the float model that the weights are of: Adam
/// on the Kullback-Leibler divergence, averaged over the tokens of a step, without labels. Codes stay as they are, and widths have nothing else
/// in common, so no width loses what another gains.
///
/// `w = z_h + unit ((256 + a) q + b)` ([`NarrowGrid`]), so with the gradient `g` of the loss at the weights of a group, that at `a` is
/// `unit sum(g q)` and that at `b` is `unit sum(g)`. Inputs are in floats.
///
/// Nothing happens to a model without narrow widths, and with a text that is shorter than a step.
///
/// # Panics
/// If a token is none of the model's.
pub fn tune(
    model: &Model, nested: &mut NestedModel, tokens: &[u32], options: &TuningOptions,
    mut progress: impl FnMut(TuningProgress),
) {
    let length = options.length.max(1);
    if tokens.len() < length {
        return;
    }
    let teacher = model.valid();
    let ids = Ids::of(&teacher);
    let frozen = nested.dequantized(teacher.clone(), |_| STORED).freeze().train();
    let mut widths: Vec<BitWidth> =
        nested.weights.values().flat_map(|weight| weight.widths()).copied().collect();
    widths.sort_unstable();
    widths.dedup();
    let pass = Pass::float();
    for bits in widths.into_iter().filter(|&bits| bits <= options.widest && bits != STORED).rev() {
        let layers = nested
            .weights
            .iter()
            .filter_map(|(name, weight)| Tuned::new(*ids.0.get(name)?, name.clone(), weight, bits));
        let mut layers: Vec<Tuned> = layers.collect();
        let mut rng = StdRng::seed_from_u64(options.seed);
        for step in 0..options.steps {
            let start = rng.random_range(0..=tokens.len() - length);
            let window = row(&tokens[start..start + length], &ids.1);
            let expected = teacher.forward(window.clone(), &pass);
            let leaves = layers.iter().map(|layer| (layer.id, layer.leaf(&ids.1))).collect();
            let mut student = Student { tensors: Tensors::new(&pass), weights: &leaves };
            let Value::Rows(logits) = frozen.run(&mut student, Value::from(window.autodiff())) else {
                return;
            };
            let found = logits.clone().inner();
            let divergence = mean_divergence(&expected, &found);
            // What the gradient of the divergence is at the logits.
            let gradient = (softmax(found, 1) - softmax(expected, 1)) / length as f32;
            let gradient = Tensor::from_inner(gradient);
            let mut gradients = (logits * gradient).sum().backward();
            let rate = options.learning_rate * schedule(step, options.steps);
            for layer in &mut layers {
                let of_layer = leaves.get(&layer.id).and_then(|leaf| leaf.grad_remove(&mut gradients));
                if let Some(gradient) = of_layer {
                    layer.step(&host(&gradient), rate, step);
                }
            }
            progress(TuningProgress { bits, done: step + 1, of: options.steps, divergence });
        }
        for layer in layers {
            let Some(weight) = nested.weights.get_mut(&layer.name) else { continue };
            if let Ok(tuned) = weight.clone().with_grids(bits, &layer.grids()) {
                *weight = tuned;
            }
        }
    }
}

/// The part of the learning rate at a step: some steps up, and down along a cosine.
pub(super) fn schedule(step: usize, steps: usize) -> f32 {
    let up = ((step + 1) as f32 / 5.0).min(1.0);
    up * 0.5 * (1.0 + (PI * step as f32 / steps as f32).cos())
}

/// The mean over tokens, in nats.
fn mean_divergence(expected: &Tensor<2>, found: &Tensor<2>) -> f64 {
    let [rows, classes] = found.dims();
    let of_rows = divergence(&host(expected), &host(found), classes).unwrap_or_default();
    of_rows.iter().map(|(nats, _)| nats).sum::<f64>() / rows.max(1) as f64
}

/// The parameters that are called `weight`, by the path of what they are of, and where they are.
struct Ids(HashMap<String, ParamId>, Device);

impl Ids {
    fn of(model: &Model) -> Self {
        struct Visitor(Vec<String>, Ids);
        impl ModuleVisitor for Visitor {
            fn enter_module(&mut self, name: &str, _: &str) {
                self.0.push(name.to_owned());
            }

            fn exit_module(&mut self, _: &str, _: &str) {
                self.0.pop();
            }

            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                if let [path @ .., last] = &self.0[..]
                    && last == "weight"
                {
                    self.1.1 = param.val().device();
                    self.1.0.insert(path.join("."), param.id);
                }
            }
        }
        let mut visitor = Visitor(vec![], Self(HashMap::new(), Device::flex()));
        model.visit_named(&mut visitor);
        visitor.1
    }
}

/// A layer's weight at a width, with scales and offsets that change.
struct Tuned {
    id: ParamId,
    name: String,
    shape: [usize; 2],
    group: usize,
    codes: Vec<i8>,
    groups: Vec<Group>,
}

/// A group of weights: where its grid is, and Adam's moments.
#[derive(Clone, Copy)]
struct Group {
    /// `z_h`, and the step of the codes, `256 unit`.
    stored: Affine,
    /// `a` and `b`.
    grid: [f32; 2],
    /// Of the gradients at these, and of their squares.
    moments: [[f32; 2]; 2],
}

impl Group {
    /// What codes stand for.
    fn line(&self) -> Affine {
        let [scale, offset] = self.grid.map(|value| value / NarrowGrid::STEPS);
        let Affine { scale: step, offset: zero } = self.stored;
        Affine { scale: step * (1.0 + scale), offset: zero + step * offset }
    }

    /// A step of Adam (arXiv:1412.6980), with decays of 0.9 and 0.99.
    fn step(&mut self, gradient: [f32; 2], rate: f32, step: i32) {
        const DECAYS: [f32; 2] = [0.9, 0.99];
        for (at, gradient) in gradient.into_iter().enumerate() {
            for (moment, value) in [gradient, gradient * gradient].into_iter().enumerate() {
                let old = &mut self.moments[moment][at];
                *old = DECAYS[moment] * *old + (1.0 - DECAYS[moment]) * value;
            }
            let [mean, square] =
                [0, 1].map(|moment| self.moments[moment][at] / (1.0 - DECAYS[moment].powi(step + 1)));
            if square > 0.0 {
                let most = f32::from(i8::MAX);
                self.grid[at] = (self.grid[at] - rate * mean / square.sqrt()).clamp(-most - 1.0, most);
            }
        }
    }
}

impl Tuned {
    /// `None` if the weight was not made for this width.
    fn new(id: ParamId, name: String, weight: &NestedWeight, bits: BitWidth) -> Option<Self> {
        let codes = weight.codes(bits)?.into_owned();
        let narrow = weight.narrow_grids(bits)?;
        let step = f32::from(1u16 << (STORED.bits() - bits.bits()));
        let groups = weight.affine(STORED)?.into_iter().zip(narrow).map(|(stored, grid)| Group {
            stored: Affine { scale: stored.scale * step, ..stored },
            grid: [grid.scale, grid.offset].map(f32::from),
            moments: [[0.0; 2]; 2],
        });
        Some(Self {
            id,
            name,
            shape: weight.shape(),
            group: weight.group().get(),
            codes,
            groups: groups.collect(),
        })
    }

    /// Weights, codes or gradients of each group, and how they lie: `[outputs, groups]` of up to `group`.
    fn of_groups<'a, T: Sync>(
        &self, values: &'a [T],
    ) -> impl IndexedParallelIterator<Item = std::slice::Chunks<'a, T>> {
        let (inputs, group) = (self.shape[1].max(1), self.group);
        values.par_chunks(inputs).map(move |row| row.chunks(group))
    }

    /// The weights, with gradients.
    fn leaf(&self, device: &Device) -> Tensor<2> {
        let mut values = vec![0.0; self.codes.len()];
        let inputs = self.shape[1].max(1);
        let groups = self.groups.par_chunks(inputs.div_ceil(self.group));
        let rows = values.par_chunks_mut(inputs).zip(self.of_groups(&self.codes)).zip(groups);
        rows.for_each(|((values, codes), groups)| {
            for ((values, codes), group) in values.chunks_mut(self.group).zip(codes).zip(groups) {
                let line = group.line();
                values.iter_mut().zip(codes).for_each(|(value, &code)| *value = line.value(code.into()));
            }
        });
        Tensor::<2>::from_data(TensorData::new(values, self.shape), device).autodiff().require_grad()
    }

    /// A step against the gradient of the weights.
    fn step(&mut self, gradient: &[f32], rate: f32, step: usize) {
        let mut groups = std::mem::take(&mut self.groups);
        let of_row = self.shape[1].div_ceil(self.group).max(1);
        let rows =
            groups.par_chunks_mut(of_row).zip(self.of_groups(gradient)).zip(self.of_groups(&self.codes));
        rows.for_each(|((groups, gradients), codes)| {
            for ((group, gradients), codes) in groups.iter_mut().zip(gradients).zip(codes) {
                let of_scale: f32 = gradients.iter().zip(codes).map(|(g, &q)| g * f32::from(q)).sum();
                let unit = group.stored.scale / NarrowGrid::STEPS;
                group.step([unit * of_scale, unit * gradients.iter().sum::<f32>()], rate, step as i32);
            }
        });
        self.groups = groups;
    }

    /// The nearest grids that can be stored.
    fn grids(&self) -> Vec<NarrowGrid> {
        let grid = |group: &Group| {
            let [scale, offset] = group.grid.map(|value| value.round() as i8);
            NarrowGrid { scale, offset }
        };
        self.groups.iter().map(grid).collect()
    }
}

/// Computes in floats, with other weights of some linear layers.
struct Student<'a> {
    tensors: Tensors<'a>,
    weights: &'a HashMap<ParamId, Tensor<2>>,
}

impl Executor for Student<'_> {
    type Value = Value;

    tensors_do!(tensors: conv2d, rms_norm, embedding, constant, op);

    fn linear(&mut self, x: Value, layer: &QuantLinear) -> Value {
        match (x, self.weights.get(&layer.weight_id())) {
            (Value::Rows(x), Some(weight)) => Value::Rows(layer.forward_with(x, weight.clone())),
            (x, _) => self.tensors.linear(x, layer),
        }
    }
}
