//! The operations that training needs, on the devices of a worker: a process, here or on another machine, that serves them by
//! Burn Remote.
//!
//! A worker is a [`RemoteServer`] [with these operations](serving); on the other side, [`search_scales`](crate::search_scales),
//! [`fake_quantize_weight`](crate::fake_quantize_weight) and [`fake_quantize_activation`](crate::fake_quantize_activation) take
//! tensors of its devices as those of any other. Packed and integer arithmetic is not served.
//!
//! An operation travels as its name, its tensors and its parameters as numbers. What a worker is sent is checked before any
//! kernel sees it; what does not fit ends the session it came from.

use super::ops::{ActivationFormat, FakeQuantizeGradOps, FakeQuantizeOps, SearchOps, WeightFormat};
use super::read;
use crate::error::product;
use crate::{KernelError, ScaleGradient, layout::ScaleLayout};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, DispatchDevice, Flex, Remote, TensorMetadata, backend_extension};
use burn::remote::CustomOpClient;
use burn::server::{CustomOpRegistry, RemoteServer};
use burn::tensor::{DType, Device, Int, Shape, Tensor, TensorData};
use burn_ir::{BackendIr, CustomOpIr, HandleContainer, ScalarIr, TensorIr};
use dr_precision::BitWidth;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A version of this crate. Two that differ may not mean the same by an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version([u32; 3]);

impl Version {
    /// The version that is compiled in.
    pub const HERE: Self = Self([
        number(env!("CARGO_PKG_VERSION_MAJOR")),
        number(env!("CARGO_PKG_VERSION_MINOR")),
        number(env!("CARGO_PKG_VERSION_PATCH")),
    ]);
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.0;
        write!(f, "{major}.{minor}.{patch}")
    }
}

/// A number of digits.
const fn number(digits: &str) -> u32 {
    let (mut value, mut rest) = (0, digits.as_bytes());
    while let [digit, after @ ..] = rest {
        value = value * 10 + (*digit - b'0') as u32;
        rest = after;
    }
    value
}

/// What a worker says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Worker {
    /// Its version.
    pub version: Version,
    /// How many operations of this crate it has run, for all clients together.
    pub operations: u64,
}

impl Worker {
    /// Asks the worker that serves `device`.
    ///
    /// # Errors
    /// [`KernelError::Read`] if it does not answer: it is gone, or it is no worker with the operations of this crate.
    pub fn of(device: &Device) -> Result<Self, KernelError> {
        let question = Tensor::<1, Int>::zeros([ANSWER], (&device.clone().inner(), DType::I32));
        let answer = Dispatch::worker(question.into_dispatch());
        let answer =
            read::<i32>("worker", Tensor::from_dispatch(answer))?.into_iter().map(i32::cast_unsigned);
        let words: [u32; ANSWER] = answer.collect::<Vec<_>>().try_into().map_err(|words: Vec<u32>| {
            let reason = format!("{} numbers, expected {ANSWER}", words.len());
            KernelError::Read { what: "worker", reason }
        })?;
        let [major, minor, patch, low, high] = words;
        Ok(Self {
            version: Version([major, minor, patch]),
            operations: u64::from(high) << 32 | u64::from(low),
        })
    }
}

/// The numbers of an answer: those of the version, and the count in two halves.
const ANSWER: usize = 5;

/// A server of `devices`, which are of one kind, with the operations; `run` counts those that it runs.
#[must_use]
pub fn serving(devices: Vec<Device>, run: &Arc<AtomicU64>) -> RemoteServer {
    let first = devices.first().map(|device| device.clone().inner());
    match first.as_ref().map(Device::as_dispatch) {
        #[cfg(feature = "cube")]
        Some(DispatchDevice::Cube(_)) => {
            RemoteServer::new(devices).with_custom_ops(operations::<burn::backend::Cube>(run))
        }
        Some(DispatchDevice::Flex(_)) => RemoteServer::new(devices).with_custom_ops(operations::<Flex>(run)),
        // Burn refuses to serve those.
        _ => RemoteServer::new(devices),
    }
}

/// What a worker answers to.
#[backend_extension(Remote)]
trait WorkerOps: Backend {
    /// The numbers of a [`Worker`]; those of `question` are not read.
    fn worker(question: IntTensor<Self>) -> IntTensor<Self>;
}

const WORKER: &str = "dr-kernels worker";
const WEIGHT: &str = "dr-kernels fake_quantize_weight";
const WEIGHT_BACKWARD: &str = "dr-kernels fake_quantize_weight_backward";
const ACTIVATION: &str = "dr-kernels fake_quantize_activation";
const ACTIVATION_BACKWARD: &str = "dr-kernels fake_quantize_activation_backward";
const SEARCH: &str = "dr-kernels search_scales";

