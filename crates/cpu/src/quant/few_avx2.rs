//! Integer products of one to eight rows of activations with eight packed rows at a time: decoding with AVX2.
//!
//! As in `lone`, words stay where they are: each is multiplied by the activations that belong to it, and lanes are summed
//! on the way to a vector of eight columns. Products of bytes are summed in 16 bits inside a vector, where no sum of
//! codes overflows them; the top bit of 8-bit codes is multiplied apart. The arithmetic is that of `dot`, so are the
//! results, bit for bit.
//!
//! Operations for 64 codes of 4 bits, 36 bytes with bf16 scale and bias: 6 to unpack and multiply, 3 to sum, 2 to scale. In
//! cache that makes 15 GB/s a core of Zen 3 where memory gives one of two cores 13. Each further row of activations adds 6.

use super::panel::FP4_BYTES;
use super::thin::{Job, units};
use super::weights::{Block, ScaleKind};
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Lanes: packed rows of a strip, columns of the result.
pub(super) const STRIP: usize = 8;

/// Groups whose scales are decoded at a time.
const TILE: usize = 8;

/// Vectors of sums that wait for the other rows: 8 KiB.
const STRETCH: usize = 256;

/// How far ahead of the reads memory is asked for at the end of a strip's reads, in bytes.
const AHEAD: usize = 4096;

