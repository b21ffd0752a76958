//! Files that appear complete or not at all.
//!
//! Bytes go to `.NAME.partial` beside the target, are synced, and take the target's name in one step; then the
//! directory is synced. Whoever opens the target sees the old file or the new one. A lock on `.NAME.lock` keeps a
//! second writer out and tells it who the first is; both side files are gone afterwards, and what a killed process
//! leaves behind is taken over by the next.

use crate::blocks::Blocks;
use lapis_core::error::{Error, Result};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// A file in the making. Dropped without [`AtomicFile::commit`], it leaves the old file as it was.
#[derive(Debug)]
pub struct AtomicFile {
    file: Option<Blocks<File>>,
    target: PathBuf,
    partial: PathBuf,
    lock: Option<(PathBuf, File)>,
    op: &'static str,
}

impl AtomicFile {
    /// Starts writing what will become `target`. `op` names the caller in errors; `needs` is the size to come, or 0
    /// when it is unknown.
    ///
    /// # Errors
    /// `Io` when the directory cannot be written, another process writes the same target, or the target is not a
    /// regular file; `Memory` when fewer than `needs` bytes are free.
    pub fn create(target: impl AsRef<Path>, op: &'static str, needs: u64) -> Result<AtomicFile> {
        let target = target.as_ref().to_path_buf();
        let fail = |what: &dyn std::fmt::Display| Error::io(format!("[{op}] {}: {what}", show(&target)));
        let name = target.file_name().ok_or_else(|| fail(&"not a file name"))?.to_os_string();
        if std::fs::metadata(&target).is_ok_and(|m| !m.is_file()) {
            return Err(fail(&"exists and is not a regular file"));
        }
        let beside = |suffix: &str| {
            let mut side = std::ffi::OsString::from(".");
            side.push(&name);
            side.push(suffix);
            target.with_file_name(side)
        };
        if let Some(free) = free_bytes(directory(&target))
            && free < needs
        {
            let place = show(directory(&target));
            let (needs, free) = (human(needs), human(free));
            return Err(Error::memory(format!("[{op}] {}: needs {needs}, {free} free on {place}", show(&target))));
        }
        let lock_path = beside(".lock");
        let lock = acquire(&lock_path, "this file").map_err(|e| fail(&e))?;
        let partial = beside(".partial");
        // From here on, dropping `this` removes what was made.
        let mut this = AtomicFile { file: None, target, partial, lock: Some((lock_path, lock)), op };
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&this.partial);
        this.file = Some(Blocks::new(file.map_err(|e| this.error(e))?, 0));
        Ok(this)
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    /// `Memory` when the disk is full; `Io`.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let file = self.file.as_mut().expect("open until committed");
        file.write_all(bytes).map_err(|e| self.error(e))
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// As [`AtomicFile::write`]; the old file is then untouched.
    pub fn commit(mut self) -> Result<()> {
        let mut file = self.file.take().expect("open until committed");
        file.flush().and_then(|()| file.get_ref().sync_all()).map_err(|e| self.error(e))?;
        drop(file);
        std::fs::rename(&self.partial, &self.target).map_err(|e| self.error(e))?;
        // A directory that cannot be opened or synced (some network file systems) is no fault of the file.
        #[cfg(unix)]
        if let Ok(dir) = File::open(directory(&self.target)) {
            let _ = dir.sync_all();
        }
        Ok(())
    }

