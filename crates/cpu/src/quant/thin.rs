//! Integer products of two to eight rows with sixteen packed rows at a time, unpacked in registers on their way to the dot
//! product. AVX-512 only.
//!
//! Sixteen rows are read 16 bytes at a time and transposed, so that a lane is a column of the result, masked to units and
//! multiplied by broadcast activations. The arithmetic is that of `dot`, so are the results, bit for bit.
//!
//! Bytes: the weights once. Operations for 64 codes of 4 bits: 2.5 shuffles, 1 to 1.5 masks, 1 dot product a row. On Zen 5
//! four rows take six bytes of codes from the second-level cache a cycle, eight rows five, at two thirds of the dot peak.

// Conditions on constants of an unrolled loop: clippy sees one value of them at a time.
#![allow(clippy::absurd_extreme_comparisons, clippy::manual_checked_ops, clippy::manual_is_multiple_of)]

use super::activations::Activations;
use super::lengthwise;
use super::panel::{DEPTH, TILE_GROUPS};
use super::panel_avx512::{Controls, Scales};
use super::weights::Block;
use crate::isa::{NEAR, SET, features};
use crate::turn::{fours, quarters};
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};

/// How far ahead of the reads memory is asked for, in bytes of each row.
pub(super) const AHEAD: usize = 512;

/// How far ahead of a strip memory is asked for in the order of addresses: a strip, and at least so many bytes.
const LEAST_AHEAD: usize = 48 << 10;

/// Units in a word of codes of `bits` bits; 1 for codes that have been spread to bytes (`bits` 0).
pub(super) const fn units(bits: usize) -> usize {
    match bits {
        1 | 2 | 4 => 8 / bits,
        _ => 1,
    }
}

/// Lanes: packed rows of a strip, columns of the result.
pub(super) const STRIP: usize = 16;

/// Bytes of a row that are turned at once, and words.
const PIECE: usize = 16;
const WORDS: usize = PIECE / 4;

/// The largest number of rows in a call.
pub(super) const ROWS: usize = 8;

/// Rows from one of a strip to the next, where rows are short.
const APART: usize = 4;
/// Bytes of a packed row up to which they are: memory answers sixteen rows that lie in sixteen pages faster than those of
/// four.
pub(super) const SHORT_ROW: usize = 2048;

/// Sixteen rows of a block of 64: the first, and from one to the next.
#[derive(Clone, Copy)]
pub(super) struct Strip {
    pub(super) first: usize,
    pub(super) step: usize,
}

impl Strip {
    /// Strip `nth` of a block.
    pub(super) fn of(block: &Block, nth: usize) -> Strip {
        match Strip::apart(block) {
            true => Strip { first: nth, step: APART },
            false => Strip { first: nth * STRIP, step: 1 },
        }
    }

    /// Whether strips of a block take every fourth row.
    pub(super) fn apart(block: &Block) -> bool {
        !features().in_order && block.valid == APART * STRIP && block.stride <= SHORT_ROW
    }

    /// Bytes from the end of a row to where the rows that are wanted next begin: those of the next strip, or block.
    pub(super) fn ahead(self, block: &Block) -> usize {
        let next = self.first + 1 < self.step;
        if next { 0 } else { (STRIP - 1) * self.step * block.stride }
    }

    /// Bytes from the first row to what is asked for meanwhile, where that goes in the order of addresses into the
    /// second-level cache.
    pub(super) fn in_order(block: &Block) -> usize {
        (STRIP * block.stride).max(LEAST_AHEAD)
    }

    /// Bytes from the first scale to those that are fetched meanwhile: a strip's share of the next block's, or the next
    /// strip's.
    pub(super) fn scales_ahead(self, block: &Block) -> usize {
        let skipped = if self.step > 1 { self.first * (STRIP - 1) } else { 0 };
        (STRIP * self.step + skipped) * block.scale_stride
    }
}

/// How several rows of activations ask memory for what comes.
#[derive(Clone, Copy)]
enum Order {
    /// A line of each row, some lines on.
    Lines,
    /// In the order of addresses, into the second-level cache.
    Far,
    /// In the order of addresses, the next strip, into the first-level cache.
    Near,
}

