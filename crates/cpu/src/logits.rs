//! What choosing a token asks of a row of logits on the host: the largest of each group, and sums of exponentials.
//!
//! Each is one pass over a row of a vocabulary, which the second-level cache holds: 30 operations an exponential are more than
//! its 4 bytes. Sums are 16 lanes in f32, added up in double precision in their order, and nothing is fused: the same bits at every
//! level, as a plain loop over [`exp`] gives them. Knows nothing of tokens.

use crate::simd::{self, Float, Int, Kernel, LANES32, Mask, Simd, Vector};

/// Not above this, an exponential is 0.
pub const LEAST: f32 = -87.0;
/// Added, it leaves a whole number in the low bits.
const WHOLE: f32 = 12_582_912.0;
/// ln 2 in two parts: the first has few bits, so that its products with whole numbers are exact.
const LN_2: [f32; 2] = [0.693_359_4, 2.121_944_4e-4];
const FIRST: f32 = 1.987_569_1e-4;
const REST: [f32; 5] = [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
/// What turns the bits of [`WHOLE`] plus n into the exponent of `2^n`.
const BIAS: i32 = 127 - WHOLE.to_bits() as i32;

/// `e` to the power of `x`, which is not above 0, to about one unit in the last place; 0 up to [`LEAST`].
pub fn exp(x: f32) -> f32 {
    let bounded = if x > LEAST { x } else { LEAST };
    let shifted = bounded * std::f32::consts::LOG2_E + WHOLE;
    let n = shifted - WHOLE;
    let r = bounded - n * LN_2[0] + n * LN_2[1];
    let p = REST.iter().fold(FIRST, |p, c| p * r + c);
    let power = (shifted.to_bits() as i32 + BIAS) << 23;
    let y = (p * r * r + r + 1.0) * f32::from_bits(power as u32);
    if x > LEAST { y } else { 0.0 }
}

/// [`exp`] of sixteen.
#[inline(always)]
fn exponentials<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let least = s.f32(LEAST);
    let whole = s.f32(WHOLE);
    let shifted = x.max(least) * s.f32(std::f32::consts::LOG2_E) + whole;
    let n = shifted - whole;
    let r = x.max(least) - n * s.f32(LN_2[0]) + n * s.f32(LN_2[1]);
    let mut p = s.f32(FIRST);
    for c in REST {
        p = p * r + s.f32(c);
    }
    let power = (shifted.bits() + s.i32(BIAS)).shl(23);
    let y = (p * r * r + r + s.f32(1.0)) * S::F32::from_bits(power);
    S::F32::select(x.gt(least), y, s.f32(0.0))
}

/// The sum of `exp((x - peak) * slope)` over `values`, none of which is above `peak` or no number; `slope` is above 0.
pub fn mass(values: &[f32], peak: f32, slope: f32) -> f64 {
    let (chunks, rest) = values.as_chunks::<LANES32>();
    let sums = simd::dispatch(Mass { chunks, peak, slope });
    let rest = rest.iter().map(|&x| f64::from(exp((x - peak) * slope)));
    sums.iter().map(|&sum| f64::from(sum)).chain(rest).sum()
}

struct Mass<'a> {
    chunks: &'a [[f32; LANES32]],
    peak: f32,
    slope: f32,
}

impl Kernel for Mass<'_> {
    type Out = [f32; LANES32];
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> [f32; LANES32] {
        let (peak, slope, mut sums) = (s.f32(self.peak), s.f32(self.slope), s.f32(0.0));
        for chunk in self.chunks {
            // SAFETY: a chunk is a vector.
            let x = unsafe { S::F32::load(s, chunk.as_ptr()) };
            sums = sums + exponentials(s, (x - peak) * slope);
        }
        let mut out = [0.0; LANES32];
        // SAFETY: the array is a vector.
        unsafe { sums.store(out.as_mut_ptr()) };
        out
    }
}

/// The largest of each `group` neighbours of a row, as far as they are numbers; nothing if something in it is none.
///
/// # Panics
/// If `group` is 0.
pub fn largest(row: &[f32], group: usize) -> Option<Vec<f32>> {
    let mut tops = Vec::with_capacity(row.len().div_ceil(group));
    let odd = simd::dispatch(Largest { row, group, tops: &mut tops });
    (!odd).then_some(tops)
}

