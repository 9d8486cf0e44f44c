//! [`Store`]: values between layers, some in memory and the others in a file.

use super::planes::Planes;
use crate::nn::Value;
use burn::tensor::{Device, Tensor, TensorData};
use dr_runtime::arrays::Array;
use dr_runtime::graph::ElementType;
use dr_runtime::tensors::Floats;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::rc::Rc;

/// Where values are. Those that come while memory is left stay there; what comes later waits in a file without a name, which is gone when the program is.
#[derive(Clone)]
pub(super) struct Store(Rc<RefCell<Room>>);

struct Room {
    /// Bytes that are left in memory.
    memory: i64,
    folder: PathBuf,
    file: Option<File>,
    /// The parts of the file that hold nothing: where each begins, and its bytes.
    free: BTreeMap<u64, u64>,
    /// Where the file ends.
    end: u64,
    /// The first error of the file: values are zeros from then on.
    error: Option<io::Error>,
}

/// A value in a store. Clones are one value.
#[derive(Clone)]
pub(super) struct Held(Rc<Slot>);

struct Slot {
    store: Store,
    dims: [usize; 4],
    bytes: i64,
    place: Place,
}

enum Place {
    Memory(Box<Value>),
    /// From here on in the file, as a value of this kind.
    File(u64, Kind),
}

/// What a value in the file is, with its sizes.
enum Kind {
    Images([usize; 4]),
    Rows([usize; 2]),
    Floats(Vec<usize>),
    Array(Vec<usize>),
}

impl Store {
    /// With so many bytes of values in memory, and a file in this folder.
    pub fn new(memory: u64, folder: PathBuf) -> Self {
        let memory = i64::try_from(memory).unwrap_or(i64::MAX);
        let room = Room { memory, folder, file: None, free: BTreeMap::new(), end: 0, error: None };
        Self(Rc::new(RefCell::new(room)))
    }

    /// Keeps a value.
    pub fn hold(&self, value: Value) -> Held {
        let dims = Planes::dims(&value);
        let bytes = 4 * dims.iter().product::<usize>() as i64;
        let mut room = self.0.borrow_mut();
        let in_file = match room.memory >= bytes {
            true => None,
            false => floats(&value).and_then(|(kind, values)| Some(Place::File(room.write(&values)?, kind))),
        };
        let place = in_file.unwrap_or_else(|| {
            room.memory -= bytes;
            Place::Memory(value.into())
        });
        drop(room);
        Held(Rc::new(Slot { store: self.clone(), dims, bytes, place }))
    }

    /// The first error of the file since this was last asked.
    pub fn error(&self) -> Option<io::Error> {
        self.0.borrow_mut().error.take()
    }
}

impl Held {
    /// The value.
    pub fn value(&self) -> Value {
        match &self.0.place {
            Place::Memory(value) => Value::clone(value),
            Place::File(start, kind) => {
                let mut values = vec![0.0; (self.0.bytes / 4) as usize];
                self.0.store.0.borrow_mut().read(*start, &mut values);
                kind.value(values)
            }
        }
    }

    /// Its values, channel by channel.
    pub fn planes(&self) -> Planes {
        Planes::of(&self.value())
    }

    /// The sizes of these.
    pub fn dims(&self) -> [usize; 4] {
        self.0.dims
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut room = self.store.0.borrow_mut();
        match self.place {
            Place::Memory(_) => room.memory += self.bytes,
            Place::File(start, _) => room.release(start, self.bytes.unsigned_abs()),
        }
    }
}

