//! [`Network`]: a saved network on slices of this computer's memory.

mod float;
mod kernels;
mod ops;
mod pass;

use crate::RuntimeError;
use crate::arrays::Array;
use crate::file::Artifact;
use crate::graph::{ElementType, Graph, GraphError, Layer, Op, Value};
use crate::source::{Affine, Arithmetic};
use dr_kernels::host::language::AttentionCache;
use dr_kernels::integer::CodeQuantizer;
use dr_precision::{Precision, PrecisionPlan};
use kernels::{Kernel, Shared};
use pass::{Pass, Workspace};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::Duration;

/// What a network takes.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// Images.
    Images {
        /// `[batch, channels, rows, columns]`, normalised.
        values: &'a [f32],
        /// These four sizes.
        shape: [usize; 4],
    },
    /// Texts of one length.
    Tokens {
        /// `[batch, positions]`
        ids: &'a [u32],
        /// How many texts.
        batch: usize,
    },
    /// The arrays of a network whose inputs are arrays, in their order.
    Arrays(&'a [Array]),
}

/// What a network makes of an input.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// The values, row by row.
    pub values: Vec<f32>,
    /// `[n, features]`, or `[batch, rows, columns, channels]` of a network whose result is images.
    pub shape: Vec<usize>,
}

/// A result as it lies in memory.
pub(crate) enum Made {
    /// Images with the channels last, or rows.
    Values(Output),
    /// An array.
    Array(Array),
}

impl Made {
    fn output(self) -> Result<Output, RuntimeError> {
        match self {
            Self::Values(output) => Ok(output),
            Self::Array(array) => {
                let floats = array.cast(ElementType::F32)?;
                Ok(Output { values: floats.floats()?.into_owned(), shape: floats.dims().to_vec() })
            }
        }
    }

    /// With the channels first.
    fn array(self) -> Result<Array, RuntimeError> {
        Ok(match self {
            Self::Array(array) => array,
            Self::Values(Output { values, shape }) => match shape[..] {
                [n, rows, columns, channels] => {
                    let mut out = vec![0.0; values.len()];
                    ops::channels_first(&values, [n, rows, columns, channels], &mut out);
                    Array::from_f32(out, &[n, channels, rows, columns])?
                }
                _ => Array::from_f32(values, &shape)?,
            },
        })
    }
}

/// What a language model keeps of the earlier positions of a text: keys and values, in 32 bits or in [16](Self::in_halves).
#[derive(Clone, Debug, Default)]
pub struct Cache {
    halves: bool,
    attentions: Vec<AttentionCache>,
    positions: usize,
}

impl Cache {
    /// One for a new text.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// One for a new text that keeps keys and values as floats of 16 bits, those beyond 65504 as that: half the memory, for long texts. Predictions
    /// change by the rounding.
    #[must_use]
    pub fn in_halves() -> Self {
        Self { halves: true, ..Self::default() }
    }

    /// Positions that it has.
    #[must_use]
    pub const fn positions(&self) -> usize {
        self.positions
    }

    /// Bytes of the keys and values that it has.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.attentions.iter().map(AttentionCache::bytes).sum()
    }
}

/// A saved network, on slices of this computer's memory: in integers at one of its precisions, which can be switched, or in floats if
/// that is what the file holds. Clones share what they do not change.
#[derive(Clone, Debug)]
pub struct Network {
    shared: Arc<Shared>,
    /// Of each use of a layer.
    kernels: Vec<Arc<Kernel>>,
    /// Of each layer; none in floats.
    precisions: Vec<Precision>,
    precision: Option<Precision>,
    workspace: Arc<Mutex<Workspace>>,
}

/// A layer at its precision, for other runtimes.
#[derive(Clone, Debug)]
pub enum LayerParts {
    /// In integers.
    Integer {
        /// `[outputs, inputs / groups * taps]`.
        codes: Vec<i32>,
        /// `[outputs, groups]`, of the weight and of the BatchNorm after it.
        scale: Vec<f32>,
        /// `[outputs]`, what the code 0 stands for, times the factor of the BatchNorm; `None` if that is 0.
        offset: Option<Vec<f32>>,
        /// `[outputs]`, what is added.
        shift: Vec<f32>,
        /// The width of the codes.
        bits: dr_precision::BitWidth,
        /// How the input is quantized.
        input: CodeQuantizer,
    },
    /// In floats.
    Float {
        /// `[outputs, inputs / groups * taps]`, times the factor of the BatchNorm.
        weight: Vec<f32>,
        /// `[outputs]`, what is added.
        shift: Vec<f32>,
    },
}

