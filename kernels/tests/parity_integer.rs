//! The integer operations of every compiled backend against the reference, through the public functions. One suite, run for
//! each device, and for each kernel where there are several.

mod common;

use burn::tensor::{DType, Device, Int, Tensor, TensorData, s};
use common::{float, noise, read, shaped};
use dr_kernels::integer::{
    Activation, CodeQuantizer, Dot, GpuKernel, IntConv2dShape, WeightLayout, padded_channels,
};
use dr_kernels::{Codes, IntConv2dOptions, IntEpilogue, IntWeight, PackedTensor, reference};
use dr_precision::{BitWidth, Granularity, QuantSpec, semantics};

/// The kernels to be tested on a device: the chosen one, and all others by name.
fn kernels(device: &Device) -> Vec<Option<GpuKernel>> {
    let named = GpuKernel::ALL.into_iter().map(Some);
    let others = if *device == Device::flex() { vec![] } else { named.collect() };
    std::iter::once(None).chain(others).collect()
}

/// Reproducible codes.
fn random_codes(seed: u64, n: usize, low: i32, high: i32) -> Vec<i32> {
    let span = (high - low + 1) as f32;
    noise(seed, n)
        .into_iter()
        .map(|x| low + ((x + 1.0) / 2.0 * span).floor().min(span - 1.0) as i32)
        .collect()
}

fn group(n: usize) -> Granularity {
    Granularity::Group(n.try_into().expect("not zero"))
}

/// A convolution or matrix product to be tested.
#[derive(Clone, Copy, Debug)]
struct Case {
    batch: usize,
    input: [usize; 2],
    /// Outputs, inputs of a group, rows and columns of the kernel.
    weight: [usize; 4],
    groups: usize,
    stride: [usize; 2],
    padding: [usize; 2],
    dilation: [usize; 2],
    granularity: Granularity,
}

impl Case {
    fn conv(batch: usize, input: [usize; 2], weight: [usize; 4]) -> Self {
        let granularity = Granularity::Channel;
        Self {
            batch,
            input,
            weight,
            groups: 1,
            stride: [1, 1],
            padding: [0, 0],
            dilation: [1, 1],
            granularity,
        }
    }

    fn gemm(m: usize, k: usize, n: usize) -> Self {
        Self::conv(m, [1, 1], [n, k, 1, 1])
    }

    fn groups(self, groups: usize) -> Self {
        Self { groups, ..self }
    }

    fn moving(self, stride: [usize; 2], padding: [usize; 2], dilation: [usize; 2]) -> Self {
        Self { stride, padding, dilation, ..self }
    }

    fn by(self, granularity: Granularity) -> Self {
        Self { granularity, ..self }
    }

    fn shape(&self, bits: BitWidth) -> IntConv2dShape {
        let Self { batch, input, weight, groups, stride, padding, dilation, granularity } = *self;
        let weight = WeightLayout::new(&weight, groups, bits, granularity).expect("a weight");
        let options = IntConv2dOptions { stride, padding, dilation };
        IntConv2dShape::new(batch, input, options, weight).expect("a convolution")
    }

    fn options(&self) -> IntConv2dOptions {
        IntConv2dOptions { stride: self.stride, padding: self.padding, dilation: self.dilation }
    }
}

/// Codes and weights of a case, on the host and on a device.
struct Operands {
    shape: IntConv2dShape,
    host_codes: Vec<u8>,
    host_weights: Vec<i32>,
    codes: Codes,
    weight: IntWeight,
}

