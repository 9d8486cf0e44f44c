//! Times products of dynamic rows and weights in groups beside products with one scale for each output, in turns.
//!
//! ```sh
//! cargo run --release -p dr-kernels --no-default-features --example dynamic_speed -- 1x2048x2048 20
//! ```
//!
//! Arguments: which cases (a part of their names, which are `ROWSxINPUTSxOUTPUTS wBITS`), and how many rounds.

use dr_kernels::host::{
    DynamicProduct, GroupedCodes, GroupedWeight, Product, Results, Rows, StoredWeight, code_len,
};
use dr_kernels::{Activation, CodeQuantizer, Conv2dOptions, KernelError};
use dr_precision::{BitWidth, Granularity};
use std::time::Instant;

const SIZES: [[usize; 3]; 6] =
    [[1, 2048, 2048], [1, 2048, 5632], [1, 5632, 2048], [1, 576, 1536], [16, 2048, 2048], [512, 576, 1536]];

fn main() -> Result<(), KernelError> {
    let mut arguments = std::env::args().skip(1);
    let only = arguments.next().unwrap_or_default();
    let rounds: usize = arguments.next().and_then(|rounds| rounds.parse().ok()).unwrap_or(15).max(1);
    for size in SIZES {
        for bits in [BitWidth::B8, BitWidth::B4, BitWidth::B3, BitWidth::B2] {
            let name = format!("{}x{}x{} w{bits}", size[0], size[1], size[2]);
            if name.contains(&only) {
                time(&name, size, bits, rounds)?;
            }
        }
    }
    Ok(())
}

/// Different numbers, always the same.
fn numbers(seed: u64) -> impl Iterator<Item = u64> {
    std::iter::successors(Some(seed), |x| Some(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1)))
        .map(|x| x >> 33)
}

fn time(
    name: &str, [rows, inputs, outputs]: [usize; 3], bits: BitWidth, rounds: usize,
) -> Result<(), KernelError> {
    // More weights than a cache holds, as those of a network.
    let copies = if rows == 1 { 40 } else { 2 };
    let codes: Vec<i8> = numbers(1).map(|x| x as i8).take(outputs * inputs).collect();
    let x: Vec<f32> = numbers(2).map(|x| (x % 256) as f32 / 100.0 - 1.27).take(rows * inputs).collect();
    let groups = outputs * inputs.div_ceil(GroupedWeight::GROUP);
    let scales: Vec<f32> = numbers(3).map(|x| (x % 100 + 50) as f32 * 1e-4).take(groups).collect();
    let offsets: Vec<f32> = numbers(4).map(|x| (x % 100) as f32 * 1e-3 - 0.05).take(groups).collect();
    let input = CodeQuantizer { bits: BitWidth::B8, scale: 0.01, zero_point: -1.27 };
    let shape = [outputs, inputs];
    let stored = StoredWeight::from_codes(&codes, &shape, 1, BitWidth::B8, Granularity::Channel)?;
    let (options, ones, zeros) = (Conv2dOptions::default(), vec![1.0; outputs], vec![0.0; outputs]);
    let (mut ungrouped, mut dynamic) = (vec![], vec![]);
    let in_groups = GroupedCodes::from_codes(&codes, shape, BitWidth::B8, GroupedWeight::GRANULARITY)?;
    for _ in 0..copies {
        let weight = stored.at(bits, &vec![0.01; outputs])?;
        weight.settle();
        ungrouped.push(Product::new(weight, options, input, &ones, &zeros, Activation::None)?);
        let weight = in_groups.with_offsets(bits, &scales, &offsets)?;
        weight.settle();
        dynamic.push(DynamicProduct::new(weight, Some(&zeros))?);
    }
    let dims = [rows, 1, 1, inputs];
    let (mut of_x, mut codes, mut out) = (Rows::new(), vec![0; code_len(dims)], vec![0.0; rows * outputs]);
    // Quantizing and multiplying: without groups, dynamically. One product after the other, so that both see the same of what else the
    // machine does.
    let mut times: [Vec<f64>; 4] = Default::default();
    for (ungrouped, dynamic) in (0..rounds).flat_map(|_| ungrouped.iter().zip(&dynamic)) {
        let mut start = Instant::now();
        let mut micros = || std::mem::replace(&mut start, Instant::now()).elapsed().as_secs_f64() * 1e6;
        ungrouped.quantize(&x, dims, true, &mut codes)?;
        times[0].push(micros());
        ungrouped.run(&codes, dims, None, Results { values: Some(&mut out), codes: None })?;
        times[1].push(micros());
        of_x.quantize(&x, rows, inputs)?;
        times[2].push(micros());
        dynamic.run(&of_x, &mut out)?;
        times[3].push(micros());
    }
    times.iter_mut().for_each(|times| times.sort_by(f64::total_cmp));
    let [tenth, middle] = [10, 2].map(|part| times.each_ref().map(|times| times[times.len() / part]));
    println!(
        "{name:17} tenth, half of all below, us: ungrouped {:7.1} {:7.1} (codes {:5.1}), dynamic {:7.1} {:7.1} (codes {:5.1}); ratio {:.2} {:.2}; bytes {:.3}",
        tenth[1],
        middle[1],
        tenth[0],
        tenth[3],
        middle[3],
        tenth[2],
        tenth[3] / tenth[1],
        middle[3] / middle[1],
        dynamic[0].bytes() as f64 / ungrouped[0].bytes() as f64,
    );
    Ok(())
}
