//! [`Program`]: the steps that a graph becomes. Passes over the graph fold normalizations, residual additions and activations into the
//! products before them, hand codes from product to product, put products of one input together, and assign memory once.

use crate::RuntimeError;
use crate::graph::{
    Activation, Binary, Constant, ElementType, Graph, Kind, Node, Op, TensorOp, Unary, Value,
};
use dr_kernels::integer;

/// Steps in order, and where their values lie.
#[derive(Clone, Debug, Default)]
pub(crate) struct Program {
    pub steps: Vec<Step>,
    /// The layers with what follows them; a layer that several nodes use is there as often.
    pub uses: Vec<Use>,
    /// The slot of each node's value.
    pub values: Vec<usize>,
    /// The last step that reads each node's value.
    pub until: Vec<usize>,
    /// The slot of the codes that each use takes.
    pub codes: Vec<usize>,
    /// How many slots there are for values and for codes.
    pub slots: [usize; 2],
    /// Whether the input is read by layers only, which take it as it comes, with the channels first.
    pub input_as_it_comes: bool,
}

/// A layer and what is folded into it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Use {
    pub layer: usize,
    pub norm: Option<usize>,
    /// A factor, and what is added, before the activation. There is no residual unless they are 1 and 0.
    pub slope: [f32; 2],
    pub activation: integer::Activation,
    /// The nodes after it, in their order: each a factor or an addend, of all outputs or of each.
    pub last: Vec<Value>,
}

/// A step.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// Products that do not depend on each other, of one input.
    Products(Vec<Product>),
    /// `silu(gate) * up`
    Gate { gate: Value, up: Value, output: Value },
    /// Any other operation.
    Op { op: Op, inputs: Vec<Value>, output: Value },
}

/// One product.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Product {
    /// The number of its [`Use`].
    pub of: usize,
    pub input: Value,
    /// Whether the product that made the input made the codes of it that this one takes.
    pub has_codes: bool,
    /// What is added before the activation.
    pub residual: Option<Value>,
    pub output: Value,
    /// Whether somebody reads the result as values.
    pub values: bool,
    /// The use that takes the result as codes.
    pub codes_for: Option<usize>,
}

impl Step {
    /// The values that it reads.
    pub fn inputs(&self) -> Vec<Value> {
        match self {
            Self::Products(products) => {
                products.iter().flat_map(|p| [p.input].into_iter().chain(p.residual)).collect()
            }
            Self::Gate { gate, up, .. } => vec![*gate, *up],
            Self::Op { op: Op::Enlarge, inputs, .. } => vec![inputs[0]],
            Self::Op { inputs, .. } => inputs.clone(),
        }
    }

    fn outputs(&self) -> Vec<Value> {
        match self {
            Self::Products(products) => products.iter().map(|p| p.output).collect(),
            Self::Gate { output, .. } | Self::Op { output, .. } => vec![*output],
        }
    }
}

/// What the nodes of a graph become: a node is folded into another one, or it stays.
struct Folded {
    /// The node that has the value of this one in the end.
    last: Vec<Value>,
    /// The product that ends at a node.
    products: Vec<Option<Product>>,
    uses: Vec<Use>,
}

impl Program {
    /// The program of a graph, in which the layers that are `integer` take codes of others.
    pub fn new(graph: &Graph, integer: impl Fn(usize) -> bool) -> Self {
        let folded = fold(graph);
        let mut steps = schedule(graph, folded.products, &folded.last);
        let results = graph.results();
        let integer = |of: usize| integer(folded.uses[of].layer);
        hand_on_codes(&mut steps, integer, graph.nodes().len(), &results);
        let as_it_comes = |step: &Step| match step {
            Step::Products(products) => products.iter().all(|p| p.residual != Some(0)),
            Step::Op { op: Op::Flatten | Op::Array(TensorOp::Array), .. } => true,
            other => !other.inputs().contains(&0),
        };
        let input_as_it_comes = steps.iter().all(as_it_comes) && !results.contains(&0);
        let mut program = Self { steps, uses: folded.uses, input_as_it_comes, ..Self::default() };
        program.assign_memory(graph.nodes().len(), &results);
        program
    }

