//! [`File`]: the metadata and tensors of a GGUF file, and how one is written.

use super::GgufError;
use super::blocks::{BlockType, type_name};
use std::collections::BTreeMap;

/// What files begin with.
pub(super) const MAGIC: [u8; 4] = *b"GGUF";

/// The version that is written.
const VERSION: u32 = 3;

/// The key of the alignment of tensors.
const ALIGNMENT: &str = "general.alignment";

/// The alignment of files that do not say it.
const USUAL_ALIGNMENT: usize = 32;

/// The most axes of a tensor.
const MAX_AXES: u32 = 4;

/// The most arrays in one another.
const MAX_DEPTH: usize = 4;

/// A value of the metadata. Arrays stay where they are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// A whole number.
    Integer(i128),
    /// A number of 32 or 64 bits.
    Float(f64),
    /// Yes or no.
    Bool(bool),
    /// A text.
    Text(&'a str),
    /// Values of one type.
    Array(Array<'a>),
}

/// Values of one type, all of which are known to be there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Array<'a> {
    kind: u32,
    len: u64,
    bytes: &'a [u8],
}

impl<'a> Array<'a> {
    /// The values.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let (kind, mut reader) = (self.kind, Reader(self.bytes));
        (0..self.len).map_while(move |_| reader.value(kind, 1, &|| String::new()).ok())
    }
}

/// A tensor in a file.
#[derive(Clone, Debug)]
pub struct Tensor<'a> {
    /// Sizes of its axes, the last one contiguous.
    pub shape: Vec<usize>,
    /// How its values are stored.
    pub kind: BlockType,
    /// Whole blocks.
    pub bytes: &'a [u8],
}

/// A GGUF file of version 2 or 3, little-endian. Everything in it is known to be there.
#[derive(Clone, Debug)]
pub struct File<'a> {
    /// Values by key.
    pub metadata: BTreeMap<&'a str, Value<'a>>,
    /// Tensors by name.
    pub tensors: BTreeMap<&'a str, Tensor<'a>>,
}

impl<'a> File<'a> {
    /// Reads the content of a file.
    ///
    /// # Errors
    /// A file that is damaged or cut off, of another version, or with tensors of types that are not read: all of these are named.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, GgufError> {
        let reader = &mut Reader(bytes);
        let place = |text: &'static str| move || text.to_owned();
        if reader.array(&place("the magic"))? != MAGIC {
            return Err(GgufError::Magic);
        }
        match u32::from_le_bytes(reader.array(&place("the version"))?) {
            2 | VERSION => {}
            version => return Err(GgufError::Version(version)),
        }
        let (tensors, keys) =
            (reader.u64(&place("the number of tensors"))?, reader.u64(&place("the number of keys"))?);
        let mut metadata = BTreeMap::new();
        for number in 0..keys {
            let key = reader.text(&|| format!("key {number} of {keys}"))?;
            let place = || format!("the value of `{key}`");
            let kind = reader.u32(&place)?;
            if metadata.insert(key, reader.value(kind, 0, &place)?).is_some() {
                return Err(GgufError::value(key, "there twice", "every key once"));
            }
        }
        let mut infos = vec![];
        for number in 0..tensors {
            let name = reader.text(&|| format!("the name of tensor {number} of {tensors}"))?;
            infos.push((name, reader.info(name)?));
        }
        let alignment = match metadata.get(ALIGNMENT) {
            None => USUAL_ALIGNMENT,
            Some(&Value::Integer(alignment @ 1..=MAX_ALIGNMENT)) if alignment.count_ones() == 1 => {
                alignment as usize
            }
            Some(value) => return Err(GgufError::value(ALIGNMENT, value, "a power of two, at most 65536")),
        };
        let start = (bytes.len() - reader.0.len()).next_multiple_of(alignment);
        let file =
            Self { metadata, tensors: tensors_of(bytes.get(start..).unwrap_or(&[]), infos, alignment)? };
        Ok(file)
    }
}

/// Above every alignment that makes sense.
const MAX_ALIGNMENT: i128 = 1 << 16;

/// What the table of tensors says about one: its shape, the number of its type, and where it begins.
type Info = (Vec<usize>, u32, u64);

