//! Reading and writing at indices: fixed results of NumPy, errors, and random indices against a plain loop.

use lapis::dtype::{bf16, c64, f16};
use lapis::ops::{Combine, Index};
use lapis::prelude::*;
use lapis::{ErrorKind, eval};

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
fn integers_and_ranges_are_views() {
    let a = iota(&[2, 3, 4]);
    is(&a.index(1).index(2), &[4], &[20, 21, 22, 23]);
    is(&a.index((1, 2)), &[4], &[20, 21, 22, 23]);
    is(&a.index((-1, -1, -1)), &[], &[23]);
    is(&a.index((.., 1)), &[2, 4], &[4, 5, 6, 7, 16, 17, 18, 19]);
    is(&a.index((Ellipsis, 0)), &[2, 3], &[0, 4, 8, 12, 16, 20]);
    is(&a.index((0, .., 1..3)), &[3, 2], &[1, 2, 5, 6, 9, 10]);
    is(&a.index((0, 0, (..).step(-1))), &[4], &[3, 2, 1, 0]);
    is(&a.index((0, 0, (-2..).step(-2))), &[2], &[2, 0]);
    is(&a.index((0, 0, ..-1)), &[3], &[0, 1, 2]);
    is(&a.index((0, 0, Index::range(1, -1, 1))), &[2], &[1, 2]);
    is(&a.index((0, 0, Index::range(-1, None, -3))), &[2], &[3, 0]);
    is(&a.index((0, 0, -3..=-1)), &[3], &[1, 2, 3]);
    is(&a.index((0, 0, 1..100)), &[3], &[1, 2, 3]);
    is(&a.index((0, 0, Index::range(3, 1, 1))), &[0], &[]);
    is(&a.index((0, NewAxis, 1, NewAxis)), &[1, 1, 4], &[4, 5, 6, 7]);
    is(&a.index((0usize, 1u8, 2i64)), &[], &[6]);
    assert_eq!(a.index(()).shape(), [2, 3, 4]);
    assert_eq!(a.index((NewAxis, Ellipsis, NewAxis)).shape(), [1, 2, 3, 4, 1]);
    is(&ops::index(&a, &[Index::At(0), Index::Ellipsis, Index::At(3)]).unwrap(), &[3], &[3, 7, 11]);
}

#[test]
fn index_arrays_follow_numpy() {
    let x = iota(&[2, 3, 4]);
    let i = array([0, -1]);
    assert_eq!(x.index(&i).shape(), [2, 3, 4]);
    is(&x.index((0, .., &i)), &[2, 3], &[0, 4, 8, 3, 7, 11]);
    is(&x.index((.., &i, &i)), &[2, 2], &[0, 11, 12, 23]);
    is(&x.index((0, NewAxis, &i)), &[2, 1, 4], &[0, 1, 2, 3, 8, 9, 10, 11]);
    assert_eq!(x.index((NewAxis, &i, Ellipsis, 0)).shape(), [2, 1, 3]);
    is(&x.index((.., &i, 1..3)), &[2, 2, 2], &[1, 2, 9, 10, 13, 14, 21, 22]);
    is(&x.index((1, &array([[0], [2]]), &i)), &[2, 2], &[12, 15, 20, 23]);
    is(&x.index((&array(1), 2)), &[4], &[20, 21, 22, 23]);
    is(&x.index((1, 2, [3, 0, 0])), &[3], &[23, 20, 20]);
    is(&x.t().index((&i, 1)), &[2, 2], &[4, 16, 7, 19]);
    for dtype in [Dtype::Int8, Dtype::Uint8, Dtype::Uint16, Dtype::Int16, Dtype::Uint32, Dtype::Int64, Dtype::Uint64] {
        is(&x.index((1, 2, &array([3, 0]).astype(dtype))), &[2], &[23, 20]);
    }
    assert_eq!(x.index((.., vec![0i32; 0])).shape(), [2, 0, 4]);
    is(&x.take(&array([5, -1]), None), &[2], &[5, 23]);
    is(&x.take(&array([[1, 0]]), 1).index((0, 0)), &[2, 4], &[4, 5, 6, 7, 0, 1, 2, 3]);
    is(&x.take(&array(1), -1), &[2, 3], &[1, 5, 9, 13, 17, 21]);
}

