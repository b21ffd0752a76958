//! Quantized products: their derivatives and mapping, and that the formula is what the kernel computes.

use crate::check::{mapping, mapping_within, normal, one, same_as, wave, weighed};
use lapis::ops::{Format, Mode, Quantized, QuantizedMatmul};
use lapis::prelude::*;
use lapis::transforms::{Decompose, grad, jvp, vjp};

fn f32_normal(shape: &[usize], seed: u64) -> Array {
    ops::astype(&normal(shape, seed), Dtype::Float32).unwrap()
}

/// Weights of every mode, a stack of two.
fn weights() -> Vec<Quantized> {
    let w = f32_normal(&[2, 32, 64], 28);
    let affine = [2, 3, 4, 8].map(|bits| Format::affine(bits, 32).unwrap());
    let block = [Mode::Mxfp4, Mode::Mxfp8, Mode::Nvfp4].map(|m| Format::new(m, None, None).unwrap());
    let mut all: Vec<Quantized> =
        affine.into_iter().chain(block).map(|f| ops::quantize(&w, f, None).unwrap()).collect();
    all.push(ops::quantize(&w, block[2], Some(&array(4.0f32))).unwrap());
    all
}

/// The parts that have derivatives, and the weights with others in their place.
fn free(w: &Quantized) -> Vec<Array> {
    match &w.biases {
        Some(b) => vec![w.scales.clone(), b.clone()],
        None => w.global_scale.clone().into_iter().collect(),
    }
}
fn with(w: &Quantized, free: &[Array]) -> Quantized {
    let mut w = w.clone();
    match free {
        [scales, biases] => (w.scales, w.biases) = (scales.clone(), Some(biases.clone())),
        [global] => w.global_scale = Some(global.clone()),
        _ => {}
    }
    w
}

/// The unpacked weights in ops that have derivatives.
fn unpacked(w: &Quantized, free: &[Array]) -> Result<Array> {
    let [scales, biases] = free else {
        let global = w.global_scale.as_ref().map(|_| array(1.0f32));
        let plain = ops::dequantize(&Quantized { global_scale: global, ..w.clone() }, Some(Dtype::Float32))?;
        return free.first().map_or(Ok(plain.clone()), |g| ops::multiply(&plain, g));
    };
    let ones = with(w, &[ops::ones_like(scales, None)?, ops::zeros_like(biases, None)?]);
    let codes = ops::dequantize(&ones, None)?;
    let wide = |a: &Array| ops::repeat(a, w.format.group(), -1);
    ops::add(&ops::multiply(&codes, &wide(scales)?)?, &wide(biases)?)
}

type Function<'a> = &'a dyn Fn(&Vec<Array>) -> Result<Array>;

/// Two functions have the same values, gradients, changes, and gradients of gradients.
fn same(name: &str, f: Function<'_>, g: Function<'_>, inputs: &[Array]) {
    let close = |what: &str, a: &[Array], b: &[Array]| {
        assert_eq!(a.len(), b.len(), "{name}: {what}");
        for (i, (a, b)) in a.iter().zip(b).enumerate() {
            let size = ops::max(&ops::abs(b).unwrap(), (), false).unwrap().item::<f32>().unwrap();
            let close = ops::allclose(a, b, 1e-4, 3e-5 * f64::from(size) + 1e-6, true).unwrap();
            assert!(close.item::<bool>().unwrap(), "{name}, {what} {i}:\n{a}\n{b}");
        }
    };
    let inputs = inputs.to_vec();
    let y = f(&inputs).unwrap();
    let cotangent = f32_normal(y.shape(), 60);
    let tangents: Vec<Array> = inputs.iter().map(|a| f32_normal(a.shape(), 61)).collect();
    let gradient =
        |f: Function<'_>, x: &Vec<Array>| grad(|x: &Vec<Array>| ops::sum(&ops::square(&f(x)?)?, (), false))(x);
    let largest = |g: &Array| ops::max(&ops::abs(g)?, (), false)?.item::<f32>();
    let sizes: Vec<f32> = gradient(g, &inputs).unwrap().iter().map(|g| largest(g).unwrap()).collect();
    assert!(sizes.iter().all(|&size| size > 0.0), "{name}: a gradient is zero");
    let run = |f: Function<'_>| {
        let (y, pulled) = vjp(f, &inputs, &cotangent).unwrap();
        let (_, pushed) = jvp(f, &inputs, &tangents).unwrap();
        // The sine of numbers up to 1: of large ones it would show nothing but their last bits.
        let first = |x: &Vec<Array>| {
            let g = gradient(f, x)?;
            let each = g.iter().zip(&sizes).map(|(g, &size)| ops::sum(&ops::sin(&ops::divide(g, size)?)?, (), false));
            each.reduce(|a, b| ops::add(&a?, &b?)).unwrap()
        };
        (y, pulled, pushed, grad(first)(&inputs).unwrap())
    };
    let (a, b) = (run(f), run(g));
    close("value", &[a.0], &[b.0]);
    close("vjp", &a.1, &b.1);
    close("jvp", &[a.2], &[b.2]);
    close("second order", &a.3, &b.3);
}

