//! Few rows times a matrix, without packing it: every element of the right side is read once, at memory speed, and
//! transposed (or not) in registers on its way into the sums.
//!
//! Bytes moved: the right side once (k * n elements). Operations: 2 * m * n * k. A transposition of 1 KB takes about 60
//! cycles beside the FMAs, so that one core could stream 40 GB/s; memory gives less. The sums run over k as in the
//! micro-kernels, to the same bits.

#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]

use super::pack::Lanes;
#[cfg(target_arch = "x86_64")]
use super::pack::{AHEAD, Lines, Quad, prefetch};
use crate::isa::Isa;
#[cfg(target_arch = "x86_64")]
use crate::isa::{SET, features};

/// Lines of a lane that are asked for at once, before those of the next: all of them, so that memory is read in the order of
/// addresses, while that of sixteen lanes (512 KiB) fits half of a second-level cache.
const WHOLE: usize = 512;
/// Where it does not: 4 KiB.
const PIECE: usize = 64;

/// Rows of a stretch of k when the rows of the right side are contiguous.
pub(crate) const STRETCH: usize = 32;

/// Rows of the kernel for `m` rows, of `tall` at most.
pub(crate) fn kernel_rows(m: usize, tall: usize) -> usize {
    match m {
        0..=2 => m,
        3..=4 => 4,
        5..=6 if tall == 6 => 6,
        5..=8 => 8,
        _ => tall,
    }
}

/// Vectors of columns of [`rows`] for a kernel of `mr` rows.
pub(crate) const fn row_vectors(mr: usize) -> usize {
    if mr <= 2 { 4 } else { 2 }
}

/// Vectors of columns of [`columns`] for a kernel of `mr` rows: where a vector is half as long, two hide the latency of
/// their sums from each other.
pub(crate) const fn column_vectors(isa: Isa, mr: usize) -> usize {
    if matches!(isa, Isa::Avx2) && mr <= 2 { 2 } else { 1 }
}

/// A kernel like [`columns`].
pub(crate) type ColumnsFn<E, P, A> = unsafe fn(&Lanes<E>, isize, usize, *const P, *mut A);
/// A kernel like [`rows`].
pub(crate) type RowsFn<E, P, A> = unsafe fn(*const E, isize, usize, usize, *const P, *mut A, bool);

/// Elements of each lane before its first whole line, where lanes lie in one set of the first-level cache, which does not keep a line
/// that is read in two parts for so many. (Where they do not, two reads of a line cost less than pieces at both ends.)
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn before_lines<Q: Quad>(lanes: &[*const Q::E]) -> usize {
    let (past, step) = (lanes[0].addr() % 64, Q::PER * size_of::<Q::E>());
    let alike = lanes.iter().all(|lane| lane.addr() % SET == lanes[0].addr() % SET);
    if past > 0 && alike && past.is_multiple_of(step) { (64 - past) / size_of::<Q::E>() } else { 0 }
}

