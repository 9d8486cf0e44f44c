use super::*;
use crate::graph::{
    Binary, Coordinates, Interpolation, Nearest, PadMode, Padding, Pool, Reduction, Resize, ResizeBy, Unary,
    Window,
};
use proptest::prelude::*;
use std::f32::consts::LN_2;

fn evaluate(op: &TensorOp, inputs: &[Array]) -> Result<Array, ArrayError> {
    super::evaluate(op, inputs.to_vec())
}

fn floats(values: &[f32], dims: &[usize]) -> Array {
    Array::from_f32(values.to_vec(), dims).unwrap()
}

fn ints(values: &[i64], dims: &[usize]) -> Array {
    Array::from_i64(values.to_vec(), dims).unwrap()
}

fn ints_1d(values: &[i64]) -> Array {
    ints(values, &[values.len()])
}

fn bools(values: &[bool], dims: &[usize]) -> Array {
    Array::from_bool(values.to_vec(), dims).unwrap()
}

/// 0, 1, 2, ...
fn counted(dims: &[usize]) -> Array {
    floats(&(0..dims.iter().product::<usize>()).map(|x| x as f32).collect::<Vec<_>>(), dims)
}

fn window(kernel: &[usize], stride: &[usize], dilation: &[usize], padding: Padding, groups: usize) -> Window {
    Window { kernel: kernel.to_vec(), stride: stride.to_vec(), dilation: dilation.to_vec(), padding, groups }
}

fn check(op: TensorOp, inputs: &[Array], expected: &Array) {
    let found = evaluate(&op, inputs).unwrap();
    assert_eq!(found.dims(), expected.dims(), "{op:?}");
    match (&found, expected) {
        (Array::F32(a), Array::F32(b)) => {
            let near = |a: f32, b: f32| a == b || (a - b).abs() <= 1e-5 * b.abs().max(1.0);
            assert!(a.iter().zip(b).all(|(a, b)| near(*a, *b)), "{op:?}: {found:?}, not {expected:?}");
        }
        _ => assert_eq!(&found, expected, "{op:?}"),
    }
}

#[test]
fn arrays_know_what_they_are() {
    let x = counted(&[2, 3]);
    assert_eq!((x.dims(), x.element()), (&[2, 3][..], ElementType::F32));
    assert!(x.as_f32().is_ok());
    assert!(matches!(x.as_i64(), Err(ArrayError::Element { found: ElementType::F32, expected: "I64" })));
    assert!(matches!(Array::from_f32(vec![0.0; 3], &[2]), Err(ArrayError::Dims { .. })));
    assert!(matches!(Array::from_f32(vec![], &[0, usize::MAX]), Err(ArrayError::Size { .. })));
    assert_eq!(evaluate(&TensorOp::Array, &[x]), Err(ArrayError::Operation));
}

#[test]
fn casts_truncate_wrap_and_round() {
    let x = floats(&[1.9, -1.9, 300.0, 0.0], &[4]);
    check(TensorOp::Cast(ElementType::I64), std::slice::from_ref(&x), &ints_1d(&[1, -1, 300, 0]));
    check(TensorOp::Cast(ElementType::U8), std::slice::from_ref(&x), &ints_1d(&[1, 255, 44, 0]));
    check(TensorOp::Cast(ElementType::Bool), &[x], &bools(&[true, true, true, false], &[4]));
    let cast = evaluate(&TensorOp::Cast(ElementType::F16), &[floats(&[1.0 / 3.0], &[1])]).unwrap();
    assert_eq!(cast, floats(&[0.333_251_95], &[1]));
}

#[test]
fn functions_of_one_element() {
    let x = [-2.0, -0.5, 0.0, 0.5, 2.5];
    let cases: [(Unary, [f32; 5]); 12] = [
        (Unary::Round, [-2.0, 0.0, 0.0, 0.0, 2.0]),
        (Unary::Sign, [-1.0, -1.0, 0.0, 1.0, 1.0]),
        (Unary::Relu, [0.0, 0.0, 0.0, 0.5, 2.5]),
        (Unary::Erf, [-0.995_322_3, -0.520_499_9, 0.0, 0.520_499_9, 0.999_593_1]),
        (Unary::Sigmoid, [0.119_202_92, 0.377_540_68, 0.5, 0.622_459_35, 0.924_141_8]),
        (Unary::Silu, [-0.238_405_84, -0.188_770_34, 0.0, 0.311_229_68, 2.310_354_5]),
        (Unary::Softplus, [0.126_928, 0.474_077, LN_2, 0.974_077, 2.578_889_8]),
        (Unary::HardSwish, [-0.333_333_34, -0.208_333_33, 0.0, 0.291_666_66, 2.291_666_7]),
        (Unary::Gelu, [-0.045_500_26, -0.154_268_77, 0.0, 0.345_731_23, 2.484_475_8]),
        (Unary::GeluTanh, [-0.045_402_348, -0.154_286_01, 0.0, 0.345_714, 2.484_915_7]),
        (Unary::LeakyRelu { alpha: 0.1 }, [-0.2, -0.05, 0.0, 0.5, 2.5]),
        (Unary::HardSigmoid { alpha: 0.5, beta: 0.5 }, [0.0, 0.25, 0.5, 0.75, 1.0]),
    ];
    for (function, expected) in cases {
        check(TensorOp::Unary(function), &[floats(&x, &[5])], &floats(&expected, &[5]));
    }
    check(TensorOp::Unary(Unary::Neg), &[ints_1d(&[1, i64::MIN])], &ints_1d(&[-1, i64::MIN]));
    assert!(evaluate(&TensorOp::Unary(Unary::Exp), &[ints_1d(&[1])]).is_err());
}

