//! Layout ops against fixed results of NumPy.

use lapis::ErrorKind;
use lapis::ops::{Indexing, PadMode};
use lapis::prelude::*;

fn iota(shape: &[i64]) -> Array {
    let n: i64 = shape.iter().product();
    ops::arange(0, n, 1, None).unwrap().reshape(shape)
}

#[track_caller]
fn is(a: &Array, shape: &[usize], values: &[i32]) {
    assert_eq!(a.shape(), shape);
    assert_eq!(a.to_vec::<i32>().unwrap(), values);
}

#[track_caller]
fn fails<T>(result: Result<T>, kind: ErrorKind, text: &str) {
    let error = result.err().expect("an error");
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.message().contains(text), "{error}");
}

#[test]
fn axes_merge_split_come_and_go() {
    let a = iota(&[2, 3, 4]);
    assert_eq!(a.flatten(0, -1).shape(), [24]);
    assert_eq!(a.flatten(1, 2).shape(), [2, 12]);
    assert_eq!(a.flatten(-2, 7).shape(), [2, 12]);
    assert_eq!(array(3).flatten(0, -1).shape(), [1]);
    fails(ops::flatten(&a, 2, 1), ErrorKind::Axis, "axes 2 to 1");
    assert_eq!(a.unflatten(-1, &[2, -1]).shape(), [2, 3, 2, 2]);
    fails(ops::unflatten(&a, 1, &[2, 2]), ErrorKind::Shape, "(2,2)");
    let b = a.expand_dims([0, -1]);
    assert_eq!(b.shape(), [1, 2, 3, 4, 1]);
    assert_eq!(b.squeeze(()).shape(), [2, 3, 4]);
    assert_eq!(b.squeeze(-1).shape(), [1, 2, 3, 4]);
    fails(ops::squeeze(&b, 1), ErrorKind::Shape, "axis 1");
    fails(ops::expand_dims(&a, [0, 0]), ErrorKind::Axis, "twice");
    assert_eq!(ops::atleast_3d(&array([1, 2])).unwrap().shape(), [1, 2, 1]);
    assert_eq!(ops::atleast_3d(&array([[1, 2]])).unwrap().shape(), [1, 2, 1]);
    assert_eq!(ops::atleast_2d(&array([1, 2])).unwrap().shape(), [1, 2]);
    assert_eq!(ops::atleast_1d(&array(1)).unwrap().shape(), [1]);
}

#[test]
fn axes_move() {
    let a = iota(&[2, 3, 2]);
    assert_eq!(a.moveaxis(0, -1).shape(), [3, 2, 2]);
    is(&a.moveaxis(0, 1), &[3, 2, 2], &[0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]);
    is(&a.swapaxes(0, 1), &[3, 2, 2], &[0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]);
    is(&iota(&[2, 3]).mt(), &[3, 2], &[0, 3, 1, 4, 2, 5]);
    fails(ops::matrix_transpose(&array([1])), ErrorKind::Axis, "(1,)");
    fails(ops::moveaxis(&a, 3, 0), ErrorKind::Axis, "axis 3");
}

#[test]
fn arrays_join() {
    let a = iota(&[2, 2]);
    let b = &a + 10;
    is(&ops::concatenate(&[a.clone(), b.clone()], 0).unwrap(), &[4, 2], &[0, 1, 2, 3, 10, 11, 12, 13]);
    is(&ops::concatenate(&[a.clone(), b.clone()], 1).unwrap(), &[2, 4], &[0, 1, 10, 11, 2, 3, 12, 13]);
    is(&ops::concatenate(&[a.clone(), b.t()], -1).unwrap(), &[2, 4], &[0, 1, 10, 12, 2, 3, 11, 13]);
    is(&ops::concatenate(&[a.clone(), array([7])], None).unwrap(), &[5], &[0, 1, 2, 3, 7]);
    is(&ops::stack(&[a.clone(), b.clone()], 0).unwrap(), &[2, 2, 2], &[0, 1, 2, 3, 10, 11, 12, 13]);
    is(&ops::stack(&[a.clone(), b.clone()], -1).unwrap(), &[2, 2, 2], &[0, 10, 1, 11, 2, 12, 3, 13]);
    let mixed = ops::concatenate(&[a.clone(), array([[0.5f32, 1.5]])], 0).unwrap();
    assert_eq!(mixed.to_vec::<f32>().unwrap(), [0.0, 1.0, 2.0, 3.0, 0.5, 1.5]);
    let empty = ops::zeros::<i32>(&[0, 2]).unwrap();
    is(&ops::concatenate(&[empty.clone(), a.clone(), empty], 0).unwrap(), &[2, 2], &[0, 1, 2, 3]);
    fails(ops::concatenate(&[], 0), ErrorKind::Value, "at least one");
    fails(ops::concatenate(std::slice::from_ref(&a), 2), ErrorKind::Axis, "axis 2");
    fails(ops::concatenate(&[a.clone(), array([[1]])], 0), ErrorKind::Shape, "(1,1)");
    fails(ops::stack(&[a.clone(), array([1])], 0), ErrorKind::Shape, "(1,)");
}