    fn error(&self, e: std::io::Error) -> Error {
        let text = format!("[{}] {}: {e}", self.op, show(&self.target));
        match e.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Error::memory(text),
            _ => Error::io(text),
        }
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        self.file = None;
        let _ = std::fs::remove_file(&self.partial);
        // Removed while still locked: whoever waits for this very file finds that its name is gone.
        if let Some((path, _lock)) = self.lock.take() {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A lock that one process has at a time; its file is gone when it is dropped.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Takes the lock on the file at `path`; `what` is that which only one process is to write.
    ///
    /// # Errors
    /// Says which process is writing, or why the file cannot be made.
    pub fn take(path: impl AsRef<Path>, what: &str) -> std::result::Result<Lock, String> {
        let path = path.as_ref().to_path_buf();
        acquire(&path, what).map(|file| Lock { path, _file: file })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While it is still locked, as above.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Locks the file at `path` and leaves our process id in it.
fn acquire(path: &Path, what: &str) -> std::result::Result<File, String> {
    for _ in 0..100 {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = file.map_err(|e| format!("cannot make {}: {e}", show(path)))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = file.take(20).read_to_string(&mut pid);
                return Err(format!("process {} is writing {what}", pid.trim()));
            }
            // A file system without locks: go on without.
            Err(TryLockError::Error(_)) => return Ok(file),
        }
        if same_file(&file, path) {
            let _ = file.set_len(0);
            let _ = write!(file, "{}", std::process::id());
            return Ok(file);
        }
    }
    Err(format!("cannot lock {}", show(path)))
}

/// Whether `path` still names `file`; its owner may have removed the name before we got the lock.
#[cfg(unix)]
fn same_file(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn same_file(_: &File, path: &Path) -> bool {
    path.exists()
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn show(path: &Path) -> String {
    path.display().to_string().escape_debug().to_string()
}

/// A size for people: `4.6 GiB`.
pub fn human(bytes: u64) -> String {
    let (mut v, mut unit) = (bytes as f64, 0);
    while v >= 1024.0 && unit < 4 {
        v /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{v:.1} {}", ["", "KiB", "MiB", "GiB", "TiB"][unit]) }
}

/// Bytes that can be written in `dir`, where the system says.
#[cfg(unix)]
pub fn free_bytes(dir: &Path) -> Option<u64> {
    use std::os::unix::ffi::OsStrExt;
    let dir = std::ffi::CString::new(dir.as_os_str().as_bytes()).ok()?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `dir` ends in NUL and `stat` is large enough; it is read only when the call says it filled it.
    let stat = unsafe {
        if libc::statvfs(dir.as_ptr(), stat.as_mut_ptr()) != 0 {
            return None;
        }
        stat.assume_init()
    };
    #[allow(clippy::unnecessary_cast)] // the field types differ between systems
    (stat.f_bavail as u64).checked_mul(stat.f_frsize as u64)
}

/// Bytes that can be written in `dir`, where the system says.
#[cfg(not(unix))]
pub fn free_bytes(_: &Path) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapis_core::error::ErrorKind;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("lapis-io-atomic-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir(&dir).expect("a writable temporary directory");
        dir
    }

    fn files(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_old_file_stays_until_commit() {
        let dir = scratch("commit");
        let path = dir.join("a.bin");
        std::fs::write(&path, "old").unwrap();
        let mut f = AtomicFile::create(&path, "save", 3).unwrap();
        f.write(b"ne").unwrap();
        f.write(b"w").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        f.commit().unwrap();
        assert_eq!((std::fs::read(&path).unwrap(), files(&dir)), (b"new".to_vec(), vec!["a.bin".into()]));
        drop(AtomicFile::create(&path, "save", 0).unwrap());
        assert_eq!((std::fs::read(&path).unwrap(), files(&dir)), (b"new".to_vec(), vec!["a.bin".into()]));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_second_writer_is_told_who_the_first_is() {
        let dir = scratch("second");
        let first = AtomicFile::create(dir.join("a"), "save", 0).unwrap();
        let e = AtomicFile::create(dir.join("a"), "save", 0).unwrap_err();
        assert!(e.message().contains(&format!("process {} is writing", std::process::id())), "{e}");
        first.commit().unwrap();
        AtomicFile::create(dir.join("a"), "save", 0).unwrap().commit().unwrap();
        assert_eq!(files(&dir), ["a"]);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn one_process_has_a_lock() {
        let dir = scratch("lock");
        let first = Lock::take(dir.join(".lock"), "here").unwrap();
        let why = Lock::take(dir.join(".lock"), "here").unwrap_err();
        assert_eq!(why, format!("process {} is writing here", std::process::id()));
        drop(first);
        assert_eq!(files(&dir), [""; 0]);
        Lock::take(dir.join(".lock"), "here").unwrap();
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_a_killed_process_left_is_taken_over() {
        let dir = scratch("killed");
        std::fs::write(dir.join(".a.lock"), "12345").unwrap();
        std::fs::write(dir.join(".a.partial"), "half of it").unwrap();
        let mut f = AtomicFile::create(dir.join("a"), "save", 0).unwrap();
        f.write(b"x").unwrap();
        f.commit().unwrap();
        assert_eq!((std::fs::read(dir.join("a")).unwrap(), files(&dir)), (b"x".to_vec(), vec!["a".into()]));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn too_little_space_directories_and_devices_are_refused() {
        let dir = scratch("refuse");
        let e = AtomicFile::create(dir.join("a"), "save", u64::MAX).unwrap_err();
        assert!(cfg!(not(unix)) || e.message().contains("free on") && e.kind() == ErrorKind::Memory, "{e}");
        assert!(AtomicFile::create(&dir, "save", 0).unwrap_err().message().contains("not a regular file"));
        assert!(AtomicFile::create(dir.join("none/a"), "save", 0).is_err());
        assert_eq!(files(&dir), [""; 0]);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
