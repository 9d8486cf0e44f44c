//! One training step: every precision of the set, one update (arXiv:2502.01199).

use super::alrs;
use super::draws::Draws;
use super::metric::{PassOutput, StepOutput};
use crate::config::ComputeKind;
use crate::data::{Batch, Input, Target};
use crate::nn::{Assignment, Model, Pass, Value};
use crate::report::NumberFormat;
use crate::values::values;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use burn::optim::{GradientsAccumulator, GradientsParams, ModuleOptimizer};
use burn::tensor::{Tensor, activation::log_softmax, activation::softmax};
use burn::train::{InferenceStep, Interrupter, TrainOutput, TrainStep};
use dr_precision::Precision;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// By how much of itself a scale can change in one step.
const LARGEST_CHANGE: f32 = 0.05;

/// What a phase trains for. Shared by all copies of a [`Trainee`].
pub struct Objective<I> {
    /// The passes of each step, highest precision first.
    pub passes: Vec<NumberFormat>,
    /// What mixed passes draw from.
    pub draws: Option<Box<dyn Draws>>,
    /// Learning rate of scales divided by that of weights.
    pub scale_rate: f64,
    /// Adaptive learning rate scaling.
    pub alrs: bool,
    /// How much of a moving average of the network stays in each step of the optimizer: weights, scales and running statistics. It starts
    /// as the network, and is what is validated and what the phase ends with. 0 is no average.
    pub ema: f64,
    /// What convolutions and linear layers multiply.
    pub compute: ComputeKind,
    /// Multiply codes instead of fake-quantized floats in the forward pass, where that is possible.
    pub integers: bool,
    /// Whether each pass has items of its own: the first of so many equal parts of a batch is the first pass's. Else all
    /// see the whole batch.
    pub separate_batches: bool,
    /// Whose logits the passes learn from besides the labels.
    pub distill: Distillation<I>,
    /// Batches whose mean gradient makes a step of the optimizer, on all devices.
    pub(super) accumulate: usize,
    /// Set when a loss was not finite; the step is then not taken.
    pub(super) diverged: AtomicBool,
    pub(super) interrupter: Interrupter,
    /// Threads that share a step's passes, on a CPU.
    workers: Option<ThreadPool>,
}

impl<I> Objective<I> {
    /// For `passes` in each step, with one learning rate for everything and labels only.
    #[must_use]
    pub fn new(passes: Vec<NumberFormat>) -> Self {
        Self {
            passes,
            draws: None,
            scale_rate: 1.0,
            alrs: false,
            ema: 0.0,
            compute: ComputeKind::default(),
            integers: false,
            separate_batches: false,
            distill: Distillation::Off,
            accumulate: 1,
            diverged: AtomicBool::new(false),
            interrupter: Interrupter::default(),
            workers: None,
        }
    }

    /// The passes of a step, mixed ones with the next of `drawn`; without one, a mixed pass is left out.
    fn passes<'a>(&self, drawn: &'a [Assignment]) -> Vec<Pass<'a>> {
        let mut drawn = drawn.iter();
        let pass = |&format: &NumberFormat| {
            let pass = match format {
                NumberFormat::Float => Pass::float(),
                NumberFormat::Quantized(precision) => Pass::at(precision),
                NumberFormat::Mixed => Pass::mixed(drawn.next()?),
            };
            let pass = pass.computing_in(self.compute);
            Some(if self.integers { pass.in_integers() } else { pass })
        };
        self.passes.iter().filter_map(pass).collect()
    }

    /// How many batches a step takes.
    pub(super) fn batches(&self) -> usize {
        if self.separate_batches { self.passes.len().max(1) } else { 1 }
    }

    /// The mixtures of the next step.
    fn draw(&self) -> Vec<Vec<Precision>> {
        let drawn = self.draws.as_ref().map_or(Ok(vec![]), |draws| draws.next());
        drawn.unwrap_or_else(|error| {
            self.interrupter.stop(Some(&error.to_string()));
            vec![]
        })
    }

    /// Runs the passes of a step side by side, on as many threads as there are processors. For a CPU, whose small tensor
    /// operations leave much of it idle; the results are the same.
    ///
    /// Not for passes that depend on each other: those with a shared BatchNorm or with [`Distillation::Highest`].
    #[must_use]
    pub fn side_by_side(mut self) -> Self {
        let threads = rayon::current_num_threads().min(self.passes.len());
        // Without threads there are none to share the passes: they then run one after the other.
        self.workers =
            (threads > 1).then(|| ThreadPoolBuilder::new().num_threads(threads).build().ok()).flatten();
        self
    }
}

