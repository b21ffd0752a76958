//! A folder of files, a folder inside it for each model: how files come, go, and make room. Knows nothing of what is in
//! them, and nothing outside of names like its own is ever touched.

use lapis::io::atomic::{free_bytes, human};
use std::collections::hash_map::RandomState;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, Hasher};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// What has happened since the start.
#[derive(Debug, Default)]
pub struct DiskCounts {
    /// Prompts of which a file told more than memory knew.
    pub hits: AtomicU64,
    /// Prompts of which none did.
    pub misses: AtomicU64,
    /// Tokens that were read from files.
    pub tokens: AtomicU64,
    /// Files that were written.
    pub written: AtomicU64,
    /// Files that were let go for room.
    pub evicted: AtomicU64,
    /// Files that were damaged, or of another kind than their name says.
    pub damaged: AtomicU64,
    /// Beginnings that were not written because too many waited, or the disk was full or failed.
    pub dropped: AtomicU64,
}

/// Files and bytes of a folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The folder.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) dir: PathBuf,
    pub(super) limit: u64,
    pub(super) counts: DiskCounts,
    usage: Mutex<(DiskUsage, Option<Instant>)>,
    trouble: Mutex<Option<String>>,
    /// Nothing is written before.
    rest: Mutex<Option<Instant>>,
}

struct Seen {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
}

/// Bytes for remembered beginnings at most, where nobody says.
const MOST: u64 = 32 << 30;
/// Bytes that stay free on the disk.
const SPARE: u64 = 64 << 20;
/// How long nothing is written after a fault.
const REST: Duration = Duration::from_secs(30);
/// How long the sum of what all processes wrote is believed.
const BELIEVED: Duration = Duration::from_secs(60);
/// How old a half-written file must be to go where the file system has no locks.
const OLD: Duration = Duration::from_secs(3600);

pub(super) fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes a folder that only its owner enters.
fn make(dir: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir)
}

fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether a name is that of a model's folder.
fn is_folder(name: &str) -> bool {
    name.len() == 32 && is_hex(name)
}

/// Whether a name is that of a file.
pub(super) fn is_file(name: &str) -> bool {
    let parts = name.strip_suffix(".kv").and_then(|n| n.split_once('-'));
    parts.is_some_and(|(chain, from)| chain.len() == 32 && is_hex(chain) && is_hex(from))
}

/// Whether a name is that of a file in the making.
fn is_partial(name: &str) -> bool {
    name.strip_prefix(".new-").is_some_and(|n| n.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-'))
}

/// A name that no other process has, not even one of the same number in another container.
fn partial() -> String {
    // Keys of hash maps are random.
    let random = || RandomState::new().build_hasher().finish();
    format!(".new-{:x}-{:016x}", std::process::id(), random())
}

fn names(dir: &Path) -> impl Iterator<Item = (String, PathBuf)> {
    let all = std::fs::read_dir(dir).into_iter().flatten().flatten();
    all.filter_map(|e| Some((e.file_name().into_string().ok()?, e.path())))
}

/// Folders of models.
fn folders(dir: &Path) -> impl Iterator<Item = PathBuf> {
    names(dir).filter(|(name, path)| is_folder(name) && path.is_dir()).map(|(_, path)| path)
}

fn seen(dir: &Path) -> Vec<Seen> {
    let files = folders(dir).flat_map(|f| names(&f).filter(|(name, _)| is_file(name)).collect::<Vec<_>>());
    let look = |(_, path): (String, PathBuf)| {
        let about = path.metadata().ok()?;
        Some(Seen { path, bytes: about.len(), used: about.modified().ok()? })
    };
    files.filter_map(look).collect()
}

fn sum(all: &[Seen]) -> DiskUsage {
    DiskUsage { files: all.len() as u64, bytes: all.iter().map(|s| s.bytes).sum() }
}

/// The folder of a user: `lapis/prefixes` in `XDG_CACHE_HOME` or `~/.cache`.
pub fn default_dir() -> Option<PathBuf> {
    let path = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let cache = path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache")))?;
    Some(cache.join("lapis").join("prefixes"))
}

/// A tenth of what is free where `dir` is, or will be, and of what it takes already; 32 GiB at most.
pub fn default_limit(dir: &Path) -> u64 {
    let there = dir.ancestors().find(|d| d.is_dir()).unwrap_or(Path::new("."));
    let free = free_bytes(there).map_or(MOST, |free| (free + usage(dir).bytes) / 10);
    free.min(MOST)
}

/// Whether `dir` is known to be, or to come to lie, on a file system of another machine.
pub fn is_remote(dir: &Path) -> bool {
    let there = dir.ancestors().find_map(|d| d.canonicalize().ok()).unwrap_or_default();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mounts = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        let place = PathBuf::from(words.next()?.replace("\\040", " "));
        let kind = words.next()?;
        there.starts_with(&place).then(|| (place.components().count(), kind))
    });
    let kind = mounts.max_by_key(|m| m.0).map_or("", |m| m.1);
    let known = ["nfs", "cifs", "smb", "9p", "ceph", "lustre", "glusterfs", "afs", "fuse.sshfs", "fuse.rclone"];
    known.iter().any(|k| kind.starts_with(k))
}

/// Files and bytes of remembered beginnings in a folder.
pub fn usage(dir: &Path) -> DiskUsage {
    sum(&seen(dir))
}

/// Removes all remembered beginnings from a folder, and says what they were; other files stay.
pub fn clear(dir: &Path) -> DiskUsage {
    let mut gone = DiskUsage::default();
    for each in seen(dir) {
        if std::fs::remove_file(&each.path).is_ok() {
            gone = DiskUsage { files: gone.files + 1, bytes: gone.bytes + each.bytes };
        }
    }
    sweep(dir);
    // Those that are not empty stay.
    folders(dir).for_each(|f| drop(std::fs::remove_dir(f)));
    gone
}