/// The result of a block's columns, row by row of the activations, to `out(row)`.
///
/// # Safety
/// The machine has AVX2, FMA and F16C; `block` has a multiple of eight rows of `job.cols` codes, with their scales; `job.x`
/// was gathered for words of eight; `out(row)` has room for as many.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn block(block: &Block, job: &Job, out: impl Fn(usize) -> *mut f32) {
    let (rows, strips) = (job.x.rows, block.valid / STRIP);
    if rows <= 4 {
        // SAFETY: as the caller promises.
        unsafe { formats(block, 0..strips, job, 0..rows, &out) }
        return;
    }
    for strip in 0..strips {
        // SAFETY: as the caller promises.
        unsafe {
            formats(block, strip..strip + 1, job, 0..4, &out);
            formats(block, strip..strip + 1, job, 4..rows, &out);
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn formats(
    block: &Block,
    strips: Range<usize>,
    job: &Job,
    rows: Range<usize>,
    out: &impl Fn(usize) -> *mut f32,
) {
    // SAFETY: as the caller promises; rows of activations are padded to a power of two.
    unsafe {
        match rows.len() {
            1 => widths::<1>(block, strips, job, rows.start, out),
            2 => widths::<2>(block, strips, job, rows.start, out),
            _ => widths::<4>(block, strips, job, rows.start, out),
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn widths<const M: usize>(
    block: &Block,
    strips: Range<usize>,
    job: &Job,
    row: usize,
    out: &impl Fn(usize) -> *mut f32,
) {
    let words = job.group * job.bits / 32;
    // SAFETY: as the caller promises.
    unsafe {
        match (job.bits, job.fp4, words) {
            (4, true, 2) => kernel::<4, true, 2, M, true>(block, strips, job, row, out),
            (4, true, _) => kernel::<4, true, 4, M, true>(block, strips, job, row, out),
            (4, false, 4) => kernel::<4, false, 4, M, true>(block, strips, job, row, out),
            (4, false, 8) => kernel::<4, false, 8, M, true>(block, strips, job, row, out),
            (4, false, _) => kernel::<4, false, 8, M, false>(block, strips, job, row, out),
            (8, ..) => kernel::<8, false, 8, M, false>(block, strips, job, row, out),
            (2, _, 2) => kernel::<2, false, 2, M, true>(block, strips, job, row, out),
            (2, _, 4) => kernel::<2, false, 4, M, true>(block, strips, job, row, out),
            (2, ..) => kernel::<2, false, 8, M, true>(block, strips, job, row, out),
            (1, _, 1) => kernel::<1, false, 1, M, true>(block, strips, job, row, out),
            (1, _, 2) => kernel::<1, false, 2, M, true>(block, strips, job, row, out),
            (1, ..) => kernel::<1, false, 4, M, true>(block, strips, job, row, out),
            // Other widths are spread to bytes first: 4 codes a word, whole vectors a group.
            _ => kernel::<0, false, 8, M, false>(block, strips, job, row, out),
        }
    }
}

/// Memory that will be read soon, asked for a few lines at a time: in three quarters by the reads of packed rows, in one by the
/// scaling after them, so that memory is never left waiting for either.
struct Soon(*const u8);

impl Soon {
    /// Asks for the lines of the next `bytes` bytes.
    #[inline(always)]
    fn ask(&mut self, bytes: usize) {
        for line in (0..bytes).step_by(64) {
            // SAFETY: a prefetch may name any address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(self.0.wrapping_add(line).cast()) }
        }
        self.0 = self.0.wrapping_add(bytes);
    }
}

/// `M` rows of activations from `row` on. `WORDS`: words of a group that lie in one vector (8 where a group has more);
/// `BITS` is 0 for codes that are spread; `ONE`: whether a vector holds whole groups.
///
/// Packed rows are read one after the other, a stretch of each (for one row of activations as a rule the whole of it), so
/// that memory is read from front to back; the sums of their groups wait in L1 until all eight rows have theirs.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn kernel<const BITS: usize, const FP4: bool, const WORDS: usize, const M: usize, const ONE: bool>(
    block: &Block,
    strips: Range<usize>,
    job: &Job,
    row: usize,
    out: &impl Fn(usize) -> *mut f32,
) {
    let x = job.x;
    // Groups of a vector; vectors of a group.
    let (per, vectors) = (8 / WORDS, (job.group / (32 * units(BITS))).max(1));
    let groups = job.cols / job.group;
    let (sums, whole) = (groups.div_ceil(per), groups / per);
    let most = STRETCH / (M * 8 * per) * 8;
    let (width, stride) = (x.width(), x.stride());
    let first = x.codes.as_ptr().wrapping_add(row * stride);
    let reader =
        Reader::<BITS, FP4, ONE> { cutter: Cutter::new::<BITS>(job.bits), vectors, end: job.cols * job.bits / 8 };
    // Bytes of eight sums of a packed row, and of their scales (and biases) in eight rows.
    let (bytes, entries) = (8 * per * job.group * job.bits / 8, 8 * per * STRIP * block.kind.size());
    let mut wait = [const { MaybeUninit::<[__m256i; 8]>::uninit() }; STRETCH / 8];
    let wait = wait.as_mut_ptr().cast::<__m256i>();
    let mut scales = Scales([[_mm256_setzero_ps(); 2]; TILE]);
    let after = |strip: usize, from: &[u8]| Soon(from.as_ptr().wrapping_add((strip + 1) * STRIP * block.scale_stride));
    for strip in strips {
        let packed = block.packed.as_ptr().wrapping_add(strip * STRIP * block.stride);
        let mut soon = Soon(packed.wrapping_add(AHEAD + STRIP * block.stride / 4));
        let (mut soon_scales, mut soon_biases) = (after(strip, block.scales), after(strip, block.biases));
        let mut acc = [_mm256_setzero_ps(); M];
        for start in (0..sums).step_by(most) {
            let count = most.min(sums - start);
            // Eight sums of packed row `i`, as `columns` leaves them.
            let place = |m: usize, i: usize, at: usize| wait.wrapping_add(((m * STRIP + i) * most + at) / 8 * per);
            for i in 0..STRIP {
                let codes = packed.wrapping_add(i * block.stride);
                for at in (0..count).step_by(8) {
                    soon.ask(bytes / 4 * 3);
                    // SAFETY: as the caller promises: reads stay within the row, `x` is padded to whole vectors; `wait`
                    // has room for `most` sums of eight rows and `M`.
                    unsafe {
                        let eight = if start + at + 8 <= whole {
                            reader.eight::<M, false>(codes, start + at, first, stride)
                        } else {
                            reader.eight::<M, true>(codes, start + at, first, stride)
                        };
                        for m in 0..M {
                            let sums = columns::<WORDS>(eight[m], short(BITS, FP4, ONE));
                            for g in 0..per {
                                place(m, i, at).add(g).write(sums[g]);
                            }
                        }
                    }
                }
            }
            for at in (0..count).step_by(8) {
                soon.ask(bytes * 2);
                soon_scales.ask(entries);
                if !FP4 {
                    soon_biases.ask(entries);
                }
                // Where a packed row's sums were, now a sum of each row.
                for m in 0..M {
                    for g in 0..per {
                        let mut sums = [_mm256_setzero_si256(); STRIP];
                        // SAFETY: written above.
                        unsafe {
                            for i in 0..STRIP {
                                sums[i] = place(m, i, at).add(g).read();
                            }
                            let sums = transpose(sums);
                            for i in 0..STRIP {
                                place(m, i, at).add(g).write(sums[i]);
                            }
                        }
                    }
                }
                let end = groups.min((start + at + 8) * per);
                for group in ((start + at) * per..end).step_by(TILE) {
                    let count = TILE.min(end - group);
                    // SAFETY: the groups exist.
                    unsafe { scales.load(block, strip * STRIP, group, count, FP4) }
                    for m in 0..M {
                        for g in 0..count {
                            let [scale, bias] = scales.0[g];
                            // SAFETY: written above; each row's scales and sums have one entry a group.
                            let (sum, x_scale, x_sum) = unsafe {
                                let nth = group + g - (start + at) * per;
                                let at_x = (group + g) * width + row + m;
                                let sum = place(m, nth / per, at).add(nth % per).read();
                                (sum, *x.scales.as_ptr().add(at_x), *x.sums.as_ptr().add(at_x))
                            };
                            let product = if FP4 {
                                _mm256_mul_ps(
                                    scale,
                                    _mm256_cvtepi32_ps(_mm256_add_epi32(sum, _mm256_set1_epi32(x_sum))),
                                )
                            } else {
                                let x_sum = _mm256_set1_ps(f32::from_bits(x_sum as u32));
                                _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(sum), _mm256_mul_ps(bias, x_sum))
                            };
                            acc[m] = _mm256_fmadd_ps(_mm256_set1_ps(x_scale), product, acc[m]);
                        }
                    }
                }
            }
        }
        for m in 0..M.min(x.rows - row) {
            // SAFETY: as the caller promises.
            unsafe { _mm256_storeu_ps(out(row + m).add(strip * STRIP), acc[m]) }
        }
    }
}

/// Whether 16 bits hold the sums of a vector until they are those of groups.
const fn short(bits: usize, fp4: bool, one: bool) -> bool {
    one && !fp4 && matches!(bits, 1 | 2 | 4)
}

/// How a packed row is read. `ONE`: the groups of a sum lie in one vector.
struct Reader<const BITS: usize, const FP4: bool, const ONE: bool> {
    cutter: Cutter,
    /// Vectors that go into one sum.
    vectors: usize,
    /// Bytes of a row.
    end: usize,
}

impl<const BITS: usize, const FP4: bool, const ONE: bool> Reader<BITS, FP4, ONE> {
    /// Eight sums of a row from the one numbered `first` on, for `M` rows of activations; with `PART`, zeros past the end.
    ///
    /// # Safety
    /// `codes` is a row of that many bytes, and `x` has `M` rows of whole vectors, `stride` apart.
    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn eight<const M: usize, const PART: bool>(
        &self,
        codes: *const u8,
        first: usize,
        x: *const i8,
        stride: usize,
    ) -> [[__m256i; 8]; M] {
        let units = 32 * units(BITS);
        let bytes = units * if BITS == 0 { self.cutter.bits as usize } else { BITS } / 8;
        let vectors = if ONE { 1 } else { self.vectors };
        let (codes, x) = (codes.wrapping_add(first * vectors * bytes), x.wrapping_add(first * vectors * units));
        let mut sums = [[_mm256_setzero_si256(); 8]; M];
        for j in 0..8 {
            for v in j * vectors..(j + 1) * vectors {
                let p = codes.wrapping_add(v * bytes);
                let left = if PART { self.end.saturating_sub((first * vectors + v) * bytes).min(bytes) } else { bytes };
                // SAFETY: as the caller promises.
                unsafe {
                    let words = if BITS == 0 || PART { self.cutter.some(p, left) } else { whole(p) };
                    let words = if BITS == 0 { self.cutter.spread(words) } else { words };
                    let cut = self.cutter.units::<BITS, FP4>(words);
                    for m in 0..M {
                        let x = x.wrapping_add(m * stride + if PART && left == 0 { 0 } else { v * units });
                        let product = dot::<BITS>(&cut, x, short(BITS, FP4, ONE));
                        sums[m][j] = if ONE { product } else { _mm256_add_epi32(sums[m][j], product) };
                    }
                }
            }
        }
        sums
    }
}

#[target_feature(enable = "avx2")]
#[inline]
unsafe fn whole(p: *const u8) -> __m256i {
    // SAFETY: the caller vouches for 32 bytes.
    unsafe { _mm256_loadu_si256(p.cast()) }
}

/// The products of a vector of words, cut into units, with the activations at its place: a sum a word, or, if
/// `short`, two of 16 bits.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn dot<const BITS: usize>(cut: &[__m256i; 8], x: *const i8, short: bool) -> __m256i {
    let ones = _mm256_set1_epi16(1);
    // SAFETY: the caller vouches for a vector of activations a unit.
    unsafe {
        let first = whole(x.cast());
        if BITS == 8 {
            let top = _mm256_set1_epi8(-128);
            let low = _mm256_maddubs_epi16(_mm256_andnot_si256(top, cut[0]), first);
            let high = _mm256_maddubs_epi16(_mm256_and_si256(top, cut[0]), first);
            return _mm256_add_epi32(_mm256_madd_epi16(low, ones), _mm256_madd_epi16(high, ones));
        }
        let mut sums = _mm256_maddubs_epi16(cut[0], first);
        for h in 1..units(BITS) {
            sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(cut[h], whole(x.add(32 * h).cast())));
        }
        if short { sums } else { _mm256_madd_epi16(sums, ones) }
    }
}

/// Constants that cut words into codes.
struct Cutter {
    bits: i32,
    /// The low `bits` bits of each byte.
    mask: __m256i,
    /// Bytes of E2M1 codes, for a shuffle.
    fp4: __m256i,
    /// Words, bytes and shifts that bring 4 codes into each word.
    words: __m256i,
    bytes: __m256i,
    shifts: __m256i,
}

impl Cutter {
    #[target_feature(enable = "avx2")]
    #[inline]
    fn new<const BITS: usize>(bits: usize) -> Cutter {
        let zero = _mm256_setzero_si256();
        // SAFETY: loads of arrays.
        let fp4 = unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(FP4_BYTES.as_ptr().cast())) };
        let mask = _mm256_set1_epi8(((1u16 << bits) - 1) as i8);
        if BITS != 0 {
            return Cutter { bits: bits as i32, mask, fp4, words: zero, bytes: zero, shifts: zero };
        }
        // Sixteen codes are `2 * bits` bytes; those of the upper half begin in word `bits / 2`.
        let half = bits / 2;
        let words: [i32; 8] = std::array::from_fn(|i| (i % 4 + i / 4 * half) as i32);
        let byte = |i: usize| bits * (i / 4) / 2 - i / 16 * 4 * half + i % 4;
        let bytes: [u8; 32] = std::array::from_fn(|i| if byte(i) < 16 { byte(i) as u8 } else { 0x80 });
        let shifts: [i32; 8] = std::array::from_fn(|i| (bits * i % 2 * 4) as i32);
        // SAFETY: loads of arrays.
        unsafe {
            Cutter {
                bits: bits as i32,
                mask,
                fp4,
                words: _mm256_loadu_si256(words.as_ptr().cast()),
                bytes: _mm256_loadu_si256(bytes.as_ptr().cast()),
                shifts: _mm256_loadu_si256(shifts.as_ptr().cast()),
            }
        }
    }

    /// The words of the first `bytes` bytes (a multiple of 4, at most 32), then zeros.
    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn some(&self, p: *const u8, bytes: usize) -> __m256i {
        let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        let mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(bytes as i32 / 4), lanes);
        // SAFETY: the caller vouches for so many bytes, and no others are read.
        unsafe { _mm256_maskload_epi32(p.cast(), mask) }
    }

    /// 32 codes that straddle bytes, one a byte.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn spread(&self, packed: __m256i) -> __m256i {
        let halves = _mm256_permutevar8x32_epi32(packed, self.words);
        let four = _mm256_srlv_epi32(_mm256_shuffle_epi8(halves, self.bytes), self.shifts);
        let mut out = _mm256_and_si256(four, _mm256_srli_epi32::<24>(self.mask));
        for i in 1..4 {
            let code = _mm256_sll_epi32(four, _mm_cvtsi32_si128((8 - self.bits) * i));
            let byte = _mm256_sll_epi32(_mm256_srli_epi32::<24>(self.mask), _mm_cvtsi32_si128(8 * i));
            out = _mm256_or_si256(out, _mm256_and_si256(code, byte));
        }
        out
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn units<const BITS: usize, const FP4: bool>(&self, words: __m256i) -> [__m256i; 8] {
        let mut cut = [words; 8];
        if BITS != 0 && BITS != 8 {
            for h in 0..units(BITS) {
                let shifted =
                    if h == 0 { words } else { _mm256_srl_epi16(words, _mm_cvtsi32_si128((BITS * h) as i32)) };
                cut[h] = _mm256_and_si256(shifted, self.mask);
                if FP4 {
                    cut[h] = _mm256_shuffle_epi8(self.fp4, cut[h]);
                }
            }
        }
        cut
    }
}

