//! Quantization against MLX: hashes of its outputs on inputs that both sides make from the same integers
//! (`testdata/quantize_mlx.py`).

use super::*;
use crate::isa::{self, Isa};
use lapis_core::dtype::Dtype;

const K: usize = 256;

/// The generator of quantize_mlx.py.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> i64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as i64
    }

    fn bell(&mut self) -> f32 {
        let sum = self.next() + self.next() + self.next() + self.next();
        ((sum - (1 << 25)) as f64 / (1u32 << 24) as f64) as f32
    }
}

fn input() -> Vec<f32> {
    let mut draw = Draw(1);
    let mut out = Vec::new();
    for row in 0..18 {
        let v: Vec<f32> = (0..K).map(|_| draw.bell()).collect();
        out.extend(v.into_iter().enumerate().map(|(i, x)| match row / 2 {
            0 => x,
            1 => x.abs() + 0.125,
            2 => -x.abs() - 0.125,
            3 => 0.37,
            4 => 0.0,
            5 => (draw.next() % 49 - 24) as f32 * 0.25,
            6 => x * 0.001,
            7 if i % 37 == 5 => x * 100.0,
            7 => x,
            _ => x * 2f32.powi(-60),
        }));
    }
    out
}

fn fnv(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf29ce484222325, |h: u64, &b| (h ^ b as u64).wrapping_mul(0x100000001b3));
    format!("{hash:016x}")
}

/// Hashes of packed codes, scales, biases and decoded values, in the form of quantize_mlx.txt.
fn hashes(isa: Isa, name: &str, bits: usize, group: usize, dtype: Dtype) -> [String; 4] {
    let values = input();
    let mut w = vec![0; values.len() * dtype.size()];
    halves::store(isa, dtype, &values, &mut w);
    if name == "to_fp8" {
        let (mut codes, mut back) = (vec![0; values.len()], vec![0; w.len()]);
        to_fp8(isa, dtype, &w, &mut codes).unwrap();
        from_fp8(isa, &codes, dtype, &mut back).unwrap();
        return [fnv(&codes), "-".into(), "-".into(), fnv(&back)];
    }
    let (name, global) = match name.strip_suffix("-global") {
        Some(name) => {
            let mut rounded = values.clone();
            halves::load(isa, dtype, &w, &mut rounded);
            (name, Some(rounded.iter().fold(0f32, |m, x| m.max(x.abs()))))
        }
        None => (name, None),
    };
    let format = Format::new(Mode::from_name(name).unwrap(), Some(bits), Some(group)).unwrap();
    let groups = values.len() / group;
    let mut packed = vec![0; format.row_bytes(values.len())];
    let mut scales = vec![0; groups * format.scale_bytes(dtype)];
    let mut biases = vec![0; if format.has_biases() { scales.len() } else { 0 }];
    quantize(isa, format, dtype, &w, K, global, &mut packed, &mut scales, &mut biases).unwrap();
    let out_dtype = if global.is_some() { Dtype::Float32 } else { dtype };
    let mut back = vec![0; values.len() * out_dtype.size()];
    dequantize(isa, format, &packed, &scales, &biases, dtype, K, global, out_dtype, &mut back).unwrap();
    let biases = if format.has_biases() { fnv(&biases) } else { "-".into() };
    [fnv(&packed), fnv(&scales), biases, fnv(&back)]
}

#[test]
fn quantize_and_dequantize_equal_mlx() {
    let lines = include_str!("../../testdata/quantize_mlx.txt").lines().filter(|l| !l.starts_with('#'));
    let mut cases = 0;
    for line in lines {
        let w: Vec<&str> = line.split(' ').collect();
        let (bits, group, dtype) = (w[1].parse().unwrap(), w[2].parse().unwrap(), Dtype::from_name(w[3]).unwrap());
        for isa in isa::available() {
            assert_eq!(hashes(isa, w[0], bits, group, dtype), w[4..8], "{line} on {isa:?}");
        }
        cases += 1;
    }
    assert_eq!(cases, 3 * (7 * 3 + 5));
}

#[test]
fn codes_are_a_little_endian_bit_string() {
    let mut draw = Draw(7);
    for bits in [1, 2, 3, 4, 5, 6, 8] {
        let row: Vec<u8> = (0..160).map(|_| (draw.next() % (1 << bits)) as u8).collect();
        let mut expected = vec![0u8; row.len() * bits / 8];
        for (i, code) in row.iter().enumerate() {
            for b in 0..bits {
                expected[(i * bits + b) / 8] |= (code >> b & 1) << ((i * bits + b) % 8);
            }
        }
        for isa in isa::available() {
            let mut packed = vec![0; expected.len()];
            codes::pack_row(isa, bits, &row, &mut packed);
            assert_eq!(packed, expected, "pack {bits} {isa:?}");
            let mut back = vec![0; row.len()];
            codes::unpack_row(isa, bits, &packed, &mut back);
            assert_eq!(back, row, "unpack {bits} {isa:?}");
        }
    }
}

