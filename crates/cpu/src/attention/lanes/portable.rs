//! Four lanes in plain Rust, which compilers turn into SSE2 or NEON code. Also the NEON level: its gain over this is
//! a constant factor that nobody has measured yet.

use super::super::kernels::{chains, place};
use super::{Elem, Lanes};
use half::{bf16, f16};

/// Plain Rust, four lanes.
#[derive(Clone, Copy)]
pub(in crate::attention) struct Portable;

const N: usize = 4;
type V = [f32; N];

#[inline(always)]
fn map(a: V, f: impl Fn(f32) -> f32) -> V {
    [f(a[0]), f(a[1]), f(a[2]), f(a[3])]
}

#[inline(always)]
fn zip(a: V, b: V, f: impl Fn(f32, f32) -> f32) -> V {
    [f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]
}

#[inline(always)]
unsafe fn transpose<T: Elem>(from: *const T, stride: isize, keys: usize, dim: usize, to: *mut f32, ld: usize) {
    let starts = chains(dim);
    for lane in 0..N {
        let row = lane.min(keys - 1) as isize * stride;
        for d in 0..dim {
            // SAFETY: the caller promises `keys` rows and `dim` columns.
            unsafe { *to.add(place(&starts, d) * ld + lane) = (*from.offset(row + d as isize)).get() };
        }
    }
}

// SAFETY of the blocks below: each touches exactly the elements its contract in `Lanes` names.
impl Lanes for Portable {
    const N: usize = N;
    type V = V;

    #[inline(always)]
    unsafe fn splat(x: f32) -> V {
        [x; N]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> V {
        // SAFETY: N elements are readable.
        unsafe { p.cast::<V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: V) {
        // SAFETY: N elements are writable.
        unsafe { p.cast::<V>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn add(a: V, b: V) -> V {
        zip(a, b, |x, y| x + y)
    }
    #[inline(always)]
    unsafe fn sub(a: V, b: V) -> V {
        zip(a, b, |x, y| x - y)
    }
    #[inline(always)]
    unsafe fn mul(a: V, b: V) -> V {
        zip(a, b, |x, y| x * y)
    }
    #[inline(always)]
    unsafe fn div(a: V, b: V) -> V {
        zip(a, b, |x, y| x / y)
    }
    #[inline(always)]
    unsafe fn fma(a: V, b: V, c: V) -> V {
        // Without the instruction `mul_add` is a call into libm.
        let fused = cfg!(any(target_arch = "aarch64", target_feature = "fma"));
        std::array::from_fn(|i| if fused { a[i].mul_add(b[i], c[i]) } else { a[i] * b[i] + c[i] })
    }
    #[inline(always)]
    unsafe fn max(a: V, b: V) -> V {
        zip(a, b, |x, y| if x > y { x } else { y })
    }
    #[inline(always)]
    unsafe fn min(a: V, b: V) -> V {
        zip(a, b, |x, y| if x < y { x } else { y })
    }
    #[inline(always)]
    unsafe fn round(a: V) -> V {
        // Adding 1.5 * 2^23 leaves no fraction bits; arguments here are far below 2^22.
        map(a, |x| (x + 12_582_912.0) - 12_582_912.0)
    }
    #[inline(always)]
    unsafe fn scale2(p: V, n: V) -> V {
        // An infinite or NaN n gives some power of two; the caller masks the result, or p is NaN.
        zip(p, n, |p, n| p * f32::from_bits(((n as i32).wrapping_add(127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn zero_below(x: V, limit: f32, v: V) -> V {
        zip(x, v, |x, v| if x < limit { 0.0 } else { v })
    }
    #[inline(always)]
    unsafe fn only(v: V, lo: isize, hi: isize) -> V {
        std::array::from_fn(|i| if (i as isize) < lo || (i as isize) >= hi { f32::NEG_INFINITY } else { v[i] })
    }
    #[inline(always)]
    unsafe fn copysign(a: V, b: V) -> V {
        zip(a, b, f32::copysign)
    }
    #[inline(always)]
    unsafe fn largest(v: V) -> f32 {
        v[0].max(v[2]).max(v[1].max(v[3]))
    }
    #[inline(always)]
    unsafe fn sum(v: V) -> f32 {
        (v[0] + v[2]) + (v[1] + v[3])
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> V {
        // SAFETY: N elements are readable.
        unsafe { p.cast::<[f16; N]>().read_unaligned() }.map(f16::to_f32)
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> V {
        // SAFETY: N elements are readable.
        unsafe { p.cast::<[bf16; N]>().read_unaligned() }.map(bf16::to_f32)
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut f16, v: V) {
        // SAFETY: N elements are writable.
        unsafe { p.cast::<[f16; N]>().write_unaligned(v.map(f16::from_f32)) }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut bf16, v: V) {
        // SAFETY: N elements are writable.
        unsafe { p.cast::<[bf16; N]>().write_unaligned(v.map(bf16::from_f32)) }
    }
    #[inline(always)]
    unsafe fn load_bf16_even_odd(p: *const bf16) -> [V; 2] {
        // SAFETY: 2 N elements are readable.
        unsafe { Self::to_even_odd([Self::load_bf16(p), Self::load_bf16(p.add(N))]) }
    }
    #[inline(always)]
    unsafe fn to_even_odd([a, b]: [V; 2]) -> [V; 2] {
        [[a[0], a[2], b[0], b[2]], [a[1], a[3], b[1], b[3]]]
    }
    #[inline(always)]
    unsafe fn from_even_odd([e, o]: [V; 2]) -> [V; 2] {
        [[e[0], o[0], e[1], o[1]], [e[2], o[2], e[3], o[3]]]
    }
    #[inline(always)]
    unsafe fn transpose_f32(from: *const f32, stride: isize, keys: usize, dim: usize, to: *mut f32, ld: usize) {
        // SAFETY: the same contract.
        unsafe { transpose(from, stride, keys, dim, to, ld) }
    }
    #[inline(always)]
    unsafe fn transpose_f16(from: *const f16, stride: isize, keys: usize, dim: usize, to: *mut f32, ld: usize) {
        // SAFETY: the same contract.
        unsafe { transpose(from, stride, keys, dim, to, ld) }
    }
    #[inline(always)]
    unsafe fn transpose_bf16(from: *const bf16, stride: isize, keys: usize, dim: usize, to: *mut f32, ld: usize) {
        // SAFETY: the same contract.
        unsafe { transpose(from, stride, keys, dim, to, ld) }
    }
    #[inline(always)]
    unsafe fn prefetch(_p: *const u8) {}
    #[inline(always)]
    unsafe fn prefetch_far(_p: *const u8) {}
}
