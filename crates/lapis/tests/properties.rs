//! Laws that hold for every array: views are the elements they name, fusion and layout change no bit, indexing is
//! what a loop over indices does, promotion is a lattice.

use lapis::dtype::Element;
use lapis::ops::{self, Index};
use lapis::{Array, Dtype};
use proptest::collection::vec;
use proptest::prelude::*;

/// An array as plain loops know it: sizes and row-major elements.
#[derive(Clone, Debug, PartialEq)]
struct Plain {
    shape: Vec<usize>,
    data: Vec<i32>,
}

impl Plain {
    fn counting(shape: &[usize]) -> Plain {
        Plain { shape: shape.to_vec(), data: (0..shape.iter().product::<usize>() as i32).collect() }
    }

    /// The array of `shape` whose element at an index is this one's element at `source(index)`.
    fn gather(&self, shape: Vec<usize>, source: impl Fn(&[usize]) -> Vec<usize>) -> Plain {
        let data = indices(&shape).map(|i| self.at(&source(&i))).collect();
        Plain { shape, data }
    }

    fn at(&self, index: &[usize]) -> i32 {
        self.data[index.iter().zip(&self.shape).fold(0, |flat, (i, d)| flat * d + i)]
    }
}

/// Every index of a shape, row-major.
fn indices(shape: &[usize]) -> impl Iterator<Item = Vec<usize>> {
    let shape = shape.to_vec();
    (0..shape.iter().product()).map(move |mut flat: usize| {
        let mut index = vec![0; shape.len()];
        for (i, &d) in index.iter_mut().zip(&shape).rev() {
            *i = flat % d;
            flat /= d;
        }
        index
    })
}

/// One change of layout, with numbers that are made to fit the array it meets.
#[derive(Clone, Debug)]
enum Step {
    Transpose(Vec<u8>),
    Slice(Vec<(i64, i64, i64)>),
    Flip(u8),
    Insert(u8),
    Broadcast(u8),
    Merge(u8),
    Split(u8),
    Contiguous,
}

fn step() -> impl Strategy<Value = Step> {
    let stride = prop_oneof![Just(1i64), Just(2), Just(-1), Just(-2), Just(3)];
    prop_oneof![
        vec(any::<u8>(), 6).prop_map(Step::Transpose),
        vec((-6i64..7, -6i64..7, stride), 6).prop_map(Step::Slice),
        any::<u8>().prop_map(Step::Flip),
        any::<u8>().prop_map(Step::Insert),
        any::<u8>().prop_map(Step::Broadcast),
        any::<u8>().prop_map(Step::Merge),
        any::<u8>().prop_map(Step::Split),
        Just(Step::Contiguous),
    ]
}

/// The indices that Python's `range(n)[start:stop:step]` gives.
fn sliced(n: usize, (start, stop, step): (i64, i64, i64)) -> Vec<usize> {
    let n = n as i64;
    let clip =
        |v: i64| (if v < 0 { v + n } else { v }).clamp(if step < 0 { -1 } else { 0 }, if step < 0 { n - 1 } else { n });
    let (mut at, stop, mut out) = (clip(start), clip(stop), Vec::new());
    while if step > 0 { at < stop } else { at > stop } {
        out.push(at as usize);
        at += step;
    }
    out
}

