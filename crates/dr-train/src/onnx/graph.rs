//! [`GraphBuilder`]: nodes and constants, one after the other.

use dr_runtime::onnx::proto::{
    AttributeProto, DataType, DimensionProto, GraphProto, INT, INTS, NodeProto, STRING, TensorProto,
    TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};

/// Builds a graph. Every value has the name of the node that makes it.
#[derive(Default)]
pub(super) struct GraphBuilder {
    graph: GraphProto,
}

pub(super) fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { name: name.into(), i, r#type: INT, ..AttributeProto::default() }
}

pub(super) fn ints(name: &str, ints: &[usize]) -> AttributeProto {
    let ints = ints.iter().map(|&value| value as i64).collect();
    AttributeProto { name: name.into(), ints, r#type: INTS, ..AttributeProto::default() }
}

pub(super) fn text(name: &str, s: &str) -> AttributeProto {
    AttributeProto { name: name.into(), s: s.into(), r#type: STRING, ..AttributeProto::default() }
}

impl GraphBuilder {
    /// Adds a node with one output, and gives that the node's name.
    pub(super) fn node(
        &mut self, name: &str, op_type: &str, inputs: &[&str], attribute: Vec<AttributeProto>,
    ) -> String {
        self.graph.node.push(NodeProto {
            input: inputs.iter().map(ToString::to_string).collect(),
            output: vec![name.to_string()],
            name: name.to_string(),
            op_type: op_type.to_string(),
            attribute,
            ..NodeProto::default()
        });
        name.to_string()
    }

    /// Adds a constant of floats; without sizes, a single one.
    pub(super) fn floats(&mut self, name: &str, dims: &[usize], values: &[f32]) -> String {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(name, dims, DataType::Float, bytes)
    }

    /// Adds a constant of 64-bit integers.
    pub(super) fn ints(&mut self, name: &str, values: &[i64]) -> String {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(name, &[values.len()], DataType::Int64, bytes)
    }

    /// Adds a constant of integers of a type.
    pub(super) fn codes(&mut self, name: &str, dims: &[usize], data_type: DataType, codes: &[i32]) -> String {
        self.constant(name, dims, data_type, packed(codes, bits_of(data_type)))
    }

    fn constant(&mut self, name: &str, dims: &[usize], data_type: DataType, raw_data: Vec<u8>) -> String {
        let dims = dims.iter().map(|&size| size as i64).collect();
        let name = name.to_string();
        self.graph.initializer.push(TensorProto {
            dims,
            data_type: data_type as i32,
            name: name.clone(),
            raw_data: raw_data.into(),
            ..TensorProto::default()
        });
        name
    }

    /// The graph with an input and an output of floats, each with its name, that of its first size, of which there are any number,
    /// and its other sizes.
    pub(super) fn finish(mut self, name: &str, input: Signature, output: Signature) -> GraphProto {
        self.graph.name = name.to_string();
        self.graph.input = vec![value(input)];
        self.graph.output = vec![value(output)];
        self.graph
    }
}

/// The name of a value, that of its first size, and its other sizes.
pub(super) type Signature<'a> = (&'a str, &'a str, &'a [usize]);

fn value((name, first, sizes): Signature) -> ValueInfoProto {
    let batch = DimensionProto { dim_param: Some(first.into()), ..Default::default() };
    let size = |&size: &usize| DimensionProto { dim_value: Some(size as i64), ..Default::default() };
    let dim = std::iter::once(batch).chain(sizes.iter().map(size)).collect();
    let tensor_type =
        TensorTypeProto { elem_type: DataType::Float as i32, shape: Some(TensorShapeProto { dim }) };
    let r#type = Some(TypeProto { tensor_type: Some(tensor_type), ..TypeProto::default() });
    ValueInfoProto { name: name.to_string(), r#type }
}

/// Bits of an element of a type that is written.
pub(super) const fn bits_of(data_type: DataType) -> u32 {
    match data_type {
        DataType::Int64 => 64,
        DataType::Uint8 | DataType::Int8 => 8,
        DataType::Uint4 | DataType::Int4 => 4,
        DataType::Uint2 | DataType::Int2 => 2,
        _ => 32,
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
