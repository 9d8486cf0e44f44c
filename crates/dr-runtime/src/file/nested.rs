//! [`NestedWeight`]: the weight of a linear layer as stored codes that serve all widths, with scales and offsets for groups of inputs.

use super::tensors::elements;
use super::{Artifact, ArtifactError, TensorEntry, TensorValues, Values};
use bytemuck::{Pod, Zeroable};
use dr_kernels::host::{GroupedCodes, GroupedWeight};
use dr_kernels::integer::ByteFactors;
use dr_kernels::{KernelError, layout};
use dr_precision::{BitWidth, Granularity, semantics};
use half::f16;
use rayon::prelude::*;
use std::borrow::Cow;
use std::num::NonZeroUsize;
use thiserror::Error;

/// The width of stored codes.
pub const STORED: BitWidth = BitWidth::B8;

/// A line from codes to weights: `scale * code + offset`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Affine {
    /// What a step of the code adds.
    pub scale: f32,
    /// What the code 0 stands for.
    pub offset: f32,
}

impl Affine {
    /// What a code stands for.
    #[must_use]
    pub fn value(self, code: f32) -> f32 {
        self.scale * code + self.offset
    }
}

/// What the stored codes of a group stand for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct StoredGrid {
    /// The scale; above zero.
    pub scale: f16,
    /// The weight of the code 0.
    pub offset: f16,
}

impl StoredGrid {
    /// The nearest grid that can be stored. Where all weights of a group are the same, the scale is that of what rounding their
    /// offset leaves.
    #[must_use]
    pub fn new(scale: f32, offset: f32) -> Self {
        let offset = f16::from_f32(offset).clamp(f16::MIN, f16::MAX);
        let least = (offset.to_f32().abs() / (1 << 18) as f32).max(f16::MIN_POSITIVE_SUBNORMAL.to_f32());
        Self { scale: f16::from_f32(scale.max(least)).min(f16::MAX), offset }
    }

    /// The same in 32 bits.
    #[must_use]
    pub fn affine(self) -> Affine {
        Affine { scale: self.scale.to_f32(), offset: self.offset.to_f32() }
    }
}

/// What the codes of a narrower width stand for, beside the stored ones: with `d` bits less and `unit = s_h * 2^d / 256`,
///
/// ```text
/// s_l = unit * (256 + scale)          half of s_h 2^d to nearly 1.5 times that
/// z_l = z_h + unit * offset           up to half a step of the width
/// w^  = z_h + unit * ((256 + scale) * q_l + offset)
/// ```
///
/// Two bytes for each group and width, and a kernel that multiplies by one float.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct NarrowGrid {
    /// By how many 256ths the scale is larger than `s_h * 2^d`.
    pub scale: i8,
    /// By how many 256ths of `s_h * 2^d` the offset is larger than the stored one.
    pub offset: i8,
}

impl NarrowGrid {
    /// Steps in a scale of the stored grid times `2^d`.
    pub const STEPS: f32 = 256.0;

    /// The grid of a width of `bits` bits.
    #[must_use]
    pub fn affine(self, stored: Affine, bits: BitWidth) -> Affine {
        let unit = stored.scale * f32::from(1u16 << (STORED.bits() - bits.bits())) / Self::STEPS;
        Affine {
            scale: unit * (Self::STEPS + f32::from(self.scale)),
            offset: stored.offset + unit * f32::from(self.offset),
        }
    }
}

/// Why parts are no [`NestedWeight`].
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum NestedError {
    /// Widths that no nested weight has.
    #[error("widths {0:?}: expected {STORED} bits, and then narrower ones, or packed codes of one of these")]
    Widths(Vec<BitWidth>),
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
    /// A sensitivity that is none.
    #[error("a sensitivity of {0}: expected finite numbers of at least 0")]
    Sensitivity(f32),
    /// A grid that makes no numbers.
    #[error("a scale of {scale} and an offset of {offset}: expected finite numbers, and a scale above 0")]
    Grid {
        /// The scale.
        scale: f16,
        /// The offset.
        offset: f16,
    },
    /// A factor that makes no numbers.
    #[error("a factor of {0}: expected finite numbers of at least 0")]
    Factor(f32),
}