#[test]
fn exponentials_are_right_to_the_last_places() {
    let x: Vec<f32> = (-90 * 256..89 * 256).map(|x| x as f32 / 256.0 + 0.001).collect();
    let of = |function, x: &[f32]| {
        let found = evaluate(&TensorOp::Unary(function), &[floats(x, &[x.len()])]).unwrap();
        dense(found.as_f32().unwrap()).into_owned()
    };
    for (function, expected) in [(Unary::Exp, f64::exp as fn(f64) -> f64), (Unary::Tanh, f64::tanh)] {
        for (x, found) in x.iter().zip(of(function, &x)) {
            let expected = expected(f64::from(*x)) as f32;
            let most = 2.5e-7 * expected.abs() + f32::from_bits(1);
            assert!(found == expected || (found - expected).abs() <= most, "{x}: {found}, not {expected}");
        }
    }
    let ends = [f32::NEG_INFINITY, -105.0, 0.0, 88.8, f32::INFINITY];
    assert_eq!(of(Unary::Exp, &ends), [0.0, 0.0, 1.0, f32::INFINITY, f32::INFINITY]);
    assert_eq!(of(Unary::Tanh, &ends), [-1.0, -1.0, 0.0, 1.0, 1.0]);
    assert_eq!(of(Unary::Sigmoid, &ends), [0.0, 0.0, 0.5, 1.0, 1.0]);
    for function in [Unary::Exp, Unary::Tanh, Unary::Sigmoid, Unary::Relu, Unary::HardSwish] {
        assert!(of(function, &[f32::NAN])[0].is_nan());
    }
}

#[test]
fn functions_of_two_elements_broadcast() {
    let add = || TensorOp::Binary(Binary::Add);
    let x = counted(&[2, 3]);
    let row = floats(&[10.0, 20.0, 30.0], &[3]);
    let column = floats(&[10.0, 20.0], &[2, 1]);
    let expected = floats(&[10.0, 21.0, 32.0, 13.0, 24.0, 35.0], &[2, 3]);
    check(add(), &[x.clone(), row.clone()], &expected);
    check(add(), &[row.clone(), x.clone()], &expected);
    check(add(), &[x, column.clone()], &floats(&[10.0, 11.0, 12.0, 23.0, 24.0, 25.0], &[2, 3]));
    check(add(), &[column, row.clone()], &floats(&[20.0, 30.0, 40.0, 30.0, 40.0, 50.0], &[2, 3]));
    assert!(matches!(evaluate(&add(), &[row, counted(&[2])]), Err(ArrayError::Broadcast { .. })));

    let (a, b) = (ints_1d(&[7, -7, 7, -7]), ints_1d(&[3, 3, -3, -3]));
    for (function, expected) in [
        (Binary::Div, [2, -2, -2, 2]),
        (Binary::Mod, [1, 2, -2, -1]),
        (Binary::Fmod, [1, -1, 1, -1]),
        (Binary::Min, [3, -7, -3, -7]),
    ] {
        check(TensorOp::Binary(function), &[a.clone(), b.clone()], &ints_1d(&expected));
        let [a, b, expected] =
            [&a, &b, &ints_1d(&expected)].map(|x| x.clone().cast(ElementType::F32).unwrap());
        if function != Binary::Div {
            check(TensorOp::Binary(function), &[a, b], &expected);
        }
    }
    let pow = || TensorOp::Binary(Binary::Pow);
    check(pow(), &[ints_1d(&[3, -2]), floats(&[2.0, 3.0], &[2])], &ints_1d(&[9, -8]));
    check(pow(), &[floats(&[1.5, 4.0], &[2]), ints_1d(&[2, -1])], &floats(&[2.25, 0.25], &[2]));
    assert!(evaluate(&pow(), &[ints_1d(&[3]), ints_1d(&[-1])]).is_err());
    assert!(evaluate(&TensorOp::Binary(Binary::Div), &[ints_1d(&[3]), ints_1d(&[0])]).is_err());
    let less = TensorOp::Binary(Binary::Less);
    check(less, &[a, ints(&[0], &[])], &bools(&[false, true, false, true], &[4]));
    let choose = [bools(&[true, false], &[2, 1]), counted(&[3]), floats(&[9.0], &[])];
    check(TensorOp::Where, &choose, &floats(&[0.0, 1.0, 2.0, 9.0, 9.0, 9.0], &[2, 3]));
    let affine = [counted(&[1, 2, 2]), floats(&[1.0, 2.0], &[2]), floats(&[0.0, 0.5], &[2])];
    check(TensorOp::ChannelAffine, &affine, &floats(&[0.0, 1.0, 4.5, 6.5], &[1, 2, 2]));
}

#[test]
fn results_take_the_memory_of_an_only_owner() {
    let x = counted(&[64]);
    let at = x.as_f32().unwrap().as_ptr();
    let y = super::evaluate(&TensorOp::Unary(Unary::Relu), vec![x]).unwrap();
    let y = super::evaluate(&TensorOp::Binary(Binary::Add), vec![floats(&[1.0], &[]), y]).unwrap();
    assert_eq!(y.as_f32().unwrap().as_ptr(), at);
    let shared = y.clone();
    let z = super::evaluate(&TensorOp::Unary(Unary::Neg), vec![y]).unwrap();
    assert_ne!(z.as_f32().unwrap().as_ptr(), at);
    assert_eq!(shared.as_f32().unwrap()[[1]], 2.0);
}

