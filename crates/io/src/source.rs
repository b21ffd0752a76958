//! The bytes of a file: mapped, or read piece by piece. Knows no format.
//!
//! A mapping needs no memory of its own and no time before first use, but the file must not be cut short while it
//! is in use: the operating system ends a process that touches pages beyond the end of a mapped file. The length is
//! checked when a file is opened and again whenever a tensor's bytes are handed out, so a file that has shrunk by
//! then is an error; one that shrinks during a computation on its bytes is not caught. Where files may be
//! overwritten in place (tools that rename, as lapis does, never do that), [`ReadMode::Copy`] reads with positional
//! reads instead and has no such window.

use crate::bytes::Bytes;
use crate::settle;
use lapis_core::error::{Error, Result};
use lapis_core::memory;
use memmap2::Mmap;
use std::borrow::Cow;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// How a file's bytes reach memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ReadMode {
    /// Mapped into memory, read-only and shared; arrays may point into the map.
    #[default]
    Map,
    /// Read on demand into memory of lapis's own.
    Copy,
}

/// A file, or bytes that stand for one.
#[derive(Debug)]
pub struct Source {
    name: String,
    len: u64,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Map { map: Mmap, file: File },
    File(File),
    Memory(Bytes),
}

impl Source {
    /// Opens the regular file at `path`.
    ///
    /// # Errors
    /// `Io` when it cannot be opened or mapped, or is not a regular file.
    pub fn open(path: impl AsRef<Path>, mode: ReadMode) -> Result<Arc<Source>> {
        let path = path.as_ref();
        let name = format!("{}", path.display()).escape_debug().to_string();
        let fail = |e: std::io::Error| Error::io(format!("[load] {name}: {e}"));
        // Looked at before it is opened: opening a pipe would wait for a writer.
        if !std::fs::metadata(path).map_err(fail)?.is_file() {
            return Err(Error::io(format!("[load] {name}: not a regular file")));
        }
        let file = File::open(path).map_err(fail)?;
        let len = file.metadata().map_err(fail)?.len();
        let kind = match mode {
            _ if len == 0 => Kind::Memory(Bytes::zeroed(0)?),
            ReadMode::Copy => Kind::File(file),
            ReadMode::Map => {
                usize::try_from(len).map_err(|_| Error::io(format!("[load] {name}: {len} bytes cannot be mapped")))?;
                // SAFETY: the map is read-only. Others may still write or cut the file: the module's documentation
                // says what that means, and `ReadMode::Copy` is there for it.
                let map = unsafe { Mmap::map(&file) }.map_err(fail)?;
                // Read in pieces of a large page where the file system can: a wish, so whatever comes of it is right.
                #[cfg(target_os = "linux")]
                drop(map.advise(memmap2::Advice::HugePage));
                let len = map.len() as u64;
                memory::mapped_changed(map.len() as isize);
                let source = Arc::new(Source { name, len, kind: Kind::Map { map, file } });
                settle::mapped(&source);
                return Ok(source);
            }
        };
        Ok(Arc::new(Source { name, len, kind }))
    }

    /// Bytes in memory, called `name` in errors.
    pub fn from_bytes(name: impl Into<String>, bytes: Bytes) -> Arc<Source> {
        // Held whole, as a map holds a file.
        memory::mapped_changed(bytes.len() as isize);
        Arc::new(Source { name: name.into(), len: bytes.len() as u64, kind: Kind::Memory(bytes) })
    }

    /// The path as given, printable.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Length in bytes.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// An error about this source: `[op] name: what`.
    pub fn error(&self, op: &str, what: impl std::fmt::Display) -> Error {
        Error::io(format!("[{op}] {}: {what}", self.name))
    }

