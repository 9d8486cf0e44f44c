//! Serves one model under a changing load. When a batch takes longer than the budget, the network switches to its next lower
//! precision; when there has been room for a while, to the next higher one. A switch is a shift of the stored codes.
//!
//! ```sh
//! cargo run --release -p dr-train                        # trains the model, on the digits in the program
//! cargo run --release -p dr-train --example serve -- runs/digits-resnet8/model.safetensors
//! cargo run --release -p dr-train --example serve -- runs/digits-resnet8/model.safetensors 1.5    # budget in ms
//! ```
//!
//! Without a budget it is 1.5 times what the middle of the load takes at the highest precision. Only precisions that are
//! faster than all higher ones on this machine are used: fewer bits are not always fewer milliseconds.

use burn::tensor::{Device, Distribution, Tensor, TensorData};
use dr_precision::Precision;
use dr_runtime::Arithmetic;
use dr_runtime::tensors::Network;
use dr_train::artifact::{Artifact, Described, InputShape, SavedModel};
use rand::SeedableRng;
use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

/// Batches to serve.
const STEPS: usize = 60;
/// Batches in a row that must be fast enough before the precision rises.
const PATIENCE: usize = 4;
/// What is fast enough, of the budget.
const ROOM: f64 = 0.6;

/// Decides which precision to serve with.
struct Governor {
    /// Highest first.
    precisions: Vec<Precision>,
    active: usize,
    budget: Duration,
    /// Batches in a row with room.
    with_room: usize,
}

impl Governor {
    /// The precision for the next batch, when this one took so long.
    fn next(&mut self, took: Duration) -> Precision {
        let has_room = took < self.budget.mul_f64(ROOM);
        self.with_room = if has_room { self.with_room + 1 } else { 0 };
        if took > self.budget {
            self.active = (self.active + 1).min(self.precisions.len() - 1);
        } else if self.with_room >= PATIENCE {
            self.active = self.active.saturating_sub(1);
            self.with_room = 0;
        }
        self.precisions[self.active]
    }
}

/// The load: 8 to 128 images at once, rising and falling twice.
fn batch_size(step: usize) -> usize {
    let wave = (step as f64 / STEPS as f64 * 4.0 * std::f64::consts::PI).cos();
    2f64.powf(5.0 - 2.0 * wave).round() as usize
}

/// The best of some passes.
fn fastest(network: &Network, images: &Tensor<4>) -> Result<Duration, Box<dyn Error>> {
    let passes = (0..10).map(|_| serve(network, images.clone()));
    passes.reduce(|a, b| Ok(a?.min(b?))).unwrap_or(Ok(Duration::ZERO))
}

fn serve(network: &Network, images: Tensor<4>) -> Result<Duration, Box<dyn Error>> {
    let start = Instant::now();
    let _classes = network.forward(images)?.argmax(1).into_data();
    Ok(start.elapsed())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments.next().ok_or("usage: serve MODEL.safetensors [BUDGET in ms]")?;
    let budget: Option<f64> = arguments.next().map(|text| text.parse()).transpose()?;

    let artifact = Artifact::open(Path::new(&model))?;
    let device = Device::flex();
    let quantization = artifact.description.quantization();
    let precisions = quantization.ok_or("a float model: expected a quantized one")?.precisions;
    let highest = precisions.highest();
    let mut network = Network::load(&artifact, highest, Arithmetic::Integer, &device)?;

    let InputShape { channels, height, width } = artifact.description.input;
    let rng = &mut chacha20::ChaCha8Rng::seed_from_u64(1);
    let mut images = |batch: usize| {
        let shape = [batch, channels, height, width];
        let values = TensorData::random::<f32, _, _>(shape, Distribution::Normal(0.0, 1.0), rng);
        Tensor::<4>::from_data(values, &device)
    };
    let middle = images(32);
    let (mut useful, mut best) = (vec![], Duration::MAX);
    for precision in precisions.iter() {
        network.switch(precision)?;
        let time = fastest(&network, &middle)?;
        let keep = time < best;
        println!("{precision}: {:.3} ms{}", ms(time), if keep { "" } else { ", not faster: not used" });
        if keep {
            useful.push(precision);
            best = time;
        }
    }
    network.switch(highest)?;
    let budget = match budget {
        Some(ms) => Duration::try_from_secs_f64(ms / 1e3)?,
        None => fastest(&network, &middle)?.mul_f64(1.5),
    };

    if useful.len() == 1 {
        println!("nothing to switch to: fewer bits are not faster here");
    }
    println!("budget {:.3} ms", ms(budget));
    println!("{:>4} {:>7} {:>10} {:>9} {:>9}", "step", "images", "precision", "ms", "switch ms");
    let mut governor = Governor { precisions: useful, active: 0, budget, with_room: 0 };
    for step in 0..STEPS {
        let batch = batch_size(step);
        let took = serve(&network, images(batch))?;
        let served_at = network.precision();
        let next = governor.next(took);
        let start = Instant::now();
        let mut switched = String::new();
        if next != served_at {
            network.switch(next)?;
            switched = format!("{:9.3} -> {next}", ms(start.elapsed()));
        }
        println!("{step:>4} {batch:>7} {served_at:>10} {:>9.3} {switched}", ms(took));
    }
    Ok(())
}
