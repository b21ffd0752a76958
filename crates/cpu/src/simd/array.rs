//! The portable level: arrays that the compiler spreads over whatever registers it may use.
//!
//! Serves machines below AVX2 (SSE2 code on x86-64) and, as `Portable<true>`, NEON: those instructions are part of the
//! aarch64 baseline, so the compiler emits them for these loops without intrinsics.

use super::{Float, Int, Kernel, LANES32, LANES64, Mask, Simd, Vector};
use crate::isa::Isa;
use half::{bf16, f16};
use std::ops::{Add, BitAnd, BitOr, BitXor, Div, Mul, Neg, Not, Sub};

/// The token; `NEON` only gives it its name.
#[derive(Clone, Copy, Debug)]
pub struct Portable<const NEON: bool>;

/// Runs a kernel; a function of its own, as the other levels have, so that callers stay small.
#[inline(never)]
pub(super) fn enter<K: Kernel, const NEON: bool>(k: K) -> K::Out {
    k.run(Portable::<NEON>)
}

/// A vector of `T`.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Lanes<T, const N: usize>(pub [T; N]);

type F32 = Lanes<f32, LANES32>;
type F64 = Lanes<f64, LANES64>;
type I32 = Lanes<i32, LANES32>;
type I64 = Lanes<i64, LANES64>;
/// All ones or all zeros, so that selecting is bit arithmetic.
type M32 = Lanes<u32, LANES32>;
type M64 = Lanes<u64, LANES64>;

/// `f` on every lane.
macro_rules! each {
    ($($x:ident = $v:expr),* => $e:expr; $n:expr, $zero:expr) => {{
        let mut r = [$zero; $n];
        for i in 0..$n {
            $(let $x = $v.0[i];)*
            r[i] = $e;
        }
        Lanes(r)
    }};
}

macro_rules! binary {
    ($elem:ty, $n:expr, $zero:expr; $($trait:ident $f:ident |$a:ident, $b:ident| $e:expr;)*) => {$(
        impl $trait for Lanes<$elem, $n> {
            type Output = Self;
            #[inline(always)]
            fn $f(self, $b: Self) -> Self {
                each!($a = self, $b = $b => $e; $n, $zero)
            }
        }
    )*};
}

macro_rules! float_ops {
    ($elem:ty, $n:expr) => {
        binary!($elem, $n, 0.0;
            Add add |a, b| a + b;
            Sub sub |a, b| a - b;
            Mul mul |a, b| a * b;
            Div div |a, b| a / b;
        );
        impl Neg for Lanes<$elem, $n> {
            type Output = Self;
            #[inline(always)]
            fn neg(self) -> Self {
                each!(x = self => -x; $n, 0.0)
            }
        }
    };
}
macro_rules! int_ops {
    ($elem:ty, $n:expr) => {
        binary!($elem, $n, 0;
            Add add |a, b| a.wrapping_add(b);
            Sub sub |a, b| a.wrapping_sub(b);
            Mul mul |a, b| a.wrapping_mul(b);
        );
    };
}
macro_rules! bit_ops {
    ($elem:ty, $n:expr) => {
        binary!($elem, $n, 0;
            BitAnd bitand |a, b| a & b;
            BitOr bitor |a, b| a | b;
            BitXor bitxor |a, b| a ^ b;
        );
        impl Not for Lanes<$elem, $n> {
            type Output = Self;
            #[inline(always)]
            fn not(self) -> Self {
                each!(x = self => !x; $n, 0)
            }
        }
    };
}
float_ops!(f32, LANES32);
float_ops!(f64, LANES64);
int_ops!(i32, LANES32);
int_ops!(i64, LANES64);
bit_ops!(i32, LANES32);
bit_ops!(i64, LANES64);
bit_ops!(u32, LANES32);
bit_ops!(u64, LANES64);

