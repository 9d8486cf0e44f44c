//! [`distill`]: a calibrated network, trained on inputs without labels to give what its float network gives.

use super::calibrated::{CalibratedModel, LayerTensors};
use super::tuning::schedule;
use crate::artifact::{Artifact, ArtifactError, Described, SavedModel};
use crate::config::task::CLASSIFY;
use crate::data::Input;
use crate::nn::quantizers::host;
use crate::nn::{self, Model, Pass, Tensors, Value};
use crate::training::Adam;
use burn::module::{Module, Param, ParamGroup};
use burn::optim::lr_scheduler::constant::ConstantLr;
use burn::optim::lr_scheduler::module_lr_scheduler::{ModuleLearningRate, ModuleLrScheduler};
use burn::optim::{GradientsAccumulator, GradientsParams, ModuleOptimizer};
use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{Device, Tensor, TensorData};
use dr_precision::{BitWidth, Precision};
use dr_runtime::file::{CalibratedError, CalibratedLayer, CalibratedPass, STORED};
use dr_runtime::graph::GraphError;
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use thiserror::Error;

/// How [`distill`] trains.
#[derive(Clone, Debug, PartialEq)]
pub struct DistillationOptions {
    /// Times that all inputs are seen.
    pub epochs: usize,
    /// Inputs in a step.
    pub batch_size: usize,
    /// The largest step of a weight's stored code, as a part of half of the codes' range.
    pub weight_rate: f64,
    /// The largest step of scales, as a part of them, and of offsets, biases and zero points, as a part of what they are added to.
    pub scale_rate: f64,
    /// Decides the order of inputs.
    pub seed: u64,
}

impl Default for DistillationOptions {
    fn default() -> Self {
        Self { epochs: 10, batch_size: 16, weight_rate: 1e-4, scale_rate: 1e-4, seed: 1 }
    }
}

/// How far [`distill`] is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DistillationProgress<'a> {
    /// A step was taken.
    Step {
        /// Steps so far.
        done: usize,
        /// All.
        of: usize,
        /// The mean loss of its inputs over the precisions, each as a part of what it is at the start.
        loss: f64,
    },
    /// All inputs were seen once more.
    Epoch {
        /// Epochs so far; 0 at the start.
        done: usize,
        /// The loss of the inputs that are held out, at each precision.
        held_out: &'a [f64],
    },
}

/// What [`distill`] makes.
#[derive(Clone, Debug)]
pub struct Distilled {
    /// The network.
    pub artifact: Artifact,
    /// The epoch that its codes are of: the one with the least loss of the inputs that are held out; 0 if nothing is better than the start.
    pub epoch: usize,
    /// The loss of the inputs that are held out, at each precision, at the start.
    pub before: Vec<f64>,
    /// The same at the end.
    pub after: Vec<f64>,
    /// A loss was not finite: training stopped there.
    pub diverged: bool,
}

/// Why a network cannot be trained without labels.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DistillationError {
    /// Too few inputs.
    #[error("{0} inputs: expected at least 2, one to learn from and one to choose the best epoch by")]
    Inputs(usize),
    /// An operation that gradients cannot pass.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// Nothing to train.
    #[error("a network without layers: expected some to train")]
    Layers,
    /// The networks.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// Numbers that cannot be stored.
    #[error("layer `{name}` has {error}")]
    Layer {
        /// The layer.
        name: String,
        /// Why.
        error: CalibratedError,
    },
}

/// Of so many inputs one is held out.
const HELD_OUT: usize = 5;

