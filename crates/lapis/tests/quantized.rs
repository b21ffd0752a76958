//! Quantized weights end to end: formats, round trips, products.

use lapis::prelude::*;
use ops::{Format, Mode};

fn sample(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1u64 << 23) as f32) - 1.0
    };
    (0..n).map(|_| next()).collect()
}

#[test]
fn products_match_decoded_weights() {
    let formats = [Format::affine(4, 64), Format::affine(3, 32), Format::affine(8, 128)];
    let blocks = [Mode::Mxfp4, Mode::Mxfp8, Mode::Nvfp4].map(|m| Format::new(m, None, None));
    for format in formats.into_iter().chain(blocks) {
        let format = format.unwrap();
        let w = Array::from_vec(sample(96 * 256, 3), &[96, 256]);
        let x = Array::from_vec(sample(2 * 5 * 256, 9), &[2, 5, 256]);
        let q = ops::quantize(&w, format, None).unwrap();
        assert_eq!(q.shape().as_slice(), [96, 256]);
        let decoded = ops::dequantize(&q, Some(Dtype::Float32)).unwrap().to_vec::<f32>().unwrap();
        let y = ops::quantized_matmul(&x, &q, true).unwrap();
        assert_eq!(y.shape(), [2, 5, 96]);
        let (x, y) = (x.to_vec::<f32>().unwrap(), y.to_vec::<f32>().unwrap());
        for row in 0..10 {
            for col in [0, 41, 95] {
                let want: f64 = (0..256).map(|k| f64::from(x[row * 256 + k]) * f64::from(decoded[col * 256 + k])).sum();
                assert!((f64::from(y[row * 96 + col]) - want).abs() < 1e-4, "{format:?}");
            }
        }
    }
}

#[test]
fn gathered_products_pick_experts() {
    let format = Format::affine(4, 64).unwrap();
    let w = Array::from_vec(sample(3 * 32 * 64, 5), &[3, 32, 64]);
    let x = Array::from_vec(sample(4 * 64, 6), &[4, 1, 64]);
    let q = ops::quantize(&w, format, None).unwrap();
    let experts = array([2i32, 0, 2, 1]);
    let y = ops::gather_qmm(&x, &q, None, Some(&experts), true).unwrap();
    assert_eq!(y.shape(), [4, 1, 32]);
    let y = y.to_vec::<f32>().unwrap();
    let w = ops::dequantize(&q, None).unwrap().to_vec::<f32>().unwrap();
    let x = x.to_vec::<f32>().unwrap();
    for (i, e) in [2, 0, 2, 1].into_iter().enumerate() {
        let want: f32 = (0..64).map(|k| x[i * 64 + k] * w[(e * 32 + 7) * 64 + k]).sum();
        assert!((y[i * 32 + 7] - want).abs() < 1e-4);
    }
    let bad = ops::gather_qmm(&Array::from_slice(&x, &[4, 1, 64]), &q, None, Some(&array([0i32, 0, 3, 0])), true);
    let error = bad.unwrap().eval().unwrap_err();
    assert!(error.message().contains("position 3"), "{error}");
}

#[test]
fn wrong_formats_are_named() {
    assert!(Format::affine(7, 64).unwrap_err().message().contains("bits 7"));
    let w = Array::from_vec(sample(96, 3), &[2, 48]);
    assert!(ops::quantize(&w, Format::affine(4, 32).unwrap(), None).is_err());
}

#[test]
fn what_follows_products_is_the_same_behind_them() {
    let weights = |seed, dtype| {
        let w = Array::from_vec(sample(96 * 192, seed), &[96, 192]).astype(dtype);
        let q = ops::quantize(&w, Format::affine(4, 64).unwrap(), None).unwrap();
        ops::dequantize(&q, None).unwrap().eval().unwrap();
        q
    };
    // With few rows and many, of a result of its own and of what others hold.
    for rows in [3, 17, 600] {
        for dtype in [Dtype::Bfloat16, Dtype::Float16, Dtype::Float32] {
            let [gate, up] = [weights(1, dtype), weights(2, dtype)];
            let x = Array::from_vec(sample(rows * 192, 3), &[1, rows, 192]).astype(dtype);
            let more = Array::from_vec(sample(rows * 96, 4), &[1, rows, 96]).astype(dtype);
            lapis::eval([&x, &more]).unwrap();
            let product = |q| ops::quantized_matmul(&x, q, true).unwrap();
            let ends: [&dyn Fn(&Array, &Array) -> Array; 4] = [
                &|g, u| ops::multiply(&ops::multiply(g, ops::sigmoid(g).unwrap()).unwrap(), u).unwrap(),
                &|g, _| ops::add(&more, g).unwrap(),
                &|g, u| ops::add(&ops::maximum(g, u).unwrap(), &more).unwrap(),
                &|g, u| ops::add(&ops::sum(g, -1, true).unwrap(), u).unwrap(),
            ];
            for (i, end) in ends.into_iter().enumerate() {
                let (g, u) = (product(&gate), product(&up));
                lapis::eval([&g, &u]).unwrap();
                let bits = |y: Array| ops::view(&y, Dtype::Uint16).unwrap().to_vec::<u16>().unwrap();
                let want = bits(end(&g, &u));
                assert!(bits(end(&product(&gate), &product(&up))) == want, "group {i}, {rows} rows of {dtype}");
                let (g, u) = (product(&gate), product(&up));
                let y = end(&g, &u);
                assert!(
                    bits(y) == want && bits(g).len() == rows * 96 * dtype.size() / 2,
                    "group {i}, {rows} rows of {dtype}, held"
                );
            }
        }
    }
}