/// Where soft labels come from.
#[derive(Clone)]
pub enum Distillation<I> {
    /// Labels only.
    Off,
    /// The logits of the step's first pass, the highest precision.
    Highest,
    /// The logits of another network, given the input.
    Teacher(Arc<dyn Fn(I) -> Tensor<2> + Send + Sync>),
}

impl<I: Input> Distillation<I> {
    /// The logits of another network, if it is one to learn from.
    fn teacher(&self, input: &I) -> Option<Tensor<2>> {
        match self {
            Self::Teacher(logits) => Some(Tensor::from_inner(logits(input.clone().inner()))),
            Self::Off | Self::Highest => None,
        }
    }
}

impl<I> fmt::Debug for Objective<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Objective")
            .field("passes", &self.passes)
            .field("alrs", &self.alrs)
            .finish_non_exhaustive()
    }
}

/// A model with what it is trained for, on batches of inputs `I` and targets `T`.
#[derive(Module, Debug)]
pub struct Trainee<I: Input, T: Target> {
    model: Model,
    /// The moving average of the network, if there is one.
    average: Option<Model>,
    #[module(skip)]
    objective: Arc<Objective<I>>,
    #[module(skip)]
    target: PhantomData<T>,
}

impl<I: Input, T: Target> Trainee<I, T> {
    /// A model to be trained for `objective`.
    pub fn new(model: Model, objective: Objective<I>) -> Self {
        let average = (objective.ema > 0.0).then(|| model.valid().train().map(&mut Fresh));
        Self { model, average, objective: Arc::new(objective), target: PhantomData }
    }

    /// The model, or its average if there is one.
    pub fn into_model(self) -> Model {
        self.average.unwrap_or(self.model)
    }

    pub(super) fn objective(&self) -> &Arc<Objective<I>> {
        &self.objective
    }
}

impl<I: Input + Into<Value>, T: Target> Trainee<I, T> {
    /// The precisions of the layers, from input to output, for this network: a checkpoint brings other identities.
    fn assign(&self, precisions: &[Precision]) -> Assignment {
        let mut model = self.model.clone();
        let layers = model.layers().into_iter().map(|layer| layer.layer.weight_id());
        layers.zip(precisions.iter().copied()).collect()
    }

    /// Forward and backward of one pass.
    fn pass(&self, pass: &Pass, batch: &Batch<I, T>, teacher: Option<&Tensor<2>>) -> PassResult {
        let logits = self.model.forward(batch.input.clone(), pass);
        let loss = self.loss(logits.clone(), batch, teacher);
        let part = loss.clone() / self.objective.accumulate.max(1) as f64;
        let grads = GradientsParams::from_grads(part.backward(), self);
        PassResult { loss: loss.detach(), logits: logits.detach(), grads }
    }

    /// Losses and outputs of the passes of a step. Their gradients go to `sum`.
    fn one_by_one(
        &self, passes: &[Pass], batches: &[Batch<I, T>], sum: &Sum<Self>,
    ) -> Vec<(Tensor<1>, PassOutput)> {
        let mut highest = None;
        let mut outputs = Vec::with_capacity(passes.len());
        for (number, (pass, batch)) in passes.iter().zip(batches.iter().cycle()).enumerate() {
            let teacher = match &self.objective.distill {
                Distillation::Highest => highest.clone(),
                other => other.teacher(&batch.input),
            };
            let PassResult { loss, logits, grads } = self.pass(pass, batch, teacher.as_ref());
            sum.add(self, number, grads);
            highest = highest.or_else(|| Some(logits.clone()));
            outputs.push((loss.clone(), PassOutput::new(loss, logits, &batch.labels)));
        }
        outputs
    }

    /// The same, two or more at a time.
    fn side_by_side(
        &self, passes: &[Pass], batches: &[Batch<I, T>], sum: &Sum<Self>, workers: &ThreadPool,
    ) -> Vec<(Tensor<1>, PassOutput)> {
        let count = workers.current_num_threads();
        // Pass `i` always runs on the same thread: BatchNorm keeps its statistics by thread.
        let mine = |thread: usize| {
            let passes = passes.iter().zip(batches.iter().cycle()).enumerate().skip(thread).step_by(count);
            let one = |(number, (pass, batch)): (usize, (&Pass, &Batch<I, T>))| {
                let teacher = self.objective.distill.teacher(&batch.input);
                let copy = Self { average: None, ..self.clone() }.map(&mut Leaves);
                let PassResult { loss, logits, grads } = copy.pass(pass, batch, teacher.as_ref());
                sum.add(self, number, grads);
                (loss.clone(), PassOutput::new(loss, logits, &batch.labels))
            };
            passes.map(one).collect::<Vec<_>>()
        };
        let by_thread = workers.broadcast(|context| mine(context.index()));
        let mut by_thread: Vec<_> = by_thread.into_iter().map(Vec::into_iter).collect();
        (0..passes.len()).filter_map(|pass| by_thread[pass % count].next()).collect()
    }