#[test]
fn arrays_come_apart() {
    let a = iota(&[2, 4]);
    let parts = a.split(2, 1);
    is(&parts[1], &[2, 2], &[2, 3, 6, 7]);
    let parts = a.split([1, -1], 1);
    is(&parts[0], &[2, 1], &[0, 4]);
    is(&parts[1], &[2, 2], &[1, 2, 5, 6]);
    is(&parts[2], &[2, 1], &[3, 7]);
    assert_eq!(a.split([3, 1], 1).iter().map(|p| p.shape()[1]).collect::<Vec<_>>(), [3, 0, 3]);
    fails(ops::split(&a, 3, 1), ErrorKind::Value, "3 equal parts");
    fails(ops::split(&a, 0, 1), ErrorKind::Value, "0 equal parts");
    let rows = ops::unstack(&a, -1).unwrap();
    assert_eq!(rows.len(), 4);
    is(&rows[2], &[2], &[2, 6]);
}

#[test]
fn arrays_repeat() {
    let a = iota(&[2, 2]);
    is(&a.tile(&[2]), &[2, 4], &[0, 1, 0, 1, 2, 3, 2, 3]);
    is(&a.tile(&[2, 1, 1]), &[2, 2, 2], &[0, 1, 2, 3, 0, 1, 2, 3]);
    is(&a.tile(&[2, 2]), &[4, 4], &[0, 1, 0, 1, 2, 3, 2, 3, 0, 1, 0, 1, 2, 3, 2, 3]);
    assert_eq!(a.tile(&[0, 1]).shape(), [0, 2]);
    is(&a.repeat(2, None), &[8], &[0, 0, 1, 1, 2, 2, 3, 3]);
    is(&a.repeat(2, 0), &[4, 2], &[0, 1, 0, 1, 2, 3, 2, 3]);
    is(&a.repeat(2, -1), &[2, 4], &[0, 0, 1, 1, 2, 2, 3, 3]);
    assert_eq!(ops::broadcast_shapes(&[&[3, 1], &[1, 4], &[]]).unwrap().as_slice(), [3, 4]);
    let all = ops::broadcast_arrays(&[array([1, 2]), array([[1], [2]])]).unwrap();
    is(&all[1], &[2, 2], &[1, 1, 2, 2]);
    fails(ops::broadcast_shapes(&[&[3], &[2]]), ErrorKind::Shape, "(3,)");
}

#[test]
fn arrays_turn() {
    let a = iota(&[2, 3]);
    is(&a.flip(()), &[2, 3], &[5, 4, 3, 2, 1, 0]);
    is(&a.flip(1), &[2, 3], &[2, 1, 0, 5, 4, 3]);
    is(&a.roll([1], ()), &[2, 3], &[5, 0, 1, 2, 3, 4]);
    is(&a.roll([-1], 1), &[2, 3], &[1, 2, 0, 4, 5, 3]);
    is(&a.roll([1, 2], [0, 1]), &[2, 3], &[4, 5, 3, 1, 2, 0]);
    is(&a.roll([1], [1, 1]), &[2, 3], &[1, 2, 0, 4, 5, 3]);
    is(&a.roll([7], 0), &[2, 3], &[3, 4, 5, 0, 1, 2]);
    assert_eq!(ops::zeros::<i32>(&[0]).unwrap().roll([1], 0).shape(), [0]);
    fails(ops::roll(&a, [1, 2, 3], [0, 1]), ErrorKind::Value, "3 shifts for 2 axes");
}

