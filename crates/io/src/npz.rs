//! npz: a zip of npy files, stored or deflated.
//!
//! The zip reader is our own, over `flate2`: it needs forty lines beyond what any zip library would leave to us (the
//! limits below, names that occur twice, entries that overlap), and stored arrays can be used in place.
//! The format: PKWARE's APPNOTE.TXT. Names of entries are keys, never paths. Knows no graph.

use crate::atomic::AtomicFile;
use crate::bytes::Bytes;
use crate::npy;
use crate::raw::{RawTensor, size_of};
use crate::source::Source;
use flate2::{Crc, read::DeflateDecoder, write::DeflateEncoder};
use lapis_core::dtype::Dtype;
use lapis_core::error::{Error, Result};
use std::borrow::Cow;
use std::collections::HashSet;
use std::io::{Read, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

const OP: &str = "load_npz";
/// Most arrays of a file.
const MAX_ENTRIES: u64 = 10_000;
/// Most bytes that one deflated byte may stand for.
const MAX_RATIO: u64 = 200;

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END64: u32 = 0x0606_4b50;
const LOCATOR64: u32 = 0x0706_4b50;
const STORED: u16 = 0;
const DEFLATED: u16 = 8;

/// One entry as the central directory describes it.
struct Entry {
    /// The name without `.npy`.
    key: String,
    method: u16,
    crc: u32,
    size: u64,
    /// Where the packed bytes lie.
    data: Range<u64>,
}

/// The arrays, in the order of the zip's directory.
///
/// # Errors
/// `Io`: not a zip, more than 10 000 entries, an entry that unpacks to more than 200 times its size, is encrypted,
/// packed by another method, named twice, overlapping another, not an npy file, or whose checksum is wrong.
pub fn read(source: &Arc<Source>) -> Result<Vec<RawTensor>> {
    let entries = directory(source)?;
    entries.iter().map(|e| unpack(source, e)).collect()
}

fn unpack(source: &Arc<Source>, entry: &Entry) -> Result<RawTensor> {
    let fail = |what: String| source.error(OP, format!("array {:?}: {what}", entry.key));
    let packed = source.bytes(entry.data.clone())?;
    let mut crc = Crc::new();
    if entry.method == STORED {
        crc.update(&packed);
        if crc.sum() != entry.crc {
            return Err(fail(format!("checksum {:08x}, expected {:08x}", crc.sum(), entry.crc)));
        }
        return npy::read(OP, &entry.key, source, entry.data.clone());
    }
    // Zeroed memory takes no room before it is written, so a false claim costs nothing.
    let mut out = Bytes::zeroed(usize::try_from(entry.size).map_err(|_| fail("too large".into()))?)?;
    let mut unpacked = DeflateDecoder::new(&*packed);
    let full = unpacked.read_exact(&mut out).and_then(|()| unpacked.read(&mut [0]));
    match full {
        Ok(0) => {}
        Ok(_) => return Err(fail(format!("unpacks to more than the {} bytes it claims", entry.size))),
        Err(e) => return Err(fail(format!("cannot be unpacked to the {} bytes it claims: {e}", entry.size))),
    }
    crc.update(&out);
    if crc.sum() != entry.crc {
        return Err(fail(format!("checksum {:08x}, expected {:08x}", crc.sum(), entry.crc)));
    }
    let inner = Source::from_bytes(source.name(), out);
    let len = inner.len();
    npy::read(OP, &entry.key, &inner, 0..len)
}

fn directory(source: &Source) -> Result<Vec<Entry>> {
    let fail = |what: String| source.error(OP, what);
    let (count, range) = end_of_directory(source)?;
    if count > MAX_ENTRIES {
        return Err(fail(format!("{count} entries, at most {MAX_ENTRIES} are allowed")));
    }
    let bytes = source.bytes(range.clone())?;
    let mut f = Fields { bytes: &bytes, at: 0 };
    let mut entries = Vec::new();
    let mut names = HashSet::new();
    for _ in 0..count {
        let at = range.start + f.at as u64;
        let entry = entry(source, &mut f).ok_or_else(|| fail(format!("byte {at}: the directory is cut short")))??;
        if !names.insert(entry.key.clone()) {
            return Err(fail(format!("duplicate name {:?}", entry.key)));
        }
        entries.push(entry);
    }
    let mut order: Vec<&Entry> = entries.iter().collect();
    order.sort_by_key(|e| (e.data.start, e.data.end));
    for pair in order.windows(2) {
        if pair[1].data.start < pair[0].data.end {
            return Err(fail(format!("array {:?} overlaps {:?}", pair[1].key, pair[0].key)));
        }
    }
    if let Some(last) = order.last()
        && last.data.end > range.start
    {
        return Err(fail(format!("array {:?} overlaps the directory", last.key)));
    }
    Ok(entries)
}

/// Number of entries, and where the central directory lies.
fn end_of_directory(source: &Source) -> Result<(u64, Range<u64>)> {
    let fail = |what: &str| source.error(OP, what);
    let tail_at = source.len().saturating_sub(22 + 0xffff);
    let tail = source.bytes(tail_at..source.len())?;
    // The record ends the file, behind it only the comment whose length it states.
    let is_end = |&i: &usize| {
        tail[i..].starts_with(&END.to_le_bytes())
            && i + 22 + u16::from_le_bytes([tail[i + 20], tail[i + 21]]) as usize == tail.len()
    };
    let end = (0..(tail.len() + 1).saturating_sub(22)).rev().find(is_end);
    let end = end.ok_or_else(|| fail("not a zip file, or cut short: no end record"))?;
    let at = tail_at + end as u64;
    let mut f = Fields { bytes: &tail, at: end + 4 };
    let short = || fail("the end record is cut short");
    let disks = (f.u16().ok_or_else(short)?, f.u16().ok_or_else(short)?);
    let (_, count) = (f.u16().ok_or_else(short)?, f.u16().ok_or_else(short)?);
    let (size, offset) = (f.u32().ok_or_else(short)?, f.u32().ok_or_else(short)?);
    let (mut count, mut size, mut offset, mut limit) = (count as u64, size as u64, offset as u64, at);
    if count == 0xffff || size == 0xffff_ffff || offset == 0xffff_ffff {
        let locator = source.bytes(at.checked_sub(20).ok_or_else(short)?..at)?;
        let mut f = Fields { bytes: &locator, at: 0 };
        if f.u32() == Some(LOCATOR64) {
            let end64 = f.skip(4).and_then(|()| f.u64()).ok_or_else(short)?;
            let record_end = end64.checked_add(56).filter(|&e| e <= at);
            let record =
                source.bytes(end64..record_end.ok_or_else(|| fail("the zip64 end record is past the end"))?)?;
            let mut f = Fields { bytes: &record, at: 0 };
            if f.u32() != Some(END64) {
                return Err(fail("no zip64 end record where its locator points"));
            }
            f.skip(28).ok_or_else(short)?;
            count = f.u64().ok_or_else(short)?;
            size = f.u64().ok_or_else(short)?;
            offset = f.u64().ok_or_else(short)?;
            limit = end64;
        }
    }
    if disks != (0, 0) {
        return Err(fail("a zip of several parts is not supported"));
    }
    match offset.checked_add(size) {
        Some(end) if end <= limit && count.checked_mul(46).is_some_and(|least| least <= size) => {
            Ok((count, offset..end))
        }
        _ => Err(fail(&format!("directory of {count} entries, {size} bytes at {offset}, does not fit the file"))),
    }
}

/// Reads one entry of the central directory and its local header. `None`: the directory ends too early.
fn entry(source: &Source, f: &mut Fields<'_>) -> Option<Result<Entry>> {
    if f.u32()? != CENTRAL {
        return None;
    }
    f.skip(4)?;
    let (flags, method) = (f.u16()?, f.u16()?);
    f.skip(4)?;
    let crc = f.u32()?;
    let (packed, size) = (f.u32()?, f.u32()?);
    let (name_len, extra_len, comment_len) = (f.u16()?, f.u16()?, f.u16()?);
    f.skip(8)?;
    let offset = f.u32()?;
    let name = f.take(name_len as usize)?;
    let extra = f.take(extra_len as usize)?;
    f.skip(comment_len as usize)?;
    Some(check_entry(source, flags, method, crc, [size, packed, offset], name, extra))
}

fn check_entry(
    source: &Source,
    flags: u16,
    method: u16,
    crc: u32,
    sizes: [u32; 3],
    name: &[u8],
    extra: &[u8],
) -> Result<Entry> {
    let Ok(text) = std::str::from_utf8(name) else {
        return Err(source.error(OP, format!("entry name {:?} is not UTF-8", String::from_utf8_lossy(name))));
    };
    let fail = |what: String| source.error(OP, format!("entry {text:?}: {what}"));
    let [size, packed, offset] = zip64(sizes, extra).ok_or_else(|| fail("its zip64 field is too short".into()))?;
    if flags & 1 != 0 {
        return Err(fail("encrypted entries are not supported".into()));
    }
    match method {
        STORED if size != packed => return Err(fail(format!("stored, but {packed} bytes stand for {size}"))),
        STORED => {}
        DEFLATED if size > packed.saturating_mul(MAX_RATIO) => {
            return Err(fail(format!("{packed} bytes claim to unpack to {size}, more than {MAX_RATIO} times as many")));
        }
        DEFLATED => {}
        _ => return Err(fail(format!("compression method {method}, known are 0 (stored) and 8 (deflate)"))),
    }
    let key = text.strip_suffix(".npy").ok_or_else(|| fail("is not called *.npy".into()))?.to_owned();
    let past_end = || fail(format!("its {packed} bytes at {offset} do not fit the file"));
    let head_end = offset.checked_add(30).filter(|&e| e <= source.len()).ok_or_else(past_end)?;
    let head = source.bytes(offset..head_end)?;
    let disagrees = || fail(format!("its header at {offset} disagrees with the directory"));
    if !head.starts_with(&LOCAL.to_le_bytes()) || head[8..10] != method.to_le_bytes() {
        return Err(disagrees());
    }
    let (name_len, extra_len) = (u16::from_le_bytes([head[26], head[27]]), u16::from_le_bytes([head[28], head[29]]));
    let start = head_end + name_len as u64 + extra_len as u64;
    let end = start.checked_add(packed).filter(|&e| e <= source.len()).ok_or_else(past_end)?;
    if *source.bytes(head_end..head_end + name_len as u64)? != *name {
        return Err(disagrees());
    }
    Ok(Entry { key, method, crc, size, data: start..end })
}

/// Size, packed size and offset; those that are all ones stand in the zip64 field, in this order.
fn zip64(sizes: [u32; 3], extra: &[u8]) -> Option<[u64; 3]> {
    let mut out = sizes.map(u64::from);
    let mut f = Fields { bytes: extra, at: 0 };
    while let (Some(id), Some(len)) = (f.u16(), f.u16()) {
        let field = f.take(len as usize)?;
        if id == 1 {
            let mut wide = Fields { bytes: field, at: 0 };
            for (o, &s) in out.iter_mut().zip(&sizes) {
                if s == u32::MAX {
                    *o = wide.u64()?;
                }
            }
        }
    }
    Some(out)
}

/// Little-endian fields, one after the other.
struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let out = self.bytes.get(self.at..self.at.checked_add(n)?)?;
        self.at += n;
        Some(out)
    }
    fn skip(&mut self, n: usize) -> Option<()> {
        self.take(n).map(|_| ())
    }
    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.take(2)?.try_into().ok()?))
    }
    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }
    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }
}

