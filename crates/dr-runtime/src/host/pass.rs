//! [`Pass`]: the steps of a program, on slices.

use super::kernels::{Kernel, Shared};
use super::{Cache, Input, Made, Network, Output, ops};
use crate::RuntimeError;
use crate::arrays::{self, Array};
use crate::file::elements;
use crate::graph::{Attention, Kind, Op, TensorOp, Value};
use crate::program::{Product, Step, TOGETHER, checked_sizes};
use dr_kernels::KernelError;
use dr_kernels::host::language::{AttentionCache, attention, rms_norm, rotate, swiglu};
use dr_kernels::host::{DynamicProduct, Job, Results, Rows, code_len, run_together};
use std::time::{Duration, Instant};

/// Memory of earlier passes: one asks for the same sizes as the one before, and each thread finds in its cache what it wrote then.
#[derive(Debug, Default)]
pub(super) struct Workspace {
    /// Of the last pass, and whether only the end of its text was wanted.
    input: ([usize; 4], bool),
    /// Sizes of the values of all nodes for such an input, as [`Graph::dims`](crate::graph::Graph) has them.
    dims: Vec<[usize; 4]>,
    values: Vec<Vec<f32>>,
    codes: Vec<Vec<u8>>,
    /// Of the products of one step whose input is quantized as it comes.
    rows: Rows,
}

/// Room for `len` elements, of which the first ones may have been written before.
fn room<T: Default + Clone>(memory: &mut Vec<T>, len: usize) -> Result<&mut [T], RuntimeError> {
    if memory.len() < len {
        let too_large = |_| KernelError::TooLarge { what: "values of a network", sizes: vec![len] };
        memory.try_reserve(len - memory.len()).map_err(too_large)?;
        memory.resize(len, T::default());
    }
    Ok(&mut memory[..len])
}

/// Where in texts the tokens are.
#[derive(Default)]
struct Text<'a> {
    ids: &'a [u32],
    batch: usize,
    positions: usize,
    /// Positions before the tokens: of each text that has a cache, or of all together.
    starts: Vec<usize>,
    /// Attentions so far.
    attentions: usize,
    /// Cosines and sines for each of `starts`, of attentions that rotate differently.
    tables: Vec<(&'a Attention, Vec<[Vec<f32>; 2]>)>,
}

/// A pass under way.
pub(super) struct Pass<'a> {
    network: &'a Network,
    shared: &'a Shared,
    workspace: &'a mut Workspace,
    images: &'a [f32],
    text: Text<'a>,
    /// The values that are arrays.
    arrays: Vec<Option<Array>>,
    /// Their sizes, whether they are there or not.
    shapes: Vec<Vec<usize>>,
    /// Of each text.
    caches: Option<Vec<&'a mut Cache>>,
    times: Option<&'a mut Vec<Duration>>,
}

