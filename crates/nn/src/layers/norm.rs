//! Normalisation layers.

use super::{Layer, check_eps, float, scale_shift, truth};
use crate::{Buffer, Mode, Module, Param};
use lapis::ops::fast;
use lapis::shape::show;
use lapis::{Array, Error, Result, ops};

fn ones(n: usize) -> Result<Param> {
    ops::ones::<f32>(&[n]).map(Param::new)
}

fn zeros(n: usize) -> Result<Param> {
    ops::zeros::<f32>(&[n]).map(Param::new)
}

/// Mean 0 and variance 1 along the last axis, then weight and bias (`nn.LayerNorm`).
#[derive(Module, Clone, Debug)]
#[module(repr)]
pub struct LayerNorm {
    /// (dims,), ones at first.
    pub weight: Option<Param>,
    /// (dims,), zeros at first.
    pub bias: Option<Param>,
    /// Added to the variance.
    pub eps: f64,
    dims: usize,
}

impl LayerNorm {
    /// With weight and bias; MLX's default `eps` is 1e-5.
    ///
    /// # Errors
    /// An `eps` that is not positive.
    pub fn new(dims: usize, eps: f64) -> Result<LayerNorm> {
        LayerNorm::with(dims, eps, true, true)
    }

    /// With weight if `affine`, and bias if `affine` and `bias`.
    ///
    /// # Errors
    /// An `eps` that is not positive.
    pub fn with(dims: usize, eps: f64, affine: bool, bias: bool) -> Result<LayerNorm> {
        check_eps("LayerNorm", eps)?;
        let weight = affine.then(|| ones(dims)).transpose()?;
        let bias = (affine && bias).then(|| zeros(dims)).transpose()?;
        Ok(LayerNorm { weight, bias, eps, dims })
    }

    /// A norm of given parameters, `(dims,)` each.
    ///
    /// # Errors
    /// An `eps` that is not positive.
    pub fn from_parts(dims: usize, eps: f64, weight: Option<Param>, bias: Option<Param>) -> Result<LayerNorm> {
        check_eps("LayerNorm", eps)?;
        Ok(LayerNorm { weight, bias, eps, dims })
    }

    fn repr(&self) -> String {
        format!("{}, eps={}, affine={}", self.dims, float(self.eps), truth(self.weight.is_some()))
    }
}

impl Layer for LayerNorm {
    fn forward(&self, x: &Array) -> Result<Array> {
        fast::layer_norm(x, self.weight.as_deref(), self.bias.as_deref(), self.eps)
    }
}

/// Root mean square 1 along the last axis, then weight (`nn.RMSNorm`).
#[derive(Module, Clone, Debug)]
#[module(repr)]
pub struct RMSNorm {
    /// (dims,), ones at first.
    pub weight: Param,
    /// Added to the mean square.
    pub eps: f64,
}

impl RMSNorm {
    /// MLX's default `eps` is 1e-5.
    ///
    /// # Errors
    /// An `eps` that is not positive.
    pub fn new(dims: usize, eps: f64) -> Result<RMSNorm> {
        check_eps("RMSNorm", eps)?;
        Ok(RMSNorm { weight: ones(dims)?, eps })
    }

    fn repr(&self) -> String {
        format!("{}, eps={}", self.weight.size(), float(self.eps))
    }
}

impl Layer for RMSNorm {
    fn forward(&self, x: &Array) -> Result<Array> {
        fast::rms_norm(x, Some(&self.weight), self.eps)
    }
}

/// Mean 0 and variance 1 of each sample's channel over its spatial axes: x (batch, spatial axes, dims)
/// (`nn.InstanceNorm`).
#[derive(Module, Clone, Debug)]
#[module(repr)]
pub struct InstanceNorm {
    /// (dims,), ones at first.
    pub weight: Option<Param>,
    /// (dims,), zeros at first.
    pub bias: Option<Param>,
    dims: usize,
    /// Added to the variance.
    pub eps: f64,
}

impl InstanceNorm {
    /// MLX's defaults: `eps` 1e-5, not `affine`.
    ///
    /// # Errors
    /// An `eps` that is not positive.
    pub fn new(dims: usize, eps: f64, affine: bool) -> Result<InstanceNorm> {
        check_eps("InstanceNorm", eps)?;
        let weight = affine.then(|| ones(dims)).transpose()?;
        let bias = affine.then(|| zeros(dims)).transpose()?;
        Ok(InstanceNorm { weight, bias, dims, eps })
    }