#[test]
fn masks_select() {
    let x = iota(&[2, 3]);
    is(&x.index(x.greater(3)), &[2], &[4, 5]);
    is(&x.index([false, true]), &[1, 3], &[3, 4, 5]);
    is(&x.index((.., vec![true, false, true])), &[2, 2], &[0, 2, 3, 5]);
    is(&x.index(([true, true], [0, 2])), &[2], &[0, 5]);
    is(&x.index((&array(true), 1)), &[1, 3], &[3, 4, 5]);
    assert_eq!(x.index(array(false)).shape(), [0, 2, 3]);
    let at = x.less(4).nonzero();
    assert_eq!(at[0].to_vec::<i64>().unwrap(), [0, 0, 0, 1]);
    assert_eq!(at[1].to_vec::<i64>().unwrap(), [0, 1, 2, 0]);
    fails(ops::index(&x, [true, false, true]), ErrorKind::Index, "mask of shape (3,) for axes of shape (2,)");
    fails(ops::index(&x, (.., [true, false])), ErrorKind::Index, "mask of shape (2,) for axes of shape (3,)");
}

#[test]
fn indices_out_of_range_are_errors() {
    let x = iota(&[2, 3]);
    fails(ops::index(&x, (0, 3)), ErrorKind::Index, "index 3 is out of range for axis 1 of size 3");
    fails(ops::index(&x, -3), ErrorKind::Index, "index -3 is out of range for axis 0 of size 2");
    fails(ops::index(&x, u64::MAX), ErrorKind::Index, "out of range");
    fails(ops::index(&x, (0, 0, 0)), ErrorKind::Index, "3 indices");
    fails(ops::index(&x, (Ellipsis, Ellipsis)), ErrorKind::Index, "ellipsis");
    fails(ops::index(&x, (..).step(0)), ErrorKind::Value, "step");
    fails(ops::index(&x, array([0.0f32])), ErrorKind::Dtype, "float32");
    fails(ops::index(&x, ([0, 1], [0, 1, 2])), ErrorKind::Shape, "(3,)");
    let late = x.index((.., [0, 1, -4]));
    fails(late.eval(), ErrorKind::Index, "index -4 is out of range for axis 1 of size 3");
    let late = x.take(&array([u64::MAX]), 0);
    fails(late.eval(), ErrorKind::Index, "index 18446744073709551615 is out of range for axis 0 of size 2");
    let late = x.take_along_axis(&array([[0, 5, 0]]), 0);
    fails(late.eval(), ErrorKind::Index, "index 5 is out of range for axis 0 of size 2");
    let late = x.index_update(([0, 7], 1), 1);
    fails(late.eval(), ErrorKind::Index, "index 7 is out of range for axis 0 of size 2");
    let late = x.put_along_axis(&array([[9], [0]]), 1, 1);
    fails(late.eval(), ErrorKind::Index, "index 9 is out of range for axis 1 of size 3");
    // The array that should have been written is as it was.
    is(&x, &[2, 3], &[0, 1, 2, 3, 4, 5]);
    let nothing = ops::zeros::<i32>(&[0, 3]).unwrap();
    fails(nothing.index([0]).eval(), ErrorKind::Index, "axis 0 of size 0");
}

#[test]
fn updates_replace() {
    let x = iota(&[2, 3]);
    is(&x.index_update(1, 9), &[2, 3], &[0, 1, 2, 9, 9, 9]);
    is(&x.index_update((.., 1), array([7, 8])), &[2, 3], &[0, 7, 2, 3, 8, 5]);
    is(&x.index_update((.., (..).step(-2)), array([7, 8])), &[2, 3], &[8, 1, 7, 8, 4, 7]);
    is(&x.index_update(Ellipsis, 4), &[2, 3], &[4; 6]);
    is(&x.index_update(NewAxis, array([[[1, 2, 3]]])), &[2, 3], &[1, 2, 3, 1, 2, 3]);
    is(&x.index_update((NewAxis, 0, NewAxis), array([[[7, 8, 9]]])), &[2, 3], &[7, 8, 9, 3, 4, 5]);
    is(&x.index_update((.., [0, 0, 2]), array([1, 2, 3])), &[2, 3], &[2, 1, 3, 2, 4, 3]);
    is(&x.index_update((1, [0, 2]), array([8, 9])), &[2, 3], &[0, 1, 2, 8, 4, 9]);
    is(&x.index_update(([1, 0], 1..), array([[6, 7], [8, 9]])), &[2, 3], &[0, 8, 9, 3, 6, 7]);
    is(&x.index_update((0, 0), 1.9), &[2, 3], &[1, 1, 2, 3, 4, 5]);
    is(&x, &[2, 3], &[0, 1, 2, 3, 4, 5]);
    fails(ops::index_update(&x, 0, array([1, 2])), ErrorKind::Shape, "(2,)");
}

