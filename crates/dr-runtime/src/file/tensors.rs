//! [`TensorEntry`]: one tensor in memory.

use super::ArtifactError;
use bytemuck::Pod;
use half::f16;
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

impl Content {
    /// Lets the system have the memory of a part that has been read: what is read again comes from the file again.
    pub(super) fn release(&self, part: &Range<usize>) {
        #[cfg(unix)]
        if let Self::Mapped(map) = self {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: Nobody writes to the map: its pages are those of the file, before and after. Nothing depends on the result.
            let _ = unsafe { map.unchecked_advise_range(advice, part.start, part.len()) };
        }
        #[cfg(not(unix))]
        let _ = (self, part);
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

    /// As a file has them.
    fn bytes(&self) -> Cow<'_, [u8]> {
        match cfg!(target_endian = "little") {
            true => Cow::Borrowed(bytemuck::cast_slice(self)),
            false => Cow::Owned(
                self.iter().flat_map(|value| bytemuck::bytes_of(value).iter().rev().copied()).collect(),
            ),
        }
    }

    /// Lets the system have the memory that values in a file took since they were read.
    pub(crate) fn release(&self) {
        if let Source::File(content, range, _) = &self.0 {
            content.release(range);
        }
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

/// The types that tensors of networks have.
pub trait Element: Pod {
    /// The name of the type, as safetensors spells it.
    const NAME: &'static str;

    /// The values of a tensor, if they are of this type.
    fn of(values: &TensorValues) -> Option<&Values<Self>>;
}

macro_rules! tensor_values {
    ($(#[$doc:meta] $name:ident($type:ty),)*) => {
        /// The values of one tensor.
        #[derive(Clone, Debug, PartialEq)]
        pub enum TensorValues {
            $(#[$doc] $name(Values<$type>),)*
        }

        impl TensorValues {
            /// How many values there are.
            #[must_use]
            pub fn len(&self) -> usize {
                match self { $(Self::$name(values) => values.len(),)* }
            }

            /// The name of the type, as safetensors spells it.
            #[must_use]
            pub const fn type_name(&self) -> &'static str {
                match self { $(Self::$name(_) => <$type>::NAME,)* }
            }

            const fn dtype(&self) -> Dtype {
                match self { $(Self::$name(_) => Dtype::$name,)* }
            }

            fn bytes(&self) -> Cow<'_, [u8]> {
                match self { $(Self::$name(values) => values.bytes(),)* }
            }

            /// A part of a file.
            fn of(dtype: Dtype, content: &Arc<Content>, range: Range<usize>) -> Option<Self> {
                match dtype {
                    $(Dtype::$name => Some(Self::$name(Values::of(content, range))),)*
                    _ => None,
                }
            }
        }

        $(impl Element for $type {
            const NAME: &'static str = stringify!($name);

            fn of(values: &TensorValues) -> Option<&Values<Self>> {
                match values {
                    TensorValues::$name(values) => Some(values),
                    _ => None,
                }
            }
        }

        impl From<Values<$type>> for TensorValues {
            fn from(values: Values<$type>) -> Self {
                Self::$name(values)
            }
        })*
    };
}

tensor_values! {
    /// Codes.
    I8(i8),
    /// Scales, BatchNorm terms, float weights.
    F32(f32),
    /// Scales and offsets of nested weights.
    F16(f16),
    /// Words of packed codes.
    U32(u32),
    /// A file: one of the [`ATTACHMENTS`](super::ATTACHMENTS); truth values.
    U8(u8),
    /// Integers that networks compute with.
    I64(i64),
}

impl TensorValues {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
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

    /// A tensor of bytes.
    #[must_use]
    pub fn u8(shape: impl Into<Vec<usize>>, values: Vec<u8>) -> Self {
        Self { shape: shape.into(), data: TensorValues::U8(values.into()) }
    }

    /// A tensor of integers.
    #[must_use]
    pub fn i64(shape: impl Into<Vec<usize>>, values: Vec<i64>) -> Self {
        Self { shape: shape.into(), data: TensorValues::I64(values.into()) }
    }

    /// A file.
    #[must_use]
    pub fn bytes(values: Vec<u8>) -> Self {
        Self { shape: vec![values.len()], data: TensorValues::U8(values.into()) }
    }

    /// How many bytes it takes in the file.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.data.len() * self.data.dtype().bitsize() / 8
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
        let data = TensorValues::of(dtype, content, range).ok_or_else(|| ArtifactError::Type {
            name: name.to_owned(),
            found: dtype.to_string(),
            expected: "I8, U8, F16, F32, U32 or I64",
        })?;
        let entry = Self { shape, data };
        entry.check(name)?;
        Ok(entry)
    }
}

impl View for &TensorEntry {
    fn dtype(&self) -> Dtype {
        self.data.dtype()
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.data.bytes()
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
