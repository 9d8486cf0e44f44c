//! temporary
use crate::{ScaleGradient, layout::ScaleLayout, reference};
use dr_precision::BitWidth;
pub use reference::{
    dequantize_packed, fake_quantize_activation, fake_quantize_weight, search_scales, switch_packed,
};
fn f(v: Vec<f64>) -> Vec<f32> {
    v.into_iter().map(|x| x as f32).collect()
}
pub fn fake_quantize_weight_backward(
    w: &[f32], sh: &[f32], s: &[f32], g: &[f32], l: &ScaleLayout, st: BitWidth, a: BitWidth, m: ScaleGradient,
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let (a, b, c) = reference::fake_quantize_weight_backward(w, sh, s, g, l, st, a, m);
    (f(a), f(b), f(c))
}
pub fn fake_quantize_activation_backward(
    x: &[f32], s: &[f32], z: &[f32], g: &[f32], l: &ScaleLayout, b: BitWidth,
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let (a, b, c) = reference::fake_quantize_activation_backward(x, s, z, g, l, b);
    (f(a), f(b), f(c))
}
pub trait Sample: Copy {
    fn f(self) -> f32;
}
impl Sample for f32 {
    fn f(self) -> f32 {
        self
    }
}
impl Sample for half::f16 {
    fn f(self) -> f32 {
        self.to_f32()
    }
}
impl Sample for half::bf16 {
    fn f(self) -> f32 {
        self.to_f32()
    }
}
pub fn quantize_pack<T: Sample>(
    x: &[T], s: &[f32], z: Option<&[f32]>, l: &ScaleLayout, b: BitWidth,
) -> Vec<u32> {
    let x: Vec<f32> = x.iter().map(|x| x.f()).collect();
    reference::quantize_pack(&x, s, z, l, b)
}
