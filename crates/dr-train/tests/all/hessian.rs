//! Estimated Hessian traces against those that are known, or found by differences one weight at a time.

use burn::data::dataloader::DataLoader;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::{GradientsParams, ModuleOptimizer, SgdConfig};
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Tensor};
use dr_precision::PrecisionSet;
use dr_runtime::graph::{Activation, Op};
use dr_train::artifact::{Artifact, Described, Description, InputShape, SavedModel};
use dr_train::data::{self, DataSource, Digits, ImageBatch, ImageLoader, Splits};
use dr_train::mixed::{HessianOptions, LayerTrace, Traces, traces};
use dr_train::models::{ConvNetConfig, RESNET8};
use dr_train::nn::{
    Executor, Model, Network, Pass, PrecisionNorm, PrecisionNormConfig, QuantConfig, QuantConv2d,
    QuantConv2dConfig, QuantLinear, QuantLinearConfig,
};
use rand::SeedableRng;

const CLASSES: usize = 10;

/// Some digits, `[1, 8, 8]` each.
fn digits(count: usize, batch: usize) -> ImageLoader {
    let Splits { train, normalization, .. } =
        data::load(&DataSource::new(&Digits, None, 1), Some(count)).expect("digits are always there");
    ImageLoader::evaluation(train, normalization, batch, Device::flex())
}

fn batches(loader: &ImageLoader) -> Vec<ImageBatch> {
    loader.iter().map(|batch| batch.expect("a batch")).collect()
}

fn options(tolerance: f64, seed: u64) -> HessianOptions {
    HessianOptions { tolerance, seed, ..HessianOptions::default() }
}

fn estimate(model: &Model, loader: &dyn DataLoader<ImageBatch>, options: HessianOptions) -> Traces {
    traces(model, loader, &options, |_, _| ()).expect("traces")
}

/// Softmax regression, whose Hessian is known.
#[derive(Module, Debug)]
struct Regression {
    head: QuantLinear,
}

impl Network for Regression {
    fn input(&self) -> Op {
        Op::Images { channels: 1 }
    }

    fn forward<E: Executor>(&self, on: &mut E, images: E::Value) -> E::Value {
        let pixels = on.flatten(images);
        on.linear(pixels, &self.head)
    }
}

/// Convolutions, BatchNorm and nothing that bends sharply, so that second derivatives are what differences give.
#[derive(Module, Debug)]
struct Smooth {
    conv1: QuantConv2d,
    norm1: PrecisionNorm,
    conv2: QuantConv2d,
    norm2: PrecisionNorm,
    head: QuantLinear,
}

impl Smooth {
    fn new(device: &Device) -> Self {
        let rng = &mut chacha20::ChaCha8Rng::seed_from_u64(5);
        let mut conv = |channels, stride| {
            QuantConv2dConfig { stride, ..QuantConv2dConfig::new(channels, 3) }.init(rng, device)
        };
        let (conv1, conv2) = (conv([1, 3], 1), conv([3, 4], 2));
        Self {
            conv1,
            norm1: PrecisionNormConfig::new(3).init(device),
            conv2,
            norm2: PrecisionNormConfig::new(4).init(device),
            head: QuantLinearConfig::new([4, CLASSES]).init(rng, device),
        }
    }
}

impl Network for Smooth {
    fn input(&self) -> Op {
        Op::Images { channels: 1 }
    }

    fn forward<E: Executor>(&self, on: &mut E, images: E::Value) -> E::Value {
        let x = on.conv2d(images, &self.conv1, Some(&self.norm1));
        let x = on.activation(x, Activation::Silu);
        let x = on.conv2d(x, &self.conv2, Some(&self.norm2));
        let x = on.activation(x, Activation::Silu);
        let x = on.mean(x);
        on.linear(x, &self.head)
    }
}

/// Trains a network for some steps of plain gradient descent, so that it is near where the loss bends upwards and BatchNorm's
/// statistics are its own.
fn train(mut model: Model, loader: &ImageLoader, steps: usize) -> Model {
    let mut optimizer = ModuleOptimizer::from(SgdConfig::new().build());
    for batch in batches(loader).iter().cycle().take(steps) {
        let loss = loss(&model, batch);
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(0.1, model, gradients);
    }
    model.valid().train()
}

fn loss(model: &Model, batch: &ImageBatch) -> Tensor<1> {
    let logits = model.forward(batch.input.clone().autodiff(), &Pass::float());
    let cross_entropy = CrossEntropyLossConfig::new().init(&logits.device());
    cross_entropy.forward(logits, batch.labels.classes.clone().autodiff())
}

fn resnet() -> Model {
    let config = ConvNetConfig { width: 2, ..ConvNetConfig::new(RESNET8, 1, CLASSES) };
    train(Model::trace(&config.init(3, &Device::flex().autodiff())).unwrap(), &digits(256, 64), 60)
}

/// Adds a number to one weight of one layer, and tracks that layer's gradient.
struct Nudge {
    layer: ParamId,
    index: usize,
    by: f32,
}

