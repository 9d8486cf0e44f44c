//! Operations on arrays give on tensors what they give in memory, and the gradients that differences of their results show.

use burn::tensor::{Device, Tensor, TensorData};
use dr_runtime::RuntimeError;
use dr_runtime::arrays::{self, Array};
use dr_runtime::graph::{
    Binary, Coordinates, ElementType, Interpolation, Nearest, PadMode, Padding, Pool, Reduction, Resize,
    ResizeBy, TensorOp, Unary, Window,
};
use dr_runtime::tensors::{Floats, Value, evaluate};
use proptest::prelude::*;

/// Floats from -2 to 2 that look random.
fn floats(seed: u32, dims: &[usize]) -> Array {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / u32::MAX as f32 * 4.0 - 2.0
    };
    Array::from_f32((0..dims.iter().product()).map(|_| next()).collect(), dims).unwrap()
}

/// The same from 0.5 to 4.5.
fn positive(seed: u32, dims: &[usize]) -> Array {
    let values = floats(seed, dims).floats().unwrap().iter().map(|x| x + 2.5).collect();
    Array::from_f32(values, dims).unwrap()
}

fn ints(values: &[i64]) -> Array {
    Array::integers(values)
}

fn scalar(value: f32) -> Array {
    Array::scalar(value)
}

#[track_caller]
fn assert_close(op: &TensorOp, found: &Array, expected: &Array, tolerance: f32) {
    assert_eq!(found.dims(), expected.dims(), "{op:?}");
    let Ok(expected) = expected.floats() else { return assert_eq!(found, expected, "{op:?}") };
    let found = found.floats().unwrap();
    let near =
        |a: f32, b: f32| a == b || (a - b).abs() <= tolerance * b.abs().max(1.0) || a.is_nan() && b.is_nan();
    assert!(found.iter().zip(&*expected).all(|(a, b)| near(*a, *b)), "{op:?}: {found:?}, not {expected:?}");
}

/// The inputs that a gradient can be with respect to.
fn variables(op: &TensorOp, inputs: &[Array]) -> Vec<usize> {
    let is = |at: &usize| inputs[*at].element() == ElementType::F32 && !op.constants().contains(at);
    (0..inputs.len()).filter(is).collect()
}

/// The same on tensors, all of them or one on a device.
fn check(op: &TensorOp, inputs: &[Array]) {
    let expected = arrays::evaluate(op, inputs.to_vec()).unwrap();
    let variables = variables(op, inputs);
    let alone = variables.iter().map(|&at| vec![at]);
    for on_device in [variables.clone()].into_iter().chain(alone) {
        let value = |(at, array): (usize, &Array)| match on_device.contains(&at) {
            true => Value::Floats(Floats::new(array, &Device::flex()).unwrap()),
            false => Value::Array(array.clone()),
        };
        let found = evaluate(op, inputs.iter().enumerate().map(value).collect()).unwrap();
        assert_eq!(matches!(found, Value::Floats(_)), op.gives_floats(), "{op:?}");
        assert_close(op, &found.to_array().unwrap(), &expected, 1e-5);
    }
}