impl Network {
    /// The network of a file, in integers at `precision`.
    ///
    /// # Errors
    /// A file without a graph, a float network, a precision that it does not have, tensors that are missing or of another shape.
    pub fn load(artifact: &Artifact, precision: Precision) -> Result<Self, RuntimeError> {
        Self::load_with(artifact, Some(precision), Arithmetic::Integer)
    }

    /// The network of a file at `precision`, which float networks do not have.
    ///
    /// # Errors
    /// Those of [`Network::load`]; convolutions with [`Arithmetic::WeightOnly`].
    pub fn load_with(
        artifact: &Artifact, precision: Option<Precision>, arithmetic: Arithmetic,
    ) -> Result<Self, RuntimeError> {
        let shared = Shared::load(artifact, precision, arithmetic)?;
        let layers = shared.source.graph.layers().len();
        let precisions = precision.map(|precision| vec![precision; layers]);
        let kernels = shared.kernels(precisions.as_deref(), None)?;
        let (shared, precisions) = (Arc::new(shared), precisions.unwrap_or_default());
        Ok(Self { shared, kernels, precisions, precision, workspace: Arc::default() })
    }

    /// Switches all layers to another precision, by shifts of the stored codes; those at the edges keep their bits.
    ///
    /// # Errors
    /// [`RuntimeError::Precision`] if the network has no such precision; it then stays as it is.
    pub fn switch(&mut self, precision: Precision) -> Result<(), RuntimeError> {
        if self.precision.is_none() {
            return Err(RuntimeError::Float);
        }
        // Whether it exists is found out before anything is switched.
        self.shared.source.check(precision)?;
        let layers = self.graph().layers().len();
        self.switch_layers(vec![precision; layers], precision)
    }

    /// Switches each layer to the precision that a plan has for it; those that have it stay as they are. For networks whose layers can be
    /// switched one by one: with nested weights, or without BatchNorm and trained for mixtures.
    ///
    /// # Errors
    /// [`RuntimeError::Plan`] for another network, and for a plan that does not name just its layers, at precisions that these have; the
    /// network then stays as it is.
    pub fn switch_plan(&mut self, plan: &PrecisionPlan) -> Result<(), RuntimeError> {
        if self.precision.is_none() {
            return Err(RuntimeError::Float);
        }
        let source = &self.shared.source;
        let (precisions, edge) = (source.plan(plan)?, source.artifact.description.edge);
        self.switch_layers(precisions, edge)
    }

    fn switch_layers(
        &mut self, precisions: Vec<Precision>, precision: Precision,
    ) -> Result<(), RuntimeError> {
        let before = (&self.precisions[..], &self.kernels[..]);
        self.kernels = self.shared.kernels(Some(&precisions), Some(before))?;
        (self.precisions, self.precision) = (precisions, Some(precision));
        Ok(())
    }

    /// The precision it computes at, with a plan that of the layers at the edges; `None` in floats.
    #[must_use]
    pub const fn precision(&self) -> Option<Precision> {
        self.precision
    }

    /// What it computes.
    #[must_use]
    pub fn graph(&self) -> &Graph {
        &self.shared.source.graph
    }

    /// Bytes of the layers that a pass at this precision reads: prepared codes with their padding, multipliers and addends, scales
    /// and zero points of the inputs.
    #[must_use]
    pub fn model_bytes(&self) -> usize {
        self.kernels.iter().map(|kernel| kernel.bytes()).sum()
    }

    /// The constant that a node is; `None` if it is none.
    #[must_use]
    pub fn constant(&self, node: Value) -> Option<&Array> {
        self.shared.constants.get(node)?.as_ref()
    }

    /// A layer at its precision; `None` if nothing uses it, or for one that takes rows of floats.
    #[must_use]
    pub fn layer(&self, layer: usize) -> Option<LayerParts> {
        let source = &self.shared.source;
        let at = source.program.uses.iter().position(|of| of.layer == layer)?;
        let product = match &*self.kernels[at] {
            Kernel::Integer(product) => product,
            Kernel::Float(float) => {
                let Layer { name, kind, .. } = &source.graph.layers()[layer];
                let weight =
                    source.artifact.values::<f32>(&format!("{name}.weight"), &kind.weight_shape()).ok()?;
                let Affine { gain, shift } = float.affine();
                let rows = weight.chunks((weight.len() / gain.len().max(1)).max(1)).zip(gain);
                let weight = rows.flat_map(|(row, gain)| row.iter().map(move |weight| weight * gain));
                return Some(LayerParts::Float { weight: weight.collect(), shift: shift.clone() });
            }
            Kernel::Dynamic(..) | Kernel::WeightOnly(..) => return None,
        };
        // What is done before the activation is part of the scales.
        let [factor, addend] = source.program.uses[at].slope;
        let gain: Vec<f32> = product.gain().iter().map(|gain| gain / factor).collect();
        let (weight, gain) = (product.weight(), &gain[..]);
        let scales = weight.scales();
        let groups = scales.len() / gain.len().max(1);
        let scale = scales.iter().enumerate().map(|(i, scale)| scale * gain[i / groups]).collect();
        let offset = |offsets: &[f32]| offsets.iter().zip(gain).map(|(offset, gain)| offset * gain).collect();
        Some(LayerParts::Integer {
            codes: weight.codes(),
            scale,
            offset: weight.offsets().map(offset),
            shift: product.shift().iter().map(|shift| (shift - addend) / factor).collect(),
            bits: weight.bits(),
            input: product.input(),
        })
    }

