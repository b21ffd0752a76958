//! Files of what a model remembers of a prompt, as mlx-lm writes and reads them.
//!
//! `layout` puts layers into tensors and metadata, `forms` makes mlx-lm's caches of memories and back, `origin` says
//! which model a file is of.

mod forms;
mod layout;
mod origin;

pub use layout::Layout;

use crate::batch::{Batch, Memory, Sequence};
use crate::models::Model;
use lapis::io::{self, Metadata};
use lapis::{Array, Error, Result, eval};
use origin::Origin;
use std::path::{Path, PathBuf};

/// What a model remembers of a prompt.
#[derive(Clone, Debug)]
pub struct PromptCache {
    /// What it remembers.
    pub sequence: Sequence,
    /// The tokens, as many as the sequence has seen; zeros where another program wrote the file, which does not say.
    pub tokens: Vec<u32>,
    /// What else the file says: `model` and `tokenizer_config`, in mlx-lm's files.
    pub notes: Metadata,
}

impl PromptCache {
    /// Writes a file; `.safetensors` is added to a path without it. An old file stays until the new one is complete.
    ///
    /// # Errors
    /// A sequence that has seen nothing, or other tokens than these; faults of writing.
    pub fn save(&self, path: impl AsRef<Path>, model: &dyn Model, layout: Layout) -> Result<()> {
        let (seen, tokens) = (self.sequence.len(), self.tokens.len());
        if seen == 0 || seen != tokens {
            return Err(Error::value(format!("[prompt_cache] {tokens} tokens, of which {seen} were read")));
        }
        let outline = outline(model)?;
        let layers = self.sequence.layers();
        let stored: Vec<_> = groups(&outline, model)
            .map(|(at, group)| forms::store(layers.get(at..at + group.len()).unwrap_or_default()))
            .collect::<Result<_>>()?;
        let mut notes = self.notes.clone();
        notes.insert("lapis".into(), Origin::of(model, &outline, &self.tokens)?.to_text());
        let (tensors, metadata) = layout::write(&stored, &notes, layout)?;
        io::save_safetensors(path, &tensors, &metadata)
    }

    /// Reads a file of either layout, written for `model`.
    ///
    /// # Errors
    /// A file that cannot be read, is damaged, of another program or layout; of another model, dtype or number of
    /// layers; whose parts do not fit each other. What the file has and what the model has are both named.
    pub fn load(path: impl AsRef<Path>, model: &dyn Model) -> Result<PromptCache> {
        let path = with_suffix(path.as_ref());
        let fail = |what: String| Error::io(format!("[prompt_cache] {}: {what}", path.display()));
        let (tensors, metadata) = io::load_safetensors(&path)?;
        let (stored, mut notes) = layout::read(tensors, &metadata).map_err(fail)?;
        let outline = outline(model)?;
        let origin = notes.swap_remove("lapis").map(|text| Origin::from_text(&text)).transpose().map_err(fail)?;
        if let Some(origin) = &origin {
            origin.check(&Origin::of(model, &outline, &[])?).map_err(fail)?;
        }
        let groups: Vec<_> = groups(&outline, model).collect();
        if groups.len() != stored.len() {
            return Err(fail(format!("the file has {} layers, the model {}", stored.len(), groups.len())));
        }
        let mut layers = vec![Memory::Empty; outline.layers().len()];
        let mut seen = origin.as_ref().map(|o| o.tokens.len());
        for (i, ((at, group), stored)) in groups.into_iter().zip(stored).enumerate() {
            let (memories, end) = forms::restore(stored, group).map_err(|e| fail(format!("layer {i}: {e}")))?;
            if let Some(end) = end
                && *seen.get_or_insert(end) != end
            {
                let before = seen.unwrap_or_default();
                return Err(fail(format!("layer {i} has seen {end} tokens, what came before it {before}")));
            }
            layers[at..at + group.len()].clone_from_slice(&memories);
        }
        // Recurrences do not say how much they have seen, and do not need it.
        let seen = seen.unwrap_or(1);
        if seen == 0 {
            return Err(fail("nothing was read".into()));
        }
        // All layers that look at everything are alike, and go on so.
        let kv = layers.iter().find_map(|m| match m {
            Memory::Keys(keys) if keys.window().is_none() && keys.chunk().is_none() => Some(keys.options()),
            _ => None,
        });
        let mut sequence = Sequence::from_layers(layers, seen);
        sequence.set_options(kv.unwrap_or_default());
        eval(sequence.arrays())?;
        let tokens = origin.map_or_else(|| vec![0; seen], |o| o.tokens);
        Ok(PromptCache { sequence, tokens, notes })
    }

    /// What a file says of itself, without what the model remembers.
    ///
    /// # Errors
    /// A file that cannot be read, is damaged, or of another program.
    pub fn notes(path: impl AsRef<Path>) -> Result<Metadata> {
        let path = with_suffix(path.as_ref());
        let (_, metadata) = io::load_safetensors(&path)?;
        layout::notes(&metadata).map_err(|what| Error::io(format!("[prompt_cache] {}: {what}", path.display())))
    }
}

fn with_suffix(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".safetensors");
    match path.exists() || !Path::new(&name).exists() {
        true => path.to_path_buf(),
        false => name.into(),
    }
}

/// What the model remembers of one token, not computed: kinds, shapes and dtypes of all layers.
fn outline(model: &dyn Model) -> Result<Sequence> {
    let mut sequence = Sequence::new();
    let mut batch = Batch::one(1, &mut sequence);
    model.hidden(&Array::from_vec(vec![0i32], &[1]), &mut batch)?;
    batch.finish();
    Ok(sequence)
}

/// The memories that are one cache of mlx-lm's, and where they are: those of one layer, where it has any.
fn groups<'a>(outline: &'a Sequence, model: &dyn Model) -> impl Iterator<Item = (usize, &'a [Memory])> {
    let each = outline.layers().len().div_ceil(model.depth().max(1)).max(1);
    let layers = outline.layers().chunks(each).enumerate().map(move |(i, group)| (i * each, group));
    layers.filter(|(_, group)| !group.iter().all(|m| matches!(m, Memory::Empty)))
}
