//! Every compiled backend against the scalar reference, through the public functions. One suite, run for each device; a
//! device that this machine lacks counts as ignored, not as passed.

mod common;

use burn::tensor::{DType, Device, Int, Tensor, TensorData, s};
use common::{float, noise, read, shaped};
use dr_kernels::layout::{ScaleLayout, packed_words};
use dr_kernels::{ActivationQuantizer, CodeState, PackedTensor, ScaleGradient, WeightQuantizer, reference};
use dr_precision::{BitWidth, Granularity, QuantSpec, Signedness};

fn pairs() -> impl Iterator<Item = (BitWidth, BitWidth)> {
    let all = BitWidth::ALL;
    all.into_iter().flat_map(move |h| all.into_iter().filter(move |l| *l <= h).map(move |l| (h, l)))
}

fn group(n: usize) -> Granularity {
    Granularity::Group(n.try_into().expect("not zero"))
}

/// Scales around `size`, no two alike.
fn scales(seed: u64, n: usize, size: f32) -> Vec<f32> {
    noise(seed, n).into_iter().map(|x| size * (1.0 + 0.3 * x)).collect()
}

fn words(values: &[u32], device: &Device) -> Tensor<1, Int> {
    Tensor::from_data(TensorData::from(values), (device, DType::U32))
}

fn read_words(packed: &PackedTensor<impl CodeState>) -> Vec<u32> {
    packed.words().clone().into_data().try_to_vec().expect("u32")
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// `|got - want| <= tolerance * size` for each value.
#[track_caller]
fn close(what: &str, got: &[f32], want: &[f64], size: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, ((&got, &want), &size)) in got.iter().zip(want).zip(size).enumerate() {
        let error = (f64::from(got) - want).abs();
        assert!(error <= tolerance * size + 1e-30, "{what} [{i}]: {got}, expected {want} (of terms {size})");
    }
}

/// Gradients `[dx, first, second]` in f64.
type Gradients = (Vec<f64>, Vec<f64>, Vec<f64>);

/// The sums of the magnitudes of the terms that make up the gradients of the scales: `terms` are the gradients
/// when every element has scales of its own.
fn sizes(terms: &Gradients, layout: &ScaleLayout, highest: i32) -> [Vec<f64>; 2] {
    let alone = 1.0 / f64::from(highest).sqrt();
    [&terms.1, &terms.2].map(|terms| {
        let mut sums = vec![0.0; layout.scales()];
        for (i, term) in terms.iter().enumerate() {
            sums[layout.scale_of(i)] += term.abs() / alone;
        }
        let factor = |(j, sum)| sum * f64::from(layout.gradient_factor(j, highest));
        sums.into_iter().enumerate().map(factor).collect()
    })
}

/// What the gradient of a fake quantizer must be: the values and their tolerated sizes.
fn expected(
    inputs: [&[f32]; 4], layout: &ScaleLayout, highest: i32,
    gradients: impl Fn([&[f32]; 4], &ScaleLayout) -> Gradients,
) -> (Gradients, [Vec<f64>; 2]) {
    let [x, first, second, grad] = inputs;
    let spread = |values: &[f32]| (0..x.len()).map(|i| values[layout.scale_of(i)]).collect::<Vec<_>>();
    let alone = ScaleLayout::weights(&[1, x.len()], group(1)).unwrap();
    let terms = match x.len() {
        0 => (vec![], vec![], vec![]),
        _ => gradients([x, &spread(first), &spread(second), grad], &alone),
    };
    (gradients(inputs, layout), sizes(&terms, layout, highest))
}

fn check_gradients(what: &str, got: [Vec<f32>; 3], (want, sizes): (Gradients, [Vec<f64>; 2])) {
    let magnitudes: Vec<f64> = want.0.iter().map(|x| x.abs()).collect();
    close(&format!("{what}: dx"), &got[0], &want.0, &magnitudes, 1e-6);
    close(&format!("{what}: first"), &got[1], &want.1, &sizes[0], 1e-5);
    close(&format!("{what}: second"), &got[2], &want.2, &sizes[1], 1e-5);
}

/// Values, scales and gradient of a weight, over about one and a half times the range of `stored` bits.
fn weight_data(shape: [usize; 3], layout: &ScaleLayout, stored: BitWidth, active: BitWidth) -> [Vec<f32>; 4] {
    let n = shape.iter().product();
    let w = noise(n as u64, n);
    let s_h = scales(3, layout.scales(), 0.7 / (1 << (stored.bits() - 1)) as f32);
    let s_l = scales(4, layout.scales(), 0.7 / (1 << (active.bits() - 1)) as f32);
    [w, s_h, s_l, noise(5, n)]
}

