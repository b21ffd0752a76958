//! GPTQ (Frantar, Ashkboos, Hoefler and Alistarh 2022, arXiv 2210.17323): columns are rounded one after the other, and those that
//! are still to come take up the error, weighed by how the inputs of the layer go together.
//!
//! The matrix of those inputs, the sum of `xᵀ x`, comes from one pass of the source over the calibration text, its factors are
//! taken in double precision, and updates of later columns are products, a group at a time: `out * in²` multiplications a layer.

use super::codes::pack;
use super::layers::{install, numbers};
use super::state::digest_of;
use super::{Listener, State, note_plain, state::fingerprint};
use lapis::ops::quantize::{Format, Quantized, quantize};
use lapis::{Array, Dtype, Error, Result, eval, ops};
use lapis_lm::original::pack as round;
use lapis_lm::{Batch, Formats, Model, Original, Sequence};
use lapis_nn::record::{Product, by_path, record};
use lapis_nn::{Params, Side, for_each_packable};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

/// Between two times that sums are saved.
const SAVE: Duration = Duration::from_secs(30);

/// Factors of the mean of the diagonal that are added to it; the next, where the one before leaves the matrix indefinite.
const DAMP: [f64; 3] = [0.01, 0.1, 1.0];

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gptq {
    /// Of linear layers and experts: affine.
    pub format: Format,
    /// Of what else can be packed, such as the table of tokens.
    pub fallback: Format,
}

impl Gptq {
    /// What tells this run from others.
    ///
    /// # Errors
    /// Weights that cannot be read.
    pub fn run(&self, original: &Original, windows: &[Vec<u32>]) -> Result<Value> {
        let form = |f: Format| json!([f.bits(), f.group()]);
        Ok(json!({
            "method": "gptq", "format": form(self.format), "fallback": form(self.fallback),
            "model": fingerprint(original.model())?, "text": digest_of(windows),
        }))
    }

    /// How each layer is packed, and which of them by this method.
    fn formats(&self, original: &Original) -> Result<(Formats, Vec<String>)> {
        let mut formats = original.formats(self.format)?;
        let mut learned = Vec::new();
        for_each_packable(original.model().copied().module_mut(), &mut |path, layer| {
            let Some(Some(format)) = formats.get_mut(path) else { return };
            if *format != self.format {
                return;
            }
            if layer.slot().is_some_and(|slot| matches!(slot.side, Side::Linear | Side::Stack)) {
                learned.push(path.to_string());
            } else if layer.matrix().columns().is_multiple_of(self.fallback.group()) {
                *format = self.fallback;
            } else {
                formats.insert(path.to_string(), None);
            }
        });
        Ok((formats, learned))
    }
}

/// Packs the original; gives the model and how its layers are packed, or nothing when the listener had it stop. Parts that are
/// done are in `state`, and a run that finds them there goes on to the same bits.
///
/// # Errors
/// Formats that are not affine; inputs that are no numbers; faults of files.
pub fn gptq(
    original: &Original,
    windows: &[Vec<u32>],
    how: Gptq,
    state: &State,
    listener: &mut dyn Listener,
) -> Result<Option<(Box<dyn Model>, Formats)>> {
    if !how.format.has_biases() {
        let mode = how.format.mode().name();
        return Err(Error::value(format!("[gptq] mode {mode} has codes of its own; gptq is for affine")));
    }
    let (formats, learned) = how.formats(original)?;
    note_plain(&formats, how.format, listener);
    // Matrices lie still in here while inputs are looked at.
    let mut model = original.model().copied();
    let Some(sums) = sums(&mut *model, &learned, windows, state, listener)? else { return Ok(None) };
    let mut factors = Factors::default();
    for (i, path) in learned.iter().enumerate() {
        listener.at("layers", i, learned.len());
        if listener.stop() {
            return Ok(None);
        }
        let part = format!("layer-{i:05}");
        let parts = match state.load(&part)? {
            Some((parts, _)) => parts,
            None => {
                let matrix = numbers(&mut *model, path)?;
                let parts = layer(&matrix, path, &sums, how.format, &mut factors)
                    .map_err(|e| Error::new(e.kind(), format!("[gptq] {path}: {}", plain(&e))))?;
                state.save(&part, &parts, &Value::Null)?;
                parts
            }
        };
        install(&mut *model, path, parts, how.format);
    }
    listener.at("layers", learned.len(), learned.len());
    round(&mut *model, &formats)?;
    Ok(Some((model, formats)))
}

/// An error without the name of the op.
fn plain(e: &Error) -> &str {
    let text = e.message();
    text.split_once("] ").filter(|(op, _)| op.starts_with('[')).map_or(text, |(_, rest)| rest)
}

// ------------------------------------------------------------------ how inputs go together