#[test]
fn masks_take_values() {
    let x = iota(&[2, 3]);
    let odd = x.remainder(2).equal(1);
    is(&x.index_update(&odd, -1), &[2, 3], &[0, -1, 2, -1, 4, -1]);
    is(&x.index_update(&odd, array([7, 8, 9])), &[2, 3], &[0, 7, 2, 8, 4, 9]);
    is(&x.index_update(&odd, array([7, 8, 9, 10, 11])), &[2, 3], &[0, 7, 2, 8, 4, 9]);
    is(&x.index_update([false, true], array([7, 8, 9])), &[2, 3], &[0, 1, 2, 7, 8, 9]);
    is(&x.index_update(([true, true], Ellipsis), array([[7], [8]])), &[2, 3], &[7, 7, 7, 8, 8, 8]);
    is(&x.index_update((.., [true, false, true]), array([7, 8])), &[2, 3], &[7, 1, 8, 7, 4, 8]);
    is(&x.index_update((&array(true), 1), 0), &[2, 3], &[0, 1, 2, 0, 0, 0]);
    is(&x.index_update(array(false), 9), &[2, 3], &[0, 1, 2, 3, 4, 5]);
    is(&x.at(&odd).add(array([10, 20, 30])), &[2, 3], &[0, 11, 2, 23, 4, 35]);
    is(&x.at(&odd).multiply(10), &[2, 3], &[0, 10, 2, 30, 4, 50]);
    let few = x.index_update(&odd, array([7, 8]));
    fails(few.eval(), ErrorKind::Value, "selects 3 places, but there are only 2 rows");
}

#[test]
fn repeated_places_accumulate() {
    let x = iota(&[3]);
    is(&x.at([0, 0, 2]).add(array([1, 2, 3])), &[3], &[3, 1, 5]);
    is(&x.at([0, 0, 2]).subtract(1), &[3], &[-2, 1, 1]);
    is(&x.at([2, 2, 1]).multiply(3), &[3], &[0, 3, 18]);
    is(&x.at([0, 0, 2]).maximum(array([5, 4, 1])), &[3], &[5, 1, 2]);
    is(&x.at([0, 0, 2]).minimum(array([-5, -4, 9])), &[3], &[-5, 1, 2]);
    is(&x.at(1..).add(10), &[3], &[0, 11, 12]);
    is(&x.at(..).maximum(1), &[3], &[1, 1, 2]);
    is(&x.at(0).set(7), &[3], &[7, 1, 2]);
    let f = array([8.0f32, 4.0]);
    assert_eq!(f.at([0, 0, 1]).divide(2.0).to_vec::<f32>().unwrap(), [2.0, 2.0]);
    let nan = array([1.0f32, f32::NAN]).at([0, 1]).maximum(array([f32::NAN, 3.0]));
    assert!(nan.to_vec::<f32>().unwrap().iter().all(|v| v.is_nan()));
    let b = array([false, true]).at([0, 0, 1]).add(array([true, false, false]));
    assert_eq!(b.to_vec::<bool>().unwrap(), [true, true]);
    let c = array([c64::new(1.0, 1.0)]).at([0, 0]).multiply(array([c64::new(0.0, 1.0)]));
    assert_eq!(c.to_vec::<c64>().unwrap(), [c64::new(-1.0, -1.0)]);
    let u = array([1u8]).at([0, 0]).subtract(1);
    assert_eq!(u.to_vec::<u8>().unwrap(), [255]);
}

