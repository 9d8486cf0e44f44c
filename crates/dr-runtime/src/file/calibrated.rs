//! [`CalibratedLayer`]: a layer whose stored codes serve all precisions, with what each of them makes of the codes and of the inputs.

use super::nested::{count, entry};
use super::{Artifact, ArtifactError, STORED, TensorEntry, Values};
use crate::graph::Layer;
use dr_kernels::host::{StoredWeight, Weight};
use dr_kernels::integer::CodeQuantizer;
use dr_kernels::{KernelError, layout};
use dr_precision::{BitWidth, Granularity, Precision, semantics};
use std::borrow::Cow;
use thiserror::Error;

/// A convolution or linear layer at all precisions of a network: one stored code of 8 bits for each weight, of which narrower ones follow by a
/// shift, and for each precision `P` of the network, `w4a8` for example, what is computed with them. A file has these tensors:
///
/// ```text
/// NAME.weight      i8   [outputs, inputs / groups, rows, columns], or [outputs, inputs]
/// NAME.P.scale     f32  [outputs]   what a step of the code adds
/// NAME.P.offset    f32  [outputs]   what the code 0 stands for
/// NAME.P.bias      f32  [outputs]
/// NAME.P.input     f32  [2]         the scale and the zero point of the codes of inputs
/// ```
///
/// With inputs `x`, codes `q_x = clip(round((x - zero point) / scale))` of them, and codes `q` of the weights at the precision, an output is
/// `sum((scale_x q_x + zero point) (scale q + offset)) + bias`; padding adds nothing.
///
/// Layers that the file's description has [in floats](super::Description::in_floats) are none of these: they have a weight and a bias of floats.
///
/// A layer that has weights of one width of less than 8 bits at all precisions has them packed, in the order of [`layout`]:
///
/// ```text
/// NAME.weight      u32  [words]
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct CalibratedLayer {
    /// Of the weight.
    shape: Vec<usize>,
    codes: Codes,
    passes: Vec<CalibratedPass>,
}

#[derive(Clone, Debug, PartialEq)]
enum Codes {
    /// Of the stored width.
    Stored(Values<i8>),
    /// Of the only width that there is.
    Packed(Values<u32>),
}

/// What a layer computes with at one precision of its network.
#[derive(Clone, Debug, PartialEq)]
pub struct CalibratedPass {
    /// The precision of the network.
    pub precision: Precision,
    /// The widths of the layer's weights and inputs: those, or wider ones in layers that do not switch.
    pub widths: Precision,
    /// `[outputs]`: what a step of the code adds.
    pub scale: Values<f32>,
    /// `[outputs]`: what the code 0 stands for.
    pub offset: Values<f32>,
    /// `[outputs]`
    pub bias: Values<f32>,
    /// `[2]`: the scale and the zero point of the codes of inputs.
    pub input: Values<f32>,
}

/// Why parts are no [`CalibratedLayer`].
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum CalibratedError {
    /// More or less of something than the shape calls for.
    #[error("{found} {what}: expected {expected}")]
    Count {
        /// Of what.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there should be.
        expected: usize,
    },
    /// Something that makes no numbers.
    #[error("{what} {found} at {precision}: expected finite numbers, and scales above 0")]
    Number {
        /// What it is.
        what: &'static str,
        /// The number.
        found: f32,
        /// Where.
        precision: Precision,
    },
}

/// The parts of a [`CalibratedPass`], as files name them.
const PARTS: [&str; 4] = ["scale", "offset", "bias", "input"];

impl CalibratedPass {
    /// How inputs become codes.
    #[must_use]
    pub fn quantizer(&self) -> CodeQuantizer {
        let [scale, zero_point] = [self.input[0], self.input[1]];
        CodeQuantizer { bits: self.widths.activations, scale, zero_point }
    }

    const fn parts(&self) -> [&Values<f32>; 4] {
        [&self.scale, &self.offset, &self.bias, &self.input]
    }

    fn check(&self, outputs: usize) -> Result<(), CalibratedError> {
        let counts = [outputs, outputs, outputs, 2];
        for ((what, values), expected) in PARTS.into_iter().zip(self.parts()).zip(counts) {
            let found = values.len();
            if found != expected {
                return Err(CalibratedError::Count { what, found, expected });
            }
            if let Some(&found) = values.iter().find(|value| !value.is_finite()) {
                return Err(CalibratedError::Number { what, found, precision: self.precision });
            }
        }
        match self.scale.iter().chain(&self.input[..1]).find(|scale| **scale <= 0.0) {
            Some(&found) => Err(CalibratedError::Number { what: "scale", found, precision: self.precision }),
            None => Ok(()),
        }
    }
}

