//! A token of a language model of TinyLlama's sizes with random weights, in integers, one text at a time.
//! `cargo bench -p dr-bench --bench decode` (takes 9 GB of memory and some minutes to begin)
//!
//! The prompt has 32 tokens, and the text grows from there: the times are those of tokens 33 to 96.

use burn::tensor::Device;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use dr_kernels::cpu::keep_freed_memory;
use dr_precision::PrecisionSet;
use dr_train::models::{Cache, LlamaConfig, Network};
use dr_train::nn::QuantConfig;
use std::time::{Duration, Instant};

const PROMPT: u32 = 32;
const TOKENS: u32 = 64;

fn decode(criterion: &mut Criterion) {
    keep_freed_memory(); // as `dr-train` does
    let config = LlamaConfig::tiny_llama();
    let precisions: PrecisionSet = "w8a8,w4a8,w2a8".parse().expect("three precisions");
    // Scales of one, and so codes of zero: how long they take does not depend on what they are.
    let quantization = QuantConfig::new(precisions.clone());
    let highest = precisions.highest();
    let network = config.zeros(&Device::flex()).prepare(&quantization).to_integer(highest);
    let mut network = network.expect("a quantized network");
    let mut group = criterion.benchmark_group("decode/tinyllama-1.1b");
    group.throughput(Throughput::Elements(1));
    group.sample_size(10).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(20));
    for precision in precisions.iter() {
        network.switch(precision).expect("a precision of the network");
        let prompt: Vec<u32> = (0..PROMPT).collect();
        group.bench_function(format!("dr-kernels {precision}"), |bencher| {
            bencher.iter_custom(|tokens| {
                let (mut elapsed, mut left) = (Duration::ZERO, tokens);
                while left > 0 {
                    let mut cache = Cache::new();
                    let _ = network.read(&prompt, &mut cache).expect("room in the context").into_data();
                    let count = left.min(u64::from(TOKENS));
                    let start = Instant::now();
                    for token in 0..count as u32 {
                        let _ = network.read(&[token], &mut cache).expect("room in the context").into_data();
                    }
                    elapsed += start.elapsed();
                    left -= count;
                }
                elapsed
            });
        });
        eprintln!("{precision}: a token reads {} bytes of weights", network.model_bytes());
    }
    group.finish();
}

criterion_group!(benches, decode);
criterion_main!(benches);
