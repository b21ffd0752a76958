//! DWQ: scales and biases of a packed model learn to foresee what the source does; codes stay.
//!
//! The loss of a token is KL(source ‖ student) of `softmax(logits / 2)`; Adam with bias correction learns in float32 by how much
//! scales and biases change, and the forward pass has them in the type that they are stored in. The best state of all validations
//! is kept.
//!
//! With a learning rate, Adam walks on scales and biases themselves, at that rate all the way, as in mlx-lm. Without one:
//!
//! * It walks on the scale and on the weight of the middle code of a group, `bias + scale * levels / 2`. A larger scale alone moves
//!   all weights of a group one way, which the bias then has to take back; what Adam does for each number on its own does not see
//!   that. About the middle the two hardly depend on each other: on the demo model half as many steps go as far.
//! * A layer's step is a share of its mean scale, so that weights ten times as large learn as fast, over the root of its inputs: what
//!   weights of that size and steps of one sign do to outputs grows so (Yang and others 2022, arXiv 2203.03466). For 4096 inputs
//!   this comes to about mlx-lm's rate, which is that of large models.
//! * Steps become smaller along half a cosine, so that the last ones take away the noise of those before.

use super::state::{digest_of, fingerprint};
use super::{Listener, State};
use crate::Sample;
use crate::batches::{Cursor, groups};
use crate::order::Order;
use crate::state::write;
use lapis::io::{self, Metadata};
use lapis::ops::quantize::Mode;
use lapis::transforms::value_and_grad;
use lapis::{Array, Dtype, Error, Result, eval, memory, ops};
use lapis_lm::{Batch, Model, Original, Sequence};
use lapis_nn::activations::log_softmax;
use lapis_nn::optim::{Adam, Optimizer, Rate, cosine_decay};
use lapis_nn::{Params, check_finite, for_each_packable};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Logits are divided by it.
const TEMPERATURE: f64 = 2.0;
/// Logits of a place that a file of targets holds.
const KEPT: usize = 1024;
/// Samples that validate, at most.
const VALID: usize = 32;
/// Steps between two validations.
const VALIDATE: usize = 200;
/// Steps between two lines about the loss.
const REPORT: usize = 20;
/// Steps between two saved states.
const SAVE: usize = 50;
/// The first step of a layer of 256 inputs, as a share of its mean scale.
const SHARE: f64 = 0.002;

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub struct Dwq {
    /// Samples to learn from; those that there are come again until so many were seen.
    pub samples: usize,
    /// Tokens of a sample at most.
    pub max_seq_length: usize,
    /// Samples of a step.
    pub batch_size: usize,
    /// Of Adam, on scales and biases; nothing: a share of each layer's scales, which becomes smaller.
    pub learning_rate: Option<f64>,
    /// Of the order of samples.
    pub seed: u64,
    /// Compute values inside layers again for gradients.
    pub recompute: bool,
}

/// How a run went.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distilled {
    /// Steps.
    pub steps: usize,
    /// Loss of the validation before the first step.
    pub first: f64,
    /// Of the best validation, whose state was kept.
    pub best: f64,
    /// Of the last validation.
    pub last: f64,
}

/// Samples to learn from and to validate on, in batches of about one length.
pub struct Lessons {
    train: Vec<Vec<Vec<u32>>>,
    valid: Vec<Vec<Vec<u32>>>,
    steps: usize,
    cursor: Cursor,
    order: Order,
    digest: String,
}

