//! Fourier transforms against sums in f64.

use lapis::dtype::{c64, f16};
use lapis::ops::fft::{self, FftNorm, Frames};
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
    let error = result.expect_err("an error");
    assert!(error.kind() == kind && error.message().contains(text), "{error:?}");
}

/// Few broad blocks are dealt out by columns, many small ones whole, lines of the last axis one by one: the same bits.
#[test]
fn lines_are_transformed_alike_wherever_they_lie() {
    for shape in [[1, 256, 300], [3, 200, 170], [70, 40, 20], [5, 33, 2]] {
        let x = random(&shape, 5);
        let along = fft::fft(&x, None, 1, FftNorm::Backward).unwrap();
        let last = fft::fft(&x.swapaxes(1, 2), None, -1, FftNorm::Backward).unwrap().swapaxes(1, 2);
        assert_eq!(along.to_bytes().unwrap(), last.to_bytes().unwrap(), "{shape:?}");
    }
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

#[test]
fn shifts_move_zero_to_the_middle() {
    let x = array([0, 1, 2, 3, 4]);
    let shifted = fft::fftshift(&x, ()).unwrap();
    assert_eq!(shifted.to_vec::<i32>().unwrap(), [3, 4, 0, 1, 2]);
    assert_eq!(fft::ifftshift(&shifted, 0).unwrap().to_vec::<i32>().unwrap(), [0, 1, 2, 3, 4]);
    let square = array([[0, 1, 2], [3, 4, 5]]);
    assert_eq!(fft::fftshift(&square, ()).unwrap().to_vec::<i32>().unwrap(), [5, 3, 4, 2, 0, 1]);
    assert_eq!(fft::fftshift(&square, 1).unwrap().to_vec::<i32>().unwrap(), [2, 0, 1, 5, 3, 4]);
    assert_fails(fft::fftshift(&x, 1), ErrorKind::Axis, "axis 1");
}

#[test]
fn short_time_transform_is_a_transform_of_frames() {
    let x = reals(&[2, 50], 4);
    let window = ops::arange(1.0, 7.0, 1, None).unwrap();
    let frames = Frames { hop_length: Some(3), window: Some(window.clone()), center: false, ..Frames::default() };
    let got = fft::stft(&x, 8, &frames).unwrap();
    assert_eq!((got.shape(), got.dtype()), ([2, 5, 15].as_slice(), Dtype::Complex64));
    let (signal, got) = (complex(&x), complex(&got));
    for (row, t) in (0..2).flat_map(|r| (0..15).map(move |t| (r, t))) {
        // Six values in the middle of eight.
        let frame: Vec<Complex> = (0..8)
            .map(|i| if (1..7).contains(&i) { (signal[row * 50 + t * 3 + i].0 * i as f64, 0.0) } else { (0.0, 0.0) })
            .collect();
        for (k, want) in reference(&frame, &[8], 0, 8, -1.0)[..5].iter().enumerate() {
            let g = got[(row * 5 + k) * 15 + t];
            assert!((g.0 - want.0).hypot(g.1 - want.1) < 1e-5, "{row} {t} {k}");
        }
    }
    let centred = fft::stft(&x, 8, &Frames::default()).unwrap();
    assert_eq!(centred.shape(), [2, 5, 26]);
    let both = fft::stft(&x, 8, &Frames { onesided: Some(false), ..Frames::default() }).unwrap();
    assert_eq!(both.shape(), [2, 8, 26]);
    assert_eq!(fft::stft(&random(&[50], 1), 8, &Frames::default()).unwrap().shape(), [8, 26]);
}

#[test]
fn inverse_of_short_time_transform_gives_the_signal_back() {
    let x = reals(&[3, 100], 5);
    let hann = ops::hanning(16).unwrap();
    let cases = [
        (16, Frames::default()),
        (16, Frames { window: Some(hann.clone()), ..Frames::default() }),
        (16, Frames { hop_length: Some(5), win_length: Some(12), ..Frames::default() }),
        (15, Frames { hop_length: Some(3), norm: FftNorm::Ortho, ..Frames::default() }),
        (16, Frames { onesided: Some(false), pad_mode: ops::PadMode::Constant, ..Frames::default() }),
        (20, Frames { hop_length: Some(20), center: false, ..Frames::default() }),
    ];
    for (n_fft, frames) in cases {
        let spectrum = fft::stft(&x, n_fft, &frames).unwrap();
        let back = fft::istft(&spectrum, n_fft, 100, &frames).unwrap();
        assert_eq!((back.shape(), back.dtype()), ([3, 100].as_slice(), Dtype::Float32));
        // Behind the last whole frame nothing is known.
        let whole = (spectrum.dim(-1) - 1) * frames.hop_length.unwrap_or(n_fft / 4) + n_fft / 2;
        let (got, want) = (complex(&back), complex(&x));
        for (i, (g, w)) in got.iter().zip(&want).enumerate() {
            assert!(i % 100 >= whole.min(95) || (g.0 - w.0).abs() < 1e-5, "n_fft {n_fft}, sample {i}");
        }
    }
    // mx.fft.istft(mx.fft.stft(mx.arange(40.0), n_fft=8, hop_length=3), hop_length=3)
    let ramp = ops::arange(0.0, 40.0, 1, None).unwrap();
    let frames = Frames { hop_length: Some(3), ..Frames::default() };
    let spectrum = fft::stft(&ramp, 8, &frames).unwrap();
    assert_eq!(fft::istft(&spectrum, None, None, &frames).unwrap().shape(), [39]);
    let long = fft::istft(&spectrum, None, 45, &frames).unwrap();
    let tail: Vec<f64> = complex(&long)[38..].iter().map(|z| z.0.round()).collect();
    assert_eq!(tail, [38.0, 39.0, 38.0, 37.0, 36.0, 0.0, 0.0]);
}

#[test]
fn short_time_transform_checks_its_arguments() {
    let x = reals(&[10], 6);
    let frames = |f: &dyn Fn(&mut Frames)| {
        let mut frames = Frames::default();
        f(&mut frames);
        frames
    };
    assert_fails(fft::stft(&array(1.0f32), 4, &Frames::default()), ErrorKind::Value, "0-d");
    assert_fails(fft::stft(&x, 16, &frames(&|f| f.center = false)), ErrorKind::Value, "too short");
    assert_fails(fft::stft(&x, 8, &frames(&|f| f.hop_length = Some(0))), ErrorKind::Value, "hop");
    assert_fails(fft::stft(&x, 8, &frames(&|f| f.win_length = Some(9))), ErrorKind::Value, "(9,)");
    let wide = ops::ones::<f32>(&[1, 4]).unwrap();
    assert_fails(fft::stft(&x, 8, &frames(&|f| f.window = Some(wide.clone()))), ErrorKind::Value, "(1,4)");
    assert_fails(fft::istft(&x, None, None, &Frames::default()), ErrorKind::Value, "(10,)");
}
