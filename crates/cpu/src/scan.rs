//! Running reductions, line by line. Floats are summed and multiplied in f64 (complex in pairs of them) and rounded
//! once an element, so that half precision loses nothing on the way.
//!
//! Long lines are cut into runs of a fixed length, so that a result depends on its line alone. Threads first take the
//! total of each run, then scan each run and merge it with the total of those before. A running sum of positive numbers
//! never falls: the last element of a run is the total up to there, to the bit.

use crate::lines::{Lines, for_lines};
use crate::pool;
use lapis_core::buffer::Tensor;
use lapis_core::dtype::{Dtype, bf16, c64, f16};
use lapis_core::error::{Error, Result};
use lapis_core::ops::{Scan, ScanKind};
use num_complex::Complex;
use std::ops::Range;

type C = Complex<f64>;

/// Elements of a run. Part of the meaning of a result: changing it changes roundings.
const RUN: usize = 2048;
/// Runs that one task takes. Their totals are made side by side: one addition after the other would wait for itself.
const RUNS: usize = 8;

/// Computes a scan.
pub(crate) fn run(op: &Scan, input: &Tensor, out: &mut Tensor) -> Result<()> {
    use ScanKind::{LogAddExp, Max, Min, Prod, Sum};
    macro_rules! int {
        ($t:ty) => {
            match op.kind {
                Sum => lines::<$t, $t>(op, input, out, 0, |x| x, |a, x| a.wrapping_add(x), |a| a),
                Prod => lines::<$t, $t>(op, input, out, 1, |x| x, |a, x| a.wrapping_mul(x), |a| a),
                Max => lines::<$t, $t>(op, input, out, <$t>::MIN, |x| x, |a, x| a.max(x), |a| a),
                Min => lines::<$t, $t>(op, input, out, <$t>::MAX, |x| x, |a, x| a.min(x), |a| a),
                LogAddExp => return unsupported(op, input.dtype),
            }
        };
    }
    macro_rules! float {
        ($t:ty, $up:expr, $down:expr) => {
            match op.kind {
                Sum => lines::<$t, f64>(op, input, out, 0.0, $up, |a, x| a + x, $down),
                Prod => lines::<$t, f64>(op, input, out, 1.0, $up, |a, x| a * x, $down),
                Max => lines::<$t, f64>(op, input, out, f64::NEG_INFINITY, $up, larger, $down),
                Min => lines::<$t, f64>(op, input, out, f64::INFINITY, $up, |a, x| -larger(-a, -x), $down),
                LogAddExp => {
                    // The running value is max + ln(sum): exact enough in f64 for every narrower type.
                    lines::<$t, f64>(op, input, out, f64::NEG_INFINITY, $up, log_add, $down)
                }
            }
        };
    }
    match input.dtype {
        Dtype::Bool => match op.kind {
            Sum | Max => lines::<u8, u8>(op, input, out, 0, |x| x, |a, x| a | x, |a| a),
            _ => lines::<u8, u8>(op, input, out, 1, |x| x, |a, x| a & x, |a| a),
        },
        Dtype::Uint8 => int!(u8),
        Dtype::Uint16 => int!(u16),
        Dtype::Uint32 => int!(u32),
        Dtype::Uint64 => int!(u64),
        Dtype::Int8 => int!(i8),
        Dtype::Int16 => int!(i16),
        Dtype::Int32 => int!(i32),
        Dtype::Int64 => int!(i64),
        Dtype::Float16 => float!(f16, f16::to_f64, f16::from_f64),
        Dtype::Bfloat16 => float!(bf16, bf16::to_f64, bf16::from_f64),
        Dtype::Float32 => float!(f32, f64::from, |a| a as f32),
        Dtype::Float64 => float!(f64, |x: f64| x, |a| a),
        Dtype::Complex64 => complex(op, input, out)?,
    }
    Ok(())
}

fn unsupported(op: &Scan, dtype: Dtype) -> Result<()> {
    Err(Error::dtype(format!("[{:?}] {dtype} is not a type it takes", op.kind)))
}

fn larger(a: f64, x: f64) -> f64 {
    if a > x || a.is_nan() { a } else { x }
}

fn log_add(a: f64, x: f64) -> f64 {
    if a.is_nan() || x.is_nan() {
        return f64::NAN;
    }
    let (hi, lo) = if a > x { (a, x) } else { (x, a) };
    if lo == f64::NEG_INFINITY || hi == f64::INFINITY { hi } else { hi + (lo - hi).exp().ln_1p() }
}

