//! [`Network`]: a saved network on any device of Burn: on slices where that is this computer's processor, on tensors elsewhere.

mod device;
mod evaluate;
mod floats;
mod functions;
mod images;
mod ops;
mod windows;

pub use evaluate::evaluate;
pub use floats::Floats;
pub use images::Images;
pub use ops::{TensorCache, Text, enlarge};

use crate::RuntimeError;
use crate::arrays::Array;
use crate::file::Artifact;
use crate::graph::{Graph, Kind};
use crate::host::{self, Input};
use crate::source::Arithmetic;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use device::OnDevice;
use dr_precision::{Precision, PrecisionPlan};
use std::time::Duration;

/// What goes in and out of networks.
#[derive(Clone, Debug)]
pub enum Value {
    /// A batch of images.
    Images(Images),
    /// `[n, features]`
    Rows(Tensor<2>),
    /// `[batch, positions]`
    Tokens(Tensor<2, Int>),
    /// An array of floats on a device.
    Floats(Floats),
    /// An array, in this computer's memory and without gradients.
    Array(Array),
}

impl From<Floats> for Value {
    fn from(floats: Floats) -> Self {
        Self::Floats(floats)
    }
}

impl From<Array> for Value {
    fn from(array: Array) -> Self {
        Self::Array(array)
    }
}

impl Value {
    /// The same as an array: `[batch, channels, rows, columns]`, `[n, features]` or `[batch, positions]`.
    ///
    /// # Errors
    /// Tensors that cannot be read.
    pub fn to_array(&self) -> Result<Array, RuntimeError> {
        match self {
            Self::Array(array) => Ok(array.clone()),
            Self::Floats(x) => x.to_array(),
            Self::Images(x) => Floats::from(x.clone().channels_first()).to_array(),
            Self::Rows(x) => Floats::from(x.clone()).to_array(),
            Self::Tokens(x) => {
                let data = x.clone().into_data().convert::<i64>();
                let values = data
                    .try_into_vec()
                    .map_err(|error| wrong(&format!("{error:?}"), "tokens that can be read"))?;
                Ok(Array::from_i64(values, &x.dims())?)
            }
        }
    }

    /// The same as an array: floats where they are, tokens in this computer's memory.
    fn into_arrays(self) -> Result<Self, RuntimeError> {
        Ok(match self {
            Self::Images(x) => Self::Floats(x.channels_first().into()),
            Self::Rows(x) => Self::Floats(x.into()),
            tokens @ Self::Tokens(_) => Self::Array(tokens.to_array()?),
            array @ (Self::Floats(_) | Self::Array(_)) => array,
        })
    }
}

impl From<Images> for Value {
    fn from(images: Images) -> Self {
        Self::Images(images)
    }
}

impl From<Tensor<4>> for Value {
    fn from(images: Tensor<4>) -> Self {
        Self::Images(images.into())
    }
}

impl From<Tensor<2>> for Value {
    fn from(rows: Tensor<2>) -> Self {
        Self::Rows(rows)
    }
}

impl From<Tensor<2, Int>> for Value {
    fn from(tokens: Tensor<2, Int>) -> Self {
        Self::Tokens(tokens)
    }
}

impl Value {
    /// What it is.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Images(_) => "images",
            Self::Rows(_) => "rows",
            Self::Tokens(_) => "tokens",
            Self::Floats(_) | Self::Array(_) => "an array",
        }
    }
}

/// A saved network in integers or with packed weights, at one of its precisions, on a device.
#[derive(Clone, Debug)]
pub struct Network(Engine);

#[derive(Clone, Debug)]
enum Engine {
    Host(host::Network, Device),
    Device(OnDevice),
}

/// What a language model keeps of the earlier positions of a text.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    host: host::Cache,
    tensors: TensorCache,
}

impl Cache {
    /// One for a new text.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Positions that it has.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.host.positions().max(self.tensors.positions())
    }
}

impl Network {
    /// The network of a file at `precision`, on `device`.
    ///
    /// # Errors
    /// A file without a graph, a float network, a precision that it does not have, tensors that are missing or of another shape;
    /// convolutions with [`Arithmetic::WeightOnly`].
    pub fn load(
        artifact: &Artifact, precision: Precision, arithmetic: Arithmetic, device: &Device,
    ) -> Result<Self, RuntimeError> {
        let device = device.clone().inner();
        Ok(Self(if device == Device::flex() {
            Engine::Host(host::Network::load_with(artifact, Some(precision), arithmetic)?, device)
        } else {
            Engine::Device(OnDevice::load(artifact, precision, arithmetic, &device)?)
        }))
    }

    /// The result for images or tokens: `[n, features]`.
    ///
    /// # Errors
    /// An input of another kind, size or device; a network whose result is images.
    pub fn forward(&self, input: impl Into<Value>) -> Result<Tensor<2>, RuntimeError> {
        Ok(self.timed(input.into(), false)?.0)
    }