/// The weight of a linear layer at all widths: one stored code for each weight, and for each group of inputs of an output and each
/// width what the codes stand for. A file has four kinds of tensors for it, the last only if it is known:
///
/// ```text
/// NAME.weight        i8   [outputs, inputs]      the codes
/// NAME.grid          f16  [outputs, groups, 2]   scales and offsets of the stored width
/// NAME.grid.B        i8   [outputs, groups, 2]   those of a narrower width of B bits, see NarrowGrid
/// NAME.sensitivity   f32  [widths]               what each width costs, see NestedWeight::sensitivity
/// ```
///
/// With one narrower width [only](Self::only), codes are those of that width, packed in the order of [`layout`], and so are scales and
/// offsets: as halves, or of up to 4 bits as bytes.
///
/// ```text
/// NAME.weight    u32  [words]                the codes
/// NAME.grid      f16  [outputs, groups, 2]   scales and offsets, or
/// NAME.grid      u8   [outputs, groups, 2]   what they are multiples of factors by, see ByteFactors
/// NAME.factors   f32  [outputs, 2]           these factors
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct NestedWeight {
    shape: [usize; 2],
    group: NonZeroUsize,
    /// The stored one first, then falling; or a narrower one.
    widths: Vec<BitWidth>,
    codes: Codes,
    /// Of each width.
    sensitivities: Option<Values<f32>>,
}

#[derive(Clone, Debug, PartialEq)]
enum Codes {
    /// Of the stored width, with its grids and those of each narrower one.
    Stored { codes: Values<i8>, grids: Values<f16>, narrow: Vec<Values<i8>> },
    /// Of a narrower one.
    Packed { words: Values<u32>, grids: PackedGrids },
}

/// Scales and offsets of one width.
#[derive(Clone, Debug, PartialEq)]
enum PackedGrids {
    Halves(Values<f16>),
    Bytes { parts: Values<u8>, factors: Values<f32> },
}

impl PackedGrids {
    /// The nearest ones that are stored at a width, of so many groups in an output.
    fn nearest(bits: BitWidth, lines: &[Affine], groups: usize) -> Self {
        if bits > ByteFactors::WIDEST {
            let grids: Vec<_> = lines.iter().map(|&line| StoredGrid::new(line.scale, line.offset)).collect();
            return Self::Halves(bytemuck::cast_slice::<_, f16>(&grids).to_vec().into());
        }
        let pair = |line: &Affine| [line.scale, line.offset];
        let rows = || lines.chunks(groups.max(1));
        let factors: Vec<_> = rows().map(|row| ByteFactors::of(row.iter().map(pair))).collect();
        let parts =
            rows().zip(&factors).flat_map(|(row, of)| row.iter().map(move |line| of.bytes(pair(line))));
        let parts: Vec<_> = parts.collect();
        Self::Bytes {
            parts: parts.as_flattened().to_vec().into(),
            factors: bytemuck::cast_slice::<_, f32>(&factors).to_vec().into(),
        }
    }

    /// The same in 32 bits.
    fn affine(&self, groups: usize) -> Vec<Affine> {
        match self {
            Self::Halves(grids) => {
                bytemuck::cast_slice::<_, StoredGrid>(grids).iter().map(|grid| grid.affine()).collect()
            }
            Self::Bytes { parts, factors } => {
                let rows = parts.as_chunks().0.chunks(groups.max(1)).zip(bytemuck::cast_slice(factors));
                let line = |[scale, offset]: [f32; 2]| Affine { scale, offset };
                rows.flat_map(|(row, of): (&[_], &ByteFactors)| {
                    row.iter().map(move |&part| line(of.values(part)))
                })
                .collect()
            }
        }
    }
}

