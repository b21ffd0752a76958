//! Products against decode-and-multiply in f64, and the promise that a row's bits do not depend on its company.

use super::activations::{Sum, activations};
use super::panel::{self, COLUMNS, FP4_OFFSET};
use super::*;
use crate::isa::{self, Isa};
use lapis_core::dtype::Dtype;

/// Pseudo-random numbers of about unit scale.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as u32
    }

    pub(super) fn bell(&mut self) -> f32 {
        let mut unit = || self.next() as f32 / (1u64 << 31) as f32 - 0.5;
        (unit() + unit() + unit() + unit()) * 1.7
    }
}

/// Packed matrices together with their exact values.
pub(super) struct Packed {
    pub(super) format: Format,
    pub(super) scale_dtype: Dtype,
    pub(super) global: Option<f32>,
    pub(super) stack: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
    packed: Vec<u8>,
    scales: Vec<u8>,
    biases: Vec<u8>,
    pub(super) values: Vec<f64>,
}

impl Packed {
    pub(super) fn new(
        seed: u64,
        format: Format,
        scale_dtype: Dtype,
        global: bool,
        [stack, rows, cols]: [usize; 3],
    ) -> Packed {
        let mut random = Random(seed);
        let count = stack * rows * cols;
        let w: Vec<f32> = (0..count).map(|_| halves::round_one(scale_dtype, random.bell())).collect();
        let global = global.then(|| w.iter().fold(0f32, |m, x| m.max(x.abs())));
        let isa = isa::isa();
        let mut bytes = vec![0; count * scale_dtype.size()];
        halves::store(isa, scale_dtype, &w, &mut bytes);
        let groups = count / format.group();
        let mut packed = vec![0; format.row_bytes(count)];
        let mut scales = vec![0; groups * format.scale_bytes(scale_dtype)];
        let mut biases = vec![0; if format.has_biases() { scales.len() } else { 0 }];
        quantize(isa, format, scale_dtype, &bytes, cols, global, &mut packed, &mut scales, &mut biases).unwrap();

        let bits = format.bits();
        let code = |i: usize| {
            (0..bits).fold(0u8, |code, b| code | (packed[(i * bits + b) / 8] >> ((i * bits + b) % 8) & 1) << b)
        };
        let number = |bytes: &[u8], g: usize| halves::load_one(scale_dtype, &bytes[g * scale_dtype.size()..]) as f64;
        let values = (0..count)
            .map(|i| {
                let g = i / format.group();
                match format.mode() {
                    Mode::Affine => code(i) as f64 * number(&scales, g) + number(&biases, g),
                    Mode::Mxfp4 => codes::decode_e2m1(code(i)) as f64 * 2f64.powi(scales[g] as i32 - 127),
                    Mode::Mxfp8 => codes::decode_e4m3(code(i)) as f64 * 2f64.powi(scales[g] as i32 - 127),
                    Mode::Nvfp4 => {
                        let global = global.map_or(1.0, |g| g as f64 / 2688.0);
                        codes::decode_e2m1(code(i)) as f64 * codes::decode_e4m3(scales[g]) as f64 * global
                    }
                }
            })
            .collect();
        Packed { format, scale_dtype, global, stack, rows, cols, packed, scales, biases, values }
    }

    /// Matrix `i` alone.
    pub(super) fn matrix(&self, i: usize) -> Weights<'_> {
        let part = |bytes: &'_ [u8]| bytes.len() / self.stack * i..bytes.len() / self.stack * (i + 1);
        Weights::new(
            "test",
            self.format,
            &self.packed[part(&self.packed)],
            &self.scales[part(&self.scales)],
            &self.biases[part(&self.biases)],
            self.scale_dtype,
            self.global,
            1,
            self.rows,
            self.cols,
        )
        .unwrap()
    }

    pub(super) fn weights(&self) -> Weights<'_> {
        Weights::new(
            "test",
            self.format,
            &self.packed,
            &self.scales,
            &self.biases,
            self.scale_dtype,
            self.global,
            self.stack,
            self.rows,
            self.cols,
        )
        .unwrap()
    }
}

/// Activations with padded rows, and their values.
pub(super) struct Left {
    bytes: Vec<u8>,
    pub(super) dtype: Dtype,
    pub(super) values: Vec<f64>,
    cols: usize,
}

