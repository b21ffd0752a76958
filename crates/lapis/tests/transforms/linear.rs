//! Convolutions, products of picked matrices, Fourier and Hadamard transforms, decompositions.

use crate::check::{check, derivatives, mapping, normal, positive};
use lapis::ops::fft::{self, FftNorm};
use lapis::ops::linalg::{self, Norm};
use lapis::ops::{ConvSettings, Spatial};
use lapis::prelude::*;
use lapis::transforms::{grad, jvp, vjp};

type F<'a> = &'a dyn Fn(&[Array]) -> Result<Vec<Array>>;

/// Derivatives of functions that compute in float32 inside, of float64 inputs.
fn coarse(name: &str, f: F<'_>, inputs: &[Array]) {
    let run = || -> Result<()> {
        let x = inputs.to_vec();
        let g = |x: &Vec<Array>| -> Result<Array> {
            let mut total = ops::full(&[], 0.0, Some(Dtype::Float64))?;
            for (k, y) in f(x)?.iter().enumerate() {
                let weight = normal(y.shape(), 60 + k as u64);
                total = ops::add(&total, ops::sum(&ops::multiply(y, &weight)?, (), false)?)?;
            }
            Ok(total)
        };
        let along: Vec<Array> = x.iter().enumerate().map(|(i, a)| normal(a.shape(), 5 + i as u64)).collect();
        let (_, pulled) = vjp(g, &x, &array(1.0f64))?;
        let (_, pushed) = jvp(g, &x, &along)?;
        let mut reverse = 0.0;
        for (g, t) in pulled.iter().zip(&along) {
            reverse += ops::sum(&ops::multiply(g, t)?, (), false)?.item::<f64>()?;
        }
        let at = |h: f64| -> Result<f64> {
            let moved = x.iter().zip(&along).map(|(x, t)| ops::add(x, ops::multiply(t, h)?));
            g(&moved.collect::<Result<Vec<_>>>()?)?.item::<f64>()
        };
        const H: f64 = 1e-2;
        // Of fourth order: the step must be large.
        let difference = (8.0 * (at(H)? - at(-H)?) - (at(2.0 * H)? - at(-2.0 * H)?)) / (12.0 * H);
        let forward = pushed.item::<f64>()?;
        let size = difference.abs().max(1.0);
        assert!((reverse - difference).abs() < 2e-3 * size, "{name}: vjp {reverse}, difference {difference}");
        assert!((forward - reverse).abs() < 1e-4 * size, "{name}: jvp {forward}, vjp {reverse}");
        Ok(())
    };
    run().unwrap_or_else(|e| panic!("{name}: {e}"));
}

fn close(a: &Array, expected: &[f64]) {
    let a = ops::astype(&ops::flatten(a, 0, -1).unwrap(), Dtype::Float64).unwrap().to_vec::<f64>().unwrap();
    assert_eq!(a.len(), expected.len());
    for (i, (a, e)) in a.iter().zip(expected).enumerate() {
        assert!((a - e).abs() < 3e-5 * e.abs().max(1.0), "element {i}: {a}, not {e}");
    }
}

fn indices(values: &[i32]) -> Array {
    Array::from_vec(values.to_vec(), &[values.len()])
}

// ------------------------------------------------------------------ products

#[test]
fn products_of_picked_matrices() {
    for sorted in [false, true] {
        let picked = |x: &[Array]| Ok(vec![ops::gather_mm(&x[0], &x[1], Some(&x[2]), Some(&x[3]), sorted)?]);
        // Matrices that nobody picks, and that several do.
        let rhs = if sorted { [0, 2, 2, 3] } else { [2, 0, 3, 2] };
        let picks = [normal(&[3, 2, 4], 1), normal(&[5, 4, 3], 2), indices(&[1, 0, 1, 2]), indices(&rhs)];
        derivatives("gather_mm", &picked, &picks);
        let twice = |x: &[Array]| {
            let of = |r: &Vec<Array>| {
                let y = ops::gather_mm(&r[0], &r[1], Some(&picks[2]), Some(&picks[3]), sorted)?;
                ops::sum(&ops::square(&y)?, (), false)
            };
            grad(of)(&x.to_vec())
        };
        derivatives("gather_mm, second order", &twice, &picks[..2]);
        if !sorted {
            mapping("gather_mm", &picked, &picks);
        }
    }
    let rows = |x: &[Array]| Ok(vec![ops::gather_mm(&x[0], &x[1], None, Some(&x[2]), false)?]);
    check("rows", &rows, &[normal(&[4, 1, 3], 3), normal(&[2, 3, 2], 4), indices(&[1, 0, 1, 1])]);
}

