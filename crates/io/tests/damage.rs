//! Damaged files of every format: an error or other values, never a panic, never more memory than the file explains.

use lapis_core::array::Array;
use lapis_core::dtype::{bf16, f16};
use lapis_core::ops;
use lapis_core::transforms::Function;
use lapis_io::{
    Arrays, Bytes, Format, GgufMetadata, GgufValue, Loaded, Metadata, Source, import_function, load, save_function,
    save_gguf, save_npy, save_npz, save_safetensors,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// The system's allocator, which counts what this thread holds.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        let _ = MOST.try_with(|most| most.set(most.get().max(held.get())));
    });
}

// SAFETY: every call goes to the system's allocator as it is; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(ptr, layout) }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// What loading a small file may hold at once. A deflated byte may stand for a thousand, so a few hundred bytes of
/// npz explain the most.
const MOST_BYTES: isize = 2 << 20;

/// Loads and looks at every byte.
fn try_load(bytes: &[u8], format: Format) -> lapis_core::Result<()> {
    let look = |arrays: Arrays| arrays.values().try_for_each(|a| a.tensor().map(|t| drop(t.buffer.bytes().to_vec())));
    match load(Source::from_bytes("damaged", Bytes::copy(bytes)?), Some(format))? {
        Loaded::Npy(a) => look([("a".to_string(), a)].into_iter().collect()),
        Loaded::Npz(arrays) => look(arrays),
        Loaded::Safetensors(arrays, _) => look(arrays),
        Loaded::Gguf(arrays, _) => look(arrays),
    }
}

/// Loads a damaged file; whether it was taken.
#[track_caller]
fn survives(bytes: &[u8], format: Format, damage: impl Fn() -> String) -> bool {
    let before = HELD.get();
    MOST.set(before);
    let outcome = catch_unwind(AssertUnwindSafe(|| try_load(bytes, format)));
    let most = MOST.get() - before;
    let outcome = outcome.unwrap_or_else(|_| panic!("{format:?}, {}: a panic", damage()));
    assert!(most < MOST_BYTES, "{format:?}, {}: {most} bytes were held for a file of {}", damage(), bytes.len());
    if let Err(e) = &outcome {
        assert!(e.message().contains("damaged"), "{format:?}, {}: {e} does not name the file", damage());
    }
    outcome.is_ok()
}

/// A sequence without regularity (SplitMix64).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

fn trial(good: &[u8], format: Format) {
    assert!(survives(good, format, || "whole".into()));
    for n in 0..good.len() {
        assert!(!survives(&good[..n], format, || format!("cut to {n}")), "{format:?} cut to {n} bytes is taken");
    }
    survives(&[good, &[0]].concat(), format, || "a byte longer".into());
    let mut bad = good.to_vec();
    for i in 0..good.len() {
        for bit in 0..8 {
            bad[i] ^= 1 << bit;
            survives(&bad, format, || format!("bit {bit} of byte {i} flipped"));
            bad[i] = good[i];
        }
    }
    // Every place where a length may stand, with extremes of every width, in both byte orders.
    let len = good.len() as u64;
    for v in [0, 1, len, len + 1, 0x7fff, 0xffff, 1 << 20, i32::MAX as u64, 1 << 31, u64::from(u32::MAX), 1 << 40] {
        extremes(good, format, v);
    }
    [1 << 61, 1 << 62, i64::MAX as u64, 1 << 63, u64::MAX - 7, u64::MAX]
        .iter()
        .for_each(|&v| extremes(good, format, v));
    let mut noise = Noise(good.len() as u64);
    for k in 0..4000 {
        let mut bad = good.to_vec();
        for _ in 0..=noise.below(6) {
            let (i, n) = (noise.below(bad.len()), 1 + noise.below(8));
            match noise.below(4) {
                0 => bad[i] = noise.next() as u8,
                1 => drop(bad.drain(i..bad.len().min(i + n))),
                2 => {
                    let from = noise.below(bad.len());
                    let piece = bad[from..bad.len().min(from + n)].to_vec();
                    bad.splice(i..i, piece);
                }
                // Digits and brackets stay text, so that headers still parse.
                _ => bad[i] = b"0123456789-[](){}<>\"':,"[noise.below(23)],
            }
            if bad.is_empty() {
                break;
            }
        }
        survives(&bad, format, || format!("mutation {k}"));
    }
}

fn extremes(good: &[u8], format: Format, v: u64) {
    for width in [2, 4, 8] {
        for i in 0..good.len().saturating_sub(width) {
            let mut bad = good.to_vec();
            bad[i..i + width].copy_from_slice(&v.to_le_bytes()[..width]);
            survives(&bad, format, || format!("{v} in {width} bytes at {i}"));
        }
    }
}

