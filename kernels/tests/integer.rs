//! The integer operations on a CPU against the reference: every instruction set, all pairs of widths, sizes that are not
//! multiples of anything.

use dr_kernels::cpu::Isa;
use dr_kernels::cpu::integer::{
    self, Addends, Codes, DotKernel, Epilogue, Job, Plan, Results, int_conv2d, int_conv2d_together,
    quantize_codes, switch_panels, unpack_panels,
};
use dr_kernels::integer::{
    Activation, CodeQuantizer, Conv2dOptions, IntConv2dShape, WeightLayout, padded_channels,
};
use dr_kernels::reference;
use dr_precision::{BitWidth, Granularity, semantics};
use proptest::prelude::*;
use std::num::NonZeroUsize;

/// Numbers from a seed, evenly spread over all 64 bits.
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
        (0..len).map(|_| (self.next() % 2001) as f32 / 1000.0 - 1.0).collect()
    }
}

fn kernels() -> impl Iterator<Item = DotKernel> {
    DotKernel::ALL.into_iter().filter(|kernel| kernel.is_available())
}

/// Weights of the layout's width, and codes of `activations` bits with zeros for channels of padding.
fn operands(shape: &IntConv2dShape, activations: BitWidth, numbers: &mut Numbers) -> (Vec<i32>, Vec<u8>) {
    let layout = shape.weight();
    let weights = numbers.codes(
        layout.outputs() * layout.cols(),
        layout.bits().signed_min(),
        layout.bits().signed_max(),
    );
    let (channels, padded) = (shape.channels(), padded_channels(shape.channels()));
    let mut codes = vec![0; shape.code_bytes()];
    for pixel in codes.chunks_exact_mut(padded.max(1)) {
        for (code, value) in pixel.iter_mut().zip(numbers.codes(channels, 0, activations.unsigned_max())) {
            *code = value as u8;
        }
    }
    (weights, codes)
}

/// Weights in panels.
fn prepare_panels(codes: &[i32], layout: &WeightLayout) -> Vec<u32> {
    let codes: Vec<i8> = codes.iter().map(|&code| code as i8).collect();
    integer::prepare(Codes::Bytes(&codes), layout).unwrap()
}

/// The values of a convolution.
fn values(
    kernel: DotKernel, codes: &[u8], panels: &[u32], shape: &IntConv2dShape, epilogue: &Epilogue,
    out: &mut [f32],
) {
    int_conv2d(kernel, codes, panels, shape, epilogue, Results { values: Some(out), codes: None });
}

/// Runs everything with scales of one and nothing to add: the results are the sums themselves, which floats hold exactly up
/// to 2^24.
fn check_sums(shape: &IntConv2dShape, activations: BitWidth, seed: u64) {
    let layout = shape.weight();
    let (weights, codes) = operands(shape, activations, &mut Numbers(seed));
    let groups = layout.scale_groups();
    let sums = reference::int_conv2d(&codes, &weights, shape);
    let multiplier = vec![1.0; groups * layout.outputs()];
    let addend = vec![0.0; layout.outputs()];
    let expected = reference::epilogue(&sums, shape, &multiplier, &addend, None, Activation::None);
    let addend = Addends::by_position(&addend, shape);
    let panels = reference::prepare_panels(&weights, layout);
    let epilogue = Epilogue {
        multiplier: &multiplier,
        offset: None,
        addend: &addend,
        residual: None,
        activation: Activation::None,
        last: None,
    };
    for kernel in kernels() {
        let mut out = vec![f32::NAN; shape.results()];
        values(kernel, &codes, &panels, shape, &epilogue, &mut out);
        assert_eq!(out, expected, "{kernel}, {shape:?}");
    }
}

fn gemm(m: usize, k: usize, n: usize, bits: BitWidth, granularity: Granularity) -> IntConv2dShape {
    IntConv2dShape::gemm(m, WeightLayout::new(&[n, k], 1, bits, granularity).unwrap()).unwrap()
}

#[test]
fn every_pair_of_widths() {
    for weights in BitWidth::ALL {
        for activations in BitWidth::ALL {
            for (m, k, n) in [(1, 37, 19), (2, 64, 50), (7, 100, 5), (33, 130, 67)] {
                check_sums(&gemm(m, k, n, weights, Granularity::Channel), activations, 7);
            }
        }
    }
}

/// Panels that are read in streams: whole tiles and not, in one task and in several, and with a scale for each group.
#[test]
fn one_row_of_many_outputs() {
    for bits in BitWidth::ALL {
        for (k, n) in [(37, 47), (64, 48), (130, 96), (5, 97), (70, 161), (33, 333), (700, 1500)] {
            check_sums(&gemm(1, k, n, bits, Granularity::Channel), BitWidth::B8, 3);
            check_sums(
                &gemm(1, k, n, bits, Granularity::Group(NonZeroUsize::new(24).unwrap())),
                BitWidth::B4,
                4,
            );
        }
    }
}