#[test]
fn products_of_stretches() {
    let stretches = |x: &[Array]| Ok(vec![ops::segmented_mm(&x[0], &x[1], &x[2])?]);
    // One after the other; with a gap, an overlap and nothing in one of them.
    for bounds in [[0, 2, 2, 5, 5, 6], [0, 3, 1, 5, 2, 2]] {
        let segments = Array::from_vec(bounds.to_vec(), &[3, 2]);
        let x = [normal(&[2, 6], 5), normal(&[6, 3], 6)];
        let f = |x: &[Array]| stretches(&[x[0].clone(), x[1].clone(), segments.clone()]);
        check("segmented_mm", &f, &x);
    }
    // Rolled by whole turns, bounds stay bounds.
    let lanes = ops::full(&[2, 2], 0, Some(Dtype::Int32)).unwrap();
    let lanes = ops::add(&lanes, &Array::from_vec(vec![1, 4, 1, 4], &[2, 2])).unwrap();
    mapping("segmented_mm", &stretches, &[normal(&[2, 6], 5), normal(&[6, 3], 6), lanes]);
}

#[test]
fn a_lane_does_not_reach_into_the_next() {
    let picks = |x: &Vec<Array>| ops::gather_mm(&x[0], &x[1], Some(&x[2]), Some(&x[3]), false);
    let one = indices(&[0]);
    let x = [normal(&[2, 2, 2, 2], 1), normal(&[2, 2, 2, 2], 2), ops::stack(&[one.clone(), one], 0).unwrap()];
    for bad in [-1, 2] {
        let rhs = Array::from_vec(vec![bad, 0], &[2, 1]);
        let x: Vec<Array> = x.iter().cloned().chain([rhs]).collect();
        let mapped = lapis::transforms::vmap(picks)(&x).unwrap();
        assert!(mapped.eval().unwrap_err().to_string().contains("out of range"));
    }
}

// ------------------------------------------------------------------ convolutions

#[test]
fn convolutions() {
    let squared = |name: &str, settings: ConvSettings, input: &[usize], weight: &[usize]| {
        let f = |x: &[Array]| Ok(vec![ops::conv_general(&x[0], &x[1], &settings)?]);
        check(name, &f, &[normal(input, 20), normal(weight, 21)]);
    };
    let plain = ConvSettings::default;
    let each = |list: &[i64]| Spatial::from(list);
    squared("plain", plain(), &[2, 6, 3], &[4, 3, 3]);
    let whole = ConvSettings {
        stride: each(&[2, 3]),
        padding_lo: each(&[2, -1]),
        padding_hi: each(&[1, 3]),
        kernel_dilation: each(&[1, 2]),
        input_dilation: each(&[3, 2]),
        ..plain()
    };
    squared("all settings", whole.clone(), &[2, 4, 5, 2], &[3, 2, 3, 2]);
    squared("reversed", ConvSettings { flip: true, ..whole.clone() }, &[2, 4, 5, 2], &[3, 2, 3, 2]);
    squared("groups", ConvSettings { groups: 2, flip: true, ..whole }, &[2, 4, 5, 4], &[6, 2, 3, 2]);
    // The last inputs meet no window.
    squared("left over", ConvSettings { stride: each(&[3]), ..plain() }, &[1, 9, 2], &[2, 2, 2]);
    squared("each channel alone", ConvSettings { groups: 3, ..plain() }, &[2, 5, 5, 3], &[3, 3, 3, 1]);
    squared("two outputs a channel", ConvSettings { groups: 2, ..plain() }, &[1, 6, 2], &[4, 3, 1]);
    let deep = ConvSettings { stride: each(&[1, 2, 1]), padding_lo: Spatial::All(1), groups: 2, ..plain() };
    squared("three axes", deep, &[1, 3, 4, 3, 2], &[2, 2, 3, 2, 1]);
    let back = |x: &[Array]| Ok(vec![ops::conv_transpose2d(&x[0], &x[1], 2, 1, 1, 1, 1)?]);
    check("transposed", &back, &[normal(&[1, 3, 4, 2], 22), normal(&[3, 3, 2, 2], 23)]);
    let line = |x: &[Array]| Ok(vec![ops::convolve(&x[0], &x[1], ops::ConvolveMode::Same)?]);
    check("convolve", &line, &[normal(&[7], 24), normal(&[3], 25)]);
}

