//! Everything against the reference, with every instruction set of this machine.

use super::*;
use crate::reference::{self, Grouped};
use dr_precision::semantics;
use proptest::prelude::*;

/// Numbers without an order.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn codes(&mut self, len: usize, bits: BitWidth) -> Vec<i8> {
        (0..len).map(|_| (bits.signed_min() + (self.next() % (1 << bits.bits())) as i32) as i8).collect()
    }

    fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.next() as f32 / (1u64 << 30) as f32 - 1.0).collect()
    }
}

fn kernels() -> impl Iterator<Item = DotKernel> {
    DotKernel::ALL.into_iter().filter(|kernel| kernel.is_available())
}

fn pairs() -> impl Iterator<Item = (BitWidth, BitWidth)> {
    let below = |stored| BitWidth::ALL.into_iter().map(move |bits| (stored, bits));
    BitWidth::ALL.into_iter().flat_map(below).filter(|(stored, bits)| bits <= stored)
}

fn stored(codes: &[i8], shape: [usize; 2], bits: BitWidth) -> StoredWeight {
    StoredWeight::from_codes(codes, &shape, 1, bits, GroupedWeight::GRANULARITY).unwrap()
}

fn halves(values: &[f32]) -> Vec<f32> {
    values.iter().map(|&value| f16::from_f32(value).to_f32()).collect()
}

/// One product, whole: codes, scales, rows and results.
fn check(stored_bits: BitWidth, bits: BitWidth, [rows, inputs, outputs]: [usize; 3], seed: u64) {
    let numbers = &mut Numbers(seed);
    let groups = inputs.div_ceil(GroupedWeight::GROUP);
    let codes = numbers.codes(outputs * inputs, stored_bits);
    let (scales, offsets) = (numbers.floats(outputs * groups), numbers.floats(outputs * groups));
    let (bias, x) = (numbers.floats(outputs), numbers.floats(rows * inputs));
    let weight =
        stored(&codes, [outputs, inputs], stored_bits).with_offsets(bits, &scales, &offsets).unwrap();
    let codes: Vec<i32> =
        codes.iter().map(|&code| semantics::switch(code.into(), stored_bits, bits)).collect();
    assert_eq!(weight.codes(), codes);
    let (scales, offsets) = (halves(&scales), halves(&offsets));
    assert_eq!((weight.scales(), weight.offsets()), (scales.clone(), offsets.clone()));

    let mut of_x = Rows::new();
    of_x.quantize(&x, rows, inputs).unwrap();
    let (x_codes, x_scales) = reference::quantize_rows(&x, inputs);
    assert_eq!(of_x.codes().into_iter().map(i32::from).collect::<Vec<_>>(), x_codes);
    assert_eq!(of_x.scales(), x_scales);

    let of_rows = Grouped { codes: &x_codes, scales: &x_scales };
    let of_weight = Grouped { codes: &codes, scales: &scales };
    let expected = reference::dynamic_product(of_rows, of_weight, &offsets, &bias, [rows, inputs]);
    // What could have been added, at most.
    let magnitude = (inputs.max(1) as f32) * (1.0 + (1 << bits.bits()) as f32);
    let product = DynamicProduct::new(weight, Some(&bias)).unwrap();
    for kernel in kernels() {
        let mut out = vec![f32::NAN; rows * outputs];
        DynamicProduct::run_on(kernel, &of_x, &mut [(&product, &mut out[..])]).unwrap();
        for (i, (found, expected)) in out.iter().zip(&expected).enumerate() {
            let near = (found - expected).abs() <= 2e-7 * magnitude;
            assert!(
                near,
                "{kernel}, {stored_bits} -> {bits}, {rows} x {inputs} x {outputs}, {i}: {found}, {expected}"
            );
        }
    }
}

