//! Average Hessian traces of a network's layers: how much the loss bends along their weights (HAWQ-V2, arXiv:1911.03852).

use super::hutchinson::{Differentiable, Group, estimate};
use super::traces::{HessianError, HessianOptions, Traces};
use crate::data::ImageBatch;
use crate::models::Network;
use crate::nn::Pass;
use burn::data::dataloader::{DataLoader, DataLoaderIterator};
use burn::module::{ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::tensor::{Gradients, Tensor, TensorData};
use std::collections::HashMap;

/// Estimates the average Hessian trace of every quantized layer, over the layer's weights only: not biases, scales or
/// BatchNorm.
///
/// The Hessian is that of the mean cross entropy of the network in floats and in evaluation mode: BatchNorm uses its
/// running statistics, which do not change. A quantized network is taken with its float weights (of a loaded artifact:
/// the dequantized stored codes) and its first BatchNorm. It can be on any device, and be training or not.
///
/// Every sample takes a new direction of random signs and the next batch of `loader`, which starts over at its end; it
/// costs two gradients. The standard errors hold what directions and batches contribute. They are too large where samples
/// outnumber the batches, as the mean over all batches is then no matter of chance. `progress` gets the number of
/// samples and the [`Traces::uncertainty`] after each sample but the first. The same seed and batches give the same result.
///
/// The step of the differences is chosen on the first batch: of eleven, from a quarter of the weights' root mean square
/// down by halves, the one whose neighbours give the most similar estimates. All are in [`Traces::steps`].
/// A ReLU bends the loss only where it switches. A difference sees those switches that lie within its step, as quantization
/// does, and so includes them; a derivative at a point would not.
///
/// # Errors
/// Options out of range, no images, what the loader says, and a network whose gradients are not finite.
///
/// # Panics
/// If images or labels do not fit the network.
pub fn traces<M: Network>(
    model: &M, loader: &dyn DataLoader<ImageBatch>, options: &HessianOptions,
    progress: impl FnMut(usize, f64),
) -> Result<Traces, HessianError> {
    options.check()?;
    estimate(&mut Loss::new(model, loader), options, progress)
}

/// The loss of a network as a function of its layers' weights.
struct Loss<'a, M> {
    /// In evaluation mode, but on a device that tracks gradients; nothing of it does yet.
    model: M,
    groups: Vec<Group>,
    /// The point: weights of each layer, flat, without gradients.
    weights: Vec<(ParamId, Tensor<1>)>,
    loader: &'a dyn DataLoader<ImageBatch>,
    batches: Box<dyn DataLoaderIterator<ImageBatch> + 'a>,
    current: Option<(usize, ImageBatch)>,
}

impl<'a, M: Network> Loss<'a, M> {
    fn new(model: &M, loader: &'a dyn DataLoader<ImageBatch>) -> Self {
        // `valid` copies statistics and switches BatchNorm to them; `freeze` makes `train` keep it so.
        let mut model = model.valid().freeze().train();
        let (ids, groups): (Vec<ParamId>, Vec<Group>) = model
            .layers()
            .into_iter()
            .map(|layer| {
                let parameters = layer.layer.weight_shape().iter().product();
                (layer.layer.weight_id(), Group { name: layer.name, parameters })
            })
            .unzip();
        let mut found = Values::default();
        model.visit(&mut found);
        let weights = ids.into_iter().filter_map(|id| Some((id, found.0.remove(&id)?))).collect();
        Self { model, groups, weights, loader, batches: loader.iter(), current: None }
    }

    fn batch(&mut self, sample: usize) -> Result<ImageBatch, HessianError> {
        if let Some((of, batch)) = &self.current
            && *of == sample
        {
            return Ok(batch.clone());
        }
        let next = self.batches.next().or_else(|| {
            self.batches = self.loader.iter();
            self.batches.next()
        });
        let ImageBatch { images, labels } = next.ok_or(HessianError::NoImages)??;
        let batch = ImageBatch { images: images.autodiff(), labels: labels.autodiff() };
        self.current = Some((sample, batch.clone()));
        Ok(batch)
    }

