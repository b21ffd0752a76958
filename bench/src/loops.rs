//! The loops behind the limits: register-only multiply-adds, and plain reads and copies.
//!
//! They do nothing useful and know nothing of lapis. On machines other than x86-64 the portable versions run, as
//! fast as the compiler makes them.

use std::hint::black_box;

/// A loop of multiply-adds without memory.
#[derive(Clone, Copy)]
pub(crate) struct PeakLoop {
    /// Whether this machine has the instructions.
    pub(crate) available: fn() -> bool,
    /// Runs the loop body so many times.
    pub(crate) run: fn(u64),
    /// Operations (a multiplication and an addition are two) of one body.
    pub(crate) operations: fn() -> f64,
    /// How much dearer than the fastest loop a body is: divides the number of rounds.
    pub(crate) cost: u64,
}

/// A loop of one instruction over `$n` accumulators, twice unrolled. `$n` accumulators hide the latency.
#[cfg(target_arch = "x86_64")]
macro_rules! register_loop {
    ($fun:ident, $regs:literal, $($line:literal),+) => {
        fn $fun(rounds: u64) {
            // SAFETY: registers only, all declared; the caller checked that the instructions exist.
            unsafe {
                std::arch::asm!(
                    concat!(".irp n,", $regs),
                    r"vpxor xmm\n, xmm\n, xmm\n",
                    ".endr",
                    "2:",
                    concat!(".irp n,", $regs),
                    $($line,)+
                    ".endr",
                    concat!(".irp n,", $regs),
                    $($line,)+
                    ".endr",
                    "dec {r}",
                    "jnz 2b",
                    r = inout(reg) rounds.max(1) => _,
                    out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
                    out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                    out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                    options(nostack),
                );
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::PeakLoop;

    // The low sixteen registers hold 14 accumulators and two operands: two FMAs a cycle at a latency of 4 need 8.
    register_loop!(fma512, "0,1,2,3,4,5,6,7,8,9,10,11,12,13", r"vfmadd231ps zmm\n, zmm14, zmm15");
    register_loop!(bf16_512, "0,1,2,3,4,5,6,7,8,9,10,11,12,13", r"vdpbf16ps zmm\n, zmm14, zmm15");
    register_loop!(int8_512, "0,1,2,3,4,5,6,7,8,9,10,11,12,13", r"vpdpbusd zmm\n, zmm14, zmm15");
    register_loop!(fma256, "0,1,2,3,4,5,6,7,8,9,10,11,12,13", r"vfmadd231ps ymm\n, ymm14, ymm15");
    register_loop!(int8_256_vnni, "0,1,2,3,4,5,6,7,8,9,10,11,12,13", r"{{vex}} vpdpbusd ymm\n, ymm14, ymm15");
    // Without VNNI a dot product of bytes is three instructions.
    register_loop!(
        int8_256_plain,
        "0,1,2,3,4,5,6,7,8,9,10,11",
        "vpmaddubsw ymm12, ymm14, ymm15",
        "vpmaddwd ymm13, ymm12, ymm15",
        r"vpaddd ymm\n, ymm\n, ymm13"
    );

    fn int8_256(rounds: u64) {
        if is_x86_feature_detected!("avxvnni") { int8_256_vnni(rounds) } else { int8_256_plain(rounds) }
    }

    /// 28 instructions a body; the plain form (24 triples) is counted by the VNNI form's yield where that exists.
    fn int8_256_rate() -> f64 {
        if is_x86_feature_detected!("avxvnni") { 28.0 * 64.0 } else { 24.0 * 64.0 }
    }

    pub(crate) const F32_AVX512: PeakLoop = PeakLoop {
        available: || is_x86_feature_detected!("avx512f"),
        run: fma512,
        operations: || 28.0 * 32.0,
        cost: 1,
    };
    pub(crate) const BF16_AVX512: PeakLoop = PeakLoop {
        available: || is_x86_feature_detected!("avx512bf16"),
        run: bf16_512,
        operations: || 28.0 * 64.0,
        cost: 2,
    };
    pub(crate) const INT8_AVX512: PeakLoop = PeakLoop {
        available: || is_x86_feature_detected!("avx512vnni"),
        run: int8_512,
        operations: || 28.0 * 128.0,
        cost: 1,
    };
    pub(crate) const F32_AVX2: PeakLoop = PeakLoop {
        available: || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
        run: fma256,
        operations: || 28.0 * 16.0,
        cost: 1,
    };
    pub(crate) const INT8_AVX2: PeakLoop =
        PeakLoop { available: || is_x86_feature_detected!("avx2"), run: int8_256, operations: int8_256_rate, cost: 1 };
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{BF16_AVX512, F32_AVX2, F32_AVX512, INT8_AVX2, INT8_AVX512};

#[cfg(not(target_arch = "x86_64"))]
mod absent {
    use super::PeakLoop;
    const NONE: PeakLoop = PeakLoop { available: || false, run: |_| (), operations: || 0.0, cost: 1 };
    pub(crate) const F32_AVX512: PeakLoop = NONE;
    pub(crate) const F32_AVX2: PeakLoop = NONE;
    pub(crate) const BF16_AVX512: PeakLoop = NONE;
    pub(crate) const INT8_AVX512: PeakLoop = NONE;
    pub(crate) const INT8_AVX2: PeakLoop = NONE;
}
#[cfg(not(target_arch = "x86_64"))]
pub(crate) use absent::{BF16_AVX512, F32_AVX2, F32_AVX512, INT8_AVX2, INT8_AVX512};

/// Multiply-adds as the compiler vectorises them for the baseline of the target.
pub(crate) const F32_PORTABLE: PeakLoop =
    PeakLoop { available: || true, run: f32_portable, operations: || 2.0 * 64.0, cost: 2 };

/// 8-bit products summed in 32 bits, as the compiler vectorises them.
pub(crate) const INT8_PORTABLE: PeakLoop =
    PeakLoop { available: || true, run: int8_portable, operations: || 2.0 * 64.0, cost: 4 };

fn f32_portable(rounds: u64) {
    let (x, y) = (black_box([0.5f32; 64]), black_box([0.25f32; 64]));
    let mut sums = [0f32; 64];
    for _ in 0..rounds {
        for i in 0..64 {
            // Where FMA is not part of the baseline, `mul_add` would be a function call.
            sums[i] = if cfg!(target_arch = "aarch64") { x[i].mul_add(sums[i], y[i]) } else { x[i] * sums[i] + y[i] };
        }
    }
    black_box(sums);
}

fn int8_portable(rounds: u64) {
    let x = black_box([3u8; 64]);
    let mut y = black_box([2i8; 64]);
    let mut sums = [0i32; 16];
    for _ in 0..rounds {
        for i in 0..64 {
            sums[i / 4] = sums[i / 4].wrapping_add(x[i] as i32 * y[i] as i32);
        }
        y = black_box(y);
    }
    black_box(sums);
}

/// The ways to read memory that are worth trying: which is fastest differs between machines.
pub(crate) fn reads() -> Vec<fn(&[u8])> {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: AVX-512F was just found.
        return vec![|b| unsafe { wide512::read_one(b) }, |b| unsafe { wide512::read_four(b) }];
    }
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: AVX2 was just found.
        return vec![|b| unsafe { wide256::read_one(b) }, |b| unsafe { wide256::read_four(b) }];
    }
    vec![read_portable]
}

fn read_portable(bytes: &[u8]) {
    let mut sums = [0u64; 8];
    for chunk in bytes.chunks_exact(64) {
        for (s, w) in sums.iter_mut().zip(chunk.chunks_exact(8)) {
            *s |= u64::from_ne_bytes(w.try_into().expect("eight bytes"));
        }
    }
    black_box(sums);
}

/// Ors the sources together into `dst` (all of the same length); without sources it fills. `nt`: stores that bypass
/// the caches, where the machine has them. Lengths are whole pages, `dst` is aligned to 64 bytes.
pub(crate) fn stream(srcs: &[&[u8]], dst: &mut [u8], nt: bool) {
    assert!(dst.len().is_multiple_of(4096) && srcs.iter().all(|s| s.len() == dst.len()));
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: AVX-512F was just found; lengths and alignment are as the function asks.
        return unsafe { wide512::stream(srcs, dst, nt) };
    }
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: likewise.
        return unsafe { wide256::stream(srcs, dst, nt) };
    }
    let _ = nt;
    match srcs {
        [] => dst.fill(1),
        [one] => dst.copy_from_slice(one),
        more => {
            for (i, d) in dst.iter_mut().enumerate() {
                *d = more.iter().fold(0, |acc, s| acc | s[i]);
            }
        }
    }
    black_box(&mut *dst);
}