/// Trains what [`calibrate`](super::calibrate) made of a float network, `start`, at all of its precisions at once, so that what it gives comes near what the float network
/// gives, whatever that is: there are no labels.
///
/// # What is trained
/// One float for each stored code, rounded to it, of which the narrower codes follow by the shift of the file, with straight-through gradients; and for each precision scales,
/// offsets, biases, and the scales and zero points of inputs, these with LSQ's gradients. [`CalibratedModel`] computes the network, so the file that results computes what was
/// trained. The gradients of all precisions are added up, and Adam makes a step of them; its rate falls along a cosine.
///
/// # What is learned
/// At each precision, for each result of the network:
/// - rows of probabilities, and the logits of classifiers, have the Kullback-Leibler divergence from those of the float network, in nats a row;
/// - others have the squared error over the variance of what the float network gives.
///
/// Results add up. The gradients of each precision are divided by the root of its loss at the start, which makes all about as large. Every fifth input is held out. The
/// codes are those of the epoch with the least loss of these, in the mean over the precisions, each as a part of what it is at the start. What is of one precision alone is of that
/// epoch, of the precision's own best, or as at the start, whichever has the least loss with these codes.
/// `progress` may stop the training; the steps until then count as an epoch.
///
/// # Errors
/// A network of another kind than a calibrated one, a teacher that does not compute the same, too few inputs, operations without gradients.
pub fn distill(
    float: &Artifact, start: &Artifact, inputs: Vec<Value>, options: &DistillationOptions, device: &Device,
    mut progress: impl FnMut(DistillationProgress<'_>) -> ControlFlow<()>,
) -> Result<Distilled, DistillationError> {
    let graph = start.graph()?;
    graph.check_gradients()?;
    if graph.layers().is_empty() {
        return Err(DistillationError::Layers);
    }
    let items: Vec<Value> = inputs.into_iter().flat_map(separate).collect();
    if items.len() < 2 {
        return Err(DistillationError::Inputs(items.len()));
    }
    let rhythm = HELD_OUT.min(items.len());
    let (held_out, mut learned): (Vec<_>, Vec<_>) =
        items.into_iter().enumerate().partition(|(at, _)| (at + 1) % rhythm == 0);
    let held_out: Vec<Value> = held_out.into_iter().map(|(_, item)| item).collect();
    let device = device.clone().inner();
    let mut school = School {
        names: graph.layers().iter().map(|layer| layer.name.clone()).collect(),
        teacher: float.network(&device)?,
        model: start.network(&device)?,
        kinds: vec![],
        start: vec![1.0; start.description.precisions.len()],
    };
    let examples = held_out.chunks(options.batch_size.max(1)).flat_map(together);
    let examples: Vec<Example> = examples.map(|input| (school.expected(input.clone()), input)).collect();
    school.kinds = school.kinds(&examples, start.description.check_task(CLASSIFY).is_ok());

    let mut student = Student::new(start, &device)?;
    let before = school.losses(&student, &examples);
    school.start = before.iter().map(|loss| loss.max(LEAST_LOSS)).collect();
    let mut best = Best { epoch: 0, mean: school.mean(&before), student: student.clone() };
    // Of each precision by itself.
    let mut bests: Vec<(f64, Student)> = before.iter().map(|&loss| (loss, student.clone())).collect();
    let first = student.clone();
    let (steps, mut diverged) = (learned.len().div_ceil(options.batch_size.max(1)), false);
    let mut flow = progress(DistillationProgress::Epoch { done: 0, held_out: &before });
    let mut optimizer = ModuleOptimizer::from(Adam { betas: [0.9, 0.99], ..Adam::default() });
    let mut rng = StdRng::seed_from_u64(options.seed);
    for epoch in 0..options.epochs {
        if flow.is_break() {
            break;
        }
        learned.shuffle(&mut rng);
        for (at, batch) in learned.chunks(options.batch_size.max(1)).enumerate() {
            let batch: Vec<Value> = batch.iter().map(|(_, item)| item.clone()).collect();
            let (loss, gradients) = school.step(&student, &batch);
            diverged = !loss.is_finite();
            if diverged {
                break;
            }
            let (done, of) = (epoch * steps + at, options.epochs * steps);
            let rates = options.rates(f64::from(schedule(done, of)), &school.start);
            student = optimizer.step(rates, student, gradients);
            flow = progress(DistillationProgress::Step { done: done + 1, of, loss });
            if flow.is_break() {
                break;
            }
        }
        let losses = school.losses(&student, &examples);
        let mean = school.mean(&losses);
        if mean < best.mean {
            best = Best { epoch: epoch + 1, mean, student: student.clone() };
        }
        for (best, &loss) in bests.iter_mut().zip(&losses) {
            if loss < best.0 {
                *best = (loss, student.clone());
            }
        }
        let told = progress(DistillationProgress::Epoch { done: epoch + 1, held_out: &losses });
        if told.is_break() || diverged {
            break;
        }
    }
    if best.epoch == 0 {
        return Ok(Distilled { artifact: start.clone(), epoch: 0, after: before.clone(), before, diverged });
    }
    let mut after = school.losses(&best.student, &examples);
    for (precision, (_, own)) in bests.iter().enumerate() {
        for other in [own, &first] {
            let student = best.student.clone().with_passes(other, precision);
            let loss = school.loss_at(&student.valid(), precision, &examples);
            if loss < after[precision] {
                (after[precision], best.student) = (loss, student);
            }
        }
    }
    Ok(Distilled { artifact: best.student.artifact(start)?, epoch: best.epoch, before, after, diverged })
}

/// What a loss is taken to be at least, where others are parts of it.
const LEAST_LOSS: f64 = 1e-6;

/// What the teacher makes of an input, as rows, and the input.
type Example = (Vec<Tensor<2>>, Value);

/// The best epoch so far.
struct Best {
    epoch: usize,
    mean: f64,
    student: Student,
}

impl DistillationOptions {
    /// The learning rates of a step, at this part of the largest ones. What is of one precision changes in proportion to the root of its loss at the start, the size of the
    /// errors there: a precision that is nearly lossless has little to gain, and much to lose.
    fn rates(&self, part: f64, start: &[f64]) -> ModuleLearningRate {
        // Burn's rates are above 0.
        let rate = |largest: f64| ConstantLr::new((largest * part).max(f64::from(f32::MIN_POSITIVE)));
        let codes = ParamGroup::from_any_predicates(vec!["codes"]);
        let most = start.iter().copied().fold(LEAST_LOSS, f64::max);
        let rates = ModuleLrScheduler::new(rate(self.scale_rate)).with_group(codes, rate(self.weight_rate));
        let of_pass = |rates: ModuleLrScheduler, (number, loss): (usize, &f64)| {
            let pass = ParamGroup::from_any_predicates(vec![format!("passes.{number}.")]);
            rates.with_group(pass, rate(self.scale_rate * (loss / most).sqrt()))
        };
        start.iter().enumerate().fold(rates, of_pass).step()
    }
}

/// Inputs that can be put [together] in other ways: images one by one. Arrays stay, as their number may be part of the network.
fn separate(input: Value) -> Vec<Value> {
    match input {
        Value::Images(_) => input.split(1),
        other => vec![other],
    }
}

/// Images of one size as one value; all others as they are.
fn together(items: &[Value]) -> Vec<Value> {
    let mut sizes: Vec<([usize; 3], Vec<Tensor<4>>)> = vec![];
    let mut values = vec![];
    for item in items {
        let Value::Images(image) = item else {
            values.push(item.clone());
            continue;
        };
        let [_, channels, rows, columns] = image.dims();
        let size = [channels, rows, columns];
        match sizes.iter_mut().find(|(known, _)| *known == size) {
            Some((_, images)) => images.push(image.clone().channels_first()),
            None => sizes.push((size, vec![image.clone().channels_first()])),
        }
    }
    values.extend(sizes.into_iter().map(|(_, images)| Value::from(Tensor::cat(images, 0))));
    values
}

/// What a result of a network is, and so what its loss is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ResultKind {
    /// Rows of probabilities of all that there is.
    Probabilities,
    /// Rows of their logarithms, each row but for a constant.
    Logits,
    /// Any other.
    Numbers,
}

