//! Products, their tasks, and the threads' loop over these.

use super::super::super::isa::{Isa, Kernel};
use super::super::super::team;
use super::super::dot::{DotKernel, Form, MicroKernel, pair_steps};
use super::super::epilogue::{Epilogue, Output};
use super::cut::Cut;
use super::tile::Corrections;
use super::window::{copies_codes, window_offsets};
use super::workspace::Workspace;
use crate::integer::{IntConv2dShape, STEP};
use std::cell::{Cell, RefCell};
use std::ops::Range;

thread_local! {
    static WORKSPACE: RefCell<Workspace> = RefCell::default();
    /// Where the four codes of each step are in a window, for the products that this thread has others take part in.
    static OFFSETS: Cell<Vec<Vec<u32>>> = const { Cell::new(Vec::new()) };
}

/// What [`run`] is to compute.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    pub(super) codes: &'a [u8],
    pub(super) weights: &'a [u32],
    pub(super) shape: &'a IntConv2dShape,
    pub(super) epilogue: &'a Epilogue<'a>,
    pub(super) output: Output,
}

/// Computes products in one loop.
pub(super) fn run<const N: usize>(kernel: DotKernel, products: [Product; N]) {
    let kernel = kernel.micro().expect("a kernel that this machine has");
    let mut spare = OFFSETS.take();
    let mut offsets: [Vec<u32>; N] = std::array::from_fn(|_| spare.pop().unwrap_or_default());
    let plans: [Plan; N] = {
        let mut offsets = offsets.iter_mut();
        products.map(|product| match offsets.next() {
            Some(offsets) => Plan::new(kernel, product, offsets),
            None => unreachable!("as many as products"),
        })
    };
    let task = |index: usize| {
        let mut index = index;
        for plan in &plans {
            if index < plan.cut.tasks() {
                return plan.run(index);
            }
            index -= plan.cut.tasks();
        }
    };
    team::for_each(plans.iter().map(|plan| plan.cut.tasks()).sum(), task);
    spare.extend(offsets);
    OFFSETS.set(spare);
}

/// A product, cut into tasks.
struct Plan<'a> {
    problem: Problem<'a>,
    cut: Cut,
}

impl<'a> Plan<'a> {
    fn new(kernel: &'static dyn MicroKernel, product: Product<'a>, offsets: &'a mut Vec<u32>) -> Self {
        let Product { codes, weights, shape, epilogue, output } = product;
        let layout = shape.weight();
        assert_eq!(codes.len(), shape.code_bytes(), "codes of another size");
        assert_eq!(weights.len(), layout.words(), "weights of another size");
        epilogue.check(shape);
        let groups = layout.group_blocks();
        let blocks = groups.iter().sum::<usize>();
        let cut = Cut::new(kernel, shape, blocks);
        let largest =
            if kernel.adds_pairs() { codes.iter().fold(0, |bits, code| bits | code) } else { u8::MAX };
        let pair_steps = pair_steps(layout.bits(), largest);
        let copied = copies_codes(shape);
        window_offsets(shape, shape.input()[1] + if copied { 2 * shape.padding()[1] } else { 0 }, offsets);
        let reach = offsets.iter().max().map_or(0, |&offset| offset as usize + STEP);
        let mut problem = Problem {
            kernel,
            codes,
            weights,
            shape,
            epilogue,
            output,
            copied,
            offsets,
            reach,
            groups,
            blocks,
            pair_steps,
            of_one_row: vec![],
        };
        let one_row = cut.lines * shape.output()[1] == 1 && !copied;
        if one_row && kernel.form(layout.bits(), pair_steps, 1) == Form::Packed {
            let mut corrections = vec![];
            Isa::detect().run(Corrections {
                problem: &problem,
                bases: &[0],
                codes,
                corrections: &mut corrections,
            });
            problem.of_one_row = corrections;
        }
        Self { problem, cut }
    }

    fn run(&self, index: usize) {
        let Cut { lines, panels, chunk_lines, chunk_panels } = self.cut;
        let line = index / self.cut.panel_tasks() * chunk_lines;
        let panel = index % self.cut.panel_tasks() * chunk_panels;
        let lines = line..lines.min(line + chunk_lines);
        let panels = panel..panels.min(panel + chunk_panels);
        let task = |workspace: &mut Workspace| {
            Isa::detect().run(Task { problem: &self.problem, lines, panels, workspace });
        };
        WORKSPACE.with_borrow_mut(task);
    }
}

/// Everything that tasks share.
pub(super) struct Problem<'a> {
    pub(super) kernel: &'static dyn MicroKernel,
    pub(super) codes: &'a [u8],
    pub(super) weights: &'a [u32],
    pub(super) shape: &'a IntConv2dShape,
    pub(super) epilogue: &'a Epilogue<'a>,
    pub(super) output: Output,
    /// Whether tasks copy their codes.
    pub(super) copied: bool,
    /// Where the four codes of each step are in a window, and where the last one ends.
    pub(super) offsets: &'a [u32],
    pub(super) reach: usize,
    /// Blocks of each scale group, and of all.
    pub(super) groups: Vec<usize>,
    pub(super) blocks: usize,
    /// As in [`Operands`].
    pub(super) pair_steps: usize,
    /// The corrections, if there is one row; else each task makes them for its rows.
    pub(super) of_one_row: Vec<i32>,
}

/// Lines of output, all images' lines in one count, and panels of weights.
struct Task<'a> {
    problem: &'a Problem<'a>,
    lines: Range<usize>,
    panels: Range<usize>,
    workspace: &'a mut Workspace,
}

impl Kernel for Task<'_> {
    type Output = ();

    // Epilogues are compiled for the machine; tiles are by themselves.
    #[inline(always)]
    fn run(self, _: Isa) {
        self.problem.task(self.lines, self.panels, self.workspace);
    }
}