impl NestedWeight {
    /// Of codes `[outputs, inputs]`, the grids of the stored width, `[outputs, groups]`, and those of each narrower one.
    ///
    /// # Errors
    /// Widths that are not the stored one and then falling ones, numbers of codes or grids that do not fit the shape, and grids that
    /// make no numbers.
    pub fn new(
        shape: [usize; 2], group: NonZeroUsize, widths: &[BitWidth], codes: Vec<i8>, stored: &[StoredGrid],
        narrow: &[Vec<NarrowGrid>],
    ) -> Result<Self, NestedError> {
        let grids = bytemuck::cast_slice::<_, f16>(stored).to_vec().into();
        let narrow =
            narrow.iter().map(|grids| bytemuck::cast_slice::<_, i8>(grids).to_vec().into()).collect();
        let codes = Codes::Stored { codes: codes.into(), grids, narrow };
        Self { shape, group, widths: widths.to_vec(), codes, sensitivities: None }.checked()
    }

    /// The same with the [sensitivity](Self::sensitivity) of each width.
    ///
    /// # Errors
    /// Another number of them than there are widths, and numbers that are negative or not finite.
    pub fn with_sensitivities(self, sensitivities: Vec<f32>) -> Result<Self, NestedError> {
        Self { sensitivities: Some(sensitivities.into()), ..self }.checked()
    }

    /// The grids of a narrower width beside the stored ones, `[outputs, groups]`; `None` if there are none.
    #[must_use]
    pub fn narrow_grids(&self, bits: BitWidth) -> Option<&[NarrowGrid]> {
        let Codes::Stored { narrow, .. } = &self.codes else { return None };
        let at = narrower(&self.widths).position(|width| width == bits)?;
        narrow.get(at).map(|grids| bytemuck::cast_slice(grids))
    }

    /// The same with other grids of a narrower width, `[outputs, groups]`.
    ///
    /// # Errors
    /// A width that has no grids beside the stored ones, and another number of them than there are groups.
    pub fn with_grids(mut self, bits: BitWidth, grids: &[NarrowGrid]) -> Result<Self, NestedError> {
        let at = narrower(&self.widths).position(|width| width == bits);
        let Codes::Stored { narrow, .. } = &mut self.codes else {
            return Err(NestedError::Widths(vec![bits]));
        };
        let Some(old) = at.and_then(|at| narrow.get_mut(at)) else {
            return Err(NestedError::Widths(vec![bits]));
        };
        *old = bytemuck::cast_slice::<_, i8>(grids).to_vec().into();
        self.checked()
    }

    /// The weight that a file has under a name: with packed codes, if it has no more than a narrower width.
    pub(super) fn read(
        artifact: &Artifact, name: &str, shape: [usize; 2], group: NonZeroUsize, widths: &[BitWidth],
    ) -> Result<Self, ArtifactError> {
        let of_grids = [shape[0], shape[1].div_ceil(group.get()), 2];
        let [of_codes, grids] = ["weight", "grid"].map(|what| format!("{name}.{what}"));
        let codes = match widths {
            &[bits] if bits != STORED => Codes::Packed {
                words: artifact.values(&of_codes, &[layout::packed_words(count(&shape), bits)])?,
                grids: if bits > ByteFactors::WIDEST {
                    PackedGrids::Halves(artifact.values(&grids, &of_grids)?)
                } else {
                    let factors = artifact.values(&factors_name(name), &[shape[0], 2])?;
                    PackedGrids::Bytes { parts: artifact.values(&grids, &of_grids)?, factors }
                },
            },
            _ => Codes::Stored {
                codes: artifact.values(&of_codes, &shape)?,
                grids: artifact.values(&grids, &of_grids)?,
                narrow: narrower(widths)
                    .map(|bits| artifact.values(&narrow_name(name, bits), &of_grids))
                    .collect::<Result<_, _>>()?,
            },
        };
        let mut new = Self { shape, group, widths: widths.to_vec(), codes, sensitivities: None };
        let sensitivities = sensitivity_name(name);
        if artifact.tensors.contains_key(&sensitivities) {
            new.sensitivities = Some(artifact.values(&sensitivities, &[widths.len()])?);
        }
        new.checked().map_err(|error| ArtifactError::Nested { name: name.to_owned(), error })
    }

