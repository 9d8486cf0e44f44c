//! What is left of the problem, for the solver.

use super::reduce::{Item, Reduced};
use microlp::{
    ComparisonOp, Error, OptimizationDirection, Problem, SolutionStatus, SolveOptions, SolveOutcome, Variable,
};

/// After so many nodes of its search the solver gives up: 1 or 2 seconds for a hundred layers. A count, not a time, so that the same
/// problem always takes the same way.
const NODES: u64 = 3000;

/// So many plans that are too expensive, by less than the solver's tolerance, are excluded one by one.
const EXCLUDED: usize = 20;

/// What the solver found.
pub(super) enum Outcome {
    /// The best plan: a position in each group.
    Optimal(Vec<usize>),
    /// No plan at all: none is better than the one that is known.
    NothingBetter,
    /// It could not tell.
    GaveUp,
}

/// The best plan of the groups that are left.
///
/// The solver's tolerances are absolute and it prefers numbers near 1. So losses count from each group's last item and
/// costs from its first, and both are divided by the largest such difference. A plan may then exceed the budget by
/// some 1e-7 of a cost: such a plan is excluded, and the solver asked again.
pub(super) fn solve(reduced: &Reduced) -> Outcome {
    let groups = &reduced.groups;
    let spread = |of: fn(&Item, &Item) -> f64| {
        let spreads = groups.iter().map(|group| of(&group[0], &group[group.len() - 1]));
        spreads.fold(0.0, f64::max)
    };
    let unit_loss = spread(|first, last| first.loss - last.loss);
    let unit_cost = spread(|first, last| (last.cost - first.cost) as f64);
    if !(unit_loss > 0.0 && unit_loss.is_normal() && unit_cost > 0.0) {
        return Outcome::GaveUp;
    }

    let mut problem = Problem::new(OptimizationDirection::Minimize);
    let mut costs: Vec<(Variable, f64)> = vec![];
    let mut variables: Vec<Vec<Variable>> = vec![];
    for group in groups {
        let (cheapest, best) = (group[0].cost, group[group.len() - 1].loss);
        let of: Vec<Variable> =
            group.iter().map(|item| problem.add_binary_var((item.loss - best) / unit_loss)).collect();
        costs.extend(of.iter().zip(group).map(|(&x, item)| (x, (item.cost - cheapest) as f64 / unit_cost)));
        problem.add_constraint(of.iter().map(|&x| (x, 1.0)).collect::<Vec<_>>(), ComparisonOp::Eq, 1.0);
        variables.push(of);
    }
    let least: u64 = groups.iter().map(|group| group[0].cost).sum();
    let left = (reduced.budget - least) as f64 / unit_cost;
    problem.add_constraint(costs, ComparisonOp::Le, left);

    for _ in 0..EXCLUDED {
        let mut options = SolveOptions::default();
        options.node_limit = Some(NODES);
        let solution = match problem.solve_with(options) {
            Ok(SolveOutcome::Solution(solution)) if solution.status() == SolutionStatus::Optimal => solution,
            Err(Error::Infeasible) => return Outcome::NothingBetter,
            _ => return Outcome::GaveUp,
        };
        let picked = |of: &Vec<Variable>| of.iter().position(|&x| solution.var_value(x) > 0.5);
        let Some(plan) = variables.iter().map(picked).collect::<Option<Vec<usize>>>() else {
            return Outcome::GaveUp;
        };
        if reduced.cost(&plan) <= reduced.budget {
            return Outcome::Optimal(plan);
        }
        let taken: Vec<(Variable, f64)> = plan.iter().zip(&variables).map(|(&i, of)| (of[i], 1.0)).collect();
        let all_but_one = taken.len() as f64 - 1.0;
        problem.add_constraint(taken, ComparisonOp::Le, all_but_one);
    }
    Outcome::GaveUp
}
