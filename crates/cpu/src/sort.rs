//! Sorting, partitioning, searching and arg reductions, line by line; one long line is sorted in parallel runs.
//!
//! Order: NaN last, equal elements keep their order. Work is n log n comparisons; memory is touched a few times.

use crate::lines::{Lane, Lines, for_lines, with_lane};
use crate::pool;
use crate::simd::{self, Kernel, Simd};
use lapis_core::buffer::Tensor;
use lapis_core::dtype::Dtype;
use lapis_core::error::Result;
use lapis_core::ops::{ArgReduce, SearchSorted, Sort};
use std::cmp::Ordering;

fn compare<T: Lane>(a: &T, b: &T) -> Ordering {
    if a.before(*b) {
        Ordering::Less
    } else if b.before(*a) {
        Ordering::Greater
    } else {
        Ordering::Equal
    }
}

/// Sorts or partitions along an axis.
pub(crate) fn sort(op: &Sort, input: &Tensor, out: &mut Tensor) -> Result<()> {
    let dtype = input.dtype;
    match op.positions {
        false => with_lane!(dtype, values(op, input, out)),
        true => with_lane!(dtype, positions(op, input, out)),
    }
    Ok(())
}

fn values<T: Lane>(op: &Sort, input: &Tensor, out: &Tensor) {
    let (from, to) = (Lines::new(input, op.axis), Lines::new(out, op.axis));
    for_lines(from.count(), from.len, &|range| {
        let mut line: Vec<T> = Vec::new();
        for i in range {
            // SAFETY: `T` is the dtype; every line is written by one task.
            unsafe { from.read(i, &mut line) };
            arrange(&mut line, op.kth, compare);
            // SAFETY: as above.
            unsafe { to.write(i, &line) };
        }
    });
}

fn positions<T: Lane>(op: &Sort, input: &Tensor, out: &Tensor) {
    let (from, to) = (Lines::new(input, op.axis), Lines::new(out, op.axis));
    for_lines(from.count(), from.len, &|range| {
        let mut line: Vec<T> = Vec::new();
        for i in range {
            // SAFETY: `T` is the dtype; every line is written by one task.
            unsafe { from.read(i, &mut line) };
            let mut pairs: Vec<(T, u32)> = line.iter().enumerate().map(|(k, &v)| (v, k as u32)).collect();
            arrange(&mut pairs, op.kth, |a, b| compare(&a.0, &b.0));
            let order: Vec<u32> = pairs.iter().map(|p| p.1).collect();
            // SAFETY: as above; the output is uint32.
            unsafe { to.write(i, &order) };
        }
    });
}

/// Sorts `line`, or puts only its `kth` element in place.
fn arrange<T: Copy + Send + Sync>(line: &mut Vec<T>, kth: Option<usize>, compare: fn(&T, &T) -> Ordering) {
    match kth {
        Some(k) => {
            if k < line.len() {
                line.select_nth_unstable_by(k, compare);
            }
        }
        None if line.len() < 1 << 16 => line.sort_by(compare),
        None => sort_in_runs(line, compare),
    }
}

/// Sorts runs of fixed length in parallel and merges neighbours until one is left. Stable.
fn sort_in_runs<T: Copy + Send + Sync>(line: &mut Vec<T>, compare: fn(&T, &T) -> Ordering) {
    let mut run = 1 << 14;
    pool::for_each_chunk_mut(line, run, &|_, part| part.sort_by(compare));
    let mut other = line.clone();
    while run < line.len() {
        let from: &[T] = line;
        pool::for_each_chunk_mut(&mut other, 2 * run, &|start, out| {
            let part = &from[start..start + out.len()];
            let (mut a, mut b) = part.split_at(run.min(part.len()));
            for slot in out {
                let take_b = match (a.first(), b.first()) {
                    (Some(x), Some(y)) => compare(y, x) == Ordering::Less,
                    (None, _) => true,
                    _ => false,
                };
                let side = if take_b { &mut b } else { &mut a };
                *slot = side[0];
                *side = &side[1..];
            }
        });
        std::mem::swap(line, &mut other);
        run *= 2;
    }
}

