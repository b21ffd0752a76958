//! Random bits (Threefry-2x32), and the `f32` functions whose bits the distributions depend on.
//!
//! The functions here repeat, operation by operation, what MLX's Linux build computes, so that the same key gives the
//! same numbers; the accurate functions for everybody else are in `math`. (`erfinv` serves both.)
//!
//! Bits: 8 bytes written and about 75 integer operations per pair of words. Must not know: distributions.

use crate::isa::{self, Isa};
use crate::lines::Lines;
use crate::math::{LOG_INVERSE, LOG_TABLE, LogSplit, log_split, rounded};
use crate::pool::{self, SendPtr};
use crate::simd::{self, Float, Int, Kernel, LANES32, Mask, Simd, Vector};
use lapis_core::buffer::Tensor;
use lapis_core::error::Result;
use std::f64::consts::LN_2;

/// The words of each key of two `uint32`, one key after the other, in a row-major output of whole words.
pub(crate) fn run(keys: &Tensor, out: &mut Tensor) -> Result<()> {
    let lines = Lines::new(keys, keys.shape.len() - 1);
    // SAFETY: the output is row-major and nobody else's; buffers are aligned to cache lines.
    let words = unsafe { std::slice::from_raw_parts_mut(out.ptr().cast::<u32>(), out.nbytes() / 4) };
    let each = (words.len() / lines.count().max(1)).max(1);
    let mut key: Vec<u32> = Vec::new();
    for (i, words) in words.chunks_exact_mut(each).enumerate() {
        // SAFETY: keys are uint32.
        unsafe { lines.read(i, &mut key) };
        random_bits(isa::isa(), [key[0], key[1]], words);
    }
    Ok(())
}

/// Counters per task.
const GRAIN: usize = 1 << 13;

/// The first two words of the hash of the counters (`c0`, `c1`) under `key`.
pub fn threefry(key: [u32; 2], c0: u32, c1: u32) -> [u32; 2] {
    let mut x = [c0.wrapping_add(key[0]), c1.wrapping_add(key[1])];
    let keys = [key[0], key[1], key[0] ^ key[1] ^ PARITY];
    for i in 0..5 {
        for r in ROTATIONS[i % 2] {
            x[0] = x[0].wrapping_add(x[1]);
            x[1] = x[1].rotate_left(r) ^ x[0];
        }
        x[0] = x[0].wrapping_add(keys[(i + 1) % 3]);
        x[1] = x[1].wrapping_add(keys[(i + 2) % 3]).wrapping_add(i as u32 + 1);
    }
    x
}

/// Fills `out` with the words that belong to `key`, in parallel. Values of other widths are the bytes of these words.
///
/// With half = n/2 and odd = n%2, words i and half + odd + i are the hash of (i, i + half + odd); if n is odd, word half
/// is the first of the hash of (half, 0).
pub fn random_bits(isa: Isa, key: [u32; 2], out: &mut [u32]) {
    let (n, half) = (out.len(), out.len() / 2);
    let odd = n % 2;
    if odd == 1 {
        out[half] = threefry(key, half as u32, 0)[0];
    }
    let (first, second) = out.split_at_mut(half + odd);
    let (first, second) = (SendPtr(first.as_mut_ptr()), SendPtr(second.as_mut_ptr()));
    pool::for_each_chunk(half, GRAIN, &|range| {
        // SAFETY: chunks are disjoint and within both halves.
        let (a, b) = unsafe {
            let part = |p: &SendPtr<u32>| std::slice::from_raw_parts_mut(p.get().add(range.start), range.len());
            (part(&first), part(&second))
        };
        let (c0, c1) = (range.start as u32, (range.start + half + odd) as u32);
        simd::dispatch_with(isa, Bits { key, c0, c1, first: a, second: b });
    });
}

const PARITY: u32 = 0x1BD1_1BDA;
const ROTATIONS: [[u32; 4]; 2] = [[13, 15, 26, 6], [17, 29, 16, 24]];

struct Bits<'a> {
    key: [u32; 2],
    c0: u32,
    c1: u32,
    first: &'a mut [u32],
    second: &'a mut [u32],
}

impl Kernel for Bits<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let keys = [self.key[0], self.key[1], self.key[0] ^ self.key[1] ^ PARITY];
        let lanes = s.iota32();
        for i in (0..self.first.len()).step_by(LANES32) {
            let mut a = lanes + s.u32(self.c0.wrapping_add(i as u32).wrapping_add(keys[0]));
            let mut b = lanes + s.u32(self.c1.wrapping_add(i as u32).wrapping_add(keys[1]));
            for round in 0..5 {
                for r in ROTATIONS[round % 2] {
                    a = a + b;
                    b = b.rotl(r) ^ a;
                }
                a = a + s.u32(keys[(round + 1) % 3]);
                b = b + s.u32(keys[(round + 2) % 3].wrapping_add(round as u32 + 1));
            }
            let count = (self.first.len() - i).min(LANES32);
            // SAFETY: both slices hold `count` more elements.
            unsafe {
                a.store_n(self.first.as_mut_ptr().add(i).cast(), count);
                b.store_n(self.second.as_mut_ptr().add(i).cast(), count);
            }
        }
    }
}

