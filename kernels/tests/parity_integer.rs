//! The integer operations of every compiled backend against the reference, through the public functions. One suite, run for
//! each device, and for each kernel where there are several.

mod common;

use burn::tensor::{DType, Device, Int, Tensor, TensorData, s};
use common::{float, noise, read, shaped};
use dr_kernels::integer::{
    Activation, CodeQuantizer, Dot, GpuKernel, IntConv2dShape, Tiling, WeightLayout, padded_channels,
};
use dr_kernels::{
    Codes, Conv2dOptions, IntProduct, IntWeight, PackedTensor, Results, Wanted, WeightOnlyProduct, reference,
};
use dr_precision::{BitWidth, Granularity, QuantSpec, semantics};

/// The kernels to be tested on a device: the chosen one, and all others by name.
fn kernels(device: &Device) -> Vec<Option<GpuKernel>> {
    let named = GpuKernel::ALL.into_iter().map(Some);
    let others = if *device == Device::flex() { vec![] } else { named.collect() };
    std::iter::once(None).chain(others).collect()
}

/// The chosen kernel and two others, by turns; on a GPU all of them: where the processor does its work, most of the time goes to compiling kernels.
fn by_turns(device: &Device, turn: usize) -> Vec<Option<GpuKernel>> {
    let mut all = kernels(device);
    if all.len() > 3 && !format!("{device:?}").to_lowercase().contains("cuda") {
        all.rotate_left(1);
        all.rotate_left((2 * turn) % GpuKernel::ALL.len());
        all = all.into_iter().filter(Option::is_some).take(2).collect();
        all.push(None);
    }
    all
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
        let options = Conv2dOptions { stride, padding, dilation };
        IntConv2dShape::new(batch, input, options, weight).expect("a convolution")
    }

    fn options(&self) -> Conv2dOptions {
        Conv2dOptions { stride: self.stride, padding: self.padding, dilation: self.dilation }
    }
}

/// How codes are quantized whose values they are themselves, `zero_point` higher.
fn codes_of(bits: BitWidth, zero_point: f32) -> CodeQuantizer {
    CodeQuantizer { bits, scale: 1.0, zero_point }
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
    fn new(
        case: &Case, bits: BitWidth, input: CodeQuantizer, scales: Option<&[f32]>, device: &Device,
    ) -> Self {
        let shape = case.shape(bits);
        let layout = shape.weight();
        let len = layout.outputs() * layout.cols();
        let host_weights = random_codes(1, len, bits.signed_min(), bits.signed_max());
        let (channels, pixels) = (shape.channels(), shape.batch() * shape.input()[0] * shape.input()[1]);
        let values = random_codes(2, pixels * channels, 0, input.bits.unsigned_max());
        let mut host_codes = vec![0; shape.code_bytes()];
        for (i, &code) in values.iter().enumerate() {
            host_codes[i / channels * padded_channels(channels) + i % channels] = code as u8;
        }
        let values: Vec<f32> = values.into_iter().map(|code| code as f32 + input.zero_point).collect();
        let [rows, columns] = shape.input();
        let x = shaped(&values, [shape.batch(), rows, columns, channels], device);
        let codes = Codes::quantize(x, true, input).expect("codes");
        let ones = vec![1.0; layout.outputs() * layout.scale_groups()];
        let scales = float(scales.unwrap_or(&ones), device);
        let weight = int_weight(&host_weights, &case.weight, case.groups, bits, case.granularity, scales);
        Self { shape, host_codes, host_weights, codes, weight }
    }

    fn product(
        &self, case: &Case, kernel: Option<GpuKernel>, shift: &[f32], activation: Activation,
    ) -> IntProduct {
        let (weight, input) = (self.weight.clone().with_kernel(kernel), self.codes.quantizer());
        let gain = vec![1.0; shift.len()];
        IntProduct::new(&weight, case.options(), input, &gain, shift, activation).expect("a product")
    }
}

fn values_of(results: Results) -> Vec<f32> {
    read(results.values.expect("wanted"))
}

