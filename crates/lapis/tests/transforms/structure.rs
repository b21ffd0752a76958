//! Reading and writing at places, scans, orders, softmax, draws, and the functions made of them.

use crate::check::{check, mapping, normal, positive};
use lapis::ops::{Combine, Index, PadMode};
use lapis::prelude::*;
use lapis::random;
use lapis::transforms::{grad, vmap, vmap_axes};

/// A function of one real array, and squares before and after it so that second derivatives are there.
fn one(name: &str, x: Array, f: &dyn Fn(&Array) -> Result<Array>) {
    check(name, &|x| Ok(vec![ops::square(&f(&x[0].square())?)?]), &[x]);
}

/// A function of a real array and of what is constant.
fn by(name: &str, x: Array, constant: Array, f: &dyn Fn(&Array, &Array) -> Result<Array>) {
    check(name, &|x| Ok(vec![ops::square(&f(&x[0].square(), &x[1])?)?]), &[x, constant]);
}

/// A function of two real arrays and of what is constant.
fn into(name: &str, x: Array, u: Array, constant: Array, f: &dyn Fn(&Array, &Array, &Array) -> Result<Array>) {
    check(name, &|x| Ok(vec![ops::square(&f(&x[0].square(), &x[1], &x[2])?)?]), &[x, u, constant]);
}

const COMBINES: [Combine; 5] = [Combine::Set, Combine::Sum, Combine::Prod, Combine::Max, Combine::Min];

#[test]
fn joined_and_taken_apart() {
    let (a, b) = (normal(&[2, 3], 1), normal(&[2, 1], 2));
    let join = |x: &[Array]| Ok(vec![ops::concatenate(&[x[0].square(), x[1].exp(), x[0].clone()], 1)?]);
    check("concatenate", &join, &[a, b]);
    let stack = |x: &[Array]| Ok(vec![ops::stack(&[x[0].square(), x[1].exp()], -1)?]);
    check("stack", &stack, &[normal(&[2, 3], 3), normal(&[2, 3], 4)]);
    check("split", &|x| ops::split(&x[0].square(), [1, 3], 1), &[normal(&[2, 5], 5)]);
    check("unstack", &|x| ops::unstack(&x[0].square(), 0), &[normal(&[2, 3], 6)]);
    let x = || normal(&[2, 3], 7);
    for mode in [PadMode::Edge, PadMode::Reflect, PadMode::Symmetric] {
        one("pad", x(), &|a| ops::pad(a, [(1, 2), (4, 1)], mode, 0));
    }
    let filled = |x: &[Array]| Ok(vec![ops::pad(&x[0].square(), (1, 2), PadMode::Constant, &x[1].square())?]);
    check("pad with a value", &filled, &[x(), normal(&[], 8)]);
    one("repeat", x(), &|a| ops::repeat(a, 3, 1));
    one("tile", x(), &|a| ops::tile(a, &[2, 1, 2]));
    one("roll", x(), &|a| ops::roll(a, [1, -2], [0, 1]));
    one("flip", x(), &|a| ops::flip(a, 1));
    one("diagonal", x(), &|a| ops::diagonal(a, 1, 0, 1));
    one("diag", normal(&[3], 9), &|a| ops::diag(a, -1));
    one("tril", x(), &|a| ops::tril(a, 0));
    one("triu", x(), &|a| ops::triu(a, 1));
    one("trace", x(), &|a| ops::trace(a, 0, 0, 1, None));
    one("diff", normal(&[2, 5], 10), &|a| ops::diff(a, 2, 1));
}

#[test]
fn products_of_many_axes() {
    let pair = |name: &str, shapes: [&[usize]; 2], f: &dyn Fn(&Array, &Array) -> Result<Array>| {
        check(name, &|x| Ok(vec![f(&x[0], &x[1])?]), &[normal(shapes[0], 11), normal(shapes[1], 12)]);
    };
    pair("tensordot", [&[2, 3, 4], &[3, 4, 2]], &|a, b| ops::tensordot(a, b, 2));
    pair("kron", [&[2, 3], &[3, 2]], &|a, b| ops::kron(a, b));
    pair("outer", [&[2], &[3]], &|a, b| ops::outer(a, b));
    pair("inner", [&[2, 3], &[4, 3]], &|a, b| ops::inner(a, b));
    pair("einsum", [&[2, 3, 4], &[4, 3]], &|a, b| ops::einsum("bij,ji->bi", &[a, b]));
    pair("einsum with a trace", [&[3, 3], &[3]], &|a, b| ops::einsum("ii,i->i", &[a, b]));
    one("linspace", normal(&[], 13), &|a| ops::multiply(a, ops::linspace(0.0, 2.0, 5, true, Some(Dtype::Float64))?));
}

