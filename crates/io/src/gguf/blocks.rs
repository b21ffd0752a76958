//! ggml's quantized blocks: repacked for lapis's own quantizations, or decoded to float16.
//!
//! Layouts are those of ggml's reference decoder (`dequantize_row_*` in ggml-quants.c). Values are computed in f32,
//! in its order of operations, and rounded once. All in portable code: this runs once, at load, at the speed of the
//! disk. The bytes move once: a block in, its values out.

use super::types::Type;
use crate::bytes::Bytes;
use half::slice::HalfFloatSliceExt;
use lapis_core::dtype::f16;
use lapis_core::error::Result;

/// Blocks of one piece of work; pieces run on as many threads as the machine has.
const PIECE: usize = 4096;

/// Runs `work` on all items, on several threads when there are several items.
fn spread<T: Send>(items: Vec<T>, work: impl Fn(T) + Sync) {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(items.len());
    if threads <= 1 {
        return items.into_iter().for_each(work);
    }
    let queue = std::sync::Mutex::new(items.into_iter());
    let next = || queue.lock().unwrap_or_else(|e| e.into_inner()).next();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(item) = next() {
                    work(item);
                }
            });
        }
    });
}

/// A block type that keeps its bits.
pub(super) struct Packed {
    kind: Type,
    /// Bits of a code.
    pub(super) bits: usize,
    /// Whether there are biases: affine quantization; else mode mxfp4.
    pub(super) biased: bool,
    /// Groups of 32 in a block.
    groups: usize,
}

/// Codes in sequential order, scales and biases of groups of 32.
pub(super) struct Parts {
    pub(super) codes: Bytes,
    pub(super) scales: Bytes,
    pub(super) biases: Bytes,
    /// False when a finite scale gave an infinite bias.
    pub(super) finite: bool,
}

impl Packed {
    /// `None` for types that are decoded.
    pub(super) fn of(kind: Type) -> Option<Packed> {
        let (bits, biased) = match kind {
            Type::Q4_0 | Type::Q4_1 => (4, true),
            Type::Q8_0 => (8, true),
            Type::MXFP4 => (4, false),
            _ => return None,
        };
        Some(Packed { kind, bits, biased, groups: 1 })
    }

    /// As [`Packed::of`], and types whose codes are those of affine quantization while the products that make their
    /// scales have to be rounded to float16.
    pub(super) fn nearly(kind: Type) -> Option<Packed> {
        match kind {
            Type::Q4_K => Some(Packed { kind, bits: 4, biased: true, groups: 8 }),
            Type::Q5_K => Some(Packed { kind, bits: 5, biased: true, groups: 8 }),
            _ => Packed::of(kind),
        }
    }

    /// `bytes` are whole blocks.
    pub(super) fn repack(&self, bytes: &[u8]) -> Result<Parts> {
        let size = self.kind.block().1 as usize;
        let blocks = bytes.len() / size;
        let (code, scale, bias) = (4 * self.bits, if self.biased { 2 } else { 1 }, if self.biased { 2 } else { 0 });
        let (code, scale, each) = (code * self.groups, scale * self.groups, 2 * self.groups);
        let mut codes = Bytes::zeroed(blocks * code)?;
        let mut scales = Bytes::zeroed(blocks * scale)?;
        let mut biases = Bytes::zeroed(blocks * each)?;
        let infinite = std::sync::atomic::AtomicBool::new(false);
        let items: Vec<_> = bytes
            .chunks(size * PIECE)
            .zip(codes.chunks_mut(code * PIECE))
            .zip(scales.chunks_mut(scale * PIECE).zip(biases.chunks_mut(each * PIECE)))
            .collect();
        spread(items, |((src, codes), (scales, biases))| {
            let rows = src.chunks_exact(size).zip(codes.chunks_exact_mut(code));
            let ends = scales.chunks_exact_mut(scale).zip(biases.chunks_exact_mut(each));
            for ((b, q), (s, m)) in rows.zip(ends) {
                if self.groups > 1 {
                    if !self.eight_groups(b, q, s, m) {
                        infinite.store(true, std::sync::atomic::Ordering::Relaxed);
                    }
                    continue;
                }
                s.copy_from_slice(&b[..scale]);
                let half = |at| f16::from_le_bytes([b[at], b[at + 1]]);
                let bias = match self.kind {
                    Type::Q4_0 => f16::from_f32(-8.0 * half(0).to_f32()),
                    Type::Q4_1 => half(2),
                    Type::Q8_0 => f16::from_f32(-128.0 * half(0).to_f32()),
                    _ => f16::ZERO,
                };
                if bias.is_infinite() && half(0).is_finite() && self.kind != Type::Q4_1 {
                    infinite.store(true, std::sync::atomic::Ordering::Relaxed);
                }
                m.copy_from_slice(&bias.to_le_bytes());
                match self.kind {
                    Type::Q8_0 => q.iter_mut().zip(&b[2..]).for_each(|(q, v)| *q = v ^ 0x80),
                    _ => sequential(&b[scale + if self.kind == Type::Q4_1 { 2 } else { 0 }..], q),
                }
            }
        });
        if bias == 0 {
            biases = Bytes::zeroed(0)?;
        }
        Ok(Parts { codes, scales, biases, finite: !infinite.into_inner() })
    }
}

