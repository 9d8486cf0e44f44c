//! Whatever graphs, tensors, files and inputs there are: outputs of the sizes that they say, or a typed error.

use dr_kernels::host::GroupedWeight;
use dr_precision::{BitWidth, Precision, PrecisionSet};
use dr_runtime::file::{
    ArtifactError, ArtifactKind, BatchNormKind, Description, FORMAT_VERSION, InputShape, NarrowGrid,
    NestedWeight, Normalization, Resize, STORED, StoredGrid, TensorEntry, Values,
};
use dr_runtime::graph::{
    Activation, Attention, Embedding, Graph, Layer, LayerKind, Norm, Op, Rope, RopeScaling,
};
use dr_runtime::{Arithmetic, Artifact, Cache, Input, Network, RuntimeError};
use half::f16;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;

/// A size of any order of magnitude.
fn any_size() -> impl Strategy<Value = usize> {
    let large = [13, 1 << 16, 1 << 22, 1 << 40, usize::MAX / 2, usize::MAX];
    prop_oneof![9 => 0usize..7, 1 => prop::sample::select(large.to_vec())]
}

/// More than a test's values.
const MOST: usize = 1 << 12;

/// The largest padding of a layer.
const FAR: usize = (1 << 22) - 1;

/// A table of parts that fit together in many ways: convolutions that move by `stride` inside of `padding`, and linear layers.
fn parts(stride: [usize; 2], padding: usize) -> Graph {
    let mut graph = Graph::default();
    let conv = |name: &str, channels, kernel, groups| {
        let kind = LayerKind::Conv2d { channels, kernel: [kernel; 2], stride, padding: [padding; 2], groups };
        Layer { name: name.into(), kind, bias: false }
    };
    let linear =
        |name: &str, features| Layer { name: name.into(), kind: LayerKind::Linear { features }, bias: true };
    let layers = [
        conv("first", [1, 4], 3, 1),
        conv("wide", [4, 4], 2, 1),
        conv("each", [4, 4], 3, 4),
        linear("same", [4, 4]),
        linear("down", [4, 2]),
        linear("up", [2, 4]),
        linear("head", [4, 10]),
    ];
    for layer in layers {
        graph.add_layer(layer).unwrap();
    }
    for name in ["norm1", "norm2"] {
        graph.add_batch_norm(Norm { name: name.into(), features: 4, epsilon: 1e-5 }).unwrap();
    }
    graph.add_rms_norm(Norm { name: "rms".into(), features: 2, epsilon: 1e-5 }).unwrap();
    graph.add_embedding(Embedding::Own { name: "rows".into(), vocabulary: 10, features: 4 }).unwrap();
    graph.add_embedding(Embedding::Layer(6)).unwrap();
    graph
}

fn op() -> impl Strategy<Value = Op> {
    let rope = Rope { theta: 100.0, scaling: RopeScaling::None };
    prop_oneof![
        8 => (0usize..7).prop_map(Op::Layer),
        2 => (0usize..2).prop_map(Op::BatchNorm),
        1 => Just(Op::RmsNorm(0)),
        2 => (0usize..2).prop_map(Op::Embedding),
        2 => prop::sample::select(vec![Activation::Relu, Activation::Relu6, Activation::Silu]).prop_map(Op::Activation),
        2 => Just(Op::Add),
        1 => Just(Op::Multiply),
        1 => ([1usize..3, 1usize..3], [1usize..3, 1usize..3], [0usize..2, 0usize..2])
            .prop_map(|(kernel, stride, padding)| Op::MaxPool { kernel, stride, padding }),
        1 => Just(Op::Mean),
        1 => Just(Op::Enlarge),
        2 => Just(Op::Attention(Attention { heads: 2, kv_heads: 1, head_dim: 2, rope: Some(rope), window: NonZeroUsize::new(2) })),
        1 => Just(Op::Concat),
        1 => Just(Op::Rows),
        1 => Just(Op::Flatten),
    ]
}

