//! Panels with AVX-512: sixteen rows are transposed as 32-bit words, so that shifts and masks of whole registers give
//! units. Widths that straddle bytes are first spread to bytes with VBMI.

use super::panel::{COLUMNS, Content, FP4_BYTES, PANEL, SCALE_TILE};
use super::thin::Strip;
use super::weights::{Block, ScaleKind};
use crate::turn::transpose;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

/// Vectors of sixteen lanes in a unit of 64 rows.
const VECTORS: usize = COLUMNS / 16;

/// As `panel::unpack`.
///
/// # Safety
/// `codes * bits / 8` bytes at `offset` in each of the block's rows are readable.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
pub(super) unsafe fn unpack(content: Content, block: &Block, offset: usize, codes: usize, panel: &mut [u8; PANEL]) {
    for v in 0..VECTORS {
        let rows = rows(block, v, offset);
        // SAFETY: as the caller promises.
        unsafe {
            match content {
                Content { fp4: true, .. } => words::<4, true>(rows, codes, v, panel),
                Content { bits: 1, .. } => words::<1, false>(rows, codes, v, panel),
                Content { bits: 2, .. } => words::<2, false>(rows, codes, v, panel),
                Content { bits: 3, .. } => straddling::<3>(rows, codes, v, panel),
                Content { bits: 4, .. } => words::<4, false>(rows, codes, v, panel),
                Content { bits: 5, .. } => straddling::<5>(rows, codes, v, panel),
                Content { bits: 6, .. } => straddling::<6>(rows, codes, v, panel),
                _ => words::<8, false>(rows, codes, v, panel),
            }
        }
    }
}

/// Sixteen rows' addresses; rows that do not exist repeat the last one.
fn rows(block: &Block, v: usize, offset: usize) -> [*const u8; 16] {
    std::array::from_fn(|i| {
        let row = (16 * v + i).min(block.valid - 1);
        block.packed[row * block.stride + offset..].as_ptr()
    })
}

