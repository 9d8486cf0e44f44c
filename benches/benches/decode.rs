//! A token of a language model of TinyLlama's sizes with random weights, in integers, one text at a time: nested weights, with scales and
//! offsets for every 32 inputs, whose inputs are quantized as they come, beside weights with one scale for each output, whose inputs have
//! scales that are known before. `cargo bench --bench decode` (takes 10 GB of memory)
//!
//! The prompt has 32 tokens, and the text grows from there: the times are those of tokens 33 to 96. All take turns, 16 tokens
//! each: memory, which is what they wait for, can change its speed within seconds where others use it, too.

use dr_precision::{BitWidth, Precision, PrecisionSet};
use dr_runtime::file::{
    ArtifactKind, BatchNormKind, Description, FORMAT_VERSION, InputShape, NarrowGrid, NestedWeight,
    Normalization, STORED, StoredGrid, TensorEntry,
};
use dr_runtime::graph::{
    Activation, Attention, Embedding, Graph, Layer, LayerKind, Norm, Op, Rope, RopeScaling,
};
use dr_runtime::{Artifact, Cache, Network};
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::time::Instant;

const VOCABULARY: usize = 32_000;
const HIDDEN: usize = 2048;
const FEED_FORWARD: usize = 5632;
const LAYERS: usize = 22;
const HEADS: usize = 32;
const KV_HEADS: usize = 4;
const HEAD_DIM: usize = 64;
const CONTEXT: usize = 2048;

const WIDTHS: [BitWidth; 4] = [STORED, BitWidth::B4, BitWidth::B3, BitWidth::B2];
const GROUP: usize = 32;

const PROMPT: u32 = 32;
const TOKENS: u32 = 64;
const TURN: u32 = 16;
const ROUNDS: usize = 10;

fn main() {
    // Cargo passes this; without it (`cargo test --benches`) there is nothing to measure.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let precisions = WIDTHS.map(|bits| Precision::new(bits, STORED));
    let mut texts = vec![];
    let mut codes = BTreeMap::new();
    let kinds = [
        ("groups with offsets", ArtifactKind::Nested, false),
        ("a scale for an output", ArtifactKind::MultiPrecision, false),
        ("a scale for an output, the head switches, too", ArtifactKind::MultiPrecision, true),
    ];
    for (name, kind, switch_edge) in kinds {
        let artifact = artifact(kind, switch_edge, &mut codes);
        let first = Network::load(&artifact, precisions[0]).expect("a sound model");
        for precision in precisions {
            let mut network = first.clone();
            network.switch(precision).expect("a precision of the network");
            texts.push(Text { name, precision, network, cache: Cache::new(), milliseconds: vec![] });
        }
    }
    for _ in 0..ROUNDS {
        texts.iter_mut().for_each(Text::begin);
        for _ in 0..TOKENS / TURN {
            texts.iter_mut().for_each(Text::go_on);
        }
    }
    let medians: Vec<f64> = texts.iter_mut().map(Text::median).collect();
    for (at, (text, median)) in texts.iter().zip(&medians).enumerate() {
        let [first, last] = [0, text.milliseconds.len() - 1].map(|at| text.milliseconds[at]);
        let width = at % precisions.len();
        println!(
            "{}, {}: {median:.2} ms a token ({first:.2} to {last:.2}), {:.2} times as fast as {}; with groups {:.3} of its time; it \
             reads {} bytes of weights",
            text.precision,
            text.name,
            medians[at - width] / median,
            precisions[0],
            medians[width] / median,
            text.network.model_bytes()
        );
    }
}

/// A text that a network goes on with.
struct Text {
    name: &'static str,
    precision: Precision,
    network: Network,
    cache: Cache,
    /// A token's, for each turn.
    milliseconds: Vec<f64>,
}

impl Text {
    fn begin(&mut self) {
        self.cache = Cache::new();
        self.read(&(0..PROMPT).collect::<Vec<_>>());
    }

    fn go_on(&mut self) {
        self.read(&[0]); // the processor's caches are those of another network
        let start = Instant::now();
        (1..TURN).for_each(|token| self.read(&[token]));
        self.milliseconds.push(start.elapsed().as_secs_f64() * 1e3 / f64::from(TURN - 1));
    }

    fn read(&mut self, tokens: &[u32]) {
        let _ = self.network.read(tokens, &mut self.cache).expect("room in the context");
    }

    fn median(&mut self) -> f64 {
        self.milliseconds.sort_by(f64::total_cmp);
        self.milliseconds[self.milliseconds.len() / 2]
    }
}

/// What TinyLlama computes.
fn graph() -> Graph {
    let mut graph = Graph::default();
    let table = Embedding::Own { name: "embed".into(), vocabulary: VOCABULARY, features: HIDDEN };
    let table = graph.add_embedding(table).expect("a name of its own");
    let tokens = push(&mut graph, Op::Tokens, &[]);
    let mut x = push(&mut graph, Op::Embedding(table), &[tokens]);
    for block in 0..LAYERS {
        let name = |part: &str| format!("layers.{block}.{part}");
        let y = norm(&mut graph, name("norm1"), x);
        let q = linear(&mut graph, name("q"), [HIDDEN, HEADS * HEAD_DIM], y);
        let [k, v] = ["k", "v"].map(|part| linear(&mut graph, name(part), [HIDDEN, KV_HEADS * HEAD_DIM], y));
        let rope = Some(Rope { theta: 10_000.0, scaling: RopeScaling::None });
        let of = Attention { heads: HEADS, kv_heads: KV_HEADS, head_dim: HEAD_DIM, rope, window: None };
        let y = push(&mut graph, Op::Attention(of), &[q, k, v]);
        let y = linear(&mut graph, name("o"), [HEADS * HEAD_DIM, HIDDEN], y);
        x = push(&mut graph, Op::Add, &[x, y]);
        let y = norm(&mut graph, name("norm2"), x);
        let [gate, up] = ["gate", "up"].map(|part| linear(&mut graph, name(part), [HIDDEN, FEED_FORWARD], y));
        let gate = push(&mut graph, Op::Activation(Activation::Silu), &[gate]);
        let y = push(&mut graph, Op::Multiply, &[gate, up]);
        let y = linear(&mut graph, name("down"), [FEED_FORWARD, HIDDEN], y);
        x = push(&mut graph, Op::Add, &[x, y]);
    }
    x = norm(&mut graph, "norm".into(), x);
    linear(&mut graph, "head".into(), [HIDDEN, VOCABULARY], x);
    graph
}

