//! Products against f64 loops, on every instruction set of this machine; and the promise that a row's bits depend on
//! nothing but the row and the right side.

use super::*;
use crate::pool;

/// Numbers that look random and are the same every time.
fn numbers(seed: u64, n: usize) -> Vec<f64> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 40) as f64 / (1u64 << 23) as f64 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

const INTEGERS: [Dtype; 9] = [
    Dtype::Bool,
    Dtype::Uint8,
    Dtype::Uint16,
    Dtype::Uint32,
    Dtype::Uint64,
    Dtype::Int8,
    Dtype::Int16,
    Dtype::Int32,
    Dtype::Int64,
];
const FLOATS: [Dtype; 4] = [Dtype::Float32, Dtype::Float64, Dtype::Float16, Dtype::Bfloat16];

fn encode(dtype: Dtype, values: &[f64]) -> Vec<u8> {
    fn cat<const N: usize>(values: &[f64], f: impl Fn(f64) -> [u8; N]) -> Vec<u8> {
        values.iter().flat_map(|&x| f(x)).collect()
    }
    let int = |x: f64| (x * 100.0) as i64;
    match dtype {
        Dtype::Float32 | Dtype::Complex64 => cat(values, |x| (x as f32).to_ne_bytes()),
        Dtype::Float64 => cat(values, |x| x.to_ne_bytes()),
        Dtype::Float16 => cat(values, |x| f16::from_f64(x).to_ne_bytes()),
        Dtype::Bfloat16 => cat(values, |x| bf16::from_f64(x).to_ne_bytes()),
        Dtype::Bool => cat(values, |x| [(x > 0.5) as u8]),
        Dtype::Uint8 | Dtype::Int8 => cat(values, |x| (int(x) as i8).to_ne_bytes()),
        Dtype::Uint16 | Dtype::Int16 => cat(values, |x| (int(x) as i16).to_ne_bytes()),
        Dtype::Uint32 | Dtype::Int32 => cat(values, |x| (int(x) as i32).to_ne_bytes()),
        Dtype::Uint64 => cat(values, |x| int(x.abs()).to_ne_bytes()),
        Dtype::Int64 => cat(values, |x| int(x).to_ne_bytes()),
    }
}

fn decode(dtype: Dtype, bytes: &[u8]) -> Vec<f64> {
    macro_rules! each {
        ($t:ty, $f:expr) => {
            bytes.chunks_exact(size_of::<$t>()).map(|b| $f(<$t>::from_ne_bytes(b.try_into().unwrap()))).collect()
        };
    }
    match dtype {
        Dtype::Float32 | Dtype::Complex64 => each!(f32, |x| x as f64),
        Dtype::Float64 => each!(f64, |x| x),
        Dtype::Float16 => each!(f16, f16::to_f64),
        Dtype::Bfloat16 => each!(bf16, bf16::to_f64),
        Dtype::Bool | Dtype::Uint8 => each!(u8, |x| x as f64),
        Dtype::Uint16 => each!(u16, |x| x as f64),
        Dtype::Uint32 => each!(u32, |x| x as f64),
        Dtype::Uint64 => each!(u64, |x| x as f64),
        Dtype::Int8 => each!(i8, |x| x as f64),
        Dtype::Int16 => each!(i16, |x| x as f64),
        Dtype::Int32 => each!(i32, |x| x as f64),
        Dtype::Int64 => each!(i64, |x| x as f64),
    }
}

/// A matrix in memory and as numbers. Complex elements are two numbers.
struct Matrix {
    bytes: Vec<u8>,
    values: Vec<f64>,
    start: usize,
    rs: isize,
    cs: isize,
    dtype: Dtype,
}

/// Ways to lie in memory: compact by rows, by columns, rows with gaps, backwards, every second, repeated rows or columns.
const LAYOUTS: usize = 7;

impl Matrix {
    fn new(dtype: Dtype, rows: usize, cols: usize, layout: usize, seed: u64) -> Matrix {
        let (r, c) = (rows as isize, cols as isize);
        let (start, rs, cs) = match layout {
            0 => (0, c, 1),
            1 => (0, 1, r),
            2 => (3, c + 5, 1),
            3 => ((r * c - 1).max(0), -c, -1),
            4 => (1, 2 * c, 2),
            5 => (0, 0, 1),
            _ => (0, 1, 0),
        };
        let parts = if dtype == Dtype::Complex64 { 2 } else { 1 };
        let len = (start + (r - 1).max(0) * rs.max(0) + (c - 1).max(0) * cs.max(0) + 1) as usize;
        let bytes = encode(dtype, &numbers(seed, len * parts));
        Matrix { values: decode(dtype, &bytes), bytes, start: start as usize, rs, cs, dtype }
    }