#[test]
fn large_arrays_are_computed_in_pieces() {
    let dims = [3, 5, 7001];
    let x = counted(&dims);
    let channels = floats(&[0.0, 1.0, 2.0, 3.0, 4.0], &[5, 1]);
    let sum = evaluate(&TensorOp::Binary(Binary::Add), &[x.clone(), channels]).unwrap();
    let sum = sum.as_f32().unwrap();
    assert!(sum.indexed_iter().all(|(at, y)| *y == x.as_f32().unwrap()[&at] + at[1] as f32));
    let y = evaluate(&TensorOp::Transpose(vec![2, 0, 1]), std::slice::from_ref(&x)).unwrap();
    let (x, y) = (x.as_f32().unwrap(), y.as_f32().unwrap());
    assert_eq!(y, x.view().permuted_axes(vec![2, 0, 1]));
}

#[test]
fn products_of_matrices() {
    let (a, b) = (counted(&[2, 3]), counted(&[3, 2]));
    check(TensorOp::MatMul, &[a.clone(), b.clone()], &floats(&[10.0, 13.0, 28.0, 40.0], &[2, 2]));
    check(TensorOp::MatMul, &[a.clone(), counted(&[3])], &floats(&[5.0, 14.0], &[2]));
    check(TensorOp::MatMul, &[counted(&[2]), a.clone()], &floats(&[3.0, 4.0, 5.0], &[3]));
    check(TensorOp::MatMul, &[counted(&[3]), counted(&[3])], &floats(&[5.0], &[]));
    let batch = [counted(&[2, 1, 1, 3]), counted(&[2, 3, 1])];
    check(TensorOp::MatMul, &batch, &floats(&[5.0, 14.0, 14.0, 50.0], &[2, 2, 1, 1]));
    check(TensorOp::MatMul, &[counted(&[2, 0]), counted(&[0, 1])], &floats(&[0.0; 2], &[2, 1]));
    let [a, b] = [a, b].map(|x| x.cast(ElementType::I64).unwrap());
    check(TensorOp::MatMul, &[a.clone(), b], &ints(&[10, 13, 28, 40], &[2, 2]));
    assert!(evaluate(&TensorOp::MatMul, &[a.clone(), a]).is_err());
}

#[test]
fn reductions() {
    let of = |reduction, keep| TensorOp::Reduce { reduction, keep, empty_is_none: false };
    let x = counted(&[2, 3, 2]);
    let along = |axes: &[i64]| [x.clone(), ints_1d(axes)];
    check(of(Reduction::Sum, false), &along(&[1]), &floats(&[6.0, 9.0, 24.0, 27.0], &[2, 2]));
    check(of(Reduction::Mean, true), &along(&[-1]), &floats(&[0.5, 2.5, 4.5, 6.5, 8.5, 10.5], &[2, 3, 1]));
    check(of(Reduction::Max, false), &along(&[0, 2]), &floats(&[7.0, 9.0, 11.0], &[3]));
    check(of(Reduction::SumSquare, false), std::slice::from_ref(&x), &floats(&[506.0], &[]));
    check(of(Reduction::LogSumExp, false), &[floats(&[1000.0, 1000.0], &[2])], &floats(&[1000.6931], &[]));
    check(of(Reduction::Max, false), &[counted(&[0, 2]), ints_1d(&[0])], &floats(&[-f32::INFINITY; 2], &[2]));
    check(of(Reduction::Mean, false), &[ints_1d(&[-3, 0])], &ints(&[-1], &[]));
    check(of(Reduction::Min, false), &[bools(&[true, false], &[2])], &bools(&[false], &[]));
    let none = TensorOp::Reduce { reduction: Reduction::L1, keep: true, empty_is_none: true };
    check(none, &[floats(&[-1.0, 2.0], &[2]), ints_1d(&[])], &floats(&[1.0, 2.0], &[2]));
    assert!(matches!(evaluate(&of(Reduction::Sum, true), &along(&[3])), Err(ArrayError::Axis { .. })));
    assert!(matches!(evaluate(&of(Reduction::Sum, true), &along(&[1, -2])), Err(ArrayError::Axis { .. })));
    check(
        TensorOp::GlobalPool(Reduction::Mean),
        &[counted(&[1, 2, 2, 1])],
        &floats(&[0.5, 2.5], &[1, 2, 1, 1]),
    );

    let x = floats(&[1.0, 3.0, 3.0, 2.0, 0.0, 0.0], &[2, 3]);
    let arg = |axis, keep, last, smallest| TensorOp::ArgMax { axis, keep, last, smallest };
    check(arg(1, false, false, false), std::slice::from_ref(&x), &ints_1d(&[1, 0]));
    check(arg(-1, true, true, false), std::slice::from_ref(&x), &ints(&[2, 0], &[2, 1]));
    check(arg(0, false, false, true), &[x], &ints_1d(&[0, 1, 1]));
}

#[test]
fn normalisations() {
    let x = floats(&[0.0, f32::ln(3.0), 0.0, 0.0], &[2, 2]);
    let soft = |axis, log| TensorOp::Softmax { axis, log };
    check(soft(-1, false), std::slice::from_ref(&x), &floats(&[0.25, 0.75, 0.5, 0.5], &[2, 2]));
    check(soft(0, false), std::slice::from_ref(&x), &floats(&[0.5, 0.75, 0.5, 0.25], &[2, 2]));
    check(soft(1, true), &[x], &floats(&[-1.386_294_4, -0.287_682_1, -LN_2, -LN_2], &[2, 2]));
    let normal = TensorOp::Normalize { axis: -1, epsilon: 0.0 };
    check(normal, &[floats(&[1.0, 3.0, 5.0, 5.0 + 2.0], &[2, 2])], &floats(&[-1.0, 1.0, -1.0, 1.0], &[2, 2]));
    let lrn = TensorOp::Lrn { alpha: 2.0, beta: 1.0, bias: 1.0, size: 2 };
    check(lrn, &[floats(&[1.0, 2.0, 3.0], &[1, 3])], &floats(&[1.0 / 6.0, 2.0 / 14.0, 3.0 / 10.0], &[1, 3]));
}

