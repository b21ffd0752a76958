//! Uploads: a directory as one commit to a repository.
//!
//! The hub says of each file whether it is small (sent inside the commit) or large (sent to the store first, by its
//! SHA-256, in parts where the store wants them); what the store has already is not sent again. The commit is made when
//! everything is there: a repository holds all of it or nothing.

use super::digest::{Digest, base64};
use super::fetch::cannot;
use super::http::{Answer, Ask, Fault, TRIES, escape, header};
use super::{Hub, Name, Watch};
use lapis::{Error, Result};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use ureq::SendBody;

/// Files that are asked about at a time.
const CHUNK: usize = 256;

/// A file on its way.
pub(super) struct Local {
    pub(super) path: PathBuf,
    /// Its name in the repository.
    pub(super) name: String,
    pub(super) size: u64,
    /// Its SHA-256, for large files.
    oid: Option<String>,
}

impl Hub {
    /// That an upload can be tried: to be asked before work of hours.
    ///
    /// # Errors
    /// No network, no token, a name without its owner.
    pub fn may_upload(&self, name: &Name) -> Result<()> {
        if self.offline {
            return Err(Error::network(format!(
                "[hub] {name}: an upload needs a network (--offline or HF_HUB_OFFLINE)"
            )));
        }
        if self.client.token.is_none() {
            return Err(Error::network(
                "[hub] an upload needs a token\n  fix: set HF_TOKEN to one that may write (huggingface.co/settings/tokens)",
            ));
        }
        if !name.repo.contains('/') {
            return Err(Error::value(format!("[hub] {name}: an upload needs owner/name")));
        }
        Ok(())
    }

    /// Makes the files of a directory a commit of a repository, which is made where it does not exist. Hidden files
    /// stay. Gives the address of the commit.
    ///
    /// # Errors
    /// As [`Hub::may_upload`]; a hub that cannot be reached or refuses; a file that cannot be read.
    pub fn upload(&self, dir: &Path, name: &Name, summary: &str, watch: Watch<'_>) -> Result<String> {
        self.may_upload(name)?;
        let mut files = Vec::new();
        gather(dir, "", &mut files)?;
        if files.is_empty() {
            return Err(Error::value(format!("[hub] {} holds no files", dir.display())));
        }
        let explain = |f: Fault| self.client.explain(name, &f);
        self.create(name).map_err(explain)?;
        let mut small = Vec::new();
        let mut large = Vec::new();
        for chunk in files.chunks_mut(CHUNK) {
            for (file, mode) in self.modes(name, chunk)? {
                match mode {
                    Mode::Ignored => {}
                    Mode::Small => small.push(file),
                    Mode::Large => large.push(file),
                }
            }
        }
        let total: u64 = large.iter().map(|f| f.size).sum();
        let mut done = 0;
        for chunk in large.chunks_mut(CHUNK) {
            for file in chunk.iter_mut() {
                file.oid = Some(sha256(file, &|| watch(done, total))?);
            }
            let actions = self.batch(name, chunk).map_err(explain)?;
            for (file, action) in chunk.iter().zip(actions) {
                self.send(name, file, &action, &|n| watch(done + n, total))?;
                done += file.size;
            }
        }
        let mut lines = vec![json!({"key": "header", "value": {"summary": summary, "description": ""}})];
        for file in &small {
            let bytes = fs::read(&file.path).map_err(|e| cannot("read", &file.path, e))?;
            let value = json!({"content": base64(&bytes), "path": file.name, "encoding": "base64"});
            lines.push(json!({"key": "file", "value": value}));
        }
        for file in &large {
            let value = json!({"path": file.name, "algo": "sha256", "oid": file.oid, "size": file.size});
            lines.push(json!({"key": "lfsFile", "value": value}));
        }
        let text: String = lines.iter().map(|l| format!("{l}\n")).collect();
        let path = format!("/api/models/{}/commit/{}", name.repo, escape(&name.revision));
        let made = self.client.text_json(&path, Some((&text, "application/x-ndjson"))).map_err(explain)?;
        let address = made.get("commitUrl").and_then(Value::as_str).map(str::to_string);
        Ok(address.unwrap_or_else(|| format!("{}/{}", self.client.endpoint, name.repo)))
    }