fn single(w: &Quantized) -> Quantized {
    let first = |a: &Array| ops::index(a, 0).unwrap();
    let biases = w.biases.as_ref().map(first);
    Quantized { packed: first(&w.packed), scales: first(&w.scales), biases, ..w.clone() }
}

#[test]
fn quantized_products_differentiate_as_dense_ones() {
    for stacked in weights() {
        let w = single(&stacked);
        let name = format!("{:?} {}", w.format.mode(), w.format.bits());
        let inputs = |k: usize| [vec![f32_normal(&[3, k], 29)], free(&w)].concat();
        for transpose in [true, false] {
            let product = |x: &Vec<Array>| ops::quantized_matmul(&x[0], &with(&w, &x[1..]), transpose);
            let dense = |x: &Vec<Array>| {
                let w = unpacked(&w, &x[1..])?;
                let w = if transpose { ops::matrix_transpose(&w)? } else { w };
                ops::matmul(&x[0], &w)
            };
            let x = inputs(if transpose { 64 } else { 32 });
            same(&format!("{name}, transpose {transpose}"), &product, &dense, &x);
        }
        let values = |x: &Vec<Array>| ops::dequantize(&with(&w, x), Some(Dtype::Float32));
        if !free(&w).is_empty() {
            same(&name, &values, &|x| unpacked(&w, x), &free(&w));
        }
    }
}

#[test]
fn gathered_quantized_products_differentiate_as_dense_ones() {
    let (lhs, rhs) = (array([2i32, 0, 2, 1]), array([1i32, 1, 0, 1]));
    for w in weights() {
        let x = [vec![f32_normal(&[3, 2, 64], 30)], free(&w)].concat();
        let product = |x: &Vec<Array>| ops::gather_qmm(&x[0], &with(&w, &x[1..]), Some(&lhs), Some(&rhs), true);
        let dense = |x: &Vec<Array>| {
            let w = ops::matrix_transpose(&unpacked(&w, &x[1..])?)?;
            ops::matmul(&ops::take(&x[0], &lhs, 0)?, &ops::take(&w, &rhs, 0)?)
        };
        same(&format!("{:?} {}", w.format.mode(), w.format.bits()), &product, &dense, &x);
    }
}

#[test]
fn products_with_rounded_rows_have_the_gradients_of_exact_ones() {
    for stacked in weights().into_iter().filter(|w| matches!(w.format.mode(), Mode::Nvfp4 | Mode::Mxfp8)) {
        let w = single(&stacked);
        let dense = ops::dequantize(&w, Some(Dtype::Float32)).unwrap();
        let (x, g) = (f32_normal(&[3, 64], 31), f32_normal(&[3, 32], 32));
        let (_, got) = vjp(|x: &Array| ops::qqmm(x, &w, None), &x, &g).unwrap();
        let want = ops::matmul(&g, &dense).unwrap();
        assert!(ops::allclose(&got, &want, 1e-5, 1e-4, false).unwrap().item::<bool>().unwrap(), "{got}\n{want}");
        let (_, got) = jvp(|x: &Array| ops::qqmm(x, &w, None), &x, &x).unwrap();
        let want = ops::matmul(&x, &dense.t()).unwrap();
        assert!(ops::allclose(&got, &want, 1e-5, 1e-4, false).unwrap().item::<bool>().unwrap(), "{got}\n{want}");
    }
}