/// Sums runs of `WORDS` lanes of eight rows, and turns them into a vector of eight rows a run.
///
/// A transposition in three steps, in which the first steps add the halves they would otherwise keep apart.
#[target_feature(enable = "avx2")]
#[inline]
fn columns<const WORDS: usize>(mut d: [__m256i; 8], short: bool) -> [__m256i; 8] {
    let ones = _mm256_set1_epi16(1);
    if short && WORDS < 4 {
        for d in &mut d {
            *d = _mm256_madd_epi16(*d, ones);
        }
    }
    if WORDS == 1 {
        return transpose(d);
    }
    // With codes of 4 bits, 16 bits hold 4 * 15 * 127 = 7620 at most: four words still fit.
    let halves = short && WORDS >= 4;
    let mut out = d;
    // 128-bit lanes of `h[i]`: rows 2i and 2i + 1, two sums of two words each.
    let mut h = [_mm256_setzero_si256(); 4];
    for i in 0..4 {
        let (e, o) = (even(d[2 * i], d[2 * i + 1]), odd(d[2 * i], d[2 * i + 1]));
        h[i] = if halves { _mm256_add_epi16(e, o) } else { _mm256_add_epi32(e, o) };
    }
    if WORDS == 2 {
        let (e, f) = (even(h[0], h[1]), even(h[2], h[3]));
        let (o, p) = (odd(h[0], h[1]), odd(h[2], h[3]));
        (out[0], out[2]) = (low(e, f), high(e, f));
        (out[1], out[3]) = (low(o, p), high(o, p));
        return out;
    }
    // 128-bit lanes of `k[i]`: rows 4i to 4i + 3, one sum of four words each.
    let mut k = [_mm256_setzero_si256(); 2];
    for i in 0..2 {
        let (e, o) = (even(h[2 * i], h[2 * i + 1]), odd(h[2 * i], h[2 * i + 1]));
        k[i] = if halves { _mm256_madd_epi16(_mm256_add_epi16(e, o), ones) } else { _mm256_add_epi32(e, o) };
    }
    (out[0], out[1]) = (low(k[0], k[1]), high(k[0], k[1]));
    if WORDS == 8 {
        out[0] = _mm256_add_epi32(out[0], out[1]);
    }
    out
}