/// Removes what killed processes left half written: files that nobody holds a lock on.
pub(super) fn sweep(dir: &Path) {
    for folder in folders(dir).chain([dir.to_path_buf()]) {
        for (_, path) in names(&folder).filter(|(name, _)| is_partial(name)) {
            let Ok(file) = File::open(&path) else { continue };
            let old = || file.metadata().and_then(|m| m.modified()).is_ok_and(|t| t.elapsed().is_ok_and(|t| t > OLD));
            let dead = match file.try_lock() {
                Ok(()) => true,
                Err(TryLockError::WouldBlock) => false,
                Err(TryLockError::Error(_)) => old(),
            };
            if dead {
                drop(std::fs::remove_file(path));
            }
        }
    }
}

impl Store {
    /// Opens a folder, and makes it if it is not there.
    pub(super) fn open(dir: &Path, limit: u64) -> io::Result<Store> {
        make(dir)?;
        // What cannot be written is better known now.
        let probe = dir.join(partial());
        File::create_new(&probe)?;
        drop(std::fs::remove_file(probe));
        Ok(Store {
            dir: dir.to_path_buf(),
            limit,
            counts: DiskCounts::default(),
            usage: Mutex::default(),
            trouble: Mutex::default(),
            rest: Mutex::default(),
        })
    }

    /// Files and bytes of all models, as far as is known.
    pub(super) fn usage(&self) -> DiskUsage {
        lock(&self.usage).0
    }

    /// What is wrong with the disk, once.
    pub(super) fn trouble(&self) -> Option<String> {
        lock(&self.trouble).take()
    }

    fn fail(&self, what: String) {
        self.counts.dropped.fetch_add(1, Relaxed);
        *lock(&self.rest) = Some(Instant::now() + REST);
        *lock(&self.trouble) = Some(format!("prompts are not kept on disk for a while: {what}"));
    }

    /// Writes a file of about `size` bytes: under another name first, so that it is there as a whole or not at all.
    /// False where that could not be done.
    pub(super) fn write(
        &self,
        folder: &Path,
        name: &str,
        size: u64,
        content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> bool {
        if lock(&self.rest).is_some_and(|until| Instant::now() < until) || size > self.limit {
            self.counts.dropped.fetch_add(1, Relaxed);
            return false;
        }
        self.make_room(size);
        if let Some(free) = free_bytes(&self.dir)
            && free < size + SPARE
        {
            self.fail(format!("{} are free, {} would be written", human(free), human(size)));
            return false;
        }
        match self.put(folder, name, content) {
            Ok(bytes) => {
                self.counts.written.fetch_add(1, Relaxed);
                let usage = &mut lock(&self.usage).0;
                *usage = DiskUsage { files: usage.files + 1, bytes: usage.bytes + bytes };
                true
            }
            Err(e) => {
                self.fail(format!("{}: {e}", folder.display()));
                false
            }
        }
    }

    fn put(
        &self,
        folder: &Path,
        name: &str,
        content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<u64> {
        make(folder)?;
        let partial = folder.join(partial());
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(&partial)?;
        let done = (|| {
            // Whoever sweeps leaves it alone.
            if matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
                return Err(io::Error::other("another process holds the file that is being written"));
            }
            let mut out = BufWriter::with_capacity(1 << 18, &file);
            content(&mut out)?;
            out.flush()?;
            drop(out);
            file.sync_all()?;
            std::fs::rename(&partial, folder.join(name))?;
            Ok(file.metadata()?.len())
        })();
        if done.is_err() {
            drop(std::fs::remove_file(&partial));
        }
        done
    }

    /// Adds up what all processes have written, if that is not known, and lets go what was not used for longest until
    /// there is room.
    pub(super) fn make_room(&self, size: u64) {
        {
            let (usage, when) = &*lock(&self.usage);
            if when.is_some_and(|t| t.elapsed() < BELIEVED) && usage.bytes + size <= self.limit {
                return;
            }
        }
        let mut all = seen(&self.dir);
        let mut usage = sum(&all);
        if usage.bytes + size > self.limit {
            all.sort_by_key(|s| s.used);
            for each in all {
                // A little more than is needed, so that this is not done for every file.
                if usage.bytes + size <= self.limit / 16 * 15 || usage.files == 0 {
                    break;
                }
                if std::fs::remove_file(&each.path).is_ok() {
                    self.counts.evicted.fetch_add(1, Relaxed);
                }
                usage = DiskUsage { files: usage.files - 1, bytes: usage.bytes - each.bytes };
            }
        }
        *lock(&self.usage) = (usage, Some(Instant::now()));
    }

    /// A file is gone, or goes.
    pub(super) fn remove(&self, folder: &Path, name: &str, bytes: u64) {
        if std::fs::remove_file(folder.join(name)).is_ok() {
            let usage = &mut lock(&self.usage).0;
            *usage = DiskUsage { files: usage.files.saturating_sub(1), bytes: usage.bytes.saturating_sub(bytes) };
        }
    }

    pub(super) fn clear(&self) -> DiskUsage {
        let gone = clear(&self.dir);
        *lock(&self.usage) = (usage(&self.dir), Some(Instant::now()));
        gone
    }
}

/// Notes that a file was of use.
pub(super) fn touch(path: &Path) {
    if let Ok(file) = File::open(path) {
        drop(file.set_modified(SystemTime::now()));
    }
}
