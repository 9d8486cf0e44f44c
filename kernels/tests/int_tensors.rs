//! The integer operations over Burn tensors on `flex`: parts that fit together, and typed errors where they do not.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use dr_kernels::layout::{self, ScaleLayout};
use dr_kernels::{
    Activation, CodeQuantizer, Codes, Conv2dOptions, IntProduct, IntWeight, KernelError, PackedTensor,
    Wanted, WeightOnlyProduct, quantize_pack,
};
use dr_precision::{BitWidth, Granularity, QuantSpec, semantics};
use proptest::prelude::*;
use std::num::NonZeroUsize;

fn device() -> Device {
    Device::flex()
}

fn values<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    let values: Vec<f32> =
        (0..shape.iter().product()).map(|i: usize| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
    Tensor::from_data(TensorData::new(values, shape), &device())
}

fn ones(len: usize) -> Tensor<1> {
    Tensor::ones([len], &device())
}

fn packed<const D: usize>(shape: [usize; D], bits: BitWidth) -> PackedTensor {
    quantize_pack(values(shape), ones(shape[0]) * 0.01, None, QuantSpec::weights(bits)).unwrap()
}

fn weight<const D: usize>(shape: [usize; D], bits: BitWidth) -> IntWeight {
    IntWeight::new(&packed(shape, bits), 1).unwrap()
}

fn input(bits: BitWidth) -> CodeQuantizer {
    CodeQuantizer { bits, scale: 0.02, zero_point: 0.0 }
}

fn product(weight: &IntWeight, options: Conv2dOptions, bits: BitWidth) -> Result<IntProduct, KernelError> {
    let outputs = weight.layout().outputs();
    IntProduct::new(weight, options, input(bits), &vec![1.0; outputs], &vec![0.0; outputs], Activation::None)
}

#[test]
fn codes_survive_preparing_and_switching() {
    for stored in BitWidth::ALL {
        let prepared = weight([19, 5, 3, 3], stored);
        let codes = prepared.codes().unwrap();
        let expected: Vec<i32> = values([19, 5, 3, 3])
            .into_data()
            .iter::<f32>()
            .map(|w| semantics::quantize(w, 0.01, stored))
            .collect();
        assert_eq!(codes, expected);
        for active in BitWidth::ALL.into_iter().filter(|&active| active <= stored) {
            let switched = prepared.at(active, ones(19)).unwrap();
            let expected: Vec<i32> = codes.iter().map(|&c| semantics::switch(c, stored, active)).collect();
            assert_eq!(switched.codes().unwrap(), expected);
            assert_eq!(switched.bytes() * 8, switched.layout().elements() * active.bits() as usize);
            // What was packed after the switch is the same.
            let narrowed = dr_kernels::switch(&packed([19, 5, 3, 3], stored), active, ones(19)).unwrap();
            assert_eq!(IntWeight::new(&narrowed, 1).unwrap().codes().unwrap(), expected);
        }
    }
}

#[test]
fn a_convolution_equals_that_of_the_values_of_its_codes() {
    let bits = BitWidth::B6;
    let options = Conv2dOptions { stride: [2, 1], padding: [1, 1], dilation: [1, 1] };
    let prepared = weight([9, 5, 3, 3], BitWidth::B4);
    let product = product(&prepared, options, bits).unwrap();
    let codes = product.quantize(values([2, 5, 7, 6]).abs(), false).unwrap();
    let out = product.run(&codes, None, Wanted::Values).unwrap().values.unwrap();
    // The same in floats.
    let x = values([2, 5, 7, 6]).abs().into_data();
    let x = x.iter::<f32>().map(|x| semantics::quantize_activation(x, 0.02, 0.0, bits) as f32 * 0.02);
    let x = Tensor::<4>::from_data(TensorData::new(x.collect::<Vec<_>>(), [2, 5, 7, 6]), &device());
    let w: Vec<f32> = prepared.codes().unwrap().into_iter().map(|code| code as f32 * 0.01).collect();
    let w = Tensor::<4>::from_data(TensorData::new(w, [9, 5, 3, 3]), &device());
    let float = burn::tensor::ops::ConvOptions::new([2, 1], [1, 1], [1, 1], 1);
    let expected = burn::tensor::module::conv2d(x, w, None, float).permute([0, 2, 3, 1]);
    let close = burn::tensor::Tolerance::absolute(1e-5);
    out.clone().into_data().assert_approx_eq::<f32>(&expected.into_data(), close);
    let next = product.run(&codes, None, Wanted::Codes(input(bits))).unwrap().codes.unwrap();
    let again = Codes::quantize(out, true, input(bits)).unwrap();
    next.words().clone().into_data().assert_eq(&again.words().clone().into_data(), true);
}

