//! The matrix inside `Linear` and `Embedding`: as it is, packed, or packed with rounded inputs.
//!
//! One type for all three lets a model be packed in place after it was built, while its fields keep their type. The
//! names of the parameters are those that MLX gives to the layer of each kind.

use crate::quantize::Packing;
use crate::{Mode, Module, Param};
use lapis::ops::quantize::{Format, Quantized, dequantize, qqmm, quantize, quantized_matmul};
use lapis::transforms::custom_function;
use lapis::{Array, Error, Result, ops};

/// A matrix (output, input).
#[derive(Module, Clone, Debug)]
pub enum Weight {
    /// Numbers.
    Dense {
        /// (output, input).
        weight: Param,
    },
    /// Codes, their scales and, for affine ones, their biases. Never trained.
    Packed {
        /// Codes: uint32, last axis `input * bits / 32`.
        weight: Param,
        /// Scales: last axis `input / group`.
        scales: Param,
        /// Affine biases, like the scales.
        biases: Option<Param>,
        /// Mode, width and group.
        #[plain]
        format: Format,
    },
    /// Inputs are rounded too: numbers in training, which are packed at each use, codes and scales in evaluation.
    Rounding {
        /// Numbers, or codes.
        weight: Param,
        /// Scales of codes.
        scales: Option<Param>,
        /// Mode, width and group.
        #[plain]
        format: Format,
        /// Whether the numbers were frozen when they were packed.
        #[plain]
        frozen: bool,
    },
}

impl Weight {
    /// A matrix of numbers.
    pub fn dense(weight: Array) -> Weight {
        Weight::Dense { weight: Param::new(weight) }
    }

    /// A packed matrix.
    pub fn packed(q: Quantized) -> Weight {
        Weight::Packed {
            weight: Param::fixed(q.packed),
            scales: Param::fixed(q.scales),
            biases: q.biases.map(Param::fixed),
            format: q.format,
        }
    }

    /// (output, input) of the matrix that this stands for.
    pub fn dims(&self) -> (usize, usize) {
        let last = |a: &Array| (a.shape()[0], a.shape()[a.ndim() - 1]);
        match self {
            Weight::Dense { weight } | Weight::Rounding { weight, scales: None, .. } => last(weight),
            Weight::Packed { weight, format, .. } | Weight::Rounding { weight, format, .. } => {
                let (out, words) = last(weight);
                (out, words * 32 / format.bits())
            }
        }
    }

