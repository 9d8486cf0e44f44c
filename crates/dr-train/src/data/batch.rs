//! [`Batch`]: what a step of training or of a measurement sees.

use burn::data::dataloader::DataLoader;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::tensor::{Device, Int, Tensor};
use dr_kernels::host::language::cross_entropy;
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// What networks take: items along the first axis.
pub trait Input: Clone + Debug + Send + Sync + 'static {
    /// How many items there are.
    fn items(&self) -> usize;

    /// Parts of `items` items each, the last one of what is left.
    fn split(self, items: usize) -> Vec<Self>;

    /// The same where gradients are not tracked.
    fn inner(self) -> Self;

    /// The same where gradients are tracked.
    fn autodiff(self) -> Self;

    /// Where it is.
    fn device(&self) -> Device;
}

/// Implements [`Input`] by the methods that tensors have.
macro_rules! tensor_input {
    ($($(#[$doc:meta])* $type:ty),*) => {$(
        $(#[$doc])*
        impl Input for $type {
            fn items(&self) -> usize {
                self.dims()[0]
            }

            fn split(self, items: usize) -> Vec<Self> {
                self.split(items, 0)
            }

            fn inner(self) -> Self {
                self.inner()
            }

            fn autodiff(self) -> Self {
                self.autodiff()
            }

            fn device(&self) -> Device {
                self.device()
            }
        }
    )*};
}

tensor_input!(
    /// Images `[batch, channels, rows, columns]`.
    Tensor<4>,
    /// Tokens `[batch, positions]`.
    Tensor<2, Int>,
    /// Classes `[n]`.
    Tensor<1, Int>
);

/// What is to be learned, for each item of an input.
pub trait Target: Input {
    /// The loss of what a network makes of the input, `[1]`.
    fn loss(&self, output: Tensor<2>) -> Tensor<1>;

    /// How many answers are right, `[1]`, and how many there are.
    fn right(&self, output: Tensor<2>) -> (Tensor<1>, usize);

    /// Both, as numbers: the loss, right answers, and how many there are.
    fn score(&self, output: Tensor<2>) -> (f64, f64, usize) {
        score_tensors(self, output)
    }
}

pub(super) fn score_tensors(target: &impl Target, output: Tensor<2>) -> (f64, f64, usize) {
    let (right, count) = target.right(output.clone());
    (target.loss(output).into_scalar(), right.into_scalar(), count)
}

/// Classes `[n]`. The output is logits `[n, classes]`, and the loss their cross entropy.
impl Target for Tensor<1, Int> {
    fn loss(&self, output: Tensor<2>) -> Tensor<1> {
        CrossEntropyLossConfig::new().init(&output.device()).forward(output, self.clone())
    }

    fn right(&self, output: Tensor<2>) -> (Tensor<1>, usize) {
        let [count] = self.dims();
        let guesses = output.argmax(1).reshape([count]);
        (guesses.equal(self.clone()).int().sum().float(), count)
    }

    /// On a CPU in one pass over the logits, of which language models have many.
    fn score(&self, output: Tensor<2>) -> (f64, f64, usize) {
        let device = output.device();
        if device.clone().inner() != Device::flex() {
            return score_tensors(self, output);
        }
        let classes = self.clone().into_data().convert::<i64>();
        let classes = classes.iter::<i64>().map(|class| class.try_into().unwrap_or(u32::MAX));
        let (classes, logits): (Vec<_>, _) = (classes.collect(), output.into_data());
        let Some(predictions) =
            logits.as_slice().ok().and_then(|logits| cross_entropy(logits, &classes).ok())
        else {
            return score_tensors(self, Tensor::from_data(logits, &device));
        };
        let loss = predictions.iter().map(|(loss, _)| loss).sum::<f64>() / classes.len().max(1) as f64;
        let right = predictions.iter().filter(|(_, is_right)| *is_right).count();
        (loss, right as f64, classes.len())
    }
}

/// Inputs and what is to be learned from them.
#[derive(Clone, Debug)]
pub struct Batch<I, T = Tensor<1, Int>> {
    /// What the network takes: images for example, `[n, c, h, w]`, normalised.
    pub input: I,
    /// What is to be learned, as much for each item of the input, one after the other: classes `[n]` for images.
    pub labels: T,
}

/// Images and what they show.
pub type ImageBatch = Batch<Tensor<4>>;

/// Tokens `[n, positions]`, and the token that follows each.
pub type TextBatch = Batch<Tensor<2, Int>>;

impl<I: Input, T: Input> Batch<I, T> {
    /// As many batches of the same size, or one less the last ones; the first has the first items.
    pub(crate) fn split(self, count: usize) -> Vec<Self> {
        let items = self.input.items();
        if count < 2 || items == 0 {
            return vec![self];
        }
        let size = items.div_ceil(count);
        let each = self.labels.items() / items;
        let labels = self.labels.split(size * each);
        self.input.split(size).into_iter().zip(labels).map(|(input, labels)| Self { input, labels }).collect()
    }

    /// The same where gradients are tracked.
    pub(crate) fn autodiff(self) -> Self {
        Self { input: self.input.autodiff(), labels: self.labels.autodiff() }
    }
}

/// A loader that makes batches to learn from: shuffled anew for each epoch.
pub trait TrainingLoader<I, T = Tensor<1, Int>>: DataLoader<Batch<I, T>> + Sized + 'static {
    /// Makes the next [`iter`](DataLoader::iter) that of `epoch`, from 0: a resumed run goes on as it would have.
    #[must_use]
    fn starting_at(self, epoch: u64) -> Self;

    /// Puts as many batches into each as `orders` says, one after the other: an epoch goes over the data so many times side by
    /// side, each time shuffled on its own.
    #[must_use]
    fn with_orders(self, orders: u32) -> Self;

    /// Number of batches in an epoch.
    fn num_batches(&self) -> usize;

    /// The microseconds that have been waited for batches, by this loader and those made from it.
    fn waited(&self) -> Arc<AtomicU64>;
}