#[test]
fn halves_accumulate_in_single_precision() {
    let ones = ops::ones::<f32>(&[4096, 40]).unwrap();
    let at = ops::zeros::<i32>(&[4096]).unwrap();
    for dtype in [Dtype::Float16, Dtype::Bfloat16] {
        let ones = ones.astype(dtype);
        let sums = |a: Array| a.astype(Dtype::Float32).to_vec::<f32>().unwrap();
        let zeros = ops::zeros::<f32>(&[3, 40]).unwrap().astype(dtype);
        let got = sums(zeros.at(&at).add(&ones));
        assert!(got[..40].iter().all(|&v| v == 4096.0) && got[40..].iter().all(|&v| v == 0.0), "{dtype}");
        let flat = zeros.index((0, ..2)).at((&at,)).add(ones.index((.., 0)));
        assert_eq!(sums(flat), [4096.0, 0.0]);
        let along = zeros.index((..1, ..2));
        let op = ops::ScatterAxis { axis: 0, combine: Combine::Sum };
        let places = ops::zeros::<i32>(&[4096, 2]).unwrap();
        let put = Array::apply1(op, [along, places, ones.index((.., ..2))].into_iter().collect()).unwrap();
        assert_eq!(sums(put), [4096.0, 4096.0]);
    }
    // One rounding: 2048 + 1 + 1 is 2050 in float16, though 2048 + 1 is 2048.
    let h = array([f16::from_f32(2048.0)]).at([0, 0]).add(1.0);
    assert_eq!(h.to_vec::<f16>().unwrap()[0].to_f32(), 2050.0);
    let p = array([bf16::from_f32(3.0)]).at([0, 0]).multiply(1.0078125);
    assert_eq!(p.to_vec::<bf16>().unwrap()[0], bf16::from_f32(3.0 * 1.0078125 * 1.0078125));
    let m = array([f16::from_f32(2.0)]).at([0, 0]).maximum(array([f16::from_f32(3.0), f16::from_f32(1.0)]));
    assert_eq!(m.to_vec::<f16>().unwrap()[0].to_f32(), 3.0);
}

#[test]
fn halves_round_once_on_every_path() {
    let mut r = Random(3);
    // Many updates of few elements, few of many, long rows, windows, several axes.
    for (shape, count) in [([8, 3], 500), ([400, 3], 5), ([6, 70], 40), ([5, 33], 200)] {
        for windowed in [false, true] {
            let n = shape[0] * shape[1];
            let values = |r: &mut Random, n: usize| (0..n).map(|_| r.below(2000) as f32 / 64.0).collect::<Vec<f32>>();
            let data = values(&mut r, n);
            let width = if windowed { shape[1] - 1 } else { shape[1] };
            let update = values(&mut r, count * width);
            let rows: Vec<i32> = (0..count).map(|_| r.below(shape[0]) as i32).collect();
            let half = |v: &[f32], s: &[usize]| Array::from_slice(v, s).astype(Dtype::Float16);
            let x = half(&data, &shape);
            let u = half(&update, &[count, width]);
            let start = shape[1] - width;
            let got = x.at((&array(rows.clone()), start..)).add(&u);
            let (mut want, u) = (x.astype(Dtype::Float32).to_vec::<f32>().unwrap(), u.to_vec::<f16>().unwrap());
            for (k, &row) in rows.iter().enumerate() {
                for c in 0..width {
                    want[row as usize * shape[1] + start + c] += u[k * width + c].to_f32();
                }
            }
            let want: Vec<f16> = want.into_iter().map(f16::from_f32).collect();
            assert_eq!(got.to_vec::<f16>().unwrap(), want, "{shape:?} {count}");
        }
    }
}

#[test]
fn every_dtype_combines() {
    for dtype in Dtype::ALL {
        for n in [1usize, 40] {
            let rows = |v: [i32; 3]| array([[v[0]], [v[1]], [v[2]]]).broadcast_to(&[3, n]).astype(dtype);
            let x = rows([1, 2, 3]);
            let firsts = |a: Array| {
                assert_eq!((a.dtype(), a.shape()), (dtype, [3, n].as_slice()));
                let v = a.astype(Dtype::Float64).to_vec::<f64>().unwrap();
                [v[0], v[n], v[3 * n - 1]]
            };
            let truth = dtype == Dtype::Bool;
            let at = [0, 0, 2];
            let pick = |wide: [f64; 3]| if truth { [1.0; 3] } else { wide };
            assert_eq!(firsts(x.at(at).set(&rows([4, 5, 6]))), pick([5.0, 2.0, 6.0]), "{dtype}");
            assert_eq!(firsts(x.at(at).add(&rows([4, 5, 6]))), pick([10.0, 2.0, 9.0]), "{dtype}");
            assert_eq!(firsts(x.at(at).multiply(&rows([4, 5, 6]))), pick([20.0, 2.0, 18.0]), "{dtype}");
            assert_eq!(firsts(x.at(at).maximum(&rows([5, 4, 1]))), pick([5.0, 2.0, 3.0]), "{dtype}");
            assert_eq!(firsts(x.at(at).minimum(&rows([5, 4, 1]))), pick([1.0, 2.0, 1.0]), "{dtype}");
            assert_eq!(firsts(x.at(..2).add(&rows([1, 1, 1]).index(..2))), pick([2.0, 3.0, 3.0]), "{dtype}");
        }
    }
}