    /// Makes the repository where it does not exist.
    fn create(&self, name: &Name) -> Answer<()> {
        let (owner, short) = name.repo.split_once('/').unwrap_or(("", &name.repo));
        let body = json!({"name": short, "organization": owner, "type": "model"});
        match self.client.json("/api/repos/create", Some(&body)) {
            // 409: it exists. 403: others may make it, and this one may write to it.
            Err(Fault::Status(status, ..)) if matches!(status.as_u16(), 409 | 403) => Ok(()),
            other => other.map(drop),
        }
    }

    /// What the hub wants to be done with each file.
    fn modes(&self, name: &Name, files: &mut [Local]) -> Result<Vec<(Local, Mode)>> {
        let mut asked = Vec::new();
        for file in files.iter() {
            let mut sample = Vec::new();
            let opened = File::open(&file.path).map_err(|e| cannot("read", &file.path, e))?;
            opened.take(512).read_to_end(&mut sample).map_err(|e| cannot("read", &file.path, e))?;
            asked.push(json!({"path": file.name, "sample": base64(&sample), "size": file.size}));
        }
        let path = format!("/api/models/{}/preupload/{}", name.repo, escape(&name.revision));
        let answer = self.client.json(&path, Some(&json!({"files": asked})));
        let answer = answer.map_err(|f| self.client.explain(name, &f))?;
        let said = answer.get("files").and_then(Value::as_array).cloned().unwrap_or_default();
        let mode = |file: &Local| {
            let one = said.iter().find(|f| f.get("path").and_then(Value::as_str) == Some(&file.name))?;
            if one.get("shouldIgnore").and_then(Value::as_bool) == Some(true) {
                return Some(Mode::Ignored);
            }
            match one.get("uploadMode").and_then(Value::as_str)? {
                "regular" => Some(Mode::Small),
                // The store takes nothing that is empty.
                "lfs" | "xet" if file.size == 0 => Some(Mode::Small),
                "lfs" | "xet" => Some(Mode::Large),
                _ => None,
            }
        };
        files
            .iter_mut()
            .map(|file| {
                let mode = mode(file).ok_or_else(|| strange(name, "how to send a file"))?;
                let file = Local { path: file.path.clone(), name: file.name.clone(), size: file.size, oid: None };
                Ok((file, mode))
            })
            .collect()
    }

    /// Where each large file is to be sent: the store's answers, in order.
    fn batch(&self, name: &Name, files: &[Local]) -> Answer<Vec<Value>> {
        let objects: Vec<Value> = files.iter().map(|f| json!({"oid": f.oid, "size": f.size})).collect();
        let body = json!({
            "operation": "upload", "transfers": ["basic", "multipart"], "objects": objects, "hash_algo": "sha256",
            "ref": {"name": name.revision},
        });
        let url = format!("{}/{}.git/info/lfs/objects/batch", self.client.endpoint, name.repo);
        let answer = self.lfs(&url, &body)?;
        let said = answer.get("objects").and_then(Value::as_array).cloned().unwrap_or_default();
        let of = |file: &Local| {
            let found = said.iter().find(|o| o.get("oid").and_then(Value::as_str) == file.oid.as_deref());
            let found = found.ok_or_else(|| Fault::Transport(format!("{url} says nothing of {}", file.name)))?;
            match found.get("error").and_then(|e| e.get("message")).and_then(Value::as_str) {
                Some(message) => Err(Fault::Transport(format!("{}: {message}", file.name))),
                None => Ok(found.clone()),
            }
        };
        files.iter().map(of).collect()
    }

    /// JSON in the dialect of the large-file store.
    fn lfs(&self, url: &str, body: &Value) -> Answer<Value> {
        let kind = "application/vnd.git-lfs+json".to_string();
        let headers = [("accept", kind.clone()), ("content-type", kind)];
        let ask = Ask { method: "POST", url, headers: &headers, leave: true };
        let mut response = self.client.send(ask, Some(body.to_string().as_bytes()))?;
        let bytes = response.body_mut().with_config().limit(64 << 20).read_to_vec()?;
        Ok(serde_json::from_slice(&bytes).unwrap_or_default())
    }

