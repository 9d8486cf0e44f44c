//! Times candle's products of a vector with quantized weights, on the shape of `cargo bench -p dr-bench -- gemv`, on a CPU.
//!
//!     cargo run --release --manifest-path benches/peers/candle/Cargo.toml -- [threads] > target/peers/candle.json
//!
//! Prints a JSON line for each measurement: group, name and median milliseconds. Products take turns with several copies of the
//! weights, larger than the caches together, as in the other benchmarks. candle quantizes the activations to 8 bits.

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Module, Tensor};
use std::time::Instant;

const CACHES: usize = 1 << 29;
const SIDE: usize = 8192;
const SECONDS: f64 = 1.5;

fn main() -> candle_core::Result<()> {
    let threads = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(2);
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .map_err(candle_core::Error::wrap)?;
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
        times.sort_by(f64::total_cmp);
        let line = serde_json::json!({
            "group": format!("gemv/{SIDE}x{SIDE}"),
            "name": format!("candle QMatMul {name}"),
            "ms": times[times.len() / 2],
        });
        println!("{line}");
    }
    Ok(())
}