    /// The bytes of `range`, in place where they lie in memory.
    ///
    /// # Errors
    /// `Io` when the range is beyond the file, when the file has become shorter, or when reading fails; `Memory`.
    pub fn bytes(&self, range: Range<u64>) -> Result<Cow<'_, [u8]>> {
        match self.in_place(range.clone())? {
            Some(bytes) => Ok(Cow::Borrowed(bytes)),
            None => Ok(Cow::Owned(self.read(range)?.to_vec())),
        }
    }

    /// A copy of the bytes of `range`.
    ///
    /// # Errors
    /// As [`Source::bytes`].
    pub fn read(&self, range: Range<u64>) -> Result<Bytes> {
        if let Some(bytes) = self.in_place(range.clone())? {
            return Bytes::copy(bytes);
        }
        let len = usize::try_from(range.end - range.start).map_err(|_| self.error("load", "too large to read"))?;
        let mut bytes = Bytes::zeroed(len)?;
        if let Kind::File(file) = &self.kind {
            read_exact_at(file, &mut bytes, range.start)
                .map_err(|e| self.error("load", format!("cannot read {len} bytes at {}: {e}", range.start)))?;
        }
        Ok(bytes)
    }

    /// The bytes of `range` where they already lie in memory; `None` when they have to be read.
    ///
    /// # Errors
    /// As [`Source::bytes`].
    pub fn in_place(&self, range: Range<u64>) -> Result<Option<&[u8]>> {
        if range.start > range.end || range.end > self.len {
            let what = format!("bytes {}..{} wanted, the file has {}", range.start, range.end, self.len);
            return Err(self.error("load", what));
        }
        // Both fit: they are within a length that was mapped or allocated.
        let local = range.start as usize..range.end as usize;
        Ok(match &self.kind {
            Kind::Memory(bytes) => Some(&bytes[local]),
            Kind::Map { map, file } => {
                let now = file.metadata().map_err(|e| self.error("load", e))?.len();
                if now < range.end {
                    let what = format!("file cut short while in use: {now} bytes left of {}", self.len);
                    return Err(self.error("load", what));
                }
                Some(&map[local])
            }
            Kind::File(_) => None,
        })
    }

    /// The map, where there is one, and its file.
    #[cfg(target_os = "linux")]
    pub(crate) fn map(&self) -> Option<(&Mmap, &File)> {
        match &self.kind {
            Kind::Map { map, file } => Some((map, file)),
            _ => None,
        }
    }

    /// The bytes of a range that [`Source::in_place`] has given before.
    pub(crate) fn resident(&self, range: Range<u64>) -> &[u8] {
        let local = range.start as usize..range.end as usize;
        match &self.kind {
            Kind::Memory(bytes) => &bytes[local],
            Kind::Map { map, .. } => &map[local],
            Kind::File(_) => &[],
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let held = match &self.kind {
            Kind::Map { map, .. } => map.len(),
            Kind::Memory(bytes) => bytes.len(),
            Kind::File(_) => 0,
        };
        memory::mapped_changed(-(held as isize));
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], at: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, at)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut bytes: &mut [u8], mut at: u64) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, at)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => {
                bytes = &mut bytes[n..];
                at += n as u64;
            }
        }
    }
    Ok(())
}

/// Reads a source from front to back, every step checked. For headers whose length is not known beforehand.
#[derive(Debug)]
pub(crate) struct Cursor<'a> {
    source: &'a Source,
    op: &'static str,
    at: u64,
    /// Bytes read ahead when the source is not in memory, and where they start.
    window: Vec<u8>,
    window_at: u64,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(source: &'a Source, op: &'static str) -> Cursor<'a> {
        Cursor { source, op, at: 0, window: vec![], window_at: 0 }
    }

    /// Offset of the next byte.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// Bytes to the end.
    pub(crate) fn left(&self) -> u64 {
        self.source.len() - self.at
    }

    /// An error that names the file and the place.
    pub(crate) fn error(&self, what: impl std::fmt::Display) -> Error {
        self.source.error(self.op, format!("byte {}: {what}", self.at))
    }

    /// Passes over `n` bytes, which hold `what`.
    pub(crate) fn skip(&mut self, n: u64, what: &str) -> Result<()> {
        if n > self.left() {
            return Err(self.error(format!("{what} needs {n} bytes, {} are left", self.left())));
        }
        self.at += n;
        Ok(())
    }

    /// The next `n` bytes, which hold `what`.
    pub(crate) fn take(&mut self, n: u64, what: &str) -> Result<&[u8]> {
        const AHEAD: u64 = 1 << 16;
        let start = self.at;
        self.skip(n, what)?;
        let range = start..self.at;
        if matches!(self.source.kind, Kind::File(_)) {
            let window = self.window_at..self.window_at + self.window.len() as u64;
            if range.start < window.start || range.end > window.end {
                let end = range.end.max(range.start + AHEAD).min(self.source.len());
                self.window = self.source.read(range.start..end)?.to_vec();
                self.window_at = range.start;
            }
            let start = (range.start - self.window_at) as usize;
            return Ok(&self.window[start..start + n as usize]);
        }
        Ok(self.source.resident(range))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str, bytes: &[u8]) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("lapis-io-source-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).expect("a writable temporary directory");
        path
    }

    #[test]
    fn both_modes_give_the_same_bytes() {
        let path = scratch("modes", b"0123456789");
        for mode in [ReadMode::Map, ReadMode::Copy] {
            let s = Source::open(&path, mode).unwrap();
            assert_eq!((s.len(), &*s.bytes(2..5).unwrap()), (10, &b"234"[..]));
            assert!(s.bytes(5..11).unwrap_err().message().contains("bytes 5..11 wanted, the file has 10"));
            let mut c = Cursor::new(&s, "test");
            assert_eq!(
                (c.take(3, "x").unwrap().to_vec(), c.take(7, "y").unwrap().to_vec()),
                (b"012".to_vec(), b"3456789".to_vec())
            );
            assert!(c.take(1, "z").is_err());
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_file_cut_short_is_an_error_in_both_modes() {
        let path = scratch("cut", &[7; 100_000]);
        for mode in [ReadMode::Map, ReadMode::Copy] {
            std::fs::write(&path, [7; 100_000]).unwrap();
            let s = Source::open(&path, mode).unwrap();
            File::options().write(true).open(&path).unwrap().set_len(10).unwrap();
            assert!(s.bytes(90_000..90_004).is_err());
            assert_eq!(s.bytes(0..2).unwrap().len(), 2);
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn directories_and_missing_files_are_errors() {
        assert!(
            Source::open(std::env::temp_dir(), ReadMode::Map).unwrap_err().message().contains("not a regular file")
        );
        assert!(Source::open("no/such/\u{1b}file", ReadMode::Map).unwrap_err().message().contains("\\u{1b}"));
    }
}
