//! The integer operations over Burn tensors on `flex`: parts that fit together, and typed errors where they do not.

use burn::tensor::{Device, Tensor, TensorData};
use dr_kernels::integer::Activation;
use dr_kernels::{
    IntConv2dOptions, IntEpilogue, IntWeight, KernelError, PackedTensor, int_conv2d, int_conv2d_codes,
    quantize_codes, quantize_pack, weight_only_linear,
};
use dr_precision::{BitWidth, Granularity, QuantSpec, semantics};
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

fn epilogue(outputs: usize) -> IntEpilogue {
    IntEpilogue {
        multiplier: ones(outputs),
        addend: Tensor::zeros([outputs], &device()),
        activation: Activation::None,
    }
}

fn quantizer() -> Tensor<1> {
    Tensor::from_floats([0.02, 0.0], &device())
}

#[test]
fn codes_survive_preparing_and_switching() {
    for stored in BitWidth::ALL {
        let weight = packed([19, 5, 3, 3], stored);
        let prepared = IntWeight::new(&weight, 1).unwrap();
        let codes = prepared.codes();
        let expected: Vec<i32> = values([19, 5, 3, 3])
            .into_data()
            .iter::<f32>()
            .map(|w| semantics::quantize(w, 0.01, stored))
            .collect();
        assert_eq!(codes, expected);
        for active in BitWidth::ALL.into_iter().filter(|&active| active <= stored) {
            let switched = prepared.switch(active).unwrap();
            let expected: Vec<i32> = codes.iter().map(|&c| semantics::switch(c, stored, active)).collect();
            assert_eq!(switched.codes(), expected);
            assert_eq!(switched.bytes() * 8, switched.layout().elements() * active.bits() as usize);
        }
    }
}

#[test]
fn a_convolution_equals_that_of_the_values_of_its_codes() {
    let (x, bits) = (values([2, 5, 7, 6]).abs(), BitWidth::B6);
    let weight = packed([9, 5, 3, 3], BitWidth::B4);
    let codes = quantize_codes(x, false, quantizer(), bits).unwrap();
    let options = IntConv2dOptions { stride: [2, 1], padding: [1, 1], dilation: [1, 1] };
    let prepared = IntWeight::new(&weight, 1).unwrap();
    let out = int_conv2d(&codes, &prepared, &options, &epilogue(9), None).unwrap();
    // The same in floats, which hold these sums exactly.
    let x = values([2, 5, 7, 6]).abs().into_data();
    let x = x.iter::<f32>().map(|x| semantics::quantize_activation(x, 0.02, 0.0, bits) as f32);
    let x = Tensor::<4>::from_data(TensorData::new(x.collect::<Vec<_>>(), [2, 5, 7, 6]), &device());
    let w: Vec<f32> = prepared.codes().into_iter().map(|code| code as f32).collect();
    let w = Tensor::<4>::from_data(TensorData::new(w, [9, 5, 3, 3]), &device());
    let float = burn::tensor::ops::ConvOptions::new([2, 1], [1, 1], [1, 1], 1);
    let expected = burn::tensor::module::conv2d(x, w, None, float).permute([0, 2, 3, 1]);
    out.clone().into_data().assert_eq(&expected.into_data(), true);
    let next = int_conv2d_codes(&codes, &prepared, &options, &epilogue(9), None, quantizer(), bits).unwrap();
    let again = quantize_codes(out, true, quantizer(), bits).unwrap();
    next.words().clone().into_data().assert_eq(&again.words().clone().into_data(), true);
}

#[test]
fn no_images_no_results() {
    let codes = quantize_codes(Tensor::<4>::zeros([0, 3, 4, 4], &device()), false, quantizer(), BitWidth::B8)
        .unwrap();
    let weight = IntWeight::new(&packed([5, 3, 3, 3], BitWidth::B8), 1).unwrap();
    let out = int_conv2d(&codes, &weight, &IntConv2dOptions::default(), &epilogue(5), None).unwrap();
    assert_eq!(out.dims(), [0, 2, 2, 5]);
}

