//! [`IntConvNet`]: a convolutional network in integer arithmetic.

use crate::nn::{Arithmetic, IntConv2d, IntLinear, IntegerError, OnHost, OnTensors, Workspace};
use burn::tensor::{Device, Tensor};
use dr_precision::Precision;
use std::iter::once;
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, Instant};

/// A [`ConvNet`](super::ConvNet) in integer arithmetic: made by [`ConvNet::to_integer`](super::ConvNet::to_integer) or
/// [`Artifact::integer`](crate::artifact::Artifact::integer), switched between precisions in place.
///
/// It holds the stored integer codes, the codes at the active precision, and the scales and BatchNorm terms of all; no
/// float weights. Clones share what they do not change.
#[derive(Clone, Debug)]
pub struct IntConvNet {
    pub(crate) stem: IntConv2d,
    pub(crate) max_pool: bool,
    pub(crate) blocks: Vec<IntBlock>,
    pub(crate) tail: Option<IntConv2d>,
    pub(crate) head: IntLinear,
    /// What passes on a CPU keep their values in.
    pub(crate) workspace: Arc<Mutex<Workspace>>,
}

#[derive(Clone, Debug)]
pub(crate) struct IntBlock {
    pub(crate) first: IntConv2d,
    pub(crate) middle: Vec<IntConv2d>,
    pub(crate) last: IntConv2d,
    pub(crate) shortcut: Option<IntConv2d>,
    /// Whether the input, or its shortcut, is added.
    pub(crate) adds: bool,
}

/// Measures layers, if it is to: on the device, which is waited for.
struct Clock(Option<(Device, Vec<Duration>)>);

impl Clock {
    /// Runs the layer at this position.
    fn layer<T>(&mut self, position: usize, run: impl FnOnce() -> T) -> T {
        let Some((device, times)) = &mut self.0 else { return run() };
        let start = Instant::now();
        let result = run();
        // What goes wrong on the device shows when the result is read.
        let _ = device.sync();
        times[position] = start.elapsed();
        result
    }
}

impl IntBlock {
    /// `[batch, rows, columns, channels]` in f32 to the same after the block.
    pub(super) fn run(&self, x: Tensor<4>) -> Result<Tensor<4>, IntegerError> {
        Ok(self.forward(&OnTensors, (x, None), None, 0, &mut Clock(None))?.0)
    }

    /// Between the convolutions there are only codes; `x` and the result come with the codes that the first layer and `next`
    /// take, where they are at hand. `first` is the position of the first layer in the network.
    fn forward<A: Arithmetic>(
        &self, on: &A, (x, codes): (A::Values, Option<A::Codes>), next: Option<&IntConv2d>, first: usize,
        clock: &mut Clock,
    ) -> Result<(A::Values, Option<A::Codes>), IntegerError> {
        let after = |i: usize| self.middle.get(i).unwrap_or(&self.last);
        let mut y = clock.layer(first, || {
            let codes = codes.map_or_else(|| on.quantize(&self.first, x.clone()), Ok)?;
            on.codes(&self.first, &codes, after(0))
        })?;
        let mut position = first + 1;
        for (i, conv) in self.middle.iter().enumerate() {
            y = clock.layer(position, || on.codes(conv, &y, after(i + 1)))?;
            position += 1;
        }
        let x = match &self.shortcut {
            Some(conv) => {
                let shortcut = || on.values(conv, &on.quantize(conv, x)?, None, None);
                Some(clock.layer(position + 1, shortcut)?.0)
            }
            None => self.adds.then_some(x),
        };
        clock.layer(position, || on.values(&self.last, &y, x, next))
    }

    pub(super) fn layers(&self) -> impl Iterator<Item = &IntConv2d> {
        once(&self.first).chain(&self.middle).chain(once(&self.last)).chain(&self.shortcut)
    }

    pub(super) fn layers_mut(&mut self) -> impl Iterator<Item = &mut IntConv2d> {
        once(&mut self.first).chain(&mut self.middle).chain(once(&mut self.last)).chain(&mut self.shortcut)
    }
}

impl IntConvNet {
    /// `[batch, channels, height, width]` in f32 to logits `[batch, classes]`.
    ///
    /// # Errors
    /// Images of another number of channels or on another device.
    pub fn forward(&self, images: Tensor<4>) -> Result<Tensor<2>, IntegerError> {
        self.run(images, &mut Clock(None))
    }

    /// The same, and how long each layer took with the quantization of its input: in the order of
    /// [`Network::layers`](super::Network::layers). The device is waited for after each layer.
    ///
    /// # Errors
    /// Those of [`IntConvNet::forward`].
    pub fn forward_timed(&self, images: Tensor<4>) -> Result<(Tensor<2>, Vec<Duration>), IntegerError> {
        let mut clock = Clock(Some((images.device(), vec![Duration::ZERO; self.layers().count()])));
        let logits = self.run(images, &mut clock)?;
        Ok((logits, clock.0.map(|(_, times)| times).unwrap_or_default()))
    }

