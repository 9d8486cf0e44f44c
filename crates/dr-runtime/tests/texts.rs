//! Several texts at once are as each by itself.

use dr_precision::{BitWidth, Precision, PrecisionSet};
use dr_runtime::file::{
    ArtifactKind, BatchNormKind, Description, FORMAT_VERSION, InputShape, NarrowGrid, NestedWeight,
    Normalization, Resize, STORED, StoredGrid, TensorEntry,
};
use dr_runtime::graph::{
    Activation, Attention, Embedding, Graph, Layer, LayerKind, Norm, Op, Rope, RopeScaling,
};
use dr_runtime::{Arithmetic, Artifact, Cache, Input, Network, RuntimeError};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;

const VOCABULARY: usize = 50;
const HIDDEN: usize = 96;
const CONTEXT: usize = 40;
const WIDTHS: [BitWidth; 3] = [STORED, BitWidth::B4, BitWidth::B3];

/// Numbers from -1 to 1.
fn random(len: usize, seed: usize) -> impl Iterator<Item = f32> {
    let mut state = (seed as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len).map(move |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    })
}

/// A language model of two blocks, whose second one looks at a window.
fn graph(scaling: &RopeScaling) -> Graph {
    let mut graph = Graph::default();
    graph
        .add_embedding(Embedding::Own { name: "rows".into(), vocabulary: VOCABULARY, features: HIDDEN })
        .unwrap();
    let mut x = graph.push(Op::Tokens, &[]).unwrap();
    x = graph.push(Op::Embedding(0), &[x]).unwrap();
    let layer = |graph: &mut Graph, name: String, features, x: usize| {
        let layer = Layer { name, kind: LayerKind::Linear { features }, bias: false };
        let layer = graph.add_layer(layer).unwrap();
        graph.push(Op::Layer(layer), &[x]).unwrap()
    };
    let norm = |graph: &mut Graph, name: String, x: usize| {
        let norm = graph.add_rms_norm(Norm { name, features: HIDDEN, epsilon: 1e-5 }).unwrap();
        graph.push(Op::RmsNorm(norm), &[x]).unwrap()
    };
    for block in 0..2 {
        let name = |part: &str| format!("{block}.{part}");
        let y = norm(&mut graph, name("norm1"), x);
        let q = layer(&mut graph, name("q"), [HIDDEN, HIDDEN], y);
        let [k, v] = ["k", "v"].map(|part| layer(&mut graph, name(part), [HIDDEN, HIDDEN / 3], y));
        let rope = Rope { theta: 100.0, scaling: scaling.clone() };
        let window = NonZeroUsize::new(7).filter(|_| block == 1);
        let attention = Attention { heads: 6, kv_heads: 2, head_dim: HIDDEN / 6, rope: Some(rope), window };
        let y = graph.push(Op::Attention(attention), &[q, k, v]).unwrap();
        let y = layer(&mut graph, name("o"), [HIDDEN, HIDDEN], y);
        x = graph.push(Op::Add, &[x, y]).unwrap();
        let y = norm(&mut graph, name("norm2"), x);
        let [gate, up] = ["gate", "up"].map(|part| layer(&mut graph, name(part), [HIDDEN, 150], y));
        let gate = graph.push(Op::Activation(Activation::Silu), &[gate]).unwrap();
        let y = graph.push(Op::Multiply, &[gate, up]).unwrap();
        let y = layer(&mut graph, name("down"), [150, HIDDEN], y);
        x = graph.push(Op::Add, &[x, y]).unwrap();
    }
    x = norm(&mut graph, "norm".into(), x);
    layer(&mut graph, "head".into(), [HIDDEN, VOCABULARY], x);
    graph
}