/// Reading and copying with the vectors of one instruction set, of `$width` bytes.
#[cfg(target_arch = "x86_64")]
macro_rules! wide {
    ($name:ident, $features:literal, $width:literal, $zero:ident, $one:ident, $load:ident, $or:ident, $store:ident, $stream:ident) => {
        mod $name {
            use std::arch::x86_64::*;
            use std::hint::black_box;

            /// One stream, eight loads in flight.
            #[target_feature(enable = $features)]
            pub(crate) fn read_one(bytes: &[u8]) {
                let mut sums = [$zero(); 8];
                for chunk in bytes.chunks_exact(8 * $width) {
                    for (i, s) in sums.iter_mut().enumerate() {
                        // SAFETY: a vector at `$width * i` lies in the chunk of eight.
                        *s = $or(*s, unsafe { $load(chunk.as_ptr().add($width * i).cast()) });
                    }
                }
                black_box(sums);
            }

            /// Four streams a quarter apart, prefetched half a page ahead.
            #[target_feature(enable = $features)]
            pub(crate) fn read_four(bytes: &[u8]) {
                let quarter = (bytes.len() / 4) & !4095;
                let mut sums = [$zero(); 4];
                let base = bytes.as_ptr();
                for i in (0..quarter).step_by(64) {
                    for (q, s) in sums.iter_mut().enumerate() {
                        // SAFETY: q quarters and i bytes are inside `bytes`; a prefetch may point anywhere.
                        unsafe {
                            let at = base.add(q * quarter + i);
                            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(2048).cast());
                            for part in (0..64).step_by($width) {
                                *s = $or(*s, $load(at.add(part).cast()));
                            }
                        }
                    }
                }
                black_box(sums);
            }

            /// See [`super::stream`]; at most three sources.
            #[target_feature(enable = $features)]
            pub(crate) fn stream(srcs: &[&[u8]], dst: &mut [u8], nt: bool) {
                match (srcs.len(), nt) {
                    (0, true) => stream_with::<0, true>(srcs, dst),
                    (0, false) => stream_with::<0, false>(srcs, dst),
                    (1, true) => stream_with::<1, true>(srcs, dst),
                    (1, false) => stream_with::<1, false>(srcs, dst),
                    (2, true) => stream_with::<2, true>(srcs, dst),
                    (2, false) => stream_with::<2, false>(srcs, dst),
                    (_, true) => stream_with::<3, true>(srcs, dst),
                    (_, false) => stream_with::<3, false>(srcs, dst),
                }
            }

            #[target_feature(enable = $features)]
            fn stream_with<const N: usize, const NT: bool>(srcs: &[&[u8]], dst: &mut [u8]) {
                let src: [*const u8; N] = std::array::from_fn(|r| srcs[r].as_ptr());
                for i in (0..dst.len()).step_by(256) {
                    for j in (i..i + 256).step_by($width) {
                        let mut v = $one(1);
                        for (r, p) in src.iter().enumerate() {
                            // SAFETY: all lengths are the same multiple of 4096.
                            let w = unsafe { $load(p.add(j).cast()) };
                            v = if r == 0 { w } else { $or(v, w) };
                        }
                        // SAFETY: inside `dst`, which the caller aligned to 64 bytes.
                        unsafe {
                            let at = dst.as_mut_ptr().add(j).cast();
                            if NT { $stream(at, v) } else { $store(at, v) }
                        }
                    }
                }
                if NT {
                    _mm_sfence();
                }
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
wide!(
    wide512,
    "avx512f",
    64,
    _mm512_setzero_si512,
    _mm512_set1_epi32,
    _mm512_loadu_si512,
    _mm512_or_si512,
    _mm512_store_si512,
    _mm512_stream_si512
);
#[cfg(target_arch = "x86_64")]
wide!(
    wide256,
    "avx2",
    32,
    _mm256_setzero_si256,
    _mm256_set1_epi32,
    _mm256_loadu_si256,
    _mm256_or_si256,
    _mm256_store_si256,
    _mm256_stream_si256
);
