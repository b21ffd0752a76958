//! Arrays as they come out of computations, in files: lazy, strided, broadcast.

use lapis::io::{self, Arrays, GgufMetadata, Metadata};
use lapis::prelude::*;
use std::path::PathBuf;

fn scratch(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("lapis-files-{}-{name}", std::process::id()))
}

fn views() -> Result<Arrays> {
    let a = ops::reshape(&ops::arange(0.0, 24.0, 1.0, Some(Dtype::Float32))?, &[2, 3, 4])?;
    let mut all = Arrays::new();
    all.insert("lazy".into(), &a + &a);
    all.insert("column major".into(), ops::transpose(&a, None)?);
    all.insert("permuted".into(), ops::transpose(&a, Some(&[1, 0, 2]))?);
    all.insert("backwards".into(), ops::slice(&a, &[(None, None, 1), (None, None, -1), (Some(1), Some(3), 1)])?);
    all.insert("repeated".into(), ops::broadcast_to(&ops::slice(&a, &[(Some(0), Some(1), 1); 3])?, &[3, 2, 1])?);
    Ok(all)
}

fn same(a: &Array, b: &Array, name: &str) -> Result<()> {
    assert_eq!((a.shape(), a.to_vec::<f32>()?), (b.shape(), b.to_vec::<f32>()?), "{name}");
    Ok(())
}

#[test]
fn views_keep_their_values_in_every_format() -> Result<()> {
    let (st, npz, gguf) = (scratch("v.safetensors"), scratch("v.npz"), scratch("v.gguf"));
    io::save_safetensors(&st, &views()?, &Metadata::new())?;
    io::save_npz(&npz, &views()?, false)?;
    io::save_gguf(&gguf, &views()?, &GgufMetadata::new())?;
    let files = [io::load_safetensors(&st)?.0, io::load_npz(&npz)?, io::load_gguf(&gguf)?.0];
    for file in &files {
        for (name, a) in views()? {
            same(&file[&name], &a, &name)?;
        }
    }
    for (name, a) in views()? {
        let npy = scratch(&format!("{name}.npy"));
        io::save_npy(&npy, &a)?;
        same(&io::load_npy(&npy)?, &a, &name)?;
        std::fs::remove_file(npy).ok();
    }
    // Only the truly column-major array keeps its order in the file.
    let order = |name: &str| files[1][name].tensor().map(|t| t.is_row_contiguous());
    assert!(!order("column major")? && order("permuted")? && order("backwards")?);
    for f in [st, npz, gguf] {
        std::fs::remove_file(f).ok();
    }
    Ok(())
}

#[test]
fn arrays_of_a_file_survive_its_replacement() -> Result<()> {
    let path = scratch("self.safetensors");
    io::save_safetensors(&path, [(&"x", &array([1.0f32, 2.0, 3.0]))], &Metadata::new())?;
    for _ in 0..3 {
        // What is saved points into the very file that is written.
        let (mut loaded, metadata) = io::load_safetensors(&path)?;
        let x = &loaded["x"] * 2.0f32;
        let old = loaded.insert("x".into(), x);
        io::save_safetensors(&path, &loaded, &metadata)?;
        assert_eq!(old.map(|o| o.size()), Some(3));
    }
    assert_eq!(io::load_safetensors(&path)?.0["x"].to_vec::<f32>()?, [8.0, 16.0, 24.0]);
    std::fs::remove_file(path).ok();
    Ok(())
}
