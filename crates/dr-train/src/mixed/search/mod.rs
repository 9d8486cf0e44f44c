//! The integer programme: one choice for each layer, the least loss in all, within a budget.
//!
//! With `x[l][i]` in {0, 1} saying whether layer `l` takes choice `i`:
//!
//! ```text
//! minimise  sum loss[l][i] x[l][i]   where  sum_i x[l][i] = 1 for each l,   sum cost[l][i] x[l][i] <= budget
//! ```
//!
//! This is the multiple-choice knapsack problem. A solver in pure Rust ([`microlp`]) proves the optimum, but it takes
//! minutes where a hundred layers have few sizes, since it tries all the ways in which layers can swap their choices. So
//! the problem is made smaller first, without losing its optimum (`reduce`): choices that cannot be in a plan better
//! than one already found are removed, and layers are merged into one with their pairs of choices, of which few are left.
//! What is left the solver mostly solves in some milliseconds; where it gives up, all layers are merged. That alone would
//! do, but takes up to half a minute where one layer decides: the solver tries its choices one after the other.
//!
//! Costs are whole numbers, so that whether a plan keeps to its budget is never a matter of rounding.

mod programme;
mod reduce;

use programme::Outcome;
use reduce::Reduced;
use thiserror::Error;

/// What a layer can be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// What it adds to the loss.
    pub loss: f64,
    /// What it takes from the budget, in the budget's smallest unit.
    pub cost: u64,
}

/// A layer and what it can be.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerChoices {
    /// Its name, for errors.
    pub name: String,
    /// At least one.
    pub choices: Vec<Choice>,
}

/// The best plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Optimum {
    /// The position of each layer's choice.
    pub picks: Vec<usize>,
    /// The sum of their losses.
    pub loss: f64,
    /// The sum of their costs; at most the budget.
    pub cost: u64,
}

/// Why there is no best plan.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum SearchError {
    /// A layer that cannot be anything.
    #[error("layer `{0}` has no choice: expected at least one")]
    NoChoice(String),
    /// A loss that cannot be added.
    #[error("layer `{layer}`: a choice's loss is {loss}: expected a finite number")]
    Loss {
        /// The layer.
        layer: String,
        /// The loss.
        loss: f64,
    },
    /// Costs beyond what floats hold exactly.
    #[error("the layers' highest costs add up to more than {MAX_COST}: expected less")]
    Cost,
    /// Even the cheapest choices cost too much.
    #[error("no plan costs {budget} or less: the smallest possible budget is {smallest}")]
    Impossible {
        /// What was asked for.
        budget: u64,
        /// The sum of the cheapest choices.
        smallest: u64,
    },
}

/// 2^53: up to here, floats are exact.
pub(super) const MAX_COST: u64 = 1 << 53;

/// Layers are merged until one has more choices than this, before the solver is asked. Measured on random networks of a
/// hundred layers: with more, it gets slower; with less, it gives up more often.
const LIMIT: usize = 16;

/// The choices with the least loss in all that cost no more than `budget`. Of plans that differ by less than the rounding
/// of their losses' sum, any.
///
/// # Errors
/// [`SearchError::Impossible`] if the budget is too small, and others for layers that are not as they should be.
pub fn minimize(layers: &[LayerChoices], budget: u64) -> Result<Optimum, SearchError> {
    check(layers)?;
    let smallest = smallest(layers);
    if smallest > budget {
        return Err(SearchError::Impossible { budget, smallest });
    }
    let mut problem = Reduced::new(layers, budget);
    if !problem.reduce(LIMIT) {
        match programme::solve(&problem) {
            Outcome::Optimal(plan) => problem.offer(&plan),
            Outcome::NothingBetter => {}
            Outcome::GaveUp => _ = problem.reduce(usize::MAX),
        }
    }
    let picks = problem.best;
    let chosen = || picks.iter().zip(layers).map(|(&pick, layer)| layer.choices[pick]);
    Ok(Optimum { loss: chosen().map(|c| c.loss).sum(), cost: chosen().map(|c| c.cost).sum(), picks })
}

/// The smallest budget for which there is a plan: the sum of the cheapest choices.
#[must_use]
pub fn smallest(layers: &[LayerChoices]) -> u64 {
    layers.iter().filter_map(|layer| layer.choices.iter().map(|choice| choice.cost).min()).sum()
}