/// A graph of the nodes that fit, each after some of the last ones.
fn graph() -> impl Strategy<Value = Graph> {
    let nodes = prop::collection::vec((op(), [0usize..6, 0usize..6, 0usize..6]), 1..60);
    let padding = prop_oneof![9 => 0usize..3, 1 => Just(FAR)];
    (any::<bool>(), nodes, [1usize..3, 1usize..3], padding).prop_map(|(images, nodes, stride, padding)| {
        let mut graph = parts(stride, padding);
        graph.push(if images { Op::Images { channels: 1 } } else { Op::Tokens }, &[]).unwrap();
        for (op, back) in nodes {
            let inputs = back.map(|back| graph.nodes().len().saturating_sub(1 + back));
            let _ = (1..=3).find(|&count| graph.push(op.clone(), &inputs[..count]).is_ok());
        }
        graph
    })
}

fn precision(bits: BitWidth) -> Precision {
    Precision { weights: bits, activations: bits }
}

fn description(kind: ArtifactKind, graph: Graph, shared: bool) -> Description {
    Description {
        format_version: FORMAT_VERSION,
        kind,
        task: "classify".into(),
        model: "any".into(),
        width: 4,
        input: InputShape { channels: 1, height: 4, width: 4 },
        classes: 10,
        class_names: vec![],
        dataset: "none".into(),
        normalization: Normalization::none(1),
        resize: Resize::default(),
        precisions: PrecisionSet::new([BitWidth::B8, BitWidth::B4].map(precision)).unwrap(),
        edge: precision(BitWidth::B8),
        switch_edge: false,
        switch_depthwise: false,
        in_floats: Default::default(),
        batch_norm: if shared { BatchNormKind::Shared } else { BatchNormKind::PerPrecision },
        group_size: None,
        mixed: None,
        language: None,
        plan: None,
        shapes: BTreeMap::new(),
        seed: 0,
        checksum: String::new(),
        graph: Some(graph),
    }
}

/// An artifact with all tensors that its graph needs; floats are `value`.
fn artifact(kind: ArtifactKind, graph: &Graph, value: f32, shared: bool) -> Artifact {
    let description = description(kind, graph.clone(), shared);
    let mut tensors = BTreeMap::new();
    let mut floats = |name: String, shape: &[usize]| {
        tensors.insert(name, TensorEntry::f32(shape, vec![value; shape.iter().product()]));
    };
    for (at, layer) in graph.layers().iter().enumerate() {
        let Layer { name, kind, bias } = layer;
        if *bias {
            floats(format!("{name}.bias"), &[kind.outputs()]);
        }
        match description.layer_format(graph, at) {
            None => floats(format!("{name}.weight"), &kind.weight_shape()),
            Some(format) => {
                for i in 0..format.weights.len() {
                    floats(format!("{name}.quantizers.weight_scales.{i}"), &[kind.outputs()]);
                }
                for i in 0..format.activations.len() {
                    floats(format!("{name}.quantizers.activation_scales.{i}"), &[1]);
                    floats(format!("{name}.quantizers.zero_points.{i}"), &[1]);
                }
            }
        }
    }
    for Norm { name, features, .. } in graph.batch_norms() {
        for part in ["gamma", "beta", "running_mean", "running_var"] {
            (0..2).for_each(|number| floats(format!("{name}.norms.{number}.{part}"), &[*features]));
        }
    }
    for Norm { name, features, .. } in graph.rms_norms() {
        floats(format!("{name}.gamma"), &[*features]);
    }
    floats("rows.weight".into(), &[10, 4]);
    for (at, Layer { name, kind, .. }) in graph.layers().iter().enumerate() {
        let Some(format) = description.layer_format(graph, at) else { continue };
        let (shape, elements) = (kind.weight_shape(), kind.weight_shape().iter().product::<usize>());
        let entry = match description.is_packed() {
            true => {
                let words = dr_kernels::layout::packed_words(elements, format.weights[0]);
                TensorEntry::u32([words], vec![0x1234_5678; words])
            }
            false => TensorEntry::i8(shape, vec![1; elements]),
        };
        tensors.insert(format!("{name}.weight"), entry);
    }
    Artifact { description, tensors }
}