#[test]
fn elements_along_an_axis() {
    let x = iota(&[2, 3]);
    is(&x.take_along_axis(&array([[2, 0], [-1, 1]]), 1), &[2, 2], &[2, 0, 5, 4]);
    is(&x.take_along_axis(&array([[1, 0, 1]]), 0), &[1, 3], &[3, 1, 5]);
    is(&x.take_along_axis(&array([[1]]), 0), &[1, 3], &[3, 4, 5]);
    is(&x.take_along_axis(&array([5, 0]), None), &[2], &[5, 0]);
    is(&x.t().take_along_axis(&array([[1, 0]]), 1), &[3, 2], &[3, 0, 4, 1, 5, 2]);
    is(&x.put_along_axis(&array([[2, 0], [1, 1]]), array([[7, 8], [9, 6]]), 1), &[2, 3], &[8, 1, 7, 3, 6, 5]);
    is(&x.put_along_axis(&array([[1]]), -1, 0), &[2, 3], &[0, 1, 2, -1, -1, -1]);
    is(&x.put_along_axis(&array([4, -1]), array([7, 8]), None), &[2, 3], &[0, 1, 2, 3, 7, 8]);
    fails(ops::take_along_axis(&x, &array([1]), 0), ErrorKind::Shape, "(1,)");
    fails(ops::take_along_axis(&x, &array([[1.0f32]]), 0), ErrorKind::Dtype, "float32");
    fails(ops::put_along_axis(&x, &array([[0], [0], [0]]), 1, 1), ErrorKind::Shape, "(3,1)");
}

#[test]
fn updates_of_a_sole_owner_stay_in_place() {
    // Keys of a decode step: a few rows of a large array, many times.
    let mut keys = ops::zeros::<f32>(&[1 << 14, 64]).unwrap();
    keys = &keys + 1.0;
    keys.eval().unwrap();
    let before = keys.as_slice::<f32>().unwrap().as_ptr();
    for step in 0..10 {
        keys = keys.index_update((step, ..), step as f64);
        keys = keys.at([100 + step, 200]).add(1.0);
        keys.eval().unwrap();
    }
    assert_eq!(keys.as_slice::<f32>().unwrap().as_ptr(), before);
    assert_eq!(keys.index((9, 0)).item::<f32>().unwrap(), 9.0);
    assert_eq!(keys.index((200, 5)).item::<f32>().unwrap(), 11.0);
    // A view taken earlier does not change.
    let view = keys.index(3);
    let updated = keys.index_update(3, -1.0);
    eval([&view, &updated]).unwrap();
    assert_eq!(view.index(0).item::<f32>().unwrap(), 3.0);
}

#[test]
fn large_moves_use_every_path() {
    let (rows, width) = (3000usize, 70usize);
    let x = iota(&[rows as i64, width as i64]);
    let idx: Vec<i32> =
        (0..5000).map(|i| (i * 7919 % rows as i32) - if i % 3 == 0 { rows as i32 } else { 0 }).collect();
    let row = |i: i32| i.rem_euclid(rows as i32);
    let taken = x.take(&array(idx.clone()), 0).to_vec::<i32>().unwrap();
    let columns = x.t().take(&array(idx.clone()), 1).to_vec::<i32>().unwrap();
    let wide = x.t().take(&array(idx.clone()), 0 - 1).t().to_vec::<i32>().unwrap();
    assert_eq!(taken, wide);
    for (k, &i) in idx.iter().enumerate() {
        for c in 0..width {
            let want = row(i) * width as i32 + c as i32;
            assert_eq!(taken[k * width + c], want);
            assert_eq!(columns[c * idx.len() + k], want);
        }
    }
    let added = x.at(array(idx.clone())).add(1).to_vec::<i32>().unwrap();
    let mut want = x.to_vec::<i32>().unwrap();
    idx.iter().for_each(|&i| want[row(i) as usize * width..][..width].iter_mut().for_each(|v| *v += 1));
    assert_eq!(added, want);
    let last =
        x.index_update((.., 3), 5).index_update((&array(idx.clone()), 3), array((0..5000).collect::<Vec<i32>>()));
    let mut want = vec![5; rows];
    idx.iter().enumerate().for_each(|(k, &i)| want[row(i) as usize] = k as i32);
    assert_eq!(last.index((.., 3)).to_vec::<i32>().unwrap(), want);
    let long = iota(&[2, 1 << 20]).index(array([1])).to_vec::<i32>().unwrap();
    assert!(long.iter().enumerate().all(|(i, &v)| v as usize == (1 << 20) + i));
}