/// The tensors of the data.
fn tensors_of<'a>(
    data: &'a [u8], infos: Vec<(&'a str, Info)>, alignment: usize,
) -> Result<BTreeMap<&'a str, Tensor<'a>>, GgufError> {
    let unknown = infos.iter().filter(|(_, (_, kind, _))| BlockType::of(*kind).is_none());
    let unknown: Vec<_> =
        unknown.map(|(name, (_, kind, _))| ((*name).to_owned(), type_name(*kind))).collect();
    if !unknown.is_empty() {
        return Err(GgufError::Types(unknown));
    }
    let (mut tensors, mut total) = (BTreeMap::new(), 0usize);
    for (name, (shape, kind, offset)) in infos {
        let Some(kind) = BlockType::of(kind) else { continue };
        let wrong = |found: String, expected: &str| GgufError::value(name, found, expected);
        let values = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        let values = values.ok_or_else(|| wrong(format!("{shape:?}"), "sizes that fit into a file"))?;
        if !shape.last().is_some_and(|size| size.is_multiple_of(kind.values())) {
            let expected = format!("rows of whole blocks of {}", kind.values());
            return Err(wrong(format!("{shape:?} of type {}", kind.name()), &expected));
        }
        let offset = usize::try_from(offset).ok().filter(|offset| offset.is_multiple_of(alignment));
        let offset = offset.ok_or_else(|| wrong("not aligned".to_owned(), "the alignment of the file"))?;
        let bytes = (values / kind.values()).checked_mul(kind.bytes());
        let bytes = bytes.and_then(|len| data.get(offset..)?.get(..len));
        let bytes = bytes.ok_or_else(|| GgufError::End(format!("tensor `{name}`")))?;
        // No tensors that lie upon one another: no more memory is taken than a file of this size can need.
        total += bytes.len();
        if total > data.len() {
            return Err(wrong("upon another tensor".to_owned(), "data of its own"));
        }
        if tensors.insert(name, Tensor { shape, kind, bytes }).is_some() {
            return Err(wrong("there twice".to_owned(), "every tensor once"));
        }
    }
    Ok(tensors)
}

/// Bytes that are read one after another.
struct Reader<'a>(&'a [u8]);

/// What is being read, for messages.
type Place<'p> = &'p dyn Fn() -> String;

impl<'a> Reader<'a> {
    fn take(&mut self, len: u64, place: Place) -> Result<&'a [u8], GgufError> {
        let split = usize::try_from(len).ok().and_then(|len| self.0.split_at_checked(len));
        let (taken, rest) = split.ok_or_else(|| GgufError::End(place()))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, place: Place) -> Result<[u8; N], GgufError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or_else(|| GgufError::End(place()))?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u32(&mut self, place: Place) -> Result<u32, GgufError> {
        self.array(place).map(u32::from_le_bytes)
    }

    fn u64(&mut self, place: Place) -> Result<u64, GgufError> {
        self.array(place).map(u64::from_le_bytes)
    }

    fn text(&mut self, place: Place) -> Result<&'a str, GgufError> {
        let len = self.u64(place)?;
        let bytes = self.take(len, place)?;
        std::str::from_utf8(bytes).map_err(|_| GgufError::value(place(), "no text", "UTF-8"))
    }

    fn value(&mut self, kind: u32, depth: usize, place: Place) -> Result<Value<'a>, GgufError> {
        Ok(match kind {
            0 => Value::Integer(self.array(place).map(u8::from_le_bytes)?.into()),
            1 => Value::Integer(self.array(place).map(i8::from_le_bytes)?.into()),
            2 => Value::Integer(self.array(place).map(u16::from_le_bytes)?.into()),
            3 => Value::Integer(self.array(place).map(i16::from_le_bytes)?.into()),
            4 => Value::Integer(self.u32(place)?.into()),
            5 => Value::Integer(self.array(place).map(i32::from_le_bytes)?.into()),
            6 => Value::Float(self.array(place).map(f32::from_le_bytes)?.into()),
            7 => Value::Bool(self.array::<1>(place)? != [0]),
            8 => Value::Text(self.text(place)?),
            9 if depth < MAX_DEPTH => {
                let (kind, len, before) = (self.u32(place)?, self.u64(place)?, self.0);
                // Every value has a byte: a loop over more is not begun.
                if len > before.len() as u64 {
                    return Err(GgufError::End(place()));
                }
                for _ in 0..len {
                    self.value(kind, depth + 1, place)?;
                }
                Value::Array(Array { kind, len, bytes: &before[..before.len() - self.0.len()] })
            }
            10 => Value::Integer(self.u64(place)?.into()),
            11 => Value::Integer(self.array(place).map(i64::from_le_bytes)?.into()),
            12 => Value::Float(self.array(place).map(f64::from_le_bytes)?),
            _ => return Err(GgufError::value(place(), format!("of type {kind}"), "type 0 to 12")),
        })
    }

    fn info(&mut self, name: &str) -> Result<Info, GgufError> {
        let place = || format!("the shape of tensor `{name}`");
        let axes = self.u32(&place)?;
        if !(1..=MAX_AXES).contains(&axes) {
            return Err(GgufError::value(name, format!("of {axes} axes"), "1 to 4"));
        }
        let mut shape = vec![];
        for _ in 0..axes {
            let size = self.u64(&place)?;
            shape.push(usize::try_from(size).map_err(|_| GgufError::value(name, size, "a size"))?);
        }
        shape.reverse();
        Ok((shape, self.u32(&place)?, self.u64(&place)?))
    }
}

