//! Attributes of a node, with their usual values.

use super::file::{Attribute, NodeInfo};
use super::operators::Refusal;
use crate::arrays::Array;
use crate::graph::ElementType;

/// The attributes of one node.
#[derive(Clone, Copy)]
pub(super) struct Attributes<'a>(&'a NodeInfo);

impl<'a> Attributes<'a> {
    pub fn of(node: &'a NodeInfo) -> Self {
        Self(node)
    }

    fn get(&self, name: &str) -> Option<&'a Attribute> {
        self.0.attributes.get(name)
    }

    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// An integer, or its usual value.
    pub fn int(&self, name: &str, usual: i64) -> i64 {
        match self.get(name) {
            Some(Attribute::Int(value)) => *value,
            _ => usual,
        }
    }

    /// An integer that must be there.
    pub fn required(&self, name: &str) -> Result<i64, Refusal> {
        match self.get(name) {
            Some(Attribute::Int(value)) => Ok(*value),
            _ => Err(Refusal::Wrong(format!("no {name}"))),
        }
    }

    /// An axis.
    pub fn axis(&self, name: &str, usual: isize) -> isize {
        isize::try_from(self.int(name, usual as i64)).unwrap_or(isize::MAX)
    }

    pub fn float(&self, name: &str, usual: f32) -> f32 {
        match self.get(name) {
            Some(Attribute::Float(value)) => *value,
            _ => usual,
        }
    }

    pub fn text(&self, name: &str, usual: &'static str) -> &'a str {
        match self.get(name) {
            Some(Attribute::String(value)) => value,
            _ => usual,
        }
    }

    pub fn ints(&self, name: &str) -> Option<&'a [i64]> {
        match self.get(name) {
            Some(Attribute::Ints(values)) => Some(values),
            _ => None,
        }
    }

    /// A list of numbers that are not below zero; an empty one if it is not there.
    pub fn sizes(&self, name: &str) -> Result<Vec<usize>, Refusal> {
        let wrong = |value: &i64| Refusal::Wrong(format!("{name} of {value}: expected 0 or more"));
        let size = |value: &i64| usize::try_from(*value).map_err(|_| wrong(value));
        self.ints(name).unwrap_or_default().iter().map(size).collect()
    }

    pub fn floats(&self, name: &str) -> Result<Array, Refusal> {
        match self.get(name) {
            Some(Attribute::Floats(values)) => Ok(Array::vector(values.clone())),
            _ => Err(Refusal::Wrong(format!("no {name}"))),
        }
    }

    pub fn tensor(&self, name: &str) -> Result<Option<Array>, Refusal> {
        match self.get(name) {
            Some(Attribute::Tensor(tensor)) => {
                tensor.to_array().map(Some).map_err(|error| Refusal::Wrong(error.to_string()))
            }
            _ => Ok(None),
        }
    }

    /// The type of elements that a number stands for.
    pub fn element(&self, name: &str) -> Result<ElementType, Refusal> {
        let number = self.required(name)?;
        ElementType::from_code(number).ok_or_else(|| Refusal::Unknown(format!("{name} the type {number}")))
    }

    /// The value of a `Constant`.
    pub fn constant(&self) -> Result<Array, Refusal> {
        if let Some(value) = self.tensor("value")? {
            return Ok(value);
        }
        let of = |name: &str| self.get(name);
        Ok(match (of("value_float"), of("value_floats"), of("value_int"), of("value_ints")) {
            (Some(Attribute::Float(value)), ..) => Array::scalar(*value),
            (_, Some(Attribute::Floats(values)), ..) => Array::vector(values.clone()),
            (_, _, Some(Attribute::Int(value)), _) => Array::integer(*value),
            (.., Some(Attribute::Ints(values))) => Array::integers(values),
            _ => return Err(Refusal::Unknown("of another kind than numbers".into())),
        })
    }
}