/// Sums of `xᵀ x` by layer; layers with the same inputs share one.
#[derive(Default)]
struct Sums {
    /// By name of the first layer that has it, with `#n` behind it for the n-th of a stack of matrices: float32 (in, in).
    all: Params,
    /// The name of a layer's sum.
    of: BTreeMap<String, String>,
}

/// One pass over the text, or what is left of it; nothing, when the listener had it stop.
fn sums(
    model: &mut dyn Model,
    learned: &[String],
    windows: &[Vec<u32>],
    state: &State,
    listener: &mut dyn Listener,
) -> Result<Option<Sums>> {
    let (mut sums, mut done) = (Sums::default(), 0);
    if let Some((all, note)) = state.load("sums")? {
        done = note["windows"].as_u64().unwrap_or(0) as usize;
        sums = Sums { all, of: serde_json::from_value(note["of"].clone()).unwrap_or_default() };
    }
    let save = |sums: &Sums, done: usize| state.save("sums", &sums.all, &json!({"windows": done, "of": sums.of}));
    let mut saved = Instant::now();
    for (i, window) in windows.iter().enumerate().skip(done) {
        listener.at("windows", i, windows.len());
        if listener.stop() {
            save(&sums, i)?;
            return Ok(None);
        }
        sums.add(products(model, window, learned)?)?;
        if i + 1 == windows.len() || saved.elapsed() > SAVE {
            save(&sums, i + 1)?;
            saved = Instant::now();
        }
    }
    listener.at("windows", windows.len(), windows.len());
    Ok(Some(sums))
}

/// What meets the matrices of `learned` while the model reads a window.
fn products(model: &mut dyn Model, window: &[u32], learned: &[String]) -> Result<Vec<(String, Product)>> {
    let n = window.len();
    let tokens = Array::from_vec(window.iter().map(|&t| t as i32).collect(), &[n]);
    let mut text = Sequence::whole();
    let (_, all) = record(|| model.logits(&model.hidden(&tokens, &mut Batch::one(n, &mut text))?))?;
    let mut all = by_path(model.module_mut(), all);
    all.retain(|(path, _)| learned.iter().any(|l| l == path));
    Ok(all)
}

impl Sums {
    fn add(&mut self, products: Vec<(String, Product)>) -> Result<()> {
        let (mut seen, mut added) = (HashMap::new(), Vec::new());
        for (path, product) in products {
            let Some(which) = &product.which else {
                let name = seen.entry(product.input.id()).or_insert_with(|| path.clone()).clone();
                self.of.insert(path.clone(), name.clone());
                if name == path {
                    self.grow(name.clone(), &product.input)?;
                    added.push(name);
                }
                continue;
            };
            let which = ops::astype(which, Dtype::Int32)?.to_vec::<i32>()?;
            self.of.insert(path.clone(), path.clone());
            for expert in which.iter().copied().collect::<BTreeSet<i32>>() {
                let own: Vec<i32> = (0..which.len() as i32).filter(|&i| which[i as usize] == expert).collect();
                let n = own.len();
                let name = format!("{path}#{expert}");
                self.grow(name.clone(), &ops::take(&product.input, &Array::from_vec(own, &[n]), 0)?)?;
                added.push(name);
            }
        }
        eval(added.iter().filter_map(|name| self.all.get(name)))
    }

    fn grow(&mut self, name: String, x: &Array) -> Result<()> {
        let x = ops::astype(&ops::reshape(x, &[-1, x.dim(-1) as i64])?, Dtype::Float32)?;
        let own = ops::matmul(&ops::transpose(&x, None)?, &x)?;
        let sum = match self.all.remove(&name) {
            Some(sum) => ops::add(sum, own)?,
            None => own,
        };
        self.all.insert(name, sum);
        Ok(())
    }
}

/// Upper Cholesky factors of the inverses of sums, those used last: float32 (in, in).
#[derive(Default)]
struct Factors(Option<(String, Array)>);

impl Factors {
    fn of(&mut self, name: &str, sum: &Array) -> Result<Array> {
        if let Some((last, factor)) = &self.0
            && last == name
        {
            return Ok(factor.clone());
        }
        let sum = ops::astype(sum, Dtype::Float64)?;
        let n = sum.dim(0);
        let mean = ops::mean(&ops::diag(&sum, 0)?, (), false)?.item::<f64>()?;
        if !mean.is_finite() {
            return Err(Error::eval("inputs that are no numbers; the weights are damaged"));
        }
        let mut failed = None;
        for damp in DAMP {
            let own = ops::multiply(ops::eye(n, n, 0, Some(Dtype::Float64))?, mean.max(1e-12) * damp)?;
            let factor = || -> Result<Array> {
                let lower = ops::linalg::cholesky(&ops::add(&sum, own)?, false)?;
                let upper = ops::linalg::cholesky(&ops::linalg::cholesky_inv(&lower, false)?, true)?;
                let upper = ops::astype(&upper, Dtype::Float32)?;
                eval([&upper])?;
                Ok(upper)
            };
            match factor() {
                Ok(factor) => {
                    self.0 = Some((name.to_string(), factor.clone()));
                    return Ok(factor);
                }
                Err(e) => failed = Some(e),
            }
        }
        Err(failed.unwrap_or_else(|| Error::eval("no factor")))
    }
}