impl<'a> Pass<'a> {
    /// A pass of an input that the network takes.
    pub fn new(
        network: &'a Network, workspace: &'a mut Workspace, input: Input<'a>,
        caches: Option<Vec<&'a mut Cache>>, times: Option<&'a mut Vec<Duration>>,
    ) -> Result<Self, RuntimeError> {
        let shared = &*network.shared;
        let (graph, program) = (&shared.source.graph, &shared.source.program);
        let wrong = |found: String| {
            let expected = match graph.input() {
                Some(Op::Images { channels }) => format!("images of {channels} channels"),
                _ => "tokens".to_owned(),
            };
            Err(RuntimeError::Input { found, expected })
        };
        let (mut images, mut text): (&[f32], _) = (&[], Text::default());
        let mut arrays: Vec<Option<Array>> = vec![];
        if graph.has_arrays() {
            arrays.clone_from(&shared.constants);
        }
        let dims = match (input, graph.input()) {
            (Input::Arrays(given), Some(Op::Array(_))) => {
                let inputs: Vec<_> = graph.array_inputs().collect();
                if inputs.len() != given.len() {
                    let found = format!("{} arrays", given.len());
                    return Err(RuntimeError::Input { found, expected: format!("{}", inputs.len()) });
                }
                for ((at, expected), array) in inputs.into_iter().zip(given) {
                    expected.check(array)?;
                    arrays[at] = Some(array.clone());
                }
                [0; 4]
            }
            (Input::Images { values, shape }, Some(&Op::Images { channels })) => {
                let [batch, found, rows, columns] = shape;
                if found != channels || elements(&shape) != Some(values.len()) {
                    return wrong(format!("{} values for images {shape:?}", values.len()));
                }
                images = values;
                [batch, rows, columns, channels]
            }
            (Input::Tokens { ids, batch }, Some(Op::Tokens)) => {
                let positions = ids.len() / batch.max(1);
                let starts = match &caches {
                    Some(caches) => caches.iter().map(|cache| cache.positions).collect(),
                    None => vec![0],
                };
                let longest = starts.iter().max().map_or(0, |start| start + positions);
                let (found, expected) = (longest, shared.source.artifact.description.context());
                if positions == 0 || found > expected {
                    let found = if positions == 0 { 0 } else { found };
                    return Err(RuntimeError::Context { found, expected });
                }
                if ids.len() != batch * positions {
                    return wrong(format!("{} tokens for {batch} texts of one length", ids.len()));
                }
                if caches.as_ref().is_some_and(|caches| caches.len() != batch) {
                    return wrong(format!("{batch} texts for {} caches", starts.len()));
                }
                text = Text { ids, batch, positions, starts, ..Text::default() };
                [batch, positions, 1, 1]
            }
            (Input::Arrays(_), _) => return wrong("arrays".to_owned()),
            (Input::Images { .. }, _) => return wrong("images".to_owned()),
            (Input::Tokens { .. }, _) => return wrong("tokens".to_owned()),
        };
        // What comes after the last attention is wanted for the last position only, if the text is read.
        let key = (dims, caches.is_some());
        if graph.has_arrays() {
            // Sizes are found out step by step.
            workspace.input = key;
            workspace.dims = vec![[0; 4]; graph.nodes().len()];
            workspace.dims[0] = dims;
            let [values, codes] = program.slots;
            workspace.values.resize(values, vec![]);
            workspace.codes.resize(codes, vec![]);
        } else if workspace.input != key || workspace.dims.is_empty() {
            let all = graph.dims(dims, caches.is_some());
            if all.iter().any(|dims| elements(dims).is_none()) {
                return wrong(format!("an input of {dims:?}, which makes values that no memory has"));
            }
            if let (Input::Images { .. }, [_, rows, columns, _]) = (input, dims) {
                checked_sizes(graph, [rows, columns])?;
            }
            if !images.is_empty() {
                (workspace.values, workspace.codes) = Default::default();
            }
            (workspace.input, workspace.dims) = (key, all);
            let [values, codes] = program.slots;
            workspace.values.resize(values, vec![]);
            workspace.codes.resize(codes, vec![]);
        }
        let shapes =
            arrays.iter().map(|array| array.iter().flat_map(Array::dims).copied().collect()).collect();
        Ok(Self { network, shared, workspace, images, text, arrays, shapes, caches, times })
    }