/// The sum of products of a result with some weights, and how it changes with each element of the inputs that can have a gradient.
fn check_gradients(op: &TensorOp, inputs: &[Array]) {
    let device = Device::flex().autodiff();
    let variables = variables(op, inputs);
    let leaf = |&at: &usize| {
        let values = TensorData::new(inputs[at].floats().unwrap().into_owned(), [inputs[at].len()]);
        Tensor::<1>::from_data(values, &device).require_grad()
    };
    let leaves: Vec<Tensor<1>> = variables.iter().map(leaf).collect();
    let mut values: Vec<Value> = inputs.iter().cloned().map(Value::Array).collect();
    for (&at, leaf) in variables.iter().zip(&leaves) {
        values[at] = Floats::from(leaf.clone()).sized(inputs[at].dims().to_vec()).unwrap().into();
    }
    let Value::Floats(result) = evaluate(op, values).unwrap() else { panic!("{op:?}: no floats") };
    let weights = floats(99, &[result.len()]).floats().unwrap().into_owned();
    let of_weights = Tensor::<1>::from_data(&weights[..], &device);
    let gradients = (result.into_values() * of_weights).sum().backward();
    let sum = |inputs: &[Array]| -> f64 {
        let result = arrays::evaluate(op, inputs.to_vec()).unwrap();
        let result = result.floats().unwrap();
        result.iter().zip(&weights).map(|(x, weight)| f64::from(*x) * f64::from(*weight)).sum()
    };
    for (&at, leaf) in variables.iter().zip(&leaves).filter(|(at, _)| !inputs[**at].is_empty()) {
        let gradient: Vec<f32> = leaf.grad(&gradients).unwrap().into_data().try_into_vec().unwrap();
        for (element, &found) in gradient.iter().enumerate() {
            let beside = |by: f32| {
                let mut moved = inputs[at].floats().unwrap().into_owned();
                moved[element] += by;
                let mut inputs = inputs.to_vec();
                inputs[at] = Array::from_f32(moved, inputs[at].dims()).unwrap();
                sum(&inputs)
            };
            let [rough, expected] =
                [1.0 / 128.0, 1.0 / 256.0].map(|step| (beside(step) - beside(-step)) / f64::from(2.0 * step));
            let most = 1e-2 * expected.abs().max(1.0);
            // Where the function bends nearby, the two differ.
            if (rough - expected).abs() < most / 4.0 {
                let error = (f64::from(found) - expected).abs();
                assert!(error < most, "{op:?}, input {at}[{element}]: {found}, not {expected}");
            }
        }
    }
}

fn window(kernel: &[usize], stride: &[usize], dilation: &[usize], padding: Padding, groups: usize) -> Window {
    Window { kernel: kernel.to_vec(), stride: stride.to_vec(), dilation: dilation.to_vec(), padding, groups }
}

fn resize(mode: Interpolation, coordinates: Coordinates, by: ResizeBy) -> Resize {
    Resize { axes: vec![], by, mode, coordinates, antialias: false, exclude_outside: false }
}

/// Functions of each element.
fn unary() -> Vec<(TensorOp, Vec<Array>)> {
    let on = |function, x| (TensorOp::Unary(function), vec![x]);
    let all = [
        Unary::Abs,
        Unary::Neg,
        Unary::Sign,
        Unary::Floor,
        Unary::Ceil,
        Unary::Round,
        Unary::Exp,
        Unary::Sin,
        Unary::Cos,
        Unary::Erf,
        Unary::Tanh,
        Unary::Sigmoid,
        Unary::Relu,
        Unary::Silu,
        Unary::Softplus,
        Unary::HardSwish,
        Unary::Gelu,
        Unary::GeluTanh,
        Unary::HardSigmoid { alpha: 0.5, beta: 0.25 },
        Unary::LeakyRelu { alpha: 0.1 },
        Unary::Elu { alpha: 1.5 },
    ];
    let mut cases: Vec<_> = all.into_iter().map(|function| on(function, floats(1, &[2, 3, 4]))).collect();
    for function in [Unary::Log, Unary::Sqrt, Unary::Reciprocal] {
        cases.push(on(function, positive(2, &[3, 5])));
    }
    cases
}

/// Functions of elements that are broadcast.
fn broadcast() -> Vec<(TensorOp, Vec<Array>)> {
    let on = |function, a, b| (TensorOp::Binary(function), vec![a, b]);
    let mut cases = vec![];
    for function in [Binary::Add, Binary::Sub, Binary::Mul, Binary::Min, Binary::Max] {
        cases.push(on(function, floats(1, &[2, 3, 4]), floats(2, &[3, 1])));
        cases.push(on(function, floats(1, &[1, 4]), floats(2, &[2, 3, 1])));
        cases.push(on(function, scalar(0.7), floats(3, &[5])));
    }
    for function in [Binary::Div, Binary::Mod, Binary::Fmod] {
        cases.push(on(function, floats(1, &[2, 3]), positive(2, &[3])));
    }
    let alternating = [floats(1, &[2, 1, 3, 1, 2, 1]), floats(2, &[1, 2, 1, 3, 1, 2])];
    cases.push((TensorOp::Binary(Binary::Mul), alternating.to_vec()));
    cases.push(on(Binary::Pow, positive(1, &[2, 3]), floats(2, &[2, 1])));
    for exponent in [2.0, 3.0, -0.5] {
        cases.push(on(Binary::Pow, positive(1, &[2, 3]), scalar(exponent)));
    }
    cases.push(on(Binary::Pow, floats(1, &[2, 3]), ints(&[2])));
    cases.push(on(Binary::Prelu, floats(1, &[2, 3, 4]), floats(2, &[3, 1])));
    let condition = Array::from_bool(vec![true, false, true], &[3, 1]).unwrap();
    cases.push((TensorOp::Where, vec![condition, floats(1, &[2, 3, 2]), floats(2, &[2])]));
    cases.push((TensorOp::ChannelAffine, vec![floats(1, &[2, 3, 4]), floats(2, &[3]), floats(3, &[3])]));
    cases
}

