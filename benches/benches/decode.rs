//! A token of a language model of TinyLlama's sizes with random weights, in integers, one text at a time.
//! `cargo bench -p dr-bench --bench decode` (takes 9 GB of memory and some minutes to begin)
//!
//! The prompt has 32 tokens, and the text grows from there: the times are those of tokens 33 to 96. All precisions take turns, 16 tokens
//! each: memory, which is what they wait for, can change its speed within seconds where others use it, too.

use burn::tensor::Device;
use dr_precision::PrecisionSet;
use dr_runtime::Arithmetic;
use dr_runtime::tensors::{Cache, Network};
use dr_train::artifact::{Artifact, ArtifactKind, Described, Description, SavedModel};
use dr_train::cli::keep_freed_memory;
use dr_train::models::LlamaConfig;
use dr_train::nn::{Model, QuantConfig};
use std::time::Instant;

const PROMPT: u32 = 32;
const TOKENS: u32 = 64;
const TURN: u32 = 16;
const ROUNDS: usize = 10;

fn main() {
    // Cargo passes this; without it (`cargo test --benches`) there is nothing to measure.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    keep_freed_memory(); // as `dr-train` does
    let config = LlamaConfig::tiny_llama();
    let precisions: PrecisionSet = "w8a8,w4a8,w2a8".parse().expect("three precisions");
    let (highest, device) = (precisions.highest(), Device::flex());
    let mut texts = vec![];
    for switch_edge in [false, true] {
        // Scales of one, and so codes of zero: how long they take does not depend on what they are.
        let quantization = QuantConfig { switch_edge, ..QuantConfig::new(precisions.clone()) };
        let description = Description {
            kind: ArtifactKind::MultiPrecision,
            switch_edge,
            ..Description::of_language(&config, precisions.clone())
        };
        let model = Model::trace(&config.zeros(&device)).expect("a network").prepare(&quantization);
        let artifact = Artifact::of(&model, description).expect("a quantized model");
        drop(model);
        let network = Network::load(&artifact, highest, Arithmetic::Integer, &device).expect("a sound model");
        let head = if switch_edge { ", the head, too" } else { "" };
        for precision in precisions.iter().filter(|&precision| !switch_edge || precision != highest) {
            let mut network = network.clone();
            network.switch(precision).expect("a precision of the network");
            texts.push(Text {
                name: format!("{precision}{head}"),
                network,
                cache: Cache::new(),
                milliseconds: vec![],
            });
        }
    }
    for _ in 0..ROUNDS {
        texts.iter_mut().for_each(Text::begin);
        for _ in 0..TOKENS / TURN {
            texts.iter_mut().for_each(Text::go_on);
        }
    }
    let medians: Vec<f64> = texts.iter_mut().map(Text::median).collect();
    for (text, median) in texts.iter().zip(&medians) {
        let [first, last] = [0, text.milliseconds.len() - 1].map(|at| text.milliseconds[at]);
        println!(
            "{}: {median:.2} ms a token ({first:.2} to {last:.2}), {:.2} times as fast as {highest}; it reads {} bytes of weights",
            text.name,
            medians[0] / median,
            text.network.model_bytes()
        );
    }
}

/// A text that a network goes on with.
struct Text {
    name: String,
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