impl Order {
    fn of(block: &Block) -> Order {
        match features().in_order {
            true if features().near && 2 * STRIP * block.stride <= NEAR => Order::Near,
            true => Order::Far,
            false => Order::Lines,
        }
    }
}

/// Codes from the border of a cache line on: a vector that lies in two lines is read in twice the time.
#[derive(Default)]
pub(super) struct Lines(Vec<Line>);

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([i8; 64]);

impl Lines {
    /// Becomes `len` zeros, a multiple of 64.
    fn zeros(&mut self, len: usize) {
        self.0.clear();
        self.0.resize(len / 64, Line([0; 64]));
    }
}

impl Deref for Lines {
    type Target = [i8];

    fn deref(&self) -> &[i8] {
        // SAFETY: a line is 64 codes and nothing else.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), 64 * self.0.len()) }
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [i8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), 64 * self.0.len()) }
    }
}

/// Rows of activations, one to eight, as the kernels eat them.
#[derive(Default)]
pub(super) struct Few {
    pub(super) rows: usize,
    /// Rows there is room for: 1, 4 or 8. The last row is repeated to fill it.
    width: usize,
    /// By row, as words lie in a vector: `[row][vector][unit of a word][words][4]`, padded with zeros; or, for several rows
    /// of AVX-512, `[unit][width][4]`. A lone row of AVX-512 begins again behind its end, and so do its sums.
    pub(super) codes: Lines,
    /// `[group][width]`, as are the sums.
    pub(super) scales: Vec<f32>,
    pub(super) sums: Vec<i32>,
}

impl Few {
    /// Rows with those that fill them up.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// Codes from row to row, where they lie by row.
    pub(super) fn stride(&self) -> usize {
        self.codes.len() / self.width
    }

    /// Takes rows of `x` (one to [`ROWS`]), for weights of `cols` columns and `bits` bits in groups of `group`, and
    /// vectors of `words` words (8 or 16).
    pub(super) fn gather(
        &mut self,
        x: &Activations,
        rows: &[usize],
        cols: usize,
        group: usize,
        bits: usize,
        words: usize,
    ) {
        self.rows = rows.len();
        let by_row = words == 8 || rows.len() == 1;
        self.width = match rows.len() {
            1 => 1,
            2 if by_row => 2,
            2..=4 => 4,
            _ => 8,
        };
        // Two vectors of the narrowest codes are the largest step of a kernel.
        let stride = cols.next_multiple_of(1024);
        let per_word = units(bits);
        // What is read in one go at the end of a row of weights goes on in the next row. (Half a vector needs zeros.)
        let goes_on = words == 16 && rows.len() == 1 && cols.is_multiple_of(64 * per_word);
        let [codes, sums] = if goes_on { [64 * per_word, lengthwise::MOST_GROUPS] } else { [0, 0] };
        self.codes.zeros(stride * self.width + lengthwise::LOT * codes);
        self.scales.resize(cols / group * self.width, 0.0);
        self.sums.resize(cols / group * self.width + lengthwise::LOT * sums, 0);
        let used = cols.next_multiple_of(DEPTH) * self.width;
        match self.width {
            _ if by_row => {}
            4 => abreast::<4>(x, rows, &mut self.codes[..used]),
            _ => abreast::<8>(x, rows, &mut self.codes[..used]),
        }
        for m in 0..self.width {
            let row = rows[m.min(rows.len() - 1)];
            for slab in 0..cols.div_ceil(DEPTH) {
                let at = slab * x.rows + row;
                let group_at = slab * x.groups;
                for g in 0..(cols / group - group_at).min(x.groups) {
                    self.scales[(group_at + g) * self.width + m] = x.scales[at * x.groups + g];
                    self.sums[(group_at + g) * self.width + m] = x.sums[at * x.groups + g];
                }
                if !by_row {
                    continue;
                }
                let units = x.codes[at * DEPTH..][..DEPTH].as_chunks::<4>().0;
                let to = self.codes.as_chunks_mut::<4>().0;
                let first = slab * units.len();
                let to = &mut to[m * stride / 4..][..stride / 4];
                match (per_word, words) {
                    (1, _) => to[first..first + units.len()].copy_from_slice(units),
                    (2, 8) => apart::<2, 8>(units, &mut to[first..first + units.len()]),
                    (2, _) => apart::<2, 16>(units, &mut to[first..first + units.len()]),
                    (4, 8) => apart::<4, 8>(units, &mut to[first..first + units.len()]),
                    (4, _) => apart::<4, 16>(units, &mut to[first..first + units.len()]),
                    // A slab may be half a vector.
                    _ => {
                        for (i, word) in units.chunks(per_word).enumerate() {
                            let index = first / per_word + i;
                            let vector = index / words * words * per_word + index % words;
                            for (h, unit) in word.iter().enumerate() {
                                to[vector + words * h] = *unit;
                            }
                        }
                    }
                }
            }
        }
        if goes_on {
            again(&mut self.codes, cols);
            again(&mut self.sums, cols / group);
        }
    }
}