/// Parameters of an operation, as numbers.
trait Parameters: Sized {
    fn write(&self, numbers: &mut Vec<u64>);

    /// What [`write`](Self::write) wrote; nothing of other numbers.
    fn read(numbers: &mut dyn Iterator<Item = u64>) -> Option<Self>;
}

/// Nothing.
impl Parameters for () {
    fn write(&self, _: &mut Vec<u64>) {}

    fn read(_: &mut dyn Iterator<Item = u64>) -> Option<Self> {
        Some(())
    }
}

impl Parameters for BitWidth {
    fn write(&self, numbers: &mut Vec<u64>) {
        numbers.push(self.bits().into());
    }

    fn read(numbers: &mut dyn Iterator<Item = u64>) -> Option<Self> {
        u32::try_from(numbers.next()?).ok()?.try_into().ok()
    }
}

impl Parameters for ScaleGradient {
    fn write(&self, numbers: &mut Vec<u64>) {
        numbers
            .extend(Self::ALL.iter().position(|gradient| gradient == self).map(|position| position as u64));
    }

    fn read(numbers: &mut dyn Iterator<Item = u64>) -> Option<Self> {
        Self::ALL.get(usize::try_from(numbers.next()?).ok()?).copied()
    }
}

impl Parameters for ScaleLayout {
    fn write(&self, numbers: &mut Vec<u64>) {
        let Self { outer, rows, cols, group } = *self;
        numbers.extend([outer, rows, cols, group].map(|size| size as u64));
    }

    fn read(numbers: &mut dyn Iterator<Item = u64>) -> Option<Self> {
        let mut size = || usize::try_from(numbers.next()?).ok();
        let (outer, rows, cols, group) = (size()?, size()?, size()?, size()?);
        (group > 0 && product("layout", &[outer, rows, cols]).is_ok()).then_some(Self {
            outer,
            rows,
            cols,
            group,
        })
    }
}

impl Parameters for WeightFormat {
    fn write(&self, numbers: &mut Vec<u64>) {
        let Self { stored, active, layout, gradient } = self;
        stored.write(numbers);
        active.write(numbers);
        layout.write(numbers);
        gradient.write(numbers);
    }

    fn read(numbers: &mut dyn Iterator<Item = u64>) -> Option<Self> {
        let (stored, active) = (BitWidth::read(numbers)?, BitWidth::read(numbers)?);
        let (layout, gradient) = (ScaleLayout::read(numbers)?, ScaleGradient::read(numbers)?);
        (active <= stored).then_some(Self { stored, active, layout, gradient })
    }
}

impl Parameters for ActivationFormat {
    fn write(&self, numbers: &mut Vec<u64>) {
        self.bits.write(numbers);
        self.layout.write(numbers);
    }

    fn read(numbers: &mut dyn Iterator<Item = u64>) -> Option<Self> {
        Some(Self { bits: BitWidth::read(numbers)?, layout: ScaleLayout::read(numbers)? })
    }
}

/// A layout, and widths.
impl Parameters for (ScaleLayout, Vec<BitWidth>) {
    fn write(&self, numbers: &mut Vec<u64>) {
        let (layout, widths) = self;
        layout.write(numbers);
        widths.iter().for_each(|width| width.write(numbers));
    }

    fn read(numbers: &mut dyn Iterator<Item = u64>) -> Option<Self> {
        let layout = ScaleLayout::read(numbers)?;
        let bits = numbers.map(|bits| BitWidth::try_from(u32::try_from(bits).ok()?).ok());
        let widths: Vec<BitWidth> = bits.collect::<Option<_>>()?;
        let sound = !widths.is_empty() && widths.windows(2).all(|pair| pair[0] > pair[1]);
        sound.then_some((layout, widths))
    }
}

/// Sends an operation to the worker of its inputs, of which there is at least one. The results have the shapes and types of
/// `results`.
fn send<const N: usize>(
    name: &'static str, inputs: Vec<FloatTensor<Remote>>, parameters: &impl Parameters,
    results: [(Shape, DType); N],
) -> [FloatTensor<Remote>; N] {
    let client = CustomOpClient::new(&inputs[0].device());
    let mut numbers = vec![];
    parameters.write(&mut numbers);
    let inputs: Vec<TensorIr> = inputs.into_iter().map(FloatTensor::<Remote>::into_ir).collect();
    let outputs = results.map(|(shape, dtype)| TensorIr::uninit(client.create_empty_handle(), shape, dtype));
    let scalars = numbers.into_iter().map(ScalarIr::UInt).collect();
    let results = client.register(CustomOpIr::with_scalars(name, &inputs, &outputs, scalars));
    results.try_into().unwrap_or_else(|_| unreachable!("as many results as outputs"))
}

