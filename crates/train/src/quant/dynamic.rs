//! Dynamic quantization: more bits for the layers whose rounding moves most what the model foresees.
//!
//! A copy of the model has its weights rounded to few bits. The gradient of KL(model ‖ copy) by those weights, times what more bits
//! would change in them, says how much a layer gains; layers above a threshold get the bits, as many as the target allows.

use super::State;
use super::state::{digest_of, fingerprint};
use super::{Listener, note_plain};
use lapis::ops::quantize::{Format, dequantize, quantize};
use lapis::transforms::value_and_grad;
use lapis::{Array, Dtype, Error, Result, eval, ops};
use lapis_lm::convert::bits_per_weight;
use lapis_lm::original::pack;
use lapis_lm::{Batch, Formats, Model, Original, Sequence};
use lapis_nn::activations::log_softmax;
use lapis_nn::{Params, for_each_packable};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

/// Windows of a batch.
const BATCH: usize = 4;
/// Between two times that sums are saved.
const SAVE: Duration = Duration::from_secs(30);

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dynamic {
    /// Of most layers: affine.
    pub low: Format,
    /// Of those that gain most: affine.
    pub high: Format,
    /// The type of the sums of gradients.
    pub sums: Dtype,
    /// Compute values inside layers again for gradients.
    pub recompute: bool,
}

impl Dynamic {
    /// What tells this run from others.
    ///
    /// # Errors
    /// Weights that cannot be read.
    pub fn run(&self, original: &Original, windows: &[Vec<u32>]) -> Result<Value> {
        let form = |f: Format| json!([f.bits(), f.group()]);
        Ok(json!({
            "method": "dynamic", "low": form(self.low), "high": form(self.high), "sums": self.sums.to_string(),
            "model": fingerprint(original.model())?, "text": digest_of(windows),
        }))
    }

    /// How each layer is packed, and which of them may have either form.
    fn formats(&self, original: &Original) -> Result<(Formats, Vec<String>)> {
        let (low, high) = (original.formats(self.low)?, original.formats(self.high)?);
        let may = |path: &&String| low[*path] == Some(self.low) && high.get(*path) == Some(&Some(self.high));
        let open = low.keys().filter(may).cloned().collect();
        Ok((low, open))
    }
}

/// How much each layer gains by more bits: KL in nats a token, for a million of weights, to first order.
pub type Sensitivities = Vec<(String, f64)>;

/// Looks at the text; nothing, when the listener had it stop. Sums of gradients are in `state`, and a run that finds them there
/// goes on to the same bits.
///
/// # Errors
/// A model without layers to choose from; gradients that are no numbers; faults of files.
pub fn sensitivities(
    original: &Original,
    windows: &[Vec<u32>],
    how: Dynamic,
    state: &State,
    listener: &mut dyn Listener,
) -> Result<Option<Sensitivities>> {
    let (_, open) = how.formats(original)?;
    if open.is_empty() {
        return Err(Error::value(
            "[dynamic-quant] the model has no layers that both forms fit: nothing to choose from",
        ));
    }
    let rounded = |w: &Array, f: Format| dequantize(&quantize(w, f, None)?, None);
    let mut weights = Params::new();
    let mut failed = None;
    for_each_packable(original.model().copied().module_mut(), &mut |path, layer| {
        if open.iter().any(|o| o == path) {
            match layer.matrix().numbers() {
                Ok(w) => drop(weights.insert(format!("{path}.weight"), w)),
                Err(e) => failed = Some(e),
            }
        }
    });
    if let Some(error) = failed {
        return Err(error);
    }
    let low: Params =
        weights.iter().map(|(name, w)| Ok((name.clone(), rounded(w, how.low)?))).collect::<Result<_>>()?;
    eval(low.values())?;
    let (mut sums, mut done) = (Params::new(), 0);
    if let Some((all, note)) = state.load("sums")? {
        (sums, done) = (all, note["batches"].as_u64().unwrap_or(0) as usize);
    }
    let batches: Vec<&[Vec<u32>]> = windows.chunks(BATCH).collect();
    let mut saved = Instant::now();
    for (i, batch) in batches.iter().enumerate().skip(done) {
        listener.at("batches", i, batches.len());
        if listener.stop() {
            state.save("sums", &sums, &json!({"batches": i}))?;
            return Ok(None);
        }
        for (name, g) in gradients(original.model(), &low, batch, how.recompute)? {
            let g = ops::astype(&g, how.sums)?;
            let sum = match sums.remove(&name) {
                Some(sum) => ops::add(sum, g)?,
                None => g,
            };
            sums.insert(name, sum);
        }
        eval(sums.values())?;
        if i + 1 == batches.len() || saved.elapsed() > SAVE {
            state.save("sums", &sums, &json!({"batches": i + 1}))?;
            saved = Instant::now();
        }
    }
    let mut found = Vec::new();
    for path in open {
        let name = format!("{path}.weight");
        let (w, sum) = (&weights[&name], sums.get(&name));
        let sum =
            sum.ok_or_else(|| Error::io("[dynamic-quant] the state of the run is damaged; remove its directory"))?;
        let wide = |a: &Array| ops::astype(a, Dtype::Float32);
        let change = ops::subtract(wide(&low[&name])?, wide(&rounded(w, how.high)?)?)?;
        let gain = ops::sum(&ops::multiply(wide(sum)?, change)?, (), false)?.item::<f32>()?;
        let gain = f64::from(gain) / batches.len() as f64 / (w.size() as f64 / 1e6);
        if !gain.is_finite() {
            return Err(Error::eval(format!(
                "[dynamic-quant] {path}: gradients that are no numbers; the weights are damaged"
            )));
        }
        found.push((path, gain));
    }
    Ok(Some(found))
}

