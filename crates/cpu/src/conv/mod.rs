//! Convolutions of one to three spatial axes, channels last: as matrix products over windows that are never written
//! out, or, where every channel is a group of its own, directly (`depthwise`).
//!
//! Result and bits: every output element is one sum over (kernel position, channel) in the order of the weight's
//! memory, in f32 (f64 for float64), rounded once. Positions outside the input count as zeros; with input dilation the
//! zeros between inputs are skipped, so that a transposed convolution does no more work than it must.
//!
//! Operations: 2 * outputs * kernel positions * channels of a group, at the speed of the matrix product; the input is
//! packed once, in cache-sized pieces.

mod depthwise;

use crate::gemm::driver::{self, Along, Product};
use crate::gemm::finish::{Finish, Target};
use crate::gemm::lanes;
use crate::gemm::micro::{Arith, F32, F64, MAX_COLS};
use crate::gemm::pack::{self, Pack};
use crate::isa::Isa;
use depthwise::Sum;
use lapis_core::dtype::{Dtype, bf16, f16};
use std::marker::PhantomData;
use std::ops::Range;

/// One spatial axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Length of the input.
    pub input: usize,
    /// Length of the kernel.
    pub kernel: usize,
    /// Step of the window; at least 1.
    pub stride: usize,
    /// Zeros before and after the (dilated) input; negative ones crop it.
    pub padding: (isize, isize),
    /// Distance of neighbouring kernel positions in the input; at least 1.
    pub kernel_dilation: usize,
    /// Distance that neighbouring inputs are moved apart to, zeros in between; at least 1.
    pub input_dilation: usize,
}

impl Axis {
    /// An axis that is not there.
    pub const UNIT: Axis =
        Axis { input: 1, kernel: 1, stride: 1, padding: (0, 0), kernel_dilation: 1, input_dilation: 1 };

    /// Length of the output: `floor((dilated input + padding - dilated kernel) / stride) + 1`, 0 if the kernel does
    /// not fit.
    pub fn output(&self) -> usize {
        let spread = |len: usize, dilation: usize| len.saturating_sub(1) * dilation + usize::from(len > 0);
        let room = spread(self.input, self.input_dilation) as isize + self.padding.0 + self.padding.1;
        let kernel = spread(self.kernel, self.kernel_dilation).max(1) as isize;
        if room < kernel { 0 } else { ((room - kernel) as usize) / self.stride + 1 }
    }
}

/// A convolution: `out[b, t, o] = sum over k, c of in[b, t * stride + k * dilation - padding, c] * w[o, k, c]` with the
/// input channels `c` of the group of `o`.
#[derive(Clone, Debug)]
pub struct Conv {
    /// Images.
    pub batch: usize,
    /// The spatial axes, outermost first; those that are not there are [`Axis::UNIT`].
    pub axes: [Axis; 3],
    /// Input channels, a multiple of `groups`.
    pub channels: usize,
    /// Output channels, a multiple of `groups`.
    pub outputs: usize,
    /// Groups; output channel o reads the input channels of group `o / (outputs / groups)`.
    pub groups: usize,
    /// Whether the kernel is applied reversed.
    pub flip: bool,
}

/// Computes a convolution. All arrays are contiguous and of `dtype`, a real floating type: `input` (batch, axes...,
/// channels), `weight` (outputs, kernel axes..., channels / groups), `out` (batch, output axes..., outputs).
///
/// # Safety
/// The pointers must be valid for these sizes and `out` used by nobody else; `isa` must be available.
///
/// # Panics
/// If `dtype` is not a real floating type.
pub unsafe fn conv(isa: Isa, dtype: Dtype, conv: &Conv, input: *const u8, weight: *const u8, out: *mut u8) {
    // SAFETY: handed on.
    unsafe {
        match dtype {
            Dtype::Float32 => run::<F32, f32>(isa, conv, input, weight, out),
            Dtype::Float64 => run::<F64, f64>(isa, conv, input, weight, out),
            Dtype::Float16 => run::<F32, f16>(isa, conv, input, weight, out),
            Dtype::Bfloat16 => run::<F32, bf16>(isa, conv, input, weight, out),
            _ => panic!("[conv] {dtype} is not a real floating type"),
        }
    }
}