/// Rows and panels that take turns in the cache: more of both than it holds at once, whole tiles and not.
#[test]
fn many_rows_of_many_outputs() {
    for bits in [BitWidth::B3, BitWidth::B4, BitWidth::B8] {
        for (m, k, n) in [(331, 37, 131), (97, 64, 240), (1200, 16, 49)] {
            check_sums(&gemm(m, k, n, bits, Granularity::Channel), BitWidth::B8, 5);
            check_sums(
                &gemm(m, k, n, bits, Granularity::Group(NonZeroUsize::new(24).unwrap())),
                BitWidth::B6,
                6,
            );
        }
    }
}

/// More positions than a tile of channels by themselves has, in several images.
#[test]
fn depthwise_convolutions_of_many_positions() {
    for (channels, kernel, size) in [(20, 3, [9, 11]), (70, 5, [7, 30]), (33, 3, [40, 3])] {
        for bits in [BitWidth::B4, BitWidth::B8] {
            let layout =
                WeightLayout::new(&[channels, 1, kernel, kernel], channels, bits, Granularity::Channel)
                    .unwrap();
            for stride in [1, 2] {
                let options = Conv2dOptions {
                    stride: [stride; 2],
                    padding: [kernel / 2; 2],
                    ..Conv2dOptions::default()
                };
                check_sums(&IntConv2dShape::new(3, size, options, layout).unwrap(), BitWidth::B8, 8);
            }
        }
    }
}

/// Several products in one loop are the same as each alone, as values, as codes and as both.
#[test]
fn products_together() {
    let numbers = &mut Numbers(11);
    let to = CodeQuantizer { bits: BitWidth::B6, scale: 3.0, zero_point: -20.0 };
    let shapes = [
        (1, 130, 333, BitWidth::B4),
        (1, 130, 48, BitWidth::B2),
        (0, 8, 8, BitWidth::B8),
        (5, 64, 100, BitWidth::B8),
    ];
    let parts = shapes.map(|(m, k, n, bits)| {
        let shape = gemm(m, k, n, bits, Granularity::Channel);
        let (weights, codes) = operands(&shape, BitWidth::B8, numbers);
        let (multiplier, addend, residual) = (numbers.floats(n), numbers.floats(n), numbers.floats(m * n));
        let addend = Addends::by_position(&addend, &shape);
        (shape, codes, prepare_panels(&weights, shape.weight()), multiplier, addend, residual)
    });
    for kernel in kernels() {
        let epilogues = parts.each_ref().map(|(.., multiplier, addend, residual)| Epilogue {
            multiplier,
            offset: None,
            addend,
            residual: Some(residual),
            activation: Activation::Relu,
            last: None,
        });
        let room = |shape: &IntConv2dShape| {
            (
                vec![f32::NAN; shape.results()],
                vec![0; shape.batch() * padded_channels(shape.weight().outputs())],
            )
        };
        let mut alone = parts.each_ref().map(|(shape, ..)| room(shape));
        for (((shape, codes, panels, ..), epilogue), (values, out)) in
            parts.iter().zip(&epilogues).zip(&mut alone)
        {
            let results = Results { values: Some(values), codes: Some((out, to)) };
            int_conv2d(kernel, codes, panels, shape, epilogue, results);
            let expected: Vec<u8> = quantize_codes(values, [shape.weight().outputs(), 1], true, to);
            assert_eq!(*out, expected, "{kernel}");
        }
        let plans = parts.each_ref().map(|(shape, ..)| Plan::new(kernel, *shape));
        let mut together = parts.each_ref().map(|(shape, ..)| room(shape));
        let mut at = 0..;
        let jobs = together.each_mut().map(|(values, out)| {
            let at = at.next().unwrap();
            let (_, codes, panels, ..) = &parts[at];
            let results = match at {
                0 => Results { values: Some(values), codes: None },
                1 => Results { values: None, codes: Some((out, to)) },
                _ => Results { values: Some(values), codes: Some((out, to)) },
            };
            Job { plan: &plans[at], codes, weights: panels, epilogue: &epilogues[at], results }
        });
        int_conv2d_together(jobs);
        for (at, (found, expected)) in together.iter().zip(&alone).enumerate() {
            assert!(at == 1 || found.0 == expected.0, "{kernel}, values of {at}");
            assert!(at == 0 || found.1 == expected.1, "{kernel}, codes of {at}");
        }
    }
}

