//! Vectors whose width and results are the same on every instruction set.
//!
//! A [`Simd`] token stands for a level that this machine has; every vector comes from a token, so holding one proves
//! that its instructions may be used. Vectors have 16 lanes of 32 bits or 8 lanes of 64 bits at every level (one
//! AVX-512 register, two AVX2 registers, an array that the compiler spreads over SSE2 or NEON registers), so that
//! kernels written on them give the same bits everywhere, reductions included. All arithmetic is IEEE: `fma` is fused
//! at every level, nothing is flushed to zero.
//!
//! A kernel implements [`Kernel`]; [`dispatch`] runs it inside a function compiled for the level. Everything below
//! must be `#[inline(always)]`, helper functions included; use small structs with methods in place of closures.
//!
//! This module knows vectors only; functions like `exp` are in `math`.

mod array;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod map;
#[cfg(target_arch = "x86_64")]
mod reduce;
#[cfg(test)]
mod tests;

pub use array::Portable;
#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
pub use map::{Ahead, Map1, Map2, Stream, map1, map1_raw, map2, map2_raw};

use crate::isa::{self, Isa};
use half::{bf16, f16};
use std::ops::{Add, BitAnd, BitOr, BitXor, Div, Mul, Neg, Not, Sub};

/// Lanes of a vector of 32-bit elements.
pub const LANES32: usize = 16;
/// Lanes of a vector of 64-bit elements.
pub const LANES64: usize = 8;