macro_rules! vector {
    ($elem:ty, $zero:expr, $m:ty, $n:expr, to_bits $to:expr, from_bits $from:expr) => {
        impl<const NEON: bool> Vector<Portable<NEON>> for Lanes<$elem, $n> {
            type Elem = $elem;
            type Mask = Lanes<$m, $n>;
            const LANES: usize = $n;

            #[inline(always)]
            fn splat(_: Portable<NEON>, x: $elem) -> Self {
                Lanes([x; $n])
            }
            #[inline(always)]
            unsafe fn load(_: Portable<NEON>, p: *const $elem) -> Self {
                // SAFETY: the caller's.
                Lanes(unsafe { p.cast::<[$elem; $n]>().read_unaligned() })
            }
            #[inline(always)]
            unsafe fn load_n(_: Portable<NEON>, p: *const $elem, n: usize) -> Self {
                let mut r = [$zero; $n];
                // SAFETY: the caller's, and `r` holds LANES.
                unsafe { std::ptr::copy_nonoverlapping(p, r.as_mut_ptr(), n.min($n)) };
                Lanes(r)
            }
            #[inline(always)]
            unsafe fn store(self, p: *mut $elem) {
                // SAFETY: the caller's.
                unsafe { p.cast::<[$elem; $n]>().write_unaligned(self.0) }
            }
            #[inline(always)]
            unsafe fn store_n(self, p: *mut $elem, n: usize) {
                // SAFETY: the caller's.
                unsafe { std::ptr::copy_nonoverlapping(self.0.as_ptr(), p, n.min($n)) }
            }
            #[inline(always)]
            unsafe fn store_nt(self, p: *mut $elem) {
                // SAFETY: the caller's.
                unsafe { Vector::<Portable<NEON>>::store(self, p) }
            }
            #[inline(always)]
            fn select(mask: Self::Mask, a: Self, b: Self) -> Self {
                each!(mask = mask, a = a, b = b => $from(($to(a) & mask) | ($to(b) & !mask)); $n, $zero)
            }
            #[inline(always)]
            fn eq(self, b: Self) -> Self::Mask {
                each!(x = self, b = b => if x == b { !0 } else { 0 }; $n, 0)
            }
            #[inline(always)]
            fn lt(self, b: Self) -> Self::Mask {
                each!(x = self, b = b => if x < b { !0 } else { 0 }; $n, 0)
            }
            #[inline(always)]
            fn min(self, b: Self) -> Self {
                each!(x = self, b = b => if x < b { x } else { b }; $n, $zero)
            }
            #[inline(always)]
            fn max(self, b: Self) -> Self {
                each!(x = self, b = b => if x > b { x } else { b }; $n, $zero)
            }
        }
    };
}
vector!(f32, 0.0, u32, LANES32, to_bits f32::to_bits, from_bits f32::from_bits);
vector!(f64, 0.0, u64, LANES64, to_bits f64::to_bits, from_bits f64::from_bits);
vector!(i32, 0, u32, LANES32, to_bits i32::cast_unsigned, from_bits u32::cast_signed);
vector!(i64, 0, u64, LANES64, to_bits i64::cast_unsigned, from_bits u64::cast_signed);

/// Lane i with lane i + LANES/2, and so on by halves.
macro_rules! reduce {
    ($x:expr, $n:expr, |$a:ident, $b:ident| $e:expr) => {{
        let mut x = $x;
        let mut half = $n / 2;
        while half > 0 {
            for i in 0..half {
                let ($a, $b) = (x[i], x[i + half]);
                x[i] = $e;
            }
            half /= 2;
        }
        x[0]
    }};
}

/// `a * b + c`, rounded once, also where there is no such instruction.
#[inline(always)]
fn fma32(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
        return a.mul_add(b, c);
    }
    // The product is exact in f64. If the sum is not, make its last bit odd: then rounding again is harmless
    // (Boldo and Melquiond, "Emulation of a FMA and correctly-rounded sums", 2008).
    let product = a as f64 * b as f64;
    let sum = product + c as f64;
    let part = sum - product;
    let error = (product - (sum - part)) + (c as f64 - part);
    let bits = sum.to_bits();
    // An error away from zero asks for the next larger magnitude, one toward zero for the next smaller. Infinite and NaN
    // sums have a NaN error, for which neither comparison holds.
    let odd = bits & 1 == 1;
    let up = (error > 0.0 && sum > 0.0) || (error < 0.0 && sum < 0.0);
    let down = (error < 0.0 && sum > 0.0) || (error > 0.0 && sum < 0.0);
    let bits = bits.wrapping_add((up & !odd) as u64).wrapping_sub((down & !odd) as u64);
    f64::from_bits(bits) as f32
}