/// In each 128-bit lane: words 0 and 2 of `a`, then of `b`.
#[target_feature(enable = "avx2")]
#[inline]
fn even(a: __m256i, b: __m256i) -> __m256i {
    _mm256_castps_si256(_mm256_shuffle_ps::<0x88>(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b)))
}

/// In each 128-bit lane: words 1 and 3 of `a`, then of `b`.
#[target_feature(enable = "avx2")]
#[inline]
fn odd(a: __m256i, b: __m256i) -> __m256i {
    _mm256_castps_si256(_mm256_shuffle_ps::<0xdd>(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b)))
}

/// The lower halves of both.
#[target_feature(enable = "avx2")]
#[inline]
fn low(a: __m256i, b: __m256i) -> __m256i {
    _mm256_permute2x128_si256::<0x20>(a, b)
}

/// The upper halves of both.
#[target_feature(enable = "avx2")]
#[inline]
fn high(a: __m256i, b: __m256i) -> __m256i {
    _mm256_permute2x128_si256::<0x31>(a, b)
}

/// Transposes 8 x 8 lanes of 32 bits.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn transpose(r: [__m256i; 8]) -> [__m256i; 8] {
    let mut a = r;
    for i in 0..4 {
        a[2 * i] = _mm256_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        a[2 * i + 1] = _mm256_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    let mut b = a;
    for i in 0..2 {
        for h in 0..2 {
            b[4 * i + 2 * h] = _mm256_unpacklo_epi64(a[4 * i + h], a[4 * i + 2 + h]);
            b[4 * i + 2 * h + 1] = _mm256_unpackhi_epi64(a[4 * i + h], a[4 * i + 2 + h]);
        }
    }
    let mut c = b;
    for j in 0..4 {
        (c[j], c[4 + j]) = (low(b[j], b[4 + j]), high(b[j], b[4 + j]));
    }
    c
}

