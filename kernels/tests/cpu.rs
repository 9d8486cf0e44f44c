//! The CPU kernels against the reference, for every instruction set that this machine has.

use dr_kernels::ScaleGradient;
use dr_kernels::cpu::{self, Isa, Operation, Sample};
use dr_kernels::layout::{ScaleLayout, packed_words};
use dr_kernels::reference;
use dr_precision::{BitWidth, Granularity};
use half::{bf16, f16};
use proptest::prelude::*;
use std::num::NonZeroUsize;

/// The instruction sets of this machine.
fn isas() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available())
}

/// All pairs of a stored width and an active one that is not wider.
fn pairs() -> impl Iterator<Item = (BitWidth, BitWidth)> {
    let below = |stored: BitWidth| BitWidth::ALL.into_iter().filter(move |&active| active <= stored);
    BitWidth::ALL.into_iter().flat_map(move |stored| below(stored).map(move |active| (stored, active)))
}

/// The bits of floats: equality that tells 0 from -0, and a NaN from nothing.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Pseudo-random values in -1..1 that are the same everywhere.
fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Like [`noise`], roughly Gaussian, with some values that are special for a quantizer of scale `scale`: ties, ends of
/// ranges, zeros, infinities, numbers too large or too small.
fn weights(len: usize, seed: u64, scale: f32) -> Vec<f32> {
    let special = [
        0.0,
        -0.0,
        0.5 * scale,
        -0.5 * scale,
        1.5 * scale,
        -2.5 * scale,
        127.5 * scale,
        -128.5 * scale,
        8.0 * scale,
        f32::MAX,
        f32::MIN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        1e-40,
    ];
    let [a, b, c, pick] = [1, 2, 3, 4].map(|n| noise(len, seed * 4 + n));
    (0..len)
        .map(|i| match (pick[i].abs() * 1000.0) as usize {
            n if n < special.len() => special[n],
            _ => (a[i] + b[i] + c[i]) * 40.0 * scale,
        })
        .collect()
}

/// Scales between 0.5 and 1.5 times `scale`.
fn scales(len: usize, seed: u64, scale: f32) -> Vec<f32> {
    noise(len, seed).into_iter().map(|noise| scale * (1.0 + 0.5 * noise)).collect()
}

/// A tensor's layout and data.
#[derive(Clone, Debug)]
struct Case {
    layout: ScaleLayout,
    seed: u64,
}

impl Case {
    fn weights(shape: &[usize], granularity: Granularity) -> Self {
        let layout = ScaleLayout::weights(shape, granularity).unwrap();
        Self { layout, seed: layout.elements() as u64 }
    }

    fn activations(shape: &[usize], granularity: Granularity) -> Self {
        let layout = ScaleLayout::activations(shape, granularity).unwrap();
        Self { layout, seed: layout.elements() as u64 + 1 }
    }

    fn x(&self) -> Vec<f32> {
        weights(self.layout.elements(), self.seed, 0.02)
    }

    /// Values that are finite and of moderate size, as sums must be compared.
    fn tame_x(&self) -> Vec<f32> {
        self.x().into_iter().map(|x| if x.abs() < 10.0 { x } else { 0.1 }).collect()
    }

    fn scales(&self, seed: u64) -> Vec<f32> {
        scales(self.layout.scales(), self.seed + seed, 0.02)
    }

    fn zero_points(&self) -> Vec<f32> {
        noise(self.layout.scales(), self.seed + 99)
    }

    fn grad(&self) -> Vec<f32> {
        noise(self.layout.elements(), self.seed + 98)
    }
}