/// A scale for the whole tensor, and gains: as a scale for each output.
#[test]
fn a_scale_of_the_tensor_is_that_of_each_output() {
    let spec = QuantSpec::weights(BitWidth::B4).with_granularity(Granularity::Tensor);
    let tensor = quantize_pack(values([6, 4]), ones(1) * 0.25, None, spec).unwrap();
    let tensor = IntWeight::new(&tensor, 1).unwrap().at(BitWidth::B4, ones(1) * 0.5).unwrap();
    let channel = quantize_pack(values([6, 4]), ones(6) * 0.25, None, QuantSpec::weights(BitWidth::B4));
    let channel = IntWeight::new(&channel.unwrap(), 1).unwrap().at(BitWidth::B4, ones(6) * 0.5).unwrap();
    let gain = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    let [a, b] = [tensor, channel].map(|weight| {
        let options = Conv2dOptions::default();
        let quantizer = CodeQuantizer { bits: BitWidth::B8, scale: 0.02, zero_point: -1.0 };
        let product =
            IntProduct::new(&weight, options, quantizer, &gain, &[0.5; 6], Activation::Relu).unwrap();
        let codes = product.quantize(values([3, 1, 1, 4]), true).unwrap();
        product.run(&codes, None, Wanted::Values).unwrap().values.unwrap().into_data()
    });
    a.assert_eq(&b, true);
}

#[test]
fn no_images_no_results() {
    let product =
        product(&weight([5, 3, 3, 3], BitWidth::B8), Conv2dOptions::default(), BitWidth::B8).unwrap();
    let codes = product.quantize(Tensor::zeros([0, 3, 4, 4], &device()), false).unwrap();
    let results = product.run(&codes, None, Wanted::Both(input(BitWidth::B4))).unwrap();
    assert_eq!(results.values.unwrap().dims(), [0, 2, 2, 5]);
    assert_eq!(results.codes.unwrap().dims(), [0, 2, 2, 5]);
}

fn message<T>(result: Result<T, KernelError>) -> String {
    result.err().expect("an error").to_string()
}