impl Operands {
    fn new(case: &Case, bits: BitWidth, activations: BitWidth, device: &Device) -> Self {
        let shape = case.shape(bits);
        let layout = &shape.weight();
        let len = layout.outputs() * layout.cols();
        let host_weights = random_codes(1, len, bits.signed_min(), bits.signed_max());
        let (channels, pixels) = (shape.channels(), shape.batch() * shape.input()[0] * shape.input()[1]);
        let values = random_codes(2, pixels * channels, 0, activations.unsigned_max());
        let mut host_codes = vec![0; shape.code_bytes()];
        for (i, &code) in values.iter().enumerate() {
            host_codes[i / channels * padded_channels(channels) + i % channels] = code as u8;
        }
        let values: Vec<f32> = values.into_iter().map(|code| code as f32).collect();
        let [rows, columns] = shape.input();
        let x = shaped(&values, [shape.batch(), rows, columns, channels], device);
        let codes = dr_kernels::quantize_codes(x, true, float(&[1.0, 0.0], device), activations);
        let weight = int_weight(&host_weights, &case.weight, case.groups, bits, case.granularity, device);
        Self { shape, host_codes, host_weights, codes: codes.expect("codes"), weight }
    }
}

fn int_weight(
    codes: &[i32], shape: &[usize], groups: usize, bits: BitWidth, granularity: Granularity, device: &Device,
) -> IntWeight {
    let words = reference::pack(codes, bits);
    let words = Tensor::<1, Int>::from_data(TensorData::from(words.as_slice()), (device, DType::U32));
    let spec = QuantSpec::weights(bits).with_granularity(granularity);
    let cols = codes.len() / shape[0].max(1);
    let runs = match granularity {
        Granularity::Group(n) => cols.div_ceil(n.get()).max(1),
        _ => 1,
    };
    let scale = float(&vec![1.0; shape[0] * runs], device);
    let packed = PackedTensor::new(words, scale, None, shape, spec).expect("packed");
    IntWeight::new(&packed, groups).expect("prepared")
}

fn words(codes: &Codes) -> Vec<u8> {
    let words: Vec<u32> = codes.words().clone().into_data().try_to_vec().expect("u32");
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}

/// With scales of one and nothing to add the results are the sums themselves.
fn check_sums(case: &Case, bits: BitWidth, activations: BitWidth, device: &Device) {
    check_sums_of(&kernels(device), case, bits, activations, device);
}

fn check_sums_of(
    kernels: &[Option<GpuKernel>], case: &Case, bits: BitWidth, activations: BitWidth, device: &Device,
) {
    let operands = Operands::new(case, bits, activations, device);
    let shape = &operands.shape;
    let layout = &shape.weight();
    assert_eq!(words(&operands.codes), operands.host_codes, "{case:?}");
    let sums = reference::int_conv2d(&operands.host_codes, &operands.host_weights, shape);
    let (multiplier, addend) =
        (vec![1.0; layout.scale_groups() * layout.outputs()], vec![0.0; layout.outputs()]);
    let want = reference::epilogue(&sums, shape, &multiplier, &addend, None, Activation::None);
    let [multiplier, addend] = [multiplier, addend].map(|values| float(&values, device));
    let epilogue = IntEpilogue { multiplier, addend, activation: Activation::None };
    for &kernel in kernels {
        let weight = operands.weight.clone().with_kernel(kernel);
        let got = dr_kernels::int_conv2d(&operands.codes, &weight, &case.options(), &epilogue, None);
        let name = kernel.map_or("chosen".into(), |kernel| kernel.to_string());
        assert_eq!(read(got.expect("fits")), want, "{name}: {case:?}, w{bits}a{activations}");
    }
}

fn int_every_pair_of_widths(device: &Device) {
    for bits in BitWidth::ALL {
        for activations in BitWidth::ALL {
            check_sums(&Case::gemm(7, 70, 18), bits, activations, device);
        }
    }
}