/// sin(0), sin(1), ...
fn sines(shape: &[usize]) -> Array {
    let n: usize = shape.iter().product();
    Array::from_vec((0..n).map(|i| (i as f32).sin()).collect::<Vec<_>>(), shape)
}

/// cos(0), cos(1), ...
fn cosines(shape: &[usize]) -> Array {
    let n: usize = shape.iter().product();
    Array::from_vec((0..n).map(|i| (i as f32).cos()).collect::<Vec<_>>(), shape)
}

// One of the values is near 1/pi by chance.
#[allow(clippy::approx_constant)]
#[test]
fn convolution_gradients_are_those_of_mlx() {
    let settings = ConvSettings {
        stride: [2, 1].into(),
        padding_lo: [1, 0].into(),
        padding_hi: [2, 1].into(),
        kernel_dilation: [1, 2].into(),
        ..ConvSettings::default()
    };
    let f = |x: &Vec<Array>| -> Result<Array> {
        let y = ops::conv_general(&x[0], &x[1], &settings)?;
        let weight = ops::sin(&ops::multiply(ops::arange(0, y.size(), 1, Some(Dtype::Float32))?, 0.5)?)?;
        ops::sum(&ops::multiply(&y, ops::reshape(&weight, y.shape())?)?, (), false)
    };
    let g = grad(f)(&vec![sines(&[1, 5, 4, 2]), cosines(&[2, 3, 2, 2])]).unwrap();
    close(
        &g[0],
        &[
            -0.45913, -0.13192, -1.50528, -0.03578, -0.85092, 0.56727, 1.46662, 1.62061, 0.04076, -0.50467, -1.29707,
            -2.60901, -2.02847, -2.44331, -1.52223, 0.96407, 0.24369, 0.13655, 1.43082, 0.0543, 1.20633, -0.3183,
            -1.37214, -1.53704, -0.26157, 0.1078, 1.15972, 2.43112, 1.89282, 2.82002, 1.46736, -0.84549, -0.02337,
            -0.13845, -1.32772, -0.07174, -1.53761, 0.06297, 1.2502, 1.42271,
        ],
    );
    close(
        &g[1],
        &[
            2.08791, 0.42078, -1.55023, -0.51286, -1.05844, -3.00198, 0.37224, 2.12434, -1.91036, -0.5655, 1.61954,
            0.75932, 1.30011, 0.87522, -1.64862, -1.30481, 0.46806, -1.12965, -0.8885, 1.49493, -1.00836, -0.96869,
            1.60168, 1.47785,
        ],
    );
}

// ------------------------------------------------------------------ Fourier, Hadamard

fn complex(re: &Array, im: &Array) -> Result<Array> {
    let im = ops::multiply(ops::astype(im, Dtype::Complex64)?, lapis::dtype::c64::new(0.0, 1.0))?;
    ops::add(ops::astype(re, Dtype::Complex64)?, im)
}

/// Real and imaginary part.
fn parts(z: &Array) -> Result<Vec<Array>> {
    Ok(vec![ops::real(z)?, ops::imag(z)?])
}

