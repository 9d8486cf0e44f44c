//! [`Initializer`]: an array in a file, converted when it is asked for.

use super::OnnxReadError;
use super::proto::{DataType, EXTERNAL, TensorProto};
use crate::arrays::Array;
use crate::graph::ElementType;
use bytes::Bytes;
use half::{bf16, f16};
use ndarray::{ArcArray, IxDyn};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

impl ElementType {
    /// The types of elements that arrays can have, as ONNX files name them.
    const DATA_TYPES: [(DataType, Self); 13] = [
        (DataType::Float, Self::F32),
        (DataType::Double, Self::F64),
        (DataType::Float16, Self::F16),
        (DataType::Bfloat16, Self::Bf16),
        (DataType::Int8, Self::I8),
        (DataType::Int16, Self::I16),
        (DataType::Int32, Self::I32),
        (DataType::Int64, Self::I64),
        (DataType::Uint8, Self::U8),
        (DataType::Uint16, Self::U16),
        (DataType::Uint32, Self::U32),
        (DataType::Uint64, Self::U64),
        (DataType::Bool, Self::Bool),
    ];

    /// The type of this number in ONNX files (as in `Cast`'s attribute `to`), if arrays can have its elements.
    pub(super) fn from_code(code: i64) -> Option<Self> {
        let found = Self::DATA_TYPES.into_iter().find(|(data_type, _)| *data_type as i64 == code);
        found.map(|(_, element)| element)
    }

    /// Its type in ONNX files.
    #[doc(hidden)]
    pub fn data_type(self) -> DataType {
        let found = Self::DATA_TYPES.into_iter().find(|(_, element)| *element == self);
        found.map_or(DataType::Undefined, |(data_type, _)| data_type)
    }

    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F64 => "float64",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
            Self::I8 => "int8",
            Self::I16 => "int16",
            Self::I32 => "int32",
            Self::I64 => "int64",
            Self::U8 => "uint8",
            Self::U16 => "uint16",
            Self::U32 => "uint32",
            Self::U64 => "uint64",
            Self::Bool => "bool",
        }
    }

    /// Bytes of one element in a file.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::I8 | Self::U8 | Self::Bool => 1,
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => 2,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F64 | Self::I64 | Self::U64 => 8,
        }
    }

    /// The smallest and the largest number of a type of integers or of bits.
    fn range(self) -> (i128, i128) {
        match self {
            Self::Bool => (0, 1),
            Self::U8 | Self::U16 | Self::U32 | Self::U64 | Self::F16 | Self::Bf16 => {
                (0, (1 << (8 * self.bytes())) - 1)
            }
            _ => (-(1 << (8 * self.bytes() - 1)), (1 << (8 * self.bytes() - 1)) - 1),
        }
    }
}

/// A type of codes: integers of at most 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CodeType {
    bits: u32,
    signed: bool,
}

impl CodeType {
    pub fn of(data_type: i32) -> Option<Self> {
        const TYPES: [(DataType, u32, bool); 8] = [
            (DataType::Int2, 2, true),
            (DataType::Uint2, 2, false),
            (DataType::Int4, 4, true),
            (DataType::Uint4, 4, false),
            (DataType::Int8, 8, true),
            (DataType::Uint8, 8, false),
            (DataType::Int16, 16, true),
            (DataType::Uint16, 16, false),
        ];
        let found = TYPES.into_iter().find(|(code, ..)| *code as i32 == data_type);
        found.map(|(_, bits, signed)| Self { bits, signed })
    }

    /// The smallest and the largest code.
    pub fn range(self) -> [f32; 2] {
        let count = (1u32 << self.bits) as f32;
        if self.signed { [-count / 2.0, count / 2.0 - 1.0] } else { [0.0, count - 1.0] }
    }

    /// The type of elements that has its codes.
    pub fn element(self) -> ElementType {
        match (self.bits, self.signed) {
            (..=8, true) => ElementType::I8,
            (..=8, false) => ElementType::U8,
            (_, true) => ElementType::I16,
            (_, false) => ElementType::U16,
        }
    }

    /// The code at a place of codes of less than a byte, of which the first is in the lowest bits.
    fn code(self, bytes: &[u8], at: usize) -> i64 {
        let bits = self.bits as usize;
        let (per_byte, unused) = (8 / bits, 8 - bits);
        let high = bytes[at / per_byte] << (unused - at % per_byte * bits);
        let code = if self.signed { i64::from(high.cast_signed()) } else { i64::from(high) };
        code >> unused
    }
}