    /// Gives each value and each use's codes a slot, which others have before and after.
    fn assign_memory(&mut self, nodes: usize, results: &[Value]) {
        let mut until = [vec![0; nodes], vec![0; self.uses.len()]];
        for (at, step) in self.steps.iter().enumerate() {
            step.inputs().into_iter().for_each(|value| until[0][value] = at);
            if let Step::Products(products) = step {
                products.iter().for_each(|product| until[1][product.of] = at);
            }
        }
        // Results stay.
        results.iter().for_each(|&value| until[0][value] = self.steps.len());
        let mut slots = [Slots::default(), Slots::default()];
        let mut of = [vec![usize::MAX; nodes], vec![usize::MAX; self.uses.len()]];
        if !self.input_as_it_comes {
            of[0][0] = slots[0].take(until[0][0]);
        }
        for (at, step) in self.steps.iter().enumerate() {
            let mut take = |kind: usize, entry: usize| {
                if of[kind][entry] == usize::MAX {
                    of[kind][entry] = slots[kind].take(until[kind][entry].max(at));
                }
            };
            step.outputs().into_iter().for_each(|value| take(0, value));
            if let Step::Products(products) = step {
                // The input's codes, if they are made in this step, and those that are handed on.
                products.iter().for_each(|p| take(1, p.of));
                products.iter().filter_map(|p| p.codes_for).for_each(|next| take(1, next));
            }
            slots.iter_mut().for_each(|slots| slots.free(at));
        }
        [self.values, self.codes] = of;
        [self.until, _] = until;
        self.slots = slots.map(|slots| slots.busy_until.len());
    }
}

/// [`Graph::sizes`], if the values that are joined have as many rows and columns, and what is enlarged has some.
pub(crate) fn checked_sizes(graph: &Graph, image: [usize; 2]) -> Result<Vec<[usize; 2]>, RuntimeError> {
    let sizes = graph.sizes(image);
    for (node, Node { op, inputs }) in graph.nodes().iter().enumerate() {
        let first = inputs.first().map_or([1; 2], |&input| sizes[input]);
        let fits = match op {
            // Each pixel, with a row.
            Op::Multiply if graph.kind(inputs[0]) != graph.kind(inputs[1]) => true,
            Op::Add | Op::Multiply | Op::Concat => inputs.iter().all(|&input| sizes[input] == first),
            Op::Enlarge => sizes[node].contains(&0) || !first.contains(&0),
            _ => true,
        };
        if !fits {
            let [rows, columns] = image;
            let found = format!("images of {rows} rows and {columns} columns");
            let expected = format!("a size for which the inputs of node {node}, {op:?}, fit together");
            return Err(RuntimeError::Input { found, expected });
        }
    }
    Ok(sizes)
}

/// Slots of memory.
#[derive(Default)]
struct Slots {
    /// The last step that reads what is in each; `None` in a free one.
    busy_until: Vec<Option<usize>>,
}

impl Slots {
    fn take(&mut self, until: usize) -> usize {
        let free = self.busy_until.iter().position(Option::is_none);
        let slot = free.unwrap_or_else(|| {
            self.busy_until.push(None);
            self.busy_until.len() - 1
        });
        self.busy_until[slot] = Some(until);
        slot
    }

    fn free(&mut self, done: usize) {
        for until in &mut self.busy_until {
            until.take_if(|until| *until <= done);
        }
    }
}