fn int_matrix_products(device: &Device) {
    use BitWidth::{B3, B4, B8};
    for (m, k, n) in [(1, 1, 1), (1, 37, 19), (2, 64, 50), (17, 100, 5), (67, 131, 65), (130, 160, 70)] {
        check_sums(&Case::gemm(m, k, n), B4, B8, device);
    }
    // Enough positions for larger tiles.
    check_sums_of(&[None, GpuKernel::named("tiled-dp4a")], &Case::gemm(33_000, 5, 3), B4, B8, device);
    // Enough positions and rows for the largest tiles of tensor cores, and tails of them.
    for (m, n, bits) in [(1400, 1500, B8), (1100, 1030, B4), (520, 1100, B3)] {
        check_sums_of(&[None], &Case::gemm(m, 100, n), bits, B8, device);
    }
    for run in [1, 3, 12, 16, 32, 128, 1000] {
        check_sums(&Case::gemm(5, 100, 9).by(group(run)), B4, B8, device);
        check_sums(&Case::gemm(20, 288, 21).by(group(run)), B3, B4, device);
    }
}

fn int_convolutions(device: &Device) {
    use BitWidth::{B2, B4, B5, B8};
    let cases = [
        Case::conv(2, [7, 6], [10, 16, 3, 3]).moving([1, 1], [1, 1], [1, 1]),
        Case::conv(1, [9, 8], [5, 3, 7, 7]).moving([2, 2], [3, 3], [1, 1]),
        Case::conv(3, [5, 7], [17, 6, 3, 2]).moving([2, 1], [0, 2], [1, 2]),
        Case::conv(2, [4, 4], [33, 32, 1, 1]).moving([2, 2], [0, 0], [1, 1]),
        Case::conv(1, [1, 1], [3, 5, 3, 3]).moving([1, 1], [2, 2], [1, 1]),
        // Groups whose channels are whole words, and not.
        Case::conv(2, [5, 5], [24, 16, 3, 3]).groups(3).moving([1, 1], [1, 1], [1, 1]),
        Case::conv(2, [5, 5], [12, 4, 3, 3]).groups(3).moving([1, 1], [1, 1], [1, 1]),
        Case::conv(2, [5, 4], [9, 3, 2, 3]).groups(3).moving([1, 2], [1, 1], [2, 1]),
        Case::conv(1, [4, 4], [40, 5, 1, 1]).groups(2),
        Case::conv(1, [4, 4], [6, 1, 3, 3]).groups(3),
        // Scale groups that start between the taps of a channel.
        Case::conv(2, [5, 5], [7, 8, 3, 3]).by(group(16)).moving([1, 1], [1, 1], [1, 1]),
        Case::conv(1, [4, 5], [8, 5, 2, 2]).groups(2).by(group(7)).moving([1, 1], [1, 0], [1, 1]),
        Case::conv(1, [4, 5], [8, 48, 1, 1]).groups(2).by(group(32)),
        Case::conv(1, [3, 3], [4, 40, 3, 3]).by(group(100)),
    ];
    for (i, case) in cases.into_iter().enumerate() {
        let (bits, activations) = [(B4, B8), (B8, B8), (B5, B2)][i % 3];
        check_sums(&case, bits, activations, device);
    }
}

fn int_depthwise(device: &Device) {
    use BitWidth::{B3, B4, B8};
    let cases = [
        Case::conv(2, [6, 7], [16, 1, 3, 3]).groups(16).moving([1, 1], [1, 1], [1, 1]),
        Case::conv(1, [7, 5], [19, 1, 5, 5]).groups(19).moving([2, 2], [2, 2], [1, 1]),
        Case::conv(3, [9, 8], [2, 1, 7, 7]).groups(2).moving([1, 2], [3, 0], [1, 1]),
        Case::conv(1, [6, 6], [6, 1, 3, 2]).groups(6).moving([1, 1], [2, 1], [2, 3]).by(group(4)),
    ];
    for case in cases {
        for (bits, activations) in [(B4, B8), (B8, B4), (B3, B8)] {
            check_sums(&case, bits, activations, device);
        }
    }
}

