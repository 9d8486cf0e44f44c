//! [`TensorEntry`]: one tensor in memory.

use super::ArtifactError;
use safetensors::{Dtype, View};
use std::borrow::Cow;

/// One tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorEntry {
    /// Sizes of its axes.
    pub shape: Vec<usize>,
    /// Its values, the last axis contiguous.
    pub data: TensorValues,
}

/// The values of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum TensorValues {
    /// Codes.
    I8(Vec<i8>),
    /// Scales, BatchNorm terms, float weights.
    F32(Vec<f32>),
    /// Words of packed codes.
    U32(Vec<u32>),
    /// A file: the tokenizer.
    U8(Vec<u8>),
}

impl TensorValues {
    /// How many values there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::I8(values) => values.len(),
            Self::F32(values) => values.len(),
            Self::U32(values) => values.len(),
            Self::U8(values) => values.len(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The name of the type, as safetensors spells it.
    #[must_use]
    pub const fn type_name(&self) -> &'static str {
        match self {
            Self::I8(_) => "I8",
            Self::F32(_) => "F32",
            Self::U32(_) => "U32",
            Self::U8(_) => "U8",
        }
    }

    const fn value_bytes(&self) -> usize {
        match self {
            Self::I8(_) | Self::U8(_) => 1,
            Self::F32(_) | Self::U32(_) => 4,
        }
    }
}

impl TensorEntry {
    /// A tensor of codes.
    #[must_use]
    pub fn i8(shape: impl Into<Vec<usize>>, values: Vec<i8>) -> Self {
        Self { shape: shape.into(), data: TensorValues::I8(values) }
    }

    /// A tensor of floats.
    #[must_use]
    pub fn f32(shape: impl Into<Vec<usize>>, values: Vec<f32>) -> Self {
        Self { shape: shape.into(), data: TensorValues::F32(values) }
    }

    /// A tensor of words.
    #[must_use]
    pub fn u32(shape: impl Into<Vec<usize>>, values: Vec<u32>) -> Self {
        Self { shape: shape.into(), data: TensorValues::U32(values) }
    }

    /// A file.
    #[must_use]
    pub fn bytes(values: Vec<u8>) -> Self {
        Self { shape: vec![values.len()], data: TensorValues::U8(values) }
    }

    /// How many bytes it takes in the file.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.data.len() * self.data.value_bytes()
    }

    /// Whether the shape holds as many values as there are.
    pub(super) fn check(&self, name: &str) -> Result<(), ArtifactError> {
        let elements = self.shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        if elements == Some(self.data.len()) {
            return Ok(());
        }
        Err(ArtifactError::Length {
            name: name.to_owned(),
            shape: self.shape.clone(),
            found: self.data.len(),
        })
    }

    /// From the little-endian bytes of a file, whose length the reader has already held against the shape.
    pub(super) fn from_le_bytes(
        name: &str, dtype: Dtype, shape: Vec<usize>, bytes: &[u8],
    ) -> Result<Self, ArtifactError> {
        let (words, _) = bytes.as_chunks::<4>();
        let data = match dtype {
            Dtype::I8 => TensorValues::I8(bytes.iter().map(|&byte| byte.cast_signed()).collect()),
            Dtype::F32 => TensorValues::F32(words.iter().map(|&word| f32::from_le_bytes(word)).collect()),
            Dtype::U32 => TensorValues::U32(words.iter().map(|&word| u32::from_le_bytes(word)).collect()),
            Dtype::U8 => TensorValues::U8(bytes.to_vec()),
            other => {
                return Err(ArtifactError::Type {
                    name: name.to_owned(),
                    found: other.to_string(),
                    expected: "I8, U8, F32 or U32",
                });
            }
        };
        let entry = Self { shape, data };
        entry.check(name)?;
        Ok(entry)
    }
}

impl View for &TensorEntry {
    fn dtype(&self) -> Dtype {
        match self.data {
            TensorValues::I8(_) => Dtype::I8,
            TensorValues::F32(_) => Dtype::F32,
            TensorValues::U32(_) => Dtype::U32,
            TensorValues::U8(_) => Dtype::U8,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(match &self.data {
            TensorValues::I8(values) => values.iter().map(|value| value.cast_unsigned()).collect(),
            TensorValues::F32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            TensorValues::U32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            TensorValues::U8(values) => values.clone(),
        })
    }

    fn data_len(&self) -> usize {
        self.byte_len()
    }
}
