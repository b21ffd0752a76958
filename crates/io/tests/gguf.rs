//! What a GGUF file may be, what its blocks mean, and what must be refused.

use lapis_core::array::Array;
use lapis_core::dtype::{Dtype, bf16, f16};
use lapis_io::gguf::File;
use lapis_io::{Arrays, Bytes, GgufMetadata, GgufValue, RawTensor, ReadMode, Source, load_gguf, save_gguf};
use std::path::PathBuf;
use std::sync::Arc;

fn source(bytes: &[u8]) -> Arc<Source> {
    Source::from_bytes("t.gguf", Bytes::copy(bytes).unwrap())
}

fn text(t: &[u8]) -> Vec<u8> {
    [&(t.len() as u64).to_le_bytes(), t].concat()
}

/// A key with a value of type `kind`, as bytes.
fn pair(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&text(key.as_bytes())[..], &kind.to_le_bytes(), value].concat()
}

fn info(name: &str, dims: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let dims_bytes: Vec<u8> = dims.iter().flat_map(|d| d.to_le_bytes()).collect();
    [
        &text(name.as_bytes())[..],
        &(dims.len() as u32).to_le_bytes(),
        &dims_bytes,
        &kind.to_le_bytes(),
        &offset.to_le_bytes(),
    ]
    .concat()
}

fn file(pairs: &[Vec<u8>], infos: &[Vec<u8>], data: &[u8]) -> Vec<u8> {
    let counts = [infos.len() as u64, pairs.len() as u64].map(u64::to_le_bytes).concat();
    let mut out = [b"GGUF", &3u32.to_le_bytes()[..], &counts, &pairs.concat(), &infos.concat()].concat();
    out.resize(out.len().next_multiple_of(32), 0);
    [&out, data].concat()
}

#[track_caller]
fn refused(bytes: &[u8], what: &str) {
    let e = load_gguf(source(bytes)).err().unwrap_or_else(|| panic!("loaded; expected {what:?}"));
    assert!(e.message().starts_with("[load_gguf] t.gguf: ") && e.message().contains(what), "{e} does not say {what:?}");
}

/// Bytes that anyone can make again.
fn noise(n: usize, seed: u64) -> Vec<u8> {
    let mut x = seed;
    let mut next = || {
        x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (x >> 56) as u8
    };
    (0..n).map(|_| next()).collect()
}

fn fnv(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf29ce484222325, |h, b| (h ^ b as u64).wrapping_mul(0x100000001b3))
}

/// Type, number, values and bytes of a block, where its half-precision fields lie, and a checksum (FNV-1a) of what
/// `gguf.quants.dequantize` of the gguf package gives for four rows of 256 values: as float32 with zeros positive for
/// the types that stay packed, as float16 for the others. The blocks are `noise(.., number + 1)` with the exponents of
/// the half-precision fields brought to 2^-7 to 2^-4 and the scale bytes of MXFP4 to 118 + b % 16.
type Block = (&'static str, u32, usize, usize, &'static [usize], u64);
const BLOCKS: [Block; 11] = [
    ("Q4_0", 2, 32, 18, &[0], 0xb7d769be2c17fba9),
    ("Q4_1", 3, 32, 20, &[0, 2], 0xbbe51757d3c56068),
    ("Q5_0", 6, 32, 22, &[0], 0x3676c117499d98e6),
    ("Q5_1", 7, 32, 24, &[0, 2], 0xdc69026b87b9cdf2),
    ("Q8_0", 8, 32, 34, &[0], 0x77d7f020295a73a1),
    ("Q2_K", 10, 256, 84, &[80, 82], 0x2afc8b5acb961439),
    ("Q3_K", 11, 256, 110, &[108], 0xc778d48a9379bae6),
    ("Q4_K", 12, 256, 144, &[0, 2], 0x6c28887afea94706),
    ("Q5_K", 13, 256, 176, &[0, 2], 0xb8e570fa14b1a540),
    ("Q6_K", 14, 256, 210, &[208], 0x1ecbae229bf582f0),
    ("MXFP4", 39, 32, 17, &[], 0x8e7d9a385d10c6dd),
];

