//! Accuracy and loss over a whole split.

use crate::data::{Batch, Input, Target};
use crate::nn::{Model, Pass, Value};
use crate::progress::Progress;
use burn::data::dataloader::DataLoader;
use burn::data::dataset::DatasetError;
use burn::tensor::Tensor;

/// How well a network does on a split. Means over nothing are NaN.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Right answers, in percent.
    pub top1: f64,
    /// Mean loss: of classes the cross entropy, in nats.
    pub loss: f64,
    /// See [`Measured`](crate::report::Measured).
    pub quality: Option<f64>,
}

/// The scores of a model, in evaluation mode, for each of `passes`.
///
/// # Errors
/// What the loader says.
pub fn evaluate<I: Input + Into<Value>, T: Target>(
    model: &Model, loader: &dyn DataLoader<Batch<I, T>>, passes: &[Pass],
) -> Result<Vec<Score>, DatasetError> {
    score(loader, passes, |pass, input, _| Ok(model.forward(input, pass)))
}

/// The scores of each of `networks`, where `forward` says what one makes of an input, and sees what is to be learned of it.
///
/// # Errors
/// What the loader or `forward` says.
pub fn score<I: Input, T: Target, C, E: From<DatasetError>>(
    loader: &dyn DataLoader<Batch<I, T>>, networks: &[C], forward: impl Fn(&C, I, &T) -> Result<Tensor<2>, E>,
) -> Result<Vec<Score>, E> {
    let mut sums = vec![(0.0, 0.0); networks.len()];
    // Of answers, and of what losses are means of.
    let (mut answers, mut weights) = (0.0, 0.0);
    let progress = Progress::new("measuring:");
    let mut batches = loader.iter();
    while let Some(batch) = batches.next() {
        let Batch { input, labels } = batch?;
        let weight = labels.items() as f64;
        weights += weight;
        for (i, (network, (right_sum, loss_sum))) in networks.iter().zip(&mut sums).enumerate() {
            let output = forward(network, input.clone(), &labels)?;
            let (loss, right, count) = labels.score(output);
            *loss_sum += loss * weight;
            *right_sum += right;
            answers += if i == 0 { count as f64 } else { 0.0 };
        }
        let at = batches.progress();
        progress.show(at.items_processed, at.items_total, "");
    }
    let score = |(right, loss): (f64, f64)| Score {
        top1: 100.0 * right / answers,
        loss: loss / weights,
        quality: None,
    };
    Ok(sums.into_iter().map(score).collect())
}
