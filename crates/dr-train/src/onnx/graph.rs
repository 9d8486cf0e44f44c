//! [`GraphBuilder`]: nodes and constants, one after the other.

use dr_runtime::onnx::Dim;
use dr_runtime::onnx::proto::{
    AttributeProto, DataType, DimensionProto, FLOAT, GraphProto, INT, INTS, NodeProto, STRING, TensorProto,
    TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use std::collections::HashSet;

/// Builds a graph. Every value has the name of the node that makes it.
#[derive(Default)]
pub(super) struct GraphBuilder {
    graph: GraphProto,
    /// The names of all values.
    names: HashSet<String>,
}

pub(super) fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { name: name.into(), i, r#type: INT, ..AttributeProto::default() }
}

pub(super) fn float(name: &str, f: f32) -> AttributeProto {
    AttributeProto { name: name.into(), f, r#type: FLOAT, ..AttributeProto::default() }
}

pub(super) fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto { name: name.into(), ints: ints.to_vec(), r#type: INTS, ..AttributeProto::default() }
}

pub(super) fn sizes(name: &str, sizes: &[usize]) -> AttributeProto {
    ints(name, &sizes.iter().map(|&size| size as i64).collect::<Vec<_>>())
}

pub(super) fn text(name: &str, s: &str) -> AttributeProto {
    AttributeProto { name: name.into(), s: s.into(), r#type: STRING, ..AttributeProto::default() }
}

impl GraphBuilder {
    /// Adds a node with one output, and gives the name of that: the node's, with more at its end if another value has it.
    pub fn node(
        &mut self, name: &str, op_type: &str, inputs: &[&str], attribute: Vec<AttributeProto>,
    ) -> String {
        let name = self.free(name);
        self.push(&name, op_type, inputs, attribute, vec![name.clone()]);
        name
    }

    /// Adds a node with so many outputs, and gives their names.
    pub fn node_of(
        &mut self, name: &str, op_type: &str, inputs: &[&str], attribute: Vec<AttributeProto>, outputs: usize,
    ) -> Vec<String> {
        let outputs: Vec<String> = (0..outputs).map(|at| self.free(&format!("{name}/{at}"))).collect();
        self.push(name, op_type, inputs, attribute, outputs.clone());
        outputs
    }

    /// Adds a node whose output is one of the graph's.
    pub fn last(&mut self, output: &str, op_type: &str, x: &str) {
        self.push(output, op_type, &[x], vec![], vec![output.to_owned()]);
    }

    fn push(
        &mut self, name: &str, op_type: &str, inputs: &[&str], attribute: Vec<AttributeProto>,
        output: Vec<String>,
    ) {
        let input = inputs.iter().map(ToString::to_string).collect();
        let (name, op_type) = (name.to_owned(), op_type.to_owned());
        self.graph.node.push(NodeProto { input, output, name, op_type, attribute, ..NodeProto::default() });
    }

    /// A name that no other value has.
    fn free(&mut self, name: &str) -> String {
        let mut name = name.to_owned();
        while !self.names.insert(name.clone()) {
            name.push('_');
        }
        name
    }

    /// Adds a constant of floats; without sizes, a single one.
    pub fn floats(&mut self, name: &str, dims: &[usize], values: &[f32]) -> String {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(name, dims, DataType::Float, bytes)
    }

    /// Adds a constant of 64-bit integers.
    pub fn ints(&mut self, name: &str, dims: &[usize], values: &[i64]) -> String {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(name, dims, DataType::Int64, bytes)
    }

    /// Adds a list of 64-bit integers.
    pub fn list(&mut self, name: &str, values: &[i64]) -> String {
        self.ints(name, &[values.len()], values)
    }

    /// Adds a constant of integers of a type.
    pub fn codes(&mut self, name: &str, dims: &[usize], data_type: DataType, codes: &[i32]) -> String {
        self.constant(name, dims, data_type, packed(codes, bits_of(data_type)))
    }

    /// Adds a constant of elements as they are in memory.
    pub fn constant(&mut self, name: &str, dims: &[usize], data_type: DataType, raw_data: Vec<u8>) -> String {
        let (name, dims) = (self.free(name), dims.iter().map(|&size| size as i64).collect());
        let (data_type, raw_data) = (data_type as i32, raw_data.into());
        let tensor = TensorProto { dims, data_type, name: name.clone(), raw_data, ..TensorProto::default() };
        self.graph.initializer.push(tensor);
        name
    }

    /// Adds an input of the graph.
    pub fn input(&mut self, name: &str, data_type: DataType, dims: &[Dim]) -> String {
        self.names.insert(name.to_owned());
        self.graph.input.push(value(name, data_type, Some(dims)));
        name.to_owned()
    }

    /// Adds an output of the graph, before any node: no other value then has its name.
    pub fn output(&mut self, name: &str, data_type: DataType, dims: Option<&[Dim]>) {
        self.names.insert(name.to_owned());
        self.graph.output.push(value(name, data_type, dims));
    }

    pub fn finish(mut self, name: &str) -> GraphProto {
        name.clone_into(&mut self.graph.name);
        self.graph
    }
}

fn value(name: &str, data_type: DataType, dims: Option<&[Dim]>) -> ValueInfoProto {
    let size = |dim: &Dim| match dim {
        Dim::Known(size) => DimensionProto { dim_value: Some(*size as i64), ..Default::default() },
        Dim::Named(name) => DimensionProto { dim_param: Some(name.clone()), ..Default::default() },
        Dim::Open => DimensionProto::default(),
    };
    let shape = dims.map(|dims| TensorShapeProto { dim: dims.iter().map(size).collect() });
    let tensor_type = Some(TensorTypeProto { elem_type: data_type as i32, shape });
    let r#type = Some(TypeProto { tensor_type, ..TypeProto::default() });
    ValueInfoProto { name: name.to_owned(), r#type }
}

/// Bits of an element of a type that codes have.
pub(super) const fn bits_of(data_type: DataType) -> u32 {
    match data_type {
        DataType::Uint4 | DataType::Int4 => 4,
        DataType::Uint2 | DataType::Int2 => 2,
        _ => 8,
    }
}

/// Codes of at most a byte, the first in the lowest bits.
fn packed(codes: &[i32], bits: u32) -> Vec<u8> {
    let (per_byte, mask) = ((8 / bits) as usize, (1i32 << bits) - 1);
    let byte = |codes: &[i32]| {
        let or = |byte: i32, (i, code): (usize, &i32)| byte | (code & mask) << (i as u32 * bits);
        codes.iter().enumerate().fold(0, or) as u8
    };
    codes.chunks(per_byte).map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_code_is_in_the_lowest_bits() {
        assert_eq!(packed(&[-1, 3, -8], 4), [0x3f, 0x08]);
        assert_eq!(packed(&[1, -2, 0, -1, 1], 2), [0b1100_1001, 1]);
        assert_eq!(packed(&[-128, 127], 8), [0x80, 0x7f]);
    }
}
