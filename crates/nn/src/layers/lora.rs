//! Changes of low rank: what fine-tuning adds to a matrix that stays as it is (LoRA, arXiv 2106.09685), and the lengths
//! that it gives to the rows of the sum (DoRA, arXiv 2402.09353).
//!
//! A change stands inside the layer that it changes, so that a model is adapted in place and its fields keep their type.
//! Names and shapes of the parameters are mlx-lm's. Knows no file.

use super::{Dropout, Layer, Weight, uniform};
use crate::{Mode, Module, Param};
use lapis::{Array, Dtype, Error, Result, eval, ops};

/// Which way the matrix of a layer is used, and with it how the two factors lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// `x @ w.T`, w (output, input): A (input, rank), B (rank, output).
    Linear,
    /// Rows of w (number, dims): A (number, rank), B (rank, dims).
    Table,
    /// A stack of matrices w (experts, output, input): A (experts, rank, input), B (experts, output, rank).
    Stack,
}

/// Shapes of the parameters of a change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LowRankShapes {
    /// Of `lora_a`.
    pub a: Vec<usize>,
    /// Of `lora_b`.
    pub b: Vec<usize>,
    /// Of `m`: all axes of the matrix but the last.
    pub m: Vec<usize>,
}

impl Side {
    /// Shapes of a change of a matrix, or stack of matrices, of this shape.
    ///
    /// # Errors
    /// Another number of axes than this side has.
    pub fn shapes(self, weight: &[usize], rank: usize) -> Result<LowRankShapes> {
        let (a, b) = match (self, weight) {
            (Side::Linear, &[output, input]) => (vec![input, rank], vec![rank, output]),
            (Side::Table, &[number, dims]) => (vec![number, rank], vec![rank, dims]),
            (Side::Stack, &[experts, output, input]) => (vec![experts, rank, input], vec![experts, output, rank]),
            _ => return Err(Error::shape(format!("[lora] a weight of {} axes takes no such change", weight.len()))),
        };
        Ok(LowRankShapes { a, b, m: weight[..weight.len() - 1].to_vec() })
    }
}

/// A change of a matrix: `scale` times the product of two thin ones, and for DoRA the lengths of the rows of the sum.
#[derive(Module, Clone, Debug)]
pub struct LowRank {
    /// The factor that sees the input first.
    pub lora_a: Param,
    /// The other one.
    pub lora_b: Param,
    /// DoRA: lengths of the rows.
    pub m: Option<Param>,
    /// Of the input, in training.
    pub dropout: Dropout,
    scale: f64,
    #[plain]
    side: Side,
    /// `m` over the lengths of the rows of the changed matrix: known in evaluation, where none of them changes.
    #[plain]
    gain: Option<Array>,
}

/// Where a layer takes a change.
pub struct Slot<'a> {
    /// How its matrix is used.
    pub side: Side,
    /// The change that it has.
    pub change: &'a mut Option<Box<LowRank>>,
}

impl LowRank {
    /// A change that changes nothing yet: A uniform in ±1/√input (of a table: ±1/√number), B zero, lengths those that
    /// the rows have.
    ///
    /// # Errors
    /// A weight of another number of axes; `dropout` outside [0, 1).
    pub fn new(side: Side, weight: &Weight, rank: usize, scale: f64, dropout: f64, dora: bool) -> Result<LowRank> {
        let shape = weight.shape();
        let shapes = side.shapes(&shape, rank)?;
        let wide = if side == Side::Table { shape[0] } else { weight.columns() };
        let a = uniform((1.0 / wide as f64).sqrt(), &shapes.a)?;
        let b = ops::zeros::<f32>(&shapes.b)?;
        let m = if dora { Some(lengths(&ops::astype(&weight.numbers()?, Dtype::Float32)?)?) } else { None };
        LowRank::from_parts(side, [a, b], m, scale, dropout)
    }

    /// Of parameters that are there.
    ///
    /// # Errors
    /// `dropout` outside [0, 1).
    pub fn from_parts(side: Side, [a, b]: [Array; 2], m: Option<Array>, scale: f64, dropout: f64) -> Result<LowRank> {
        let m = m.map(Param::new);
        let dropout = Dropout::new(dropout)?;
        Ok(LowRank { lora_a: Param::new(a), lora_b: Param::new(b), m, dropout, scale, side, gain: None })
    }

    /// The factor of the product.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// What is added to the matrix, in its shape.
    ///
    /// # Errors
    /// Factors that do not fit each other.
    pub fn delta(&self) -> Result<Array> {
        let scaled = |p: &Param| ops::multiply(p, self.scale as f32);
        match self.side {
            Side::Linear => {
                ops::matmul(&ops::transpose(&scaled(&self.lora_b)?, None)?, &ops::transpose(&self.lora_a, None)?)
            }
            Side::Table => ops::matmul(&scaled(&self.lora_a)?, &self.lora_b),
            Side::Stack => ops::matmul(&scaled(&self.lora_b)?, &self.lora_a),
        }
    }