/// A level of the instruction set, as a token without size. See the module page.
pub trait Simd: Copy + Send + Sync + 'static {
    /// The level.
    const ISA: Isa;
    /// 16 lanes of `f32`.
    type F32: Float<Self, Elem = f32, Int = Self::I32, Mask = Self::M32>;
    /// 8 lanes of `f64`.
    type F64: Float<Self, Elem = f64, Int = Self::I64, Mask = Self::M64>;
    /// 16 lanes of 32-bit integers, signed or unsigned as the method says.
    type I32: Int<Self, Elem = i32, Mask = Self::M32>;
    /// 8 lanes of 64-bit integers.
    type I64: Int<Self, Elem = i64, Mask = Self::M64>;
    /// Truth values for 16 lanes.
    type M32: Mask<Self>;
    /// Truth values for 8 lanes.
    type M64: Mask<Self>;

    /// All lanes `x`.
    #[inline(always)]
    fn f32(self, x: f32) -> Self::F32 {
        Self::F32::splat(self, x)
    }
    /// All lanes `x`.
    #[inline(always)]
    fn f64(self, x: f64) -> Self::F64 {
        Self::F64::splat(self, x)
    }
    /// All lanes `x`.
    #[inline(always)]
    fn i32(self, x: i32) -> Self::I32 {
        Self::I32::splat(self, x)
    }
    /// All lanes `x`.
    #[inline(always)]
    fn i64(self, x: i64) -> Self::I64 {
        Self::I64::splat(self, x)
    }
    /// All lanes the unsigned `x`.
    #[inline(always)]
    fn u32(self, x: u32) -> Self::I32 {
        Self::I32::splat(self, x as i32)
    }
    /// All lanes the unsigned `x`.
    #[inline(always)]
    fn u64(self, x: u64) -> Self::I64 {
        Self::I64::splat(self, x as i64)
    }
    /// 0, 1, ..., 15.
    fn iota32(self) -> Self::I32;

    /// The lower and the upper half in double precision.
    fn widen(self, x: Self::F32) -> [Self::F64; 2];
    /// Two halves rounded to single precision, to nearest even.
    fn narrow(self, x: [Self::F64; 2]) -> Self::F32;
    /// The lower and the upper half as doubles.
    fn widen_i32(self, x: Self::I32) -> [Self::F64; 2];
    /// The lower and the upper half, zero-extended.
    fn widen_u32(self, x: Self::I32) -> [Self::I64; 2];
    /// The low 32 bits of every lane.
    fn narrow_i64(self, x: [Self::I64; 2]) -> Self::I32;
    /// Products of the low 32 bits of every lane, unsigned, all 64 bits.
    fn mul_u32(self, a: Self::I64, b: Self::I64) -> Self::I64;
    /// `table[i & 15]` for every lane.
    fn lookup16(self, table: &[f32; 16], i: Self::I32) -> Self::F32;
    /// `table[i & 15]` for every lane.
    fn lookup16_f64(self, table: &[f64; 16], i: Self::I64) -> Self::F64;

    /// Loads 16 half-precision numbers.
    ///
    /// # Safety
    /// 16 elements from `p` on can be read.
    unsafe fn load_f16(self, p: *const f16) -> Self::F32;
    /// Loads 16 bfloat16 numbers.
    ///
    /// # Safety
    /// 16 elements from `p` on can be read.
    unsafe fn load_bf16(self, p: *const bf16) -> Self::F32;
    /// Rounds (to nearest even; NaN stays NaN) and stores 16 numbers.
    ///
    /// # Safety
    /// 16 elements from `p` on can be written.
    unsafe fn store_f16(self, p: *mut f16, x: Self::F32);
    /// Rounds (to nearest even; NaN stays NaN) and stores 16 numbers.
    ///
    /// # Safety
    /// 16 elements from `p` on can be written.
    unsafe fn store_bf16(self, p: *mut bf16, x: Self::F32);

    /// Loads `n` <= 16 half-precision numbers; the other lanes are zero.
    ///
    /// # Safety
    /// `n` elements from `p` on can be read.
    #[inline(always)]
    unsafe fn load_f16_n(self, p: *const f16, n: usize) -> Self::F32 {
        let mut a = [f16::ZERO; LANES32];
        // SAFETY: the caller vouches for `n` elements, and `a` holds 16.
        unsafe {
            std::ptr::copy_nonoverlapping(p, a.as_mut_ptr(), n.min(LANES32));
            self.load_f16(a.as_ptr())
        }
    }
    /// Loads `n` <= 16 bfloat16 numbers; the other lanes are zero.
    ///
    /// # Safety
    /// `n` elements from `p` on can be read.
    #[inline(always)]
    unsafe fn load_bf16_n(self, p: *const bf16, n: usize) -> Self::F32 {
        let mut a = [bf16::ZERO; LANES32];
        // SAFETY: the caller vouches for `n` elements, and `a` holds 16.
        unsafe {
            std::ptr::copy_nonoverlapping(p, a.as_mut_ptr(), n.min(LANES32));
            self.load_bf16(a.as_ptr())
        }
    }
    /// Rounds and stores the first `n` <= 16 lanes.
    ///
    /// # Safety
    /// `n` elements from `p` on can be written.
    #[inline(always)]
    unsafe fn store_f16_n(self, p: *mut f16, n: usize, x: Self::F32) {
        let mut a = [f16::ZERO; LANES32];
        // SAFETY: the caller vouches for `n` elements, and `a` holds 16.
        unsafe {
            self.store_f16(a.as_mut_ptr(), x);
            std::ptr::copy_nonoverlapping(a.as_ptr(), p, n.min(LANES32));
        }
    }
    /// Rounds and stores the first `n` <= 16 lanes.
    ///
    /// # Safety
    /// `n` elements from `p` on can be written.
    #[inline(always)]
    unsafe fn store_bf16_n(self, p: *mut bf16, n: usize, x: Self::F32) {
        let mut a = [bf16::ZERO; LANES32];
        // SAFETY: the caller vouches for `n` elements, and `a` holds 16.
        unsafe {
            self.store_bf16(a.as_mut_ptr(), x);
            std::ptr::copy_nonoverlapping(a.as_ptr(), p, n.min(LANES32));
        }
    }
    /// Makes non-temporal stores visible to other threads; call it after the last [`Vector::store_nt`] of a task.
    #[inline(always)]
    fn fence(self) {}
    /// Asks for the cache line at `p`, which may lie anywhere: nothing is read.
    #[inline(always)]
    fn prefetch(self, _p: *const u8) {}
    /// [`Simd::prefetch`] into the second-level cache: for what is needed later than the first would keep it.
    #[inline(always)]
    fn prefetch_far(self, _p: *const u8) {}
}

