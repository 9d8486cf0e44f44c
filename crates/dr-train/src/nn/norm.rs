//! BatchNorm, once for each precision or once for all.

use super::tensors::activate;
use super::{Images, Numbers, Pass};
use burn::config::Config;
use burn::module::{Module, ParamId, RunningState};
use burn::nn::{BatchNorm, BatchNormConfig};
use burn::tensor::{Device, Tensor, module};
use dr_kernels::{batch_norm_channels_last, batch_norm_channels_last_inference};
use dr_precision::{BitWidth, Precision, PrecisionSet};
use dr_runtime::graph::Activation;

pub use crate::config::MixedNorm;

/// Configuration of [`PrecisionNorm`].
#[derive(Config, Debug)]
pub struct PrecisionNormConfig {
    /// How many channels it is for.
    pub channels: usize,
    /// What keeps it from dividing by zero.
    #[config(default = 1e-5)]
    pub epsilon: f64,
}

impl PrecisionNormConfig {
    /// One BatchNorm, as a float network has.
    #[must_use]
    pub fn init(&self, device: &Device) -> PrecisionNorm {
        let norm = BatchNormConfig::new(self.channels).with_epsilon(self.epsilon).init(device);
        PrecisionNorm { norms: vec![norm], uses: vec![] }
    }
}

/// BatchNorm with statistics and affine terms of their own for each precision; or, shared, one for all.
#[derive(Module, Debug)]
pub struct PrecisionNorm {
    norms: Vec<BatchNorm>,
    /// What each is for. Empty if there is but one, for everything.
    #[module(skip)]
    uses: Vec<NormUse>,
}

/// What one of the BatchNorms is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NormUse {
    /// Passes at this precision.
    Uniform(Precision),
    /// Mixed passes in which the layer before it has weights of this width, or any.
    Mixed(Option<BitWidth>),
}

impl PrecisionNorm {
    /// What tells it from others.
    #[must_use]
    pub fn id(&self) -> ParamId {
        self.norms[0].gamma.id
    }

    /// How many channels it is for.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.norms[0].gamma.lazy_shape().dims::<1>()[0]
    }

    /// What keeps it from dividing by zero.
    #[must_use]
    pub fn epsilon(&self) -> f64 {
        self.norms[0].epsilon
    }

    /// Every precision of `set`, and mixed passes as `mixed` says, start from a copy of the first BatchNorm.
    pub(crate) fn split(&mut self, set: &PrecisionSet, mixed: Option<MixedNorm>) {
        self.uses = set.iter().map(NormUse::Uniform).collect();
        match mixed {
            None | Some(MixedNorm::Uniform) => {}
            Some(MixedNorm::One) => self.uses.push(NormUse::Mixed(None)),
            Some(MixedNorm::Width) => {
                self.uses.extend(set.weights().into_iter().map(|bits| NormUse::Mixed(Some(bits))));
            }
        }
        self.norms.truncate(1);
        let copies = self.uses.iter().skip(1).map(|_| fresh_copy(&self.norms[0])).collect::<Vec<_>>();
        self.norms.extend(copies);
    }

    /// Images that the layer with this weight gives, normalized; then the sum with `residual` and an activation, where there are. A float pass uses
    /// the first BatchNorm.
    ///
    /// # Panics
    /// If the pass asks for a precision that the network was not prepared for.
    pub(super) fn forward(
        &self, x: Images, residual: Option<Images>, activation: Option<Activation>, pass: &Pass,
        weight: ParamId,
    ) -> Images {
        let norm = &self.norms[self.position(pass, weight)];
        let differentiated = x.device().is_autodiff();
        let trained = differentiated && norm.training.is_enabled();
        let (y, residual, activation) = if x.has_channels_last() && (trained || !differentiated) {
            let (clip, activation) = match activation {
                Some(Activation::Relu) => (Some(f32::INFINITY), None),
                Some(Activation::Relu6) => (Some(6.0), None),
                rest @ (Some(Activation::Silu) | None) => (None, rest),
            };
            let (x, residual) = (x.channels_last(), residual.map(Images::channels_last));
            let y = if trained { train(norm, x, residual, clip) } else { infer(norm, x, residual, clip) };
            (Images::with_channels_last(y), None, activation)
        } else {
            let y = match trained {
                true => train_channels_first(norm, x.channels_first()).into(),
                false if x.has_channels_last() => Images::with_channels_last(frozen(norm, x.channels_last())),
                false => norm.forward(x.channels_first()).into(),
            };
            (y, residual, activation)
        };
        let y = match residual {
            Some(residual) => y.zip(residual, |y, residual| y + residual),
            None => y,
        };
        match activation {
            Some(activation) => y.map(|y| activate(y, activation)),
            None => y,
        }
    }

    /// Keeps the one that `pass` uses after the layer with this weight, for everything from now on.
    pub(crate) fn keep(&mut self, pass: &Pass, weight: ParamId) {
        let position = self.position(pass, weight);
        self.norms = vec![fresh_copy(&self.norms[position])];
        self.uses.clear();
    }

    /// Replaces the one that `pass` uses after the layer with this weight by the only one of `other`.
    pub(crate) fn replace(&mut self, pass: &Pass, weight: ParamId, other: &Self) {
        let position = self.position(pass, weight);
        self.norms[position] = fresh_copy(&other.norms[0]);
    }

    fn position(&self, pass: &Pass, weight: ParamId) -> usize {
        if self.uses.is_empty() {
            return 0;
        }
        let find = |wanted: &dyn Fn(NormUse) -> bool| self.uses.iter().position(|&of| wanted(of));
        let Some(precision) = pass.precision(weight) else { return 0 };
        let uniform = || find(&|of| of == NormUse::Uniform(precision));
        let found = match pass.numbers {
            Numbers::Mixed(_) => find(
                &|of| matches!(of, NormUse::Mixed(bits) if bits.is_none_or(|bits| bits == precision.weights)),
            )
            .or_else(uniform)
            .or_else(|| find(&|of| matches!(of, NormUse::Uniform(p) if p.weights == precision.weights))),
            _ => uniform(),
        };
        found.unwrap_or_else(|| panic!("no BatchNorm for {precision}"))
    }

    /// How much of a new batch's statistics gets into the running ones.
    pub(crate) fn set_momentum(&mut self, momentum: f64) {
        self.norms.iter_mut().for_each(|norm| norm.momentum = momentum);
    }
}