/// Writes an npz, one array after the other.
pub struct Writer {
    file: AtomicFile,
    at: u64,
    deflate: bool,
    names: HashSet<String>,
    directory: Vec<u8>,
}

impl Writer {
    /// Starts the file that will be `path`. `needs` is the size of the data to come.
    ///
    /// # Errors
    /// `Io`, as [`AtomicFile::create`].
    pub fn create(path: impl AsRef<Path>, deflate: bool, needs: u64) -> Result<Writer> {
        let needs = if deflate { 0 } else { needs };
        let file = AtomicFile::create(path, "save_npz", needs)?;
        Ok(Writer { file, at: 0, deflate, names: HashSet::new(), directory: vec![] })
    }

    /// Adds an array under `key`. Stored arrays start at multiples of 64.
    ///
    /// # Errors
    /// `Value` for a name that was used before or is too long, or data of the wrong size; `Io` when writing fails.
    pub fn add(&mut self, key: &str, dtype: Dtype, shape: &[usize], column_major: bool, data: &[u8]) -> Result<()> {
        let invalid = |what: String| Error::value(format!("[save_npz] array {key:?}: {what}"));
        if size_of(shape, dtype) != Some(data.len()) {
            return Err(invalid(format!("{} bytes for {shape:?} of {dtype}", data.len())));
        }
        let name = format!("{key}.npy");
        if name.len() > 0xff00 {
            return Err(invalid("the name is too long".into()));
        }
        if !self.names.insert(key.to_owned()) {
            return Err(invalid("the name is given twice".into()));
        }
        if self.names.len() as u64 > MAX_ENTRIES {
            return Err(invalid(format!("more than {MAX_ENTRIES} arrays, which no reader here would accept")));
        }
        let head = npy::header(dtype, shape, column_major);
        let size = (head.len() + data.len()) as u64;
        let mut crc = Crc::new();
        crc.update(&head);
        crc.update(data);
        // What shrinks more than 200 times (zeros) is stored, because readers refuse it as a bomb.
        let packed = if self.deflate { Some(deflate(&[&head, data])?) } else { None };
        let packed = packed.filter(|p| size <= p.len() as u64 * MAX_RATIO);
        let parts: Vec<Cow<'_, [u8]>> = match packed {
            Some(p) => vec![p.into()],
            None => vec![(&head[..]).into(), data.into()],
        };
        let method = if parts.len() == 1 { DEFLATED } else { STORED };
        let packed_size: u64 = parts.iter().map(|p| p.len() as u64).sum();