    /// The same, and how long each layer of the graph took, with the quantization of its input. The device is waited for after each step.
    ///
    /// # Errors
    /// Those of [`Network::forward`].
    pub fn forward_timed(&self, input: impl Into<Value>) -> Result<(Tensor<2>, Vec<Duration>), RuntimeError> {
        self.timed(input.into(), true)
    }

    fn timed(&self, input: Value, timed: bool) -> Result<(Tensor<2>, Vec<Duration>), RuntimeError> {
        let (network, device) = match &self.0 {
            Engine::Host(network, device) => (network, device),
            Engine::Device(network) => return network.forward(input, timed),
        };
        let run = |input: Input| match timed {
            true => network.forward_timed(input),
            false => Ok((network.forward(input)?, vec![])),
        };
        let (output, times) = match input {
            Value::Images(images) => {
                let (shape, data) = (images.dims(), images.channels_first().inner().into_data());
                let data = if data.dtype() == DType::F32 { data } else { data.convert::<f32>() };
                run(Input::Images { values: slice(&data)?, shape })?
            }
            Value::Tokens(tokens) => {
                let ([batch, _], data) = (tokens.dims(), tokens.into_data().convert::<i32>());
                let ids: Vec<u32> = slice::<i32>(&data)?.iter().map(|id| id.cast_unsigned()).collect();
                run(Input::Tokens { ids: &ids, batch })?
            }
            Value::Floats(floats) => run(Input::Arrays(&[floats.to_array()?]))?,
            Value::Array(array) => run(Input::Arrays(&[array]))?,
            Value::Rows(_) => return Err(wrong("rows", "images or tokens")),
        };
        let shape = match (self.graph().result_kind(), &output.shape[..]) {
            // A row for each run of the last axis.
            (Some(Kind::Array), [before @ .., features]) => vec![before.iter().product(), *features],
            _ => output.shape,
        };
        match shape[..] {
            [n, features] => {
                let data = TensorData::new(output.values, [n, features]);
                Ok((Tensor::from_data(data, device), times))
            }
            _ => Err(wrong("a network whose result is images", "one that gives rows")),
        }
    }

    /// Reads the tokens that follow those of `cache` in one text, and gives the logits of what comes next.
    ///
    /// # Errors
    /// No token, more positions than the context has, a token that is not in the vocabulary, a cache of another network.
    pub fn read(&self, tokens: &[u32], cache: &mut Cache) -> Result<Vec<f32>, RuntimeError> {
        match &self.0 {
            Engine::Host(network, _) => network.read(tokens, &mut cache.host),
            Engine::Device(network) => network.read(tokens, &mut cache.tensors),
        }
    }

    /// Switches all layers to another precision, by shifts of the stored codes; those at the edges keep their bits.
    ///
    /// # Errors
    /// [`RuntimeError::Precision`] if the network has no such precision; it then stays as it is.
    pub fn switch(&mut self, precision: Precision) -> Result<(), RuntimeError> {
        match &mut self.0 {
            Engine::Host(network, _) => network.switch(precision),
            Engine::Device(network) => network.switch(precision),
        }
    }

    /// Switches each layer to the precision that a plan has for it; those that have it stay as they are. For networks whose layers can be
    /// switched one by one: with nested weights, or without BatchNorm and trained for mixtures.
    ///
    /// # Errors
    /// [`RuntimeError::Plan`] for another network, and for a plan that does not name just its layers, at precisions that these have; the
    /// network then stays as it is.
    pub fn switch_plan(&mut self, plan: &PrecisionPlan) -> Result<(), RuntimeError> {
        match &mut self.0 {
            Engine::Host(network, _) => network.switch_plan(plan),
            Engine::Device(network) => network.switch_plan(plan),
        }
    }

    /// The precision it computes at, with a plan that of the layers at the edges.
    #[must_use]
    pub fn precision(&self) -> Precision {
        match &self.0 {
            Engine::Host(network, _) => network.precision().expect("loaded at a precision"),
            Engine::Device(network) => network.precision(),
        }
    }

    /// What it computes.
    #[must_use]
    pub fn graph(&self) -> &Graph {
        match &self.0 {
            Engine::Host(network, _) => network.graph(),
            Engine::Device(network) => network.graph(),
        }
    }

    /// Bytes of the layers that a pass at this precision reads: prepared codes with their padding, multipliers and addends, scales
    /// and zero points of the inputs.
    #[must_use]
    pub fn model_bytes(&self) -> usize {
        match &self.0 {
            Engine::Host(network, _) => network.model_bytes(),
            Engine::Device(network) => network.model_bytes(),
        }
    }
}

fn slice<E: burn::tensor::Element>(data: &TensorData) -> Result<&[E], RuntimeError> {
    data.as_slice().map_err(|error| wrong(&format!("{error:?}"), "values that can be read"))
}

fn wrong(found: &str, expected: &str) -> RuntimeError {
    RuntimeError::Input { found: found.to_owned(), expected: expected.to_owned() }
}
