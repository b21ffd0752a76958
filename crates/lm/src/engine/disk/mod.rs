//! What was read before, on disk: the second tier behind [`Prefixes`](super::Prefixes), which a restart does not lose.
//!
//! A file holds blocks of keys and values from a border of blocks on, named after all tokens before its end, and for
//! layers that cannot forget tokens one by one what they are after its last token. Longer prompts add files to those
//! that are there; a prompt is put together from the files of its blocks. `index` finds them by chained digests,
//! `file` writes and checks them, `store` makes room.
//!
//! Nothing here is done on the engine's thread but to look into the index: one thread writes, one reads. What is in a
//! file is believed only if a digest of all of it is right; else the file goes, and it was a miss. Prompts can be read
//! from the files: folders are for their owner alone.

mod file;
mod index;
mod store;

pub use store::{DiskCounts, DiskUsage, clear, default_dir, default_limit, is_remote, usage};

use crate::Model;
use crate::batch::{KvOptions, Sequence};
use index::{Chain, Ends, Entry, Found, Index};
use lapis::ops::fast::KEY_BLOCK;
use lapis::{Error, Result};
use ring::digest::{Context, SHA256};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant, SystemTime};
use store::{Store, lock};

/// Beginnings of fewer tokens are not worth a file.
pub const LEAST: usize = 256;
/// Tokens that a file, or reading one, must add to what is there.
const GAIN: usize = 64;
/// Beginnings that may wait to be written.
const WAITING: usize = 8;
/// Bytes of a file's arrays, about; a block at least.
const SIZE: u64 = 64 << 20;
/// How often other processes' files are looked for.
const LOOK: Duration = Duration::from_secs(5);

/// Work for the thread that writes.
enum Write {
    Keep { shelf: Arc<Shelf>, tokens: Vec<u32>, salt: u64, sequence: Sequence },
    Look(Weak<Shelf>),
}

struct Wanted {
    shelf: Arc<Shelf>,
    found: Found,
    give: SyncSender<Option<Sequence>>,
}

/// A folder of remembered beginnings, for all models of a process; other processes may use it, too.
#[derive(Debug)]
pub struct Disk {
    store: Arc<Store>,
    writes: SyncSender<Write>,
    reads: Sender<Wanted>,
    pending: Arc<AtomicUsize>,
}

impl Disk {
    /// Opens a folder, and makes it if it is not there; at most `limit` bytes of it are used.
    ///
    /// # Errors
    /// A folder that cannot be made or written.
    pub fn open(dir: impl AsRef<Path>, limit: u64) -> Result<Disk> {
        let dir = dir.as_ref();
        let fail = |e: std::io::Error| Error::io(format!("[disk cache] {}: {e}", dir.display()));
        let store = Arc::new(Store::open(dir, limit).map_err(fail)?);
        let (writes, inbox) = sync_channel(WAITING);
        let (reads, wanted) = channel();
        let pending = Arc::new(AtomicUsize::new(0));
        let thread = |name: &str, work: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.into()).spawn(work).map(drop).map_err(fail)
        };
        let (own, count) = (Arc::clone(&store), Arc::clone(&pending));
        thread("disk-write", Box::new(move || writer(&own, &inbox, &count)))?;
        let own = Arc::clone(&store);
        thread("disk-read", Box::new(move || reader(&own, &wanted)))?;
        Ok(Disk { store, writes, reads, pending })
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.store.dir
    }

    /// Bytes at most.
    pub fn limit(&self) -> u64 {
        self.store.limit
    }

    /// Files and bytes of all models and processes, as far as is known.
    pub fn usage(&self) -> DiskUsage {
        self.store.usage()
    }

    /// What has happened.
    pub fn counts(&self) -> &DiskCounts {
        &self.store.counts
    }

    /// What is wrong with the disk, if that was not said yet.
    pub fn trouble(&self) -> Option<String> {
        self.store.trouble()
    }

    /// Removes all files, and says what they were.
    pub fn clear(&self) -> DiskUsage {
        self.store.clear()
    }

    /// Waits until what was offered is written; whether that was within `most`.
    pub fn flush(&self, most: Duration) -> bool {
        let end = Instant::now() + most;
        while self.pending.load(Relaxed) > 0 {
            if Instant::now() > end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }
}