/// Gradients by the rounded weights of the mean KL(model ‖ copy) of a token.
fn gradients(model: &dyn Model, low: &Params, batch: &[Vec<u32>], recompute: bool) -> Result<Params> {
    let inputs: Vec<i32> = batch.iter().flatten().map(|&t| t as i32).collect();
    let tokens = Array::from_slice(&inputs, &[inputs.len()]);
    let logits = |model: &dyn Model, recompute: bool| -> Result<Array> {
        let mut texts = vec![Sequence::whole(); batch.len()];
        let mut rows = Batch::new(batch.iter().map(Vec::len).zip(&mut texts));
        if recompute {
            rows.recompute();
        }
        let logits = model.logits(&model.hidden(&tokens, &mut rows)?)?;
        log_softmax(&ops::astype(&logits, Dtype::Float32)?, -1)
    };
    let p = logits(model, false)?;
    eval([&p])?;
    let run = value_and_grad(|low: &Params| {
        let mut copy = model.copied();
        copy.module_mut().update(low, true)?;
        let terms = ops::multiply(ops::exp(&p)?, ops::subtract(&p, logits(&*copy, recompute)?)?)?;
        ops::mean(&ops::sum(&terms, -1, false)?, (), false)
    });
    let (_, grads) = run(low)?;
    eval(grads.values())?;
    Ok(grads)
}

/// Packs the original: layers that gain most in the high form, as many as give `target` bits a weight; the threshold is found to a
/// thousandth of the range. Gives the model, how its layers are packed, and how many are high.
///
/// # Errors
/// Sensitivities that lack layers of the model. A target that is out of reach is none: all layers are low, or high, then.
pub fn dynamic(
    original: &Original,
    sensitivities: &Sensitivities,
    target: f64,
    how: Dynamic,
    listener: &mut dyn Listener,
) -> Result<(Box<dyn Model>, Formats, usize)> {
    let (base, open) = how.formats(original)?;
    note_plain(&base, how.low, listener);
    let gain = |path: &str| sensitivities.iter().find(|(own, _)| own == path).map(|(_, x)| *x);
    let missing: Vec<&String> = open.iter().filter(|path| gain(path).is_none()).collect();
    if let Some(first) = missing.first() {
        return Err(Error::value(format!(
            "[dynamic-quant] sensitivities lack {} of the model's layers, {first} the first: they are those of another model",
            missing.len()
        )));
    }
    let formats = |threshold: f64| -> Formats {
        let high = |path: &String| open.contains(path) && gain(path).is_some_and(|x| x > threshold);
        base.iter().map(|(path, f)| (path.clone(), if high(path) { Some(how.high) } else { *f })).collect()
    };
    // Shapes tell the bits: nothing is computed.
    let bits = |formats: &Formats| -> Result<f64> { Ok(bits_per_weight(original.nearest(formats)?.module_mut())) };
    let [least, most] = [bits(&formats(f64::INFINITY))?, bits(&formats(f64::NEG_INFINITY))?];
    if !(least..=most).contains(&target) {
        listener.note(&format!(
            "the target is {target} bits a weight; {} to {} bits give {least:.3} to {most:.3} of this model, all that is not packed \
             included: the nearest is taken",
            how.low.bits(),
            how.high.bits()
        ));
    }
    let gains: Vec<f64> = open.iter().filter_map(|path| gain(path)).collect();
    let (mut low, mut high) =
        (gains.iter().copied().fold(f64::INFINITY, f64::min), gains.iter().copied().fold(f64::NEG_INFINITY, f64::max));
    let enough = 1e-3 * (high - low);
    if target >= most {
        high = f64::NEG_INFINITY;
    }
    while high - low > enough {
        let middle = 0.5 * (low + high);
        if bits(&formats(middle))? > target { low = middle } else { high = middle }
    }
    let formats = formats(high);
    let chosen = formats.values().filter(|f| **f == Some(how.high)).count();
    let mut model = original.model().copied();
    pack(&mut *model, &formats)?;
    Ok((model, formats, chosen))
}

/// Sensitivities in a file, a list of [path, number], as mlx-lm writes them.
///
/// # Errors
/// A file that cannot be read, or is no such list.
pub fn read_sensitivities(file: &Path) -> Result<Sensitivities> {
    let shown = file.display();
    let text = std::fs::read(file).map_err(|e| Error::io(format!("[dynamic-quant] {shown}: {e}")))?;
    serde_json::from_slice(&text)
        .map_err(|e| Error::value(format!("[dynamic-quant] {shown}: {e}; a list of [path, number] is needed")))
}

/// Writes sensitivities to a file.
///
/// # Errors
/// Faults of the file.
pub fn write_sensitivities(file: &Path, all: &Sensitivities) -> Result<()> {
    crate::state::write(file, json!(all).to_string().as_bytes())
}