#[test]
fn layouts() {
    let x = counted(&[2, 3]);
    let only = std::slice::from_ref(&x);
    check(TensorOp::Transpose(vec![]), only, &floats(&[0.0, 3.0, 1.0, 4.0, 2.0, 5.0], &[3, 2]));
    let reshape = |allow_zero| TensorOp::Reshape { allow_zero };
    check(reshape(false), &[x.clone(), ints_1d(&[0, 1, -1])], &counted(&[2, 1, 3]));
    assert!(evaluate(&reshape(false), &[x.clone(), ints_1d(&[4, -1])]).is_err());
    assert!(evaluate(&reshape(false), &[x.clone(), ints_1d(&[-1, -1])]).is_err());
    check(reshape(true), &[counted(&[0]), ints_1d(&[5, 0])], &counted(&[5, 0]));
    check(TensorOp::Flatten { axis: 2 }, only, &counted(&[6, 1]));
    check(TensorOp::Flatten { axis: -1 }, only, &counted(&[2, 3]));
    check(TensorOp::Squeeze, &[counted(&[1, 2, 1]), ints_1d(&[-1])], &counted(&[1, 2]));
    check(TensorOp::Squeeze, &[counted(&[1, 2, 1])], &counted(&[2]));
    check(TensorOp::Unsqueeze, &[counted(&[2]), ints_1d(&[-1, 0])], &counted(&[1, 2, 1]));
    check(TensorOp::Expand, &[counted(&[2, 1]), ints_1d(&[2])], &floats(&[0.0, 0.0, 1.0, 1.0], &[2, 2]));
    check(
        TensorOp::Concat { axis: -1 },
        &[counted(&[2, 1]), x.clone()],
        &floats(&[0.0, 0.0, 1.0, 2.0, 1.0, 3.0, 4.0, 5.0], &[2, 4]),
    );
    check(TensorOp::Shape { start: -1, end: None }, only, &ints_1d(&[3]));
    check(TensorOp::Shape { start: 5, end: Some(1) }, only, &ints_1d(&[]));
    check(TensorOp::Range, &[ints(&[10], &[]), ints(&[4], &[]), ints(&[-4], &[])], &ints_1d(&[10, 6]));
    let (start, end, step) = (floats(&[1.0], &[]), floats(&[2.0], &[]), floats(&[0.4], &[]));
    check(TensorOp::Range, &[start, end, step], &floats(&[1.0, 1.4, 1.8], &[3]));
    check(
        TensorOp::Tile,
        &[counted(&[1, 2]), ints_1d(&[2, 2])],
        &floats(&[0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0], &[2, 4]),
    );
    let depth = |channels_first| TensorOp::DepthToSpace { block: 2, channels_first };
    let x = counted(&[1, 8, 1, 1]);
    check(
        depth(false),
        std::slice::from_ref(&x),
        &floats(&[0.0, 2.0, 4.0, 6.0, 1.0, 3.0, 5.0, 7.0], &[1, 2, 2, 2]),
    );
    check(depth(true), &[x], &counted(&[1, 2, 2, 2]));
}

#[test]
fn parts_of_axes() {
    let slice = |x: &Array, starts: &[i64], ends: &[i64], axes: &[i64], steps: &[i64]| {
        let of = [x.clone(), ints_1d(starts), ints_1d(ends), ints_1d(axes), ints_1d(steps)];
        evaluate(&TensorOp::Slice, &of)
    };
    let x = counted(&[2, 4]);
    let found = slice(&x, &[0, -3], &[1, i64::MAX], &[0, 1], &[1, 2]);
    assert_eq!(found, Ok(floats(&[1.0, 3.0], &[1, 2])));
    assert_eq!(slice(&counted(&[4]), &[-1], &[i64::MIN], &[0], &[-3]), Ok(floats(&[3.0, 0.0], &[2])));
    assert_eq!(slice(&counted(&[4]), &[9], &[-9], &[0], &[i64::MIN]), Ok(floats(&[3.0], &[1])));
    assert_eq!(slice(&counted(&[0]), &[9], &[-9], &[0], &[-1]), Ok(counted(&[0])));
    assert!(slice(&x, &[0], &[1], &[0], &[0]).is_err());
    assert!(slice(&x, &[0, 0], &[1, 1], &[0, -2], &[1, 1]).is_err());

    let part = |index, of| TensorOp::Part { axis: -1, index, of };
    check(part(2, 3), &[counted(&[7])], &floats(&[6.0], &[1]));
    check(part(1, 2), &[counted(&[2, 3]), ints_1d(&[2, 1])], &floats(&[2.0, 5.0], &[2, 1]));
    assert!(evaluate(&part(1, 2), &[counted(&[2, 3]), ints_1d(&[2, 2])]).is_err());

    let gather = TensorOp::Gather { axis: 1 };
    check(
        gather.clone(),
        &[counted(&[2, 2]), ints(&[-1, 0], &[1, 2])],
        &floats(&[1.0, 0.0, 3.0, 2.0], &[2, 1, 2]),
    );
    check(gather.clone(), &[counted(&[2, 2]), ints(&[1], &[])], &floats(&[1.0, 3.0], &[2]));
    assert!(evaluate(&gather, &[counted(&[2, 2]), ints(&[2], &[])]).is_err());

    let pad = |mode, x: Array, pads: &[i64]| {
        evaluate(&TensorOp::Pad(mode), &[x, ints_1d(pads), floats(&[9.0], &[])])
    };
    let line = |values: &[f32]| Ok(floats(values, &[values.len()]));
    let x = || counted(&[3]);
    assert_eq!(pad(PadMode::Constant, x(), &[1, 2]), line(&[9.0, 0.0, 1.0, 2.0, 9.0, 9.0]));
    assert_eq!(pad(PadMode::Constant, x(), &[-1, 1]), line(&[1.0, 2.0, 9.0]));
    assert_eq!(pad(PadMode::Edge, x(), &[2, 1]), line(&[0.0, 0.0, 0.0, 1.0, 2.0, 2.0]));
    assert_eq!(pad(PadMode::Reflect, x(), &[3, 2]), line(&[1.0, 2.0, 1.0, 0.0, 1.0, 2.0, 1.0, 0.0]));
    assert_eq!(pad(PadMode::Wrap, x(), &[1, 4]), line(&[2.0, 0.0, 1.0, 2.0, 0.0, 1.0, 2.0, 0.0]));
    assert_eq!(pad(PadMode::Reflect, counted(&[1]), &[2, 0]), line(&[0.0, 0.0, 0.0]));
    assert!(pad(PadMode::Edge, counted(&[0]), &[2, 0]).is_err());
    assert!(pad(PadMode::Constant, x(), &[i64::MAX, i64::MAX]).is_err());
    let of_axis = [counted(&[1, 2]), ints_1d(&[1, 0]), floats(&[9.0], &[]), ints_1d(&[-1])];
    check(TensorOp::Pad(PadMode::Constant), &of_axis, &floats(&[9.0, 0.0, 1.0], &[1, 3]));
}

