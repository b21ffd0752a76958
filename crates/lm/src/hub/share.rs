//! Directories from one machine to another, over any stream: what `lapis share` sends and takes.
//!
//! A line with a version, then messages: a letter, the number of bytes that follow (u64, little endian), the bytes. `F` begins a
//! file (JSON: `path`, `size`), `C` is a chunk of it, `D` its SHA-256, `E` ends all (JSON: `files`, `bytes`). Whoever takes
//! trusts nothing: lengths are checked before they are used, paths stay inside, and the directory gets its name when all of it
//! is there.

use super::cache::safe_path;
use super::digest::Digest;
use super::fetch::cannot;
use super::upload::gather;
use lapis::io::blocks::Blocks;
use lapis::{Error, Result};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// The first line, with the version of all that follows.
const FIRST: &[u8] = b"lapis share 1\n";
/// Bytes of a chunk at most.
const CHUNK: u64 = 100_000_000;
/// Bytes of any other message at most.
const SHORT: u64 = 1 << 16;
/// Bytes that are read at a time.
const PIECE: usize = 1 << 20;

/// What was sent or taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shared {
    /// Files.
    pub files: u64,
    /// Bytes of them.
    pub bytes: u64,
}

/// Writes the files of a directory to a stream; `watch` hears how many bytes of how many are sent, and says whether to go on.
///
/// # Errors
/// A directory without files, a file that cannot be read or changes, a stream that ends.
pub fn send(dir: &Path, to: &mut dyn Write, watch: &mut dyn FnMut(u64, u64) -> bool) -> Result<Shared> {
    let mut files = Vec::new();
    gather(dir, "", &mut files)?;
    if files.is_empty() {
        return Err(Error::value(format!("[share] {} holds no files", dir.display())));
    }
    let total: u64 = files.iter().map(|f| f.size).sum();
    let mut done = 0;
    to.write_all(FIRST).map_err(gone)?;
    for file in &files {
        message(to, b'F', json!({"path": file.name, "size": file.size}).to_string().as_bytes())?;
        let mut from = File::open(&file.path).map_err(|e| cannot("read", &file.path, e))?;
        let (mut left, mut digest) = (file.size, Digest::sha256());
        let mut piece = vec![0; PIECE];
        while left > 0 {
            let chunk = left.min(CHUNK);
            header(to, b'C', chunk)?;
            let mut rest = chunk;
            while rest > 0 {
                let most = rest.min(PIECE as u64) as usize;
                let n = from.read(&mut piece[..most]).map_err(|e| cannot("read", &file.path, e))?;
                if n == 0 {
                    return Err(Error::io(format!("[share] {} has become shorter", file.path.display())));
                }
                digest.update(&piece[..n]);
                to.write_all(&piece[..n]).map_err(gone)?;
                rest -= n as u64;
                done += n as u64;
                if !watch(done, total) {
                    return Err(Error::io("[share] stopped; nothing appears where it was sent"));
                }
            }
            left -= chunk;
        }
        message(to, b'D', digest.finish().unwrap_or_default().as_bytes())?;
    }
    let all = Shared { files: files.len() as u64, bytes: total };
    message(to, b'E', json!({"files": all.files, "bytes": all.bytes}).to_string().as_bytes())?;
    to.flush().map_err(gone)?;
    Ok(all)
}

fn header(to: &mut dyn Write, kind: u8, size: u64) -> Result<()> {
    to.write_all(&[kind]).and_then(|()| to.write_all(&size.to_le_bytes())).map_err(gone)
}

fn message(to: &mut dyn Write, kind: u8, bytes: &[u8]) -> Result<()> {
    header(to, kind, bytes.len() as u64)?;
    to.write_all(bytes).map_err(gone)
}

fn gone(e: std::io::Error) -> Error {
    Error::network(format!("[share] the other side has gone: {e}"))
}

