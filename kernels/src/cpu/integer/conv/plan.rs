//! Products, their tasks, and the threads' loop over these.

use super::super::super::isa::{Isa, run_on};
use super::super::super::team;
use super::super::dot::{DotKernel, Form, MicroKernel, pair_steps};
use super::super::epilogue::{Epilogue, Output};
use super::cut::Cut;
use super::window::{copies_codes, window_offsets};
use super::workspace::Workspace;
use crate::integer::{IntConv2dShape, STEP};
use std::cell::RefCell;
use std::fmt;

thread_local! {
    static WORKSPACE: RefCell<Workspace> = RefCell::default();
}

/// What is known of a product before its operands are: how a kernel and so many threads compute a shape.
pub struct Plan {
    kernel: &'static dyn MicroKernel,
    shape: IntConv2dShape,
    cut: Cut,
    /// Whether tasks copy their codes.
    copied: bool,
    /// Where the four codes of each step are in a window, and where the last one ends.
    offsets: Vec<u32>,
    reach: usize,
    /// Blocks of each scale group, and of all.
    groups: Vec<usize>,
    blocks: usize,
}

impl Plan {
    /// The plan for as many threads as rayon has now.
    ///
    /// # Panics
    /// If the machine has no `kernel`.
    #[must_use]
    pub fn new(kernel: DotKernel, shape: IntConv2dShape) -> Self {
        let kernel = kernel.micro().expect("a kernel that this machine has");
        let groups = shape.weight().group_blocks();
        let blocks = groups.iter().sum();
        let copied = copies_codes(&shape);
        let offsets = window_offsets(
            &shape,
            shape.input()[1] + if copied { 2 * shape.options().padding[1] } else { 0 },
        );
        let reach = offsets.iter().max().map_or(0, |&offset| offset as usize + STEP);
        Self { kernel, shape, cut: Cut::new(kernel, &shape, blocks), copied, offsets, reach, groups, blocks }
    }

    /// What is computed.
    #[must_use]
    pub const fn shape(&self) -> &IntConv2dShape {
        &self.shape
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Plan").field(&self.shape).finish()
    }
}

/// Computes products in one loop.
pub(super) fn run<const N: usize>(problems: [Problem; N]) {
    let task = |index: usize| {
        let mut index = index;
        for problem in &problems {
            if index < problem.plan.cut.tasks() {
                return problem.run(index);
            }
            index -= problem.plan.cut.tasks();
        }
    };
    team::for_each(problems.iter().map(|problem| problem.plan.cut.tasks()).sum(), task);
}

/// Everything that tasks share.
pub(super) struct Problem<'a> {
    plan: &'a Plan,
    pub(super) kernel: &'static dyn MicroKernel,
    pub(super) codes: &'a [u8],
    pub(super) weights: &'a [u32],
    pub(super) shape: &'a IntConv2dShape,
    pub(super) epilogue: &'a Epilogue<'a>,
    pub(super) output: Output,
    /// As in [`Plan`].
    pub(super) copied: bool,
    pub(super) offsets: &'a [u32],
    pub(super) reach: usize,
    pub(super) groups: &'a [usize],
    pub(super) blocks: usize,
    /// As in [`Operands`](super::super::dot::Operands).
    pub(super) pair_steps: usize,
    /// The corrections, if there is one row; else each task makes them for its rows.
    pub(super) of_one_row: Vec<i32>,
}

impl<'a> Problem<'a> {
    pub(super) fn new(
        plan: &'a Plan, codes: &'a [u8], weights: &'a [u32], epilogue: &'a Epilogue<'a>, output: Output,
    ) -> Self {
        let Plan { kernel, shape, cut, copied, offsets, reach, groups, blocks } = plan;
        let layout = shape.weight();
        assert_eq!(codes.len(), shape.code_bytes(), "codes of another size");
        assert_eq!(weights.len(), layout.words(), "weights of another size");
        epilogue.check(shape);
        let largest =
            if kernel.adds_pairs() { codes.iter().fold(0, |bits, code| bits | code) } else { u8::MAX };
        let pair_steps = pair_steps(layout.bits(), largest);
        let mut problem = Self {
            plan,
            kernel: *kernel,
            codes,
            weights,
            shape,
            epilogue,
            output,
            copied: *copied,
            offsets,
            reach: *reach,
            groups,
            blocks: *blocks,
            pair_steps,
            of_one_row: vec![],
        };
        let one_row = cut.lines * shape.output()[1] == 1 && !copied;
        if one_row && kernel.form(layout.bits(), pair_steps, 1) == Form::Packed {
            let mut corrections = vec![];
            run_on!(Isa::detect(), |_| problem.correct(codes, &[0], &mut corrections));
            problem.of_one_row = corrections;
        }
        problem
    }

    fn run(&self, index: usize) {
        let Cut { lines, panels, chunk_lines, chunk_panels } = self.plan.cut;
        let line = index / self.plan.cut.panel_tasks() * chunk_lines;
        let panel = index % self.plan.cut.panel_tasks() * chunk_panels;
        let lines = line..lines.min(line + chunk_lines);
        let panels = panel..panels.min(panel + chunk_panels);
        // Epilogues are compiled for the machine; tiles are by themselves.
        WORKSPACE.with_borrow_mut(|workspace| {
            run_on!(Isa::detect(), |_| self.task(lines, panels, workspace));
        });
    }
}