    /// The changed matrix, in the type of the numbers of `weight`.
    ///
    /// # Errors
    /// A weight that does not fit.
    pub fn merged(&self, weight: &Weight) -> Result<Array> {
        let w = weight.numbers()?;
        let sum = ops::add(&w, ops::astype(&self.delta()?, w.dtype())?)?;
        match &self.m {
            None => Ok(sum),
            Some(m) => {
                let gain = ops::divide(m, lengths(&ops::astype(&sum, Dtype::Float32)?)?)?;
                ops::astype(&ops::multiply(ops::expand_dims(&gain, -1)?, &sum)?, w.dtype())
            }
        }
    }

    /// `m` over the lengths of the rows of the changed matrix, which are no subject of training.
    fn gain(&self, weight: &Weight) -> Result<Option<Array>> {
        let Some(m) = &self.m else { return Ok(None) };
        if let Some(gain) = &self.gain {
            return Ok(Some(gain.clone()));
        }
        let sum = ops::add(weight.numbers()?, self.delta()?)?;
        let lengths = ops::stop_gradient(&lengths(&ops::astype(&sum, Dtype::Float32)?)?)?;
        ops::divide(m, lengths).map(Some)
    }

    /// In evaluation, lengths are computed once.
    pub fn set_mode(&mut self, mode: Mode, weight: &Weight) {
        self.gain = None;
        if !mode.is_training()
            && let Ok(Some(gain)) = self.gain(weight)
            && eval([&gain]).is_ok()
        {
            self.gain = Some(gain);
        }
    }

    /// `y`, which is `x @ w.T`, changed; `bias` is added.
    pub(crate) fn project(&self, x: &Array, weight: &Weight, bias: Option<&Array>) -> Result<Array> {
        let y = weight.project(x, if self.m.is_some() { None } else { bias })?;
        self.change(y, x, weight, bias)
    }

    /// As [`LowRank::project`] where `y` is `x @ w.T` with `bias` already.
    pub(super) fn project_onto(&self, y: Array, x: &Array, weight: &Weight, bias: Option<&Array>) -> Result<Array> {
        match (&self.m, bias) {
            // Lengths are given to what has no bias yet.
            (Some(_), Some(_)) => self.project(x, weight, bias),
            _ => self.change(y, x, weight, bias),
        }
    }

    /// `y`, changed: `x @ w.T` with the bias, for DoRA without.
    fn change(&self, y: Array, x: &Array, weight: &Weight, bias: Option<&Array>) -> Result<Array> {
        let dropped = self.dropout.forward(x)?;
        let z = match self.side {
            Side::Table => {
                let thin = ops::matmul(&dropped, &ops::transpose(&self.lora_b, None)?)?;
                ops::matmul(&thin, &ops::transpose(&self.lora_a, None)?)?
            }
            _ => ops::matmul(&ops::matmul(&dropped, &self.lora_a)?, &self.lora_b)?,
        };
        self.finish(y, z, x.dtype(), self.gain(weight)?, bias)
    }

    /// The rows `ids` of the changed table.
    pub(crate) fn rows(&self, ids: &Array, weight: &Weight) -> Result<Array> {
        let y = weight.rows(ids)?;
        let z = self.dropout.forward(&ops::matmul(&ops::take(&self.lora_a, ids, 0)?, &self.lora_b)?)?;
        let gain = self.gain(weight)?.map(|g| ops::expand_dims(&ops::take(&g, ids, 0)?, -1)).transpose()?;
        let dtype = y.dtype();
        self.finish(y, z, dtype, gain, None)
    }

    /// `y` (n, 1, output), which are rows `x` (m, 1, input), row `from[i]` times matrix `to[i]` of a stack, changed;
    /// `bias` (n, 1, output) is added where `y` lacks it, as it does for DoRA.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn gathered(
        &self,
        y: Array,
        x: &Array,
        [from, to]: [&Array; 2],
        weight: &Weight,
        bias: Option<&Array>,
    ) -> Result<Array> {
        let dropped = self.dropout.forward(x)?;
        let a = ops::matrix_transpose(&self.lora_a)?;
        let z = ops::gather_mm(&dropped, &a, Some(from), Some(to), false)?;
        let z = ops::gather_mm(&z, &ops::matrix_transpose(&self.lora_b)?, None, Some(to), false)?;
        let gain = self.gain(weight)?.map(|g| ops::expand_dims(&ops::take(&g, to, 0)?, 1)).transpose()?;
        self.finish(y, z, x.dtype(), gain, bias)
    }

    fn finish(&self, y: Array, z: Array, dtype: Dtype, gain: Option<Array>, bias: Option<&Array>) -> Result<Array> {
        let y = ops::add(&y, ops::astype(&ops::multiply(&z, self.scale as f32)?, dtype)?)?;
        let Some(gain) = gain else { return Ok(y) };
        let y = ops::multiply(ops::astype(&gain, dtype)?, &y)?;
        bias.map_or(Ok(y.clone()), |bias| ops::add(&y, bias))
    }
}

/// Lengths of rows.
fn lengths(w: &Array) -> Result<Array> {
    ops::sqrt(&ops::sum(&ops::square(w)?, -1, false)?)
}
