//! [`TensorEntry`]: one tensor in memory.

use super::ArtifactError;
use bytemuck::Pod;
use safetensors::{Dtype, View};
use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// The bytes of a file.
pub(super) enum Content {
    /// In memory.
    Bytes(Vec<u8>),
    /// As the system maps it.
    Mapped(memmap2::Mmap),
}

impl Deref for Content {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Mapped(map) => map,
        }
    }
}

/// Values of one type: in memory of their own, or where they lie in a file.
#[derive(Clone)]
pub struct Values<T>(Source<T>);

#[derive(Clone)]
enum Source<T> {
    Own(Arc<Vec<T>>),
    /// Aligned for the type.
    File(Arc<Content>, Range<usize>, PhantomData<T>),
}

impl<T: Pod> Values<T> {
    /// Those of a part of a file, little-endian.
    fn of(content: &Arc<Content>, range: Range<usize>) -> Self {
        let bytes = &content[range.clone()];
        Self(match bytemuck::try_cast_slice::<u8, T>(bytes) {
            Ok(_) if cfg!(target_endian = "little") => Source::File(content.clone(), range, PhantomData),
            // Of a writer that did not align its tensors.
            _ => {
                Source::Own(bytes.chunks_exact(size_of::<T>()).map(little_endian).collect::<Vec<T>>().into())
            }
        })
    }
}

fn little_endian<T: Pod>(bytes: &[u8]) -> T {
    let mut value = T::zeroed();
    bytemuck::bytes_of_mut(&mut value).copy_from_slice(bytes);
    if cfg!(target_endian = "big") {
        bytemuck::bytes_of_mut(&mut value).reverse();
    }
    value
}

impl<T: Pod> Deref for Values<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.0 {
            Source::Own(values) => values,
            Source::File(content, range, _) => bytemuck::cast_slice(&content[range.clone()]),
        }
    }
}

impl<T> From<Vec<T>> for Values<T> {
    fn from(values: Vec<T>) -> Self {
        Self(Source::Own(Arc::new(values)))
    }
}

impl<T: Pod + PartialEq> PartialEq for Values<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Pod + fmt::Debug> fmt::Debug for Values<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} values", self.len())
    }
}

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
    I8(Values<i8>),
    /// Scales, BatchNorm terms, float weights.
    F32(Values<f32>),
    /// Words of packed codes.
    U32(Values<u32>),
    /// A file: the tokenizer.
    U8(Values<u8>),
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
        Self { shape: shape.into(), data: TensorValues::I8(values.into()) }
    }

    /// A tensor of floats.
    #[must_use]
    pub fn f32(shape: impl Into<Vec<usize>>, values: Vec<f32>) -> Self {
        Self { shape: shape.into(), data: TensorValues::F32(values.into()) }
    }

    /// A tensor of words.
    #[must_use]
    pub fn u32(shape: impl Into<Vec<usize>>, values: Vec<u32>) -> Self {
        Self { shape: shape.into(), data: TensorValues::U32(values.into()) }
    }

    /// A file.
    #[must_use]
    pub fn bytes(values: Vec<u8>) -> Self {
        Self { shape: vec![values.len()], data: TensorValues::U8(values.into()) }
    }

    /// How many bytes it takes in the file.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.data.len() * self.data.value_bytes()
    }

    /// Whether the shape holds as many values as there are.
    pub(super) fn check(&self, name: &str) -> Result<(), ArtifactError> {
        if elements(&self.shape) == Some(self.data.len()) {
            return Ok(());
        }
        Err(ArtifactError::Length {
            name: name.to_owned(),
            shape: self.shape.clone(),
            found: self.data.len(),
        })
    }

    /// A part of a file.
    pub(super) fn of(
        name: &str, dtype: Dtype, shape: Vec<usize>, content: &Arc<Content>, range: Range<usize>,
    ) -> Result<Self, ArtifactError> {
        let data = match dtype {
            Dtype::I8 => TensorValues::I8(Values::of(content, range)),
            Dtype::F32 => TensorValues::F32(Values::of(content, range)),
            Dtype::U32 => TensorValues::U32(Values::of(content, range)),
            Dtype::U8 => TensorValues::U8(Values::of(content, range)),
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
        match &self.data {
            TensorValues::I8(values) => Cow::Borrowed(bytemuck::cast_slice(values)),
            TensorValues::U8(values) => Cow::Borrowed(values),
            TensorValues::F32(values) => Cow::Owned(values.iter().flat_map(|x| x.to_le_bytes()).collect()),
            TensorValues::U32(values) => Cow::Owned(values.iter().flat_map(|x| x.to_le_bytes()).collect()),
        }
    }

    fn data_len(&self) -> usize {
        self.byte_len()
    }
}

/// The product of sizes, if it and the products of only some of them are numbers.
pub(crate) fn elements(sizes: &[usize]) -> Option<usize> {
    let product = sizes.iter().try_fold(1usize, |product, &size| product.checked_mul(size.max(1)))?;
    Some(if sizes.contains(&0) { 0 } else { product })
}
