//! Fourier transforms against sums in f64.

use lapis::dtype::{c64, f16};
use lapis::ops::fft::{self, FftNorm};
use lapis::prelude::*;
use lapis::{ErrorKind, Result};
use std::f64::consts::TAU;

type Complex = (f64, f64);

fn random(shape: &[usize], seed: usize) -> Array {
    let mut state = seed as u64 * 7919 + 12345;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    Array::from_vec((0..shape.iter().product()).map(|_| c64::new(next(), next())).collect(), shape)
}

fn reals(shape: &[usize], seed: usize) -> Array {
    ops::real(&random(shape, seed)).unwrap()
}

fn complex(a: &Array) -> Vec<Complex> {
    a.astype(Dtype::Complex64).to_vec::<c64>().unwrap().iter().map(|z| (f64::from(z.re), f64::from(z.im))).collect()
}

/// The sum itself, along one axis, of the input cropped or padded with zeros to n.
fn reference(x: &[Complex], shape: &[usize], axis: usize, n: usize, sign: f64) -> Vec<Complex> {
    let (outer, inner): (usize, usize) = (shape[..axis].iter().product(), shape[axis + 1..].iter().product());
    let mut out = vec![(0.0, 0.0); outer * n * inner];
    for (o, k, i) in (0..outer).flat_map(|o| (0..n).flat_map(move |k| (0..inner).map(move |i| (o, k, i)))) {
        let sum = &mut out[(o * n + k) * inner + i];
        for j in 0..n.min(shape[axis]) {
            let (re, im) = x[(o * shape[axis] + j) * inner + i];
            let (sin, cos) = (sign * TAU * ((j * k) % n) as f64 / n as f64).sin_cos();
            sum.0 += re * cos - im * sin;
            sum.1 += re * sin + im * cos;
        }
    }
    out
}

#[track_caller]
fn assert_close(got: &Array, want: &[Complex], scale: f64) {
    let got = complex(got);
    assert_eq!(got.len(), want.len());
    let size = want.iter().map(|z| z.0.hypot(z.1)).fold(1.0, f64::max) * scale;
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let error = (g.0 - w.0 * scale).hypot(g.1 - w.1 * scale);
        assert!(error <= 1e-6 * size, "element {i}: {g:?}, {w:?} times {scale}");
    }
}

#[track_caller]
fn assert_fails(result: Result<Array>, kind: ErrorKind, text: &str) {
    let error = result.err().expect("an error");
    assert!(error.kind() == kind && error.message().contains(text), "{error:?}");
}

#[test]
fn transforms_along_every_axis() {
    let shape = [3, 20, 17];
    let x = random(&shape, 1);
    let data = complex(&x);
    for axis in 0..3 {
        let n = shape[axis];
        let forward = reference(&data, &shape, axis, n, -1.0);
        assert_close(&fft::fft(&x, None, axis as i32, FftNorm::Backward).unwrap(), &forward, 1.0);
        assert_close(&fft::fft(&x, None, axis as i32 - 3, FftNorm::Ortho).unwrap(), &forward, 1.0 / (n as f64).sqrt());
        assert_close(&fft::fft(&x, None, axis as i32, FftNorm::Forward).unwrap(), &forward, 1.0 / n as f64);
        let inverse = reference(&data, &shape, axis, n, 1.0);
        assert_close(&fft::ifft(&x, None, axis as i32, FftNorm::Backward).unwrap(), &inverse, 1.0 / n as f64);
        assert_close(&fft::ifft(&x, None, axis as i32, FftNorm::Forward).unwrap(), &inverse, 1.0);
    }
    // A view is read as it lies.
    let t = x.transpose(&[2, 0, 1]);
    let copy = ops::contiguous(&t, false).unwrap();
    let of = |a: &Array| complex(&fft::fft(a, None, 1, FftNorm::Backward).unwrap());
    assert_eq!(of(&t), of(&copy));
}