/// The largest sums of products that a pair of widths has, in one row (packed weights), few (bytes) and many.
#[test]
fn extreme_codes_do_not_saturate() {
    for (bits, activations) in BitWidth::ALL.into_iter().flat_map(|w| BitWidth::ALL.map(|a| (w, a))) {
        for rows in [1, 3, 21] {
            let shape = gemm(rows, 300, 33, bits, Granularity::Tensor);
            let layout = shape.weight();
            for code in [bits.signed_min(), bits.signed_max()] {
                let weights = vec![code; layout.outputs() * layout.cols()];
                let largest = activations.unsigned_max();
                let codes = vec![largest as u8; shape.code_bytes()];
                let panels = prepare_panels(&weights, layout);
                let (multiplier, addend) = (vec![1.0; 33], Addends::by_position(&[0.0; 33], &shape));
                let epilogue = Epilogue {
                    multiplier: &multiplier,
                    offset: None,
                    addend: &addend,
                    residual: None,
                    activation: Activation::None,
                    last: None,
                };
                for kernel in kernels() {
                    let mut out = vec![0.0; shape.results()];
                    values(kernel, &codes, &panels, &shape, &epilogue, &mut out);
                    let expected = (300 * largest * code) as f32;
                    assert!(
                        out.iter().all(|&sum| sum == expected),
                        "{kernel}, {rows} rows, w{bits}a{activations}, {code}: {}",
                        out[0]
                    );
                }
            }
        }
    }
}

#[test]
fn preparing_unpacking_and_switching_agree_with_the_reference() {
    for stored in BitWidth::ALL {
        for shape in [&[19, 37][..], &[16, 8, 3, 3], &[3, 5, 1, 2]] {
            let layout = WeightLayout::new(shape, 1, stored, Granularity::Channel).unwrap();
            let len = layout.outputs() * layout.cols();
            let weights = Numbers(3).codes(len, stored.signed_min(), stored.signed_max());
            let panels = prepare_panels(&weights, &layout);
            assert_eq!(panels, reference::prepare_panels(&weights, &layout));
            let mut bytes = vec![1; layout.elements()];
            unpack_panels(&panels, stored, &mut bytes);
            let as_bytes = layout.at(BitWidth::B8).unwrap();
            assert_eq!(bytemuck::cast_slice::<u32, i8>(&prepare_panels(&weights, &as_bytes)), bytes);
            for active in BitWidth::ALL.into_iter().filter(|&active| active <= stored) {
                let codes: Vec<i32> =
                    weights.iter().map(|&code| semantics::switch(code, stored, active)).collect();
                let expected = prepare_panels(&codes, &layout.at(active).unwrap());
                assert_eq!(switch_panels(&panels, stored, active), expected, "{stored} to {active} bits");
            }
        }
    }
}

fn bit_width() -> impl Strategy<Value = BitWidth> {
    prop::sample::select(BitWidth::ALL.to_vec())
}

fn activation() -> impl Strategy<Value = Activation> {
    prop::sample::select(&Activation::ALL[..])
}

fn granularity() -> impl Strategy<Value = Granularity> {
    prop_oneof![
        Just(Granularity::Channel),
        (1usize..80).prop_map(|n| Granularity::Group(NonZeroUsize::new(n).unwrap()))
    ]
}

