//! [`Arithmetic`]: how the layers of an integer network are computed, so that a network is described once.

use super::integer::{IntConv2d, IntegerError};
use burn::tensor::module::max_pool2d;
use burn::tensor::ops::MaxPoolOptions;
use burn::tensor::{DType, Device, Tensor, TensorData};
use dr_kernels::cpu::integer::{
    DotKernel, Epilogue, Job, Results, int_conv2d_results, int_conv2d_together, quantize_codes,
    quantize_codes_into,
};
use dr_kernels::integer::{CodeQuantizer, padded_channels};
use dr_kernels::{Codes, KernelError};
use std::cell::{Cell, RefCell};
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

/// The values and the codes that go from layer to layer, `[batch, rows, columns, channels]`.
pub(crate) trait Arithmetic {
    type Values: Clone;
    type Codes;

    /// Images `[batch, channels, rows, columns]` as the codes that `layer` takes.
    fn quantize_images(&self, layer: &IntConv2d, images: Tensor<4>) -> Result<Self::Codes, IntegerError>;

    /// The codes that `layer` takes.
    fn quantize(&self, layer: &IntConv2d, x: Self::Values) -> Result<Self::Codes, IntegerError>;

    /// The result of `layer` as the codes that `next` takes.
    fn codes(
        &self, layer: &IntConv2d, x: &Self::Codes, next: &IntConv2d,
    ) -> Result<Self::Codes, IntegerError>;

    /// The result of `layer` after `residual` was added, and also as the codes that `next` takes, if there is a next one.
    fn values(
        &self, layer: &IntConv2d, x: &Self::Codes, residual: Option<Self::Values>, next: Option<&IntConv2d>,
    ) -> Result<(Self::Values, Option<Self::Codes>), IntegerError>;

    /// The maximum of 3x3 pixels at every second position.
    fn max_pool(&self, x: Self::Values) -> Self::Values;

    /// The mean of all pixels: `[batch, 1, 1, channels]`.
    fn mean(&self, x: Self::Values) -> Self::Values;

    /// Values of images of one pixel, `[batch, channels]`.
    fn finish(&self, x: Self::Values) -> Tensor<2>;
}

/// Burn's tensors, on any device.
pub(crate) struct OnTensors;

impl Arithmetic for OnTensors {
    type Values = Tensor<4>;
    type Codes = Codes;

    fn quantize_images(&self, layer: &IntConv2d, images: Tensor<4>) -> Result<Codes, IntegerError> {
        layer.quantize(images, false)
    }

    fn quantize(&self, layer: &IntConv2d, x: Tensor<4>) -> Result<Codes, IntegerError> {
        layer.quantize(x, true)
    }

    fn codes(&self, layer: &IntConv2d, x: &Codes, next: &IntConv2d) -> Result<Codes, IntegerError> {
        layer.forward_to(x, next)
    }

    fn values(
        &self, layer: &IntConv2d, x: &Codes, residual: Option<Tensor<4>>, next: Option<&IntConv2d>,
    ) -> Result<(Tensor<4>, Option<Codes>), IntegerError> {
        layer.forward_both(x, residual, next)
    }

    fn max_pool(&self, x: Tensor<4>) -> Tensor<4> {
        max_pool(x.permute([0, 3, 1, 2])).permute([0, 2, 3, 1])
    }

    fn mean(&self, x: Tensor<4>) -> Tensor<4> {
        x.mean_dims(&[1, 2])
    }

    fn finish(&self, x: Tensor<4>) -> Tensor<2> {
        let [batch, _, _, channels] = x.dims();
        x.reshape([batch, channels])
    }
}

/// The maximum of 3x3 pixels at every second position of `[batch, channels, height, width]`.
pub(crate) fn max_pool(x: Tensor<4>) -> Tensor<4> {
    max_pool2d(x, MaxPoolOptions::new([3, 3]).with_stride([2, 2]).with_padding([1, 1]))
}

/// Memory of earlier passes, by element: a pass asks for the same sizes as the one before, and each thread finds in its
/// cache what it wrote then.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    /// Of the last pass.
    input: Cell<[usize; 4]>,
    values: RefCell<Vec<Vec<f32>>>,
    codes: RefCell<Vec<Vec<u8>>>,
}