    /// The gradient of each layer's weights at `weights + step * signs`, flat.
    fn gradient(&self, batch: &ImageBatch, signs: &[Tensor<1>], step: f64) -> Vec<Option<Tensor<1>>> {
        let moved = |((id, weight), signs): (&(ParamId, Tensor<1>), &Tensor<1>)| {
            (*id, weight.clone() + signs.clone().mul_scalar(step))
        };
        let mut point = Point(self.weights.iter().zip(signs).map(moved).collect());
        let model = self.model.clone().map(&mut point);
        let logits = model.forward(batch.images.clone(), &Pass::float());
        let cross_entropy = CrossEntropyLossConfig::new().init(&logits.device());
        let loss = cross_entropy.forward(logits, batch.labels.clone());
        let mut found = Tracked { gradients: loss.backward(), found: HashMap::new() };
        model.visit(&mut found);
        self.weights.iter().map(|(id, _)| found.found.remove(id)).collect()
    }
}

impl<M: Network> Differentiable for Loss<'_, M> {
    fn groups(&self) -> &[Group] {
        &self.groups
    }

    fn root_mean_square(&self) -> f64 {
        let squares = |(_, weight): &(ParamId, Tensor<1>)| weight.clone().square().sum().into_scalar::<f64>();
        let count: usize = self.groups.iter().map(|group| group.parameters).sum();
        (self.weights.iter().map(squares).sum::<f64>() / count.max(1) as f64).sqrt()
    }

    fn difference(&mut self, sample: usize, signs: &[Vec<f32>], step: f64) -> Result<Vec<f64>, HessianError> {
        let batch = self.batch(sample)?;
        let upload = |(signs, (_, weight)): (&Vec<f32>, &(ParamId, Tensor<1>))| {
            Tensor::<1>::from_data(TensorData::from(signs.as_slice()), &weight.device())
        };
        let signs: Vec<_> = signs.iter().zip(&self.weights).map(upload).collect();
        let [plus, minus] = [step, -step].map(|step| self.gradient(&batch, &signs, step));
        // Subtracted before they are summed, so that the sums round what is left and not the gradients.
        let product = |((plus, minus), signs): ((Option<Tensor<1>>, Option<Tensor<1>>), &Tensor<1>)| {
            match (plus, minus) {
                (Some(plus), Some(minus)) => ((plus - minus) * signs.clone()).sum(),
                // The loss does not depend on the layer.
                _ => Tensor::zeros([1], &signs.device()),
            }
        };
        let products: Vec<_> = plus.into_iter().zip(minus).zip(&signs).map(product).collect();
        let products = Tensor::cat(products, 0).into_data().convert::<f64>();
        Ok(products.try_into_vec().unwrap_or_default())
    }
}

/// All float parameters by identity, flat and without gradients.
#[derive(Default)]
struct Values(HashMap<ParamId, Tensor<1>>);

impl ModuleVisitor for Values {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0.insert(param.id, flat(param.val().inner()));
    }
}

/// Puts weights in place of a network's own, and tracks their gradients.
struct Point(HashMap<ParamId, Tensor<1>>);

impl ModuleMapper for Point {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(values) = self.0.remove(&param.id) else { return param };
        let (id, old, mapper) = param.consume();
        Param::from_mapped_value(id, values.reshape(old.dims()).autodiff().require_grad(), mapper)
    }
}

/// The gradients of tracked parameters by identity, flat.
struct Tracked {
    gradients: Gradients,
    found: HashMap<ParamId, Tensor<1>>,
}

impl ModuleVisitor for Tracked {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = param.val().grad_remove(&mut self.gradients) {
            self.found.insert(param.id, flat(gradient));
        }
    }
}

fn flat<const D: usize>(tensor: Tensor<D>) -> Tensor<1> {
    let count = tensor.dims().iter().product::<usize>();
    tensor.reshape([count])
}