/// Folds what follows layers into them: BatchNorm, then an addition, then an activation, then factors and addends, each if nobody else reads what
/// is before it.
fn fold(graph: &Graph) -> Folded {
    let (nodes, gated) = (graph.nodes(), gated(graph));
    // Those that read more than a size.
    let mut readers: Vec<Vec<Value>> = vec![vec![]; nodes.len()];
    for (at, node) in nodes.iter().enumerate() {
        node.read().iter().for_each(|&input| readers[input].push(at));
    }
    let results = graph.results();
    let only_reader = |value: Value| match readers[value][..] {
        [reader] if !results.contains(&value) => Some((reader, &nodes[reader])),
        _ => None,
    };
    let mut folded =
        Folded { last: (0..nodes.len()).collect(), products: vec![None; nodes.len()], uses: vec![] };
    for (at, Node { op, inputs }) in nodes.iter().enumerate() {
        let Op::Layer(layer) = *op else { continue };
        let mut chain = vec![at];
        let mut end = at;
        let mut of =
            Use { layer, norm: None, slope: [1.0, 0.0], activation: integer::Activation::None, last: vec![] };
        let mut residual = None;
        if let Some((reader, Node { op: Op::BatchNorm(norm), .. })) = only_reader(end) {
            (of.norm, end) = (Some(*norm), reader);
            chain.push(end);
        }
        if let Some((reader, Node { op: Op::Add, inputs })) = only_reader(end)
            && folded.products[reader].is_none()
            && folded.last[reader] == reader
            && inputs[0] != inputs[1]
        {
            residual = inputs.iter().copied().find(|&input| input != end);
            end = reader;
            chain.push(end);
        }
        if let Some((reader, node)) = only_reader(end)
            && !gated[reader]
            && let Some((slope, activation)) = activation_of(&node.op)
            && (residual.is_none() || slope == [1.0, 0.0])
        {
            (of.slope, of.activation, end) = (slope, activation, reader);
            chain.push(end);
        }
        while let Some((reader, node)) = only_reader(end)
            && is_affine(graph, node, end)
        {
            of.last.push(reader);
            end = reader;
            chain.push(end);
        }
        chain.iter().for_each(|&node| folded.last[node] = end);
        // Whoever comes later finds the addition taken.
        folded.products[end] = Some(Product {
            of: folded.uses.len(),
            input: inputs[0],
            has_codes: false,
            residual,
            output: end,
            values: false,
            codes_for: None,
        });
        folded.uses.push(of);
    }
    folded
}

/// An activation that kernels have, of a factor times a value and an addend.
fn activation_of(op: &Op) -> Option<([f32; 2], integer::Activation)> {
    let activation = match *op {
        Op::Activation(activation) => activation.into(),
        Op::Array(TensorOp::Unary(unary)) => match unary {
            Unary::Relu => integer::Activation::Relu,
            Unary::HardSwish => integer::Activation::HardSwish,
            Unary::Sigmoid => integer::Activation::Sigmoid,
            Unary::Silu => integer::Activation::Silu,
            // A layer's own scales are found again by a division by the slope.
            Unary::HardSigmoid { alpha, beta } if alpha.is_normal() => {
                return Some(([alpha, beta], integer::Activation::Unit));
            }
            _ => return None,
        },
        _ => return None,
    };
    Some(([1.0, 0.0], activation))
}

/// Whether a node multiplies its input `x` by a constant, or adds one: a number, or one for each channel.
fn is_affine(graph: &Graph, node: &Node, x: Value) -> bool {
    let constant = |value: Value| match &graph.nodes()[value].op {
        Op::Array(TensorOp::Constant(constant @ Constant { element: ElementType::F32, .. })) => {
            Some(constant)
        }
        _ => None,
    };
    match (&node.op, &node.inputs[..]) {
        (Op::Array(TensorOp::Binary(function)), &[a, b]) => {
            let first = matches!(function, Binary::Add | Binary::Sub | Binary::Mul | Binary::Div);
            let second = matches!(function, Binary::Add | Binary::Sub | Binary::Mul);
            let number = |value| constant(value).is_some_and(|of| of.dims.is_empty());
            (a == x && first && number(b)) || (b == x && second && number(a))
        }
        (Op::Array(TensorOp::ChannelAffine), &[of, gain, shift]) => {
            of == x
                && graph.kind(x) != Kind::Array
                && [gain, shift].into_iter().all(|value| constant(value).is_some_and(|of| of.dims.len() == 1))
        }
        _ => false,
    }
}

