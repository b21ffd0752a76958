//! Recurrent layers. All take x (..., time, input) and give the hidden states of all times (..., time, hidden).

use super::{Activation, Layer, affine, truth, uniform};
use crate::{Module, Param};
use lapis::shape::show;
use lapis::{Array, Error, Result, ops};

/// Uniform in ±1/√hidden.
fn draw(hidden: usize, shape: &[usize]) -> Result<Param> {
    uniform(1.0 / (hidden as f64).sqrt(), shape).map(Param::new)
}

fn draw_if(wanted: bool, hidden: usize, shape: &[usize]) -> Result<Option<Param>> {
    wanted.then(|| draw(hidden, shape)).transpose()
}

/// Entry `t` along the axis before the last, without that axis.
fn at(x: &Array, t: usize) -> Result<Array> {
    let mut ranges = vec![(None, None, 1); x.ndim()];
    ranges[x.ndim() - 2] = (Some(t as i64), Some(t as i64 + 1), 1);
    ops::squeeze(&ops::slice(x, &ranges)?, [-2])
}

/// The number of times of x, or an error.
fn times(layer: &str, x: &Array) -> Result<usize> {
    match x.shape() {
        &[.., times, _] if times > 0 => Ok(times),
        s => {
            let s = show(s);
            Err(Error::shape(format!(
                "[{layer}] x of shape {s}; (..., time, features) with at least one time is taken"
            )))
        }
    }
}

/// `n` equal parts of the last axis.
fn parts<const N: usize>(x: &Array) -> Result<[Array; N]> {
    let parts = ops::split(x, N, -1)?;
    parts.try_into().map_err(|_| Error::shape("[split] another number of parts"))
}

/// `h = f(x Wxhᵀ + h Whhᵀ + bias)` (`nn.RNN`). Parameters are uniform in ±1/√hidden.
#[derive(Module, Clone, Debug)]
#[module(repr)]
pub struct RNN {
    /// (hidden, input).
    #[name = "Wxh"]
    pub wxh: Param,
    /// (hidden, hidden).
    #[name = "Whh"]
    pub whh: Param,
    /// (hidden,).
    pub bias: Option<Param>,
    #[plain]
    nonlinearity: Activation,
}

impl RNN {
    /// MLX's default nonlinearity is [`tanh`](crate::activations::tanh).
    ///
    /// # Errors
    /// Sizes too large.
    pub fn new(input: usize, hidden: usize, bias: bool, nonlinearity: Activation) -> Result<RNN> {
        let wxh = draw(hidden, &[hidden, input])?;
        let whh = draw(hidden, &[hidden, hidden])?;
        Ok(RNN { wxh, whh, bias: draw_if(bias, hidden, &[hidden])?, nonlinearity })
    }

    /// From a first hidden state (..., hidden).
    ///
    /// # Errors
    /// Shapes that do not fit; what the nonlinearity returns.
    pub fn forward_from(&self, x: &Array, hidden: Option<&Array>) -> Result<Array> {
        let n = times("RNN", x)?;
        let x = affine(x, &self.wxh, self.bias.as_deref())?;
        let mut hidden = hidden.cloned();
        let mut all = Vec::with_capacity(n);
        for t in 0..n {
            let now = at(&x, t)?;
            let sum = match &hidden {
                Some(h) => affine(h, &self.whh, Some(&now))?,
                None => now,
            };
            let h = (self.nonlinearity)(&sum)?;
            all.push(h.clone());
            hidden = Some(h);
        }
        ops::stack(&all, -2)
    }

    fn repr(&self) -> String {
        let (hidden, input) = (self.wxh.shape()[0], self.wxh.shape()[1]);
        format!("input_dims={input}, hidden_size={hidden}, bias={}", truth(self.bias.is_some()))
    }
}

impl Layer for RNN {
    fn forward(&self, x: &Array) -> Result<Array> {
        self.forward_from(x, None)
    }
}

/// Gated recurrent unit (`nn.GRU`): `h = (1 - z) n + z h` with gates r, z and `n = tanh(x_n + r (h Whnᵀ + bhn))`.
/// Parameters are uniform in ±1/√hidden; rows of r, z, n follow each other.
#[derive(Module, Clone, Debug)]
#[module(repr)]
pub struct GRU {
    /// (3 hidden, input).
    #[name = "Wx"]
    pub wx: Param,
    /// (3 hidden, hidden).
    #[name = "Wh"]
    pub wh: Param,
    /// (3 hidden,).
    pub b: Option<Param>,
    /// (hidden,).
    pub bhn: Option<Param>,
    hidden: usize,
}

impl GRU {
    /// From `input` to `hidden` features.
    ///
    /// # Errors
    /// Sizes too large.
    pub fn new(input: usize, hidden: usize, bias: bool) -> Result<GRU> {
        let wx = draw(hidden, &[3 * hidden, input])?;
        let wh = draw(hidden, &[3 * hidden, hidden])?;
        let b = draw_if(bias, hidden, &[3 * hidden])?;
        Ok(GRU { wx, wh, b, bhn: draw_if(bias, hidden, &[hidden])?, hidden })
    }