#[inline(always)]
fn fma64(a: f64, b: f64, c: f64) -> f64 {
    a.mul_add(b, c)
}

macro_rules! float {
    ($elem:ty, $int:ty, $n:expr, $fma:ident, bias $bias:literal, digits $digits:literal) => {
        impl<const NEON: bool> Float<Portable<NEON>> for Lanes<$elem, $n> {
            type Int = Lanes<$int, $n>;

            #[inline(always)]
            fn fma(self, b: Self, c: Self) -> Self {
                each!(x = self, b = b, c = c => $fma(x, b, c); $n, 0.0)
            }
            #[inline(always)]
            fn fms(self, b: Self, c: Self) -> Self {
                each!(x = self, b = b, c = c => $fma(x, b, -c); $n, 0.0)
            }
            #[inline(always)]
            fn fnma(self, b: Self, c: Self) -> Self {
                each!(x = self, b = b, c = c => $fma(-x, b, c); $n, 0.0)
            }
            #[inline(always)]
            fn abs(self) -> Self {
                each!(x = self => x.abs(); $n, 0.0)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                each!(x = self => x.sqrt(); $n, 0.0)
            }
            #[inline(always)]
            fn round(self) -> Self {
                each!(x = self => x.nearest(); $n, 0.0)
            }
            #[inline(always)]
            fn floor(self) -> Self {
                each!(x = self => x.down(); $n, 0.0)
            }
            #[inline(always)]
            fn ceil(self) -> Self {
                each!(x = self => x.up(); $n, 0.0)
            }
            #[inline(always)]
            fn trunc(self) -> Self {
                each!(x = self => x.toward_zero(); $n, 0.0)
            }
            #[inline(always)]
            fn le(self, b: Self) -> Self::Mask {
                each!(x = self, b = b => if x <= b { !0 } else { 0 }; $n, 0)
            }
            #[inline(always)]
            fn bits(self) -> Self::Int {
                each!(x = self => x.to_bits().cast_signed(); $n, 0)
            }
            #[inline(always)]
            fn from_bits(bits: Self::Int) -> Self {
                each!(bits = bits => <$elem>::from_bits(bits.cast_unsigned()); $n, 0.0)
            }
            #[inline(always)]
            fn to_int(self) -> Self::Int {
                each!(x = self => x.nearest() as $int; $n, 0)
            }
            #[inline(always)]
            fn from_int(i: Self::Int) -> Self {
                each!(i = i => i as $elem; $n, 0.0)
            }
            #[inline(always)]
            fn scale(self, n: Self) -> Self {
                // In two steps, of which only the second can leave the normal range.
                each!(x = self, n = n => {
                    let half = (n * 0.5).down();
                    let power = |n: $elem| <$elem>::from_bits(((n as $int + $bias) << $digits).cast_unsigned());
                    x * power(half) * power(n - half)
                }; $n, 0.0)
            }
            #[inline(always)]
            fn reduce_add(self) -> $elem {
                reduce!(self.0, $n, |a, b| a + b)
            }
            #[inline(always)]
            fn reduce_max(self) -> $elem {
                reduce!(self.0, $n, |a, b| if a > b { a } else { b })
            }
            #[inline(always)]
            fn reduce_min(self) -> $elem {
                reduce!(self.0, $n, |a, b| if a < b { a } else { b })
            }
        }
    };
}
float!(f32, i32, LANES32, fma32, bias 127, digits 23);
float!(f64, i64, LANES64, fma64, bias 1023, digits 52);