/// What is there for one model.
#[derive(Debug, Default)]
struct Shelf {
    kv: KvOptions,
    /// The folder, and its name; not there until the weights have been read once.
    place: OnceLock<(PathBuf, String)>,
    index: Mutex<Index>,
    /// When the folder was last changed, as far as is known.
    seen: Mutex<Option<SystemTime>>,
    /// Whether it was looked into.
    open: AtomicBool,
}

impl Shelf {
    /// Sees to what other processes have done.
    fn look(&self, store: &Store) {
        let Some((folder, model)) = self.place.get() else { return };
        let changed = folder.metadata().and_then(|m| m.modified()).ok();
        let before = std::mem::replace(&mut *lock(&self.seen), changed);
        if changed == before {
            return;
        }
        let there: Vec<(String, PathBuf)> = std::fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|e| Some((e.file_name().into_string().ok()?, e.path())))
            .filter(|(name, _)| store::is_file(name))
            .collect();
        let names: std::collections::HashSet<&str> = there.iter().map(|(name, _)| name.as_str()).collect();
        for gone in lock(&self.index).names().iter().filter(|n| !names.contains(n.as_str())) {
            lock(&self.index).remove(gone);
        }
        for (name, path) in &there {
            if lock(&self.index).has(name) {
                continue;
            }
            let Ok(file) = File::open(path) else { continue };
            let length = file.metadata().map_or(0, |m| m.len());
            let reader = std::io::BufReader::new(file);
            match file::peek(reader, length, model).filter(|e| e.name() == *name) {
                Some(entry) => lock(&self.index).add(Arc::new(entry)),
                None => {
                    store.counts.damaged.fetch_add(1, Relaxed);
                    store.remove(folder, name, length);
                }
            }
        }
    }

    /// Writes what is not there of a sequence that has seen `tokens`.
    fn keep(&self, store: &Store, tokens: &[u32], salt: u64, sequence: &Sequence) {
        let Some((folder, model)) = self.place.get() else { return };
        let root = Chain::root(model, salt);
        let found = lock(&self.index).find(root, tokens);
        let anywhere = sequence.is_free();
        if tokens.len() < found.len + GAIN {
            return found.parts.iter().rev().for_each(|(e, _)| store::touch(&folder.join(e.name())));
        }
        // One block at least, with what the other layers are after it.
        let last = (tokens.len() - 1) / KEY_BLOCK;
        let (first, end) = (if sequence.has_blocks() { found.blocks.min(last) } else { 0 }, last + 1);
        let each = file::size(&sequence.pieces(first..first + 1, false)).max(1);
        let step = if sequence.has_blocks() { (SIZE / each).max(1) as usize } else { end };
        let mut parent = root;
        for block in tokens[..first * KEY_BLOCK].chunks(KEY_BLOCK) {
            parent = parent.after(block);
        }
        let mut from = first;
        while from < end {
            let to = (from + step).min(end);
            let own = tokens[from * KEY_BLOCK..tokens.len().min(to * KEY_BLOCK)].to_vec();
            let pieces = sequence.pieces(from..to, to == end);
            let ends = match (anywhere, to == end) {
                (true, _) => Ends::Anywhere,
                (false, true) => Ends::Last,
                (false, false) => Ends::Nowhere,
            };
            let Some(mut entry) = Entry::new(parent, from * KEY_BLOCK, own, ends, 0) else { return };
            let name = entry.name();
            let size = file::size(&pieces) + 4 * entry.tokens.len() as u64;
            if !store.write(folder, &name, size, |out| file::write(out, model, &entry, &pieces)) {
                return;
            }
            entry.size = folder.join(&name).metadata().map_or(size, |m| m.len());
            parent = *entry.chain.last().unwrap_or(&parent);
            let mut index = lock(&self.index);
            for (name, size) in index.covered(&entry) {
                index.remove(&name);
                store.remove(folder, &name, size);
            }
            index.add(Arc::new(entry));
            from = to;
        }
        // What a file stands on goes after it.
        found.parts.iter().rev().for_each(|(e, _)| store::touch(&folder.join(e.name())));
    }

    /// Reads what was found. A file that is gone or damaged is let go.
    fn read(&self, store: &Store, found: &Found) -> Option<Sequence> {
        let (folder, model) = self.place.get()?;
        let mut all = Vec::new();
        for (entry, range) in &found.parts {
            let name = entry.name();
            let bytes = std::fs::read(folder.join(&name));
            let same = |e: &Entry| e.chain == entry.chain && e.from == entry.from && e.ends == entry.ends;
            let good = bytes.as_ref().ok().and_then(|b| file::read(b, model)).filter(|(e, _)| same(e));
            let Some((_, mut pieces)) = good else {
                lock(&self.index).remove(&name);
                if bytes.is_ok() {
                    store.counts.damaged.fetch_add(1, Relaxed);
                    store.remove(folder, &name, entry.size);
                }
                return None;
            };
            for piece in &mut pieces {
                if let crate::batch::Piece::Blocks { blocks, .. } = piece {
                    blocks.truncate(range.end);
                    blocks.drain(..range.start.min(blocks.len()));
                }
            }
            all.push(pieces);
        }
        let sequence = Sequence::of_pieces(all, found.len, self.kv)?;
        found.parts.iter().rev().for_each(|(e, _)| store::touch(&folder.join(e.name())));
        Some(sequence)
    }
}