#[test]
fn distinct_values() {
    let a = array([[3, 1, 2], [3, 1, 5]]);
    let u32s = |a: &Array| a.to_vec::<u32>().unwrap();
    let u = ops::unique(&a, None, None).unwrap();
    is(&u.values, &[4], &[1, 2, 3, 5]);
    assert_eq!(u32s(&u.indices), [1, 2, 0, 5]);
    assert_eq!((u.inverse.shape(), u32s(&u.inverse)), ([2, 3].as_slice(), vec![2, 0, 1, 2, 0, 3]));
    is(&u.counts, &[4], &[2, 1, 2, 1]);
    let u = ops::unique(&a, 6, Some(&9)).unwrap();
    is(&u.values, &[6], &[1, 2, 3, 5, 9, 9]);
    assert_eq!(u32s(&u.indices), [1, 2, 0, 5, 1, 1]);
    is(&u.counts, &[6], &[2, 1, 2, 1, 0, 0]);
    is(&ops::unique(&a, 6, None).unwrap().values, &[6], &[1, 2, 3, 5, 1, 1]);
    let u = ops::unique(&a, 2, None).unwrap();
    is(&u.values, &[2], &[1, 2]);
    assert_eq!(u32s(&u.inverse), [1, 0, 1, 1, 0, 1]);
    let f = array([f32::NAN, 1.0, f32::NAN, 0.0, -0.0]);
    let u = ops::unique(&f, None, None).unwrap();
    let values = u.values.to_vec::<f32>().unwrap();
    assert!(values[..2] == [0.0, 1.0] && values[2..].iter().all(|v| v.is_nan()) && values.len() == 4);
    assert_eq!(u32s(&u.inverse), [2, 1, 3, 0, 0]);
    let empty = ops::zeros::<f32>(&[0]).unwrap();
    assert_eq!(ops::unique(&empty, None, None).unwrap().values.shape(), [0]);
    assert_eq!(ops::unique(&empty, 2, Some(&3)).unwrap().values.to_vec::<f32>().unwrap(), [3.0, 3.0]);
    fails(ops::unique(&empty, 2, None), ErrorKind::Value, "fill value");
}

// ------------------------------------------------------------------ random indices against a plain loop

/// A small generator: the high bits of a multiplicative sequence.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n
    }
}

/// A part of an index, and for each axis of the array that it covers the elements it selects.
enum Part {
    At(i64),
    Range(Option<i64>, Option<i64>, i64),
    Ellipsis(usize),
    NewAxis,
    /// Shape and values.
    Array(Vec<usize>, Vec<i64>),
    /// Shape and values.
    Mask(Vec<usize>, Vec<bool>),
}

impl Part {
    fn to_index(&self) -> Index {
        match self {
            Part::At(i) => Index::At(*i),
            &Part::Range(start, stop, step) => Index::Range { start, stop, step },
            Part::Ellipsis(_) => Index::Ellipsis,
            Part::NewAxis => Index::NewAxis,
            Part::Array(shape, values) => Index::Array(Array::from_slice(values, shape)),
            Part::Mask(shape, values) => Index::Array(Array::from_slice(values, shape)),
        }
    }
}

/// An axis of the result of an index: basic axes list the indices they run over; `None` is a new axis.
enum Slot {
    Basic(Option<(usize, Vec<usize>)>),
    Advanced,
}

