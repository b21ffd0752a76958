//! Rotary positions of every kind that configs name.

use lapis::ops::fast::{Frequencies, rope};
use lapis::{Array, Error, Result, ops};
use serde_json::{Map, Value};
use std::f64::consts::PI;

/// Turns pairs of the first `dims` features of a head by angles that grow with the position.
#[derive(Clone, Debug)]
pub struct Rope {
    dims: usize,
    /// Pairs are neighbours, not halves apart.
    interleaved: bool,
    kind: Kind,
    /// Factor of the positions.
    scale: f64,
    /// Factor of the turned features.
    gain: f64,
}

#[derive(Clone, Debug)]
enum Kind {
    Base(f64),
    /// Wavelengths over 2 pi, one a pair.
    Given(Array),
    /// The base grows once a text is longer than the model was made for.
    Dynamic {
        base: f64,
        factor: f64,
        context: usize,
    },
}

/// A number in a scaling block.
fn number(block: &Map<String, Value>, key: &str) -> Option<f64> {
    block.get(key).and_then(Value::as_f64)
}

fn needed(block: &Map<String, Value>, key: &str) -> Result<f64> {
    let what = match block.get(key) {
        None => "is missing".into(),
        Some(v) => format!("is {v}, not a number above zero"),
    };
    let fault = || fault(format!("{key} {what}"));
    number(block, key).filter(|&x| x > 0.0 && x.is_finite()).ok_or_else(fault)
}

/// As [`needed`], of a number that may be left out.
fn optional(block: &Map<String, Value>, key: &str, default: f64) -> Result<f64> {
    if block.contains_key(key) { needed(block, key) } else { Ok(default) }
}

fn fault(what: impl std::fmt::Display) -> Error {
    Error::value(format!("[load] config.json: rope_scaling: {what}"))
}

/// The name of a scaling block's kind.
pub(crate) fn kind_of(block: &Map<String, Value>) -> &str {
    let kind = |key| block.get(key).and_then(Value::as_str);
    kind("type").or(kind("rope_type")).unwrap_or("default")
}

impl Rope {
    /// Plain, by a base.
    pub fn plain(dims: usize, base: f64, interleaved: bool) -> Rope {
        Rope { dims, interleaved, kind: Kind::Base(base), scale: 1.0, gain: 1.0 }
    }

    /// As [`Rope::plain`], the other way round: angles become smaller with the position.
    pub fn backwards(dims: usize, base: f64) -> Rope {
        let all: Vec<f32> = (0..dims / 2).map(|j| -base.powf(2.0 * j as f64 / dims as f64) as f32).collect();
        let n = all.len();
        Rope { kind: Kind::Given(Array::from_vec(all, &[n])), ..Rope::plain(dims, base, false) }
    }

