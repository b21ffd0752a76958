//! One input channel a group: every output channel is a small filter over its own channel, so that the products are a
//! vector over channels for each kernel position. Limited by memory: reads the input once per kernel position, from
//! cache, and writes the output once.

use super::{Conv, Phase, Place};
use crate::gemm::finish::Finish;
use crate::isa::Isa;
use crate::pool;

/// Channels whose sums are kept in L1.
const BLOCK: usize = 256;

/// What the tasks share. `weight` is one row of output channels a tap.
struct Filter<'a, A, E> {
    conv: &'a Conv,
    input: *const E,
    weight: Vec<A>,
    out: *mut E,
}

// SAFETY: the pointers are read or, in disjoint places, written by the tasks of one call.
unsafe impl<A, E> Sync for Filter<'_, A, E> {}

/// Sums of one channel.
pub(super) trait Sum: Copy + Sync {
    /// Nothing added yet.
    const ZERO: Self;
    /// `self + x * w`; in one rounding if `FUSED`, which needs the instruction to be fast.
    fn add<const FUSED: bool>(self, x: Self, w: Self) -> Self;
}

macro_rules! sum {
    ($t:ty) => {
        impl Sum for $t {
            const ZERO: $t = 0.0;
            #[inline(always)]
            fn add<const FUSED: bool>(self, x: $t, w: $t) -> $t {
                if FUSED { x.mul_add(w, self) } else { self + x * w }
            }
        }
    };
}
sum!(f32);
sum!(f64);

/// Computes the outputs of one phase.
pub(super) unsafe fn run<A: Sum, E: Finish<A>>(
    isa: Isa,
    conv: &Conv,
    phases: [&Phase; 3],
    input: *const E,
    weight: *const E,
    out: *mut E,
) {
    let [a, b, c] = phases.map(|phase| &phase.taps);
    let taps: Vec<[usize; 3]> =
        (0..a.len()).flat_map(|i| (0..b.len()).flat_map(move |j| (0..c.len()).map(move |k| [i, j, k]))).collect();
    let kernel = conv.axes.map(|axis| axis.kernel);
    let mut rows = Vec::with_capacity(taps.len() * conv.outputs);
    for tap in &taps {
        let at = (0..3).fold(0, |at, i| at * kernel[i] + phases[i].taps[tap[i]].0);
        for o in 0..conv.outputs {
            // SAFETY: inside the weight.
            rows.push(unsafe { *weight.add(o * kernel.iter().product::<usize>() + at) }.widen());
        }
    }
    let filter = Filter { conv, input, weight: rows, out };
    let positions = conv.batch * phases.iter().map(|phase| phase.count).product::<usize>();
    let grain = (1usize << 16).div_ceil(conv.outputs * taps.len().max(1));
    pool::for_each_chunk(positions, grain, &|chunk| {
        let mut place = Place::new(chunk.start, &phases);
        let mut meets = Vec::with_capacity(taps.len());
        for _ in chunk {
            meets.clear();
            let inside = |(t, tap): (usize, &[usize; 3])| place.input(conv, &phases, *tap).map(|at| (t, at));
            meets.extend(taps.iter().enumerate().filter_map(inside));
            // SAFETY: positions inside input and output; the instruction sets are those of `isa`.
            unsafe {
                let to = place.output(conv, &phases);
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512 => position_avx512::<A, E>(isa, &filter, &meets, to),
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2 => position_avx2::<A, E>(isa, &filter, &meets, to),
                    _ => position::<{ cfg!(target_arch = "aarch64") }, A, E>(isa, &filter, &meets, to),
                }
            }
            place.advance(&phases);
        }
    });
}

/// All channels of output position `to`; `meets` pairs taps with input positions.
#[inline(always)]
unsafe fn position<const FUSED: bool, A: Sum, E: Finish<A>>(
    isa: Isa,
    filter: &Filter<A, E>,
    meets: &[(usize, usize)],
    to: usize,
) {
    let (channels, outputs) = (filter.conv.channels, filter.conv.outputs);
    let multiplier = outputs / channels;
    let mut sums = [A::ZERO; BLOCK];
    for block in (0..outputs).step_by(BLOCK) {
        let sums = &mut sums[..BLOCK.min(outputs - block)];
        sums.fill(A::ZERO);
        for &(tap, at) in meets {
            let weight = &filter.weight[tap * outputs + block..][..sums.len()];
            // SAFETY: the channels of one input position.
            let input = unsafe { std::slice::from_raw_parts(filter.input.add(at * channels), channels) };
            if multiplier == 1 {
                for ((sum, &w), &x) in sums.iter_mut().zip(weight).zip(&input[block..][..weight.len()]) {
                    *sum = sum.add::<FUSED>(x.widen(), w);
                }
            } else {
                for (i, (sum, &w)) in sums.iter_mut().zip(weight).enumerate() {
                    *sum = sum.add::<FUSED>(input[(block + i) / multiplier].widen(), w);
                }
            }
        }
        // SAFETY: the channels of one output position.
        unsafe { E::block(isa, sums.as_ptr(), 0, 1, sums.len(), filter.out.add(to * outputs + block), 0) };
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")]
unsafe fn position_avx512<A: Sum, E: Finish<A>>(isa: Isa, filter: &Filter<A, E>, meets: &[(usize, usize)], to: usize) {
    // SAFETY: handed on.
    unsafe { position::<true, A, E>(isa, filter, meets, to) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn position_avx2<A: Sum, E: Finish<A>>(isa: Isa, filter: &Filter<A, E>, meets: &[(usize, usize)], to: usize) {
    // SAFETY: handed on.
    unsafe { position::<true, A, E>(isa, filter, meets, to) }
}