/// Values of several elements.
fn sums() -> Vec<(TensorOp, Vec<Array>)> {
    let mut cases = vec![];
    for (a, b) in [
        (&[2, 3][..], &[3, 4][..]),
        (&[2, 5, 2, 3], &[3, 4]),
        (&[2, 1, 2, 3], &[2, 3, 4]),
        (&[2, 2, 3], &[1, 3, 2]),
        (&[3], &[2, 3, 4]),
        (&[2, 2, 3], &[3]),
        (&[3], &[3]),
    ] {
        cases.push((TensorOp::MatMul, vec![floats(1, a), floats(2, b)]));
    }
    let reductions = [
        Reduction::Sum,
        Reduction::Mean,
        Reduction::Max,
        Reduction::Min,
        Reduction::Prod,
        Reduction::L1,
        Reduction::L2,
        Reduction::SumSquare,
        Reduction::LogSum,
        Reduction::LogSumExp,
    ];
    for reduction in reductions {
        let of = |keep| TensorOp::Reduce { reduction, keep, empty_is_none: false };
        cases.push((of(true), vec![positive(1, &[2, 3, 4]), ints(&[1])]));
        cases.push((of(false), vec![positive(2, &[2, 3, 2]), ints(&[0, -1])]));
        cases.push((of(false), vec![positive(3, &[2, 3])]));
        cases.push((TensorOp::GlobalPool(reduction), vec![positive(4, &[2, 3, 2, 2])]));
    }
    let none = TensorOp::Reduce { reduction: Reduction::L2, keep: true, empty_is_none: true };
    cases.push((none, vec![floats(1, &[2, 3]), ints(&[])]));
    for log in [false, true] {
        cases.push((TensorOp::Softmax { axis: 1, log }, vec![floats(1, &[2, 4, 3])]));
        cases.push((TensorOp::Softmax { axis: -1, log }, vec![floats(2, &[2, 5])]));
    }
    for axis in [-1, 1] {
        cases.push((TensorOp::Normalize { axis, epsilon: 1e-5 }, vec![floats(1, &[2, 3, 4])]));
    }
    for size in [1, 3, 4, 9] {
        cases.push((TensorOp::Lrn { alpha: 0.5, beta: 0.75, bias: 1.0, size }, vec![floats(1, &[2, 5, 2])]));
    }
    cases
}