#[test]
fn errors_name_what_does_not_fit() {
    let options = IntConv2dOptions::default();
    let codes = quantize_codes(values([1, 4, 5, 5]), false, quantizer(), BitWidth::B8).unwrap();
    let weight = IntWeight::new(&packed([6, 4, 3, 3], BitWidth::B8), 1).unwrap();
    let message = |error: Option<KernelError>| error.expect("an error").to_string();
    let err = int_conv2d(&codes, &weight, &options, &epilogue(5), None).err();
    assert_eq!(message(err), "multiplier: [5], expected [6]");
    let other = IntWeight::new(&packed([6, 3, 3, 3], BitWidth::B8), 1).unwrap();
    let err = int_conv2d(&codes, &other, &options, &epilogue(6), None).err();
    assert_eq!(message(err), "input channels: [4], expected [3]");
    let stuck = IntConv2dOptions { stride: [0, 1], ..options };
    let err = int_conv2d(&codes, &weight, &stuck, &epilogue(6), None).err();
    assert_eq!(message(err), "stride is 0: expected at least 1");
    let residual = Some(values([1, 5, 5, 6]));
    let err = int_conv2d(&codes, &weight, &options, &epilogue(6), residual).err();
    assert_eq!(message(err), "residual: [1, 5, 5, 6], expected [1, 3, 3, 6]");
    assert!(matches!(
        IntWeight::new(&packed([6, 4, 3], BitWidth::B8), 1),
        Err(KernelError::WeightShape { .. })
    ));
    assert!(matches!(IntWeight::new(&packed([6, 4], BitWidth::B8), 4), Err(KernelError::WeightShape { .. })));
    assert!(matches!(
        weight.switch(BitWidth::B2).and_then(|low| low.switch(BitWidth::B4)),
        Err(KernelError::Precision(_))
    ));
    let long = PackedTensor::new(
        Tensor::zeros([65_824 / 32 * 8], (&device(), burn::tensor::DType::U32)),
        ones(1),
        None,
        &[1, 65_800],
        QuantSpec::weights(BitWidth::B8),
    )
    .unwrap();
    assert!(matches!(IntWeight::new(&long, 1), Err(KernelError::SumOverflow { largest: 65_793, .. })));
    let linear = IntWeight::new(&packed([6, 4], BitWidth::B4), 1).unwrap();
    let err = weight_only_linear(values([2, 5]), &linear, ones(6)).err();
    assert_eq!(message(err), "inputs: [5], expected [4]");
    let err = weight_only_linear(values([2, 4]), &linear, ones(5)).err();
    assert_eq!(message(err), "scale: [5], expected [6]");
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
    let out = weight_only_linear(x, &prepared, ones(2 * 7) * 0.1).unwrap();
    out.into_data().assert_approx_eq::<f32>(&expected.into_data(), burn::tensor::Tolerance::absolute(1e-4));
}

#[test]
fn training_in_integers_has_the_values_and_gradients_of_floats() {
    let device = device().autodiff();
    let on_device = |tensor: Tensor<4>| Tensor::<4>::from_data(tensor.into_data(), &device);
    let tensor = |values: &[f32]| Tensor::<1>::from_data(TensorData::from(values), &device);
    for (zero, activations, weights) in
        [(0.0, BitWidth::B8, BitWidth::B4), (-0.3, BitWidth::B4, BitWidth::B8)]
    {
        let (activation, scale) = (tensor(&[0.02, zero]), ones(6) * 0.05);
        let scale = Tensor::<1>::from_data(scale.into_data(), &device);
        let run = |integers: bool| {
            let x = on_device(values([3, 9, 9, 8]).abs()).require_grad();
            let w = on_device(values([6, 9, 3, 3])).require_grad();
            let quantizer = dr_kernels::ActivationQuantizer::new(activations);
            let x_hat =
                dr_kernels::fake_quantize_activation(x.clone(), tensor(&[0.02]), tensor(&[zero]), &quantizer);
            let quantizer = dr_kernels::WeightQuantizer::new(weights, weights).unwrap();
            let w_hat = dr_kernels::fake_quantize_weight(w.clone(), scale.clone(), scale.clone(), &quantizer);
            let (x_hat, w_hat) = (x_hat.unwrap(), w_hat.unwrap());
            let y = match integers {
                true => {
                    let widths = [weights, activations];
                    dr_kernels::conv2d_of_codes(x_hat, w_hat, activation.clone(), scale.clone(), widths, 2, 1)
                }
                false => dr_kernels::conv2d(x_hat, w_hat, 2, 1),
            };
            let grads = (y.clone() * y.clone()).sum().backward();
            [y.inner(), x.grad(&grads).unwrap(), w.grad(&grads).unwrap()].map(Tensor::into_data)
        };
        for (integers, floats) in run(true).iter().zip(run(false)) {
            integers.assert_approx_eq::<f32>(&floats, burn::tensor::Tolerance::rel_abs(1e-4, 1e-3));
        }
    }
}