/// What vectors of floats and of integers have in common.
pub trait Vector<S: Simd>: Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> {
    /// The element.
    type Elem: Copy + Default;
    /// Truth values, one a lane.
    type Mask: Mask<S>;
    /// How many lanes: 16 of 32 bits, 8 of 64 bits.
    const LANES: usize;

    /// All lanes `x`.
    fn splat(s: S, x: Self::Elem) -> Self;
    /// Loads a vector; no alignment is needed.
    ///
    /// # Safety
    /// `LANES` elements from `p` on can be read.
    unsafe fn load(s: S, p: *const Self::Elem) -> Self;
    /// Loads `n` <= `LANES` elements; the other lanes are zero.
    ///
    /// # Safety
    /// `n` elements from `p` on can be read.
    unsafe fn load_n(s: S, p: *const Self::Elem, n: usize) -> Self;
    /// Stores all lanes; no alignment is needed.
    ///
    /// # Safety
    /// `LANES` elements from `p` on can be written.
    unsafe fn store(self, p: *mut Self::Elem);
    /// Stores the first `n` <= `LANES` lanes.
    ///
    /// # Safety
    /// `n` elements from `p` on can be written.
    unsafe fn store_n(self, p: *mut Self::Elem, n: usize);
    /// Stores past the caches where the level can.
    ///
    /// # Safety
    /// `LANES` elements from `p` on can be written, and `p` is a multiple of 64 bytes.
    unsafe fn store_nt(self, p: *mut Self::Elem);
    /// `a` where the mask is true, else `b`.
    fn select(mask: Self::Mask, a: Self, b: Self) -> Self;
    /// Lanes that are equal.
    fn eq(self, b: Self) -> Self::Mask;
    /// Lanes where `self < b`; integers are signed, NaN is never less.
    fn lt(self, b: Self) -> Self::Mask;
    /// `self` where `self < b`, else `b`. So where a float is NaN the result is `b`.
    fn min(self, b: Self) -> Self;
    /// `self` where `self > b`, else `b`. So where a float is NaN the result is `b`.
    fn max(self, b: Self) -> Self;
    /// Lanes where `self > b`; integers are signed, NaN is never greater.
    #[inline(always)]
    fn gt(self, b: Self) -> Self::Mask {
        b.lt(self)
    }
}

/// A vector of floats.
pub trait Float<S: Simd>: Vector<S> + Div<Output = Self> + Neg<Output = Self> {
    /// The integers of the same width.
    type Int: Int<S, Mask = Self::Mask>;

    /// `self * b + c`, rounded once.
    fn fma(self, b: Self, c: Self) -> Self;
    /// `self * b - c`, rounded once.
    fn fms(self, b: Self, c: Self) -> Self;
    /// `c - self * b`, rounded once.
    fn fnma(self, b: Self, c: Self) -> Self;
    /// The magnitude.
    fn abs(self) -> Self;
    /// The square root, correctly rounded.
    fn sqrt(self) -> Self;
    /// To the nearest whole number, ties to even.
    fn round(self) -> Self;
    /// Down.
    fn floor(self) -> Self;
    /// Up.
    fn ceil(self) -> Self;
    /// Toward zero.
    fn trunc(self) -> Self;
    /// Lanes where `self <= b`.
    fn le(self, b: Self) -> Self::Mask;
    /// The bit patterns.
    fn bits(self) -> Self::Int;
    /// The numbers with these bit patterns.
    fn from_bits(bits: Self::Int) -> Self;
    /// The nearest integer, ties to even. Magnitudes from 2^31 (`f32`) or 2^51 (`f64`) on and NaN give no useful value.
    fn to_int(self) -> Self::Int;
    /// Integers as floats, rounded to nearest even; 64-bit ones must be below 2^51 in magnitude.
    fn from_int(i: Self::Int) -> Self;
    /// `self * 2^n` rounded once, for whole `n` of magnitude up to 250 (`f32`) or 2000 (`f64`) and normal `self` between
    /// 1/4 and 4.
    fn scale(self, n: Self) -> Self;
    /// The sum of all lanes: lane i + lane i + LANES/2, and so on by halves.
    fn reduce_add(self) -> Self::Elem;
    /// The largest lane; with NaN lanes the result is one of the lanes, which one is fixed.
    fn reduce_max(self) -> Self::Elem;
    /// The smallest lane; with NaN lanes the result is one of the lanes, which one is fixed.
    fn reduce_min(self) -> Self::Elem;