macro_rules! int {
    ($elem:ty, $unsigned:ty, $n:expr) => {
        impl<const NEON: bool> Int<Portable<NEON>> for Lanes<$elem, $n> {
            #[inline(always)]
            fn shl(self, n: u32) -> Self {
                each!(x = self => x.wrapping_shl(n); $n, 0)
            }
            #[inline(always)]
            fn shr(self, n: u32) -> Self {
                each!(x = self => x.cast_unsigned().wrapping_shr(n).cast_signed(); $n, 0)
            }
            #[inline(always)]
            fn sar(self, n: u32) -> Self {
                each!(x = self => x.wrapping_shr(n); $n, 0)
            }
            #[inline(always)]
            fn shl_each(self, n: Self) -> Self {
                each!(x = self, n = n => if (n.cast_unsigned() as u64) < <$elem>::BITS as u64 { x.wrapping_shl(n as u32) }
                    else { 0 }; $n, 0)
            }
            #[inline(always)]
            fn shr_each(self, n: Self) -> Self {
                each!(x = self, n = n => if (n.cast_unsigned() as u64) < <$elem>::BITS as u64 {
                    x.cast_unsigned().wrapping_shr(n as u32).cast_signed()
                } else { 0 }; $n, 0)
            }
            #[inline(always)]
            fn rotl(self, n: u32) -> Self {
                each!(x = self => x.rotate_left(n); $n, 0)
            }
            #[inline(always)]
            fn reduce_add(self) -> $elem {
                reduce!(self.0, $n, |a, b| a.wrapping_add(b))
            }
        }
    };
}
int!(i32, u32, LANES32);
int!(i64, u64, LANES64);

macro_rules! mask {
    ($elem:ty, $n:expr) => {
        impl<const NEON: bool> Mask<Portable<NEON>> for Lanes<$elem, $n> {
            #[inline(always)]
            fn first(_: Portable<NEON>, n: usize) -> Self {
                let mut r = [0; $n];
                for i in 0..$n {
                    r[i] = if i < n { !0 } else { 0 };
                }
                Lanes(r)
            }
            #[inline(always)]
            fn bits(self) -> u32 {
                let mut bits = 0;
                for i in 0..$n {
                    bits |= (self.0[i] as u32 & 1) << i;
                }
                bits
            }
            #[inline(always)]
            fn all(self) -> bool {
                Mask::<Portable<NEON>>::bits(self) == (1 << $n) - 1
            }
        }
    };
}
mask!(u32, LANES32);
mask!(u64, LANES64);

/// Half precision to single. Shifting the fields into place and scaling by 2^112 is exact for normal and subnormal.
#[inline(always)]
fn f16_to_f32(h: u16) -> f32 {
    let (sign, magnitude) = ((h as u32 & 0x8000) << 16, h as u32 & 0x7fff);
    let finite = (f32::from_bits(magnitude << 13) * f32::from_bits((127 + 112) << 23)).to_bits();
    let quiet = if magnitude > 0x7c00 { 0x40_0000 } else { 0 };
    let special = 0x7f80_0000 | magnitude << 13 | quiet;
    f32::from_bits(sign | if magnitude >= 0x7c00 { special } else { finite })
}

/// Single to half precision, to nearest even.
#[inline(always)]
fn f32_to_f16(x: f32) -> u16 {
    let (sign, bits) = ((x.to_bits() >> 16) as u16 & 0x8000, x.to_bits() & 0x7fff_ffff);
    // The last place of 0.5 is the smallest half-precision subnormal, so the addition rounds.
    let subnormal = (f32::from_bits(bits) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let normal = bits.wrapping_sub((127 - 15) << 23).wrapping_add(0xfff + (bits >> 13 & 1)) >> 13;
    let magnitude = if bits > 0x7f80_0000 {
        0x7e00 | bits >> 13 & 0x3ff
    } else if bits >= 0x477f_f000 {
        0x7c00
    } else if bits < 0x3880_0000 {
        subnormal
    } else {
        normal
    };
    sign | magnitude as u16
}

/// Single to bfloat16, to nearest even.
#[inline(always)]
fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    ((if x.is_nan() { bits | 0x40_0000 } else { rounded }) >> 16) as u16
}