#[test]
fn convolutions() {
    let ones = |dims: &[usize]| floats(&vec![1.0; dims.iter().product()], dims);
    let plain = window(&[], &[], &[], Padding::Sizes(vec![]), 1);
    check(
        TensorOp::Conv(plain.clone()),
        &[counted(&[1, 1, 3, 3]), ones(&[1, 1, 2, 2]), floats(&[1.0], &[1])],
        &floats(&[9.0, 13.0, 21.0, 25.0], &[1, 1, 2, 2]),
    );
    let strided = window(&[3], &[2], &[], Padding::SameUpper, 1);
    check(
        TensorOp::Conv(strided),
        &[counted(&[1, 2, 4]), ones(&[1, 2, 3])],
        &floats(&[18.0, 2.0 + 3.0 + 6.0 + 7.0], &[1, 1, 2]),
    );
    let up = TensorOp::ConvTranspose {
        window: window(&[], &[2], &[], Padding::Sizes(vec![]), 1),
        output_padding: vec![1],
        output_shape: vec![],
    };
    check(
        up,
        &[counted(&[1, 1, 3]), ones(&[1, 1, 3]), floats(&[1.0], &[1])],
        &floats(&[1.0, 1.0, 2.0, 2.0, 4.0, 3.0, 3.0, 1.0], &[1, 1, 8]),
    );
    for bad in [
        window(&[], &[0, 1], &[], Padding::Sizes(vec![]), 1),
        window(&[], &[1], &[], Padding::Sizes(vec![]), 1),
        window(&[], &[], &[usize::MAX, 1], Padding::Sizes(vec![]), 1),
        window(&[], &[], &[], Padding::Sizes(vec![1]), 1),
        window(&[3, 3], &[], &[], Padding::Sizes(vec![]), 1),
        window(&[], &[], &[], Padding::Sizes(vec![]), 0),
        window(&[], &[], &[4, 4], Padding::Sizes(vec![]), 1),
    ] {
        assert!(evaluate(&TensorOp::Conv(bad), &[counted(&[1, 1, 3, 3]), ones(&[1, 1, 2, 2])]).is_err());
    }
}

#[test]
fn pools_round_up_without_windows_in_the_padding() {
    let x = counted(&[1, 1, 4]);
    let of = |kernel, stride, pads: [usize; 2], kind, ceil| TensorOp::Pool {
        kind,
        window: window(&[kernel], &[stride], &[], Padding::Sizes(pads.to_vec()), 1),
        ceil,
    };
    let average = |count_padding| Pool::Average { count_padding };
    let only = std::slice::from_ref(&x);
    check(of(3, 2, [0, 0], Pool::Max, false), only, &floats(&[2.0], &[1, 1, 1]));
    check(of(3, 2, [0, 0], Pool::Max, true), only, &floats(&[2.0, 3.0], &[1, 1, 2]));
    check(of(3, 2, [0, 0], average(true), true), only, &floats(&[1.0, 2.5], &[1, 1, 2]));
    check(of(2, 4, [0, 1], average(true), true), only, &floats(&[0.5], &[1, 1, 1]));
    check(of(2, 2, [1, 1], average(true), false), only, &floats(&[0.0, 1.5, 1.5], &[1, 1, 3]));
    check(of(2, 2, [1, 1], average(false), false), only, &floats(&[0.0, 1.5, 3.0], &[1, 1, 3]));
    check(
        of(2, 2, [0, 0], Pool::Max, false),
        &[ints(&[3, 1, -2, -5], &[1, 1, 4])],
        &ints(&[3, -2], &[1, 1, 2]),
    );
    assert!(evaluate(&of(0, 2, [0, 0], Pool::Max, false), only).is_err());
    assert!(evaluate(&of(5, 2, [0, 0], Pool::Max, false), only).is_err());
}