/// The natural logarithm in `f64` from a table and a cubic, every operation rounded on its own.
#[inline(always)]
pub fn log<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let [a, b] = s.widen(x);
    let y = s.narrow([log64(s, a), log64(s, b)]);
    let y = S::F32::select(x.lt(s.f32(f32::INFINITY)), y, x);
    let y = S::F32::select(x.eq(s.f32(0.0)), s.f32(f32::NEG_INFINITY), y);
    S::F32::select(x.lt(s.f32(0.0)), s.f32(f32::NAN), y)
}

#[inline(always)]
fn log64<S: Simd>(s: S, x: S::F64) -> S::F64 {
    let LogSplit { z, k, i } = log_split(s, x);
    let r = z * s.lookup16_f64(&LOG_INVERSE, i) - s.f64(1.0);
    let base = s.lookup16_f64(&LOG_TABLE, i) + k * s.f64(LN_2);
    let square = r * r;
    let y = (s.f64(LOG[1]) * r + s.f64(LOG[2])) + s.f64(LOG[0]) * square;
    y * square + (base + r)
}

/// The exponential: relative error up to 4e-6 for large |x|.
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let y = x * s.f32(std::f32::consts::LOG2_E);
    let whole = (y + s.f32(0.5)).floor();
    let exponent = s.f32(128.0).min(s.f32(-127.0).max(whole)).to_int() + s.i32(127);
    let r = S::F32::from_bits(exponent.shl(23)) * horner(s, &EXP, y - whole);
    let r = S::F32::select(x.gt(s.f32(88.0)), s.f32(f32::INFINITY), r);
    let r = S::F32::select(x.lt(s.f32(-88.0)), s.f32(0.0), r);
    S::F32::select(x.is_nan(), x, r)
}

/// The error function: absolute error up to 5e-7.
#[inline(always)]
pub fn erf<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let one = s.f32(1.0);
    let t = one / x.abs().fma(s.f32(0.3275911), one);
    let e = -exp(s, -x * x);
    let y = (e * t).fma(horner(s, &ERF, t), one);
    S::F32::select(x.gt(s.f32(0.0)), y, -y)
}

/// The inverse error function (M. Giles' kind of approximation in ln(1 - a²)), at most 2.4 ulp off; infinite at ±1,
/// NaN outside.
#[inline(always)]
pub fn erfinv<S: Simd>(s: S, a: S::F32) -> S::F32 {
    let t = log(s, a.fma(-a, s.f32(1.0)));
    let tail = t.abs().gt(s.f32(6.125));
    let mut p = horner(s, &ERFINV_CENTRE, t);
    if tail.any() {
        p = S::F32::select(tail, horner(s, &ERFINV_TAIL, t), p);
    }
    a * p
}

/// The polynomial with these coefficients, highest power first.
#[inline(always)]
fn horner<S: Simd, const N: usize>(s: S, c: &[f32; N], x: S::F32) -> S::F32 {
    let mut p = s.f32(c[0]);
    for i in 1..N {
        p = p.fma(x, s.f32(c[i]));
    }
    p
}

/// -0x1.00ea348b88334p-2, 0x1.5575b0be00b6ap-2, -0x1.ffffef20a4123p-2.
const LOG: [f64; 3] =
    [f64::from_bits(0xbfd00ea348b88334), f64::from_bits(0x3fd5575b0be00b6a), f64::from_bits(0xbfdffffef20a4123)];
const EXP: [f32; 7] = rounded([
    1.5353361883195e-4,
    1.339887440266574e-3,
    9.61843735767464e-3,
    5.550332471162809e-2,
    2.402264791363012e-1,
    0.693147202855042,
    1.0,
]);
const ERF: [f32; 5] = rounded([1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592]);
const ERFINV_TAIL: [f32; 9] = rounded([
    3.03697567e-10,
    2.93243101e-8,
    1.22150334e-6,
    2.84108955e-5,
    3.93552968e-4,
    3.02698812e-3,
    4.83185798e-3,
    -2.64646143e-1,
    8.40016484e-1,
]);
const ERFINV_CENTRE: [f32; 10] = rounded([
    5.43877832e-9,
    1.43285448e-7,
    1.22774793e-6,
    1.12963626e-7,
    -5.61530760e-5,
    -1.47697632e-4,
    2.31468678e-3,
    1.15392581e-2,
    -2.32015476e-1,
    8.86226892e-1,
]);
