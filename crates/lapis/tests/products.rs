//! Matrix products and what is made of them, against plain loops in f64. Values are multiples of 1/8, so that small
//! sums are exact in f32 and results can be compared bit by bit.

use lapis::dtype::{bf16, c64, f16};
use lapis::prelude::*;
use lapis::{ErrorKind, Result};

/// Numbers from -2 to 2 in steps of 1/8.
fn values(n: usize, seed: usize) -> Vec<f64> {
    let mut state = seed as u64 * 7919 + 12345;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 40) % 33) as f64 / 8.0 - 2.0
    };
    (0..n).map(|_| next()).collect()
}

fn random(shape: &[usize], seed: usize) -> Array {
    let data: Vec<f32> = values(shape.iter().product(), seed).iter().map(|&v| v as f32).collect();
    Array::from_vec(data, shape)
}

fn floats(a: &Array) -> Vec<f64> {
    a.astype(Dtype::Float64).to_vec().unwrap()
}

/// `spec` by loops over all its letters: no ellipsis, explicit output.
fn reference(spec: &str, operands: &[&Array]) -> Vec<f64> {
    let (left, right) = spec.split_once("->").unwrap();
    let terms: Vec<&str> = left.split(',').collect();
    let mut letters: Vec<char> = right.chars().collect();
    letters.extend(left.chars().filter(|c| c.is_alphabetic() && !right.contains(*c)));
    let mut seen = Vec::new();
    letters.retain(|c| {
        !seen.contains(c) && {
            seen.push(*c);
            true
        }
    });
    let size = |c: char| {
        let sizes = terms.iter().zip(operands).flat_map(|(t, a)| t.chars().zip(a.shape()));
        sizes.filter(|(l, _)| *l == c).map(|(_, &d)| d).max().unwrap()
    };
    let sizes: Vec<usize> = letters.iter().map(|&c| size(c)).collect();
    let data: Vec<Vec<f64>> = operands.iter().map(|a| floats(a)).collect();
    let mut out = vec![0.0; right.chars().map(size).product()];
    let total: usize = sizes.iter().product();
    for flat in 0..total {
        let mut rest = flat;
        let mut index = vec![0; sizes.len()];
        for i in (0..sizes.len()).rev() {
            index[i] = rest % sizes[i];
            rest /= sizes[i];
        }
        let at = |c: char| index[letters.iter().position(|&l| l == c).unwrap()];
        let mut product = 1.0;
        for ((t, a), d) in terms.iter().zip(operands).zip(&data) {
            let position = t.chars().zip(a.shape()).fold(0, |p, (c, &d)| p * d + if d == 1 { 0 } else { at(c) });
            product *= d[position];
        }
        out[right.chars().fold(0, |p, c| p * size(c) + at(c))] += product;
    }
    out
}

fn check(got: Result<Array>, spec: &str, operands: &[&Array], shape: &[usize]) {
    let got = got.unwrap();
    assert_eq!(got.shape(), shape, "{spec}");
    assert_eq!(floats(&got), reference(spec, operands), "{spec}");
}

#[test]
fn matmul_takes_vectors_matrices_and_batches() {
    let cases: [(&[usize], &[usize], &str, &[usize]); 10] = [
        (&[3], &[3], "i,i->", &[]),
        (&[2, 3], &[3], "mi,i->m", &[2]),
        (&[3], &[3, 4], "i,in->n", &[4]),
        (&[5, 3], &[3, 4], "mi,in->mn", &[5, 4]),
        (&[2, 5, 3], &[3, 4], "bmi,in->bmn", &[2, 5, 4]),
        (&[5, 3], &[2, 3, 4], "mi,bin->bmn", &[2, 5, 4]),
        (&[2, 1, 5, 3], &[6, 3, 4], "xymi,yin->xymn", &[2, 6, 5, 4]),
        (&[2, 5, 3], &[3], "bmi,i->bm", &[2, 5]),
        (&[3], &[2, 3, 4], "i,bin->bn", &[2, 4]),
        (&[70, 33], &[33, 65], "mi,in->mn", &[70, 65]),
    ];
    for (a, b, spec, shape) in cases {
        let (a, b) = (random(a, 1), random(b, 2));
        check(ops::matmul(&a, &b), spec, &[&a, &b], shape);
        let (a64, b64) = (a.astype(Dtype::Float64), b.astype(Dtype::Float64));
        check(ops::matmul(&a64, &b64), spec, &[&a, &b], shape);
    }
}

