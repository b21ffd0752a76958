//! Downloads into the cache: what a repository has, which of it is wanted, several files at a time.
//!
//! A blob grows as `blobs/<digest>.incomplete`, goes on from where an earlier try ended, and takes its name when its
//! length and digest are right. The snapshot is filled and the ref noted when all blobs are there.

use super::cache::{safe_part, safe_path, stopped, wanted};
use super::digest::Digest;
use super::http::{Answer, Ask, Fault, TRIES, escape, header};
use super::{Hub, Name, Watch};
use lapis::io::atomic::{free_bytes, human};
use lapis::io::blocks::Blocks;
use lapis::{Error, Result};
use serde_json::Value;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Files that are fetched at a time.
pub(super) const LANES: usize = 4;

/// A file of a repository.
#[derive(Clone, Debug)]
pub(super) struct Remote {
    pub(super) path: String,
    /// The digest that names its content.
    pub(super) blob: String,
    pub(super) size: u64,
}

/// How far all files together are, and whether to go on.
struct Progress<'a> {
    done: AtomicU64,
    total: u64,
    ended: AtomicBool,
    watch: Watch<'a>,
}

impl Progress<'_> {
    fn go(&self) -> bool {
        let go = !self.ended.load(Relaxed) && (self.watch)(self.done.load(Relaxed), self.total);
        if !go {
            self.ended.store(true, Relaxed);
        }
        go
    }

    fn add(&self, bytes: u64) -> bool {
        self.done.fetch_add(bytes, Relaxed);
        self.go()
    }
}

impl Hub {
    /// Fetches what of a model is not in the cache.
    pub(super) fn fetch(&self, name: &Name, watch: Watch<'_>) -> Result<PathBuf> {
        let (commit, files) = self.listing(name)?;
        let has = |end: &str| files.iter().any(|f| f.path.ends_with(end));
        if !has("config.json") || !has(".safetensors") {
            let lacks = if has("config.json") { "model*.safetensors" } else { "config.json" };
            return Err(Error::network(format!(
                "[hub] {name} has no {lacks}: lapis reads models of config.json and safetensors files"
            )));
        }
        let folder = self.cache.folder(&name.repo);
        let blobs = folder.join("blobs");
        fs::create_dir_all(&blobs).map_err(|e| cannot("make", &blobs, e))?;
        let mut todo: Vec<Remote> = Vec::new();
        for file in &files {
            if !is_there(&blobs, file) && todo.iter().all(|f| f.blob != file.blob) {
                todo.push(file.clone());
            }
        }
        let begun = |f: &Remote| partial(&blobs, f).metadata().map_or(0, |m| m.len().min(f.size));
        let total: u64 = todo.iter().map(|f| f.size).sum();
        let needs = total - todo.iter().map(begun).sum::<u64>();
        if let Some(free) = free_bytes(&blobs)
            && free < needs
        {
            let (needs, free) = (human(needs), human(free));
            return Err(Error::memory(format!("[hub] {name} needs {needs}, {free} free on {}", blobs.display())));
        }
        let progress = Progress { done: AtomicU64::new(0), total, ended: AtomicBool::new(false), watch };
        let failed: Mutex<Option<Error>> = Mutex::new(None);
        // Large files first, so that no lane is left alone with one at the end.
        todo.sort_by_key(|f| f.size);
        let queue = Mutex::new(todo);
        std::thread::scope(|scope| {
            for _ in 0..LANES {
                scope.spawn(|| {
                    while progress.go() {
                        let Some(file) = queue.lock().unwrap_or_else(|e| e.into_inner()).pop() else { break };
                        if let Err(e) = self.blob(name, &commit, &file, &blobs, &progress) {
                            // Noted before the other lanes are told, whose error it becomes to be stopped.
                            failed.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(e);
                            progress.ended.store(true, Relaxed);
                        }
                    }
                });
            }
        });
        if let Some(error) = failed.into_inner().unwrap_or_else(|e| e.into_inner()) {
            return Err(error);
        }
        if progress.ended.load(Relaxed) {
            return Err(stopped());
        }
        for file in &files {
            self.cache.publish(&folder, &commit, &file.path, &file.blob)?;
        }
        self.cache.note(name, &commit)?;
        Ok(folder.join("snapshots").join(commit))
    }

    /// The commit of a revision, and the files of a model in it.
    pub(super) fn listing(&self, name: &Name) -> Result<(String, Vec<Remote>)> {
        let path = format!("/api/models/{}/revision/{}?blobs=true", name.repo, escape(&name.revision));
        let list = self.client.json(&path, None).map_err(|f| self.client.explain(name, &f))?;
        let strange = |what: &str| {
            Error::network(format!("[hub] {} lists {name} without {what}: is it a hub?", self.client.endpoint))
        };
        let commit =
            list.get("sha").and_then(Value::as_str).filter(|c| safe_part(c)).ok_or_else(|| strange("a commit"))?;
        let files = list.get("siblings").and_then(Value::as_array).ok_or_else(|| strange("files"))?;
        let mut found = Vec::new();
        for file in files {
            let Some(path) = file.get("rfilename").and_then(Value::as_str).filter(|p| wanted(p)) else { continue };
            if !safe_path(path) {
                return Err(Error::network(format!("[hub] {name} names a file {path:?}, which no file may be called")));
            }
            let lfs = file.get("lfs").filter(|l| l.is_object());
            let blob = match lfs {
                Some(lfs) => lfs.get("sha256").or(lfs.get("oid")),
                None => file.get("blobId").or(file.get("blob_id")),
            };
            let size = lfs.and_then(|l| l.get("size")).or(file.get("size")).and_then(Value::as_u64);
            found.push(match (blob.and_then(Value::as_str).filter(|b| safe_part(b)), size) {
                (Some(blob), Some(size)) => Remote { path: path.into(), blob: blob.into(), size },
                _ => self.head(name, commit, path)?,
            });
        }
        Ok((commit.to_string(), found))
    }

