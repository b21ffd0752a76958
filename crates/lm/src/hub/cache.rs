//! The Hugging Face cache: `models--owner--name/{blobs,refs,snapshots}`, shared with every tool that keeps to it.
//!
//! Blobs are named by their digest; snapshots are folders of links to them, one a commit; refs say which commit a branch
//! or tag was last seen at. Knows no network.

use super::{Name, PATTERNS};
use lapis::{Error, Result, io};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Where models are kept.
#[derive(Clone, Debug)]
pub struct Cache {
    /// Its directory.
    pub root: PathBuf,
    /// Snapshots are links to blobs; otherwise copies.
    pub links: bool,
}

/// One repository in the cache.
#[derive(Clone, Debug)]
pub struct Repository {
    /// `owner/name`.
    pub id: String,
    /// `model`, `dataset` or `space`.
    pub kind: String,
    /// Its folder.
    pub path: PathBuf,
    /// Bytes of its blobs, each counted once.
    pub size: u64,
    /// Files of its snapshots, equal ones counted once.
    pub files: usize,
    /// When a blob was last read, where the file system says.
    pub accessed: Option<SystemTime>,
    /// When a blob was last written.
    pub modified: Option<SystemTime>,
    /// Commits, each with the branches and tags that were seen at it.
    pub revisions: BTreeMap<String, Vec<String>>,
}

impl Cache {
    /// The folder of a repository, whether it is there or not.
    pub fn folder(&self, repo: &str) -> PathBuf {
        self.root.join(format!("models--{}", repo.replace('/', "--")))
    }

    /// The snapshot of a revision, where there is one.
    pub fn snapshot(&self, name: &Name) -> Option<PathBuf> {
        self.snapshot_in(&self.folder(&name.repo), name)
    }

    fn snapshot_in(&self, folder: &Path, name: &Name) -> Option<PathBuf> {
        let seen = fs::read_to_string(folder.join("refs").join(&name.revision)).ok();
        let commit = seen.map(|c| c.trim().to_string()).unwrap_or_else(|| name.revision.clone());
        let dir = folder.join("snapshots").join(&commit);
        (safe_part(&commit) && dir.is_dir()).then_some(dir)
    }

    /// The snapshot of a revision of a data set, where there is one.
    pub fn dataset(&self, name: &Name) -> Option<PathBuf> {
        self.snapshot_in(&self.root.join(format!("datasets--{}", name.repo.replace('/', "--"))), name)
    }

    /// Every repository in the cache, by path. A cache that is not there is empty.
    pub fn scan(&self) -> Vec<Repository> {
        let mut all: Vec<Repository> = entries(&self.root).filter_map(|path| repository(&path)).collect();
        all.sort_by(|a, b| a.path.cmp(&b.path));
        all
    }

    /// Removes a repository from the cache.
    ///
    /// # Errors
    /// A folder that cannot be removed.
    pub fn remove(&self, repository: &Repository) -> Result<()> {
        let fail = |path: &Path, e: std::io::Error| Error::io(format!("[hub] {}: {e}", path.display()));
        // Links first: a snapshot that is half gone is not taken for a whole one.
        for part in ["refs", "snapshots"] {
            let path = repository.path.join(part);
            if path.exists() {
                fs::remove_dir_all(&path).map_err(|e| fail(&path, e))?;
            }
        }
        fs::remove_dir_all(&repository.path).map_err(|e| fail(&repository.path, e))?;
        let locks = self.root.join(".locks").join(repository.path.file_name().unwrap_or_default());
        drop(fs::remove_dir_all(locks));
        Ok(())
    }

