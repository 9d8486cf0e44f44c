//! The order in which nodes can run.

use super::{Definer, Initializer, NodeInfo, OnnxReadError, ValueInfo};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};

/// Sorts nodes so that each comes after those that it needs, and otherwise as they were. Values must have one name each, and all
/// that nodes and outputs take must be there. What graphs inside of nodes take is not looked at.
pub(super) fn sort(
    nodes: Vec<NodeInfo>, inputs: &[ValueInfo], initializers: &BTreeMap<String, Initializer>,
    outputs: &[ValueInfo],
) -> Result<Vec<NodeInfo>, OnnxReadError> {
    let makers = makers(&nodes, inputs, initializers)?;
    if let Some(output) = outputs.iter().find(|output| !makers.contains_key(output.name.as_str())) {
        return Err(OnnxReadError::MissingOutput(output.name.clone()));
    }
    // For each node, which others it needs and which need it, once for each value.
    let mut needs = vec![Vec::new(); nodes.len()];
    let mut needed_by = vec![Vec::new(); nodes.len()];
    for (index, node) in nodes.iter().enumerate() {
        for value in node.inputs.iter().flatten() {
            let Some(maker) = makers.get(value.as_str()) else {
                return Err(OnnxReadError::MissingValue { node: node.name.clone(), value: value.clone() });
            };
            if let Some(maker) = *maker {
                needs[index].push(maker);
                needed_by[maker].push(index);
            }
        }
    }
    let mut missing: Vec<_> = needs.iter().map(Vec::len).collect();
    let mut ready: BinaryHeap<_> =
        (0..nodes.len()).filter(|&index| missing[index] == 0).map(Reverse).collect();
    let mut order = Vec::with_capacity(nodes.len());
    while let Some(Reverse(index)) = ready.pop() {
        order.push(index);
        for &next in &needed_by[index] {
            missing[next] -= 1;
            if missing[next] == 0 {
                ready.push(Reverse(next));
            }
        }
    }
    if order.len() < nodes.len() {
        return Err(OnnxReadError::Cycle(nodes[in_cycle(&needs, &missing)].name.clone()));
    }
    let mut nodes: Vec<_> = nodes.into_iter().map(Some).collect();
    Ok(order.into_iter().filter_map(|index| nodes[index].take()).collect())
}

/// All values, and the node that makes each, if one does.
fn makers<'a>(
    nodes: &'a [NodeInfo], inputs: &'a [ValueInfo], initializers: &'a BTreeMap<String, Initializer>,
) -> Result<HashMap<&'a str, Option<usize>>, OnnxReadError> {
    let mut makers: HashMap<_, _> = initializers.keys().map(|name| (name.as_str(), None)).collect();
    let mut define = |name: &'a str, maker, by: &dyn Fn() -> Definer| match makers.insert(name, maker) {
        None => Ok(()),
        Some(_) => Err(OnnxReadError::DuplicateValue { name: name.to_owned(), by: by() }),
    };
    for input in inputs {
        define(&input.name, None, &|| Definer::Input)?;
    }
    for (index, node) in nodes.iter().enumerate() {
        for value in node.outputs.iter().flatten() {
            define(value, Some(index), &|| Definer::Node(node.name.clone()))?;
        }
    }
    Ok(makers)
}

/// A node that needs itself, where some nodes still miss what they need: each such node needs another, and who goes on from need to
/// need comes round in the end.
fn in_cycle(needs: &[Vec<usize>], missing: &[usize]) -> usize {
    let mut seen = vec![false; needs.len()];
    let mut node = missing.iter().position(|&count| count > 0).unwrap_or(0);
    while !std::mem::replace(&mut seen[node], true) {
        node = needs[node].iter().copied().find(|&needed| missing[needed] > 0).unwrap_or(node);
    }
    node
}