fn writer(store: &Store, inbox: &Receiver<Write>, pending: &AtomicUsize) {
    store::sweep(&store.dir);
    store.make_room(0);
    let mut shelves: Vec<Weak<Shelf>> = Vec::new();
    let mut looked = Instant::now();
    loop {
        match inbox.recv_timeout(LOOK) {
            Ok(Write::Keep { shelf, tokens, salt, sequence }) => {
                let work = || shelf.keep(store, &tokens, salt, &sequence);
                if catch_unwind(AssertUnwindSafe(work)).is_err() {
                    store.counts.dropped.fetch_add(1, Relaxed);
                }
                drop(sequence);
                pending.fetch_sub(1, Relaxed);
            }
            Ok(Write::Look(shelf)) => shelves.push(shelf),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if looked.elapsed() >= LOOK {
            shelves.retain(|s| s.strong_count() > 0);
            shelves.iter().filter_map(Weak::upgrade).for_each(|s| s.look(store));
            looked = Instant::now();
        }
    }
}

fn reader(store: &Store, wanted: &Receiver<Wanted>) {
    for Wanted { shelf, found, give } in wanted {
        let sequence = catch_unwind(AssertUnwindSafe(|| shelf.read(store, &found))).ok().flatten();
        store.counts.hits.fetch_add(u64::from(sequence.is_some()), Relaxed);
        store.counts.tokens.fetch_add(sequence.as_ref().map_or(0, |s| s.len() as u64), Relaxed);
        drop(give.send(sequence));
    }
}

/// A digest of the program: another build may round differently. Of its version, size and time, and of a part of every
/// stretch of it, for builds that have no times: all of it would take as long as a model's weights.
fn program() -> Vec<u8> {
    const STRETCH: u64 = 1 << 18;
    let mut digest = Context::new(&SHA256);
    digest.update(env!("CARGO_PKG_VERSION").as_bytes());
    let file = File::open("/proc/self/exe").or_else(|_| File::open(std::env::current_exe()?));
    if let Ok(mut file) = file
        && let Ok(about) = file.metadata()
    {
        digest.update(format!("{} {:?}", about.len(), about.modified().ok()).as_bytes());
        let mut part = [0; 4096];
        for at in (0..about.len()).step_by(STRETCH as usize) {
            let Ok(n) = file.seek(SeekFrom::Start(at)).and_then(|_| file.read(&mut part)) else { break };
            digest.update(&part[..n]);
        }
    }
    digest.finish().as_ref().to_vec()
}

/// A digest of whatever could change a bit of what a model computes: its weights, the program, the kernels in use, how
/// sequences remember, and `config`, which is what it computes by beside its weights. Reads all weights.
///
/// # Errors
/// Parameters that cannot be computed.
pub fn fingerprint(model: &dyn Model, config: &[u8], kv: KvOptions) -> Result<String> {
    let settings = format!("{kv:?} {}", lapis::kernels());
    file::identity(model, &[&program(), settings.as_bytes(), config])
}

/// The remembered beginnings of one model in a folder.
#[derive(Clone, Debug)]
pub struct DiskPrefixes {
    disk: Arc<Disk>,
    shelf: Arc<Shelf>,
}

/// What is there of a prompt.
#[derive(Debug)]
pub(super) struct Known(Found);

impl DiskPrefixes {
    /// Those of a model whose sequences remember as `kv` says. `config` is whatever it computes by beside its weights: its
    /// config, numbers of an adapter. Nothing is found until the weights have been read once, on a thread that this starts.
    pub fn new(disk: &Arc<Disk>, model: &Arc<dyn Model>, config: &[u8], kv: KvOptions) -> DiskPrefixes {
        let shelf = Arc::new(Shelf { kv, ..Shelf::default() });
        let (own, weak, model) = (Arc::downgrade(disk), Arc::downgrade(&shelf), Arc::clone(model));
        let config = config.to_vec();
        let open = move || {
            let Ok(name) = fingerprint(&*model, &config, kv) else { return };
            drop(model);
            let (Some(disk), Some(shelf)) = (own.upgrade(), weak.upgrade()) else { return };
            let place = (disk.store.dir.join(&name), name);
            if shelf.place.set(place).is_ok() {
                shelf.look(&disk.store);
                shelf.open.store(true, Relaxed);
                drop(disk.writes.send(Write::Look(weak)));
            }
        };
        // Without a thread nothing is ever found.
        drop(std::thread::Builder::new().name("disk-open".into()).spawn(open));
        DiskPrefixes { disk: Arc::clone(disk), shelf }
    }

    /// The folder of all models.
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// Whether files are looked for; waits at most so long for that.
    pub fn ready(&self, most: Duration) -> bool {
        let end = Instant::now() + most;
        while !self.shelf.open.load(Relaxed) {
            if Instant::now() >= end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }

    fn find(&self, tokens: &[u32], salt: u64) -> Option<Found> {
        let (_, model) = self.shelf.place.get()?;
        Some(lock(&self.shelf.index).find(Chain::root(model, salt), tokens))
    }

    /// What files know of a prompt, if that is worth reading where `known` tokens of it are known anyway.
    pub(super) fn look(&self, prompt: &[u32], salt: u64, known: usize) -> Option<Known> {
        let most = prompt.len() - 1;
        if most < known + GAIN || most < LEAST {
            return None;
        }
        let found = self.find(&prompt[..most], salt).filter(|f| f.len >= known + GAIN);
        if found.is_none() {
            self.disk.store.counts.misses.fetch_add(1, Relaxed);
        }
        found.map(Known)
    }

    /// Reads it, on another thread; the answer is none if a file is not what it should be.
    pub(super) fn read(&self, known: Known) -> Receiver<Option<Sequence>> {
        let (give, take) = sync_channel(1);
        drop(self.disk.reads.send(Wanted { shelf: Arc::clone(&self.shelf), found: known.0, give }));
        take
    }

    /// Keeps what `sequence` remembers of `tokens`, if it is worth it and there is time.
    pub(super) fn offer(&self, tokens: &[u32], salt: u64, sequence: &Sequence) {
        let n = sequence.len().min(tokens.len());
        if n < LEAST || n < sequence.len() {
            return;
        }
        let Some(found) = self.find(&tokens[..n], salt) else { return };
        if n < found.len + GAIN {
            return;
        }
        let (shelf, tokens) = (Arc::clone(&self.shelf), tokens[..n].to_vec());
        self.disk.pending.fetch_add(1, Relaxed);
        if self.disk.writes.try_send(Write::Keep { shelf, tokens, salt, sequence: sequence.clone() }).is_err() {
            self.disk.pending.fetch_sub(1, Relaxed);
            self.disk.store.counts.dropped.fetch_add(1, Relaxed);
        }
    }
}
