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

use super::super::codes::ByteQuantizer;
use super::dot::DotKernel;
use super::epilogue::{Epilogue, Output};
use crate::integer::{CodeQuantizer, IntConv2dShape, padded_channels};
pub use plan::Plan;
use plan::Problem;
pub(super) use stream::{Together, together};
pub(super) use workspace::Vector;

/// Where the results of a product go: as values, as codes of the next layer, or both.
#[derive(Debug)]
pub struct Results<'a> {
    /// `[batch, rows, columns, outputs]`.
    pub values: Option<&'a mut [f32]>,
    /// The codes, with their channels padded to whole words, and how they are quantized. The codes of padding are left as they
    /// are.
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
/// not wait for each other. Each is [`crate::reference::int_conv2d`] and [`crate::reference::epilogue`]; codes are
/// [`quantize_codes`](super::quantize_codes) of the values.
///
/// # Panics
/// If a slice has not the length of its shape.
pub fn int_conv2d_together<const N: usize>(jobs: [Job; N]) {
    plan::run(jobs.map(|Job { plan, codes, weights, epilogue, results }| {
        let shape = plan.shape();
        let values = results.values.map(|out| {
            assert_eq!(out.len(), shape.results(), "an output of another size");
            out.as_mut_ptr()
        });
        let code_len = shape.batch() * shape.positions() * padded_channels(shape.weight().outputs());
        let to = results.codes.map(|(out, to)| {
            assert_eq!(out.len(), code_len, "an output of another size");
            (out.as_mut_ptr(), ByteQuantizer::new(to))
        });
        Problem::new(plan, codes, weights, epilogue, Output { values, codes: to })
    }));
}

/// [`int_conv2d_together`] of one.
///
/// # Panics
/// As that.
pub fn int_conv2d(
    kernel: DotKernel, codes: &[u8], weights: &[u32], shape: &IntConv2dShape, epilogue: &Epilogue,
    results: Results,
) {
    let plan = &Plan::new(kernel, *shape);
    int_conv2d_together([Job { plan, codes, weights, epilogue, results }]);
}