/// The name of a type that arrays do not have, or its number.
pub(super) fn type_name(code: i32) -> String {
    const NAMES: [(DataType, &str); 14] = [
        (DataType::Undefined, "undefined"),
        (DataType::String, "string"),
        (DataType::Complex64, "complex64"),
        (DataType::Complex128, "complex128"),
        (DataType::Float8e4m3fn, "float8e4m3fn"),
        (DataType::Float8e4m3fnuz, "float8e4m3fnuz"),
        (DataType::Float8e5m2, "float8e5m2"),
        (DataType::Float8e5m2fnuz, "float8e5m2fnuz"),
        (DataType::Uint4, "uint4"),
        (DataType::Int4, "int4"),
        (DataType::Float4e2m1, "float4e2m1"),
        (DataType::Float8e8m0, "float8e8m0"),
        (DataType::Uint2, "uint2"),
        (DataType::Int2, "int2"),
    ];
    let name = NAMES.iter().find(|(data_type, _)| *data_type as i32 == code);
    name.map_or_else(|| format!("number {code}"), |(_, name)| (*name).to_owned())
}

/// An array of a file: an initializer, or the value of an attribute. Its numbers stay where they are until
/// [`to_array`](Self::to_array).
#[derive(Clone, Debug, PartialEq)]
pub struct Initializer {
    name: String,
    proto: TensorProto,
    external: Option<External>,
}

/// A range of another file.
#[derive(Clone, Debug, PartialEq)]
struct External {
    folder: Option<Arc<Path>>,
    location: String,
    offset: u64,
    length: Option<u64>,
}