impl ResultKind {
    /// How far results are from those of the teacher.
    fn loss(self, expected: Tensor<2>, found: Tensor<2>) -> Tensor<1> {
        /// Probabilities below are taken to be this.
        const LEAST: f32 = 1e-12;
        let divergence =
            |p: Tensor<2>, log_p: Tensor<2>, log_q: Tensor<2>| (p * (log_p - log_q)).sum_dim(1).mean();
        match self {
            Self::Probabilities => {
                let log = |p: Tensor<2>| p.clamp_min(LEAST).log();
                divergence(expected.clone(), log(expected), log(found))
            }
            Self::Logits => {
                divergence(softmax(expected.clone(), 1), log_softmax(expected, 1), log_softmax(found, 1))
            }
            Self::Numbers => {
                let mean = expected.clone().mean().unsqueeze();
                let variance = (expected.clone() - mean).powi_scalar(2).mean().clamp_min(LEAST);
                (found - expected).powi_scalar(2).mean() / variance
            }
        }
    }
}

/// A result as rows along its last axis.
fn rows(value: Value) -> Tensor<2> {
    match value {
        Value::Images(images) => {
            let [batch, channels, rows, columns] = images.dims();
            images.channels_first().reshape([batch * channels * rows, columns])
        }
        other => nn::rows(other),
    }
}