    fn view(&self) -> MatRef {
        MatRef { ptr: self.bytes[self.start * self.dtype.size()..].as_ptr(), rs: self.rs, cs: self.cs }
    }

    /// Real and imaginary part.
    fn at(&self, r: usize, c: usize) -> (f64, f64) {
        let i = (self.start as isize + r as isize * self.rs + c as isize * self.cs) as usize;
        if self.dtype == Dtype::Complex64 {
            (self.values[2 * i], self.values[2 * i + 1])
        } else {
            (self.values[i], 0.0)
        }
    }
}

fn wrap(dtype: Dtype, i: i64) -> f64 {
    match dtype {
        Dtype::Bool => (i != 0) as u8 as f64,
        Dtype::Uint8 => i as u8 as f64,
        Dtype::Uint16 => i as u16 as f64,
        Dtype::Uint32 => i as u32 as f64,
        Dtype::Uint64 => i as u64 as f64,
        Dtype::Int8 => i as i8 as f64,
        Dtype::Int16 => i as i16 as f64,
        Dtype::Int32 => i as i32 as f64,
        _ => i as f64,
    }
}

/// Runs one product and compares with the f64 loop: within the error bound of a sum of k products and one rounding.
fn check(
    isa: Isa,
    dot: bool,
    dtype: Dtype,
    (m, n, k): (usize, usize, usize),
    la: usize,
    lb: usize,
    scale: Option<usize>,
) {
    let (a, b) = (Matrix::new(dtype, m, k, la, 1), Matrix::new(dtype, k, n, lb, 2));
    let c = Matrix::new(dtype, m, n, scale.unwrap_or(0), 3);
    let (alpha, beta) = if dtype.is_inexact() { (0.5, -2.0) } else { (3.0, -2.0) };
    let parts = if dtype == Dtype::Complex64 { 2 } else { 1 };
    let ld = n + 3;
    let mut out = encode(dtype, &vec![0.77; (m * ld + 1) * parts]);
    let before = out.clone();
    let layout = Layout {
        m,
        n,
        k,
        a: (a.rs, a.cs),
        b: (b.rs, b.cs),
        out: ld as isize,
        scale: scale.map(|_| Scale { alpha, beta, c: (c.rs, c.cs) }),
    };
    let entry = Entry { a: a.view().ptr, b: b.view().ptr, out: out.as_mut_ptr(), c: c.view().ptr };
    // SAFETY: the matrices hold what the layout says.
    unsafe { gemm_batched_with(isa, dot, dtype, &layout, &[entry]) };
    let name = format!("{} {dtype} {m}x{n}x{k} layouts {la} {lb} {scale:?} dot {dot}", isa.name());
    let got = decode(dtype, &out);
    // The last: half the distance of subnormals.
    let (sum_eps, out_eps, tiny) = match dtype {
        Dtype::Float64 => (f64::EPSILON, 0.0, 0.0),
        Dtype::Float16 => (f32::EPSILON as f64, 2f64.powi(-11), 2f64.powi(-25)),
        Dtype::Bfloat16 => (f32::EPSILON as f64, 2f64.powi(-8), 0.0),
        _ => (f32::EPSILON as f64, 0.0, 0.0),
    };
    // All elements of small products, every 17th row of large ones.
    for i in (0..m).step_by(if m * n * k > 1 << 22 { 17 } else { 1 }) {
        for j in 0..n {
            let (mut re, mut im, mut size) = (0.0, 0.0, 0.0);
            let mut whole = 0i64;
            for p in 0..k {
                let ((ar, ai), (br, bi)) = (a.at(i, p), b.at(p, j));
                re += ar * br - ai * bi;
                im += ar * bi + ai * br;
                size += (ar.abs() + ai.abs()) * (br.abs() + bi.abs());
                whole = whole.wrapping_add((ar as i64).wrapping_mul(br as i64));
            }
            if !dtype.is_inexact() {
                let mut want = whole;
                if dtype == Dtype::Bool {
                    want = (whole != 0 || (scale.is_some() && c.at(i, j).0 != 0.0)) as i64;
                } else if scale.is_some() {
                    want = want.wrapping_mul(3).wrapping_add((c.at(i, j).0 as i64).wrapping_mul(-2));
                }
                assert_eq!(got[i * ld + j], wrap(dtype, want), "{name} at {i} {j}");
                continue;
            }
            if scale.is_some() {
                let (cr, ci) = c.at(i, j);
                (re, im) = (alpha * re + beta * cr, alpha * im + beta * ci);
                size += 4.0 * (cr.abs() + ci.abs());
            }
            let bound = size * sum_eps * (k as f64 + 4.0) + re.abs().max(im.abs()) * out_eps + tiny;
            for (part, want) in [re, im][..parts].iter().enumerate() {
                let x = got[(i * ld + j) * parts + part];
                assert!((x - want).abs() <= bound, "{name} at {i} {j}: {x}, expected {want} within {bound}");
            }
        }
        let gap = (i * ld + n) * dtype.size()..((i + 1) * ld) * dtype.size();
        assert_eq!(out[gap.clone()], before[gap], "{name}: wrote past row {i}");
    }
}