/// All of k for NV vectors of columns that are contiguous along k: `acc` (MR rows of NV vectors) = the panel `a` times the
/// lanes. The lanes that are wanted next lie `jump` elements on.
///
/// One vector of AVX-512, because memory answers fewer rows at a time faster, though its sums wait for each other (32 steps of 4
/// cycles for a KB of bfloat16 and one row, where memory takes 170).
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn columns<Q: Quad, const MR: usize, const NV: usize>(
    lanes: &Lanes<Q::E>,
    jump: isize,
    k: usize,
    a: *const Q::P,
    acc: *mut Q::A,
) {
    // SAFETY: every lane has `k` elements, `a` MR values a step, `acc` the room.
    unsafe {
        let mut sum = [[Q::sums(std::ptr::null()); NV]; MR];
        macro_rules! pieces {
            ($lanes:ident, $a:ident, $range:expr) => {
                for at in $range.step_by(Q::CHUNK) {
                    let count = Q::CHUNK.min($range.end - at);
                    for j in 0..NV {
                        let t = Q::expand(Q::gather(|l| $lanes[j * Q::LANES + l].add(at), count));
                        for s in 0..count.div_ceil(Q::PER) {
                            for i in 0..MR {
                                sum[i][j] = Q::fma($a.add((at / Q::PER + s) * MR + i), t[s], sum[i][j]);
                            }
                        }
                    }
                }
            };
        }
        let head = before_lines::<Q>(&lanes[..NV * Q::LANES]).min(k);
        pieces!(lanes, a, (0..head));
        let mut later = *lanes;
        later.iter_mut().for_each(|lane| *lane = lane.wrapping_add(head));
        let (lanes, a, k) = (&later, a.add(head / Q::PER * MR), k - head);
        let mut lines = Lines::new();
        let (line, ahead) = (Lines::elements::<Q>(), AHEAD / size_of::<Q::E>());
        let all = NV * Q::LANES;
        // Lines of a lane, of a piece, of this piece that are read; where the next piece begins.
        let whole = k / line;
        let piece = if whole <= WHOLE { whole } else { whole / whole.div_ceil(PIECE) };
        let (mut read, mut after) = (0, piece);
        let in_order = (Q::LANES == 8 || features().in_order) && piece >= all;
        for at in (0..k / line * line).step_by(line) {
            let (mut lane, mut first, mut odd, mut next) = (0, 0, 0, jump);
            if in_order {
                (lane, first) = (read * all / piece, read * all % piece);
                if after < whole {
                    next = (after * line) as isize;
                }
            } else {
                odd = at / line % 2;
                let soon = at - odd * line + ahead;
                next = if soon < k { soon as isize } else { (soon - k) as isize + jump };
            }
            let wanted = |l: usize| {
                if in_order {
                    // While pieces of all lanes are read crosswise, the next ones are asked for one after the other.
                    let over = usize::from(first + l >= piece);
                    lanes[lane + over].wrapping_offset(next).wrapping_add((first + l - over * piece) * line)
                } else {
                    // Two steps share their pairs of lines: each asks for those of half the rows.
                    lanes[odd * (all / 2) + l / 2].wrapping_offset(next).wrapping_add(l % 2 * line)
                }
            };
            read += 1;
            if read == piece {
                (read, after) = (0, after + piece);
            }
            if Q::LINES && NV == 1 {
                let words = Q::line(|l| {
                    prefetch(wanted(l));
                    lanes[l].add(at)
                });
                for c in 0..4 {
                    let a = a.add((at + c * Q::CHUNK) / Q::PER * MR);
                    let t = Q::expand(words[c]);
                    for s in 0..Q::STEPS {
                        for i in 0..MR {
                            sum[i][0] = Q::fma(a.add(s * MR + i), t[s], sum[i][0]);
                        }
                    }
                }
                continue;
            }
            lines.fetch::<Q>(&lanes[..all], at, wanted);
            for c in 0..4 {
                let a = a.add((at + c * Q::CHUNK) / Q::PER * MR);
                for j in 0..NV {
                    let t = lines.chunk::<Q>(j, c);
                    for s in 0..Q::STEPS {
                        for i in 0..MR {
                            sum[i][j] = Q::fma(a.add(s * MR + i), t[s], sum[i][j]);
                        }
                    }
                }
            }
        }
        pieces!(lanes, a, (k / line * line..k));
        for i in 0..MR {
            for j in 0..NV {
                Q::keep(sum[i][j], acc.add((i * NV + j) * Q::LANES));
            }
        }
    }
}

