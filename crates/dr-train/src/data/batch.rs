//! [`Batch`]: what a step of training or of a measurement sees.

use super::Noted;
use burn::data::dataloader::DataLoader;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::tensor::activation::log_softmax;
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

/// Classes of images, each of which may be a mixture with another image.
#[derive(Clone, Debug)]
pub struct Classes {
    /// `[n]`
    pub classes: Tensor<1, Int>,
    /// The classes `[n]` of the other images, and the part `[n]` that the first ones have of the mixtures.
    pub mixed: Option<(Tensor<1, Int>, Tensor<1>)>,
    /// The part of the probability that all classes share evenly.
    pub smoothing: f64,
}

impl From<Tensor<1, Int>> for Classes {
    fn from(classes: Tensor<1, Int>) -> Self {
        Self { classes, mixed: None, smoothing: 0.0 }
    }
}

impl Classes {
    /// The classes, if there is nothing else.
    fn plain(&self) -> Option<&Tensor<1, Int>> {
        (self.mixed.is_none() && self.smoothing == 0.0).then_some(&self.classes)
    }

    /// What is made of the classes and of the others, each with its part, `[n]`.
    fn weighted(&self, of: impl Fn(&Tensor<1, Int>) -> Tensor<1>) -> Tensor<1> {
        let first = of(&self.classes);
        match &self.mixed {
            None => first,
            Some((others, part)) => first * part.clone() + of(others) * (part.clone().neg() + 1.0),
        }
    }

    fn map(
        self, classes: impl Fn(Tensor<1, Int>) -> Tensor<1, Int>, parts: impl Fn(Tensor<1>) -> Tensor<1>,
    ) -> Self {
        let mixed = self.mixed.map(|(others, part)| (classes(others), parts(part)));
        Self { classes: classes(self.classes), mixed, smoothing: self.smoothing }
    }
}

impl Input for Classes {
    fn items(&self) -> usize {
        self.classes.items()
    }

    fn split(self, items: usize) -> Vec<Self> {
        let smoothing = self.smoothing;
        let classes = Input::split(self.classes, items).into_iter();
        match self.mixed {
            None => classes.map(|classes| Self { classes, mixed: None, smoothing }).collect(),
            Some((others, parts)) => {
                let mixed = Input::split(others, items).into_iter().zip(parts.split(items, 0));
                classes
                    .zip(mixed)
                    .map(|(classes, mixed)| Self { classes, mixed: Some(mixed), smoothing })
                    .collect()
            }
        }
    }

    fn inner(self) -> Self {
        self.map(Tensor::inner, Tensor::inner)
    }

    fn autodiff(self) -> Self {
        self.map(Tensor::autodiff, Tensor::autodiff)
    }

    fn device(&self) -> Device {
        self.classes.device()
    }
}

/// The output is logits `[n, classes]`. The loss is the cross entropy with a distribution in which the part `smoothing` is spread over all
/// classes (Szegedy et al., arXiv:1512.00567, section 7), and the rest is that of the classes of the mixture.
impl Target for Classes {
    fn loss(&self, output: Tensor<2>) -> Tensor<1> {
        if let Some(classes) = self.plain() {
            return classes.loss(output);
        }
        let log = log_softmax(output, 1);
        let of =
            |classes: &Tensor<1, Int>| log.clone().gather(1, classes.clone().unsqueeze_dim(1)).squeeze_dim(1);
        let spread = log.clone().mean_dim(1).squeeze_dim(1);
        (self.weighted(of) * (1.0 - self.smoothing) + spread * self.smoothing).mean().neg()
    }

    fn right(&self, output: Tensor<2>) -> (Tensor<1>, usize) {
        let count = self.items();
        let guesses = output.argmax(1).reshape([count]);
        (self.weighted(|classes| guesses.clone().equal(classes.clone()).float()).sum(), count)
    }

    fn score(&self, output: Tensor<2>) -> (f64, f64, usize) {
        self.plain()
            .map_or_else(|| score_tensors(self, output.clone()), |classes| classes.score(output.clone()))
    }
}

/// Inputs and what is to be learned from them.
#[derive(Clone, Debug)]
pub struct Batch<I, T = Tensor<1, Int>> {
    /// What the network takes: images for example, `[n, c, h, w]`, normalised.
    pub input: I,
    /// What is to be learned, as much for each item of the input, one after the other: a class for each image.
    pub labels: T,
}

/// Images and what they show.
pub type ImageBatch = Batch<Tensor<4>, Classes>;

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

    /// What is noted of the files that batches are read from.
    fn noted(&self) -> Noted {
        Noted::default()
    }
}