#[test]
fn reading_at_indices() {
    let x = || normal(&[3, 4], 20);
    // Repeated and negative indices.
    let indices = || array([2, 0, 2, -1]);
    by("take", x(), indices(), &|a, i| ops::take(a, i, 0));
    by("take of columns", x(), indices(), &|a, i| ops::take(a, i, 1));
    by("take with a matrix", x(), array([[0, 1], [1, 2]]), &|a, i| ops::take(a, i, 1));
    by("take with a number", x(), array(1), &|a, i| ops::take(a, i, 0));
    by("take of all", x(), array([11, 3, 3]), &|a, i| ops::take(a, i, None));
    by("take_along_axis", x(), array([[0, 0, 1, 2], [2, 0, 1, -1]]), &|a, i| ops::take_along_axis(a, i, 0));
    by("take_along_axis of all", x(), array([7, 7, 0]), &|a, i| ops::take_along_axis(a, i, None));
    let cube = || normal(&[2, 3, 4], 21);
    by("index", cube(), array([1, 0, 1]), &|a, i| ops::index(a, (.., i, Index::range(None, None, -2))));
    by("indices apart", cube(), array([1, 0, 1]), &|a, i| ops::index(a, (i, .., i)));
    by("indices side by side", cube(), array([1, 0, 1]), &|a, i| ops::index(a, (.., i, i)));
    let two = |x: &[Array]| Ok(vec![ops::index(&x[0].square(), (&x[1], 1, &x[2]))?.square()]);
    check("two index arrays", &two, &[cube(), array([0, 1, 1]), array([[3], [0]])]);
    one("masks", x(), &|a| ops::index(a, vec![true, false, true]));
    one("an integer", x(), &|a| ops::index(a, (-1, NewAxis, (..).step(2))));
    by("dynamic_slice", cube(), array([1, -3]), &|a, s| ops::dynamic_slice(a, s, &[1, 2], &[1, 2, 2]));
    by("dynamic_slice, axes turned", cube(), array([0, 1]), &|a, s| ops::dynamic_slice(a, s, &[2, 0], &[1, 3, 2]));
    by("dynamic_slice on one axis", x(), array(1), &|a, s| ops::dynamic_slice(a, s, &[0], &[2, 3]));
    let starts = Array::from_vec(vec![-3i32, 1, 0], &[3, 1]);
    let outside = vmap_axes(|s: &Array| ops::dynamic_slice(&x(), s, &[1], &[3, 2]), 0, 0)(&array([[-6], [0]]));
    assert!(outside.and_then(|a| eval([&a])).is_err(), "a start outside is not taken from the end twice");
    let inside = vmap_axes(|s: &Array| ops::dynamic_slice(&x(), s, &[1], &[3, 2]), 0, 0)(&starts).unwrap();
    assert_eq!(inside.shape(), [3, 3, 2]);
}

#[test]
fn writing_windows() {
    let (x, u) = (|| normal(&[3, 4], 30), || normal(&[2, 2], 31));
    for combine in COMBINES {
        let f = |a: &[Array]| {
            let places = (Index::range(None, None, -2), Index::range(1, 3, 1));
            Ok(vec![ops::index_combine(&a[0].square(), places, &a[1], combine)?.square()])
        };
        check(&format!("window, {combine:?}"), &f, &[x(), u()]);
    }
    into("dynamic_slice_update", x(), u(), array([1, -3]), &|a, u, s| ops::dynamic_slice_update(a, u, s, &[0, 1]));
    into("its axes turned", x(), u(), array([1, 0]), &|a, u, s| ops::dynamic_slice_update(a, u, s, &[1, 0]));
    into("its start on one axis", x(), u(), array([2]), &|a, u, s| ops::dynamic_slice_update(a, u, s, &[1]));
}