    /// The loss of what the network makes: that of the target, and with `teacher`'s logits half of that
    /// and half of the cross entropy with the teacher's distribution.
    fn loss(&self, logits: Tensor<2>, batch: &Batch<I, T>, teacher: Option<&Tensor<2>>) -> Tensor<1> {
        let labels = batch.labels.loss(logits.clone());
        match teacher {
            None => labels,
            Some(teacher) => {
                let soft = softmax(teacher.clone(), 1) * log_softmax(logits, 1);
                labels * 0.5 - soft.sum_dim(1).mean() * 0.5
            }
        }
    }
}

/// What one pass over a batch gives. Its graph is gone.
struct PassResult {
    loss: Tensor<1>,
    logits: Tensor<2>,
    grads: GradientsParams,
}

/// The sum of the gradients of passes, which are added as they come, in the order of the passes: so few of them are there at a time.
struct Sum<M>(Mutex<Added<M>>);

struct Added<M> {
    sum: GradientsAccumulator<M>,
    /// The pass that is added next.
    next: usize,
    /// Those of passes that were done before it.
    early: BTreeMap<usize, GradientsParams>,
}

impl<M: Module> Sum<M> {
    fn new() -> Self {
        Self(Mutex::new(Added { sum: GradientsAccumulator::new(), next: 0, early: BTreeMap::new() }))
    }

    /// Adds those of a pass, by its number.
    fn add(&self, module: &M, pass: usize, grads: GradientsParams) {
        let mut added = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Added { sum, next, early } = &mut *added;
        early.insert(pass, grads);
        while let Some(grads) = early.remove(next) {
            sum.accumulate(module, grads);
            *next += 1;
        }
    }

    fn total(self) -> GradientsParams {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner).sum.grads()
    }
}

impl<I: Input + Into<Value>, T: Target> TrainStep for Trainee<I, T> {
    type Input = Batch<I, T>;
    type Output = StepOutput;

    fn step(&self, batch: Batch<I, T>) -> TrainOutput<StepOutput> {
        let objective = &self.objective;
        let drawn: Vec<_> = objective.draw().iter().map(|drawn| self.assign(drawn)).collect();
        let passes = objective.passes(&drawn);
        let batches = batch.split(objective.batches());
        let sum = Sum::new();
        let results = match &objective.workers {
            None => self.one_by_one(&passes, &batches, &sum),
            Some(workers) => self.side_by_side(&passes, &batches, &sum, workers),
        };
        let (losses, passes): (Vec<_>, Vec<_>) = results.into_iter().unzip();
        // The only wait for the device in a step.
        let finite = |losses| {
            let losses: Vec<f32> = values(Tensor::cat(losses, 0).into_data());
            losses.into_iter().all(f32::is_finite)
        };
        if !losses.is_empty() && !finite(losses) {
            objective.diverged.store(true, Ordering::Relaxed);
            objective.interrupter.stop(Some("the loss is not finite"));
            return TrainOutput { grads: GradientsParams::new(), item: StepOutput::default() };
        }
        TrainOutput { grads: sum.total(), item: StepOutput { passes } }
    }

    fn optimize(
        mut self, optim: &mut ModuleOptimizer, rates: ModuleLearningRate, grads: GradientsParams,
    ) -> Self {
        let weights = rates.base();
        let (scale_rate, alrs) = (self.objective.scale_rate, self.objective.alrs);
        let learned = alrs::learned(&mut self.model);
        let rates = alrs::learning_rates(&learned, &grads, weights, weights * scale_rate, alrs);
        let layers = self.model.layers().into_iter();
        let before = layers.flat_map(|layer| layer.layer.quantizers().scales_by_id()).collect();
        let mut stepped = optim.step(rates, self, grads).map(&mut BoundedScales(before));
        if let Some(average) = stepped.average.take() {
            let mut values = Values::default();
            // Its running statistics are whole.
            stepped.model.valid().visit(&mut values);
            stepped.average = Some(average.map(&mut Averaged { values, decay: stepped.objective.ema }));
        }
        stepped
    }
}

