//! What the quantization of one layer alone does to the outputs of a network, and which layers are left in floats for it.

use super::planes::Planes;
use crate::nn::Value;
use dr_runtime::graph::ElementType;
use std::collections::BTreeSet;

/// A layer whose quantization alone changes the outputs by a larger part than this is left in floats.
const TOLERANCE: f64 = 0.01;

/// What is known of a layer that is quantized alone.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Alone {
    /// The relative error of the outputs of the network.
    pub error: f64,
    /// Multiply-adds of the layer.
    pub operations: f64,
}

/// The layers that are left in floats: those that change the outputs too much, the largest squared error for their multiply-adds first, as
/// long as they have no more than `share` of all multiply-adds.
pub(super) fn in_floats(layers: &[Alone], share: f64) -> BTreeSet<usize> {
    let mut left = share * layers.iter().map(|layer| layer.operations).sum::<f64>();
    let mut worst: Vec<usize> = (0..layers.len()).filter(|&at| layers[at].error > TOLERANCE).collect();
    let gain = |at: usize| layers[at].error.powi(2) / layers[at].operations.max(1.0);
    worst.sort_by(|&a, &b| gain(b).total_cmp(&gain(a)));
    worst.retain(|&at| {
        let fits = layers[at].operations <= left;
        left -= if fits { layers[at].operations } else { 0.0 };
        fits
    });
    worst.into_iter().collect()
}

/// Sums of squares over outputs: of differences, and of what they should be.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Squares {
    differences: f64,
    expected: f64,
}

impl Squares {
    /// Adds outputs to the sums. Those that are no floats say nothing about sizes of errors.
    pub fn add(&mut self, found: &Value, expected: &Value) {
        let (Some(found), Some(expected)) = (floats(found), floats(expected)) else { return };
        for (found, expected) in found.iter().zip(&expected) {
            self.differences += f64::from(found - expected).powi(2);
            self.expected += f64::from(*expected).powi(2);
        }
    }

    /// The relative error.
    pub fn error(&self) -> f64 {
        (self.differences / self.expected.max(f64::MIN_POSITIVE)).sqrt()
    }
}

fn floats(value: &Value) -> Option<Vec<f32>> {
    match value {
        Value::Array(array) if array.element() != ElementType::F32 => None,
        Value::Array(array) => array.floats().map(Into::into).ok(),
        other => Some(Planes::of(other).values),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dr_runtime::arrays::Array;

    #[test]
    fn the_worst_for_their_multiply_adds_are_left() {
        let layer = |error: f64, operations: f64| Alone { error, operations };
        // Much of all; tolerable; too much together with those that gain more.
        let layers = [
            layer(0.5, 60.0),
            layer(0.009, 1.0),
            layer(0.02, 4.0),
            layer(0.03, 5.0),
            layer(0.2, 6.0),
            layer(0.0, 24.0),
        ];
        assert_eq!(in_floats(&layers, 0.1), BTreeSet::from([2, 4]));
        assert_eq!(in_floats(&layers, 0.15), BTreeSet::from([2, 3, 4]));
        assert_eq!(in_floats(&layers, 1.0), BTreeSet::from([0, 2, 3, 4]));
        assert!(in_floats(&layers, 0.0).is_empty() && in_floats(&[], 1.0).is_empty());
        assert!(in_floats(&[layer(f64::NAN, 1.0)], 1.0).is_empty());
    }

    #[test]
    fn errors_are_those_of_all_outputs() {
        let mut squares = Squares::default();
        let array = |values: &[f32]| Value::from(Array::vector(values.to_vec()));
        squares.add(&array(&[1.0, 2.0]), &array(&[1.0, 1.0]));
        squares.add(&Array::integers(&[7]).into(), &Array::integers(&[1]).into());
        squares.add(&array(&[3.0]), &array(&[3.0]));
        assert!((squares.error() - (1.0f64 / 11.0).sqrt()).abs() < 1e-12);
    }
}