    /// The results, in the order of the graph's.
    pub fn run(mut self) -> Result<Vec<Made>, RuntimeError> {
        let (graph, program) = (&self.shared.source.graph, &self.shared.source.program);
        if !program.input_as_it_comes && !self.images.is_empty() {
            let mut out = self.take(0);
            ops::channels_last(self.images, self.workspace.dims[0], room(&mut out, self.images.len())?);
            self.put(0, out);
        }
        for (at, step) in program.steps.iter().enumerate() {
            if graph.has_arrays() {
                self.measure(step)?;
            }
            match step {
                Step::Products(products) => self.products(products)?,
                Step::Gate { gate, up, output } => {
                    let (mut out, len) = (self.take(*gate), self.len(*gate));
                    swiglu(&mut out[..len], self.value(*up))?;
                    // The gate's memory is the result's from now on.
                    let left = self.take(*output);
                    self.put(*gate, left);
                    self.put(*output, out);
                }
                Step::Op { op: Op::Attention(of), inputs, output } => self.attend(of, inputs, *output)?,
                Step::Op { op: Op::Array(op), inputs, output } => self.array_op(at, op, inputs, *output)?,
                Step::Op { op, inputs, output } => {
                    let mut out = self.take(*output);
                    self.op(op, inputs, *output, room(&mut out, self.len(*output))?)?;
                    self.put(*output, out);
                }
            }
            if graph.has_arrays() {
                let done = |value: &Value| program.until[*value] <= at;
                step.inputs().into_iter().filter(done).for_each(|value| self.arrays[value] = None);
            }
        }
        for cache in self.caches.iter_mut().flatten() {
            cache.positions += self.text.positions;
        }
        graph.results().into_iter().map(|value| self.result(value)).collect()
    }

    fn result(&mut self, value: Value) -> Result<Made, RuntimeError> {
        let [n, rows, columns, features] = self.workspace.dims[value];
        let shape = match self.shared.source.graph.kind(value) {
            Kind::Images(_) => vec![n, rows, columns, features],
            Kind::Array => return Ok(Made::Array(self.array(value)?)),
            _ => vec![n, features],
        };
        // Logits of a text are much: they are given away.
        let (mut values, len) = (self.take(value), self.len(value));
        values.truncate(len);
        Ok(Made::Values(Output { values, shape }))
    }

    /// How many values a node has.
    fn len(&self, value: Value) -> usize {
        self.workspace.dims[value].iter().product()
    }

    /// The values of a node.
    fn value(&self, value: Value) -> &[f32] {
        if let Some(array) = self.arrays.get(value).and_then(Option::as_ref) {
            return array.as_f32().ok().and_then(|values| values.as_slice()).unwrap_or_default();
        }
        &self.workspace.values[self.shared.source.program.values[value]][..self.len(value)]
    }

    /// Finds out how large the results of a step are that makes no array, and whether its inputs fit together.
    fn measure(&mut self, step: &Step) -> Result<(), RuntimeError> {
        let graph = &self.shared.source.graph;
        let made: Vec<(Value, [usize; 4])> = match step {
            Step::Products(products) => {
                // Layers take floats.
                let arrays = products.iter().filter_map(|product| self.arrays.get(product.input)?.as_ref());
                arrays.into_iter().try_for_each(|array| array.as_f32().map(|_| ()))?;
                let of = |product: &Product| {
                    let layer = Op::Layer(self.shared.source.program.uses[product.of].layer);
                    let dims = graph.dims_of(&layer, &[self.workspace.dims[product.input]], [0; 4]);
                    (product.output, dims)
                };
                products.iter().map(of).collect()
            }
            Step::Gate { gate, output, .. } => vec![(*output, self.workspace.dims[*gate])],
            Step::Op { op: Op::Array(_), .. } => return Ok(()),
            Step::Op { op, inputs, output } => {
                let from: Vec<[usize; 4]> = inputs.iter().map(|&input| self.workspace.dims[input]).collect();
                let [first, rest @ ..] = &from[..] else { return Ok(()) };
                let fits = |other: &[usize; 4]| match op {
                    Op::Multiply if graph.kind(inputs[0]) != graph.kind(inputs[1]) => other[0] == first[0],
                    Op::Add | Op::Multiply => other == first,
                    Op::Concat => other[..3] == first[..3],
                    Op::Rows => other[0] == first[0],
                    _ => true,
                };
                if !rest.iter().all(fits) {
                    let (found, expected) =
                        (format!("{op:?} with {from:?}"), "values of one size".to_owned());
                    return Err(RuntimeError::Input { found, expected });
                }
                vec![(*output, graph.dims_of(op, &from, [0; 4]))]
            }
        };
        for (value, dims) in made {
            if elements(&dims).is_none() || dims.contains(&0) {
                let found = format!("a value of {dims:?}");
                return Err(RuntimeError::Input {
                    found,
                    expected: "sizes of at least 1 that memory has".into(),
                });
            }
            self.workspace.dims[value] = dims;
        }
        if let Step::Products(products) = step {
            for product in products.iter().filter(|product| graph.kind(product.output) == Kind::Array) {
                let mut shape = self.shapes[product.input].clone();
                shape.pop();
                shape.push(self.workspace.dims[product.output][3]);
                self.shapes[product.output] = shape;
            }
        }
        Ok(())
    }