/// Moves of elements.
fn moves() -> Vec<(TensorOp, Vec<Array>)> {
    let x = || floats(1, &[2, 3, 4]);
    let mut cases = vec![];
    for perm in [&[][..], &[0, 2, 1], &[1, 2, 0], &[2, 0, 1], &[0, 1, 2]] {
        cases.push((TensorOp::Transpose(perm.to_vec()), vec![x()]));
    }
    cases.push((TensorOp::Transpose(vec![3, 1, 4, 0, 2]), vec![floats(2, &[2, 3, 1, 2, 3])]));
    cases.push((TensorOp::Reshape { allow_zero: false }, vec![x(), ints(&[0, -1, 2, 1])]));
    cases.push((TensorOp::Flatten { axis: -2 }, vec![x()]));
    cases.push((TensorOp::Squeeze, vec![floats(1, &[1, 3, 1])]));
    cases.push((TensorOp::Squeeze, vec![floats(1, &[1, 3, 1]), ints(&[-1])]));
    cases.push((TensorOp::Unsqueeze, vec![x(), ints(&[0, 4])]));
    cases.push((TensorOp::Expand, vec![floats(1, &[3, 1]), ints(&[2, 1, 4])]));
    cases.push((TensorOp::Concat { axis: 1 }, vec![x(), floats(2, &[2, 1, 4]), floats(3, &[2, 0, 4])]));
    cases.push((TensorOp::Slice, vec![x(), ints(&[1, 3]), ints(&[9, -9]), ints(&[1, 2]), ints(&[1, -2])]));
    cases.push((TensorOp::Slice, vec![x(), ints(&[0]), ints(&[4]), ints(&[-1]), ints(&[3])]));
    cases.push((TensorOp::Slice, vec![x(), ints(&[0]), ints(&[4]), ints(&[-1]), ints(&[1])]));
    cases.push((TensorOp::Part { axis: 2, index: 1, of: 3 }, vec![x()]));
    cases.push((TensorOp::Part { axis: 1, index: 0, of: 2 }, vec![x(), ints(&[2, 1])]));
    let places = Array::from_i64(vec![0, -1, 1, 1], &[2, 2]).unwrap();
    cases.push((TensorOp::Gather { axis: 1 }, vec![x(), places]));
    cases.push((TensorOp::Gather { axis: 0 }, vec![x(), Array::integer(-1)]));
    for mode in [PadMode::Constant, PadMode::Reflect, PadMode::Edge, PadMode::Wrap] {
        cases.push((TensorOp::Pad(mode), vec![x(), ints(&[0, 2, 1, 1, 0, 2]), scalar(0.5)]));
    }
    cases.push((TensorOp::Pad(PadMode::Constant), vec![x(), ints(&[-1, 2]), scalar(0.5), ints(&[1])]));
    cases.push((TensorOp::Tile, vec![x(), ints(&[2, 1, 3])]));
    for channels_first in [false, true] {
        cases.push((TensorOp::DepthToSpace { block: 2, channels_first }, vec![floats(1, &[1, 8, 2, 3])]));
    }
    for nearest in [Nearest::Floor, Nearest::RoundPreferCeil] {
        let resize = resize(Interpolation::Nearest(nearest), Coordinates::HalfPixel, ResizeBy::Scales);
        cases.push((TensorOp::Resize(resize), vec![x(), Array::vector(vec![1.0, 2.0, 0.6])]));
    }
    cases
}