impl Lessons {
    /// Draws samples, as the settings say: 32 of them, or an eighth where there are few, validate.
    ///
    /// # Errors
    /// Fewer samples than two batches.
    pub fn new(samples: &[Sample], how: &Dwq) -> Result<Lessons> {
        let mut order = Order::new(how.seed);
        let cut = |i: u32| {
            let tokens = &samples[i as usize].tokens;
            Sample { tokens: tokens[..tokens.len().min(how.max_seq_length)].to_vec(), ..Sample::default() }
        };
        let mut all: Vec<Sample> = order.permutation(samples.len()).into_iter().map(cut).collect();
        all.retain(|s| s.tokens.len() > 1);
        let size = how.batch_size.max(1);
        if all.len() < 2 * size {
            return Err(Error::value(format!(
                "[dwq] there are {} samples, fewer than two batches of {size}; give more text or a smaller --batch-size",
                all.len()
            )));
        }
        let valid =
            all.split_off(all.len() - (all.len() / 8).clamp(1, VALID).next_multiple_of(size).min(all.len() - size));
        all.truncate(how.samples.max(size));
        let batches = |samples: &[Sample]| -> Result<Vec<Vec<Vec<u32>>>> {
            let groups = groups(samples, size, 1, "dwq")?;
            Ok(groups.into_iter().map(|g| g.into_iter().map(|i| samples[i].tokens.clone()).collect()).collect())
        };
        let (train, valid) = (batches(&all)?, batches(&valid)?);
        let digest = digest_of(&train.iter().chain(&valid).flatten().cloned().collect::<Vec<_>>());
        Ok(Lessons { steps: (how.samples / size).max(1), train, valid, cursor: Cursor::default(), order, digest })
    }

    /// Steps of the whole run.
    pub fn steps(&self) -> usize {
        self.steps
    }
}

/// Who says what is to be foreseen: the source, or files that it has written.
pub enum Teacher<'a> {
    /// The source.
    Model(&'a dyn Model),
    /// A directory of [`write_targets`].
    Files(PathBuf),
}

/// Logits to be foreseen, of all tokens or of those in `ids`.
struct Targets {
    logits: Array,
    ids: Option<Array>,
}

impl Teacher<'_> {
    fn targets(&self, split: &str, index: usize, batch: &[Vec<u32>]) -> Result<Targets> {
        match self {
            Teacher::Model(model) => {
                let logits = logits(*model, batch, false)?;
                eval([&logits])?;
                Ok(Targets { logits, ids: None })
            }
            Teacher::Files(dir) => {
                let file = target_file(dir, split, index);
                let (mut all, _) = io::load_safetensors(file.as_path())?;
                let (Some(logits), Some(ids)) = (all.swap_remove("logits"), all.swap_remove("indices")) else {
                    let shown = file.display();
                    return Err(Error::io(format!("[dwq] {shown} holds no logits and indices; remove the directory")));
                };
                Ok(Targets { logits, ids: Some(ids) })
            }
        }
    }
}

fn target_file(dir: &Path, split: &str, index: usize) -> PathBuf {
    dir.join(split).join(format!("{index:010}.safetensors"))
}

/// Logits of all rows of a batch that have a next token.
fn logits(model: &dyn Model, batch: &[Vec<u32>], recompute: bool) -> Result<Array> {
    let inputs: Vec<i32> = batch.iter().flat_map(|row| &row[..row.len() - 1]).map(|&t| t as i32).collect();
    let n = inputs.len();
    let mut texts = vec![Sequence::whole(); batch.len()];
    let mut rows = Batch::new(batch.iter().map(|row| row.len() - 1).zip(&mut texts));
    if recompute {
        rows.recompute();
    }
    model.logits(&model.hidden(&Array::from_vec(inputs, &[n]), &mut rows)?)
}

/// The mean of KL(targets ‖ student) over rows.
fn loss(student: &dyn Model, batch: &[Vec<u32>], targets: &Targets, recompute: bool) -> Result<Array> {
    let mut own = logits(student, batch, recompute)?;
    if let Some(ids) = &targets.ids {
        own = ops::take_along_axis(&own, ids, -1)?;
    }
    let cooled = |a: &Array| log_softmax(&ops::divide(ops::astype(a, Dtype::Float32)?, TEMPERATURE)?, -1);
    let (p, q) = (cooled(&targets.logits)?, cooled(&own)?);
    let terms = ops::sum(&ops::multiply(ops::exp(&p)?, ops::subtract(&p, &q)?)?, -1, false)?;
    ops::mean(&terms, (), false)
}

// ------------------------------------------------------------------ targets in files

/// What a directory of targets says of itself.
const ABOUT: &str = "targets.json";

fn about(teacher: &Original, lessons: &Lessons, how: &Dwq) -> Result<Value> {
    Ok(json!({
        "schema": 1, "model": fingerprint(teacher.model())?, "samples": lessons.digest, "batch_size": how.batch_size,
    }))
}