impl Left {
    pub(super) fn new(seed: u64, dtype: Dtype, rows: usize, cols: usize) -> Left {
        let mut random = Random(seed);
        let padded: Vec<f32> = (0..rows * (cols + 3)).map(|_| halves::round_one(dtype, random.bell())).collect();
        let mut bytes = vec![0; padded.len() * dtype.size()];
        halves::store(isa::isa(), dtype, &padded, &mut bytes);
        let values = padded.chunks(cols + 3).flat_map(|r| r[..cols].iter().map(|&x| x as f64)).collect();
        Left { bytes, dtype, values, cols }
    }

    pub(super) fn rows(&self, range: std::ops::Range<usize>) -> Rows<'_> {
        let stride = self.cols + 3;
        let bytes = &self.bytes[range.start * stride * self.dtype.size()..];
        Rows::new("test", bytes, self.dtype, range.len(), self.cols, stride).unwrap()
    }
}

/// Every mode, width and group.
pub(super) fn formats() -> Vec<Format> {
    let mut all: Vec<_> = [Mode::Mxfp4, Mode::Mxfp8, Mode::Nvfp4].map(|m| Format::new(m, None, None).unwrap()).into();
    for bits in [1, 2, 3, 4, 5, 6, 8] {
        for group in [32, 64, 128] {
            all.push(Format::new(Mode::Affine, Some(bits), Some(group)).unwrap());
        }
    }
    all
}

