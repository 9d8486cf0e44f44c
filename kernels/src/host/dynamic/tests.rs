//! Everything against the reference, with every instruction set of this machine.

use super::*;
use crate::integer::ByteFactors;
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

fn stored(codes: &[i8], shape: [usize; 2], bits: BitWidth, group: usize) -> GroupedCodes<'_> {
    let granularity = Granularity::Group(group.try_into().unwrap());
    GroupedCodes::from_codes(codes, shape, bits, granularity).unwrap()
}

/// Scales and offsets are near those that were asked for: `found` and `asked` are `[outputs, groups]`.
fn check_rounding(found: &[f32], asked: &[f32], groups: usize, error: f32) {
    for (found, asked) in found.chunks(groups.max(1)).zip(asked.chunks(groups.max(1))) {
        let largest = asked.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        for (found, asked) in found.iter().zip(asked) {
            assert!((found - asked).abs() <= error * largest, "{found}, {asked}");
        }
    }
}

/// One product, whole: codes, scales, rows and results.
fn check(widths: [BitWidth; 2], [rows, inputs, outputs]: [usize; 3], group: usize, seed: u64) {
    let [stored_bits, bits] = widths;
    let numbers = &mut Numbers(seed);
    let groups = inputs.div_ceil(group).max(1);
    let codes = numbers.codes(outputs * inputs, stored_bits);
    let scales: Vec<f32> = numbers.floats(outputs * groups).iter().map(|x| x.abs()).collect();
    let (offsets, bias) = (numbers.floats(outputs * groups), numbers.floats(outputs));
    let x = numbers.floats(rows * inputs);
    let weight = stored(&codes, [outputs, inputs], stored_bits, group);
    let weight = weight.with_offsets(bits, &scales, &offsets).unwrap();
    let codes: Vec<i32> =
        codes.iter().map(|&code| semantics::switch(code.into(), stored_bits, bits)).collect();
    assert_eq!(weight.codes(), codes);
    if inputs > 0 {
        let error = if bits.bits() <= 4 { 1.0 / 253.0 } else { 1.0 / 2047.0 };
        check_rounding(&weight.scales(), &scales, groups, error);
        check_rounding(&weight.offsets(), &offsets, groups, error);
    }
    let (scales, offsets) = (weight.scales(), weight.offsets());
    let zeros = vec![0; outputs * inputs];
    let again = stored(&zeros, [outputs, inputs], bits, group);
    let again = again.with_offsets(bits, &scales, &offsets).unwrap();
    assert_eq!((again.scales(), again.offsets()), (scales.clone(), offsets.clone()));

    let mut of_x = Rows::new();
    of_x.quantize(&x, rows, inputs).unwrap();
    let (x_codes, x_scales) = reference::quantize_rows(&x, inputs);
    assert_eq!(of_x.codes().into_iter().map(i32::from).collect::<Vec<_>>(), x_codes);
    assert_eq!(of_x.scales(), x_scales);

    let of_rows = Grouped { codes: &x_codes, scales: &x_scales, group: 32 };
    let of_weight = Grouped { codes: &codes, scales: &scales, group };
    let expected = reference::dynamic_product(of_rows, of_weight, &offsets, &bias, [rows, inputs]);
    // The sum of all magnitudes, with unsigned codes: what rounding errors are relative to.
    let low = -bits.signed_min();
    let unsigned: Vec<i32> = codes.iter().map(|code| code + low).collect();
    let positive: Vec<i32> = x_codes.iter().map(|code| code.abs()).collect();
    let magnitude = reference::dynamic_product(
        Grouped { codes: &positive, ..of_rows },
        Grouped { codes: &unsigned, ..of_weight },
        &offsets
            .iter()
            .zip(&scales)
            .map(|(offset, scale)| offset.abs() + low as f32 * scale)
            .collect::<Vec<_>>(),
        &bias.iter().map(|x| x.abs()).collect::<Vec<_>>(),
        [rows, inputs],
    );
    // A rounding for each group, and some for its value.
    let roundings = (inputs.div_ceil(32) + 5) as f64 * f64::from(f32::EPSILON) / 2.0;
    let product = DynamicProduct::new(weight, Some(&bias)).unwrap();
    for kernel in kernels() {
        let mut out = vec![f32::NAN; rows * outputs];
        DynamicProduct::run_on(kernel, &of_x, &mut [(&product, &mut out[..])]).unwrap();
        for (i, (&found, expected)) in out.iter().zip(&expected).enumerate() {
            assert!(
                (f64::from(found) - expected).abs() <= roundings * magnitude[i],
                "{kernel}, {stored_bits} -> {bits}, {rows} x {inputs} x {outputs} in {group}, {i}: {found}, {expected}"
            );
        }
    }
}

