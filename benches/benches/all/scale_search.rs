//! The search for scales. `cargo bench -- search_scales`

use burn::tensor::{Tensor, TensorData};
use criterion::Criterion;
use dr_bench::{LAYER, Work, device, weights};
use dr_kernels::reference::{CANDIDATES, candidate};
use dr_kernels::search_scales;
use dr_precision::{BitWidth, Granularity};

const WIDTHS: [BitWidth; 4] = [BitWidth::B8, BitWidth::B6, BitWidth::B4, BitWidth::B2];

/// The sums that the search needs, of every candidate: `<w, q>` and `<q, q>` for every row and width.
fn moments(w: &Tensor<2>) -> Vec<(Tensor<2>, Tensor<2>)> {
    let rms = w.clone().square().mean_dim(1).sqrt();
    let of_candidate = |k: u32| {
        let scale = rms.clone().mul_scalar(candidate(k, 1.0, WIDTHS[0]));
        let codes = w.clone().div(scale).round().clamp(-128.0, 127.0);
        WIDTHS.map(|bits| {
            let high = f64::from(bits.signed_max());
            let step = 1.0 / f64::from(1 << (WIDTHS[0].bits() - bits.bits()));
            let codes = codes.clone().mul_scalar(step).round().clamp_max(high);
            (w.clone().mul(codes.clone()).sum_dim(1), codes.square().sum_dim(1))
        })
    };
    (0..CANDIDATES).flat_map(of_candidate).collect()
}

pub fn search(criterion: &mut Criterion) {
    let device = device();
    let shape = LAYER;
    let w = Tensor::from_data(TensorData::new(weights(shape[0] * shape[1]), shape), &device);
    let mut work = Work::elementwise(criterion, "search_scales/w8,6,4,2", shape, shape[0] * shape[1] * 4);
    work.on_device("dr-kernels", &device, || {
        search_scales(w.clone(), &WIDTHS, Granularity::Channel).unwrap()
    });
    work.on_device("tensor operations, the sums only", &device, || moments(&w));
}
