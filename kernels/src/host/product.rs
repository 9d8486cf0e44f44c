//! Convolutions and matrix products in integers.

use super::{Weight, code_len};
use crate::KernelError;
pub use crate::cpu::integer::Results;
use crate::cpu::integer::{self, Addends, DotKernel, Epilogue, Plan, quantize_codes_into, tap_sums};
use crate::error::size;
use crate::integer::{Activation, CodeQuantizer, Conv2dOptions, IntConv2dShape};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// A convolution or matrix product in integers, ready to run: a weight, how its input is quantized, and what follows.
///
/// With `x` and `q` the codes of input and weight, `s` and `z` the scale and zero point of the input, `w` the scales of the
/// weight and `o` its offsets, a result is
///
/// ```text
/// activation(s w gain * sum(x q)  +  s o gain * sum(x)  +  shift + z * sum(gain (w q + o))  (+ residual))
/// ```
///
/// and, if there are some, a factor times it and an addend, of each output ([`Product::with_last`]),
///
/// with sums for each group of inputs that has a scale of its own, and the last one over the taps that are inside the image. The second
/// sum, which is there if the weight has [offsets](Weight::with_offsets), is the same for all outputs of a position.
/// `gain` and `shift` are those of each output: a bias with a gain of 1, or BatchNorm in evaluation mode.
#[derive(Debug)]
pub struct Product {
    weight: Weight,
    options: Conv2dOptions,
    input: CodeQuantizer,
    gain: Vec<f32>,
    shift: Arc<[f32]>,
    activation: Activation,
    /// Factors and addends of `[outputs]`.
    last: Option<[Vec<f32>; 2]>,
    /// `[scale groups, outputs]`, of input, weight and gain.
    multiplier: Vec<f32>,
    /// `[outputs]`: offsets of the weight, times the scale of the input and the gain.
    offset: Option<Vec<f32>>,
    /// `[taps, outputs]`: the sums of what weights stand for, times gains. Made by the first pass that needs them.
    sums: OnceLock<Vec<f32>>,
    /// For inputs of the sizes that there were.
    planned: Mutex<Vec<Arc<Planned>>>,
}

/// What passes with inputs of one size have in common.
#[derive(Debug)]
struct Planned {
    dims: [usize; 4],
    threads: usize,
    plan: Plan,
    /// Shifts with what makes up for the zero point.
    addend: Addends,
}

/// For so many sizes plans are kept: those of images of many sizes would fill the memory.
const KEPT_PLANS: usize = 16;

