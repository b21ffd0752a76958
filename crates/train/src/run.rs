//! A whole run: steps, validations, reports, saved states, and the test at the end.

use crate::batches::groups;
use crate::order::Order;
use crate::report::{Record, Report, Written, samples_of};
use crate::services::{NAMES, Service};
use crate::state::{self, ADAPTERS, BEST};
use crate::tensorboard::EventFile;
use crate::trainer::evaluate;
use crate::{Data, Settings, Step, Trained, Trainer};
use lapis::distributed::{self, Group};
use lapis::{Array, Error, ErrorKind, Result, io, memory};
use lapis_lm::LanguageModel;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Steps in a row that are no numbers and may be skipped.
const SKIPPED: usize = 10;

/// Who hears of a run.
pub trait Observer {
    /// Something odd that is no error.
    fn note(&mut self, _text: &str) {}
    /// It begins, after `done` steps.
    fn begin(&mut self, _trained: &Trained, _done: usize) {}
    /// A step is done.
    fn step(&mut self, _done: usize, _of: usize) {}
    /// A batch of a validation or test is done.
    fn validating(&mut self, _done: usize, _of: usize) {}
    /// A line of metrics.jsonl.
    fn record(&mut self, _record: &Record) {}
    /// The state was saved.
    fn saved(&mut self, _file: &Path) {}
    /// Whether the run should end at a good place.
    fn stop(&mut self) -> bool {
        false
    }
}

/// How a run ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Steps done.
    pub steps: usize,
    /// Loss of the test set.
    pub test_loss: Option<f32>,
    /// The report, where training was asked for.
    pub report: Option<PathBuf>,
}

/// Does what the settings ask for; `resume` goes on with the state in the directory of the adapter.
///
/// The model of a test without training is `model` as it is. Processes of a group share the work; the first of them writes.
///
/// # Errors
/// Settings out of range, a model that cannot be trained; a loss that is no number, unless such steps are skipped: the last good
/// state is saved then.
pub fn run(
    model: &LanguageModel,
    data: Data,
    s: &Settings,
    resume: bool,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    run_against(model, None, data, s, resume, observer)
}

/// As [`run`]; preferences are held against `reference`, where it is given, and not against the model before training.
///
/// # Errors
/// As [`run`]; a reference with other tokens.
pub fn run_against(
    model: &LanguageModel,
    reference: Option<&LanguageModel>,
    data: Data,
    s: &Settings,
    resume: bool,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    s.check()?;
    let mut outcome = Outcome::default();
    let count = |n: i64| usize::try_from(n).ok();
    if !s.train {
        let mut order = Order::new(s.seed);
        let (model, group) = ((&*model.model, None), distributed::init(false)?);
        let loss =
            evaluate(model, &data.test, s, count(s.test_batches), &mut order, group, |i, n| observer.validating(i, n))?;
        outcome.test_loss = Some(loss);
        return Ok(outcome);
    }
    // What would end a run of hours is told before it begins.
    let own = distributed::init(false)?.size();
    for (samples, name, used) in [(&data.valid, "valid", s.val_batches != 0), (&data.test, "test", s.test)] {
        if used && !samples.is_empty() {
            groups(samples, s.batch_size, own, name)?;
        }
    }
    let dir = PathBuf::from(&s.adapter_path);
    let mut trainer = Trainer::new(&*model.model, data.train, s)?;
    if let Some(reference) = reference {
        let probe = "The 12 foxes ran, and said: “Hello!”";
        if model.tokenizer.encode(probe, false)? != reference.tokenizer.encode(probe, false)? {
            return Err(Error::value(
                "[lora] reference_model_path: that model has another tokenizer; answers are compared token by token",
            ));
        }
        trainer.hold_against(&*reference.model)?;
    }
    if let Some(file) = &s.resume_adapter_file {
        let weights = io::load_safetensors(Path::new(file))?.0.into_iter().collect();
        trainer.set_weights(&weights)?;
        observer.note(&format!("{file}: weights only are taken up; --resume goes on with a whole state"));
    }
    if resume {
        trainer.resume(&dir)?;
    }
    let (mut report, mut events, mut services, group) = (None, None, Vec::new(), trainer.group);
    // Until here others may read what is about to be written.
    group.barrier()?;
    let mut _lock = None;
    if group.rank() == 0 {
        _lock = Some(state::claim(&dir)?);
        state::begin(&dir, s, trainer.trained().blocks)?;
        // The best of another run.
        if trainer.done() == 0 {
            drop(std::fs::remove_file(dir.join(BEST)));
        }
        report = Some(Report::open(&dir, s, trainer.done())?);
        for name in s.reporters().filter(|name| NAMES.contains(&name.as_str())) {
            services.push(Service::begin(&name, &dir, s)?);
        }
        events = s.reporters().any(|r| r == "tensorboard").then(|| EventFile::create(&dir)).transpose()?;
    }
    let mut run = Run { report, events, services, valid: data.valid, trainer, dir, s, observer, language: model };
    run.observer.begin(&run.trainer.trained(), run.trainer.done());
    run.steps()?;
    // A model that was spoiled writes nothing; the rest of the report tells why.
    if let Some(report) = &run.report {
        let texts = samples_of(&run.written(), s, &run.valid, &run.trainer.samples).unwrap_or_else(|e| {
            run.observer.note(&format!("the report is without texts: {e}"));
            Vec::new()
        });
        outcome.report = Some(report.write(&texts)?);
    }
    outcome.steps = run.trainer.done();
    if s.test {
        let observer = run.observer;
        let loss = run.trainer.validate(&data.test, count(s.test_batches), |i, n| observer.validating(i, n))?;
        outcome.test_loss = Some(loss);
    }
    // Nobody leaves before all is written.
    group.barrier()?;
    Ok(outcome)
}