    fn run(&self, images: Tensor<4>, clock: &mut Clock) -> Result<Tensor<2>, IntegerError> {
        if !OnHost::takes(&images) {
            return self.run_on(&OnTensors, images, clock);
        }
        let workspace = match self.workspace.try_lock() {
            Ok(workspace) => workspace,
            Err(TryLockError::Poisoned(workspace)) => workspace.into_inner(),
            // Two passes at once have memory of their own.
            Err(TryLockError::WouldBlock) => {
                return self.run_on(&OnHost(&Workspace::default()), images, clock);
            }
        };
        workspace.prepare(images.dims());
        self.run_on(&OnHost(&workspace), images, clock)
    }

    fn run_on<A: Arithmetic>(
        &self, on: &A, images: Tensor<4>, clock: &mut Clock,
    ) -> Result<Tensor<2>, IntegerError> {
        // The layer that takes the result of the blocks before the one at `i`.
        let taker = |i: usize| self.blocks.get(i).map(|block| &block.first).or(self.tail.as_ref());
        let after_stem = if self.max_pool { None } else { taker(0) };
        let stem = || on.values(&self.stem, &on.quantize_images(&self.stem, images)?, None, after_stem);
        let (mut x, mut codes) = clock.layer(0, stem)?;
        if self.max_pool {
            x = on.max_pool(x);
        }
        let mut first = 1;
        for (i, block) in self.blocks.iter().enumerate() {
            (x, codes) = block.forward(on, (x, codes), taker(i + 1), first, clock)?;
            first += block.layers().count();
        }
        if let Some(conv) = &self.tail {
            x = clock.layer(first, || {
                let codes = codes.map_or_else(|| on.quantize(conv, x), Ok)?;
                Ok::<_, IntegerError>(on.values(conv, &codes, None, None)?.0)
            })?;
            first += 1;
        }
        let head = self.head.as_conv2d();
        let logits = clock.layer(first, || on.values(head, &on.quantize(head, on.mean(x))?, None, None))?;
        Ok(on.finish(logits.0))
    }

    /// Switches all layers to another precision, by shifts of the stored codes; the first and the last keep their bits.
    ///
    /// # Errors
    /// [`IntegerError::Precision`] if the network has no such precision; it then stays as it is.
    pub fn switch(&mut self, precision: Precision) -> Result<(), IntegerError> {
        self.layers().try_for_each(|layer| layer.check(precision))?;
        self.layers_mut().try_for_each(|layer| layer.switch(precision))
    }

    /// The precision it computes at.
    #[must_use]
    pub fn precision(&self) -> Precision {
        self.stem.precision()
    }

    /// Bytes of the network that a pass at this precision reads: prepared codes with their padding, multipliers and
    /// addends, scales and zero points of the inputs.
    #[must_use]
    pub fn model_bytes(&self) -> usize {
        self.layers().map(IntConv2d::model_bytes).sum()
    }

    fn layers(&self) -> impl Iterator<Item = &IntConv2d> {
        let blocks = self.blocks.iter().flat_map(IntBlock::layers);
        once(&self.stem).chain(blocks).chain(&self.tail).chain(once(self.head.as_conv2d()))
    }

    fn layers_mut(&mut self) -> impl Iterator<Item = &mut IntConv2d> {
        let blocks = self.blocks.iter_mut().flat_map(IntBlock::layers_mut);
        once(&mut self.stem).chain(blocks).chain(&mut self.tail).chain(once(self.head.as_conv2d_mut()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelKind;
    use crate::models::{ConvNetConfig, Network};
    use crate::nn::QuantConfig;
    use burn::tensor::Distribution;

    #[test]
    fn slices_and_tensors_give_the_same() {
        let device = Device::flex();
        // With and without a maximum after the stem, residuals, bottlenecks, channels each for itself, a last convolution.
        for kind in [ModelKind::Resnet8, ModelKind::Resnet18, ModelKind::Resnet50, ModelKind::MobilenetV2] {
            let config = ConvNetConfig { width: 8, ..ConvNetConfig::new(kind, 3, 5) };
            let images = || Tensor::random([2, 3, 33, 40], Distribution::Normal(0.3, 1.0), &device);
            let quantization = QuantConfig::new("w8a8,w3a4".parse().unwrap());
            let network = config.init(1, &device).quantize(&quantization, vec![images()]);
            let mut network = network.to_integer("w8a8".parse().unwrap()).unwrap();
            for precision in ["w8a8", "w3a4"] {
                network.switch(precision.parse().unwrap()).unwrap();
                let images = images();
                let tensors = network.run_on(&OnTensors, images.clone(), &mut Clock(None)).unwrap();
                let [tensors, slices] = [tensors, network.forward(images).unwrap()]
                    .map(|logits| logits.into_data().try_into_vec::<f32>().unwrap());
                // Means are summed in another order.
                let off = slices.iter().zip(&tensors).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                let largest = tensors.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
                assert!(off <= 1e-3 * largest, "{kind} {precision}: {off} of {largest}");
            }
            // Other channels are an error in both.
            let wrong = Tensor::zeros([1, 4, 33, 40], &device);
            let errors = [
                network.run_on(&OnTensors, wrong.clone(), &mut Clock(None)).unwrap_err().to_string(),
                network.forward(wrong).unwrap_err().to_string(),
            ];
            assert_eq!(errors[0], errors[1]);
        }
    }
}