    fn repr(&self) -> String {
        format!("{}, eps={}, affine={}", self.dims, float(self.eps), truth(self.weight.is_some()))
    }
}

impl Layer for InstanceNorm {
    fn forward(&self, x: &Array) -> Result<Array> {
        if x.ndim() < 3 {
            let s = show(x.shape());
            return Err(Error::shape(format!(
                "[InstanceNorm] x of shape {s}; (batch, spatial axes, channels) is taken"
            )));
        }
        let first = ops::moveaxis(x, -1, 1)?;
        let flat = ops::flatten(&first, 2, -1)?;
        let y = fast::layer_norm(&flat, None, None, self.eps)?;
        let y = ops::moveaxis(&ops::reshape(&y, first.shape())?, 1, -1)?;
        scale_shift(&y, self.weight.as_ref(), self.bias.as_ref())
    }
}

/// Mean 0 and variance 1 of each sample's groups of channels (`nn.GroupNorm`): x (batch, axes, dims). Group g takes
/// the channels `c % groups == g`, or with `pytorch_compatible` a run of neighbouring channels.
#[derive(Module, Clone, Debug)]
#[module(repr)]
pub struct GroupNorm {
    /// (dims,), zeros at first.
    pub bias: Option<Param>,
    /// (dims,), ones at first.
    pub weight: Option<Param>,
    groups: usize,
    dims: usize,
    /// Added to the variance.
    pub eps: f64,
    pytorch_compatible: bool,
}

impl GroupNorm {
    /// MLX's defaults: `eps` 1e-5, `affine`, not `pytorch_compatible`.
    ///
    /// # Errors
    /// An `eps` that is not positive; groups that do not divide the channels.
    pub fn new(groups: usize, dims: usize, eps: f64, affine: bool, pytorch_compatible: bool) -> Result<GroupNorm> {
        check_eps("GroupNorm", eps)?;
        if groups == 0 || dims == 0 || !dims.is_multiple_of(groups) {
            return Err(Error::value(format!("[GroupNorm] {dims} channels do not divide into {groups} groups")));
        }
        let bias = affine.then(|| zeros(dims)).transpose()?;
        let weight = affine.then(|| ones(dims)).transpose()?;
        Ok(GroupNorm { bias, weight, groups, dims, eps, pytorch_compatible })
    }

    fn repr(&self) -> String {
        let (affine, compatible) = (truth(self.weight.is_some()), truth(self.pytorch_compatible));
        let eps = float(self.eps);
        format!("{}, {}, eps={eps}, affine={affine}, pytorch_compatible={compatible}", self.groups, self.dims)
    }
}

impl Layer for GroupNorm {
    fn forward(&self, x: &Array) -> Result<Array> {
        if x.ndim() < 2 || x.shape()[x.ndim() - 1] != self.dims {
            let (s, dims) = (show(x.shape()), self.dims);
            return Err(Error::shape(format!("[GroupNorm] x of shape {s}; (batch, axes, {dims}) is taken")));
        }
        let (batch, groups) = (x.shape()[0], self.groups);
        let each = x.size() / (batch * groups).max(1);
        let y = if self.pytorch_compatible {
            let size = self.dims / groups;
            let split = ops::reshape(x, &[batch, each / size, groups, size])?;
            let together = ops::transpose(&split, Some(&[0, 2, 1, 3]))?;
            let lines = ops::reshape(&together, &[batch, groups, each])?;
            let y = fast::layer_norm(&lines, None, None, self.eps)?;
            ops::transpose(&ops::reshape(&y, together.shape())?, Some(&[0, 2, 1, 3]))?
        } else {
            let lines = ops::reshape(x, &[batch, each, groups])?;
            let mean = ops::mean(&lines, 1, true)?;
            let var = ops::var(&lines, 1, true, 0)?;
            ops::multiply(ops::subtract(&lines, &mean)?, ops::rsqrt(&ops::add(&var, self.eps)?)?)?
        };
        scale_shift(&ops::reshape(&y, x.shape())?, self.weight.as_ref(), self.bias.as_ref())
    }
}

/// What a [`BatchNorm`] does beside its channels; the default is MLX's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNormOptions {
    /// Added to the variance.
    pub eps: f64,
    /// Part of the new value in the running one.
    pub momentum: f64,
    /// Whether there are weight and bias.
    pub affine: bool,
    /// Whether mean and variance are averaged over calls, for use in evaluation.
    pub track_running_stats: bool,
}

