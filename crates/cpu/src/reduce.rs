//! Reductions over any axes, with the elementwise work before them in the same pass.
//!
//! Moves the inputs once. Bits do not depend on threads, on the number of outputs or on what was fused: values are
//! folded in blocks of 1024, blocks in order into spans of 64 blocks, spans in order; sums of floats keep f64 between
//! blocks. Where an output axis is contiguous in memory, whole rows are folded side by side instead.

use crate::geometry::Loops;
use crate::pool::{self};
use crate::simd::{self, Float, Kernel, LANES32, Mask, Simd, Vector};
use crate::tape::{Program, with_scratch};
use lapis_core::buffer::Tensor;
use lapis_core::dtype::{Dtype, bf16, c64, f16};
use lapis_core::error::Result;
use lapis_core::ops::{Reduce, ReduceKind};
use lapis_core::schedule::tape::Tape;
use num_complex::Complex;
use smallvec::SmallVec;
use std::marker::PhantomData;

/// Elements folded at once.
const BLOCK: usize = 1024;
/// Blocks that one task folds.
const SPAN: usize = 64;
/// Rows that one task folds when rows are folded side by side.
const ROWS: usize = 4096;

/// How values of a (wide) type combine.
trait Fold: Sync {
    type In: Copy;
    type Acc: Copy + Send + Sync;
    const START: Self::Acc;
    fn push(acc: Self::Acc, x: Self::In) -> Self::Acc;
    fn merge(a: Self::Acc, b: Self::Acc) -> Self::Acc;
    /// Folds `n` elements.
    ///
    /// # Safety
    /// `n` elements can be read.
    #[inline(always)]
    unsafe fn block(p: *const Self::In, n: usize) -> Self::Acc {
        let mut acc = Self::START;
        for i in 0..n {
            // SAFETY: the caller vouches for `n` elements.
            acc = Self::push(acc, unsafe { p.add(i).read() });
        }
        acc
    }
    /// Stores the result as `dtype`.
    ///
    /// # Safety
    /// `out` has room for one element.
    unsafe fn finish(acc: Self::Acc, dtype: Dtype, out: *mut u8);
}

/// Reduces the result of `tape`; see `Backend::reduce`.
pub(crate) fn run(tape: &Tape, op: &Reduce, inputs: &[Tensor], consts: &[u64], output: &mut Tensor) -> Result<()> {
    use ReduceKind::{All, Any, Max, Min, Prod, Sum};
    let job = Job { tape, op, inputs, consts, output };
    macro_rules! integers {
        ($fold:ident) => {
            match tape.dtype() {
                Dtype::Bool | Dtype::Uint8 => job.run::<$fold<u8>>(),
                Dtype::Uint16 => job.run::<$fold<u16>>(),
                Dtype::Uint32 => job.run::<$fold<u32>>(),
                Dtype::Uint64 => job.run::<$fold<u64>>(),
                Dtype::Int8 => job.run::<$fold<i8>>(),
                Dtype::Int16 => job.run::<$fold<i16>>(),
                Dtype::Int32 => job.run::<$fold<i32>>(),
                _ => job.run::<$fold<i64>>(),
            }
        };
    }
    use Dtype::{Bfloat16, Complex64, Float16, Float32, Float64};
    match (op.kind, tape.dtype()) {
        (Sum, Float16 | Bfloat16 | Float32) => job.run::<SumF32>(),
        (Sum, Float64) => job.run::<SumF64>(),
        (Sum, Complex64) => job.run::<SumC64>(),
        (Sum, _) => integers!(SumInt),
        (Prod, Float16 | Bfloat16 | Float32) => job.run::<ProdFloat<f32>>(),
        (Prod, Float64) => job.run::<ProdFloat<f64>>(),
        (Prod, Complex64) => job.run::<ProdC64>(),
        (Prod, _) => integers!(ProdInt),
        (Max, Float16 | Bfloat16 | Float32) => job.run::<MaxF32<true>>(),
        (Min, Float16 | Bfloat16 | Float32) => job.run::<MaxF32<false>>(),
        (Max, Float64) => job.run::<MaxF64<true>>(),
        (Min, Float64) => job.run::<MaxF64<false>>(),
        (Max, Complex64) => job.run::<MaxC64<true>>(),
        (Min, Complex64) => job.run::<MaxC64<false>>(),
        (Max, _) => integers!(MaxInt),
        (Min, _) => integers!(MinInt),
        (All, _) => job.run::<Logic<true>>(),
        (Any, _) => job.run::<Logic<false>>(),
    }
    Ok(())
}