#[test]
fn padding_has_four_modes() {
    let a = array([1, 2, 3]);
    is(&ops::pad(&a, 2, PadMode::Constant, 9).unwrap(), &[7], &[9, 9, 1, 2, 3, 9, 9]);
    is(&ops::pad(&a, (0, 2), PadMode::Edge, 0).unwrap(), &[5], &[1, 2, 3, 3, 3]);
    is(&ops::pad(&a, 5, PadMode::Reflect, 0).unwrap(), &[13], &[2, 1, 2, 3, 2, 1, 2, 3, 2, 1, 2, 3, 2]);
    is(&ops::pad(&a, 4, PadMode::Symmetric, 0).unwrap(), &[11], &[3, 3, 2, 1, 1, 2, 3, 3, 2, 1, 1]);
    is(&ops::pad(&array([7]), 2, PadMode::Reflect, 0).unwrap(), &[5], &[7, 7, 7, 7, 7]);
    let m = iota(&[2, 2]);
    is(
        &ops::pad(&m, [(1, 0), (0, 2)], PadMode::Constant, -1).unwrap(),
        &[3, 4],
        &[-1, -1, -1, -1, 0, 1, -1, -1, 2, 3, -1, -1],
    );
    is(&ops::pad(&m, [(1, 0), (1, 1)], PadMode::Edge, 0).unwrap(), &[3, 4], &[0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3]);
    let f = ops::pad(&array([1.5f32]), 1, PadMode::Constant, array(2)).unwrap();
    assert_eq!(f.to_vec::<f32>().unwrap(), [2.0, 1.5, 2.0]);
    is(&ops::pad(&ops::zeros::<i32>(&[0]).unwrap(), 1, PadMode::Constant, 3).unwrap(), &[2], &[3, 3]);
    let huge = ops::pad(&m, [(1 << 62, 0), (0, 0)], PadMode::Reflect, 0);
    fails(huge, ErrorKind::Overflow, "64-bit");
    fails(ops::pad(&m, [(1, 1)], PadMode::Constant, 0), ErrorKind::Value, "1 pairs");
    fails(ops::pad(&ops::zeros::<i32>(&[0]).unwrap(), 1, PadMode::Edge, 0), ErrorKind::Value, "empty");
}

#[test]
fn windows_move() {
    let a = iota(&[3, 4]);
    is(&ops::dynamic_slice(&a, &array([1, 2]), &[0, 1], &[2, 2]).unwrap(), &[2, 2], &[6, 7, 10, 11]);
    is(&ops::dynamic_slice(&a, &array(2u8), &[-1], &[1, 2]).unwrap(), &[1, 2], &[2, 3]);
    let b = ops::dynamic_slice_update(&a, &array([[-1, -2]]), &array([2, 1]), &[0, 1]).unwrap();
    is(&b, &[3, 4], &[0, 1, 2, 3, 4, 5, 6, 7, 8, -1, -2, 11]);
    is(
        &ops::slice_update(&a, -1, &[(None, None, 2), (Some(3), None, -2)]).unwrap(),
        &[3, 4],
        &[0, -1, 2, -1, 4, 5, 6, 7, 8, -1, 10, -1],
    );
    let outside = ops::dynamic_slice(&a, &array([2]), &[0], &[2, 4]).unwrap();
    fails(outside.eval(), ErrorKind::Index, "window of size 2 does not fit dimension 0 of size 3 from start 2");
    fails(ops::dynamic_slice(&a, &array([0]), &[0], &[4, 4]), ErrorKind::Shape, "(4,4)");
    fails(ops::dynamic_slice(&a, &array([0.0f32]), &[0], &[1, 1]), ErrorKind::Dtype, "float32");
    fails(ops::dynamic_slice(&a, &array([0]), &[0, 1], &[1, 1]), ErrorKind::Shape, "2 axes");
}

