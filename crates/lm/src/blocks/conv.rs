//! Short convolutions: each channel with its own last few rows, of which a sequence keeps the tail.

use crate::batch::Batch;
use crate::weights::At;
use lapis::{Array, Dtype, Error, Result, ops};
use lapis_nn::{Layer, Linear, Module, Param};

/// A convolution of each channel with the rows before.
#[derive(Module, Clone)]
pub struct DepthwiseConv {
    /// (channels, kernel, 1).
    pub weight: Param,
    /// (channels).
    pub bias: Option<Param>,
}

impl DepthwiseConv {
    /// From a place in the names.
    ///
    /// # Errors
    /// As [`At::tensor`]; a kernel of no rows.
    pub fn load(at: &At, channels: usize, kernel: usize, bias: bool) -> Result<DepthwiseConv> {
        if kernel == 0 {
            return Err(Error::value("[load] config.json: a convolution with a kernel of 0 rows"));
        }
        Ok(DepthwiseConv {
            weight: at.param("weight", &[channels, kernel, 1])?,
            bias: bias.then(|| at.param("bias", &[channels])).transpose()?,
        })
    }

    /// Rows (rows, channels) after `tail` (kernel - 1, channels), zeros at the start of a sequence; gives the rows and
    /// the next tail. Sums in float32, tap by tap: a row's bits do not depend on which rows come with it.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn forward(&self, x: &Array, tail: Option<&Array>) -> Result<(Array, Array)> {
        let (rows, kernel) = (x.dim(0) as i64, self.weight.dim(1));
        let tail = match tail {
            Some(tail) => tail.clone(),
            None => ops::full(&[kernel - 1, x.dim(1)], 0.0, Some(x.dtype()))?,
        };
        let all = ops::concatenate(&[tail, x.clone()], 0)?;
        let tail = ops::contiguous(&ops::slice(&all, &[(Some(rows), None, 1)])?, false)?;
        let all = ops::astype(&all, Dtype::Float32)?;
        let weight = ops::astype(&ops::squeeze(self.weight.value(), -1)?, Dtype::Float32)?;
        let mut sum = match &self.bias {
            Some(bias) => ops::astype(bias, Dtype::Float32)?,
            None => ops::zeros::<f32>(&[1])?,
        };
        for (i, tap) in ops::split(&weight, kernel, 1)?.iter().enumerate() {
            let part = ops::slice(&all, &[(Some(i as i64), Some(i as i64 + rows), 1)])?;
            sum = ops::add(sum, ops::multiply(&part, ops::squeeze(tap, -1)?)?)?;
        }
        Ok((ops::astype(&sum, x.dtype())?, tail))
    }
}

/// `out_proj(C * conv(B * x))`, of `B, C, x = in_proj(rows)` (LFM2).
#[derive(Module, Clone)]
pub struct ShortConv {
    /// The convolution.
    pub conv: DepthwiseConv,
    /// To the three.
    pub in_proj: Linear,
    /// Back.
    pub out_proj: Linear,
}

impl ShortConv {
    /// From a place in the names.
    ///
    /// # Errors
    /// As [`At::linear`].
    pub fn load(at: &At, width: usize, kernel: usize, bias: bool) -> Result<ShortConv> {
        Ok(ShortConv {
            conv: DepthwiseConv::load(&at.at("conv"), width, kernel, bias)?,
            in_proj: at.linear("in_proj", width, 3 * width, bias)?,
            out_proj: at.linear("out_proj", width, width, bias)?,
        })
    }

    /// Rows to rows.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn forward(&self, x: &Array, layer: usize, batch: &mut Batch) -> Result<Array> {
        let parts = ops::split(&self.in_proj.forward(x)?, 3, -1)?;
        let [b, c, x] = &parts[..] else { return Err(Error::shape("[short_conv] three parts")) };
        let y = batch.each(layer, &[&ops::multiply(b, x)?], |rows, slot| {
            let (y, tail) = self.conv.forward(&rows[0], slot.state().and_then(<[Array]>::first))?;
            slot.set_state(vec![tail]);
            Ok(y)
        })?;
        self.out_proj.forward(&ops::multiply(c, y)?)
    }
}