    /// Lanes that are NaN.
    #[inline(always)]
    fn is_nan(self) -> Self::Mask {
        !self.eq(self)
    }
    /// Lanes where `self >= b`.
    #[inline(always)]
    fn ge(self, b: Self) -> Self::Mask {
        b.le(self)
    }
}

/// A vector of integers; arithmetic wraps.
pub trait Int<S: Simd>:
    Vector<S> + BitAnd<Output = Self> + BitOr<Output = Self> + BitXor<Output = Self> + Not<Output = Self>
{
    /// Shift left by `n` below the width.
    fn shl(self, n: u32) -> Self;
    /// Logical shift right by `n` below the width.
    fn shr(self, n: u32) -> Self;
    /// Arithmetic shift right by `n` below the width.
    fn sar(self, n: u32) -> Self;
    /// Every lane shifted left by its own count, 0 for counts from the width on.
    fn shl_each(self, n: Self) -> Self;
    /// Every lane shifted right, filling with zeros, by its own count; 0 for counts from the width on.
    fn shr_each(self, n: Self) -> Self;
    /// Rotate left by `n`, 1 to the width less 1.
    fn rotl(self, n: u32) -> Self;
    /// The wrapping sum of all lanes.
    fn reduce_add(self) -> Self::Elem;
}

/// Truth values of the lanes of a vector.
pub trait Mask<S: Simd>: Copy + BitAnd<Output = Self> + BitOr<Output = Self> + Not<Output = Self> {
    /// The first `n` lanes.
    fn first(s: S, n: usize) -> Self;
    /// Bit i is lane i.
    fn bits(self) -> u32;
    /// Some lane is true.
    #[inline(always)]
    fn any(self) -> bool {
        self.bits() != 0
    }
    /// Every lane is true.
    fn all(self) -> bool;
}

/// The nearest values of bfloat16, ties to even; NaN stays NaN.
#[inline(always)]
pub fn nearest_bf16<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let bits = x.bits();
    let rounded = bits + (bits.shr(16) & s.i32(1)) + s.i32(0x7fff);
    S::F32::from_bits(S::I32::select(x.is_nan(), bits | s.i32(0x40_0000), rounded) & s.i32(!0xffff))
}

/// Work that is compiled for every level. `run` and all that it calls must be `#[inline(always)]`.
pub trait Kernel {
    /// What it returns.
    type Out;
    /// The work.
    fn run<S: Simd>(self, s: S) -> Self::Out;
}

/// Runs a kernel at the level in use.
#[inline]
pub fn dispatch<K: Kernel>(k: K) -> K::Out {
    dispatch_with(isa::isa(), k)
}

/// Runs a kernel at a level.
///
/// # Panics
/// If this machine lacks the level; ask [`isa::available`].
#[inline(always)]
pub fn dispatch_with<K: Kernel>(isa: Isa, k: K) -> K::Out {
    assert!(isa.is_available(), "this machine has no {}", isa.name());
    match isa {
        // SAFETY: the level is available.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512::enter(k) },
        // SAFETY: the level is available.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2::enter(k) },
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => array::enter::<K, true>(k),
        _ => array::enter::<K, false>(k),
    }
}