#[test]
fn other_sizes() {
    let resize = |mode, coordinates, by, antialias| {
        TensorOp::Resize(Resize { axes: vec![-1], by, mode, coordinates, antialias, exclude_outside: false })
    };
    use Coordinates::{AlignCorners, Asymmetric, Crop, HalfPixel};
    let x = counted(&[1, 4]);
    let nearest = Interpolation::Nearest(Nearest::Floor);
    let to = |size| [x.clone(), ints_1d(&[size])];
    check(
        resize(nearest, Asymmetric, ResizeBy::Sizes, false),
        &to(6),
        &floats(&[0.0, 0.0, 1.0, 2.0, 2.0, 3.0], &[1, 6]),
    );
    check(
        resize(Interpolation::Linear, HalfPixel, ResizeBy::Sizes, false),
        &to(8),
        &floats(&[0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0], &[1, 8]),
    );
    check(
        resize(Interpolation::Linear, AlignCorners, ResizeBy::Scales, false),
        &[x.clone(), floats(&[0.6], &[1])],
        &floats(&[0.0, 2.142_857], &[1, 2]),
    );
    for (exclude_outside, expected) in [(false, [0.625, 2.375]), (true, [5.0 / 7.0, 16.0 / 7.0])] {
        let TensorOp::Resize(op) = resize(Interpolation::Linear, HalfPixel, ResizeBy::Sizes, true) else {
            panic!()
        };
        check(TensorOp::Resize(Resize { exclude_outside, ..op }), &to(2), &floats(&expected, &[1, 2]));
    }
    check(
        resize(Interpolation::Cubic { a: -0.75 }, HalfPixel, ResizeBy::Sizes, false),
        &to(2),
        &floats(&[0.40625, 2.59375], &[1, 2]),
    );
    let crop = [x.clone(), ints_1d(&[3]), floats(&[0.5, 1.5], &[2])];
    check(
        resize(Interpolation::Linear, Crop { outside: 9.0 }, ResizeBy::Sizes, false),
        &crop,
        &floats(&[1.5, 3.0, 9.0], &[1, 3]),
    );
    let aspect = Resize {
        axes: vec![],
        by: ResizeBy::NotLarger,
        mode: nearest,
        coordinates: Asymmetric,
        antialias: false,
        exclude_outside: false,
    };
    check(TensorOp::Resize(aspect), &[counted(&[2, 2]), ints_1d(&[1, 4])], &counted(&[1, 1]));
    for bad in [f32::NAN, -1.0, 0.0, 1e30, f32::INFINITY] {
        let op = resize(nearest, Asymmetric, ResizeBy::Scales, false);
        assert!(evaluate(&op, &[x.clone(), floats(&[bad], &[1])]).is_err(), "{bad}");
    }
}

/// A convolution, an average and a maximum, element by element.
fn naive(x: &Array, weight: &Array, window: &Window, pads: &[usize]) -> [Vec<f32>; 3] {
    let (x, weight) = (x.as_f32().unwrap(), weight.as_f32().unwrap());
    let (c, o) = (weight.shape()[1], weight.shape()[0]);
    let at = |axis: usize, out: usize, k: usize| {
        let place = out * window.stride[axis] + k * window.dilation[axis];
        place.checked_sub(pads[axis]).filter(|place| *place < x.shape()[axis + 2])
    };
    let size = |axis: usize| {
        let extent = (weight.shape()[axis + 2] - 1) * window.dilation[axis] + 1;
        (x.shape()[axis + 2] + pads[axis] + pads[2 + axis])
            .checked_sub(extent)
            .map_or(0, |left| left / window.stride[axis] + 1)
    };
    let [mut conv, mut mean, mut max] = [const { Vec::new() }; 3];
    for n in 0..x.shape()[0] {
        for out in 0..o {
            for (y, z) in (0..size(0)).flat_map(|y| (0..size(1)).map(move |z| (y, z))) {
                let mut sum = 0.0;
                for channel in 0..c {
                    for (k, l) in
                        (0..weight.shape()[2]).flat_map(|k| (0..weight.shape()[3]).map(move |l| (k, l)))
                    {
                        if let (Some(row), Some(column)) = (at(0, y, k), at(1, z, l)) {
                            sum += x[[n, out / (o / window.groups) * c + channel, row, column]]
                                * weight[[out, channel, k, l]];
                        }
                    }
                }
                conv.push(sum);
            }
        }
        for channel in 0..x.shape()[1] {
            for (y, z) in (0..size(0)).flat_map(|y| (0..size(1)).map(move |z| (y, z))) {
                let (mut sum, mut count, mut most) = (0.0, 0.0, f32::NEG_INFINITY);
                for (k, l) in (0..weight.shape()[2]).flat_map(|k| (0..weight.shape()[3]).map(move |l| (k, l)))
                {
                    if let (Some(row), Some(column)) = (at(0, y, k), at(1, z, l)) {
                        sum += x[[n, channel, row, column]];
                        count += 1.0;
                        most = most.max(x[[n, channel, row, column]]);
                    }
                }
                mean.push(sum / count);
                max.push(most);
            }
        }
    }
    [conv, mean, max]
}

fn near(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() < 1e-3)
}

/// Numbers that look random.
fn noise(dims: &[usize], seed: usize) -> Array {
    let len = dims.iter().product::<usize>();
    let values = (0..len).map(|at| ((at + seed) * 7919 % 31) as f32 / 8.0 - 2.0);
    floats(&values.collect::<Vec<_>>(), dims)
}