#[test]
fn matmul_reads_views_in_place() {
    let (a, b) = (random(&[4, 6], 3), random(&[5, 6], 4));
    check(ops::matmul(&a, &b.t()), "mi,ni->mn", &[&a, &b], &[4, 5]);
    check(ops::matmul(&b.t().t(), &a.t()), "mi,ni->mn", &[&b, &a], &[5, 4]);
    check(ops::matmul(&a.t(), &random(&[4, 3], 5)), "im,in->mn", &[&a, &random(&[4, 3], 5)], &[6, 3]);
    // Negative and doubled strides, and a batch of stride 0.
    let picked = ops::slice(&a, &[(None, None, -1), (None, None, 2)]).unwrap();
    let plain = ops::contiguous(&picked, false).unwrap();
    let c = random(&[3, 7], 6);
    check(ops::matmul(&picked, &c), "mi,in->mn", &[&plain, &c], &[4, 7]);
    let batch = ops::broadcast_to(&a, &[3, 4, 6]).unwrap();
    check(ops::matmul(&batch, &b.t()), "bmi,ni->bmn", &[&batch, &b], &[3, 4, 5]);
}

#[test]
fn matmul_of_nothing_is_zero() {
    let empty = ops::matmul(&random(&[2, 0], 1), &random(&[0, 3], 1)).unwrap();
    assert_eq!(empty.to_vec::<f32>().unwrap(), [0.0; 6]);
    assert_eq!(ops::matmul(&random(&[0, 2], 1), &random(&[2, 3], 1)).unwrap().shape(), [0, 3]);
    assert_eq!(ops::matmul(&random(&[0, 4, 2], 1), &random(&[2, 3], 1)).unwrap().shape(), [0, 4, 3]);
    let c = random(&[2, 3], 7);
    let sum = ops::addmm(&c, &random(&[2, 0], 1), &random(&[0, 3], 1), 1.0, 2.0).unwrap();
    assert_eq!(floats(&sum), floats(&(c * 2.0)));
}

#[test]
fn matmul_promotes_and_half_precision_sums_in_f32() {
    let (a, b) = (random(&[3, 40], 8), random(&[40, 2], 9));
    let exact = reference("mi,in->mn", &[&a, &b]);
    let h = ops::matmul(&a.astype(Dtype::Float16), &b.astype(Dtype::Float16)).unwrap();
    let want: Vec<f16> = exact.iter().map(|&v| f16::from_f64(v)).collect();
    assert_eq!(h.to_vec::<f16>().unwrap(), want);
    let h = ops::matmul(&a.astype(Dtype::Bfloat16), &b.astype(Dtype::Bfloat16)).unwrap();
    let want: Vec<bf16> = exact.iter().map(|&v| bf16::from_f64(v)).collect();
    assert_eq!(h.to_vec::<bf16>().unwrap(), want);
    assert_eq!(ops::matmul(&a.astype(Dtype::Float16), &b.astype(Dtype::Bfloat16)).unwrap().dtype(), Dtype::Float32);
    assert_eq!(ops::matmul(&a.astype(Dtype::Int32), &b).unwrap().dtype(), Dtype::Float32);
    let z = array([[c64::new(1.0, 2.0), c64::new(0.0, -1.0)]]);
    let w = array([[c64::new(3.0, 0.0)], [c64::new(1.0, 1.0)]]);
    assert_eq!(z.matmul(&w).item::<c64>().unwrap(), c64::new(4.0, 5.0));
}