/// Flat positions in an array of `shape` that the parts select, in row-major order of the result; and its shape.
fn reference(shape: &[usize], parts: &[Part]) -> (Vec<usize>, Vec<usize>) {
    let mut slots: Vec<Slot> = Vec::new();
    // Axis and indices with their shape: what broadcasts together.
    let mut advanced: Vec<(usize, Vec<usize>, Vec<usize>)> = Vec::new();
    let has_arrays = parts.iter().any(|p| matches!(p, Part::Array(..) | Part::Mask(..)));
    let wrap = |i: i64, n: usize| (if i < 0 { i + n as i64 } else { i }) as usize;
    let mut axis = 0;
    let (mut runs, mut in_run) = (0, false);
    for part in parts {
        let is_advanced =
            matches!(part, Part::Array(..) | Part::Mask(..)) || (has_arrays && matches!(part, Part::At(_)));
        if is_advanced && !in_run {
            runs += 1;
            slots.push(Slot::Advanced);
        }
        in_run = is_advanced;
        match part {
            Part::At(i) => {
                advanced.push((axis, vec![], vec![wrap(*i, shape[axis])]));
                axis += 1;
            }
            &Part::Range(start, stop, step) => {
                let n = shape[axis] as i64;
                let bound = |b: i64, low: i64, high: i64| (if b < 0 { b + n } else { b }).clamp(low, high);
                let mut list = Vec::new();
                if step > 0 {
                    let (mut i, end) = (start.map_or(0, |b| bound(b, 0, n)), stop.map_or(n, |b| bound(b, 0, n)));
                    while i < end {
                        list.push(i as usize);
                        i += step;
                    }
                } else {
                    let mut i = start.map_or(n - 1, |b| bound(b, -1, n - 1));
                    let end = stop.map_or(-1, |b| bound(b, -1, n - 1));
                    while i > end {
                        list.push(i as usize);
                        i += step;
                    }
                }
                slots.push(Slot::Basic(Some((axis, list))));
                axis += 1;
            }
            Part::Ellipsis(count) => {
                for _ in 0..*count {
                    slots.push(Slot::Basic(Some((axis, (0..shape[axis]).collect()))));
                    axis += 1;
                }
            }
            Part::NewAxis => slots.push(Slot::Basic(None)),
            Part::Array(s, values) => {
                advanced.push((axis, s.clone(), values.iter().map(|&v| wrap(v, shape[axis])).collect()));
                axis += 1;
            }
            Part::Mask(s, values) => {
                let on: Vec<usize> = (0..values.len()).filter(|&i| values[i]).collect();
                for d in 0..s.len() {
                    let below: usize = s[d + 1..].iter().product();
                    advanced.push((axis, vec![on.len()], on.iter().map(|&i| i / below % s[d]).collect()));
                    axis += 1;
                }
            }
        }
    }
    for rest in axis..shape.len() {
        slots.push(Slot::Basic(Some((rest, (0..shape[rest]).collect()))));
    }
    let by = advanced.iter().fold(Vec::new(), |all: Vec<usize>, (_, s, _)| {
        let n = all.len().max(s.len());
        let at = |v: &[usize], i: usize| if i + v.len() < n { 1 } else { v[i + v.len() - n] };
        (0..n).map(|i| if at(&all, i) == 1 { at(s, i) } else { at(&all, i) }).collect()
    });
    if has_arrays && runs > 1 {
        slots.retain(|s| !matches!(s, Slot::Advanced));
        slots.insert(0, Slot::Advanced);
    }
    let out: Vec<usize> = slots
        .iter()
        .flat_map(|s| match s {
            Slot::Basic(Some((_, list))) => vec![list.len()],
            Slot::Basic(None) => vec![1],
            Slot::Advanced => by.clone(),
        })
        .collect();
    let n: usize = out.iter().product();
    let positions = (0..n).map(|flat| {
        let mut coordinates = vec![0; out.len()];
        let mut rest = flat;
        for d in (0..out.len()).rev() {
            coordinates[d] = rest % out[d];
            rest /= out[d];
        }
        let mut source = vec![0; shape.len()];
        let mut place = vec![0; by.len()];
        let mut d = 0;
        for slot in &slots {
            match slot {
                Slot::Basic(Some((axis, list))) => source[*axis] = list[coordinates[d]],
                Slot::Basic(None) => {}
                Slot::Advanced => {
                    place.copy_from_slice(&coordinates[d..d + by.len()]);
                    d += by.len();
                    continue;
                }
            }
            d += 1;
        }
        for (axis, s, values) in &advanced {
            let mut flat = 0;
            for (i, &size) in s.iter().enumerate() {
                flat = flat * size + if size == 1 { 0 } else { place[i + by.len() - s.len()] };
            }
            source[*axis] = values[flat];
        }
        source.iter().zip(shape).fold(0, |at, (&i, &d)| at * d + i)
    });
    (positions.collect(), out)
}

