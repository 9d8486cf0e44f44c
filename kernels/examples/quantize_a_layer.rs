//! `dr-kernels` in a Burn project of your own: quantize a layer's weights, train them at 2 bits, store and switch them.
//!
//! ```sh
//! cargo run --release -p dr-kernels --example quantize_a_layer
//! ```

use burn::tensor::{Device, Distribution, Tensor};
use dr_kernels::{
    ScaleGradient, WeightQuantizer, dequantize, fake_quantize_weight, quantize_pack, search_scales, switch,
};
use dr_precision::{BitWidth, Granularity, QuantSpec};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::flex().autodiff();
    device.seed(1);
    let weight = Tensor::<2>::random([64, 256], Distribution::Normal(0.0, 0.05), &device);

    // Scales for 8 and for 2 bits, one for each of the 64 output channels.
    let widths = [BitWidth::B8, BitWidth::B2];
    let scales = search_scales(weight.clone(), &widths, Granularity::Channel)?;
    let [s8, s2] = [0, 1].map(|i| Tensor::<1>::from_inner(scales[i].clone()).require_grad());

    // In training: both roundings in one pass, with straight-through gradients for weight and scales.
    let weight = weight.require_grad();
    let quantizer = WeightQuantizer::new(BitWidth::B8, BitWidth::B2)?.with_gradient(ScaleGradient::Exact);
    let two_bit = fake_quantize_weight(weight.clone(), s8.clone(), s2.clone(), &quantizer)?;
    let loss = (two_bit - weight.clone()).powi_scalar(2).mean();
    let gradients = loss.backward();
    println!("squared error at 2 bits: {:.2e}", loss.into_scalar::<f32>());
    println!(
        "gradient of the first 2-bit scale: {:.2e}",
        s2.grad(&gradients).unwrap().narrow(0, 0, 1).into_scalar::<f32>()
    );

    // After training: 8-bit codes and a scale vector for each width are the whole layer; switching is a shift.
    let stored = quantize_pack(weight.clone(), s8, None, QuantSpec::weights(BitWidth::B8))?;
    let switched = switch(&stored, BitWidth::B2, s2)?;
    let [bytes8, bytes2] = [stored.words(), switched.words()].map(|words| words.dims()[0] * 4);
    println!("{bytes8} bytes at 8 bits, {bytes2} at 2");
    let error = (dequantize::<2>(&switched)? - weight.inner()).powi_scalar(2).mean();
    println!("squared error of the switched codes: {:.2e}", error.into_scalar::<f32>());
    Ok(())
}