/// The teacher, and what the student is compared by.
struct School {
    /// Of the layers.
    names: Vec<String>,
    /// In floats.
    teacher: Model,
    /// What the student's tensors are put into.
    model: Model,
    /// Of each result.
    kinds: Vec<ResultKind>,
    /// The loss at each precision at the start.
    start: Vec<f64>,
}

impl School {
    /// What the teacher makes of an input.
    fn expected(&self, input: Value) -> Vec<Tensor<2>> {
        let pass = Pass::float();
        self.teacher.results(&mut Tensors::new(&pass), input).into_iter().map(rows).collect()
    }

    /// What the results are, by what they are for some inputs.
    fn kinds(&self, examples: &[Example], classifies: bool) -> Vec<ResultKind> {
        let kind = |at: usize| {
            if examples.iter().all(|(expected, _)| are_distributions(&expected[at])) {
                ResultKind::Probabilities
            } else if classifies {
                ResultKind::Logits
            } else {
                ResultKind::Numbers
            }
        };
        (0..self.teacher.graph().results().len()).map(kind).collect()
    }

    /// How far what the student makes of an input at a precision, by its number, is from what the teacher makes of it.
    fn loss(&self, student: &Student, precision: usize, input: &Value, expected: &[Tensor<2>]) -> Tensor<1> {
        let model = CalibratedModel::of(self.model.clone(), &student.tensors(&self.names, precision));
        let found = model.results(input.clone()).into_iter().map(rows);
        let results = self.kinds.iter().zip(expected).zip(found);
        let losses = results.map(|((kind, expected), found)| kind.loss(expected.clone(), found));
        losses.reduce(|sum, loss| sum + loss).expect("a network has a result")
    }

    /// The mean over inputs at each precision.
    fn losses(&self, student: &Student, examples: &[Example]) -> Vec<f64> {
        let student = student.valid();
        (0..self.start.len()).map(|precision| self.loss_at(&student, precision, examples)).collect()
    }

    /// The mean over inputs at one precision, by its number.
    fn loss_at(&self, student: &Student, precision: usize, examples: &[Example]) -> f64 {
        let all = examples.iter().map(|(_, input)| input.items()).sum::<usize>().max(1);
        let loss = |(expected, input): &Example| {
            let loss = self.loss(student, precision, input, expected);
            f64::from(loss.into_scalar::<f32>()) * input.items() as f64 / all as f64
        };
        examples.iter().map(loss).sum()
    }

    /// The mean over the precisions, each as a part of what it is at the start.
    fn mean(&self, losses: &[f64]) -> f64 {
        losses.iter().zip(&self.start).map(|(loss, start)| loss / start).sum::<f64>() / losses.len() as f64
    }

    /// The mean loss of some inputs, and gradients: those of each precision are divided by the root of its loss at the start, as gradients grow with the root of a loss.
    fn step(&self, student: &Student, inputs: &[Value]) -> (f64, GradientsParams) {
        let inputs = together(inputs);
        let all = inputs.iter().map(Input::items).sum::<usize>().max(1) * self.start.len();
        let (mut sum, mut gradients) = (0.0, GradientsAccumulator::new());
        for input in inputs {
            let expected = self.expected(input.clone());
            for (precision, start) in self.start.iter().enumerate() {
                let loss = self.loss(student, precision, &input, &expected);
                let part = input.items() as f64 / all as f64;
                sum += part * f64::from(loss.clone().into_scalar::<f32>()) / start;
                let loss = loss * (part / start.sqrt());
                gradients.accumulate(student, GradientsParams::from_grads(loss.backward(), student));
            }
        }
        (sum, gradients.grads())
    }
}

/// Whether all rows are probabilities of all that there is.
fn are_distributions(rows: &Tensor<2>) -> bool {
    let [_, classes] = rows.dims();
    let is_one = |row: &[f32]| {
        row.iter().all(|&p| p >= 0.0) && (row.iter().map(|&p| f64::from(p)).sum::<f64>() - 1.0).abs() < 1e-2
    };
    classes > 1 && host(rows).chunks(classes).all(is_one)
}

/// What is trained.
#[derive(Module, Debug)]
struct Student {
    /// None of a layer that stays in floats.
    layers: Vec<Option<StudentLayer>>,
}