#[test]
fn regular_arrays() {
    let f = |a: Result<Array>| a.unwrap().to_vec::<f32>().unwrap();
    assert_eq!(f(ops::linspace(0, 1, 5, true, None)), [0.0, 0.25, 0.5, 0.75, 1.0]);
    assert_eq!(f(ops::linspace(0, 1, 4, false, None)), [0.0, 0.25, 0.5, 0.75]);
    assert_eq!(f(ops::linspace(3, 9, 1, true, None)), [3.0]);
    let whole = ops::linspace(0, 100, 101, true, Some(Dtype::Int32)).unwrap();
    assert_eq!(whole.to_vec::<i32>().unwrap(), (0..=100).collect::<Vec<_>>());
    assert_eq!(f(ops::eye(2, 3, 1, None)), [0.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
    assert_eq!(f(ops::identity(2, None)), [1.0, 0.0, 0.0, 1.0]);
    assert_eq!(f(ops::tri(3, 2, -1, None)), [0.0, 0.0, 1.0, 0.0, 1.0, 1.0]);
    let a = iota(&[3, 3]);
    is(&ops::tril(&a, 0).unwrap(), &[3, 3], &[0, 0, 0, 3, 4, 0, 6, 7, 8]);
    is(&ops::triu(&a, 1).unwrap(), &[3, 3], &[0, 1, 2, 0, 0, 5, 0, 0, 0]);
    is(&array([1, 2]).diag(1), &[3, 3], &[0, 1, 0, 0, 0, 2, 0, 0, 0]);
    is(&array([1, 2]).diag(-1), &[3, 3], &[0, 0, 0, 1, 0, 0, 0, 2, 0]);
    is(&a.diag(-1), &[2], &[3, 7]);
    is(&a.diag(3), &[0], &[]);
    is(&iota(&[2, 3]).diag(1), &[2], &[1, 5]);
    is(&iota(&[2, 3, 2]).diagonal(0, 0, 1), &[2, 2], &[0, 8, 1, 9]);
    is(&iota(&[2, 3, 2]).diagonal(1, 2, 1), &[2, 2], &[2, 5, 8, 11]);
    fails(ops::diagonal(&a, 0, 1, 1), ErrorKind::Axis, "twice");
    let grid = ops::meshgrid(&[array([1, 2, 3]), array([4, 5])], false, Indexing::Xy).unwrap();
    is(&grid[0], &[2, 3], &[1, 2, 3, 1, 2, 3]);
    is(&grid[1], &[2, 3], &[4, 4, 4, 5, 5, 5]);
    let grid = ops::meshgrid(&[array([1, 2, 3]), array([4, 5])], true, Indexing::Ij).unwrap();
    assert_eq!((grid[0].shape(), grid[1].shape()), ([3, 1].as_slice(), [1, 2].as_slice()));
    assert_eq!(ops::bartlett(5).unwrap().to_vec::<f32>().unwrap(), [0.0, 0.5, 1.0, 0.5, 0.0]);
    let close = |a: Array, want: &[f32]| {
        let got = a.to_vec::<f32>().unwrap();
        assert!(got.len() == want.len() && got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-7), "{got:?}");
    };
    close(ops::hanning(5).unwrap(), &[0.0, 0.5, 1.0, 0.5, 0.0]);
    close(ops::hamming(5).unwrap(), &[0.08, 0.54, 1.0, 0.54, 0.08]);
    close(ops::blackman(5).unwrap(), &[0.0, 0.34, 1.0, 0.34, 0.0]);
    close(ops::hanning(1).unwrap(), &[1.0]);
    close(ops::hanning(0).unwrap(), &[]);
}

#[test]
fn transposed_copies_keep_every_element() {
    for dtype in [Dtype::Uint8, Dtype::Int16, Dtype::Float32, Dtype::Int64] {
        for (n, m) in [(200i64, 130i64), (64, 64), (3, 500), (500, 3), (65, 9)] {
            let a = iota(&[2, n, m]).astype(dtype);
            let data = a.astype(Dtype::Int64).to_vec::<i64>().unwrap();
            let at = |b: i64, r: i64, c: i64| data[((b * n + r) * m + c) as usize];
            let t = a.transpose(&[2, 0, 1]);
            let want: Vec<i64> = (0..m)
                .flat_map(|c| (0..2).flat_map(move |b| (0..n).map(move |r| (b, r, c))))
                .map(|(b, r, c)| at(b, r, c))
                .collect();
            assert_eq!(ops::contiguous(&t, false).unwrap().astype(Dtype::Int64).to_vec::<i64>().unwrap(), want);
            let twice = ops::concatenate(&[t.flip(0), t.clone()], 1).unwrap().astype(Dtype::Int64);
            let back = ops::slice(&twice, &[(None, None, 1), (Some(2), None, 1)]).unwrap();
            assert_eq!(back.to_vec::<i64>().unwrap(), want);
            let front = ops::slice(&twice, &[(None, None, -1), (None, Some(2), 1)]).unwrap();
            assert_eq!(front.to_vec::<i64>().unwrap(), want);
        }
    }
}