/// Scales and biases of eight rows and eight groups, by group.
struct Scales([[__m256; 2]; TILE]);

impl Scales {
    /// Takes groups `first..first + count` of eight rows from `row` on, where `first` is a multiple of 8 and `count` at most 8.
    ///
    /// # Safety
    /// They exist in the block.
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    unsafe fn load(&mut self, block: &Block, row: usize, first: usize, count: usize, fp4: bool) {
        let factor = if fp4 { 0.5 * block.factor } else { block.factor };
        if block.kind == ScaleKind::Bf16 && !fp4 && count == TILE {
            // Scale and bias of a group in a word.
            let mut rows = [_mm256_setzero_si256(); STRIP];
            for i in 0..STRIP {
                let at = (row + i) * block.scale_stride + 2 * first;
                // SAFETY: as the caller promises.
                unsafe {
                    let scales = _mm_loadu_si128(block.scales.as_ptr().add(at).cast());
                    let biases = _mm_loadu_si128(block.biases.as_ptr().add(at).cast());
                    rows[i] = _mm256_set_m128i(_mm_unpackhi_epi16(biases, scales), _mm_unpacklo_epi16(biases, scales));
                }
            }
            let words = transpose(rows);
            for (both, words) in self.0.iter_mut().zip(words) {
                let scale = _mm256_and_si256(words, _mm256_set1_epi32(-0x1_0000));
                *both = [_mm256_castsi256_ps(scale), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))];
            }
            return;
        }
        // SAFETY: as the caller promises.
        unsafe {
            let scales = decoded(block, block.scales, row, first, count, factor);
            (0..TILE).for_each(|g| self.0[g][0] = scales[g]);
            if !fp4 {
                let biases = decoded(block, block.biases, row, first, count, 1.0);
                (0..TILE).for_each(|g| self.0[g][1] = biases[g]);
            }
        }
    }
}

