//! A directory in the making: it has its name once it is whole, and what an interrupted run had finished of it is found again.
//!
//! It is made beside its target as `NAME.partial-ID`, where ID is a digest of all that the run depends on. Beside its weights a list
//! names the files that are finished, each with the digest of its bytes; the next run with the same ID takes those that still
//! have them. `.NAME.lock` keeps a second process out.

use crate::hub::digest::Digest;
use lapis::io::atomic::{AtomicFile, Lock};
use lapis::{Error, Result};
use serde_json::{Map, Value, json};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// The list of what is finished; gone when all is.
const LIST: &str = "resume.json";

/// Who hears of a directory that is written.
pub trait Listener {
    /// A line about a stage.
    fn say(&mut self, text: &str);

    /// So many bytes of weights are written, of so many.
    fn at(&mut self, _done: u64, _of: u64) {}

    /// Whether to stop at the next good place.
    fn stop(&mut self) -> bool {
        false
    }
}

impl<F: FnMut(&str)> Listener for F {
    fn say(&mut self, text: &str) {
        self(text);
    }
}

/// A directory in the making.
pub(crate) struct Partial {
    /// Where it is made.
    pub(crate) dir: PathBuf,
    to: PathBuf,
    run: Value,
    /// Digests of finished files, by name.
    done: Map<String, Value>,
    /// Whether it stays when the run ends before it is whole.
    keep: bool,
    _lock: Lock,
}

/// That a directory may be written: it does not exist.
///
/// # Errors
/// One that does.
pub fn vacant(to: &Path) -> Result<()> {
    if to.exists() {
        let to = to.display();
        return Err(Error::io(format!("[convert] {to} exists; remove it or name another directory with --mlx-path")));
    }
    Ok(())
}

/// That a directory can be made: to be asked before work of hours.
///
/// # Errors
/// A place that cannot be written, or in which another process makes that directory.
pub fn writable(to: &Path) -> Result<()> {
    lock(to).map(drop)
}

/// Files that a run reads, told apart from others by size and time of change: those of a model or an adapter in a directory, or one
/// file with the others that it may be a part of.
pub(crate) fn files(from: &Path) -> Value {
    let one = from.is_file();
    let mut all = Map::new();
    // What cannot be read here is told by whoever needs it.
    for entry in std::fs::read_dir(if one { parent(from) } else { from }).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let counts = match one {
            true => path.file_name() == from.file_name() || name.contains("-of-") && name.ends_with(".gguf"),
            false => [".safetensors", ".json", ".npz"].iter().any(|end| name.ends_with(end)),
        };
        if let Ok(about) = std::fs::metadata(&path)
            && counts
        {
            let time = about.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
            all.insert(name, json!([about.len(), time.map(|t| t.as_nanos().to_string())]));
        }
    }
    // The order of a directory means nothing.
    all.sort_keys();
    Value::Object(all)
}

impl Partial {
    /// Begins to make what will become `to`. `run` is all that its weights depend on; what is there of another run goes.
    ///
    /// # Errors
    /// As [`writable`].
    pub(crate) fn begin(to: &Path, run: &Value, listener: &mut dyn Listener) -> Result<Partial> {
        let lock = lock(to)?;
        let run = json!({"lapis": env!("CARGO_PKG_VERSION"), "run": run});
        let mut id = Digest::sha256();
        id.update(run.to_string().as_bytes());
        let mut id = id.finish().unwrap_or_default();
        id.truncate(16);
        let begin = format!("{}.partial-", name(to));
        let dir = to.with_file_name(format!("{begin}{id}"));
        for entry in std::fs::read_dir(parent(to)).into_iter().flatten().flatten() {
            let (path, file) = (entry.path(), entry.file_name());
            let other = file.to_str().and_then(|f| f.strip_prefix(&begin)).unwrap_or_default();
            let made_here = other.len() == 16 && other.bytes().all(|b| b.is_ascii_hexdigit());
            if !made_here || other == id {
                continue;
            }
            if !list(&path, None).is_empty() {
                listener.say(&format!(
                    "[INFO] {} is of an interrupted run with other settings or another source: it goes, and all is made anew",
                    path.display()
                ));
            }
            drop(std::fs::remove_dir_all(path));
        }
        std::fs::create_dir_all(&dir).map_err(|e| fail(&dir, e))?;
        let done = list(&dir, Some(&run));
        if !done.is_empty() {
            let (n, dir) = (done.len(), dir.display());
            let files = if n == 1 { "file" } else { "files" };
            listener.say(&format!("[INFO] Going on with an interrupted run: {n} {files} of weights in {dir}"));
        }
        let partial = Partial { to: to.to_path_buf(), run, keep: !done.is_empty(), done, dir, _lock: lock };
        partial.note()?;
        Ok(partial)
    }