#[test]
fn matmul_says_what_is_wrong() {
    let error = ops::matmul(&random(&[2, 3], 1), &random(&[2, 3], 1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Shape);
    assert!(error.message().starts_with("[matmul]") && error.message().contains("(2,3)"), "{error}");
    assert_eq!(ops::matmul(&array(1.0f32), &random(&[2], 1)).unwrap_err().kind(), ErrorKind::Shape);
    let error = ops::matmul(&array([1, 2]), &array([1, 2])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Dtype);
    assert!(error.message().contains("int32"), "{error}");
    assert_eq!(ops::matmul(&array([true]), &array([true])).unwrap_err().kind(), ErrorKind::Dtype);
    let error = ops::matmul(&random(&[2, 2, 3], 1), &random(&[3, 3, 2], 1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Shape);
}

#[test]
fn addmm_broadcasts_its_addend() {
    let (a, b) = (random(&[2, 5, 3], 1), random(&[3, 4], 2));
    let product = reference("bmi,in->bmn", &[&a, &b]);
    for c in [random(&[4], 3), random(&[], 3), random(&[5, 1], 3), random(&[5, 4], 3), random(&[2, 5, 4], 3)] {
        let got = ops::addmm(&c, &a, &b, 0.5, -2.0).unwrap();
        let c = floats(&ops::contiguous(&c.broadcast_to(&[2, 5, 4]), false).unwrap());
        let want: Vec<f64> = product.iter().zip(&c).map(|(p, c)| 0.5 * p - 2.0 * c).collect();
        assert_eq!(floats(&got), want);
    }
    let (x, y) = (random(&[3], 4), random(&[3], 5));
    let got = ops::addmm(&array(1.0f32), &x, &y, 1.0, 1.0).unwrap();
    assert_eq!(floats(&got)[0], 1.0 + reference("i,i->", &[&x, &y])[0]);
    let rows = ops::addmm(&random(&[2, 1], 6), &a, &y, 1.0, 0.0).unwrap();
    assert_eq!(floats(&rows), reference("bmi,i->bm", &[&a, &y]));
    let error = ops::addmm(&random(&[5, 5], 1), &a, &b, 1.0, 1.0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Shape);
    assert_eq!(ops::addmm(&array([1]), &array([1]), &array([1]), 1.0, 1.0).unwrap_err().kind(), ErrorKind::Dtype);
}

#[test]
fn inner_outer_tensordot_kron_vecdot() {
    let (a, b) = (random(&[2, 3], 1), random(&[4, 5, 3], 2));
    check(ops::inner(&a, &b), "ai,bci->abc", &[&a, &b], &[2, 4, 5]);
    assert_eq!(ops::inner(&array(2), &array([3, 4])).unwrap().to_vec::<i32>().unwrap(), [6, 8]);
    assert_eq!(ops::inner(&array([1]), &array([1])).unwrap_err().kind(), ErrorKind::Dtype);
    assert_eq!(ops::inner(&a, &random(&[2, 2], 1)).unwrap_err().kind(), ErrorKind::Shape);

    let o = ops::outer(&array([1, 2]), &array([[3, 4], [5, 6]])).unwrap();
    assert_eq!((o.shape(), o.to_vec::<i32>().unwrap()), ([2, 4].as_slice(), vec![3, 4, 5, 6, 6, 8, 10, 12]));

    let (x, y) = (random(&[2, 3, 4], 3), random(&[4, 3, 5], 4));
    check(ops::tensordot(&x, &y, ([1, 2], [1, 0])), "aij,jib->ab", &[&x, &y], &[2, 5]);
    check(ops::tensordot(&x, &y, ([-1], [0])), "abi,icd->abcd", &[&x, &y], &[2, 3, 3, 5]);
    check(ops::tensordot(&x, &x, 3), "abc,abc->", &[&x, &x], &[]);
    check(ops::tensordot(&a, &a, 0), "ab,cd->abcd", &[&a, &a], &[2, 3, 2, 3]);
    assert_eq!(ops::tensordot(&a, &a, 3).unwrap_err().kind(), ErrorKind::Axis);
    assert_eq!(ops::tensordot(&a, &a, 1).unwrap_err().kind(), ErrorKind::Shape);
    assert_eq!(ops::tensordot(&x, &x, ([0, 0], [0, 0])).unwrap_err().kind(), ErrorKind::Axis);

    // numpy.kron([[1, 2], [3, 4]], [0, 5])
    let k = ops::kron(&array([[1, 2], [3, 4]]), &array([0, 5])).unwrap();
    assert_eq!((k.shape(), k.to_vec::<i32>().unwrap()), ([2, 4].as_slice(), vec![0, 5, 0, 10, 0, 15, 0, 20]));

    check(ops::vecdot(&x, &x, 1), "abc,abc->ac", &[&x, &x], &[2, 4]);
    let z = array([c64::new(1.0, 2.0), c64::new(0.0, 1.0)]);
    assert_eq!(ops::vecdot(&z, &z, -1).unwrap().item::<c64>().unwrap(), c64::new(6.0, 0.0));
    let bytes = array([100i8, 3, -100]);
    assert_eq!(ops::vecdot(&bytes, &array([1i8, 2, 1]), 0).unwrap().item::<i32>().unwrap(), 6);
    let tenth = ops::full(&[4096], 0.1, Some(Dtype::Float16)).unwrap();
    let ones = ops::ones_like(&tenth, None).unwrap();
    let exact = f16::from_f64(4096.0 * f16::from_f64(0.1).to_f64());
    assert_eq!(ops::vecdot(&tenth, &ones, 0).unwrap().item::<f16>().unwrap(), exact);
    assert_eq!(ops::vecdot(&a, &random(&[2, 2], 1), -1).unwrap_err().kind(), ErrorKind::Shape);
}

#[test]
fn einsum_matches_loops() {
    let specs: [(&str, &[&[usize]]); 24] = [
        ("ij->ji", &[&[2, 3]]),
        ("ii->i", &[&[3, 3]]),
        ("ii->", &[&[3, 3]]),
        ("iij->j", &[&[3, 3, 2]]),
        ("iji->ij", &[&[3, 2, 3]]),
        ("ij->", &[&[2, 3]]),
        ("i,i->", &[&[4], &[4]]),
        ("i,i->i", &[&[4], &[4]]),
        ("i,j->ij", &[&[2], &[3]]),
        ("i,j->ji", &[&[2], &[3]]),
        ("ij,jk->ik", &[&[2, 3], &[3, 4]]),
        ("ij,kj->ki", &[&[2, 3], &[4, 3]]),
        ("bij,bjk->bik", &[&[5, 2, 3], &[5, 3, 4]]),
        ("ibj,jkb->kbi", &[&[2, 5, 3], &[3, 4, 5]]),
        ("bi,bi->b", &[&[5, 3], &[5, 3]]),
        ("ij,kj->", &[&[2, 3], &[4, 3]]),
        ("ij,kl->ik", &[&[2, 3], &[4, 5]]),
        ("ab,bc,cd->ad", &[&[2, 3], &[3, 4], &[4, 5]]),
        ("ab,bc,cd,de,ea->", &[&[2, 3], &[3, 4], &[4, 5], &[5, 2], &[2, 2]]),
        ("abij,cdij->abcd", &[&[2, 3, 2, 2], &[2, 2, 2, 2]]),
        ("bhqd,bhkd->bhqk", &[&[2, 2, 3, 4], &[2, 2, 5, 4]]),
        ("ij,jk->ik", &[&[2, 1], &[3, 4]]),
        ("ij,ij->ij", &[&[2, 1], &[1, 3]]),
        ("i,ij,j->", &[&[1], &[3, 4], &[4]]),
    ];
    for (spec, shapes) in specs {
        let operands: Vec<Array> = shapes.iter().enumerate().map(|(i, s)| random(s, i + 1)).collect();
        let operands: Vec<&Array> = operands.iter().collect();
        let got = ops::einsum(spec, &operands).unwrap();
        assert_eq!(floats(&got), reference(spec, &operands), "{spec}");
    }
}

#[test]
fn einsum_with_many_operands_takes_the_greedy_way() {
    let letters = "abcdefghijklm".as_bytes();
    let terms: Vec<String> = letters.windows(2).map(|w| String::from_utf8(w.to_vec()).unwrap()).collect();
    let operands: Vec<Array> = (0..terms.len()).map(|i| random(&[2, 2], i + 1).sign()).collect();
    let operands: Vec<&Array> = operands.iter().collect();
    let spec = format!("{}->am", terms.join(","));
    assert_eq!(floats(&ops::einsum(&spec, &operands).unwrap()), reference(&spec, &operands));
}

#[test]
fn einsum_ellipsis_implicit_output_and_dtypes() {
    let (a, b) = (random(&[2, 5, 2, 3], 1), random(&[5, 3, 4], 2));
    check(ops::einsum("...ij, ...jk", &[&a, &b]), "xyij,yjk->xyik", &[&a, &b], &[2, 5, 2, 4]);
    check(ops::einsum("i...->...", &[&a]), "iabc->abc", &[&a], &[5, 2, 3]);
    check(ops::einsum("i...->i", &[&a]), "iabc->i", &[&a], &[2]);
    check(ops::einsum("...", &[&b]), "abc->abc", &[&b], &[5, 3, 4]);
    check(ops::einsum("ba", &[&random(&[2, 3], 1)]), "ba->ab", &[&random(&[2, 3], 1)], &[3, 2]);
    check(ops::einsum("...i->i...", &[&b]), "abi->iab", &[&b], &[4, 5, 3]);
    let ints = array([[1, 2], [3, 4]]);
    assert_eq!(ops::einsum("ii", &[&ints]).unwrap().item::<i32>().unwrap(), 5);
    assert_eq!(ops::einsum("i,j->ij", &[&array([1, 2]), &array([3, 4])]).unwrap().dtype(), Dtype::Int32);
    assert_eq!(ops::einsum("ij,jk", &[&ints, &ints]).unwrap_err().kind(), ErrorKind::Dtype);
    assert_eq!(ops::einsum("i,i->", &[&array([1]), &array([1])]).unwrap_err().kind(), ErrorKind::Dtype);
}

#[test]
fn einsum_says_what_is_wrong() {
    let a = random(&[2, 3], 1);
    let kind = |spec: &str, operands: &[&Array]| {
        let error = ops::einsum(spec, operands).unwrap_err();
        assert!(error.message().starts_with("[einsum]") && error.message().contains(spec), "{error}");
        error.kind()
    };
    assert_eq!(kind("ij", &[&a, &a]), ErrorKind::Value);
    assert_eq!(kind("ij->ii", &[&a]), ErrorKind::Value);
    assert_eq!(kind("ij->ik", &[&a]), ErrorKind::Value);
    assert_eq!(kind("i1->i", &[&a]), ErrorKind::Value);
    assert_eq!(kind("ijk->i", &[&a]), ErrorKind::Shape);
    assert_eq!(kind("i", &[&a]), ErrorKind::Shape);
    assert_eq!(ops::einsum("ij,jk->ik", &[&a, &a]).unwrap_err().kind(), ErrorKind::Shape);
    assert_eq!(ops::einsum("ii->i", &[&a]).unwrap_err().kind(), ErrorKind::Shape);
}

#[test]
fn einsum_path_contracts_the_cheap_pair_first() {
    let shapes: [&[usize]; 3] = [&[2, 3], &[3, 4], &[4, 5]];
    let operands: Vec<Array> = shapes.iter().map(|s| random(s, 1)).collect();
    let operands: Vec<&Array> = operands.iter().collect();
    let (path, text) = ops::einsum_path("ab,bc,cd->ad", &operands).unwrap();
    // (ab,bc) costs 24 + 40 multiplications, (bc,cd) 60 + 30.
    assert_eq!(path, [vec![0, 1], vec![0, 1]]);
    let want = "  Complete contraction:  ab,bc,cd->ad\n         Naive scaling:  4\n     Optimized scaling:  3\n      \
                Naive FLOP count:  360\n  Optimized FLOP count:  128\n";
    assert_eq!(text, want);
    let (path, _) = ops::einsum_path("ij->ji", &operands[..1]).unwrap();
    assert_eq!(path, [vec![0]]);
}

#[test]
fn hadamard_transform_is_orthogonal() {
    let x = array([1.0f32, 2.0, 3.0, 4.0]);
    assert_eq!(ops::hadamard_transform(&x, None).unwrap().to_vec::<f32>().unwrap(), [5.0, -1.0, -2.0, 0.0]);
    assert_eq!(ops::hadamard_transform(&x, Some(1.0)).unwrap().to_vec::<f32>().unwrap(), [10.0, -2.0, -4.0, 0.0]);
    // mx.hadamard_transform(mx.arange(12.0), 1.0)
    let h12 = ops::hadamard_transform(&ops::arange(0.0, 12.0, 1, None).unwrap(), Some(1.0)).unwrap();
    let want = [64.0, -6.0, 0.0, -6.0, -20.0, -10.0, 0.0, -14.0, 20.0, -18.0, 0.0, -22.0];
    assert_eq!(h12.to_vec::<f32>().unwrap(), want);
    for n in [1, 2, 16, 64, 512] {
        let x = random(&[3, n], n);
        let twice = ops::hadamard_transform(&ops::hadamard_transform(&x, Some(1.0)).unwrap(), Some(1.0)).unwrap();
        assert_eq!(floats(&twice), floats(&(x * n as f32)));
    }
    let t = random(&[16, 3], 5);
    let view = ops::hadamard_transform(&t.t(), None).unwrap();
    let copy = ops::hadamard_transform(&ops::contiguous(&t.t(), false).unwrap(), None).unwrap();
    assert_eq!(floats(&view), floats(&copy));
    let half = ops::hadamard_transform(&t.t().astype(Dtype::Float16), None).unwrap();
    let want: Vec<f16> = floats(&copy).iter().map(|&v| f16::from_f64(v)).collect();
    assert_eq!(half.to_vec::<f16>().unwrap(), want);
    assert_eq!(ops::hadamard_transform(&array([1, 1]), Some(1.0)).unwrap().to_vec::<f32>().unwrap(), [2.0, 0.0]);
    for n in [0, 3, 6, 7, 10, 36] {
        assert_eq!(ops::hadamard_transform(&random(&[2, n], 1), None).unwrap_err().kind(), ErrorKind::Shape, "{n}");
    }
}

#[test]
fn gather_mm_picks_matrices() {
    let (a, b) = (random(&[4, 2, 3], 1), random(&[3, 3, 5], 2));
    let (lhs, rhs) = (array([[0u32, 3, 1], [2, 2, 0]]), array([2u32, 0, 2]));
    let got = ops::gather_mm(&a, &b, Some(&lhs), Some(&rhs), false).unwrap();
    assert_eq!(got.shape(), [2, 3, 2, 5]);
    let (left, right) = (floats(&a), floats(&b));
    let mut want = Vec::new();
    for row in [[0, 3, 1], [2, 2, 0]] {
        for (l, r) in row.into_iter().zip([2, 0, 2]) {
            let (x, y) = (&left[l * 6..][..6], &right[r * 15..][..15]);
            want.extend((0..10).map(|e| (0..3).map(|k| x[e / 5 * 3 + k] * y[k * 5 + e % 5]).sum::<f64>()));
        }
    }
    assert_eq!(floats(&got), want);
    // Missing indices count the batch; 1-D operands lose their axis again.
    let counted = ops::gather_mm(&b, &b.swapaxes(1, 2), None, Some(&array([1, 1, 0])), false).unwrap();
    let spelled =
        ops::gather_mm(&b, &b.swapaxes(1, 2), Some(&array([0, 1, 2])), Some(&array([1, 1, 0])), false).unwrap();
    assert_eq!(floats(&counted), floats(&spelled));
    let x = random(&[3], 3);
    let rows = ops::gather_mm(&x, &b, None, Some(&array([1, 2])), true).unwrap();
    assert_eq!(rows.shape(), [2, 5]);
    let whole = reference("i,bij->bj", &[&x, &b]);
    assert_eq!(floats(&rows), whole[5..]);
    let half = ops::gather_mm(&x.astype(Dtype::Bfloat16), &b.astype(Dtype::Bfloat16), None, Some(&array([1])), true);
    assert_eq!(half.unwrap().dtype(), Dtype::Bfloat16);

    for bad in [array([3i64]), array([-1i64])] {
        let error = ops::gather_mm(&x, &b, None, Some(&bad), false).unwrap().eval().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Index);
        assert!(error.message().contains("3 matrices"), "{error}");
    }
    let error = ops::gather_mm(&x, &b, None, Some(&array([0.0f32])), false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Dtype);
    assert_eq!(ops::gather_mm(&b, &a, None, Some(&array([0])), false).unwrap_err().kind(), ErrorKind::Shape);
}

#[test]
fn segmented_mm_multiplies_stretches() {
    let (a, b) = (random(&[2, 6], 1), random(&[6, 3], 2));
    let segments = array([[0, 2], [2, 6], [4, 4], [0, 6]]);
    for (a, b) in [(a.clone(), b.clone()), (a.t().t(), ops::contiguous(&b.t(), false).unwrap().t())] {
        let got = ops::segmented_mm(&a, &b, &segments).unwrap();
        assert_eq!(got.shape(), [4, 2, 3]);
        let cut = |s: i64, e: i64| {
            let x = ops::slice(&a, &[(None, None, 1), (Some(s), Some(e), 1)]).unwrap();
            let y = ops::slice(&b, &[(Some(s), Some(e), 1)]).unwrap();
            floats(&ops::matmul(&x, &y).unwrap())
        };
        assert_eq!(floats(&got), [cut(0, 2), cut(2, 6), vec![0.0; 6], cut(0, 6)].concat());
    }
    let error = ops::segmented_mm(&a, &b, &array([[0, 7]])).unwrap().eval().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Index);
    assert_eq!(ops::segmented_mm(&a, &b, &array([0, 1, 2])).unwrap_err().kind(), ErrorKind::Shape);
    assert_eq!(ops::segmented_mm(&a, &b, &array([0.0f32, 1.0])).unwrap_err().kind(), ErrorKind::Dtype);
}