/// Forward and backward of a weight, from leaves on an autodiff device.
fn weight_gradients(
    inputs: &[Vec<f32>; 4], shape: [usize; 3], quantizer: &WeightQuantizer, device: &Device,
) -> (Vec<f32>, [Vec<f32>; 3]) {
    let device = device.clone().autodiff();
    let [w, g] = [&inputs[0], &inputs[3]].map(|values| shaped(values, shape, &device));
    let [s_h, s_l] = [&inputs[1], &inputs[2]].map(|values| float(values, &device).require_grad());
    let w = w.require_grad();
    let y = dr_kernels::fake_quantize_weight(w.clone(), s_h.clone(), s_l.clone(), quantizer).expect("fits");
    let grads = (y.clone() * g).sum().backward();
    let zeros = |values: &Vec<f32>| vec![0.0; values.len()];
    let of = |tensor: Option<Tensor<1>>, values| tensor.map_or_else(|| zeros(values), read);
    let dw = w.grad(&grads).map_or_else(|| zeros(&inputs[0]), read);
    (read(y), [dw, of(s_h.grad(&grads), &inputs[1]), of(s_l.grad(&grads), &inputs[2])])
}

fn check_weight(
    shape: [usize; 3], granularity: Granularity, (h, l): (BitWidth, BitWidth), mode: ScaleGradient,
    device: &Device,
) {
    let layout = ScaleLayout::weights(&shape, granularity).unwrap();
    let inputs = weight_data(shape, &layout, h, l);
    let quantizer =
        WeightQuantizer::new(h, l).expect("l <= h").with_granularity(granularity).with_gradient(mode);
    let (y, got) = weight_gradients(&inputs, shape, &quantizer, device);
    let [w, s_h, s_l, g] = inputs.each_ref().map(Vec::as_slice);
    let what = format!("{shape:?} {granularity} {h} to {l} bits {mode}");
    assert_eq!(bits(&y), bits(&reference::fake_quantize_weight(w, s_h, s_l, &layout, h, l)), "{what}");
    let backward = |[w, s_h, s_l, g]: [&[f32]; 4], layout: &ScaleLayout| {
        reference::fake_quantize_weight_backward(w, s_h, s_l, g, layout, h, l, mode)
    };
    check_gradients(&what, got, expected([w, s_h, s_l, g], &layout, l.signed_max(), backward));
}

fn weight_gradient(device: &Device, mode: ScaleGradient) {
    let shapes = [[5, 7, 3], [3, 37, 1], [1, 1, 1], [13, 131, 1], [6, 16, 2]];
    for pair in pairs() {
        for granularity in [Granularity::Tensor, Granularity::Channel, group(8), group(5)] {
            for shape in shapes {
                check_weight(shape, granularity, pair, mode, device);
            }
        }
    }
}

fn weight_gradient_chained(device: &Device) {
    weight_gradient(device, ScaleGradient::Chained);
}
fn weight_gradient_exact(device: &Device) {
    weight_gradient(device, ScaleGradient::Exact);
}
fn weight_gradient_lsq(device: &Device) {
    weight_gradient(device, ScaleGradient::Lsq);
}

/// Many elements with one scale, with and without vectors; the same bits every time.
fn large_weight(device: &Device) {
    for shape in [[1, 1, 70001], [7, 100, 100]] {
        for (h, l, mode) in [
            (BitWidth::B8, BitWidth::B8, ScaleGradient::Lsq),
            (BitWidth::B8, BitWidth::B2, ScaleGradient::Lsq),
            (BitWidth::B8, BitWidth::B4, ScaleGradient::Chained),
        ] {
            check_weight(shape, Granularity::Tensor, (h, l), mode, device);
            let quantizer = WeightQuantizer::new(h, l).expect("l <= h").with_granularity(Granularity::Tensor);
            let quantizer = quantizer.with_gradient(mode);
            let inputs =
                weight_data(shape, &ScaleLayout::weights(&shape, Granularity::Tensor).unwrap(), h, l);
            let run = || weight_gradients(&inputs, shape, &quantizer, device).1.map(|values| bits(&values));
            assert_eq!(run(), run());
        }
    }
}