/// Windows on arrays.
fn windows() -> Vec<(TensorOp, Vec<Array>)> {
    let sizes = |sizes: &[usize]| Padding::Sizes(sizes.to_vec());
    let conv = |x: &[usize], weight: &[usize], bias: bool, window: Window| {
        let bias = bias.then(|| floats(3, &weight[..1]));
        (TensorOp::Conv(window), [floats(1, x), floats(2, weight)].into_iter().chain(bias).collect())
    };
    let transposed = |x: &[usize], weight: &[usize], more: &[usize], shape: &[usize], window: Window| {
        let bias = floats(3, &[weight[1] * window.groups]);
        let (output_padding, output_shape) = (more.to_vec(), shape.to_vec());
        let op = TensorOp::ConvTranspose { window, output_padding, output_shape };
        (op, vec![floats(1, x), floats(2, weight), bias])
    };
    let mut cases = vec![
        conv(&[2, 2, 7], &[3, 2, 3], true, window(&[], &[2], &[], sizes(&[1, 1]), 1)),
        conv(&[1, 4, 7], &[4, 1, 3], false, window(&[], &[], &[2], sizes(&[2, 0]), 4)),
        conv(&[1, 2, 5, 6], &[2, 2, 3, 2], true, window(&[3, 2], &[2, 1], &[1, 2], Padding::SameUpper, 1)),
        conv(&[1, 4, 5, 4], &[2, 2, 2, 3], true, window(&[], &[], &[], sizes(&[1, 1, 1, 1]), 2)),
        conv(&[1, 2, 3, 4, 3], &[2, 2, 2, 2, 2], true, window(&[], &[], &[], sizes(&[1, 0, 0, 0, 0, 1]), 1)),
        transposed(&[2, 2, 4], &[2, 3, 3], &[], &[], window(&[], &[2], &[], sizes(&[1, 1]), 1)),
        transposed(
            &[1, 2, 3, 3],
            &[2, 1, 2, 3],
            &[1, 0],
            &[],
            window(&[], &[2, 1], &[], sizes(&[0, 1, 1, 0]), 2),
        ),
        transposed(&[1, 2, 4], &[2, 2, 2], &[], &[10], window(&[], &[2], &[2], sizes(&[]), 1)),
    ];
    for kind in [Pool::Max, Pool::Average { count_padding: false }, Pool::Average { count_padding: true }] {
        for (x, window, ceil) in [
            (&[1, 2, 5, 6][..], window(&[3, 2], &[2, 2], &[], sizes(&[1, 0, 1, 1]), 1), false),
            (&[2, 1, 7], window(&[3], &[2], &[], sizes(&[1, 0]), 1), true),
            (&[1, 1, 4, 3, 4], window(&[2, 2, 3], &[], &[], Padding::SameLower, 1), false),
        ] {
            cases.push((TensorOp::Pool { kind, window, ceil }, vec![floats(5, x)]));
        }
    }
    for mode in [Interpolation::Linear, Interpolation::Cubic { a: -0.75 }] {
        for coordinates in [Coordinates::HalfPixel, Coordinates::AlignCorners, Coordinates::Asymmetric] {
            let resize = resize(mode, coordinates, ResizeBy::Sizes);
            cases.push((
                TensorOp::Resize(resize.clone()),
                vec![floats(1, &[1, 2, 4, 5]), ints(&[1, 2, 7, 3])],
            ));
            let narrow = Resize { antialias: true, exclude_outside: true, ..resize };
            cases.push((TensorOp::Resize(narrow), vec![floats(1, &[1, 2, 4, 5]), ints(&[1, 2, 2, 6])]));
        }
    }
    let crop = resize(Interpolation::Linear, Coordinates::Crop { outside: 0.5 }, ResizeBy::Sizes);
    let crop = Resize { axes: vec![1], ..crop };
    let region = Array::vector(vec![0.25, 1.5]);
    cases.push((TensorOp::Resize(crop), vec![floats(1, &[2, 5]), ints(&[6]), region]));
    cases
}

#[test]
fn functions_of_one_element() {
    unary().iter().for_each(|(op, inputs)| check(op, inputs));
}

#[test]
fn functions_of_several_elements() {
    broadcast().iter().for_each(|(op, inputs)| check(op, inputs));
    sums().iter().for_each(|(op, inputs)| check(op, inputs));
}

#[test]
fn moves_of_elements() {
    moves().iter().for_each(|(op, inputs)| check(op, inputs));
}

#[test]
fn windows_of_elements() {
    windows().iter().for_each(|(op, inputs)| check(op, inputs));
}

#[test]
fn halves_are_rounded() {
    for to in [ElementType::F16, ElementType::Bf16, ElementType::F32, ElementType::F64] {
        check(&TensorOp::Cast(to), &[floats(1, &[2, 3])]);
    }
}

#[test]
fn integers_and_booleans_come_to_the_host() {
    let x = floats(1, &[2, 3, 4]);
    check(&TensorOp::Shape { start: 1, end: None }, std::slice::from_ref(&x));
    check(&TensorOp::ArgMax { axis: 1, keep: false, last: false, smallest: false }, std::slice::from_ref(&x));
    check(&TensorOp::Cast(ElementType::I64), std::slice::from_ref(&x));
    check(&TensorOp::Binary(Binary::Less), &[x, scalar(0.1)]);
}

#[test]
fn gradients_are_those_of_differences() {
    for (op, inputs) in [unary(), broadcast(), sums(), moves(), windows()].concat() {
        let jumps = [Unary::Sign, Unary::Floor, Unary::Ceil, Unary::Round].map(TensorOp::Unary);
        if !jumps.contains(&op) {
            check_gradients(&op, &inputs);
        }
    }
}

