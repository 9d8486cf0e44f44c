//! Every code and every pair of widths against arithmetic done another way, in `f64`.

use dr_precision::{BitWidth, semantics::*};
use proptest::prelude::*;

fn pairs() -> impl Iterator<Item = (BitWidth, BitWidth)> {
    BitWidth::ALL
        .into_iter()
        .flat_map(|h| BitWidth::ALL.into_iter().filter(move |&l| l <= h).map(move |l| (h, l)))
}

#[test]
fn switch_is_rounding_half_to_even_for_all_codes_and_pairs() {
    for (h, l) in pairs() {
        for code in h.signed_min()..=h.signed_max() {
            let exact = f64::from(code) / 2f64.powi((h.bits() - l.bits()) as i32);
            let rounded = exact.round_ties_even();
            assert!(rounded >= f64::from(l.signed_min()), "the lower clip is never hit");
            let want = rounded.min(f64::from(l.signed_max())) as i32;
            assert_eq!(switch(code, h, l), want, "{code} from {h} to {l} bits");
        }
    }
}

#[test]
fn switching_twice_is_not_switching_once() {
    let twice = |q| switch(switch(q, BitWidth::B8, BitWidth::B4), BitWidth::B4, BitWidth::B2);
    assert!((-128..=127).any(|q| twice(q) != switch(q, BitWidth::B8, BitWidth::B2)));
}

#[test]
fn stored_codes_survive_dequantize_and_quantize() {
    for bits in BitWidth::ALL {
        for code in bits.signed_min()..=bits.signed_max() {
            assert_eq!(quantize(dequantize(code, 0.037), 0.037, bits), code);
        }
        for code in 0..=bits.unsigned_max() {
            assert_eq!(quantize_activation(dequantize_activation(code, 0.5, -3.0), 0.5, -3.0, bits), code);
        }
    }
}

#[test]
fn values_that_are_not_numbers_have_codes() {
    for bits in BitWidth::ALL {
        assert_eq!(quantize(f32::NAN, 1.0, bits), 0);
        assert_eq!(quantize(f32::INFINITY, 1.0, bits), bits.signed_max());
        assert_eq!(quantize(f32::NEG_INFINITY, 1.0, bits), bits.signed_min());
        assert_eq!(quantize_activation(f32::NEG_INFINITY, 1.0, 0.0, bits), 0);
    }
}

proptest! {
    #[test]
    fn quantize_is_the_std_rounding(w in -300f32..300.0, scale in 0.01f32..10.0, bits in 2u32..=8) {
        let bits = BitWidth::try_from(bits).unwrap();
        let want = (w / scale).round_ties_even().clamp(bits.signed_min() as f32, bits.signed_max() as f32);
        prop_assert_eq!(quantize(w, scale, bits), want as i32);
    }

    #[test]
    fn ties_round_to_even(half in -300i32..300, bits in 2u32..=8) {
        let bits = BitWidth::try_from(bits).unwrap();
        let x = half as f32 + 0.5;
        let want = x.round_ties_even().clamp(bits.signed_min() as f32, bits.signed_max() as f32);
        prop_assert_eq!(quantize(x, 1.0, bits), want as i32);
    }

    #[test]
    fn activations_use_the_std_rounding(x in -9f32..9.0, scale in 0.01f32..1.0, zero in -5f32..5.0, bits in 2u32..=8) {
        let bits = BitWidth::try_from(bits).unwrap();
        let want = ((x - zero) / scale).round_ties_even().clamp(0.0, bits.unsigned_max() as f32);
        prop_assert_eq!(quantize_activation(x, scale, zero, bits), want as i32);
    }
}
