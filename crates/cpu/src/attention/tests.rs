//! Attention against its written-out form in f64, and the promise that a row's bits depend on its own inputs alone.

use super::*;
use crate::isa;
use half::{bf16, f16};

/// An instruction set, and how bfloat16 is multiplied.
type Level = (Isa, Halves);

/// What this machine can run, fast or not.
fn levels() -> Vec<Level> {
    let mut all: Vec<Level> = isa::available().into_iter().map(|isa| (isa, Halves::Floats)).collect();
    #[cfg(target_arch = "x86_64")]
    if all[0].0 != Isa::Avx512 || !is_x86_feature_detected!("avx512bf16") {
        eprintln!(
            "without pairs and AMX: this machine has no AVX-512 with BF16, which the stand-in for AMX needs, too"
        );
    } else {
        all.push((Isa::Avx512, Halves::Pairs));
        #[cfg(target_os = "linux")]
        if crate::amx::stand_in::can_run() {
            all.push((Isa::Avx512, Halves::Tiles));
        }
    }
    all
}

/// A deterministic sequence of values in -1 .. 1.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) as f64) / (1u64 << 30) as f64 - 1.0
    }
}

/// Elements of a dtype as bytes, with the values they round to.
struct Data {
    dtype: Dtype,
    bytes: Vec<u64>,
    values: Vec<f64>,
}

impl Data {
    fn new(dtype: Dtype, values: &[f64]) -> Data {
        let mut data = Data { dtype, bytes: vec![0; values.len() + 1], values: Vec::new() };
        let p = data.bytes.as_mut_ptr();
        for (i, &x) in values.iter().enumerate() {
            // SAFETY: eight bytes are there for each element.
            unsafe {
                match dtype {
                    Dtype::Float16 => *p.cast::<f16>().add(i) = f16::from_f64(x),
                    Dtype::Bfloat16 => *p.cast::<bf16>().add(i) = bf16::from_f64(x),
                    Dtype::Float32 => *p.cast::<f32>().add(i) = x as f32,
                    _ => *p.cast::<f64>().add(i) = x,
                }
            }
        }
        data.values = data.read(values.len());
        data
    }

    fn random(dtype: Dtype, n: usize, scale: f64, rng: &mut Random) -> Data {
        Data::new(dtype, &(0..n).map(|_| rng.next() * scale).collect::<Vec<_>>())
    }

    fn read(&self, n: usize) -> Vec<f64> {
        // SAFETY: the elements were written by `new` or the kernel.
        (0..n).map(|i| unsafe { mask::read(self.ptr(), self.dtype, i as isize) }).collect()
    }

