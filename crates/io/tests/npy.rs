//! What npy and npz files may be, and what must be refused.

use lapis_core::array::Array;
use lapis_core::dtype::{Dtype, bf16, c64, f16};
use lapis_io::{Arrays, Bytes, ReadMode, Source, load_npy, load_npz, save_npy, save_npz};
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn source(bytes: &[u8]) -> Arc<Source> {
    Source::from_bytes("t", Bytes::copy(bytes).unwrap())
}

fn npy(version: u8, header: &str, data: &[u8]) -> Vec<u8> {
    let mut out = b"\x93NUMPY".to_vec();
    out.extend([version, 0]);
    match version {
        1 => out.extend((header.len() as u16).to_le_bytes()),
        _ => out.extend((header.len() as u32).to_le_bytes()),
    }
    [&out, header.as_bytes(), data].concat()
}

fn dict(descr: &str, order: &str, shape: &str) -> String {
    format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n")
}

#[track_caller]
fn refused(bytes: &[u8], what: &str) {
    let e = load_npy(source(bytes)).map(|a| a.shape().to_vec()).expect_err(what);
    assert!(e.message().starts_with("[load_npy] t: ") && e.message().contains(what), "{e} does not say {what:?}");
}

#[test]
fn every_version_order_and_byte_order() {
    let data: Vec<u8> = [1u16, 2, 3, 4, 5, 6].iter().flat_map(|v| v.to_be_bytes()).collect();
    for version in 1..=3 {
        let a = load_npy(source(&npy(version, &dict("'>u2'", "True", "(2, 3)"), &data))).unwrap();
        assert_eq!((a.shape(), a.dtype()), (&[2, 3][..], Dtype::Uint16));
        let t = a.tensor().unwrap();
        assert_eq!(t.strides.as_slice(), [1, 2], "the first axis varies fastest");
    }
    let complex = [1f32, 2.0].iter().flat_map(|v| v.to_be_bytes()).collect::<Vec<_>>();
    let a = load_npy(source(&npy(1, &dict("'>c8'", "False", "()"), &complex))).unwrap();
    assert_eq!(a.item::<c64>().unwrap(), c64::new(1.0, 2.0));
    // Python 2's long integers, no trailing commas, double quotes; bytes behind the data are another's.
    let a =
        load_npy(source(&npy(1, r#"{"shape":(2L,),"descr":"|i1","fortran_order":False}"#, b"\xff\x02rest"))).unwrap();
    assert_eq!(a.to_vec::<i8>().unwrap(), [-1, 2]);
    let a = load_npy(source(&npy(1, &dict("'<V2'", "True", "(1,)"), &bf16::from_f32(2.5).to_le_bytes()))).unwrap();
    assert_eq!(a.item::<bf16>().unwrap(), bf16::from_f32(2.5));
}

#[test]
fn malformed_headers() {
    refused(b"", "does not start with");
    refused(b"\x93NUMPX\x01\0", "does not start with");
    refused(b"\x93NUMPY\x01\0\x01", "too few");
    refused(b"\x93NUMPY\x02\0\x01\0\0", "too few");
    refused(&npy(4, "{}", b""), "version 4.0, known are 1.0, 2.0 and 3.0");
    refused(&npy(0, "{}", b""), "version 0.0");
    let good = dict("'<f4'", "False", "(1,)");
    let mut long = npy(2, &good, &[0; 4]);
    long[8..12].copy_from_slice(&0xffff_ffffu32.to_le_bytes());
    refused(&long, "header length 4294967295, expected at most");
    refused(&npy(2, &(good.clone() + &" ".repeat(70_000)), &[0; 4]), "expected at most 65536");
    for (header, what) in [
        ("", "expected '{'"),
        ("{'descr': '<f4', 'fortran_order': False}", "no key 'shape'"),
        ("{'descr': '<f4', 'shape': ()}", "no key 'fortran_order'"),
        ("{'shape': (), 'fortran_order': False}", "no key 'descr'"),
        ("{'shape': (), 'shape': ()}", "\"shape\" twice"),
        ("{'shape': (), 'x': 1}", "unknown key \"x\""),
        ("{'shape': ()", "expected '}'"),
        ("{'shape: ()}", "does not end"),
        ("{'shape': ()} import os", "text after"),
        (&dict("'|O'", "False", "()"), "descr \"|O\" is not supported (Python objects are never loaded)"),
        (&dict("'<U4'", "False", "()"), "descr \"<U4\""),
        (&dict("'<c16'", "False", "()"), "descr \"<c16\""),
        (&dict("[('a', '<f4')]", "False", "()"), "record type"),
        (&dict("__import__('os')", "False", "()"), "quoted text"),
        (&dict("'<f4'", "1", "()"), "True or False"),
        (&dict("'<f4'", "False", "(-1,)"), "dimension from 0"),
        (&dict("'<f4'", "False", "(1.5,)"), "expected ')'"),
        (&dict("'<f4'", "False", "(99999999999999999999,)"), "dimension from 0"),
        (&dict("'<f4'", "False", "(4294967296, 4294967296)"), "too large"),
        (&dict("'<f4'", "False", "(9223372036854775808,)"), "dimension from 0"),
        (&dict("'<f4'", "False", "(2,)"), "needs 8 bytes, 4 are left"),
    ] {
        refused(&npy(1, header, &[0; 4]), what);
    }
    // Every prefix of a good file is refused, none crashes.
    let whole = npy(1, &good, &[0; 4]);
    for n in 0..whole.len() {
        assert!(load_npy(source(&whole[..n])).is_err(), "{n}");
    }
}

fn scratch(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("lapis-io-np-{}-{name}", std::process::id()))
}

fn one_of_each() -> Arrays {
    let mut all = Arrays::new();
    let mut put = |name: &str, a: Array| all.insert(name.into(), a);
    put("bool", Array::from_vec(vec![true, false], &[2]));
    put("uint8", Array::from_vec(vec![1u8, 255], &[2, 1]));
    put("uint16", Array::from_vec(vec![1u16, 65535], &[1, 2]));
    put("uint32", Array::from_vec(vec![u32::MAX], &[]));
    put("uint64", Array::from_vec(vec![u64::MAX], &[1]));
    put("int8", Array::from_vec(vec![-1i8], &[1, 1, 1]));
    put("int16", Array::from_vec(vec![-1i16], &[1]));
    put("int32", Array::from_vec(vec![-1i32], &[1]));
    put("int64", Array::from_vec(vec![i64::MIN], &[1]));
    put("float16", Array::from_vec(vec![f16::from_f32(0.1)], &[1]));
    put("bfloat16", Array::from_vec(vec![bf16::from_f32(0.1)], &[1]));
    put("float32", Array::from_vec((0..6).map(|i| i as f32).collect(), &[2, 3]));
    put("float64", Array::from_vec(vec![f64::NAN, 0.1], &[2]));
    put("complex64", Array::from_vec(vec![c64::new(1.0, -2.0)], &[1]));
    put("empty", Array::from_vec(Vec::<f32>::new(), &[3, 0]));
    all
}

#[track_caller]
fn same(a: &Array, b: &Array) {
    assert_eq!((a.shape(), a.dtype(), a.to_bytes().unwrap()), (b.shape(), b.dtype(), b.to_bytes().unwrap()));
}

#[test]
fn npy_round_trips_and_is_aligned() {
    for (name, a) in one_of_each() {
        let path = scratch(&format!("{name}.npy"));
        save_npy(path.with_extension(""), &a).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!((bytes.len() - a.nbytes()) % 64, 0);
        for mode in [ReadMode::Map, ReadMode::Copy] {
            same(&load_npy(Source::open(&path, mode).unwrap()).unwrap(), &a);
        }
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn a_header_is_what_numpy_writes() {
    let text = |shape: &[usize]| {
        String::from_utf8(lapis_io::npy::header(Dtype::Float32, shape, false)[10..].to_vec()).unwrap()
    };
    assert_eq!(text(&[]).trim_end(), "{'descr': '<f4', 'fortran_order': False, 'shape': (), }");
    assert_eq!(text(&[3]).trim_end(), "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }");
    assert_eq!(text(&[3, 4]).trim_end(), "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }");
}

#[test]
fn npz_round_trips_stored_and_deflated() {
    let mut all = one_of_each();
    all.insert("../Ü\n/..".into(), Array::from_vec((0..5000).map(|i| (i % 50) as f32).collect(), &[5000]));
    all.insert("zeros, which a reader would take for a bomb".into(), Array::from_vec(vec![0f32; 100_000], &[100_000]));
    for compressed in [false, true] {
        let path = scratch(&format!("{compressed}.npz"));
        save_npz(&path, &all, compressed).unwrap();
        let size = std::fs::metadata(&path).unwrap().len();
        assert_eq!(size < 410_000, compressed, "{size}");
        for mode in [ReadMode::Map, ReadMode::Copy] {
            let read = load_npz(Source::open(&path, mode).unwrap()).unwrap();
            assert_eq!(read.keys().collect::<Vec<_>>(), all.keys().collect::<Vec<_>>());
            read.iter().for_each(|(k, a)| same(a, &all[k]));
        }
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn stored_arrays_are_used_in_place() {
    let path = scratch("place.npz");
    save_npz(&path, &one_of_each(), false).unwrap();
    let source = Source::open(&path, ReadMode::Map).unwrap();
    let place = |a: &Array| a.tensor().unwrap().ptr() as usize;
    let (a, b) = (load_npz(source.clone()).unwrap(), load_npz(source).unwrap());
    for (name, a) in a.iter().filter(|(_, a)| a.size() > 0) {
        assert!(place(a) == place(&b[name]) && place(a) % 64 == 0, "{name}");
    }
    std::fs::remove_file(path).unwrap();
}

/// A small stored npz whose bytes the tests then damage.
fn small(path: &Path, names: &[&str]) -> Vec<u8> {
    let arrays: Arrays = names.iter().map(|n| (n.to_string(), Array::from_vec(vec![1f32, 2.0], &[2]))).collect();
    save_npz(path, &arrays, false).unwrap();
    let bytes = std::fs::read(path).unwrap();
    std::fs::remove_file(path).unwrap();
    bytes
}

fn find(bytes: &[u8], what: &[u8], nth: usize) -> usize {
    (0..bytes.len()).filter(|&i| bytes[i..].starts_with(what)).nth(nth).unwrap()
}

#[test]
fn malformed_zips() {
    let good = small(&scratch("bad.npz"), &["a", "b"]);
    assert_eq!(load_npz(source(&good)).unwrap().len(), 2);
    #[track_caller]
    fn refused(bytes: &[u8], what: &str) {
        let e = load_npz(source(bytes)).map(|a| a.len()).expect_err(what);
        assert!(e.message().starts_with("[load_npz] t: ") && e.message().contains(what), "{e} does not say {what:?}");
    }
    let (local, central, end) = (0, find(&good, b"PK\x01\x02", 0), find(&good, b"PK\x05\x06", 0));
    let second = find(&good, b"PK\x01\x02", 1);
    let with = |edits: &[(usize, &[u8])]| {
        let mut bytes = good.clone();
        edits.iter().for_each(|(at, v)| bytes[*at..at + v.len()].copy_from_slice(v));
        bytes
    };
    refused(b"", "not a zip file");
    refused(b"PK\x05\x06", "not a zip file");
    refused(&with(&[(central + 8, &[1])]), "encrypted");
    refused(&with(&[(central + 10, &[12])]), "compression method 12");
    refused(
        &with(&[(central + 10, &[8]), (local + 8, &[8]), (central + 24, &40_000_000u32.to_le_bytes())]),
        "more than 200 times",
    );
    refused(&with(&[(central + 24, &1u32.to_le_bytes())]), "bytes stand for 1");
    refused(&with(&[(central + 16, &[0; 4])]), "checksum");
    refused(&with(&[(good.len() - 200, &[99])]), "");
    refused(&with(&[(central + 42, &0xffff_0000u32.to_le_bytes())]), "do not fit the file");
    refused(&with(&[(central + 42, &1u32.to_le_bytes())]), "disagrees with the directory");
    refused(&with(&[(second + 46, b"a"), (find(&good, b"b.npy", 0), b"a")]), "duplicate name \"a\"");
    refused(&with(&[(second + 46, b"a"), (second + 42, &[0; 4])]), "duplicate");
    refused(&with(&[(central + 46, b"\xff")]), "not UTF-8");
    refused(&with(&[(central + 46 + 4, b"x")]), "is not called *.npy");
    refused(&with(&[(central, b"XX")]), "directory is cut short");
    refused(&with(&[(end + 4, &[1])]), "several parts");
    refused(&with(&[(end + 10, &[0x10, 0x27])]), "does not fit the file");
    refused(&with(&[(end + 10, &[0x11, 0x27]), (end + 12, &[0, 0, 8, 0]), (end + 16, &[0; 4])]), "");
    refused(&with(&[(end + 16, &0xffff_fffeu32.to_le_bytes())]), "does not fit the file");
    // The first entry claims the bytes of the second, too.
    let span = (second - central) as u32 + central as u32 - 200;
    let grown = [(central + 20, &span.to_le_bytes()[..]), (central + 24, &span.to_le_bytes()[..])];
    refused(&with(&grown), "overlaps");
    for n in 0..good.len() {
        assert!(load_npz(source(&good[..n])).is_err(), "cut to {n}");
    }
    // Any single byte changed: an error or arrays, never a crash.
    for i in 0..good.len() {
        for v in [0, 0xff, good[i] ^ 1] {
            let _ = load_npz(source(&with(&[(i, &[v])])));
        }
    }
}

#[test]
fn deflated_data_that_lies() {
    let path = scratch("lie.npz");
    let arrays = Arrays::from([("a".to_string(), Array::from_vec((0..1000).map(|i| i as f32).collect(), &[1000]))]);
    save_npz(&path, &arrays, true).unwrap();
    let good = std::fs::read(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    let central = find(&good, b"PK\x01\x02", 0);
    let size = u32::from_le_bytes(good[central + 24..central + 28].try_into().unwrap());
    for (claim, what) in [(size - 1, "more than"), (size + 1, "cannot be unpacked")] {
        let mut bytes = good.clone();
        bytes[central + 24..central + 28].copy_from_slice(&claim.to_le_bytes());
        assert!(load_npz(source(&bytes)).err().unwrap().message().contains(what));
    }
}

#[test]
fn names_given_twice_are_not_written() {
    let path = scratch("twice.npz");
    let a = Array::from_vec(vec![1f32], &[1]);
    let e = save_npz(&path, [(&"a", &a), (&"a", &a)], false).err().unwrap();
    assert!(e.message().contains("given twice") && !path.exists());
}

/// NumPy's pickled object arrays, where `LAPIS_TEST_DATA` names a folder that holds them.
#[test]
fn numpy_object_files_are_refused() {
    let Some(dir) = std::env::var_os("LAPIS_TEST_DATA") else {
        println!("LAPIS_TEST_DATA is not set: NumPy's files were not tried");
        return;
    };
    let dir = PathBuf::from(dir).join("conformance/numpy/numpy/lib/tests/data");
    for name in ["py2-objarr", "py3-objarr", "py2-np0-objarr"] {
        let e = load_npy(dir.join(name).with_extension("npy")).err().unwrap();
        assert!(e.message().contains("|O"), "{e}");
        if name != "py2-np0-objarr" {
            assert!(load_npz(dir.join(name).with_extension("npz")).err().unwrap().message().contains("|O"));
        }
    }
}