    /// From a first hidden state (..., hidden).
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward_from(&self, x: &Array, hidden: Option<&Array>) -> Result<Array> {
        let times = times("GRU", x)?;
        let x = affine(x, &self.wx, self.b.as_deref())?;
        let mut hidden = hidden.cloned();
        let mut all = Vec::with_capacity(times);
        for t in 0..times {
            let [xr, xz, xn] = parts(&at(&x, t)?)?;
            let h = match &hidden {
                Some(h) => {
                    let [hr, hz, hn] = parts(&affine(h, &self.wh, None)?)?;
                    let hn = super::scale_shift(&hn, None, self.bhn.as_ref())?;
                    let r = ops::sigmoid(&ops::add(&xr, &hr)?)?;
                    let z = ops::sigmoid(&ops::add(&xz, &hz)?)?;
                    let n = ops::tanh(&ops::add(&xn, ops::multiply(&r, &hn)?)?)?;
                    ops::add(ops::multiply(ops::subtract(1, &z)?, &n)?, ops::multiply(&z, h)?)?
                }
                None => {
                    let (r, z) = (ops::sigmoid(&xr)?, ops::sigmoid(&xz)?);
                    let n = match &self.bhn {
                        Some(bhn) => ops::add(&xn, ops::multiply(&r, bhn)?)?,
                        None => xn,
                    };
                    ops::multiply(ops::subtract(1, &z)?, ops::tanh(&n)?)?
                }
            };
            all.push(h.clone());
            hidden = Some(h);
        }
        ops::stack(&all, -2)
    }

    fn repr(&self) -> String {
        let (input, bias) = (self.wx.shape()[1], truth(self.b.is_some()));
        format!("input_dims={input}, hidden_size={}, bias={bias}", self.hidden)
    }
}

impl Layer for GRU {
    fn forward(&self, x: &Array) -> Result<Array> {
        self.forward_from(x, None)
    }
}

/// Long short-term memory (`nn.LSTM`): `c = f c + i g`, `h = o tanh(c)`. Parameters are uniform in ±1/√hidden; rows of
/// i, f, g, o follow each other.
#[derive(Module, Clone, Debug)]
#[module(repr)]
pub struct LSTM {
    /// (4 hidden, input).
    #[name = "Wx"]
    pub wx: Param,
    /// (4 hidden, hidden).
    #[name = "Wh"]
    pub wh: Param,
    /// (4 hidden,).
    pub bias: Option<Param>,
    hidden: usize,
}

impl LSTM {
    /// From `input` to `hidden` features.
    ///
    /// # Errors
    /// Sizes too large.
    pub fn new(input: usize, hidden: usize, bias: bool) -> Result<LSTM> {
        let wx = draw(hidden, &[4 * hidden, input])?;
        let wh = draw(hidden, &[4 * hidden, hidden])?;
        Ok(LSTM { wx, wh, bias: draw_if(bias, hidden, &[4 * hidden])?, hidden })
    }

    /// The hidden states and the cells of all times.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward(&self, x: &Array) -> Result<(Array, Array)> {
        self.forward_from(x, None, None)
    }

    /// From a first hidden state and a first cell (..., hidden).
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward_from(&self, x: &Array, hidden: Option<&Array>, cell: Option<&Array>) -> Result<(Array, Array)> {
        let times = times("LSTM", x)?;
        let x = affine(x, &self.wx, self.bias.as_deref())?;
        let (mut hidden, mut cell) = (hidden.cloned(), cell.cloned());
        let (mut all_hidden, mut all_cells) = (Vec::with_capacity(times), Vec::with_capacity(times));
        for t in 0..times {
            let now = at(&x, t)?;
            let gates = match &hidden {
                Some(h) => affine(h, &self.wh, Some(&now))?,
                None => now,
            };
            let [i, f, g, o] = parts(&gates)?;
            let new = ops::multiply(ops::sigmoid(&i)?, ops::tanh(&g)?)?;
            let c = match &cell {
                Some(c) => ops::add(ops::multiply(ops::sigmoid(&f)?, c)?, &new)?,
                None => new,
            };
            let h = ops::multiply(ops::sigmoid(&o)?, ops::tanh(&c)?)?;
            all_hidden.push(h.clone());
            all_cells.push(c.clone());
            (hidden, cell) = (Some(h), Some(c));
        }
        Ok((ops::stack(&all_hidden, -2)?, ops::stack(&all_cells, -2)?))
    }

    fn repr(&self) -> String {
        let (input, bias) = (self.wx.shape()[1], truth(self.bias.is_some()));
        format!("input_dims={input}, hidden_size={}, bias={bias}", self.hidden)
    }
}
