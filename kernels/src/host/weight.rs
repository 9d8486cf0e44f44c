//! Weights in panels, with their scales.

use crate::KernelError;
use crate::cpu::Words;
use crate::cpu::integer::{Codes, codes_of, prepare_words, switch_words};
use crate::error::size;
use crate::integer::WeightLayout;
use dr_precision::{BitWidth, Granularity};
use std::fmt;
use std::sync::Arc;

/// The codes of a weight at the stored width `h`, prepared for this processor; cheap to clone. Only these can be switched to
/// other widths.
#[derive(Clone)]
pub struct StoredWeight {
    layout: WeightLayout,
    words: Arc<Words>,
}

impl StoredWeight {
    /// From a byte for each code, `[outputs, inputs / groups, rows, columns]` or `[outputs, inputs]`.
    ///
    /// # Errors
    /// Those of [`WeightLayout::new`]; [`KernelError::Size`] for another number of codes, [`KernelError::CodeRange`] for a
    /// code that the width does not have.
    pub fn from_codes(
        codes: &[i8], shape: &[usize], groups: usize, bits: BitWidth, granularity: Granularity,
    ) -> Result<Self, KernelError> {
        Self::new(Codes::Bytes(codes), WeightLayout::new(shape, groups, bits, granularity)?)
    }

    /// From packed words in the order of [`crate::layout`].
    ///
    /// # Errors
    /// Those of [`WeightLayout::new`]; [`KernelError::WordCount`] for another number of words.
    pub fn from_packed(
        words: &[u32], shape: &[usize], groups: usize, bits: BitWidth, granularity: Granularity,
    ) -> Result<Self, KernelError> {
        Self::new(Codes::Packed(words), WeightLayout::new(shape, groups, bits, granularity)?)
    }

    fn new(codes: Codes, layout: WeightLayout) -> Result<Self, KernelError> {
        Ok(Self { layout, words: Arc::new(prepare_words(codes, &layout)?) })
    }

    /// Shape, width and granularity.
    #[must_use]
    pub const fn layout(&self) -> &WeightLayout {
        &self.layout
    }

    /// The second rounding, by shifts: the codes of `bits` bits, with the scales of that width, `[outputs, scale groups]`.
    /// At the stored width nothing is copied.
    ///
    /// # Errors
    /// [`KernelError::Precision`] for a width above the stored one, [`KernelError::ScaleCount`] for another number of scales.
    pub fn at(&self, bits: BitWidth, scales: &[f32]) -> Result<Weight, KernelError> {
        self.layout.bits().shift_to(bits)?;
        let layout = self.layout.at(bits)?;
        let (outputs, groups) = (layout.outputs(), layout.scale_groups());
        if scales.len() != outputs * groups {
            return Err(KernelError::ScaleCount {
                what: "scale",
                found: scales.len(),
                expected: outputs * groups,
                shape: vec![outputs, layout.inputs(), layout.kernel()[0], layout.kernel()[1]],
                granularity: layout.granularity().to_string(),
            });
        }
        let words = match bits == self.layout.bits() {
            true => self.words.clone(),
            false => Arc::new(switch_words(&self.words, self.layout.bits(), bits)),
        };
        let by_group = |i: usize| scales[i % outputs * groups + i / outputs];
        Ok(Weight { layout, words, scales: (0..scales.len()).map(by_group).collect(), offsets: None })
    }

    /// Takes some milliseconds for each megabyte to lay many codes out for the fastest reading: for weights that stay.
    pub fn settle(&self) {
        self.words.settle();
    }
}

impl fmt::Debug for StoredWeight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StoredWeight").field(&self.layout).finish()
    }
}

/// The codes of one width, with their scales; cheap to clone. It cannot be switched: a second switch is another rounding.
#[derive(Clone)]
pub struct Weight {
    layout: WeightLayout,
    words: Arc<Words>,
    /// `[scale groups, outputs]`.
    scales: Arc<[f32]>,
    /// `[outputs]`, if the code 0 does not stand for 0.
    offsets: Option<Arc<[f32]>>,
}

impl Weight {
    /// Shape, width and granularity.
    #[must_use]
    pub const fn layout(&self) -> &WeightLayout {
        &self.layout
    }

    /// The width of the codes.
    #[must_use]
    pub const fn bits(&self) -> BitWidth {
        self.layout.bits()
    }

    /// Bytes of the codes, with those of padding.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of_val(self.words())
    }

    /// The codes, `[outputs, inputs / groups * taps]`.
    #[must_use]
    pub fn codes(&self) -> Vec<i32> {
        codes_of(self.words(), &self.layout)
    }

    /// The scales, `[outputs, scale groups]`.
    #[must_use]
    pub fn scales(&self) -> Vec<f32> {
        let groups = self.layout.scale_groups();
        (0..self.scales.len()).map(|i| self.scales[i % groups * self.layout.outputs() + i / groups]).collect()
    }

    /// Takes some milliseconds for each megabyte to lay many codes out for the fastest reading: for weights that stay.
    pub fn settle(&self) {
        self.words.settle();
    }

    /// The same codes with an offset for each output: a code `q` stands for `scale * q + offset`.
    ///
    /// # Errors
    /// [`KernelError::Size`] for another number of offsets, and for weights with more than one scale for an output.
    pub fn with_offsets(self, offsets: &[f32]) -> Result<Self, KernelError> {
        size("scale groups of a weight with offsets", &[self.layout.scale_groups()], &[1])?;
        size("offsets of a weight", &[offsets.len()], &[self.layout.outputs()])?;
        Ok(Self { offsets: Some(offsets.into()), ..self })
    }

    /// The offsets, `[outputs]`; `None` if the code 0 stands for 0.
    #[must_use]
    pub fn offsets(&self) -> Option<&[f32]> {
        self.offsets.as_deref()
    }

    pub(super) fn words(&self) -> &[u32] {
        &self.words
    }

    /// `[scale groups, outputs]`.
    pub(super) fn scales_by_group(&self) -> &[f32] {
        &self.scales
    }
}

impl fmt::Debug for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Weight").field(&self.layout).finish()
    }
}