impl ModuleMapper for Nudge {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if param.id != self.layer {
            return param;
        }
        param.map(|tensor| {
            let (device, dims) = (tensor.device(), tensor.dims());
            let mut values: Vec<f32> = tensor.into_data().try_into_vec().expect("f32");
            values[self.index] += self.by;
            Tensor::from_data(burn::tensor::TensorData::new(values, dims), &device).require_grad()
        })
    }
}

/// A layer's block of the Hessian, from the gradient's difference at each of the layer's weights.
fn block(model: &Model, layer: usize, batch: &ImageBatch, step: f32) -> Vec<Vec<f64>> {
    let mut model = model.valid().freeze().train();
    let (id, shape) = {
        let layer = model.layers().remove(layer).layer;
        (layer.weight_id(), layer.weight_shape())
    };
    let at = |index: usize, by: f32| {
        let model = model.clone().map(&mut Nudge { layer: id, index, by });
        let gradients = GradientsParams::from_grads(loss(&model, batch).backward(), &model);
        let gradient = match shape.len() {
            2 => gradients.get::<2>(id).expect("a gradient").into_data(),
            _ => gradients.get::<4>(id).expect("a gradient").into_data(),
        };
        gradient.try_into_vec::<f32>().expect("f32")
    };
    let column = |index| {
        let pairs = at(index, step).into_iter().zip(at(index, -step));
        pairs.map(|(plus, minus)| f64::from(plus - minus) / (2.0 * f64::from(step))).collect()
    };
    (0..shape.iter().product()).map(column).collect()
}

/// The trace of a layer's block divided by its size.
fn by_columns(model: &Model, layer: usize, batch: &ImageBatch, step: f32) -> f64 {
    average_trace(&block(model, layer, batch, step))
}

fn average_trace(block: &[Vec<f64>]) -> f64 {
    (0..block.len()).map(|i| block[i][i]).sum::<f64>() / block.len() as f64
}

/// The variance of `v . H v / n` for random signs `v`: `2 / n^2` times the sum of squares beside the diagonal.
fn variance(block: &[Vec<f64>]) -> f64 {
    let beside = |(i, column): (usize, &Vec<f64>)| {
        column.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, entry)| entry * entry).sum::<f64>()
    };
    2.0 * block.iter().enumerate().map(beside).sum::<f64>() / (block.len() as f64).powi(2)
}

#[track_caller]
fn assert_near(layer: &LayerTrace, exact: f64, errors: f64, relative: f64) {
    let difference = (layer.average_trace - exact).abs();
    println!("{layer:?}: exactly {exact:.4e}, {:.2} standard errors off", difference / layer.standard_error);
    assert!(difference <= errors * layer.standard_error + relative * exact.abs(), "{layer:?}: not {exact}");
}

#[test]
fn softmax_regression_is_as_derived() {
    let loader = digits(200, 200);
    let device = Device::flex();
    let rng = &mut chacha20::ChaCha8Rng::seed_from_u64(2);
    let model = Regression { head: QuantLinearConfig::new([64, CLASSES]).init(rng, &device) };
    let model = Model::trace(&model).unwrap();
    // The block of class k is the mean of p_k (1 - p_k) x x^T.
    let batch = batches(&loader).remove(0);
    let p = softmax(model.forward(batch.input.clone(), &Pass::float()), 1);
    let x = batch.input.flatten::<2>(1, 3);
    let traces_of_images = (p.clone() - p.square()).sum_dim(1) * x.square().sum_dim(1);
    let exact = traces_of_images.mean().into_scalar::<f64>() / (64 * CLASSES) as f64;
    for seed in 1..=5 {
        let traces = estimate(&model, &loader, options(0.03, seed));
        assert!(traces.converged, "{traces:?}");
        assert_eq!((traces.layers[0].layer.as_str(), traces.layers[0].parameters), ("head", 640));
        assert_near(&traces.layers[0], exact, 3.5, 1e-3);
    }
}

#[test]
fn a_smooth_network_is_as_by_columns() {
    let loader = digits(64, 32);
    let model = train(Model::trace(&Smooth::new(&Device::flex().autodiff())).unwrap(), &loader, 60);
    let (parts, tolerance) = (batches(&loader), 0.04);
    // How many directions the estimator needs follows from what is beside the diagonal: within each part, since parts take turns.
    let known = |layer: usize| {
        let blocks: Vec<_> = parts.iter().map(|part| block(&model, layer, part, 0.01)).collect();
        let mean = |of: fn(&[Vec<f64>]) -> f64| {
            blocks.iter().map(|block| of(block)).sum::<f64>() / blocks.len() as f64
        };
        (mean(average_trace), mean(variance))
    };
    let (exact, variances): (Vec<f64>, Vec<f64>) = (0..3).map(known).unzip();
    let needed = exact.iter().zip(variances).map(|(exact, variance)| variance / (tolerance * exact).powi(2));
    let needed = needed.fold(0.0, f64::max);
    for seed in 1..=4 {
        let options = HessianOptions { max_samples: (1.4 * needed) as usize, ..options(tolerance, seed) };
        let traces = estimate(&model, &loader, options);
        println!("{} directions, {needed:.0} by the variance", traces.samples);
        assert!(traces.converged && traces.layers.len() == 3, "{traces:?}");
        println!("step {}: {:?}", traces.relative_step, traces.disagreement());
        assert!(traces.disagreement() < Some(0.05), "{traces:?}");
        for (layer, exact) in traces.layers.iter().zip(&exact) {
            assert_near(layer, *exact, 3.5, 0.01);
        }
    }
}

