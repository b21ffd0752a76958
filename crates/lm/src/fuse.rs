//! An adapter made part of its model: another checkpoint, which needs no adapter.

use crate::adapter::Adapter;
use crate::checkpoint::Checkpoint;
use crate::convert::{Beside, bits_per_weight, save};
use crate::generate::Files;
use crate::models;
use crate::partial::{Listener, Partial, files};
use lapis::{Array, Error, Result, io, ops};
use lapis_nn::for_each_packable;
use serde_json::json;
use std::path::Path;

/// The model to fuse with.
#[derive(Clone, Copy)]
pub enum Base<'a> {
    /// A directory, or a GGUF file.
    Path(&'a Path),
    /// Files inside the program.
    Files(Files),
}

/// What was written.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Layers that were changed; of whole weights none are counted.
    pub layers: usize,
    /// Of layers that were packed again: how much of the change packing took away or added, over the change; by path.
    pub losses: Vec<(String, f64)>,
    /// Bits a weight.
    pub bits_per_weight: f64,
}

impl Report {
    /// The median of the losses.
    pub fn loss(&self) -> Option<f64> {
        let mut all: Vec<f64> = self.losses.iter().map(|(_, x)| *x).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied()
    }
}

/// Writes the model with the adapter in `adapter` as a part of it to the directory `to`, which must not exist. Packed weights are
/// packed again as they were; with `dequantize` all become numbers. Nothing comes back where the listener had it stop; the same run goes on
/// from the files of weights that were finished.
///
/// # Errors
/// A target that exists; whatever is wrong with model and adapter; a full disk. The target appears when it is complete.
pub fn fuse(
    base: Base<'_>,
    adapter: &Path,
    to: &Path,
    dequantize: bool,
    mut listener: impl Listener,
) -> Result<Option<Report>> {
    if to.exists() {
        let to = to.display();
        return Err(Error::io(format!("[fuse] {to} exists; remove it or name another directory with --save-path")));
    }
    let run = json!({"method": "fuse", "adapter": files(adapter), "dequantize": dequantize, "source": match base {
        Base::Path(dir) => files(dir),
        Base::Files(files) => json!(files.name),
    }});
    // What is wrong with the smaller of the two is told first.
    let adapter = Adapter::open(adapter)?;
    let mut checkpoint = match base {
        Base::Path(dir) => Checkpoint::open(dir)?,
        Base::Files(files) => Checkpoint::from_bytes(files.name, files.config, io::Bytes::copy(files.weights)?)?,
    };
    let mut config = checkpoint.source.clone();
    let mut model = models::load(&mut checkpoint)?;
    adapter.apply(&mut *model)?;
    let (mut report, mut failed) = (Report::default(), None);
    for_each_packable(model.module_mut(), &mut |path, layer| {
        let mut one = || -> Result<()> {
            if let Some(change) = layer.slot().and_then(|slot| slot.change.take()) {
                report.layers += 1;
                let (before, wanted) = (layer.matrix().numbers()?, change.merged(layer.matrix())?);
                if let Some(slot) = layer.slot() {
                    *slot.change = Some(change);
                }
                layer.merge(dequantize)?;
                if layer.is_quantized() {
                    let lost = length(&ops::subtract(layer.matrix().numbers()?, &wanted)?)?;
                    let change = length(&ops::subtract(&wanted, &before)?)?;
                    report.losses.push((path.to_string(), lost / change.max(f64::MIN_POSITIVE)));
                }
            }
            if dequantize { layer.dequantize() } else { Ok(()) }
        };
        failed = failed.take().or(one().err().map(|e| Error::new(e.kind(), format!("{path}: {e}"))));
    });
    if let Some(error) = failed {
        return Err(error);
    }
    let mut packed = false;
    for_each_packable(model.module_mut(), &mut |_, layer| packed |= layer.is_quantized());
    if !packed {
        config.remove("quantization");
        config.remove("quantization_config");
    }
    report.bits_per_weight = bits_per_weight(model.module_mut());
    let (from, files) = match base {
        Base::Path(dir) => (Some(dir), checkpoint.beside()?),
        Base::Files(files) => {
            let beside = [("tokenizer.json", files.tokenizer), ("tokenizer_config.json", files.tokenizer_config)];
            (None, beside.map(|(name, bytes)| (name, bytes.to_vec())).to_vec())
        }
    };
    drop(adapter);
    let partial = Partial::begin(to, &run, &mut listener)?;
    let done = save(model, Beside { config, from, files: &files }, None, partial, &mut listener)?;
    Ok(done.then_some(report))
}

/// The length of an array as a vector.
fn length(a: &Array) -> Result<f64> {
    let a = ops::astype(a, lapis::Dtype::Float32)?;
    ops::sqrt(&ops::sum(&ops::square(&a)?, (), false)?)?.item::<f32>().map(f64::from)
}