    /// What the network makes of an input.
    ///
    /// # Errors
    /// An input of another kind or size.
    pub fn forward(&self, input: Input) -> Result<Output, RuntimeError> {
        first(self.run(input, None, None)?)
    }

    /// All results, as arrays in the order of [`Graph::results`], for the arrays that it takes: of a network of images one of
    /// `[batch, channels, rows, columns]`. Images are given with the channels first, too.
    ///
    /// # Errors
    /// Other arrays than it takes, and sizes that its operations do not.
    pub fn forward_arrays(&self, inputs: &[Array]) -> Result<Vec<Array>, RuntimeError> {
        let made = match (self.graph().input(), inputs) {
            (Some(Op::Images { .. }), [images]) => {
                let images = images.clone().contiguous();
                let &[batch, channels, rows, columns] = images.dims() else {
                    let found = format!("an array {:?}", images.dims());
                    return Err(RuntimeError::Input {
                        found,
                        expected: "[batch, channels, rows, columns]".into(),
                    });
                };
                let shape = [batch, channels, rows, columns];
                self.run(Input::Images { values: &images.floats()?, shape }, None, None)
            }
            _ => self.run(Input::Arrays(inputs), None, None),
        };
        made?.into_iter().map(Made::array).collect()
    }

    /// The same, and how long each layer of the graph took, with the quantization of its input. Layers that are computed together share
    /// their time evenly.
    ///
    /// # Errors
    /// Those of [`Network::forward`].
    pub fn forward_timed(&self, input: Input) -> Result<(Output, Vec<Duration>), RuntimeError> {
        let mut times = vec![Duration::ZERO; self.graph().layers().len()];
        let output = first(self.run(input, None, Some(&mut times))?)?;
        Ok((output, times))
    }

    /// Reads the tokens that follow those of `cache` in one text, and gives the logits of what comes next.
    ///
    /// # Errors
    /// No token, more positions than the context has, a token that is not in the vocabulary, a cache of another network: the cache then
    /// stays as it is.
    pub fn read(&self, tokens: &[u32], cache: &mut Cache) -> Result<Vec<f32>, RuntimeError> {
        Ok(first(self.run(Input::Tokens { ids: tokens, batch: 1 }, Some(vec![cache]), None)?)?.values)
    }

    /// Reads one token more of each of several texts, each of which has a cache and may have another length, and gives the logits of
    /// what comes next in each, `[texts, vocabulary]`: those that [`Network::read`] gives. Weights are read once for all texts.
    ///
    /// # Errors
    /// Those of [`Network::read`], no text, another number of caches: all caches then stay as they are.
    pub fn read_each(&self, tokens: &[u32], caches: &mut [&mut Cache]) -> Result<Output, RuntimeError> {
        let caches = caches.iter_mut().map(|cache| &mut **cache).collect();
        first(self.run(Input::Tokens { ids: tokens, batch: tokens.len() }, Some(caches), None)?)
    }

    fn run(
        &self, input: Input, caches: Option<Vec<&mut Cache>>, times: Option<&mut Vec<Duration>>,
    ) -> Result<Vec<Made>, RuntimeError> {
        // Two passes at once have memory of their own.
        let mut spare = Workspace::default();
        let mut guard;
        let workspace = match self.workspace.try_lock() {
            Err(TryLockError::WouldBlock) => &mut spare,
            Ok(workspace) => {
                guard = workspace;
                &mut *guard
            }
            Err(TryLockError::Poisoned(workspace)) => {
                guard = workspace.into_inner();
                &mut *guard
            }
        };
        Pass::new(self, workspace, input, caches, times)?.run()
    }
}

/// The first result.
fn first(made: Vec<Made>) -> Result<Output, RuntimeError> {
    made.into_iter().next().map_or_else(|| Err(GraphError::Empty.into()), Made::output)
}
