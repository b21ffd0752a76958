//! Linear algebra: factors multiply back, residuals are small, signs and errors are the documented ones. Values that
//! are given with digits come from NumPy in f64.

use lapis::dtype::{c64, f16};
use lapis::ops::linalg::{self, Norm};
use lapis::prelude::*;
use lapis::{ErrorKind, Result};

fn values(n: usize, seed: usize) -> Vec<f64> {
    let mut state = seed as u64 * 7919 + 12345;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f64 / (1u64 << 23) as f64 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Uniform numbers from -1 to 1, complex ones in both parts.
fn random(shape: &[usize], seed: usize, dtype: Dtype) -> Array {
    let n = shape.iter().product();
    if dtype.is_complex() {
        let (re, im) = (values(n, seed), values(n, seed + 1000));
        let z = re.iter().zip(&im).map(|(&x, &y)| c64::new(x as f32, y as f32)).collect();
        return Array::from_vec(z, shape);
    }
    Array::from_vec(values(n, seed), shape).astype(dtype)
}

const TYPES: [Dtype; 3] = [Dtype::Float32, Dtype::Float64, Dtype::Complex64];

/// What rounding may cost in sums over up to a hundred elements of size 1.
fn tolerance(dtype: Dtype) -> f64 {
    if dtype == Dtype::Float64 { 1e-12 } else { 1e-4 }
}

/// The largest difference of two arrays.
fn distance(a: &Array, b: &Array) -> f64 {
    assert_eq!(a.shape(), b.shape());
    if a.size() == 0 {
        return 0.0;
    }
    (a - b).abs().astype(Dtype::Float64).max((), false).item().unwrap()
}

#[track_caller]
fn assert_close(a: &Array, b: &Array) {
    let (d, limit) = (distance(a, b), tolerance(a.dtype()));
    assert!(d <= limit, "differ by {d} > {limit}");
}

fn adjoint(a: &Array) -> Array {
    a.conjugate().swapaxes(-1, -2)
}

fn identity(like: &Array) -> Array {
    let n = like.dim(-1);
    ops::eye(n, n, 0, Some(like.dtype())).unwrap().broadcast_to(like.shape())
}

/// Well-conditioned and Hermitian positive definite.
fn definite(shape: &[usize], seed: usize, dtype: Dtype) -> Array {
    let a = random(shape, seed, dtype);
    a.matmul(&adjoint(&a)) + identity(&a)
}

fn floats(a: &Array) -> Vec<f64> {
    a.astype(Dtype::Float64).to_vec().unwrap()
}

#[track_caller]
fn assert_values(a: &Array, want: &[f64]) {
    let got = floats(a);
    assert_eq!(got.len(), want.len());
    assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() <= 1e-5 * w.abs().max(1.0)), "{got:?} is not {want:?}");
}

/// Arrays of one shape as a batch.
fn stacked(parts: &[&Array]) -> Array {
    let shape = [&[parts.len()], parts[0].shape()].concat();
    Array::from_vec(parts.iter().flat_map(|a| floats(a)).collect(), &shape).astype(parts[0].dtype())
}

#[track_caller]
fn assert_fails<T>(result: Result<T>, kind: ErrorKind, text: &str) {
    let Err(error) = result else { panic!("no error") };
    assert!(error.kind() == kind && error.message().contains(text), "{error:?}");
}

#[test]
fn qr_multiplies_back() {
    for dtype in TYPES {
        for shape in
            [[1, 1].as_slice(), &[3, 3], &[5, 3], &[3, 5], &[60, 60], &[100, 40], &[2, 3, 4, 6], &[0, 3], &[3, 0]]
        {
            let a = random(shape, 1, dtype);
            let (q, r) = linalg::qr(&a).unwrap();
            assert_close(&q.matmul(&r), &a);
            let gram = adjoint(&q).matmul(&q);
            assert_close(&gram, &identity(&gram));
            assert_close(&ops::triu(&r, 0).unwrap(), &r);
        }
    }
}