/// Four rows of 256 values.
fn blocks(&(name, id, values, size, halves, _): &Block) -> Vec<u8> {
    let mut bytes = noise(1024 / values * size, id as u64 + 1);
    for block in bytes.chunks_mut(size) {
        for &at in halves {
            block[at + 1] = block[at + 1] & 0x83 | 0x20 | block[at + 1] & 0x0c;
        }
        if name == "MXFP4" {
            block[0] = 118 + block[0] % 16;
        }
    }
    bytes
}

fn e2m1(code: u32) -> f32 {
    let v = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][code as usize & 7];
    if code & 8 != 0 { -v } else { v }
}

#[test]
fn every_block_type_has_the_values_of_the_reference_decoder() {
    for row in &BLOCKS {
        let (name, id, .., expected) = *row;
        let bytes = file(&[], &[info("x.weight", &[256, 4], id, 0)], &blocks(row));
        let (arrays, _) = load_gguf(source(&bytes)).unwrap();
        let keys: Vec<&str> = arrays.keys().map(String::as_str).collect();
        let sum = match name {
            "Q4_0" | "Q4_1" | "Q8_0" => {
                assert_eq!(keys, ["x.weight", "x.scales", "x.biases"]);
                let bits = if name == "Q8_0" { 8 } else { 4 };
                let words = arrays["x.weight"].to_vec::<u32>().unwrap();
                let (s, b) = (&arrays["x.scales"], &arrays["x.biases"]);
                assert_eq!(
                    (arrays["x.weight"].shape(), s.shape(), b.shape()),
                    (&[4, 8 * bits][..], &[4, 8][..], &[4, 8][..])
                );
                let (s, b) = (s.to_vec::<f16>().unwrap(), b.to_vec::<f16>().unwrap());
                fnv((0..1024).flat_map(|i| {
                    let code = words[i * bits / 32] >> (i * bits % 32) & ((1 << bits) - 1);
                    (code as f32 * s[i / 32].to_f32() + b[i / 32].to_f32() + 0.0).to_le_bytes()
                }))
            }
            "MXFP4" => {
                assert_eq!(keys, ["x.weight", "x.scales"]);
                let words = arrays["x.weight"].to_vec::<u32>().unwrap();
                assert_eq!((arrays["x.weight"].shape(), arrays["x.scales"].shape()), (&[4, 32][..], &[4, 8][..]));
                let s = arrays["x.scales"].to_vec::<u8>().unwrap();
                fnv((0..1024).flat_map(|i| {
                    let scale = 2f32.powi(s[i / 32] as i32 - 127);
                    (e2m1(words[i / 8] >> (i % 8 * 4)) * scale + 0.0).to_le_bytes()
                }))
            }
            _ => {
                assert_eq!((keys, arrays["x.weight"].shape()), (vec!["x.weight"], &[4, 256][..]));
                assert_eq!(arrays["x.weight"].dtype(), Dtype::Float16);
                fnv(arrays["x.weight"].to_bytes().unwrap())
            }
        };
        assert_eq!(sum, expected, "{name}");
    }
}