/// Shapes that are awkward: empty, single, prime, groups that do not divide, runs and tensors longer than a block (4096)
/// or a task (65536).
fn cases() -> Vec<Case> {
    let group = |n| Granularity::Group(NonZeroUsize::new(n).unwrap());
    let (tensor, channel) = (Granularity::Tensor, Granularity::Channel);
    vec![
        Case::weights(&[0], tensor),
        Case::weights(&[0, 3], channel),
        Case::weights(&[3, 0], channel),
        Case::weights(&[1], tensor),
        Case::weights(&[1, 1], channel),
        Case::weights(&[31], channel),
        Case::weights(&[97, 1], channel),
        Case::weights(&[7, 3, 3, 3], channel),
        Case::weights(&[7, 3, 3, 3], group(5)),
        Case::weights(&[5, 100], group(32)),
        Case::weights(&[64, 3, 3, 3], tensor),
        Case::weights(&[3, 4099], channel),
        Case::weights(&[3, 4099], group(4096)),
        Case::weights(&[2, 70_001], channel),
        Case::weights(&[65_536 + 4096 + 33], tensor),
        Case::weights(&[11, 20_011], group(127)),
        Case::activations(&[3, 5, 7, 7], channel),
        Case::activations(&[3, 5, 7, 7], tensor),
        Case::activations(&[2, 7, 50, 50], group(3)),
        Case::activations(&[4, 1], channel),
    ]
}

fn check_weight_forward(case: &Case, stored: BitWidth, active: BitWidth) {
    let layout = &case.layout;
    let (w, stored_scale, scale) = (case.x(), case.scales(1), case.scales(2));
    let want = reference::fake_quantize_weight(&w, &stored_scale, &scale, layout, stored, active);
    for isa in isas() {
        let mut got = vec![f32::NAN; w.len()];
        cpu::fake_quantize_weight(&w, &stored_scale, &scale, layout, stored, active).fill(isa, &mut got);
        assert_eq!(bits(&got), bits(&want), "{isa} {stored} -> {active} {layout:?}");
    }
    assert_eq!(
        bits(&cpu::fake_quantize_weight(&w, &stored_scale, &scale, layout, stored, active).collect().0),
        bits(&want)
    );
}

fn check_activation_forward(case: &Case, width: BitWidth) {
    let layout = &case.layout;
    let (x, scale, zero) = (case.x(), case.scales(1), case.zero_points());
    let want = reference::fake_quantize_activation(&x, &scale, &zero, layout, width);
    for isa in isas() {
        let mut got = vec![f32::NAN; x.len()];
        cpu::fake_quantize_activation(&x, &scale, &zero, layout, width).fill(isa, &mut got);
        assert_eq!(bits(&got), bits(&want), "{isa} {width} {layout:?}");
    }
    assert_eq!(
        bits(&cpu::fake_quantize_activation(&x, &scale, &zero, layout, width).collect().0),
        bits(&want)
    );
}

/// `|got - want| <= 1e-5 * size`, where `size` is `|want|` or, for a sum whose terms may cancel, what its terms' absolute
/// values can add up to.
fn assert_close(what: &str, got: &[f32], want: &[f64], size: impl Fn(usize) -> f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let tolerance = 1e-5 * want.abs().max(size(i));
        assert!((f64::from(got) - want).abs() <= tolerance, "{what} {i}: {got} instead of {want}");
    }
}

/// The sum of `|g|` over the elements of each scale: the least that its gradient's terms can cancel, `|code|` or
/// `|code - v|` being left out. With LSQ's factor.
fn sums_of_gradients(layout: &ScaleLayout, grad: &[f32], highest_code: i32) -> Vec<f64> {
    let mut sums = vec![0.0; layout.scales()];
    for (i, &g) in grad.iter().enumerate() {
        sums[layout.scale_of(i)] += f64::from(g.abs());
    }
    let factor = |j| f64::from(layout.gradient_factor(j, highest_code));
    sums.into_iter().enumerate().map(|(j, sum)| sum * factor(j)).collect()
}