struct Job<'a> {
    tape: &'a Tape,
    op: &'a Reduce,
    inputs: &'a [Tensor],
    consts: &'a [u64],
    output: &'a Tensor,
}

#[derive(Clone, Copy)]
struct Out(*mut u8);
// SAFETY: tasks write different elements of the output.
unsafe impl Send for Out {}
// SAFETY: as above.
unsafe impl Sync for Out {}
impl Out {
    fn at(self, offset: usize) -> *mut u8 {
        self.0.wrapping_add(offset)
    }
}

impl Job<'_> {
    fn run<F: Fold>(self) {
        let outputs = self.output.size();
        if outputs == 0 {
            return;
        }
        let reduced: SmallVec<[usize; 6]> = self.op.axes.iter().copied().collect();
        let kept: SmallVec<[usize; 6]> = (0..self.op.from.len()).filter(|i| !reduced.contains(i)).collect();
        let count: usize = reduced.iter().map(|&i| self.op.from[i]).product();
        if count == 0 {
            for i in 0..outputs {
                // SAFETY: element `i` of the row-major output.
                unsafe { F::finish(F::START, self.output.dtype, self.output.ptr().add(i * self.output.dtype.size())) };
            }
            return;
        }
        match self.contiguous_kept_axis(&kept, &reduced) {
            Some(column) => self.side_by_side::<F>(&kept, &reduced, column, count),
            None => self.row_by_row::<F>(&kept, &reduced, count),
        }
    }

    /// A kept axis along which memory is contiguous while it is not along reduced ones.
    fn contiguous_kept_axis(&self, kept: &[usize], reduced: &[usize]) -> Option<usize> {
        let lead = self.inputs.iter().max_by_key(|t| t.strides.iter().filter(|&&s| s != 0).count())?;
        let stride = |i: usize| lead.strides[i].unsigned_abs();
        let best = kept.iter().copied().rev().find(|&i| self.op.from[i] >= 16 && stride(i) == 1)?;
        reduced.iter().all(|&i| self.op.from[i] == 1 || stride(i) > 1).then_some(best)
    }

    /// The loop nest that visits `axes` in this order, outermost first.
    fn nest(&self, axes: &[usize]) -> Loops {
        let mut order: SmallVec<[isize; 6]> = SmallVec::from_elem(0, self.op.from.len());
        let mut next = 1isize;
        for &i in axes.iter().rev() {
            order[i] = next;
            next *= self.op.from[i] as isize;
        }
        let mut operands: SmallVec<[&[isize]; 8]> = SmallVec::new();
        operands.push(&order);
        operands.extend(self.inputs.iter().map(|t| &*t.strides));
        Loops::new(&self.op.from, &operands)
    }

    /// Output elements are runs of the nest: `count` values each.
    fn row_by_row<F: Fold>(&self, kept: &[usize], reduced: &[usize], count: usize) {
        let axes: SmallVec<[usize; 6]> = kept.iter().chain(reduced).copied().collect();
        let loops = self.nest(&axes);
        let program = Program::new(self.tape, self.inputs, &loops);
        let outputs = self.output.size();
        let spans = count.div_ceil(BLOCK * SPAN);
        let (dtype, out) = (self.output.dtype, Out(self.output.ptr()));
        let fold_span = |scratch: *mut u8, row: usize, span: usize| -> F::Acc {
            let mut acc = F::START;
            let mut at = span * BLOCK * SPAN;
            let end = count.min(at + BLOCK * SPAN);
            while at < end {
                let n = BLOCK.min(end - at);
                // SAFETY: the scratch was prepared for blocks; the range lies in the nest.
                let part = unsafe {
                    let values = program.tile_at(scratch, BLOCK, row * count + at, n, None);
                    F::block(values.cast(), n)
                };
                acc = F::merge(acc, part);
                at += n;
            }
            acc
        };
        let scratch_bytes = program.scratch_bytes(BLOCK);
        if spans == 1 {
            let grain = (SPAN * BLOCK / 2).div_ceil(count);
            pool::for_each_chunk(outputs, grain, &|range| {
                with_scratch(scratch_bytes, |scratch| {
                    // SAFETY: the scratch is large enough; chunks write different outputs.
                    unsafe {
                        program.prepare(scratch, BLOCK, self.consts);
                        for row in range {
                            F::finish(fold_span(scratch, row, 0), dtype, out.at(row * dtype.size()));
                        }
                    }
                });
            });
            return;
        }
        let mut parts = vec![F::START; outputs * spans];
        pool::for_each_chunk_mut(&mut parts, 1, &|first, parts| {
            with_scratch(scratch_bytes, |scratch| {
                // SAFETY: the scratch is large enough.
                unsafe { program.prepare(scratch, BLOCK, self.consts) };
                for (i, part) in parts.iter_mut().enumerate() {
                    *part = fold_span(scratch, (first + i) / spans, (first + i) % spans);
                }
            });
        });
        for (row, parts) in parts.chunks_exact(spans).enumerate() {
            let acc = parts.iter().copied().fold(F::START, F::merge);
            // SAFETY: element `row` of the output.
            unsafe { F::finish(acc, dtype, out.at(row * dtype.size())) };
        }
    }

    /// The innermost loop is a kept axis: rows of `width` values are folded into `width` accumulators.
    fn side_by_side<F: Fold>(&self, kept: &[usize], reduced: &[usize], column: usize, count: usize) {
        let others: SmallVec<[usize; 6]> = kept.iter().copied().filter(|&i| i != column).collect();
        let mut axes = others.clone();
        axes.extend(reduced.iter().copied());
        axes.push(column);
        let loops = self.nest(&axes);
        let program = Program::new(self.tape, self.inputs, &loops);
        let width = self.op.from[column];
        let planes: usize = others.iter().map(|&i| self.op.from[i]).product();
        let (bands, spans) = (width.div_ceil(BLOCK), count.div_ceil(ROWS));
        let (dtype, out) = (self.output.dtype, Out(self.output.ptr()));
        let out_strides = lapis_core::shape::row_strides(&self.output.shape);
        let out_step = out_strides[column] as usize;
        let out_base = |mut plane: usize| -> usize {
            let mut offset = 0;
            for &i in others.iter().rev() {
                offset += plane % self.op.from[i] * out_strides[i] as usize;
                plane /= self.op.from[i];
            }
            offset
        };
        let scratch_bytes = program.scratch_bytes(BLOCK);
        let fold_rows = |plane: usize, band: usize, span: usize, acc: &mut [F::Acc]| {
            with_scratch(scratch_bytes, |scratch| {
                // SAFETY: the scratch is large enough; rows lie in the nest.
                unsafe {
                    program.prepare(scratch, BLOCK, self.consts);
                    for row in span * ROWS..count.min(span * ROWS + ROWS) {
                        let start = (plane * count + row) * width + band * BLOCK;
                        let values = program.tile_at(scratch, BLOCK, start, acc.len(), None);
                        simd::dispatch(PushRow::<F> { acc, values: values.cast() });
                    }
                }
            });
        };
        let finish = |plane: usize, band: usize, acc: &[F::Acc]| {
            let base = out_base(plane);
            for (i, &a) in acc.iter().enumerate() {
                let at = base + (band * BLOCK + i) * out_step;
                // SAFETY: an element of the output; tasks have different planes or bands.
                unsafe { F::finish(a, dtype, out.at(at * dtype.size())) };
            }
        };
        let cols = |band: usize| BLOCK.min(width - band * BLOCK);
        if spans == 1 {
            pool::run(planes * bands, &|task| {
                let (plane, band) = (task / bands, task % bands);
                let mut acc = [F::START; BLOCK];
                fold_rows(plane, band, 0, &mut acc[..cols(band)]);
                finish(plane, band, &acc[..cols(band)]);
            });
            return;
        }
        let mut parts = vec![F::START; planes * bands * spans * BLOCK];
        pool::for_each_chunk_mut(&mut parts, BLOCK, &|first, acc| {
            let task = first / BLOCK;
            let (plane, band, span) = (task / (bands * spans), task / spans % bands, task % spans);
            fold_rows(plane, band, span, &mut acc[..cols(band)]);
        });
        for (task, parts) in parts.chunks_exact_mut(BLOCK * spans).enumerate() {
            let (acc, rest) = parts.split_at_mut(BLOCK);
            for part in rest.chunks_exact(BLOCK) {
                acc.iter_mut().zip(part).for_each(|(a, &b)| *a = F::merge(*a, b));
            }
            finish(task / bands, task % bands, &acc[..cols(task % bands)]);
        }
    }
}