#[test]
fn nothing_goes_back_through_steps() {
    for function in [Unary::Sign, Unary::Floor, Unary::Ceil, Unary::Round] {
        let x = Tensor::<1>::from_data([0.3, -1.2], &Device::flex().autodiff()).require_grad();
        let Ok(Value::Floats(y)) = evaluate(&TensorOp::Unary(function), vec![Floats::from(x.clone()).into()])
        else {
            panic!("{function:?}")
        };
        let gradients = (y.into_values() + x.clone()).sum().backward();
        assert_eq!(x.grad(&gradients).unwrap().into_data().try_into_vec::<f32>().unwrap(), [1.0, 1.0]);
    }
}

#[test]
fn the_root_of_nothing_has_no_gradient() {
    let x = Tensor::<1>::from_data([0.0, 4.0], &Device::flex().autodiff()).require_grad();
    let Ok(Value::Floats(y)) = evaluate(&TensorOp::Unary(Unary::Sqrt), vec![Floats::from(x.clone()).into()])
    else {
        panic!("no floats")
    };
    let y = y.into_values();
    let gradients = y.clone().square().sum().backward();
    assert_eq!(y.into_data().try_into_vec::<f32>().unwrap(), [0.0, 2.0]);
    assert_eq!(x.grad(&gradients).unwrap().into_data().try_into_vec::<f32>().unwrap(), [0.0, 1.0]);
}

#[test]
fn a_gradient_that_there_is_not_is_an_error() {
    let tracked = |dims: &[usize]| {
        let values = Tensor::<1>::from_data(
            TensorData::new(vec![1.0f32; dims.iter().product()], [dims.iter().product::<usize>()]),
            &Device::flex().autodiff(),
        );
        Value::from(Floats::from(values.require_grad()).sized(dims.to_vec()).unwrap())
    };
    let pad =
        evaluate(&TensorOp::Pad(PadMode::Constant), vec![tracked(&[2]), ints(&[1, 1]).into(), tracked(&[])]);
    assert!(matches!(&pad, Err(RuntimeError::Gradient(op)) if op.contains("Pad")), "{pad:?}");
    let conv = TensorOp::Conv(window(&[], &[], &[], Padding::Sizes(vec![]), 1));
    let four = [&[1, 1, 2, 2, 2, 2][..], &[1, 1, 1, 1, 1, 1]];
    let found = evaluate(&conv, four.map(tracked).to_vec());
    assert!(matches!(&found, Err(RuntimeError::Gradient(op)) if op.contains("Conv")), "{found:?}");
    // Without gradients it is computed.
    let inputs = four.map(|dims| floats(1, dims));
    let untracked = inputs.each_ref().map(|x| Floats::new(x, &Device::flex()).unwrap().into());
    let found = evaluate(&conv, untracked.to_vec()).unwrap().to_array().unwrap();
    assert_close(&conv, &found, &arrays::evaluate(&conv, inputs.to_vec()).unwrap(), 1e-5);
}

#[test]
fn arrays_without_elements() {
    let (x, none) = (floats(1, &[2, 3]), floats(1, &[2, 0]));
    let sum = TensorOp::Reduce { reduction: Reduction::Sum, keep: false, empty_is_none: false };
    let condition = Array::from_bool(vec![], &[0, 1]).unwrap();
    let cases = [
        (TensorOp::Slice, vec![x.clone(), ints(&[2]), ints(&[2]), ints(&[1]), ints(&[1])]),
        (TensorOp::Expand, vec![floats(1, &[2, 1]), ints(&[2, 0])]),
        (TensorOp::Concat { axis: 1 }, vec![none.clone(), none.clone()]),
        (TensorOp::Where, vec![condition, floats(1, &[3]), scalar(1.0)]),
        (TensorOp::MatMul, vec![none.clone(), floats(1, &[0, 2])]),
        (TensorOp::Unary(Unary::Exp), vec![none.clone()]),
        (TensorOp::Reshape { allow_zero: true }, vec![none.clone(), ints(&[0, 7])]),
    ];
    for (op, inputs) in cases {
        let expected = arrays::evaluate(&op, inputs.clone()).unwrap();
        let value = |(at, array): (usize, &Array)| match variables(&op, &inputs).contains(&at) {
            true => Value::Floats(Floats::new(array, &Device::flex()).unwrap()),
            false => Value::Array(array.clone()),
        };
        let found = evaluate(&op, inputs.iter().enumerate().map(value).collect()).unwrap();
        assert_eq!(found.to_array().unwrap(), expected, "{op:?}");
    }
    let nothing = Floats::from(Tensor::<2>::zeros([2, 0], &Device::flex()));
    assert_eq!(nothing.clone().tensor::<2>().unwrap().dims(), [2, 0]);
    assert_eq!(nothing.clone().rows().dims(), [2, 0]);
    let nothing = Value::Floats(nothing);
    assert_eq!(evaluate(&sum, vec![nothing]).unwrap().to_array().unwrap(), scalar(0.0));
}

