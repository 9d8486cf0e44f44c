//! From tensors to values on this computer.

use burn::tensor::{Element, TensorData};

/// The values of `data`, converted to `E`.
pub(crate) fn values<E: Element>(data: TensorData) -> Vec<E> {
    let values = data.convert::<E>().try_into_vec();
    values.expect(
        "only data of another type than `E` have no vector of `E`, and `convert` made them of this one",
    )
}