/// Whether any process of a group says so.
fn any(group: Group, own: bool) -> Result<bool> {
    Ok(group.all_max(&Array::from_vec(vec![i32::from(own)], &[]))?.item::<i32>()? > 0)
}

struct Run<'a> {
    trainer: Trainer,
    valid: Vec<crate::Sample>,
    dir: PathBuf,
    s: &'a Settings,
    /// Of the process that writes.
    report: Option<Report>,
    events: Option<EventFile>,
    services: Vec<Service>,
    observer: &'a mut dyn Observer,
    /// The model with its tokens.
    language: &'a LanguageModel,
}

impl Run<'_> {
    fn steps(&mut self) -> Result<()> {
        let s = self.s;
        let (mut seconds, mut steps, mut skipped) = (0.0, 0, 0);
        while self.trainer.done() < s.iters {
            // In this order mlx-lm draws the orders of batches.
            let it = self.trainer.done() + 1;
            let batch = self.trainer.next_batch();
            if !self.valid.is_empty()
                && s.val_batches != 0
                && (it == 1 || it.is_multiple_of(s.steps_per_eval) || it == s.iters)
                && self.validate()?
            {
                return Ok(());
            }
            let began = Instant::now();
            let step = self.trainer.step(&batch).map_err(|e| self.too_large(e, it))?;
            skipped = if step.is_finite() { 0 } else { skipped + 1 };
            if skipped > 0 && skipped <= SKIPPED && s.on_nan == "skip" {
                self.observer.note(&format!(
                    "step {it}: the loss is {}, the gradient's length {}: skipped",
                    step.loss, step.norm
                ));
            } else if skipped > 0 {
                let file = self.dir.join(ADAPTERS);
                self.save(false)?;
                self.trainer.group.barrier()?;
                let first = self.trainer.bad.as_ref().map_or(String::new(), |(name, n)| {
                    format!("\n  {n} gradients are no numbers, the first that of {name}")
                });
                let help = match s.on_nan.as_str() {
                    "skip" => format!("{SKIPPED} steps before it were skipped: a smaller --learning-rate helps"),
                    _ => "A smaller --learning-rate helps, or --on-nan skip".into(),
                };
                return Err(Error::eval(format!(
                    "[lora] the loss is {}, the gradient's length {} in step {it}; the weights of step {} are in {}{first}\n  {help}",
                    step.loss,
                    step.norm,
                    it - 1,
                    file.display()
                )));
            }
            seconds += began.elapsed().as_secs_f64();
            steps += 1;
            self.observer.step(it, s.iters);
            if it.is_multiple_of(s.steps_per_report) || it == s.iters {
                self.tell(it, &step, seconds / f64::from(steps))?;
                (seconds, steps) = (0.0, 0);
            }
            let last = it == s.iters;
            let stop = any(self.trainer.group, self.observer.stop())?;
            if (it.is_multiple_of(s.save_every) || last || stop)
                && let Some(file) = self.save(it.is_multiple_of(s.save_every))?
            {
                self.observer.saved(&file);
            }
            if stop {
                return Ok(());
            }
        }
        if self.report.is_some() {
            self.hint();
        }
        Ok(())
    }

    /// A step that memory does not suffice for: what was done before it is saved, and what helps is said.
    fn too_large(&self, error: Error, it: usize) -> Error {
        if error.kind() != ErrorKind::Memory {
            return error;
        }
        let saved = match it > 1 && self.save(false).is_ok_and(|file| file.is_some()) {
            true => format!(
                "\n  The state of step {} is saved; --resume goes on, with --grad-checkpoint or more memory",
                it - 1
            ),
            false => String::new(),
        };
        Error::memory(format!(
            "[lora] step {it} does not fit into memory ({:.3} GB are in use, the limit is {:.3})\n  Ways out: a smaller --batch-size or \
             --max-seq-length, --grad-checkpoint, fewer --num-layers, a lower rank, a model in fewer bits, a larger --memory-limit{saved}",
            memory::active() as f64 / 1e9,
            memory::limit() as f64 / 1e9
        ))
    }

    /// A line about the steps since the last one.
    fn tell(&mut self, it: usize, step: &Step, seconds: f64) -> Result<()> {
        let recent = std::mem::take(&mut self.trainer.recent);
        let losses: f64 = recent.iter().map(|(loss, _)| f64::from(*loss)).sum();
        let tokens: u32 = recent.iter().map(|(_, tokens)| tokens).sum();
        let n = recent.len().max(1) as f64;
        let record = Record {
            iteration: it,
            train_loss: Some((losses / n) as f32),
            learning_rate: Some(self.trainer.learning_rate()?),
            gradient_norm: Some(step.norm),
            reward_margin: step.reward.map(|(margin, _)| margin),
            reward_accuracy: step.reward.map(|(_, accuracy)| accuracy),
            iterations_per_second: Some(1.0 / seconds.max(1e-9)),
            tokens_per_second: Some(f64::from(tokens) / n / seconds.max(1e-9)),
            trained_tokens: Some(self.trainer.tokens),
            peak_memory: Some((memory::peak() + memory::mapped()) as f64 / 1e9),
            ..Record::default()
        };
        self.record(record)
    }

    fn record(&mut self, record: Record) -> Result<()> {
        let Some(report) = &mut self.report else { return Ok(()) };
        if let Some(events) = &mut self.events {
            events.record(&record)?;
        }
        for said in self.services.iter_mut().filter_map(|service| service.record(&record)) {
            self.observer.note(&said);
        }
        self.observer.record(&record);
        report.add(record)
    }

    /// Saves the state; says what was written last, of the process that writes.
    fn save(&self, numbered: bool) -> Result<Option<PathBuf>> {
        self.report.as_ref().map(|_| self.trainer.save(&self.dir, numbered)).transpose()
    }

    /// Saves the weights, of the process that writes.
    fn save_weights(&self, file: &Path) -> Result<()> {
        self.report.as_ref().map_or(Ok(()), |_| self.trainer.save_weights(file))
    }

    /// Whether there were enough validations without a better one.
    fn validate(&mut self) -> Result<bool> {
        let began = Instant::now();
        let batches = usize::try_from(self.s.val_batches).ok();
        let observer = &mut *self.observer;
        let loss = self.trainer.validate(&self.valid, batches, |i, n| observer.validating(i, n))?;
        let val_time = Some(began.elapsed().as_secs_f64());
        let record = Record {
            iteration: self.trainer.done(),
            val_loss: Some(loss),
            val_perplexity: (!self.s.prefers()).then(|| loss.exp()),
            val_time,
            texts: self.answers(),
            ..Record::default()
        };
        self.record(record)?;
        let best = self.dir.join(BEST);
        if self.trainer.best.is_none_or(|least| loss < least) {
            self.trainer.best = Some(loss);
            self.trainer.worse = 0;
            // Before the first step there is nothing to keep but for those who may come back to it.
            if self.trainer.done() > 0 || self.s.patience.is_some() {
                self.save_weights(&best)?;
            }
            return Ok(false);
        }
        self.trainer.worse += 1;
        let Some(patience) = self.s.patience.filter(|&n| self.trainer.worse >= n) else { return Ok(false) };
        // What counts is the best, not the last.
        let weights = io::load_safetensors(best.as_path())?.0.into_iter().collect();
        self.trainer.set_weights(&weights)?;
        let file = self.dir.join(ADAPTERS);
        self.save_weights(&file)?;
        let least = self.trainer.best.unwrap_or(loss);
        self.observer
            .note(&format!("{patience} validations were no better than {least:.3}: the weights of that one are kept"));
        self.observer.saved(&file);
        Ok(true)
    }

    /// What the model answers now to the prompts of the settings, of the process that writes.
    fn answers(&mut self) -> Vec<Written> {
        if self.report.is_none() || self.s.eval_prompts.is_none() {
            return Vec::new();
        }
        samples_of(&self.written(), self.s, &[], &[]).unwrap_or_else(|e| {
            self.observer.note(&format!("no texts at this validation: {e}"));
            Vec::new()
        })
    }

    /// Says when the best validation was not the last.
    fn hint(&mut self) {
        let (Some(best), worse) = (self.trainer.best, self.trainer.worse) else { return };
        if worse == 0 {
            return;
        }
        let file = self.dir.join(BEST);
        let text = match file.is_file() {
            true => format!(
                "the last {worse} validations were no better than one before, {best:.3}, whose weights are in {}; --patience stops there",
                file.display()
            ),
            false => format!(
                "no validation was better than the first, {best:.3}, before any step: a smaller --learning-rate may help, or more texts"
            ),
        };
        self.observer.note(&text);
    }

    /// The model as it is now, to write with.
    fn written(&self) -> LanguageModel {
        let model = self.language;
        let mut copy = self.trainer.model().copied();
        copy.module_mut().eval();
        LanguageModel {
            model: Arc::from(copy),
            tokenizer: model.tokenizer.clone(),
            eos: Arc::clone(&model.eos),
            generation: model.generation.clone(),
            warnings: Vec::new(),
            ..*model
        }
    }
}