#[test]
fn compact_blocks_stand_for_the_same_values_but_for_the_rounding_of_scales() {
    for row in &BLOCKS {
        let (name, id, ..) = *row;
        let bytes = file(&[], &[info("x.weight", &[256, 4], id, 0)], &blocks(row));
        let file = File::open(source(&bytes)).unwrap();
        let parts = file.compact(&file.tensors[0]).unwrap();
        let bits = match name {
            "Q4_K" => 4,
            "Q5_K" => 5,
            _ => {
                // As ever.
                let shapes = |parts: &[RawTensor]| parts.iter().map(|p| p.shape.clone()).collect::<Vec<_>>();
                assert_eq!(shapes(&parts), shapes(&file.arrays(&file.tensors[0]).unwrap()), "{name}");
                continue;
            }
        };
        let [codes, s, b] = &parts[..] else { panic!("{name}: {} parts", parts.len()) };
        assert_eq!((&codes.shape[..], &s.shape[..], &b.shape[..]), (&[4, 8 * bits][..], &[4, 8][..], &[4, 8][..]));
        let codes = codes.bytes().unwrap().into_owned();
        let [s, b] = [s, b].map(|p| p.to_array().unwrap().to_vec::<f16>().unwrap());
        let values = load_gguf(source(&bytes)).unwrap().0["x.weight"].to_vec::<f16>().unwrap();
        for (i, value) in values.iter().enumerate() {
            let at = i * bits;
            let two = u16::from(codes[at / 8]) | u16::from(*codes.get(at / 8 + 1).unwrap_or(&0)) << 8;
            let code = f32::from(two >> (at % 8) & ((1 << bits) - 1));
            let (part, least, value) = (code * s[i / 32].to_f32(), b[i / 32].to_f32(), value.to_f32());
            let most = (part.abs() + least.abs() + value.abs()) / 2048.0 + 1e-7;
            assert!((part + least - value).abs() <= most, "{name} {i}: {part} + {least}, not {value}");
        }
    }
}

#[test]
fn a_large_tensor_decodes_as_its_pieces_do() {
    let row = &BLOCKS[7];
    let one = blocks(row);
    let many = one.repeat(5000);
    let load = |rows: u64, data: &[u8]| {
        let bytes = file(&[], &[info("x", &[256, rows], row.1, 0)], data);
        load_gguf(source(&bytes)).unwrap().0["x"].to_bytes().unwrap()
    };
    assert!(load(20_000, &many) == load(4, &one).repeat(5000));
}

#[test]
fn parts_are_named_after_the_weight() {
    let row = &BLOCKS[0];
    let load = |name: &str| load_gguf(source(&file(&[], &[info(name, &[256, 4], row.1, 0)], &blocks(row)))).unwrap().0;
    assert_eq!(load("a.weight").keys().collect::<Vec<_>>(), ["a.weight", "a.scales", "a.biases"]);
    assert_eq!(load("a.weights").keys().collect::<Vec<_>>(), ["a.weights", "a.weights.scales", "a.weights.biases"]);
    let taken = [info("a.weight", &[256, 4], row.1, 0), info("a.scales", &[1], 0, 576)];
    refused(&file(&[], &taken, &[&blocks(row)[..], &[0; 4]].concat()), "is taken");
}

#[test]
fn a_bias_beyond_float16_is_refused() {
    let mut block = vec![0u8; 18];
    block[..2].copy_from_slice(&f16::from_f32(10_000.0).to_le_bytes());
    refused(&file(&[], &[info("x", &[32], 2, 0)], &block), "too large for a float16 bias");
}

fn scratch(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("lapis-io-gguf-{}-{name}.gguf", std::process::id()))
}

