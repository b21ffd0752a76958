//! Micro-kernels: one block of at most 14 rows by 4 vectors of columns, summed over one stretch of k in registers.
//!
//! A kernel reads `kc` packed columns of the left panel (`mr` values a step) and `kc` packed rows of the right panel
//! (`nv` vectors a step) and does `2 * mr * nv * lanes` operations a step. The 14 x 2 kernel needs 16 loads for 28
//! AVX-512 FMAs, so that the two FMA ports are the limit (93-97 % of their peak on panels in L1 and L2).
//!
//! Every sum has one accumulator and runs over k in ascending order, whatever `mr` and `nv` are: that is what makes a
//! row's bits independent of the number of rows. Kernels must not know element types in memory, strides or threads.

use crate::isa::Isa;

/// Adds the product of two packed panels to a block of accumulators.
///
/// Arguments: `kc` steps; `a`, `mr` values a step; `b`, `nv * lanes` values a step; `acc`, a block of `mr` rows of
/// `nv * lanes` values, `ld` values apart: scratch, or the output itself; `first`, whether the block starts from zero (its
/// old content is not read); `next`, where the sums of the next block begin, whose rows the kernel asks for, into L1;
/// `ahead`, of which it asks for a cache line every [`PREFETCH_EVERY`] steps: more at a time would keep the loads of the
/// panels waiting.
pub(crate) type MicroFn<P, A> = unsafe fn(usize, *const P, *const P, *mut A, usize, bool, *const A, &mut Ahead);

/// See [`MicroFn`].
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) const PREFETCH_EVERY: usize = 4;

/// Memory that will be read soon: pieces of some cache lines each. A kernel asks for lines and moves on.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) struct Ahead {
    at: *const u8,
    /// Pieces not finished; below zero when a kernel has gone past the last.
    pieces: isize,
    /// Lines left of this piece, lines of a whole one.
    left: usize,
    lines: usize,
    /// Bytes from the end of a piece to the next.
    gap: isize,
}

impl Ahead {
    /// Nothing: the same line again and again.
    pub(crate) const NOTHING: Ahead = Ahead { at: std::ptr::null(), pieces: 0, left: 1, lines: 1, gap: -64 };

    /// `pieces` of `bytes` bytes, `stride` bytes from one to the next. Of pieces shorter than a line the line they end in
    /// counts: the one they begin in was read with their neighbours.
    pub(crate) fn new<T>(at: *const T, pieces: usize, bytes: usize, stride: isize) -> Ahead {
        let lines = bytes.div_ceil(64).max(1);
        let at = at.cast::<u8>().wrapping_add(if lines == 1 { bytes.saturating_sub(1) } else { 0 });
        Ahead { at, pieces: pieces as isize, left: lines, lines, gap: stride - lines as isize * 64 }
    }

    /// Whether something is left.
    pub(crate) fn more(&self) -> bool {
        self.pieces > 0
    }

    /// Asks for a line, into L2.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn ask(&mut self) {
        super::pack::prefetch(self.at);
        self.left -= 1;
        let end = self.left == 0;
        self.at = self.at.wrapping_offset(64 + if end { self.gap } else { 0 });
        self.left = if end { self.lines } else { self.left };
        self.pieces -= end as isize;
    }
}

/// The block sizes of one instruction set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blocks {
    /// Columns of one vector.
    pub(crate) lanes: usize,
    /// Most rows of a kernel two vectors wide.
    pub(crate) tall: usize,
    /// Most rows of a kernel four vectors wide.
    pub(crate) wide: usize,
    /// Steps of k up to which large products take all at once, and the most of a stretch otherwise.
    pub(crate) stretch: (usize, usize),
    /// Bytes of the right side that a tile meets, when it takes all of k at once and when it does not: half of an L2 of
    /// 2 MiB (AVX-512) and a quarter of it, where the next stretch and sums that are read again lie, too. Where L2 is small
    /// (AVX2: 256 or 512 KiB), a part of L3: panels of it arrive in time, as they are read from front to back, and a wide
    /// tile packs the left side seldom and does not read sums again.
    pub(crate) tile: (usize, usize),
}

/// The most columns any kernel has.
pub(crate) const MAX_COLS: usize = 64;

/// A way to multiply: what panels hold, what sums are kept in, and the kernels.
pub(crate) trait Arith: 'static {
    /// One packed value.
    type P: Copy + Send + Sync + 'static;
    /// One accumulator.
    type A: Copy + Send + Sync + 'static;
    /// Elements along k that one packed value holds.
    const PER: usize;
    /// The block sizes.
    fn blocks(isa: Isa) -> Blocks;
    /// The kernel for `mr` rows and `nv` (1, 2 or 4) vectors; `mr` within what [`Blocks`] says for `nv`.
    fn kernel(isa: Isa, mr: usize, nv: usize) -> MicroFn<Self::P, Self::A>;
}

/// f32 panels, f32 sums: float32, bfloat16, float16 and (as pairs of reals) complex64.
pub(crate) struct F32;
/// f64 panels and sums.
pub(crate) struct F64;
/// Pairs of bfloat16 in 32 bits, f32 sums, `vdpbf16ps`.
#[cfg(target_arch = "x86_64")]
pub(crate) struct Dot;

