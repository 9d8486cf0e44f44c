use dr_runtime::file::Artifact;
use dr_runtime::{Cache, Input, Network};
use std::collections::BTreeMap;
use std::time::Instant;
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let a: Vec<String> = std::env::args().skip(1).collect();
    let artifact = Artifact::load(std::path::Path::new(&a[0]))?;
    let bytes = std::fs::read(&a[1])?;
    let tokens: Vec<u32> = bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
    let n: usize = a[3].parse()?;
    let reps: usize = a[4].parse()?;
    let threads: usize = a.get(5).map_or(2, |x| x.parse().unwrap());
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    for p in a[2].split(',') {
        let net = Network::load(&artifact, p.parse()?)?;
        let mut best = [f64::MAX; 4];
        let mut lay = BTreeMap::new();
        for _ in 0..reps {
            let s = Instant::now();
            let (_, times) = net.forward_timed(Input::Tokens { ids: &tokens[..n], batch: 1 })?;
            best[0] = best[0].min(s.elapsed().as_secs_f64());
            let sum: f64 = times.iter().map(|t| t.as_secs_f64()).sum();
            if sum < best[1] {
                best[1] = sum;
                lay.clear();
                for (l, t) in net.graph().layers().iter().zip(&times) {
                    let k = l.name.rsplit('.').next().unwrap().to_owned();
                    *lay.entry(k).or_insert(0.0) += t.as_secs_f64();
                }
            }
            let mut cache = Cache::new();
            let s = Instant::now();
            net.read(&tokens[..n], &mut cache)?;
            best[2] = best[2].min(s.elapsed().as_secs_f64());
            let s = Instant::now();
            for &t in &tokens[n..n + 64] {
                net.read(&[t], &mut cache)?;
            }
            best[3] = best[3].min(s.elapsed().as_secs_f64() / 64.0);
        }
        println!(
            "{p}: forward {n}: {:.0} ms ({:.0} tok/s), layers {:.0} ms, prefill {:.0} ms ({:.0} tok/s), decode {:.2} ms ({:.1} tok/s)",
            best[0] * 1e3,
            n as f64 / best[0],
            best[1] * 1e3,
            best[2] * 1e3,
            n as f64 / best[2],
            best[3] * 1e3,
            1.0 / best[3]
        );
        for (k, v) in &lay {
            print!("  {k} {:.1}", v * 1e3);
        }
        println!();
    }
    Ok(())
}