/// Products that [`run_together`] computes in one loop.
const TOGETHER: usize = 4;

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
        let scaled = |(offset, gain): (&f32, &f32)| input.scale * (offset * gain);
        let offset = weight.offsets().map(|offsets| offsets.iter().zip(gain).map(scaled).collect());
        Ok(Self {
            weight,
            options,
            input,
            gain: gain.to_vec(),
            shift: shift.into(),
            activation,
            last: None,
            multiplier,
            offset,
            sums: OnceLock::new(),
            planned: Mutex::default(),
        })
    }

    /// The same with its results times `gain` plus `shift` of `[outputs]` each, after the activation.
    ///
    /// # Errors
    /// [`KernelError::Size`] for another number of factors or addends.
    pub fn with_last(mut self, gain: Vec<f32>, shift: Vec<f32>) -> Result<Self, KernelError> {
        let outputs = self.weight.layout().outputs();
        size("last factors of a product", &[gain.len()], &[outputs])?;
        size("last addends of a product", &[shift.len()], &[outputs])?;
        self.last = Some([gain, shift]);
        Ok(self)
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

    /// Bytes that a pass reads: the codes with their padding, a multiplier for each scale, an addend and the offset for each output, the
    /// scale and zero point of the input.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let offsets = self.offset.as_ref().map_or(0, Vec::len);
        let last = self.last.as_ref().map_or(0, |[gain, shift]| gain.len() + shift.len());
        self.weight.bytes()
            + (self.multiplier.len() + offsets + last + self.shift.len() + 2) * size_of::<f32>()
    }

    /// Sizes of the result, `[batch, rows, columns, channels]`, for an input of these sizes.
    ///
    /// # Errors
    /// [`KernelError::Size`] for another number of channels, [`KernelError::TooLarge`] for sizes that overflow.
    pub fn output(&self, input: [usize; 4]) -> Result<[usize; 4], KernelError> {
        Ok(self.shape(input)?.result())
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

    fn known(&self) -> MutexGuard<'_, Vec<Arc<Planned>>> {
        self.planned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How inputs of these sizes are computed, if there were any.
    fn planned(&self, dims: [usize; 4]) -> Option<Arc<Planned>> {
        let threads = rayon::current_num_threads();
        let same = |planned: &&Arc<Planned>| planned.dims == dims && planned.threads == threads;
        self.known().iter().find(same).cloned()
    }

    /// How inputs of new sizes are computed.
    fn plan(&self, dims: [usize; 4], shape: IntConv2dShape) -> Arc<Planned> {
        let threads = rayon::current_num_threads();
        // Without the lock: a thread that waits for others may be given other work, which may want it.
        let (plan, addend) = (Plan::new(DotKernel::detect(), shape), self.addend(&shape));
        let planned = Arc::new(Planned { dims, threads, plan, addend });
        let mut known = self.known();
        if known.len() >= KEPT_PLANS {
            known.clear();
        }
        known.push(planned.clone());
        planned
    }

    /// What is added at each position.
    fn addend(&self, shape: &IntConv2dShape) -> Addends {
        if self.input.zero_point == 0.0 || shape.results() == 0 || shape.weight().cols() == 0 {
            return self.shift.clone().into();
        }
        // Without padding, all sizes have the same.
        let same = |of: &IntConv2dShape| {
            of.results() > 0 && (shape.options().padding == [0, 0] || of.input() == shape.input())
        };
        if let Some(planned) = self.known().iter().find(|planned| same(planned.plan.shape())) {
            return planned.addend.clone();
        }
        if self.sums.get().is_none() {
            let (scale, layout): (Vec<f32>, _) =
                (with_gain(&self.weight, &self.gain).collect(), shape.weight());
            let mut sums = tap_sums(self.weight.words(), &scale, layout);
            for (offset, at) in self.weight.offsets().into_iter().flatten().zip(0..) {
                let of_tap = layout.inputs() as f32 * (offset * self.gain[at]);
                sums.iter_mut().skip(at).step_by(layout.outputs()).for_each(|sum| *sum += of_tap);
            }
            let _ = self.sums.set(sums);
        }
        let sums = self.sums.get().map_or(&[][..], Vec::as_slice);
        Addends::new(sums, self.input.zero_point, &self.shift, shape)
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
    if jobs.len() > TOGETHER {
        jobs.iter().try_for_each(|job| job.check().map(|_| ()))?;
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
    let first = jobs[0].check()?;
    let mut planned: [Arc<Planned>; N] = std::array::from_fn(|_| first.clone());
    for (planned, job) in planned.iter_mut().zip(&jobs).skip(1) {
        *planned = job.check()?;
    }
    let epilogues: [Epilogue; N] = std::array::from_fn(|at| {
        let Product { multiplier, offset, activation, last, .. } = jobs[at].product;
        let addend = &planned[at].addend;
        let residual = jobs[at].residual.map(|residual| &residual[..planned[at].plan.shape().results()]);
        let last = last.as_ref().map(|last| last.each_ref().map(Vec::as_slice));
        Epilogue { multiplier, offset: offset.as_deref(), addend, residual, activation: *activation, last }
    });
    let mut at = 0..N;
    integer::int_conv2d_together(jobs.map(
        |Job { product, codes, results: Results { values, codes: to }, .. }| {
            let at = at.next().unwrap_or_default();
            let to = to.as_mut().map(|(out, to)| (&mut **out, *to));
            let results = Results { values: values.as_deref_mut(), codes: to };
            let (plan, weights, epilogue) = (&planned[at].plan, product.weight.words(), &epilogues[at]);
            let codes = &codes[..plan.shape().code_bytes()];
            integer::Job { plan, codes, weights, epilogue, results }
        },
    ));
    Ok(())
}

impl Job<'_> {
    /// Checks all sizes, and says how the job is computed: as one of no image if nobody wants results.
    fn check(&self) -> Result<Arc<Planned>, KernelError> {
        let Self { product, codes, dims, residual, results } = self;
        let planned = product.planned(*dims);
        let shape = planned.as_ref().map_or_else(|| product.shape(*dims), |of| Ok(*of.plan.shape()))?;
        size("codes of a product's input", &[codes.len()], &[code_len(*dims)])?;
        let (output, values) = (shape.result(), shape.results());
        if let Some(residual) = residual {
            size("residual", &[residual.len()], &[values])?;
        }
        if let Some(out) = &results.values {
            size("values of a product", &[out.len()], &[values])?;
        }
        if let Some((out, _)) = &results.codes {
            size("codes of a product", &[out.len()], &[code_len(output)])?;
        }
        let wanted = results.values.is_some() || results.codes.is_some();
        if wanted && values > 0 {
            return Ok(planned.unwrap_or_else(|| product.plan(*dims, shape)));
        }
        let (dims, shape) = ([0; 4], IntConv2dShape::gemm(0, *shape.weight())?);
        Ok(product.planned(dims).unwrap_or_else(|| product.plan(dims, shape)))
    }
}