#[test]
fn fourier_transforms() {
    type Transform = fn(&Array, Option<usize>, i32, FftNorm) -> Result<Array>;
    let kinds: [(&str, Transform); 4] = [
        ("fft", |a, n, i, s| fft::fft(a, n, i, s)),
        ("ifft", |a, n, i, s| fft::ifft(a, n, i, s)),
        ("rfft", |a, n, i, s| fft::rfft(a, n, i, s)),
        ("irfft", |a, n, i, s| fft::irfft(a, n, i, s)),
    ];
    for (name, f) in kinds {
        for (n, norm) in [(None, FftNorm::Backward), (Some(4), FftNorm::Ortho), (Some(7), FftNorm::Forward)] {
            let of = |x: &[Array]| {
                let z = if name == "rfft" { x[0].clone() } else { complex(&x[0], &x[1])? };
                let y = f(&z, n, 1, norm)?;
                // Not linear, so that second derivatives are there.
                parts(&ops::multiply(&y, &y)?)
            };
            let x = [normal(&[2, 5, 2], 30), normal(&[2, 5, 2], 31)];
            let x = if name == "rfft" { &x[..1] } else { &x[..] };
            coarse(name, &of, x);
            let second = |x: &[Array]| {
                let total = |x: &Vec<Array>| {
                    let y = of(x)?;
                    ops::astype(&ops::sum(&ops::square(&y[0])?, (), false)?, Dtype::Float64)
                };
                let g = grad(total)(&x.to_vec())?;
                g.iter().map(|g| ops::multiply(g, 0.01)).collect()
            };
            coarse(&format!("{name}, second order"), &second, x);
            mapping(name, &of, x);
        }
    }
    let frames = fft::Frames { window: Some(ops::hanning(8).unwrap()), ..fft::Frames::default() };
    coarse("stft", &|x| parts(&fft::stft(&x[0], 8, &frames)?), &[normal(&[2, 20], 32)]);
    let there_and_back = |x: &[Array]| Ok(vec![fft::istft(&fft::stft(&x[0], 8, &frames)?, None, None, &frames)?]);
    coarse("istft", &there_and_back, &[normal(&[2, 20], 32)]);
}

#[test]
fn fourier_gradients_are_those_of_mlx() {
    let waves = |count: usize| {
        let two = ops::cos(&ops::arange(0, 12, 2, Some(Dtype::Float32)).unwrap()).unwrap();
        let z = complex(&sines(&[6]), &two).unwrap();
        ops::slice(&z, &[(None, Some(count as i64), 1)]).unwrap()
    };
    let weights = |n: usize| Array::from_vec([1.0f32, -2.0, 0.5, 3.0, 1.5, -1.0][..n].to_vec(), &[n]);
    let weighted = |y: Array| ops::sum(&ops::multiply(&y, weights(y.size()))?, (), false);
    let pairs = |g: &Array| ops::stack(&parts(g).unwrap(), 1).unwrap();
    let g = grad(|z: &Array| weighted(ops::abs(&fft::fft(z, 5, 0, FftNorm::Backward)?)?))(&waves(6)).unwrap();
    let expected =
        [1.4822, 6.01159, 4.04072, 1.58404, -2.95456, -1.74884, 0.84154, 0.37457, 0.77037, -3.47813, 0.0, 0.0];
    close(&pairs(&g), &expected);
    let g = grad(|z: &Array| weighted(ops::abs(&fft::ifft(z, 6, 0, FftNorm::Backward)?)?))(&waves(6)).unwrap();
    let expected =
        [0.3739, 0.55777, -0.55417, -0.72828, -0.07383, 0.24196, 0.03832, -0.0765, 0.51801, 0.41632, 0.57962, -0.88279];
    close(&pairs(&g), &expected);
    let g = grad(|x: &Array| weighted(ops::abs(&fft::rfft(x, None, 0, FftNorm::Backward)?)?))(&sines(&[6])).unwrap();
    close(&g, &[4.5473, -3.51852, 1.70484, -1.81903, 5.74786, -0.66245]);
    let g = grad(|z: &Array| weighted(fft::irfft(z, None, 0, FftNorm::Backward)?))(&waves(4)).unwrap();
    close(&pairs(&g), &[0.5, 0.0, -1.5, 0.57735, 1.5, 0.0, 0.5, 0.0]);
}

#[test]
fn hadamard_transforms() {
    for n in [8, 12, 20, 28, 24] {
        let f = |x: &[Array]| Ok(vec![ops::hadamard_transform(&x[0], None)?.square()]);
        check("hadamard_transform", &f, &[normal(&[2, n], 33)]);
    }
}

// ------------------------------------------------------------------ linear algebra

/// Positive definite, of any square matrices.
fn definite(a: &Array) -> Result<Array> {
    let n = a.shape()[a.ndim() - 1];
    ops::add(ops::matmul(a, &ops::matrix_transpose(a)?)?, ops::multiply(ops::eye(n, None, 0, Some(a.dtype()))?, 2.0)?)
}

