//! Packing the weights of a module tree.

use crate::{Mix, Module, Slot, Weight};
use lapis::ops::quantize::{Format, Mode, dequantize, quantize as pack};
use lapis::{Error, Result};
use std::sync::Arc;

/// A layer whose weight can be packed in place. `#[module(quantize)]` on a type that derives [`Module`] makes
/// [`quantize`] find it.
pub trait Quantize: Module {
    /// Packs the weight as the packing says.
    ///
    /// # Errors
    /// A weight whose last axis is not a multiple of the group; a packing that the layer does not have.
    fn quantize(&mut self, packing: Packing) -> Result<()>;

    /// The weight.
    fn matrix(&self) -> &Weight;

    /// The weight, to change.
    fn matrix_mut(&mut self) -> &mut Weight;

    /// Where the layer takes a change of low rank, if it does.
    fn slot(&mut self) -> Option<Slot<'_>> {
        None
    }

    /// Where the layer takes the changes of several fine-tuned models, if it does.
    fn mix(&mut self) -> Option<&mut Option<Arc<Mix>>> {
        None
    }

    /// Puts the change of low rank, if there is one, into the weight: packed again as it was, or with `floats` left as
    /// numbers. Whether there was one.
    ///
    /// # Errors
    /// A change that does not fit the weight.
    fn merge(&mut self, floats: bool) -> Result<bool> {
        let Some(change) = self.slot().and_then(|slot| slot.change.take()) else { return Ok(false) };
        let (merged, format) = (change.merged(self.matrix())?, self.matrix().format());
        *self.matrix_mut() = match format.filter(|_| !floats) {
            Some(format) => Weight::packed(pack(&merged, format, None)?),
            None => Weight::dense(merged),
        };
        Ok(true)
    }

    /// Whether the weight is packed already.
    fn is_quantized(&self) -> bool {
        self.matrix().format().is_some()
    }

    /// Makes a packed weight numbers again; others stay.
    ///
    /// # Errors
    /// Parts of a weight that do not fit each other.
    fn dequantize(&mut self) -> Result<()> {
        if let Some(q) = self.matrix().quantized() {
            *self.matrix_mut() = Weight::dense(dequantize(&q, None)?);
        }
        Ok(())
    }
}

/// How to pack a layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packing {
    /// Mode, width and group.
    pub format: Format,
    /// Round the layer's input to the format too (nvfp4 and mxfp8; `quantize_input` in MLX).
    pub input: bool,
}

impl Packing {
    /// MLX's arguments: width and group default to those of the mode (affine: 4 bits in groups of 64).
    ///
    /// # Errors
    /// Numbers that the mode does not have.
    pub fn new(mode: Mode, bits: Option<usize>, group_size: Option<usize>) -> Result<Packing> {
        Ok(Packing { format: Format::new(mode, bits, group_size)?, input: false })
    }

    /// The same with the input rounded as well.
    ///
    /// # Errors
    /// Modes other than nvfp4 and mxfp8.
    pub fn with_input(self) -> Result<Packing> {
        if !matches!(self.format.mode(), Mode::Nvfp4 | Mode::Mxfp8) {
            let name = self.format.mode().name();
            return Err(Error::value(format!("[quantize] inputs are rounded in nvfp4 and mxfp8 only, not {name}")));
        }
        Ok(Packing { input: true, ..self })
    }
}

impl From<Format> for Packing {
    fn from(format: Format) -> Packing {
        Packing { format, input: false }
    }
}

/// Packs every layer that can be packed and is not yet (`nn.quantize`).
///
/// # Errors
/// As [`quantize_where`].
pub fn quantize<M: Module + ?Sized>(model: &mut M, packing: impl Into<Packing>) -> Result<()> {
    let packing = packing.into();
    quantize_where(model, &mut |_, _| Some(packing))
}

/// Packs the layers for which `choose`, asked with the dotted name and the layer, gives a packing (`class_predicate`).
///
/// # Errors
/// What the layers return, with their name; the layers before are packed then.
pub fn quantize_where<M: Module + ?Sized>(
    model: &mut M,
    choose: &mut dyn FnMut(&str, &dyn Quantize) -> Option<Packing>,
) -> Result<()> {
    let mut failed = None;
    walk(model, "", &mut |path, layer| {
        if failed.is_none()
            && !layer.is_quantized()
            && let Some(packing) = choose(path, layer)
            && let Err(error) = layer.quantize(packing)
        {
            failed = Some(Error::new(error.kind(), format!("{path}: {error}")));
        }
    });
    failed.map_or(Ok(()), Err)
}

/// Calls `f` with the dotted name of each layer whose weight can be packed, packed or not, and the layer.
pub fn for_each_packable<M: Module + ?Sized>(model: &mut M, f: &mut dyn FnMut(&str, &mut dyn Quantize)) {
    walk(model, "", f);
}

fn walk<M: Module + ?Sized>(module: &mut M, path: &str, f: &mut dyn FnMut(&str, &mut dyn Quantize)) {
    if let Some(layer) = module.as_quantize() {
        return f(path, layer);
    }
    module.fields_mut(&mut |name, field| {
        let path = if path.is_empty() { name.to_string() } else { format!("{path}.{name}") };
        walk(field, &path, f);
    });
}