#[test]
fn every_pair_of_widths() {
    for (stored, bits) in pairs() {
        for [rows, inputs, outputs] in [[1, 100, 70], [3, 64, 33], [7, 37, 16], [13, 610, 50]] {
            check([stored, bits], [rows, inputs, outputs], 32, 5);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn products_are_those_of_the_reference(
        pair in prop::sample::select(pairs().collect::<Vec<_>>()), rows in 0usize..41, inputs in 0usize..300,
        outputs in 0usize..120, units in prop::sample::select(vec![1usize, 2, 3, 100]), seed: u64,
    ) {
        check(pair.into(), [rows, inputs, outputs], 32 * units, seed);
    }
}

/// Panels that are read in streams, in several tasks; many rows; more blocks than are unpacked together.
#[test]
fn several_tasks() {
    for rows in [1, 2, 4] {
        check([BitWidth::B8, BitWidth::B4], [rows, 700, 1500], 32, 3);
    }
    check([BitWidth::B8, BitWidth::B8], [530, 70, 40], 32, 3);
    check([BitWidth::B8, BitWidth::B3], [9, 1700, 40], 64, 3);
}

/// A row's results do not depend on how many others there are.
#[test]
fn a_row_is_the_same_among_others() {
    let numbers = &mut Numbers(2);
    let (rows, inputs, outputs) = (23, 850, 70);
    let (codes, x) = (numbers.codes(outputs * inputs, BitWidth::B8), numbers.floats(rows * inputs));
    let scales: Vec<f32> = numbers.floats(outputs * 27).iter().map(|x| x.abs()).collect();
    let (offsets, bias) = (numbers.floats(outputs * 27), numbers.floats(outputs));
    for bits in BitWidth::ALL {
        let weight = stored(&codes, [outputs, inputs], BitWidth::B8, 32);
        let weight = weight.with_offsets(bits, &scales, &offsets).unwrap();
        let product = DynamicProduct::new(weight, Some(&bias)).unwrap();
        for kernel in kernels() {
            let run = |count: usize| {
                let (mut of_x, mut out) = (Rows::new(), vec![0.0; count * outputs]);
                of_x.quantize(&x[..count * inputs], count, inputs).unwrap();
                DynamicProduct::run_on(kernel, &of_x, &mut [(&product, &mut out[..])]).unwrap();
                out
            };
            let all = run(rows);
            for count in [1, 3, 7] {
                assert_eq!(run(count), all[..count * outputs], "{kernel}, w{bits}, {count}");
            }
        }
    }
}

/// Of the largest and the smallest codes; with scales that are powers of two, results of a group are the sums.
#[test]
fn sums_are_exact() {
    for bits in BitWidth::ALL {
        for rows in [1, 3, 21] {
            for code in [bits.signed_min(), bits.signed_max()] {
                let (inputs, outputs) = (64, 33);
                let codes = vec![code as i8; inputs * outputs];
                let weight = stored(&codes, [outputs, inputs], bits, 32);
                // Squares of the bytes 255 and 128.
                let scales = [[65025.0, 16384.0]; 33];
                let weight = weight.with_offsets(bits, scales.as_flattened(), &[0.0; 66]).unwrap();
                assert!(weight.scales().chunks(2).all(|scales| scales[1] == 16384.0));
                let product = DynamicProduct::new(weight, None).unwrap();
                for x in [127, -127] {
                    let mut of_x = Rows::new();
                    let row = [[0.0; 32], [x as f32; 32]].concat();
                    of_x.quantize(&row.repeat(rows), rows, inputs).unwrap();
                    for kernel in kernels() {
                        let mut out = vec![0.0; rows * outputs];
                        DynamicProduct::run_on(kernel, &of_x, &mut [(&product, &mut out[..])]).unwrap();
                        let expected = 16384.0 * (32 * x * code) as f32;
                        let equal = out.iter().all(|&sum| sum == expected);
                        assert!(equal, "{kernel}, {rows} rows, w{bits}, {code}: {}, {expected}", out[0]);
                    }
                }
            }
        }
    }
}

/// Scales of zero, and outputs without any.
#[test]
fn nothing_is_exact() {
    for bits in BitWidth::ALL {
        let weight = stored(&[1; 3 * 64], [3, 64], bits, 32);
        // 255 * 255 is the square of a byte, and 2040 is a half.
        let largest = if bits <= ByteFactors::WIDEST { 65025.0 } else { 2040.0 };
        let scales = [0.0, 0.0, 0.0, largest, f32::MIN_POSITIVE, 0.0];
        let weight = weight.with_offsets(bits, &scales, &[0.0; 6]).unwrap();
        assert_eq!((weight.scales()[..4].to_vec(), weight.offsets()), (scales[..4].to_vec(), vec![0.0; 6]));
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
                let scales: Vec<f32> = numbers.floats(outputs * 5).iter().map(|x| x.abs()).collect();
                let offsets = numbers.floats(outputs * 5);
                let weight = stored(&codes, [outputs, 130], BitWidth::B8, 32);
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
    let weight = stored(&[1; 2 * 40], [2, 40], BitWidth::B4, 32);
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
    for bad in [f32::INFINITY, f32::NAN, f32::NEG_INFINITY, -1.0] {
        let (values, ones) = ([1.0, bad, 1.0, 1.0], [1.0; 4]);
        assert!(matches!(at(four, &values, &ones), Err(KernelError::GroupScale { what: "scale", .. })));
        let as_offset = at(four, &ones, &values);
        assert!(as_offset.is_ok() == bad.is_finite());
    }
    let groups = |inputs: usize| Granularity::Group(inputs.try_into().unwrap());
    for granularity in [Granularity::Tensor, Granularity::Channel, groups(16), groups(40), groups(48)] {
        let weight = GroupedCodes::from_codes(&[1; 80], [2, 40], four, granularity).unwrap();
        assert!(matches!(
            weight.with_offsets(four, &[1.0; 4], &[1.0; 4]),
            Err(KernelError::GroupSize { .. })
        ));
    }
    let few = GroupedCodes::from_codes(&[1; 79], [2, 40], four, groups(32)).unwrap();
    assert!(matches!(few.with_offsets(four, &[1.0; 4], &[1.0; 4]), Err(KernelError::Size { .. })));
    let wide = GroupedCodes::from_codes(&[9; 80], [2, 40], four, groups(32)).unwrap();
    assert!(matches!(
        wide.with_offsets(four, &[1.0; 4], &[1.0; 4]),
        Err(KernelError::CodeRange { found: 9, .. })
    ));
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