fn check(layers: &[LayerChoices]) -> Result<(), SearchError> {
    let mut highest = 0u64;
    for LayerChoices { name, choices } in layers {
        if let Some(wrong) = choices.iter().find(|choice| !choice.loss.is_finite()) {
            return Err(SearchError::Loss { layer: name.clone(), loss: wrong.loss });
        }
        let cost = choices.iter().map(|choice| choice.cost).max();
        let cost = cost.ok_or_else(|| SearchError::NoChoice(name.clone()))?;
        highest = highest.checked_add(cost).filter(|&sum| sum <= MAX_COST).ok_or(SearchError::Cost)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layers(choices: &[Vec<(f64, u64)>]) -> Vec<LayerChoices> {
        let layer = |(i, choices): (usize, &Vec<(f64, u64)>)| LayerChoices {
            name: format!("layer {i}"),
            choices: choices.iter().map(|&(loss, cost)| Choice { loss, cost }).collect(),
        };
        choices.iter().enumerate().map(layer).collect()
    }

    /// The least loss of all plans within the budget.
    fn brute_force(layers: &[LayerChoices], budget: u64) -> Option<f64> {
        let mut plans = vec![(0.0, 0)];
        for layer in layers {
            let extend =
                |(loss, cost): (f64, u64)| layer.choices.iter().map(move |c| (loss + c.loss, cost + c.cost));
            plans = plans.into_iter().flat_map(extend).collect();
        }
        plans.into_iter().filter(|(_, cost)| *cost <= budget).map(|(loss, _)| loss).min_by(f64::total_cmp)
    }

    fn agrees_with_brute_force(choices: &[Vec<(f64, u64)>], budget: u64) {
        let layers = layers(choices);
        let least = layers.iter().map(|l| l.choices.iter().map(|c| c.cost).min().unwrap()).sum::<u64>();
        match (minimize(&layers, budget), brute_force(&layers, budget)) {
            (Ok(Optimum { picks, loss, cost }), Some(best)) => {
                let chosen = || picks.iter().zip(&layers).map(|(&pick, layer)| layer.choices[pick]);
                assert_eq!((picks.len(), chosen().map(|c| c.cost).sum::<u64>()), (layers.len(), cost));
                assert!(cost <= budget);
                assert_eq!(chosen().map(|c| c.loss).sum::<f64>(), loss);
                let scale = layers.iter().flat_map(|l| &l.choices).map(|c| c.loss.abs()).fold(0.0, f64::max);
                assert!((loss - best).abs() <= 1e-9 * best.abs() + 1e-13 * scale, "{loss} instead of {best}");
            }
            (Err(SearchError::Impossible { budget: asked, smallest }), None) => {
                assert_eq!((asked, smallest), (budget, least));
                assert!(budget < least);
            }
            (found, expected) => panic!("{found:?} instead of {expected:?}"),
        }
    }

    /// Any losses, of very different sizes, and few costs so that many are equal.
    fn any_choice() -> impl Strategy<Value = (f64, u64)> {
        let loss = prop_oneof![-1.0..1.0, 0.0..1e-6, 0.0..1e6, (0..4u32).prop_map(f64::from)];
        (loss, prop_oneof![0..8u64, 0..1000u64, 0..1u64 << 40])
    }

    /// As layers are: the loss falls fourfold with each bit, the cost rises with it.
    fn a_layer() -> impl Strategy<Value = Vec<(f64, u64)>> {
        (-6.0..0.0f64, 1..50u64, 0..7u32).prop_map(|(trace, size, noise)| {
            let choice = |i: u32| {
                (10f64.powf(trace) * 0.25f64.powi(i as i32), size * u64::from(2 * i + 2 + noise % 2))
            };
            (0..4).map(choice).collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn random_problems(
            choices in prop::collection::vec(prop::collection::vec(any_choice(), 1..=4), 0..=8), share in 0.0..1.2f64,
        ) {
            let most: u64 = choices.iter().map(|layer| layer.iter().map(|c| c.1).max().unwrap()).sum();
            agrees_with_brute_force(&choices, (most as f64 * share) as u64);
        }

        #[test]
        fn problems_like_networks(choices in prop::collection::vec(a_layer(), 1..=8), share in 0.0..1.1f64) {
            let most: u64 = choices.iter().map(|layer| layer.iter().map(|c| c.1).max().unwrap()).sum();
            agrees_with_brute_force(&choices, (most as f64 * share) as u64);
        }
    }

    #[test]
    fn a_hundred_layers_with_sixteen_choices() {
        // Sizes that repeat, as those of a network do: many plans are nearly as good as the best one.
        let layer = |l: u64| {
            let size = 144 << (l % 5);
            let trace = 10f64.powf(((l * 37) % 100) as f64 / -25.0);
            let choice = |i: u64| {
                let (w, a) = (2 + 2 * (i / 4), 2 + 2 * (i % 4));
                let noise = 1.0 + ((l * 16 + i) * 7919 % 101) as f64 / 1000.0;
                (
                    trace * size as f64 * noise * (0.25f64.powi(w as i32) + 0.25f64.powi(a as i32)),
                    size * w * a,
                )
            };
            (0..16).map(choice).collect::<Vec<_>>()
        };
        let layers = layers(&(0..100).map(layer).collect::<Vec<_>>());
        let (lowest, highest) = (smallest(&layers), layers.iter().map(|l| l.choices[15].cost).sum::<u64>());
        let mut last = f64::INFINITY;
        for step in 0..=10 {
            let budget = lowest + (highest - lowest) * step / 10;
            let found = minimize(&layers, budget).unwrap();
            assert!(found.cost <= budget && found.loss <= last);
            last = found.loss;
        }
    }

    /// As a language model of 30 blocks is: many layers, few sizes, losses over four orders of magnitude.
    #[test]
    fn two_hundred_layers_of_three_sizes() {
        let layer = |l: u64| {
            let size = [9, 3, 3, 9, 24, 24, 24][l as usize % 7] * 36_864;
            let sensitivity = 10f64.powf(((l * 7919) % 211) as f64 / -50.0) * size as f64;
            let noise = move |bits: u64| 1.0 + ((l * 31 + bits) * 7919 % 101) as f64 / 200.0;
            let choice =
                move |bits: u64| (sensitivity * noise(bits) * 0.23f64.powi(bits as i32), size * bits);
            [8, 6, 4, 3, 2].map(choice).to_vec()
        };
        let layers = layers(&(0..210).map(layer).collect::<Vec<_>>());
        let lowest = smallest(&layers);
        let mut last = f64::INFINITY;
        for step in 0..=24 {
            // 2 to 8 bits on average.
            let budget = lowest + lowest * 3 * step / 24;
            let found = minimize(&layers, budget).unwrap();
            assert!(found.cost <= budget && found.loss <= last);
            last = found.loss;
        }
    }

    /// A layer with nine choices, in whose losses there is some noise.
    fn a_wide_layer() -> impl Strategy<Value = Vec<(f64, u64)>> {
        let noise = prop::collection::vec(0.8..1.25f64, 9);
        (-5.0..0.0f64, 1..6u64, noise).prop_map(|(trace, size, noise)| {
            let choice = |(i, noise): (usize, f64)| {
                let (w, a) = (2 + 2 * (i / 3), 2 + 2 * (i % 3));
                let loss = 10f64.powf(trace) * (0.25f64.powi(w as i32) + 0.25f64.powi(a as i32)) * noise;
                (loss, 97 * size * (w * a) as u64)
            };
            noise.into_iter().enumerate().map(choice).collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        /// Where there are too many plans to try all of them.
        #[test]
        fn the_solver_agrees_with_merging_everything(
            choices in prop::collection::vec(a_wide_layer(), 40), share in 0.15..0.9f64,
        ) {
            let most: u64 = choices.iter().map(|layer| layer.iter().map(|c| c.1).max().unwrap()).sum();
            let (layers, budget) = (layers(&choices), (most as f64 * share) as u64);
            let found = minimize(&layers, budget).unwrap();
            let mut merged = Reduced::new(&layers, budget);
            prop_assert!(merged.reduce(usize::MAX));
            let best: f64 = merged.best.iter().zip(&layers).map(|(&i, layer)| layer.choices[i].loss).sum();
            prop_assert!((found.loss - best).abs() <= 1e-9 * best, "{} instead of {best}", found.loss);
        }
    }

    #[test]
    fn nothing_can_be_rounded_away() {
        // Better by 1e-10 of the loss, and a budget missed by one in 2^40.
        let budget = 1 << 40;
        let choices = [vec![(1.0, 0), (0.5, budget + 1), (1.0 - 1e-10, budget)], vec![(3.0, 0)]];
        let found = minimize(&layers(&choices), budget).unwrap();
        assert_eq!((found.picks, found.cost), (vec![2, 0], budget));
    }

    #[test]
    fn wrong_layers() {
        assert_eq!(minimize(&[], 0), Ok(Optimum { picks: vec![], loss: 0.0, cost: 0 }));
        assert_eq!(minimize(&layers(&[vec![]]), 1), Err(SearchError::NoChoice("layer 0".into())));
        let error = minimize(&layers(&[vec![(0.0, 1)], vec![(f64::NAN, 1)]]), 1).unwrap_err().to_string();
        assert_eq!(error, "layer `layer 1`: a choice's loss is NaN: expected a finite number");
        assert_eq!(minimize(&layers(&[vec![(0.0, u64::MAX)], vec![(0.0, 1)]]), 1), Err(SearchError::Cost));
        let error =
            minimize(&layers(&[vec![(0.0, 5), (1.0, 3)], vec![(0.0, 4)]]), 6).unwrap_err().to_string();
        assert_eq!(error, "no plan costs 6 or less: the smallest possible budget is 7");
    }
}