/// The shape and type of a tensor.
fn like(tensor: &FloatTensor<Remote>) -> (Shape, DType) {
    (tensor.shape(), tensor.dtype())
}

impl WorkerOps for Remote {
    fn worker(question: IntTensor<Self>) -> IntTensor<Self> {
        let answer = (question.shape(), DType::I32);
        let [answer] = send(WORKER, vec![question], &(), [answer]);
        answer
    }
}

impl FakeQuantizeOps for Remote {
    fn fake_quantize_weight(
        w: FloatTensor<Self>, stored_scale: FloatTensor<Self>, scale: FloatTensor<Self>, format: WeightFormat,
    ) -> FloatTensor<Self> {
        let result = like(&w);
        let [w] = send(WEIGHT, vec![w, stored_scale, scale], &format, [result]);
        w
    }

    fn fake_quantize_activation(
        x: FloatTensor<Self>, scale: FloatTensor<Self>, zero_point: FloatTensor<Self>,
        format: ActivationFormat,
    ) -> FloatTensor<Self> {
        let result = like(&x);
        let [x] = send(ACTIVATION, vec![x, scale, zero_point], &format, [result]);
        x
    }
}

impl FakeQuantizeGradOps for Remote {
    fn fake_quantize_weight_backward(
        w: FloatTensor<Self>, stored_scale: FloatTensor<Self>, scale: FloatTensor<Self>,
        grad: FloatTensor<Self>, format: WeightFormat,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let results = [&w, &stored_scale, &scale].map(like);
        send(WEIGHT_BACKWARD, vec![w, stored_scale, scale, grad], &format, results).into()
    }

    fn fake_quantize_activation_backward(
        x: FloatTensor<Self>, scale: FloatTensor<Self>, zero_point: FloatTensor<Self>,
        grad: FloatTensor<Self>, format: ActivationFormat,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let results = [&x, &scale, &zero_point].map(like);
        send(ACTIVATION_BACKWARD, vec![x, scale, zero_point, grad], &format, results).into()
    }
}

impl SearchOps for Remote {
    fn search_scales(w: FloatTensor<Self>, layout: ScaleLayout, widths: Vec<BitWidth>) -> FloatTensor<Self> {
        let result = (Shape::new([widths.len() * layout.scales()]), DType::F32);
        let [scales] = send(SEARCH, vec![w], &(layout, widths), [result]);
        scales
    }
}

/// An operation that a worker was sent.
///
/// Burn's handlers have no results: what does not fit panics, and Burn Remote ends the session that it came from.
struct Call<'a, B: BackendIr> {
    handles: &'a mut HandleContainer<B::Handle>,
    operation: &'a CustomOpIr,
}

impl<B: BackendIr> Call<'_, B> {
    fn check(&self, fits: bool, what: &str) {
        assert!(fits, "operation `{}`: {what} that do not fit", self.operation.id);
    }

    fn parameters<P: Parameters>(&self) -> P {
        let mut numbers = self.operation.scalars.iter().map_while(|scalar| match scalar {
            ScalarIr::UInt(number) => Some(*number),
            _ => None,
        });
        let parameters = P::read(&mut numbers).filter(|_| numbers.next().is_none());
        self.check(parameters.is_some(), "parameters");
        parameters.unwrap_or_else(|| unreachable!("it is checked"))
    }

    /// Its tensors, in f32: one of `layout`, and others with a value for each of its scales; `gradient` ends them with another
    /// one like the first.
    fn inputs<const N: usize>(&mut self, layout: &ScaleLayout, gradient: bool) -> [FloatTensor<B>; N] {
        let inputs = &self.operation.inputs;
        let expected = |i: usize| match i == 0 || (gradient && i == N - 1) {
            true => layout.elements(),
            false => layout.scales(),
        };
        let fit = |(i, input): (usize, &TensorIr)| {
            input.dtype == DType::F32 && input.shape.num_elements() == expected(i)
        };
        self.check(inputs.len() == N && inputs.iter().enumerate().all(fit), "tensors");
        let tensors = std::array::from_fn(|i| self.handles.get_float_tensor::<B>(&inputs[i]));
        // What a worker holds is what counts.
        let fit = tensors
            .iter()
            .zip(inputs)
            .all(|(tensor, input)| tensor.shape() == input.shape && tensor.dtype() == input.dtype);
        self.check(fit, "tensors");
        tensors
    }

    fn answer<const N: usize>(self, results: [FloatTensor<B>; N]) {
        self.check(self.operation.outputs.len() == N, "results");
        for (output, result) in self.operation.outputs.iter().zip(results) {
            self.handles.register_float_tensor::<B>(&output.id, result);
        }
    }
}