fn check_weight_backward(case: &Case, stored: BitWidth, active: BitWidth, mode: ScaleGradient) {
    let layout = &case.layout;
    let (w, stored_scale, scale, grad) = (case.tame_x(), case.scales(1), case.scales(2), case.grad());
    let sums = sums_of_gradients(layout, &grad, active.signed_max());
    let (dw, dstored, dscale) = reference::fake_quantize_weight_backward(
        &w,
        &stored_scale,
        &scale,
        &grad,
        layout,
        stored,
        active,
        mode,
    );
    let gradient =
        cpu::fake_quantize_weight_backward(&w, &stored_scale, &scale, &grad, layout, stored, active, mode);
    for isa in isas() {
        let what = |name| format!("{name} {isa} {stored} -> {active} {mode} {layout:?}");
        let mut got = vec![f32::NAN; w.len()];
        let (got_stored, got_scale) = gradient.fill(isa, &mut got);
        assert_close(&what("dw"), &got, &dw, |_| 0.0);
        assert_close(&what("dstored"), &got_stored, &dstored, |j| sums[j]);
        assert_close(&what("dscale"), &got_scale, &dscale, |j| sums[j]);
    }
    let (got, (got_stored, got_scale)) = gradient.collect();
    assert_close("dw", &got, &dw, |_| 0.0);
    assert_close("dstored", &got_stored, &dstored, |j| sums[j]);
    assert_close("dscale", &got_scale, &dscale, |j| sums[j]);
}

fn check_activation_backward(case: &Case, width: BitWidth) {
    let layout = &case.layout;
    let (x, scale, zero, grad) = (case.tame_x(), case.scales(1), case.zero_points(), case.grad());
    let sums = sums_of_gradients(layout, &grad, width.unsigned_max());
    let (dx, dscale, dzero) =
        reference::fake_quantize_activation_backward(&x, &scale, &zero, &grad, layout, width);
    let gradient = cpu::fake_quantize_activation_backward(&x, &scale, &zero, &grad, layout, width);
    for isa in isas() {
        let what = |name| format!("{name} {isa} {width} {layout:?}");
        let mut got = vec![f32::NAN; x.len()];
        let (got_scale, got_zero) = gradient.fill(isa, &mut got);
        assert_close(&what("dx"), &got, &dx, |_| 0.0);
        assert_close(&what("dscale"), &got_scale, &dscale, |j| sums[j]);
        assert_close(&what("dzero"), &got_zero, &dzero, |j| sums[j]);
    }
    let (got, (got_scale, got_zero)) = gradient.collect();
    assert_close("dx", &got, &dx, |_| 0.0);
    assert_close("dscale", &got_scale, &dscale, |j| sums[j]);
    assert_close("dzero", &got_zero, &dzero, |j| sums[j]);
}

/// Quantizes `samples`, whose values are `x`, to packed codes, and dequantizes them.
fn check_pack<T: Sample>(case: &Case, samples: &[T], width: BitWidth) {
    let layout = &case.layout;
    let x: Vec<f32> = samples.iter().map(|sample| sample.widen()).collect();
    let (scale, zero) = (case.scales(1), case.zero_points());
    for zero in [None, Some(zero.as_slice())] {
        let want = reference::quantize_pack(&x, &scale, zero, layout, width);
        let values = reference::dequantize_packed(&want, &scale, zero, layout, width);
        let pack = cpu::quantize_pack(samples, &scale, zero, layout, width);
        let dequantize = cpu::dequantize_packed(&want, &scale, zero, layout, width);
        assert_eq!(pack.collect().0, want, "{width} {layout:?}");
        assert_eq!(bits(&dequantize.collect().0), bits(&values));
        for isa in isas() {
            let mut words = vec![u32::MAX; want.len()];
            pack.fill(isa, &mut words);
            assert_eq!(words, want, "{isa} {width} {layout:?}");
            let mut got = vec![f32::NAN; x.len()];
            dequantize.fill(isa, &mut got);
            assert_eq!(bits(&got), bits(&values), "{isa} {width} {layout:?}");
        }
    }
}

