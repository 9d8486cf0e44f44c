//! One table, one file and one plot of everything that was measured: by Criterion, and by the peers that are not in Rust.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A median.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct Measurement {
    /// What was done: `gemm/1024x1024x1024`.
    pub group: String,
    /// By whom: `dr-kernels w8a8`.
    pub name: String,
    /// Milliseconds.
    pub ms: f64,
    /// Operations or bytes, whichever the group counts.
    #[serde(default)]
    pub amount: Option<f64>,
}

#[derive(Deserialize)]
struct Benchmark {
    group_id: String,
    function_id: Option<String>,
    throughput: Option<BTreeMap<String, serde_json::Value>>,
}

#[derive(Deserialize)]
struct Estimates {
    median: Estimate,
}

#[derive(Deserialize)]
struct Estimate {
    point_estimate: f64,
}

/// Cargo's folder of what it builds, where this program lies: results are written there.
#[must_use]
pub fn target() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    let mut folders = program.ancestors();
    // Cargo marks it so.
    let found = folders.find(|folder| folder.join("CACHEDIR.TAG").is_file());
    found.map_or_else(|| PathBuf::from("target"), Path::to_path_buf)
}

/// Everything below a folder of Criterion's that is not older than `since`. What cannot be read is left out.
#[must_use]
pub fn criterion(folder: &Path, since: SystemTime) -> Vec<Measurement> {
    let mut found = vec![];
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            }
        }
        let written = fs::metadata(folder.join("estimates.json")).and_then(|file| file.modified());
        if folder.ends_with("new") && written.is_ok_and(|written| written >= since) {
            found.extend(measurement(&folder));
        }
    }
    sorted(found)
}

/// Everything in the `.json` files (a line each) of a folder of peers. What cannot be read is left out.
#[must_use]
pub fn peers(folder: &Path) -> Vec<Measurement> {
    let mut found = vec![];
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        found.extend(text.lines().filter_map(|line| serde_json::from_str::<Measurement>(line).ok()));
    }
    found
}

/// By work.
#[must_use]
pub fn sorted(mut all: Vec<Measurement>) -> Vec<Measurement> {
    all.sort_by(|a, b| (&a.group, &a.name).cmp(&(&b.group, &b.name)));
    all
}

/// Prints where it was measured and the table, and writes `bench.json` and `bench.svg` into `folder`. Gives their paths.
///
/// # Errors
/// If they cannot be written.
pub fn publish(all: &[Measurement], threads: usize, folder: &Path) -> io::Result<[PathBuf; 2]> {
    #[derive(Serialize)]
    struct File<'a> {
        processor: String,
        threads: usize,
        seconds_since_1970: u64,
        measurements: &'a [Measurement],
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let file = File { processor: processor(), threads, seconds_since_1970: now.as_secs(), measurements: all };
    println!("\n{}, {threads} threads\n\n{}", file.processor, table(all));
    let paths = ["bench.json", "bench.svg"].map(|name| folder.join(name));
    fs::write(&paths[0], serde_json::to_string_pretty(&file)? + "\n")?;
    fs::write(&paths[1], plot(all))?;
    Ok(paths)
}

/// The processor's name, where the system tells.
fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
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

fn measurement(folder: &Path) -> Option<Measurement> {
    let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
    let benchmark: Benchmark = serde_json::from_str(&read("benchmark.json")?).ok()?;
    let estimates: Estimates = serde_json::from_str(&read("estimates.json")?).ok()?;
    let amount = benchmark.throughput.and_then(|amounts| amounts.into_values().next()?.as_f64());
    Some(Measurement {
        group: benchmark.group_id,
        name: benchmark.function_id?,
        ms: estimates.median.point_estimate / 1e6,
        amount,
    })
}

/// The group that measures what arithmetic can give.
pub const PEAK: &str = "limit/int8 products";