impl CalibratedLayer {
    /// Of stored codes of 8 bits, in the order of the weight's shape, output channels first, and what each precision makes of them.
    ///
    /// # Errors
    /// Numbers of codes, scales, offsets or biases that do not fit the shape, none at all, and numbers that are not finite.
    pub fn new(
        shape: &[usize], codes: Vec<i8>, passes: Vec<CalibratedPass>,
    ) -> Result<Self, CalibratedError> {
        let (found, expected) = (codes.len(), count(shape));
        if found != expected {
            return Err(CalibratedError::Count { what: "codes", found, expected });
        }
        Self { shape: shape.to_vec(), codes: Codes::Stored(codes.into()), passes }.packed().checked()
    }

    /// The same layer with each output times a factor, which is in its scale, its offset and its bias.
    ///
    /// # Errors
    /// Another number of factors than there are outputs, and factors that make no numbers.
    pub fn times(mut self, factors: &[f32]) -> Result<Self, CalibratedError> {
        for CalibratedPass { scale, offset, bias, .. } in &mut self.passes {
            for values in [scale, offset, bias] {
                *values = values
                    .iter()
                    .zip(factors)
                    .map(|(value, factor)| value * factor)
                    .collect::<Vec<_>>()
                    .into();
            }
        }
        self.checked()
    }

    /// The layer that a file has under its name, for these precisions of the network, each with the widths that the layer has there.
    pub(super) fn read(
        artifact: &Artifact, layer: &Layer, precisions: &[(Precision, Precision)],
    ) -> Result<Self, ArtifactError> {
        let (name, shape, outputs) = (&layer.name, layer.kind.weight_shape(), layer.kind.outputs());
        let pass = |&(precision, widths): &(Precision, Precision)| {
            let read =
                |part: &str, len: usize| artifact.values(&format!("{name}.{precision}.{part}"), &[len]);
            let [scale, offset, bias] =
                [read("scale", outputs)?, read("offset", outputs)?, read("bias", outputs)?];
            let input = read("input", 2)?;
            Ok::<_, ArtifactError>(CalibratedPass { precision, widths, scale, offset, bias, input })
        };
        let passes: Vec<_> = precisions.iter().map(pass).collect::<Result<_, _>>()?;
        let weight = format!("{name}.weight");
        let codes = match only_width(&passes) {
            Some(bits) => {
                Codes::Packed(artifact.values(&weight, &[layout::packed_words(count(&shape), bits)])?)
            }
            None => Codes::Stored(artifact.values(&weight, &shape)?),
        };
        let new = Self { shape, codes, passes }.checked();
        new.map_err(|error| ArtifactError::Calibrated { name: name.clone(), error })
    }

    /// The tensors of a file, by their names.
    #[must_use]
    pub fn tensors(&self, name: &str) -> Vec<(String, TensorEntry)> {
        let codes = match &self.codes {
            Codes::Stored(codes) => entry(&self.shape, codes),
            Codes::Packed(words) => entry(&[words.len()], words),
        };
        let of_pass = |pass: &CalibratedPass| {
            let part = |(part, values): (&str, &Values<f32>)| {
                (format!("{name}.{}.{part}", pass.precision), entry(&[values.len()], values))
            };
            PARTS.into_iter().zip(pass.parts()).map(part).collect::<Vec<_>>()
        };
        let passes = self.passes.iter().flat_map(of_pass);
        std::iter::once((format!("{name}.weight"), codes)).chain(passes).collect()
    }

    fn checked(self) -> Result<Self, CalibratedError> {
        if self.passes.is_empty() {
            return Err(CalibratedError::Count { what: "precisions", found: 0, expected: 1 });
        }
        let outputs = self.shape.first().copied().unwrap_or(0);
        self.passes.iter().try_for_each(|pass| pass.check(outputs))?;
        Ok(self)
    }

    /// With packed codes, if all are of one width of less than the stored one.
    fn packed(mut self) -> Self {
        if let (Codes::Stored(_), Some(bits)) = (&self.codes, only_width(&self.passes))
            && let Ok(words) = layout::pack(&self.codes(bits), bits)
        {
            self.codes = Codes::Packed(words.into());
        }
        self
    }