fn check_switch(codes: &[i32], stored: BitWidth, active: BitWidth) {
    let words = reference::pack(codes, stored);
    let want = reference::switch_packed(&words, codes.len(), stored, active);
    let switch = cpu::switch_packed(&words, codes.len(), stored, active);
    assert_eq!(switch.collect().0, want, "{stored} -> {active}");
    for isa in isas() {
        let mut got = vec![u32::MAX; packed_words(codes.len(), active)];
        switch.fill(isa, &mut got);
        assert_eq!(got, want, "{isa} {stored} -> {active}");
    }
}

fn check_search(case: &Case, widths: &[BitWidth]) {
    let (w, layout) = (case.tame_x(), &case.layout);
    let want = reference::search_scales(&w, layout, widths);
    for isa in isas() {
        let got = cpu::search_scales(isa, &w, layout, widths);
        let want: Vec<f64> = want.iter().map(|&scale| f64::from(scale)).collect();
        assert_close(&format!("{isa} {widths:?} {layout:?}"), &got, &want, |_| 0.0);
    }
}

#[test]
fn weights_forward_for_every_pair_and_shape() {
    for (stored, active) in pairs() {
        check_weight_forward(&Case::weights(&[13, 1000], Granularity::Channel), stored, active);
    }
    for case in cases() {
        check_weight_forward(&case, BitWidth::B8, BitWidth::B3);
    }
}

#[test]
fn activations_forward_for_every_width_and_shape() {
    for width in BitWidth::ALL {
        check_activation_forward(&Case::activations(&[3, 10, 11, 7], Granularity::Channel), width);
    }
    for case in cases() {
        check_activation_forward(&case, BitWidth::B4);
    }
}

#[test]
fn weights_backward_for_every_pair_mode_and_shape() {
    for mode in ScaleGradient::ALL {
        for (stored, active) in pairs() {
            check_weight_backward(&Case::weights(&[13, 1000], Granularity::Channel), stored, active, mode);
        }
        for case in cases() {
            check_weight_backward(&case, BitWidth::B8, BitWidth::B8, mode);
            check_weight_backward(&case, BitWidth::B8, BitWidth::B2, mode);
        }
    }
}

#[test]
fn activations_backward_for_every_width_and_shape() {
    for width in BitWidth::ALL {
        check_activation_backward(&Case::activations(&[3, 10, 11, 7], Granularity::Channel), width);
    }
    for case in cases() {
        check_activation_backward(&case, BitWidth::B8);
    }
}

/// Where values are so close to a code that `f32` cannot tell the residual, the sums must still be those of `f64`.
#[test]
fn residuals_are_accurate_far_from_zero() {
    let layout = ScaleLayout::weights(&[20_000], Granularity::Tensor).unwrap();
    let w: Vec<f32> = noise(layout.elements(), 5).iter().map(|x| 0.02 * (120.0 + 1e-4 * x)).collect();
    let grad = vec![1.0; w.len()];
    let (args, bits) = ((&[0.02f32], &[0.02f32]), BitWidth::B8);
    let (_, want, _) = reference::fake_quantize_weight_backward(
        &w,
        args.0,
        args.1,
        &grad,
        &layout,
        bits,
        bits,
        ScaleGradient::Lsq,
    );
    let (_, (got, _)) = cpu::fake_quantize_weight_backward(
        &w,
        args.0,
        args.1,
        &grad,
        &layout,
        bits,
        bits,
        ScaleGradient::Lsq,
    )
    .collect();
    assert_close("dstored", &got, &want, |_| 0.0);
}

#[test]
fn quantize_and_dequantize_every_width_shape_and_type() {
    for width in BitWidth::ALL {
        for case in [
            Case::weights(&[13, 1000], Granularity::Channel),
            Case::activations(&[3, 10, 11, 7], Granularity::Channel),
        ] {
            let x = case.x();
            check_pack(&case, &x, width);
            check_pack(&case, &x.iter().map(|&x| f16::from_f32(x)).collect::<Vec<_>>(), width);
            check_pack(&case, &x.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>(), width);
        }
    }
    for case in cases() {
        check_pack(&case, &case.x(), BitWidth::B7);
    }
}