#[test]
fn block_masked_mm_selects_and_scales_blocks() {
    let (a, b) = (random(&[33, 40], 1), random(&[40, 70], 2));
    let lhs = array([[true, false], [false, true]]);
    let rhs = array([[1.0f32, 0.5, 0.0], [2.0, 1.0, 1.0]]);
    let out = array([[true, true, false], [true, false, true]]);
    let got = ops::block_masked_mm(&a, &b, 32, Some(&out), Some(&lhs), Some(&rhs)).unwrap();
    let (x, y) = (floats(&a), floats(&b));
    let (lhs, out) = ([[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]]);
    let rhs = [[1.0, 0.5, 0.0], [2.0, 1.0, 1.0]];
    let mut want = Vec::new();
    for i in 0..33 {
        for j in 0..70 {
            let term = |k: usize| x[i * 40 + k] * lhs[i / 32][k / 32] * y[k * 70 + j] * rhs[k / 32][j / 32];
            want.push((0..40).map(term).sum::<f64>() * out[i / 32][j / 32]);
        }
    }
    assert_eq!(floats(&got), want);
    let plain = ops::block_masked_mm(&a, &b, 64, None, None, None).unwrap();
    assert_eq!(floats(&plain), floats(&a.matmul(&b)));
    assert_eq!(ops::block_masked_mm(&a, &b, 16, None, None, None).unwrap_err().kind(), ErrorKind::Value);
    let narrow = ops::zeros::<f32>(&[2, 3]).unwrap();
    assert_eq!(ops::block_masked_mm(&a, &b, 32, None, Some(&narrow), None).unwrap_err().kind(), ErrorKind::Shape);
}