/// Whether `dir` holds the targets of this teacher for these samples; of a directory that is not there, that it does not.
///
/// # Errors
/// Targets of another model or of other samples; a directory that is something else.
pub fn has_targets(dir: &Path, teacher: &Original, lessons: &Lessons, how: &Dwq) -> Result<bool> {
    let begun = |split: &str| dir.join(split).is_dir();
    let Ok(text) = std::fs::read(dir.join(ABOUT)) else {
        if begun("train") || begun("valid") {
            return Err(Error::value(format!(
                "[dwq] {} holds targets of which nothing says what they were made of; remove it or name another --target-dir",
                dir.display()
            )));
        }
        return Ok(false);
    };
    let (old, own) = (serde_json::from_slice::<Value>(&text).unwrap_or_default(), about(teacher, lessons, how)?);
    if old == own {
        let whole = |split: &str, n: usize| (0..n).all(|i| target_file(dir, split, i).is_file());
        return Ok(whole("train", lessons.train.len()) && whole("valid", lessons.valid.len()));
    }
    let differs = |key: &&str| old[*key] != own[*key];
    let differs = ["model", "samples", "batch_size", "schema"].iter().filter(|key| differs(key));
    let differs =
        differs.map(|key| format!("{key} {} there, {} here", old[*key], own[*key])).collect::<Vec<_>>().join("; ");
    Err(Error::value(format!(
        "[dwq] {} holds targets of another model, other samples, another seed or batch size ({differs}); remove it or name another \
         --target-dir",
        dir.display()
    )))
}

/// Writes what the teacher foresees: of each place the 1024 likeliest tokens, as `logits` and `indices` of (rows, 1024), a file
/// for each batch in `train/` and `valid/`. Files that are there already stay. Whether it was not stopped.
///
/// # Errors
/// Faults of computing and of files.
pub fn write_targets(
    dir: &Path,
    teacher: &Original,
    lessons: &Lessons,
    how: &Dwq,
    listener: &mut dyn Listener,
) -> Result<bool> {
    for (split, batches) in [("valid", &lessons.valid), ("train", &lessons.train)] {
        let folder = dir.join(split);
        std::fs::create_dir_all(&folder).map_err(|e| Error::io(format!("[dwq] {}: {e}", folder.display())))?;
        if split == "valid" {
            let about = about(teacher, lessons, how)?;
            write(&dir.join(ABOUT), format!("{about:#}\n").as_bytes())?;
        }
        for (i, batch) in batches.iter().enumerate() {
            listener.at("targets", i, batches.len());
            if listener.stop() {
                return Ok(false);
            }
            let file = target_file(dir, split, i);
            if file.is_file() {
                continue;
            }
            let logits = logits(teacher.model(), batch, false)?;
            let kept = KEPT.min(logits.dim(1)) as i64;
            let order = ops::argpartition(&logits, -kept, Some(-1))?;
            let ids = ops::slice(&order, &[(None, None, 1), (Some(logits.dim(1) as i64 - kept), None, 1)])?;
            let logits = ops::take_along_axis(&logits, &ids, -1)?;
            let all = Params::from([("logits".to_string(), logits), ("indices".to_string(), ids)]);
            eval(all.values())?;
            io::save_safetensors(file, &all, &Metadata::default())?;
        }
    }
    Ok(true)
}

// ------------------------------------------------------------------ learning

/// What tells a run from others; `student` is the packed model that it begins with.
///
/// # Errors
/// Weights that cannot be read.
pub fn run_of(teacher: &Original, student: &dyn Model, lessons: &Lessons, how: &Dwq, files: bool) -> Result<Value> {
    Ok(json!({
        "method": "dwq", "teacher": fingerprint(teacher.model())?, "student": fingerprint(student)?,
        "samples": lessons.digest, "steps": lessons.steps, "learning_rate": how.learning_rate, "seed": how.seed,
        "targets": files, "schema": 2,
    }))
}