/// Takes a directory from a stream to `target`, which must not exist. Until all is there, files lie in a folder of another name
/// in `temporary`, by default where the target will be.
///
/// # Errors
/// A target that exists; a stream that ends early, is none of lapis's, or of another version; a path that leads elsewhere,
/// lengths or a digest that do not agree; a disk that is full. Nothing is left then.
pub fn receive(from: &mut dyn Read, target: &Path, temporary: Option<&Path>) -> Result<Shared> {
    if target.exists() {
        return Err(Error::io(format!("[share] {} exists; remove it, or give another --dst", target.display())));
    }
    let name = target.file_name().ok_or_else(|| Error::value("[share] the target names no directory"))?;
    let beside = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = temporary.unwrap_or(beside);
    fs::create_dir_all(beside).map_err(|e| cannot("make", beside, e))?;
    let partial = folder.join(format!(".{}.partial-{}", name.to_string_lossy(), std::process::id()));
    fs::create_dir_all(&partial).map_err(|e| cannot("make", &partial, e))?;
    let cleanup = Partial(partial.clone());
    let shared = take(from, &partial)?;
    if fs::rename(&partial, target).is_err() {
        // Another file system: copied beside the target first.
        let near = beside.join(format!(".{}.arrived-{}", name.to_string_lossy(), std::process::id()));
        let cleanup = Partial(near.clone());
        copy(&partial, &near)?;
        fs::rename(&near, target).map_err(|e| cannot("make", target, e))?;
        std::mem::forget(cleanup);
        return Ok(shared);
    }
    std::mem::forget(cleanup);
    Ok(shared)
}

/// A folder that goes unless all is well.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).map_err(|e| cannot("make", to, e))?;
    for entry in fs::read_dir(from).map_err(|e| cannot("read", from, e))?.flatten() {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy(&path, &target)?;
        } else {
            fs::copy(&path, &target).map_err(|e| cannot("write", &target, e))?;
        }
    }
    Ok(())
}

fn wrong(what: impl std::fmt::Display) -> Error {
    Error::network(format!("[share] what comes is damaged, or from another version of lapis: {what}"))
}

/// Exactly so many bytes.
fn exactly(from: &mut dyn Read, bytes: &mut [u8]) -> Result<()> {
    from.read_exact(bytes).map_err(|e| Error::network(format!("[share] it ended before all was there: {e}")))
}