impl Default for BatchNormOptions {
    fn default() -> Self {
        BatchNormOptions { eps: 1e-5, momentum: 0.1, affine: true, track_running_stats: true }
    }
}

/// Mean 0 and variance 1 of each channel over the batch: x (batch, axes, features), 2 to 4 axes (`nn.BatchNorm`).
///
/// In training a forward pass moves the running statistics, which evaluation uses; they are lazy arrays like any other,
/// so evaluate them (they are among the parameters) from time to time.
#[derive(Module, Clone, Debug)]
#[module(repr)]
pub struct BatchNorm {
    /// (features,), ones at first.
    pub weight: Option<Param>,
    /// (features,), zeros at first.
    pub bias: Option<Param>,
    /// (features,), zeros at first.
    pub running_mean: Option<Buffer>,
    /// (features,), ones at first; of the unbiased variance.
    pub running_var: Option<Buffer>,
    features: usize,
    #[plain]
    options: BatchNormOptions,
    mode: Mode,
}

impl BatchNorm {
    /// With default options.
    ///
    /// # Errors
    /// None for sizes that fit in memory.
    pub fn new(features: usize) -> Result<BatchNorm> {
        BatchNorm::with(features, BatchNormOptions::default())
    }

    /// With these options.
    ///
    /// # Errors
    /// An `eps` that is not positive.
    pub fn with(features: usize, options: BatchNormOptions) -> Result<BatchNorm> {
        check_eps("BatchNorm", options.eps)?;
        let (affine, track) = (options.affine, options.track_running_stats);
        Ok(BatchNorm {
            weight: affine.then(|| ones(features)).transpose()?,
            bias: affine.then(|| zeros(features)).transpose()?,
            running_mean: track.then(|| ops::zeros::<f32>(&[features]).map(Buffer::new)).transpose()?,
            running_var: track.then(|| ops::ones::<f32>(&[features]).map(Buffer::new)).transpose()?,
            features,
            options,
            mode: Mode::Train,
        })
    }

    fn repr(&self) -> String {
        let o = &self.options;
        let (eps, momentum) = (float(o.eps), float(o.momentum));
        let (affine, track) = (truth(o.affine), truth(o.track_running_stats));
        format!("{}, eps={eps}, momentum={momentum}, affine={affine}, track_running_stats={track}", self.features)
    }

    /// The running value with its part of a new one.
    fn moved(&self, running: &Buffer, new: &Array) -> Result<()> {
        let m = self.options.momentum;
        let new = ops::stop_gradient(new)?;
        running.set(ops::add(ops::multiply(running.get(), 1.0 - m)?, ops::multiply(&new, m)?)?);
        Ok(())
    }
}

impl Layer for BatchNorm {
    fn forward(&self, x: &Array) -> Result<Array> {
        let s = show(x.shape());
        if !(2..=4).contains(&x.ndim()) {
            return Err(Error::shape(format!("[BatchNorm] x of shape {s}; 2 to 4 axes are taken")));
        }
        let axes: Vec<i32> = (0..x.ndim() as i32 - 1).collect();
        let training = self.mode.is_training();
        if training && x.shape()[..x.ndim() - 1].iter().product::<usize>() == 1 {
            return Err(Error::shape(format!(
                "[BatchNorm] x of shape {s} has one value a channel; training needs more, or evaluation mode"
            )));
        }
        let (mean, var) = match (&self.running_mean, &self.running_var) {
            (Some(mean), Some(var)) if !training => (mean.get(), var.get()),
            (running_mean, running_var) => {
                let mean = ops::mean(x, axes.as_slice(), false)?;
                let var = ops::var(x, axes.as_slice(), false, 0)?;
                if let (Some(running_mean), Some(running_var), true) = (running_mean, running_var, training) {
                    self.moved(running_mean, &mean)?;
                    self.moved(running_var, &ops::var(x, axes.as_slice(), false, 1)?)?;
                }
                (mean, var)
            }
        };
        let scale = ops::rsqrt(&ops::add(&var, self.options.eps)?)?;
        let y = ops::multiply(ops::subtract(x, &mean)?, &scale)?;
        scale_shift(&y, self.weight.as_ref(), self.bias.as_ref())
    }
}
