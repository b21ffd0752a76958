//! Packing: from matrices with any strides to panels that a micro-kernel reads front to back.
//!
//! A panel is `w` lanes (rows of the left side, columns of the right side) by `k` steps, step by step. Two layouts
//! have vector code: k contiguous (x of `x @ W.T` and W itself), transposed in registers 16 bytes of every lane at a
//! time, and lanes contiguous, copied. Halves become f32 here. It costs 0.1 to 0.3 cycles an element and reads each
//! once.

use super::micro::{Arith, F32, F64, MAX_COLS};
#[cfg(target_arch = "x86_64")]
use super::stream;
use crate::isa::Isa;
use lapis_core::dtype::{bf16, f16};
#[cfg(target_arch = "x86_64")]
use std::mem::MaybeUninit;

/// Lanes past the last one repeat the first: a kernel multiplies them, nobody reads the result.
pub(crate) type Lanes<E> = [*const E; MAX_COLS];

/// How to pack elements of this type for arithmetic `M`, or to multiply without packing.
pub(crate) trait Pack<M: Arith>: Copy + 'static {
    /// One element, packed alone (`M::PER` is 1) or as a pair.
    fn pack_one(first: Self, second: Option<Self>) -> M::P;

    /// k contiguous: `dst[k * w + l] = lanes[l][k]`, for `k` elements.
    ///
    /// # Safety
    /// Every lane must have `k` readable elements, `dst` must hold `k.div_ceil(PER) * w` values; `isa` must be available.
    unsafe fn transpose(isa: Isa, lanes: &Lanes<Self>, k: usize, w: usize, dst: *mut M::P);

    /// Lanes contiguous: `dst[k * w + l] = src[k * ks + l]` for `l < count`, `k` elements. More than `w` lanes make panels
    /// one after the other, the last as wide as what is left.
    ///
    /// # Safety
    /// As for `transpose`, with `count` readable elements at each step.
    unsafe fn copy(isa: Isa, src: *const Self, ks: isize, k: usize, count: usize, w: usize, dst: *mut M::P);

    /// See [`stream::columns`].
    ///
    /// # Safety
    /// As there; `isa` must have vectors.
    #[cfg(target_arch = "x86_64")]
    unsafe fn stream_columns(
        isa: Isa,
        mr: usize,
        lanes: &Lanes<Self>,
        jump: isize,
        k: usize,
        a: *const M::P,
        acc: *mut M::A,
    );

    /// See [`stream::rows`].
    ///
    /// # Safety
    /// As there; `isa` must have vectors.
    #[cfg(target_arch = "x86_64")]
    unsafe fn stream_rows(
        isa: Isa,
        mr: usize,
        b: *const Self,
        ks: isize,
        k: usize,
        count: usize,
        a: *const M::P,
        acc: *mut M::A,
        first: bool,
    );
}