/// Trains scales and biases of affine layers of fewer than 8 bits; `student` is left with the best that there was. Nothing, when the
/// listener had it stop; the state in `state` then goes on to the same bits.
///
/// # Errors
/// A model without such layers; a loss that is no number, with the best state kept in `student`.
pub fn dwq(
    student: &mut dyn Model,
    teacher: &Teacher<'_>,
    mut lessons: Lessons,
    how: &Dwq,
    state: &State,
    listener: &mut dyn Listener,
) -> Result<Option<Distilled>> {
    let layers = trained(student, how.learning_rate.is_none())?;
    if layers.is_empty() {
        return Err(Error::value(
            "[dwq] no layer is packed in affine codes of fewer than 8 bits: nothing can be trained",
        ));
    }
    let zeros = |a: &Array| ops::zeros_like(a, Some(Dtype::Float32));
    let mut params = Params::new();
    for layer in &layers {
        params.insert(layer.scales(), zeros(&layer.stored[0])?);
        params.insert(layer.biases(), zeros(&layer.stored[1])?);
    }
    let rate: Rate = match how.learning_rate {
        Some(rate) => rate.into(),
        None => cosine_decay(SHARE, lessons.steps as u64, 0.0)?.into(),
    };
    let mut run = Run {
        params,
        adam: Adam::new(rate).bias_correction(true),
        best: Params::new(),
        progress: Progress::default(),
        layers,
        how,
        teacher,
    };
    let cache = memory::cache_limit();
    let done = run.go(student, &mut lessons, state, listener);
    memory::set_cache_limit(cache);
    let done = done?;
    let best = run.parts(&run.best)?;
    student.module_mut().update(&best, true)?;
    Ok(done)
}

/// A layer whose scales and biases are trained: what is learned are changes, in steps of its own.
struct Layer {
    path: String,
    /// Its scales and biases as they were.
    stored: [Array; 2],
    /// A change of one, of a scale and of the weight of the middle code, in weights.
    steps: [f64; 2],
    /// The middle code; 0 where biases themselves are learned.
    middle: f64,
}

impl Layer {
    fn scales(&self) -> String {
        format!("{}.scales", self.path)
    }

    fn biases(&self) -> String {
        format!("{}.biases", self.path)
    }

    /// Scales and biases after changes, in the types that they are stored in.
    fn changed(&self, [scales, middles]: [&Array; 2]) -> Result<[Array; 2]> {
        let (scales, middles) = (ops::multiply(scales, self.steps[0])?, ops::multiply(middles, self.steps[1])?);
        let biases = ops::subtract(&middles, &ops::multiply(&scales, self.middle)?)?;
        let sum = |stored: &Array, change: &Array| {
            ops::astype(&ops::add(ops::astype(stored, Dtype::Float32)?, change)?, stored.dtype())
        };
        Ok([sum(&self.stored[0], &scales)?, sum(&self.stored[1], &biases)?])
    }
}

/// The layers to train; with `relative`, in steps that follow from their scales and inputs.
fn trained(student: &mut dyn Model, relative: bool) -> Result<Vec<Layer>> {
    let mut found = Vec::new();
    for_each_packable(student.module_mut(), &mut |path, layer| {
        if let Some(format) = layer.matrix().format().filter(|f| f.mode() == Mode::Affine && f.bits() < 8) {
            found.push((path.to_string(), ((1u32 << format.bits()) - 1) as f64, layer.matrix().columns()));
        }
    });
    let all = student.module().parameters();
    let layer = |(path, levels, columns): (String, f64, usize)| -> Result<Option<Layer>> {
        let part = |name: &str| all.get(&format!("{path}.{name}")).cloned();
        let (Some(scales), Some(biases)) = (part("scales"), part("biases")) else { return Ok(None) };
        let (mut steps, mut middle) = ([1.0; 2], 0.0);
        if relative {
            let mean = ops::mean(&ops::abs(&ops::astype(&scales, Dtype::Float32)?)?, (), false)?.item::<f32>()?;
            let step = f64::from(mean) * (256.0 / columns.max(1) as f64).sqrt();
            // Codes are about a quarter of all levels away from the middle.
            (steps, middle) = ([step, step * levels / 4.0], levels / 2.0);
        }
        Ok(Some(Layer { path, stored: [scales, biases], steps, middle }))
    };
    found.into_iter().filter_map(|one| layer(one).transpose()).collect()
}

