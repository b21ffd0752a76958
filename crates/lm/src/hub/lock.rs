//! `lapis.lock`: which commit of a model is meant, and the SHA-256 of each of its files, so that it is the same one
//! everywhere and later. JSON, to be kept under version control.

use super::Name;
use super::digest::Digest;
use super::fetch::cannot;
use lapis::io::atomic::AtomicFile;
use lapis::{Error, Result};
use serde_json::{Map, Value, json};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// The models that a lock file pins.
pub struct Lock {
    path: PathBuf,
    models: Map<String, Value>,
}

impl Lock {
    /// Reads a lock file; one that is not there pins nothing.
    ///
    /// # Errors
    /// A file that cannot be read or is no lock file.
    pub fn open(path: impl AsRef<Path>) -> Result<Lock> {
        let path = path.as_ref().to_path_buf();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Lock { path, models: Map::new() }),
            Err(e) => return Err(cannot("read", &path, e)),
        };
        let damaged =
            |why: &str| Error::io(format!("[hub] {}: {why}; remove it or take it from elsewhere", path.display()));
        let value: Value = serde_json::from_slice(&text).map_err(|e| damaged(&e.to_string()))?;
        if value.get("version") != Some(&json!(1)) {
            return Err(damaged("no lock file of version 1"));
        }
        let models =
            value.get("models").and_then(Value::as_object).cloned().ok_or_else(|| damaged("names no models"))?;
        let whole = |m: &Value| m["commit"].as_str().is_some_and(super::cache::safe_part) && m["files"].is_object();
        if let Some((name, _)) = models.iter().find(|(_, m)| !whole(m)) {
            return Err(damaged(&format!("{name:?} has no commit or no files")));
        }
        Ok(Lock { path, models })
    }

    /// The commit that a repository is pinned to.
    pub fn commit(&self, repo: &str) -> Option<&str> {
        self.models.get(repo)?.get("commit")?.as_str()
    }

    /// Pins a repository to a snapshot, and writes the file.
    ///
    /// # Errors
    /// Files that cannot be read or written.
    pub fn pin(&mut self, name: &Name, snapshot: &Path) -> Result<()> {
        let mut files = Map::new();
        for file in files_of(snapshot, "")? {
            files.insert(file.clone(), sha256(&snapshot.join(&file))?.into());
        }
        let commit = snapshot.file_name().unwrap_or_default().to_string_lossy();
        let pinned = json!({"revision": name.revision, "commit": commit, "files": files});
        self.models.insert(name.repo.clone(), pinned);
        let text =
            serde_json::to_string_pretty(&json!({"version": 1, "models": self.models})).unwrap_or_default() + "\n";
        let mut file = AtomicFile::create(&self.path, "hub", text.len() as u64)?;
        file.write(text.as_bytes())?;
        file.commit()
    }

    /// Files of a snapshot that are missing or are not what is pinned.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn differs(&self, repo: &str, snapshot: &Path) -> Result<Vec<PathBuf>> {
        let mut wrong = Vec::new();
        let files = self.models.get(repo).and_then(|m| m.get("files")?.as_object());
        for (file, digest) in files.into_iter().flatten() {
            let path = snapshot.join(file);
            if !super::cache::safe_path(file) || !path.exists() || sha256(&path)? != digest.as_str().unwrap_or_default()
            {
                wrong.push(path);
            }
        }
        Ok(wrong)
    }
}

/// The files of a folder, in order.
fn files_of(dir: &Path, prefix: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| cannot("read", dir, e))?.flatten() {
        let (path, name) = (entry.path(), format!("{prefix}{}", entry.file_name().to_string_lossy()));
        if path.is_dir() {
            found.extend(files_of(&path, &format!("{name}/"))?);
        } else {
            found.push(name);
        }
    }
    found.sort();
    Ok(found)
}

fn sha256(path: &Path) -> Result<String> {
    let mut digest = Digest::sha256();
    let file = File::open(path).map_err(|e| cannot("read", path, e))?;
    digest.read(file, |_| true).map_err(|e| cannot("read", path, e))?;
    Ok(digest.finish().unwrap_or_default())
}