    /// Holds the lock of a blob, which other tools take, too. `go` is asked while waiting.
    pub(super) fn lock(&self, repo: &str, blob: &str, go: impl Fn() -> bool) -> Result<Option<File>> {
        let folder = self.root.join(".locks").join(format!("models--{}", repo.replace('/', "--")));
        let path = folder.join(format!("{blob}.lock"));
        let fail = |e: std::io::Error| Error::io(format!("[hub] cannot make {}: {e}", path.display()));
        fs::create_dir_all(&folder).map_err(fail)?;
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(fail)?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(file)),
                // A file system without locks: digests still keep a wrong blob out.
                Err(TryLockError::Error(_)) => return Ok(None),
                Err(TryLockError::WouldBlock) if !go() => return Err(stopped()),
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Puts a blob into a snapshot under the name it has there.
    pub(super) fn publish(&self, folder: &Path, commit: &str, file: &str, blob: &str) -> Result<()> {
        let pointer = folder.join("snapshots").join(commit).join(file);
        let fail = |e: std::io::Error| Error::io(format!("[hub] cannot make {}: {e}", pointer.display()));
        let source = folder.join("blobs").join(blob);
        fs::create_dir_all(pointer.parent().unwrap_or(folder)).map_err(fail)?;
        let same = match fs::read_link(&pointer) {
            Ok(link) => link.file_name() == source.file_name() && pointer.exists(),
            Err(_) => pointer.metadata().is_ok_and(|m| m.len() == source.metadata().map_or(0, |m| m.len())),
        };
        if same {
            return Ok(());
        }
        let fresh = pointer.with_file_name(format!(".{}.{}", blob, std::process::id()));
        drop(fs::remove_file(&fresh));
        let up = "../".repeat(2 + file.matches('/').count());
        let linked = self.links && link(&format!("{up}blobs/{blob}"), &fresh).is_ok();
        if !linked && fs::hard_link(&source, &fresh).is_err() {
            fs::copy(&source, &fresh).map_err(fail)?;
        }
        fs::rename(&fresh, &pointer).map_err(fail)
    }

    /// Notes the commit at which a branch or tag was seen.
    pub(super) fn note(&self, name: &Name, commit: &str) -> Result<()> {
        if name.revision == commit {
            return Ok(());
        }
        let path = self.folder(&name.repo).join("refs").join(&name.revision);
        if fs::read_to_string(&path).is_ok_and(|c| c == commit) {
            return Ok(());
        }
        let fail = |e: std::io::Error| Error::io(format!("[hub] cannot make {}: {e}", path.display()));
        let fresh = path.with_extension(format!("{}.partial", std::process::id()));
        fs::create_dir_all(path.parent().unwrap_or(&path)).map_err(fail)?;
        fs::write(&fresh, commit).map_err(fail)?;
        fs::rename(&fresh, &path).map_err(fail)
    }
}

/// What keeps a snapshot from being a model: files that are named somewhere and are not there.
pub(super) fn missing(snapshot: &Path) -> Vec<String> {
    // Other tools leave a list of the whole repository; it is exact.
    if let Some(named) = listed(snapshot) {
        return named.into_iter().filter(|file| wanted(file) && !snapshot.join(file).exists()).collect();
    }
    let mut missing = Vec::new();
    if !snapshot.join("config.json").exists() {
        missing.push("config.json".to_string());
    }
    let index = snapshot.join("model.safetensors.index.json");
    let here: Vec<String> = names(snapshot);
    let weights = |n: &String| (n.starts_with("model") || n.starts_with("weights")) && n.ends_with(".safetensors");
    match io::shards::read_index(&index) {
        Ok(index) => {
            let mut files: Vec<String> = index.into_values().collect();
            files.sort();
            files.dedup();
            missing.extend(files.into_iter().filter(|f| !snapshot.join(f).exists()));
        }
        Err(_) if here.iter().any(|n| weights(n) || n.ends_with(".gguf")) => {}
        Err(_) => missing.push("model.safetensors".to_string()),
    }
    let tokenizer = |n: &String| {
        ["tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"].contains(&n.as_str())
            || n.ends_with(".tiktoken")
    };
    if !here.iter().any(|n| tokenizer(n) || n.ends_with(".gguf")) {
        missing.push("tokenizer.json".to_string());
    }
    missing
}

/// Whether a file of a repository belongs to a model.
pub(super) fn wanted(file: &str) -> bool {
    PATTERNS.iter().any(|pattern| match pattern.split_once('*') {
        None => *pattern == file,
        Some((head, tail)) => file.len() >= head.len() + tail.len() && file.starts_with(head) && file.ends_with(tail),
    })
}