/// Where a run is.
#[derive(Clone, Copy, Debug, Default, serde::Serialize, serde::Deserialize)]
struct Progress {
    steps: usize,
    /// Batches that were taken of this pass.
    taken: usize,
    #[serde(with = "bits")]
    first: f64,
    #[serde(with = "bits")]
    best: f64,
    #[serde(with = "bits")]
    last: f64,
}

/// Numbers in files as their bits: text would round some of them.
mod bits {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(x: &f64, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(x.to_bits())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
        u64::deserialize(from).map(f64::from_bits)
    }
}

struct Run<'a> {
    /// What is trained: changes of the layers' scales and biases, by their names, in float32.
    params: Params,
    /// The best so far.
    best: Params,
    layers: Vec<Layer>,
    adam: Adam,
    progress: Progress,
    how: &'a Dwq,
    teacher: &'a Teacher<'a>,
}

impl Run<'_> {
    fn go(
        &mut self,
        student: &mut dyn Model,
        lessons: &mut Lessons,
        state: &State,
        listener: &mut dyn Listener,
    ) -> Result<Option<Distilled>> {
        if !self.resume(lessons, state)? {
            let first = self.validate(student, lessons)?;
            (self.progress.first, self.progress.best, self.progress.last) = (first, first, first);
            self.best = self.params.clone();
            listener.note(&format!("validation before the first step: loss {first:.5}"));
        }
        let (all, size) = (lessons.train.iter().map(Vec::len).sum::<usize>(), self.how.batch_size);
        let asked = lessons.steps * size;
        if asked >= 2 * all {
            listener.note(&format!(
                "{asked} samples are asked for and {all} are there: each is seen {} times, in {} steps",
                asked / all,
                lessons.steps
            ));
        }
        let (mut began, mut recent, mut tokens, mut seen) = (Instant::now(), 0.0, 0, 0);
        while self.progress.steps < lessons.steps {
            listener.at("steps", self.progress.steps, lessons.steps);
            let index = lessons.cursor.next(lessons.train.len(), &mut lessons.order);
            let batch = &lessons.train[index];
            recent += f64::from(self.step(student, batch, index)?);
            tokens += batch.iter().map(|row| row.len() - 1).sum::<usize>();
            seen += 1;
            self.progress.steps += 1;
            let (done, stop) = (self.progress.steps, listener.stop());
            if done.is_multiple_of(REPORT) {
                let seconds = began.elapsed().as_secs_f64().max(1e-9);
                listener.note(&format!(
                    "step {done} of {}: loss {:.5}, {:.0} tokens/s, peak memory {:.3} GB, {:.0} s left",
                    lessons.steps,
                    recent / seen as f64,
                    tokens as f64 / seconds,
                    (memory::peak() + memory::mapped()) as f64 / 1e9,
                    seconds / seen as f64 * (lessons.steps - done) as f64
                ));
                (began, recent, tokens, seen) = (Instant::now(), 0.0, 0, 0);
            }
            if done.is_multiple_of(VALIDATE) || done == lessons.steps {
                let loss = self.validate(student, lessons)?;
                listener.note(&format!("validation after step {done}: loss {loss:.5}"));
                self.progress.last = loss;
                if loss < self.progress.best {
                    (self.progress.best, self.best) = (loss, self.params.clone());
                }
            }
            if done.is_multiple_of(SAVE) || stop {
                self.save(lessons, state)?;
            }
            if stop && done < lessons.steps {
                return Ok(None);
            }
        }
        let Progress { steps, first, best, last, .. } = self.progress;
        if last > first {
            listener.note(&format!(
                "the last validation, {last:.5}, is worse than the first, {first:.5}: the best state is kept; try a smaller \
                 --learning-rate"
            ));
        }
        Ok(Some(Distilled { steps, first, best, last }))
    }

    /// Scales and biases after these changes.
    fn parts(&self, params: &Params) -> Result<Params> {
        let mut all = Params::new();
        for layer in &self.layers {
            let names = [layer.scales(), layer.biases()];
            all.extend(names.clone().into_iter().zip(layer.changed(names.each_ref().map(|name| &params[name]))?));
        }
        Ok(all)
    }

    /// A step; gives its loss.
    fn step(&mut self, student: &dyn Model, batch: &[Vec<u32>], index: usize) -> Result<f32> {
        let targets = self.teacher.targets("train", index, batch)?;
        let run = value_and_grad(|params: &Params| {
            let mut copy = student.copied();
            copy.module_mut().update(&self.parts(params)?, true)?;
            loss(&*copy, batch, &targets, self.how.recompute)
        });
        let (loss, grads) = run(&self.params)?;
        drop(run);
        eval(grads.values().chain([&loss]))?;
        let value = loss.item::<f32>()?;
        if !value.is_finite() || check_finite(&grads).is_err() {
            let step = self.progress.steps + 1;
            return Err(Error::eval(format!(
                "[dwq] loss or gradients of step {step} are no numbers ({value}); try a smaller --learning-rate"
            )));
        }
        self.params = self.adam.apply(&grads, &self.params)?;
        drop(grads);
        eval(self.params.values().chain(self.adam.state().values()))?;
        if memory::cache_limit() < memory::peak() {
            memory::set_cache_limit(memory::peak());
        }
        Ok(value)
    }

    /// The mean loss of a token of the samples that validate.
    fn validate(&self, student: &dyn Model, lessons: &Lessons) -> Result<f64> {
        let mut copy = student.copied();
        copy.module_mut().update(&self.parts(&self.params)?, true)?;
        let (mut sum, mut count) = (0.0, 0);
        for (i, batch) in lessons.valid.iter().enumerate() {
            let targets = self.teacher.targets("valid", i, batch)?;
            let rows: usize = batch.iter().map(|row| row.len() - 1).sum();
            sum += f64::from(loss(&*copy, batch, &targets, false)?.item::<f32>()?) * rows as f64;
            count += rows;
        }
        Ok(sum / count.max(1) as f64)
    }

    fn save(&self, lessons: &Lessons, state: &State) -> Result<()> {
        let mut all = Params::new();
        for (kind, params) in
            [("params", self.params.clone()), ("best", self.best.clone()), ("adam", self.adam.state())]
        {
            all.extend(params.into_iter().map(|(name, a)| (format!("{kind}/{name}"), a)));
        }
        let words = |words: Vec<u32>| {
            let n = words.len();
            Array::from_vec(words, &[n])
        };
        all.insert("order".into(), words(lessons.order.state()));
        all.insert("pass".into(), words(lessons.cursor.pass.clone()));
        let progress = Progress { taken: lessons.cursor.taken, ..self.progress };
        state.save("dwq", &all, &json!(progress))
    }

    /// Takes up what was saved; whether there was something.
    fn resume(&mut self, lessons: &mut Lessons, state: &State) -> Result<bool> {
        let Some((all, note)) = state.load("dwq")? else { return Ok(false) };
        let damaged = || Error::io("[dwq] the state of the run is damaged; remove its directory and begin anew");
        self.progress = serde_json::from_value(note).map_err(|_| damaged())?;
        let (mut params, mut moments, mut rest) = (Params::new(), Params::new(), Params::new());
        self.best.clear();
        for (name, array) in all {
            match name.split_once('/') {
                Some(("params", name)) => drop(params.insert(name.to_string(), array)),
                Some(("best", name)) => drop(self.best.insert(name.to_string(), array)),
                Some(("adam", name)) => drop(moments.insert(name.to_string(), array)),
                _ => drop(rest.insert(name, array)),
            }
        }
        let same = |p: &Params| p.len() == self.params.len() && p.keys().all(|name| self.params.contains_key(name));
        if !same(&params) || !same(&self.best) {
            return Err(damaged());
        }
        let words = |name: &str| rest.get(name).ok_or_else(damaged)?.to_vec::<u32>();
        lessons.order = Order::from_state(&words("order")?).ok_or_else(damaged)?;
        lessons.cursor = Cursor { pass: words("pass")?, taken: self.progress.taken };
        self.params = params;
        self.adam.init(&self.params)?;
        self.adam.set_state(&moments)?;
        Ok(true)
    }
}