    /// The shape of the matrix, or stack of matrices, that this stands for.
    pub fn shape(&self) -> Vec<usize> {
        let (Weight::Dense { weight } | Weight::Packed { weight, .. } | Weight::Rounding { weight, .. }) = self;
        let mut shape = weight.shape().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = self.columns();
        }
        shape
    }

    /// The numbers, decoded where they are packed.
    ///
    /// # Errors
    /// Parts of a packed weight that do not fit each other.
    pub fn numbers(&self) -> Result<Array> {
        match (self, self.quantized()) {
            (_, Some(q)) => dequantize(&q, None),
            (Weight::Dense { weight } | Weight::Packed { weight, .. } | Weight::Rounding { weight, .. }, None) => {
                Ok(weight.value().clone())
            }
        }
    }

    /// Elements of a row of the matrix, or of those of a stack.
    pub fn columns(&self) -> usize {
        let last = |a: &Array| a.shape().last().copied().unwrap_or(0);
        match self {
            Weight::Dense { weight } | Weight::Rounding { weight, scales: None, .. } => last(weight),
            Weight::Packed { weight, format, .. } | Weight::Rounding { weight, format, .. } => {
                last(weight) * 32 / format.bits()
            }
        }
    }

    /// Mode, width and group, unless the weight is plain numbers.
    pub fn format(&self) -> Option<Format> {
        match self {
            Weight::Dense { .. } => None,
            Weight::Packed { format, .. } | Weight::Rounding { format, .. } => Some(*format),
        }
    }

    /// The parts of a packed weight.
    pub fn quantized(&self) -> Option<Quantized> {
        let (weight, scales, biases, format) = match self {
            Weight::Packed { weight, scales, biases, format } => (weight, scales, biases.as_ref(), format),
            Weight::Rounding { weight, scales: Some(scales), format, .. } => (weight, scales, None, format),
            _ => return None,
        };
        Some(Quantized {
            packed: weight.value().clone(),
            scales: scales.value().clone(),
            biases: biases.map(|b| b.value().clone()),
            global_scale: None,
            format: *format,
        })
    }

    /// `x @ w.T`, plus `bias` if given.
    ///
    /// # Errors
    /// A last axis of `x` that is not the weight's.
    pub fn project(&self, x: &Array, bias: Option<&Array>) -> Result<Array> {
        let y = match self {
            Weight::Dense { weight } => return super::affine(x, weight, bias),
            Weight::Rounding { weight, scales: None, format, .. } => rounding_product(x, weight, *format)?,
            packed => {
                let Some(q) = packed.quantized() else {
                    return Err(Error::value("[linear] a packed weight lacks its scales"));
                };
                if matches!(packed, Weight::Rounding { .. }) {
                    qqmm(x, &q, None)?
                } else {
                    quantized_matmul(x, &q, true)?
                }
            }
        };
        match bias {
            Some(bias) => ops::add(&y, bias),
            None => Ok(y),
        }
    }

    /// The rows `ids`, decoded.
    ///
    /// # Errors
    /// Indices that are not integers.
    pub fn rows(&self, ids: &Array) -> Result<Array> {
        match self {
            Weight::Dense { weight } | Weight::Rounding { weight, scales: None, .. } => ops::take(weight, ids, 0),
            _ => {
                let Some(q) = self.quantized() else {
                    return Err(Error::value("[embedding] a packed weight lacks its scales"));
                };
                // One row more, so that a single id is a matrix like any other.
                let lone = ids.ndim() == 0;
                let ids = if lone { ops::expand_dims(ids, [0])? } else { ids.clone() };
                let row = |a: &Array| ops::take(a, &ids, 0);
                let biases = q.biases.as_ref().map(row).transpose()?;
                let part = Quantized { packed: row(&q.packed)?, scales: row(&q.scales)?, biases, ..q };
                let rows = dequantize(&part, None)?;
                if lone { ops::squeeze(&rows, [0]) } else { Ok(rows) }
            }
        }
    }

    /// Packs a matrix of numbers.
    ///
    /// # Errors
    /// A last axis that is not a multiple of the group; a weight that is packed already.
    pub fn quantize(&mut self, packing: Packing) -> Result<()> {
        let Weight::Dense { weight } = self else {
            return Err(Error::value("[quantize] the weight is packed already"));
        };
        // Also for a weight that stays as it is until evaluation: its shape is checked now.
        let q = quantize(weight, packing.format, None)?;
        *self = if packing.input {
            Weight::Rounding { weight: weight.clone(), scales: None, format: packing.format, frozen: false }
        } else {
            Weight::packed(q)
        };
        Ok(())
    }

    /// Packs a [`Weight::Rounding`] for evaluation, or makes it numbers again for training.
    pub fn set_mode(&mut self, mode: Mode) {
        let packed = self.quantized();
        let Weight::Rounding { weight, scales, format, frozen } = self else { return };
        match (mode, packed) {
            (Mode::Eval, None) => {
                // The shape was checked when the weight was made.
                let Ok(q) = quantize(weight, *format, None) else { return };
                *frozen = weight.is_frozen();
                (*weight, *scales) = (Param::fixed(q.packed), Some(Param::fixed(q.scales)));
            }
            (Mode::Train, Some(q)) => {
                let Ok(numbers) = dequantize(&q, None) else { return };
                *weight = Param::new(numbers);
                if *frozen {
                    weight.freeze();
                }
                *scales = None;
            }
            _ => {}
        }
    }
}

/// `x @ w.T` of both rounded to `format`. Gradients are those of the product of the numbers themselves.
fn rounding_product(x: &Array, w: &Array, format: Format) -> Result<Array> {
    let product = custom_function(move |a| Ok(vec![qqmm(&a[0], &quantize(&a[1], format, None)?, None)?]));
    let product = product.vjp(|primals, cotangents, _| {
        let (x, w, g) = (&primals[0], &primals[1], &cotangents[0]);
        let rows = |a: &Array| ops::reshape(a, &[-1, a.shape()[a.ndim() - 1] as i64]);
        let dx = ops::matmul(g, w)?;
        let dw = ops::matmul(&ops::transpose(&rows(g)?, None)?, &rows(x)?)?;
        Ok(vec![ops::astype(&dx, x.dtype())?, ops::astype(&dw, w.dtype())?])
    });
    let mut outputs = product.call(&[x.clone(), w.clone()])?;
    outputs.pop().ok_or_else(|| Error::value("[linear] the product gave nothing"))
}