    /// As a config's `rope_scaling` (or `rope_parameters`) says. `context` is `max_position_embeddings`.
    ///
    /// # Errors
    /// A kind that is not known; numbers that are missing.
    pub fn new(
        dims: usize,
        base: f64,
        interleaved: bool,
        scaling: Option<&Map<String, Value>>,
        context: Option<usize>,
    ) -> Result<Rope> {
        let plain = Rope::plain(dims, base, interleaved);
        if dims < 2 || !dims.is_multiple_of(2) {
            return Err(Error::value(format!("[load] rope: {dims} features of a head (head_dim) cannot be turned")));
        }
        let Some(block) = scaling else { return Ok(plain) };
        if let Some(v) = block.get("type").or(block.get("rope_type")).filter(|v| !v.is_string() && !v.is_null()) {
            return Err(fault(format!("type is {v}, not the name of a kind")));
        }
        let waves = || (0..dims / 2).map(move |j| base.powf(2.0 * j as f64 / dims as f64));
        let given = |all: Vec<f64>, gain: f64| {
            let n = all.len();
            let all = Array::from_vec(all.into_iter().map(|w| w as f32).collect(), &[n]);
            Ok(Rope { kind: Kind::Given(all), gain, ..plain.clone() })
        };
        match kind_of(block) {
            "default" | "mrope" => Ok(plain),
            "linear" => Ok(Rope { scale: 1.0 / needed(block, "factor")?, ..plain }),
            "dynamic" => {
                if dims < 4 {
                    return Err(fault("dynamic rope needs heads of 4 features"));
                }
                let factor = needed(block, "factor")?;
                let context = context.ok_or_else(|| fault("dynamic rope needs max_position_embeddings"))?;
                Ok(Rope { kind: Kind::Dynamic { base, factor, context }, ..plain })
            }
            "llama3" => {
                let factor = needed(block, "factor")?;
                let (low, high) = (needed(block, "low_freq_factor")?, needed(block, "high_freq_factor")?);
                let old = needed(block, "original_max_position_embeddings")?;
                if low >= high {
                    return Err(fault(format!("low_freq_factor is {low}, not below high_freq_factor, {high}")));
                }
                given(
                    waves()
                        .map(|w| {
                            let length = 2.0 * PI * w;
                            if length > old / low {
                                w * factor
                            } else if length > old / high && length < old / low {
                                let smooth = (old / length - low) / (high - low);
                                w / ((1.0 - smooth) / factor + smooth)
                            } else {
                                w
                            }
                        })
                        .collect(),
                    1.0,
                )
            }
            "yarn" | "deepseek_yarn" | "telechat3-yarn" => {
                let factor = needed(block, "factor")?;
                let old = optional(block, "original_max_position_embeddings", 4096.0)?;
                let turns = |n: f64| dims as f64 * (old / (n * 2.0 * PI)).ln() / (2.0 * base.ln());
                let low = turns(optional(block, "beta_fast", 32.0)?).floor().max(0.0);
                let mut high = turns(optional(block, "beta_slow", 1.0)?).ceil().min(dims as f64 - 1.0);
                if low == high {
                    high += 0.001;
                }
                let gain = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
                let of = |key, default| gain(number(block, key).unwrap_or(default));
                given(
                    waves()
                        .enumerate()
                        .map(|(j, w)| {
                            let kept = 1.0 - ((j as f64 - low) / (high - low)).clamp(0.0, 1.0);
                            let far = factor * w;
                            far * w / (far * kept + w * (1.0 - kept))
                        })
                        .collect(),
                    of("mscale", 1.0) / of("mscale_all_dim", 0.0),
                )
            }
            "longrope" | "su" => {
                let old = needed(block, "original_max_position_embeddings")?;
                let factor = context.map_or(1.0, |c| c as f64 / old);
                let gain = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / old.ln()).sqrt() };
                let gain = optional(block, "long_mscale", gain)?;
                let factors = match block.get("long_factor") {
                    Some(Value::Array(all)) => all.iter().map(Value::as_f64).collect(),
                    Some(v) => vec![v.as_f64(); dims / 2],
                    None => vec![Some(1.0); dims / 2],
                };
                if factors.len() != dims / 2 {
                    let n = factors.len();
                    return Err(fault(format!("long_factor has {n} numbers, the heads have {} pairs", dims / 2)));
                }
                let above = |f: Option<f64>| f.filter(|f| *f > 0.0 && f.is_finite());
                let long: Option<Vec<f64>> = factors.into_iter().map(above).collect();
                let long = long.ok_or_else(|| fault("long_factor has an entry that is no number above zero"))?;
                given(waves().zip(long).map(|(w, f)| w * f).collect(), gain)
            }
            "proportional" => {
                let part = optional(block, "partial_rotary_factor", 1.0)?;
                let (turned, factor) = ((dims as f64 * part) as usize, optional(block, "factor", 1.0)?);
                let wave = |(j, w): (usize, f64)| if 2 * j < turned { factor * w } else { f64::INFINITY };
                given(waves().enumerate().map(wave).collect(), 1.0)
            }
            other => Err(Error::unsupported(format!(
                "[load] config.json: rope_scaling: kind {other:?} is not known; known are default, linear, dynamic, llama3, \
                 yarn, longrope, proportional"
            ))),
        }
    }

    /// Turns `x` (1, heads, rows, width), whose first row is at position `at`.
    ///
    /// # Errors
    /// Heads narrower than `dims`.
    pub fn forward(&self, x: &Array, at: usize) -> Result<Array> {
        let x = if self.gain == 1.0 { x.clone() } else { self.scaled(x)? };
        let frequencies = match &self.kind {
            Kind::Base(base) => Frequencies::Base(*base),
            Kind::Given(all) => Frequencies::Given(all),
            Kind::Dynamic { base, factor, context } => return self.dynamic(&x, at, *base, *factor, *context),
        };
        rope(&x, self.dims, self.interleaved, frequencies, self.scale, at as i64)
    }

    /// As [`CachedHeads::rope`](lapis::ops::fast::CachedHeads), if it is only that, for what [`Rope::gained`] gives.
    pub(super) fn as_one(&self) -> Option<(usize, bool, Frequencies<'_>, f64)> {
        let frequencies = match &self.kind {
            Kind::Base(base) => Frequencies::Base(*base),
            Kind::Given(all) => Frequencies::Given(all),
            Kind::Dynamic { .. } => return None,
        };
        Some((self.dims, self.interleaved, frequencies, self.scale))
    }

    /// Whether features that are turned have a factor, too.
    pub(super) fn has_gain(&self) -> bool {
        self.gain != 1.0
    }

    /// Rows (rows, heads * width) with that factor.
    pub(super) fn gained(&self, x: &Array, heads: usize) -> Result<Array> {
        let rows = x.dim(0) as i64;
        let x = ops::reshape(x, &[1, rows, heads as i64, -1])?;
        ops::reshape(&self.scaled(&x)?, &[rows, -1])
    }

    /// Rows within `context` as ever; the base of each row beyond it is that of a text which ends there, as if texts
    /// came token by token: how they are cut into steps must not matter.
    fn dynamic(&self, x: &Array, at: usize, base: f64, factor: f64, context: usize) -> Result<Array> {
        let (n, all) = (x.dim(2), (None, None, 1));
        let rows = |from: usize, to: usize| ops::slice(x, &[all, all, (Some(from as i64), Some(to as i64), 1)]);
        let near = context.saturating_sub(at).min(n);
        let mut parts = Vec::new();
        if near > 0 {
            let plain = Frequencies::Base(base);
            parts.push(rope(&rows(0, near)?, self.dims, self.interleaved, plain, self.scale, at as i64)?);
        }
        for i in near..n {
            let (length, d) = ((at + i + 1) as f64, self.dims as f64);
            let grown = base * (factor * length / context as f64 - (factor - 1.0)).powf(d / (d - 2.0));
            let grown = Frequencies::Base(grown);
            parts.push(rope(&rows(i, i + 1)?, self.dims, self.interleaved, grown, self.scale, (at + i) as i64)?);
        }
        if parts.len() == 1 { Ok(parts.swap_remove(0)) } else { ops::concatenate(&parts, 2) }
    }

    /// The features that are turned, times the gain.
    fn scaled(&self, x: &Array) -> Result<Array> {
        if x.dim(3) == self.dims {
            return ops::multiply(x, self.gain);
        }
        let all = (None, None, 1);
        let cut = |from, to| ops::slice(x, &[all, all, all, (from, to, 1)]);
        let border = Some(self.dims as i64);
        ops::concatenate(&[ops::multiply(&cut(None, border)?, self.gain)?, cut(border, None)?], 3)
    }
}

/// What YaRN's `mscale_all_dim` does to the scale of the scores.
pub(crate) fn yarn_score_gain(scaling: Option<&Map<String, Value>>) -> f64 {
    let Some(block) = scaling.filter(|b| kind_of(b) != "default") else { return 1.0 };
    let (all, factor) = (number(block, "mscale_all_dim").unwrap_or(0.0), number(block, "factor").unwrap_or(1.0));
    if all == 0.0 || factor <= 1.0 { 1.0 } else { (0.1 * all * factor.ln() + 1.0).powi(2) }
}
