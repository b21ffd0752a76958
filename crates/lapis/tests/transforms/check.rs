//! What every rule must satisfy: derivatives against finite differences, the two modes against each other, mapping
//! against a loop. Functions are checked in float64, where differences are exact to about 1e-8.

use lapis::prelude::*;
use lapis::transforms::{grad, jvp, vjp, vmap_axes};

type F<'a> = &'a dyn Fn(&[Array]) -> Result<Vec<Array>>;

/// Values that no rule can be right on by luck: normal, seeded.
pub(crate) fn normal(shape: &[usize], seed: u64) -> Array {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        ((x >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    let n: usize = shape.iter().product();
    let value = |(a, b): (f64, f64)| (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos();
    Array::from_vec((0..n).map(|_| value((next(), next()))).collect::<Vec<f64>>(), shape)
}

/// Positive values, from about 0.5 to 3.
pub(crate) fn positive(shape: &[usize], seed: u64) -> Array {
    ops::exp(&ops::multiply(&normal(shape, seed), 0.4).unwrap()).unwrap()
}

fn is_real(a: &Array) -> bool {
    a.dtype() == Dtype::Float64
}

/// Checks first and second derivatives of `f` by its float64 inputs, and its mapping; other inputs are constant.
pub(crate) fn check(name: &str, f: F<'_>, inputs: &[Array]) {
    derivatives(name, f, inputs);
    // The gradient of a weighted sum of the gradient: the rules of the rules.
    let second = |x: &[Array]| -> Result<Vec<Array>> {
        let reals: Vec<usize> = (0..x.len()).filter(|&i| is_real(&x[i])).collect();
        let of = |r: &Vec<Array>| weighted(&f(&placed(x, &reals, r))?);
        grad(of)(&reals.iter().map(|&i| x[i].clone()).collect::<Vec<_>>())
    };
    derivatives(&format!("{name}, second order"), &second, inputs);
    mapping(name, f, inputs);
}

fn placed(x: &[Array], reals: &[usize], values: &[Array]) -> Vec<Array> {
    let mut all = x.to_vec();
    reals.iter().zip(values).for_each(|(&i, v)| all[i] = v.clone());
    all
}

/// A scalar that depends on every real output with another weight.
fn weighted(outputs: &[Array]) -> Result<Array> {
    let mut total = ops::full(&[], 0.0, Some(Dtype::Float64))?;
    for (k, y) in outputs.iter().enumerate().filter(|(_, y)| is_real(y)) {
        total = ops::add(&total, &ops::sum(&ops::multiply(y, &normal(y.shape(), 77 + k as u64))?, (), false)?)?;
    }
    Ok(total)
}

/// vjp and jvp along random directions, against central differences and against each other.
pub(crate) fn derivatives(name: &str, f: F<'_>, inputs: &[Array]) {
    let run = || -> Result<()> {
        let reals: Vec<usize> = (0..inputs.len()).filter(|&i| is_real(&inputs[i])).collect();
        let x: Vec<Array> = reals.iter().map(|&i| inputs[i].clone()).collect();
        let real = |y: Vec<Array>| y.into_iter().filter(is_real).collect::<Vec<_>>();
        let g = |r: &Vec<Array>| -> Result<Vec<Array>> { Ok(real(f(&placed(inputs, &reals, r))?)) };
        let tangents: Vec<Array> = x.iter().enumerate().map(|(i, a)| normal(a.shape(), 5 + i as u64)).collect();
        let cotangents: Vec<Array> = g(&x)?.iter().enumerate().map(|(i, a)| normal(a.shape(), 50 + i as u64)).collect();
        let (_, pulled) = vjp(g, &x, &cotangents)?;
        let (_, pushed) = jvp(g, &x, &tangents)?;
        let dot = |a: &[Array], b: &[Array]| -> Result<f64> {
            let mut total = 0.0;
            for (a, b) in a.iter().zip(b) {
                total += ops::sum(&ops::multiply(a, b)?, (), false)?.item::<f64>()?;
            }
            Ok(total)
        };
        let along = |h: f64| -> Result<Vec<Array>> {
            let moved = x.iter().zip(&tangents).map(|(x, t)| ops::add(x, &ops::multiply(t, h)?));
            g(&moved.collect::<Result<Vec<_>>>()?)
        };
        const H: f64 = 1e-5;
        let difference = (dot(&along(H)?, &cotangents)? - dot(&along(-H)?, &cotangents)?) / (2.0 * H);
        let (reverse, forward) = (dot(&pulled, &tangents)?, dot(&pushed, &cotangents)?);
        let size = difference.abs().max(1.0);
        assert!((reverse - difference).abs() < 1e-6 * size, "{name}: vjp {reverse}, difference {difference}");
        assert!((forward - reverse).abs() < 1e-9 * size, "{name}: jvp {forward}, vjp {reverse}");
        Ok(())
    };
    run().unwrap_or_else(|e| panic!("{name}: {e}"));
}

/// `f` mapped over every choice of inputs, along the first and the last axis, against a loop.
pub(crate) fn mapping(name: &str, f: F<'_>, inputs: &[Array]) {
    mapping_within(1e-9, name, f, inputs);
}

/// [`mapping`] up to a relative error.
pub(crate) fn mapping_within(tolerance: f64, name: &str, f: F<'_>, inputs: &[Array]) {
    const LANES: usize = 3;
    let run = |mask: usize, last: bool| -> Result<()> {
        let mut axes = Vec::new();
        let mut stacked = Vec::new();
        for (i, a) in inputs.iter().enumerate() {
            if mask >> i & 1 == 0 {
                axes.push(None);
                stacked.push(a.clone());
                continue;
            }
            let lanes: Vec<Array> = (0..LANES).map(|l| lane(a, l)).collect::<Result<_>>()?;
            let axis = if last { a.ndim() as i32 } else { 0 };
            axes.push(Some(axis));
            stacked.push(ops::stack(&lanes, axis)?);
        }
        let mapped = vmap_axes(|x: &Vec<Array>| f(x), axes, 0)(&stacked)?;
        for l in 0..LANES {
            let one: Vec<Array> = inputs
                .iter()
                .enumerate()
                .map(|(i, a)| if mask >> i & 1 == 0 { Ok(a.clone()) } else { lane(a, l) })
                .collect::<Result<_>>()?;
            for (k, (whole, single)) in mapped.iter().zip(f(&one)?).enumerate() {
                let part = ops::take(whole, &array([l as i32]), 0)?;
                let part = ops::squeeze(&part, 0)?;
                assert_eq!(part.shape(), single.shape(), "{name}: output {k}, lane {l}, inputs {mask:b}");
                let close = ops::allclose(&part, &single, tolerance, tolerance * 1e-3, true)?.item::<bool>()?;
                assert!(close, "{name}: output {k}, lane {l}, inputs {mask:b}:\n{part}\n{single}");
            }
        }
        Ok(())
    };
    for mask in 1..1usize << inputs.len() {
        for last in [false, true] {
            run(mask, last).unwrap_or_else(|e| panic!("{name}, inputs {mask:b}: {e}"));
        }
    }
}

/// Another input of the same kind for each lane: real ones move, others are rolled.
fn lane(a: &Array, l: usize) -> Result<Array> {
    if is_real(a) {
        return ops::multiply(a, 1.0 + 0.03 * l as f64);
    }
    ops::roll(a, [l as i64], ())
}

pub(crate) fn one(a: Result<Array>) -> Result<Vec<Array>> {
    Ok(vec![a?])
}

/// sin(a), sin(2a), sin(3a), ...
pub(crate) fn wave(shape: &[usize], a: f64) -> Array {
    let n: usize = shape.iter().product();
    Array::from_vec((0..n).map(|i| ((i + 1) as f64 * a).sin() as f32).collect::<Vec<f32>>(), shape)
}

/// The first values of an array and the sum of its magnitudes, against numbers that MLX gives.
pub(crate) fn same_as(name: &str, a: &Array, first: &[f32], total: f32) {
    let values = a.to_vec::<f32>().unwrap();
    let size = total / values.len() as f32;
    for (i, (x, y)) in values.iter().zip(first).enumerate() {
        assert!((x - y).abs() < 1e-5 * (size + y.abs()), "{name}: element {i} is {x}, not {y}");
    }
    let sum: f32 = values.iter().map(|x| x.abs()).sum();
    assert!((sum - total).abs() < 1e-5 * total, "{name}: magnitudes add up to {sum}, not {total}");
}

pub(crate) fn weighed(y: Result<Array>, shape: &[usize]) -> Result<Array> {
    ops::sum(&ops::multiply(&y?, &wave(shape, 1.1))?, (), false)
}