/// The outputs of one axis that meet the same kernel positions: all of them without input dilation, else one in
/// `period`. Output `first + j * period` and tap `i` meet input `j * step + taps[i].1`.
#[derive(Clone, Debug)]
struct Phase {
    first: usize,
    period: usize,
    count: usize,
    step: isize,
    /// Kernel positions and where they begin in the input.
    taps: Vec<(usize, isize)>,
}

fn phases(axis: &Axis, flip: bool) -> Vec<Phase> {
    let gcd = |mut a: usize, mut b: usize| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let dilation = axis.input_dilation;
    let period = dilation / gcd(dilation, axis.stride);
    let outputs = axis.output();
    let phase = |first: usize| {
        let taps = (0..axis.kernel).filter_map(|t| {
            let place = if flip { axis.kernel - 1 - t } else { t };
            let at = (first * axis.stride + place * axis.kernel_dilation) as isize - axis.padding.0;
            (at % dilation as isize == 0).then_some((t, at / dilation as isize))
        });
        let step = (period * axis.stride / dilation) as isize;
        Phase { first, period, count: (outputs - first).div_ceil(period), step, taps: taps.collect() }
    };
    (0..period.min(outputs)).map(phase).collect()
}

unsafe fn run<M: Arith<A: Sum>, E: Pack<M> + Finish<M::A>>(
    isa: Isa,
    conv: &Conv,
    input: *const u8,
    weight: *const u8,
    out: *mut u8,
) {
    if conv.batch == 0 || conv.outputs == 0 || conv.axes.iter().any(|axis| axis.output() == 0) {
        return;
    }
    let (input, weight, out) = (input.cast::<E>(), weight.cast::<E>(), out.cast::<E>());
    if conv.channels == 0 {
        let positions = conv.axes.iter().map(Axis::output).product::<usize>();
        // SAFETY: the whole output; zero bits are zero.
        return unsafe { out.write_bytes(0, conv.batch * positions * conv.outputs) };
    }
    let [first, second, third] = &conv.axes.map(|axis| phases(&axis, conv.flip));
    let mut jobs = Vec::new();
    let per_group = conv.channels / conv.groups;
    // SAFETY: handed on.
    unsafe {
        for (a, b, c) in
            first.iter().flat_map(|a| second.iter().flat_map(move |b| third.iter().map(move |c| (a, b, c))))
        {
            if per_group == 1 && conv.groups > 1 {
                depthwise::run::<M::A, E>(isa, conv, [a, b, c], input, weight, out);
                continue;
            }
            for group in 0..conv.groups {
                let zeros = vec![0u8; per_group * size_of::<E>()];
                jobs.push(Windows {
                    conv,
                    phases: [a, b, c],
                    group,
                    input,
                    weight,
                    out,
                    zeros,
                    element: PhantomData::<M>,
                });
            }
        }
        driver::run::<M>(isa, &jobs)
    }
}

/// The windows of one phase and group as rows of a matrix, the weight's rows as columns of the other.
struct Windows<'a, M, E> {
    conv: &'a Conv,
    phases: [&'a Phase; 3],
    group: usize,
    input: *const E,
    weight: *const E,
    out: *mut E,
    /// What a window sees outside the input: the channels of one position.
    zeros: Vec<u8>,
    element: PhantomData<M>,
}

// SAFETY: the pointers are read or, in disjoint places, written by the tasks of one call.
unsafe impl<M, E> Sync for Windows<'_, M, E> {}

/// An output position: image, and index along the axes within the phase.
#[derive(Clone, Copy, Default)]
struct Place {
    image: usize,
    at: [usize; 3],
}

impl Place {
    fn new(row: usize, phases: &[&Phase; 3]) -> Place {
        let (rest, c) = (row / phases[2].count, row % phases[2].count);
        let (rest, b) = (rest / phases[1].count, rest % phases[1].count);
        Place { image: rest / phases[0].count, at: [rest % phases[0].count, b, c] }
    }