#[test]
fn writing_at_indices() {
    for combine in COMBINES {
        let name = |what: &str| format!("{what}, {combine:?}");
        // Two of the updates meet at row 1, one replaces another.
        let rows = || array([1, 0, -2]);
        let at = |a: &Array, u: &Array, i: &Array| ops::index_combine(a, i, u, combine);
        into(&name("rows"), normal(&[3, 2], 40), normal(&[3, 2], 41), rows(), &at);
        let columns =
            |a: &Array, u: &Array, i: &Array| ops::index_combine(a, (Index::range(1, None, 1), i), u, combine);
        into(&name("columns in a window"), normal(&[3, 4], 42), normal(&[2, 3], 43), array([1, 1, 3]), &columns);
        let apart = |a: &Array, u: &Array, i: &Array| ops::index_combine(a, (i, .., i), u, combine);
        into(&name("axes apart"), normal(&[2, 2, 3], 44), normal(&[3, 2], 45), array([1, 0, 1]), &apart);
        let mask = array([true, false, true]);
        let masked = |a: &Array, u: &Array, m: &Array| ops::index_combine(a, m, u, combine);
        into(&name("mask"), normal(&[3, 2], 46), normal(&[3, 2], 47), mask.clone(), &masked);
        into(&name("mask, one value"), normal(&[3, 2], 48), normal(&[2], 49), mask, &masked);
    }
    let along = |a: &Array, u: &Array, i: &Array| ops::put_along_axis(a, i, u, 1);
    let indices = array([[0, 0, 2], [1, -1, 1]]);
    into("put_along_axis", normal(&[2, 4], 50), normal(&[2, 3], 51), indices, &along);
    let flat = |a: &Array, u: &Array, i: &Array| ops::put_along_axis(a, i, u, None);
    into("put_along_axis of all", normal(&[2, 4], 52), normal(&[3], 53), array([7, 1, 7]), &flat);
    one("at", normal(&[3], 54), &|a| Ok(a.at(vec![0, 0, 2]).subtract(a).at(1).divide(&a.index(2).exp())));
}

#[test]
fn products_at_places_with_zeros() {
    let u = array([0.0, 3.0, 0.0, 5.0, 7.0]);
    let f = |x: &[Array]| ops::index_combine(&x[0], array([1, 1, 0, 1, 0]), &x[1], Combine::Prod).map(|y| vec![y]);
    check("zeros", &f, &[array([2.0, 4.0]), u]);
    let loss = |u: &Array| ops::sum(&array([2.0, 4.0]).at(vec![1, 1, 0, 1, 0]).multiply(u), (), false);
    let g = grad(loss)(&array([0.0, 3.0, 0.0, 5.0, 7.0])).unwrap();
    assert_eq!(g.to_vec::<f64>().unwrap(), [60.0, 0.0, 14.0, 0.0, 0.0]);
}

#[test]
fn scans() {
    for axis in [Some(0), Some(1), None] {
        for (reverse, inclusive) in [(false, true), (true, true), (false, false), (true, false)] {
            let x = || normal(&[4, 3], 60);
            let name = |kind: &str| format!("{kind} {axis:?} {reverse} {inclusive}");
            one(&name("cumsum"), x(), &|a| ops::cumsum(a, axis, reverse, inclusive, None));
            one(&name("cumprod"), x(), &|a| ops::cumprod(a, axis, reverse, inclusive, None));
            // Exclusive ones begin with infinities.
            let finite = |y: Result<Array>| y.and_then(|y| ops::select(&ops::isinf(&y)?, 0, &y));
            one(&name("cummax"), x(), &|a| finite(ops::cummax(a, axis, reverse, inclusive)));
            one(&name("cummin"), x(), &|a| finite(ops::cummin(a, axis, reverse, inclusive)));
            one(&name("logcumsumexp"), x(), &|a| finite(ops::logcumsumexp(a, axis, reverse, inclusive)));
        }
    }
    let f = |x: &[Array]| ops::cumprod(&x[0], Some(0), false, true, None).map(|y| vec![y]);
    check("cumprod with zeros", &f, &[array([2.0, 0.0, 3.0, 0.0, 5.0, -1.0, 0.5])]);
    check("prod with zeros", &|x| Ok(vec![ops::prod(&x[0], 1, false)?]), &[array([[2.0, 0.0, 3.0], [0.0, 0.0, 4.0]])]);
    check("prod", &|x| Ok(vec![ops::prod(&x[0], (), false)?]), &[normal(&[2, 3], 61)]);
}

