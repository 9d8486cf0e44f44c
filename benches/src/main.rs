//! `cargo run --release --bin dr-bench -- report`: what `cargo bench` and the scripts in `benches/peers` measured, in one table.

use dr_bench::report::{criterion, peers, publish, sorted, target};
use dr_bench::threads;
use std::process::ExitCode;
use std::time::SystemTime;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments != ["report"] {
        eprintln!("error: expected `report`\nhint: cargo run --release --bin dr-bench -- report");
        return ExitCode::from(2);
    }
    let target = target();
    let mut all = criterion(&target.join("criterion"), SystemTime::UNIX_EPOCH);
    all.extend(peers(&target.join("peers")));
    if all.is_empty() {
        eprintln!("error: nothing in {0}/criterion and {0}/peers\nhint: cargo bench", target.display());
        return ExitCode::from(2);
    }
    match publish(&sorted(all), threads(), &target) {
        Ok(paths) => {
            eprintln!("wrote {}", paths.map(|path| path.display().to_string()).join(" and "));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: a file in `{}`: {error}", target.display());
            ExitCode::from(2)
        }
    }
}