impl Initializer {
    /// The array of a message, in a model of this folder. The name is for messages.
    pub(super) fn new(
        name: String, proto: TensorProto, folder: Option<&Arc<Path>>,
    ) -> Result<Self, OnnxReadError> {
        if proto.segment.is_some() {
            return Err(OnnxReadError::Segment(name));
        }
        let external = match proto.data_location {
            0 => None,
            EXTERNAL => Some(External::new(&name, &proto, folder)?),
            other => {
                let (key, value) = ("data_location", other.to_string());
                return Err(OnnxReadError::External { tensor: name, key, value });
            }
        };
        Ok(Self { name, proto, external })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What its elements are in the file.
    ///
    /// # Errors
    ///
    /// If arrays do not have such elements.
    pub fn element(&self) -> Result<ElementType, OnnxReadError> {
        ElementType::from_code(self.proto.data_type.into()).ok_or_else(|| OnnxReadError::Element {
            tensor: self.name.clone(),
            found: type_name(self.proto.data_type),
        })
    }

    /// The number of its type.
    pub(super) fn data_type(&self) -> i32 {
        self.proto.data_type
    }

    /// Its sizes.
    ///
    /// # Errors
    ///
    /// If one is negative, or their product does not fit in memory.
    pub fn shape(&self) -> Result<Vec<usize>, OnnxReadError> {
        let sizes: Option<Vec<usize>> = self.proto.dims.iter().map(|&size| size.try_into().ok()).collect();
        // Without its zeros, as for `ndarray`, which takes no shape that would not fit in memory with ones in their place.
        sizes
            .filter(|sizes| {
                let product =
                    sizes.iter().filter(|&&size| size > 0).try_fold(1usize, |n, &size| n.checked_mul(size));
                product.is_some_and(|n| n <= isize::MAX as usize / size_of::<i64>())
            })
            .ok_or_else(|| OnnxReadError::Shape { tensor: self.name.clone(), shape: self.proto.dims.clone() })
    }

    /// The array: floats of all types as `f32`, integers as `i64`.
    ///
    /// # Errors
    ///
    /// If its type or shape is none of an array, its numbers are not there, more or fewer than the shape says, or not of the type.
    pub fn to_array(&self) -> Result<Array, OnnxReadError> {
        if let Some(of) = CodeType::of(self.proto.data_type).filter(|of| of.bits < 8) {
            return self.packed(of);
        }
        let (element, shape) = (self.element()?, self.shape()?);
        let count = shape.iter().product();
        let bytes = match &self.external {
            Some(external) => external.read(&self.name, count * element.bytes())?,
            None if !self.proto.raw_data.is_empty() => self.proto.raw_data.clone(),
            None => return self.typed(element, &shape, count),
        };
        self.check_length(bytes.len(), count * element.bytes(), "bytes")?;
        match element {
            ElementType::F32 => self.floats(&shape, numbers(&bytes, f32::from_le_bytes)),
            ElementType::F64 => self.floats(&shape, numbers(&bytes, |b| f64::from_le_bytes(b) as f32)),
            ElementType::F16 => self.floats(&shape, numbers(&bytes, |b| f16::from_le_bytes(b).to_f32())),
            ElementType::Bf16 => self.floats(&shape, numbers(&bytes, |b| bf16::from_le_bytes(b).to_f32())),
            ElementType::I8 => self.integers(&shape, numbers(&bytes, |b| i8::from_le_bytes(b).into())),
            ElementType::I16 => self.integers(&shape, numbers(&bytes, |b| i16::from_le_bytes(b).into())),
            ElementType::I32 => self.integers(&shape, numbers(&bytes, |b| i32::from_le_bytes(b).into())),
            ElementType::I64 => self.integers(&shape, numbers(&bytes, i64::from_le_bytes)),
            ElementType::U8 => self.integers(&shape, numbers(&bytes, |b| u8::from_le_bytes(b).into())),
            ElementType::U16 => self.integers(&shape, numbers(&bytes, |b| u16::from_le_bytes(b).into())),
            ElementType::U32 => self.integers(&shape, numbers(&bytes, |b| u32::from_le_bytes(b).into())),
            ElementType::U64 => {
                let wide = bytes.as_chunks().0.iter().map(|&b| u64::from_le_bytes(b));
                self.integers(&shape, self.checked(wide, ElementType::I64)?)
            }
            ElementType::Bool => self.booleans(&shape, numbers(&bytes, |[b]: [u8; 1]| b != 0)),
        }
    }

    /// The array of codes of less than a byte.
    fn packed(&self, of: CodeType) -> Result<Array, OnnxReadError> {
        let shape = self.shape()?;
        let count: usize = shape.iter().product();
        let expected = count.div_ceil((8 / of.bits) as usize);
        let bytes = match &self.external {
            Some(external) => external.read(&self.name, expected)?,
            None => self.proto.raw_data.clone(),
        };
        self.check_length(bytes.len(), expected, "bytes")?;
        self.integers(&shape, (0..count).map(|at| of.code(&bytes, at)).collect())
    }

    /// The array from the field for its type.
    fn typed(&self, element: ElementType, shape: &[usize], count: usize) -> Result<Array, OnnxReadError> {
        let proto = &self.proto;
        let found = match element {
            ElementType::F32 => proto.float_data.len(),
            ElementType::F64 => proto.double_data.len(),
            ElementType::I64 => proto.int64_data.len(),
            ElementType::U32 | ElementType::U64 => proto.uint64_data.len(),
            _ => proto.int32_data.len(),
        };
        self.check_length(found, count, "elements")?;
        let narrow = || self.checked(proto.int32_data.iter().copied(), element);
        match element {
            ElementType::F32 => self.floats(shape, proto.float_data.clone()),
            ElementType::F64 => self.floats(shape, proto.double_data.iter().map(|&x| x as f32).collect()),
            ElementType::F16 => self.floats(
                shape,
                narrow()?.into_iter().map(|bits| f16::from_bits(bits as u16).to_f32()).collect(),
            ),
            ElementType::Bf16 => self.floats(
                shape,
                narrow()?.into_iter().map(|bits| bf16::from_bits(bits as u16).to_f32()).collect(),
            ),
            ElementType::I64 => self.integers(shape, proto.int64_data.clone()),
            ElementType::U32 => {
                self.integers(shape, self.checked(proto.uint64_data.iter().copied(), element)?)
            }
            ElementType::U64 => {
                self.integers(shape, self.checked(proto.uint64_data.iter().copied(), ElementType::I64)?)
            }
            ElementType::Bool => self.booleans(shape, narrow()?.into_iter().map(|x| x != 0).collect()),
            ElementType::I8 | ElementType::I16 | ElementType::I32 | ElementType::U8 | ElementType::U16 => {
                self.integers(shape, narrow()?)
            }
        }
    }

    /// Integers that are of a type.
    fn checked<T>(
        &self, numbers: impl ExactSizeIterator<Item = T>, element: ElementType,
    ) -> Result<Vec<i64>, OnnxReadError>
    where
        i128: From<T>,
    {
        let (first, last) = element.range();
        let checked = numbers.map(|number| {
            let value = i128::from(number);
            (first..=last).contains(&value).then_some(value as i64).ok_or_else(|| OnnxReadError::Range {
                tensor: self.name.clone(),
                value,
                expected: element.name(),
            })
        });
        checked.collect()
    }

    fn check_length(&self, found: usize, expected: usize, unit: &'static str) -> Result<(), OnnxReadError> {
        if found == expected {
            return Ok(());
        }
        let (found, expected) = (found as u64, expected as u64);
        Err(OnnxReadError::Length { tensor: self.name.clone(), found, expected, unit })
    }

    fn floats(&self, shape: &[usize], numbers: Vec<f32>) -> Result<Array, OnnxReadError> {
        self.shaped(shape, numbers).map(Array::F32)
    }

    fn integers(&self, shape: &[usize], numbers: Vec<i64>) -> Result<Array, OnnxReadError> {
        self.shaped(shape, numbers).map(Array::I64)
    }

    fn booleans(&self, shape: &[usize], numbers: Vec<bool>) -> Result<Array, OnnxReadError> {
        self.shaped(shape, numbers).map(Array::Bool)
    }

    fn shaped<T>(&self, shape: &[usize], numbers: Vec<T>) -> Result<ArcArray<T, IxDyn>, OnnxReadError> {
        ArcArray::from_shape_vec(IxDyn(shape), numbers)
            .map_err(|_| OnnxReadError::Shape { tensor: self.name.clone(), shape: self.proto.dims.clone() })
    }
}

/// The numbers of `N` bytes each.
fn numbers<const N: usize, T>(bytes: &[u8], number: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks().0.iter().map(|&chunk| number(chunk)).collect()
}

impl External {
    fn new(tensor: &str, proto: &TensorProto, folder: Option<&Arc<Path>>) -> Result<Self, OnnxReadError> {
        let value =
            |key: &str| proto.external_data.iter().find(|entry| entry.key == key).map(|entry| &entry.value);
        let number = |key: &'static str| {
            value(key).map(|value| {
                value.parse::<u64>().map_err(|_| OnnxReadError::External {
                    tensor: tensor.to_owned(),
                    key,
                    value: value.clone(),
                })
            })
        };
        let location = value("location").cloned().unwrap_or_default();
        if !is_inside(&location) {
            return Err(OnnxReadError::Location { tensor: tensor.to_owned(), location });
        }
        let (offset, length) = (number("offset").transpose()?.unwrap_or(0), number("length").transpose()?);
        Ok(Self { folder: folder.cloned(), location, offset, length })
    }