fn product(isa: Isa, x: &Rows, w: &Weights, transpose: bool, arithmetic: Arithmetic, n: usize) -> Vec<f32> {
    let mut out = vec![0u8; x.rows() * n * 4];
    qmm(isa, x, w, transpose, arithmetic, Dtype::Float32, &mut out).unwrap();
    out.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// Largest allowed error of one output: f32 rounding over its terms, and, with 8-bit activations, half a step of each
/// group times its weights.
fn bound(x: &[f64], w: impl Iterator<Item = f64> + Clone, group: usize, bytes: bool) -> f64 {
    let rounding: f64 = x.iter().zip(w.clone()).map(|(x, w)| (x * w).abs()).sum::<f64>() * 1e-5;
    if !bytes {
        return rounding;
    }
    let w: Vec<f64> = w.collect();
    let step = |x: &[f64]| x.iter().fold(0f64, |m, x| m.max(x.abs())) / 127.0 * 0.501;
    rounding
        + x.chunks(group)
            .zip(w.chunks(group))
            .map(|(x, w)| step(x) * w.iter().map(|w| w.abs()).sum::<f64>())
            .sum::<f64>()
}

fn check(isa: Isa, w: &Packed, x: &Left, m: usize, transpose: bool, arithmetic: Arithmetic) {
    let (n, k) = if transpose { (w.rows, w.cols) } else { (w.cols, w.rows) };
    let got = product(isa, &x.rows(0..m), &w.weights(), transpose, arithmetic, n);
    let bytes = transpose && arithmetic == Arithmetic::Fast && x.dtype.is_half();
    for i in 0..m {
        for j in 0..n {
            let row = &x.values[i * k..][..k];
            let column = (0..k).map(|l| w.values[if transpose { j * k + l } else { l * n + j }]);
            let want: f64 = row.iter().zip(column.clone()).map(|(x, w)| x * w).sum();
            let (error, allowed) = ((got[i * n + j] as f64 - want).abs(), bound(row, column, w.format.group(), bytes));
            let format = w.format;
            assert!(error <= allowed, "{format:?} {isa:?} {arithmetic:?} {transpose} [{i}, {j}]: {error} > {allowed}");
        }
    }
}

#[test]
fn products_equal_decode_and_multiply() {
    // Odd sizes: a block and a tail of columns, and whole strips; slabs, and a last one that is one group.
    for (i, (format, n)) in formats().into_iter().flat_map(|f| [(f, 67), (f, 48)]).enumerate() {
        let k = 512 + format.group();
        let dtype = [Dtype::Bfloat16, Dtype::Float16, Dtype::Float32][i % 3];
        let w = Packed::new(i as u64, format, dtype, i % 2 == 0 && format.mode() == Mode::Nvfp4, [1, n, k]);
        for dtype in [Dtype::Float32, Dtype::Float16, Dtype::Bfloat16] {
            let x = Left::new(99, dtype, 9, k);
            for isa in isa::available() {
                for m in [1, 2, 9] {
                    check(isa, &w, &x, m, true, Arithmetic::Fast);
                }
                if dtype.is_half() {
                    check(isa, &w, &x, 3, true, Arithmetic::Exact);
                }
            }
        }
    }
}

#[test]
fn untransposed_products_equal_decode_and_multiply() {
    for (i, format) in formats().into_iter().enumerate() {
        let (n, k) = (128 + format.group(), 75);
        let w = Packed::new(i as u64, format, Dtype::Float16, i % 2 == 0 && format.mode() == Mode::Nvfp4, [1, k, n]);
        for dtype in [Dtype::Float32, Dtype::Bfloat16] {
            let x = Left::new(98, dtype, 8, k);
            for isa in isa::available() {
                check(isa, &w, &x, 1, false, Arithmetic::Fast);
                check(isa, &w, &x, 8, false, Arithmetic::Fast);
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_company() {
    for (i, format) in formats().into_iter().enumerate() {
        let (n, k) = (80, 256 + format.group());
        let w = Packed::new(i as u64, format, Dtype::Bfloat16, false, [1, n, k]);
        for (dtype, arithmetic) in [
            (Dtype::Bfloat16, Arithmetic::Fast),
            (Dtype::Float16, Arithmetic::Exact),
            (Dtype::Float32, Arithmetic::Fast),
        ] {
            let x = Left::new(97, dtype, 300, k);
            for isa in isa::available() {
                let together = product(isa, &x.rows(0..33), &w.weights(), true, arithmetic, n);
                for r in 0..33 {
                    let alone = product(isa, &x.rows(r..r + 1), &w.weights(), true, arithmetic, n);
                    assert_eq!(alone, together[r * n..][..n], "{format:?} {isa:?} row {r}");
                }
            }
            if i % 5 == 0 {
                let isa = isa::isa();
                let many = product(isa, &x.rows(0..300), &w.weights(), true, arithmetic, n);
                let some = product(isa, &x.rows(200..300), &w.weights(), true, arithmetic, n);
                assert_eq!(many[200 * n..], some, "{format:?}");
            }
        }
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn rows_read_lengthwise_give_the_same_bits() {
    if !isa::available().contains(&Isa::Avx512) {
        return eprintln!("skipped: this machine has no AVX-512");
    }
    let mut read = 0;
    for (i, format) in formats().into_iter().enumerate() {
        for scales in [Dtype::Bfloat16, Dtype::Float16, Dtype::Float32] {
            for k in [512, 2560, 4096] {
                let w = Packed::new(i as u64, format, scales, false, [1, 64, k]);
                let (w, left) = (w.weights(), Left::new(98, Dtype::Bfloat16, 1, k));
                let content = panel::Content::of(format);
                let sum = if format.has_biases() { Sum::Bias } else { Sum::Offset(FP4_OFFSET) };
                let x = activations(Isa::Avx512, &left.rows(0..1), format.bits(), format.group(), sum, &|_| true);
                let mut few = thin::Few::default();
                few.gather(&x, &[0], k, format.group(), format.bits(), thin::STRIP);
                let job = thin::Job { x: &few, cols: k, group: format.group(), bits: content.bits, fp4: content.fp4 };
                let block = w.block(0, 0, COLUMNS);
                if format.mode() == Mode::Mxfp8 || !lengthwise::fits(&block, &job) {
                    continue;
                }
                read += 1;
                let (mut crosswise, mut here) = ([0f32; COLUMNS], [0f32; COLUMNS]);
                let mut products = vec![0f32; lengthwise::room(w.groups())];
                // SAFETY: the level is there; there is room for 64 and for products.
                unsafe {
                    lone::block(&block, &job, crosswise.as_mut_ptr());
                    lengthwise::block(&block, &job, products.as_mut_ptr(), here.as_mut_ptr());
                    if thin::Strip::apart(&block) {
                        thin::interleave(&mut crosswise);
                    }
                }
                assert_eq!(crosswise, here, "{format:?}, scales in {scales:?}, {k} columns");
            }
        }
    }
    assert!(read > 30, "{read} products were read lengthwise");
}

#[test]
fn eight_bit_activations_cost_less_than_a_percent() {
    // Relative error of whole results, against f64, for bell-shaped activations.
    for format in formats().into_iter().filter(|f| f.mode() != Mode::Mxfp8) {
        let (m, n, k) = (4, 96, 1024);
        let w = Packed::new(5, format, Dtype::Bfloat16, false, [1, n, k]);
        let x = Left::new(6, Dtype::Bfloat16, m, k);
        let got = product(isa::isa(), &x.rows(0..m), &w.weights(), true, Arithmetic::Fast, n);
        let (mut error, mut total) = (0.0, 0.0);
        for i in 0..m {
            for j in 0..n {
                let want: f64 = (0..k).map(|l| x.values[i * k + l] * w.values[j * k + l]).sum();
                error += (got[i * n + j] as f64 - want).powi(2);
                total += want * want;
            }
        }
        assert!((error / total).sqrt() < 0.01, "{format:?}: {}", (error / total).sqrt());
    }
}

#[test]
fn not_a_number_stays_not_a_number() {
    let format = Format::new(Mode::Affine, None, None).unwrap();
    let w = Packed::new(1, format, Dtype::Bfloat16, false, [1, 70, 256]);
    for bad in [0x7fc0u16, 0x7f80, 0xff80] {
        let mut bytes = vec![0u8; 512];
        bytes[100..102].copy_from_slice(&bad.to_le_bytes());
        let x = Rows::new("test", &bytes, Dtype::Bfloat16, 1, 256, 256).unwrap();
        for isa in isa::available() {
            let got = product(isa, &x, &w.weights(), true, Arithmetic::Fast, 70);
            assert!(got.iter().all(|y| y.is_nan()), "{bad:x} {isa:?}");
        }
    }
}

#[test]
fn misfits_are_errors() {
    let format = Format::new(Mode::Affine, None, None).unwrap();
    let w = Packed::new(1, format, Dtype::Bfloat16, false, [1, 70, 256]);
    let x = vec![0u8; 256 * 4];
    let f32 = Dtype::Float32;
    let rows = |cols| Rows::new("test", &x, f32, 1, cols, cols);
    assert!(rows(257).is_err() && Rows::new("test", &x, Dtype::Int8, 1, 4, 4).is_err());
    let mut out = vec![0u8; 280];
    let mut call = |cols, transpose, dtype, len| {
        let x = rows(cols).unwrap();
        qmm(isa::isa(), &x, &w.weights(), transpose, Arithmetic::Fast, dtype, &mut out[..len])
    };
    assert!(call(256, true, f32, 280).is_ok());
    assert!(call(255, true, f32, 280).is_err());
    assert!(call(256, false, f32, 280).is_err());
    assert!(call(256, true, f32, 276).is_err());
    assert!(call(256, true, Dtype::Uint32, 280).is_err());
}

#[test]
fn gathered_products_are_the_products_of_the_pairs() {
    let (stack, m, k) = (5, 2, 320);
    let lhs = [3u32, 0, 0, 1, 2, 3, 3, 1, 0];
    let rhs = [4u32, 1, 4, 4, 0, 1, 1, 4, 2];
    for (i, format) in formats().into_iter().filter(|f| k % f.group() == 0).enumerate() {
        for (transpose, n) in [(true, 80), (true, 67), (false, 160)] {
            let (rows, cols) = if transpose { (n, k) } else { (k, n) };
            if cols % format.group() != 0 {
                continue;
            }
            let w = Packed::new(i as u64, format, Dtype::Bfloat16, false, [stack, rows, cols]);
            let x = Left::new(11, Dtype::Bfloat16, 4 * m, k);
            for isa in isa::available() {
                let mut out = vec![0u8; lhs.len() * m * n * 2];
                let (all, how) = (x.rows(0..4 * m), Arithmetic::Fast);
                gather_qmm(isa, &all, m, &w.weights(), &lhs, &rhs, transpose, how, Dtype::Bfloat16, &mut out).unwrap();
                for (i, (&l, &r)) in lhs.iter().zip(&rhs).enumerate() {
                    let mut pair = vec![0u8; m * n * 2];
                    let x = x.rows(l as usize * m..(l as usize + 1) * m);
                    qmm(isa, &x, &w.matrix(r as usize), transpose, how, Dtype::Bfloat16, &mut pair).unwrap();
                    assert_eq!(out[i * pair.len()..][..pair.len()], pair, "{format:?} {isa:?} {transpose} pair {i}");
                }
            }
        }
    }
}

#[test]
fn gathered_indices_are_checked() {
    let format = Format::new(Mode::Nvfp4, None, None).unwrap();
    let w = Packed::new(1, format, Dtype::Bfloat16, false, [2, 16, 64]);
    let x = Left::new(1, Dtype::Float32, 3, 64);
    let mut out = vec![0u8; 16 * 4];
    let mut call = |lhs: &[u32], rhs: &[u32]| {
        let (x, w) = (x.rows(0..3), w.weights());
        gather_qmm(isa::isa(), &x, 1, &w, lhs, rhs, true, Arithmetic::Fast, Dtype::Float32, &mut out)
    };
    assert!(call(&[2], &[1]).is_ok());
    assert!(call(&[3], &[1]).is_err());
    assert!(call(&[2], &[2]).is_err());
    assert!(call(&[2, 1], &[1]).is_err());
    assert!(call(&[2, 1], &[1, 1]).is_err());
}

#[test]
fn both_sides_quantized_is_the_product_of_the_decoded_sides() {
    let (n, k, m) = (83, 288, 7);
    for (mode, global) in [(Mode::Nvfp4, false), (Mode::Nvfp4, true), (Mode::Mxfp8, false)] {
        let format = Format::new(mode, None, None).unwrap();
        let w = Packed::new(3, format, Dtype::Float16, global, [2, n, k]);
        for dtype in [Dtype::Float32, Dtype::Float16, Dtype::Bfloat16] {
            let x = Left::new(4, dtype, m, k);
            let largest = global.then(|| x.values.iter().fold(0f32, |m, x| m.max(x.abs() as f32)));
            // The decoded left side, by the functions that are tested against MLX.
            let values: Vec<f32> = x.values.iter().map(|&x| x as f32).collect();
            let mut bytes = vec![0; values.len() * dtype.size()];
            halves::store(isa::isa(), dtype, &values, &mut bytes);
            let (mut codes, mut scales) = (vec![0; format.row_bytes(m * k)], vec![0; m * k / format.group()]);
            quantize(isa::isa(), format, dtype, &bytes, k, largest, &mut codes, &mut scales, &mut []).unwrap();
            let mut back = vec![0f32; m * k];
            let f32 = Dtype::Float32;
            let out = bytemuck::cast_slice_mut(&mut back);
            dequantize(isa::isa(), format, &codes, &scales, &[], f32, k, largest, f32, out).unwrap();

            for isa in isa::available() {
                let (lhs, rhs): (Vec<u32>, Vec<u32>) =
                    ((0..m as u32).collect(), (0..m as u32).map(|i| i % 2).collect());
                let mut gathered = vec![0f32; m * n];
                let out = bytemuck::cast_slice_mut(&mut gathered);
                gather_qqmm(isa, &x.rows(0..m), 1, largest, &w.weights(), &lhs, &rhs, f32, out).unwrap();
                let mut plain = vec![0f32; m * n];
                let out = bytemuck::cast_slice_mut(&mut plain);
                qqmm(isa, &x.rows(0..m), largest, &w.matrix(0), f32, out).unwrap();
                for i in 0..m {
                    if i % 2 == 0 {
                        assert_eq!(gathered[i * n..][..n], plain[i * n..][..n], "{mode:?} {isa:?}");
                    }
                    for j in 0..n {
                        let matrix = i % 2;
                        let pairs = (0..k).map(|l| back[i * k + l] as f64 * w.values[(matrix * n + j) * k + l]);
                        let (want, size) = pairs.fold((0.0, 0.0), |(a, b), p| (a + p, b + p.abs()));
                        let error = (gathered[i * n + j] as f64 - want).abs();
                        assert!(error <= 1e-6 * size, "{mode:?} {dtype} {isa:?} [{i}, {j}]: {error} of {size}");
                    }
                }
            }
        }
    }
    let affine = Packed::new(3, Format::new(Mode::Affine, None, None).unwrap(), Dtype::Float32, false, [1, 16, 64]);
    let x = Left::new(4, Dtype::Float32, 1, 64);
    assert!(qqmm(isa::isa(), &x.rows(0..1), None, &affine.weights(), Dtype::Float32, &mut [0; 64]).is_err());
}