/// Eight groups of eight rows, by group.
///
/// # Safety
/// Groups `first..first + count` (at most 8) of eight rows from `row` on are readable in `from`.
#[target_feature(enable = "avx2,f16c")]
#[inline]
unsafe fn decoded(block: &Block, from: &[u8], row: usize, first: usize, count: usize, factor: f32) -> [__m256; TILE] {
    let mut r = [_mm256_setzero_si256(); STRIP];
    let row = |i: usize| from.as_ptr().wrapping_add((row + i) * block.scale_stride + first * block.kind.size());
    // SAFETY: as the caller promises.
    unsafe {
        match block.kind {
            ScaleKind::F32 if count == TILE => {
                for i in 0..STRIP {
                    r[i] = _mm256_loadu_si256(row(i).cast());
                }
            }
            ScaleKind::F16 if count == TILE => {
                for i in 0..STRIP {
                    r[i] = _mm256_castps_si256(_mm256_cvtph_ps(_mm_loadu_si128(row(i).cast())));
                }
            }
            ScaleKind::E8m0 if count == TILE => {
                for i in 0..STRIP {
                    let wide = _mm256_slli_epi32::<23>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(row(i).cast())));
                    let bits = _mm256_max_epu32(wide, _mm256_set1_epi32(0x40_0000));
                    r[i] = _mm256_castps_si256(_mm256_mul_ps(_mm256_castsi256_ps(bits), _mm256_set1_ps(factor)));
                }
            }
            kind => {
                for i in 0..STRIP {
                    let entries = std::slice::from_raw_parts(row(i), count * kind.size());
                    let mut values = [0f32; TILE];
                    for (value, entry) in values.iter_mut().zip(entries.chunks_exact(kind.size())) {
                        *value = kind.decode(entry) * factor;
                    }
                    r[i] = _mm256_loadu_si256(values.as_ptr().cast());
                }
            }
        }
    }
    let t = transpose(r);
    let mut out = [_mm256_setzero_ps(); TILE];
    for g in 0..TILE {
        out[g] = _mm256_castsi256_ps(t[g]);
    }
    out
}