    fn ptr(&self) -> *const u8 {
        self.bytes.as_ptr().cast()
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum TestMask {
    None,
    Keep,
    Add,
    /// (Tq, Tk), the same for every head; every fifth row drops all keys.
    KeepRows,
}

/// A call with its own data.
struct Case {
    a: Attention<'static>,
    q: Data,
    k: Data,
    v: Data,
    mask: Vec<u8>,
    add: Data,
    sinks: Data,
}

#[derive(Clone, Copy, Debug)]
struct Setup {
    batch: usize,
    heads: (usize, usize),
    len: (usize, usize),
    dim: (usize, usize),
    dtypes: [Dtype; 4],
    causal: bool,
    window: Option<usize>,
    softcap: Option<f64>,
    mask: TestMask,
    sinks: bool,
    /// Spare room between rows and behind the last key, as in a cache.
    slack: usize,
}

const BASE: Setup = Setup {
    batch: 2,
    heads: (4, 2),
    len: (5, 300),
    dim: (64, 64),
    dtypes: [Dtype::Float32; 4],
    causal: false,
    window: None,
    softcap: None,
    mask: TestMask::None,
    sinks: false,
    slack: 0,
};

impl Case {
    fn new(s: Setup) -> Case {
        let mut rng = Random(7);
        let (hq, hkv) = s.heads;
        let (tq, tk) = s.len;
        let (d, dv) = s.dim;
        let [qt, kt, vt, out_dtype] = s.dtypes;
        let strides = |heads: usize, len: usize, dim: usize| {
            let row = (dim + s.slack) as isize;
            let head = row * (len + s.slack) as isize;
            [head * heads as isize, head, row]
        };
        let (qs, ks, vs) = (strides(hq, tq, d), strides(hkv, tk, d), strides(hkv, tk, dv));
        let n = |s: [isize; 3], heads: usize| s[1] as usize * heads;
        let q = Data::random(qt, s.batch * n(qs, hq), 2.0, &mut rng);
        let k = Data::random(kt, s.batch * n(ks, hkv), 2.0, &mut rng);
        let v = Data::random(vt, s.batch * n(vs, hkv), 1.0, &mut rng);
        let full = s.batch * hq * tq * tk;
        let mask: Vec<u8> = (0..full)
            .map(|i| (rng.next() < 0.3 && (i / tk) % 5 != 3 || (i % tk == 0 && i / tk % 2 == 0)) as u8)
            .collect();
        let add: Vec<f64> =
            (0..full).map(|i| if rng.next() < -0.6 && i % tk != 0 { f64::NEG_INFINITY } else { rng.next() }).collect();
        let add = Data::new(out_dtype, &add);
        let sinks = Data::random(out_dtype, hq, 3.0, &mut rng);
        let (tq_i, tk_i, hq_i) = (tq as isize, tk as isize, hq as isize);
        let whole = [hq_i * tq_i * tk_i, tq_i * tk_i, tk_i, 1];
        let a = Attention {
            batch: s.batch,
            q_heads: hq,
            kv_heads: hkv,
            q_len: tq,
            kv_len: tk,
            dim: d,
            v_dim: dv,
            q: Operand { ptr: q.ptr(), dtype: qt, strides: qs },
            k: Operand { ptr: k.ptr(), dtype: kt, strides: ks },
            v: Operand { ptr: v.ptr(), dtype: vt, strides: vs },
            later: &[],
            out: std::ptr::null_mut(),
            out_dtype,
            out_strides: [(tq * hq * dv) as isize, dv as isize, (hq * dv) as isize],
            scale: 1.0 / (d.max(1) as f64).sqrt(),
            softcap: s.softcap,
            causal: s.causal,
            window: s.window,
            mask: match s.mask {
                TestMask::None => Mask::None,
                TestMask::Keep => Mask::Keep { ptr: mask.as_ptr(), strides: whole },
                TestMask::KeepRows => Mask::Keep { ptr: mask.as_ptr(), strides: [0, 0, tk_i, 1] },
                TestMask::Add => Mask::Add { ptr: add.ptr(), dtype: out_dtype, strides: whole },
            },
            sinks: s.sinks.then_some((sinks.ptr(), out_dtype)),
        };
        Case { a, q, k, v, mask, add, sinks }
    }

    /// Bytes of the result, (B, Tq, Hq, Dv).
    fn run(&self, level: Level, split: Split) -> Vec<u64> {
        self.run_part(level, split, 0..self.a.q_len, self.a.kv_len)
    }

    /// The rows of some positions only, with the keys up to `keys`.
    fn run_part(&self, level: Level, split: Split, rows: std::ops::Range<usize>, keys: usize) -> Vec<u64> {
        let mut a = self.a;
        // SAFETY: within the operands.
        unsafe {
            a.q.ptr = a.q.ptr.offset(rows.start as isize * a.q.strides[2] * a.q.dtype.size() as isize);
            match &mut a.mask {
                Mask::Keep { ptr, strides } => *ptr = ptr.offset(rows.start as isize * strides[2]),
                Mask::Add { ptr, dtype, strides } => {
                    *ptr = ptr.offset(rows.start as isize * strides[2] * dtype.size() as isize);
                }
                Mask::None => {}
            }
        }
        a.q_len = rows.len();
        a.kv_len = keys;
        a.out_strides[0] = (a.q_len * a.q_heads * a.v_dim) as isize;
        let n = a.batch * a.q_len * a.q_heads * a.v_dim;
        let mut out = vec![0u64; (n * a.out_dtype.size()).div_ceil(8)];
        a.out = out.as_mut_ptr().cast();
        // SAFETY: the operands have the sizes of `new`.
        unsafe { attention_by(level.0, level.1, &a, split) };
        out
    }

    /// The formula of the operation in f64.
    fn reference(&self) -> Vec<f64> {
        let a = &self.a;
        let mut out = Vec::new();
        for b in 0..a.batch {
            for t in 0..a.q_len {
                for h in 0..a.q_heads {
                    out.extend(self.reference_row(b, h, t));
                }
            }
        }
        out
    }

    fn reference_row(&self, b: usize, h: usize, t: usize) -> Vec<f64> {
        let a = &self.a;
        let at =
            |s: [isize; 3], h: usize, t: usize| (b as isize * s[0] + h as isize * s[1] + t as isize * s[2]) as usize;
        let kv = h * a.kv_heads / a.q_heads;
        let q = at(a.q.strides, h, t);
        let pos = t as isize + a.kv_len as isize - a.q_len as isize;
        let mut scores: Vec<f64> = (0..a.kv_len)
            .map(|key| {
                let k = at(a.k.strides, kv, key);
                let mut s = a.scale * (0..a.dim).map(|d| self.q.values[q + d] * self.k.values[k + d]).sum::<f64>();
                if let Some(cap) = a.softcap {
                    s = cap * (s / cap).tanh();
                }
                let index = |s: &[isize; 4]| {
                    (b as isize * s[0] + h as isize * s[1] + t as isize * s[2] + key as isize * s[3]) as usize
                };
                let mut keep =
                    (!a.causal || key as isize <= pos) && a.window.is_none_or(|w| key as isize > pos - w as isize);
                match &a.mask {
                    Mask::None => {}
                    Mask::Keep { strides, .. } => keep &= self.mask[index(strides)] != 0,
                    Mask::Add { strides, .. } => s += self.add.values[index(strides)],
                }
                if keep { s } else { f64::from(f32::MIN) }
            })
            .collect();
        if a.sinks.is_some() {
            scores.push(self.sinks.values[h]);
        }
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
        let total: f64 = weights.iter().sum();
        (0..a.v_dim)
            .map(|c| {
                let v = |key| self.v.values[at(a.v.strides, kv, key) + c];
                (0..a.kv_len).map(|key| weights[key] / total * v(key)).sum()
            })
            .collect()
    }

    #[track_caller]
    fn check(&self, what: &str) {
        let expected = self.reference();
        let dtype = self.a.out_dtype;
        // Values lie in -1 .. 1; half precision rounds once at the end.
        let tolerance = match dtype {
            Dtype::Float16 => 0.5 * f64::from(f16::EPSILON) + 3e-6,
            Dtype::Bfloat16 => 0.5 * f64::from(bf16::EPSILON) + 3e-6,
            Dtype::Float32 => 3e-6,
            _ => 1e-14,
        };
        for level in levels() {
            // Weights are rounded to bfloat16, and divided by the sum of what they were rounded to: their errors have a mean of zero.
            let rounded = level.1 != Halves::Floats && dtype == Dtype::Bfloat16;
            let tolerance = tolerance + if rounded { 0.25 * f64::from(bf16::EPSILON) } else { 0.0 };
            for split in [Split::Auto, Split::Never, Split::Always] {
                if split != Split::Auto && (dtype == Dtype::Float64 || expected.is_empty()) {
                    continue;
                }
                let got = Data { dtype, bytes: self.run(level, split), values: Vec::new() }.read(expected.len());
                for (i, (&x, &y)) in got.iter().zip(&expected).enumerate() {
                    let fine = (x - y).abs() <= tolerance || x.is_nan() && y.is_nan();
                    assert!(fine, "{what}, {level:?}, {split:?}: element {i} is {x}, must be {y}");
                }
            }
        }
    }
}

const HALVES: [Dtype; 3] = [Dtype::Float32, Dtype::Float16, Dtype::Bfloat16];

#[test]
fn equals_the_formula_for_every_dtype_and_shape() {
    for dtype in [Dtype::Float32, Dtype::Float16, Dtype::Bfloat16, Dtype::Float64] {
        for len in [(1, 1), (1, 700), (3, 129), (70, 70), (13, 600)] {
            for dim in [(64, 64), (80, 72), (33, 17), (1, 1), (24, 200)] {
                let s = Setup { dtypes: [dtype; 4], len, dim, slack: 3, ..BASE };
                Case::new(s).check(&format!("{s:?}"));
            }
        }
    }
}

#[test]
fn equals_the_formula_for_every_head_grouping() {
    for heads in [(1, 1), (3, 3), (6, 2), (7, 1), (10, 2), (12, 1), (13, 1), (32, 2)] {
        for len in [(1, 200), (20, 150)] {
            for dtype in HALVES {
                let s = Setup { heads, len, dtypes: [dtype; 4], causal: true, ..BASE };
                Case::new(s).check(&format!("{s:?}"));
            }
        }
    }
}

#[test]
fn equals_the_formula_for_every_mask() {
    for mask in [TestMask::None, TestMask::Keep, TestMask::KeepRows, TestMask::Add] {
        for (causal, window) in [(false, None), (true, None), (true, Some(40)), (false, Some(7)), (true, Some(1))] {
            for (sinks, softcap) in [(false, None), (true, None), (false, Some(2.0)), (true, Some(30.0))] {
                for len in [(1, 650), (140, 140), (60, 300)] {
                    let s = Setup { batch: 1, len, dim: (32, 40), mask, causal, window, sinks, softcap, ..BASE };
                    Case::new(s).check(&format!("{s:?}"));
                }
            }
        }
    }
}

#[test]
fn operands_may_have_different_dtypes() {
    for q in HALVES {
        for k in HALVES {
            for v in HALVES {
                let s = Setup { dtypes: [q, k, v, Dtype::Float32], len: (9, 150), ..BASE };
                Case::new(s).check(&format!("{s:?}"));
            }
        }
    }
    let s = Setup { dtypes: [Dtype::Float32, Dtype::Float64, Dtype::Bfloat16, Dtype::Float64], ..BASE };
    Case::new(s).check("f64 beside others");
}

#[test]
fn a_row_without_keys_averages_all_values() {
    // Causal with more queries than keys: the first ones see nothing.
    for dtype in [Dtype::Float32, Dtype::Bfloat16, Dtype::Float64] {
        for sinks in [false, true] {
            let s = Setup { len: (40, 21), causal: true, dtypes: [dtype; 4], sinks, ..BASE };
            Case::new(s).check(&format!("{s:?}"));
        }
    }
}

#[test]
fn blocks_of_keys_give_the_bits_of_one_array() {
    for (rows, keys, window) in [(1, 1500, None), (7, 1024, Some(600)), (300, 1100, None)] {
        for dtype in [Dtype::Float32, Dtype::Bfloat16, Dtype::Float64] {
            let s = Setup { len: (rows, keys), causal: true, window, dtypes: [dtype; 4], sinks: true, ..BASE };
            let case = Case::new(s);
            let part = |from: &Operand, i: usize| {
                let at = (i * CHUNK) as isize * from.strides[2] * dtype.size() as isize;
                Operand { ptr: from.ptr.wrapping_offset(at), ..*from }
            };
            let later: Vec<_> = (1..keys.div_ceil(CHUNK)).map(|i| [part(&case.a.k, i), part(&case.a.v, i)]).collect();
            let mut cut = Case::new(s);
            (cut.a.k, cut.a.v, cut.a.later) = (case.a.k, case.a.v, later.leak());
            for level in levels() {
                for split in [Split::Never, Split::Always] {
                    assert_eq!(case.run(level, split), cut.run(level, split), "{s:?} {level:?}");
                }
            }
        }
    }
}

/// One row of queries, keys and values with single elements replaced.
fn poisoned(dtype: Dtype, change: impl Fn(&mut [f64], &mut [f64], &mut [f64])) -> Case {
    let mut case = Case::new(Setup { batch: 1, heads: (1, 1), len: (1, 200), dtypes: [dtype; 4], ..BASE });
    let (mut q, mut k, mut v) = (case.q.values.clone(), case.k.values.clone(), case.v.values.clone());
    change(&mut q, &mut k, &mut v);
    (case.q, case.k, case.v) = (Data::new(dtype, &q), Data::new(dtype, &k), Data::new(dtype, &v));
    (case.a.q.ptr, case.a.k.ptr, case.a.v.ptr) = (case.q.ptr(), case.k.ptr(), case.v.ptr());
    case
}

#[test]
fn nan_and_infinity_come_out_where_the_formula_has_them() {
    for dtype in HALVES {
        poisoned(dtype, |_, k, _| k[64 * 70 + 3] = f64::NAN).check("a NaN key");
        poisoned(dtype, |q, _, _| q[5] = f64::NAN).check("a NaN query");
        poisoned(dtype, |_, _, v| v[64 * 199 + 63] = f64::NAN).check("a NaN value");
        poisoned(dtype, |q, k, _| (q[0], k[64 * 9]) = (1.0, f64::INFINITY)).check("an infinite score");
    }
    let mut case = Case::new(Setup { mask: TestMask::Add, ..BASE });
    case.add = Data::new(Dtype::Float32, &vec![f64::NEG_INFINITY; case.add.values.len()]);
    let Mask::Add { ptr, .. } = &mut case.a.mask else { unreachable!() };
    *ptr = case.add.ptr();
    case.check("all scores minus infinity");
    let Mask::Add { ptr, .. } = &mut case.a.mask else { unreachable!() };
    case.add = Data::new(Dtype::Float32, &vec![f64::from(f32::MIN); case.add.values.len()]);
    *ptr = case.add.ptr();
    // The scores vanish beside the mask: the average.
    case.check("all scores the lowest finite value");
}

#[test]
fn large_scores_do_not_overflow() {
    let mut case = Case::new(Setup { len: (4, 300), causal: true, ..BASE });
    case.a.scale = 40.0;
    let expected = case.reference();
    for level in levels() {
        let out = Data { dtype: Dtype::Float32, bytes: case.run(level, Split::Auto), values: Vec::new() };
        for (x, y) in out.read(expected.len()).iter().zip(&expected) {
            // Scores of thousands carry an absolute error of 1e-3 in f32.
            assert!((x - y).abs() < 2e-3, "{level:?}: {x} {y}");
        }
    }
}

#[test]
fn values_that_are_all_alike_come_out_as_they_are() {
    // However weights are rounded, they are divided by their own sum.
    for len in [(1, 77), (9, 600), (70, 70)] {
        let mut case = Case::new(Setup { len, causal: true, dtypes: [Dtype::Bfloat16; 4], ..BASE });
        let alike: Vec<f64> = (0..case.v.values.len()).map(|i| case.v.values[i % case.a.v_dim]).collect();
        case.v = Data::new(Dtype::Bfloat16, &alike);
        case.a.v.ptr = case.v.ptr();
        let n = case.reference().len();
        for level in levels() {
            let out = Data { dtype: Dtype::Bfloat16, bytes: case.run(level, Split::Auto), values: Vec::new() }.read(n);
            for (i, x) in out.into_iter().enumerate() {
                assert_eq!(x, case.v.values[i % case.a.v_dim], "{level:?}, {len:?}");
            }
        }
    }
}

/// Row (b, t) of a result (B, T, H, Dv) as bits.
fn row_bits(case: &Case, out: &[u64], rows: usize, b: usize, t: usize) -> Vec<u8> {
    let bytes: &[u8] = bytemuck::cast_slice(out);
    let n = case.a.q_heads * case.a.v_dim * case.a.out_dtype.size();
    bytes[(b * rows + t) * n..][..n].to_vec()
}

#[test]
fn bits_do_not_depend_on_chunks_of_queries() {
    for (heads, dim, window, softcap, sinks, mask) in [
        ((8, 2), (64, 64), None, None, false, TestMask::None),
        ((3, 3), (128, 128), None, None, false, TestMask::None),
        ((16, 4), (64, 64), Some(200), None, false, TestMask::None),
        ((16, 1), (40, 24), Some(100), Some(20.0), true, TestMask::None),
        ((4, 2), (32, 32), None, None, false, TestMask::Keep),
        ((4, 2), (32, 33), Some(513), None, false, TestMask::Add),
    ] {
        for dtype in HALVES {
            let len = (570, 570);
            let s = Setup {
                batch: 1,
                heads,
                len,
                dim,
                dtypes: [dtype; 4],
                causal: true,
                window,
                softcap,
                mask,
                sinks,
                ..BASE
            };
            let mut case = Case::new(s);
            // A row without keys averages all of them, and how many there are depends on the step (key 0 of `add` is
            // never dropped).
            case.mask.chunks_mut(len.1).for_each(|row| row[0] = 1);
            for level in levels() {
                let whole = case.run(level, Split::Never);
                assert_eq!(whole, case.run(level, Split::Always), "{s:?} {level:?}");
                // Steps that begin, end and cross at blocks (64) and chunks (512) of keys, and that do not.
                for (step, starts) in [
                    (1, vec![0, 1, 5, 63, 64, 126, 127, 128, 129, 510, 511, 512, 513, 569]),
                    (7, vec![0, 61, 125, 249, 507, 563]),
                    (64, vec![0, 100, 384, 506]),
                    (300, vec![0, 270]),
                ] {
                    for start in starts {
                        let rows = start..(start + step).min(len.0);
                        for split in [Split::Never, Split::Always] {
                            let part = case.run_part(level, split, rows.clone(), rows.end);
                            for t in rows.clone() {
                                assert!(
                                    row_bits(&case, &whole, len.0, 0, t)
                                        == row_bits(&case, &part, rows.len(), 0, t - start),
                                    "row {t} in steps of {step}, {split:?}, {level:?}, {s:?}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_the_batch_nor_on_the_threads() {
    let s = Setup { batch: 3, len: (150, 700), dtypes: [Dtype::Bfloat16; 4], causal: true, ..BASE };
    let case = Case::new(s);
    for level in levels() {
        let whole = case.run(level, Split::Auto);
        for b in 0..3 {
            let mut one = Case::new(s);
            // SAFETY: within the operands.
            unsafe {
                for (operand, data) in [(&mut one.a.q, &case.q), (&mut one.a.k, &case.k), (&mut one.a.v, &case.v)] {
                    operand.ptr = data.ptr().offset(b as isize * operand.strides[0] * 2);
                }
            }
            one.a.batch = 1;
            for threads in [1, 2, 5] {
                let alone = pool::with_threads(threads, || one.run(level, Split::Auto));
                for t in 0..150 {
                    assert_eq!(
                        row_bits(&case, &whole, 150, b, t),
                        row_bits(&one, &alone, 150, 0, t),
                        "{level:?} {b} {t}"
                    );
                }
            }
        }
    }
}

#[test]
fn empty_results_are_nothing() {
    for s in [Setup { batch: 0, ..BASE }, Setup { len: (0, 5), ..BASE }, Setup { dim: (8, 0), ..BASE }] {
        Case::new(s).check("empty");
    }
}