#[test]
fn qr_has_the_signs_of_lapack() {
    let (q, r) = linalg::qr(&array([[1.0f64, 2.0], [3.0, 4.0], [5.0, 6.0]])).unwrap();
    assert_values(&q, &[-0.16903085, 0.89708523, -0.50709255, 0.27602622, -0.84515425, -0.34503278]);
    assert_values(&r, &[-5.91607978, -7.43735744, 0.0, 0.82807867]);
    // A zero column head and a last row that needs no reflection.
    let (q, r) = linalg::qr(&array([[0.0f32, 2.0, 1.0], [0.0, 4.0, -3.0], [-1.0, 6.0, 2.0]])).unwrap();
    assert_values(&q, &[0.0, -0.4472136, 0.89442719, 0.0, -0.89442719, -0.4472136, 1.0, 0.0, 0.0]);
    assert_values(&r, &[-1.0, 6.0, 2.0, 0.0, -4.47213595, 2.23606798, 0.0, 0.0, 2.23606798]);
    let (q, r) = linalg::qr(&array([[-2.0f32, 1.0, 3.0], [0.0, 0.0, 1.0]])).unwrap();
    assert_values(&q, &[1.0, 0.0, 0.0, 1.0]);
    assert_values(&r, &[-2.0, 1.0, 3.0, 0.0, 0.0, 1.0]);
    let (re, im) = (array([[1.0f32, 2.0], [-3.0, 0.5]]), array([[-2.0f32, 1.0], [1.0, 4.0]]));
    let turn = ops::multiply(&im.astype(Dtype::Complex64), lapis::dtype::c64::new(0.0, 1.0)).unwrap();
    let (q, r) = linalg::qr(&(re.astype(Dtype::Complex64) + turn)).unwrap();
    let diagonal = r.diagonal(0, 0, 1).to_vec::<lapis::dtype::c64>().unwrap();
    assert!(diagonal.iter().all(|z| z.im == 0.0), "{diagonal:?}");
    let expected = [-3.872983, -4.133199];
    for (got, want) in diagonal.iter().map(|z| z.re).zip(expected) {
        assert!((got.abs() - f32::abs(want)).abs() < 1e-5, "{got}, not {want} of either sign");
    }
    let first = q.to_vec::<lapis::dtype::c64>().unwrap()[0];
    assert!((first - lapis::dtype::c64::new(-0.258199, 0.516398)).norm() < 1e-6, "{first}");
}

#[test]
fn svd_multiplies_back() {
    for dtype in TYPES {
        for shape in [[1, 1].as_slice(), &[4, 4], &[5, 3], &[3, 5], &[50, 50], &[60, 20], &[20, 60], &[2, 2, 4, 3]] {
            let a = random(shape, 2, dtype);
            let (m, n) = (a.dim(-2), a.dim(-1));
            let (u, s, vh) = linalg::svd(&a).unwrap();
            assert_eq!((u.dim(-1), vh.dim(-2), s.dim(-1)), (m, n, m.min(n)));
            let gram = adjoint(&u).matmul(&u);
            assert_close(&gram, &identity(&gram));
            let gram = vh.matmul(&adjoint(&vh));
            assert_close(&gram, &identity(&gram));
            let k = m.min(n) as i64;
            let cut = |x: &Array, rows: Option<i64>, columns: Option<i64>| {
                let mut ranges = vec![(None, None, 1); x.ndim() - 2];
                ranges.extend([(None, rows, 1), (None, columns, 1)]);
                ops::slice(x, &ranges).unwrap()
            };
            let scaled = cut(&u, None, Some(k)) * s.reshape(&[&s.shape()[..s.ndim() - 1], &[1, k as usize]].concat());
            assert_close(&scaled.matmul(&cut(&vh, Some(k), None)), &a);
            let sorted = floats(&s);
            assert!(sorted.chunks(k as usize).all(|c| c.windows(2).all(|w| w[0] >= w[1]) && c[k as usize - 1] >= 0.0));
            assert_close(&linalg::singular_values(&a).unwrap(), &s);
        }
    }
    assert_values(
        &linalg::singular_values(&array([[1.0f32, 2.0], [3.0, 4.0], [5.0, 6.0]])).unwrap(),
        &[9.52551809, 0.51430058],
    );
    let (u, s, vh) = linalg::svd(&ops::zeros::<f32>(&[2, 0]).unwrap()).unwrap();
    assert_eq!((floats(&u), s.shape(), vh.shape()), (vec![1.0, 0.0, 0.0, 1.0], [0].as_slice(), [0, 0].as_slice()));
}

