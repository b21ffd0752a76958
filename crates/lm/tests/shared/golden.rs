//! The tiny models of `tests/data/goldens` and `../shared/goldens`: their weights are drawn from a counter-based generator that the files name
//! (`GOLDENS` names another folder, `GOLDEN` one file).

use super::shared;
use lapis::Array;
use lapis::io::Arrays;
use serde_json::Value;
use std::path::PathBuf;

pub(crate) fn folder() -> Option<PathBuf> {
    std::env::var_os("GOLDENS").map(PathBuf::from).or_else(|| shared("goldens"))
}

fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}

pub(crate) fn uniform(seed: u64, i: u64) -> f64 {
    let mut z = seed.wrapping_add(i).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 40) as f64 / f64::from(1 << 24)
}

pub(crate) fn tensors(params: &Value) -> Arrays {
    let fill = |(name, spec): (&String, &Value)| {
        let shape: Vec<usize> =
            spec["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
        let n: usize = shape.iter().product();
        if spec["ternary"] == true {
            // Four of three codes in a byte.
            let digits = (0..n as u64).map(|i| (uniform(fnv1a(name), i) * 81.0) as u32);
            let byte = |d: u32| (0..4).fold(0, |byte, i| byte | (d / 3u32.pow(i) % 3) << (2 * i)) as u8;
            return (name.clone(), Array::from_vec(digits.map(byte).collect(), &shape));
        }
        let (center, scale) = (spec["center"].as_f64().unwrap(), spec["scale"].as_f64().unwrap());
        let seed = fnv1a(name);
        let data = (0..n as u64).map(|i| (center + scale * (2.0 * uniform(seed, i) - 1.0)) as f32).collect();
        (name.clone(), Array::from_vec(data, &shape))
    };
    params.as_object().unwrap().iter().map(fill).collect()
}

/// Name and content of each file, by name; those of `tests/data/goldens` are in the repository.
pub(crate) fn all() -> Vec<(String, Value)> {
    let own = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/goldens"));
    let only = std::env::var("GOLDEN").ok();
    let mut all = Vec::new();
    let files = [Some(own), folder()].into_iter().flatten().flat_map(|dir| std::fs::read_dir(dir).unwrap());
    for file in files.map(|f| f.unwrap().path()) {
        let name = file.file_stem().unwrap().to_str().unwrap().to_string();
        if file.extension().is_some_and(|e| e == "json")
            && name != "CONFIGS"
            && only.as_ref().is_none_or(|o| *o == name)
        {
            all.push((name, serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap()));
        }
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}