/// Whether a name is that of something that does less than the work, and so tells what the machine can give.
fn is_limit(m: &Measurement) -> bool {
    ["memcpy", "reading", "copy", "registers"].iter().any(|limit| m.name.starts_with(limit))
}

/// A Markdown table with a row for each of our measurements: time, rate, the fastest peer that does the same with no fewer bits, and the
/// share of the machine's limit. That is the rate of only reading the weights where it was measured, that of [`PEAK`] for
/// products and convolutions, else that of a copy. What nobody but the machine does, or peers alone, has a row of its own.
#[must_use]
pub fn table(all: &[Measurement]) -> String {
    let rate = |m: &Measurement, amount: Option<f64>| amount.map(|amount| amount / m.ms * 1e3);
    let peak = all.iter().find(|m| m.group == PEAK).and_then(|m| rate(m, m.amount));
    let mut rows = vec![];
    for group in all.chunk_by(|a, b| a.group == b.group) {
        let amount = group.iter().find_map(|m| m.amount);
        let (ours, others): (Vec<_>, Vec<_>) = group.iter().partition(|m| m.name.starts_with("dr-"));
        let (limits, peers): (Vec<_>, Vec<_>) = others.iter().copied().partition(|m| is_limit(m));
        let fastest =
            |of: &mut dyn Iterator<Item = &Measurement>| of.min_by(|a, b| a.ms.total_cmp(&b.ms)).cloned();
        let reading = limits.iter().find(|m| m.name.starts_with("reading 8 bits"));
        let copying = fastest(&mut limits.iter().copied().filter(|m| !m.name.starts_with("reading")));
        let multiplies = ["gemm/", "conv/"].iter().any(|work| group[0].group.starts_with(work));
        for &m in if ours.is_empty() { &others } else { &ours } {
            let width = bits(&m.name);
            let peer = fastest(&mut peers.iter().copied().filter(|peer| {
                !ours.is_empty() && bits(&peer.name).unwrap_or(FLOAT) >= width.unwrap_or(FLOAT)
            }));
            let share = match (reading, width) {
                // Bytes of the weights alone.
                (Some(reading), Some(bits)) => Some(reading.ms * bits / 8.0 / m.ms),
                (None, Some(_)) if multiplies => rate(m, amount).zip(peak).map(|(rate, peak)| rate / peak),
                _ => copying.as_ref().filter(|_| !ours.is_empty()).map(|copy| copy.ms / m.ms),
            };
            let [name, ms, times] = peer.map_or_else(Default::default, |peer| {
                [peer.name, format!("{:.3}", peer.ms), format!("{:.2}", peer.ms / m.ms)]
            });
            let rate = rate(m, amount).map_or_else(String::new, with_prefix);
            let share = share.map_or_else(String::new, |share| format!("{:.0} %", share * 100.0));
            let work = m.group.clone();
            let by = m.name.strip_prefix("dr-kernels ").unwrap_or(&m.name).to_owned();
            rows.push([work, by, format!("{:.3}", m.ms), rate, name, ms, times, share]);
        }
    }
    let head = ["work", "ours", "ms", "a second", "fastest peer", "ms", "times as fast", "of the limit"];
    let head = head.map(str::to_owned);
    let width = |column: usize| {
        rows.iter().chain([&head]).map(|row: &[String; 8]| row[column].chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let rule = std::array::from_fn(|column| "-".repeat(widths[column]));
    let mut text = String::new();
    for row in [&head, &rule].into_iter().chain(&rows) {
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a string cannot fail.
            let _ = write!(text, "| {cell:width$} ");
        }
        text.push_str("|\n");
    }
    text
}

/// Three digits of a number, and the prefix of its unit: `867 G` of 8.67e11.
fn with_prefix(number: f64) -> String {
    let (factor, prefix) = match number {
        1e9.. => (1e-9, " G"),
        1e6.. => (1e-6, " M"),
        1e3.. => (1e-3, " k"),
        _ => (1.0, ""),
    };
    let number = number * factor;
    let decimals = if number < 10.0 { 2 } else { usize::from(number < 100.0) };
    format!("{number:.decimals$}{prefix}")
}

/// Bits of a float.
const FLOAT: f64 = 32.0;

/// Bits of a weight in integer arithmetic, from names such as `dr-kernels w4a8`; those with more bytes for scales in groups
/// count them.
fn bits(name: &str) -> Option<f64> {
    if name.contains("rten-gemm") || name.contains("MatMulInteger") {
        return Some(8.0);
    }
    let width = name.split_whitespace().find_map(|word| word.strip_prefix('w'))?;
    let width: f64 = width.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok()?;
    // A scale of 32 bits for 32 weights is a bit more for each.
    Some(if name.contains("groups of 32") { width + 1.0 } else { width })
}

/// Bars of all times, a panel for each group of at least two, as SVG.
#[must_use]
pub fn plot(all: &[Measurement]) -> String {
    const ROW: usize = 18;
    let groups: Vec<_> = all.chunk_by(|a, b| a.group == b.group).filter(|group| group.len() > 1).collect();
    let height = groups.iter().map(|group| (group.len() + 2) * ROW).sum::<usize>() + ROW;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"820\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"820\" height=\"{height}\" fill=\"white\"/>\n"
    );
    let mut y = ROW;
    for group in groups {
        let longest = group.iter().map(|m| m.ms).fold(0.0, f64::max);
        let _ = writeln!(
            svg,
            "<text x=\"10\" y=\"{y}\" font-weight=\"bold\">{} (ms, shorter is faster)</text>",
            group[0].group
        );
        for m in group {
            y += ROW;
            let (width, color) =
                (m.ms / longest * 420.0, if m.name.starts_with("dr-") { "#1f77b4" } else { "#bbbbbb" });
            let (top, end) = (y - 12, 290.0 + width);
            let _ = writeln!(
                svg,
                "<text x=\"280\" y=\"{y}\" text-anchor=\"end\">{}</text><rect x=\"284\" y=\"{top}\" width=\"{width:.1}\" \
                 height=\"14\" fill=\"{color}\"/><text x=\"{end:.1}\" y=\"{y}\">{:.3}</text>",
                m.name, m.ms
            );
        }
        y += 2 * ROW;
    }
    svg + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(group: &str, name: &str, ms: f64) -> Measurement {
        Measurement { group: group.into(), name: name.into(), ms, amount: Some(1e6) }
    }

    #[test]
    fn peers_have_no_fewer_bits_and_limits_are_no_peers() {
        let all = sorted(vec![
            measured("gemv/8x8", "dr-kernels w8a8", 2.0),
            measured("gemv/8x8", "dr-kernels w4a8", 1.0),
            measured("gemv/8x8", "MatMulNBits w4", 3.0),
            measured("gemv/8x8", "rten-gemm u8 x i8", 5.0),
            measured("gemv/8x8", "reading 8 bits a weight", 1.0),
            measured("pack", "dr-kernels", 4.0),
            measured("pack", "tensor operations", 8.0),
            measured("pack", "memcpy, 1 thread", 3.0),
            measured("pack", "memcpy, 2 threads", 2.0),
            measured("device copy", "copy", 2.0),
        ]);
        let rows: Vec<Vec<_>> = table(&all)
            .lines()
            .map(|line| line.split('|').map(|cell| cell.trim().to_owned()).collect())
            .collect();
        let cells = |row: &[String]| row[1..9].join(";");
        let expected = [
            "device copy;copy;2.000;500 M;;;;",
            "gemv/8x8;w4a8;1.000;1.00 G;MatMulNBits w4;3.000;3.00;50 %",
            "gemv/8x8;w8a8;2.000;500 M;rten-gemm u8 x i8;5.000;2.50;50 %",
            "pack;dr-kernels;4.000;250 M;tensor operations;8.000;2.00;50 %",
        ];
        assert_eq!(rows[2..].iter().map(|row| cells(row)).collect::<Vec<_>>(), expected);
    }
}