fn random_parts(r: &mut Random, shape: &[usize]) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut axis = 0;
    let mut has_ellipsis = false;
    let count = 1 + r.below(2);
    let shared: Vec<usize> = (0..r.below(3)).map(|_| 1 + r.below(3)).collect();
    let mut masked = None;
    let choices = 4 + r.below(4);
    while axis < shape.len() && r.below(6) > 0 {
        let n = shape[axis] as i64;
        let any = |r: &mut Random| r.below(2 * n as usize) as i64 - n;
        match r.below(choices) {
            0 => parts.push(Part::At(any(r))),
            1 | 2 => {
                let bound = |r: &mut Random| (r.below(3) > 0).then(|| r.below(3 * n as usize) as i64 - n);
                let (a, b) = (bound(r), bound(r));
                parts.push(Part::Range(a, b, [1, 2, -1, -2, 3][r.below(5)]));
            }
            3 => {
                if r.below(2) == 0 || has_ellipsis {
                    parts.push(Part::NewAxis);
                } else {
                    has_ellipsis = true;
                    let skip = r.below(shape.len() - axis + 1);
                    parts.push(Part::Ellipsis(skip));
                    axis += skip;
                }
                continue;
            }
            4..=6 => {
                let from = r.below(shared.len() + 1);
                let s: Vec<usize> = shared[from..].iter().map(|&d| if r.below(4) == 0 { 1 } else { d }).collect();
                let values = (0..s.iter().product()).map(|_| any(r)).collect();
                parts.push(Part::Array(s, values));
            }
            _ => {
                // At most one mask, which then must broadcast with the arrays: give it as many trues as they have.
                let k = count.min(shape.len() - axis);
                let s = shape[axis..axis + k].to_vec();
                let total: usize = s.iter().product();
                let want = shared.last().copied().unwrap_or(1);
                if masked.is_some() || total < want {
                    continue;
                }
                masked = Some(());
                let mut values = vec![false; total];
                while values.iter().filter(|&&v| v).count() < want {
                    values[r.below(total)] = true;
                }
                parts.push(Part::Mask(s, values));
                axis += k - 1;
            }
        }
        axis += 1;
    }
    // An ellipsis would take what nobody else names.
    if has_ellipsis {
        parts.extend((axis..shape.len()).map(|_| Part::Range(None, None, 1)));
    }
    parts
}

#[test]
fn random_indices_agree_with_a_loop() {
    let mut r = Random(7);
    for case in 0..3000 {
        let shape: Vec<usize> = (0..1 + r.below(4)).map(|_| 1 + r.below(5)).collect();
        let total: usize = shape.iter().product();
        // Every third array is a transposed one.
        let reversed: Vec<usize> = shape.iter().rev().copied().collect();
        let x = if case % 3 == 0 {
            let values = ops::arange(0, total as i64, 1, None).unwrap().reshape(&reversed);
            let a = values.t();
            assert_eq!(a.shape(), shape);
            a
        } else {
            ops::arange(0, total as i64, 1, None).unwrap().reshape(&shape)
        };
        let data = x.to_vec::<i32>().unwrap();
        let parts = random_parts(&mut r, &shape);
        let (positions, out) = reference(&shape, &parts);
        let index: Vec<Index> = parts.iter().map(Part::to_index).collect();
        let got = ops::index(&x, index.as_slice()).unwrap();
        let text = || format!("case {case}: shape {shape:?}, {} parts", parts.len());
        assert_eq!(got.shape(), out, "{}", text());
        let want: Vec<i32> = positions.iter().map(|&p| data[p]).collect();
        assert_eq!(got.to_vec::<i32>().unwrap(), want, "{}", text());

        let values: Vec<i32> = (0..positions.len() as i32).map(|i| 1000 + i).collect();
        let update = Array::from_slice(&values, &out);
        let combine = [Combine::Set, Combine::Sum, Combine::Prod, Combine::Max, Combine::Min][r.below(5)];
        let mut want = data.clone();
        for (&p, &v) in positions.iter().zip(&values) {
            let old = want[p];
            want[p] = match combine {
                Combine::Set => v,
                Combine::Sum => old.wrapping_add(v),
                Combine::Prod => old.wrapping_mul(v),
                Combine::Max => old.max(v),
                Combine::Min => old.min(v),
            };
        }
        let got = ops::index_combine(&x, index.as_slice(), &update, combine).unwrap();
        assert_eq!(got.to_vec::<i32>().unwrap(), want, "{} {combine:?}", text());
    }
}
