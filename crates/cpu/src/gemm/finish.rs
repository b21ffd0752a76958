//! From a block of accumulators to the output: `alpha * sum + beta * c` where asked for, one rounding, any strides.
//!
//! Runs right after the last kernel of a block, while the block is in L1; moves each output element once.

use super::micro::MAX_COLS;
use crate::isa::Isa;
use lapis_core::dtype::{bf16, f16};

/// How sums become elements.
pub(crate) trait Finish<A: Copy>: Copy + 'static {
    /// Rounds a sum to an element.
    fn narrow(sum: A) -> Self;
    /// The element as a sum is kept.
    fn widen(self) -> A;
    /// `alpha * sum + beta * c`, not yet rounded.
    fn axpby(alpha: f64, sum: A, beta: f64, c: Self) -> A;
    /// Rounds a block: row `i` from `acc + i * ld` to `out + i * rs`, `cols` contiguous elements each.
    ///
    /// # Safety
    /// Both blocks must be in bounds and `isa` available.
    unsafe fn block(isa: Isa, acc: *const A, ld: usize, rows: usize, cols: usize, out: *mut Self, rs: isize);
    /// `dst[i] = alpha * acc[i] + beta * c[i]`.
    ///
    /// # Safety
    /// `n` elements must be in bounds everywhere and `isa` available.
    unsafe fn axpby_row(isa: Isa, n: usize, alpha: f64, acc: *const A, beta: f64, c: *const Self, dst: *mut A);
}

/// Where the elements of a block go, and what is added.
pub(crate) struct Target<E> {
    /// First element and strides of the output.
    pub(crate) out: (*mut E, isize, isize),
    /// First element and strides of `c`.
    pub(crate) c: (*const E, isize, isize),
    /// `None`: store the sum alone.
    pub(crate) scale: Option<(f64, f64)>,
}