struct PushRow<'a, F: Fold> {
    acc: &'a mut [F::Acc],
    values: *const F::In,
}

impl<F: Fold> Kernel for PushRow<'_, F> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (i, acc) in self.acc.iter_mut().enumerate() {
            // SAFETY: there are as many values as accumulators.
            *acc = F::push(*acc, unsafe { self.values.add(i).read() });
        }
    }
}

// ------------------------------------------------------------------ folds

/// Stores a double as f32, f16, bf16 or f64.
unsafe fn finish_float(x: f64, dtype: Dtype, out: *mut u8) {
    // SAFETY: the caller vouches for one element.
    unsafe {
        match dtype {
            Dtype::Float16 => out.cast::<f16>().write(f16::from_f64(x)),
            Dtype::Bfloat16 => out.cast::<bf16>().write(bf16::from_f64(x)),
            Dtype::Float32 => out.cast::<f32>().write(x as f32),
            _ => out.cast::<f64>().write(x),
        }
    }
}

struct SumF32;
impl Fold for SumF32 {
    type In = f32;
    type Acc = f64;
    const START: f64 = 0.0;
    #[inline(always)]
    fn push(acc: f64, x: f32) -> f64 {
        acc + f64::from(x)
    }
    #[inline(always)]
    fn merge(a: f64, b: f64) -> f64 {
        a + b
    }
    unsafe fn block(p: *const f32, n: usize) -> f64 {
        simd::dispatch(SumBlock(p, n))
    }
    unsafe fn finish(acc: f64, dtype: Dtype, out: *mut u8) {
        // SAFETY: passed on.
        unsafe { finish_float(acc, dtype, out) }
    }
}

