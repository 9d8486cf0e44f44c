//! Graphs: what is valid is kept as it is, everything else is an error.

use dr_runtime::graph::{
    Activation, Constant, ElementType, Embedding, Graph, GraphError, Kind, Layer, LayerKind, Norm, Op, Rope,
    RopeScaling, TensorOp, Unary,
};
use proptest::prelude::*;

fn conv(name: &str, channels: [usize; 2], stride: usize) -> Layer {
    let (kernel, stride, padding, groups) = ([3; 2], [stride; 2], [1; 2], 1);
    let kind = LayerKind::Conv2d { channels, kernel, stride, padding, groups };
    Layer { name: name.into(), kind, bias: false }
}

fn linear(name: &str, features: [usize; 2]) -> Layer {
    Layer { name: name.into(), kind: LayerKind::Linear { features }, bias: true }
}

/// A residual block with a shortcut, and a linear layer.
fn residual() -> Graph {
    let mut graph = Graph::default();
    let layers = [conv("a", [3, 8], 1), conv("b", [8, 8], 2), conv("c", [8, 8], 2), linear("head", [8, 5])];
    let [a, b, c, head] = layers.map(|layer| graph.add_layer(layer).unwrap());
    let norm = Norm { name: "a_norm".into(), features: 8, epsilon: 1e-5 };
    let norm = graph.add_batch_norm(norm).unwrap();
    let mut push = |op, inputs: &[usize]| graph.push(op, inputs).unwrap();
    let images = push(Op::Images { channels: 3 }, &[]);
    let x = push(Op::Layer(a), &[images]);
    let x = push(Op::BatchNorm(norm), &[x]);
    let x = push(Op::Activation(Activation::Relu), &[x]);
    let y = push(Op::Layer(b), &[x]);
    let shortcut = push(Op::Layer(c), &[x]);
    let y = push(Op::Add, &[shortcut, y]);
    let y = push(Op::Activation(Activation::Relu), &[y]);
    let y = push(Op::Mean, &[y]);
    push(Op::Layer(head), &[y]);
    graph
}

#[test]
fn graphs_come_back_from_json() {
    let graph = residual();
    let json = serde_json::to_string(&graph).unwrap();
    assert_eq!(serde_json::from_str::<Graph>(&json).unwrap(), graph);
    assert_eq!(graph.outputs(), Some(5));
    assert_eq!(graph.kind(7), Kind::Images(8));
}

#[test]
fn edges_and_relu_are_derived() {
    let graph = residual();
    let of = |of: fn(&Graph, usize) -> bool| (0..4).map(|layer| of(&graph, layer)).collect::<Vec<_>>();
    assert_eq!(of(Graph::is_edge), [true, false, false, true]);
    assert_eq!(of(Graph::after_relu), [false, true, true, true]);
}