const SHAPES: [(usize, usize, usize); 21] = [
    (0, 5, 3),
    (5, 0, 3),
    (3, 4, 0),
    (1, 1, 1),
    (1, 1, 300),
    (1, 33, 19),
    (1, 130, 257),
    (2, 100, 40),
    (5, 65, 31),
    (6, 200, 100),
    (7, 48, 5),
    (8, 70, 33),
    (14, 32, 16),
    (15, 31, 17),
    (29, 97, 300),
    (40, 1, 77),
    (65, 3, 258),
    (100, 8, 9),
    (130, 9, 20),
    (113, 129, 2),
    (230, 260, 40),
];

#[test]
fn floats_are_right_for_all_shapes() {
    for isa in isa::available() {
        for dtype in FLOATS.into_iter().chain([Dtype::Complex64]) {
            for (i, shape) in SHAPES.into_iter().enumerate() {
                for trans in 0..4 {
                    let scale = [None, Some(0), Some(1), Some(5)][(i + trans) % 4];
                    check(isa, false, dtype, shape, trans % 2, trans / 2, scale);
                }
            }
        }
    }
}

#[test]
fn all_strides_are_followed() {
    for isa in isa::available() {
        for dtype in FLOATS.into_iter().chain([Dtype::Complex64]) {
            for shape in [(1, 70, 20), (5, 40, 35), (33, 45, 270), (50, 4, 11)] {
                for (la, lb) in (0..LAYOUTS).flat_map(|la| (0..LAYOUTS).map(move |lb| (la, lb))) {
                    check(isa, false, dtype, shape, la, lb, (la == lb).then_some(la));
                }
            }
        }
    }
}

#[test]
fn integers_wrap() {
    for dtype in INTEGERS {
        for (i, shape) in SHAPES.into_iter().enumerate() {
            check(Isa::Scalar, false, dtype, shape, i % LAYOUTS, i / 2 % LAYOUTS, (i % 3 == 0).then_some(i % LAYOUTS));
        }
    }
}

/// Whether this machine has `vdpbf16ps`, fast or not.
fn has_dot() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

#[test]
fn pairs_of_bfloat16_are_right() {
    if isa::available()[0] == Isa::Avx512 && has_dot() {
        for shape in SHAPES.into_iter().chain([(70, 90, 1027), (300, 600, 513)]) {
            for (la, lb) in [(0, 0), (0, 1), (1, 0), (1, 1), (3, 4), (2, 3)] {
                check(Isa::Avx512, true, Dtype::Bfloat16, shape, la, lb, (la == 2).then_some(0));
            }
        }
    }
}

/// Bytes of `m` rows of a product.
fn product(isa: Isa, dot: bool, dtype: Dtype, (m, n, k): (usize, usize, usize), a: &Matrix, b: &Matrix) -> Vec<u8> {
    let mut out = vec![0; m * n * dtype.size()];
    let layout = Layout { m, n, k, a: (a.rs, a.cs), b: (b.rs, b.cs), out: n as isize, scale: None };
    let entry = Entry { a: a.view().ptr, b: b.view().ptr, out: out.as_mut_ptr(), c: std::ptr::null() };
    // SAFETY: the matrices hold what the layout says.
    unsafe { gemm_batched_with(isa, dot, dtype, &layout, &[entry]) };
    out
}