/// The largest and smallest codes everywhere.
fn int_extreme_codes(device: &Device) {
    for bits in BitWidth::ALL {
        for code in [bits.signed_min(), bits.signed_max()] {
            let (m, k, n) = (7, 70, 6); // kernels that other tests have compiled
            let x = shaped(&vec![255.0; m * k], [m, 1, 1, k], device);
            let codes = dr_kernels::quantize_codes(x, true, float(&[1.0, 0.0], device), BitWidth::B8);
            let granularity = Granularity::Channel;
            let weight = int_weight(&vec![code; k * n], &[n, k], 1, bits, granularity, device);
            let [multiplier, addend] = [[1.0; 6], [0.0; 6]].map(|values| float(&values, device));
            let epilogue = IntEpilogue { multiplier, addend, activation: Activation::None };
            let (codes, options) = (codes.expect("codes"), IntConv2dOptions::default());
            for kernel in kernels(device) {
                let weight = weight.clone().with_kernel(kernel);
                let got = dr_kernels::int_conv2d(&codes, &weight, &options, &epilogue, None).expect("fits");
                assert_eq!(read(got), vec![(k as i32 * 255 * code) as f32; m * n], "{kernel:?}, {bits} bits");
            }
        }
    }
}

/// Everything an epilogue has, in numbers whose products and sums are exact: the same values, and the same codes.
fn int_epilogues(device: &Device) {
    let cases = [
        Case::gemm(5, 37, 11),
        Case::gemm(33, 64, 20).by(group(16)),
        Case::conv(2, [5, 4], [6, 7, 3, 3]).moving([1, 1], [1, 1], [1, 1]),
        Case::conv(1, [5, 4], [24, 4, 3, 3]).groups(3).moving([2, 1], [1, 1], [1, 1]),
        Case::conv(2, [3, 4], [9, 3, 2, 2]).groups(3),
        Case::conv(2, [5, 5], [7, 1, 3, 3]).groups(7).moving([1, 1], [1, 1], [1, 1]),
    ];
    for (i, case) in cases.into_iter().enumerate() {
        let operands = Operands::new(&case, BitWidth::B4, BitWidth::B4, device);
        let shape = &operands.shape;
        let (outputs, positions) = (shape.weight().outputs(), shape.positions());
        let sums = reference::int_conv2d(&operands.host_codes, &operands.host_weights, shape);
        let powers = |seed, n| random_codes(seed, n, -6, -3).into_iter().map(|e| 2f32.powi(e)).collect();
        let quarters = |seed, n| random_codes(seed, n, -9, 9).into_iter().map(|q| q as f32 / 4.0).collect();
        let multiplier: Vec<f32> = powers(3, shape.weight().scale_groups() * outputs);
        // Every kernel takes seconds to compile on some devices; multiplying is not what is tested here.
        let kernels =
            kernels(device).into_iter().filter(|kernel| kernel.is_none_or(|k| k.dot == Dot::Multiply));
        let kernels: Vec<_> = kernels.collect();
        let [relu, relu6] = [Activation::Relu, Activation::Relu6];
        let epilogues = [
            [(false, false, relu), (true, true, relu6)],
            [(true, false, Activation::None), (false, true, relu)],
        ];
        for (by_position, with_residual, activation) in epilogues[i % 2] {
            let addend: Vec<f32> = quarters(4, if by_position { positions * outputs } else { outputs });
            let residual: Option<Vec<f32>> = with_residual.then(|| quarters(5, shape.results()));
            let want =
                reference::epilogue(&sums, shape, &multiplier, &addend, residual.as_deref(), activation);
            let [multiplier, addend] = [&multiplier, &addend].map(|values| float(values, device));
            let epilogue = IntEpilogue { multiplier, addend, activation };
            let bits = BitWidth::ALL[i % 7];
            let to = CodeQuantizer { bits, scale: 0.5, zero_point: -1.25 };
            let want_codes = reference::quantize_codes(&want, [outputs, positions], true, to);
            for &kernel in &kernels {
                let (codes, weight) = (&operands.codes, operands.weight.clone().with_kernel(kernel));
                let residual = || {
                    let [rows, columns] = shape.output();
                    let dims = [shape.batch(), rows, columns, outputs];
                    residual.as_ref().map(|values| shaped(values, dims, device))
                };
                let what = format!("{kernel:?}: {case:?}, {by_position}, {with_residual}, {activation:?}");
                let options = case.options();
                let got = dr_kernels::int_conv2d(codes, &weight, &options, &epilogue, residual());
                assert_eq!(read(got.expect("fits")), want, "{what}");
                let quantizer = || float(&[to.scale, to.zero_point], device);
                let got = dr_kernels::int_conv2d_codes(
                    codes,
                    &weight,
                    &options,
                    &epilogue,
                    residual(),
                    quantizer(),
                    bits,
                );
                assert_eq!(words(&got.expect("fits")), want_codes, "{what}");
                let got = dr_kernels::int_conv2d_with_codes(
                    codes,
                    &weight,
                    &options,
                    &epilogue,
                    residual(),
                    quantizer(),
                    bits,
                );
                let (values, got) = got.expect("fits");
                assert_eq!((read(values), words(&got)), (want.clone(), want_codes.clone()), "{what}");
            }
        }
    }
}

