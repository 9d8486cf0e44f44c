//! Convolutions and matrix products in integers.

use super::{Weight, code_len};
use crate::KernelError;
use crate::cpu::integer::{self, DotKernel, Epilogue, quantize_codes_into, tap_sums};
use crate::error::size;
use crate::integer::{Activation, CodeQuantizer, Conv2dOptions, IntConv2dShape};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// A convolution or matrix product in integers, ready to run: a weight, how its input is quantized, and what follows.
///
/// With `x` and `q` the codes of input and weight, `s` and `z` the scale and zero point of the input, and `w` the scales of the
/// weight, a result is
///
/// ```text
/// activation(s w gain * sum(x q)  +  shift + z * sum(w gain q)  (+ residual))
/// ```
///
/// with sums for each group of inputs that has a scale of its own, and the last one over the taps that are inside the image.
/// `gain` and `shift` are those of each output: a bias with a gain of 1, or BatchNorm in evaluation mode.
#[derive(Debug)]
pub struct Product {
    weight: Weight,
    options: Conv2dOptions,
    input: CodeQuantizer,
    gain: Vec<f32>,
    shift: Arc<[f32]>,
    activation: Activation,
    /// `[scale groups, outputs]`, of input, weight and gain.
    multiplier: Vec<f32>,
    /// `[taps, outputs]`: the sums of weights, times their scales and gains. Made by the first pass that needs them.
    sums: OnceLock<Vec<f32>>,
    /// Shifts with what makes up for the zero point, by size of the input.
    addends: Mutex<HashMap<[usize; 2], Arc<[f32]>>>,
}

/// So many addends are kept: of images of many sizes they would fill the memory.
const KEPT_ADDENDS: usize = 64;

/// Products that [`run_together`] computes in one loop.
const TOGETHER: usize = 4;

/// Where results go: as values, as codes of the next layer, or both.
#[derive(Debug)]
pub struct Results<'a> {
    /// `[batch, rows, columns, outputs]`.
    pub values: Option<&'a mut [f32]>,
    /// The codes, [`code_len`] of them, and how they are quantized. The codes of padding are left as they are.
    pub codes: Option<(&'a mut [u8], CodeQuantizer)>,
}

/// One of the products of [`run_together`].
#[derive(Debug)]
pub struct Job<'a> {
    /// What is computed.
    pub product: &'a Product,
    /// Of the input.
    pub codes: &'a [u8],
    /// Sizes of the input, `[batch, rows, columns, channels]`.
    pub dims: [usize; 4],
    /// What is added before the activation, of the sizes of the result.
    pub residual: Option<&'a [f32]>,
    /// Where the results go.
    pub results: Results<'a>,
}

impl Product {
    /// A product whose input is quantized by `input`; `gain` and `shift` are `[outputs]`.
    ///
    /// # Errors
    /// [`KernelError::Size`] for another number of gains or shifts, [`KernelError::Zero`] for a stride or dilation of 0.
    pub fn new(
        weight: Weight, options: Conv2dOptions, input: CodeQuantizer, gain: &[f32], shift: &[f32],
        activation: Activation,
    ) -> Result<Self, KernelError> {
        let outputs = weight.layout().outputs();
        size("gains of a product", &[gain.len()], &[outputs])?;
        size("shifts of a product", &[shift.len()], &[outputs])?;
        IntConv2dShape::new(0, [0, 0], options, *weight.layout())?;
        let multiplier = with_gain(&weight, gain).map(|scale| input.scale * scale).collect();
        Ok(Self {
            weight,
            options,
            input,
            gain: gain.to_vec(),
            shift: shift.into(),
            activation,
            multiplier,
            sums: OnceLock::new(),
            addends: Mutex::default(),
        })
    }

    /// How its input is quantized.
    #[must_use]
    pub const fn input(&self) -> CodeQuantizer {
        self.input
    }

    /// Its weight.
    #[must_use]
    pub const fn weight(&self) -> &Weight {
        &self.weight
    }