    /// The tensors of a file, by their names.
    #[must_use]
    pub fn tensors(&self, name: &str) -> Vec<(String, TensorEntry)> {
        let of_grids = &[self.shape[0], self.groups(), 2];
        let [of_codes, of_stored] = ["weight", "grid"].map(|what| format!("{name}.{what}"));
        let codes: Vec<_> = match &self.codes {
            Codes::Stored { codes, grids, narrow } => {
                let narrow = narrower(&self.widths).zip(narrow);
                let narrow = narrow.map(|(bits, values)| (narrow_name(name, bits), entry(of_grids, values)));
                let stored = [(of_codes, entry(&self.shape, codes)), (of_stored, entry(of_grids, grids))];
                stored.into_iter().chain(narrow).collect()
            }
            Codes::Packed { words, grids } => {
                let words = (of_codes, entry(&[words.len()], words));
                match grids {
                    PackedGrids::Halves(grids) => vec![words, (of_stored, entry(of_grids, grids))],
                    PackedGrids::Bytes { parts, factors } => {
                        let factors = (factors_name(name), entry(&[self.shape[0], 2], factors));
                        vec![words, (of_stored, entry(of_grids, parts)), factors]
                    }
                }
            }
        };
        let sensitivities = self.sensitivities.iter();
        let sensitivities =
            sensitivities.map(|values| (sensitivity_name(name), entry(&[values.len()], values)));
        codes.into_iter().chain(sensitivities).collect()
    }

    fn checked(self) -> Result<Self, NestedError> {
        let falling = self.widths.windows(2).all(|pair| pair[0] > pair[1]);
        let fits = match (&self.codes, &self.widths[..]) {
            (Codes::Stored { .. }, &[first, ..]) => first == STORED,
            (Codes::Packed { .. }, &[only]) => only != STORED,
            (_, _) => false,
        };
        if !fits || !falling {
            return Err(NestedError::Widths(self.widths));
        }
        let expected = count(&[self.shape[0], self.groups(), 2]);
        let check = |what, found: usize, expected: usize| match found == expected {
            true => Ok(()),
            false => Err(NestedError::Count { what, found, expected }),
        };
        match &self.codes {
            Codes::Stored { codes, grids, narrow } => {
                check("codes", codes.len(), count(&self.shape))?;
                check("scales and offsets", grids.len(), expected)?;
                check("narrower widths", narrow.len(), narrower(&self.widths).count())?;
                narrow.iter().try_for_each(|narrow| check("narrower grids", narrow.len(), expected))?;
                check_halves(grids)?;
            }
            Codes::Packed { words, grids } => {
                let expected_words = layout::packed_words(count(&self.shape), self.widest());
                check("words of codes", words.len(), expected_words)?;
                match grids {
                    PackedGrids::Halves(grids) => {
                        check("scales and offsets", grids.len(), expected)?;
                        check_halves(grids)?;
                    }
                    PackedGrids::Bytes { parts, factors } => {
                        check("scales and offsets", parts.len(), expected)?;
                        check("factors", factors.len(), count(&[self.shape[0], 2]))?;
                        let is_wrong = |factor: &&f32| !(factor.is_finite() && **factor >= 0.0);
                        if let Some(&wrong) = factors.iter().find(is_wrong) {
                            return Err(NestedError::Factor(wrong));
                        }
                    }
                }
            }
        }
        if let Some(sensitivities) = &self.sensitivities {
            check("sensitivities", sensitivities.len(), self.widths.len())?;
            let is_wrong = |value: &&f32| !(value.is_finite() && **value >= 0.0);
            if let Some(&wrong) = sensitivities.iter().find(is_wrong) {
                return Err(NestedError::Sensitivity(wrong));
            }
        }
        Ok(self)
    }

    /// Outputs and inputs.
    #[must_use]
    pub const fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Inputs of a group; the last one may have less.
    #[must_use]
    pub const fn group(&self) -> NonZeroUsize {
        self.group
    }

    /// Groups of an output.
    #[must_use]
    pub const fn groups(&self) -> usize {
        self.shape[1].div_ceil(self.group.get())
    }

    /// The widths that it was made for, the stored one first; or the one that it was exported at.
    #[must_use]
    pub fn widths(&self) -> &[BitWidth] {
        &self.widths
    }