fn check_activation(shape: [usize; 4], granularity: Granularity, b: BitWidth, device: &Device) {
    let layout = ScaleLayout::activations(&shape, granularity).unwrap();
    let n = shape.iter().product();
    let (x, g) = (noise(n as u64, n), noise(7, n));
    let s = scales(8, layout.scales(), 1.4 / (1 << b.bits()) as f32);
    let z: Vec<f32> = noise(9, layout.scales()).into_iter().map(|z| 0.2 * z - 0.6).collect();
    let what = format!("{shape:?} {granularity} {b} bits");

    let device = device.clone().autodiff();
    let [s_leaf, z_leaf] = [&s, &z].map(|values| float(values, &device).require_grad());
    let x_leaf = shaped(&x, shape, &device).require_grad();
    let quantizer = ActivationQuantizer::new(b).with_granularity(granularity);
    let y = dr_kernels::fake_quantize_activation(x_leaf.clone(), s_leaf.clone(), z_leaf.clone(), &quantizer);
    let y = y.expect("fits");
    let grads = (y.clone() * shaped(&g, shape, &device)).sum().backward();
    let dx = x_leaf.grad(&grads).map_or_else(Vec::new, read);
    let [ds, dz] = [&s_leaf, &z_leaf].map(|leaf| leaf.grad(&grads).map_or_else(Vec::new, read));

    let want: Vec<f64> =
        reference::fake_quantize_activation(&x, &s, &z, &layout, b).into_iter().map(f64::from).collect();
    // A compiler may fuse the last multiplication and addition.
    let size: Vec<f64> = want.iter().map(|y| y.abs() + 1.0).collect();
    close(&what, &read(y), &want, &size, 2e-7);
    let backward = |[x, s, z, g]: [&[f32]; 4], layout: &ScaleLayout| {
        reference::fake_quantize_activation_backward(x, s, z, g, layout, b)
    };
    check_gradients(&what, [dx, ds, dz], expected([&x, &s, &z, &g], &layout, b.unsigned_max(), backward));
}

fn activation_gradient(device: &Device) {
    for b in BitWidth::ALL {
        for granularity in [Granularity::Tensor, Granularity::Channel, group(2)] {
            for shape in [[3, 5, 7, 3], [2, 4, 4, 4], [1, 1, 1, 1], [37, 6, 1, 1]] {
                check_activation(shape, granularity, b, device);
            }
        }
    }
    check_activation([5, 3, 41, 113], Granularity::Tensor, BitWidth::B8, device);
    check_activation([64, 2, 32, 32], Granularity::Channel, BitWidth::B4, device);
}

/// Every stored code, first rounding and second, with ties and their neighbours.
fn all_codes_fake_quantized(device: &Device) {
    let s_h = 1.0 / 32.0;
    for (h, l) in pairs() {
        let halves = 2 * h.signed_min() - 9..=2 * h.signed_max() + 9;
        let w: Vec<f32> = halves
            .map(|half| half as f32 / 2.0 * s_h)
            .flat_map(|w| [w.next_down(), w, w.next_up()])
            .chain([0.0, -0.0, 1e30, -1e30])
            .collect();
        let layout = ScaleLayout::weights(&[w.len()], Granularity::Tensor).unwrap();
        let quantizer = WeightQuantizer::new(h, l).expect("l <= h").with_granularity(Granularity::Tensor);
        let y = dr_kernels::fake_quantize_weight(
            float(&w, device),
            float(&[s_h], device),
            float(&[0.25], device),
            &quantizer,
        );
        let want = reference::fake_quantize_weight(&w, &[s_h], &[0.25], &layout, h, l);
        assert_eq!(bits(&read(y.expect("fits"))), bits(&want), "{h} to {l} bits");
    }
}

/// Every stored code of every width, with a length that fills no block.
fn all_codes_switched(device: &Device) {
    for (h, l) in pairs() {
        let all = h.signed_min()..=h.signed_max();
        let codes: Vec<i32> = all.clone().chain(all.rev().take(3)).collect();
        let stored = reference::pack(&codes, h);
        let spec = QuantSpec::weights(h).with_granularity(Granularity::Tensor);
        // Words from the middle of a buffer.
        let padded = words(&[&[u32::MAX; 4], stored.as_slice(), &[u32::MAX]].concat(), device);
        let view = padded.slice(s![4..4 + stored.len()]);
        let packed =
            PackedTensor::new(view, float(&[0.5], device), None, &[codes.len()], spec).expect("fits");
        let switched = dr_kernels::switch(&packed, l, float(&[2.0], device)).expect("l <= h");
        let want = reference::switch_packed(&stored, codes.len(), h, l);
        assert_eq!(read_words(&switched), want, "{h} to {l} bits");
    }
}

