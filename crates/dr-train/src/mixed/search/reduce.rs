//! Making a problem smaller without losing its optimum.
//!
//! With a price `p >= 0` for each unit of cost, no plan can lose less than
//!
//! ```text
//! bound(p) = sum over layers of min_i (loss_i + p cost_i)  -  p budget
//! ```
//!
//! (the Lagrangian relaxation). The *excess* of a choice is what `loss_i + p cost_i` is above its layer's minimum. A plan
//! with this choice loses at least `bound(p)` and the excess: if that is no less than what a known plan loses, the choice
//! can go. The same holds for the sum of two layers' excesses, so that of the pairs of choices of two merged layers few
//! are left. The best price comes from the linear relaxation, which is solved by going down the layers' lower convex
//! hulls, steepest step first (Sinha and Zoltners, "The multiple-choice knapsack problem", 1979).

use super::{Choice, LayerChoices};

/// What is less than the rounding of the bound is no gain: relative to the sum of all that it adds up.
const ROUNDING: f64 = 1e-12;

/// One of the ways to choose for a group of layers.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) loss: f64,
    pub(super) cost: u64,
    /// Layers and their choices.
    pub(super) picks: Vec<(u32, u32)>,
}

/// Ways to choose for a group of layers, cheapest first; each loses less than the one before.
type Group = Vec<Item>;

/// A problem in which some layers are merged, and the best plan so far.
#[derive(Debug)]
pub(super) struct Reduced {
    pub(super) groups: Vec<Group>,
    pub(super) budget: u64,
    /// The choice of each layer.
    pub(super) best: Vec<usize>,
    best_loss: f64,
}

/// The bound at the best price.
struct Bound {
    price: f64,
    /// The least `loss + price * cost` of each group.
    least: Vec<f64>,
    /// What the best plan loses above the bound: choices of this excess can go.
    gap: f64,
}

impl Bound {
    fn excess(&self, group: usize, item: &Item) -> f64 {
        item.loss + self.price * item.cost as f64 - self.least[group]
    }
}

impl Reduced {
    /// The budget must be enough for the cheapest choices.
    pub(super) fn new(layers: &[LayerChoices], budget: u64) -> Self {
        let group = |(l, layer): (usize, &LayerChoices)| {
            let item = |i: usize| {
                let Choice { loss, cost } = layer.choices[i];
                Item { loss, cost, picks: vec![(l as u32, i as u32)] }
            };
            undominated(&layer.choices).into_iter().map(item).collect()
        };
        let groups: Vec<Group> = layers.iter().enumerate().map(group).collect();
        let cheapest = vec![0; groups.len()];
        let mut problem = Self { groups, budget, best: vec![0; layers.len()], best_loss: f64::INFINITY };
        problem.offer(&cheapest);
        problem
    }

    /// What the plan costs that takes the item at each of these positions.
    pub(super) fn cost(&self, plan: &[usize]) -> u64 {
        plan.iter().zip(&self.groups).map(|(&i, group)| group[i].cost).sum()
    }

    /// Keeps a plan if it is within the budget and the best so far.
    pub(super) fn offer(&mut self, plan: &[usize]) {
        let loss: f64 = plan.iter().zip(&self.groups).map(|(&i, group)| group[i].loss).sum();
        if self.cost(plan) <= self.budget && loss < self.best_loss {
            self.best_loss = loss;
            for (&i, group) in plan.iter().zip(&self.groups) {
                for &(layer, choice) in &group[i].picks {
                    self.best[layer as usize] = choice as usize;
                }
            }
        }
    }