/// The sum of a block: four vectors of partial sums, combined in a fixed order.
struct SumBlock(*const f32, usize);
impl Kernel for SumBlock {
    type Out = f64;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        let SumBlock(p, n) = self;
        let mut acc = [s.f32(0.0); 4];
        let mut i = 0;
        // SAFETY: whoever made this vouches for `n` elements.
        unsafe {
            while i + 4 * LANES32 <= n {
                for (k, a) in acc.iter_mut().enumerate() {
                    *a = *a + S::F32::load(s, p.add(i + k * LANES32));
                }
                i += 4 * LANES32;
            }
            let mut k = 0;
            while i < n {
                acc[k] = acc[k] + S::F32::load_n(s, p.add(i), LANES32.min(n - i));
                i += LANES32;
                k += 1;
            }
        }
        f64::from(((acc[0] + acc[1]) + (acc[2] + acc[3])).reduce_add())
    }
}

struct SumF64;
impl Fold for SumF64 {
    type In = f64;
    type Acc = f64;
    const START: f64 = 0.0;
    #[inline(always)]
    fn push(acc: f64, x: f64) -> f64 {
        acc + x
    }
    #[inline(always)]
    fn merge(a: f64, b: f64) -> f64 {
        a + b
    }
    unsafe fn block(p: *const f64, n: usize) -> f64 {
        let mut lanes = [0.0; 16];
        for i in 0..n {
            // SAFETY: the caller vouches for `n` elements.
            lanes[i % 16] += unsafe { p.add(i).read() };
        }
        lanes.chunks_exact(4).map(|c| (c[0] + c[1]) + (c[2] + c[3])).sum()
    }
    unsafe fn finish(acc: f64, dtype: Dtype, out: *mut u8) {
        // SAFETY: passed on.
        unsafe { finish_float(acc, dtype, out) }
    }
}