#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn words<const BITS: usize, const FP4: bool>(
    rows: [*const u8; 16],
    codes: usize,
    v: usize,
    panel: &mut [u8; PANEL],
) {
    let per_word = 8 / BITS;
    let controls = Controls::new(BITS);
    let words = codes * BITS / 32;
    let mut first = 0;
    while first < words {
        let lanes = (1u32 << (words - first).min(16)) - 1;
        let mut r = [_mm512_setzero_si512(); 16];
        for i in 0..16 {
            // SAFETY: the mask keeps the load inside the row.
            r[i] = unsafe { _mm512_maskz_loadu_epi32(lanes as __mmask16, rows[i].add(4 * first).cast()) };
        }
        let t = transpose(r);
        for w in 0..16usize.min(8 * BITS) {
            for h in 0..per_word {
                let mut unit = t[w];
                if BITS < 8 {
                    let shifted =
                        if h == 0 { unit } else { _mm512_srl_epi32(unit, _mm_cvtsi32_si128((BITS * h) as i32)) };
                    unit = _mm512_and_si512(shifted, controls.mask);
                }
                if FP4 {
                    unit = _mm512_shuffle_epi8(controls.fp4, unit);
                }
                store(unit, (first + w) * per_word + h, v, panel);
            }
        }
        first += 16;
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
#[inline]
unsafe fn straddling<const BITS: usize>(rows: [*const u8; 16], codes: usize, v: usize, panel: &mut [u8; PANEL]) {
    let controls = Controls::new(BITS);
    let mut first = 0;
    while first < codes {
        let bytes = (codes - first).min(64) * BITS / 8;
        let mut r = [_mm512_setzero_si512(); 16];
        for i in 0..16 {
            // SAFETY: the mask keeps the load inside the row.
            let packed = unsafe { _mm512_maskz_loadu_epi8((1 << bytes) - 1, rows[i].add(first * BITS / 8).cast()) };
            r[i] = controls.spread(packed);
        }
        let t = transpose(r);
        for w in 0..16 {
            store(t[w], first / 4 + w, v, panel);
        }
        first += 64;
    }
}

/// Constants that cut words into codes.
#[derive(Clone, Copy)]
pub(super) struct Controls {
    /// The low `bits` bits of each byte.
    pub(super) mask: __m512i,
    /// Bytes of E2M1 codes, for a shuffle.
    pub(super) fp4: __m512i,
    runs: __m512i,
    quarter_runs: __m512i,
    cuts: __m512i,
}

impl Controls {
    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    pub(super) fn new(bits: usize) -> Controls {
        let runs: [u8; 64] = std::array::from_fn(|i| (i / 8 * bits + i % 8) as u8);
        let quarter_runs: [u8; 64] = std::array::from_fn(|i| (i % 16 / 8 * bits + i % 8) as u8);
        let cuts: [u8; 64] = std::array::from_fn(|i| (i % 8 * bits) as u8);
        // SAFETY: loads of arrays.
        unsafe {
            Controls {
                mask: _mm512_set1_epi8(((1u16 << bits) - 1) as i8),
                fp4: _mm512_broadcast_i32x4(_mm_loadu_si128(FP4_BYTES.as_ptr().cast())),
                runs: _mm512_loadu_si512(runs.as_ptr().cast()),
                quarter_runs: _mm512_loadu_si512(quarter_runs.as_ptr().cast()),
                cuts: _mm512_loadu_si512(cuts.as_ptr().cast()),
            }
        }
    }

    /// 64 codes that straddle bytes, one a byte. Eight codes are `bits` bytes: bring each such run into a 64-bit lane,
    /// then cut it at its bit positions.
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    #[inline]
    pub(super) fn spread(&self, packed: __m512i) -> __m512i {
        let run = _mm512_permutexvar_epi8(self.runs, packed);
        _mm512_and_si512(_mm512_multishift_epi64_epi8(self.cuts, run), self.mask)
    }

    /// As [`Controls::spread`] for 16 codes in each quarter.
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    #[inline]
    pub(super) fn spread_quarters(&self, packed: __m512i) -> __m512i {
        let run = _mm512_shuffle_epi8(packed, self.quarter_runs);
        _mm512_and_si512(_mm512_multishift_epi64_epi8(self.cuts, run), self.mask)
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn store(unit: __m512i, index: usize, v: usize, panel: &mut [u8; PANEL]) {
    let at = (index * VECTORS + v) * 64;
    debug_assert!(at + 64 <= PANEL);
    // SAFETY: 64 units of four vectors fill a panel, and callers stay below 64 (at most 256 codes).
    unsafe { _mm512_storeu_si512(panel.as_mut_ptr().add(at).cast(), unit) }
}

/// As `panel::tile`: sixteen groups of sixteen rows at a time are decoded and transposed.
///
/// # Safety
/// Groups `first..first + count` (at most 16) of each of the block's rows are readable in `from`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn tile(
    block: &Block,
    from: &[u8],
    first: usize,
    count: usize,
    factor: f32,
    out: &mut [f32; SCALE_TILE],
) {
    for v in 0..VECTORS {
        // SAFETY: as the caller promises; a tile holds 16 groups of four vectors.
        unsafe {
            scale_strip(
                block,
                from,
                Strip { first: 16 * v, step: 1 },
                first,
                count,
                factor,
                out.as_mut_ptr().add(16 * v),
                COLUMNS,
            )
        }
    }
}

/// Sixteen groups of a strip's rows, decoded, to `out[group * stride..][..16]`.
///
/// # Safety
/// Groups `first..first + count` (at most 16) of each of the block's rows are readable in `from`; 16 groups fit in `out`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
#[inline]
unsafe fn scale_strip(
    block: &Block,
    from: &[u8],
    strip: Strip,
    first: usize,
    count: usize,
    factor: f32,
    out: *mut f32,
    stride: usize,
) {
    let lanes = ((1u32 << count) - 1) as __mmask16;
    let rows: [*const u8; 16] = std::array::from_fn(|i| {
        let row = (strip.first + i * strip.step).min(block.valid - 1);
        from[row * block.scale_stride + first * block.kind.size()..].as_ptr()
    });
    let factor = _mm512_set1_ps(factor);
    let mut r = [_mm512_setzero_si512(); 16];
    // One loop a kind. (`array::map` would not inherit the instruction set, and call every intrinsic.)
    macro_rules! each {
        ($($kind:ident)*) => {
            match block.kind {
                $(ScaleKind::$kind => for i in 0..16 {
                    // SAFETY: masks keep the loads within `count` groups.
                    r[i] = _mm512_castps_si512(unsafe { sixteen(ScaleKind::$kind, rows[i], lanes, factor) });
                })*
            }
        };
    }
    each!(F32 F16 Bf16 E8m0 E4m3);
    let t = transpose(r);
    for group in 0..16 {
        // SAFETY: as the caller promises.
        unsafe { _mm512_storeu_ps(out.add(group * stride), _mm512_castsi512_ps(t[group])) }
    }
}

/// Sixteen scales (or biases) one behind the other, decoded: those of `lanes`, and zeros. `factor` is for kinds of a byte.
///
/// # Safety
/// They are readable at `p`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
#[inline]
pub(super) unsafe fn sixteen(kind: ScaleKind, p: *const u8, lanes: __mmask16, factor: __m512) -> __m512 {
    // SAFETY: as the caller promises.
    unsafe {
        match kind {
            ScaleKind::F32 => _mm512_maskz_loadu_ps(lanes, p.cast()),
            ScaleKind::F16 => _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, p.cast())),
            ScaleKind::Bf16 => {
                let wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, p.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
            }
            ScaleKind::E8m0 => {
                let wide = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(lanes, p.cast()));
                let bits = _mm512_max_epu32(_mm512_slli_epi32::<23>(wide), _mm512_set1_epi32(0x40_0000));
                _mm512_mul_ps(_mm512_castsi512_ps(bits), factor)
            }
            ScaleKind::E4m3 => {
                let wide = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(lanes, p.cast()));
                _mm512_mul_ps(e4m3(wide), factor)
            }
        }
    }
}

