//! `cargo run -p dr-bench --release -- report`: what `cargo bench` and the scripts in `benches/peers` measured, in one table.

use dr_bench::report::{collect, plot, table};
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments != ["report"] {
        eprintln!("error: expected `report`\nhint: cargo run -p dr-bench --release -- report");
        return ExitCode::from(2);
    }
    let target = Path::new("target");
    let all = collect(&target.join("criterion"), &target.join("peers"));
    if all.is_empty() {
        eprintln!("error: nothing in target/criterion and target/peers\nhint: cargo bench -p dr-bench");
        return ExitCode::from(2);
    }
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    println!("{}; {threads} processors\n", processor());
    print!("{}", table(&all));
    let path = target.join("report.svg");
    if let Err(error) = std::fs::write(&path, plot(&all)) {
        eprintln!("error: `{}`: {error}", path.display());
        return ExitCode::from(2);
    }
    eprintln!("wrote {}", path.display());
    ExitCode::SUCCESS
}

/// The processor's name, where the system tells.
fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_string())
    };
    let name = field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_string());
    match (field("cpu family"), field("model\t")) {
        (Some(family), Some(model)) => format!("{name} (family {family}, model {model})"),
        _ => name,
    }
}