    /// The width of the codes that it has.
    #[must_use]
    pub fn widest(&self) -> BitWidth {
        self.widths.first().copied().unwrap_or(STORED)
    }

    /// The codes at a width, `[outputs, inputs]`; `None` if it was not made for it.
    #[must_use]
    pub fn codes(&self, bits: BitWidth) -> Option<Cow<'_, [i8]>> {
        self.widths.contains(&bits).then(|| match &self.codes {
            Codes::Stored { codes, .. } if bits == STORED => Cow::Borrowed(&codes[..]),
            Codes::Stored { codes, .. } => {
                let switch = |&code: &i8| semantics::switch(code.into(), STORED, bits) as i8;
                Cow::Owned(codes.par_iter().map(switch).collect())
            }
            Codes::Packed { words, .. } => {
                let codes = layout::unpack(words, count(&self.shape), bits);
                Cow::Owned(codes.expect("as many words as its codes take"))
            }
        })
    }

    /// The same weight at one of its widths, the codes of a narrower one packed; `None` if it was not made for it.
    #[must_use]
    pub fn only(&self, bits: BitWidth) -> Option<Self> {
        if !self.widths.contains(&bits) {
            return None;
        }
        let codes = match &self.codes {
            Codes::Stored { codes, grids, .. } if bits == STORED => {
                Codes::Stored { codes: codes.clone(), grids: grids.clone(), narrow: vec![] }
            }
            Codes::Stored { .. } => {
                let words = layout::pack(&self.codes(bits)?, bits).expect("codes of this width").into();
                Codes::Packed { words, grids: PackedGrids::nearest(bits, &self.lines(bits)?, self.groups()) }
            }
            Codes::Packed { .. } => self.codes.clone(),
        };
        Some(Self { shape: self.shape, group: self.group, widths: vec![bits], codes, sensitivities: None })
    }

    /// Bytes of its tensors [at one width](Self::only); those at a width that it was not made for are those of the widest.
    #[must_use]
    pub fn bytes(&self, bits: BitWidth) -> usize {
        let bits = if self.widths.contains(&bits) { bits } else { self.widest() };
        let codes = match bits == STORED {
            true => count(&self.shape),
            false => size_of::<u32>() * layout::packed_words(count(&self.shape), bits),
        };
        let groups = self.shape[0] * self.groups();
        let grids = match bits > ByteFactors::WIDEST {
            true => groups * size_of::<StoredGrid>(),
            false => 2 * groups + self.shape[0] * size_of::<ByteFactors>(),
        };
        codes + grids
    }

    /// What the network's predictions of a token lose when this weight alone has a width, by a quadratic prediction: the Kullback-Leibler divergence
    /// from the float network's, in nats a token. `None` for a width that it was not made for, and if nothing is known of it.
    ///
    /// ```text
    /// sum over outputs o of e_o Hg e_o^T / 2        e the errors of the weights at the width
    /// Hg = 1 / (tokens * outputs) * sum over tokens t of ||g_t||^2 x_t x_t^T
    /// ```
    ///
    /// with inputs `x_t` and the gradients `g_t` of a text's summed negative log-likelihood at the layer's output: the Fisher information, taken to
    /// be the same for all outputs and without what positions have in common. (HAWQ-V3, arXiv:2011.10680, chooses widths by a programme over sensitivities,
    /// too; there they are average Hessian traces times squared errors.)
    #[must_use]
    pub fn sensitivity(&self, bits: BitWidth) -> Option<f32> {
        let at = self.widths.iter().position(|&width| width == bits)?;
        self.sensitivities.as_ref()?.get(at).copied()
    }

    /// Scales and offsets of a width, `[outputs, groups]`, as they were chosen: a kernel rounds them like [`affine`](Self::affine).
    fn lines(&self, bits: BitWidth) -> Option<Vec<Affine>> {
        let stored = match &self.codes {
            Codes::Packed { grids, .. } => {
                return self.widths.contains(&bits).then(|| grids.affine(self.groups()));
            }
            Codes::Stored { grids, .. } => bytemuck::cast_slice::<_, StoredGrid>(grids),
        };
        let stored = stored.iter().map(|grid| grid.affine());
        if bits == STORED {
            return Some(stored.collect());
        }
        let narrow = stored.zip(self.narrow_grids(bits)?);
        Some(narrow.map(|(stored, grid)| grid.affine(stored, bits)).collect())
    }

    /// Scales and offsets of a width, `[outputs, groups]`, as kernels and files of that width [only](Self::only) hold them: halves, or, of up to 4 bits, multiples of
    /// [`ByteFactors`]. `None` if it was not made for it.
    #[must_use]
    pub fn affine(&self, bits: BitWidth) -> Option<Vec<Affine>> {
        let lines = self.lines(bits)?;
        match &self.codes {
            Codes::Stored { .. } if bits != STORED => {
                Some(PackedGrids::nearest(bits, &lines, self.groups()).affine(self.groups()))
            }
            _ => Some(lines),
        }
    }

    /// The weight at one of its widths, for products; `None` if it was not made for it.
    pub(crate) fn prepared(&self, bits: BitWidth) -> Option<Result<GroupedWeight, KernelError>> {
        // Kernels make the same bytes of these again, but not the same halves, which are finer for small numbers.
        let lines = if bits > ByteFactors::WIDEST { self.affine(bits) } else { self.lines(bits) }?;
        let (scales, offsets): (Vec<_>, Vec<_>) = lines.iter().map(|line| (line.scale, line.offset)).unzip();
        let (shape, granularity) = (self.shape, Granularity::Group(self.group));
        let codes = match &self.codes {
            Codes::Stored { codes, .. } => GroupedCodes::from_codes(codes, shape, STORED, granularity),
            Codes::Packed { words, .. } => {
                GroupedCodes::from_packed(words, shape, self.widest(), granularity)
            }
        };
        let weight = codes.and_then(|codes| codes.with_offsets(bits, &scales, &offsets));
        self.release();
        Some(weight)
    }

    /// What was read of the file need not stay in memory.
    fn release(&self) {
        match &self.codes {
            Codes::Stored { codes, grids, narrow } => {
                codes.release();
                grids.release();
                narrow.iter().for_each(Values::release);
            }
            Codes::Packed { words, grids } => {
                words.release();
                match grids {
                    PackedGrids::Halves(grids) => grids.release(),
                    PackedGrids::Bytes { parts, factors } => {
                        parts.release();
                        factors.release();
                    }
                }
            }
        }
    }

    /// The weights of an output at the stored width, to as many values as there are inputs.
    ///
    /// # Panics
    /// If its codes are packed.
    pub(crate) fn write_row(&self, row: usize, out: &mut [f32]) {
        let Codes::Stored { codes, grids, .. } = &self.codes else { panic!("a row of packed codes") };
        let (inputs, groups, group) = (self.shape[1], self.groups(), self.group.get());
        let codes = codes[row * inputs..][..inputs].chunks(group);
        let lines = &bytemuck::cast_slice::<_, StoredGrid>(grids)[row * groups..][..groups];
        for ((out, codes), line) in out.chunks_mut(group).zip(codes).zip(lines) {
            let line = line.affine();
            out.iter_mut().zip(codes).for_each(|(out, &code)| *out = line.value(f32::from(code)));
        }
    }

    /// The weights at a width, `[outputs, inputs]`; `None` if it was not made for it.
    #[must_use]
    pub fn dequantized(&self, bits: BitWidth) -> Option<Vec<f32>> {
        let (codes, lines) = (self.codes(bits)?, self.affine(bits)?);
        let (group, inputs, groups) = (self.group.get(), self.shape[1].max(1), self.groups().max(1));
        let mut values = vec![0.0; codes.len()];
        let rows = values.par_chunks_mut(inputs).zip(codes.par_chunks(inputs));
        rows.zip(lines.par_chunks(groups)).for_each(|((values, codes), lines)| {
            for ((values, codes), line) in values.chunks_mut(group).zip(codes.chunks(group)).zip(lines) {
                values.iter_mut().zip(codes).for_each(|(value, &code)| *value = line.value(code.into()));
            }
        });
        Some(values)
    }
}

