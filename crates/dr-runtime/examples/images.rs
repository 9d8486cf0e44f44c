//! How long a saved network takes on this computer, at each of its precisions or in floats.
//!
//! ```text
//! cargo run --release -p dr-runtime --features npy --example images -- model.safetensors input.npy [BATCH [THREADS [PRECISIONS]]]
//! ```
//!
//! The input is repeated to the batch. Medians of as many passes as two seconds have, on two threads or as many as are asked for, one line for
//! each precision.

use dr_precision::{Precision, PrecisionSet};
use dr_runtime::arrays::Array;
use dr_runtime::{Arithmetic, Artifact, Network, npy};
use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, input, options @ ..] = &arguments[..] else {
        return Err("expected MODEL INPUT.npy [BATCH [THREADS [PRECISIONS]]]".into());
    };
    let threads = options.get(1).map_or(Ok(2), |threads| threads.parse())?;
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    let artifact = Artifact::load(Path::new(model))?;
    let batch: usize = options.first().map_or(Ok(1), |batch| batch.parse())?;
    let precisions: Vec<Option<Precision>> = match options.get(2) {
        Some(precisions) => precisions.parse::<PrecisionSet>()?.iter().map(Some).collect(),
        None => artifact.description.precisions().map_or(vec![None], |all| all.iter().map(Some).collect()),
    };
    let (_, array) = npy::read(Path::new(input))?.into_iter().next().ok_or("no array")?;
    let mut dims = array.dims().to_vec();
    let first = array.contiguous().floats()?.into_owned();
    let item = first.len() / dims[0];
    dims[0] = batch;
    let x = vec![Array::from_f32(first[..item].repeat(batch), &dims)?];
    for precision in precisions {
        let network = Network::load_with(&artifact, precision, Arithmetic::Integer)?;
        for _ in 0..3 {
            network.forward_arrays(&x)?;
        }
        let (start, mut times) = (Instant::now(), vec![]);
        while start.elapsed() < Duration::from_secs(2) || times.len() < 5 {
            let start = Instant::now();
            network.forward_arrays(&x)?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        times.sort_by(f64::total_cmp);
        let name = precision.map_or("float".into(), |precision| precision.to_string());
        println!(
            "{name:>8} batch {batch:>3} {:>9.3} ms (least {:.3}, {} passes)",
            times[times.len() / 2],
            times[0],
            times.len()
        );
    }
    Ok(())
}
