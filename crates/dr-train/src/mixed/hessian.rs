//! Average Hessian traces of a network's layers: how much the loss bends along their weights (HAWQ-V2, arXiv:1911.03852).

use super::hutchinson::{Differentiable, Group, estimate};
use super::traces::{HessianError, HessianOptions, Traces};
use crate::data::{Batch, Input, Target};
use crate::nn::{Model, NamedLayer, Pass, Value};
use burn::data::dataloader::{DataLoader, DataLoaderIterator};
use burn::module::Module;
use burn::tensor::{Tensor, TensorData};

/// Estimates the average Hessian trace of every quantized layer, over the layer's weights only: not biases, scales or
/// BatchNorm.
///
/// The Hessian is that of the mean loss of the network in floats and in evaluation mode: BatchNorm uses its
/// running statistics, which do not change. A quantized network is taken with its float weights (of a loaded artifact:
/// the dequantized stored codes) and its first BatchNorm. It can be on any device, and be training or not.
///
/// Every sample takes the next batch of `loader`, which starts over at its end, and for each layer that is not yet known well
/// enough a new direction of random signs and two gradients. The standard errors hold what directions and batches
/// contribute; what batches differ by no longer counts once the loader has started over. `progress` gets the number of samples and the [`Traces::uncertainty`] after each sample but the first. The same
/// seed and batches give the same result.
///
/// The step of the differences is chosen on the first batch: of six, from a quarter of the weights' root mean square
/// down by quarters, the one whose neighbours give the most similar estimates. All are in [`Traces::steps`].
/// A ReLU bends the loss only where it switches. A difference sees those switches that lie within its step, as quantization
/// does, and so includes them; a derivative at a point would not.
///
/// # Errors
/// Options out of range, no images, what the loader says, and a network whose gradients are not finite.
///
/// # Panics
/// If images or labels do not fit the network.
pub fn traces<I: Input + Into<Value>, T: Target>(
    model: &Model, loader: &dyn DataLoader<Batch<I, T>>, options: &HessianOptions,
    progress: impl FnMut(usize, f64),
) -> Result<Traces, HessianError> {
    options.check()?;
    estimate(&mut Loss::new(model, loader), options, progress)
}

/// The loss of a network as a function of its layers' weights.
struct Loss<'a, I, T> {
    /// In evaluation mode, but on a device that tracks gradients; nothing of it does yet.
    model: Model,
    groups: Vec<Group>,
    /// The weights of each group, flat, without gradients.
    weights: Vec<Tensor<1>>,
    loader: &'a dyn DataLoader<Batch<I, T>>,
    batches: Box<dyn DataLoaderIterator<Batch<I, T>> + 'a>,
    current: Option<(usize, Batch<I, T>)>,
    /// Batches until the loader starts over, once it has.
    count: Option<usize>,
}

impl<'a, I: Input + Into<Value>, T: Target> Loss<'a, I, T> {
    fn new(model: &Model, loader: &'a dyn DataLoader<Batch<I, T>>) -> Self {
        // `valid` copies statistics and switches BatchNorm to them; `freeze` makes `train` keep it so.
        let mut model = model.valid().freeze().train();
        let describe = |NamedLayer { name, layer, .. }: NamedLayer<'_>| {
            let weights = layer.flat_weight();
            let parameters = weights.dims()[0];
            let size = weights.clone().square().mean().into_scalar::<f64>().sqrt();
            (Group { name, parameters, size }, weights)
        };
        let (groups, weights) = model.layers().into_iter().map(describe).unzip();
        Self { model, groups, weights, loader, batches: loader.iter(), current: None, count: None }
    }

    fn batch(&mut self, sample: usize) -> Result<Batch<I, T>, HessianError> {
        if let Some((of, batch)) = &self.current
            && *of == sample
        {
            return Ok(batch.clone());
        }
        let next = self.batches.next().or_else(|| {
            self.count.get_or_insert(sample);
            self.batches = self.loader.iter();
            self.batches.next()
        });
        let batch = next.ok_or(HessianError::NoImages)??.autodiff();
        self.current = Some((sample, batch.clone()));
        Ok(batch)
    }

    /// The gradient of one layer's weights, flat, at `weights + step * signs`. `None` if the loss does not depend on them.
    fn gradient(&self, batch: &Batch<I, T>, layer: usize, signs: &Tensor<1>, step: f64) -> Option<Tensor<1>> {
        let moved = self.weights[layer].clone() + signs.clone().mul_scalar(step);
        let mut model = self.model.clone();
        model.layers()[layer].layer.track(moved);
        let logits = model.forward(batch.input.clone(), &Pass::float());
        let mut gradients = batch.labels.loss(logits).backward();
        model.layers()[layer].layer.flat_gradient(&mut gradients)
    }
}

impl<I: Input + Into<Value>, T: Target> Differentiable for Loss<'_, I, T> {
    fn groups(&self) -> &[Group] {
        &self.groups
    }

    fn parts(&self) -> Option<usize> {
        self.count
    }

    fn difference(
        &mut self, sample: usize, group: usize, signs: &[f32], step: f64,
    ) -> Result<f64, HessianError> {
        let batch = self.batch(sample)?;
        let signs = Tensor::from_data(TensorData::from(signs), &self.weights[group].device());
        let [plus, minus] = [step, -step].map(|step| self.gradient(&batch, group, &signs, step));
        // Subtracted before they are summed, so that the sum rounds what is left and not the gradients.
        Ok(match (plus, minus) {
            (Some(plus), Some(minus)) => ((plus - minus) * signs).sum().into_scalar(),
            _ => 0.0,
        })
    }
}
