use dr_kernels::host::*;
use dr_kernels::{Activation, CodeQuantizer, Conv2dOptions};
use dr_precision::*;
use std::time::Instant;
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let only = args.get(1).cloned().unwrap_or_default();
    let rounds: usize = args.get(2).map_or(15, |r| r.parse().unwrap());
    let cases = [
        (1usize, 2048usize, 2048usize),
        (1, 5632, 2048),
        (1, 2048, 5632),
        (1, 576, 1536),
        (1, 576, 576),
        (4, 2048, 2048),
        (512, 2048, 2048),
        (512, 576, 1536),
        (16, 2048, 2048),
    ];
    for (m, k, n) in cases {
        for bits in [BitWidth::B8, BitWidth::B4, BitWidth::B3, BitWidth::B2] {
            let name = format!("{m}x{k}x{n} w{bits}");
            if !name.contains(&only) {
                continue;
            }
            let copies = if m <= 4 { 40 } else { 2 };
            let codes: Vec<i8> = (0..n * k).map(|i| ((i * 7919) >> 3) as i8).collect();
            let x: Vec<f32> = (0..m * k).map(|i| ((i * 7919) >> 3 & 255) as f32 / 100.0 - 1.27).collect();
            let channel =
                StoredWeight::from_codes(&codes, &[n, k], 1, BitWidth::B8, Granularity::Channel).unwrap();
            let grouped =
                StoredWeight::from_codes(&codes, &[n, k], 1, BitWidth::B8, GroupedWeight::GRANULARITY)
                    .unwrap();
            let groups = n * k.div_ceil(32);
            let input = CodeQuantizer { bits: BitWidth::B8, scale: 0.01, zero_point: -1.27 };
            let a: Vec<Product> = (0..copies)
                .map(|_| {
                    let stored = if bits == BitWidth::B8 {
                        StoredWeight::from_codes(&codes, &[n, k], 1, BitWidth::B8, Granularity::Channel)
                            .unwrap()
                    } else {
                        channel.clone()
                    };
                    let w = stored.at(bits, &vec![0.01; n]).unwrap();
                    w.settle();
                    Product::new(
                        w,
                        Conv2dOptions::default(),
                        input,
                        &vec![1.0; n],
                        &vec![0.0; n],
                        Activation::None,
                    )
                    .unwrap()
                })
                .collect();
            let b: Vec<DynamicProduct> = (0..copies)
                .map(|_| {
                    let w = grouped.with_offsets(bits, &vec![0.01; groups], &vec![0.001; groups]).unwrap();
                    w.settle();
                    DynamicProduct::new(w, Some(&vec![0.0; n])).unwrap()
                })
                .collect();
            let dims = [m, 1, 1, k];
            let mut xc = vec![0u8; code_len(dims)];
            a[0].quantize(&x, dims, true, &mut xc).unwrap();
            let mut rows = Rows::new();
            let mut out = vec![0.0f32; m * n];
            let (mut ta, mut tb, mut tq) = (vec![], vec![], vec![]);
            for _ in 0..rounds {
                let t = Instant::now();
                for p in &a {
                    p.run(&xc, dims, None, Results { values: Some(&mut out[..]), codes: None }).unwrap();
                }
                ta.push(t.elapsed().as_secs_f64() * 1e6 / copies as f64);
                let t = Instant::now();
                for _ in 0..copies {
                    rows.quantize(&x, m, k).unwrap();
                }
                tq.push(t.elapsed().as_secs_f64() * 1e6 / copies as f64);
                let t = Instant::now();
                for p in &b {
                    p.run(&rows, &mut out).unwrap();
                }
                tb.push(t.elapsed().as_secs_f64() * 1e6 / copies as f64);
            }
            let q = |t: &mut Vec<f64>| {
                t.sort_by(f64::total_cmp);
                (t[0], t[t.len() / 4], t[t.len() / 2])
            };
            let (a_, b_, q_) = (q(&mut ta), q(&mut tb), q(&mut tq));
            let gb = |p: usize, us: f64| p as f64 / us / 1e3;
            println!(
                "{name:20} ungrouped min {:8.1} med {:8.1} ({:5.1} GB/s) | dynamic min {:8.1} med {:8.1} ({:5.1} GB/s) | ratio min {:.2} quart {:.2} med {:.2} | quantize {:.1}",
                a_.0,
                a_.2,
                gb(a[0].bytes(), a_.0),
                b_.0,
                b_.2,
                gb(b[0].bytes(), b_.0),
                b_.0 / a_.0,
                b_.1 / a_.1,
                b_.2 / a_.2,
                q_.0
            );
        }
    }
}