    /// How its kernel moves.
    #[must_use]
    pub const fn options(&self) -> Conv2dOptions {
        self.options
    }

    /// What each output is multiplied by.
    #[must_use]
    pub fn gain(&self) -> &[f32] {
        &self.gain
    }

    /// What is added to each output.
    #[must_use]
    pub fn shift(&self) -> &[f32] {
        &self.shift
    }

    /// What is done last.
    #[must_use]
    pub const fn activation(&self) -> Activation {
        self.activation
    }

    /// Bytes that a pass reads: the codes with their padding, a multiplier for each scale and an addend for each output, the
    /// scale and zero point of the input.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.weight.bytes() + (self.multiplier.len() + self.shift.len() + 2) * size_of::<f32>()
    }

    /// Sizes of the result, `[batch, rows, columns, channels]`, for an input of these sizes.
    ///
    /// # Errors
    /// [`KernelError::Size`] for another number of channels, [`KernelError::TooLarge`] for sizes that overflow.
    pub fn output(&self, input: [usize; 4]) -> Result<[usize; 4], KernelError> {
        let shape = self.shape(input)?;
        let [rows, columns] = shape.output();
        Ok([shape.batch(), rows, columns, shape.weight().outputs()])
    }

    /// The input as codes. `x` is `[batch, rows, columns, channels]` if `channels_last`, else `[batch, channels, rows,
    /// columns]`; `dims` are `[batch, rows, columns, channels]` for both. The codes of padding are left as they are.
    ///
    /// # Errors
    /// [`KernelError::Size`] for another number of channels, values or codes, [`KernelError::TooLarge`] for sizes that overflow.
    pub fn quantize(
        &self, x: &[f32], dims: [usize; 4], channels_last: bool, out: &mut [u8],
    ) -> Result<(), KernelError> {
        self.shape(dims)?;
        let [batch, rows, columns, channels] = dims;
        size("input of a product", &[x.len()], &[batch * rows * columns * channels])?;
        size("codes of a product's input", &[out.len()], &[code_len(dims)])?;
        quantize_codes_into(x, [channels, rows * columns], channels_last, self.input, out);
        Ok(())
    }

    /// Computes the product. `dims` are those of the input, `[batch, rows, columns, channels]`; the residual and the results
    /// are of the sizes of [`Product::output`].
    ///
    /// # Errors
    /// [`KernelError::Size`] for another number of channels, codes, residuals or results, [`KernelError::TooLarge`] for sizes
    /// that overflow.
    pub fn run(
        &self, codes: &[u8], dims: [usize; 4], residual: Option<&[f32]>, results: Results,
    ) -> Result<(), KernelError> {
        run_together(&mut [Job { product: self, codes, dims, residual, results }])
    }

    /// The convolution of an input of these sizes.
    fn shape(&self, [batch, rows, columns, channels]: [usize; 4]) -> Result<IntConv2dShape, KernelError> {
        let shape = IntConv2dShape::new(batch, [rows, columns], self.options, *self.weight.layout())?;
        size("input channels", &[channels], &[shape.channels()])?;
        Ok(shape)
    }

    /// What is added at each position.
    fn addend(&self, shape: &IntConv2dShape) -> Arc<[f32]> {
        if self.input.zero_point == 0.0 || shape.results() == 0 || shape.weight().cols() == 0 {
            return self.shift.clone();
        }
        // Without padding, all sizes have the same.
        let size = if shape.padding() == [0, 0] { [0, 0] } else { shape.input() };
        let addends = || self.addends.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(addend) = addends().get(&size) {
            return addend.clone();
        }
        // Without the lock: a thread that waits for others may be given other work, which may want it.
        if self.sums.get().is_none() {
            let scale: Vec<f32> = with_gain(&self.weight, &self.gain).collect();
            let _ = self.sums.set(tap_sums(self.weight.words(), &scale, self.weight.layout()));
        }
        let sums = self.sums.get().map_or(&[][..], Vec::as_slice);
        let addend: Arc<[f32]> = integer::addends(sums, self.input.zero_point, &self.shift, shape).into();
        let mut addends = addends();
        if addends.len() >= KEPT_ADDENDS {
            addends.clear();
        }
        addends.insert(size, addend.clone());
        addend
    }
}

