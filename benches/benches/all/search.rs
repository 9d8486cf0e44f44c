//! The exact search for a plan: a hundred layers with sixteen precisions each, for budgets of bits, of bit operations and
//! of measured time. `cargo bench -- search/`

use criterion::{Criterion, Throughput};
use dr_bench::Work;
use dr_train::mixed::search::{Choice, LayerChoices, minimize};

const LAYERS: usize = 100;
const NETWORKS: usize = 50;
const WIDTHS: [u64; 4] = [2, 4, 6, 8];

/// Numbers from 0 to 1 (Steele, Lea and Flood's SplitMix).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (bits ^ (bits >> 31)) as f64 / u64::MAX as f64
    }
}

/// A network: few different sizes, traces over four orders of magnitude, losses that fall fourfold with each bit and cost
/// as `cost` says for multiplications, bits of weight and activation, and noise.
fn network(noise: &mut Noise, cost: fn(u64, [u64; 2], f64) -> u64) -> (Vec<LayerChoices>, u64) {
    let layer = |l: usize| {
        let size = [432, 2304, 4608, 9216, 18432, 36864][(noise.next() * 6.0) as usize % 6];
        let macs = size * [1024, 256, 64][(noise.next() * 3.0) as usize % 3];
        let trace = 10f64.powf(-4.0 * noise.next());
        let [weights, inputs] = [0.5 + 1.5 * noise.next(), 0.5 + 1.5 * noise.next()];
        let mut choices = vec![];
        for w in WIDTHS {
            for a in WIDTHS {
                let error = weights * 0.25f64.powi(w as i32) + inputs * 0.25f64.powi(a as i32);
                let loss = trace * size as f64 * error * (0.9 + 0.2 * noise.next());
                choices.push(Choice { loss, cost: cost(macs, [w, a], noise.next()) });
            }
        }
        LayerChoices { name: format!("layer {l}"), choices }
    };
    let layers: Vec<LayerChoices> = (0..LAYERS).map(layer).collect();
    let costs = |layer: &LayerChoices| layer.choices.iter().map(|choice| choice.cost).collect::<Vec<_>>();
    let least: u64 = layers.iter().filter_map(|layer| costs(layer).into_iter().min()).sum();
    let most: u64 = layers.iter().filter_map(|layer| costs(layer).into_iter().max()).sum();
    let budget = least + ((most - least) as f64 * (0.1 + 0.8 * noise.next())) as u64;
    (layers, budget)
}

/// The cost of a layer with so many multiply-accumulates at these widths, with noise from 0 to 1.
type Cost = fn(u64, [u64; 2], f64) -> u64;

pub fn search(criterion: &mut Criterion) {
    let problems = Throughput::Elements(1);
    let mut work = Work::new(criterion, format!("search/{LAYERS} layers, 16 precisions"), problems);
    let costs: [(&str, Cost); 3] = [
        ("bits", |macs, [w, _], _| macs / 64 * w),
        ("bit operations", |macs, [w, a], _| macs * w * a),
        ("time", |macs, [w, a], noise| {
            (macs as f64 * (0.5 + 0.05 * w as f64 + 0.03 * a as f64) * (0.9 + 0.2 * noise)) as u64
        }),
    ];
    for (name, cost) in costs {
        // Another network each time.
        let mut noise = Noise(1);
        let networks: Vec<_> = (0..NETWORKS).map(|_| network(&mut noise, cost)).collect();
        let mut turn = networks.iter().cycle();
        work.measure(format!("dr-train, {name}"), || {
            let (layers, budget) = turn.next().expect("networks in turns");
            minimize(layers, *budget).expect("a budget above the least")
        });
    }
}
