//! One table and one plot of everything that was measured: by Criterion, and by the peers that are not in Rust.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// A median.
#[derive(Clone, Debug, Deserialize, PartialEq)]
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

/// Everything below a folder of Criterion's, and in the `.json` files (a line each) of a folder of peers. What cannot be
/// read is left out.
#[must_use]
pub fn collect(criterion: &Path, peers: &Path) -> Vec<Measurement> {
    let mut found = vec![];
    let mut folders = vec![criterion.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            }
        }
        if folder.ends_with("new") {
            found.extend(measurement(&folder));
        }
    }
    for entry in fs::read_dir(peers).into_iter().flatten().flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        found.extend(text.lines().filter_map(|line| serde_json::from_str::<Measurement>(line).ok()));
    }
    found.sort_by(|a, b| (&a.group, &a.name).cmp(&(&b.group, &b.name)));
    found
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

/// A Markdown table: time, rate, the ratio to our own row at 8 bits (lower is faster), and the share of the limit: of the rate of
/// only reading the weights where the group has such a row, else, for integer products and convolutions, of [`PEAK`].
#[must_use]
pub fn table(all: &[Measurement]) -> String {
    let mut text = String::from(
        "| work | by | ms | 10^9 a second | time / ours at 8 bits | of the limit |\n|---|---|---|---|---|---|\n",
    );
    let rate = |m: &Measurement, amount: Option<f64>| amount.map(|amount| amount / m.ms / 1e6);
    let peak = all.iter().find(|m| m.group == PEAK).and_then(|m| rate(m, m.amount));
    for group in all.chunk_by(|a, b| a.group == b.group) {
        let amount = group.iter().find_map(|m| m.amount);
        let ours = group.iter().find(|m| m.name.starts_with("dr-kernels w8a8"));
        let ours = ours.or_else(|| group.iter().find(|m| m.name.starts_with("dr-")));
        let reading = group.iter().find(|m| m.name.starts_with("reading 8 bits"));
        for m in group {
            let rate = rate(m, amount);
            let ratio = ours.map_or(String::new(), |ours| format!("{:.2}", m.ms / ours.ms));
            let multiplies = ["gemm/", "conv/"].iter().any(|work| m.group.starts_with(work));
            let share = match (reading, bits(&m.name)) {
                // Bytes of the weights alone.
                (Some(reading), Some(bits)) => Some(reading.ms * bits / 8.0 / m.ms),
                (None, Some(_)) if multiplies => rate.zip(peak).map(|(rate, peak)| rate / peak),
                _ => None,
            };
            let limit = share.map_or(String::new(), |share| format!("{:.0} %", share * 100.0));
            let rate = rate.map_or(String::new(), |rate| format!("{rate:.3}"));
            // Writing to a string cannot fail.
            let _ = writeln!(text, "| {} | {} | {:.3} | {rate} | {ratio} | {limit} |", m.group, m.name, m.ms);
        }
    }
    text
}

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