// ------------------------------------------------------------------ codes

/// Codes, scales and biases of a layer's matrix, or stack of them.
fn layer(w: &Array, path: &str, sums: &Sums, format: Format, factors: &mut Factors) -> Result<Params> {
    let name = sums.of.get(path).map_or(path, String::as_str);
    let mut all = Vec::new();
    if w.ndim() == 2 {
        all.push(match sums.all.get(name) {
            Some(sum) => matrix(w, &factors.of(name, sum)?, format)?,
            None => quantize(w, format, None)?,
        });
    } else {
        for e in 0..w.dim(0) {
            let one = ops::squeeze(&ops::slice(w, &[(Some(e as i64), Some(e as i64 + 1), 1)])?, 0)?;
            let name = format!("{name}#{e}");
            all.push(match sums.all.get(&name) {
                Some(sum) => matrix(&one, &factors.of(&name, sum)?, format)?,
                // No token went there.
                None => quantize(&one, format, None)?,
            });
        }
    }
    let stacked = w.ndim() > 2;
    let join = |part: &dyn Fn(&Quantized) -> Option<Array>| -> Result<Array> {
        let all: Vec<Array> = all.iter().filter_map(part).collect();
        if stacked { ops::stack(&all, 0) } else { Ok(all[0].clone()) }
    };
    let parts = Params::from([
        ("weight".to_string(), join(&|q| Some(q.packed.clone()))?),
        ("scales".to_string(), join(&|q| Some(q.scales.clone()))?),
        ("biases".to_string(), join(&|q| q.biases.clone())?),
    ]);
    eval(parts.values())?;
    Ok(parts)
}

/// A matrix (out, in), packed with the upper factor (in, in) of the inverse of its inputs' sum.
fn matrix(w: &Array, upper: &Array, format: Format) -> Result<Quantized> {
    let (rows, columns, group) = (w.dim(0), w.dim(1), format.group());
    let (dtype, levels) = (w.dtype(), ((1u32 << format.bits()) - 1) as f32);
    let mut rest = ops::astype(w, Dtype::Float32)?;
    let mut codes = vec![0u8; rows * columns];
    let (mut scales, mut biases) = (Vec::new(), Vec::new());
    for from in (0..columns).step_by(group) {
        let part = |a: &Array, r: [usize; 2], c: [usize; 2]| {
            ops::slice(a, &[(Some(r[0] as i64), Some(r[1] as i64), 1), (Some(c[0] as i64), Some(c[1] as i64), 1)])
        };
        let own = part(&rest, [0, rows], [0, group])?;
        // Rounded to the type that they are stored in before codes are chosen.
        let q = quantize(&own, format, None)?;
        let stored = |a: &Array| ops::astype(a, dtype);
        let (scale, bias) = (stored(&q.scales)?, stored(q.biases.as_ref().unwrap_or(&q.scales))?);
        let square = part(upper, [from, from + group], [from, from + group])?.to_vec::<f32>()?;
        let mut w = own.to_vec::<f32>()?;
        let [s, b] = [&scale, &bias].map(|a| ops::astype(a, Dtype::Float32).and_then(|a| a.to_vec::<f32>()));
        let (s, b) = (s?, b?);
        for (r, w) in w.chunks_exact_mut(group).enumerate() {
            for k in 0..group {
                let code = ((w[k] - b[r]) / s[r]).round_ties_even().clamp(0.0, levels);
                codes[r * columns + from + k] = code as u8;
                let error = (w[k] - (code * s[r] + b[r])) / square[k * group + k];
                for (w, u) in w[k + 1..].iter_mut().zip(&square[k * group + k + 1..(k + 1) * group]) {
                    *w -= error * u;
                }
                // What is left here is the error, for the columns of later groups.
                w[k] = error;
            }
        }
        scales.push(scale);
        biases.push(bias);
        let to = from + group;
        if to < columns {
            let errors = Array::from_vec(w, &[rows, group]);
            let later = part(&rest, [0, rows], [group, columns - from])?;
            rest = ops::subtract(&later, ops::matmul(&errors, &part(upper, [from, to], [to, columns])?)?)?;
            eval([&rest])?;
        }
    }
    pack(&codes, &[rows, columns], ops::concatenate(&scales, 1)?, ops::concatenate(&biases, 1)?, format)
}
