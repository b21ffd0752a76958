//! ggml's quantized blocks: repacked for lapis's own quantizations, or decoded to float16.
//!
//! Layouts are those of ggml's reference decoder (`dequantize_row_*` in ggml-quants.c). Values are computed in f32,
//! in its order of operations, and rounded once. All in portable code: this runs once, at load, at the speed of the
//! disk. The bytes move once: a block in, its values out.

use super::types::Type;
use crate::bytes::Bytes;
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
        Some(Packed { kind, bits, biased })
    }

    /// `bytes` are whole blocks.
    pub(super) fn repack(&self, bytes: &[u8]) -> Result<Parts> {
        let size = self.kind.block().1 as usize;
        let blocks = bytes.len() / size;
        let (code, scale, bias) = (4 * self.bits, if self.biased { 2 } else { 1 }, if self.biased { 2 } else { 0 });
        let mut codes = Bytes::zeroed(blocks * code)?;
        let mut scales = Bytes::zeroed(blocks * scale)?;
        let mut biases = Bytes::zeroed(blocks * 2)?;
        let infinite = std::sync::atomic::AtomicBool::new(false);
        let items: Vec<_> = bytes
            .chunks(size * PIECE)
            .zip(codes.chunks_mut(code * PIECE))
            .zip(scales.chunks_mut(scale * PIECE).zip(biases.chunks_mut(2 * PIECE)))
            .collect();
        spread(items, |((src, codes), (scales, biases))| {
            let rows = src.chunks_exact(size).zip(codes.chunks_exact_mut(code));
            let ends = scales.chunks_exact_mut(scale).zip(biases.chunks_exact_mut(2));
            for ((b, q), (s, m)) in rows.zip(ends) {
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
        let mut buffer = [0f32; 256];
        for (block, dst) in src.chunks_exact(size).zip(dst.chunks_exact_mut(2 * values)) {
            decode(kind, block, &mut buffer[..values]);
            for (d, &v) in dst.chunks_exact_mut(2).zip(&buffer[..values]) {
                d.copy_from_slice(&f16::from_f32(v).to_le_bytes());
            }
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
            for (e, y) in y.iter_mut().enumerate() {
                let (n, j, l) = (e / 128, e / 32 % 4, e % 32);
                let sc = s[8 * n + 2 * j + l / 16];
                let code = q[32 * n + l] >> (2 * j) & 3;
                *y = d * (sc & 15) as f32 * code as f32 - m * (sc >> 4) as f32;
            }
        }
        Type::Q3_K => {
            let (h, q, s, d) = (&b[..32], &b[32..96], &b[96..108], half(108));
            for (e, y) in y.iter_mut().enumerate() {
                let (n, j, l) = (e / 128, e / 32 % 4, e % 32);
                let i = 8 * n + 2 * j + l / 16;
                let low = if i < 8 { s[i] & 15 } else { s[i - 8] >> 4 };
                let scale = (low | (s[8 + i % 4] >> (2 * (i / 4)) & 3) << 4) as i32 - 32;
                let high = if h[l] >> (4 * n + j) & 1 != 0 { 0 } else { 4 };
                *y = d * scale as f32 * ((q[32 * n + l] >> (2 * j) & 3) as i32 - high) as f32;
            }
        }
        Type::Q4_K => {
            let (d, m, q) = (half(0), half(2), &b[16..144]);
            for (e, y) in y.iter_mut().enumerate() {
                let (j, l) = (e / 32, e % 32);
                let (sc, mn) = k_scale(&b[4..16], j);
                let code = q[32 * (j / 2) + l] >> (4 * (j % 2)) & 15;
                *y = d * sc * code as f32 - m * mn;
            }
        }
        Type::Q5_K => {
            let (d, m, h, q) = (half(0), half(2), &b[16..48], &b[48..176]);
            for (e, y) in y.iter_mut().enumerate() {
                let (j, l) = (e / 32, e % 32);
                let (sc, mn) = k_scale(&b[4..16], j);
                let code = q[32 * (j / 2) + l] >> (4 * (j % 2)) & 15 | (h[l] >> j & 1) << 4;
                *y = d * sc * code as f32 - m * mn;
            }
        }
        Type::Q6_K => {
            let (low, high, s, d) = (&b[..128], &b[128..192], &b[192..208], half(208));
            for (e, y) in y.iter_mut().enumerate() {
                let (n, p, l) = (e / 128, e / 32 % 4, e % 32);
                let code =
                    low[64 * n + 32 * (p % 2) + l] >> (4 * (p / 2)) & 15 | (high[32 * n + l] >> (2 * p) & 3) << 4;
                *y = d * (s[8 * n + 2 * p + l / 16] as i8) as f32 * (code as i32 - 32) as f32;
            }
        }
        _ => unreachable!("plain and packed types are not decoded"),
    }
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