        let entry = Record { name: &name, method, crc: crc.sum(), packed: packed_size, size, offset: self.at };
        let local = entry.local();
        self.write(&local)?;
        for part in parts {
            self.write(&part)?;
        }
        entry.central(&mut self.directory);
        Ok(())
    }

    /// Writes the directory and puts the file in its place.
    ///
    /// # Errors
    /// `Io`; the old file is then untouched.
    pub fn commit(mut self) -> Result<()> {
        let (offset, size, count) = (self.at, self.directory.len() as u64, self.names.len() as u64);
        let mut end = std::mem::take(&mut self.directory);
        if offset + size > u32::MAX as u64 - 1 {
            let end64 = offset + size;
            put(&mut end, &[&END64.to_le_bytes(), &44u64.to_le_bytes(), &[45, 0, 45, 0], &[0; 8]]);
            put(&mut end, &[&count.to_le_bytes(), &count.to_le_bytes(), &size.to_le_bytes(), &offset.to_le_bytes()]);
            put(&mut end, &[&LOCATOR64.to_le_bytes(), &[0; 4], &end64.to_le_bytes(), &1u32.to_le_bytes()]);
        }
        let (count, size, offset) = (count as u16, clamp(size), clamp(offset));
        put(&mut end, &[&END.to_le_bytes(), &[0; 4], &count.to_le_bytes(), &count.to_le_bytes()]);
        put(&mut end, &[&size.to_le_bytes(), &offset.to_le_bytes(), &[0; 2]]);
        self.file.write(&end)?;
        self.file.commit()
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.at += bytes.len() as u64;
        self.file.write(bytes)
    }
}