    /// A value as an array: images with the channels first.
    fn array(&self, value: Value) -> Result<Array, RuntimeError> {
        if let Some(array) = self.arrays.get(value).and_then(Option::as_ref) {
            return Ok(array.clone());
        }
        let [n, rows, columns, channels] = self.workspace.dims[value];
        Ok(match self.shared.source.graph.kind(value) {
            Kind::Images(_) => {
                let mut out = vec![0.0; self.len(value)];
                match self.as_it_comes(value) {
                    true => out.copy_from_slice(self.images),
                    false => ops::channels_first(self.value(value), self.workspace.dims[value], &mut out),
                }
                Array::from_f32(out, &[n, channels, rows, columns])?
            }
            _ => Array::from_f32(self.value(value).to_vec(), &[n, channels])?,
        })
    }

    /// Keeps an array as the value of a node.
    fn put_array(&mut self, value: Value, array: Array) {
        let array = array.contiguous();
        let (dims, last) = (array.dims(), array.dims().last().copied().unwrap_or(1));
        self.workspace.dims[value] = [dims.iter().rev().skip(1).product(), 1, 1, last];
        self.shapes[value] = dims.to_vec();
        self.arrays[value] = Some(array);
    }

    /// Computes an operation on arrays, which is step `at`.
    fn array_op(
        &mut self, at: usize, op: &TensorOp, inputs: &[Value], output: Value,
    ) -> Result<(), RuntimeError> {
        let graph = &self.shared.source.graph;
        match (op, graph.kind(output)) {
            (TensorOp::Array, _) => {
                let array = self.array(inputs[0])?;
                self.put_array(output, array);
            }
            (TensorOp::Images { .. } | TensorOp::Rows { .. }, kind) => {
                let array = self.array(inputs[0])?;
                let (dims, wanted) = match (kind, array.dims()) {
                    (Kind::Images(wanted), &[n, channels, rows, columns]) => {
                        ([n, rows, columns, channels], Some(wanted))
                    }
                    (Kind::Rows(wanted), &[n, features]) => ([n, 1, 1, features], wanted),
                    (_, dims) => {
                        let expected = format!("one for {op:?}");
                        return Err(RuntimeError::Input { found: format!("an array {dims:?}"), expected });
                    }
                };
                if wanted.is_some_and(|wanted| wanted != dims[3]) {
                    let (found, expected) =
                        (format!("an array {:?}", array.dims()), format!("one for {op:?}"));
                    return Err(RuntimeError::Input { found, expected });
                }
                let (mut out, values) = (self.take(output), array.floats()?);
                let room = room(&mut out, values.len())?;
                match kind {
                    Kind::Images(_) => ops::channels_last(&values, dims, room),
                    _ => room.copy_from_slice(&values),
                }
                self.put(output, out);
                self.workspace.dims[output] = dims;
            }
            (_, Kind::Array) => {
                let until = &self.shared.source.program.until;
                let mut given = Vec::with_capacity(inputs.len());
                for (place, &input) in inputs.iter().enumerate() {
                    // Memory that nobody else wants is written over.
                    let last = until[input] <= at && !inputs[place + 1..].contains(&input);
                    let array = if last { self.arrays[input].take() } else { self.arrays[input].clone() };
                    given.push(match array {
                        Some(array) => array,
                        None => self.array(input)?,
                    });
                }
                let array = arrays::evaluate(op, given)?;
                self.put_array(output, array);
            }
            (TensorOp::ChannelAffine, _) => {
                let [gain, shift] = [self.array(inputs[1])?, self.array(inputs[2])?];
                let (gain, shift) = (gain.floats()?, shift.floats()?);
                let dims = self.workspace.dims[inputs[0]];
                let mut out = self.take(output);
                let x = self.value(inputs[0]);
                ops::channels(x, &gain, &shift, room(&mut out, x.len())?);
                self.put(output, out);
                self.workspace.dims[output] = dims;
            }
            // Of each element, wherever it lies.
            (_, _) => {
                let dims = inputs.iter().find(|&&input| graph.kind(input) != Kind::Array);
                let dims = dims.map_or([0; 4], |&input| self.workspace.dims[input]);
                let array = |&input: &Value| match graph.kind(input) {
                    Kind::Array => self.array(input),
                    _ => Ok(Array::from_f32(self.value(input).to_vec(), &dims)?),
                };
                let given = inputs.iter().map(array).collect::<Result<Vec<_>, _>>()?;
                let array = arrays::evaluate(op, given)?.contiguous();
                let (mut out, values) = (self.take(output), array.floats()?);
                room(&mut out, values.len())?.copy_from_slice(&values);
                self.put(output, out);
                self.workspace.dims[output] = dims;
            }
        }
        Ok(())
    }

