//! Everything against the reference.

use super::*;
use crate::integer::{Activation, CodeQuantizer, IntConv2dShape, WeightLayout, padded_channels};
use crate::{KernelError, reference};
use dr_precision::{BitWidth, Granularity, Signedness, semantics};
use proptest::prelude::*;
use std::num::NonZeroUsize;

/// Numbers without an order.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn codes(&mut self, len: usize, low: i32, high: i32) -> Vec<i32> {
        (0..len).map(|_| low + (self.next() % (high - low + 1) as u64) as i32).collect()
    }

    fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.next() as f32 / (1u64 << 30) as f32 - 1.0).collect()
    }
}

fn bit_width() -> impl Strategy<Value = BitWidth> {
    prop::sample::select(BitWidth::ALL.to_vec())
}

#[derive(Clone, Debug)]
struct Case {
    dims: [usize; 4],
    shape: Vec<usize>,
    groups: usize,
    stored: BitWidth,
    granularity: Granularity,
    options: Conv2dOptions,
}

prop_compose! {
    fn case()(
        batch in 0usize..4, input in [1usize..12, 1usize..12], kernel in [1usize..4, 1usize..4],
        stride in [1usize..4, 1usize..4], padding in [0usize..3, 0usize..3], dilation in [1usize..3, 1usize..3],
        groups in 1usize..4, inputs in 1usize..40, outputs in 1usize..40, stored in bit_width(),
        run in prop::option::of(1usize..80), kind in 0..4,
    ) -> Case {
        let (kernel, input, groups, inputs, outputs) = match kind {
            0 => ([1, 1], [1, 1], 1, inputs * 5, outputs),
            1 => (kernel, input, outputs + 1, 1, outputs + 1),
            _ => (kernel, input, groups, inputs / 4 + 1, outputs * groups),
        };
        // A depthwise convolution has a scale for each output.
        let depthwise = groups > 1 && inputs == 1 && outputs == groups;
        let run = if depthwise { None } else { run };
        Case {
            dims: [batch, input[0], input[1], inputs * groups],
            shape: vec![outputs, inputs, kernel[0], kernel[1]],
            groups,
            stored,
            granularity: run.and_then(NonZeroUsize::new).map_or(Granularity::Channel, Granularity::Group),
            options: Conv2dOptions { stride, padding, dilation },
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Preparing, switching, zero points, epilogues, values and codes: bit by bit.
    #[test]
    fn products_are_those_of_the_reference(
        case in case(), active in bit_width(), activations in bit_width(), zero in prop::bool::ANY,
        activation in prop::sample::select(&Activation::ALL[..]), with_last: bool, seed: u64,
    ) {
        let Case { dims, shape, groups, stored, granularity, options } = case;
        let active = active.min(stored);
        let mut numbers = Numbers(seed);
        let codes = numbers.codes(shape.iter().product(), stored.signed_min(), stored.signed_max());
        let bytes: Vec<i8> = codes.iter().map(|&code| code as i8).collect();
        let weight = StoredWeight::from_codes(&bytes, &shape, groups, stored, granularity).unwrap();
        let layout = WeightLayout::new(&shape, groups, active, granularity).unwrap();
        let scale_groups = layout.scale_groups();
        let (outputs, taps) = (shape[0], shape[2] * shape[3]);
        let scales = numbers.floats(outputs * scale_groups);
        let weight = weight.at(active, &scales).unwrap();
        let codes: Vec<i32> = codes.iter().map(|&code| semantics::switch(code, stored, active)).collect();
        prop_assert_eq!(&weight.codes(), &codes);
        prop_assert_eq!(&weight.scales(), &scales);
        let words = reference::pack(&codes, active);
        let packed = StoredWeight::from_packed(&words, &shape, groups, active, granularity).unwrap();
        let packed = packed.at(active, &scales).unwrap();
        prop_assert_eq!(packed.words(), &reference::prepare_panels(&codes, &layout)[..]);
        prop_assert_eq!(packed.words(), weight.words());
        prop_assert_eq!(weight.layout().cols(), shape[1] * taps);

        let int = IntConv2dShape::new(dims[0], [dims[1], dims[2]], options, layout).unwrap();
        let input = CodeQuantizer { bits: activations, scale: 0.013, zero_point: if zero { -0.4 } else { 0.0 } };
        let (gain, shift) = (numbers.floats(outputs), numbers.floats(outputs));
        let mut product = Product::new(weight, options, input, &gain, &shift, activation).unwrap();
        let last = [numbers.floats(outputs), numbers.floats(outputs)];
        if with_last {
            let [gain, shift] = last.clone();
            product = product.with_last(gain, shift).unwrap();
        }
        let out_dims = product.output(dims).unwrap();
        let (len, out_len) = (dims.iter().product(), out_dims.iter().product());
        prop_assert_eq!(int.results(), out_len);

        let x = numbers.floats(len);
        let mut x_codes = vec![0; code_len(dims)];
        for last in [false, true] {
            product.quantize(&x, dims, last, &mut x_codes).unwrap();
            let expected = reference::quantize_codes(&x, [dims[3], dims[1] * dims[2]], last, input);
            prop_assert_eq!(&x_codes, &expected);
        }
        let gained: Vec<f32> = scales.iter().enumerate().map(|(i, scale)| scale * gain[i / scale_groups]).collect();
        let multiplier: Vec<f32> = (0..gained.len())
            .map(|i| input.scale * gained[i % outputs * scale_groups + i / outputs])
            .collect();
        let addend: Vec<f32> = match zero {
            false => shift.clone(),
            true => {
                let zero = reference::zero_point_addends(&codes, &gained, input.zero_point, &int);
                zero.iter().zip(shift.iter().cycle()).map(|(zero, shift)| zero + shift).collect()
            }
        };
        let residual = numbers.floats(out_len);
        let sums = reference::int_conv2d(&x_codes, &codes, &int);
        let to = CodeQuantizer { bits: activations, scale: 0.7, zero_point: if seed.is_multiple_of(2) { 0.0 } else { -0.2 } };
        for residual in [None, Some(&residual[..])] {
            let mut expected = if out_len == 0 { vec![] } else {
                reference::epilogue(&sums, &int, &multiplier, &addend, residual, activation)
            };
            if with_last {
                let [gain, shift] = &last;
                expected.iter_mut().enumerate().for_each(|(i, y)| *y = gain[i % outputs] * *y + shift[i % outputs]);
            }
            let codes = reference::quantize_codes(&expected, [outputs, int.positions()], true, to);
            for (with_values, with_codes) in [(true, false), (false, true), (true, true)] {
                let (mut values, mut out) = (vec![f32::NAN; out_len], vec![0; code_len(out_dims)]);
                let results = Results {
                    values: with_values.then_some(&mut values[..]),
                    codes: with_codes.then_some((&mut out[..], to)),
                };
                product.run(&x_codes, dims, residual, results).unwrap();
                prop_assert!(!with_values || values == expected, "{values:?} {expected:?}");
                prop_assert!(!with_codes || out_len == 0 || out == codes);
            }
        }
    }

    /// Weights with offsets, of numbers that floats hold exactly: the same as in integers, whatever stands in padding.
    #[test]
    fn offsets_are_exact(
        case in case(), active in bit_width(), activations in bit_width(), zero in -3i64..4, with_residual: bool,
        activation in prop::sample::select(&Activation::ALL[..]), seed: u64,
    ) {
        let Case { dims: [batch, rows, columns, channels], shape, groups, stored, options, .. } = case;
        let dims = [batch, rows, columns, channels];
        let active = active.min(stored);
        let mut numbers = Numbers(seed);
        let codes = numbers.codes(shape.iter().product(), stored.signed_min(), stored.signed_max());
        let bytes: Vec<i8> = codes.iter().map(|&code| code as i8).collect();
        let [outputs, inputs, taps] = [shape[0], shape[1], shape[2] * shape[3]];
        let floats = |of: &[i32], unit: f32| of.iter().map(|&of| of as f32 * unit).collect::<Vec<_>>();
        let [scales, offsets, shift] = [(1, 2), (-20, 20), (-99, 99)].map(|(low, high)| numbers.codes(outputs, low, high));
        let weight = StoredWeight::from_codes(&bytes, &shape, groups, stored, Granularity::Channel).unwrap();
        let weight = weight.at(active, &floats(&scales, 1.0)).unwrap().with_offsets(&floats(&offsets, 1.0)).unwrap();
        let input = CodeQuantizer { bits: activations, scale: 0.25, zero_point: zero as f32 / 4.0 };
        let product =
            Product::new(weight, options, input, &vec![1.0; outputs], &floats(&shift, 0.25), activation).unwrap();
        let x = numbers.codes(code_len(dims), 0, activations.unsigned_max());
        let result @ [_, out_rows, out_columns, _] = product.output(dims).unwrap();
        let residual = floats(&numbers.codes(result.iter().product(), -99, 99), 0.25);
        let residual = with_residual.then_some(&residual[..]);

        let layout = WeightLayout::new(&shape, groups, active, Granularity::Channel).unwrap();
        let int = IntConv2dShape::new(batch, [rows, columns], options, layout).unwrap();
        let mut expected = vec![];
        for at in 0..batch * out_rows * out_columns {
            let (image, position) = (at / int.positions(), at % int.positions());
            for output in 0..outputs {
                let mut sum = i64::from(shift[output]);
                for tap in 0..taps {
                    let Some([row, column]) = int.tapped([position / out_columns, position % out_columns], tap) else { continue };
                    let pixel = ((image * rows + row) * columns + column) * padded_channels(channels);
                    for channel in 0..inputs {
                        let code = semantics::switch(codes[(output * inputs + channel) * taps + tap], stored, active);
                        let value = i64::from(code * scales[output] + offsets[output]);
                        let channel = output / (outputs / groups) * inputs + channel;
                        sum += (i64::from(x[pixel + channel]) + zero) * value;
                    }
                }
                let value = sum as f32 / 4.0 + residual.map_or(0.0, |residual| residual[expected.len()]);
                expected.push(activation.apply(value));
            }
        }
        let mut out = vec![f32::NAN; expected.len()];
        let x: Vec<u8> = x.iter().map(|&code| code as u8).collect();
        product.run(&x, dims, residual, Results { values: Some(&mut out), codes: None }).unwrap();
        prop_assert_eq!(out, expected);
    }

    #[test]
    fn weight_only_is_close_to_the_reference(
        rows in 0usize..9, inputs in 0usize..150, outputs in 0usize..40, bits in bit_width(),
        run in prop::option::of(1usize..80), with_bias: bool, seed: u64,
    ) {
        let mut numbers = Numbers(seed);
        let granularity = run.and_then(NonZeroUsize::new).map_or(Granularity::Channel, Granularity::Group);
        let codes = numbers.codes(inputs * outputs, bits.signed_min(), bits.signed_max());
        let words = reference::pack(&codes, bits);
        let stored = StoredWeight::from_packed(&words, &[outputs, inputs], 1, bits, granularity).unwrap();
        prop_assert_eq!(reference::unpack(&words, codes.len(), bits, Signedness::Signed), codes.clone());
        let groups = stored.layout().scale_groups();
        let scales = numbers.floats(outputs * groups);
        let (x, bias) = (numbers.floats(rows * inputs), numbers.floats(outputs));
        let by_group: Vec<f32> = (0..scales.len()).map(|i| scales[i % outputs * groups + i / outputs]).collect();
        let expected = reference::weight_only(&x, &codes, &by_group, rows, stored.layout());
        let product = WeightOnly::new(stored.at(bits, &scales).unwrap(), with_bias.then_some(&bias)).unwrap();
        let mut out = vec![f32::NAN; rows * outputs];
        product.run(&x, rows, &mut out).unwrap();
        let largest = inputs as f32 * bits.unsigned_max() as f32;
        for (i, (out, expected)) in out.iter().zip(&expected).enumerate() {
            let expected = expected + if with_bias { bias[i % outputs] } else { 0.0 };
            prop_assert!((out - expected).abs() <= 1e-6 * largest.max(2.0), "{out}, not {expected}");
        }
    }
}

/// More products than one loop takes, of one input.
#[test]
fn products_together_are_those_alone() {
    let mut numbers = Numbers(5);
    let dims = [3, 1, 1, 70];
    let input = CodeQuantizer { bits: BitWidth::B8, scale: 0.02, zero_point: -1.0 };
    let products: Vec<Product> = (1..8)
        .map(|i| {
            let outputs = 13 * i;
            let bytes: Vec<i8> = numbers.codes(outputs * 70, -8, 7).iter().map(|&code| code as i8).collect();
            let stored =
                StoredWeight::from_codes(&bytes, &[outputs, 70], 1, BitWidth::B4, Granularity::Channel)
                    .unwrap();
            let weight = stored.at(BitWidth::B4, &numbers.floats(outputs)).unwrap();
            let (gain, shift) = (vec![1.0; outputs], numbers.floats(outputs));
            Product::new(weight, Conv2dOptions::default(), input, &gain, &shift, Activation::None).unwrap()
        })
        .collect();
    let mut codes = vec![0; code_len(dims)];
    products[0].quantize(&numbers.floats(210), dims, true, &mut codes).unwrap();
    let mut together: Vec<Vec<f32>> = products.iter().map(|p| vec![0.0; 3 * p.shift().len()]).collect();
    let mut jobs: Vec<Job> = products
        .iter()
        .zip(&mut together)
        .map(|(product, values)| {
            let results = Results { values: Some(values), codes: None };
            Job { product, codes: &codes, dims, residual: None, results }
        })
        .collect();
    run_together(&mut jobs).unwrap();
    run_together(&mut []).unwrap();
    for (product, together) in products.iter().zip(&together) {
        let mut alone = vec![0.0; together.len()];
        product.run(&codes, dims, None, Results { values: Some(&mut alone), codes: None }).unwrap();
        assert_eq!(alone, *together);
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let stored = |codes: &[i8], shape: &[usize], groups, bits| {
        StoredWeight::from_codes(codes, shape, groups, bits, Granularity::Channel)
    };
    assert!(matches!(stored(&[0; 10], &[5, 2], 2, BitWidth::B8), Err(KernelError::WeightShape { .. })));
    assert!(matches!(stored(&[0; 9], &[5, 2], 1, BitWidth::B8), Err(KernelError::Size { .. })));
    assert!(matches!(
        stored(&[0, 1, -9, 0], &[2, 2], 1, BitWidth::B4),
        Err(KernelError::CodeRange { found: -9, low: -8, high: 7, bits: 4 })
    ));
    let weight = stored(&[1; 2 * 3 * 9], &[2, 3, 3, 3], 1, BitWidth::B4).unwrap();
    assert!(matches!(weight.at(BitWidth::B8, &[1.0; 2]), Err(KernelError::Precision(_))));
    assert!(matches!(weight.at(BitWidth::B2, &[1.0; 3]), Err(KernelError::ScaleCount { .. })));
    let weight = weight.at(BitWidth::B4, &[1.0; 2]).unwrap();
    let input = CodeQuantizer { bits: BitWidth::B8, scale: 1.0, zero_point: 0.0 };
    let product = |options, gain: &[f32]| {
        Product::new(weight.clone(), options, input, gain, &[0.0; 2], Activation::None)
    };
    let still = Conv2dOptions { stride: [0, 1], ..Conv2dOptions::default() };
    assert!(matches!(product(still, &[1.0; 2]), Err(KernelError::Zero("stride"))));
    assert!(matches!(product(Conv2dOptions::default(), &[1.0]), Err(KernelError::Size { .. })));
    let far = Conv2dOptions { padding: [usize::MAX / 2, 1], ..Conv2dOptions::default() };
    assert!(product(far, &[1.0; 2]).is_err());
    let product = product(Conv2dOptions::default(), &[1.0; 2]).unwrap();
    assert_eq!(product.output([2, 2, 9, 3]).unwrap(), [2, 0, 7, 2]);
    assert!(product.output([2, 5, 5, 4]).is_err());
    assert!(matches!(product.output([usize::MAX, 3, 3, 3]), Err(KernelError::TooLarge { .. })));
    let dims = [1, 3, 3, 3];
    let (codes, mut two) = (vec![0; code_len(dims)], [0.0; 2]);
    let run = |codes: &[u8], residual: Option<&[f32]>, values: &mut [f32]| {
        product.run(codes, dims, residual, Results { values: Some(values), codes: None })
    };
    assert!(run(&codes, None, &mut two).is_ok());
    assert!(run(&codes[1..], None, &mut two).is_err());
    assert!(run(&codes, Some(&[0.0; 3]), &mut two).is_err());
    assert!(run(&codes, None, &mut two[..1]).is_err());
    assert!(WeightOnly::new(weight.clone(), None).is_err());
    assert!(weight.with_offsets(&[0.0; 3]).is_err());
    let matrix = |run| {
        let group = Granularity::Group(NonZeroUsize::new(run).unwrap());
        StoredWeight::from_codes(&[1; 8], &[2, 4], 1, BitWidth::B4, group).unwrap()
    };
    assert!(matrix(2).at(BitWidth::B4, &[1.0; 4]).unwrap().with_offsets(&[0.0; 2]).is_err());
    let with_offsets = matrix(4).at(BitWidth::B4, &[1.0; 2]).unwrap().with_offsets(&[0.0; 2]).unwrap();
    assert!(WeightOnly::new(with_offsets, None).is_err());
    assert_eq!(code_len([usize::MAX, 2, 1, 1]), usize::MAX);
    assert_eq!(code_len([1, 1, 1, 5]), padded_channels(5));
}