fn complex(op: &Scan, input: &Tensor, out: &Tensor) -> Result<()> {
    let up = |z: c64| C::new(f64::from(z.re), f64::from(z.im));
    let down = |z: C| c64::new(z.re as f32, z.im as f32);
    let key = |z: C| (z.re, z.im);
    let nan = |z: C| z.re.is_nan() || z.im.is_nan();
    let (lo, hi) = (C::new(f64::NEG_INFINITY, f64::NEG_INFINITY), C::new(f64::INFINITY, f64::INFINITY));
    match op.kind {
        ScanKind::Sum => lines(op, input, out, C::new(0.0, 0.0), up, |a, x| a + x, down),
        ScanKind::Prod => lines(op, input, out, C::new(1.0, 0.0), up, |a, x| a * x, down),
        ScanKind::Max => {
            let f = |a: C, x: C| if nan(a) || (!nan(x) && key(a) > key(x)) { a } else { x };
            lines(op, input, out, lo, up, f, down);
        }
        ScanKind::Min => {
            let f = |a: C, x: C| if nan(a) || (!nan(x) && key(a) < key(x)) { a } else { x };
            lines(op, input, out, hi, up, f, down);
        }
        ScanKind::LogAddExp => {
            let f = |a: C, x: C| {
                let (hi, lo) = if a.re > x.re { (a, x) } else { (x, a) };
                if lo.re == f64::NEG_INFINITY { hi } else { hi + (C::new(1.0, 0.0) + (lo - hi).exp()).ln() }
            };
            lines(op, input, out, C::new(f64::NEG_INFINITY, 0.0), up, f, down);
        }
    }
    Ok(())
}

/// One scan: `up` widens an element, `merge` is the operation and `start` its neutral element, `down` rounds.
fn lines<T: Copy, A: Copy + Send + Sync>(
    op: &Scan,
    input: &Tensor,
    out: &Tensor,
    start: A,
    up: impl Fn(T) -> A + Sync,
    merge: impl Fn(A, A) -> A + Sync,
    down: impl Fn(A) -> T + Sync,
) {
    let (from, to) = (Lines::new(input, op.axis), Lines::new(out, op.axis));
    let len = from.len;
    // Reads the elements `part` of line `i`, counted in the direction of the scan; returns their first place.
    let read = |i: usize, part: Range<usize>, block: &mut Vec<T>| {
        let place = if op.reverse { len - part.end..len - part.start } else { part };
        // SAFETY: `T` is the dtype; a task writes only what no other one reads at the same time.
        unsafe { from.read_part(i, place.clone(), block) };
        if op.reverse {
            block.reverse();
        }
        place.start
    };
    let write = |i: usize, first: usize, block: &mut [T]| {
        if op.reverse {
            block.reverse();
        }
        // SAFETY: as above; every element is written by one task.
        unsafe { to.write_part(i, first, block) };
    };
    let scan = |run: &mut [T], before: Option<A>| {
        let mut acc = start;
        for v in run {
            let next = merge(acc, up(*v));
            let own = if op.inclusive { next } else { acc };
            *v = down(before.map_or(own, |before| merge(before, own)));
            acc = next;
        }
    };
    if len <= RUN {
        for_lines(from.count(), len, &|range| {
            let mut line = Vec::new();
            for i in range {
                read(i, 0..len, &mut line);
                scan(&mut line, None);
                write(i, 0, &mut line);
            }
        });
        return;
    }

    let tasks = len.div_ceil(RUN * RUNS);
    let part = |task: usize| task % tasks * RUN * RUNS..len.min((task % tasks + 1) * RUN * RUNS);
    // One a run; those behind the end of a line stay unused.
    let mut totals = vec![start; from.count() * tasks * RUNS];
    pool::for_each_chunk_mut(&mut totals, RUNS, &|first, totals| {
        let (task, mut block) = (first / RUNS, Vec::new());
        read(task / tasks, part(task), &mut block);
        reduce(&block, totals, &up, &merge);
    });
    for line in totals.chunks_exact_mut(tasks * RUNS) {
        let mut before = line[0];
        for total in &mut line[1..] {
            (*total, before) = (before, merge(before, *total));
        }
    }
    pool::run(from.count() * tasks, &|task| {
        let mut block = Vec::new();
        let first = read(task / tasks, part(task), &mut block);
        for (i, run) in block.chunks_mut(RUN).enumerate() {
            let before = (part(task).start + i > 0).then(|| totals[task * RUNS + i]);
            scan(run, before);
        }
        write(task / tasks, first, &mut block);
    });
}