impl Workspace {
    /// Gives back the memory of passes with inputs of another size.
    pub(crate) fn prepare(&self, input: [usize; 4]) {
        if self.input.replace(input) != input {
            self.values.take();
            self.codes.take();
        }
    }
}

/// Memory of a [`Workspace`], which goes back to it.
pub(crate) struct Buffer<'a, T> {
    elements: Vec<T>,
    home: &'a RefCell<Vec<Vec<T>>>,
    dims: [usize; 4],
}

impl<'a, T: Default + Clone> Buffer<'a, T> {
    fn new(home: &'a RefCell<Vec<Vec<T>>>, len: usize, dims: [usize; 4]) -> Self {
        let mut free = home.borrow_mut();
        let elements = match free.iter().rposition(|elements| elements.len() == len) {
            Some(at) => free.swap_remove(at),
            None => vec![T::default(); len],
        };
        drop(free);
        Self { elements, home, dims }
    }
}

impl<T> Drop for Buffer<'_, T> {
    fn drop(&mut self) {
        // Unless they were handed on.
        if !self.elements.is_empty() {
            self.home.borrow_mut().push(std::mem::take(&mut self.elements));
        }
    }
}

impl<T> Deref for Buffer<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.elements
    }
}

impl<T> DerefMut for Buffer<'_, T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.elements
    }
}

/// Slices of memory, for a CPU: small networks are spared what a tensor costs.
pub(crate) struct OnHost<'a>(pub(crate) &'a Workspace);

impl<'a> OnHost<'a> {
    /// Whether networks and their inputs can be there.
    pub(crate) fn takes<const D: usize>(input: &Tensor<D>) -> bool {
        input.dtype() == DType::F32 && input.device().inner() == Device::flex()
    }

    fn room(&self, dims: [usize; 4]) -> Buffer<'a, f32> {
        Buffer::new(&self.0.values, dims.iter().product(), dims)
    }

    fn code_room(&self, dims: [usize; 4]) -> Buffer<'a, u8> {
        let [batch, rows, columns, channels] = dims;
        Buffer::new(&self.0.codes, batch * rows * columns * padded_channels(channels), dims)
    }

    fn codes_of(
        &self, x: &[f32], dims: [usize; 4], channels_last: bool, to: CodeQuantizer,
    ) -> Buffer<'a, u8> {
        let [_, rows, columns, channels] = dims;
        let mut codes = self.code_room(dims);
        quantize_codes_into(x, [channels, rows * columns], channels_last, to, &mut codes);
        codes
    }

    fn run(
        layer: &IntConv2d, x: &Buffer<u8>, residual: Option<&Buffer<f32>>, results: Results,
    ) -> Result<(), IntegerError> {
        let host = layer.on_host(x.dims)?;
        let expected = layer.output(x.dims)?;
        if let Some(residual) = residual.filter(|residual| residual.dims != expected) {
            let (found, expected) = (residual.dims.to_vec(), expected.to_vec());
            return Err(KernelError::Size { what: "residual", found, expected }.into());
        }
        let epilogue = host.epilogue(residual.map(|residual| &**residual));
        int_conv2d_results(DotKernel::detect(), x, host.words, &host.shape, &epilogue, results);
        Ok(())
    }
}

/// Linear layers of one input, `[rows, features in]` to `[rows, features out]` each, in one parallel loop.
pub(crate) fn linear_on_host<const N: usize>(
    layers: [&IntConv2d; N], x: &[f32], [rows, features]: [usize; 2],
) -> Result<[Vec<f32>; N], IntegerError> {
    let dims = [rows, 1, 1, features];
    let hosts = layers.iter().map(|layer| layer.on_host(dims)).collect::<Result<Vec<_>, _>>()?;
    let epilogues: Vec<Epilogue> = hosts.iter().map(|host| host.epilogue(None)).collect();
    let codes = layers.map(|layer| quantize_codes(x, [features, 1], true, layer.input()));
    let mut results = layers.map(|layer| vec![0.0; rows * layer.outputs()]);
    let mut at = 0..N;
    let jobs = results.each_mut().map(|values| {
        let at = at.next().unwrap_or_default();
        Job {
            codes: &codes[at],
            weights: hosts[at].words,
            shape: &hosts[at].shape,
            epilogue: &epilogues[at],
            results: Results { values: Some(values), codes: None },
        }
    });
    int_conv2d_together(DotKernel::detect(), jobs);
    Ok(results)
}

