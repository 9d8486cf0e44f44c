//! Times candle on a CPU: products of a vector with quantized weights, on the shape of `cargo bench -- gemv`, and the
//! decoding of whole models, as `--bench decode` does ours.
//!
//!     cargo run --release --manifest-path benches/peers/candle/Cargo.toml -- [threads] [FOLDER] > target/peers/candle.json
//!
//! Prints a JSON line for each measurement: group, name and median milliseconds. Products take turns with several copies of the
//! weights, larger than the caches together, as in the other benchmarks. candle quantizes the activations to 8 bits. Models are only
//! decoded if there is a folder, with the files that `llama_decode.py` writes.

use candle_core::quantized::gguf_file::Content;
use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Module, Result, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use std::fs::File;
use std::path::Path;
use std::time::Instant;

const CACHES: usize = 1 << 29;
const SIDE: usize = 8192;
const SECONDS: f64 = 1.5;
/// As in `llama_decode.py`.
const PROMPT: u32 = 32;
const TOKENS: u32 = 64;
const ROUNDS: usize = 5;

fn main() -> Result<()> {
    let threads = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(2usize);
    // SAFETY: no other thread runs yet. candle's own threads, which do the quantized products, and rayon's follow the variable; the
    // size of rayon's global pool alone would not tell candle's.
    unsafe { std::env::set_var("RAYON_NUM_THREADS", threads.to_string()) };
    products()?;
    if let Some(folder) = std::env::args().nth(2) {
        for kind in ["Q8_0", "Q4_0"] {
            let times = decode(&Path::new(&folder).join(format!("tinyllama-{kind}.gguf")))?;
            print("decode/tinyllama-1.1b", &format!("candle {kind}"), times);
        }
    }
    Ok(())
}

/// Products of one row with each type of weights.
fn products() -> Result<()> {
    let device = Device::Cpu;
    let weight = Tensor::randn(0f32, 1f32, (SIDE, SIDE), &device)?;
    let x = Tensor::randn(0f32, 1f32, (1, SIDE), &device)?;
    for (name, kind) in [("Q8_0", GgmlDType::Q8_0), ("Q4_0", GgmlDType::Q4_0), ("Q2K", GgmlDType::Q2K)] {
        let first = QTensor::quantize(&weight, kind)?;
        let count = CACHES.div_ceil(first.storage_size_in_bytes()).max(1);
        let mut copies = vec![QMatMul::from_qtensor(first)?];
        while copies.len() < count {
            copies.push(QMatMul::from_qtensor(QTensor::quantize(&weight, kind)?)?);
        }
        let mut turn = copies.iter().cycle();
        let mut product = || turn.next().map(|weight| weight.forward(&x)).transpose();
        for _ in 0..3 {
            product()?;
        }
        let (start, mut times) = (Instant::now(), vec![]);
        while times.len() < 10 || start.elapsed().as_secs_f64() < SECONDS {
            let before = Instant::now();
            product()?;
            times.push(before.elapsed().as_secs_f64() * 1e3);
        }
        print(&format!("gemv/{SIDE}x{SIDE}"), &format!("candle QMatMul {name}"), times);
    }
    Ok(())
}

/// The milliseconds of each token after a prompt, until its logits are read. A text begins anew at position 0.
fn decode(path: &Path) -> Result<Vec<f64>> {
    let mut file = File::open(path)?;
    let content = Content::read(&mut file)?;
    let mut model = ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?;
    let mut read = |tokens: Vec<u32>, position: u32| -> Result<Vec<f32>> {
        let tokens = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
        model.forward(&tokens, position as usize)?.squeeze(0)?.to_vec1()
    };
    let mut times = vec![];
    for _ in 0..ROUNDS {
        read((10..10 + PROMPT).collect(), 0)?;
        for token in 0..TOKENS {
            let before = Instant::now();
            read(vec![10 + token], PROMPT + token)?;
            times.push(before.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok(times)
}

/// A line with the median.
fn print(group: &str, name: &str, mut times: Vec<f64>) {
    times.sort_by(f64::total_cmp);
    let line = serde_json::json!({ "group": group, "name": name, "ms": times[times.len() / 2] });
    println!("{line}");
}
