//! Packing: from matrices with any strides to panels that a micro-kernel reads front to back.
//!
//! A panel is `w` lanes (rows of the left side, columns of the right side) by `kc` steps, step by step. Two layouts
//! have vector code: k contiguous (x of `x @ W.T` and W itself), transposed in registers 16 bytes of every lane at a
//! time, and lanes contiguous, copied. Halves become f32 here. It costs 0.1 to 0.3 cycles an element and reads each
//! once; a matrix-vector product streams its matrix through here at memory speed.

use super::micro::{Arith, F32, F64, MAX_COLS};
use crate::isa::Isa;
use lapis_core::dtype::{bf16, f16};

/// Lanes past the last one repeat the first: a kernel multiplies them, nobody reads the result.
pub(super) type Lanes<E> = [*const E; MAX_COLS];

/// How to pack elements of this type for arithmetic `M`.
pub(super) trait Pack<M: Arith>: Copy + 'static {
    /// One element, packed alone (`M::PER` is 1) or as a pair.
    fn pack_one(first: Self, second: Option<Self>) -> M::P;

    /// k contiguous: `dst[k * w + l] = lanes[l][k]`, for `k` elements.
    ///
    /// # Safety
    /// Every lane must have `k` readable elements, `dst` must hold `k.div_ceil(PER) * w` values; `isa` must be available.
    unsafe fn transpose(isa: Isa, lanes: &Lanes<Self>, k: usize, w: usize, dst: *mut M::P);

    /// Lanes contiguous: `dst[k * w + l] = src[k * ks + l]` for `l < count` (at most `w`), `k` elements.
    ///
    /// # Safety
    /// As for `transpose`, with `count` readable elements at each step.
    unsafe fn copy(isa: Isa, src: *const Self, ks: isize, k: usize, count: usize, w: usize, dst: *mut M::P);
}

/// Packs any strides, one element after the other.
///
/// # Safety
/// `lanes[l] + j * ks` must be readable for `j < k`, `dst` must hold `k.div_ceil(PER) * w` values.
pub(super) unsafe fn pack_strided<M: Arith, E: Pack<M>>(
    lanes: &Lanes<E>,
    ks: isize,
    k: usize,
    w: usize,
    dst: *mut M::P,
) {
    for (step, j) in (0..k).step_by(M::PER).enumerate() {
        for (l, lane) in lanes[..w].iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                let at = |j: usize| *lane.offset(j as isize * ks);
                let second = (M::PER == 2 && j + 1 < k).then(|| at(j + 1));
                *dst.add(step * w + l) = E::pack_one(at(j), second);
            }
        }
    }
}

/// Packs `count` lanes into a panel of width `w`, choosing by the strides.
///
/// # Safety
/// As for [`pack_strided`]; if `contiguous`, lane `l < count` lies at `lanes[0] + l`.
pub(super) unsafe fn pack<M: Arith, E: Pack<M>>(
    isa: Isa,
    lanes: &Lanes<E>,
    contiguous: bool,
    ks: isize,
    k: usize,
    count: usize,
    w: usize,
    dst: *mut M::P,
) {
    // SAFETY: handed on.
    unsafe {
        if ks == 1 && w == 1 && M::PER == 1 {
            E::copy(isa, lanes[0], 0, 1, k, k, dst);
        } else if ks == 1 {
            E::transpose(isa, lanes, k, w, dst);
        } else if contiguous {
            E::copy(isa, lanes[0], ks, k, count, w, dst);
        } else {
            pack_strided::<M, E>(lanes, ks, k, w, dst);
        }
    }
}

macro_rules! impl_pack {
    ($e:ty, $m:ty, $one:expr, $q512:ident, $q256:ident) => {
        impl Pack<$m> for $e {
            fn pack_one(first: Self, _: Option<Self>) -> <$m as Arith>::P {
                $one(first)
            }
            unsafe fn transpose(isa: Isa, lanes: &Lanes<Self>, k: usize, w: usize, dst: *mut <$m as Arith>::P) {
                // SAFETY: handed on; the instruction sets are those of `isa`.
                unsafe {
                    match isa {
                        #[cfg(target_arch = "x86_64")]
                        Isa::Avx512 => avx512::transpose::<avx512::$q512>(lanes, k, w, dst),
                        #[cfg(target_arch = "x86_64")]
                        Isa::Avx2 => avx2::transpose::<avx2::$q256>(lanes, k, w, dst),
                        _ => pack_strided::<$m, Self>(lanes, 1, k, w, dst),
                    }
                }
            }
            unsafe fn copy(
                isa: Isa,
                src: *const Self,
                ks: isize,
                k: usize,
                count: usize,
                w: usize,
                dst: *mut <$m as Arith>::P,
            ) {
                // SAFETY: handed on; the instruction sets are those of `isa`.
                unsafe {
                    match isa {
                        #[cfg(target_arch = "x86_64")]
                        Isa::Avx512 => avx512::copy::<avx512::$q512>(src, ks, k, count, w, dst),
                        #[cfg(target_arch = "x86_64")]
                        Isa::Avx2 => avx2::copy::<avx2::$q256>(src, ks, k, count, w, dst),
                        _ => {
                            for j in 0..k {
                                for l in 0..count {
                                    *dst.add(j * w + l) = $one(*src.offset(j as isize * ks).add(l));
                                }
                            }
                        }
                    }
                }
            }
        }
    };
}
impl_pack!(f32, F32, |x: f32| x, Single, Single);
impl_pack!(bf16, F32, |x: bf16| x.to_f32(), Brain, Brain);
impl_pack!(f16, F32, |x: f16| x.to_f32(), Half, Half);
impl_pack!(f64, F64, |x: f64| x, Double, Double);

#[cfg(target_arch = "x86_64")]
impl Pack<super::micro::Dot> for bf16 {
    fn pack_one(first: bf16, second: Option<bf16>) -> u32 {
        u32::from(first.to_bits()) | u32::from(second.map_or(0, bf16::to_bits)) << 16
    }
    unsafe fn transpose(_: Isa, lanes: &Lanes<bf16>, k: usize, w: usize, dst: *mut u32) {
        // SAFETY: handed on; pairs are packed on AVX-512 only.
        unsafe { avx512::transpose::<avx512::Pair>(lanes, k, w, dst) }
    }
    unsafe fn copy(_: Isa, src: *const bf16, ks: isize, k: usize, count: usize, w: usize, dst: *mut u32) {
        // SAFETY: as above.
        unsafe { avx512::copy::<avx512::Pair>(src, ks, k, count, w, dst) }
    }
}

#[cfg(target_arch = "x86_64")]
#[path = "pack_avx2.rs"]
mod avx2;
#[cfg(target_arch = "x86_64")]
#[path = "pack_avx512.rs"]
mod avx512;
