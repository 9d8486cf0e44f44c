//! Buffers, vector sizes and numbers of cubes.

use crate::layout::ScaleLayout;
use burn::backend::TensorMetadata;
use burn::tensor::{DType, Element, Shape};
use burn_cubecl::cubecl::{calculate_cube_count_elemwise, client::Client, prelude::*};
use burn_cubecl::tensor::CubeTensor;

/// A size as kernels count.
///
/// # Panics
/// If it does not fit, which the functions over tensors refuse before.
pub(super) fn index(size: usize) -> u32 {
    u32::try_from(size).expect("no larger than the functions over tensors let pass")
}

/// An uninitialised dense tensor on the device of `like`.
pub(super) fn empty(like: &CubeTensor, shape: impl Into<Shape>, dtype: DType) -> CubeTensor {
    let (client, device, shape) = (like.client.clone(), like.device.clone(), shape.into());
    let handle = client.empty(shape.num_elements() * dtype.size());
    CubeTensor::new_contiguous(client, device, shape, handle, dtype)
}

/// An uninitialised dense tensor of the shape, type and device of `like`.
pub(super) fn empty_like(like: &CubeTensor) -> CubeTensor {
    empty(like, like.shape(), like.dtype)
}

/// The widest vector of at most 32 elements that the device likes and whose elements always share a scale.
pub(super) fn vector_size(tensor: &CubeTensor, layout: &ScaleLayout) -> usize {
    let divides = |size: &usize| {
        // A run as long as its row need not be a multiple by itself.
        *size <= 32
            && layout.cols.is_multiple_of(*size)
            && (layout.group >= layout.cols || layout.group.is_multiple_of(*size))
    };
    tensor.client.io_optimized_vector_sizes(tensor.dtype.size()).find(divides).unwrap_or(1)
}

/// A tensor of these values on the device of `like`.
pub(super) fn upload<E: Element>(like: &CubeTensor, values: &[E]) -> CubeTensor {
    let handle = like.client.create_from_slice(bytemuck::cast_slice(values));
    let (client, device) = (like.client.clone(), like.device.clone());
    CubeTensor::new_contiguous(client, device, [values.len()].into(), handle, E::dtype())
}

/// Cubes for one unit per item, as many or some more: the kernels check their position. They are spread over
/// dimensions, of which wgpu allows 65535 each.
pub(super) fn one_unit_each(client: &Client, items: usize) -> (CubeCount, CubeDim) {
    let dim = CubeDim::new(client, items);
    (calculate_cube_count_elemwise(client, items, dim), dim)
}

/// `cubes` cubes of `units` units, or some more.
pub(super) fn cubes(client: &Client, cubes: usize, units: u32) -> (CubeCount, CubeDim) {
    let dim = CubeDim::new_1d(units);
    (calculate_cube_count_elemwise(client, cubes * units as usize, dim), dim)
}

/// Units of a cube that sums `items` values: a power of two that the device allows, and one of two, so that
/// few kernels are compiled. A CPU allows as many units as it has cores.
pub(super) fn summing_units(client: &Client, items: usize) -> u32 {
    let wanted = if items <= 512 { 32 } else { 256 };
    1 << client.properties().hardware.max_units_per_cube.clamp(1, wanted).ilog2()
}
