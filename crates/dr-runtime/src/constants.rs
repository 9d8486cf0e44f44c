//! Arrays in files, and arrays that networks take.

use crate::RuntimeError;
use crate::arrays::Array;
use crate::file::{Artifact, TensorEntry};
use crate::graph::{Constant, ElementType, TensorInput};
use ndarray::{ArcArray, Axis, IxDyn};

impl Array {
    /// A constant of a file's graph.
    ///
    /// # Errors
    /// A tensor that is missing, or of another type or shape.
    pub fn constant(artifact: &Artifact, of: &Constant) -> Result<Self, RuntimeError> {
        let Constant { name, element, dims } = of;
        let shape = IxDyn(dims);
        let wrong = |_| {
            let found = format!("the constant `{name}` of {dims:?}");
            RuntimeError::Input { found, expected: "as many elements as its sizes say".into() }
        };
        Ok(match element {
            ElementType::Bool => {
                let values = artifact.values::<u8>(name, dims)?.iter().map(|&value| value != 0).collect();
                Self::Bool(ArcArray::from_shape_vec(shape, values).map_err(wrong)?)
            }
            ElementType::I64 => {
                let values = artifact.values::<i64>(name, dims)?.to_vec();
                Self::I64(ArcArray::from_shape_vec(shape, values).map_err(wrong)?)
            }
            _ => {
                let values = artifact.values::<f32>(name, dims)?.to_vec();
                Self::F32(ArcArray::from_shape_vec(shape, values).map_err(wrong)?)
            }
        })
    }

    /// Parts of at most so many elements of the first axis.
    #[must_use]
    pub fn split(self, items: usize) -> Vec<Self> {
        fn parts<T: Clone>(
            x: &ArcArray<T, IxDyn>, items: usize, to: impl Fn(ArcArray<T, IxDyn>) -> Array,
        ) -> Vec<Array> {
            match x.ndim() {
                0 => vec![to(x.clone())],
                _ => x
                    .axis_chunks_iter(Axis(0), items.max(1))
                    .map(|part| to(part.to_owned().into_shared()))
                    .collect(),
            }
        }
        match &self {
            Self::F32(x) => parts(x, items, Self::F32),
            Self::I64(x) => parts(x, items, Self::I64),
            Self::Bool(x) => parts(x, items, Self::Bool),
        }
    }

    /// The tensor of a file that it is, and the element that its [`Constant`] has.
    #[must_use]
    pub fn stored(&self) -> (TensorEntry, ElementType) {
        let dims = self.dims().to_vec();
        match self {
            Self::F32(values) => (TensorEntry::f32(dims, values.iter().copied().collect()), ElementType::F32),
            Self::I64(values) => (TensorEntry::i64(dims, values.iter().copied().collect()), ElementType::I64),
            Self::Bool(values) => (
                TensorEntry::u8(dims, values.iter().map(|&value| u8::from(value)).collect()),
                ElementType::Bool,
            ),
        }
    }
}

impl TensorInput {
    /// Whether an array is one for this input.
    ///
    /// # Errors
    /// [`RuntimeError::Input`] if not.
    pub fn check(&self, array: &Array) -> Result<(), RuntimeError> {
        let found = array.element();
        let sizes = array
            .dims()
            .iter()
            .zip(&self.dims)
            .all(|(found, wanted)| wanted.is_none_or(|wanted| wanted == *found));
        if found == self.element.in_memory() && array.dims().len() == self.dims.len() && sizes {
            return Ok(());
        }
        let size = |size: &Option<usize>| size.map_or_else(|| "?".to_owned(), |size| size.to_string());
        let dims = self.dims.iter().map(size).collect::<Vec<_>>().join(", ");
        let found = format!("an array {:?} of {found:?} for `{}`", array.dims(), self.name);
        Err(RuntimeError::Input { found, expected: format!("[{dims}] of {:?}", self.element) })
    }
}