    /// Whether `file` is finished and has the bytes that it had then; `go` says whether to read on.
    pub(crate) fn has(&mut self, file: &str, go: impl FnMut(usize) -> bool) -> Result<bool> {
        let Some(known) = self.done.get(file).and_then(Value::as_str) else { return Ok(false) };
        let found = digest(&self.dir.join(file), go);
        if found.as_ref().is_ok_and(|found| found.as_deref() == Some(known)) {
            return Ok(true);
        }
        if !matches!(found, Ok(None)) {
            self.done.remove(file);
            self.note()?;
        }
        Ok(false)
    }

    /// How many files are finished.
    pub(crate) fn finished(&self) -> usize {
        self.done.len()
    }

    /// Whether `file` is said to be finished.
    pub(crate) fn lists(&self, file: &str) -> bool {
        self.done.contains_key(file)
    }

    /// From now on it goes when the run fails; a run that failed before kept what it had found.
    pub(crate) fn work(&mut self) {
        self.keep = false;
    }

    /// `file` is finished.
    pub(crate) fn finish(&mut self, file: &str) -> Result<()> {
        let path = self.dir.join(file);
        let digest = digest(&path, |_| true).map_err(|e| fail(&path, e))?;
        self.done.insert(file.to_string(), json!(digest));
        self.note()
    }

    /// The run ends here, and another may go on if there is anything to go on with.
    pub(crate) fn leave(mut self) {
        self.keep = !self.done.is_empty();
    }

    /// All is there: it gets its name.
    pub(crate) fn commit(mut self) -> Result<()> {
        std::fs::remove_file(self.dir.join(LIST)).map_err(|e| fail(&self.dir, e))?;
        std::fs::rename(&self.dir, &self.to).map_err(|e| fail(&self.to, e))?;
        self.keep = true;
        // Where a directory cannot be synced, the files are safe all the same.
        #[cfg(unix)]
        drop(File::open(parent(&self.to)).and_then(|dir| dir.sync_all()));
        Ok(())
    }

    fn note(&self) -> Result<()> {
        let text = format!("{:#}\n", json!({"of": self.run, "finished": self.done}));
        write(&self.dir.join(LIST), text.as_bytes())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.keep {
            // Nothing more can be done about a directory that does not go.
            drop(std::fs::remove_dir_all(&self.dir));
        }
    }
}

/// What the list in `dir` names, of `run` or of any run.
fn list(dir: &Path, run: Option<&Value>) -> Map<String, Value> {
    let text = std::fs::read(dir.join(LIST)).unwrap_or_default();
    match serde_json::from_slice(&text) {
        Ok(Value::Object(mut list)) if run.is_none_or(|run| list.get("of") == Some(run)) => {
            match list.remove("finished") {
                Some(Value::Object(done)) => done,
                _ => Map::new(),
            }
        }
        _ => Map::new(),
    }
}

/// The digest of a file; nothing where `go` ended the reading.
fn digest(path: &Path, go: impl FnMut(usize) -> bool) -> std::io::Result<Option<String>> {
    let mut digest = Digest::sha256();
    Ok(if digest.read(File::open(path)?, go)? { digest.finish() } else { None })
}

/// The lock of those who make `to`, in a place that is made for it.
fn lock(to: &Path) -> Result<Lock> {
    let place = parent(to);
    std::fs::create_dir_all(place).map_err(|e| fail(to, e))?;
    let (name, shown) = (name(to), to.display());
    Lock::take(to.with_file_name(format!(".{name}.lock")), "this directory")
        .map_err(|why| Error::io(format!("[convert] {shown}: {why}; name another directory")))
}

fn name(to: &Path) -> &str {
    to.file_name().and_then(|n| n.to_str()).unwrap_or("model")
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

pub(crate) fn fail(path: &Path, e: std::io::Error) -> Error {
    let text = format!("[convert] {}: {e}", path.display());
    if e.kind() == std::io::ErrorKind::StorageFull { Error::memory(text) } else { Error::io(text) }
}

/// A file that is there wholly or not at all.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path, "convert", bytes.len() as u64)?;
    file.write(bytes)?;
    file.commit()
}