fn kind() -> impl Strategy<Value = ArtifactKind> {
    let packed = ArtifactKind::Packed(precision(BitWidth::B4));
    prop::sample::select(vec![ArtifactKind::Float, ArtifactKind::MultiPrecision, packed])
}

fn value() -> impl Strategy<Value = f32> {
    prop::sample::select(vec![0.5, 0.1, -1.0, 0.0, f32::NAN, f32::INFINITY, f32::MAX])
}

/// What is done to an artifact's tensors.
#[derive(Clone, Copy, Debug)]
enum Harm {
    None,
    Missing,
    Shape,
    Length,
    Type,
}

fn harm() -> impl Strategy<Value = Harm> {
    prop_oneof![
        6 => Just(Harm::None),
        1 => prop::sample::select(vec![Harm::Missing, Harm::Shape, Harm::Length, Harm::Type]),
    ]
}

/// Does it to the tensor of a number.
fn harmed(mut artifact: Artifact, harm: Harm, at: usize) -> Artifact {
    let Some(name) = artifact.tensors.keys().nth(at % artifact.tensors.len().max(1)).cloned() else {
        return artifact;
    };
    let entry = artifact.tensors.get_mut(&name).unwrap();
    match harm {
        Harm::None => {}
        Harm::Missing => drop(artifact.tensors.remove(&name)),
        Harm::Shape => entry.shape.push(usize::MAX),
        Harm::Length => entry.data = TensorEntry::f32([0], vec![]).data,
        Harm::Type => *entry = TensorEntry::bytes(vec![0; 3]),
    }
    artifact
}

/// A file with a table and two layers of nested weights, the last one at the edge, and these weights.
fn nested(
    [vocabulary, features, outputs]: [usize; 3], group: NonZeroUsize, narrower: &[BitWidth],
) -> (Artifact, BTreeMap<String, NestedWeight>) {
    let mut graph = Graph::default();
    graph.add_embedding(Embedding::Own { name: "rows".into(), vocabulary, features }).unwrap();
    let mut x = graph.push(Op::Tokens, &[]).unwrap();
    x = graph.push(Op::Embedding(0), &[x]).unwrap();
    for (at, features) in [[features, outputs], [outputs, 10]].into_iter().enumerate() {
        let layer = Layer { name: format!("layer{at}"), kind: LayerKind::Linear { features }, bias: false };
        graph.add_layer(layer).unwrap();
        x = graph.push(Op::Layer(at), &[x]).unwrap();
    }
    let widths: Vec<BitWidth> = std::iter::once(STORED).chain(narrower.iter().copied()).collect();
    let weight = |[outputs, inputs]: [usize; 2], widths: &[BitWidth]| {
        let groups = outputs * inputs.div_ceil(group.get());
        let codes = (0..outputs * inputs).map(|i| (i * 89) as i8).collect();
        // Such as are small halves, too.
        let grids = [StoredGrid::new(0.25, -1.5), StoredGrid::new(3.1e-6, 1.3e-5)];
        let stored: Vec<_> = grids.into_iter().cycle().take(groups).collect();
        let narrow = vec![vec![NarrowGrid { scale: -3, offset: 7 }; groups]; widths.len() - 1];
        NestedWeight::new([outputs, inputs], group, widths, codes, &stored, &narrow).unwrap()
    };
    let weights = BTreeMap::from([
        ("rows".to_owned(), weight([vocabulary, features], &[STORED])),
        ("layer0".to_owned(), weight([outputs, features], &widths)),
        ("layer1".to_owned(), weight([10, outputs], &[STORED])),
    ]);
    let precisions = widths.iter().map(|&bits| Precision::new(bits, STORED));
    let description = Description {
        precisions: PrecisionSet::new(precisions).unwrap(),
        group_size: Some(group),
        ..description(ArtifactKind::Nested, graph, false)
    };
    let tensors = weights.iter().flat_map(|(name, weight)| weight.tensors(name)).collect();
    (Artifact { description, tensors }, weights)
}

