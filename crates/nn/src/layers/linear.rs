//! Products with a matrix of parameters.

use super::{Layer, LowRank, Mix, Side, Slot, Weight, truth, uniform};
use crate::quantize::{Packing, Quantize};
use crate::{Mode, Module, Param, record};
use lapis::distributed::Group;
use lapis::ops::quantize::{Format, quantize};
use lapis::{Array, Result, ops};
use std::sync::Arc;

/// `x @ weight.T + bias`: weight (output, input), both uniform in ±1/√input (`nn.Linear`).
///
/// [`nn::quantize`](crate::quantize) packs the weight in place; the layer then is what MLX calls `QuantizedLinear`, or
/// `QQLinear` when inputs are rounded too.
#[derive(Module, Clone, Debug)]
#[module(repr, kind, quantize, mode)]
pub struct Linear {
    /// The matrix: parameters `weight`, or `weight`, `scales` and `biases` when it is packed.
    #[flatten]
    pub weight: Weight,
    /// (output,).
    pub bias: Option<Param>,
    /// What fine-tuning adds to the matrix: parameters `lora_a`, `lora_b` and, for DoRA, `m`.
    #[flatten]
    pub change: Option<Box<LowRank>>,
    /// What takes the place of the change where rows of a step are those of several fine-tuned models.
    #[plain]
    pub mix: Option<Arc<Mix>>,
    /// The processes that hold the other columns of the matrix.
    #[plain]
    pub(crate) summed: Option<Group>,
    mode: Mode,
}

impl Linear {
    /// From `input` to `output` features.
    ///
    /// # Errors
    /// A matrix too large to exist.
    pub fn new(input: usize, output: usize, bias: bool) -> Result<Linear> {
        Linear::with_bound((1.0 / input as f64).sqrt(), input, output, bias)
    }

    /// As [`Linear::new`], uniform in ±k.
    pub(crate) fn with_bound(k: f64, input: usize, output: usize, bias: bool) -> Result<Linear> {
        let weight = Weight::dense(uniform(k, &[output, input])?);
        let bias = bias.then(|| uniform(k, &[output]).map(Param::new)).transpose()?;
        Ok(Linear { weight, bias, change: None, mix: None, summed: None, mode: Mode::Train })
    }

    /// A packed layer with a random weight and a bias of zeros, all frozen (`nn.QuantizedLinear`).
    ///
    /// # Errors
    /// An input size that is not a multiple of the group.
    pub fn quantized(input: usize, output: usize, bias: bool, format: Format) -> Result<Linear> {
        let weight = uniform((1.0 / input as f64).sqrt(), &[output, input])?;
        let bias = bias.then(|| ops::zeros::<f32>(&[output]).map(Param::fixed)).transpose()?;
        let weight = Weight::packed(quantize(&weight, format, None)?);
        Ok(Linear { weight, bias, change: None, mix: None, summed: None, mode: Mode::Train })
    }

    /// A layer whose inputs are rounded as its weight is: `format` is nvfp4 or mxfp8 (`nn.QQLinear`). In training mode
    /// it holds numbers, after [`Module::eval`] codes.
    ///
    /// # Errors
    /// Another format; an input size that is not a multiple of the group.
    pub fn rounding(input: usize, output: usize, format: Format) -> Result<Linear> {
        let mut layer = Linear::new(input, output, false)?;
        layer.quantize(Packing::from(format).with_input()?)?;
        Ok(layer)
    }

    /// A layer of given parameters.
    pub fn from_parts(weight: Weight, bias: Option<Array>) -> Linear {
        Linear { weight, bias: bias.map(Param::new), change: None, mix: None, summed: None, mode: Mode::Train }
    }

    /// (input, output) features.
    pub fn dims(&self) -> (usize, usize) {
        let (output, input) = self.weight.dims();
        (input, output)
    }

    fn repr(&self) -> String {
        let (input, output) = self.dims();
        let mut text = format!("input_dims={input}, output_dims={output}");
        if !matches!(self.weight, Weight::Rounding { .. }) {
            text += &format!(", bias={}", truth(self.bias.is_some()));
        }
        if let Some(f) = self.weight.format() {
            text += &format!(", group_size={}, bits={}, mode={}", f.group(), f.bits(), f.mode().name());
        }
        text
    }

