//! All works, then one table. `cargo bench`, or `cargo bench -- FILTER` for those whose names a regular expression fits.
//!
//! What is measured takes four minutes on two threads. `DR_BENCH_FULL=1` measures all sizes, bit-widths and emulations, three
//! times as many samples of each, and takes much longer.

mod device;
mod fake_quantize;
mod integer;
mod loader;
mod network;
mod packed;
mod scale_search;
mod search;
mod training;

use criterion::Criterion;
use dr_bench::report::{self, publish};
use dr_bench::threads;
use std::time::SystemTime;

type Measure = fn(&mut Criterion);

/// How the names of works begin, and what measures them.
const WORKS: [(&str, Measure); 17] = [
    ("limit", integer::limit),
    ("gemm", integer::gemm),
    ("gemv", integer::gemv),
    ("conv", integer::conv),
    ("training", training::convolutions),
    ("switch_panels", integer::switch),
    ("network", network::network),
    ("fake_quantize", fake_quantize::weight_forward),
    ("fake_quantize", fake_quantize::activation_forward),
    ("fake_quantize", fake_quantize::weight_backward),
    ("quantize_pack", packed::quantizing),
    ("switch/", packed::switching),
    ("dequantize", packed::dequantizing),
    ("search_scales", scale_search::search),
    ("search/", search::search),
    ("device", device::all),
    ("loader", loader::loading),
];

fn main() {
    let target = report::target();
    let folder = target.join("criterion");
    let mut criterion = Criterion::default().output_directory(&folder).configure_from_args();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let asked = |(name, _): &&(&str, Measure)| arguments.iter().any(|filter| filter.contains(name));
    // Other filters are Criterion's business alone: it does not measure what does not fit, but all is prepared.
    let any = WORKS.iter().any(|work| asked(&work));
    let start = SystemTime::now();
    for (_, measure) in WORKS.iter().filter(|work| !any || asked(work)) {
        measure(&mut criterion);
    }
    criterion.final_summary();
    let measured = report::criterion(&folder, start);
    if measured.is_empty() {
        return;
    }
    match publish(&measured, threads(), &target) {
        Ok(paths) => println!("wrote {}", paths.map(|path| path.display().to_string()).join(" and ")),
        Err(error) => {
            eprintln!("error: a file in `{}`: {error}", target.display());
            std::process::exit(1);
        }
    }
}