/// Nothing at all, of each kind.
fn int_empty(device: &Device) {
    let cases = [
        Case::gemm(0, 5, 3),
        Case::gemm(3, 5, 0),
        Case::gemm(3, 0, 5),
        Case::conv(1, [2, 2], [4, 4, 3, 3]),
        Case::conv(0, [2, 2], [4, 1, 1, 1]).groups(4),
    ];
    for case in cases {
        check_sums(&case, BitWidth::B4, BitWidth::B8, device);
    }
}

fn int_quantize_codes(device: &Device) {
    let shapes = [[2, 5, 3, 4], [1, 16, 5, 5], [3, 1, 1, 1], [1, 7, 1, 13], [0, 3, 2, 2], [2, 0, 3, 1]];
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for (shape, bits) in
            shapes.into_iter().flat_map(|shape| [(shape, BitWidth::B8), (shape, BitWidth::B3)])
        {
            for last in [false, true] {
                let data = TensorData::new(noise(6, shape.iter().product()), shape).convert_dtype(dtype);
                let values: Vec<f32> = data.clone().convert::<f32>().try_to_vec().expect("f32");
                let x = Tensor::<4>::from_data(data, (device, dtype));
                // Powers of two, so that every device divides exactly.
                let to = CodeQuantizer { bits, scale: 1.0 / 64.0, zero_point: -0.75 };
                let quantizer = float(&[to.scale, to.zero_point], device);
                let got = dr_kernels::quantize_codes(x, last, quantizer, bits).expect("codes");
                let sizes = match last {
                    true => [shape[3], shape[1] * shape[2]],
                    false => [shape[1], shape[2] * shape[3]],
                };
                let want = reference::quantize_codes(&values, sizes, last, to);
                assert_eq!(words(&got), want, "{shape:?} {dtype:?} {bits} bits, channels last: {last}");
            }
        }
    }
}

fn int_switch_weight(device: &Device) {
    for stored in BitWidth::ALL {
        for (shape, groups) in [(&[19, 37][..], 1), (&[6, 5, 3, 3], 2), (&[5, 1, 3, 3], 5)] {
            let len = shape.iter().product();
            let codes = random_codes(7, len, stored.signed_min(), stored.signed_max());
            let weight = int_weight(&codes, shape, groups, stored, Granularity::Channel, device);
            assert_eq!(weight.codes(), codes);
            for active in BitWidth::ALL.into_iter().filter(|&active| active <= stored) {
                let want: Vec<i32> =
                    codes.iter().map(|&code| semantics::switch(code, stored, active)).collect();
                let switched = weight.switch(active).expect("narrower");
                assert_eq!(switched.codes(), want, "{shape:?}, {stored} to {active} bits");
            }
        }
    }
}