/// The model with random weights: nested, with one scale for an output, or in floats.
fn artifact(kind: ArtifactKind, scaling: &RopeScaling) -> Artifact {
    let graph = graph(scaling);
    let group = NonZeroUsize::new(32).filter(|_| kind == ArtifactKind::Nested);
    let description = Description {
        format_version: FORMAT_VERSION,
        kind,
        task: "language".into(),
        model: "any".into(),
        width: HIDDEN,
        input: InputShape { channels: 1, height: 1, width: CONTEXT },
        classes: VOCABULARY,
        class_names: vec![],
        dataset: "none".into(),
        normalization: Normalization::none(1),
        resize: Resize::default(),
        precisions: PrecisionSet::new(WIDTHS.map(|bits| Precision::new(bits, STORED))).unwrap(),
        edge: Precision::uniform(STORED),
        switch_edge: false,
        switch_depthwise: false,
        in_floats: Default::default(),
        batch_norm: BatchNormKind::Shared,
        group_size: group,
        mixed: None,
        language: None,
        plan: None,
        shapes: BTreeMap::new(),
        seed: 0,
        checksum: String::new(),
        graph: Some(graph.clone()),
    };
    let mut tensors = BTreeMap::new();
    for (seed, Norm { name, features, .. }) in graph.rms_norms().iter().enumerate() {
        let gamma = random(*features, seed).map(|x| 1.0 + x / 2.0).collect();
        tensors.insert(format!("{name}.gamma"), TensorEntry::f32([*features], gamma));
    }
    let layers = graph.layers().iter().enumerate().map(|(at, layer)| {
        let LayerKind::Linear { features: [inputs, outputs] } = layer.kind else { unreachable!("linear") };
        (layer.name.clone(), [outputs, inputs], description.layer_format(&graph, at))
    });
    let table = ("rows".to_owned(), [VOCABULARY, HIDDEN], None);
    for (seed, (name, shape, format)) in layers.chain([table]).enumerate() {
        let values = || random(shape[0] * shape[1], seed + 100);
        let codes: Vec<i8> = values().map(|x| (x * 127.0) as i8).collect();
        match (group, format) {
            (Some(group), format) => {
                let groups = shape[0] * shape[1].div_ceil(32);
                let stored = random(groups, seed + 200).map(|x| StoredGrid::new(2e-3 + x * 1e-3, x * 0.1));
                let narrow = |_: &BitWidth| {
                    random(groups, seed + 300)
                        .map(|x| NarrowGrid { scale: (x * 9.0) as i8, offset: (x * 99.0) as i8 })
                        .collect()
                };
                let widths = format.map_or(vec![STORED], |format| format.weights);
                let narrow: Vec<Vec<NarrowGrid>> = widths[1..].iter().map(narrow).collect();
                let stored: Vec<StoredGrid> = stored.collect();
                let weight = NestedWeight::new(shape, group, &widths, codes, &stored, &narrow).unwrap();
                tensors.extend(weight.tensors(&name));
            }
            (None, Some(format)) => {
                let mut floats = |part: &str, i: usize, len: usize, value: f32| {
                    let name = format!("{name}.quantizers.{part}.{i}");
                    tensors.insert(name, TensorEntry::f32([len], vec![value; len]));
                };
                for (i, bits) in format.weights.iter().enumerate() {
                    floats("weight_scales", i, shape[0], 2e-3 * f32::from(1u16 << (8 - bits.bits())));
                }
                for i in 0..format.activations.len() {
                    floats("activation_scales", i, 1, 0.02);
                    floats("zero_points", i, 1, 0.0);
                }
                tensors.insert(format!("{name}.weight"), TensorEntry::i8(shape, codes));
            }
            (None, None) => {
                tensors.insert(
                    format!("{name}.weight"),
                    TensorEntry::f32(shape, values().map(|x| x / 4.0).collect()),
                );
            }
        }
    }
    Artifact { description, tensors }
}

fn kinds() -> impl Strategy<Value = ArtifactKind> {
    prop::sample::select(vec![ArtifactKind::Nested, ArtifactKind::MultiPrecision, ArtifactKind::Float])
}

fn scaling() -> impl Strategy<Value = RopeScaling> {
    let dynamic = RopeScaling::Dynamic { factor: 4.0, original_context: 8 };
    prop::sample::select(vec![RopeScaling::None, dynamic])
}