    /// Removes what cannot be in a better plan than the best so far, and merges groups until one has more than `limit`
    /// items. Whether nothing is left to do: then the best plan so far is an optimum.
    pub(super) fn reduce(&mut self, limit: usize) -> bool {
        loop {
            let (price, mut plan) = self.relax();
            self.improve(&mut plan);
            self.offer(&plan);
            let bound = self.bound(price);
            for (g, group) in self.groups.iter_mut().enumerate() {
                group.retain(|item| bound.excess(g, item) < bound.gap);
            }
            let mut order: Vec<usize> = (0..self.groups.len()).collect();
            order.sort_by_key(|&g| self.groups[g].len());
            let [first, second, ..] = order[..] else {
                self.offer_the_last();
                return true;
            };
            let merged = self.merge(first, second, &bound);
            let grown = merged.len() > limit;
            self.groups.remove(first.max(second));
            self.groups[first.min(second)] = merged;
            if !self.fits() {
                return true;
            }
            if grown {
                return false;
            }
        }
    }

    /// Whether there is a plan left within the budget.
    fn fits(&self) -> bool {
        let cheapest: Option<u64> = self.groups.iter().map(|group| Some(group.first()?.cost)).sum();
        cheapest.is_some_and(|cost| cost <= self.budget)
    }

    /// With at most one group left, its best item within the budget is the best plan that is left.
    fn offer_the_last(&mut self) {
        if let Some(group) = self.groups.first() {
            // They lose less and less.
            let within = group.partition_point(|item| item.cost <= self.budget);
            if let Some(last) = within.checked_sub(1) {
                self.offer(&[last]);
            }
        }
    }

    /// The linear relaxation: the price of a unit of cost in it, and its plan less the step that does not fit.
    fn relax(&self) -> (f64, Vec<usize>) {
        struct Step {
            slope: f64,
            group: usize,
            to: usize,
            cost: u64,
        }
        let mut steps = vec![];
        for (g, group) in self.groups.iter().enumerate() {
            for pair in hull(group).windows(2) {
                let (from, to) = (&group[pair[0]], &group[pair[1]]);
                steps.push(Step { slope: slope(from, to), group: g, to: pair[1], cost: to.cost - from.cost });
            }
        }
        // Of one group the slopes fall, and a stable sort keeps the order of those that rounding made equal.
        steps.sort_by(|a, b| b.slope.total_cmp(&a.slope));
        let mut plan = vec![0; self.groups.len()];
        let mut left = self.budget - self.cost(&plan);
        for step in steps {
            if step.cost > left {
                return (step.slope, plan);
            }
            left -= step.cost;
            plan[step.group] = step.to;
        }
        (0.0, plan)
    }

    /// Changes the choices of one or two groups as long as that gains anything: each time the two that gain most
    /// together.
    fn improve(&self, plan: &mut [usize]) {
        /// Another item for a group.
        #[derive(Clone, Copy)]
        struct Change {
            group: usize,
            item: usize,
            loss: f64,
            cost: i64,
        }
        // Costs are below 2^53.
        let cost_of = |item: &Item| item.cost as i64;
        loop {
            let left = self.budget as i64 - self.cost(plan) as i64;
            // To change one group is to change another one by nothing.
            let mut changes = vec![Change { group: usize::MAX, item: 0, loss: 0.0, cost: 0 }];
            for (g, group) in self.groups.iter().enumerate() {
                let now = &group[plan[g]];
                let change = |(i, item): (usize, &Item)| {
                    let (loss, cost) = (item.loss - now.loss, cost_of(item) - cost_of(now));
                    Change { group: g, item: i, loss, cost }
                };
                changes.extend(group.iter().enumerate().filter(|(i, _)| *i != plan[g]).map(change));
            }
            changes.sort_unstable_by_key(|change| change.cost);
            // Up to each position: the best change, and the best of another group.
            let mut best_two: Vec<[Option<Change>; 2]> = vec![];
            let mut two: [Option<Change>; 2] = [None; 2];
            for &change in &changes {
                two = match two {
                    [Some(a), _] if change.loss < a.loss && change.group != a.group => {
                        [Some(change), Some(a)]
                    }
                    [Some(a), b] if change.loss < a.loss => [Some(change), b],
                    [Some(a), b] if change.group != a.group && b.is_none_or(|b| change.loss < b.loss) => {
                        [Some(a), Some(change)]
                    }
                    [None, _] => [Some(change), None],
                    other => other,
                };
                best_two.push(two);
            }
            let partner = |change: &Change| {
                let fitting = changes.partition_point(|other| other.cost <= left - change.cost);
                let two = best_two[fitting.checked_sub(1)?];
                two.into_iter().flatten().find(|other| other.group != change.group)
            };
            let pairs = changes.iter().filter_map(|change| Some((*change, partner(change)?)));
            let most = pairs.min_by(|a, b| (a.0.loss + a.1.loss).total_cmp(&(b.0.loss + b.1.loss)));
            match most {
                // What rounding may have made of nothing is no gain: so it ends.
                Some((a, b)) if a.loss + b.loss < -ROUNDING * (a.loss.abs() + b.loss.abs()) => {
                    for change in [a, b].into_iter().filter(|change| change.group != usize::MAX) {
                        plan[change.group] = change.item;
                    }
                }
                _ => return,
            }
        }
    }