/// Matrices that are far from singular, of any.
fn regular(a: &Array) -> Result<Array> {
    let n = a.shape()[a.ndim() - 1];
    ops::add(a, ops::multiply(ops::eye(n, None, 0, Some(a.dtype()))?, 4.0)?)
}

#[test]
fn inverses_and_systems() {
    let a = || normal(&[2, 3, 3], 40);
    check("inv", &|x| Ok(vec![linalg::inv(&regular(&x[0])?)?]), &[a()]);
    for upper in [false, true] {
        check("tri_inv", &|x| Ok(vec![linalg::tri_inv(&regular(&x[0])?, upper)?]), &[a()]);
        let inverse = |x: &[Array]| Ok(vec![linalg::cholesky_inv(&regular(&x[0])?, upper)?]);
        check("cholesky_inv", &inverse, &[a()]);
        let system = |x: &[Array]| Ok(vec![linalg::solve_triangular(&regular(&x[0])?, &x[1], upper)?]);
        check("solve_triangular", &system, &[a(), normal(&[2, 3, 2], 41)]);
    }
    let system = |x: &[Array]| Ok(vec![linalg::solve(&regular(&x[0])?, &x[1])?]);
    check("solve", &system, &[a(), normal(&[2, 3, 2], 42)]);
    check("solve, vectors", &system, &[a(), normal(&[3], 43)]);
    check("solve, one matrix", &system, &[normal(&[3, 3], 44), normal(&[2, 3, 2], 45)]);
}

#[test]
fn determinants() {
    for n in 1..=5 {
        let x = [normal(&[2, n, n], 50 + n as u64)];
        check("det", &|x| Ok(vec![linalg::det(&x[0])?]), &x);
        let both = |x: &[Array]| {
            let (sign, log) = linalg::slogdet(&x[0])?;
            Ok(vec![sign, log])
        };
        check("slogdet", &both, &x);
    }
    // Of singular matrices: the products of the other rows stay.
    for n in 2..=5 {
        let x = normal(&[n, n], 56);
        let first = ops::slice(&x, &[(None, Some(1), 1)]).unwrap();
        let zero = ops::multiply(&first, 0.0).unwrap();
        let rest = ops::slice(&x, &[(Some(1), None, 1)]).unwrap();
        let singular = ops::concatenate(&[zero, rest], 0).unwrap();
        let f = |a: &Array| linalg::det(a);
        assert_eq!(f(&singular).unwrap().item::<f64>().unwrap(), 0.0);
        derivatives("det of a singular matrix", &|x| Ok(vec![f(&x[0])?]), &[singular]);
        // Of rank 0 there is none.
        let g = grad(|a: &Array| f(a))(&ops::zeros::<f64>(&[n, n]).unwrap()).unwrap();
        assert!(g.all_finite().unwrap());
        assert_eq!(ops::max(&g.abs(), (), false).unwrap().item::<f64>().unwrap(), 0.0);
    }
}

#[test]
fn triangular_and_orthogonal_factors() {
    let a = || normal(&[2, 4, 4], 60);
    for upper in [false, true] {
        check("cholesky", &|x| Ok(vec![linalg::cholesky(&definite(&x[0])?, upper)?]), &[a()]);
    }
    for shape in [[4, 4], [5, 3], [3, 5], [1, 3], [3, 1]] {
        let x = [normal(&[2, shape[0], shape[1]], 61)];
        let qr = |x: &[Array]| linalg::qr(&x[0]).map(|(q, r)| vec![q, r]);
        check("qr", &qr, &x);
        check("q", &|x| Ok(vec![qr(x)?.remove(0)]), &x);
        check("r", &|x| Ok(vec![qr(x)?.remove(1)]), &x);
        let lu = |x: &[Array]| linalg::lu(&x[0]).map(|(_, l, u)| vec![l, u]);
        check("lu", &lu, &x);
        check("lu_factor", &|x| Ok(vec![linalg::lu_factor(&x[0])?.0]), &x);
    }
}

/// `v diag(f) vᵀ`, which does not depend on the choice of vectors.
fn conjugated(v: &Array, f: &Array, vt: &Array) -> Result<Array> {
    ops::matmul(&ops::multiply(v, ops::expand_dims(f, -2)?)?, vt)
}