#[test]
fn halves_widen_exactly() {
    for bits in 0..=u16::MAX {
        let (half, brain) = (f16::from_bits(bits), bf16::from_bits(bits));
        for (got, want) in [(half.widen(), half.to_f32()), (brain.widen(), brain.to_f32())] {
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{bits:#x}");
        }
    }
}

/// Every code of every stored width, at every position of a block of 64, to every active width.
#[test]
fn every_code_switches() {
    for (stored, active) in pairs() {
        let all = stored.signed_min()..=stored.signed_max();
        for shift in 0..64 {
            let codes: Vec<i32> = std::iter::repeat_n(0, shift).chain(all.clone()).collect();
            check_switch(&codes, stored, active);
        }
    }
}

#[test]
fn switching_works_for_all_lengths() {
    for len in (0..200).chain([4095, 4096, 4097, 65_536, 65_537, 200_003]) {
        let codes: Vec<i32> = (0..len).map(|i| (i * 37 % 251) - 125).collect();
        check_switch(&codes, BitWidth::B8, BitWidth::B7);
        check_switch(&codes, BitWidth::B8, BitWidth::B4);
    }
}

/// Whatever lies behind the last code does not get into the result.
#[test]
fn fields_after_the_last_code_are_zero() {
    let mut words = reference::pack(&[1; 40], BitWidth::B8);
    let want = cpu::switch_packed(&words, 40, BitWidth::B8, BitWidth::B3).collect().0;
    words[10..].fill(u32::MAX);
    assert_eq!(cpu::switch_packed(&words, 40, BitWidth::B8, BitWidth::B3).collect().0, want);
}

/// Every code of every width, dequantized: around all 256 of them, signed and unsigned.
#[test]
fn every_code_dequantizes() {
    for width in BitWidth::ALL {
        let codes: Vec<i32> = (0..1000).map(|i| i & width.unsigned_max()).collect();
        let layout = ScaleLayout::weights(&[codes.len()], Granularity::Tensor).unwrap();
        let words = reference::pack(&codes, width);
        for zero in [None, Some([0.3].as_slice())] {
            let want = reference::dequantize_packed(&words, &[0.7], zero, &layout, width);
            for isa in isas() {
                let mut got = vec![f32::NAN; codes.len()];
                cpu::dequantize_packed(&words, &[0.7], zero, &layout, width).fill(isa, &mut got);
                assert_eq!(bits(&got), bits(&want), "{isa} {width}");
            }
        }
    }
}

#[test]
fn scale_search_finds_the_same_scales() {
    let widths = [BitWidth::B8, BitWidth::B6, BitWidth::B4, BitWidth::B2];
    for case in cases() {
        check_search(&case, &widths);
    }
    let case = Case::weights(&[6, 333], Granularity::Channel);
    for (stored, active) in pairs() {
        let mut widths = vec![stored, active];
        widths.dedup();
        check_search(&case, &widths);
    }
}

/// Zeros, and numbers that are not numbers.
#[test]
fn scale_search_survives_degenerate_groups() {
    let widths = [BitWidth::B8, BitWidth::B2];
    let w = [[0.0; 8], [f32::NAN; 8], [f32::INFINITY; 8], [1e-30; 8]].concat();
    let layout = ScaleLayout::weights(&[4, 8], Granularity::Channel).unwrap();
    let want = reference::search_scales(&w, &layout, &widths);
    for isa in isas() {
        assert_eq!(bits(&cpu::search_scales(isa, &w, &layout, &widths)), bits(&want), "{isa}");
    }
}

#[test]
fn numbers_that_are_not_numbers_become_zero() {
    let layout = ScaleLayout::weights(&[3], Granularity::Tensor).unwrap();
    let w = [f32::NAN, 1.0, -f32::NAN];
    let got = cpu::fake_quantize_weight(&w, &[0.5], &[0.5], &layout, BitWidth::B8, BitWidth::B8).collect().0;
    assert_eq!(bits(&got), bits(&[0.0, 1.0, 0.0]));
}

/// Large enough that it goes past the caches, and starting at an odd place.
#[test]
fn large_outputs_are_written_whole() {
    let layout = ScaleLayout::weights(&[3, (12 << 20) / 3 + 5], Granularity::Channel).unwrap();
    let w = noise(layout.elements(), 1);
    let (stored_scale, scale) = ([0.01, 0.02, 0.03], [0.2, 0.3, 0.4]);
    let mut got = vec![f32::NAN; layout.elements() + 1];
    cpu::fake_quantize_weight(&w, &stored_scale, &scale, &layout, BitWidth::B8, BitWidth::B4)
        .fill(Isa::detect(), &mut got[1..]);
    let want =
        reference::fake_quantize_weight(&w, &stored_scale, &scale, &layout, BitWidth::B8, BitWidth::B4);
    assert!(got[0].is_nan());
    assert!(bits(&got[1..]) == bits(&want));
}

/// Everything that is added up gives the same bits with one thread and with two.
#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let case = Case::weights(&[3, 100_003], Granularity::Channel);
    let (w, s, grad, layout) = (case.tame_x(), case.scales(1), case.grad(), &case.layout);
    let (b8, b4) = (BitWidth::B8, BitWidth::B4);
    let everything = || {
        let mode = ScaleGradient::Chained;
        let (dw, (a, b)) =
            cpu::fake_quantize_weight_backward(&w, &s, &s, &grad, layout, b8, b4, mode).collect();
        let (dx, (c, d)) = cpu::fake_quantize_activation_backward(&w, &s, &s, &grad, layout, b4).collect();
        let forward = cpu::fake_quantize_weight(&w, &s, &s, layout, b8, b4).collect().0;
        let search = cpu::search_scales(Isa::detect(), &w, layout, &[b8, b4]);
        let words = cpu::quantize_pack(&w, &s, None, layout, b8).collect().0;
        let switched = cpu::switch_packed(&words, w.len(), b8, b4).collect().0;
        let values = cpu::dequantize_packed(&switched, &s, None, layout, b4).collect().0;
        let floats = [dw, a, b, dx, c, d, forward, search, values].concat();
        [bits(&floats), words, switched].concat()
    };
    let on =
        |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(everything);
    let alone = on(1);
    for threads in [2, 3, 8] {
        assert!(on(threads) == alone, "{threads} threads");
    }
}

