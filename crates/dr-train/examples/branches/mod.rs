//! A network of one's own: it is written once, and all else follows from its graph.

use burn::module::Module;
use burn::tensor::Device;
use dr_runtime::graph::Op;
use dr_train::models::{ModelKind, Sizes};
use dr_train::nn::{
    Executor, Model, Network, PrecisionNorm, PrecisionNormConfig, QuantConv2d, QuantConv2dConfig,
    QuantLinear, QuantLinearConfig, TraceError,
};
use rand::SeedableRng;

/// Two branches that look at the same image with kernels of different sizes, a residual around a third convolution, and a linear
/// layer. What is quantized is made of the layers of `dr_train::nn`.
#[derive(Module, Debug)]
struct Branches {
    near: QuantConv2d,
    near_norm: PrecisionNorm,
    far: QuantConv2d,
    far_norm: PrecisionNorm,
    mix: QuantConv2d,
    mix_norm: PrecisionNorm,
    head: QuantLinear,
    #[module(skip)]
    channels: usize,
}

impl Branches {
    fn new(sizes: &Sizes, seed: u64, device: &Device) -> Self {
        let Sizes { input, classes, width, .. } = *sizes;
        let rng = &mut chacha20::ChaCha8Rng::seed_from_u64(seed);
        let mut conv = |channels, kernel| QuantConv2dConfig::new(channels, kernel).init(rng, device);
        let norm = |channels| PrecisionNormConfig::new(channels).init(device);
        Self {
            near: conv([input.channels, width], 3),
            near_norm: norm(width),
            far: conv([input.channels, width], 5),
            far_norm: norm(width),
            mix: conv([2 * width; 2], 3),
            mix_norm: norm(2 * width),
            head: QuantLinearConfig::new([2 * width * (input.height / 2) * (input.width / 2), classes])
                .init(rng, device),
            channels: input.channels,
        }
    }
}

impl Network for Branches {
    fn input(&self) -> Op {
        Op::Images { channels: self.channels }
    }

    fn forward<E: Executor>(&self, on: &mut E, images: E::Value) -> E::Value {
        let near = on.conv2d(images.clone(), &self.near, Some(&self.near_norm));
        let far = on.conv2d(images, &self.far, Some(&self.far_norm));
        let both = on.concat(vec![near, far]);
        let both = on.relu(both);
        let x = on.max_pool(both, 2, 2, 0);
        let mixed = on.conv2d(x.clone(), &self.mix, Some(&self.mix_norm));
        let x = on.add(x, mixed);
        let x = on.relu(x);
        let x = on.flatten(x);
        on.linear(x, &self.head)
    }
}

/// Its entry in the registry.
pub struct BranchesKind;

impl ModelKind for BranchesKind {
    fn name(&self) -> &'static str {
        "branches"
    }

    fn usual_width(&self) -> usize {
        16
    }

    fn init(&self, sizes: &Sizes, seed: u64, device: &Device) -> Result<Model, TraceError> {
        Model::trace(&Branches::new(sizes, seed, device))
    }
}