#[test]
fn spectra_of_hermitian_matrices() {
    let x = [normal(&[2, 4, 4], 70)];
    for uplo in ["L", "U"] {
        check("eigvalsh", &|x| Ok(vec![linalg::eigvalsh(&definite(&x[0])?, uplo)?]), &x);
        let both = |x: &[Array]| {
            let (w, v) = linalg::eigh(&definite(&x[0])?, uplo)?;
            Ok(vec![conjugated(&v, &ops::log(&w)?, &ops::matrix_transpose(&v)?)?, w])
        };
        check("eigh", &both, &x);
    }
}

#[test]
fn singular_values_and_vectors() {
    for shape in [[3, 3], [4, 2], [2, 4]] {
        let x = [normal(&[2, shape[0], shape[1]], 71)];
        let k = shape[0].min(shape[1]) as i64;
        check("singular values", &|x| Ok(vec![linalg::singular_values(&x[0])?]), &x);
        let whole = (None, None, 1);
        let vectors = |x: &[Array]| {
            let (u, s, vt) = linalg::svd(&x[0])?;
            let (un, vn) = (
                ops::slice(&u, &[whole, whole, (None, Some(k), 1)])?,
                ops::slice(&vt, &[whole, (None, Some(k), 1), whole])?,
            );
            let mixed = conjugated(&un, &ops::sin(&s)?, &vn)?;
            let left = conjugated(&un, &ops::exp(&s)?, &ops::matrix_transpose(&un)?)?;
            let right = conjugated(&ops::matrix_transpose(&vn)?, &ops::cos(&s)?, &vn)?;
            // What is left of the space.
            let rest = ops::slice(&u, &[whole, whole, (Some(k), None, 1)])?;
            let null = ops::slice(&vt, &[whole, (Some(k), None, 1), whole])?;
            let rest = ops::matmul(&rest, &ops::matrix_transpose(&rest)?)?;
            let null = ops::matmul(&ops::matrix_transpose(&null)?, &null)?;
            Ok(vec![mixed, left, right, rest, null, s])
        };
        check("svd", &vectors, &x);
        check("pinv", &|x| Ok(vec![linalg::pinv(&x[0])?]), &x);
        for ord in [Norm::Nuclear, Norm::P(2.0), Norm::P(-2.0), Norm::Frobenius, Norm::P(1.0), Norm::P(f64::INFINITY)] {
            check("norm", &|x| Ok(vec![linalg::norm(&x[0], ord, [-2, -1], false)?]), &x);
        }
    }
    for p in [1.0, 2.0, 3.0, f64::INFINITY] {
        check("norm of vectors", &|x| Ok(vec![linalg::norm(&x[0], p, -1, false)?]), &[normal(&[2, 3], 72)]);
    }
    // Equal singular values: the pseudoinverse is the inverse.
    let near = |f: fn(&Array) -> Result<Array>| {
        let of = |a: &Array| ops::sum(&ops::multiply(f(a)?, normal(&[3, 3], 73))?, (), false);
        grad(of)(&ops::eye(3, None, 0, Some(Dtype::Float64)).unwrap()).unwrap()
    };
    close(&near(linalg::pinv), &near(linalg::inv).to_vec::<f64>().unwrap());
}

#[test]
fn eigenvalues_of_general_matrices() {
    let x = [positive(&[2, 3, 3], 74)];
    // Sums over the spectrum do not depend on its order.
    let values = |x: &[Array]| parts(&ops::sum(&ops::exp(&linalg::eigvals(&x[0])?)?, -1, false)?);
    coarse("eigvals", &values, &x);
    let turning = |x: &[Array]| parts(&ops::sum(&ops::sin(&linalg::eigvals(&normal_part(&x[0])?)?)?, -1, false)?);
    coarse("eigvals, complex", &turning, &x);
    let vectors = |x: &[Array]| {
        let (w, v) = linalg::eig(&normal_part(&x[0])?)?;
        let back = conjugated(&v, &ops::sin(&w)?, &linalg::inv(&v)?)?;
        // Lengths of 1, whatever the phase.
        let sizes = ops::sum(&ops::square(&ops::square(&ops::abs(&v)?)?)?, (), false)?;
        Ok([parts(&back)?, vec![sizes]].concat())
    };
    coarse("eig", &vectors, &x);
    let by_vectors = |x: &[Array]| Ok(vec![ops::sum(&linalg::eig(&x[0])?.0.square(), -1, false)?.real()]);
    coarse("eigenvalues of eig", &by_vectors, &x);
    mapping("eigvals", &|x| parts(&linalg::eigvals(&x[0])?), &x);
}