#[test]
fn large_products_are_right() {
    for isa in isa::available() {
        for (dtype, shape) in [
            (Dtype::Float32, (515, 530, 517)),
            (Dtype::Bfloat16, (300, 1100, 300)),
            (Dtype::Float32, (40, 2000, 1000)),
            (Dtype::Float64, (700, 270, 400)),
        ] {
            check(isa, false, dtype, shape, 0, 1, None);
            check(isa, false, dtype, shape, 1, 0, Some(0));
        }
    }
    // A k so long that the sides are packed in pieces.
    check(isa::available()[0], false, Dtype::Float32, (500, 1100, 20000), 0, 1, None);
}

#[test]
fn a_row_does_not_depend_on_the_number_of_rows() {
    for isa in isa::available() {
        let plain = FLOATS.into_iter().chain([Dtype::Complex64]).map(|dtype| (dtype, false));
        for (dtype, dot) in plain.chain((isa == Isa::Avx512 && has_dot()).then_some((Dtype::Bfloat16, true))) {
            for (n, k) in [(100, 700), (3, 150), (520, 130)] {
                for lb in 0..2 {
                    let most = 300;
                    let (a, b) = (Matrix::new(dtype, most, k, 0, 7), Matrix::new(dtype, k, n, lb, 8));
                    let all = product(isa, dot, dtype, (most, n, k), &a, &b);
                    for m in [1, 2, 3, 6, 7, 8, 13, 14, 15, 28, 100] {
                        let some = product(isa, dot, dtype, (m, n, k), &a, &b);
                        assert_eq!(
                            some[..],
                            all[..some.len()],
                            "{} {dtype} n {n} k {k} layout {lb} rows {m}",
                            isa.name()
                        );
                    }
                }
            }
        }
    }
}

/// The same numbers in other places: by rows, by columns, with gaps, every second.
#[test]
fn the_way_matrices_lie_changes_no_bit() {
    /// Copies a compact matrix to strides; what is between stays zero.
    fn laid(dtype: Dtype, from: &[u8], rows: usize, cols: usize, (rs, cs): (usize, usize)) -> Matrix {
        let size = dtype.size();
        let mut bytes = vec![0; ((rows - 1) * rs + (cols - 1) * cs + 1) * size];
        for (r, c) in (0..rows).flat_map(|r| (0..cols).map(move |c| (r, c))) {
            let (to, at) = ((r * rs + c * cs) * size, (r * cols + c) * size);
            bytes[to..to + size].copy_from_slice(&from[at..at + size]);
        }
        Matrix { bytes, values: Vec::new(), start: 0, rs: rs as isize, cs: cs as isize, dtype }
    }
    for isa in isa::available() {
        // Several stretches of k, more than one tile of columns, odd edges everywhere; then one stretch and few columns.
        for (m, n, k) in [(515, 530, 1300), (1030, 75, 270)] {
            let pairs = (isa == Isa::Avx512 && has_dot()).then_some((Dtype::Bfloat16, true));
            for (dtype, dot) in [(Dtype::Float32, false), (Dtype::Bfloat16, false)].into_iter().chain(pairs) {
                let (a, b) = (encode(dtype, &numbers(1, m * k)), encode(dtype, &numbers(2, k * n)));
                let ways = |rows, cols| [(cols, 1), (1, rows), (cols + 7, 1), (1, rows + 9), (2 * cols, 2)];
                let run = |wa, wb| {
                    let (a, b) = (laid(dtype, &a, m, k, wa), laid(dtype, &b, k, n, wb));
                    product(isa, dot, dtype, (m, n, k), &a, &b)
                };
                let want = run(ways(m, k)[0], ways(k, n)[0]);
                for (wa, wb) in
                    ways(m, k).into_iter().zip(ways(k, n)).skip(1).chain([((k, 1), (1, k)), ((1, m), (n, 1))])
                {
                    assert!(run(wa, wb) == want, "{} {dtype} {m}x{n}x{k} strides {wa:?} {wb:?}", isa.name());
                }
                if pairs.is_some() && dtype == Dtype::Bfloat16 && dot != isa::features().fast_bf16_dot {
                    continue;
                }
                // Sums that stand in scratch, on several threads; rows apart in the output.
                let (a, b) = (laid(dtype, &a, m, k, (k, 1)), laid(dtype, &b, k, n, (1, k)));
                let (size, ld) = (dtype.size(), n + 5);
                let mut out = vec![0; m * ld * size];
                let to = MatMut { ptr: out.as_mut_ptr(), rs: ld as isize };
                let epilogue = match dtype {
                    Dtype::Float32 => Epilogue::Store,
                    _ => Epilogue::Axpby { alpha: 1.0, beta: 0.0, c: MatRef { ptr: to.ptr, rs: to.rs, cs: 1 } },
                };
                // SAFETY: the matrices hold what the strides say.
                pool::with_threads(3, || unsafe { gemm(isa, dtype, m, n, k, a.view(), b.view(), to, epilogue) });
                for (row, want) in out.chunks(ld * size).zip(want.chunks(n * size)) {
                    assert!(row[..n * size] == *want && row[n * size..].iter().all(|&x| x == 0), "{dtype} {m}x{n}x{k}");
                }
            }
        }
    }
}