fn apply(step: &Step, a: &Array, p: &Plain) -> (Array, Plain) {
    let rank = p.shape.len();
    let axis = |v: u8| usize::from(v) % rank.max(1);
    match step {
        Step::Transpose(keys) => {
            let mut order: Vec<usize> = (0..rank).collect();
            order.sort_by_key(|&i| keys[i % keys.len()]);
            let axes: Vec<i32> = order.iter().map(|&i| i as i32).collect();
            let shape = order.iter().map(|&i| p.shape[i]).collect();
            let plain = p.gather(shape, |index| {
                let mut source = vec![0; rank];
                order.iter().zip(index).for_each(|(&o, &i)| source[o] = i);
                source
            });
            (ops::transpose(a, Some(&axes)).unwrap(), plain)
        }
        Step::Slice(bounds) => {
            let lists: Vec<Vec<usize>> = p.shape.iter().zip(bounds).map(|(&n, &b)| sliced(n, b)).collect();
            let parts: Vec<Index> = p
                .shape
                .iter()
                .zip(bounds)
                .map(|(_, &(start, stop, step))| Index::Range { start: Some(start), stop: Some(stop), step })
                .collect();
            let shape = lists.iter().map(Vec::len).collect();
            let plain = p.gather(shape, |index| index.iter().zip(&lists).map(|(&i, list)| list[i]).collect());
            (ops::index(a, parts).unwrap(), plain)
        }
        Step::Flip(v) if rank > 0 => {
            let at = axis(*v);
            let plain = p.gather(p.shape.clone(), |index| {
                let mut source = index.to_vec();
                source[at] = p.shape[at] - 1 - index[at];
                source
            });
            (ops::flip(a, at as i32).unwrap(), plain)
        }
        Step::Insert(v) if rank < 5 => {
            let at = usize::from(*v) % (rank + 1);
            let mut shape = p.shape.clone();
            shape.insert(at, 1);
            (ops::expand_dims(a, at as i32).unwrap(), Plain { shape, data: p.data.clone() })
        }
        Step::Broadcast(v) => {
            let ones: Vec<usize> = (0..rank).filter(|&i| p.shape[i] == 1).collect();
            let mut shape = p.shape.clone();
            if let Some(&at) = ones.get(usize::from(*v) % ones.len().max(1)) {
                shape[at] = 3;
            }
            let plain =
                p.gather(shape.clone(), |index| index.iter().zip(&p.shape).map(|(&i, &d)| i.min(d - 1)).collect());
            (ops::broadcast_to(a, &shape).unwrap(), plain)
        }
        Step::Merge(v) if rank > 1 => {
            let at = usize::from(*v) % (rank - 1);
            let mut shape = p.shape.clone();
            shape[at] *= shape.remove(at + 1);
            (ops::reshape(a, &shape).unwrap(), Plain { shape, data: p.data.clone() })
        }
        Step::Split(v) if rank > 0 && rank < 5 && p.shape[axis(*v)].is_multiple_of(2) => {
            let at = axis(*v);
            let mut shape = p.shape.clone();
            shape[at] /= 2;
            shape.insert(at, 2);
            (ops::reshape(a, &shape).unwrap(), Plain { shape, data: p.data.clone() })
        }
        Step::Contiguous => (ops::contiguous(a, false).unwrap(), p.clone()),
        _ => (a.clone(), p.clone()),
    }
}

fn read<T: Element>(a: &Array) -> (Vec<usize>, Vec<T>) {
    (a.shape().to_vec(), a.to_vec::<T>().unwrap())
}

/// Bits, so that NaN compares.
fn bits(a: &Array) -> Vec<u8> {
    a.to_bytes().unwrap()
}

/// Elementwise operations that may follow each other in any order.
fn unary(which: u8, a: &Array) -> Array {
    match which % 10 {
        0 => a.negative(),
        1 => a.abs(),
        2 => a.square(),
        3 => a.sqrt(),
        4 => a.tanh(),
        5 => a.add(0.75f32),
        6 => a.multiply(-1.5f32),
        7 => a.exp(),
        8 => a.maximum(0.25f32),
        _ => a.sin(),
    }
}