#[test]
fn every_pair_of_widths() {
    for (stored, bits) in pairs() {
        for [rows, inputs, outputs] in [[1, 100, 70], [3, 64, 33], [7, 37, 16], [13, 610, 50]] {
            check(stored, bits, [rows, inputs, outputs], 5);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn products_are_those_of_the_reference(
        pair in prop::sample::select(pairs().collect::<Vec<_>>()), rows in 0usize..41, inputs in 0usize..300,
        outputs in 0usize..120, seed: u64,
    ) {
        check(pair.0, pair.1, [rows, inputs, outputs], seed);
    }
}

/// Panels that are read in streams, in several tasks.
#[test]
fn few_rows_of_many_outputs() {
    for rows in [1, 2, 4] {
        check(BitWidth::B8, BitWidth::B4, [rows, 700, 1500], 3);
    }
    check(BitWidth::B8, BitWidth::B8, [530, 70, 40], 3);
}

/// With scales of one, the largest and the smallest codes, results are the sums themselves.
#[test]
fn sums_are_exact() {
    for bits in BitWidth::ALL {
        for rows in [1, 3, 21] {
            for code in [bits.signed_min(), bits.signed_max()] {
                let (inputs, outputs) = (300, 33);
                let weight = stored(&vec![code as i8; inputs * outputs], [outputs, inputs], bits);
                let ones = vec![1.0; outputs * inputs.div_ceil(GroupedWeight::GROUP)];
                let weight = weight.with_offsets(bits, &ones, &vec![0.0; ones.len()]).unwrap();
                let product = DynamicProduct::new(weight, None).unwrap();
                for x in [127, -127] {
                    let mut of_x = Rows::new();
                    of_x.quantize(&vec![x as f32; rows * inputs], rows, inputs).unwrap();
                    for kernel in kernels() {
                        let mut out = vec![0.0; rows * outputs];
                        DynamicProduct::run_on(kernel, &of_x, &mut [(&product, &mut out[..])]).unwrap();
                        let expected = (300 * x * code) as f32;
                        let equal = out.iter().all(|&sum| sum == expected);
                        assert!(equal, "{kernel}, {rows} rows, w{bits}, {code}: {}, {expected}", out[0]);
                    }
                }
            }
        }
    }
}

#[test]
fn ties_go_to_even_codes() {
    let mut rows = Rows::new();
    let x = [127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 3.5, 0.0, -127.0];
    rows.quantize(&x, 1, x.len()).unwrap();
    assert_eq!(rows.codes(), [127, 0, 2, 2, 0, -2, -2, 4, 0, -127]);
    assert_eq!(rows.scales(), [1.0]);
}

#[test]
fn numbers_without_a_scale() {
    let mut rows = Rows::new();
    let x = [[0.0; 32], [f32::NAN; 32], [f32::INFINITY; 32], [1e-45; 32], [f32::MAX; 32]].concat();
    rows.quantize(&x, 1, x.len()).unwrap();
    assert_eq!(rows.codes(), [[0; 32], [0; 32], [0; 32], [0; 32], [127; 32]].concat());
    assert_eq!(rows.scales(), [0.0, 0.0, f32::INFINITY, 0.0, f32::MAX / 127.0]);
    // Memory is used again, for fewer.
    rows.quantize(&[1.0, 127.0], 1, 2).unwrap();
    assert_eq!((rows.codes(), rows.scales()), (vec![1, 127], vec![1.0]));
    assert_eq!((rows.rows(), rows.inputs()), (1, 2));
}

#[test]
fn products_together_are_those_alone() {
    let numbers = &mut Numbers(8);
    let mut rows = Rows::new();
    for count in [1, 9] {
        rows.quantize(&numbers.floats(count * 130), count, 130).unwrap();
        let products = [(333, BitWidth::B4), (48, BitWidth::B2), (0, BitWidth::B3), (100, BitWidth::B8)].map(
            |(outputs, bits)| {
                let codes = numbers.codes(outputs * 130, BitWidth::B8);
                let (scales, offsets) = (numbers.floats(outputs * 5), numbers.floats(outputs * 5));
                let weight = stored(&codes, [outputs, 130], BitWidth::B8);
                let weight = weight.with_offsets(bits, &scales, &offsets).unwrap();
                DynamicProduct::new(weight, Some(&numbers.floats(outputs))).unwrap()
            },
        );
        let room = || products.each_ref().map(|of| vec![f32::NAN; count * of.weight().layout().outputs()]);
        let (mut alone, mut together) = (room(), room());
        for (product, out) in products.iter().zip(&mut alone) {
            product.run(&rows, out).unwrap();
        }
        let jobs = products.iter().zip(&mut together).map(|(product, out)| (product, &mut out[..]));
        DynamicProduct::run_together(&rows, &mut jobs.collect::<Vec<_>>()).unwrap();
        assert_eq!(together, alone);
    }
}

#[test]
fn wrong_sizes_are_refused() {
    let weight = stored(&[1; 2 * 40], [2, 40], BitWidth::B4);
    let at = |bits, scales: &[f32], offsets: &[f32]| weight.with_offsets(bits, scales, offsets).map(|_| ());
    let four = BitWidth::B4;
    assert!(matches!(at(BitWidth::B8, &[1.0; 4], &[1.0; 4]), Err(KernelError::Precision(_))));
    assert!(matches!(
        at(four, &[1.0; 3], &[1.0; 4]),
        Err(KernelError::ScaleCount { what: "scale", found: 3, .. })
    ));
    assert!(matches!(
        at(four, &[1.0; 4], &[1.0; 5]),
        Err(KernelError::ScaleCount { what: "offset", found: 5, .. })
    ));
    for bad in [1e6, f32::NAN, f32::NEG_INFINITY] {
        assert!(matches!(
            at(four, &[1.0, bad, 1.0, 1.0], &[1.0; 4]),
            Err(KernelError::Half { what: "scale", .. })
        ));
    }
    for (shape, granularity) in
        [(vec![2, 40], Granularity::Channel), (vec![2, 10, 2, 2], GroupedWeight::GRANULARITY)]
    {
        let weight = StoredWeight::from_codes(&[1; 80], &shape, 1, four, granularity).unwrap();
        assert!(matches!(weight.with_offsets(four, &[1.0; 4], &[1.0; 4]), Err(KernelError::Size { .. })));
    }
    let weight = weight.with_offsets(four, &[1.0; 4], &[1.0; 4]).unwrap();
    assert!(DynamicProduct::new(weight.clone(), Some(&[1.0])).is_err());
    let product = DynamicProduct::new(weight, None).unwrap();
    let mut rows = Rows::new();
    assert!(rows.quantize(&[1.0; 40], 1, 41).is_err());
    assert!(rows.quantize(&[], 0, usize::MAX).is_err());
    rows.quantize(&[1.0; 41], 1, 41).unwrap();
    assert!(product.run(&rows, &mut [0.0; 2]).is_err());
    rows.quantize(&[1.0; 40], 1, 40).unwrap();
    assert!(product.run(&rows, &mut [0.0; 3]).is_err());
    assert!(product.run(&rows, &mut [0.0; 2]).is_ok());
}