/// `[scale groups, outputs]`: scales of the weight times gains.
fn with_gain(weight: &Weight, gain: &[f32]) -> impl Iterator<Item = f32> {
    weight.scales_by_group().iter().zip(gain.iter().cycle()).map(|(scale, gain)| scale * gain)
}

/// Computes several products in one loop of all threads: those of one input (the queries, keys and values of a language model)
/// need not wait for each other.
///
/// # Errors
/// Those of [`Product::run`]; then nothing has been written.
pub fn run_together(jobs: &mut [Job]) -> Result<(), KernelError> {
    for job in &*jobs {
        job.check()?;
    }
    for jobs in jobs.chunks_mut(TOGETHER) {
        match jobs {
            [a] => run([a]),
            [a, b] => run([a, b]),
            [a, b, c] => run([a, b, c]),
            [a, b, c, d] => run([a, b, c, d]),
            _ => Ok(()),
        }?;
    }
    Ok(())
}

fn run<const N: usize>(jobs: [&mut Job; N]) -> Result<(), KernelError> {
    let mut shapes = [IntConv2dShape::gemm(0, *jobs[0].product.weight.layout())?; N];
    for (shape, job) in shapes.iter_mut().zip(&jobs) {
        *shape = job.work()?;
    }
    let addends: [Arc<[f32]>; N] = std::array::from_fn(|at| jobs[at].product.addend(&shapes[at]));
    let epilogues: [Epilogue; N] = std::array::from_fn(|at| {
        let Product { multiplier, activation, .. } = jobs[at].product;
        let residual = jobs[at].residual.map(|residual| &residual[..shapes[at].results()]);
        Epilogue { multiplier, addend: &addends[at], residual, activation: *activation }
    });
    let mut at = 0..N;
    integer::int_conv2d_together(
        DotKernel::detect(),
        jobs.map(|Job { product, codes, results: Results { values, codes: to }, .. }| {
            let at = at.next().unwrap_or_default();
            let to = to.as_mut().map(|(out, to)| (&mut **out, *to));
            let results = integer::Results { values: values.as_deref_mut(), codes: to };
            let weights = product.weight.words();
            let codes = &codes[..shapes[at].code_bytes()];
            integer::Job { codes, weights, shape: &shapes[at], epilogue: &epilogues[at], results }
        }),
    );
    Ok(())
}

impl Job<'_> {
    /// The convolution that is left to do once all sizes are checked: one of no image if nobody wants results.
    fn work(&self) -> Result<IntConv2dShape, KernelError> {
        let shape = self.product.shape(self.dims)?;
        let wanted = self.results.values.is_some() || self.results.codes.is_some();
        if wanted && shape.results() > 0 { Ok(shape) } else { IntConv2dShape::gemm(0, *shape.weight()) }
    }

    /// Checks all sizes.
    fn check(&self) -> Result<IntConv2dShape, KernelError> {
        let Self { product, codes, dims, residual, results } = self;
        let shape = product.shape(*dims)?;
        size("codes of a product's input", &[codes.len()], &[code_len(*dims)])?;
        let [rows, columns] = shape.output();
        let output = [shape.batch(), rows, columns, shape.weight().outputs()];
        let values = shape.results();
        if let Some(residual) = residual {
            size("residual", &[residual.len()], &[values])?;
        }
        if let Some(out) = &results.values {
            size("values of a product", &[out.len()], &[values])?;
        }
        if let Some((out, _)) = &results.codes {
            size("codes of a product", &[out.len()], &[code_len(output)])?;
        }
        Ok(shape)
    }
}