#[test]
fn eigh_diagonalizes() {
    for dtype in TYPES {
        for shape in [[1, 1].as_slice(), &[3, 3], &[50, 50], &[2, 3, 4, 4]] {
            let a = random(shape, 3, dtype);
            let a = &a + adjoint(&a);
            let (w, v) = linalg::eigh(&a, "L").unwrap();
            let columns = w.reshape(&[&w.shape()[..w.ndim() - 1], &[1, w.dim(-1)]].concat());
            assert_close(&a.matmul(&v), &(&v * columns));
            let gram = adjoint(&v).matmul(&v);
            assert_close(&gram, &identity(&gram));
            assert!(floats(&w).chunks(w.dim(-1)).all(|c| c.is_sorted()));
            assert_close(&linalg::eigvalsh(&a, "U").unwrap(), &w);
            // The other triangle is not read.
            assert_close(&linalg::eigvalsh(&ops::tril(&a, 0).unwrap(), "L").unwrap(), &w);
            assert_close(&linalg::eigvalsh(&ops::triu(&a, 0).unwrap(), "U").unwrap(), &w);
        }
    }
    let s = array([[2.0f32, 1.0, 0.0], [1.0, 3.0, 1.0], [0.0, 1.0, 4.0]]);
    assert_values(&linalg::eigvalsh(&s, "L").unwrap(), &[1.26794919, 3.0, 4.73205081]);
    assert_fails(linalg::eigh(&s, "X"), ErrorKind::Value, "\"X\"");
}