fn push(graph: &mut Graph, op: Op, inputs: &[usize]) -> usize {
    graph.push(op, inputs).expect("a node that fits")
}

fn linear(graph: &mut Graph, name: String, features: [usize; 2], x: usize) -> usize {
    let layer = Layer { name, kind: LayerKind::Linear { features }, bias: false };
    let layer = graph.add_layer(layer).expect("a name of its own");
    push(graph, Op::Layer(layer), &[x])
}

fn norm(graph: &mut Graph, name: String, x: usize) -> usize {
    let norm = Norm { name, features: HIDDEN, epsilon: 1e-5 };
    let norm = graph.add_rms_norm(norm).expect("a name of its own");
    push(graph, Op::RmsNorm(norm), &[x])
}

/// The model with random codes of the weights: those in `codes`, or new ones, which are put there.
fn artifact(kind: ArtifactKind, switch_edge: bool, codes: &mut BTreeMap<String, TensorEntry>) -> Artifact {
    let graph = graph();
    let group = NonZeroUsize::new(GROUP).filter(|_| kind == ArtifactKind::Nested);
    let description = Description {
        format_version: FORMAT_VERSION,
        kind,
        task: "bench".into(),
        model: "tiny-llama".into(),
        width: HIDDEN,
        input: InputShape { channels: 1, height: 1, width: CONTEXT },
        classes: VOCABULARY,
        class_names: vec![],
        dataset: "none".into(),
        normalization: Normalization::none(1),
        resize: Default::default(),
        precisions: PrecisionSet::new(WIDTHS.map(|bits| Precision::new(bits, STORED))).expect("precisions"),
        edge: Precision::uniform(STORED),
        switch_edge,
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
    let mut floats = |name: String, shape: &[usize], value: f32| {
        tensors.insert(name, TensorEntry::f32(shape, vec![value; shape.iter().product()]));
    };
    for Norm { name, features, .. } in graph.rms_norms() {
        floats(format!("{name}.gamma"), &[*features], 1.0);
    }
    if group.is_none() {
        floats("embed.weight".into(), &[VOCABULARY, HIDDEN], 0.5);
    }
    let mut random = Random(1);
    let table = group.map(|_| ("embed", [VOCABULARY, HIDDEN], vec![STORED]));
    let layers = graph.layers().iter().enumerate().map(|(at, layer)| {
        let LayerKind::Linear { features: [inputs, outputs] } = layer.kind else {
            unreachable!("all are linear")
        };
        let format = description.layer_format(&graph, at).expect("all are quantized");
        (&*layer.name, [outputs, inputs], format.weights)
    });
    for (name, shape, widths) in layers.chain(table) {
        let Some(group) = group else {
            for (i, bits) in widths.iter().enumerate() {
                let scale = 2e-4 * f32::from(1u16 << (STORED.bits() - bits.bits()));
                let scales = TensorEntry::f32([shape[0]], vec![scale; shape[0]]);
                tensors.insert(format!("{name}.quantizers.weight_scales.{i}"), scales);
            }
            for (part, value) in [("activation_scales", 0.02), ("zero_points", 0.0)] {
                tensors.insert(format!("{name}.quantizers.{part}.0"), TensorEntry::f32([1], vec![value]));
            }
            tensors.insert(format!("{name}.weight"), codes[name].clone());
            continue;
        };
        let groups = shape[0] * shape[1] / GROUP;
        let stored = random.bytes(groups).into_iter().map(|x| {
            let x = f32::from(x) / 128.0;
            StoredGrid::new(2e-4 + 1e-4 * x, 1e-3 * x)
        });
        let stored: Vec<StoredGrid> = stored.collect();
        let narrow = widths[1..].iter().map(|_| {
            let parts = random.bytes(2 * groups);
            parts.as_chunks().0.iter().map(|&[scale, offset]| NarrowGrid { scale, offset }).collect()
        });
        let narrow: Vec<Vec<NarrowGrid>> = narrow.collect();
        let of = random.bytes(shape[0] * shape[1]);
        let weight = NestedWeight::new(shape, group, &widths, of, &stored, &narrow).expect("a weight");
        let entries: BTreeMap<_, _> = weight.tensors(name).into_iter().collect();
        codes.insert(name.to_owned(), entries[&format!("{name}.weight")].clone());
        tensors.extend(entries);
    }
    Artifact { description, tensors }
}

/// Bytes without a pattern.
struct Random(u64);

impl Random {
    fn bytes(&mut self, len: usize) -> Vec<i8> {
        let mut out = vec![0; len.next_multiple_of(4)];
        for bytes in out.as_chunks_mut().0 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *bytes = ((self.0 >> 32) as u32).to_le_bytes().map(u8::cast_signed);
        }
        out.truncate(len);
        out
    }
}