#[test]
fn errors_name_what_does_not_fit() {
    let options = Conv2dOptions::default();
    let prepared = weight([6, 4, 3, 3], BitWidth::B8);
    let of = |gain: &[f32], shift: &[f32]| {
        IntProduct::new(&prepared, options, input(BitWidth::B8), gain, shift, Activation::None)
    };
    assert_eq!(message(of(&[1.0; 5], &[0.0; 6])), "gain: [5], expected [6]");
    assert_eq!(message(of(&[1.0; 6], &[0.0; 7])), "shift: [7], expected [6]");
    let stuck = Conv2dOptions { stride: [0, 1], ..options };
    assert_eq!(message(product(&prepared, stuck, BitWidth::B8)), "stride is 0: expected at least 1");
    let product = product(&prepared, options, BitWidth::B8).unwrap();
    let run = |codes: &Codes, residual| product.run(codes, residual, Wanted::Values);
    let codes = product.quantize(values([1, 3, 5, 5]), false).unwrap();
    assert_eq!(message(run(&codes, None)), "input channels: [3], expected [4]");
    let codes = product.quantize(values([1, 4, 5, 5]), false).unwrap();
    let residual = Some(values([1, 5, 5, 6]));
    assert_eq!(message(run(&codes, residual)), "residual: [1, 5, 5, 6], expected [1, 3, 3, 6]");
    let residual = Some(values([1, 3, 3, 6]).cast(DType::F16));
    assert_eq!(message(run(&codes, residual)), "residual: data type F16, expected F32");
    let other = Codes::quantize(values([1, 4, 5, 5]), false, input(BitWidth::B4)).unwrap();
    assert_eq!(
        message(run(&other, None)),
        "codes of 4 bits, scale 0.02, zero point 0: expected 8 bits, scale 0.02, zero point 0"
    );
    assert!(matches!(
        IntWeight::new(&packed([6, 4, 3], BitWidth::B8), 1),
        Err(KernelError::WeightShape { .. })
    ));
    assert!(matches!(IntWeight::new(&packed([6, 4], BitWidth::B8), 4), Err(KernelError::WeightShape { .. })));
    assert!(matches!(weight([6, 4], BitWidth::B2).at(BitWidth::B4, ones(6)), Err(KernelError::Precision(_))));
    assert!(matches!(prepared.at(BitWidth::B4, ones(5)), Err(KernelError::ScaleCount { .. })));
    let halves = ones(6).cast(DType::F16);
    assert_eq!(message(prepared.at(BitWidth::B4, halves)), "scale: data type F16, expected F32");
    let long = PackedTensor::new(
        Tensor::zeros([65_824 / 32 * 8], (&device(), DType::U32)),
        ones(1),
        None,
        &[1, 65_800],
        QuantSpec::weights(BitWidth::B8),
    )
    .unwrap();
    assert!(matches!(IntWeight::new(&long, 1), Err(KernelError::SumOverflow { largest: 65_793, .. })));
    let linear = weight([6, 4], BitWidth::B4);
    let product = WeightOnlyProduct::new(&linear, None).unwrap();
    assert_eq!(message(product.run(values([2, 5]))), "inputs: [5], expected [4]");
    assert_eq!(message(WeightOnlyProduct::new(&linear, Some(&[0.0; 5]))), "bias: [5], expected [6]");
    let convolution = WeightOnlyProduct::new(&prepared, None);
    assert_eq!(message(convolution), "taps of the weight and its groups: [9, 1], expected [1, 1]");
}

/// A size that may be of any order of magnitude.
fn any_size() -> impl Strategy<Value = usize> {
    prop_oneof![0usize..9, Just(1 << 16), Just(1 << 32), Just(usize::MAX / 2), Just(usize::MAX)]
}

fn granularity() -> impl Strategy<Value = Granularity> {
    let group = any_size().prop_filter_map("not zero", |n| NonZeroUsize::new(n).map(Granularity::Group));
    prop_oneof![Just(Granularity::Tensor), Just(Granularity::Channel), group]
}