/// Picks `kernel::<MR, NV>` by run-time `mr` and `nv`.
macro_rules! pick {
    ($mr:expr, $nv:expr, $kernel:ident, tall [$($t:literal)*], wide [$($w:literal)*]) => {
        match ($mr, $nv) {
            $(($t, 1) => $kernel::<$t, 1>,)*
            $(($t, 2) => $kernel::<$t, 2>,)*
            $(($w, 4) => $kernel::<$w, 4>,)*
            _ => unreachable!("no kernel of {} x {}", $mr, $nv),
        }
    };
}

/// A kernel over vectors of one instruction set. `$step` is `acc + a * b` with `a` the same in all lanes.
#[cfg(target_arch = "x86_64")]
macro_rules! vector_kernel {
    ($name:ident, $features:literal, $p:ty, $a:ty, $lanes:literal, $zero:ident, $load_acc:ident, $store_acc:ident,
     |$bp:ident| $load_b:expr, |$ap:ident| $splat:expr, |$c:ident, $x:ident, $y:ident| $step:expr) => {
        #[target_feature(enable = $features)]
        unsafe fn $name<const MR: usize, const NV: usize>(
            kc: usize,
            mut a: *const $p,
            mut b: *const $p,
            acc: *mut $a,
            ld: usize,
            first: bool,
            next: *const $a,
            ahead: &mut Ahead,
        ) {
            // SAFETY: the caller's panels hold `kc` steps and its block `MR * NV` vectors; a prefetch may name any address.
            unsafe {
                let mut soon = *ahead;
                let mut sum = [[$zero(); NV]; MR];
                if !first {
                    for i in 0..MR {
                        for j in 0..NV {
                            sum[i][j] = $load_acc(acc.add(i * ld + j * $lanes));
                        }
                    }
                }
                let (mut left, mut stretch) = (kc, 0);
                'steps: while left > 0 {
                    soon.ask();
                    if stretch % 2 == 0 && stretch / 2 < MR {
                        let row = next.wrapping_add(stretch / 2 * ld);
                        for j in 0..NV {
                            _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(j * $lanes).cast());
                        }
                    }
                    stretch += 1;
                    for _ in 0..PREFETCH_EVERY {
                        let $bp = b;
                        let mut y = [$load_b; NV];
                        for j in 1..NV {
                            let $bp = b.add(j * $lanes);
                            y[j] = $load_b;
                        }
                        for i in 0..MR {
                            let $ap = a.add(i);
                            let $x = $splat;
                            for j in 0..NV {
                                let ($c, $y) = (sum[i][j], y[j]);
                                sum[i][j] = $step;
                            }
                        }
                        a = a.add(MR);
                        b = b.add(NV * $lanes);
                        left -= 1;
                        if left == 0 {
                            break 'steps;
                        }
                    }
                }
                for i in 0..MR {
                    for j in 0..NV {
                        $store_acc(acc.add(i * ld + j * $lanes), sum[i][j]);
                    }
                }
                *ahead = soon;
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    #![allow(clippy::missing_transmute_annotations)]
    use std::arch::x86_64::*;
    vector_kernel!(
        f32_avx512,
        "avx512f",
        f32,
        f32,
        16,
        _mm512_setzero_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        |p| _mm512_loadu_ps(p),
        |p| _mm512_set1_ps(*p),
        |c, x, y| _mm512_fmadd_ps(x, y, c)
    );
    vector_kernel!(
        f64_avx512,
        "avx512f",
        f64,
        f64,
        8,
        _mm512_setzero_pd,
        _mm512_loadu_pd,
        _mm512_storeu_pd,
        |p| _mm512_loadu_pd(p),
        |p| _mm512_set1_pd(*p),
        |c, x, y| _mm512_fmadd_pd(x, y, c)
    );
    vector_kernel!(
        dot_avx512,
        "avx512f,avx512bf16",
        u32,
        f32,
        16,
        _mm512_setzero_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        |p| _mm512_loadu_si512(p.cast()),
        |p| _mm512_set1_epi32(*p as i32),
        |c, x, y| _mm512_dpbf16_ps(c, std::mem::transmute(x), std::mem::transmute(y))
    );
    vector_kernel!(
        f32_avx2,
        "avx2,fma",
        f32,
        f32,
        8,
        _mm256_setzero_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        |p| _mm256_loadu_ps(p),
        |p| _mm256_set1_ps(*p),
        |c, x, y| _mm256_fmadd_ps(x, y, c)
    );
    vector_kernel!(
        f64_avx2,
        "avx2,fma",
        f64,
        f64,
        4,
        _mm256_setzero_pd,
        _mm256_loadu_pd,
        _mm256_storeu_pd,
        |p| _mm256_loadu_pd(p),
        |p| _mm256_set1_pd(*p),
        |c, x, y| _mm256_fmadd_pd(x, y, c)
    );

    use super::{Ahead, MicroFn, PREFETCH_EVERY};
    pub(crate) fn f32_512(mr: usize, nv: usize) -> MicroFn<f32, f32> {
        pick!(mr, nv, f32_avx512, tall [1 2 3 4 5 6 7 8 9 10 11 12 13 14], wide [1 2 3 4 5 6])
    }
    pub(crate) fn f64_512(mr: usize, nv: usize) -> MicroFn<f64, f64> {
        pick!(mr, nv, f64_avx512, tall [1 2 3 4 5 6 7 8 9 10 11 12 13 14], wide [1 2 3 4 5 6])
    }
    pub(crate) fn dot_512(mr: usize, nv: usize) -> MicroFn<u32, f32> {
        pick!(mr, nv, dot_avx512, tall [1 2 3 4 5 6 7 8 9 10 11 12 13 14], wide [1 2 3 4 5 6])
    }
    pub(crate) fn f32_256(mr: usize, nv: usize) -> MicroFn<f32, f32> {
        pick!(mr, nv, f32_avx2, tall [1 2 3 4 5 6], wide [1 2])
    }
    pub(crate) fn f64_256(mr: usize, nv: usize) -> MicroFn<f64, f64> {
        pick!(mr, nv, f64_avx2, tall [1 2 3 4 5 6], wide [1 2])
    }
}

/// The same in plain Rust, four lanes: left to the compiler to fit to the machine (NEON, SSE2).
macro_rules! plain_kernel {
    ($name:ident, $t:ty) => {
        unsafe fn $name<const MR: usize, const NV: usize>(
            kc: usize,
            mut a: *const $t,
            mut b: *const $t,
            acc: *mut $t,
            ld: usize,
            first: bool,
            _next: *const $t,
            _ahead: &mut Ahead,
        ) {
            // SAFETY: the caller's panels hold `kc` steps and its block `MR * NV` vectors of four.
            unsafe {
                let mut sum = [[[0 as $t; 4]; NV]; MR];
                if !first {
                    for i in 0..MR {
                        sum[i] = acc.add(i * ld).cast::<[[$t; 4]; NV]>().read();
                    }
                }
                for _ in 0..kc {
                    let y = b.cast::<[[$t; 4]; NV]>().read();
                    for i in 0..MR {
                        let x = *a.add(i);
                        for j in 0..NV {
                            for l in 0..4 {
                                // One instruction on ARM; elsewhere a fused one would be a library call, so two roundings.
                                sum[i][j][l] = if cfg!(target_arch = "aarch64") {
                                    x.mul_add(y[j][l], sum[i][j][l])
                                } else {
                                    sum[i][j][l] + x * y[j][l]
                                };
                            }
                        }
                    }
                    a = a.add(MR);
                    b = b.add(4 * NV);
                }
                for i in 0..MR {
                    acc.add(i * ld).cast::<[[$t; 4]; NV]>().write(sum[i]);
                }
            }
        }
    };
}
plain_kernel!(f32_plain, f32);
plain_kernel!(f64_plain, f64);

fn f32_128(mr: usize, nv: usize) -> MicroFn<f32, f32> {
    pick!(mr, nv, f32_plain, tall [1 2 3 4], wide [1 2])
}
fn f64_128(mr: usize, nv: usize) -> MicroFn<f64, f64> {
    pick!(mr, nv, f64_plain, tall [1 2 3 4], wide [1 2])
}

impl Arith for F32 {
    type P = f32;
    type A = f32;
    const PER: usize = 1;
    fn blocks(isa: Isa) -> Blocks {
        match isa {
            Isa::Avx512 => Blocks { lanes: 16, tall: 14, wide: 6, stretch: (1024, 256), tile: (1 << 20, 1 << 19) },
            Isa::Avx2 => Blocks { lanes: 8, tall: 6, wide: 2, stretch: (2048, 1024), tile: (4 << 20, 4 << 20) },
            _ => Blocks { lanes: 4, tall: 4, wide: 2, stretch: (256, 64), tile: (1 << 18, 1 << 17) },
        }
    }
    fn kernel(isa: Isa, mr: usize, nv: usize) -> MicroFn<f32, f32> {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => x86::f32_512(mr, nv),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86::f32_256(mr, nv),
            _ => f32_128(mr, nv),
        }
    }
}

impl Arith for F64 {
    type P = f64;
    type A = f64;
    const PER: usize = 1;
    fn blocks(isa: Isa) -> Blocks {
        let f32s = F32::blocks(isa);
        Blocks { lanes: if isa >= Isa::Avx2 { f32s.lanes / 2 } else { f32s.lanes }, ..f32s }
    }
    fn kernel(isa: Isa, mr: usize, nv: usize) -> MicroFn<f64, f64> {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => x86::f64_512(mr, nv),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86::f64_256(mr, nv),
            _ => f64_128(mr, nv),
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Arith for Dot {
    type P = u32;
    type A = f32;
    const PER: usize = 2;
    fn blocks(isa: Isa) -> Blocks {
        F32::blocks(isa)
    }
    fn kernel(isa: Isa, mr: usize, nv: usize) -> MicroFn<u32, f32> {
        assert_eq!(isa, Isa::Avx512, "pairs of bfloat16 need AVX-512");
        x86::dot_512(mr, nv)
    }
}