/// What both headers of an entry say.
struct Record<'a> {
    name: &'a str,
    method: u16,
    crc: u32,
    packed: u64,
    size: u64,
    offset: u64,
}

impl Record<'_> {
    /// The header before the data, padded so that data starts at a multiple of 64 of the file.
    fn local(&self) -> Vec<u8> {
        let mut extra = Vec::new();
        if self.size.max(self.packed) >= u32::MAX as u64 {
            put(
                &mut extra,
                &[&1u16.to_le_bytes(), &16u16.to_le_bytes(), &self.size.to_le_bytes(), &self.packed.to_le_bytes()],
            );
        }
        let wide = !extra.is_empty();
        if self.method == STORED {
            // A field of its own (id 0xd935 is the one Android aligns with) swallows the gap.
            let end = self.offset + (30 + self.name.len() + extra.len() + 4) as u64;
            let pad = (end.next_multiple_of(64) - end) as u16;
            put(&mut extra, &[&0xd935u16.to_le_bytes(), &pad.to_le_bytes(), &vec![0; pad as usize]]);
        }
        let mut out = LOCAL.to_le_bytes().to_vec();
        self.common(&mut out, wide);
        put(&mut out, &[&(extra.len() as u16).to_le_bytes(), self.name.as_bytes(), &extra]);
        out
    }

    fn central(&self, out: &mut Vec<u8>) {
        let mut wide = Vec::new();
        let sizes = self.size.max(self.packed) >= u32::MAX as u64;
        if sizes {
            put(&mut wide, &[&self.size.to_le_bytes(), &self.packed.to_le_bytes()]);
        }
        if self.offset >= u32::MAX as u64 {
            put(&mut wide, &[&self.offset.to_le_bytes()]);
        }
        let mut extra = Vec::new();
        if !wide.is_empty() {
            put(&mut extra, &[&1u16.to_le_bytes(), &(wide.len() as u16).to_le_bytes(), &wide]);
        }
        put(out, &[&CENTRAL.to_le_bytes(), &[45, 3]]);
        self.common(out, sizes);
        put(out, &[&(extra.len() as u16).to_le_bytes(), &[0; 6], &(0o100644u32 << 16).to_le_bytes()]);
        put(out, &[&clamp(self.offset).to_le_bytes(), self.name.as_bytes(), &extra]);
    }

    /// From the version needed to the length of the name. Time: the first of January 1980, so that the same arrays
    /// give the same file.
    fn common(&self, out: &mut Vec<u8>, wide: bool) {
        const UTF8: u16 = 1 << 11;
        let sizes = if wide { (u32::MAX, u32::MAX) } else { (self.packed as u32, self.size as u32) };
        put(out, &[&[45, 0], &UTF8.to_le_bytes(), &self.method.to_le_bytes(), &[0, 0, 0x21, 0]]);
        put(out, &[&self.crc.to_le_bytes(), &sizes.0.to_le_bytes(), &sizes.1.to_le_bytes()]);
        put(out, &[&(self.name.len() as u16).to_le_bytes()]);
    }
}

fn put(out: &mut Vec<u8>, parts: &[&[u8]]) {
    parts.iter().for_each(|p| out.extend_from_slice(p));
}

/// A field of 32 bits: all ones sends the reader to the zip64 record.
fn clamp(v: u64) -> u32 {
    v.min(u32::MAX as u64) as u32
}

fn deflate(parts: &[&[u8]]) -> Result<Vec<u8>> {
    let mut encoder = DeflateEncoder::new(Vec::new(), flate2::Compression::default());
    let result = parts.iter().try_for_each(|p| encoder.write_all(p)).and_then(|()| encoder.finish());
    result.map_err(|e| Error::io(format!("[save_npz] {e}")))
}