/// A layer at all precisions.
#[derive(Module, Debug)]
struct StudentLayer {
    /// `[outputs, inputs]`: stored codes before they are rounded, as parts of half of their range.
    codes: Param<Tensor<2>>,
    passes: Vec<StudentPass>,
}

/// A layer at one precision, in parts of [`Units`].
#[derive(Module, Debug)]
struct StudentPass {
    /// `[outputs]`: the logarithm of what the scale at the start is multiplied by.
    scale: Param<Tensor<1>>,
    /// `[outputs]`
    offset: Param<Tensor<1>>,
    /// `[outputs]`
    bias: Param<Tensor<1>>,
    /// `[1]`: the logarithm of what the scale of inputs at the start is multiplied by.
    input_scale: Param<Tensor<1>>,
    /// `[1]`
    zero_point: Param<Tensor<1>>,
    #[module(skip)]
    units: Units,
}

/// What parameters are multiplied by, so that steps of one size do for all.
#[derive(Clone, Debug)]
struct Units {
    widths: Precision,
    /// `[outputs]`: scales at the start.
    scale: Tensor<1>,
    /// `[outputs]`: what, added to all weights, changes outputs about as much as it is long beside the weights.
    offset: Tensor<1>,
    /// `[outputs]`: about how large outputs are.
    bias: Tensor<1>,
    /// `[1]`: the scale of inputs at the start.
    input_scale: Tensor<1>,
    /// `[1]`: the range of inputs.
    zero_point: Tensor<1>,
}

/// How large inputs usually are, as a part of their range.
const USUAL_INPUT: f32 = 0.125;

/// Half of the range of codes.
fn half(bits: BitWidth) -> f32 {
    f32::from(1u16 << (bits.bits() - 1))
}

impl StudentPass {
    /// A pass of a layer as it starts; zero points of what comes out of a ReLU stay.
    fn new(layer: &CalibratedLayer, pass: &CalibratedPass, after_relu: bool, device: &Device) -> Self {
        let row = |values: &[f32]| Tensor::<1>::from_data(TensorData::from(values), device);
        let training = |values: Tensor<1>| Param::from_tensor(values.autodiff());
        let weights = layer.dequantized(pass.precision).unwrap_or_default();
        let inputs = (weights.len() / pass.scale.len().max(1)).max(1);
        let lengths = weights.chunks(inputs).zip(&pass.scale[..]).map(|(row, scale)| {
            // Of an output without weights, a step of the code.
            row.iter().map(|weight| weight * weight).sum::<f32>().sqrt().max(*scale)
        });
        let lengths = row(&lengths.collect::<Vec<_>>());
        let [step, zero] = [pass.input[0], pass.input[1]];
        let range = step * pass.widths.activations.unsigned_max() as f32;
        let units = Units {
            widths: pass.widths,
            scale: row(&pass.scale),
            offset: lengths.clone() / inputs as f32,
            bias: lengths * (range * USUAL_INPUT),
            input_scale: row(&[step]),
            zero_point: row(&[range]),
        };
        Self {
            scale: training(units.scale.zeros_like()),
            offset: training(row(&pass.offset) / units.offset.clone()),
            bias: training(row(&pass.bias) / units.bias.clone()),
            input_scale: training(units.input_scale.zeros_like()),
            zero_point: training(row(&[zero / range])).set_require_grad(!after_relu),
            units,
        }
    }

    /// `[outputs]`: what a step of the code adds.
    fn scale(&self) -> Tensor<1> {
        self.scale.val().exp() * self.units.scale.clone()
    }

    /// `[outputs]`: what the code 0 stands for.
    fn offset(&self) -> Tensor<1> {
        self.offset.val() * self.units.offset.clone()
    }

    /// `[outputs]`
    fn bias(&self) -> Tensor<1> {
        self.bias.val() * self.units.bias.clone()
    }

    /// `[1]`: what a step of the code of inputs adds.
    fn input_scale(&self) -> Tensor<1> {
        self.input_scale.val().exp() * self.units.input_scale.clone()
    }

    /// `[1]`: what the code 0 of inputs stands for.
    fn zero_point(&self) -> Tensor<1> {
        self.zero_point.val() * self.units.zero_point.clone()
    }