/// Packs any strides, one element after the other.
///
/// # Safety
/// `lanes[l] + j * ks` must be readable for `j < k`, `dst` must hold `k.div_ceil(PER) * w` values.
pub(crate) unsafe fn pack_strided<M: Arith, E: Pack<M>>(
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
pub(crate) unsafe fn pack<M: Arith, E: Pack<M>>(
    isa: Isa,
    lanes: &Lanes<E>,
    contiguous: bool,
    ks: isize,
    k: usize,
    count: usize,
    w: usize,
    dst: *mut M::P,
) {
    // Windows of a dilated convolution may meet nothing.
    if k == 0 {
        return;
    }
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

/// One element type on one instruction set: `V` is a register of packed values, one of each lane.
#[cfg(target_arch = "x86_64")]
pub(crate) trait Quad {
    /// Element in memory, packed value, sum.
    type E: Copy;
    type P: Copy;
    type A: Copy;
    /// A register of packed values, and one of sums.
    type V: Copy;
    type S: Copy;
    /// Lanes of a register, elements of one packed step.
    const LANES: usize;
    const PER: usize;
    /// Elements and steps in the 16 bytes that are gathered at a time.
    const CHUNK: usize = 16 / size_of::<Self::E>();
    const STEPS: usize = Self::CHUNK / Self::PER;
    /// `count <= CHUNK` elements (the rest zero) from each of `LANES` addresses.
    unsafe fn gather(lane: impl Fn(usize) -> *const Self::E, count: usize) -> [Self::V; 4];
    /// Whether [`Quad::line`] is there.
    const LINES: bool = false;
    /// What four times [`Quad::gather`] give of the 64 bytes at each of `LANES` addresses.
    unsafe fn line(_lane: impl Fn(usize) -> *const Self::E) -> [[Self::V; 4]; 4] {
        unreachable!("lines are gathered in pieces")
    }
    /// What was gathered as `STEPS` registers.
    unsafe fn expand(t: [Self::V; 4]) -> [Self::V; 8];
    /// Reads `min(count, LANES)` elements of the row `a`, and of `b` when a step has two.
    unsafe fn row(a: *const Self::E, b: *const Self::E, count: usize) -> Self::V;
    /// Writes the first `min(lanes, LANES)` lanes.
    unsafe fn put(v: Self::V, lanes: usize, out: *mut Self::P);
    /// Reads sums; zeros from null.
    unsafe fn sums(p: *const Self::A) -> Self::S;
    /// Writes sums.
    unsafe fn keep(v: Self::S, p: *mut Self::A);
    /// `c + x * v`
    unsafe fn fma(x: *const Self::P, v: Self::V, c: Self::S) -> Self::S;
}

/// Asks for the cache line at `p`, into L2: a panel's worth of lanes a power of two apart falls into one set of L1.
#[inline(always)]
pub(crate) fn prefetch<T>(p: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64, and a prefetch of any address is harmless.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(p.cast())
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// How many bytes ahead of use a lane is asked for.
#[cfg(target_arch = "x86_64")]
pub(crate) const AHEAD: usize = 512;

/// A cache line of every lane, moved whole: read 16 bytes at a time, lanes a power of two apart would push each other
/// out of L1 in between.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Lines([[MaybeUninit<u8>; 64]; 16]);

#[cfg(target_arch = "x86_64")]
impl Lines {
    /// Elements in a line.
    pub(crate) const fn elements<Q: Quad>() -> usize {
        64 / size_of::<Q::E>()
    }

    /// None yet.
    #[inline(always)]
    pub(crate) fn new() -> Lines {
        Lines([[const { MaybeUninit::uninit() }; 64]; 16])
    }

    /// From element `at` of sixteen lanes at most; asks for the line `ahead(l)` with the one of lane `l`.
    #[inline(always)]
    pub(crate) unsafe fn fetch<Q: Quad>(
        &mut self,
        lanes: &[*const Q::E],
        at: usize,
        ahead: impl Fn(usize) -> *const Q::E,
    ) {
        for (l, (line, lane)) in self.0.iter_mut().zip(lanes).enumerate() {
            prefetch(ahead(l));
            // SAFETY: a whole line of each lane is readable.
            unsafe { *line = lane.add(at).cast::<[MaybeUninit<u8>; 64]>().read_unaligned() };
        }
    }

    /// The steps of the 16 bytes `c` of every lane of vector `v`.
    #[inline(always)]
    pub(crate) unsafe fn chunk<Q: Quad>(&self, v: usize, c: usize) -> [Q::V; 8] {
        let base = self.0[v * Q::LANES..].as_ptr().cast::<u8>();
        // SAFETY: inside the lines.
        unsafe { Q::expand(Q::gather(|l| base.add(64 * l + 16 * c).cast(), Q::CHUNK)) }
    }
}

/// See [`Pack::transpose`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn transpose<Q: Quad>(lanes: &Lanes<Q::E>, k: usize, w: usize, dst: *mut Q::P) {
    // SAFETY: every lane has `k` elements and `dst` the room.
    unsafe {
        let line = Lines::elements::<Q>();
        let mut lines = Lines::new();
        for g in (0..w).step_by(Q::LANES) {
            let (group, left) = (&lanes[g..g + Q::LANES], w - g);
            let out = dst.add(g);
            for at in (0..k / line * line).step_by(line) {
                lines.fetch::<Q>(group, at, |l| group[l].wrapping_add(at + AHEAD / size_of::<Q::E>()));
                for c in 0..4 {
                    let t = lines.chunk::<Q>(0, c);
                    let out = out.add((at + c * Q::CHUNK) / Q::PER * w);
                    if left >= Q::LANES {
                        for s in 0..Q::STEPS {
                            Q::put(t[s], Q::LANES, out.add(s * w));
                        }
                    } else {
                        for s in 0..Q::STEPS {
                            Q::put(t[s], left, out.add(s * w));
                        }
                    }
                }
            }
            for at in (k / line * line..k).step_by(Q::CHUNK) {
                let count = Q::CHUNK.min(k - at);
                let t = Q::expand(Q::gather(|l| group[l].add(at), count));
                for s in 0..count.div_ceil(Q::PER) {
                    Q::put(t[s], left, out.add((at / Q::PER + s) * w));
                }
            }
        }
    }
}

/// Steps that [`copy`] takes of a vector of lanes before it goes on to the next: few enough that the lines they lie in
/// are still in a cache for the neighbours.
#[cfg(target_arch = "x86_64")]
const ROWS: usize = 32;

/// See [`Pack::copy`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn copy<Q: Quad>(src: *const Q::E, ks: isize, k: usize, count: usize, w: usize, dst: *mut Q::P) {
    let steps = k.div_ceil(Q::PER);
    // SAFETY: `count` elements are readable at every step, the panels writable.
    unsafe {
        for at in (0..steps).step_by(ROWS) {
            for p in (0..count).step_by(w) {
                let width = if p == 0 { w } else { w.min(count - p) };
                for g in (0..width.min(count - p)).step_by(Q::LANES) {
                    let (readable, writable) = (count - p - g, width - g);
                    for step in at..steps.min(at + ROWS) {
                        let j = step * Q::PER;
                        let a = src.offset(j as isize * ks).add(p + g);
                        let b = if Q::PER == 2 && j + 1 < k { a.offset(ks) } else { std::ptr::null() };
                        prefetch(a.wrapping_offset(16 * ks));
                        let v = Q::row(a, b, readable.min(writable));
                        Q::put(v, writable, dst.add(p * steps + step * width + g));
                    }
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn transpose_avx512<Q: Quad>(lanes: &Lanes<Q::E>, k: usize, w: usize, dst: *mut Q::P) {
    // SAFETY: handed on.
    unsafe { transpose::<Q>(lanes, k, w, dst) }
}
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn transpose_avx2<Q: Quad>(lanes: &Lanes<Q::E>, k: usize, w: usize, dst: *mut Q::P) {
    // SAFETY: handed on.
    unsafe { transpose::<Q>(lanes, k, w, dst) }
}
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn copy_avx512<Q: Quad>(src: *const Q::E, ks: isize, k: usize, count: usize, w: usize, dst: *mut Q::P) {
    // SAFETY: handed on.
    unsafe { copy::<Q>(src, ks, k, count, w, dst) }
}
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn copy_avx2<Q: Quad>(src: *const Q::E, ks: isize, k: usize, count: usize, w: usize, dst: *mut Q::P) {
    // SAFETY: handed on.
    unsafe { copy::<Q>(src, ks, k, count, w, dst) }
}

/// `Pack` from a [`Quad`] of each instruction set; `$one` packs in plain Rust.
macro_rules! impl_pack {
    ($e:ty, $m:ty, |$first:ident, $second:ident| $one:expr, $q:ident, $columns:ident, $rows:ident, $other:ident) => {
        impl Pack<$m> for $e {
            fn pack_one($first: Self, $second: Option<Self>) -> <$m as Arith>::P {
                $one
            }
            unsafe fn transpose(isa: Isa, lanes: &Lanes<Self>, k: usize, w: usize, dst: *mut <$m as Arith>::P) {
                // SAFETY: handed on; the instruction sets are those of `isa`.
                unsafe {
                    match isa {
                        #[cfg(target_arch = "x86_64")]
                        Isa::Avx512 => transpose_avx512::<avx512::$q>(lanes, k, w, dst),
                        #[cfg(target_arch = "x86_64")]
                        Isa::Avx2 => impl_pack!(@$other transpose_avx2::<avx2::$q>(lanes, k, w, dst)),
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
                        Isa::Avx512 => copy_avx512::<avx512::$q>(src, ks, k, count, w, dst),
                        #[cfg(target_arch = "x86_64")]
                        Isa::Avx2 => impl_pack!(@$other copy_avx2::<avx2::$q>(src, ks, k, count, w, dst)),
                        _ => {
                            for (p, j) in (0..count).step_by(w).flat_map(|p| (0..k).map(move |j| (p, j))) {
                                let width = if p == 0 { w } else { w.min(count - p) };
                                for l in 0..width.min(count - p) {
                                    let x = *src.offset(j as isize * ks).add(p + l);
                                    *dst.add(p * k + j * width + l) = <Self as Pack<$m>>::pack_one(x, None);
                                }
                            }
                        }
                    }
                }
            }
            #[cfg(target_arch = "x86_64")]
            unsafe fn stream_columns(
                isa: Isa,
                mr: usize,
                lanes: &Lanes<Self>,
                jump: isize,
                k: usize,
                a: *const <$m as Arith>::P,
                acc: *mut <$m as Arith>::A,
            ) {
                // SAFETY: handed on; the instruction sets are those of `isa`.
                unsafe {
                    match isa {
                        #[cfg(target_arch = "x86_64")]
                        Isa::Avx512 => stream::$columns::<avx512::$q>(mr)(lanes, jump, k, a, acc),
                        #[cfg(target_arch = "x86_64")]
                        Isa::Avx2 => impl_pack!(@$other stream::columns_avx2::<avx2::$q>(mr)(lanes, jump, k, a, acc)),
                        _ => unreachable!("nothing to stream with"),
                    }
                }
            }
            #[cfg(target_arch = "x86_64")]
            unsafe fn stream_rows(
                isa: Isa,
                mr: usize,
                b: *const Self,
                ks: isize,
                k: usize,
                count: usize,
                a: *const <$m as Arith>::P,
                acc: *mut <$m as Arith>::A,
                first: bool,
            ) {
                // SAFETY: handed on; the instruction sets are those of `isa`.
                unsafe {
                    match isa {
                        #[cfg(target_arch = "x86_64")]
                        Isa::Avx512 => stream::$rows::<avx512::$q>(mr)(b, ks, k, count, a, acc, first),
                        #[cfg(target_arch = "x86_64")]
                        Isa::Avx2 => {
                            impl_pack!(@$other stream::rows_avx2::<avx2::$q>(mr)(b, ks, k, count, a, acc, first))
                        }
                        _ => unreachable!("nothing to stream with"),
                    }
                }
            }
        }
    };
    (@both $($call:tt)*) => { $($call)* };
    (@avx512 $($call:tt)*) => { unreachable!("AVX-512 only") };
}
impl_pack!(f32, F32, |x, _y| x, Single, columns_avx512, rows_avx512, both);
impl_pack!(bf16, F32, |x, _y| x.to_f32(), Brain, columns_avx512, rows_avx512, both);
impl_pack!(f16, F32, |x, _y| x.to_f32(), Half, columns_avx512, rows_avx512, both);
impl_pack!(f64, F64, |x, _y| x, Double, columns_avx512, rows_avx512, both);
#[cfg(target_arch = "x86_64")]
impl_pack!(
    bf16,
    super::micro::Dot,
    |x, y| u32::from(x.to_bits()) | u32::from(y.map_or(0, bf16::to_bits)) << 16,
    Pair,
    columns_dot,
    rows_dot,
    avx512
);

#[cfg(target_arch = "x86_64")]
#[path = "pack_avx2.rs"]
mod avx2;
#[cfg(target_arch = "x86_64")]
#[path = "pack_avx512.rs"]
mod avx512;