struct Largest<'a> {
    row: &'a [f32],
    group: usize,
    tops: &'a mut Vec<f32>,
}

impl Kernel for Largest<'_> {
    type Out = bool;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> bool {
        let mut odd = S::M32::first(s, 0);
        let mut strange = false;
        for group in self.row.chunks(self.group) {
            let (chunks, rest) = group.as_chunks::<LANES32>();
            let mut best = s.f32(f32::NEG_INFINITY);
            for chunk in chunks {
                // SAFETY: a chunk is a vector.
                let x = unsafe { S::F32::load(s, chunk.as_ptr()) };
                best = x.max(best);
                odd = odd | x.is_nan();
            }
            let mut top = best.reduce_max();
            for &x in rest {
                top = if x > top { x } else { top };
                strange |= x.is_nan();
            }
            self.tops.push(top);
        }
        strange | odd.any()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa;
    use crate::simd::dispatch_with;

    #[test]
    fn exponentials_are_right_to_the_last_place() {
        for i in 0..200_000 {
            let x = -87.0 * i as f32 / 200_000.0;
            let want = f64::from(x).exp();
            assert!((f64::from(exp(x)) - want).abs() <= 1.5e-7 * want, "exp({x}) = {} beside {want}", exp(x));
        }
        assert_eq!([exp(0.0), exp(-88.0), exp(f32::NEG_INFINITY)], [1.0, 0.0, 0.0]);
    }

    /// Logits without order, some of them as far down as what may not come.
    fn logits(n: usize) -> Vec<f32> {
        let one = |i: usize| ((i * 7919 % 1013) as f32 / 100.0).sin() * if i.is_multiple_of(7) { 90.0 } else { 9.0 };
        let mut all: Vec<f32> = (0..n).map(one).collect();
        all.iter_mut().skip(3).step_by(11).for_each(|x| *x = f32::NEG_INFINITY);
        all
    }

    #[test]
    fn sums_have_the_bits_of_a_plain_loop_at_every_level() {
        for (n, slope) in [(16, 1.0), (1024, 1.0), (1024, 0.3), (4096, 2.5)] {
            let values = logits(n);
            let peak = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut want = [0.0f32; LANES32];
            for (i, &x) in values.iter().enumerate() {
                want[i % LANES32] += exp((x - peak) * slope);
            }
            let (chunks, _) = values.as_chunks::<LANES32>();
            for level in isa::available() {
                let found = dispatch_with(level, Mass { chunks, peak, slope });
                assert_eq!(found.map(f32::to_bits), want.map(f32::to_bits), "{} of {n}", level.name());
            }
        }
        // What is no whole vector comes after the others.
        let values = logits(1000);
        let whole: f64 = mass(&values[..992], 90.0, 1.0);
        let rest = values[992..].iter().map(|&x| f64::from(exp(x - 90.0)));
        assert_eq!(mass(&values, 90.0, 1.0), rest.fold(whole, |sum, x| sum + x));
        assert_eq!(mass(&[], 0.0, 1.0), 0.0);
    }

    #[test]
    fn groups_have_their_largest_at_every_level() {
        for n in [0, 1, 15, 64, 65, 1000, 4096] {
            let row = logits(n);
            let want: Vec<f32> = row.chunks(64).map(|g| g.iter().copied().fold(f32::NEG_INFINITY, f32::max)).collect();
            assert_eq!(largest(&row, 64), Some(want.clone()));
            for level in isa::available() {
                let mut tops = Vec::new();
                assert!(!dispatch_with(level, Largest { row: &row, group: 64, tops: &mut tops }));
                assert_eq!(tops, want, "{} of {n}", level.name());
                for at in [0, n / 2, n.saturating_sub(1)].into_iter().filter(|&at| at < n) {
                    let mut row = row.clone();
                    row[at] = f32::NAN;
                    assert!(dispatch_with(level, Largest { row: &row, group: 64, tops: &mut Vec::new() }), "{at}");
                }
            }
        }
    }
}
