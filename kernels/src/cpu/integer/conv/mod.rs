//! The loops around tiles.
//!
//! | file | what |
//! |---|---|
//! | `cut` | what costs what, and so how a product is cut into tasks |
//! | `plan` | how a shape is computed, products, their tasks, and the threads' loop over these |
//! | `window` | where the codes of a window are, and copies of codes with padding around |
//! | `tile` | the tiles of a task |
//! | `stream` | those of one row, whose weights come from memory |
//! | `depthwise` | convolutions in which every channel is a group |
//! | `workspace` | what a thread keeps from one task to the next |

mod cut;
mod depthwise;
mod plan;
mod stream;
mod tile;
mod window;
mod workspace;

use super::dot::DotKernel;
use super::epilogue::{Epilogue, Output};
use crate::integer::{CodeQuantizer, IntConv2dShape, padded_channels};
pub use plan::Plan;
use plan::Problem;

/// Where a product puts its results: as values, as codes, or as both.
#[derive(Debug)]
pub struct Results<'a> {
    /// `[batch, positions, outputs]`.
    pub values: Option<&'a mut [f32]>,
    /// `[batch, positions, padded outputs]`, where only the codes of padding are left as they are, and the quantizer.
    pub codes: Option<(&'a mut [u8], CodeQuantizer)>,
}

/// One of the convolutions of [`int_conv2d_together`].
#[derive(Debug)]
pub struct Job<'a> {
    /// What is computed.
    pub plan: &'a Plan,
    /// Of the input.
    pub codes: &'a [u8],
    /// In panels.
    pub weights: &'a [u32],
    /// What becomes of the sums.
    pub epilogue: &'a Epilogue<'a>,
    /// Where they go.
    pub results: Results<'a>,
}

/// Several convolutions in one loop of all threads: those of one input (the queries, keys and values of a language model) need
/// not wait for each other.
///
/// # Panics
/// If a slice has not the length of its shape.
pub fn int_conv2d_together<const N: usize>(jobs: [Job; N]) {
    plan::run(jobs.map(|Job { plan, codes, weights, epilogue, results }| {
        let values = results.values.map(|out| {
            assert_eq!(out.len(), plan.shape().results(), "an output of another size");
            out.as_mut_ptr()
        });
        let to = results.codes.map(|(out, to)| (code_pointer(out, plan.shape()), to));
        Problem::new(plan, codes, weights, epilogue, Output { values, codes: to })
    }));
}

/// [`crate::reference::int_conv2d`] and [`crate::reference::epilogue`] with `kernel`, with weights in panels; codes are
/// [`quantize_codes`](super::quantize_codes) of the values.
///
/// # Panics
/// If a slice has not the length of the shape, or the machine has no `kernel`.
pub fn int_conv2d_results(
    kernel: DotKernel, codes: &[u8], weights: &[u32], shape: &IntConv2dShape, epilogue: &Epilogue,
    results: Results,
) {
    let plan = &Plan::new(kernel, *shape);
    int_conv2d_together([Job { plan, codes, weights, epilogue, results }]);
}

/// [`int_conv2d_results`] of values only.
///
/// # Panics
/// If a slice has not the length of the shape, or the machine has no `kernel`.
pub fn int_conv2d_into(
    kernel: DotKernel, codes: &[u8], weights: &[u32], shape: &IntConv2dShape, epilogue: &Epilogue,
    out: &mut [f32],
) {
    int_conv2d_results(kernel, codes, weights, shape, epilogue, Results { values: Some(out), codes: None });
}

/// Codes of the results.
fn code_len(shape: &IntConv2dShape) -> usize {
    shape.batch() * shape.positions() * padded_channels(shape.weight().outputs())
}

fn code_pointer(out: &mut [u8], shape: &IntConv2dShape) -> *mut u8 {
    assert_eq!(out.len(), code_len(shape), "an output of another size");
    out.as_mut_ptr()
}