impl<E: Copy> Target<E> {
    /// Writes a block of `rows` x `cols` sums (`ld` apart) whose first element is at `out`.
    ///
    /// # Safety
    /// The block must lie inside output and `c`; `isa` must be available.
    pub(crate) unsafe fn put<A: Copy>(&self, isa: Isa, acc: *const A, ld: usize, rows: usize, cols: usize)
    where
        E: Finish<A>,
    {
        let (out, rs, cs) = self.out;
        // SAFETY: offsets stay inside the block.
        unsafe {
            let Some((alpha, beta)) = self.scale else {
                if cs == 1 {
                    return E::block(isa, acc, ld, rows, cols, out, rs);
                }
                for i in 0..rows {
                    for j in 0..cols {
                        *out.offset(i as isize * rs + j as isize * cs) = E::narrow(*acc.add(i * ld + j));
                    }
                }
                return;
            };
            let (c, c_rs, c_cs) = self.c;
            let mut line = [const { std::mem::MaybeUninit::<A>::uninit() }; MAX_COLS];
            let line = line.as_mut_ptr().cast::<A>();
            for i in 0..rows as isize {
                let (sums, c, out) = (acc.add(i as usize * ld), c.offset(i * c_rs), out.offset(i * rs));
                if c_cs == 1 {
                    E::axpby_row(isa, cols, alpha, sums, beta, c, line);
                } else {
                    for j in 0..cols {
                        *line.add(j) = E::axpby(alpha, *sums.add(j), beta, *c.offset(j as isize * c_cs));
                    }
                }
                if cs == 1 {
                    E::block(isa, line, 0, 1, cols, out, 0);
                } else {
                    for j in 0..cols {
                        *out.offset(j as isize * cs) = E::narrow(*line.add(j));
                    }
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn block_generic<A: Copy, E: Finish<A>>(
    acc: *const A,
    ld: usize,
    rows: usize,
    cols: usize,
    out: *mut E,
    rs: isize,
) {
    for i in 0..rows {
        // SAFETY: the caller's promise.
        unsafe {
            let (from, to) = (acc.add(i * ld), out.offset(i as isize * rs));
            for j in 0..cols {
                *to.add(j) = E::narrow(*from.add(j));
            }
        }
    }
}

#[inline(always)]
unsafe fn axpby_generic<A: Copy, E: Finish<A>>(
    n: usize,
    alpha: f64,
    acc: *const A,
    beta: f64,
    c: *const E,
    dst: *mut A,
) {
    for j in 0..n {
        // SAFETY: the caller's promise.
        unsafe { *dst.add(j) = E::axpby(alpha, *acc.add(j), beta, *c.add(j)) };
    }
}

/// The generic loops once an instruction set: the compiler turns them into vectors of that set.
macro_rules! impl_finish {
    ($e:ty, $a:ty, |$sum:ident| $narrow:expr, |$x:ident| $widen:expr) => {
        impl Finish<$a> for $e {
            #[inline(always)]
            fn narrow($sum: $a) -> $e {
                $narrow
            }
            #[inline(always)]
            fn widen(self) -> $a {
                let $x = self;
                $widen
            }
            #[inline(always)]
            fn axpby(alpha: f64, sum: $a, beta: f64, c: $e) -> $a {
                alpha as $a * sum + beta as $a * c.widen()
            }
            unsafe fn block(isa: Isa, acc: *const $a, ld: usize, rows: usize, cols: usize, out: *mut $e, rs: isize) {
                #[cfg(target_arch = "x86_64")]
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,f16c")]
                unsafe fn avx512(acc: *const $a, ld: usize, rows: usize, cols: usize, out: *mut $e, rs: isize) {
                    // SAFETY: handed on.
                    unsafe { block_generic::<$a, $e>(acc, ld, rows, cols, out, rs) }
                }
                #[cfg(target_arch = "x86_64")]
                #[target_feature(enable = "avx2,fma,f16c")]
                unsafe fn avx2(acc: *const $a, ld: usize, rows: usize, cols: usize, out: *mut $e, rs: isize) {
                    // SAFETY: handed on.
                    unsafe { block_generic::<$a, $e>(acc, ld, rows, cols, out, rs) }
                }
                // SAFETY: handed on; the instruction sets are those of `isa`.
                unsafe {
                    match isa {
                        #[cfg(target_arch = "x86_64")]
                        Isa::Avx512 => avx512(acc, ld, rows, cols, out, rs),
                        #[cfg(target_arch = "x86_64")]
                        Isa::Avx2 => avx2(acc, ld, rows, cols, out, rs),
                        _ => block_generic::<$a, $e>(acc, ld, rows, cols, out, rs),
                    }
                }
            }
            unsafe fn axpby_row(
                isa: Isa,
                n: usize,
                alpha: f64,
                acc: *const $a,
                beta: f64,
                c: *const $e,
                dst: *mut $a,
            ) {
                #[cfg(target_arch = "x86_64")]
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,f16c")]
                unsafe fn avx512(n: usize, alpha: f64, acc: *const $a, beta: f64, c: *const $e, dst: *mut $a) {
                    // SAFETY: handed on.
                    unsafe { axpby_generic::<$a, $e>(n, alpha, acc, beta, c, dst) }
                }
                #[cfg(target_arch = "x86_64")]
                #[target_feature(enable = "avx2,fma,f16c")]
                unsafe fn avx2(n: usize, alpha: f64, acc: *const $a, beta: f64, c: *const $e, dst: *mut $a) {
                    // SAFETY: handed on.
                    unsafe { axpby_generic::<$a, $e>(n, alpha, acc, beta, c, dst) }
                }
                // SAFETY: handed on; the instruction sets are those of `isa`.
                unsafe {
                    match isa {
                        #[cfg(target_arch = "x86_64")]
                        Isa::Avx512 => avx512(n, alpha, acc, beta, c, dst),
                        #[cfg(target_arch = "x86_64")]
                        Isa::Avx2 => avx2(n, alpha, acc, beta, c, dst),
                        _ => axpby_generic::<$a, $e>(n, alpha, acc, beta, c, dst),
                    }
                }
            }
        }
    };
}

impl_finish!(f32, f32, |sum| sum, |x| x);
impl_finish!(f64, f64, |sum| sum, |x| x);
impl_finish!(bf16, f32, |sum| narrow_brain(sum), |x| f32::from_bits(u32::from(x.to_bits()) << 16));
impl_finish!(f16, f32, |sum| narrow_half(sum), |x| widen_half(x));

/// Nearest even; a NaN keeps its sign and becomes quiet.
#[inline(always)]
fn narrow_brain(x: f32) -> bf16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    bf16::from_bits(if x.is_nan() { (bits >> 16) | 0x40 } else { rounded } as u16)
}

/// Nearest even; a NaN keeps its sign and becomes quiet. Without branches, so that loops over it become vectors.
#[inline(always)]
fn narrow_half(x: f32) -> f16 {
    let bits = x.to_bits();
    let (sign, magnitude) = (bits >> 16 & 0x8000, bits & 0x7fff_ffff);
    // Below 2^-14 adding 0.5 lets the adder round at the last bit of a subnormal half.
    let small = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let normal = magnitude.wrapping_add(0xc800_0fff + (magnitude >> 13 & 1)) >> 13;
    let large = if magnitude > 0x7f80_0000 { 0x7e00 } else { 0x7c00 };
    let half = if magnitude < 0x3880_0000 { small } else { normal };
    f16::from_bits((sign | if magnitude >= 0x4780_0000 { large } else { half }) as u16)
}

/// Exact. Without branches, as above.
#[inline(always)]
fn widen_half(h: f16) -> f32 {
    let bits = u32::from(h.to_bits());
    let magnitude = (bits & 0x7fff) << 13;
    let finite = (f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23)).to_bits();
    let special = magnitude | 0x7f80_0000;
    f32::from_bits((bits & 0x8000) << 16 | if magnitude >= 0x0f80_0000 { special } else { finite })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_round_as_ieee_says() {
        for bits in 0..=u16::MAX {
            let h = f16::from_bits(bits);
            let (mine, wide) = (widen_half(h), h.to_f32());
            assert!(mine.to_bits() == wide.to_bits() || (wide.is_nan() && mine.is_nan()), "{bits:x}");
        }
        for i in 0..=u32::MAX / 977 {
            let x = f32::from_bits(i * 977);
            let (h, b) = (narrow_half(x), narrow_brain(x));
            assert!(h == f16::from_f32(x) || (x.is_nan() && h.is_nan()), "{x}");
            assert!(b == bf16::from_f32(x) || (x.is_nan() && b.is_nan()), "{x}");
        }
    }
}