    /// Sends one large file as the store says; nothing where it has it.
    fn send(&self, name: &Name, file: &Local, object: &Value, go: &dyn Fn(u64) -> bool) -> Result<()> {
        let Some(actions) = object.get("actions").filter(|a| a.is_object()) else { return Ok(()) };
        let explain = |f: Fault| self.client.explain(name, &f);
        let address = |action: &str| actions.get(action).and_then(|a| a.get("href")).and_then(Value::as_str);
        let Some(target) = address("upload") else { return Ok(()) };
        let header = actions["upload"].get("header").cloned().unwrap_or_default();
        let part = header.get("chunk_size").and_then(|s| s.as_u64().or_else(|| s.as_str()?.parse().ok()));
        match part {
            None => {
                self.put(target, file, 0, file.size, go)?.map_err(explain)?;
            }
            Some(0) => return Err(strange(name, "the size of parts")),
            Some(part) => {
                let mut urls: Vec<(u64, &str)> = header
                    .as_object()
                    .into_iter()
                    .flatten()
                    .filter_map(|(number, url)| Some((number.parse().ok()?, url.as_str()?)))
                    .collect();
                urls.sort();
                if urls.len() as u64 != file.size.div_ceil(part) {
                    return Err(strange(name, "where to send each part"));
                }
                let mut parts = Vec::new();
                for (i, (_, url)) in urls.iter().enumerate() {
                    let from = i as u64 * part;
                    let etag = self.put(url, file, from, part.min(file.size - from), go)?.map_err(explain)?;
                    parts.push(json!({"partNumber": i + 1, "etag": etag}));
                }
                self.lfs(target, &json!({"oid": file.oid, "parts": parts})).map_err(explain)?;
            }
        }
        if let Some(verify) = address("verify") {
            self.lfs(verify, &json!({"oid": file.oid, "size": file.size})).map_err(explain)?;
        }
        Ok(())
    }

    /// Sends a part of a file; gives the ETag it got. The outer error is of this machine, the inner one of the hub.
    fn put(&self, url: &str, file: &Local, from: u64, size: u64, go: &dyn Fn(u64) -> bool) -> Result<Answer<String>> {
        let mut tries = 1;
        loop {
            let mut open = File::open(&file.path).map_err(|e| cannot("read", &file.path, e))?;
            open.seek(SeekFrom::Start(from)).map_err(|e| cannot("read", &file.path, e))?;
            let mut body = Watched { from: open.take(size), at: from, go };
            let headers = [("content-length", size.to_string())];
            let ask = Ask { method: "PUT", url, headers: &headers, leave: true };
            match self.client.once(ask, Some(SendBody::from_reader(&mut body))) {
                Ok(response) => return Ok(Ok(header(&response, "etag").unwrap_or_default())),
                Err(_) if !go(from) => return Err(super::cache::stopped()),
                Err(fault) if fault.passes() && tries < TRIES => self.client.wait(&fault, tries),
                Err(fault) => return Ok(Err(fault)),
            }
            tries += 1;
        }
    }
}

/// What the hub wants done with a file.
enum Mode {
    Ignored,
    Small,
    Large,
}

/// A reader that says how far it is, and ends with an error when it is told to.
struct Watched<'a> {
    from: std::io::Take<File>,
    at: u64,
    go: &'a dyn Fn(u64) -> bool,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.from.read(buffer)?;
        self.at += n as u64;
        if (self.go)(self.at) { Ok(n) } else { Err(std::io::Error::other("stopped")) }
    }
}

fn strange(name: &Name, what: &str) -> Error {
    Error::network(format!("[hub] {name}: the hub does not say {what}: is it a hub?"))
}

/// The files of a directory with their names in a repository, in order.
pub(super) fn gather(dir: &Path, prefix: &str, files: &mut Vec<Local>) -> Result<()> {
    let mut entries: Vec<_> = fs::read_dir(dir).map_err(|e| cannot("read", dir, e))?.flatten().collect();
    entries.sort_by_key(|e| e.file_name());
    for entry in entries {
        let (path, name) = (entry.path(), entry.file_name());
        let Some(name) = name.to_str().filter(|n| !n.starts_with('.')) else { continue };
        let name = format!("{prefix}{name}");
        let metadata = fs::metadata(&path).map_err(|e| cannot("read", &path, e))?;
        if metadata.is_dir() {
            gather(&path, &format!("{name}/"), files)?;
        } else {
            files.push(Local { path, name, size: metadata.len(), oid: None });
        }
    }
    Ok(())
}

fn sha256(file: &Local, go: &dyn Fn() -> bool) -> Result<String> {
    let mut digest = Digest::sha256();
    let open = File::open(&file.path).map_err(|e| cannot("read", &file.path, e))?;
    if !digest.read(open, |_| go()).map_err(|e| cannot("read", &file.path, e))? {
        return Err(super::cache::stopped());
    }
    Ok(digest.finish().unwrap_or_default())
}