impl<'a> Arithmetic for OnHost<'a> {
    type Values = Rc<Buffer<'a, f32>>;
    type Codes = Buffer<'a, u8>;

    fn quantize_images(&self, layer: &IntConv2d, images: Tensor<4>) -> Result<Self::Codes, IntegerError> {
        let [batch, channels, rows, columns] = images.dims();
        let data = images.into_data();
        let x = data.as_slice::<f32>().unwrap_or_default();
        Ok(self.codes_of(x, [batch, rows, columns, channels], false, layer.input()))
    }

    fn quantize(&self, layer: &IntConv2d, x: Self::Values) -> Result<Self::Codes, IntegerError> {
        Ok(self.codes_of(&x, x.dims, true, layer.input()))
    }

    fn codes(
        &self, layer: &IntConv2d, x: &Self::Codes, next: &IntConv2d,
    ) -> Result<Self::Codes, IntegerError> {
        let mut out = self.code_room(layer.output(x.dims)?);
        Self::run(layer, x, None, Results { values: None, codes: Some((&mut out, next.input())) })?;
        Ok(out)
    }

    fn values(
        &self, layer: &IntConv2d, x: &Self::Codes, residual: Option<Self::Values>, next: Option<&IntConv2d>,
    ) -> Result<(Self::Values, Option<Self::Codes>), IntegerError> {
        let dims = layer.output(x.dims)?;
        let mut values = self.room(dims);
        let mut codes = next.map(|_| self.code_room(dims));
        let to = codes.as_deref_mut().zip(next.map(IntConv2d::input));
        Self::run(layer, x, residual.as_deref(), Results { values: Some(&mut values), codes: to })?;
        Ok((Rc::new(values), codes))
    }

    fn max_pool(&self, x: Self::Values) -> Self::Values {
        let [batch, rows, columns, channels] = x.dims;
        let half = |size: usize| size.div_ceil(2);
        let mut out = self.room([batch, half(rows), half(columns), channels]);
        let to = [half(rows), half(columns)];
        for (at, out) in out.chunks_exact_mut(channels.max(1)).enumerate() {
            let (image, row, column) = (at / (to[0] * to[1]), at / to[1] % to[0], at % to[1]);
            out.fill(f32::NEG_INFINITY);
            for y in (2 * row).saturating_sub(1)..rows.min(2 * row + 2) {
                for z in (2 * column).saturating_sub(1)..columns.min(2 * column + 2) {
                    let pixel = &x[((image * rows + y) * columns + z) * channels..][..channels];
                    out.iter_mut().zip(pixel).for_each(|(max, &value)| *max = max.max(value));
                }
            }
        }
        Rc::new(out)
    }

    fn mean(&self, x: Self::Values) -> Self::Values {
        let [batch, rows, columns, channels] = x.dims;
        let mut out = self.room([batch, 1, 1, channels]);
        let image = (rows * columns * channels).max(1);
        out.fill(f32::NAN); // of no pixels
        for (out, image) in out.chunks_exact_mut(channels.max(1)).zip(x.chunks_exact(image)) {
            out.fill(0.0);
            for pixel in image.chunks_exact(channels) {
                out.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += value);
            }
            out.iter_mut().for_each(|sum| *sum /= (rows * columns) as f32);
        }
        Rc::new(out)
    }

    fn finish(&self, x: Self::Values) -> Tensor<2> {
        let [batch, _, _, channels] = x.dims;
        let values = match Rc::try_unwrap(x) {
            Ok(mut buffer) => std::mem::take(&mut buffer.elements),
            Err(shared) => shared.to_vec(),
        };
        Tensor::from_data(TensorData::new(values, [batch, channels]), &Device::flex())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_use_the_same_memory_again_and_no_more() {
        let workspace = Workspace::default();
        let on = OnHost(&workspace);
        let pass = || {
            let (a, b) = (on.room([1, 2, 3, 4]), Rc::new(on.room([1, 1, 1, 7])));
            let addresses = [a.as_ptr(), b.as_ptr()];
            drop(a);
            (addresses, on.finish(b).dims())
        };
        let (first, dims) = pass();
        assert_eq!(dims, [1, 7]);
        for _ in 0..10 {
            assert_eq!(pass().0[0], first[0]);
            // What was handed on is gone, and nothing is left in its place.
            assert_eq!(workspace.values.borrow().len(), 1);
        }
    }
}
