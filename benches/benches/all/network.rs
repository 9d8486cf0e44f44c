//! A whole ResNet-20 for 32x32 colour images, from images to logits, in integers and in floats.
//! `cargo bench -- network`

use burn::tensor::{Device, Tensor, TensorData, activation::relu, module::conv2d, ops::ConvOptions};
use criterion::{Criterion, Throughput};
use dr_bench::{Work, device, weights};
use dr_precision::PrecisionSet;
use dr_runtime::Arithmetic;
use dr_runtime::tensors::Network;
use dr_train::artifact::{Artifact, Described, Description, InputShape, SavedModel};
use dr_train::cli::keep_freed_memory;
use dr_train::models::{ConvNetConfig, RESNET20};
use dr_train::nn::{Model, Pass, QuantConfig};

fn tensor<const D: usize>(shape: [usize; D], scale: f32, device: &Device) -> Tensor<D> {
    let values = weights(shape.iter().product()).into_iter().map(|value| value * scale).collect::<Vec<_>>();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// A convolution and its bias, into which BatchNorm is folded, with Burn's own operations.
struct Conv {
    weight: Tensor<4>,
    bias: Tensor<1>,
    stride: usize,
}

impl Conv {
    fn new([from, to]: [usize; 2], kernel: usize, stride: usize, device: &Device) -> Self {
        let weight = tensor([to, from, kernel, kernel], 1.0 / (from * kernel * kernel) as f32, device);
        Self { weight, bias: Tensor::zeros([to], device), stride }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let options = ConvOptions::new([self.stride; 2], [self.weight.dims()[2] / 2; 2], [1, 1], 1);
        conv2d(x, self.weight.clone(), Some(self.bias.clone()), options)
    }
}

/// What a user of Burn has without this project: the same network in floats.
struct Floats {
    stem: Conv,
    blocks: Vec<(Conv, Conv, Option<Conv>)>,
    head: Tensor<2>,
}

impl Floats {
    fn new(device: &Device) -> Self {
        let mut blocks = vec![];
        let mut channels = 16;
        for stage in 0..3 {
            for block in 0..3 {
                let (to, stride) = (16 << stage, if stage > 0 && block == 0 { 2 } else { 1 });
                let shortcut = (to != channels).then(|| Conv::new([channels, to], 1, stride, device));
                let conv1 = Conv::new([channels, to], 3, stride, device);
                blocks.push((conv1, Conv::new([to, to], 3, 1, device), shortcut));
                channels = to;
            }
        }
        Self { stem: Conv::new([3, 16], 3, 1, device), blocks, head: tensor([64, 10], 0.1, device) }
    }

    fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let mut x = relu(self.stem.forward(images));
        for (conv1, conv2, shortcut) in &self.blocks {
            let y = conv2.forward(relu(conv1.forward(x.clone())));
            x = relu(y + shortcut.as_ref().map_or(x.clone(), |conv| conv.forward(x)));
        }
        x.flatten::<3>(2, 3).mean_dim(2).squeeze_dim::<2>(2).matmul(self.head.clone())
    }
}

pub fn network(criterion: &mut Criterion) {
    keep_freed_memory(); // as `dr-train` does
    let device = device();
    let network = ConvNetConfig::new(RESNET20, 3, 10).init(1, &device);
    let model = Model::trace(&network).expect("a network");
    let precisions = PrecisionSet::default();
    let calibration: Vec<Tensor<4>> = vec![tensor([64, 3, 32, 32], 1.0, &device)];
    let input = InputShape { channels: 3, height: 32, width: 32 };
    let description = Description::new("cifar10", &RESNET20, input, 10, precisions.clone());
    let artifact = Artifact::of(&model, description).expect("an artifact");
    let config = QuantConfig::new(precisions.clone());
    let artifact = artifact.quantize(&config, calibration, &device).expect("a float model");
    let model = artifact.network(&device).expect("the model");
    let floats = Floats::new(&device);
    for batch in [1, 64] {
        let images_of_call = Throughput::Elements(batch as u64);
        let mut work = Work::new(criterion, format!("network/resnet20 {batch}x3x32x32"), images_of_call);
        let images: Tensor<4> = tensor([batch, 3, 32, 32], 1.0, &device);
        for precision in precisions.iter() {
            let integer = Network::load(&artifact, precision, Arithmetic::Integer, &device).unwrap();
            work.measure(format!("dr-kernels {precision}"), || integer.forward(images.clone()).unwrap());
        }
        work.measure("dr-kernels f32", || model.forward(images.clone(), &Pass::float()));
        work.measure("burn flex f32", || floats.forward(images.clone()));
    }
}