/// A file with nested weights at one of its precisions, and these weights.
fn at_one(
    file: &Artifact, weights: &BTreeMap<String, NestedWeight>, precision: Precision,
) -> (Artifact, BTreeMap<String, NestedWeight>) {
    let only =
        |weight: &NestedWeight| weight.only(precision.weights).or_else(|| weight.only(STORED)).unwrap();
    let weights: BTreeMap<_, _> = weights.iter().map(|(name, weight)| (name.clone(), only(weight))).collect();
    let description = Description { precisions: PrecisionSet::of(precision), ..file.description.clone() };
    let tensors = weights.iter().flat_map(|(name, weight)| weight.tensors(name)).collect();
    (Artifact { description, tensors }, weights)
}

/// The gate of a product is not written over while others read it.
#[test]
fn a_gate_that_others_read_stays() {
    let mut graph = Graph::default();
    let mut push = |op, inputs: &[usize]| graph.push(op, inputs).unwrap();
    let x = push(Op::Images { channels: 1 }, &[]);
    let silu = push(Op::Activation(Activation::Silu), &[x]);
    let twice = push(Op::Multiply, &[x, silu]);
    let gate = push(Op::Activation(Activation::Silu), &[twice]);
    let up = push(Op::Add, &[x, x]);
    let product = push(Op::Multiply, &[gate, up]);
    push(Op::Add, &[product, twice]);
    let network =
        Network::load_with(&artifact(ArtifactKind::Float, &graph, 0.5, false), None, Arithmetic::default())
            .unwrap();
    let values = [-1.5, 0.0, 0.5, 2.0];
    let found = network.forward(Input::Images { values: &values, shape: [1, 1, 2, 2] }).unwrap().values;
    let silu = |x: f32| x / (1.0 + (-x).exp());
    for (x, found) in values.into_iter().zip(found) {
        let twice = x * silu(x);
        let expected = silu(twice) * (x + x) + twice;
        assert!((found - expected).abs() < 1e-5, "{x}: {found} instead of {expected}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn networks_run_or_say_why_not(
        graph in graph(), kind in kind(), shared: bool, value in value(), harm in harm(), at: usize, weight_only: bool,
        bits in prop::sample::select(vec![BitWidth::B8, BitWidth::B4, BitWidth::B3]),
        shape in [0usize..3, 1usize..3, 0usize..9, 0usize..9], huge in prop::option::weighted(0.2, (0usize..4, any_size())),
        values in prop::option::weighted(0.1, 0usize..40), ids in prop::collection::vec(0u32..11, 0..7), texts in any_size(),
    ) {
        let whole = artifact(kind, &graph, value, shared);
        let artifact = harmed(whole, harm, at);
        let arithmetic = if weight_only { Arithmetic::WeightOnly } else { Arithmetic::Integer };
        let wanted = (kind != ArtifactKind::Float).then_some(precision(bits));
        let Ok(mut network) = Network::load_with(&artifact, wanted, arithmetic) else { return Ok(()) };
        let mut shape = shape;
        if let Some((axis, size)) = huge {
            shape[axis] = size;
        }
        let elements = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        let x = vec![value; values.unwrap_or(elements.unwrap_or(0).min(MOST))];
        for input in [Input::Images { values: &x, shape }, Input::Tokens { ids: &ids, batch: texts }] {
            for _ in 0..2 {
                if let Ok(output) = network.forward(input) {
                    prop_assert_eq!(output.values.len(), output.shape.iter().product::<usize>());
                }
            }
        }
        let mut cache = Cache::new();
        for piece in ids.chunks(2) {
            let before = cache.positions();
            let read = network.read(piece, &mut cache);
            prop_assert_eq!(cache.positions() - before, if read.is_ok() { piece.len() } else { 0 });
        }
        let _ = network.switch(precision(BitWidth::B4));
        let _ = network.forward_timed(Input::Images { values: &x, shape });
        let _ = (network.model_bytes(), network.layer(at), network.layer(at % 7));
    }

    #[test]
    fn nested_weights_are_read_or_refused(
        sizes in [1usize..9, 1usize..70, 1usize..9], group in prop_oneof![1usize..40, Just(32), Just(64), Just(usize::MAX)], harm in harm(), at: usize,
        narrower in prop::sample::subsequence(vec![BitWidth::B6, BitWidth::B4, BitWidth::B3, BitWidth::B2], 0..=4),
        bad in prop::option::of((value(), any::<bool>(), any::<usize>())), other in any_size(),
    ) {
        let group = NonZeroUsize::new(group).unwrap();
        let (mut file, weights) = nested(sizes, group, &narrower);
        let read = Artifact::from_bytes(&file.to_bytes().unwrap()).unwrap();
        prop_assert_eq!(read.nested().unwrap(), weights.clone());
        let load = |arithmetic| Network::load_with(&read, Some(read.description.edge), arithmetic);
        let runs = group.get().is_multiple_of(GroupedWeight::GROUP);
        prop_assert_eq!(load(Arithmetic::Integer).is_ok(), runs);
        prop_assert!(matches!(load(Arithmetic::WeightOnly), Err(RuntimeError::Nested)));
        let precision = read.description.precisions.iter().nth(at % (1 + narrower.len())).unwrap();
        let (only, of_width) = at_one(&read, &weights, precision);
        let read_only = Artifact::from_bytes(&only.to_bytes().unwrap()).unwrap();
        prop_assert_eq!(read_only.nested().unwrap(), of_width.clone());
        let tokens: Vec<u32> = (0..4).map(|at| at % sizes[0] as u32).collect();
        let logits = |file: &Artifact| {
            let input = Input::Tokens { ids: &tokens, batch: 1 };
            Network::load(file, precision).and_then(|network| network.forward(input)).map_err(drop)
        };
        let found = logits(&read_only);
        prop_assert_eq!(found.is_ok(), runs);
        prop_assert_eq!(found, logits(&read));
        let harmed_only = harmed(only, harm, at);
        prop_assert_eq!(harmed_only.nested().is_ok_and(|found| found == of_width), matches!(harm, Harm::None));
        for (weight, &bits) in weights.values().flat_map(|weight| weight.widths().iter().map(move |bits| (weight, bits))) {
            let [outputs, inputs] = weight.shape();
            prop_assert_eq!(weight.affine(bits).unwrap().len(), outputs * weight.groups());
            prop_assert_eq!(weight.dequantized(bits).unwrap().len(), outputs * inputs);
            prop_assert!(weight.affine(BitWidth::B7).is_none() && weight.dequantized(BitWidth::B7).is_none());
        }
        if let Some((value, is_offset, at)) = bad {
            let name = format!("{}.grid", weights.keys().nth(at % weights.len()).unwrap());
            let shape = file.tensors[&name].shape.clone();
            let mut halves = vec![f16::ONE; shape.iter().product()];
            let groups = halves.len() / 2;
            halves[at % groups * 2 + usize::from(is_offset)] = f16::from_f32(value);
            let data = Values::from(halves).into();
            file.tensors.insert(name.clone(), TensorEntry { shape, data });
            let is_good = f16::from_f32(value).is_finite() && (is_offset || value > 0.0);
            match file.nested() {
                Ok(_) => prop_assert!(is_good),
                Err(ArtifactError::Nested { name: found, .. }) => {
                    prop_assert!(!is_good);
                    prop_assert_eq!(name, found + ".grid");
                }
                Err(error) => prop_assert!(false, "{error}"),
            }
        }
        let same = matches!(harm, Harm::None) && bad.is_none();
        let harmed = harmed(file, harm, at);
        prop_assert!(harmed.nested().is_ok_and(|found| found == weights) == same || bad.is_some());
        for shape in [[other, sizes[1]], [sizes[0], other]] {
            for widths in [&[STORED][..], &narrower] {
                let _ = NestedWeight::new(shape, group, widths, vec![0; at % 9], &[], &[]);
            }
        }
    }

    #[test]
    fn damaged_files_are_refused(
        graph in graph(), kind in kind(), harm in harm(), at: usize, flips in prop::collection::vec((any::<usize>(), 1u8..), 1..4),
        cut in prop::option::of(any::<usize>()),
    ) {
        let artifact = harmed(artifact(kind, &graph, 0.5, false), harm, at);
        let Ok(mut bytes) = artifact.to_bytes() else { return Ok(()) };
        let read = Artifact::from_bytes(&bytes);
        prop_assert_eq!(read.map(|read| read.tensors).unwrap(), artifact.tensors);
        let before = bytes.clone();
        let len = bytes.len();
        flips.into_iter().for_each(|(at, by)| bytes[at % len] ^= by);
        bytes.truncate(cut.map_or(len, |cut| cut % len));
        prop_assert!(bytes == before || Artifact::from_bytes(&bytes).is_err());
    }

    #[test]
    fn graphs_of_any_sizes_are_valid_or_refused(
        channels in [any_size(), any_size()], kernel in [any_size(), any_size()], stride in [any_size(), any_size()],
        padding in [any_size(), any_size()], groups in any_size(), image in [any_size(), any_size()], tokens: bool,
        heads in [any_size(), any_size(), any_size()], doublings in 0usize..70, epsilon in value(), at in any_size(),
    ) {
        // A number that JSON gives back to the last bit.
        let epsilon = if epsilon == f32::MAX { 1024.0 } else { epsilon };
        let kind = LayerKind::Conv2d { channels, kernel, stride, padding, groups };
        let _ = (kind.output_size(image), kind.weight_shape());
        let rope = Rope { theta: f64::from(epsilon), scaling: RopeScaling::Linear { factor: f64::from(epsilon) } };
        prop_assert!(rope.tables(8, at, 3).iter().all(|table| table.len() == 12));
        let mut graph = Graph::default();
        let _ = graph.add_layer(Layer { name: "conv".into(), kind, bias: false });
        let _ = graph.add_batch_norm(Norm { name: "norm".into(), features: channels[1], epsilon: epsilon.into() });
        let table = Embedding::Own { name: "table".into(), vocabulary: channels[0], features: channels[1] };
        let _ = graph.add_embedding(table);
        let _ = graph.add_embedding(Embedding::Layer(at));
        let mut push = |op, inputs: &[usize]| graph.push(op, inputs).unwrap_or(at);
        let x = push(if tokens { Op::Tokens } else { Op::Images { channels: channels[0] } }, &[]);
        let [heads, kv_heads, head_dim] = heads;
        let y = push(Op::Embedding(0), &[x]);
        push(Op::Attention(Attention { heads, kv_heads, head_dim, rope: Some(rope), window: None }), &[y; 3]);
        let y = push(Op::MaxPool { kernel, stride, padding }, &[x]);
        let y = push(Op::Layer(0), &[y]);
        let mut y = push(Op::BatchNorm(0), &[y]);
        for _ in 0..doublings {
            y = push(Op::Concat, &[y; 2]);
        }
        push(Op::Flatten, &[y]);
        prop_assert_eq!(graph.sizes(image).len(), graph.nodes().len());
        prop_assert!((0..graph.nodes().len()).all(|node| !graph.strides(node).contains(&0)));
        let _ = (graph.is_edge(at), graph.after_relu(at), graph.outputs());
        match serde_json::from_str::<Graph>(&serde_json::to_string(&graph).unwrap()) {
            Ok(read) => prop_assert_eq!(read, graph),
            // A number that JSON does not have, or no result.
            Err(_) => prop_assert!(!epsilon.is_finite() || graph.nodes().len() < 2),
        }
    }
}