/// The parts of packed weights as a list, and back.
fn parts(w: &Quantized) -> Vec<Array> {
    let rest = w.biases.iter().chain(&w.global_scale).cloned();
    [w.packed.clone(), w.scales.clone()].into_iter().chain(rest).collect()
}
fn whole(w: &Quantized, parts: &[Array]) -> Result<Quantized> {
    let biases = w.biases.as_ref().map(|_| parts[2].clone());
    let global = w.global_scale.as_ref().map(|_| parts[2].clone());
    Quantized::new(parts[0].clone(), parts[1].clone(), biases, global, w.format)
}

#[test]
fn quantization_is_mapped() {
    for stacked in weights() {
        let w = single(&stacked);
        let name = format!("{:?} {}", w.format.mode(), w.format.bits());
        let format = w.format;
        let map = |what: &str, f: &dyn Fn(&[Array]) -> Result<Vec<Array>>, first: Vec<Array>, w: &Quantized| {
            mapping_within(2e-5, &format!("{what}, {name}"), f, &[first, parts(w)].concat());
        };
        map("dequantize", &|x| one(ops::dequantize(&whole(&w, x)?, None)), vec![], &w);
        let product = |x: &[Array]| one(ops::quantized_matmul(&x[0], &whole(&w, &x[1..])?, true));
        map("product", &product, vec![f32_normal(&[2, 3, 64], 33)], &w);
        map("product of a vector", &product, vec![f32_normal(&[64], 33)], &w);
        map(
            "x @ w",
            &|x| one(ops::quantized_matmul(&x[0], &whole(&w, &x[1..])?, false)),
            vec![f32_normal(&[3, 32], 34)],
            &w,
        );
        let pairs = vec![f32_normal(&[3, 2, 64], 35), array([2i64, 0, 1]), array([1i64, 0, 1])];
        let gathered = |x: &[Array]| one(ops::gather_qmm(&x[0], &whole(&w, &x[3..])?, Some(&x[1]), Some(&x[2]), true));
        map("gathered product", &gathered, pairs.clone(), &stacked);
        if matches!(format.mode(), Mode::Nvfp4 | Mode::Mxfp8) {
            map("qqmm", &|x| one(ops::qqmm(&x[0], &whole(&w, &x[1..])?, None)), vec![f32_normal(&[3, 64], 36)], &w);
            let rounded =
                |x: &[Array]| one(ops::gather_qqmm(&x[0], &whole(&w, &x[3..])?, Some(&x[1]), Some(&x[2]), None));
            map("gathered qqmm", &rounded, pairs, &stacked);
        }
        let global = w.global_scale.clone();
        let quantize = |x: &[Array]| Ok(parts(&ops::quantize(&x[0], format, x.get(1))?)[..2].to_vec());
        let inputs: Vec<Array> = [f32_normal(&[2, 64], 37)].into_iter().chain(global).collect();
        mapping_within(1e-9, &format!("quantize, {name}"), &quantize, &inputs);
    }
    mapping("to_fp8", &|x| one(ops::to_fp8(&x[0])), &[f32_normal(&[5], 38)]);
    mapping("from_fp8", &|x| one(ops::from_fp8(&x[0], Dtype::Float32)), &[array([3u8, 200, 17])]);
}

#[test]
fn positions_outside_their_lane_are_errors() {
    let w = &weights()[0];
    let x = f32_normal(&[2, 3, 1, 64], 39);
    let rhs = array([[0i64, 0, 2], [0, 0, 0]]);
    let f = |a: &Vec<Array>| ops::gather_qmm(&a[0], &whole(w, &a[2..])?, None, Some(&a[1]), true);
    let lanes: Vec<Array> = parts(w).iter().map(|p| ops::stack(&[p.clone(), p.clone()], 0).unwrap()).collect();
    let y = lapis::transforms::vmap(f)(&[vec![x, rhs], lanes].concat()).unwrap();
    assert!(lapis::eval([&y]).unwrap_err().to_string().contains("rhs_indices"));
}