struct ProdFloat<T>(PhantomData<T>);
impl<T: Copy + Into<f64> + Sync> Fold for ProdFloat<T> {
    type In = T;
    type Acc = f64;
    const START: f64 = 1.0;
    #[inline(always)]
    fn push(acc: f64, x: T) -> f64 {
        acc * x.into()
    }
    #[inline(always)]
    fn merge(a: f64, b: f64) -> f64 {
        a * b
    }
    unsafe fn finish(acc: f64, dtype: Dtype, out: *mut u8) {
        // SAFETY: passed on.
        unsafe { finish_float(acc, dtype, out) }
    }
}

type C = Complex<f64>;
struct SumC64;
impl Fold for SumC64 {
    type In = c64;
    type Acc = C;
    const START: C = C::new(0.0, 0.0);
    #[inline(always)]
    fn push(acc: C, x: c64) -> C {
        C::new(acc.re + f64::from(x.re), acc.im + f64::from(x.im))
    }
    #[inline(always)]
    fn merge(a: C, b: C) -> C {
        a + b
    }
    unsafe fn finish(acc: C, _: Dtype, out: *mut u8) {
        // SAFETY: the caller vouches for one element.
        unsafe { out.cast::<c64>().write(c64::new(acc.re as f32, acc.im as f32)) }
    }
}
struct ProdC64;
impl Fold for ProdC64 {
    type In = c64;
    type Acc = C;
    const START: C = C::new(1.0, 0.0);
    #[inline(always)]
    fn push(acc: C, x: c64) -> C {
        acc * C::new(f64::from(x.re), f64::from(x.im))
    }
    #[inline(always)]
    fn merge(a: C, b: C) -> C {
        a * b
    }
    unsafe fn finish(acc: C, dtype: Dtype, out: *mut u8) {
        // SAFETY: passed on.
        unsafe { SumC64::finish(acc, dtype, out) }
    }
}

/// Sums and products of integers wrap, so they may be taken in any width.
trait Whole: Copy + Ord + Sync + Send {
    const LOWEST: Self;
    const HIGHEST: Self;
    fn bits(self) -> u64;
}
macro_rules! whole {
    ($($t:ident)*) => {$(
        impl Whole for $t {
            const LOWEST: $t = $t::MIN;
            const HIGHEST: $t = $t::MAX;
            #[inline(always)]
            fn bits(self) -> u64 {
                self as i64 as u64
            }
        }
    )*};
}
whole!(u8 u16 u32 u64 i8 i16 i32 i64);

unsafe fn finish_int(acc: u64, dtype: Dtype, out: *mut u8) {
    let bytes = acc.to_le_bytes();
    // SAFETY: the caller vouches for one element of `dtype`.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), out, dtype.size()) }
}

macro_rules! integer_fold {
    ($name:ident, $acc:ty, $start:expr, |$a:ident, $x:ident| $push:expr, |$p:ident, $q:ident| $merge:expr, $bits:expr) => {
        struct $name<T>(PhantomData<T>);
        impl<T: Whole> Fold for $name<T> {
            type In = T;
            type Acc = $acc;
            const START: $acc = $start;
            #[inline(always)]
            fn push($a: $acc, $x: T) -> $acc {
                $push
            }
            #[inline(always)]
            fn merge($p: $acc, $q: $acc) -> $acc {
                $merge
            }
            unsafe fn finish(acc: $acc, dtype: Dtype, out: *mut u8) {
                // SAFETY: passed on.
                unsafe { finish_int($bits(acc), dtype, out) }
            }
        }
    };
}
integer_fold!(SumInt, u64, 0, |a, x| a.wrapping_add(x.bits()), |p, q| p.wrapping_add(q), |b: u64| b);
integer_fold!(ProdInt, u64, 1, |a, x| a.wrapping_mul(x.bits()), |p, q| p.wrapping_mul(q), |b: u64| b);
integer_fold!(MaxInt, T, T::LOWEST, |a, x| a.max(x), |p, q| p.max(q), |b: T| b.bits());
integer_fold!(MinInt, T, T::HIGHEST, |a, x| a.min(x), |p, q| p.min(q), |b: T| b.bits());