/// A value to be written.
pub(super) enum Entry {
    Size(usize),
    Float(f64),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Floats(Vec<f32>),
    Integers(Vec<i32>),
}

/// A tensor to be written: its shape, how its values are stored, and whole blocks.
pub(super) struct Content {
    pub shape: Vec<usize>,
    pub kind: BlockType,
    pub bytes: Vec<u8>,
}

/// The content of a file.
pub(super) fn write(metadata: &[(String, Entry)], tensors: &[(String, Content)]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    put_size(&mut out, tensors.len());
    put_size(&mut out, metadata.len());
    for (key, entry) in metadata {
        put_text(&mut out, key);
        put_entry(&mut out, entry);
    }
    let mut offset = 0;
    for (name, Content { shape, kind, bytes }) in tensors {
        put_text(&mut out, name);
        out.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|&size| put_size(&mut out, size));
        out.extend(kind.id().to_le_bytes());
        put_size(&mut out, offset);
        offset = (offset + bytes.len()).next_multiple_of(USUAL_ALIGNMENT);
    }
    out.reserve(offset + USUAL_ALIGNMENT);
    for (_, Content { bytes, .. }) in tensors {
        out.resize(out.len().next_multiple_of(USUAL_ALIGNMENT), 0);
        out.extend(bytes);
    }
    out.resize(out.len().next_multiple_of(USUAL_ALIGNMENT), 0);
    out
}

fn put_size(out: &mut Vec<u8>, size: usize) {
    out.extend((size as u64).to_le_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_size(out, text.len());
    out.extend(text.as_bytes());
}

fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    let mut kind = |kind: u32| out.extend(kind.to_le_bytes());
    match entry {
        Entry::Size(_) => kind(4),
        Entry::Float(_) => kind(6),
        Entry::Bool(_) => kind(7),
        Entry::Text(_) => kind(8),
        Entry::Texts(_) => [9, 8].into_iter().for_each(kind),
        Entry::Floats(_) => [9, 6].into_iter().for_each(kind),
        Entry::Integers(_) => [9, 5].into_iter().for_each(kind),
    }
    match entry {
        Entry::Size(size) => out.extend((*size as u32).to_le_bytes()),
        Entry::Float(value) => out.extend((*value as f32).to_le_bytes()),
        Entry::Bool(value) => out.push((*value).into()),
        Entry::Text(text) => put_text(out, text),
        Entry::Texts(texts) => {
            put_size(out, texts.len());
            texts.iter().for_each(|text| put_text(out, text));
        }
        Entry::Floats(values) => {
            put_size(out, values.len());
            values.iter().for_each(|value| out.extend(value.to_le_bytes()));
        }
        Entry::Integers(values) => {
            put_size(out, values.len());
            values.iter().for_each(|value| out.extend(value.to_le_bytes()));
        }
    }
}
