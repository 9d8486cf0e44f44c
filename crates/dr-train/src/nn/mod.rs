//! Layers that run in float or at any precision of a set, from the same weights.
//!
//! A [`Network`] is written once, as what any [`Executor`] computes, and becomes a [`Model`] when it is traced. What a forward pass
//! computes is said by its [`Pass`]: float, one precision, or a precision for each layer.

mod assignment;
mod calibration;
mod compute;
#[cfg(feature = "program")]
mod errors;
mod executor;
mod layers;
mod model;
mod norm;
pub(crate) mod quantizers;
mod subnet;
mod tensors;
mod tracer;

pub use assignment::{Assignment, AssignmentError};
pub use calibration::{Observer, fit_activation};
pub(crate) use executor::tensors_do;
pub use executor::{Embedding, Executor, Network, Table};
pub(crate) use layers::normal;
pub use layers::{Layer, QuantConv2d, QuantConv2dConfig, QuantLinear, QuantLinearConfig};
pub use model::{Model, NamedLayer};
pub use norm::{MixedNorm, PrecisionNorm, PrecisionNormConfig};
pub use quantizers::{LayerSpec, QuantConfig, Quantizers};
pub use subnet::{finish, subnet};
pub(crate) use tensors::rows;
pub use tensors::{Images, TensorCache, Tensors, Value};
pub(crate) use tracer::EachParameter;
pub use tracer::TraceError;

use crate::config::ComputeKind;
use burn::module::ParamId;
use dr_precision::Precision;

/// What a forward pass computes with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pass<'a> {
    numbers: Numbers<'a>,
    observer: Option<&'a Observer>,
    integers: bool,
    compute: ComputeKind,
}

#[derive(Clone, Copy, Debug, Default)]
enum Numbers<'a> {
    #[default]
    Float,
    /// One precision for all layers but those that are pinned.
    Uniform(Precision),
    /// A precision for each layer.
    Mixed(&'a Assignment),
}

impl<'a> Pass<'a> {
    /// Float arithmetic, nothing quantized.
    #[must_use]
    pub const fn float() -> Self {
        Self::of(Numbers::Float)
    }

    /// Fake-quantized at one precision of the set the network was prepared for.
    #[must_use]
    pub const fn at(precision: Precision) -> Self {
        Self::of(Numbers::Uniform(precision))
    }

    /// Fake-quantized, each layer at a precision of its own.
    #[must_use]
    pub const fn mixed(assignment: &'a Assignment) -> Self {
        Self::of(Numbers::Mixed(assignment))
    }

    /// Float, with the inputs of all quantized layers recorded, to choose the activations' scales from.
    #[must_use]
    pub const fn observing(observer: &'a Observer) -> Self {
        Self { observer: Some(observer), ..Self::of(Numbers::Float) }
    }

    const fn of(numbers: Numbers<'a>) -> Self {
        Self { numbers, observer: None, integers: false, compute: ComputeKind::F32 }
    }

    /// The same with convolutions and linear layers multiplying numbers of another type. What goes into them and comes out has
    /// 32 bits, and so have the weights.
    #[must_use]
    pub const fn computing_in(mut self, compute: ComputeKind) -> Self {
        self.compute = compute;
        self
    }

    /// The same with convolutions computed from codes where there are kernels for that: the values are the same up to
    /// rounding, and so are the gradients.
    #[must_use]
    pub const fn in_integers(mut self) -> Self {
        self.integers = true;
        self
    }

    /// The precision of the layer with this weight; `None` is float.
    ///
    /// # Panics
    /// If the pass is mixed and has none for the layer.
    fn precision(&self, weight: ParamId) -> Option<Precision> {
        match self.numbers {
            Numbers::Float => None,
            Numbers::Uniform(precision) => Some(precision),
            Numbers::Mixed(assignment) => Some(assignment.of(weight)),
        }
    }
}
