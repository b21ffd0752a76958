//! The one test of its process, since what is mapped is counted for the whole of it.

use lapis_core::{array, memory};
use lapis_io::{load_npy, save_npy};

#[test]
fn mapped_files_are_counted_apart_while_arrays_stand_on_them() {
    let path = std::env::temp_dir().join(format!("lapis-io-mapped-{}.npy", std::process::id()));
    save_npy(&path, &array([1.0f32, 2.0])).unwrap();
    let (active, size) = (memory::active(), std::fs::metadata(&path).unwrap().len() as usize);
    let a = load_npy(&path).unwrap();
    let b = a.clone();
    drop(a);
    assert_eq!((memory::mapped(), memory::active()), (size, active));
    drop(b);
    assert_eq!(memory::mapped(), 0);
    std::fs::remove_file(path).unwrap();
}