    /// The memory of a node's values, to be written to.
    fn take(&mut self, value: Value) -> Vec<f32> {
        std::mem::take(&mut self.workspace.values[self.shared.source.program.values[value]])
    }

    fn put(&mut self, value: Value, memory: Vec<f32>) {
        self.workspace.values[self.shared.source.program.values[value]] = memory;
    }

    /// The memory of the codes that a use takes.
    fn codes(&mut self, of: usize) -> &mut Vec<u8> {
        &mut self.workspace.codes[self.shared.source.program.codes[of]]
    }

    /// Whether a value is the input, which lies as it came, with the channels first.
    fn as_it_comes(&self, value: Value) -> bool {
        value == 0 && self.shared.source.program.input_as_it_comes
    }

    fn products(&mut self, products: &[Product]) -> Result<(), RuntimeError> {
        let started = self.times.is_some().then(Instant::now);
        // What each writes is taken out, so that the rest can be read.
        let mut outs: [(Vec<f32>, Vec<u8>); TOGETHER] = Default::default();
        for (product, (values, codes)) in products.iter().zip(&mut outs) {
            if let (Kernel::Integer(kernel), false) = (&*self.network.kernels[product.of], product.has_codes)
            {
                let dims = self.workspace.dims[product.input];
                let mut codes = std::mem::take(self.codes(product.of));
                let as_it_comes = self.as_it_comes(product.input);
                let x = if as_it_comes { self.images } else { self.value(product.input) };
                kernel.quantize(x, dims, !as_it_comes, room(&mut codes, code_len(dims))?)?;
                *self.codes(product.of) = codes;
            }
            if product.values {
                *values = self.take(product.output);
            }
            if let Some(next) = product.codes_for {
                *codes = std::mem::take(self.codes(next));
            }
        }
        let first = &products[0];
        if let Kernel::Dynamic(..) = &*self.network.kernels[first.of] {
            let mut rows = std::mem::take(&mut self.workspace.rows);
            let [n, .., features] = self.workspace.dims[first.input];
            rows.quantize(self.value(first.input), n, features)?;
            self.workspace.rows = rows;
        }
        let result = self.compute(products, &mut outs);
        for (product, (values, codes)) in products.iter().zip(outs) {
            if product.values && self.shared.source.graph.kind(product.output) == Kind::Array {
                let mut values = values;
                values.truncate(self.len(product.output));
                let array = Array::from_f32(values, &self.shapes[product.output])?;
                self.put_array(product.output, array);
            } else if product.values {
                self.put(product.output, values);
            }
            if let Some(next) = product.codes_for {
                *self.codes(next) = codes;
            }
        }
        if let (Some(times), Some(started)) = (&mut self.times, started) {
            let each = started.elapsed() / products.len() as u32;
            let uses = &self.shared.source.program.uses;
            products.iter().for_each(|product| times[uses[product.of].layer] += each);
        }
        result
    }

