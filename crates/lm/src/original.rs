//! A model as numbers, with all that its files say beside weights: what learned quantization begins with and writes.

use crate::checkpoint::Checkpoint;
use crate::convert::{Beside, bits_per_weight, save};
use crate::fuse::Base;
use crate::generate::LanguageModel;
use crate::models::{self, Model, Packing};
use crate::partial::{Listener, Partial};
use crate::tokenizer::Tokenizer;
use lapis::ops::quantize::Format;
use lapis::{Error, Result, io};
use lapis_nn::{for_each_packable, quantize_where};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How layers are packed, by path; `None` leaves a layer as numbers.
pub type Formats = BTreeMap<String, Option<Format>>;

/// A model and its files.
pub struct Original {
    /// The model, its weights as numbers unless it was opened with [`Original::open_packed`].
    pub language: LanguageModel,
    /// Whether the files hold packed weights.
    pub packed: bool,
    config: Map<String, Value>,
    from: Option<PathBuf>,
    beside: Vec<(&'static str, Vec<u8>)>,
}

impl Original {
    /// Opens a model and makes its weights numbers.
    ///
    /// # Errors
    /// Whatever is wrong with the files; a model that gives embeddings and writes no text.
    pub fn open(base: Base<'_>) -> Result<Original> {
        let mut original = Original::open_packed(base)?;
        if !original.language.writes {
            return Err(Error::unsupported("[quantize] this model gives embeddings and foresees no text"));
        }
        let (mut model, mut failed) = (original.language.model.copied(), None);
        for_each_packable(model.module_mut(), &mut |_, layer| failed = failed.take().or(layer.dequantize().err()));
        if let Some(error) = failed {
            return Err(error);
        }
        original.language.model = Arc::from(model);
        Ok(original)
    }

    /// Opens a model as it is.
    ///
    /// # Errors
    /// Whatever is wrong with the files.
    pub fn open_packed(base: Base<'_>) -> Result<Original> {
        let (mut checkpoint, tokenizer, from, beside) = match base {
            Base::Path(dir) => {
                let checkpoint = Checkpoint::open(dir)?;
                let (tokenizer, beside) = (checkpoint.tokenizer()?, checkpoint.beside()?);
                (checkpoint, tokenizer, Some(dir.to_path_buf()), beside)
            }
            Base::Files(files) => {
                let weights = io::Bytes::copy(files.weights)?;
                let checkpoint = Checkpoint::from_bytes(files.name, files.config, weights)?;
                let config = serde_json::from_slice(files.tokenizer_config)
                    .map_err(|e| Error::io(format!("[load] {}/tokenizer_config.json: {e}", files.name)))?;
                let beside = [("tokenizer.json", files.tokenizer), ("tokenizer_config.json", files.tokenizer_config)];
                let beside = beside.map(|(name, bytes)| (name, bytes.to_vec())).to_vec();
                (checkpoint, Tokenizer::from_json(files.tokenizer, config)?, None, beside)
            }
        };
        let config = checkpoint.source.clone();
        let language = LanguageModel::new(&mut checkpoint, tokenizer)?;
        let packed = packed(&mut *language.model.copied());
        Ok(Original { language, packed, config, from, beside })
    }

    /// The model.
    pub fn model(&self) -> &dyn Model {
        &*self.language.model
    }

    /// How `convert -q` would pack each layer that can be packed; layers that the group does not divide stay numbers.
    ///
    /// # Errors
    /// A config without an architecture.
    pub fn formats(&self, base: Format) -> Result<Formats> {
        let rule = models::find(&self.config)?.quantize;
        let mut all = Formats::new();
        for_each_packable(self.model().copied().module_mut(), &mut |path, layer| {
            let format = match rule(path) {
                Packing::Base => Some(base),
                Packing::As(own) => Some(own),
                Packing::Never => None,
            };
            let fits = |f: &Format| layer.matrix().columns().is_multiple_of(f.group());
            all.insert(path.to_string(), format.filter(fits));
        });
        Ok(all)
    }

    /// A copy of the model, packed as `formats` says, to the nearest codes.
    ///
    /// # Errors
    /// Formats that do not fit the layers.
    pub fn nearest(&self, formats: &Formats) -> Result<Box<dyn Model>> {
        let mut model = self.model().copied();
        pack(&mut *model, formats)?;
        Ok(model)
    }

    /// Writes a model that has the layers of this one to the directory `to`, which must not exist, with the files that lie
    /// beside this one's weights. Gives the bits of a weight; nothing where the listener had it stop. Finished files of weights
    /// of an interrupted run are taken as they are.
    ///
    /// # Errors
    /// Faults of files; the target appears when it is complete.
    pub fn save(
        &self,
        mut model: Box<dyn Model>,
        packed: Packed<'_>,
        to: &Path,
        listener: &mut dyn Listener,
    ) -> Result<Option<f64>> {
        let mut config = self.config.clone();
        let block = Value::Object(block(&mut *model, packed.base, packed.every));
        let run = json!({"run": packed.run, "quantization": block, "shard": packed.shard});
        config.insert("quantization".into(), block.clone());
        config.insert("quantization_config".into(), block);
        let mut files = self.beside.clone();
        files.extend(packed.more.iter().cloned());
        let bits = bits_per_weight(model.module_mut());
        let partial = Partial::begin(to, &run, listener)?;
        let beside = Beside { config, from: self.from.as_deref(), files: &files };
        Ok(save(model, beside, packed.shard, partial, listener)?.then_some(bits))
    }
}

/// How a packed model is written.
pub struct Packed<'a> {
    /// The form that the config names first.
    pub base: Format,
    /// Whether the config names all layers, or those that differ.
    pub every: bool,
    /// Files beside the weights that the source does not have.
    pub more: &'a [(&'static str, Vec<u8>)],
    /// Bytes of a file of weights before the next one begins; 5 GiB by default.
    pub shard: Option<u64>,
    /// All that the weights depend on.
    pub run: &'a Value,
}

/// Whether any layer is packed.
fn packed(model: &mut dyn Model) -> bool {
    let mut any = false;
    for_each_packable(model.module_mut(), &mut |_, layer| any |= layer.is_quantized());
    any
}

/// How the layers of a model are packed.
pub fn formats_of(model: &mut dyn Model) -> Formats {
    let mut all = Formats::new();
    for_each_packable(model.module_mut(), &mut |path, layer| {
        all.insert(path.to_string(), layer.matrix().format());
    });
    all
}

/// Packs layers that are numbers as `formats` says, to the nearest codes; others stay.
///
/// # Errors
/// Formats that do not fit the layers.
pub fn pack(model: &mut dyn Model, formats: &Formats) -> Result<()> {
    quantize_where(model.module_mut(), &mut |path, _| formats.get(path).copied().flatten().map(Into::into))
}

/// The `quantization` of a config.
fn block(model: &mut dyn Model, base: Format, every: bool) -> Map<String, Value> {
    let form = |f: Format| json!({"group_size": f.group(), "bits": f.bits(), "mode": f.mode().name()});
    let mut block = form(base).as_object().cloned().unwrap_or_default();
    if every {
        block.extend(model.module().leaf_modules().into_iter().map(|(path, _)| (path, Value::Bool(false))));
    }
    for_each_packable(model.module_mut(), &mut |path, layer| match layer.matrix().format() {
        Some(format) if format == base && !every => {}
        Some(format) => drop(block.insert(path.to_string(), form(format))),
        None => drop(block.insert(path.to_string(), Value::Bool(false))),
    });
    block
}
