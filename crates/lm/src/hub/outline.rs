//! A model without its weights: configs, and of each weight file the header, in a file of the right length that takes
//! no room. What needs to know a model's shapes opens it like any other directory.

use super::fetch::{LANES, Remote, cannot};
use super::http::{Answer, Ask, Fault};
use super::{Hub, Name};
use lapis::{Error, Result};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// What is read beside the headers.
const CONFIGS: [&str; 4] =
    ["config.json", "generation_config.json", "hf_quant_config.json", "model.safetensors.index.json"];
/// Bytes in which most headers end.
const FIRST: u64 = 1 << 18;
/// The longest header of a weight file.
const LONGEST: u64 = 100 << 20;

/// A directory that looks like a model; gone when dropped.
pub struct Outline(PathBuf);

impl Outline {
    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.0
    }
}

impl Drop for Outline {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

impl Hub {
    /// The outline of a model that is not here.
    ///
    /// # Errors
    /// As [`Hub::model`].
    pub fn outline(&self, name: &Name) -> Result<Outline> {
        let (commit, files) = self.listing(name)?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |t| t.as_nanos());
        let dir = std::env::temp_dir().join(format!("lapis-outline-{}-{now}", std::process::id()));
        // Ours alone: an error where somebody else made it.
        fs::create_dir(&dir).map_err(|e| cannot("make", &dir, e))?;
        let outline = Outline(dir);
        let part = |f: &&Remote| {
            CONFIGS.contains(&f.path.as_str()) || (f.path.ends_with(".safetensors") && !f.path.contains('/'))
        };
        let queue: Vec<Remote> = files.iter().filter(part).cloned().collect();
        let (queue, failed) = (Mutex::new(queue), Mutex::new(None));
        std::thread::scope(|scope| {
            for _ in 0..2 * LANES {
                scope.spawn(|| {
                    loop {
                        let Some(file) = queue.lock().unwrap_or_else(|e| e.into_inner()).pop() else { break };
                        if let Err(e) = self.sketch(name, &commit, &file, outline.dir()) {
                            queue.lock().unwrap_or_else(|e| e.into_inner()).clear();
                            failed.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(e);
                        }
                    }
                });
            }
        });
        match failed.into_inner().unwrap_or_else(|e| e.into_inner()) {
            Some(error) => Err(error),
            None => Ok(outline),
        }
    }

    /// A small text file of a model, such as its card; `None` where there is none.
    ///
    /// # Errors
    /// As [`Hub::model`].
    pub fn text(&self, name: &Name, file: &str) -> Result<Option<String>> {
        if self.offline {
            return Ok(None);
        }
        let url = self.url(name, &name.revision, file);
        match self.client.send(Ask { method: "GET", url: &url, headers: &[], leave: true }, None) {
            Err(Fault::Status(status, ..)) if status.as_u16() == 404 => Ok(None),
            Err(fault) => Err(self.client.explain(name, &fault)),
            Ok(mut response) => {
                let mut bytes = Vec::new();
                let read = response.body_mut().as_reader().take(FIRST).read_to_end(&mut bytes);
                read.map_err(|e| self.client.explain(name, &Fault::Transport(e.to_string())))?;
                Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
            }
        }
    }

    /// Writes one file of an outline.
    fn sketch(&self, name: &Name, commit: &str, file: &Remote, dir: &Path) -> Result<()> {
        let url = self.url(name, commit, &file.path);
        let explain = |f: Fault| self.client.explain(name, &f);
        let weights = file.path.ends_with(".safetensors");
        let mut bytes = self.range(&url, if weights { file.size.min(FIRST) } else { file.size }).map_err(explain)?;
        if weights {
            let header = bytes.first_chunk::<8>().map_or(u64::MAX, |b| u64::from_le_bytes(*b));
            if header > LONGEST || header > file.size.saturating_sub(8) {
                return Err(Error::network(format!("[hub] {name}: {} is no safetensors file", file.path)));
            }
            if bytes.len() as u64 <= header + 7 {
                bytes = self.range(&url, header + 8).map_err(explain)?;
            }
            bytes.truncate(header as usize + 8);
        }
        let path = dir.join(&file.path);
        let write = || -> std::io::Result<()> {
            let mut out = File::create(&path)?;
            out.write_all(&bytes)?;
            out.set_len(file.size)
        };
        write().map_err(|e| cannot("write", &path, e))
    }

    /// The first bytes of a file.
    fn range(&self, url: &str, length: u64) -> Answer<Vec<u8>> {
        let headers =
            [("accept-encoding", "identity".to_string()), ("range", format!("bytes=0-{}", length.max(1) - 1))];
        let mut tries = 0;
        loop {
            let mut response = self.client.send(Ask { method: "GET", url, headers: &headers, leave: true }, None)?;
            let mut bytes = Vec::new();
            // A hub without ranges sends everything: the rest is left where it is.
            match response.body_mut().as_reader().take(length).read_to_end(&mut bytes) {
                Ok(n) if n as u64 == length => return Ok(bytes),
                _ if tries > 3 => return Err(Fault::Transport(format!("{url}: broken off"))),
                _ => tries += 1,
            }
        }
    }
}