/// Scales and biases of sixteen rows and sixteen groups, by group.
pub(super) struct Scales {
    /// bf16 scale and bias of a group share a lane: upper and lower half.
    paired: bool,
    biased: bool,
    /// Those that were loaded.
    tile: [[MaybeUninit<__m512i>; 2]; 16],
}

impl Scales {
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) fn new(block: &Block, biased: bool) -> Scales {
        let paired = biased && block.kind == ScaleKind::Bf16;
        Scales { paired, biased, tile: [const { [MaybeUninit::uninit(); 2] }; 16] }
    }

    /// Takes groups `first..first + count`, where `first` is a multiple of 16 and `count` at most 16.
    ///
    /// # Safety
    /// They exist in the strip's rows of the block.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    #[inline]
    pub(super) unsafe fn load(&mut self, block: &Block, strip: Strip, first: usize, count: usize, fp4: bool) {
        // SAFETY: as the caller promises.
        unsafe {
            if self.paired {
                return bf16_pairs(block, strip, first, count, &mut self.tile);
            }
            let factor = if fp4 { 0.5 * block.factor } else { block.factor };
            let to = self.tile.as_mut_ptr().cast::<f32>();
            scale_strip(block, block.scales, strip, first, count, factor, to, 32);
            if self.biased {
                scale_strip(block, block.biases, strip, first, count, 1.0, to.add(16), 32);
            }
        }
    }

    /// Scales and biases (0 where there are none) of a group.
    ///
    /// # Safety
    /// Its sixteen are those that were loaded last.
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) unsafe fn get(&self, group: usize) -> (__m512, __m512) {
        let [a, b] = &self.tile[group % 16];
        // SAFETY: as the caller promises.
        let a = unsafe { a.assume_init() };
        if self.paired {
            let scale = _mm512_and_si512(a, _mm512_set1_epi32(0xffff << 16));
            return (_mm512_castsi512_ps(scale), _mm512_castsi512_ps(_mm512_slli_epi32::<16>(a)));
        }
        // SAFETY: as above, and there are biases.
        let b = if self.biased { unsafe { b.assume_init() } } else { _mm512_setzero_si512() };
        (_mm512_castsi512_ps(a), _mm512_castsi512_ps(b))
    }
}

/// bf16 scales (upper halves of lanes) and biases (lower halves) of sixteen groups of a strip's rows.
///
/// # Safety
/// Groups `first..first + count` (at most 16) of those rows are readable in the block's scales and biases.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
#[inline]
unsafe fn bf16_pairs(
    block: &Block,
    strip: Strip,
    first: usize,
    count: usize,
    out: &mut [[MaybeUninit<__m512i>; 2]; 16],
) {
    let lanes = ((1u32 << count) - 1) as __mmask16;
    let order: [u16; 32] = std::array::from_fn(|i| (i / 2 + if i % 2 == 0 { 16 } else { 0 }) as u16);
    // SAFETY: a load of the array.
    let order = unsafe { _mm512_loadu_si512(order.as_ptr().cast()) };
    let mut r = [_mm512_setzero_si512(); 16];
    for i in 0..16 {
        let at = (strip.first + i * strip.step) * block.scale_stride + 2 * first;
        // SAFETY: as the caller promises; the masks keep the loads within `count` groups.
        let (scales, biases) = unsafe {
            (
                _mm256_maskz_loadu_epi16(lanes, block.scales.as_ptr().add(at).cast()),
                _mm256_maskz_loadu_epi16(lanes, block.biases.as_ptr().add(at).cast()),
            )
        };
        let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(scales), biases);
        r[i] = _mm512_permutexvar_epi16(order, both);
    }
    let t = transpose(r);
    for group in 0..16 {
        out[group][0].write(t[group]);
    }
}

/// Values of E4M3 codes, one a lane.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn e4m3(codes: __m512i) -> __m512 {
    let magnitude = _mm512_and_si512(codes, _mm512_set1_epi32(0x7f));
    let sign = _mm512_slli_epi32::<24>(_mm512_xor_si512(codes, magnitude));
    let normal = _mm512_add_epi32(_mm512_slli_epi32::<20>(magnitude), _mm512_set1_epi32((127 - 7) << 23));
    let subnormal = _mm512_mul_ps(_mm512_cvtepi32_ps(magnitude), _mm512_set1_ps(1.0 / 512.0));
    let small = _mm512_cmplt_epi32_mask(magnitude, _mm512_set1_epi32(8));
    let bits = _mm512_mask_blend_epi32(small, normal, _mm512_castps_si512(subnormal));
    let nan = _mm512_cmpeq_epi32_mask(magnitude, _mm512_set1_epi32(0x7f));
    let bits = _mm512_mask_blend_epi32(nan, bits, _mm512_set1_epi32(0x7fc0_0000));
    _mm512_castsi512_ps(_mm512_or_si512(bits, sign))
}