fn bit_width() -> impl Strategy<Value = BitWidth> {
    prop::sample::select(BitWidth::ALL.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Whatever shapes, formats and numbers are given: a tensor of just that shape, or an error.
    #[test]
    fn packed_tensors_fit_or_are_refused(
        shape in prop::collection::vec(any_size(), 0..5), words in 0usize..40, scales in 0usize..9,
        zero_points in prop::option::of(0usize..9), bits in bit_width(), granularity in granularity(),
        unsigned: bool, dtype in prop::sample::select(vec![DType::U32, DType::I32]),
    ) {
        let spec = if unsigned { QuantSpec::activations(bits) } else { QuantSpec::weights(bits) };
        let words = Tensor::<1, Int>::zeros([words], (&device(), dtype));
        let spec = spec.with_granularity(granularity);
        let packed = PackedTensor::new(words, ones(scales), zero_points.map(ones), &shape, spec);
        if let Ok(packed) = packed {
            prop_assert_eq!((packed.shape(), dtype), (&shape[..], DType::U32));
            let elements: usize = shape.iter().product();
            if let Ok(values) = dr_kernels::dequantize::<2>(&packed) {
                prop_assert_eq!(values.shape().num_elements(), elements);
            }
        }
    }

    /// Whatever a product is made of: one that gives results of the sizes it says, or an error.
    #[test]
    fn products_fit_or_are_refused(
        shape in [1usize..7, 1usize..7, 1usize..4, 1usize..4], groups in 0usize..4, inputs in [0usize..3, 0usize..9, 0usize..9, 0usize..13],
        stride in [any_size(), any_size()], padding in [any_size(), any_size()], dilation in [any_size(), any_size()],
        gains in 0usize..7, shifts in 0usize..7, run in prop::option::of(1usize..20), residual in prop::option::of([0usize..3, 0usize..9, 0usize..9, 0usize..7]),
        bits in bit_width(), exact: bool,
    ) {
        let granularity = run.and_then(NonZeroUsize::new).map_or(Granularity::Channel, Granularity::Group);
        let spec = QuantSpec::weights(bits).with_granularity(granularity);
        let runs = run.map_or(1, |run| shape[1..].iter().product::<usize>().div_ceil(run));
        let packed = quantize_pack(values(shape), ones(shape[0] * runs), None, spec).unwrap();
        let Ok(weight) = IntWeight::new(&packed, groups) else { return Ok(()) };
        let options = Conv2dOptions { stride, padding, dilation };
        let (gains, shifts) = if exact { (shape[0], shape[0]) } else { (gains, shifts) };
        let (gain, shift) = (vec![1.0; gains], vec![0.0; shifts]);
        let quantizer = CodeQuantizer { bits, scale: 0.1, zero_point: -0.5 };
        let product = IntProduct::new(&weight, options, quantizer, &gain, &shift, Activation::Relu);
        let Ok(product) = product else { return Ok(()) };
        prop_assert_eq!([gains, shifts], [shape[0]; 2]);
        // Outputs of huge padding are refused, or too large for a test.
        let Ok(dims) = product.output(inputs) else { return Ok(()) };
        prop_assume!(dims.iter().product::<usize>() < 1 << 16);
        let codes = product.quantize(Tensor::zeros(inputs, &device()), true).unwrap();
        let residual_fits = residual.is_none_or(|residual| residual == dims);
        let residual = residual.map(|dims| Tensor::zeros(dims, &device()));
        match product.run(&codes, residual, Wanted::Both(quantizer)) {
            Ok(results) => {
                prop_assert!(residual_fits);
                prop_assert_eq!(results.values.unwrap().dims(), dims);
                prop_assert_eq!(results.codes.unwrap().dims(), dims);
            }
            Err(error) => prop_assert!(!residual_fits, "{}", error),
        }
    }
}

/// Any number, or none.
fn any_float() -> impl Strategy<Value = f32> {
    prop::sample::select(vec![1.0, 0.1, 0.0, -1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX])
}

/// The right number, or another one.
fn count(right: usize, other: Option<usize>) -> usize {
    other.unwrap_or(right)
}

fn other() -> impl Strategy<Value = Option<usize>> {
    prop::option::weighted(0.2, 0usize..20)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Whatever scales are there: values, gradients and codes of the tensor's sizes, or an error.
    #[test]
    fn quantized_tensors_fit_or_are_refused(
        shape in [0usize..5, 0usize..5, 0usize..4], others in [other(), other()], granularity in granularity(),
        [stored, active] in [bit_width(), bit_width()], unsigned: bool, with_zero: bool, value in any_float(), scale in any_float(),
    ) {
        let device = device().autodiff();
        let full = |count: usize| Tensor::<1>::full([count], scale, &device);
        let x = Tensor::<3>::full(shape, value, &device).require_grad();
        let layouts = [ScaleLayout::weights(&shape, granularity), ScaleLayout::activations(&shape, granularity)];
        let [of_weight, of_activation] = layouts.map(|layout| layout.unwrap().scales());
        let check = |result: Result<Tensor<3>, KernelError>, fits: bool| {
            prop_assert_eq!(result.is_ok(), fits);
            let Ok(result) = result else { return Ok(()) };
            prop_assert_eq!(result.dims(), shape);
            if !shape.contains(&0) {
                let gradients = result.sum().backward();
                prop_assert!(x.grad(&gradients).is_none_or(|gradient| gradient.dims() == shape));
            }
            Ok(())
        };
        let [first, second] = others.map(|other| count(of_weight, other));
        let fits = [first, second] == [of_weight; 2];
        if let Ok(quantizer) = dr_kernels::WeightQuantizer::new(stored, active) {
            let quantizer = quantizer.with_granularity(granularity);
            check(dr_kernels::fake_quantize_weight(x.clone(), full(first), full(second), &quantizer), fits)?;
        }
        let found = dr_kernels::search_scales(x.clone(), &[stored, active], granularity);
        prop_assert_eq!(found.is_ok(), stored > active);
        prop_assert!(found.into_iter().flatten().all(|scales| scales.dims() == [of_weight]));

        let [first, second] = others.map(|other| count(of_activation, other));
        let quantizer = dr_kernels::ActivationQuantizer::new(active).with_granularity(granularity);
        let fits = [first, second] == [of_activation; 2];
        check(dr_kernels::fake_quantize_activation(x.clone(), full(first), full(second), &quantizer), fits)?;

        let spec = if unsigned { QuantSpec::activations(stored) } else { QuantSpec::weights(stored) };
        let right = if unsigned { of_activation } else { of_weight };
        let [first, second] = others.map(|other| count(right, other));
        let zero = with_zero.then(|| full(second));
        let packed = quantize_pack(x, full(first), zero, spec.with_granularity(granularity));
        prop_assert_eq!(packed.is_ok(), first == right && with_zero == unsigned && (!with_zero || second == right));
        let Ok(packed) = packed else { return Ok(()) };
        prop_assert_eq!(dr_kernels::dequantize::<3>(&packed).unwrap().dims(), shape);
        let refused = matches!(dr_kernels::dequantize::<2>(&packed), Err(KernelError::Rank { .. }));
        prop_assert!(refused);
        let switched = dr_kernels::switch(&packed, active, full(second));
        prop_assert_eq!(switched.is_ok(), !unsigned && active <= stored && second == right);
        if let Ok(switched) = switched {
            prop_assert_eq!(dr_kernels::dequantize::<3>(&switched).unwrap().dims(), shape);
        }
    }

    /// Whatever weights and inputs there are: as many codes and results as they have, or an error.
    #[test]
    fn weights_and_inputs_fit_or_are_refused(
        shape in [0usize..6, 0usize..40], convolution in [0usize..4, 0usize..4], linear: bool, groups in any_size(),
        [stored, active] in [bit_width(), bit_width()], granularity in granularity(), [scales, biases] in [other(), other()],
        rows in 0usize..4, inputs in other(), dims in [0usize..3, 0usize..7, 0usize..4, 0usize..4], channels_last: bool,
        scale in any_float(), zero_point in any_float(),
    ) {
        let quantizer = CodeQuantizer { bits: active, scale, zero_point };
        let codes = Codes::quantize(Tensor::full(dims, scale, &device()), channels_last, quantizer).unwrap();
        let [batch, second, third, last] = dims;
        let expected = if channels_last { dims } else { [batch, third, last, second] };
        prop_assert_eq!(codes.dims(), expected);
        prop_assert_eq!(codes.words().dims(), [expected[..3].iter().product::<usize>() * expected[3].div_ceil(4)]);

        let spec = QuantSpec::weights(stored).with_granularity(granularity);
        let [outputs, features] = shape;
        let shape = if linear { vec![outputs, features] } else { [&shape[..], &convolution].concat() };
        let right = ScaleLayout::weights(&shape, granularity).unwrap().scales();
        let words = layout::packed_words(shape.iter().product(), stored);
        let words = Tensor::<1, Int>::zeros([words], (&device(), DType::U32));
        let packed = PackedTensor::new(words, ones(right), None, &shape, spec).unwrap();
        let Ok(weight) = IntWeight::new(&packed, groups) else { return Ok(()) };
        prop_assert_eq!(weight.codes().unwrap().len(), shape.iter().product::<usize>());
        let scales = count(right, scales);
        let switched = weight.at(active, ones(scales));
        prop_assert_eq!(switched.is_ok(), active <= stored && scales == right);
        let bias = vec![scale; count(outputs, biases)];
        let Ok(product) = WeightOnlyProduct::new(&weight, Some(&bias)) else { return Ok(()) };
        let inputs = count(features, inputs);
        match product.run(Tensor::full([rows, inputs], zero_point, &device())) {
            Ok(out) => prop_assert!(inputs == features && out.dims() == [rows, outputs]),
            Err(_) => prop_assert_ne!(inputs, features),
        }
    }
}

/// A tensor without elements has sizes all the same, and some of them have a product.
#[test]
fn empty_tensors_of_huge_sizes_are_refused() {
    let (huge, words) = (usize::MAX / 2, || Tensor::<1, Int>::zeros([0], (&device(), DType::U32)));
    for shape in [[0, huge, huge], [huge, 0, huge], [huge, huge, 0]] {
        for (spec, zero_point) in
            [(QuantSpec::weights(BitWidth::B8), None), (QuantSpec::activations(BitWidth::B8), Some(ones(1)))]
        {
            let refused = PackedTensor::new(words(), ones(1), zero_point, &shape, spec);
            assert!(matches!(refused, Err(KernelError::TooLarge { .. })), "{shape:?}");
        }
    }
}

#[test]
fn weight_only_is_the_product_with_the_dequantized_weight() {
    let spec =
        QuantSpec::weights(BitWidth::B4).with_granularity(Granularity::Group(NonZeroUsize::new(32).unwrap()));
    let scale = ones(2 * 7) * 0.1;
    let weight = quantize_pack(values([7, 40]), scale, None, spec).unwrap();
    let x = values([3, 40]);
    let expected = x.clone().matmul(dr_kernels::dequantize::<2>(&weight).unwrap().transpose());
    let prepared = IntWeight::new(&weight, 1).unwrap();
    let bias = [1.0, -2.0, 0.0, 0.5, 0.25, 3.0, 4.0];
    let expected = expected + Tensor::<1>::from_floats(bias, &device()).unsqueeze();
    let out = WeightOnlyProduct::new(&prepared, Some(&bias)).unwrap().run(x).unwrap();
    out.into_data().assert_approx_eq::<f32>(&expected.into_data(), burn::tensor::Tolerance::absolute(1e-4));
}

/// What a convolution quantizes as it reads, in floats or in integers, beside the operations one after the other.
#[test]
fn convolutions_that_quantize_have_the_values_and_gradients_of_two_operations() {
    let device = device().autodiff();
    let on_device = |tensor: Tensor<4>| Tensor::<4>::from_data(tensor.into_data(), &device);
    let tensor = |values: &[f32]| Tensor::<1>::from_data(TensorData::from(values), &device);
    for (zero, activations, weights) in
        [(0.0, BitWidth::B8, BitWidth::B4), (-0.3, BitWidth::B4, BitWidth::B8)]
    {
        let weight_scale = Tensor::<1>::from_data((ones(6) * 0.05).into_data(), &device);
        // `None`: two operations; else whether in integers.
        let run = |integers: Option<bool>| {
            let x = on_device(values([3, 9, 8, 9]).abs()).require_grad();
            let w = on_device(values([6, 9, 3, 3])).require_grad();
            let (scale, zero_point) = (tensor(&[0.02]).require_grad(), tensor(&[zero]).require_grad());
            let quantizer = dr_kernels::WeightQuantizer::new(weights, weights).unwrap();
            let w_hat = dr_kernels::fake_quantize_weight(
                w.clone(),
                weight_scale.clone(),
                weight_scale.clone(),
                &quantizer,
            );
            let (x_in, w_hat, s, z) = (x.clone(), w_hat.unwrap(), scale.clone(), zero_point.clone());
            let y = match integers {
                Some(integers) => {
                    let codes = integers.then(|| (weight_scale.clone(), weights));
                    let quantizer =
                        dr_kernels::ConvQuantizer { scale: s, zero_point: z, bits: activations, codes };
                    dr_kernels::conv2d_quantized(x_in, w_hat, quantizer, 2, 1).unwrap()
                }
                None => {
                    let quantizer = dr_kernels::ActivationQuantizer::new(activations);
                    let x_hat = dr_kernels::fake_quantize_activation(x_in, s, z, &quantizer);
                    dr_kernels::conv2d_channels_last(x_hat.unwrap(), w_hat, 2, 1)
                }
            };
            let grads = (y.clone() * y.clone()).sum().backward();
            let of_scales = [scale, zero_point].map(|scale| scale.grad(&grads).unwrap().into_data());
            let of_tensors = [x.grad(&grads).unwrap(), w.grad(&grads).unwrap()].map(Tensor::into_data);
            [vec![y.inner().into_data()], of_tensors.to_vec(), of_scales.to_vec()].concat()
        };
        let two = run(None);
        for (one, two) in run(Some(false)).iter().zip(&two) {
            one.assert_approx_eq::<f32>(two, burn::tensor::Tolerance::rel_abs(1e-6, 1e-5));
        }
        for (integers, floats) in run(Some(true)).iter().zip(&two) {
            integers.assert_approx_eq::<f32>(floats, burn::tensor::Tolerance::rel_abs(1e-4, 1e-3));
        }
    }
}

#[test]
fn a_convolution_with_two_scales_is_refused() {
    let quantizer =
        dr_kernels::ConvQuantizer { scale: ones(2), zero_point: ones(1), bits: BitWidth::B8, codes: None };
    let error = dr_kernels::conv2d_quantized(values([1, 4, 4, 3]), values([5, 3, 3, 3]), quantizer, 1, 1);
    assert!(matches!(error, Err(KernelError::ScaleCount { what: "scale", found: 2, expected: 1, .. })));
}

/// With gradients, of convolutions that have a bias and a mean behind them.
#[test]
fn convolutions_for_training_are_burns() {
    let device = device().autodiff();
    let on_device = |tensor: Tensor<4>| Tensor::<4>::from_data(tensor.into_data(), &device).require_grad();
    for (channels, groups, kernel, stride) in [
        ([5, 6], 1, 3, 1),
        ([8, 16], 1, 3, 2),
        ([16, 8], 1, 1, 2),
        ([20, 20], 20, 3, 1),
        ([20, 20], 20, 3, 2),
    ] {
        let [inputs, outputs] = channels;
        let run = |ours: bool| {
            let x = on_device(values([3, inputs, 9, 8]));
            let w = on_device(values([outputs, inputs / groups, kernel, kernel]));
            // Not such that sums are zero, where a ReLU has two gradients.
            let bias = on_device(values([1, outputs, 1, 1]) * 0.37 + 0.123);
            let padding = kernel / 2;
            let y = match ours {
                true => dr_kernels::conv2d(x.clone(), w.clone(), stride, padding),
                false => {
                    let options =
                        burn::tensor::ops::ConvOptions::new([stride; 2], [padding; 2], [1, 1], groups);
                    burn::tensor::module::conv2d(x.clone(), w.clone(), None, options)
                }
            };
            let y = burn::tensor::activation::relu(y + bias.clone());
            let mean = y.clone().flatten::<3>(2, 3).mean_dim(2);
            let grads = (mean.clone() * mean).sum().backward();
            [y.inner(), x.grad(&grads).unwrap(), w.grad(&grads).unwrap(), bias.grad(&grads).unwrap()]
                .map(Tensor::into_data)
        };
        for (ours, burns) in run(true).iter().zip(run(false)) {
            ours.assert_approx_eq::<f32>(&burns, burn::tensor::Tolerance::rel_abs(1e-4, 1e-4));
        }
    }
}
