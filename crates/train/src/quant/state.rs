//! What a run has done, in files, so that one that was killed goes on.
//!
//! A folder holds `run.json`, which says what the run is, and the parts that it has finished, each a file that has its name
//! once it is whole.

use crate::state::write;
use lapis::io::{self, Metadata, atomic::Lock};
use lapis::{Array, Error, Result, ops};
use lapis_lm::Model;
use lapis_nn::Params;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const RUN: &str = "run.json";

/// A folder of finished parts.
pub struct State {
    dir: PathBuf,
    /// Whether another run of the same kind had begun there.
    pub resumed: bool,
    /// All that tells the run from others.
    pub run: Value,
    /// No other run writes there meanwhile.
    _lock: Lock,
}

impl State {
    /// The state of a run that is wholly told by `run` (method, settings, fingerprint of the model, text), in the folder
    /// `dir`. What another run has left there is removed.
    ///
    /// # Errors
    /// A folder that is not one of states, cannot be written, or is that of a run that goes on.
    pub fn open(dir: &Path, run: &Value) -> Result<State> {
        let fail = |e: std::io::Error| Error::io(format!("[quantize] {}: {e}", dir.display()));
        let known = dir.join(RUN);
        // As reading text gives numbers, on both sides.
        let run: Value = serde_json::from_str(&run.to_string()).unwrap_or_default();
        let run = json!({"lapis": env!("CARGO_PKG_VERSION"), "run": run});
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        let lock = Lock::take(dir.with_file_name(format!(".{name}.lock")), "the state of its run there")
            .map_err(|why| Error::io(format!("[quantize] {}: {why}; name another --mlx-path", dir.display())))?;
        if dir.exists() {
            let text = std::fs::read(&known).map_err(|_| {
                Error::io(format!(
                    "[quantize] {} is where the state of this run belongs, and holds something else; move it away, or name \
                     another --mlx-path",
                    dir.display()
                ))
            })?;
            if serde_json::from_slice::<Value>(&text).is_ok_and(|old| old == run) {
                return Ok(State { dir: dir.to_path_buf(), resumed: true, run, _lock: lock });
            }
            std::fs::remove_dir_all(dir).map_err(fail)?;
        }
        std::fs::create_dir_all(dir).map_err(fail)?;
        write(&known, format!("{run:#}\n").as_bytes())?;
        Ok(State { dir: dir.to_path_buf(), resumed: false, run, _lock: lock })
    }

    fn file(&self, part: &str) -> PathBuf {
        self.dir.join(format!("{part}.safetensors"))
    }

    /// A part that is done: its arrays, and what was noted with them.
    ///
    /// # Errors
    /// A file that is damaged.
    pub fn load(&self, part: &str) -> Result<Option<(Params, Value)>> {
        let file = self.file(part);
        if !file.is_file() {
            return Ok(None);
        }
        let (arrays, metadata) = io::load_safetensors(file.as_path())?;
        let note = metadata.get("note").and_then(|n| serde_json::from_str(n).ok()).unwrap_or_default();
        Ok(Some((arrays.into_iter().collect(), note)))
    }

    /// Saves a part; the file of before is there until the new one is whole.
    ///
    /// # Errors
    /// Faults of computing and of the file.
    pub fn save(&self, part: &str, arrays: &Params, note: &Value) -> Result<()> {
        let metadata = Metadata::from_iter([("note".to_string(), note.to_string())]);
        io::save_safetensors(self.file(part), arrays, &metadata)
    }

    /// The run is over: nothing of its state is needed.
    ///
    /// # Errors
    /// A folder that cannot be removed.
    pub fn finish(self) -> Result<()> {
        std::fs::remove_dir_all(&self.dir)
            .map_err(|e| Error::io(format!("[quantize] {} could not be removed: {e}", self.dir.display())))
    }
}

/// FNV-1a.
fn digest(bytes: impl IntoIterator<Item = u8>) -> String {
    let hash =
        bytes.into_iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    format!("{hash:016x}")
}

/// Tells models apart: a digest of names, shapes and the first row of each parameter.
///
/// # Errors
/// Weights that cannot be read.
pub(super) fn fingerprint(model: &dyn Model) -> Result<String> {
    let mut bytes = Vec::new();
    for (name, value) in model.module().parameters() {
        bytes.extend(name.bytes());
        bytes.extend(value.shape().iter().flat_map(|n| n.to_le_bytes()));
        let row = ops::flatten(&value, 0, -1)?;
        let length = value.shape().last().copied().unwrap_or(1).min(value.size()) as i64;
        let row: Array = ops::astype(&ops::slice(&row, &[(None, Some(length), 1)])?, lapis::Dtype::Float32)?;
        bytes.extend(row.to_vec::<f32>()?.into_iter().flat_map(f32::to_le_bytes));
    }
    Ok(digest(bytes))
}

/// A digest of windows of tokens.
pub(super) fn digest_of(windows: &[Vec<u32>]) -> String {
    let words = windows.iter().flat_map(|w| std::iter::once(w.len() as u32).chain(w.iter().copied()));
    digest(words.flat_map(u32::to_le_bytes))
}