/// Burn's BatchNorm in training, with what follows it, by the kernel for images `[batch, rows, columns, channels]`.
fn train(norm: &BatchNorm, x: Tensor<4>, residual: Option<Tensor<4>>, clip: Option<f32>) -> Tensor<4> {
    let (gamma, beta) = (norm.gamma.val(), norm.beta.val());
    let result = batch_norm_channels_last(x, gamma, beta, residual, clip, norm.epsilon);
    update(norm, result.mean, result.variance);
    result.output
}

/// Burn's BatchNorm in training, of images `[batch, channels, rows, columns]`.
fn train_channels_first(norm: &BatchNorm, x: Tensor<4>) -> Tensor<4> {
    let result = module::batch_norm_train(x, norm.gamma.val(), norm.beta.val(), norm.epsilon);
    update(norm, result.mean, result.variance);
    result.output
}

/// Puts the statistics of a batch into the running ones.
fn update(norm: &BatchNorm, mean: Tensor<1>, variance: Tensor<1>) {
    for (running, batch) in [(&norm.running_mean, mean), (&norm.running_var, variance)] {
        let old = running.value_sync().to_device(&batch.device());
        let new = old * (1.0 - norm.momentum) + batch.detach() * norm.momentum;
        running.update(new.detach());
    }
}

/// Burn's BatchNorm with its running statistics, differentiable, of images `[batch, rows, columns, channels]`.
fn frozen(norm: &BatchNorm, x: Tensor<4>) -> Tensor<4> {
    let [mean, variance] = statistics(norm, &x.device());
    let [mean, deviation, gamma, beta] =
        [mean, (variance + norm.epsilon).sqrt(), norm.gamma.val(), norm.beta.val()]
            .map(|term| term.reshape([1, 1, 1, -1]));
    (x - mean) / deviation * gamma + beta
}

/// The running mean and variance.
fn statistics(norm: &BatchNorm, device: &Device) -> [Tensor<1>; 2] {
    [&norm.running_mean, &norm.running_var].map(|running| running.value_sync().to_device(device))
}

/// Burn's BatchNorm with its running statistics, with what follows it, of images `[batch, rows, columns, channels]`.
fn infer(norm: &BatchNorm, x: Tensor<4>, residual: Option<Tensor<4>>, clip: Option<f32>) -> Tensor<4> {
    let statistics = statistics(norm, &x.device());
    let (gamma, beta) = (norm.gamma.val(), norm.beta.val());
    batch_norm_channels_last_inference(x, gamma, beta, statistics, residual, clip, norm.epsilon)
}

/// The same values in parameters of their own: a clone would share its parameters' identities.
fn fresh_copy(norm: &BatchNorm) -> BatchNorm {
    use burn::module::Param;
    let param =
        |p: &Param<Tensor<1>>| Param::from_tensor(Tensor::from_data(p.val().into_data(), &p.val().device()));
    let state = |s: &RunningState<Tensor<1>>| {
        let value = s.value_sync();
        RunningState::new(Tensor::from_data(value.clone().into_data(), &value.device()))
    };
    let mut copy = norm.clone();
    copy.gamma = param(&norm.gamma);
    copy.beta = param(&norm.beta);
    copy.running_mean = state(&norm.running_mean);
    copy.running_var = state(&norm.running_var);
    copy
}