    /// What a hub says of one file, where its list does not.
    fn head(&self, name: &Name, commit: &str, path: &str) -> Result<Remote> {
        let url = self.url(name, commit, path);
        let headers = [("accept-encoding", "identity".to_string())];
        let ask = Ask { method: "HEAD", url: &url, headers: &headers, leave: false };
        let response = self.client.send(ask, None).map_err(|f| self.client.explain(name, &f))?;
        let etag = header(&response, "x-linked-etag").or_else(|| header(&response, "etag")).unwrap_or_default();
        let blob = etag.trim_start_matches("W/").trim_matches('"').to_string();
        let size = header(&response, "x-linked-size").or_else(|| header(&response, "content-length"));
        match size.and_then(|s| s.trim().parse().ok()) {
            Some(size) if safe_part(&blob) => Ok(Remote { path: path.into(), blob, size }),
            _ => Err(Error::network(format!("[hub] {url}: no ETag or no length: is it a hub?"))),
        }
    }

    pub(super) fn url(&self, name: &Name, commit: &str, path: &str) -> String {
        let path = path.split('/').map(escape).collect::<Vec<_>>().join("/");
        format!("{}/{}/resolve/{}/{path}", self.client.endpoint, name.repo, escape(commit))
    }

    /// Makes one blob complete.
    fn blob(&self, name: &Name, commit: &str, file: &Remote, blobs: &Path, progress: &Progress<'_>) -> Result<()> {
        let _lock = self.cache.lock(&name.repo, &file.blob, || progress.go())?;
        if is_there(blobs, file) {
            // Another process has made it meanwhile.
            progress.add(file.size);
            return Ok(());
        }
        let path = partial(blobs, file);
        let url = self.url(name, commit, &file.path);
        let out = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut growing = Growing { out: out.map_err(|e| cannot("write", &path, e))?, path, file, progress };
        for again in [false, true] {
            let digest = self.grow(name, &url, &mut growing)?;
            if digest.is(&file.blob) {
                growing.out.sync_all().map_err(|e| cannot("write", &growing.path, e))?;
                let target = blobs.join(&file.blob);
                return match fs::rename(&growing.path, &target) {
                    Err(e) if !is_there(blobs, file) => Err(cannot("make", &target, e)),
                    _ => Ok(()),
                };
            }
            growing.cut(file.size)?;
            if again {
                break;
            }
        }
        drop(fs::remove_file(&growing.path));
        Err(Error::network(format!(
            "[hub] {name}: {} came twice with content that is not what its digest says\n  fix: try again later; {} or a \
             proxy changes files",
            file.path, self.client.endpoint
        )))
    }

    /// Fetches what a file lacks, in as many tries as it takes while some of it comes; gives the digest of all of it.
    fn grow(&self, name: &Name, url: &str, growing: &mut Growing<'_>) -> Result<Digest> {
        let size = growing.file.size;
        let (mut have, mut digest) = growing.resume()?;
        let mut tries = 1;
        while have < size {
            let before = have;
            match self.stream(url, growing, &mut have, &mut digest)? {
                Ok(()) => {}
                Err(fault) => {
                    tries = if have > before { 1 } else { tries + 1 };
                    if !fault.passes() || tries > TRIES {
                        return Err(self.client.explain(name, &fault));
                    }
                    if !growing.progress.go() {
                        return Err(stopped());
                    }
                    self.client.wait(&fault, tries);
                }
            }
        }
        Ok(digest)
    }