#[test]
fn sizes_crop_and_pad() {
    for n in [1, 2, 3, 4, 5, 7, 8, 12, 16, 31, 64, 100, 127, 210, 256, 1000, 1009] {
        let (x, r) = (random(&[2, n], n), reals(&[2, n], n));
        assert_close(
            &fft::fft(&x, None, -1, FftNorm::Backward).unwrap(),
            &reference(&complex(&x), &[2, n], 1, n, -1.0),
            1.0,
        );
        for m in [n, n + 3, n.div_ceil(2)] {
            let whole = reference(&complex(&r), &[2, n], 1, m, -1.0);
            let half: Vec<Complex> = whole.chunks(m).flat_map(|line| line[..m / 2 + 1].to_vec()).collect();
            let spectrum = fft::rfft(&r, m, -1, FftNorm::Backward).unwrap();
            assert_eq!(spectrum.shape(), [2, m / 2 + 1]);
            assert_close(&spectrum, &half, 1.0);
            let back = fft::irfft(&spectrum, m, -1, FftNorm::Backward).unwrap();
            assert_eq!((back.shape(), back.dtype()), ([2, m].as_slice(), Dtype::Float32));
            let mut cropped: Vec<Complex> = Vec::new();
            for line in complex(&r).chunks(n) {
                cropped.extend((0..m).map(|i| line.get(i).copied().unwrap_or_default()));
            }
            assert_close(&back, &cropped, 1.0);
        }
    }
    let x = random(&[5], 3);
    assert_eq!(fft::irfft(&x, None, -1, FftNorm::Backward).unwrap().shape(), [8]);
    let empty = ops::zeros::<f32>(&[2, 0]).unwrap();
    assert_eq!(complex(&fft::fft(&empty, 4, -1, FftNorm::Backward).unwrap()), vec![(0.0, 0.0); 8]);
    assert_eq!(
        fft::fft(&ops::zeros::<f32>(&[0, 4]).unwrap(), None, -1, FftNorm::Backward).unwrap().to_vec::<c64>().unwrap(),
        []
    );
}

#[test]
fn inverse_of_real_ignores_what_a_hermitian_sequence_cannot_hold() {
    let x = Array::from_vec(vec![c64::new(4.0, 9.0), c64::new(0.0, 0.0), c64::new(2.0, 7.0)], &[3]);
    let back = fft::irfft(&x, None, -1, FftNorm::Backward).unwrap();
    assert_eq!(back.to_vec::<f32>().unwrap(), [1.5, 0.5, 1.5, 0.5]);
}

#[test]
fn several_axes() {
    let shape = [4, 6, 5];
    let x = random(&shape, 2);
    let two = reference(&reference(&complex(&x), &shape, 2, 5, -1.0), &shape, 1, 6, -1.0);
    assert_close(&fft::fft2(&x, None, None, FftNorm::Backward).unwrap(), &two, 1.0);
    let three = reference(&two, &shape, 0, 4, -1.0);
    assert_close(&fft::fftn(&x, None, None, FftNorm::Backward).unwrap(), &three, 1.0);
    assert_close(&fft::fftn(&x, None, Some(&[2, 0, 1]), FftNorm::Ortho).unwrap(), &three, 1.0 / 120f64.sqrt());
    let back = fft::ifftn(&fft::fftn(&x, None, None, FftNorm::Backward).unwrap(), None, None, FftNorm::Backward);
    assert_close(&back.unwrap(), &complex(&x), 1.0);
    let back = fft::ifft2(&fft::fft2(&x, None, None, FftNorm::Forward).unwrap(), None, None, FftNorm::Forward);
    assert_close(&back.unwrap(), &complex(&x), 1.0);

    let r = reals(&shape, 3);
    let spectrum = fft::rfftn(&r, None, None, FftNorm::Backward).unwrap();
    assert_eq!(spectrum.shape(), [4, 6, 3]);
    let back = fft::irfftn(&spectrum, Some(&shape), Some(&[0, 1, 2]), FftNorm::Backward).unwrap();
    assert_close(&back, &complex(&r), 1.0);
    let spectrum = fft::rfft2(&r, Some(&[8, 7]), Some(&[0, 1]), FftNorm::Backward).unwrap();
    assert_eq!(spectrum.shape(), [8, 4, 5]);
    assert_eq!(fft::irfft2(&spectrum, None, Some(&[0, 1]), FftNorm::Backward).unwrap().shape(), [8, 6, 5]);
    assert_eq!(fft::fftn(&x, None, Some(&[]), FftNorm::Backward).unwrap().shape(), shape);
}