/// Codes of every width, packed and unpacked.
fn all_codes_packed(device: &Device) {
    for b in BitWidth::ALL {
        for (signedness, low, high) in [
            (Signedness::Signed, b.signed_min(), b.signed_max()),
            (Signedness::Unsigned, 0, b.unsigned_max()),
        ] {
            let codes: Vec<i32> = (low..=high).cycle().take(256 + 3).collect();
            let (zero, spec) = match signedness {
                Signedness::Signed => (None, QuantSpec::weights(b)),
                Signedness::Unsigned => (Some(-2.0), QuantSpec::activations(b)),
            };
            let spec = spec.with_granularity(Granularity::Tensor);
            let values: Vec<f32> =
                codes.iter().map(|&code| code as f32 * 0.25 + zero.unwrap_or(0.0)).collect();
            let zero = zero.map(|zero| float(&[zero], device));
            let scale = float(&[0.25], device);
            let packed = dr_kernels::quantize_pack(float(&values, device), scale, zero, spec).expect("fits");
            assert_eq!(read_words(&packed), reference::pack(&codes, b), "{b} bits {signedness:?}");
            assert_eq!(read(dr_kernels::dequantize::<1>(&packed).expect("rank 1")), values, "{b} bits");
        }
    }
}

/// Values of `dtype` on the device, and the same in f32.
fn typed(values: &[f32], shape: [usize; 3], dtype: DType, device: &Device) -> (Tensor<3>, Vec<f32>) {
    let data = TensorData::new(values.to_vec(), shape).convert_dtype(dtype);
    let rounded = data.clone().convert::<f32>().try_to_vec().expect("f32");
    (Tensor::from_data(data, (device, dtype)), rounded)
}

fn check_pack(shape: [usize; 3], spec: QuantSpec, dtype: DType, device: &Device) {
    let unsigned = spec.signedness == Signedness::Unsigned;
    let layout = match unsigned {
        true => ScaleLayout::activations(&shape, spec.granularity).unwrap(),
        false => ScaleLayout::weights(&shape, spec.granularity).unwrap(),
    };
    let (x, values) = typed(&noise(11, layout.elements()), shape, dtype, device);
    assert_eq!(x.dtype(), dtype);
    let s = scales(12, layout.scales(), 1.3 / (1 << spec.bits.bits()) as f32);
    let z = unsigned.then(|| noise(13, layout.scales()));
    let zero = z.as_ref().map(|z| float(z, device));
    let packed = dr_kernels::quantize_pack(x, float(&s, device), zero, spec).expect("fits");
    let want = reference::quantize_pack(&values, &s, z.as_deref(), &layout, spec.bits);
    let what = format!("{shape:?} {spec:?} {dtype:?}");
    assert_eq!(want.len(), packed_words(layout.elements(), spec.bits));
    assert_eq!(read_words(&packed), want, "{what}");
    let got = read(dr_kernels::dequantize::<3>(&packed).expect("rank 3"));
    let back = reference::dequantize_packed(&want, &s, z.as_deref(), &layout, spec.bits);
    if unsigned {
        let want: Vec<f64> = back.into_iter().map(f64::from).collect();
        close(&what, &got, &want, &vec![1.0; want.len()], 2e-7); // multiply and add may be fused
    } else {
        assert_eq!(bits(&got), bits(&back), "{what}");
    }
}

fn quantize_pack_dequantize(device: &Device) {
    for b in BitWidth::ALL {
        for granularity in [Granularity::Tensor, Granularity::Channel, group(8), group(5)] {
            for shape in [[5, 7, 3], [3, 37, 1], [1, 1, 1], [6, 32, 4], [0, 4, 1]] {
                for spec in [QuantSpec::weights(b), QuantSpec::activations(b)] {
                    check_pack(shape, spec.with_granularity(granularity), DType::F32, device);
                }
            }
        }
    }
}

fn quantize_pack_halves(device: &Device) {
    for dtype in [DType::F16, DType::BF16] {
        for b in [BitWidth::B8, BitWidth::B7, BitWidth::B3] {
            for shape in [[5, 7, 3], [6, 32, 4]] {
                for spec in [QuantSpec::weights(b), QuantSpec::activations(b)] {
                    check_pack(shape, spec.with_granularity(Granularity::Channel), dtype, device);
                }
            }
        }
    }
}

