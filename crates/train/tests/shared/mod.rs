//! What tests of this crate share, of which each uses a part.
#![allow(dead_code)]

use std::ops::Deref;
use std::path::{Path, PathBuf};

/// A folder of one test's own, gone at its end, also when the test fails.
pub(crate) struct Folder(PathBuf);

impl Folder {
    /// A new and empty one.
    pub(crate) fn new(name: &str) -> Folder {
        let dir = std::env::temp_dir().join(format!("lapis-train-{}-{name}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        std::fs::create_dir_all(&dir).unwrap();
        Folder(dir)
    }
}

impl Deref for Folder {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}