#[test]
fn eig_finds_vectors_of_length_one() {
    for dtype in TYPES {
        for shape in [[1, 1].as_slice(), &[3, 3], &[30, 30], &[2, 5, 5]] {
            let a = random(shape, 4, dtype);
            let (w, v) = linalg::eig(&a).unwrap();
            assert_eq!((w.dtype(), v.dtype()), (Dtype::Complex64, Dtype::Complex64));
            let columns = w.reshape(&[&w.shape()[..w.ndim() - 1], &[1, w.dim(-1)]].concat());
            assert_close(&a.astype(Dtype::Complex64).matmul(&v), &(&v * columns));
            let lengths = v.abs().square().sum(-2, false);
            assert_close(&lengths, &ops::ones_like(&lengths, None).unwrap());
            assert_close(&linalg::eigvals(&a).unwrap().abs().sum((), false), &w.abs().sum((), false));
        }
    }
    // The cube roots of 1.
    let w = linalg::eigvals(&array([[0.0f32, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])).unwrap();
    let ones = &w * &w * &w;
    assert_close(&ones, &ops::ones_like(&ones, None).unwrap());
}

#[test]
fn cholesky_multiplies_back() {
    for dtype in TYPES {
        for shape in [[1, 1].as_slice(), &[3, 3], &[70, 70], &[2, 3, 4, 4], &[0, 0]] {
            let a = definite(shape, 5, dtype);
            let l = linalg::cholesky(&ops::tril(&a, 0).unwrap(), false).unwrap();
            let u = linalg::cholesky(&ops::triu(&a, 0).unwrap(), true).unwrap();
            let scale = 1.0 / a.dim(-1).max(1) as f32;
            assert_close(&(l.matmul(&adjoint(&l)) * scale), &(&a * scale));
            assert_close(&u, &adjoint(&l));
            assert_close(&ops::tril(&l, 0).unwrap(), &l);
            let inverse = linalg::inv(&a).unwrap();
            assert_close(&linalg::cholesky_inv(&l, false).unwrap(), &inverse);
            assert_close(&linalg::cholesky_inv(&u, true).unwrap(), &inverse);
        }
    }
    let good = array([[2.0f32, 1.0], [1.0, 2.0]]);
    let batch = stacked(&[&good, &array([[1.0f32, 2.0], [2.0, 1.0]]), &good]);
    assert_fails(linalg::cholesky(&batch, false).unwrap().eval(), ErrorKind::Eval, "(1,) is not positive definite");
    assert_fails(linalg::cholesky(&array([[f32::NAN]]), false).unwrap().eval(), ErrorKind::Eval, "positive definite");
}

#[test]
fn lu_multiplies_back() {
    for dtype in TYPES {
        for shape in [[1, 1].as_slice(), &[4, 4], &[5, 3], &[3, 5], &[60, 60], &[80, 40], &[2, 3, 4, 6]] {
            let a = random(shape, 6, dtype);
            let (p, l, u) = linalg::lu(&a).unwrap();
            assert_eq!(p.dtype(), Dtype::Uint32);
            let product = l.matmul(&u);
            let (rows, n) = (p.to_vec::<u32>().unwrap(), a.dim(-1));
            let m = a.dim(-2);
            let parts = [ops::real(&product).unwrap(), ops::imag(&product).unwrap()].map(|x| floats(&x));
            let wanted = [ops::real(&a).unwrap(), ops::imag(&a).unwrap()].map(|x| floats(&x));
            for (part, want) in parts.iter().zip(&wanted) {
                for (i, want) in want.chunks(n).enumerate() {
                    let row = &part[(i / m * m + rows[i] as usize) * n..][..n];
                    assert!(row.iter().zip(want).all(|(x, y)| (x - y).abs() <= tolerance(dtype)));
                }
            }
            assert!(l.abs().astype(Dtype::Float32).max((), false).item::<f32>().unwrap() <= 1.5);
            // Packed factors hold both triangles.
            let (packed, pivots) = linalg::lu_factor(&a).unwrap();
            assert_eq!((packed.shape(), pivots.dim(-1)), (a.shape(), a.dim(-1).min(a.dim(-2))));
        }
    }
    let a = array([[0.0f32, 1.0, 2.0], [4.0, 5.0, 6.0], [8.0, 9.0, 11.0]]);
    let (packed, pivots) = linalg::lu_factor(&a).unwrap();
    // scipy.linalg.lu_factor
    assert_values(&packed, &[8.0, 9.0, 11.0, 0.0, 1.0, 2.0, 0.5, 0.5, -0.5]);
    assert_eq!(pivots.to_vec::<u32>().unwrap(), [2, 2, 2]);
    // A singular matrix still has factors.
    for n in [3usize, 40] {
        let ones = ops::ones::<f32>(&[n, n]).unwrap();
        let (_, l, u) = linalg::lu(&ones).unwrap();
        assert_close(&l.matmul(&u), &ones);
    }
}

#[test]
fn inverses_and_systems() {
    for dtype in TYPES {
        for n in [1, 2, 3, 20, 30, 70] {
            let a = random(&[2, n, n], 7, dtype) + identity(&random(&[2, n, n], 7, dtype)) * 4.0;
            let inverse = linalg::inv(&a).unwrap();
            assert_close(&a.matmul(&inverse), &identity(&a));
            let b = random(&[2, n, 3], 8, dtype);
            assert_close(&a.matmul(&linalg::solve(&a, &b).unwrap()), &b);
            for upper in [false, true] {
                let t = if upper { ops::triu(&a, 0) } else { ops::tril(&a, 0) }.unwrap();
                // Only the triangle counts.
                let inverse = linalg::tri_inv(&a, upper).unwrap();
                assert_close(&t.matmul(&inverse), &identity(&a));
                assert_close(&linalg::solve_triangular(&a, &b, upper).unwrap(), &inverse.matmul(&b));
            }
        }
    }
    let (a, v) = (
        random(&[3, 3], 9, Dtype::Float64) + ops::eye(3, 3, 0, Some(Dtype::Float64)).unwrap() * 3,
        random(&[3], 1, Dtype::Float64),
    );
    assert_close(&a.matmul(&linalg::solve(&a, &v).unwrap()), &v);
    let batch = a.broadcast_to(&[2, 3, 3]);
    let x = linalg::solve(&batch, &v).unwrap();
    assert_eq!(x.shape(), [2, 3]);
    let x = linalg::solve(&a, &random(&[4, 3, 2], 2, Dtype::Float32)).unwrap();
    assert_eq!((x.shape(), x.dtype()), ([4, 3, 2].as_slice(), Dtype::Float64));
    assert_eq!(linalg::inv(&ops::zeros::<f32>(&[0, 0]).unwrap()).unwrap().shape(), [0, 0]);
}

#[test]
fn half_precision_computes_in_f32() {
    let a = array([[2.0f32, 1.0, 0.0], [1.0, 3.0, 1.0], [0.0, 1.0, 4.0]]);
    let half = linalg::inv(&a.astype(Dtype::Float16)).unwrap();
    let want: Vec<f16> = floats(&linalg::inv(&a).unwrap()).iter().map(|&v| f16::from_f64(v)).collect();
    assert_eq!(half.to_vec::<f16>().unwrap(), want);
    let (q, r) = linalg::qr(&a.astype(Dtype::Bfloat16)).unwrap();
    assert_eq!((q.dtype(), r.dtype()), (Dtype::Bfloat16, Dtype::Bfloat16));
    assert_eq!(linalg::svd(&a.astype(Dtype::Float16)).unwrap().1.dtype(), Dtype::Float16);
    assert_eq!(linalg::eigvals(&a.astype(Dtype::Float16)).unwrap().dtype(), Dtype::Complex64);
}

#[test]
fn determinants() {
    let s = array([[2.0f32, 1.0, 0.0], [1.0, 3.0, 1.0], [0.0, 1.0, 4.0]]);
    assert_values(&linalg::det(&s).unwrap(), &[18.0]);
    assert_values(&linalg::det(&array([[0, 1], [1, 0]])).unwrap(), &[-1.0]);
    assert_values(&linalg::det(&array([[1.0f32, 2.0], [2.0, 4.0]])).unwrap(), &[0.0]);
    assert_values(&linalg::det(&ops::ones::<f64>(&[40, 40]).unwrap()).unwrap(), &[0.0]);
    assert_values(&linalg::det(&ops::zeros::<f32>(&[2, 0, 0]).unwrap()).unwrap(), &[1.0, 1.0]);
    let (sign, log) = linalg::slogdet(&(ops::eye(200, 200, 0, None).unwrap() * -10.0)).unwrap();
    assert_values(&sign, &[1.0]);
    assert_values(&log, &[200.0 * 10f64.ln()]);
    let (sign, log) = linalg::slogdet(&ops::zeros::<f32>(&[2, 2]).unwrap()).unwrap();
    assert_eq!((floats(&sign), floats(&log)), (vec![0.0], vec![f64::NEG_INFINITY]));
    let z = array([[c64::new(0.0, 2.0), c64::new(0.0, 0.0)], [c64::new(1.0, 0.0), c64::new(3.0, 0.0)]]);
    assert_eq!(linalg::det(&z).unwrap().item::<c64>().unwrap(), c64::new(0.0, 6.0));
    let (sign, log) = linalg::slogdet(&z).unwrap();
    assert_eq!((sign.item::<c64>().unwrap(), log.dtype()), (c64::new(0.0, 1.0), Dtype::Float32));
}

#[test]
fn pinv_inverts_what_has_an_inverse() {
    for dtype in TYPES {
        for shape in [[4, 4].as_slice(), &[5, 3], &[3, 5], &[2, 4, 2]] {
            let a = random(shape, 10, dtype);
            let p = linalg::pinv(&a).unwrap();
            assert_close(&a.matmul(&p).matmul(&a), &a);
            assert_close(&adjoint(&a.matmul(&p)), &a.matmul(&p));
        }
    }
    let p = linalg::pinv(&array([[1.0f32, 2.0], [2.0, 4.0], [0.0, 0.0]])).unwrap();
    assert_values(&p, &[0.04, 0.08, 0.0, 0.08, 0.16, 0.0]);
    assert_eq!(linalg::pinv(&ops::zeros::<f32>(&[2, 0]).unwrap()).unwrap().shape(), [0, 2]);
}

#[test]
fn norms() {
    let (inf, v, m) = (f64::INFINITY, array([3.0f32, -4.0, 0.0, 12.0]), array([[1.0f32, -2.0, 3.0], [4.0, 5.0, -6.0]]));
    let vectors =
        [(0.0, 3.0), (1.0, 19.0), (2.0, 13.0), (3.0, 12.20705495), (inf, 12.0), (-inf, 0.0), (0.5, 51.78460969)];
    for (p, want) in vectors {
        assert_values(&linalg::norm(&v, p, (), false).unwrap(), &[want]);
        assert_values(&linalg::norm(&stacked(&[&v, &v]).t(), p, 0, false).unwrap(), &[want, want]);
    }
    let matrices = [(1.0, 9.0), (-1.0, 5.0), (2.0, 9.22502772), (-2.0, 2.42875764), (inf, 15.0), (-inf, 6.0)];
    for (p, want) in matrices {
        assert_values(&linalg::norm(&m, p, (), false).unwrap(), &[want]);
        assert_values(&linalg::norm(&m.t(), p, [1, 0], true).unwrap(), &[want]);
    }
    for (ord, want) in [(Norm::Default, 91f64.sqrt()), (Norm::Frobenius, 91f64.sqrt()), (Norm::Nuclear, 11.65378535)] {
        assert_values(&linalg::norm(&m, ord, (), false).unwrap(), &[want]);
    }
    assert_values(&linalg::norm(&array([[[3, 4]], [[0, 12]]]), (), (), false).unwrap(), &[13.0]);
    let kept = linalg::norm(&random(&[2, 3, 4], 1, Dtype::Float32), Norm::Nuclear, [2, 0], true).unwrap();
    assert_eq!(kept.shape(), [1, 3, 1]);
    let z = linalg::norm(&array([c64::new(3.0, 4.0), c64::new(0.0, 12.0)]), 2, (), false).unwrap();
    assert_eq!(z.item::<f32>().unwrap(), 13.0);
    let half = ops::full(&[65536], 1.0, Some(Dtype::Float16)).unwrap();
    assert_eq!(linalg::norm(&half, (), (), false).unwrap().item::<f16>().unwrap(), f16::from_f32(256.0));
    assert_eq!(Norm::from_name("f").unwrap(), Norm::Frobenius);
    assert_fails(Norm::from_name("max"), ErrorKind::Value, "max");
    assert_fails(linalg::norm(&v, Norm::Frobenius, (), false), ErrorKind::Value, "Frobenius");
    assert_fails(linalg::norm(&m, 3, (), false), ErrorKind::Value, "3");
    assert_fails(linalg::norm(&kept, 1, (), false), ErrorKind::Value, "3 axes");
    assert_fails(linalg::norm(&v, (), 1, false), ErrorKind::Axis, "axis 1");
}

#[test]
fn views_and_large_batches() {
    let a = random(&[4, 4], 11, Dtype::Float32) + ops::eye(4, 4, 0, None).unwrap() * 3;
    assert_close(&linalg::inv(&a.t()).unwrap(), &linalg::inv(&a).unwrap().t());
    // Enough matrices for several threads; each result is the one it has alone.
    let many = random(&[1000, 8, 8], 12, Dtype::Float32);
    let all = linalg::inv(&many).unwrap();
    for i in [0i64, 1, 500, 999] {
        let pick = |x: &Array| ops::slice(x, &[(Some(i), Some(i + 1), 1)]).unwrap();
        assert_eq!(floats(&linalg::inv(&pick(&many)).unwrap()), floats(&pick(&all)));
    }
}

#[test]
fn faults_name_the_batch_index() {
    let good = ops::eye(2, 2, 0, None).unwrap();
    let bad = ops::ones::<f32>(&[2, 2]).unwrap();
    let batch = stacked(&[&good, &good, &good, &bad]).reshape(&[2, 2, 2, 2]);
    assert_fails(
        linalg::inv(&batch).unwrap().eval(),
        ErrorKind::Eval,
        "[linalg.inv] the matrix of batch index (1,1) is singular",
    );
    assert_fails(linalg::solve(&batch, &array([1.0f32, 2.0])).unwrap().eval(), ErrorKind::Eval, "(1,1) is singular");
    assert_fails(linalg::inv(&bad).unwrap().eval(), ErrorKind::Eval, "the matrix is singular");
    assert_fails(linalg::tri_inv(&array([[0.0f32]]), true).unwrap().eval(), ErrorKind::Eval, "singular");
    assert_fails(linalg::svd(&array([[f32::NAN]])).unwrap().1.eval(), ErrorKind::Eval, "NaN");
    assert_fails(linalg::eigh(&array([[f32::INFINITY]]), "L").unwrap().0.eval(), ErrorKind::Eval, "NaN or infinity");
    assert_fails(linalg::eig(&array([[f32::NAN]])).unwrap().0.eval(), ErrorKind::Eval, "NaN");
}

#[test]
fn shapes_and_dtypes_are_checked() {
    let (wide, vector, ints) =
        (random(&[2, 3], 1, Dtype::Float32), random(&[3], 1, Dtype::Float32), array([[1, 0], [0, 1]]));
    for f in [linalg::inv, linalg::det, |a: &Array| linalg::cholesky(a, false), |a: &Array| linalg::tri_inv(a, true)] {
        assert_fails(f(&wide), ErrorKind::Shape, "(2,3)");
        assert_fails(f(&vector), ErrorKind::Shape, "(3,)");
    }
    assert_fails(linalg::inv(&ints), ErrorKind::Dtype, "int32");
    assert_fails(linalg::qr(&ints), ErrorKind::Dtype, "int32");
    assert_fails(linalg::svd(&vector), ErrorKind::Shape, "(3,)");
    assert_fails(linalg::solve(&ints.astype(Dtype::Float32), &vector), ErrorKind::Shape, "(3,)");
}
#[test]
fn cross_products() {
    let x = linalg::cross(&array([1, 2, 3]), &array([4, 5, 6]), -1).unwrap();
    assert_eq!(x.to_vec::<i32>().unwrap(), [-3, 6, -3]);
    let flat = linalg::cross(&array([1.0f32, 2.0]), &array([3.0f32, 4.0]), 0).unwrap();
    assert_eq!(flat.to_vec::<f32>().unwrap(), [0.0, 0.0, -2.0]);
    let mixed = linalg::cross(&array([1.0f32, 2.0]), &array([[3.0f32, 4.0, 5.0], [0.0, 0.0, 1.0]]), -1).unwrap();
    assert_eq!(mixed.to_vec::<f32>().unwrap(), [10.0, -5.0, -2.0, 2.0, -1.0, 0.0]);
    let first = linalg::cross(&array([[1], [2], [3]]), &array([[4], [5], [6]]), 0).unwrap();
    assert_eq!((first.shape(), first.to_vec::<i32>().unwrap()), ([3, 1].as_slice(), vec![-3, 6, -3]));
    assert_fails(linalg::cross(&array([1, 2, 3, 4]), &x, 0), ErrorKind::Shape, "(4,)");
    assert_fails(linalg::cross(&x, &x, 1), ErrorKind::Axis, "axis 1");
}
