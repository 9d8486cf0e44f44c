//! [`Pyramid`]: features of several resolutions, each of which knows what the coarser ones found.

use super::super::architecture::Architecture;
use super::super::block::Block;
use super::super::int_conv_net::IntBlock;
use super::super::{NamedLayer, activate};
use crate::config::ModelKind;
use crate::nn::{
    IntConv2d, IntegerError, Layer, Pass, PrecisionNorm, PrecisionNormConfig, QuantConv2d, QuantConv2dConfig,
    max_pool,
};
use burn::module::{Module, ParamId};
use burn::tensor::{Device, Tensor};
use dr_kernels::integer::Activation;
use dr_precision::Precision;
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
    activation: Activation,
    /// The number of the first stage that is used.
    #[module(skip)]
    first: usize,
    /// Whether a maximum follows the stem.
    #[module(skip)]
    max_pool: bool,
    /// Pixels of the image for one of each level, finest first.
    #[module(skip)]
    strides: Vec<usize>,
}

impl Pyramid {
    /// On the residual network of this name, from stage `first` on.
    pub(super) fn new(
        kind: ModelKind, width: usize, channels: usize, features: usize, first: usize, rng: &mut impl Rng,
        device: &Device,
    ) -> Self {
        let architecture = Architecture::new(kind, width);
        let stem = architecture.stem;
        let config = QuantConv2dConfig {
            stride: stem.stride,
            ..QuantConv2dConfig::new([channels, stem.channels], stem.kernel)
        };
        let (stem_conv, stem_norm) =
            (config.init(rng, device), PrecisionNormConfig::new(stem.channels).init(device));
        let (mut input, mut before) = (stem.channels, stem.activation);
        let mut stride = stem.stride * if stem.max_pool { 2 } else { 1 };
        let (mut stages, mut strides) = (vec![], vec![]);
        for stage in &architecture.stages {
            let mut blocks = vec![];
            for position in 0..stage.blocks {
                let step = if position == 0 { stage.stride } else { 1 };
                let block = Block::new(stage, input, step, before, stem.activation, rng, device);
                (input, before) = (stage.channels, block.after());
                blocks.push(block);
            }
            stride *= stage.stride;
            strides.push(stride);
            stages.push(blocks);
        }
        let biased =
            |channels, kernel| QuantConv2dConfig { bias: true, ..QuantConv2dConfig::new(channels, kernel) };
        let used = &architecture.stages[first..];
        let laterals =
            used.iter().map(|stage| biased([stage.channels, features], 1).init(rng, device)).collect();
        let outputs = used.iter().map(|_| biased([features, features], 3).init(rng, device)).collect();
        Self {
            stem: stem_conv,
            stem_norm,
            stages,
            laterals,
            outputs,
            activation: stem.activation,
            first,
            max_pool: stem.max_pool,
            strides: strides[first..].to_vec(),
        }
    }

    /// Pixels of the image for one of each level, finest first.
    pub(super) fn strides(&self) -> &[usize] {
        &self.strides
    }

    /// `[batch, channels, height, width]` to `[batch, features, height / stride, width / stride]` for each level, finest first.
    pub(super) fn forward(&self, images: Tensor<4>, pass: &Pass) -> Vec<Tensor<4>> {
        let mut x = activate(self.stem.forward_norm(images, &self.stem_norm, pass), self.activation);
        if self.max_pool {
            x = max_pool(x);
        }
        let mut found = vec![];
        for stage in &self.stages {
            for block in stage {
                x = block.forward(x, pass);
            }
            found.push(x.clone());
        }
        let mut coarser: Option<Tensor<4>> = None;
        let mut levels = vec![];
        for ((x, lateral), output) in
            found.split_off(self.first).into_iter().zip(&self.laterals).zip(&self.outputs).rev()
        {
            let x = lateral.forward(x, pass);
            let joined = match coarser {
                Some(above) => {
                    let [_, _, rows, columns] = x.dims();
                    x + enlarge(above, [rows, columns], 2)
                }
                None => x,
            };
            coarser = Some(joined.clone());
            levels.push(output.forward(joined, pass));
        }
        levels.reverse();
        levels
    }

    pub(super) fn to_integer(&self, precision: Precision) -> Result<IntPyramid, IntegerError> {
        let alone = |conv: &QuantConv2d| conv.to_integer_alone(Activation::None, precision);
        let stage = |blocks: &Vec<Block>| blocks.iter().map(|block| block.to_integer(precision)).collect();
        Ok(IntPyramid {
            stem: self.stem.to_integer(&self.stem_norm, self.activation, precision)?,
            max_pool: self.max_pool,
            stages: self.stages.iter().map(stage).collect::<Result<_, _>>()?,
            laterals: self.laterals.iter().map(alone).collect::<Result<_, _>>()?,
            outputs: self.outputs.iter().map(alone).collect::<Result<_, _>>()?,
            first: self.first,
        })
    }