    /// What the layer computes with, with the codes of this width.
    fn tensors(&self, codes: Tensor<2>) -> LayerTensors {
        let (scale, offset) = (self.scale().unsqueeze_dim::<2>(1), self.offset().unsqueeze_dim::<2>(1));
        LayerTensors {
            weight: (codes * scale + offset).reshape([-1]),
            bias: self.bias(),
            scale: self.input_scale(),
            zero_point: self.zero_point(),
            bits: self.units.widths.activations,
        }
    }

    /// What is stored.
    fn stored(&self, precision: Precision) -> CalibratedPass {
        CalibratedPass {
            precision,
            widths: self.units.widths,
            scale: host(&self.scale()).into(),
            offset: host(&self.offset()).into(),
            bias: host(&self.bias()).into(),
            input: [host(&self.input_scale()), host(&self.zero_point())].concat().into(),
        }
    }
}

impl StudentLayer {
    fn new(layer: &CalibratedLayer, after_relu: bool, device: &Device) -> Self {
        let codes =
            layer.stored_codes().iter().map(|&code| f32::from(code) / half(STORED)).collect::<Vec<_>>();
        let outputs = layer.shape().first().copied().unwrap_or(1);
        let shape = [outputs, codes.len() / outputs.max(1)];
        let codes = Tensor::<2>::from_data(TensorData::new(codes, shape), device);
        let passes = layer.passes().iter().map(|pass| StudentPass::new(layer, pass, after_relu, device));
        Self { codes: Param::from_tensor(codes.autodiff()), passes: passes.collect() }
    }

    /// `[outputs, inputs]`: the stored codes.
    fn stored(&self) -> Tensor<2> {
        let half = half(STORED);
        (self.codes.val() * half).round().clamp(-half, half - 1.0)
    }

    /// `[outputs, inputs]`: the codes of a width, rounded twice, with gradients as if they were not.
    fn codes(&self, bits: BitWidth) -> Tensor<2> {
        let (range, shift) = (half(bits), half(STORED) / half(bits));
        let codes = (self.stored() / shift).round().clamp_max(range - 1.0);
        let smooth = self.codes.val().clamp(-1.0, 1.0 - 1.0 / half(STORED)) * range;
        // The difference is exactly 0.
        codes.detach() + (smooth.clone() - smooth.detach())
    }
}

impl Student {
    fn new(start: &Artifact, device: &Device) -> Result<Self, ArtifactError> {
        let graph = start.graph()?;
        let layers = start.calibrated()?.into_iter().enumerate();
        let layer = |(at, layer): (usize, Option<CalibratedLayer>)| {
            layer.map(|layer| StudentLayer::new(&layer, graph.after_relu(at), device))
        };
        Ok(Self { layers: layers.map(layer).collect() })
    }

    /// The same codes, and what another student has of one precision, by its number.
    fn with_passes(mut self, other: &Self, precision: usize) -> Self {
        for (layer, other) in self.layers.iter_mut().flatten().zip(other.layers.iter().flatten()) {
            layer.passes[precision] = other.passes[precision].clone();
        }
        self
    }

    /// What the layers compute with at a precision, by its number.
    fn tensors(&self, names: &[String], precision: usize) -> BTreeMap<String, LayerTensors> {
        let tensors = |(name, layer): (&String, &Option<StudentLayer>)| {
            let layer = layer.as_ref()?;
            let pass = &layer.passes[precision];
            Some((name.clone(), pass.tensors(layer.codes(pass.units.widths.weights))))
        };
        names.iter().zip(&self.layers).filter_map(tensors).collect()
    }

    /// The file.
    fn artifact(&self, start: &Artifact) -> Result<Artifact, DistillationError> {
        let mut artifact = start.clone();
        let layers = start.graph()?.layers().iter().zip(start.calibrated()?).zip(&self.layers);
        for ((of, old), new) in layers {
            let (Some(old), Some(new)) = (old, new) else { continue };
            let passes = old.passes().iter().zip(&new.passes).map(|(old, new)| new.stored(old.precision));
            let codes = host(&new.stored()).into_iter().map(|code| code as i8).collect();
            let layer = CalibratedLayer::new(old.shape(), codes, passes.collect());
            let layer = layer.map_err(|error| DistillationError::Layer { name: of.name.clone(), error })?;
            artifact.tensors.extend(layer.tensors(&of.name));
        }
        Ok(artifact)
    }
}
