//! The gradients on every instruction set against those in f64, and the promise that their bits do not depend on the
//! threads nor on the batch.

use super::*;
use crate::isa;

#[derive(Clone, Copy, Debug)]
struct Setup {
    batch: usize,
    heads: (usize, usize),
    len: (usize, usize),
    dim: (usize, usize),
    dtype: Dtype,
    causal: bool,
    window: Option<usize>,
}

const BASE: Setup = Setup {
    batch: 2,
    heads: (4, 2),
    len: (100, 130),
    dim: (32, 32),
    dtype: Dtype::Float32,
    causal: true,
    window: None,
};

/// Contiguous values that `dtype` holds exactly: (B, H, T, D) as bytes of f64 and of the dtype.
struct Data {
    exact: Vec<f64>,
    bytes: Vec<u64>,
    dtype: Dtype,
    strides: [isize; 3],
}

impl Data {
    fn new(dtype: Dtype, [b, h, t, d]: [usize; 4], seed: u64) -> Data {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as f64 / (1u64 << 30) as f64 - 1.0
        };
        let n = b * h * t * d;
        let mut data = Data {
            exact: (0..n).map(|_| f64::from(bf16::from_f64(2.0 * next()))).collect(),
            bytes: vec![0; n + 1],
            dtype,
            strides: [h * t * d, t * d, d].map(|s| s as isize),
        };
        let p = data.bytes.as_mut_ptr();
        for (i, &x) in data.exact.iter().enumerate() {
            // SAFETY: eight bytes are there for each element.
            unsafe {
                match dtype {
                    Dtype::Float16 => *p.cast::<f16>().add(i) = f16::from_f64(x),
                    Dtype::Bfloat16 => *p.cast::<bf16>().add(i) = bf16::from_f64(x),
                    _ => *p.cast::<f32>().add(i) = x as f32,
                }
            }
        }
        data
    }

    fn operand(&self, exact: bool) -> Operand {
        match exact {
            true => Operand { ptr: self.exact.as_ptr().cast(), dtype: Dtype::Float64, strides: self.strides },
            false => Operand { ptr: self.bytes.as_ptr().cast(), dtype: self.dtype, strides: self.strides },
        }
    }
}

struct Case {
    setup: Setup,
    q: Data,
    k: Data,
    v: Data,
    g: Data,
}

impl Case {
    fn new(s: Setup) -> Case {
        let (b, (hq, hk), (tq, tk), (d, dv)) = (s.batch, s.heads, s.len, s.dim);
        let q = Data::new(s.dtype, [b, hq, tq, d], 1);
        let k = Data::new(s.dtype, [b, hk, tk, d], 2);
        let v = Data::new(s.dtype, [b, hk, tk, dv], 3);
        let g = Data::new(s.dtype, [b, hq, tq, dv], 4);
        Case { setup: s, q, k, v, g }
    }

    /// The three gradients one behind the other, in f64; `exact` asks for the plain ones.
    fn run(&self, isa: Isa, exact: bool) -> Vec<f64> {
        let s = self.setup;
        let dtype = if exact { Dtype::Float64 } else { s.dtype };
        let all = [&self.q, &self.k, &self.v];
        // Nothing may be left as it was.
        let mut out = all.map(|data| vec![u64::MAX; data.exact.len()]);
        let mut targets = out.iter_mut().zip(all);
        let mut target = || {
            let (out, data) = targets.next().unwrap();
            Target { ptr: out.as_mut_ptr().cast(), strides: data.strides }
        };
        let call = Grads {
            batch: s.batch,
            q_heads: s.heads.0,
            kv_heads: s.heads.1,
            q_len: s.len.0,
            kv_len: s.len.1,
            dim: s.dim.0,
            v_dim: s.dim.1,
            q: self.q.operand(exact),
            k: self.k.operand(exact),
            v: self.v.operand(exact),
            g: self.g.operand(exact),
            dq: target(),
            dk: target(),
            dv: target(),
            scale: 0.7 / (s.dim.0.max(1) as f64).sqrt(),
            causal: s.causal,
            window: s.window,
        };
        // SAFETY: the operands have the sizes of `new`, the results are as large.
        unsafe { attention_grads(isa, &call) };
        let read = |out: &Vec<u64>| -> Vec<f64> {
            let p: *const u8 = out.as_ptr().cast();
            // SAFETY: the elements were written.
            (0..out.len()).map(|i| unsafe { crate::attention::mask::read(p, dtype, i as isize) }).collect()
        };
        out.iter().flat_map(read).collect()
    }