/// A NaN becomes 0, infinities the ends of the range.
fn not_finite(device: &Device) {
    let x = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN, 1.0];
    let spec = QuantSpec::weights(BitWidth::B4).with_granularity(Granularity::Tensor);
    let packed =
        dr_kernels::quantize_pack(float(&x, device), float(&[1.0], device), None, spec).expect("fits");
    assert_eq!(read_words(&packed), reference::pack(&[0, 7, -8, 0, 1], BitWidth::B4));
}

/// No elements: no values, gradients of zero, the scales of a small deviation.
fn empty(device: &Device) {
    for shape in [[0, 5, 1], [3, 0, 2]] {
        for granularity in [Granularity::Tensor, Granularity::Channel, group(4)] {
            for mode in ScaleGradient::ALL {
                check_weight(shape, granularity, (BitWidth::B8, BitWidth::B4), mode, device);
            }
            for spec in [QuantSpec::weights(BitWidth::B5), QuantSpec::activations(BitWidth::B5)] {
                check_pack(shape, spec.with_granularity(granularity), DType::F32, device);
            }
            let w = Tensor::<3>::zeros(shape, device);
            let widths = [BitWidth::B8, BitWidth::B2];
            let found = dr_kernels::search_scales(w, &widths, granularity).expect("widths");
            let layout = ScaleLayout::weights(&shape, granularity).unwrap();
            let want = reference::search_scales(&[], &layout, &widths);
            assert_eq!(found.into_iter().flat_map(read).collect::<Vec<_>>(), want);
        }
        let [n, c, i] = shape;
        check_activation([n, c, i, 1], Granularity::Tensor, BitWidth::B8, device);
        check_activation([n, c, i, 1], Granularity::Channel, BitWidth::B8, device);
    }
    let spec = QuantSpec::weights(BitWidth::B8).with_granularity(Granularity::Tensor);
    let packed =
        PackedTensor::new(words(&[], device), float(&[1.0], device), None, &[0], spec).expect("fits");
    let switched = dr_kernels::switch(&packed, BitWidth::B2, float(&[1.0], device)).expect("2 <= 8");
    assert!(read_words(&switched).is_empty());
}

/// Transposed, with offsets, between operations that Fusion may fuse, and with only some inputs tracked.
fn views(device: &Device) {
    let shape = [7, 5, 3];
    let layout = ScaleLayout::weights(&shape, Granularity::Channel).unwrap();
    let (h, l) = (BitWidth::B8, BitWidth::B3);
    let [w, s_h, s_l, _] = weight_data(shape, &layout, h, l);
    let ones = vec![1.0; w.len()];
    let quantizer = WeightQuantizer::new(h, l).expect("l <= h").with_gradient(ScaleGradient::Lsq);
    let device = &device.clone().autodiff();
    // `w`, kept as its transpose in the tail of a longer tensor.
    let flat = float(&w, device).reshape(shape).swap_dims(0, 1).reshape([105]);
    let stored = Tensor::cat(vec![float(&[9.0; 15], device), flat], 0).reshape([8, 15]).require_grad();
    let view = stored.clone().slice(s![1.., ..]).reshape([5, 7, 3]).swap_dims(0, 1);
    let scales = float(&[&[7.0; 3], s_h.as_slice(), &s_l].concat(), device);
    let s_l_leaf = scales.clone().slice(s![10..17]).detach().require_grad();
    let y =
        dr_kernels::fake_quantize_weight(view * 1.0, scales.slice(s![3..10]), s_l_leaf.clone(), &quantizer);
    let y = y.expect("fits");
    let want = reference::fake_quantize_weight(&w, &s_h, &s_l, &layout, h, l);
    assert_eq!(bits(&read(y.clone())), bits(&want));
    let grads = (y + 1.0).sum().backward(); // the gradient is an expanded 1
    let (dw, _, ds) =
        reference::fake_quantize_weight_backward(&w, &s_h, &s_l, &ones, &layout, h, l, ScaleGradient::Lsq);
    let got = stored.grad(&grads).expect("tracked").slice(s![1.., ..]).reshape([5, 7, 3]).swap_dims(0, 1);
    close("dw", &read(got), &dw, &vec![1.0; dw.len()], 1e-6);
    close("ds", &read(s_l_leaf.grad(&grads).expect("tracked")), &ds, &vec![1.0; ds.len()], 1e-5);

    // Packing a transposed view, dequantizing a transposed one's codes.
    let inner = &device.clone().inner();
    let transposed = float(&w, inner).reshape([7, 15]).transpose().reshape([15, 7]).transpose();
    let packed = dr_kernels::quantize_pack(transposed, float(&s_h, inner), None, QuantSpec::weights(h));
    assert_eq!(read_words(&packed.expect("fits")), reference::quantize_pack(&w, &s_h, None, &layout, h));
}