#[test]
fn running_sums_of_exponentials_stay_finite() {
    let far = array([f64::NEG_INFINITY, -800.0, 900.0, 100.0]);
    let loss = |x: &Array| ops::sum(&ops::logcumsumexp(x, Some(0), false, true)?.index(1..), (), false);
    let g = grad(loss)(&far).unwrap().to_vec::<f64>().unwrap();
    assert_eq!(g, [0.0, 1.0, 2.0, 0.0]);
    // Of equal ones the last.
    let top = |x: &Array| ops::sum(&ops::cummax(x, Some(0), false, true)?, (), false);
    assert_eq!(grad(top)(&array([1.0, 1.0, 0.0])).unwrap().to_vec::<f64>().unwrap(), [1.0, 2.0, 0.0]);
}

#[test]
fn orders() {
    let x = || normal(&[3, 7], 70);
    for axis in [Some(0), Some(1), None] {
        one("sort", x(), &|a| ops::sort(a, axis));
        one("partition", x(), &|a| ops::partition(a, 2, axis));
        one("topk", x(), &|a| ops::topk(a, 2, axis));
    }
    one("median", x(), &|a| ops::median(a, 1, false));
    one("median of all", x(), &|a| ops::median(a, (), false));
    one("median of an even number", normal(&[4, 3], 71), &|a| ops::median(a, 0, true));
    one("wide partition", normal(&[2, 60], 72), &|a| ops::partition(a, 20, Some(1)));
    let numbers = |x: &[Array]| {
        let a = &x[0];
        Ok(vec![
            ops::argsort(a, Some(0))?,
            ops::argsort(a, None)?,
            ops::argpartition(a, 2, Some(1))?,
            ops::argmax(a, Some(1), false)?,
            ops::argmin(a, None, true)?,
            ops::argmax(a, Some(0), true)?,
        ])
    };
    mapping("positions", &numbers, &[x()]);
    for right in [false, true] {
        let f = |x: &[Array]| Ok(vec![ops::searchsorted(&x[0], &x[1], right)?]);
        let sequence = array([-1.0, -0.3, 0.0, 0.0, 0.7, 2.0]);
        mapping("searchsorted", &f, &[sequence.clone(), normal(&[2, 3], 73)]);
        mapping("searchsorted of a number", &f, &[sequence.clone(), array(0.69)]);
        let twice = vmap(|x: &Vec<Array>| {
            vmap_axes(|x: &Vec<Array>| ops::searchsorted(&x[0], &x[1], right), [Some(0), None], 0)(x)
        });
        let sequences = ops::sort(&normal(&[2, 3, 5], 74), Some(2)).unwrap();
        let values = normal(&[2, 4], 75);
        let all = twice(&vec![sequences.clone(), values.clone()]).unwrap();
        for (i, j) in [(0, 0), (0, 2), (1, 1)] {
            let single = ops::searchsorted(&sequences.index((i, j)), &values.index(i), right).unwrap();
            assert_eq!(all.index((i, j)).to_vec::<u32>().unwrap(), single.to_vec::<u32>().unwrap());
        }
    }
    let chosen = |x: &Array| {
        let best = ops::argmax(x, Some(0), false)?;
        ops::sum(&ops::multiply(&ops::take(x, &best, 0)?, ops::astype(&best, Dtype::Float64)?)?, (), false)
    };
    assert_eq!(grad(chosen)(&array([1.0, 3.0, 2.0])).unwrap().to_vec::<f64>().unwrap(), [0.0, 1.0, 0.0]);
}

