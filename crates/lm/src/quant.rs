//! The `quantization` block of a config: which tensors are packed, and how.

use crate::models::Model;
use lapis::ops::quantize::{Format, Mode};
use lapis::shape::show;
use lapis::{Array, Dtype, Error, Result};
use lapis_nn::{Side, Weight, for_each_packable};
use serde_json::{Map, Value};
use std::collections::{BTreeSet, HashMap};
use std::path::Path;

/// Formats by module path; paths that are not named follow the shapes of their tensors.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    base: Option<Format>,
    /// `None`: the layer is not packed.
    named: HashMap<String, Option<Format>>,
}

impl Plan {
    /// The plan of a config: its key `quantization`, else `quantization_config`, there or under `text_config`.
    ///
    /// # Errors
    /// A block that is malformed, a method that lapis does not read.
    pub fn from_config(config: &Map<String, Value>, dir: &Path) -> Result<Plan> {
        let text = config.get("text_config").and_then(Value::as_object);
        let block = config
            .get("quantization")
            .or_else(|| config.get("quantization_config"))
            .or_else(|| text.and_then(|t| t.get("quantization_config")));
        let Some(block) = block else { return Ok(Plan::default()) };
        let place = format!("{}: quantization", dir.join("config.json").display());
        let Some(block) = block.as_object() else {
            return Err(Error::value(format!("[load] {place} is not an object")));
        };
        // What MLX packs names no method.
        match block.get("quant_method").and_then(Value::as_str) {
            None | Some("mxfp4") => {}
            // Tensors in MLX's form say how they are packed; others are put in it, or unpacked (see `imports`).
            Some("fp8" | "compressed-tensors" | "awq" | "gptq" | "bitnet") => return Ok(Plan::default()),
            Some(method) => {
                return Err(Error::unsupported(format!(
                    "[load] {place}: weights packed by {method:?} are not read; known are awq, bitnet, \
                     compressed-tensors, fp8, gptq, mxfp4.\n  Use an MLX conversion of the model, or one that is not packed"
                )));
            }
        }
        let base = if block.contains_key("bits") || block.contains_key("mode") {
            Some(format(block, None, &place)?)
        } else {
            None
        };
        let mut named = HashMap::new();
        for (path, value) in block {
            match value {
                Value::Bool(true) => named.insert(path.clone(), base),
                Value::Bool(false) => named.insert(path.clone(), None),
                Value::Object(own) => named.insert(path.clone(), Some(format(own, base, &format!("{place}.{path}"))?)),
                _ => None,
            };
        }
        Ok(Plan { base, named })
    }

    /// Layers that the block packs in a form of their own.
    pub(crate) fn own(&self) -> impl Iterator<Item = &str> {
        self.named.iter().filter(|(_, format)| format.is_some()).map(|(path, _)| path.as_str())
    }

    /// The base format, where the block has one.
    pub fn base(&self) -> Option<Format> {
        self.base
    }

    /// How to pack the layer at `path` of `columns` inputs; `None` leaves it as it is, which is also what becomes of inputs
    /// that are not a multiple of the group.
    pub fn choose(&self, path: &str, columns: usize) -> Option<Format> {
        let format = self.named.get(path).copied().unwrap_or(self.base)?;
        columns.is_multiple_of(format.group()).then_some(format)
    }

    /// The format of the packed layer at `path` with these tensors, of `columns` inputs.
    ///
    /// # Errors
    /// Shapes that belong to no format, or to another than the plan names.
    pub fn format(&self, path: &str, weight: &Array, scales: &Array, columns: usize) -> Result<Format> {
        let (words, groups) =
            (weight.shape().last().copied().unwrap_or(0), scales.shape().last().copied().unwrap_or(0));
        let fits = |f: &Format| words * 32 == columns * f.bits() && groups * f.group() == columns;
        if let Some(Some(named)) = self.named.get(path).or(Some(&self.base))
            && fits(named)
            && (scales.dtype() == Dtype::Uint8) != (named.mode() == Mode::Affine)
        {
            return Ok(*named);
        }
        // What the shapes say; a plan that differs was written for another file.
        let (bits, group) = (32 * words / columns.max(1), columns / groups.max(1));
        let mode = match (scales.dtype(), bits, group) {
            (Dtype::Uint8, 4, 16) => Mode::Nvfp4,
            (Dtype::Uint8, 4, 32) => Mode::Mxfp4,
            (Dtype::Uint8, 8, 32) => Mode::Mxfp8,
            (Dtype::Uint8, ..) => return Err(misfit(path, weight, scales, columns)),
            _ => Mode::Affine,
        };
        match Format::new(mode, Some(bits), Some(group)) {
            Ok(format) if fits(&format) => Ok(format),
            _ => Err(misfit(path, weight, scales, columns)),
        }
    }
}

/// What an error says, without the operation that said it.
fn said(e: &Error) -> &str {
    let text = e.message();
    text.split_once("] ").filter(|(op, _)| op.starts_with('[')).map_or(text, |(_, rest)| rest)
}

fn misfit(path: &str, weight: &Array, scales: &Array, columns: usize) -> Error {
    let (w, s) = (show(weight.shape()), show(scales.shape()));
    Error::value(format!("{path}: packed weight {w} with scales {s} is no form of a matrix of {columns} columns"))
}

/// Entries of a block; what is absent or null is the mode's default, or that of the whole block.
fn format(block: &Map<String, Value>, base: Option<Format>, place: &str) -> Result<Format> {
    let number = |key: &str| match block.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(v) => v
            .as_u64()
            .map(|n| Some(n as usize))
            .ok_or_else(|| Error::value(format!("[load] {place}: {key} is {v}, not a whole number"))),
    };
    let wrong = |e: &Error| Error::value(format!("[load] {place}: {}", said(e)));
    let method = block.get("quant_method").filter(|m| *m == "mxfp4");
    let mode = match block.get("mode").or(method).filter(|m| !m.is_null()) {
        Some(Value::String(name)) => Mode::from_name(name).map_err(|e| wrong(&e))?,
        Some(v) => return Err(Error::value(format!("[load] {place}: mode is {v}, not a name"))),
        None => base.map_or(Mode::Affine, Format::mode),
    };
    Format::new(mode, number("bits")?, number("group_size")?).map_err(|e| wrong(&e))
}

/// Has inputs of packed linear layers rounded as their weights are.
///
/// # Errors
/// A layer that is packed in another mode than nvfp4 and mxfp8, or has a bias, by its name.
pub fn round_inputs(model: &mut dyn Model) -> Result<()> {
    let names: BTreeSet<String> = model.module().parameters().into_keys().collect();
    let mut failed = None;
    for_each_packable(model.module_mut(), &mut |path, layer| {
        let linear = layer.slot().is_some_and(|slot| matches!(slot.side, Side::Linear));
        let Weight::Packed { weight, scales, format, .. } = layer.matrix() else { return };
        if !linear || failed.is_some() {
            return;
        }
        let why = match format.mode() {
            Mode::Nvfp4 | Mode::Mxfp8 if !names.contains(&format!("{path}.bias")) => {
                let (weight, scales, format) = (weight.clone(), Some(scales.clone()), *format);
                *layer.matrix_mut() = Weight::Rounding { weight, scales, format, frozen: true };
                return;
            }
            Mode::Nvfp4 | Mode::Mxfp8 => "it has a bias".to_string(),
            mode => format!("it is packed in mode {}", mode.name()),
        };
        failed = Some(Error::value(format!(
            "[load] inputs of {path} cannot be rounded: {why}; nvfp4 and mxfp8 without a bias can"
        )));
    });
    failed.map_or(Ok(()), Err)
}