prop_compose! {
    fn conv_shape()(
        batch in 0usize..4, input in [1usize..12, 1usize..12], kernel in [1usize..4, 1usize..4],
        stride in [1usize..4, 1usize..4], padding in [0usize..3, 0usize..3], dilation in [1usize..3, 1usize..3],
        groups in 1usize..4, inputs in 1usize..9, outputs in 1usize..21, bits in bit_width(),
        granularity in granularity(), depthwise in prop::bool::weighted(0.2),
    ) -> IntConv2dShape {
        let (groups, inputs, outputs) =
            if depthwise { (outputs + 1, 1, outputs + 1) } else { (groups, inputs, outputs * groups) };
        let granularity = if inputs == 1 && groups > 1 { Granularity::Channel } else { granularity };
        let weight =
            WeightLayout::new(&[outputs, inputs, kernel[0], kernel[1]], groups, bits, granularity).unwrap();
        IntConv2dShape::new(batch, input, Conv2dOptions { stride, padding, dilation }, weight).unwrap()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn matrix_products(
        m in 0usize..70, k in 0usize..200, n in 1usize..130, bits in bit_width(), activations in bit_width(),
        granularity in granularity(), seed: u64,
    ) {
        check_sums(&gemm(m, k, n, bits, granularity), activations, seed);
    }

    #[test]
    fn convolutions(shape in conv_shape(), activations in bit_width(), seed: u64) {
        check_sums(&shape, activations, seed);
    }

    /// Everything an epilogue has: the same values, and the same codes.
    #[test]
    fn epilogues(shape in conv_shape(), bits in bit_width(), activation in activation(), with_residual: bool, seed: u64) {
        let mut numbers = Numbers(seed);
        let (weights, codes) = operands(&shape, bits, &mut numbers);
        let layout = shape.weight();
        let groups = layout.scale_groups();
        let scale = numbers.floats(layout.outputs() * groups);
        let multiplier: Vec<f32> = (0..groups * layout.outputs())
            .map(|i| scale[i % layout.outputs() * groups + i / layout.outputs()] * 0.5)
            .collect();
        let addend = reference::zero_point_addends(&weights, &scale, 0.3, &shape);
        let residual = with_residual.then(|| numbers.floats(shape.results()));
        let sums = reference::int_conv2d(&codes, &weights, &shape);
        let expected = reference::epilogue(&sums, &shape, &multiplier, &addend, residual.as_deref(), activation);
        let panels = prepare_panels(&weights, layout);
        let addends = Addends::by_position(&addend, &shape);
        let epilogue = Epilogue {
            multiplier: &multiplier, offset: None, addend: &addends, residual: residual.as_deref(), activation, last: None,
        };
        let to = CodeQuantizer { bits, scale: 0.7, zero_point: -0.2 };
        for kernel in kernels() {
            let mut out = vec![f32::NAN; shape.results()];
            values(kernel, &codes, &panels, &shape, &epilogue, &mut out);
            prop_assert_eq!(&out, &expected, "{}", kernel);
            let next = [layout.outputs(), shape.positions()];
            let expected_codes = reference::quantize_codes(&expected, next, true, to);
            for both in [false, true] {
                out.fill(f32::NAN);
                let mut codes_out = vec![0; shape.batch() * shape.positions() * padded_channels(layout.outputs())];
                let results = Results { values: both.then_some(&mut out), codes: Some((&mut codes_out, to)) };
                int_conv2d(kernel, &codes, &panels, &shape, &epilogue, results);
                if shape.results() > 0 {
                    prop_assert_eq!(&codes_out, &expected_codes, "{}", kernel);
                }
            }
            prop_assert_eq!(&out, &expected, "{}", kernel);
        }
    }

    #[test]
    fn codes_of_activations(
        images in 0usize..4, channels in 1usize..20, positions in 1usize..150, last: bool, bits in bit_width(), seed: u64,
    ) {
        let x = Numbers(seed).floats(images * channels * positions);
        let to = CodeQuantizer { bits, scale: 0.013, zero_point: -0.4 };
        let expected = reference::quantize_codes(&x, [channels, positions], last, to);
        prop_assert_eq!(quantize_codes(&x, [channels, positions], last, to), expected);
    }

    #[test]
    fn weight_only(
        rows in 0usize..11, inputs in 1usize..200, outputs in 1usize..70, bits in bit_width(),
        granularity in granularity(), seed: u64,
    ) {
        let layout = WeightLayout::new(&[outputs, inputs], 1, bits, granularity).unwrap();
        let mut numbers = Numbers(seed);
        let weights = numbers.codes(outputs * inputs, bits.signed_min(), bits.signed_max());
        let (x, scale) = (numbers.floats(rows * inputs), numbers.floats(outputs * layout.scale_groups()));
        let expected = reference::weight_only(&x, &weights, &scale, rows, &layout);
        let panels = prepare_panels(&weights, &layout);
        // The sum of the sizes of what is summed: rounding is relative to that.
        let largest = (inputs as f32) * bits.unsigned_max() as f32;
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let mut out = vec![f32::NAN; rows * outputs];
            integer::weight_only(isa, &x, &panels, &scale, rows, &layout, &mut out);
            for (out, expected) in out.iter().zip(&expected) {
                prop_assert!((out - expected).abs() <= 1e-6 * largest, "{isa}: {out}, not {expected}");
            }
        }
    }

    /// The zero point of an input, made up for in the addends: as if zeros of padding were zeros, not codes.
    #[test]
    fn zero_points(shape in conv_shape(), seed: u64) {
        let mut numbers = Numbers(seed);
        let (weights, codes) = operands(&shape, BitWidth::B4, &mut numbers);
        let layout = shape.weight();
        let scale = vec![1.0; layout.outputs() * layout.scale_groups()];
        let addends = reference::zero_point_addends(&weights, &scale, 3.0, &shape);
        let multiplier = vec![1.0; scale.len()];
        let sums = reference::int_conv2d(&codes, &weights, &shape);
        let with_zero = reference::epilogue(&sums, &shape, &multiplier, &addends, None, Activation::None);
        // The same with codes that are three larger inside the image.
        let (channels, padded) = (shape.channels(), padded_channels(shape.channels()));
        let moved: Vec<u8> =
            codes.iter().enumerate().map(|(i, code)| code + if i % padded < channels { 3 } else { 0 }).collect();
        let sums = reference::int_conv2d(&moved, &weights, &shape);
        let zero = vec![0.0; layout.outputs()];
        let expected = reference::epilogue(&sums, &shape, &multiplier, &zero, None, Activation::None);
        prop_assert_eq!(with_zero, expected);
    }
}