    /// The shape of the weight, output channels first.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// What it computes with at each precision of its network.
    #[must_use]
    pub fn passes(&self) -> &[CalibratedPass] {
        &self.passes
    }

    /// What it computes with at one of them; `None` if the network does not have it.
    #[must_use]
    pub fn pass(&self, precision: Precision) -> Option<&CalibratedPass> {
        self.passes.iter().find(|pass| pass.precision == precision)
    }

    /// The same layer at one precision only; `None` if the network does not have it.
    #[must_use]
    pub fn only(&self, precision: Precision) -> Option<Self> {
        let passes = vec![self.pass(precision)?.clone()];
        Some(Self { passes, ..self.clone() }.packed())
    }

    /// The same layer with what it computes with at the first precision at which it has these widths, as the only one, which is called
    /// `precision`; `None` if there is none.
    #[must_use]
    pub fn planned(&self, widths: Precision, precision: Precision) -> Option<Self> {
        let pass = self.passes.iter().find(|pass| pass.widths == widths)?;
        let passes = vec![CalibratedPass { precision, ..pass.clone() }];
        Some(Self { passes, ..self.clone() }.packed())
    }

    /// Codes of 8 bits: the stored ones, or such as give those that are packed.
    #[must_use]
    pub fn stored_codes(&self) -> Cow<'_, [i8]> {
        match &self.codes {
            Codes::Stored(codes) => Cow::Borrowed(&codes[..]),
            Codes::Packed(_) => {
                let bits = self.passes[0].widths.weights;
                let shift = STORED.bits() - bits.bits();
                Cow::Owned(self.codes(bits).iter().map(|code| code << shift).collect())
            }
        }
    }

    /// The codes at one of its widths.
    fn codes(&self, bits: BitWidth) -> Cow<'_, [i8]> {
        match &self.codes {
            Codes::Stored(codes) if bits == STORED => Cow::Borrowed(&codes[..]),
            Codes::Stored(codes) => {
                let switch = |&code: &i8| semantics::switch(code.into(), STORED, bits) as i8;
                Cow::Owned(codes.iter().map(switch).collect())
            }
            Codes::Packed(words) => {
                let codes = layout::unpack(words, count(&self.shape), bits);
                Cow::Owned(codes.expect("as many words as its codes take"))
            }
        }
    }

    /// What the weight is at a precision, in the order of its shape; `None` if the network does not have it.
    #[must_use]
    pub fn dequantized(&self, precision: Precision) -> Option<Vec<f32>> {
        let pass = self.pass(precision)?;
        let codes = self.codes(pass.widths.weights);
        let outputs = codes.chunks((codes.len() / pass.scale.len().max(1)).max(1));
        let lines = pass.scale.iter().zip(&pass.offset[..]);
        let of_output = |(codes, (scale, offset)): (&[i8], (&f32, &f32))| {
            codes.iter().map(|&code| scale * f32::from(code) + offset).collect::<Vec<_>>()
        };
        Some(outputs.zip(lines).flat_map(of_output).collect())
    }

    /// The codes, prepared for this processor.
    pub(crate) fn stored(&self, groups: usize) -> Result<StoredWeight, KernelError> {
        let (shape, channel) = (&self.shape, Granularity::Channel);
        match &self.codes {
            Codes::Stored(codes) => {
                StoredWeight::from_codes(codes, shape, groups, STORED, channel).inspect(|_| codes.release())
            }
            Codes::Packed(words) => {
                let bits = self.passes[0].widths.weights;
                StoredWeight::from_packed(words, shape, groups, bits, channel).inspect(|_| words.release())
            }
        }
    }
}

impl CalibratedPass {
    /// The weight of a layer at this precision, of its stored codes.
    pub(crate) fn weight(&self, stored: &StoredWeight) -> Result<Weight, KernelError> {
        stored.at(self.widths.weights, &self.scale)?.with_offsets(&self.offset)
    }
}

/// The width of all weights, if it is one of less than the stored one.
fn only_width(passes: &[CalibratedPass]) -> Option<BitWidth> {
    let first = passes.first()?.widths.weights;
    (first < STORED && passes.iter().all(|pass| pass.widths.weights == first)).then_some(first)
}