/// `k` steps for `count` columns (at most NV vectors) of a matrix whose rows are contiguous, `ks` apart: adds to `acc`
/// (MR rows of NV vectors), or sets it if `first`. The rows [`STRETCH`] further on are wanted next.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn rows<Q: Quad, const MR: usize, const NV: usize>(
    b: *const Q::E,
    ks: isize,
    k: usize,
    count: usize,
    a: *const Q::P,
    acc: *mut Q::A,
    first: bool,
) {
    // SAFETY: `count` elements of every row are readable, `a` has MR values a step, `acc` the room.
    unsafe {
        let mut sum = [[Q::sums(std::ptr::null()); NV]; MR];
        if !first {
            for i in 0..MR {
                for j in 0..NV {
                    sum[i][j] = Q::sums(acc.add((i * NV + j) * Q::LANES));
                }
            }
        }
        let whole = count >= NV * Q::LANES;
        for (step, p) in (0..k).step_by(Q::PER).enumerate() {
            let row = b.offset(p as isize * ks);
            let second = if Q::PER == 2 && p + 1 < k { row.offset(ks) } else { std::ptr::null() };
            for half in 0..Q::PER as isize {
                let next = row.wrapping_offset(ks * (STRETCH as isize + half)).cast::<u8>();
                for at in (0..NV * Q::LANES * size_of::<Q::E>()).step_by(64) {
                    prefetch(next.wrapping_add(at));
                }
            }
            let mut v = [Q::row(row, second, if whole { Q::LANES } else { count }); NV];
            for j in 1..NV {
                let at = j * Q::LANES;
                if whole || count > at {
                    let second = if second.is_null() { second } else { second.add(at) };
                    v[j] = Q::row(row.add(at), second, if whole { Q::LANES } else { count - at });
                }
            }
            for i in 0..MR {
                for j in 0..NV {
                    sum[i][j] = Q::fma(a.add(step * MR + i), v[j], sum[i][j]);
                }
            }
        }
        for i in 0..MR {
            for j in 0..NV {
                Q::keep(sum[i][j], acc.add((i * NV + j) * Q::LANES));
            }
        }
    }
}

macro_rules! kernels {
    ($isa:expr, $features:literal, $columns:ident, $rows:ident, $($mr:literal)*) => {
        #[cfg(target_arch = "x86_64")]
        pub(crate) fn $columns<Q: Quad>(mr: usize) -> ColumnsFn<Q::E, Q::P, Q::A> {
            #[target_feature(enable = $features)]
            unsafe fn kernel<Q: Quad, const MR: usize, const NV: usize>(
                lanes: &Lanes<Q::E>,
                jump: isize,
                k: usize,
                a: *const Q::P,
                acc: *mut Q::A,
            ) {
                // SAFETY: handed on.
                unsafe { columns::<Q, MR, NV>(lanes, jump, k, a, acc) }
            }
            match mr {
                $($mr => kernel::<Q, $mr, { column_vectors($isa, $mr) }>,)*
                _ => unreachable!("no kernel of {mr} rows"),
            }
        }
        #[cfg(target_arch = "x86_64")]
        pub(crate) fn $rows<Q: Quad>(mr: usize) -> RowsFn<Q::E, Q::P, Q::A> {
            #[target_feature(enable = $features)]
            unsafe fn kernel<Q: Quad, const MR: usize, const NV: usize>(
                b: *const Q::E,
                ks: isize,
                k: usize,
                count: usize,
                a: *const Q::P,
                acc: *mut Q::A,
                first: bool,
            ) {
                // SAFETY: handed on.
                unsafe { rows::<Q, MR, NV>(b, ks, k, count, a, acc, first) }
            }
            match mr {
                $($mr => kernel::<Q, $mr, { row_vectors($mr) }>,)*
                _ => unreachable!("no kernel of {mr} rows"),
            }
        }
    };
}
kernels!(Isa::Avx512, "avx512f,avx512bw,avx512dq,avx512vl", columns_avx512, rows_avx512, 1 2 4 8 14);
kernels!(Isa::Avx512, "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16", columns_dot, rows_dot, 1 2 4 8 14);
kernels!(Isa::Avx2, "avx2,fma,f16c", columns_avx2, rows_avx2, 1 2 4 6);