#[test]
fn softmax_and_its_kin() {
    for axes in [vec![0], vec![-1], vec![0, 1], vec![0, 2]] {
        let x = || normal(&[2, 3, 4], 80);
        one("softmax", x(), &|a| ops::softmax(a, axes.clone()));
        one("logsumexp", x(), &|a| ops::logsumexp(a, axes.clone(), false));
    }
    let x = array([[f64::NEG_INFINITY, f64::NEG_INFINITY], [0.0, f64::NEG_INFINITY]]);
    let total = |x: &Array| ops::sum(&ops::logsumexp(x, -1, false)?, (), false);
    assert_eq!(grad(total)(&x).unwrap().to_vec::<f64>().unwrap(), [0.0, 0.0, 1.0, 0.0]);

    let targets = || array([1, 3]);
    let loss = |x: &[Array]| Ok(vec![ops::fast::cross_entropy(&x[0], &x[1])?]);
    mapping("cross entropy", &loss, &[normal(&[2, 4], 81), targets()]);
    for (dtype, close) in [(Dtype::Float32, 1e-6), (Dtype::Bfloat16, 1e-2)] {
        let logits = normal(&[2, 4], 82).astype(dtype);
        let fused = |x: &Array| ops::sum(&ops::square(&ops::fast::cross_entropy(x, &targets())?)?, (), false);
        let plain = |x: &Array| {
            let logit = ops::squeeze(&ops::take_along_axis(x, &ops::expand_dims(&targets(), 1)?, 1)?, 1)?;
            let loss = ops::subtract(ops::logsumexp(x, 1, false)?, logit)?;
            ops::sum(&ops::square(&loss)?, (), false)
        };
        type Loss<'a> = &'a dyn Fn(&Array) -> Result<Array>;
        let first = |f: Loss<'_>, x: &Array| grad(f)(x);
        let second = |f: Loss<'_>, x: &Array| grad(|x: &Array| ops::sum(&first(f, x)?.square(), (), false))(x);
        for of in [&first as &dyn Fn(Loss<'_>, &Array) -> Result<Array>, &second] {
            let exact = of(&plain, &logits.astype(Dtype::Float64)).unwrap();
            let found = of(&fused, &logits).unwrap();
            assert_eq!(found.dtype(), dtype);
            let close = ops::allclose(&found.astype(Dtype::Float64), &exact, close, close, false).unwrap();
            assert!(close.item::<bool>().unwrap(), "{dtype}:\n{found}\n{exact}");
        }
    }
}

#[test]
fn draws_with_mapped_keys() {
    let keys = random::split(&random::key(3), 4).unwrap();
    let probabilities = positive(&[6], 90).astype(Dtype::Float32);
    type Draw<'a> = (&'a str, Box<dyn Fn(&Array) -> Result<Array> + 'a>);
    let draws: [Draw<'_>; 8] = [
        ("bits", Box::new(|k| random::bits(&[5], Some(k)))),
        ("split", Box::new(|k| random::split(k, 3))),
        ("uniform", Box::new(|k| random::uniform(0.0, 1.0, &[3, 5], Dtype::Float32, Some(k)))),
        ("wide uniform", Box::new(|k| random::uniform(0.0, 1.0, &[7], Dtype::Float64, Some(k)))),
        ("normal", Box::new(|k| random::normal(&[3], Dtype::Float32, None, None, Some(k)))),
        ("randint", Box::new(|k| random::randint(0, 100, &[9], Dtype::Int32, Some(k)))),
        ("permutation", Box::new(|k| random::permutation(random::Permuted::Range(8), Some(k)))),
        ("categorical", Box::new(|k| random::categorical(&probabilities, 0, random::Draws::Samples(9), Some(k)))),
    ];
    for (name, draw) in &draws {
        let all = vmap(|k: &Array| draw(k))(&keys).unwrap();
        for i in 0..4 {
            let single = draw(&keys.index(i)).unwrap();
            assert_eq!(all.index(i).shape(), single.shape(), "{name}");
            let same = ops::array_equal(&all.index(i), &single, false).unwrap();
            assert!(same.item::<bool>().unwrap(), "{name} {i}");
        }
        let first = ops::array_equal(&all.index(0), &all.index(1), false).unwrap();
        assert!(!first.item::<bool>().unwrap(), "{name}: rows differ");
    }
    // Distributions that differ, drawn from with one key and with many.
    let logits = normal(&[4, 6], 91).astype(Dtype::Float32);
    for shared in [false, true] {
        let axes = [Some(0), if shared { None } else { Some(0) }];
        let key = if shared { keys.index(2) } else { keys.clone() };
        let draw = |x: &Vec<Array>| random::categorical(&x[0], 0, random::Draws::Samples(9), Some(&x[1]));
        let all = vmap_axes(draw, axes, 0)(&vec![logits.clone(), key.clone()]).unwrap();
        for i in 0..4 {
            let key = if shared { key.clone() } else { key.index(i) };
            let single = draw(&vec![logits.index(i), key]).unwrap();
            assert_eq!(all.index(i).to_vec::<u32>().unwrap(), single.to_vec::<u32>().unwrap());
        }
    }
    // The state of the thread is one draw for all lanes.
    random::seed(5);
    let noise = |x: &Array| ops::add(x, random::uniform(0.0, 1.0, &[], Dtype::Float32, None)?);
    let all = vmap(noise)(&array([0.0f32, 0.0])).unwrap().to_vec::<f32>().unwrap();
    assert_eq!(all[0], all[1]);
    let slope = grad(|x: &Array| {
        let noise = random::normal(&[3], Dtype::Float64, Some(x), Some(x), Some(&random::key(1)))?;
        ops::sum(&noise, (), false)
    });
    assert!(slope(&array(2.0)).unwrap().item::<f64>().unwrap().is_finite());
}

#[test]
fn shapes_that_depend_on_values_cannot_be_mapped() {
    let x = normal(&[2, 3], 92);
    let masked = vmap(|x: &Array| ops::index(x, &ops::greater(x, 0)?))(&x);
    let error = masked.unwrap_err().to_string();
    assert!(error.contains("vmap") && error.contains("masks as indices"), "{error}");
    // A mask that all lanes share selects the same of each.
    let shared = vmap(|x: &Array| ops::index(x, vec![true, false, true]))(&x).unwrap();
    assert_eq!(shared.shape(), [2, 2]);
}

#[test]
fn gradients_of_complex_and_half_numbers() {
    // The real loss |z1|^2 + |z1 z2|^2 as a running product, and written out.
    let size = |z: &Array| ops::sum(&ops::square(&ops::abs(z)?)?, (), false);
    let scan = |z: &Array| size(&ops::cumprod(z, Some(0), false, true, None)?);
    let plain = |z: &Array| {
        let (a, b) = (z.index(0), z.index(1));
        ops::add(size(&a)?, size(&ops::multiply(&a, &b)?)?)
    };
    let parts = array([0.5f32, -1.5, 2.0, 0.25]);
    let z = ops::view(&parts, Dtype::Complex64).unwrap();
    let (a, b) = (grad(scan)(&z).unwrap(), grad(plain)(&z).unwrap());
    assert!(ops::allclose(&a, &b, 1e-5, 1e-6, false).unwrap().item::<bool>().unwrap(), "{a}\n{b}");

    // Rounded once: what float32 gives for the same numbers.
    let x = normal(&[2, 8], 95).astype(Dtype::Bfloat16);
    type Loss = fn(&Array) -> Result<Array>;
    let losses: [(&str, Loss); 5] = [
        ("softmax", |x| ops::multiply(&ops::softmax(x, -1)?, x)),
        ("logsumexp", |x| ops::logsumexp(x, -1, false)),
        ("cumprod", |x| ops::cumprod(x, Some(1), false, true, None)),
        ("logcumsumexp", |x| ops::logcumsumexp(x, Some(1), true, true)),
        ("take", |x| ops::take(x, &array([1, 1, 1, 0, 1]), 0)),
    ];
    for (name, f) in losses {
        let loss = |x: &Array| ops::sum(&f(x)?, (), false);
        let exact = grad(loss)(&x.astype(Dtype::Float32)).unwrap();
        let found = grad(loss)(&x).unwrap();
        assert_eq!(found.dtype(), Dtype::Bfloat16);
        let close = ops::allclose(&found.astype(Dtype::Float32), &exact, 1e-2, 1e-2, false).unwrap();
        assert!(close.item::<bool>().unwrap(), "{name}:\n{found}\n{exact}");
    }
}
