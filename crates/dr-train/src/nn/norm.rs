//! BatchNorm, once for each precision or once for all.

use super::integer::{Affine, Affines};
use super::quantizers::host;
use burn::module::Module;
use burn::nn::{BatchNorm, BatchNormConfig};
use burn::tensor::{Device, Tensor};
use dr_precision::{Precision, PrecisionSet};

/// Configuration of [`PrecisionNorm`].
#[derive(Clone, Copy, Debug)]
pub struct PrecisionNormConfig {
    channels: usize,
}

impl PrecisionNormConfig {
    /// For `channels` channels.
    #[must_use]
    pub const fn new(channels: usize) -> Self {
        Self { channels }
    }

    /// One BatchNorm, as a float network has.
    #[must_use]
    pub fn init(&self, device: &Device) -> PrecisionNorm {
        PrecisionNorm { norms: vec![BatchNormConfig::new(self.channels).init(device)], precisions: vec![] }
    }
}

/// BatchNorm with statistics and affine terms of their own for each precision; or, shared, one for all.
#[derive(Module, Debug)]
pub struct PrecisionNorm {
    norms: Vec<BatchNorm>,
    #[module(skip)]
    precisions: Vec<Precision>,
}

impl PrecisionNorm {
    /// Every precision of `set` starts from a copy of the first BatchNorm.
    pub(crate) fn split(&mut self, set: &PrecisionSet) {
        self.norms.truncate(1);
        let copies = set.iter().skip(1).map(|_| fresh_copy(&self.norms[0])).collect::<Vec<_>>();
        self.norms.extend(copies);
        self.precisions = set.iter().collect();
    }

    /// `[batch, channels, ..]` to the same shape. A float pass uses the first one.
    ///
    /// # Panics
    /// If the pass asks for a precision that the network was not prepared for.
    pub fn forward<const D: usize>(&self, x: Tensor<D>, precision: Option<Precision>) -> Tensor<D> {
        let position = match precision {
            Some(wanted) if !self.precisions.is_empty() => self
                .precisions
                .iter()
                .position(|&p| p == wanted)
                .unwrap_or_else(|| panic!("no BatchNorm for precision {wanted}")),
            _ => 0,
        };
        self.norms[position].forward(x)
    }
}

impl PrecisionNorm {
    /// What the BatchNorms do to each channel in evaluation mode.
    pub(super) fn affines(&self) -> Affines {
        let precisions = self.precisions.iter().copied().map(Some).chain(std::iter::repeat(None));
        precisions.zip(self.norms.iter().map(affine)).collect()
    }
}

/// `gain = gamma / sqrt(variance + epsilon)` and `shift = beta - gain * mean`, in f64 and rounded once.
fn affine(norm: &BatchNorm) -> Affine {
    let (mean, variance) = (host(&norm.running_mean.value_sync()), host(&norm.running_var.value_sync()));
    let (gamma, beta) = (host(&norm.gamma.val()), host(&norm.beta.val()));
    let gain =
        |channel: usize| f64::from(gamma[channel]) / (f64::from(variance[channel]) + norm.epsilon).sqrt();
    let shift = |channel: usize| f64::from(beta[channel]) - gain(channel) * f64::from(mean[channel]);
    let channels = 0..gamma.len();
    Affine {
        gain: channels.clone().map(|channel| gain(channel) as f32).collect(),
        shift: channels.map(|channel| shift(channel) as f32).collect(),
    }
}

/// The same values in parameters of their own: a clone would share its parameters' identities.
fn fresh_copy(norm: &BatchNorm) -> BatchNorm {
    use burn::module::{Param, RunningState};
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
