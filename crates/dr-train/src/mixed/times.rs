//! [`LayerTimes`]: how long each layer takes in integers, at each of its precisions.

use super::{Candidates, SearchPlanError};
use crate::artifact::{Artifact, SavedModel};
use crate::evaluation::{EvaluationError, check_batch};
use crate::latency::{LatencyOptions, MOST_PIXELS, WARM_UP, median, milliseconds, random_input};
use crate::nn::Value;
use crate::progress::Progress;
use burn::tensor::Device;
use dr_precision::{Precision, PrecisionPlan};
use dr_runtime::Arithmetic;
use dr_runtime::tensors::Network;
use std::collections::{BTreeMap, BTreeSet};

/// The median times of the layers of a network, and of what a pass takes besides.
#[derive(Clone, Debug)]
pub struct LayerTimes {
    /// Nanoseconds of each layer by precision.
    layers: Vec<BTreeMap<Precision, u64>>,
    /// Nanoseconds of a pass outside its layers.
    pub(super) other: u64,
}

impl LayerTimes {
    /// Measures whole passes through the integer network with all layers at each of the precisions that `candidates` offers,
    /// so that caches and memory are as they are in use. The precisions take turns. Each turn is one pass that does not
    /// count, as the caches still hold another network's weights, one that is only timed as a whole, and one in which
    /// every layer is timed: what the former takes longer than the layers is counted as outside of them.
    ///
    /// # Errors
    /// Tensors that are no network, or a batch of more than 2^24 pixels.
    pub fn measure(
        artifact: &Artifact, candidates: &Candidates, options: LatencyOptions, device: &Device,
    ) -> Result<Self, SearchPlanError> {
        check_batch(artifact, options.batch, MOST_PIXELS)?;
        let input = random_input(artifact, options.batch, device);
        let mut runs = Run::all(artifact, candidates, device)?;
        let progress = Progress::new("passes:");
        for round in 0..WARM_UP + options.samples {
            progress.show(round, WARM_UP + options.samples, "");
            for run in &mut runs {
                run.network.forward(input.clone()).map_err(EvaluationError::from)?;
                let whole =
                    milliseconds(|| run.network.forward(input.clone())).map_err(EvaluationError::from)?;
                let (_, layers) = run.network.forward_timed(input.clone()).map_err(EvaluationError::from)?;
                if round >= WARM_UP {
                    run.whole.push(whole);
                    run.layers.push(layers.iter().map(|time| time.as_secs_f64() * 1e3).collect());
                }
            }
        }
        // A layer that has the same precision in several networks: the median over all of them.
        let time = |l: usize, precision: Precision| {
            let of = runs.iter().filter(|run| run.precisions[l] == precision);
            median(&of.flat_map(|run| run.layers.iter().map(|layers| layers[l])).collect::<Vec<_>>())
        };
        let other = runs.iter().map(|run| {
            let layers = run.precisions.iter().enumerate().map(|(l, &precision)| time(l, precision));
            median(&run.whole) - layers.sum::<f64>()
        });
        let other = nanoseconds(median(&other.collect::<Vec<_>>()));
        let layer = |l: usize| {
            let precisions: BTreeSet<Precision> = runs.iter().map(|run| run.precisions[l]).collect();
            precisions.into_iter().map(|precision| (precision, nanoseconds(time(l, precision)))).collect()
        };
        Ok(Self { layers: (0..candidates.layers.len()).map(layer).collect(), other })
    }

    /// Nanoseconds of layer `layer` at a precision that was measured.
    #[must_use]
    pub fn of(&self, layer: usize, precision: Precision) -> Option<u64> {
        self.layers.get(layer)?.get(&precision).copied()
    }
}

/// Nanoseconds of a pass through the integer network of `plan`: the median of ten times as many passes as each layer was
/// measured in, since all of these few would fall into a moment in which the machine does something else.
///
/// # Errors
/// A plan that does not fit the model, and those of [`LayerTimes::measure`].
pub fn measure_plan(
    artifact: &Artifact, plan: &PrecisionPlan, options: LatencyOptions, device: &Device,
) -> Result<u64, SearchPlanError> {
    check_batch(artifact, options.batch, MOST_PIXELS)?;
    let input = random_input(artifact, options.batch, device);
    let network = integer(artifact, plan, device)?;
    let pass = || milliseconds(|| network.forward(input.clone()));
    let passes = (0..WARM_UP + 10 * options.samples).map(|_| pass()).collect::<Result<Vec<_>, _>>();
    let passes = passes.map_err(EvaluationError::from)?;
    Ok(nanoseconds(median(&passes[WARM_UP..])))
}

/// The integer network of a plan. Times do not depend on the statistics of its BatchNorms: it has seen no images.
fn integer(artifact: &Artifact, plan: &PrecisionPlan, device: &Device) -> Result<Network, SearchPlanError> {
    let artifact = artifact.export_plan::<Value>(plan, &[], &Device::flex())?;
    let network = Network::load(&artifact, artifact.description.edge, Arithmetic::Integer, device);
    Ok(network.map_err(EvaluationError::from)?)
}

fn nanoseconds(milliseconds: f64) -> u64 {
    (milliseconds.max(0.0) * 1e6).round() as u64
}

/// A network and its times in milliseconds.
struct Run {
    precisions: Vec<Precision>,
    network: Network,
    whole: Vec<f64>,
    layers: Vec<Vec<f64>>,
}

impl Run {
    /// As many networks as the layer with the most choices has choices: in each, every layer is at another one of its own.
    fn all(
        artifact: &Artifact, candidates: &Candidates, device: &Device,
    ) -> Result<Vec<Self>, SearchPlanError> {
        let most = candidates.layers.iter().map(|layer| layer.choices.len()).max().unwrap_or(0);
        let run = |number: usize| {
            let picks: Vec<usize> =
                candidates.layers.iter().map(|layer| number % layer.choices.len()).collect();
            let plan = candidates.plan(&picks);
            let network = integer(artifact, &plan, device)?;
            let precisions = plan.iter().map(|(_, precision)| precision).collect();
            Ok(Self { precisions, network, whole: vec![], layers: vec![] })
        };
        (0..most).map(run).collect()
    }
}