#[test]
fn what_is_written_is_read_back() {
    let path = scratch("round");
    let mut arrays = Arrays::new();
    arrays.insert("a".into(), Array::from_vec((0..6).map(|i| i as f32).collect(), &[2, 3]));
    arrays.insert("b".into(), Array::from_vec(vec![f16::from_f32(0.5)], &[1]));
    arrays.insert("c".into(), Array::from_vec(vec![bf16::from_f32(0.5); 3], &[3, 1, 1, 1]));
    arrays.insert("\n".into(), Array::from_vec(vec![-1i8; 5], &[5]));
    arrays.insert("e".into(), Array::from_vec(vec![-1i16; 5], &[5]));
    arrays.insert("f".into(), Array::from_vec(vec![-1i32; 5], &[5]));
    let mut metadata = GgufMetadata::new();
    let number = |a: Array| GgufValue::Array(a);
    metadata.insert("u8".into(), number(Array::from_vec(vec![200u8], &[])));
    metadata.insert("text".into(), GgufValue::Text("grüß\0".into()));
    metadata.insert("texts".into(), GgufValue::Texts(vec!["".into(), "b".into()]));
    metadata.insert("bool".into(), number(Array::from_vec(vec![true], &[])));
    metadata.insert("i64s".into(), number(Array::from_vec(vec![1i64, -2], &[2])));
    metadata.insert("f64".into(), number(Array::from_vec(vec![0.1f64], &[])));
    metadata.insert("none".into(), number(Array::from_vec(Vec::<f32>::new(), &[0])));
    for alignment in [None, Some(8u32), Some(4096)] {
        if let Some(n) = alignment {
            metadata.insert("general.alignment".into(), number(Array::from_vec(vec![n], &[])));
        }
        save_gguf(path.with_extension(""), &arrays, &metadata).unwrap();
        for mode in [ReadMode::Map, ReadMode::Copy] {
            let (a, m) = load_gguf(Source::open(&path, mode).unwrap()).unwrap();
            assert_eq!(
                (a.keys().collect::<Vec<_>>(), m.keys().collect::<Vec<_>>()),
                (arrays.keys().collect(), metadata.keys().collect())
            );
            let view = |a: &Array| (a.shape().to_vec(), a.dtype(), a.to_bytes().unwrap());
            a.iter().for_each(|(k, v)| assert_eq!(view(v), view(&arrays[k])));
            for (k, v) in &m {
                match (v, &metadata[k]) {
                    (GgufValue::Array(a), GgufValue::Array(b)) => assert_eq!(view(a), view(b)),
                    (GgufValue::Text(a), GgufValue::Text(b)) => assert_eq!(a, b),
                    (GgufValue::Texts(a), GgufValue::Texts(b)) => assert_eq!(a, b),
                    _ => panic!("{k} changed its kind"),
                }
            }
        }
    }
    std::fs::remove_file(path).unwrap();
}

#[test]
fn what_the_format_cannot_hold_is_not_written() {
    let path = scratch("cannot");
    let save = |name: &str, a: Array| {
        save_gguf(&path, [(&name, &a)], &GgufMetadata::new()).err().unwrap().message().to_owned()
    };
    assert!(
        save("k", Array::from_vec(vec![1u32], &[1]))
            .contains("tensor \"k\": uint32, expected float32, float16, bfloat16")
    );
    assert!(save("k", Array::from_vec(vec![1f32], &[])).contains("one to four axes"));
    assert!(save("k", Array::from_vec(Vec::<f32>::new(), &[0])).contains("none of them empty"));
    assert!(save("k", Array::from_vec(vec![1f32], &[1, 1, 1, 1, 1])).contains("one to four axes"));
    assert!(save(&"k".repeat(65), Array::from_vec(vec![1f32], &[1])).contains("65 bytes"));
    let meta = |a: Array| {
        let none: [(&String, &Array); 0] = [];
        let metadata = GgufMetadata::from([("m".to_string(), GgufValue::Array(a))]);
        save_gguf(&path, none, &metadata).err().unwrap().message().to_owned()
    };
    assert!(meta(Array::from_vec(vec![1f32; 4], &[2, 2])).contains("key \"m\""));
    assert!(meta(Array::from_vec(vec![f16::ONE], &[])).contains("float16"));
    assert!(!path.exists());
}

#[test]
fn preambles() {
    let good = file(&[], &[], &[]);
    assert_eq!(load_gguf(source(&good)).unwrap().0.len(), 0);
    refused(b"", "the magic needs 4 bytes, 0 are left");
    refused(b"GGML", "magic \"GGML\"");
    refused(&[b"FUGG".as_slice(), &good[4..]].concat(), "big-endian");
    refused(&[b"GGUF".as_slice(), &3u32.to_be_bytes(), &good[8..]].concat(), "big-endian");
    for version in [0u32, 1, 4, u32::MAX] {
        refused(
            &[b"GGUF".as_slice(), &version.to_le_bytes(), &good[8..]].concat(),
            &format!("version {version}, known are 2 and 3"),
        );
    }
    let v2 = [b"GGUF".as_slice(), &2u32.to_le_bytes(), &good[8..]].concat();
    assert!(load_gguf(source(&v2)).is_ok());
    for count in [1u64, 1 << 40, u64::MAX] {
        refused(&[&good[..8], &count.to_le_bytes(), &good[16..]].concat(), "do not fit");
        refused(&[&good[..16], &count.to_le_bytes(), &good[24..]].concat(), "do not fit");
    }
}