fn int_weight(
    codes: &[i32], shape: &[usize], groups: usize, bits: BitWidth, granularity: Granularity,
    scales: Tensor<1>,
) -> IntWeight {
    let words = reference::pack(codes, bits);
    let options = (&scales.device(), DType::U32);
    let words = Tensor::<1, Int>::from_data(TensorData::from(words.as_slice()), options);
    let spec = QuantSpec::weights(bits).with_granularity(granularity);
    let packed = PackedTensor::new(words, scales, None, shape, spec).expect("packed");
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
    let operands = Operands::new(case, bits, codes_of(activations, 0.0), None, device);
    let shape = &operands.shape;
    let layout = shape.weight();
    assert_eq!(words(&operands.codes), operands.host_codes, "{case:?}");
    let sums = reference::int_conv2d(&operands.host_codes, &operands.host_weights, shape);
    let (multiplier, addend) =
        (vec![1.0; layout.scale_groups() * layout.outputs()], vec![0.0; layout.outputs()]);
    let want = reference::epilogue(&sums, shape, &multiplier, &addend, None, Activation::None);
    for &kernel in kernels {
        let product = operands.product(case, kernel, &addend, Activation::None);
        let got = product.run(&operands.codes, None, Wanted::Values).expect("fits");
        let name = kernel.map_or("chosen".into(), |kernel| kernel.to_string());
        assert_eq!(values_of(got), want, "{name}: {case:?}, w{bits}a{activations}");
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
    let tiled = GpuKernel { tiling: Tiling::Tiled, dot: Dot::Dp4a };
    check_sums_of(&[None, Some(tiled)], &Case::gemm(33_000, 5, 3), B4, B8, device);
    // Enough positions and rows for the largest tiles of tensor cores, and tails of them.
    for (m, n, bits) in [(1400, 1500, B8), (1100, 1030, B4), (520, 1100, B3)] {
        check_sums_of(&[None], &Case::gemm(m, 100, n), bits, B8, device);
    }
    for (turn, run) in [1, 3, 12, 16, 32, 128, 1000].into_iter().enumerate() {
        let kernels = by_turns(device, turn);
        check_sums_of(&kernels, &Case::gemm(5, 100, 9).by(group(run)), B4, B8, device);
        check_sums_of(&kernels, &Case::gemm(20, 288, 21).by(group(run)), B3, B4, device);
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
        check_sums_of(&by_turns(device, i), &case, bits, activations, device);
    }
}

fn int_depthwise(device: &Device) {
    use BitWidth::{B3, B4, B8};
    let cases = [
        Case::conv(2, [6, 7], [16, 1, 3, 3]).groups(16).moving([1, 1], [1, 1], [1, 1]),
        Case::conv(1, [7, 5], [19, 1, 5, 5]).groups(19).moving([2, 2], [2, 2], [1, 1]),
        Case::conv(3, [9, 8], [2, 1, 7, 7]).groups(2).moving([1, 2], [3, 0], [1, 1]),
        Case::conv(1, [6, 6], [6, 1, 3, 2]).groups(6).moving([1, 1], [2, 1], [2, 3]).by(group(6)),
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
            let input = codes_of(BitWidth::B8, 0.0);
            let codes = Codes::quantize(x, true, input).expect("codes");
            let scales = float(&[1.0; 6], device);
            let weight = int_weight(&vec![code; k * n], &[n, k], 1, bits, Granularity::Channel, scales);
            let options = Conv2dOptions::default();
            for kernel in kernels(device) {
                let weight = weight.clone().with_kernel(kernel);
                let product =
                    IntProduct::new(&weight, options, input, &[1.0; 6], &[0.0; 6], Activation::None);
                let got = product.expect("a product").run(&codes, None, Wanted::Values).expect("fits");
                let want = vec![(k as i32 * 255 * code) as f32; m * n];
                assert_eq!(values_of(got), want, "{kernel:?}, {bits} bits");
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
        let layout = *case.shape(BitWidth::B4).weight();
        let powers = |seed, n| random_codes(seed, n, -6, -3).into_iter().map(|e| 2f32.powi(e)).collect();
        let quarters = |seed, n| random_codes(seed, n, -9, 9).into_iter().map(|q| q as f32 / 4.0).collect();
        let (outputs, groups) = (layout.outputs(), layout.scale_groups());
        let scales: Vec<f32> = powers(3, groups * outputs);
        let multiplier: Vec<f32> =
            (0..scales.len()).map(|i| scales[i % outputs * groups + i / outputs]).collect();
        // Every kernel takes seconds to compile on some devices; multiplying is not what is tested here.
        let kernels =
            kernels(device).into_iter().filter(|kernel| kernel.is_none_or(|k| k.dot == Dot::Multiply));
        let kernels: Vec<_> = kernels.collect();
        let [relu, relu6] = [Activation::Relu, Activation::Relu6];
        let epilogues = [
            [(0.0, false, relu), (-1.5, true, relu6)],
            [(2.25, false, Activation::None), (0.0, true, Activation::Unit)],
        ];
        for (zero_point, with_residual, activation) in epilogues[i % 2] {
            let input = codes_of(BitWidth::B4, zero_point);
            let operands = Operands::new(&case, BitWidth::B4, input, Some(&scales), device);
            let (shape, weights) = (&operands.shape, &operands.host_weights);
            let sums = reference::int_conv2d(&operands.host_codes, weights, shape);
            let shift: Vec<f32> = quarters(4, outputs);
            let zero = reference::zero_point_addends(weights, &scales, zero_point, shape);
            let addend: Vec<f32> =
                zero.iter().zip(shift.iter().cycle()).map(|(zero, shift)| zero + shift).collect();
            let residual: Option<Vec<f32>> = with_residual.then(|| quarters(5, shape.results()));
            let want =
                reference::epilogue(&sums, shape, &multiplier, &addend, residual.as_deref(), activation);
            let to = CodeQuantizer { bits: BitWidth::ALL[i % 7], scale: 0.5, zero_point: -1.25 };
            let want_codes = reference::quantize_codes(&want, [outputs, shape.positions()], true, to);
            let [rows, columns] = shape.output();
            let dims = [shape.batch(), rows, columns, outputs];
            let residual = residual.map(|values| shaped(&values, dims, device));
            for &kernel in &kernels {
                let product = operands.product(&case, kernel, &shift, activation);
                let run = |wanted| product.run(&operands.codes, residual.clone(), wanted).expect("fits");
                let what = format!("{kernel:?}: {case:?}, {zero_point}, {with_residual}, {activation:?}");
                let Results { values, codes } = run(Wanted::Values);
                assert!(codes.is_none());
                assert_eq!(read(values.expect("wanted")), want, "{what}");
                let Results { values, codes } = run(Wanted::Codes(to));
                assert!(values.is_none());
                assert_eq!(words(&codes.expect("wanted")), want_codes, "{what}");
                let Results { values, codes } = run(Wanted::Both(to));
                let got = (read(values.expect("wanted")), words(&codes.expect("wanted")));
                assert_eq!(got, (want.clone(), want_codes.clone()), "{what}");
            }
        }
    }
}

/// Activations that round, to the accuracy of a device's exponential.
fn int_activations(device: &Device) {
    let case = Case::gemm(5, 37, 11);
    let scales = noise(3, 11).into_iter().map(|scale| scale / 16.0).collect::<Vec<f32>>();
    for activation in [Activation::HardSwish, Activation::Sigmoid, Activation::Silu] {
        let operands = Operands::new(&case, BitWidth::B4, codes_of(BitWidth::B4, 0.0), Some(&scales), device);
        let sums = reference::int_conv2d(&operands.host_codes, &operands.host_weights, &operands.shape);
        let shift = noise(4, 11);
        let want = reference::epilogue(&sums, &operands.shape, &scales, &shift, None, activation);
        let product = operands.product(&case, None, &shift, activation);
        let got = values_of(product.run(&operands.codes, None, Wanted::Values).expect("fits"));
        for (got, want) in got.into_iter().zip(want) {
            assert!((got - want).abs() <= 1e-4 * want.abs().max(1.0), "{activation:?}: {got}, {want}");
        }
    }
}

/// What makes up for zero points, bit by bit as the reference adds it up, in numbers that round.
fn int_zero_points(device: &Device) {
    let cases = [
        Case::gemm(3, 100, 9).by(group(7)),
        Case::conv(1, [5, 4], [6, 40, 3, 3]).moving([1, 2], [1, 1], [1, 1]),
        Case::conv(2, [5, 5], [12, 5, 3, 3]).groups(3).moving([1, 1], [1, 0], [2, 1]),
        Case::conv(1, [5, 5], [7, 1, 3, 3]).groups(7).moving([1, 1], [1, 1], [1, 1]),
    ];
    for (case, bits) in cases.into_iter().zip([BitWidth::B8, BitWidth::B5, BitWidth::B4, BitWidth::B3]) {
        let layout = *case.shape(bits).weight();
        let scales = noise(13, layout.outputs() * layout.scale_groups());
        let input = codes_of(BitWidth::B8, -0.37);
        let mut operands = Operands::new(&case, bits, input, Some(&scales), device);
        // No codes but 0 and no shifts, so that nothing else is added.
        let [batch, rows, columns, channels] = operands.codes.dims();
        let x = Tensor::<4>::full([batch, rows, columns, channels], -9.0, device);
        operands.codes = Codes::quantize(x, true, input).expect("codes");
        let product = operands.product(&case, None, &vec![0.0; layout.outputs()], Activation::None);
        let shape = &operands.shape;
        let zero = reference::zero_point_addends(&operands.host_weights, &scales, -0.37, shape);
        let want: Vec<f32> = zero.iter().cycle().take(shape.results()).copied().collect();
        for _ in 0..2 {
            let got = product.run(&operands.codes, None, Wanted::Values).expect("fits");
            assert_eq!(values_of(got), want, "{case:?}");
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
                let got = Codes::quantize(x, last, to).expect("codes");
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
            let scales = float(&vec![1.0; shape[0]], device);
            let weight = int_weight(&codes, shape, groups, stored, Granularity::Channel, scales.clone());
            assert_eq!(weight.codes().expect("read"), codes);
            for active in BitWidth::ALL.into_iter().filter(|&active| active <= stored) {
                let want: Vec<i32> =
                    codes.iter().map(|&code| semantics::switch(code, stored, active)).collect();
                let switched = weight.at(active, scales.clone()).expect("narrower");
                assert_eq!(switched.codes().expect("read"), want, "{shape:?}, {stored} to {active} bits");
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
                let groups = layout.scale_groups();
                let scales: Vec<f32> = noise(9, groups * n).into_iter().map(|x| 0.01 * (1.5 + x)).collect();
                let weight = int_weight(&codes, &[n, k], 1, bits, granularity, float(&scales, device));
                let scale: Vec<f32> = (0..scales.len()).map(|i| scales[i % n * groups + i / n]).collect();
                let data = TensorData::new(noise(10, m * k), [m, k]).convert_dtype(dtype);
                let values: Vec<f32> = data.clone().convert::<f32>().try_to_vec().expect("f32");
                let x = Tensor::<2>::from_data(data, (device, dtype));
                let product = WeightOnlyProduct::new(&weight, None).expect("a linear layer");
                let got = product.run(x).expect("fits");
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
    let case = Case::gemm(6, 40, 12);
    let mut operands = Operands::new(&case, BitWidth::B4, codes_of(BitWidth::B8, 0.0), None, device);
    let sums = reference::int_conv2d(&operands.host_codes, &operands.host_weights, &operands.shape);
    let scales = float(&[7.0, 0.25, 0.5], device).slice(s![1..3]).unsqueeze_dim::<2>(1).expand([2, 6]);
    let (weights, scales) = (&operands.host_weights, scales.reshape([12]));
    operands.weight = int_weight(weights, &case.weight, 1, BitWidth::B4, case.granularity, scales);
    let product = operands.product(&case, None, &[-3.0; 12], Activation::Relu);
    let y = product.run(&operands.codes, None, Wanted::Values).expect("fits").values.expect("wanted");
    let y = y * 2.0 + 1.0;
    let value = |(i, &sum): (usize, &i32)| {
        (sum as f32 * if i % 12 < 6 { 0.25 } else { 0.5 } - 3.0).max(0.0) * 2.0 + 1.0
    };
    let want: Vec<f32> = sums.iter().enumerate().map(value).collect();
    assert_eq!(read(y.clone()), want);
    // A second layer, from the transposed result of the first.
    let x = y.swap_dims(1, 3);
    let to = CodeQuantizer { bits: BitWidth::B8, scale: 8.0, zero_point: 0.0 };
    let got = Codes::quantize(x, false, to).expect("codes");
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
        ("int_activations", int_activations),
        ("int_zero_points", int_zero_points),
        ("int_empty", int_empty),
        ("int_quantize_codes", int_quantize_codes),
        ("int_switch_weight", int_switch_weight),
        ("int_weight_only", int_weight_only),
        ("int_fused", int_fused),
    ]);
}