/// Rounding to whole numbers without a call into the C library.
trait Round {
    fn nearest(self) -> Self;
    fn down(self) -> Self;
    fn up(self) -> Self;
    fn toward_zero(self) -> Self;
}
macro_rules! round {
    ($elem:ty, $whole:expr) => {
        impl Round for $elem {
            #[inline(always)]
            fn nearest(self) -> Self {
                // From `$whole` on there are no fractions; adding it below that rounds them away.
                let rounded = ((self.abs() + $whole) - $whole).copysign(self);
                if self.abs() < $whole { rounded } else { self }
            }
            #[inline(always)]
            fn down(self) -> Self {
                let near = self.nearest();
                if near > self { near - 1.0 } else { near }
            }
            #[inline(always)]
            fn up(self) -> Self {
                let near = self.nearest();
                (if near < self { near + 1.0 } else { near }).copysign(self)
            }
            #[inline(always)]
            fn toward_zero(self) -> Self {
                self.abs().down().copysign(self)
            }
        }
    };
}
round!(f32, 8388608.0);
round!(f64, 4503599627370496.0);

impl<const NEON: bool> Simd for Portable<NEON> {
    const ISA: Isa = if NEON { Isa::Neon } else { Isa::Scalar };
    type F32 = F32;
    type F64 = F64;
    type I32 = I32;
    type I64 = I64;
    type M32 = M32;
    type M64 = M64;

    #[inline(always)]
    fn iota32(self) -> I32 {
        Lanes([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15])
    }
    #[inline(always)]
    fn widen(self, x: F32) -> [F64; 2] {
        let mut r = [Lanes([0.0; LANES64]); 2];
        for i in 0..LANES32 {
            r[i / LANES64].0[i % LANES64] = x.0[i] as f64;
        }
        r
    }
    #[inline(always)]
    fn narrow(self, x: [F64; 2]) -> F32 {
        let mut r = [0.0; LANES32];
        for i in 0..LANES32 {
            r[i] = x[i / LANES64].0[i % LANES64] as f32;
        }
        Lanes(r)
    }
    #[inline(always)]
    fn widen_i32(self, x: I32) -> [F64; 2] {
        let mut r = [Lanes([0.0; LANES64]); 2];
        for i in 0..LANES32 {
            r[i / LANES64].0[i % LANES64] = x.0[i] as f64;
        }
        r
    }
    #[inline(always)]
    fn widen_u32(self, x: I32) -> [I64; 2] {
        let mut r = [Lanes([0; LANES64]); 2];
        for i in 0..LANES32 {
            r[i / LANES64].0[i % LANES64] = x.0[i].cast_unsigned() as i64;
        }
        r
    }
    #[inline(always)]
    fn narrow_i64(self, x: [I64; 2]) -> I32 {
        let mut r = [0; LANES32];
        for i in 0..LANES32 {
            r[i] = x[i / LANES64].0[i % LANES64] as i32;
        }
        Lanes(r)
    }
    #[inline(always)]
    fn mul_u32(self, a: I64, b: I64) -> I64 {
        each!(a = a, b = b => (a as u32 as u64 * b as u32 as u64).cast_signed(); LANES64, 0)
    }
    #[inline(always)]
    fn lookup16(self, table: &[f32; 16], i: I32) -> F32 {
        each!(i = i => table[(i & 15) as usize]; LANES32, 0.0)
    }
    #[inline(always)]
    fn lookup16_f64(self, table: &[f64; 16], i: I64) -> F64 {
        each!(i = i => table[(i & 15) as usize]; LANES64, 0.0)
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const f16) -> F32 {
        // SAFETY: the caller's.
        let h = Lanes(unsafe { p.cast::<[u16; LANES32]>().read_unaligned() });
        each!(h = h => f16_to_f32(h); LANES32, 0.0)
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> F32 {
        // SAFETY: the caller's.
        let h = Lanes(unsafe { p.cast::<[u16; LANES32]>().read_unaligned() });
        each!(h = h => f32::from_bits((h as u32) << 16); LANES32, 0.0)
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut f16, x: F32) {
        let h = each!(x = x => f32_to_f16(x); LANES32, 0);
        // SAFETY: the caller's.
        unsafe { p.cast::<[u16; LANES32]>().write_unaligned(h.0) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut bf16, x: F32) {
        let h = each!(x = x => f32_to_bf16(x); LANES32, 0);
        // SAFETY: the caller's.
        unsafe { p.cast::<[u16; LANES32]>().write_unaligned(h.0) }
    }
}