/// Counts, for each value, the elements of a sorted sequence before its place.
pub(crate) fn search_sorted(op: &SearchSorted, sequences: &Tensor, values: &Tensor, out: &mut Tensor) -> Result<()> {
    let lead = sequences.shape.len() - 1;
    for row in 0..sequences.shape[..lead].iter().product() {
        let (sequence, values, out) = (inner(sequences, lead, row), inner(values, lead, row), inner(out, lead, row));
        with_lane!(sequence.dtype, search(op, &sequence, &values, &out));
    }
    Ok(())
}

/// What stands at place `row`, in row-major order, of the first `lead` axes.
fn inner(t: &Tensor, lead: usize, mut row: usize) -> Tensor {
    let mut offset = t.offset as isize;
    for i in (0..lead).rev() {
        offset += (row % t.shape[i]) as isize * t.strides[i] * t.dtype.size() as isize;
        row /= t.shape[i];
    }
    let (shape, strides) = (t.shape[lead..].into(), t.strides[lead..].into());
    Tensor { offset: offset as usize, shape, strides, ..t.clone() }
}

fn search<T: Lane>(op: &SearchSorted, sequence: &Tensor, values: &Tensor, out: &Tensor) {
    let mut sorted: Vec<T> = Vec::new();
    // SAFETY: `T` is the dtype of both.
    unsafe { Lines::new(sequence, 0).read(0, &mut sorted) };
    // A 0-d tensor is one line of one element.
    let (values, out) = (with_axis(values), with_axis(out));
    let axis = values.shape.len() - 1;
    let (from, to) = (Lines::new(&values, axis), Lines::new(&out, axis));
    for_lines(from.count(), from.len, &|range| {
        let mut line: Vec<T> = Vec::new();
        for i in range {
            // SAFETY: as above; every line is written by one task.
            unsafe { from.read(i, &mut line) };
            let place = |v: &T| sorted.partition_point(|x| if op.right { !v.before(*x) } else { x.before(*v) }) as u32;
            let found: Vec<u32> = line.iter().map(place).collect();
            // SAFETY: as above; the output is uint32.
            unsafe { to.write(i, &found) };
        }
    });
}

fn with_axis(t: &Tensor) -> Tensor {
    let mut t = t.clone();
    if t.shape.is_empty() {
        t.shape.push(1);
        t.strides.push(1);
    }
    t
}

/// The position of the first largest (or smallest) element of each line; a NaN wins.
pub(crate) fn arg_reduce(op: &ArgReduce, input: &Tensor, out: &mut Tensor) -> Result<()> {
    with_lane!(input.dtype, arg(op, input, out));
    Ok(())
}

/// Elements that are compared with the best so far at once.
const LOT: usize = 1024;

fn arg<T: Lane>(op: &ArgReduce, input: &Tensor, out: &Tensor) {
    let (from, to) = (Lines::new(input, op.axis), Lines::new(out, op.axis));
    for_lines(from.count(), from.len, &|range| {
        let mut lot: Vec<T> = Vec::with_capacity(LOT);
        for i in range {
            let mut best: Option<(usize, T)> = None;
            for first in (0..from.len).step_by(LOT) {
                // SAFETY: `T` is the dtype; the line has these elements.
                unsafe { from.read_part(i, first..from.len.min(first + LOT), &mut lot) };
                if let Some((_, best)) = best
                    && (best.is_nan() || !simd::dispatch(Beaten { best, lot: &lot, max: op.max }))
                {
                    continue;
                }
                for (k, &v) in lot.iter().enumerate() {
                    if best.is_none_or(|(_, best)| !best.is_nan() && (v.is_nan() || better(v, best, op.max))) {
                        best = Some((first + k, v));
                    }
                }
            }
            // SAFETY: every line is written by one task; the output is uint32.
            unsafe { to.write(i, &[best.map_or(0, |(k, _)| k as u32)]) };
        }
    });
}

#[inline(always)]
fn better<T: Lane>(v: T, best: T, max: bool) -> bool {
    if max { v.wide() > best.wide() } else { v.wide() < best.wide() }
}

/// Whether any element of a lot is better than the best so far, or a NaN.
struct Beaten<'a, T> {
    best: T,
    lot: &'a [T],
    max: bool,
}

impl<T: Lane> Kernel for Beaten<'_, T> {
    type Out = bool;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> bool {
        let Beaten { best, lot, max } = self;
        let any = |max| lot.iter().fold(false, |any, &v| any | better(v, best, max) | v.is_nan());
        if max { any(true) } else { any(false) }
    }
}
