//! [`Pyramid`]: features of several resolutions, each of which knows what the coarser ones found.

use crate::models::ConvNetConfig;
use crate::models::architecture::Stem;
use crate::models::block::Block;
use crate::nn::{Executor, PrecisionNorm, QuantConv2d, QuantConv2dConfig};
use burn::module::Module;
use burn::tensor::Device;
use rand::Rng;

/// A residual network whose stages' features are joined from coarse to fine (feature pyramid network, arXiv:1612.03144).
#[derive(Module, Debug)]
pub(super) struct Pyramid {
    stem: QuantConv2d,
    stem_norm: PrecisionNorm,
    stages: Vec<Vec<Block>>,
    /// For each stage that is used, to `features` channels.
    laterals: Vec<QuantConv2d>,
    /// After the join.
    outputs: Vec<QuantConv2d>,
    #[module(skip)]
    kind: Stem,
    /// The number of the first stage that is used.
    #[module(skip)]
    first: usize,
}

impl Pyramid {
    /// On this residual network, from stage `first` on.
    pub(super) fn new(
        network: &ConvNetConfig, features: usize, first: usize, rng: &mut impl Rng, device: &Device,
    ) -> Self {
        let architecture = network.architecture();
        let (stem, stem_norm, stages) = architecture.init(network.channels, rng, device);
        let biased = |channels, kernel| QuantConv2dConfig::new(channels, kernel).with_bias(true);
        let used = &architecture.stages[first..];
        let laterals =
            used.iter().map(|stage| biased([stage.channels, features], 1).init(rng, device)).collect();
        let outputs = used.iter().map(|_| biased([features, features], 3).init(rng, device)).collect();
        Self { stem, stem_norm, stages, laterals, outputs, kind: architecture.stem, first }
    }

    /// Images to maps of `features` channels, one for each level, finest first.
    pub(super) fn forward<E: Executor>(&self, on: &mut E, images: E::Value) -> Vec<E::Value> {
        let mut x = self.kind.forward(on, images, &self.stem, &self.stem_norm);
        let mut found = vec![];
        for stage in &self.stages {
            for block in stage {
                x = block.forward(on, x);
            }
            found.push(x.clone());
        }
        let mut coarser: Option<E::Value> = None;
        let mut levels = vec![];
        let used = found.split_off(self.first).into_iter();
        for ((x, lateral), output) in used.zip(&self.laterals).zip(&self.outputs).rev() {
            let x = on.conv2d(x, lateral, None);
            let joined = match coarser {
                Some(above) => {
                    let above = on.enlarge(above, x.clone());
                    on.add(x, above)
                }
                None => x,
            };
            coarser = Some(joined.clone());
            levels.push(on.conv2d(joined, output, None));
        }
        levels.reverse();
        levels
    }
}