/// Codes of `rows` side by side, `[unit][WIDTH][4]`: the last row as often as it takes to fill them up.
fn abreast<const WIDTH: usize>(x: &Activations, rows: &[usize], to: &mut [i8]) {
    const UNITS: usize = DEPTH / 4;
    let rows: [usize; WIDTH] = std::array::from_fn(|m| rows[m.min(rows.len() - 1)]);
    let (from, to) = (x.codes.as_chunks::<4>().0.as_chunks::<UNITS>().0, to.as_chunks_mut::<4>().0);
    for (slab, to) in from.chunks_exact(x.rows).zip(to.as_chunks_mut::<WIDTH>().0.as_chunks_mut::<UNITS>().0) {
        let rows = rows.map(|row| &slab[row]);
        for (unit, to) in to.iter_mut().enumerate() {
            for (row, to) in rows.iter().zip(to) {
                *to = row[unit];
            }
        }
    }
}

/// Has the first `period` elements come again and again.
fn again<T: Copy>(all: &mut [T], period: usize) {
    for at in (period..all.len()).step_by(period) {
        all.copy_within(..period.min(all.len() - at), at);
    }
}

/// `[vector][WORDS][UNITS]` to `[vector][UNITS][WORDS]`.
fn apart<const UNITS: usize, const WORDS: usize>(from: &[[i8; 4]], to: &mut [[i8; 4]]) {
    for (from, to) in from.chunks_exact(WORDS * UNITS).zip(to.chunks_exact_mut(WORDS * UNITS)) {
        for (w, word) in from.as_chunks::<UNITS>().0.iter().enumerate() {
            for (h, unit) in word.iter().enumerate() {
                to[WORDS * h + w] = *unit;
            }
        }
    }
}

/// What the kernel needs beside the weights.
pub(super) struct Job<'a> {
    pub(super) x: &'a Few,
    /// Codes of a packed row.
    pub(super) cols: usize,
    pub(super) group: usize,
    pub(super) bits: usize,
    pub(super) fp4: bool,
}