    /// Computes products into memory that was taken out.
    fn compute(&self, products: &[Product], outs: &mut [(Vec<f32>, Vec<u8>)]) -> Result<(), RuntimeError> {
        let program = &self.shared.source.program;
        let mut jobs: Vec<Job> = vec![];
        let mut dynamic: Vec<(&DynamicProduct, &mut [f32])> = vec![];
        for (product, (values, codes)) in products.iter().zip(outs) {
            let (input, output) = (self.workspace.dims[product.input], self.workspace.dims[product.output]);
            let len = self.len(product.output);
            // Of a text of which only the end is computed, the end.
            let residual = product.residual.map(|residual| ops::tail(self.value(residual), len));
            match &*self.network.kernels[product.of] {
                Kernel::Integer(kernel) => {
                    let next = product.codes_for.map(|next| &*self.network.kernels[next]);
                    let to = match next {
                        Some(Kernel::Integer(next)) => Some((room(codes, code_len(output))?, next.input())),
                        _ => None,
                    };
                    let values = if product.values { Some(room(values, len)?) } else { None };
                    let results = Results { values, codes: to };
                    let codes = &self.workspace.codes[program.codes[product.of]][..code_len(input)];
                    let mut job = Job { product: kernel, codes, dims: input, residual, results };
                    match products.len() {
                        1 => run_together(std::slice::from_mut(&mut job))?,
                        _ => jobs.push(job),
                    }
                }
                Kernel::Dynamic(kernel, _) => dynamic.push((kernel, room(values, len)?)),
                Kernel::WeightOnly(kernel, finish) => {
                    let out = room(values, len)?;
                    kernel.run(self.value(product.input), input[0], out)?;
                    finish.run(out, residual);
                }
                Kernel::Float(layer) => {
                    let mut turned = vec![];
                    let x = if self.as_it_comes(product.input) {
                        ops::channels_last(self.images, input, room(&mut turned, self.images.len())?);
                        &turned
                    } else {
                        self.value(product.input)
                    };
                    layer.run(x, input, residual, room(values, len)?)?;
                }
            }
        }
        run_together(&mut jobs)?;
        DynamicProduct::run_together(&self.workspace.rows, &mut dynamic)?;
        let ends = products.iter().filter_map(|product| match &*self.network.kernels[product.of] {
            Kernel::Dynamic(_, finish) => Some((product, finish)),
            _ => None,
        });
        for ((product, finish), (_, out)) in ends.zip(dynamic) {
            let residual = product.residual.map(|residual| ops::tail(self.value(residual), out.len()));
            finish.run(out, residual);
        }
        Ok(())
    }

    fn op(&self, op: &Op, inputs: &[Value], output: Value, out: &mut [f32]) -> Result<(), RuntimeError> {
        let Shared { source, gains, tables, .. } = self.shared;
        let dims = |value: Value| self.workspace.dims[value];
        let x = |at: usize| self.value(inputs[at]);
        let (from, to) = (inputs.first().map_or([0; 4], |&input| dims(input)), dims(output));
        match *op {
            Op::Embedding(table) => tables[table].write(self.text.ids, out)?,
            Op::RmsNorm(norm) => {
                rms_norm(x(0), &gains[norm], source.graph.rms_norms()[norm].epsilon as f32, out)?;
            }
            Op::Activation(activation) => {
                out.copy_from_slice(x(0));
                ops::activate(out, activation.into());
            }
            Op::Add => ops::pairs(x(0), x(1), out, |a, b| a + b),
            Op::Multiply if source.graph.kind(inputs[0]) != source.graph.kind(inputs[1]) => {
                ops::pixels(x(0), x(1), from, out, |a, b| a * b);
            }
            Op::Multiply => ops::pairs(x(0), x(1), out, |a, b| a * b),
            Op::MaxPool { kernel, stride, padding } => {
                ops::max_pool(x(0), from, to, [kernel, stride, padding], out);
            }
            Op::Mean => ops::mean(x(0), from, out),
            Op::Enlarge => ops::enlarge(x(0), from, to, out),
            Op::Concat => ops::join(inputs.iter().map(|&input| (self.value(input), dims(input)[3])), out),
            Op::Rows => {
                let item = |input: Value| dims(input)[1..].iter().product();
                ops::join(inputs.iter().map(|&input| (self.value(input), item(input))), out);
            }
            Op::Flatten if self.as_it_comes(inputs[0]) => out.copy_from_slice(self.images),
            Op::Flatten => ops::channels_first(x(0), from, out),
            Op::Images { .. }
            | Op::Tokens
            | Op::Layer(_)
            | Op::BatchNorm(_)
            | Op::Attention(_)
            | Op::Array(_) => {
                unreachable!("{op:?} is no step of its own")
            }
        }
        Ok(())
    }