/// The steps that are left, in the order of the nodes that they end at.
fn schedule(graph: &Graph, mut products: Vec<Option<Product>>, last: &[Value]) -> Vec<Step> {
    let nodes = graph.nodes();
    let gated = gated(graph);
    let is_alone = |node: Value| matches!(nodes[node].op, Op::Layer(_));
    let mut steps: Vec<Step> = vec![];
    for (at, Node { op, inputs }) in nodes.iter().enumerate() {
        let mut inputs: Vec<Value> = inputs.clone();
        // Of what something is enlarged to, only the size is read, which is known before the value.
        let read = if *op == Op::Enlarge { 1 } else { inputs.len() };
        inputs[..read].iter_mut().for_each(|input| *input = last[*input]);
        if let Some(mut product) = products[at].take() {
            product.input = last[product.input];
            product.residual = product.residual.map(|value| last[value]);
            let joins = |other: &Product| other.input == product.input && is_alone(other.output);
            match steps.last_mut() {
                Some(Step::Products(group))
                    if group.len() < TOGETHER && is_alone(at) && group.iter().all(joins) =>
                {
                    group.push(product);
                }
                _ => steps.push(Step::Products(vec![product])),
            }
            continue;
        }
        let is_input = matches!(
            op,
            Op::Images { .. } | Op::Tokens | Op::Array(TensorOp::Input(_) | TensorOp::Constant(_))
        );
        let folded = last[at] != at || gated[at] || is_input;
        match inputs.iter().position(|&input| gated[input]) {
            _ if folded => {}
            Some(side) => {
                let gate = last[nodes[inputs[side]].inputs[0]];
                steps.push(Step::Gate { gate, up: inputs[1 - side], output: at });
            }
            None => steps.push(Step::Op { op: op.clone(), inputs, output: at }),
        }
    }
    steps
}

/// The most products in one step.
pub(crate) const TOGETHER: usize = 4;

/// Which nodes are a SiLU that only a multiplication reads, whose other side is something else: both are one step.
fn gated(graph: &Graph) -> Vec<bool> {
    let (nodes, readers, results) = (graph.nodes(), graph.readers(), graph.results());
    let mut gated = vec![false; nodes.len()];
    for (at, node) in nodes.iter().enumerate() {
        if node.op == Op::Activation(Activation::Silu)
            && let [reader] = readers[at][..]
            && let Node { op: Op::Multiply, inputs } = &nodes[reader]
            // The product is written over what the SiLU reads.
            && readers[node.inputs[0]] == [at]
            && ![at, node.inputs[0]].iter().any(|value| results.contains(value))
        {
            gated[at] = inputs[0] != inputs[1]
                && graph.kind(inputs[0]) == graph.kind(inputs[1])
                && !inputs.iter().any(|&input| gated[input]);
        }
    }
    gated
}

/// Lets products whose use is `integer` make the codes that one of their readers takes, and says which results are read as values.
fn hand_on_codes(steps: &mut [Step], integer: impl Fn(usize) -> bool, nodes: usize, results: &[Value]) {
    let mut is_read = vec![false; nodes];
    results.iter().for_each(|&result| is_read[result] = true);
    // The reader of each product's result that gets codes: the first one.
    let mut codes_for = vec![None; nodes];
    let mut makes_codes = vec![false; nodes];
    for step in steps.iter_mut() {
        match step {
            Step::Products(products) => {
                for product in products {
                    let integer = integer(product.of);
                    if integer && makes_codes[product.input] && codes_for[product.input].is_none() {
                        codes_for[product.input] = Some(product.of);
                        product.has_codes = true;
                    } else {
                        is_read[product.input] = true;
                    }
                    product.residual.into_iter().for_each(|value| is_read[value] = true);
                    makes_codes[product.output] = integer;
                }
            }
            other => other.inputs().into_iter().for_each(|value| is_read[value] = true),
        }
    }
    for step in steps {
        if let Step::Products(products) = step {
            for product in products {
                product.values = is_read[product.output];
                product.codes_for = codes_for[product.output];
            }
        }
    }
}