/// The result of a strip's columns, row by row, to `out(row)`, for two rows or more.
///
/// # Safety
/// The machine has AVX-512 with BW, VL, VNNI and VBMI; `block` has the strip's rows of `job.cols` codes, with their scales.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
pub(super) unsafe fn strip(block: &Block, at: Strip, job: &Job, out: impl Fn(usize) -> *mut f32) {
    // SAFETY: as the caller promises.
    unsafe {
        match (job.bits, job.fp4) {
            (4, true) => rows::<4, true>(block, at, job, out),
            (4, false) => rows::<4, false>(block, at, job, out),
            (8, _) => rows::<8, false>(block, at, job, out),
            (2, _) => rows::<2, false>(block, at, job, out),
            (1, _) => rows::<1, false>(block, at, job, out),
            // Other widths are spread to bytes first: 4 codes a word.
            _ => rows::<0, false>(block, at, job, out),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
#[inline]
unsafe fn rows<const BITS: usize, const FP4: bool>(
    block: &Block,
    at: Strip,
    job: &Job,
    out: impl Fn(usize) -> *mut f32,
) {
    // SAFETY: as the caller promises.
    unsafe {
        match (job.x.width, Order::of(block)) {
            (4, Order::Lines) => kernel::<BITS, FP4, 4, { Order::Lines as u8 }>(block, at, job, out),
            (4, Order::Far) => kernel::<BITS, FP4, 4, { Order::Far as u8 }>(block, at, job, out),
            (4, Order::Near) => kernel::<BITS, FP4, 4, { Order::Near as u8 }>(block, at, job, out),
            (_, Order::Lines) => kernel::<BITS, FP4, 8, { Order::Lines as u8 }>(block, at, job, out),
            (_, Order::Far) => kernel::<BITS, FP4, 8, { Order::Far as u8 }>(block, at, job, out),
            (_, Order::Near) => kernel::<BITS, FP4, 8, { Order::Near as u8 }>(block, at, job, out),
        }
    }
}

/// `M` rows. `BITS` is 0 for codes that are spread; `ORDER`: one of [`Order`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn kernel<const BITS: usize, const FP4: bool, const M: usize, const ORDER: u8>(
    block: &Block,
    strip: Strip,
    job: &Job,
    out: impl Fn(usize) -> *mut f32,
) {
    let (x, bias, per_word) = (job.x, !FP4, units(BITS));
    // Units of a word in place, `2^(BITS * h)` times too large, each with its own sum, save the shifts.
    let in_place = !FP4 && M * per_word <= 8;
    // Groups may end inside a piece, and rows.
    let fine = FP4 || matches!(BITS, 1 | 2);
    let packed = block.packed.as_ptr().wrapping_add(strip.first * block.stride);
    let (stride, end) = (strip.step * block.stride, job.cols * job.bits / 8);
    let controls = Controls::new(job.bits);
    let mut scales = Scales::new(block, bias);
    let (groups, mut group) = (job.cols / job.group, 0usize);
    // Words of a group, and words to go in this one.
    let words = job.group / 4 / per_word;
    let mut left = words;
    // Bytes of each row: of a piece, and of a step.
    let piece = if BITS == 0 { PIECE / 8 * job.bits } else { PIECE };
    let bytes = 4 * piece;
    let (x_scales, x_sums) = (x.scales.as_ptr(), x.sums.as_ptr());
    let mut codes = x.codes.as_ptr();
    // Memory for the next strip's scales is asked for in step with the weights.
    let next = strip.first * block.scale_stride + strip.scales_ahead(block);
    let next_scales = block.scales.as_ptr().wrapping_add(next);
    let next_biases = block.biases.as_ptr().wrapping_add(next);
    let step = STRIP * block.scale_stride * bytes / block.stride;
    let beyond = strip.ahead(block);
    let soon_at = if ORDER == Order::Near as u8 { STRIP * block.stride } else { Strip::in_order(block) };
    let mut line = 0;
    // SAFETY: as the caller promises; masks keep loads within rows, `x` is padded, a prefetch may name any address.
    unsafe {
        let start = |group: usize| {
            let mut sums = [[_mm512_setzero_si512(); 8]; M];
            if FP4 && group < groups {
                for m in 0..M {
                    sums[m][0] = _mm512_set1_epi32(*x_sums.add(group * M + m));
                }
            }
            sums
        };
        let mut sums = start(0);
        let mut acc = [_mm512_setzero_ps(); M];
        // Sixteen lines of one set of the first-level cache would push each other out between their pieces.
        let staged = stride.is_multiple_of(SET);
        let mut lines = [const { MaybeUninit::<__m512i>::uninit() }; STRIP];
        for at in (0..end).step_by(bytes) {
            if group.is_multiple_of(TILE_GROUPS) && left == words {
                scales.load(block, strip, group, (groups - group).min(TILE_GROUPS), FP4);
            }
            for i in 0..step.div_ceil(64) {
                _mm_prefetch::<_MM_HINT_T0>(next_scales.wrapping_add(line + 64 * i).cast());
                if bias {
                    _mm_prefetch::<_MM_HINT_T0>(next_biases.wrapping_add(line + 64 * i).cast());
                }
            }
            line += step;
            // Past the end of these rows, the next strip's.
            let ahead = if at + AHEAD < end { AHEAD } else { AHEAD + beyond };
            let by_lines = ORDER == Order::Lines as u8;
            let mut soon = packed.wrapping_add(if by_lines { at + ahead } else { soon_at + STRIP * at });
            let (mut from, mut apart) = (packed.wrapping_add(at), stride);
            if staged {
                let lanes = u64::MAX >> (64 - (end - at).min(bytes));
                for (i, line) in lines.iter_mut().enumerate() {
                    line.write(_mm512_maskz_loadu_epi8(lanes, from.wrapping_add(i * stride).cast()));
                }
                (from, apart) = (lines.as_ptr().cast(), 64);
            }
            for at in (at..end.min(at + bytes)).step_by(piece) {
                let mut count = WORDS;
                let mut lanes = u16::MAX;
                if BITS == 0 {
                    lanes = (1 << piece) - 1;
                } else if fine && end - at < PIECE {
                    (count, lanes) = ((end - at) / 4, (1 << (end - at)) - 1);
                }
                let turned = turned::<BITS>(from, apart, lanes, &controls);
                from = from.wrapping_add(piece);
                for w in 0..WORDS {
                    if fine && w == count {
                        break;
                    }
                    // One row a word: spread over time, requests do not wait for each other.
                    if ORDER == Order::Far as u8 {
                        _mm_prefetch::<_MM_HINT_T1>(soon.cast());
                    } else {
                        _mm_prefetch::<_MM_HINT_T0>(soon.cast());
                    }
                    soon = soon.wrapping_add(if by_lines { stride } else { bytes });
                    let word = turned[w];
                    for h in 0..per_word {
                        let shift = _mm_cvtsi32_si128((BITS * h) as i32);
                        let unit = match BITS {
                            0 | 8 => word,
                            _ if h == 0 => _mm512_and_si512(word, controls.mask),
                            _ if in_place => _mm512_and_si512(word, _mm512_sll_epi32(controls.mask, shift)),
                            _ => _mm512_and_si512(_mm512_srl_epi32(word, shift), controls.mask),
                        };
                        let unit = if FP4 { _mm512_shuffle_epi8(controls.fp4, unit) } else { unit };
                        let own = if in_place { h } else { 0 };
                        for m in (0..M).step_by(4) {
                            let [a, b, c, d] = std::array::from_fn(|i| sums[m + i][own]);
                            let [a, b, c, d] = four_rows([a, b, c, d], unit, codes.add(4 * (h * M + m)));
                            (sums[m][own], sums[m + 1][own]) = (a, b);
                            (sums[m + 2][own], sums[m + 3][own]) = (c, d);
                        }
                    }
                    codes = codes.add(4 * per_word * M);
                    left -= 1;
                    if (fine || w + 1 == WORDS) && left == 0 {
                        let (scale, w_bias) = scales.get(group);
                        for m in 0..M {
                            let mut sum = sums[m][0];
                            for h in 1..if in_place { per_word } else { 1 } {
                                let part = _mm512_sra_epi32(sums[m][h], _mm_cvtsi32_si128((BITS * h) as i32));
                                sum = _mm512_add_epi32(sum, part);
                            }
                            let sum = _mm512_cvtepi32_ps(sum);
                            let product = if bias {
                                let x_sum = _mm512_set1_ps(f32::from_bits(*x_sums.add(group * M + m) as u32));
                                _mm512_fmadd_ps(scale, sum, _mm512_mul_ps(w_bias, x_sum))
                            } else {
                                _mm512_mul_ps(scale, sum)
                            };
                            acc[m] = _mm512_fmadd_ps(_mm512_set1_ps(*x_scales.add(group * M + m)), product, acc[m]);
                        }
                        group += 1;
                        left = words;
                        sums = start(group);
                    }
                }
            }
        }
        for m in 0..x.rows {
            _mm512_storeu_ps(out(m), acc[m]);
        }
    }
}

/// Adds the products of `unit` with four rows' codes at `codes`.
///
/// In words of its own: the compiler would read the codes of many units ahead of their products, and have no registers left.
///
/// # Safety
/// Sixteen codes are readable.
#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
unsafe fn four_rows([mut a, mut b, mut c, mut d]: [__m512i; 4], unit: __m512i, codes: *const i8) -> [__m512i; 4] {
    // SAFETY: the instructions are there, and read what the caller vouches for.
    unsafe {
        std::arch::asm!(
            "vpdpbusd {a}, {unit}, dword ptr [{codes}]{{1to16}}",
            "vpdpbusd {b}, {unit}, dword ptr [{codes} + 4]{{1to16}}",
            "vpdpbusd {c}, {unit}, dword ptr [{codes} + 8]{{1to16}}",
            "vpdpbusd {d}, {unit}, dword ptr [{codes} + 12]{{1to16}}",
            a = inout(zmm_reg) a, b = inout(zmm_reg) b, c = inout(zmm_reg) c, d = inout(zmm_reg) d,
            unit = in(zmm_reg) unit, codes = in(reg) codes,
            options(readonly, nostack, preserves_flags),
        );
    }
    [a, b, c, d]
}

/// [`WORDS`] words of sixteen rows, a lane each: the bytes of `lanes` from `from` on, or what they are spread to.
///
/// Four rows of every fourth meet in a vector, so that only words within its quarters are turned.
///
/// # Safety
/// Those bytes of the rows, `stride` apart, are readable.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
#[inline]
unsafe fn turned<const BITS: usize>(
    from: *const u8,
    stride: usize,
    lanes: u16,
    controls: &Controls,
) -> [__m512i; WORDS] {
    let whole = BITS != 0 && lanes == u16::MAX;
    // SAFETY: as the caller promises.
    let row = |r: usize| unsafe {
        let row = from.wrapping_add(r * stride);
        if whole { _mm_loadu_si128(row.cast()) } else { _mm_maskz_loadu_epi8(lanes, row.cast()) }
    };
    let mut r = [_mm512_setzero_si512(); 4];
    for i in 0..4 {
        let first = _mm512_castsi128_si512(row(i));
        let two = _mm512_inserti32x4::<1>(first, row(i + 4));
        r[i] = _mm512_inserti32x4::<3>(_mm512_inserti32x4::<2>(two, row(i + 8)), row(i + 12));
        if BITS == 0 {
            r[i] = controls.spread_quarters(r[i]);
        }
    }
    fours(r)
}

/// Puts the results of four strips, each of every fourth column, in the order of columns.
#[target_feature(enable = "avx512f")]
pub(super) fn interleave(sums: &mut [f32; 4 * STRIP]) {
    let p = sums.as_mut_ptr();
    // SAFETY: 64 elements.
    let [a, b, c, d] = unsafe {
        [_mm512_loadu_ps(p), _mm512_loadu_ps(p.add(16)), _mm512_loadu_ps(p.add(32)), _mm512_loadu_ps(p.add(48))]
    };
    let (e, f) = (_mm512_castps_pd(_mm512_unpacklo_ps(a, b)), _mm512_castps_pd(_mm512_unpackhi_ps(a, b)));
    let (g, h) = (_mm512_castps_pd(_mm512_unpacklo_ps(c, d)), _mm512_castps_pd(_mm512_unpackhi_ps(c, d)));
    let all = quarters([
        _mm512_castpd_si512(_mm512_unpacklo_pd(e, g)),
        _mm512_castpd_si512(_mm512_unpackhi_pd(e, g)),
        _mm512_castpd_si512(_mm512_unpacklo_pd(f, h)),
        _mm512_castpd_si512(_mm512_unpackhi_pd(f, h)),
    ]);
    for (i, v) in all.into_iter().enumerate() {
        // SAFETY: as above.
        unsafe { _mm512_storeu_si512(p.add(16 * i).cast(), v) }
    }
}