fn load(kind: ArtifactKind, scaling: &RopeScaling, bits: BitWidth) -> Network {
    let precision = (kind != ArtifactKind::Float).then_some(Precision::new(bits, STORED));
    Network::load_with(&artifact(kind, scaling), precision, Arithmetic::Integer).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn texts_together_are_texts_alone(
        kind in kinds(), scaling in scaling(), bits in prop::sample::select(WIDTHS.to_vec()),
        prompts in prop::collection::vec(prop::collection::vec(0..VOCABULARY as u32, 1..20), 1..9),
        steps in 1usize..6, seed: usize,
    ) {
        let network = load(kind, &scaling, bits);
        let mut together = prompts.iter().map(|prompt| {
            let mut cache = if seed.is_multiple_of(2) { Cache::new() } else { Cache::in_halves() };
            network.read(prompt, &mut cache).map(|_| cache)
        }).collect::<Result<Vec<_>, _>>().unwrap();
        let mut alone = together.clone();
        for step in 0..steps {
            let tokens: Vec<u32> =
                random(prompts.len(), seed ^ step).map(|x| (x.abs() * 49.0) as u32).collect();
            let mut caches: Vec<&mut Cache> = together.iter_mut().collect();
            let found = network.read_each(&tokens, &mut caches).unwrap();
            prop_assert_eq!(&found.shape, &[prompts.len(), VOCABULARY]);
            for ((found, token), cache) in found.values.chunks(VOCABULARY).zip(tokens).zip(&mut alone) {
                let expected = network.read(&[token], cache).unwrap();
                prop_assert!(found.iter().all(|logit| logit.is_finite()));
                prop_assert!(found.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()));
            }
        }
        for ((together, alone), prompt) in together.iter().zip(&alone).zip(&prompts) {
            prop_assert_eq!(together.positions(), prompt.len() + steps);
            prop_assert_eq!(together.bytes(), alone.bytes());
        }
    }

    /// At once and token by token: the same caches, and nearly the same logits.
    #[test]
    fn texts_at_once_are_texts_token_by_token(
        kind in kinds(), bits in prop::sample::select(WIDTHS.to_vec()),
        text in prop::collection::vec(0..VOCABULARY as u32, 1..CONTEXT),
    ) {
        let network = load(kind, &RopeScaling::None, bits);
        let all = network.forward(Input::Tokens { ids: &text, batch: 1 }).unwrap().values;
        let mut cache = Cache::new();
        let largest = all.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        for (token, expected) in text.iter().zip(all.chunks(VOCABULARY)) {
            let found = network.read(&[*token], &mut cache).unwrap();
            let off = found.iter().zip(expected).fold(0.0f32, |off, (a, b)| off.max((a - b).abs()));
            // A code of a static quantizer may be another one.
            prop_assert!(off <= 0.05 * largest, "{off} of {largest}");
        }
    }
}

#[test]
fn halves_take_half_the_memory() {
    for kind in [ArtifactKind::Float, ArtifactKind::Nested] {
        let network = load(kind, &RopeScaling::None, STORED);
        let [mut full, mut half] = [Cache::new(), Cache::in_halves()];
        let [expected, found] =
            [&mut full, &mut half].map(|cache| network.read(&[3, 1, 4, 1, 5, 9, 2, 6], cache).unwrap());
        assert_eq!(full.bytes(), 2 * half.bytes());
        let largest = expected.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        assert!(expected.iter().zip(&found).all(|(a, b)| (a - b).abs() <= 0.05 * largest));
        assert_ne!(expected, found);
    }
}

#[test]
fn what_cannot_be_read_together_leaves_caches_as_they_are() {
    let network = load(ArtifactKind::Nested, &RopeScaling::None, STORED);
    let mut caches = [Cache::new(), Cache::new(), Cache::new()];
    network.read(&[1; CONTEXT], &mut caches[1]).unwrap();
    network.read(&[1; 3], &mut caches[2]).unwrap();
    let [new, full, short] = &mut caches;
    let full_text = network.read_each(&[1, 1], &mut [&mut *new, &mut *full]);
    assert!(matches!(full_text, Err(RuntimeError::Context { found: 41, expected: CONTEXT })));
    assert!(matches!(
        network.read_each(&[1], &mut [&mut *new, &mut *short]),
        Err(RuntimeError::Input { .. })
    ));
    assert!(matches!(network.read_each(&[], &mut []), Err(RuntimeError::Context { found: 0, .. })));
    let unknown = network.read_each(&[1, VOCABULARY as u32], &mut [&mut *new, &mut *short]);
    assert!(matches!(unknown, Err(RuntimeError::Token { .. })));
    assert_eq!(caches.each_ref().map(Cache::positions), [0, CONTEXT, 3]);
    let [new, _, short] = &mut caches;
    network.read_each(&[1, 2], &mut [&mut *new, &mut *short]).unwrap();
    assert_eq!(caches.map(|cache| cache.positions()), [1, CONTEXT, 4]);
}