    /// One request for what a file lacks. The outer error is of this machine, the inner one of the hub.
    fn stream(&self, url: &str, growing: &mut Growing<'_>, have: &mut u64, digest: &mut Digest) -> Result<Answer<()>> {
        let mut headers = vec![("accept-encoding", "identity".to_string())];
        if *have > 0 {
            headers.push(("range", format!("bytes={have}-")));
        }
        let mut response = match self.client.once(Ask { method: "GET", url, headers: &headers, leave: true }, None) {
            Ok(response) => response,
            Err(Fault::Status(status, ..)) if status.as_u16() == 416 && *have > 0 => {
                growing.cut(*have)?;
                (*have, *digest) = growing.resume()?;
                return Ok(Err(Fault::Transport(format!("{url}: the hub cannot go on from there"))));
            }
            Err(fault) => return Ok(Err(fault)),
        };
        let from = header(&response, "content-range");
        let goes_on = response.status().as_u16() == 206
            && from.is_some_and(|r| r.trim_start_matches("bytes ").split('-').next() == Some(&have.to_string()));
        if *have > 0 && !goes_on {
            // The hub gives the whole file.
            growing.cut(*have)?;
            (*have, *digest) = growing.resume()?;
        }
        let poured = growing.pour(response.body_mut().as_reader(), have, digest)?;
        if matches!(poured, Ok(false)) {
            growing.cut(*have)?;
            (*have, *digest) = growing.resume()?;
            return Ok(Err(Fault::Transport(format!("{url}: more bytes than the file has"))));
        }
        if let Err(fault) = poured {
            return Ok(Err(fault));
        }
        match *have < growing.file.size {
            true => Ok(Err(Fault::Transport(format!("{url}: broken off at byte {have}")))),
            false => Ok(Ok(())),
        }
    }

    /// Files of a snapshot whose content is not what their digests say. Copies without a digest are not checked.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn verify(&self, snapshot: &Path) -> Result<Vec<PathBuf>> {
        let mut wrong = Vec::new();
        let mut folders = vec![snapshot.to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).map_err(|e| cannot("read", &folder, e))?.flatten() {
                let path = entry.path();
                match fs::read_link(&path) {
                    Ok(to) => {
                        let blob = to.file_name().and_then(|n| n.to_str()).unwrap_or_default();
                        if !super::digest::file_is(&path, blob).map_err(|e| cannot("read", &path, e))? {
                            wrong.push(path);
                        }
                    }
                    Err(_) if path.is_dir() => folders.push(path),
                    Err(_) => {}
                }
            }
        }
        wrong.sort();
        Ok(wrong)
    }

    /// Takes files out of a snapshot, with their blobs, so that they are fetched again.
    ///
    /// # Errors
    /// A file that cannot be removed.
    pub fn discard(&self, files: &[PathBuf]) -> Result<()> {
        for path in files {
            let blob = fs::read_link(path).ok().and_then(|to| Some(path.parent()?.join(to)));
            for path in [Some(path), blob.as_ref()].into_iter().flatten() {
                fs::remove_file(path).map_err(|e| cannot("remove", path, e))?;
            }
        }
        Ok(())
    }
}

/// A blob in the making.
struct Growing<'a> {
    out: File,
    path: PathBuf,
    file: &'a Remote,
    progress: &'a Progress<'a>,
}

impl Growing<'_> {
    /// Takes up what is there: its length and digest so far.
    fn resume(&mut self) -> Result<(u64, Digest)> {
        let mut digest = Digest::of(&self.file.blob, self.file.size);
        let have = self.out.metadata().map_err(|e| cannot("read", &self.path, e))?.len();
        if have > self.file.size {
            self.out.set_len(0).map_err(|e| cannot("write", &self.path, e))?;
        }
        self.out.seek(SeekFrom::Start(0)).map_err(|e| cannot("read", &self.path, e))?;
        let read = digest.read(&self.out, |n| self.progress.add(n as u64));
        if !read.map_err(|e| cannot("read", &self.path, e))? {
            return Err(stopped());
        }
        let have = self.out.stream_position().map_err(|e| cannot("read", &self.path, e))?;
        Ok((have, digest))
    }

    /// Appends what comes, whose end tells whether the file has room for it all.
    fn pour(&self, mut body: impl Read, have: &mut u64, digest: &mut Digest) -> Result<Answer<bool>> {
        let mut out = Blocks::new(&self.out, *have);
        let mut buffer = vec![0; 1 << 18];
        let ended = loop {
            let n = match body.read(&mut buffer) {
                Ok(0) => break Ok(Ok(true)),
                Ok(n) => n,
                Err(e) => break Ok(Err(Fault::Transport(e.to_string()))),
            };
            if *have + n as u64 > self.file.size {
                break Ok(Ok(false));
            }
            out.write_all(&buffer[..n]).map_err(|e| cannot("write", &self.path, e))?;
            digest.update(&buffer[..n]);
            *have += n as u64;
            if !self.progress.add(n as u64) {
                break Err(stopped());
            }
        };
        // However it ended, what came is kept.
        out.flush().map_err(|e| cannot("write", &self.path, e))?;
        ended
    }

    /// Forgets everything; `counted` bytes of it were counted as done.
    fn cut(&mut self, counted: u64) -> Result<()> {
        self.progress.done.fetch_sub(counted, Relaxed);
        self.out.set_len(0).map_err(|e| cannot("write", &self.path, e))
    }
}

fn partial(blobs: &Path, file: &Remote) -> PathBuf {
    blobs.join(format!("{}.incomplete", file.blob))
}

fn is_there(blobs: &Path, file: &Remote) -> bool {
    blobs.join(&file.blob).metadata().is_ok_and(|m| m.len() == file.size)
}

pub(super) fn cannot(what: &str, path: &Path, e: std::io::Error) -> Error {
    let text = format!("[hub] cannot {what} {}: {e}", path.display());
    match e.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Error::memory(text),
        _ => Error::io(text),
    }
}