fn some_arrays() -> Arrays {
    let mut all = Arrays::new();
    all.insert("w".into(), Array::from_vec((0..6).map(|i| i as f32).collect(), &[2, 3]));
    all.insert("h".into(), Array::from_vec(vec![f16::from_f32(0.5); 4], &[4]));
    all.insert("b".into(), Array::from_vec(vec![bf16::from_f32(0.5); 3], &[3, 1]));
    all.insert("i".into(), Array::from_vec(vec![-1i8; 5], &[5]));
    all
}

/// The bytes of what `save` writes.
fn written(name: &str, save: impl Fn(&Path)) -> Vec<u8> {
    let path: PathBuf = std::env::temp_dir().join(format!("lapis-io-damage-{}-{name}", std::process::id()));
    save(&path);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    bytes
}

#[test]
fn safetensors() {
    let metadata: Metadata = [("format".to_string(), "mlx".to_string())].into_iter().collect();
    let good = written("a.safetensors", |p| save_safetensors(p, &some_arrays(), &metadata).unwrap());
    trial(&good, Format::Safetensors);
}

#[test]
fn npy() {
    trial(&written("a.npy", |p| save_npy(p, &some_arrays()["w"]).unwrap()), Format::Npy);
}

#[test]
fn npz_stored() {
    trial(&written("a.npz", |p| save_npz(p, some_arrays().iter().take(2), false).unwrap()), Format::Npz);
}

#[test]
fn npz_deflated() {
    trial(&written("b.npz", |p| save_npz(p, some_arrays().iter().take(2), true).unwrap()), Format::Npz);
}

#[test]
fn gguf() {
    let mut metadata = GgufMetadata::new();
    metadata.insert("text".into(), GgufValue::Text("grüß".into()));
    metadata.insert("texts".into(), GgufValue::Texts(vec!["".into(), "b".into()]));
    metadata.insert("i64s".into(), GgufValue::Array(Array::from_vec(vec![1i64, -2], &[2])));
    let mut arrays = some_arrays();
    // Fills its padding: a file cut within padding at its end is whole.
    arrays.insert("end".into(), Array::from_vec(vec![1.5f32; 8], &[8]));
    let good = written("a.gguf", |p| save_gguf(p, &arrays, &metadata).unwrap());
    trial(&good, Format::Gguf);
}

#[test]
fn exported_functions() {
    let mut function = Function::new();
    function.metadata = "of a test".into();
    let w = some_arrays()["w"].clone();
    let product = |x: &Array| ops::add(ops::tanh(&ops::matmul(x, &w)?)?, 0.5);
    function.trace(product, &Array::from_vec(vec![1.0f32; 4], &[2, 2])).unwrap();
    function.trace(|(x, y): &(Array, Array)| x.index(2..) + y, &(some_arrays()["i"].clone(), w.index(0))).unwrap();
    let good = written("f.safetensors", |p| save_function(p, &function).unwrap());
    let looks = |f: &Function| {
        let constants: Vec<_> = f.constants().iter().map(|a| a.to_bytes().unwrap()).collect();
        (format!("{:?}", f.listing()), constants)
    };
    let wanted = looks(&function);
    let survives = |bytes: &[u8], damage: &str| {
        let before = HELD.get();
        MOST.set(before);
        let source = Source::from_bytes("damaged", Bytes::copy(bytes).unwrap());
        let outcome = catch_unwind(AssertUnwindSafe(|| import_function(source)));
        let most = MOST.get() - before;
        assert!(most < MOST_BYTES, "{damage}: {most} bytes were held");
        match outcome.unwrap_or_else(|_| panic!("{damage}: a panic")) {
            Ok(f) => assert_eq!(looks(&f), wanted, "{damage} makes another function"),
            Err(e) => assert!(e.message().contains("damaged"), "{damage}: {e} does not name the file"),
        }
    };
    survives(&good, "nothing");
    for n in 0..good.len() {
        survives(&good[..n], &format!("cut to {n}"));
        for change in [1, 4, 32, 128, 255] {
            let mut bad = good.clone();
            bad[n] ^= change;
            survives(&bad, &format!("byte {n} changed by {change}"));
        }
    }
    let text = String::from_utf8_lossy(&good).into_owned();
    assert!(text.contains(r#""version":"1""#));
    let later = good.clone();
    let at = text.find(r#""version":"1""#).unwrap() + 11;
    let later: Vec<u8> = later.iter().enumerate().map(|(i, &b)| if i == at { b'2' } else { b }).collect();
    let source = Source::from_bytes("later.safetensors", Bytes::copy(&later).unwrap());
    let e = import_function(source).err().unwrap();
    assert!(e.message().contains("version \"2\"; this lapis reads version 1"), "{e}");
}
