//! The peak rates of this machine's multiply-add instructions: what a program measures itself against.
//!
//! Registers only: no bytes are moved. Fourteen accumulators hide the latency of two units of four cycles. On machines
//! without the instructions a loop of sixteen lanes runs, as fast as the compiler makes it.

use crate::isa::{Isa, isa};
use std::hint::black_box;
use std::time::Instant;

/// Instructions of a round.
const CHAINS: usize = 14;

/// Operations a second (a multiplication and an addition are two) that `threads` threads reach in f32 multiply-adds.
pub fn float_peak(threads: usize) -> f64 {
    let lanes = match isa() {
        Isa::Avx2 => 8,
        Isa::Neon => 4,
        _ => 16,
    };
    peak(threads, (2 * lanes * CHAINS) as f64, floats)
}

/// As [`float_peak`], in dot products of bytes: the peak of the vector unit, beyond which a matrix unit (AMX) goes. On
/// machines other than x86-64, that of floats.
pub fn byte_peak(threads: usize) -> f64 {
    #[cfg(target_arch = "x86_64")]
    {
        if isa() == Isa::Avx512 {
            return peak(threads, (2 * 64 * CHAINS) as f64, |rounds| {
                // SAFETY: the level in use has the instructions.
                unsafe { x86::bytes512(rounds) }
            });
        }
        if isa() == Isa::Avx2 {
            let vnni = crate::isa::features().avx_vnni;
            return peak(
                threads,
                (2 * 32 * CHAINS) as f64,
                if vnni {
                    // SAFETY: the features in use have the instructions.
                    |rounds| unsafe { x86::bytes256(rounds) }
                } else {
                    // SAFETY: likewise.
                    |rounds| unsafe { x86::bytes256_in_three(rounds) }
                },
            );
        }
    }
    float_peak(threads)
}

/// The best of a few runs of some milliseconds on each of `threads` threads: in a tenth of that, what it takes to begin and end
/// a thread would be a seventh of the time.
fn peak(threads: usize, operations: f64, run: fn(u64)) -> f64 {
    const ROUNDS: u64 = 2_000_000;
    let once = || {
        let began = Instant::now();
        std::thread::scope(|all| {
            for _ in 1..threads.max(1) {
                all.spawn(|| run(black_box(ROUNDS)));
            }
            run(black_box(ROUNDS));
        });
        operations * ROUNDS as f64 * threads.max(1) as f64 / began.elapsed().as_secs_f64()
    };
    (0..5).map(|_| once()).fold(0.0, f64::max)
}

fn floats(rounds: u64) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the level in use has the instructions.
    unsafe {
        match isa() {
            Isa::Avx512 => return x86::floats512(rounds),
            Isa::Avx2 => return x86::floats256(rounds),
            _ => {}
        }
    }
    let (a, b) = (black_box([1.0f32; 16]), black_box([0.5f32; 16]));
    let mut sums = [[0f32; 16]; CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            for i in 0..16 {
                sum[i] += a[i] * b[i];
            }
        }
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// Accumulators by name, so that they are registers whatever the optimiser does with arrays.
    macro_rules! rounds {
        ($(#[$meta:meta])* $name:ident, $zero:expr, $one:expr, |$sum:ident, $a:ident, $b:ident| $step:expr) => {
            rounds!(@chains $(#[$meta])* $name, $zero, $one, |$sum, $a, $b| $step;
                s0 s1 s2 s3 s4 s5 s6 s7 s8 s9 s10 s11 s12 s13);
        };
        (@chains $(#[$meta:meta])* $name:ident, $zero:expr, $one:expr, |$sum:ident, $a:ident, $b:ident| $step:expr;
            $($s:ident)+) => {
            $(#[$meta])*
            pub(super) fn $name(rounds: u64) {
                let ($a, $b) = (black_box($one), black_box($one));
                $(let mut $s = $zero;)+
                for _ in 0..rounds {
                    $(
                        let $sum = $s;
                        $s = $step;
                    )+
                }
                black_box([$($s),+]);
            }
        };
    }

    rounds!(
        #[target_feature(enable = "avx512f")]
        floats512,
        _mm512_setzero_ps(),
        _mm512_set1_ps(0.5),
        |sum, a, b| _mm512_fmadd_ps(a, b, sum)
    );
    rounds!(
        #[target_feature(enable = "avx2,fma")]
        floats256,
        _mm256_setzero_ps(),
        _mm256_set1_ps(0.5),
        |sum, a, b| _mm256_fmadd_ps(a, b, sum)
    );
    rounds!(
        #[target_feature(enable = "avx512f,avx512vnni")]
        bytes512,
        _mm512_setzero_si512(),
        _mm512_set1_epi8(1),
        |sum, a, b| _mm512_dpbusd_epi32(sum, a, b)
    );
    rounds!(
        #[target_feature(enable = "avx2,avxvnni")]
        bytes256,
        _mm256_setzero_si256(),
        _mm256_set1_epi8(1),
        |sum, a, b| _mm256_dpbusd_avx_epi32(sum, a, b)
    );
    // Without VNNI a dot product is three instructions. Their operand changes, so that none can be done ahead of the loop.
    rounds!(
        #[target_feature(enable = "avx2")]
        bytes256_in_three,
        _mm256_setzero_si256(),
        _mm256_set1_epi8(1),
        |sum, a, b| _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, sum), b))
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every loop runs on this machine, and takes time that was measured.
    #[test]
    fn peaks_are_numbers() {
        for peak in [float_peak(1), float_peak(2), byte_peak(1), byte_peak(2)] {
            assert!(peak.is_finite() && peak > 0.0, "{peak:e}");
        }
    }
}