proptest! {
    #[test]
    fn windows_are_those_of_loops(
        batch in 1usize..3, groups in 1usize..4, c in 1usize..4, o in 1usize..4, size in [1usize..12, 1..12],
        kernel in [1usize..4, 1..4], stride in prop::array::uniform2(1usize..4), dilation in prop::array::uniform2(1usize..3),
        pads in prop::array::uniform4(0usize..3), seed in 0usize..1000,
    ) {
        let x = noise(&[batch, groups * c, size[0], size[1]], seed);
        let weight = noise(&[groups * o, c, kernel[0], kernel[1]], seed + 5);
        let window = window(&kernel, &stride, &dilation, Padding::Sizes(pads.to_vec()), groups);
        let [conv, mean, max] = naive(&x, &weight, &window, &pads);
        let found = evaluate(&TensorOp::Conv(window.clone()), &[x.clone(), weight.clone()]);
        prop_assert_eq!(found.is_err(), conv.is_empty());
        let Ok(found) = found else { return Ok(()) };
        prop_assert!(near(&dense(found.as_f32().unwrap()), &conv));
        for (kind, expected) in [(Pool::Max, max), (Pool::Average { count_padding: false }, mean)] {
            let pool = TensorOp::Pool { kind, window: window.clone(), ceil: false };
            let found = evaluate(&pool, std::slice::from_ref(&x)).unwrap();
            prop_assert!(near(&dense(found.as_f32().unwrap()), &expected), "{:?}", kind);
        }
        // A transposed convolution is the adjoint: <conv(x), y> = <x, transpose(y)>.
        let y = noise(found.dims(), seed + 9);
        let left = |at: usize| {
            let covered = (found.dims()[at + 2] - 1) * stride[at] + (kernel[at] - 1) * dilation[at] + 1;
            size[at] + pads[at] + pads[at + 2] - covered
        };
        let back = TensorOp::ConvTranspose { window, output_padding: vec![left(0), left(1)], output_shape: vec![] };
        let back = evaluate(&back, &[y.clone(), weight]).unwrap();
        prop_assert_eq!(back.dims(), x.dims());
        let dot = |a: &Array, b: &Array| (&a.as_f32().unwrap().view() * b.as_f32().unwrap()).sum();
        let [there, back] = [dot(&found, &y), dot(&x, &back)];
        prop_assert!((there - back).abs() <= 1e-3 * (10.0 + there.abs()), "{} {}", there, back);
    }
}

/// Few numbers, most of them strange ones.
fn number() -> impl Strategy<Value = i64> {
    prop_oneof![6 => -3i64..5, 1 => Just(i64::MIN), 1 => Just(i64::MAX), 1 => Just(1 << 40), 1 => Just(-(1 << 33))]
}

fn count() -> impl Strategy<Value = usize> {
    prop_oneof![8 => 0usize..4, 1 => Just(usize::MAX), 1 => Just(1usize << 40)]
}

fn step() -> impl Strategy<Value = usize> {
    prop_oneof![9 => count(), 1 => Just(1usize << 31)]
}

fn any_array() -> impl Strategy<Value = Array> {
    let dims = prop::collection::vec(0usize..5, 0..5);
    (dims, 0usize..4, number()).prop_map(|(dims, kind, seed)| {
        let len = dims.iter().product::<usize>();
        let small = |at: usize| (at as i64 * 7 + (seed & 15)) % 5 - 2;
        match kind {
            0 | 1 => floats(&(0..len).map(|at| small(at) as f32 / 2.0).collect::<Vec<_>>(), &dims),
            2 => ints(&(0..len).map(|at| if at == 1 { seed } else { small(at) }).collect::<Vec<_>>(), &dims),
            _ => bools(&(0..len).map(|at| small(at) > 0).collect::<Vec<_>>(), &dims),
        }
    })
}

fn any_list() -> impl Strategy<Value = Array> {
    prop::collection::vec(number(), 0..6).prop_map(|values| ints_1d(&values))
}

fn any_input() -> impl Strategy<Value = Array> {
    prop_oneof![3 => any_array(), 2 => any_list(), 1 => (-2f32..4.0).prop_map(|x| floats(&[x], &[]))]
}

fn any_window() -> impl Strategy<Value = Window> {
    let sizes = || prop::collection::vec(count(), 0..4);
    let padding = prop_oneof![
        3 => prop::collection::vec(count(), 0..5).prop_map(Padding::Sizes),
        1 => Just(Padding::SameUpper),
        1 => Just(Padding::SameLower)
    ];
    (sizes(), sizes(), sizes(), padding, count()).prop_map(|(kernel, stride, dilation, padding, groups)| {
        Window { kernel, stride, dilation, padding, groups }
    })
}

fn any_resize() -> impl Strategy<Value = TensorOp> {
    use Coordinates::{AlignCorners, Asymmetric, Crop, HalfPixel, HalfPixelSymmetric, PytorchHalfPixel};
    let by = prop::sample::select(vec![
        ResizeBy::Scales,
        ResizeBy::Sizes,
        ResizeBy::NotLarger,
        ResizeBy::NotSmaller,
    ]);
    let mode = prop::sample::select(vec![
        Interpolation::Nearest(Nearest::RoundPreferFloor),
        Interpolation::Nearest(Nearest::Ceil),
        Interpolation::Linear,
        Interpolation::Cubic { a: -0.75 },
    ]);
    let coordinates = prop::sample::select(vec![
        AlignCorners,
        Asymmetric,
        Crop { outside: 1.0 },
        HalfPixel,
        HalfPixelSymmetric,
        PytorchHalfPixel,
    ]);
    let axes = prop::collection::vec(-3isize..3, 0..3);
    (axes, by, mode, coordinates, any::<[bool; 2]>()).prop_map(
        |(axes, by, mode, coordinates, [antialias, exclude_outside])| {
            TensorOp::Resize(Resize { axes, by, mode, coordinates, antialias, exclude_outside })
        },
    )
}