prop_compose! {
    /// A tensor of up to four axes, weights or activations, with any granularity.
    fn any_case()(
        shape in prop::collection::vec(0usize..40, 1..5), weights: bool, kind in 0..3, group in 1usize..50, seed in 1u64..1000,
    ) -> Case {
        let granularity = match kind {
            0 => Granularity::Tensor,
            1 => Granularity::Channel,
            _ => Granularity::Group(NonZeroUsize::new(group).unwrap()),
        };
        let layout = match weights {
            true => ScaleLayout::weights(&shape, granularity).unwrap(),
            false => ScaleLayout::activations(&shape, granularity).unwrap(),
        };
        Case { layout, seed }
    }
}

fn any_width() -> impl Strategy<Value = BitWidth> {
    prop::sample::select(&BitWidth::ALL[..])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn random_shapes(
        case in any_case().prop_filter("small", |case| case.layout.elements() < 50_000),
        widths in (any_width(), any_width()), mode in prop::sample::select(&ScaleGradient::ALL[..]),
    ) {
        let (stored, active) = (widths.0.max(widths.1), widths.0.min(widths.1));
        check_weight_forward(&case, stored, active);
        check_activation_forward(&case, active);
        check_weight_backward(&case, stored, active, mode);
        check_activation_backward(&case, active);
        check_pack(&case, &case.x(), active);
    }

    #[test]
    fn random_codes(codes in prop::collection::vec(-128..128, 0..500), widths in (any_width(), any_width())) {
        let (stored, active) = (widths.0.max(widths.1), widths.0.min(widths.1));
        check_switch(&codes, stored, active);
    }
}