/// Columns that begin in the middle of a cache line, at whole steps and not, and that end there.
#[test]
fn where_columns_begin_in_a_line_changes_no_bit() {
    for isa in isa::available() {
        let plain = FLOATS.into_iter().map(|dtype| (dtype, false));
        for (dtype, dot) in plain.chain((isa == Isa::Avx512 && has_dot()).then_some((Dtype::Bfloat16, true))) {
            let size = dtype.size();
            for k in [256 / size, 4096 / size, 3, 64 / size + 1] {
                let n = 37;
                let a = Matrix::new(dtype, 14, k, 0, 7);
                let compact = Matrix::new(dtype, k, n, 1, 8);
                let place = |past: usize| {
                    let mut bytes = vec![0; compact.bytes.len() + 128];
                    let start = bytes.as_ptr().align_offset(64) + past;
                    bytes[start..start + compact.bytes.len()].copy_from_slice(&compact.bytes);
                    assert!(start.is_multiple_of(size));
                    Matrix { bytes, values: vec![], start: start / size, rs: 1, cs: k as isize, dtype }
                };
                for m in [1, 2, 3, 8, 14] {
                    let shape = (m, n, k);
                    let whole = product(isa, dot, dtype, shape, &a, &place(0));
                    for past in [2, 4, 8, 40, 56, 62].into_iter().filter(|past| past % size == 0) {
                        assert!(
                            whole == product(isa, dot, dtype, shape, &a, &place(past)),
                            "{} {dtype} {shape:?} {past} bytes into a line",
                            isa.name()
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn columns_and_threads_change_nothing() {
    let isa = isa::available()[0];
    for dtype in FLOATS {
        let (m, n, k) = (600, 700, 300);
        let (a, b) = (Matrix::new(dtype, m, k, 0, 7), Matrix::new(dtype, k, n, 0, 8));
        let one = pool::with_threads(1, || product(isa, false, dtype, (m, n, k), &a, &b));
        for threads in [2, 3, 8] {
            let many = pool::with_threads(threads, || product(isa, false, dtype, (m, n, k), &a, &b));
            assert!(one == many, "{dtype} on {threads} threads");
        }
        let narrow = product(isa, false, dtype, (m, 5, k), &a, &b);
        let size = dtype.size();
        for r in 0..m {
            assert_eq!(
                narrow[r * 5 * size..(r + 1) * 5 * size],
                one[r * n * size..(r * n + 5) * size],
                "{dtype} row {r}"
            );
        }
    }
}

/// A gathered product: three right sides in mixed order, some used once, one often; the lone products are the reference.
#[test]
fn batches_and_gathers_equal_lone_products() {
    for isa in isa::available() {
        for dtype in FLOATS.into_iter().chain([Dtype::Complex64, Dtype::Int32]) {
            for (m, n, k) in [(1, 70, 50), (4, 3, 20), (20, 33, 40), (3, 2, 0)] {
                let size = dtype.size();
                let b: Vec<_> = (0..3).map(|i| Matrix::new(dtype, k, n, 1, 100 + i)).collect();
                let which = [2, 0, 2, 1, 2, 2, 0, 2, 2];
                let mut out = vec![1u8; 9 * m * n * size];
                let compact: Vec<Matrix> = (0..9).map(|i| Matrix::new(dtype, m, k, 0, i as u64)).collect();
                let entries: Vec<_> = (0..9)
                    .map(|i| Entry {
                        a: compact[i].view().ptr,
                        b: b[which[i]].view().ptr,
                        out: out[i * m * n * size..].as_mut_ptr(),
                        c: std::ptr::null(),
                    })
                    .collect();
                let layout = Layout { m, n, k, a: (k as isize, 1), b: (1, k as isize), out: n as isize, scale: None };
                // SAFETY: the matrices hold what the layout says.
                unsafe { gemm_batched_with(isa, false, dtype, &layout, &entries) };
                for i in 0..9 {
                    let lone = product(isa, false, dtype, (m, n, k), &compact[i], &b[which[i]]);
                    assert_eq!(out[i * lone.len()..(i + 1) * lone.len()], lone[..], "{dtype} {m} {n} {k} entry {i}");
                }
            }
        }
    }
}

#[test]
fn many_small_products_are_right() {
    let (count, m, n, k) = (500, 8, 8, 8);
    let (a, b) = (numbers(1, count * m * k), numbers(2, count * k * n));
    let (a, b): (Vec<f32>, Vec<f32>) = (a.iter().map(|&x| x as f32).collect(), b.iter().map(|&x| x as f32).collect());
    let mut out = vec![0f32; count * m * n];
    let to = out.as_mut_ptr();
    let entries: Vec<_> = (0..count)
        .map(|i| Entry {
            a: a[i * m * k..].as_ptr().cast(),
            b: b[i * k * n..].as_ptr().cast(),
            out: to.wrapping_add(i * m * n).cast(),
            c: std::ptr::null(),
        })
        .collect();
    let layout = Layout { m, n, k, a: (8, 1), b: (8, 1), out: 8, scale: None };
    // SAFETY: the buffers hold `count` compact matrices.
    unsafe { gemm_batched(isa::isa(), Dtype::Float32, &layout, &entries) };
    for (i, &x) in out.iter().enumerate() {
        let (e, r, c) = (i / 64, i / 8 % 8, i % 8);
        let want: f64 = (0..k).map(|p| a[e * 64 + r * 8 + p] as f64 * b[e * 64 + p * 8 + c] as f64).sum();
        assert!((x as f64 - want).abs() < 1e-5);
    }
}

#[test]
fn c_may_be_the_output() {
    for isa in isa::available() {
        let (m, n, k) = (30, 40, 600);
        let (a, b) = (Matrix::new(Dtype::Float32, m, k, 0, 1), Matrix::new(Dtype::Float32, k, n, 0, 2));
        let c = Matrix::new(Dtype::Float32, m, n, 0, 3);
        let run = |out: *mut u8, c: *const u8| {
            let c = MatRef { ptr: c, rs: n as isize, cs: 1 };
            let epilogue = Epilogue::Axpby { alpha: 2.0, beta: 0.5, c };
            let out = MatMut { ptr: out, rs: n as isize };
            // SAFETY: the matrices hold what the strides say.
            unsafe { gemm(isa, Dtype::Float32, m, n, k, a.view(), b.view(), out, epilogue) };
        };
        let mut apart = vec![0u8; m * n * 4];
        run(apart.as_mut_ptr(), c.bytes.as_ptr());
        let mut shared = c.bytes.clone();
        let at = shared.as_mut_ptr();
        run(at, at);
        assert_eq!(apart, shared);
    }
}

#[test]
fn nan_and_infinity_pass() {
    for isa in isa::available() {
        for dtype in FLOATS {
            let values = |x: f64| encode(dtype, &[1.0, x, 2.0]);
            for (x, nan) in [(f64::NAN, true), (f64::INFINITY, false), (1e300, false)] {
                let (a, b) = (values(x), encode(dtype, &[1.0; 3]));
                let mut out = encode(dtype, &[0.0]);
                let (a, b) = (MatRef { ptr: a.as_ptr(), rs: 3, cs: 1 }, MatRef { ptr: b.as_ptr(), rs: 1, cs: 1 });
                let to = MatMut { ptr: out.as_mut_ptr(), rs: 1 };
                // SAFETY: three elements each.
                unsafe { gemm(isa, dtype, 1, 1, 3, a, b, to, Epilogue::Store) };
                let y = decode(dtype, &out)[0];
                assert!(if nan { y.is_nan() } else { y > 1e299 }, "{dtype} {x} gave {y}");
            }
        }
    }
}