#[test]
fn what_does_not_fit_is_an_error() {
    let mut graph = residual();
    let wrong = |graph: &mut Graph, op, inputs: &[usize]| graph.push(op, inputs).unwrap_err();
    assert_eq!(wrong(&mut graph, Op::Add, &[1, 99]), GraphError::Value { node: 10, value: 99 });
    assert!(matches!(wrong(&mut graph, Op::Layer(9), &[0]), GraphError::Table { found: 9, .. }));
    for (op, inputs) in [
        (Op::Add, &[3, 8][..]),
        (Op::Add, &[3]),
        (Op::Layer(1), &[0]),
        (Op::Layer(3), &[7]),
        (Op::BatchNorm(0), &[3]),
        (Op::Mean, &[8]),
        (Op::Images { channels: 3 }, &[]),
        (Op::MaxPool { kernel: [2; 2], stride: [0; 2], padding: [0; 2] }, &[3]),
        (Op::Concat, &[]),
    ] {
        assert!(matches!(wrong(&mut graph, op.clone(), inputs), GraphError::Inputs { .. }), "{op:?}");
    }
    assert_eq!(graph.add_layer(conv("a", [3, 8], 1)), Err(GraphError::Name("a".into())));
    let grouped = |groups| {
        let (kernel, stride, padding) = ([1; 2], [1; 2], [0; 2]);
        let kind = LayerKind::Conv2d { channels: [8, 5], kernel, stride, padding, groups };
        Layer { name: "g".into(), kind, bias: false }
    };
    for layer in
        [grouped(2), grouped(0), conv("z", [0, 1], 1), conv("z", [1, 1], 0), linear("z", [usize::MAX, 2])]
    {
        assert!(matches!(graph.add_layer(layer), Err(GraphError::Sizes { .. })));
    }
    assert!(graph.add_embedding(Embedding::Layer(0)).is_err(), "a convolution is no table");
    assert_eq!(
        serde_json::from_str::<Graph>(r#"{"layers":[],"nodes":[]}"#).unwrap_err().to_string(),
        GraphError::Empty.to_string()
    );
}

#[test]
fn gradients_go_back_through_floats_only() {
    let checked = |of: &dyn Fn(usize, usize) -> (TensorOp, Vec<usize>)| {
        let mut graph = residual();
        let places = Constant { name: "places".into(), element: ElementType::I64, dims: vec![2] };
        let result = graph.nodes().len() - 1;
        let places = graph.push(Op::Array(TensorOp::Constant(places)), &[]).unwrap();
        let array = graph.push(Op::Array(TensorOp::Array), &[result]).unwrap();
        let (op, inputs) = of(array, places);
        let node = graph.push(Op::Array(op), &inputs).unwrap();
        graph.push(Op::Array(TensorOp::Unary(Unary::Exp)), &[node]).unwrap();
        (node, graph.check_gradients())
    };
    let gather = || TensorOp::Gather { axis: 1 };
    assert_eq!(checked(&|array, places| (gather(), vec![array, places])).1, Ok(()));
    let (node, found) = checked(&|array, _| (gather(), vec![array, array]));
    assert_eq!(found, Err(GraphError::Gradient { node, op: "Gather { axis: 1 }".into() }));
    // Places that come of floats have no gradient in any case.
    assert_eq!(checked(&|array, _| (TensorOp::Cast(ElementType::I64), vec![array])).1, Ok(()));
}

#[test]
fn angles_of_llama_3() {
    // `transformers` 4.46, `_compute_llama3_parameters`, head dim 8: the fast pairs stay, the slow ones are divided.
    let scaling = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original_context: 8192 };
    let rope = |scaling| Rope { theta: 500_000.0, scaling };
    let [cos, sin] = rope(scaling).tables(8, 3, 1);
    let [plain, _] = rope(RopeScaling::None).tables(8, 3, 1);
    assert_eq!((cos.len(), sin.len()), (4, 4));
    assert_eq!(cos[0], plain[0]);
    assert!((f64::from(sin[3]) - (3.0 * 500_000f64.powf(-0.75) / 8.0).sin()).abs() < 1e-9);
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (0usize..4).prop_map(|channels| Op::Images { channels }),
        Just(Op::Tokens),
        (0usize..4).prop_map(Op::Layer),
        (0usize..2).prop_map(Op::BatchNorm),
        (0usize..2).prop_map(Op::RmsNorm),
        (0usize..2).prop_map(Op::Embedding),
        Just(Op::Activation(Activation::Silu)),
        Just(Op::Add),
        Just(Op::Multiply),
        (0usize..3, 0usize..3).prop_map(|(a, b)| Op::MaxPool {
            kernel: [a; 2],
            stride: [b; 2],
            padding: [1; 2]
        }),
        Just(Op::Mean),
        Just(Op::Enlarge),
        Just(Op::Concat),
        Just(Op::Rows),
        Just(Op::Flatten),
    ]
}

proptest! {
    /// Nodes that were never checked against each other: each is taken or an error, and what was taken is read back.
    #[test]
    fn any_nodes(nodes in prop::collection::vec((op(), prop::collection::vec(0usize..12, 0..4)), 1..24)) {
        let mut graph = residual();
        for (op, inputs) in nodes {
            let _ = graph.push(op, &inputs);
        }
        for layer in 0..graph.layers().len() {
            let _ = (graph.is_edge(layer), graph.after_relu(layer));
        }
        let json = serde_json::to_string(&graph).unwrap();
        prop_assert_eq!(serde_json::from_str::<Graph>(&json).unwrap(), graph);
    }
}