#[test]
fn malformed_metadata() {
    let one = |pair: Vec<u8>| file(&[pair], &[], &[0; 64]);
    let u32_pair = pair("k", 4, &[1, 0, 0, 0]);
    refused(&file(&[u32_pair.clone(), u32_pair], &[], &[]), "duplicate key \"k\"");
    refused(&one(pair("", 4, &[0; 4])), "an empty key");
    refused(&one(pair(&"k".repeat(65_536), 4, &[0; 4])), "a key of 65536 bytes, at most 65535");
    refused(&one(vec![0xff; 64]), "a key of 18446744073709551615 bytes");
    refused(&one([&1000u64.to_le_bytes()[..], b"k"].concat()), "a key needs 1000 bytes");
    refused(&one([&1u64.to_le_bytes()[..], b"\xff", &4u32.to_le_bytes(), &[0; 4]].concat()), "is not UTF-8");
    refused(&one(pair("k", 13, &[0; 8])), "key \"k\": unknown value type 13");
    refused(&one(pair("k", 8, &u64::MAX.to_le_bytes())), "key \"k\" needs 18446744073709551615 bytes");
    refused(&one(pair("k", 8, &text(b"\xff"))), "key \"k\" is not UTF-8");
    let array = |kind: u32, count: u64| pair("k", 9, &[&kind.to_le_bytes()[..], &count.to_le_bytes()].concat());
    refused(&one(array(9, 1)), "arrays of arrays");
    refused(&one(array(77, 1)), "unknown value type 77");
    refused(&one(array(4, 1000)), "1000 values of uint32");
    refused(&one(array(12, 1 << 61)), "values of float64");
    refused(&one(array(8, u64::MAX)), "texts do not fit");
    for (kind, value, what) in [
        (4, &[0u8, 0, 0, 0][..], "general.alignment is 0, expected a power of two"),
        (4, &[48, 0, 0, 0], "general.alignment is 48"),
        (10, &[32, 0, 0, 0, 0, 0, 0, 0], "general.alignment is not a uint32"),
        (8, &text(b"32"), "general.alignment is not a uint32"),
    ] {
        refused(&one(pair("general.alignment", kind, value)), what);
    }
}

#[test]
fn malformed_tensors() {
    let one = |info: Vec<u8>| file(&[], &[info], &[0; 64]);
    refused(&one(info(&"n".repeat(65), &[1], 0, 0)), "a tensor name of 65 bytes, at most 64");
    refused(&file(&[], &[info("a", &[1], 0, 0), info("a", &[1], 0, 32)], &[0; 64]), "duplicate tensor name \"a\"");
    refused(&one(info("a", &[], 0, 0)), "tensor \"a\": 0 dimensions");
    refused(&one(info("a", &[1; 5], 0, 0)), "tensor \"a\": 5 dimensions");
    refused(&one(info("a", &[3, 0], 0, 0)), "dimensions [3, 0]");
    refused(&one(info("a", &[1 << 32, 1 << 32], 0, 0)), "too large");
    refused(&one(info("a", &[1 << 62], 0, 0)), "too large");
    refused(&one(info("a\n", &[u64::MAX], 0, 0)), "tensor \"a\\n\"");
    refused(&one(info("a", &[1], 99, 0)), "tensor \"a\": unknown type 99");
    refused(&one(info("a", &[32], 20, 0)), "tensor \"a\": type IQ4_NL is not supported; known are F32");
    refused(&one(info("a", &[33], 2, 0)), "rows of 33 are no multiple of the 32 values of a Q4_0 block");
    refused(&one(info("a", &[1], 0, 4)), "offset 4 is no multiple of the alignment, 32");
    refused(&one(info("a", &[16], 0, 64)), "64 bytes at 64 of the data, which has 64");
    refused(&one(info("a", &[1], 0, u64::MAX - 31)), "of the data");
    refused(&one(info("a", &[17], 0, 0)), "68 bytes at 0 of the data, which has 64");
    refused(&file(&[], &[info("a", &[16], 0, 0), info("b", &[8], 0, 32)], &[0; 64]), "tensor \"b\" overlaps \"a\"");
}

