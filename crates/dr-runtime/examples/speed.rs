//! How fast a saved language model is on this computer, at each of its precisions, and how much memory it takes.
//!
//! ```text
//! cargo run --release -p dr-runtime --example speed -- model.safetensors            # two threads, all precisions
//! cargo run --release -p dr-runtime --example speed -- model.safetensors 4 w8a8,w4a8
//! ```
//!
//! First each precision in a process of its own: from opening the file to the logits after a prompt of 8 tokens, and the most
//! memory of the process, with that of the mapped file, until 512 tokens are read. Then all in turns, medians of five rounds:
//! reading 512 tokens at once, 64 tokens one by one after them, 64 after a prompt of 8, and 16 of 8 texts at once. Tokens are random.

use dr_precision::{Precision, PrecisionSet};
use dr_runtime::{Artifact, Cache, Network, RuntimeError};
use std::error::Error;
use std::process::Command;
use std::time::Instant;

const SHORT: usize = 8;
const LONG: usize = 512;
const TOKENS: usize = 64;
const TEXTS: usize = 8;
const ROUNDS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (path, options) = arguments.split_first().ok_or("usage: speed MODEL [THREADS [PRECISIONS]]")?;
    let threads = options.first().map_or("2", String::as_str);
    rayon::ThreadPoolBuilder::new().num_threads(threads.parse()?).build_global()?;
    if let [_, precision, alone] = options
        && alone == "alone"
    {
        println!("{}", by_itself(path, precision.parse()?)?);
        return Ok(());
    }
    let artifact = Artifact::load(path.as_ref())?;
    let context = artifact.description.context();
    if context < LONG + TOKENS {
        return Err(format!("a context of {context} tokens: expected at least {}", LONG + TOKENS).into());
    }
    let precisions: PrecisionSet = match options.get(1) {
        Some(precisions) => precisions.parse()?,
        None => artifact.description.precisions().ok_or("a float model")?,
    };
    println!("{path}, {} bytes, {threads} threads", std::fs::metadata(path)?.len());
    println!("{:>8} {:>16} {:>16} {:>16}", "", "first token, ms", "most memory, MB", "of it cache, MB");
    for precision in precisions.iter() {
        let precision = precision.to_string();
        let mut other = Command::new(std::env::current_exe()?);
        let output = other.args([path, threads, &precision, "alone"]).output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into());
        }
        println!("{precision:>8} {}", String::from_utf8_lossy(&output.stdout).trim_end());
    }
    let load = |precision| Network::load(&artifact, precision);
    let networks = precisions.iter().map(load).collect::<Result<Vec<_>, _>>()?;
    let mut times = vec![[(); 4].map(|()| vec![]); networks.len()];
    for _ in 0..ROUNDS {
        for (network, times) in networks.iter().zip(&mut times) {
            round(network, times)?;
        }
    }
    println!("tokens/s (the slowest and the fastest round)");
    let columns = [
        format!("{LONG} at once"),
        format!("after {LONG}"),
        format!("after {SHORT}"),
        format!("{TEXTS} texts"),
    ];
    println!("{:>8} {:>27} {:>27} {:>27} {:>27}", "", columns[0], columns[1], columns[2], columns[3]);
    for (precision, times) in precisions.iter().zip(&mut times) {
        let [at_once, long, short, texts] = times.each_mut().map(|times| {
            times.sort_by(f64::total_cmp);
            let [least, median, most] = [times[0], times[ROUNDS / 2], times[ROUNDS - 1]].map(|s| 1.0 / s);
            format!("{median:.1} ({most:.1} to {least:.1})")
        });
        println!("{:>8} {at_once:>27} {long:>27} {short:>27} {texts:>27}", precision.to_string());
    }
    Ok(())
}

/// Milliseconds to the first token, megabytes of memory and those of the cache, in columns.
fn by_itself(path: &str, precision: Precision) -> Result<String, RuntimeError> {
    let start = Instant::now();
    let (_, network) = Artifact::load_with(path.as_ref(), |file| Network::load(file, precision))?;
    let network = network?;
    let logits = network.read(&[0; SHORT], &mut Cache::new())?;
    let first = start.elapsed().as_secs_f64() * 1e3;
    let mut cache = Cache::new();
    network.read(&random(logits.len(), LONG), &mut cache)?;
    let peak = peak().map_or("unknown".into(), |bytes| format!("{:.1}", bytes as f64 / 1e6));
    Ok(format!("{first:>16.0} {peak:>16} {:>16.1}", cache.bytes() as f64 / 1e6))
}

/// Adds seconds of a token, of each kind.
fn round(network: &Network, times: &mut [Vec<f64>; 4]) -> Result<(), RuntimeError> {
    let mut cache = Cache::new();
    let vocabulary = network.read(&[0], &mut cache)?.len(); // the processor's caches are those of another network
    let text = random(vocabulary, LONG + TOKENS);
    let (prompt, tokens) = text.split_at(LONG);
    let seconds = |start: Instant, tokens: usize| start.elapsed().as_secs_f64() / tokens as f64;
    let one_by_one = |cache: &mut Cache| {
        let start = Instant::now();
        tokens.iter().try_for_each(|&token| network.read(&[token], cache).map(drop))?;
        Ok::<_, RuntimeError>(seconds(start, TOKENS))
    };

    cache = Cache::new();
    let start = Instant::now();
    network.read(prompt, &mut cache)?;
    times[0].push(seconds(start, LONG));
    times[1].push(one_by_one(&mut cache)?);

    cache = Cache::new();
    network.read(&prompt[..SHORT], &mut cache)?;
    let mut caches = vec![cache.clone(); TEXTS];
    times[2].push(one_by_one(&mut cache)?);

    let mut caches: Vec<&mut Cache> = caches.iter_mut().collect();
    let start = Instant::now();
    let mut steps = tokens.chunks_exact(TEXTS).cycle().take(2 * TEXTS);
    steps.try_for_each(|tokens| network.read_each(tokens, &mut caches).map(drop))?;
    times[3].push(seconds(start, 2 * TEXTS * TEXTS));
    Ok(())
}

fn random(vocabulary: usize, len: usize) -> Vec<u32> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % vocabulary.max(1) as u64) as u32
    };
    (0..len).map(|_| next()).collect()
}

/// The most memory of the process so far, if the system says so.
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}