#[test]
fn quantized_products_are_what_their_formula_computes() {
    for stacked in weights() {
        let w = single(&stacked);
        let name = format!("{:?} {}", w.format.mode(), w.format.bits());
        let x = f32_normal(&[3, 64], 40);
        let op = QuantizedMatmul { format: w.format, transpose: true, gathered: false, rounds_x: None };
        let with = |w: &Quantized, x: &[Array]| [vec![x[0].clone()], parts(w), x[1..].to_vec()].concat();
        let tight = |op: &QuantizedMatmul, inputs: &[Array], kernel: Result<Array>| {
            let (formula, kernel) = (op.decompose(inputs).unwrap().remove(0), kernel.unwrap());
            assert_eq!((formula.shape(), formula.dtype()), (kernel.shape(), kernel.dtype()), "{name}");
            let close = ops::allclose(&formula, &kernel, 1e-5, 1e-4, false).unwrap().item::<bool>().unwrap();
            assert!(close, "{name}, {op:?}:\n{formula}\n{kernel}");
        };
        tight(&op, &with(&w, std::slice::from_ref(&x)), ops::quantized_matmul(&x, &w, true));
        let pairs = [f32_normal(&[2, 3, 64], 41), array([1i64, 0, 1]), array([0i64, 0, 1])];
        let gathered = QuantizedMatmul { gathered: true, ..op.clone() };
        tight(
            &gathered,
            &with(&stacked, &pairs),
            ops::gather_qmm(&pairs[0], &stacked, Some(&pairs[1]), Some(&pairs[2]), true),
        );
        if matches!(w.format.mode(), Mode::Nvfp4 | Mode::Mxfp8) {
            let rounded = QuantizedMatmul { rounds_x: Some(false), ..op };
            tight(&rounded, &with(&w, std::slice::from_ref(&x)), ops::qqmm(&x, &w, None));
        }
    }
}

#[test]
fn quantized_weights_have_the_gradients_of_mlx() {
    let (w, x) = (wave(&[6, 64], 0.37), wave(&[3, 64], 0.7));
    let format = Format::affine(4, 32).unwrap();
    let q = ops::quantize(&w, format, None).unwrap();
    let inputs = [vec![x], free(&q)].concat();
    let product = |a: &Vec<Array>| weighed(ops::quantized_matmul(&a[0], &with(&q, &a[1..]), true), &[3, 6]);
    let g = grad(product)(&inputs).unwrap();
    same_as("x", &g[0], &[-1.712084, -0.9824046, -0.1731988, 0.8022718, 1.627821, 2.249362], 317.8296);
    same_as("scales", &g[1], &[38.60193, -3.622501, 32.4863, 16.54418, 14.80851, -11.63538], 233.2976);
    same_as("biases", &g[2], &[1.085599, 1.548649, 1.790303, -0.2283014, 0.5385482, -1.75576], 13.94326);
    let decoded = |a: &Vec<Array>| ops::sum(&ops::multiply(&ops::dequantize(&with(&q, a), None)?, &w)?, (), false);
    let g = grad(decoded)(&free(&q)).unwrap();
    same_as("decoded scales", &g[0], &[-126.4306, -110.1553, -104.1893, -114.9049, -132.2195, -137.0934], 1466.518);
    same_as("decoded biases", &g[1], &[0.342309, 1.518282, 1.927796, 1.364119, 0.1118091, -1.196945], 14.984);
    let coded = |w: &Array| {
        let (q, c) = (ops::quantize(w, format, None)?, wave(&[6, 2], 1.7));
        let biases = ops::multiply(&free(&q)[1], &ops::multiply(&c, 2)?)?;
        ops::sum(&ops::add(&ops::multiply(&q.scales, &c)?, &biases)?, (), false)
    };
    same_as("quantize", &grad(coded)(&w).unwrap(), &[0.0; 6], 15.28073);
}