    fn bound(&self, price: f64) -> Bound {
        let value = |item: &Item| item.loss + price * item.cost as f64;
        let least: Vec<f64> =
            self.groups.iter().map(|group| group.iter().map(value).fold(f64::INFINITY, f64::min)).collect();
        let budget = price * self.budget as f64;
        let added: f64 = least.iter().map(|value| value.abs()).sum::<f64>() + budget + self.best_loss.abs();
        let gap = self.best_loss - (least.iter().sum::<f64>() - budget) - ROUNDING * added;
        Bound { price, least, gap }
    }

    /// The pairs of two groups' items that may be in a better plan.
    fn merge(&self, first: usize, second: usize, bound: &Bound) -> Group {
        let with_excess = |g: usize| self.groups[g].iter().map(move |item| (bound.excess(g, item), item));
        let mut others: Vec<(f64, &Item)> = with_excess(second).collect();
        others.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut pairs = vec![];
        for (excess, a) in with_excess(first) {
            let fitting = others.partition_point(|(other, _)| excess + other < bound.gap);
            pairs.extend(others[..fitting].iter().map(|&(_, b)| (a, b)));
        }
        let sum = |(a, b): &(&Item, &Item)| Choice { loss: a.loss + b.loss, cost: a.cost + b.cost };
        let keys: Vec<Choice> = pairs.iter().map(sum).collect();
        let item = |i: usize| {
            let ((a, b), Choice { loss, cost }) = (pairs[i], keys[i]);
            Item { loss, cost, picks: [&a.picks[..], &b.picks[..]].concat() }
        };
        undominated(&keys).into_iter().map(item).collect()
    }
}

/// The positions of those that lose less than all that cost as much or less, cheapest first.
fn undominated(keys: &[Choice]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..keys.len()).collect();
    order.sort_unstable_by(|&a, &b| {
        keys[a].cost.cmp(&keys[b].cost).then(keys[a].loss.total_cmp(&keys[b].loss)).then(a.cmp(&b))
    });
    let mut least = f64::INFINITY;
    order.retain(|&i| {
        let better = keys[i].loss < least;
        least = least.min(keys[i].loss);
        better
    });
    order
}

/// The loss that a unit of cost saves between two items of a group.
fn slope(from: &Item, to: &Item) -> f64 {
    (from.loss - to.loss) / (to.cost - from.cost) as f64
}

/// The positions of the items on the lower convex hull of a group's losses over its costs.
fn hull(group: &[Item]) -> Vec<usize> {
    let mut hull: Vec<usize> = vec![];
    for (i, item) in group.iter().enumerate() {
        while let [.., a, b] = hull[..]
            && slope(&group[b], item) >= slope(&group[a], &group[b])
        {
            hull.pop();
        }
        hull.push(i);
    }
    hull
}