    pub(super) fn layers(&mut self) -> Vec<NamedLayer<'_>> {
        let named = |name: String, conv, pinned, after_relu| NamedLayer {
            name,
            layer: Layer::Conv2d(conv),
            pinned,
            after_relu,
        };
        let mut layers = vec![named("pyramid.stem".into(), &mut self.stem, true, false)];
        for (s, stage) in self.stages.iter_mut().enumerate() {
            for (b, block) in stage.iter_mut().enumerate() {
                layers.extend(block.layers(&format!("pyramid.stages.{s}.{b}")));
            }
        }
        for (i, conv) in self.laterals.iter_mut().enumerate() {
            layers.push(named(format!("pyramid.laterals.{i}"), conv, false, true));
        }
        for (i, conv) in self.outputs.iter_mut().enumerate() {
            layers.push(named(format!("pyramid.outputs.{i}"), conv, false, false));
        }
        layers
    }

    pub(super) fn norms_after(&mut self) -> Vec<(ParamId, &mut PrecisionNorm)> {
        let mut norms = vec![(self.stem.weight_id(), &mut self.stem_norm)];
        norms.extend(self.stages.iter_mut().flatten().flat_map(Block::norms_after));
        norms
    }
}

/// The same in integer arithmetic, with the channels last.
#[derive(Clone, Debug)]
pub(super) struct IntPyramid {
    stem: IntConv2d,
    max_pool: bool,
    stages: Vec<Vec<IntBlock>>,
    laterals: Vec<IntConv2d>,
    outputs: Vec<IntConv2d>,
    first: usize,
}

impl IntPyramid {
    /// `[batch, channels, height, width]` to `[batch, height / stride, width / stride, features]` for each level, finest first.
    pub(super) fn forward(&self, images: Tensor<4>) -> Result<Vec<Tensor<4>>, IntegerError> {
        let mut x = self.stem.forward(&self.stem.quantize(images, false)?, None)?;
        if self.max_pool {
            x = max_pool(x.permute([0, 3, 1, 2])).permute([0, 2, 3, 1]);
        }
        let mut found = vec![];
        for stage in &self.stages {
            for block in stage {
                x = block.run(x)?;
            }
            found.push(x.clone());
        }
        let mut coarser: Option<Tensor<4>> = None;
        let mut levels = vec![];
        for ((x, lateral), output) in
            found.split_off(self.first).into_iter().zip(&self.laterals).zip(&self.outputs).rev()
        {
            let [_, rows, columns, _] = x.dims();
            let above = coarser.map(|above| enlarge(above, [rows, columns], 1));
            let joined = lateral.forward(&lateral.quantize(x, true)?, above)?;
            coarser = Some(joined.clone());
            levels.push(output.forward(&output.quantize(joined, true)?, None)?);
        }
        levels.reverse();
        Ok(levels)
    }

    pub(super) fn layers(&self) -> impl Iterator<Item = &IntConv2d> {
        let blocks = self.stages.iter().flatten().flat_map(IntBlock::layers);
        [&self.stem].into_iter().chain(blocks).chain(&self.laterals).chain(&self.outputs)
    }

    pub(super) fn layers_mut(&mut self) -> impl Iterator<Item = &mut IntConv2d> {
        let blocks = self.stages.iter_mut().flatten().flat_map(IntBlock::layers_mut);
        [&mut self.stem].into_iter().chain(blocks).chain(&mut self.laterals).chain(&mut self.outputs)
    }
}

/// Repeats rows and columns, which are the axes `first` and `first + 1`, to at least twice as many, of which the first `size` are
/// taken: the nearest of a map of half as many, rounded up.
pub(super) fn enlarge(x: Tensor<4>, size: [usize; 2], first: usize) -> Tensor<4> {
    let mut x = x;
    for (axis, size) in [(first, size[0]), (first + 1, size[1])] {
        let dims = x.dims();
        let times = size.div_ceil(dims[axis]);
        if times > 1 {
            let mut whole = dims;
            whole[axis] = dims[axis] * times;
            let before: usize = dims[..=axis].iter().product();
            let after: usize = dims[axis + 1..].iter().product();
            x = x.reshape([before, 1, after]).expand([before, times, after]).reshape(whole);
        }
        x = x.narrow(axis, 0, size);
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::TensorData;

    #[test]
    fn enlarged_maps_repeat_their_rows_and_columns() {
        let values = |x: Tensor<4>| x.into_data().try_into_vec::<f32>().expect("floats");
        let x = Tensor::<4>::from_data(
            TensorData::new(vec![1.0f32, 2.0, 3.0, 4.0], [1, 1, 2, 2]),
            &Device::flex(),
        );
        let larger = values(enlarge(x.clone(), [4, 3], 2));
        assert_eq!(larger, [1.0, 1.0, 2.0, 1.0, 1.0, 2.0, 3.0, 3.0, 4.0, 3.0, 3.0, 4.0]);
        let last = x.permute([0, 2, 3, 1]);
        assert_eq!(values(enlarge(last, [4, 3], 1)), larger);
    }
}