#[test]
fn a_resnet_is_as_by_columns() {
    let loader = digits(256, 64);
    let mut model = resnet();
    let all = batches(&digits(256, 256)).remove(0);
    let found: Vec<Traces> = (1..=2).map(|seed| estimate(&model, &loader, options(0.1, seed))).collect();
    // The stem, a convolution and a shortcut.
    for name in ["stem", "stages.0.0.conv2", "stages.1.0.shortcut"] {
        let position = found[0].layers.iter().position(|layer| layer.layer == name).expect("a layer");
        let step = found[0].relative_step as f32 * size(&mut model, position);
        let exact = by_columns(&model, position, &all, step);
        for traces in &found {
            assert_near(&traces.layers[position], exact, 3.5, 0.1);
        }
    }
}

/// The root mean square of a layer's weights.
fn size(model: &mut Model, layer: usize) -> f32 {
    struct Find(ParamId, f32);
    impl ModuleVisitor for Find {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if param.id == self.0 {
                self.1 = param.val().square().mean().sqrt().into_scalar();
            }
        }
    }
    let mut find = Find(model.layers().remove(layer).layer.weight_id(), 0.0);
    model.visit(&mut find);
    find.1
}

#[test]
fn seeds_decide_and_networks_stay_as_they_are() {
    let loader = digits(96, 32);
    let model = resnet();
    let input = InputShape { channels: 1, height: 8, width: 8 };
    let (dataset, kind) = ("digits", RESNET8);
    let description = Description::new(dataset, &kind, input, CLASSES, PrecisionSet::default());
    let tensors =
        |model: &Model| Artifact::of(model, description.clone()).expect("an artifact of the network").tensors;
    let before = tensors(&model);
    let options = |seed| HessianOptions { max_samples: 10, ..options(0.01, seed) };
    let first = estimate(&model, &loader, options(1));
    assert_eq!(tensors(&model), before, "weights or statistics changed");
    assert_eq!(estimate(&model, &loader, options(1)), first);
    assert_ne!(estimate(&model, &loader, options(2)).layers, first.layers);
    // In evaluation mode, without gradients, it is the same network.
    assert_eq!(estimate(&model.valid(), &loader, options(1)), first);
    // And quantized, in floats.
    let images = batches(&loader).into_iter().map(|batch| batch.input).collect();
    let quantized = model.quantize(&QuantConfig::new(PrecisionSet::default()), images);
    assert_eq!(estimate(&quantized, &loader, options(1)), first);
}

#[test]
fn progress_is_told() {
    let mut told = vec![];
    let options = HessianOptions { max_samples: 9, ..options(1e-6, 1) };
    let found = traces(&resnet(), &digits(64, 32), &options, |samples, worst| told.push((samples, worst)));
    let found = found.expect("traces");
    assert_eq!(told.iter().map(|(samples, _)| *samples).collect::<Vec<_>>(), (2..=9).collect::<Vec<_>>());
    assert_eq!(told.last().map(|last| last.1), Some(found.uncertainty()));
    assert!(!found.converged && found.samples == 9);
}

/// Makes all weights of one layer not finite.
struct Spoil(ParamId);

impl ModuleMapper for Spoil {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if param.id == self.0 { param.map(|tensor| tensor.detach() * f32::NAN) } else { param }
    }
}

#[test]
fn what_cannot_be_measured_is_an_error() {
    let loader = digits(64, 32);
    let error = |model: &Model, loader: &dyn DataLoader<ImageBatch>, options| {
        traces(model, loader, &options, |_, _| ()).expect_err("an error").to_string()
    };
    let mut model = resnet().valid();
    assert_eq!(
        error(&model, loader.slice(0, 0).as_ref(), options(0.1, 1)),
        "no images: expected at least one batch"
    );
    assert!(error(&model, &loader, options(0.0, 1)).starts_with("tolerance 0: expected"));
    let few = HessianOptions { max_samples: 0, ..options(0.1, 1) };
    assert!(error(&model, &loader, few).starts_with("max-samples 0: expected"));
    let stem = model.layers().remove(0).layer.weight_id();
    let message = error(&model.map(&mut Spoil(stem)), &loader, options(0.1, 1));
    assert!(message.starts_with("layer `stem`"), "{message}");
}