impl<I: Input + Into<Value>, T: Target> InferenceStep for Trainee<I, T> {
    type Input = Batch<I, T>;
    type Output = StepOutput;

    fn step(&self, batch: Batch<I, T>) -> StepOutput {
        let model = self.average.as_ref().unwrap_or(&self.model);
        let one = |pass: &Pass| {
            let logits = model.forward(batch.input.clone(), pass);
            let loss = self.loss(logits.clone(), &batch, None);
            PassOutput::new(loss, logits, &batch.labels)
        };
        // Mixtures have no running statistics to be validated with.
        let passes = self.objective.passes(&[]);
        StepOutput { passes: passes.iter().map(one).collect() }
    }
}

/// Makes each parameter a leaf of its own with the same value, so that the graphs of passes stay apart: Burn computes
/// gradients in one graph at a time. `Module::fork` would do that by an operation on the old leaf, which stays in its graph.
struct Leaves;

impl ModuleMapper for Leaves {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, tensor, mapper) = param.consume();
        let tracked = tensor.is_require_grad();
        let tensor = Tensor::from_inner(tensor.inner()).set_require_grad(tracked);
        Param::from_mapped_value(id, tensor, mapper)
    }
}

/// Lets no scale change by more than [`LARGEST_CHANGE`] in a step, which also keeps them above zero.
///
/// The stored scale is the smallest, some thousandths, and its gradient is not: a step can go past zero. A channel whose
/// scale came out of that at next to nothing has all codes at their ends and outputs that BatchNorm blows up, whose
/// gradients then throw the scale, and the weights, far off for good.
///
/// With the scales before the step.
struct BoundedScales(HashMap<ParamId, Tensor<1>>);

impl ModuleMapper for BoundedScales {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(before) = self.0.remove(&param.id) else { return param };
        let (id, tensor, mapper) = param.consume();
        let tracked = tensor.is_require_grad();
        let before = before.reshape(tensor.dims());
        let (low, high) = (before.clone() * (1.0 - LARGEST_CHANGE), before * (1.0 + LARGEST_CHANGE));
        let tensor = tensor.inner().max_pair(low).min_pair(high);
        let tensor = Tensor::from_inner(tensor).set_require_grad(tracked);
        Param::from_mapped_value(id, tensor, mapper)
    }
}

/// Gives parameters identities of their own.
struct Fresh;

impl ModuleMapper for Fresh {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (_, tensor, mapper) = param.consume();
        Param::from_mapped_value(ParamId::new(), tensor, mapper)
    }
}

/// All values of a network in evaluation mode, each `[n]`, in order.
#[derive(Default)]
struct Values(VecDeque<Tensor<1>>);

impl ModuleVisitor for Values {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0.push_back(param.val().reshape([-1]));
    }
}

/// Moves each value of an average towards that of the network.
struct Averaged {
    values: Values,
    decay: f64,
}

impl ModuleMapper for Averaged {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(new) = self.values.0.pop_front() else { return param };
        let (id, tensor, mapper) = param.consume();
        let tracked = tensor.is_require_grad();
        // Running statistics of several devices may be on any of them.
        let old = tensor.inner().to_device(&new.device());
        let new = new.reshape(old.dims());
        let tensor =
            Tensor::from_inner(old * self.decay + new * (1.0 - self.decay)).set_require_grad(tracked);
        Param::from_mapped_value(id, tensor, mapper)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};

    #[test]
    fn a_step_changes_scales_by_a_twentieth_at_most() {
        let device = Device::flex().autodiff();
        let values = |values: [f32; 4]| Tensor::<1>::from_data(TensorData::from(values), &device);
        let param = Param::from_tensor(values([-3.0, 0.01, 0.00204, 7.0]));
        let before = values([0.002; 4]).inner();
        let bounded = Module::map(param.clone(), &mut BoundedScales(HashMap::from([(param.id, before)])));
        assert_eq!(bounded.id, param.id);
        assert!(bounded.val().is_require_grad());
        let found: Vec<f32> = bounded.val().into_data().try_into_vec().unwrap();
        for (found, expected) in found.iter().zip([0.0019, 0.0021, 0.00204, 0.0021]) {
            assert!((found - expected).abs() < 1e-7, "{found} instead of {expected}");
        }
        // What is no scale is as the step made it.
        let other: Vec<f32> =
            Module::map(param, &mut BoundedScales(HashMap::new())).val().into_data().try_into_vec().unwrap();
        assert_eq!(other, [-3.0, 0.01, 0.00204, 7.0]);
    }
}