    /// The next row.
    fn advance(&mut self, phases: &[&Phase; 3]) {
        for i in (0..3).rev() {
            self.at[i] += 1;
            if self.at[i] < phases[i].count {
                return;
            }
            self.at[i] = 0;
        }
        self.image += 1;
    }

    /// Its position in the output.
    fn output(&self, conv: &Conv, phases: &[&Phase; 3]) -> usize {
        (0..3).fold(self.image, |at, i| at * conv.axes[i].output() + phases[i].first + self.at[i] * phases[i].period)
    }

    /// The position in the input that tap `taps[i]` of each axis meets, unless it is outside.
    fn input(&self, conv: &Conv, phases: &[&Phase; 3], taps: [usize; 3]) -> Option<usize> {
        let mut at = self.image;
        for i in 0..3 {
            let x = self.at[i] as isize * phases[i].step + phases[i].taps[taps[i]].1;
            if x < 0 || x >= conv.axes[i].input as isize {
                return None;
            }
            at = at * conv.axes[i].input + x as usize;
        }
        Some(at)
    }
}

impl<M: Arith, E: Pack<M> + Finish<M::A>> Windows<'_, M, E> {
    fn per_group(&self) -> usize {
        self.conv.channels / self.conv.groups
    }

    fn outputs(&self) -> usize {
        self.conv.outputs / self.conv.groups
    }

    /// Tap number `t` as one of each axis.
    fn taps(&self, t: usize) -> [usize; 3] {
        let (b, c) = (self.phases[1].taps.len(), self.phases[2].taps.len());
        [t / c / b, t / c % b, t % c]
    }

    /// The parts of `ks` that belong to one tap: the tap, and its channels.
    fn segments(&self, ks: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> {
        let channels = self.per_group();
        (ks.start / channels..ks.end.div_ceil(channels)).map(move |t| {
            let base = t * channels;
            (t, ks.start.max(base) - base..ks.end.min(base + channels) - base)
        })
    }

    /// First channel of the group at input position `at`.
    unsafe fn pixel(&self, at: usize) -> *const E {
        // SAFETY: a position inside the input.
        unsafe { self.input.add(at * self.conv.channels + self.group * self.per_group()) }
    }

    /// Whether each axis meets all kernel positions, so that a row of the weight is one piece.
    fn whole(&self) -> bool {
        (0..3).all(|i| self.phases[i].taps.len() == self.conv.axes[i].kernel)
    }

    /// First element of row `o` of the weight.
    unsafe fn weight_row(&self, o: usize) -> *const E {
        let row: usize = self.conv.axes.iter().map(|axis| axis.kernel).product::<usize>() * self.per_group();
        // SAFETY: a row inside the weight.
        unsafe { self.weight.add((self.group * self.outputs() + o) * row) }
    }

    /// Copies elements `ks` of the window at `place` to `to`.
    unsafe fn copy_window(&self, place: &Place, ks: Range<usize>, to: *mut E) {
        let start = ks.start;
        for (t, channels) in self.segments(ks) {
            // SAFETY: inside the input and the room for `ks`.
            unsafe {
                let to = to.add(t * self.per_group() + channels.start - start);
                match place.input(self.conv, &self.phases, self.taps(t)) {
                    Some(at) => to.copy_from_nonoverlapping(self.pixel(at).add(channels.start), channels.len()),
                    None => to.cast::<u8>().write_bytes(0, channels.len() * size_of::<E>()),
                }
            }
        }
    }
}