impl Packed {
    /// A block of Q4_K or Q5_K; whether scales and biases of finite factors are finite.
    fn eight_groups(&self, b: &[u8], codes: &mut [u8], scales: &mut [u8], biases: &mut [u8]) -> bool {
        let half = |at: usize| f16::from_le_bytes([b[at], b[at + 1]]).to_f32();
        let (d, m) = (half(0), half(2));
        let (high, q) = if self.bits == 5 { (&b[16..48], &b[48..176]) } else { (&[][..], &b[16..144]) };
        let ends = scales.chunks_exact_mut(2).zip(biases.chunks_exact_mut(2));
        let mut finite = true;
        for (j, (codes, (s, bias))) in codes.chunks_exact_mut(4 * self.bits).zip(ends).enumerate() {
            let (sc, mn) = k_scale(&b[4..16], j);
            let (scale, least) = (f16::from_f32(d * sc), f16::from_f32(-(m * mn)));
            finite &= (scale.is_finite() || !d.is_finite()) && (least.is_finite() || !m.is_finite());
            s.copy_from_slice(&scale.to_le_bytes());
            bias.copy_from_slice(&least.to_le_bytes());
            let low = |i: usize| q[32 * (j / 2) + i] >> (4 * (j % 2)) & 15;
            let code = |i: usize| u64::from(low(i) | high.get(i).map_or(0, |h| (h >> j & 1) << 4));
            for (i, out) in codes.chunks_exact_mut(self.bits).enumerate() {
                let eight = (0..8).fold(0u64, |all, k| all | code(8 * i + k) << (k * self.bits));
                out.copy_from_slice(&eight.to_le_bytes()[..self.bits]);
            }
        }
        finite
    }
}

/// Sixteen bytes whose low nibbles are elements 0 to 15 and whose high ones 16 to 31, put in the order of elements.
fn sequential(halves: &[u8], out: &mut [u8]) {
    for i in 0..8 {
        let (a, b) = (halves[2 * i], halves[2 * i + 1]);
        out[i] = a & 15 | b << 4;
        out[i + 8] = a >> 4 | b & 0xf0;
    }
}

/// Whole blocks of a type that does not stay packed, as float16.
pub(super) fn to_f16(kind: Type, bytes: &[u8]) -> Result<Bytes> {
    let (values, size) = kind.block();
    let (values, size) = (values as usize, size as usize);
    let mut out = Bytes::zeroed(bytes.len() / size * values * 2)?;
    let items: Vec<_> = bytes.chunks(size * PIECE).zip(out.chunks_mut(2 * values * PIECE)).collect();
    spread(items, |(src, dst)| {
        let (mut wide, mut narrow) = ([0f32; 256], [f16::ZERO; 256]);
        for (block, dst) in src.chunks_exact(size).zip(dst.chunks_exact_mut(2 * values)) {
            decode(kind, block, &mut wide[..values]);
            narrow[..values].convert_from_f32_slice(&wide[..values]);
            dst.copy_from_slice(bytemuck::cast_slice(&narrow[..values]));
        }
    });
    Ok(out)
}