fn shapes() -> impl Strategy<Value = Vec<usize>> {
    vec(0usize..5, 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn views_name_the_elements_they_say(shape in shapes(), steps in vec(step(), 0..7)) {
        let mut plain = Plain::counting(&shape);
        let mut array = Array::from_slice(&plain.data, &shape);
        for s in &steps {
            (array, plain) = apply(s, &array, &plain);
        }
        prop_assert_eq!(read::<i32>(&array), (plain.shape.clone(), plain.data.clone()));
        // The same through a kernel, and evaluated step by step.
        let sum = ops::add(&array, 1).unwrap();
        prop_assert_eq!(sum.to_vec::<i32>().unwrap(), plain.data.iter().map(|v| v + 1).collect::<Vec<_>>());
        let total = plain.data.iter().sum::<i32>();
        prop_assert_eq!(array.sum((), false).item::<i32>().unwrap(), total);
    }

    #[test]
    fn eager_and_lazy_views_agree(shape in shapes(), steps in vec(step(), 1..7)) {
        let start = Plain::counting(&shape);
        let base = Array::from_slice(&start.data, &shape);
        let (mut lazy, mut eager, mut plain) = (base.clone(), base, start);
        for s in &steps {
            let next = apply(s, &eager, &plain);
            lazy = apply(s, &lazy, &plain).0;
            (eager, plain) = next;
            eager.eval().unwrap();
        }
        prop_assert_eq!(read::<i32>(&lazy), read::<i32>(&eager));
    }

    #[test]
    fn fusion_changes_no_bit(
        values in vec(-3.0f32..3.0, 1..40),
        chain in vec(any::<u8>(), 1..9),
        dtype in prop_oneof![Just(Dtype::Float32), Just(Dtype::Float16), Just(Dtype::Bfloat16), Just(Dtype::Float64)],
    ) {
        let x = Array::from_slice(&values, &[values.len()]).astype(dtype);
        let (mut fused, mut stepped) = (x.clone(), x);
        for &which in &chain {
            fused = unary(which, &fused);
            stepped = unary(which, &stepped);
            stepped.eval().unwrap();
        }
        prop_assert_eq!(bits(&fused), bits(&stepped));
    }

    #[test]
    fn layout_changes_no_bit_of_elementwise_work(shape in shapes(), steps in vec(step(), 0..5), chain in vec(any::<u8>(), 1..4)) {
        let plain = Plain::counting(&shape);
        let mut pair = (Array::from_slice(&plain.data, &shape), plain);
        for s in &steps {
            pair = apply(s, &pair.0, &pair.1);
        }
        let view = pair.0.astype(Dtype::Float32).multiply(0.125f32);
        let row_major = Array::from_slice(&view.to_vec::<f32>().unwrap(), view.shape());
        let run = |a: &Array| chain.iter().fold(a.clone(), |a, &which| unary(which, &a));
        prop_assert_eq!(bits(&run(&view)), bits(&run(&row_major)));
        let both = |a: &Array| a.sum(-1, true).multiply(a);
        if view.ndim() > 0 {
            prop_assert_eq!(bits(&both(&view)), bits(&both(&row_major)));
        }
    }

    #[test]
    fn index_arrays_pick_and_put(
        (shape, rows, axis) in (vec(1usize..5, 1..4), vec(any::<i64>(), 0..6), any::<usize>()),
    ) {
        let axis = axis % shape.len();
        let n = shape[axis] as i64;
        let rows: Vec<i64> = rows.iter().map(|r| r.rem_euclid(2 * n) - n).collect();
        let plain = Plain::counting(&shape);
        let a = Array::from_slice(&plain.data, &shape);
        let mut parts = vec![Index::Range { start: None, stop: None, step: 1 }; axis];
        parts.push(Index::Array(Array::from_slice(&rows, &[rows.len()])));
        let mut out = shape.clone();
        out[axis] = rows.len();
        let place = |index: &[usize]| {
            let mut source = index.to_vec();
            source[axis] = rows[index[axis]].rem_euclid(n) as usize;
            source
        };
        let picked = plain.gather(out.clone(), place);
        let got = ops::index(&a, parts.clone()).unwrap();
        prop_assert_eq!(read::<i32>(&got), (picked.shape.clone(), picked.data.clone()));
        prop_assert_eq!(read::<i32>(&ops::take(&a, &Array::from_slice(&rows, &[rows.len()]), axis as i32).unwrap()), read::<i32>(&got));

        // Writing: the last of several values for one place stays; adding accumulates.
        let values: Vec<i32> = (0..picked.data.len() as i32).map(|v| 1000 + v).collect();
        let update = Array::from_slice(&values, &out);
        let (mut set, mut sum) = (plain.clone(), plain.clone());
        for (index, v) in indices(&out).zip(&values) {
            let flat = place(&index).iter().zip(&shape).fold(0, |flat, (i, d)| flat * d + i);
            set.data[flat] = *v;
            sum.data[flat] += v;
        }
        prop_assert_eq!(ops::index_update(&a, parts.clone(), &update).unwrap().to_vec::<i32>().unwrap(), set.data);
        prop_assert_eq!(a.at(parts).add(&update).to_vec::<i32>().unwrap(), sum.data);
        prop_assert_eq!(a.to_vec::<i32>().unwrap(), plain.data);
    }

    #[test]
    fn masks_pick_and_put(shape in vec(1usize..5, 1..4), keep in vec(any::<bool>(), 64)) {
        let plain = Plain::counting(&shape);
        let n = plain.data.len();
        let a = Array::from_slice(&plain.data, &shape);
        let mask = Array::from_slice(&keep[..n], &shape);
        let picked: Vec<i32> = plain.data.iter().zip(&keep).filter(|(_, k)| **k).map(|(v, _)| *v).collect();
        prop_assert_eq!(ops::index(&a, &mask).unwrap().to_vec::<i32>().unwrap(), picked.clone());
        let values: Vec<i32> = picked.iter().map(|v| -v - 1).collect();
        let put = ops::index_update(&a, &mask, &Array::from_slice(&values, &[values.len()])).unwrap();
        let want: Vec<i32> = plain.data.iter().zip(&keep).map(|(v, k)| if *k { -v - 1 } else { *v }).collect();
        prop_assert_eq!(put.to_vec::<i32>().unwrap(), want);
    }

    #[test]
    fn broadcast_operands_are_as_if_repeated(shape in vec(1usize..5, 1..4), ones in any::<u8>(), swap in any::<bool>()) {
        let small: Vec<usize> = shape.iter().enumerate().map(|(i, &d)| if ones >> i & 1 == 1 { 1 } else { d }).collect();
        let (a, b) = (Plain::counting(&shape), Plain::counting(&small));
        let (x, y) = (Array::from_slice(&a.data, &shape), Array::from_slice(&b.data, &small));
        let repeated = b.gather(shape.clone(), |index| index.iter().zip(&small).map(|(&i, &d)| i.min(d - 1)).collect());
        let want: Vec<i32> = a.data.iter().zip(&repeated.data).map(|(p, q)| if swap { q - p } else { p - q }).collect();
        let got = if swap { y.subtract(&x) } else { x.subtract(&y) };
        prop_assert_eq!(read::<i32>(&got), (shape, want));
    }
}

#[test]
fn promotion_is_symmetric_and_never_narrows_a_family() {
    for a in Dtype::ALL {
        assert_eq!(a.promote(a), a);
        assert_eq!(Dtype::Bool.promote(a), a);
        assert_eq!(a.promote(Dtype::Complex64), Dtype::Complex64);
        for b in Dtype::ALL {
            let c = a.promote(b);
            assert_eq!(c, b.promote(a));
            // What two types promote to takes both in.
            assert_eq!((a.promote(c), b.promote(c)), (c, c), "{a} {b} -> {c}");
            let (x, y) = (ops::full(&[2], 1, Some(a)).unwrap(), ops::full(&[2], 1, Some(b)).unwrap());
            assert_eq!(ops::add(&x, &y).unwrap().dtype(), c);
            assert_eq!(ops::concatenate(&[x, y], 0).unwrap().dtype(), c);
        }
    }
}