/// The objective of [`reference::search_scales`] for the scales of one group, in f64.
fn objective(w: &[f32], scales: &[f32], widths: &[BitWidth]) -> f64 {
    let layout = ScaleLayout::weights(&[w.len()], Granularity::Tensor).unwrap();
    let error = |(&b, &s): (&BitWidth, &f32)| {
        let values = reference::fake_quantize_weight(w, &scales[..1], &[s], &layout, widths[0], b);
        let errors = w.iter().zip(values).map(|(&w, y)| (f64::from(w) - f64::from(y)).powi(2));
        errors.sum::<f64>() * 4f64.powi(b.bits() as i32)
    };
    widths.iter().zip(scales).map(error).sum()
}

fn scale_search(device: &Device) {
    use BitWidth::{B2, B3, B4, B5, B6, B7, B8};
    let sets: [&[BitWidth]; 4] = [&[B8, B6, B4, B2], &[B8, B7, B6, B5, B4, B3, B2], &[B4], &[B6, B5]];
    for widths in sets {
        for shape in [[5, 7, 3], [3, 37, 1], [1, 1, 1], [4, 64, 9], [1, 1, 9001]] {
            for granularity in [Granularity::Tensor, Granularity::Channel, group(16)] {
                let layout = ScaleLayout::weights(&shape, granularity).unwrap();
                // Bell-shaped, with channels of different sizes, and zeros.
                let [a, b, c] = [21, 22, 23].map(|seed| noise(seed, layout.elements()));
                let mut w: Vec<f32> = (0..a.len()).map(|i| (a[i] + b[i] + c[i]) * 0.1).collect();
                for (i, w) in w.iter_mut().enumerate() {
                    *w *= [1.0, 0.01, 30.0][i / (shape[1] * shape[2]) % 3];
                }
                let zeros = if layout.scales() > 3 { layout.scales() - 1 } else { layout.scales() };
                (0..w.len()).filter(|i| layout.scale_of(*i) == zeros).for_each(|i| w[i] = 0.0);
                let tensor = float(&w, device).reshape(shape);
                let found = dr_kernels::search_scales(tensor, widths, granularity).expect("widths");
                let found: Vec<Vec<f32>> = found.into_iter().map(read).collect();
                let want = reference::search_scales(&w, &layout, widths);
                for j in 0..layout.scales() {
                    let of_group = |i: &usize| layout.scale_of(*i) == j;
                    let group: Vec<f32> = (0..w.len()).filter(of_group).map(|i| w[i]).collect();
                    let got: Vec<f32> = found.iter().map(|scales| scales[j]).collect();
                    let want: Vec<f32> = (0..widths.len()).map(|b| want[b * layout.scales() + j]).collect();
                    let what =
                        format!("{shape:?} {granularity} {widths:?} [{j}]: {got:?}, expected {want:?}");
                    let [a, b] = [&got, &want].map(|scales| objective(&group, scales, widths));
                    let energy: f64 = group.iter().map(|w| f64::from(w * w)).sum();
                    assert!(
                        (a - b).abs() <= 1e-4 * b + 1e-10 * energy,
                        "{what}: objective {a}, expected {b}"
                    );
                    if (got[0] - want[0]).abs() <= 1e-5 * want[0] {
                        let near = |(got, want): (&f32, &f32)| (got - want).abs() <= 1e-4 * want.abs();
                        assert!(got.iter().zip(&want).all(near), "{what}");
                    }
                }
            }
        }
    }
}

fn main() {
    common::run(&[
        ("all_codes_fake_quantized", all_codes_fake_quantized),
        ("all_codes_switched", all_codes_switched),
        ("all_codes_packed", all_codes_packed),
        ("quantize_pack_dequantize", quantize_pack_dequantize),
        ("quantize_pack_halves", quantize_pack_halves),
        ("not_finite", not_finite),
        ("empty", empty),
        ("views", views),
        ("scale_search", scale_search),
        ("weight_gradient_chained", weight_gradient_chained),
        ("weight_gradient_exact", weight_gradient_exact),
        ("weight_gradient_lsq", weight_gradient_lsq),
        ("large_weight", large_weight),
        ("activation_gradient", activation_gradient),
    ]);
}