fn take(from: &mut dyn Read, dir: &Path) -> Result<Shared> {
    let mut first = [0; FIRST.len()];
    exactly(from, &mut first)?;
    if first != *FIRST {
        return Err(wrong("the first line is another"));
    }
    let mut all = Shared::default();
    let mut piece = vec![0; PIECE];
    // The file that is being written: its path, itself, what is left of it, its digest.
    let mut open: Option<(PathBuf, Blocks<File>, u64, Digest)> = None;
    loop {
        let mut head = [0; 9];
        exactly(from, &mut head)?;
        let size = u64::from_le_bytes(head[1..].try_into().unwrap_or_default());
        if size > if head[0] == b'C' { CHUNK } else { SHORT } {
            return Err(wrong(format!("a message of {size} bytes")));
        }
        if head[0] == b'C' {
            let Some((path, file, left, digest)) = &mut open else { return Err(wrong("bytes of no file")) };
            if size > *left {
                return Err(wrong(format!("{} is longer than was said", path.display())));
            }
            let mut rest = size;
            while rest > 0 {
                let n = rest.min(PIECE as u64) as usize;
                exactly(from, &mut piece[..n])?;
                digest.update(&piece[..n]);
                file.write_all(&piece[..n]).map_err(|e| cannot("write", path, e))?;
                rest -= n as u64;
            }
            *left -= size;
            continue;
        }
        let mut text = vec![0; size as usize];
        exactly(from, &mut text)?;
        let object = || serde_json::from_slice::<Value>(&text).map_err(wrong);
        let number = |value: &Value, key: &str| value[key].as_u64().ok_or_else(|| wrong(format!("no {key}")));
        match (head[0], open.take()) {
            (b'F', None) => {
                let value = object()?;
                let name = value["path"].as_str().filter(|p| safe_path(p));
                let name = name.ok_or_else(|| wrong(format!("{} is no path inside a directory", value["path"])))?;
                let path = dir.join(name);
                let folder = path.parent().unwrap_or(dir);
                fs::create_dir_all(folder).map_err(|e| cannot("make", folder, e))?;
                let file = File::create_new(&path).map_err(|e| cannot("write", &path, e))?;
                let file = Blocks::new(file, 0);
                open = Some((path, file, number(&value, "size")?, Digest::sha256()));
            }
            (b'D', Some((path, mut file, 0, digest))) => {
                if !digest.is(&String::from_utf8_lossy(&text)) {
                    return Err(wrong(format!("{} has another digest than was sent", path.display())));
                }
                file.flush().and_then(|()| file.get_ref().sync_all()).map_err(|e| cannot("write", &path, e))?;
                all.files += 1;
                all.bytes += file.get_ref().metadata().map_err(|e| cannot("read", &path, e))?.len();
            }
            (b'E', None) => {
                let value = object()?;
                let said = Shared { files: number(&value, "files")?, bytes: number(&value, "bytes")? };
                return if said == all { Ok(all) } else { Err(wrong("files are missing")) };
            }
            (kind, _) => return Err(wrong(format!("a message {:?} out of order", char::from(kind)))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("lapis-share-{}-{name}", std::process::id()));
        drop(fs::remove_dir_all(&dir));
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn sent(dir: &Path) -> Vec<u8> {
        let mut bytes = Vec::new();
        send(dir, &mut bytes, &mut |_, _| true).unwrap();
        bytes
    }

    #[test]
    fn what_is_sent_arrives_whole_or_not_at_all() {
        let dir = folder("whole");
        let (from, to, elsewhere) = (dir.join("from"), dir.join("deep/to"), dir.join("temporary"));
        fs::create_dir_all(from.join("1_Pooling")).unwrap();
        fs::create_dir_all(&elsewhere).unwrap();
        let long: Vec<u8> = (0..3 * PIECE + 17).map(|i| (i * 7) as u8).collect();
        for (name, bytes) in [("a.bin", &long[..]), ("1_Pooling/config.json", b"{}"), ("empty", b"")] {
            fs::write(from.join(name), bytes).unwrap();
        }
        let bytes = sent(&from);
        let all = receive(&mut &bytes[..], &to, Some(&elsewhere)).unwrap();
        assert_eq!(all, Shared { files: 3, bytes: long.len() as u64 + 2 });
        assert_eq!(fs::read(to.join("a.bin")).unwrap(), long);
        assert_eq!(fs::read(to.join("1_Pooling/config.json")).unwrap(), b"{}");
        assert!(receive(&mut &bytes[..], &to, None).unwrap_err().message().contains("exists"));
        // Cut anywhere, or with a byte changed, nothing appears and nothing is left.
        let other = dir.join("deep/other");
        for n in [0, 5, FIRST.len() + 4, 100, bytes.len() / 2, bytes.len() - 1] {
            assert!(receive(&mut &bytes[..n], &other, None).is_err(), "{n}");
        }
        for at in [3, FIRST.len(), FIRST.len() + 3, bytes.len() / 2, bytes.len() - 3] {
            let mut changed = bytes.clone();
            changed[at] ^= 0x40;
            assert!(receive(&mut &changed[..], &other, None).is_err(), "{at}");
        }
        assert!(!other.exists());
        assert_eq!(fs::read_dir(dir.join("deep")).unwrap().count(), 1);
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn paths_stay_inside() {
        let dir = folder("paths");
        for path in ["../x", "/x", "a/../../x", "a//b", "", ".", "a\\b", "c:x"] {
            let mut bytes = FIRST.to_vec();
            message(&mut bytes, b'F', json!({"path": path, "size": 0}).to_string().as_bytes()).unwrap();
            let e = receive(&mut &bytes[..], &dir.join("to"), None).unwrap_err();
            assert!(e.message().contains("no path inside"), "{path}: {e}");
        }
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        fs::remove_dir_all(&dir).unwrap();
    }
}