    /// So many bytes, none of which are asked for before it is known that they are there.
    fn read(&self, tensor: &str, expected: usize) -> Result<Bytes, OnnxReadError> {
        let expected = expected as u64;
        if let Some(found) = self.length.filter(|&length| length != expected) {
            return Err(OnnxReadError::Length { tensor: tensor.to_owned(), found, expected, unit: "bytes" });
        }
        let path = self.path(tensor)?;
        let failed =
            |error| OnnxReadError::ExternalRead { tensor: tensor.to_owned(), path: path.clone(), error };
        let metadata = fs::metadata(&path).map_err(failed)?;
        if !metadata.is_file() {
            return Err(OnnxReadError::ExternalNotAFile { tensor: tensor.to_owned(), path });
        }
        let end = self.offset.saturating_add(expected);
        if metadata.len() < end {
            let (tensor, found) = (tensor.to_owned(), metadata.len());
            return Err(OnnxReadError::ExternalShort { tensor, path, found, expected: end });
        }
        let mut bytes = Vec::new();
        let reserved = usize::try_from(expected).map(|expected| bytes.try_reserve_exact(expected));
        if !matches!(reserved, Ok(Ok(()))) {
            return Err(failed(io::ErrorKind::OutOfMemory.into()));
        }
        let mut file = File::open(&path).map_err(failed)?;
        file.seek(SeekFrom::Start(self.offset)).map_err(failed)?;
        file.take(expected).read_to_end(&mut bytes).map_err(failed)?;
        Ok(bytes.into())
    }

    /// The file, which is in the folder of the model even if links are followed.
    fn path(&self, tensor: &str) -> Result<PathBuf, OnnxReadError> {
        let (tensor, location) = (tensor.to_owned(), self.location.clone());
        let Some(folder) = &self.folder else {
            return Err(OnnxReadError::NoFolder { tensor, location });
        };
        let path = folder.join(&location);
        match folder.canonicalize().and_then(|folder| Ok((folder, path.canonicalize()?))) {
            Ok((folder, path)) if path.starts_with(&folder) => Ok(path),
            Ok(_) => Err(OnnxReadError::Location { tensor, location }),
            Err(error) => Err(OnnxReadError::ExternalRead { tensor, path, error }),
        }
    }
}

/// Whether a location is one of a file in a folder on every system.
fn is_inside(location: &str) -> bool {
    let plain =
        Path::new(location).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    let drive = location.chars().nth(1) == Some(':');
    plain
        && !location.is_empty()
        && !drive
        && !location.starts_with('\\')
        && !location.split(['/', '\\']).any(|part| part == "..")
}