#[test]
fn dtypes_become_single_precision() {
    for dtype in [Dtype::Bool, Dtype::Int32, Dtype::Float16, Dtype::Float64, Dtype::Float32] {
        let x = array([1, 0, 1, 1]).astype(dtype);
        let spectrum = fft::fft(&x, None, 0, FftNorm::Backward).unwrap();
        assert_eq!(spectrum.to_vec::<c64>().unwrap()[..2], [c64::new(3.0, 0.0), c64::new(0.0, 1.0)]);
        assert_eq!(fft::rfft(&x, None, 0, FftNorm::Backward).unwrap().dtype(), Dtype::Complex64);
    }
    let half = Array::from_vec(vec![f16::from_f32(1.5); 4], &[4]);
    assert_eq!(fft::rfft(&half, None, 0, FftNorm::Backward).unwrap().to_vec::<c64>().unwrap()[0], c64::new(6.0, 0.0));
    // The real part of complex input.
    let z = random(&[6], 9);
    let of_real = fft::rfft(&ops::real(&z).unwrap(), None, 0, FftNorm::Backward).unwrap();
    assert_eq!(complex(&fft::rfft(&z, None, 0, FftNorm::Backward).unwrap()), complex(&of_real));
}

#[test]
fn frequencies() {
    assert_eq!(fft::fftfreq(5, 1.0).unwrap().to_vec::<f32>().unwrap(), [0.0, 0.2, 0.4, -0.4, -0.2]);
    assert_eq!(fft::fftfreq(4, 0.5).unwrap().to_vec::<f32>().unwrap(), [0.0, 0.5, -1.0, -0.5]);
    assert_eq!(fft::rfftfreq(5, 1.0).unwrap().to_vec::<f32>().unwrap(), [0.0, 0.2, 0.4]);
    assert_eq!(fft::rfftfreq(4, 0.5).unwrap().to_vec::<f32>().unwrap(), [0.0, 0.5, 1.0]);
    assert_fails(fft::fftfreq(0, 1.0), ErrorKind::Value, "0 points");
}

#[test]
fn errors_name_the_transform() {
    let x = random(&[2, 3], 1);
    let norm = FftNorm::Backward;
    assert_fails(fft::fft(&x, 0, -1, norm), ErrorKind::Value, "[fft.fft] a transform of 0 points");
    assert_fails(fft::fft(&x, None, 2, norm), ErrorKind::Axis, "axis 2");
    assert_fails(fft::fft(&array(1.0f32), None, 0, norm), ErrorKind::Shape, "0-d");
    assert_fails(fft::fftn(&x, Some(&[2, 2]), None, norm), ErrorKind::Value, "sizes without axes");
    assert_fails(fft::fftn(&x, None, Some(&[0, 2]), norm), ErrorKind::Axis, "axis 2");
    assert_fails(fft::fftn(&x, None, Some(&[0, 0]), norm), ErrorKind::Axis, "twice");
    assert_fails(fft::fft2(&x, Some(&[2]), Some(&[0, 1]), norm), ErrorKind::Value, "1 sizes for 2 axes");
    assert_fails(fft::fft2(&x.reshape(&[6]), None, None, norm), ErrorKind::Axis, "axis -2");
    assert_fails(
        fft::irfft(&ops::slice(&x, &[(None, None, 1), (None, Some(1), 1)]).unwrap(), None, -1, norm),
        ErrorKind::Value,
        "0 points",
    );
    assert!(FftNorm::from_name("none").unwrap_err().message().contains("\"none\""));
}