#[test]
fn images_and_rows_stay_what_they_are() {
    let images = Tensor::<4>::from_data([[[[1.0, -2.0]], [[3.0, -4.0]]]], &Device::flex());
    let doubled = evaluate(&TensorOp::Binary(Binary::Mul), vec![images.clone().into(), scalar(2.0).into()]);
    assert!(matches!(&doubled, Ok(Value::Images(x)) if x.dims() == [1, 2, 1, 2]), "{doubled:?}");
    let array = evaluate(&TensorOp::Array, vec![images.into()]).unwrap();
    assert!(matches!(&array, Value::Floats(x) if x.dims() == [1, 2, 1, 2]));
    let flat = evaluate(&TensorOp::Flatten { axis: 1 }, vec![array]).unwrap();
    let rows = evaluate(&TensorOp::Rows { features: Some(4) }, vec![flat]).unwrap();
    assert!(matches!(&rows, Value::Rows(x) if x.dims() == [1, 4]));
    let wrong = evaluate(&TensorOp::Images { channels: 2 }, vec![floats(1, &[2, 3]).into()]);
    assert!(wrong.is_err(), "{wrong:?}");
}

/// Sizes of some axes, and for each of two arrays which of them are 1.
fn shapes() -> impl Strategy<Value = [Vec<usize>; 2]> {
    let axes = prop::collection::vec((1usize..4, any::<bool>(), any::<bool>()), 0..7);
    (axes, 0usize..4).prop_map(|(axes, without)| {
        let a = axes.iter().map(|&(size, one, _)| if one { 1 } else { size }).collect();
        let b: Vec<usize> = axes.iter().map(|&(size, _, one)| if one { 1 } else { size }).collect();
        [a, b[without.min(axes.len())..].to_vec()]
    })
}

proptest! {
    #[test]
    fn any_sizes_broadcast([a, b] in shapes()) {
        let (x, y) = (floats(1, &a), floats(2, &b));
        for function in [Binary::Add, Binary::Max, Binary::Less] {
            check(&TensorOp::Binary(function), &[x.clone(), y.clone()]);
            check(&TensorOp::Binary(function), &[y.clone(), x.clone()]);
        }
    }

    #[test]
    fn any_order_of_axes(dims in prop::collection::vec(1usize..4, 0..7).prop_flat_map(|dims| {
        let order: Vec<usize> = (0..dims.len()).collect();
        (Just(dims), Just(order).prop_shuffle())
    })) {
        let (dims, order) = dims;
        check(&TensorOp::Transpose(order), &[floats(1, &dims)]);
    }

    #[test]
    fn any_axes_are_reduced(axes in prop::collection::vec((1usize..4, any::<bool>()), 1..6), keep: bool) {
        let dims: Vec<usize> = axes.iter().map(|(size, _)| *size).collect();
        let among: Vec<i64> = (0..axes.len()).filter(|&at| axes[at].1).map(|at| at as i64).collect();
        for reduction in [Reduction::Sum, Reduction::Max] {
            let op = TensorOp::Reduce { reduction, keep, empty_is_none: false };
            check(&op, &[floats(1, &dims), ints(&among)]);
        }
    }

    #[test]
    fn any_matrices([a, b] in shapes(), m in 1usize..4, k in 1usize..4, n in 1usize..4) {
        let (a, b) = ([&a[..], &[m, k]].concat(), [&b[..], &[k, n]].concat());
        check(&TensorOp::MatMul, &[floats(1, &a), floats(2, &b)]);
    }
}
