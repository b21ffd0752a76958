//! Checkpoints in several files, and loading by suffix.

use lapis_core::array::Array;
use lapis_io::shards::read_index;
use lapis_io::{Arrays, Loaded, Metadata, ReadMode, load, load_sharded, save_npy, save_safetensors, save_sharded};
use std::path::{Path, PathBuf};

fn scratch(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("lapis-io-shards-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir(&dir).unwrap();
    dir
}

fn arrays(names: &[&str]) -> Arrays {
    names.iter().map(|n| (n.to_string(), Array::from_vec(vec![n.len() as f32; 4], &[4]))).collect()
}

fn save(path: &Path, names: &[&str]) {
    save_safetensors(path, &arrays(names), &Metadata::new()).unwrap();
}

#[test]
fn what_is_written_in_shards_is_read_back() {
    let dir = scratch("round");
    let metadata = Metadata::from([("format".to_string(), "mlx".to_string())]);
    let all = arrays(&["c", "a", "bb", "d", "e"]);
    for (limit, files) in [(1 << 20, 1), (32, 3), (1, 5)] {
        save_sharded(&dir, &all, &metadata, 20, limit).unwrap();
        let index = dir.join("model.safetensors.index.json");
        let map = read_index(&index).unwrap();
        assert_eq!(map.keys().collect::<Vec<_>>(), ["a", "bb", "c", "d", "e"]);
        let named: std::collections::BTreeSet<_> = map.values().collect();
        assert_eq!(named.len(), files);
        let first =
            if files == 1 { "model.safetensors".into() } else { format!("model-00001-of-{files:05}.safetensors") };
        assert_eq!(map["c"], first);
        let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&index).unwrap()).unwrap();
        assert_eq!(
            (json["metadata"]["total_size"].as_u64(), json["metadata"]["total_parameters"].as_u64()),
            (Some(80), Some(20))
        );
        let (read, m) = load_sharded(&index, ReadMode::Map).unwrap();
        assert_eq!((read.len(), m), (5, metadata.clone()));
        all.iter().for_each(|(k, a)| assert_eq!(read[k].to_vec::<f32>().unwrap(), a.to_vec::<f32>().unwrap()));
    }
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn indexes_that_are_wrong_name_every_problem() {
    let dir = scratch("bad");
    save(&dir.join("one.safetensors"), &["a", "b"]);
    save(&dir.join("two.safetensors"), &["b", "c"]);
    let index = dir.join("i.json");
    let check = |text: &str, whats: &[&str]| {
        std::fs::write(&index, text).unwrap();
        let e = load_sharded(&index, ReadMode::Map).err().unwrap_or_else(|| panic!("loaded {text}"));
        whats.iter().for_each(|w| assert!(e.message().contains(w), "{e} does not say {w:?}"));
    };
    let map = |pairs: &str| format!("{{\"weight_map\":{{{pairs}}}}}");
    check("", &["EOF"]);
    check("[]", &["an object with a weight_map"]);
    check("{}", &["missing field `weight_map`"]);
    check(&map(r#""a":1"#), &["invalid type"]);
    check(&map(r#""a":"x","a":"y""#), &["duplicate key \"a\""]);
    for path in ["../one.safetensors", "/etc/passwd", "sub/one.safetensors", "..", "", "a\\\\b"] {
        check(&map(&format!("\"a\":\"{path}\"")), &["is no plain file name"]);
    }
    check(
        &map(
            r#""a":"one.safetensors","b":"one.safetensors","c":"two.safetensors","x":"two.safetensors","y":"three.safetensors""#,
        ),
        &[
            "tensor \"x\" is not in \"two.safetensors\"",
            "three.safetensors: ",
            "tensor \"b\" is in \"one.safetensors\" and in \"two.safetensors\"",
        ],
    );
    save(&dir.join("m-00001-of-00002.safetensors"), &["a"]);
    check(&map(r#""a":"m-00001-of-00002.safetensors""#), &["speak of 2 files, the index names 1"]);
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("loop.safetensors", dir.join("loop.safetensors")).unwrap();
        check(&map(r#""a":"loop.safetensors""#), &["loop.safetensors: "]);
    }
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn the_suffix_decides_what_is_loaded() {
    let dir = scratch("suffix");
    let a = Array::from_vec(vec![1f32], &[1]);
    save_npy(dir.join("a"), &a).unwrap();
    save(&dir.join("b"), &["x"]);
    assert!(matches!(load(dir.join("a.npy"), None), Ok(Loaded::Npy(_))));
    assert!(matches!(load(dir.join("b.safetensors"), None), Ok(Loaded::Safetensors(a, _)) if a.len() == 1));
    std::fs::rename(dir.join("a.npy"), dir.join("a.bin")).unwrap();
    let e = load(dir.join("a.bin"), None).err().unwrap();
    assert!(e.message().contains("unknown format \"bin\""), "{e}");
    assert!(matches!(load(dir.join("a.bin"), Some(lapis_io::Format::Npy)), Ok(Loaded::Npy(_))));
    std::fs::remove_dir_all(dir).unwrap();
}
