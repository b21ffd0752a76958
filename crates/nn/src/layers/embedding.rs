//! Rows of a table, by number.

use super::{Layer, LowRank, Side, Slot, Weight};
use crate::quantize::{Packing, Quantize};
use crate::{Mode, Module, Param};
use lapis::ops::quantize::{Format, quantize};
use lapis::{Array, Dtype, Error, Result, random};

/// A table of vectors: weight (number, dims), normal with deviation √(1/dims) (`nn.Embedding`).
///
/// [`nn::quantize`](crate::quantize) packs the table in place (`nn.QuantizedEmbedding`); rows are decoded as they are
/// looked up.
#[derive(Module, Clone, Debug)]
#[module(repr, kind, quantize, mode)]
pub struct Embedding {
    /// The table: parameters `weight`, or `weight`, `scales` and `biases` when it is packed.
    #[flatten]
    pub weight: Weight,
    /// What fine-tuning adds to the table: parameters `lora_a`, `lora_b` and, for DoRA, `m`.
    #[flatten]
    pub change: Option<Box<LowRank>>,
}

fn table(number: usize, dims: usize) -> Result<Array> {
    let scale = Array::from_vec(vec![(1.0 / dims as f64).sqrt() as f32], &[]);
    random::normal(&[number, dims], Dtype::Float32, None, Some(&scale), None)
}

impl Embedding {
    /// `number` vectors of `dims` features.
    ///
    /// # Errors
    /// A table too large to exist.
    pub fn new(number: usize, dims: usize) -> Result<Embedding> {
        Ok(Embedding::from_weight(Weight::Dense { weight: Param::new(table(number, dims)?) }))
    }

    /// A packed table of random vectors (`nn.QuantizedEmbedding`).
    ///
    /// # Errors
    /// `dims` that are not a multiple of the group.
    pub fn quantized(number: usize, dims: usize, format: Format) -> Result<Embedding> {
        Ok(Embedding::from_weight(Weight::packed(quantize(&table(number, dims)?, format, None)?)))
    }

    /// A layer of a given table.
    pub fn from_weight(weight: Weight) -> Embedding {
        Embedding { weight, change: None }
    }

    /// `x @ weight.T`: the table as an output projection.
    ///
    /// # Errors
    /// A last axis of `x` that is not `dims`.
    pub fn as_linear(&self, x: &Array) -> Result<Array> {
        match &self.change {
            None => self.weight.project(x, None),
            Some(change) => change.project(x, &self.weight, None),
        }
    }

    fn repr(&self) -> String {
        let (number, dims) = self.weight.dims();
        let mut text = format!("{number}, {dims}");
        if let Some(f) = self.weight.format() {
            text += &format!(", group_size={}, bits={}, mode={}", f.group(), f.bits(), f.mode().name());
        }
        text
    }

    fn shown_kind(&self) -> &'static str {
        if self.weight.format().is_some() { "QuantizedEmbedding" } else { "Embedding" }
    }

    fn set_mode(&mut self, mode: Mode) {
        if let Some(change) = &mut self.change {
            change.set_mode(mode, &self.weight);
        }
    }
}

impl Layer for Embedding {
    /// The vectors of the numbers in `x`, along a new last axis.
    fn forward(&self, x: &Array) -> Result<Array> {
        match &self.change {
            None => self.weight.rows(x),
            Some(change) => change.rows(x, &self.weight),
        }
    }
}

impl Quantize for Embedding {
    fn quantize(&mut self, packing: Packing) -> Result<()> {
        if packing.input {
            return Err(Error::value("[quantize] an embedding has no input to round"));
        }
        self.weight.quantize(packing)
    }

    fn matrix(&self) -> &Weight {
        &self.weight
    }

    fn matrix_mut(&mut self) -> &mut Weight {
        &mut self.weight
    }

    fn slot(&mut self) -> Option<Slot<'_>> {
        Some(Slot { side: Side::Table, change: &mut self.change })
    }
}
