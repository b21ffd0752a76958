//! A small hub on this machine: lists, small and large files, digests, redirects, faults on demand, uploads.

use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

/// One file of a repository.
#[derive(Clone)]
pub(crate) struct File {
    pub(crate) bytes: Vec<u8>,
    pub(crate) large: bool,
}

/// What goes wrong with requests for one file.
#[derive(Clone, Copy)]
pub(crate) enum Fault {
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// Nothing more comes for a while after so many bytes of the body.
    Stall(usize),
    /// An answer of this status, with the hub's code for it.
    Status(u16, &'static str),
    /// The last byte is another one.
    Corrupt,
    /// The request for a range is answered with the whole file.
    Whole,
}

/// What the hub has and what was asked.
#[derive(Default)]
pub(crate) struct State {
    /// Files by repository and revision; a revision is a branch or a commit.
    pub(crate) repos: HashMap<String, BTreeMap<String, File>>,
    pub(crate) commits: HashMap<String, String>,
    /// Faults by path, one a request, in order.
    pub(crate) faults: HashMap<String, VecDeque<Fault>>,
    /// Who may read; nobody in particular when empty.
    pub(crate) token: String,
    /// The list has no digests: each file is asked for.
    pub(crate) bare_list: bool,
    /// Method and path of each request.
    pub(crate) log: Vec<String>,
    /// Ranges that were asked for.
    pub(crate) ranges: Vec<String>,
    /// Large objects that were sent, by digest.
    pub(crate) objects: HashMap<String, Vec<u8>>,
    /// Lines of the commits that were made.
    pub(crate) made: Vec<Value>,
    /// Large uploads come in parts of this many bytes.
    pub(crate) part: Option<usize>,
}

/// A hub that runs until its process ends.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) endpoint: String,
    store: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    pub(crate) fn start() -> Server {
        let (front, store) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let address = |l: &TcpListener| format!("http://{}", l.local_addr().unwrap());
        let server = Server { endpoint: address(&front), store: address(&store), state: Arc::default() };
        for listener in [front, store] {
            let server = server.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let server = server.clone();
                    std::thread::spawn(move || server.talk(stream));
                }
            });
        }
        server
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Adds a file; `revision` is a branch.
    pub(crate) fn put(&self, repo: &str, revision: &str, path: &str, bytes: &[u8], large: bool) {
        let key = format!("{repo}@{revision}");
        let mut state = self.state();
        state.repos.entry(key.clone()).or_default().insert(path.into(), File { bytes: bytes.into(), large });
        let all: Vec<u8> = state.repos[&key].iter().flat_map(|(k, f)| [k.as_bytes(), &f.bytes].concat()).collect();
        let commit = git(&[key.as_bytes(), &all].concat());
        state.commits.insert(key, commit);
    }

    pub(crate) fn commit(&self, repo: &str, revision: &str) -> String {
        self.state().commits[&format!("{repo}@{revision}")].clone()
    }

    pub(crate) fn fail(&self, path: &str, faults: &[Fault]) {
        self.state().faults.insert(path.into(), faults.iter().copied().collect());
    }

    /// How many requests there were since the last call.
    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.state().log)
    }

    fn talk(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        if reader.read_line(&mut line).is_err() || line.is_empty() {
            return;
        }
        let mut words = line.split_whitespace();
        let (method, target) = (words.next().unwrap().to_string(), words.next().unwrap().to_string());
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            match line.trim_end().split_once(':') {
                Some((name, value)) => headers.insert(name.to_lowercase(), value.trim().to_string()),
                None => break,
            };
        }
        let mut body = Vec::new();
        if let Some(length) = headers.get("content-length").and_then(|l| l.parse().ok()) {
            body.resize(length, 0);
            reader.read_exact(&mut body).unwrap();
        } else if headers.contains_key("transfer-encoding") {
            loop {
                let mut size = String::new();
                reader.read_line(&mut size).unwrap();
                let size = usize::from_str_radix(size.trim(), 16).unwrap();
                let at = body.len();
                body.resize(at + size + 2, 0);
                reader.read_exact(&mut body[at..]).unwrap();
                body.truncate(at + size);
                if size == 0 {
                    break;
                }
            }
        }
        self.state().log.push(format!("{method} {target}"));
        let mut reply = self.answer(&method, &target, &headers, &body);
        let length = reply.body.len();
        reply.headers.push(("Content-Length", reply.length.unwrap_or(length).to_string()));
        let mut head = format!("HTTP/1.1 {} x\r\nConnection: close\r\n", reply.status);
        for (name, value) in &reply.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let mut stream = stream;
        drop(stream.write_all(head.as_bytes()));
        drop(stream.write_all(b"\r\n"));
        if method != "HEAD" {
            drop(stream.write_all(&reply.body[..reply.cut.unwrap_or(length).min(length)]));
            if reply.stall {
                drop(stream.flush());
                std::thread::sleep(std::time::Duration::from_secs(3));
            }
        }
    }

    fn answer(&self, method: &str, target: &str, headers: &HashMap<String, String>, body: &[u8]) -> Reply {
        let path = target.split('?').next().unwrap().trim_start_matches('/');
        let parts: Vec<&str> = path.split('/').collect();
        let token = headers.get("authorization").map(|a| a.trim_start_matches("Bearer ").to_string());
        match parts.as_slice() {
            ["store", ..] if token.is_some() => Reply::error(400, "", "the token was sent to another host"),
            ["store", digest] => self.object(digest, headers),
            // Stores want to know how much comes.
            ["store-put", ..] if headers.contains_key("transfer-encoding") => Reply::error(411, "", "length"),
            ["store-put", digest, rest @ ..] => {
                let mut state = self.state();
                let whole = state.objects.entry(digest.to_string()).or_default();
                whole.extend_from_slice(body);
                let mut reply = Reply::ok(Vec::new());
                reply.headers.push(("ETag", format!("\"part{}\"", rest.first().unwrap_or(&""))));
                reply
            }
            ["api", "models"] => Reply::json(&json!([{"id": "owner/model"}])),
            ["api", "models", owner, name, "refs"] => {
                let state = self.state();
                let prefix = format!("{owner}/{name}@");
                let names = state.repos.keys().filter_map(|k| k.strip_prefix(&prefix)).map(|n| json!({"name": n}));
                Reply::json(&json!({"branches": names.collect::<Vec<_>>(), "tags": []}))
            }
            ["api", "models", owner, name, "revision", revision] => {
                self.list(&format!("{owner}/{name}"), revision, token)
            }
            [owner, name, "resolve", revision, file @ ..] => {
                self.file(method, &format!("{owner}/{name}"), revision, &file.join("/"), headers, token)
            }
            _ if method == "POST" => self.post(&parts, body, token),
            _ => Reply::error(404, "", "no such page"),
        }
    }

    /// The commit and files of a branch or commit.
    fn revision(&self, repo: &str, revision: &str) -> Result<(String, BTreeMap<String, File>), Reply> {
        let state = self.state();
        let revision = revision.replace("%2F", "/");
        if !state.repos.keys().any(|k| k.starts_with(&format!("{repo}@"))) {
            return Err(Reply::error(404, "RepoNotFound", "Repository not found"));
        }
        let key = format!("{repo}@{revision}");
        let found = state.commits.iter().find(|(k, c)| **k == key || **c == revision && k.starts_with(repo));
        let (key, commit) = found.ok_or_else(|| Reply::error(404, "RevisionNotFound", "Invalid rev id"))?;
        Ok((commit.clone(), state.repos[key].clone()))
    }

    fn list(&self, repo: &str, revision: &str, _: Option<String>) -> Reply {
        if let Some(fault) = self.fault("list") {
            return Reply::fault(fault);
        }
        let (commit, files) = match self.revision(repo, revision) {
            Ok(found) => found,
            Err(reply) => return reply,
        };
        let bare = self.state().bare_list;
        let siblings = files.iter().map(|(path, file)| match (bare, file.large) {
            (true, _) => json!({"rfilename": path}),
            (_, false) => json!({"rfilename": path, "size": file.bytes.len(), "blobId": git_blob(&file.bytes)}),
            (_, true) => json!({
                "rfilename": path, "size": file.bytes.len(), "blobId": git(b"pointer"),
                "lfs": {"sha256": sha256(&file.bytes), "size": file.bytes.len(), "pointerSize": 134},
            }),
        });
        Reply::json(&json!({"id": repo, "sha": commit, "siblings": siblings.collect::<Vec<_>>()}))
    }

    fn fault(&self, path: &str) -> Option<Fault> {
        self.state().faults.get_mut(path).and_then(VecDeque::pop_front)
    }

    fn file(
        &self,
        method: &str,
        repo: &str,
        revision: &str,
        path: &str,
        headers: &HashMap<String, String>,
        token: Option<String>,
    ) -> Reply {
        let wanted = self.state().token.clone();
        if !wanted.is_empty() && token.as_deref() != Some(&wanted) {
            return Reply::error(401, "GatedRepo", "Access to model is restricted");
        }
        let (commit, files) = match self.revision(repo, revision) {
            Ok(found) => found,
            Err(reply) => return reply,
        };
        let Some(file) = files.get(path) else { return Reply::error(404, "EntryNotFound", "Entry not found") };
        if file.large {
            let digest = sha256(&file.bytes);
            let mut reply = Reply::error(302, "", "");
            reply.headers.push(("Location", format!("{}/store/{digest}?path={path}", self.store)));
            reply.headers.push(("X-Linked-Etag", format!("\"{digest}\"")));
            reply.headers.push(("X-Linked-Size", file.bytes.len().to_string()));
            reply.headers.push(("X-Repo-Commit", commit));
            self.state().objects.insert(digest, file.bytes.clone());
            // What goes wrong goes wrong in the store.
            let faults = self.state().faults.remove(path);
            if let Some(faults) = faults {
                self.state().faults.insert(sha256(&file.bytes), faults);
            }
            return reply;
        }
        let fault = if method == "GET" { self.fault(path) } else { None };
        let mut reply = self.bytes(&file.bytes, headers, fault);
        reply.headers.push(("ETag", format!("W/\"{}\"", git_blob(&file.bytes))));
        reply.headers.push(("X-Repo-Commit", commit));
        reply
    }

    fn object(&self, digest: &str, headers: &HashMap<String, String>) -> Reply {
        let bytes = self.state().objects.get(digest).cloned();
        let fault = self.fault(digest);
        match bytes {
            Some(bytes) => self.bytes(&bytes, headers, fault),
            None => Reply::error(404, "", "no such object"),
        }
    }

    fn bytes(&self, bytes: &[u8], headers: &HashMap<String, String>, fault: Option<Fault>) -> Reply {
        if let Some(Fault::Status(..)) = fault {
            return Reply::fault(fault.unwrap());
        }
        let range = headers.get("range").filter(|_| !matches!(fault, Some(Fault::Whole)));
        let from = range.and_then(|r| r.trim_start_matches("bytes=").trim_end_matches('-').parse::<usize>().ok());
        self.state().ranges.extend(range.cloned());
        let mut reply = match from {
            Some(from) if from >= bytes.len() => return Reply::error(416, "", "no such range"),
            Some(from) => {
                let mut reply = Reply::ok(bytes[from..].to_vec());
                reply.status = 206;
                let (last, all) = (bytes.len() - 1, bytes.len());
                reply.headers.push(("Content-Range", format!("bytes {from}-{last}/{all}")));
                reply
            }
            None => Reply::ok(bytes.to_vec()),
        };
        match fault {
            Some(Fault::Cut(n)) => reply.cut = Some(n),
            Some(Fault::Stall(n)) => (reply.cut, reply.stall) = (Some(n), true),
            Some(Fault::Corrupt) => *reply.body.last_mut().unwrap() ^= 1,
            _ => {}
        }
        reply
    }

    fn post(&self, parts: &[&str], body: &[u8], token: Option<String>) -> Reply {
        let wanted = self.state().token.clone();
        if let ["store-done", ..] = parts {
            // The store is asked without a token; the address itself is the permission.
        } else if token.as_deref() != Some(&wanted) {
            return Reply::error(401, "", "Invalid credentials");
        }
        let value: Value = serde_json::from_slice(body).unwrap_or_default();
        match parts {
            ["api", "repos", "create"] => Reply::json(&json!({"url": "x"})),
            ["api", "models", _, _, "preupload", _] => {
                let files = value["files"].as_array().unwrap().iter().map(|f| {
                    let path = f["path"].as_str().unwrap();
                    let mode = if path.ends_with(".safetensors") { "lfs" } else { "regular" };
                    json!({"path": path, "uploadMode": mode, "shouldIgnore": path.starts_with("ignored")})
                });
                Reply::json(&json!({"files": files.collect::<Vec<_>>()}))
            }
            [_, repo, "info", "lfs", "objects", "batch"] if repo.ends_with(".git") => {
                let state = self.state();
                let objects = value["objects"].as_array().unwrap().iter().map(|o| {
                    let (oid, size) = (o["oid"].as_str().unwrap(), o["size"].as_u64().unwrap() as usize);
                    if state.objects.contains_key(oid) {
                        return json!({"oid": oid, "size": size});
                    }
                    let mut header = json!({});
                    let mut href = format!("{}/store-put/{oid}", self.store);
                    if let Some(part) = state.part {
                        header["chunk_size"] = json!(part.to_string());
                        for i in 1..=size.div_ceil(part) {
                            header[format!("{i:05}")] = json!(format!("{}/store-put/{oid}/{i}", self.store));
                        }
                        href = format!("{}/store-done/{oid}", self.store);
                    }
                    let verify = json!({"href": format!("{}/verify", self.endpoint)});
                    json!({"oid": oid, "size": size, "actions": {"upload": {"href": href, "header": header}, "verify": verify}})
                });
                Reply::json(&json!({"transfer": "basic", "objects": objects.collect::<Vec<_>>()}))
            }
            ["store-done", oid] => {
                let parts = value["parts"].as_array().unwrap();
                let good = parts.iter().enumerate().all(|(i, p)| p["etag"] == format!("\"part{}\"", i + 1));
                let whole = self.state().objects.get(*oid).cloned().unwrap_or_default();
                if good && sha256(&whole) == *oid { Reply::json(&json!({})) } else { Reply::error(400, "", "parts") }
            }
            ["verify"] => {
                let (oid, size) = (value["oid"].as_str().unwrap(), value["size"].as_u64().unwrap());
                let object = self.state().objects.get(oid).cloned().unwrap_or_default();
                if object.len() as u64 == size && sha256(&object) == oid {
                    Reply::json(&json!({}))
                } else {
                    Reply::error(400, "", "digest")
                }
            }
            ["api", "models", owner, name, "commit", _] => {
                let text = String::from_utf8(body.to_vec()).unwrap();
                let lines = text.lines().map(|l| serde_json::from_str(l).unwrap());
                self.state().made = lines.collect();
                Reply::json(
                    &json!({"commitOid": git(body), "commitUrl": format!("{}/{owner}/{name}/commit/x", self.endpoint)}),
                )
            }
            _ => Reply::error(404, "", "no such page"),
        }
    }
}

struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    length: Option<usize>,
    cut: Option<usize>,
    stall: bool,
}

impl Reply {
    fn ok(body: Vec<u8>) -> Reply {
        Reply { status: 200, headers: Vec::new(), body, length: None, cut: None, stall: false }
    }

    fn json(value: &Value) -> Reply {
        Reply::ok(value.to_string().into_bytes())
    }

    fn error(status: u16, code: &str, said: &str) -> Reply {
        let mut reply = Reply::json(&json!({"error": said}));
        reply.status = status;
        if !code.is_empty() {
            reply.headers.push(("X-Error-Code", code.to_string()));
        }
        reply
    }

    fn fault(fault: Fault) -> Reply {
        match fault {
            Fault::Status(status, code) => Reply::error(status, code, "on demand"),
            _ => Reply::error(500, "", "no such fault here"),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref())
}

fn git(bytes: &[u8]) -> String {
    hex(ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, bytes).as_ref())
}

fn git_blob(bytes: &[u8]) -> String {
    git(&[format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat())
}