    fn shown_kind(&self) -> &'static str {
        match self.weight {
            Weight::Dense { .. } => "Linear",
            Weight::Packed { .. } => "QuantizedLinear",
            Weight::Rounding { .. } => "QQLinear",
        }
    }

    fn set_mode(&mut self, mode: Mode) {
        self.weight.set_mode(mode);
        if let Some(change) = &mut self.change {
            change.set_mode(mode, &self.weight);
        }
    }
}

impl Layer for Linear {
    fn forward(&self, x: &Array) -> Result<Array> {
        let y = match (&self.mix, &self.change, self.summed) {
            (Some(mix), ..) => mix.project(x, &self.weight, self.bias.as_deref())?,
            (None, Some(change), _) => change.project(x, &self.weight, self.bias.as_deref())?,
            (None, None, None) => self.weight.project(x, self.bias.as_deref())?,
            (None, None, Some(group)) => {
                let part = self.weight.project(x, None)?;
                super::scale_shift(&group.all_sum(&part)?, None, self.bias.as_ref())?
            }
        };
        record::note(&self.weight, &y, || Ok((x.clone(), None)))?;
        Ok(y)
    }
}

impl Quantize for Linear {
    fn quantize(&mut self, packing: Packing) -> Result<()> {
        if packing.input && self.bias.is_some() {
            return Err(lapis::Error::value("[quantize] a layer that rounds its inputs has no bias"));
        }
        self.weight.quantize(packing)?;
        self.weight.set_mode(self.mode);
        Ok(())
    }

    fn matrix(&self) -> &Weight {
        &self.weight
    }

    fn matrix_mut(&mut self) -> &mut Weight {
        &mut self.weight
    }

    fn slot(&mut self) -> Option<Slot<'_>> {
        Some(Slot { side: Side::Linear, change: &mut self.change })
    }

    fn mix(&mut self) -> Option<&mut Option<Arc<Mix>>> {
        Some(&mut self.mix)
    }
}

/// `y[o] = x2ᵀ weight[o] x1 + bias[o]`: weight (output, input2, input1), uniform in ±1/√input1 like the bias
/// (`nn.Bilinear`).
#[derive(Module, Clone, Debug)]
#[module(repr)]
pub struct Bilinear {
    /// (output, input2, input1).
    pub weight: Param,
    /// (output,).
    pub bias: Option<Param>,
}

impl Bilinear {
    /// From `input1` and `input2` to `output` features.
    ///
    /// # Errors
    /// Sizes too large.
    pub fn new(input1: usize, input2: usize, output: usize, bias: bool) -> Result<Bilinear> {
        let k = (1.0 / input1 as f64).sqrt();
        let weight = Param::new(uniform(k, &[output, input2, input1])?);
        let bias = bias.then(|| uniform(k, &[output]).map(Param::new)).transpose()?;
        Ok(Bilinear { weight, bias })
    }

    /// x1 (..., input1) and x2 (..., input2) with the same leading axes to (..., output).
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward(&self, x1: &Array, x2: &Array) -> Result<Array> {
        let (out, in2, in1) = self.sizes();
        let w = ops::reshape(&self.weight, &[out * in2, in1])?;
        let y = super::affine(&ops::reshape(x1, &[-1, in1 as i64])?, &w, None)?;
        let y = ops::swapaxes(&ops::reshape(&y, &[-1, out as i64, in2 as i64])?, -2, -1)?;
        let y = ops::squeeze(&ops::matmul(&ops::reshape(x2, &[-1, 1, in2 as i64])?, &y)?, [1])?;
        let mut shape = x1.shape().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = out;
        }
        let y = ops::reshape(&y, &shape)?;
        super::scale_shift(&y, None, self.bias.as_ref())
    }

    fn sizes(&self) -> (usize, usize, usize) {
        let s = self.weight.shape();
        (s[0], s[1], s[2])
    }

    fn repr(&self) -> String {
        let (out, in2, in1) = self.sizes();
        let bias = truth(self.bias.is_some());
        format!("input1_dims={in1}, input2_dims={in2}, output_dims={out}, bias={bias}")
    }
}

/// Gives its input (`nn.Identity`).
#[derive(Module, Clone, Copy, Debug, Default)]
pub struct Identity;

impl Layer for Identity {
    fn forward(&self, x: &Array) -> Result<Array> {
        Ok(x.clone())
    }
}
