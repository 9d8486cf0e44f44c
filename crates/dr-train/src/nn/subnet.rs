//! One mixture of a network that was trained for all of them.

use super::{Assignment, LayerSpec, Model, NamedLayer, Pass, Value};
use crate::data::Input;
use burn::module::Module;
use dr_precision::{Precision, PrecisionSet};

/// The network with only the BatchNorms that `pass` uses, and their statistics those of `batches`, in evaluation mode.
///
/// Mixed passes share BatchNorms with so many others that the running statistics of training fit none of them.
pub fn subnet<I: Input + Into<Value>>(mut network: Model, pass: &Pass, batches: &[I]) -> Model {
    network.norms_after().into_iter().for_each(|(layer, norm)| norm.keep(pass, layer));
    recalibrate(network, pass, batches)
}

/// Sets the statistics of the BatchNorms that `pass` uses to the mean of those of `batches`; without any, they stay as
/// they are. The result is in evaluation mode.
fn recalibrate<I: Input + Into<Value>>(network: Model, pass: &Pass, batches: &[I]) -> Model {
    let Some(first) = batches.first() else { return network.valid() };
    // Statistics are taken on devices that track gradients only; a graph that nothing goes back through would stay in memory.
    let mut network = network.fork(&first.device().autodiff()).train().no_grad();
    for (seen, input) in batches.iter().enumerate() {
        // The mean of all so far: each new one counts as much as every earlier one.
        network.norms().into_iter().for_each(|norm| norm.set_momentum(1.0 / (seen + 1) as f64));
        network.forward(input.clone().autodiff(), pass);
    }
    network.norms().into_iter().for_each(|norm| norm.set_momentum(TRAINING_MOMENTUM));
    network.valid()
}

/// Burn's default.
const TRAINING_MOMENTUM: f64 = 0.1;

/// After the training of a supernet: gives every precision of `set` BatchNorms with statistics of its own, so that the
/// network runs at each of them like a jointly trained one. The highest and the lowest have theirs from training, unless
/// mixed passes had a part in them.
pub fn finish<I: Input + Into<Value>>(
    mut network: Model, set: &PrecisionSet, shared: bool, batches: &[I],
) -> Model {
    for precision in set.iter() {
        let assignment = everywhere(&mut network, precision);
        let (mixed, uniform) = (Pass::mixed(&assignment), Pass::at(precision));
        let trained = !shared && (precision == set.highest() || precision == set.lowest());
        let mut subnet = subnet(network.clone(), &mixed, batches);
        for ((layer, norm), (_, of)) in network.norms_after().into_iter().zip(subnet.norms_after()) {
            norm.replace(&mixed, layer, of);
            if !trained {
                norm.replace(&uniform, layer, of);
            }
        }
    }
    network
}

/// The assignment of one precision to all layers that are not pinned.
fn everywhere(network: &mut Model, precision: Precision) -> Assignment {
    let of = |NamedLayer { layer, .. }: NamedLayer<'_>| {
        let pinned = layer.quantizers().spec().and_then(LayerSpec::only);
        (layer.weight_id(), pinned.unwrap_or(precision))
    };
    network.layers().into_iter().map(of).collect()
}