impl Room {
    /// Writes values where there is room for them.
    fn write(&mut self, values: &[f32]) -> Option<u64> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let length = bytes.len() as u64;
        let fits = self.free.iter().find(|&(_, &free)| free >= length).map(|(&start, &free)| (start, free));
        let (start, rest) = match fits {
            Some((start, free)) => (start, free - length),
            None => (self.end, 0),
        };
        let written = self.file().and_then(|file| {
            file.seek(SeekFrom::Start(start))?;
            file.write_all(bytes)
        });
        if let Err(error) = written {
            self.error.get_or_insert(error);
            return None;
        }
        self.free.remove(&start);
        if rest > 0 {
            self.free.insert(start + length, rest);
        }
        self.end = self.end.max(start + length);
        Some(start)
    }

    fn read(&mut self, start: u64, values: &mut [f32]) {
        let read = self.file().and_then(|file| {
            file.seek(SeekFrom::Start(start))?;
            file.read_exact(bytemuck::cast_slice_mut(values))
        });
        if let Err(error) = read {
            self.error.get_or_insert(error);
            values.fill(0.0);
        }
    }

    /// Another value can be written there.
    fn release(&mut self, mut start: u64, mut length: u64) {
        if let Some(after) = self.free.remove(&(start + length)) {
            length += after;
        }
        if let Some((&before, &free)) = self.free.range(..start).next_back()
            && before + free == start
        {
            self.free.remove(&before);
            (start, length) = (before, free + length);
        }
        match start + length == self.end {
            true => self.end = start,
            false => drop(self.free.insert(start, length)),
        }
    }

    fn file(&mut self) -> io::Result<&mut File> {
        if self.file.is_none() {
            self.file = Some(tempfile::tempfile_in(&self.folder)?);
        }
        self.file.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// What a value of floats is, and these; others are few.
fn floats(value: &Value) -> Option<(Kind, Vec<f32>)> {
    let kind = match value {
        Value::Images(images) => Kind::Images(images.dims()),
        Value::Rows(rows) => Kind::Rows(rows.dims()),
        Value::Floats(floats) => Kind::Floats(floats.dims().to_vec()),
        Value::Array(array) if array.element() == ElementType::F32 => Kind::Array(array.dims().to_vec()),
        Value::Array(_) | Value::Tokens(_) => return None,
    };
    Some((kind, Planes::of(value).values))
}

impl Kind {
    fn value(&self, values: Vec<f32>) -> Value {
        let device = Device::flex();
        match self {
            Self::Images(dims) => Tensor::<4>::from_data(TensorData::new(values, *dims), &device).into(),
            Self::Rows(dims) => Tensor::<2>::from_data(TensorData::new(values, *dims), &device).into(),
            Self::Array(dims) => {
                Array::from_f32(values, dims).unwrap_or_else(|error| panic!("{error}")).into()
            }
            Self::Floats(dims) => {
                let array = Array::from_f32(values, dims).and_then(|array| Floats::new(&array, &device));
                array.unwrap_or_else(|error| panic!("{error}")).into()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(values: &[f32]) -> Value {
        Tensor::<2>::from_data(TensorData::new(values.to_vec(), [1, values.len()]), &Device::flex()).into()
    }

    #[test]
    fn values_come_back_as_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(16, dir.path().into());
        let values = [
            Array::from_f32(vec![1.0, -0.0, f32::MIN_POSITIVE], &[3, 1, 1]).unwrap().into(),
            rows(&[1.0, 2.0, 3.0]),
            Array::integers(&[5; 9]).into(),
            Floats::new(&Array::from_f32(vec![0.1; 6], &[1, 2, 3]).unwrap(), &Device::flex()).unwrap().into(),
            Tensor::<4>::from_data(TensorData::new(vec![0.5f32; 8], [1, 2, 2, 2]), &Device::flex()).into(),
        ];
        let held: Vec<Held> = values.iter().map(|value| store.hold(value.clone())).collect();
        for (held, value) in held.iter().zip(&values) {
            assert_eq!(
                format!("{:?}", held.value().to_array().unwrap()),
                format!("{:?}", value.to_array().unwrap())
            );
            assert_eq!(std::mem::discriminant(&held.value()), std::mem::discriminant(value));
            assert_eq!(held.dims(), Planes::dims(value));
        }
        assert_eq!(store.0.borrow().end, 4 * (3 + 6 + 8));
        drop(held);
        assert_eq!((store.0.borrow().memory, store.0.borrow().end), (16, 0));
    }

    #[test]
    fn room_is_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(0, dir.path().into());
        let mut held: Vec<Option<Held>> = (0..4).map(|at| Some(store.hold(rows(&[at as f32; 4])))).collect();
        held[1] = None;
        held[2] = None;
        // Both together have room for six values, and then for two.
        let six = store.hold(rows(&[7.0; 6]));
        let two = store.hold(rows(&[8.0; 2]));
        assert_eq!((store.0.borrow().end, store.0.borrow().free.len()), (64, 0));
        for (held, value) in [(&held[0], 0.0), (&held[3], 3.0), (&Some(six), 7.0), (&Some(two), 8.0)] {
            assert!(held.as_ref().unwrap().planes().values.iter().all(|&found| found == value));
        }
    }

    #[test]
    fn errors_of_the_file_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(0, dir.path().join("missing"));
        let held = store.hold(rows(&[1.0]));
        assert_eq!(held.planes().values, [1.0]);
        assert_eq!(store.error().unwrap().kind(), io::ErrorKind::NotFound);
        assert!(store.error().is_none());
    }
}