/// The totals of the runs of a block, each in ascending order.
#[inline(always)]
fn reduce<T: Copy, A: Copy>(block: &[T], totals: &mut [A], up: impl Fn(T) -> A, merge: impl Fn(A, A) -> A) {
    match (block.as_chunks::<RUN>(), <&mut [A; RUNS]>::try_from(&mut *totals)) {
        ((runs, []), Ok(totals)) if runs.len() == RUNS => {
            let mut own = *totals;
            for i in 0..RUN {
                for (total, run) in own.iter_mut().zip(runs) {
                    *total = merge(*total, up(run[i]));
                }
            }
            *totals = own;
        }
        _ => {
            for (total, run) in totals.iter_mut().zip(block.chunks(RUN)) {
                *total = run.iter().fold(*total, |a, &x| merge(a, up(x)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;
    use bytemuck::Pod;

    fn tensor<T: Pod>(values: &[T], shape: &[usize], dtype: Dtype) -> Tensor {
        Tensor::row_major(memory::upload(bytemuck::cast_slice(values)).unwrap(), shape.into(), dtype)
    }

    fn scanned<T: Pod>(kind: ScanKind, axis: usize, reverse: bool, inclusive: bool, x: &Tensor) -> Vec<T> {
        let zeros = vec![0u8; x.nbytes()];
        let mut out = Tensor::row_major(memory::upload(&zeros).unwrap(), x.shape.clone(), x.dtype);
        run(&Scan { kind, axis, reverse, inclusive }, x, &mut out).unwrap();
        bytemuck::pod_collect_to_vec(out.contiguous_bytes())
    }

    /// Values in 0 .. 1.
    fn noise(n: usize) -> Vec<f64> {
        (0..n).map(|i| ((i + 1) as f64 * 0.618_033_988_749_894_9).fract()).collect()
    }

    #[test]
    fn long_lines_equal_a_plain_loop() {
        for n in [RUN - 1, RUN, RUN + 1, 3 * RUN + 5, RUN * RUNS, RUN * RUNS + 1, 3 * RUN * RUNS + RUN + 17] {
            let ints: Vec<i32> = noise(n).iter().map(|x| ((x - 0.4) * 4e9) as i32).collect();
            let floats: Vec<f32> = noise(n).iter().map(|&x| x as f32 - 0.4).collect();
            for (reverse, inclusive) in [(false, true), (false, false), (true, true), (true, false)] {
                let order: Vec<usize> = if reverse { (0..n).rev().collect() } else { (0..n).collect() };
                let (mut sum, mut largest, mut total) = (0i32, i32::MIN, 0f64);
                let (mut sums, mut maxima, mut totals) = (vec![0; n], vec![0; n], vec![0.0; n]);
                for i in order {
                    (sums[i], maxima[i], totals[i]) = (sum, largest, total);
                    (sum, largest) = (sum.wrapping_add(ints[i]), largest.max(ints[i]));
                    total += f64::from(floats[i]);
                    if inclusive {
                        (sums[i], maxima[i], totals[i]) = (sum, largest, total);
                    }
                }
                let x = tensor(&ints, &[n], Dtype::Int32);
                assert_eq!(scanned::<i32>(ScanKind::Sum, 0, reverse, inclusive, &x), sums, "{n} {reverse} {inclusive}");
                assert_eq!(
                    scanned::<i32>(ScanKind::Max, 0, reverse, inclusive, &x),
                    maxima,
                    "{n} {reverse} {inclusive}"
                );
                let x = tensor(&floats, &[n], Dtype::Float32);
                for (got, want) in scanned::<f32>(ScanKind::Sum, 0, reverse, inclusive, &x).iter().zip(&totals) {
                    // One rounding to f32.
                    assert!((f64::from(*got) - want).abs() <= want.abs() * 6e-8 + 1e-9, "{got} in place of {want}");
                }
            }
        }
    }

    #[test]
    fn bits_depend_on_the_line_alone() {
        let n = 2 * RUN * RUNS + 3 * RUN + 1;
        let values = noise(2 * n);
        for kind in [ScanKind::Sum, ScanKind::LogAddExp] {
            let whole = scanned::<f64>(kind, 1, false, true, &tensor(&values, &[2, n], Dtype::Float64));
            let columns: Vec<f64> = (0..2 * n).map(|i| values[i % 2 * n + i / 2]).collect();
            for threads in [1, 2, 5] {
                pool::with_threads(threads, || {
                    let second = scanned::<f64>(kind, 0, false, true, &tensor(&values[n..], &[n], Dtype::Float64));
                    assert_eq!(whole[n..], second);
                    let columns = scanned::<f64>(kind, 0, false, true, &tensor(&columns, &[n, 2], Dtype::Float64));
                    assert!((0..n).all(|i| columns[2 * i + 1] == second[i]));
                });
            }
        }
    }

    #[test]
    fn a_sum_of_positive_numbers_never_falls() {
        let x: Vec<f64> = noise(20 * RUN).iter().map(|x| x * 1e-13).collect();
        let sums = scanned::<f64>(ScanKind::Sum, 0, false, true, &tensor(&x, &[x.len()], Dtype::Float64));
        assert!(sums.is_sorted());
    }
}