#[test]
fn e4m3_is_nearest_even_and_saturates() {
    let exact = |code: u8| {
        let (e, m) = ((code >> 3 & 15) as i32, (code & 7) as f64);
        let v = if e == 0 { m / 8.0 * 2f64.powi(-6) } else { (1.0 + m / 8.0) * 2f64.powi(e - 7) };
        if code & 0x80 != 0 { -v } else { v }
    };
    for code in (0..=255u8).filter(|c| c & 0x7f != 0x7f) {
        assert_eq!(codes::decode_e4m3(code) as f64, exact(code));
        assert_eq!(codes::encode_e4m3(exact(code) as f32), code);
    }
    assert!(codes::decode_e4m3(0x7f).is_nan() && codes::decode_e4m3(0xff).is_nan());
    for code in 0..0x7eu8 {
        let middle = ((exact(code) + exact(code + 1)) / 2.0) as f32;
        assert_eq!(codes::encode_e4m3(middle), code + (code & 1), "tie above {code}");
        assert_eq!(codes::encode_e4m3(middle.next_down()), code);
        assert_eq!(codes::encode_e4m3(middle.next_up()), code + 1);
        assert_eq!(codes::encode_e4m3(-middle.next_up()), (code + 1) | 0x80);
    }
    for x in [448.0, 463.9, 464.0, 500.0, 1e9, f32::INFINITY, f32::NAN] {
        assert_eq!((codes::encode_e4m3(x), codes::encode_e4m3(-x)), (0x7e, 0xfe), "{x}");
    }
}

#[test]
fn e2m1_ties_go_to_the_lower_code() {
    let values = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    for (code, v) in values.into_iter().enumerate() {
        let code = code as u8;
        assert_eq!((codes::decode_e2m1(code), codes::decode_e2m1(code | 8)), (v, -v));
        assert_eq!(codes::encode_e2m1(v), code);
    }
    for i in 0..7u8 {
        let middle = (values[i as usize] + values[i as usize + 1]) / 2.0;
        assert_eq!(codes::encode_e2m1(middle), i);
        assert_eq!(codes::encode_e2m1(middle.next_up()), i + 1);
        assert_eq!(codes::encode_e2m1(-middle), if i == 0 { 0 } else { i | 8 });
    }
    assert_eq!([f32::NAN, f32::INFINITY, -1e30].map(codes::encode_e2m1), [0, 0, 0]);
    assert_eq!([1e6, 2e6, -2e6].map(codes::encode_e2m1), [7, 7, 15]);
}

#[test]
fn e8m0_is_the_next_power_of_two_and_clamps() {
    for e in -126..=127 {
        let p = 2f32.powi(e);
        assert_eq!(codes::encode_e8m0(p) as i32, e + 127);
        assert_eq!(codes::encode_e8m0(p.next_up()) as i32, (e + 128).min(254));
        assert_eq!(codes::decode_e8m0((e + 127) as u8), p);
    }
    assert_eq!(codes::encode_e8m0(0.0), 127);
    assert_eq!(codes::encode_e8m0(1e-45), 0);
    assert_eq!(codes::decode_e8m0(0) as f64, 2f64.powi(-127));
}

#[test]
fn bad_arguments_are_named() {
    let text = |mode, bits, group| Format::new(mode, bits, group).unwrap_err().to_string();
    assert_eq!(text(Mode::Affine, Some(7), None), "[quantize] bits 7 with mode affine; allowed: 1, 2, 3, 4, 5, 6, 8");
    assert_eq!(text(Mode::Affine, None, Some(0)), "[quantize] group_size 0 with mode affine; allowed: 32, 64, 128");
    assert_eq!(text(Mode::Nvfp4, Some(8), None), "[quantize] bits 8 with mode nvfp4; allowed: 4");
    assert!(Mode::from_name("q4_0").is_err());
    let f = Format::new(Mode::Affine, None, None).unwrap();
    let (isa, w) = (isa::isa(), vec![0; 4 * 96]);
    assert!(quantize(isa, f, Dtype::Float32, &w, 96, None, &mut [0; 48], &mut [0; 4], &mut [0; 4]).is_err());
    assert!(quantize(isa, f, Dtype::Float32, &w[..256], 64, None, &mut [0; 31], &mut [0; 4], &mut [0; 4]).is_err());
    assert!(
        quantize(isa, f, Dtype::Float32, &w[..256], 64, Some(1.0), &mut [0; 32], &mut [0; 4], &mut [0; 4]).is_err()
    );
    assert!(quantize(isa, f, Dtype::Int32, &w[..256], 64, None, &mut [0; 32], &mut [0; 4], &mut [0; 4]).is_err());
}
