//! Attention beside the limits of one core, measured in turns on one thread by CPU time:
//! `cargo run --release -p lapis-cpu --example attention`.

use half::bf16;
use lapis_cpu::attention::{Attention, Mask, Operand, attention};
use lapis_cpu::isa::{Isa, isa};
use lapis_cpu::pool;
use std::hint::black_box;
use std::time::Duration;

/// CPU time of this thread so far.
fn cpu_time() -> Duration {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is writable.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut t) };
    Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
}

fn seconds(f: &mut dyn FnMut()) -> f64 {
    let start = cpu_time();
    f();
    (cpu_time() - start).as_secs_f64()
}

/// The best times of several works, run in turns so that all meet the same machine.
fn best<const N: usize>(rounds: usize, mut works: [&mut dyn FnMut(); N]) -> [f64; N] {
    let mut best = [f64::INFINITY; N];
    for _ in 0..rounds {
        for (b, f) in best.iter_mut().zip(&mut works) {
            *b = b.min(seconds(*f));
        }
    }
    best
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn peak512(n: usize) {
    use std::arch::x86_64::*;
    let mut a = [_mm512_set1_ps(1.0); 16];
    let (x, y) = (black_box(_mm512_set1_ps(0.5)), black_box(_mm512_set1_ps(0.25)));
    for _ in 0..n {
        for v in &mut a {
            *v = _mm512_fmadd_ps(*v, x, y);
        }
    }
    black_box(a);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn peak256(n: usize) {
    use std::arch::x86_64::*;
    let mut a = [_mm256_set1_ps(1.0); 12];
    let (x, y) = (black_box(_mm256_set1_ps(0.5)), black_box(_mm256_set1_ps(0.25)));
    for _ in 0..n {
        for v in &mut a {
            *v = _mm256_fmadd_ps(*v, x, y);
        }
    }
    black_box(a);
}

/// Multiply-adds, and the number of operations done.
fn peak() -> f64 {
    let n = 1_000_000;
    #[cfg(target_arch = "x86_64")]
    match isa() {
        Isa::Avx512 => {
            // SAFETY: the level is available.
            unsafe { peak512(n) };
            return n as f64 * 16.0 * 32.0;
        }
        Isa::Avx2 => {
            // SAFETY: the level is available.
            unsafe { peak256(n) };
            return n as f64 * 12.0 * 16.0;
        }
        _ => {}
    }
    let mut a = [1.0f32; 32];
    for _ in 0..n {
        for v in &mut a {
            *v = *v * 0.5 + 0.25;
        }
        black_box(&mut a);
    }
    n as f64 * 64.0
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn read512(data: &[bf16]) {
    use std::arch::x86_64::*;
    let mut sum = [_mm512_setzero_si512(); 8];
    for chunk in data.as_chunks::<256>().0 {
        for (i, s) in sum.iter_mut().enumerate() {
            // SAFETY: inside the chunk.
            *s = _mm512_xor_si512(*s, unsafe { _mm512_loadu_si512(chunk.as_ptr().add(32 * i).cast()) });
        }
    }
    black_box(sum);
}

/// Reads all of `data`.
fn read(data: &[bf16]) {
    #[cfg(target_arch = "x86_64")]
    if isa() == Isa::Avx512 {
        // SAFETY: the level is available.
        return unsafe { read512(data) };
    }
    let words: &[u64] = bytemuck::cast_slice(data);
    let mut sum = [0; 32];
    for chunk in words.as_chunks::<32>().0 {
        for (s, x) in sum.iter_mut().zip(chunk) {
            *s ^= x;
        }
    }
    black_box(sum);
}

/// Elements on a cache line's border, as lapis's buffers are.
struct Filled(Vec<[u64; 64]>, usize);

impl std::ops::Deref for Filled {
    type Target = [bf16];
    fn deref(&self) -> &[bf16] {
        let all: &[bf16] = bytemuck::cast_slice(&self.0);
        let skip = all.as_ptr().align_offset(64);
        &all[skip..skip + self.1]
    }
}

impl std::ops::DerefMut for Filled {
    fn deref_mut(&mut self) -> &mut [bf16] {
        let all: &mut [bf16] = bytemuck::cast_slice_mut(&mut self.0);
        let skip = all.as_ptr().align_offset(64);
        &mut all[skip..skip + self.1]
    }
}

fn filled(n: usize) -> Filled {
    let mut x = Filled(vec![[0; 64]; n / 256 + 2], n);
    x.iter_mut().enumerate().for_each(|(i, x)| *x = bf16::from_f32(((i * 7919) % 1021) as f32 / 510.0 - 1.0));
    x
}

fn call(q: &[bf16], kv: &[bf16], out: &mut [bf16], heads: (usize, usize), len: (usize, usize), causal: bool) {
    const D: usize = 128;
    let strides = |heads: usize, len: usize| [(heads * len * D) as isize, (len * D) as isize, D as isize];
    let (k, v) = kv.split_at(kv.len() / 2);
    let operand = |x: &[bf16], heads, len| Operand {
        ptr: x.as_ptr().cast(),
        dtype: lapis_core::dtype::Dtype::Bfloat16,
        strides: strides(heads, len),
    };
    let a = Attention {
        batch: 1,
        q_heads: heads.0,
        kv_heads: heads.1,
        q_len: len.0,
        kv_len: len.1,
        dim: D,
        v_dim: D,
        q: operand(q, heads.0, len.0),
        k: operand(k, heads.1, len.1),
        v: operand(v, heads.1, len.1),
        out: out.as_mut_ptr().cast(),
        out_dtype: lapis_core::dtype::Dtype::Bfloat16,
        out_strides: strides(heads.0, len.0),
        scale: 0.088,
        softcap: None,
        causal,
        window: None,
        mask: Mask::None,
        sinks: None,
    };
    // SAFETY: the slices have the sizes of the shapes.
    unsafe { attention(isa(), &a) };
}

fn main() {
    let rounds = std::env::args().nth(1).map_or(20, |n| n.parse().expect("a number of rounds"));
    pool::with_threads(1, || {
        println!("{} on one thread, best of {rounds}", isa().name());
        for (kv_heads, causal) in [(8, true), (8, false), (32, true), (32, false)] {
            let n = 1024;
            let (q, kv) = (filled(32 * n * 128), filled(2 * kv_heads * n * 128));
            let mut out = filled(q.len());
            let mut operations = 0.0;
            let [t, p] = best(
                rounds / 4 + 1,
                [&mut || call(&q, &kv, &mut out, (32, kv_heads), (n, n), causal), &mut || operations = peak()],
            );
            let pairs = if causal { n * (n + 1) / 2 } else { n * n };
            let rate = (32 * 4 * 128 * pairs) as f64 / t;
            println!(
                "prefill 32/{kv_heads} heads x {n} x 128{}: {:.1} ms, {:.1} GFLOP/s, {:.1} % of {:.1}",
                if causal { " causal" } else { "" },
                t * 1e3,
                rate / 1e9,
                100.0 * rate * p / operations,
                operations / p / 1e9
            );
        }
        for (heads, kv_heads) in [(32, 8), (32, 32), (14, 2), (16, 1)] {
            for n in [256, 1024, 4096, 32768] {
                let (q, kv) = (filled(heads * 128), filled(2 * kv_heads * n * 128));
                let mut out = filled(q.len());
                // Small works are repeated, to be longer than the clock is coarse.
                let times = (4096 * 8 / (n * kv_heads)).max(1);
                let [t, m] = best(
                    rounds,
                    [
                        &mut || (0..times).for_each(|_| call(&q, &kv, &mut out, (heads, kv_heads), (1, n), true)),
                        &mut || (0..times).for_each(|_| read(&kv)),
                    ],
                );
                let bytes = (kv.len() * 2 * times) as f64;
                println!(
                    "decode {heads}/{kv_heads} heads x {n} x 128 ({:.1} MB): {:.0} us, {:.1} GB/s, {:.1} % of {:.1}",
                    kv.len() as f64 * 2e-6,
                    t * 1e6 / times as f64,
                    bytes / t / 1e9,
                    100.0 * m / t,
                    bytes / m / 1e9
                );
            }
        }
    });
}