/// Scales and offsets that make numbers.
fn check_halves(grids: &[f16]) -> Result<(), NestedError> {
    let is_wrong =
        |grid: &&StoredGrid| !(grid.scale.is_finite() && grid.scale > f16::ZERO && grid.offset.is_finite());
    match bytemuck::cast_slice::<_, StoredGrid>(grids).iter().find(is_wrong) {
        Some(&StoredGrid { scale, offset }) => Err(NestedError::Grid { scale, offset }),
        None => Ok(()),
    }
}

/// Those that have grids beside the stored ones.
fn narrower(widths: &[BitWidth]) -> impl Iterator<Item = BitWidth> {
    widths.iter().copied().filter(|&bits| bits != STORED)
}

/// Elements of a shape; of one that no memory has, more than any tensor.
pub(super) fn count(shape: &[usize]) -> usize {
    elements(shape).unwrap_or(usize::MAX)
}

pub(super) fn entry<T: Clone>(shape: &[usize], values: &Values<T>) -> TensorEntry
where
    TensorValues: From<Values<T>>,
{
    TensorEntry { shape: shape.to_vec(), data: values.clone().into() }
}

/// The name of the sensitivities.
fn sensitivity_name(name: &str) -> String {
    format!("{name}.sensitivity")
}

/// The name of what scales and offsets are multiples of.
fn factors_name(name: &str) -> String {
    format!("{name}.factors")
}

