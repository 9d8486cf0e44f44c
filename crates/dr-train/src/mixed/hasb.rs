//! Hessian-aware stochastic bit-switching (HASB): which precision each layer has in a step of a supernet's training
//! (arXiv:2502.01199).

use super::LayerTrace;
use crate::config::{Sampling, Widths};
use crate::nn::{Model, NamedLayer};
use dr_precision::{Precision, PrecisionSet};
use rand::SeedableRng;
use rand::distr::{Distribution, weighted::WeightedIndex};

/// The precisions that a layer is offered: those of the set, or every width of its weights with every width of its
/// activations, highest first.
#[must_use]
pub fn choices(set: &PrecisionSet, widths: Widths) -> Vec<Precision> {
    match widths {
        Widths::Together => set.iter().collect(),
        Widths::Separate => {
            let activations = set.activations();
            let with = |weights| activations.iter().map(move |&bits| Precision::new(weights, bits));
            set.weights().into_iter().flat_map(with).collect()
        }
    }
}

/// Draws a precision for every layer.
#[derive(Clone, Debug)]
pub struct Hasb {
    layers: Vec<LayerDraw>,
    seed: u64,
}

/// How one layer's precision is drawn.
#[derive(Clone, Debug)]
struct LayerDraw {
    name: String,
    choices: Vec<Precision>,
    distribution: WeightedIndex<u32>,
}

impl Hasb {
    /// For a network whose layers have the Hessian traces `traces` (by name). Layers with less than the mean trace, and
    /// with [`Sampling::Uniform`] all, draw uniformly; the others draw a precision with the probability
    /// `p_i = b_i / sum(b)`, where `b` are the bits of weights and activations together. Pinned layers keep their own.
    ///
    /// The same seed draws the same.
    ///
    /// # Panics
    /// If the network is a float one.
    pub fn new(
        network: &mut Model, traces: &[LayerTrace], set: &PrecisionSet, widths: Widths, sampling: Sampling,
        seed: u64,
    ) -> Self {
        let choices = choices(set, widths);
        let trace = |name: &str| traces.iter().find(|t| t.layer == name).map(|t| t.average_trace);
        let of = |NamedLayer { name, layer, .. }: NamedLayer<'_>| {
            let spec = layer.quantizers().spec().expect("mixed precision is trained in quantized networks");
            (name, spec.only().map_or_else(|| choices.clone(), |only| vec![only]))
        };
        let layers: Vec<_> = network.layers().into_iter().map(of).collect();
        // Of the layers that draw: the first and the last would only blur what is sensitive among them.
        let drawn: Vec<f64> =
            layers.iter().filter(|(_, c)| c.len() > 1).filter_map(|(name, _)| trace(name)).collect();
        let mean = drawn.iter().sum::<f64>() / drawn.len().max(1) as f64;
        let draw = |(name, choices): (String, Vec<Precision>)| {
            let sensitive = sampling == Sampling::Hasb && trace(&name).is_some_and(|trace| trace >= mean);
            let weights = choices.iter().map(|&choice| match (sensitive, widths) {
                (false, _) => 1,
                (true, Widths::Together) => choice.weights.bits() + choice.activations.bits(),
                (true, Widths::Separate) => choice.weights.bits() * choice.activations.bits(),
            });
            let distribution =
                WeightedIndex::new(weights).expect("at least one choice, each of at least 2 bits");
            LayerDraw { name, choices, distribution }
        };
        Self { layers: layers.into_iter().map(draw).collect(), seed }
    }

    /// The names of the layers, from input to output.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.layers.iter().map(|layer| layer.name.as_str())
    }

    /// The precisions of draw number `draw`, a layer each, from input to output.
    #[must_use]
    pub fn draw(&self, draw: u64) -> Vec<Precision> {
        let mut rng = chacha20::ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(draw);
        self.layers.iter().map(|layer| layer.choices[layer.distribution.sample(&mut rng)]).collect()
    }

    /// The probability of each precision that layer `layer` can draw.
    #[must_use]
    pub fn probabilities(&self, layer: usize) -> Vec<(Precision, f64)> {
        let LayerDraw { choices, distribution, .. } = &self.layers[layer];
        let total = f64::from(distribution.total_weight());
        choices.iter().copied().zip(distribution.weights().map(|weight| f64::from(weight) / total)).collect()
    }
}