/// A matrix with complex eigenvalues.
fn normal_part(a: &Array) -> Result<Array> {
    let n = a.shape()[a.ndim() - 1];
    let turn = ops::subtract(ops::eye(n, None, 1, Some(a.dtype()))?, ops::eye(n, None, -1, Some(a.dtype()))?)?;
    ops::add(ops::multiply(a, 0.3)?, ops::multiply(turn, 2.0)?)
}

#[test]
fn complex_matrices() {
    let x = [normal(&[2, 3, 3], 80), normal(&[2, 3, 3], 81)];
    let z = |x: &[Array]| complex(&x[0], &x[1]);
    let h = |a: &Array| ops::conjugate(&ops::matrix_transpose(a)?);
    let one = |by: f64| ops::multiply(ops::eye(3, None, 0, Some(Dtype::Complex64)).unwrap(), by as f32).unwrap();
    let shifted = |x: &[Array]| ops::add(z(x)?, one(4.0));
    let definite = |x: &[Array]| ops::add(ops::matmul(&z(x)?, &h(&z(x)?)?)?, one(3.0));
    coarse("inv", &|x| parts(&linalg::inv(&shifted(x)?)?), &x);
    coarse("solve", &|x| parts(&linalg::solve(&shifted(x)?, &z(x)?)?), &x);
    coarse("tri_inv", &|x| parts(&linalg::tri_inv(&shifted(x)?, true)?), &x);
    coarse("cholesky", &|x| parts(&linalg::cholesky(&definite(x)?, false)?), &x);
    coarse("cholesky, upper", &|x| parts(&linalg::cholesky(&definite(x)?, true)?), &x);
    coarse("det", &|x| parts(&linalg::det(&z(x)?)?), &x);
    let wide = [normal(&[4, 4], 82), normal(&[4, 4], 83)];
    coarse("det of 4", &|x| parts(&linalg::det(&z(x)?)?), &wide);
    let sign_and_log = |x: &[Array]| {
        let (sign, log) = linalg::slogdet(&z(x)?)?;
        Ok([parts(&sign)?, vec![log]].concat())
    };
    coarse("slogdet", &sign_and_log, &x);
    coarse("lu", &|x| Ok([parts(&linalg::lu(&shifted(x)?)?.1)?, parts(&linalg::lu(&shifted(x)?)?.2)?].concat()), &x);
    let qr = |x: &[Array]| {
        let (q, r) = linalg::qr(&shifted(x)?)?;
        Ok([parts(&q)?, parts(&r)?].concat())
    };
    coarse("qr", &qr, &x);
    let eigh = |x: &[Array]| {
        let (w, v) = linalg::eigh(&definite(x)?, "L")?;
        Ok([parts(&conjugated(&v, &ops::log(&w)?, &h(&v)?)?)?, vec![w]].concat())
    };
    coarse("eigh", &eigh, &x);
    for shape in [[3, 3], [4, 2], [2, 4]] {
        let x = [normal(&shape, 84), normal(&shape, 85)];
        let k = shape[0].min(shape[1]) as i64;
        let svd = |x: &[Array]| {
            let (u, s, vh) = linalg::svd(&z(x)?)?;
            let un = ops::slice(&u, &[(None, None, 1), (None, Some(k), 1)])?;
            let vn = ops::slice(&vh, &[(None, Some(k), 1)])?;
            let left = conjugated(&un, &ops::sin(&s)?, &h(&un)?)?;
            Ok([parts(&conjugated(&un, &ops::sin(&s)?, &vn)?)?, parts(&left)?, vec![s]].concat())
        };
        coarse("svd", &svd, &x);
        coarse("pinv", &|x| parts(&linalg::pinv(&z(x)?)?), &x);
    }
    coarse("eig", &|x| parts(&ops::sum(&linalg::eigvals(&z(x)?)?.square(), -1, false)?), &x);
    coarse("norm", &|x| Ok(vec![linalg::norm(&z(x)?, (), (), false)?]), &x);
}