/// A file with something of everything, whose bytes are then cut and changed.
#[test]
fn damage_is_an_error_and_never_a_crash() {
    let pairs =
        [pair("t", 8, &text(b"x")), pair("n", 9, &[&4u32.to_le_bytes()[..], &2u64.to_le_bytes(), &[0; 8]].concat())];
    let data = [&blocks(&BLOCKS[0])[..], &blocks(&BLOCKS[7])[..]].concat();
    let good = file(&pairs, &[info("a.weight", &[256, 4], 2, 0), info("b", &[256, 4], 12, 576)], &data);
    assert_eq!(load_gguf(source(&good)).unwrap().0.len(), 4);
    for n in 0..good.len() {
        assert!(load_gguf(source(&good[..n])).is_err(), "cut to {n}");
    }
    for i in 0..good.len() - data.len() {
        for v in [0, 1, 0x7f, 0xff, good[i] ^ 0x80] {
            let mut bad = good.clone();
            bad[i] = v;
            let _ = load_gguf(source(&bad));
        }
    }
}

/// Real small models and blocks that ggml itself quantized, where `LAPIS_TEST_DATA` names a folder that holds them.
#[test]
fn files_of_other_programs() {
    let Some(dir) = std::env::var_os("LAPIS_TEST_DATA").map(PathBuf::from) else {
        println!("LAPIS_TEST_DATA is not set: other programs' files were not tried");
        return;
    };
    let mut seen = 0;
    for entry in std::fs::read_dir(dir.join("conformance/ferrox/crates/ferrox-models/tests/fixtures")).unwrap() {
        for mode in [ReadMode::Map, ReadMode::Copy] {
            let (_, metadata) = load_gguf(Source::open(entry.as_ref().unwrap().path(), mode).unwrap()).unwrap();
            assert!(!metadata.is_empty());
            seen += 1;
        }
    }
    assert_eq!(seen, 16);
    // Decoded, ggml's blocks of uniform values from -1 to 1 are off by what `bits` bits allow: rounding to steps of
    // 2 / (2^bits - 1) has a root mean square error of a step over the root of 12; scales are rounded, too.
    let dir = dir.join("conformance/hf2q/tests/fixtures/ggml_quants");
    for (stem, id, k, bits) in [
        ("q5_0_64", 6, 64u64, 5),
        ("q5_1_64", 7, 64, 5),
        ("q2_k_512", 10, 512, 2),
        ("q3_k_512", 11, 512, 3),
        ("q4_k_512", 12, 512, 4),
        ("q5_k_512", 13, 512, 5),
        ("q6_k_512", 14, 512, 6),
    ] {
        let uniform = 2.0 / ((1 << bits) - 1) as f64 / 12f64.sqrt();
        for variant in ["im", "noim"] {
            let read = |what: &str| std::fs::read(dir.join(format!("{stem}_{variant}_{what}.bin"))).unwrap();
            let (input, blocks) = (read("input"), read("expected"));
            let (arrays, _) = load_gguf(source(&file(&[], &[info("x", &[k, 2], id, 0)], &blocks))).unwrap();
            let squares = input
                .chunks(4)
                .zip(arrays["x"].to_vec::<f16>().unwrap())
                .map(|(i, o)| (f32::from_le_bytes(i.try_into().unwrap()) as f64 - o.to_f64()).powi(2));
            let rms = (squares.sum::<f64>() / (2 * k) as f64).sqrt();
            assert!(rms < uniform, "{stem}_{variant}: off by {rms}, {uniform} for uniform steps");
        }
    }
}