    fn attend(&mut self, of: &'a Attention, inputs: &[Value], output: Value) -> Result<(), RuntimeError> {
        let Attention { heads, kv_heads, head_dim, window, .. } = *of;
        let Text { batch, positions, attentions, .. } = self.text;
        if let Some(rope) = &of.rope {
            let tables = &mut self.text.tables;
            let alike = |known: &Attention| known.head_dim == head_dim && known.rope == of.rope;
            let at = tables.iter().position(|(known, _)| alike(known)).unwrap_or(tables.len());
            if at == tables.len() {
                let starts = self.text.starts.iter();
                let of_texts = starts.map(|&start| rope.tables(head_dim, start, positions)).collect();
                tables.push((of, of_texts));
            }
            let of_texts = std::mem::take(&mut tables[at].1);
            for &input in &inputs[..2] {
                let (mut x, len) = (self.take(input), self.len(input));
                let texts = x[..len].chunks_exact_mut((len / batch).max(1));
                let mut texts = texts.zip(of_texts.iter().cycle());
                let turned = texts.try_for_each(|(x, [cos, sin])| rotate(x, cos, sin, head_dim));
                self.put(input, x);
                turned?;
            }
            self.text.tables[at].1 = of_texts;
        }
        self.text.attentions += 1;
        let mut out = self.take(output);
        let (features, keys) = (heads * head_dim, kv_heads * head_dim);
        // All positions of a text, or the last one.
        let rows = self.workspace.dims[output][0] / batch;
        let mut caches = self.caches.take();
        let [q, k, v] = [0, 1, 2].map(|i| self.value(inputs[i]));
        let texts = room(&mut out, batch * rows * features)?.chunks_exact_mut((rows * features).max(1));
        let of =
            |text: usize, features: usize| text * positions * features..(text + 1) * positions * features;
        let mut texts = texts.zip(self.text.starts.iter().cycle()).enumerate();
        let attend = |(text, (out, &start)): (usize, (&mut [f32], &usize))| {
            let mut fresh;
            let slot = match &mut caches {
                Some(caches) => {
                    let cache = &mut *caches[text];
                    if cache.attentions.len() == attentions {
                        let new = if cache.halves { AttentionCache::in_halves } else { AttentionCache::new };
                        cache.attentions.push(new(kv_heads, head_dim));
                    }
                    cache.attentions.get_mut(attentions).ok_or(RuntimeError::Cache)?
                }
                None => {
                    fresh = AttentionCache::new(kv_heads, head_dim);
                    &mut fresh
                }
            };
            slot.truncate(start); // what a pass left that failed
            slot.extend(&k[of(text, keys)], &v[of(text, keys)])?;
            Ok(attention(ops::tail(&q[of(text, features)], rows * features), slot, heads, window, out)?)
        };
        let result = texts.try_for_each(attend);
        self.caches = caches;
        self.put(output, out);
        result
    }
}