    #[track_caller]
    fn check(&self) {
        let expected = self.run(Isa::Scalar, true);
        let rounding = match self.setup.dtype {
            Dtype::Float16 => f64::from(f16::EPSILON),
            Dtype::Bfloat16 => f64::from(bf16::EPSILON),
            _ => 0.0,
        };
        let size = expected.iter().fold(1.0, |m: f64, x| m.max(x.abs()));
        // Roundings of f32 along the longest sum, which add up like a random walk.
        let Setup { heads, len, dim, .. } = self.setup;
        let terms = (len.0 * heads.0 / heads.1).max(len.1).max(dim.0).max(dim.1);
        let sums = f64::from(f32::EPSILON) * (16.0 + (terms as f64).sqrt());
        for isa in isa::available() {
            for (i, (x, y)) in self.run(isa, false).iter().zip(&expected).enumerate() {
                let tolerance = 0.5 * rounding * y.abs() + sums * size;
                assert!((x - y).abs() <= tolerance, "{:?}, {isa:?}: element {i} is {x}, must be {y}", self.setup);
            }
        }
    }
}

#[test]
fn equal_those_in_f64_for_every_dtype_and_shape() {
    for dtype in [Dtype::Float32, Dtype::Float16, Dtype::Bfloat16] {
        for len in [(1, 1), (1, 300), (3, 97), (96, 96), (101, 203)] {
            for dim in [(32, 32), (64, 64), (80, 80), (128, 128), (33, 17), (1, 7)] {
                Case::new(Setup { dtype, len, dim, ..BASE }).check();
            }
        }
    }
}

#[test]
fn equal_those_in_f64_for_every_mask_and_grouping() {
    for heads in [(1, 1), (3, 3), (6, 2), (7, 1), (13, 1)] {
        for (causal, window) in [(false, None), (true, None), (true, Some(40)), (false, Some(150)), (true, Some(1))] {
            for len in [(130, 130), (60, 290), (300, 300)] {
                Case::new(Setup { batch: 1, heads, causal, window, len, dim: (24, 40), ..BASE }).check();
            }
        }
    }
    // More queries than keys see something without `causal`.
    Case::new(Setup { len: (200, 50), causal: false, window: None, ..BASE }).check();
    Case::new(Setup { len: (200, 50), causal: false, window: Some(3), ..BASE }).check();
}

#[test]
fn large_scores_do_not_overflow() {
    let mut case = Case::new(BASE);
    case.q.exact.iter_mut().for_each(|x| *x *= 64.0);
    let p = case.q.bytes.as_mut_ptr().cast::<f32>();
    for (i, &x) in case.q.exact.iter().enumerate() {
        // SAFETY: the elements are there.
        unsafe { *p.add(i) = x as f32 };
    }
    for isa in isa::available() {
        assert!(case.run(isa, false).iter().all(|x| x.is_finite()), "{isa:?}");
    }
}

#[test]
fn bits_do_not_depend_on_the_batch_nor_on_the_threads() {
    let case = Case::new(Setup { batch: 3, len: (150, 200), ..BASE });
    // All rows are the first one.
    let alike = |data: &Data| {
        let row = data.exact.len() / 3;
        (0..3 * row).map(|i| data.exact[i % row]).collect::<Vec<f64>>()
    };
    let mut same = Case::new(case.setup);
    for (to, from) in [(&mut same.q, &case.q), (&mut same.k, &case.k), (&mut same.v, &case.v), (&mut same.g, &case.g)] {
        to.exact = alike(from);
        let p = to.bytes.as_mut_ptr().cast::<f32>();
        // SAFETY: the elements are there.
        to.exact.iter().enumerate().for_each(|(i, &x)| unsafe { *p.add(i) = x as f32 });
    }
    for isa in isa::available() {
        let one = pool::with_threads(1, || same.run(isa, false));
        for threads in [2, 5] {
            assert!(one == pool::with_threads(threads, || same.run(isa, false)), "{isa:?}, {threads} threads");
        }
        let mut rest = &one[..];
        for data in [&same.q, &same.k, &same.v] {
            let (grad, after) = rest.split_at(data.exact.len());
            let row = grad.len() / 3;
            assert!(grad[..row] == grad[row..2 * row] && grad[..row] == grad[2 * row..], "{isa:?}");
            rest = after;
        }
    }
}

#[test]
fn without_queries_nothing_is_asked_of_the_keys() {
    let case = Case::new(Setup { len: (0, 5), ..BASE });
    for isa in isa::available() {
        assert!(case.run(isa, false).iter().all(|&x| x == 0.0), "{isa:?}");
    }
    for s in [Setup { batch: 0, ..BASE }, Setup { dim: (0, 8), ..BASE }, Setup { dim: (8, 0), ..BASE }] {
        Case::new(s).check();
    }
}
