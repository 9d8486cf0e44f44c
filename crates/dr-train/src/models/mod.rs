//! Networks, each written once for float and for every precision; and in integer arithmetic.

mod architecture;
mod block;
mod conv_net;
mod dense;
mod int_conv_net;
mod llama;
mod torchvision;

pub use conv_net::{ConvNet, ConvNetConfig};
pub use dense::{DenseConfig, Detector, IntDetector, IntSegmenter, Segmenter};
pub use int_conv_net::IntConvNet;
pub use llama::{
    Cache, Decoder, FakeLinear, IntLlama, Linear, Llama, LlamaConfig, LlamaConfigError, Packed, Rope,
    RopeScaling, WeightOnlyLlama,
};

use crate::data::{Batch, Input, Target};
use crate::nn::{Layer, LayerSpec, Observer, Pass, PrecisionNorm, QuantConfig};
use burn::module::{Module, ModuleDisplay, ParamId};
use burn::tensor::{Tensor, activation::relu};
use dr_kernels::integer::Activation;
use std::fmt::Display;

/// One quantized layer as a network describes it.
#[derive(Debug)]
pub struct NamedLayer<'a> {
    /// Its path in the network, `stages.0.0.conv1` for example.
    pub name: String,
    /// The layer.
    pub layer: Layer<'a>,
    /// The first and the last layer stay at the highest width.
    pub pinned: bool,
    /// Whether its input comes out of a ReLU.
    pub after_relu: bool,
}

/// What a network learns from.
pub type BatchOf<M> = Batch<<M as Network>::Input, <M as Network>::Target>;

/// A network that can run at several precisions.
pub trait Network: Module + ModuleDisplay + Display + Sync + 'static {
    /// What it takes: images `[batch, channels, height, width]`, or tokens `[batch, positions]`.
    type Input: Input;

    /// What it learns.
    type Target: Target;

    /// What the target asks for: logits `[n, classes]` for classes, where `n` is the number of images, or of all positions.
    fn forward(&self, input: Self::Input, pass: &Pass) -> Tensor<2>;

    /// The quantized layers, from input to output.
    fn layers(&mut self) -> Vec<NamedLayer<'_>>;

    /// All BatchNorms, each with the layer before it.
    fn norms_after(&mut self) -> Vec<(ParamId, &mut PrecisionNorm)>;

    /// All BatchNorms.
    fn norms(&mut self) -> Vec<&mut PrecisionNorm> {
        self.norms_after().into_iter().map(|(_, norm)| norm).collect()
    }

    /// Turns a trained float network into a quantized one: fits scales to the weights and to the activations that
    /// `batches` cause, and gives each precision a BatchNorm unless they share one.
    ///
    /// This is training-free quantization, and what joint training starts from.
    #[must_use]
    fn quantize(mut self, config: &QuantConfig, batches: Vec<Self::Input>) -> Self {
        let observer = if config.compensate.is_some() { Observer::with_products() } else { Observer::new() };
        let eval = self.valid();
        for input in batches {
            eval.forward(input, &Pass::observing(&observer));
        }
        for mut layer in self.layers() {
            let spec = LayerSpec::new(config, &layer);
            layer.layer.fit(spec, &observer, config.compensate);
        }
        self.split_norms(config);
        self
    }

    /// Gives the network quantizers and BatchNorms with placeholder values, to load a trained one into.
    #[must_use]
    fn prepare(mut self, config: &QuantConfig) -> Self {
        for mut layer in self.layers() {
            let spec = LayerSpec::new(config, &layer);
            layer.layer.prepare(spec);
        }
        self.split_norms(config);
        self
    }

    /// One BatchNorm for each precision, unless they share one.
    fn split_norms(&mut self, config: &QuantConfig) {
        if !config.share_norm && config.plan.is_none() {
            self.norms().into_iter().for_each(|norm| norm.split(&config.precisions, config.mixed));
        }
    }
}

/// The activation in floats.
fn activate<const D: usize>(x: Tensor<D>, activation: Activation) -> Tensor<D> {
    match activation {
        Activation::None => x,
        Activation::Relu => relu(x),
        Activation::Relu6 => x.clamp(0.0, 6.0),
    }
}