fn any_op() -> impl Strategy<Value = TensorOp> {
    let axis = || prop_oneof![8 => -4isize..4, 1 => Just(isize::MIN), 1 => Just(isize::MAX)];
    let unary = prop::sample::select(vec![
        Unary::Abs,
        Unary::Not,
        Unary::Neg,
        Unary::Gelu,
        Unary::Elu { alpha: 1.0 },
    ]);
    use Binary::{Add, And, Div, Equal, Fmod, Max, Mod, Mul, Pow, Prelu, Sub, Xor};
    let binary = prop::sample::select(vec![Add, And, Div, Equal, Fmod, Max, Mod, Mul, Pow, Prelu, Sub, Xor]);
    use Reduction::{L2, LogSumExp, Max as Most, Mean, Prod, Sum};
    let reduction = || prop::sample::select(vec![L2, LogSumExp, Mean, Most, Prod, Sum]);
    let mode = prop::sample::select(vec![PadMode::Constant, PadMode::Reflect, PadMode::Edge, PadMode::Wrap]);
    let kind = prop::sample::select(vec![
        Pool::Max,
        Pool::Average { count_padding: true },
        Pool::Average { count_padding: false },
    ]);
    let element =
        prop::sample::select(vec![ElementType::F16, ElementType::U8, ElementType::I64, ElementType::Bool]);
    let simple = prop::sample::select(vec![
        TensorOp::Where,
        TensorOp::MatMul,
        TensorOp::ChannelAffine,
        TensorOp::Squeeze,
        TensorOp::Unsqueeze,
        TensorOp::Expand,
        TensorOp::Slice,
        TensorOp::Tile,
        TensorOp::Range,
    ]);
    prop_oneof![
        4 => simple,
        1 => element.prop_map(TensorOp::Cast),
        1 => unary.prop_map(TensorOp::Unary),
        1 => binary.prop_map(TensorOp::Binary),
        1 => (reduction(), any::<[bool; 2]>()).prop_map(|(reduction, [keep, empty_is_none])| {
            TensorOp::Reduce { reduction, keep, empty_is_none }
        }),
        1 => reduction().prop_map(TensorOp::GlobalPool),
        1 => (axis(), any::<[bool; 3]>()).prop_map(|(axis, [keep, last, smallest])| {
            TensorOp::ArgMax { axis, keep, last, smallest }
        }),
        1 => (axis(), any::<bool>()).prop_map(|(axis, log)| TensorOp::Softmax { axis, log }),
        1 => axis().prop_map(|axis| TensorOp::Normalize { axis, epsilon: 1e-5 }),
        1 => count().prop_map(|size| TensorOp::Lrn { alpha: 1.0, beta: 0.5, bias: 1.0, size }),
        1 => prop::collection::vec(count(), 0..5).prop_map(TensorOp::Transpose),
        1 => any::<bool>().prop_map(|allow_zero| TensorOp::Reshape { allow_zero }),
        1 => axis().prop_map(|axis| TensorOp::Flatten { axis }),
        1 => axis().prop_map(|axis| TensorOp::Concat { axis }),
        1 => (axis(), count(), count()).prop_map(|(axis, index, of)| TensorOp::Part { axis, index, of }),
        1 => axis().prop_map(|axis| TensorOp::Gather { axis }),
        1 => mode.prop_map(TensorOp::Pad),
        1 => (axis(), prop::option::of(axis())).prop_map(|(start, end)| TensorOp::Shape { start, end }),
        1 => (count(), any::<bool>()).prop_map(|(block, channels_first)| {
            TensorOp::DepthToSpace { block, channels_first }
        }),
        3 => any_window().prop_map(TensorOp::Conv),
        3 => (any_window(), prop::collection::vec(count(), 0..3), prop::collection::vec(count(), 0..3)).prop_map(
            |(window, output_padding, output_shape)| TensorOp::ConvTranspose { window, output_padding, output_shape }
        ),
        3 => (kind, any_window(), any::<bool>()).prop_map(|(kind, window, ceil)| TensorOp::Pool { kind, window, ceil }),
        3 => any_resize(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]
    #[test]
    fn strange_windows_are_errors(
        size in [0usize..5, 1..4], kernel in [0usize..4, 1..3], stride in [step(), step()], dilation in [step(), step()],
        pads in prop::array::uniform4(0usize..6), same in 0usize..5, given in prop::option::of([0usize..9, 0..9]), ceil: bool,
    ) {
        let padding = match same {
            0 => Padding::SameUpper,
            1 => Padding::SameLower,
            _ => Padding::Sizes(pads.to_vec()),
        };
        let mut window = window(&kernel, &stride, &dilation, padding, 1);
        let x = noise(&[1, 2, size[0], size[1]], 1);
        for weight in [noise(&[2, 2, kernel[0], kernel[1]], 2), noise(&[2, 1, kernel[0], kernel[1]], 3)] {
            window.groups = 2 / weight.dims()[1];
            let _ = evaluate(&TensorOp::Conv(window.clone()), &[x.clone(), weight.clone()]);
            let output_shape = given.map_or(vec![], |given| given.to_vec());
            let back = TensorOp::ConvTranspose { window: window.clone(), output_padding: vec![], output_shape };
            // Such steps make results that are allowed, but have no place in a test.
            if stride.iter().chain(&dilation).all(|step| *step != 1 << 31) {
                let _ = evaluate(&back, &[x.clone(), weight]);
            }
        }
        for kind in [Pool::Max, Pool::Average { count_padding: true }] {
            let _ = evaluate(&TensorOp::Pool { kind, window: window.clone(), ceil }, std::slice::from_ref(&x));
        }
    }

    #[test]
    fn nothing_panics(op in any_op(), inputs in prop::collection::vec(any_input(), 0..6), more in any_list()) {
        for count in 0..=inputs.len() {
            let _ = evaluate(&op, &inputs[..count]);
        }
        if let Some(x) = inputs.first() {
            let lists = [more.clone(), more.clone(), more.clone(), more];
            for count in 0..=4 {
                let _ = evaluate(&op, &[&[x.clone()][..], &lists[..count]].concat());
            }
            // Windows and functions take arrays of the same rank.
            let _ = evaluate(&op, &[x.clone(), x.clone()]);
        }
    }
}