impl<M: Arith, E: Pack<M> + Finish<M::A>> Product<M> for Windows<'_, M, E> {
    fn size(&self) -> (usize, usize, usize) {
        let rows = self.conv.batch * self.phases.iter().map(|phase| phase.count).product::<usize>();
        let taps = self.phases.iter().map(|phase| phase.taps.len()).product::<usize>();
        (rows, self.outputs(), taps * self.per_group())
    }

    fn streams(&self) -> Option<Along> {
        self.whole().then_some(Along::K)
    }

    #[cfg(target_arch = "x86_64")]
    unsafe fn stream_columns(&self, isa: Isa, mr: usize, lane: usize, count: usize, a: *const M::P, acc: *mut M::A) {
        let (_, _, k) = self.size();
        let jump = M::blocks(isa).lanes * k;
        // SAFETY: rows of the weight.
        unsafe {
            let lanes = lanes(count, |l| self.weight_row(lane + l));
            E::stream_columns(isa, mr, &lanes, jump as isize, k, a, acc);
        }
    }

    unsafe fn pack_lhs(&self, isa: Isa, lane: usize, count: usize, w: usize, ks: Range<usize>, dst: *mut M::P) {
        let mut places = [Place::default(); MAX_COLS];
        places[0] = Place::new(lane, &self.phases);
        for l in 1..count {
            places[l] = places[l - 1];
            places[l].advance(&self.phases);
        }
        // SAFETY: rows and steps inside the windows; pieces shorter than a cache line are put together first.
        unsafe {
            if self.per_group() * size_of::<E>() >= 64 && self.per_group().is_multiple_of(M::PER) {
                let start = ks.start;
                for (t, channels) in self.segments(ks) {
                    let taps = self.taps(t);
                    let lanes = lanes(count, |l| match places[l].input(self.conv, &self.phases, taps) {
                        Some(at) => self.pixel(at).add(channels.start),
                        None => self.zeros.as_ptr().cast::<E>(),
                    });
                    let step = (t * self.per_group() + channels.start - start) / M::PER;
                    pack::pack::<M, E>(isa, &lanes, false, 1, channels.len(), count, w, dst.add(step * w));
                }
                return;
            }
            let mut rows = Vec::<E>::with_capacity(count * ks.len());
            let base = rows.as_mut_ptr();
            for l in 0..count {
                self.copy_window(&places[l], ks.clone(), base.add(l * ks.len()));
            }
            let lanes = lanes(count, |l| base.add(l * ks.len()).cast_const());
            pack::pack::<M, E>(isa, &lanes, false, 1, ks.len(), count, w, dst);
        }
    }

    unsafe fn pack_rhs(&self, isa: Isa, lane: usize, count: usize, w: usize, ks: Range<usize>, dst: *mut M::P) {
        // SAFETY: rows and steps inside the weight.
        unsafe {
            if self.whole() {
                let lanes = lanes(count, |l| self.weight_row(lane + l).add(ks.start));
                return pack::pack::<M, E>(isa, &lanes, false, 1, ks.len(), count, w, dst);
            }
            let mut rows = Vec::<E>::with_capacity(count * ks.len());
            let base = rows.as_mut_ptr();
            for (t, channels) in self.segments(ks.clone()) {
                let taps = self.taps(t);
                let position = (0..3).fold(0, |at, i| at * self.conv.axes[i].kernel + self.phases[i].taps[taps[i]].0);
                let from = position * self.per_group() + channels.start;
                let to = t * self.per_group() + channels.start - ks.start;
                for l in 0..count {
                    let row = self.weight_row(lane + l);
                    base.add(l * ks.len() + to).copy_from_nonoverlapping(row.add(from), channels.len());
                }
            }
            let lanes = lanes(count, |l| base.add(l * ks.len()).cast_const());
            pack::pack::<M, E>(isa, &lanes, false, 1, ks.len(), count, w, dst);
        }
    }

    unsafe fn put(&self, isa: Isa, rows: Range<usize>, cols: Range<usize>, acc: *const M::A, ld: usize) {
        let column = self.group * self.outputs() + cols.start;
        let row = self.conv.outputs;
        // SAFETY: positions inside the output.
        unsafe {
            let target = |at: usize| Target {
                out: (self.out.add(at * row + column), row as isize, 1),
                c: (std::ptr::null(), 0, 0),
                scale: None,
            };
            if self.phases.iter().all(|phase| phase.period == 1) {
                return target(rows.start).put(isa, acc, ld, rows.len(), cols.len());
            }
            let mut place = Place::new(rows.start, &self.phases);
            for i in 0..rows.len() {
                target(place.output(self.conv, &self.phases)).put(isa, acc.add(i * ld), ld, 1, cols.len());
                place.advance(&self.phases);
            }
        }
    }
}

#[cfg(test)]
mod tests;