fn int_weight_only(device: &Device) {
    let granularities = [Granularity::Channel, group(16), group(5), group(32)];
    for (i, bits) in BitWidth::ALL.into_iter().enumerate() {
        for (m, k, n) in [(1, 37, 19), (7, 128, 8), (7, 70, 3), (1, 300, 5), (7, 0, 2), (0, 8, 2)] {
            let dtype = [DType::F32, DType::F16, DType::BF16][(i + m) % 3];
            for granularity in granularities {
                let layout = WeightLayout::new(&[n, k], 1, bits, granularity).expect("a weight");
                let codes = random_codes(8, n * k, bits.signed_min(), bits.signed_max());
                let weight = int_weight(&codes, &[n, k], 1, bits, granularity, device);
                let scale: Vec<f32> =
                    noise(9, layout.scale_groups() * n).into_iter().map(|x| 0.01 * (1.5 + x)).collect();
                let data = TensorData::new(noise(10, m * k), [m, k]).convert_dtype(dtype);
                let values: Vec<f32> = data.clone().convert::<f32>().try_to_vec().expect("f32");
                let x = Tensor::<2>::from_data(data, (device, dtype));
                let got = dr_kernels::weight_only_linear(x, &weight, float(&scale, device)).expect("fits");
                let want = reference::weight_only(&values, &codes, &scale, m, &layout);
                let magnitude = |values: &[f32]| values.iter().map(|x| x.abs()).collect::<Vec<_>>();
                let positive: Vec<i32> = codes.iter().map(|code| code.abs()).collect();
                let sizes =
                    reference::weight_only(&magnitude(&values), &positive, &magnitude(&scale), m, &layout);
                for ((got, want), size) in read(got).into_iter().zip(want).zip(sizes) {
                    let what = format!("{m} {k} {n} {granularity} {bits} bits {dtype:?}");
                    assert!((got - want).abs() <= 1e-5 * size, "{what}: {got}, expected {want}");
                }
            }
        }
    }
}

/// Between operations that Fusion may fuse, with operands that are views.
fn int_fused(device: &Device) {
    let operands = Operands::new(&Case::gemm(6, 40, 12), BitWidth::B4, BitWidth::B8, device);
    let sums = reference::int_conv2d(&operands.host_codes, &operands.host_weights, &operands.shape);
    let multiplier = float(&[7.0, 0.25, 0.5], device).slice(s![1..3]).unsqueeze_dim::<2>(1).expand([2, 6]);
    let addend = (float(&[1.0; 12], device) + 2.0).neg();
    let epilogue = IntEpilogue { multiplier: multiplier.reshape([12]), addend, activation: Activation::Relu };
    let options = IntConv2dOptions::default();
    let y = dr_kernels::int_conv2d(&operands.codes, &operands.weight, &options, &epilogue, None);
    let y = y.expect("fits") * 2.0 + 1.0;
    let value = |(i, &sum): (usize, &i32)| {
        (sum as f32 * if i % 12 < 6 { 0.25 } else { 0.5 } - 3.0).max(0.0) * 2.0 + 1.0
    };
    let want: Vec<f32> = sums.iter().enumerate().map(value).collect();
    assert_eq!(read(y.clone()), want);
    // A second layer, from the transposed result of the first.
    let x = y.swap_dims(1, 3);
    let got = dr_kernels::quantize_codes(x, false, float(&[8.0, 0.0], device), BitWidth::B8).expect("codes");
    let to = CodeQuantizer { bits: BitWidth::B8, scale: 8.0, zero_point: 0.0 };
    assert_eq!(words(&got), reference::quantize_codes(&want, [12, 1], true, to));
}

fn main() {
    common::run(&[
        ("int_every_pair_of_widths", int_every_pair_of_widths),
        ("int_matrix_products", int_matrix_products),
        ("int_convolutions", int_convolutions),
        ("int_depthwise", int_depthwise),
        ("int_extreme_codes", int_extreme_codes),
        ("int_epilogues", int_epilogues),
        ("int_empty", int_empty),
        ("int_quantize_codes", int_quantize_codes),
        ("int_switch_weight", int_switch_weight),
        ("int_weight_only", int_weight_only),
        ("int_fused", int_fused),
    ]);
}