/// What a worker with devices of `B` runs.
fn operations<B>(run: &Arc<AtomicU64>) -> CustomOpRegistry<B>
where
    B: BackendIr + FakeQuantizeOps + FakeQuantizeGradOps + SearchOps,
{
    let mut registry = CustomOpRegistry::new();
    let mut serve = |name: &str, operation: fn(Call<'_, B>)| {
        let run = run.clone();
        registry.register(
            name,
            move |handles: &mut HandleContainer<B::Handle>, ir: &CustomOpIr, _: &B::Device| {
                operation(Call { handles, operation: ir });
                run.fetch_add(1, Ordering::Relaxed);
            },
        );
    };
    serve(WEIGHT, |mut call| {
        let format: WeightFormat = call.parameters();
        let [w, stored_scale, scale] = call.inputs(&format.layout, false);
        call.answer([B::fake_quantize_weight(w, stored_scale, scale, format)]);
    });
    serve(WEIGHT_BACKWARD, |mut call| {
        let format: WeightFormat = call.parameters();
        let [w, stored_scale, scale, grad] = call.inputs(&format.layout, true);
        call.answer(B::fake_quantize_weight_backward(w, stored_scale, scale, grad, format).into());
    });
    serve(ACTIVATION, |mut call| {
        let format: ActivationFormat = call.parameters();
        let [x, scale, zero_point] = call.inputs(&format.layout, false);
        call.answer([B::fake_quantize_activation(x, scale, zero_point, format)]);
    });
    serve(ACTIVATION_BACKWARD, |mut call| {
        let format: ActivationFormat = call.parameters();
        let [x, scale, zero_point, grad] = call.inputs(&format.layout, true);
        call.answer(B::fake_quantize_activation_backward(x, scale, zero_point, grad, format).into());
    });
    serve(SEARCH, |mut call| {
        let (layout, widths) = call.parameters();
        let [w] = call.inputs(&layout, false);
        call.answer([B::search_scales(w, layout, widths)]);
    });
    let run = run.clone();
    registry.register(
        WORKER,
        move |handles: &mut HandleContainer<B::Handle>, ir: &CustomOpIr, device: &B::Device| {
            let ([question], [answer]) = ir.as_fixed();
            drop(handles.get_int_tensor::<B>(question));
            let Version([major, minor, patch]) = Version::HERE;
            let count = run.load(Ordering::Relaxed);
            // The halves of a number.
            let words = [major, minor, patch, count as u32, (count >> 32) as u32].map(u32::cast_signed);
            handles.register_int_tensor::<B>(&answer.id, B::int_from_data(TensorData::from(words), device));
        },
    );
    registry
}

#[cfg(test)]
mod tests {
    use super::*;
    use dr_precision::Granularity;
    use std::num::NonZeroUsize;

    /// Whether parameters come back, and what is cut or added is refused.
    fn survives<P: Parameters + PartialEq + fmt::Debug>(parameters: &P, open: bool) {
        let mut numbers = vec![];
        parameters.write(&mut numbers);
        let read = |numbers: &[u64]| {
            let mut numbers = numbers.iter().copied();
            P::read(&mut numbers).filter(|_| numbers.next().is_none())
        };
        assert_eq!(read(&numbers).as_ref(), Some(parameters));
        let wrong = [&numbers[..], &[1 << 40]].concat();
        assert_eq!(read(&wrong), None);
        assert!(open || read(&numbers[..numbers.len() - 1]).is_none());
    }

    #[test]
    fn parameters_come_back_from_numbers() {
        let group = Granularity::Group(NonZeroUsize::new(3).unwrap());
        let layout = ScaleLayout::weights(&[4, 5, 3, 3], group).unwrap();
        for gradient in ScaleGradient::ALL {
            survives(&WeightFormat { stored: BitWidth::B8, active: BitWidth::B3, layout, gradient }, false);
        }
        survives(&ActivationFormat { bits: BitWidth::B5, layout }, false);
        survives(&(layout, vec![BitWidth::B8, BitWidth::B2]), true);
        // Sizes that no tensor has, and groups of nothing.
        for sizes in [[1, 1 << 40, 1 << 40, 1], [1, 1, 1, 0]] {
            assert_eq!(ScaleLayout::read(&mut sizes.into_iter()), None);
        }
    }

    #[test]
    fn the_version_is_that_of_the_package() {
        assert_eq!(Version::HERE.to_string(), env!("CARGO_PKG_VERSION"));
    }
}