/// Largest (or smallest) value; NaN once one was seen.
struct MaxF32<const MAX: bool>;
impl<const MAX: bool> Fold for MaxF32<MAX> {
    type In = f32;
    type Acc = f32;
    const START: f32 = if MAX { f32::NEG_INFINITY } else { f32::INFINITY };
    #[inline(always)]
    fn push(acc: f32, x: f32) -> f32 {
        let better = if MAX { x > acc } else { x < acc };
        if better || x.is_nan() { x } else { acc }
    }
    #[inline(always)]
    fn merge(a: f32, b: f32) -> f32 {
        if a.is_nan() { a } else { Self::push(a, b) }
    }
    unsafe fn block(p: *const f32, n: usize) -> f32 {
        simd::dispatch(MaxBlock::<MAX>(p, n))
    }
    unsafe fn finish(acc: f32, dtype: Dtype, out: *mut u8) {
        // SAFETY: passed on.
        unsafe { finish_float(f64::from(acc), dtype, out) }
    }
}

struct MaxBlock<const MAX: bool>(*const f32, usize);
impl<const MAX: bool> Kernel for MaxBlock<MAX> {
    type Out = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let MaxBlock(p, n) = self;
        let start = MaxF32::<MAX>::START;
        let mut acc = [s.f32(start); 2];
        let mut nan = s.f32(0.0).is_nan();
        let mut i = 0;
        // SAFETY: whoever made this vouches for `n` elements.
        unsafe {
            while i < n {
                let m = LANES32.min(n - i);
                let mut v = if m == LANES32 { S::F32::load(s, p.add(i)) } else { S::F32::load_n(s, p.add(i), m) };
                if m < LANES32 {
                    v = S::F32::select(S::M32::first(s, m), v, s.f32(start));
                }
                nan = nan | v.is_nan();
                let a = &mut acc[i / LANES32 % 2];
                *a = if MAX { v.max(*a) } else { v.min(*a) };
                i += LANES32;
            }
        }
        if nan.any() {
            return f32::NAN;
        }
        if MAX { acc[0].max(acc[1]).reduce_max() } else { acc[0].min(acc[1]).reduce_min() }
    }
}

struct MaxF64<const MAX: bool>;
impl<const MAX: bool> Fold for MaxF64<MAX> {
    type In = f64;
    type Acc = f64;
    const START: f64 = if MAX { f64::NEG_INFINITY } else { f64::INFINITY };
    #[inline(always)]
    fn push(acc: f64, x: f64) -> f64 {
        let better = if MAX { x > acc } else { x < acc };
        if (better || x.is_nan()) && !acc.is_nan() { x } else { acc }
    }
    #[inline(always)]
    fn merge(a: f64, b: f64) -> f64 {
        Self::push(a, b)
    }
    unsafe fn finish(acc: f64, dtype: Dtype, out: *mut u8) {
        // SAFETY: passed on.
        unsafe { finish_float(acc, dtype, out) }
    }
}

/// By real part, then imaginary part.
struct MaxC64<const MAX: bool>;
impl<const MAX: bool> Fold for MaxC64<MAX> {
    type In = c64;
    type Acc = Option<c64>;
    const START: Option<c64> = None;
    fn push(acc: Option<c64>, x: c64) -> Option<c64> {
        let Some(a) = acc else { return Some(x) };
        let nan = |z: c64| z.re.is_nan() || z.im.is_nan();
        let better = if MAX { (x.re, x.im) > (a.re, a.im) } else { (x.re, x.im) < (a.re, a.im) };
        Some(if !nan(a) && (nan(x) || better) { x } else { a })
    }
    fn merge(a: Option<c64>, b: Option<c64>) -> Option<c64> {
        b.map_or(a, |b| Self::push(a, b))
    }
    unsafe fn finish(acc: Option<c64>, _: Dtype, out: *mut u8) {
        // SAFETY: the caller vouches for one element.
        unsafe { out.cast::<c64>().write(acc.unwrap_or_default()) }
    }
}

/// All (or any) of bytes 0 and 1.
struct Logic<const ALL: bool>;
impl<const ALL: bool> Fold for Logic<ALL> {
    type In = u8;
    type Acc = u8;
    const START: u8 = ALL as u8;
    #[inline(always)]
    fn push(acc: u8, x: u8) -> u8 {
        if ALL { acc & x } else { acc | x }
    }
    #[inline(always)]
    fn merge(a: u8, b: u8) -> u8 {
        Self::push(a, b)
    }
    unsafe fn finish(acc: u8, _: Dtype, out: *mut u8) {
        // SAFETY: the caller vouches for one element.
        unsafe { out.write(acc) }
    }
}
