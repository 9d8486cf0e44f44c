//! Accuracy and loss over a whole split.

use crate::data::{Batch, Input};
use crate::models::Network;
use crate::nn::Pass;
use burn::data::dataloader::DataLoader;
use burn::data::dataset::DatasetError;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// How well a network does on a split.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Right answers, in percent.
    pub top1: f64,
    /// Mean cross entropy, in nats.
    pub loss: f64,
}

/// The scores of a network, in evaluation mode, for each of `passes`.
///
/// # Errors
/// What the loader says.
pub fn evaluate<M: Network>(
    model: &M, loader: &dyn DataLoader<Batch<M::Input>>, passes: &[Pass],
) -> Result<Vec<Score>, DatasetError> {
    score(loader, passes, |pass, input| Ok(model.forward(input, pass)))
}

/// The scores of each of `classifiers`, where `forward` says how one turns an input into logits `[n, classes]`.
///
/// # Errors
/// What the loader or `forward` says.
pub fn score<I: Input, C, E: From<DatasetError>>(
    loader: &dyn DataLoader<Batch<I>>, classifiers: &[C], forward: impl Fn(&C, I) -> Result<Tensor<2>, E>,
) -> Result<Vec<Score>, E> {
    let cross_entropy = CrossEntropyLossConfig::new();
    let mut sums = vec![(0.0, 0.0); classifiers.len()];
    let mut total = 0.0;
    for batch in loader.iter() {
        let Batch { input, labels } = batch?;
        let loss = cross_entropy.init(&input.device());
        let [size] = labels.dims();
        total += size as f64;
        for (classifier, (right, loss_sum)) in classifiers.iter().zip(&mut sums) {
            let logits = forward(classifier, input.clone())?;
            *loss_sum += loss.forward(logits.clone(), labels.clone()).into_scalar::<f64>() * size as f64;
            let guesses = logits.argmax(1).reshape([size]);
            *right += guesses.equal(labels.clone()).int().sum().into_scalar::<f64>();
        }
    }
    let total = f64::max(total, 1.0);
    let score = |(right, loss): (f64, f64)| Score { top1: 100.0 * right / total, loss: loss / total };
    Ok(sums.into_iter().map(score).collect())
}