/// The name of the grids of a narrower width.
fn narrow_name(name: &str, bits: BitWidth) -> String {
    format!("{name}.grid.{bits}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// A kernel may compute in whole numbers and multiply once.
        #[test]
        fn narrow_grids_are_whole_multiples_of_a_unit(
            scale in 1e-4f32..1.0, offset in -1.0f32..1.0, by in any::<(i8, i8)>(), code in any::<i8>(),
            bits in prop::sample::select(vec![BitWidth::B7, BitWidth::B6, BitWidth::B4, BitWidth::B3, BitWidth::B2]),
        ) {
            let (stored, grid) = (StoredGrid::new(scale, offset), NarrowGrid { scale: by.0, offset: by.1 });
            let level = semantics::switch(code.into(), STORED, bits);
            let whole = (256 + i32::from(by.0)) * level + i32::from(by.1);
            let unit = stored.scale.to_f64() * f64::from(1u32 << (8 - bits.bits())) / 256.0;
            let expected = stored.offset.to_f64() + unit * f64::from(whole);
            let found = f64::from(grid.affine(stored.affine(), bits).value(level as f32));
            prop_assert!((found - expected).abs() <= 1e-6 * (expected.abs() + unit * 65536.0));
        }
    }

    /// What fake quantization computes with, and what a file of one width stores, is what kernels have: for scales that halves hold only
    /// with few digits, too.
    #[test]
    fn kernels_hold_what_affine_says() {
        let mut widths = BitWidth::ALL;
        widths.reverse();
        let (shape, group) = ([5, 70], NonZeroUsize::new(32).unwrap());
        let codes = (0..350).map(|at| (at * 37 % 256 - 128) as i8).collect();
        let stored: Vec<StoredGrid> =
            (0..15).map(|at| StoredGrid::new(3.1e-6 * (at + 1) as f32, 1.3e-5 * (at - 7) as f32)).collect();
        let grid = |at: i32| NarrowGrid { scale: (at * 11 - 60) as i8, offset: (at * 7 - 50) as i8 };
        let narrow = vec![(0..15).map(grid).collect::<Vec<_>>(); 6];
        let nested = NestedWeight::new(shape, group, &widths, codes, &stored, &narrow).unwrap();
        for bits in widths {
            let only = nested.only(bits).unwrap();
            for weight in [&nested, &only] {
                let (prepared, lines) =
                    (weight.prepared(bits).unwrap().unwrap(), weight.affine(bits).unwrap());
                let held = prepared.scales().into_iter().zip(prepared.offsets());
                let held: Vec<Affine> = held.map(|(scale, offset)| Affine { scale, offset }).collect();
                assert_eq!(held, lines, "{bits} bits");
            }
        }
    }
}