/// The files of a repository by the list that other tools leave beside its snapshots.
fn listed(snapshot: &Path) -> Option<Vec<String>> {
    let commit = snapshot.file_name()?.to_str()?;
    let list = snapshot.parent()?.parent()?.join("trees").join(format!("{commit}.json"));
    let list: Value = serde_json::from_slice(&fs::read(list).ok()?).ok()?;
    list.get("format_version").filter(|v| **v == 1)?;
    Some(list.get("files")?.as_object()?.keys().filter(|f| safe_path(f)).cloned().collect())
}

/// Whether a name from elsewhere may become a part of a path.
pub(super) fn safe_part(part: &str) -> bool {
    let good = |c: char| !c.is_control() && !matches!(c, '/' | '\\' | ':');
    !part.is_empty() && part != "." && part != ".." && part.len() <= 255 && part.chars().all(good)
}

/// Whether a relative path from elsewhere stays where it is put.
pub(super) fn safe_path(path: &str) -> bool {
    path.len() <= 1000 && path.split('/').all(safe_part)
}

/// The error of a download that its watcher ended.
pub(super) fn stopped() -> Error {
    Error::io("[hub] stopped; what is there is kept, and the next pull goes on from it")
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(dir).into_iter().flatten().filter_map(|e| Some(e.ok()?.path()))
}

fn names(dir: &Path) -> Vec<String> {
    entries(dir).filter(|p| p.exists()).filter_map(|p| Some(p.file_name()?.to_str()?.to_string())).collect()
}

/// All files below a folder; a link counts as what it leads to. Folders that are links are not entered.
fn below(dir: &Path, found: &mut Vec<PathBuf>) {
    for path in entries(dir) {
        match fs::symlink_metadata(&path) {
            Ok(m) if m.is_dir() => below(&path, found),
            Ok(_) if path.is_file() => found.push(path),
            _ => {}
        }
    }
}

fn repository(path: &Path) -> Option<Repository> {
    let name = path.file_name()?.to_str()?;
    let (kind, id) = name.split_once("s--")?;
    if !["model", "dataset", "space"].contains(&kind) || !path.is_dir() {
        return None;
    }
    let mut revisions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut blobs: BTreeMap<PathBuf, fs::Metadata> = BTreeMap::new();
    for snapshot in entries(&path.join("snapshots")).filter(|p| p.is_dir()) {
        revisions.entry(snapshot.file_name()?.to_string_lossy().into_owned()).or_default();
        let mut files = Vec::new();
        below(&snapshot, &mut files);
        for file in files {
            let blob = fs::canonicalize(&file).unwrap_or(file);
            if let Ok(metadata) = fs::metadata(&blob) {
                blobs.insert(blob, metadata);
            }
        }
    }
    let refs = path.join("refs");
    let mut files = Vec::new();
    below(&refs, &mut files);
    for file in files {
        let (Ok(commit), Ok(name)) = (fs::read_to_string(&file), file.strip_prefix(&refs)) else { continue };
        if let Some(names) = revisions.get_mut(commit.trim()) {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    Some(Repository {
        id: id.replace("--", "/"),
        kind: kind.to_string(),
        path: path.to_path_buf(),
        size: blobs.values().map(fs::Metadata::len).sum(),
        files: blobs.len(),
        accessed: blobs.values().filter_map(|m| m.accessed().ok()).max(),
        modified: blobs.values().filter_map(|m| m.modified().ok()).max(),
        revisions,
    })
}

#[cfg(unix)]
fn link(to: &str, at: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(to, at)
}

#[cfg(not(unix))]
fn link(_: &str, _: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_data_only() {
        for file in ["config.json", "model.safetensors", "model-00001-of-00002.safetensors", "merges.txt", "x.jinja"] {
            assert!(wanted(file), "{file}");
        }
        for file in
            ["modeling_x.py", "pytorch_model.bin", "README.md", "consolidated.safetensors", "a.gguf", ".gitattributes"]
        {
            assert!(!wanted(file), "{file}");
        }
    }

    #[test]
    fn names_from_elsewhere_stay_inside() {
        assert!(safe_path("a/b.json"));
        for bad in ["", "/a", "../a", "a/../b", "a//b", "a\\b", "C:x", "a\nb", "."] {
            assert!(!safe_path(bad), "{bad:?}");
        }
    }
}