/// One block to its values.
fn decode(kind: Type, b: &[u8], y: &mut [f32]) {
    let half = |at: usize| f16::from_le_bytes([b[at], b[at + 1]]).to_f32();
    match kind {
        Type::Q5_0 => {
            let d = half(0);
            five_bits(&b[2..6], &b[6..], y, |q| (q - 16) as f32 * d);
        }
        Type::Q5_1 => {
            let (d, m) = (half(0), half(2));
            five_bits(&b[4..8], &b[8..], y, |q| q as f32 * d + m);
        }
        Type::Q2_K => {
            let (s, q, d, m) = (&b[..16], &b[16..80], half(80), half(82));
            for (i, y) in y.chunks_exact_mut(16).enumerate() {
                let Part { q, shift, .. } = part(q, i);
                let (dl, ml) = (d * (s[i] & 15) as f32, m * (s[i] >> 4) as f32);
                y.iter_mut().zip(q).for_each(|(y, q)| *y = dl * (q >> shift & 3) as f32 - ml);
            }
        }
        Type::Q3_K => {
            let (h, q, s, d) = (&b[..32], &b[32..96], &b[96..108], half(108));
            for (i, y) in y.chunks_exact_mut(16).enumerate() {
                let Part { q, shift, half } = part(q, i);
                let low = if i < 8 { s[i] & 15 } else { s[i - 8] >> 4 };
                let dl = d * ((low | (s[8 + i % 4] >> (2 * (i / 4)) & 3) << 4) as i32 - 32) as f32;
                let high = h[16 * half..].iter().map(|h| if h >> (i / 2) & 1 != 0 { 0 } else { 4 });
                let codes = q.iter().zip(high).map(|(q, high)| (q >> shift & 3) as i32 - high);
                y.iter_mut().zip(codes).for_each(|(y, code)| *y = dl * code as f32);
            }
        }
        Type::Q4_K => {
            let (d, m, q) = (half(0), half(2), &b[16..144]);
            for (j, y) in y.chunks_exact_mut(32).enumerate() {
                let (sc, mn) = k_scale(&b[4..16], j);
                let (dl, ml, shift) = (d * sc, m * mn, 4 * (j % 2));
                let q = &q[32 * (j / 2)..][..32];
                y.iter_mut().zip(q).for_each(|(y, q)| *y = dl * (q >> shift & 15) as f32 - ml);
            }
        }
        Type::Q5_K => {
            let (d, m, h, q) = (half(0), half(2), &b[16..48], &b[48..176]);
            for (j, y) in y.chunks_exact_mut(32).enumerate() {
                let (sc, mn) = k_scale(&b[4..16], j);
                let (dl, ml, shift) = (d * sc, m * mn, 4 * (j % 2));
                let codes = q[32 * (j / 2)..].iter().zip(h).map(|(q, h)| q >> shift & 15 | (h >> j & 1) << 4);
                y.iter_mut().zip(codes).for_each(|(y, code)| *y = dl * code as f32 - ml);
            }
        }
        Type::Q6_K => {
            let (low, high, s, d) = (&b[..128], &b[128..192], &b[192..208], half(208));
            for (i, y) in y.chunks_exact_mut(16).enumerate() {
                let Part { q: high, shift, half } = part(high, i);
                // The quarters of 32 values in a half block of 128: the low nibbles of 64 bytes, then the high ones.
                let p = i / 2 % 4;
                let low = &low[64 * (i / 8) + 32 * (p % 2) + 16 * half..][..16];
                let dl = d * (s[i] as i8) as f32;
                let codes = low.iter().zip(high).map(|(l, h)| l >> (4 * (p / 2)) & 15 | (h >> shift & 3) << 4);
                y.iter_mut().zip(codes).for_each(|(y, code)| *y = dl * (code as i32 - 32) as f32);
            }
        }
        _ => unreachable!("plain and packed types are not decoded"),
    }
}

/// Where sixteen values find their two bits.
struct Part<'a> {
    q: &'a [u8],
    shift: usize,
    /// Which half of 32 values it is.
    half: usize,
}

/// The `i`-th sixteen of 256 values whose two bits lie in 64 bytes: 32 bytes serve 128 values, four to a byte.
fn part(q: &[u8], i: usize) -> Part<'_> {
    let half = i % 2;
    Part { q: &q[32 * (i / 8) + 16 * half..][..16], shift: 2 * (i / 2 % 4), half }
}

/// Nibbles in halves with a fifth bit from `h`.
fn five_bits(h: &[u8], q: &[u8], y: &mut [f32], value: impl Fn(i32) -> f32) {
    let h = u32::from_le_bytes([h[0], h[1], h[2], h[3]]);
    for j in 0..16 {
        y[j] = value((q[j] & 15) as i32 + 16 * (h >> j & 1) as i32);
        y[j + 16] = value((q[j] >> 4) as i32 + 16 * (h >> (j + 16) & 1) as i32);
    }
}

/// Scale and minimum of sub-block `j`: six bits each, packed in twelve bytes.
fn k_scale(s: &[u8], j: usize) -> (f32, f32) {
    let (sc, mn) = if j < 4 {
        (s[j] & 63, s[j + 4] & 63)
    } else {
        (s[j + 4] & 15 | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4)
    };
    (sc as f32, mn as f32)
}
